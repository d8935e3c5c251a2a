// Package userspace serves a WireGuard interface where the kernel has no
// WireGuard: by the program the user names, by wireguard-go, or by this binary.
package userspace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"wg-quickns/internal/proc"
)

const (
	// Command is the argument by which this binary is told to Serve an interface.
	Command = "userspace"
	// BuiltIn is what Start calls this binary's own implementation.
	BuiltIn = "built-in"

	usual = "wireguard-go"
	// sockets is where each implementation listens for wg(8), one socket per name.
	sockets = "/run/wireguard"
	// ready is the line by which the child says that it serves.
	ready = "ready\n"
	// grace is how long the child may take to clean up when it is not wanted any more.
	grace = time.Second
)

// Options says which program serves.
type Options struct {
	Program string       // $WG_QUICK_USERSPACE_IMPLEMENTATION, "" when not set
	Log     func(string) // gets the trace line
	Self    string       // this program; "" is /proc/self/exe
}

// Error is an implementation that did not start.
type Error struct {
	Program, Interface string
	Status             int // its exit status as bash(1) has it
	Err                error
}

func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("userspace WireGuard %s for %s: %v", e.Program, e.Interface, e.Err)
	}
	return fmt.Sprintf("%s %s: exit status %d", e.Program, e.Interface, e.Status)
}

func (e *Error) Unwrap() error   { return e.Err }
func (e *Error) ExitStatus() int { return e.Status }

// Start makes the interface name in the network namespace of the calling thread
// and leaves a process behind that serves it until it is deleted. It returns
// which program that is: o.Program, else wireguard-go if it is in PATH, else
// BuiltIn. On failure and when ctx ends nothing of the built-in one is left.
func Start(ctx context.Context, name string, o Options) (program string, err error) {
	program = o.Program
	if program == "" {
		_, err := proc.Look(usual)
		if status, _ := proc.ExitStatus(err); status == 127 {
			return BuiltIn, startSelf(ctx, name, o)
		}
		program = usual
	}
	o.Log("[#] " + program + " " + name)
	return program, startProgram(ctx, program, name)
}

// startProgram runs an implementation that goes to the background by itself.
func startProgram(ctx context.Context, program, name string) error {
	path, err := proc.Look(program)
	if err != nil {
		status, _ := proc.ExitStatus(err)
		return &Error{program, name, status, err}
	}
	env, err := proc.Environ()
	if err != nil {
		return err
	}
	status, err := proc.Run(ctx, &exec.Cmd{
		Path: path, Args: []string{program, name}, Env: env,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	})
	if err == nil && status == 0 {
		return nil
	}
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if s, ok := proc.ExitStatus(err); ok {
		status = s
	}
	return &Error{program, name, status, err}
}

// startSelf starts this binary again, detached, and waits until it serves. What
// the child writes on stderr comes through a pipe: the line ready, or why not.
func startSelf(ctx context.Context, name string, o Options) error {
	self := o.Self
	if self == "" {
		self = "/proc/self/exe"
	}
	argv0 := "wg-quickns"
	if exe, err := os.Executable(); err == nil {
		argv0 = filepath.Base(exe)
	}
	o.Log("[#] " + argv0 + " " + Command + " " + name)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start userspace WireGuard: %w", err)
	}
	defer r.Close()
	if err := proc.CloseOnExec(); err != nil {
		return err
	}
	child := &exec.Cmd{
		Path: self, Args: []string{argv0, Command, name}, Dir: "/",
		// nothing of the caller's but what wireguard-go reads too
		Env:         []string{"LOG_LEVEL=" + os.Getenv("LOG_LEVEL"), "PATH=" + os.Getenv("PATH")},
		Stderr:      w,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	err = child.Start()
	w.Close()
	if err != nil {
		return &Error{BuiltIn, name, 126, err}
	}
	ended := make(chan struct{})
	go func() {
		child.Wait()
		close(ended)
	}()
	said := make(chan string, 1)
	go func() { said <- listen(r) }()
	var text string
	select {
	case text = <-said:
		if text == ready {
			return nil
		}
		text = strings.TrimPrefix(strings.TrimSpace(text), argv0+": ")
		if text == "" {
			text = "it ended without a word"
		}
		err = errors.New(text)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if kerr := stop(child.Process.Pid, ended, name); kerr != nil {
		err = errors.Join(err, kerr)
	}
	status := 1
	if s, ok := proc.ExitStatus(err); ok {
		status = s
	}
	return &Error{BuiltIn, name, status, err}
}

// listen reads until the child is ready or has closed the pipe.
func listen(r io.Reader) string {
	var all strings.Builder
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		all.Write(buf[:n])
		if all.String() == ready {
			return ready
		}
		if err != nil || all.Len() > 1<<16 {
			return all.String()
		}
	}
}

// stop ends a child that is not wanted, and removes the socket if it left one.
func stop(pid int, ended <-chan struct{}, name string) error {
	syscall.Kill(-pid, syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(grace):
		syscall.Kill(-pid, syscall.SIGKILL)
		<-ended
	}
	if served(name) {
		return nil // another's
	}
	if err := os.Remove(socket(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the socket of %s: %w", name, err)
	}
	return nil
}

func socket(name string) string { return sockets + "/" + name + ".sock" }

// served tells whether a process listens on the socket of that name.
func served(name string) bool {
	c, err := net.Dial("unix", socket(name))
	if err != nil {
		return false
	}
	c.Close()
	return true
}
