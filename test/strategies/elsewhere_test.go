package strategies

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"wg-quickns/test/bed"
	"wg-quickns/test/ns"
	"wg-quickns/test/state"
)

// TestGuardElsewhere: the tunnel lives in a namespace of its own, its socket in the
// host's, or it is born there too; the guard looks after it from outside.
func TestGuardElsewhere(t *testing.T) {
	w := newWorld(t, "", lan)
	w.serve()
	w.client("Namespace = box", "0.0.0.0/0", endpointOf(false))
	run := func(command string) { // not by ip-netns(8), whose mounts nobody else sees
		t.Helper()
		p := start(t, w.host, w.program, command, "wg0")
		p.cmd.Wait()
		if code := p.cmd.ProcessState.ExitCode(); code != 0 {
			t.Fatalf("%s: exit status %d\n%s", command, code, p.text())
		}
	}
	run("up")
	box := &ns.NS{Name: "box"}
	guard := w.guard()
	for range 3 {
		if r := box.Try("ip", "route", "del", "default"); r.Code != 0 {
			t.Fatal(r)
		}
		if !bed.Wait(bound, func() bool { return strings.Contains(box.Try("ip", "route").Stdout, "default dev wg0") }) {
			t.Errorf("the default route does not come back: %s", guard.text())
		}
		if r := box.Try("ip", "link", "set", "wg0", "down"); r.Code != 0 {
			t.Fatal(r)
		}
		if !bed.Wait(bound, func() bool { return strings.Contains(box.Try("ip", "route").Stdout, "default dev wg0") }) {
			t.Errorf("the link does not come up again: %s", guard.text())
		}
		time.Sleep(time.Second)
	}
	if box.Try("ping", "-nqc1", "-W2", world4).Code != 0 {
		t.Error("no answer through the tunnel")
	}
	run("down")
	if !bed.Wait(5*time.Second, func() bool { return strings.Contains(guard.text(), "is down") }) {
		t.Errorf("the guard does not end with its tunnel: %s", guard.text())
	}
	guard.end(syscall.SIGTERM)
	if r := ns.Run(t, "ip", "netns", "list"); strings.Contains(r, "box") {
		t.Errorf("left: %s", r)
	}
}

// TestGuardContainer: the process that a tunnel lives with ends.
func TestGuardContainer(t *testing.T) {
	w := newWorld(t, "", lan)
	w.serve()
	before := w.take()
	c := exec.Command("unshare", "--net", "sleep", "1000")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	bed.Wait(5*time.Second, func() bool {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", c.Process.Pid))
		return string(comm) == "sleep\n"
	})
	w.client(fmt.Sprintf("Namespace = pid:%d", c.Process.Pid), "0.0.0.0/0", endpointOf(false))
	w.up("wg0")
	guard := w.guard()
	c.Process.Kill()
	c.Wait()
	if !bed.Wait(5*time.Second, func() bool { return strings.Contains(guard.text(), "is gone: cleaning up") }) {
		t.Errorf("the guard does not notice: %s", guard.text())
		w.down("wg0")
	}
	guard.cmd.Wait()
	if code := guard.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit status %d: %s", code, guard.text())
	}
	if d := state.Diff(before, w.take()); d != "" {
		t.Errorf("left\n%s", d)
	}
}
