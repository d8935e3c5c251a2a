package crash

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"wg-quickns/test/bed"
	"wg-quickns/test/ns"
	"wg-quickns/test/state"
)

func TestMain(m *testing.M) { ns.Main(m) }

// prompt is what a command may take to end after a signal.
const prompt = 5 * time.Second

// slow says that this is the lab, where a command takes half a second: what does
// not depend on the kernel is done less often there.
var slow = os.Getenv("WG_TEST_KERNEL") != ""

// world is a bed with its state at the start. A case that leaves something
// behind gets a new bed for those after it, so that each failure is its own.
type world struct {
	*bed.Bed
	tunnel func(w *world) // says what the tunnel is, in each new bed
	text   string         // its config
	home   string         // the namespace that it lives in, "" the bed
	resolv string         // where its DNS= is written, "" resolvconf
	there  *bed.Bed       // a namespace that it may change, beside the bed
	nft    int            // its lines of nft
	adds   map[string]int // lines of each section that it adds to the bed; nil: those of strategy auto
	few    int            // 0: each mode at each step, n: one mode, in turn, at each n-th step

	root   *testing.T // lives as long as the beds
	t      *testing.T // the part that runs
	before state.State
	beds   int
	away   bool // the tunnel takes the uplink away
	isUp   bool // the last case left the tunnel up
	kinds  []string
	cases  map[string]int
	failed map[string]int
}

func newWorld(t *testing.T) *world {
	return worldOf(t, func(w *world) { w.text = bed.FullTunnel(0) })
}

func worldOf(t *testing.T, tunnel func(w *world)) *world {
	w := &world{tunnel: tunnel, nft: 8, root: t, t: t, cases: map[string]int{}, failed: map[string]int{}}
	if slow && os.Getenv("CRASH") != "all" {
		w.few = 1
	}
	w.fresh()
	return w
}

// Take is the bed's state, and that of the other namespace with the tunnel's resolv.conf.
func (w *world) Take() (state.State, error) {
	s, err := w.Bed.Take()
	if err != nil || w.there == nil {
		return s, err
	}
	there, err := w.there.Take()
	if err != nil {
		return nil, err
	}
	for section, lines := range there {
		if section != "file" { // the same here
			s["there "+section] = lines
		}
	}
	text, err := os.ReadFile(w.resolv)
	s["there resolv.conf"] = []string{string(text)}
	return s, err
}

// run runs a part.
func (w *world) run(name string, do func()) {
	w.root.Run(name, func(t *testing.T) {
		w.t = t
		do()
		w.report()
	})
}

func (w *world) fresh() {
	if w.beds++; w.Bed != nil {
		w.Abandon()
	}
	w.isUp = false
	w.Bed = bed.New(w.root, fmt.Sprintf("crash%d", w.beds))
	w.tunnel(w)
	w.Config(w.t, "wg0", w.text)
	var err error
	if w.before, err = w.Take(); err != nil {
		w.t.Fatal(err)
	}
}

// thorough compares all there is with a function's effect on it, once: what the
// cheap snapshots do not show must not change either.
func (w *world) thorough(do func()) {
	take := func() state.State {
		// The kernel tells of a carrier up to a second late (net/core/link_watch.c).
		bed.Wait(5*time.Second, func() bool { return !strings.Contains(w.NS.Run("ip", "link"), "NO-CARRIER") })
		s, err := state.Take(w.NS)
		if err != nil {
			w.t.Fatal(err)
		}
		return s
	}
	before := take()
	do()
	if d := state.Diff(before.Without("file"), take().Without("file")); d != "" {
		w.t.Errorf("the whole state before and after:\n%s", d)
	}
}

// point is one case: one thing wrong, and what must come of it.
type point struct {
	*world
	name string
	said []string // what the commands said
	bad  bool
}

// at runs one case of a kind and counts it.
func (w *world) at(kind, name string, do func(p *point)) {
	p := &point{world: w, name: kind + ", " + name}
	w.Ran()
	do(p)
	if w.cases[kind]++; w.cases[kind] == 1 {
		w.kinds = append(w.kinds, kind)
	}
	if p.bad {
		w.failed[kind]++
		w.fresh()
	}
}

// report tells how many of the cases since the last call were good.
func (w *world) report() {
	w.t.Helper()
	for _, kind := range w.kinds {
		w.t.Logf("%s: %d of %d", kind, w.cases[kind]-w.failed[kind], w.cases[kind])
	}
	w.kinds = nil
	clear(w.cases)
	clear(w.failed)
}

func (p *point) errorf(format string, args ...any) {
	p.t.Helper()
	p.bad = true
	p.t.Errorf("%s: %s\n%s", p.name, fmt.Sprintf(format, args...), strings.Join(p.said, ""))
}

// want checks the exit status of a command; no codes means any but 0.
func (p *point) want(what string, r bed.Result, codes ...int) bool {
	p.t.Helper()
	p.said = append(p.said, fmt.Sprintf("--- %s: %v", what, r))
	ok := slices.Contains(codes, r.Code)
	if len(codes) == 0 {
		ok = r.Code != 0 && r.Code < 128+64
	}
	if !ok {
		p.errorf("%s: exit status %d, want %v", what, r.Code, codes)
	}
	return ok
}

// clean checks that nothing of the tunnel is there.
func (p *point) clean(when string) {
	p.t.Helper()
	var left string
	bed.Wait(2*time.Second, func() bool { // a process may still be ending
		now, err := p.Take()
		if err != nil {
			left = err.Error()
			return false
		}
		left = state.Diff(p.before, now)
		return left == ""
	})
	p.isUp = false
	if left != "" {
		p.errorf("%s: the state is not what it was:\n%s", when, left)
	}
}

// up brings the tunnel up, whatever was before, and checks that it is whole.
func (p *point) up() {
	p.t.Helper()
	p.Ran()
	p.want("up", p.Up("wg0"), 0)
	p.whole()
	p.isUp = true
}

// ready sees to it that the tunnel is up, as the last case may have left it.
func (p *point) ready() {
	p.t.Helper()
	if !p.isUp {
		p.up()
	}
	p.Ran()
}

// none sees to it that no tunnel is up.
func (p *point) none() {
	p.t.Helper()
	if p.isUp {
		p.down()
	}
	p.Ran()
}

// whole checks that the tunnel is up with nothing missing.
func (p *point) whole() {
	p.t.Helper()
	if p.home != "" {
		if err := p.atHome(); err != nil {
			p.errorf("%v", err)
		}
		return
	}
	if err := p.Routed("wg0"); err != nil {
		p.errorf("%v", err)
	}
	now, err := p.Take()
	if err != nil {
		p.errorf("%v", err)
	}
	adds := p.adds
	if adds == nil {
		adds = map[string]int{"link": 1, "addr": 2, "rule": 4, "nft": p.nft, "dns": 1, "sysctl": 1}
	} else if out, err := p.Out("192.0.2.1"); p.away && (err != nil || out != "wg0") {
		p.errorf("the gateway is reached by %q: %v", out, err)
	} else if !p.away && (err != nil || out != "uplink") {
		p.errorf("the endpoint is reached by %q: %v", out, err)
	}
	for section, most := range adds {
		if n := added(p.before, now, section); n != most {
			p.errorf("%d of %d lines of %s are there:\n%s", n, most, section, state.Diff(p.before, now))
		}
	}
}

// atHome is whole for a tunnel that lives in another namespace.
func (p *point) atHome() error {
	home, err := bed.Look(&ns.NS{Name: p.home})
	if err != nil {
		return err
	}
	defer home.Close()
	if err := home.Routed("wg0"); err != nil {
		return err
	}
	now, err := home.Take()
	if err != nil {
		return err
	}
	for _, line := range []string{"link wg0 ", "addr 10.0.0.2/24 ", "addr fd00::2/64 "} {
		if !strings.Contains(now.String(), line) {
			return fmt.Errorf("no %q in\n%v", line, now)
		}
	}
	text, err := os.ReadFile(p.resolv)
	if err == nil && string(text) != "nameserver 10.0.0.1\nnameserver fd00:0::1\nsearch example.com\n" {
		err = fmt.Errorf("resolv.conf is %q", text)
	}
	return err
}

// added counts the lines of a section that are new.
func added(before, now state.State, section string) (n int) {
	for _, line := range now[section] {
		if !slices.Contains(before[section], line) {
			n++
		}
	}
	return n
}

// down takes the tunnel down with nothing wrong; nothing is left then.
func (p *point) down() {
	p.t.Helper()
	p.want("down", p.Down("wg0"), 0)
	p.clean("after down")
}

// ran checks that a hook ran exactly, or with more, at least once.
func (p *point) ran(phase string, more bool) {
	p.t.Helper()
	n := 0
	hooks := p.Ran()
	for _, line := range hooks {
		if line == "wg0 "+phase {
			n++
		}
	}
	if n != 1 && (n == 0 || !more) {
		p.errorf("hook %s ran %d times: %q", phase, n, hooks)
	}
}
