package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"wg-quickns/hooks"
	"wg-quickns/internal/dns"
	"wg-quickns/internal/engine"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/journal"
	"wg-quickns/internal/kernel"
	"wg-quickns/internal/netns"
	"wg-quickns/internal/plan"
	"wg-quickns/internal/proc"
	"wg-quickns/internal/userspace"
	"wg-quickns/systemd"
)

// stateRoot is where locks and journals live. It is a tmpfs: a reboot clears it
// together with all that a journal speaks of.
const stateRoot = journal.Root("/run/wg-quickns")

// Environment that tells a hook where it runs, and this program that a hook started it.
const (
	envInterface = "WG_QUICKNS_INTERFACE"
	envPhase     = "WG_QUICKNS_PHASE"
	envPID       = "WG_QUICKNS_PID" // of the command that runs the hook
)

// session is one command's hold on one interface: its lock, its journal, its engine.
type session struct {
	app
	target
	place  place
	here   string // identity of the namespace the command was started in
	state  string // the journal's name
	lock   *journal.Lock
	log    *journal.Journal
	kernel *kernel.Doer
	doer   engine.Doer
	engine *engine.Engine
	device *facts.Device // as last gathered by up
	// retries is how often endpoints' names are looked up again.
	retries int
	// index is the interface's where it is there while a forecast says what it will have;
	// 0: it is the device's.
	index int
	// forecast is what the facts will be, for a plan that is only shown; nil: they are read.
	forecast *facts.Facts
	unnamed  bool // an interface that is to move waits for udev
}

// doers sends each step to the room that can do it.
type doers struct {
	kernel, dns, hooks engine.Doer
	services           engine.Doer // of systemd, and clients outside of it
	local              func(plan.NS) plan.NS
	tunnels            func(plan.NS) ([]string, error) // the others that are in a namespace
	place              *place
}

func (d doers) pick(s plan.Step) engine.Doer {
	switch s.Kind() {
	case plan.KindHook:
		return d.hooks
	case plan.KindDNS, plan.KindResolv:
		return d.dns
	case plan.KindService, plan.KindConfine, plan.KindViews, plan.KindClient:
		return d.services
	}
	return d.kernel
}

func (d doers) Exists(ctx context.Context, ns plan.NS, s plan.Step) (bool, error) {
	return d.pick(s).Exists(ctx, d.local(ns), d.place.relocated(s))
}

func (d doers) Do(ctx context.Context, ns plan.NS, s plan.Step) (plan.Outcome, error) {
	if made, ok := s.(plan.Netns); ok && made.Delete {
		names, err := d.tunnels(plan.Named(made.Name))
		if err == nil && len(names) > 0 {
			err = fmt.Errorf("network namespace %s is left: there is still %s in it", made.Name, strings.Join(names, ", "))
		}
		if err != nil {
			return plan.Outcome{}, &plan.StepError{Step: s, Err: err}
		}
	}
	if r, ok := s.(plan.Resolv); ok && r.InPlace && r.Delete && d.place.lost {
		// The file is reached by that process only, whose number may be another's.
		if err := os.Remove(r.Claims); err != nil && r.Claims != "" && !errors.Is(err, fs.ErrNotExist) {
			return plan.Outcome{}, &plan.StepError{Step: s, Err: err}
		}
		return plan.Outcome{}, nil
	}
	return d.pick(s).Do(ctx, d.local(ns), d.place.relocated(s))
}

// begin takes the lock of an interface's journal, reads it and forgets one that is
// of another time. p is where the config puts the tunnel; nil: where the journal has it.
func (a app) begin(ctx context.Context, t target, p *place) (_ *session, err error) {
	s := &session{app: a, target: t}
	here, err := netns.Identify("")
	if err != nil {
		return nil, err
	}
	s.here = here.String()
	if s.state, err = findState(t, here); err != nil {
		return nil, err
	}
	s.kernel = kernel.New(kernel.Options{
		Userspace: a.startUserspace, Warn: func(text string) { a.say("%s", text) },
	})
	defer func() {
		if err != nil {
			s.end()
		}
	}()
	hook := hooks.Doer{Argv0: a.args[0]}
	if t.cfg != nil {
		hook.WGConfig = strings.TrimSuffix(string(t.cfg.Strip()), "\n")
	}
	s.doer = inject(doers{s.kernel, dns.Doer{}, hook, systemd.Doer{Warn: s.warn}, s.local, s.tunnels, &s.place})
	// A hook's own `save` runs under the lock of the command that runs the hook.
	if !insideHook(t.name) {
		if s.lock, err = stateRoot.Lock(ctx, s.state); err != nil {
			return nil, err
		}
	}
	if s.log, err = stateRoot.Open(s.state); err != nil {
		return nil, err
	}
	s.engine = &engine.Engine{
		Doer: s.doer, Journal: s.log, Root: stateRoot, Trace: a.trace, Others: s.others, After: s.postDown,
		Gone: s.gone,
	}
	if err := s.forgetStale(ctx); err != nil {
		return nil, err
	}
	if _, ok := s.log.Header(); ok {
		s.place, err = recordedPlace(s.log)
	} else if p != nil {
		s.place = *p
	}
	a.out.set(fieldNamespace, display(s.place.Target))
	return s, err
}

// hold begins a command on one tunnel: as root, and with the file as it is under the
// tunnel's lock, as whoever had the lock may have written it. begin reads the file and
// takes the lock; it is called again where the file is another one by then.
func (a app) hold(arg string, begin func() (*session, error)) (*session, error) {
	if err := a.becomeRoot(); err != nil {
		return nil, err
	}
	for {
		s, err := begin()
		if err != nil || a.reread(arg, s.target) {
			return s, err
		}
		s.end()
	}
}

// holdWhole is hold for a command that needs all of the file, what the environment says
// of endpoints' names, and where the file puts the tunnel.
func (a app) holdWhole(ctx context.Context, command, arg string) (s *session, p place, err error) {
	s, err = a.hold(arg, func() (*session, error) {
		t, err := a.parse(arg)
		if err != nil {
			return nil, err
		}
		if err := outside(command, t.name); err != nil {
			return nil, err
		}
		retries, err := dns.ParseRetries(os.LookupEnv("WG_ENDPOINT_RESOLUTION_RETRIES"))
		if err != nil {
			return nil, err
		}
		if p, err = findPlace(ctx, t.path, t.cfg); err != nil {
			return nil, err
		}
		s, err := a.begin(ctx, t, &p)
		if err == nil {
			s.retries = retries
		}
		return s, err
	})
	return s, p, err
}

// outside refuses a command that waits for the end of the hook that called it.
func outside(command, name string) error {
	if insideHook(name) {
		return fmt.Errorf("%s was called by a hook of `%s' itself", command, name)
	}
	return nil
}

// beginOwn is begin for the commands that act on what is there.
func (a app) beginOwn(ctx context.Context, t target) (*session, error) {
	var p place
	var lost error
	if t.cfg != nil {
		p, lost = findPlace(ctx, t.path, t.cfg)
	}
	s, err := a.begin(ctx, t, &p)
	if err == nil && lost != nil && s.log.State() == journal.Empty {
		s.end()
		return nil, lost
	}
	return s, err
}

// local is a namespace as the rooms take it: "" for the caller's own, by whatever name.
func (s *session) local(ns plan.NS) plan.NS { return localNS(s.place.at(ns), s.here) }

func localNS(ns plan.NS, here string) plan.NS {
	if ns == "" {
		return "" // asked for each step: a look would cost a thread
	}
	if id, err := netns.Identify(string(ns)); err == nil && id.String() == here {
		return ""
	}
	return ns
}

// end gives everything back; what it cannot close ends with the process.
func (s *session) end() {
	s.kernel.Close()
	if s.lock != nil {
		s.lock.Close()
	}
}

// startUserspace serves the interface where the kernel has no WireGuard.
func (a app) startUserspace(ctx context.Context, ns plan.NS, name string) (program string, err error) {
	a.warn("[!] Missing WireGuard kernel module. Falling back to slow userspace implementation.")
	err = netns.Do(string(ns), func() error {
		program, err = userspace.Start(ctx, name, userspace.Options{
			Program: os.Getenv("WG_QUICK_USERSPACE_IMPLEMENTATION"),
			Log:     a.warn,
		})
		return err
	})
	return program, err
}

// forgetStale drops a journal of another boot or of a namespace that is no more:
// what it made went with those. Only resolvconf's records may have stayed.
func (s *session) forgetStale(ctx context.Context) error {
	h, ok := s.log.Header()
	if !ok {
		return nil
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	if h.Boot == boot && (h.Target != "" || h.Netns == s.here) {
		return nil
	}
	for _, e := range s.log.Pending() {
		for _, undo := range e.Undo {
			if undo.Kind() == plan.KindDNS && h.Boot == boot {
				if _, err := s.doer.Do(ctx, e.NS, undo); err != nil {
					return fmt.Errorf("take back the DNS of a namespace that is gone: %w", err)
				}
			}
		}
	}
	return s.log.Remove()
}

// otherLogs are the journals of all tunnels but this one.
func (s *session) otherLogs() ([]*journal.Journal, error) {
	names, err := stateRoot.Names()
	if err != nil {
		return nil, err
	}
	var logs []*journal.Journal
	for _, name := range names {
		if name == s.state {
			continue
		}
		log, err := stateRoot.Open(name)
		if err != nil {
			return nil, err
		}
		logs = append(logs, log)
	}
	return logs, nil
}

// tunnels lists the interfaces of other journals that a namespace is the home or the birthplace of.
func (s *session) tunnels(ns plan.NS) ([]string, error) {
	logs, err := s.otherLogs()
	if err != nil {
		return nil, err
	}
	var id string // it may go by another name there
	if now, err := netns.Identify(string(ns)); err == nil {
		id = now.String()
	}
	var in []string
	for _, log := range logs {
		h, _ := log.Header()
		spaces := recordedSpaces(log)
		is := func(path string) bool { return path == string(ns) || id != "" && spaces[plan.NS(path)] == id }
		if is(h.Target) || is(h.Birth) {
			in = append(in, h.Interface)
		}
	}
	return in, nil
}

// madeByOthers lists the namespaces of the config that other tunnels made and have yet to delete.
func (s *session) madeByOthers() (list []plan.Netns, err error) {
	named := func(ns plan.NS) bool { _, ok := ns.Name(); return ok && s.place.spaces[ns] != "" }
	if s.cfg.ForeignNamespaces || !named(s.place.Target) && !named(s.place.Birth) {
		return nil, nil
	}
	steps, err := s.others()
	for _, step := range steps {
		made, ok := step.(plan.Netns)
		if ok && made.ID != "" && s.place.spaces[plan.Named(made.Name)] == made.ID && !slices.Contains(list, made) {
			list = append(list, made)
		}
	}
	return list, err
}

// others lists the undo steps pending in the journals of this namespace's other tunnels,
// and the namespaces that those of all others have yet to delete.
func (s *session) others() ([]plan.Step, error) {
	logs, err := s.otherLogs()
	if err != nil {
		return nil, err
	}
	// One that a journal is yet to make is no other's.
	target := func(log *journal.Journal) (id string) {
		h, _ := log.Header()
		return recordedSpaces(log)[plan.NS(h.Target)]
	}
	mine := target(s.log)
	var steps []plan.Step
	for _, log := range logs {
		beside := mine != "" && target(log) == mine
		for _, e := range log.Pending() {
			if beside || e.Do.Kind() == plan.KindNetns {
				steps = append(steps, e.Undo...)
			}
		}
	}
	return steps, nil
}

// header is the journal's first record for this config.
func (s *session) header() (journal.Begin, error) {
	boot, err := bootID()
	if err != nil {
		return journal.Begin{}, err
	}
	vars, arrays := s.shellVariables()
	spaces := make(map[string]string, len(s.place.spaces))
	for ns, id := range s.place.spaces {
		spaces[string(ns)] = id
	}
	return journal.Begin{
		Version: programVersion(), Boot: boot, Netns: s.here, Since: time.Now().UTC().Truncate(time.Second),
		Interface: s.name, ConfigFile: s.path, Strategy: s.cfg.Strategy(),
		PreDown: s.cfg.PreDown, PostDown: s.cfg.PostDown, PhysicalDown: s.cfg.PhysicalDown,
		Vars: vars, Arrays: arrays, SaveConfig: s.cfg.SaveConfig,
		Target: string(s.place.Target), Birth: string(s.place.Birth), Hooks: string(s.place.Hooks), Spaces: spaces,
		Namespace: s.cfg.Namespace.String(), BirthNamespace: s.cfg.BirthNamespace.String(),
		PhysicalInterfaces: s.cfg.PhysicalInterfaces, PhysicalServices: s.cfg.PhysicalServices,
		Names: endpointNames(&s.cfg.Device),
	}, nil
}

// shellVariables are wg-quick's own variables, which a hook may read.
func (s *session) shellVariables() (map[string]string, map[string][]string) {
	c := s.cfg
	addresses := make([]string, len(c.Addresses))
	for i, a := range c.Addresses {
		addresses[i] = a.Text
	}
	save := "0"
	if c.SaveConfig {
		save = "1"
	}
	vars := map[string]string{
		"INTERFACE": s.name, "CONFIG_FILE": s.path, "TABLE": c.Table, "MTU": c.MTUText, "SAVE_CONFIG": save,
	}
	arrays := map[string][]string{
		"ARGS": s.args[1:], "ADDRESSES": addresses, "DNS": c.DNS, "DNS_SEARCH": c.DNSSearch,
		"PRE_UP": c.PreUp, "POST_UP": c.PostUp, "PRE_DOWN": c.PreDown, "POST_DOWN": c.PostDown,
	}
	return vars, arrays
}

// hookSteps makes the steps of one phase's commands; `%i` becomes the interface's name.
func (s *session) hookSteps(phase string, commands []string, vars map[string]string, arrays map[string][]string) []plan.Hook {
	env := map[string]string{
		envInterface: s.name, envPhase: phase, envPID: strconv.Itoa(os.Getpid()),
		"WG_QUICKNS_NAMESPACE": display(s.place.Target), "WG_QUICKNS_BIRTH_NAMESPACE": display(s.place.Birth),
		"WG_QUICKNS_STRATEGY": s.strategy(),
	}
	steps := make([]plan.Hook, len(commands))
	for i, c := range commands {
		steps[i] = plan.Hook{
			Command: strings.ReplaceAll(c, "%i", s.name), Phase: phase, Vars: vars, Arrays: arrays, Env: env,
		}
	}
	return steps
}

// strategy is the routing strategy by its name: the record's where there is one.
func (s *session) strategy() string {
	if h, ok := s.log.Header(); ok {
		return h.Strategy
	}
	return s.cfg.Strategy()
}

// display is a namespace as a hook is told it: its name where it has one, else
// its path; "" is the caller's.
func display(ns plan.NS) string {
	name, _ := ns.Name()
	return name
}

// downHooks are the hooks of a phase of `down`: the file's where it parses, else the record's.
func (s *session) downHooks(phase string) []plan.Hook {
	head, _ := s.log.Header()
	vars, arrays := head.Vars, head.Arrays
	commands := map[string][]string{"PreDown": head.PreDown, "PostDown": head.PostDown, "PhysicalDown": head.PhysicalDown}
	if s.cfg != nil {
		commands = map[string][]string{"PreDown": s.cfg.PreDown, "PostDown": s.cfg.PostDown, "PhysicalDown": s.cfg.PhysicalDown}
		vars, arrays = s.shellVariables()
	}
	return s.hookSteps(phase, commands[phase], vars, arrays)
}

// run runs hooks outside of a plan: those of `down`, which have no undo.
func (s *session) run(ctx context.Context, ns plan.NS, steps []plan.Hook) error {
	for _, h := range steps {
		s.trace([]string{h.Command})
		if _, err := s.doer.Do(ctx, ns, h); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) postDown(ctx context.Context) error {
	steps := s.downHooks("PostDown")
	if len(steps) > 0 && s.gone(s.place.Hooks) {
		s.say("PostDown does not run: its namespace is gone")
		return nil
	}
	return s.run(ctx, s.place.Hooks, steps)
}

// insideHook says whether a hook of this interface called, so that waiting for
// the lock would never end. What a hook left running has its environment too, but
// is no descendant of the command any more.
func insideHook(name string) bool {
	caller, err := strconv.Atoi(os.Getenv(envPID))
	if err != nil || os.Getenv(envInterface) != name {
		return false
	}
	for pid := os.Getppid(); pid > 1; pid = proc.Parent(pid) {
		if pid == caller {
			return true
		}
	}
	return false
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// isWireGuard says whether an interface is one of WireGuard's, the kernel's or a program's.
func (s *session) isWireGuard() (bool, error) {
	names, err := s.kernel.WireGuards(s.place.Target)
	if err != nil {
		return false, err
	}
	for _, n := range names {
		if n == s.name {
			return true, nil
		}
	}
	return false, nil
}

func (s *session) notWireGuard() error {
	return message(fmt.Sprintf("`%s' is not a WireGuard interface", s.name))
}
