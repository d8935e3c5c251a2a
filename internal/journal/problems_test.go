package journal

import (
	"os"
	"testing"
	"time"
)

func TestSeen(t *testing.T) {
	r := Root(t.TempDir() + "/run")
	lock, err := r.Lock(t.Context(), "wg0")
	must(t, err)
	begin := func(since time.Time) *Journal {
		j, err := r.Open("wg0")
		must(t, err)
		must(t, j.Begin(Begin{Interface: "wg0", Since: since}))
		return j
	}
	at := func(s int) time.Time { return time.Unix(int64(1000+s), 0).UTC() }
	look := func(j *Journal, now int, wrong []string, want ...int) {
		t.Helper()
		seen, err := j.Seen(wrong, at(now))
		must(t, err)
		for i, w := range wrong {
			if !seen[w].Equal(at(want[i])) {
				t.Errorf("%s: seen since %v, want %v", w, seen[w], at(want[i]))
			}
		}
	}
	j := begin(at(0))
	look(j, 1, []string{"a"}, 1)
	look(j, 2, []string{"a", "b"}, 1, 2)
	look(j, 3, []string{"b"}, 2)
	other, err := r.Open("wg0")
	must(t, err)
	look(other, 4, []string{"a", "b"}, 4, 2)
	look(other, 5, nil)
	if _, err := os.Stat(j.path(problemsFile)); err == nil {
		t.Error("nothing is wrong, and there is a file")
	}
	look(j, 6, []string{"a"}, 6)
	must(t, os.WriteFile(j.path(problemsFile), []byte("{torn"), 0o600))
	look(j, 7, []string{"a"}, 7)

	// another tunnel of that name is another tunnel
	must(t, j.Remove())
	look(j, 8, []string{"a"}, 8)
	j = begin(at(8))
	look(j, 9, []string{"a"}, 9)
	must(t, j.Remove())
	must(t, lock.Close())
	if _, err := os.Stat(r.dir("wg0")); err == nil {
		t.Error("the folder stays")
	}
}
