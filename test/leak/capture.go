// Package leak sends probes of all kinds from a machine and looks at the gateway for
// what comes there in the clear.
package leak

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"wg-quickns/test/ns"
)

// frame is one packet that reached the gateway and is none of those that may leave.
type frame struct {
	at   time.Time
	text string
}

// ServerPort is the port of the tunnel's server.
const ServerPort = 51820

// ServerName is its name, as a question of DNS has it.
const ServerName = "\x03vpn\x07example\x03com\x00"

// Capture sees every packet that a link of the gateway receives.
type Capture struct {
	fd   int
	done chan struct{}

	mu    sync.Mutex
	leaks []frame
	seen  map[string]int // by what it was
	let   map[string]int // of what may leave, never forgotten
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// Start opens an AF_PACKET socket with a time stamp of the kernel on each packet.
func Start(t testing.TB, n *ns.NS, link string) *Capture {
	t.Helper()
	c := &Capture{done: make(chan struct{}), seen: make(map[string]int), let: make(map[string]int)}
	err := n.Do(func() (err error) {
		if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL))); err != nil {
			return err
		}
		index, err := ifindex(link)
		if err != nil {
			return err
		}
		for option, value := range map[int]int{unix.SO_RCVBUFFORCE: 64 << 20, unix.SO_TIMESTAMPNS: 1} {
			if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, option, value); err != nil {
				return err
			}
		}
		tv := unix.Timeval{Usec: 100_000}
		if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			return err
		}
		return unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: index})
	})
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	go c.read(stop)
	t.Cleanup(func() {
		close(stop)
		<-c.done
		if st, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err != nil || st.Drops > 0 {
			t.Errorf("the capture missed packets: %+v, %v", st, err)
		}
		unix.Close(c.fd)
	})
	return c
}

func ifindex(link string) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(link)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, r)
	}
	if err != nil {
		return 0, fmt.Errorf("link %s: %w", link, err)
	}
	return int(r.Uint32()), nil
}

func (c *Capture) read(stop chan struct{}) {
	defer close(c.done)
	buf, oob := make([]byte, 1<<16), make([]byte, 256)
	for {
		n, oobn, _, from, err := unix.Recvmsg(c.fd, buf, oob, 0)
		if err != nil {
			select {
			case <-stop:
				return
			default:
				continue
			}
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		at := time.Now()
		messages, _ := unix.ParseSocketControlMessage(oob[:oobn])
		for _, m := range messages {
			if m.Header.Type == unix.SO_TIMESTAMPNS {
				ts := (*unix.Timespec)(unsafe.Pointer(&m.Data[0]))
				at = time.Unix(ts.Unix())
			}
		}
		what, leak := classify(buf[:n])
		c.mu.Lock()
		c.seen[what]++
		if leak {
			c.leaks = append(c.leaks, frame{at, what})
		} else {
			c.let[what]++
		}
		c.mu.Unlock()
	}
}

// classify names a packet, and says whether it may not leave: all but ARP, DHCP,
// neighbour discovery, EAPOL, questions for the server's name, WireGuard's own
// and errors about that.
func classify(b []byte) (what string, leak bool) {
	if len(b) < 14 {
		return "short", true
	}
	typ, b := binary.BigEndian.Uint16(b[12:]), b[14:]
	var from, to netip.Addr
	var proto byte
	var rest []byte
	switch {
	case typ == unix.ETH_P_ARP && len(b) >= 28:
		if b[7] == 2 {
			a, _ := netip.AddrFromSlice(b[14:18])
			return "arp reply of " + a.String(), false
		}
		return "arp request", false
	case typ == unix.ETH_P_PAE:
		return "eapol", false
	case typ == 6 && len(b) >= 6 && b[0] == 0 && b[2]&^0x10 == 0xaf: // the access point itself announces a station (IEEE 802.2)
		return "xid", false
	case typ == unix.ETH_P_IP && len(b) >= 20:
		from, _ = netip.AddrFromSlice(b[12:16])
		to, _ = netip.AddrFromSlice(b[16:20])
		proto, rest = b[9], b[min(int(b[0]&15)*4, len(b)):]
	case typ == unix.ETH_P_IPV6 && len(b) >= 40:
		from, _ = netip.AddrFromSlice(b[8:24])
		to, _ = netip.AddrFromSlice(b[24:40])
		proto, rest = b[6], b[40:]
		if proto == 0 && len(rest) >= 8 { // hop-by-hop options, as MLD has them
			proto, rest = rest[0], rest[min(8+int(rest[1])*8, len(rest)):]
		}
	default:
		return fmt.Sprintf("ethertype %#04x", typ), true
	}
	if at := bytes.Index(b, []byte(Tag)); at >= 0 {
		kind, _, _ := bytes.Cut(b[at+len(Tag):], []byte{'.'})
		return "probe " + string(kind), true
	}
	if len(rest) < 4 {
		return fmt.Sprintf("protocol %d %s > %s", proto, from, to), true
	}
	sport, dport := binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])
	switch proto {
	case unix.IPPROTO_ICMP: // where the tunnel has just gone, the server is told so
		if about := rest[min(8, len(rest)):]; rest[0] == 3 && len(about) >= 28 && about[9] == unix.IPPROTO_UDP && binary.BigEndian.Uint16(about[20:]) == ServerPort {
			return "icmp about wireguard", false
		}
	case unix.IPPROTO_UDP:
		switch {
		case dport == ServerPort && wireguard(rest[min(8, len(rest)):]):
			return "wireguard", false
		case sport == 68 && dport == 67, sport == 546 && dport == 547:
			return "dhcp", false
		case dport == 53 && bytes.Contains(rest, []byte(ServerName)):
			return "dns of the endpoint", false
		}
		return fmt.Sprintf("udp %s:%d > %s:%d, %d bytes, %x", from, sport, to, dport, len(rest)-8, rest[min(8, len(rest)):min(16, len(rest))]), true
	case unix.IPPROTO_TCP:
		for kind, port := range synPorts {
			if dport == port {
				return "probe " + kind, true
			}
		}
		return fmt.Sprintf("tcp %s:%d > %s:%d", from, sport, to, dport), true
	case unix.IPPROTO_ICMPV6:
		switch rest[0] {
		case 1: // to one who asks for an address that is not there
			if about := rest[min(8, len(rest)):]; len(about) > 40 && about[6] == unix.IPPROTO_ICMPV6 && about[40] == 135 {
				return "icmpv6 about neighbour discovery", false
			}
		case 133, 135, 136:
			return "neighbour discovery", b[7] != 255
		case 143:
			return "mld report", to != netip.MustParseAddr("ff02::16")
		}
		return fmt.Sprintf("icmpv6 %d %s > %s, %x", rest[0], from, to, rest[min(8, len(rest)):min(64, len(rest))]), true
	}
	return fmt.Sprintf("protocol %d %s > %s, %x", proto, from, to, rest[:min(64, len(rest))]), true
}

// wireguard says whether a datagram is one of WireGuard's, by its type and length.
// To whom does not matter: a peer roams.
func wireguard(b []byte) bool {
	if len(b) < 4 || b[1]|b[2]|b[3] != 0 {
		return false
	}
	switch b[0] {
	case 1:
		return len(b) == 148
	case 2:
		return len(b) == 92
	case 3:
		return len(b) == 64
	}
	return b[0] == 4 && len(b) >= 32 && (len(b)%16 == 0 || len(b) == 1420+32) // padding ends at the MTU
}

// Between counts what left in a time, by what it was.
func (c *Capture) Between(from, to time.Time) (total int, kinds map[string]int) {
	time.Sleep(5 * time.Millisecond) // what was sent until now has arrived
	c.mu.Lock()
	defer c.mu.Unlock()
	kinds = make(map[string]int)
	for _, f := range c.leaks {
		if f.at.After(from) && f.at.Before(to) {
			kinds[f.text]++
			total++
		}
	}
	return total, kinds
}

// Count says how often something was seen.
func (c *Capture) Count(what string) int {
	time.Sleep(5 * time.Millisecond)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen[what]
}

// Let counts all that came and may leave, by what it was.
func (c *Capture) Let() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.let)
}

// Forget drops what was seen.
func (c *Capture) Forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaks = nil
	clear(c.seen)
}
