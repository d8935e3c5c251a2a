package leak

import (
	"crypto/ecdh"
	"encoding/base64"
	"fmt"
	"testing"

	"wg-quickns/test/bed"
	"wg-quickns/test/ns"
)

// Endpoint is the address of the tunnel's server.
const Endpoint = "198.18.0.1"

// Public is the public key of bed.Key.
func Public(private string) string {
	raw, _ := base64.StdEncoding.DecodeString(bed.Key(private))
	key, err := ecdh.X25519().NewPrivateKey(raw)
	if err != nil {
		panic(err)
	}
	return base64.StdEncoding.EncodeToString(key.PublicKey().Bytes())
}

// Machine makes a machine with a container that it routes for.
func Machine(t testing.TB, name string) (*bed.Bed, *ns.NS) {
	b, container := bed.New(t, name), ns.New(t, name+"-box")
	ns.Veth(b.NS, "box", []string{"10.99.0.1/24", "fd99::1/64"}, container, "eth0", []string{"10.99.0.2/24", "fd99::2/64"})
	container.Run("bash", "-ec", "ip route add default via 10.99.0.1; ip -6 route add default via fd99::1")
	b.NS.Run("bash", "-ec", `sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
		ip -6 rule del not fwmark 77 table 77; ip rule del not fwmark 77 table 77`)
	return b, container
}

// Serve makes the gateway the tunnel's server, and looks at what comes there.
func Serve(t testing.TB, b *bed.Bed) *Capture {
	// It speaks from its endpoint's address, also first: the peer must not roam.
	b.Far.Run("bash", "-ec", "ip addr add "+Endpoint+"/32 dev lo; ip route replace 192.0.2.0/24 dev uplink src "+Endpoint)
	b.Config(t, "srv", fmt.Sprintf(`[Interface]
PrivateKey = %s
ListenPort = %d
Address = 10.77.0.1/24, fd77::1/64
Table = off
[Peer]
PublicKey = %s
AllowedIPs = 10.77.0.2/32, fd77::2/128
`, bed.Key("server"), ServerPort, Public("client")))
	b.Far.Run(b.Program, "up", "srv")
	t.Cleanup(func() { b.Far.Run(b.Program, "down", "srv") })
	return Start(t, b.Far, "uplink")
}

// Tunnel writes the machine's config wg0; keys are lines of [Interface].
func Tunnel(t testing.TB, b *bed.Bed, keys, allowed string) {
	b.Config(t, "wg0", fmt.Sprintf(`[Interface]
PrivateKey = %s
Address = 10.77.0.2/24, fd77::2/64
%s
[Peer]
PublicKey = %s
AllowedIPs = %s
Endpoint = %s:%d
`, bed.Key("client"), keys, Public("server"), allowed, Endpoint, ServerPort))
}
