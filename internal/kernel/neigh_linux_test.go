package kernel

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestRevive: a gateway that was silent is used again when it is asked for.
func TestRevive(t *testing.T) {
	ns := newNS(t)
	d, link, _ := addWG(t, ns)
	sh(t, ns, `ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up
		ip -6 address add 2001:db8::1/64 dev v0 nodad
		ip -6 route add 2001:db8:1::1 via 2001:db8::2 dev v0
		ip link set `+link+` up; ip -6 route add default dev `+link)
	v0, _, err := d.Link(ns, "v0")
	if err != nil {
		t.Fatal(err)
	}
	gateway := netip.MustParseAddr("2001:db8::2")
	way := func() string { return sh(t, ns, "ip -6 route get 2001:db8:1::1") }
	revive := func() {
		t.Helper()
		if err := d.Revive(context.Background(), ns, v0.Index, gateway); err != nil {
			t.Error(err)
		}
	}
	revive() // is not known
	sh(t, ns, "ip -6 neigh replace 2001:db8::2 dev v0 nud failed")
	if got := way(); !strings.Contains(got, "dev "+link) {
		t.Fatalf("a dead gateway's route is not passed over: %s", got)
	}
	revive()
	if got := way(); !strings.Contains(got, "via 2001:db8::2") {
		t.Errorf("revived: %s", got)
	}
	sh(t, ns, "ip -6 neigh replace 2001:db8::2 dev v0 lladdr 02:00:00:00:00:01 nud stale")
	revive()
	time.Sleep(10 * time.Millisecond)
	if got := sh(t, ns, "ip -6 neigh show dev v0"); !strings.Contains(got, "STALE") {
		t.Errorf("one that is not dead is asked for: %s", got)
	}
}
