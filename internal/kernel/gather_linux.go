package kernel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

// Asked is what is read beyond the cheap.
type Asked struct {
	PathMTU bool // the paths' MTUs: one question per endpoint
	Ways    bool // the Way of others' routes: there may be many
	// Absent reads what there is without the link, as anybody may: the device is
	// left out, and where only root could tell, nf_tables are taken to be there.
	Absent bool
	// Device is what WireGuard said of the same link in a reading since which
	// nothing configured it, not to be read again: there may be many peers.
	Device *facts.Device
}

// Gather reads what a strategy needs to know of ns, for the WireGuard interface
// link: all that GatherLink does, its addresses, the rules and the firewall. A read
// that fails is an error; only IPv6 and nf_tables may be missing.
func (d *Doer) Gather(ctx context.Context, ns plan.NS, link string, ask Asked) (*facts.Facts, error) {
	f, err := d.GatherLink(ctx, ns, link, ask)
	if err != nil {
		return nil, err
	}
	sp, err := d.space(ns)
	if err != nil {
		return nil, err
	}
	if !ask.Absent {
		addrs, err := sp.addrs(facts.Link{Name: link, Index: f.Device.Index})
		if err != nil {
			return nil, err
		}
		for _, p := range addrs {
			f.Addrs = append(f.Addrs, facts.Addr{Prefix: p})
		}
	}
	if f.IPv6, err = sp.hasIPv6(); err != nil {
		return nil, err
	}
	if f.Rules, err = sp.rules(false); err != nil {
		return nil, err
	}
	if f.IPv6 {
		six, err := sp.rules(true)
		if err != nil {
			return nil, err
		}
		f.Rules = append(f.Rules, six...)
	}
	value, err := sp.sysctl("net.ipv4.conf.all.src_valid_mark")
	if err == nil {
		f.SrcValidMark, err = strconv.Atoi(value)
	}
	if err != nil {
		return nil, err
	}
	if f.TableNames, err = tableNames(rtTables); err != nil {
		return nil, err
	}
	_, f.NFTables, err = sp.firewalls(ctx, plan.Nft{Link: link})
	if ask.Absent && errors.Is(err, fs.ErrPermission) {
		f.NFTables, err = true, nil
	}
	return f, err
}

// GatherLink reads what the addresses and the MTU of a WireGuard interface follow
// from: itself, the links and the routes of ns. A read that fails is an error.
func (d *Doer) GatherLink(ctx context.Context, ns plan.NS, link string, ask Asked) (*facts.Facts, error) {
	sp, err := d.space(ns)
	if err != nil {
		return nil, err
	}
	f := &facts.Facts{}
	if f.Links, err = sp.links(); err != nil {
		return nil, err
	}
	i := slices.IndexFunc(f.Links, func(l facts.Link) bool { return l.Name == link })
	if i < 0 && !ask.Absent {
		return nil, noLink(link)
	}
	var l facts.Link
	if i >= 0 {
		l = f.Links[i]
	}
	switch {
	case ask.Absent:
	case ask.Device != nil && ask.Device.Index == l.Index:
		f.Device = *ask.Device
	default:
		dev, kernel, err := sp.device(ctx, link)
		if err != nil {
			return nil, err
		}
		f.Device = toFacts(dev, kernel, l)
	}
	var ways map[int]string
	if ask.Ways {
		ways = map[int]string{0: ""} // routes that lead nowhere have none
		for _, l := range f.Links {
			if l.Index != f.Device.Index {
				ways[l.Index] = l.Name
			}
		}
	}
	if f.Routes, err = sp.routes(ways); err != nil {
		return nil, err
	}
	f.DefaultMTU = defaultMTU(f)
	if ask.PathMTU {
		var to []netip.Addr
		for _, p := range f.Device.Peers {
			to = append(to, p.Endpoint.Addr())
		}
		f.PathMTU, err = sp.pathMTU(ctx, to, f.Links)
	}
	return f, err
}

// PathMTU reads the MTU towards each address as `ip route get` shows it: the
// route's own, else its device's. An address without a route has none.
func (d *Doer) PathMTU(ctx context.Context, ns plan.NS, to []netip.Addr) (map[netip.Addr]int, error) {
	sp, err := d.space(ns)
	if err != nil {
		return nil, err
	}
	links, err := sp.links()
	if err != nil {
		return nil, err
	}
	return sp.pathMTU(ctx, to, links)
}

func (sp *space) pathMTU(ctx context.Context, to []netip.Addr, links []facts.Link) (map[netip.Addr]int, error) {
	mtus := map[netip.Addr]int{}
	var ask []netip.Addr
	for _, a := range to {
		// wg-quick too leaves out an address with a zone.
		if _, twice := mtus[a]; !twice && a.IsValid() && a.Zone() == "" {
			mtus[a] = 0
			ask = append(ask, a)
		}
	}
	put := func(m *message, i int) (typ, flags uint16) { return m.putRouteGet(ask[i]) }
	answered := 0
	_, err := sp.rt.exchange(ctx, len(ask), put, func(i int, body []byte, err error) error {
		answered++
		switch {
		case err == nil:
		case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), // no route, unreachable
			errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EAGAIN), // prohibit, blackhole, throw
			errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EOPNOTSUPP): // no IPv6
			delete(mtus, ask[i])
			return nil
		default:
			return fmt.Errorf("read route to %s: %w", ask[i], err)
		}
		r, _ := parseRoute(family(ask[i]), body)
		mtu := routeMTU(r, links)
		if mtu == 0 {
			delete(mtus, ask[i])
		} else {
			mtus[ask[i]] = mtu
		}
		return nil
	})
	if err == nil && answered < len(ask) {
		err = fmt.Errorf("read routes to endpoints: %w", unix.ENOBUFS)
	}
	return mtus, err
}

// defaultMTU is the MTU of the route that `ip route show default` prints first:
// the dump has the lowest metric first.
func defaultMTU(f *facts.Facts) int {
	for _, r := range f.Routes {
		if r.Table != plan.TableMain || !r.Dst.Addr().Is4() || r.Dst.Bits() != 0 {
			continue
		}
		return routeMTU(r, f.Links)
	}
	return 0
}

// routeMTU is the route's own MTU, else its device's, else 0.
func routeMTU(r facts.Route, links []facts.Link) int {
	if r.MTU != 0 {
		return r.MTU
	}
	for _, l := range links {
		if l.Index == r.Index {
			return l.MTU
		}
	}
	return 0
}

// hasIPv6 is false when the kernel has none, or was booted with ipv6.disable=1.
func (sp *space) hasIPv6() (bool, error) {
	err := sp.inside(func() error {
		_, err := os.Stat("/proc/thread-self/net/if_inet6")
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for IPv6: %w", err)
	}
	return true, nil
}

// routes lists every route of both families outside of table local, with the Way
// of those by the interfaces in ways, which has their names. It reads them itself:
// a table may be long, and through the library each route costs four allocations.
func (sp *space) routes(ways map[int]string) ([]facts.Route, error) {
	return sp.routesWith(func(r facts.Route, body []byte) *facts.Way {
		if _, ok := ways[r.Index]; ok {
			return parseWay(body, ways)
		}
		return nil
	})
}

// routesWith is routes with whatever Way is made of a route's message.
func (sp *space) routesWith(way func(r facts.Route, body []byte) *facts.Way) (list []facts.Route, err error) {
	for _, fam := range []byte{unix.AF_INET, unix.AF_INET6} {
		mark := len(list)
		err := dump("routes", func() error {
			list = list[:mark]
			return sp.rt.dump(func(m *message) uint16 {
				m.bytes(fam, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
				return unix.RTM_GETROUTE
			}, func(body []byte) error {
				// A cached copy is no entry of a table.
				if r, ok := parseRoute(fam, body); ok && r.Table != unix.RT_TABLE_LOCAL && native32(body[8:])&unix.RTM_F_CLONED == 0 {
					r.Way = way(r, body)
					list = append(list, r)
				}
				return nil
			})
		})
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

// parseRoute reads a struct rtmsg and its attributes. ok is false for another
// family's: a kernel without IPv6 answers with IPv4.
func parseRoute(fam byte, b []byte) (r facts.Route, ok bool) {
	if len(b) < unix.SizeofRtMsg || b[0] != fam {
		return r, false
	}
	r.Table, r.Protocol, r.Type = uint32(b[4]), int(b[5]), int(b[7])
	dst := netip.IPv4Unspecified()
	if fam == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	for typ, data := range attributes(b[unix.SizeofRtMsg:]) {
		switch typ {
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(data)
		case unix.RTA_OIF:
			r.Index = int(native32(data))
		case unix.RTA_GATEWAY:
			r.Gateway, _ = netip.AddrFromSlice(data)
		case unix.RTA_VIA: // struct rtvia: a gateway of the other family
			r.Gateway, _ = netip.AddrFromSlice(data[min(2, len(data)):])
		case unix.RTA_PRIORITY:
			r.Metric = native32(data)
		case unix.RTA_TABLE:
			r.Table = native32(data)
		case unix.RTA_METRICS:
			r.MTU = parseMetrics(data)
		case unix.RTA_MULTIPATH: // struct rtnexthop, of which the first counts
			if len(data) < unix.SizeofRtNexthop {
				break
			}
			n := min(max(int(native16(data)), unix.SizeofRtNexthop), len(data))
			r.Index = int(native32(data[4:]))
			for typ, data := range attributes(data[unix.SizeofRtNexthop:n]) {
				if typ == unix.RTA_GATEWAY {
					r.Gateway, _ = netip.AddrFromSlice(data)
				}
			}
		}
	}
	r.Dst = netip.PrefixFrom(dst, int(b[1]))
	return r, true
}

func parseMetrics(b []byte) (mtu int) {
	for typ, data := range attributes(b) {
		if typ == unix.RTAX_MTU {
			mtu = int(native32(data))
		}
	}
	return mtu
}

func (sp *space) rules(v6 bool) (list []facts.Rule, err error) {
	fam := unix.AF_INET
	if v6 {
		fam = unix.AF_INET6
	}
	err = dump("rules", func() error {
		rs, err := sp.list.RuleList(fam)
		list = make([]facts.Rule, len(rs))
		for i, r := range rs {
			list[i] = facts.Rule{
				IPv6: v6, Priority: uint32(r.Priority), Invert: r.Invert, FwMark: r.Mark, Table: uint32(r.Table),
				SuppressPrefixLen: r.SuppressPrefixlen, Src: toPrefix(r.Src), Dst: toPrefix(r.Dst),
			}
			list[i].Other = r.IifName != "" || r.OifName != "" || r.Tos != 0 || r.Dport != nil || r.Sport != nil ||
				r.IPProto != 0 || r.UIDRange != nil || r.TunID != 0 || r.Goto >= 0
			if r.Mask != nil {
				list[i].FwMask = *r.Mask
			}
		}
		return err
	})
	return list, err
}

// rtTables is where iproute2 keeps the names of routing tables, the
// distribution's first: what comes later wins.
var rtTables = []string{
	"/usr/lib/iproute2/rt_tables", "/usr/lib/iproute2/rt_tables.d/*.conf",
	"/usr/share/iproute2/rt_tables", "/usr/share/iproute2/rt_tables.d/*.conf",
	"/etc/iproute2/rt_tables", "/etc/iproute2/rt_tables.d/*.conf",
}

// TableNames reads the names of routing tables, as ip-route(8) knows them.
func TableNames() (map[string]uint32, error) { return tableNames(rtTables) }

// tableNames reads files of lines "NUMBER NAME", as ip-route(8) does.
func tableNames(patterns []string) (map[string]uint32, error) {
	names := map[string]uint32{"default": unix.RT_TABLE_DEFAULT, "main": unix.RT_TABLE_MAIN, "local": unix.RT_TABLE_LOCAL}
	for _, p := range patterns {
		files, err := filepath.Glob(p)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			if err := readTableNames(file, names); err != nil {
				return nil, fmt.Errorf("read names of routing tables: %w", err)
			}
		}
	}
	return names, nil
}

func readTableNames(file string, names map[string]uint32) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		text, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.Fields(text)
		if len(words) < 2 {
			continue
		}
		if n, err := strconv.ParseUint(words[0], 0, 32); err == nil {
			names[words[1]] = uint32(n)
		}
	}
	return lines.Err()
}
