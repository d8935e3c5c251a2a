package userspace

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

const (
	// ownAge is for how long the peers' endpoints are taken to be what they were.
	ownAge = time.Second
	// ownWait is how long a packet waits to be told from our own; then it passes.
	ownWait = 50 * time.Millisecond
)

// loopless is a tun interface that drops what the tunnel's own socket has sent and a
// route led back to the same peer. Encrypted once more, and again until it is too long,
// such a packet keeps a CPU busy; its last layers get through as soon as the right route is
// back, and each side takes the inside of the tunnel for where the other has moved to.
// What goes to one peer through another one passes.
type loopless struct {
	tun.Device
	device atomic.Pointer[device.Device] // which reads from this
	own    own
}

// own is how our packets are known. Peers are numbers.
type own struct {
	at        time.Time
	port      uint16
	addrs     map[netip.Addr]bool // the machine's
	endpoints map[netip.AddrPort]int
	allowed   map[netip.Prefix]int
	loops     map[netip.AddrPort]bool // the endpoints that were looked at
}

// Read is called by one goroutine only. A size of 0 drops a packet.
func (l *loopless) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := l.Device.Read(bufs, sizes, offset)
	for i := range n {
		if from, to, ok := encrypted(bufs[i][offset : offset+sizes[i]]); ok && l.isOwn(from, to) {
			sizes[i] = 0
		}
	}
	return n, err
}

func (l *loopless) isOwn(from, to netip.AddrPort) bool {
	if time.Since(l.own.at) > ownAge {
		// Not here: who closes the device waits for us, and holds what is asked for.
		answer := make(chan own, 1)
		go func() { answer <- l.learn() }()
		select {
		case l.own = <-answer:
		case <-time.After(ownWait):
			l.own = own{at: time.Now()}
		}
	}
	return from.Port() == l.own.port && l.own.addrs[from.Addr()] && l.own.loop(to)
}

// loop says whether what goes to an endpoint goes to its own peer when it is in the tunnel.
func (o *own) loop(to netip.AddrPort) bool {
	peer, ok := o.endpoints[to]
	if !ok {
		return false
	}
	loops, known := o.loops[to]
	if !known {
		best := -1
		for p, of := range o.allowed {
			if p.Bits() > best && p.Contains(to.Addr()) {
				best, loops = p.Bits(), of == peer
			}
		}
		o.loops[to] = loops
	}
	return loops
}

// learn asks who we are; what cannot be told is left out.
func (l *loopless) learn() own {
	var text string
	if d := l.device.Load(); d != nil {
		text, _ = d.IpcGet()
	}
	o := parse(text)
	o.at = time.Now()
	list, _ := net.InterfaceAddrs()
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			o.addrs[p.Addr()] = true
		}
	}
	return o
}

// parse reads an interface's state in the form of the UAPI.
func parse(text string) own {
	o := own{
		addrs: make(map[netip.Addr]bool), endpoints: make(map[netip.AddrPort]int),
		allowed: make(map[netip.Prefix]int), loops: make(map[netip.AddrPort]bool),
	}
	peer := 0
	for line := range strings.Lines(text) {
		switch key, value, _ := strings.Cut(strings.TrimSpace(line), "="); key {
		case "public_key":
			peer++
		case "listen_port":
			port, _ := strconv.ParseUint(value, 10, 16)
			o.port = uint16(port)
		case "endpoint":
			if e, err := netip.ParseAddrPort(value); err == nil {
				o.endpoints[netip.AddrPortFrom(e.Addr().Unmap().WithZone(""), e.Port())] = peer
			}
		case "allowed_ip":
			if p, err := netip.ParsePrefix(value); err == nil {
				o.allowed[p] = peer
			}
		}
	}
	return o
}

// encrypted says whether a packet has the form of one of WireGuard's, and from where
// to where it goes: UDP, and a message's type of 1 to 4 in 32 bits, little endian.
func encrypted(b []byte) (from, to netip.AddrPort, ok bool) {
	var src, dst netip.Addr
	var udp []byte
	switch {
	case len(b) > 20 && b[0]>>4 == 4 && b[9] == unix.IPPROTO_UDP:
		src, dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		udp = b[min(len(b), int(b[0]&15)*4):]
	case len(b) > 40 && b[0]>>4 == 6 && b[6] == unix.IPPROTO_UDP:
		src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		udp = b[40:]
	}
	if len(udp) < 12 {
		return from, to, false
	}
	kind := binary.LittleEndian.Uint32(udp[8:])
	return netip.AddrPortFrom(src, binary.BigEndian.Uint16(udp)), netip.AddrPortFrom(dst, binary.BigEndian.Uint16(udp[2:])), kind >= 1 && kind <= 4
}
