package systemd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/plan"
)

const (
	runtimeUnits = "/run/systemd/system"
	// control comes before /etc/systemd/system, see systemd.unit(5)
	control = "/run/systemd/system.control"
	dropIn  = "50-wg-quickns.conf"
	scratch = ".wg-quickns-new"  // ends the name of a file that is only being written
	staged  = ".wg-quickns-stop" // and of one that waits until its unit has stopped

	networkd     = "systemd-networkd.service"
	manager      = "NetworkManager.service"
	managerState = "/run/NetworkManager"
	dispatcher   = "NetworkManager-dispatcher.service" // runs the scripts of manager
)

// hidden are the programs by which a DHCP client's name servers get into the
// resolver of the namespace that the machine was started in.
var hidden = [...]string{
	"/usr/sbin/resolvconf", "/sbin/resolvconf", "/usr/bin/resolvconf", "/usr/bin/resolvectl", "/usr/bin/systemd-resolve",
	"/usr/lib/systemd/systemd-resolved", "/lib/systemd/systemd-resolved",
}

// header begins each file that confines a unit. It names the unit for whose sake
// that is, so that all of them are found again.
func header(unit string) string { return "# by wg-quickns(8), for " + unit + ", until down\n" }

// drops lists the files that confine a unit.
func drops(unit string) ([]string, error) {
	var list []string
	for _, glob := range []string{runtimeUnits + "/*/" + dropIn + "*", control + "/" + globEscape(unit) + "*", runtimeUnits + "/" + teller + ".*"} {
		files, err := filepath.Glob(glob)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			// what a killed write left may have no header yet
			if strings.HasPrefix(string(text), header(unit)) || strings.HasSuffix(file, scratchOf(unit)) {
				list = append(list, file)
			}
		}
	}
	return list, nil
}

// globEscape is a name that filepath.Glob takes as it is.
func globEscape(name string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(name)
}

func existsConfine(s plan.Confine) (bool, error) {
	list, err := drops(s.Unit)
	return len(list) > 0, err
}

func doConfine(ctx context.Context, s plan.Confine) error {
	c, err := connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if s.Delete {
		return release(ctx, c, s)
	}
	fail := func(err error) error { return fmt.Errorf("confine %s: %w", s.Unit, err) }
	files, err := confined(ctx, c, s)
	if err != nil {
		return fail(err)
	}
	later, err := stopsAtHome(ctx, c, s.Unit)
	if err != nil {
		return fail(err)
	}
	for path, text := range files {
		if later {
			path += staged
		}
		if err := replace(path, scratchOf(s.Unit), header(s.Unit)+text); err != nil {
			return fail(err)
		}
	}
	if later {
		return nil
	}
	return reload(ctx, c)
}

// stopsAtHome says whether a unit runs and has a program that stops it, which works
// in the unit's namespace: there it must still be the one that it was started in.
func stopsAtHome(ctx context.Context, c bus, unit string) (bool, error) {
	running, err := started(ctx, c, unit)
	if err != nil || !running {
		return false, err
	}
	all, err := c.GetUnitTypePropertiesContext(ctx, unit, "Service")
	if err != nil {
		return false, err
	}
	for _, property := range []string{"ExecStop", "ExecStopPost"} {
		commands, _ := all[property].([][]any)
		for _, command := range commands {
			// dhcpcd -x sends a signal by a file
			if path, _ := command[0].(string); filepath.Base(path) != "dhcpcd" {
				return true, nil
			}
		}
	}
	return false, nil
}

// inside says whether a process of a unit is in a namespace.
func inside(ctx context.Context, c bus, unit string, ns plan.NS) (bool, error) {
	space, err := os.Stat(string(ns))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	pids, err := processesOf(ctx, c, unit)
	return slices.ContainsFunc(pids, func(pid string) bool {
		its, err := os.Stat("/proc/" + pid + "/ns/net")
		return err == nil && os.SameFile(its, space)
	}), err
}

// processesOf are the PIDs in a unit's control group.
func processesOf(ctx context.Context, c bus, unit string) ([]string, error) {
	p, err := c.GetUnitTypePropertyContext(ctx, unit, "Service", "ControlGroup")
	if err != nil {
		return nil, fmt.Errorf("ask systemd for %s: %w", unit, err)
	}
	group, _ := p.Value.Value().(string)
	if group == "" {
		return nil, nil
	}
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/systemd"} {
		text, err := os.ReadFile(root + group + "/cgroup.procs")
		if err == nil {
			return strings.Fields(string(text)), nil
		} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) { // it is being removed
			return nil, err
		}
	}
	return nil, nil
}

// release takes a unit out of its confinement. If it runs there, since somebody has
// started it meanwhile (udev, D-Bus), it stops first; one that runs at home goes on.
func release(ctx context.Context, c bus, s plan.Confine) error {
	unit := s.Unit
	files, err := drops(unit)
	if err != nil || len(files) == 0 {
		return err
	}
	if slices.Contains(files, filepath.Join(control, unit)) {
		settle(ctx) // udev may be about to start it
	}
	for _, u := range append([]string{unit}, companions(unit)...) {
		is, err := inside(ctx, c, u, s.NS)
		if err == nil && is {
			err = stop(ctx, c, u)
		}
		if err != nil {
			return err
		}
	}
	if files, err = drops(unit); err != nil { // of other names once it has stopped
		return err
	}
	for _, file := range files {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if dir := filepath.Dir(file); dir != runtimeUnits { // which says that systemd runs
			_ = os.Remove(dir) // others may have a drop-in there
		}
	}
	if unit == manager {
		if err := forget(); err != nil {
			return err
		}
	}
	return reload(ctx, c)
}

// forget takes away what NetworkManager noted about interfaces when it stopped, of
// those that are gone or down: it would believe them to be as they were.
func forget() error {
	files, err := filepath.Glob(managerState + "/devices/*")
	if err != nil {
		return err
	}
	for _, file := range files {
		index, err := strconv.Atoi(filepath.Base(file))
		if err != nil {
			continue
		}
		if link, err := net.InterfaceByIndex(index); err == nil && link.Flags&net.FlagUp != 0 {
			continue
		}
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func reload(ctx context.Context, c bus) error {
	if ending(ctx, c) { // the files that it would read go too
		return nil
	}
	if err := c.ReloadContext(ctx); err != nil {
		return fmt.Errorf("systemctl daemon-reload: %w", err)
	}
	return nil
}

// companions are units that work for another, and stop with it.
func companions(unit string) []string {
	if unit == manager {
		return []string{dispatcher}
	}
	return nil
}

// confined gives the files, by their paths, that put a unit into a namespace
// (systemd.exec(5)), and fills the folders that it is to have of its own.
func confined(ctx context.Context, c bus, s plan.Confine) (map[string]string, error) {
	name, _ := s.NS.Name()
	network := "NetworkNamespacePath=" + escape(string(s.NS)) + "\n"
	service := "[Service]\n" + network +
		"BindReadOnlyPaths=" + escape(s.Views) + "/sys:/sys\n" +
		"BindPaths=" + escape(s.Views) + "/etc:/etc\n" +
		"ReadWritePaths=-/etc/netns/" + escape(name) + "\n" +
		"InaccessiblePaths=-" + strings.Join(hidden[:], " -") + "\n"
	files := map[string]string{}
	put := func(unit, text string) { files[filepath.Join(runtimeUnits, unit+".d", dropIn)] = text }
	for _, u := range companions(s.Unit) {
		put(u, service)
	}
	more := ""
	var err error
	switch s.Unit {
	case networkd:
		more, err = networkdExtra(s.Views)
		files[filepath.Join(runtimeUnits, teller+".path")] = "[Unit]\nDefaultDependencies=no\nPartOf=" + networkd + "\n[Path]\nPathChanged=" + escape(s.Views) + "/netif/state\n"
		files[filepath.Join(runtimeUnits, teller+".service")] = "[Unit]\nDefaultDependencies=no\nStartLimitIntervalSec=0\n[Service]\nType=oneshot\n" +
			"ExecStart=/bin/sh " + escape(s.Views) + "/" + teller + " " + escape(s.Views) + "/netif/state /etc/netns/" + escape(name) + "/resolv.conf\n"
	case manager:
		more, err = managerExtra(s.Views)
	}
	if err != nil {
		return nil, err
	}
	put(s.Unit, service+more)
	triggers, err := sockets(ctx, c, s.Unit)
	if err != nil {
		return nil, err
	}
	for _, u := range triggers {
		put(u, "[Socket]\n"+network)
	}
	whole, err := unbound(ctx, c, s.Unit)
	if err != nil {
		return nil, err
	}
	if whole != "" {
		files[filepath.Join(control, s.Unit)] = whole
	}
	return files, nil
}

// escape writes a path as a unit's setting has it.
func escape(path string) string {
	return strings.NewReplacer(`\`, `\\`, "%", "%%", ":", `\:`, " ", `\x20`).Replace(path)
}

// dependencies are the settings by which a unit needs others.
var dependencies = []string{"BindsTo", "Requires", "Requisite", "Wants", "After", "PartOf", "BoundBy"}

// unbound is a unit's own file without what binds it to a device: udev knows none in
// the namespace, and a drop-in can take nothing away (systemd.unit(5)). It is ""
// when nothing does.
func unbound(ctx context.Context, c bus, unit string) (string, error) {
	if bound, err := devices(ctx, c, unit); err != nil || !bound {
		return "", err
	}
	p, err := c.GetUnitPropertyContext(ctx, unit, "FragmentPath")
	if err != nil {
		return "", fmt.Errorf("ask systemd for %s: %w", unit, err)
	}
	path, _ := p.Value.Value().(string)
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read the unit: %w", err)
	}
	return withoutDevices(strings.TrimPrefix(string(text), header(unit))), nil
}

func withoutDevices(text string) string {
	var b strings.Builder
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if slices.Contains(dependencies, strings.TrimSpace(key)) {
			names := slices.DeleteFunc(strings.Fields(value), device)
			if len(names) == 0 && strings.TrimSpace(value) != "" {
				continue
			}
			line = key + "=" + strings.Join(names, " ") + "\n"
		}
		b.WriteString(line)
	}
	return b.String()
}

// teller writes what systemd-networkd knows of name servers, which it tells only
// systemd-resolved, into a resolv.conf, as often as that changes.
const (
	teller = "wg-quickns-netif"
	tell   = `state=$1 conf=$2
servers=$(sed -n 's/^DNS=//p' "$state") domains=$(sed -n 's/^DOMAINS=//p' "$state")
[ -n "$servers" ] || exit 0
{
  for s in $servers; do echo "nameserver ${s%%#*}"; done
  [ -z "$domains" ] || echo "search $domains"
} >"$conf"
`
)

// networkdExtra gives systemd-networkd a state of its own, which systemd-resolved,
// which believes it, does not read.
func networkdExtra(views string) (string, error) {
	const state = "/run/systemd/netif"
	dir := filepath.Join(views, "netif")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	who, err := user.Lookup("systemd-network")
	if err != nil {
		return "", err
	}
	uid, err := strconv.Atoi(who.Uid)
	if err != nil {
		return "", err
	}
	gid, err := strconv.Atoi(who.Gid)
	if err != nil {
		return "", err
	}
	if err := write(filepath.Join(views, teller), tell); err != nil {
		return "", err
	}
	return "BindPaths=" + escape(dir) + ":" + state + "\n[Unit]\nWants=" + teller + ".path\nAfter=" + teller + ".path\n", os.Chown(dir, uid, gid)
}

// managerExtra gives NetworkManager, see NetworkManager.conf(5), a state of its own,
// which goes by the index of interfaces, and has it write resolv.conf itself and not
// tell systemd-resolved, to which an index means another interface.
func managerExtra(views string) (string, error) {
	const state, config = managerState, "/etc/NetworkManager/conf.d"
	run, conf := filepath.Join(views, "nm-run"), filepath.Join(views, "nm-conf")
	for _, dir := range []string{run, conf} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
	}
	theirs, err := filepath.Glob(config + "/*.conf")
	if err != nil {
		return "", err
	}
	for _, path := range theirs {
		info, err := os.Stat(path)
		var text []byte // of /dev/null too, which hides a file of /usr/lib
		if err == nil && info.Mode().IsRegular() {
			text, err = os.ReadFile(path)
		}
		if errors.Is(err, fs.ErrNotExist) { // a link to nowhere
			continue
		}
		if err == nil {
			err = write(filepath.Join(conf, filepath.Base(path)), string(text))
		}
		if err != nil {
			return "", err
		}
	}
	// the last by name decides
	err = write(filepath.Join(conf, "zzz-wg-quickns.conf"), "[main]\ndns=default\nrc-manager=file\nsystemd-resolved=false\n")
	return "BindPaths=" + escape(run) + ":" + state + " -" + state + "/system-connections -" + state + "/conf.d\n" +
		"BindReadOnlyPaths=" + escape(conf) + ":" + config + "\n", err
}

// scratchOf ends the name of a file that confines a unit and is only being written: by
// that others know whose it is.
func scratchOf(unit string) string { return "." + unit + scratch }

// write writes a file and its folder, whole or not at all.
func write(path, text string) error { return replace(path, scratch, text) }

// replace is write, by a file of another ending.
func replace(path, ending, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path+ending, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(path+ending, path)
}
