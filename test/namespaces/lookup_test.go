package namespaces

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"wg-quickns/test/ns"
)

// nameServer answers every question at the address with addr, in a namespace.
func nameServer(t *testing.T, n *ns.NS, listen string, addr netip.Addr) {
	t.Helper()
	var conn net.PacketConn
	if err := n.Do(func() (err error) { conn, err = net.ListenPacket("udp", listen+":53"); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		for buf := make([]byte, 1500); ; {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil {
				continue
			}
			m.Response, m.Additionals = true, nil
			if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
				h := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}
				m.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.AResource{A: addr.As4()}}}
			}
			if out, err := m.Pack(); err == nil {
				conn.WriteTo(out, from)
			}
		}
	}()
}

// questions counts what was sent to port 53 of anywhere in a namespace, since the last time.
func questions(t *testing.T, n *ns.NS) int {
	t.Helper()
	out := ns.Run(t, "ip", "netns", "exec", n.Name, "nft", "reset", "counter", "inet", "count", "questions")
	_, after, _ := strings.Cut(out, "packets ")
	var packets int
	if _, err := fmt.Sscan(after, &packets); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return packets
}

// TestEndpointName: the name of an endpoint is looked up where the tunnel is born,
// with that namespace's files, and nowhere else: not where the interface lives,
// nor by the caller.
func TestEndpointName(t *testing.T) {
	w := newWorld(t)
	was, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	put := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("/etc/resolv.conf", "nameserver 127.0.0.1\n")
	t.Cleanup(func() {
		os.WriteFile("/etc/resolv.conf", was, 0o644)
		os.RemoveAll("/etc/netns/crib")
		os.RemoveAll("/etc/netns/there")
	})
	spaces := map[string]*ns.NS{"bed": w.NS, "crib": ns.New(t, "crib"), "there": ns.New(t, "there"), "bed-far": w.named("bed-far")}
	for name, n := range spaces {
		ns.Run(t, "ip", "netns", "exec", name, "nft", `table inet count {
			counter questions { }
			chain out { type filter hook output priority 0; meta l4proto { tcp, udp } th dport 53 counter name questions; }; }`)
		nameServer(t, n, "127.0.0.1", netip.MustParseAddr("198.51.100.1")) // for who has the caller's file in the wrong place
		nameServer(t, n, "127.0.0.3", netip.MustParseAddr("198.51.100.3"))
	}
	nameServer(t, spaces["bed"], "127.0.0.2", netip.MustParseAddr("192.0.2.11"))
	nameServer(t, spaces["crib"], "127.0.0.2", netip.MustParseAddr("192.0.2.12"))
	nameServer(t, spaces["bed-far"], "127.0.0.2", netip.MustParseAddr("192.0.2.13"))
	put("/etc/resolv.conf", "nameserver 127.0.0.2\n")
	for _, name := range []string{"crib", "there"} {
		if err := os.MkdirAll("/etc/netns/"+name, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put("/etc/netns/crib/resolv.conf", "nameserver 127.0.0.2\n")
	put("/etc/netns/there/resolv.conf", "nameserver 127.0.0.3\n")
	put("/etc/netns/there/hosts", "198.51.100.4 vpn.example\n")
	pid := sleeper(w, "bed-far").Process.Pid

	for _, c := range []struct{ birth, born, want string }{
		{"", "bed", "192.0.2.11"},
		{"crib", "crib", "192.0.2.12"},
		{fmt.Sprint("pid:", pid), "bed-far", "192.0.2.13"},
		{"/run/netns/bed-far", "bed-far", "192.0.2.13"},
	} {
		for _, target := range []string{"there", ""} {
			t.Run(c.birth+" to "+target, func(t *testing.T) {
				w := world{t, w.Bed}
				for _, n := range spaces {
					questions(t, n)
				}
				keys := "BirthNamespace = " + c.birth + "\nNamespace = " + target + "\n"
				w.Config(t, "wg0", strings.Replace(config(1, keys), "192.0.2.1:", "vpn.example:", 1))
				w.want(0, w.Up("wg0"))
				lives := target
				if lives == "" {
					lives = "bed"
				}
				out := w.Bed.Run(nil, "ip", "netns", "exec", lives, os.Getenv("WG_REFERENCE")+"/wg", "show", "wg0", "endpoints").Output
				if !strings.HasSuffix(out, "\t"+c.want+":51820\n") {
					t.Errorf("endpoint %q, want %s", out, c.want)
				}
				for name, n := range spaces {
					if got := questions(t, n); (got > 0) != (name == c.born) {
						t.Errorf("%d questions in %s", got, name)
					}
				}
				w.want(0, w.Down("wg0"))
			})
		}
	}
	// a birth namespace without an answer is not helped out by another's
	put("/etc/netns/crib/resolv.conf", "nameserver 127.0.0.9\noptions timeout:1 attempts:1\n")
	for _, n := range spaces {
		questions(t, n)
	}
	w.Config(t, "wg0", strings.Replace(config(1, "BirthNamespace = crib\nNamespace = there\n"), "192.0.2.1:", "vpn.example:", 1))
	before := w.snapshot()
	w.want(1, w.Bed.Run([]string{"WG_ENDPOINT_RESOLUTION_RETRIES=1"}, w.Program, "up", "wg0"), "vpn.example:51820")
	w.same(before)
	for name, n := range spaces {
		if got := questions(t, n); (got > 0) != (name == "crib") {
			t.Errorf("without an answer: %d questions in %s", got, name)
		}
	}
}
