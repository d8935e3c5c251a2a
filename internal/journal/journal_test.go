package journal

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/plan"
)

func root(t testing.TB) Root { return Root(filepath.Join(t.TempDir(), "root")) }

func begun(t testing.TB, r Root, name string) *Journal {
	t.Helper()
	j, err := r.Open(name)
	must(t, err)
	must(t, j.Begin(Begin{Version: "1", Boot: "boot", Netns: "4:1", Interface: name}))
	t.Cleanup(func() { j.Close() })
	return j
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func link(name string) plan.Action {
	return plan.Action{Do: plan.Link{Name: name}, Undo: []plan.Step{plan.Link{Name: name, Delete: true}}, Why: "the tunnel"}
}

func rule(priority uint32) plan.Action {
	r := plan.Rule{Priority: priority, Table: 51820, NotFwMark: 51820, SuppressPrefixLen: -1}
	d := r
	d.Delete = true
	return plan.Action{NS: "/run/netns/x", Do: r, Undo: []plan.Step{d, plan.FwMark{Link: "wg0"}}}
}

func routes(n int) plan.Action {
	list := make([]plan.Prefix, n)
	for i := range list {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		list[i] = plan.Prefix{Prefix: netip.PrefixFrom(a, 32)}
	}
	return plan.Action{Do: plan.Route{Link: "wg0", List: list}}
}

// life writes each kind of record once or more and calls mark after each.
func life(t testing.TB, j *Journal, mark func()) {
	t.Helper()
	step := func(err error) {
		t.Helper()
		must(t, err)
		mark()
	}
	intend := func(a plan.Action) int {
		t.Helper()
		id, err := j.Intend(a)
		step(err)
		return id
	}
	id := intend(link("wg0"))
	step(j.Done(id, plan.Outcome{Undo: []plan.Step{plan.Link{Name: "wg0", Index: 7, Delete: true}}}))
	id = intend(routes(3))
	step(j.Done(id, plan.Outcome{}))
	two := intend(rule(5))
	step(j.Done(two, plan.Outcome{}))
	id = intend(rule(6))
	step(j.Failed(id, false, errors.New("file exists")))
	applied := intend(rule(7))
	step(j.Failed(applied, true, errors.New("interrupted")))
	id = intend(plan.Action{Do: plan.Hook{Command: "true", Phase: "PreUp"}})
	step(j.Done(id, plan.Outcome{}))
	intend(rule(8))
	step(j.Up())
	step(j.Down())
	step(j.Undone(two, 0))
	step(j.Undone(applied, 1))
	step(j.Undone(applied, 0))
}

// seen is all that a journal tells.
type seen struct {
	State   State
	Head    Begin
	Pending []Entry
}

func look(j *Journal) seen {
	h, _ := j.Header()
	return seen{j.State(), h, j.Pending()}
}

func TestReopenTellsTheSame(t *testing.T) {
	r := root(t)
	j := begun(t, r, "wg0")
	again := func() {
		t.Helper()
		o, err := r.Open("wg0")
		must(t, err)
		a, b := look(j), look(o)
		a.Head.Vars, a.Head.Arrays, a.Head.Names = nil, nil, nil
		if !reflect.DeepEqual(a, b) {
			t.Fatalf("live:\n%+v\nfrom the file:\n%+v", a, b)
		}
	}
	again()
	life(t, j, again)

	got := look(j)
	want := []Entry{
		{ID: 1, Do: plan.Link{Name: "wg0"}, Undo: []plan.Step{plan.Link{Name: "wg0", Index: 7, Delete: true}}, N: []int{0}, Certain: true},
		{ID: 3, NS: "/run/netns/x", Do: rule(5).Do, Undo: rule(5).Undo[1:], N: []int{1}, Certain: true},
		{ID: 7, NS: "/run/netns/x", Do: rule(8).Do, Undo: rule(8).Undo, N: []int{0, 1}},
	}
	if !reflect.DeepEqual(got.Pending, want) {
		t.Errorf("pending:\n%+v\nwant:\n%+v", got.Pending, want)
	}
	must(t, j.Remove())
	if o, err := r.Open("wg0"); err != nil || o.State() != Empty || len(o.Pending()) != 0 {
		t.Errorf("after Remove: %v, %v", o, err)
	}
}

func TestStates(t *testing.T) {
	r := root(t)
	j, err := r.Open("wg0")
	must(t, err)
	want := func(s State) {
		t.Helper()
		if j.State() != s {
			t.Errorf("state %v, want %v", j.State(), s)
		}
	}
	want(Empty)
	if _, err := j.Intend(link("wg0")); err == nil {
		t.Error("a step before Begin was taken")
	}
	must(t, j.Begin(Begin{Boot: "a"}))
	want(Half)
	id, err := j.Intend(link("wg0"))
	must(t, err)
	if err := j.Begin(Begin{Boot: "a"}); err == nil {
		t.Error("Begin forgot a pending step")
	}
	must(t, j.Done(id, plan.Outcome{}))
	must(t, j.Up())
	want(Complete)
	must(t, j.Down())
	want(Half)
	must(t, j.Begin(Begin{Boot: "b"})) // after a reboot nothing is pending
	want(Half)
	if len(j.Pending()) != 0 {
		t.Errorf("pending after a new Begin: %v", j.Pending())
	}
	if err := j.Done(1, plan.Outcome{}); err == nil {
		t.Error("an unknown step was done")
	}
	must(t, j.Remove())
	want(Empty)
}

// A crash may cut the file at any byte; what counts is the whole lines. What is
// added next begins a new line.
func TestTornAtEveryByte(t *testing.T) {
	r := root(t)
	j := begun(t, r, "wg0")
	file := j.path(journalFile)
	states := []seen{{}} // after so many whole lines
	note := func() {
		s, err := r.Open("wg0")
		must(t, err)
		states = append(states, look(s))
	}
	note()
	life(t, j, note)
	whole, err := os.ReadFile(file)
	must(t, err)
	for n := range len(whole) + 1 {
		must(t, os.WriteFile(file, whole[:n], 0o600))
		lines := bytes.Count(whole[:n], []byte{'\n'})
		o, err := r.Open("wg0")
		if err != nil {
			t.Fatalf("cut at %d: %v", n, err)
		}
		if got := look(o); !reflect.DeepEqual(got, states[lines]) {
			t.Fatalf("cut at %d: %+v, want %+v", n, got, states[lines])
		}
		if lines == 0 {
			continue
		}
		id, err := o.Intend(rule(99))
		must(t, err)
		must(t, o.Close())
		if o, err = r.Open("wg0"); err != nil {
			t.Fatalf("cut at %d, then added to: %v", n, err)
		}
		p := o.Pending()
		if last := p[len(p)-1]; last.ID != id || last.Do != rule(99).Do {
			t.Fatalf("cut at %d: what was added is %+v", n, last)
		}
	}
}

func TestGarbledLineIsNamed(t *testing.T) {
	r := root(t)
	j := begun(t, r, "wg0")
	life(t, j, func() {})
	file := j.path(journalFile)
	whole, err := os.ReadFile(file)
	must(t, err)
	lines := bytes.SplitAfter(whole, []byte{'\n'})
	lines = lines[:len(lines)-1]
	for i := range lines {
		for _, bad := range []string{"\n", "{\n", "\x00\x00\x00\n", `{"op":"frobnicate"}` + "\n",
			`{"op":"done","id":99}` + "\n", `{"op":"undone","id":1,"n":-1}` + "\n", `{"op":"undone","id":1,"n":3}` + "\n",
			`{"op":"intend","id":77,"do":[],"undo":[]}` + "\n"} {
			text := slices.Concat(slices.Clone(lines[:i])...)
			text = append(append(text, bad...), slices.Concat(lines[i+1:]...)...)
			must(t, os.WriteFile(file, text, 0o600))
			if _, err := r.Open("wg0"); err == nil || !strings.Contains(err.Error(), file+":") {
				t.Errorf("line %d is %q: %v", i+1, bad, err)
			} else if bad[0] != '{' && !strings.Contains(err.Error(), fmt.Sprintf("%s:%d:", file, i+1)) {
				t.Errorf("line %d is %q: another line is named: %v", i+1, bad, err)
			}
		}
	}
	// A step of a newer version must not be guessed at.
	text := bytes.ReplaceAll(whole, []byte(`"kind":"rule"`), []byte(`"kind":"ruin"`))
	must(t, os.WriteFile(file, text, 0o600))
	if _, err := r.Open("wg0"); err == nil || !strings.Contains(err.Error(), "ruin") {
		t.Errorf("unknown kind of step: %v", err)
	}
	// Neither must a journal that cannot be read be taken for none.
	must(t, os.Remove(file))
	must(t, os.Mkdir(file, 0o700))
	if _, err := r.Open("wg0"); err == nil {
		t.Error("an unreadable journal counts as none")
	}
}

// alone runs the test in a process of its own, as go test's process has files to
// write too. It is true in that one.
func alone(t *testing.T) bool {
	t.Helper()
	const env = "JOURNAL_TEST_ALONE"
	if os.Getenv(env) != "" {
		return true
	}
	c := exec.Command("/proc/self/exe", "-test.v", "-test.run=^"+t.Name()+"$")
	c.Env = append(os.Environ(), env+"=1")
	if out, err := c.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// limitFiles makes the kernel refuse to write files beyond size bytes, partly
// where a write crosses it: a full disk's behaviour without a disk.
func limitFiles(t *testing.T, size int64) (lift func()) {
	t.Helper()
	var old unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_FSIZE, &old))
	signal.Ignore(syscall.SIGXFSZ)
	must(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: uint64(size), Max: old.Max}))
	return func() { must(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &old)) }
}

func TestFailedWriteLeavesNoTrace(t *testing.T) {
	if !alone(t) {
		return
	}
	r := root(t)
	j := begun(t, r, "wg0")
	id, err := j.Intend(link("wg0"))
	must(t, err)
	file := j.path(journalFile)
	before, err := os.ReadFile(file)
	must(t, err)
	// The kernel writes as much of the record as there is room for; none of it may stay.
	for n := range int64(len(`{"op":"up"}`) + 1) {
		lift := limitFiles(t, int64(len(before))+n)
		_, intend := j.Intend(rule(5))
		up := j.Up()
		lift()
		after, err := os.ReadFile(file)
		must(t, err)
		if intend == nil || up == nil || !bytes.Equal(before, after) || j.State() != Half || len(j.Pending()) != 1 {
			t.Fatalf("%d bytes left: %v, %v, state %v, pending %v, in the file %q",
				n, intend, up, j.State(), j.Pending(), after[len(before):])
		}
	}
	// What has happened is remembered though it cannot be written.
	lift := limitFiles(t, int64(len(before)))
	undo := plan.Link{Name: "wg0", Index: 7, Delete: true}
	if err := j.Done(id, plan.Outcome{Undo: []plan.Step{undo}}); err == nil {
		t.Error("no error")
	}
	lift()
	if p := j.Pending(); len(p) != 1 || p[0].Undo[0] != undo || !p[0].Certain {
		t.Errorf("pending %+v", p)
	}
	lift = limitFiles(t, int64(len(before)))
	if err := j.Undone(id, 0); err == nil {
		t.Error("no error")
	}
	if len(j.Pending()) != 0 {
		t.Errorf("pending %+v", j.Pending())
	}
	if err := j.Remove(); err != nil { // needs no room
		t.Error(err)
	}
	lift()
	lift = limitFiles(t, 5)
	if err := j.Begin(Begin{}); err == nil {
		t.Error("begun without room")
	}
	lift()
	if o, err := r.Open("wg0"); err != nil || o.State() != Empty {
		t.Errorf("a failed Begin left %v, %v", o, err)
	}
	if list, err := os.ReadDir(r.dir("wg0")); err != nil || len(list) != 0 {
		t.Errorf("a failed Begin left %v, %v", list, err)
	}
}

func TestOneWritePerRecord(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	count := func() (n int) {
		t.Helper()
		data, err := os.ReadFile("/proc/thread-self/io")
		must(t, err)
		_, after, _ := strings.Cut(string(data), "syscw: ")
		if _, err := fmt.Sscan(after, &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	j := begun(t, root(t), "wg0")
	for _, n := range []int{1, 100, 100_000} {
		before := count()
		_, err := j.Intend(routes(n))
		must(t, err)
		if got := count() - before; got != 1 {
			t.Errorf("%d routes: %d writes, want 1", n, got)
		}
	}
}

// A reader without the lock sees whole records only, whenever it looks.
func TestReaderBesideWriter(t *testing.T) {
	r := root(t)
	j := begun(t, r, "wg0")
	stop := make(chan struct{})
	failed := make(chan error, 1)
	go func() {
		defer close(failed)
		for n := 0; ; {
			select {
			case <-stop:
				return
			default:
			}
			o, err := r.Open("wg0")
			if err == nil && len(o.Pending()) < n {
				err = fmt.Errorf("%d pending after %d", len(o.Pending()), n)
			}
			if err != nil {
				failed <- err
				return
			}
			n = len(o.Pending())
		}
	}()
	for i := range 60 {
		a := routes(2000)
		a.Undo = rule(uint32(i)).Undo
		_, err := j.Intend(a)
		must(t, err)
	}
	close(stop)
	if err := <-failed; err != nil {
		t.Error(err)
	}
}

func TestPermissions(t *testing.T) {
	for _, mask := range []int{0, 0o022, 0o777} {
		old := syscall.Umask(mask)
		r := Root(filepath.Join(t.TempDir(), "root"))
		must(t, os.Chmod(filepath.Dir(string(r)), 0o755))
		lock, err := r.Lock(t.Context(), "wg0")
		must(t, err)
		global, err := r.Global(t.Context())
		must(t, err)
		j := begun(t, r, "wg0")
		syscall.Umask(old)
		want := map[string]os.FileMode{".": 0o700, "@lock": 0o600, "wg0": 0o700, "wg0/lock": 0o600, "wg0/journal": 0o600}
		for name, mode := range want {
			info, err := os.Stat(filepath.Join(string(r), name))
			must(t, err)
			if got := info.Mode().Perm(); got&^mode != 0 || info.IsDir() && got != mode {
				t.Errorf("umask %#o: %s has mode %#o, want %#o", mask, name, got, mode)
			}
		}
		for _, f := range []*os.File{lock.f, global.f, j.f} {
			flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0)
			must(t, err)
			if flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("%s is inherited by programs", f.Name())
			}
		}
		must(t, lock.Close())
		must(t, global.Close())
	}
	// A folder that is open to others is closed; one that is no folder is refused.
	r := root(t)
	must(t, os.Mkdir(string(r), 0o755))
	must(t, os.Chmod(string(r), 0o777))
	begun(t, r, "wg0")
	if info, err := os.Stat(string(r)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	for _, bad := range []Root{root(t), root(t)} {
		must(t, os.Symlink(t.TempDir(), string(bad)))
		if _, err := bad.Lock(t.Context(), "wg0"); err == nil {
			t.Error("a symlink was followed")
		}
	}
}

func TestNames(t *testing.T) {
	r := root(t)
	if names, err := r.Names(); err != nil || names != nil {
		t.Errorf("no root: %v, %v", names, err)
	}
	for _, n := range []string{"wg0", "lock", "journal", "a@4026531840", "=+.-_"} {
		begun(t, r, n)
	}
	lock, err := r.Lock(t.Context(), "nothing")
	must(t, err)
	global, err := r.Global(t.Context())
	must(t, err)
	names, err := r.Names()
	must(t, err)
	if want := []string{"=+.-_", "a@4026531840", "journal", "lock", "wg0"}; !slices.Equal(names, want) {
		t.Errorf("names %q, want %q", names, want)
	}
	must(t, lock.Close())
	must(t, global.Close())
	if _, err := os.Stat(filepath.Join(string(r), "nothing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a folder without a journal stayed: %v", err)
	}
	for _, bad := range []string{"", ".", "..", "a/b", "@lock", "a\x00"} {
		if _, err := r.Open(bad); err == nil {
			t.Errorf("opened %q", bad)
		}
		if _, err := r.Lock(t.Context(), bad); err == nil {
			t.Errorf("locked %q", bad)
		}
	}
	must(t, os.WriteFile(string(r)+"x", nil, 0o600))
	if _, err := Root(string(r) + "x").Names(); err == nil {
		t.Error("an unreadable root has no names")
	}
}

func TestNoKeys(t *testing.T) {
	const key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	const hex = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
	r := root(t)
	j, err := r.Open("wg0")
	must(t, err)
	must(t, j.Begin(Begin{
		Vars:   map[string]string{"WG_CONFIG": "[Interface]\nPrivateKey = " + key + "\nListenPort = 1\n"},
		Arrays: map[string][]string{"X": {"a", hex}},
		Names:  map[string]string{"1": key + ":51820"},
	}))
	hook := plan.Hook{Command: "wg set %i private-key <(echo " + key + ")", Vars: map[string]string{"K": "s3cret"}, Arrays: map[string][]string{"K": {"s3cret"}}}
	id, err := j.Intend(plan.Action{Do: hook})
	must(t, err)
	must(t, j.Failed(id, false, fmt.Errorf("echo %s%s: exit status 1", key, "\n"+hex)))
	text, err := os.ReadFile(j.path(journalFile))
	must(t, err)
	for _, secret := range []string{key[:40], hex[:60], "s3cret"} {
		if bytes.Contains(text, []byte(secret)) {
			t.Errorf("%q is in the journal:\n%s", secret, text)
		}
	}
	if !bytes.Contains(text, []byte("ListenPort = 1")) {
		t.Errorf("more than the key is hidden:\n%s", text)
	}
}

func BenchmarkIntend(b *testing.B) {
	for _, n := range []int{1, 1000, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			j := begun(b, root(b), "wg0")
			a := routes(n)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := j.Intend(a); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				must(b, j.Remove())
				must(b, j.Begin(Begin{}))
				b.StartTimer()
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{1, 1000, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := root(b)
			j := begun(b, r, "wg0")
			_, err := j.Intend(routes(n))
			must(b, err)
			must(b, j.Up())
			b.ReportAllocs()
			for b.Loop() {
				o, err := r.Open("wg0")
				if err != nil || len(o.Pending()) != 0 {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestBeginKeeps: what a new journal keeps of the last one is in it from its first
// instant; anything else that remains is not forgotten.
func TestBeginKeeps(t *testing.T) {
	r := root(t)
	j := begun(t, r, "wg0")
	for _, a := range []plan.Action{link("wg0"), rule(5)} {
		id, err := j.Intend(a)
		must(t, err)
		must(t, j.Done(id, plan.Outcome{}))
	}
	next := Begin{Version: "2", Boot: "boot", Interface: "wg0"}
	kept := j.Pending()[1:]
	if err := j.Begin(next, kept...); err == nil {
		t.Error("the link is forgotten")
	}
	must(t, j.Undone(1, 0))
	must(t, j.Begin(next, kept...))
	for _, is := range []*Journal{j, reopen(t, r, "wg0")} {
		got := is.Pending()
		if len(got) != 1 || got[0].ID != 1 || !reflect.DeepEqual(got[0].Undo, kept[0].Undo) || got[0].NS != kept[0].NS {
			t.Errorf("kept %+v, want %+v", got, kept)
		}
		if h, _ := is.Header(); h.Version != "2" || is.State() != Half {
			t.Errorf("the header is %+v, the state %v", h, is.State())
		}
	}
	id, err := j.Intend(link("wg0"))
	must(t, err)
	if must(t, j.Undone(1, 0)); id != 2 || len(reopen(t, r, "wg0").Pending()) != 2 {
		t.Errorf("the next step is %d, pending %+v", id, j.Pending())
	}
}

func reopen(t testing.TB, r Root, name string) *Journal {
	t.Helper()
	j, err := r.Open(name)
	must(t, err)
	return j
}
