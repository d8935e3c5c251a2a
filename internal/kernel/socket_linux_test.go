package kernel

import (
	"context"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// TestForgedAnswer: what another process sends is no answer of the kernel's.
func TestForgedAnswer(t *testing.T) {
	var ends [2]*socket
	var ids [2]uint32
	for i := range ends {
		s, err := dial(unix.NETLINK_ROUTE)
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		if err := unix.Bind(s.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			t.Fatal(err)
		}
		a, err := unix.Getsockname(s.fd)
		if err != nil {
			t.Fatal(err)
		}
		ends[i], ids[i] = s, a.(*unix.SockaddrNetlink).Pid
	}
	ours, theirs := ends[0], ends[1]
	start := theirs.out.header()
	theirs.out.uint32(0) // an ACK
	theirs.out.bytes(make([]byte, headerSize)...)
	theirs.out.finish(start, unix.NLMSG_ERROR, 0, ours.seq+1)
	if err := unix.Sendto(theirs.fd, theirs.out.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: ids[0]}); err != nil {
		t.Fatal(err)
	}
	_, err := ours.batch(context.Background(), 1, false, func(m *message, _ int) (typ, flags uint16) { return m.putLinkDelete(1 << 30) })
	if !errors.Is(err, unix.ENODEV) {
		t.Errorf("%v, want the kernel's own answer, %v", err, unix.ENODEV)
	}
}
