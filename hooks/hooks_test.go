package hooks

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/plan"
	"wg-quickns/internal/proc"
	"wg-quickns/test/ns"
)

// job is what a test gives a process of its own to run, which then has the
// hook's stdin, stdout and stderr.
type job struct {
	NS    plan.NS
	Doer  Doer
	Hooks []plan.Hook
}

func TestMain(m *testing.M) {
	if len(os.Args) > 3 && os.Args[1] == "run-exec" {
		ns.Isolate()
		runExec(os.Args[2], os.Args[3:])
	}
	if len(os.Args) > 2 && os.Args[1] == "show-caller" {
		c, err := CallingUser(os.Args[2:])
		fmt.Println(c.UID, c.GID, c.Groups, c.Name, c.Home, slices.Compact(c.session))
		if err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	if len(os.Args) == 3 && os.Args[1] == "run-hooks" {
		ns.Isolate()
		os.Exit(runJob(os.Args[2]))
	}
	ns.Main(m)
}

// runJob is a small model of the program: it runs hooks, and a signal cancels them.
func runJob(path string) int {
	raw, err := os.ReadFile(path)
	var j job
	if err == nil {
		err = gob.NewDecoder(bytes.NewReader(raw)).Decode(&j)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 99
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() { cancel(proc.SignalCause{Sig: (<-sigs).(syscall.Signal)}) }()
	for _, h := range j.Hooks {
		if _, err := j.Doer.Do(ctx, j.NS, h); err != nil {
			if status, ok := proc.ExitStatus(err); ok {
				return status
			}
			fmt.Fprintln(os.Stderr, err)
			return 98
		}
	}
	return 0
}

// prepare readies this test binary to run the hooks.
func prepare(t *testing.T, j job) *exec.Cmd {
	t.Helper()
	var raw bytes.Buffer
	if err := gob.NewEncoder(&raw).Encode(j); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "job")
	if err := os.WriteFile(path, raw.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return exec.Command("/proc/self/exe", "run-hooks", path)
}

var (
	vars = map[string]string{
		"INTERFACE": "wg0", "CONFIG_FILE": "/etc/wireguard/it's here/wg0.conf", "TABLE": "off", "MTU": "1280", "SAVE_CONFIG": "1",
	}
	arrays = map[string][]string{
		"ADDRESSES": {"10.0.0.1/24", "fd00::1/64"}, "DNS": {"10.0.0.53", "::1"}, "DNS_SEARCH": {"example.com", "a b"},
		"ARGS": {"up", "wg0"}, "PRE_UP": {"echo 'pre' \"up\" $x"}, "POST_UP": {"a", "b 'c'"}, "PRE_DOWN": {}, "POST_DOWN": {"\x01\x7f\xff"},
	}
)

// reference writes the real wg-quick's part before its main program, followed
// by the same variables and hooks.
func reference(t *testing.T, hooks []string) string {
	t.Helper()
	src, err := os.ReadFile("../build/reference/bin/wg-quick")
	if err != nil {
		t.Fatalf("the reference is missing, test/reference/install fetches it: %v", err)
	}
	head, _, ok := bytes.Cut(src, []byte("# ~~ function override insertion point ~~"))
	if !ok {
		t.Fatal("the reference has no insertion point")
	}
	b := bytes.NewBuffer(head)
	for k, v := range vars {
		fmt.Fprintf(b, "%s=%s\n", k, quote(v))
	}
	for k, list := range arrays {
		fmt.Fprintf(b, "%s=(", k)
		for _, v := range list {
			fmt.Fprintf(b, " %s", quote(v))
		}
		b.WriteString(" )\n")
	}
	b.WriteString("execute_hooks")
	for _, h := range hooks {
		b.WriteString(" " + quote(h))
	}
	b.WriteString("\nexit 0\n")
	path := filepath.Join(t.TempDir(), "wg-quick")
	if err := os.WriteFile(path, b.Bytes(), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

var snippets = []struct {
	name  string
	hooks []string
	stdin string
}{
	{"echo", []string{"echo hello world"}, ""},
	{"comment", []string{"echo a # b"}, ""},
	{"hash in word", []string{"echo a#b '#c' \"#d\""}, ""},
	{"quotes", []string{`echo 'single "in"' "double 'in' $INTERFACE" $'esc\tape' back\ slash`}, ""},
	{"interface", []string{"echo $INTERFACE ${INTERFACE}1 $CONFIG_FILE \"$CONFIG_FILE\""}, ""},
	{"scalars", []string{"printf '[%s]' \"$TABLE\" \"$MTU\" \"$SAVE_CONFIG\" \"$PROGRAM\" \"$hook\" \"$WG_CONFIG\""}, ""},
	{"zero", []string{"echo $0 $PROGRAM"}, ""},
	{"arrays", []string{`printf '<%s>' "${ADDRESSES[@]}" "${#DNS[@]}" "${DNS[*]}" "${DNS_SEARCH[@]}" "${PRE_UP[@]}" "${POST_UP[1]}" "${POST_DOWN[@]}" "${ARGS[@]}"`}, ""},
	{"own array", []string{`a=(x "y z"); a+=(w); for i in "${a[@]}"; do echo "$i"; done`}, ""},
	{"assoc", []string{`declare -A m=([k]=v); echo ${m[k]}`}, ""},
	{"empty", []string{""}, ""},
	{"only comment", []string{"# nothing"}, ""},
	{"exit 3", []string{"exit 3"}, ""},
	{"exit 0 then more", []string{"echo a; exit 0; echo b", "echo c"}, ""},
	{"exit without number", []string{"false || exit"}, ""},
	{"false", []string{"false; echo not reached"}, ""},
	{"fail stops the rest", []string{"echo one", "exit 7", "echo three"}, ""},
	{"pipefail", []string{"false | true; echo not reached"}, ""},
	{"pipeline status", []string{"(exit 5) | cat"}, ""},
	{"negated", []string{"! false; echo reached"}, ""},
	{"or true", []string{"false || true; echo reached"}, ""},
	{"set +e", []string{"set +e; false; echo reached"}, ""},
	{"errexit in subst", []string{"x=$(false; echo inner); echo \"$x\""}, ""},
	{"nounset off", []string{"echo \"[$NOSUCHVARIABLE]\""}, ""},
	{"not found", []string{"no-such-command --flag"}, ""},
	{"not executable", []string{"/etc/passwd"}, ""},
	{"syntax error", []string{"if true; then echo"}, ""},
	{"unclosed quote", []string{"echo 'abc"}, ""},
	{"subshell", []string{"(cd /; pwd; exit 4); echo not reached"}, ""},
	{"here string", []string{"cat <<< \"to $INTERFACE\""}, ""},
	{"here doc in one line", []string{"cat << X"}, ""},
	{"process substitution", []string{"cat <(echo sub); read -r x < <(echo two); echo $x"}, ""},
	{"extglob", []string{`x=aaab; echo "${x##+(a)}"; [[ foo == @(foo|bar) ]] && echo match`}, ""},
	{"brace and arithmetic", []string{`echo {1..3} $((7*6)); ((5 > 3)) && echo yes`}, ""},
	{"regex", []string{`[[ $INTERFACE =~ ^wg([0-9]+)$ ]] && echo "${BASH_REMATCH[1]}"`}, ""},
	{"stdin", []string{"read -r l; echo \"got $l\"", "cat"}, "first\nsecond\nthird\n"},
	{"no stdin", []string{"cat; echo end"}, ""},
	{"stderr", []string{"echo err >&2; echo out"}, ""},
	{"exported", []string{"env | grep -E '^(LC_ALL|INTERFACE|MTU|TABLE|DNS|PROGRAM|SELF|CONFIG_FILE|hook|REPLY|ADDRESSES)='"}, ""},
	{"path", []string{`[[ $PATH == "${SELF%/*}:"* ]] && echo own folder first; [[ -x $SELF ]] && echo self`}, ""},
	{"options", []string{"shopt extglob; [[ $- == *e* ]] && echo e; set -o | grep -E 'errexit|pipefail|nounset|posix'"}, ""},
	{"subshell level", []string{"echo $BASH_SUBSHELL; [[ $$ != $BASHPID ]] && echo forked"}, ""},
	{"variables do not carry", []string{"A=1; cd /; INTERFACE=x; umask 000", "echo \"[$A] $INTERFACE\"; umask; [[ $PWD == / ]] || echo elsewhere"}, ""},
	{"cmd", []string{"cmd echo 'a b' c; cmd false; echo not reached"}, ""},
	{"die", []string{"die 'no such  thing' x; echo not reached"}, ""},
	{"kill self", []string{"kill -9 $BASHPID"}, ""},
	{"term self", []string{"kill -TERM $BASHPID"}, ""},
	{"child killed", []string{"bash -c 'kill -9 $$'; echo not reached"}, ""},
	{"trap exit", []string{"trap 'echo bye' EXIT; exit 6"}, ""},
	{"trap err", []string{"trap 'echo failed' ERR; false"}, ""},
	{"local", []string{"local x=1; echo $x"}, ""},
	{"return", []string{"return 9; echo not reached"}, ""},
	{"positional", []string{`echo "$# $1"`}, ""},
	{"function", []string{`f() { echo "f $1"; return 8; }; f x || echo $?`}, ""},
	{"background", []string{"sleep 0.2 & echo started; wait; echo done"}, ""},
	{"eval in eval", []string{`eval "echo \"\$INTERFACE\""`}, ""},
	{"no such fd", []string{"echo x >&3"}, ""},
	{"case", []string{`case $INTERFACE in wg*) echo wg;; *) echo other;; esac`}, ""},
	{"control characters", []string{"printf '%s' \"\x01\x7f\xff\" | od -An -tx1"}, ""},
	{"backslash at the end", []string{`echo a\`}, ""},
	{"exec", []string{"exec echo replaced; echo not reached"}, ""},
	{"status over 255", []string{"exit 300"}, ""},
}

var (
	lineNumber = regexp.MustCompile(`line \d+(?:: +\d+ )?`)
)

// TestReference runs each snippet by the reference and by Doer: stdout, stderr
// but for the trace, and exit status are the same.
func TestReference(t *testing.T) {
	for _, s := range snippets {
		t.Run(s.name, func(t *testing.T) {
			path := reference(t, s.hooks)
			ref := exec.Command(path)
			ref.Stdin = strings.NewReader(s.stdin)
			want := ns.Try(ref)
			a := map[string][]string{"POST_UP": s.hooks}
			for k, v := range arrays {
				if k != "POST_UP" || s.name == "arrays" {
					a[k] = v
				}
			}
			j := job{Doer: Doer{Argv0: path}}
			for _, h := range s.hooks {
				phase := "PostUp"
				if s.name == "arrays" {
					phase = ""
				}
				j.Hooks = append(j.Hooks, plan.Hook{Command: h, Phase: phase, Vars: vars, Arrays: a})
				want.Stderr = strings.Replace(want.Stderr, "[#] "+h+"\n", "", 1)
			}
			ours := prepare(t, j)
			ours.Stdin = strings.NewReader(s.stdin)
			got := ns.Try(ours)
			want.Stderr = lineNumber.ReplaceAllString(want.Stderr, "line N")
			got.Stderr = lineNumber.ReplaceAllString(got.Stderr, "line N")
			if got != want {
				t.Errorf("\n got %#v\nwant %#v", got, want)
			}
		})
	}
}

// running starts hooks that say "ready", and gives the process and what it wrote.
func running(t *testing.T, command string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	c := prepare(t, job{Hooks: []plan.Hook{{Command: command, Phase: "PostUp"}}})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var errs bytes.Buffer
	c.Stdout, c.Stderr = w, &errs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	ready := make([]byte, 64)
	if _, err := r.Read(ready); err != nil {
		t.Fatal(err)
	}
	return c, &errs
}

// status waits for c and gives its exit status and how long it took.
func status(c *exec.Cmd) (int, time.Duration) {
	begin := time.Now()
	c.Wait()
	return c.ProcessState.ExitCode(), time.Since(begin)
}

func TestSignals(t *testing.T) {
	for _, c := range []struct {
		name, hook string
		sig        syscall.Signal
		status     int
		atLeast    time.Duration
		atMost     time.Duration
		says       string
	}{
		{"TERM", "echo ready; sleep 97", syscall.SIGTERM, 143, 0, time.Second, ""},
		{"HUP", "echo ready; sleep 97", syscall.SIGHUP, 129, 0, time.Second, ""},
		{"INT", "echo ready; sleep 97", syscall.SIGINT, 130, 0, time.Second, ""},
		{"trapped", "trap 'echo trapped >&2; exit 5' TERM; echo ready; sleep 97 & wait", syscall.SIGTERM, 143, 0, time.Second, "trapped\n"},
		{"ignored", "trap '' TERM; echo ready; sleep 97", syscall.SIGTERM, 143, 2 * time.Second, 3 * time.Second, ""},
		{"ignored by a child", "(trap '' TERM; echo ready; sleep 97) & wait", syscall.SIGTERM, 143, 2 * time.Second, 3 * time.Second, ""},
		{"stopped", "echo ready; kill -STOP 0", syscall.SIGTERM, 143, 0, time.Second, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd, errs := running(t, c.hook)
			time.Sleep(50 * time.Millisecond)
			cmd.Process.Signal(c.sig)
			got, took := status(cmd)
			if got != c.status || took < c.atLeast || took > c.atMost {
				t.Errorf("status %d after %v, want %d after %v to %v", got, took, c.status, c.atLeast, c.atMost)
			}
			if c.says != "" && errs.String() != c.says {
				t.Errorf("the hook said %q, want %q", errs, c.says)
			}
			if left := ns.Leftovers(); left != nil {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// TestBackgroundChild: a child that keeps stdout open is waited for by nobody.
func TestBackgroundChild(t *testing.T) {
	begin := time.Now()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c := prepare(t, job{Hooks: []plan.Hook{{Command: "sleep 96 & echo $!", Phase: "PostUp"}}})
	c.Stdout = w
	if err := c.Run(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("waited %v", took)
	}
	b := make([]byte, 32)
	n, _ := r.Read(b)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("the background child did not live on: %v", err)
	}
	w.Close()
	r.Read(b) // until it is gone
}

// TestSecret: $WG_CONFIG is readable by the hook and nowhere else, even when the
// caller exports a variable of that name.
func TestSecret(t *testing.T) {
	const secret = "PrivateKey = s3cr'et\n"
	hook := `printf %s "$WG_CONFIG"; cat /proc/*/cmdline /proc/*/environ 2>/dev/null | tr '\0' '\n' | grep -c 's3c[r]' || :; ls /proc/self/fd | wc -l`
	c := prepare(t, job{Doer: Doer{WGConfig: secret}, Hooks: []plan.Hook{{Command: hook}}})
	c.Env = append(os.Environ(), "WG_CONFIG=x", "SECRET=x")
	c.ExtraFiles = []*os.File{os.Stdin, os.Stdin} // open files without close-on-exec
	got := ns.Try(c)
	// 0, 1, 2 and the directory being read
	if want := (ns.Result{Stdout: secret + "0\n4\n"}); got != want {
		t.Errorf("got %#v, want %#v", got, want)
	}
}

func TestEnvironment(t *testing.T) {
	h := plan.Hook{Command: "env | grep ^WG_QUICKNS | sort", Phase: "PreDown", Vars: vars,
		Env: map[string]string{"WG_QUICKNS_STRATEGY": "auto", "WG_QUICKNS_NAMESPACE": "blue"}}
	c := prepare(t, job{Hooks: []plan.Hook{h}})
	c.Env = []string{"PATH=" + os.Getenv("PATH"), "WG_QUICKNS_BIRTH_NAMESPACE=outer", "WG_QUICKNS_PHASE=outer"}
	want := "WG_QUICKNS_BIRTH_NAMESPACE=\nWG_QUICKNS_INTERFACE=wg0\nWG_QUICKNS_NAMESPACE=blue\nWG_QUICKNS_PHASE=PreDown\nWG_QUICKNS_STRATEGY=auto\n"
	if got := ns.Try(c); got.Stdout != want {
		t.Errorf("got %+v, want %s", got, want)
	}
}

func TestErrors(t *testing.T) {
	ctx := context.Background()
	_, err := Doer{}.Do(ctx, "", plan.Hook{Command: "exit 42"})
	if e := (*ExitError)(nil); !errors.As(err, &e) || e.Status != 42 || e.Command != "exit 42" {
		t.Errorf("got %v", err)
	}
	if _, err := (Doer{}).Do(ctx, "", plan.Hook{Vars: map[string]string{"a b": ""}}); err == nil {
		t.Error("a bad variable name went through")
	}
	if _, err := (Doer{}).Do(ctx, "/run/netns/x", plan.Hook{Command: "touch /run/ran"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a namespace that is none: %v", err)
	}
	if _, err := (Doer{}).Do(ctx, "", plan.Link{}); err == nil {
		t.Error("a link step was taken for a hook")
	}
	cause := proc.SignalCause{Sig: syscall.SIGINT}
	done, cancel := context.WithCancelCause(ctx)
	cancel(cause)
	_, err = Doer{}.Do(done, "", plan.Hook{Command: "touch /run/ran"})
	if status, ok := proc.ExitStatus(err); !errors.Is(err, cause) || !ok || status != 130 {
		t.Errorf("cancelled before: %v", err)
	}
	if _, err := os.Stat("/run/ran"); err == nil {
		t.Error("a hook ran after the end of its context")
	}
}

// TestTerminal runs the program as a job of a shell on a terminal: its hooks read
// from it, Ctrl-Z stops the job, fg brings it back, Ctrl-C ends the hook.
func TestTerminal(t *testing.T) {
	master, slave := openPTY(t)
	job := prepare(t, job{Hooks: []plan.Hook{
		{Command: `read -r x < /dev/tty; echo "one=$x"`},
		{Command: `echo asking; read -r x; echo "two=$x"`},
	}})
	program := strings.Join(job.Args, " ")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program = strings.Replace(program, "/proc/self/exe", exe, 1)
	shell := exec.Command("bash", "-c", "set -m; "+program+"; echo status=$?; fg; echo status=$?; read -r x; echo three=$x; "+program+"; echo status=$?")
	shell.Stdin, shell.Stdout, shell.Stderr = slave, slave, slave
	shell.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	shown := make(chan string, 1)
	go func() {
		buf := make([]byte, 4096)
		all := ""
		for {
			n, err := master.Read(buf)
			if err != nil {
				close(shown)
				return
			}
			all += string(buf[:n])
			select {
			case <-shown:
			default:
			}
			shown <- all
		}
	}()
	all, from := "", 0
	expect := func(want string) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		for !strings.Contains(all[from:], want) {
			select {
			case s, ok := <-shown:
				if !ok {
					t.Fatalf("%q did not come, the terminal closed: %q", want, all)
				}
				all = s
			case <-deadline:
				shell.Process.Kill()
				t.Fatalf("%q did not come: %q", want, all)
			}
		}
		from += strings.Index(all[from:], want) + len(want)
	}
	typed := func(s string) {
		time.Sleep(50 * time.Millisecond) // the readers of the terminal are there
		master.WriteString(s)
	}
	typed("a\n")
	expect("one=a")
	expect("asking")
	typed("\x1a") // Ctrl-Z stops the whole job, the shell goes on
	expect("status=148")
	typed("b\n")
	expect("two=b")
	expect("status=0")
	typed("c\n")
	expect("three=c")
	typed("d\n")
	expect("one=d")
	expect("asking")
	typed("\x03") // Ctrl-C ends the hook
	expect("status=130")
	if err := shell.Wait(); err != nil {
		t.Errorf("shell: %v", err)
	}
}

func openPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}
