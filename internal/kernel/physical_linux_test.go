package kernel

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

// outside is a path to a namespace for other processes.
func outside(ns plan.NS) string {
	return strings.Replace(string(ns), "self", fmt.Sprint(os.Getpid()), 1)
}

func interfaces(t *testing.T, d *Doer, ns plan.NS, names ...string) (list []facts.Interface) {
	t.Helper()
	all, err := d.Interfaces(t.Context(), ns)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		for _, l := range all {
			if l.Name == name {
				list = append(list, l)
			}
		}
	}
	if len(list) != len(names) {
		t.Fatalf("%v of %+v", names, all)
	}
	return list
}

// stored is a value as the journal gives it back.
func stored[T any](t *testing.T, v T) (out T) {
	t.Helper()
	b, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// settings reads interfaces with their Settings, as the journal would give them back.
func settings(t *testing.T, d *Doer, ns plan.NS, names ...string) []facts.Interface {
	t.Helper()
	list := interfaces(t, d, ns, names...)
	if err := d.Settings(t.Context(), ns, list); err != nil {
		t.Fatal(err)
	}
	return stored(t, list)
}

func back(t *testing.T, d *Doer, home, there plan.NS, links []facts.Interface) {
	t.Helper()
	for _, l := range links {
		do(t, d, there, plan.Move{From: there, To: home, Links: []facts.Interface{l}, Home: true})
	}
	for _, l := range links {
		do(t, d, home, plan.Settle{Link: l, Away: there})
	}
}

// becomes asserts that something is seen as before, soon: the kernel does some of
// its own in the background.
func becomes(t *testing.T, what, before string, see func() string) {
	t.Helper()
	after := see()
	for end := time.Now().Add(2 * time.Second); after != before && time.Now().Before(end); after = see() {
		time.Sleep(50 * time.Millisecond)
	}
	diff(t, what, before, after)
}

func diff(t *testing.T, what, before, after string) {
	t.Helper()
	if before == after {
		return
	}
	a, b := strings.Split(before, "\n"), strings.Split(after, "\n")
	if len(minus(a, b))+len(minus(b, a)) == 0 {
		t.Errorf("%s, not in the order of before:\n%s\nbefore:\n%s", what, after, before)
		return
	}
	t.Errorf("%s, not as before:\n- %s\n+ %s", what, strings.Join(minus(a, b), "\n- "), strings.Join(minus(b, a), "\n+ "))
}

func minus(a, b []string) (out []string) {
	for _, s := range a {
		if !contains(b, s) {
			out = append(out, s)
		}
	}
	return out
}

// group moves what of a group can move, and makes twins of the rest, lowest first.
func group(t *testing.T, d *Doer, home, there plan.NS, links []facts.Interface) {
	t.Helper()
	var names []string
	for _, l := range links {
		names = append(names, l.Name)
	}
	do(t, d, home, plan.Hold{Links: names})
	for _, l := range links {
		if l.Twin {
			exists(t, d, there, plan.Twin{Link: l}, false)
			do(t, d, there, plan.Twin{Link: l})
			exists(t, d, there, plan.Twin{Link: l}, true)
		} else {
			do(t, d, home, plan.Move{From: home, To: there, Links: []facts.Interface{l}})
		}
	}
	for _, l := range links {
		do(t, d, there, plan.Settle{Link: l, Away: home})
	}
}

// ungroup is its undoing, in the order of undoing.
func ungroup(t *testing.T, d *Doer, home, there plan.NS, links []facts.Interface) {
	t.Helper()
	for i := range links {
		l := links[len(links)-1-i]
		if l.Twin {
			do(t, d, there, plan.Twin{Link: l, Delete: true})
			exists(t, d, there, plan.Twin{Link: l, Delete: true}, false)
		} else {
			do(t, d, home, plan.Move{From: there, To: home, Links: []facts.Interface{l}, Home: true})
		}
	}
	for _, l := range links {
		do(t, d, home, plan.Settle{Link: l, Away: there})
	}
}
