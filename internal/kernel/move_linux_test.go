//go:build !lab

package kernel

import (
	"bytes"
	"errors"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

// configured makes eth0 with all that a move takes, its gateway behind it.
func configured(t *testing.T, home plan.NS) {
	t.Helper()
	gate := newNS(t)
	sh(t, gate, `ip link add gw type veth peer name eth0 netns `+outside(home)+`
ip link add gw1 type veth peer name eth1 netns `+outside(home)+`
ip link set gw up; ip link set gw1 up
ip address add 192.0.2.254/24 dev gw; ip address add 2001:db8::fe/64 dev gw nodad`)
	sh(t, home, `
echo 1 > /proc/sys/net/ipv4/conf/eth0/arp_ignore
echo 7 > /proc/sys/net/ipv4/neigh/eth0/ucast_solicit
echo 2 > /proc/sys/net/ipv6/conf/eth0/use_tempaddr
echo 9 > /proc/sys/net/ipv4/conf/default/medium_id
ip link set eth0 alias 'my uplink' address 02:00:00:00:00:07 mtu 1400 txqueuelen 77 up
ip link set eth1 up
ip address add 192.0.2.7/24 brd + dev eth0 label eth0:x valid_lft 5000 preferred_lft 4000
ip address add 192.0.2.8/24 dev eth0
ip address add 198.51.100.1/32 peer 198.51.100.2 dev eth0 metric 70
ip address add 2001:db8::7/64 dev eth0 nodad
ip address add 2001:db8:1::7/64 dev eth0 valid_lft 5000 preferred_lft 0 noprefixroute
ip address add 10.1.1.1/24 dev eth1
ip neigh add 192.0.2.99 lladdr 02:00:00:00:00:99 nud permanent dev eth0
ip -6 neigh add 2001:db8::99 lladdr 02:00:00:00:00:99 nud permanent dev eth0
ip route add default via 192.0.2.254 dev eth0 src 192.0.2.8 metric 100 mtu 1300 proto dhcp
ip route add 203.0.113.0/24 via 192.0.2.253 dev eth0 table 1234 tos 8
ip route add 203.0.114.0/24 via 10.200.0.1 dev eth0 onlink
ip route add 203.0.115.0/24 nexthop via 192.0.2.254 dev eth0 weight 3 nexthop via 10.1.1.2 dev eth1 weight 2
ip route add 10.7.0.0/16 dev eth0
ip route add 1.0.0.0/8 via 10.7.0.1
ip nexthop add id 7 via 192.0.2.250 dev eth0
ip route add 203.0.116.0/24 nhid 7
ip -6 route add default via 2001:db8::fe dev eth0 metric 10 expires 1000
ip -6 route add 2001:db8:9::/48 via fe80::1 dev eth0 table 99
ip route add 172.16.0.0/12 dev eth0 scope link proto kernel metric 5
ip rule add iif eth0 table 1234 pref 900
ip -6 rule add not oif eth0 to 2001:db8:9::/48 table 99 pref 901 proto static
ip rule add from 192.0.2.0/24 table 1234 pref 902
tc qdisc replace dev eth0 root handle 8: pfifo limit 55
for i in $(seq 60); do ip -6 address show | grep -q tentative || break; sleep 0.05; done`)
}

// state is all that can be seen of eth0, but for what must change: its carrier,
// the seconds that are left, and the numbers of the other end.
func state(t *testing.T, ns plan.NS, rules bool) string {
	t.Helper()
	script := `exec 2>&1
ip link show eth0 | sed -E 's/@[^:]*//; s/ link-netns.*//; s/ state [A-Z]+//; s/NO-CARRIER,|M-DOWN,|LOWER_UP//g'
ip -d address show dev eth0 | grep -A1 inet | sed -E 's/(inet6 fe80.*) tentative/\1/; s/[0-9]{4}sec/SECONDS/g'
ip -d -4 route show table all dev eth0 | sed -E 's/ linkdown//; s/ nhid 7//; /nh_info/d'
ip -d -4 route show 203.0.115.0/24 | sed -E 's/ linkdown//'
ip -d -6 route show table all dev eth0 | sed -E 's/expires [0-9]+sec/expires SECONDS/; /^local fe80/d' | sort
ip neigh show dev eth0 nud permanent; ip -6 neigh show dev eth0 nud permanent
tc qdisc show dev eth0
for f in ipv4 ipv6; do for d in conf neigh; do grep -r . /proc/sys/net/$f/$d/eth0; done; done | sort | grep -v _secret`
	if rules {
		script += "\nip rule; ip -6 rule"
	}
	return sh(t, ns, script)
}

// out moves interfaces to another namespace and gives them their settings there.
func out(t *testing.T, d *Doer, home, there plan.NS, links []facts.Interface) {
	t.Helper()
	var names []string
	for _, l := range links {
		names = append(names, l.Name)
	}
	do(t, d, home, plan.Hold{Links: names})
	for _, l := range links {
		do(t, d, home, plan.Move{From: home, To: there, Links: []facts.Interface{l}})
	}
	for _, l := range links {
		do(t, d, there, plan.Settle{Link: l, Away: home})
	}
}

func TestMoveEthernet(t *testing.T) {
	home, there := newNS(t), newNS(t)
	configured(t, home)
	d := newDoer(t, Options{Warn: func(s string) { t.Errorf("warning: %s", s) }})
	// The number that it has at home is taken there.
	sh(t, there, "ip link add other index "+strings.TrimSpace(sh(t, home, "ip -o link show eth0 | cut -d: -f1"))+" type ifb")
	links := settings(t, d, home, "eth0", "eth1")
	e := links[0]
	if e.Kind != "veth" || e.Hardware || !e.Default || links[1].Default || e.Alias != "my uplink" || e.Lower != 0 || e.Master != 0 ||
		e.Phy != nil || e.Fixed != "" || !e.Up || e.MTU != 1400 || e.TxQueueLen != 77 || e.MAC != "02:00:00:00:00:07" {
		t.Errorf("eth0: %+v", e)
	}
	before, rules := state(t, home, true), sh(t, home, "ip rule; ip -6 rule")
	move := plan.Move{From: home, To: there, Links: links[:1]}
	exists(t, d, home, move, false)
	start := time.Now()
	out(t, d, home, there, links)
	took := time.Since(start)
	exists(t, d, home, move, true)
	t.Logf("out in %v", took)
	if took > 500*time.Millisecond {
		t.Errorf("without a way out for %v", took)
	}
	if text := sh(t, home, "ip link show dev eth0 2>&1 || true"); !strings.Contains(text, "does not exist") {
		t.Errorf("it is still at home: %s", text)
	}
	if text := sh(t, there, "ip address show dev eth0 scope global"); strings.Contains(text, "tentative") {
		t.Errorf("duplicates of addresses are still searched: %s", text)
	}
	if text := sh(t, there, "ip -6 rule"); !strings.Contains(text, "not from all to 2001:db8:9::/48 oif eth0 lookup 99 proto static") {
		t.Errorf("rules there: %s", text)
	}
	becomes(t, "away", number(unruled(before)), func() string {
		return number(unruled(strings.ReplaceAll(state(t, there, false), plan.AwayAlias(e), e.Alias)))
	})
	// A packet gets there and back at once.
	sh(t, there, "ping -c 1 -W 1 -q 192.0.2.254; ping -c 1 -W 1 -q 2001:db8::fe")

	home1 := plan.Move{From: there, To: home, Links: links[:1], Home: true}
	exists(t, d, there, home1, true)
	for range 2 { // the second finds all done
		back(t, d, home, there, links)
		exists(t, d, there, home1, false)
		becomes(t, "back home", before, func() string { return state(t, home, true) })
	}
	if got := sh(t, home, "ip rule; ip -6 rule"); got != rules {
		t.Errorf("rules at home:\n%s\nbefore:\n%s", got, rules)
	}
	if got := sh(t, there, "ip rule; ip -6 rule"); strings.Contains(got, "eth0") {
		t.Errorf("rules left there:\n%s", got)
	}
}

// TestMoveManaged: what somebody else gives addresses keeps what is nobody's but the administrator's.
func TestMoveManaged(t *testing.T) {
	home, there := newNS(t), newNS(t)
	configured(t, home)
	d := newDoer(t, Options{})
	links := settings(t, d, home, "eth0")
	do(t, d, home, plan.Hold{Links: []string{"eth0"}})
	do(t, d, home, plan.Move{From: home, To: there, Links: links})
	do(t, d, there, plan.Settle{Link: links[0], Bare: true, Away: home})
	if got := sh(t, there, "tc qdisc show dev eth0"); !strings.HasPrefix(got, "qdisc pfifo 8: root") || !strings.Contains(got, "limit 55p") {
		t.Errorf("queueing discipline: %s", got)
	}
	if got := sh(t, there, "ip -br address show dev eth0; cat /proc/sys/net/ipv4/conf/eth0/arp_ignore"); strings.Contains(got, "192.0.2") || !strings.HasSuffix(got, "1\n") {
		t.Errorf("addresses and sysctl: %s", got)
	}
}

// unruled is a state without the rules.
func unruled(s string) string {
	before, _, _ := strings.Cut(s, "\n0:\t")
	return strings.TrimSpace(before)
}

// number leaves out the interface's number.
func number(s string) string {
	_, s, _ = strings.Cut(s, ": ")
	return strings.TrimSpace(s)
}

// cable makes eth0, up with an address, its other end in a namespace of its own.
func cable(t *testing.T, home plan.NS) facts.Interface {
	t.Helper()
	sh(t, newNS(t), "ip link add gw type veth peer name eth0 netns "+outside(home)+"; ip link set gw up")
	sh(t, home, `ip link set eth0 alias mine up; ip address add 192.0.2.7/24 dev eth0; ip route add default via 192.0.2.254
for i in $(seq 60); do ip -6 address show dev eth0 | grep -q fe80 && break; sleep 0.05; done`)
	return settings(t, newDoer(t, Options{}), home, "eth0")[0]
}

// TestMoveTaken: a name that is taken at the other end is an error that changes
// nothing, and once it is free the same step succeeds.
func TestMoveTaken(t *testing.T) {
	home, there := newNS(t), newNS(t)
	l := cable(t, home)
	d := newDoer(t, Options{})
	const show = "ip link show dev eth0; ip address show dev eth0; ip route"
	for _, step := range []plan.Move{{From: home, To: there}, {From: there, To: home, Home: true}} {
		step.Links = []facts.Interface{l}
		sh(t, step.To, "ip link add eth0 type ifb")
		before := sh(t, step.From, show) + sh(t, step.To, show)
		_, err := d.Do(t.Context(), "", step)
		if !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "(ifb)") || !strings.Contains(err.Error(), "hint: rename that") {
			t.Errorf("home: %v: %v", step.Home, err)
		}
		diff(t, "refused", before, sh(t, step.From, show)+sh(t, step.To, show))
		exists(t, d, "", step, step.Home)
		sh(t, step.To, "ip link delete eth0; ip link add other type ifb; ip link property add dev other altname eth0")
		if _, err := d.Do(t.Context(), "", step); !errors.Is(err, unix.EEXIST) {
			t.Errorf("home: %v: an alternative name: %v", step.Home, err)
		}
		sh(t, step.To, "ip link delete other")
		do(t, d, "", step)
	}
	do(t, d, home, plan.Settle{Link: l, Away: there})
	if text := sh(t, home, "ip link show dev eth0"); !strings.Contains(text, "alias mine\n") {
		t.Errorf("at home again: %s", text)
	}
}

// TestMoveKilled: from wherever a kill, or somebody else, left an interface on its
// way, a move home brings it home with its name and alias, and all that it had.
func TestMoveKilled(t *testing.T) {
	for _, tt := range []struct {
		name           string
		athome, script string // run at home, then in the other namespace
	}{
		{"not begun", "", ""},
		{"held", "ip link set eth0 down", ""},
		{"alias set", "ip link set eth0 down; ip link set eth0 alias 'AWAY'", ""},
		{"moved", "ip link set eth0 alias 'AWAY'; ip link set eth0 netns THERE", ""},
		{"renamed there", "ip link set eth0 alias 'AWAY'; ip link set eth0 netns THERE", "ip link set eth0 name lan up; ip address add 10.0.0.1/8 dev lan"},
		{"another address there", "ip link set eth0 alias 'AWAY'; ip link set eth0 netns THERE", "ip link set eth0 address 02:00:00:00:00:aa"},
		{"alias lost there", "ip link set eth0 netns THERE", "ip link set eth0 alias ''"},
		{"home by another name", "ip link set eth0 down; ip link set eth0 alias 'AWAY' name dev7", ""},
		{"home by another name, and up", "ip link set eth0 down; ip link set eth0 alias 'AWAY' name dev7 up", ""},
		{"home, its alias not yet", "ip link set eth0 down alias 'AWAY'", ""},
		{"home", "ip link set eth0 down", ""},
		{"another came home first", "ip link set eth0 alias 'AWAY'; ip link set eth0 netns THERE", "ip link add second address 02:00:00:00:00:bb type veth peer name third; ip link set second alias 'wg-quickns: eth9 is away from home'"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			home, there := newNS(t), newNS(t)
			l := cable(t, home)
			before := state(t, home, true)
			swap := strings.NewReplacer("AWAY", plan.AwayAlias(l), "THERE", outside(there))
			sh(t, home, swap.Replace(tt.athome))
			sh(t, there, swap.Replace(tt.script))
			d := newDoer(t, Options{Warn: func(s string) { t.Errorf("warning: %s", s) }})
			links := []facts.Interface{l}
			for range 2 {
				back(t, d, home, there, links)
				becomes(t, tt.name, before, func() string { return state(t, home, true) })
			}
		})
	}
}

// TestMoveGone: an interface that is nowhere is no error.
func TestMoveGone(t *testing.T) {
	for _, gone := range []string{"interface", "namespace"} {
		t.Run(gone, func(t *testing.T) {
			home, there := newNS(t), newNS(t)
			l := cable(t, home)
			var warned []string
			d := newDoer(t, Options{Warn: func(s string) { warned = append(warned, s) }})
			links := []facts.Interface{l}
			out(t, d, home, there, links)
			if gone == "interface" {
				sh(t, there, "ip link delete eth0")
			} else {
				there = plan.Named(name(t))
			}
			exists(t, d, "", plan.Move{From: there, To: home, Links: links, Home: true}, true)
			back(t, d, home, there, links)
			if len(warned) != 1 || !strings.Contains(warned[0], "eth0 is nowhere to be found") {
				t.Errorf("warned: %q", warned)
			}
			// Another of that name is not it.
			sh(t, home, "ip link add eth0 type ifb")
			back(t, d, home, there, nil)
			do(t, d, home, plan.Settle{Link: l, Away: there})
			if text := sh(t, home, "ip link show dev eth0; ip address show dev eth0"); strings.Contains(text, "192.0.2.7") || strings.Contains(text, "UP") {
				t.Errorf("another has its settings: %s", text)
			}
		})
	}
}

// TestFixed: what the kernel does not let move is known before, and stays as it is.
// What is upon another is known too.
func TestFixed(t *testing.T) {
	home, there := newNS(t), newNS(t)
	sh(t, home, "ip link add br0 type bridge; ip link set br0 up; ip link add eth0 type veth peer name gw; ip link set eth0 master br0; ip link add mv0 link gw type macvlan")
	d := newDoer(t, Options{})
	list := interfaces(t, d, home, "br0", "eth0", "gw", "mv0")
	br0, eth0, gw, mv0 := list[0], list[1], list[2], list[3]
	if !br0.Twin || br0.Fixed != "" || br0.Kind != "bridge" || eth0.Fixed != "" || mv0.Fixed != "" || eth0.Master != br0.Index || mv0.Lower != gw.Index {
		t.Errorf("%+v", list)
	}
	sp, err := d.space(home)
	if err != nil {
		t.Fatal(err)
	}
	all, err := sp.nics(t.Context())
	if err == nil {
		err = sp.probe(t.Context(), all)
	}
	for _, n := range all { // before it is known to have a twin
		if fixed := n.Name == "br0" || n.Name == "lo"; err != nil || fixed != (n.Fixed != "") {
			t.Errorf("%v, %+v", err, n)
		}
	}
	before := sh(t, home, "ip link")
	for _, twin := range []bool{true, false} {
		list[0].Twin = twin
		_, err = d.Do(t.Context(), home, plan.Move{From: home, To: there, Links: list[:1]})
		if !errors.Is(err, unix.EOPNOTSUPP) || !strings.Contains(err.Error(), "br0 cannot move") {
			t.Errorf("%v", err)
		}
		diff(t, "refused", before, sh(t, home, "ip link"))
	}
	if all, err := d.Interfaces(t.Context(), home); err != nil || len(all) != 4 {
		t.Errorf("with lo: %+v, %v", all, err)
	}
}

func TestHold(t *testing.T) {
	home := newNS(t)
	cable(t, home)
	sh(t, home, "ip link add eth1 type ifb; ip link set eth1 up; ip link add eth2 type ifb; ip link set eth2 up")
	d := newDoer(t, Options{})
	step := plan.Hold{Links: []string{"eth0", "gone", "eth1"}}
	for range 2 {
		do(t, d, home, step)
	}
	if up := sh(t, home, "ip -o link show up"); strings.Contains(up, "eth0") || strings.Contains(up, "eth1") || !strings.Contains(up, "eth2") {
		t.Errorf("up: %s", up)
	}
}

// TestSettle: errors are all said and stop nothing else, what others configure is
// left to them, and what did not come is told from what is gone.
func TestSettle(t *testing.T) {
	home, there := newNS(t), newNS(t)
	l := cable(t, home)
	d := newDoer(t, Options{})
	settle := plan.Settle{Link: l, Away: home}
	if _, err := d.Do(t.Context(), there, settle); !errors.Is(err, unix.ENODEV) {
		t.Errorf("it is still away: %v", err)
	}
	do(t, d, home, plan.Move{From: home, To: there, Links: []facts.Interface{l}})
	bare := settle
	bare.Bare, bare.Link.MTU, bare.Link.TxQueueLen = true, 1300, 5
	bare.Link.Settings.Sysctls = map[string]string{"net.ipv4.conf.eth0.arp_ignore": "2"}
	do(t, d, there, bare)
	const show = "ip address show dev eth0; cat /proc/sys/net/ipv4/conf/eth0/arp_ignore"
	if text := sh(t, there, show); !strings.Contains(text, "mtu 1300") || !strings.Contains(text, "qlen 5") || strings.Contains(text, "UP") || strings.Contains(text, "inet") || !strings.HasSuffix(text, "\n2\n") {
		t.Errorf("bare: %s", text)
	}
	// A gateway that is out of reach, an unknown sysctl.
	bad := stored(t, settle)
	routes := bad.Link.Settings.Routes
	i := slices.IndexFunc(routes, func(r facts.Route) bool { return r.Gateway.IsValid() })
	far := stored(t, routes[i])
	far.Way.Raw = bytes.Replace(far.Way.Raw, []byte{192, 0, 2, 254}, []byte{10, 7, 7, 7}, 1)
	far.Way.Text = "via 10.7.7.7 dev eth0"
	bad.Link.Settings.Routes = append([]facts.Route{far}, routes...)
	bad.Link.Settings.Sysctls = map[string]string{"net.ipv4.conf.eth0.none": "2", "net.ipv4.conf.eth0.arp_ignore": "0"}
	_, err := d.Do(t.Context(), there, bad)
	if !errors.Is(err, unix.ENETUNREACH) || !strings.Contains(err.Error(), "via 10.7.7.7 dev eth0") || !strings.Contains(err.Error(), "eth0.none") {
		t.Errorf("%v", err)
	}
	if text := sh(t, there, show+"; ip route"); !strings.Contains(text, "mtu 1500") || !strings.Contains(text, "UP") || !strings.Contains(text, "192.0.2.7/24") || !strings.Contains(text, "default via 192.0.2.254") {
		t.Errorf("settled: %s", text)
	}
}

// TestAge: a lifetime goes on while an interface is away.
func TestAge(t *testing.T) {
	home, there := newNS(t), newNS(t)
	l := cable(t, home)
	sh(t, home, `ip address add 198.51.100.1/32 dev eth0 valid_lft 1000 preferred_lft 200
ip -6 address add 2001:db8::1/128 dev eth0 nodad valid_lft 400 preferred_lft 300
ip -6 route add 2001:db8:1::/48 dev eth0 expires 1000; ip -6 route add 2001:db8:2::/48 dev eth0 expires 400`)
	d := newDoer(t, Options{})
	l = settings(t, d, home, "eth0")[0]
	l.Settings.Read -= 500
	out(t, d, home, there, []facts.Interface{l})
	text := sh(t, there, "ip address show dev eth0; ip -6 route")
	for _, want := range []string{`198.51.100.1/32 .*\n *valid_lft (50\d|49\d)sec preferred_lft 0sec`, `192.0.2.7/24 .*\n *valid_lft forever`, `2001:db8:1::/48 .* expires (50|49)\dsec`} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	if strings.Contains(text, "2001:db8::1") || strings.Contains(text, "2001:db8:2::") {
		t.Errorf("what ran out came along:\n%s", text)
	}
}

// TestBridge: a bridge gets a twin with its settings, its ports move and are the
// twin's with theirs; at home all is as it was.
func TestBridge(t *testing.T) {
	home, there, gate := newNS(t), newNS(t), newNS(t)
	sh(t, gate, "for i in 0 1; do ip link add gw$i type veth peer name eth$i netns "+outside(home)+"; ip link set gw$i up; done; ip address add 192.0.2.254/24 dev gw0")
	sh(t, home, `ip link add br0 type bridge ageing_time 1234 stp_state 0 mcast_snooping 0 forward_delay 900 priority 7
ip link set br0 address 02:00:00:00:00:0b mtu 1400
for i in 0 1; do ip link set eth$i mtu 1400 master br0 up; done
ip link set eth0 type bridge_slave priority 5; ip link set eth1 type bridge_slave isolated on hairpin on
ip link set br0 up; ip address add 192.0.2.7/24 dev br0; ip route add default via 192.0.2.254 proto static`)
	d := newDoer(t, Options{Warn: func(s string) { t.Errorf("warning: %s", s) }})
	links := settings(t, d, home, "eth0", "eth1", "br0")
	if br0 := links[2]; !br0.Twin || br0.Fixed != "" || links[0].Twin || links[0].Master != br0.Index || links[0].Settings.Names[br0.Index] != "br0" {
		t.Fatalf("%+v", links)
	}
	const show = `for i in br0 eth0 eth1; do ip -d -o link show dev $i; done | sed -E 's/NO-CARRIER,|,LOWER_UP//g; s/@[^:]*//; s/ state [A-Z]+//g; s/link-netns [^ ]*|link-netnsid [0-9]+//; s/bridge_id .* group_fwd/group_fwd/; s/(tcn|gc|hello|topology_change)_timer +[0-9.]+//g; s/bridge_slave state .* priority/priority/; s/designated_port.*(hairpin)/\1/; s/(cost|root_path_cost) [0-9]+//g; s/topology_change [0-9]//; s/ (message_age|forward_delay|hold)_timer +[0-9.]+//g'; ip -4 address show dev br0 | grep inet; ip route | sed 's/ linkdown//'`
	before := sh(t, home, show)
	group(t, d, home, there, links)
	text := sh(t, there, show)
	for _, l := range links {
		text = strings.ReplaceAll(text, `\    alias `+plan.AwayAlias(l), "")
	}
	diff(t, "away", before, text)
	sh(t, there, "ping -c 1 -W 2 -q 192.0.2.254")
	if up := sh(t, home, "ip -o link show up"); strings.Contains(up, "br0") {
		t.Errorf("up at home: %s", up)
	}
	for range 2 {
		ungroup(t, d, home, there, links)
		diff(t, "home", before, sh(t, home, show))
	}
	if text := sh(t, there, "ip link"); strings.Contains(text, "br0") {
		t.Errorf("left there: %s", text)
	}
	// A name that is taken, and another's interface of it, which stays.
	sh(t, there, "ip link add br0 type bridge")
	if _, err := d.Do(t.Context(), there, plan.Twin{Link: links[2]}); !errors.Is(err, unix.EEXIST) {
		t.Errorf("a name is taken: %v", err)
	}
	do(t, d, there, plan.Twin{Link: links[2], Delete: true})
	sh(t, there, "ip link show dev br0")
	// One whose ports' settings would be lost is refused.
	br0 := nic{Interface: links[2]}
	br0.Info = bytes.Replace(br0.Info, []byte{5, 0, 7, 0, 0}, []byte{5, 0, 7, 0, 1}, 1)
	list := []nic{{Interface: links[0]}, br0}
	if markTwins(list); list[1].Twin || !strings.Contains(list[1].Fixed, "VLAN") || !strings.Contains(list[0].Fixed, "port of br0") {
		t.Errorf("a bridge that filters by VLAN: %+v", list)
	}
}

// TestWiphy: a driver that lets its device move supports the command that does it.
func TestWiphy(t *testing.T) {
	for _, movable := range []bool{true, false} {
		cmd := uint32(unix.NL80211_CMD_GET_WIPHY)
		if movable {
			cmd = unix.NL80211_CMD_SET_WIPHY_NETNS
		}
		list := map[int]*wiphy{}
		for part := range 3 { // as the kernel splits it
			var m message
			m.attr32(unix.NL80211_ATTR_WIPHY, 7)
			m.attrString(unix.NL80211_ATTR_WIPHY_NAME, "phy7")
			if part == 1 {
				m.nested(unix.NL80211_ATTR_SUPPORTED_COMMANDS|nested, func() {
					m.attr32(1, unix.NL80211_CMD_NEW_KEY)
					m.attr32(2, cmd)
				})
			}
			parseWiphy(m.b, list)
		}
		if w := list[7]; len(list) != 1 || w.Name != "phy7" || w.Index != 7 || w.movable != movable {
			t.Errorf("%+v", w)
		}
	}
}

// TestFind: hardware is known by its address where its alias was lost, but only when
// that is nobody else's; anything else by its name as well.
func TestFind(t *testing.T) {
	port := func(name, kind, mac, alias string) nic {
		return nic{Interface: facts.Interface{Name: name, Kind: kind, MAC: mac, Alias: alias}}
	}
	l := facts.Interface{Name: "eth0", MAC: "02:00:00:00:00:01"}
	vlan := facts.Interface{Name: "eth0", Kind: "vlan", MAC: l.MAC}
	away := plan.AwayAlias(l)
	for _, tt := range []struct {
		name string
		l    facts.Interface
		list []nic
		want int // -1: none
	}{
		{"alias, whatever else", l, []nic{port("eth0", "", l.MAC, ""), port("x", "veth", "02::", away)}, 1},
		{"name", l, []nic{port("x", "", l.MAC, ""), port("eth0", "", l.MAC, "")}, 1},
		{"address", l, []nic{port("y", "", "02:00:00:00:00:02", ""), port("x", "", l.MAC, "mine")}, 1},
		{"two of the address", l, []nic{port("y", "", l.MAC, ""), port("x", "", l.MAC, "")}, -1},
		{"another that is away", l, []nic{port("x", "", l.MAC, plan.AwayPrefix+"eth9 is away from home")}, -1},
		{"another's name", l, []nic{port("eth0", "", "02:00:00:00:00:02", "")}, -1},
		{"another kind", l, []nic{port("eth0", "macvlan", l.MAC, "")}, -1},
		{"VLAN beside it", vlan, []nic{port("eth0.5", "vlan", l.MAC, "")}, -1},
		{"VLAN", vlan, []nic{port("eth0", "vlan", l.MAC, "")}, 0},
		{"no address", facts.Interface{Name: "wwan0"}, []nic{port("wwan1", "", "", "")}, -1},
	} {
		n, found := find(tt.list, tt.l)
		if found != (tt.want >= 0) || found && !reflect.DeepEqual(n, tt.list[tt.want]) {
			t.Errorf("%s: %+v, %v", tt.name, n, found)
		}
	}
}
