//go:build lab

package state

import (
	"strings"
	"testing"

	"wg-quickns/test/ns"
	"wg-quickns/test/programs"
)

// TestWireGuard sees a device of the kernel's, and no key.
func TestWireGuard(t *testing.T) {
	n := ns.New(t, "wg")
	wg, err := programs.WG()
	if err != nil {
		t.Fatal(err)
	}
	before := take(t, n)
	n.Run("ip", "link", "add", "wg0", "type", "wireguard")
	const key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEA="
	n.Run("bash", "-ec", wg+" set wg0 private-key <(echo "+key+") listen-port 7777 peer BBBBAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEA= allowed-ips 192.0.2.2/32,192.0.2.1/32 endpoint 198.51.100.1:5")
	got := Diff(before, take(t, n))
	for _, want := range []string{"+ wg wg0 private-key=", "listen-port=7777 fwmark=off\n", "endpoint=198.51.100.1:5 allowed-ips=192.0.2.1/32,192.0.2.2/32 keepalive=off\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("want %q, got:\n%s", want, got)
		}
	}
	if strings.Contains(got, key) {
		t.Error("the state holds a key")
	}
}
