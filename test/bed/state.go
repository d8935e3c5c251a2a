package bed

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wg-quickns/test/state"
)

// Take reads what the program may change in the namespace and beside it, without
// a process: links, addresses, routes of all tables, rules, nft tables with their
// chains, src_valid_mark, records of resolvconf, journals, sockets, processes, named
// namespaces and their files.
func (b *Bed) Take() (state.State, error) {
	s := state.State{}
	for what, read := range map[string]func(state.State) error{
		"links": b.links, "routes": b.routes, "rules": b.rules, "nft": b.nft, "sysctl": b.sysctl, "files": b.files, "processes": b.processes,
	} {
		if err := read(s); err != nil {
			return nil, fmt.Errorf("read %s: %w", what, err)
		}
	}
	for _, lines := range s {
		slices.Sort(lines)
	}
	return s, nil
}

func add(s state.State, section, format string, args ...any) {
	s[section] = append(s[section], fmt.Sprintf(format, args...))
}

// again repeats a dump that changes interrupted.
func again[T any](read func() ([]T, error)) (list []T, err error) {
	for range 100 {
		if list, err = read(); err != netlink.ErrDumpInterrupted {
			break
		}
	}
	return list, err
}

func (b *Bed) links(s state.State) error {
	links, err := again(b.handle.LinkList)
	if err != nil {
		return err
	}
	for _, l := range links {
		a := l.Attrs()
		add(s, "link", "%s %s mtu=%d up=%v", a.Name, l.Type(), a.MTU, a.Flags&net.FlagUp != 0)
	}
	addrs, err := again(func() ([]netlink.Addr, error) { return b.handle.AddrList(nil, unix.AF_UNSPEC) })
	for _, a := range addrs {
		add(s, "addr", "%s flags=%d scope=%d on %d", a.IPNet, a.Flags, a.Scope, a.LinkIndex)
	}
	return err
}

func (b *Bed) routes(s state.State) error {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := again(func() ([]netlink.Route, error) {
			return b.handle.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return err
		}
		for _, r := range routes {
			add(s, "route", "%v table=%d metric=%d type=%d protocol=%d scope=%d gateway=%v source=%v mtu=%d on %d",
				r.Dst, r.Table, r.Priority, r.Type, r.Protocol, r.Scope, r.Gw, r.Src, r.MTU, r.LinkIndex)
		}
	}
	return nil
}

func (b *Bed) rules(s state.State) error {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := again(func() ([]netlink.Rule, error) { return b.handle.RuleList(family) })
		if err != nil {
			return err
		}
		for _, r := range rules {
			text, err := json.Marshal(r)
			if err != nil {
				return err
			}
			add(s, "rule", "%s", text)
		}
	}
	return nil
}

func (b *Bed) nft(s state.State) error {
	return b.NS.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := c.ListTables()
		if err != nil {
			return err
		}
		for _, t := range tables {
			add(s, "nft", "table %d %s", t.Family, t.Name)
		}
		chains, err := c.ListChains()
		for _, ch := range chains {
			add(s, "nft", "chain %d %s %s", ch.Table.Family, ch.Table.Name, ch.Name)
		}
		return err
	})
}

func (b *Bed) sysctl(s state.State) error {
	return b.NS.Do(func() error {
		value, err := os.ReadFile("/proc/sys/net/ipv4/conf/all/src_valid_mark")
		add(s, "sysctl", "src_valid_mark=%s", bytes.TrimSpace(value))
		return err
	})
}

// files tells what is in the folders of records, journals, sockets and namespaces.
// The journals' root and its global lock stay when they are made.
func (b *Bed) files(s state.State) error {
	for _, root := range []string{b.Records, "/run/wg-quickns", "/run/wireguard", "/run/netns", "/etc/netns"} {
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			switch {
			case os.IsNotExist(err), path == root, path == "/run/wg-quickns/@lock":
				return nil
			case err != nil:
				return err
			case root == "/etc/netns" && !entry.IsDir():
				text, err := os.ReadFile(path)
				add(s, "file", "%s %q", path, text)
				return err
			case root != b.Records:
				add(s, "file", "%s", path)
				return nil
			}
			text, err := os.ReadFile(path)
			if len(text) > 0 {
				add(s, "dns", "%s %s", filepath.Base(path), bytes.TrimSpace(text))
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// processes lists the processes that live in the namespace.
func (b *Bed) processes(s state.State) error {
	pids, err := b.pids()
	for _, pid := range pids {
		if args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && len(args) > 0 {
			add(s, "process", "%s", strings.ReplaceAll(strings.Trim(string(args), "\x00"), "\x00", " "))
		}
	}
	return err
}

func (b *Bed) pids() (pids []int, err error) {
	var here, st unix.Stat_t
	if err := unix.Stat(b.NS.Path(), &here); err != nil {
		return nil, err
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	for _, dir := range procs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if pid != os.Getpid() && unix.Stat(dir+"/ns/net", &st) == nil && st.Dev == here.Dev && st.Ino == here.Ino {
			pids = append(pids, pid)
		}
	}
	return pids, err
}

// Abandon ends what a failed test has left running, so that another bed finds
// the interfaces' names free.
func (b *Bed) Abandon() {
	pids, _ := b.pids()
	for _, pid := range pids {
		unix.Kill(pid, unix.SIGKILL)
	}
	os.RemoveAll("/run/wg-quickns")
	os.RemoveAll("/run/wireguard")
}

// Out names the link by which an address is reached.
func (b *Bed) Out(to string) (string, error) {
	routes, err := b.handle.RouteGet(net.ParseIP(to))
	if err != nil {
		return "", fmt.Errorf("route to %s: %w", to, err)
	}
	l, err := b.handle.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return "", fmt.Errorf("route to %s: %w", to, err)
	}
	return l.Attrs().Name, nil
}

// Index is a link's.
func (b *Bed) Index(link string) (int, error) {
	l, err := b.handle.LinkByName(link)
	if err != nil {
		return 0, fmt.Errorf("link %s: %w", link, err)
	}
	return l.Attrs().Index, nil
}
