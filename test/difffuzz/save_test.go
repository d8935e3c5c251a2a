//go:build !lab

package difffuzz

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"wg-quickns/confparse"
)

const saveLoop = `
source <(sed '/override insertion point/q' "$1")
ip() {
	case $1 in
	-all) echo "$INTERFACE             UNKNOWN        $addresses " ;;
	*) echo "7: $INTERFACE: <POINTOPOINT,NOARP,UP,LOWER_UP> mtu $mtu qdisc noqueue state UNKNOWN" ;;
	esac
}
resolvconf() { printf '%s' "$resolvconf"; }
stat() { echo 00; }
parse_options "$2"
INTERFACE=wgfuzz
save_config
`

// TestSave compares the files that save writes, for files without comments and
// running states made up: wg answers showconf from a UAPI socket of the test,
// ip and resolvconf are stand-ins.
func TestSave(t *testing.T) {
	n, seed := number(t, "WGQ_FUZZ_SAVES", 200), number(t, "WGQ_FUZZ_SEED", 1)
	if err := os.MkdirAll("/run/wireguard", 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", "/run/wireguard/"+device+".sock")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	answer := make(chan string, 1)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if line, _ := bufio.NewReader(conn).ReadString('\n'); line == "get=1\n" {
				io.WriteString(conn, <-answer+"errno=0\n\n")
			}
			conn.Close()
		}
	}()
	quick := reference(t, "wg-quick")
	file := filepath.Join(t.TempDir(), "fuzz.conf")
	compared, ampersands := 0, 0
	for i := range n {
		g := generator{rand.New(rand.NewPCG(uint64(seed), uint64(i))), true}
		text := g.file()
		c, err := confparse.Parse("fuzz.conf", []byte(text))
		if err != nil || strings.Contains(text, "#") {
			continue
		}
		// bash 5.2 and later put the file's beginning where a hook has an ampersand.
		if strings.Contains(text, "&") {
			ampersands++
			text = strings.ReplaceAll(text, "&", "+")
			if c, err = confparse.Parse("fuzz.conf", []byte(text)); err != nil {
				continue
			}
		}
		compared++
		r := g.running(c)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		answer <- get(r)
		var resolvconf, addresses []string
		for _, s := range r.DNS {
			resolvconf = append(resolvconf, "nameserver "+s+"\n")
		}
		for _, a := range r.Addresses {
			addresses = append(addresses, a.String())
		}
		cmd := exec.Command("bash", "-c", saveLoop, "wg-quick", quick, file)
		cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(quick)+":"+os.Getenv("PATH"), "resolvconf="+strings.Join(resolvconf, ""), "addresses="+strings.Join(addresses, " "), fmt.Sprint("mtu=", r.MTU))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Save(r); string(got) != string(want) {
			t.Errorf("file %d of seed %d: %q: saved\n%s\nreference\n%s", i, seed, text, got, want)
		}
	}
	if compared < n/10 {
		t.Errorf("only %d of %d files compared", compared, n)
	}
	t.Logf("%d of %d files compared, %d with ampersands in hooks taken out", compared, n, ampersands)
}

// running makes up the state of an interface that c may have brought up.
func (g generator) running(c *confparse.Config) confparse.Running {
	r := confparse.Running{MTU: 1 + g.IntN(2000), ListenPort: 1 + g.IntN(65535)}
	key := func() confparse.Key {
		var k confparse.Key
		for i := range k {
			k[i] = byte(g.Uint32())
		}
		return k
	}
	prefix := func() netip.Prefix {
		a, err := netip.ParseAddr(g.one("10.1.2.3", "0.0.0.0", "::", "fd00::1", "2001:db8:0:1::", "2001:0:0:1::", "::ffff:1.2.3.4", "1:2:3:4:5:6:7::", "fe80::5:0:6"))
		if err != nil {
			panic(err)
		}
		return netip.PrefixFrom(a, g.IntN(a.BitLen()+1))
	}
	if g.rarely(2) {
		r.FwMark = g.Uint32()
	}
	if !g.rarely(4) {
		r.PrivateKey = key()
	}
	for range g.IntN(3) {
		r.Addresses = append(r.Addresses, prefix())
	}
	for range g.IntN(3) {
		r.DNS = append(r.DNS, g.one("1.1.1.1", "fd00::53", "fe80::1%lo"))
	}
	for range g.IntN(3) {
		p := confparse.RunningPeer{PublicKey: key()}
		if g.rarely(3) {
			p.PresharedKey = key()
		}
		for range g.IntN(4) {
			p.AllowedIPs = append(p.AllowedIPs, prefix().Masked())
		}
		if !g.rarely(3) {
			p.Endpoint = netip.AddrPortFrom(prefix().Addr(), uint16(g.IntN(65536)))
		}
		if g.rarely(2) {
			p.Keepalive = g.IntN(65536)
		}
		r.Peers = append(r.Peers, p)
	}
	return r
}

// get is the UAPI's answer to get=1.
func get(r confparse.Running) string {
	var b strings.Builder
	key := func(name string, k confparse.Key) {
		if raw := k.Bytes(); !k.IsZero() {
			fmt.Fprintf(&b, "%s=%s\n", name, hex.EncodeToString(raw[:]))
		}
	}
	key("private_key", r.PrivateKey)
	fmt.Fprintf(&b, "listen_port=%d\nfwmark=%d\n", r.ListenPort, r.FwMark)
	for _, p := range r.Peers {
		key("public_key", p.PublicKey)
		key("preshared_key", p.PresharedKey)
		if p.Endpoint.IsValid() {
			fmt.Fprintf(&b, "endpoint=%s\n", p.Endpoint)
		}
		fmt.Fprintf(&b, "persistent_keepalive_interval=%d\n", p.Keepalive)
		for _, a := range p.AllowedIPs {
			fmt.Fprintf(&b, "allowed_ip=%s\n", a)
		}
	}
	return b.String()
}
