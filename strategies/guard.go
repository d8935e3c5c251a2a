package strategies

import (
	"net/netip"
	"slices"
	"strings"

	"wg-quickns/confparse"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

// Standing is an action that the tunnel's journal holds as done, by its ID there.
type Standing struct {
	ID int
	plan.Action
}

// Repair is what makes a tunnel's surroundings true again.
type Repair struct {
	// Again is what stood and is missing: it is done again. Steps are trimmed to
	// what is missing of them.
	Again []Standing
	// New is what was not needed before: a way to an endpoint that changed, or a
	// route that others made since and that takes packets from the tunnel.
	New []plan.Action
	// Retire are standing actions that nothing needs any more: they are undone.
	Retire []int
	// Forget are standing actions whose undo would put back what is outdated.
	Forget []int
}

// Empty says that all is as it should be.
func (r Repair) Empty() bool {
	return len(r.Again)+len(r.New)+len(r.Retire)+len(r.Forget) == 0
}

// Guard compares what stands by the journal with the facts, and plans the repair.
// Of cfg RoutingStrategy and Table count; all else is as it stands. known are the
// destinations of others' routes from before the tunnel; others are the destinations
// of other tunnels' host routes.
func Guard(cfg *confparse.Config, f *facts.Facts, p Place, standing []Standing, known, others []netip.Prefix) Repair {
	g := guard{cfg: asStands(cfg, standing), f: f, p: p, standing: standing, planned: make(map[facts.Slot]bool)}
	if !p.plain() && (automatic(cfg) || cfg.Strategy() == confparse.StrategyRules) {
		g.displace(known, others)
		g.endpoints()
	}
	for _, s := range standing {
		g.static(s)
	}
	g.New = in(p.Target, g.New)
	return g.Repair
}

type guard struct {
	Repair
	cfg      *confparse.Config
	f        *facts.Facts
	p        Place
	standing []Standing
	moved    []facts.Route       // of f.Routes, those that New displaces
	planned  map[facts.Slot]bool // for routes by the tunnel that are planned already
}

// asStands is a config with the addresses and the rules' priorities that a tunnel has.
func asStands(cfg *confparse.Config, standing []Standing) *confparse.Config {
	c := &confparse.Config{RoutingStrategy: cfg.RoutingStrategy, Table: cfg.Table}
	c.RulePriority[0], c.RulePriority[1] = c.RulePriorities()
	for _, s := range standing {
		switch do := s.Do.(type) {
		case plan.Addr:
			for _, a := range do.List {
				c.Addresses = append(c.Addresses, confparse.Address{Text: a.String(), Prefix: a.Prefix})
			}
		case plan.Rule:
			if _, ok := endpointOf(do); ok {
				c.RulePriority[0] = do.Priority
			} else if do.ShowPriority {
				c.RulePriority[1] = do.Priority
			}
		}
	}
	return c
}

// full lists the families of which the tunnel takes everything.
func (g *guard) full() (list []bool) {
	for _, v6 := range []bool{false, true} {
		taken := func(p plan.Prefix) bool {
			if g.cfg.Strategy() == confparse.StrategyOverride {
				return slices.Contains(halves(v6), p.Prefix)
			}
			return p.Prefix == zero(v6)
		}
		if slices.ContainsFunc(g.standing, func(s Standing) bool {
			do, ok := s.Do.(plan.Route)
			return ok && !do.Unreachable && slices.ContainsFunc(do.List, taken)
		}) {
			list = append(list, v6)
		}
	}
	return list
}

// displace plans away what others made since `up` that takes packets from a full
// tunnel: routes by a gateway, or onto the link itself, to public addresses, and for
// `replace` default routes. Of `rules` none does: table main is asked last. What is
// made by hand to stay says so with `proto static`, as network managers do.
func (g *guard) displace(known, others []netip.Prefix) {
	if g.cfg.Strategy() == confparse.StrategyRules {
		return
	}
	full := g.full()
	for _, r := range g.f.Routes {
		if !slices.Contains(full, r.Dst.Addr().Is6()) || r.Index == g.f.Device.Index || r.Table != plan.TableMain ||
			r.Type != unicast || r.Way == nil || r.Way.SrcLen != 0 || r.Way.TOS != 0 {
			continue
		}
		switch {
		case r.Dst.Bits() == 0:
			if g.cfg.Strategy() != confparse.StrategyReplace || r.Dst.Addr().Is6() && r.Protocol == ra {
				continue
			}
		case !Leads(r) && !onLink(g.f, r), slices.Contains(known, r.Dst) && g.slot(r) < 0, slices.Contains(others, r.Dst), g.own(r), g.helps(r):
			continue
		}
		for _, s := range g.standing { // what it took the place of when it came before
			if back, ok := restored(s); ok && back.Slot() == r.Slot() {
				g.Forget = append(g.Forget, s.ID)
			}
		}
		g.moved = append(g.moved, r)
		back := plan.Via{Route: r, Restore: true}
		if i := g.slot(r); i >= 0 && r.Dst.Addr().Is4() { // it stands where a route of ours did
			s := g.standing[i]
			do := s.Do.(plan.Route)
			do.Replace, do.List = true, []plan.Prefix{{Prefix: r.Dst}}
			back.Instead = g.f.Device.Name
			g.New = append(g.New, plan.Action{Do: do, Undo: []plan.Step{back}, Why: "another took the tunnel's place"})
			continue
		}
		gone := plan.Action{Do: plan.Via{Route: r, Delete: true}, Undo: []plan.Step{back},
			Why: "it came since the tunnel is up and takes packets from it; down puts it back"}
		if r.Protocol == ra {
			gone.Undo, gone.Why = nil, "it takes packets from the tunnel; its router says it again after down"
		}
		g.New = append(g.New, gone)
	}
}

// Leads says whether a route leads some public addresses by a gateway, and was not
// made to stay (RTPROT_STATIC and routing daemons): the kind of route by which a
// network can take packets from a tunnel (DHCP option 121, RFC 3442; RFC 4191).
func Leads(r facts.Route) bool {
	return r.Dst.Bits() > 0 && r.Type == unicast && r.Gateway.IsValid() && madeToGo(r) && public(r.Dst)
}

func madeToGo(r facts.Route) bool {
	return r.Protocol == boot || r.Protocol == ra || r.Protocol == dhcp
}

// onLink says whether a route leads public addresses onto a link as if they were
// neighbours (RFC 3442, a router of 0.0.0.0). It is none where an own address is
// among them, nor by another tunnel, nor to one address: that is how a gateway
// outside of the subnet is reached.
func onLink(f *facts.Facts, r facts.Route) bool {
	if r.Dst.Bits() == 0 || r.Dst.IsSingleIP() || r.Type != unicast || r.Way == nil || r.Gateway.IsValid() || !madeToGo(r) || !public(r.Dst) {
		return false
	}
	if _, after, ok := strings.Cut(" "+r.Way.Text, " src "); ok {
		src, _, _ := strings.Cut(after, " ")
		if a, err := netip.ParseAddr(src); err == nil && r.Dst.Contains(a) {
			return false
		}
	}
	return !slices.ContainsFunc(f.Links, func(l facts.Link) bool {
		return l.Index == r.Index && slices.Contains([]string{"wireguard", "tun", "ppp", "xfrm", "vti", "gre", "ipip", "sit"}, l.Type)
	})
}

// helps says whether a route of others leads to an endpoint alone, beside our own
// route to it: it is followed, not displaced. Of `auto` the endpoint's other packets go
// into the tunnel as all do.
func (g *guard) helps(r facts.Route) bool {
	return g.cfg.Strategy() != confparse.StrategyAuto && r.Dst.IsSingleIP() && slices.Contains(endpoints(g.f), r.Dst.Addr()) &&
		!slices.ContainsFunc(g.standing, func(s Standing) bool {
			v, ok := hostRoute(s)
			return ok && v.Route.Slot() == r.Slot()
		})
}

// Known lists the destinations of others' routes that lead public addresses away
// from a full tunnel and were there before it: those that Guard leaves alone.
func Known(f *facts.Facts) []netip.Prefix {
	full := families(f)
	var list []netip.Prefix
	for _, r := range f.Routes {
		if r.Index != f.Device.Index && r.Table == plan.TableMain && slices.Contains(full, r.Dst.Addr().Is6()) && (Leads(r) || onLink(f, r)) {
			list = append(list, r.Dst)
		}
	}
	return list
}

// dhcp is RTPROT_DHCP of linux/rtnetlink.h.
const dhcp = 16

// local are prefixes that are no way to the world (RFC 6890).
var local = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
}

// public says whether a prefix holds an address of the world.
func public(p netip.Prefix) bool {
	return !slices.ContainsFunc(local, func(l netip.Prefix) bool { return l.Bits() <= p.Bits() && l.Contains(p.Addr()) })
}

// own says whether a route is one that this tunnel made to an endpoint.
func (g *guard) own(r facts.Route) bool {
	return slices.ContainsFunc(g.standing, func(s Standing) bool {
		v, ok := hostRoute(s)
		return ok && v.Route.Same(r)
	})
}

// slot is the standing route by the tunnel in whose place another is, -1 for none.
func (g *guard) slot(r facts.Route) int {
	return slices.IndexFunc(g.standing, func(s Standing) bool {
		do, ok := s.Do.(plan.Route)
		return ok && !do.Unreachable && !do.Delete && slices.ContainsFunc(do.List, func(p plan.Prefix) bool {
			return facts.Route{Dst: p.Prefix.Masked(), Table: do.Table, Metric: do.Metric}.Slot() == r.Slot()
		})
	})
}

// hostRoute is the step that made a way to an endpoint.
func hostRoute(s Standing) (plan.Via, bool) {
	v, ok := s.Do.(plan.Via)
	return v, ok && !v.Delete
}

// restored is the route of others that the undo of an action puts back.
func restored(s Standing) (facts.Route, bool) {
	for _, u := range s.Undo {
		if v, ok := u.(plan.Via); ok && v.Restore {
			return v.Route, true
		}
	}
	return facts.Route{}, false
}

// endpoints keeps each endpoint reached by the way that would reach it without the
// tunnel: one that is new gets its route or rule, one that is none any more loses it.
// Of `auto`, whose own packets ask table main, it is for those that only a displaced
// route reached.
func (g *guard) endpoints() {
	if g.p.Elsewhere() {
		return
	}
	now := *g.f
	now.Routes = slices.DeleteFunc(slices.Clone(g.f.Routes), func(r facts.Route) bool {
		return g.own(r) || r.Dst.Bits() > 0 && slices.ContainsFunc(g.moved, r.Same)
	})
	var displaced []facts.Route // second best: whoever made them may have taken them back since
	for _, r := range g.moved {
		if r.Dst.Bits() > 0 {
			displaced = append(displaced, r)
		}
	}
	for _, s := range slices.Backward(g.standing) {
		back, ok := restored(s)
		switch {
		case !ok || slices.Contains(g.Forget, s.ID) || !g.usable(back):
		case back.Dst.Bits() == 0:
			now.Routes = append(now.Routes, back)
		default:
			displaced = append(displaced, back)
		}
	}
	// A rule of ours names the table, which cannot be told by asking it.
	now.Rules = slices.DeleteFunc(slices.Clone(g.f.Rules), func(r facts.Rule) bool {
		return slices.ContainsFunc(g.standing, func(s Standing) bool {
			do, ok := s.Do.(plan.Rule)
			return ok && asFact(do) == r
		})
	})
	current := endpoints(g.f)
	lost := slices.DeleteFunc(slices.Clone(current), func(a netip.Addr) bool { _, ok := wayTo(&now, a); return ok })
	var want []plan.Action
	switch g.cfg.Strategy() {
	case confparse.StrategyRules:
		want = endpointRules(g.cfg, &now, g.p)
	case confparse.StrategyAuto:
		current = lost
	default:
		want = hostRoutes(&now, endangered(g.cfg, &now, g.p))
	}
	if len(displaced) > 0 {
		now.Routes = append(now.Routes, displaced...)
		want = append(want, hostRoutes(&now, lost)...)
	}
	kept := make(map[int]bool)
	for _, a := range want {
		i := slices.IndexFunc(g.standing, func(s Standing) bool { return sameEndpoint(s.Do, a.Do) })
		if i >= 0 && sameStep(g.standing[i].Do, a.Do) {
			kept[g.standing[i].ID] = true
			continue // static puts it back where it is missing
		}
		if v, ok := a.Do.(plan.Via); ok && i < 0 && slices.ContainsFunc(g.f.Routes, v.Route.Same) && !slices.ContainsFunc(g.moved, v.Route.Same) {
			continue // others have made it already
		}
		if i >= 0 { // it is reached another way now
			kept[g.standing[i].ID] = true
			if v, ok := a.Do.(plan.Via); ok {
				v.Replace = true
				a.Do = v
				g.Forget = append(g.Forget, g.standing[i].ID)
			} else {
				g.Retire = append(g.Retire, g.standing[i].ID)
			}
		}
		g.New = append(g.New, a)
	}
	for _, s := range g.standing {
		to, ok := endpointOf(s.Do)
		if ok && !kept[s.ID] && !slices.Contains(current, to) {
			g.Retire = append(g.Retire, s.ID)
		}
	}
}

// usable says whether a route that was taken away would work if it were there.
func (g *guard) usable(r facts.Route) bool {
	up := slices.ContainsFunc(g.f.Links, func(l facts.Link) bool { return l.Index == r.Index && l.Up && l.Running })
	if !up || !r.Gateway.IsValid() || r.Gateway.IsLinkLocalUnicast() || strings.Contains(r.Way.Text, "onlink") {
		return up
	}
	return slices.ContainsFunc(g.f.Routes, func(c facts.Route) bool {
		return c.Index == r.Index && !c.Gateway.IsValid() && c.Dst.Contains(r.Gateway)
	})
}

// endpointOf is the endpoint that a route or a rule is for.
func endpointOf(s plan.Step) (netip.Addr, bool) {
	switch s := s.(type) {
	case plan.Via:
		return s.Route.Dst.Addr(), !s.Delete
	case plan.Rule:
		return s.To.Addr(), s.ShowPriority && s.To.IsValid() && s.To.IsSingleIP()
	}
	return netip.Addr{}, false
}

func sameEndpoint(a, b plan.Step) bool {
	x, okX := endpointOf(a)
	y, okY := endpointOf(b)
	return okX && okY && x == y
}

func sameStep(a, b plan.Step) bool {
	if x, ok := a.(plan.Via); ok {
		y, ok := b.(plan.Via)
		return ok && x.Route.Same(y.Route)
	}
	return a == b // rules
}

// static plans again what stands by the journal and is missing. What only the
// kernel can be asked about (the firewall) is left in: the engine asks.
func (g *guard) static(s Standing) {
	if slices.Contains(g.Retire, s.ID) || slices.Contains(g.Forget, s.ID) || s.NS != g.p.Target {
		return
	}
	switch do := s.Do.(type) {
	case plan.Addr:
		do.List = slices.DeleteFunc(slices.Clone(do.List), func(p plan.Prefix) bool {
			return slices.Contains(g.f.Addrs, facts.Addr{Prefix: p.Prefix})
		})
		s.Do = do
		if len(do.List) == 0 {
			return
		}
	case plan.LinkUp:
		if slices.ContainsFunc(g.f.Links, func(l facts.Link) bool { return l.Name == do.Name && l.Up && l.MTU == do.MTU }) {
			return
		}
	case plan.Route:
		do.List = g.missing(do)
		do.Replace = false
		s.Do = do
		if len(do.List) == 0 {
			return
		}
	case plan.Via:
		if do.Delete || slices.ContainsFunc(g.f.Routes, do.Route.Same) || !g.usable(do.Route) {
			return
		}
	case plan.Rule:
		if slices.Contains(g.f.Rules, asFact(do)) {
			return
		}
	case plan.FwMark:
		if g.f.Device.FwMark == do.Mark {
			return
		}
	case plan.Sysctl:
		if do.Name != SrcValidMark || g.f.SrcValidMark == 1 {
			return
		}
	case plan.Nft, plan.KillSwitch:
	default:
		return
	}
	g.Again = append(g.Again, s)
}

// missing lists the destinations of a step that the tunnel's routes lack, but for
// those in whose place another route is: that is displace's.
func (g *guard) missing(do plan.Route) []plan.Prefix {
	have := make(map[facts.Slot]bool)
	for _, r := range g.f.Routes {
		if do.Unreachable && r.Type != unicast || !do.Unreachable && r.Index == g.f.Device.Index {
			have[r.Slot()] = true
		}
	}
	for _, r := range g.moved {
		have[r.Slot()] = true
	}
	var list []plan.Prefix
	for _, p := range do.List {
		slot := facts.Route{Dst: p.Prefix.Masked(), Table: do.Table, Metric: do.Metric}.Slot()
		if !have[slot] && !g.planned[slot] {
			list, g.planned[slot] = append(list, p), true
		}
	}
	return list
}

// asFact is a rule as the kernel lists it.
func asFact(r plan.Rule) facts.Rule {
	out := facts.Rule{
		IPv6: r.IPv6, Priority: r.Priority, Invert: r.NotFwMark != 0, FwMark: r.NotFwMark,
		Table: r.Table, SuppressPrefixLen: r.SuppressPrefixLen,
	}
	if r.NotFwMark != 0 {
		out.FwMask = ^uint32(0)
	}
	if r.To.IsValid() {
		out.Dst = r.To.Masked()
	}
	return out
}

// Looped says whether a peer's endpoint is an address inside of the tunnel, to which it
// came from one outside: while the way to the endpoint was missing an encrypted packet
// went through the tunnel itself, and its answer came from there. is is such a one if it
// is in the tunnel's subnet, or is private and nothing but a default route leads there.
// One that has a way of its own by the journal is none: a reload asked for it.
func Looped(f *facts.Facts, standing []Standing, was, is netip.Addr) bool {
	was, is = was.Unmap(), is.Unmap()
	wanted := func(s Standing) bool {
		to, ok := endpointOf(s.Do)
		return ok && to == is
	}
	if is == was || is.IsLinkLocalUnicast() || slices.ContainsFunc(standing, wanted) {
		return false
	}
	for _, a := range f.Addrs {
		if p := a.Prefix.Masked(); p.Contains(is) && !p.Contains(was) {
			return true
		}
	}
	whole := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
	if public(whole(is)) || !public(whole(was)) {
		return false
	}
	best, found := lookup(f, plan.TableMain, is)
	return !found || best.Dst.Bits() == 0
}
