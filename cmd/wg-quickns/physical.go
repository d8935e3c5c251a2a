package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"wg-quickns/confparse"
	"wg-quickns/internal/dns"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/journal"
	"wg-quickns/internal/plan"
	"wg-quickns/strategies"
	"wg-quickns/systemd"
)

// isPhysical says whether the config takes the machine's interfaces away.
func (s *session) isPhysical() bool { return s.cfg.Strategy() == confparse.StrategyPhysical }

// movable finds what `physical-netns` moves. It changes nothing.
func (s *session) movable(ctx context.Context, p place) ([]facts.Interface, error) {
	fail := func(err error) ([]facts.Interface, error) {
		return nil, fmt.Errorf("%s: RoutingStrategy = %s: %w", s.path, s.cfg.Strategy(), err)
	}
	if p.missing(p.Target) {
		return fail(errors.New("the interfaces to move are those of Namespace, which is not there yet"))
	}
	all, err := s.kernel.Interfaces(ctx, s.local(p.Target))
	if err != nil {
		return nil, err
	}
	list, err := strategies.Movable(s.cfg, all)
	if err != nil {
		return fail(err)
	}
	return list, nil
}

// owners finds who configures interfaces of the home namespace, or takes whom the config names.
func (s *session) owners(ctx context.Context, home plan.NS, list []facts.Interface) (owners []facts.Owner, err error) {
	names := make([]string, len(list))
	for i, l := range list {
		names[i] = l.Name
	}
	switch {
	case s.cfg == nil || s.cfg.PhysicalServices == nil:
		all, err := s.kernel.Interfaces(ctx, s.local(home))
		if err != nil {
			return nil, err
		}
		known := make([]string, len(all))
		for i, l := range all {
			known[i] = l.Name
		}
		owners, left, err := systemd.Owners(ctx, string(s.local(home)), list, known)
		for _, w := range left {
			s.warn("Warning: " + w)
		}
		return owners, err
	case len(s.cfg.PhysicalServices) == 0: // `none'
		return nil, nil
	}
	if owners, err = systemd.Units(ctx, s.cfg.PhysicalServices, names); err != nil {
		return nil, fmt.Errorf("%s: PhysicalServices = %s: %w", s.path, confparse.Redact(strings.Join(s.cfg.PhysicalServices, ", ")), err)
	}
	return owners, nil
}

// surroundings plans what whoever configures interfaces finds in the namespace.
func (s *session) surroundings() ([]plan.Action, error) {
	name, _ := s.place.Birth.Name()
	resolv := plan.Resolv{Path: "/etc/netns/" + name + "/resolv.conf", Shared: true}
	var err error
	if resolv.Old, resolv.MadeDirs, err = dns.OwnResolv(resolv.Path); err == nil && resolv.Old == nil {
		resolv.Servers, resolv.Search, err = dns.Upstream()
	}
	return strategies.Surroundings(resolv, viewsOf(s.place.Birth), s.place.Place), err
}

// physical plans the way of the machine's interfaces to where the tunnel's socket
// is, if the config says so.
func (s *session) physical(ctx context.Context) ([]plan.Action, error) {
	if !s.isPhysical() {
		return nil, nil
	}
	list, err := s.movable(ctx, s.place)
	if err != nil {
		return nil, err
	}
	moves, err := s.away(ctx, list)
	if err != nil {
		return nil, err
	}
	around, err := s.surroundings()
	return append(around, moves...), err
}

// away plans the way of interfaces, as they are now.
func (s *session) away(ctx context.Context, list []facts.Interface) ([]plan.Action, error) {
	if err := s.kernel.Settings(ctx, s.local(s.place.Target), list); err != nil {
		return nil, err
	}
	owners, err := s.owners(ctx, s.place.Target, list)
	if err != nil {
		return nil, err
	}
	return strategies.Physical(list, strategies.Hosted{Owners: owners, Views: viewsOf(s.place.Birth)}, s.place.Place), nil
}

// atHome lists the interfaces at home: those that may move, and strategies.Namesakes, which
// must not be a way out either, once udev has done with them.
func (s *session) atHome(ctx context.Context) (all, namesakes []facts.Interface, err error) {
	if all, err = s.kernel.Interfaces(ctx, s.local(s.place.Target)); err != nil || s.gone(s.place.Birth) {
		return all, nil, err
	}
	there, err := s.kernel.Interfaces(ctx, s.local(s.place.Birth))
	if err != nil {
		return nil, nil, err
	}
	all, namesakes = strategies.Namesakes(s.movesWhat(), all, there)
	return all, slices.DeleteFunc(namesakes, func(l facts.Interface) bool { return !s.named(l.Index) }), nil
}

// returned finds what of atHome is to be taken away again, and who has it at home.
func (s *session) returned(ctx context.Context, all []facts.Interface, entries []journal.Entry) ([]strategies.Standing, error) {
	again := strategies.Returned(all, standing(entries), s.named)
	var links []facts.Interface
	for _, a := range again {
		if m, ok := a.Do.(plan.Move); ok {
			links = append(links, m.Links...)
		}
	}
	if len(links) == 0 || s.cfg != nil && s.cfg.PhysicalServices != nil {
		return again, nil
	}
	owners, err := s.owners(ctx, s.place.Target, links)
	// A unit that has no process now, as it fails without its interface, works there all the same.
	owners = slices.DeleteFunc(owners, func(o facts.Owner) bool {
		return slices.ContainsFunc(entries, func(e journal.Entry) bool {
			unit, ok := e.Do.(plan.Service)
			return ok && unit.Start && unit.Unit == o.Unit
		})
	})
	if len(owners) > 0 { // they go along, as a newcomer's
		again = nil
	}
	return again, err
}

// lost names the interfaces that are neither away nor to be taken there again.
func (s *session) lost(ctx context.Context, entries []journal.Entry, again []strategies.Standing) (names []string, err error) {
	for _, e := range entries {
		m, ok := e.Do.(plan.Move)
		if !ok || m.Home || slices.ContainsFunc(again, func(a strategies.Standing) bool { return a.ID == e.ID }) {
			continue
		}
		there := false
		if !s.gone(m.To) {
			if there, err = s.kernel.Exists(ctx, s.local(e.NS), s.place.relocated(m)); err != nil {
				return nil, err
			}
		}
		for _, l := range m.Links {
			if !there && !slices.Contains(names, l.Name) {
				names = append(names, l.Name)
			}
		}
	}
	return names, nil
}

// movesWhat is the part of the config of `up` that says what moves: it stays while the tunnel
// is up, whatever the file says, or when that cannot be read.
func (s *session) movesWhat() *confparse.Config {
	head, _ := s.log.Header()
	return &confparse.Config{PhysicalInterfaces: head.PhysicalInterfaces}
}

// fresh is what of atHome was plugged in since `up` and is to be moved, but for what is Returned.
func (s *session) fresh(all []facts.Interface, again []strategies.Standing) []facts.Interface {
	return slices.DeleteFunc(strategies.Newcomers(s.movesWhat(), all, s.named), func(l facts.Interface) bool {
		return slices.ContainsFunc(again, func(a strategies.Standing) bool {
			m, ok := a.Do.(plan.Move)
			return ok && slices.ContainsFunc(m.Links, func(o facts.Interface) bool { return o.Name == l.Name })
		})
	})
}

// newcomers plans the way of what is fresh. One whose client could not be started again
// stays, an error, and keeps no other from going.
func (s *session) newcomers(ctx context.Context, list []facts.Interface) ([]plan.Action, error) {
	if len(list) == 0 {
		return nil, nil
	}
	moves, err := s.away(ctx, list) // their Surroundings stand
	if err == nil {
		return moves, nil
	}
	stay := make(map[int]bool)
	for _, l := range list {
		_, err := s.owners(ctx, s.place.Target, []facts.Interface{l})
		stay[l.Index] = err != nil
	}
	strategies.Together(list, stay)
	rest := slices.DeleteFunc(slices.Clone(list), func(l facts.Interface) bool { return stay[l.Index] })
	if len(rest) == 0 || len(rest) == len(list) {
		return nil, err
	}
	moves, restErr := s.away(ctx, rest)
	return moves, errors.Join(err, restErr)
}

// named is namedByUdev, and notes where it is not so.
func (s *session) named(index int) bool {
	is := namedByUdev(index)
	s.unnamed = s.unnamed || !is
	return is
}

// namedByUdev says whether udev(7), where it runs, has done with an interface: it may get
// another name before.
func namedByUdev(index int) bool {
	if _, err := os.Stat("/run/udev/control"); err != nil {
		return true
	}
	_, err := os.Stat(fmt.Sprintf("/run/udev/data/n%d", index))
	return err == nil
}
