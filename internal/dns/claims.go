package dns

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/plan"
)

// claims are the tunnels that want a resolv.conf, the last of which has it: two
// may share a namespace and go down in any order. They are kept in plan.Resolv's
// Claims, else in a file beside the namespace's folder, for everything in that is
// bound over /etc.
type claims struct {
	Old      *string  `json:"old,omitempty"` // what was there before the first
	MadeDirs []string `json:"madeDirs,omitempty"`
	Texts    []string `json:"texts"`

	path string
	lock *os.File
}

// openClaims locks and reads the claims on a resolv.conf; there may be none.
func openClaims(s plan.Resolv) (_ *claims, err error) {
	dir, name := filepath.Split(filepath.Dir(s.Path))
	c := &claims{path: filepath.Join(dir, scratch+name)}
	if s.Claims != "" {
		dir, c.path = filepath.Dir(s.Claims), s.Claims
	}
	if c.lock, err = os.Open(dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if err := unix.Flock(int(c.lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	raw, err := os.ReadFile(c.path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	} else if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, c); err != nil {
		return nil, fmt.Errorf("read %s: %w", c.path, err)
	}
	return c, nil
}

func (c *claims) close() { c.lock.Close() }

// save writes the claims, or removes their file with the last one.
func (c *claims) save() error {
	if len(c.Texts) == 0 {
		if err := os.Remove(c.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	raw, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return replaceFile(c.path, string(raw)+"\n")
}

// add adds a claim on a file that has old, nil: that is not there, and for which
// dirs were made.
func (c *claims) add(text string, old *string, dirs []string) error {
	if n := len(c.Texts); n == 0 || old == nil || *old != c.Texts[n-1] {
		// the first, or somebody else wrote since
		c.Old, c.Texts = old, nil
		c.MadeDirs = append(c.MadeDirs, dirs...)
	}
	c.Texts = append(c.Texts, text)
	return c.save()
}

// find is the index of a claim, -1 for none. Of equal ones it is the last: the
// file has then the servers of a tunnel that is up, be it not the latest.
func (c *claims) find(text string) int {
	for i, t := range slices.Backward(c.Texts) {
		if t == text {
			return i
		}
	}
	return -1
}

// OwnResolv is ReadResolv of what was there before the tunnels that have it now, if any:
// that alone is somebody's to keep.
func OwnResolv(path string) (old *string, madeDirs []string, err error) {
	old, madeDirs, err = ReadResolv(path)
	if err != nil || old == nil {
		return old, madeDirs, err
	}
	c, err := openClaims(plan.Resolv{Path: path})
	if err != nil {
		return nil, nil, fmt.Errorf("who has %s: %w", path, err)
	}
	defer c.close()
	if n := len(c.Texts); n > 0 && c.Texts[n-1] == *old {
		old = c.Old
	}
	return old, madeDirs, nil
}
