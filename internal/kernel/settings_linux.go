package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

// Settings fills in the Settings of interfaces of ns. It must be asked while they
// are up: taking them down loses most of it.
//
// Routes that a router advertised are read too, with the time that they have left:
// the kernel would wait a second or more to ask for them again, and what it is then
// told takes their place. The kernel's own link-local addresses are read as well,
// for where it would choose another; as a rule it has made them again before Settle
// comes to them. Temporary IPv6 addresses are not, as nobody but the kernel can make them.
func (d *Doer) Settings(ctx context.Context, ns plan.NS, links []facts.Interface) error {
	sp, err := d.space(ns)
	if err != nil {
		return err
	}
	now, err := uptime()
	if err != nil {
		return err
	}
	at := map[int]*facts.Settings{}
	for i := range links {
		links[i].Settings = facts.Settings{Read: now}
		at[links[i].Index] = &links[i].Settings
	}
	all, err := sp.links()
	if err != nil {
		return err
	}
	names := map[int]string{0: ""}
	for _, l := range all {
		names[l.Index] = l.Name
	}
	for i := range links {
		for _, index := range []int{links[i].Master, links[i].Lower, primary(links[i].Info)} {
			told(&links[i], index, names)
		}
	}
	if err := sp.readRoutes(links, names); err != nil {
		return err
	}
	for _, read := range []struct {
		what string
		typ  uint16
		head []byte // of the question
		into func(body []byte)
	}{
		{"addresses", unix.RTM_GETADDR, make([]byte, unix.SizeofIfAddrmsg), func(b []byte) {
			if s := at[indexAt(b, 4)]; s != nil && isIP(b[0]) && (b[0] == unix.AF_INET || addrFlags(b)&unix.IFA_F_TEMPORARY == 0) {
				s.Addrs = append(s.Addrs, slices.Clone(b))
			}
		}},
		{"neighbours", unix.RTM_GETNEIGH, make([]byte, unix.SizeofNdMsg), func(b []byte) {
			if s := at[indexAt(b, 4)]; s != nil && isIP(b[0]) && native16(b[8:])&unix.NUD_PERMANENT != 0 {
				s.Neighs = append(s.Neighs, slices.Clone(b))
			}
		}},
		{"rules", unix.RTM_GETRULE, make([]byte, sizeofRule), func(b []byte) {
			for i := range links {
				if isIP(b[0]) && ruleNames(b, links[i].Name) {
					s := &links[i].Settings
					s.Rules = append(s.Rules, slices.Clone(b))
					break
				}
			}
		}},
		{"queueing disciplines", unix.RTM_GETQDISC, make([]byte, sizeofTc), func(b []byte) {
			// What the kernel chose has no number of its own.
			if s := at[indexAt(b, 4)]; s != nil && native32(b[12:]) == tcRoot && native32(b[8:]) != 0 {
				s.Qdisc = slices.Clone(b)
			}
		}},
	} {
		err := dump(read.what, func() error {
			for _, s := range at {
				switch read.typ {
				case unix.RTM_GETADDR:
					s.Addrs = nil
				case unix.RTM_GETNEIGH:
					s.Neighs = nil
				case unix.RTM_GETRULE:
					s.Rules = nil
				}
			}
			return sp.rt.dump(func(m *message) uint16 {
				m.bytes(read.head...)
				return read.typ
			}, func(body []byte) error {
				if len(body) >= len(read.head) {
					read.into(body)
				}
				return nil
			})
		})
		if err != nil {
			return err
		}
	}
	for i := range links {
		l := &links[i]
		have, err := sp.conf(l.Name)
		if err != nil {
			return err
		}
		usual, err := sp.conf("default")
		if err != nil {
			return err
		}
		if _, ok := usual[confKey{"ipv4/neigh", "ucast_solicit"}]; !ok {
			// Only the first namespace has those of neighbours; lo is as good.
			lo, err := sp.conf("lo")
			if err != nil {
				return err
			}
			maps.Copy(lo, usual)
			usual = lo
		}
		// its own secret, which has no default, makes the mode too
		own := have[stableSecret] != "" && have[stableSecret] != usual[stableSecret]
		for key, value := range have {
			if other, ok := usual[key]; ok && other != value || own && (key == stableSecret || key == addrGenMode) {
				if l.Settings.Sysctls == nil {
					l.Settings.Sysctls = map[string]string{}
				}
				l.Settings.Sysctls[key.of(l.Name)] = value
			}
		}
		// The kernel follows the interface's, unless told otherwise.
		if name := (confKey{"ipv6/conf", "mtu"}).of(l.Name); l.Settings.Sysctls[name] == fmt.Sprint(l.MTU) {
			delete(l.Settings.Sysctls, name)
		}
	}
	return nil
}

// Sizes of structures and values of linux/fib_rules.h and linux/pkt_sched.h.
const (
	sizeofRule = 12
	sizeofTc   = 20
	tcRoot     = 0xffffffff // TC_H_ROOT
)

func isIP(family byte) bool { return family == unix.AF_INET || family == unix.AF_INET6 }

func indexAt(b []byte, at int) int { return int(int32(native32(b[at:]))) }

// uptime is the time since boot in seconds, suspended or not.
func uptime() (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("read the clock: %w", err)
	}
	return int64(ts.Sec), nil
}

// addrFlags are the IFA_F_* of a struct ifaddrmsg.
func addrFlags(b []byte) uint32 {
	for typ, data := range attributes(b[unix.SizeofIfAddrmsg:]) {
		if typ == unix.IFA_FLAGS {
			return native32(data)
		}
	}
	return uint32(b[2])
}

// ruleNames says whether a rule selects by the interface of that name.
func ruleNames(b []byte, name string) bool {
	for typ, data := range attributes(b[sizeofRule:]) {
		if (typ == unix.FRA_IIFNAME || typ == unix.FRA_OIFNAME) && unix.ByteSliceToString(data) == name {
			return true
		}
	}
	return false
}

// withoutObject is a route's message without the nexthop object that it leads to,
// which goes with its interface: the message says where that leads as well.
func withoutObject(b []byte) []byte {
	m := message{slices.Clone(b[:unix.SizeofRtMsg])}
	for typ, data := range attributes(b[unix.SizeofRtMsg:]) {
		if typ != rtaNHID {
			m.attr(typ, data)
		}
	}
	return m.b
}

// leadsBy lists the interfaces that a route with a Way leads by.
func leadsBy(r facts.Route) (list []int) {
	for typ, data := range attributes(r.Way.Raw) {
		switch typ {
		case unix.RTA_OIF:
			list = append(list, int(native32(data)))
		case unix.RTA_MULTIPATH:
			for h := range hops(data) {
				list = append(list, int(native32(h[4:])))
			}
		}
	}
	return list
}

// told notes the name of another interface that is told by its number.
func told(l *facts.Interface, index int, names map[int]string) {
	if index == 0 || index == l.Index || names[index] == "" {
		return
	}
	if l.Settings.Names == nil {
		l.Settings.Names = map[int]string{}
	}
	l.Settings.Names[index] = names[index]
}

func (sp *space) readRoutes(links []facts.Interface, names map[int]string) error {
	routes, err := sp.routesWith(func(_ facts.Route, body []byte) *facts.Way { return parseWay(withoutObject(body), names) })
	if err != nil {
		return err
	}
	for _, r := range routes {
		by := leadsBy(r)
		for i := range slices.Backward(links) {
			l := &links[i]
			if !slices.Contains(by, l.Index) {
				continue
			}
			l.Settings.Routes = append(l.Settings.Routes, r)
			for _, other := range by {
				told(l, other, names)
			}
			break
		}
	}
	return nil
}

// confKey is a sysctl that each interface has: its folder below net, and its name.
type confKey struct{ dir, name string }

// of spells the sysctl of one interface, see sysctlPath.
func (k confKey) of(link string) string {
	return "net." + strings.ReplaceAll(k.dir, "/", ".") + "." + strings.ReplaceAll(link, ".", "/") + "." + k.name
}

// Addresses of mode 2 are made of a secret (RFC 7217), without which the kernel refuses that mode.
var stableSecret, addrGenMode = confKey{"ipv6/conf", "stable_secret"}, confKey{"ipv6/conf", "addr_gen_mode"}

// conf reads the sysctls of an interface, or of "default", but for one that cannot be
// written, and those that are others' in another unit. The usual secret is one of an
// interface that has no other: elsewhere there is none.
func (sp *space) conf(link string) (map[confKey]string, error) {
	all := map[confKey]string{}
	err := sp.inside(func() error {
		for _, dir := range []string{"ipv4/conf", "ipv4/neigh", "ipv6/conf", "ipv6/neigh"} {
			path := "/proc/sys/net/" + dir + "/" + link
			folder, err := os.Open(path)
			if errors.Is(err, fs.ErrNotExist) { // no IPv6
				continue
			}
			if err != nil {
				return err
			}
			names, err := folder.Readdirnames(0)
			folder.Close()
			if err != nil {
				return err
			}
			for _, name := range names {
				switch name {
				case "retrans_time", "base_reachable_time", "unres_qlen", "mc_forwarding":
					continue
				}
				// One has no value as long as nobody gave it one: stable_secret.
				if value, err := readSysctl(path + "/" + name); err == nil {
					all[confKey{dir, name}] = value
				}
			}
		}
		if all[stableSecret] == "" && all[addrGenMode] == "2" { // IN6_ADDR_GEN_MODE_STABLE_PRIVACY of linux/if_link.h
			if value, err := readSysctl("/proc/sys/net/ipv6/conf/default/stable_secret"); err == nil {
				all[stableSecret] = value
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the sysctls of %s: %w", link, err)
	}
	return all, nil
}

// readSysctl reads a file of one line. There are more than a hundred per interface,
// and no way out while they are read: os.ReadFile asks the kernel twice as often.
func readSysctl(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var b [256]byte
	n, err := unix.Read(fd, b[:])
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(string(b[:n]), "\n"), nil
}

// setConf writes sysctls of an interface where they differ.
func (sp *space) setConf(link string, want map[confKey]string) error {
	values := make(map[string]string, len(want))
	for key, value := range want {
		values[key.of(link)] = value
	}
	return sp.setSysctls(values)
}

// setSysctls writes sysctls where they differ. It tries all.
func (sp *space) setSysctls(values map[string]string) error {
	var errs []error
	err := sp.inside(func() error {
		names := slices.Sorted(maps.Keys(values))
		// it makes addr_gen_mode 2, which is refused without, and comes before what that is to be
		if i := slices.IndexFunc(names, func(name string) bool { return strings.HasSuffix(name, ".stable_secret") }); i > 0 {
			names = slices.Concat(names[i:i+1], names[:i], names[i+1:])
		}
		for _, name := range names {
			if now, err := readSysctl(sysctlPath(name)); err == nil && now == values[name] {
				continue
			}
			if err := os.WriteFile(sysctlPath(name), []byte(values[name]+"\n"), 0); err != nil {
				errs = append(errs, fmt.Errorf("set sysctl %s: %w", name, err))
			}
		}
		return nil
	})
	return errors.Join(append(errs, err)...)
}

// settle gives an interface back what its move took. It goes on past errors.
func (d *Doer) settle(ctx context.Context, sp *space, s plan.Settle) error {
	list, err := sp.nics(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list, func(n nic) bool { return n.Name == s.Link.Name })
	if i < 0 || !isItself(list[i], s.Link) {
		return d.notAway(ctx, s)
	}
	n := list[i]
	index := map[int]int{s.Link.Index: n.Index} // of then: now
	for _, n := range list {
		for then, name := range s.Link.Settings.Names {
			if name == n.Name {
				index[then] = n.Index
			}
		}
	}
	now, err := uptime()
	if err != nil {
		return err
	}
	age := max(0, now-s.Link.Settings.Read)
	errs := []error{d.join(ctx, sp, n, s.Link, list), sp.setLimits(ctx, n, s.Link), sp.setSysctls(s.Link.Settings.Sysctls)}
	var messages, later []request
	if !s.Bare {
		messages, later = restoring(s.Link, n, age, index)
	}
	messages = append(messages, queueing(s.Link, n)...)
	send := func(list []request) error {
		_, err := sp.rt.exchange(ctx, len(list), func(m *message, i int) (typ, flags uint16) { return list[i].put(m) },
			func(i int, _ []byte, err error) error {
				if err != nil && !errors.Is(err, unix.EEXIST) {
					errs = append(errs, fmt.Errorf("%s: %w", list[i].what, err))
				}
				return nil
			})
		return err
	}
	err = send(messages)
	if err == nil && len(later) > 0 {
		if err = sp.awaitAddrs(ctx, n.Index); err == nil {
			err = send(later)
		}
	}
	return errors.Join(append(errs, err)...)
}

// addrWait is how long the kernel may take to put an address that it need not
// search duplicates of to use, which it does in the background.
const addrWait = 200 * time.Millisecond

// awaitAddrs waits until all addresses that are not to be searched duplicates of
// are in use.
func (sp *space) awaitAddrs(ctx context.Context, index int) error {
	_, err := until(ctx, addrWait, func() (bool, error) {
		used := true
		err := dump("addresses", func() error {
			used = true
			return sp.rt.dump(func(m *message) uint16 {
				m.bytes(make([]byte, unix.SizeofIfAddrmsg)...)
				m.b[len(m.b)-unix.SizeofIfAddrmsg] = unix.AF_INET6
				return unix.RTM_GETADDR
			}, func(b []byte) error {
				const both = unix.IFA_F_NODAD | unix.IFA_F_TENTATIVE
				if len(b) >= unix.SizeofIfAddrmsg && b[0] == unix.AF_INET6 && indexAt(b, 4) == index && addrFlags(b)&both == both {
					used = false
				}
				return nil
			})
		})
		return used, err
	})
	return err
}

// isItself says whether an interface of the right name is the one that is meant.
func isItself(n nic, l facts.Interface) bool {
	return n.Kind == l.Kind && (n.MAC == l.MAC || away(n, l) || l.Twin && n.Index == l.Index || n.Phy != nil && l.Phy != nil && n.Phy.Index == l.Phy.Index)
}

// notAway returns an error when the interface is still where it was.
func (d *Doer) notAway(ctx context.Context, s plan.Settle) error {
	sp, err := d.space(s.Away)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err != nil {
		return err
	}
	list, err := sp.nics(ctx)
	if err != nil {
		return err
	}
	if _, found := find(list, s.Link); found {
		return fmt.Errorf("interface %s did not come: %w", s.Link.Name, unix.ENODEV)
	}
	return nil
}

// setLimits sets MTU and queue length where they differ.
func (sp *space) setLimits(ctx context.Context, n nic, l facts.Interface) error {
	if n.MTU == l.MTU && n.TxQueueLen == l.TxQueueLen {
		return nil
	}
	err := sp.one(ctx, false, func(m *message) (typ, flags uint16) {
		m.putIfinfo(n.Index, 0, 0)
		if l.MTU != 0 && n.MTU != l.MTU {
			m.attr32(unix.IFLA_MTU, uint32(l.MTU))
		}
		if n.TxQueueLen != l.TxQueueLen {
			m.attr32(unix.IFLA_TXQLEN, uint32(l.TxQueueLen))
		}
		return unix.RTM_NEWLINK, 0
	})
	if err != nil {
		return fmt.Errorf("set MTU %d and queue length %d of %s: %w", l.MTU, l.TxQueueLen, l.Name, err)
	}
	return nil
}

// request is one message of many, with what to call it in an error.
type request struct {
	what string
	put  func(m *message) (typ, flags uint16)
}

// restoring is what brings an interface up (or down) and gives it its settings, in
// order. age is how old they are, in seconds, and index tells from the numbers that
// interfaces had the ones that they have now.
// later is for when the addresses are in use.
func restoring(l facts.Interface, n nic, age int64, index map[int]int) (list, later []request) {
	add := func(what string, put func(m *message) (typ, flags uint16)) { list = append(list, request{what, put}) }
	raw := func(what string, typ, flags uint16, b []byte) {
		add(what, func(m *message) (uint16, uint16) {
			m.bytes(b...)
			return typ, flags
		})
	}
	up := uint32(0)
	if l.Up {
		up = unix.IFF_UP
	}
	add("bring "+l.Name+" up", func(m *message) (typ, flags uint16) {
		m.putIfinfo(n.Index, up, unix.IFF_UP)
		return unix.RTM_NEWLINK, 0
	})
	addrs := slices.Clone(l.Settings.Addrs)
	if six := slices.IndexFunc(addrs, func(b []byte) bool { return b[0] == unix.AF_INET6 }); six >= 0 {
		slices.Reverse(addrs[six:]) // the kernel lists the last one first, and IPv4's before
	}
	for _, b := range addrs {
		first, last, ok := addrAgain(b, n.Index, age)
		if !ok {
			continue
		}
		what := "address " + addrText(b) + " of " + l.Name
		raw(what, unix.RTM_NEWADDR, create, first)
		if last != nil {
			later = append(later, request{what, func(m *message) (typ, flags uint16) {
				m.bytes(last...)
				return unix.RTM_NEWADDR, unix.NLM_F_REPLACE
			}})
		}
	}
	for _, b := range l.Settings.Neighs {
		m := message{b: withIndex(b[:unix.SizeofNdMsg], 4, n.Index)}
		for typ, data := range attributes(b[unix.SizeofNdMsg:]) {
			if typ == unix.NDA_DST || typ == unix.NDA_LLADDR {
				m.attr(typ, data)
			}
		}
		raw("neighbour of "+l.Name, unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, m.b)
	}
	// A gateway must be in reach when its route is made.
	routes := slices.Clone(l.Settings.Routes)
	slices.SortStableFunc(routes, func(a, b facts.Route) int { return hasGateway(a) - hasGateway(b) })
	for _, r := range routes {
		if madeAnyway(r) {
			continue
		}
		way := *r.Way
		if way.Expires != 0 {
			if int64(way.Expires) <= age {
				continue
			}
			way.Expires -= uint32(age)
		}
		way.Raw = reroute(way.Raw, index)
		r.Way = &way
		add(fmt.Sprintf("route %s %s", r.Dst, way.Text), func(m *message) (typ, flags uint16) {
			m.putVia(r)
			// Behind one of the same kind by another interface, as the tunnel's may still be.
			return unix.RTM_NEWROUTE, unix.NLM_F_CREATE | unix.NLM_F_APPEND
		})
	}
	for _, b := range l.Settings.Rules {
		raw("rule of "+l.Name, unix.RTM_NEWRULE, create, ruleAgain(b))
	}
	return list, later
}

// queueing gives an interface its queueing discipline, which is nobody else's to set.
func queueing(l facts.Interface, n nic) []request {
	b := l.Settings.Qdisc
	if b == nil {
		return nil
	}
	m := message{b: withIndex(b[:sizeofTc], 4, n.Index)}
	binary.NativeEndian.PutUint32(m.b[16:], 0)
	for typ, data := range attributes(b[sizeofTc:]) {
		if typ == unix.TCA_KIND || typ == unix.TCA_OPTIONS {
			m.attr(typ, data)
		}
	}
	return []request{{"queueing discipline of " + l.Name, func(again *message) (typ, flags uint16) {
		again.bytes(m.b...)
		return unix.RTM_NEWQDISC, unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}}}
}

// ruleAgain is a rule's message without what is only reported.
func ruleAgain(b []byte) []byte {
	b = slices.Clone(b)
	binary.NativeEndian.PutUint32(b[8:], native32(b[8:])&fibRuleInvert)
	return b
}

// withIndex is a copy of a message's body with another interface index.
func withIndex(b []byte, at, index int) []byte {
	b = slices.Clone(b)
	binary.NativeEndian.PutUint32(b[at:], uint32(index))
	return b
}

func hasGateway(r facts.Route) int {
	for typ, data := range attributes(r.Way.Raw) {
		switch typ {
		case unix.RTA_GATEWAY, unix.RTA_VIA:
			return 1
		case unix.RTA_MULTIPATH:
			for range hops(data) {
				return 1
			}
		}
	}
	return 0
}

// madeAnyway says whether the kernel makes a route itself as soon as an interface
// with IPv6 is up. (Others of its own may have been made by programs in its name.)
func madeAnyway(r facts.Route) bool {
	return r.Protocol == unix.RTPROT_KERNEL && r.Dst == netip.MustParsePrefix("fe80::/64")
}

// reroute replaces the interfaces of a route's attributes.
func reroute(raw []byte, index map[int]int) []byte {
	raw = slices.Clone(raw)
	put := func(b []byte) {
		if now, ok := index[int(native32(b))]; ok {
			binary.NativeEndian.PutUint32(b, uint32(now))
		}
	}
	for typ, data := range attributes(raw) {
		switch typ {
		case unix.RTA_OIF:
			put(data)
		case unix.RTA_MULTIPATH:
			for h := range hops(data) {
				put(h[4:])
			}
		}
	}
	return raw
}

// addrAgain makes of an address's message that which makes it again, and one that
// is to follow. An IPv6 address that was known to be nobody else's goes without
// another search for duplicates, which would take a second; what says so
// (IFA_F_NODAD) is then taken from it again, if it was not there. ok is false for
// one that has outlived its time.
func addrAgain(b []byte, index int, age int64) (first, last []byte, ok bool) {
	const asked = unix.IFA_F_NODAD | unix.IFA_F_HOMEADDRESS | unix.IFA_F_MANAGETEMPADDR | unix.IFA_F_NOPREFIXROUTE | unix.IFA_F_MCAUTOJOIN
	flags := addrFlags(b)
	m := message{b: withIndex(b[:unix.SizeofIfAddrmsg], 4, index)}
	m.b[2] = 0
	for typ, data := range attributes(b[unix.SizeofIfAddrmsg:]) {
		switch typ {
		case unix.IFA_FLAGS:
			continue
		case unix.IFA_CACHEINFO: // struct ifa_cacheinfo: preferred, valid
			data = slices.Clone(data)
			if valid := native32(data[4:]); valid != forever && int64(valid) <= age {
				return nil, nil, false
			}
			for at := range 2 {
				if left := native32(data[4*at:]); left != forever {
					binary.NativeEndian.PutUint32(data[4*at:], uint32(max(0, int64(left)-age)))
				}
			}
		}
		m.attr(typ, data)
	}
	again := func(flags uint32) []byte {
		c := message{b: slices.Clone(m.b)}
		c.attr32(unix.IFA_FLAGS, flags)
		return c.b
	}
	if b[0] != unix.AF_INET6 || flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_NODAD) != 0 {
		return again(flags & asked), nil, true
	}
	return again(flags&asked | unix.IFA_F_NODAD), again(flags & asked), true
}

// forever is INFINITY_LIFE_TIME of net/addrconf.h.
const forever = 0xffffffff

func addrText(b []byte) string {
	var a netip.Addr
	for typ, data := range attributes(b[unix.SizeofIfAddrmsg:]) {
		if typ == unix.IFA_LOCAL || typ == unix.IFA_ADDRESS && !a.IsValid() {
			a, _ = netip.AddrFromSlice(data)
		}
	}
	return netip.PrefixFrom(a, int(b[1])).String()
}
