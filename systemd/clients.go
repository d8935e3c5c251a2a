package systemd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"wg-quickns/internal/facts"
	"wg-quickns/internal/netns"
	"wg-quickns/internal/plan"
	"wg-quickns/internal/proc"
)

const (
	// mercy is how long a client may take to end before SIGKILL.
	mercy = 3 * time.Second
	// glance is how long a client that was started is watched for an early end.
	glance = 200 * time.Millisecond
)

// kinds are the programs that configure interfaces, by the name they are started by.
var kinds = []string{"dhcpcd", "dhclient", "udhcpc", "udhcpc6", "wpa_supplicant", "hostapd"}

// supplicant says whether a program gives an interface its link alone.
func supplicant(kind string) bool { return kind == "wpa_supplicant" || kind == "hostapd" }

// process is a program that goes by the name of a client.
type process struct {
	facts.Client
	kind string
	// links are the words of its command line that may be interfaces.
	links []string
	// strange says why it is no client that root runs, "" that it is one.
	strange string
}

// clients lists the clients in a network namespace, by rising PID, without the
// processes that one has beside its main process.
func clients(ns string) (list []process, err error) {
	const passes = 10 // while some end: one that becomes a daemon leaves another, which was not there yet
	for range passes {
		all, err := netns.Occupants(ns)
		if err != nil {
			return nil, err
		}
		list = nil
		ended := false
		for _, p := range all {
			c, err := look(p.PID)
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
				ended = true
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("look at process %d: %w", p.PID, err)
			}
			if c != nil {
				list = append(list, *c)
			}
		}
		if !ended {
			break
		}
	}
	return list, nil
}

// look reads a client from /proc, nil when the process is none. What it says is of one
// moment: between two reads a process may execute another program, with more privileges.
func look(pid int) (*process, error) {
	p, err := read(pid)
	for range 10 {
		if err != nil || p == nil {
			return nil, err
		}
		var again *process
		if again, err = read(pid); err == nil && reflect.DeepEqual(p, again) {
			return p, nil
		}
		p = again
	}
	if p != nil {
		p.strange = "it becomes another program all the time"
	}
	return p, err
}

func read(pid int) (*process, error) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	line, err := os.ReadFile(dir + "cmdline")
	if err != nil {
		return nil, err
	}
	if len(line) == 0 && kernelThread(dir) {
		return nil, nil
	}
	if len(line) == 0 { // it has just ended
		return nil, fs.ErrNotExist
	}
	args := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
	p := process{Client: facts.Client{PID: pid}}
	if title, is := strings.CutPrefix(args[0], "dhcpcd: "); is {
		p.kind = "dhcpcd"
		if p.Args, p.links = dhcpcd(title); p.Args == nil {
			return nil, nil
		}
	} else {
		p.kind = filepath.Base(args[0])
		if p.kind == "busybox" && len(args) > 1 {
			p.kind = args[1]
		}
		if !slices.Contains(kinds, p.kind) {
			return nil, nil
		}
		p.Args, p.links = args, words(p.kind, args)
	}
	exe, err := os.Readlink(dir + "exe")
	if err != nil {
		return nil, err
	}
	p.Exe = strings.TrimSuffix(exe, deleted)
	if p.Dir, err = os.Readlink(dir + "cwd"); err != nil {
		return nil, err
	}
	if p.kind == "dhcpcd" { // it shuts itself in
		p.Dir = "/"
	}
	p.strange, err = p.stranger()
	return &p, err
}

// deleted ends what proc(5) says is the path of a program whose file was replaced or removed.
const deleted = " (deleted)"

// stranger says why a process is no client that root runs: each user chooses what a
// process is called, and many a program runs as root for anybody who starts it. What
// starts again, as root and where the tunnel is no longer the only way out, is by its
// file a client, root's from the beginning, and of no container.
func (p *process) stranger() (string, error) {
	base := filepath.Base(p.Exe)
	if base != p.kind && !(base == "busybox" && strings.HasPrefix(p.kind, "udhcpc")) {
		return fmt.Sprintf("its program is %q", p.Exe), nil
	}
	is, err := rootRuns(p.PID)
	if err == nil && !is && p.kind == "dhcpcd" {
		is, err = p.privileged()
	}
	if err != nil || !is {
		return "it is not root's, or a container's", err
	}
	for path := p.Exe; ; path = filepath.Dir(path) {
		info, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist): // it was removed, see startable
		case err != nil:
			return fmt.Sprintf("its program cannot be looked at: %q", err), nil
		case info.Sys().(*syscall.Stat_t).Uid != 0 || info.Mode().Perm()&0o022 != 0:
			return fmt.Sprintf("others than root may change %q", path), nil
		}
		if path == filepath.Dir(path) {
			return "", nil
		}
	}
}

// rootRuns says whether a process is root's alone, with our root folder.
func rootRuns(pid int) (bool, error) {
	status, err := proc.Status(pid)
	if err != nil || !slices.Equal(status["Uid"], []string{"0", "0", "0", "0"}) {
		return false, err
	}
	ours, err := os.Stat("/")
	if err != nil {
		return false, err
	}
	its, err := os.Stat(fmt.Sprintf("/proc/%d/root", pid))
	return err == nil && os.SameFile(ours, its), err
}

// privileged says whether a dhcpcd that gave up its privileges has the process by which
// it still does what needs them, a child that root runs.
func (p *process) privileged() (bool, error) {
	exe := func(pid int) (fs.FileInfo, error) { return os.Stat(fmt.Sprintf("/proc/%d/exe", pid)) }
	its, err := exe(p.PID)
	if err != nil {
		return false, err
	}
	all, err := os.ReadDir("/proc")
	if err != nil {
		return false, err
	}
	for _, e := range all {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || proc.Parent(pid) != p.PID {
			continue
		}
		if child, err := exe(pid); err != nil || !os.SameFile(its, child) {
			continue
		}
		if is, err := rootRuns(pid); err == nil && is {
			return true, nil
		}
	}
	return false, nil
}

// startable says why a client that runs could not be started again: its path leads to
// no program or, where it runs in another mount namespace, to another one.
func (p *process) startable() error {
	there, err := os.Stat(p.Exe)
	if err != nil {
		return err
	}
	if there.Mode().Perm()&0o111 == 0 || !there.Mode().IsRegular() {
		return fmt.Errorf("%s is no program", p.Exe)
	}
	link := fmt.Sprintf("/proc/%d/exe", p.PID)
	its, err := os.Stat(link)
	if err != nil || os.SameFile(there, its) {
		return err
	}
	if path, err := os.Readlink(link); err == nil && strings.HasSuffix(path, deleted) { // an upgrade replaced it
		return nil
	}
	return fmt.Errorf("%s is another program than the one that runs", p.Exe)
}

// kernelThread says whether a process is one (PF_KTHREAD of linux/sched.h).
func kernelThread(dir string) bool {
	stat, _ := os.ReadFile(dir + "stat")
	_, rest, _ := strings.Cut(string(stat), ") ") // a kernel thread's name has no such
	fields := strings.Fields(rest)
	if len(fields) < 7 {
		return false
	}
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	return err == nil && flags&0x200000 != 0
}

// words are what may be interfaces of a command line; the last letters of a cluster of
// options too: wpa_supplicant -Bieth0.
func words(kind string, args []string) []string {
	var list []string
	for _, a := range args[1:] {
		list = append(list, a)
		if i := strings.IndexByte(a, 'i'); supplicant(kind) && strings.HasPrefix(a, "-") && i > 0 {
			list = append(list, a[i+1:])
		}
	}
	return list
}

// dhcpcd makes out command line and interfaces from the title that dhcpcd(8) gives its
// processes over their command lines: "eth0 [ip4] [ip6]", "[manager] [ip4]"; nil for
// those beside the main one. Options that are not in it are lost; dhcpcd.conf(5) is read
// again.
func dhcpcd(title string) (args, links []string) {
	four, six := false, false
	for _, word := range strings.Fields(title) {
		switch {
		case word == "[ip4]":
			four = true
		case word == "[ip6]":
			six = true
		case word == "[manager]", word == "[master]":
		case strings.HasPrefix(word, "["): // [privileged proxy], [BPF ARP]: beside the main one
			return nil, nil
		case strings.HasPrefix(word, "-"): // it would be an option: the process that has the title is not root's
			return nil, nil
		default:
			links = append(links, word)
		}
	}
	args = []string{"dhcpcd", "-b"}
	switch {
	case !four && !six:
		return nil, nil
	case !six:
		args = append(args, "-4")
	case !four:
		args = append(args, "-6")
	}
	return append(args, links...), links
}

// same says whether a process is what a step speaks of.
func (p *process) same(c facts.Client) bool {
	return p.strange == "" && p.Exe == c.Exe && slices.Equal(p.Args, c.Args)
}

// instances are the processes that are a client, in a namespace.
func instances(ns plan.NS, c facts.Client) ([]process, error) {
	list, err := clients(string(ns))
	return slices.DeleteFunc(list, func(p process) bool { return !p.same(c) }), err
}

func existsClient(ns plan.NS, s plan.Client) (bool, error) {
	list, err := instances(ns, s.Client)
	return len(list) > 0, err
}

func (d Doer) doClient(ctx context.Context, ns plan.NS, s plan.Client) error {
	if s.Start {
		if err := d.startClient(ctx, ns, s); err != nil {
			return fmt.Errorf("start %s: %w", s.Args[0], err)
		}
		return nil
	}
	if err := stopClient(ctx, ns, s.Client); err != nil {
		return fmt.Errorf("stop %s: %w", s.Args[0], err)
	}
	return nil
}

// stopClient ends a client, and then what it had started of itself: one that was started
// just before may still be about to become a daemon.
func stopClient(ctx context.Context, ns plan.NS, c facts.Client) error {
	for {
		list, err := instances(ns, c)
		if err != nil || len(list) == 0 {
			return err
		}
		if err := stopAll(ctx, ns, c, list); err != nil {
			return err
		}
	}
}

func stopAll(ctx context.Context, ns plan.NS, c facts.Client, list []process) error {
	for _, p := range list {
		session, err := unix.Getsid(p.PID)
		if err != nil { // it ended
			continue
		}
		main, err := hold(p.PID)
		if errors.Is(err, unix.ESRCH) {
			continue
		} else if err != nil {
			return err
		}
		defer main.Close()
		// the PID may be another's by now
		if now, err := look(p.PID); err != nil || now == nil || !now.same(c) {
			continue
		}
		defer discard(ctx, startedAs(p.PID))
		if err := end(ctx, main, unix.SIGTERM); err != nil {
			return err
		}
		if p.kind != "dhcpcd" {
			continue
		}
		// one that it was about to start may not have noticed
		for n := 0; ; n++ {
			left, err := orphans(ns, c.Exe, session)
			if err != nil || len(left) == 0 {
				return err
			}
			time.Sleep(20 * time.Millisecond)
			for _, pid := range left {
				if h, err := hold(pid); n >= 25 && err == nil {
					err = end(ctx, h, unix.SIGKILL)
					h.Close()
					if err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// orphans are the processes of a program in a session whose parent is no longer of
// that program, and which are not a client's main process.
func orphans(ns plan.NS, exe string, session int) ([]int, error) {
	all, err := netns.Occupants(string(ns))
	if err != nil {
		return nil, err
	}
	runs := func(pid int) bool {
		path, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		return err == nil && strings.TrimSuffix(path, deleted) == exe
	}
	var list []int
	for _, p := range all {
		if of, err := unix.Getsid(p.PID); err != nil || of != session || !runs(p.PID) {
			continue
		}
		if c, err := look(p.PID); err != nil || c != nil {
			continue
		}
		if parent := proc.Parent(p.PID); parent >= 0 && !runs(parent) {
			list = append(list, p.PID)
		}
	}
	return list, nil
}

// hold opens a process, so that its PID is nobody else's for what is done by that.
func hold(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), strconv.Itoa(pid)), nil
}

// end sends a process a signal and waits for its end, and kills it when that takes long.
func end(ctx context.Context, p *os.File, sig unix.Signal) error {
	fd := int(p.Fd())
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && err != unix.ESRCH {
		return err
	}
	for until := time.Now().Add(mercy); ctx.Err() == nil && time.Now().Before(until); {
		if ended(fd, 50*time.Millisecond) {
			return nil
		}
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return err
	}
	if !ended(fd, time.Second) {
		return fmt.Errorf("process %s does not end", p.Name())
	}
	return nil
}

// ended waits for the end of a process.
func ended(pidfd int, wait time.Duration) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(wait.Milliseconds()))
	return err == nil && n > 0
}

// startClient starts a client, unless it runs. It ends neither with us nor with the
// service that we are, where systemd can see to that.
func (d Doer) startClient(ctx context.Context, ns plan.NS, s plan.Client) error {
	there, err := existsClient(ns, s)
	if err != nil || there {
		return err
	}
	if _, err := os.Stat(s.Exe); errors.Is(err, fs.ErrNotExist) && s.Views == "" {
		// away it was ended, and at home nothing can take its place: that is no reason to try again and again
		if d.Warn != nil {
			d.Warn(fmt.Sprintf("Warning: %s is not started again: there is no %s any more", strings.Join(s.Args, " "), s.Exe))
		}
		return nil
	}
	if unit, err := hostsIt(ns, s); err != nil {
		return err
	} else if unit {
		return startUnit(ctx, ns, s)
	}
	if err := proc.CloseOnExec(); err != nil {
		return err
	}
	cmd := &exec.Cmd{
		Path: s.Exe, Args: s.Args, Dir: s.Dir, Env: environment[:],
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if info, err := os.Stat(s.Dir); err != nil || !info.IsDir() {
		cmd.Dir = "/"
	}
	if s.Views == "" {
		err = proc.Within(string(ns), cmd.Start)
	} else {
		err = proc.WithinViews(string(ns), s.Views, hidden[:], cmd.Start)
	}
	if err != nil {
		return err
	}
	status := make(chan error, 1)
	go func() { status <- cmd.Wait() }()
	select {
	case err = <-status: // it made itself a daemon, or could not
		return err
	case <-time.After(glance):
		return nil
	}
}

// environment is that of clients: nobody knows any more what they had.
var environment = [...]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}

// hostsIt says whether systemd can start a client: with the views, or where PID 1 is.
func hostsIt(ns plan.NS, s plan.Client) (bool, error) {
	if !running() || s.Views != "" {
		return running(), nil
	}
	its, err := netns.Identify(string(ns))
	if err != nil {
		return false, err
	}
	home, err := netns.Identify("/proc/1/ns/net")
	return its == home, err
}

// unitPrefix begins the names of the services that clients are started as.
const unitPrefix = "wg-quickns-client-"

// startUnit starts a client as a transient service (systemd-run(1)): what we may not do
// ourselves, as the guard, is no limit for it.
func startUnit(ctx context.Context, ns plan.NS, s plan.Client) error {
	c, err := connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if ending(ctx, c) {
		return nil
	}
	name := fmt.Sprintf("%s%s-%08x.service", unitPrefix, filepath.Base(s.Args[0]), rand.Uint32())
	properties := asService(ns, s)
	job := make(chan string, 1)
	// until its last process has ended; before systemd 250 until it is stopped
	last := property("ExitType", "cgroup")
	_, err = c.StartTransientUnitContext(ctx, name, "fail", append(properties, last), job)
	if known := (godbus.Error{}); errors.As(err, &known) && known.Name == "org.freedesktop.DBus.Error.PropertyReadOnly" {
		last = property("RemainAfterExit", true)
		_, err = c.StartTransientUnitContext(ctx, name, "fail", append(properties, last), job)
	}
	if err != nil {
		return fmt.Errorf("as %s: %w", name, err)
	}
	result := ""
	select {
	case result = <-job:
	case <-ctx.Done():
		return nil // the job goes on without us
	}
	for until := time.Now().Add(glance); result == "done" && time.Now().Before(until); time.Sleep(glance / 10) {
		p, err := c.GetUnitPropertyContext(ctx, name, "ActiveState")
		if err != nil {
			return fmt.Errorf("ask systemd for %s: %w", name, err)
		}
		if p.Value.Value() == "failed" {
			p, err := c.GetUnitTypePropertyContext(ctx, name, "Service", "ExecMainStatus")
			if err != nil {
				return fmt.Errorf("ask systemd for %s: %w", name, err)
			}
			result = fmt.Sprintf("exit status %v", p.Value.Value())
		}
	}
	if result != "done" {
		_ = c.ResetFailedUnitContext(ctx, name) // what it said stays in the journal
		return fmt.Errorf("%s (hint: journalctl -u %s)", result, name)
	}
	return nil
}

// startedAs is the service that startUnit made for a client, "" for another process.
func startedAs(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if name := service(string(text)); err == nil && strings.HasPrefix(name, unitPrefix) {
		return name
	}
	return ""
}

// discard has systemd forget the service of a client that was ended, where it has not:
// one that had to be killed, or that remains after its end.
func discard(ctx context.Context, unit string) {
	if unit == "" {
		return
	}
	if c, err := connect(ctx); err == nil {
		_, _ = c.StopUnitContext(ctx, unit, "replace", nil)
		_ = c.ResetFailedUnitContext(ctx, unit)
		c.Close()
	}
}

func property(name string, value any) dbus.Property {
	return dbus.Property{Name: name, Value: godbus.MakeVariant(value)}
}

// asService is what a client is as a service, see systemd.exec(5).
func asService(ns plan.NS, s plan.Client) []dbus.Property {
	type command struct {
		Path             string
		Args             []string
		UncleanIsFailure bool
	}
	type bind struct {
		From, To string
		Optional bool
		Flags    uint64
	}
	list := []dbus.Property{
		dbus.PropDescription(filepath.Base(s.Args[0]) + ", started by wg-quickns"),
		property("Type", "exec"),
		property("ExecStart", []command{{s.Exe, s.Args, true}}),
		property("Environment", environment[:]),
		property("WorkingDirectory", "-"+s.Dir),
		// `up` may be part of the boot, and is not to wait for the rest of that
		property("DefaultDependencies", false),
		property("Conflicts", []string{"shutdown.target"}),
		property("Before", []string{"shutdown.target"}),
	}
	if s.Views == "" {
		return list
	}
	covered := append(slices.Clone(hidden[:]), proc.Resolvers()...)
	for i, path := range covered {
		covered[i] = "-" + path
	}
	return append(list,
		property("NetworkNamespacePath", string(ns)),
		property("BindReadOnlyPaths", []bind{{s.Views + "/sys", "/sys", false, unix.MS_REC}}),
		property("BindPaths", []bind{{s.Views + "/etc", "/etc", false, unix.MS_REC}}),
		property("InaccessiblePaths", covered),
	)
}
