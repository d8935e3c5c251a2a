package ns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// initName is argv[0] of PID 1 of an isolated test. It marks the isolation for
// everything below, whatever became of the environment on the way.
const initName = "wgtest-init"

// Main is a whole TestMain: it isolates the test binary (see [Isolate]), runs
// the tests, and fails them when they leave something behind.
//
//	func TestMain(m *testing.M) { ns.Main(m) }
func Main(m *testing.M) {
	Isolate()
	code := m.Run()
	for _, l := range Leftovers() {
		fmt.Fprintln(os.Stderr, "left behind:", l)
		code = max(code, 1)
	}
	os.Exit(code)
}

// Isolate gives the calling test binary namespaces of its own: network (lo is
// up), mount, PID, IPC and UTS. /run is empty there, /etc a scratch overlay of
// the host's with empty /etc/wireguard and /etc/netns, and PID 1 is a reaper in
// the test's network namespace, so that "the init namespace" is the test's too.
// Whatever happens inside ends with the test. It must be the first call of
// TestMain; the outer process never returns from it. Inside it does nothing.
// It needs root and exits 1 without.
func Isolate() {
	switch {
	case os.Getpid() == 1 && os.Args[0] == initName:
		reaper()
	case isolated():
		// What is under test is to be interrupted as at a terminal, also where nohup(1) or
		// the & of a script started the tests: a signal that is caught here is none that a
		// child ignores.
		for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT} {
			if signal.Ignored(s) {
				signal.Notify(make(chan os.Signal, 1), s)
			}
		}
	default:
		outer()
	}
}

func isolated() bool {
	b, err := os.ReadFile("/proc/1/cmdline")
	return err == nil && strings.HasPrefix(string(b), initName+"\x00")
}

// outer starts the reaper in new namespaces and ends as it ends.
func outer() {
	if os.Geteuid() != 0 {
		die(errors.New("this test needs root: it makes network namespaces"))
	}
	runtime.LockOSThread() // the parent death signal follows the thread
	c := &exec.Cmd{
		Path: "/proc/self/exe", Args: append([]string{initName}, os.Args...),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
			Pdeathsig:  unix.SIGKILL,
		},
	}
	err := c.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() > 0 {
		os.Exit(exit.ExitCode())
	} else if err != nil {
		die(fmt.Errorf("isolated test: %w", err))
	}
	os.Exit(0)
}

// reaper is PID 1: it lays out the file systems, starts the test and reaps what
// the test orphans, as every init does.
func reaper() {
	if err := layout(); err != nil {
		die(err)
	}
	child, err := syscall.ForkExec("/proc/self/exe", os.Args[1:], &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
	if err != nil {
		die(fmt.Errorf("start test: %w", err))
	}
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			die(fmt.Errorf("wait for test: %w", err))
		case pid != child:
		case ws.Signaled():
			die(fmt.Errorf("test ended by %v", ws.Signal()))
		default:
			os.Exit(ws.ExitStatus())
		}
	}
}

func layout() error {
	mounts := []struct {
		src, dst, kind string
		flags          uintptr
		data           string
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE, ""},
		{"proc", "/proc", "proc", 0, ""},
		{"sysfs", "/sys", "sysfs", 0, ""}, // sysfs shows the network namespace that mounted it
		{"run", "/run", "tmpfs", 0, "mode=755"},
		{"etc", "/etc", "overlay", 0, "lowerdir=/etc,upperdir=/run/.etc/up,workdir=/run/.etc/work"},
		{"wireguard", "/etc/wireguard", "tmpfs", 0, "mode=700"},
		{"netns", "/etc/netns", "tmpfs", 0, "mode=755"},
	}
	for _, m := range mounts {
		var dirs []string
		switch m.dst {
		case "/etc":
			dirs = []string{"/run/.etc/up", "/run/.etc/work", "/run/netns", "/run/lock"}
		case "/etc/wireguard", "/etc/netns":
			dirs = []string{m.dst}
		}
		for _, d := range dirs {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount(m.src, m.dst, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s for an isolated test: %w", m.dst, err)
		}
	}
	// A wireguard-go of the machine must not stand in for the built-in one.
	if path, err := exec.LookPath("wireguard-go"); err == nil {
		if err := unix.Mount("/dev/null", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("hide %s from an isolated test: %w", path, err)
		}
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link set lo up: %w: %s", err, out)
	}
	return nil
}

// Leftovers lists what an isolated test should have removed and did not: named
// namespaces, processes, links.
func Leftovers() []string {
	var left []string
	names, _ := filepath.Glob("/run/netns/*")
	for _, n := range names {
		left = append(left, "namespace "+n)
	}
	for _, p := range processes("") {
		left = append(left, "process "+p)
	}
	links, _ := filepath.Glob("/sys/class/net/*")
	for _, l := range links {
		if name := filepath.Base(l); name != "lo" && !builtin[name] {
			left = append(left, "link "+name)
		}
	}
	return left
}

// builtin are the links that some kernels put into every new namespace.
var builtin = map[string]bool{
	"bonding_masters": true, "dummy0": true, "sit0": true, "tunl0": true, "gre0": true, "gretap0": true, "erspan0": true,
	"ip_vti0": true, "ip6_vti0": true, "ip6tnl0": true, "ip6gre0": true, "teql0": true, "ifb0": true, "ifb1": true,
}

func die(err error) {
	fmt.Fprintf(os.Stderr, "FAIL: %v\n", err)
	os.Exit(1)
}
