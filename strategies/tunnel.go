// Package strategies plans: it turns a Config and Facts into steps. It is pure;
// the same input gives the same plan, with or without root.
package strategies

import (
	"net/netip"

	"wg-quickns/confparse"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

// Overhead is what WireGuard adds to a packet at most: 40 bytes of IPv6, 8 of
// UDP, 32 of its own header and tag. wg-quick takes it off the path's MTU.
const Overhead = 80

// fallbackMTU is the path's MTU where neither an endpoint nor a default route tells one.
const fallbackMTU = 1500

// Place says in which namespaces a tunnel is: where its interface lives, where
// its UDP socket is born, where its hooks run, and which of them must be made.
type Place struct {
	Target, Birth, Hooks plan.NS
	Make                 []string // names under /run/netns, in order
	Foreign              bool     // Target is not the caller's own namespace
	Bare                 bool     // the tunnel takes every other way out of Target away
}

// Elsewhere says whether the UDP socket is in another namespace than the
// interface, so that no route by the tunnel can catch its encrypted packets.
func (p Place) Elsewhere() bool { return p.Target != p.Birth }

// Namespaces plans those that are missing, and takes a share in those that other tunnels
// have yet to delete.
func Namespaces(p Place, others []plan.Netns) []plan.Action {
	var actions []plan.Action
	for _, made := range p.Make {
		actions = append(actions, plan.Action{
			Do:   plan.Netns{Name: made},
			Undo: []plan.Step{plan.Netns{Name: made, Delete: true}},
			Why:  "a namespace that the config names and that is not there",
		})
	}
	for _, made := range others {
		actions = append(actions, plan.Action{
			Do:   plan.Netns{Name: made.Name, Shared: true},
			Undo: []plan.Step{made},
			Why:  "another tunnel made it; it goes with the last that is in it",
		})
	}
	return actions
}

// Create plans the interface itself.
func Create(name string, p Place) []plan.Action {
	link := plan.Link{Name: name}
	if p.Elsewhere() {
		link.Birth = &p.Birth
	}
	return []plan.Action{{
		NS:   p.Target,
		Do:   link,
		Undo: []plan.Step{plan.Link{Name: name, Delete: true, Birth: link.Birth}}, // where a kill may have left it
		Why:  "the tunnel's interface",
	}}
}

// plain says whether a /0 is a default route like any. In the caller's own
// namespace it is not, wherever the socket is: there is a default route already,
// unless that is moved away.
func (p Place) plain() bool { return p.Elsewhere() && (p.Foreign || p.Bare) }

// in puts actions into a namespace.
func in(ns plan.NS, actions []plan.Action) []plan.Action {
	for i := range actions {
		actions[i].NS = ns
	}
	return actions
}

// Configure plans wg's part of the config. The device's endpoints must be resolved.
func Configure(name string, d *confparse.Device, p Place) []plan.Action {
	return []plan.Action{{
		NS:  p.Target,
		Do:  plan.WG{Link: name, Device: d},
		Why: "keys, port and peers, added to what a PreUp may have set",
	}}
}

// Hooks plans the commands of one phase, `%i` replaced as wg-quick does.
func Hooks(hooks []plan.Hook, p Place) []plan.Action {
	actions := make([]plan.Action, len(hooks))
	for i, h := range hooks {
		actions[i] = plan.Action{NS: p.Hooks, Do: h, Why: h.Phase + " of the config"}
	}
	return actions
}

// Address plans addresses, and MTU and the link going up.
func Address(cfg *confparse.Config, f *facts.Facts, p Place) []plan.Action {
	var actions []plan.Action
	name := f.Device.Name
	swallowing := make(map[netip.Prefix]bool)
	if !p.Elsewhere() && (cfg.Strategy() == confparse.StrategyAuto || cfg.Strategy() == confparse.StrategyRules) {
		for _, s := range swallowed(cfg, f) { // they get another route
			swallowing[s] = true
		}
	}
	for _, a := range cfg.Addresses {
		step := plan.Addr{
			Link:          name,
			NoPrefixRoute: swallowing[a.Prefix.Masked()],
			List:          []plan.Prefix{{Prefix: a.Prefix, Text: a.Text}},
		}
		// Neighbours in the file that are alike become one batch.
		if n := len(actions); n > 0 {
			if last := actions[n-1].Do.(plan.Addr); last.NoPrefixRoute == step.NoPrefixRoute {
				last.List = append(last.List, step.List...)
				actions[n-1].Do = last
				continue
			}
		}
		actions = append(actions, plan.Action{Do: step, Why: "Address of the config"})
	}
	return in(p.Target, append(actions, plan.Action{
		Do:  plan.LinkUp{Name: name, MTU: MTU(cfg, f)},
		Why: "the link goes up with its MTU",
	}))
}

// DNS plans the config's name servers by a step that is told them: resolvconf's
// record, systemd-resolved's link, or the resolv.conf of a namespace.
func DNS(cfg *confparse.Config, step plan.Step) []plan.Action {
	if len(cfg.DNS) == 0 {
		return nil
	}
	a := plan.Action{Why: "DNS of the config"}
	switch s := step.(type) {
	case plan.DNS:
		s.Servers, s.Search = cfg.DNS, cfg.DNSSearch
		a.Do, a.Undo = s, []plan.Step{plan.DNS{Link: s.Link, Prefix: s.Prefix, Index: s.Index, Delete: true}}
	case plan.Resolv:
		s.Servers, s.Search = cfg.DNS, cfg.DNSSearch
		undo := s
		undo.Delete = true
		s.Old, s.MadeDirs = nil, nil
		a.Do, a.Undo = s, []plan.Step{undo}
	}
	return []plan.Action{a}
}

// MTU is the link's MTU in bytes: the config's, else the smallest path MTU to an
// endpoint, else the default route's, else 1500, less Overhead.
func MTU(cfg *confparse.Config, f *facts.Facts) int {
	if cfg.MTU != 0 {
		return cfg.MTU
	}
	mtu := 0
	for _, p := range f.Device.Peers {
		if m := f.PathMTU[p.Endpoint.Addr()]; m > 0 && (mtu == 0 || m < mtu) {
			mtu = m
		}
	}
	if mtu == 0 {
		mtu = f.DefaultMTU
	}
	if mtu <= 0 {
		mtu = fallbackMTU
	}
	return mtu - Overhead
}
