package kernel

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"wg-quickns/confparse"
	"wg-quickns/internal/plan"
)

// The bytes below are little endian, as strace(1) shows them of ip(8).
func TestEncoding(t *testing.T) {
	p := netip.MustParsePrefix
	zone := func(z string) uint32 { return map[string]uint32{"eth0": 7}[z] }
	for _, tt := range []struct {
		name       string
		put        func(m *message) (typ, flags uint16)
		typ, flags uint16
		want       string
	}{
		{"link add", func(m *message) (typ, flags uint16) { return m.putLinkAdd("wg0") }, unix.RTM_NEWLINK, 0x600,
			"00000000 00000000 00000000 00000000  0800 0300 77673000  1400 1200 0d00 0100 776972656775617264 000000"},
		{"link delete", func(m *message) (typ, flags uint16) { return m.putLinkDelete(7) }, unix.RTM_DELLINK, 0,
			"00000000 07000000 00000000 00000000"},
		{"mtu and up", func(m *message) (typ, flags uint16) { return m.putLinkUp(7, 1420) }, unix.RTM_NEWLINK, 0,
			"00000000 07000000 01000000 01000000  0800 0400 8c050000"},
		{"address", func(m *message) (typ, flags uint16) { return m.putAddr(7, p("10.0.0.1/24"), false, false) }, unix.RTM_NEWADDR, 0x600,
			"02 18 00 00 07000000  0800 0200 0a000001  0800 0100 0a000001"},
		{"loopback address, no route", func(m *message) (typ, flags uint16) { return m.putAddr(7, p("127.0.0.1/8"), true, false) }, unix.RTM_NEWADDR, 0x600,
			"02 08 00 fe 07000000  0800 0200 7f000001  0800 0100 7f000001  0800 0800 00020000"},
		{"IPv6 address delete", func(m *message) (typ, flags uint16) { return m.putAddr(7, p("fd00::1/64"), true, true) }, unix.RTM_DELADDR, 0,
			"0a 40 00 00 07000000  1400 0200 fd000000000000000000000000000001"},
		{"route", func(m *message) (typ, flags uint16) { return m.putRoute(7, p("10.0.0.0/8"), plan.Route{}) }, unix.RTM_NEWROUTE, 0x600,
			"02 08 00 00 fe 03 fd 01 00000000  0800 0100 0a000000  0800 0400 07000000"},
		{"default route in a large table", func(m *message) (typ, flags uint16) { return m.putRoute(7, p("0.0.0.0/0"), plan.Route{Table: 9999}) }, unix.RTM_NEWROUTE, 0x600,
			"02 00 00 00 00 03 fd 01 00000000  0800 0f00 0f270000  0800 0400 07000000"},
		{"IPv6 route delete", func(m *message) (typ, flags uint16) {
			return m.putRoute(7, p("fd00::/8"), plan.Route{Table: 200, Delete: true})
		}, unix.RTM_DELROUTE, 0,
			"0a 08 00 00 c8 03 00 01 00000000  1400 0100 fd000000000000000000000000000000  0800 0400 07000000"},
		{"IPv6 default route in another's place", func(m *message) (typ, flags uint16) {
			return m.putRoute(7, p("::/0"), plan.Route{Metric: 1, Replace: true})
		}, unix.RTM_NEWROUTE, 0x500,
			"0a 00 00 00 fe 03 00 01 00000000  0800 0600 01000000  0800 0400 07000000"},
		{"unreachable default route", func(m *message) (typ, flags uint16) {
			return m.putRoute(7, p("0.0.0.0/0"), plan.Route{Table: 80, Metric: 9, Unreachable: true})
		}, unix.RTM_NEWROUTE, 0x600,
			"02 00 00 00 50 03 00 07 00000000  0800 0600 09000000"},
		{"rule", func(m *message) (typ, flags uint16) {
			return m.putRule(plan.Rule{Priority: 5, NotFwMark: 7, To: p("10.0.0.0/8"), Table: 9, SuppressPrefixLen: -1})
		}, unix.RTM_NEWRULE, 0x600,
			"02 08 00 00 09 00 00 01 02000000  0800 0100 0a000000  0800 0600 05000000  0800 0a00 07000000"},
		{"IPv6 rule delete", func(m *message) (typ, flags uint16) {
			return m.putRule(plan.Rule{IPv6: true, Delete: true, Priority: 5, Table: 51820, SuppressPrefixLen: 0})
		}, unix.RTM_DELRULE, 0,
			"0a 00 00 00 00 00 00 01 00000000  0800 0600 05000000  0800 0f00 6cca0000  0800 0e00 00000000"},
		{"route get", func(m *message) (typ, flags uint16) { return m.putRouteGet(netip.MustParseAddr("1.2.3.4")) }, unix.RTM_GETROUTE, 0,
			"02 20 00 00 00 00 00 00 00100000  0800 0100 01020304"},
		{"device", func(m *message) (typ, flags uint16) {
			m.putDevice(&confparse.Device{PrivateKey: ptr(key(1)), ListenPort: ptr(51820), FwMark: ptr(uint32(0))})
			return 0, 0
		}, 0, 0,
			"2400 0300 0801000000000000000000000000000000000000000000000000000000000040  0600 0600 6cca 0000  0800 0700 00000000"},
		{"device, nothing said", func(m *message) (typ, flags uint16) { m.putDevice(&confparse.Device{}); return 0, 0 }, 0, 0, ""},
		{"peer", func(m *message) (typ, flags uint16) {
			m.putPeers([]peerPart{{Peer: &confparse.Peer{
				PublicKey: key(2), ReplaceAllowedIPs: true, Endpoint: at("[fe80::1%eth0]:51820"), Keepalive: ptr(uint16(25)),
			}, ips: allow("10.0.0.0/8")}}, zone)
			return 0, 0
		}, 0, 0,
			"7c00 0880  7800 0080" +
				"2400 0100 0802000000000000000000000000000000000000000000000000000000000040" +
				"2000 0400 0a00 ca6c 00000000 fe800000000000000000000000000001 07000000" +
				"0600 0500 1900 0000" +
				"0800 0300 02000000" +
				"2000 0980  1c00 0080  0600 0100 0200 0000  0800 0200 0a000000  0500 0300 08 000000"},
		{"more of a peer", func(m *message) (typ, flags uint16) {
			m.putPeers([]peerPart{{Peer: &confparse.Peer{PublicKey: key(2), ReplaceAllowedIPs: true, Endpoint: at("1.2.3.4:5")}, more: true}}, zone)
			return 0, 0
		}, 0, 0,
			"2c00 0880  2800 0080  2400 0100 0802000000000000000000000000000000000000000000000000000000000040"},
		{"remove a peer", func(m *message) (typ, flags uint16) {
			m.putPeers([]peerPart{{Peer: &confparse.Peer{PublicKey: key(2)}, more: true, remove: true}}, zone)
			return 0, 0
		}, 0, 0,
			"3400 0880  3000 0080  2400 0100 0802000000000000000000000000000000000000000000000000000000000040  0800 0300 01000000"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var m message
			typ, flags := tt.put(&m)
			if typ != tt.typ || flags != tt.flags {
				t.Errorf("type %d, flags %#x, want %d, %#x", typ, flags, tt.typ, tt.flags)
			}
			if got, want := hex.EncodeToString(m.b), strings.ReplaceAll(tt.want, " ", ""); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func TestParseError(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		flags      uint16
		want       error
		text       string
	}{
		{"ack", "00000000", 0, nil, ""},
		{"errno", "efffffff 10000000 00000000 00000000 00000000", 0, unix.EEXIST, ""},
		{"its words", "efffffff 14000000 00000000 00000000 00000000  0700 0100 6e6f00 00", unix.NLM_F_CAPPED | unix.NLM_F_ACK_TLVS, unix.EEXIST, "no"},
		{"its words after the request", "efffffff 14000000 00000000 00000000 00000000 aaaaaaaa 0700 0100 6e6f00 00", unix.NLM_F_ACK_TLVS, unix.EEXIST, "no"},
		{"torn", "efff", 0, unix.EBADMSG, ""},
		{"torn words", "efffffff 14000000 00000000 00000000 00000000  ff00 0100 6e", unix.NLM_F_CAPPED | unix.NLM_F_ACK_TLVS, unix.EEXIST, ""},
	} {
		body, err := hex.DecodeString(strings.ReplaceAll(tt.body, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		got := parseError(tt.flags, body)
		var e *Error
		if !errors.Is(got, tt.want) || errors.As(got, &e) && e.Text != tt.text {
			t.Errorf("%s: %v, want %v %q", tt.name, got, tt.want, tt.text)
		}
	}
}

// FuzzAttributes asserts that nothing the kernel could send makes a parser panic.
func FuzzAttributes(f *testing.F) {
	var m message
	m.putPeers(requests(manyPeers(3, 3).Peers)[0], func(string) uint32 { return 0 })
	f.Add(m.b)
	f.Fuzz(func(t *testing.T, b []byte) {
		parseDevice(b, &confparse.Device{}, func(uint32) string { return "" })
		parseRoute(unix.AF_INET, b)
		parseError(unix.NLM_F_ACK_TLVS, b)
	})
}
