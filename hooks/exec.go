package hooks

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/proc"
)

// Credentials are whom a program runs as.
type Credentials struct {
	UID, GID   int
	Groups     []int    // supplementary
	Name, Home string   // "" of a user without an entry
	session    []string // of the environment that the user called sudo in, see Environ
}

// CallingUser is the user who called us by sudo(8), found by SUDO_UID and SUDO_GID
// in env, else the user that we are. The groups are those of the process that
// called sudo: a login may have fewer or more of them than the user has by now.
func CallingUser(env []string) (Credentials, error) {
	var uid, gid string
	for _, v := range env {
		if x, ok := strings.CutPrefix(v, "SUDO_UID="); ok {
			uid = x
		} else if x, ok := strings.CutPrefix(v, "SUDO_GID="); ok {
			gid = x
		}
	}
	if uid == "" {
		groups, err := os.Getgroups()
		if err != nil {
			return Credentials{}, fmt.Errorf("read our groups: %w", err)
		}
		return Credentials{UID: os.Getuid(), GID: os.Getgid(), Groups: groups}, nil
	}
	var c Credentials
	var err error
	if c.UID, err = number(uid); err != nil {
		return Credentials{}, fmt.Errorf("SUDO_UID: %w", err)
	}
	if c.GID, err = number(gid); err != nil {
		return Credentials{}, fmt.Errorf("SUDO_GID: %w", err)
	}
	entry, known := lookup(user.LookupId, uid)
	if known {
		c.Name, c.Home = entry.Username, entry.HomeDir
	}
	if c.fromAncestor() {
		return c, nil
	}
	if !known {
		c.Groups = []int{c.GID} // a user without an entry has no groups either
		return c, nil
	}
	c.Groups, err = groups(entry)
	return c, err
}

// LookupUser finds a user by name or number, in /etc/passwd or where nsswitch.conf(5) says.
func LookupUser(name string) (Credentials, error) {
	entry, known := lookup(user.Lookup, name)
	if _, bad := number(name); !known && bad == nil {
		entry, known = lookup(user.LookupId, name)
	}
	if !known {
		return Credentials{}, fmt.Errorf("there is no user `%s'", name)
	}
	c := Credentials{Name: entry.Username, Home: entry.HomeDir}
	var err error
	if c.UID, err = number(entry.Uid); err != nil {
		return Credentials{}, fmt.Errorf("user `%s': %w", name, err)
	}
	if c.GID, err = number(entry.Gid); err != nil {
		return Credentials{}, fmt.Errorf("group of user `%s': %w", name, err)
	}
	c.Groups, err = groups(entry)
	return c, err
}

// answers is how long a source of nsswitch.conf(5), often a service elsewhere, may take.
const answers = 30 * time.Second

// lookup finds a user in /etc/passwd, else by getent(1), which asks the other
// sources of nsswitch.conf(5) too: this program links no C library that would.
func lookup(local func(string) (*user.User, error), key string) (*user.User, bool) {
	if u, err := local(key); err == nil {
		return u, true
	}
	if strings.HasPrefix(key, "-") { // it would be an option
		return nil, false
	}
	// not by PATH, which is the caller's
	ctx, cancel := context.WithTimeout(context.Background(), answers)
	defer cancel()
	line, err := exec.CommandContext(ctx, "/usr/bin/getent", "passwd", key).Output()
	f := strings.Split(strings.TrimSuffix(string(line), "\n"), ":")
	if err != nil || len(f) != 7 || f[0] != key && f[2] != key {
		return nil, false
	}
	return &user.User{Username: f[0], Uid: f[2], Gid: f[3], HomeDir: f[5]}, true
}

// groups lists a user's groups by id(1), for the same reason, else by /etc/group.
func groups(u *user.User) ([]int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), answers)
	defer cancel()
	var ids []string
	if out, err := exec.CommandContext(ctx, "/usr/bin/id", "-G", u.Username).Output(); err == nil {
		ids = strings.Fields(string(out))
	} else if ids, err = u.GroupIds(); err != nil {
		return nil, fmt.Errorf("look up the groups of user `%s': %w", u.Username, err)
	}
	return numbers(ids)
}

// sessionVariables are those by which a program finds the user's display and D-Bus
// session. They are of use to this user alone, and sudo(8) drops most of them.
var sessionVariables = [...]string{"DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "XDG_RUNTIME_DIR", "XDG_SESSION_TYPE", "XDG_CURRENT_DESKTOP", "DBUS_SESSION_BUS_ADDRESS"}

// fromAncestor takes the groups of the nearest of the processes that we come from
// that is the user's alone, and the session of what that called, sudo(8) as a rule
// (proc(5), /proc/PID/status and /proc/PID/environ).
func (c *Credentials) fromAncestor() bool {
	for child, pid := os.Getpid(), os.Getppid(); pid > 0; {
		fields, err := proc.Status(pid)
		if err != nil {
			return false
		}
		all := func(key string, id int) bool { // real, effective, saved and of the file system
			return slices.Equal(fields[key], slices.Repeat([]string{strconv.Itoa(id)}, 4))
		}
		if all("Uid", c.UID) && all("Gid", c.GID) {
			if c.Groups, err = numbers(fields["Groups"]); err != nil {
				return false
			}
			c.session = append(sessionOf(child), sessionOf(pid)...)
			return true
		}
		if len(fields["PPid"]) != 1 {
			return false
		}
		child = pid
		if pid, err = strconv.Atoi(fields["PPid"][0]); err != nil {
			return false
		}
	}
	return false
}

// sessionOf are the sessionVariables that a process was started with.
func sessionOf(pid int) []string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return nil // it ended, or sudo hides it: then there is no more to know
	}
	return slices.DeleteFunc(strings.Split(string(text), "\x00"), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return !slices.Contains(sessionVariables[:], name)
	})
}

// Environ is env as the user's own processes have it: sudo(8) says that USER,
// LOGNAME and HOME are root's, which are then replaced, and drops what leads to
// the user's display and D-Bus session, which a CallingUser gets back. All else stays.
func (c Credentials) Environ(env []string) []string {
	if c.UID == 0 || c.Name == "" {
		return env
	}
	root := "/root"
	if u, err := user.LookupId("0"); err == nil {
		root = u.HomeDir
	}
	env = slices.Clone(env)
	for i, v := range env {
		switch v {
		case "USER=root", "LOGNAME=root":
			env[i] = strings.TrimSuffix(v, "root") + c.Name
		case "HOME=" + root:
			env[i] = "HOME=" + c.Home
		}
	}
	for _, v := range c.session {
		name, _, _ := strings.Cut(v, "=")
		if !slices.ContainsFunc(env, func(have string) bool { return strings.HasPrefix(have, name+"=") }) {
			env = append(env, v)
		}
	}
	return env
}

func numbers(ids []string) ([]int, error) {
	list := make([]int, len(ids))
	for i, id := range ids {
		var err error
		if list[i], err = number(id); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// number reads a uid or gid; the largest means "unchanged" to the kernel.
func number(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 1<<32-1 {
		return 0, fmt.Errorf("bad id `%s'", s)
	}
	return int(n), nil
}

// ExecOptions says what Exec executes.
type ExecOptions struct {
	User *Credentials // nil: unchanged
	Argv []string     // Argv[0] without a slash is looked for in the PATH of Env
	Env  []string     // nil: our own
	Dir  string       // "": the working directory
}

// Exec replaces this process by a program in the network namespace at path ns,
// entered as proc.Enter says; "" is our own. It returns only when that failed,
// with a *proc.StartError when it was the program that could not be run.
//
// The program has the user's credentials, no inheritable and no ambient
// capabilities, an unchanged bounding set, and of our files stdin, stdout and
// stderr. It starts in the same folder by path, in / where there is none inside
// that the user may enter.
func Exec(ns string, o ExecOptions) error {
	if len(o.Argv) == 0 {
		return errors.New("exec: no command")
	}
	if o.Env == nil {
		o.Env = os.Environ()
	}
	if o.Dir == "" {
		o.Dir, _ = os.Getwd() // of a folder that is gone there is no path
	}
	failed := make(chan error)
	go func() {
		// All on one thread, which execve(2) makes the process; never unlocked, as
		// nothing else may run with what it became.
		runtime.LockOSThread()
		failed <- execHere(ns, o)
		select {}
	}()
	return <-failed
}

func execHere(ns string, o ExecOptions) error {
	if ns != "" {
		if err := proc.Enter(ns); err != nil {
			return err
		}
	}
	if o.User != nil {
		if err := become(*o.User); err != nil {
			return err
		}
	}
	if err := dropCapabilities(); err != nil {
		return err
	}
	if err := proc.CloseOnExec(); err != nil {
		return err
	}
	if !filepath.IsAbs(o.Dir) || unix.Chdir(o.Dir) != nil {
		if err := unix.Chdir("/"); err != nil {
			return fmt.Errorf("change to folder /: %w", err)
		}
	}
	return &proc.StartError{Program: o.Argv[0], Err: execvpe(o.Argv, o.Env)}
}

// become changes the credentials of the calling thread alone: the functions of
// the standard library stop every thread to change them all.
func become(c Credentials) error {
	if err := unix.Setgroups(c.Groups); err != nil {
		return fmt.Errorf("set the groups: %w", err)
	}
	gid, uid := uintptr(c.GID), uintptr(c.UID)
	if _, _, errno := unix.RawSyscall(sysSetresgid, gid, gid, gid); errno != 0 {
		return fmt.Errorf("become group %d: %w", c.GID, errno)
	}
	if _, _, errno := unix.RawSyscall(sysSetresuid, uid, uid, uid); errno != 0 {
		return fmt.Errorf("become user %d: %w", c.UID, errno)
	}
	return nil
}

// dropCapabilities clears the ambient and the inheritable set of the calling
// thread. The bounding set stays, for sudo(8) inside to work.
func dropCapabilities() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	err := unix.Capget(&header, &data[0])
	if err == nil {
		data[0].Inheritable, data[1].Inheritable = 0, 0
		err = unix.Capset(&header, &data[0])
	}
	if err != nil {
		return fmt.Errorf("clear inheritable capabilities: %w", err)
	}
	return nil
}

// execvpe executes as execvp(3) does, with the PATH of env.
func execvpe(argv, env []string) error {
	if strings.Contains(argv[0], "/") {
		return execve(argv[0], argv, env)
	}
	path := "/bin:/usr/bin"
	for _, v := range env {
		if x, ok := strings.CutPrefix(v, "PATH="); ok {
			path = x
			break // as getenv(3)
		}
	}
	first := fs.ErrNotExist
	for _, dir := range strings.Split(path, ":") {
		if dir == "" {
			dir = "."
		}
		switch err := execve(dir+"/"+argv[0], argv, env); err {
		case unix.ENOENT, unix.ENOTDIR:
		case unix.EACCES:
			first = err
		default:
			return err
		}
	}
	return first
}

func execve(path string, argv, env []string) error {
	err := syscall.Exec(path, argv, env)
	if err == unix.ENOEXEC { // a script without a first line that says of what
		err = syscall.Exec("/bin/sh", append([]string{"/bin/sh", path}, argv[1:]...), env)
	}
	return err
}
