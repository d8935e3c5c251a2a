package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"wg-quickns/confparse"
	"wg-quickns/internal/check"
	"wg-quickns/internal/dns"
	"wg-quickns/internal/kernel"
)

const checkUsage = "usage: check [--json] [--resolve] CONFIG_FILE | INTERFACE ..."

// resolvePatience is how long check waits for names.
const resolvePatience = 20 * time.Second

// checkReport is what `check --json` prints, see man/check.schema.json.
type checkReport struct {
	Findings []check.Finding `json:"findings"`
	Errors   int             `json:"errors"`
	Warnings int             `json:"warnings"`
	Notes    int             `json:"notes"`
}

// check looks config files over. It touches nothing.
func (a app) check(ctx context.Context, args []string) error {
	asJSON, resolve := false, false
	var paths []string
	for _, arg := range args {
		switch {
		case arg == "--json":
			asJSON = true
		case arg == "--resolve":
			resolve = true
		case strings.HasPrefix(arg, "-"):
			return fmt.Errorf("`%s' is not understood; %s", arg, checkUsage)
		default:
			if isName(arg) {
				arg = "/etc/wireguard/" + arg + ".conf"
			}
			if !slices.Contains(paths, arg) {
				paths = append(paths, arg)
			}
		}
	}
	if len(paths) == 0 {
		return errors.New("no config; " + checkUsage)
	}
	report, err := a.checkFiles(ctx, paths, resolve)
	if err != nil {
		return err
	}
	if asJSON {
		err = printJSON(os.Stdout, report)
	} else {
		err = report.print(os.Stdout)
		fmt.Fprintf(os.Stderr, "%s: errors: %d, warnings: %d, notes: %d\n", a.program, report.Errors, report.Warnings, report.Notes)
	}
	switch {
	case err != nil:
		return fmt.Errorf("write the findings: %w", err)
	case report.Errors > 0:
		return statusError(statusFailed)
	case report.Warnings > 0:
		return statusError(statusDegraded)
	}
	return nil
}

// print writes the findings for people.
func (r checkReport) print(w io.Writer) error {
	var b strings.Builder
	for _, f := range r.Findings {
		b.WriteString(f.File + ":")
		if f.Line > 0 {
			fmt.Fprintf(&b, "%d:", f.Line)
		}
		fmt.Fprintf(&b, " %s: %s [%s]\n\t%s\n", f.Severity, f.Message, f.ID, f.Hint)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (a app) checkFiles(ctx context.Context, paths []string, resolve bool) (checkReport, error) {
	report := checkReport{Findings: []check.Finding{}}
	tables, err := kernel.TableNames()
	if err != nil {
		return report, err
	}
	found := make(map[string][]check.Finding)
	var tunnels []check.Tunnel
	for _, path := range paths {
		add := func(line int, s check.Severity, id, hint, format string, args ...any) {
			found[path] = append(found[path], check.Finding{
				File: path, Line: line, Severity: s, ID: id, Message: fmt.Sprintf(format, args...), Hint: hint})
		}
		name, isConf := strings.CutSuffix(filepath.Base(path), ".conf")
		if !isConf || !isName(name) || !goodName(name) {
			add(0, check.Error, "interface-name", "rename it: NAME.conf, NAME having 1 to 15 letters, digits or characters of `_=+.-', and none of `-' in front, `.', `..', `all' and `default'",
				"the file's name must be an interface's, followed by .conf")
			name = ""
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrPermission) {
			if err := a.asRoot(err); err != nil {
				add(0, check.Error, "file", "run this as root", "%v", err)
			}
			continue
		}
		if err != nil {
			add(0, check.Error, "file", "an interface stands for /etc/wireguard/INTERFACE.conf, anything else for a file", "%v", err)
			continue
		}
		cfg, list, err := check.Config(path, data, tables)
		if err != nil {
			return report, err
		}
		found[path] = append(found[path], list...)
		checkAccess(cfg, name, add)
		checkServices(ctx, cfg, add)
		if resolve {
			checkNames(ctx, cfg, add)
		}
		if name != "" {
			tunnels = append(tunnels, check.Tunnel{Interface: name, Config: cfg})
		}
	}
	for _, f := range check.Between(tunnels) {
		found[f.File] = append(found[f.File], f)
	}
	for _, path := range paths {
		check.Sort(found[path])
		for _, f := range found[path] {
			switch f.Severity {
			case check.Error:
				report.Errors++
			case check.Warning:
				report.Warnings++
			case check.Note:
				report.Notes++
			}
			report.Findings = append(report.Findings, f)
		}
	}
	return report, nil
}

type addFinding func(line int, s check.Severity, id, hint, format string, args ...any)

// checkAccess looks at who may read and change the file, and what its hooks run.
func checkAccess(cfg *confparse.Config, name string, add addFinding) {
	settings := cfg.Settings()
	if open, err := worldAccessible(cfg.Path); err == nil && open && slices.ContainsFunc(settings, func(s confparse.Setting) bool {
		return s.Key == "privatekey" || s.Key == "presharedkey"
	}) {
		add(0, check.Warning, "file-readable", "chmod 600", "there are keys in it, and everybody may read or change it")
	}
	if why := alterable(cfg.Path); why != "" {
		add(0, check.Warning, "file-writable", "the file and all folders above it should belong to root, and be writable by root alone",
			"who may change this file may run commands as root by it: %s", why)
	}
	for _, s := range settings {
		switch s.Key {
		case "preup", "postup", "predown", "postdown":
		default:
			continue
		}
		words := strings.FieldsFunc(s.Value, func(r rune) bool { return strings.ContainsRune(" \t'\"`(){}<>|&;=", r) })
		for i, word := range words {
			path := strings.ReplaceAll(word, "%i", name)
			if !filepath.IsAbs(path) || strings.ContainsAny(path, "$*?[\\~") {
				continue
			}
			file, err := filepath.EvalSymlinks(path)
			if i == 0 && errors.Is(err, fs.ErrNotExist) {
				add(s.Line, check.Warning, "hook-missing", "install it, or write its right path", "%s does not exist: the command fails", path)
			}
			if info, no := os.Stat(file); err != nil || no != nil || !info.Mode().IsRegular() {
				continue
			}
			if why := alterable(file); why != "" {
				add(s.Line, check.Warning, "hook-writable", "the file and all folders above it should belong to root, and be writable by root alone",
					"root runs or reads %s here, which others may change: %s", path, why)
			}
		}
	}
}

// alterable says by whom a file could be changed who is neither root nor the
// caller; "" if by nobody.
func alterable(path string) string {
	path, err := filepath.EvalSymlinks(path)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return ""
	}
	for {
		info, err := os.Stat(path)
		if err != nil {
			return ""
		}
		owner := info.Sys().(*syscall.Stat_t)
		mode := info.Mode()
		open := mode.Perm() & 0o022
		if owner.Gid == 0 || int(owner.Gid) == os.Getgid() {
			open &^= 0o020
		}
		switch {
		case owner.Uid != 0 && int(owner.Uid) != os.Getuid():
			return fmt.Sprintf("%s belongs to user %d", path, owner.Uid)
		case open != 0 && !(mode.IsDir() && mode&fs.ModeSticky != 0): // in such a folder each has its own files
			return fmt.Sprintf("%s has mode %04o", path, mode.Perm())
		case path == "/":
			return ""
		}
		path = filepath.Dir(path)
	}
}

// checkServices looks ports up that go by a service's name.
func checkServices(ctx context.Context, cfg *confparse.Config, add addFinding) {
	look := func(line int, service string) {
		if _, err := net.DefaultResolver.LookupPort(ctx, "udp", service); err != nil {
			add(line, check.Error, "service", "write the port's number", "no service `%s' is known", confparse.Redact(service))
		}
	}
	if d := cfg.Device; d.ListenService != "" {
		look(d.ListenServiceLine, d.ListenService)
	}
	for _, p := range cfg.Device.Peers {
		if e := p.Endpoint; e != nil {
			if _, ok := confparse.PortNumber(e.Port); !ok {
				look(e.Line, e.Port)
			}
		}
	}
}

// checkNames looks the endpoints' names up, once.
func checkNames(ctx context.Context, cfg *confparse.Config, add addFinding) {
	ctx, cancel := context.WithTimeout(ctx, resolvePatience)
	defer cancel()
	errs := make([]error, len(cfg.Device.Peers))
	slots := make(chan struct{}, 16)
	var all sync.WaitGroup
	for i, p := range cfg.Device.Peers {
		if p.Endpoint == nil || p.Endpoint.Addr.IsValid() {
			continue
		}
		one := confparse.Device{Peers: []confparse.Peer{{Endpoint: &confparse.Endpoint{Host: p.Endpoint.Host, Port: "1", Line: p.Endpoint.Line}}}}
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			errs[i] = dns.Resolve(ctx, &one, dns.Options{})
		})
	}
	all.Wait()
	for i, err := range errs {
		if err == nil {
			continue
		}
		e, why := cfg.Device.Peers[i].Endpoint, err.Error()
		if failed := (*dns.ResolveError)(nil); errors.As(err, &failed) {
			why = failed.Message
		}
		add(e.Line, check.Error, "resolve", "look at the name, and at the servers in /etc/resolv.conf", "%s: `%s'", why, confparse.Redact(e.Host))
	}
}
