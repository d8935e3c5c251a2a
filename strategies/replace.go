package strategies

import (
	"net/netip"
	"slices"

	"wg-quickns/confparse"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

// metric6 is the metric of the IPv6 routes that must win: the best there is. IPv6
// keeps several routes of one metric beside each other, so that ours must have none
// that others use.
const metric6 = 1

// best is the metric of such a route.
func best(v6 bool) uint32 {
	if v6 {
		return metric6
	}
	return 0
}

// Replace makes the tunnel's the only default route: a host route to each endpoint
// by the way that reaches it now, then the tunnel's default route in the place of
// the old one, and the other old ones go. At each moment there is one. An IPv6
// default route of a router advertisement stays, behind the tunnel's: the kernel
// would make it anew with the next advertisement.
func Replace(cfg *confparse.Config, f *facts.Facts, p Place) ([]plan.Action, error) {
	actions := classic(cfg, f, p)
	for _, v6 := range families(f) {
		def := plan.Route{Link: f.Device.Name, List: []plan.Prefix{{Prefix: zero(v6)}}, Metric: best(v6)}
		a := plan.Action{Do: def, Why: "the tunnel is the default route"}
		var others []plan.Action
		for _, r := range f.Routes {
			if r.Table != plan.TableMain || r.Dst != zero(v6) || r.Way == nil || r.Way.TOS != 0 || r.Way.SrcLen != 0 {
				continue
			}
			back := plan.Via{Route: r, Restore: true}
			switch {
			case r.Metric == def.Metric && a.Undo == nil:
				def.Replace, back.Instead = true, f.Device.Name
				a.Do, a.Undo = def, []plan.Step{back}
				// Where it is another tunnel's, that one may be gone by then: what it
				// had displaced comes back in its place.
				for _, d := range f.Displaced {
					if d.Slot() == r.Slot() {
						a.Undo = append(a.Undo, plan.Via{Route: d, Restore: true, Instead: f.Device.Name})
					}
				}
			case r.Type != unicast || v6 && r.Protocol == ra:
			default:
				others = append(others, plan.Action{Do: plan.Via{Route: r, Delete: true}, Undo: []plan.Step{back},
					Why: "one default route is enough; down puts it back"})
			}
		}
		actions = append(append(actions, a), others...)
	}
	return actions, nil
}

// Override puts two routes over each default route that are more specific, and so
// win, after a host route to each endpoint. The default routes stay untouched. What a
// network has in the place of one of the two comes back on down.
func Override(cfg *confparse.Config, f *facts.Facts, p Place) ([]plan.Action, error) {
	actions := classic(cfg, f, p)
	for _, v6 := range families(f) {
		const why = "together as much as the default route, and before it"
		var free []netip.Prefix
		for _, half := range halves(v6) {
			place := facts.Route{Dst: half, Metric: best(v6)}.Slot()
			i := slices.IndexFunc(f.Routes, func(r facts.Route) bool { return r.Way != nil && r.Slot() == place })
			if i < 0 {
				free = append(free, half)
				continue
			}
			actions = append(actions, plan.Action{
				Do:   plan.Route{Link: f.Device.Name, List: []plan.Prefix{{Prefix: half}}, Metric: best(v6), Replace: true},
				Undo: []plan.Step{plan.Via{Route: f.Routes[i], Restore: true, Instead: f.Device.Name}},
				Why:  why,
			})
		}
		actions = append(actions, routeBatch(plan.Route{Link: f.Device.Name, Metric: best(v6)}, free, why)...)
	}
	return actions, nil
}

// halves are the two prefixes of length 1.
func halves(v6 bool) []netip.Prefix {
	if v6 {
		return []netip.Prefix{netip.MustParsePrefix("::/1"), netip.MustParsePrefix("8000::/1")}
	}
	return []netip.Prefix{netip.MustParsePrefix("0.0.0.0/1"), netip.MustParsePrefix("128.0.0.0/1")}
}
