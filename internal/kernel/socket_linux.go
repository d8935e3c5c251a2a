package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
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
	packed      = 1000
	packedBytes = 256 << 10
	// The socket's buffers must hold the messages of one sendmsg and, at worst,
	// an answer to each of them (a page each).
	sendBuffer = 1 << 20
	recvBuffer = 8 << 20

	headerSize = unix.NLMSG_HDRLEN
)

// socket is a netlink socket that sends messages by the thousand.
type socket struct {
	fd  int
	seq uint32
	out message
	in  []byte
}

// dial opens a socket of a netlink protocol in the namespace of the calling
// thread; it stays there.
func dial(protocol int) (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
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
	for first := 0; first < n; {
		if err := ctx.Err(); err != nil {
			return first, err
		}
		s.out.b = s.out.b[:0]
		base, end, start := s.seq+1, first, 0
		for ; end < n && end-first < packed && len(s.out.b) < packedBytes; end++ {
			start = s.out.header()
			typ, flags := put(&s.out, end)
			s.seq++
			s.out.finish(start, typ, flags|unix.NLM_F_REQUEST, s.seq)
		}
		s.out.addFlags(start, unix.NLM_F_ACK)
		if err := s.send(); err != nil {
			return first, err
		}
		if i, err := s.answers(base, end-first, got, first); err != nil {
			return first + i, err
		}
		first = end
	}
	return n, nil
}

func (s *socket) send() error {
	if err := unix.Sendto(s.fd, s.out.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to netlink: %w", err)
	}
	return nil
}

// datagram is one message received.
type datagram struct {
	typ, flags uint16
	seq        uint32
	body       []byte // valid until the next receive
}

// receive reads what the kernel sends next and calls each with every message,
// until that says it is the last or returns an error.
func (s *socket) receive(each func(d datagram) (last bool, err error)) (last bool, err error) {
	size, from, err := unix.Recvfrom(s.fd, s.in, unix.MSG_TRUNC)
	if err == unix.EINTR {
		return false, nil
	}
	if a, ok := from.(*unix.SockaddrNetlink); err == nil && (!ok || a.Pid != 0) {
		return false, nil // another process's, see netlink(7)
	}
	if err == nil && size > len(s.in) {
		err = unix.EMSGSIZE
	}
	if err != nil {
		return false, fmt.Errorf("receive from netlink: %w", err)
	}
	for b := s.in[:size]; len(b) >= headerSize; {
		length := int(binary.NativeEndian.Uint32(b))
		if length < headerSize || length > len(b) {
			return false, fmt.Errorf("receive from netlink: torn message: %w", unix.EBADMSG)
		}
		last, err = each(datagram{
			binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:]),
			binary.NativeEndian.Uint32(b[8:]), b[headerSize:length],
		})
		if last || err != nil {
			return last, err
		}
		b = b[min(align(length), len(b)):]
	}
	return false, nil
}

// answers reads up to the ACK of the last of n messages numbered from base.
func (s *socket) answers(base uint32, n int, got func(int, []byte, error) error, offset int) (failed int, err error) {
	for {
		last, rerr := s.receive(func(d datagram) (bool, error) {
			i := int(int32(d.seq - base))
			if i < 0 || i >= n {
				return false, nil // left over from an exchange that broke off
			}
			var gerr error
			if d.typ != unix.NLMSG_ERROR {
				gerr = got(offset+i, d.body, nil)
			} else if e := parseError(d.flags, d.body); e != nil {
				gerr = got(offset+i, nil, e)
			}
			if gerr != nil && err == nil {
				failed, err = i, gerr
			}
			return d.typ == unix.NLMSG_ERROR && i == n-1, nil
		})
		if rerr != nil {
			return 0, rerr
		}
		if last {
			return failed, err
		}
	}
}

// dump sends one request for a list and calls each with every item's message. It
// returns netlink.ErrDumpInterrupted when the list changed meanwhile.
func (s *socket) dump(put func(m *message) (typ uint16), each func(body []byte) error) error {
	s.out.b = s.out.b[:0]
	start := s.out.header()
	typ := put(&s.out)
	s.seq++
	s.out.finish(start, typ, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, s.seq)
	if err := s.send(); err != nil {
		return err
	}
	var failed error
	for {
		last, err := s.receive(func(d datagram) (bool, error) {
			if d.seq != s.seq {
				return false, nil
			}
			var e error
			switch {
			case d.typ == unix.NLMSG_ERROR, d.typ == unix.NLMSG_DONE && len(d.body) >= 4:
				e = parseError(d.flags, d.body)
			case d.typ != unix.NLMSG_DONE && failed == nil:
				e = each(d.body)
			}
			if e == nil && d.flags&unix.NLM_F_DUMP_INTR != 0 {
				e = netlink.ErrDumpInterrupted
			}
			if failed == nil {
				failed = e
			}
			return d.typ == unix.NLMSG_ERROR || d.typ == unix.NLMSG_DONE, nil
		})
		if err != nil {
			return err
		}
		if last {
			return failed
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
