// Package proc runs a program as a shell would: in a process group of its own
// that owns the terminal meanwhile, with no file of ours open but the ones it
// is given, and ended as a group when the context ends.
package proc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// grace is how long a signalled group may take to end before SIGKILL.
const grace = 2 * time.Second

// SignalCause as the cause of a cancelled context says which signal the running
// program's group gets; without one it is SIGTERM.
type SignalCause struct{ Sig syscall.Signal }

func (e SignalCause) Error() string { return "interrupted: " + e.Sig.String() }

// ExitStatus is what a shell reports for a program that Sig ended.
func (e SignalCause) ExitStatus() int { return 128 + int(e.Sig) }

// StartError is a program that could not be started. Its exit status is the one
// bash(1) gives: 127 when there is no such program, 126 when it cannot be run.
type StartError struct {
	Program string
	Err     error
}

func (e *StartError) Error() string {
	if e.ExitStatus() == 127 {
		return e.Program + ": command not found"
	}
	return fmt.Sprintf("%s: %v", e.Program, e.Err)
}

func (e *StartError) Unwrap() error { return e.Err }

func (e *StartError) ExitStatus() int {
	if errors.Is(e.Err, exec.ErrNotFound) || errors.Is(e.Err, fs.ErrNotExist) {
		return 127
	}
	return 126
}

// ExitStatus finds the exit status that the first error in err's tree asks for.
func ExitStatus(err error) (status int, ok bool) {
	var e interface {
		error
		ExitStatus() int
	}
	if errors.As(err, &e) {
		return e.ExitStatus(), true
	}
	return 0, false
}

// Path is PATH with the program's own folder first, as wg-quick(8) sets it.
func Path() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the program's own folder: %w", err)
	}
	return filepath.Dir(self) + ":" + os.Getenv("PATH"), nil
}

// Environ is the environment with LC_ALL=C and the PATH of Path.
func Environ() ([]string, error) {
	path, err := Path()
	if err != nil {
		return nil, err
	}
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "LC_ALL=") || strings.HasPrefix(v, "PATH=")
	})
	return append(env, "LC_ALL=C", "PATH="+path), nil
}

// Look finds a program in the PATH of Path; a name with a slash is itself.
func Look(name string) (string, error) {
	if strings.Contains(name, "/") {
		path, err := exec.LookPath(name)
		if err != nil {
			return "", &StartError{name, err}
		}
		return path, nil
	}
	dirs, err := Path()
	if err != nil {
		return "", err
	}
	first := error(exec.ErrNotFound)
	for _, dir := range filepath.SplitList(dirs) {
		if dir == "" {
			dir = "." // as bash takes an empty entry
		}
		path := dir + "/" + name
		_, err := exec.LookPath(path)
		if err == nil {
			return path, nil
		}
		// as bash: the first that is no program is the error, unless one that is follows
		if errors.Is(err, fs.ErrPermission) && first == exec.ErrNotFound {
			first = fs.ErrPermission
		}
	}
	return "", &StartError{name, first}
}

// Memory is a file in memory that holds text, to be read from its beginning. what it is
// is told to who lists open files.
func Memory(what, text string) (*os.File, error) {
	fd, err := unix.MemfdCreate(what, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create a file in memory for the %s: %w", what, err)
	}
	f := os.NewFile(uintptr(fd), what)
	if _, err = f.WriteString(text); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("write the %s to memory: %w", what, err)
	}
	return f, nil
}

// Run runs cmd to its end and returns its exit status as a shell would: 128+n
// when signal n ended it. The error says that it could not be started, or is
// the cause of ctx where that had ended before. Stdin, Stdout and Stderr of cmd must be
// files or nil, and its SysProcAttr nil.
//
// When ctx ends the program's group gets the signal of SignalCause (SIGTERM
// without one) at once and SIGKILL after two seconds. A child that the program
// leaves behind otherwise is left alone, whatever it holds open.
func Run(ctx context.Context, cmd *exec.Cmd) (status int, err error) {
	return RunIn(ctx, "", cmd)
}

// RunIn is Run in a network namespace, entered as Enter does; "" is our own.
func RunIn(ctx context.Context, ns string, cmd *exec.Cmd) (status int, err error) {
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if err := CloseOnExec(); err != nil {
		return 0, err
	}
	term := openTerminal()
	defer term.close()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if term.ours() {
		// the child takes it before it runs, so that there is no moment without
		cmd.SysProcAttr.Foreground, cmd.SysProcAttr.Ctty = true, int(term.f.Fd())
		term.given = true
		defer term.take()
	}
	err = Within(ns, func() error {
		if err := cmd.Start(); err != nil {
			return &StartError{cmd.Args[0], err}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	pid := cmd.Process.Pid
	// wait4 below takes the status, since only it reports a stop
	defer cmd.Process.Release()

	ended := make(chan syscall.WaitStatus, 1)
	go func() { ended <- wait(pid, term) }()
	var ws syscall.WaitStatus
	select {
	case ws = <-ended:
	case <-ctx.Done():
		ws = end(pid, ended, context.Cause(ctx))
	}
	if ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return ws.ExitStatus(), nil
}

// end ends the group: nothing of it runs when end returns, unless a member
// cannot be killed.
func end(pid int, ended <-chan syscall.WaitStatus, cause error) syscall.WaitStatus {
	sig := syscall.SIGTERM
	if s := (SignalCause{}); errors.As(cause, &s) {
		sig = s.Sig
	}
	syscall.Kill(-pid, sig)
	syscall.Kill(-pid, syscall.SIGCONT) // a stopped member sees the signal only then
	kill := time.NewTimer(grace)
	defer kill.Stop()
	select {
	case ws := <-ended:
		// the leader is gone; what it started may not be
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for alive(pid) {
			select {
			case <-tick.C:
			case <-kill.C:
				syscall.Kill(-pid, syscall.SIGKILL)
				return ws
			}
		}
		return ws
	case <-kill.C:
		syscall.Kill(-pid, syscall.SIGKILL)
		return <-ended
	}
}

func alive(pgid int) bool { return syscall.Kill(-pgid, 0) == nil }

// wait waits for the end of pid. A stop by the terminal stops our group too, as
// if we were one job, so that the shell that started us sees it.
func wait(pid int, term *terminal) syscall.WaitStatus {
	for {
		var ws syscall.WaitStatus
		_, err := syscall.Wait4(pid, &ws, syscall.WUNTRACED, nil)
		switch {
		case err == syscall.EINTR:
			continue
		case err != nil: // cannot happen: pid is our child and nobody else waits for it
			return syscall.WaitStatus(127 << 8)
		case !ws.Stopped():
			return ws
		}
		switch ws.StopSignal() {
		case syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU:
			term.take()
			syscall.Kill(0, syscall.SIGTSTP)
			// the stop reaches this thread a moment later; the pause also bounds
			// the rate where nobody can stop us (an orphaned group)
			time.Sleep(100 * time.Millisecond)
			term.give(pid)
			syscall.Kill(-pid, syscall.SIGCONT)
		}
	}
}

// CloseOnExec keeps every file but 0, 1 and 2 from the programs we start:
// whoever started us may have left some open without the flag.
func CloseOnExec() error {
	err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	if err == nil {
		return nil
	}
	// before Linux 5.11
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("list open files: %w", err)
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
	return nil
}
