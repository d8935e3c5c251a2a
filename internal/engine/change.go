package engine

import (
	"context"
	"errors"

	"wg-quickns/internal/plan"
)

// Change is what turns a tunnel that is up into another one. Numbers are entries
// of the journal.
type Change struct {
	First  []int // to be undone before the rest
	New    []plan.Action
	Swaps  []Swap
	Retire []int // to be undone after the rest
	Forget []int // succeeded by New
}

// Swap changes what goes with the link: Record stands in place of Drop from then on,
// and Do is done for it.
type Swap struct {
	Record []plan.Action
	Do     []plan.Action
	Drop   []int
}

// Change carries a change out and stops at the first error: what was done by then
// stands in the journal, and is undone by Down like the rest.
func (e *Engine) Change(ctx context.Context, c Change) error {
	lock := &global{root: e.Root, lock: e.Held}
	defer lock.release()
	if err := lock.take(ctx); err != nil {
		return err
	}
	if err := e.retire(ctx, lock, c.First, true); err != nil {
		return err
	}
	for _, a := range c.New {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if v, ok := a.Do.(plan.Via); ok && !plan.Takes(v) { // the way to an endpoint, which others may have made
			there, err := e.Doer.Exists(ctx, a.NS, v)
			if err == nil && there {
				err = e.shareRoute(a)
			}
			if err != nil {
				return stepError(v, err)
			}
			if there {
				continue
			}
		}
		if last, err := e.record(ctx, a); last != nil {
			return errors.Join(err, e.settle(ctx, last, err))
		} else if err != nil {
			return err
		}
	}
	for _, s := range c.Swaps {
		if err := e.swap(ctx, s); err != nil {
			return err
		}
	}
	return errors.Join(e.retire(ctx, lock, c.Forget, false), e.retire(ctx, lock, c.Retire, true))
}

// swap records what will stand, does the difference, and drops what stood: killed
// in between, both stand, and the next change finds out.
func (e *Engine) swap(ctx context.Context, s Swap) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var ids []int
	for _, a := range s.Record {
		id, err := e.Journal.Intend(a)
		if err != nil {
			return err
		}
		ids = append(ids, id)
	}
	for _, a := range s.Do {
		if _, err := e.do(ctx, a.NS, a.Do, true); err != nil {
			return err
		}
	}
	for _, id := range ids {
		if err := e.Journal.Done(id, plan.Outcome{}); err != nil {
			return err
		}
	}
	for _, id := range s.Drop {
		if err := e.Journal.Drop(id); err != nil {
			return err
		}
	}
	return nil
}
