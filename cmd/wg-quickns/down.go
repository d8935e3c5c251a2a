package main

import (
	"context"

	"wg-quickns/confparse"
	"wg-quickns/internal/dns"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/journal"
	"wg-quickns/internal/kernel"
	"wg-quickns/internal/plan"
	"wg-quickns/strategies"
	"wg-quickns/systemd"
)

// down undoes what up did, from the record of up; an interface without a record
// is taken down as wg-quick would have made it.
func (a app) down(ctx context.Context, arg string) error {
	var configErr error
	s, err := a.hold(arg, func() (*session, error) {
		var t target
		if t, configErr = a.parseOwn(arg); t.name == "" {
			return nil, configErr
		}
		if err := outside("down", t.name); err != nil {
			return nil, err
		}
		return a.beginOwn(ctx, t)
	})
	if err != nil {
		return err
	}
	defer s.end()

	if configErr != nil && s.log.State() != journal.Empty {
		s.say("%v; its record of `up' is used instead", configErr)
	}
	var link facts.Link
	found := false
	if !s.gone(s.place.Target) {
		if link, found, err = s.kernel.Link(s.place.Target, s.name); err != nil {
			return err
		}
	}
	if found && s.log.State() != journal.Empty && !s.recorded(link.Index) {
		s.say("the record of `%s' is not of this interface; undoing what is left of it", s.name)
		if err := s.engine.Down(ctx); err != nil {
			return err
		}
	}
	if s.log.State() == journal.Empty {
		if configErr != nil {
			return configErr
		}
		is := false
		if found {
			if is, err = s.isWireGuard(); err != nil {
				return err
			}
		}
		switch {
		case is:
		case systemd.Unit() == "wg-quickns@"+s.name+".service": // somebody has taken it down under its unit
			s.say("`%s' is down already", s.name)
			return nil
		default:
			return s.notWireGuard()
		}
		if err := s.adopt(ctx); err != nil {
			return err
		}
	}
	switch {
	case s.log.State() != journal.Complete:
	case !found:
		name, err := s.renamed()
		if err != nil {
			return err
		}
		if name == "" {
			s.say("`%s' is gone already; undoing what is left of it", s.name)
		} else {
			s.say("`%s' was renamed `%s', which is deleted now", s.name, name)
		}
	default:
		if err := s.beforeDown(ctx); err != nil {
			return err
		}
	}
	return s.engine.Down(ctx)
}

// beforeDown does what needs the interface: PreDown, saving and PhysicalDown.
func (s *session) beforeDown(ctx context.Context) error {
	if err := s.run(ctx, s.place.Hooks, s.downHooks("PreDown")); err != nil {
		return err
	}
	head, _ := s.log.Header()
	switch {
	case s.cfg != nil && s.cfg.SaveConfig:
		if err := s.save(ctx); err != nil {
			return err
		}
	case s.cfg == nil && head.SaveConfig:
		s.say("`%s' is gone or cannot be read: the state of `%s' is not saved", s.path, s.name)
	}
	return s.run(ctx, s.place.Birth, s.downHooks("PhysicalDown"))
}

// recorded says whether the journal is of the interface with that index.
func (s *session) recorded(index int) bool {
	for _, e := range s.log.Pending() {
		for _, undo := range e.Undo {
			if l, ok := undo.(plan.Link); ok {
				return l.Index == index || l.Index == 0
			}
		}
	}
	return false
}

// renamed is the name that the interface of the journal has by now, "" if it is gone.
func (s *session) renamed() (string, error) {
	if s.gone(s.place.Target) || s.recorded(0) {
		return "", nil
	}
	links, err := s.kernel.Links(s.place.Target)
	for _, l := range links {
		if s.recorded(l.Index) && (l.Type == "wireguard" || l.Type == "tun") {
			return l.Name, err
		}
	}
	return "", err
}

// adopt writes a journal for an interface that has none, of what wg-quick makes.
func (s *session) adopt(ctx context.Context) error {
	f, err := s.kernel.Gather(ctx, s.place.Target, s.name, kernel.Asked{})
	if err != nil {
		return err
	}
	head, err := s.header()
	if err != nil {
		return err
	}
	var prefix string
	cfg := *s.cfg
	switch {
	case len(cfg.DNS) == 0 || s.local(s.place.Target) != "":
	case dns.Resolved(ctx):
		cfg.DNS = nil // what systemd-resolved has of the interface goes with that
	default:
		if prefix, err = dns.Prefix(); err != nil {
			return err
		}
	}
	if err := s.log.Begin(head); err != nil {
		return err
	}
	for _, action := range strategies.Adopt(&cfg, f, prefix, s.place.Place) {
		id, err := s.log.Intend(action)
		if err != nil {
			return err
		}
		if err := s.log.Done(id, plan.Outcome{}); err != nil {
			return err
		}
	}
	return s.log.Up()
}

// parseOwn reads wg-quick's own part of the config. The target has a name even
// where the file is gone or does not parse.
func (a app) parseOwn(arg string) (target, error) {
	t, err := a.open(arg)
	if err != nil {
		return t, err
	}
	t.cfg, err = confparse.ParseLines(t.path, t.data)
	return t, err
}
