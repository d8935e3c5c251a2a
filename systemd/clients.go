package systemd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
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

// process is a client that runs.
type process struct {
	facts.Client
	kind string
	// links are the words of its command line that may be interfaces.
	links []string
}

// clients lists the clients in a network namespace, by rising PID, without the
// processes that one has beside its main process.
func clients(ns string) (list []process, err error) {
	const passes = 4 // while some end: one that becomes a daemon leaves another, which was not there yet
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

// look reads a client from /proc, nil when the process is none.
func look(pid int) (*process, error) {
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
		return dhcpcd(p, title, dir)
	}
	p.kind = filepath.Base(args[0])
	if p.kind == "busybox" && len(args) > 1 {
		p.kind = args[1]
	}
	if !slices.Contains(kinds, p.kind) {
		return nil, nil
	}
	p.Args = args
	p.links = words(p.kind, args)
	if err := p.read(dir); err != nil {
		return nil, err
	}
	return &p, nil
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

// dhcpcd makes out the client from the title that dhcpcd(8) gives its processes over
// their command lines: "eth0 [ip4] [ip6]", "[manager] [ip4]". Options that are not in
// it are lost; dhcpcd.conf(5) is read again. It runs as root, whatever this one does.
func dhcpcd(p process, title, dir string) (*process, error) {
	p.kind = "dhcpcd"
	p.Args = []string{"dhcpcd", "-b"}
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
		default:
			p.links = append(p.links, word)
		}
	}
	if !four && !six {
		return nil, nil
	}
	if !six {
		p.Args = append(p.Args, "-4")
	} else if !four {
		p.Args = append(p.Args, "-6")
	}
	p.Args = append(p.Args, p.links...)
	if err := p.read(dir); err != nil {
		return nil, err
	}
	p.UID, p.GID, p.Groups, p.Dir = 0, 0, nil, "/"
	return &p, nil
}

// read fills in what proc(5) says of a process.
func (p *process) read(dir string) error {
	exe, err := os.Readlink(dir + "exe")
	if err != nil {
		return err
	}
	p.Exe = strings.TrimSuffix(exe, " (deleted)") // an upgrade replaced it
	if p.Dir, err = os.Readlink(dir + "cwd"); err != nil {
		return err
	}
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		var ids []int
		switch key {
		case "Uid", "Gid", "Groups":
			for _, word := range strings.Fields(value) {
				id, err := strconv.Atoi(word)
				if err != nil {
					return fmt.Errorf("%sstatus: %w", dir, err)
				}
				ids = append(ids, id)
			}
		}
		switch {
		case key == "Groups":
			p.Groups = ids
		case key == "Uid" && len(ids) > 1:
			p.UID = ids[1] // the effective one
		case key == "Gid" && len(ids) > 1:
			p.GID = ids[1]
		}
	}
	return nil
}

// same says whether a process is what a step speaks of.
func (p *process) same(c facts.Client) bool {
	return p.Exe == c.Exe && slices.Equal(p.Args, c.Args) && p.UID == c.UID
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

func doClient(ctx context.Context, ns plan.NS, s plan.Client) error {
	if s.Start {
		if err := startClient(ctx, ns, s); err != nil {
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
		return err == nil && strings.TrimSuffix(path, " (deleted)") == exe
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
// service that we are.
func startClient(ctx context.Context, ns plan.NS, s plan.Client) error {
	running, err := existsClient(ns, s)
	if err != nil || running {
		return err
	}
	if err := proc.CloseOnExec(); err != nil {
		return err
	}
	cmd := &exec.Cmd{
		Path: s.Exe, Args: s.Args, Dir: s.Dir,
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{
			Uid: uint32(s.UID), Gid: uint32(s.GID),
		}},
	}
	for _, g := range s.Groups {
		cmd.SysProcAttr.Credential.Groups = append(cmd.SysProcAttr.Credential.Groups, uint32(g))
	}
	group, done := ownScope(ctx, filepath.Base(s.Args[0]))
	defer done()
	if group != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
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

// ownScope makes a scope (systemd.scope(5)) for a client and opens its control group,
// so that no service or session that we are in takes it along when it ends. It is nil
// where that cannot be: the client then starts where we are. Call done when it has started.
func ownScope(ctx context.Context, name string) (group *os.File, done func()) {
	done = func() {}
	if !running() {
		return nil, done
	}
	c, err := dbus.NewWithContext(ctx)
	if err != nil {
		return nil, done
	}
	defer c.Close()
	first := exec.Command("sleep", "10") // a scope needs a process to begin with
	if first.Start() != nil {
		return nil, done
	}
	done = func() {
		if group != nil {
			group.Close()
		}
		first.Process.Kill()
		first.Wait()
	}
	unit := fmt.Sprintf("wg-quickns-%s-%d.scope", name, first.Process.Pid)
	job := make(chan string, 1)
	_, err = c.StartTransientUnitContext(ctx, unit, "fail", []dbus.Property{
		{Name: "PIDs", Value: godbus.MakeVariant([]uint32{uint32(first.Process.Pid)})},
		dbus.PropDescription(name + ", started by wg-quickns"),
	}, job)
	if err != nil {
		return nil, done
	}
	select {
	case <-job:
	case <-ctx.Done():
		return nil, done
	}
	p, err := c.GetUnitTypePropertyContext(ctx, unit, "Scope", "ControlGroup")
	if err != nil {
		return nil, done
	}
	path, _ := p.Value.Value().(string)
	if path != "" {
		group, _ = os.Open("/sys/fs/cgroup" + path) // nil where control groups are of version 1
	}
	return group, done
}
