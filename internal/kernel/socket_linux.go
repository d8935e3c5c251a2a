package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Error is the kernel's refusal of a request.
type Error struct {
	Errno unix.Errno
	Text  string // the kernel's own explanation (NLMSGERR_ATTR_MSG), often empty
}

func (e *Error) Error() string {
	if e.Text != "" {
		return e.Text + " (" + e.Errno.Error() + ")"
	}
	return e.Errno.Error()
}

func (e *Error) Unwrap() error { return e.Errno }

// absent says that what was to be deleted or read is not there.
func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) ||
		errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EADDRNOTAVAIL)
}

const (
	// packed is how many messages go into one sendmsg: from about a thousand on
	// the system call costs nothing beside the kernel's work on the messages.
	packed = 1000
	// The socket's buffers must hold the messages of one sendmsg (up to 100
	// bytes each) and, at worst, an answer to each of them (a page each).
	sendBuffer = 1 << 20
	recvBuffer = 8 << 20

	headerSize = unix.NLMSG_HDRLEN
)

// socket is an rtnetlink socket that sends messages by the thousand.
type socket struct {
	fd  int
	seq uint32
	out message
	in  []byte
}

// dial opens a socket in the namespace of the calling thread; it stays there.
func dial() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	// All of these are improvements only: without them a batch may fail, with an error.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, recvBuffer)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	return &socket{fd: fd, in: make([]byte, 64<<10)}, nil
}

func (s *socket) close() error { return unix.Close(s.fd) }

// exchange sends n messages, many in one sendmsg with an ACK asked on the last
// only. put writes message i and says its type and flags. got is called with
// each answer and each error to message i; the first error it returns is
// exchange's, with its i. The kernel carries on after a message that fails, so
// those behind it in the same sendmsg are done all the same.
func (s *socket) exchange(ctx context.Context, n int, put func(m *message, i int) (typ, flags uint16), got func(i int, body []byte, err error) error) (int, error) {
	for first := 0; first < n; first += packed {
		if err := ctx.Err(); err != nil {
			return first, err
		}
		end := min(first+packed, n)
		base := s.seq + 1
		s.seq += uint32(end - first)
		s.out.b = s.out.b[:0]
		for i := first; i < end; i++ {
			ack := uint16(0)
			if i == end-1 {
				ack = unix.NLM_F_ACK
			}
			start := s.out.header()
			typ, flags := put(&s.out, i)
			s.out.finish(start, typ, flags|unix.NLM_F_REQUEST|ack, base+uint32(i-first))
		}
		if err := unix.Sendto(s.fd, s.out.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return first, fmt.Errorf("send to rtnetlink: %w", err)
		}
		if i, err := s.answers(base, end-first, got, first); err != nil {
			return first + i, err
		}
	}
	return n, nil
}

// answers reads up to the ACK of the last of n messages numbered from base.
func (s *socket) answers(base uint32, n int, got func(int, []byte, error) error, offset int) (failed int, err error) {
	for {
		size, _, rerr := unix.Recvfrom(s.fd, s.in, unix.MSG_TRUNC)
		if rerr == unix.EINTR {
			continue
		}
		if rerr != nil {
			return 0, fmt.Errorf("receive from rtnetlink: %w", rerr)
		}
		if size > len(s.in) {
			return 0, fmt.Errorf("receive from rtnetlink: %w", unix.EMSGSIZE)
		}
		for b := s.in[:size]; len(b) >= headerSize; {
			length := int(binary.NativeEndian.Uint32(b))
			if length < headerSize || length > len(b) {
				return 0, fmt.Errorf("receive from rtnetlink: torn message: %w", unix.EBADMSG)
			}
			typ, flags := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:])
			i := int(int32(binary.NativeEndian.Uint32(b[8:]) - base))
			body := b[headerSize:length]
			b = b[min(align(length), len(b)):]
			if i < 0 || i >= n {
				continue // left over from an exchange that broke off
			}
			var gerr error
			if typ == unix.NLMSG_ERROR {
				if e := parseError(flags, body); e != nil {
					gerr = got(offset+i, nil, e)
				}
			} else {
				gerr = got(offset+i, body, nil)
			}
			if gerr != nil && err == nil {
				failed, err = i, gerr
			}
			if typ == unix.NLMSG_ERROR && i == n-1 {
				return failed, err
			}
		}
	}
}

// parseError reads a struct nlmsgerr; nil is an ACK.
func parseError(flags uint16, body []byte) error {
	if len(body) < 4 {
		return &Error{Errno: unix.EBADMSG}
	}
	code := int32(binary.NativeEndian.Uint32(body))
	if code == 0 {
		return nil
	}
	e := &Error{Errno: unix.Errno(-code)}
	if flags&unix.NLM_F_ACK_TLVS == 0 {
		return e
	}
	skip := 4 + headerSize
	if flags&unix.NLM_F_CAPPED == 0 && len(body) >= 8 { // the whole request is quoted
		skip = 4 + align(int(binary.NativeEndian.Uint32(body[4:])))
	}
	for typ, data := range attributes(body[min(skip, len(body)):]) {
		if typ == unix.NLMSGERR_ATTR_MSG && len(data) > 0 {
			e.Text = string(data[:len(data)-1])
		}
	}
	return e
}

// batch is exchange for requests that have no answer but success or failure. Where
// gone is true, what is not there does not count as failure.
func (s *socket) batch(ctx context.Context, n int, gone bool, put func(m *message, i int) (typ, flags uint16)) (int, error) {
	return s.exchange(ctx, n, put, func(_ int, _ []byte, err error) error {
		if gone && absent(err) {
			return nil
		}
		return err
	})
}
