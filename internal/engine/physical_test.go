package engine_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/engine"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
	"wg-quickns/strategies"
)

// hardware is a small model of the machine's interfaces and of who configures them.
type hardware struct {
	at     map[string]plan.NS // of each interface
	set    map[string]string  // how each is configured, "": not at all
	alias  map[string]string
	twins  map[string]bool    // that are there
	runs   map[string]plan.NS // the units and clients that run
	inside map[string]bool    // the units that are confined
	views  bool
	resolv bool
}

const physical = plan.NS("/run/netns/physical")

func newHardware() *hardware {
	h := &hardware{at: map[string]plan.NS{}, set: map[string]string{}, alias: map[string]string{}, twins: map[string]bool{}, inside: map[string]bool{},
		runs: map[string]plan.NS{"NetworkManager.service": "", "dhclient": ""}}
	for _, l := range interfaces() {
		h.at[l.Name], h.set[l.Name] = "", "whole"
	}
	return h
}

// interfaces are Ethernet, Wi-Fi with two interfaces, and a bond with a port.
func interfaces() []facts.Interface {
	phy := &facts.Phy{Name: "phy0"}
	return []facts.Interface{
		{Name: "eth0", Index: 2}, {Name: "wlan0", Index: 3, Phy: phy}, {Name: "p2p0", Index: 4, Phy: phy},
		{Name: "eth1", Index: 5, Master: 6}, {Name: "bond0", Index: 6, Kind: "bond", Twin: true},
	}
}

func hosted() strategies.Hosted {
	return strategies.Hosted{
		Owners: []facts.Owner{
			{Unit: "NetworkManager.service", Links: []string{"wlan0"}, Addresses: true},
			{Client: &facts.Client{Args: []string{"dhclient"}}, Links: []string{"eth0"}, Addresses: true},
		},
		Views: "/run/views",
	}
}

func (h *hardware) clone() *hardware {
	c := *h
	c.at, c.set, c.alias, c.twins = maps.Clone(h.at), maps.Clone(h.set), maps.Clone(h.alias), maps.Clone(h.twins)
	c.runs, c.inside = maps.Clone(h.runs), maps.Clone(h.inside)
	return &c
}

// lines are all that there is.
func (h *hardware) lines() []string {
	list := []string{fmt.Sprintf("views %v, resolv %v, confined %v, twins %v, alias %v", h.views, h.resolv, h.inside, h.twins, h.alias)}
	for name, ns := range h.at {
		list = append(list, fmt.Sprintf("interface %s in %q, %s", name, ns, h.set[name]))
	}
	for name, ns := range h.runs {
		list = append(list, fmt.Sprintf("%s runs in %q", name, ns))
	}
	return list
}

func (h *hardware) exists(ns plan.NS, s plan.Step) bool {
	switch s := s.(type) {
	case plan.Move:
		return slices.ContainsFunc(s.Links, func(l facts.Interface) bool {
			if s.Home {
				return h.at[l.Name] != s.To || h.alias[l.Name] != ""
			}
			return h.at[l.Name] == s.To
		})
	case plan.Twin:
		return h.twins[s.Link.Name]
	case plan.Views:
		return h.views
	case plan.Confine:
		return h.inside[s.Unit]
	case plan.Resolv:
		return h.resolv
	case plan.Service:
		_, runs := h.runs[s.Unit]
		return runs
	case plan.Client:
		at, runs := h.runs[s.Args[0]]
		return runs && at == ns
	}
	return true // as the kernel says of what sets rather than makes
}

func (h *hardware) do(ns plan.NS, s plan.Step) error {
	switch s := s.(type) {
	case plan.Hold:
		for _, name := range s.Links {
			h.set[name] = ""
		}
	case plan.Move:
		for _, l := range s.Links {
			if h.at[l.Name] != s.To {
				h.at[l.Name], h.set[l.Name] = s.To, ""
			}
			delete(h.alias, l.Name)
			if !s.Home {
				h.alias[l.Name] = plan.AwayAlias(l)
			}
		}
	case plan.Twin:
		if !s.Delete && h.twins[s.Link.Name] {
			return unix.EEXIST
		}
		delete(h.twins, s.Link.Name)
		if !s.Delete {
			h.twins[s.Link.Name] = true
		}
	case plan.Settle:
		if h.at[s.Link.Name] != ns && !s.Link.Twin {
			return unix.ENODEV
		}
		if s.Link.Master != 0 && ns == physical && !h.twins["bond0"] {
			return fmt.Errorf("no bond: %w", unix.ENODEV)
		}
		// Who is not told to start again has nothing to add.
		h.set[s.Link.Name] = "whole"
	case plan.Views:
		h.views = !s.Delete
	case plan.Confine:
		delete(h.inside, s.Unit)
		if !s.Delete {
			h.inside[s.Unit] = true
		}
	case plan.Service:
		_, runs := h.runs[s.Unit]
		switch {
		case !s.Start:
			delete(h.runs, s.Unit)
		case runs: // it stays where it is
		case h.inside[s.Unit]:
			h.runs[s.Unit] = physical
		default:
			h.runs[s.Unit] = ""
		}
	case plan.Client:
		name := s.Args[0]
		if at, runs := h.runs[name]; runs && at == ns {
			delete(h.runs, name)
		}
		if s.Start {
			if h.at["eth0"] != ns {
				return fmt.Errorf("no eth0: %w", unix.ENODEV)
			}
			h.runs[name] = ns
		}
	case plan.Resolv:
		h.resolv = !s.Delete
	default:
		panic(fmt.Sprintf("the hardware has no %T", s))
	}
	return nil
}

// newPhysicalLab is a lab whose tunnel is that of strategy physical-netns.
func newPhysicalLab(t testing.TB) *lab {
	l := newLab(t)
	l.stage = func(stages []engine.Stage) []engine.Stage {
		move := engine.Stage{Name: "physical", Plan: func(context.Context) ([]plan.Action, error) {
			place := strategies.Place{Birth: physical, Bare: true}
			around := strategies.Surroundings(plan.Resolv{Path: "/etc/netns/physical/resolv.conf", Shared: true}, hosted().Views, place)
			return append(around, strategies.Physical(interfaces(), hosted(), place)...), nil
		}}
		return append(slices.Insert(slices.Clone(stages[:3]), 1, move), stages[len(stages)-1])
	}
	return l
}

// eachLab runs a test for each strategy that has a model.
func eachLab(t *testing.T, test func(t *testing.T, newLab func(testing.TB) *lab)) {
	for name, newLab := range map[string]func(testing.TB) *lab{"auto": newLab, "physical": newPhysicalLab} {
		t.Run(name, func(t *testing.T) { test(t, newLab) })
	}
}

// TestStaysAway: what configures an interface that cannot come home is not started
// there before the next down, which brings all home.
func TestStaysAway(t *testing.T) {
	l := newPhysicalLab(t)
	l.mustUp()
	n := -1
	l.with(nil).doer.before = func(i int, s plan.Step) {
		if m, ok := s.(plan.Move); ok && m.Home && m.Links[0].Name == "eth0" && n < 0 {
			n = i + 1 // behind the question
			l.doer.faults = map[int]fault{n: fails}
		}
	}
	if err, _ := l.down(t.Context()); err == nil {
		t.Fatal("no error")
	}
	l.doer.before = nil
	if at, runs := l.world.hardware.runs["dhclient"]; runs {
		t.Errorf("it runs in %q", at)
	}
	if at, runs := l.world.hardware.runs["NetworkManager.service"]; !runs || at != "" {
		t.Errorf("another's owner does not run: %v", l.world.hardware.runs)
	}
	l.mustDown()
	l.isBefore("the next down")
}
