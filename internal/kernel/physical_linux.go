package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

// Attributes of linux/if_link.h that golang.org/x/sys/unix does not name.
const iflaNetnsImmutable = 67 // Linux 6.15

const fixedKind = "the kernel lets no interface of its kind move to another network namespace"

// nic is an interface as its link's message has it.
type nic struct {
	facts.Interface
	loopback bool
}

// parseNIC reads a struct ifinfomsg and its attributes.
func parseNIC(b []byte) (n nic) {
	if len(b) < unix.SizeofIfInfomsg {
		return n
	}
	l := parseLink(b)
	n.Name, n.Index, n.Kind, n.MTU, n.Up = l.Name, l.Index, l.Type, l.MTU, l.Up
	n.loopback = native32(b[8:])&unix.IFF_LOOPBACK != 0
	lower, elsewhere := 0, false
	for typ, data := range attributes(b[unix.SizeofIfInfomsg:]) {
		switch typ {
		case unix.IFLA_ADDRESS:
			n.MAC = net.HardwareAddr(data).String()
		case unix.IFLA_IFALIAS:
			n.Alias = unix.ByteSliceToString(data)
		case unix.IFLA_TXQLEN:
			n.TxQueueLen = int(native32(data))
		case unix.IFLA_MASTER:
			n.Master = int(native32(data))
		case unix.IFLA_LINK:
			lower = int(native32(data))
		case unix.IFLA_LINK_NETNSID:
			elsewhere = true
		case unix.IFLA_PARENT_DEV_NAME:
			n.Hardware = true
		case unix.IFLA_LINKINFO:
			if keepsInfo(data) {
				n.Info = slices.Clone(data)
			}
		case iflaNetnsImmutable:
			if len(data) == 1 && data[0] != 0 {
				n.Fixed = fixedKind
			}
		}
	}
	if perm := permanent(n.Info); perm != "" {
		n.MAC = perm
	}
	if !elsewhere && n.Kind != "veth" && lower != n.Index { // a veth's is its other end
		n.Lower = lower
	}
	return n
}

// nics lists the interfaces of the namespace, with the Wi-Fi devices they belong to.
func (sp *space) nics(ctx context.Context) (list []nic, err error) {
	err = dump("interfaces", func() error {
		list = list[:0]
		return sp.rt.dump((*message).putLinkDump, func(body []byte) error {
			list = append(list, parseNIC(body))
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	phys, of, err := sp.wiphys(ctx)
	if err != nil {
		return nil, err
	}
	for i := range list {
		at, ok := of[list[i].Index]
		if w := phys[at]; ok && w != nil {
			list[i].Phy, list[i].Fixed = &w.Phy, ""
			if !w.movable {
				list[i].Fixed = "the driver of " + w.Name + " does not let it move to another network namespace"
			}
		}
	}
	return list, nil
}

// Interfaces lists the interfaces of ns, but for lo and WireGuard's, without their
// Settings.
func (d *Doer) Interfaces(ctx context.Context, ns plan.NS) ([]facts.Interface, error) {
	sp, err := d.space(ns)
	if err != nil {
		return nil, err
	}
	all, err := sp.nics(ctx)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(n nic) bool { return n.loopback || n.Kind == "wireguard" })
	if err := sp.probe(ctx, all); err != nil {
		return nil, err
	}
	routes, err := sp.routesWith(func(r facts.Route, body []byte) *facts.Way {
		if r.Dst.Bits() != 0 {
			return nil
		}
		return parseWay(withoutObject(body), nil)
	})
	if err != nil {
		return nil, err
	}
	markTwins(all)
	list := make([]facts.Interface, len(all))
	for i, n := range all {
		list[i] = n.Interface
		list[i].Default = slices.ContainsFunc(routes, func(r facts.Route) bool {
			return r.Table == plan.TableMain && r.Dst.Bits() == 0 && slices.Contains(leadsBy(r), n.Index)
		})
	}
	return list, nil
}

// probe finds out which interfaces the kernel does not let move, by moving each to
// where it is: before Linux 6.12, a refusal comes first, and then that there is
// nothing to do. Newer kernels say it in the link's message. A refusal for want of
// privilege says nothing.
func (sp *space) probe(ctx context.Context, list []nic) error {
	_, err := sp.rt.exchange(ctx, len(list), func(m *message, i int) (typ, flags uint16) {
		m.putIfinfo(list[i].Index, 0, 0)
		m.attr32(unix.IFLA_NET_NS_FD, uint32(sp.ns.Fd()))
		return unix.RTM_NEWLINK, 0
	}, func(i int, _ []byte, err error) error {
		if errors.Is(err, unix.EINVAL) && list[i].Phy == nil && list[i].Fixed == "" {
			list[i].Fixed = fixedKind
		}
		return nil
	})
	return err
}

// hold takes interfaces down in one system call.
func (sp *space) hold(ctx context.Context, s plan.Hold) error {
	_, err := sp.rt.batch(ctx, len(s.Links), true, func(m *message, i int) (typ, flags uint16) {
		m.putIfinfo(0, 0, unix.IFF_UP)
		m.attrString(unix.IFLA_IFNAME, s.Links[i])
		return unix.RTM_NEWLINK, 0
	})
	return err
}

// How long a move waits for an interface that the kernel is still bringing back
// from a namespace that is gone, which a busy machine takes its time for, and for
// a busy one.
const moveWait = 5 * time.Second

// find looks for an interface: by the alias that it has away from home, else by
// its kind, hardware address and name, or without the latter for hardware, where
// only one has that address.
func find(list []nic, l facts.Interface) (nic, bool) {
	if i := slices.IndexFunc(list, func(n nic) bool { return away(n, l) }); i >= 0 {
		return list[i], true
	}
	same := slices.DeleteFunc(slices.Clone(list), func(n nic) bool {
		return strings.HasPrefix(n.Alias, plan.AwayPrefix) || n.Kind != l.Kind || n.MAC != l.MAC || n.loopback
	})
	if i := slices.IndexFunc(same, func(n nic) bool { return n.Name == l.Name }); i >= 0 {
		return same[i], true
	}
	if len(same) == 1 && l.Kind == "" && l.MAC != "" {
		return same[0], true
	}
	return nic{}, false
}

// away says whether an interface has the alias of one that is away from home.
func away(n nic, l facts.Interface) bool { return n.Alias == plan.AwayAlias(l) }

// hasMove says of a move out whether any of the links is there, away from home, of
// one home whether any is not there, with its own name and alias.
func (d *Doer) hasMove(ctx context.Context, s plan.Move) (bool, error) {
	to, err := d.space(s.To)
	if err != nil {
		return false, err
	}
	there, err := to.nics(ctx)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(s.Links, func(l facts.Interface) bool {
		n, found := find(there, l)
		if s.Home {
			return !found || away(n, l) || n.Name != l.Name
		}
		return found && away(n, l)
	}), nil
}

func (d *Doer) move(ctx context.Context, s plan.Move) error {
	to, err := d.space(s.To)
	if err != nil {
		return err
	}
	if s.Home {
		return d.moveHome(ctx, to, s)
	}
	from, err := d.space(s.From)
	if err != nil {
		return err
	}
	here, err := from.nics(ctx)
	if err != nil {
		return err
	}
	there, err := to.nics(ctx)
	if err != nil {
		return err
	}
	var list []nic // what is still to go
	var as []facts.Interface
	for _, l := range s.Links {
		if n, found := find(there, l); found && away(n, l) {
			continue
		}
		n, found := find(here, l)
		switch {
		case !found || n.Name != l.Name && !away(n, l):
			return noLink(l.Name)
		case l.Twin:
			return fmt.Errorf("interface %s cannot move, only its ports can: %w", l.Name, unix.EOPNOTSUPP)
		case n.Fixed != "":
			return fmt.Errorf("interface %s cannot move: %s: %w", l.Name, n.Fixed, unix.EOPNOTSUPP)
		}
		if err := to.free(l, s.To, nic{}); err != nil {
			return err
		}
		list, as = append(list, n), append(as, l)
	}
	if len(list) == 0 {
		return nil
	}
	conf := make([]map[confKey]string, len(list))
	for i, n := range list {
		if conf[i], err = from.conf(n.Name); err != nil {
			return err
		}
	}
	if err := from.send(ctx, to, list, as); err != nil {
		// What stayed is as it was; what went before the one that failed is brought home by the undo.
		for i, n := range list {
			err = errors.Join(err, from.setAlias(context.WithoutCancel(ctx), n.Index, as[i].Alias))
		}
		return err
	}
	var errs []error
	for i, l := range as {
		errs = append(errs, to.setConf(l.Name, conf[i]))
	}
	return errors.Join(errs...)
}

// send gives interfaces the alias that they have away from home, and moves them.
func (sp *space) send(ctx context.Context, to *space, list []nic, as []facts.Interface) error {
	_, err := sp.rt.batch(ctx, len(list), false, func(m *message, i int) (typ, flags uint16) {
		m.putIfinfo(list[i].Index, 0, 0)
		m.attr(unix.IFLA_IFALIAS, []byte(plan.AwayAlias(as[i])))
		return unix.RTM_NEWLINK, 0
	})
	if err != nil {
		return err
	}
	return sp.carry(ctx, to, list, as, nil)
}

// carry moves interfaces, those of a Wi-Fi device together, and gives them the
// names of as, where the kernel can do that in the same step. index is what each
// shall have there, where that is free.
func (sp *space) carry(ctx context.Context, to *space, list []nic, as []facts.Interface, index map[int]bool) error {
	phys := map[int]bool{}
	for i, n := range list {
		if n.Phy != nil {
			phys[n.Phy.Index] = true
			continue
		}
		err := patiently(ctx, func() error {
			return sp.one(ctx, false, func(m *message) (typ, flags uint16) {
				m.putIfinfo(n.Index, 0, 0)
				m.attr32(unix.IFLA_NET_NS_FD, uint32(to.ns.Fd()))
				m.attrString(unix.IFLA_IFNAME, as[i].Name)
				if n.Index != as[i].Index && index[as[i].Index] {
					m.attr32(unix.IFLA_NEW_IFINDEX, uint32(as[i].Index))
				}
				return unix.RTM_NEWLINK, 0
			})
		})
		if err != nil {
			return fmt.Errorf("move %s: %w", n.Name, err)
		}
	}
	for _, phy := range slices.Sorted(maps.Keys(phys)) {
		if err := patiently(ctx, func() error { return sp.sendPhy(ctx, phy, to) }); err != nil {
			return fmt.Errorf("move Wi-Fi device %d: %w", phy, err)
		}
	}
	return nil
}

// patiently does what may be busy for a moment.
func patiently(ctx context.Context, fn func() error) error {
	var err error
	_, waiting := until(ctx, moveWait, func() (bool, error) {
		err = fn()
		return !errors.Is(err, unix.EBUSY), nil
	})
	return errors.Join(err, waiting)
}

// free returns an error where an interface's name is taken by another than itself.
func (sp *space) free(l facts.Interface, ns plan.NS, itself nic) error {
	holder, taken, err := sp.linkByName(l.Name) // alternative names count too
	if err != nil || !taken || holder.Index == itself.Index && itself.Index != 0 {
		return err
	}
	where := string(ns)
	if name, ok := ns.Name(); ok {
		where = name
	}
	if where == "" {
		where = "the caller's network namespace"
	}
	kind := holder.Type
	if kind == "" {
		kind = "hardware"
	}
	return fmt.Errorf("interface %s cannot move: in %s another has that name, number %d (%s): %w (hint: rename that, and try again)",
		l.Name, where, holder.Index, kind, unix.EEXIST)
}

// setName renames an interface, which must be down for that before Linux 6.2.
func (sp *space) setName(ctx context.Context, n nic, name string) error {
	_, err := sp.rt.batch(ctx, 2, false, func(m *message, i int) (typ, flags uint16) {
		if i == 0 {
			m.putIfinfo(n.Index, 0, unix.IFF_UP)
		} else {
			m.putIfinfo(n.Index, 0, 0)
			m.attrString(unix.IFLA_IFNAME, name)
		}
		return unix.RTM_NEWLINK, 0
	})
	if err != nil {
		return fmt.Errorf("rename %s to %s: %w", n.Name, name, err)
	}
	return nil
}

func (sp *space) setAlias(ctx context.Context, index int, alias string) error {
	return sp.one(ctx, true, func(m *message) (typ, flags uint16) {
		m.putIfinfo(index, 0, 0)
		m.attr(unix.IFLA_IFALIAS, []byte(alias)) // empty: none
		return unix.RTM_NEWLINK, 0
	})
}

// moveHome brings interfaces to where they belong, from wherever they are: of a
// namespace that is gone the kernel brings hardware to PID 1's. What is nowhere was
// pulled out. It may be repeated from any point.
func (d *Doer) moveHome(ctx context.Context, to *space, s plan.Move) error {
	places, there, err := d.awayPlaces(to, s)
	if err != nil {
		return err
	}
	var missing []string
	_, err = until(ctx, moveWait, func() (bool, error) {
		home, err := to.nics(ctx)
		if err != nil {
			return false, err
		}
		var left []facts.Interface
		for _, l := range s.Links {
			n, found := find(home, l)
			if !found {
				left = append(left, l)
				continue
			}
			if err := to.free(l, s.To, n); err != nil {
				return false, err
			}
		}
		numbers := map[int]bool{}
		for _, l := range left {
			numbers[l.Index] = !slices.ContainsFunc(home, func(n nic) bool { return n.Index == l.Index })
		}
		for _, sp := range places {
			list, err := sp.nics(ctx)
			if err != nil {
				return false, err
			}
			var going []nic
			var as []facts.Interface
			for _, l := range left {
				n, found := find(list, l)
				if !found { // whoever has the name of one that is gone may keep it
					continue
				}
				if err := to.free(l, s.To, nic{}); err != nil {
					// The kernel may have brought it itself since.
					now, nerr := to.nics(ctx)
					if _, found := find(now, l); nerr == nil && found {
						return false, nil
					}
					return false, errors.Join(err, nerr)
				}
				going, as = append(going, n), append(as, l)
			}
			if err := sp.carry(ctx, to, going, as, numbers); err != nil {
				return false, err
			}
		}
		missing, err = d.arrive(ctx, to, s)
		// The kernel may still be taking the namespace down.
		return len(missing) == 0 || there, err
	})
	for _, name := range missing {
		i := slices.IndexFunc(s.Links, func(l facts.Interface) bool { return l.Name == name })
		if made, berr := d.again(ctx, to, s.Links[i]); made || berr != nil {
			err = errors.Join(err, berr)
			continue
		}
		if d.opt.Warn != nil {
			d.opt.Warn("interface " + name + " is nowhere to be found, so it does not come home (hint: was it pulled out?)")
		}
	}
	if err != nil || !there {
		return err
	}
	// Unlike all else, what Settle gave them in rules stays where they were.
	var rules [][]byte
	for _, l := range s.Links {
		rules = append(rules, l.Settings.Rules...)
	}
	_, err = places[0].rt.batch(ctx, len(rules), true, func(m *message, i int) (typ, flags uint16) {
		m.bytes(ruleAgain(rules[i])...)
		return unix.RTM_DELRULE, 0
	})
	return err
}

// awayPlaces are the namespaces that an interface that is not at home may be in:
// first that it was moved to, if that is still there.
func (d *Doer) awayPlaces(to *space, s plan.Move) (places []*space, there bool, err error) {
	for _, ns := range []plan.NS{s.From, "/proc/1/ns/net"} {
		sp, err := d.space(ns)
		if ns != s.From && errors.Is(err, fs.ErrPermission) {
			continue
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) { // it is gone, or its name another's
			continue
		}
		if err != nil {
			return nil, false, err
		}
		twice := false
		for _, p := range append(places, to) {
			same, err := sp.sameAs(p)
			if err != nil {
				return nil, false, err
			}
			twice = twice || same
		}
		if !twice {
			places = append(places, sp)
			there = there || ns == s.From
		}
	}
	return places, there, nil
}

// arrive gives interfaces that are at home their names, hardware addresses and
// aliases back, and returns the names of those that are not there.
func (d *Doer) arrive(ctx context.Context, to *space, s plan.Move) (missing []string, err error) {
	home, err := to.nics(ctx)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, l := range s.Links {
		n, found := find(home, l)
		if !found {
			missing = append(missing, l.Name)
			continue
		}
		if n.Name == l.Name && n.Alias == l.Alias {
			continue
		}
		if n.Name != l.Name {
			err := to.free(l, s.To, n)
			if err == nil {
				err = to.setName(ctx, n, l.Name)
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
		}
		if n.MAC != l.MAC {
			d.setMAC(ctx, to, n.Index, l)
		}
		errs = append(errs, to.setAlias(ctx, n.Index, l.Alias))
	}
	return missing, errors.Join(errs...)
}

// setMAC gives an interface the hardware address that it had. Whoever configures
// it may have chosen another, and the driver may refuse.
func (d *Doer) setMAC(ctx context.Context, sp *space, index int, l facts.Interface) {
	mac, err := net.ParseMAC(l.MAC)
	if err == nil {
		err = sp.one(ctx, false, func(m *message) (typ, flags uint16) {
			m.putIfinfo(index, 0, 0)
			m.attr(unix.IFLA_ADDRESS, mac)
			return unix.RTM_NEWLINK, 0
		})
	}
	if err != nil && d.opt.Warn != nil {
		d.opt.Warn(fmt.Sprintf("interface %s cannot have its address %s back: %v", l.Name, l.MAC, err))
	}
}
