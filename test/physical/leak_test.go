//go:build !systemd

package physical

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"wg-quickns/test/bed"
	"wg-quickns/test/leak"
	"wg-quickns/test/ns"
)

// slow says that this is the lab, an emulated machine.
var slow = os.Getenv("WG_TEST_KERNEL") != ""

// trials is how often each thing happens.
func trials() int {
	if full() {
		return 20
	}
	return 1
}

func full() bool { return os.Getenv("WGQ_PHYSICAL_FULL") != "" }

const (
	// hold is how long each thing lasts.
	hold = 100 * time.Millisecond
	// held is the step behind which nothing leaves, home the one before which nothing does.
	held = "[#] ip link set dev uplink down"
	home = "link set dev uplink netns 1"
)

// leaky is a machine whose gateway is the tunnel's server, and looks at what comes.
type leaky struct {
	*world
	capture *leak.Capture
	probes  *leak.Probes
	leaked  map[string]int
	looks   map[string]int
	order   []string
	home    string // the step that brings the uplink home
	flap    func()
}

// newLeaky makes the machine; uplink, if there is one, gives it another uplink than veth.
func newLeaky(t *testing.T, uplink func(w *leaky)) *leaky {
	b, container := leak.Machine(t, "bed")
	w := &leaky{world: &world{Bed: b, t: t}, leaked: map[string]int{}, looks: map[string]int{}, home: home}
	w.flap = w.flapEthernet
	if uplink != nil {
		uplink(w)
	}
	w.capture = leak.Serve(t, b)
	w.tunnel("")
	w.probes = leak.Probe(t, w.NS, container)
	return w
}

// tunnel writes the config; keys are lines of [Interface].
func (w *leaky) tunnel(keys string) {
	leak.Tunnel(w.t, w.Bed, "RoutingStrategy = physical-netns\n"+keys, "0.0.0.0/0, ::/0")
}

// control checks that every kind of probe is seen at the gateway without the tunnel.
func (w *leaky) control() {
	w.t.Helper()
	w.capture.Forget()
	missing := func() []string {
		return slices.DeleteFunc(slices.Clone(w.probes.Kinds), func(kind string) bool { return w.capture.Count("probe "+kind) > 0 })
	}
	if !bed.Wait(30*time.Second, func() bool { return len(missing()) == 0 }) { // Wi-Fi takes its time
		w.t.Fatalf("with the tunnel down, probes do not reach the gateway: %q\n%s", missing(), w.NS.Try("bash", "-c", "ip addr show uplink; ip route; iw dev; ps ax").Stdout)
	}
}

// said is what a command wrote, each line with its time.
type said struct {
	code  int
	begin time.Time
	lines []string
	at    []time.Time
}

func (s said) String() string {
	return fmt.Sprintf("exit status %d\n%s", s.code, strings.Join(s.lines, "\n"))
}

// when is the time of the first line that begins so, or of the line after it.
func (s said) when(t *testing.T, text string, after int) time.Time {
	t.Helper()
	i := slices.IndexFunc(s.lines, func(l string) bool { return strings.HasPrefix(l, text) })
	if i < 0 || i+after >= len(s.lines) {
		t.Fatalf("no line %q: %v", text, s)
	}
	return s.at[i+after]
}

// says runs the program, perhaps with a fault.
func (w *leaky) says(fault string, argv ...string) said {
	w.t.Helper()
	program := w.Program
	if fault != "" {
		program = w.Faults
	}
	c := exec.Command(program, argv...)
	c.Env = append(os.Environ(), "RECORDS="+w.Records, "HOOKS="+w.Hooks, "WG_QUICKNS_FAULT="+fault)
	pipe, write, err := os.Pipe()
	if err != nil {
		w.t.Fatal(err)
	}
	c.Stderr = write
	s := said{begin: time.Now()}
	if err := w.NS.Do(c.Start); err != nil {
		w.t.Fatal(err)
	}
	write.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for r := bufio.NewScanner(pipe); r.Scan(); {
			s.at, s.lines = append(s.at, time.Now()), append(s.lines, r.Text())
		}
	}()
	_ = c.Wait()
	if s.code = c.ProcessState.ExitCode(); s.code < 0 {
		s.code = 128 + int(c.ProcessState.Sys().(syscall.WaitStatus).Signal())
	}
	// A DHCP client that it started keeps the pipe open.
	select {
	case <-done:
	case <-time.After(hold):
		pipe.SetReadDeadline(time.Now())
		<-done
	}
	pipe.Close()
	return s
}

// wants runs the program with no fault, to that exit status.
func (w *leaky) wants(code int, argv ...string) said {
	w.t.Helper()
	s := w.says("", argv...)
	if s.code != code {
		w.t.Fatalf("%q: want %d: %v", argv, code, s)
	}
	return s
}

// look says that nothing may have left in a time.
func (w *leaky) look(what string, from, to time.Time) {
	w.t.Helper()
	n, kinds := w.capture.Between(from, to)
	if n > 0 {
		w.t.Errorf("%s: %d packets left in the clear: %v", what, n, kinds)
	}
	if w.looks[what]++; w.looks[what] == 1 {
		w.order = append(w.order, what)
	}
	w.leaked[what] += n
}

// up brings the tunnel up, which nothing may pass from then on.
func (w *leaky) up() {
	w.t.Helper()
	s := w.wants(0, "up", "wg0")
	time.Sleep(hold)
	w.look("up", s.when(w.t, held, 1), time.Now())
}

// during looks while something is done, and for a while after.
func (w *leaky) during(what string, do func()) {
	w.t.Helper()
	start := time.Now()
	do()
	time.Sleep(hold)
	w.look(what, start, time.Now())
}

// down ends the tunnel: nothing may leave before the uplink begins its way home. A
// command is killed there, as that nothing leaves until then is for sure to be told.
func (w *leaky) down(what string, code int) {
	w.t.Helper()
	w.until(what, "down")
	w.wants(code, "down", "wg0")
}

func (w *leaky) until(what, command string) {
	w.t.Helper()
	s := w.says("kill-before:"+w.home, command, "wg0")
	if s.code != 128+9 || !strings.HasPrefix(s.lines[len(s.lines)-1], "[#] ") || !strings.HasSuffix(s.lines[len(s.lines)-1], w.home) {
		w.t.Fatalf("%s, killed before it goes home: %v", command, s)
	}
	from := s.begin
	if command == "up" {
		from = s.when(w.t, held, 1)
	}
	time.Sleep(hold)
	w.look(what, from, time.Now())
}

// works checks that the tunnel carries packets.
func (w *leaky) works() {
	w.t.Helper()
	for _, to := range []string{"10.77.0.1", "fd77::1"} {
		if r := w.NS.Try("ping", "-c1", "-w30", to); r.Code != 0 { // a lease takes its time, and a lost handshake is tried again after 5 s
			w.t.Errorf("ping %s: %s%s\n%s", to, r.Stdout, r.Stderr, w.away("addr")+w.away("route"))
		}
	}
}

func (w *leaky) report() {
	w.t.Helper()
	w.control()
	rate := w.probes.End()
	if rate < 1000 && !slow {
		w.t.Errorf("only %.0f probes a second", rate)
	}
	for _, what := range w.order {
		w.t.Logf("%s: %d times, %d packets left in the clear", what, w.looks[what], w.leaked[what])
	}
	w.t.Logf("%d probes, %.0f a second; what may leave: %v", w.probes.Sent.Load(), rate, w.capture.Let())
}

// flapEthernet takes the uplink down and up again, where it is and at the gateway.
func (w *leaky) flapEthernet() {
	w.away("link", "set", "uplink", "down")
	time.Sleep(hold / 2)
	ns.Run(w.t, "bash", "-ec", `ip -n physical link set uplink up
		ip -n physical route replace default via 192.0.2.1; ip -n physical addr replace 2001:db8::2/64 dev uplink nodad`)
	w.Far.Run("ip", "link", "set", "uplink", "down")
	time.Sleep(hold / 2)
	w.Far.Run("bash", "-ec", "ip link set uplink up; ip addr replace 2001:db8::1/64 dev uplink nodad; ip route replace 192.0.2.0/24 dev uplink src "+leak.Endpoint)
}

// inside leaves a process in the physical namespace.
func inside(t *testing.T) *exec.Cmd {
	sleep := exec.Command("ip", "netns", "exec", "physical", "sleep", "1000")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	bed.Sleeps(sleep)
	return sleep
}

// life is one trial of everything that may happen.
func (w *leaky) life(trial int) {
	w.t.Helper()
	w.control()
	w.up()
	w.during("steady", w.works)
	w.during("link flap", w.flap)
	w.during("reload", func() { w.wants(0, "reload", "wg0") })
	guard := w.guard()
	time.Sleep(hold)
	w.during("guard killed", func() { guard.Signal(syscall.SIGKILL); guard.Wait() })
	w.during("link flap without a guard", w.flap)
	if trial%2 > 0 {
		guard = w.guard()
		time.Sleep(hold)
	}
	w.during("interface deleted", func() { w.NS.Run("ip", "link", "del", "wg0") })
	w.NS.Run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "other")
	w.during("down refused, a name is taken", func() { w.wants(1, "down", "wg0") })
	w.NS.Run("ip", "link", "del", "uplink")
	w.down("down at last", 0)
	if trial%2 > 0 {
		guard.Wait()
	}

	w.control()
	w.up()
	sleep := inside(w.t)
	w.down("down refused, a process is held", 1)
	bed.End(sleep)
	w.wants(0, "down", "wg0")
}

// broken kills an up behind the step that nothing passes, and one that fails and goes back.
func (w *leaky) broken(steps []string, trial int) {
	w.t.Helper()
	first := 1 + slices.IndexFunc(steps, func(s string) bool { return strings.Contains(s, " hold ") })
	n := first + 1 + trial%(len(steps)-first)
	w.control()
	s := w.says(fmt.Sprintf("kill-before:%d", n), "up", "wg0")
	if s.code != 128+9 {
		w.t.Fatalf("up, killed at %d: %v", n, s)
	}
	time.Sleep(hold)
	w.look("up killed", s.at[len(s.at)-1], time.Now())
	if n > first+1 { // it has moved
		w.until("down after up was killed", "down")
	}
	w.wants(0, "down", "wg0")
	w.control()
	w.tunnel("PostUp = exit 7")
	w.until("up that fails, until it goes back", "up")
	w.tunnel("")
	w.wants(0, "down", "wg0")
}

// TestNothingLeaves: in captures at the gateway nothing comes in the clear from when the
// uplink is held until down, or an up that failed, brings it home. With WGQ_PHYSICAL_FULL=1
// each thing happens 20 times.
func TestNothingLeaves(t *testing.T) {
	newLeaky(t, nil).nothingLeaves()
}

func (w *leaky) nothingLeaves() {
	steps := w.Steps(w.t, "up", "wg0")
	w.wants(0, "down", "wg0")
	for i := range trials() {
		w.life(i)
		w.broken(steps, i)
	}
	w.report()
}

// TestUpAgain: an up that finds interfaces away brings them home and moves them again; nothing leaves meanwhile, and
// no kill switch is left where the config has none.
func TestUpAgain(t *testing.T) {
	w := newLeaky(t, nil)
	steps := w.Steps(t, "up", "wg0")
	w.wants(0, "down", "wg0")
	walls := w.NS.Run("nft", "list", "ruleset")
	for i := range trials() {
		w.control()
		w.up()
		w.during("up after the interface was deleted", func() { w.NS.Run("ip", "link", "del", "wg0"); w.wants(0, "up", "wg0") })
		w.works()
		w.down("down", 0)
		n := len(steps) - i%5
		if s := w.says(fmt.Sprintf("kill-before:%d", n), "up", "wg0"); s.code != 128+9 {
			t.Fatalf("up, killed at %d: %v", n, s)
		}
		w.during("up after up was killed", func() { w.wants(0, "up", "wg0") })
		w.works()
		if now := w.NS.Run("nft", "list", "ruleset"); now != walls {
			t.Errorf("the firewall was\n%s\nand is\n%s", walls, now)
		}
		w.down("down", 0)
	}
	w.report()
}

// TestPluggedIn: with a kill switch, an interface that is plugged in and configured at home is
// no way out either, though no guard moves it.
func TestPluggedIn(t *testing.T) {
	w := newLeaky(t, nil)
	for _, key := range []string{"", "KillSwitch = true"} {
		w.tunnel(key)
		w.control()
		w.wants(0, "up", "wg0")
		ns.Veth(w.NS, "late", []string{"198.51.100.2/24"}, w.Far, "late", []string{"198.51.100.1/24"})
		late := leak.Start(t, w.Far, "late")
		start := time.Now()
		w.NS.Run("ip", "route", "add", "203.0.113.0/24", "via", "198.51.100.1")
		time.Sleep(hold)
		if n, kinds := late.Between(start, time.Now()); (n > 0) != (key == "") {
			t.Errorf("%q: %d packets left in the clear: %v", key, n, kinds)
		}
		w.NS.Run("ip", "link", "del", "late")
		w.wants(0, "down", "wg0")
	}
	w.report()
}

// lease is an address that the uplink has of dnsmasq, by dhcpcd.
type lease struct {
	w      *leaky
	dir    string
	server *exec.Cmd
}

func (w *leaky) lease() *lease {
	l := &lease{w: w, dir: w.t.TempDir()}
	err := os.WriteFile(l.dir+"/dhcpcd.conf", []byte("duid\nnoarp\nnodelay\nnoipv6\nnoipv4ll\nscript /bin/true\noption classless_static_routes, static_routes, routers\n"), 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { bed.End(l.server) })
	return l
}

// serve starts the server, which gives these routes besides the default.
func (l *lease) serve(routes string) {
	l.w.t.Helper()
	if l.server != nil {
		bed.End(l.server)
	}
	l.server = l.w.Far.Cmd("dnsmasq", "-C", "/dev/null", "-d", "-R", "-h", "-p0", "-i", "uplink", "-z", "--dhcp-authoritative",
		"--dhcp-range=192.0.2.2,192.0.2.2,2m", "--dhcp-leasefile="+l.dir+"/leases", "--dhcp-option=3,192.0.2.1", "--dhcp-option=121,0.0.0.0/0,192.0.2.1"+routes)
	if err := l.server.Start(); err != nil {
		l.w.t.Fatal(err)
	}
}

// client runs dhcpcd where the uplink is.
func (l *lease) client(args ...string) {
	l.w.t.Helper()
	at := l.w.NS.Name
	if l.w.NS.Try("ip", "link", "show", "uplink").Code != 0 {
		at = "physical"
	}
	ns.Run(l.w.t, append([]string{"ip", "netns", "exec", at, "dhcpcd", "-4", "-q", "-f", l.dir + "/dhcpcd.conf"}, args...)...)
}

// end ends dhcpcd at home: 9.4 does not always end when it is told to, and one of its
// processes may start another meanwhile.
func (l *lease) end() {
	l.w.t.Helper()
	if !bed.Wait(10*time.Second, func() bool {
		left := false
		for _, pid := range strings.Fields(ns.Run(l.w.t, "ip", "netns", "pids", l.w.NS.Name)) {
			if comm, _ := os.ReadFile("/proc/" + pid + "/comm"); string(comm) == "dhcpcd\n" {
				_ = exec.Command("kill", "-9", pid).Run() // it may end with another of them
				left = true
			}
		}
		return !left
	}) {
		l.w.t.Error("dhcpcd does not end")
	}
}

// TestHostileDHCP: routes that a DHCP server gives (option 121, RFC 3442) lead nothing past
// the tunnel: they are in the physical namespace.
func TestHostileDHCP(t *testing.T) {
	w := newLeaky(t, nil)
	l := w.lease()
	for range trials() {
		l.serve("")
		w.NS.Run("bash", "-ec", "ip -4 addr flush dev uplink; ip addr replace 2001:db8::2/64 dev uplink nodad; ip -6 route replace default via 2001:db8::1")
		l.client("-w", "uplink")
		w.control()
		w.up()
		w.during("leased", w.works)
		l.serve(",203.0.113.0/24,192.0.2.1,0.0.0.0/1,192.0.2.1,128.0.0.0/1,192.0.2.1,10.77.0.0/24,192.0.2.1")
		w.during("renew with hostile routes", func() {
			l.client("-N", "uplink")
			if !bed.Wait(10*time.Second, func() bool { return strings.Contains(w.away("route"), "203.0.113.0/24 via 192.0.2.1") }) {
				t.Errorf("the client does not take the routes:\n%s", w.away("route"))
			}
			w.works()
		})
		w.down("down", 0)
		l.end()
		w.NS.Run("bash", "-ec", "ip link set uplink up; ip -4 addr flush dev uplink; ip addr replace 192.0.2.2/24 dev uplink; ip route replace default via 192.0.2.1")
	}
	w.NS.Run("bash", "-ec", "ip addr replace 2001:db8::2/64 dev uplink nodad; ip -6 route replace default via 2001:db8::1")
	w.report()
}
