package confparse

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"
)

const (
	key1 = "8PzD99cpnqgwwxdU6wn6K0B4cU2ihRUL+jllhWoVWnI="
	key2 = "HoPxTRB6UrEQbp5Q4OZIs/+JnWil2kJcxSnGFgX0W10="
)

// peer is the beginning of a good [Peer] section, line 2 its end.
const peer = "[Peer]\nPublicKey=" + key1 + "\n"

func TestQuick(t *testing.T) {
	tests := []struct {
		name, text string
		want       Config // but for Path, Lines, line numbers and wg's part
	}{
		{"empty", "", Config{}},
		{"usual", "[Interface]\nAddress = 10.0.0.1/24, fd00::1/64\nDNS = 1.1.1.1, fd00::53 corp\nMTU = 1420\nTable = off\nSaveConfig = true\n",
			Config{Addresses: addrs("10.0.0.1/24", "fd00::1/64"), DNS: []string{"1.1.1.1", "fd00::53"}, DNSSearch: []string{"corp"}, MTU: 1420, MTUText: "1420", Table: "off", SaveConfig: true}},
		{"any case", "[iNTERFACE]\nmtu=1280\nTABLE=AUTO\nsaveconfig=TRUE\n", Config{MTU: 1280, MTUText: "1280", Table: "AUTO", SaveConfig: true}},
		{"CRLF", "[Interface]\r\nMTU = 1280\r\nPostUp = true\r\n", Config{MTU: 1280, MTUText: "1280", PostUp: []string{"true"}}},
		{"no last newline", "[Interface]\nMTU = 1280", Config{MTU: 1280, MTUText: "1280"}},
		{"NUL is dropped", "[Inter\x00face]\nM\x00TU = 12\x0080\n", Config{MTU: 1280, MTUText: "1280"}},
		{"last one wins", "[Interface]\nMTU=1\nTable=1\nSaveConfig=true\nMTU=2\nTable=2\nSaveConfig=false\n", Config{MTU: 2, MTUText: "2", Table: "2"}},
		{"empty resets", "[Interface]\nMTU=1\nTable=1\nMTU=\nTable=# 1\n", Config{}},
		{"empty hook counts", "[Interface]\nPreUp=\nPreUp=a\nPreUp=\n", Config{PreUp: []string{"", "a", ""}}},
		{"repeated in order", "[Interface]\nPostUp=2\nPreDown=x\nPostUp=1\nPostUp=2\n[Interface]\nPostUp=3\n", Config{PostUp: []string{"2", "1", "2", "3"}, PreDown: []string{"x"}}},
		{"hook keeps all", "[Interface]\nPostDown = a='x # y'; b=`date` \\ # %(x)s\n", Config{PostDown: []string{"a='x # y'; b=`date` \\ # %(x)s"}}},
		{"back quotes", "[Interface]\nPreUp=`a` b `c\nTable=`x\nPostUp=\"\"\"a\nPreDown='x'\nPostDown=\"x\"\n",
			Config{PreUp: []string{"`a` b `c"}, Table: "`x", PostUp: []string{`"""a`}, PreDown: []string{"'x'"}, PostDown: []string{`"x"`}}},
		{"no interpolation", "[Interface]\nTable=%(MTU)s\nMTU=1\n", Config{Table: "%(MTU)s", MTU: 1, MTUText: "1"}},
		{"last backslash is text", "[Interface]\nPreUp=a \\\nMTU=1\n", Config{PreUp: []string{`a \`}, MTU: 1, MTUText: "1"}},
		{"no equals sign", "[Interface]\nTable\nPreUp # a=b\n", Config{Table: "Table", PreUp: []string{"b"}}},
		{"first equals sign splits", "[Interface]\nPreUp = a=b=c\n", Config{PreUp: []string{"a=b=c"}}},
		{"text after a header", "[Interface] MTU\nMTU=1\n", Config{}},
		{"comment after a header", "[Interface] # ]\nMTU=1\n", Config{MTU: 1, MTUText: "1"}},
		{"value after a header", "[Interface]=x\nMTU=1\n", Config{MTU: 1, MTUText: "1"}},
		{"other section", "[Interface]\nMTU=1\n[Peer]\nMTU=2\n[Interface]\nTable=3\n[\nTable=4\n", Config{MTU: 1, MTUText: "1", Table: "3"}},
		{"white space", "\t [Interface] \n\v MTU\f=\r1\v\n", Config{MTU: 1, MTUText: "1"}},
		{"no white space to bash", "[Interface]\n\u00a0MTU=1\nTable=\u00851\u2003\n", Config{Table: "\u00851\u2003"}},
		{"long s is no S", "[Interface]\nDN\u017f=1\n", Config{}},
		{"BOM is text", "\ufeff[Interface]\nMTU=1\n", Config{}},
		{"quoted key", "[Interface]\n\"MTU\"=1\n`Table`=1\n", Config{}},
		{"semicolon is text", "[Interface]\n;MTU=1\nTable=1;2\n", Config{Table: "1;2"}},
		{"words", "[Interface]\nDNS=,1.1,,...\t9a ,a:b\v1.1\n", Config{DNS: []string{"1.1", "...", "a:b\v1.1"}, DNSSearch: []string{"9a"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := ParseLines("x.conf", []byte(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			c.Path, c.Lines, c.mtuLine, c.tableLine = "", nil, 0, 0
			for i := range c.Addresses {
				c.Addresses[i].Line = 0
			}
			if !reflect.DeepEqual(*c, tt.want) {
				t.Errorf("got  %+v\nwant %+v", *c, tt.want)
			}
		})
	}
}

func addrs(list ...string) []Address {
	var out []Address
	for _, s := range list {
		out = append(out, Address{Text: s, Prefix: netip.MustParsePrefix(s)})
	}
	return out
}

func TestErrors(t *testing.T) {
	in := "[Interface]\n"
	tests := []struct {
		text string
		line int
		kind Kind
		msg  string
	}{
		{in + "SaveConfig = maybe", 2, KindQuick, "`maybe' is neither true nor false"},
		{in + "SaveConfig =", 2, KindQuick, "`' is neither true nor false"},
		{in + "SaveConfig", 2, KindQuick, "`SaveConfig' is neither true nor false"},
		{in + "\nDNS = 1.1.1.1 a*", 3, KindQuick, "DNS is a file name pattern: `a*'"},
		{in + "DNS = [::1]", 2, KindQuick, "DNS is a file name pattern: `[::1]'"},

		{"MTU=1", 1, KindWG, "Line unrecognized: `MTU=1'"},
		{"\n\n[Foo]", 3, KindWG, "Line unrecognized: `[Foo]'"},
		{in + "; x", 2, KindWG, "Line unrecognized: `;x'"},
		{in + "Foo = b a r # c", 2, KindWG, "Line unrecognized: `Foo=bar'"},
		{in + "PublicKey = " + key1, 2, KindWG, "Line unrecognized: `PublicKey=(hidden)'"},
		{in + "Foo", 2, KindWG, "Line unrecognized: `Foo'"},
		{in + "FwMark =", 2, KindWG, "Line unrecognized: `FwMark='"},
		{in + "\u00a0FwMark = 1", 2, KindWG, "Line unrecognized: `\u00a0FwMark=1'"},
		{in + "\"FwMark\" = 1", 2, KindWG, "Line unrecognized: `\"FwMark\"=1'"},
		{"\ufeff[Interface]", 1, KindWG, "Line unrecognized: `\ufeff[Interface]'"},
		{in + "FwMar\u212a = 1", 2, KindWG, "Line unrecognized: `FwMar\u212a=1'"},
		{in + "Per\u017fistentKeepalive = 1", 2, KindWG, "Line unrecognized: `Per\u017fistentKeepalive=1'"},
		{"[Interface] x", 1, KindWG, "Line unrecognized: `[Interface]x'"},
		{peer + "ListenPort=1", 3, KindWG, "Line unrecognized: `ListenPort=1'"},
		{peer + "MTU=1", 3, KindWG, "Line unrecognized: `MTU=1'"},
		{in + "PrivateKey = " + key1[1:], 2, KindWG, "Key is not the correct length or format: `(hidden)'"},
		{peer + "PresharedKey = \"" + key1 + "\"", 3, KindWG, "Key is not the correct length or format: `(hidden)'"},
		{"[Peer]\nPublicKey = " + key1[:42] + "J=", 2, KindWG, "Key is not the correct length or format: `(hidden)'"},
		{in + "FwMark = -1", 2, KindWG, "Fwmark is neither 0/off nor 0-0xffffffff: `-1'"},
		{in + "FwMark = 0X1", 2, KindWG, "Fwmark is neither 0/off nor 0-0xffffffff: `0X1'"},
		{in + "FwMark = 4294967296", 2, KindWG, "Fwmark is neither 0/off nor 0-0xffffffff: `4294967296'"},
		{peer + "PersistentKeepalive = 65536", 3, KindWG, "Persistent keepalive interval is neither 0/off nor 1-65535: `65536'"},
		{peer + "AllowedIPs = 10.0.0.0/8, x", 3, KindWG, "Unable to parse IP address: `x'"},
		{peer + "AllowedIPs = 10.0.0.0/8,", 3, KindWG, "Unable to parse IP address: `'"},
		{peer + "AllowedIPs = 10.1/8", 3, KindWG, "Unable to parse IP address: `10.1'"},
		{peer + "AllowedIPs = fe80::1%1/8", 3, KindWG, "Unable to parse IP address: `fe80::1%1'"},
		{peer + "AllowedIPs = +10.0.0.0/33", 3, KindWG, "AllowedIP is not in the correct format: `10.0.0.0/33'"},
		{peer + "AllowedIPs = ::/", 3, KindWG, "AllowedIP is not in the correct format: `::/'"},
		{peer + "Endpoint = 1.2.3.4", 3, KindWG, "Unable to find port of endpoint: `1.2.3.4'"},
		{peer + "Endpoint = [::1]:", 3, KindWG, "Unable to find port of endpoint: `[::1]:'"},
		{peer + "Endpoint = [::1", 3, KindWG, "Unable to find matching brace of endpoint: `[::1'"},
		{in + "[Peer]\nEndpoint = 1.2.3.4:5\n", 2, KindWG, "A peer is missing a public key"},
		// the first line decides, whatever its key
		{in + "Foo = 1\nFwMark = x", 2, KindWG, "Line unrecognized: `Foo=1'"},
		{"[Peer]\nAllowedIPs=10.0.0.0/8\nPublicKey=x\nAllowedIPs=y\nPublicKey=" + key1, 3, KindWG, "Key is not the correct length or format: `(hidden)'"},

		{in + "Address = 10.0.0.1/33", 2, KindAddress, `Error: inet prefix is expected rather than "10.0.0.1/33".`},
		{in + "Address = fd00::1/129", 2, KindAddress, `Error: inet6 prefix is expected rather than "fd00::1/129".`},
		{in + "Address = 10.0.0.1/24 brd", 2, KindAddress, `Error: inet prefix is expected rather than "brd".`},
		{in + "MTU = 1420x", 2, KindMTU, `Error: argument "1420x" is wrong: Invalid "mtu" value`},
		{in + "MTU = -1", 2, KindMTU, `Error: argument "-1" is wrong: mtu less than device minimum`},
		{in + "Table = 4294967296", 2, KindTable, `Error: argument "4294967296" is wrong: "table" value is invalid`},
		// wg-quick's own come before wg's, wg's before ip's
		{in + "Address = x\nFwMark = x\nSaveConfig = x", 4, KindQuick, "`x' is neither true nor false"},
		{in + "Address = x\nFwMark = x", 3, KindWG, "Fwmark is neither 0/off nor 0-0xffffffff: `x'"},
	}
	for _, tt := range tests {
		_, err := Parse("dir/x.conf", []byte(tt.text))
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%q: got %v, want %q", tt.text, err, tt.msg)
			continue
		}
		if want := (Error{"dir/x.conf", tt.line, tt.msg, tt.kind}); *e != want {
			t.Errorf("%q:\ngot  %+v\nwant %+v", tt.text, *e, want)
		}
		if want := fmt.Sprintf("dir/x.conf:%d: %s", tt.line, tt.msg); err.Error() != want {
			t.Errorf("got %q, want %q", err.Error(), want)
		}
	}
}

// TestLenient: strip and down read a file that up would refuse.
func TestLenient(t *testing.T) {
	text := "[Interface]\nAddress = x, 10.0.0.1/24\nMTU = y\nTable = 9999999999\nPreDown = a\nFoo\n[Peer]\nAllowedIPs = z\n"
	c, err := ParseLines("x.conf", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if c.Addresses[0].Prefix.IsValid() || c.Addresses[1].Prefix != netip.MustParsePrefix("10.0.0.1/24") || c.MTUText != "y" || c.MTU != 0 || len(c.PreDown) != 1 {
		t.Errorf("got %+v", c)
	}
	if got, want := string(c.Strip()), "[Interface]\nFoo\n[Peer]\nAllowedIPs = z\n\n"; got != want {
		t.Errorf("strip: got %q, want %q", got, want)
	}
}

func TestStrip(t *testing.T) {
	for text, want := range map[string]string{
		"":              "\n",
		"\n":            "\n\n",
		" \t":           "\n",
		" \t\n":         "\n\n",
		"\x00 \x00":     "\n",
		"a\x00b":        "ab\n\n",
		" # x \r\n\v\n": "# x \r\n\v\n\n",
		"[Interface]\nMTU=1\n\n#MTU=1\n;MTU=1\nMTU # =1\nFwMark = 1 # x\n": "[Interface]\n\n#MTU=1\n;MTU=1\nFwMark = 1 # x\n\n",
		"[Peer]\nMTU=1\nPostUp=`x`":                                        "[Peer]\nMTU=1\nPostUp=`x`\n\n",
	} {
		c, err := ParseLines("x.conf", []byte(text))
		if err != nil {
			t.Errorf("%q: %v", text, err)
		} else if got := string(c.Strip()); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func TestDevice(t *testing.T) {
	k1, k2 := mustKey(t, key1), mustKey(t, key2)
	off, mark, seconds := uint32(0), uint32(0xca6c), uint16(25)
	zero := uint16(0)
	port := func(n int) *int { return &n }
	tests := []struct {
		name, text string
		want       Device // but for line numbers
	}{
		{"empty", "", Device{}},
		{"interface", "[Interface]\nprivatekey=" + key1 + "\nLISTENPORT= 51 820 \nFwMark = 0xca6c # x", Device{PrivateKey: &k1, ListenPort: port(51820), FwMark: &mark}},
		{"off", "[Interface]\nFwMark = OFF\n" + peer + "PersistentKeepalive = oFF", Device{FwMark: &off, Peers: []Peer{{PublicKey: k1, ReplaceAllowedIPs: true, Keepalive: &zero}}}},
		{"sections of wg's alone", "[Inter face]\nFwMark=51820\n[Pe\ver]\nPublicKey=" + key1, Device{FwMark: &mark, Peers: []Peer{{PublicKey: k1, ReplaceAllowedIPs: true}}}},
		{"sections may come back", peer + "[Interface]\nFwMark=51820\n[Peer]\nPublicKey=" + key2, Device{FwMark: &mark, Peers: []Peer{{PublicKey: k1, ReplaceAllowedIPs: true}, {PublicKey: k2, ReplaceAllowedIPs: true}}}},
		{"last one wins", "[Interface]\nListenPort=domain\nListenPort=1\n" + peer + "PublicKey=" + key2 + "\nPersistentKeepalive=1\nPersistentKeepalive=25", Device{ListenPort: port(1), Peers: []Peer{{PublicKey: k2, ReplaceAllowedIPs: true, Keepalive: &seconds}}}},
		{"service", "[Interface]\nListenPort=1\nListenPort=domain\n", Device{ListenService: "domain"}},
		{"port as glibc cuts it", "[Interface]\nListenPort=65537\n", Device{ListenPort: port(1)}},
		{"preshared key", peer + "PresharedKey=" + key2, Device{Peers: []Peer{{PublicKey: k1, PresharedKey: &k2, ReplaceAllowedIPs: true}}}},
		{"allowed IPs", peer + "AllowedIPs = 10.1.2.3/8, ::1\nAllowedIPs=\nAllowedIPs = 10.0.0.0/8,1.2.3.4", Device{Peers: []Peer{{PublicKey: k1, ReplaceAllowedIPs: true, AllowedIPs: allowed("10.0.0.0/8", "::1/128", "10.0.0.0/8", "1.2.3.4/32")}}}},
		{"signs", peer + "AllowedIPs = +10.0.0.0/8, -::/0", Device{Peers: []Peer{{PublicKey: k1, AllowedIPs: allowed("10.0.0.0/8", "-::/0")}}}},
		{"signs before others", peer + "AllowedIPs = -10.0.0.0/8\nAllowedIPs = ::/0", Device{Peers: []Peer{{PublicKey: k1, ReplaceAllowedIPs: true, AllowedIPs: allowed("-10.0.0.0/8", "::/0")}}}},
		{"endpoint", peer + "Endpoint = [fd00::1]:51820", Device{Peers: []Peer{{PublicKey: k1, ReplaceAllowedIPs: true, Endpoint: &Endpoint{Host: "fd00::1", Port: "51820", Addr: netip.MustParseAddrPort("[fd00::1]:51820"), Line: 3}}}}},
		{"endpoint without brackets", peer + "Endpoint = fd00::1:51820", Device{Peers: []Peer{{PublicKey: k1, ReplaceAllowedIPs: true, Endpoint: &Endpoint{Host: "fd00::1", Port: "51820", Addr: netip.MustParseAddrPort("[fd00::1]:51820"), Line: 3}}}}},
		{"endpoint of inet_aton", peer + "Endpoint = 10.0x102:1", Device{Peers: []Peer{{PublicKey: k1, ReplaceAllowedIPs: true, Endpoint: &Endpoint{Host: "10.0x102", Port: "1", Addr: netip.MustParseAddrPort("10.0.1.2:1"), Line: 3}}}}},
		{"endpoint without host", peer + "Endpoint = *:1", Device{Peers: []Peer{{PublicKey: k1, ReplaceAllowedIPs: true, Endpoint: &Endpoint{Host: "*", Port: "1", Addr: netip.MustParseAddrPort("[::1]:1"), Line: 3}}}}},
		{"endpoint by name", peer + "Endpoint = vpn.example:51820", Device{Peers: []Peer{{PublicKey: k1, ReplaceAllowedIPs: true, Endpoint: &Endpoint{Host: "vpn.example", Port: "51820", Line: 3}}}}},
		{"endpoint with a service", peer + "Endpoint = 1.2.3.4:domain", Device{Peers: []Peer{{PublicKey: k1, ReplaceAllowedIPs: true, Endpoint: &Endpoint{Host: "1.2.3.4", Port: "domain", Line: 3}}}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse("x.conf", []byte(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			c.Device.ListenServiceLine = 0
			for i := range c.Device.Peers {
				c.Device.Peers[i].Line = 0
				c.Device.Peers[i].hasPublicKey = false
				for j := range c.Device.Peers[i].AllowedIPs {
					c.Device.Peers[i].AllowedIPs[j].Line = 0
				}
			}
			if !reflect.DeepEqual(c.Device, tt.want) {
				t.Errorf("got  %+v\nwant %+v", c.Device, tt.want)
			}
		})
	}
}

func allowed(list ...string) []AllowedIP {
	var out []AllowedIP
	for _, s := range list {
		text, remove := strings.CutPrefix(s, "-")
		out = append(out, AllowedIP{Prefix: netip.MustParsePrefix(text), Remove: remove})
	}
	return out
}

func TestWarnings(t *testing.T) {
	c, err := Parse("x.conf", []byte(peer+"AllowedIPs = 10.1.2.3/08, +fd00::1/64, 1.2.3.4, ::/0"))
	if err != nil {
		t.Fatal(err)
	}
	want := []Warning{{3, "Warning: AllowedIP has nonzero host part: 10.1.2.3/08"}, {3, "Warning: AllowedIP has nonzero host part: fd00::1/64"}}
	if !reflect.DeepEqual(c.Warnings, want) {
		t.Errorf("got %q, want %q", c.Warnings, want)
	}
}

func TestResolveServices(t *testing.T) {
	c, err := Parse("x.conf", []byte("[Interface]\nListenPort = domain\n"))
	if err != nil {
		t.Fatal(err)
	}
	err = c.ResolveServices(func(string) (int, error) { return 0, errors.New("none") })
	var e *Error
	if !errors.As(err, &e) || *e != (Error{"x.conf", 2, "Servname not supported for ai_socktype: `domain'", KindWG}) {
		t.Errorf("got %v", err)
	}
	if err := c.ResolveServices(func(string) (int, error) { return 53, nil }); err != nil || *c.Device.ListenPort != 53 || c.Device.ListenService != "" {
		t.Errorf("got %v, %+v", err, c.Device)
	}
}

func TestAddress(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.1/24":              "10.0.0.1/24",
		"10.0.0.1":                 "10.0.0.1/32",
		"10.1/16":                  "10.1.0.0/16",
		"0x0a.010.1/030":           "10.8.1.0/24",
		"10.0.0.1/0x18":            "10.0.0.1/24",
		"10.0.0.1/255.255.128.0":   "10.0.0.1/17",
		"10.0.0.1/0.0.0.0":         "10.0.0.1/0",
		"10.\v0.0.1/\r24":          "10.0.0.1/24",
		"default":                  "0.0.0.0/0",
		"fd00::1":                  "fd00::1/128",
		"fd00::1/64":               "fd00::1/64",
		"::ffff:1.2.3.4/96":        "::ffff:1.2.3.4/96",
		"fd00::1/255.0.0.0":        "fd00::1/8",
		"10.0.0.1/255.0.255.0":     "",
		"10.0.0.1/33":              "",
		"10.0.0.1/":                "",
		"10.0.0.1/24/1":            "",
		"10.0.0.256":               "",
		"10.0.0.1.2":               "",
		"10..1":                    "",
		"fe80::1%lo/64":            "",
		"fd00::1/129":              "",
		"1.2.3.4/::":               "",
		"":                         "",
		"dev":                      "",
		"10.0.0.1/1_6":             "",
		"99999999999999999999/8":   "",
		"10.0.0.1/340282366920938": "",
	} {
		got, ok := parseAddress(text)
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%q: got %v %v, want %q", text, got, ok, want)
		}
	}
}

func TestTableID(t *testing.T) {
	names := map[string]uint32{"main": 254, "12": 99}
	for text, want := range map[string]uint32{"main": 254, "12": 99, "13": 13, "0x7b": 123, "010": 8, "4294967295": 4294967295, "0": 0} {
		if got, ok := TableID(text, names); !ok || got != want {
			t.Errorf("%q: got %d %v, want %d", text, got, ok, want)
		}
	}
	for _, text := range []string{"", "off", "auto", "OFF", "4294967296", "1 2", "-1", "099"} {
		if got, ok := TableID(text, names); ok {
			t.Errorf("%q: got %d, want none", text, got)
		}
	}
}

func TestPortNumber(t *testing.T) {
	for text, want := range map[string]int{
		"51820": 51820, "65536": 0, "+7": 7, "070": 70, "4294967297": 1, "-4294967295": 1,
		"": -1, "-": -1, "x": -1, "1a": -1, "-1": -1, "2147483648": -1, "99999999999999999999": -1, "-99999999999999999999": -1, "0x10": -1, "+-1": -1,
	} {
		port, ok := PortNumber(text)
		if ok != (want >= 0) || ok && int(port) != want {
			t.Errorf("%q: got %d %v, want %d", text, port, ok, want)
		}
	}
}

// TestLongLines: lines of 1 MiB of everything that is taken apart, and many short
// ones. What is linear takes well under a second, what is quadratic minutes.
func TestLongLines(t *testing.T) {
	const n = 1 << 20
	for name, text := range map[string]string{
		"hook":        "[Interface]\nPreUp = " + strings.Repeat("x#=` ", n/5),
		"comment":     "[Interface]\n#" + strings.Repeat("# = `", n/5),
		"white space": "[Interface]" + strings.Repeat(" \t", n/2) + "\n" + strings.Repeat("\v\r", n/2) + "MTU" + strings.Repeat("\f ", n/2) + "= 1" + strings.Repeat("\r ", n/2),
		"addresses":   "[Interface]\nAddress = " + strings.Repeat("10.0.0.1/24, ", n/13) + "\nDNS = " + strings.Repeat("a,", n/2),
		"allowed IPs": peer + "AllowedIPs = " + strings.Repeat("10.0.0.0/8, ", n/12) + "10.0.0.0/8",
		"peers":       strings.Repeat(peer, n/len(peer)),
		"hooks":       "[Interface]\n" + strings.Repeat("PreUp = a\n", n/10),
		"NUL":         strings.Repeat("\x00", n),
	} {
		start := time.Now()
		if _, err := Parse("x.conf", []byte(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("%s: took %v", name, took)
		}
	}
	long := strings.Repeat("=#[", n/3)
	if _, err := Parse("x.conf", []byte(long)); err == nil {
		t.Error("a long line of nonsense is taken")
	}
}

func BenchmarkParse(b *testing.B) {
	for _, n := range []int{256 << 10, 1 << 20} {
		text := []byte("[Interface]\nPreUp = " + strings.Repeat("x#=` ", n/5) + "\n" + peer + "AllowedIPs = " + strings.Repeat("10.0.0.0/8, ", n/12) + "::/0")
		b.Run(fmt.Sprintf("%dKiB", n>>10), func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				if _, err := Parse("x.conf", text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkPeers(b *testing.B) {
	for _, n := range []int{10_000, 100_000} {
		var text bytes.Buffer
		text.WriteString("[Interface]\nPrivateKey = " + key1 + "\n")
		for i := range n {
			k := Key{byte(i), byte(i >> 8), byte(i >> 16)}
			fmt.Fprintf(&text, "[Peer]\nPublicKey = %s\nAllowedIPs = 10.%d.%d.%d/32\n", k.String64(), i>>16, i>>8&255, i&255)
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				if _, err := Parse("x.conf", text.Bytes()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestNoGrowth: nothing is kept from one file to the next.
func TestNoGrowth(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	parse := func(from, to int) {
		for i := from; i < to; i++ {
			text := fmt.Sprintf("[Interface]\nTable = t%d\nPostUp = %d\nk%d = 1\n"+peer, i, i, i)
			if _, err := Parse("x.conf", []byte(text)); err == nil {
				t.Fatal("an unknown key is taken")
			}
		}
	}
	parse(0, 100)
	before := heap()
	parse(100, 5100)
	if after := heap(); after > before+256<<10 {
		t.Errorf("%d bytes on the heap, %d before 5000 files", after, before)
	}
}
