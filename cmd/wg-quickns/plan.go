package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"wg-quickns/internal/journal"
	"wg-quickns/internal/kernel"
	"wg-quickns/internal/netns"
	"wg-quickns/internal/plan"
	"wg-quickns/strategies"
)

const planUsage = "usage: plan up|down [--json] INTERFACE"

// planned is one action as `plan --json` prints it.
type planned struct {
	Kind     string   `json:"kind"`
	Commands []string `json:"commands"`
	Undo     []string `json:"undo"`
	Reason   string   `json:"reason,omitempty"`
}

// planCommand shows what up or down would do. Nothing is touched.
func (a app) planCommand(ctx context.Context, args []string) error {
	asJSON, rest := false, []string(nil)
	for _, arg := range args {
		switch {
		case arg == "--json":
			asJSON = true
		case strings.HasPrefix(arg, "-"):
			return fmt.Errorf("`%s' is not understood; %s", arg, planUsage)
		default:
			rest = append(rest, arg)
		}
	}
	if len(rest) != 2 || rest[0] != "up" && rest[0] != "down" {
		return errors.New(planUsage)
	}
	if rest[0] == "down" {
		list, err := a.planDown(rest[1])
		if err != nil {
			return a.unlessHidden(err)
		}
		return show(os.Stdout, list, asJSON)
	}
	actions, err := a.planUp(ctx, rest[1])
	if err != nil {
		return a.unlessHidden(err)
	}
	list := make([]planned, 0, len(actions))
	for _, act := range actions {
		p := planned{Kind: act.Do.Kind(), Commands: append([]string{}, plan.Trace(act.NS, act.Do)...), Undo: []string{}, Reason: act.Why}
		for _, undo := range act.Undo {
			p.Undo = append(p.Undo, plan.Trace(act.NS, undo)...)
		}
		list = append(list, p)
	}
	return show(os.Stdout, list, asJSON)
}

// unlessHidden is an error, unless it is that the calling user may not look: root may.
func (a app) unlessHidden(err error) error {
	var missing *errNoConfig
	if errors.Is(err, fs.ErrPermission) || errors.As(err, &missing) {
		return a.asRoot(err)
	}
	return err
}

// planUp plans as up does, on a forecast of the facts instead of the facts.
func (a app) planUp(ctx context.Context, arg string) ([]plan.Action, error) {
	t, err := a.parse(arg)
	if err != nil {
		return nil, err
	}
	p, err := findPlace(ctx, t.path, t.cfg)
	if err != nil {
		return nil, err
	}
	here, err := netns.Identify("")
	if err != nil {
		return nil, err
	}
	s := &session{app: a, target: t, place: p, here: here.String(), log: new(journal.Journal)}
	s.kernel = kernel.New(kernel.Options{})
	defer s.kernel.Close()
	if p.missing(p.Target) {
		s.forecast = strategies.Empty()
	} else {
		s.forecast, err = s.kernel.Gather(ctx, s.local(p.Target), t.name, kernel.Asked{Ways: strategies.NeedsWays(t.cfg), Absent: true})
		if err != nil {
			return nil, err
		}
	}
	for _, l := range s.forecast.Links {
		if l.Name == t.name {
			return nil, message(fmt.Sprintf("`%s' already exists", t.name))
		}
	}
	s.device = &s.forecast.Device
	vars, arrays := s.shellVariables()
	var all []plan.Action
	for _, stage := range s.stages(journal.Begin{Vars: vars, Arrays: arrays}) {
		actions, err := stage.Plan(ctx)
		if err != nil {
			return nil, err
		}
		strategies.Forecast(s.forecast, actions)
		all = append(all, actions...)
	}
	return all, nil
}

// forecastBirth is where there is by now what the tunnel's socket will have: what
// `physical-netns' moves to a namespace that is yet to be made is still at home.
func (s *session) forecastBirth() plan.NS {
	if s.isPhysical() && s.place.spaces[s.place.Birth] == "" {
		return s.place.Target
	}
	return s.place.Birth
}

// forecastMTU fills in the MTU of the ways to the endpoints, as far as they are there.
func (s *session) forecastMTU(ctx context.Context) error {
	f := s.forecast
	birth := s.forecastBirth()
	if s.place.Elsewhere() {
		f.DefaultMTU = 0
	}
	if s.log.State() == journal.Complete && !s.place.Elsewhere() { // it is up, and the kernel would say its own
		f.PathMTU, f.DefaultMTU = strategies.PathMTU(f)
		return nil
	}
	if s.place.spaces[birth] == "" { // it is yet to be made
		return nil
	}
	var err error
	f.PathMTU, err = s.kernel.PathMTU(ctx, s.local(birth), endpoints(f))
	return err
}

// planDown lists what down would undo, from the record of up.
func (a app) planDown(arg string) ([]planned, error) {
	t, configErr := a.parseOwn(arg)
	if t.name == "" {
		return nil, configErr
	}
	here, err := netns.Identify("")
	if err != nil {
		return nil, err
	}
	name, err := findState(t, here)
	if err == nil {
		var log *journal.Journal
		if log, err = stateRoot.Open(name); err == nil {
			return a.pending(t, log)
		}
	}
	return nil, err
}

func (a app) pending(t target, log *journal.Journal) ([]planned, error) {
	head, ok := log.Header()
	if !ok {
		return nil, fmt.Errorf("`%s' has no record of %s: down would take it down as wg-quick's", t.name, a.program)
	}
	pre, post, physical := head.PreDown, head.PostDown, head.PhysicalDown
	if t.cfg != nil {
		pre, post, physical = t.cfg.PreDown, t.cfg.PostDown, t.cfg.PhysicalDown
	}
	hooks := func(phase string, commands []string) []planned {
		var list []planned
		for _, c := range commands {
			list = append(list, planned{Kind: plan.KindHook, Commands: []string{strings.ReplaceAll(c, "%i", t.name)},
				Undo: []string{}, Reason: phase + " of the config"})
		}
		return list
	}
	var list []planned
	if log.State() == journal.Complete {
		list = append(hooks("PreDown", pre), hooks("PhysicalDown", physical)...)
	}
	entries := log.Pending()
	actions := make([]plan.Action, len(entries))
	for i, e := range entries {
		actions[i] = plan.Action{NS: e.NS, Undo: e.Undo}
	}
	after := hooks("PostDown", post)
	for _, u := range plan.UndoOrder(actions, false) {
		if u.Step.Kind() == plan.KindNetns {
			list, after = append(list, after...), nil
		}
		list = append(list, planned{Kind: u.Step.Kind(), Commands: plan.Trace(u.NS, u.Step), Undo: []string{}})
	}
	return append(list, after...), nil
}

// show prints a plan: commands, and behind each what would undo it and why it is there.
func show(w io.Writer, list []planned, asJSON bool) error {
	if asJSON {
		return printJSON(w, list)
	}
	var b strings.Builder
	for _, p := range list {
		for _, c := range p.Commands {
			fmt.Fprintln(&b, c)
		}
		if p.Reason != "" {
			fmt.Fprintln(&b, "    # "+p.Reason)
		}
		for _, u := range p.Undo {
			fmt.Fprintln(&b, "    undo: "+u)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
