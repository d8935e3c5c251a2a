package strategies

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"wg-quickns/confparse"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

const (
	eth = 2 // ifindex of the physical link
	wg  = 7 // ifindex of the tunnel
)

// tunnel is a machine with a LAN on eth, a default route in each family, and wg0.
func tunnel(endpoint string, allowed ...string) *facts.Facts {
	peer := facts.Peer{}
	if endpoint != "" {
		peer.Endpoint = netip.MustParseAddrPort(endpoint)
	}
	for _, a := range allowed {
		peer.AllowedIPs = append(peer.AllowedIPs, netip.MustParsePrefix(a))
	}
	f := &facts.Facts{
		Device:   facts.Device{Name: "wg0", Index: wg, Kernel: true, Peers: []facts.Peer{peer}},
		NFTables: true, IPv6: true, DefaultMTU: 1500,
		Routes: []facts.Route{
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Table: plan.TableMain, Index: eth},
			{Dst: netip.MustParsePrefix("192.168.1.0/24"), Table: plan.TableMain, Index: eth},
			{Dst: netip.MustParsePrefix("::/0"), Table: plan.TableMain, Index: eth, Metric: 1024},
		},
	}
	for _, v6 := range []bool{false, true} {
		for _, p := range []uint32{0, 32766, 32767} {
			if v6 && p == 32767 {
				continue // IPv6 has no table default
			}
			f.Rules = append(f.Rules, facts.Rule{IPv6: v6, Priority: p, SuppressPrefixLen: -1})
		}
	}
	return f
}

func commands(actions []plan.Action) []string {
	var out []string
	for _, a := range actions {
		out = append(out, a.Do.Commands()...)
	}
	return out
}

func config(t *testing.T, addresses ...string) *confparse.Config {
	t.Helper()
	cfg := &confparse.Config{}
	for _, a := range addresses {
		cfg.Addresses = append(cfg.Addresses, confparse.Address{Text: a, Prefix: netip.MustParsePrefix(a)})
	}
	return cfg
}

func TestAuto(t *testing.T) {
	for _, test := range []struct {
		name   string
		cfg    func(*confparse.Config)
		facts  func(*facts.Facts)
		end    string
		allow  []string
		want   string
		prefix []uint32 // priorities of the rules, in order
	}{
		{
			name: "longest prefix first, backwards by text", end: "198.51.100.1:1",
			allow: []string{"10.0.0.0/8", "10.2.0.0/16", "10.10.0.0/16", "fd00::/64", "10.9.9.9/32"},
			want: `ip -6 route add fd00::/64 dev wg0
				ip -4 route add 10.9.9.9/32 dev wg0
				ip -4 route add 10.2.0.0/16 dev wg0
				ip -4 route add 10.10.0.0/16 dev wg0
				ip -4 route add 10.0.0.0/8 dev wg0`,
		},
		{
			name: "full tunnel in both families", end: "198.51.100.1:1", allow: []string{"0.0.0.0/0", "::/0"},
			want: `wg set wg0 fwmark 51820
				ip -6 rule add not fwmark 51820 table 51820
				ip -6 rule add table main suppress_prefixlength 0
				ip -6 route add ::/0 dev wg0 table 51820
				nft -f /dev/fd/63
				ip -4 rule add not fwmark 51820 table 51820
				ip -4 rule add table main suppress_prefixlength 0
				ip -4 route add 0.0.0.0/0 dev wg0 table 51820
				sysctl -q net.ipv4.conf.all.src_valid_mark=1
				nft -f /dev/fd/63`,
			prefix: []uint32{32765, 32764, 32765, 32764},
		},
		{
			name: "the mark of the config, src_valid_mark set by somebody", end: "198.51.100.1:1", allow: []string{"0.0.0.0/0"},
			facts: func(f *facts.Facts) { f.Device.FwMark = 5; f.SrcValidMark = 1 },
			want: `ip -4 rule add not fwmark 5 table 5
				ip -4 rule add table main suppress_prefixlength 0
				ip -4 route add 0.0.0.0/0 dev wg0 table 5
				nft -f /dev/fd/63`,
		},
		{
			name: "the next table where one is used in the other family", end: "198.51.100.1:1", allow: []string{"0.0.0.0/0"},
			facts: func(f *facts.Facts) {
				f.SrcValidMark = 1
				f.Routes = append(f.Routes, facts.Route{Dst: netip.MustParsePrefix("::/0"), Table: 51820, Index: 9})
			},
			want: `wg set wg0 fwmark 51821
				ip -4 rule add not fwmark 51821 table 51821
				ip -4 rule add table main suppress_prefixlength 0
				ip -4 route add 0.0.0.0/0 dev wg0 table 51821
				nft -f /dev/fd/63`,
		},
		{
			name: "a route on the device covers it", end: "198.51.100.1:1", allow: []string{"10.0.0.2/32", "10.0.1.0/24"},
			facts: func(f *facts.Facts) {
				f.Routes = append(f.Routes, facts.Route{Dst: netip.MustParsePrefix("10.0.0.0/24"), Table: plan.TableMain, Index: wg})
			},
			want: `ip -4 route add 10.0.1.0/24 dev wg0`,
		},
		{
			name: "halves of everything would swallow the endpoint", end: "198.51.100.1:1", allow: []string{"0.0.0.0/1", "128.0.0.0/1"},
			facts: func(f *facts.Facts) { f.SrcValidMark = 1 },
			want: `ip -4 route add 0.0.0.0/1 dev wg0
				wg set wg0 fwmark 51820
				ip -4 rule add to 128.0.0.0/1 not fwmark 51820 table 51820
				ip -4 rule add to 128.0.0.0/1 table main suppress_prefixlength 1
				ip -4 route add 128.0.0.0/1 dev wg0 table 51820
				nft -f /dev/fd/63`,
			prefix: []uint32{32765, 32764},
		},
		{
			name: "an endpoint on the local network is not swallowed", end: "192.168.1.9:1", allow: []string{"192.168.0.0/16"},
			want: `ip -4 route add 192.168.0.0/16 dev wg0`,
		},
		{
			name: "every layer around the endpoint goes, shortest first", end: "[2001:db8::1]:1",
			allow: []string{"2001:db8::1/128", "2001:db8::/32", "2001:db9::/32"},
			want: `ip -6 route add 2001:db9::/32 dev wg0
				wg set wg0 fwmark 51820
				ip -6 rule add to 2001:db8::/32 not fwmark 51820 table 51820
				ip -6 rule add to 2001:db8::/32 table main suppress_prefixlength 32
				ip -6 route add 2001:db8::/32 dev wg0 table 51820
				ip -6 rule add to 2001:db8::1/128 not fwmark 51820 table 51820
				ip -6 rule add to 2001:db8::1/128 table main suppress_prefixlength 128
				ip -6 route add 2001:db8::1/128 dev wg0 table 51820
				nft -f /dev/fd/63`,
			prefix: []uint32{32765, 32764, 32763, 32762},
		},
		{name: "no endpoint, nothing to swallow", allow: []string{"0.0.0.0/1"}, want: `ip -4 route add 0.0.0.0/1 dev wg0`},
		{name: "Table=off", cfg: func(c *confparse.Config) { c.Table = "off" }, allow: []string{"0.0.0.0/0"}},
		{
			name: "Table=N takes all, loops too", end: "198.51.100.1:1", cfg: func(c *confparse.Config) { c.Table = "0x7b" },
			allow: []string{"0.0.0.0/0", "128.0.0.0/1"},
			want: `ip -4 route add 128.0.0.0/1 dev wg0 table 0x7b
				ip -4 route add 0.0.0.0/0 dev wg0 table 0x7b`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			f, cfg := tunnel(test.end, test.allow...), config(t)
			if test.cfg != nil {
				test.cfg(cfg)
			}
			if test.facts != nil {
				test.facts(f)
			}
			actions, err := Routes(cfg, f, Place{})
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			for _, line := range strings.Split(test.want, "\n") {
				if line = strings.TrimSpace(line); line != "" {
					want = append(want, line)
				}
			}
			if got := commands(actions); !slices.Equal(got, want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			var priorities []uint32
			for _, a := range actions {
				if r, ok := a.Do.(plan.Rule); ok {
					priorities = append(priorities, r.Priority)
				}
			}
			if test.prefix != nil && !slices.Equal(priorities, test.prefix) {
				t.Errorf("priorities %v, want %v", priorities, test.prefix)
			}
		})
	}
}

func TestTableOfNoNumberAndNoNameIsAnError(t *testing.T) {
	cfg := config(t)
	cfg.Table = "nonsense"
	if _, err := Routes(cfg, tunnel("", "10.0.0.0/8"), Place{}); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("got %v", err)
	}
	f := tunnel("", "10.0.0.0/8")
	f.TableNames = map[string]uint32{"nonsense": 7}
	actions, err := Routes(cfg, f, Place{})
	if err != nil || actions[0].Do.(plan.Route).Table != 7 {
		t.Errorf("got %v, %v", actions, err)
	}
}

// A subnet with the endpoint in it must not become a route of table main, not
// even by the kernel's hand.
func TestAddressSubnetWithTheEndpointInside(t *testing.T) {
	cfg := config(t, "198.51.100.7/24", "10.0.0.1/32")
	f := tunnel("198.51.100.1:1", "10.0.0.0/8")
	got := commands(Address(cfg, f, Place{}))
	want := []string{
		"ip -4 address add 198.51.100.7/24 dev wg0 noprefixroute",
		"ip -4 address add 10.0.0.1/32 dev wg0",
		"ip link set mtu 1420 up dev wg0",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	actions, err := Routes(cfg, f, Place{})
	if err != nil {
		t.Fatal(err)
	}
	if got := commands(actions); !slices.Contains(got, "ip -4 route add 198.51.100.0/24 dev wg0 table 51820") {
		t.Errorf("the subnet has no route: %q", got)
	}
}

func TestMTU(t *testing.T) {
	f := tunnel("198.51.100.1:1")
	cfg := config(t)
	f.PathMTU = map[netip.Addr]int{netip.MustParseAddr("198.51.100.1"): 1400}
	if got := MTU(cfg, f); got != 1320 {
		t.Errorf("by the endpoint's path: %d", got)
	}
	f.PathMTU, f.DefaultMTU = nil, 9000
	if got := MTU(cfg, f); got != 8920 {
		t.Errorf("by the default route: %d", got)
	}
	f.DefaultMTU = 0
	if got := MTU(cfg, f); got != 1420 {
		t.Errorf("by nothing: %d", got)
	}
	cfg.MTU = 1280
	if got := MTU(cfg, f); got != 1280 {
		t.Errorf("by the config: %d", got)
	}
}

// down of what wg-quick made must not touch another tunnel's rule of table main.
func TestAdoptTakesOnlyItsOwnRules(t *testing.T) {
	f := tunnel("198.51.100.1:1", "0.0.0.0/0")
	f.Device.FwMark = 51820
	f.Rules = []facts.Rule{
		{Priority: 0, Table: 255, SuppressPrefixLen: -1},
		{Priority: 32762, Table: plan.TableMain, SuppressPrefixLen: 0},
		{Priority: 32763, Invert: true, FwMark: 51821, Table: 51821, SuppressPrefixLen: -1},
		{Priority: 32764, Table: plan.TableMain, SuppressPrefixLen: 0},
		{Priority: 32765, Invert: true, FwMark: 51820, Table: 51820, SuppressPrefixLen: -1},
		{Priority: 32766, Table: plan.TableMain, SuppressPrefixLen: -1},
	}
	var priorities []uint32
	for _, a := range Adopt(config(t), f, "", Place{}) {
		for _, u := range a.Undo {
			if r, ok := u.(plan.Rule); ok {
				priorities = append(priorities, r.Priority)
			}
		}
	}
	if want := []uint32{32764, 32765}; !slices.Equal(priorities, want) {
		t.Errorf("undoes rules %v, want %v", priorities, want)
	}
}

// The second tunnel must leave src_valid_mark as the first one found it.
func TestSharedSysctlGoesHomeWithTheLast(t *testing.T) {
	f := tunnel("198.51.100.1:1", "0.0.0.0/0")
	f.SrcValidMark, f.SrcValidMarkHome = 1, "0"
	actions, err := Routes(config(t), f, Place{})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range actions {
		if c, ok := a.Do.(plan.Sysctl); ok {
			if undo := a.Undo[0].(plan.Sysctl); c.Value != "1" || undo.Value != "0" {
				t.Errorf("sets %s, undoes to %s", c.Value, undo.Value)
			}
			return
		}
	}
	t.Error("the sysctl is not recorded")
}

// Born elsewhere, a /0 is a route like any, and no endpoint can be swallowed.
func TestBornElsewhere(t *testing.T) {
	f := tunnel("198.51.100.1:1", "0.0.0.0/0", "::/0", "128.0.0.0/1")
	p := Place{Target: plan.Named("container"), Birth: "", Foreign: true}
	actions, err := Routes(config(t), f, p)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"ip -4 route add 128.0.0.0/1 dev wg0", "ip -6 route add ::/0 dev wg0", "ip -4 route add 0.0.0.0/0 dev wg0",
	}
	if got := commands(actions); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	p.Make = []string{"container"}
	var got []string
	for _, a := range slices.Concat(Namespaces(p, nil), Create("wg0", p), actions) {
		got = append(got, plan.Trace(a.NS, a.Do)...)
	}
	want = []string{
		"ip netns add container", "ip -n container link set lo up",
		"ip link add dev wg0 netns container type wireguard",
		"ip -n container -4 route add 128.0.0.0/1 dev wg0",
		"ip -n container -6 route add ::/0 dev wg0", "ip -n container -4 route add 0.0.0.0/0 dev wg0",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	// Born where it lives, it needs the strategy, wherever that is.
	p.Birth = p.Target
	if actions, err = Routes(config(t), f, p); err != nil || !slices.Contains(commands(actions), "wg set wg0 fwmark 51820") {
		t.Errorf("got %q, %v", commands(actions), err)
	}
	for _, a := range actions {
		if a.NS != p.Target {
			t.Errorf("%v acts in %q", a.Do.Commands(), a.NS)
		}
	}
}

func BenchmarkRoutes(b *testing.B) {
	allow := make([]string, 0, 100_000)
	for i := range 100_000 {
		allow = append(allow, netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String()+"/32")
	}
	f := tunnel("198.51.100.1:1", allow...)
	for b.Loop() {
		if _, err := Routes(&confparse.Config{}, f, Place{}); err != nil {
			b.Fatal(err)
		}
	}
}
