//go:build lab

package kernel

import (
	"strings"
	"testing"

	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

// TestBond: a bond, a VLAN upon it, and a VLAN upon an interface of its own.
func TestBond(t *testing.T) {
	home, there, gate := newNS(t), newNS(t), newNS(t)
	sh(t, gate, `for i in 0 1 2; do ip link add gw$i type veth peer name eth$i netns `+outside(home)+`; ip link set gw$i up; done
ip link add link gw1 name gw1.5 type vlan id 5; ip link set gw1.5 up; ip address add 192.0.2.254/24 dev gw1.5
ip link add link gw2 name gw2.6 type vlan id 6; ip link set gw2.6 up; ip address add 198.51.100.254/24 dev gw2.6`)
	sh(t, home, `ip link add bond0 type bond mode active-backup miimon 100 updelay 200 downdelay 300 primary_reselect failure fail_over_mac active min_links 1
ip link set eth0 master bond0; ip link set eth1 master bond0; ip link set bond0 type bond primary eth1
ip link set bond0 up; ip link set eth1 type bond_slave queue_id 3
ip link add link bond0 name lan type vlan id 5 egress-qos-map 1:2; ip link set lan up; ip address add 192.0.2.7/24 dev lan; ip route add default via 192.0.2.254
ip link add link eth2 name eth2.6 type vlan id 6 reorder_hdr off; ip link set eth2 up; ip link set eth2.6 up; ip address add 198.51.100.7/24 dev eth2.6
for i in $(seq 50); do ip link show eth1 | grep -q LOWER_UP && ip -d link show bond0 | grep -q "active_slave eth1" && break; sleep 0.1; done`)
	d := newDoer(t, Options{Warn: func(s string) { t.Errorf("warning: %s", s) }})
	links := settings(t, d, home, "eth0", "eth1", "eth2", "bond0", "lan", "eth2.6")
	for i, twin := range []bool{false, false, false, true, true, false} {
		if links[i].Twin != twin || links[i].Fixed != "" {
			t.Errorf("%+v", links[i])
		}
	}
	const show = `for i in bond0 eth0 eth1 eth2 lan eth2.6; do ip -d -o link show dev $i; done | sed -E 's/NO-CARRIER,|,LOWER_UP//g; s/@[^:]*//; s/ state [A-Z]+//g; s/link-netns [^ ]*|link-netnsid [0-9]+//; s/link_failure_count [0-9]+//; s/active_slave eth. //; s/mii_status [A-Z]+//; s/LOWERLAYERDOWN|M-DOWN,//g'; ip -4 -o address; ip route | sed 's/ linkdown//'`
	before := sh(t, home, show)
	group(t, d, home, there, links)
	text := sh(t, there, show)
	for _, l := range links {
		text = strings.ReplaceAll(text, `\    alias `+plan.AwayAlias(l), "")
	}
	diff(t, "away", before, text)
	sh(t, there, "ping -c 1 -W 5 -q 192.0.2.254; ping -c 1 -W 5 -q 198.51.100.254")
	ungroup(t, d, home, there, links)
	becomes(t, "home", before, func() string { return sh(t, home, show) })
	// A VLAN goes with its namespace, what it lay upon comes back.
	sh(t, home, "ip link delete eth2.6")
	back(t, d, home, plan.Named("none"), []facts.Interface{links[2], links[5]})
	becomes(t, "home, made again", before, func() string { return sh(t, home, show) })
}
