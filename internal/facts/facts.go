// Package facts holds what was read from the system, as plain types: the input
// of the strategies beside the Config. It reads nothing itself.
package facts

import (
	"bytes"
	"net/netip"
)

// Facts is one reading of one network namespace.
type Facts struct {
	Device Device  // the tunnel as the kernel (or the userspace daemon) has it
	Links  []Link  // all links of the namespace
	Addrs  []Addr  // addresses of the tunnel
	Routes []Route // all routes of both families, table local left out
	Rules  []Rule  // all rules of both families, in the kernel's order
	IPv6   bool    // the namespace has IPv6 at all

	SrcValidMark int // net.ipv4.conf.all.src_valid_mark
	// SrcValidMarkHome is the value other tunnels' records will put back, "" if none will.
	SrcValidMarkHome string
	// Displaced are the routes that other tunnels' records will put back.
	Displaced []Route
	// Kept has the host routes to endpoints that other tunnels' records speak of.
	Kept map[netip.Prefix]bool

	PathMTU    map[netip.Addr]int // per endpoint: route's mtu metric, else the device's MTU
	DefaultMTU int                // same for the IPv4 default route; 0: there is none
	TableNames map[string]uint32  // /etc/iproute2/rt_tables and rt_tables.d
	NFTables   bool               // the kernel takes nf_tables requests
}

// Device is the WireGuard side of the tunnel.
type Device struct {
	Name       string
	Index      int
	Kernel     bool // false: a userspace implementation serves it
	FwMark     uint32
	ListenPort int
	Peers      []Peer
}

// Peer is one peer as the device has it. Keys are left out: no strategy needs them.
type Peer struct {
	Endpoint   netip.AddrPort // zero: none
	AllowedIPs []netip.Prefix
}

// Link is one network interface.
type Link struct {
	Name  string
	Index int
	MTU   int
	Up    bool
	// Running says that it can carry packets now: it has a carrier (IFF_RUNNING).
	Running bool
	Type    string // IFLA_INFO_KIND: "wireguard", "veth", ...; "" for hardware
}

// Addr is one address of the tunnel.
type Addr struct {
	Prefix netip.Prefix // address with its length, not masked
}

// Route is one route. Multipath routes carry the first hop's device.
type Route struct {
	Dst      netip.Prefix `json:"dst"` // the family's /0 for a default route
	Table    uint32       `json:"table"`
	Index    int          `json:"index,omitempty"` // output interface, 0: none
	Gateway  netip.Addr   `json:"gateway,omitzero"`
	Metric   uint32       `json:"metric,omitempty"` // rtm priority
	MTU      int          `json:"mtu,omitempty"`
	Protocol int          `json:"protocol"`
	Type     int          `json:"type"` // RTN_UNICAST and so on
	// Way is where it leads in every detail, nil where that was not asked for.
	Way *Way `json:"way,omitempty"`
}

// Way is where a route leads, exactly as the kernel has it, so that the same or
// another destination can be routed the same way again.
type Way struct {
	Text string `json:"text"` // as ip-route(8) spells it: "via 192.0.2.1 dev eth0"
	TOS  uint8  `json:"tos,omitempty"`
	// SrcLen is the length of the source prefix that IPv6 routes may select by.
	SrcLen  uint8  `json:"srcLen,omitempty"`
	Scope   uint8  `json:"scope,omitempty"`
	Flags   uint32 `json:"flags,omitempty"`   // of struct rtmsg
	Expires uint32 `json:"expires,omitempty"` // seconds that it lives, 0: forever
	// Raw is the route's rtnetlink attributes but for destination, table and metric.
	Raw []byte `json:"raw"`
}

// Slot is what a table has one route for, unless more are appended.
type Slot struct {
	Dst         netip.Prefix
	Table       uint32
	Metric      uint32
	TOS, SrcLen uint8
}

// Slot is the route's place in its table, with the kernel's defaults filled in.
func (r Route) Slot() Slot {
	s := Slot{Dst: r.Dst, Table: r.Table, Metric: r.Metric}
	if s.Table == 0 {
		s.Table = 254 // RT_TABLE_MAIN of linux/rtnetlink.h
	}
	if s.Metric == 0 && r.Dst.Addr().Is6() {
		s.Metric = 1024 // IP6_RT_PRIO_USER, net/ip6_route.h
	}
	if r.Way != nil {
		s.TOS, s.SrcLen = r.Way.TOS, r.Way.SrcLen
	}
	return s
}

// Same says whether two routes with a Way are one route. Who made it does not matter.
func (r Route) Same(o Route) bool {
	return r.Slot() == o.Slot() && r.Type == o.Type && r.Way != nil && o.Way != nil &&
		bytes.Equal(r.Way.Raw, o.Way.Raw) && r.Way.Scope == o.Way.Scope && r.Way.Flags == o.Way.Flags
}

// Rule is one routing rule.
type Rule struct {
	IPv6              bool
	Priority          uint32
	Invert            bool
	FwMark            uint32
	FwMask            uint32
	Table             uint32
	SuppressPrefixLen int          // -1: none
	Src, Dst          netip.Prefix // zero: all
	// Other says that it selects by something else as well: an interface, a port, a user.
	Other bool
}
