package journal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// The test binary is its own helper: with this set it is a process that takes locks.
const child = "JOURNAL_TEST_CHILD"

func TestMain(m *testing.M) {
	if what, rest, ok := strings.Cut(os.Getenv(child), " "); ok {
		if err := beChild(what, rest); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func beChild(what, dir string) error {
	r := Root(filepath.Join(dir, "root"))
	switch what {
	case "count":
		for range 200 {
			if err := count(r, dir); err != nil {
				return err
			}
		}
		return nil
	case "hold":
		if _, err := r.Lock(context.Background(), "wg0"); err != nil {
			return err
		}
		fmt.Println("held")
		time.Sleep(time.Hour)
	}
	return fmt.Errorf("what is %q", what)
}

// count adds one to a file under a name's lock and to another under the global
// one, with all the time in the world for another to come between.
func count(r Root, dir string) error {
	add := func(file string, take func() (*Lock, error)) error {
		l, err := take()
		if err != nil {
			return err
		}
		path := filepath.Join(dir, file)
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(string(text))
		if err != nil {
			return fmt.Errorf("%s: somebody was at it: %w", path, err)
		}
		if err := os.WriteFile(path, []byte(strconv.Itoa(n+1)), 0o600); err != nil {
			return err
		}
		return l.Close()
	}
	return errors.Join(
		add("name", func() (*Lock, error) { return r.Lock(context.Background(), "wg0") }),
		add("global", func() (*Lock, error) { return r.Global(context.Background()) }))
}

func counted(t *testing.T, dir string, want int) {
	t.Helper()
	for _, file := range []string{"name", "global"} {
		text, err := os.ReadFile(filepath.Join(dir, file))
		must(t, err)
		if string(text) != strconv.Itoa(want) {
			t.Errorf("%s: %s additions, want %d", file, text, want)
		}
	}
}

func counters(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, file := range []string{"name", "global"} {
		must(t, os.WriteFile(filepath.Join(dir, file), []byte("0"), 0o600))
	}
	return dir
}

func spawn(t *testing.T, what, dir string) *exec.Cmd {
	t.Helper()
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), child+"="+what+" "+dir)
	c.Stderr = os.Stderr
	return c
}

// No journal is there, so that every Close clears the folder and the lock file
// away under those who wait for it.
func TestLockAmongGoroutines(t *testing.T) {
	dir := counters(t)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 100 {
				if err := count(Root(filepath.Join(dir, "root")), dir); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	counted(t, dir, 2000)
}

func TestLockAmongProcesses(t *testing.T) {
	dir := counters(t)
	var all []*exec.Cmd
	for range 8 {
		c := spawn(t, "count", dir)
		must(t, c.Start())
		all = append(all, c)
	}
	for _, c := range all {
		if err := c.Wait(); err != nil {
			t.Error(err)
		}
	}
	counted(t, dir, 1600)
}

func TestLockEndsWithKilledHolder(t *testing.T) {
	dir := t.TempDir()
	r := Root(filepath.Join(dir, "root"))
	for range 5 {
		c := spawn(t, "hold", dir)
		out, err := c.StdoutPipe()
		must(t, err)
		must(t, c.Start())
		if _, err := out.Read(make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		if l, err := r.Lock(ctx, "wg0"); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got a lock that another process holds: %v, %v", l, err)
		}
		cancel()
		got := make(chan error)
		go func() {
			l, err := r.Lock(t.Context(), "wg0")
			if err == nil {
				err = l.Close()
			}
			got <- err
		}()
		must(t, c.Process.Kill())
		c.Wait()
		select {
		case err := <-got:
			must(t, err)
		case <-time.After(10 * time.Second):
			t.Fatal("the lock stayed with a killed process")
		}
	}
}

func TestLockWaitIsInterrupted(t *testing.T) {
	r := root(t)
	held, err := r.Global(t.Context())
	must(t, err)
	why := errors.New("terminated")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(20*time.Millisecond, func() { cancel(why) })
	start := time.Now()
	if _, err := r.Global(ctx); !errors.Is(err, why) {
		t.Errorf("error %v, want the cause", err)
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("interrupted after %v", d)
	}
	if _, err := r.Global(ctx); !errors.Is(err, why) {
		t.Errorf("error %v, want the cause", err)
	}
	// Who gave up must not keep the lock when it comes.
	must(t, held.Close())
	again, cancel2 := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel2()
	l, err := r.Global(again)
	must(t, err)
	must(t, l.Close())
}

// The folder goes while the journal does not.
func TestCloseKeepsJournal(t *testing.T) {
	r := root(t)
	l, err := r.Lock(t.Context(), "wg0")
	must(t, err)
	j := begun(t, r, "wg0")
	must(t, l.Close())
	if names, err := r.Names(); err != nil || len(names) != 1 {
		t.Fatalf("names %v, %v", names, err)
	}
	l, err = r.Lock(t.Context(), "wg0")
	must(t, err)
	must(t, j.Remove())
	must(t, l.Close())
	if _, err := os.Stat(r.dir("wg0")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("folder: %v", err)
	}
}

func TestLockErrors(t *testing.T) {
	r := root(t)
	must(t, os.MkdirAll(filepath.Join(string(r), "@lock"), 0o700))
	if _, err := r.Global(t.Context()); err == nil {
		t.Error("a folder was locked")
	}
	missing := Root(filepath.Join(t.TempDir(), "no", "where"))
	if _, err := missing.Lock(t.Context(), "wg0"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no parent folder: %v", err)
	}
	if _, err := missing.Global(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no parent folder: %v", err)
	}
}
