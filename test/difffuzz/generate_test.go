//go:build !lab

package difffuzz

import (
	"encoding/base64"
	"math/rand/v2"
	"strings"
)

// generator makes config files: mostly well-formed, with trouble strewn in.
type generator struct {
	*rand.Rand
	tidy bool // most values are good ones
}

func newGenerator(seed, file int) generator {
	r := rand.New(rand.NewPCG(uint64(seed), uint64(file)))
	return generator{r, r.IntN(4) != 0}
}

// good is one of a list whose first n are good values; of a tidy file it takes
// others one time in 60.
func (g generator) good(n int, of ...string) string {
	if g.tidy && !g.rarely(60) {
		of = of[:n]
	}
	return g.one(of...)
}

// untidy is true one time in n, in a tidy file one in 60.
func (g generator) untidy(n int) bool {
	if g.tidy {
		n = max(n, 60)
	}
	return g.rarely(n)
}

func (g generator) one(of ...string) string { return of[g.IntN(len(of))] }

// rarely is true one time in n.
func (g generator) rarely(n int) bool { return g.IntN(n) == 0 }

func (g generator) file() string {
	var b strings.Builder
	if g.untidy(20) {
		b.WriteString(g.one("\xef\xbb\xbf", "# comment\n", "\n\n", ";x\n", "stray = 1\n", "MTU = 9\n"))
	}
	newline := "\n"
	if g.rarely(8) {
		newline = "\r\n"
	}
	for range 1 + g.IntN(4) {
		keys := g.peerKey
		if g.rarely(2) || b.Len() == 0 {
			b.WriteString(g.header("[Interface]") + newline)
			keys = g.interfaceKey
		} else {
			b.WriteString(g.header("[Peer]") + newline)
			if !g.untidy(10) {
				b.WriteString("PublicKey = " + g.key() + newline)
			}
		}
		for range g.IntN(8) {
			key, value := keys()
			b.WriteString(g.line(key, value) + newline)
		}
	}
	text := b.String()
	if g.rarely(4) {
		text = strings.TrimSuffix(text, newline)
	}
	for g.untidy(4) {
		text = g.mutate(text)
	}
	return text
}

func (g generator) header(h string) string {
	if !g.untidy(15) {
		return h
	}
	return g.one(strings.ToLower(h), strings.ToUpper(h), " "+h, h+" ", h+" # ]", h+"#x=y", h+"x", h+" = x", h+" [Peer]", "["+h, h[:3]+" "+h[3:], h+";", "\v"+h, h+"\f", "[Foo]", "[]", "[", `"`+h+`"`)
}

// line puts a key and a value together in one of the ways that people and fuzzers do.
func (g generator) line(key, value string) string {
	switch g.IntN(12) {
	case 0:
		key = strings.ToUpper(key)
	case 1:
		key = strings.ToLower(key)
	}
	eq := " = "
	if g.rarely(3) {
		eq = g.good(5, "=", " =", "= ", "\t=\t", "\v=\f", "==", " ", "\r= ", "\u00a0=", "=\u2003", ":", "")
	}
	line := g.good(10, "", "", "", "", "", " ", "\t", " \t ", "\v", "\r", ";", "#", "\u0085", `"`, "`") + key + eq + value
	if g.rarely(5) {
		line += g.good(7, " # comment", "#c", " ", "\t", "\r", " # a = b", "#=", " ; x", "\v", "\\", "\u00a0")
	}
	return line
}

func (g generator) interfaceKey() (string, string) {
	hook := func() string {
		return g.one("echo hi", "", "iptables -A x; y", `echo "a # b"`, "echo 'x' # y", `printf "%s\n" %i`, "a=1 b=2", "x && y", "`date`", `"""`, `%(foo)s`, "true \\", "x=$(ls *)", "a\tb")
	}
	switch g.IntN(14) {
	case 0, 1:
		return "Address", g.list(g.address)
	case 2:
		return "DNS", g.list(func() string {
			return g.good(6, "1.1.1.1", "9.9.9.9", "fd00::53", "example.com", "corp", "1.1", "a:b", "...", "1.1.1.1a", "é.example", "x*y", "[::1]", "a;b", `"x"`, "~")
		})
	case 3:
		return "MTU", g.good(5, "1420", "", "1280", "0x500", "02600", "abc", "-1", "+1400", "1420 1", "99999999999", "0", `"1420"`)
	case 4:
		return "Table", g.one("off", "auto", "", "main", "123", "0x7b", "OFF", "4294967295", "4294967296", "default", "0", "1 2", "local", "010", "099", "-1")
	case 5:
		return "PreUp", hook()
	case 6:
		return "PostUp", hook()
	case 7:
		return "PreDown", hook()
	case 8:
		return "PostDown", hook()
	case 9:
		return "SaveConfig", g.good(4, "true", "false", "TRUE", "False", "yes", "", "true false", "1", "truе")
	case 10:
		return "PrivateKey", g.key()
	case 11:
		return "ListenPort", g.port()
	case 12:
		return "FwMark", g.good(7, "0", "off", "OFF", "0x1", "51820", "0xffffffff", "4294967295", "4294967296", "0x100000000", "0x", "0X1", "1x", "", "-1", "+1", "010", "o ff", "0xg")
	}
	if g.tidy && !g.rarely(30) {
		return "Address", g.address()
	}
	return g.one("Foo", "AllowedIPs", "PublicKey", "Address6", "", "-", "Endpoint"), g.one("x", "10.0.0.0/8", "", "1")
}

func (g generator) peerKey() (string, string) {
	switch g.IntN(10) {
	case 0:
		return "AllowedIPs", g.one("", "10.0.0.0/8", "0.0.0.0/0, ::/0", "-10.0.0.0/8,+fd00::/8")
	case 1, 2:
		return "AllowedIPs", g.list(g.allowedIP)
	case 3, 4:
		return "Endpoint", g.endpoint()
	case 5:
		return "PersistentKeepalive", g.good(5, "25", "off", "0", "65535", "Off", "65536", "-1", "+5", "", "1 0", "0x10", "007", "2.5")
	case 6:
		return "PresharedKey", g.key()
	case 7:
		return "PublicKey", g.key()
	}
	if g.tidy && !g.rarely(10) {
		return "AllowedIPs", g.allowedIP()
	}
	if g.rarely(2) {
		return g.one("Address", "MTU", "DNS", "SaveConfig", "PostUp"), g.one("1", "10.0.0.1/24", "true", "x")
	}
	return g.one("Foo", "PrivateKey", "ListenPort", "", "PersistentKeepalıve", "\u212aey"), g.one("x", "1", g.key())
}

// list joins values as lists are written, and as they should not be.
func (g generator) list(value func() string) string {
	text := value()
	for !g.rarely(2) {
		text += g.good(3, ", ", ", ", ",", ",,", " ", "\t", " , ", "\v", "\u00a0", ", ,") + value()
	}
	return text
}

func (g generator) key() string {
	b := make([]byte, 32)
	for i := range b {
		b[i] = byte(g.Uint32())
	}
	k := base64.StdEncoding.EncodeToString(b)
	if !g.untidy(12) {
		return k
	}
	return g.one(k[:43], k[1:], k+"=", k[:42]+"B=", strings.Repeat("A", 43)+"=", "", k[:20]+" "+k[20:], k[:20]+"*"+k[21:], `"`+k+`"`, strings.Repeat("A", 42)+"==", k[:10]+"-"+k[11:], k+"A")
}

func (g generator) port() string {
	return g.good(9, "51820", "51820", "0", "65535", "65536", "domain", "ntp", "4294967297", "+7", "nosuch", "", "-1", "0x10", "99999999999999999999", "-4294967295", "1 2", "DOMAIN", "1a", "2147483648", "070")
}

func (g generator) ipv4() string {
	return g.good(6, "10.0.0.0", "10.1.2.3", "0.0.0.0", "192.0.2.255", "1.2.3.4", "255.255.255.255", "10.1", "1", "010.0.0.1", "10.0.0.256", "1.2.3.4.5", "0x0a.1", "10..1", "1.2.3.", "", "127.00.0.1", "1.2.3.4x", "+1.2.3.4", "0xa000001", "4294967296", "10.65536")
}

func (g generator) ipv6() string {
	return g.good(9, "::", "::1", "fd00::1", "2001:db8:1:2:3:4:5:6", "2001:db8::5", "::ffff:1.2.3.4", "::1.2.3.4", "1:2:3:4:5:6:7::", "FD00::A", "1::2::3", "fd00::12345", ":1", "1:", ":::", "::1.2.3", "fe80::1%lo", "fe80::1%1", "fd00::1%1", "::01.2.3.4", "0001::", "00001::", "::g")
}

func (g generator) ip() string {
	if g.rarely(2) {
		return g.ipv6()
	}
	return g.ipv4()
}

func (g generator) address() string {
	return g.ip() + g.good(4, "", "/24", "/32", "/0", "/64", "/128", "/", "/33", "/129", "/255.255.255.0", "/255.0.255.0", "/0x18", "/+8", "/-1", "/08", "/24/", "/a")
}

func (g generator) allowedIP() string {
	return g.good(7, "", "", "", "", "", "+", "-", "+-", "--") + g.ip() + g.good(4, "", "/24", "/32", "/0", "/64", "/128", "/", "/33", "/129", "/+8", "/-1", "/08", "/24/", "/a", "/ 8", "/0x8")
}

func (g generator) endpoint() string {
	kind := g.IntN(6)
	if g.tidy && !g.rarely(60) {
		kind = g.IntN(5)
	}
	switch kind {
	case 0, 1:
		return g.ipv4() + ":" + g.port()
	case 2, 3:
		return "[" + g.ipv6() + "]:" + g.port()
	case 4:
		return g.ipv6() + ":" + g.port()
	}
	return g.one("[::1", "[::1]", "[::1]1", "[::1]x1", "1.2.3.4", "1.2.3.4:", ":1", "[1.2.3.4]:5", "[]:1", "host.invalid:51820", "a]b:1", "[::1]:[2", "*:1", "::1]:4")
}

// mutate does to a file what no grammar thinks of.
func (g generator) mutate(text string) string {
	if text == "" {
		return text
	}
	i := g.IntN(len(text))
	j := min(len(text), i+1+g.IntN(6))
	junk := g.one("\x00", "\r", "\n", "\t", "\v", "\f", " ", "#", "=", "[", "]", ";", ",", "\\", "\"", "'", "`", `"""`, "\u00a0", "\u0085", "\u2003", "\x01", "\x7f", "\xff", "%(x)s", "$x", "~", "{a,b}", "(", "?", "&", "\x1b")
	switch g.IntN(5) {
	case 0:
		return text[:i] + text[j:]
	case 1:
		return text[:i] + text[i:j] + text[i:]
	case 2:
		lines := strings.SplitAfter(text, "\n")
		a, b := g.IntN(len(lines)), g.IntN(len(lines))
		lines[a], lines[b] = lines[b], lines[a]
		return strings.Join(lines, "")
	case 3:
		return text[:i] + junk + text[j:]
	}
	return text[:i] + junk + text[i:]
}
