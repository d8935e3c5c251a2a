package engine_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/engine"
	"wg-quickns/internal/journal"
	"wg-quickns/internal/plan"
)

// world is a small model of what a Doer acts on.
type world struct {
	mu     sync.Mutex
	next   int               // the next ifindex or handle
	links  map[string]int    // name to ifindex
	things map[string]string // what there is, to the link it dies with ("": none)
	nft    map[string]uint64 // tables, to their handles
	sysctl map[string]string
	*hardware
}

func newWorld() *world {
	return &world{
		next:  10,
		links: map[string]int{"eth0": 2},
		things: map[string]string{
			"addr eth0 192.0.2.1/24":                "eth0",
			"rule 4 32765 0 -> 254 suppress 0":      "", // another tunnel's
			"rule 4 32766 0 -> 254 suppress -1":     "",
			"route 0 192.0.2.0/24 eth0":             "eth0",
			"route 51820 198.51.100.0/24 by hand":   "",
			"dns wg9 somebody else's record":        "",
			"rule 6 32766 0 -> 254 suppress -1":     "",
			"rule 4 100 51820 -> 51820 suppress -1": "",
		},
		nft:    map[string]uint64{"ip wg-quick-other": 3},
		sysctl: map[string]string{mark: "0"},

		hardware: newHardware(),
	}
}

const mark = "net.ipv4.conf.all.src_valid_mark"

func (w *world) clone() *world {
	return &world{next: w.next, links: maps.Clone(w.links), things: maps.Clone(w.things),
		nft: maps.Clone(w.nft), sysctl: maps.Clone(w.sysctl), hardware: w.hardware.clone()}
}

// String is all that there is, but for the numbers the kernel gives.
func (w *world) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	lines := append(slices.Collect(maps.Keys(w.things)), w.lines()...)
	for l := range w.links {
		lines = append(lines, "link "+l)
	}
	for n := range w.nft {
		lines = append(lines, "nft "+n)
	}
	for n, v := range w.sysctl {
		lines = append(lines, n+"="+v)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// keys names what a step makes, or deletes.
func keys(s plan.Step) (list []string, link string) {
	switch s := s.(type) {
	case plan.Addr:
		for _, p := range s.List {
			list = append(list, fmt.Sprintf("addr %s %v", s.Link, p))
		}
		return list, s.Link
	case plan.Route:
		for _, p := range s.List {
			list = append(list, fmt.Sprintf("route %d %v %s", s.Table, p, s.Link))
		}
		return list, s.Link
	case plan.Rule:
		v := 4
		if s.IPv6 {
			v = 6
		}
		return []string{fmt.Sprintf("rule %d %d %d -> %d suppress %d", v, s.Priority, s.NotFwMark, s.Table, s.SuppressPrefixLen)}, ""
	case plan.WG:
		return []string{"wg " + s.Link}, s.Link
	case plan.FwMark:
		return []string{fmt.Sprintf("fwmark %s %d", s.Link, s.Mark)}, s.Link
	case plan.LinkUp:
		return []string{fmt.Sprintf("up %s %d", s.Name, s.MTU)}, s.Name
	case plan.DNS:
		return []string{"dns " + s.Link}, ""
	}
	panic(fmt.Sprintf("the world has no %T", s))
}

func table(s plan.Nft) string {
	if s.IPv6 {
		return "ip6 " + s.TableName()
	}
	return "ip " + s.TableName()
}

func (w *world) Exists(ctx context.Context, ns plan.NS, s plan.Step) (bool, error) {
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch s := s.(type) {
	case plan.Link:
		index, ok := w.links[s.Name]
		return ok && (s.Index == 0 || s.Index == index), nil
	case plan.Nft:
		handle, ok := w.nft[table(s)]
		return ok && (s.Handle == 0 || s.Handle == handle), nil
	case plan.Sysctl:
		return w.sysctl[s.Name] == s.Value, nil
	}
	if plan.Physical(s) || s.Kind() == plan.KindResolv {
		return w.exists(ns, s), nil
	}
	list, _ := keys(s)
	return slices.ContainsFunc(list, func(k string) bool { _, ok := w.things[k]; return ok }), nil
}

func (w *world) Do(ctx context.Context, ns plan.NS, s plan.Step) (out plan.Outcome, err error) {
	if ctx.Err() != nil {
		return out, ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	fail := func(i int, err error) (plan.Outcome, error) { return out, &plan.StepError{Step: s, Index: i, Err: err} }
	deleting := false
	if plan.Physical(s) || s.Kind() == plan.KindResolv {
		if err := w.do(ns, s); err != nil {
			return fail(0, err)
		}
		return out, nil
	}
	switch s := s.(type) {
	case plan.Hook:
		return out, nil
	case plan.Sysctl:
		w.sysctl[s.Name] = s.Value
		return out, nil
	case plan.Link:
		index, there := w.links[s.Name]
		switch {
		case !s.Delete && there:
			return fail(0, unix.EEXIST)
		case !s.Delete:
			w.next++
			w.links[s.Name] = w.next
			return plan.Outcome{Undo: []plan.Step{plan.Link{Name: s.Name, Delete: true, Index: w.next}}}, nil
		case there && (s.Index == 0 || s.Index == index):
			delete(w.links, s.Name)
			maps.DeleteFunc(w.things, func(_, link string) bool { return link == s.Name })
		}
		return out, nil
	case plan.Nft:
		handle, there := w.nft[table(s)]
		switch {
		case !s.Delete:
			w.next++
			w.nft[table(s)] = uint64(w.next)
			undo := plan.Nft{Link: s.Link, IPv6: s.IPv6, Delete: true, Handle: uint64(w.next)}
			return plan.Outcome{Undo: []plan.Step{undo}}, nil
		case there && (s.Handle == 0 || s.Handle == handle):
			delete(w.nft, table(s))
		}
		return out, nil
	case plan.Addr:
		deleting = s.Delete
	case plan.Route:
		deleting = s.Delete
	case plan.Rule:
		deleting = s.Delete
	case plan.DNS:
		deleting = s.Delete
	}
	list, link := keys(s)
	for i, k := range list {
		if deleting {
			delete(w.things, k)
			continue
		}
		if _, there := w.links[link]; link != "" && !there {
			return fail(i, unix.ENODEV)
		}
		if _, there := w.things[k]; there && s.Kind() != plan.KindDNS {
			return fail(i, unix.EEXIST)
		}
		w.things[k] = link
	}
	return out, nil
}

// fault is what happens at one call of the Doer.
type fault int

const (
	fine       fault = iota
	killBefore       // the process dies before the call does anything
	killAfter        // it dies when all is done
	fails            // an error, and nothing done
	late             // done, but an error is reported
)

type killed struct{}

var errInjected = errors.New("injected")

// doer counts calls, and does what is to happen at the n-th, from 0.
type doer struct {
	engine.Doer
	n      int
	faults map[int]fault
	before func(n int, s plan.Step)
	after  func(n int, s plan.Step)
}

func (d *doer) call(s plan.Step, f func() error) error {
	n := d.n
	d.n++
	if d.before != nil {
		d.before(n, s)
	}
	what := d.faults[n]
	switch what {
	case killBefore:
		panic(killed{})
	case fails:
		return errInjected
	}
	err := f()
	if d.after != nil {
		d.after(n, s)
	}
	switch what {
	case killAfter:
		panic(killed{})
	case late:
		return errInjected
	}
	return err
}

func (d *doer) Exists(ctx context.Context, ns plan.NS, s plan.Step) (ok bool, err error) {
	err = d.call(s, func() (err error) { ok, err = d.Doer.Exists(ctx, ns, s); return err })
	return ok && err == nil, err
}

func (d *doer) Do(ctx context.Context, ns plan.NS, s plan.Step) (out plan.Outcome, err error) {
	err = d.call(s, func() (err error) { out, err = d.Doer.Do(ctx, ns, s); return err })
	if err != nil {
		out = plan.Outcome{}
	}
	return out, err
}

// lab is a world, a folder of journals, and commands upon them as cmd has them.
type lab struct {
	t     testing.TB
	root  journal.Root
	world *world
	doer  *doer
	name  string
	trace []string
	stage func([]engine.Stage) []engine.Stage // nil: as they are
	after func(context.Context) error
}

func newLab(t testing.TB) *lab {
	w := newWorld()
	return &lab{t: t, root: journal.Root(filepath.Join(t.TempDir(), "r")), world: w, doer: &doer{Doer: w}, name: "wg0"}
}

// with makes the next command meet faults.
func (l *lab) with(faults map[int]fault) *lab {
	l.doer.n, l.doer.faults = 0, faults
	return l
}

func (l *lab) others() ([]plan.Step, error) {
	names, err := l.root.Names()
	if err != nil {
		return nil, err
	}
	var steps []plan.Step
	for _, n := range names {
		if n == l.name {
			continue
		}
		j, err := l.root.Open(n)
		if err != nil {
			return nil, err
		}
		for _, e := range j.Pending() {
			steps = append(steps, e.Undo...)
		}
	}
	return steps, nil
}

// command runs f as a process of its own would: with the lock, on the journal as
// the file has it. It says whether the process was killed.
func (l *lab) command(ctx context.Context, f func(*engine.Engine, *journal.Journal) error) (err error, dead bool) {
	l.t.Helper()
	lock, err := l.root.Lock(ctx, l.name)
	if err != nil {
		return err, false
	}
	defer lock.Close()
	j, err := l.root.Open(l.name)
	if err != nil {
		return err, false
	}
	defer j.Close()
	l.trace = nil
	e := &engine.Engine{Doer: l.doer, Journal: j, Root: l.root, Others: l.others, After: l.after,
		Trace: func(c []string) { l.trace = append(l.trace, c...) }}
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(killed); !ok {
				panic(r)
			}
			dead = true
		}
	}()
	return f(e, j), false
}

func (l *lab) up(ctx context.Context) (error, bool) {
	return l.command(ctx, func(e *engine.Engine, j *journal.Journal) error {
		if j.State() == journal.Half {
			if err := e.Recover(ctx); err != nil {
				return err
			}
		}
		if err := j.Begin(journal.Begin{Boot: "b", Interface: l.name}); err != nil {
			return err
		}
		return e.Up(ctx, l.stages()...)
	})
}

func (l *lab) down(ctx context.Context) (error, bool) {
	return l.command(ctx, func(e *engine.Engine, _ *journal.Journal) error { return e.Down(ctx) })
}

func pfx(s ...string) (list []plan.Prefix) {
	for _, s := range s {
		list = append(list, plan.Prefix{Prefix: netip.MustParsePrefix(s)})
	}
	return list
}

// stages is a full tunnel of both families with DNS and hooks, in wg-quick's order.
func (l *lab) stages() []engine.Stage {
	name := l.name
	fixed := func(list ...plan.Action) func(context.Context) ([]plan.Action, error) {
		return func(context.Context) ([]plan.Action, error) { return list, nil }
	}
	do := func(s plan.Step, undo ...plan.Step) plan.Action { return plan.Action{Do: s, Undo: undo} }
	hook := func(phase string) plan.Action { return do(plan.Hook{Command: "echo " + phase, Phase: phase}) }
	stages := []engine.Stage{
		{Name: "device", Plan: fixed(do(plan.Link{Name: name}, plan.Link{Name: name, Delete: true}), hook("PreUp"))},
		{Name: "configuration", Plan: fixed(do(plan.WG{Link: name}))},
		{Name: "addresses", Plan: fixed(
			do(plan.Addr{Link: name, List: pfx("10.0.0.1/24", "fd00::1/64")}),
			do(plan.LinkUp{Name: name, MTU: 1420}),
			do(plan.DNS{Link: name, Servers: []string{"10.0.0.2"}}, plan.DNS{Link: name, Delete: true}),
		)},
		{Name: "routes", Global: true, Plan: func(context.Context) ([]plan.Action, error) { return l.routes() }},
		{Name: "PostUp", Plan: fixed(hook("PostUp"))},
	}
	if l.stage != nil {
		stages = l.stage(stages)
	}
	return stages
}

func (l *lab) routes() ([]plan.Action, error) {
	// Under the global lock: a table and priorities that nobody has.
	l.world.mu.Lock()
	m := uint32(51821)
	// The table of one that is just going down is free before its last rule, table main's, is gone.
	things := strings.Join(slices.Collect(maps.Keys(l.world.things)), "\n")
	has := func(format string, n uint32) bool { return strings.Contains(things, fmt.Sprintf(format, n)) }
	for p := 2 * (m - 51800); has(" -> %d ", m) || has("rule 4 %d ", p) || has("rule 6 %d ", p); p += 2 {
		m++
	}
	value := l.world.sysctl[mark]
	l.world.mu.Unlock()
	steps, err := l.others()
	if err != nil {
		return nil, err
	}
	for _, s := range steps {
		if s, ok := s.(plan.Sysctl); ok {
			value = s.Value
		}
	}
	actions := []plan.Action{{Do: plan.FwMark{Link: l.name, Mark: m}}}
	for _, v6 := range []bool{false, true} {
		p := 2 * (m - 51800)
		for _, r := range []plan.Rule{
			{IPv6: v6, Priority: p + 1, NotFwMark: m, Table: m, SuppressPrefixLen: -1},
			{IPv6: v6, Priority: p, Table: plan.TableMain, SuppressPrefixLen: 0},
		} {
			d := r
			d.Delete = true
			actions = append(actions, plan.Action{Do: r, Undo: []plan.Step{d}})
		}
		to := "0.0.0.0/0"
		if v6 {
			to = "::/0"
		}
		actions = append(actions, plan.Action{Do: plan.Route{Link: l.name, Table: m, TableText: fmt.Sprint(m), List: pfx(to)}})
		if !v6 {
			actions = append(actions, plan.Action{Do: plan.Sysctl{Name: mark, Value: "1"}, Undo: []plan.Step{plan.Sysctl{Name: mark, Value: value}}})
		}
		actions = append(actions, plan.Action{
			Do:   plan.Nft{Link: l.name, IPv6: v6, Mark: m},
			Undo: []plan.Step{plan.Nft{Link: l.name, IPv6: v6, Delete: true}},
		})
	}
	return actions, nil
}

// isBefore checks that nothing of the tunnel is left, in the world or on disk.
func (l *lab) isBefore(format string, args ...any) {
	l.t.Helper()
	l.same(newWorld(), format, args...)
	if names, err := l.root.Names(); err != nil || len(names) != 0 {
		l.t.Fatalf(format+": journals left: %q, %v", append(args, names, err)...)
	}
	if _, err := os.Stat(filepath.Join(string(l.root), l.name)); !errors.Is(err, os.ErrNotExist) {
		l.t.Fatalf(format+": a folder is left: %v", append(args, err)...)
	}
}

func (l *lab) same(want *world, format string, args ...any) {
	l.t.Helper()
	if got, want := l.world.String(), want.String(); got != want {
		l.t.Fatalf(format+": the world is\n%s\nwant\n%s", append(args, got, want)...)
	}
}

// isUp checks that the tunnel is whole.
func (l *lab) isUp(format string, args ...any) {
	l.t.Helper()
	w := newLab(l.t)
	w.name, w.stage = l.name, l.stage
	if err, _ := w.up(context.Background()); err != nil {
		l.t.Fatal(err)
	}
	l.same(w.world, format, args...)
	j, err := l.root.Open(l.name)
	if err != nil || j.State() != journal.Complete {
		l.t.Fatalf(format+": the journal says %v, %v", append(args, j.State(), err)...)
	}
}

func (l *lab) mustUp() {
	l.t.Helper()
	if err, dead := l.with(nil).up(context.Background()); err != nil || dead {
		l.t.Fatalf("up: %v, killed: %v", err, dead)
	}
}

func (l *lab) mustDown() {
	l.t.Helper()
	if err, dead := l.with(nil).down(context.Background()); err != nil || dead {
		l.t.Fatalf("down: %v, killed: %v", err, dead)
	}
}
