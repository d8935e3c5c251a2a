package strategies

import (
	"wg-quickns/confparse"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

// Adopt plans nothing new: it lists what wg-quick's `up` must have made for an
// interface that has no record, as actions that are done already, so that their
// undo steps take it down. A rule of table main is only listed when it stands
// right before this tunnel's own, where `up` put it: the others are other tunnels'.
func Adopt(cfg *confparse.Config, f *facts.Facts, resolvconfPrefix string, p Place) []plan.Action {
	const why = "made by wg-quick"
	name := f.Device.Name
	done := func(do plan.Step, undo ...plan.Step) plan.Action {
		return plan.Action{Do: do, Undo: undo, Why: why}
	}
	// wg-quick made none, but the record of ours may be lost.
	actions := []plan.Action{done(plan.KillSwitch{Link: name}, plan.KillSwitch{Link: name, Delete: true})}
	if len(cfg.DNS) > 0 && p.Target == "" {
		actions = append(actions, done(plan.DNS{Link: name, Prefix: resolvconfPrefix},
			plan.DNS{Link: name, Prefix: resolvconfPrefix, Delete: true}))
	}
	if automatic(cfg) && f.Device.FwMark != 0 && hasDefault(f) {
		// Newest first is how they are undone: IPv6 before IPv4 here, table main's before the tunnel's.
		for _, v6 := range []bool{true, false} {
			for _, r := range markRules(f, v6) {
				actions = append(actions, ruleAction(r, why))
			}
		}
	}
	// The interface comes last: as long as it is there, a list that was only half
	// recorded can be made anew.
	return in(p.Target, append(actions,
		done(plan.Nft{Link: name, IPv6: true, IPTables: !f.NFTables}, plan.Nft{Link: name, IPv6: true, IPTables: !f.NFTables, Delete: true}),
		done(plan.Nft{Link: name, IPTables: !f.NFTables}, plan.Nft{Link: name, IPTables: !f.NFTables, Delete: true}),
		done(plan.Link{Name: name}, plan.Link{Name: name, Index: f.Device.Index, Delete: true})))
}

// hasDefault says whether a peer is allowed a /0.
func hasDefault(f *facts.Facts) bool {
	for _, p := range f.Device.Peers {
		for _, a := range p.AllowedIPs {
			if a.Bits() == 0 {
				return true
			}
		}
	}
	return false
}

// markRules finds one family's rules of the tunnel: those that send all but its
// mark to its table, each behind the one of table main that was added with it.
func markRules(f *facts.Facts, v6 bool) []plan.Rule {
	var rules []plan.Rule
	for _, r := range f.Rules {
		if r.IPv6 != v6 || !r.Invert || r.FwMark != f.Device.FwMark || r.Table != f.Device.FwMark {
			continue
		}
		for _, before := range f.Rules {
			if before.IPv6 == v6 && before.Priority+1 == r.Priority &&
				before.Table == plan.TableMain && before.SuppressPrefixLen == 0 {
				rules = append(rules, asStep(before))
				break
			}
		}
		rules = append(rules, asStep(r))
	}
	return rules
}

// asStep is a rule of the kernel as the step that made it.
func asStep(r facts.Rule) plan.Rule {
	step := plan.Rule{
		IPv6: r.IPv6, Priority: r.Priority, Table: r.Table, To: r.Dst, SuppressPrefixLen: r.SuppressPrefixLen,
	}
	if r.Invert {
		step.NotFwMark = r.FwMark
	}
	return step
}
