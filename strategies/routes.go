package strategies

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"wg-quickns/confparse"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

// Strategy plans how traffic gets into a tunnel that is up.
type Strategy func(*confparse.Config, *facts.Facts, Place) ([]plan.Action, error)

// byName is every strategy by the name that RoutingStrategy gives it.
var byName = map[string]Strategy{
	confparse.StrategyAuto: Auto, confparse.StrategyReplace: Replace,
	confparse.StrategyOverride: Override, confparse.StrategyRules: Rules,
}

// Routes plans the routes of all allowed IPs by the config's Table and
// RoutingStrategy. In a foreign namespace without the UDP socket a /0 needs no
// strategy: it is a route like any.
func Routes(cfg *confparse.Config, f *facts.Facts, p Place) ([]plan.Action, error) {
	actions, err := routes(cfg, f, p)
	if cfg.KillSwitch && !ownTable(cfg, p) { // its table has one already
		actions = in(p.Target, behind(actions))
	}
	return actions, err
}

func routes(cfg *confparse.Config, f *facts.Facts, p Place) ([]plan.Action, error) {
	route := plan.Route{Link: f.Device.Name}
	switch {
	case cfg.Table == "off":
		return nil, nil
	case automatic(cfg) && p.plain():
		return in(p.Target, routeBatch(route, uncovered(f, allowed(f)), "AllowedIPs")), nil
	case automatic(cfg) || cfg.Strategy() == confparse.StrategyRules:
		strategy, ok := byName[cfg.Strategy()]
		if !ok {
			return nil, fmt.Errorf("unknown strategy `%s'", cfg.Strategy())
		}
		actions, err := strategy(cfg, f, p)
		return in(p.Target, actions), err
	}
	table, ok := confparse.TableID(cfg.Table, f.TableNames)
	if !ok {
		return nil, fmt.Errorf("table `%s' is neither a number nor a name in rt_tables", confparse.Redact(cfg.Table))
	}
	route.Table, route.TableText = table, cfg.Table
	return in(p.Target, routeBatch(route, allowed(f), "Table of the config")), nil
}

// automatic says whether the default strategy routes: Table is unset or `auto`.
func automatic(cfg *confparse.Config) bool { return cfg.Table == "" || cfg.Table == "auto" }

// routeBatch is one step for many destinations; none gives no action.
func routeBatch(step plan.Route, dst []netip.Prefix, why string) []plan.Action {
	if len(dst) == 0 {
		return nil
	}
	step.List = make([]plan.Prefix, len(dst))
	for i, p := range dst {
		step.List[i].Prefix = p
	}
	return []plan.Action{{Do: step, Why: why}}
}

// allowed lists all allowed IPs in wg-quick's order: longest prefix first, then
// backwards by text (`sort -nr -k 2 -t /` in the C locale).
func allowed(f *facts.Facts) []netip.Prefix {
	type entry struct {
		prefix netip.Prefix
		text   string
	}
	n := 0
	for _, peer := range f.Device.Peers {
		n += len(peer.AllowedIPs)
	}
	list := make([]entry, 0, n)
	for _, peer := range f.Device.Peers {
		for _, p := range peer.AllowedIPs {
			list = append(list, entry{p, p.String()})
		}
	}
	slices.SortFunc(list, func(a, b entry) int {
		return cmp.Or(cmp.Compare(b.prefix.Bits(), a.prefix.Bits()), cmp.Compare(b.text, a.text))
	})
	out := make([]netip.Prefix, len(list))
	for i, e := range list {
		out[i] = e.prefix
	}
	return out
}

// coverage is a set of prefixes, with the lengths that occur in it.
type coverage struct {
	set     map[netip.Prefix]bool
	lengths []int
}

// onDevice is the set of main-table destinations routed by the tunnel already.
func onDevice(f *facts.Facts) coverage {
	c := coverage{set: make(map[netip.Prefix]bool)}
	for _, r := range f.Routes {
		if r.Index == f.Device.Index && r.Table == plan.TableMain {
			c.set[r.Dst] = true
			if !slices.Contains(c.lengths, r.Dst.Bits()) {
				c.lengths = append(c.lengths, r.Dst.Bits())
			}
		}
	}
	return c
}

// uncovered leaves out what the tunnel's routes of table main cover already.
func uncovered(f *facts.Facts, list []netip.Prefix) []netip.Prefix {
	covered := onDevice(f)
	out := make([]netip.Prefix, 0, len(list))
	for _, p := range list {
		if !covered.by(p) {
			out = append(out, p)
		}
	}
	return out
}

// by says whether p or a shorter prefix around it is in the set, as
// `ip route show dev DEVICE match P` would list it.
func (c coverage) by(p netip.Prefix) bool {
	for _, bits := range c.lengths {
		if bits <= p.Bits() && c.set[netip.PrefixFrom(p.Addr(), bits).Masked()] {
			return true
		}
	}
	return false
}

// subnets lists what the kernel routes by itself for the config's addresses.
func subnets(cfg *confparse.Config) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range cfg.Addresses {
		if !a.Prefix.IsSingleIP() {
			out = append(out, a.Prefix.Masked())
		}
	}
	return out
}

// swallowed lists the tunnel's own routes, of those that the config asks for,
// that would take its encrypted packets to an endpoint back into it: the endpoint
// is inside, and no route by another interface is a better match.
func swallowed(cfg *confparse.Config, f *facts.Facts) []netip.Prefix {
	if !automatic(cfg) && cfg.Strategy() != confparse.StrategyRules || len(f.Device.Peers) == 0 {
		return nil
	}
	mine := make(map[netip.Prefix]bool, max(len(f.Device.Peers), len(f.Device.Peers[0].AllowedIPs)))
	add := func(list []netip.Prefix) {
		for _, p := range list {
			mine[p] = p.Bits() > 0 // a /0 is the strategy's own matter
		}
	}
	add(subnets(cfg))
	for _, peer := range f.Device.Peers {
		add(peer.AllowedIPs)
	}
	others := mainByOthers(f)
	found := make(map[netip.Prefix]bool)
	var out []netip.Prefix
	asked := make(map[netip.Addr]bool)
	for _, peer := range f.Device.Peers {
		a := peer.Endpoint.Addr().WithZone("")
		if asked[a] {
			continue
		}
		asked[a] = true
		for bits := a.BitLen(); bits > 0; bits-- {
			p := netip.PrefixFrom(a, bits).Masked()
			if others[p] {
				break
			}
			if mine[p] && !found[p] {
				found[p] = true
				out = append(out, p)
			}
		}
	}
	// Shortest first: a later rule gets a lower priority number and is asked first.
	slices.SortStableFunc(out, func(a, b netip.Prefix) int { return cmp.Compare(a.Bits(), b.Bits()) })
	return out
}

// mainByOthers is the set of main-table destinations that other interfaces route
// with a metric no worse than the kernel's own for the tunnel's subnets.
func mainByOthers(f *facts.Facts) map[netip.Prefix]bool {
	set := make(map[netip.Prefix]bool)
	for _, r := range f.Routes {
		kernelMetric := uint32(0)
		if r.Dst.Addr().Is6() {
			kernelMetric = 256 // IP6_RT_PRIO_ADDRCONF, net/ip6_route.h
		}
		if r.Index != f.Device.Index && r.Table == plan.TableMain && r.Metric <= kernelMetric {
			set[r.Dst] = true
		}
	}
	return set
}
