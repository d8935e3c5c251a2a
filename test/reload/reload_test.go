// Package reload tests that `reload` leads where `up` of the changed file would
// have led, that it touches nothing else, and what it refuses.
package reload

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"wg-quickns/test/bed"
	"wg-quickns/test/ns"
	"wg-quickns/test/programs"
)

func TestMain(m *testing.M) { ns.Main(m) }

// file is a config: keys of [Interface], what the first peer is allowed, and more peers.
func file(keys, allowed, more string) string {
	return fmt.Sprintf("[Interface]\nPrivateKey = %s\n%s\n[Peer]\nPublicKey = %s\nAllowedIPs = %s\nEndpoint = 192.0.2.1:51820\n%s",
		bed.Key("private1"), keys, bed.Key("public1"), allowed, more)
}

func peer(n int, more string) string {
	return fmt.Sprintf("[Peer]\nPublicKey = %s\nAllowedIPs = 10.%d.0.0/16\n%s\n", bed.Key(fmt.Sprint("public", n)), n, more)
}

// wg is the real wg(8).
func wg(t *testing.T) string {
	t.Helper()
	path, err := programs.WG()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// seen is the state, and what WireGuard has without ports that it chose.
func seen(t *testing.T, b *bed.Bed) string {
	t.Helper()
	bed.Wait(5*time.Second, func() bool { return b.NS.Run("ip", "-6", "addr", "show", "tentative") == "" })
	s, err := b.Take()
	if err != nil {
		t.Fatal(err)
	}
	dump := b.NS.Run(wg(t), "show", "wg0", "dump")
	lines := strings.Split(strings.TrimSpace(dump), "\n")
	slices.Sort(lines[1:])
	var out strings.Builder
	index, err := b.Index("wg0")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(s.String()) {
		out.WriteString(strings.Replace(line, fmt.Sprintf(" on %d\n", index), " on wg0\n", 1))
	}
	for i, line := range lines {
		f := strings.Split(line, "\t")
		if i == 0 {
			fmt.Fprintln(&out, f[0], f[1], f[3])
		} else { // no handshakes and bytes
			fmt.Fprintln(&out, f[0], f[1], f[2], f[3], f[7])
		}
	}
	return out.String()
}

func TestReload(t *testing.T) {
	plain := "Address = 10.1.0.2/24, fd00:1::2/64\nListenPort = 7777"
	full := "0.0.0.0/0, ::/0"
	steps := []struct{ name, text string }{
		{"full", file(plain, full, "")},
		{"more of everything", file("Address = 10.1.0.2/24, fd00:1::2/64, 10.11.0.2/24\nListenPort = 7778\nMTU = 1390\nDNS = 10.1.0.1, example.com", full+", 10.88.0.0/16",
			peer(7, "PersistentKeepalive = 25\nEndpoint = 198.51.100.9:1")+peer(8, "PresharedKey = "+bed.Key("psk")))},
		{"a peer changed, one gone", file("Address = 10.1.0.2/24, fd00:1::2/64, 10.11.0.2/24\nListenPort = 7778\nMTU = 1390\nDNS = 10.1.0.3", full, peer(7, "Endpoint = 198.51.100.10:2"))},
		{"one family", file(plain, "0.0.0.0/0", "")},
		{"none", file(plain, "10.66.0.0/16", "")},
		{"again", file(plain, full, "")},
	}
	for _, strategy := range []string{"auto", "replace", "override", "rules", "auto\nKillSwitch = true", "auto\nFwMark = 77", "auto\nTable = 99"} {
		t.Run(strings.ReplaceAll(strategy, "\n", ", "), func(t *testing.T) {
			b := bed.New(t, "bed")
			b.NS.Run("ip", "route", "add", "198.51.100.10", "via", "192.0.2.1") // somebody's way to an endpoint that comes
			set := func(text string) {
				b.Config(t, "wg0", strings.Replace(text, "[Interface]\n", "[Interface]\nRoutingStrategy = "+strategy+"\n", 1))
			}
			run := func(command string) bed.Result {
				t.Helper()
				r := b.Run(nil, b.Program, command, "wg0")
				if r.Code != 0 {
					t.Fatalf("%s: %s", command, r)
				}
				return r
			}
			before, err := b.Take()
			if err != nil {
				t.Fatal(err)
			}
			// where up leads
			want := make([]string, len(steps))
			for i, s := range steps {
				set(s.text)
				run("up")
				want[i] = seen(t, b)
				run("down")
			}
			set(steps[0].text)
			run("up")
			for i, s := range steps {
				set(s.text)
				r := run("reload")
				if i == 0 && strings.Contains(r.Output, "[#]") {
					t.Errorf("nothing changed, yet: %s", r)
				}
				route, wg := strings.Index(r.Output, "add 198.51.100.9"), strings.Index(r.Output, "wg syncconf")
				if i == 1 && strings.HasPrefix(strategy, "override") && (route < 0 || wg < route) {
					t.Errorf("no route to a new endpoint before the endpoint: %s", r)
				}
				if got := seen(t, b); got != want[i] {
					t.Errorf("%s: reload leads to\n%s\nand up to\n%s", s.name, got, want[i])
				}
				if r := run("reload"); strings.Contains(r.Output, "[#]") {
					t.Errorf("%s: a second reload: %s", s.name, r)
				}
				if r := b.Run(nil, b.Program, "status", "wg0"); r.Code != 0 {
					t.Errorf("%s: status: %s", s.name, r)
				}
			}
			run("down")
			after := before
			if !bed.Wait(5*time.Second, func() bool { // a userspace implementation takes a moment to end
				if after, err = b.Take(); err != nil {
					t.Fatal(err)
				}
				return after.String() == before.String()
			}) {
				t.Errorf("after down\n%s\nbefore up\n%s", after, before)
			}
		})
	}
}

// TestNamespace: a tunnel in another namespace with a resolv.conf there.
func TestNamespace(t *testing.T) {
	b := bed.New(t, "bed")
	b.Config(t, "wg0", file("Address = 10.1.0.2/24\nNamespace = box\nDNS = 10.1.0.1", "0.0.0.0/0", ""))
	if r := b.Up("wg0"); r.Code != 0 {
		t.Fatal(r)
	}
	b.Config(t, "wg0", file("Address = 10.1.0.3/24\nNamespace = box\nDNS = 10.1.0.9", "10.5.0.0/16", ""))
	if r := b.Run(nil, b.Program, "reload", "wg0"); r.Code != 0 {
		t.Fatal(r)
	}
	if out := ns.Run(t, "ip", "-n", "box", "route"); strings.Contains(out, "default") || !strings.Contains(out, "10.5.0.0/16") {
		t.Errorf("routes: %s", out)
	}
	if text, err := os.ReadFile("/etc/netns/box/resolv.conf"); err != nil || string(text) != "nameserver 10.1.0.9\n" {
		t.Errorf("resolv.conf: %q, %v", text, err)
	}
	if r := b.Down("wg0"); r.Code != 0 {
		t.Error(r)
	}
	if _, err := os.Stat("/etc/netns/box"); err == nil {
		t.Error("/etc/netns/box is left")
	}
}

// standIn is a systemd-resolved(8) that remembers what it was told.
type standIn struct{ told chan string }

func (s standIn) SetLinkDNS(index int32, servers []struct {
	Family  int32
	Address []byte
}) *dbus.Error {
	for _, a := range servers {
		s.told <- fmt.Sprint(index, " ", net.IP(a.Address))
	}
	return nil
}

func (standIn) SetLinkDomains(int32, []struct {
	Name  string
	Route bool
}) *dbus.Error {
	return nil
}

func (standIn) RevertLink(int32) *dbus.Error { return nil }

// TestResolved: systemd-resolved is told of the interface that is there.
func TestResolved(t *testing.T) {
	b := bed.New(t, "bed")
	b.Resolvconf(t, "")
	conf, socket := b.Dir+"/conf", "unix:path="+b.Dir+"/bus"
	text := "<busconfig><listen>" + socket + `</listen><policy context="default"><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>`
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon := exec.Command("dbus-daemon", "--nofork", "--config-file="+conf)
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bed.End(daemon) })
	var bus *dbus.Conn
	if !bed.Wait(10*time.Second, func() (ok bool) { var err error; bus, err = dbus.Connect(socket); return err == nil }) {
		t.Fatal("no bus")
	}
	defer bus.Close()
	const name = "org.freedesktop.resolve1"
	s := standIn{make(chan string, 9)}
	if err := bus.Export(s, "/org/freedesktop/resolve1", name+".Manager"); err != nil {
		t.Fatal(err)
	}
	if _, err := bus.RequestName(name, dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	run := func(command string) string {
		t.Helper()
		c := exec.Command(b.Program, command, "wg0") // where PID 1 is: systemd-resolved knows no other links
		c.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+socket)
		if r := ns.Try(c); r.Code != 0 {
			t.Fatal(command, r)
		}
		select {
		case told := <-s.told:
			return told
		default:
			return ""
		}
	}
	for i, server := range []string{"10.1.0.1", "10.1.0.9"} {
		b.Config(t, "wg0", file("Address = 10.1.0.2/24\nDNS = "+server, "10.5.0.0/16", ""))
		told := run([]string{"up", "reload"}[i])
		link, err := net.InterfaceByName("wg0")
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprint(link.Index, " ", server); told != want {
			t.Errorf("systemd-resolved was told %q, want %q", told, want)
		}
	}
	run("down")
}

// TestRecord: the record has what the file said at the last reload: its table, and its
// hooks for a down without the file.
func TestRecord(t *testing.T) {
	b := bed.New(t, "bed")
	b.Config(t, "wg0", file("Address = 10.1.0.2/24\nPostDown = echo of up", "0.0.0.0/0", ""))
	for _, command := range []string{"up", "reload", "reload"} {
		if r := b.Run(nil, b.Program, command, "wg0"); r.Code != 0 {
			t.Fatal(r)
		}
		b.Config(t, "wg0", file("Address = 10.1.0.2/24\nTable = 99\nPostDown = echo of reload", "0.0.0.0/0", ""))
	}
	// to table 99 nothing leads, so that no route goes past it: guard and status have no say
	b.NS.Run("ip", "route", "add", "198.51.100.0/25", "via", "192.0.2.1")
	if r := b.Run(nil, b.Program, "status", "wg0"); r.Code != 0 {
		t.Errorf("status: %s", r)
	}
	b.NS.Run("ip", "route", "del", "198.51.100.0/25")
	if err := os.Remove("/etc/wireguard/wg0.conf"); err != nil {
		t.Fatal(err)
	}
	if r := b.Run(nil, b.Program, "down", "wg0"); r.Code != 0 || !strings.Contains(r.Output, "of reload") || strings.Contains(r.Output, "of up") {
		t.Errorf("down: %s", r)
	}
}

// TestRefused: what cannot be changed in place is said, and nothing is touched.
func TestRefused(t *testing.T) {
	b := bed.New(t, "bed")
	keys := "Address = 10.1.0.2/24"
	b.Config(t, "wg0", file(keys, "0.0.0.0/0", ""))
	if r := b.Run(nil, b.Program, "reload", "wg0"); r.Code != 1 || !strings.Contains(r.Output, "is not up") {
		t.Errorf("before up: %s", r)
	}
	if r := b.Up("wg0"); r.Code != 0 {
		t.Fatal(r)
	}
	b.Config(t, "wg0", file(keys+"\nPreDown = "+b.Program+" reload %i 2>"+b.Dir+"/said; false", "0.0.0.0/0", ""))
	if r := b.Down("wg0"); r.Code != 1 {
		t.Error(r)
	}
	if said, _ := os.ReadFile(b.Dir + "/said"); !strings.Contains(string(said), "reload was called by a hook of `wg0' itself") {
		t.Errorf("by a hook: %q", said)
	}
	before := seen(t, b)
	for extra, what := range map[string]string{
		"Namespace = box":           "Namespace cannot be changed",
		"BirthNamespace = box":      "BirthNamespace cannot be changed",
		"RoutingStrategy = replace": "RoutingStrategy cannot be changed",
		"KillSwitch = true":         "KillSwitch cannot be changed",
		"Address = nonsense":        "wg0.conf:4",
	} {
		b.Config(t, "wg0", file(keys+"\n"+extra, "10.0.0.0/8", ""))
		if r := b.Run(nil, b.Program, "reload", "wg0"); r.Code != 1 || !strings.Contains(r.Output, what) || strings.Contains(r.Output, "[#]") {
			t.Errorf("%s: %s", extra, r)
		}
		if after := seen(t, b); after != before {
			t.Errorf("%s changed something:\n%s\nbefore:\n%s", extra, after, before)
		}
	}
	if r := b.Down("wg0"); r.Code != 0 {
		t.Error(r)
	}
	// of a namespace that up makes, and of hooks in it
	for extra, what := range map[string]string{"HookNamespace = birth": "HookNamespace cannot be changed", "ManageNamespace = false": "ManageNamespace cannot be changed"} {
		b.Config(t, "wg0", file(keys+"\nNamespace = box", "10.0.0.0/8", ""))
		if r := b.Up("wg0"); r.Code != 0 {
			t.Fatal(r)
		}
		b.Config(t, "wg0", file(keys+"\nNamespace = box\n"+extra, "10.0.0.0/9", ""))
		if r := b.Run(nil, b.Program, "reload", "wg0"); r.Code != 1 || !strings.Contains(r.Output, what) || strings.Contains(r.Output, "[#]") {
			t.Errorf("%s: %s", extra, r)
		}
		if r := b.Down("wg0"); r.Code != 0 {
			t.Error(r)
		}
	}
}

// TestRetries: a name that does not resolve for now is asked for again as often as `up`
// would.
func TestRetries(t *testing.T) {
	b := bed.New(t, "bed")
	if err := os.WriteFile("/etc/resolv.conf", []byte("nameserver 192.0.2.1\n"), 0o644); err != nil { // refuses
		t.Fatal(err)
	}
	text := file("Address = 10.1.0.2/24", "10.5.0.0/16", "")
	b.Config(t, "wg0", text)
	if r := b.Up("wg0"); r.Code != 0 {
		t.Fatal(r)
	}
	b.Config(t, "wg0", strings.Replace(text, "192.0.2.1:", "name.example:", 1))
	r := b.Run([]string{"WG_ENDPOINT_RESOLUTION_RETRIES=0"}, b.Program, "reload", "wg0")
	if r.Code != 1 || !strings.Contains(r.Output, "name.example") || strings.Contains(r.Output, "Trying again") {
		t.Error(r)
	}
	if r := b.Down("wg0"); r.Code != 0 {
		t.Error(r)
	}
}

// TestOnePeer: of a thousand peers one has changed. The others are not asked for, and
// a TCP connection through another one goes on in its session.
func TestOnePeer(t *testing.T) {
	const peers = 1000
	b := bed.New(t, "bed")
	far := ns.New(t, "far")
	ns.Veth(b.NS, "toward", []string{"10.98.0.1/24"}, far, "toward", []string{"10.98.0.2/24"})
	public := func(private string) string {
		return strings.TrimSpace(ns.Run(t, "bash", "-c", `echo "$1" | "$0" pubkey`, wg(t), bed.Key(private)))
	}
	b.Config(t, "far0", fmt.Sprintf("[Interface]\nPrivateKey = %s\nListenPort = 51821\nAddress = 10.97.0.2/24\n[Peer]\nPublicKey = %s\nAllowedIPs = 10.97.0.1/32\n",
		bed.Key("far"), public("private1")))
	if r := far.Try(b.Program, "up", "far0"); r.Code != 0 {
		t.Fatal(r)
	}
	many := func(changed int) string {
		var more strings.Builder
		fmt.Fprintf(&more, "[Peer]\nPublicKey = %s\nAllowedIPs = 10.97.0.2/32\nEndpoint = 10.98.0.2:51821\n", public("far"))
		for i := 2; i < peers; i++ {
			port := 1000 + i
			if i == changed {
				port = 9
			}
			fmt.Fprintf(&more, "[Peer]\nPublicKey = %s\nAllowedIPs = 10.7.%d.%d/32\nEndpoint = 192.0.2.1:%d\n", bed.Key(fmt.Sprint("public", i)), i/256, i%256, port)
		}
		return file("Address = 10.1.0.2/24, 10.97.0.1/24", "10.5.0.0/16", more.String())
	}
	b.Config(t, "wg0", many(0))
	if r := b.Up("wg0"); r.Code != 0 {
		t.Fatal(r)
	}
	stop := echoes(t, b.NS, far, "10.97.0.2:7")
	handshakes := func() string {
		lines := strings.Split(b.NS.Run(wg(t), "show", "wg0", "latest-handshakes"), "\n")
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}
	before := handshakes()
	b.Config(t, "wg0", many(150))
	r := b.Run(nil, b.Program, "reload", "wg0")
	if r.Code != 0 || strings.Count(r.Output, "[#]") != 1 || !strings.Contains(r.Output, "wg syncconf wg0") {
		t.Errorf("reload: %s", r)
	}
	time.Sleep(200 * time.Millisecond)
	stop()
	if after := handshakes(); after != before {
		t.Error("there are other sessions than before")
	}
	ends := b.NS.Run(wg(t), "show", "wg0", "endpoints")
	if !strings.Contains(ends, bed.Key("public150")+"\t192.0.2.1:9\n") || strings.Count(ends, "\n") != peers {
		t.Errorf("endpoints:\n%s", ends)
	}
	for _, down := range []func() bed.Result{
		func() bed.Result { return b.Down("wg0") },
		func() bed.Result {
			r := far.Try(b.Program, "down", "far0")
			return bed.Result{Code: r.Code, Output: r.Stderr}
		},
	} {
		if r := down(); r.Code != 0 {
			t.Error(r)
		}
	}
}

// echoes sends lines over one TCP connection and waits for each to come back, until
// stop, which complains of an end before and of a pause that is no load's.
func echoes(t *testing.T, from, to *ns.NS, address string) (stop func()) {
	t.Helper()
	var listener net.Listener
	var conn net.Conn
	err := to.Do(func() (err error) {
		listener, err = net.Listen("tcp", address)
		return err
	})
	if err == nil {
		go func() {
			if c, err := listener.Accept(); err == nil {
				io.Copy(c, c)
				c.Close()
			}
		}()
		err = from.Do(func() (err error) {
			conn, err = net.DialTimeout("tcp", address, 10*time.Second)
			return err
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	quit, done := make(chan bool), make(chan error)
	var longest time.Duration
	count := 0
	go func() {
		line := make([]byte, 1000)
		for {
			select {
			case <-quit:
				done <- nil
				return
			default:
			}
			begin := time.Now()
			conn.SetDeadline(begin.Add(20 * time.Second))
			_, err := conn.Write(line)
			if err == nil {
				_, err = io.ReadFull(conn, line)
			}
			if err != nil {
				done <- err
				return
			}
			longest, count = max(longest, time.Since(begin)), count+1
		}
	}()
	return func() {
		var err error
		select {
		case quit <- true:
			err = <-done
		case err = <-done:
		}
		conn.Close()
		listener.Close()
		if err != nil || count < 10 || longest > 5*time.Second {
			t.Errorf("%d lines came back, the slowest after %v; %v", count, longest, err)
		}
	}
}
