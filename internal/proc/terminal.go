package proc

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// terminal is the controlling terminal; nil where there is none.
type terminal struct {
	f     *os.File
	given bool // to a program of ours
}

func openTerminal() *terminal {
	// not as stdin: a hook may open /dev/tty itself
	f, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil
	}
	return &terminal{f: f}
}

func (t *terminal) close() {
	if t != nil {
		t.f.Close()
	}
}

// ours is true when our group is the terminal's foreground group.
func (t *terminal) ours() bool {
	if t == nil {
		return false
	}
	pgrp, err := unix.IoctlGetInt(int(t.f.Fd()), unix.TIOCGPGRP)
	return err == nil && pgrp == unix.Getpgrp()
}

// take makes our group the foreground group again, if it gave that away.
func (t *terminal) take() {
	if t != nil && t.given {
		t.given = false
		t.set(unix.Getpgrp())
	}
}

// give makes pgrp the foreground group, if ours is.
func (t *terminal) give(pgrp int) {
	if t.ours() {
		t.given = true
		t.set(pgrp)
	}
}

// set changes the foreground group. Doing so from the background raises SIGTTOU,
// which would stop us, so this thread blocks it.
func (t *terminal) set(pgrp int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var block, old unix.Sigset_t
	block.Val[0] = 1 << (unix.SIGTTOU - 1)
	if unix.PthreadSigmask(unix.SIG_BLOCK, &block, &old) != nil {
		return
	}
	// no error matters: a terminal that is gone needs no owner
	_ = unix.IoctlSetPointerInt(int(t.f.Fd()), unix.TIOCSPGRP, pgrp)
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
}
