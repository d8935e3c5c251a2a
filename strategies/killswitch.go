package strategies

import (
	"net/netip"
	"slices"
	"strconv"

	"wg-quickns/confparse"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

// lastMetric is that of the routes behind the tunnel's: worse than any that a
// program gives its own.
const lastMetric = 4278198272

// KillSwitch plans what must be there before the tunnel's first address: a fwmark
// that tells its own packets from all others, the kill switch, and the firewall
// of its addresses. A tunnel whose socket is elsewhere sends no packets of its own
// here. Of strategy `auto` the table is taken too, by a default route that leads
// nowhere.
func KillSwitch(cfg *confparse.Config, f *facts.Facts, p Place) ([]plan.Action, error) {
	m := newMarking(cfg, f)
	var defaults []bool
	if ownTable(cfg, p) {
		defaults = families(f)
	}
	step := plan.KillSwitch{Link: f.Device.Name, Addrs: addresses(cfg, f)}
	var actions []plan.Action
	if !p.Elsewhere() || len(defaults) > 0 {
		mark, err := m.mark()
		if err != nil {
			return nil, err
		}
		actions = mark
	}
	var nftMark uint32
	if !p.Elsewhere() {
		step.Mark, nftMark = m.table, m.table
	}
	actions = append(actions, plan.Action{
		Do:   step,
		Undo: []plan.Step{plan.KillSwitch{Link: step.Link, Delete: true}},
		Why:  "nothing leaves but through the tunnel, until down",
	})
	for _, v6 := range []bool{true, false} {
		nft := plan.Nft{Link: f.Device.Name, IPv6: v6, Mark: nftMark}
		for _, a := range step.Addrs {
			if a.Is6() == v6 {
				nft.Addrs = append(nft.Addrs, a)
			}
		}
		if len(nft.Addrs) > 0 || slices.Contains(defaults, v6) {
			actions = append(actions, nftAction(nft))
		}
	}
	for _, v6 := range defaults {
		actions = append(actions, dead(plan.Route{
			Table: m.table, TableText: strconv.FormatUint(uint64(m.table), 10), List: []plan.Prefix{{Prefix: zero(v6)}},
		}))
	}
	return in(p.Target, actions), nil
}

// ownTable says whether strategy `auto` puts default routes into a table of the tunnel's own.
func ownTable(cfg *confparse.Config, p Place) bool {
	return cfg.Strategy() == confparse.StrategyAuto && automatic(cfg) && !p.plain()
}

// addresses are those of the config, and those that a hook has added.
func addresses(cfg *confparse.Config, f *facts.Facts) []netip.Addr {
	var list []netip.Addr
	add := func(a netip.Addr) {
		if !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	for _, a := range cfg.Addresses {
		add(a.Prefix.Addr())
	}
	for _, a := range f.Addrs {
		add(a.Prefix.Addr())
	}
	return list
}

// behind puts a route that leads nowhere before each of the tunnel's default
// routes (or their halves), to take its place when the interface is gone.
func behind(actions []plan.Action) []plan.Action {
	var out []plan.Action
	for _, a := range actions {
		if r, ok := a.Do.(plan.Route); ok {
			r.List = slices.DeleteFunc(slices.Clone(r.List), func(p plan.Prefix) bool { return p.Prefix.Bits() > 1 })
			if len(r.List) > 0 {
				out = append(out, dead(r))
			}
		}
		out = append(out, a)
	}
	return out
}

// dead plans routes that lead nowhere, to where r goes.
func dead(r plan.Route) plan.Action {
	r.Link, r.Replace, r.Unreachable, r.Metric = "", false, true, lastMetric
	undo := r
	undo.Delete = true
	return plan.Action{Do: r, Undo: []plan.Step{undo}, Why: "an error at once where the tunnel is gone"}
}
