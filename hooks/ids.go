//go:build !386 && !arm

package hooks

import "golang.org/x/sys/unix"

const (
	sysSetresgid = unix.SYS_SETRESGID
	sysSetresuid = unix.SYS_SETRESUID
)
