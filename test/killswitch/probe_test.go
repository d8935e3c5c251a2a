package killswitch

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/test/ns"
)

// tag begins the payload of a probe; its kind and a full stop follow.
const tag = "WGQPROBE-"

// far4 and far6 are where probes go: addresses of somebody behind the gateway.
var (
	far4 = netip.MustParseAddr("203.0.113.9")
	far6 = netip.MustParseAddr("2001:db8:9::9")
)

// synPorts are the ports of the probes that have no payload.
var synPorts = map[string]uint16{"tcp4": 1441, "tcp6": 1661, "boundtcp4": 1442}

// every is the time between two probes of a kind.
const every = 6 * time.Millisecond

// probes sends packets of all kinds until it is stopped.
type probes struct {
	kinds []string
	sent  atomic.Int64
	since time.Time
	stop  chan struct{}
	done  sync.WaitGroup
}

func sockaddr(a netip.Addr, port int) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: port}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: port}
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// open makes a socket, bound to a device if one is named.
func open(family, typ, proto int, device string) (int, error) {
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil || device == "" {
		return fd, err
	}
	if typ == unix.SOCK_DGRAM {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
	}
	return fd, unix.BindToDevice(fd, device)
}

// startProbes begins to send from a machine and from a container that it routes for.
func startProbes(t testing.TB, machine, container *ns.NS) *probes {
	t.Helper()
	p := &probes{stop: make(chan struct{}), since: time.Now()}
	packets := func(n *ns.NS, kind, device string, to netip.Addr, port, typ, proto int, payload []byte) {
		p.loop(t, n, kind, func() (func(), error) {
			fd, err := open(family(to), typ, proto, device)
			return func() { unix.Sendto(fd, payload, unix.MSG_DONTWAIT, sockaddr(to, port)) }, err
		})
	}
	datagrams := func(n *ns.NS, kind, device string, to netip.Addr, port int) {
		payload := []byte(tag + kind + ".")
		if port == 53 { // a question of DNS for that name
			payload = append([]byte{1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, byte(len(payload))}, append(payload, 0, 0, 1, 0, 1)...)
		}
		packets(n, kind, device, to, port, unix.SOCK_DGRAM, 0, payload)
	}
	syns := func(kind, device string, to netip.Addr) {
		p.loop(t, machine, kind, func() (func(), error) {
			return func() {
				fd, err := open(family(to), unix.SOCK_STREAM, 0, device)
				if err == nil {
					unix.Connect(fd, sockaddr(to, int(synPorts[kind])))
				}
				unix.Close(fd)
			}, nil
		})
	}
	datagrams(machine, "udp4", "", far4, 9)
	datagrams(machine, "udp6", "", far6, 9)
	datagrams(machine, "dns4", "", far4, 53)
	datagrams(machine, "dns6", "", far6, 53)
	datagrams(machine, "bound4", "uplink", far4, 9)
	datagrams(machine, "bound6", "uplink", far6, 9)
	datagrams(machine, "lan4", "", netip.MustParseAddr("192.0.2.1"), 9)
	datagrams(machine, "lan6", "", netip.MustParseAddr("2001:db8::1"), 9)
	datagrams(machine, "broadcast", "uplink", netip.MustParseAddr("255.255.255.255"), 9)
	datagrams(machine, "multicast", "uplink", netip.MustParseAddr("224.0.0.251"), 5353)
	datagrams(container, "forwarded4", "", far4, 9)
	datagrams(container, "forwarded6", "", far6, 9)
	syns("tcp4", "", far4)
	syns("tcp6", "", far6)
	syns("boundtcp4", "uplink", far4)
	echo4 := append([]byte{8, 0, 0, 0, 0, 1, 0, 1}, tag+"ping4."...)
	binary.BigEndian.PutUint16(echo4[2:], checksum(echo4))
	packets(machine, "ping4", "", far4, 0, unix.SOCK_RAW, unix.IPPROTO_ICMP, echo4)
	packets(machine, "ping6", "uplink", far6, 0, unix.SOCK_RAW, unix.IPPROTO_ICMPV6, append([]byte{128, 0, 0, 0, 0, 1, 0, 1}, tag+"ping6."...))
	whole := append([]byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 253, 0, 0, 192, 0, 2, 2, 203, 0, 113, 9}, tag+"raw4."...)
	packets(machine, "raw4", "uplink", far4, 0, unix.SOCK_RAW, unix.IPPROTO_RAW, whole)
	return p
}

// loop sends probes of one kind from a thread that is in the namespace.
func (p *probes) loop(t testing.TB, n *ns.NS, kind string, start func() (send func(), err error)) {
	p.kinds = append(p.kinds, kind)
	p.done.Add(1)
	go func() {
		defer p.done.Done()
		err := n.Do(func() error {
			send, err := start()
			if err != nil {
				return err
			}
			tick := time.NewTicker(every)
			defer tick.Stop()
			for {
				select {
				case <-p.stop:
					return nil
				case <-tick.C:
					send()
					p.sent.Add(1)
				}
			}
		})
		if err != nil {
			t.Errorf("probe %s: %v", kind, err)
		}
	}()
}

// end stops the probes and says how many a second there were.
func (p *probes) end() (perSecond float64) {
	close(p.stop)
	p.done.Wait()
	return float64(p.sent.Load()) / time.Since(p.since).Seconds()
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
