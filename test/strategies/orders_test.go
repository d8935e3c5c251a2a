package strategies

import (
	"fmt"
	"testing"

	"wg-quickns/test/bed"
)

// TestOrders: three tunnels that each replace the default route of the one before
// go down in any order, and the first default route is there again.
func TestOrders(t *testing.T) {
	b := bed.New(t, "bed")
	b.NS.Run("ip", "route", "add", "default", "via", "192.0.2.1", "metric", "100")
	take := func() string {
		t.Helper()
		s, err := b.Take()
		if err != nil {
			t.Fatal(err)
		}
		return s.String()
	}
	before := take()
	name := func(n int) string { return fmt.Sprint("wg", n) }
	for n := range 3 {
		b.Config(t, name(n), fmt.Sprintf("[Interface]\nPrivateKey = %s\nRoutingStrategy = replace\nAddress = 10.%d.0.2/24, fd00:%[2]d::2/64\n"+
			"[Peer]\nPublicKey = %s\nAllowedIPs = 0.0.0.0/0, ::/0\nEndpoint = 192.0.2.1:%d\n", bed.Key(fmt.Sprint("private", n)), n, bed.Key(fmt.Sprint("public", n)), 51820+n))
	}
	for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		for n := range 3 {
			if r := b.Up(name(n)); r.Code != 0 {
				t.Fatal(r)
			}
			if err := b.Routed(name(n)); err != nil {
				t.Error(err)
			}
		}
		for _, n := range order {
			if r := b.Down(name(n)); r.Code != 0 {
				t.Fatal(r)
			}
		}
		if after := take(); after != before {
			t.Fatalf("after %v:\n%s\nbefore:\n%s", order, after, before)
		}
	}
}
