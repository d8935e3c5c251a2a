package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"wg-quickns/confparse"
	"wg-quickns/internal/engine"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/journal"
	"wg-quickns/internal/kernel"
	"wg-quickns/internal/plan"
	"wg-quickns/strategies"
	"wg-quickns/systemd"
)

const (
	// settle is how long the guard waits after a change for the next one: they come in bursts.
	settle = 20 * time.Millisecond
	// roamCheck is how often the guard looks whether a peer roamed, which the
	// kernel does not tell, where an endpoint has a route or a rule of its own.
	roamCheck  = time.Second
	lookupTime = 4 * time.Second // for a name
	lookups    = 16              // at once
	lookRetry  = time.Second     // after a look that failed
	// upAgain is how long a tunnel that was taken down by hand may stay so until its unit ends.
	upAgain = 5 * time.Second
	// hookEnds is what a shell may take to end that was told to leave the guard running.
	hookEnds = 2 * time.Second
)

const guardUsage = "usage: guard [--leave | --unit] INTERFACE"

// guard keeps a tunnel's surroundings as `up` made them, until `down` or a signal. With
// --leave it does not clean up when the interface is gone, but ends with an exit status
// of its own, as it does when somebody else took the tunnel down and it stays so; with
// --unit likewise, and does nothing else where the tunnel needs no guard.
func (a app) guard(ctx context.Context, args []string) error {
	leave, unit := len(args) == 2 && args[0] == "--leave", len(args) == 2 && args[0] == "--unit"
	if len(args) == 0 || len(args) > 2 || len(args) == 2 && !leave && !unit || strings.HasPrefix(args[len(args)-1], "-") {
		return errors.New(guardUsage)
	}
	if err := a.becomeRoot(); err != nil {
		return err
	}
	t, configErr := a.parseOwn(args[len(args)-1])
	if t.name == "" {
		return configErr
	}
	if !outsideHook(ctx, t.name) {
		return fmt.Errorf("guard was called by a hook of `%s', which would wait for it; end the hook with `&'", t.name)
	}
	g := &guard{
		app: a, arg: args[len(args)-1], target: t, leave: leave || unit, unit: unit, names: make(engine.Names), answers: make(chan engine.Answer, lookups),
		slots: make(chan struct{}, lookups), outside: make(map[confparse.Key]netip.AddrPort), fights: make(engine.Fights),
	}
	if configErr != nil {
		a.say("%v; its record of `up' is used instead", configErr)
	}
	defer g.unwatch()
	defer g.release()
	alive, stop := context.WithCancel(context.Background())
	defer stop()
	beat := systemd.Watchdog()
	go g.beat(alive, beat)
	for {
		wait, done, err := g.round(ctx)
		switch {
		case ctx.Err() != nil:
			return nil // a signal is how a guard ends
		case done, err != nil && !g.begun:
			return err
		case err != nil: // a namespace that went while it was looked at is one reason
			a.fail(err)
			wait = lookRetry
		}
		if !g.idle(ctx, wait, beat) {
			return nil
		}
	}
}

// idle waits until there is something to look at: a change, a peer that roamed, what a
// name leads to, or the end of the time (0: none ends it), with a sign of life each
// beat. It says no when ctx ended it.
func (g *guard) idle(ctx context.Context, wait, beat time.Duration) bool {
	var timer, poll, pulse <-chan time.Time
	if wait > 0 {
		timer = time.After(wait)
	}
	if g.polls || g.there != nil {
		ticker := time.NewTicker(roamCheck)
		defer ticker.Stop()
		poll = ticker.C
	}
	if beat > 0 {
		ticker := time.NewTicker(beat)
		defer ticker.Stop()
		pulse = ticker.C
	}
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer:
			return true
		case <-poll:
			if g.polls && g.roamed(ctx) || g.left() {
				return true
			}
		case <-pulse:
			g.pulse.Works(time.Now())
		case a := <-g.answers:
			g.answered(a)
			for time.Sleep(settle); len(g.answers) > 0; {
				g.answered(<-g.answers)
			}
			return true
		case <-g.changed:
			time.Sleep(settle)
			if !g.idles || !g.stands() {
				return true
			}
		}
	}
}

// outsideHook waits for the end of a hook that has left us running.
func outsideHook(ctx context.Context, name string) bool {
	for end := time.Now().Add(hookEnds); insideHook(name); time.Sleep(settle) {
		if ctx.Err() != nil || time.Now().After(end) {
			return false
		}
	}
	return true
}

// guard is what a guard knows between two looks.
type guard struct {
	app
	arg string
	target
	leave    bool          // cleaning up is another's
	unit     bool          // guard only if that is needed
	idles    bool          // it is not: only the end of the interface matters
	index    int           // the interface
	lock     *journal.Lock // says that there is a guard
	begun    bool
	down     time.Time // when it was first seen down, zero while it is up
	watched  strategies.Place
	space    plan.NS                          // where the tunnel is
	there    os.FileInfo                      // of space, nil for the guard's own
	kernel   *kernel.Doer                     // its sockets, for watching
	ends     []netip.AddrPort                 // where the peers were at the last look
	gateways []facts.Route                    // to those that have an IPv6 route of their own
	polls    bool                             // where they are matters
	moves    []engine.Answer                  // for the next look
	outside  map[confparse.Key]netip.AddrPort // where each peer was seen outside of the tunnel
	worked   bool                             // it repaired something
	failed   int                              // looks in a row
	noted    bool                             // something stays wrong, and status was told
	changed  <-chan struct{}
	stop     func()
	names    engine.Names
	answers  chan engine.Answer
	slots    chan struct{} // taken by look-ups
	fights   engine.Fights
	vanished bool
	lost     []string // interfaces that were away and are gone
	stuck    []string // what it said of those that stay at home
	unnamed  int      // looks in a row that found one that udev has not done with
	pulse    engine.Pulse
}

func (g *guard) unwatch() {
	if g.stop != nil {
		g.stop()
		g.kernel.Close()
		g.stop = nil
	}
}

// release lets another be the tunnel's guard.
func (g *guard) release() {
	if g.lock != nil {
		g.lock.Close()
		g.lock = nil
	}
}

// round is a look, and a pause after it that bounds what looking costs.
func (g *guard) round(ctx context.Context) (wait time.Duration, done bool, err error) {
	begin := time.Now()
	g.worked = false
	wait, done, err = g.look(ctx)
	took := time.Since(begin)
	if err == nil && !done {
		time.Sleep(engine.Pause(took, g.worked))
	}
	return wait, done, err
}

// look is one look at everything, and the repair, under the tunnel's lock. It says
// after what time it wants to look again though nothing changed, 0 for never.
func (g *guard) look(ctx context.Context) (wait time.Duration, done bool, err error) {
	g.pulse.Rests() // another's lock is held for as long as its hooks take
	s, err := g.beginOwn(ctx, g.target)
	g.pulse.Works(time.Now())
	if err != nil {
		return 0, false, err
	}
	defer s.end()
	s.engine.Trace = func(commands []string) {
		g.pulse.Works(time.Now())
		g.trace(commands)
	}
	switch {
	case s.log.State() == journal.Complete:
		g.down = time.Time{}
	case g.leave && g.down.IsZero():
		g.release()
		g.begun, g.vanished, g.down = false, false, time.Now()
		return upAgain, false, nil
	case g.leave && time.Since(g.down) < upAgain:
		return upAgain - time.Since(g.down), false, nil
	case g.leave:
		g.say("`%s' is down: nothing is left to guard", g.name)
		return 0, true, statusError(statusNotUp)
	case !g.begun:
		return 0, true, fmt.Errorf("`%s' is not up by a record of %s: there is nothing to guard", g.name, g.program)
	default:
		g.say("`%s' is down: nothing is left to guard", g.name)
		return 0, true, nil
	}
	if err := g.watch(s); err != nil {
		return 0, false, err
	}
	if !g.begun {
		what := "guarding"
		if g.idles, err = g.needless(s); err != nil {
			return 0, false, err
		}
		if g.idles {
			what = "watching"
		} else if g.lock, err = stateRoot.Guard(s.state); err != nil {
			return 0, false, fmt.Errorf("`%s' has a guard already: %w", g.name, err)
		}
		g.begun = true
		g.say("%s `%s'", what, g.name)
		systemd.Ready(what + " " + g.name)
	}
	link, found, err := g.link(s)
	if err != nil {
		return 0, false, err
	}
	if !found || !s.recorded(link) {
		return g.gone(ctx, s)
	}
	if g.idles {
		g.index = link
		return 0, false, nil
	}
	wait, err = g.check(ctx, s)
	return g.outcome(wait, err), false, nil
}

// outcome is when to look again after a repair, which wanted to wait so long, or failed.
func (g *guard) outcome(wait time.Duration, err error) time.Duration {
	if err == nil {
		g.failed = 0
		return wait
	}
	// Others change things meanwhile: what fails now may do after the next change.
	g.fail(err)
	wait = engine.Retry(g.failed)
	g.failed++
	return wait
}

// needless says whether nothing but the interface's end is to be watched for: a
// record of strategy auto without a kill switch needs no repair.
func (g *guard) needless(s *session) (bool, error) {
	standing, err := s.log.Standing()
	return g.unit && s.strategy() == confparse.StrategyAuto && !hasKillSwitch(standing), err
}

// stands says whether the interface is still the one of the last look.
func (g *guard) stands() bool {
	l, found, err := g.kernel.Link(g.space, g.name)
	return err == nil && found && l.Index == g.index
}

func (g *guard) link(s *session) (index int, found bool, err error) {
	if s.gone(s.place.Target) {
		return 0, false, nil
	}
	l, found, err := s.kernel.Link(s.local(s.place.Target), g.name)
	return l.Index, found, err
}

// watch listens where the tunnel is, anew where that is another place than before.
func (g *guard) watch(s *session) error {
	if g.stop != nil && g.watched.Target == s.place.Target && g.watched.Birth == s.place.Birth {
		return nil
	}
	g.unwatch()
	var err error
	g.kernel = kernel.New(kernel.Options{})
	spaces := []plan.NS{s.local(s.place.Target)}
	if birth := s.local(s.place.Birth); birth != spaces[0] && !s.gone(s.place.Birth) {
		spaces = append(spaces, birth)
	}
	if g.changed, g.stop, err = g.kernel.Watch(spaces); err != nil {
		g.kernel.Close()
		g.stop = nil
		return err
	}
	g.watched, g.space = s.place.Place, spaces[0]
	g.there = nil
	if g.space != "" {
		g.there, err = os.Stat(string(g.space))
	}
	return err
}

// gone cleans up after an interface that somebody deleted, unless a kill switch, or
// that the machine's interfaces are away, keeps everything shut until the user says down.
func (g *guard) gone(ctx context.Context, s *session) (time.Duration, bool, error) {
	standing, err := s.log.Standing()
	if err != nil {
		return 0, false, err
	}
	again := slices.DeleteFunc(slices.Clone(standing), func(e journal.Entry) bool { return !shut(e.Do) })
	if len(again) > 0 && !s.gone(s.place.Target) {
		if err := s.engine.Repair(ctx, engine.Repair{Again: again}); err != nil {
			g.fail(err)
		}
		if !g.vanished {
			g.vanished = true
			g.say("`%s' is gone; its kill switch holds until down", g.name)
			if _, err := s.log.Seen([]string{problemLink}, time.Now()); err != nil {
				g.fail(err)
			}
			systemd.Status(g.name + " is gone; its kill switch holds until down")
		}
		return g.plug(ctx, s, standing), false, nil
	}
	if s.place.Bare {
		if !g.vanished {
			g.vanished = true
			g.say("`%s' is gone; the interfaces that it took away stay away until down", g.name)
			systemd.Status(g.name + " is gone; nothing leaves until down")
		}
		return g.plug(ctx, s, standing), false, nil
	}
	if g.leave {
		g.say("`%s' is gone", g.name)
		return 0, true, statusError(statusNotUp)
	}
	g.say("`%s' is gone: cleaning up after it", g.name)
	now, err := g.parseOwn(g.arg)
	if err != nil {
		g.say("%v; its record of `up' is used instead", err)
	}
	s.cfg = now.cfg // whose hooks are run, as by `down`
	g.pulse.Rests() // for as long as they take
	s.engine.Trace = g.trace
	return 0, true, s.engine.Down(ctx)
}

// plug moves what is plugged in while the interface is gone: until down it is no way out.
func (g *guard) plug(ctx context.Context, s *session, entries []journal.Entry) time.Duration {
	if !s.place.Bare || s.gone(s.place.Target) {
		return 0
	}
	var rep strategies.Repair
	err := g.plugged(ctx, s, entries, &rep)
	rep = g.peace(s, rep)
	g.worked = g.worked || len(rep.Again)+len(rep.New) > 0
	err = errors.Join(err, s.engine.Repair(ctx, engine.Repair{Again: again(rep, entries), New: rep.New}), s.log.Compact())
	return g.outcome(g.udevWait(s, engine.Wait(time.Now(), nil, g.fights)), err)
}

// udevWait is when to look again where an interface waits for udev, else wait: the kernel does
// not tell that udev has done.
func (g *guard) udevWait(s *session, wait time.Duration) time.Duration {
	if !s.unnamed {
		g.unnamed = 0
	} else if again := engine.Retry(g.unnamed); wait == 0 || again < wait {
		wait, g.unnamed = again, g.unnamed+1
	}
	return wait
}

// check repairs what is not as it should be, and then has names looked up.
func (g *guard) check(ctx context.Context, s *session) (wait time.Duration, err error) {
	target := s.local(s.place.Target)
	list, err := g.follow(ctx, s, target)
	if err != nil {
		g.fail(err)
	}
	if err := g.unloop(ctx, s, target); err != nil {
		g.fail(err)
	}
	err = g.repair(ctx, s, target)
	g.ask(ctx, s, target, list)
	return g.udevWait(s, g.next(s.strategy())), err
}

func (g *guard) repair(ctx context.Context, s *session, target plan.NS) error {
	rep, entries, f, err := s.broken(ctx, g.moves...)
	if err != nil {
		return err
	}
	var plugErr error // which keeps nothing else from being repaired
	if s.place.Bare {
		plugErr = g.plugged(ctx, s, entries, &rep)
	}
	all := len(rep.Again) + len(rep.New)
	rep = g.peace(s, rep)
	left := len(rep.Again)+len(rep.New) < all
	g.worked = len(rep.New) > 0 || slices.ContainsFunc(rep.Again, func(a strategies.Standing) bool { return a.Do.Kind() != plan.KindNft && !shut(a.Do) })
	work := engine.Repair{Again: again(rep, entries), New: rep.New, Retire: rep.Retire, Forget: rep.Forget}
	err = errors.Join(plugErr, s.engine.Repair(ctx, work))
	// A way to an endpoint comes before the endpoint: the first packet goes there at once.
	for _, m := range g.moves {
		host, _ := splitName(m.Name)
		g.trace([]string{fmt.Sprintf("wg set %s peer (%s) endpoint %s", g.name, host, m.To)})
		err = errors.Join(err, s.kernel.SetEndpoint(ctx, target, g.name, m.Peer, m.To))
		g.outside[m.Peer] = m.To
	}
	g.ends = whereabouts(f.Device.Peers)
	g.gateways = slices.DeleteFunc(slices.Clone(f.Routes), func(r facts.Route) bool {
		return !r.Gateway.Is6() || !r.Dst.IsSingleIP() || !slices.ContainsFunc(g.ends, func(e netip.AddrPort) bool { return e.Addr() == r.Dst.Addr() })
	})
	g.moves = nil
	return errors.Join(err, g.note(ctx, s, left || err != nil || len(g.lost)+len(g.stuck) > 0), s.log.Compact())
}

// plugged adds to a repair the moves of what was plugged in, past errors, and says what was
// pulled out.
func (g *guard) plugged(ctx context.Context, s *session, entries []journal.Entry, rep *strategies.Repair) error {
	all, namesakes, err := s.atHome(ctx)
	if err != nil {
		return err
	}
	held := g.hold(ctx, s, all, namesakes)
	back, backErr := s.returned(ctx, all, entries)
	again := append(slices.Clip(rep.Again), back...)
	fresh, err := s.newcomers(ctx, s.fresh(all, again))
	lost, lostErr := s.lost(ctx, entries, again)
	rep.New = append(rep.New, fresh...)
	if backErr == nil {
		rep.Again = again
	}
	for _, name := range lost {
		if !slices.Contains(g.lost, name) {
			g.say("interface `%s' is gone (hint: was it pulled out? It is moved again when it is plugged in)", name)
		}
	}
	g.lost = lost
	return errors.Join(held, backErr, lostErr, err)
}

// hold says what stays at home and is a way out past the tunnel, and keeps down of it what
// cannot be moved as one of its name is away already. That is not recorded, as there is
// nothing to undo: whoever gives it another name brings it up.
func (g *guard) hold(ctx context.Context, s *session, all, namesakes []facts.Interface) error {
	stuck := strategies.Stuck(s.movesWhat(), all, s.named)
	var hold plan.Hold
	for _, l := range namesakes {
		stuck = append(stuck, fmt.Sprintf("interface `%s' has the name of one that is away, and is kept down (hint: rename it, or pull it out)", l.Name))
		if l.Up {
			hold.Links = append(hold.Links, l.Name)
		}
	}
	for _, text := range stuck {
		if !slices.Contains(g.stuck, text) {
			g.say("%s", text)
		}
	}
	g.stuck = stuck
	if len(hold.Links) == 0 {
		return nil
	}
	g.trace(plan.Trace(s.place.Target, hold))
	_, err := s.kernel.Do(ctx, s.local(s.place.Target), hold)
	return err
}

// note tells status what stays wrong, or that nothing does any more.
func (g *guard) note(ctx context.Context, s *session, wrong bool) error {
	if !wrong && !g.noted {
		return nil
	}
	g.noted = wrong
	var list []string
	var err error
	if wrong {
		list, err = s.problems(ctx)
	}
	_, noteErr := s.log.Seen(list, time.Now())
	return errors.Join(err, noteErr)
}

// left says whether the namespace of another process or of a name has gone: the
// guard's own sockets keep what is in it alive, so that nobody tells.
func (g *guard) left() bool {
	if g.there == nil {
		return false
	}
	now, err := os.Stat(string(g.space))
	return err != nil || !os.SameFile(g.there, now)
}

// next is when to look again though nothing is heard of.
func (g *guard) next(strategy string) time.Duration {
	g.polls = strategy != confparse.StrategyAuto && !g.watched.Elsewhere()
	return engine.Wait(time.Now(), g.names, g.fights)
}

// peace leaves out what was repaired again and again: somebody else wants it otherwise.
func (g *guard) peace(s *session, r strategies.Repair) strategies.Repair {
	now := time.Now()
	ok := func(ns plan.NS, do plan.Step) bool {
		if do.Kind() == plan.KindNft || shut(do) {
			return true // asked for each time, done only where it is missing
		}
		key := strings.Join(plan.Trace(ns, do), "; ")
		ok, truce := g.fights.Try(now, key)
		if truce > 0 {
			g.say("something undoes this again and again: %s (leaving it alone for %v)", firstLine(key), truce)
		}
		return ok
	}
	all := len(r.New)
	r.Again = slices.DeleteFunc(r.Again, func(a strategies.Standing) bool { return !ok(a.NS, a.Do) })
	r.New = slices.DeleteFunc(r.New, func(a plan.Action) bool { return !ok(a.NS, a.Do) })
	if len(r.New) < all { // what it was to take the place of stays
		r.Forget, r.Retire = nil, nil
	}
	g.fights.Forget(now)
	return r
}

func firstLine(text string) string {
	const most = 200
	if len(text) > most {
		text = text[:most] + "..."
	}
	return text
}

// beat tells systemd's watchdog that the guard lives so often, 0 for never, until ctx ends.
func (g *guard) beat(ctx context.Context, every time.Duration) {
	if every == 0 {
		return
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		if g.pulse.Lives(time.Now()) {
			systemd.Alive()
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
