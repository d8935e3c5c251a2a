package dns

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/plan"
	"wg-quickns/internal/proc"
)

// scratch begins the names of files of claims.
const scratch = proc.ScratchPrefix + "resolv."

// scratchOf is what the names of files begin with that are to become the one at path.
func scratchOf(path string) string {
	dir, name := filepath.Split(path)
	return dir + proc.ScratchPrefix + "new." + strings.TrimPrefix(name, scratch) + "."
}

// cutShort lists what writes of a file have left that were cut short.
func cutShort(path string) []string {
	left, _ := filepath.Glob(scratchOf(path) + "*")
	return left
}

// ReadResolv reads what is at the path of a resolv.conf, nil when nothing is, and
// which folders would have to be made for it, innermost first. What is there must
// be a plain file of UTF-8: the journal could not hold anything else.
func ReadResolv(path string) (old *string, madeDirs []string, err error) {
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		_, err := os.Stat(dir)
		if err == nil {
			break
		} else if !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return nil, nil, fmt.Errorf("read %s: %w", path, err)
		}
		madeDirs = append(madeDirs, dir)
	}
	f, err := openPlain(path, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, madeDirs, nil
	} else if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(f)
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", path, err)
	}
	if !utf8.Valid(raw) {
		return nil, nil, fmt.Errorf("%s is no UTF-8 text, which could not be put back", path)
	}
	text := string(raw)
	return &text, madeDirs, nil
}

// errNotPlain is a link, a folder or a device where a plain file should be.
var errNotPlain = errors.New("not a plain file")

// containerPath is a path as a process sees it, by its /proc/PID/root.
var containerPath = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^(/proc/[0-9]+/root)/(.*)$`) })

// openPlain opens a plain file, without following a link. Links of folders in
// another process's root lead to where they do for that process, never to ours.
func openPlain(path string, flags int) (*os.File, error) {
	flags |= unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	var f *os.File
	var err error
	if m := containerPath().FindStringSubmatch(path); m != nil {
		f, err = openIn(m[1], m[2], flags)
	} else {
		f, err = os.OpenFile(path, flags, 0o644)
	}
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%s is a symbolic link, %w: what it leads to may belong to others; replace it, or leave DNS= out", path, errNotPlain)
	} else if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errNotPlain
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return f, nil
}

func openIn(root, path string, flags int) (*os.File, error) {
	dir, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	how := unix.OpenHow{Flags: uint64(flags), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	if flags&os.O_CREATE != 0 {
		how.Mode = 0o644
	}
	fd, err := unix.Openat2(int(dir.Fd()), path, &how)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), filepath.Join(root, path)), nil
}

// resolvText is the resolv.conf(5) of servers and search domains.
func resolvText(servers, search []string) string {
	var b strings.Builder
	for _, server := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if len(search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	return b.String()
}

// ours says whether the file has what the step wrote, or would.
func ours(s plan.Resolv) (bool, error) {
	f, err := openPlain(s.Path, os.O_RDONLY)
	if errors.Is(err, errNotPlain) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	defer f.Close()
	raw, err := io.ReadAll(f)
	if err != nil {
		return false, fmt.Errorf("read %s: %w", s.Path, err)
	}
	return string(raw) == resolvText(s.Servers, s.Search), nil
}

// existsResolv says whether the file is as the step writes it, or, of a deleting
// step, whether there is something to take back.
func existsResolv(s plan.Resolv) (bool, error) {
	if kept(s) {
		now, _, err := ReadResolv(s.Path) // an error is something else in its place
		return !s.Delete || err != nil || now == nil || *now != *s.Old, nil
	}
	switch is, err := ours(s); {
	case is:
		return true, nil
	case errors.Is(err, unix.ESRCH), errors.Is(err, fs.ErrNotExist): // ESRCH: of a process that is gone
	case err != nil:
		return false, err
	}
	if !s.Delete {
		return false, nil
	}
	if claimed(s) {
		if c, err := openClaims(s); err == nil {
			defer c.close()
			if c.find(resolvText(s.Servers, s.Search)) >= 0 || len(cutShort(c.path)) > 0 {
				return true, nil
			}
		}
	}
	for _, dir := range s.MadeDirs {
		if _, err := os.Lstat(dir); err == nil {
			return true, nil
		}
	}
	return false, nil
}

// claimed says whether claims are kept: a record of an older version has none of
// a file in place.
func claimed(s plan.Resolv) bool { return !s.InPlace || s.Claims != "" }

// kept says whether the file was there for others to write, and is not written here
// but put back.
func kept(s plan.Resolv) bool { return s.Shared && s.Old != nil }

func doResolv(s plan.Resolv) (err error) {
	text := resolvText(s.Servers, s.Search)
	if kept(s) && !s.Delete {
		return nil
	}
	if s.Delete {
		return undoResolv(s, text)
	}
	_, dirs, err := ReadResolv(s.Path)
	if err != nil {
		return err
	}
	if !claimed(s) {
		return writeResolv(s, text)
	}
	if s.InPlace {
		dirs = nil
	} else {
		defer func() {
			if err != nil {
				err = errors.Join(err, removeEmpty(dirs))
			}
		}()
		if err := os.MkdirAll(filepath.Dir(s.Path), 0o755); err != nil {
			return fmt.Errorf("make the folder of %s: %w", s.Path, err)
		}
	}
	c, err := openClaims(s)
	if err != nil {
		return fmt.Errorf("write %s: %w", s.Path, err)
	}
	defer c.close()
	old, _, err := ReadResolv(s.Path) // nobody else of us writes now
	if err != nil {
		return err
	}
	if err := c.add(text, old, dirs); err != nil {
		return fmt.Errorf("write %s: %w", s.Path, err)
	}
	if err := writeResolv(s, text); err != nil {
		c.Texts = c.Texts[:len(c.Texts)-1]
		return errors.Join(err, c.save())
	}
	return nil
}

// undoResolv puts back what was there, unless somebody else wrote since. Where
// other tunnels want the file it is theirs then.
func undoResolv(s plan.Resolv, text string) error {
	old, dirs := s.Old, s.MadeDirs
	if kept(s) { // the folder may be gone too
		if err := os.MkdirAll(filepath.Dir(s.Path), 0o755); err != nil {
			return fmt.Errorf("take back %s: %w", s.Path, err)
		}
	}
	if claimed(s) {
		c, err := openClaims(s)
		if errors.Is(err, fs.ErrNotExist) {
			return removeEmpty(dirs)
		} else if err != nil {
			return fmt.Errorf("take back %s: %w", s.Path, err)
		}
		defer c.close()
		i := -1
		if !kept(s) { // which claimed nothing, though another's claim may be the same text
			i = c.find(text)
		}
		if i < 0 && len(c.Texts) > 0 || i >= 0 && i < len(c.Texts)-1 {
			if i >= 0 {
				c.Texts = slices.Delete(c.Texts, i, i+1)
			}
			return c.save() // another's
		}
		if i >= 0 {
			c.Texts = c.Texts[:i]
			if old, dirs = c.Old, c.MadeDirs; i > 0 {
				old, dirs = &c.Texts[i-1], nil
			}
		}
		if err := putBack(s, old); err != nil {
			return err
		}
		left := cutShort(c.path)
		if !s.InPlace {
			left = append(left, cutShort(s.Path)...)
		}
		for _, f := range left {
			os.Remove(f)
		}
		if err := c.save(); err != nil {
			return fmt.Errorf("take back %s: %w", s.Path, err)
		}
		return removeEmpty(dirs)
	}
	return putBack(s, old)
}

// putBack writes what was there, nil: nothing, over what the step wrote.
func putBack(s plan.Resolv, old *string) error {
	if kept(s) {
		if now, _, err := ReadResolv(s.Path); err == nil && now != nil && *now == *old {
			return nil
		}
		return writeResolv(s, *old)
	}
	is, err := ours(s)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH):
		return nil
	case err != nil:
	case !is && !s.Shared:
		return nil
	case old != nil:
		err = writeResolv(s, *old)
	case s.InPlace:
		err = removeIn(s.Path)
	default:
		err = os.Remove(s.Path)
	}
	if err != nil {
		return fmt.Errorf("take back %s: %w", s.Path, err)
	}
	return nil
}

// removeIn removes a file by its folder, which is not looked for in our own root.
func removeIn(path string) error {
	m := containerPath().FindStringSubmatch(path)
	if m == nil {
		return os.Remove(path)
	}
	dir, err := openIn(m[1], filepath.Dir(m[2]), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	defer dir.Close()
	return unix.Unlinkat(int(dir.Fd()), filepath.Base(path), 0)
}

// removeEmpty removes folders, the first of which is innermost, up to one that
// has something in it.
func removeEmpty(dirs []string) error {
	for _, dir := range dirs {
		switch err := os.Remove(dir); {
		case err == nil, errors.Is(err, fs.ErrNotExist):
		case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EBUSY):
			return nil
		default:
			return fmt.Errorf("remove a folder that was made: %w", err)
		}
	}
	return nil
}

func writeResolv(s plan.Resolv, text string) error {
	write := replaceFile
	if s.InPlace {
		write = overwrite
	}
	if err := write(s.Path, text); err != nil {
		return fmt.Errorf("write %s: %w", s.Path, err)
	}
	return nil
}

// replaceFile writes a file whole or not at all, with the mode and the owner of
// the one it replaces.
func replaceFile(path, text string) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(scratchOf(path))+"*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // no more there after the rename
	defer f.Close()
	mode := fs.FileMode(0o644)
	var st unix.Stat_t
	switch err := unix.Lstat(path, &st); {
	case err == nil:
		mode = fs.FileMode(st.Mode & 0o777)
		if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if _, err := f.WriteString(text); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// overwrite writes into the file that is there, or makes one. What was there is
// put back when it fails half-way.
func overwrite(path, text string) error {
	made := false
	f, err := openPlain(path, os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) {
		made = true
		f, err = openPlain(path, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	old, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	put := func(text []byte) error {
		if err := f.Truncate(int64(len(text))); err != nil {
			return err
		}
		_, err := f.WriteAt(text, 0)
		return err
	}
	err = put([]byte(text))
	switch {
	case err == nil:
		return nil
	case made:
		return errors.Join(err, removeIn(path))
	}
	return errors.Join(err, put(old))
}
