package netns

import (
	"errors"
	"fmt"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// fresh makes a network namespace that lives as long as the test and returns a
// path to it.
func fresh(t *testing.T) string {
	t.Helper()
	var f *os.File
	err := onThread(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		f, err = Open("")
		return err
	})
	if err != nil {
		t.Fatalf("make a network namespace (root needed): %v", err)
	}
	t.Cleanup(func() { f.Close() })
	return fmt.Sprintf("/proc/self/fd/%d", f.Fd())
}

func TestDoLeavesOthersAlone(t *testing.T) {
	before, err := Identify("")
	if err != nil {
		t.Fatal(err)
	}
	ns := fresh(t)
	want, err := Identify(ns)
	if err != nil {
		t.Fatal(err)
	}
	if want == before || want.Cookie == before.Cookie || want.Cookie == 0 {
		t.Fatalf("new namespace %+v, the caller's %+v", want, before)
	}
	err = Do(ns, func() error {
		got, err := Identify("")
		if err == nil && got != want {
			err = fmt.Errorf("inside %+v, want %+v", got, want)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		done := make(chan ID)
		for range 4 {
			go func() { id, _ := Identify(""); done <- id }()
		}
		for range 4 {
			if got := <-done; got != before {
				t.Fatalf("a goroutine ran in %+v, want %+v", got, before)
			}
		}
	}
}

func TestInit(t *testing.T) {
	// A container may forbid even root to look at PID 1.
	id, err := Identify("/proc/1/ns/net")
	if errors.Is(err, unix.EACCES) {
		id, err = Identify("")
		id.Init = !id.Init
	}
	if err != nil || !id.Init {
		t.Errorf("PID 1's namespace: %+v, error %v", id, err)
	}
	if id, err = Identify(fresh(t)); err != nil || id.Init {
		t.Errorf("a new namespace: Init %v, error %v", id.Init, err)
	}
}

func TestSocketStaysBound(t *testing.T) {
	ns := fresh(t)
	err := Do(ns, func() error {
		ifs, err := net.Interfaces()
		if err == nil && (len(ifs) == 0 || ifs[0].Flags&net.FlagUp != 0) {
			err = fmt.Errorf("not a new namespace: %v", ifs)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for path, want := range map[string]error{
		"/nonexistent":       unix.ENOENT,
		"/dev/null":          unix.EINVAL,
		"/proc/self/ns/user": unix.EINVAL,
	} {
		if _, err := Open(path); !errors.Is(err, want) {
			t.Errorf("Open(%q) = %v, want %v", path, err, want)
		}
		if err := Do(path, func() error { t.Error("ran"); return nil }); !errors.Is(err, want) {
			t.Errorf("Do(%q) = %v, want %v", path, err, want)
		}
	}
}
