package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"wg-quickns/confparse"
	"wg-quickns/internal/dns"
	"wg-quickns/internal/journal"
	"wg-quickns/internal/netns"
	"wg-quickns/internal/plan"
	"wg-quickns/internal/proc"
	"wg-quickns/strategies"
)

// initNS opens PID 1's namespace.
const initNS plan.NS = "/proc/1/ns/net"

// place is where a tunnel is, and how that can be recognised later.
type place struct {
	strategies.Place
	// spaces is the identity of each namespace that is there already.
	spaces map[plan.NS]string
	// pid is a process of the target where the config names it by one, else 0.
	pid int
	// moved has the paths of a journal that lead to their namespace no more, and
	// one that does, "" where there is none.
	moved map[plan.NS]plan.NS
	// lost says that the target of a journal has moved or is gone.
	lost bool
}

// findPlace resolves the config's namespaces; it changes nothing.
func findPlace(ctx context.Context, path string, cfg *confparse.Config) (place, error) {
	here, err := netns.Identify("")
	if err != nil {
		return place{}, err
	}
	p := place{spaces: map[plan.NS]string{"": here.String()}}
	find := func(n confparse.Namespace) (plan.NS, int, error) {
		ns, pid, err := p.find(ctx, n)
		if err == nil && p.missing(ns) {
			switch {
			case cfg.ForeignNamespaces:
				err = errors.New("it does not exist, and ManageNamespace=false")
			case !slices.Contains(p.Make, n.Value):
				p.Make = append(p.Make, n.Value)
			}
		}
		if err != nil {
			err = fmt.Errorf("%s:%d: namespace `%s': %w", path, n.Line, confparse.Redact(n.String()), err)
		}
		return ns, pid, err
	}
	if p.Target, p.pid, err = find(cfg.Namespace); err != nil {
		return p, err
	}
	if p.Birth, _, err = find(cfg.BirthNamespace); err != nil {
		return p, err
	}
	if p.spaces[p.Birth] == p.spaces[p.Target] && !p.missing(p.Target) {
		p.Birth = p.Target // one namespace by two names
	}
	p.Foreign = p.spaces[p.Target] != here.String()
	p.Bare = cfg.Strategy() == confparse.StrategyPhysical
	switch cfg.HookNamespace {
	case confparse.HookBirth:
		p.Hooks = p.Birth
	case confparse.HookCaller:
	default:
		p.Hooks = p.Target
	}
	return p, nil
}

var kinds = map[confparse.NamespaceKind]netns.Kind{
	confparse.NSName: netns.Name, confparse.NSInit: netns.Init, confparse.NSPID: netns.PID,
	confparse.NSNumber: netns.Number, confparse.NSPath: netns.Path, confparse.NSDocker: netns.Docker,
	confparse.NSPodman: netns.Podman, confparse.NSUnit: netns.Unit, confparse.NSMachine: netns.Machine,
}

// find resolves one namespace, and a process of it where it is named by one, else 0.
func (p *place) find(ctx context.Context, n confparse.Namespace) (plan.NS, int, error) {
	if n.Kind == confparse.NSCaller {
		return "", 0, nil
	}
	found, err := netns.Find(ctx, kinds[n.Kind], n.Value)
	if err != nil || found.Missing {
		return plan.NS(found.Path), 0, err
	}
	id, err := netns.Identify(found.Path)
	if err != nil {
		return "", 0, err
	}
	p.spaces[plan.NS(found.Path)] = id.String()
	return plan.NS(found.Path), found.PID, nil
}

// missing says whether a namespace of the config is yet to be made.
func (p place) missing(ns plan.NS) bool { return p.spaces[ns] == "" }

// stateName names the journal of an interface: one that the config puts into a
// namespace goes by that, any other by the caller's.
func stateName(iface string, n confparse.Namespace, here netns.ID) string {
	switch {
	case n.Kind == confparse.NSInit, n.Kind == confparse.NSCaller && here.Init:
		return iface
	case n.Kind == confparse.NSCaller:
		return iface + "@" + strconv.FormatUint(here.Inode, 10)
	}
	return iface + "@" + url.PathEscape(n.String())
}

// findState finds the journal of an interface: own, the one it goes by, else, as
// the config may have changed or be gone since, the only one there is of that
// interface and config, and if the config is gone, of that interface.
func findState(t target, here netns.ID) (string, error) {
	own := stateName(t.name, confparse.Namespace{}, here)
	if t.cfg != nil {
		own = stateName(t.name, t.cfg.Namespace, here)
	}
	names, err := stateRoot.Names()
	if err != nil {
		return "", err
	}
	var matches, others []string
	for _, name := range names {
		if name == own {
			return own, nil
		}
		log, err := stateRoot.Open(name)
		if err != nil {
			return "", err
		}
		h, _ := log.Header()
		switch {
		case h.Interface != t.name || h.Target == "" && h.Netns != here.String():
		case h.ConfigFile == t.path:
			matches = append(matches, name)
		default:
			others = append(others, name)
		}
	}
	if len(matches) == 0 && t.cfg == nil {
		matches = others
	}
	switch len(matches) {
	case 0:
		return own, nil
	case 1:
		return matches[0], nil
	}
	return "", fmt.Errorf("`%s' is up in several namespaces (%q), and no config says which is meant", t.name, matches)
}

// recordedPlace is the place that a journal speaks of.
func recordedPlace(log *journal.Journal) (place, error) {
	h, _ := log.Header()
	p := place{spaces: recordedSpaces(log)}
	p.Target, p.Birth, p.Hooks = plan.NS(h.Target), plan.NS(h.Birth), plan.NS(h.Hooks)
	p.Foreign = p.spaces[p.Target] != h.Netns
	p.Bare = h.Strategy == confparse.StrategyPhysical
	p.moved = make(map[plan.NS]plan.NS)
	for ns, id := range p.spaces {
		if ns == "" { // the one the command of then was started in: nothing is done there by that path
			continue
		}
		if now, err := netns.Identify(string(ns)); err == nil && now.String() == id || err != nil && !vanished(err) {
			continue
		}
		// Its process ended or its name was deleted, and a number or a name may be
		// another's by now. Others may live in it still.
		pin := viewsOf(ns) + proc.ViewNet
		if now, err := netns.Identify(pin); err == nil && now.String() == id {
			p.moved[ns] = plan.NS(pin)
			continue
		}
		at, err := netns.Locate(id)
		if err != nil {
			return p, fmt.Errorf("find what was at %s: %w", ns, err)
		}
		p.moved[ns] = plan.NS(at)
	}
	_, p.lost = p.moved[p.Target]
	p.Target, p.Birth, p.Hooks = p.at(p.Target), p.at(p.Birth), p.at(p.Hooks)
	return p, nil
}

// recordedSpaces is the identity of each namespace of a journal: that it found, or made.
func recordedSpaces(log *journal.Journal) map[plan.NS]string {
	h, _ := log.Header()
	spaces := make(map[plan.NS]string)
	for ns, id := range h.Spaces {
		spaces[plan.NS(ns)] = id
	}
	for _, e := range log.Pending() {
		for _, undo := range e.Undo {
			if made, ok := undo.(plan.Netns); ok && made.ID != "" {
				spaces[plan.Named(made.Name)] = made.ID
			}
		}
	}
	return spaces
}

// at is where a namespace of a journal is by now.
func (p place) at(ns plan.NS) plan.NS {
	if at := p.moved[ns]; at != "" {
		return at
	}
	return ns
}

// viewsOf is the folder of a named namespace's plan.Views.
func viewsOf(ns plan.NS) string {
	name, _ := ns.Name()
	return string(stateRoot) + "/@views." + name
}

// relocated is a step of a journal with the namespaces that it names itself as they
// are reached by now.
func (p place) relocated(s plan.Step) plan.Step {
	switch s := s.(type) {
	case plan.Move:
		s.From, s.To = p.at(s.From), p.at(s.To)
		return s
	case plan.Settle:
		s.Away = p.at(s.Away)
		return s
	}
	return s
}

// gone says that a namespace of the journal is no more.
func (p place) gone(ns plan.NS) bool {
	if at, moved := p.moved[ns]; moved {
		return at == ""
	}
	if ns == "" {
		return false
	}
	_, err := netns.Identify(string(ns))
	return err != nil && vanished(err)
}

// changed says that a namespace came or went since the place was found.
func (p place) changed() bool {
	for _, name := range p.Make {
		if _, err := os.Lstat(string(plan.Named(name))); err == nil {
			return true
		}
	}
	for ns, id := range p.spaces {
		if now, err := netns.Identify(string(ns)); err != nil || now.String() != id {
			return true
		}
	}
	return false
}

// vanished says whether a namespace could not be opened because there is none, or
// only the file that it was mounted on, or because its process is ending.
func vanished(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ESRCH)
}

func (s *session) gone(ns plan.NS) bool { return s.place.gone(ns) }

// resolvConf says whether DNS= goes into a resolv.conf of the target, and not to
// the system's resolver.
func (p place) resolvConf() bool { return p.Target != "" && p.Target != initNS }

// resolvStep is the step that gives DNS= to the place's resolver.
func (s *session) resolvStep(ctx context.Context) (plan.Step, error) {
	name, named := s.place.Target.Name()
	step := plan.Resolv{Path: "/etc/netns/" + name + "/resolv.conf"}
	switch {
	case !s.place.resolvConf():
		prefix, err := dns.Prefix()
		step := plan.DNS{Link: s.name, Prefix: prefix}
		// systemd-resolved knows no links but those of the init namespace.
		if id, no := netns.Identify(string(s.place.Target)); no == nil && id.Init && dns.Resolved(ctx) {
			step.Index = cmp.Or(s.index, s.device.Index)
		}
		return step, err
	case named:
	case s.place.pid != 0:
		if err := ownFiles(s.place.pid); err != nil {
			return nil, fmt.Errorf("%s:%d: DNS=: %w", s.path, s.cfg.Namespace.Line, err)
		}
		step.Path, step.InPlace = fmt.Sprintf("/proc/%d/root/etc/resolv.conf", s.place.pid), true
		step.Claims = string(stateRoot) + "/@resolv." + s.place.spaces[s.place.Target]
	default:
		return nil, fmt.Errorf("%s:%d: DNS=: it needs a namespace that has a name or a process: %s has neither",
			s.path, s.cfg.Namespace.Line, s.place.Target)
	}
	var err error
	step.Old, step.MadeDirs, err = dns.ReadResolv(step.Path)
	if step.InPlace {
		step.MadeDirs = nil
	}
	return step, err
}

// ownFiles refuses a process that sees this machine's own /etc, or its resolv.conf.
func ownFiles(pid int) error {
	for _, path := range []string{"/etc", "/etc/resolv.conf"} {
		theirs, err := os.Lstat(fmt.Sprintf("/proc/%d/root%s", pid, path))
		if errors.Is(err, fs.ErrNotExist) && path != "/etc" {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look at %s of process %d: %w", path, pid, err)
		}
		if ours, err := os.Stat(path); err == nil && os.SameFile(theirs, ours) {
			return fmt.Errorf("process %d uses this machine's own %s, which would be overwritten; give it a file of its own, or leave DNS= out", pid, path)
		}
	}
	return nil
}
