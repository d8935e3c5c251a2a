package proc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/netns"
)

const (
	named = "/run/netns"
	// configs has a folder per named namespace with what replaces files of /etc,
	// see ip-netns(8).
	configs = "/etc/netns"
)

// ScratchPrefix begins the names of files in /etc/netns/NAME that are only being
// written: they replace nothing.
const ScratchPrefix = ".wg-quickns-"

// resolvers are the folders of sockets by which a program asks a resolver of the
// namespace that the machine was started in: a socket with a path is reachable
// from every network namespace. These are nscd(8), systemd-resolved(8) by varlink
// and by D-Bus, and avahi-daemon(8), as glibc's modules find them.
var resolvers = [...]string{"/run/nscd", "/run/systemd/resolve", "/run/dbus", "/run/avahi-daemon"}

// Resolvers are the folders of sockets that Enter hides.
func Resolvers() []string { return resolvers[:] }

// kept are the file systems on /sys that have nothing to do with the network.
var kept = [...]string{"fs/cgroup", "fs/bpf", "fs/selinux", "kernel/security", "kernel/debug", "kernel/tracing"}

// Within calls fn on a thread of its own that Enter moved into the network
// namespace ns and that ends with fn; "" is the caller's own. A program that fn
// starts is inside; a goroutine that it starts is not. The error is fn's where
// fn was called.
func Within(ns string, fn func() error) error {
	if ns == "" {
		return fn()
	}
	return netns.Do("", func() error {
		if err := Enter(ns); err != nil {
			return err
		}
		return fn()
	})
}

// Enter moves the calling thread into the network namespace at path ns as
// `ip netns exec` does: in a mount namespace of its own, /sys shows the network
// namespace, and the files of /etc/netns/NAME cover those of /etc when ns is
// /run/netns/NAME. Beyond that, one that cannot cover is an error, they stay when
// those of /etc are replaced, and no resolver outside is reachable by its socket.
// It does nothing when the thread is in ns already.
//
// The caller must have locked the thread and must never unlock it, also when
// Enter failed.
func Enter(ns string) error {
	f, err := os.Open(ns)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer f.Close()
	if here, err := inside(f); err != nil || here {
		return err
	}
	if err := enterApart(f); err != nil {
		return err
	}
	if err := mountSys(); err != nil {
		return err
	}
	if dir, name := filepath.Split(ns); dir == named+"/" {
		if err := coverEtc(filepath.Join(configs, name)); err != nil {
			return err
		}
	}
	// the resolvers that have a socket are the init namespace's
	if init, err := os.Stat("/proc/1/ns/net"); err == nil {
		if info, err := f.Stat(); err == nil && os.SameFile(init, info) {
			return nil
		}
	}
	return hide()
}

// enterApart moves the thread into a network namespace, and into a mount namespace of
// its own: what is mounted there stays there.
func enterApart(ns *os.File) error {
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", ns.Name(), err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("keep mounts in their namespace: %w", err)
	}
	return nil
}

// inside says whether the calling thread is in the namespace already.
func inside(ns *os.File) (bool, error) {
	want, err := ns.Stat()
	if err != nil {
		return false, fmt.Errorf("look at network namespace: %w", err)
	}
	have, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return false, fmt.Errorf("look at our network namespace: %w", err)
	}
	return os.SameFile(want, have), nil
}

// mountSys puts a sysfs on /sys: each shows the network namespace that mounted it.
func mountSys() error {
	trees, err := keep()
	defer closeTrees(trees)
	if err != nil {
		return err
	}
	flags := uintptr(0)
	if unix.Unmount("/sys", unix.MNT_DETACH) != nil {
		// covered, then; the kernel refuses a writable one over one that is not
		var st unix.Statfs_t
		if unix.Statfs("/sys", &st) == nil && st.Flags&unix.ST_RDONLY != 0 {
			flags = unix.MS_RDONLY
		}
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", flags, ""); err != nil {
		return fmt.Errorf("mount /sys of the namespace: %w", err)
	}
	return putBack(trees, "/sys")
}

// keep takes copies of the mounts on /sys that are kept.
func keep() (map[string]int, error) {
	trees := map[string]int{}
	for _, name := range kept {
		var st unix.Statfs_t
		if unix.Statfs("/sys/"+name, &st) != nil || st.Type == unix.SYSFS_MAGIC {
			continue
		}
		tree, err := openTree("/sys/" + name)
		if err != nil {
			return trees, fmt.Errorf("keep /sys/%s: %w", name, err)
		}
		trees[name] = tree
	}
	return trees, nil
}

func closeTrees(trees map[string]int) {
	for _, tree := range trees {
		unix.Close(tree)
	}
}

// putBack mounts them on another sysfs.
func putBack(trees map[string]int, sys string) error {
	for name, tree := range trees {
		if err := attach(tree, sys+"/"+name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("keep /sys/%s: %w", name, err)
		}
	}
	return nil
}

// openTree copies the mounts at a path and below.
func openTree(path string) (int, error) {
	return unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
}

// attach mounts what OpenTree made.
func attach(tree int, path string) error {
	return unix.MoveMount(tree, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// coverEtc makes each entry of the folder own cover the one of that name in /etc.
//
// The kernel takes a mount away when the file below is replaced by rename(2),
// wherever that is done. So what is covered is not the machine's /etc, whose
// resolv.conf is replaced all the time, but a tmpfs with every entry of it bound
// in: nothing outside can take an entry of that away. A resolv.conf is a link, so
// that one is seen that takes the place of that in own.
func coverEtc(own string) error {
	mine, err := os.ReadDir(own)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("read the files of a namespace: %w", err)
	}
	cover := map[string]bool{}
	for _, e := range mine {
		cover[e.Name()] = !strings.HasPrefix(e.Name(), ScratchPrefix)
	}
	if len(cover) == 0 {
		return nil
	}
	// both opened before /etc is covered
	folder, err := unix.Open(own, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", own, err)
	}
	defer unix.Close(folder)
	etc, err := os.Open("/etc")
	if err != nil {
		return err
	}
	defer etc.Close()
	entries, err := etc.ReadDir(-1)
	if err != nil {
		return fmt.Errorf("list /etc: %w", err)
	}
	if err := unix.Mount("etc", "/etc", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("make /etc of the namespace: %w", err)
	}
	for _, e := range entries {
		if cover[e.Name()] {
			continue
		}
		err := copyEntry(etc, e.Name(), "/etc", func() error {
			return bind(int(etc.Fd()), e.Name(), "/etc/"+e.Name(), false)
		})
		if err != nil {
			return fmt.Errorf("bind /etc/%s into the namespace's /etc: %w", e.Name(), err)
		}
	}
	for name, wanted := range cover {
		if !wanted {
			continue
		}
		err := covers(folder, int(etc.Fd()), name)
		var st unix.Stat_t
		switch {
		case err != nil:
		// a DHCP client or network manager there may rename a new one over it
		case name == "resolv.conf" && !cover["netns"] && unix.Fstatat(folder, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG:
			err = unix.Symlink(own+"/"+name, "/etc/"+name)
		default:
			err = bind(folder, name, "/etc/"+name, false)
		}
		if err != nil {
			return fmt.Errorf("bind %s/%s over /etc/%s: %w", own, name, name, err)
		}
	}
	// what is in it stays writable; a new file would be lost, so it must fail
	if err := unix.Mount("", "/etc", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("make /etc of the namespace: %w", err)
	}
	return nil
}

// covers says whether name in the folder own can cover the one in etc, as a
// mount can: both or neither are folders.
func covers(own, etc int, name string) error {
	var above, below unix.Stat_t
	if err := unix.Fstatat(own, name, &above, 0); err != nil {
		return err
	}
	err := unix.Fstatat(etc, name, &below, 0)
	if err == unix.ENOENT && name == "resolv.conf" {
		return nil // a link to nowhere, or none: a machine without a resolver has that
	}
	if err == nil && (above.Mode&unix.S_IFMT == unix.S_IFDIR) != (below.Mode&unix.S_IFMT == unix.S_IFDIR) {
		return unix.ENOTDIR
	}
	return err
}

// copyEntry puts an entry of /etc into the folder to: a link as it is, what is no
// link by put. That is asked now, and not of a listing: a link may have taken a
// file's place since, or a file a link's, or it may have gone, which is no error.
func copyEntry(etc *os.File, name, to string, put func() error) error {
	err := copyLink(etc, name, to)
	if err == unix.EINVAL { // readlink(2): no link
		err = put()
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// bind mounts the entry name of a folder, with what is mounted below it, at path,
// which it makes.
func bind(folder int, name, path string, readOnly bool) error {
	tree, err := unix.OpenTree(folder, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = unix.Mkdir(path, 0o755)
	} else {
		err = unix.Mknod(path, unix.S_IFREG|0o644, 0)
	}
	if err != nil {
		return err
	}
	if readOnly {
		err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		if err == unix.ENOSYS { // before Linux 5.12
			if err = attach(tree, path); err != nil {
				return err
			}
			return unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
		}
		if err != nil {
			return err
		}
	}
	return attach(tree, path)
}

func copyLink(etc *os.File, name, to string) error {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(etc.Fd()), name, buf)
	if err != nil {
		return err
	}
	return unix.Symlink(string(buf[:n]), to+"/"+name)
}

// hide covers the folders of resolvers by ones without their sockets. Plain files
// stay, as they are now: /etc/resolv.conf may be a link to one.
func hide() error {
	for _, dir := range resolvers {
		if err := hideSockets(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("hide the resolver's %s: %w", dir, err)
		}
	}
	return nil
}

func hideSockets(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	files := map[string][]byte{}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) { // being replaced
			continue
		} else if err != nil {
			return err
		}
		files[e.Name()] = text
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("none", dir, "tmpfs", flags, "mode=755"); err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	return unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|flags, "")
}
