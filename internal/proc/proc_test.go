package proc

import (
	"os"
	"path/filepath"
	"testing"
)

// TestLook finds programs, and fails to, with the exit statuses of bash(1).
func TestLook(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	for path, mode := range map[string]os.FileMode{a + "/both": 0o644, b + "/both": 0o755, a + "/text": 0o644, b + "/prog": 0o755} {
		if err := os.WriteFile(path, nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(a, "prog"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(b)
	for _, c := range []struct {
		path, name, want string
		status           int
	}{
		{a + ":" + b, "prog", b + "/prog", 0}, // a folder of that name is none
		{a + ":" + b, "both", b + "/both", 0},
		{a + ":" + b, "text", "", 126},
		{a + ":" + b, "none", "", 127},
		{a + ":", "prog", "./prog", 0},
		{a, b + "/prog", b + "/prog", 0},
		{a, b + "/none", "", 127},
		{b, a + "/text", "", 126},
	} {
		t.Setenv("PATH", c.path)
		got, err := Look(c.name)
		status, _ := ExitStatus(err)
		if got != c.want || status != c.status {
			t.Errorf("%s in %s: got %q, status %d (%v), want %q, %d", c.name, c.path, got, status, err, c.want, c.status)
		}
	}
}
