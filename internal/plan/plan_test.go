package plan

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"wg-quickns/confparse"
	"wg-quickns/internal/facts"
)

func TestEncodeDecode(t *testing.T) {
	key := confparse.Key{1, 2, 3}
	steps := []Step{
		Link{Name: "wg0", Delete: true, Index: 7, Userspace: "wireguard-go"},
		LinkUp{Name: "wg0", MTU: 1420},
		Addr{Link: "wg0", NoPrefixRoute: true, List: []Prefix{
			{netip.MustParsePrefix("10.0.0.1/32"), "10.0.0.1"}, {netip.MustParsePrefix("fd00::1/64"), ""}}},
		Route{Link: "wg0", Table: 123, TableText: "mine", List: []Prefix{{Prefix: netip.MustParsePrefix("0.0.0.0/0")}}},
		Rule{IPv6: true, Priority: 5, NotFwMark: 6, Table: 7, SuppressPrefixLen: -1},
		Rule{Priority: 4, To: netip.MustParsePrefix("10.0.0.0/8"), Table: TableMain, SuppressPrefixLen: 8, Delete: true},
		WG{Link: "wg0", Device: &confparse.Device{PrivateKey: &key}},
		FwMark{Link: "wg0", Mark: 51820},
		Nft{Link: "wg0", Mark: 3, Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Handle: 9},
		Sysctl{Name: "net.ipv4.conf.all.src_valid_mark", Value: "1"},
		DNS{Link: "wg0", Prefix: "tun.", Servers: []string{"10.0.0.1"}, Search: []string{"example.org"}},
		Hook{Command: "echo 'a' # b", Phase: "PreUp", Vars: map[string]string{"MTU": ""}},
	}
	raw, err := Encode(steps)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(raw), "AQID") || strings.Contains(string(raw), "rivate") {
		t.Errorf("a key in %s", raw)
	}
	got, err := Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	steps[6] = WG{Link: "wg0"} // what the journal keeps of it
	if !reflect.DeepEqual(got, steps) {
		t.Errorf("got\n%#v\nwant\n%#v", got, steps)
	}
	if _, err := Decode([]byte(`[{"kind":"later","step":{}}]`)); err == nil {
		t.Error("a step of a newer version is guessed at")
	}
}

// TestClientCommands: which program is started can be read where it is not the usual one.
func TestClientCommands(t *testing.T) {
	for want, c := range map[string]facts.Client{
		"dhclient -4 eth0":                                {Exe: "/usr/sbin/dhclient", Args: []string{"dhclient", "-4", "eth0"}},
		"busybox udhcpc -i eth0":                          {Exe: "/bin/busybox", Args: []string{"busybox", "udhcpc", "-i", "eth0"}},
		"/opt/x/dhclient eth0":                            {Exe: "/opt/x/dhclient", Args: []string{"dhclient", "eth0"}},
		"/opt/x/dhclient eth1":                            {Exe: "/opt/x/dhclient", Args: []string{"/opt/x/dhclient", "eth1"}},
		"exec -a udhcpc /opt/x/busybox -i eth0":           {Exe: "/opt/x/busybox", Args: []string{"udhcpc", "-i", "eth0"}},
		"exec -a /sbin/dhclient4 /opt/x/dhclient-4.4 eth": {Exe: "/opt/x/dhclient-4.4", Args: []string{"/sbin/dhclient4", "eth"}},
	} {
		if got := (Client{Client: c, Start: true}).Commands(); len(got) != 1 || got[0] != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
}
