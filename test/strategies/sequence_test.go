package strategies

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"wg-quickns/test/bed"
	"wg-quickns/test/state"
)

// TestSequences does random things to a host with a tunnel and to one without, and
// compares them when the tunnel is down: nothing of it is left, and nothing is
// missing, whatever happened meanwhile.
func TestSequences(t *testing.T) {
	n, length := 2, 8
	if full {
		n, length = 100, 12
	}
	seed := uint64(time.Now().UnixNano())
	w := newWorld(t, "a", lan)
	w.serve()
	control := newWorld(t, "b", lan)
	w.config("wg1", "nobody", `[Interface]
PrivateKey = PRIVATE
Address = 10.77.0.2/24
RoutingStrategy = override
[Peer]
PublicKey = PUBLIC
AllowedIPs = 10.77.0.0/16, 198.18.0.0/15
Endpoint = 198.18.0.1:51999
`)
	for _, strategy := range strategies {
		for _, guarded := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s guard=%v", strategy, guarded), func(t *testing.T) {
				w.t, control.t = t, t
				w.client("RoutingStrategy = "+strategy, "0.0.0.0/0, ::/0", endpointOf(false))
				good := 0
				for i := range n {
					s := &sequence{w: w, control: control, r: rand.New(rand.NewPCG(seed, uint64(i))), guarded: guarded, linked: true}
					if s.run(length) {
						good++
						continue
					}
					t.Logf("seed %d, sequence %d: %s", seed, i, strings.Join(s.done, "; "))
					break // the next would begin with what this left
				}
				t.Logf("%d of %d sequences of %d leave what the events alone leave", good, n, length)
			})
		}
	}
	w.t, control.t = t, t
}

type sequence struct {
	w, control *world
	r          *rand.Rand
	guarded    bool
	guard      *process
	up, second bool
	linked     bool
	gateway    int // 0 or 1
	address    int
	done       []string
}

func (s *sequence) both(script string) {
	for _, w := range []*world{s.w, s.control} {
		w.host.Try("bash", "-c", script) // what fails on both is no matter
	}
}

// manage is what a network manager does after each change, where the link is up.
func (s *sequence) manage() string {
	if !s.linked {
		return ""
	}
	mine, other := []string{"7", "8"}[s.address], []string{"8", "7"}[s.address]
	return strings.NewReplacer("MINE", mine, "OTHER", other, "GW", fmt.Sprint(1+s.gateway)).Replace(`
		ip addr del 192.168.1.OTHER/24 dev eth0; ip addr add 192.168.1.MINE/24 dev eth0
		ip -6 addr del 2001:db8:1::OTHER/64 dev eth0; ip -6 addr add 2001:db8:1::MINE/64 dev eth0 nodad
		ip route replace default via 192.168.1.GW dev eth0 metric 100
		ip -6 route del default via 2001:db8:1::1 dev eth0 metric 100; ip -6 route del default via 2001:db8:1::2 dev eth0 metric 100
		ip -6 route add default via 2001:db8:1::GW dev eth0 metric 100`)
}

func (s *sequence) step() {
	what := []string{"up", "up", "down", "link", "address", "gateway", "second"}[s.r.IntN(7)]
	switch what {
	case "up":
		if s.up || !s.linked {
			return
		}
		s.w.up("wg0")
		s.up = true
		if s.guarded {
			s.guard = s.w.guard()
		}
	case "down":
		if !s.up {
			return
		}
		s.takeDown()
	case "link":
		s.linked = !s.linked
		s.both("ip link set eth0 " + map[bool]string{true: "up", false: "down"}[s.linked])
		s.both(s.manage())
	case "address":
		s.address = 1 - s.address
		s.both(s.manage())
	case "gateway":
		s.gateway = 1 - s.gateway
		s.both(s.manage())
	case "second":
		if s.second {
			s.w.down("wg1")
		} else {
			s.w.up("wg1")
		}
		s.second = !s.second
	}
	s.done = append(s.done, what)
	if s.guarded && s.up {
		if s.linked && !s.w.ping(world4, 3*bound) {
			s.w.t.Errorf("after %s: no answer through the tunnel\n%s\n%s", what, s.guard.text(), s.w.routes())
		}
	}
}

func (s *sequence) takeDown() {
	s.w.down("wg0")
	s.up = false
	if s.guard != nil {
		s.guard.end(syscall.SIGTERM)
		s.done = append(s.done, "(guard: "+strings.Join(strings.Split(strings.TrimSpace(s.guard.text()), "\n"), " | ")+")")
		s.guard = nil
	}
}

// run does so many steps, ends the tunnels and compares.
func (s *sequence) run(steps int) bool {
	for range steps {
		s.step()
	}
	if s.up {
		s.takeDown()
	}
	if s.second {
		s.w.down("wg1")
	}
	d := ""
	if !bed.Wait(time.Second, func() bool { d = state.Diff(s.control.take(), s.w.take()); return d == "" }) {
		s.w.t.Errorf("the state that the events alone give, and this:\n%s", d)
	}
	s.linked, s.address, s.gateway = true, 0, 0
	s.both("ip link set eth0 up; " + s.manage())
	return d == "" && !s.w.t.Failed()
}

// TestTwo has two tunnels with routes of their own, the second's endpoint inside the
// first, in each strategy.
func TestTwo(t *testing.T) {
	w := newWorld(t, "", lan)
	w.serve()
	w.config("srv1", "wg1", fmt.Sprintf(`[Interface]
PrivateKey = PRIVATE
ListenPort = %d
Address = 10.77.0.1/24
[Peer]
PublicKey = PUBLIC
AllowedIPs = 10.77.0.2/32
`, port+1))
	w.server.Run(w.program, "up", "srv1")
	t.Cleanup(func() { w.server.Run(w.program, "down", "srv1") })
	for i, first := range strategies {
		for j, second := range strategies {
			if !full && (i+j)%2 == 0 {
				continue
			}
			t.Run(first+" and "+second, func(t *testing.T) {
				w.t = t
				before := w.take()
				w.client("RoutingStrategy = "+first, "0.0.0.0/0", endpointOf(false))
				w.config("wg1", "srv1", fmt.Sprintf(`[Interface]
PrivateKey = PRIVATE
Address = 10.77.0.2/32
MTU = 1300
RoutingStrategy = %s
[Peer]
PublicKey = PUBLIC
AllowedIPs = 10.77.0.0/16, 10.9.0.0/16
Endpoint = %s:%d
`, second, inner4, port+1))
				w.up("wg0")
				w.up("wg1")
				for _, to := range []string{world4, "10.77.0.1"} {
					if !w.ping(to, 2*time.Second) {
						t.Errorf("no answer from %s\n%s", to, w.routes())
					}
				}
				w.down("wg0")
				w.down("wg1")
				if d := state.Diff(before, w.take()); d != "" {
					t.Errorf("left\n%s", d)
				}
			})
		}
	}
	w.t = t
}
