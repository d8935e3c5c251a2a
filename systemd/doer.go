package systemd

import (
	"context"
	"fmt"

	"wg-quickns/internal/plan"
	"wg-quickns/internal/proc"
)

// Doer carries out the steps about who configures interfaces: Views, Confine,
// Service and Client. Each may be done again, also after it was killed.
type Doer struct{}

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

// Do does a step. To stop what does not run succeeds, as does to start what runs.
func (Doer) Do(ctx context.Context, ns plan.NS, s plan.Step) (plan.Outcome, error) {
	switch s := s.(type) {
	case plan.Views:
		if s.Delete {
			return plan.Outcome{}, proc.UnmountViews(string(s.NS), s.Dir)
		}
		return plan.Outcome{}, proc.MountViews(string(s.NS), s.Dir)
	case plan.Confine:
		return plan.Outcome{}, doConfine(ctx, s)
	case plan.Service:
		return plan.Outcome{}, doService(ctx, s)
	case plan.Client:
		return plan.Outcome{}, doClient(ctx, ns, s)
	}
	return plan.Outcome{}, fmt.Errorf("systemd does no %s", s.Kind())
}
