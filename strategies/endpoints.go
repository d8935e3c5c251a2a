package strategies

import (
	"net/netip"
	"slices"

	"wg-quickns/confparse"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

const (
	unicast     = 1 // RTN_UNICAST of linux/rtnetlink.h
	unreachable = 7 // RTN_UNREACHABLE
	boot        = 3 // RTPROT_BOOT: made by ip-route(8)
	ra          = 9 // RTPROT_RA: learned from a router advertisement
)

// NeedsWays says whether a config's strategy asks where others' routes lead.
func NeedsWays(cfg *confparse.Config) bool { return cfg.Strategy() != confparse.StrategyAuto }

// endpoints lists the peers' addresses, each once, but for those that are
// link-local: such a one is never routed by a gateway, nor by the tunnel.
func endpoints(f *facts.Facts) []netip.Addr {
	var list []netip.Addr
	for _, p := range f.Device.Peers {
		a := p.Endpoint.Addr().Unmap()
		if a.IsValid() && !a.IsLinkLocalUnicast() && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list
}

// wayTo is the route by which a packet of the tunnel's own goes to an address now,
// without what leads into the tunnel: the rules in their order, then the longest
// prefix, then the lowest metric (net/core/fib_rules.c, net/ipv4/fib_trie.c). Rules
// that select by what such a packet has not, or what cannot be told, are passed over.
func wayTo(f *facts.Facts, to netip.Addr) (facts.Route, bool) {
	for _, r := range f.Rules {
		if r.IPv6 != to.Is6() || r.Other || !selects(r, f.Device.FwMark, to) {
			continue
		}
		if way, ok := lookup(f, r.Table, to); ok && way.Dst.Bits() > r.SuppressPrefixLen {
			return way, way.Type == unicast && way.Way != nil
		}
	}
	return facts.Route{}, false
}

func selects(r facts.Rule, mark uint32, to netip.Addr) bool {
	mask := r.FwMask
	if r.FwMark != 0 && mask == 0 {
		mask = ^uint32(0)
	}
	match := mark&mask == r.FwMark&mask &&
		(!r.Src.IsValid() || r.Src.Bits() == 0) &&
		(!r.Dst.IsValid() || r.Dst.Contains(to))
	return match != r.Invert
}

// lookup finds the best route of one table that is not the tunnel's, nor what its kill
// switch has behind those.
func lookup(f *facts.Facts, table uint32, to netip.Addr) (best facts.Route, found bool) {
	for _, r := range f.Routes {
		if r.Table != table || r.Index == f.Device.Index || r.Type == unreachable && r.Metric == lastMetric || !r.Dst.Contains(to) || r.Way != nil && (r.Way.SrcLen != 0 || r.Way.TOS != 0) {
			continue
		}
		if !found || r.Dst.Bits() > best.Dst.Bits() || r.Dst.Bits() == best.Dst.Bits() && r.Metric < best.Metric {
			best, found = r, true
		}
	}
	return best, found
}

// hostRoutes plans a route to each endpoint by the way that reaches it now, so that
// no other route of the tunnel's can catch its own encrypted packets. An endpoint
// that nothing reaches gets none.
func hostRoutes(f *facts.Facts, list []netip.Addr) []plan.Action {
	var actions []plan.Action
	for _, a := range list {
		way, ok := wayTo(f, a)
		if !ok {
			continue
		}
		step := plan.Via{Route: facts.Route{
			Dst: netip.PrefixFrom(a, a.BitLen()), Table: plan.TableMain, Index: way.Index, Gateway: way.Gateway, Metric: best(a.Is6()),
			MTU: way.MTU, Protocol: boot, Type: unicast, Way: hostWay(way.Way),
		}}
		undo := step
		undo.Delete = true
		actions = append(actions, plan.Action{Do: step, Undo: []plan.Step{undo},
			Why: "the endpoint stays reached the way it is now"})
	}
	return actions
}

// hostWay is a route's way for another destination: as long as that one's.
func hostWay(w *facts.Way) *facts.Way {
	host := *w
	host.TOS, host.SrcLen, host.Expires = 0, 0, 0
	return &host
}

// families says for which families the tunnel is to be the way out, IPv4 first.
func families(f *facts.Facts) []bool {
	return slices.DeleteFunc([]bool{false, true}, func(v6 bool) bool {
		return !allows(f, func(p netip.Prefix) bool { return p.Bits() == 0 && p.Addr().Is6() == v6 })
	})
}

// allows says whether any of the allowed IPs is what is asked for.
func allows(f *facts.Facts, is func(netip.Prefix) bool) bool {
	return slices.ContainsFunc(f.Device.Peers, func(p facts.Peer) bool { return slices.ContainsFunc(p.AllowedIPs, is) })
}

func zero(v6 bool) netip.Prefix {
	if v6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// classic plans what the strategies that work on table main have in common, before
// the default routes: the endpoints' host routes, then the routes of all other
// allowed IPs. What is an endpoint's own address stays outside: packets to it cannot
// be told from the tunnel's.
func classic(cfg *confparse.Config, f *facts.Facts, p Place) []plan.Action {
	var outside []netip.Addr
	if !p.Elsewhere() {
		outside = endpoints(f)
	}
	var dst []netip.Prefix
	for _, a := range allowed(f) {
		if a.Bits() > 0 && !(a.IsSingleIP() && slices.Contains(outside, a.Addr())) {
			dst = append(dst, a)
		}
	}
	return append(hostRoutes(f, endangered(cfg, f, p)), routeBatch(plan.Route{Link: f.Device.Name}, uncovered(f, dst), "AllowedIPs")...)
}

// endangered lists the endpoints that a route by the tunnel would catch.
func endangered(cfg *confparse.Config, f *facts.Facts, p Place) []netip.Addr {
	if p.Elsewhere() {
		return nil
	}
	inside := append(subnets(cfg), allowed(f)...)
	return slices.DeleteFunc(endpoints(f), func(a netip.Addr) bool {
		return !slices.ContainsFunc(inside, func(p netip.Prefix) bool { return p.Contains(a) })
	})
}
