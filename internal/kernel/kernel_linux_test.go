package kernel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"

	"wg-quickns/internal/netns"
	"wg-quickns/internal/plan"
)

// newNS makes a network namespace for the test, with lo up. Never the host's own.
func newNS(t testing.TB) plan.NS {
	t.Helper()
	fds := make(chan int)
	errs := make(chan error)
	go func() { // a goroutine of its own whose thread ends with it
		err := netns.Do("", func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			fds <- fd
			return nil
		})
		if err != nil {
			errs <- err
		}
	}()
	select {
	case err := <-errs:
		t.Fatalf("make a network namespace (root needed): %v", err)
		return ""
	case fd := <-fds:
		t.Cleanup(func() { unix.Close(fd) })
		ns := plan.NS(fmt.Sprintf("/proc/self/fd/%d", fd))
		sh(t, ns, "ip link set lo up")
		return ns
	}
}

func try(ns plan.NS, script string) (string, error) {
	var out []byte
	err := netns.Do(string(ns), func() (err error) {
		c := exec.Command("sh", "-ec", script)
		// A namespace is named by a file descriptor of this process.
		c.Env = append(os.Environ(), "LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
		out, err = c.CombinedOutput()
		return err
	})
	return string(out), err
}

// sh runs a shell script in ns.
func sh(t testing.TB, ns plan.NS, script string) string {
	t.Helper()
	out, err := try(ns, script)
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return out
}

func newDoer(t testing.TB, opt Options) *Doer {
	t.Helper()
	d := New(opt)
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return d
}

func do(t testing.TB, d *Doer, ns plan.NS, s plan.Step) plan.Outcome {
	t.Helper()
	out, err := d.Do(context.Background(), ns, s)
	if err != nil {
		t.Fatalf("%s: %v", s.Kind(), err)
	}
	return out
}

func exists(t testing.TB, d *Doer, ns plan.NS, s plan.Step, want bool) {
	t.Helper()
	got, err := d.Exists(context.Background(), ns, s)
	if err != nil || got != want {
		t.Errorf("Exists(%s %+v) = %v, %v, want %v", s.Kind(), s, got, err, want)
	}
}

// kernelWireGuard asks the kernel whether it has WireGuard.
func kernelWireGuard(t testing.TB) bool {
	t.Helper()
	out, err := try(newNS(t), "ip link add probe type wireguard")
	if err != nil && !strings.Contains(out, "Unknown device type") && !strings.Contains(out, "not supported") {
		t.Fatalf("ip link add type wireguard: %s", out)
	}
	return err == nil
}

// inProcess serves userspace WireGuard by this very process, as wireguard-go does.
func inProcess(t testing.TB) func(context.Context, plan.NS, string) (string, error) {
	return func(_ context.Context, ns plan.NS, name string) (string, error) {
		var tunnel tun.Device
		var dev *device.Device
		err := netns.Do(string(ns), func() (err error) {
			if tunnel, err = createTUN(name); err != nil {
				return err
			}
			dev = device.NewDevice(tunnel, bindIn{conn.NewDefaultBind(), ns}, &device.Logger{
				Verbosef: func(string, ...any) {}, Errorf: log.New(io.Discard, "", 0).Printf,
			})
			return nil
		})
		if err != nil {
			return "", err
		}
		f, err := ipc.UAPIOpen(name)
		if err != nil {
			return "", err
		}
		l, err := ipc.UAPIListen(name, f)
		if err != nil {
			return "", err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go dev.IpcHandle(c)
			}
		}()
		go func() {
			<-dev.Wait()
			l.Close()
			f.Close()
			runtime.GC() // UAPIOpen keeps a copy of the socket, which only the end of the process closes
		}()
		t.Cleanup(dev.Close)
		return "in-process", nil
	}
}

// bindIn opens the UDP sockets in a namespace: this process lives in another.
type bindIn struct {
	conn.Bind
	ns plan.NS
}

func (b bindIn) Open(port uint16) (fns []conn.ReceiveFunc, actual uint16, err error) {
	err = netns.Do(string(b.ns), func() (err error) {
		fns, actual, err = b.Bind.Open(port)
		return err
	})
	return fns, actual, err
}

// createTUN makes /dev/net/tun first where there is no udev.
func createTUN(name string) (tun.Device, error) {
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		if err := os.MkdirAll("/dev/net", 0o755); err != nil {
			return nil, err
		}
		if err := unix.Mknod("/dev/net/tun", unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))); err != nil {
			return nil, err
		}
	}
	return tun.CreateTUN(name, 1420)
}

// name makes an interface name that no test running beside this one has:
// UAPI sockets are shared by all namespaces.
func name(t testing.TB) string {
	return fmt.Sprintf("wk%d", os.Getpid())
}

// addWG makes a WireGuard interface, the kernel's if it has them.
func addWG(t testing.TB, ns plan.NS) (d *Doer, link string, undo plan.Link) {
	t.Helper()
	d = newDoer(t, Options{Userspace: inProcess(t)})
	link = name(t)
	out := do(t, d, ns, plan.Link{Name: link})
	return d, link, out.Undo[0].(plan.Link)
}

func prefixes(list ...string) (out []plan.Prefix) {
	for _, s := range list {
		out = append(out, plan.Prefix{Prefix: netip.MustParsePrefix(s)})
	}
	return out
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// same asserts that commands print the same in two namespaces.
func same(t *testing.T, ours, theirs plan.NS, commands ...string) {
	t.Helper()
	for _, c := range commands {
		got, want := sh(t, ours, c), sh(t, theirs, c)
		if got != want {
			t.Errorf("%s\nours:\n%s\nby hand:\n%s", c, got, want)
		}
	}
}

func TestLink(t *testing.T) {
	ctx := context.Background()
	ns := newNS(t)
	d, link, undo := addWG(t, ns)
	if undo.Name != link || !undo.Delete || undo.Index == 0 || (undo.Userspace == "") != kernelWireGuard(t) {
		t.Fatalf("undo %+v", undo)
	}
	exists(t, d, ns, plan.Link{Name: link}, true)
	if _, err := d.Do(ctx, ns, plan.Link{Name: link}); !errors.Is(err, unix.EEXIST) {
		t.Errorf("second add: %v, want EEXIST", err)
	}
	if names, err := d.WireGuards(ns); err != nil || !contains(names, link) {
		t.Errorf("WireGuards: %v, %v", names, err)
	}
	exists(t, d, ns, plan.LinkUp{Name: link, MTU: 1380}, false)
	do(t, d, ns, plan.LinkUp{Name: link, MTU: 1380})
	exists(t, d, ns, plan.LinkUp{Name: link, MTU: 1380}, true)
	if out := sh(t, ns, "ip link show dev "+link); !strings.Contains(out, "mtu 1380") || !strings.Contains(out, "UP") {
		t.Errorf("after LinkUp: %s", out)
	}
	// An index that is not the link's: what was made is gone already.
	do(t, d, ns, plan.Link{Name: link, Delete: true, Index: undo.Index + 100, Userspace: ""})
	exists(t, d, ns, plan.Link{Name: link}, true)

	exists(t, d, ns, undo, true)
	exists(t, d, ns, plan.Link{Name: link, Delete: true}, true)
	exists(t, d, ns, plan.Link{Name: link, Delete: true, Index: undo.Index + 100}, false)
	for range 2 { // the second finds nothing
		do(t, d, ns, undo)
		exists(t, d, ns, undo, false)
		exists(t, d, ns, plan.Link{Name: link}, false)
	}
	if _, err := os.Stat(uapiPath(link)); err == nil {
		t.Error("the UAPI socket is still there")
	}
	if names, err := d.WireGuards(ns); err != nil || contains(names, link) {
		t.Errorf("WireGuards after delete: %v, %v", names, err)
	}
	// The name is free again at once. One that was renamed is the same still, and one
	// that has its name now is not; without an index it is deleted by name.
	again := do(t, d, ns, plan.Link{Name: link}).Undo[0].(plan.Link)
	sh(t, ns, "ip link set "+link+" name other; ip link add "+link+" type veth peer name peer")
	exists(t, d, ns, again, true)
	do(t, d, ns, again)
	exists(t, d, ns, again, false)
	exists(t, d, ns, plan.Link{Name: "other"}, false)
	exists(t, d, ns, plan.Link{Name: link}, true)
	sh(t, ns, "ip link del "+link)
	again = do(t, d, ns, plan.Link{Name: link}).Undo[0].(plan.Link)
	again.Index = 0
	do(t, d, ns, again)
	exists(t, d, ns, plan.Link{Name: link}, false)
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

func TestLinkOfSomebodyElse(t *testing.T) {
	ns := newNS(t)
	d := newDoer(t, Options{})
	sh(t, ns, "ip link add wg0 type veth peer name other")
	l, _, err := d.Link(ns, "wg0")
	if err != nil || l.Type != "veth" {
		t.Fatalf("%+v, %v", l, err)
	}
	exists(t, d, ns, plan.Link{Name: "wg0", Delete: true}, false)
	do(t, d, ns, plan.Link{Name: "wg0", Delete: true})
	do(t, d, ns, plan.Link{Name: "wg0", Delete: true, Index: l.Index})
	exists(t, d, ns, plan.Link{Name: "wg0"}, true)
}

func TestStaleSocket(t *testing.T) {
	d := newDoer(t, Options{})
	link := name(t) + "s"
	if err := os.MkdirAll(filepath.Dir(uapiPath(link)), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: uapiPath(link)})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // as SIGKILL leaves it
	l.Close()
	ns := newNS(t)
	if names, err := d.WireGuards(ns); err != nil || contains(names, link) {
		t.Errorf("WireGuards: %v, %v: nobody serves %s", names, err, link)
	}
	do(t, d, ns, plan.Link{Name: link, Delete: true, Index: 7, Userspace: "wireguard-go"})
	if _, err := os.Stat(uapiPath(link)); err == nil {
		t.Error("the stale socket is still there")
		os.Remove(uapiPath(link))
	}
}

func TestNoKernelWireGuardNoUserspace(t *testing.T) {
	if kernelWireGuard(t) {
		return // the other half of TestLink
	}
	_, err := newDoer(t, Options{}).Do(context.Background(), newNS(t), plan.Link{Name: "wg0"})
	if !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("%v, want EOPNOTSUPP", err)
	}
}

const veth = "ip link add wg0 type veth peer name wg1; ip link set wg0 addrgenmode none up; ip link set wg1 addrgenmode none up; "

func TestAddrsLikeIP(t *testing.T) {
	list := []string{"10.0.0.1/24", "10.0.0.2/24", "192.0.2.7/32", "127.3.0.1/8", "10.9.0.1/31", "2001:db8::1/64", "fe80::7/64", "2001:db8::2/128", "::ffff:1.2.3.4/128"}
	ours, theirs := newNS(t), newNS(t)
	sh(t, ours, veth)
	cmds := veth
	for _, a := range list {
		cmds += "ip address add " + a + " dev wg0;"
	}
	sh(t, theirs, cmds)
	sh(t, theirs, "ip address add 10.11.0.1/24 dev wg0 noprefixroute; ip address add 2001:db8:7::1/64 dev wg0 noprefixroute")
	d := newDoer(t, Options{})
	step := plan.Addr{Link: "wg0", List: prefixes(list...)}
	exists(t, d, ours, step, false)
	do(t, d, ours, step)
	exists(t, d, ours, step, true)
	do(t, d, ours, plan.Addr{Link: "wg0", NoPrefixRoute: true, List: prefixes("10.11.0.1/24", "2001:db8:7::1/64")})
	strip := " | sed -E 's/link\\/ether [0-9a-f:]+//; s/ tentative//; s/maxmtu.*//'"
	same(t, ours, theirs, "ip -4 -d addr show dev wg0"+strip, "ip -6 -d addr show dev wg0"+strip, "ip -4 route show table all dev wg0", "ip -6 route show dev wg0 | sort")

	got, err := d.Addresses(ours, "wg0")
	if err != nil {
		t.Fatal(err)
	}
	brief := strings.Fields(sh(t, ours, "ip -all -brief address show dev wg0"))[2:]
	if fmt.Sprint(got) != fmt.Sprint(brief) {
		t.Errorf("Addresses %v, ip prints %v", got, brief)
	}

	_, err = d.Do(context.Background(), ours, plan.Addr{Link: "wg0", List: prefixes("10.1.0.1/24", "10.0.0.2/24", "10.2.0.1/24")})
	var se *plan.StepError
	if !errors.As(err, &se) || se.Index != 1 || !errors.Is(err, unix.EEXIST) {
		t.Errorf("address that is there: %v, want EEXIST at 1", err)
	}
	step.Delete = true
	do(t, d, ours, step)
	do(t, d, ours, step)
	do(t, d, ours, plan.Addr{Link: "gone", Delete: true, List: step.List})
	if _, err := d.Do(context.Background(), ours, plan.Addr{Link: "gone", List: step.List}); !errors.Is(err, unix.ENODEV) {
		t.Errorf("address on no link: %v, want ENODEV", err)
	}
}

func TestRoutesLikeIP(t *testing.T) {
	for _, table := range []uint32{0, 200, 51820} {
		list := []string{"10.0.0.0/8", "192.0.2.0/24", "192.0.2.1/32", "0.0.0.0/0", "2001:db8::/32", "2001:db8:1::1/128", "::/0", "0.0.0.0/1"}
		ours, theirs := newNS(t), newNS(t)
		sh(t, ours, veth)
		cmds := veth
		for _, p := range list {
			cmds += "ip route add " + p + " dev wg0"
			if table != 0 {
				cmds += fmt.Sprint(" table ", table)
			}
			cmds += ";"
		}
		sh(t, theirs, cmds)
		d := newDoer(t, Options{})
		step := plan.Route{Link: "wg0", Table: table, List: prefixes(list...)}
		exists(t, d, ours, step, false)
		do(t, d, ours, step)
		exists(t, d, ours, step, true)
		elsewhere := step
		elsewhere.Table = 77
		exists(t, d, ours, elsewhere, false)
		same(t, ours, theirs, "ip -4 -d -N route show table all dev wg0", "ip -6 -d -N route show table all dev wg0")

		_, err := d.Do(context.Background(), ours, plan.Route{Link: "wg0", Table: table, List: prefixes("172.16.0.0/12", "fd00::/8", "10.0.0.0/8", "2001:db8::/32")})
		var se *plan.StepError
		if !errors.As(err, &se) || se.Index != 2 || !errors.Is(err, unix.EEXIST) {
			t.Errorf("route that is there: %v, want EEXIST at 2", err)
		}
		step.Delete = true
		do(t, d, ours, step)
		do(t, d, ours, step)
	}
}

func TestRulesLikeIP(t *testing.T) {
	ours, theirs := newNS(t), newNS(t)
	rules := []struct {
		step plan.Rule
		ip   string
	}{
		{plan.Rule{Priority: 32765, NotFwMark: 51820, Table: 51820, SuppressPrefixLen: -1}, "ip -4 rule add not fwmark 51820 table 51820"},
		{plan.Rule{Priority: 32764, Table: plan.TableMain, SuppressPrefixLen: 0}, "ip -4 rule add table main suppress_prefixlength 0"},
		{plan.Rule{IPv6: true, Priority: 32765, NotFwMark: 51820, Table: 51820, SuppressPrefixLen: -1}, "ip -6 rule add not fwmark 51820 table 51820"},
		{plan.Rule{IPv6: true, Priority: 32764, Table: plan.TableMain, SuppressPrefixLen: 0}, "ip -6 rule add table main suppress_prefixlength 0"},
		{plan.Rule{Priority: 99, NotFwMark: 7, To: netip.MustParsePrefix("10.0.0.0/8"), Table: 200, SuppressPrefixLen: -1}, "ip rule add to 10.0.0.0/8 not fwmark 7 table 200 priority 99"},
		{plan.Rule{IPv6: true, Priority: 98, To: netip.MustParsePrefix("2001:db8::7/128"), Table: 70000, SuppressPrefixLen: 3}, "ip -6 rule add to 2001:db8::7/128 table 70000 suppress_prefixlength 3 priority 98"},
	}
	d := newDoer(t, Options{})
	before := sh(t, ours, "ip -d rule; ip -6 -d rule")
	for _, r := range rules {
		exists(t, d, ours, r.step, false)
		do(t, d, ours, r.step)
		exists(t, d, ours, r.step, true)
		sh(t, theirs, r.ip)
		if _, err := d.Do(context.Background(), ours, r.step); !errors.Is(err, unix.EEXIST) {
			t.Errorf("second %v: %v, want EEXIST", r.step.Commands(), err)
		}
	}
	same(t, ours, theirs, "ip -d rule", "ip -j -d rule show", "ip -6 -d rule", "ip -j -6 -d rule show")
	// Another tunnel's rule that differs only by its priority stays.
	foreign := plan.Rule{Priority: 100, Table: plan.TableMain, SuppressPrefixLen: 0}
	do(t, d, ours, foreign)
	for range 2 {
		for _, r := range rules {
			r.step.Delete = true
			do(t, d, ours, r.step)
		}
	}
	exists(t, d, ours, foreign, true)
	foreign.Delete = true
	do(t, d, ours, foreign)
	if after := sh(t, ours, "ip -d rule; ip -6 -d rule"); after != before {
		t.Errorf("after deleting all:\n%s\nbefore:\n%s", after, before)
	}
}

func TestSysctl(t *testing.T) {
	ns, other := newNS(t), newNS(t)
	d := newDoer(t, Options{})
	s := plan.Sysctl{Name: "net.ipv4.conf.all.src_valid_mark", Value: "1"}
	exists(t, d, ns, s, false)
	out := do(t, d, ns, s)
	exists(t, d, ns, s, true)
	exists(t, d, other, s, false)
	if got := strings.TrimSpace(sh(t, ns, "cat /proc/sys/net/ipv4/conf/all/src_valid_mark")); got != "1" {
		t.Errorf("src_valid_mark is %q", got)
	}
	do(t, d, ns, out.Undo[0])
	exists(t, d, ns, s, false)

	sh(t, ns, "ip link add v.0 type veth peer name v1")
	do(t, d, ns, plan.Sysctl{Name: "net.ipv4.conf.v/0.rp_filter", Value: "2"})
	if got := strings.TrimSpace(sh(t, ns, "cat /proc/sys/net/ipv4/conf/v.0/rp_filter")); got != "2" {
		t.Errorf("rp_filter of v.0 is %q", got)
	}
	if _, err := d.Do(context.Background(), ns, plan.Sysctl{Name: "net.no.such", Value: "1"}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("no such sysctl: %v, want ENOENT", err)
	}
	if _, err := d.Do(context.Background(), ns, plan.Sysctl{Name: s.Name, Value: "x"}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("bad value: %v, want EINVAL", err)
	}
}
