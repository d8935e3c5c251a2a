package crash

import (
	"fmt"
	"strings"
	"testing"

	"wg-quickns/test/bed"
)

// TestMatrix breaks up and down of a full tunnel at every step, in every way.
func TestMatrix(t *testing.T) {
	w := newWorld(t)
	up, down := w.steps()
	w.run("killed up", func() { w.killedUp(up) })
	w.run("killed down", func() { w.killedDown(down) })
	w.run("interrupted up", func() { w.interruptedUp(up) })
	w.run("interrupted down", func() { w.interruptedDown(down) })
	w.run("failing up", func() { w.failingUp(up) })
	w.run("failing down", func() { w.failingDown(down) })
}

// steps lists what up and down do, and checks that nothing else changes.
func (w *world) steps() (up, down []string) {
	w.thorough(func() {
		up = w.Steps(w.t, "up", "wg0")
		w.at("up", func(p *point) { p.whole() })
		down = w.Steps(w.t, "down", "wg0")
		w.at("down", func(p *point) { p.clean("after down") })
	})
	w.count("up and down")
	w.t.Logf("%d steps of up, %d of down", len(up), len(down))
	if len(up) < 15 || len(down) < 10 || !strings.HasPrefix(down[0], "1 hook") || strings.Contains(down[begun], "hook") {
		w.t.Fatalf("too few steps:\n%s\n%s", strings.Join(up, "\n"), strings.Join(down, "\n"))
	}
	return up, down
}

// each calls do for every step and fault.
func (w *world) each(steps []string, modes []string, do func(p *point, fault string, step int)) {
	for i, step := range steps {
		for _, mode := range modes {
			fault := fmt.Sprintf("%s:%d", mode, i+1)
			w.at(fmt.Sprintf("%s of %d (%s)", fault, len(steps), step), func(p *point) { do(p, fault, i) })
		}
	}
}

// begun is the first step of down that undoes something: the one before is PreDown.
const begun = 1

var kills = []string{"kill-before", "kill-after"}

const killed = 128 + 9

// killedUp: down restores everything; or another up, without a down, works as
// if nothing had been.
func (w *world) killedUp(steps []string) {
	w.each(steps, kills, func(p *point, fault string, _ int) {
		p.want("up "+fault, p.Fault(fault, "up", "wg0"), killed)
		p.down()
	})
	w.count("up killed, then down: state equal")
	w.each(steps, kills, func(p *point, fault string, _ int) {
		p.want("up "+fault, p.Fault(fault, "up", "wg0"), killed)
		p.up()
		p.down()
	})
	w.count("up killed, then up: routed, and its down leaves nothing")
}

// killedDown: the next down restores the rest; or an up works.
func (w *world) killedDown(steps []string) {
	w.each(steps, kills, func(p *point, fault string, i int) {
		p.up()
		p.want("down "+fault, p.Fault(fault, "down", "wg0"), killed)
		p.down()
		p.ran("PostDown", true)
	})
	w.count("down killed, then down: state equal")
	w.each(steps, kills, func(p *point, fault string, i int) {
		p.up()
		p.want("down "+fault, p.Fault(fault, "down", "wg0"), killed)
		if i < begun {
			p.want("up", p.Up("wg0"), 1)
			p.whole()
		} else {
			p.up()
		}
		p.down()
	})
	w.count("down killed, then up: routed, and its down leaves nothing")
}

var signals = []struct {
	mode string
	n    int
}{{"int-before", 2}, {"term-after", 15}, {"hup-before", 1}}

// interruptedUp leaves nothing.
func (w *world) interruptedUp(steps []string) {
	for _, s := range signals {
		w.each(steps, []string{s.mode}, func(p *point, fault string, _ int) {
			r := p.Fault(fault, "up", "wg0")
			p.want("up "+fault, r, 128+s.n)
			p.quick(r)
			p.clean("after up")
		})
		w.count("up, " + s.mode + ": nothing left")
	}
}

// interruptedDown finishes, unless it has not begun.
func (w *world) interruptedDown(steps []string) {
	for _, s := range signals {
		w.each(steps, []string{s.mode}, func(p *point, fault string, i int) {
			p.up()
			r := p.Fault(fault, "down", "wg0")
			p.quick(r)
			switch {
			case i < begun:
				p.want("down "+fault, r, 128+s.n)
				p.whole()
				p.down()
			case i == len(steps)-1 && strings.HasSuffix(s.mode, "-after"): // too late
				p.want("down "+fault, r, 0, 128+s.n)
			default:
				p.want("down "+fault, r, 128+s.n)
			}
			p.clean("after down")
		})
		w.count("down, " + s.mode + ": nothing left")
	}
}

// quick checks that a command that got a signal ended soon.
func (p *point) quick(r bed.Result) {
	p.t.Helper()
	if r.Took > prompt {
		p.errorf("took %v", r.Took)
	}
}

// A step that fails is not done; one that lies is, and is reported failed.
var failures = []string{"fail", "lie"}

// failingUp leaves nothing.
func (w *world) failingUp(steps []string) {
	for _, mode := range failures {
		w.each(steps, []string{mode}, func(p *point, fault string, _ int) {
			p.want("up "+fault, p.Fault(fault, "up", "wg0"))
			p.clean("after up")
		})
		w.count("up, " + mode + ": non-zero, nothing left")
	}
}

// failingDown says so, and the next down does the rest.
func (w *world) failingDown(steps []string) {
	for _, mode := range failures {
		w.each(steps, []string{mode}, func(p *point, fault string, _ int) {
			p.up()
			p.want("down "+fault, p.Fault(fault, "down", "wg0"))
			p.rest()
		})
		w.count("down, " + mode + ": non-zero, nothing left after the next")
	}
}

// rest is a down after one that failed, which may have left nothing to do.
func (p *point) rest() {
	p.t.Helper()
	if r := p.Down("wg0"); p.want("down", r, 0, 1) && r.Code == 1 && !strings.Contains(r.Output, "`wg0' is not a WireGuard interface") {
		p.errorf("down: %v", r)
	}
	p.clean("after down")
}
