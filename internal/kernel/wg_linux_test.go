package kernel

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/confparse"
	"wg-quickns/internal/plan"
)

func ptr[T any](v T) *T { return &v }

// key makes a key that differs by n; it need not be a point on any curve.
func key(n int) (k confparse.Key) {
	k[0], k[1], k[2], k[3] = 8, byte(n), byte(n>>8), byte(n>>16)
	k[31] = 0x40
	return k
}

func allow(list ...string) (out []confparse.AllowedIP) {
	for _, s := range list {
		text, remove := strings.CutPrefix(s, "-")
		out = append(out, confparse.AllowedIP{Prefix: netip.MustParsePrefix(text), Remove: remove})
	}
	return out
}

func at(s string) *confparse.Endpoint {
	return &confparse.Endpoint{Addr: netip.MustParseAddrPort(s)}
}

// text is a device's configuration as `wg addconf` reads it.
func text(d *confparse.Device) string {
	var b strings.Builder
	b64 := func(k confparse.Key) string { return base64.StdEncoding.EncodeToString(k[:]) }
	b.WriteString("[Interface]\n")
	if d.PrivateKey != nil {
		fmt.Fprintf(&b, "PrivateKey = %s\n", b64(*d.PrivateKey))
	}
	if d.ListenPort != nil {
		fmt.Fprintf(&b, "ListenPort = %d\n", *d.ListenPort)
	}
	if d.FwMark != nil {
		fmt.Fprintf(&b, "FwMark = %d\n", *d.FwMark)
	}
	for _, p := range d.Peers {
		fmt.Fprintf(&b, "[Peer]\nPublicKey = %s\n", b64(p.PublicKey))
		if p.PresharedKey != nil {
			fmt.Fprintf(&b, "PresharedKey = %s\n", b64(*p.PresharedKey))
		}
		if p.Endpoint != nil {
			fmt.Fprintf(&b, "Endpoint = %s\n", p.Endpoint.Addr)
		}
		if p.Keepalive != nil {
			fmt.Fprintf(&b, "PersistentKeepalive = %d\n", *p.Keepalive)
		}
		for _, a := range p.AllowedIPs {
			fmt.Fprintf(&b, "AllowedIPs = %s\n", a.Prefix)
		}
	}
	return b.String()
}

func TestWGLikeWG(t *testing.T) {
	first := &confparse.Device{
		PrivateKey: ptr(key(1)), ListenPort: ptr(12345), FwMark: ptr(uint32(0xca6c)),
		Peers: []confparse.Peer{
			{PublicKey: key(10), PresharedKey: ptr(key(2)), Endpoint: at("192.0.2.1:51820"), Keepalive: ptr(uint16(25)),
				ReplaceAllowedIPs: true, AllowedIPs: allow("0.0.0.0/0", "::/0", "10.1.2.0/24")},
			{PublicKey: key(11), Endpoint: at("[2001:db8::1]:1"), ReplaceAllowedIPs: true, AllowedIPs: allow("10.0.0.0/8", "2001:db8::/32")},
			{PublicKey: key(12), ReplaceAllowedIPs: true},
		},
	}
	second := &confparse.Device{ // additive: what is not said stays
		FwMark: ptr(uint32(0)),
		Peers: []confparse.Peer{
			{PublicKey: key(11), Keepalive: ptr(uint16(0)), PresharedKey: ptr(key(3)), ReplaceAllowedIPs: true, AllowedIPs: allow("10.0.0.0/9")},
			{PublicKey: key(10), PresharedKey: &confparse.Key{}, ReplaceAllowedIPs: true, AllowedIPs: allow("192.168.0.0/16")},
			{PublicKey: key(13), ReplaceAllowedIPs: true, AllowedIPs: allow("10.1.2.0/24")},
		},
	}
	ours, theirs := newNS(t), newNS(t)
	d, link, _ := addWG(t, ours)
	other := link + "b"
	do(t, d, theirs, plan.Link{Name: other})
	conf := filepath.Join(t.TempDir(), "conf")
	for i, dev := range []*confparse.Device{first, second} {
		do(t, d, ours, plan.WG{Link: link, Device: dev})
		if err := os.WriteFile(conf, []byte(text(dev)), 0o600); err != nil {
			t.Fatal(err)
		}
		sh(t, theirs, "wg addconf "+other+" "+conf)
		order := " dump"
		if !kernelWireGuard(t) { // wireguard-go has its peers in a map
			order += " | sort"
		}
		got, want := sh(t, ours, "wg show "+link+order), sh(t, theirs, "wg show "+other+order)
		if got != want {
			t.Errorf("after %d\nours:\n%s\nwg addconf:\n%s", i, got, want)
		}
		a, err := d.ReadDevice(t.Context(), ours, link)
		if err != nil {
			t.Fatal(err)
		}
		b, err := d.ReadDevice(t.Context(), theirs, other)
		if err != nil {
			t.Fatal(err)
		}
		for _, dev := range []*confparse.Device{a, b} {
			slices.SortFunc(dev.Peers, func(p, q confparse.Peer) int { return bytes.Compare(p.PublicKey[:], q.PublicKey[:]) })
		}
		if !reflect.DeepEqual(a, b) {
			t.Errorf("ReadDevice of ours\n%s\nand of wg's\n%s", text(a), text(b))
		}
	}

	exists(t, d, ours, plan.FwMark{Link: link, Mark: 51820}, false)
	do(t, d, ours, plan.FwMark{Link: link, Mark: 51820})
	exists(t, d, ours, plan.FwMark{Link: link, Mark: 51820}, true)
	if _, err := d.Do(t.Context(), ours, plan.FwMark{Link: "none", Mark: 1}); !errors.Is(err, unix.ENODEV) {
		t.Errorf("fwmark of no device: %v, want ENODEV", err)
	}
	if _, err := d.ReadDevice(t.Context(), ours, "lo"); !errors.Is(err, unix.ENODEV) {
		t.Errorf("device lo: %v, want ENODEV", err)
	}
}

func TestReadDevice(t *testing.T) {
	ns := newNS(t)
	d, link, _ := addWG(t, ns)
	want := &confparse.Device{
		PrivateKey: ptr(key(0x01)), ListenPort: ptr(4000), FwMark: ptr(uint32(7)),
		Peers: []confparse.Peer{
			{PublicKey: key(20), PresharedKey: ptr(key(2)), ReplaceAllowedIPs: true, AllowedIPs: allow("10.0.0.0/8", "2001:db8::/32"),
				Endpoint: &confparse.Endpoint{Host: "192.0.2.1", Port: "51820", Addr: netip.MustParseAddrPort("192.0.2.1:51820")}, Keepalive: ptr(uint16(25))},
			{PublicKey: key(21), ReplaceAllowedIPs: true, AllowedIPs: []confparse.AllowedIP{},
				Endpoint: &confparse.Endpoint{Host: "2001:db8::1", Port: "1", Addr: netip.MustParseAddrPort("[2001:db8::1]:1")}},
		},
	}
	do(t, d, ns, plan.WG{Link: link, Device: want})
	got, err := d.ReadDevice(t.Context(), ns, link)
	if err != nil {
		t.Fatal(err)
	}
	if !kernelWireGuard(t) && got.Peers[0].PublicKey != key(20) { // a map's order
		got.Peers[0], got.Peers[1] = got.Peers[1], got.Peers[0]
	}
	if got, want := text(got), text(want); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestEndpointZone(t *testing.T) {
	ns := newNS(t)
	sh(t, ns, veth)
	d, link, _ := addWG(t, ns)
	do(t, d, ns, plan.WG{Link: link, Device: &confparse.Device{Peers: []confparse.Peer{{PublicKey: key(5), Endpoint: at("[fe80::7%wg1]:9")}}}})
	got, err := d.ReadDevice(t.Context(), ns, link)
	if err != nil {
		t.Fatal(err)
	}
	if e := got.Peers[0].Endpoint; e.Addr.String() != "[fe80::7%wg1]:9" || e.Host != "fe80::7%wg1" {
		t.Errorf("endpoint %+v", e)
	}
	// one that there is not changes nothing
	bad := &confparse.Device{Peers: []confparse.Peer{{PublicKey: key(6), Endpoint: at("192.0.2.1:9")}, {PublicKey: key(5), Endpoint: at("[fe80::7%nosuch]:9")}}}
	bad.Peers[1].Endpoint.Host, bad.Peers[1].Endpoint.Port = "fe80::7%nosuch", "9"
	_, err = d.Do(t.Context(), ns, plan.WG{Link: link, Device: bad})
	if err == nil || !strings.Contains(err.Error(), "Name or service not known: `[fe80::7%nosuch]:9'") {
		t.Errorf("a zone that is no interface: %v", err)
	}
	if now, err := d.ReadDevice(t.Context(), ns, link); err != nil || text(now) != text(got) {
		t.Errorf("it was\n%s\nand is\n%s (%v)", text(got), text(now), err)
	}
	// that of the socket's namespace, for a device in another
	elsewhere := &confparse.Device{Peers: []confparse.Peer{{Endpoint: at("[fe80::7%wg1]:9")}, {}, {Endpoint: at("192.0.2.1:9")}}}
	if err := d.Zones(newNS(t), elsewhere, true); err == nil {
		t.Error("a zone of another namespace is found")
	}
	if err := d.Zones(ns, elsewhere, false); err != nil || elsewhere.Peers[0].Endpoint.Addr.Addr().Zone() != "wg1" {
		t.Errorf("%v, %v", elsewhere.Peers[0].Endpoint, err)
	}
	l, _, _ := d.Link(ns, "wg1")
	if err := d.Zones(ns, elsewhere, true); err != nil || elsewhere.Peers[0].Endpoint.Addr.Addr().Zone() != strconv.Itoa(l.Index) {
		t.Errorf("%v, %v, want zone %d", elsewhere.Peers[0].Endpoint, err, l.Index)
	}
}

func TestRemoveAllowedIPs(t *testing.T) {
	ns := newNS(t)
	d, link, _ := addWG(t, ns)
	do(t, d, ns, plan.WG{Link: link, Device: &confparse.Device{PrivateKey: ptr(key(1)), Peers: []confparse.Peer{
		{PublicKey: key(1), ReplaceAllowedIPs: true, AllowedIPs: allow("10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32", "10.9.0.0/16")},
		{PublicKey: key(2), ReplaceAllowedIPs: true, AllowedIPs: allow("192.168.0.0/16")},
	}}})
	do(t, d, ns, plan.WG{Link: link, Device: &confparse.Device{Peers: []confparse.Peer{
		{PublicKey: key(1), AllowedIPs: allow("-10.1.0.0/16", "-2001:db8::/32", "172.16.0.0/12",
			"-192.168.0.0/16",             // the other peer's: stays
			"-10.9.0.0/16", "10.9.0.0/16", // the last word counts
			"10.7.0.0/16", "-10.7.0.0/16", "-203.0.113.0/24")},
	}}})
	got, err := d.ReadDevice(t.Context(), ns, link)
	if err != nil {
		t.Fatal(err)
	}
	have := map[confparse.Key]map[string]bool{}
	for _, p := range got.Peers {
		have[p.PublicKey] = map[string]bool{}
		for _, a := range p.AllowedIPs {
			have[p.PublicKey][a.Prefix.String()] = true
		}
	}
	want := map[confparse.Key]map[string]bool{
		key(1): {"10.0.0.0/8": true, "172.16.0.0/12": true, "10.9.0.0/16": true},
		key(2): {"192.168.0.0/16": true},
	}
	if !reflect.DeepEqual(have, want) {
		t.Errorf("got %v", have)
	}
}

func TestRequestsAreSmall(t *testing.T) {
	for _, tt := range []struct{ peers, ips int }{{0, 0}, {1, 0}, {1, 700}, {1, 816}, {1, 817}, {1, 10000}, {254, 0}, {255, 0}, {300, 3}, {100, 1000}} {
		dev := manyPeers(tt.peers, tt.ips)
		for i := range dev.Peers {
			p := &dev.Peers[i]
			p.PresharedKey, p.Endpoint, p.Keepalive = ptr(key(9)), at("[2001:db8::1]:1"), ptr(uint16(1))
			for j := range p.AllowedIPs {
				p.AllowedIPs[j].Prefix = netip.PrefixFrom(netip.AddrFrom16(netip.MustParseAddr("2001:db8::").As16()), j%128+1)
			}
		}
		var m message
		var order []netip.Prefix
		first := map[confparse.Key]int{}
		list := requests(dev.Peers)
		for _, r := range list {
			m.b = m.b[:0]
			m.putPeers(r, func(string) uint32 { return 0 })
			if len(m.b) > maxRequest+64 || len(m.b) == 0 {
				t.Errorf("%v: a request of %d bytes", tt, len(m.b))
			}
			for _, p := range r {
				if !p.more {
					first[p.PublicKey]++
				}
				for _, a := range p.ips {
					order = append(order, a.Prefix)
				}
			}
		}
		if most := 1 + (tt.peers*(peerSize+tt.ips*ipSize))*5/4/maxRequest; len(list) > most {
			t.Errorf("%v: %d requests, want at most %d", tt, len(list), most)
		}
		if len(first) != tt.peers {
			t.Errorf("%v: %d peers", tt, len(first))
		}
		for _, n := range first {
			if n != 1 {
				t.Errorf("%v: a peer is told %d times what it is", tt, n)
			}
		}
		var want []netip.Prefix
		for _, p := range dev.Peers {
			for _, a := range p.AllowedIPs {
				want = append(want, a.Prefix)
			}
		}
		if !slices.Equal(order, want) {
			t.Errorf("%v: allowed IPs lost or out of order", tt)
		}
	}
}

// TestWGIsLinear asserts that ten times as many peers or allowed IPs take at
// most 40 times the processor time: quadratic would be 100.
func TestWGIsLinear(t *testing.T) {
	for _, tt := range []struct{ peers, ips int }{{1, 2000}, {150, 1}} {
		var cost [2]time.Duration
		for round, factor := range []int{1, 10} {
			dev := manyPeers(tt.peers*factor, tt.ips)
			if tt.peers == 1 {
				dev = manyPeers(1, tt.ips*factor)
			}
			ns := newNS(t)
			d, link, undo := addWG(t, ns)
			start, before := time.Now(), cpu(t)
			do(t, d, ns, plan.WG{Link: link, Device: dev})
			set := time.Since(start)
			got, err := d.ReadDevice(t.Context(), ns, link)
			if err != nil {
				t.Fatal(err)
			}
			total := time.Since(start)
			cost[round] = cpu(t) - before
			n := 0
			for _, p := range got.Peers {
				n += len(p.AllowedIPs)
			}
			if n != len(dev.Peers)*len(dev.Peers[0].AllowedIPs) {
				t.Errorf("%d allowed IPs on the device", n)
			}
			t.Logf("%d peers, %d allowed IPs each: set %v, read %v", len(dev.Peers), len(dev.Peers[0].AllowedIPs), set, total-set)
			do(t, d, ns, undo)
		}
		if cost[1] > 40*cost[0]+time.Second/5 {
			t.Errorf("%v: %v, ten times as many: %v", tt, cost[0], cost[1])
		}
	}
}

// cpu is the processor time of this process, the kernel's work for it included.
func cpu(t *testing.T) time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		t.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func manyPeers(peers, ips int) *confparse.Device {
	dev := &confparse.Device{PrivateKey: ptr(key(1)), FwMark: ptr(uint32(51820))}
	for p := range peers {
		peer := confparse.Peer{PublicKey: key(p + 2), ReplaceAllowedIPs: true, AllowedIPs: make([]confparse.AllowedIP, ips)}
		for i := range ips {
			n := p*ips + i
			a := netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
			peer.AllowedIPs[i].Prefix = netip.PrefixFrom(a, 32)
		}
		dev.Peers = append(dev.Peers, peer)
	}
	return dev
}
