package engine

import (
	"context"
	"errors"
	"slices"

	"wg-quickns/internal/journal"
	"wg-quickns/internal/plan"
)

// Repair is what makes a tunnel that is up whole again.
type Repair struct {
	Again  []journal.Entry // Do once more: each stands by the journal, and is missing
	New    []plan.Action
	Retire []int // entries of the journal to be undone
	Forget []int // entries that need no undoing any more
}

// Repair carries a repair out, the firewall's part first, past errors. What is new
// is journaled before it is done, as in Up; a new step that fails leaves nothing, and
// what it was to take the place of stays in the journal.
func (e *Engine) Repair(ctx context.Context, r Repair) error {
	lock := &global{root: e.Root, lock: e.Held}
	defer lock.release()
	if err := lock.take(ctx); err != nil {
		return err
	}
	var errs []error
	again := func(walls bool) {
		for _, entry := range r.Again {
			if wall(entry.Do) == walls {
				errs = append(errs, e.again(ctx, entry))
			}
		}
	}
	again(true)
	for _, a := range r.New {
		id, err := e.Journal.Intend(a)
		if err != nil {
			return errors.Join(append(errs, err)...) // what is not journaled is not done
		}
		out, err := e.do(ctx, a.NS, a.Do, true)
		if err != nil {
			errs = append(errs, err, e.settle(ctx, &attempt{id, a}, err))
			r.Forget, r.Retire = nil, nil
			continue
		}
		if len(a.Undo) == 0 && plan.Takes(a.Do) {
			continue // nothing is there, nor to be put back: it does not stand
		}
		errs = append(errs, e.Journal.Done(id, out))
	}
	again(false)
	errs = append(errs, e.retire(ctx, lock, r.Forget, false), e.retire(ctx, lock, r.Retire, true))
	return errors.Join(errs...)
}

// retire ends entries of the journal, past errors: by their undo, or as they are.
func (e *Engine) retire(ctx context.Context, lock *global, ids []int, undo bool) error {
	var errs []error
	for _, entry := range e.Journal.Pending() {
		if !slices.Contains(ids, entry.ID) {
			continue
		}
		for i, n := range entry.N {
			var err error
			if undo {
				_, err = e.undoStep(ctx, lock, undoing{entry, n, entry.Undo[i]})
			} else {
				err = e.Journal.Undone(entry.ID, n)
			}
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// again does a standing step once more, unless it is only the kernel that could
// say that it is there, and does.
func (e *Engine) again(ctx context.Context, entry journal.Entry) error {
	if wall(entry.Do) {
		there, err := e.Doer.Exists(ctx, entry.NS, entry.Do)
		if err != nil || there {
			return stepError(entry.Do, err)
		}
	}
	out, err := e.do(ctx, entry.NS, entry.Do, true)
	if err == nil && out.Undo != nil {
		err = e.Journal.Done(entry.ID, out)
	}
	return err
}

// wall says whether a step is the firewall's.
func wall(s plan.Step) bool {
	switch s.Kind() {
	case plan.KindNft, plan.KindKillSwitch:
		return true
	}
	return false
}
