package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Root is the folder of all journals and locks, /run/wg-quickns but in tests.
// It is made on first use, for its owner alone. In it:
//
//	@lock         the global lock (no interface's name begins with @)
//	@guard.NAME   the lock of NAME's guard
//	NAME/lock     NAME's lock; NAME is an interface, or INTERFACE@INODE of its network namespace
//	NAME/journal  NAME's journal
type Root string

const (
	lockFile    = "lock"
	journalFile = "journal"
	newFile     = "journal.new" // a journal that is being started
)

// Lock is a held flock(2). It ends with the process, however that ends.
type Lock struct {
	f   *os.File
	dir string // the folder to clear away with the lock, if any
	// once says that the file goes with the lock.
	once bool
}

// Global waits for the lock under which table numbers and the like are chosen.
// Who needs a name's lock too takes that first. The error wraps the cause of ctx.
func (r Root) Global(ctx context.Context) (*Lock, error) {
	return take(ctx, func() (*Lock, error) {
		if err := r.make(); err != nil {
			return nil, err
		}
		return open(filepath.Join(string(r), "@"+lockFile), "")
	})
}

// Lock waits for the lock of one name. The error wraps the cause of ctx.
func (r Root) Lock(ctx context.Context, name string) (*Lock, error) {
	if err := check(name); err != nil {
		return nil, err
	}
	dir := r.dir(name)
	return take(ctx, func() (*Lock, error) {
		if err := r.makeDir(name); err != nil {
			return nil, err
		}
		return open(filepath.Join(dir, lockFile), dir)
	})
}

// Guard takes the lock by which a name's guard is known, without waiting: another
// guard that has it is an error, EWOULDBLOCK.
func (r Root) Guard(name string) (*Lock, error) {
	if err := check(name); err != nil {
		return nil, err
	}
	if err := r.make(); err != nil {
		return nil, err
	}
	for {
		l, err := open(r.guard(name), "")
		if err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
		if err := unix.Flock(int(l.f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			l.f.Close()
			return nil, fmt.Errorf("lock %s: %w", l.f.Name(), err)
		}
		l.once = true
		mine, err := l.f.Stat()
		if err != nil {
			l.f.Close()
			return nil, err
		}
		if there, err := os.Lstat(l.f.Name()); err == nil && os.SameFile(mine, there) {
			return l, nil
		}
		l.f.Close() // its last holder removed it meanwhile
	}
}

// Guarded says whether a name has a guard now.
func (r Root) Guarded(name string) (bool, error) {
	f, err := os.Open(r.guard(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for a guard: %w", err)
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	return errors.Is(err, unix.EWOULDBLOCK), nil
}

func (r Root) guard(name string) string { return filepath.Join(string(r), "@guard."+name) }

// Close gives the lock back. A name's folder goes too if it holds no journal:
// only here is that no race, as those who wait look again which file they hold.
func (l *Lock) Close() error {
	if l.dir != "" {
		if _, err := os.Lstat(filepath.Join(l.dir, journalFile)); errors.Is(err, fs.ErrNotExist) {
			for _, file := range []string{newFile, problemsFile, problemsNewFile} {
				os.Remove(filepath.Join(l.dir, file))
			}
			os.Remove(filepath.Join(l.dir, lockFile))
			os.Remove(l.dir) // fails, rightly, if the next one is in it already
			// what a guard that was killed left
			root, name := Root(filepath.Dir(l.dir)), filepath.Base(l.dir)
			if g, err := root.Guard(name); err == nil {
				g.Close()
			}
		}
	}
	if l.once {
		os.Remove(l.f.Name())
	}
	return l.f.Close()
}

// open opens a lock file without waiting for the lock. It is nil if the folder
// was cleared away between making it and now.
func open(path, dir string) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &Lock{f: f, dir: dir}, nil
}

// take waits for a lock until ctx ends. flock(2) itself cannot be interrupted
// without a signal, so that a goroutine waits; one that is given up on waits on
// until it has the lock, and gives it back at once.
func take(ctx context.Context, open func() (*Lock, error)) (*Lock, error) {
	type result struct {
		lock *Lock
		err  error
	}
	done := make(chan result)
	if ctx.Err() != nil {
		return nil, fmt.Errorf("lock: %w", context.Cause(ctx))
	}
	go func() {
		lock, err := wait(ctx, open)
		select {
		case done <- result{lock, err}:
		case <-ctx.Done():
			if lock != nil {
				lock.Close()
			}
		}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return nil, fmt.Errorf("lock: %w", r.err)
		}
		return r.lock, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for a lock: %w", context.Cause(ctx))
	}
}

// wait locks the file that is at its path when the lock is got: the one first
// opened may have been removed by its last holder.
func wait(ctx context.Context, open func() (*Lock, error)) (*Lock, error) {
	for {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		l, err := open()
		if err != nil {
			return nil, err
		}
		if l == nil {
			continue
		}
		for {
			err = unix.Flock(int(l.f.Fd()), unix.LOCK_EX)
			if err != unix.EINTR {
				break
			}
		}
		if err != nil {
			l.f.Close()
			return nil, fmt.Errorf("%s: %w", l.f.Name(), err)
		}
		mine, err := l.f.Stat()
		if err != nil {
			l.f.Close()
			return nil, err
		}
		there, err := os.Lstat(l.f.Name())
		if err == nil && os.SameFile(mine, there) {
			return l, nil
		}
		l.f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
}

// Names lists, in order, the names that have a journal.
func (r Root) Names() ([]string, error) {
	list, err := os.ReadDir(string(r))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list journals: %w", err)
	}
	var names []string
	for _, e := range list {
		if !e.IsDir() || check(e.Name()) != nil {
			continue
		}
		_, err := os.Lstat(filepath.Join(r.dir(e.Name()), journalFile))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list journals: %w", err)
		}
		names = append(names, e.Name())
	}
	return names, nil
}

func (r Root) dir(name string) string { return filepath.Join(string(r), name) }

// check refuses what is no name of one folder.
func check(name string) error {
	if name == "" || name == "." || name == ".." || name[0] == '@' ||
		strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("journal: %q is no name", name)
	}
	return nil
}

// make makes the root, and sees that it is nobody else's.
func (r Root) make() error { return private(string(r)) }

func (r Root) makeDir(name string) error {
	if err := r.make(); err != nil {
		return err
	}
	return private(r.dir(name))
}

// private makes a folder that only its owner can enter, whatever the umask, or
// an older one so.
func private(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // cleared away since; who opens a file in it sees that
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return &fs.PathError{Op: "use", Path: dir, Err: syscall.ENOTDIR}
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d: remove it", dir, st.Uid)
	}
	if info.Mode().Perm() == 0o700 {
		return nil
	}
	err = os.Chmod(dir, 0o700)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
