package leak

import (
	"encoding/binary"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/test/ns"
)

// Tag begins the payload of a probe; its kind and a full stop follow.
const Tag = "WGQPROBE-"

// Far4 and Far6 are where probes go: addresses of somebody behind the gateway.
var (
	Far4 = netip.MustParseAddr("203.0.113.9")
	Far6 = netip.MustParseAddr("2001:db8:9::9")
)

// synPorts are the ports of the probes that have no payload.
var synPorts = map[string]uint16{"tcp4": 1441, "tcp6": 1661, "boundtcp4": 1442}

// every is the time between two probes of a kind. The lab is an emulated machine that does
// nothing else at that pace: there it is kept in the full modes alone.
func every() time.Duration {
	if os.Getenv("WG_TEST_KERNEL") != "" && os.Getenv("WGQ_KILL_FULL")+os.Getenv("WGQ_PHYSICAL_FULL") == "" {
		return 60 * time.Millisecond
	}
	return 6 * time.Millisecond
}

// Probes sends packets of all kinds until it is stopped.
type Probes struct {
	Kinds []string
	Sent  atomic.Int64
	since time.Time
	stop  chan struct{}
	// opening are those that have no socket yet, done those that have not ended
	opening, done sync.WaitGroup
}

// Sockaddr is an address with a port.
func Sockaddr(a netip.Addr, port int) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: port}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: port}
}

// Family is the AF_* of an address.
func Family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// Open makes a socket, bound to a device if one is named.
func Open(family, typ, proto int, device string) (int, error) {
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil || device == "" {
		return fd, err
	}
	if typ == unix.SOCK_DGRAM {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
	}
	return fd, unix.BindToDevice(fd, device)
}

// Probe begins to send from a machine and from a container that it routes for.
func Probe(t testing.TB, machine, container *ns.NS) *Probes {
	t.Helper()
	p := &Probes{stop: make(chan struct{}), since: time.Now()}
	packets := func(n *ns.NS, kind, device string, to netip.Addr, port, typ, proto int, payload []byte) {
		p.loop(t, n, kind, func() (func(), error) {
			fd, err := Open(Family(to), typ, proto, device)
			return func() { unix.Sendto(fd, payload, unix.MSG_DONTWAIT, Sockaddr(to, port)) }, err
		})
	}
	datagrams := func(n *ns.NS, kind, device string, to netip.Addr, port int) {
		payload := []byte(Tag + kind + ".")
		if port == 53 { // a question of DNS for that name
			payload = append([]byte{1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, byte(len(payload))}, append(payload, 0, 0, 1, 0, 1)...)
		}
		packets(n, kind, device, to, port, unix.SOCK_DGRAM, 0, payload)
	}
	syns := func(kind, device string, to netip.Addr) {
		p.loop(t, machine, kind, func() (func(), error) {
			return func() {
				fd, err := Open(Family(to), unix.SOCK_STREAM, 0, device)
				if err == nil {
					unix.Connect(fd, Sockaddr(to, int(synPorts[kind])))
				}
				unix.Close(fd)
			}, nil
		})
	}
	datagrams(machine, "udp4", "", Far4, 9)
	datagrams(machine, "udp6", "", Far6, 9)
	datagrams(machine, "dns4", "", Far4, 53)
	datagrams(machine, "dns6", "", Far6, 53)
	datagrams(machine, "bound4", "uplink", Far4, 9)
	datagrams(machine, "bound6", "uplink", Far6, 9)
	datagrams(machine, "lan4", "", netip.MustParseAddr("192.0.2.1"), 9)
	datagrams(machine, "lan6", "", netip.MustParseAddr("2001:db8::1"), 9)
	datagrams(machine, "broadcast", "uplink", netip.MustParseAddr("255.255.255.255"), 9)
	datagrams(machine, "multicast", "uplink", netip.MustParseAddr("224.0.0.251"), 5353)
	datagrams(container, "forwarded4", "", Far4, 9)
	datagrams(container, "forwarded6", "", Far6, 9)
	syns("tcp4", "", Far4)
	syns("tcp6", "", Far6)
	syns("boundtcp4", "uplink", Far4)
	echo4 := append([]byte{8, 0, 0, 0, 0, 1, 0, 1}, Tag+"ping4."...)
	binary.BigEndian.PutUint16(echo4[2:], checksum(echo4))
	packets(machine, "ping4", "", Far4, 0, unix.SOCK_RAW, unix.IPPROTO_ICMP, echo4)
	packets(machine, "ping6", "uplink", Far6, 0, unix.SOCK_RAW, unix.IPPROTO_ICMPV6, append([]byte{128, 0, 0, 0, 0, 1, 0, 1}, Tag+"ping6."...))
	whole := append([]byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 253, 0, 0, 192, 0, 2, 2, 203, 0, 113, 9}, Tag+"raw4."...)
	packets(machine, "raw4", "uplink", Far4, 0, unix.SOCK_RAW, unix.IPPROTO_RAW, whole)
	p.opening.Wait() // a device that they bind to may leave any time
	return p
}

// loop sends probes of one kind from a thread that is in the namespace.
func (p *Probes) loop(t testing.TB, n *ns.NS, kind string, start func() (send func(), err error)) {
	p.Kinds = append(p.Kinds, kind)
	p.done.Add(1)
	p.opening.Add(1)
	go func() {
		defer p.done.Done()
		opened := sync.OnceFunc(p.opening.Done)
		defer opened()
		err := n.Do(func() error {
			send, err := start()
			opened()
			if err != nil {
				return err
			}
			tick := time.NewTicker(every())
			defer tick.Stop()
			for {
				select {
				case <-p.stop:
					return nil
				case <-tick.C:
					send()
					p.Sent.Add(1)
				}
			}
		})
		if err != nil {
			t.Errorf("probe %s: %v", kind, err)
		}
	}()
}

// End stops the probes and says how many a second there were.
func (p *Probes) End() (perSecond float64) {
	close(p.stop)
	p.done.Wait()
	return float64(p.Sent.Load()) / time.Since(p.since).Seconds()
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i]) << 8
		if i+1 < len(b) {
			sum += uint32(b[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
