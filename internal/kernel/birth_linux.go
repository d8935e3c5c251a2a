package kernel

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/netns"
	"wg-quickns/internal/plan"
)

// tempNames are the names that an interface is made under when its own is taken
// in its birth namespace, the first that is free. They follow from its own, so
// that `down` finds what a kill left.
func tempNames(name string) (list [4]string) {
	h := fnv.New32a()
	h.Write([]byte(name))
	for i := range list {
		list[i] = fmt.Sprintf("wgqns%08x%d", h.Sum32(), i)
	}
	return list
}

// birthplace is the space a link is created in: sp itself, if that is the same
// namespace.
func (d *Doer) birthplace(ns plan.NS, sp *space, s plan.Link) (plan.NS, *space, error) {
	if s.Birth == nil {
		return ns, sp, nil
	}
	birth, err := d.space(*s.Birth)
	if err != nil {
		return ns, nil, err
	}
	same, err := birth.sameAs(sp)
	if same {
		return ns, sp, err
	}
	return *s.Birth, birth, err
}

// hasLink is Exists of a plan.Link. A link to be created is an error where it
// would be served by a program and one of that name is served elsewhere.
func (d *Doer) hasLink(ctx context.Context, sp *space, s plan.Link) (bool, error) {
	if s.Delete {
		_, ours, err := sp.tunnel(ctx, s)
		return ours, err
	}
	_, found, err := sp.linkByName(s.Name)
	if err != nil || found || d.opt.Userspace == nil {
		return found, err
	}
	if w, err := sp.kernelWG(ctx); err != nil || w != nil {
		return false, err
	}
	return false, nameServed(ctx, s.Name)
}

// nameServed returns an error when a program serves an interface of that name,
// and does not end shortly.
func nameServed(ctx context.Context, name string) error {
	free, err := until(ctx, endWait, func() (bool, error) { return !served(name), nil })
	if err == nil && !free {
		err = fmt.Errorf("an interface %s is served in another network namespace, and there is one socket per name, %s, for all: %w (hint: take another name)",
			name, uapiPath(name), unix.EADDRINUSE)
	}
	return err
}

// newLink creates the kernel's WireGuard interface, in sp at once, with its UDP
// socket in birth. On failure nothing is left.
func (sp *space) newLink(ctx context.Context, birth *space, name string) error {
	if birth == sp {
		return sp.one(ctx, false, func(m *message) (typ, flags uint16) { return m.putLinkAdd(name) })
	}
	add := func(name string) error {
		return birth.one(ctx, false, func(m *message) (typ, flags uint16) {
			typ, flags = m.putLinkAdd(name)
			m.attr32(unix.IFLA_NET_NS_FD, uint32(sp.ns.Fd()))
			return typ, flags
		})
	}
	err := add(name)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	// rtnetlink looks for the name in the birth namespace as well.
	if _, taken, lerr := sp.linkByName(name); taken || lerr != nil {
		return errors.Join(err, lerr)
	}
	for _, temp := range tempNames(name) {
		if err = add(temp); err == nil {
			return sp.rename(ctx, temp, name)
		}
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return err
}

// rename gives a link that was just made its name, or deletes it.
func (sp *space) rename(ctx context.Context, from, to string) error {
	l, err := sp.mustLink(from)
	if err != nil {
		return err
	}
	err = sp.one(ctx, false, func(m *message) (typ, flags uint16) {
		m.putIfinfo(l.Index, 0, 0)
		m.attrString(unix.IFLA_IFNAME, to)
		return unix.RTM_NEWLINK, 0
	})
	if err != nil {
		err = errors.Join(fmt.Errorf("rename %s to %s: %w", from, to, err), sp.remove(ctx, l.Index))
	}
	return err
}

// remove deletes a link, also when ctx has ended.
func (sp *space) remove(ctx context.Context, index int) error {
	return sp.one(context.WithoutCancel(ctx), true, func(m *message) (typ, flags uint16) { return m.putLinkDelete(index) })
}

// serve has a program make the interface in the birth namespace, where it stays
// itself, and moves the interface to sp.
func (d *Doer) serve(ctx context.Context, birthNS plan.NS, birth, sp *space, s plan.Link) (program string, err error) {
	if birth == sp {
		program, err = d.opt.Userspace(ctx, birthNS, s.Name)
		if err == nil {
			err = birth.served(ctx, program, s.Name)
		}
		return program, err
	}
	if _, taken, err := sp.linkByName(s.Name); taken || err != nil {
		return "", errors.Join(err, unix.EEXIST)
	}
	if err := nameServed(ctx, s.Name); err != nil {
		return "", err
	}
	name := s.Name
	if _, taken, err := birth.linkByName(name); err != nil {
		return "", err
	} else if taken {
		if name, err = birth.tempName(name); err != nil {
			return "", err
		}
	}
	program, err = d.opt.Userspace(ctx, birthNS, name)
	if err != nil {
		return "", err // whatever it left is its own affair
	}
	if err = birth.served(ctx, program, name); err == nil {
		err = birth.hand(ctx, sp, name, s.Name)
	}
	if err != nil {
		if l, found, _ := birth.linkByName(name); found {
			err = errors.Join(err, birth.remove(ctx, l.Index))
		}
		half := plan.Link{Name: s.Name, Delete: true, Userspace: program}
		err = errors.Join(err, d.deleteLink(context.WithoutCancel(ctx), sp, half))
	}
	return program, err
}

// servedName is the name that a link's program knows it by.
func servedName(name string) string {
	if to, err := os.Readlink(uapiPath(name)); err == nil {
		return strings.TrimSuffix(filepath.Base(to), ".sock")
	}
	return name
}

// tempName is the first temporary name that is neither a link's nor served.
func (sp *space) tempName(name string) (string, error) {
	for _, temp := range tempNames(name) {
		_, taken, err := sp.linkByName(temp)
		if err != nil {
			return "", err
		}
		if !taken && !served(temp) {
			return temp, nil
		}
	}
	return "", fmt.Errorf("interface %s and its temporary names: %w", name, unix.EEXIST)
}

// served waits until a program that was started serves its link.
func (sp *space) served(ctx context.Context, program, name string) error {
	ok, err := until(ctx, startWait, func() (bool, error) {
		_, there, err := sp.linkByName(name)
		return there && answers(name), err
	})
	if err == nil && !ok {
		err = fmt.Errorf("%s did not make the interface in %v: %w", program, startWait, unix.ETIMEDOUT)
	}
	return err
}

// answers says whether a program has come to serve its socket: one that goes to
// the background listens before it has looked at its interface, which must not
// move until then.
func answers(name string) bool {
	c, err := dialUAPI(name)
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	if _, err := c.Write([]byte("get=1\n\n")); err != nil {
		return false
	}
	n, err := c.Read(make([]byte, 64)) // what it says does not matter
	return n > 0 && err == nil
}

// hand moves a link to another namespace where it is called to, and the socket
// of its program is called that too, first: a kill between the two leaves a link
// of a name that is ours alone.
func (sp *space) hand(ctx context.Context, target *space, from, to string) error {
	l, err := sp.mustLink(from)
	if err != nil {
		return err
	}
	if from != to {
		// A symbolic one: wireguard-go takes any change of its socket, a link too,
		// for its removal.
		err := os.Remove(uapiPath(to)) // stale: nobody answers there
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			err = os.Symlink(filepath.Base(uapiPath(from)), uapiPath(to))
		}
		if err != nil {
			return fmt.Errorf("give the socket of %s its name: %w", from, err)
		}
	}
	err = sp.one(ctx, false, func(m *message) (typ, flags uint16) {
		m.putIfinfo(l.Index, 0, 0)
		m.attr32(unix.IFLA_NET_NS_FD, uint32(target.ns.Fd()))
		m.attrString(unix.IFLA_IFNAME, to)
		return unix.RTM_NEWLINK, 0
	})
	if err != nil {
		return fmt.Errorf("move %s to its namespace: %w", from, err)
	}
	// Its IPv6 settings are new there; an interface of type wireguard has no
	// link-local address (IN6_ADDR_GEN_MODE_NONE of linux/if_link.h).
	err = netns.DoFile(target.ns, func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/"+to+"/addr_gen_mode", []byte("1"), 0)
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // there is no IPv6
		return fmt.Errorf("turn off the link-local address of %s: %w", to, err)
	}
	return nil
}

// deleteHalf deletes what a kill left of a link on its way from its birth
// namespace into sp: under a temporary name, and in the birth namespace a link
// that a program serves. Exists made sure that there was none before.
func (d *Doer) deleteHalf(ctx context.Context, sp *space, s plan.Link) error {
	for _, temp := range tempNames(s.Name) {
		l, found, err := sp.linkByName(temp)
		if err == nil && found && (l.Type == "wireguard" || l.Type == "tun") {
			err = sp.remove(ctx, l.Index)
		}
		if err != nil {
			return err
		}
	}
	if s.Birth == nil {
		return nil
	}
	_, birth, err := d.birthplace("", sp, s)
	if errors.Is(err, fs.ErrNotExist) || err == nil && birth == sp {
		return nil // it went with its birth namespace
	}
	if err != nil {
		return err
	}
	if w, err := birth.kernelWG(ctx); err != nil || w != nil {
		return err // there was no program
	}
	temps := tempNames(s.Name)
	for _, name := range append(temps[:], s.Name) {
		l, found, err := birth.linkByName(name)
		if err != nil {
			return err
		}
		if !found || l.Type != "tun" || name == s.Name && !served(name) {
			continue
		}
		if err := birth.remove(ctx, l.Index); err != nil {
			return err
		}
		if err := removeSockets(ctx, s.Name); err != nil {
			return err
		}
	}
	return nil
}
