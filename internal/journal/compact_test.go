package journal

import (
	"errors"
	"net/netip"
	"os"
	"reflect"
	"testing"

	"wg-quickns/internal/plan"
)

// A guard's repairs come and go for weeks: the file stays short, and says the same.
func TestCompact(t *testing.T) {
	r := root(t)
	j := begun(t, r, "wg0")
	id, err := j.Intend(link("wg0"))
	must(t, err)
	must(t, j.Done(id, plan.Outcome{}))
	id, err = j.Intend(routes(2)) // needs no undoing
	must(t, err)
	must(t, j.Done(id, plan.Outcome{}))
	must(t, j.Know([]netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}))
	must(t, j.Up())
	last := 0
	for i := range 2000 {
		id, err := j.Intend(rule(uint32(i + 1)))
		must(t, err)
		if i%10 == 0 {
			must(t, j.Failed(id, false, errors.New("no")))
			continue
		}
		must(t, j.Done(id, plan.Outcome{}))
		if last != 0 {
			must(t, j.Undone(last, 0))
			must(t, j.Undone(last, 1))
		}
		if last = id; i == 1999 {
			must(t, j.Undone(last, 0)) // half of it is
		}
		must(t, j.Compact())
		if n := len(j.entries); n > deadMost+3 {
			t.Fatalf("%d entries", n)
		}
		if info, err := os.Stat(j.path(journalFile)); err != nil || info.Size() > 256<<10 {
			t.Fatalf("%v bytes, %v", info.Size(), err)
		}
		for _, e := range j.Pending() {
			if e.Do == (plan.Step)(rule(uint32(i+1)).Do) {
				last = e.ID
			}
		}
	}
	again, err := r.Open("wg0")
	must(t, err)
	if !reflect.DeepEqual(j.Pending(), again.Pending()) || !reflect.DeepEqual(j.Known(), again.Known()) || again.State() != Complete {
		t.Errorf("reopened: %+v, %v", again.Pending(), again.State())
	}
	pending := again.Pending()
	if len(pending) != 2 || len(pending[0].Undo) != 1 || len(pending[1].Undo) != 1 || pending[1].Do.(plan.Rule).Priority != 2000 {
		t.Errorf("pending: %+v", pending)
	}
	standing, err := again.Standing()
	must(t, err)
	if len(standing) != 3 || len(standing[1].Do.(plan.Route).List) != 2 {
		t.Errorf("standing: %+v", standing)
	}
}
