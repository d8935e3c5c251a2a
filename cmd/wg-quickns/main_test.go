package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"wg-quickns/confparse"
	"wg-quickns/hooks"
	"wg-quickns/internal/dns"
	"wg-quickns/internal/plan"
	"wg-quickns/internal/proc"
)

func TestExitStatus(t *testing.T) {
	route := &plan.StepError{Step: plan.Route{Link: "wg0"}, Err: syscall.EEXIST}
	for _, test := range []struct {
		err  error
		want int
	}{
		{errors.New("any"), 1},
		{message("`wg0' already exists"), 1},
		{fmt.Errorf("more: %w", route), 2},
		{&plan.StepError{Step: plan.Via{}, Err: syscall.ENETUNREACH}, 2},
		{&plan.StepError{Step: plan.WG{Link: "wg0"}, Err: syscall.EINVAL}, 1},
		{&plan.StepError{Step: plan.Nft{Link: "wg0"}, Err: syscall.ENOENT}, 1},
		{&plan.StepError{Step: plan.Hook{}, Err: &hooks.ExitError{Status: 7}}, 7},
		{&plan.StepError{Step: plan.DNS{}, Err: &dns.Error{Status: 127}}, 127},
		{errors.Join(proc.SignalCause{Sig: syscall.SIGTERM}, route), 143},
		{errors.Join(route, &hooks.ExitError{Status: 7}), 7},
		{&confparse.Error{Kind: confparse.KindWG}, 1},
	} {
		if got := exitStatus(test.err); got != test.want {
			t.Errorf("%v: exit status %d, want %d", test.err, got, test.want)
		}
	}
}

// TestCommandUsage: each command that completion knows has a line in the usage that says
// how it is called, and one that says what it does.
func TestCommandUsage(t *testing.T) {
	for _, c := range commandLine() {
		if strings.Contains("help --help version --version", c.name) {
			continue
		}
		text := commandUsage(c.name)
		if !regexp.MustCompile(`^Usage: %\[1\]s .*\b`+c.name+`\b.*\n(?s:.*)\n  `+c.name+` +[a-z]`).MatchString(text) || strings.Count(text, "\n") > 8 {
			t.Errorf("%s: %q", c.name, text)
		}
		for _, o := range c.options {
			if !strings.Contains(text, o.name) {
				t.Errorf("%s: no %s in %q", c.name, o.name, text)
			}
		}
	}
	for _, not := range []string{"", "x", "wg0", "as", ".*"} {
		if text := commandUsage(not); text != "" {
			t.Errorf("%q: %q", not, text)
		}
	}
}

func TestLocate(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"office.conf", "-x.conf", "all.conf", "toolongforaninterface.conf", "wg0.txt"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(dir, "wg0.conf")
	if err := os.Symlink("office.conf", link); err != nil {
		t.Fatal(err)
	}
	got, err := app{}.locate(link)
	if err != nil || got.name != "wg0" || got.path != filepath.Join(dir, "office.conf") {
		t.Errorf("a link gives the name: got %+v, %v", got, err)
	}
	for name, want := range map[string]string{
		"-x.conf": "must be a valid", "all.conf": "must be a valid", "wg0.txt": "must be a valid",
		"toolongforaninterface.conf": "must be a valid", "none.conf": "does not exist",
	} {
		if _, err := (app{}).locate(filepath.Join(dir, name)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", name, err, want)
		}
	}
}

// TestReread: a file that changed, came, went or is another one is noticed; a pipe, which
// would keep its reader waiting, is not read again.
func TestReread(t *testing.T) {
	dir := t.TempDir()
	link, file, other, pipe := filepath.Join(dir, "wg0.conf"), filepath.Join(dir, "a.conf"), filepath.Join(dir, "b.conf"), filepath.Join(dir, "pipe.conf")
	do := func(list ...error) {
		t.Helper()
		if err := errors.Join(list...); err != nil {
			t.Fatal(err)
		}
	}
	do(os.WriteFile(file, []byte("x"), 0o600), os.WriteFile(other, []byte("x"), 0o600), os.Symlink(file, link))
	var a app
	var read target
	for _, step := range []struct {
		what string
		do   func()
		same bool
	}{
		{"nothing", func() {}, true},
		{"written anew", func() { do(os.WriteFile(file, []byte("y"), 0o600)) }, false},
		{"another by the link", func() { do(os.WriteFile(other, []byte("y"), 0o600), os.Remove(link), os.Symlink(other, link)) }, false},
		{"gone", func() { do(os.Remove(link)) }, false},
		{"gone still", func() {}, true},
		{"there again", func() { do(os.Symlink(other, link)) }, false},
		{"a pipe", func() { do(syscall.Mkfifo(pipe, 0o600), os.Remove(link), os.Symlink(pipe, link)); read.path = pipe }, true},
	} {
		if read.path == "" {
			read, _ = a.locate(link)
			read.data, _ = os.ReadFile(read.path)
		}
		step.do()
		done := make(chan bool)
		go func() { done <- a.reread(link, read) }()
		select {
		case same := <-done:
			if same != step.same {
				t.Errorf("%s: the same: %v", step.what, same)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%s: still reading", step.what)
		}
		read = target{}
	}
}

// A hook's child knows its parent by descent; what a hook left behind does not.
func TestInsideHook(t *testing.T) {
	if os.Getenv("TEST_INSIDE_HOOK") != "" {
		fmt.Println(insideHook("wg0"))
		os.Exit(0)
	}
	for pid, want := range map[int]string{os.Getpid(): "true", 1 << 22: "false"} {
		cmd := exec.Command("sh", "-c", `"$0" -test.run '^TestInsideHook$' | grep -x "$1"`, os.Args[0], want)
		cmd.Env = append(os.Environ(), "TEST_INSIDE_HOOK=1", envInterface+"=wg0", envPID+"="+strconv.Itoa(pid))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("with the PID %d, want %s: %v %s", pid, want, err, out)
		}
	}
}

// Every command of the usage is completed.
func TestCompletionKnowsUsage(t *testing.T) {
	list := regexp.MustCompile(`(?m)^  ([a-z]+) +[a-z]`).FindAllStringSubmatch(usage, -1)
	if len(list) < 10 {
		t.Fatalf("only %d commands in the usage", len(list))
	}
	for _, m := range list {
		if !slices.ContainsFunc(commandLine(), func(c command) bool { return c.name == m[1] }) {
			t.Errorf("%s is not completed", m[1])
		}
	}
}
