package ns

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

func TestIsolated(t *testing.T) {
	if got := strings.TrimSpace(Run(t, "ip", "-o", "link")); strings.Count(got, "\n") > 8 || !strings.Contains(got, "lo:") {
		t.Errorf("links of a new namespace: %s", got)
	}
	self, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if init, err := os.Readlink("/proc/1/ns/net"); err != nil || init != self {
		t.Errorf("init is in %s, the test in %s (%v)", init, self, err)
	}
	if err := os.WriteFile("/etc/wireguard/wg0.conf", nil, 0o600); err != nil {
		t.Error(err)
	}
}

func TestVeth(t *testing.T) {
	a, b := New(t, "a"), New(t, "b")
	Veth(a, "to-b", []string{"192.0.2.1/24", "2001:db8::1/64"}, b, "to-a", []string{"192.0.2.2/24", "2001:db8::2/64"})
	for _, addr := range []string{"192.0.2.2", "2001:db8::2"} {
		var l net.Listener
		err := b.Do(func() (err error) {
			l, err = net.Listen("tcp", net.JoinHostPort(addr, "7"))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		err = a.Do(func() error {
			c, err := net.DialTimeout("tcp", l.Addr().String(), 5*time.Second)
			if err == nil {
				c.Close()
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func TestTry(t *testing.T) {
	n := New(t, "try")
	if got, want := n.Try("bash", "-c", "echo out; echo err >&2; exit 7"), (Result{"out\n", "err\n", 7}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := n.Try("bash", "-c", "kill -9 $$"); got.Code != 137 {
		t.Errorf("killed: got %+v", got)
	}
}

// TestLeftovers leaves a namespace, a link and a process, and sees that each is noticed.
func TestLeftovers(t *testing.T) {
	Run(t, "ip", "netns", "add", "left")
	Run(t, "ip", "link", "add", "left0", "type", "veth", "peer", "name", "left1")
	sleep := exec.Command("sleep", "99")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		sleep.Process.Kill()
		sleep.Wait()
		Run(t, "ip", "link", "del", "left0")
		Run(t, "ip", "netns", "del", "left")
	}()
	process := fmt.Sprintf("process %d ", sleep.Process.Pid)
	got := strings.Join(Leftovers(), "\n")
	// The arguments are there a moment after execve has closed the pipe that Start waits for (fs/binfmt_elf.c).
	for end := time.Now().Add(5 * time.Second); !strings.Contains(got, process) && time.Now().Before(end); got = strings.Join(Leftovers(), "\n") {
		time.Sleep(time.Millisecond)
	}
	for _, want := range []string{"namespace /run/netns/left", process, "link left0", "link left1"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q not noticed in:\n%s", want, got)
		}
	}
}
