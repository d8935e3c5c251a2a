// Package hooks runs one command of a config file as wg-quick(8) does: by
// bash(1), in a subshell, with wg-quick's shell variables and helpers.
package hooks

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"wg-quickns/internal/plan"
	"wg-quickns/internal/proc"
)

// ExitError is a hook that did not end with status 0.
type ExitError struct {
	Command string
	Status  int   // as bash(1) has it: 128+n when signal n ended it
	Cause   error // why it was ended, nil when it ended by itself
}

func (e *ExitError) Error() string {
	if e.Cause != nil {
		return fmt.Sprintf("hook `%s': %v", e.Command, e.Cause)
	}
	return fmt.Sprintf("hook `%s': exit status %d", e.Command, e.Status)
}

func (e *ExitError) Unwrap() error   { return e.Cause }
func (e *ExitError) ExitStatus() int { return e.Status }

// Doer runs plan.Hook steps. Its zero value is usable.
type Doer struct {
	// Argv0 is $0 of the hook and its base name $PROGRAM; "" is how this program
	// was started.
	Argv0 string
	// WGConfig is $WG_CONFIG, wg's part of the config file. It holds keys, so it
	// reaches bash by a file that only bash has open, never by an argument or the
	// environment, and no child of bash gets it.
	WGConfig string
}

// Exists is false: a hook leaves nothing that could be there already.
func (Doer) Exists(context.Context, plan.NS, plan.Step) (bool, error) { return false, nil }

// Do runs one hook in the namespace, which it enters as proc.Enter says, with our
// stdin, stdout and stderr and waits for its end. The error is an *ExitError when it failed or was ended because ctx ended.
func (d Doer) Do(ctx context.Context, ns plan.NS, s plan.Step) (plan.Outcome, error) {
	h, ok := s.(plan.Hook)
	if !ok {
		return plan.Outcome{}, fmt.Errorf("hooks cannot do a step of kind %s", s.Kind())
	}
	return plan.Outcome{}, d.run(ctx, ns, h)
}

func (d Doer) run(ctx context.Context, ns plan.NS, h plan.Hook) error {
	argv0, err := d.argv0()
	if err != nil {
		return err
	}
	text, err := d.script(h, filepath.Base(argv0))
	if err != nil {
		return err
	}
	file, err := proc.Memory("hook", text)
	if err != nil {
		return err
	}
	defer file.Close()
	bash, err := findBash()
	if err != nil {
		return err
	}
	cmd := &exec.Cmd{
		Path:  bash,
		Args:  []string{"bash", "-c", loader, argv0},
		Env:   environ(h, ns),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		ExtraFiles: []*os.File{file},
	}
	status, err := proc.RunIn(ctx, string(ns), cmd)
	if err != nil {
		return fmt.Errorf("run hook `%s': %w", h.Command, err)
	}
	if status == 0 {
		return nil
	}
	e := &ExitError{Command: h.Command, Status: status}
	if ctx.Err() != nil {
		e.Cause = context.Cause(ctx)
	}
	return e
}

// loader is bash's whole argument: it reads the script from file 3, closes that,
// and runs it. LC_ALL first, so that bytes are characters while it reads.
const loader = `export LC_ALL=C; IFS= read -r -d "" -u 3 REPLY || :; exec 3<&-; eval "$REPLY"`

// helpers are the functions of wg-quick(8) that a hook may call.
const helpers = `cmd() { printf '[#] %s\n' "$*" >&2; "$@"; }
die() { printf '%s: %s\n' "$PROGRAM" "$*" >&2; exit 1; }
`

var (
	// variableName is what bash takes as one.
	variableName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`) })
	// functionOnly matches what bash allows in a function only.
	functionOnly = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`\b(local|return|FUNCNAME)\b`) })
)

// phaseArray names the array that holds the hooks of each phase.
func phaseArray(phase string) string {
	switch phase {
	case "PreUp":
		return "PRE_UP"
	case "PostUp":
		return "POST_UP"
	case "PreDown":
		return "PRE_DOWN"
	case "PostDown":
		return "POST_DOWN"
	}
	return ""
}

// script is the text that bash reads: variables, helpers, options, the hook.
func (d Doer) script(h plan.Hook, program string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the program's own path: %w", err)
	}
	// the names of wg-quick(8), each as empty as it starts with
	vars := map[string]string{
		"INTERFACE": "", "CONFIG_FILE": "", "MTU": "", "TABLE": "", "SAVE_CONFIG": "0",
		"SELF": self, "PROGRAM": program,
	}
	arrays := map[string][]string{
		"ADDRESSES": nil, "DNS": nil, "DNS_SEARCH": nil, "ARGS": nil,
		"PRE_UP": nil, "POST_UP": nil, "PRE_DOWN": nil, "POST_DOWN": nil,
	}
	maps.Copy(vars, h.Vars)
	maps.Copy(arrays, h.Arrays)
	vars["hook"] = h.Command

	var b strings.Builder
	// REPLY is the text being run; a WG_CONFIG of the caller's environment would be exported
	b.WriteString("unset REPLY WG_CONFIG\n")
	fmt.Fprintf(&b, "WG_CONFIG=%s\n", quote(d.WGConfig))
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		if !variableName().MatchString(name) {
			return "", fmt.Errorf("hook `%s': bad variable name `%s'", h.Command, name)
		}
		fmt.Fprintf(&b, "%s=%s\n", name, quote(vars[name]))
	}
	for _, name := range slices.Sorted(maps.Keys(arrays)) {
		if !variableName().MatchString(name) {
			return "", fmt.Errorf("hook `%s': bad variable name `%s'", h.Command, name)
		}
		fmt.Fprintf(&b, "%s=(", name)
		for _, v := range arrays[name] {
			b.WriteString(" " + quote(v))
		}
		b.WriteString(" )\n")
	}
	fmt.Fprintf(&b, "export PATH=%s:\"$PATH\"\n", quote(filepath.Dir(self)))
	b.WriteString(helpers)
	b.WriteString("shopt -s extglob\nset -e -o pipefail\n")
	args := ""
	if name := phaseArray(h.Phase); name != "" {
		args = ` "${` + name + `[@]}"`
	}
	if functionOnly().MatchString(h.Command) {
		fmt.Fprintf(&b, "execute_hooks() {\n(eval \"$hook\")\n}\nexecute_hooks%s\n", args)
	} else {
		// not in a function, since bash would say "environment:" instead of $0 in its
		// messages about a function of a script that has no name
		fmt.Fprintf(&b, "set --%s\n(eval \"$hook\")\n", args)
	}
	return b.String(), nil
}

// quote makes s one word of bash.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// environ is our environment and the hook's. The names of hooks are always set,
// empty when not known, so that none comes from a wg-quickns further out.
func environ(h plan.Hook, ns plan.NS) []string {
	add := map[string]string{
		"WG_QUICKNS_INTERFACE":       h.Vars["INTERFACE"],
		"WG_QUICKNS_NAMESPACE":       string(ns),
		"WG_QUICKNS_BIRTH_NAMESPACE": "",
		"WG_QUICKNS_STRATEGY":        "",
		"WG_QUICKNS_PHASE":           h.Phase,
	}
	maps.Copy(add, h.Env)
	env := os.Environ()
	for _, name := range slices.Sorted(maps.Keys(add)) {
		env = append(env, name+"="+add[name]) // exec.Cmd keeps the last of each name
	}
	return env
}

// argv0 is the path by which this program was started.
func (d Doer) argv0() (string, error) {
	if d.Argv0 != "" {
		return d.Argv0, nil
	}
	if strings.Contains(os.Args[0], "/") {
		return os.Args[0], nil
	}
	if path, err := exec.LookPath(os.Args[0]); err == nil {
		return path, nil
	}
	return os.Executable()
}

// findBash prefers the bash that wg-quick(8) names in its first line.
func findBash() (string, error) {
	const usual = "/bin/bash"
	if _, err := os.Stat(usual); !errors.Is(err, fs.ErrNotExist) {
		return usual, nil
	}
	return proc.Look("bash")
}
