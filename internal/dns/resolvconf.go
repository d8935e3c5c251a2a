// Package dns gives a tunnel's name servers to the system, by resolvconf(8) or
// systemd-resolved(8), or to a namespace by its resolv.conf(5), and resolves the
// names of endpoints.
package dns

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"strings"

	"wg-quickns/internal/plan"
	"wg-quickns/internal/proc"
)

const (
	program        = "resolvconf"
	interfaceOrder = "/etc/resolvconf/interface-order"
	// debianRecords is where Debian's resolvconf keeps a file per interface.
	debianRecords = "/etc/resolvconf/run/interface/"
)

// ErrNoRecord says that resolvconf has nothing for an interface, or cannot tell.
var ErrNoRecord = errors.New("resolvconf has no record")

// Error is a resolvconf that could not be run or did not end with status 0.
type Error struct {
	Command string
	Status  int   // as bash(1) has it: 127 when the program is missing
	Err     error // why it could not be run or was ended; nil when it failed by itself
}

func (e *Error) Error() string {
	switch {
	case e.Err == nil:
		return fmt.Sprintf("%s: exit status %d", e.Command, e.Status)
	case e.Status == 127:
		return fmt.Sprintf("%v (DNS= needs it: install openresolv, or start systemd-resolved)", e.Err)
	}
	return fmt.Sprintf("%s: %v", e.Command, e.Err)
}

func (e *Error) Unwrap() error   { return e.Err }
func (e *Error) ExitStatus() int { return e.Status }

// Doer does plan.DNS steps by resolvconf(8) and plan.Resolv steps in their files.
type Doer struct{}

// Exists says whether there may be a record: asking resolvconf costs a process,
// and not each one can tell. Without a resolvconf it made none. Of a
// resolv.conf it says whether there is anything to take back.
func (Doer) Exists(_ context.Context, _ plan.NS, s plan.Step) (bool, error) {
	if r, ok := s.(plan.Resolv); ok {
		return existsResolv(r)
	}
	if d, ok := s.(plan.DNS); ok && d.Index != 0 {
		return true, nil
	}
	_, err := proc.Look(program)
	return err == nil, nil
}

// Do adds or deletes the record of one interface, tells systemd-resolved, or writes a resolv.conf or puts
// back what was there unless somebody else wrote since. resolvconf inherits
// stdout and stderr; when ctx ends its process group is ended.
func (Doer) Do(ctx context.Context, ns plan.NS, s plan.Step) (plan.Outcome, error) {
	if r, ok := s.(plan.Resolv); ok {
		if ctx.Err() != nil {
			return plan.Outcome{}, context.Cause(ctx)
		}
		return plan.Outcome{}, doResolv(r)
	}
	d, ok := s.(plan.DNS)
	if !ok {
		return plan.Outcome{}, fmt.Errorf("dns cannot do a step of kind %s", s.Kind())
	}
	if d.Index != 0 {
		if !d.Delete {
			return plan.Outcome{}, setLink(ctx, d)
		}
		there, err := linkThere(ns, d.Index)
		if err == nil && there {
			err = revertLink(ctx, d)
		}
		return plan.Outcome{}, err
	}
	if d.Delete {
		return plan.Outcome{}, run(ctx, ns, "", os.Stdout, os.Stderr, "-d", d.Prefix+d.Link, "-f")
	}
	return plan.Outcome{}, run(ctx, ns, resolvText(d.Servers, d.Search), os.Stdout, os.Stderr, "-a", d.Prefix+d.Link, "-m", "0", "-x")
}

// run runs resolvconf in a namespace with input on its stdin. That is a file and not a pipe, so
// that neither side waits for the other.
func run(ctx context.Context, ns plan.NS, input string, stdout, stderr *os.File, args ...string) error {
	fail := &Error{Command: program + " " + strings.Join(args, " ")}
	path, err := proc.Look(program)
	if err != nil {
		fail.Status, _ = proc.ExitStatus(err)
		fail.Err = err
		return fail
	}
	env, err := proc.Environ()
	if err != nil {
		return err
	}
	stdin, err := proc.Memory("input of "+program, input)
	if err != nil {
		return err
	}
	defer stdin.Close()
	status, err := proc.RunIn(ctx, string(ns), &exec.Cmd{
		Path: path, Args: append([]string{program}, args...), Env: env,
		Stdin: stdin, Stdout: stdout, Stderr: stderr,
	})
	if err == nil && status == 0 {
		return nil
	}
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	fail.Status, fail.Err = status, err
	if s, ok := proc.ExitStatus(err); ok {
		fail.Status = s
	}
	return fail
}

// Prefix is what goes before the interface's name in its record's, such as
// "tun.": Debian's resolvconf orders records by the patterns of
// /etc/resolvconf/interface-order, and the first line that is a plain name and a
// star comes first. It is "" for other implementations.
func Prefix() (string, error) {
	info, err := os.Stat(interfaceOrder)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("read resolvconf's interface order: %w", err)
	}
	// a link is systemd-resolved's or another stand-in; a missing program is not one
	if path, err := proc.Look(program); err == nil {
		info, err := os.Lstat(path)
		if err != nil {
			return "", fmt.Errorf("look at resolvconf: %w", err)
		}
		if info.Mode()&fs.ModeSymlink != 0 {
			return "", nil
		}
	}
	text, err := os.ReadFile(interfaceOrder)
	if err != nil {
		return "", fmt.Errorf("read resolvconf's interface order: %w", err)
	}
	return prefix(string(text)), nil
}

func prefix(order string) string {
	star := regexp.MustCompile(`^([A-Za-z0-9-]+)\*$`)
	for line := range strings.Lines(order) {
		line, whole := strings.CutSuffix(line, "\n")
		if !whole {
			break // `read` of bash ends the loop there
		}
		if m := star.FindStringSubmatch(strings.Trim(line, " \t")); m != nil {
			return m[1] + "."
		}
	}
	return ""
}

// List gives the servers and search domains that resolvconf holds for record,
// which is the prefix and the interface's name. The error is ErrNoRecord when
// there is no such record or this resolvconf lists none.
func List(ctx context.Context, record string) (servers, search []string, err error) {
	out, err := proc.Memory("output of "+program, "")
	if err != nil {
		return nil, nil, err
	}
	defer out.Close()
	fail := (*Error)(nil)
	switch err := run(ctx, "", "", out, nil, "-l", record); {
	case err == nil:
		if _, err := out.Seek(0, io.SeekStart); err != nil {
			return nil, nil, fmt.Errorf("read the output of %s -l: %w", program, err)
		}
		if servers, search, ok, err := parse(out, record); err != nil || ok {
			return servers, search, err
		}
	case ctx.Err() != nil || !errors.As(err, &fail):
		return nil, nil, err
	}
	f, err := os.Open(debianRecords + record)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("%w of %s", ErrNoRecord, record)
	} else if err != nil {
		return nil, nil, fmt.Errorf("read resolvconf's record: %w", err)
	}
	defer f.Close()
	servers, search, _, err = parse(f, record)
	return servers, search, err
}

// parse reads resolv.conf(5) lines, those of one record only: Debian's `-l`
// prints all records whatever it is asked for, each after a line that names it.
// What comes before any such line is the record's. ok is false when it is not in there.
func parse(r io.Reader, record string) (servers, search []string, ok bool, err error) {
	nameserver := regexp.MustCompile(`^nameserver ([a-zA-Z0-9_=+:%.-]+)$`)
	ours := true
	for s := bufio.NewScanner(r); ; {
		if !s.Scan() {
			err := s.Err()
			if err != nil {
				err = fmt.Errorf("read resolvconf's record of %s: %w", record, err)
			}
			return servers, search, ok, err
		}
		line := strings.Trim(s.Text(), " \t")
		if name, header := strings.CutPrefix(line, "# resolv.conf from "); header {
			ours = name == record
			ok = ok || ours
			continue
		}
		if !ours {
			continue
		}
		if m := nameserver.FindStringSubmatch(line); m != nil {
			servers, ok = append(servers, m[1]), true
		} else if f := strings.Fields(line); len(f) > 1 && (f[0] == "search" || f[0] == "domain") {
			search, ok = append(search, f[1:]...), true
		}
	}
}
