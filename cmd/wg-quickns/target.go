package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"wg-quickns/confparse"
)

// target is what a command acts on: an interface and its config file.
type target struct {
	name string // the interface
	path string // the config file, links resolved; as given where it does not exist
	data []byte // what was read of it
	cfg  *confparse.Config
}

// isName says whether wg-quick takes s for an interface's name: it matches ^[a-zA-Z0-9_=+.-]{1,15}$.
func isName(s string) bool {
	const others = "_=+.-"
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte(others, c) < 0 {
			return false
		}
	}
	return s != "" && len(s) < unix.IFNAMSIZ
}

// message is an error in wg-quick's own words.
type message string

func (m message) Error() string { return string(m) }

// errNoConfig says that the config file is not there.
type errNoConfig struct{ path string }

func (e *errNoConfig) Error() string { return fmt.Sprintf("`%s' does not exist", e.path) }

// locate finds the config file for an argument, as wg-quick does: the interface's
// name comes from the path as given, before links are resolved.
func (a app) locate(arg string) (target, error) {
	path := arg
	if isName(arg) {
		path = "/etc/wireguard/" + arg + ".conf"
	}
	t := target{path: path}
	name, isConf := strings.CutSuffix(path[strings.LastIndexByte(path, '/')+1:], ".conf")
	isConf = isConf && isName(name)
	_, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission) && os.Getuid() != 0:
		if isConf {
			t.name = name
		}
		return t, &errNoConfig{path}
	case err != nil:
		return t, fmt.Errorf("look at the config file: %w", err)
	case !isConf || !goodName(name):
		return t, message("The config file must be a valid interface name, followed by .conf")
	}
	t.name = name
	if t.path, err = filepath.EvalSymlinks(path); err == nil {
		t.path, err = filepath.Abs(t.path) // a hook may be elsewhere
	}
	if err != nil {
		return t, fmt.Errorf("resolve the config file's name: %w", err)
	}
	return t, nil
}

// goodName refuses names that a program or the kernel would take for something else.
func goodName(name string) bool {
	return name[0] != '-' && name != "." && name != ".." && name != "all" && name != "default"
}

// worldAccessible says whether everybody may read or write a file, as wg-quick tells it.
func worldAccessible(path string) (bool, error) {
	file, err := os.Stat(path)
	if err != nil {
		return false, fmt.Errorf("look at the config file: %w", err)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return false, fmt.Errorf("look at the config file: %w", err)
	}
	dir, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return false, fmt.Errorf("look at the config file's folder: %w", err)
	}
	return file.Mode().Perm()&dir.Mode().Perm()&0o007 != 0, nil
}

// open locates the config file and warns of one that others may read; it parses nothing.
func (a app) open(arg string) (target, error) {
	t, err := a.locate(arg)
	a.out.set(fieldInterface, t.name)
	if err != nil {
		return t, err
	}
	open, err := worldAccessible(t.path)
	if err != nil {
		return t, err
	}
	if open {
		a.warn(fmt.Sprintf("Warning: `%s' is world accessible", t.path))
	}
	if t.data, err = os.ReadFile(t.path); err != nil {
		return t, fmt.Errorf("read the config file: %w", err)
	}
	return t, nil
}

// reread says whether the argument still leads to the file that was read. A pipe is read
// once.
func (a app) reread(arg string, t target) bool {
	if info, err := os.Stat(t.path); err == nil && !info.Mode().IsRegular() {
		return true
	}
	now, err := a.locate(arg)
	if err == nil {
		// One that cannot be read any more is for whoever reads it again to say.
		now.data, _ = os.ReadFile(now.path)
	}
	return now.path == t.path && bytes.Equal(now.data, t.data)
}
