// Package strategies tests the routing strategies and the guard on a real kernel: a
// host behind a gateway that sees every packet, and a server that is the tunnel's
// other end and the rest of the world.
package strategies

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"wg-quickns/test/bed"
	"wg-quickns/test/ns"
	"wg-quickns/test/programs"
	"wg-quickns/test/state"
)

func TestMain(m *testing.M) { ns.Main(m) }

// full asks for as many cases as the issue wants; otherwise a few of each.
var full = os.Getenv("WGQ_STRATEGIES_FULL") != ""

// The endpoint, an address of the world, and the server's own in the tunnel, by family.
const (
	endpoint4, endpoint6 = "198.51.100.1", "2001:db8:9::1"
	world4, world6       = "203.0.113.9", "2001:db8:99::9"
	inner4, inner6       = "10.9.0.1", "fd09::1"
	port                 = 51820
)

// world is a host, its gateway and the server.
type world struct {
	t                *testing.T
	host, gw, server *ns.NS
	dir              string
	program          string
	keys             map[string]wgtypes.Key
}

// lan is the host's own configuration, as a network manager would have made it. No time
// goes into whether somebody else has an address (DAD): it is more than the guard may take.
const lan = `ip link set eth0 address 02:00:00:00:01:07
	ip addr add 192.168.1.7/24 dev eth0
	ip -6 addr add 2001:db8:1::7/64 dev eth0 nodad
	ip route add default via 192.168.1.1 dev eth0 metric 100
	ip -6 route add default via 2001:db8:1::1 dev eth0 metric 100`

// newWorld makes one whose namespaces have a common prefix. configure is run in the host.
func newWorld(t *testing.T, prefix, configure string) *world {
	t.Helper()
	program, err := programs.Quickns()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: t.TempDir(), program: program, keys: map[string]wgtypes.Key{}}
	w.host, w.gw, w.server = ns.New(t, prefix+"host"), ns.New(t, prefix+"gw"), ns.New(t, prefix+"server")
	for _, n := range []*ns.NS{w.host, w.gw, w.server} { // as the kernel sets it when a WireGuard link goes up
		n.Run("sysctl", "-qw", "net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.default.send_redirects=0")
	}
	w.host.Run("sysctl", "-qw", "net.ipv6.conf.default.addr_gen_mode=1") // wireguard-go's tun has a random fe80:: otherwise
	w.gw.Run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	ns.Veth(w.host, "eth0", nil, w.gw, "lan", []string{"192.168.1.1/24", "192.168.1.2/24", "2001:db8:1::1/64", "2001:db8:1::2/64", "fe80::1/64"})
	ns.Veth(w.gw, "wan", []string{"198.51.100.254/24", "2001:db8:9::fe/64"}, w.server, "eth0",
		[]string{endpoint4 + "/24", endpoint6 + "/64"})
	w.server.Run("bash", "-ec", `ip addr add 203.0.113.9/32 dev lo
		ip -6 addr add 2001:db8:99::9/128 dev lo
		ip route add default via 198.51.100.254
		ip -6 route add default via 2001:db8:9::fe`)
	w.gw.Run("bash", "-ec", `ip route add 203.0.113.0/24 via 198.51.100.1
		ip -6 route add 2001:db8:99::/64 via 2001:db8:9::1`)
	if configure != "" {
		w.host.Run("bash", "-ec", configure)
	}
	return w
}

func (w *world) key(name string) wgtypes.Key {
	if _, ok := w.keys[name]; !ok {
		k, err := wgtypes.GeneratePrivateKey()
		if err != nil {
			w.t.Fatal(err)
		}
		w.keys[name] = k
	}
	return w.keys[name]
}

// config writes a config file, NAME's and its peer's key filled in.
func (w *world) config(name, peer, text string) {
	w.t.Helper()
	text = strings.ReplaceAll(strings.ReplaceAll(text, "PRIVATE", w.key(name).String()), "PUBLIC", w.key(peer).PublicKey().String())
	if err := os.WriteFile("/etc/wireguard/"+name+".conf", []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// serve brings the server's end up, for as long as the test runs.
func (w *world) serve() {
	w.t.Helper()
	w.config("srv0", "wg0", fmt.Sprintf(`[Interface]
PrivateKey = PRIVATE
ListenPort = %d
Address = %s/24, %s/64
[Peer]
PublicKey = PUBLIC
AllowedIPs = 10.9.0.2/32, fd09::2/128
`, port, inner4, inner6))
	w.server.Run(w.program, "up", "srv0")
	w.t.Cleanup(func() { w.server.Run(w.program, "down", "srv0") })
}

// anew restarts the server's end. wireguard-go that has sent to an IPv4 endpoint may
// cut the address of an IPv6 one to four bytes (conn/bind_std.go, 0.0.0-20250521).
func (w *world) anew() {
	w.t.Helper()
	w.server.Run(w.program, "down", "srv0")
	w.server.Run(w.program, "up", "srv0")
}

// client writes wg0's config. keys are lines of [Interface].
func (w *world) client(keys, allowed, endpoint string) {
	w.t.Helper()
	w.config("wg0", "srv0", fmt.Sprintf(`[Interface]
PrivateKey = PRIVATE
Address = 10.9.0.2/24, fd09::2/64
%s
[Peer]
PublicKey = PUBLIC
AllowedIPs = %s
Endpoint = %s
`, keys, allowed, endpoint))
}

func endpointOf(v6 bool) string {
	if v6 {
		return fmt.Sprintf("[%s]:%d", endpoint6, port)
	}
	return fmt.Sprintf("%s:%d", endpoint4, port)
}

func (w *world) up(name string) string {
	w.t.Helper()
	r := w.host.Try(w.program, "up", name)
	if r.Code != 0 {
		w.t.Fatalf("up %s: exit status %d\n%s", name, r.Code, r.Stderr)
	}
	return r.Stderr
}

func (w *world) down(name string) string {
	w.t.Helper()
	r := w.host.Try(w.program, "down", name)
	if r.Code != 0 {
		w.t.Fatalf("down %s: exit status %d\n%s\n%s", name, r.Code, r.Stderr, w.routes())
	}
	return r.Stderr
}

func (w *world) routes() string {
	return w.host.Try("bash", "-c", "ip rule; ip -6 rule; ip -4 route show table all; ip -6 route show table all; ip addr").Stdout
}

// take is the host's state but for files, which differ by keys and names.
func (w *world) take() state.State {
	w.t.Helper()
	s, err := state.Take(w.host)
	if err != nil {
		w.t.Fatal(err)
	}
	return s.Without("file", "process", "mount", "wg")
}

// ping says whether one ping is answered within a time.
func (w *world) ping(to string, within time.Duration) bool {
	end := time.Now().Add(within)
	for {
		if w.host.Try("ping", "-nqc1", "-W0.3", to).Code == 0 {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

// packet is what a capture saw.
type packet struct {
	kind string // cipher, probe, or the packet in words
	to   netip.Addr
	seq  uint64
}

// capture keeps what passes a link, but for ARP, neighbour discovery, multicast
// listeners and DHCP.
type capture struct {
	fd   int
	mu   sync.Mutex
	list []packet
	done chan struct{}
}

var magic = []byte("wgqprobe")

func startCapture(t *testing.T, n *ns.NS, link string) *capture {
	t.Helper()
	c := &capture{done: make(chan struct{})}
	err := n.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		c.fd = fd
		var req unix.Ifreq
		if r, err := unix.NewIfreq(link); err == nil {
			req = *r
		}
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, &req); err != nil {
			return err
		}
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000})
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x0300, Ifindex: int(req.Uint32())})
	})
	if err != nil {
		t.Fatalf("capture on %s: %v", link, err)
	}
	stop := make(chan struct{})
	t.Cleanup(func() { c.stop(stop) })
	go func() {
		defer close(c.done)
		buf := make([]byte, 64<<10)
		for {
			n, _, err := unix.Recvfrom(c.fd, buf, 0)
			select {
			case <-stop:
				return
			default:
			}
			if err != nil {
				continue
			}
			if p, ok := classify(buf[:n]); ok {
				c.mu.Lock()
				c.list = append(c.list, p)
				c.mu.Unlock()
			}
		}
	}()
	return c
}

func (c *capture) stop(stop chan struct{}) {
	select {
	case <-stop:
	default:
		close(stop)
		<-c.done
		unix.Close(c.fd)
	}
}

// seen gives what was captured up to now, and forgets it.
func (c *capture) seen() []packet {
	time.Sleep(100 * time.Millisecond) // what is in the socket yet
	c.mu.Lock()
	defer c.mu.Unlock()
	list := c.list
	c.list = nil
	return list
}

// probed says whether a probe was captured since.
func (c *capture) probed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.list, func(p packet) bool { return p.kind == "probe" })
}

func classify(b []byte) (p packet, ok bool) {
	if len(b) < 20 {
		return p, false
	}
	var proto byte
	var from netip.Addr
	var rest []byte
	switch b[0] >> 4 {
	case 4:
		proto, rest = b[9], b[min(len(b), int(b[0]&15)*4):]
		from, _ = netip.AddrFromSlice(b[12:16])
		p.to, _ = netip.AddrFromSlice(b[16:20])
	case 6:
		if len(b) < 40 {
			return p, false
		}
		proto, rest = b[6], b[40:]
		from, _ = netip.AddrFromSlice(b[8:24])
		p.to, _ = netip.AddrFromSlice(b[24:40])
	default:
		return p, false // ARP
	}
	if p.to.IsMulticast() || p.to == netip.MustParseAddr("255.255.255.255") {
		return p, false
	}
	switch {
	case proto == unix.IPPROTO_UDP && len(rest) >= 8:
		sport, dport := binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])
		if i := bytes.Index(rest, magic); i >= 0 && len(rest) >= i+16 {
			p.kind, p.seq = "probe", binary.BigEndian.Uint64(rest[i+8:])
			return p, true
		}
		if sport == port || dport == port || sport == port+1 || dport == port+1 {
			p.kind = "cipher"
			return p, true
		}
		if dport == 67 || dport == 68 || dport == 546 || dport == 547 {
			return p, false
		}
		p.kind = fmt.Sprintf("udp %v:%d to %v:%d", from, sport, p.to, dport)
	case proto == unix.IPPROTO_ICMPV6 && len(rest) > 0 && rest[0] >= 130:
		return p, false
	default:
		p.kind = fmt.Sprintf("protocol %d, %v to %v", proto, from, p.to)
	}
	return p, true
}

// prober sends packets from the host to each address, in turn, as fast as is
// sensible, and keeps the errors.
type prober struct {
	stop, done chan struct{}
	mu         sync.Mutex
	sent       uint64
	errors     []string
}

func (w *world) probe(to ...string) *prober {
	w.t.Helper()
	p := &prober{stop: make(chan struct{}), done: make(chan struct{})}
	var fds [2]int
	err := w.host.Do(func() (err error) {
		if fds[0], err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		fds[1], err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		defer unix.Close(fds[0])
		defer unix.Close(fds[1])
		for seq := uint64(1); ; seq++ {
			for _, text := range to {
				a := netip.MustParseAddr(text)
				data := binary.BigEndian.AppendUint64(bytes.Clone(magic), seq)
				var err error
				if a.Is4() {
					err = unix.Sendto(fds[0], data, 0, &unix.SockaddrInet4{Port: 9, Addr: a.As4()})
				} else {
					err = unix.Sendto(fds[1], data, 0, &unix.SockaddrInet6{Port: 9, Addr: a.As16()})
				}
				// ECONNREFUSED is of an earlier one that came to a closed port
				if err != nil && err != unix.ECONNREFUSED && err != unix.ENOBUFS {
					p.mu.Lock()
					p.errors = append(p.errors, fmt.Sprintf("probe %d to %s: %v", seq, text, err))
					p.mu.Unlock()
				}
			}
			p.mu.Lock()
			p.sent = seq
			p.mu.Unlock()
			select {
			case <-p.stop:
				return
			case <-time.After(400 * time.Microsecond):
			}
		}
	}()
	w.t.Cleanup(func() { p.end() })
	return p
}

// end stops the prober and gives how many rounds it made and what failed.
func (p *prober) end() (sent uint64, failed []string) {
	select {
	case <-p.stop:
	default:
		close(p.stop)
	}
	<-p.done
	return p.sent, p.errors
}

// process is a started command of the host whose lines are kept.
type process struct {
	cmd *exec.Cmd
	mu  sync.Mutex
	out bytes.Buffer
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// start starts a program in a namespace, to end with the test.
func start(t *testing.T, n *ns.NS, argv ...string) *process {
	t.Helper()
	p := &process{}
	argv[0], _ = exec.LookPath(argv[0])
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	p.cmd.WaitDelay = time.Second
	if err := n.Do(p.cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.end(syscall.SIGKILL) })
	return p
}

func (p *process) end(sig syscall.Signal) int {
	if p.cmd.ProcessState == nil {
		p.cmd.Process.Signal(sig)
		p.cmd.Wait()
	}
	return p.cmd.ProcessState.ExitCode()
}

// guard starts the guard and waits until it guards.
func (w *world) guard(options ...string) *process {
	w.t.Helper()
	p := start(w.t, w.host, append(append([]string{w.program, "guard"}, options...), "wg0")...)
	if !bed.Wait(10*time.Second, func() bool { return strings.Contains(p.text(), "guarding `wg0'") }) {
		w.t.Fatalf("the guard does not start:\n%s", p.text())
	}
	return p
}

// times are how long things took.
type times []time.Duration

func (d times) String() string {
	if len(d) == 0 {
		return "none"
	}
	s := slices.Sorted(slices.Values(d))
	return fmt.Sprintf("median %v, worst %v of %d", s[len(s)/2].Round(time.Millisecond), s[len(s)-1].Round(time.Millisecond), len(s))
}

func (d times) report(t *testing.T, what string) {
	t.Helper()
	t.Logf("%s: wrong for %v", what, d)
	if s := slices.Sorted(slices.Values(d)); len(s) > 0 && s[len(s)/2] > bound {
		t.Errorf("%s: not right again within %v", what, bound)
	}
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}
