package killswitch

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/test/bed"
	"wg-quickns/test/leak"
	"wg-quickns/test/ns"
)

func TestMain(m *testing.M) { ns.Main(m) }

// world is a machine with a container that it routes for, and the gateway, which
// is the tunnel's server too and sees all that leaves.
type world struct {
	*bed.Bed
	t         *testing.T
	container *ns.NS
	capture   *leak.Capture
}

func newWorld(t *testing.T, name string) *world {
	b, container := leak.Machine(t, name)
	return &world{Bed: b, t: t, container: container, capture: leak.Serve(t, b)}
}

// config writes the machine's config; more are lines of [Interface].
func (w *world) config(more, allowed string) { leak.Tunnel(w.t, w.Bed, more, allowed) }

// line is one that a command wrote, with its time.
type line struct {
	at   time.Time
	text string
}

// run runs the program, and gives what it said and when.
func (w *world) run(argv ...string) []line {
	w.t.Helper()
	c := w.NS.Cmd(append([]string{w.Program}, argv...)...)
	c.Env = append(os.Environ(), "RECORDS="+w.Records, "HOOKS="+w.Hooks)
	pipe, err := c.StderrPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		w.t.Fatal(err)
	}
	var lines []line
	var text []string
	for s := bufio.NewScanner(pipe); s.Scan(); {
		lines = append(lines, line{time.Now(), s.Text()})
		text = append(text, s.Text())
	}
	if err := c.Wait(); err != nil {
		w.t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, strings.Join(text, "\n"))
	}
	return lines
}

func (l line) String() string { return l.text }

const (
	on  = "[#] nft -f /dev/fd/63 # kill switch on"
	off = "[#] nft -f /dev/fd/63 # kill switch off"
)

// find is the place of a line.
func find(t *testing.T, lines []line, text string) int {
	t.Helper()
	i := slices.IndexFunc(lines, func(l line) bool { return strings.Contains(l.text, text) })
	if i < 0 {
		t.Fatalf("no line %q in %q", text, lines)
	}
	return i
}

// up brings the tunnel up, and says from when on nothing may leave: when the step
// after the kill switch begins. That must be before the first address.
func (w *world) up() time.Time {
	w.t.Helper()
	lines := w.run("up", "wg0")
	i := find(w.t, lines, on)
	if find(w.t, lines, "address add") < i {
		w.t.Errorf("an address comes before the kill switch: %q", lines)
	}
	i += 1 + find(w.t, lines[i+1:], "[#] ")
	return lines[i].at
}

// undo takes the tunnel down but for the kill switch, which is the last of n steps:
// down is killed there. That nothing leaves until then is for sure to be told.
func (w *world) undo(n int) {
	w.t.Helper()
	if r := w.Fault(fmt.Sprintf("kill-before:%d", n), "down", "wg0"); r.Code != 128+9 || !strings.HasSuffix(r.Output, off+"\n") {
		w.t.Fatalf("down, killed before its step %d: %v", n, r)
	}
}

// down ends what is left.
func (w *world) down() {
	w.t.Helper()
	if r := w.Down("wg0"); r.Code != 0 {
		w.t.Fatalf("down: %v", r)
	}
}

// reset brings back the network that the machine had.
func (w *world) reset() {
	w.NS.Run("bash", "-c", `for f in -4 -6; do
			ip $f route flush table main
			ip $f rule show | grep -q 'lookup main$' || ip $f rule add table main pref 32766
		done
		ip addr flush dev uplink; ip addr flush dev box
		ip link set uplink down; ip link set uplink up; ip link set box down; ip link set box up
		ip addr add 192.0.2.2/24 dev uplink; ip addr add 2001:db8::2/64 dev uplink nodad
		ip addr add 10.99.0.1/24 dev box; ip addr add fd99::1/64 dev box nodad
		ip route add default via 192.0.2.1; ip -6 route add default via 2001:db8::1; true`)
}

// control checks that every kind of probe is seen at the gateway.
func (w *world) control(p *leak.Probes) {
	w.t.Helper()
	w.capture.Forget()
	missing := func() (list []string) {
		for _, kind := range p.Kinds {
			if w.capture.Count("probe "+kind) == 0 {
				list = append(list, kind)
			}
		}
		return list
	}
	if !bed.Wait(5*time.Second, func() bool { return len(missing()) == 0 }) {
		w.t.Fatalf("with the tunnel down, probes do not reach the gateway: %q", missing())
	}
}

// works checks that the tunnel carries packets.
func (w *world) works() {
	w.t.Helper()
	for _, to := range []string{"10.77.0.1", "fd77::1"} {
		// a lost handshake is tried again after 5 s
		if r := w.NS.Try("ping", "-c1", "-w15", to); r.Code != 0 {
			w.t.Errorf("ping %s: %s%s", to, r.Stdout, r.Stderr)
		}
	}
}

// phase is something that happens while the tunnel is up.
type phase struct {
	name string
	do   func(w *world)
}

func sh(script string) func(w *world) {
	return func(w *world) { w.NS.Run("bash", "-c", script+"\ntrue") }
}

var harmless = []phase{
	{"nothing", (*world).works},
	{"default routes put back", sh(`ip route add default via 192.0.2.1 metric 1; ip route prepend default via 192.0.2.1
		ip -6 route prepend default via 2001:db8::1 metric 1; ip -6 route add default via 2001:db8::1 metric 2`)},
	{"/1 routes by the gateway", sh(`for p in 0.0.0.0/1 128.0.0.0/1; do ip route replace $p via 192.0.2.1; done
		for p in ::/1 8000::/1; do ip -6 route replace $p via 2001:db8::1; done`)},
	{"rules flushed", sh(`for f in -4 -6; do ip $f rule flush; ip $f rule add table main pref 32766; done`)},
	{"routes flushed", sh(`ip route flush table main; ip -6 route flush table main
		ip route add 192.0.2.0/24 dev uplink; ip -6 route add 2001:db8::/64 dev uplink
		ip route add 10.99.0.0/24 dev box; ip -6 route add fd99::/64 dev box
		ip route add default via 192.0.2.1; ip -6 route add default via 2001:db8::1`)},
	{"link flap", sh(`ip link set uplink down; sleep 0.05; ip link set uplink up
		ip addr add 2001:db8::2/64 dev uplink nodad; ip route add default via 192.0.2.1; ip -6 route add default via 2001:db8::1`)},
}

var fatal = []phase{
	{"interface deleted", sh("ip link del wg0; ip route add default via 192.0.2.1; ip -6 route add default via 2001:db8::1")},
	{"daemon killed", func(w *world) { killDaemon(w) }},
}

// killDaemon kills the userspace daemon, where one serves the interface.
func killDaemon(w *world) {
	for _, pid := range strings.Fields(ns.Run(w.t, "ip", "netns", "pids", w.NS.Name)) {
		args, _ := os.ReadFile("/proc/" + pid + "/cmdline")
		if argv := strings.Split(string(args), "\x00"); strings.Contains(argv[0], "wg-quickns") && slices.Contains(argv, "wg0") {
			var n int
			fmt.Sscan(pid, &n)
			unix.Kill(n, syscall.SIGKILL)
			bed.Wait(5*time.Second, func() bool { return w.NS.Try("ip", "link", "show", "wg0").Code != 0 })
			return
		}
	}
	if w.NS.Try("bash", "-c", "ip -d link show wg0 | grep -q ' wireguard '").Code != 0 {
		w.t.Error("no daemon serves wg0, nor does the kernel")
	}
	w.NS.Run("ip", "link", "set", "wg0", "down") // the nearest thing to it
}

// hold is how long each phase lasts.
const hold = 100 * time.Millisecond

// slow says that this is the lab, an emulated machine.
var slow = os.Getenv("WG_TEST_KERNEL") != ""

func full() bool { return os.Getenv("WGQ_KILL_FULL") != "" }

func trials() int {
	if full() {
		return 50
	}
	return 1
}

// TestNothingLeaves: with the kill switch nothing leaves in the clear, in any
// strategy, whatever happens, from before the first address until down ends. With
// WGQ_KILL_FULL=1 each thing happens in 50 trials.
func TestNothingLeaves(t *testing.T) {
	for _, c := range []struct{ name, more, allowed string }{
		{"auto", "", "0.0.0.0/0, ::/0"},
		{"auto, IPv4 only", "", "0.0.0.0/0, fd77::/64"},
		{"split", "", "10.77.0.0/24, fd77::/64"},
		{"replace", "RoutingStrategy = replace", "0.0.0.0/0, ::/0"},
		{"override", "RoutingStrategy = override", "0.0.0.0/0, ::/0"},
		{"rules", "RoutingStrategy = rules", "0.0.0.0/0, ::/0"},
		{"no table", "Table = off", "0.0.0.0/0, ::/0"},
	} {
		if slow && !full() && c.more == "" && c.name != "auto" {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, "kill")
			w.config("KillSwitch = true\n"+c.more, c.allowed)
			p := leak.Probe(t, w.NS, w.container)
			leaked := make(map[string]int)
			var order []string
			w.up()
			steps := len(w.Steps(t, "down", "wg0"))
			look := func(name string, from, to time.Time) {
				n, kinds := w.capture.Between(from, to)
				if n > 0 {
					t.Errorf("%s: %d packets leaked: %v", name, n, kinds)
				}
				if !slices.Contains(order, name) {
					order = append(order, name)
				}
				leaked[name] += n
			}
			for range trials() {
				for i, f := range fatal {
					happens := []phase{f}
					if i == 0 {
						happens = append(slices.Clone(harmless), f)
					}
					w.reset()
					w.control(p)
					start := w.up()
					look("up", start, time.Now())
					for _, h := range happens {
						start = time.Now()
						h.do(w)
						time.Sleep(hold)
						look(h.name, start, time.Now())
					}
					start = time.Now()
					w.undo(steps)
					time.Sleep(hold)
					look("down, until the kill switch ends", start, time.Now())
					w.down()
				}
			}
			w.reset()
			w.control(p)
			rate := p.End()
			if rate < 1000 && (!slow || full()) {
				t.Errorf("only %.0f probes a second", rate)
			}
			for _, name := range order {
				t.Logf("%s: %d leaked", name, leaked[name])
			}
			t.Logf("%d trials, %d probes, %.0f a second", trials(), p.Sent.Load(), rate)
		})
	}
}
