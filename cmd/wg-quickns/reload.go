package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"wg-quickns/internal/engine"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/journal"
	"wg-quickns/internal/kernel"
	"wg-quickns/internal/netns"
	"wg-quickns/internal/plan"
	"wg-quickns/strategies"
)

// reload makes a tunnel that is up what its file says by now. Only the difference
// is done; sessions of peers that stay are kept.
func (a app) reload(ctx context.Context, arg string) error {
	s, p, err := a.holdWhole(ctx, "reload", arg)
	if err != nil {
		return err
	}
	defer s.end()
	if s.log.State() != journal.Complete {
		return fmt.Errorf("`%s' is not up by a record of %s: there is nothing to reload", s.name, s.program)
	}
	if err := s.inPlace(p); err != nil {
		return err
	}
	if err := s.resolve(ctx); err != nil {
		return err
	}
	running, err := s.kernel.ReadDevice(ctx, s.local(s.place.Target), s.name)
	if err != nil {
		return err
	}
	change, err := s.change(ctx)
	if err != nil {
		return err
	}
	device, remove := strategies.Sync(running, &s.cfg.Device)
	if device.PrivateKey == nil && device.ListenPort == nil && device.FwMark == nil && len(device.Peers)+len(remove) == 0 {
		if change.Empty() {
			s.say("`%s' is as its file says", s.name)
			return s.note()
		}
	} else {
		wg := strategies.Swap{Do: []plan.Action{{NS: s.place.Target, Do: plan.WG{Link: s.name, Device: &device, Sync: true, Remove: remove}}}}
		// Behind what is new, a route to an endpoint among it, and before all else.
		change.Swaps = append([]strategies.Swap{wg}, change.Swaps...)
	}
	work := engine.Change{First: change.First, New: change.New, Retire: change.Retire, Forget: change.Forget}
	for _, sw := range change.Swaps {
		work.Swaps = append(work.Swaps, engine.Swap(sw))
	}
	if err := s.engine.Change(ctx, work); err != nil {
		return err
	}
	if err := s.note(); err != nil {
		return err
	}
	// With an address the kernel takes others of its subnet away, and with the last
	// one all routes (net/ipv4/devinet.c, __inet_del_ifa).
	rep, entries, _, err := s.broken(ctx)
	if err != nil {
		return err
	}
	if s.place.Bare {
		var all []facts.Interface
		if all, _, err = s.atHome(ctx); err == nil {
			var back []strategies.Standing
			back, err = s.returned(ctx, all, entries)
			rep.Again = append(rep.Again, back...)
		}
	}
	return errors.Join(err, s.engine.Repair(ctx, engine.Repair{Again: again(rep, entries)}))
}

// note puts what the file says by now into the record: its table and names for the
// guard, its hooks for a `down` without the file.
func (s *session) note() error {
	head, _ := s.log.Header()
	now, err := s.header()
	if err != nil {
		return err
	}
	now.Arrays["ARGS"] = head.Arrays["ARGS"]
	head.ConfigFile, head.SaveConfig, head.Vars, head.Arrays = now.ConfigFile, now.SaveConfig, now.Vars, now.Arrays
	head.Names = now.Names
	head.PreDown, head.PostDown, head.PhysicalDown = now.PreDown, now.PostDown, now.PhysicalDown
	return s.log.Config(head)
}

// fixed is the refusal of a change that only down and up can make.
func (s *session) fixed(what string) error {
	return fmt.Errorf("%s: %s cannot be changed while `%s' is up (hint: down, then up)", s.path, what, s.name)
}

// inPlace refuses what only down and up can change.
func (s *session) inPlace(p place) error {
	head, _ := s.log.Header()
	same := func(a, b plan.NS) bool {
		x, errX := netns.Identify(string(a))
		y, errY := netns.Identify(string(b))
		return errX == nil && errY == nil && x == y
	}
	alike := func(a, b []string) bool { return (a == nil) == (b == nil) && slices.Equal(a, b) }
	switch {
	case s.gone(s.place.Target):
		return errors.New("its network namespace is gone (hint: down)")
	case !same(p.Target, s.place.Target):
		return s.fixed("Namespace")
	case !same(p.Birth, s.place.Birth):
		return s.fixed("BirthNamespace")
	case s.cfg.Strategy() != head.Strategy:
		return s.fixed("RoutingStrategy")
	case !same(p.Hooks, s.place.Hooks):
		return s.fixed("HookNamespace")
	case s.cfg.ForeignNamespaces && slices.ContainsFunc(s.log.Pending(), func(e journal.Entry) bool { return e.Do.Kind() == plan.KindNetns }):
		return s.fixed("ManageNamespace")
	case !alike(s.cfg.PhysicalInterfaces, head.PhysicalInterfaces):
		return s.fixed("PhysicalInterfaces")
	case !alike(s.cfg.PhysicalServices, head.PhysicalServices):
		return s.fixed("PhysicalServices")
	}
	return nil
}

// change is what the difference between the file and the record asks for.
func (s *session) change(ctx context.Context) (strategies.Change, error) {
	var none strategies.Change
	f, err := s.kernel.Gather(ctx, s.local(s.place.Target), s.name, kernel.Asked{Ways: true})
	if err != nil {
		return none, err
	}
	entries, err := s.log.Standing()
	if err != nil {
		return none, err
	}
	if s.cfg.KillSwitch != hasKillSwitch(entries) {
		return none, s.fixed("KillSwitch")
	}
	up := standing(entries)
	before, mark := strategies.Before(f, up)
	s.forecast, s.device, s.index = before, &before.Device, f.Device.Index
	var wanted []plan.Action
	for _, stage := range s.stages(journal.Begin{}) {
		var actions []plan.Action
		switch stage.Name {
		case "namespaces", "physical", "PhysicalUp", "PostUp":
			continue
		case "device":
			actions = strategies.Create(s.name, s.place.Place)
		default:
			if actions, err = stage.Plan(ctx); err != nil {
				return none, err
			}
		}
		strategies.Forecast(before, actions)
		if stage.Name == "configuration" && before.Device.FwMark == 0 {
			before.Device.FwMark = mark // as `up` chose it
		}
		wanted = append(wanted, actions...)
	}
	return strategies.Reload(wanted, up), nil
}
