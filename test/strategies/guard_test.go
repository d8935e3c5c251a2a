package strategies

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"wg-quickns/test/bed"
	"wg-quickns/test/state"
)

// breaks undoes what each strategy lives by, in IPv4.
var breaks = map[string]string{
	"auto":     "ip -4 rule flush; ip -4 rule add table main pref 32766 protocol kernel; ip -4 rule add table default pref 32767 protocol kernel; nft delete table ip wg-quick-wg0",
	"replace":  "ip route del 198.51.100.1; ip route replace default via 192.168.1.1",
	"override": "ip route del 198.51.100.1; ip route del 0.0.0.0/1; ip route del 128.0.0.0/1",
	"rules":    "ip -4 rule flush; ip -4 rule add table main pref 32766 protocol kernel; ip -4 rule add table default pref 32767 protocol kernel; ip route flush table 80",
}

// TestGuardLives: what is undone while the guard runs, is dead, or sleeps; then the
// end of the tunnel.
func TestGuardLives(t *testing.T) {
	w := newWorld(t, "", lan)
	w.serve()
	var took times
	for _, strategy := range strategies {
		t.Run(strategy, func(t *testing.T) {
			w.t = t
			before := w.take()
			w.client("RoutingStrategy = "+strategy, "0.0.0.0/0", endpointOf(false))
			w.up("wg0")
			if !bed.Wait(5*time.Second, func() bool { return !strings.Contains(w.host.Run("ip", "-6", "addr"), "tentative") }) {
				t.Error("duplicate address detection does not end")
			}
			whole := w.take()
			guard := w.guard()
			defer func() {
				if t.Failed() {
					t.Logf("the guard said\n%s\n%s", guard.text(), w.routes())
				}
			}()
			right := func(what string, within time.Duration) {
				t.Helper()
				if !bed.Wait(within, func() bool { return state.Diff(whole, w.take()) == "" }) {
					t.Errorf("%s: after %v\n%s", what, within, state.Diff(whole, w.take()))
				}
				if !w.ping(world4, 3*bound) {
					t.Errorf("%s: no answer through the tunnel", what)
				}
			}
			rounds, pause := 3, time.Second
			if full {
				rounds, pause = 50, 2500*time.Millisecond
			}
			watch := w.watch(strategy, false)
			for range rounds {
				w.host.Run("bash", "-ec", breaks[strategy])
				took = append(took, watch.settle(t, 100*time.Millisecond))
				w.host.Run("ip", "link", "set", "wg0", "down")
				took = append(took, watch.settle(t, 100*time.Millisecond))
				time.Sleep(pause) // or it is a fight
			}
			watch.end()
			right("undone", 3*bound)

			guard.end(syscall.SIGKILL)
			w.host.Run("bash", "-ec", breaks[strategy])
			guard = w.guard()
			right("undone while no guard ran", 3*bound)

			guard.cmd.Process.Signal(syscall.SIGSTOP)
			w.host.Run("bash", "-ec", breaks[strategy])
			time.Sleep(300 * time.Millisecond)
			guard.cmd.Process.Signal(syscall.SIGCONT)
			right("undone while the guard slept", 3*bound)

			w.host.Run("ip", "link", "del", "wg0")
			if !bed.Wait(5*time.Second, func() bool { return strings.Contains(guard.text(), "is gone: cleaning up") }) {
				t.Error("the guard does not notice that the interface is gone")
			}
			guard.cmd.Wait()
			if strategy == "replace" { // what breaks made in the tunnel's place has come back
				w.host.Run("ip", "route", "del", "default")
			}
			if code := guard.cmd.ProcessState.ExitCode(); code != 0 {
				t.Errorf("the guard ended with %d", code)
			}
			if d := state.Diff(before, w.take()); d != "" {
				t.Errorf("left when the interface was gone\n%s", d)
			}

			w.up("wg0")
			guard = w.guard()
			w.down("wg0")
			if !bed.Wait(5*time.Second, func() bool { return strings.Contains(guard.text(), "is down: nothing is left to guard") }) {
				t.Error("the guard does not end with its tunnel")
			}
			if r := w.host.Try(w.program, "guard", "wg0"); r.Code != 1 || !strings.Contains(r.Stderr, "there is nothing to guard") {
				t.Errorf("guard of nothing: %+v", r)
			}
		})
	}
	w.t = t
	took.report(t, "undone")
}

// TestUnit: the guard of a unit guards what was taken down by hand and is up again, and
// says that it is down when it stays so.
func TestUnit(t *testing.T) {
	w := newWorld(t, "", lan)
	w.serve()
	w.client("RoutingStrategy = override", "0.0.0.0/0", endpointOf(false))
	w.up("wg0")
	guard := w.guard("--unit")
	for range 2 {
		w.down("wg0")
		time.Sleep(time.Second)
		w.up("wg0")
	}
	w.host.Run("ip", "route", "del", "0.0.0.0/1", "dev", "wg0")
	if !bed.Wait(5*time.Second, func() bool { return strings.Contains(w.host.Run("ip", "route"), "0.0.0.0/1 dev wg0") }) {
		t.Errorf("what is up again is not guarded:\n%s", guard.text())
	}
	w.down("wg0")
	guard.cmd.Wait()
	if code := guard.cmd.ProcessState.ExitCode(); code != 3 || !strings.Contains(guard.text(), "is down: nothing is left to guard") {
		t.Errorf("the guard ended with %d:\n%s", code, guard.text())
	}
}

// TestFight: against who undoes the same thing in a loop the guard gives up, and says so.
func TestFight(t *testing.T) {
	w := newWorld(t, "", lan)
	w.client("RoutingStrategy = override", "0.0.0.0/0", endpointOf(false))
	w.up("wg0")
	guard := w.guard()
	foe := start(t, w.host, "bash", "-c", "while sleep 0.02; do ip route del 198.51.100.1 2>/dev/null; done")
	if !bed.Wait(30*time.Second, func() bool { return strings.Contains(guard.text(), "undoes this again and again") }) {
		t.Error("the guard does not say that somebody undoes its work")
	}
	time.Sleep(time.Second)
	foe.end(syscall.SIGKILL)
	if n := strings.Count(guard.text(), "ip -4 route add 198.51.100.1/32"); n < 3 || n > 12 {
		t.Errorf("%d repairs:\n%s", n, guard.text())
	}
	w.down("wg0")
	guard.end(syscall.SIGTERM)
}

// TestIdle: a guard with nothing to do takes no CPU and little memory.
func TestIdle(t *testing.T) {
	w := newWorld(t, "", lan)
	w.serve()
	ticks := func(p *process) (n int) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		fields := strings.Fields(string(text[strings.LastIndex(string(text), ")")+1:]))
		for _, f := range fields[11:13] { // utime and stime, proc(5)
			v, _ := strconv.Atoi(f)
			n += v
		}
		return n
	}
	for i, strategy := range strategies {
		if !full && i%2 == 1 {
			continue
		}
		t.Run(strategy, func(t *testing.T) {
			w.t = t
			w.client("RoutingStrategy = "+strategy, "0.0.0.0/0", endpointOf(false))
			w.up("wg0")
			guard := w.guard()
			time.Sleep(time.Second)
			for range 20 { // it has worked
				w.host.Run("ip", "addr", "add", "10.99.0.1/32", "dev", "lo")
				w.host.Run("ip", "addr", "del", "10.99.0.1/32", "dev", "lo")
			}
			time.Sleep(2 * time.Second)
			from := ticks(guard)
			time.Sleep(10 * time.Second)
			used := ticks(guard) - from
			status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", guard.cmd.Process.Pid))
			_, rest, _ := strings.Cut(string(status), "VmRSS:")
			kib, _ := strconv.Atoi(strings.Fields(rest)[0])
			t.Logf("%d ticks of 10 ms in 10 s, %d KiB", used, kib)
			if strategy == "auto" && used > 0 || used > 3 || kib > 20<<10 {
				t.Error("too much")
			}
			w.down("wg0")
			guard.end(syscall.SIGTERM)
		})
	}
	w.t = t
}

// TestLinkFlap takes eth0 down and up again; who configured it does so again.
func TestLinkFlap(t *testing.T) {
	rounds := 2
	if full {
		rounds = 50
	}
	w := newWorld(t, "", lan)
	w.serve()
	for _, v6 := range []bool{false, true} {
		w.anew()
		var took times
		for _, strategy := range strategies {
			t.Run(fmt.Sprintf("%s v6=%v", strategy, v6), func(t *testing.T) {
				w.t = t
				allowed, to := "0.0.0.0/0", world4
				if v6 {
					allowed, to = "::/0", world6
				}
				w.client("RoutingStrategy = "+strategy, allowed, endpointOf(v6))
				before := w.take()
				w.up("wg0")
				guard := w.guard()
				if !w.ping(to, 10*time.Second) { // a handshake that a flap loses is tried again after 5 s only
					t.Errorf("no answer before the first flap\n%s", w.routes())
				}
				watch := w.watch(strategy, v6)
				for i := range rounds {
					w.host.Run("ip", "link", "set", "eth0", "down")
					if i%2 == 1 {
						time.Sleep(300 * time.Millisecond)
					}
					w.host.Run("ip", "link", "set", "eth0", "up")
					w.host.Run("bash", "-c", again)
					took = append(took, watch.settle(t, 300*time.Millisecond))
					if !w.ping(to, 3*bound) {
						t.Errorf("no answer through the tunnel\n%s\n%s", guard.text(), w.routes())
					}
					if full {
						time.Sleep(time.Second) // or it is a fight
					}
				}
				watch.end()
				w.down("wg0")
				guard.end(syscall.SIGTERM)
				if d := state.Diff(before, w.take()); d != "" {
					t.Errorf("left\n%s\n%s", d, guard.text())
				}
			})
		}
		w.t = t
		took.report(t, fmt.Sprintf("link flap, v6=%v", v6))
	}
}

// again is what a network manager does when a link is up: what is missing comes back.
const again = `ip addr add 192.168.1.7/24 dev eth0 2>/dev/null
	ip -6 addr add 2001:db8:1::7/64 dev eth0 nodad 2>/dev/null
	ip route replace default via 192.168.1.1 dev eth0 metric 100
	ip -6 route replace default via 2001:db8:1::1 dev eth0 metric 100; true`

// TestNames: the name of an endpoint leads elsewhere. A peer that never answered is
// looked up at once; one that did only after 135 s, which the full test waits for.
func TestNames(t *testing.T) {
	w := newWorld(t, "", lan)
	w.serve()
	write(t, "/etc/resolv.conf", "nameserver 192.168.1.1\noptions timeout:1 attempts:1\n", 0o644)
	name := func(addr string) *process { return w.nameServer([]string{"vpn.test," + addr}) }
	for i, strategy := range strategies {
		if !full && i%2 == 1 {
			continue
		}
		t.Run(strategy, func(t *testing.T) {
			w.t = t
			server := name("198.51.100.77")
			keys := "RoutingStrategy = " + strategy
			if strategy == "rules" { // the name server must be reached beside the tunnel: table main is asked last
				keys += "\nPostUp = ip rule add to 192.168.1.0/24 table main pref 29\nPostDown = ip rule del pref 29"
			}
			w.client(keys, "0.0.0.0/0", fmt.Sprintf("vpn.test:%d", port))
			w.up("wg0")
			guard := w.guard()
			time.Sleep(time.Second)
			server.end(syscall.SIGTERM)
			server = name(endpoint4)
			begin := time.Now()
			if !w.ping(world4, 10*time.Second) {
				t.Errorf("not back: %s\n%s", guard.text(), w.routes())
			}
			t.Logf("a peer that never answered: back after %v", time.Since(begin).Round(time.Millisecond))
			if full {
				// as behind NAT: the server cannot speak first from where it is now
				w.gw.Run("nft", `add table inet nat; add chain inet nat new { type filter hook forward priority 0; }
					add rule inet nat new iifname wan ct state new drop`)
				defer w.gw.Run("nft", "delete table inet nat")
				move := func(from, to string) {
					w.server.Run("ip", "addr", "del", from+"/24", "dev", "eth0")
					w.server.Run("ip", "addr", "add", to+"/24", "dev", "eth0")
					w.server.Run("ip", "route", "replace", "default", "via", "198.51.100.254")
					w.gw.Run("ip", "route", "replace", "203.0.113.0/24", "via", to)
				}
				move(endpoint4, "198.51.100.2")
				defer move("198.51.100.2", endpoint4)
				server.end(syscall.SIGTERM)
				server = name("198.51.100.2")
				begin := time.Now()
				// a handshake's time, and what WireGuard and ping(8) wait between two tries
				const most = 135*time.Second + 5*time.Second + time.Second
				if !bed.Wait(most, func() bool { return w.host.Try("ping", "-nqc1", "-W1", world4).Code == 0 }) {
					t.Errorf("not back: %s", guard.text())
				}
				t.Logf("a peer that is elsewhere: back after %v", time.Since(begin).Round(100*time.Millisecond))
			}
			w.down("wg0")
			guard.end(syscall.SIGTERM)
			server.end(syscall.SIGTERM)
		})
	}
	w.t = t
}

// nameServer answers on the host's LAN, for names as NAME,ADDRESS; with more options.
func (w *world) nameServer(records []string, options ...string) *process {
	argv := []string{"dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--pid-file=", "--no-resolv", "--no-hosts",
		"--listen-address=192.168.1.1", "--bind-interfaces"}
	for _, r := range records {
		argv = append(argv, "--host-record="+r+",0")
	}
	p := start(w.t, w.gw, append(argv, options...)...)
	time.Sleep(300 * time.Millisecond)
	return p
}

// TestDeadNames: while names are looked up that nobody answers for, the guard repairs,
// follows other names, lets `down` in, and tells systemd's watchdog that it lives; so it
// does while another command has the tunnel's lock.
func TestDeadNames(t *testing.T) {
	const watchdog = time.Second
	w := newWorld(t, "", lan)
	w.serve()
	write(t, "/etc/resolv.conf", "nameserver 192.168.1.1\n", 0o644)
	text := "[Interface]\nPrivateKey = PRIVATE\nAddress = 10.9.0.2/24\nRoutingStrategy = override\n"
	var records []string
	for i := range 4 {
		text += fmt.Sprintf("[Peer]\nPublicKey = %s\nAllowedIPs = 10.8.%d.0/24\nEndpoint = d%d.dead.test:%d\n", w.key(fmt.Sprint("dead", i)).PublicKey(), i, i, port)
		records = append(records, fmt.Sprintf("d%d.dead.test,198.51.100.%d", i, 11+i))
	}
	w.config("wg0", "srv0", text+fmt.Sprintf("[Peer]\nPublicKey = PUBLIC\nAllowedIPs = 0.0.0.0/0\nEndpoint = vpn.test:%d\n", port))
	server := w.nameServer(append(records, "vpn.test,198.51.100.77"))
	w.up("wg0")
	server.end(syscall.SIGTERM)
	w.gw.Run("ip", "neigh", "add", "192.168.1.99", "lladdr", "02:00:00:00:00:99", "dev", "lan") // who is not there
	w.nameServer([]string{"vpn.test," + endpoint4}, "--server=/dead.test/192.168.1.99")

	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: w.dir + "/notify", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	longest := make(chan time.Duration)
	go func() {
		var last time.Time
		var most time.Duration
		for buf := make([]byte, 4096); ; {
			n, err := socket.Read(buf)
			if now := time.Now(); err != nil || strings.Contains(string(buf[:n]), "WATCHDOG=1") {
				if !last.IsZero() {
					most = max(most, now.Sub(last))
				}
				last = now
			}
			if err != nil {
				longest <- most
				return
			}
		}
	}()
	guard := start(t, w.host, "env", "NOTIFY_SOCKET="+w.dir+"/notify", fmt.Sprint("WATCHDOG_USEC=", watchdog.Microseconds()), w.program, "guard", "wg0")
	says := func(text string, within time.Duration) {
		t.Helper()
		if !bed.Wait(within, func() bool { return strings.Contains(guard.text(), text) }) {
			t.Errorf("not within %v: %s", within, text)
		}
	}
	says("guarding `wg0'", 10*time.Second)
	begin := time.Now()
	w.host.Run("ip", "route", "del", "198.51.100.11")
	says("ip -4 route add 198.51.100.11/32", 3*bound)
	t.Logf("a route was back after %v", time.Since(begin).Round(time.Millisecond))
	says(fmt.Sprintf("(vpn.test) endpoint %s:%d", endpoint4, port), 8*time.Second)

	locks, err := filepath.Glob("/run/wg-quickns/wg0*/lock")
	if err != nil || len(locks) != 1 {
		t.Fatal(locks, err)
	}
	other := start(t, w.host, "flock", locks[0], "sleep", "3")
	time.Sleep(300 * time.Millisecond)
	w.host.Run("ip", "route", "del", "198.51.100.11") // so that the guard wants the lock
	other.cmd.Wait()

	begin = time.Now()
	w.down("wg0")
	if took := time.Since(begin); took > 4*time.Second {
		t.Errorf("down took %v", took)
	}
	says("is down: nothing is left to guard", 5*time.Second)
	socket.Close()
	if most := <-longest; most > 2*watchdog || most < watchdog/4 {
		t.Errorf("%v between two signs of life", most)
	}
	if t.Failed() {
		t.Log(guard.text())
	}
}

// TestReloadedName: after a reload the guard follows the name that the file has now, and
// not the one from before; and when the interface is gone it runs the hook of the file.
func TestReloadedName(t *testing.T) {
	w := newWorld(t, "", lan)
	w.serve()
	write(t, "/etc/resolv.conf", "nameserver 192.168.1.1\n", 0o644)
	server := w.nameServer([]string{"old.test,198.51.100.77", "new.test,198.51.100.78"})
	const keys = "RoutingStrategy = override"
	w.client(keys+"\nPostDown = echo hook of the old file", "0.0.0.0/0", fmt.Sprintf("old.test:%d", port))
	w.up("wg0")
	guard := w.guard()
	time.Sleep(300 * time.Millisecond) // it has looked up the name by then
	w.client(keys, "0.0.0.0/0", fmt.Sprintf("new.test:%d", port))
	w.host.Run(w.program, "reload", "wg0")
	time.Sleep(300 * time.Millisecond)
	server.end(syscall.SIGTERM)
	w.nameServer([]string{"old.test,198.51.100.77", "new.test," + endpoint4})
	moved := fmt.Sprintf("(new.test) endpoint %s:%d", endpoint4, port)
	if !bed.Wait(15*time.Second, func() bool { return strings.Contains(guard.text(), moved) }) || strings.Contains(guard.text(), "old.test") {
		t.Errorf("the guard said\n%s", guard.text())
	}

	w.client(keys+"\nPostDown = echo hook of the new file", "0.0.0.0/0", fmt.Sprintf("new.test:%d", port))
	w.host.Run("ip", "link", "del", "wg0")
	guard.cmd.Wait()
	if !strings.Contains(guard.text(), "hook of the new file\n") {
		t.Errorf("after the end of the interface the guard said\n%s", guard.text())
	}
}

// TestReloadedInside: a reload to an endpoint that looks like one inside of the tunnel
// stands.
func TestReloadedInside(t *testing.T) {
	w := newWorld(t, "", lan)
	w.serve()
	const keys = "RoutingStrategy = rules" // the others have a host route to it
	w.client(keys, "0.0.0.0/0", endpointOf(false))
	w.up("wg0")
	guard := w.guard()
	time.Sleep(300 * time.Millisecond) // it has seen where the peer is
	w.client(keys, "0.0.0.0/0", "10.50.0.1:51820")
	w.host.Run(w.program, "reload", "wg0")
	time.Sleep(time.Second)
	if strings.Contains(guard.text(), "endpoint") {
		t.Errorf("the guard said\n%s", guard.text())
	}
	w.down("wg0")
	guard.end(syscall.SIGTERM)
}

// TestLeave: with --leave and --unit the guard undoes nothing when the interface is gone,
// and with --unit it keeps only what needs that.
func TestLeave(t *testing.T) {
	w := newWorld(t, "", lan)
	for _, c := range []struct {
		option, strategy string
		guards           bool
	}{{"--leave", "auto", true}, {"--unit", "auto", false}, {"--unit", "override", true}} {
		t.Run(c.option+" "+c.strategy, func(t *testing.T) {
			w.t = t
			before := w.take()
			w.client("RoutingStrategy = "+c.strategy, "0.0.0.0/0", endpointOf(false))
			w.up("wg0")
			guard := start(t, w.host, w.program, "guard", c.option, "wg0")
			if !bed.Wait(10*time.Second, func() bool { return strings.Contains(guard.text(), "ing `wg0'") }) {
				t.Errorf("the guard does not start: %s", guard.text())
			}
			w.host.Run("bash", "-ec", breaks[c.strategy])
			if kept := bed.Wait(time.Second, func() bool { return strings.Contains(guard.text(), "[#]") }); kept != c.guards {
				t.Errorf("it guards: %v", kept)
			}
			w.host.Run("ip", "link", "del", "wg0")
			left := w.take()
			if guard.cmd.Wait(); guard.cmd.ProcessState.ExitCode() != 3 {
				t.Errorf("exit status %d", guard.cmd.ProcessState.ExitCode())
			}
			if d := state.Diff(left, w.take()); d != "" {
				t.Errorf("undone when the interface was gone\n%s", d)
			}
			w.down("wg0")
			if d := state.Diff(before, w.take()); d != "" {
				t.Errorf("left\n%s", d)
			}
		})
	}
	w.t = t
}

// TestNoFight: what only the kernel can be asked about is asked for at each look, which
// is no repair.
func TestNoFight(t *testing.T) {
	w := newWorld(t, "", lan)
	w.client("KillSwitch = true", "0.0.0.0/0", endpointOf(false))
	w.up("wg0")
	guard := w.guard()
	for range 15 {
		w.host.Run("ip", "addr", "add", "10.99.0.1/32", "dev", "lo")
		w.host.Run("ip", "addr", "del", "10.99.0.1/32", "dev", "lo")
		time.Sleep(350 * time.Millisecond)
	}
	w.down("wg0")
	guard.end(syscall.SIGTERM)
	if strings.Contains(guard.text(), "again and again") || strings.Contains(guard.text(), "[#]") {
		t.Errorf("the guard said\n%s", guard.text())
	}
}
