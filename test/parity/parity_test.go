//go:build lab

package parity

import (
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// why is the reason for a difference: the number of the decided difference in
// the contract, or one of those below.
type why int

const (
	// early: what is wrong in the file is found before anything is touched; the
	// reference makes the device first, and takes it down again.
	early why = -1 - iota
	// wording: the contract leaves the message open, as it is that of ip, nft or
	// resolvconf, which the project does not run, or there is none where a hook fails.
	wording
	// located: the same message with the file and the line in front.
	located
	// newer: the reference's wg needs a newer kernel than 6.1 for it.
	newer
	// native: no program is run, so it does not matter which are installed.
	native
	// unsure: a step that failed is undone too, as it may have been done all the same.
	unsure
	// page: the contract says so, and the reference does not.
	page
	// secret: the reference's message shows a key.
	secret
)

const (
	locks      why = 1 + iota
	identity       // only what was added is removed
	record         // down works from the record
	reads          // a read that fails is an error
	sysctlBack     // sysctls go back
	loops          // endpoints are kept outside the tunnel
	saveKeeps      // save keeps search domains, comments
	names          // of interfaces
	bypassed       // up warns of what goes past a full tunnel
)

// diff is one expected difference: lines that only the one or only the other
// program gives, in one stream of one step. Each is asserted, none is optional.
type diff struct {
	why  why
	step string // as in testCase.steps, or one of [testCase.same]'s own
	in   string // exit, stdout, trace, errors, state, files, calls
	// ref and ours are the lines. In errors, "~text" stands for this program's own
	// message that ends with text.
	ref  []string
	ours []string
	// back: the reference leaves something, ours is as it was before the case.
	back bool
	// goes: the reference refuses and is as before; ours goes on, and its state has these lines.
	goes bool
}

// testCase is one config and what is done with it.
type testCase struct {
	name  string
	conf  string            // /etc/wireguard/wg0.conf, mode 0600
	files map[string]string // more files; a text "-> X" makes a symlink, "mode 644 " in front sets the mode
	// before runs by bash in every world first; its state is the one to come back to.
	before string
	env    []string
	stdin  string
	bare   bool // nft is not on PATH
	strip  bool // strip too, before up
	port   bool // the config sets no port: the kernel's choice is not compared
	// more: a variant, for which there is no time in an emulated machine; see [TestParity].
	more bool
	// steps replace the usual ones: "up wg0" and so on are the program's
	// arguments, split at spaces; "sh: ..." is run by bash.
	steps []string
	diffs []diff

	first []string // the state before, once it is known
}

func reference() string { return absolute("WG_REFERENCE", "../../build/reference/bin") }
func ours() string      { return absolute("WG_QUICKNS", "../../build/wg-quickns") }

// absolute is a path from the environment, else from here. It is made absolute
// once, before any world is entered.
func absolute(env, path string) string {
	p, err := filepath.Abs(cmp.Or(os.Getenv(env), path))
	if err != nil {
		panic(err)
	}
	return p
}

func TestMain(m *testing.M) {
	for env, path := range map[string]string{"WG_REFERENCE": reference(), "WG_QUICKNS": ours()} {
		if !exists(path) {
			fmt.Fprintf(os.Stderr, "FAIL: %s is missing: make build, test/reference/install\n", path)
			os.Exit(1)
		}
		os.Setenv(env, path) // worlds run commands in /
	}
	os.Exit(m.Run())
}

// outcome is what can be seen of one step, by stream.
type outcome map[string][]string

// program is how a world runs wg-quick.
type program struct {
	label string
	path  string
}

func programs() (ref, our program) {
	return program{"reference", reference() + "/wg-quick"}, program{"ours", own + "/ours/wg-quick"}
}

// prepare makes a world with the case's files, and runs what comes before.
func (c testCase) prepare(t *testing.T, name string) *world {
	w := newWorld(t, name)
	w.env = c.env
	w.do(func() {
		if c.conf != "" {
			w.write("/etc/wireguard/wg0.conf", c.conf, 0o600)
		}
		for path, text := range c.files {
			if to, ok := strings.CutPrefix(text, "-> "); ok {
				if err := os.Symlink(to, path); err != nil {
					t.Error(err)
				}
				continue
			}
			mode := 0o600
			if rest, ok := strings.CutPrefix(text, "mode "); ok {
				m, body, _ := strings.Cut(rest, " ")
				n, err := strconv.ParseInt(m, 8, 32)
				if err != nil {
					t.Error(err)
				}
				mode, text = int(n), body
			}
			w.write(path, text, os.FileMode(mode))
		}
		if c.bare {
			w.path = own + "/bin"
			for _, tool := range []string{"bash", "ip", "sysctl", "sort", "stat", "readlink", "cat", "rm", "mv", "sync",
				"iptables", "ip6tables", "iptables-save", "ip6tables-save", "iptables-restore", "ip6tables-restore"} {
				for _, d := range []string{"/usr/sbin", "/usr/bin"} {
					if exists(d + "/" + tool) {
						if err := os.Symlink(d+"/"+tool, own+"/bin/"+tool); err != nil {
							t.Error(err)
						}
						break
					}
				}
			}
		}
	})
	if c.before != "" {
		w.must("", "bash", "-ec", c.before)
	}
	w.takeCalls()
	return w
}

// descriptor is bash's own choice of a descriptor for <(...).
var descriptor = regexp.MustCompile(`/dev/fd/\d+`)

// place is where bash says that a hook's error is: in wg-quick, whatever line.
var place = regexp.MustCompile(`^/\S+/wg-quick: (eval: )?line \d+: +(?:\d+ )?`)

var anyPort = regexp.MustCompile(`(ListenPort = )\d+|(^wg wg0 \S+ \S+ )\d+( \S+$)`)

// step does one step and looks at the world.
func (c testCase) step(w *world, p program, step string) outcome {
	if script, ok := strings.CutPrefix(step, "sh: "); ok {
		w.must("", "bash", "-ec", script)
		return outcome{"files": w.files()}
	}
	args := strings.Fields(step)
	began := time.Now()
	r := w.run(c.stdin, append([]string{p.path}, args...)...)
	spent[p.label] += time.Since(began)
	o := outcome{"exit": {strconv.Itoa(r.code)}, "stdout": lines(r.stdout), "files": w.files(), "calls": w.takeCalls()}
	for _, l := range lines(r.stderr) {
		if strings.HasPrefix(l, "[#] ") {
			o["trace"] = append(o["trace"], descriptor.ReplaceAllString(l, "/dev/fd/63"))
		} else {
			o["errors"] = append(o["errors"], place.ReplaceAllString(l, "wg-quick: $1"))
		}
	}
	if args[0] == "up" || args[0] == "down" {
		o["state"] = w.state()
	}
	if c.port {
		for _, s := range []string{"state", "files", "stdout"} {
			for i, l := range o[s] {
				o[s][i] = anyPort.ReplaceAllString(l, "${1}${2}ANY${3}")
			}
		}
	}
	return o
}

var spent = make(map[string]time.Duration)

func lines(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

// streams in the order of reporting.
var streams = []string{"exit", "trace", "errors", "stdout", "calls", "files", "state"}

// TestParity runs the cases; with PARITY=all (a minute or so per 40 on a machine of
// its own, where an emulated one takes ten) also those that are variants of others.
func TestParity(t *testing.T) {
	seen, ran := make(map[string]bool), 0
	for _, c := range cases() {
		if seen[c.name] {
			t.Fatalf("two cases are called %q", c.name)
		}
		seen[c.name] = true
		if c.more && os.Getenv("PARITY") != "all" {
			continue
		}
		ran++
		t.Run(c.name, c.test)
	}
	t.Logf("%d cases; time spent in the programs: %v", ran, spent)
}

// TestRefused gives bad files to both, one after the other in one world each:
// nothing may come of any of them.
func TestRefused(t *testing.T) {
	ref, our := programs()
	r, o := testCase{}.prepare(t, "reference"), testCase{}.prepare(t, "ours")
	before := o.state()
	for _, c := range refused() {
		t.Run(c.name, func(t *testing.T) {
			for _, w := range []*world{r, o} {
				w.env = c.env
				w.do(func() { w.write("/etc/wireguard/wg0.conf", c.conf, 0o600) })
			}
			want, got := c.step(r, ref, "up wg0"), c.step(o, our, "up wg0")
			c.same(t, "up wg0", want, got)
			noKeys(t, "up wg0", c, got, o)
			if want["exit"][0] == "0" || got["exit"][0] == "0" {
				t.Errorf("exit status %s, ours %s", want["exit"], got["exit"])
			}
		})
	}
	for _, w := range []*world{r, o} {
		if d := difference(before, w.state()); d != "" {
			t.Errorf("%s: state is not the one before:\n%s", w.name, d)
		}
	}
	t.Logf("%d configs", len(refused()))
}

// TestUsage calls both in ways that are no command.
func TestUsage(t *testing.T) {
	ref, our := programs()
	w := newWorld(t, "usage")
	for _, args := range [][]string{{}, {"help"}, {"--help"}, {"-h"}, {"up"}, {"frob", "wg0"}, {"up", "wg0", "wg1"}, {"help", "wg0"}, {""}, {"UP", "wg0"}} {
		want, got := w.run("", append([]string{ref.path}, args...)...), w.run("", append([]string{our.path}, args...)...)
		if want.code != got.code || want.stdout != got.stdout {
			t.Errorf("%q: exit status %d, ours %d; output %q, ours %q", args, want.code, got.code, want.stdout, got.stdout)
		}
		if a, b := lines(want.stderr), lines(got.stderr); len(a) == 0 || len(b) == 0 || a[0] != b[0] {
			t.Errorf("%q: the first line is not %q: %q", args, a, b)
		}
	}
}

// TestSecrets has a hook show all that it can see of ours: no key may be there,
// but in the reference's own variable WG_CONFIG, which is the shell's alone.
func TestSecrets(t *testing.T) {
	const look = "unset WG_CONFIG; set; env; for p in $PPID $$; do cat /proc/$p/cmdline /proc/$p/environ; ls -l /proc/$p/fd; done; wait"
	c := testCase{conf: hooked("DNS = 10.9.0.1", "PreUp = "+look, "PostUp = "+look, "PreDown = "+look, "PostDown = "+look) + peer + "10.30.0.0/16\n"}
	_, our := programs()
	w := c.prepare(t, "ours")
	for _, step := range []string{"up wg0", "save wg0", "down wg0"} {
		o := c.step(w, our, step)
		if o["exit"][0] != "0" {
			t.Errorf("%s: exit status %s: %q", step, o["exit"], o["errors"])
		}
		if n := len(o["stdout"]); n < 20 && step != "save wg0" {
			t.Errorf("%s: the hooks saw only %d lines", step, n)
		}
		noKeys(t, step, c, o, w)
	}
	if seen := w.records(); !strings.Contains(seen, "resolvconf -d wg0") {
		t.Errorf("resolvconf recorded nothing: %q", seen)
	}
}

func (c testCase) test(t *testing.T) {
	if c.steps != nil {
		c.play(t)
		return
	}
	ref, our := programs()
	r, o := c.prepare(t, "reference"), c.prepare(t, "ours")
	before := o.state()
	c.first = before
	if c.strip {
		c.same(t, "strip wg0", c.step(r, ref, "strip wg0"), c.step(o, our, "strip wg0"))
	}
	want, got := c.step(r, ref, "up wg0"), c.step(o, our, "up wg0")
	c.same(t, "up wg0", want, got)
	noKeys(t, "up wg0", c, got, o)
	if want["exit"][0] != "0" {
		c.same(t, "rolled back", outcome{"state": before}, outcome{"state": got["state"]})
		return
	}
	// each takes down what the other made, and ours its own
	want = c.step(o, ref, "down wg0")
	got = c.step(r, our, "down wg0")
	c.same(t, "adopt wg0", want, got)
	noKeys(t, "adopt wg0", c, got, r)
	o = c.prepare(t, "ours again")
	if up := c.step(o, our, "up wg0"); up["exit"][0] != "0" {
		t.Fatalf("ours: up again: %q", up["errors"])
	}
	got = c.step(o, our, "down wg0")
	c.same(t, "down wg0", want, got)
	noKeys(t, "down wg0", c, got, o)
	c.same(t, "restored", outcome{"state": before}, outcome{"state": got["state"]})
}

// play does the case's own steps, each program in its world.
func (c testCase) play(t *testing.T) {
	ref, our := programs()
	r, o := c.prepare(t, "reference"), c.prepare(t, "ours")
	before := o.state()
	c.first = before
	var last []string
	for _, step := range c.steps {
		want, got := c.step(r, ref, step), c.step(o, our, step)
		c.same(t, step, want, got)
		if !strings.HasPrefix(step, "sh: ") {
			noKeys(t, step, c, got, o)
		}
		if got["state"] != nil {
			last = got["state"]
		}
	}
	if last == nil {
		last = o.state()
	}
	c.same(t, "restored", outcome{"state": before}, outcome{"state": last})
}

// same compares two outcomes of a step, after the differences that the case
// names. Their step is what the outcome is compared as: "adopt wg0" is ours taking
// down what the reference made, against the reverse; "rolled back" and "restored"
// are ours after a failed up or the last down against before, in place of the reference.
func (c testCase) same(t *testing.T, step string, ref, our outcome) {
	t.Helper()
	if os.Getenv("PARITY_SHOW") != "" {
		show(t, step, ref, our)
	}
	for _, stream := range streams {
		want, got := slices.Clone(ref[stream]), slices.Clone(our[stream])
		for _, d := range c.diffs {
			if d.step != step || d.in != stream {
				continue
			}
			if d.goes {
				if !slices.Equal(want, c.first) {
					t.Errorf("%s: the reference leaves something", step)
				}
				for _, l := range d.ours {
					if !slices.Contains(got, l) {
						t.Errorf("%s: %s: ours lacks the expected %q", step, stream, l)
					}
				}
				want = got
				continue
			}
			if d.back {
				if slices.Equal(want, c.first) {
					t.Errorf("%s: the reference leaves nothing", step)
				}
				want = c.first
				continue
			}
			want = without(t, step, stream, "the reference", want, d.ref)
			got = without(t, step, stream, "ours", got, d.ours)
		}
		if d := difference(want, got); d != "" {
			t.Errorf("%s: %s differs (- reference, + ours):\n%s", step, stream, d)
		}
	}
}

// without takes expected lines out; one that is not there is an error.
func without(t *testing.T, step, stream, who string, from, expected []string) []string {
	t.Helper()
	for _, l := range expected {
		i := slices.Index(from, l)
		if text, ok := strings.CutPrefix(l, "~"); ok {
			i = slices.IndexFunc(from, func(l string) bool {
				return strings.HasPrefix(l, "wg-quick: ") && strings.HasSuffix(l, text)
			})
		}
		if i < 0 {
			t.Errorf("%s: %s: %s lacks the expected %q", step, stream, who, l)
			continue
		}
		from = slices.Delete(from, i, i+1)
	}
	return from
}

// difference lists the lines that differ, "" for none. Order counts.
func difference(want, got []string) string {
	if slices.Equal(want, got) {
		return ""
	}
	// the usual longest common subsequence, back to front
	n, m := len(want), len(got)
	common := make([][]int, n+1)
	for i := range common {
		common[i] = make([]int, m+1)
	}
	for i := n - 1; i >= 0; i-- {
		for j := m - 1; j >= 0; j-- {
			if want[i] == got[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var b strings.Builder
	for i, j := 0, 0; i < n || j < m; {
		switch {
		case i < n && j < m && want[i] == got[j]:
			i, j = i+1, j+1
		case i < n && (j == m || common[i+1][j] >= common[i][j+1]):
			fmt.Fprintf(&b, "\t- %s\n", want[i])
			i++
		default:
			fmt.Fprintf(&b, "\t+ %s\n", got[j])
			j++
		}
	}
	return b.String()
}

// show prints all that was seen: what the reference does is best learned by looking.
func show(t *testing.T, step string, ref, our outcome) {
	for _, s := range streams {
		if s != "state" && s != "files" && len(ref[s])+len(our[s]) > 0 {
			t.Logf("%s: %s\n\tref:  %s\n\tours: %s", step, s, strings.Join(ref[s], "\n\t      "), strings.Join(our[s], "\n\t      "))
		}
	}
}

var keyLine = regexp.MustCompile(`(?im)^\s*(?:PrivateKey|PresharedKey)\s*=\s*([^\s#]+)`)

// keys are the secrets of a case, in every spelling that could slip out.
func keys(c testCase) []string {
	var out []string
	texts := []string{c.conf, "PrivateKey=" + keyA}
	for _, f := range c.files {
		texts = append(texts, f)
	}
	for _, text := range texts {
		for _, m := range keyLine.FindAllStringSubmatch(text, -1) {
			if len(m[1]) < 16 {
				continue // `off`, an empty value: no secret
			}
			out = append(out, m[1])
			if raw, err := base64.StdEncoding.DecodeString(m[1]); err == nil {
				out = append(out, hex.EncodeToString(raw), base64.RawURLEncoding.EncodeToString(raw))
			}
		}
	}
	return out
}

// noKeys looks for secrets in all that ours printed, recorded, and showed to the
// programs it ran. strip's output and a config are meant to have them.
func noKeys(t *testing.T, step string, c testCase, o outcome, w *world) {
	t.Helper()
	text := strings.Join(slices.Concat(o["trace"], o["errors"], o["calls"]), "\n") + w.records()
	if !strings.HasPrefix(step, "strip ") {
		text += strings.Join(o["stdout"], "\n")
	}
	for _, s := range keys(c) {
		if strings.Contains(text, s) {
			at := strings.Index(text, s)
			line := text[strings.LastIndex(text[:at], "\n")+1 : at]
			t.Errorf("ours: %s: a key was shown after %q", step, line[max(0, len(line)-60):])
		}
	}
}
