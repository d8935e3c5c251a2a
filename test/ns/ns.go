// Package ns gives tests network namespaces: isolation of a whole test binary,
// named namespaces with veth pairs between them, commands and functions run
// inside, and a check that nothing is left.
package ns

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// NS is a network namespace with a name under /run/netns, as ip-netns(8) makes it.
type NS struct {
	Name string
	t    testing.TB
}

// New makes a namespace with lo up and no duplicate address detection. At the end of the test it is deleted, and
// the test fails when a process still lives in it.
func New(t testing.TB, name string) *NS {
	t.Helper()
	n := &NS{name, t}
	Run(t, "ip", "netns", "add", name)
	t.Cleanup(func() {
		left := processes(n.Path())
		for end := time.Now().Add(2 * time.Second); len(left) > 0 && time.Now().Before(end); left = processes(n.Path()) {
			time.Sleep(10 * time.Millisecond) // a userspace WireGuard closes its socket first, and then ends
		}
		for _, p := range left {
			t.Errorf("process left in namespace %s: %s", name, p)
		}
		Run(t, "ip", "netns", "del", name)
	})
	n.Run("ip", "link", "set", "lo", "up")
	// no address is ever tentative: states compare at once
	n.Run("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
	return n
}

// Path is the file that stands for the namespace.
func (n *NS) Path() string { return "/run/netns/" + n.Name }

// Cmd is a command to be run inside, by `ip netns exec`.
func (n *NS) Cmd(argv ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", n.Name}, argv...)...)
}

// Run runs a command inside and gives its standard output; the test ends when
// it fails.
func (n *NS) Run(argv ...string) string {
	n.t.Helper()
	return run(n.t, n.Cmd(argv...))
}

// Try runs a command inside and gives what it printed and its exit status
// (128 + signal when a signal ended it).
func (n *NS) Try(argv ...string) Result { return Try(n.Cmd(argv...)) }

// Do calls f on a thread that is inside and dies afterwards. f must not start
// goroutines that need the namespace: those run on other threads.
func (n *NS) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() { // the main thread cannot end, and /proc/self is what it sees
			defer runtime.UnlockOSThread()
			done <- n.Do(f)
			return
		}
		// never unlocked: the thread ends with the goroutine
		fd, err := unix.Open(n.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			unix.Close(fd)
		}
		if err != nil {
			done <- fmt.Errorf("enter namespace %s: %w", n.Name, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Veth joins two namespaces: link linkA in a and linkB in b, both up, with the
// addresses (CIDR, any number), none of them tentative any more.
func Veth(a *NS, linkA string, addrsA []string, b *NS, linkB string, addrsB []string) {
	a.t.Helper()
	Run(a.t, "ip", "-n", a.Name, "link", "add", linkA, "type", "veth", "peer", "name", linkB, "netns", b.Name)
	Run(a.t, "ip", "-n", a.Name, "link", "set", linkA, "up")
	Run(a.t, "ip", "-n", b.Name, "link", "set", linkB, "up")
	for _, addr := range addrsA {
		Run(a.t, "ip", "-n", a.Name, "addr", "add", addr, "dev", linkA)
	}
	for _, addr := range addrsB {
		Run(a.t, "ip", "-n", b.Name, "addr", "add", addr, "dev", linkB)
	}
	a.settle()
	b.settle()
}

// settle waits until every address may be used: even without duplicate address
// detection a new one is tentative for a moment.
func (n *NS) settle() {
	n.t.Helper()
	for end := time.Now().Add(10 * time.Second); Run(n.t, "ip", "-n", n.Name, "-6", "addr", "show", "tentative") != ""; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			n.t.Fatalf("an address in namespace %s stays tentative", n.Name)
		}
	}
}

// Result is what a command did.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// Try runs a command to its end. A command that cannot be started has status 127.
func Try(c *exec.Cmd) Result {
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	code := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		ws := exit.Sys().(syscall.WaitStatus)
		if code = ws.ExitStatus(); ws.Signaled() {
			code = 128 + int(ws.Signal())
		}
	} else if err != nil {
		code = 127
		fmt.Fprintln(&errs, err)
	}
	return Result{out.String(), errs.String(), code}
}

// Run runs a command in the test's own namespace and gives its standard output;
// the test ends when it fails.
func Run(t testing.TB, argv ...string) string {
	t.Helper()
	return run(t, exec.Command(argv[0], argv[1:]...))
}

func run(t testing.TB, c *exec.Cmd) string {
	t.Helper()
	r := Try(c)
	if r.Code != 0 {
		t.Fatalf("%s: exit status %d\n%s%s", strings.Join(c.Args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// Turning replaces a file by a link, and that by a file, all the time until the test ends.
func Turning(t testing.TB, path string) {
	stop, stopped := make(chan bool), make(chan bool)
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				os.Remove(path)
				return
			default:
				os.WriteFile(path+".new", nil, 0o644)
				os.Rename(path+".new", path)
				os.Symlink("hosts", path+".new")
				os.Rename(path+".new", path)
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-stopped })
}

// processes lists the processes of one network namespace, or with "" all,
// PID 1 and the caller left out.
func processes(netns string) []string {
	var want os.FileInfo
	if netns != "" {
		var err error
		if want, err = os.Stat(netns); err != nil {
			return nil
		}
	}
	var list []string
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		if pid == 1 || pid == os.Getpid() {
			continue
		}
		if want != nil {
			if have, err := os.Stat(d + "/ns/net"); err != nil || !os.SameFile(want, have) {
				continue
			}
		}
		if args, err := os.ReadFile(d + "/cmdline"); err == nil && len(args) > 0 { // empty: a kernel thread or a zombie
			list = append(list, fmt.Sprintf("%d %s", pid, bytes.TrimSpace(bytes.ReplaceAll(args, []byte{0}, []byte{' '}))))
		}
	}
	return list
}
