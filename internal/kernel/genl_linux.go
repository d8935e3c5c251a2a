package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"

	"wg-quickns/confparse"
)

// wireguard speaks to the kernel's WireGuard as linux/wireguard.h describes. It
// stands beside wgctrl, which serves the userspace devices, because wgctrl sends
// a request per peer with the device's own values in each (the kernel walks all
// peers for each fwmark: quadratic), takes ten times as long as wg(8) for many
// allowed IPs, and loses the zone of an IPv6 endpoint.
type wireguard struct {
	socket *socket
	family uint16
}

// kernelWG finds the kernel's WireGuard; nil when there is none (yet).
func (sp *space) kernelWG(ctx context.Context) (*wireguard, error) {
	if sp.wg != nil {
		return sp.wg, nil
	}
	s, family, err := sp.generic(ctx, unix.WG_GENL_NAME)
	if err != nil || s == nil {
		return nil, err
	}
	w := &wireguard{s, family}
	sp.wg = w
	return w, nil
}

// generic opens a socket to a family of generic netlink; nil when the kernel has
// none of that name.
func (sp *space) generic(ctx context.Context, name string) (s *socket, family uint16, err error) {
	err = sp.inside(func() (err error) {
		s, err = dial(unix.NETLINK_GENERIC)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	put := func(m *message, _ int) (typ, flags uint16) {
		m.bytes(unix.CTRL_CMD_GETFAMILY, 1, 0, 0)
		m.attrString(unix.CTRL_ATTR_FAMILY_NAME, name)
		return unix.GENL_ID_CTRL, 0
	}
	_, err = s.exchange(ctx, 1, put, func(_ int, body []byte, err error) error {
		for typ, data := range attributes(body[min(unix.GENL_HDRLEN, len(body)):]) {
			if typ == unix.CTRL_ATTR_FAMILY_ID {
				family = native16(data)
			}
		}
		return err
	})
	if err == nil && family != 0 {
		return s, family, nil
	}
	s.close()
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil, 0, nil
	}
	return nil, 0, fmt.Errorf("look for the kernel's %s: %w", name, err)
}

// peerPart is what one request says about a peer: all of it the first time, of
// one with very many allowed IPs only more of them later.
type peerPart struct {
	*confparse.Peer
	ips    []confparse.AllowedIP
	more   bool
	remove bool // the peer itself
}

// A request stays well below the 64 KiB that a netlink attribute can hold.
const (
	maxRequest = 32 << 10
	peerSize   = 128 // at most, without allowed IPs
	ipSize     = 40
)

// requests cuts peers into requests of bounded size.
func requests(peers []confparse.Peer) (list [][]peerPart) {
	var now []peerPart
	used := 0
	for i := range peers {
		part := peerPart{Peer: &peers[i]}
		rest := kept(part.Peer)
		for {
			if used+peerSize+ipSize > maxRequest {
				list, now, used = append(list, now), nil, 0
			}
			n := min(len(rest), (maxRequest-used-peerSize)/ipSize)
			part.ips, rest = rest[:n], rest[n:]
			now = append(now, part)
			used += peerSize + n*ipSize
			if len(rest) == 0 {
				break
			}
			part.more = true
		}
	}
	if len(now) > 0 {
		list = append(list, now)
	}
	return list
}

// set configures a device by its index. zone turns the zone of an endpoint into
// an interface index.
func (w *wireguard) set(ctx context.Context, index int, dev *confparse.Device, peers [][]peerPart, zone func(string) uint32) error {
	n := 1 + len(peers) // the device's own values alone, then the peers
	_, err := w.socket.batch(ctx, n, false, func(m *message, i int) (typ, flags uint16) {
		m.bytes(unix.WG_CMD_SET_DEVICE, unix.WG_GENL_VERSION, 0, 0)
		m.attr32(unix.WGDEVICE_A_IFINDEX, uint32(index))
		if i == 0 {
			m.putDevice(dev)
		} else {
			m.putPeers(peers[i-1], zone)
		}
		return w.family, 0
	})
	return err
}

func (m *message) putDevice(dev *confparse.Device) {
	if dev.PrivateKey != nil {
		m.attr(unix.WGDEVICE_A_PRIVATE_KEY, dev.PrivateKey[:])
	}
	if dev.ListenPort != nil {
		m.attr16(unix.WGDEVICE_A_LISTEN_PORT, uint16(*dev.ListenPort))
	}
	if dev.FwMark != nil {
		m.attr32(unix.WGDEVICE_A_FWMARK, *dev.FwMark)
	}
}

const nested = unix.NLA_F_NESTED

func (m *message) putPeers(parts []peerPart, zone func(string) uint32) {
	m.nested(unix.WGDEVICE_A_PEERS|nested, func() {
		for _, p := range parts {
			m.nested(nested, func() { m.putPeer(p, zone) })
		}
	})
}

func (m *message) putPeer(p peerPart, zone func(string) uint32) {
	m.attr(unix.WGPEER_A_PUBLIC_KEY, p.PublicKey[:])
	flags := uint32(0)
	if p.remove {
		flags |= unix.WGPEER_F_REMOVE_ME
	}
	if !p.more {
		if p.ReplaceAllowedIPs {
			flags |= unix.WGPEER_F_REPLACE_ALLOWEDIPS
		}
		if p.PresharedKey != nil {
			m.attr(unix.WGPEER_A_PRESHARED_KEY, p.PresharedKey[:])
		}
		if p.Endpoint != nil {
			m.attr(unix.WGPEER_A_ENDPOINT, sockaddr(p.Endpoint.Addr, zone))
		}
		if p.Keepalive != nil {
			m.attr16(unix.WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL, *p.Keepalive)
		}
	}
	if flags != 0 {
		m.attr32(unix.WGPEER_A_FLAGS, flags)
	}
	if len(p.ips) == 0 {
		return
	}
	m.nested(unix.WGPEER_A_ALLOWEDIPS|nested, func() {
		for _, ip := range p.ips {
			m.nested(nested, func() {
				a := ip.Prefix.Addr()
				m.attr16(unix.WGALLOWEDIP_A_FAMILY, uint16(family(a)))
				m.attrAddr(unix.WGALLOWEDIP_A_IPADDR, a)
				m.attr(unix.WGALLOWEDIP_A_CIDR_MASK, []byte{byte(ip.Prefix.Bits())})
			})
		}
	})
}

// sockaddr is a struct sockaddr_in or sockaddr_in6.
func sockaddr(a netip.AddrPort, zone func(string) uint32) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(family(a.Addr())))
	b = binary.BigEndian.AppendUint16(b, a.Port())
	if a.Addr().Is4() {
		return append(append(b, a.Addr().AsSlice()...), make([]byte, 8)...)
	}
	b = append(append(b, 0, 0, 0, 0), a.Addr().AsSlice()...) // flow information, address
	return binary.NativeEndian.AppendUint32(b, zone(a.Addr().Zone()))
}

// get reads a device by its index. zone names the interface of an index.
func (w *wireguard) get(index int, zone func(uint32) string) (dev *confparse.Device, err error) {
	err = dump("WireGuard peers", func() error {
		dev = &confparse.Device{}
		return w.socket.dump(func(m *message) uint16 {
			m.bytes(unix.WG_CMD_GET_DEVICE, unix.WG_GENL_VERSION, 0, 0)
			m.attr32(unix.WGDEVICE_A_IFINDEX, uint32(index))
			return w.family
		}, func(body []byte) error {
			parseDevice(body[min(unix.GENL_HDRLEN, len(body)):], dev, zone)
			return nil
		})
	})
	return dev, err
}

// parseDevice adds one message of the answer to dev. A peer too large for one
// message goes on in the next, under the same key.
func parseDevice(b []byte, dev *confparse.Device, zone func(uint32) string) {
	for typ, data := range attributes(b) {
		switch typ {
		case unix.WGDEVICE_A_PRIVATE_KEY:
			dev.PrivateKey = parseKey(data)
		case unix.WGDEVICE_A_LISTEN_PORT:
			if p := int(native16(data)); p != 0 {
				dev.ListenPort = &p
			}
		case unix.WGDEVICE_A_FWMARK:
			if m := native32(data); m != 0 {
				dev.FwMark = &m
			}
		case unix.WGDEVICE_A_PEERS:
			for _, peer := range attributes(data) {
				p := parsePeer(peer, zone)
				if n := len(dev.Peers); n > 0 && dev.Peers[n-1].PublicKey == p.PublicKey {
					dev.Peers[n-1].AllowedIPs = append(dev.Peers[n-1].AllowedIPs, p.AllowedIPs...)
				} else {
					dev.Peers = append(dev.Peers, p)
				}
			}
		}
	}
}

// parseKey is nil for a key of zeros: none.
func parseKey(b []byte) *confparse.Key {
	var k confparse.Key
	if copy(k[:], b); k == (confparse.Key{}) {
		return nil
	}
	return &k
}

func parsePeer(b []byte, zone func(uint32) string) confparse.Peer {
	p := confparse.Peer{ReplaceAllowedIPs: true, AllowedIPs: []confparse.AllowedIP{}}
	for typ, data := range attributes(b) {
		switch typ {
		case unix.WGPEER_A_PUBLIC_KEY:
			copy(p.PublicKey[:], data)
		case unix.WGPEER_A_PRESHARED_KEY:
			p.PresharedKey = parseKey(data)
		case unix.WGPEER_A_ENDPOINT:
			p.Endpoint = toEndpoint(parseSockaddr(data, zone))
		case unix.WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL:
			if t := native16(data); t != 0 {
				p.Keepalive = &t
			}
		case unix.WGPEER_A_ALLOWEDIPS:
			for _, ip := range attributes(data) {
				var a netip.Addr
				bits := 0
				for typ, data := range attributes(ip) {
					switch typ {
					case unix.WGALLOWEDIP_A_IPADDR:
						a, _ = netip.AddrFromSlice(data)
					case unix.WGALLOWEDIP_A_CIDR_MASK:
						bits = int(data[0])
					}
				}
				p.AllowedIPs = append(p.AllowedIPs, confparse.AllowedIP{Prefix: netip.PrefixFrom(a, bits)})
			}
		}
	}
	return p
}

func parseSockaddr(b []byte, zone func(uint32) string) netip.AddrPort {
	switch len(b) {
	case unix.SizeofSockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:]))
	case unix.SizeofSockaddrInet6:
		a := netip.AddrFrom16([16]byte(b[8:24]))
		if scope := native32(b[24:]); scope != 0 {
			a = a.WithZone(zone(scope))
		}
		return netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[2:]))
	}
	return netip.AddrPort{}
}

// toEndpoint is nil for none.
func toEndpoint(a netip.AddrPort) *confparse.Endpoint {
	if !a.IsValid() {
		return nil
	}
	return &confparse.Endpoint{Host: a.Addr().String(), Port: strconv.Itoa(int(a.Port())), Addr: a}
}
