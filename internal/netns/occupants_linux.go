package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Process is one that lives in a namespace.
type Process struct {
	PID  int
	Name string // its comm, see proc(5)
}

func (p Process) String() string { return fmt.Sprintf("%s (PID %d)", p.Name, p.PID) }

// BusyError is a namespace that cannot be deleted because processes live in it.
type BusyError struct {
	Name      string
	Processes []Process
}

func (e *BusyError) Error() string {
	const most = 10
	list := make([]string, 0, most+1)
	for i, p := range e.Processes {
		if i == most {
			list = append(list, fmt.Sprintf("and %d more", len(e.Processes)-most))
			break
		}
		list = append(list, p.String())
	}
	return "network namespace " + e.Name + " is left: there still live in it " + strings.Join(list, ", ")
}

// Is: it is EBUSY too.
func (e *BusyError) Is(target error) bool { return target == unix.EBUSY }

// passes is how often processes are listed while some of them end, each of which may have
// left another that the list does not have yet, as one that becomes a daemon does.
const passes = 4

// Occupants lists the processes that live in ns with one thread at least, by
// rising PID, but for this very one. It sees those of its own PID namespace and
// below.
func Occupants(ns string) ([]Process, error) {
	f, err := Open(ns)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var want unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &want); err != nil {
		return nil, fmt.Errorf("list processes in %s: %w", f.Name(), err)
	}
	var list []Process
	var ended []int
	for range passes {
		before := ended
		if list, ended, err = occupants(&want); err != nil {
			return nil, fmt.Errorf("list processes in %s: %w", f.Name(), err)
		}
		if !slices.ContainsFunc(ended, func(pid int) bool { return !slices.Contains(before, pid) }) { // zombies stay
			break
		}
	}
	return list, nil
}

// occupants is one pass of Occupants. ended are the processes that did meanwhile.
func occupants(want *unix.Stat_t) (list []Process, ended []int, err error) {
	pids, err := numbers("/proc")
	if err != nil {
		return nil, nil, err
	}
	for _, pid := range pids {
		if pid == os.Getpid() { // its threads move about
			continue
		}
		inside, over, err := lives(pid, want)
		if err != nil {
			return nil, nil, err
		}
		if over {
			ended = append(ended, pid)
		}
		if inside {
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)) // it may end right now
			list = append(list, Process{pid, strings.TrimSuffix(string(comm), "\n")})
		}
	}
	return list, ended, nil
}

// lives says whether a thread of a process is in the namespace. What ends
// meanwhile is in none.
func lives(pid int, want *unix.Stat_t) (inside, ended bool, err error) {
	tasks, err := numbers(fmt.Sprintf("/proc/%d/task", pid))
	if gone(err) {
		return false, true, nil
	}
	if err != nil {
		return false, false, err
	}
	for _, tid := range tasks {
		var st unix.Stat_t
		err := unix.Stat(fmt.Sprintf("/proc/%d/task/%d/ns/net", pid, tid), &st)
		switch {
		case err == nil:
			if st.Dev == want.Dev && st.Ino == want.Ino {
				return true, false, nil
			}
		case gone(err):
			ended = ended || tid == pid
		case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM): // a security module may forbid it
		default:
			return false, false, fmt.Errorf("look at process %d: %w", pid, err)
		}
	}
	return false, ended, nil
}

func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

// numbers lists the entries of a folder of proc(5) that are numbers, sorted.
func numbers(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var list []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list, nil
}
