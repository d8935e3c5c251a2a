package kernel

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/nftables"

	"wg-quickns/internal/plan"
)

// nftByHand is the table as one feeds it to nft(8).
func nftByHand(s plan.Nft) string {
	pf := "ip"
	if s.IPv6 {
		pf = "ip6"
	}
	var b strings.Builder
	table := pf + " " + s.TableName()
	fmt.Fprintf(&b, "add table %s\n", table)
	fmt.Fprintf(&b, "add chain %s preraw { type filter hook prerouting priority -300; }\n", table)
	fmt.Fprintf(&b, "add chain %s premangle { type filter hook prerouting priority -150; }\n", table)
	fmt.Fprintf(&b, "add chain %s postmangle { type filter hook postrouting priority -150; }\n", table)
	for _, a := range s.Addrs {
		fmt.Fprintf(&b, "add rule %s preraw iifname != %q %s daddr %s fib saddr type != local drop\n", table, s.Link, pf, a)
	}
	fmt.Fprintf(&b, "add rule %s postmangle meta l4proto udp mark %d ct mark set mark\n", table, s.Mark)
	fmt.Fprintf(&b, "add rule %s premangle meta l4proto udp meta mark set ct mark\n", table)
	return b.String()
}

const rulesets = `nft list ruleset; nft -j list ruleset | sed -E 's/"handle": [0-9]+,? ?//g'; nft --debug=netlink list ruleset | sed -E 's/ \(type.*//'`

func TestNftLikeNft(t *testing.T) {
	ours, theirs := newNS(t), newNS(t)
	d := newDoer(t, Options{})
	steps := []plan.Nft{
		{Link: "wg0", Mark: 51820, Addrs: addrs("10.0.0.1", "192.0.2.7")},
		{Link: "wg0", IPv6: true, Mark: 51820, Addrs: addrs("2001:db8::1", "fe80::1")},
		{Link: "a-fifteen-chars", Mark: 0xffffffff},
	}
	for _, s := range steps {
		exists(t, d, ours, s, false)
		do(t, d, ours, s)
		exists(t, d, ours, s, true)
		sh(t, theirs, "nft -f - <<'E'\n"+nftByHand(s)+"E")
	}
	same(t, ours, theirs, rulesets)

	// A table that is there already is replaced, whatever is in it.
	sh(t, ours, "nft add chain ip wg-quick-wg0 stale; nft add rule ip wg-quick-wg0 stale drop; nft add table ip wg-quick-wg01; nft add table inet wg-quick-wg0")
	do(t, d, ours, steps[0])
	if out := sh(t, ours, "nft list table ip wg-quick-wg0"); strings.Contains(out, "stale") || out != sh(t, theirs, "nft list table ip wg-quick-wg0") {
		t.Errorf("after replacing:\n%s", out)
	}
	for _, family := range []string{"ip6", "ip"} { // either of them is something to delete
		sh(t, ours, "nft delete table "+family+" wg-quick-wg0")
		exists(t, d, ours, plan.Nft{Link: "wg0", Delete: true}, true)
		for _, s := range steps[:2] {
			do(t, d, ours, s)
		}
	}
	for range 2 {
		do(t, d, ours, plan.Nft{Link: "wg0", Delete: true})
		exists(t, d, ours, plan.Nft{Link: "wg0", Delete: true}, false)
		if got, want := sh(t, ours, "nft list tables"), "table ip wg-quick-a-fifteen-chars\ntable ip wg-quick-wg01\ntable inet wg-quick-wg0\n"; got != want {
			t.Errorf("after delete:\n%swant:\n%s", got, want)
		}
	}
}

func TestNftManyAddresses(t *testing.T) {
	ns := newNS(t)
	d := newDoer(t, Options{})
	s := plan.Nft{Link: "wg0", Mark: 1}
	for i := range 2000 {
		s.Addrs = append(s.Addrs, addrs(fmt.Sprintf("10.0.%d.%d", i/256, i%256))...)
	}
	do(t, d, ns, s)
	if n := strings.Count(sh(t, ns, "nft list table ip wg-quick-wg0"), "drop"); n != 2000 {
		t.Errorf("%d rules, want 2000", n)
	}
}

func TestIptables(t *testing.T) {
	s4 := plan.Nft{Link: "wg0", IPTables: true, Mark: 51820, Addrs: addrs("10.0.0.1", "192.0.2.7")}
	s6 := plan.Nft{Link: "wg0", IPTables: true, IPv6: true, Mark: 51820, Addrs: addrs("2001:db8::1")}
	ns := newNS(t)
	d := newDoer(t, Options{})
	// Somebody else's: a longer name, and a rule without a comment.
	sh(t, ns, `iptables -t mangle -A PREROUTING -p udp -m comment --comment "wg-quick(8) rule for wg01" -j CONNMARK --restore-mark; iptables -t raw -A PREROUTING -p tcp -j DROP`)
	state := func() string {
		return sh(t, ns, "iptables-save | grep -v '^[#:]'; ip6tables-save | grep -v '^[#:]' || true")
	}
	before := state()
	for _, s := range []plan.Nft{s4, s6} {
		exists(t, d, ns, s, false)
		do(t, d, ns, s)
		exists(t, d, ns, s, true)
	}
	added := state()
	do(t, d, ns, s4) // over what is there
	if again := state(); again != added {
		t.Errorf("added twice:\n%s\nonce:\n%s", again, added)
	}
	for _, want := range []string{
		`-A PREROUTING -d 10.0.0.1/32 ! -i wg0 -m addrtype ! --src-type LOCAL -m comment --comment "wg-quick(8) rule for wg0" -j DROP`,
		`-A PREROUTING -d 192.0.2.7/32 ! -i wg0 -m addrtype ! --src-type LOCAL -m comment --comment "wg-quick(8) rule for wg0" -j DROP`,
		`-A PREROUTING -d 2001:db8::1/128 ! -i wg0 -m addrtype ! --src-type LOCAL -m comment --comment "wg-quick(8) rule for wg0" -j DROP`,
		`-A PREROUTING -p udp -m comment --comment "wg-quick(8) rule for wg0" -j CONNMARK --restore-mark`,
		`-A POSTROUTING -p udp -m mark --mark 0xca6c -m comment --comment "wg-quick(8) rule for wg0" -j CONNMARK --save-mark`,
	} {
		if !strings.Contains(added, want) {
			t.Errorf("missing: %s\nin:\n%s", want, added)
		}
	}
	exists(t, d, ns, plan.Nft{Link: "wg0", Delete: true}, true)
	exists(t, d, ns, plan.Nft{Link: "wg", Delete: true}, false)
	do(t, d, ns, plan.Nft{Link: "wg0", Delete: true})
	exists(t, d, ns, plan.Nft{Link: "wg0", Delete: true}, false)
	after := strings.ReplaceAll(state(), "*raw\nCOMMIT\n", "")
	if after = strings.ReplaceAll(after, "*mangle\nCOMMIT\n", ""); after != before {
		t.Errorf("after delete:\n%s\nbefore:\n%s", after, before)
	}
}

// TestManyTables: a table is found while others go that come before it in the kernel's list.
func TestManyTables(t *testing.T) {
	ns := newNS(t)
	d := newDoer(t, Options{})
	sp, err := d.space(ns)
	if err != nil {
		t.Fatal(err)
	}
	others := func(change func(c *nftables.Conn, other *nftables.Table)) {
		c, err := sp.nftConn()
		if err != nil {
			t.Error(err)
			return
		}
		for i := range 2000 {
			change(c, &nftables.Table{Name: fmt.Sprintf("of-somebody-else-%d", i), Family: nftables.TableFamilyIPv4})
		}
		if err := c.Flush(); err != nil {
			t.Error(err)
		}
	}
	for range 6 {
		others(func(c *nftables.Conn, other *nftables.Table) { c.AddTable(other) })
		do(t, d, ns, plan.Nft{Link: "wg0", Mark: 1})
		do(t, d, ns, plan.KillSwitch{Link: "wg0", Mark: 1})
		var gone atomic.Bool
		go func() {
			defer gone.Store(true)
			others(func(c *nftables.Conn, other *nftables.Table) { c.DelTable(other) })
		}()
		for last := false; !last; {
			last = gone.Load()
			exists(t, d, ns, plan.Nft{Link: "wg0", Delete: true}, true)
			exists(t, d, ns, plan.KillSwitch{Link: "wg0", Delete: true}, true)
		}
		do(t, d, ns, plan.Nft{Link: "wg0", Delete: true})
		do(t, d, ns, plan.KillSwitch{Link: "wg0", Delete: true})
	}
}
