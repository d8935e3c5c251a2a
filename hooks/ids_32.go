//go:build 386 || arm

package hooks

import "golang.org/x/sys/unix"

// The older calls take ids of 16 bits.
const (
	sysSetresgid = unix.SYS_SETRESGID32
	sysSetresuid = unix.SYS_SETRESUID32
)
