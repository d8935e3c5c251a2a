// Package namespaces tests tunnels that are born in one network namespace and
// live in another, on whatever WireGuard this kernel has.
package namespaces

import (
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/test/bed"
	"wg-quickns/test/ns"
	"wg-quickns/test/programs"
)

func TestMain(m *testing.M) { ns.Main(m) }

// slow says that this is the lab, where a command takes half a second: what the
// kernel has no part in is done less often there.
var slow = os.Getenv("WG_TEST_KERNEL") != ""

// world is the bed with what is in named namespaces beside it.
type world struct {
	*testing.T
	*bed.Bed
}

func newWorld(t *testing.T) world { return world{t, bed.New(t, "bed")} }

// snapshot is the bed's state.
func (w world) snapshot() string {
	w.Helper()
	s, err := w.Take()
	if err != nil {
		w.Fatal(err)
	}
	return s.String()
}

// inside is what is in a namespace, without what differs from run to run.
func (w world) inside(name string) string {
	w.Helper()
	return ns.Run(w, "bash", "-c", `ip -n "$0" addr; ip -n "$0" route show table all; ip -n "$0" -6 route show table all
		ip -n "$0" rule; ip -n "$0" -6 rule; ip netns exec "$0" nft list ruleset`, name)
}

func (w world) want(code int, r bed.Result, texts ...string) {
	w.Helper()
	if r.Code != code {
		w.Errorf("exit status %d, want %d:\n%s", r.Code, code, r.Output)
	}
	for _, text := range texts {
		if !strings.Contains(r.Output, text) {
			w.Errorf("does not say %q:\n%s", text, r.Output)
		}
	}
}

func (w world) same(before string) {
	w.Helper()
	if after := w.snapshot(); after != before {
		w.Errorf("the state is not as before:\n%s\nbut\n%s", before, after)
	}
}

// becomes is same, within the time that the kernel takes to take apart a namespace
// that is gone, and a userspace WireGuard to see it.
func (w world) becomes(before string) {
	w.Helper()
	bed.Wait(5e9, func() bool { return w.snapshot() == before })
	w.same(before)
}

// config is a tunnel with a default route in both families; keys go into [Interface].
func config(n int, keys string) string {
	return fmt.Sprintf(`[Interface]
%s
PrivateKey = %s
ListenPort = %d
Address = 10.%d.0.2/24, fd00:%d::2/64
[Peer]
PublicKey = %s
AllowedIPs = 0.0.0.0/0, ::/0
Endpoint = 192.0.2.1:51820
`, keys, bed.Key(fmt.Sprint("private", n)), 50000+n, n, n, bed.Key(fmt.Sprint("public", n)))
}

// listens says whether a UDP socket of that port is in the namespace.
func listens(w world, n *ns.NS, port int) bool {
	w.Helper()
	out, err := n.Cmd("cat", "/proc/net/udp").Output()
	if err != nil {
		w.Fatal(err)
	}
	return strings.Contains(string(out), fmt.Sprintf(":%04X ", port))
}

// named is a namespace by its name, without owning it.
func (w world) named(name string) *ns.NS { return &ns.NS{Name: name} }

// sleeper is a process in a namespace, until the test ends.
func sleeper(w world, name string) *exec.Cmd {
	w.Helper()
	cmd := exec.Command("ip", "netns", "exec", name, "sleep", "1000")
	if err := cmd.Start(); err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { bed.End(cmd) })
	bed.Sleeps(cmd)
	return cmd
}

// kernelWireGuard says whether this kernel has WireGuard.
func (w world) kernelWireGuard() bool {
	if w.NS.Try("ip", "link", "add", "probe", "type", "wireguard").Code != 0 {
		return false
	}
	w.NS.Run("ip", "link", "delete", "probe")
	return true
}

// TestPairs takes every way to say where a tunnel is born and where it lives, with
// the kernel's WireGuard; without one with ours and with a program that goes to the background.
func TestPairs(t *testing.T) {
	w := newWorld(t)
	ns.New(t, "there")
	ns.New(t, "crib")
	pid := sleeper(w, "there").Process.Pid
	targets := map[string]string{
		"": "bed", "there": "there", "fresh": "fresh", fmt.Sprint("pid:", pid): "there", fmt.Sprint(pid): "there",
		"/run/netns/there": "there", fmt.Sprintf("/proc/%d/ns/net", pid): "there",
	}
	var pairs [][2]string
	for target := range targets {
		for _, birth := range []string{"", "crib", "fresh-crib"} {
			pairs = append(pairs, [2]string{birth, target})
		}
		if target != "" {
			pairs = append(pairs, [2]string{target, target})
		}
	}
	maps.Copy(targets, map[string]string{"crib": "crib", "fresh-crib": "fresh-crib"})

	kinds := []string{""}
	if !w.kernelWireGuard() {
		external, err := programs.WireGuardGo()
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, external)
	}
	before, was := w.snapshot(), w.inside("there")
	for _, program := range kinds {
		for _, pair := range pairs {
			born, lives := targets[pair[0]], targets[pair[1]]
			t.Run(fmt.Sprint(filepath.Base(program), " ", pair), func(t *testing.T) {
				t.Setenv("WG_QUICK_USERSPACE_IMPLEMENTATION", program)
				w := world{t, w.Bed}
				keys := ""
				if pair[0] != "" {
					keys = "BirthNamespace = " + pair[0] + "\n"
				}
				if pair[1] != "" {
					keys += "# wg-quickns: Namespace = " + pair[1]
				}
				w.Config(t, "wg0", config(1, keys))
				w.want(0, w.Up("wg0"), program)
				if out := ns.Run(t, "ip", "-n", lives, "-br", "link", "show", "dev", "wg0"); !strings.HasPrefix(out, "wg0") {
					t.Errorf("not where it lives: %s", out)
				}
				if !listens(w, w.named(born), 50001) {
					t.Error("its socket is not where it was born")
				}
				if born != lives && listens(w, w.named(lives), 50001) {
					t.Error("its socket is where it lives")
				}
				table := "main"
				if born == lives || lives == "bed" {
					table = "51820"
				}
				for _, family := range []string{"-4", "-6"} {
					out := ns.Run(t, "ip", "-n", lives, family, "route", "show", "default", "table", table)
					if !strings.Contains(out, "default dev wg0") {
						t.Errorf("%s: no default route in table %s: %s", family, table, out)
					}
				}
				w.want(1, w.Up("wg0"), "`wg0' already exists")
				w.want(0, w.Down("wg0"))
				w.same(before)
				if is := w.inside("there"); is != was {
					t.Errorf("the target is not as before:\n%s\nbut\n%s", was, is)
				}
				w.want(1, w.Down("wg0"), "is not a WireGuard interface")
			})
		}
	}
}

// TestContainer is the reference text's first example: a namespace whose only
// way out is the tunnel. The gateway in between sees ciphertext only.
func TestContainer(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot()
	// The far end of the uplink is the server: its tunnel is born and lives there.
	w.Config(t, "server", fmt.Sprintf(`[Interface]
PrivateKey = %s
ListenPort = 51820
Address = 192.168.4.1/24, 203.0.113.7/32
Namespace = bed-far
BirthNamespace = bed-far
[Peer]
PublicKey = %s
AllowedIPs = 192.168.4.33/32
`, bed.Key("server"), public(w, "client")))
	w.Config(t, "wg0", fmt.Sprintf(`[Interface]
PrivateKey = %s
Address = 192.168.4.33/32
Namespace = container
DNS = 192.168.4.1, example.com
PostUp = ip -o link >"$HOOKS"; cat /etc/resolv.conf >>"$HOOKS"
[Peer]
PublicKey = %s
AllowedIPs = 0.0.0.0/0
Endpoint = 192.0.2.1:51820
`, bed.Key("client"), public(w, "server")))
	w.want(0, w.Up("server"))
	w.want(0, w.Up("wg0"),
		"[#] ip netns add container\n", "[#] ip link add dev wg0 netns container type wireguard\n",
		"[#] ip -n container -4 route add 0.0.0.0/0 dev wg0\n")

	links := ns.Run(t, "ip", "-n", "container", "-br", "link", "show", "up")
	if !strings.Contains(links, "lo ") || !strings.Contains(links, "wg0 ") || strings.Count(links, "\n") != 2 {
		t.Errorf("links that are up:\n%s", links)
	}
	if got := strings.TrimSpace(ns.Run(t, "ip", "-n", "container", "route")); got != "default dev wg0 scope link" {
		t.Errorf("routes: %s", got)
	}
	hook, err := os.ReadFile(w.Hooks)
	if err != nil || !strings.Contains(string(hook), "wg0:") || strings.Contains(string(hook), "uplink") ||
		!strings.Contains(string(hook), "nameserver 192.168.4.1\nsearch example.com\n") {
		t.Errorf("the hook saw %q, %v", hook, err)
	}

	capture := w.NS.Cmd("tcpdump", "-nn", "-l", "-i", "uplink", "--immediate-mode", "ip")
	var seen strings.Builder
	capture.Stdout = &seen
	stderr, err := capture.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := capture.Start(); err != nil {
		t.Fatal(err)
	}
	// "listening on": the socket is there.
	for text := ""; !strings.Contains(text, "listening on"); {
		buf := make([]byte, 256)
		n, err := stderr.Read(buf)
		if err != nil {
			t.Fatalf("tcpdump: %v %s", err, text)
		}
		text += string(buf[:n])
	}
	w.want(0, w.Bed.Run(nil, "ip", "netns", "exec", "container", "ping", "-c", "2", "-i", "0.2", "-W", "5", "203.0.113.7"))
	w.want(0, w.Bed.Run(nil, w.Program, "exec", "wg0", "--", "ping", "-c", "1", "-W", "5", "203.0.113.7"))
	capture.Process.Signal(syscall.SIGINT)
	capture.Wait()
	if text := seen.String(); !strings.Contains(text, "192.0.2.1.51820: UDP") || strings.Contains(text, "ICMP") || strings.Contains(text, "203.0.113.7") {
		t.Errorf("on the wire:\n%s", text)
	}

	w.want(0, w.Down("wg0"))
	w.want(0, w.Down("server"))
	w.same(before)
}

func public(w world, name string) string {
	w.Helper()
	cmd := exec.Command(filepath.Join(os.Getenv("WG_REFERENCE"), "wg"), "pubkey")
	cmd.Stdin = strings.NewReader(bed.Key(name))
	out, err := cmd.Output()
	if err != nil {
		w.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// TestBusy: a namespace of ours in which a process lives is named and kept, and goes with the next down.
func TestBusy(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot()
	for _, keys := range []string{"Namespace = box", "BirthNamespace = box", "Namespace = other\nBirthNamespace = box"} {
		w.Config(t, "wg0", config(1, keys))
		w.want(0, w.Up("wg0"))
		p := sleeper(w, "box")
		for range 2 {
			w.want(1, w.Down("wg0"), "sleep (PID "+strconv.Itoa(p.Process.Pid)+")", "try down again: ip netns delete box\n")
		}
		if out := ns.Run(t, "ip", "-n", "box", "-br", "link"); strings.Contains(out, "wg0") {
			t.Errorf("left in it: %s", out)
		}
		bed.End(p)
		w.want(0, w.Down("wg0"))
		w.same(before)
	}
}

// TestGone: what went with its namespace, by hand or with its process, is no error.
func TestGone(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot()
	w.Config(t, "wg0", config(1, "Namespace = box\nDNS = 10.1.0.1"))
	w.want(0, w.Up("wg0"))
	ns.Run(t, "ip", "netns", "delete", "box")
	w.want(0, w.Down("wg0"))
	w.becomes(before)

	// So much of a deletion leaves a down that is killed in it.
	w.want(0, w.Up("wg0"))
	ns.Run(t, "umount", "/run/netns/box")
	w.want(0, w.Down("wg0"))
	w.becomes(before)
	w.want(0, w.Up("wg0"))
	ns.Run(t, "umount", "/run/netns/box")
	w.want(0, w.Up("wg0"))
	w.want(0, w.Down("wg0"))
	w.becomes(before)

	held := in(w, 0)
	w.Config(t, "wg0", config(1, fmt.Sprint("Namespace = ", held.Process.Pid)))
	w.want(0, w.Up("wg0"))
	bed.End(held)
	w.want(0, w.Down("wg0"))
	w.becomes(before)
}

// TestRenamed: it is the same interface under another name, and goes.
func TestRenamed(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot()
	w.Config(t, "wg0", config(1, ""))
	w.want(0, w.Up("wg0"))
	w.NS.Run("ip", "link", "set", "wg0", "down", "name", "other")
	w.want(0, w.Down("wg0"), "`wg0' was renamed `other', which is deleted now")
	w.becomes(before)
}

// TestMoved: the config says another namespace by now, or is gone; the record counts.
func TestMoved(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot()
	w.Config(t, "wg0", config(1, "Namespace = box"))
	w.want(0, w.Up("wg0"))
	w.Config(t, "wg0", config(1, "Namespace = other"))
	w.want(1, w.Up("wg0"), "already exists")
	w.want(0, w.Down("wg0"))
	w.same(before)
	w.Config(t, "wg0", config(1, "Namespace = box"))
	w.want(0, w.Up("wg0"))
	if err := os.Remove("/etc/wireguard/wg0.conf"); err != nil {
		t.Fatal(err)
	}
	w.want(0, w.Down("wg0"))
	w.same(before)
}

// TestAlone: the record alone is enough, wherever up was killed, and with it exec too.
func TestAlone(t *testing.T) {
	w := newWorld(t)
	ns.New(t, "there")
	before := w.snapshot()
	text := config(1, "Namespace = box\nBirthNamespace = crib\nDNS = 10.1.0.1\nPostDown = "+bed.Hook)
	w.Config(t, "wg0", text)
	steps := len(w.Steps(t, "up", "wg0"))
	for step := range steps {
		if slow && step%4 != 0 {
			continue
		}
		w.want(0, w.Down("wg0"))
		w.want(128+9, w.Fault(fmt.Sprint("kill-after:", step+1), "up", "wg0"))
		if err := os.Remove("/etc/wireguard/wg0.conf"); err != nil {
			t.Fatal(err)
		}
		w.want(0, w.Down("wg0"))
		w.Ran()
		w.same(before)
		w.Config(t, "wg0", text)
		w.want(0, w.Up("wg0"))
	}
	// Another has what the config names now; the record knows what it made.
	ns.Run(t, "ip", "netns", "delete", "crib")
	ns.Run(t, "ip", "netns", "add", "crib")
	if err := os.Remove("/etc/wireguard/wg0.conf"); err != nil {
		t.Fatal(err)
	}
	w.want(0, w.Bed.Run(nil, w.Program, "exec", "wg0", "--", "ls", "/sys/class/net"), "wg0")
	w.want(0, w.Down("wg0"))
	if got := w.Ran(); len(got) != 1 {
		t.Errorf("hooks: %q", got)
	}
	ns.Run(t, "ip", "netns", "delete", "crib") // it is still there
	w.becomes(before)
}

// in starts a process in the network namespace of another, 0 for one of its own, and waits for it.
func in(w world, pid int) *exec.Cmd {
	w.Helper()
	cmd := exec.Command("unshare", "--net", "sleep", "1000")
	if pid != 0 {
		cmd = exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", pid), "sleep", "1000")
	}
	if err := cmd.Start(); err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { bed.End(cmd) })
	bed.Sleeps(cmd)
	return cmd
}

// reuse starts a process in the bed that has the number of one that ended.
func (w world) reuse(pid int, argv ...string) *exec.Cmd {
	w.Helper()
	for range 100 { // others start processes too
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0); err != nil {
			w.Fatal(err)
		}
		cmd := exec.Command(argv[0], argv[1:]...)
		if err := w.NS.Do(cmd.Start); err != nil {
			w.Fatal(err)
		}
		if cmd.Process.Pid == pid {
			w.Cleanup(func() { bed.End(cmd) })
			bed.Sleeps(cmd)
			return cmd
		}
		bed.End(cmd)
	}
	w.Fatalf("no process got the number %d", pid)
	return nil
}

// TestReused: the process that named the target ended and its number is another's,
// which down and exec must not take for it. While others live in the namespace, the
// tunnel is found there.
func TestReused(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot()
	for _, lives := range []bool{true, false} {
		first := in(w, 0)
		pid := first.Process.Pid
		second := in(w, pid)
		home := fmt.Sprintf("/proc/%d/ns/net", second.Process.Pid)
		was := ns.Run(t, "nsenter", "--net="+home, "ip", "-br", "link")
		w.Config(t, "wg0", config(1, fmt.Sprint("Namespace = pid:", pid)))
		w.want(0, w.Up("wg0"))
		bed.End(first)
		if !lives {
			bed.End(second)
		}
		other := w.reuse(pid, "sleep", "1000")
		r := w.Bed.Run(nil, w.Program, "exec", "wg0", "--", "ls", "/sys/class/net")
		if lives {
			w.want(0, r, "wg0")
			w.want(1, w.Up("wg0"), "already exists")
			w.want(0, w.Down("wg0"), "ip link delete")
			if is := ns.Run(t, "nsenter", "--net="+home, "ip", "-br", "link"); is != was {
				t.Errorf("left in the namespace:\n%s", is)
			}
		} else {
			w.want(1, r, "is gone")
			w.want(0, w.Down("wg0"))
		}
		bed.End(other)
		w.becomes(before)
	}
}

// TestContainerDNS: DNS= in a container is written into its resolv.conf, which two
// tunnels share in any order, and which is left alone once the container is gone.
func TestContainerDNS(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot()
	c := bed.Container(t, nil)
	file := fmt.Sprintf("/proc/%d/root/etc/resolv.conf", c.Process.Pid)
	holds := func(text string) {
		t.Helper()
		if got, err := os.ReadFile(file); err != nil || string(got) != text {
			t.Errorf("resolv.conf is %q, want %q (%v)", got, text, err)
		}
	}
	const was, first, second = "nameserver 198.51.100.53\n", "nameserver 10.1.0.1\n", "nameserver 10.2.0.1\nsearch example.com\n"
	keys := fmt.Sprintf("Namespace = %d\nTable = off\nDNS = ", c.Process.Pid)
	w.Config(t, "wga", config(1, keys+"10.1.0.1"))
	w.Config(t, "wgb", config(2, keys+"10.2.0.1, example.com"))
	for _, order := range [][]string{{"wga", "wgb"}, {"wgb", "wga"}} {
		w.want(0, w.Up("wga"))
		holds(first)
		w.want(0, w.Up("wgb"))
		holds(second)
		w.want(0, w.Down(order[0]))
		holds(map[string]string{"wga": second, "wgb": first}[order[0]])
		w.want(0, w.Down(order[1]))
		holds(was)
		w.same(before)
	}
	w.want(0, w.Up("wgb"))
	w.want(0, w.Bed.Run(nil, w.Program, "save", "wgb"))
	if saved, err := os.ReadFile("/etc/wireguard/wgb.conf"); err != nil || !strings.Contains(string(saved), "DNS = 10.2.0.1\nDNS = example.com\n") {
		t.Errorf("saved, %v:\n%s", err, saved)
	}
	bed.End(c)
	// A process of that number has an /etc with the very same text, which is its own.
	other := w.reuse(c.Process.Pid, "unshare", "--mount", "sh", "-ec", `mount -t tmpfs etc /etc; printf "$0" >/etc/resolv.conf; exec sleep 1000`, second)
	w.want(0, w.Down("wgb"))
	holds(second)
	bed.End(other)
	w.becomes(before)

	// It would be this machine's own file.
	shares := in(w, 0)
	for _, target := range []string{fmt.Sprint("pid:", shares.Process.Pid), fmt.Sprintf("/proc/%d/ns/net", shares.Process.Pid)} {
		w.Config(t, "wgb", config(2, "Namespace = "+target+"\nDNS = 10.2.0.1"))
		if r := w.Up("wgb"); r.Code != 1 || !strings.Contains(r.Output, "wgb.conf:2: DNS=") || strings.Contains(r.Output, "[#]") {
			t.Errorf("DNS= with %s: %v", target, r)
		}
		w.same(before)
	}
}

// TestShared: two tunnels come into one namespace, which is yet to be made, at once;
// and one comes while the other, whose it is, goes.
func TestShared(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot()
	w.Config(t, "wga", strings.ReplaceAll(config(1, "Namespace = box"), "::/0", "fd77::/16"))
	w.Config(t, "wgb", strings.ReplaceAll(config(2, "Namespace = box"), "0.0.0.0/0, ::/0", "10.77.0.0/16"))
	start := func(command, name string) *bed.Process {
		p, err := w.Start(nil, w.Program, command, name)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	rounds := 10
	if slow {
		rounds = 4
	}
	for range rounds {
		a, b := start("up", "wga"), start("up", "wgb")
		w.want(0, a.Wait())
		w.want(0, b.Wait())
		a, b = start("down", "wga"), start("down", "wgb")
		w.want(0, a.Wait())
		w.want(0, b.Wait())
		w.same(before)

		w.want(0, w.Up("wga"))
		a, b = start("down", "wga"), start("up", "wgb")
		w.want(0, a.Wait())
		w.want(0, b.Wait())
		if out := ns.Run(t, "ip", "-n", "box", "-br", "link"); !strings.Contains(out, "wgb ") {
			t.Errorf("in the namespace: %s", out)
		}
		w.want(0, w.Down("wgb"))
		w.same(before)
		if t.Failed() {
			break
		}
	}

	// One that waits for others finds another namespace of that name than it knew.
	ns.Run(t, "ip", "netns", "add", "box")
	lock, err := os.OpenFile("/run/wg-quickns/@lock", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	b := start("up", "wgb")
	bed.Wait(10*time.Second, func() bool { _, err := os.Stat("/run/wg-quickns/wgb@box/lock"); return err == nil })
	time.Sleep(300 * time.Millisecond)
	ns.Run(t, "ip", "netns", "delete", "box")
	lock.Close()
	w.want(0, b.Wait(), "ip netns add box")
	if out := ns.Run(t, "ip", "-n", "box", "-br", "link"); !strings.Contains(out, "wgb ") {
		t.Errorf("in the namespace: %s", out)
	}
	w.want(0, w.Down("wgb"))
	w.same(before)
}

// TestMany: two tunnels in one namespace, and ten namespaces at once; each down
// takes its own.
func TestMany(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot()
	w.Config(t, "wga", strings.ReplaceAll(config(1, "Namespace = box"), "::/0", "fd77::/16"))
	w.Config(t, "wgb", strings.ReplaceAll(config(2, "Namespace = box"), "0.0.0.0/0, ::/0", "10.77.0.0/16"))
	w.want(0, w.Up("wga"))
	w.want(0, w.Up("wgb"))
	links := func() string { return ns.Run(t, "ip", "-n", "box", "-br", "link") }
	w.want(0, w.Down("wga")) // the namespace goes with the last
	if out := links(); !strings.Contains(out, "wgb") || strings.Contains(out, "wga") {
		t.Errorf("left in it: %s", out)
	}
	w.want(0, w.Up("wga"))
	w.want(0, w.Down("wgb"))
	if out := links(); !strings.Contains(out, "wga") {
		t.Errorf("left in it: %s", out)
	}
	w.want(0, w.Down("wga"))
	w.same(before)

	// One that was there before stays.
	ns.Run(t, "ip", "netns", "add", "box")
	for _, name := range []string{"wga", "wgb"} {
		w.want(0, w.Up(name))
	}
	for _, name := range []string{"wga", "wgb"} {
		w.want(0, w.Down(name))
	}
	ns.Run(t, "ip", "netns", "delete", "box")
	w.same(before)

	var running []*bed.Process
	for n := range 10 {
		name := fmt.Sprint("wg", n)
		w.Config(t, name, config(n, fmt.Sprint("Namespace = box", n)))
		p, err := w.Start(nil, w.Program, "up", name)
		if err != nil {
			t.Fatal(err)
		}
		running = append(running, p)
	}
	for _, p := range running {
		w.want(0, p.Wait())
	}
	running = nil
	for n := range 10 {
		p, err := w.Start(nil, w.Program, "down", fmt.Sprint("wg", n))
		if err != nil {
			t.Fatal(err)
		}
		running = append(running, p)
	}
	for _, p := range running {
		w.want(0, p.Wait())
	}
	w.same(before)
}

// TestMaker: the tunnel that made a namespace and one that came into it know of each
// other; what both need stays until the last of them goes. The namespace goes with who
// made it, where the other is not to delete any: not before that has left.
func TestMaker(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot()
	for n, manage := range []string{"true", "false"} {
		name := []string{"wga", "wgb"}[n]
		w.Config(t, name, config(n+1, "Namespace = box\nBirthNamespace = box\nManageNamespace = "+manage))
		w.want(0, w.Up(name))
	}
	mark := func(want string) {
		t.Helper()
		if got := ns.Run(t, "ip", "netns", "exec", "box", "sysctl", "-n", "net.ipv4.conf.all.src_valid_mark"); got != want+"\n" {
			t.Errorf("src_valid_mark is %s, want %s", got, want)
		}
	}
	mark("1")
	w.want(1, w.Down("wga"), "wgb")
	mark("1")
	w.want(0, w.Down("wgb"))
	mark("0")
	w.want(0, w.Down("wga"))
	w.same(before)
}

// TestTwins: one name in two namespaces. A program can serve a name once, and says so.
func TestTwins(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot()
	w.Config(t, "wg0", config(1, "Namespace = one\nDNS = 10.1.0.1"))
	twin := filepath.Join(w.Dir, "wg0.conf")
	if err := os.WriteFile(twin, []byte(config(2, "Namespace = two\nDNS = 10.2.0.1")), 0o600); err != nil {
		t.Fatal(err)
	}
	w.want(0, w.Up("wg0"))
	alone := w.snapshot()
	if !w.kernelWireGuard() {
		w.want(2, w.Up(twin), "an interface wg0 is served in another network namespace", "take another name")
		w.same(alone)
		w.want(1, w.Down(twin), "is not a WireGuard interface")
		w.want(0, w.Down("wg0"))
		w.same(before)
		return
	}
	for _, gone := range []bool{false, true} {
		w.want(0, w.Up(twin))
		w.want(1, w.Up(twin), "already exists")
		if gone {
			for _, file := range []string{twin, "/etc/wireguard/wg0.conf"} {
				if err := os.Rename(file, file+".gone"); err != nil {
					t.Fatal(err)
				}
			}
		}
		w.want(0, w.Down(twin))
		w.same(alone)
		if gone {
			break
		}
	}
	w.want(0, w.Bed.Run(nil, w.Program, "exec", "wg0", "--", "ip", "-o", "addr"), "10.1.0.2/24")
	w.want(0, w.Down("wg0"))
	w.same(before)
}

// TestBadInput: each with the place of the mistake, and nothing changed.
func TestBadInput(t *testing.T) {
	w := newWorld(t)
	ns.New(t, "there")
	ns.Run(t, "bash", "-ec", `cd /run/netns; touch plain file uts; ln -s there link; mkdir folder; mkfifo pipe
		mount --bind /etc/passwd file; mount --bind /proc/self/ns/uts uts`)
	t.Cleanup(func() {
		ns.Run(t, "bash", "-ec", `cd /run/netns; umount file uts; rm plain file uts link pipe; rmdir folder`)
	})
	ns.Run(t, "ip", "-n", "there", "link", "add", "taken", "type", "veth")
	dead := in(w, 0)
	bed.End(dead)
	engine(t, "/run/docker.sock", map[string]string{
		"stopped": `{"State":{"Running":false,"Status":"exited","Pid":0}}`,
		"remote":  `{"State":{"Running":true,"Status":"running","Pid":0}}`,
		"ended":   fmt.Sprintf(`{"State":{"Running":true,"Status":"running","Pid":%d}}`, dead.Process.Pid),
		"odd":     `[]`,
	})
	before := w.snapshot()
	for value, want := range map[string]string{
		"a/b":                                "a name may hold no slash",
		"../there":                           "a name may hold no slash",
		"..":                                 "such a name is refused",
		".":                                  "such a name is refused",
		"-there":                             "such a name is refused",
		"a name":                             "no blank",
		strings.Repeat("n", 256):             "longer than a file's name",
		"99999999999":                        "neither a name nor a process ID",
		"0":                                  "neither a name nor a process ID",
		"plain":                              "/run/netns/plain is a file but no network namespace",
		"file":                               "/run/netns/file is a file but no network namespace",
		"uts":                                "/run/netns/uts is a file but no network namespace",
		"link":                               "/run/netns/link is a symbolic link",
		"folder":                             "/run/netns/folder is no regular file",
		"pipe":                               "/run/netns/pipe is no regular file",
		"4194303":                            "there is no process 4194303",
		"pid:4194303":                        "there is no process 4194303",
		"pid:there":                          "a process ID must follow pid:",
		fmt.Sprint(dead.Process.Pid):         fmt.Sprint("there is no process ", dead.Process.Pid),
		"/nowhere":                           "/nowhere: no such file",
		"/etc/passwd":                        "/etc/passwd is none",
		"/proc/self/ns/mnt":                  "/proc/self/ns/mnt is none",
		"/run/netns/plain":                   "/run/netns/plain is none",
		"docker:":                            "a name must follow docker:",
		"docker:stopped":                     "the container is not running (exited)",
		"docker:remote":                      "the container has no process on this machine",
		"docker:ended":                       fmt.Sprint("there is no process ", dead.Process.Pid),
		"docker:odd":                         "read the answer of docker",
		"docker:none":                        "docker has no container of that name",
		"podman:none":                        "no API socket at /run/podman/podman.sock",
		"unit:none.service":                  "find network namespace of unit none.service",
		"unit:none.socket":                   "only a .service has a main process",
		"machine:none":                       "find network namespace of machine none",
		"missing\nManageNamespace = false":   "it does not exist, and ManageNamespace=false",
		"there\nHookNamespace = moon":        "wg0.conf:4: ",
		"there\nManageNamespace = no":        "`no' is neither true nor false",
		"there\n# wg-quickns: Nmespace = x":  "wg0.conf:4: ",
		"there\nPrivateNamespace = x":        "PrivateNamespace",
		"/run/netns/there\nNamespaces = too": "Namespaces",
	} {
		for _, key := range []string{"Namespace", "BirthNamespace"} {
			if slow && key != "Namespace" {
				continue
			}
			w.Config(t, "wg0", config(1, "# a line\n"+key+" = "+value))
			place := "wg0.conf:3: "
			if strings.Contains(value, "\n") && !strings.Contains(value, "= false") {
				place = "" // of the next line
			}
			r := w.Up("wg0")
			if r.Code != 1 || !strings.Contains(r.Output, want) || !strings.Contains(r.Output, place) || strings.Contains(r.Output, "[#]") {
				t.Errorf("%s = %s: want %q with %q: %v", key, value, want, place, r)
			}
			w.same(before)
		}
	}
	w.Config(t, "taken", config(1, "Namespace = there"))
	w.want(1, w.Up("taken"), "`taken' already exists")
	w.same(before)
}

// engine answers as a container engine's API socket does, until the test ends.
func engine(t *testing.T, socket string, containers map[string]string) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/containers/"), "/json")
		text, ok := containers[name]
		if !ok {
			http.NotFound(w, r)
		}
		fmt.Fprint(w, text)
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
}

// TestNameTaken: the name is in use in the birth namespace, and free in the target.
func TestNameTaken(t *testing.T) {
	w := newWorld(t)
	w.Bed.Run(nil, "ip", "link", "add", "wg0", "type", "veth", "peer", "name", "wg0-peer")
	before := w.snapshot()
	w.Config(t, "wg0", config(1, "Namespace = box"))
	w.want(0, w.Up("wg0"))
	if out := ns.Run(t, "ip", "-n", "box", "-br", "link"); !strings.Contains(out, "wg0 ") {
		t.Errorf("in it: %s", out)
	}
	w.want(0, w.Down("wg0"))
	w.same(before)
}

// TestExec: in the tunnel's namespace, by its user, with three files, its status passed on.
func TestExec(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot()
	w.Config(t, "wg0", config(1, "Namespace = box"))
	w.want(0, w.Up("wg0"))
	run := func(env []string, args ...string) bed.Result {
		return w.Bed.Run(env, append([]string{w.Program, "exec"}, args...)...)
	}
	w.want(0, run(nil, "wg0", "--", "ls", "/sys/class/net"), "wg0")
	if r := run(nil, "--birth", "wg0", "--", "ip", "-o", "link"); !strings.Contains(r.Output, "uplink") {
		t.Errorf("--birth: %v", r)
	}
	w.want(0, run(nil, "--namespace", "bed-far", "wg0", "--", "ls", "/sys/class/net"), "uplink")
	w.want(7, run(nil, "wg0", "--", "sh", "-c", "exit 7"))
	w.want(127, run(nil, "wg0", "--", "no-such-program"))
	r := run([]string{"SUDO_UID=65534", "SUDO_GID=65534", "KEPT=yes"}, "wg0", "--", "sh", "-c", "id -u; id -g; echo $KEPT; grep -E '^Cap(Inh|Prm|Eff|Amb)' /proc/self/status")
	w.want(0, r, "65534\n65534\nyes\n")
	if slices.ContainsFunc(strings.Split(r.Output, "\n"), func(l string) bool {
		return strings.HasPrefix(l, "Cap") && !strings.HasSuffix(l, "\t0000000000000000")
	}) {
		t.Errorf("capabilities left:\n%s", r.Output)
	}
	w.want(1, run(nil, "wg0"), "no command")
	w.want(1, run(nil, "nothing", "--", "true"), "does not exist")
	w.want(0, w.Down("wg0"))
	w.same(before)
}
