package engine_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/engine"
	"wg-quickns/internal/journal"
	"wg-quickns/internal/plan"
)

var failures = []fault{fails, late}

func TestOneFailureInUp(t *testing.T) {
	eachLab(t, func(t *testing.T, newLab func(testing.TB) *lab) {
		n, _ := calls(t, newLab)
		for i := range n {
			for _, f := range failures {
				l := newLab(t)
				err, _ := l.with(map[int]fault{i: f}).up(t.Context())
				var step *plan.StepError
				if !errors.Is(err, errInjected) || !errors.As(err, &step) || errors.Is(err, engine.ErrLeft) {
					t.Fatalf("failure %d/%d: error %v", i, f, err)
				}
				l.isBefore("failure %d/%d", i, f)
				l.mustUp()
			}
		}
	})
}

func TestOneFailureInDown(t *testing.T) {
	eachLab(t, func(t *testing.T, newLab func(testing.TB) *lab) {
		_, n := calls(t, newLab)
		for i := range n {
			for _, f := range failures {
				l := newLab(t)
				l.mustUp()
				err, _ := l.with(map[int]fault{i: f}).down(t.Context())
				if !errors.Is(err, errInjected) {
					t.Fatalf("failure %d/%d: error %v", i, f, err)
				}
				if !errors.Is(err, engine.ErrLeft) { // what was asked only need not be answered
					l.isBefore("failure %d/%d", i, f)
				}
				l.mustDown()
				l.isBefore("failure %d/%d, then down", i, f)
			}
		}
	})
}

// A second failure may hit the rollback: what remains is in the journal then,
// and a later down or up finishes.
func TestTwoFailures(t *testing.T) {
	t.Parallel()
	eachLab(t, func(t *testing.T, newLab func(testing.TB) *lab) {
		n, _ := calls(t, newLab)
		left := 0
		for i := range n {
			for _, f := range failures {
				for _, f2 := range []fault{fails, late, killBefore, killAfter} {
					every := 1
					if newLab(t).stage != nil && os.Getenv("CRASH") != "all" { // it has many more calls
						every = 5
					}
					for k := i + 1; ; k += every {
						l := newLab(t)
						err, dead := l.with(map[int]fault{i: f, k: f2}).up(t.Context())
						if l.doer.n <= k {
							break
						}
						if !dead && !errors.Is(err, errInjected) {
							t.Fatalf("failures %d/%d, %d/%d: error %v", i, f, k, f2, err)
						}
						if !dead && !errors.Is(err, engine.ErrLeft) {
							l.isBefore("failures %d/%d, %d/%d", i, f, k, f2)
						}
						if errors.Is(err, engine.ErrLeft) {
							left++
							if names, _ := l.root.Names(); len(names) != 1 {
								t.Fatalf("failures %d/%d, %d/%d: no journal of what is left", i, f, k, f2)
							}
						}
						if k%4 == 0 {
							l.mustUp()
							l.isUp("failures %d/%d, %d/%d, then up", i, f, k, f2)
						}
						l.mustDown()
						l.isBefore("failures %d/%d, %d/%d, then down", i, f, k, f2)
					}
				}
			}
		}
		if left == 0 {
			t.Error("no case left anything: the test tests nothing")
		}
	})
}

// alone runs the test in a process of its own, as go test's process has files to
// write too. It is true in that one.
func alone(t *testing.T) bool {
	t.Helper()
	const env = "ENGINE_TEST_ALONE"
	if os.Getenv(env) != "" {
		return true
	}
	c := exec.Command("/proc/self/exe", "-test.v", "-test.run=^"+t.Name()+"$")
	c.Env = append(os.Environ(), env+"=1")
	if out, err := c.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// full makes the journal's folder as good as full: no file of this process grows
// beyond size.
func full(t testing.TB, size int64) (lift func()) {
	t.Helper()
	var old unix.Rlimit
	signal.Ignore(syscall.SIGXFSZ)
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: uint64(size), Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
			t.Fatal(err)
		}
	}
}

// No room for the journal, from any call on, for good or for one record, for
// none of it or a part.
func TestNoRoomForTheJournal(t *testing.T) {
	t.Parallel()
	if !alone(t) {
		return
	}
	up, down := calls(t, newLab)
	for _, dir := range []string{"up", "down"} {
		n := up
		if dir == "down" {
			n = down
		}
		for i := range n {
			for _, part := range []int64{0, 7} {
				for _, once := range []bool{false, true} {
					l := newLab(t)
					if dir == "down" {
						l.mustUp()
					}
					lift := func() {}
					at := func(k int, _ plan.Step) {
						if k == i {
							info, err := os.Stat(filepath.Join(string(l.root), "wg0", "journal"))
							if err != nil {
								t.Fatal(err)
							}
							lift = full(t, info.Size()+part)
						} else if once {
							lift()
						}
					}
					l.doer.before = at
					command := l.up
					if dir == "down" {
						command = l.down
					}
					l.with(nil)
					err, _ := command(t.Context())
					lift()
					l.doer.before = nil
					if err == nil && (!once || dir == "up") {
						t.Fatalf("%s, no room from %d on: no error", dir, i)
					}
					if err != nil && !errors.Is(err, unix.EFBIG) {
						t.Fatalf("%s, no room from %d on: %v", dir, i, err)
					}
					l.isBefore("%s, no room from %d on", dir, i)
				}
			}
		}
	}
}

// A journal that cannot be removed is an error, and harmless.
func TestJournalCannotBeRemoved(t *testing.T) {
	_, n := calls(t, newLab)
	l := newLab(t)
	l.mustUp()
	file := filepath.Join(string(l.root), "wg0", "journal")
	l.doer.before = func(i int, _ plan.Step) {
		if i == n-1 {
			os.Rename(file, file+".kept")
			os.MkdirAll(filepath.Join(file, "x"), 0o700)
		}
	}
	err, _ := l.with(nil).down(t.Context())
	if err == nil {
		t.Error("no error")
	}
	l.doer.before = nil
	l.same(newWorld(), "after down")
	os.RemoveAll(file)
	os.Rename(file+".kept", file)
	l.mustDown()
	l.isBefore("down again")
}

func TestGlobalLockFails(t *testing.T) {
	l := newLab(t)
	lock := filepath.Join(string(l.root), "@lock")
	if err := os.MkdirAll(lock, 0o700); err != nil {
		t.Fatal(err)
	}
	if err, _ := l.with(nil).up(t.Context()); !errors.Is(err, unix.EISDIR) {
		t.Errorf("up: %v", err)
	}
	l.isBefore("up without a lock")
	os.Remove(lock)
	l.mustUp()
	os.Remove(lock)
	os.Mkdir(lock, 0o700)
	if err, _ := l.with(nil).down(t.Context()); !errors.Is(err, unix.EISDIR) || !errors.Is(err, engine.ErrLeft) || !strings.Contains(err.Error(), "sysctl") {
		t.Errorf("down: %v", err)
	}
	if _, there := l.world.links["wg0"]; there {
		t.Error("down stopped at the first error")
	}
	os.Remove(lock)
	l.mustDown()
	l.isBefore("down with a lock again")
}

var errSignal = errors.New("terminated")

// ctx may end before and after each call, with calls that notice and calls that do not.
func TestCancelledUp(t *testing.T) {
	n, _ := calls(t, newLab)
	for i := range n {
		for _, when := range []string{"before", "after", "unnoticed"} {
			l := newLab(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			stop := func(k int, _ plan.Step) {
				if k == i {
					cancel(errSignal)
				}
			}
			switch when {
			case "before":
				l.doer.before = stop
			case "after":
				l.doer.after = stop
			case "unnoticed":
				l.doer.before = stop
				l.doer.Doer = deaf{l.world}
				l.stage = oneStage
			}
			err, _ := l.with(nil).up(ctx)
			if !errors.Is(err, errSignal) {
				t.Fatalf("cancelled %s %d: %v", when, i, err)
			}
			if i < n-1 && slices.Contains(l.trace, "echo PostUp") {
				t.Fatalf("cancelled %s %d: it went on:\n%s", when, i, strings.Join(l.trace, "\n"))
			}
			l.isBefore("cancelled %s %d", when, i)
			cancel(nil)
		}
	}
}

// oneStage makes one of all stages.
func oneStage(list []engine.Stage) []engine.Stage {
	return []engine.Stage{{Global: true, Plan: func(ctx context.Context) (all []plan.Action, err error) {
		for _, s := range list {
			actions, err := s.Plan(ctx)
			if err != nil {
				return nil, err
			}
			all = append(all, actions...)
		}
		return all, nil
	}}}
}

// deaf does what it is told even if nobody waits for it any more.
type deaf struct{ *world }

func (d deaf) Exists(_ context.Context, ns plan.NS, s plan.Step) (bool, error) {
	return d.world.Exists(context.Background(), ns, s)
}

func (d deaf) Do(_ context.Context, ns plan.NS, s plan.Step) (plan.Outcome, error) {
	return d.world.Do(context.Background(), ns, s)
}

// A signal does not leave half a tunnel: down finishes, and says that it was told to end.
func TestCancelledDown(t *testing.T) {
	_, n := calls(t, newLab)
	for i := range 2 * n {
		l := newLab(t)
		l.mustUp()
		ran := 0
		l.after = func(ctx context.Context) error {
			if ctx.Err() == nil {
				ran++
			}
			return ctx.Err()
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		stop := func(k int, _ plan.Step) {
			if k == i/2 {
				cancel(errSignal)
			}
		}
		if l.doer.before = stop; i%2 == 1 {
			l.doer.before, l.doer.after = nil, stop
		}
		err, _ := l.with(nil).down(ctx)
		if !errors.Is(err, errSignal) || errors.Is(err, engine.ErrLeft) || ran != 1 {
			t.Fatalf("cancelled at %d: %v; it ran what comes after %d times", i, err, ran)
		}
		l.isBefore("cancelled at %d", i)
		if err, _ := l.down(ctx); !errors.Is(err, errSignal) {
			t.Errorf("begun when cancelled already: %v", err)
		}
	}
}

// A hook, a name server or another's lock may take for ever: a signal ends the wait.
func TestCancelledStageAndLock(t *testing.T) {
	l := newLab(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	l.stage = func(s []engine.Stage) []engine.Stage {
		s[1].Plan = func(ctx context.Context) ([]plan.Action, error) {
			cancel(errSignal)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return s
	}
	if err, _ := l.with(nil).up(ctx); !errors.Is(err, errSignal) || !errors.Is(err, context.Canceled) {
		t.Errorf("stage: %v", err)
	}
	l.isBefore("stage")

	l.stage = nil
	other, err := l.root.Global(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithCancelCause(t.Context())
	time.AfterFunc(50*time.Millisecond, func() { cancel(errSignal) })
	if err, _ := l.with(nil).up(ctx); !errors.Is(err, errSignal) {
		t.Errorf("lock: %v", err)
	}
	l.isBefore("lock")
	other.Close()
}

// hanging hangs in some steps until it is told to end.
type hanging struct {
	*world
	in func(plan.Step) bool
}

func (h hanging) Do(ctx context.Context, ns plan.NS, s plan.Step) (plan.Outcome, error) {
	if h.in(s) {
		<-ctx.Done()
		return plan.Outcome{}, ctx.Err()
	}
	return h.world.Do(ctx, ns, s)
}

// A rollback ends within 4 s, and what hangs in it keeps nothing else from
// being undone. The time is synctest's.
func TestRollbackHasALimit(t *testing.T) {
	undoes := func(s plan.Step) bool {
		switch s := s.(type) {
		case plan.DNS:
			return s.Delete
		case plan.Link:
			return s.Delete
		case plan.Nft:
			return s.Delete
		case plan.Rule:
			return s.Delete
		case plan.Sysctl:
			return s.Value == "0"
		}
		return false
	}
	for _, c := range []struct {
		what  string
		in    func(plan.Step) bool
		least time.Duration
	}{
		{"dns", func(s plan.Step) bool { return undoes(s) && s.Kind() == plan.KindDNS }, 2 * time.Second},
		{"all", undoes, 3 * time.Second},
	} {
		for _, dir := range []string{"up", "down"} {
			l := newLab(t)
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(context.Background())
				var start time.Time
				command := l.up
				if dir == "up" {
					l.stage = func(s []engine.Stage) []engine.Stage {
						s[4].Plan = func(context.Context) ([]plan.Action, error) {
							start = time.Now()
							cancel(errSignal)
							return nil, errSignal
						}
						return s
					}
				} else {
					l.mustUp()
					l.doer.before = func(n int, _ plan.Step) {
						if n == 0 {
							start = time.Now()
							cancel(errSignal)
						}
					}
					command = l.down
				}
				l.doer.Doer = hanging{l.world, c.in}
				l.with(nil)
				err, _ := command(ctx)
				if d := time.Since(start); d > 4*time.Second || d < c.least {
					t.Errorf("%s, %s: took %v", c.what, dir, d)
				}
				if !errors.Is(err, errSignal) || !errors.Is(err, engine.ErrLeft) {
					t.Errorf("%s, %s: %v", c.what, dir, err)
				}
			})
			l.stage, l.doer.before, l.doer.Doer = nil, nil, l.world
			if c.what == "dns" {
				j, err := l.root.Open("wg0")
				if err != nil || len(j.Pending()) != 1 || j.Pending()[0].Do.Kind() != plan.KindDNS {
					t.Errorf("%s: pending %v, %v", dir, j.Pending(), err)
				}
			}
			l.mustDown()
			l.isBefore("%s, %s, down again", c.what, dir)
		}
	}
}

// The sysctl goes back when the last tunnel that needs it goes, whoever set it.
func TestSharedSysctl(t *testing.T) {
	for _, order := range [][2]string{{"wg0", "wg1"}, {"wg1", "wg0"}} {
		l := newLab(t)
		l.name = "wg0"
		l.mustUp()
		if !slices.Contains(l.trace, "sysctl -q "+mark+"=1") {
			t.Errorf("trace %q", l.trace)
		}
		l.name = "wg1"
		l.mustUp()
		if slices.Contains(l.trace, "sysctl -q "+mark+"=1") {
			t.Errorf("set though it was: %q", l.trace)
		}
		l.name = order[0]
		l.mustDown()
		if l.world.sysctl[mark] != "1" {
			t.Errorf("%s took it from the other", l.name)
		}
		l.name = order[1]
		l.mustDown()
		l.isBefore("order %q", order)
	}
}

// Two tunnels, one of them killed anywhere: the other keeps the sysctl until its end.
func TestSharedSysctlAndKill(t *testing.T) {
	n, _ := calls(t, newLab)
	for i := range n {
		for _, kill := range []fault{killBefore, killAfter} {
			l := newLab(t)
			l.with(map[int]fault{i: kill}).up(t.Context())
			l.name = "wg1"
			l.mustUp()
			l.name = "wg0"
			l.mustDown()
			if l.world.sysctl[mark] != "1" {
				t.Fatalf("killed at %d: it was taken from wg1", i)
			}
			l.name = "wg1"
			l.mustDown()
			l.isBefore("killed at %d", i)
		}
	}
}

func TestSysctlOfOthers(t *testing.T) {
	// The user's own 1 stays.
	l := newLab(t)
	l.world.sysctl[mark] = "1"
	before := l.world.clone()
	l.mustUp()
	l.mustDown()
	l.same(before, "it was 1 before")

	// What the user set since stays.
	l = newLab(t)
	l.mustUp()
	l.world.sysctl[mark] = "2"
	l.mustDown()
	if l.world.sysctl[mark] != "2" {
		t.Error("a later value was lost")
	}

	// Who else needs it cannot be read: that is no "nobody".
	l = newLab(t)
	l.mustUp()
	bad := filepath.Join(string(l.root), "wg1")
	os.MkdirAll(bad, 0o700)
	os.WriteFile(filepath.Join(bad, "journal"), []byte("garbage\n"), 0o600)
	if err, _ := l.with(nil).down(t.Context()); !errors.Is(err, engine.ErrLeft) || l.world.sysctl[mark] != "1" {
		t.Errorf("%v, now %s", err, l.world.sysctl[mark])
	}
	os.RemoveAll(bad)
	l.mustDown()
	l.isBefore("readable again")
}

// The sysctl is decided under the global lock, in whatever stage it is.
func TestGlobalLock(t *testing.T) {
	l := newLab(t)
	held := func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		lock, err := l.root.Global(ctx)
		if err != nil {
			return true
		}
		lock.Close()
		return false
	}
	var where []string
	note := func(what string) {
		if held() {
			where = append(where, what)
		}
	}
	l.doer.before = func(_ int, s plan.Step) { note(s.Kind()) }
	l.stage = func(list []engine.Stage) []engine.Stage {
		for i, s := range list {
			list[i].Plan = func(ctx context.Context) ([]plan.Action, error) { note(s.Name); return s.Plan(ctx) }
		}
		list[3].Global = false
		return list
	}
	l.mustUp()
	if want := []string{"sysctl", "sysctl"}; !slices.Equal(where, want) {
		t.Errorf("no global stage: held in %q, want %q", where, want)
	}
	where = nil
	l.mustDown()
	if want := []string{"sysctl", "sysctl"}; !slices.Equal(where, want) {
		t.Errorf("down: held in %q, want %q", where, want)
	}
	where = nil
	stage := l.stage
	l.stage = func(list []engine.Stage) []engine.Stage {
		list = stage(list)
		list[3].Global = true
		return list
	}
	l.mustUp()
	all := strings.Join(where, " ")
	if !strings.HasPrefix(all, "routes fwmark rule rule") || !strings.HasSuffix(all, "route nft") || strings.Contains(all, "hook") {
		t.Errorf("global stage: held in %q", all)
	}
	l.mustDown()
}

// What is there already is not taken for ours: up fails as ip(8) would, and
// what was there stays.
func TestWhatWasThereStays(t *testing.T) {
	for _, c := range []struct {
		what string
		put  func(*world)
		line string // the last line of the trace that does something
	}{
		{"link", func(w *world) { w.links["wg0"] = 5 }, "ip link add dev wg0 type wireguard"},
		{"rule", func(w *world) { w.things["rule 4 43 51821 -> 51821 suppress -1"] = "" }, ""},
		{"address", func(w *world) { w.things["addr wg0 fd00::1/64"] = "" }, "ip -6 address add fd00::1/64 dev wg0"},
	} {
		l := newLab(t)
		c.put(l.world)
		before := l.world.clone()
		err, _ := l.with(nil).up(t.Context())
		if c.what == "rule" { // its priority shifts the plan to the next table
			if err != nil {
				t.Errorf("rule: %v", err)
			}
			l.mustDown()
			l.same(before, c.what)
			continue
		}
		var step *plan.StepError
		if !errors.Is(err, unix.EEXIST) || !errors.As(err, &step) {
			t.Errorf("%s: %v", c.what, err)
		}
		l.same(before, c.what)
		if i := slices.Index(l.trace, c.line); i < 0 {
			t.Errorf("%s: trace %q", c.what, l.trace)
		}
	}
	// Somebody makes it between the question and the step.
	l, asked := newLab(t), false
	const theirs = "rule 6 43 51821 -> 51821 suppress -1"
	l.doer.before = func(_ int, s plan.Step) {
		if r, ok := s.(plan.Rule); ok && r.IPv6 && !r.Delete {
			if asked {
				l.world.things[theirs] = ""
			}
			asked = true
		}
	}
	err, _ := l.with(nil).up(t.Context())
	l.doer.before = nil
	if _, there := l.world.things[theirs]; !errors.Is(err, unix.EEXIST) || !there {
		t.Errorf("%v: what somebody else made was removed", err)
	}
	// A firewall that has lost its interface goes with the tunnel that takes it over.
	l = newLab(t)
	l.world.nft["ip6 wg-quick-wg0"] = 4
	l.mustUp()
	l.isUp("over a firewall")
	l.mustDown()
	l.isBefore("over a firewall")
}

// Undo is by identity: another's thing of the same name stays.
func TestReplacedByHand(t *testing.T) {
	l := newLab(t)
	l.mustUp()
	l.world.Do(t.Context(), "", plan.Link{Name: "wg0", Delete: true})
	l.world.Do(t.Context(), "", plan.Link{Name: "wg0"})
	l.world.Do(t.Context(), "", plan.Nft{Link: "wg0", Delete: true})
	l.world.Do(t.Context(), "", plan.Nft{Link: "wg0"})
	l.mustDown()
	if l.world.links["wg0"] == 0 || l.world.nft["ip wg-quick-wg0"] == 0 {
		t.Error("down removed what is somebody else's")
	}
	delete(l.world.links, "wg0")
	delete(l.world.nft, "ip wg-quick-wg0")
	l.isBefore("replaced by hand")
}

func TestTrace(t *testing.T) {
	l := newLab(t)
	l.mustUp()
	up := []string{
		"ip link add dev wg0 type wireguard",
		"echo PreUp",
		"wg addconf wg0 /dev/fd/63",
		"ip -4 address add 10.0.0.1/24 dev wg0",
		"ip -6 address add fd00::1/64 dev wg0",
		"ip link set mtu 1420 up dev wg0",
		"resolvconf -a wg0 -m 0 -x",
		"wg set wg0 fwmark 51821",
		"ip -4 rule add not fwmark 51821 table 51821",
		"ip -4 rule add table main suppress_prefixlength 0",
		"ip -4 route add 0.0.0.0/0 dev wg0 table 51821",
		"sysctl -q net.ipv4.conf.all.src_valid_mark=1",
		"nft -f /dev/fd/63",
		"ip -6 rule add not fwmark 51821 table 51821",
		"ip -6 rule add table main suppress_prefixlength 0",
		"ip -6 route add ::/0 dev wg0 table 51821",
		"nft -f /dev/fd/63",
		"echo PostUp",
	}
	equal(t, "up", l.trace, up)
	l.mustDown()
	down := []string{
		"ip -4 rule delete table 51821",
		"ip -4 rule delete table main suppress_prefixlength 0",
		"ip -6 rule delete table 51821",
		"ip -6 rule delete table main suppress_prefixlength 0",
		"ip link delete dev wg0",
		"resolvconf -d wg0 -f",
		"nft -f /dev/fd/63",
		"nft -f /dev/fd/63",
		"sysctl -q net.ipv4.conf.all.src_valid_mark=0",
	}
	equal(t, "down", l.trace, down)

	// A rollback takes off DNS and firewall first.
	n, _ := calls(t, newLab)
	l.with(map[int]fault{n - 1: fails}).up(t.Context())
	equal(t, "rollback", l.trace, append(slices.Clone(up),
		"resolvconf -d wg0 -f",
		"nft -f /dev/fd/63",
		"nft -f /dev/fd/63",
		"ip -4 rule delete table 51821",
		"ip -4 rule delete table main suppress_prefixlength 0",
		"ip -6 rule delete table 51821",
		"ip -6 rule delete table main suppress_prefixlength 0",
		"ip link delete dev wg0",
		"sysctl -q net.ipv4.conf.all.src_valid_mark=0",
	))
	l.isBefore("rollback")

	// No line speaks of what was gone already.
	l.mustUp()
	l.world.Do(t.Context(), "", plan.Link{Name: "wg0", Delete: true})
	l.world.Do(t.Context(), "", plan.Nft{Link: "wg0", Delete: true})
	l.world.Do(t.Context(), "", plan.Nft{Link: "wg0", IPv6: true, Delete: true})
	maps := l.world.things
	delete(maps, "rule 6 43 51821 -> 51821 suppress -1")
	l.world.sysctl[mark] = "0"
	l.mustDown()
	equal(t, "down of ruins", l.trace, []string{
		"ip -4 rule delete table 51821",
		"ip -4 rule delete table main suppress_prefixlength 0",
		"ip -6 rule delete table main suppress_prefixlength 0",
		"resolvconf -d wg0 -f",
	})
	l.isBefore("down of ruins")
}

// Of equal rank the newest is undone first, and an action's own steps in their order.
func TestUndoOrder(t *testing.T) {
	addr := func(a string, del bool) plan.Step {
		return plan.Addr{Link: "eth0", Delete: del, List: pfx(a)}
	}
	l := newLab(t)
	l.stage = func(s []engine.Stage) []engine.Stage {
		s[0].Plan = func(context.Context) ([]plan.Action, error) {
			return []plan.Action{
				{Do: addr("10.9.0.1/32", false), Undo: []plan.Step{addr("10.9.0.1/32", true)}},
				{Do: plan.Addr{Link: "eth0", List: pfx("10.9.0.2/32", "10.9.0.3/32")},
					Undo: []plan.Step{addr("10.9.0.2/32", true), addr("10.9.0.3/32", true)}},
				{Do: addr("10.9.0.4/32", false), Undo: []plan.Step{addr("10.9.0.4/32", true)}},
			}, nil
		}
		return s[:1]
	}
	l.mustUp()
	l.mustDown()
	var want []string
	for _, i := range []int{4, 2, 3, 1} {
		want = append(want, fmt.Sprintf("ip -4 address delete 10.9.0.%d/32 dev eth0", i))
	}
	equal(t, "down", l.trace, want)
	l.isBefore("down")
}

// What is left is said, one line a step, and kept.
func TestWhatIsLeftIsSaid(t *testing.T) {
	l := newLab(t)
	l.mustUp()
	l.doer.Doer = broken{l.world}
	err, _ := l.with(nil).down(t.Context())
	if !errors.Is(err, engine.ErrLeft) || !strings.HasSuffix(err.Error(), ": ip link delete dev wg0; resolvconf -d wg0 -f") {
		t.Errorf("error %v", err)
	}
	l.doer.Doer = l.world
	l.mustDown()
	l.isBefore("repaired")
}

// broken can neither delete links nor take DNS back.
type broken struct{ *world }

func (b broken) Do(ctx context.Context, ns plan.NS, s plan.Step) (plan.Outcome, error) {
	if k := s.Kind(); k == plan.KindLink || k == plan.KindDNS {
		return plan.Outcome{}, errInjected
	}
	return b.world.Do(ctx, ns, s)
}

func equal(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n%s\nwant:\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A failing batch is traced up to the one that failed; a kill shows what it reached.
func TestTraceOfAFailingBatch(t *testing.T) {
	l := newLab(t)
	l.world.things["addr wg0 fd00::1/64"] = ""
	delete(l.world.things, "addr wg0 fd00::2/64")
	l.stage = func(s []engine.Stage) []engine.Stage {
		s[2].Plan = func(context.Context) ([]plan.Action, error) {
			return []plan.Action{{Do: plan.Addr{Link: "wg0", List: pfx("10.0.0.1/24", "fd00::1/64", "fd00::2/64")}}}, nil
		}
		return s
	}
	err, _ := l.with(nil).up(t.Context())
	if !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "fd00::1/64") {
		t.Errorf("error %v", err)
	}
	equal(t, "trace", l.trace[3:5], []string{"ip -4 address add 10.0.0.1/24 dev wg0", "ip -6 address add fd00::1/64 dev wg0"})
	if strings.Contains(strings.Join(l.trace, "\n"), "fd00::2") {
		t.Errorf("trace %q", l.trace)
	}
}

func TestUpNeedsANewJournal(t *testing.T) {
	l := newLab(t)
	err, _ := l.command(t.Context(), func(e *engine.Engine, _ *journal.Journal) error { return e.Up(t.Context()) })
	if err == nil {
		t.Error("up without Begin")
	}
	l.mustUp()
	err, _ = l.command(t.Context(), func(e *engine.Engine, _ *journal.Journal) error { return e.Up(t.Context(), l.stages()...) })
	if err == nil {
		t.Error("up on a tunnel")
	}
	l.isUp("refused")
	err, _ = l.command(t.Context(), func(e *engine.Engine, _ *journal.Journal) error { return e.Recover(t.Context()) })
	if err != nil {
		t.Error(err)
	}
	l.isBefore("recover takes a whole tunnel off too")
}

// PostDown runs when all is undone and only in a down, again if that was killed.
func TestAfter(t *testing.T) {
	l := newLab(t)
	ran := 0
	l.after = func(context.Context) error {
		ran++
		if l.world.String() != newWorld().String() {
			t.Error("something is still there")
		}
		if names, _ := l.root.Names(); len(names) != 1 {
			t.Error("the journal is gone")
		}
		return nil
	}
	n, m := calls(t, newLab)
	l.with(map[int]fault{n - 1: fails}).up(t.Context())
	if ran != 0 {
		t.Error("it ran after a failed up")
	}
	l.mustUp()
	l.mustDown()
	if ran != 1 {
		t.Errorf("it ran %d times", ran)
	}
	l.mustUp()
	l.with(map[int]fault{m - 1: killAfter}).down(t.Context())
	if ran != 1 {
		t.Errorf("it ran %d times", ran)
	}
	l.mustDown()
	if ran != 2 {
		t.Errorf("it ran %d times", ran)
	}
	l.mustUp()
	l.after = func(context.Context) error { return errInjected }
	if err, _ := l.with(nil).down(t.Context()); !errors.Is(err, errInjected) || errors.Is(err, engine.ErrLeft) {
		t.Errorf("error %v", err)
	}
	l.isBefore("it failed")
}

// Twenty tunnels up and down at once, now and then killed: each finds the
// sysctl set while it is up, and nothing is left.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	first := newLab(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			l := &lab{t: t, root: first.root, world: first.world, name: fmt.Sprintf("wg%d", i), doer: &doer{Doer: first.world}}
			for round := range 8 {
				if round%3 == i%3 {
					l.with(map[int]fault{(i*7 + round*5) % 40: killAfter}).up(t.Context())
				}
				if err, _ := l.with(nil).up(t.Context()); err != nil && !strings.Contains(err.Error(), "not undone") {
					t.Errorf("%s: up: %v", l.name, err)
					return
				}
				if ok, _ := l.world.Exists(t.Context(), "", plan.Sysctl{Name: mark, Value: "1"}); !ok {
					t.Errorf("%s is up without the sysctl", l.name)
				}
				if err, _ := l.with(nil).down(t.Context()); err != nil {
					t.Errorf("%s: down: %v", l.name, err)
					return
				}
			}
		})
	}
	wg.Wait()
	first.isBefore("all down")
}
