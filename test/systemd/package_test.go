//go:build systemd

package systemd

import (
	"os/exec"
	"strings"
	"testing"

	"wg-quickns/test/ns"
	"wg-quickns/test/programs"
)

func dpkg(t *testing.T, args ...string) string {
	t.Helper()
	r := ns.Try(exec.Command("dpkg", args...))
	if r.Code != 0 {
		t.Fatalf("dpkg %v: %s%s", args, r.Stdout, r.Stderr)
	}
	return r.Stdout + r.Stderr
}

// TestPackage: an upgrade leaves tunnels up and gives the guard the new program; a
// removal takes down what systemd keeps and says what it leaves; a purge leaves
// nothing but what is the user's.
func TestPackage(t *testing.T) {
	packages, err := programs.Packages()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // for the other tests
		dpkg(t, "-i", packages[0])
		ns.Run(t, "systemctl", "daemon-reload")
	})
	owned := strings.Fields(ns.Run(t, "bash", "-c", "dpkg -L wg-quickns | while read -r f; do [ -d $f ] || echo $f; done"))
	before := state(t)
	tunnel(t, "RoutingStrategy = override", "192.0.2.10:51820")
	ns.Run(t, "systemctl", "enable", "--now", "wg-quickns@unit", "wg-quickns.target")
	unitIs(t, "wg-quickns-guard@unit", "active")
	index, guard := ns.Run(t, "cat", "/sys/class/net/unit/ifindex"), mainPID(t, "wg-quickns-guard@unit")
	dpkg(t, "-i", packages[1])
	if got := ns.Run(t, "wg-quickns", "--version"); got != "wg-quickns v1.0.0\n" {
		t.Errorf("after the upgrade it is %s", got)
	}
	unitIs(t, "wg-quickns@unit", "active")
	unitIs(t, "wg-quickns-guard@unit", "active")
	if got := ns.Run(t, "cat", "/sys/class/net/unit/ifindex"); got != index {
		t.Errorf("the interface was %s and is %s", index, got)
	}
	if mainPID(t, "wg-quickns-guard@unit") == guard {
		t.Error("the guard is the old program")
	}
	if out := ns.Run(t, "wg-quickns", "status", "unit"); !strings.Contains(out, "up") {
		t.Errorf("status: %s", out)
	}

	if out := dpkg(t, "-r", "wg-quickns"); !strings.Contains(out, "the tunnel server stays up") {
		t.Errorf("the removal says nothing of the tunnel that was made by hand: %s", out)
	}
	unitIs(t, "wg-quickns@unit", "inactive")
	same(t, before, state(t))

	dpkg(t, "--purge", "wg-quickns")
	same(t, before, state(t))
	left := ns.Run(t, append([]string{"bash", "-c", `for f; do [ ! -e "$f" ] || echo "$f"; done; find /etc/systemd -name '*wg-quickns*'`, "left"}, owned...)...)
	if left != "" {
		t.Errorf("left:\n%s", left)
	}
	ns.Run(t, "test", "-s", "/etc/wireguard/unit.conf")
}
