//go:build !systemd

package physical

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"wg-quickns/test/bed"
	"wg-quickns/test/ns"
	"wg-quickns/test/state"
)

func TestMain(m *testing.M) { ns.Main(m) }

// world is a machine with one uplink.
type world struct {
	*bed.Bed
	t      *testing.T
	before state.State
}

func newWorld(t *testing.T, keys string) *world {
	t.Helper()
	w := &world{Bed: bed.New(t, "bed"), t: t}
	w.config(keys)
	w.before = w.take()
	return w
}

// config writes a file with these keys, each with its line's end.
func (w *world) config(keys string) {
	w.Config(w.t, "wg0", strings.Replace(bed.FullTunnel(0), "[Interface]\n", "[Interface]\nRoutingStrategy = physical-netns\n"+keys, 1))
}

func (w *world) take() state.State {
	w.t.Helper()
	s, err := w.Take()
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// wants runs a command that must end so and say that.
func (w *world) wants(code int, says string, argv ...string) {
	w.t.Helper()
	if r := w.Run(nil, append([]string{w.Program}, argv...)...); r.Code != code || !strings.Contains(r.Output, says) {
		w.t.Errorf("%v: want %d and %q: %s", argv, code, says, r)
	}
}

func (w *world) up() {
	w.t.Helper()
	w.wants(0, "[#] ip link set dev uplink down", "up", "wg0")
}

// home sees that everything is as it was.
func (w *world) home() {
	w.t.Helper()
	var changed string
	if !bed.Wait(2*time.Second, func() bool { changed = state.Diff(w.before, w.take()); return changed == "" }) {
		w.t.Errorf("the state before and after:\n%s", changed)
	}
}

// away is what ip(8) says in the physical namespace.
func (w *world) away(args ...string) string {
	w.t.Helper()
	return ns.Run(w.t, append([]string{"ip", "-n", "physical"}, args...)...)
}

func (w *world) guard() *bed.Process {
	w.t.Helper()
	p, err := w.Start(nil, w.Program, "guard", "wg0")
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// TestLife: with hooks, DNS and a kill switch, up, status, reload, exec and down.
func TestLife(t *testing.T) {
	const keys = "KillSwitch = true\nPhysicalUp = ip -br link >$HOOKS.up # there\nPhysicalUp = wg-quickns up wg1 && wg-quickns down wg1\n" +
		"PhysicalDown = ip -br link >$HOOKS.down\n"
	w := newWorld(t, keys)
	w.Config(t, "wg1", "[Interface]\nPrivateKey = "+bed.Key("other")+"\nAddress = 10.9.0.1/24\n[Peer]\nPublicKey = "+bed.Key("peer")+"\nAllowedIPs = 0.0.0.0/0\n")
	w.up()
	if out := w.NS.Run("ip", "-br", "link"); strings.Contains(out, "uplink") || !strings.Contains(out, "wg0") {
		t.Errorf("links at home:\n%s", out)
	}
	if out := w.away("-br", "addr"); !strings.Contains(out, "192.0.2.2/24 2001:db8::2/64") || strings.Contains(out, "wg0") {
		t.Errorf("addresses away:\n%s", out)
	}
	if out := w.away("route"); !strings.Contains(out, "default via 192.0.2.1 dev uplink") {
		t.Errorf("routes away:\n%s", out)
	}
	if err := w.Routed("wg0"); err != nil {
		t.Error(err)
	}
	w.wants(0, "physical-netns", "status", "wg0")
	w.wants(0, "is as its file says", "reload", "wg0")
	for _, key := range []string{"PhysicalInterfaces", "PhysicalServices"} {
		w.config(keys + key + " = uplink\n")
		w.wants(1, key+" cannot be changed while `wg0' is up", "reload", "wg0")
	}
	w.config(keys)
	w.wants(0, "uplink", "exec", "wg0", "--", "ip", "-br", "link")
	w.wants(0, "inet 192.0.2.2/24", "exec", "wg0", "--", "ip", "addr")
	w.wants(1, "already exists", "up", "wg0")
	w.wants(0, "[#] ip -n physical link set dev uplink netns 1", "down", "wg0")
	w.home()
	for _, hook := range []string{".up", ".down"} {
		if text, err := os.ReadFile(w.Hooks + hook); err != nil || !strings.Contains(string(text), "uplink") || strings.Contains(string(text), "wg0") {
			t.Errorf("Physical hook %s: %v %s", hook, err, text)
		}
	}
}

// TestBeside: another tunnel has its socket there, and either of them may go first.
func TestBeside(t *testing.T) {
	for _, order := range [][]string{{"wg0", "wg1"}, {"wg1", "wg0"}} {
		t.Run(order[0], func(t *testing.T) {
			w := newWorld(t, "")
			w.Config(t, "wg1", "[Interface]\nPrivateKey = "+bed.Key("other")+"\nAddress = 10.9.0.1/24\nBirthNamespace = physical\n[Peer]\nPublicKey = "+bed.Key("peer")+"\nAllowedIPs = 10.9.0.0/24\n")
			w.up()
			w.wants(0, "", "up", "wg1")
			w.wants(0, "", "down", order[0])
			w.wants(0, "ip netns delete physical", "down", order[1])
			w.home()
		})
	}
}

// TestTaken: where another interface has the name at home, it stays away, and the
// next down brings it home.
func TestTaken(t *testing.T) {
	w := newWorld(t, "")
	w.up()
	w.NS.Run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "other")
	w.wants(1, "uplink", "down", "wg0")
	if out := w.away("link", "show", "uplink"); !strings.Contains(out, "alias wg-quickns: uplink is away from home") {
		t.Errorf("away: %s", out)
	}
	w.wants(1, "try down again", "down", "wg0")
	w.NS.Run("ip", "link", "del", "uplink")
	w.wants(0, "netns 1", "down", "wg0")
	w.home()
}

// TestComesHome: after a kill at each step, a process left inside, a name taken and the like,
// the next down brings the interface home with all that it had, and it works. With
// WGQ_PHYSICAL_FULL=1 at every step, and more than 200 times in all.
func TestComesHome(t *testing.T) { newWorld(t, "").comesHome() }

// reaches sees that the gateway answers in a namespace. Wi-Fi takes its time.
func (w *world) reaches(at string) {
	w.t.Helper()
	if !bed.Wait(time.Minute, func() bool {
		return ns.Try(exec.Command("ip", "netns", "exec", at, "ping", "-nqc1", "-W1", "192.0.2.1")).Code == 0
	}) {
		w.t.Errorf("no answer in %s:\n%s", at, ns.Run(w.t, "bash", "-c", "ip -n $0 addr; ip -n $0 route", at))
	}
}

func (w *world) comesHome() {
	w.t.Helper()
	look := func() string { // what the state does not have
		return w.NS.Run("bash", "-c", "ip -o link show uplink | sed -E 's/(state|qlen) [A-Z0-9]+//g; s/<[^>]*>//'; ip -4 neigh show nud permanent")
	}
	before, good, all := look(), 0, 0
	trial := func(what string, do func()) {
		all++
		do()
		w.home()
		if now := look(); now != before {
			w.t.Errorf("%s: now\n%sbefore\n%s", what, now, before)
		}
		w.reaches(w.NS.Name)
		if w.t.Failed() {
			w.t.Fatalf("%s: %d of %d came home", what, good, all)
		}
		good++
	}
	counts := map[string]int{"up": len(w.Steps(w.t, "up", "wg0")), "down": len(w.Steps(w.t, "down", "wg0"))}
	every, rounds := 9, 1
	if full() {
		every, rounds = 1, 4
	}
	for range rounds {
		for command, count := range counts {
			for n := 1; n <= 2*count; n += every {
				fault := fmt.Sprintf("kill-%s:%d", []string{"before", "after"}[n%2], (n+1)/2)
				trial(command+" "+fault, func() {
					if command == "down" {
						w.up()
					}
					if r := w.Fault(fault, command, "wg0"); r.Code != 128+9 {
						w.t.Fatalf("%s %s: %s", command, fault, r)
					}
					w.wants(0, "", "down", "wg0")
				})
			}
		}
		trial("a name is taken", func() {
			w.up()
			w.NS.Run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "other")
			w.wants(1, "uplink", "down", "wg0")
			w.NS.Run("ip", "link", "del", "uplink")
			w.wants(0, "netns 1", "down", "wg0")
		})
		trial("a process is left inside", func() {
			w.up()
			sleep := inside(w.t)
			w.wants(1, "sleep (PID", "down", "wg0")
			bed.End(sleep)
			w.wants(0, "", "down", "wg0")
		})
		trial("the guard is killed", func() {
			w.up()
			guard := w.guard()
			time.Sleep(hold)
			guard.Signal(syscall.SIGKILL)
			guard.Wait()
			w.wants(0, "netns 1", "down", "wg0")
		})
		trial("the namespace loses its name", func() {
			w.up()
			ns.Run(w.t, "ip", "netns", "del", "physical")
			w.wants(0, "netns 1", "down", "wg0")
		})
		trial("it has another name and address there", func() {
			w.up()
			w.away("link", "set", "uplink", "down")
			w.away("link", "set", "uplink", "name", "other", "address", "02:00:00:00:77:77")
			w.wants(0, "netns 1", "down", "wg0")
		})
	}
	w.t.Logf("came home: %d of %d", good, all)
}

// TestOwnResolv: the namespace's resolv.conf that was there comes back, whatever a client
// there did to it.
func TestOwnResolv(t *testing.T) {
	const folder, own = "/etc/netns/physical", "nameserver 192.0.2.9\n"
	ns.Run(t, "bash", "-euc", "mkdir "+folder+"; printf '"+own+"' >"+folder+"/resolv.conf")
	defer ns.Run(t, "rm", "-r", folder)
	w := newWorld(t, "")
	for _, client := range []string{"rm resolv.conf", ">resolv.conf", "echo nameserver 10.0.0.1 >x; mv x resolv.conf", "rm resolv.conf; ln -s /none resolv.conf"} {
		w.up()
		ns.Run(t, "bash", "-euc", "cd "+folder+"; "+client)
		w.wants(0, "netns 1", "down", "wg0")
		w.home()
		if text, err := os.ReadFile(folder + "/resolv.conf"); string(text) != own {
			t.Errorf("after %s it is %q (%v)", client, text, err)
		}
	}
}

// TestSecret: an interface keeps the secret that its stable addresses are made of (RFC 7217), its own and the usual one.
func TestSecret(t *testing.T) {
	for _, of := range []string{"uplink", "default"} {
		t.Run(of, func(t *testing.T) {
			w := newWorld(t, "")
			w.NS.Run("bash", "-ec", "sysctl -qw net.ipv6.conf."+of+".stable_secret=2001:db8::1:2:3; sysctl -qw net.ipv6.conf.uplink.accept_dad=0\n"+
				"ip link set uplink down; ip link set uplink up; ip addr add 2001:db8::2/64 dev uplink nodad; ip route add default via 192.0.2.1; ip -6 route add default via 2001:db8::1")
			look := func(at, of string) string {
				return ns.Run(t, "ip", "netns", "exec", at, "bash", "-ec", "ip -br addr show uplink; sysctl net.ipv6.conf.uplink.addr_gen_mode net.ipv6.conf."+of+".stable_secret")
			}
			before := ""
			if !bed.Wait(5*time.Second, func() bool {
				before = look(w.NS.Name, of)
				return strings.Contains(before, "fe80::") && strings.Contains(before, " UP ")
			}) {
				t.Fatal(before)
			}
			w.up()
			if away := look("physical", "uplink"); !strings.Contains(away, "0001:0002:0003") || !strings.Contains(away, "= 2") {
				t.Errorf("away: %s", away)
			}
			w.wants(0, "netns 1", "down", "wg0")
			// not the whole state: which of its addresses the kernel made, or we again, is a matter of who is first
			after := ""
			if !bed.Wait(2*time.Second, func() bool { after = look(w.NS.Name, of); return after == before }) {
				t.Errorf("before\n%safter\n%s", before, after)
			}
		})
	}
}

// TestNameDeleted: the namespace lives on when somebody deletes its name, or gives that
// to another one, and so does the tunnel.
func TestNameDeleted(t *testing.T) {
	for name, script := range map[string]string{"deleted": "ip netns del physical", "another": "ip netns del physical; ip netns add physical"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "")
			w.up()
			guard := w.guard()
			time.Sleep(300 * time.Millisecond)
			ns.Run(t, "bash", "-ec", script)
			if out := w.NS.Run("ip", "-br", "link"); !strings.Contains(out, "wg0") || strings.Contains(out, "uplink") {
				t.Errorf("links at home:\n%s", out)
			}
			w.wants(0, "uplink", "exec", "--birth", "wg0", "--", "ip", "-br", "link")
			w.wants(0, "netns 1", "down", "wg0")
			if r := guard.Wait(); r.Code != 0 {
				t.Errorf("guard: %s", r)
			}
			if name == "another" {
				ns.Run(t, "ip", "netns", "del", "physical")
			}
			w.home()
		})
	}
}

// TestOtherDefault: a default route that came meanwhile is said, and does not keep the old one
// away.
func TestOtherDefault(t *testing.T) {
	w := newWorld(t, "")
	w.up()
	w.NS.Run("bash", "-ec", `ip link add side type veth peer name other; ip link set side up; ip link set other up
		ip route append default dev side; ip -6 route append default dev side metric 1024`)
	const said = "interface side, which is not moved, is a way out past the tunnel"
	w.wants(4, "wg0: "+said, "status", "wg0")
	guard := w.guard()
	time.Sleep(hold)
	w.NS.Run("ip", "link", "add", "another", "type", "veth", "peer", "name", "andmore") // a look more
	time.Sleep(hold)
	w.NS.Run("ip", "link", "del", "another")
	guard.Signal(syscall.SIGTERM)
	if r := guard.Wait(); strings.Count(r.Output, said) != 1 {
		t.Errorf("guard: %s", r)
	}
	w.wants(0, "netns 1", "down", "wg0")
	w.NS.Run("ip", "link", "del", "side")
	w.home()
}

// TestHeld: a process in the namespace keeps that, and not the interface.
func TestHeld(t *testing.T) {
	w := newWorld(t, "")
	w.up()
	sleep := exec.Command("ip", "netns", "exec", "physical", "sleep", "1000")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	bed.Wait(5*time.Second, func() bool {
		return strings.Contains(ns.Run(t, "ip", "netns", "pids", "physical"), fmt.Sprint(sleep.Process.Pid))
	})
	w.wants(1, "sleep (PID", "down", "wg0")
	if err := w.Routed("uplink"); err != nil {
		t.Error(err)
	}
	bed.End(sleep)
	w.wants(0, "", "down", "wg0")
	w.home()
}

// TestPulled: an interface that is no more is said, and is no error.
func TestPulled(t *testing.T) {
	w := newWorld(t, "")
	w.up()
	w.away("link", "del", "uplink")
	w.wants(0, "uplink", "down", "wg0")
	if out := ns.Run(t, "ls", "/run/netns", "/run/wg-quickns"); strings.Contains(out, "physical") || strings.Contains(out, "wg0") {
		t.Errorf("left: %s", out)
	}
}

// TestGuard: it moves what is plugged in, and when the tunnel is gone it opens nothing.
func TestGuard(t *testing.T) {
	w := newWorld(t, "PhysicalInterfaces = uplink, late, last\n")
	w.wants(0, "late", "up", "wg0")
	guard := w.guard()
	w.NS.Run("ip", "link", "add", "late", "type", "veth", "peer", "name", "later")
	if !bed.Wait(5*time.Second, func() bool { return strings.Contains(w.away("link"), "late") }) {
		t.Error("the newcomer stays where it is")
	}
	w.NS.Run("ip", "link", "del", "wg0")
	time.Sleep(500 * time.Millisecond)
	if out := w.away("route"); !strings.Contains(out, "default via 192.0.2.1 dev uplink") {
		t.Errorf("routes away once the tunnel is gone:\n%s", out)
	}
	for _, link := range []string{"late", "last"} { // what was there before, and what was not
		ns.Try(exec.Command("ip", "-n", "physical", "link", "del", link))
		w.NS.Run("ip", "link", "add", link, "type", "veth", "peer", "name", link+"r")
		if !bed.Wait(5*time.Second, func() bool { return strings.Contains(w.away("link"), link+"@") }) {
			t.Errorf("%s stays where it is once the tunnel is gone", link)
		}
	}
	guard.Signal(syscall.SIGTERM)
	if r := guard.Wait(); r.Code != 0 || !strings.Contains(r.Output, "stay away until down") {
		t.Errorf("guard: %s", r)
	}
	r := w.Run(nil, w.Program, "down", "wg0")
	if _, after, ok := strings.Cut(r.Output, "umount -R"); r.Code != 0 || !ok || strings.Contains(after, "netns 1") {
		t.Errorf("what programs away see goes after the last of them: %s", r)
	}
	if out := w.NS.Run("ip", "-br", "link"); !strings.Contains(out, "late@") {
		t.Errorf("links at home:\n%s", out)
	}
	w.NS.Run("bash", "-ec", "ip link del late; ip link del last")
	w.home()
}

// TestStuck: a newcomer that cannot move, as its client could not be started again, keeps
// nothing else from being repaired, be it new or one that was away before.
func TestStuck(t *testing.T) {
	for _, link := range []string{"late", "uplink"} {
		t.Run(link, func(t *testing.T) {
			w := newWorld(t, "PhysicalInterfaces = uplink, late, next\n")
			mac := strings.TrimSpace(w.NS.Run("cat", "/sys/class/net/uplink/address"))
			w.up()
			ns.Run(t, "bash", "-c", "install $(realpath $(which tail)) /run/dhclient")
			p, err := w.Start(nil, "unshare", "-m", "bash", "-c", "cp /run/dhclient /run/other; mount --bind /run/other /run/dhclient; exec /run/dhclient -f /dev/null "+link)
			if err != nil {
				t.Fatal(err)
			}
			running(t, "dhclient")
			guard := w.guard()
			time.Sleep(hold)
			if link == "uplink" {
				w.away("link", "del", "uplink")
			}
			w.NS.Run("ip", "link", "add", link, "address", mac, "type", "veth", "peer", "name", "other")
			if !bed.Wait(5*time.Second, func() bool { return strings.Contains(guard.Says(), "could not be started again") }) {
				t.Errorf("the guard says %s", guard.Says())
			}
			w.NS.Run("ip", "link", "add", "next", "type", "veth", "peer", "name", "nexter")
			if !bed.Wait(5*time.Second, func() bool { return strings.Contains(w.away("link"), "next@") }) {
				t.Error("another newcomer does not go")
			}
			if link == "late" {
				w.wants(4, "interface late is not moved", "status", "wg0")
			}
			w.NS.Run("ip", "route", "del", "default", "dev", "wg0")
			if !bed.Wait(2*time.Second, func() bool { return strings.Contains(w.NS.Run("ip", "route"), "default dev wg0") }) {
				t.Errorf("the default route does not come back:\n%s", w.NS.Run("ip", "route"))
			}
			p.Signal(syscall.SIGKILL)
			p.Wait()
			w.NS.Run("ip", "link", "del", "other")
			w.wants(0, "", "down", "wg0")
			w.NS.Run("ip", "link", "del", "next")
			if r := guard.Wait(); r.Code != 0 {
				t.Errorf("guard: %s", r)
			}
		})
	}
}

// TestNamesake: what is plugged in with the name of an interface that is away takes nothing
// from that, is kept down, and in the way of down only.
func TestNamesake(t *testing.T) {
	w := newWorld(t, "PhysicalInterfaces = uplink\n")
	w.up()
	mac := strings.TrimSpace(w.away("-br", "link", "show", "uplink"))
	guard := w.guard()
	time.Sleep(hold)
	w.NS.Run("bash", "-ec", `ip link add uplink type veth peer name other; ip link set other up; sleep 0.5 # down at first, as the kernel has it
		for i in $(seq 12); do ip link set uplink up; sleep 0.05; done; ip route replace 203.0.113.0/24 dev uplink || true`)
	const held = "interface `uplink' has the name of one that is away, and is kept down"
	if !bed.Wait(5*time.Second, func() bool {
		return strings.Contains(guard.Says(), held) && !strings.Contains(w.NS.Run("ip", "link", "show", "uplink"), ",UP")
	}) {
		t.Errorf("it is up:\n%s", w.NS.Run("ip", "link"))
	}
	time.Sleep(hold)
	if now := strings.TrimSpace(w.away("-br", "link", "show", "uplink")); now != mac {
		t.Errorf("the one that is away: %s, and was %s", now, mac)
	}
	if out := w.away("route"); !strings.Contains(out, "default via 192.0.2.1 dev uplink") {
		t.Errorf("routes away:\n%s", out)
	}
	w.reaches("physical")
	w.wants(4, "wg0: interface uplink has the name of one that is away", "status", "wg0")
	guard.Signal(syscall.SIGTERM)
	if r := guard.Wait(); r.Code != 0 || strings.Count(r.Output, held) != 1 || strings.Contains(r.Output, "netns") {
		t.Errorf("guard: %s", r)
	}
	w.wants(1, "another has that name", "down", "wg0")
	w.NS.Run("ip", "link", "del", "uplink")
	w.wants(0, "netns 1", "down", "wg0")
	w.home()
}

// TestRefused: what cannot be is said before anything is done.
func TestRefused(t *testing.T) {
	w := newWorld(t, "")
	text := func(keys string) { w.config(keys + "\n") }
	w.NS.Run("ip", "link", "add", "br0", "type", "bridge")
	w.NS.Run("ip", "link", "set", "br0", "up")
	before := w.take()
	for keys, why := range map[string]string{
		"PhysicalInterfaces = br0":     "way out past the tunnel",
		"PhysicalInterfaces = nothing": "way out past the tunnel",
		"Namespace = elsewhere":        "not there yet",
		"PhysicalServices = nonsense":  "nonsense.service",
	} {
		text(keys)
		r := w.Up("wg0")
		if r.Code != 1 || !strings.Contains(r.Output, why) || !strings.Contains(r.Output, "wg0.conf") || strings.Contains(r.Output, "[#]") {
			t.Errorf("%s: want %q: %s", keys, why, r)
		}
		if changed := state.Diff(before, w.take()); changed != "" {
			t.Errorf("%s: the state before and after:\n%s", keys, changed)
		}
	}
	w.NS.Run("ip", "link", "del", "br0")
}
