package confparse

import (
	"net/netip"
	"testing"
)

func running(t *testing.T) Running {
	return Running{
		Addresses:  []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("fd00::1/64")},
		DNS:        []string{"1.1.1.1", "fd00::53"},
		Search:     []string{"corp", "example.com"},
		MTU:        1420,
		PrivateKey: mustKey(t, key1),
		ListenPort: 51820,
		FwMark:     0xca6c,
		Peers: []RunningPeer{
			{PublicKey: mustKey(t, key2), PresharedKey: mustKey(t, key1), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::102:304/128")},
				Endpoint: netip.MustParseAddrPort("[fd00::2]:51820"), Keepalive: 25},
			{PublicKey: mustKey(t, key1), Endpoint: netip.MustParseAddrPort("192.0.2.1:1")},
		},
	}
}

const savedPeers = `
[Peer]
PublicKey = ` + key2 + `
PresharedKey = ` + key1 + `
AllowedIPs = 0.0.0.0/0, ::1.2.3.4/128
Endpoint = [fd00::2]:51820
PersistentKeepalive = 25

[Peer]
PublicKey = ` + key1 + `
Endpoint = 192.0.2.1:1
`

func TestSave(t *testing.T) {
	tests := []struct {
		name, text string
		change     func(*Running)
		want       string
	}{
		{"least", "", func(r *Running) { *r = Running{PrivateKey: r.PrivateKey} }, "[Interface]\nPrivateKey = " + key1 + "\n"},
		{"all", "[interface]\npostdown=d\npredown= c && # e\npostup=b\nPreUp=a\nPreUp=\nsaveconfig=TRUE\ntable=0x1\nmtu=1\n", func(r *Running) {},
			"[Interface]\nAddress = 10.0.0.1/24\nAddress = fd00::1/64\nDNS = 1.1.1.1\nDNS = fd00::53\nDNS = corp\nDNS = example.com\nMTU = 1420\nTable = 0x1\nSaveConfig = true\n" +
				"PreUp = a\nPreUp = \nPostUp = b\nPreDown = c && # e\nPostDown = d\nListenPort = 51820\nFwMark = 0xca6c\nPrivateKey = " + key1 + "\n" + savedPeers},
		{"what the file had not", "[Interface]\nMTU=1\nMTU=\n", func(r *Running) { r.DNS, r.Search, r.Addresses, r.FwMark = nil, nil, nil, 0 },
			"[Interface]\nListenPort = 51820\nPrivateKey = " + key1 + "\n" + savedPeers},
		{"comments", `# the whole file

# me
[Interface] # here
# lan, then VPN
Address = 10.0.0.1/24, 10.9.9.9/8 # two
#v6
Address = fd00:0:0::1/64
# gone
Address = 10.7.7.7/8 # gone too
ListenPort = 1 # old
# key
PrivateKey = ` + key2 + `#k
# end of me

# laptop
# of Bob
[Peer] # Bob
AllowedIPs = 10.0.0.0/8 # 1
# more
AllowedIPs = 11.0.0.0/8 # 2

# the key
PublicKey = ` + key1 + ` # Bob's
PreUp # no hook here
[Peer]
# she left
PublicKey = PresharedKey=
# end of file
`, func(r *Running) { r.DNS, r.Search, r.FwMark, r.Peers = nil, nil, 0, r.Peers[1:] }, `# the whole file

# me
[Interface] # here
# lan, then VPN
Address = 10.0.0.1/24 # two
#v6
Address = fd00::1/64
ListenPort = 51820 # old
# key
PrivateKey = ` + key1 + ` #k
# gone
# gone too
# end of me

# laptop
# of Bob
[Peer] # Bob
# the key
PublicKey = ` + key1 + ` # Bob's
Endpoint = 192.0.2.1:1
# more
# 2
# 1
# no hook here
`},
		{"hooks keep their order and notes", "[Interface]\n# 2\nPostUp = b # x\n# 1\nPreUp = a\n# 3\nPostUp = c\nTable = off # t\n", func(r *Running) { *r = Running{} },
			"[Interface]\nTable = off # t\n# 1\nPreUp = a\n# 2\nPostUp = b # x\n# 3\nPostUp = c\n"},
		{"own keys in comments", `[Interface]
# wg-quickns: PhysicalUp = a # b
# stays
Address = 10.0.0.1/24
# why
#wg-quickns:killswitch=TRUE
# of the one who leaves
[Peer]
PublicKey = ` + key2 + `
[interface]
# wg-quickns: Namespace = x
# wg-quickns: PhysicalUp = c
# of the one who stays
[Peer]
PublicKey = ` + key1 + `
`, func(r *Running) { *r = Running{Addresses: r.Addresses[:1], Peers: r.Peers[1:]} }, `[Interface]
# stays
Address = 10.0.0.1/24
# wg-quickns: PhysicalUp = a # b
# why
#wg-quickns:killswitch=TRUE
# wg-quickns: Namespace = x
# wg-quickns: PhysicalUp = c

# of the one who stays
[Peer]
PublicKey = ` + key1 + `
Endpoint = 192.0.2.1:1
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := ParseLines("x.conf", []byte(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			r := running(t)
			tt.change(&r)
			got := string(c.Save(r))
			if got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
			again, err := ParseLines("x.conf", []byte(got))
			if err != nil {
				t.Fatal(err)
			}
			if second := string(again.Save(r)); second != got {
				t.Errorf("saved again\n%s\nbefore\n%s", second, got)
			}
		})
	}
}
