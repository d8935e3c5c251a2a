package proc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/netns"
)

// hostEtc is the machine's /etc in a view of it.
const hostEtc = ".host"

// pathKept are entries of /etc that are to have their own path in the view: an
// AppArmor profile of a DHCP client or supplicant knows them by that. What is true
// may be written there: a program keeps its connections in it.
var pathKept = map[string]bool{
	"NetworkManager": true, "dhcp": false, "dhcpcd": false, "iwd": false, "network": false, "udhcpc": false, "wpa_supplicant": true,
	"group": false, "nsswitch.conf": false, "passwd": false,
}

// complete is the last file that views get.
const complete = ".complete"

// made, behind the folder of views, is the name of a note of what else was made.
const made = ".made"

// ViewNet is where the namespace itself is in the folder of its views.
const ViewNet = "/net"

// pin binds the namespace ns to path.
func pin(ns, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(ns, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind it to %s: %w", path, err)
	}
	return nil
}

// MountViews mounts at the folder dir, which it makes, what a program in the named
// network namespace ns is to see in place of /sys and /etc, for others to bind:
//
//	sys  the namespace's, read-only, so that nobody waits for udev, which does not know it
//	etc  the machine's, with the entries of /etc/netns/NAME in place of its own, and
//	     resolv.conf a link to that there, which must be, so that whoever writes one,
//	     in place or by rename(2), writes /etc/netns/NAME/resolv.conf; but for that
//	     folder and those of network managers, nothing of /etc can be written by it
//	net  the namespace itself, which lives on by that when somebody deletes its name
//
// All are in a tmpfs at dir, where more may be put. They are mounted where PID 1
// sees them. Those that are there already stay; what is there of others, or in part,
// is taken away first.
func MountViews(ns, dir string) error {
	folder, name := filepath.Split(ns)
	if folder != named+"/" || name == "" {
		return fmt.Errorf("make views of network namespace %s: it has no name", ns)
	}
	info, err := os.Stat(ns)
	if err != nil {
		return fmt.Errorf("make views of network namespace %s: %w", name, err)
	}
	mark := fmt.Sprintf("of network namespace %d\n", info.Sys().(*syscall.Stat_t).Ino)
	err = onHost(func() error {
		if text, err := os.ReadFile(dir + "/" + complete); err == nil && string(text) == mark {
			return nil
		}
		if err := unmountViews(dir); err != nil {
			return err
		}
		own := filepath.Join(configs, name)
		if err := noteMade(own, dir+made); err != nil {
			return err
		}
		if err := os.MkdirAll(own, 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(filepath.Join(own, "resolv.conf"), os.O_CREATE, 0o644)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s/resolv.conf is a link to nowhere", own)
		} else if err != nil {
			return err
		}
		f.Close()
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("views", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
		if err := viewEtc(dir+"/etc", own); err != nil {
			return fmt.Errorf("bind /etc to %s: %w", dir, err)
		}
		if err := viewSys(ns, dir+"/sys"); err != nil {
			return err
		}
		if err := pin(ns, dir+ViewNet); err != nil {
			return err
		}
		return os.WriteFile(dir+"/"+complete, []byte(mark), 0o644)
	})
	if err != nil {
		return fmt.Errorf("make views of network namespace %s: %w", name, err)
	}
	return nil
}

// UnmountViews takes away what MountViews made, as far as it is there. Programs
// that have it bound keep it.
func UnmountViews(ns, dir string) error {
	err := onHost(func() error {
		if err := unmountViews(dir); err != nil {
			return err
		}
		return removeMade(filepath.Join(configs, filepath.Base(ns)), dir+made)
	})
	if err != nil {
		return fmt.Errorf("take the views of network namespace %s away: %w", filepath.Base(ns), err)
	}
	return nil
}

// noteMade notes at the path mark what is yet to be made of the folder own and the
// resolv.conf in it: "file", or "folder", for both. A note that is there stays.
func noteMade(own, mark string) error {
	if _, err := os.Lstat(own + "/resolv.conf"); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := os.Lstat(mark); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	what := "file"
	if _, err := os.Lstat(own); errors.Is(err, fs.ErrNotExist) {
		what = "folder"
	}
	if err := os.MkdirAll(filepath.Dir(mark), 0o755); err != nil {
		return err
	}
	return os.WriteFile(mark, []byte(what), 0o644)
}

// removeMade removes what noteMade noted, unless somebody wrote into it.
func removeMade(own, mark string) error {
	what, err := os.ReadFile(mark)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if info, err := os.Lstat(own + "/resolv.conf"); err == nil && info.Mode().IsRegular() && info.Size() == 0 {
		if err := os.Remove(own + "/resolv.conf"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if string(what) == "folder" {
		switch err := unix.Rmdir(own); err {
		case nil, unix.ENOTEMPTY, unix.EEXIST, unix.ENOENT, unix.EBUSY:
		default:
			return err
		}
	}
	return os.Remove(mark)
}

// ViewsMounted says whether there is something of MountViews at dir.
func ViewsMounted(dir string) (there bool, err error) {
	err = onHost(func() error {
		_, err := os.Lstat(dir)
		there = err == nil
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return there, err
}

// unmountViews unmounts all at dir and removes it.
func unmountViews(dir string) error {
	for {
		err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == unix.EINVAL || err == unix.ENOENT {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// viewSys mounts a sysfs of the namespace ns at path. It moves the thread.
func viewSys(ns, path string) error {
	trees, err := keep()
	defer closeTrees(trees)
	if err != nil {
		return err
	}
	f, err := os.Open(ns)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter it: %w", err)
	}
	const flags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("sysfs", path, "sysfs", flags, ""); err != nil {
		return fmt.Errorf("mount %s: %w", path, err)
	}
	return putBack(trees, path)
}

// viewEtc makes the view of /etc at path. What is in it are links to the machine's
// whole /etc, which is bound to a folder of it, so that a file that is replaced is seen.
// Few are bound themselves, since systemd makes a unit of each mount: folders with links
// that would lead elsewhere, and pathKept.
func viewEtc(path, own string) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("etc", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	etc, err := os.Open("/etc")
	if err != nil {
		return err
	}
	defer etc.Close()
	// whoever deletes the folder of the views deletes no file of the machine
	if err := bind(int(etc.Fd()), ".", path+"/"+hostEtc, true); err != nil {
		return err
	}
	theirs, err := etc.ReadDir(-1)
	if err != nil {
		return err
	}
	mine, err := os.ReadDir(own)
	if err != nil {
		return err
	}
	covered := map[string]bool{}
	for _, e := range mine {
		name := e.Name()
		if strings.HasPrefix(name, ScratchPrefix) {
			continue
		}
		covered[name] = true
		if err := os.Symlink(filepath.Join(own, name), filepath.Join(path, name)); err != nil {
			return err
		}
	}
	for _, e := range theirs {
		name := e.Name()
		if covered[name] || name == hostEtc {
			continue
		}
		err := copyEntry(etc, name, path, func() error {
			if "/etc/"+name == configs {
				return viewConfigs(path+"/"+name, own)
			}
			writable, kept := pathKept[name]
			if !kept && !climbs("/etc/"+name) {
				return os.Symlink(hostEtc+"/"+name, filepath.Join(path, name))
			}
			return bind(int(etc.Fd()), name, filepath.Join(path, name), !writable)
		})
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	// a new file in it would be lost, so it must fail
	return unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "")
}

// viewConfigs makes the view of /etc/netns at path: the folder own is bound, since files
// in it are replaced and its mount must not keep anybody from removing it.
func viewConfigs(path, own string) error {
	folder, err := os.Open(configs)
	if err != nil {
		return err
	}
	defer folder.Close()
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	all, err := folder.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range all {
		if name == filepath.Base(own) {
			err = bind(int(folder.Fd()), name, filepath.Join(path, name), false)
		} else {
			err = os.Symlink("../"+hostEtc+"/netns/"+name, filepath.Join(path, name))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// climbs says whether there is a link in a folder of /etc that leads out of that by "..".
func climbs(dir string) bool {
	found := errors.New("found")
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Type()&fs.ModeSymlink == 0 {
			return nil // what cannot be read, nobody uses
		}
		to, err := os.Readlink(path)
		if err != nil || filepath.IsAbs(to) {
			return nil
		}
		if to = filepath.Join(filepath.Dir(path), to); to != "/etc" && !strings.HasPrefix(to, "/etc/") {
			return found
		}
		return nil
	})
	return err == found
}

// WithinViews is Within, with the views that MountViews mounted at dir in place of
// what Enter shows, and without the programs in hidden. None of these can be run
// inside, by whoever; one that there is not is no error.
func WithinViews(ns, dir string, hidden []string, fn func() error) error {
	return netns.Do("", func() error {
		f, err := os.Open(ns)
		if err != nil {
			return fmt.Errorf("open network namespace: %w", err)
		}
		defer f.Close()
		if err := toHost(); err != nil {
			return err
		}
		if err := enterApart(f); err != nil {
			return err
		}
		for _, path := range hidden {
			if err := unix.Mount("/dev/null", path, "", unix.MS_BIND, ""); err != nil && err != unix.ENOENT {
				return fmt.Errorf("hide %s: %w", path, err)
			}
		}
		for _, view := range []string{"/sys", "/etc"} {
			if err := unix.Mount(dir+view, view, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
				return fmt.Errorf("bind %s%s: %w", dir, view, err)
			}
		}
		if err := hide(); err != nil {
			return err
		}
		return fn()
	})
}

// onHost calls fn on a thread of its own in the mount namespace of PID 1.
func onHost(fn func() error) error {
	return netns.Do("", func() error {
		if err := toHost(); err != nil {
			return err
		}
		return fn()
	})
}

// toHost moves the thread into the mount namespace of PID 1, unless that has
// another /run: then PID 1 is another container's.
func toHost() error {
	run, err := os.Stat("/run")
	if err != nil {
		return err
	}
	if theirs, err := os.Stat("/proc/1/root/run"); err != nil || !os.SameFile(run, theirs) {
		return nil
	}
	mnt, err := os.Open("/proc/1/ns/mnt")
	if err != nil {
		return fmt.Errorf("open the mount namespace of PID 1: %w", err)
	}
	defer mnt.Close()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("leave the other threads: %w", err)
	}
	if err := unix.Setns(int(mnt.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the mount namespace of PID 1: %w", err)
	}
	return nil
}
