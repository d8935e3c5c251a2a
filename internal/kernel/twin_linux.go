package kernel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

// linkInfo is what IFLA_LINKINFO says of an interface and of it as a port.
type linkInfo struct {
	kind, portKind string
	data, port     []byte
}

func parseInfo(b []byte) (i linkInfo) {
	for typ, data := range attributes(b) {
		switch typ {
		case unix.IFLA_INFO_KIND:
			i.kind = unix.ByteSliceToString(data)
		case unix.IFLA_INFO_DATA:
			i.data = data
		case unix.IFLA_INFO_SLAVE_KIND:
			i.portKind = unix.ByteSliceToString(data)
		case unix.IFLA_INFO_SLAVE_DATA:
			i.port = data
		}
	}
	return i
}

// settable lists the attributes of a kind, or of its ports, that are settings and
// not only reported, in an order in which they can be set (IFLA_BOND_* and so on of
// linux/if_link.h). A VLAN's are all given when it is made, and so is a bond's mode.
func settable(kind string) []uint16 {
	switch kind {
	case "bond": // not the active port, the primary one (see join), nor what LACP found out
		return span(unix.IFLA_BOND_MIIMON, unix.IFLA_BOND_ARP_ALL_TARGETS, unix.IFLA_BOND_PRIMARY_RESELECT, unix.IFLA_BOND_AD_SELECT,
			unix.IFLA_BOND_AD_ACTOR_SYS_PRIO, 32) // IFLA_BOND_COUPLED_CONTROL
	case "bridge":
		return span(1, 9, // IFLA_BR_FORWARD_DELAY to _GROUP_FWD_MASK
			22, 39, // _MCAST_ROUTER to _VLAN_DEFAULT_PVID
			41, 46) // _VLAN_STATS_ENABLED to _MULTI_BOOLOPT
	case "bond port":
		return span(unix.IFLA_BOND_SLAVE_QUEUE_ID, unix.IFLA_BOND_SLAVE_QUEUE_ID, 9, 9) // IFLA_BOND_SLAVE_PRIO
	case "bridge port": // not its state, nor its cost, which follows from its speed
		return span(2, 2, 4, 12, // IFLA_BRPORT_PRIORITY, _MODE to _PROXYARP_WIFI
			25, 25, 27, 33) // _MULTICAST_ROUTER, _MCAST_FLOOD to _ISOLATED
	}
	return nil
}

// span lists the numbers of ranges, each with its last.
func span(ranges ...uint16) (list []uint16) {
	for r := range slices.Chunk(ranges, 2) {
		for n := r[0]; n <= r[1]; n++ {
			list = append(list, n)
		}
	}
	return list
}

// keepsInfo says whether IFLA_LINKINFO is needed to make an interface again, or to
// make it a port again.
func keepsInfo(b []byte) bool {
	i := parseInfo(b)
	return i.kind == "vlan" || i.kind == "bond" || i.kind == "bridge" || i.portKind != ""
}

// permanent is the hardware address that a bond's port has of its own.
func permanent(info []byte) string {
	for typ, data := range attributes(parseInfo(info).port) {
		if parseInfo(info).portKind == "bond" && typ == unix.IFLA_BOND_SLAVE_PERM_HWADDR {
			return net.HardwareAddr(data).String()
		}
	}
	return ""
}

// primary is the number of the port that a bond prefers, 0: none.
func primary(info []byte) int {
	i := parseInfo(info)
	for typ, data := range attributes(i.data) {
		if i.kind == "bond" && typ == unix.IFLA_BOND_PRIMARY {
			return int(native32(data))
		}
	}
	return 0
}

// markTwins finds out which interfaces cannot move but can be made a second time,
// and which are ports of what can do neither.
func markTwins(list []nic) {
	twin := map[int]bool{}
	for range list { // upon one another, in any order
		for i := range list {
			n := &list[i]
			switch n.Kind {
			case "bond", "bridge":
				n.Fixed, n.Twin = "", true
				for typ, data := range attributes(parseInfo(n.Info).data) {
					if n.Kind == "bridge" && typ == brVLANFiltering && len(data) == 1 && data[0] != 0 {
						n.Fixed, n.Twin = "it is a bridge that filters by VLAN, whose ports' VLANs would be lost", false
					}
				}
			case "vlan":
				n.Twin = twin[n.Lower]
			}
			twin[n.Index] = n.Twin
		}
	}
	for i := range list {
		n := &list[i]
		if m := slices.IndexFunc(list, func(m nic) bool { return m.Index == n.Master }); m >= 0 && !list[m].Twin {
			n.Fixed = "it is a port of " + list[m].Name + ", which cannot go along"
		}
	}
}

const (
	brVLANFiltering = 7 // IFLA_BR_VLAN_FILTERING
	vlanReorder     = 1 // VLAN_FLAG_REORDER_HDR of linux/if_vlan.h
)

func (sp *space) hasTwin(ctx context.Context, s plan.Twin) (bool, error) {
	n, found, err := sp.nic(ctx, s.Link.Name)
	if s.Delete {
		found = found && away(n, s.Link)
	}
	return found, err
}

// nic reads one interface.
func (sp *space) nic(ctx context.Context, name string) (nic, bool, error) {
	list, err := sp.nics(ctx)
	if err != nil {
		return nic{}, false, err
	}
	if i := slices.IndexFunc(list, func(n nic) bool { return n.Name == name }); i >= 0 {
		return list[i], true, nil
	}
	return nic{}, false, nil
}

// twin makes or deletes a second interface like one that cannot move. It is known
// by the alias of what is away from home.
func (d *Doer) twin(ctx context.Context, ns plan.NS, sp *space, s plan.Twin) error {
	l := s.Link
	n, found, err := sp.nic(ctx, l.Name)
	if err != nil {
		return err
	}
	if s.Delete {
		if found && away(n, l) {
			err = sp.remove(ctx, n.Index)
		}
		return err
	}
	if err := sp.free(l, ns, nic{}); err != nil {
		return err
	}
	if err := d.build(ctx, sp, l, plan.AwayAlias(l)); err != nil {
		// What it came to is not what was asked for.
		if n, found, _ := sp.nic(ctx, l.Name); found {
			err = errors.Join(err, sp.remove(ctx, n.Index))
		}
		return err
	}
	return nil
}

// build makes a VLAN, bond or bridge of that name, as it was, but for its ports.
func (d *Doer) build(ctx context.Context, sp *space, l facts.Interface, alias string) error {
	info := parseInfo(l.Info)
	lower := 0
	if l.Lower != 0 {
		below, err := sp.mustLink(l.Settings.Names[l.Lower])
		if err != nil {
			return fmt.Errorf("make %s: %w", l.Name, err)
		}
		lower = below.Index
	}
	list, err := sp.links()
	if err != nil {
		return err
	}
	index := l.Index
	if slices.ContainsFunc(list, func(l facts.Link) bool { return l.Index == index }) {
		index = 0 // the kernel's choice
	}
	_, err = sp.rt.batch(ctx, 2, false, func(m *message, i int) (typ, flags uint16) {
		if i == 0 {
			m.putIfinfo(index, 0, 0)
		} else {
			m.putIfinfo(0, 0, 0)
		}
		m.attrString(unix.IFLA_IFNAME, l.Name)
		if i == 1 {
			m.attr(unix.IFLA_IFALIAS, []byte(alias))
			return unix.RTM_NEWLINK, 0
		}
		if mac, err := net.ParseMAC(l.MAC); err == nil {
			m.attr(unix.IFLA_ADDRESS, mac)
		}
		if lower != 0 {
			m.attr32(unix.IFLA_LINK, uint32(lower))
		}
		m.nested(unix.IFLA_LINKINFO, func() {
			m.attrString(unix.IFLA_INFO_KIND, info.kind)
			m.nested(unix.IFLA_INFO_DATA, func() {
				flags := uint32(0)
				for typ, data := range attributes(info.data) {
					switch {
					case info.kind == "vlan" && typ == unix.IFLA_VLAN_FLAGS:
						flags = native32(data)
					case info.kind == "vlan", info.kind == "bond" && typ == unix.IFLA_BOND_MODE:
						m.attr(typ, data)
					}
				}
				if info.kind == "vlan" { // none is not what the kernel begins with, nor all it knows what it takes
					m.attr(unix.IFLA_VLAN_FLAGS, binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, flags), flags|vlanReorder))
				}
			})
		})
		return unix.RTM_NEWLINK, create
	})
	if err != nil {
		return fmt.Errorf("make %s: %w", l.Name, err)
	}
	n, found, err := sp.nic(ctx, l.Name)
	if err != nil || !found {
		return errors.Join(err, fmt.Errorf("make %s: it is gone again: %w", l.Name, unix.ENODEV))
	}
	return d.tune(ctx, sp, n, info.kind, info.data, unix.IFLA_INFO_KIND, unix.IFLA_INFO_DATA)
}

// again makes a VLAN anew that went with the namespace that it was in, where what it
// lay upon has come home.
func (d *Doer) again(ctx context.Context, sp *space, l facts.Interface) (made bool, err error) {
	if l.Kind != "vlan" || l.Info == nil {
		return false, nil
	}
	if _, found, err := sp.nic(ctx, l.Settings.Names[l.Lower]); err != nil || !found {
		return false, err
	}
	return true, d.build(ctx, sp, l, l.Alias)
}

// tune sets what differs of an interface's own kind, or as a port, one by one: what
// the kernel refuses to be told in one mode it may not even have in use. What cannot
// be set is said.
func (d *Doer) tune(ctx context.Context, sp *space, n nic, kind string, want []byte, kindAttr, dataAttr uint16) error {
	differing := func(n nic) (list []uint16, values map[uint16][]byte) {
		info := parseInfo(n.Info)
		now, what := map[uint16][]byte{}, kind
		have := info.data
		if dataAttr == unix.IFLA_INFO_SLAVE_DATA {
			have, what = info.port, kind+" port"
		}
		for typ, data := range attributes(have) {
			now[typ] = data
		}
		values = map[uint16][]byte{}
		for typ, data := range attributes(want) {
			values[typ] = data
		}
		for _, typ := range settable(what) {
			if v, ok := values[typ]; ok && !bytes.Equal(v, now[typ]) {
				list = append(list, typ)
			}
		}
		return list, values
	}
	list, values := differing(n)
	if len(list) == 0 {
		return nil
	}
	refused := map[uint16]error{}
	_, err := sp.rt.exchange(ctx, len(list), func(m *message, i int) (typ, flags uint16) {
		m.putIfinfo(n.Index, 0, 0)
		m.nested(unix.IFLA_LINKINFO, func() {
			m.attrString(kindAttr, kind)
			m.nested(dataAttr, func() { m.attr(list[i], values[list[i]]) })
		})
		return unix.RTM_NEWLINK, 0
	}, func(i int, _ []byte, err error) error {
		refused[list[i]] = err
		return nil
	})
	if err != nil {
		return fmt.Errorf("set up %s: %w", n.Name, err)
	}
	n, _, err = sp.nic(ctx, n.Name)
	if err != nil {
		return err
	}
	list, _ = differing(n)
	for _, typ := range list {
		if d.opt.Warn != nil {
			d.opt.Warn(fmt.Sprintf("interface %s cannot have setting %d of a %s: %v", n.Name, typ, kind, refused[typ]))
		}
	}
	return nil
}

// join makes an interface the port that it was, or lets a bond know which of its
// ports it prefers, and gives a bond or bridge its hardware address back, which
// follows from its ports. list is what there is beside it.
func (d *Doer) join(ctx context.Context, sp *space, n nic, l facts.Interface, list []nic) error {
	index := func(then int) int {
		name := l.Settings.Names[then]
		if i := slices.IndexFunc(list, func(n nic) bool { return n.Name == name }); i >= 0 {
			return list[i].Index
		}
		return 0
	}
	if l.Master != 0 && n.Master == 0 {
		master := index(l.Master)
		if master == 0 {
			return fmt.Errorf("make %s a port again: %w", l.Name, noLink(l.Settings.Names[l.Master]))
		}
		_, err := sp.rt.batch(ctx, 2, false, func(m *message, i int) (typ, flags uint16) {
			if i == 0 { // a bond takes only what is down
				m.putIfinfo(n.Index, 0, unix.IFF_UP)
			} else {
				m.putIfinfo(n.Index, 0, 0)
				m.attr32(unix.IFLA_MASTER, uint32(master))
			}
			return unix.RTM_NEWLINK, 0
		})
		if err != nil {
			return fmt.Errorf("make %s a port of %s again: %w", l.Name, l.Settings.Names[l.Master], err)
		}
		now, _, err := sp.nic(ctx, l.Name)
		if err != nil {
			return err
		}
		info := parseInfo(l.Info)
		return d.tune(ctx, sp, now, info.portKind, info.port, unix.IFLA_INFO_SLAVE_KIND, unix.IFLA_INFO_SLAVE_DATA)
	}
	if !l.Twin || l.Kind == "vlan" {
		return nil
	}
	if n.MAC != l.MAC {
		d.setMAC(ctx, sp, n.Index, l)
	}
	first := primary(l.Info)
	if first == 0 || index(first) == 0 || primary(n.Info) == index(first) {
		return nil
	}
	err := sp.one(ctx, false, func(m *message) (typ, flags uint16) {
		m.putIfinfo(n.Index, 0, 0)
		m.nested(unix.IFLA_LINKINFO, func() {
			m.attrString(unix.IFLA_INFO_KIND, "bond")
			m.nested(unix.IFLA_INFO_DATA, func() { m.attr32(unix.IFLA_BOND_PRIMARY, uint32(index(first))) })
		})
		return unix.RTM_NEWLINK, 0
	})
	if err != nil {
		return fmt.Errorf("prefer the port %s of %s: %w", l.Settings.Names[first], l.Name, err)
	}
	return nil
}
