package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// dir is where ip-netns(8) keeps named namespaces.
const dir = "/run/netns"

// mark is the mode of the file that Create mounts a namespace on. ip-netns(8)
// makes it 0, so this tells what we made: a namespace when the file is seen
// beneath its mount, a Create that was killed when it is seen bare.
const mark = fs.ModeSticky

// OtherError is a namespace that Delete left alone: it is not the one meant.
type OtherError struct {
	Path      string
	Want, Got string // identities; Want is "" where it was to be one that Create made
}

func (e *OtherError) Error() string {
	return "network namespace " + e.Path + " is another than the one that was made"
}

func namedPath(name string) (string, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || len(name) > unix.NAME_MAX {
		return "", fmt.Errorf("%q is no name for a network namespace: %w", name, unix.EINVAL)
	}
	return filepath.Join(dir, name), nil
}

// state is what stands in a named namespace's place.
type state int

const (
	absent  state = iota
	begun         // a Create was killed, or a Delete
	present       // a network namespace
)

// look says what is at a path under /run/netns. What is neither nothing nor a
// network namespace is an error.
func look(path string) (state, error) {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return absent, nil
	case err != nil:
		return absent, fmt.Errorf("find network namespace: %w", err)
	case fi.Mode()&fs.ModeSymlink != 0:
		return absent, fmt.Errorf("find network namespace: %s is a symbolic link: %w (hint: name where it leads instead)", path, unix.EINVAL)
	case fi.Mode() == mark && fi.Size() == 0:
		return begun, nil
	case !fi.Mode().IsRegular():
		return absent, fmt.Errorf("find network namespace: %s is no regular file: %w", path, unix.EINVAL)
	}
	f, err := Open(path)
	if errors.Is(err, unix.EINVAL) {
		return absent, fmt.Errorf("find network namespace: %s is a file but no network namespace: %w (hint: is it a leftover?)", path, unix.EINVAL)
	}
	if err != nil {
		return absent, err
	}
	return present, f.Close()
}

// Create makes the network namespace /run/netns/NAME as `ip netns add` does, with
// lo up, and returns its identity. Where the name is taken the error is EEXIST.
// On failure nothing is left. When it is killed what may be left is a file that
// Delete removes and the next Create takes over. While somebody holds the lock of
// ip-netns(8) it waits, until ctx ends.
func Create(ctx context.Context, name string) (ID string, err error) {
	path, err := namedPath(name)
	if err != nil {
		return "", err
	}
	fail := func(err error) error { return fmt.Errorf("create network namespace %s: %w", name, err) }
	lock, err := lockDir(ctx, true)
	if err != nil {
		return "", fail(err)
	}
	defer lock.Close()
	// A thread that does not come back takes the new namespace with it, unless it
	// was mounted.
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := loUp(); err != nil {
			return err
		}
		id, err := Identify("")
		if err != nil {
			return err
		}
		ID = id.String()
		// The lock says that whoever began it is gone.
		if state, err := look(path); err == nil && state == begun {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, unix.S_ISVTX)
		if err != nil {
			return err
		}
		err = unix.Mount(self, path, "", unix.MS_BIND, "")
		unix.Close(fd)
		if err != nil {
			return errors.Join(fmt.Errorf("mount it: %w", err), os.Remove(path))
		}
		return nil
	})
	if err != nil {
		return "", fail(err)
	}
	return ID, nil
}

// lockDir locks the folder of named namespaces, as ip-netns(8) does while it
// prepares it. If prepare, it makes the folder a shared mount, so that a namespace
// mounted there is seen, and can be deleted, in other mount namespaces. Where
// there is no folder the error is fs.ErrNotExist.
func lockDir(ctx context.Context, prepare bool) (*os.File, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("%s stays locked", dir))
	defer cancel()
	if prepare {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, context.Cause(ctx))
		case <-time.After(5 * time.Millisecond):
		}
	}
	if prepare {
		if err := share(); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

func share() error {
	err := unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // it is no mount yet
		if err := unix.Mount(dir, dir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s on itself: %w", dir, err)
		}
		err = unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	}
	if err != nil {
		return fmt.Errorf("make the mount %s shared: %w", dir, err)
	}
	return nil
}

// loUp brings lo up in the namespace of the calling thread.
func loUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// Delete removes the network namespace /run/netns/NAME as `ip netns delete` does.
// id is the identity it must have (else: an *OtherError, untouched); with "" it
// must be one that Create made, if the kernel can tell (Linux 5.2). While
// processes live in it, it stays: *BusyError. What is no network namespace stays
// too, with an error. It is no error when there is nothing.
func Delete(ctx context.Context, name, id string) error {
	path, err := namedPath(name)
	if err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("delete network namespace %s: %w", name, err) }
	if state, err := look(path); err == nil && state == absent {
		return nil // whoever holds the lock
	}
	lock, err := lockDir(ctx, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fail(err)
	}
	defer lock.Close()
	switch state, err := look(path); {
	case err != nil:
		return fail(err)
	case state == absent:
		return nil
	case state == begun:
		if err := os.Remove(path); err != nil {
			return fail(err)
		}
		return nil
	}
	if err := meant(path, id); err != nil {
		return fail(err)
	}
	inside, err := Occupants(path)
	if err != nil {
		return fail(err)
	}
	if len(inside) > 0 {
		return &BusyError{name, inside}
	}
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fail(fmt.Errorf("unmount it: %w", err))
	}
	// Another mount may have been beneath.
	if state, err := look(path); err != nil && !errors.Is(err, unix.EINVAL) || state == present {
		return fail(errors.Join(fmt.Errorf("another namespace is mounted beneath it: %w", unix.EBUSY), err))
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	return nil
}

// Is says whether /run/netns/NAME is what Delete would remove, given the same id:
// a network namespace, or the file that a killed Create or Delete left.
func Is(name, id string) (bool, error) {
	path, err := namedPath(name)
	if err != nil {
		return false, err
	}
	switch state, err := look(path); {
	case err != nil || state == absent:
		return false, err
	case state == begun:
		return true, nil
	}
	err = meant(path, id)
	if other := (*OtherError)(nil); errors.As(err, &other) {
		return false, nil
	}
	return err == nil, err
}

// meant returns an *OtherError when the namespace at path is not that with id.
func meant(path, id string) error {
	now, err := Identify(path)
	if err != nil {
		return err
	}
	ok := now.String() == id
	if id == "" {
		if ok, err = made(path); err != nil {
			return err
		}
	}
	if !ok {
		return &OtherError{path, id, now.String()}
	}
	return nil
}

// made says whether Create made the namespace at path: by the file that it is
// mounted on, as a copy of the folder's mount without those below shows it.
func made(path string) (bool, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look beneath %s: %w", path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	err = unix.Fstatat(fd, filepath.Base(path), &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look beneath %s: %w", path, err)
	}
	return st.Mode == unix.S_IFREG|unix.S_ISVTX && st.Size == 0, nil
}
