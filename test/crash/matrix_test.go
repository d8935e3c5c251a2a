package crash

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"wg-quickns/test/bed"
)

// TestMatrix breaks up and down of a full tunnel at every step, in every way.
func TestMatrix(t *testing.T) { newWorld(t).matrix() }

func (w *world) matrix() {
	up, down := w.steps()
	w.run("killed", func() { w.killed(up, down) })
	w.run("interrupted up", func() { w.interruptedUp(up) })
	w.run("interrupted down", func() { w.interruptedDown(down) })
	w.run("failing up", func() { w.failingUp(up) })
	w.run("failing down", func() { w.failingDown(down) })
}

// TestKillSwitch breaks up and down of a full tunnel with a kill switch.
func TestKillSwitch(t *testing.T) {
	w := worldOf(t, func(w *world) {
		w.text = strings.Replace(bed.FullTunnel(0), "DNS = ", "KillSwitch = true\nDNS = ", 1)
		w.nft = 8 + 5 // two tables more, with three chains
	})
	if w.few > 0 {
		w.few = 4
	}
	up, down := w.steps()
	w.run("killed", func() { w.killed(up, down) })
	w.run("failing up", func() { w.failingUp(up) })
	w.run("failing down", func() { w.failingDown(down) })
}

// begun is the first step of down that undoes something: the one before is PreDown.
const begun = 1

// steps lists what up and down do, and checks that nothing else changes.
func (w *world) steps() (up, down []string) {
	w.thorough(func() {
		up = w.Steps(w.t, "up", "wg0")
		w.at("up", "whole", func(p *point) { p.whole() })
		down = w.Steps(w.t, "down", "wg0")
		w.at("down", "clean", func(p *point) { p.clean("after down") })
	})
	w.report()
	w.t.Logf("%d steps of up, %d of down", len(up), len(down))
	if least := 15; w.home == "" && w.adds == nil && len(up) < least || len(up) < least-7 || len(down) < len(up)/3 || !strings.HasPrefix(down[0], "1 hook") || strings.Contains(down[begun], "hook") {
		w.t.Fatalf("not the steps of a full tunnel:\n%s\n%s", strings.Join(up, "\n"), strings.Join(down, "\n"))
	}
	return up, down
}

// fault is one way to break a run at one step.
type fault struct {
	mode string
	step int // from 0
	name string
}

func (f fault) String() string { return fmt.Sprintf("%s:%d", f.mode, f.step+1) }

// faults lists every mode for every step, or few of them (see world).
func faults(steps []string, few int, modes ...string) (list []fault) {
	for i, step := range steps {
		for m, mode := range modes {
			if few == 0 || i%few == 0 && m == i/few%len(modes) {
				f := fault{mode: mode, step: i}
				f.name = fmt.Sprintf("%v of %d (%s)", f, len(steps), step)
				list = append(list, f)
			}
		}
	}
	return list
}

// breaks runs a command with a fault.
func (p *point) breaks(f fault, command string, codes ...int) bed.Result {
	p.t.Helper()
	r := p.Fault(f.String(), command, "wg0")
	p.isUp = false
	p.want(command+" "+f.String(), r, codes...)
	return r
}

const killed = 128 + 9

// killed kills up and down at every step. Then down restores everything; or up
// works, without a down, as if nothing had been, and what follows starts from there.
func (w *world) killed(up, down []string) {
	downs := faults(down, w.few, "kill-before", "kill-after")
	for i, f := range faults(up, w.few, "kill-before", "kill-after") {
		w.at("up killed, then down: state equal", f.name, func(p *point) {
			p.none()
			p.breaks(f, "up", killed)
			p.down()
		})
		w.at("up killed, then up: routed", f.name, func(p *point) {
			p.breaks(f, "up", killed)
			p.up()
		})
		if i >= len(downs) {
			continue
		}
		f := downs[i]
		w.at("down killed, then up: routed", f.name, func(p *point) {
			p.ready()
			p.breaks(f, "down", killed)
			if f.step < begun {
				p.want("up", p.Up("wg0"), 1)
				p.whole()
				p.isUp = true
				return
			}
			p.up()
		})
		w.at("down killed, then down: state equal", f.name, func(p *point) {
			p.ready()
			p.breaks(f, "down", killed)
			p.down()
			p.ran("PostDown", true)
		})
	}
	w.at("the last up, then down: state equal", "", func(p *point) {
		p.ready()
		p.down()
	})
}

// anytime kills up, and down, at moments spread over the time that they take,
// between the system calls of a step too.
func (w *world) anytime(n int) {
	for _, command := range []string{"up", "down"} {
		var took time.Duration
		for i := range n {
			w.at(command+" killed at any time, then down: state equal", fmt.Sprintf("%d of %d", i, n), func(p *point) {
				if command == "down" {
					p.ready()
				} else {
					p.none()
				}
				start := time.Now()
				c := p.start(command)
				if took == 0 { // how long a whole one is
					p.want(command, c.Wait(), 0)
					took = time.Since(start)
				} else {
					time.Sleep(took * time.Duration(i) / time.Duration(n))
					c.Signal(syscall.SIGKILL)
					p.want(command, c.Wait(), killed, 0)
				}
				p.isUp = false
				p.rest()
			})
		}
	}
}

var (
	signals = []string{"int-before", "term-after", "hup-before"}
	status  = map[string]int{"int-before": 128 + 2, "term-after": 128 + 15, "hup-before": 128 + 1}
)

// interruptedUp leaves nothing.
func (w *world) interruptedUp(steps []string) {
	for _, f := range faults(steps, w.few, signals...) {
		w.at("up, "+f.mode+": nothing left", f.name, func(p *point) {
			p.quick(p.breaks(f, "up", status[f.mode]))
			p.clean("after up")
		})
	}
}

// interruptedDown finishes, unless it has not begun.
func (w *world) interruptedDown(steps []string) {
	for _, f := range faults(steps, w.few, signals...) {
		w.at("down, "+f.mode+": nothing left", f.name, func(p *point) {
			p.ready()
			codes := []int{status[f.mode]}
			if f.step == len(steps)-1 && strings.HasSuffix(f.mode, "-after") { // too late
				codes = append(codes, 0)
			}
			p.quick(p.breaks(f, "down", codes...))
			if f.step < begun {
				p.whole()
				p.down()
			}
			p.clean("after down")
			if !strings.Contains(f.name, " hook ") {
				p.ran("PostDown", false)
			}
		})
	}
}

// quick checks that a command that got a signal ended soon.
func (p *point) quick(r bed.Result) {
	p.t.Helper()
	if r.Took > prompt {
		p.errorf("took %v", r.Took)
	}
}

// failingUp leaves nothing. A step that fails is not done; one that lies is, and
// is reported failed.
func (w *world) failingUp(steps []string) {
	for _, f := range faults(steps, w.few, "fail", "lie") {
		w.at("up, "+f.mode+": non-zero, nothing left", f.name, func(p *point) {
			p.breaks(f, "up")
			p.clean("after up")
		})
	}
}

// failingDown says so, and the next down does the rest.
func (w *world) failingDown(steps []string) {
	for _, f := range faults(steps, w.few, "fail", "lie") {
		w.at("down, "+f.mode+": non-zero, nothing left after the next", f.name, func(p *point) {
			p.ready()
			p.breaks(f, "down")
			p.rest()
			if !strings.Contains(f.name, " hook ") {
				p.ran("PostDown", true)
			}
		})
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
