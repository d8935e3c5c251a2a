// Package engine applies a plan step by step behind a journal, and undoes it.
// It knows no kernel: a Doer carries the steps out.
package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/journal"
	"wg-quickns/internal/plan"
)

// Doer carries steps out, in the namespace given.
type Doer interface {
	// Exists says whether what a step makes is there, for a Sysctl whether it has
	// that value. For a step with Delete set it says whether what that would
	// delete is there, with the identity the step names (ifindex, priority, handle).
	// It is asked only about steps with an undo, or undo steps. Before a step, it is
	// never asked of what sets rather than makes: WG, FwMark, LinkUp, DNS, Resolv, Hook;
	// after one that failed it is, DNS too.
	Exists(context.Context, plan.NS, plan.Step) (bool, error)
	// Do does a step, whole or not at all where the kernel allows it. Deleting
	// what is absent succeeds. An error of a batch is a *plan.StepError.
	Do(context.Context, plan.NS, plan.Step) (plan.Outcome, error)
}

// Stage is a part of `up` that is planned when the stages before it are done.
type Stage struct {
	Name string
	// Global holds the global lock from planning to the stage's last step.
	Global bool
	Plan   func(context.Context) ([]plan.Action, error)
}

// Engine does and undoes one tunnel. Whoever calls it holds the lock of the
// journal's name.
type Engine struct {
	Doer    Doer
	Journal *journal.Journal
	Root    journal.Root
	Trace   func(commands []string) // nil: no trace; a batch comes whole
	// Others lists the undo steps pending in the journals of the namespace's
	// other tunnels. It is called under the global lock. Nil: there are none.
	Others func() ([]plan.Step, error)
	// Gone says that a namespace is no more, and with it all that was in it.
	// Nil: none is.
	Gone func(plan.NS) bool
	// After runs when a begun `down` has undone everything but namespaces, before
	// the journal goes, so that a killed `down` runs it once more: PostDown. Its error is
	// passed on and undoes nothing. Nil: nothing runs.
	After func(context.Context) error
	// Held is the global lock if whoever calls Up has it already; the first Global
	// stage gives it back when it is done, and so does Up when it fails before.
	Held *journal.Lock

	// Keep says which undo steps Recover leaves to the `up` that follows. Nil: none.
	Keep func(plan.Step) bool

	recovering bool // Recover runs
}

// What undoing may take once nobody waits any more. A signal must have ended the
// program within 5 s; but who configures the machine's interfaces may take longer to
// stop and to start again, and a machine without a network is worse than a wait.
const (
	finish     = 4 * time.Second
	finishHome = 30 * time.Second
)

// patience is how long undoing what is pending may take at the end.
func (e *Engine) patience() time.Duration {
	for _, entry := range e.Journal.Pending() {
		if slices.ContainsFunc(entry.Undo, plan.Physical) {
			return finishHome
		}
	}
	return finish
}

// ErrLeft is in the error of an undo that could not do everything. The journal
// keeps what is left, and the next `down` or `up` tries again.
var ErrLeft = errors.New("not undone yet, try down again")

// kept says whether undo steps are all of those to Keep.
func (e *Engine) kept(undo []plan.Step) bool {
	return e.Keep != nil && !slices.ContainsFunc(undo, func(s plan.Step) bool { return !e.Keep(s) })
}

// Up does the stages in order; the journal was just begun. If anything fails or
// ctx ends it undoes everything in wg-quick's rollback order. The error holds the
// first cause first: a *plan.StepError, the cause of ctx, or what a stage returned.
func (e *Engine) Up(ctx context.Context, stages ...Stage) error {
	if e.Journal.State() != journal.Half || slices.ContainsFunc(e.Journal.Pending(), func(p journal.Entry) bool { return !e.kept(p.Undo) }) {
		return errors.New("up: the journal is not a new one")
	}
	lock := &global{root: e.Root, lock: e.Held}
	defer lock.release()
	last, err := e.apply(ctx, lock, stages)
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		err = errors.Join(cause, err)
	}
	fresh, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.patience())
	defer cancel()
	if last != nil {
		err = errors.Join(err, e.settle(fresh, last, err))
	}
	return errors.Join(err, e.undo(fresh, lock, true))
}

// attempt is a step that was begun and failed.
type attempt struct {
	id int
	plan.Action
}

// apply does the stages. The attempt is the step that failed, if one did.
func (e *Engine) apply(ctx context.Context, lock *global, stages []Stage) (*attempt, error) {
	for _, st := range stages {
		if st.Global {
			if err := lock.take(ctx); err != nil {
				return nil, err
			}
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		actions, err := st.Plan(ctx)
		if err != nil {
			return nil, err
		}
		for _, a := range actions {
			if last, err := e.step(ctx, lock, a); err != nil {
				return last, err
			}
		}
		if st.Global {
			lock.release()
		}
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, e.Journal.Up()
}

// step does one action: exists? intend, do, done.
func (e *Engine) step(ctx context.Context, lock *global, a plan.Action) (*attempt, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if made, ok := a.Do.(plan.Netns); ok && made.Shared {
		return nil, e.share(a)
	}
	_, sysctl := a.Do.(plan.Sysctl)
	if sysctl && !lock.held() {
		if err := lock.take(ctx); err != nil {
			return nil, err
		}
		defer lock.release()
	}
	// Without an undo nothing that was there before can be lost, and the kernel
	// itself says EEXIST.
	// A kill switch that is there without a record is taken over: it never opens. So is
	// a firewall, which outlives its interface where wg-quick made both.
	kind := a.Do.Kind()
	if sysctl || makes(a.Do) && !plan.Takes(a.Do) && kind != plan.KindResolv && !wall(a.Do) && !plan.Physical(a.Do) && len(a.Undo) > 0 {
		there, err := e.Doer.Exists(ctx, a.NS, a.Do)
		if err != nil {
			return nil, stepError(a.Do, err)
		}
		if there && slices.ContainsFunc(a.Undo, shared) && !sysctl {
			return nil, e.shareRoute(a)
		}
		if there && !sysctl {
			commands := plan.Trace(a.NS, a.Do)
			e.trace(commands[:min(1, len(commands))]) // as ip(8) would have tried
			return nil, &plan.StepError{Step: a.Do, Err: unix.EEXIST}
		}
		if there {
			return nil, e.share(a)
		}
	}
	return e.record(ctx, a)
}

// record does an action between two records of the journal. What is not journaled
// is not done. The attempt is the action if doing it failed.
func (e *Engine) record(ctx context.Context, a plan.Action) (*attempt, error) {
	id, err := e.Journal.Intend(a)
	if err != nil {
		return nil, err
	}
	out, err := e.do(ctx, a.NS, a.Do, true)
	if err != nil {
		return &attempt{id, a}, err
	}
	return nil, e.Journal.Done(id, out)
}

// shareRoute records a route to an endpoint, or to nowhere, that is there already as
// its own too if another tunnel made it: the last to go takes it away. Else it is nobody's of ours.
func (e *Engine) shareRoute(a plan.Action) error {
	needed, err := e.needed(a.Do)
	if err != nil || !needed {
		return err
	}
	return e.share(a)
}

// share records what is as it is to be already, as a sysctl that has its value: who is
// last to need it undoes it, whoever did it.
func (e *Engine) share(a plan.Action) error {
	if len(a.Undo) == 0 {
		return nil
	}
	id, err := e.Journal.Intend(a)
	if err != nil {
		return err
	}
	return e.Journal.Done(id, plan.Outcome{})
}

// settle finds out whether a failed step took effect. If that cannot be told it
// did: undoing what is absent does no harm.
func (e *Engine) settle(ctx context.Context, last *attempt, cause error) error {
	if len(last.Undo) == 0 {
		return e.Journal.Failed(last.id, false, cause)
	}
	applied := !errors.Is(cause, unix.EEXIST) // else it is somebody else's
	var asking error
	if applied {
		var there bool
		if there, asking = e.Doer.Exists(ctx, last.NS, last.Do); asking == nil {
			applied = there != plan.Takes(last.Do)
		} else {
			asking = stepError(last.Do, asking)
		}
	}
	return errors.Join(asking, e.Journal.Failed(last.id, applied, cause))
}

// Down undoes everything pending, in the order of wg-quick's `down`, and removes
// the journal. It goes on past errors. If ctx ends it still finishes, in 4 s at
// most (30 s with interfaces of others), and returns the cause: half a tunnel is the
// worst of states.
func (e *Engine) Down(ctx context.Context) error { return e.takeDown(ctx, false) }

// Rollback is Down in the order in which wg-quick undoes a failed `up`.
func (e *Engine) Rollback(ctx context.Context) error { return e.takeDown(ctx, true) }

// Recover undoes what an earlier run left, if it left anything: a new `up` calls
// it first. It gives up on DNS that never succeeded and cannot be taken back: a
// broken resolvconf must not keep a config without DNS from coming up.
func (e *Engine) Recover(ctx context.Context) error {
	if e.Journal.State() == journal.Empty {
		return nil
	}
	e.recovering = true
	defer func() { e.recovering = false }()
	return e.Rollback(ctx)
}

func (e *Engine) takeDown(ctx context.Context, rollback bool) error {
	if e.Journal.State() == journal.Empty {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx) // nothing is touched yet
	}
	var begun error
	if e.Journal.State() == journal.Complete {
		begun = e.Journal.Down()
	}
	lock := &global{root: e.Root}
	defer lock.release()
	err := e.undo(ctx, lock, rollback)
	if err != nil && ctx.Err() != nil && e.Journal.State() != journal.Empty {
		fresh, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.patience())
		defer cancel()
		err = errors.Join(context.Cause(ctx), e.undo(fresh, lock, rollback))
	}
	return errors.Join(begun, err)
}

// undoing is one undo step in its place.
type undoing struct {
	journal.Entry
	n    int
	step plan.Step
}

// undo carries out what is pending, past errors, until ctx ends.
func (e *Engine) undo(ctx context.Context, lock *global, rollback bool) error {
	entries := e.Journal.Pending()
	actions := make([]plan.Action, len(entries))
	for i, entry := range entries {
		actions[i] = plan.Action{NS: entry.NS, Undo: entry.Undo}
	}
	var errs []error
	var left []string
	keep := false
	inside := false         // something is left that may be in a namespace: it stays for that, and for After
	var pending []plan.Step // which waits asks for
	for _, next := range plan.UndoOrder(actions, rollback) {
		entry := entries[next.Action]
		u := undoing{entry, entry.N[next.Undo], next.Step}
		if e.recovering && e.kept([]plan.Step{u.step}) {
			keep = true
			continue
		}
		made := u.step.Kind() == plan.KindNetns
		if made && !inside {
			errs = append(errs, e.after(ctx)) // while there is a namespace to run it in
		}
		if ctx.Err() == nil && !(made && inside) && !waits(u.step, pending) {
			carried, err := e.undoStep(ctx, lock, u)
			if err != nil {
				errs = append(errs, err)
			}
			if carried {
				continue
			}
		}
		left = append(left, first(u.NS, u.step))
		inside = inside || !made
		pending = append(pending, u.step)
	}
	if len(left) == 0 {
		errs = append(errs, e.after(ctx))
		switch {
		case e.due(): // ctx ended before it
			left = append(left, "PostDown")
		case keep:
			return errors.Join(errs...)
		default:
			return errors.Join(append(errs, e.Journal.Remove())...)
		}
	}
	if ctx.Err() != nil {
		errs = append(errs, context.Cause(ctx))
	}
	return errors.Join(append(errs, fmt.Errorf("%w: %s", ErrLeft, strings.Join(left, "; ")))...)
}

// waits says whether a step starts what must not run before others are done: what still
// runs away from home or would do so, and a client while an interface is not home, which
// would take another for it.
func waits(s plan.Step, pending []plan.Step) bool {
	switch s := s.(type) {
	case plan.Client:
		return s.Start && slices.ContainsFunc(pending, func(p plan.Step) bool {
			c, ok := p.(plan.Client)
			return p.Kind() == plan.KindMove || ok && !c.Start && slices.Equal(c.Args, s.Args)
		})
	case plan.Service:
		return s.Start && slices.ContainsFunc(pending, func(p plan.Step) bool {
			u, ok := p.(plan.Service)
			c, confined := p.(plan.Confine)
			return ok && !u.Start && u.Unit == s.Unit || confined && c.Unit == s.Unit
		})
	}
	return false
}

// due says whether After is still to run.
func (e *Engine) due() bool {
	return e.After != nil && e.Journal.DownBegun() && !e.Journal.AfterRan()
}

// after runs After once in a begun `down`, and not when ctx has ended: what runs then
// is told to end at once.
func (e *Engine) after(ctx context.Context) error {
	if !e.due() || ctx.Err() != nil {
		return nil
	}
	return errors.Join(e.After(ctx), e.Journal.After())
}

// undoStep carries out one undo step, if there is something to undo; then it counts as carried out too.
func (e *Engine) undoStep(ctx context.Context, lock *global, u undoing) (carried bool, err error) {
	if deadline, ok := ctx.Deadline(); ok {
		// Half of the time left, so that one that hangs leaves some for the others.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/2)
		defer cancel()
	}
	if e.Gone != nil && lives(u.step) && e.Gone(u.NS) {
		return true, e.Journal.Undone(u.ID, u.n)
	}
	there := true
	// A namespace must not go while an `up` is about to move in.
	common := shared(u.step) || u.step.Kind() == plan.KindNetns
	if common && !lock.held() {
		if err := lock.take(ctx); err != nil {
			return false, err
		}
		defer lock.release()
	}
	if common {
		needed, err := e.needed(u.step)
		if err != nil {
			return false, fmt.Errorf("who else needs what is undone by %s: %w", first(u.NS, u.step), err)
		}
		if sysctl, ok := u.step.(plan.Sysctl); needed || ok && u.Do == plan.Step(sysctl) {
			return true, e.Journal.Undone(u.ID, u.n)
		}
	}
	if _, ok := u.step.(plan.Sysctl); ok {
		if do, ok := u.Do.(plan.Sysctl); ok {
			there, err = e.Doer.Exists(ctx, u.NS, do)
			if err == nil && !there { // somebody's later value stays
				return true, e.Journal.Undone(u.ID, u.n)
			}
		}
	} else if makes(u.step) && !restores(u.step) {
		there, err = e.Doer.Exists(ctx, u.NS, u.step)
	}
	if err != nil {
		// It may be there: undoing what is absent does no harm.
		there, err = true, stepError(u.step, err)
	}
	// What is absent is deleted without a word: there may be leftovers of it. So
	// is DNS that never succeeded.
	unsure := u.step.Kind() == plan.KindDNS && !u.Certain
	if _, undo := e.do(ctx, u.NS, u.step, there && !unsure); undo != nil && !(unsure && e.recovering) {
		return false, errors.Join(err, undo)
	}
	return true, errors.Join(err, e.Journal.Undone(u.ID, u.n))
}

// shared says whether the undo of a step is for the last tunnel that needs it.
func shared(undo plan.Step) bool {
	switch s := undo.(type) {
	case plan.Via:
		return s.Delete
	case plan.Route:
		return s.Delete && s.Unreachable
	case plan.Sysctl, plan.KillSwitch: // a kill switch's tables are changed under the lock, though each takes out its own
		return true
	}
	return false
}

// restores says whether a step puts back what was there.
func restores(s plan.Step) bool {
	v, ok := s.(plan.Via)
	return ok && v.Restore
}

// needed says whether another tunnel still needs a namespace, a sysctl, or a route to an endpoint or nowhere.
func (e *Engine) needed(s plan.Step) (bool, error) {
	if e.Others == nil {
		return false, nil
	}
	steps, err := e.Others()
	return slices.ContainsFunc(steps, func(o plan.Step) bool {
		switch s := s.(type) {
		case plan.Sysctl:
			other, ok := o.(plan.Sysctl)
			return ok && other.Name == s.Name
		case plan.Netns:
			other, ok := o.(plan.Netns)
			return ok && other.Delete && other.Name == s.Name && other.ID == s.ID && s.ID != ""
		case plan.Via:
			other, ok := o.(plan.Via)
			return ok && other.Delete && other.Route.Dst == s.Route.Dst && other.Route.Metric == s.Route.Metric
		case plan.Route:
			other, ok := o.(plan.Route)
			return ok && other.Delete && other.Unreachable && other.Table == s.Table && slices.Equal(other.List, s.List)
		}
		return false
	}), err
}

// do does a step and traces it: a single command before, as the shell would, a
// batch after, up to the one that failed.
func (e *Engine) do(ctx context.Context, ns plan.NS, s plan.Step, trace bool) (plan.Outcome, error) {
	if !trace || e.Trace == nil {
		out, err := e.Doer.Do(ctx, ns, s)
		return out, stepError(s, err)
	}
	commands := plan.Trace(ns, s)
	if len(commands) == 1 {
		e.trace(commands)
	}
	out, err := e.Doer.Do(ctx, ns, s)
	err = stepError(s, err)
	if len(commands) > 1 {
		if step := (*plan.StepError)(nil); errors.As(err, &step) {
			commands = commands[:min(step.Index+1, len(commands))]
		}
		e.trace(commands)
	}
	return out, err
}

func (e *Engine) trace(commands []string) {
	if e.Trace != nil && len(commands) > 0 {
		e.Trace(commands)
	}
}

// stepError says which step an error is of, unless it does already.
func stepError(s plan.Step, err error) error {
	if step := (*plan.StepError)(nil); err == nil || errors.As(err, &step) {
		return err
	}
	return &plan.StepError{Step: s, Err: err}
}

// lives says whether what a step made is in its namespace, and went with it.
func lives(s plan.Step) bool {
	switch s.Kind() {
	case plan.KindNetns, plan.KindResolv, plan.KindDNS, plan.KindMove:
		return false
	}
	return true
}

// makes says whether a step makes or deletes a thing that can be looked for.
func makes(s plan.Step) bool {
	switch s.Kind() {
	case plan.KindWG, plan.KindFwMark, plan.KindLinkUp, plan.KindDNS, plan.KindHook:
		return false
	case plan.KindMove, plan.KindTwin, plan.KindConfine, plan.KindViews:
		return true
	}
	return !plan.Physical(s)
}

// first is a step in one line.
func first(ns plan.NS, s plan.Step) string {
	c := plan.Trace(ns, s)
	switch len(c) {
	case 0:
		return s.Kind()
	case 1:
		return c[0]
	}
	return fmt.Sprintf("%s and %d more", c[0], len(c)-1)
}

// global is the global lock, held or not.
type global struct {
	root journal.Root
	lock *journal.Lock
}

func (g *global) held() bool { return g.lock != nil }

func (g *global) take(ctx context.Context) (err error) {
	if g.lock == nil {
		g.lock, err = g.root.Global(ctx)
	}
	return err
}

func (g *global) release() {
	if g.lock != nil {
		g.lock.Close()
		g.lock = nil
	}
}
