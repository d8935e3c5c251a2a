package killswitch

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/test/bed"
	"wg-quickns/test/leak"
	"wg-quickns/test/ns"
)

const fullTunnel = "0.0.0.0/0, ::/0"

// TestWhoMayLeave: programs are told at once; DHCP and neighbour discovery go on;
// nobody learns the tunnel's addresses by ARP.
func TestWhoMayLeave(t *testing.T) {
	w := newWorld(t, "may")
	asks := func() int { // the gateway asks who has the tunnel's address
		w.capture.Forget()
		w.Far.Run("ip", "neigh", "flush", "dev", "uplink")
		w.Far.Run("ip", "route", "add", "10.77.0.2/32", "dev", "uplink")
		defer w.Far.Run("ip", "route", "del", "10.77.0.2/32", "dev", "uplink")
		w.Far.Try("ping", "-c2", "-W1", "10.77.0.2")
		return w.capture.Count("arp reply of 10.77.0.2")
	}
	w.config("", fullTunnel)
	w.run("up", "wg0")
	if asks() == 0 {
		t.Error("without a kill switch the control's ARP request is not answered")
	}
	w.run("down", "wg0")

	w.config("KillSwitch = true", fullTunnel)
	lines := w.run("up", "wg0")
	w.works()
	if noARP := strings.Contains(fmt.Sprint(lines), "the kernel has no nf_tables for ARP"); asks() > 0 != noARP {
		t.Errorf("an ARP request for the tunnel's address is answered: %v", !noARP)
	}

	err := w.NS.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.BindToDevice(fd, "uplink"); err != nil {
			return err
		}
		start := time.Now()
		err = unix.Connect(fd, leak.Sockaddr(leak.Far4, 80))
		if took := time.Since(start); !errors.Is(err, unix.ECONNREFUSED) || took > 3*time.Second {
			t.Errorf("connect past the tunnel: %v after %v", err, took)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		from, to int
		addr     netip.Addr
		leaves   bool
	}{
		{68, 67, netip.MustParseAddr("192.0.2.1"), true},
		{546, 547, netip.MustParseAddr("2001:db8::1"), true},
		{67, 68, netip.MustParseAddr("192.0.2.1"), false},
		{68, 69, netip.MustParseAddr("192.0.2.1"), false},
		{546, 547, netip.MustParseAddr("192.0.2.1"), false},
		{68, 67, netip.MustParseAddr("2001:db8::1"), false},
	} {
		w.capture.Forget()
		err := w.NS.Do(func() error {
			fd, err := leak.Open(leak.Family(c.addr), unix.SOCK_DGRAM, 0, "uplink")
			if err == nil {
				any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
				if c.addr.Is4() {
					err = unix.Bind(fd, leak.Sockaddr(any4, c.from))
				} else {
					err = unix.Bind(fd, leak.Sockaddr(any6, c.from))
				}
			}
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			err = unix.Sendto(fd, []byte("DHCP"), 0, leak.Sockaddr(c.addr, c.to))
			if errors.Is(err, unix.EPERM) && !c.leaves {
				err = nil
			} else if err == nil && !c.leaves {
				err = errors.New("no error")
			}
			return err
		})
		arrived := func() bool { return w.capture.Count("dhcp") > 0 }
		if err != nil || c.leaves && !bed.Wait(5*time.Second, arrived) || !c.leaves && arrived() {
			t.Errorf("UDP %d > %s:%d: %v, arrived: %v", c.from, c.addr, c.to, err, arrived())
		}
	}
	w.capture.Forget()
	for _, n := range []*ns.NS{w.NS, w.Far} {
		n.Run("ip", "-6", "neigh", "flush", "dev", "uplink")
	}
	w.Far.Try("ping", "-c1", "-W1", "2001:db8::2")
	if !bed.Wait(5*time.Second, func() bool { return w.capture.Count("neighbour discovery") > 0 }) {
		t.Error("no neighbour discovery")
	}
	w.down()
}

// TestTwo: of two tunnels with a kill switch each goes on without the other, and
// the last one opens.
func TestTwo(t *testing.T) {
	w := newWorld(t, "two")
	w.config("KillSwitch = true", fullTunnel)
	w.Config(t, "wg1", fmt.Sprintf("[Interface]\nPrivateKey = %s\nAddress = 10.88.0.1/24\nKillSwitch = true\n[Peer]\nPublicKey = %s\nAllowedIPs = 10.88.0.0/24\n",
		bed.Key("other"), leak.Public("nobody")))
	p := leak.Probe(t, w.NS, w.container)
	defer p.End()
	for _, order := range [][]string{{"wg0", "wg1"}, {"wg1", "wg0"}} {
		w.control(p)
		w.run("up", order[0])
		start := time.Now()
		w.run("up", order[1])
		w.works()
		w.run("down", order[0])
		time.Sleep(hold)
		if n, kinds := w.capture.Between(start, time.Now()); n > 0 {
			t.Errorf("%q: %d packets leaked: %v", order, n, kinds)
		}
		if order[0] == "wg1" {
			w.works()
		}
		w.run("down", order[1])
	}
	w.control(p)
	if out := w.NS.Run("nft", "list", "tables"); strings.Contains(out, "wg-quickns") {
		t.Errorf("left: %s", out)
	}
}

// TestElsewhere: in a namespace without the socket no encrypted packets leave either.
func TestElsewhere(t *testing.T) {
	w := newWorld(t, "born")
	inner := ns.New(t, "inner")
	ns.Veth(inner, "uplink", []string{"203.0.113.2/24"}, w.container, "side", []string{"203.0.113.9/24"})
	seen := leak.Start(t, w.container, "side")
	w.config("KillSwitch = true\nNamespace = inner", fullTunnel)
	sends := func(mark int) error {
		return inner.Do(func() error {
			fd, err := leak.Open(unix.AF_INET, unix.SOCK_DGRAM, 0, "uplink")
			if err == nil {
				err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark)
			}
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Sendto(fd, []byte(leak.Tag+"inner."), 0, leak.Sockaddr(leak.Far4, 9))
		})
	}
	if err := sends(51820); err != nil {
		t.Fatal(err)
	}
	if !bed.Wait(time.Second, func() bool { return seen.Count("probe inner") == 1 }) {
		t.Fatal("the control does not leave")
	}
	w.run("up", "wg0")
	if r := inner.Try("ping", "-c1", "-w15", "10.77.0.1"); r.Code != 0 {
		t.Errorf("ping: %s%s", r.Stdout, r.Stderr)
	}
	for _, mark := range []int{0, 51820} {
		if err := sends(mark); !errors.Is(err, unix.EPERM) {
			t.Errorf("with mark %d: %v", mark, err)
		}
	}
	if n := seen.Count("probe inner"); n != 1 {
		t.Errorf("%d packets left", n-1)
	}
	if out := w.NS.Run("nft", "list", "tables"); strings.Contains(out, "wg-quickns") {
		t.Errorf("where the socket is there are tables: %s", out)
	}
	w.run("down", "wg0")
	if err := sends(51820); err != nil {
		t.Errorf("after down: %v", err)
	}
}

// TestUpAgain: what an earlier run left is cleaned up by the next up, and nothing
// leaves meanwhile; nor after one that fails, until it has undone all else.
func TestUpAgain(t *testing.T) {
	w := newWorld(t, "again")
	w.config("KillSwitch = true", fullTunnel)
	p := leak.Probe(t, w.NS, w.container)
	defer p.End()
	w.control(p)
	steps := len(w.Steps(t, "up", "wg0"))
	w.down()
	for _, c := range []struct {
		name string
		left func() time.Time // leaves half a tunnel, and says from when on nothing may leave
	}{
		{"interface deleted", func() time.Time { start := w.up(); w.NS.Run("ip", "link", "del", "wg0"); return start }},
		{"up killed", func() time.Time {
			if r := w.Fault(fmt.Sprintf("kill-before:%d", steps), "up", "wg0"); r.Code != 128+9 {
				t.Fatalf("up, killed: %v", r)
			}
			return time.Now()
		}},
		{"down killed", func() time.Time {
			start := w.up()
			if r := w.Fault("kill-after:3", "down", "wg0"); r.Code != 128+9 {
				t.Fatalf("down, killed: %v", r)
			}
			return start
		}},
	} {
		start := c.left()
		lines := w.run("up", "wg0")
		w.works()
		time.Sleep(hold)
		if n, kinds := w.capture.Between(start, time.Now()); n > 0 {
			t.Errorf("%s, then up: %d packets leaked: %v\n%q", c.name, n, kinds, lines)
		}
		w.down()
		if out := w.NS.Run("nft", "list", "tables"); strings.Contains(out, "wg-quick-wg0") || strings.Contains(out, "wg-quickns") {
			t.Errorf("%s, then up, then down: left %s", c.name, out)
		}
		w.control(p)
	}
	// An up that fails leaves nothing, the kill switch of before neither.
	w.up()
	w.NS.Run("ip", "link", "del", "wg0")
	w.config("KillSwitch = true\nPreUp = exit 7", fullTunnel)
	if r := w.Up("wg0"); r.Code != 7 {
		t.Errorf("up with a PreUp that fails: %v", r)
	}
	w.control(p)
}

// TestTwoDefaults: two tunnels that each replace the default routes share those that
// lead nowhere; the last to go takes them.
func TestTwoDefaults(t *testing.T) {
	w := newWorld(t, "both")
	const conf = "KillSwitch = true\nRoutingStrategy = replace"
	w.config(conf, fullTunnel)
	text, err := os.ReadFile("/etc/wireguard/wg0.conf")
	if err != nil {
		t.Fatal(err)
	}
	w.Config(t, "wg1", strings.NewReplacer("10.77.0.2", "10.78.0.2", "fd77::2", "fd78::2").Replace(string(text)))
	routes := func() string {
		return w.NS.Run("bash", "-ec", "ip -4 route; ip -6 route; ip rule; ip -6 rule; nft list ruleset")
	}
	before := routes()
	w.run("up", "wg0")
	w.run("up", "wg1")
	w.run("down", "wg1")
	if n := strings.Count(routes(), "unreachable default"); n != 2 {
		t.Errorf("after down of the second: %d unreachable defaults\n%s", n, routes())
	}
	w.run("down", "wg0")
	if after := routes(); after != before {
		t.Errorf("not as before:\n%s\nbefore:\n%s", after, before)
	}
}

// TestGuarded: the guard puts the kill switch back, also where the interface is gone.
func TestGuarded(t *testing.T) {
	w := newWorld(t, "guarded")
	w.config("KillSwitch = true", fullTunnel)
	w.up()
	guard, err := w.Start(nil, w.Program, "guard", "wg0")
	if err != nil {
		t.Fatal(err)
	}
	is := func() bool { return w.NS.Try("nft", "list", "chain", "inet", "wg-quickns", "postrouting").Code == 0 }
	time.Sleep(time.Second / 2) // it has begun to watch
	for _, gone := range []string{"up", "interface gone"} {
		if gone != "up" {
			w.NS.Run("ip", "link", "del", "wg0")
		}
		w.NS.Run("nft", "flush", "ruleset")
		if !bed.Wait(5*time.Second, is) {
			t.Errorf("%s: the guard does not put the kill switch back", gone)
		}
	}
	guard.Signal(unix.SIGTERM)
	out := guard.Wait()
	if r := w.Down("wg0"); r.Code != 0 || is() {
		t.Errorf("down: %v\nguard: %v", r, out)
	}
}
