package check

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var tables = map[string]uint32{"default": 253, "main": 254, "local": 255}

// planted takes a text apart: behind § are the IDs of what is to be found on that
// line, on a line of its own those of the whole file.
func planted(text string) (data []byte, want []string) {
	var lines []string
	for line := range strings.SplitSeq(strings.TrimPrefix(text, "\n"), "\n") {
		line, ids, _ := strings.Cut(line, "§")
		at := 0
		if line = strings.TrimRight(line, " "); line != "" || ids == "" {
			lines = append(lines, line)
			at = len(lines)
		}
		for id := range strings.FieldsSeq(ids) {
			want = append(want, fmt.Sprintf("%d %s", at, id))
		}
	}
	return []byte(strings.Join(lines, "\n")), want
}

const (
	head = "[Interface]\nPrivateKey = KEY+OF+EXAMPLE/never+use/client/00000000000=\nAddress = 10.8.0.2/32\n"
	tail = "[Peer]\nPublicKey = iHHj1OFkOlaiC74DEEZk/VOVI4cwF0GEWJtNV6bjKzs=\nEndpoint = 192.0.2.1:51820\nPersistentKeepalive = 25\n"
)

func TestConfig(t *testing.T) {
	for name, text := range map[string]string{
		"good": head + tail + "AllowedIPs = 10.8.0.0/24",

		"every kind of wrong line": `
Address = 10.0.0.1/24 §syntax
[Interface]
PrivateKey = KEY+OF+EXAMPLE/never+use §syntax
Address = 10.0.0.1/24, 10.0.0.300/24 §syntax
Adress = 10.0.0.1/24 §syntax
MTU = big §syntax
Table = nosuch §syntax
DNS = 1.1.1.* §syntax
SaveConfig = maybe §syntax
Namespace = a/b §syntax
HookNamespace = there §syntax
ManageNamespace = no §syntax
KillSwitch = yes §syntax
RoutingStrategy = magic §syntax
RulePriority = 5 §syntax
# wg-quickns: Nmespace = x §syntax
FwMark = -1 §syntax
AllowedIPs = 10.0.0.0/8 §syntax
; a comment §syntax
more of the value §syntax
[Peer] §syntax
AllowedIPs = 10.0.0.0/33, 10.2, 10.3.0.0/16 §syntax syntax
Endpoint = 192.0.2.1 §syntax
PersistentKeepalive = 70000 §syntax
PresharedKey = §syntax
DNS = 1.1.1.1 §syntax
# wg-quickns: Namespace = x §syntax
[Pear] §syntax
PublicKey = iHHj1OFkOlaiC74DEEZk/VOVI4cwF0GEWJtNV6bjKzs=
Endpoint = [::1]51820 §syntax
AllowedIPs = 10.4.0.0/16`,

		"keys that exclude each other": `
[Interface]
PrivateKey = KEY+OF+EXAMPLE/never+use/client/00000000000=
Address = 10.8.0.2/32
Table = off
RulePriority = 30, 40 §syntax
RoutingStrategy = replace §syntax
` + tail + "AllowedIPs = 10.8.0.0/24",

		"what works and is odd": `
[Interface]
PrivateKey = KEY+OF+EXAMPLE/never+use/client/00000000000=
Address = 10.8.0.2/32, fd08::2/64
Address = 10.8.0.2/32, 10.9.0.0/24 §address-twice address-network
MTU = 9000
MTU = 1421 §repeated mtu-large
DNS = 9.9.9.9, corp.example §dns-outside
DNS = 1.1.1 §dns-servers dns-all
PostUp = wg set %i peer iHHj1OFkOlaiC74DEEZk/VOVI4cwF0GEWJtNV6bjKzs= remove §key-in-hook
SaveConfig = true # with a comment §save-comments
HookNamespace = birth §namespace-idle
KillSwitch = true §killswitch-cuts
[Peer] §keepalive-missing
PublicKey = iHHj1OFkOlaiC74DEEZk/VOVI4cwF0GEWJtNV6bjKzs=
PresharedKey = AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= §key-zero
AllowedIPs = 10.8.0.0/16 §allowedips-overlap
AllowedIPs = 10.8.0.2/32 §allowedips-own
AllowedIPs = 172.16.0.1/12 §allowedips-host-bits
Endpoint = vpn.example.com:0 §endpoint-odd save-name
[Peer] §peer-self peer-unreachable allowedips-missing
PublicKey = OOIZpO5Vqc73QSN0czga5ePrK+RCs1AfTpZe5sk2bEg=
[Peer] §keepalive-missing peer-twice
PublicKey = iHHj1OFkOlaiC74DEEZk/VOVI4cwF0GEWJtNV6bjKzs=
Endpoint = 10.8.0.2:51820 §endpoint-own
AllowedIPs = fd08:1::/64
[Peer]
PublicKey = xluH3MeWM8wGELIsftd/TwGE6CRWHWWt5oj+Ga7/unc=
Endpoint = 10.8.1.1:51820 §endpoint-inside
PersistentKeepalive = 25
AllowedIPs = 10.8.1.0/24, 10.8.2.0/24, 172.16.0.0/12 §allowedips-twice`,

		"nothing in it":                    "[Interface]\n§key-missing address-missing peer-missing",
		"a hook gives the key":             "[Interface]\nPreUp = wg set %i private-key /k; ip -4 address add 10.1/8 dev %i\n" + tail + "AllowedIPs = 10.8.0.0/24",
		"a hook with like words":           "[Interface]\nPostUp = nft add rule ip x y ip saddr 10.0.0.0/8 oifname wg0 drop\n" + tail + "AllowedIPs = 10.8.0.0/24\n§key-missing address-missing",
		"IPv4 alone":                       head + tail + "AllowedIPs = 0.0.0.0/0 §one-family",
		"IPv4 alone, in halves":            head + strings.Replace(tail, ":51820", ":51820 §endpoint-inside", 1) + "AllowedIPs = 0.0.0.0/1, 128.0.0.0/2 §one-family\nAllowedIPs = 128.0.0.0/1",
		"IPv6 alone":                       head + tail + "AllowedIPs = ::/0 §one-family family-unused",
		"IPv4 alone in a namespace":        head + "Namespace = x\n" + tail + "AllowedIPs = 0.0.0.0/0",
		"IPv4 alone and a kill switch":     head + "# wg-quickns: KillSwitch = true §killswitch-comment\n" + tail + "AllowedIPs = 0.0.0.0/0 §one-family",
		"a kill switch and another table":  head + "Table = 7\nKillSwitch = true §killswitch-cuts\nPostUp = ip -4 rule add from 10.8.0.2 table 7\n" + tail + "AllowedIPs = 0.0.0.0/0",
		"a table that nobody asks":         head + "Table = 7 §table-unused\n" + tail + "AllowedIPs = 10.8.0.0/24",
		"a default route in table main":    head + "Table = main §table-main\n" + tail + "AllowedIPs = 0.0.0.0/0",
		"physical without a default route": head + "RoutingStrategy = physical-netns §physical-cuts\n" + tail + "AllowedIPs = 10.8.0.0/24",
		"physical and IPv4 alone":          head + "RoutingStrategy = physical-netns\n" + tail + "AllowedIPs = 0.0.0.0/0 §one-family",
		"a strategy in a namespace":        head + "Namespace = x\nRoutingStrategy = override §strategy-idle\n" + tail + "AllowedIPs = 0.0.0.0/0",
		"DNS of a path":                    head + "Namespace = /tmp/ns\nDNS = 10.8.0.1 §dns-namespace\n" + tail + "AllowedIPs = 10.8.0.0/24",
		"domains alone":                    head + "DNS = ns.example.com §dns-servers\n" + tail + "AllowedIPs = 10.8.0.0/24",
		"IPv6 and a small MTU":             head + "Address = fd08::2/64\nMTU = 1279 §mtu-ipv6\n" + tail + "AllowedIPs = 10.8.0.0/24",
		"IPv6 routes and a small MTU":      head + "Address = fd08::2/64\nMTU = 1279 §mtu-ipv6\n" + tail + "AllowedIPs = fd08::/64",
		"a tiny MTU":                       head + "MTU = 200 §mtu-small\n" + tail + "AllowedIPs = 10.8.0.0/24",
		"an MTU that IPv4 has room for":    head + "MTU = 1440\n" + tail + "AllowedIPs = 10.8.0.0/24",
		"the socket elsewhere":             head + "BirthNamespace = out\n" + tail + "AllowedIPs = 192.0.2.0/24",
		"an endpoint in a subnet":          "[Interface]\nPrivateKey = KEY+OF+EXAMPLE/never+use/client/00000000000=\nAddress = 192.0.2.9/24\nTable = off\n" + tail + "AllowedIPs = 10.8.0.0/24",
		"a byte order mark":                "\ufeff[Interface] §syntax\nPrivateKey = KEY+OF+EXAMPLE/never+use/client/00000000000=\nAddress = 10.8.0.2/32\n" + tail + "AllowedIPs = 10.8.0.0/24",
	} {
		t.Run(name, func(t *testing.T) {
			data, want := planted(text)
			_, found, err := Config("x.conf", data, tables)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range found {
				got = append(got, fmt.Sprintf("%d %s", f.Line, f.ID))
				if f.File != "x.conf" || f.Message == "" || f.Hint == "" || strings.Contains(f.Message+f.Hint, "KEY+OF") {
					t.Errorf("%+v", f)
				}
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
				for _, f := range found {
					t.Logf("%+v", f)
				}
			}
		})
	}
}

// What is wrong with a line comes with what would be right.
func TestAdvice(t *testing.T) {
	for text, want := range map[string]string{
		"[Interface]\nAdress = 10.0.0.1/24":        "did you mean `address'?",
		"[Interface]\nPotUp = true":                "did you mean `postup'?",
		"[Interface]\nAllowedIPs = 10.0.0.0/8":     "belongs into [Peer]",
		"[Peer]\nMTU = 1":                          "belongs into [Interface]",
		"[Peer]\nPublicKey = x":                    "44 characters",
		"MTU = 1":                                  "above it",
		"[Interface]\n// x":                        "begins with `#'",
		"[Interface]\nFwMark =":                    "a value must follow",
		"[Interface]\nSaveConfig = 1":              "`true' or `false'",
		"[Interface]\nand on":                      "no value continues",
		"\ufeff[Interface]":                        "without one",
		"[Interface]\nFlavour = sweet":             "has all keys",
		"[Interface]\n[Peer]\nPublicKey":           "a value must follow",
		"[Peer]\nEndpoint=192.0.2.1:1":             "wg pubkey",
		"[Server]":                                 "the sections are",
		"[Interface]\n#wg-quickns: Namspace = box": "this program's keys",
	} {
		_, found, err := Config("x.conf", []byte(text), tables)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(found, func(f Finding) bool { return f.ID == "syntax" && strings.Contains(f.Hint, want) }) {
			t.Errorf("%q: no hint %q in %+v", text, want, found)
		}
	}
}

func TestBetween(t *testing.T) {
	var tunnels []Tunnel
	for _, x := range []struct{ name, path, text string }{
		{"wg0", "a/wg0.conf", head + "ListenPort = 51820\nAddress = 10.8.0.2/24\n" + tail + "AllowedIPs = 0.0.0.0/0, 10.0.0.0/8"},
		{"wg0", "b/wg0.conf", "[Interface]\nPrivateKey = KEY+OF+EXAMPLE/never+use/client/00000000000=\nAddress = 10.8.0.2/32\nListenPort = 51820\n" + tail + "AllowedIPs = 0.0.0.0/0\nAllowedIPs = 10.0.0.0/8"},
		{"wg0", "c/wg0.conf", "[Interface]\nNamespace = x\nBirthNamespace = x\nAddress = 10.8.0.2/32\nListenPort = 51820\n" + tail + "AllowedIPs = 10.0.0.0/8"},
		{"wg1", "d/wg1.conf", "[Interface]\nTable = 5\nListenPort = 51821\n" + tail + "AllowedIPs = 10.0.0.0/8"},
	} {
		cfg, _, err := Config(x.path, []byte(x.text), tables)
		if err != nil {
			t.Fatal(err)
		}
		tunnels = append(tunnels, Tunnel{x.name, cfg})
	}
	var got []string
	for _, f := range Between(tunnels) {
		got = append(got, fmt.Sprintf("%s:%d %s %s", f.File, f.Line, f.Severity, f.ID))
		if !strings.Contains(f.Message, " also in a/wg0.conf") || f.Hint == "" {
			t.Errorf("%+v", f)
		}
	}
	want := []string{
		"b/wg0.conf:0 warning interface-shared", "b/wg0.conf:4 warning port-shared", "b/wg0.conf:2 note key-shared",
		"b/wg0.conf:3 warning address-shared", "b/wg0.conf:10 warning route-shared",
	}
	if !slices.Equal(got, want) {
		t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestSort(t *testing.T) {
	list := []Finding{{Line: 2, Severity: Note}, {Line: 2, Severity: Error}, {Line: 1, Severity: Warning}, {Line: 2, Severity: Warning}}
	Sort(list)
	want := []Finding{{Line: 1, Severity: Warning}, {Line: 2, Severity: Error}, {Line: 2, Severity: Warning}, {Line: 2, Severity: Note}}
	if !slices.Equal(list, want) {
		t.Errorf("%+v", list)
	}
}

// Every key that the manual has is known here.
func TestKeys(t *testing.T) {
	page, err := os.ReadFile("../../man/wg-quickns.conf.5")
	if err != nil {
		t.Fatal(err)
	}
	aliases := []string{"interfacenamespace", "socketnamespace"}
	n := 0
	for _, m := range regexp.MustCompile(`(?m)^\.It Ic ([A-Z].*)$`).FindAllStringSubmatch(string(page), -1) {
		for _, key := range strings.Split(strings.ToLower(m[1]), " , ") {
			n++
			_, inInterface := keys[iface][key]
			_, inPeer := keys[peer][key]
			if !inInterface && !inPeer && !slices.Contains(aliases, key) {
				t.Errorf("%s is unknown", key)
			}
		}
	}
	if n < 18 {
		t.Errorf("the manual has only %d keys", n)
	}
}

// The manual knows every key, and so does the program's own help, but for those
// that are wg's.
func TestKeysAreDocumented(t *testing.T) {
	for path, own := range map[string]bool{"../../man/wg-quickns.conf.5": false, "../../cmd/wg-quickns/main.go": true} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for section, list := range keys {
			for key := range list {
				if own && (section == peer || slices.Contains([]string{"privatekey", "listenport", "fwmark"}, key)) {
					continue
				}
				if !regexp.MustCompile(`(?i)\b` + key + `\b`).Match(text) {
					t.Errorf("%s does not name %s", path, key)
				}
			}
		}
	}
}
