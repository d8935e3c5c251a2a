package state

import (
	"os/exec"
	"strings"
	"testing"

	"wg-quickns/test/ns"
)

func TestMain(m *testing.M) { ns.Main(m) }

// TestRandom makes the same namespace twice: other MAC addresses, indexes and
// handles, the same state.
func TestRandom(t *testing.T) {
	var states []State
	for i := range 2 {
		t.Run("", func(t *testing.T) {
			n, far := ns.New(t, "same"), ns.New(t, "far")
			for range i {
				n.Run("ip", "link", "add", "skip0", "type", "veth", "peer", "name", "skip1")
				n.Run("ip", "link", "del", "skip0")
			}
			ns.Veth(n, "v0", []string{"192.0.2.1/24", "fe80::1/64"}, far, "v1", nil)
			states = append(states, take(t, n))
		})
	}
	if got := Diff(states[0], states[1]); got != "" {
		t.Error(got)
	}
	if !strings.Contains(states[0].String(), "local=fe80::1 ") || !strings.Contains(states[0].String(), "local=fe80::(v0) ") {
		t.Errorf("link-local addresses:\n%s", states[0])
	}
}

func TestProcess(t *testing.T) {
	before := take(t, nil)
	sleep := exec.Command("sleep", "77")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer sleep.Wait()
	defer sleep.Process.Kill()
	if got := Diff(before, take(t, nil)); !strings.Contains(got, "+ process sleep: sleep 77") {
		t.Errorf("got %q", got)
	}
}

func TestDiff(t *testing.T) {
	a := State{"x": {"1", "1", "2"}, "y": {"3"}}
	b := State{"x": {"1", "2", "2"}, "z": {"4"}}
	if got, want := Diff(a, b), "- x 1\n+ x 2\n- y 3\n+ z 4\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := Diff(a, b.Without("z").Mask("^2$", "1")); got != "- x 2\n+ x 1\n- y 3\n" {
		t.Errorf("got %q", got)
	}
}

func take(t *testing.T, n *ns.NS) State {
	t.Helper()
	s, err := Take(n)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
