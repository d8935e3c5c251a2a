package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Kind is the way in which a network namespace is named. The kinds and their
// order are those of confparse.NamespaceKind.
type Kind int

// Ways to name a namespace.
const (
	Caller  Kind = iota // that of the calling thread
	Name                // a name under /run/netns, as ip-netns(8) has them
	Init                // that of PID 1
	PID                 // a process's
	Number              // a PID, unless a namespace has that number for its name
	Path                // an absolute path
	Docker              // a container's name or ID, asked of Docker
	Podman              // the same of Podman
	Unit                // a systemd service's main process
	Machine             // a machine of systemd-machined
)

// Found is where a namespace is.
type Found struct {
	Path    string // opens it; "" is the caller's
	Missing bool   // a Name that is free: Create can make it at Path
	PID     int    // the process that it was found by, else 0
	Name    string // the name under /run/netns, the container's, the unit's or the machine's
}

// patience is how long a daemon may take to say where a namespace is. An engine may
// have to be started by its socket first, which systemd gives that long
// (DefaultTimeoutStartSec=), and at boot everything is slow.
const patience = 90 * time.Second

// finder knows where to ask.
type finder struct {
	docker, podman []string // API sockets, the first that is there counts
	systemd        systemd
}

// systemd says which process leads a service or a machine.
type systemd interface {
	unit(ctx context.Context, name string) (pid int, err error)
	machine(ctx context.Context, name string) (pid int, err error)
}

// Find says where the namespace is that kind and value name. Only a Name may be
// missing, anything else must be there. A file under /run/netns that is no
// namespace is an error. Daemons are given 90 s, less if ctx ends earlier.
func Find(ctx context.Context, kind Kind, value string) (Found, error) {
	docker, err := dockerSockets(os.Getenv("DOCKER_HOST"))
	if err != nil && kind == Docker {
		return Found{}, fmt.Errorf("find network namespace of container %s: %w", value, err)
	}
	f := finder{docker: docker, podman: []string{"/run/podman/podman.sock"}, systemd: bus{}}
	return f.find(ctx, kind, value)
}

func (f finder) find(ctx context.Context, kind Kind, value string) (Found, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("no answer within %v", patience))
	defer cancel()
	switch kind {
	case Caller:
		return Found{}, nil
	case Name:
		return findName(value)
	case Init:
		return ofProcess("init", 1, "")
	case PID:
		return findPID(value)
	case Number:
		if found, err := findName(value); err != nil || !found.Missing {
			return found, err
		}
		return findPID(value)
	case Path:
		file, err := Open(value)
		if err != nil {
			return Found{}, err
		}
		return Found{Path: canonical(value)}, file.Close()
	case Docker:
		pid, err := container(ctx, "docker", f.docker, value)
		return found(ctx, "container", value, pid, err)
	case Podman:
		pid, err := container(ctx, "podman", f.podman, value)
		return found(ctx, "container", value, pid, err)
	case Unit:
		pid, err := f.systemd.unit(ctx, value)
		return found(ctx, "unit", value, pid, err)
	case Machine:
		pid, err := f.systemd.machine(ctx, value)
		return found(ctx, "machine", value, pid, err)
	}
	return Found{}, fmt.Errorf("find network namespace %s: unknown kind %d", value, kind)
}

// canonical is the usual path of a named namespace, which has files by that name,
// whichever way a path leads there: /var/run/netns/NAME for one.
func canonical(path string) string {
	in, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return path
	}
	if usual, err := os.Stat(dir); err != nil || !os.SameFile(in, usual) {
		return path
	}
	return filepath.Join(dir, filepath.Base(path))
}

// found is what a daemon's answer leads to.
func found(ctx context.Context, what, name string, pid int, err error) (Found, error) {
	if err == nil {
		return ofProcess(what+" "+name, pid, name)
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	return Found{}, fmt.Errorf("find network namespace of %s %s: %w", what, name, err)
}

func findPID(value string) (Found, error) {
	pid, err := strconv.ParseUint(value, 10, 31)
	if err != nil || pid == 0 {
		return Found{}, fmt.Errorf("find network namespace: %q is no process ID: %w", value, unix.EINVAL)
	}
	return ofProcess("process "+value, int(pid), "")
}

// ofProcess is the namespace of a process, which must live.
func ofProcess(what string, pid int, name string) (Found, error) {
	path := fmt.Sprintf("/proc/%d/ns/net", pid)
	file, err := Open(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return Found{}, fmt.Errorf("find network namespace of %s: there is no process %d: %w", what, pid, unix.ESRCH)
	}
	if err != nil {
		return Found{}, fmt.Errorf("find network namespace of %s: %w", what, err)
	}
	return Found{Path: path, PID: pid, Name: name}, file.Close()
}

func findName(name string) (Found, error) {
	path, err := namedPath(name)
	if err != nil {
		return Found{}, err
	}
	state, err := look(path)
	if err != nil {
		return Found{}, err
	}
	return Found{Path: path, Missing: state != present, Name: name}, nil
}

// dockerSockets are where Docker's API is, going by $DOCKER_HOST.
func dockerSockets(host string) ([]string, error) {
	if host == "" {
		return []string{"/run/docker.sock", "/var/run/docker.sock"}, nil
	}
	path, ok := strings.CutPrefix(host, "unix://")
	if !ok {
		return nil, fmt.Errorf("DOCKER_HOST=%s is not supported: only unix://PATH can lead to a process of this machine", host)
	}
	return []string{path}, nil
}
