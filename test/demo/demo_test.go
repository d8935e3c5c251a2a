// Package demo tests `make demo`: that it passes, and that it leaves nothing
// when it is ended on the way.
package demo

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"wg-quickns/test/ns"
)

// Main fails the tests when a process, a namespace or a link is left.
func TestMain(m *testing.M) { ns.Main(m) }

func TestDemo(t *testing.T) {
	r := ns.Try(exec.Command("./run"))
	if r.Code != 0 || !strings.HasSuffix(r.Stdout, "\nDemo passed.\n") {
		t.Fatalf("exit status %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	for _, want := range []string{
		"[#] ip -4 rule add not fwmark 51820 table 51820",
		"[#] ip -6 route add ::/0 dev wg0 table 51820",
		"[#] ip link delete dev wg0",
		"UDP, length 148", // the handshake
	} {
		if !strings.Contains(r.Stdout+r.Stderr, want) {
			t.Errorf("not shown: %s", want)
		}
	}
}

// TestEnded ends the demo while the tunnel is up. The kernel then ends all that
// runs inside, a moment later.
func TestEnded(t *testing.T) {
	for sig, status := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143, syscall.SIGKILL: -1} {
		t.Run(sig.String(), func(t *testing.T) {
			c := exec.Command("./run")
			c.Stderr = os.Stderr
			out, err := c.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(out)
			for lines.Scan() && !strings.Contains(lines.Text(), "== Ping through the tunnel") {
			}
			if err := c.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			// the pipe ends when the last process that could write to it has
			last := make(chan string)
			go func() {
				text := ""
				for lines.Scan() {
					text = lines.Text()
				}
				last <- text
			}()
			select {
			case text := <-last:
				if text == "Demo passed." {
					t.Error("it went on to its end")
				}
			case <-time.After(10 * time.Second):
				t.Error("something still runs 10 s later")
			}
			exit := (*exec.ExitError)(nil)
			if err := c.Wait(); !errors.As(err, &exit) || exit.ExitCode() != status {
				t.Errorf("ended with %v", err)
			}
			limit := time.Now().Add(5 * time.Second)
			for len(ns.Leftovers()) > 0 && time.Now().Before(limit) {
				time.Sleep(20 * time.Millisecond)
			}
			if left := ns.Leftovers(); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}
