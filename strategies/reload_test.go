package strategies

import (
	"net/netip"
	"slices"
	"testing"

	"wg-quickns/confparse"
)

func TestSync(t *testing.T) {
	key := func(n byte) (k confparse.Key) { k[1] = n; return k }
	ip := func(s string) confparse.AllowedIP { return confparse.AllowedIP{Prefix: netip.MustParsePrefix(s)} }
	end := func(s string) *confparse.Endpoint { return &confparse.Endpoint{Addr: netip.MustParseAddrPort(s)} }
	num := func(n uint16) *uint16 { return &n }
	private, psk, port := confparse.Key{255, 1, 31: 255}, key(9), 51820
	kept := clamped(private)
	running := &confparse.Device{PrivateKey: &kept, ListenPort: &port, Peers: []confparse.Peer{
		{PublicKey: key(1), AllowedIPs: []confparse.AllowedIP{ip("10.0.0.0/8"), ip("fd00::/8")}, Endpoint: end("192.0.2.1:1")},
		{PublicKey: key(2), AllowedIPs: []confparse.AllowedIP{ip("10.2.0.0/16")}, PresharedKey: &psk, Keepalive: num(25)},
		{PublicKey: key(3)},
	}}
	same := func() []confparse.Peer {
		return []confparse.Peer{
			{PublicKey: key(3), ReplaceAllowedIPs: true},
			{PublicKey: key(2), ReplaceAllowedIPs: true, AllowedIPs: []confparse.AllowedIP{ip("10.2.0.0/16")}, PresharedKey: &psk, Keepalive: num(25)},
			{PublicKey: key(1), ReplaceAllowedIPs: true, AllowedIPs: []confparse.AllowedIP{ip("fd00::/8"), ip("10.0.0.0/8")}},
		}
	}
	for name, c := range map[string]struct {
		edit    func(d *confparse.Device)
		touched []byte
		removed []byte
	}{
		"nothing":             {func(*confparse.Device) {}, nil, nil},
		"a peer gone":         {func(d *confparse.Device) { d.Peers = d.Peers[1:] }, nil, []byte{3}},
		"a peer more":         {func(d *confparse.Device) { d.Peers = append(d.Peers, confparse.Peer{PublicKey: key(4)}) }, []byte{4}, nil},
		"an endpoint":         {func(d *confparse.Device) { d.Peers[2].Endpoint = end("192.0.2.1:2") }, []byte{1}, nil},
		"the same endpoint":   {func(d *confparse.Device) { d.Peers[2].Endpoint = end("192.0.2.1:1") }, nil, nil},
		"no preshared key":    {func(d *confparse.Device) { d.Peers[1].PresharedKey = nil }, []byte{2}, nil},
		"no keepalive":        {func(d *confparse.Device) { d.Peers[1].Keepalive = nil }, []byte{2}, nil},
		"a prefix less":       {func(d *confparse.Device) { d.Peers[2].AllowedIPs = d.Peers[2].AllowedIPs[:1] }, []byte{1}, nil},
		"a prefix of another": {func(d *confparse.Device) { d.Peers[2].AllowedIPs = append(d.Peers[2].AllowedIPs, ip("10.2.0.0/16")) }, []byte{2, 1}, nil},
		"one peer twice": {func(d *confparse.Device) {
			d.Peers[2].AllowedIPs = d.Peers[2].AllowedIPs[:1]
			d.Peers = append(d.Peers, confparse.Peer{PublicKey: key(1), AllowedIPs: []confparse.AllowedIP{ip("10.0.0.0/8")}})
		}, nil, nil},
	} {
		file := &confparse.Device{PrivateKey: &private, ListenPort: &port, Peers: same()}
		c.edit(file)
		change, remove := Sync(running, file)
		var touched, removed []byte
		for _, p := range change.Peers {
			touched = append(touched, p.PublicKey[1])
		}
		for _, k := range remove {
			removed = append(removed, k[1])
		}
		if change.PrivateKey != nil || change.ListenPort != nil || change.FwMark != nil ||
			!slices.Equal(touched, c.touched) || !slices.Equal(removed, c.removed) {
			t.Errorf("%s: touches %v, removes %v, %+v", name, touched, removed, change)
		}
	}
	other, mark := 4000, uint32(7)
	change, remove := Sync(running, &confparse.Device{PrivateKey: &psk, ListenPort: &other, FwMark: &mark, Peers: same()})
	if change.PrivateKey == nil || change.ListenPort == nil || change.FwMark == nil || len(change.Peers)+len(remove) != 0 {
		t.Errorf("the device's own values: %+v, %v", change, remove)
	}
}
