package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"wg-quickns/confparse"
	"wg-quickns/internal/facts"
)

// Kinds of steps, as the journal spells them.
const (
	KindLink   = "link"
	KindLinkUp = "linkup"
	KindAddr   = "addr"
	KindRoute  = "route"
	KindRule   = "rule"
	KindWG     = "wg"
	KindFwMark = "fwmark"
	KindNft    = "nft"
	KindSysctl = "sysctl"
	KindDNS    = "dns"
	KindHook   = "hook"
	KindNetns  = "netns"
	KindResolv = "resolv"
	KindVia    = "via"
	// KindKillSwitch is a KillSwitch.
	KindKillSwitch = "killswitch"
)

// Link creates the tunnel's interface, or deletes it.
type Link struct {
	Name   string `json:"name"`
	Delete bool   `json:"delete,omitempty"`
	// Index is the interface to delete; 0 deletes the WireGuard interface of that name.
	Index int `json:"index,omitempty"`
	// Userspace is the program that serves the interface, "" for the kernel.
	Userspace string `json:"userspace,omitempty"`
	// Birth is the namespace that the interface is created in, and its UDP socket
	// stays in, on its way to the step's own; nil: the step's own.
	Birth *NS `json:"birth,omitempty"`
}

func (Link) Kind() string { return KindLink }

func (s Link) Commands() []string {
	if s.Delete {
		return []string{"ip link delete dev " + s.Name}
	}
	return []string{"ip link add dev " + s.Name + " type wireguard"}
}

// LinkUp sets the MTU and brings the interface up, in one request.
type LinkUp struct {
	Name string `json:"name"`
	MTU  int    `json:"mtu"`
}

func (LinkUp) Kind() string { return KindLinkUp }

func (s LinkUp) Commands() []string {
	return []string{fmt.Sprintf("ip link set mtu %d up dev %s", s.MTU, s.Name)}
}

// Prefix is an address or a route's destination; Text is how the command line spells it.
type Prefix struct {
	Prefix netip.Prefix `json:"prefix"`
	Text   string       `json:"text,omitempty"`
}

func (p Prefix) String() string {
	if p.Text != "" {
		return p.Text
	}
	return p.Prefix.String()
}

// Family is ip(8)'s flag for the prefix's address family.
func (p Prefix) Family() string { return family(p.Prefix.Addr().Is6()) }

func family(v6 bool) string {
	if v6 {
		return "-6"
	}
	return "-4"
}

// Addr puts addresses on an interface (or takes them away), as one batch.
type Addr struct {
	Link   string `json:"link"`
	Delete bool   `json:"delete,omitempty"`
	// NoPrefixRoute keeps the kernel from adding the subnet's route to table
	// main (IFA_F_NOPREFIXROUTE of linux/if_addr.h).
	NoPrefixRoute bool     `json:"noPrefixRoute,omitempty"`
	List          []Prefix `json:"list"`
}

func (Addr) Kind() string { return KindAddr }

func (s Addr) Commands() []string {
	out := make([]string, len(s.List))
	for i, p := range s.List {
		out[i] = fmt.Sprintf("ip %s address %s %s dev %s", p.Family(), verb(s.Delete), p, s.Link)
		if s.NoPrefixRoute {
			out[i] += " noprefixroute"
		}
	}
	return out
}

func verb(del bool) string {
	if del {
		return "delete"
	}
	return "add"
}

// Route adds routes by an interface to one table (or deletes them), as one batch.
type Route struct {
	Link   string `json:"link"`
	Delete bool   `json:"delete,omitempty"`
	Table  uint32 `json:"table,omitempty"` // 0: main
	// TableText is how the command line spells the table; "" leaves it out.
	TableText string   `json:"tableText,omitempty"`
	Metric    uint32   `json:"metric,omitempty"` // 0: the kernel's own, 0 in IPv4 and 1024 in IPv6
	List      []Prefix `json:"list"`
	// Replace takes the place of a route of that metric, in one request.
	Replace bool `json:"replace,omitempty"`
	// Unreachable is for routes that lead nowhere, which do not go with the Link.
	Unreachable bool `json:"unreachable,omitempty"`
}

func (Route) Kind() string { return KindRoute }

func (s Route) Commands() []string {
	do, what, tail := verb(s.Delete), "", " dev "+s.Link
	if s.Replace {
		do = "replace"
	}
	if s.Unreachable {
		what, tail = "unreachable ", ""
	}
	if s.TableText != "" {
		tail += " table " + s.TableText
	}
	if s.Metric != 0 {
		tail += fmt.Sprintf(" metric %d", s.Metric)
	}
	out := make([]string, len(s.List))
	for i, p := range s.List {
		out[i] = "ip " + p.Family() + " route " + do + " " + what + p.String() + tail
	}
	return out
}

// Via adds one route that is not by the tunnel: to an endpoint, or one that was
// there before. Or it deletes it.
type Via struct {
	Route  facts.Route `json:"route"` // with its Way
	Delete bool        `json:"delete,omitempty"`
	// Replace takes the place of a route of that metric, in one request.
	Replace bool `json:"replace,omitempty"`
	// Restore puts back what was there, as far as it still makes sense: not where
	// its interface is gone or down, its gateway out of reach, or another route of
	// its metric there, but for one by the interface Instead, whose place it takes.
	Restore bool   `json:"restore,omitempty"`
	Instead string `json:"instead,omitempty"`
}

func (Via) Kind() string { return KindVia }

func (s Via) Commands() []string {
	do := verb(s.Delete)
	if s.Replace || s.Restore && s.Instead != "" {
		do = "replace"
	}
	r := s.Route
	c := "ip " + family(r.Dst.Addr().Is6()) + " route " + do + " " + r.Dst.String() + " " + r.Way.Text
	if r.Table != TableMain && r.Table != 0 {
		c += fmt.Sprintf(" table %d", r.Table)
	}
	if r.Metric != 0 {
		c += fmt.Sprintf(" metric %d", r.Metric)
	}
	return []string{c}
}

// Takes says that doing a step takes something away, so that it is done when that
// is not there.
func Takes(s Step) bool {
	switch s := s.(type) {
	case Via:
		return s.Delete
	case Service:
		return !s.Start
	case Client:
		return !s.Start
	}
	return false
}

// Rule adds one routing rule, or deletes it. Priority is always given: the plan
// chooses what the kernel would have chosen, so that it is known before it is made.
type Rule struct {
	IPv6     bool   `json:"ipv6,omitempty"`
	Delete   bool   `json:"delete,omitempty"`
	Priority uint32 `json:"priority"`
	// NotFwMark is `not fwmark M`; 0 matches every packet.
	NotFwMark uint32       `json:"notFwmark,omitempty"`
	To        netip.Prefix `json:"to,omitzero"` // zero: all
	Table     uint32       `json:"table"`       // 254: main
	// SuppressPrefixLen is suppress_prefixlength, -1 for none.
	SuppressPrefixLen int `json:"suppressPrefixlength"`
	// ShowPriority writes the priority into the command line.
	ShowPriority bool `json:"showPriority,omitempty"`
}

// TableMain is RT_TABLE_MAIN of linux/rtnetlink.h.
const TableMain = 254

func (Rule) Kind() string { return KindRule }

func (s Rule) Commands() []string {
	var b strings.Builder
	fmt.Fprintf(&b, "ip %s rule %s", family(s.IPv6), verb(s.Delete))
	if s.To.IsValid() {
		fmt.Fprintf(&b, " to %s", s.To)
	}
	if s.NotFwMark != 0 && !s.Delete {
		fmt.Fprintf(&b, " not fwmark %d", s.NotFwMark)
	}
	if s.Table == TableMain {
		b.WriteString(" table main")
	} else {
		fmt.Fprintf(&b, " table %d", s.Table)
	}
	if s.SuppressPrefixLen >= 0 {
		fmt.Fprintf(&b, " suppress_prefixlength %d", s.SuppressPrefixLen)
	}
	if s.ShowPriority {
		fmt.Fprintf(&b, " pref %d", s.Priority)
	}
	return []string{b.String()}
}

// WG applies wg's part of the config to the interface additively, as `wg addconf`.
type WG struct {
	Link   string            `json:"link"`
	Device *confparse.Device `json:"-"` // holds keys: never encoded
	// Sync says that Device is the difference to what runs, and Remove the peers to
	// be taken away, as of `wg syncconf`.
	Sync   bool            `json:"sync,omitempty"`
	Remove []confparse.Key `json:"-"`
}

func (WG) Kind() string { return KindWG }

func (s WG) Commands() []string {
	if s.Sync {
		return []string{"wg syncconf " + s.Link + " /dev/fd/63"}
	}
	return []string{"wg addconf " + s.Link + " /dev/fd/63"}
}

// FwMark sets the device's fwmark.
type FwMark struct {
	Link string `json:"link"`
	Mark uint32 `json:"mark"`
}

func (FwMark) Kind() string { return KindFwMark }

func (s FwMark) Commands() []string {
	return []string{fmt.Sprintf("wg set %s fwmark %d", s.Link, s.Mark)}
}

// Nft adds the table wg-quick-LINK of one family (or deletes those of both):
// what is addressed to the tunnel but comes from elsewhere is dropped, and the
// mark of the tunnel's own UDP is kept in conntrack for replies.
type Nft struct {
	Link   string       `json:"link"`
	Delete bool         `json:"delete,omitempty"`
	IPv6   bool         `json:"ipv6,omitempty"`
	Mark   uint32       `json:"mark,omitempty"`  // 0: none is kept
	Addrs  []netip.Addr `json:"addrs,omitempty"` // the tunnel's addresses of that family
	// IPTables says that the kernel has no nf_tables: the same rules are made by
	// iptables-restore, marked by Comment.
	IPTables bool `json:"iptables,omitempty"`
	// Handle is the kernel's handle of the table, 0 when not known.
	Handle uint64 `json:"handle,omitempty"`
}

func (Nft) Kind() string { return KindNft }

func (s Nft) Commands() []string {
	switch {
	case !s.IPTables:
		return []string{"nft -f /dev/fd/63"}
	case s.IPv6:
		return []string{"ip6tables-restore -n"}
	}
	return []string{"iptables-restore -n"}
}

// TableName is the nft table's name.
func (s Nft) TableName() string { return "wg-quick-" + s.Link }

// Comment marks the same rules where they are made by iptables-restore.
func (s Nft) Comment() string { return "wg-quick(8) rule for " + s.Link }

// Sysctl sets one sysctl.
type Sysctl struct {
	Name  string `json:"name"` // with dots, as net.ipv4.conf.all.src_valid_mark
	Value string `json:"value"`
}

func (Sysctl) Kind() string { return KindSysctl }

func (s Sysctl) Commands() []string {
	return []string{fmt.Sprintf("sysctl -q %s=%s", s.Name, s.Value)}
}

// DNS gives the interface's servers and search domains to resolvconf(8), or to
// systemd-resolved(8), or takes them back.
type DNS struct {
	Link    string   `json:"link"`
	Delete  bool     `json:"delete,omitempty"`
	Prefix  string   `json:"prefix,omitempty"` // of resolvconf's interface-order, with its dot: "tun."
	Servers []string `json:"servers,omitempty"`
	Search  []string `json:"search,omitempty"`
	// Index is the interface's, by which systemd-resolved is told over D-Bus;
	// 0: resolvconf is.
	Index int `json:"index,omitempty"`
}

func (DNS) Kind() string { return KindDNS }

func (s DNS) Commands() []string {
	switch {
	case s.Index != 0 && s.Delete:
		return []string{"resolvectl revert " + s.Link}
	case s.Index != 0:
		return []string{
			"resolvectl dns " + s.Link + " " + strings.Join(s.Servers, " "),
			"resolvectl domain " + s.Link + " " + strings.Join(append(slices.Clone(s.Search), "~."), " "),
		}
	case s.Delete:
		return []string{"resolvconf -d " + s.Prefix + s.Link + " -f"}
	}
	return []string{"resolvconf -a " + s.Prefix + s.Link + " -m 0 -x"}
}

// Hook runs one shell command of the config. `%i` is already replaced.
type Hook struct {
	Command string              `json:"command"`
	Phase   string              `json:"phase"` // PreUp, PostUp, PreDown, PostDown
	Vars    map[string]string   `json:"vars,omitempty"`
	Arrays  map[string][]string `json:"arrays,omitempty"`
	Env     map[string]string   `json:"env,omitempty"` // exported, beside PATH and LC_ALL
}

func (Hook) Kind() string { return KindHook }

func (s Hook) Commands() []string { return []string{s.Command} }

// MarshalText writes the prefix alone where Text says nothing more.
func (p Prefix) MarshalText() ([]byte, error) {
	if p.Text != "" {
		return []byte(p.Text), nil
	}
	return p.Prefix.MarshalText()
}

// UnmarshalText reads an address, which stands for its full length, or a prefix.
func (p *Prefix) UnmarshalText(b []byte) error {
	s := string(b)
	if a, err := netip.ParseAddr(s); err == nil {
		*p = Prefix{netip.PrefixFrom(a, a.BitLen()), s}
		return nil
	}
	x, err := netip.ParsePrefix(s)
	if err != nil {
		return err
	}
	*p = Prefix{Prefix: x}
	if x.String() != s {
		p.Text = s
	}
	return nil
}

// Netns creates the named namespace /run/netns/NAME with its lo up, or deletes it.
type Netns struct {
	Name   string `json:"name"`
	Delete bool   `json:"delete,omitempty"`
	// ID is the identity of the namespace to delete, "" when it is not known.
	ID string `json:"id,omitempty"`
	// Shared says that another tunnel has made it: nothing is done.
	Shared bool `json:"shared,omitempty"`
}

func (Netns) Kind() string { return KindNetns }

func (s Netns) Commands() []string {
	switch {
	case s.Shared:
		return nil
	case s.Delete:
		return []string{"ip netns delete " + s.Name}
	}
	return []string{"ip netns add " + s.Name, "ip -n " + s.Name + " link set lo up"}
}

// Resolv writes a resolv.conf(5) of a namespace, or puts back what was there.
type Resolv struct {
	Path    string   `json:"path"` // /etc/netns/NAME/resolv.conf
	Servers []string `json:"servers,omitempty"`
	Search  []string `json:"search,omitempty"`
	Delete  bool     `json:"delete,omitempty"`
	// Old is what Delete puts back; nil: there was no file.
	Old *string `json:"old,omitempty"`
	// MadeDirs are the folders that were made for it, innermost first.
	MadeDirs []string `json:"madeDirs,omitempty"`
	// InPlace writes into the file instead of renaming one over it: a container's
	// is a mount point.
	InPlace bool `json:"inPlace,omitempty"`
	// Shared says that others write the file too: Delete puts back what was there
	// whoever wrote last, and a step with Old leaves the file to them as it is.
	Shared bool `json:"shared,omitempty"`
	// Claims is where several tunnels that want the file are kept; "": beside its
	// folder, which a container must not have.
	Claims string `json:"claims,omitempty"`
}

func (Resolv) Kind() string { return KindResolv }

func (s Resolv) Commands() []string {
	switch {
	case !s.Delete && s.Shared && s.Old != nil:
		return nil
	case !s.Delete:
		return []string{"write " + s.Path}
	case s.Old != nil:
		return []string{"restore " + s.Path}
	}
	return []string{"rm " + s.Path}
}

// KillSwitch lets nothing leave the namespace but through the tunnel, beside lo,
// DHCP and neighbour discovery, or ends that. Several tunnels share its nft
// tables: what is one's way out is open to all, and the last takes them away.
type KillSwitch struct {
	Link   string `json:"link"`
	Delete bool   `json:"delete,omitempty"`
	// Mark is the fwmark of the tunnel's own encrypted packets, which leave by any
	// link; 0: none leave here.
	Mark uint32 `json:"mark,omitempty"`
	// Addrs are the tunnel's: ARP requests for them are not answered on other links.
	Addrs []netip.Addr `json:"addrs,omitempty"`
}

func (KillSwitch) Kind() string { return KindKillSwitch }

func (s KillSwitch) Commands() []string {
	if s.Delete {
		return []string{"nft -f /dev/fd/63 # kill switch off"}
	}
	return []string{"nft -f /dev/fd/63 # kill switch on"}
}
