// Package journal keeps on disk what a tunnel's `up` did and how it is undone,
// each record written before its step, so that `down` works after any crash. It
// also holds the locks that keep two commands apart.
package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/plan"
)

// Begin is a journal's first record: what `down` needs when the config is gone.
// It never holds a key; in Vars, Arrays and Names what looks like one is hidden.
type Begin struct {
	Version    string    `json:"version"`
	Boot       string    `json:"boot"`  // /proc/sys/kernel/random/boot_id
	Netns      string    `json:"netns"` // identity of the caller's namespace
	Interface  string    `json:"interface"`
	Since      time.Time `json:"since,omitzero"` // when up began
	ConfigFile string    `json:"configFile"`
	Strategy   string    `json:"strategy,omitempty"`
	PreDown    []string  `json:"preDown,omitempty"`
	PostDown   []string  `json:"postDown,omitempty"`
	// PhysicalDown are the hooks before interfaces come home.
	PhysicalDown []string            `json:"physicalDown,omitempty"`
	Vars         map[string]string   `json:"vars,omitempty"`
	Arrays       map[string][]string `json:"arrays,omitempty"`
	SaveConfig   bool                `json:"saveConfig,omitempty"`

	// Where the tunnel is, as paths (plan.NS), and the identity of each namespace
	// that was there before; of one that was made its Netns step tells.
	Target string            `json:"target,omitempty"`
	Birth  string            `json:"birth,omitempty"`
	Hooks  string            `json:"hooks,omitempty"`
	Spaces map[string]string `json:"spaces,omitempty"`
	// Target and Birth as the config names them.
	Namespace      string `json:"namespace,omitempty"`
	BirthNamespace string `json:"birthNamespace,omitempty"`
	// What the config says for `physical-netns', nil for `auto'.
	PhysicalInterfaces []string `json:"physicalInterfaces,omitzero"`
	PhysicalServices   []string `json:"physicalServices,omitzero"`
	// Names are the endpoints that are given by a name, as HOST:PORT; their peers are
	// told apart by a hash of the public key.
	Names map[string]string `json:"names,omitempty"`
}

// State is how far a tunnel came.
type State int

// States of a journal.
const (
	Empty    State = iota // nothing was begun
	Half                  // `up` did not finish, or `down` has begun
	Complete              // up
)

func (s State) String() string { return [...]string{"empty", "half", "complete"}[s] }

// Entry is an action of which something is still to be undone.
type Entry struct {
	ID   int
	NS   plan.NS
	Do   plan.Step
	Undo []plan.Step // what remains, in order
	N    []int       // for each of Undo its number, for Undone
	// Certain says that the step was recorded as done. Otherwise it may have
	// been, and its undo must do no harm if it was not.
	Certain bool
}

// Journal is one name's journal. Who writes it holds the name's lock; anyone
// may read it, as records are only ever added whole. One goroutine at a time.
//
// Nothing is fsynced. The folder is on a tmpfs, which has no disk to reach: a
// write(2) that returned survives every death of the process, and a reboot takes
// the journal together with all it speaks of (Begin.Boot tells, if it did not).
type Journal struct {
	root    Root
	name    string
	f       *os.File // for adding, nil until the first record of this process
	size    int64    // length of the whole records in the file
	begin   *Begin
	entries []*entry // entry i has the ID i+1
	up      bool
	down    bool
	after   bool
	known   []netip.Prefix
}

type entry struct {
	ns      plan.NS
	do      plan.Step
	raw     json.RawMessage // do, where it is not decoded yet
	undo    []plan.Step
	undone  []bool
	certain bool
}

// record is a line of the file. Do and Undo are lists as plan.Encode writes them.
type record struct {
	Op      string          `json:"op"`
	Begin   *Begin          `json:"begin,omitempty"`
	ID      int             `json:"id,omitempty"`
	NS      plan.NS         `json:"ns,omitempty"`
	Why     string          `json:"why,omitempty"`
	Applied bool            `json:"applied,omitempty"`
	Cause   string          `json:"cause,omitempty"`
	N       int             `json:"n,omitempty"`
	Known   []netip.Prefix  `json:"known,omitempty"`
	Do      json.RawMessage `json:"do,omitempty"`
	Undo    json.RawMessage `json:"undo,omitempty"` // absent in done: as intended
}

const (
	opBegin  = "begin"
	opIntend = "intend"
	opDone   = "done"
	opFailed = "failed"
	opUp     = "up"
	opDown   = "down"
	opAfter  = "after"
	opUndone = "undone"
	opKnown  = "known"
	opDrop   = "drop"
	opConfig = "config"
)

// Open reads a name's journal; where there is none it is empty. A last line
// without its newline is a record that was never finished, and so never acted on:
// it does not count. Any other line that makes no sense is an error that says where.
func (r Root) Open(name string) (*Journal, error) {
	if err := check(name); err != nil {
		return nil, err
	}
	j := &Journal{root: r, name: name}
	data, err := os.ReadFile(j.path(journalFile))
	if errors.Is(err, fs.ErrNotExist) {
		return j, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	if err := j.read(data); err != nil {
		return nil, fmt.Errorf("read journal %s:%w", j.path(journalFile), err)
	}
	return j, nil
}

func (j *Journal) path(file string) string { return filepath.Join(j.root.dir(j.name), file) }

// read takes in the whole lines. Steps are decoded at the end: most need not be,
// as what goes with the link has no undo.
func (j *Journal) read(data []byte) error {
	type raw struct {
		line     int
		do, undo json.RawMessage
	}
	var raws []raw
	for line := 1; ; line++ {
		text, rest, whole := bytes.Cut(data, []byte{'\n'})
		if !whole {
			break
		}
		var r record
		if err := json.Unmarshal(text, &r); err != nil {
			return fmt.Errorf("%d: %w", line, err)
		}
		if err := j.admit(&r); err != nil {
			return fmt.Errorf("%d: %w", line, err)
		}
		switch {
		case r.Op == opIntend:
			raws = append(raws, raw{line, r.Do, r.Undo})
		case r.Op == opDone && r.Undo != nil:
			raws[r.ID-1].line, raws[r.ID-1].undo = line, r.Undo
		case r.Op == opFailed && !r.Applied:
			raws[r.ID-1].undo = json.RawMessage("[]")
		case r.Op == opUndone:
			e := j.entries[r.ID-1]
			for len(e.undone) <= r.N {
				e.undone = append(e.undone, false)
			}
		}
		j.apply(&r, nil, nil)
		j.size += int64(len(text)) + 1
		data = rest
	}
	for i, e := range j.entries {
		if err := e.decode(raws[i].do, raws[i].undo); err != nil {
			return fmt.Errorf("%d: %w", raws[i].line, err)
		}
	}
	return nil
}

func (e *entry) decode(rawDo, rawUndo json.RawMessage) error {
	undo, err := plan.Decode(rawUndo)
	if err != nil {
		return err
	}
	if len(e.undone) > len(undo) {
		return errors.New("more was undone than was to be")
	}
	if len(undo) == 0 {
		e.raw = rawDo
		return nil
	}
	if e.do, err = decodeOne(rawDo); err != nil {
		return err
	}
	e.undo = undo
	e.undone = append(e.undone, make([]bool, len(undo)-len(e.undone))...)
	return nil
}

func decodeOne(raw json.RawMessage) (plan.Step, error) {
	list, err := plan.Decode(raw)
	if err == nil && len(list) != 1 {
		err = fmt.Errorf("%d steps in place of one", len(list))
	}
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// admit says whether a record makes sense after those before it.
func (j *Journal) admit(r *record) error {
	if (j.begin == nil) != (r.Op == opBegin) {
		return fmt.Errorf("record %q out of place", r.Op)
	}
	switch r.Op {
	case opBegin, opConfig:
		if r.Begin == nil {
			return fmt.Errorf("record %q is empty", r.Op)
		}
	case opIntend:
		if r.ID != len(j.entries)+1 {
			return fmt.Errorf("step %d out of place", r.ID)
		}
	case opDone, opFailed, opUndone, opDrop:
		if r.ID < 1 || r.ID > len(j.entries) || r.N < 0 || r.N > 1<<20 {
			return fmt.Errorf("record %q of an unknown step %d", r.Op, r.ID)
		}
	case opUp, opDown, opAfter, opKnown:
	default:
		return fmt.Errorf("unknown record %q: a newer version wrote it", r.Op)
	}
	return nil
}

// apply changes the state in memory as a record says.
func (j *Journal) apply(r *record, do plan.Step, undo []plan.Step) {
	switch r.Op {
	case opBegin, opConfig:
		j.begin = r.Begin
	case opIntend:
		j.entries = append(j.entries, &entry{ns: r.NS, do: do, undo: undo, undone: make([]bool, len(undo))})
	case opDone:
		e := j.entries[r.ID-1]
		e.certain = true
		if r.Undo != nil {
			e.undo, e.undone = undo, make([]bool, len(undo))
		}
	case opFailed:
		if e := j.entries[r.ID-1]; !r.Applied {
			e.undo, e.undone = nil, nil
		}
	case opUp:
		j.up = true
	case opDown:
		j.down = true
	case opAfter:
		j.after = true
	case opDrop:
		j.entries[r.ID-1].certain = false
	case opKnown:
		j.known = r.Known
	case opUndone:
		if e := j.entries[r.ID-1]; r.N < len(e.undone) {
			e.undone[r.N] = true
		}
	}
}

// Begin starts the journal anew, in one instant, with the entries that are kept of
// the last one. It refuses to forget what else an earlier one of the same boot still
// has to undo.
func (j *Journal) Begin(b Begin, kept ...Entry) error {
	remain := 0
	for _, e := range kept {
		remain -= len(e.Undo)
	}
	for _, e := range j.Pending() {
		remain += len(e.Undo)
	}
	if j.begin != nil && j.begin.Boot == b.Boot && remain > 0 {
		return fmt.Errorf("begin journal of %s: the last one is not undone yet", j.name)
	}
	b = hide(b)
	data, err := line(&record{Op: opBegin, Begin: &b})
	if err != nil {
		return err
	}
	var entries []*entry
	for i, e := range kept {
		r, err := intend(i+1, plan.Action{NS: e.NS, Do: e.Do, Undo: e.Undo})
		if err != nil {
			return err
		}
		text, err := line(&r)
		if err != nil {
			return err
		}
		data = append(data, text...)
		entries = append(entries, &entry{ns: e.NS, do: e.Do, undo: e.Undo, undone: make([]bool, len(e.Undo))})
	}
	if err := j.root.makeDir(j.name); err != nil {
		return fmt.Errorf("begin journal: %w", err)
	}
	f, err := j.replace(data)
	if err != nil {
		return fmt.Errorf("begin journal: %w", err)
	}
	*j = Journal{root: j.root, name: j.name, f: f, size: int64(len(data)), begin: &b, entries: entries}
	return nil
}

// replace writes the whole file anew, in one instant, and gives it open for adding.
func (j *Journal) replace(data []byte) (*os.File, error) {
	os.Remove(j.path(newFile)) // a crash may have left one
	f, err := os.OpenFile(j.path(newFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err = f.Write(data); err == nil {
		err = os.Rename(j.path(newFile), j.path(journalFile))
	}
	if err != nil {
		f.Close()
		os.Remove(j.path(newFile))
		return nil, err
	}
	j.Close()
	return f, nil
}

// deadMost is how many entries with nothing left to undo a journal may carry along.
const deadMost = 256

// Compact writes a journal anew without what was undone or failed, where that has
// become much: a guard adds to it for as long as its tunnel is up. All IDs change.
func (j *Journal) Compact() error {
	standing, err := j.Standing()
	if err != nil {
		return err
	}
	if j.State() != Complete || len(j.entries)-len(standing) < deadMost {
		return nil
	}
	records := []record{{Op: opBegin, Begin: j.begin}}
	id := 0
	for i, e := range j.entries {
		undo := e.left(i + 1).Undo
		if len(undo) == 0 && (len(e.undo) > 0 || !e.certain) {
			continue
		}
		do := e.do
		if do == nil {
			if do, err = decodeOne(e.raw); err != nil {
				return fmt.Errorf("journal of %s: step %d: %w", j.name, i+1, err)
			}
		}
		id++
		r, err := intend(id, plan.Action{NS: e.ns, Do: do, Undo: undo})
		if err != nil {
			return err
		}
		if records = append(records, r); e.certain {
			records = append(records, record{Op: opDone, ID: id})
		}
	}
	if len(j.known) > 0 {
		records = append(records, record{Op: opKnown, Known: j.known})
	}
	records = append(records, record{Op: opUp})
	var data []byte
	for i := range records {
		text, err := line(&records[i])
		if err != nil {
			return err
		}
		data = append(data, text...)
	}
	f, err := j.replace(data)
	if err != nil {
		return fmt.Errorf("compact journal: %w", err)
	}
	fresh := Journal{root: j.root, name: j.name}
	if err := fresh.read(data); err != nil {
		f.Close()
		return fmt.Errorf("compact journal: %w", err)
	}
	fresh.f = f
	*j = fresh
	return nil
}

// Header is the first record, if there is one.
func (j *Journal) Header() (Begin, bool) {
	if j.begin == nil {
		return Begin{}, false
	}
	return *j.begin, true
}

// State says how far the tunnel came.
func (j *Journal) State() State {
	switch {
	case j.begin == nil:
		return Empty
	case j.up && !j.down:
		return Complete
	}
	return Half
}

// Intend records that a is about to be done. On an error it must not be.
func (j *Journal) Intend(a plan.Action) (id int, err error) {
	r, err := intend(len(j.entries)+1, a)
	if err != nil {
		return 0, err
	}
	return r.ID, j.add(&r, a.Do, a.Undo)
}

func intend(id int, a plan.Action) (r record, err error) {
	do := a.Do
	if h, ok := do.(plan.Hook); ok {
		// A hook is not undone, so that its name is enough; its variables may hold keys.
		do = plan.Hook{Command: hidden(h.Command), Phase: h.Phase}
	}
	r = record{Op: opIntend, ID: id, NS: a.NS, Why: a.Why}
	if r.Do, err = plan.Encode([]plan.Step{do}); err != nil {
		return r, err
	}
	r.Undo, err = plan.Encode(a.Undo)
	return r, err
}

// Done records that a step was done; o.Undo, unless nil, replaces the planned
// undo steps. On an error it is remembered here, but not in the file.
func (j *Journal) Done(id int, o plan.Outcome) error {
	r := record{Op: opDone, ID: id}
	if o.Undo != nil {
		var err error
		if r.Undo, err = plan.Encode(o.Undo); err != nil {
			return err
		}
	}
	return j.add(&r, nil, o.Undo)
}

// Failed records that a step failed, and whether it took effect all the same:
// only then it is undone. On an error it is remembered here, but not in the file.
func (j *Journal) Failed(id int, applied bool, cause error) error {
	return j.add(&record{Op: opFailed, ID: id, Applied: applied, Cause: hidden(cause.Error())}, nil, nil)
}

// Config records what the config of a tunnel that is up says by now, unless it is
// what the journal has.
func (j *Journal) Config(b Begin) error {
	b = hide(b)
	now, err := json.Marshal(b)
	if err != nil {
		return fmt.Errorf("encode journal record %s: %w", opConfig, err)
	}
	if was, err := json.Marshal(j.begin); err == nil && bytes.Equal(was, now) {
		return nil
	}
	return j.add(&record{Op: opConfig, Begin: &b}, nil, nil)
}

// Up records that the tunnel is up.
func (j *Journal) Up() error { return j.add(&record{Op: opUp}, nil, nil) }

// Down records that the undoing has begun: an `up` that finds this finishes it
// first. On an error it is remembered here, but not in the file.
func (j *Journal) Down() error { return j.add(&record{Op: opDown}, nil, nil) }

// After records that what `down` runs when its tunnel is gone has run.
func (j *Journal) After() error { return j.add(&record{Op: opAfter}, nil, nil) }

// Drop records that an entry without undo stands no more: another has its place.
func (j *Journal) Drop(id int) error { return j.add(&record{Op: opDrop, ID: id}, nil, nil) }

// Know records which of others' routes were there when the tunnel came up.
func (j *Journal) Know(routes []netip.Prefix) error {
	return j.add(&record{Op: opKnown, Known: routes}, nil, nil)
}

// Known lists what Know recorded.
func (j *Journal) Known() []netip.Prefix { return j.known }

// AfterRan says that After was recorded.
func (j *Journal) AfterRan() bool { return j.after }

// Undone records that an entry's undo step n was carried out. On an error it is
// remembered here, but not in the file: a later `down` may do it again.
func (j *Journal) Undone(id, n int) error {
	return j.add(&record{Op: opUndone, ID: id, N: n}, nil, nil)
}

// add writes one record with one write(2), and applies it. What has happened
// already is applied even if the file cannot have it; what is to happen is not.
func (j *Journal) add(r *record, do plan.Step, undo []plan.Step) error {
	err := j.admit(r)
	if err != nil {
		return fmt.Errorf("journal of %s: %w", j.name, err)
	}
	data, err := line(r)
	if err == nil {
		err = j.write(data)
	}
	if err == nil || r.Op != opIntend && r.Op != opUp {
		j.apply(r, do, undo)
	}
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return nil
}

// write appends data whole or not at all. A line that did not fit, or that an
// earlier process left torn, is cut off, so that the next one begins where it ought to.
func (j *Journal) write(data []byte) error {
	if j.f == nil {
		f, err := os.OpenFile(j.path(journalFile), os.O_WRONLY|os.O_APPEND|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		j.f = f
	}
	info, err := j.f.Stat()
	if err != nil {
		return err
	}
	if info.Size() < j.size {
		return fmt.Errorf("%s: somebody made it shorter", j.f.Name())
	}
	if info.Size() > j.size {
		if err := j.f.Truncate(j.size); err != nil {
			return err
		}
	}
	n, err := j.f.Write(data)
	if err == nil {
		j.size += int64(n)
		return nil
	}
	if n > 0 {
		err = errors.Join(err, j.f.Truncate(j.size))
	}
	return err
}

// line is a record as a line of the file. Steps are JSON already, and may be
// long: put in as they are they are not scanned once more.
func line(r *record) ([]byte, error) {
	head := *r
	head.Do, head.Undo = nil, nil
	data, err := json.Marshal(head)
	if err != nil {
		return nil, fmt.Errorf("encode journal record %s: %w", r.Op, err)
	}
	data = data[:len(data)-1]
	if r.Do != nil {
		data = append(append(data, `,"do":`...), r.Do...)
	}
	if r.Undo != nil {
		data = append(append(data, `,"undo":`...), r.Undo...)
	}
	return append(data, "}\n"...), nil
}

// DownBegun says that `down` has begun and not finished.
func (j *Journal) DownBegun() bool { return j.down }

// left is an entry with what of its undo is still to be done.
func (e *entry) left(id int) Entry {
	out := Entry{ID: id, NS: e.ns, Do: e.do, Certain: e.certain}
	for n, s := range e.undo {
		if !e.undone[n] {
			out.Undo, out.N = append(out.Undo, s), append(out.N, n)
		}
	}
	return out
}

// Pending lists the entries of which something is still to be undone, oldest first.
func (j *Journal) Pending() []Entry {
	var list []Entry
	for i, e := range j.entries {
		out := e.left(i + 1)
		if out.Undo != nil {
			list = append(list, out)
		}
	}
	return list
}

// Standing lists all that was done and not undone since, oldest first, also what
// needs no undoing.
func (j *Journal) Standing() ([]Entry, error) {
	var list []Entry
	for i, e := range j.entries {
		out := e.left(i + 1)
		if !e.certain || len(e.undo) > 0 && out.Undo == nil {
			continue
		}
		if out.Do == nil {
			var err error
			if out.Do, err = decodeOne(e.raw); err != nil {
				return nil, fmt.Errorf("journal of %s: step %d: %w", j.name, i+1, err)
			}
		}
		list = append(list, out)
	}
	return list, nil
}

// Remove removes the journal: nothing is left to undo. The folder goes with the
// name's lock.
func (j *Journal) Remove() error {
	err := os.Remove(j.path(journalFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove journal: %w", err)
	}
	j.Close()
	*j = Journal{root: j.root, name: j.name}
	return nil
}

// Close closes the file; a later record opens it again.
func (j *Journal) Close() error {
	if j.f == nil {
		return nil
	}
	f := j.f
	j.f = nil
	return f.Close()
}

// hide makes sure that a header holds no key beside those that the hooks' own text has.
func hide(b Begin) Begin {
	safely := func(texts map[string]string) map[string]string {
		safe := make(map[string]string, len(texts))
		for k, v := range texts {
			safe[k] = hidden(v)
		}
		return safe
	}
	arrays := make(map[string][]string, len(b.Arrays))
	for k, list := range b.Arrays {
		safe := make([]string, len(list))
		for i, v := range list {
			safe[i] = hidden(v)
		}
		arrays[k] = safe
	}
	b.Vars, b.Arrays, b.Names = safely(b.Vars), arrays, safely(b.Names)
	return b
}

const keyLength = 44 // in base64

var keyLike = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`[A-Za-z0-9+/]{43}=|\b[0-9A-Fa-f]{64}\b`)
})

// hidden puts "(hidden)" for what looks like a WireGuard key, base64 or hex.
func hidden(s string) string {
	if len(s) < keyLength {
		return s
	}
	return keyLike().ReplaceAllString(s, "(hidden)")
}
