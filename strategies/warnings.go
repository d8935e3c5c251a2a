package strategies

import (
	"fmt"
	"net/netip"
	"slices"

	"wg-quickns/confparse"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

// Warnings lists what gets past a full tunnel that has no kill switch: a family
// that it leaves out, and routes that win over it because they are more specific
// (a DHCP server may give any, RFC 3442; a router too, RFC 4191).
func Warnings(cfg *confparse.Config, f *facts.Facts, p Place) []string {
	tunnelled := wholes(f)
	if cfg.KillSwitch || cfg.Table == "off" || !automatic(cfg) && cfg.Strategy() != confparse.StrategyRules || len(tunnelled) == 0 {
		return nil
	}
	var list []string
	for _, v6 := range []bool{false, true} {
		if slices.Contains(tunnelled, v6) {
			continue
		}
		if slices.ContainsFunc(f.Routes, func(r facts.Route) bool {
			return r.Table == plan.TableMain && r.Dst == zero(v6) && r.Type == unicast && r.Index != f.Device.Index
		}) {
			list = append(list, fmt.Sprintf("Warning: %s goes past `%s' by its own default route: %s is not in AllowedIPs, and there is no KillSwitch",
				protocol(v6), f.Device.Name, zero(v6)))
		}
	}
	if cfg.Strategy() == confparse.StrategyRules {
		return list
	}
	for _, r := range f.Routes {
		if r.Table != plan.TableMain || r.Index == f.Device.Index || !Leads(r) || f.Kept[r.Dst] || isEndpoint(f, r.Dst) ||
			!slices.Contains(tunnelled, r.Dst.Addr().Is6()) {
			continue
		}
		list = append(list, fmt.Sprintf("Warning: %s goes past `%s' by its own route via %s, and there is no KillSwitch", r.Dst, f.Device.Name, r.Gateway))
	}
	return list
}

// wholes are the families that AllowedIPs hold all of, in one or in halves.
func wholes(f *facts.Facts) []bool {
	list := families(f)
	for _, v6 := range []bool{false, true} {
		missing := func(half netip.Prefix) bool { return !allows(f, func(p netip.Prefix) bool { return p == half }) }
		if !slices.Contains(list, v6) && !slices.ContainsFunc(halves(v6), missing) {
			list = append(list, v6)
		}
	}
	return list
}

// isEndpoint says whether a prefix is where a peer is, and nothing else.
func isEndpoint(f *facts.Facts, p netip.Prefix) bool {
	return p.IsSingleIP() && slices.ContainsFunc(f.Device.Peers, func(q facts.Peer) bool { return q.Endpoint.Addr().Unmap() == p.Addr() })
}

func protocol(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}
