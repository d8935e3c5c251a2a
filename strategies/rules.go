package strategies

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"wg-quickns/confparse"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

// rulesTable is where `rules` begins to look for an unused table.
const rulesTable = 80

// Rules keeps the tunnel's routes in a table of their own and sends everything
// there by a rule, but for the endpoints: a rule each, before that, sends them to
// the table that reaches them now. A family without a /0 is left alone, unless an
// endpoint is inside of what the tunnel routes.
func Rules(cfg *confparse.Config, f *facts.Facts, p Place) ([]plan.Action, error) {
	table, err := freeTable(cfg, f)
	if err != nil {
		return nil, err
	}
	_, second := cfg.RulePriorities()
	apart, routed := families(f), allowed(f)
	if !p.Elsewhere() {
		for _, s := range swallowed(cfg, f) {
			if v6 := s.Addr().Is6(); !slices.Contains(apart, v6) {
				apart = append(apart, v6)
			}
			if !slices.Contains(routed, s) { // the subnet of an Address
				routed = append(routed, s)
			}
		}
	}
	actions := endpointRules(cfg, f, p)
	var main, own []netip.Prefix
	for _, a := range routed {
		if slices.Contains(apart, a.Addr().Is6()) {
			own = append(own, a)
		} else {
			main = append(main, a)
		}
	}
	actions = append(actions, routeBatch(plan.Route{Link: f.Device.Name}, uncovered(f, main), "AllowedIPs")...)
	actions = append(actions, routeBatch(plan.Route{
		Link: f.Device.Name, Table: table, TableText: strconv.FormatUint(uint64(table), 10),
	}, own, "a table of the tunnel's own")...)
	for _, v6 := range apart {
		actions = append(actions, ruleAction(plan.Rule{
			IPv6: v6, Priority: second, Table: table, SuppressPrefixLen: -1, ShowPriority: true,
		}, "everything else asks the tunnel's table"))
	}
	return actions, nil
}

// endpointRules sends the tunnel's own packets to the table that reaches their
// endpoint now, before the tunnel's rule.
func endpointRules(cfg *confparse.Config, f *facts.Facts, p Place) []plan.Action {
	first, _ := cfg.RulePriorities()
	var actions []plan.Action
	for _, a := range endangered(cfg, f, p) {
		to := uint32(plan.TableMain)
		if way, ok := wayTo(f, a); ok {
			to = way.Table
		}
		actions = append(actions, ruleAction(plan.Rule{
			IPv6: a.Is6(), Priority: first, To: netip.PrefixFrom(a, a.BitLen()), Table: to, SuppressPrefixLen: -1, ShowPriority: true,
		}, "the endpoint stays reached the way it is now"))
	}
	return actions
}

// freeTable is the table that the config names, else the first without a route or
// a rule.
func freeTable(cfg *confparse.Config, f *facts.Facts) (uint32, error) {
	if !automatic(cfg) {
		table, ok := confparse.TableID(cfg.Table, f.TableNames)
		if !ok {
			return 0, fmt.Errorf("table `%s' is neither a number nor a name in rt_tables", confparse.Redact(cfg.Table))
		}
		return table, nil
	}
	used := make(map[uint32]bool)
	for _, r := range f.Routes {
		used[r.Table] = true
	}
	for _, r := range f.Rules {
		used[r.Table] = true
	}
	table := uint32(rulesTable)
	for used[table] || table >= plan.TableMain-1 && table <= plan.TableMain+1 {
		table++
	}
	return table, nil
}
