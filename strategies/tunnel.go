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

// Create plans the interface itself.
func Create(name string) []plan.Action {
	return []plan.Action{{
		Do:   plan.Link{Name: name},
		Undo: []plan.Step{plan.Link{Name: name, Delete: true}},
		Why:  "the tunnel's interface",
	}}
}

// Configure plans wg's part of the config. The device's endpoints must be resolved.
func Configure(name string, d *confparse.Device) []plan.Action {
	return []plan.Action{{
		Do:  plan.WG{Link: name, Device: d},
		Why: "keys, port and peers, added to what a PreUp may have set",
	}}
}

// Hooks plans the commands of one phase, `%i` replaced as wg-quick does.
func Hooks(hooks []plan.Hook) []plan.Action {
	actions := make([]plan.Action, len(hooks))
	for i, h := range hooks {
		actions[i] = plan.Action{Do: h, Why: h.Phase + " of the config"}
	}
	return actions
}

// Address plans addresses, MTU and the link going up, and DNS.
// resolvconfPrefix is resolvconf's prefix for the interface's record.
func Address(cfg *confparse.Config, f *facts.Facts, resolvconfPrefix string) []plan.Action {
	var actions []plan.Action
	name := f.Device.Name
	swallowing := make(map[netip.Prefix]bool)
	for _, p := range swallowed(cfg, f) {
		swallowing[p] = true
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
	actions = append(actions, plan.Action{
		Do:  plan.LinkUp{Name: name, MTU: MTU(cfg, f)},
		Why: "the link goes up with its MTU",
	})
	if len(cfg.DNS) > 0 {
		dns := plan.DNS{Link: name, Prefix: resolvconfPrefix, Servers: cfg.DNS, Search: cfg.DNSSearch}
		actions = append(actions, plan.Action{
			Do:   dns,
			Undo: []plan.Step{plan.DNS{Link: name, Prefix: resolvconfPrefix, Delete: true}},
			Why:  "DNS of the config",
		})
	}
	return actions
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
