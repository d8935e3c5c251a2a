package kernel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wg-quickns/confparse"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

func TestGather(t *testing.T) {
	ns := newNS(t)
	d, link, _ := addWG(t, ns)
	do(t, d, ns, plan.WG{Link: link, Device: &confparse.Device{
		PrivateKey: ptr(key(1)), FwMark: ptr(uint32(51820)), ListenPort: ptr(4000),
		Peers: []confparse.Peer{
			{PublicKey: key(2), ReplaceAllowedIPs: true, AllowedIPs: allow("0.0.0.0/0", "::/0"), Endpoint: at("192.0.2.1:1")},
			{PublicKey: key(3), ReplaceAllowedIPs: true, AllowedIPs: allow("10.9.0.0/16"), Endpoint: at("198.51.100.1:2")},
			{PublicKey: key(4), ReplaceAllowedIPs: true, Endpoint: at("203.0.113.1:3")},
			{PublicKey: key(5), ReplaceAllowedIPs: true, Endpoint: at("[2001:db8:5::1]:4")},
			{PublicKey: key(6), ReplaceAllowedIPs: true, Endpoint: at("192.0.2.1:5")},
		},
	}})
	sh(t, ns, `
		ip link set dev `+link+` addrgenmode none; ip link set dev `+link+` mtu 1400 up
		ip address add 10.0.0.1/24 dev `+link+`; ip address add 2001:db8::1/64 dev `+link+`
		ip link add v0 type veth peer name v1; ip link set v0 addrgenmode none mtu 1300 up; ip link set v1 addrgenmode none up
		ip address add 192.168.7.1/24 dev v0
		ip route add default via 192.168.7.2 dev v0 metric 50
		ip route add default via 192.168.7.3 dev v0 metric 20 mtu 1250
		ip route add 198.51.100.0/24 via 192.168.7.2 mtu 1200
		ip route add unreachable 203.0.113.0/24
		ip route add 172.16.0.0/12 nexthop via 192.168.7.2 dev v0 nexthop via 192.168.7.3 dev v0
		ip route add 10.8.0.0/16 dev `+link+` table 51820
		ip -6 route add 2001:db8:5::/48 dev v0 table 70000
		ip rule add not fwmark 51820 table 51820
		ip rule add table main suppress_prefixlength 0
		ip rule add from 10.3.0.0/16 to 10.4.0.0/16 fwmark 1/0xff table 70000
		ip -6 rule add not fwmark 51820 table 51820
		echo 1 > /proc/sys/net/ipv4/conf/all/src_valid_mark`)
	f, err := d.Gather(context.Background(), ns, link, Asked{PathMTU: true})
	if err != nil {
		t.Fatal(err)
	}
	v0, _, _ := d.Link(ns, "v0")
	wg, _, _ := d.Link(ns, link)

	if f.Device.Name != link || f.Device.Index != wg.Index || f.Device.Kernel != kernelWireGuard(t) || f.Device.FwMark != 51820 || f.Device.ListenPort != 4000 || len(f.Device.Peers) != 5 {
		t.Errorf("device %+v", f.Device)
	}
	var ips []string
	for _, p := range f.Device.Peers {
		for _, a := range p.AllowedIPs {
			ips = append(ips, a.String())
		}
	}
	slices.Sort(ips)
	if got := strings.Join(ips, " "); got != "0.0.0.0/0 10.9.0.0/16 ::/0" {
		t.Errorf("allowed IPs %s", got)
	}
	names := map[string]facts.Link{}
	for _, l := range f.Links {
		names[l.Name] = l
	}
	kind := "wireguard"
	if !f.Device.Kernel {
		kind = "tun"
	}
	if got, want := names[link], (facts.Link{Name: link, Index: wg.Index, MTU: 1400, Up: true, Running: true, Type: kind}); got != want {
		t.Errorf("link %+v, want %+v", got, want)
	}
	if got := names["lo"]; got.Type != "" || got.Index != 1 || !got.Up {
		t.Errorf("lo is %+v", got)
	}
	if got, want := fmt.Sprint(f.Addrs), "[{10.0.0.1/24} {2001:db8::1/64}]"; got != want {
		t.Errorf("addresses %s, want %s", got, want)
	}
	if !f.IPv6 || f.SrcValidMark != 1 || !f.NFTables || f.DefaultMTU != 1250 {
		t.Errorf("IPv6 %v, src_valid_mark %d, nf_tables %v, default MTU %d", f.IPv6, f.SrcValidMark, f.NFTables, f.DefaultMTU)
	}
	wantMTU := map[netip.Addr]int{netip.MustParseAddr("192.0.2.1"): 1250, netip.MustParseAddr("198.51.100.1"): 1200}
	if !maps.Equal(f.PathMTU, wantMTU) {
		t.Errorf("path MTUs %v, want %v", f.PathMTU, wantMTU)
	}

	gw := func(s string) netip.Addr { return netip.MustParseAddr(s) }
	for _, want := range []facts.Route{
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Table: 254, Index: v0.Index, Gateway: gw("192.168.7.3"), Metric: 20, MTU: 1250, Protocol: unix.RTPROT_BOOT, Type: unix.RTN_UNICAST},
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Table: 254, Index: v0.Index, Gateway: gw("192.168.7.2"), Metric: 50, Protocol: unix.RTPROT_BOOT, Type: unix.RTN_UNICAST},
		{Dst: netip.MustParsePrefix("203.0.113.0/24"), Table: 254, Protocol: unix.RTPROT_BOOT, Type: unix.RTN_UNREACHABLE},
		{Dst: netip.MustParsePrefix("172.16.0.0/12"), Table: 254, Index: v0.Index, Gateway: gw("192.168.7.2"), Protocol: unix.RTPROT_BOOT, Type: unix.RTN_UNICAST},
		{Dst: netip.MustParsePrefix("10.8.0.0/16"), Table: 51820, Index: wg.Index, Protocol: unix.RTPROT_BOOT, Type: unix.RTN_UNICAST},
		{Dst: netip.MustParsePrefix("10.0.0.0/24"), Table: 254, Index: wg.Index, Protocol: unix.RTPROT_KERNEL, Type: unix.RTN_UNICAST},
		{Dst: netip.MustParsePrefix("2001:db8:5::/48"), Table: 70000, Index: v0.Index, Metric: 1024, Protocol: unix.RTPROT_BOOT, Type: unix.RTN_UNICAST},
	} {
		if !slices.Contains(f.Routes, want) {
			t.Errorf("no route %+v in %+v", want, f.Routes)
		}
	}
	n4, n6 := 0, 0
	for _, r := range f.Routes {
		if r.Table == unix.RT_TABLE_LOCAL {
			t.Errorf("route of table local: %+v", r)
		}
		if r.Dst.Addr().Is4() {
			n4++
		} else {
			n6++
		}
	}
	lines := func(s string) int { return strings.Count(sh(t, ns, s), "\n") }
	// A multipath route takes three lines.
	if w4, w6 := lines("ip -4 route show table all | grep -v 'table local' | grep -v nexthop"), lines("ip -6 route show table all | grep -v 'table local'"); n4 != w4 || n6 != w6 {
		t.Errorf("%d and %d routes, ip shows %d and %d", n4, n6, w4, w6)
	}

	wantRules := []facts.Rule{
		{Priority: 0, Table: 255, SuppressPrefixLen: -1},
		{Priority: 32763, FwMark: 1, FwMask: 0xff, Table: 70000, SuppressPrefixLen: -1, Src: netip.MustParsePrefix("10.3.0.0/16"), Dst: netip.MustParsePrefix("10.4.0.0/16")},
		{Priority: 32764, Table: 254, SuppressPrefixLen: 0},
		{Priority: 32765, Invert: true, FwMark: 51820, FwMask: 0xffffffff, Table: 51820, SuppressPrefixLen: -1},
		{Priority: 32766, Table: 254, SuppressPrefixLen: -1},
		{Priority: 32767, Table: 253, SuppressPrefixLen: -1},
		{IPv6: true, Priority: 0, Table: 255, SuppressPrefixLen: -1},
		{IPv6: true, Priority: 32765, Invert: true, FwMark: 51820, FwMask: 0xffffffff, Table: 51820, SuppressPrefixLen: -1},
		{IPv6: true, Priority: 32766, Table: 254, SuppressPrefixLen: -1},
	}
	if !slices.Equal(f.Rules, wantRules) {
		t.Errorf("rules %+v\nwant %+v", f.Rules, wantRules)
	}

	if _, err := d.Gather(context.Background(), ns, "none", Asked{}); !errors.Is(err, unix.ENODEV) {
		t.Errorf("no interface: %v, want ENODEV", err)
	}
	if _, err := d.Gather(context.Background(), ns, "v0", Asked{}); !errors.Is(err, unix.ENODEV) {
		t.Errorf("not WireGuard: %v, want ENODEV", err)
	}
	if _, err := d.Gather(context.Background(), "/nonexistent", link, Asked{}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("no namespace: %v, want ENOENT", err)
	}
}

func TestDefaultMTU(t *testing.T) {
	d := newDoer(t, Options{})
	for script, want := range map[string]int{
		"":                                   0,
		"ip route add unreachable default":   0,
		"ip route add default via 192.0.2.9": 1300,
		"ip route add default via 192.0.2.9 metric 9; ip route add unreachable default metric 3": 0,
		"ip route add default via 192.0.2.9 table 7":                                             0,
	} {
		ns := newNS(t)
		sh(t, ns, "ip link add v0 type veth peer name v1; ip link set v0 mtu 1300 up; ip address add 192.0.2.1/24 dev v0;"+script)
		sp, err := d.space(ns)
		if err != nil {
			t.Fatal(err)
		}
		f := &facts.Facts{}
		if f.Links, err = sp.links(); err != nil {
			t.Fatal(err)
		}
		if f.Routes, err = sp.routes(nil); err != nil {
			t.Fatal(err)
		}
		if got := defaultMTU(f); got != want {
			t.Errorf("%s: %d, want %d", script, got, want)
		}
	}
}

func TestManyPathMTUs(t *testing.T) {
	ns := newNS(t)
	sh(t, ns, "ip link add v0 type veth peer name v1; ip link set v0 mtu 1300 up; ip address add 192.0.2.1/24 dev v0; ip route add default via 192.0.2.9; ip route add unreachable 10.0.0.0/24")
	var to []netip.Addr
	for i := range 5000 {
		to = append(to, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
	}
	to = append(to, netip.MustParseAddr("fe80::1%v0"))
	got, err := newDoer(t, Options{}).PathMTU(context.Background(), ns, to)
	if err != nil || len(got) != 5000-256 || got[to[256]] != 1300 {
		t.Errorf("%d MTUs, %v", len(got), err)
	}
}

func TestTableNames(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"rt_tables": "# comment\n255\tlocal\n0x64 hex # tail\nbad line\n7 seven\n99999999999 big\n\n5 \n",
		"a.conf":    "7 other\n8 seven\n", "b.txt": "9 nine\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := tableNames([]string{filepath.Join(dir, "missing"), filepath.Join(dir, "rt_tables"), filepath.Join(dir, "*.conf")})
	want := map[string]uint32{"default": 253, "main": 254, "local": 255, "hex": 100, "seven": 8, "other": 7}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if _, err := tableNames([]string{dir}); err == nil {
		t.Error("reading a directory is no error")
	}
}

func TestInterruptedDump(t *testing.T) {
	tries := 0
	err := dump("things", func() error {
		if tries++; tries < 3 {
			return netlink.ErrDumpInterrupted
		}
		return nil
	})
	if err != nil || tries != 3 {
		t.Errorf("%v after %d tries", err, tries)
	}
	if err := dump("things", func() error { return netlink.ErrDumpInterrupted }); !errors.Is(err, netlink.ErrDumpInterrupted) {
		t.Errorf("always interrupted: %v", err)
	}
}

// TestDumpWhileChanging asserts that no dump loses what was there all the time.
func TestDumpWhileChanging(t *testing.T) {
	ns := newNS(t)
	sh(t, ns, veth)
	d, other := newDoer(t, Options{}), newDoer(t, Options{})
	for _, v6 := range []bool{false, true} {
		do(t, d, ns, manyRoutes(3000, v6))
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		flip := plan.Route{Link: "wg0", List: prefixes("10.0.5.0/24", "2001:db8:5::/48")}
		for ctx.Err() == nil {
			if _, err := other.Do(t.Context(), ns, flip); err != nil {
				done <- err
				return
			}
			flip.Delete = !flip.Delete
			time.Sleep(10 * time.Millisecond)
		}
		done <- nil
	}()
	sp, err := d.space(ns)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		list, err := sp.routes(nil)
		if n := len(list); err != nil || n < 6000 || n > 6010 {
			t.Errorf("%d routes, %v", n, err)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
