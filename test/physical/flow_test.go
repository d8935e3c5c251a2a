//go:build !systemd

package physical

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/test/bed"
	"wg-quickns/test/leak"
	"wg-quickns/test/ns"
)

// served adds to a machine without probes what answers behind the tunnel, and without it.
func served(t *testing.T) *leaky {
	w := newLeaky(t, nil)
	w.probes.End()
	w.Far.Run("ip", "addr", "add", answers.String()+"/32", "dev", "lo")
	return w
}

var answers = netip.MustParseAddr("203.0.113.7")

// echo sends every datagram back, until the test ends.
func (w *leaky) echo(port int) {
	var fd int
	err := w.Far.Do(func() (err error) {
		if fd, err = leak.Open(unix.AF_INET, unix.SOCK_DGRAM, 0, ""); err == nil {
			err = unix.Bind(fd, leak.Sockaddr(answers, port))
		}
		return err
	})
	if err == nil {
		err = unix.SetNonblock(fd, false)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for b := make([]byte, 100); ; {
			n, from, err := unix.Recvfrom(fd, b, 0)
			if err != nil || n == 0 {
				return
			}
			_ = unix.Sendto(fd, b[:n], unix.MSG_DONTWAIT, from)
		}
	}()
	w.t.Cleanup(func() { unix.Shutdown(fd, unix.SHUT_RDWR); <-done; unix.Close(fd) })
}

// outage is for how long nothing was answered while a function ran, of probes each 1 ms, or 5 where an emulated
// machine would do nothing else.
func (w *leaky) outage(port int, do func()) time.Duration {
	w.t.Helper()
	var fd int
	if err := w.NS.Do(func() (err error) { fd, err = leak.Open(unix.AF_INET, unix.SOCK_DGRAM, 0, ""); return err }); err != nil {
		w.t.Fatal(err)
	}
	defer unix.Close(fd)
	every := time.Millisecond
	if slow {
		every = 5 * time.Millisecond
	}
	begin := time.Now()
	stop := make(chan struct{})
	var both sync.WaitGroup
	var answered []time.Duration // when they were sent
	both.Go(func() {
		for tick := time.NewTicker(every); ; {
			select {
			case <-stop:
				return
			case <-tick.C:
				_ = unix.Sendto(fd, binary.BigEndian.AppendUint64(nil, uint64(time.Since(begin))), unix.MSG_DONTWAIT, leak.Sockaddr(answers, port))
			}
		}
	})
	both.Go(func() {
		for b := make([]byte, 8); ; {
			if n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT); err == nil && n == 8 {
				answered = append(answered, time.Duration(binary.BigEndian.Uint64(b)))
				continue
			}
			select {
			case <-stop:
				return
			case <-time.After(every / 2):
			}
		}
	})
	time.Sleep(hold)
	do()
	time.Sleep(hold)
	end := time.Since(begin)
	time.Sleep(hold)
	close(stop)
	both.Wait()
	slices.Sort(answered)
	var longest, last time.Duration
	for _, at := range append(answered, end) {
		longest, last = max(longest, at-last), max(last, at)
	}
	return longest
}

// TestOutage: with addresses of its own a machine is without a way out for 500 ms at
// most while the tunnel comes up, in the median of 10 times.
func TestOutage(t *testing.T) {
	w := served(t)
	w.echo(7)
	var up, down []time.Duration
	for range 10 {
		up = append(up, w.outage(7, func() { w.wants(0, "up", "wg0") }))
		down = append(down, w.outage(7, func() { w.wants(0, "down", "wg0") }))
	}
	slices.Sort(up)
	slices.Sort(down)
	t.Logf("without a way out for %v in up, %v in down (medians; %v, %v at most)", up[4], down[4], up[9], down[9])
	if up[4] > 500*time.Millisecond && !slow {
		t.Errorf("up: %v", up)
	}
}

// TestOutageDHCP: with an address of a DHCP server it is what the client takes by itself to have it again,
// and 500 ms at most, in the median of 5 times.
func TestOutageDHCP(t *testing.T) {
	w := served(t)
	w.echo(7)
	l := w.lease()
	l.serve("")
	again := func() {
		l.end()
		w.NS.Run("bash", "-ec", "ip link set uplink down; ip -4 addr flush dev uplink")
		l.client("-w", "uplink")
	}
	again()
	var own, up []time.Duration
	for range 5 {
		own = append(own, w.outage(7, again))
		up = append(up, w.outage(7, func() { w.wants(0, "up", "wg0") }))
		w.wants(0, "down", "wg0")
	}
	l.end()
	slices.Sort(own)
	slices.Sort(up)
	t.Logf("without a way out for %v in up, %v by the client alone (medians; %v, %v at most)", up[2], own[2], up[4], own[4])
	if up[2]-own[2] > 500*time.Millisecond && !slow {
		t.Errorf("up: %v, the client alone: %v", up, own)
	}
}

// stream is a TCP connection through the tunnel on which bytes go there and back.
type stream struct {
	conn net.Conn
	done chan error
	stop chan struct{}
	mu   sync.Mutex
	last time.Time
	gap  time.Duration
	n    int
}

func (w *leaky) stream() *stream {
	w.t.Helper()
	var l net.Listener
	if err := w.Far.Do(func() (err error) { l, err = net.Listen("tcp", "10.77.0.1:7"); return err }); err != nil {
		w.t.Fatal(err)
	}
	go func() {
		c, err := l.Accept()
		l.Close() // which resets what was not accepted
		if err == nil {
			io.Copy(c, c)
			c.Close()
		}
	}()
	s := &stream{done: make(chan error, 1), stop: make(chan struct{}), last: time.Now()}
	if err := w.NS.Do(func() (err error) { s.conn, err = net.Dial("tcp", "10.77.0.1:7"); return err }); err != nil {
		w.t.Fatal(err)
	}
	go func() {
		for i := uint32(0); ; i++ {
			sent, got := binary.BigEndian.AppendUint32(nil, i), make([]byte, 4)
			_, err := s.conn.Write(sent)
			if err == nil {
				_, err = io.ReadFull(s.conn, got)
			}
			if err == nil && !bytes.Equal(sent, got) {
				err = fmt.Errorf("sent %x, got %x", sent, got)
			}
			now := time.Now()
			s.mu.Lock()
			s.gap, s.last, s.n = max(s.gap, now.Sub(s.last)), now, s.n+1
			s.mu.Unlock()
			if err != nil {
				s.done <- err
				return
			}
			select {
			case <-s.stop:
				s.done <- nil
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return s
}

// flows checks that the connection goes on, and gives the longest pause since the last call.
func (s *stream) flows(t *testing.T, what string) {
	t.Helper()
	count := func() int { s.mu.Lock(); defer s.mu.Unlock(); return s.n }
	before := count()
	if !bed.Wait(20*time.Second, func() bool { return count() > before+5 }) {
		t.Errorf("%s: the connection hangs", what)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t.Logf("%s: the longest pause was %v", what, s.gap.Round(time.Millisecond))
	s.gap = 0
}

// TestConnection: a connection through the tunnel goes on over a reload, a guard that is
// killed and started again, a cable that was out, and the namespace's name deleted.
func TestConnection(t *testing.T) {
	w := served(t)
	w.wants(0, "up", "wg0")
	w.works()
	guard := w.guard()
	s := w.stream()
	s.flows(t, "at first")
	w.tunnel("MTU = 1380")
	w.wants(0, "reload", "wg0")
	s.flows(t, "reload")
	guard.Signal(syscall.SIGKILL)
	guard.Wait()
	guard = w.guard()
	s.flows(t, "guard started again")
	w.Far.Run("ip", "link", "set", "uplink", "down")
	time.Sleep(300 * time.Millisecond)
	w.Far.Run("bash", "-ec", "ip link set uplink up; ip addr replace 2001:db8::1/64 dev uplink nodad; ip route replace 192.0.2.0/24 dev uplink src "+leak.Endpoint)
	s.flows(t, "cable out for 0.3 s, as in suspend")
	ns.Run(t, "ip", "netns", "del", "physical")
	s.flows(t, "name deleted")
	close(s.stop)
	if err := <-s.done; err != nil {
		t.Error(err)
	}
	s.conn.Close()
	w.wants(0, "down", "wg0")
	guard.Wait()
}

// TestReplugged: a USB device that comes again, as after suspend, is new to the kernel. The
// guard says that it is gone, moves it when it comes and gives it what it had, and down brings
// it home. Another device of its name has nothing of it.
func TestReplugged(t *testing.T) {
	for what, guarded := range map[string]bool{"the same": true, "the same, with no guard": false, "another": true, "another, with no guard": false} {
		t.Run(what, func(t *testing.T) {
			newWorld(t, "PhysicalInterfaces = uplink\n").replugged(strings.HasPrefix(what, "the same"), guarded)
		})
	}
}

func (w *world) replugged(same, guarded bool) {
	t := w.t
	number := regexp.MustCompile(`@if[0-9]+`)
	look := func(at string) string {
		return number.ReplaceAllString(ns.Run(t, "bash", "-ec", "at() { ip -n "+at+` "$@"; }
			at -br link show uplink; at -br addr show uplink; at route; at route show table 77; at -6 route | grep -v fe80 || true`), "")
	}
	before := look("bed")
	mac := strings.TrimSpace(w.NS.Run("cat", "/sys/class/net/uplink/address"))
	if !same {
		mac = "02:00:00:00:77:77"
	}
	w.up()
	away := look("physical")
	var guard *bed.Process
	if guarded {
		guard = w.guard()
		time.Sleep(hold)
	}
	times := 1
	if guarded && same {
		times = 2
	}
	for i := range times {
		w.away("link", "del", "uplink")
		if guarded && !bed.Wait(5*time.Second, func() bool { return strings.Count(guard.Says(), "interface `uplink' is gone") == i+1 }) {
			t.Errorf("it is gone, and the guard says %s", guard.Says())
		}
		const gone = "wg0: interface uplink is gone"
		if r := (bed.Result{}); !bed.Wait(5*time.Second, func() bool {
			r = w.Run(nil, w.Program, "status", "wg0")
			return r.Code == 4 && strings.Contains(r.Output, gone)
		}) {
			t.Errorf("status: %s", r)
		}
		slow := i > 0 // udev(7) takes its time, which the kernel does not tell
		if slow {
			ns.Run(t, "bash", "-ec", "mkdir -p /run/udev/data; touch /run/udev/control")
		}
		w.NS.Run("ip", "link", "add", "uplink", "address", mac, "type", "veth", "peer", "name", "uplink", "netns", w.Far.Name)
		w.Far.Run("ip", "link", "set", "uplink", "up")
		if slow {
			time.Sleep(3 * hold)
			w.NS.Run("bash", "-ec", "touch /run/udev/data/n$(cat /sys/class/net/uplink/ifindex)")
			defer os.RemoveAll("/run/udev")
		}
		if guarded && !bed.Wait(5*time.Second, func() bool {
			return strings.Contains(w.away("link"), " uplink") && w.NS.Try("ip", "link", "show", "uplink").Code != 0
		}) {
			t.Errorf("the guard leaves it where it is:\n%s", w.NS.Run("ip", "link"))
		}
		now := ""
		if guarded && same && !bed.Wait(5*time.Second, func() bool { now = look("physical"); return now == away }) {
			t.Errorf("away it has\n%s, and had\n%s", now, away)
		}
	}
	w.wants(0, map[bool]string{true: "netns 1"}[guarded], "down", "wg0")
	if guarded {
		if r := guard.Wait(); r.Code != 0 {
			t.Errorf("guard: %s", r)
		}
	}
	after := ""
	if same && !bed.Wait(2*time.Second, func() bool { after = look("bed"); return after == before }) {
		t.Errorf("now\n%sbefore\n%s", after, before)
	}
	if out := w.NS.Run("ip", "addr", "show", "uplink"); !same && (!strings.Contains(out, mac) || strings.Contains(out, "inet") || strings.Contains(out, "alias")) {
		t.Errorf("the other: %s", out)
	}
	if out := ns.Run(t, "ls", "/run/netns", "/run/wg-quickns"); strings.Contains(out, "physical") || strings.Contains(out, "wg0") {
		t.Errorf("left: %s", out)
	}
}
