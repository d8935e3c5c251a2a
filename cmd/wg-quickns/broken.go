package main

import (
	"context"
	"net/netip"
	"slices"

	"wg-quickns/confparse"
	"wg-quickns/internal/engine"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/journal"
	"wg-quickns/internal/kernel"
	"wg-quickns/internal/plan"
	"wg-quickns/strategies"
)

// broken compares a tunnel that is up with its record: what is not as it was made,
// and the repair. Where peers are about to move to is an endpoint too.
func (s *session) broken(ctx context.Context, moves ...engine.Answer) (strategies.Repair, []journal.Entry, *facts.Facts, error) {
	head, _ := s.log.Header()
	cfg := &confparse.Config{RoutingStrategy: head.Strategy, Table: head.Vars["TABLE"]} // whatever the file says by now
	f, err := s.kernel.Gather(ctx, s.local(s.place.Target), s.name, kernel.Asked{Ways: true})
	if err != nil {
		return strategies.Repair{}, nil, nil, err
	}
	for _, m := range moves {
		f.Device.Peers = append(f.Device.Peers, facts.Peer{Endpoint: m.To})
	}
	entries, err := s.log.Standing()
	if err != nil {
		return strategies.Repair{}, nil, nil, err
	}
	others, err := s.others()
	if err != nil {
		return strategies.Repair{}, nil, nil, err
	}
	var hosts []netip.Prefix
	for _, o := range others {
		if v, ok := o.(plan.Via); ok && v.Delete {
			hosts = append(hosts, v.Route.Dst)
		}
	}
	return strategies.Guard(cfg, f, s.place.Place, standing(entries), s.log.Known(), hosts), entries, f, nil
}

// again are the entries of the journal that a repair does again, trimmed.
func again(rep strategies.Repair, entries []journal.Entry) []journal.Entry {
	list := make([]journal.Entry, len(rep.Again))
	for i, a := range rep.Again {
		list[i] = entries[slices.IndexFunc(entries, func(e journal.Entry) bool { return e.ID == a.ID })]
		list[i].Do = a.Do
	}
	return list
}

// standing are entries of the journal as the strategies take them.
func standing(entries []journal.Entry) []strategies.Standing {
	list := make([]strategies.Standing, len(entries))
	for i, e := range entries {
		list[i] = strategies.Standing{ID: e.ID, Action: plan.Action{NS: e.NS, Do: e.Do, Undo: e.Undo}}
	}
	return list
}

// shut says whether a step is a kill switch.
func shut(s plan.Step) bool { return s.Kind() == plan.KindKillSwitch }

// hasKillSwitch says whether a kill switch stands.
func hasKillSwitch(entries []journal.Entry) bool {
	return slices.ContainsFunc(entries, func(e journal.Entry) bool { return shut(e.Do) })
}
