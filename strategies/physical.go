package strategies

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"wg-quickns/confparse"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

// Movable chooses the interfaces of the home namespace that `physical-netns` takes
// away: those of PhysicalInterfaces, else the hardware and whatever a default route
// leads by; with each what cannot be parted from it: the other interfaces of its
// phy, the ports of its bond or bridge, the VLANs upon it. It refuses what the
// kernel does not let go, and what would leave a way out behind. Names of which
// there is no interface count for nothing: it may be plugged in later.
func Movable(cfg *confparse.Config, all []facts.Interface) ([]facts.Interface, error) {
	chosen := make(map[int]bool)
	for _, l := range all {
		if cfg.PhysicalInterfaces == nil && (l.Hardware || l.Default) || slices.Contains(cfg.PhysicalInterfaces, l.Name) {
			chosen[l.Index] = true
		}
	}
	Together(all, chosen)
	var list []facts.Interface
	for _, l := range all {
		switch {
		case chosen[l.Index] && l.Fixed != "" && !l.Twin:
			return nil, fmt.Errorf("interface `%s' cannot leave its namespace: %s (hint: PhysicalInterfaces names those to move)", l.Name, l.Fixed)
		case chosen[l.Index]:
			list = append(list, l)
		case l.Default:
			return nil, fmt.Errorf("a default route leads by `%s', which PhysicalInterfaces does not name: it would stay a way out past the tunnel", l.Name)
		}
	}
	if len(list) == 0 {
		return nil, errors.New("there is no interface to move: neither hardware nor one that a default route leads by (hint: PhysicalInterfaces names them; where another tunnel has moved them, BirthNamespace alone does)")
	}
	slices.SortStableFunc(list, func(a, b facts.Interface) int { return height(a, all) - height(b, all) })
	return list, nil
}

// height is on how many others an interface lies: the ports of a bond or bridge are
// below it, and it below its VLANs.
func height(l facts.Interface, all []facts.Interface) (h int) {
	for _, o := range all {
		if o.Index == l.Lower || o.Master == l.Index {
			h = max(h, 1+height(o, all))
		}
	}
	return h
}

// Newcomers chooses what came into the home namespace since and would have been
// moved: hardware that PhysicalInterfaces, if set, names. What cannot move, and what
// is not ready by its index, stays.
func Newcomers(cfg *confparse.Config, all []facts.Interface, ready func(index int) bool) []facts.Interface {
	return slices.DeleteFunc(slices.Clone(all), func(l facts.Interface) bool {
		return !wanted(cfg, l) || l.Fixed != "" || !ready(l.Index)
	})
}

// wanted says whether an interface is to be moved when it comes later.
func wanted(cfg *confparse.Config, l facts.Interface) bool {
	if cfg.PhysicalInterfaces != nil {
		return slices.Contains(cfg.PhysicalInterfaces, l.Name)
	}
	return l.Hardware
}

// Stuck says what came into the home namespace since, is none of the Newcomers, and a way
// out past the tunnel: what cannot move, and what a default route leads by, which Movable
// would have taken or refused. What a program sends for a tun takes the routes as all else does.
func Stuck(cfg *confparse.Config, all []facts.Interface, ready func(index int) bool) (list []string) {
	for _, l := range all {
		switch {
		case !ready(l.Index):
		case wanted(cfg, l) && l.Fixed != "":
			list = append(list, fmt.Sprintf("interface %s cannot be moved, and is a way out past the tunnel: %s (hint: take it down, or pull it out)", l.Name, l.Fixed))
		case !wanted(cfg, l) && l.Default && l.Kind != "tun":
			list = append(list, fmt.Sprintf("interface %s, which is not moved, is a way out past the tunnel: a default route leads by it (hint: delete that route)", l.Name))
		}
	}
	return list
}

// Namesakes parts from what is at home what has the name of an interface that is there,
// away from home: by that name no second one can be moved, nor told from the first. Of
// these it gives those that would be moved, or may be a way out. One that a twin stands
// in for is no namesake of it, and moves no more either.
func Namesakes(cfg *confparse.Config, all, there []facts.Interface) (rest, namesakes []facts.Interface) {
	for _, l := range all {
		i := slices.IndexFunc(there, func(o facts.Interface) bool { return o.Alias == plan.AwayAlias(l) })
		switch {
		case i < 0:
			rest = append(rest, l)
		case (!l.Twin || l.Kind != there[i].Kind) && (wanted(cfg, l) || l.Default):
			namesakes = append(namesakes, l)
		}
	}
	return rest, namesakes
}

// Returned is for what went and is at home again, as a USB device that was pulled out and
// plugged in: the standing steps that take it away once more and give it what it had there,
// and start those again that are for it alone. Who configures all there are sees it come.
func Returned(all []facts.Interface, standing []Standing, ready func(index int) bool) (again []Standing) {
	back := make(map[string]bool) // by name
	done := make(map[string]bool) // it may stand twice: once as a newcomer's
	restart := func(s Standing, stop plan.Step, links []string) {
		if key := stop.Commands()[0]; len(links) == 1 && back[links[0]] && !done[key] {
			again, done[key] = append(again, Standing{s.ID, plan.Action{NS: s.NS, Do: stop}}, s), true
		}
	}
	for _, s := range standing {
		switch do := s.Do.(type) {
		case plan.Move:
			links := do.Links
			do.Links = nil
			for _, l := range links {
				i := slices.IndexFunc(all, func(o facts.Interface) bool { return o.Name == l.Name && o.Kind == l.Kind && o.MAC == l.MAC })
				if i >= 0 && all[i].Fixed == "" && ready(all[i].Index) && !back[l.Name] {
					do.Links, do.Phy, back[l.Name] = append(do.Links, l), all[i].Phy, true
				}
			}
			if s.Do = do; len(do.Links) > 0 {
				again = append(again, s)
			}
		case plan.Settle:
			if name := do.Link.Name; back[name] && !done[name] {
				again, done[name] = append(again, s), true
			}
		case plan.Service:
			if do.Start && strings.Contains(do.Unit, "@") {
				restart(s, plan.Service{Unit: do.Unit}, do.Links)
			}
		case plan.Client:
			if do.Start {
				restart(s, plan.Client{Client: do.Client}, do.Links)
			}
		}
	}
	return again
}

// Together adds to the chosen interfaces, by index, those that can only be where these are.
func Together(all []facts.Interface, chosen map[int]bool) {
	for grown := true; grown; {
		grown = false
		for _, l := range all {
			if chosen[l.Index] || !slices.ContainsFunc(all, func(o facts.Interface) bool { return chosen[o.Index] && bound(l, o) }) {
				continue
			}
			chosen[l.Index], grown = true, true
		}
	}
}

// bound says whether two interfaces can only be in the same namespace.
func bound(a, b facts.Interface) bool {
	return a.Phy != nil && b.Phy != nil && a.Phy.Index == b.Phy.Index ||
		a.Master == b.Index || b.Master == a.Index || a.Lower == b.Index || b.Lower == a.Index
}

// Hosted is who configures what moves, and where it finds its files there.
type Hosted struct {
	Owners []facts.Owner // in the order of starting
	Views  string        // the folder of plan.Views
}

// Surroundings plans what Hosted.Owners find in the namespace: its resolv.conf at first, and the
// folder of plan.Views. It comes once, before all that moves there, as it goes after it.
func Surroundings(resolv plan.Resolv, views string, p Place) []plan.Action {
	noResolv := resolv
	noResolv.Delete = true
	// Without an owner too: the guard, which may find one later, is confined itself.
	view := plan.Views{NS: p.Birth, Dir: views}
	noView := view
	noView.Delete = true
	return []plan.Action{
		{Do: resolv, Undo: []plan.Step{noResolv}, Why: "who looks up the endpoint"},
		{Do: view, Undo: []plan.Step{noView}, Why: "/sys and /etc as seen in the namespace"},
	}
}

// Physical plans the way of interfaces, with their Settings, into the namespace
// that the tunnel is born in. Who configures them lets go first, then all go down
// at once, each moves, and everything is up again there: carried over where nobody
// configures it.
func Physical(list []facts.Interface, h Hosted, p Place) []plan.Action {
	var actions []plan.Action
	add := func(ns plan.NS, why string, do plan.Step, undo ...plan.Step) {
		actions = append(actions, plan.Action{NS: ns, Do: do, Undo: undo, Why: why})
	}
	// Systemd may take its time over a drop-in: units are given theirs while they still
	// run, and lose them when they do not run any more.
	free := func(o facts.Owner) plan.Step {
		return plan.Confine{Unit: o.Unit, NS: p.Birth, Views: h.Views, Delete: true}
	}
	for _, o := range h.Owners {
		if o.Client == nil {
			add("", "where it will run", plan.Confine{Unit: o.Unit, NS: p.Birth, Views: h.Views}, free(o))
		}
	}
	for _, o := range slices.Backward(h.Owners) {
		why := "it configures " + strings.Join(o.Links, " and ") + ", and lets go"
		if o.Client != nil {
			add(p.Target, why, plan.Client{Client: *o.Client}, plan.Client{Client: *o.Client, Start: true, Links: o.Links})
			continue
		}
		add("", why, plan.Service{Unit: o.Unit}, free(o), plan.Service{Unit: o.Unit, Start: true, Links: o.Links})
	}
	managed := func(l facts.Interface) bool {
		return slices.ContainsFunc(h.Owners, func(o facts.Owner) bool { return o.Addresses && slices.Contains(o.Links, l.Name) })
	}
	var hold plan.Hold
	var back []plan.Step
	for _, l := range list {
		hold.Links = append(hold.Links, l.Name)
		back = append(back, plan.Settle{Link: l, Away: p.Birth, Bare: managed(l)})
	}
	add(p.Target, "nothing leaves by one while others move", hold, back...)
	for i, l := range list {
		if l.Twin {
			twin := plan.Twin{Link: l}
			undo := twin
			undo.Delete = true
			add(p.Birth, "it cannot move, and one like it takes its place", twin, undo)
			continue
		}
		move := plan.Move{From: p.Target, To: p.Birth, Links: []facts.Interface{l}}
		if l.Phy != nil {
			same := func(o facts.Interface) bool { return o.Phy != nil && o.Phy.Index == l.Phy.Index }
			if slices.ContainsFunc(list[:i], same) {
				continue
			}
			move.Phy, move.Links = l.Phy, nil
			for _, o := range list {
				if same(o) {
					move.Links = append(move.Links, o)
				}
			}
		}
		home := move
		home.From, home.To, home.Home = move.To, move.From, true
		add(p.Target, "what leads to the Internet is for the tunnel alone", move, home)
	}
	for _, l := range list {
		add(p.Birth, "as it was at home", plan.Settle{Link: l, Bare: managed(l)})
	}
	for _, o := range h.Owners {
		why := "it configures " + strings.Join(o.Links, " and ")
		if o.Client != nil {
			add(p.Birth, why, plan.Client{Client: *o.Client, Views: h.Views, Start: true, Links: o.Links}, plan.Client{Client: *o.Client, Views: h.Views})
			continue
		}
		add("", why, plan.Service{Unit: o.Unit, Start: true, Links: o.Links}, plan.Service{Unit: o.Unit})
	}
	return actions
}
