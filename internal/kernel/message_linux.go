package kernel

import (
	"encoding/binary"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

// message is a buffer of netlink messages under construction, in the layout of
// netlink(7) and rtnetlink(7).
type message struct{ b []byte }

func align(n int) int { return (n + 3) &^ 3 }

// header leaves room for a struct nlmsghdr and returns where.
func (m *message) header() int {
	start := len(m.b)
	m.b = append(m.b, make([]byte, headerSize)...)
	return start
}

func (m *message) finish(start int, typ, flags uint16, seq uint32) {
	h := m.b[start:]
	binary.NativeEndian.PutUint32(h, uint32(len(h)))
	binary.NativeEndian.PutUint16(h[4:], typ)
	binary.NativeEndian.PutUint16(h[6:], flags)
	binary.NativeEndian.PutUint32(h[8:], seq)
	m.pad()
}

func (m *message) addFlags(start int, flags uint16) {
	h := m.b[start+6:]
	binary.NativeEndian.PutUint16(h, binary.NativeEndian.Uint16(h)|flags)
}

func (m *message) pad() {
	for len(m.b)%4 != 0 {
		m.b = append(m.b, 0)
	}
}

func (m *message) bytes(b ...byte) { m.b = append(m.b, b...) }

func (m *message) uint32(v uint32) { m.b = binary.NativeEndian.AppendUint32(m.b, v) }

func (m *message) attr(typ uint16, data []byte) {
	m.b = binary.NativeEndian.AppendUint16(m.b, uint16(4+len(data)))
	m.b = binary.NativeEndian.AppendUint16(m.b, typ)
	m.b = append(m.b, data...)
	m.pad()
}

func (m *message) attr32(typ uint16, v uint32) {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], v)
	m.attr(typ, b[:])
}

func (m *message) attr16(typ uint16, v uint16) {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], v)
	m.attr(typ, b[:])
}

func (m *message) attrString(typ uint16, s string) {
	m.attr(typ, append([]byte(s), 0))
}

func (m *message) attrAddr(typ uint16, a netip.Addr) {
	if a.Is4() {
		b := a.As4()
		m.attr(typ, b[:])
		return
	}
	b := a.As16()
	m.attr(typ, b[:])
}

// nested writes an attribute whose payload is what fill writes.
func (m *message) nested(typ uint16, fill func()) {
	start := len(m.b)
	m.bytes(0, 0, 0, 0)
	fill()
	binary.NativeEndian.PutUint16(m.b[start:], uint16(len(m.b)-start))
	binary.NativeEndian.PutUint16(m.b[start+2:], typ)
}

// attributes walks the netlink attributes in b.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= 4 {
			n := int(binary.NativeEndian.Uint16(b))
			if n < 4 || n > len(b) {
				return
			}
			typ := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(typ, b[4:n]) {
				return
			}
			b = b[min(align(n), len(b)):]
		}
	}
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

const create = unix.NLM_F_CREATE | unix.NLM_F_EXCL

// putIfinfo writes a struct ifinfomsg.
func (m *message) putIfinfo(index int, flags, change uint32) {
	m.bytes(unix.AF_UNSPEC, 0, 0, 0)
	m.uint32(uint32(index))
	m.uint32(flags)
	m.uint32(change)
}

// skipStats is RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h.
const skipStats = 1 << 3

// putLinkGet asks for one link by its index, or where that is 0 by its name.
func (m *message) putLinkGet(index int, name string) (typ, flags uint16) {
	m.putIfinfo(index, 0, 0)
	m.attr32(unix.IFLA_EXT_MASK, skipStats)
	if index == 0 {
		m.attrString(unix.IFLA_IFNAME, name)
	}
	return unix.RTM_GETLINK, 0
}

func (m *message) putLinkDump() (typ uint16) {
	m.putIfinfo(0, 0, 0)
	m.attr32(unix.IFLA_EXT_MASK, skipStats)
	return unix.RTM_GETLINK
}

func (m *message) putLinkAdd(name string) (typ, flags uint16) {
	m.putIfinfo(0, 0, 0)
	m.attrString(unix.IFLA_IFNAME, name)
	m.nested(unix.IFLA_LINKINFO, func() { m.attr(unix.IFLA_INFO_KIND, []byte("wireguard")) })
	return unix.RTM_NEWLINK, create
}

func (m *message) putLinkDelete(index int) (typ, flags uint16) {
	m.putIfinfo(index, 0, 0)
	return unix.RTM_DELLINK, 0
}

func (m *message) putLinkUp(index, mtu int) (typ, flags uint16) {
	m.putIfinfo(index, unix.IFF_UP, unix.IFF_UP)
	m.attr32(unix.IFLA_MTU, uint32(mtu))
	return unix.RTM_NEWLINK, 0
}

// putAddr writes what `ip address add P dev LINK` sends: no broadcast address,
// and host scope for 127.0.0.0/8.
func (m *message) putAddr(index int, p netip.Prefix, noPrefixRoute, del bool) (typ, flags uint16) {
	a := p.Addr()
	scope := byte(unix.RT_SCOPE_UNIVERSE)
	if a.Is4() && a.IsLoopback() && !del {
		scope = unix.RT_SCOPE_HOST
	}
	m.bytes(family(a), byte(p.Bits()), 0, scope)
	m.uint32(uint32(index))
	m.attrAddr(unix.IFA_LOCAL, a)
	if del {
		return unix.RTM_DELADDR, 0
	}
	m.attrAddr(unix.IFA_ADDRESS, a)
	if noPrefixRoute {
		m.attr32(unix.IFA_FLAGS, unix.IFA_F_NOPREFIXROUTE)
	}
	return unix.RTM_NEWADDR, create
}

// putRoute writes what `ip route add P dev LINK table T metric M` sends: an IPv4
// route by a device has link scope, an IPv6 one none; the protocol is boot.
func (m *message) putRoute(index int, p netip.Prefix, s plan.Route) (typ, flags uint16) {
	a := p.Addr()
	scope, kind := byte(unix.RT_SCOPE_UNIVERSE), byte(unix.RTN_UNICAST)
	if s.Unreachable {
		kind = unix.RTN_UNREACHABLE
	} else if a.Is4() {
		scope = unix.RT_SCOPE_LINK
	}
	m.putRouteHead(facts.Route{Dst: p, Table: s.Table, Metric: s.Metric, Protocol: unix.RTPROT_BOOT, Type: int(kind)}, facts.Way{Scope: scope})
	if !s.Unreachable {
		m.attr32(unix.RTA_OIF, uint32(index))
	}
	switch {
	case s.Delete:
		return unix.RTM_DELROUTE, 0
	case s.Replace:
		return unix.RTM_NEWROUTE, unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	return unix.RTM_NEWROUTE, create
}

// putRouteHead writes a struct rtmsg, and the destination, table and metric of a route.
func (m *message) putRouteHead(r facts.Route, w facts.Way) {
	table, small := r.Table, byte(unix.RT_TABLE_UNSPEC)
	if table == 0 {
		table = plan.TableMain
	}
	if table < 256 {
		small = byte(table)
	}
	a := r.Dst.Addr()
	m.bytes(family(a), byte(r.Dst.Bits()), w.SrcLen, w.TOS, small, byte(r.Protocol), w.Scope, byte(r.Type))
	m.uint32(w.Flags)
	if r.Dst.Bits() > 0 {
		m.attrAddr(unix.RTA_DST, a)
	}
	if small == unix.RT_TABLE_UNSPEC {
		m.attr32(unix.RTA_TABLE, table)
	}
	if r.Metric != 0 {
		m.attr32(unix.RTA_PRIORITY, r.Metric)
	}
}

// putVia writes a route with every attribute that was read of it.
func (m *message) putVia(r facts.Route) {
	m.putRouteHead(r, *r.Way)
	m.b = append(m.b, r.Way.Raw...)
	m.pad()
	if r.Way.Expires != 0 {
		m.attr32(unix.RTA_EXPIRES, r.Way.Expires)
	}
}

// fibRuleInvert is FIB_RULE_INVERT of linux/fib_rules.h.
const fibRuleInvert = 2

// putRule writes what `ip rule add` sends. Like ip(8) it leaves FRA_PROTOCOL
// out, and gives no mask: the kernel then takes all ones.
func (m *message) putRule(r plan.Rule) (typ, flags uint16) {
	fam, bits := byte(unix.AF_INET), byte(0)
	if r.IPv6 {
		fam = unix.AF_INET6
	}
	if r.To.IsValid() {
		bits = byte(r.To.Bits())
	}
	small, invert := byte(unix.RT_TABLE_UNSPEC), uint32(0)
	if r.Table < 256 {
		small = byte(r.Table)
	}
	if r.NotFwMark != 0 {
		invert = fibRuleInvert
	}
	m.bytes(fam, bits, 0, 0, small, 0, 0, unix.FR_ACT_TO_TBL)
	m.uint32(invert)
	if bits > 0 {
		m.attrAddr(unix.FRA_DST, r.To.Addr())
	}
	m.attr32(unix.FRA_PRIORITY, r.Priority)
	if r.NotFwMark != 0 {
		m.attr32(unix.FRA_FWMARK, r.NotFwMark)
	}
	if small == unix.RT_TABLE_UNSPEC {
		m.attr32(unix.FRA_TABLE, r.Table)
	}
	if r.SuppressPrefixLen >= 0 {
		m.attr32(unix.FRA_SUPPRESS_PREFIXLEN, uint32(r.SuppressPrefixLen))
	}
	if r.Delete {
		return unix.RTM_DELRULE, 0
	}
	return unix.RTM_NEWRULE, create
}

// putRouteGet asks for the route to a, as `ip route get` does.
func (m *message) putRouteGet(a netip.Addr) (typ, flags uint16) {
	m.bytes(family(a), byte(a.BitLen()), 0, 0, 0, 0, 0, 0)
	m.uint32(unix.RTM_F_LOOKUP_TABLE)
	m.attrAddr(unix.RTA_DST, a)
	return unix.RTM_GETROUTE, 0
}

// native32 reads a number of an attribute, 0 when it is cut short.
func native32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

func native16(b []byte) uint16 {
	if len(b) < 2 {
		return 0
	}
	return binary.NativeEndian.Uint16(b)
}
