package engine_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"wg-quickns/internal/journal"
	"wg-quickns/internal/plan"
)

// calls counts a command's calls of the Doer, when nothing goes wrong.
func calls(t testing.TB, newLab func(testing.TB) *lab) (up, down int) {
	l := newLab(t)
	l.mustUp()
	up = l.doer.n
	l.mustDown()
	return up, l.doer.n
}

func TestUpAndDown(t *testing.T) {
	eachLab(t, func(t *testing.T, newLab func(testing.TB) *lab) {
		l := newLab(t)
		l.mustUp()
		l.isUp("after up")
		l.mustDown()
		l.isBefore("after down")
		l.mustDown() // once more is fine
	})
}

// The process may be killed before and after every call of the Doer, that is,
// around every change and every record: then down restores the world, and so
// does a new up without a down.
func TestKilledUp(t *testing.T) {
	t.Parallel()
	eachLab(t, func(t *testing.T, newLab func(testing.TB) *lab) {
		n, _ := calls(t, newLab)
		if n < 23 {
			t.Fatalf("up is %d calls only", n)
		}
		t.Logf("killed at %d calls of up, before and after", n)
		for i := range n {
			for _, kill := range []fault{killBefore, killAfter} {
				die := func() *lab {
					l := newLab(t)
					if err, dead := l.with(map[int]fault{i: kill}).up(t.Context()); !dead {
						t.Fatalf("up was not killed at %d: %v", i, err)
					}
					return l
				}
				recovers(die, fmt.Sprintf("up killed at %d/%d", i, kill))
			}
		}
	})
}

// recovers checks that down restores the world after a death, and that a new up does
// without a down.
func recovers(die func() *lab, what string) {
	l := die()
	l.mustDown()
	l.isBefore("down after %s", what)
	l = die()
	l.mustUp()
	l.isUp("up after %s", what)
	l.mustDown()
	l.isBefore("up, down after %s", what)
}

func TestKilledDown(t *testing.T) {
	t.Parallel()
	eachLab(t, func(t *testing.T, newLab func(testing.TB) *lab) {
		_, n := calls(t, newLab)
		if n < 15 {
			t.Fatalf("down is %d calls only", n)
		}
		t.Logf("killed at %d calls of down, before and after", n)
		for i := range n {
			for _, kill := range []fault{killBefore, killAfter} {
				die := func() *lab {
					l := newLab(t)
					l.mustUp()
					if err, dead := l.with(map[int]fault{i: kill}).down(t.Context()); !dead {
						t.Fatalf("down was not killed at %d: %v", i, err)
					}
					return l
				}
				recovers(die, fmt.Sprintf("down killed at %d/%d", i, kill))
			}
		}
	})
}

// All is undone and recorded, but the journal is still there.
func TestKilledBeforeTheJournalGoes(t *testing.T) {
	eachLab(t, func(t *testing.T, newLab func(testing.TB) *lab) {
		die := func() *lab {
			l := newLab(t)
			l.mustUp()
			l.after = func(context.Context) error { panic(killed{}) }
			if err, dead := l.with(nil).down(t.Context()); !dead {
				t.Fatal(err)
			}
			l.same(newWorld(), "killed at the end of down")
			l.after = nil
			return l
		}
		l := die()
		l.mustDown()
		l.isBefore("down again")
		l = die()
		l.mustUp()
		l.isUp("up")
	})
}

// What is recorded as undone is not undone once more: it may be somebody else's by then.
func TestUndoneOnce(t *testing.T) {
	l := newLab(t)
	l.mustUp()
	var last plan.Rule
	l.doer.before = func(_ int, s plan.Step) {
		if r, ok := s.(plan.Rule); ok {
			last = r
		} else {
			panic(killed{})
		}
	}
	if err, dead := l.with(nil).down(t.Context()); !dead {
		t.Fatal(err)
	}
	l.doer.before = nil
	last.Delete = false
	if _, err := l.world.Do(t.Context(), "", last); err != nil {
		t.Fatal(err)
	}
	l.mustDown()
	if there, _ := l.world.Exists(t.Context(), "", last); !there {
		t.Error("a rule was deleted twice, the second time somebody else's")
	}
}

// Killed, and killed again while it is put right.
func TestKilledTwice(t *testing.T) {
	t.Parallel()
	eachLab(t, func(t *testing.T, newLab func(testing.TB) *lab) {
		n, _ := calls(t, newLab)
		for i := range n {
			for k := 0; ; k++ {
				l := newLab(t)
				l.with(map[int]fault{i: killAfter}).up(t.Context())
				if _, dead := l.with(map[int]fault{k: killAfter}).down(t.Context()); !dead {
					break
				}
				l.mustDown()
				l.isBefore("up killed at %d, down at %d", i, k)
			}
		}
	})
}

// The journal may end at any byte, in the middle of the record that was being
// written when the process died.
func TestTornJournal(t *testing.T) {
	t.Parallel()
	for _, during := range []string{"up", "down"} {
		l := newLab(t)
		var file []byte
		worlds := map[int]*world{0: newWorld()} // when so many lines were whole
		read := func() {
			data, err := os.ReadFile(filepath.Join(string(l.root), l.name, "journal"))
			if err != nil {
				t.Fatal(err)
			}
			file = data
		}
		note := func(int, plan.Step) {
			read()
			worlds[bytes.Count(file, []byte{'\n'})] = l.world.clone()
		}
		if during == "down" {
			l.mustUp()
			note(0, nil)
			worlds[0] = nil // down never cuts what up wrote
		}
		from := len(file)
		l.doer.before, l.doer.after = note, note
		if during == "up" {
			l.mustUp()
			read()
		} else {
			l.mustDown()
		}
		last := 0
		for lines, n := 0, from; n <= len(file); n++ {
			lines = bytes.Count(file[:n], []byte{'\n'})
			w, ok := worlds[lines]
			if !ok {
				w = worlds[last]
			} else {
				last = lines
			}
			try := newLab(t)
			try.world = w.clone()
			try.doer.Doer = try.world
			dir := filepath.Join(string(try.root), "wg0")
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "journal"), file[:n], 0o600); err != nil {
				t.Fatal(err)
			}
			j, err := try.root.Open("wg0")
			if err != nil {
				t.Fatalf("%s, cut at %d: %v", during, n, err)
			}
			if n%7 == 0 && j.State() != journal.Complete {
				if err, _ := try.up(context.Background()); err != nil {
					t.Fatalf("%s, cut at %d: up: %v", during, n, err)
				}
				try.isUp("%s, cut at %d", during, n)
			}
			if err, _ := try.down(context.Background()); err != nil {
				t.Fatalf("%s, cut at %d: down: %v", during, n, err)
			}
			if lines == 0 { // not begun: the file is as good as none
				os.RemoveAll(dir)
			}
			try.isBefore("%s, cut at %d of %d (line %d)", during, n, len(file), lines)
		}
	}
}
