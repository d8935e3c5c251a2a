package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/test/bed"
)

// TestResolvconf: a resolvconf that fails, is not there or hangs.
func TestResolvconf(t *testing.T) {
	w := newWorld(t)
	const sets, takes = "-a) cat >$RECORDS/$2 ;; ", "-d) : >$RECORDS/$2 ;; "
	for _, c := range []struct {
		name, up, down string // what it does for each; "" is that it is missing
		code           int
	}{
		{"fails", "-a) exit 3 ;; " + takes, "-d) exit 3 ;; ", 3},
		{"fails having done it", "-a) cat >$RECORDS/$2; exit 3 ;; " + takes, "-d) : >$RECORDS/$2; exit 3 ;; ", 3},
		{"is missing", "", "", 127},
	} {
		w.at("resolvconf", c.name, func(p *point) {
			p.resolvconf(c.up)
			p.want("up", p.Up("wg0"), c.code)
			p.clean("after up")
			p.Resolvconf(t, "bed")
			p.up()
			p.resolvconf(c.down)
			p.want("down", p.Down("wg0"), c.code)
			p.Resolvconf(t, "bed")
			p.rest()
		})
	}
	w.at("resolvconf", "fails always", func(p *point) {
		p.resolvconf("*) exit 3 ;; ")
		p.want("up", p.Up("wg0"), 3)
		if err := p.Routed("uplink"); err != nil {
			p.errorf("after up: %v", err)
		}
		// it is not in the way of a tunnel without DNS
		p.Config(t, "wg0", strings.Replace(bed.FullTunnel(0), "DNS = ", "#", 1))
		p.want("up without DNS", p.Up("wg0"), 0)
		if err := p.Routed("wg0"); err != nil {
			p.errorf("after up without DNS: %v", err)
		}
		p.down()
		p.Config(t, "wg0", bed.FullTunnel(0))
		p.Resolvconf(t, "bed")
	})
	for _, hang := range []string{"-a", "-d", "-?"} {
		w.at("resolvconf", hang+" hangs", func(p *point) {
			script := hang + ") echo hangs >>$HOOKS; exec sleep 1000 ;; " + sets + takes
			if hang != "-d" {
				p.resolvconf(script)
				p.interrupt("up", "hangs", syscall.SIGTERM)
				if hang == "-a" {
					p.clean("after up")
				}
			}
			p.Resolvconf(t, "bed")
			p.up()
			if hang != "-a" {
				p.resolvconf(script)
				p.Ran()
				p.interrupt("down", "hangs", syscall.SIGTERM)
				p.Resolvconf(t, "bed")
				p.rest()
			} else {
				p.down()
			}
		})
	}
	w.report()
}

// resolvconf is one with these cases of its first argument, or with "" none.
func (p *point) resolvconf(cases string) {
	p.t.Helper()
	if cases != "" {
		cases = "#!/bin/sh\ncase $1 in " + cases + "esac\n"
	}
	p.Resolvconf(p.t, cases)
}

// interrupt runs a command until a line is in the hooks' file, and sends it a
// signal. It must end in time, and as of the signal.
func (p *point) interrupt(command, line string, sig syscall.Signal) {
	p.t.Helper()
	c := p.start(command)
	if !bed.Wait(10*time.Second, func() bool { return p.wrote(line) }) {
		p.errorf("%s did not come to %s", command, line)
	}
	p.signal(c, command, sig)
}

func (p *point) start(command string, env ...string) *bed.Process {
	p.t.Helper()
	c, err := p.Start(env, p.Program, command, "wg0")
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

func (p *point) signal(c *bed.Process, command string, sig syscall.Signal) {
	p.t.Helper()
	c.Signal(sig)
	r := c.Wait()
	p.want(fmt.Sprintf("%s, %v", command, sig), r, 128+int(sig))
	p.quick(r)
}

func (p *point) wrote(line string) bool {
	text, _ := os.ReadFile(p.Hooks)
	return strings.Contains(string(text), line)
}

// TestHookFails: a hook's failure is the command's.
func TestHookFails(t *testing.T) {
	w := newWorld(t)
	for _, phase := range []string{"PreUp", "PostUp", "PreDown", "PostDown"} {
		w.at("failing hooks", phase, func(p *point) {
			p.Config(t, "wg0", strings.Replace(bed.FullTunnel(0), phase+" = ", phase+" = (exit 7) && ", 1))
			defer p.Config(t, "wg0", bed.FullTunnel(0))
			if strings.HasSuffix(phase, "Up") {
				p.want("up", p.Up("wg0"), 7)
				p.clean("after up")
				return
			}
			p.up()
			p.want("down", p.Down("wg0"), 7)
			if phase == "PreDown" {
				p.whole()
				p.Config(t, "wg0", bed.FullTunnel(0))
				p.down()
			}
			p.clean("after down")
		})
	}
	w.report()
}

// TestHookInterrupted: every process of a hook gets the signal within a second.
func TestHookInterrupted(t *testing.T) {
	w := newWorld(t)
	tree := `trap 'echo signalled >>"$HOOKS"; exit 1' INT TERM HUP; (trap - INT; sleep 1000 & sleep 1000) & sleep 1000 & echo begun >>"$HOOKS"; wait; `
	deaf := `trap '' INT TERM HUP; echo begun >>"$HOOKS"; sleep 1000; `
	for _, phase := range []string{"PreUp", "PostUp", "PreDown", "PostDown"} {
		for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
			for _, hook := range []string{tree, deaf} {
				if hook == deaf && sig != syscall.SIGTERM {
					continue
				}
				w.at("interrupted hooks", fmt.Sprintf("%v in %s", sig, phase), func(p *point) {
					command := "up"
					if strings.HasSuffix(phase, "Down") {
						p.up()
						command = "down"
					}
					p.Ran()
					p.Config(t, "wg0", strings.Replace(bed.FullTunnel(0), phase+" = ", phase+" = "+hook, 1))
					defer p.Config(t, "wg0", bed.FullTunnel(0))
					c := p.start(command)
					if !bed.Wait(10*time.Second, func() bool { return p.wrote("begun") }) {
						p.errorf("the hook did not begin")
					}
					c.Signal(sig)
					if hook == tree && !bed.Wait(time.Second, func() bool { return p.wrote("signalled") }) {
						p.errorf("the hook was not signalled in time")
					}
					r := c.Wait()
					p.quick(r)
					if hook == tree {
						p.want(command, r, 1, 128+int(sig))
					} else {
						p.want(command, r, 128+int(sig), 128+9)
					}
					if phase == "PreDown" {
						p.whole()
						p.Config(t, "wg0", bed.FullTunnel(0))
						p.down()
					}
					p.clean("after " + command) // of processes too
				})
			}
		}
	}
	w.report()
}

// TestLocks: whoever waits for a lock can be interrupted.
func TestLocks(t *testing.T) {
	w := newWorld(t)
	w.at("waiting for locks", "the interface's", func(p *point) {
		p.Config(t, "wg0", strings.Replace(bed.FullTunnel(0), "PreUp = ", `PreUp = echo begun >>"$HOOKS"; sleep 1000; `, 1))
		first := p.start("up")
		bed.Wait(10*time.Second, func() bool { return p.wrote("begun") })
		for _, command := range []string{"up", "down"} {
			c := p.start(command)
			time.Sleep(300 * time.Millisecond)
			p.signal(c, "waiting "+command, syscall.SIGTERM)
		}
		p.signal(first, "up", syscall.SIGINT)
		p.clean("after up")
		p.Config(t, "wg0", bed.FullTunnel(0))
	})
	w.at("waiting for locks", "the global one", func(p *point) {
		global := p.lock()
		c := p.start("up")
		time.Sleep(time.Second)
		p.signal(c, "up", syscall.SIGTERM)
		p.clean("after up")
		global.Close()
		p.up()
		global = p.lock()
		c = p.start("down")
		time.Sleep(time.Second)
		p.signal(c, "down", syscall.SIGTERM)
		global.Close()
		p.rest()
	})
	w.report()
}

// lock takes the global lock.
func (p *point) lock() *os.File {
	p.t.Helper()
	if err := os.MkdirAll(journals, 0o700); err != nil {
		p.t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(journals, "@lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return f
}

// TestResolving: a name that does not resolve for now is asked for again and
// again; a signal ends that.
func TestResolving(t *testing.T) {
	w := newWorld(t)
	if err := os.Remove("/etc/resolv.conf"); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, server := range []string{"192.0.2.1", "192.0.2.53"} { // refuses; does not answer
		for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
			w.at("resolving", fmt.Sprintf("%v with server %s", sig, server), func(p *point) {
				if err := os.WriteFile("/etc/resolv.conf", []byte("nameserver "+server+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
				p.Config(t, "wg0", strings.Replace(bed.FullTunnel(0), "Endpoint = 192.0.2.1:", "Endpoint = name.example:", 1))
				c := p.start("up", "WG_ENDPOINT_RESOLUTION_RETRIES=infinity")
				bed.Wait(10*time.Second, func() bool { return p.wrote("PreUp") })
				time.Sleep(500 * time.Millisecond)
				p.signal(c, "up", sig)
				p.clean("after up")
			})
		}
	}
	w.report()
}
