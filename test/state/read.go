package state

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"wg-quickns/test/programs"
)

type object = map[string]any

// readIP reads links, addresses, routes and rules as ip(8) tells them.
func readIP(s State) error {
	out, err := command("link show\naddr show\nroute show table all\nrule show\n", "ip", "-j", "-d", "-batch", "-")
	if err != nil {
		return err
	}
	out6, err := command("", "ip", "-j", "-d", "-6", "rule", "show")
	if err != nil {
		return err
	}
	var links, addrs, routes, rules4, rules6 []object
	dec := json.NewDecoder(strings.NewReader(out + out6))
	for _, to := range []*[]object{&links, &addrs, &routes, &rules4, &rules6} {
		if err := dec.Decode(to); err != nil {
			return fmt.Errorf("ip -j: %w", err)
		}
	}
	alias := randomNames(links, addrs)
	for _, l := range links {
		name := l["ifname"]
		drop(l, "ifname", "ifindex", "link_index", "link_netnsid", "link", "address", "broadcast", "permaddr", "stats", "stats64")
		for _, k := range slices.Sorted(maps.Keys(l)) {
			s.add("link", "%v %s=%s", name, k, text(l[k]))
		}
	}
	for _, l := range addrs {
		infos, _ := l["addr_info"].([]any)
		for _, info := range infos {
			a := info.(object)
			for _, k := range []string{"valid_life_time", "preferred_life_time"} {
				if a[k] != float64(1<<32-1) {
					a[k] = "limited"
				}
			}
			s.add("addr", "%v %s", l["ifname"], alias.Replace(pairs(a, "local", "prefixlen")))
		}
	}
	for _, r := range routes {
		drop(r, "expires", "cache")
		s.add("route", "%s", alias.Replace(pairs(r, "table", "type", "dst", "dev", "gateway")))
	}
	for _, r := range rules4 {
		s.add("rule", "-4 %s", pairs(r, "priority"))
	}
	for _, r := range rules6 {
		s.add("rule", "-6 %s", pairs(r, "priority"))
	}
	return nil
}

// randomNames replaces the link-local addresses that come from a random MAC
// address, or that the kernel made up for a tun device, by the link's name.
func randomNames(links, addrs []object) *strings.Replacer {
	mac, tun := map[any]net.HardwareAddr{}, map[any]bool{}
	for _, l := range links {
		text, _ := l["address"].(string)
		if m, err := net.ParseMAC(text); err == nil && len(m) == 6 {
			mac[l["ifname"]] = m
		}
		info, _ := l["linkinfo"].(object)
		tun[l["ifname"]] = info["info_kind"] == "tun"
	}
	var pairs []string
	for _, l := range addrs {
		infos, _ := l["addr_info"].([]any)
		for _, info := range infos {
			local, _ := info.(object)["local"].(string)
			ip := net.ParseIP(local)
			if !ip.IsLinkLocalUnicast() || ip.To4() != nil {
				continue
			}
			m := mac[l["ifname"]]
			eui := m != nil && bytes.Equal(ip[8:], []byte{m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
			if eui || tun[l["ifname"]] && !bytes.Equal(ip[8:12], make([]byte, 4)) {
				pairs = append(pairs, local, fmt.Sprintf("fe80::(%v)", l["ifname"]))
			}
		}
	}
	return strings.NewReplacer(pairs...)
}

func readNft(s State) error {
	out, err := command("", "nft", "-j", "list", "ruleset")
	if err != nil {
		return err
	}
	var ruleset struct{ Nftables []map[string]object }
	if err := json.Unmarshal([]byte(out), &ruleset); err != nil {
		return fmt.Errorf("nft -j: %w", err)
	}
	order := map[string]int{}
	for _, entry := range ruleset.Nftables {
		for kind, o := range entry {
			if kind == "metainfo" {
				continue
			}
			strip(o, "handle", "packets", "bytes")
			where := fmt.Sprint(o["family"], " ", o["table"], " ", o["chain"])
			if kind == "rule" { // their order counts
				kind = fmt.Sprintf("rule %s %d:", where, order[where])
				order[where]++
			}
			s.add("nft", "%s %s", kind, text(o))
		}
	}
	return nil
}

// readIptables reads the tables of the old interface, where one is in use:
// asking for a table makes it.
func readIptables(s State) error {
	for family, save := range map[string]string{"ip": "iptables-legacy-save", "ip6": "ip6tables-legacy-save"} {
		names, err := os.ReadFile("/proc/thread-self/net/" + family + "_tables_names")
		if errors.Is(err, fs.ErrNotExist) || err == nil && len(bytes.TrimSpace(names)) == 0 {
			continue
		}
		if err != nil {
			return err
		}
		out, err := command("", save)
		if err != nil {
			return err
		}
		table := ""
		for i, line := range strings.Split(strings.TrimSpace(out), "\n") {
			switch {
			case strings.HasPrefix(line, "*"):
				table = line[1:]
			case strings.HasPrefix(line, ":"):
				policy, _, _ := strings.Cut(line[1:], " [")
				s.add("iptables", "%s %s %s", family, table, policy)
			case strings.HasPrefix(line, "-"):
				s.add("iptables", "%s %s %03d %s", family, table, i, line)
			}
		}
	}
	return nil
}

func readSysctl(s State) error {
	for _, pattern := range []string{"/proc/sys/net/ipv4/conf/*/*", "/proc/sys/net/ipv6/conf/*/*", "/proc/sys/net/ipv4/ip_forward"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, f := range files {
			if filepath.Base(f) == "stable_secret" { // unreadable until set
				continue
			}
			value, err := os.ReadFile(f)
			if errors.Is(err, fs.ErrPermission) { // write-only
				continue
			} else if err != nil {
				return err
			}
			s.add("sysctl", "%s=%s", strings.ReplaceAll(f[len("/proc/sys/"):], "/", "."), bytes.TrimSpace(value))
		}
	}
	return nil
}

// readWG reads the WireGuard devices of the namespace, and the userspace ones
// that /run/wireguard leads to.
func readWG(s State) error {
	kernel := slices.ContainsFunc(s["link"], func(l string) bool { return strings.Contains(l, `"info_kind":"wireguard"`) })
	if sockets, _ := filepath.Glob("/run/wireguard/*.sock"); !kernel && sockets == nil {
		return nil // a process less, and they are dear in the lab
	}
	wg, err := programs.WG()
	if err != nil {
		return err
	}
	out, err := command("", wg, "show", "all", "dump")
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		switch len(f) {
		case 5:
			s.add("wg", "%s private-key=%s listen-port=%s fwmark=%s", f[0], hash(f[1]), f[3], f[4])
		case 9:
			ips := strings.Split(f[4], ",")
			slices.Sort(ips)
			s.add("wg", "%s peer=%s preshared-key=%s endpoint=%s allowed-ips=%s keepalive=%s",
				f[0], hash(f[1]), hash(f[2]), f[3], strings.Join(ips, ","), f[8])
		default:
			return fmt.Errorf("wg show all dump: a line of %d fields", len(f))
		}
	}
	return nil
}

func hash(key string) string {
	if key == "(none)" {
		return key
	}
	return fmt.Sprintf("%.4x", sha256.Sum256([]byte(key)))
}

// readFiles reads what says who resolves names and who manages tunnels. Of the
// configuration and run-time files only the names are told, as they hold keys.
func readFiles(s State) error {
	for _, place := range []struct {
		path     string
		contents bool
	}{
		{"/etc/resolv.conf", true}, {"/etc/netns", true}, {"/run/resolvconf", true},
		{"/etc/wireguard", false}, {"/run/netns", false}, {"/run/wireguard", false}, {"/run/wg-quickns", false},
	} {
		err := filepath.WalkDir(place.path, func(path string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			} else if err != nil {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			line := fmt.Sprintf("%s %v", path, info.Mode())
			if place.contents && e.Type().IsRegular() {
				b, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				line += fmt.Sprintf(" %q", b)
			} else if e.Type() == fs.ModeSymlink {
				to, err := os.Readlink(path)
				if err != nil {
					return err
				}
				line += " -> " + to
			}
			s.add("file", "%s", line)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// readMounts leaves the numbers out that are other ones every time.
func readMounts(s State) error {
	b, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line) // proc_pid_mountinfo(5): id parent device root point options [optional...] - type source super
		dash := slices.Index(f, "-")
		if dash < 6 {
			return fmt.Errorf("mountinfo: %q", line)
		}
		root, _, _ := strings.Cut(f[3], ":[")
		s.add("mount", "%s %s %s %s", f[4], root, f[5], strings.Join(f[dash+1:], " "))
	}
	return nil
}

// readProcesses lists every process but the caller, what it descends from, and
// the kernel's threads.
func readProcesses(s State) error {
	mine := map[string]bool{"1": true}
	for pid := fmt.Sprint(os.Getpid()); pid != "0" && !mine[pid]; {
		mine[pid] = true
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil {
			return err
		}
		pid = strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))[1]
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, d := range dirs {
		comm, _ := os.ReadFile(d + "/comm")
		args, err := os.ReadFile(d + "/cmdline")
		if mine[filepath.Base(d)] || err != nil || len(args) == 0 { // err: it has just ended
			continue
		}
		s.add("process", "%s: %s", bytes.TrimSpace(comm), bytes.TrimSpace(bytes.ReplaceAll(args, []byte{0}, []byte{' '})))
	}
	return nil
}

func command(stdin string, argv ...string) (string, error) {
	c := exec.Command(argv[0], argv[1:]...)
	c.Stdin = strings.NewReader(stdin)
	out, err := c.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", strings.Join(argv, " "), err)
	}
	return string(out), nil
}

func drop(o object, keys ...string) {
	for _, k := range keys {
		delete(o, k)
	}
}

// strip drops keys at every depth.
func strip(v any, keys ...string) {
	switch v := v.(type) {
	case object:
		drop(v, keys...)
		for _, below := range v {
			strip(below, keys...)
		}
	case []any:
		for _, below := range v {
			strip(below, keys...)
		}
	}
}

// pairs is an object as "key=value ...", some keys first.
func pairs(o object, first ...string) string {
	keys := slices.Sorted(maps.Keys(o))
	slices.SortStableFunc(keys, func(a, b string) int {
		rank := func(k string) int {
			if i := slices.Index(first, k); i >= 0 {
				return i
			}
			return len(first)
		}
		return rank(a) - rank(b)
	})
	var list []string
	for _, k := range keys {
		list = append(list, k+"="+text(o[k]))
	}
	return strings.Join(list, " ")
}

func text(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
