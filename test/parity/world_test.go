//go:build lab

package parity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// own is where a world keeps what the harness needs: tools, records, logs.
const own = "/run/parity"

// resolvconf is the fake on PATH, in shell builtins alone: a process costs most
// of the time in an emulated machine. It keeps records, logs each call with its
// input and how it was called, and fails as it is told.
const resolvconf = `#!/bin/sh
own=/run/parity
call="resolvconf $*"
input=
case $1 in
-a) while read -r line || [ -n "$line" ]; do input="$input$line
"; done
    [ ! -e $own/fail ] || { read -r code <$own/fail; }
    [ -n "$code" ] || printf %s "$input" >"$own/records/$2" ;;
-d) : >"$own/records/$2" ;;
-l) [ -s "$own/records/$2" ] || exit 1
    while read -r line; do echo "$line"; done <"$own/records/$2"
    exit 0 ;; # a read: not logged
esac
printf '%s\n%s' "$call" "$input" >>$own/calls
{ echo "$call"; printf '%s' "$input"; export -p; read -r parent </proc/$PPID/cmdline; echo "$parent"; } >>$own/seen 2>/dev/null
exit ${code:-0}
`

// layout is the network that a world begins with: one "physical" link with a
// gateway behind it and default routes of both families.
const layout = `link set lo up
link add eth0 mtu 1500 address 02:00:00:00:00:01 type veth peer name gw0 address 02:00:00:00:00:02
link set gw0 up
link set eth0 up
addr add 192.0.2.2/24 dev eth0
addr add 2001:db8::2/64 dev eth0
route add default via 192.0.2.1 dev eth0
route add default via 2001:db8::1 dev eth0
`

// world is a network namespace and a mount namespace on a thread of their own.
// /run, /etc/wireguard and all of /etc are private to it.
type world struct {
	t     testing.TB
	name  string
	calls chan func()
	path  string // PATH of what runs inside
	env   []string
}

// newWorld makes a world. It ends, with all that is in it, with the test.
func newWorld(t testing.TB, name string) *world {
	t.Helper()
	w := &world{t: t, name: name, calls: make(chan func()), path: own + "/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	ready := make(chan error, 1)
	go w.live(ready)
	if err := <-ready; err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	t.Cleanup(func() {
		w.do(func() { w.noProcesses() })
		close(w.calls)
	})
	return w
}

// live is the world's thread: it is never unlocked, and dies with its namespaces.
func (w *world) live(ready chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() { // the main thread cannot end
		defer runtime.UnlockOSThread()
		done := make(chan bool)
		go func() { w.live(ready); close(done) }()
		<-done
		return
	}
	err := enter()
	if err == nil {
		err = w.furnish()
	}
	ready <- err
	if err != nil {
		return
	}
	for f := range w.calls {
		f()
	}
}

// do calls f on the world's thread.
func (w *world) do(f func()) {
	done := make(chan bool)
	w.calls <- func() {
		defer close(done) // a t.Fatal inside must not hang the test
		f()
	}
	<-done
}

func enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	for _, m := range []struct {
		src, dst, kind string
		flags          uintptr
		data           string
		dirs           []string
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE, "", nil},
		{"run", "/run", "tmpfs", 0, "mode=755", nil},
		{"etc", "/etc", "overlay", 0, "lowerdir=/etc,upperdir=/run/etc/up,workdir=/run/etc/work",
			[]string{"/run/etc/up", "/run/etc/work", "/run/netns", "/run/lock"}},
		{"wireguard", "/etc/wireguard", "tmpfs", 0, "mode=700", []string{"/etc/wireguard"}},
	} {
		for _, d := range m.dirs {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount(m.src, m.dst, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.dst, err)
		}
	}
	return nil
}

func (w *world) furnish() error {
	for _, d := range []string{"bin", "records", "ours"} {
		if err := os.MkdirAll(filepath.Join(own, d), 0o755); err != nil {
			return err
		}
	}
	write := func(path, text string, mode os.FileMode) {
		w.write(path, text, mode)
	}
	write(own+"/bin/resolvconf", resolvconf, 0o755)
	write("/etc/resolv.conf", "", 0o644)
	write("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n198.51.100.7 vpn.example\n2001:db8:7::7 vpn6.example\n", 0o644)
	write("/etc/nsswitch.conf", "hosts: files\nservices: files\n", 0o644)
	write("/etc/wireguard/key", keyA+"\n", 0o600)
	// no address is ever tentative: states compare at once
	write("/proc/sys/net/ipv6/conf/all/accept_dad", "0", 0)
	write("/proc/sys/net/ipv6/conf/default/accept_dad", "0", 0)
	if err := os.Symlink(ours(), own+"/ours/wg-quick"); err != nil {
		return err
	}
	if err := os.Symlink(reference()+"/wg", own+"/bin/wg"); err != nil {
		return err
	}
	if r := w.runHere(layout, "ip", "-batch", "-"); r.code != 0 {
		return fmt.Errorf("lay out the network: %s", r.stderr)
	}
	return nil
}

func (w *world) write(path, text string, mode os.FileMode) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Error(err)
	}
	err := os.WriteFile(path, []byte(text), mode)
	if err == nil && mode != 0 {
		err = os.Chmod(path, mode) // whatever the umask
	}
	if err != nil {
		w.t.Error(err)
	}
}

// result is what a command did.
type result struct {
	stdout, stderr string
	code           int
}

// run runs a command inside.
func (w *world) run(stdin string, argv ...string) (r result) {
	w.do(func() { r = w.runHere(stdin, argv...) })
	return r
}

// must runs a command inside that has to succeed.
func (w *world) must(stdin string, argv ...string) string {
	w.t.Helper()
	r := w.run(stdin, argv...)
	if r.code != 0 {
		w.t.Fatalf("%s: %q: exit status %d\n%s%s", w.name, argv, r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// limit is more than any command takes, even in an emulated machine.
const limit = 90 * time.Second

// runHere runs a command on this very thread, which is the world's.
func (w *world) runHere(stdin string, argv ...string) result {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var out, errs bytes.Buffer
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	if !filepath.IsAbs(argv[0]) {
		for _, d := range filepath.SplitList("/usr/sbin:/usr/bin:/sbin:/bin") {
			if p := filepath.Join(d, argv[0]); exists(p) {
				c.Path, c.Err = p, nil
				break
			}
		}
	}
	c.Env = append([]string{"PATH=" + w.path, "HOME=/root", "TERM=dumb", "LC_ALL=C"}, w.env...)
	c.Dir = "/"
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(stdin), &out, &errs
	c.WaitDelay = 5 * time.Second
	err := c.Run()
	r := result{stdout: out.String(), stderr: errs.String()}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		ws := exit.Sys().(syscall.WaitStatus)
		if r.code = ws.ExitStatus(); ws.Signaled() {
			r.code = 128 + int(ws.Signal())
		}
	} else if err != nil {
		r.code = -1
		r.stderr += err.Error()
	}
	return r
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// noProcesses fails the test for each process that still lives in the world.
func (w *world) noProcesses() {
	here, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		w.t.Error(err)
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		if ns, err := os.Readlink(d + "/ns/net"); err == nil && ns == here {
			if args, _ := os.ReadFile(d + "/cmdline"); len(args) > 0 {
				w.t.Errorf("%s: process left: %s %q", w.name, filepath.Base(d), args)
			}
		}
	}
}

// sysctls are those that either program could touch.
var sysctls = []string{
	"ipv4/conf/all/src_valid_mark", "ipv4/conf/default/src_valid_mark", "ipv4/conf/eth0/src_valid_mark",
	"ipv4/conf/all/rp_filter", "ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/all/disable_ipv6",
	"ipv4/conf/wg0/src_valid_mark", "ipv4/conf/wg0/rp_filter", "ipv6/conf/wg0/disable_ipv6", "ipv6/conf/wg0/addr_gen_mode",
}

// What differs from run to run: numbers of links, and in `wg show` handshakes and traffic.
var (
	ifindex  = regexp.MustCompile(`(?m)^\d+: (\S+?)(@\S+)?:? `)
	transfer = regexp.MustCompile(`(?m)^(\S+\t\S+\t\S+\t\S+\t\S+)\t\d+\t\d+\t\d+\t`)
)

// state is all that the kernel and resolvconf hold in the world, as sorted lines.
func (w *world) state() []string {
	var lines []string
	add := func(kind, text string) {
		for l := range strings.Lines(text) {
			if l = strings.TrimSpace(l); l != "" {
				lines = append(lines, kind+" "+strings.Join(strings.Fields(strings.ReplaceAll(l, `\`, " ")), " "))
			}
		}
	}
	w.do(func() {
		ip := func(batch string, args ...string) string {
			r := w.runHere(batch, append([]string{"ip"}, append(args, "-d", "-o", "-batch", "-")...)...)
			if r.code != 0 {
				w.t.Errorf("%s: ip -batch: exit status %d: %s", w.name, r.code, r.stderr)
			}
			return ifindex.ReplaceAllString(r.stdout, "$1 ")
		}
		text := ip("link show\naddr show\nroute show table all\nrule show\n")
		add("ip", text)
		add("ip -6", ip("rule show\n", "-6"))
		if strings.Contains(text, " wireguard ") {
			r := w.runHere("", reference()+"/wg", "show", "all", "dump")
			if r.code != 0 {
				w.t.Errorf("%s: wg show: %s", w.name, r.stderr)
			}
			add("wg", transfer.ReplaceAllString(r.stdout, "$1\t"))
		}
		r := w.runHere("", "nft", "list", "ruleset")
		if r.code != 0 {
			w.t.Errorf("%s: nft list ruleset: %s", w.name, r.stderr)
		}
		add("nft", nftPaths(r.stdout))
		for _, s := range sysctls {
			if b, err := os.ReadFile("/proc/sys/net/" + s); err == nil {
				add("sysctl", s+" = "+string(b))
			}
		}
		files, _ := filepath.Glob(own + "/records/*")
		for _, f := range append(files, "/etc/resolv.conf") {
			b, err := os.ReadFile(f)
			if err != nil {
				w.t.Error(err)
			}
			add("file "+f+":", string(b))
		}
	})
	slices.Sort(lines)
	return lines
}

// nftPaths writes a ruleset as one line per rule, each with its table and chain.
func nftPaths(ruleset string) string {
	var path []string
	var b strings.Builder
	for l := range strings.Lines(ruleset) {
		switch l = strings.TrimSpace(l); {
		case l == "":
		case l == "}":
			path = path[:len(path)-1]
		case strings.HasSuffix(l, "{"):
			path = append(path, strings.TrimSuffix(l, " {"))
			fmt.Fprintln(&b, strings.Join(path, " / "))
		default:
			fmt.Fprintln(&b, strings.Join(append(path[:len(path):len(path)], l), " / "))
		}
	}
	return b.String()
}

// files lists the configs: names, modes, contents.
func (w *world) files() []string {
	var lines []string
	w.do(func() {
		paths, _ := filepath.Glob("/etc/wireguard/*")
		hidden, _ := filepath.Glob("/etc/wireguard/.[!.]*")
		for _, p := range append(paths, hidden...) {
			info, err := os.Lstat(p)
			if err != nil {
				w.t.Error(err)
				continue
			}
			if info.Mode()&os.ModeSymlink != 0 {
				to, _ := os.Readlink(p)
				lines = append(lines, p+" -> "+to)
				continue
			}
			lines = append(lines, fmt.Sprintf("%s %v", p, info.Mode()))
			if info.IsDir() {
				continue
			}
			b, err := os.ReadFile(p)
			if err != nil {
				w.t.Error(err)
			}
			for l := range strings.Lines(string(b)) {
				lines = append(lines, p+": "+strings.TrimSuffix(l, "\n"))
			}
		}
	})
	return lines
}

// takeCalls is resolvconf's log since the last time.
func (w *world) takeCalls() []string {
	var lines []string
	w.do(func() {
		b, err := os.ReadFile(own + "/calls")
		if errors.Is(err, os.ErrNotExist) {
			return
		}
		if err == nil {
			err = os.Remove(own + "/calls")
		}
		if err != nil {
			w.t.Error(err)
		}
		lines = strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	})
	return lines
}

// records is all that wg-quickns and the fakes wrote down, for a look for keys.
func (w *world) records() string {
	var b strings.Builder
	w.do(func() {
		for _, root := range []string{"/run/wg-quickns", own + "/seen", own + "/records"} {
			filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.Type().IsRegular() {
					text, err := os.ReadFile(path)
					if err != nil {
						w.t.Error(err)
					}
					fmt.Fprintf(&b, "%s: %s\n", path, text)
				}
				return nil
			})
		}
	})
	return b.String()
}
