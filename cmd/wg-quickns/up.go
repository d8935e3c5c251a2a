package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"wg-quickns/confparse"
	"wg-quickns/internal/dns"
	"wg-quickns/internal/engine"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/journal"
	"wg-quickns/internal/kernel"
	"wg-quickns/internal/plan"
	"wg-quickns/strategies"
)

// up makes the tunnel that the config describes, or nothing at all.
func (a app) up(ctx context.Context, arg string) (err error) {
	s, p, err := a.holdWhole(ctx, "up", arg)
	if err != nil {
		return err
	}
	defer s.end()
	s.engine.Keep = s.keeps(p)
	cleared, err := s.clear(ctx, p)
	if err != nil {
		return err
	}
	staged := false
	defer func() {
		if err != nil && !staged && s.log.State() != journal.Empty { // the stages roll back themselves
			s.engine.Keep = nil
			err = errors.Join(err, s.engine.Recover(context.WithoutCancel(ctx)))
		}
	}()
	// From here until ours are made nobody else makes or deletes a namespace.
	s.engine.Held, err = stateRoot.Global(ctx)
	if err != nil {
		return err
	}
	defer s.engine.Held.Close()
	if cleared || p.changed() {
		if err := s.kernel.Close(); err != nil { // what it has open is of before
			return err
		}
		if p, err = findPlace(ctx, s.path, s.cfg); err != nil {
			return err
		}
	}
	s.place = p
	if s.cfg.KillSwitch {
		ns := p.Target
		if p.missing(p.Target) { // one kernel has them all
			ns = ""
		}
		if err := s.kernel.CheckKillSwitch(ctx, s.local(ns)); err != nil {
			return fmt.Errorf("KillSwitch=true: this kernel's nf_tables cannot do it, nothing was changed: %w", err)
		}
	}
	if s.isPhysical() { // what cannot move stops it before anything is done
		list, err := s.movable(ctx, p)
		if err != nil {
			return err
		}
		if _, err := s.owners(ctx, p.Target, list); err != nil {
			return err
		}
		for _, name := range s.cfg.PhysicalInterfaces {
			if !slices.ContainsFunc(list, func(l facts.Interface) bool { return l.Name == name }) {
				s.say("there is no interface `%s': the guard moves it when it comes", name)
			}
		}
	}
	if len(s.cfg.DNS) > 0 && p.resolvConf() { // what DNS= is refused for is known before anything is done
		if _, err := s.resolvStep(ctx); err != nil {
			return err
		}
	}
	head, err := s.header()
	if err != nil {
		return err
	}
	if err := s.log.Begin(head, s.log.Pending()...); err != nil {
		return err
	}
	staged = true
	if err := s.engine.Up(ctx, s.stages(head)...); err != nil || s.cfg.KillSwitch {
		return err
	}
	return s.unseal(context.WithoutCancel(ctx)) // it is up
}

// keeps says what an earlier run left that stays while it is cleaned up after: a kill
// switch where the new tunnel has one too, so that nothing leaves in between. Names of
// endpoints could not be looked up then; and a namespace that goes takes its own along.
func (s *session) keeps(p place) func(plan.Step) bool {
	if !s.cfg.KillSwitch || s.place.Target != p.Target {
		return nil
	}
	for _, peer := range s.cfg.Device.Peers {
		if peer.Endpoint != nil && !peer.Endpoint.Addr.IsValid() {
			return nil
		}
	}
	for _, e := range s.log.Pending() {
		if made, ok := e.Do.(plan.Netns); ok && !made.Shared {
			return nil
		}
	}
	return shut
}

// seal lets nothing leave while interfaces that an earlier run left away come home, until they are away again:
// it is only `down` that gives the machine its cleartext back. The kill switch that does it is journaled, so that
// `down` takes it away too.
func (s *session) seal(ctx context.Context, p place) error {
	pending := s.log.Pending()
	moved := func(e journal.Entry) bool { return e.Do.Kind() == plan.KindMove }
	if !s.isPhysical() || s.place.Target != p.Target || !slices.ContainsFunc(pending, moved) {
		return nil
	}
	if err := s.kernel.CheckKillSwitch(ctx, s.local(p.Target)); err != nil {
		s.warn(fmt.Sprintf("until `%s' is up the machine's own way out is open: %v", s.name, err))
		return nil
	}
	s.engine.Keep = shut
	if hasKillSwitch(pending) {
		return nil
	}
	return s.engine.Repair(ctx, engine.Repair{New: []plan.Action{{
		NS: p.Target, Do: plan.KillSwitch{Link: s.name}, Undo: []plan.Step{plan.KillSwitch{Link: s.name, Delete: true}},
		Why: "nothing leaves meanwhile",
	}}})
}

// unseal takes away a kill switch that the config does not have, once there is a tunnel.
func (s *session) unseal(ctx context.Context) error {
	var closed []int
	for _, e := range s.log.Pending() {
		if shut(e.Do) {
			closed = append(closed, e.ID)
		}
	}
	if len(closed) == 0 {
		return nil
	}
	s.engine.Held = nil // Up has let go of it
	return s.engine.Repair(ctx, engine.Repair{Retire: closed})
}

// parse reads a whole config, as up needs it.
func (a app) parse(arg string) (target, error) {
	t, err := a.open(arg)
	if err != nil {
		return t, err
	}
	if t.cfg, err = confparse.Parse(t.path, t.data); err != nil {
		return t, err
	}
	names, err := kernel.TableNames()
	if err != nil {
		return t, err
	}
	return t, t.cfg.CheckTable(names)
}

// clear finishes what an earlier run left, and says whether it did; it refuses
// where the interface is there.
func (s *session) clear(ctx context.Context, p place) (cleared bool, err error) {
	found, err := s.present()
	if err != nil {
		return false, err
	}
	if state := s.log.State(); state != journal.Empty && !(found && state == journal.Complete) {
		s.say("cleaning up what an earlier run left of `%s'", s.name)
		if err := s.seal(ctx, p); err != nil {
			return false, err
		}
		if err := s.engine.Recover(ctx); err != nil {
			return false, err
		}
		cleared = true
		if found, err = s.present(); err != nil {
			return false, err
		}
	}
	if found {
		return false, message(fmt.Sprintf("`%s' already exists", s.name))
	}
	return cleared, nil
}

// present says whether the interface is in its place.
func (s *session) present() (bool, error) {
	if s.gone(s.place.Target) {
		return false, nil
	}
	_, found, err := s.kernel.Link(s.place.Target, s.name)
	return found, err
}

// stages is up, in wg-quick's order. Facts are gathered anew where a hook or the
// kernel may have changed them.
func (s *session) stages(head journal.Begin) []engine.Stage {
	hooks := func(phase string, commands []string) []plan.Action {
		return strategies.Hooks(s.hookSteps(phase, commands, head.Vars, head.Arrays), s.place.Place)
	}
	return []engine.Stage{
		{Name: "namespaces", Global: true, Plan: func(context.Context) ([]plan.Action, error) {
			others, err := s.madeByOthers()
			return strategies.Namespaces(s.place.Place, others), err
		}},
		{Name: "device", Plan: func(context.Context) ([]plan.Action, error) {
			return append(strategies.Create(s.name, s.place.Place), hooks("PreUp", s.cfg.PreUp)...), nil
		}},
		{Name: "physical", Global: s.isPhysical(), Plan: s.physical},
		{Name: "PhysicalUp", Plan: func(context.Context) ([]plan.Action, error) {
			there := s.place.Place
			there.Hooks = there.Birth
			return strategies.Hooks(s.hookSteps("PhysicalUp", s.cfg.PhysicalUp, head.Vars, head.Arrays), there), nil
		}},
		{Name: "configuration", Plan: func(ctx context.Context) ([]plan.Action, error) {
			for _, w := range s.cfg.Warnings {
				s.warn(fmt.Sprint(w))
			}
			if err := s.resolve(ctx); err != nil {
				return nil, err
			}
			return strategies.Configure(s.name, &s.cfg.Device, s.place.Place), nil
		}},
		{Name: "kill switch", Global: s.cfg.KillSwitch, Plan: s.killSwitch},
		{Name: "addresses", Plan: func(ctx context.Context) ([]plan.Action, error) {
			f, err := s.gatherLink(ctx)
			if err != nil {
				return nil, err
			}
			actions := strategies.Address(s.cfg, f, s.place.Place)
			if len(s.cfg.DNS) == 0 {
				return actions, nil
			}
			resolv, err := s.resolvStep(ctx)
			return append(actions, strategies.DNS(s.cfg, resolv)...), err
		}},
		{Name: "routes", Global: true, Plan: func(ctx context.Context) ([]plan.Action, error) {
			if s.cfg.Table == "off" {
				return nil, nil
			}
			f, err := s.gather(ctx)
			if err != nil {
				return nil, err
			}
			for _, w := range strategies.Warnings(s.cfg, f, s.place.Place) {
				s.warn(w)
			}
			if known := strategies.Known(f); len(known) > 0 && s.forecast == nil {
				if err := s.log.Know(known); err != nil {
					return nil, err
				}
			}
			return strategies.Routes(s.cfg, f, s.place.Place)
		}},
		{Name: "PostUp", Plan: func(context.Context) ([]plan.Action, error) {
			return hooks("PostUp", s.cfg.PostUp), nil
		}},
	}
}

// killSwitch plans the kill switch, if the config has one. Names are resolved by then.
func (s *session) killSwitch(ctx context.Context) ([]plan.Action, error) {
	if !s.cfg.KillSwitch {
		return nil, nil
	}
	f, err := s.gather(ctx)
	if err != nil {
		return nil, err
	}
	s.device = &f.Device
	actions, err := strategies.KillSwitch(s.cfg, f, s.place.Place)
	for _, a := range actions {
		if m, ok := a.Do.(plan.FwMark); ok {
			s.device.FwMark = m.Mark // which is not read again
		}
	}
	return actions, err
}

// resolve finds the addresses and ports of the config's names.
func (s *session) resolve(ctx context.Context) error {
	port := func(service string) (int, error) { return net.DefaultResolver.LookupPort(ctx, "udp", service) }
	if err := s.cfg.ResolveServices(port); err != nil {
		return err
	}
	where := s.place.Birth
	if s.forecast != nil {
		where = s.forecastBirth()
	}
	err := dns.ResolveIn(ctx, string(s.local(where)), &s.cfg.Device, dns.Options{Retries: s.retries, Log: s.warn})
	if err != nil || s.forecast != nil && s.place.spaces[where] == "" { // it is yet to be made
		return err
	}
	return s.kernel.Zones(s.local(where), &s.cfg.Device, s.place.Elsewhere())
}

// gatherLink reads the facts that addresses and MTU follow from.
func (s *session) gatherLink(ctx context.Context) (*facts.Facts, error) {
	pathMTU := s.cfg.MTU == 0
	if s.forecast != nil {
		return s.forecast, s.forecastMTU(ctx)
	}
	f, err := s.kernel.GatherLink(ctx, s.place.Target, s.name, kernel.Asked{
		PathMTU: pathMTU && !s.place.Elsewhere(), Device: s.device,
	})
	if err != nil {
		return nil, err
	}
	s.device = &f.Device // nothing configures it any more
	if pathMTU && s.place.Elsewhere() {
		// The encrypted packets' way begins where the socket is.
		f.DefaultMTU = 0
		f.PathMTU, err = s.kernel.PathMTU(ctx, s.place.Birth, endpoints(f))
	}
	return f, err
}

// endpoints lists the addresses of the device's peers.
func endpoints(f *facts.Facts) []netip.Addr {
	var list []netip.Addr
	for _, p := range f.Device.Peers {
		if p.Endpoint.IsValid() {
			list = append(list, p.Endpoint.Addr())
		}
	}
	return list
}

// gather reads the facts, and what other tunnels' journals will put back.
func (s *session) gather(ctx context.Context) (*facts.Facts, error) {
	if s.forecast != nil {
		return s.forecast, nil
	}
	f, err := s.kernel.Gather(ctx, s.place.Target, s.name, kernel.Asked{Ways: strategies.NeedsWays(s.cfg), Device: s.device})
	if err != nil {
		return nil, err
	}
	steps, err := s.others()
	if err != nil {
		return nil, err
	}
	for _, step := range steps {
		if c, ok := step.(plan.Sysctl); ok && c.Name == strategies.SrcValidMark {
			f.SrcValidMarkHome = c.Value
		}
		if v, ok := step.(plan.Via); ok && v.Restore {
			f.Displaced = append(f.Displaced, v.Route)
		}
		if v, ok := step.(plan.Via); ok && v.Delete {
			if f.Kept == nil {
				f.Kept = make(map[netip.Prefix]bool)
			}
			f.Kept[v.Route.Dst] = true
		}
	}
	return f, nil
}
