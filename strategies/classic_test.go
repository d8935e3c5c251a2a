package strategies

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"wg-quickns/confparse"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

var indexes = map[string]int{"eth0": eth, "wlan0": 3, "wg0": wg, "wg1": 8}

// machine is a machine with the routes given, as `ip route` lists them, `-6` before
// those of IPv6, and wg0 with the endpoints and allowed IPs. A `rule` is one more.
func machine(t *testing.T, text, endpoints, allowed string) *facts.Facts {
	t.Helper()
	f := &facts.Facts{
		Device: facts.Device{Name: "wg0", Index: wg}, NFTables: true, IPv6: true,
		Links: []facts.Link{
			{Name: "eth0", Index: eth, Up: true, Running: true}, {Name: "wlan0", Index: 3, Up: true, Running: true},
			{Name: "wg0", Index: wg, Up: true, Running: true, MTU: 1420, Type: "wireguard"}, {Name: "wg1", Index: 8, Up: true, Running: true, Type: "wireguard"},
		},
	}
	for _, v6 := range []bool{false, true} {
		f.Rules = append(f.Rules,
			facts.Rule{IPv6: v6, Table: 255, SuppressPrefixLen: -1},
			facts.Rule{IPv6: v6, Priority: 32766, Table: plan.TableMain, SuppressPrefixLen: -1})
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "rule "); ok {
			f.Rules = slices.Insert(f.Rules, 1, rule(t, rest))
		} else if line != "" {
			f.Routes = append(f.Routes, route(t, line))
		}
	}
	for i, e := range strings.Fields(endpoints) {
		peer := facts.Peer{}
		if e != "-" {
			peer.Endpoint = netip.MustParseAddrPort(e)
		}
		if i == 0 {
			for _, a := range strings.Fields(allowed) {
				peer.AllowedIPs = append(peer.AllowedIPs, netip.MustParsePrefix(a))
			}
		}
		f.Device.Peers = append(f.Device.Peers, peer)
	}
	return f
}

// route reads one line of machine's.
func route(t *testing.T, line string) facts.Route {
	t.Helper()
	v6 := strings.HasPrefix(line, "-6 ")
	words := strings.Fields(strings.TrimPrefix(line, "-6 "))
	r := facts.Route{Table: plan.TableMain, Protocol: boot, Type: unicast, Way: &facts.Way{}}
	if words[0] == "unreachable" {
		r.Type, words = 7, words[1:]
	}
	if words[0] == "default" {
		r.Dst = zero(v6)
	} else {
		r.Dst = netip.MustParsePrefix(words[0])
	}
	if r.Dst.Addr().Is6() {
		r.Metric = 1024
	}
	number := func(s string) int {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(line, err)
		}
		return n
	}
	var way []string
	for i := 1; i < len(words); i++ {
		word, next := words[i], ""
		if i+1 < len(words) {
			next = words[i+1]
		}
		switch word {
		case "metric":
			r.Metric = uint32(number(next))
			i++
			continue
		case "table":
			r.Table = uint32(number(next))
			i++
			continue
		case "proto":
			r.Protocol = map[string]int{"kernel": 2, "boot": boot, "static": 4, "ra": ra, "dhcp": dhcp}[next]
			i++
			continue
		case "tos":
			r.Way.TOS = uint8(number(next))
			i++
			continue
		case "mtu":
			r.MTU = number(next)
		case "via":
			r.Gateway = netip.MustParseAddr(next)
		case "dev":
			if r.Index == 0 {
				r.Index = indexes[next]
			}
		}
		way = append(way, word)
	}
	r.Way.Text = strings.Join(way, " ")
	r.Way.Raw = []byte(r.Way.Text)
	if r.Index == wg {
		r.Way = nil
	}
	return r
}

func rule(t *testing.T, line string) facts.Rule {
	t.Helper()
	r := facts.Rule{SuppressPrefixLen: -1}
	var to, from string
	for rest := strings.Fields(line); len(rest) > 1; rest = rest[2:] {
		switch rest[0] {
		case "pref":
			fmt.Sscan(rest[1], &r.Priority)
		case "table":
			fmt.Sscan(rest[1], &r.Table)
		case "fwmark":
			fmt.Sscan(rest[1], &r.FwMark)
		case "suppress_prefixlength":
			fmt.Sscan(rest[1], &r.SuppressPrefixLen)
		case "to":
			to = rest[1]
			r.Dst = netip.MustParsePrefix(to)
		case "from":
			from = rest[1]
			r.Src = netip.MustParsePrefix(from)
		case "iif":
			r.Other = true
		default:
			t.Fatalf("rule %q", line)
		}
	}
	return r
}

func lines(text string) (list []string) {
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			list = append(list, line)
		}
	}
	return list
}

const (
	home = `default via 192.168.1.1 dev eth0 metric 100
		192.168.1.0/24 dev eth0 proto kernel scope link src 192.168.1.7`
	home6 = home + `
		-6 default via fe80::1 dev eth0 proto ra
		2001:db8:1::/64 dev eth0 proto ra metric 256`
)

// TestClassic has the plans of the classic strategies, as commands.
func TestClassic(t *testing.T) {
	for _, test := range []struct {
		name, strategy, table    string
		addresses                string
		routes, endpoints, allow string
		priorities               [2]uint32
		mark                     uint32
		want                     string
		undo                     string // first undo of each, where it matters
	}{
		{
			name: "the reference text's", strategy: "replace",
			routes: "default via 192.168.1.1 dev eth0", endpoints: "163.172.161.0:51820", allow: "0.0.0.0/0",
			want: `ip -4 route add 163.172.161.0/32 via 192.168.1.1 dev eth0
				ip -4 route replace 0.0.0.0/0 dev wg0`,
			undo: `ip -4 route delete 163.172.161.0/32 via 192.168.1.1 dev eth0
				ip -4 route replace 0.0.0.0/0 via 192.168.1.1 dev eth0`,
		},
		{
			name: "the reference text's", strategy: "override",
			routes: "default via 192.168.1.1 dev eth0", endpoints: "163.172.161.0:51820", allow: "0.0.0.0/0",
			want: `ip -4 route add 163.172.161.0/32 via 192.168.1.1 dev eth0
				ip -4 route add 0.0.0.0/1 dev wg0
				ip -4 route add 128.0.0.0/1 dev wg0`,
		},
		{
			name: "the reference text's", strategy: "rules",
			routes: "default via 192.168.1.1 dev eth0", endpoints: "163.172.161.0:51820", allow: "0.0.0.0/0",
			want: `ip -4 rule add to 163.172.161.0/32 table main pref 30
				ip -4 route add 0.0.0.0/0 dev wg0 table 80
				ip -4 rule add table 80 pref 40`,
		},
		{
			name: "several defaults: new first, all others go and come back", strategy: "replace",
			routes: `default via 192.168.1.1 dev eth0 src 192.168.1.7 metric 100
				default via 10.0.0.1 dev wlan0 metric 600 onlink
				default via 10.0.0.2 dev wlan0 tos 16
				unreachable default metric 4278198272
				default nexthop via 192.168.1.1 dev eth0 weight 1 nexthop via 10.0.0.1 dev wlan0 weight 2 metric 700`,
			endpoints: "198.51.100.1:1", allow: "0.0.0.0/0",
			want: `ip -4 route add 198.51.100.1/32 via 192.168.1.1 dev eth0 src 192.168.1.7
				ip -4 route add 0.0.0.0/0 dev wg0
				ip -4 route delete 0.0.0.0/0 via 192.168.1.1 dev eth0 src 192.168.1.7 metric 100
				ip -4 route delete 0.0.0.0/0 via 10.0.0.1 dev wlan0 onlink metric 600
				ip -4 route delete 0.0.0.0/0 nexthop via 192.168.1.1 dev eth0 weight 1 nexthop via 10.0.0.1 dev wlan0 weight 2 metric 700`,
			undo: `ip -4 route delete 198.51.100.1/32 via 192.168.1.1 dev eth0 src 192.168.1.7
				-
				ip -4 route add 0.0.0.0/0 via 192.168.1.1 dev eth0 src 192.168.1.7 metric 100
				ip -4 route add 0.0.0.0/0 via 10.0.0.1 dev wlan0 onlink metric 600
				ip -4 route add 0.0.0.0/0 nexthop via 192.168.1.1 dev eth0 weight 1 nexthop via 10.0.0.1 dev wlan0 weight 2 metric 700`,
		},
		{
			name: "multipath, onlink and a path's MTU are the endpoint's too", strategy: "override",
			routes: `default nexthop via 192.168.1.1 dev eth0 weight 1 nexthop via 10.0.0.1 dev wlan0 weight 2
				198.51.100.0/24 via 172.16.0.1 dev eth0 mtu 1300 onlink`,
			endpoints: "203.0.113.1:1 198.51.100.1:1", allow: "0.0.0.0/0",
			want: `ip -4 route add 203.0.113.1/32 nexthop via 192.168.1.1 dev eth0 weight 1 nexthop via 10.0.0.1 dev wlan0 weight 2
				ip -4 route add 198.51.100.1/32 via 172.16.0.1 dev eth0 mtu 1300 onlink
				ip -4 route add 0.0.0.0/1 dev wg0
				ip -4 route add 128.0.0.0/1 dev wg0`,
		},
		{
			name: "IPv6 with a router's default stays behind the tunnel's", strategy: "replace",
			routes: home6, endpoints: "[2001:db8:9::1]:1", allow: "::/0",
			want: `ip -6 route add 2001:db8:9::1/128 via fe80::1 dev eth0 metric 1
				ip -6 route add ::/0 dev wg0 metric 1`,
		},
		{
			name: "IPv6 with a default by hand, both families", strategy: "replace",
			routes: home + "\n-6 default via fe80::1 dev eth0", endpoints: "198.51.100.1:1", allow: "::/0 0.0.0.0/0 10.9.0.0/16",
			want: `ip -4 route add 198.51.100.1/32 via 192.168.1.1 dev eth0
				ip -4 route add 10.9.0.0/16 dev wg0
				ip -4 route add 0.0.0.0/0 dev wg0
				ip -4 route delete 0.0.0.0/0 via 192.168.1.1 dev eth0 metric 100
				ip -6 route add ::/0 dev wg0 metric 1
				ip -6 route delete ::/0 via fe80::1 dev eth0 metric 1024`,
		},
		{
			name: "IPv6", strategy: "override", routes: home6, endpoints: "[2001:db8:9::1]:1", allow: "::/0",
			want: `ip -6 route add 2001:db8:9::1/128 via fe80::1 dev eth0 metric 1
				ip -6 route add ::/1 dev wg0 metric 1
				ip -6 route add 8000::/1 dev wg0 metric 1`,
		},
		{
			name: "what a network has in the place of a half comes back", strategy: "override", routes: home + "\n128.0.0.0/1 via 192.168.1.3 dev eth0 proto dhcp",
			endpoints: "198.51.100.1:1", allow: "0.0.0.0/0",
			want: `ip -4 route add 198.51.100.1/32 via 192.168.1.3 dev eth0
				ip -4 route replace 128.0.0.0/1 dev wg0
				ip -4 route add 0.0.0.0/1 dev wg0`,
			undo: `ip -4 route delete 198.51.100.1/32 via 192.168.1.3 dev eth0
				ip -4 route replace 128.0.0.0/1 via 192.168.1.3 dev eth0
				-`,
		},
		{
			name: "several endpoints, one on the link, one twice, one link-local", strategy: "override",
			routes: home6, endpoints: "198.51.100.1:1 192.168.1.9:1 198.51.100.1:2 [fe80::5%eth0]:1 [2001:db8:1::5]:1 -", allow: "0.0.0.0/0 ::/0",
			want: `ip -4 route add 198.51.100.1/32 via 192.168.1.1 dev eth0
				ip -4 route add 192.168.1.9/32 dev eth0 scope link src 192.168.1.7
				ip -6 route add 2001:db8:1::5/128 dev eth0 metric 1
				ip -4 route add 0.0.0.0/1 dev wg0
				ip -4 route add 128.0.0.0/1 dev wg0
				ip -6 route add ::/1 dev wg0 metric 1
				ip -6 route add 8000::/1 dev wg0 metric 1`,
		},
		{
			name: "the more specific route, the better metric", strategy: "override",
			routes: home + `
				198.51.100.0/24 via 192.168.1.2 dev eth0 metric 50
				198.51.100.0/24 via 192.168.1.3 dev eth0 metric 5
				198.51.0.0/16 via 192.168.1.4 dev eth0`,
			endpoints: "198.51.100.1:1 198.51.5.1:1", allow: "0.0.0.0/0",
			want: `ip -4 route add 198.51.100.1/32 via 192.168.1.3 dev eth0
				ip -4 route add 198.51.5.1/32 via 192.168.1.4 dev eth0
				ip -4 route add 0.0.0.0/1 dev wg0
				ip -4 route add 128.0.0.0/1 dev wg0`,
		},
		{
			name: "by a rule, in another table", strategy: "override",
			routes: home + `
				default via 192.168.1.2 dev eth0 table 77
				rule pref 1000 to 198.51.100.0/24 table 77`,
			endpoints: "198.51.100.1:1 203.0.113.1:1", allow: "0.0.0.0/0",
			want: `ip -4 route add 198.51.100.1/32 via 192.168.1.2 dev eth0
				ip -4 route add 203.0.113.1/32 via 192.168.1.1 dev eth0
				ip -4 route add 0.0.0.0/1 dev wg0
				ip -4 route add 128.0.0.0/1 dev wg0`,
		},
		{
			name: "by a rule, in another table", strategy: "rules",
			routes: home + `
				default via 192.168.1.2 dev eth0 table 80
				rule pref 1000 to 198.51.100.0/24 table 80`,
			endpoints: "198.51.100.1:1 203.0.113.1:1", allow: "0.0.0.0/0",
			want: `ip -4 rule add to 198.51.100.1/32 table 80 pref 30
				ip -4 rule add to 203.0.113.1/32 table main pref 30
				ip -4 route add 0.0.0.0/0 dev wg0 table 81
				ip -4 rule add table 81 pref 40`,
		},
		{
			name: "rules of a mark, of a source and of an interface; what is suppressed", strategy: "override", mark: 9,
			routes: home + `
				default via 192.168.1.2 dev eth0 table 77
				default via 192.168.1.3 dev eth0 table 78
				rule pref 1003 fwmark 9 table 77
				rule pref 1002 fwmark 8 table 78
				rule pref 1001 from 192.168.1.9/32 table 78
				rule pref 1000 iif eth0 table 78
				rule pref 999 table 78 suppress_prefixlength 0`,
			endpoints: "198.51.100.1:1", allow: "0.0.0.0/0",
			want: `ip -4 route add 198.51.100.1/32 via 192.168.1.2 dev eth0
				ip -4 route add 0.0.0.0/1 dev wg0
				ip -4 route add 128.0.0.0/1 dev wg0`,
		},
		{
			name: "over another tunnel", strategy: "replace",
			routes: home + "\n10.50.0.0/16 dev wg1 scope link", endpoints: "10.50.0.1:1", allow: "0.0.0.0/0",
			want: `ip -4 route add 10.50.0.1/32 dev wg1 scope link
				ip -4 route add 0.0.0.0/0 dev wg0
				ip -4 route delete 0.0.0.0/0 via 192.168.1.1 dev eth0 metric 100`,
		},
		{
			name: "an endpoint that nothing reaches", strategy: "override", routes: "unreachable 198.51.0.0/16\n" + home,
			endpoints: "198.51.100.1:1", allow: "0.0.0.0/0",
			want: `ip -4 route add 0.0.0.0/1 dev wg0
				ip -4 route add 128.0.0.0/1 dev wg0`,
		},
		{
			name: "inside of its own allowed IPs, no /0", strategy: "override", routes: home, endpoints: "198.51.100.1:1", allow: "198.51.100.0/24",
			want: `ip -4 route add 198.51.100.1/32 via 192.168.1.1 dev eth0
				ip -4 route add 198.51.100.0/24 dev wg0`,
		},
		{
			name: "inside of its own allowed IPs, no /0", strategy: "rules", routes: home, endpoints: "198.51.100.1:1", allow: "198.51.100.0/24 10.0.0.0/8",
			want: `ip -4 rule add to 198.51.100.1/32 table main pref 30
				ip -4 route add 198.51.100.0/24 dev wg0 table 80
				ip -4 route add 10.0.0.0/8 dev wg0 table 80
				ip -4 rule add table 80 pref 40`,
		},
		{
			name: "inside of the tunnel's subnet", strategy: "replace", addresses: "198.51.100.7/24", routes: home,
			endpoints: "198.51.100.1:1", allow: "10.0.0.0/8",
			want: `ip -4 route add 198.51.100.1/32 via 192.168.1.1 dev eth0
				ip -4 route add 10.0.0.0/8 dev wg0`,
		},
		{
			name: "itself an allowed IP: it stays outside", strategy: "override", routes: home, endpoints: "198.51.100.1:1", allow: "198.51.100.1/32 10.0.0.0/8",
			want: `ip -4 route add 198.51.100.1/32 via 192.168.1.1 dev eth0
				ip -4 route add 10.0.0.0/8 dev wg0`,
		},
		{
			name: "nothing to do but its routes", strategy: "replace", routes: home, endpoints: "198.51.100.1:1", allow: "10.0.0.0/8 fd00::/8",
			want: `ip -6 route add fd00::/8 dev wg0
				ip -4 route add 10.0.0.0/8 dev wg0`,
		},
		{
			name: "Table and RulePriority, both families", strategy: "rules", table: "1234", priorities: [2]uint32{100, 200}, routes: home6,
			endpoints: "198.51.100.1:1", allow: "0.0.0.0/0 ::/0 10.0.0.0/8",
			want: `ip -4 rule add to 198.51.100.1/32 table main pref 100
				ip -4 route add 10.0.0.0/8 dev wg0 table 1234
				ip -6 route add ::/0 dev wg0 table 1234
				ip -4 route add 0.0.0.0/0 dev wg0 table 1234
				ip -4 rule add table 1234 pref 200
				ip -6 rule add table 1234 pref 200`,
		},
		{
			name: "the next free table", strategy: "rules", routes: home + `
				10.1.0.0/16 via 192.168.1.9 dev eth0 table 80
				rule pref 5 table 81`,
			endpoints: "198.51.100.1:1", allow: "0.0.0.0/0",
			want: `ip -4 rule add to 198.51.100.1/32 table main pref 30
				ip -4 route add 0.0.0.0/0 dev wg0 table 82
				ip -4 rule add table 82 pref 40`,
		},
	} {
		t.Run(test.strategy+": "+test.name, func(t *testing.T) {
			cfg := config(t, strings.Fields(test.addresses)...)
			cfg.RoutingStrategy, cfg.Table, cfg.RulePriority = test.strategy, test.table, test.priorities
			f := machine(t, test.routes, test.endpoints, test.allow)
			f.Device.FwMark = test.mark
			actions, err := Routes(cfg, f, Place{})
			if err != nil {
				t.Fatal(err)
			}
			if got, want := commands(actions), lines(test.want); !slices.Equal(got, want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if test.undo == "" {
				return
			}
			var undo []string
			for _, a := range actions {
				text := "-"
				if len(a.Undo) > 0 {
					text = a.Undo[0].Commands()[0]
				}
				undo = append(undo, text)
			}
			if want := lines(test.undo); !slices.Equal(undo, want) {
				t.Errorf("undo\n%s\nwant\n%s", strings.Join(undo, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// Born elsewhere a tunnel's packets cannot be caught by its routes: no host routes.
func TestClassicBornElsewhere(t *testing.T) {
	for strategy, want := range map[string]string{
		"replace": "ip -4 route add 0.0.0.0/0 dev wg0\nip -4 route delete 0.0.0.0/0 via 192.168.1.1 dev eth0 metric 100",
		"rules":   "ip -4 route add 0.0.0.0/0 dev wg0 table 80\nip -4 rule add table 80 pref 40",
	} {
		f := machine(t, home, "198.51.100.1:1", "0.0.0.0/0")
		actions, err := Routes(&confparse.Config{RoutingStrategy: strategy}, f, Place{Birth: plan.Named("crib")})
		if got := strings.Join(commands(actions), "\n"); err != nil || got != want {
			t.Errorf("%s: got\n%s\n%v", strategy, got, err)
		}
	}
}
