package systemd

import (
	"context"
	"fmt"
	"net"
	"slices"

	"wg-quickns/internal/plan"
	"wg-quickns/internal/proc"
)

// Doer carries out the steps about who configures interfaces: Views, Confine,
// Service and Client. Each may be done again, also after it was killed.
type Doer struct {
	Warn func(line string) // says what is not as it was, and can never be; may be nil
}

// Exists says of a Service and a Client, to be started or stopped, whether it runs,
// and of the others whether anything of them is there.
func (Doer) Exists(ctx context.Context, ns plan.NS, s plan.Step) (bool, error) {
	switch s := s.(type) {
	case plan.Views:
		return proc.ViewsMounted(s.Dir)
	case plan.Confine:
		return existsConfine(s)
	case plan.Service:
		return existsService(ctx, s)
	case plan.Client:
		return existsClient(ns, s)
	}
	return false, fmt.Errorf("systemd cannot look for a %s", s.Kind())
}

// Do does a step. To stop what does not run succeeds, as does to start what runs, and to
// start in vain what is for interfaces that are gone.
func (d Doer) Do(ctx context.Context, ns plan.NS, s plan.Step) (plan.Outcome, error) {
	switch s := s.(type) {
	case plan.Views:
		if s.Delete {
			return plan.Outcome{}, proc.UnmountViews(string(s.NS), s.Dir)
		}
		return plan.Outcome{}, proc.MountViews(string(s.NS), s.Dir)
	case plan.Confine:
		return plan.Outcome{}, doConfine(ctx, s)
	case plan.Service:
		return plan.Outcome{}, unlessGone(ns, s.Start, s.Links, doService(ctx, s))
	case plan.Client:
		return plan.Outcome{}, unlessGone(ns, s.Start, s.Links, d.doClient(ctx, ns, s))
	}
	return plan.Outcome{}, fmt.Errorf("systemd does no %s", s.Kind())
}

// unlessGone is the error of a step, but for a start without any of the interfaces that it
// is for: who configures one that was pulled out has nothing to do.
func unlessGone(ns plan.NS, start bool, links []string, err error) error {
	if err == nil || !start || len(links) == 0 {
		return err
	}
	gone := false
	_ = proc.Within(string(ns), func() error { // if that fails the error stands
		gone = !slices.ContainsFunc(links, func(l string) bool { _, err := net.InterfaceByName(l); return err == nil })
		return nil
	})
	if gone {
		return nil
	}
	return err
}
