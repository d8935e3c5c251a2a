package kernel

import (
	"context"
	"slices"
	"strings"
	"testing"

	"wg-quickns/internal/plan"
)

func TestKillSwitchTables(t *testing.T) {
	ns := newNS(t)
	d := newDoer(t, Options{Warn: func(text string) { t.Log(text) }})
	if err := d.CheckKillSwitch(context.Background(), ns); err != nil {
		t.Fatal(err)
	}
	if out := sh(t, ns, "nft list ruleset"); out != "" {
		t.Fatalf("the check left\n%s", out)
	}
	wg0 := plan.KillSwitch{Link: "wg0", Mark: 51820, Addrs: addrs("10.0.0.2", "fd00::2", "10.0.0.3")}
	wg1 := plan.KillSwitch{Link: "a-fifteen-chars", Mark: 51820, Addrs: addrs("10.0.0.2")}
	wg2 := plan.KillSwitch{Link: "wg2"}
	steps := []plan.KillSwitch{wg0, wg1, wg2}
	for _, s := range steps {
		exists(t, d, ns, s, false)
		exists(t, d, ns, plan.KillSwitch{Link: s.Link, Delete: true}, false)
		do(t, d, ns, s)
		exists(t, d, ns, s, true)
		exists(t, d, ns, plan.KillSwitch{Link: s.Link, Delete: true}, true)
	}
	t.Log(sh(t, ns, "nft list ruleset"))
	whole := sh(t, ns, "nft list ruleset")
	other := wg0
	other.Mark = 1
	exists(t, d, ns, other, false)
	other = wg0
	other.Addrs = addrs("10.0.0.2")
	exists(t, d, ns, other, false)

	arp := strings.Contains(whole, "table arp")
	for _, damage := range []string{
		"nft flush table inet wg-quickns",
		"nft flush chain inet wg-quickns postrouting",
		"nft insert rule inet wg-quickns postrouting accept",
		"nft add rule inet wg-quickns output accept",
		"nft flush set inet wg-quickns marks",
		"nft add element inet wg-quickns tunnels { eth0 }",
		"nft delete element inet wg-quickns tunnels { wg0 }",
		"nft 'add chain inet wg-quickns postrouting { policy accept; }'",
		"nft 'add table inet wg-quickns { flags dormant; }'",
		"nft delete chain inet wg-quickns postrouting",
		"nft delete table arp wg-quickns",
		"nft flush chain arp wg-quickns input",
		"nft flush set arp wg-quickns addresses",
	} {
		if !arp && strings.Contains(damage, " arp ") {
			continue
		}
		sh(t, ns, damage)
		for _, s := range steps {
			if got, err := d.Exists(context.Background(), ns, s); err != nil || got {
				t.Errorf("after %s: Exists(%s) = %v, %v", damage, s.Link, got, err)
			}
		}
		do(t, d, ns, wg0) // repairs all
		if got := sh(t, ns, "nft list ruleset"); got != whole {
			t.Errorf("after %s and a repair:\n%s\nwant:\n%s", damage, got, whole)
		}
	}
	sh(t, ns, "nft flush ruleset")
	for _, s := range steps {
		exists(t, d, ns, s, false)
		do(t, d, ns, s)
	}
	if got := sh(t, ns, "nft list ruleset"); got != whole {
		t.Errorf("after flush ruleset and all again:\n%s\nwant:\n%s", got, whole)
	}
	// The last one takes the tables; what two had in common stays for the second.
	do(t, d, ns, plan.KillSwitch{Link: "wg0", Delete: true})
	exists(t, d, ns, wg0, false)
	exists(t, d, ns, wg1, true)
	exists(t, d, ns, wg2, true)
	for _, s := range slices.Backward(steps) {
		do(t, d, ns, plan.KillSwitch{Link: s.Link, Delete: true})
	}
	if out := sh(t, ns, "nft list ruleset"); out != "" {
		t.Errorf("left:\n%s", out)
	}
}
