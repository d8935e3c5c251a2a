package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"wg-quickns/internal/facts"
	"wg-quickns/internal/journal"
	"wg-quickns/internal/kernel"
	"wg-quickns/internal/netns"
	"wg-quickns/internal/plan"
	"wg-quickns/strategies"
)

const statusUsage = "usage: status [--json] [INTERFACE]"

// tunnelStatus is one tunnel as `status --json` prints it. No key is in it.
type tunnelStatus struct {
	Interface string `json:"interface"`
	// Namespace and Birth are a name, what the config has, a path, "init", or "" for the caller's own.
	Namespace string       `json:"namespace"`
	Birth     string       `json:"birthNamespace"`
	Config    string       `json:"config,omitempty"` // the file that it was made from
	Since     *time.Time   `json:"since,omitempty"`  // when up began
	State     string       `json:"state"`            // up, half, gone, or foreign: without a record
	Strategy  string       `json:"strategy,omitempty"`
	Guard     bool         `json:"guard"`
	Shut      bool         `json:"killSwitch"`
	Port      int          `json:"listenPort,omitempty"`
	FwMark    uint32       `json:"fwmark,omitempty"`
	Peers     []peerStatus `json:"peers"`
	Problems  []problem    `json:"problems"`
}

// problem is something broken, and since when that is known.
type problem struct {
	Text  string    `json:"problem"`
	Since time.Time `json:"since"`
}

// Problems of tunnels that are not up.
const (
	problemHalf      = "a command did not finish (hint: down)"
	problemLink      = "its interface is gone (hint: down)"
	problemNamespace = "its network namespace is gone (hint: down)"
)

type peerStatus struct {
	Endpoint   string     `json:"endpoint,omitempty"`
	Handshake  *time.Time `json:"latestHandshake,omitempty"`
	Age        *int64     `json:"handshakeAge,omitempty"` // seconds
	Received   int64      `json:"received"`               // bytes
	Sent       int64      `json:"sent"`                   // bytes
	Keepalive  int        `json:"persistentKeepalive,omitempty"`
	AllowedIPs []string   `json:"allowedIPs"`
}

// Exit statuses of status, of which the last two are those of LSB init scripts
// and systemctl(1).
const (
	statusNotUp    = 3
	statusDegraded = 4
)

// How often, and after which time, all is looked at again when a look failed.
const (
	looks     = 5
	lookPause = 50 * time.Millisecond
)

// statusError is what status found, as an exit status; it was printed already.
type statusError int

func (e statusError) Error() string { return "" }

// statusCommand shows the tunnels of all namespaces, or one interface's.
func (a app) statusCommand(ctx context.Context, args []string) error {
	asJSON, only := false, ""
	for _, arg := range args {
		switch {
		case arg == "--json":
			asJSON = true
		case only == "" && !strings.HasPrefix(arg, "-"):
			only = strings.TrimSuffix(filepath.Base(arg), ".conf")
		default:
			return fmt.Errorf("`%s' is not understood; %s", arg, statusUsage)
		}
	}
	if err := a.becomeRoot(); err != nil {
		return err
	}
	now := time.Now()
	list, err := a.tunnels(ctx, only, now)
	// What goes away between two looks is missing in the second.
	for try := 1; err != nil && try < looks; try++ {
		time.Sleep(lookPause)
		list, err = a.tunnels(ctx, only, now)
	}
	if err != nil {
		return err
	}
	if asJSON {
		err = printJSON(os.Stdout, list)
	} else if len(list) > 0 {
		err = table(os.Stdout, list, now)
	}
	switch {
	case err != nil:
		return err
	case len(list) == 0 && only != "":
		a.say("`%s' is not up", only)
		return statusError(statusNotUp)
	case len(list) == 0:
		a.say("no tunnel is up")
	case slices.ContainsFunc(list, func(t tunnelStatus) bool { return len(t.Problems) > 0 }):
		return statusError(statusDegraded)
	}
	return nil
}

// tunnels collects what the records and the kernel know, by interface and namespace.
func (a app) tunnels(ctx context.Context, only string, now time.Time) ([]tunnelStatus, error) {
	list := []tunnelStatus{}
	seen := make(map[string]bool) // interface and identity of its namespace
	names, err := stateRoot.Names()
	if err != nil {
		return nil, err
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		log, err := stateRoot.Open(name)
		if err != nil {
			return nil, err
		}
		h, ok := log.Header()
		if !ok || h.Boot != boot || only != "" && h.Interface != only {
			continue
		}
		t, id, err := a.recordStatus(ctx, name, log, now)
		if err != nil {
			return nil, err
		}
		seen[t.Interface+"@"+id] = true
		list = append(list, t)
	}
	doer := kernel.New(kernel.Options{})
	defer doer.Close()
	files, err := filepath.Glob("/run/netns/*")
	if err != nil {
		return nil, err
	}
	done := make(map[string]bool)
	for _, ns := range append([]string{"", string(initNS)}, files...) {
		id, err := netns.Identify(ns)
		if err != nil || done[id.String()] { // a leftover file is no namespace
			continue
		}
		done[id.String()] = true
		links, err := doer.WireGuards(plan.NS(ns))
		if err != nil {
			return nil, err
		}
		for _, link := range links {
			if seen[link+"@"+id.String()] || only != "" && link != only {
				continue
			}
			t := tunnelStatus{Interface: link, Namespace: display(plan.NS(ns)), State: "foreign", Problems: []problem{}}
			if err := t.device(ctx, doer, plan.NS(ns), now); err != nil {
				return nil, err
			}
			list = append(list, t)
		}
	}
	slices.SortFunc(list, func(a, b tunnelStatus) int {
		return cmp.Or(cmp.Compare(a.Interface, b.Interface), cmp.Compare(a.Namespace, b.Namespace))
	})
	return list, nil
}

// recordStatus is the status of a tunnel that has a record, and the identity of
// its namespace.
func (a app) recordStatus(ctx context.Context, name string, log *journal.Journal, now time.Time) (tunnelStatus, string, error) {
	h, _ := log.Header()
	t := tunnelStatus{
		Interface: h.Interface, Config: h.ConfigFile, Strategy: h.Strategy, Namespace: shown(plan.NS(h.Target), h.Namespace),
		Birth: shown(plan.NS(h.Birth), h.BirthNamespace), Since: &h.Since, Problems: []problem{}, Peers: []peerStatus{},
	}
	p, err := recordedPlace(log)
	if err != nil {
		return t, "", err
	}
	here, err := netns.Identify("")
	if err != nil {
		return t, "", err
	}
	if p.Target == "" && h.Netns != here.String() { // made in a namespace that this is not
		at, err := netns.Locate(h.Netns)
		if err != nil {
			return t, "", err
		}
		if at == "" {
			t.State = "gone"
			return t, h.Netns, t.seen(log, now, problemNamespace)
		}
		p.Target, t.Namespace = plan.NS(at), display(plan.NS(at))
	}
	if t.Guard, err = stateRoot.Guarded(name); err != nil {
		return t, "", err
	}
	if p.gone(p.Target) {
		t.State = "gone"
		return t, "", t.seen(log, now, problemNamespace)
	}
	id, err := netns.Identify(string(p.Target))
	if err != nil {
		return t, "", err
	}
	s := &session{app: a, target: target{name: h.Interface, path: h.ConfigFile}, place: p, here: here.String(), state: name, log: log}
	s.kernel = kernel.New(kernel.Options{})
	defer s.kernel.Close()
	standing, err := log.Standing()
	if err != nil {
		return t, "", err
	}
	t.Shut = hasKillSwitch(standing)
	link, found, err := s.kernel.Link(s.local(p.Target), h.Interface)
	switch {
	case err != nil:
		return t, "", err
	case log.State() != journal.Complete:
		t.State = "half"
		if err := t.seen(log, now, problemHalf); err != nil {
			return t, "", err
		}
	case !found || !s.recorded(link.Index):
		t.State = "gone"
		return t, id.String(), t.seen(log, now, problemLink)
	default:
		t.State = "up"
		wrong, err := s.problems(ctx)
		if err == nil {
			err = t.seen(log, now, wrong...)
		}
		if err != nil {
			return t, "", err
		}
	}
	if found {
		err = t.device(ctx, s.kernel, s.local(p.Target), now)
	}
	return t, id.String(), err
}

// shown is a namespace for people: its name, else what the config calls it, such as
// podman:web, and not the path of a process.
func shown(ns plan.NS, config string) string {
	if _, ok := ns.Name(); ok || config == "" {
		return display(ns)
	}
	return config
}

// seen adds problems, with the time when each was first noted by status or by the guard.
func (t *tunnelStatus) seen(log *journal.Journal, now time.Time, wrong ...string) error {
	since, err := log.Seen(wrong, now)
	for _, text := range wrong {
		t.Problems = append(t.Problems, problem{text, since[text]})
	}
	return err
}

// problems lists what is not as up made it.
func (s *session) problems(ctx context.Context) ([]string, error) {
	rep, entries, _, err := s.broken(ctx)
	if err != nil {
		return nil, err
	}
	var wrong []string
	var all, namesakes []facts.Interface
	if s.place.Bare {
		if all, namesakes, err = s.atHome(ctx); err != nil {
			return nil, err
		}
		back, err := s.returned(ctx, all, entries)
		if err != nil { // of one interface; what else is broken is said too
			wrong = append(wrong, firstLine(err.Error()))
		}
		rep.Again = append(rep.Again, back...)
	}
	lost, err := s.lost(ctx, entries, rep.Again)
	if err != nil {
		return nil, err
	}
	for _, name := range lost {
		wrong = append(wrong, "interface "+name+" is gone (hint: was it pulled out?)")
	}
	if s.place.Bare {
		wrong = append(wrong, strategies.Stuck(s.movesWhat(), all, s.named)...)
		for _, l := range s.fresh(all, rep.Again) {
			wrong = append(wrong, "interface "+l.Name+" is not moved, and may be a way out past the tunnel (hint: guard moves it, or says why not)")
		}
		for _, l := range namesakes {
			wrong = append(wrong, "interface "+l.Name+" has the name of one that is away (hint: guard keeps it down; rename it, or pull it out)")
		}
	}
	add := func(text string, ns plan.NS, do plan.Step) {
		c := plan.Trace(ns, do)
		if len(c) > 1 {
			c[0] = fmt.Sprintf("%s and %d more", c[0], len(c)-1)
		}
		wrong = append(wrong, text+": "+c[0])
	}
	for _, again := range rep.Again {
		if m, ok := again.Do.(plan.Move); ok {
			for _, l := range m.Links {
				wrong = append(wrong, "interface "+l.Name+" is at home again (hint: guard moves it)")
			}
		}
		if plan.Physical(again.Do) {
			continue
		}
		if k := again.Do.Kind(); k == plan.KindNft || shut(again.Do) { // the kernel alone can tell
			there, err := s.kernel.Exists(ctx, s.local(again.NS), again.Do)
			if err != nil {
				return nil, err
			}
			if there {
				continue
			}
		}
		add("missing", again.NS, again.Do)
	}
	for _, fresh := range rep.New {
		add("needed now", fresh.NS, fresh.Do)
	}
	return wrong, nil
}

// device fills in what WireGuard says.
func (t *tunnelStatus) device(ctx context.Context, d *kernel.Doer, ns plan.NS, now time.Time) error {
	f, err := d.GatherLink(ctx, ns, t.Interface, kernel.Asked{})
	if err != nil {
		return err
	}
	t.Port, t.FwMark = f.Device.ListenPort, f.Device.FwMark
	peers, err := d.Peers(ctx, ns, t.Interface)
	if err != nil {
		return err
	}
	t.Peers = make([]peerStatus, 0, len(peers))
	for _, p := range peers {
		out := peerStatus{Received: p.Received, Sent: p.Sent, Keepalive: int(p.Keepalive / time.Second), AllowedIPs: []string{}}
		if p.Endpoint.IsValid() {
			out.Endpoint = p.Endpoint.String()
		}
		if !p.Handshake.IsZero() {
			at, age := p.Handshake.UTC().Truncate(time.Second), int64(now.Sub(p.Handshake)/time.Second)
			out.Handshake, out.Age = &at, &age
		}
		for _, a := range p.AllowedIPs {
			out.AllowedIPs = append(out.AllowedIPs, a.String())
		}
		last := p.Handshake
		if t.Since != nil && last.Before(*t.Since) {
			last = *t.Since // it is not late yet
		}
		if p.Keepalive > 0 && p.Endpoint.IsValid() && now.Sub(last) > staleHandshake && t.State == "up" {
			t.Problems = append(t.Problems, problem{fmt.Sprintf("no answer from %s", p.Endpoint), last.UTC().Truncate(time.Second)})
		}
		t.Peers = append(t.Peers, out)
	}
	return nil
}

// staleHandshake is when a peer that is kept alive must have answered again:
// WireGuard drops a session after REJECT_AFTER_TIME, 180 s.
const staleHandshake = 3 * time.Minute

// table prints tunnels for people: a line for each peer, and what is broken below.
func table(w io.Writer, list []tunnelStatus, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "INTERFACE\tNAMESPACE\tSTATE\tSTRATEGY\tENDPOINT\tHANDSHAKE\tRECEIVED\tSENT")
	for _, s := range list {
		state := s.State
		if len(s.Problems) > 0 && state == "up" {
			state = "degraded"
		}
		if s.Shut {
			state += ", kill switch"
		}
		if s.Guard {
			state += ", guarded"
		}
		where := cmp.Or(s.Namespace, "-")
		if s.Birth != s.Namespace && s.State != "foreign" {
			where += " (born in " + cmp.Or(s.Birth, "the caller's") + ")"
		}
		head := []string{s.Interface, where, state, cmp.Or(s.Strategy, "-")}
		if len(s.Peers) == 0 {
			fmt.Fprintln(t, strings.Join(append(head, "-", "-", "-", "-"), "\t"))
		}
		for i, p := range s.Peers {
			if i > 0 {
				head = []string{"", "", "", ""}
			}
			fmt.Fprintln(t, strings.Join(append(slices.Clone(head), cmp.Or(p.Endpoint, "-"), age(p.Age), size(p.Received), size(p.Sent)), "\t"))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	var errs []error
	for _, s := range list {
		for _, p := range s.Problems {
			seconds := int64(now.Sub(p.Since) / time.Second)
			_, err := fmt.Fprintf(w, "%s: %s (since %s)\n", s.Interface, p.Text, age(&seconds))
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// age is how long ago a handshake was.
func age(seconds *int64) string {
	if seconds == nil {
		return "never"
	}
	d := time.Duration(*seconds) * time.Second
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	}
	return fmt.Sprintf("%d d ago", int(d.Hours()/24))
}

// size is a number of bytes in the units of wg(8).
func size(n int64) string {
	unit, value := "B", float64(n)
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if value < 1024 {
			break
		}
		unit, value = u, value/1024
	}
	if unit == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.2f %s", value, unit)
}
