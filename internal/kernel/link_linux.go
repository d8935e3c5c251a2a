package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

// uapiDir is where userspace implementations put their sockets, one per
// interface name and file system: https://www.wireguard.com/xplatform/
const uapiDir = "/var/run/wireguard"

func uapiPath(name string) string { return filepath.Join(uapiDir, name+".sock") }

// dialUAPI connects to the UAPI socket of an interface.
func dialUAPI(name string) (net.Conn, error) {
	return net.DialTimeout("unix", uapiPath(name), time.Second)
}

// served says whether a program answers on the interface's UAPI socket.
func served(name string) bool {
	c, err := dialUAPI(name)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// server holds the program that serves an interface, so that its end can be waited
// for; nil where that cannot be told: whoever began to listen (unix(7), SO_PEERCRED)
// may have been its parent, as with wireguard-go.
func server(name string) *os.File {
	c, err := dialUAPI(name)
	if err != nil {
		return nil
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return nil
	}
	pidfd := -1
	raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil && cred.Pid > 0 {
			pidfd, _ = unix.PidfdOpen(int(cred.Pid), 0)
		}
	})
	if pidfd < 0 {
		return nil
	}
	return os.NewFile(uintptr(pidfd), name)
}

func noLink(name string) error {
	return fmt.Errorf("interface %s: %w", name, unix.ENODEV)
}

// parseLink reads a struct ifinfomsg and its attributes. The library's reading of
// them, statistics and all, was most of what a short command did.
func parseLink(b []byte) (l facts.Link) {
	if len(b) < unix.SizeofIfInfomsg {
		return l
	}
	flags := native32(b[8:])
	l.Index, l.Up, l.Running = int(int32(native32(b[4:]))), flags&unix.IFF_UP != 0, flags&unix.IFF_RUNNING != 0
	for typ, data := range attributes(b[unix.SizeofIfInfomsg:]) {
		switch typ {
		case unix.IFLA_IFNAME:
			l.Name = unix.ByteSliceToString(data)
		case unix.IFLA_MTU:
			l.MTU = int(native32(data))
		case unix.IFLA_LINKINFO:
			for typ, data := range attributes(data) {
				if typ == unix.IFLA_INFO_KIND {
					l.Type = unix.ByteSliceToString(data)
				}
			}
		}
	}
	return l
}

func (sp *space) linkByName(name string) (link facts.Link, found bool, err error) {
	return sp.linkBy(0, name)
}

// linkBy reads the link of an index, or where that is 0 of a name.
func (sp *space) linkBy(index int, name string) (link facts.Link, found bool, err error) {
	put := func(m *message, _ int) (typ, flags uint16) { return m.putLinkGet(index, name) }
	_, err = sp.rt.exchange(context.Background(), 1, put, func(_ int, body []byte, err error) error {
		if err == nil {
			link, found = parseLink(body), true
		}
		return err
	})
	switch {
	case errors.Is(err, unix.ENODEV):
		return link, false, nil
	case err == nil && !found:
		err = unix.ENOBUFS
	}
	if err != nil {
		return link, false, fmt.Errorf("read interface %s: %w", name, err)
	}
	return link, true, nil
}

func (sp *space) mustLink(name string) (facts.Link, error) {
	l, found, err := sp.linkByName(name)
	if err == nil && !found {
		err = noLink(name)
	}
	return l, err
}

// maxDumps is how often a dump is tried that others' changes interrupt.
const maxDumps = 50

// dump repeats a dump until the kernel says nothing changed while it ran
// (NLM_F_DUMP_INTR): half an answer is none.
func dump(what string, try func() error) error {
	var err error
	for range maxDumps {
		if err = try(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("list %s: %w", what, err)
	}
	return nil
}

func (sp *space) links() (list []facts.Link, err error) {
	err = dump("interfaces", func() error {
		list = list[:0]
		return sp.rt.dump((*message).putLinkDump, func(body []byte) error {
			list = append(list, parseLink(body))
			return nil
		})
	})
	return list, err
}

func (sp *space) addrs(l facts.Link) (list []netip.Prefix, err error) {
	dev := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: l.Index}}
	err = dump("addresses of "+l.Name, func() error {
		as, err := sp.list.AddrList(dev, unix.AF_UNSPEC)
		list = make([]netip.Prefix, 0, len(as))
		for _, a := range as {
			list = append(list, toPrefix(a.IPNet))
		}
		return err
	})
	return list, err
}

// toPrefix is zero for nil. The address keeps its bits behind the mask.
func toPrefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a, bits)
}

// Links lists the interfaces of ns.
func (d *Doer) Links(ns plan.NS) ([]facts.Link, error) {
	sp, err := d.space(ns)
	if err != nil {
		return nil, err
	}
	return sp.links()
}

// Link reads one interface of ns.
func (d *Doer) Link(ns plan.NS, name string) (l facts.Link, found bool, err error) {
	sp, err := d.space(ns)
	if err != nil {
		return l, false, err
	}
	return sp.linkByName(name)
}

// Addresses lists the addresses of an interface with their lengths, in the order
// `ip -brief address show` prints them.
func (d *Doer) Addresses(ns plan.NS, name string) ([]netip.Prefix, error) {
	sp, err := d.space(ns)
	if err != nil {
		return nil, err
	}
	l, err := sp.mustLink(name)
	if err != nil {
		return nil, err
	}
	return sp.addrs(l)
}

// WireGuards names the WireGuard interfaces as `wg show interfaces` does, but
// without those that programs serve in other namespaces.
func (d *Doer) WireGuards(ns plan.NS) ([]string, error) {
	sp, err := d.space(ns)
	if err != nil {
		return nil, err
	}
	links, err := sp.links()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, l := range links {
		// wg(8) has the kernel's first.
		if l.Type == "wireguard" {
			names = append(names, l.Name)
		}
	}
	socks, err := os.ReadDir(uapiDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list userspace WireGuard interfaces: %w", err)
	}
	for _, f := range socks {
		name, ok := strings.CutSuffix(f.Name(), ".sock")
		here := slices.ContainsFunc(links, func(l facts.Link) bool { return l.Name == name && l.Type == "tun" })
		if ok && here && f.Type()&(fs.ModeSocket|fs.ModeSymlink) != 0 && served(name) {
			names = append(names, name)
		}
	}
	return names, nil
}

// How long a userspace program may take to serve its interface, and to end when
// that is deleted: a rollback has 4 s in all.
const (
	startWait = 5 * time.Second
	endWait   = 2 * time.Second
	// processEnd is what the rest of the program may take after its socket is closed.
	processEnd = time.Second
)

// until polls ok, for so long at most: often at first, as a program starts and
// ends in a millisecond or two.
func until(ctx context.Context, long time.Duration, ok func() (bool, error)) (bool, error) {
	pause := 250 * time.Microsecond
	for end := time.Now().Add(long); ; pause = min(2*pause, 5*time.Millisecond) {
		done, err := ok()
		if done || err != nil || time.Now().After(end) {
			return done, err
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(pause):
		}
	}
}

func (d *Doer) addLink(ctx context.Context, ns plan.NS, sp *space, s plan.Link) (plan.Outcome, error) {
	birthNS, birth, err := d.birthplace(ns, sp, s)
	if err != nil {
		return plan.Outcome{}, err
	}
	undo := plan.Link{Name: s.Name, Delete: true}
	err = sp.newLink(ctx, birth, s.Name)
	if errors.Is(err, unix.EOPNOTSUPP) && d.opt.Userspace != nil {
		undo.Userspace, err = d.serve(ctx, birthNS, birth, sp, s)
	}
	if err != nil {
		return plan.Outcome{}, err
	}
	l, err := sp.mustLink(s.Name)
	if err != nil {
		return plan.Outcome{}, err
	}
	undo.Index = l.Index
	return plan.Outcome{Undo: []plan.Step{undo}}, nil
}

// tunnel finds the link that a deleting step means: of the right index, whatever its
// name is by now, or where that is not known of the right name, and one that WireGuard
// serves. Any other is somebody else's, and the tunnel is gone.
func (sp *space) tunnel(ctx context.Context, s plan.Link) (l facts.Link, ours bool, err error) {
	l, there, err := sp.linkBy(s.Index, s.Name)
	if err != nil || !there {
		return l, false, err
	}
	switch {
	case l.Type == "wireguard", l.Type == "tun" && s.Userspace != "" && s.Index != 0:
		ours = true
	case l.Type == "tun":
		// A program that is just starting makes the link first.
		ours, err = until(ctx, endWait, func() (bool, error) { return served(s.Name), nil })
	}
	return l, ours, err
}

func (d *Doer) deleteLink(ctx context.Context, sp *space, s plan.Link) error {
	if s.Index == 0 { // it is not known how far it came
		if err := d.deleteHalf(ctx, sp, s); err != nil {
			return err
		}
	}
	l, ours, err := sp.tunnel(ctx, s)
	if err != nil {
		return err
	}
	var program *os.File
	if ours {
		if l.Type == "tun" {
			program = server(s.Name)
			defer program.Close()
		}
		err = sp.one(ctx, true, func(m *message) (typ, flags uint16) { return m.putLinkDelete(l.Index) })
		if err != nil || l.Type == "wireguard" {
			return err
		}
	} else if s.Userspace == "" {
		return nil
	} else if _, taken, err := sp.linkByName(s.Name); err != nil || taken {
		return err
	}
	err = removeSockets(ctx, s.Name)
	if program != nil {
		until(ctx, processEnd, func() (bool, error) {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(program.Fd()), Events: unix.POLLIN}}, 0)
			return n > 0, err
		})
	}
	return err
}

// removeSockets is removeSocket for a name and its temporary names.
func removeSockets(ctx context.Context, name string) error {
	temps := tempNames(name)
	var errs []error
	for _, n := range append(temps[:], name) {
		if _, err := os.Lstat(uapiPath(n)); err == nil {
			errs = append(errs, removeSocket(ctx, n))
		}
	}
	return errors.Join(errs...)
}

// removeSocket waits for a program whose interface is gone to end, so that a new
// one can take the name, and removes the socket when it left it behind.
func removeSocket(ctx context.Context, name string) error {
	if _, err := until(ctx, endWait, func() (bool, error) { return !served(name), nil }); err != nil {
		return err
	}
	if served(name) {
		return nil // an interface of that name in another namespace
	}
	if err := os.Remove(uapiPath(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the socket of %s: %w", name, err)
	}
	return nil
}
