package netns

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// self is the namespace of the calling thread. It is thread-self, not self:
// within Do the thread has moved and the process has not.
const self = "/proc/thread-self/ns/net"

// Open opens the namespace ns. While the file is open the namespace lives on,
// even when nothing else holds it. It fails when ns names no network namespace.
func Open(ns string) (*os.File, error) {
	path := ns
	if path == "" {
		path = self
	}
	// A named pipe would keep us waiting for its other end.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		f.Close()
		return nil, fmt.Errorf("open network namespace: %s is none: %w", path, unix.EINVAL)
	}
	return f, nil
}

// Do runs fn in the namespace ns: on a thread of its own that enters ns and
// dies with fn, because a thread that moved must never run anything else. fn
// may start processes, which inherit ns, but goroutines it starts are not in ns.
func Do(ns string, fn func() error) error {
	if ns == "" {
		return onThread(fn)
	}
	f, err := Open(ns)
	if err != nil {
		return err
	}
	defer f.Close()
	return DoFile(f, fn)
}

// DoFile is Do for a namespace that is already open.
func DoFile(ns *os.File, fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", ns.Name(), err)
		}
		return fn()
	})
}

func onThread(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() { // the first thread cannot end, and is what others see of the process
			defer runtime.UnlockOSThread()
			done <- onThread(fn)
			return
		}
		done <- fn() // never unlocked: the thread ends with the goroutine
	}()
	return <-done
}

// ID tells namespaces apart. Two open namespaces are the same if Dev and Inode
// are; a Cookie is never used again, an inode number may be.
type ID struct {
	Cookie uint64 // SO_NETNS_COOKIE, see socket(7); 0 before Linux 5.14
	Dev    uint64
	Inode  uint64
	Init   bool // it is PID 1's; false where PID 1's may not be asked for
}

// String is "inode:cookie", as journals keep it.
func (id ID) String() string { return fmt.Sprintf("%d:%d", id.Inode, id.Cookie) }

// Identify says which namespace ns is.
func Identify(ns string) (ID, error) {
	f, err := Open(ns)
	if err != nil {
		return ID{}, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return ID{}, fmt.Errorf("identify network namespace %s: %w", f.Name(), err)
	}
	id := ID{Dev: uint64(st.Dev), Inode: st.Ino}
	if err := unix.Stat("/proc/1/ns/net", &st); err == nil {
		id.Init = id.Dev == uint64(st.Dev) && id.Inode == st.Ino
	}
	cookie := func() error {
		s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("identify network namespace %s: %w", f.Name(), err)
		}
		defer unix.Close(s)
		// An older kernel has no cookie: the inode must do there.
		id.Cookie, _ = unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return nil
	}
	if ns == "" { // the thread is there already
		err = cookie()
	} else {
		err = DoFile(f, cookie)
	}
	return id, err
}

// Locate finds a way into the namespace that has an identity (ID.String): its
// name under /run/netns, else a process in it, as this mount and PID namespace
// show them. It is "" when there is none: what holds it then cannot be told.
func Locate(id string) (ns string, err error) {
	inode, _, _ := strings.Cut(id, ":")
	want, err := strconv.ParseUint(inode, 10, 64)
	if err != nil {
		return "", fmt.Errorf("find network namespace: %q is no identity: %w", id, unix.EINVAL)
	}
	for _, glob := range []string{dir + "/*", "/proc/[0-9]*/ns/net"} {
		files, err := filepath.Glob(glob)
		if err != nil {
			return "", err
		}
		for _, file := range files {
			var st unix.Stat_t
			if unix.Stat(file, &st) != nil || st.Ino != want { // what ends meanwhile is no way in
				continue
			}
			if now, err := Identify(file); err == nil && now.String() == id {
				return file, nil
			}
		}
	}
	return "", nil
}
