package main

import (
	"context"
	"fmt"
	"net"
	"os"

	"wg-quickns/confparse"
	"wg-quickns/internal/dns"
	"wg-quickns/internal/engine"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/journal"
	"wg-quickns/internal/kernel"
	"wg-quickns/internal/plan"
	"wg-quickns/strategies"
)

// up makes the tunnel that the config describes, or nothing at all.
func (a app) up(ctx context.Context, arg string) error {
	if err := a.becomeRoot(); err != nil {
		return err
	}
	t, data, err := a.open(arg)
	if err != nil {
		return err
	}
	if t.cfg, err = confparse.Parse(t.path, data); err != nil {
		return err
	}
	names, err := kernel.TableNames()
	if err != nil {
		return err
	}
	if err := t.cfg.CheckTable(names); err != nil {
		return err
	}
	if insideHook(t.name) {
		return fmt.Errorf("up was called by a hook of `%s' itself", t.name)
	}
	retries, err := dns.ParseRetries(os.LookupEnv("WG_ENDPOINT_RESOLUTION_RETRIES"))
	if err != nil {
		return err
	}
	s, err := a.begin(ctx, t)
	if err != nil {
		return err
	}
	defer s.end()
	if err := s.clear(ctx); err != nil {
		return err
	}
	head, err := s.header()
	if err != nil {
		return err
	}
	if err := s.log.Begin(head); err != nil {
		return err
	}
	return s.engine.Up(ctx, s.stages(head, retries)...)
}

// clear finishes what an earlier run left, and refuses where the interface is there.
func (s *session) clear(ctx context.Context) error {
	_, found, err := s.kernel.Link("", s.name)
	if err != nil {
		return err
	}
	if state := s.log.State(); state != journal.Empty && !(found && state == journal.Complete) {
		s.say("cleaning up what an earlier run left of `%s'", s.name)
		if err := s.engine.Recover(ctx); err != nil {
			return err
		}
		if _, found, err = s.kernel.Link("", s.name); err != nil {
			return err
		}
	}
	if found {
		return message(fmt.Sprintf("`%s' already exists", s.name))
	}
	return nil
}

// stages is up, in wg-quick's order. Facts are gathered anew where a hook or the
// kernel may have changed them.
func (s *session) stages(head journal.Begin, retries int) []engine.Stage {
	hooks := func(phase string, commands []string) []plan.Action {
		return strategies.Hooks(s.hookSteps(phase, commands, head.Vars, head.Arrays))
	}
	return []engine.Stage{
		{Name: "device", Plan: func(context.Context) ([]plan.Action, error) {
			return append(strategies.Create(s.name), hooks("PreUp", s.cfg.PreUp)...), nil
		}},
		{Name: "configuration", Plan: func(ctx context.Context) ([]plan.Action, error) {
			for _, w := range s.cfg.Warnings {
				fmt.Fprintln(os.Stderr, w)
			}
			if err := s.resolve(ctx, retries); err != nil {
				return nil, err
			}
			return strategies.Configure(s.name, &s.cfg.Device), nil
		}},
		{Name: "addresses", Plan: func(ctx context.Context) ([]plan.Action, error) {
			f, err := s.gather(ctx, s.cfg.MTU == 0)
			if err != nil {
				return nil, err
			}
			var prefix string
			if len(s.cfg.DNS) > 0 {
				if prefix, err = dns.Prefix(); err != nil {
					return nil, err
				}
			}
			return strategies.Address(s.cfg, f, prefix), nil
		}},
		{Name: "routes", Global: true, Plan: func(ctx context.Context) ([]plan.Action, error) {
			if s.cfg.Table == "off" {
				return nil, nil
			}
			f, err := s.gather(ctx, false)
			if err != nil {
				return nil, err
			}
			return strategies.Routes(s.cfg, f)
		}},
		{Name: "PostUp", Plan: func(context.Context) ([]plan.Action, error) {
			return hooks("PostUp", s.cfg.PostUp), nil
		}},
	}
}

// resolve finds the addresses and ports of the config's names.
func (s *session) resolve(ctx context.Context, retries int) error {
	port := func(service string) (int, error) { return net.DefaultResolver.LookupPort(ctx, "udp", service) }
	if err := s.cfg.ResolveServices(port); err != nil {
		return err
	}
	return dns.Resolve(ctx, &s.cfg.Device, dns.Options{Retries: retries, Log: func(line string) {
		fmt.Fprintln(os.Stderr, line)
	}})
}

// gather reads the facts, and what other tunnels' journals will put back. Nothing
// configures the device after the first time.
func (s *session) gather(ctx context.Context, pathMTU bool) (*facts.Facts, error) {
	f, err := s.kernel.Gather(ctx, "", s.name, pathMTU, s.device)
	if err != nil {
		return nil, err
	}
	s.device = &f.Device
	steps, err := s.others()
	if err != nil {
		return nil, err
	}
	for _, step := range steps {
		if c, ok := step.(plan.Sysctl); ok && c.Name == strategies.SrcValidMark {
			f.SrcValidMarkHome = c.Value
		}
	}
	return f, nil
}
