package strategies

import (
	"fmt"
	"net/netip"
	"strconv"

	"wg-quickns/confparse"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

// firstTable is where wg-quick begins to look for an unused table.
const firstTable = 51820

// SrcValidMark lets the reverse path filter use a packet's mark: without it a
// strict filter drops the encrypted replies (ip-sysctl.rst, src_valid_mark).
const SrcValidMark = "net.ipv4.conf.all.src_valid_mark"

// Auto is wg-quick's own strategy. A /0 goes into a table of its own, which
// everything but the tunnel's own marked packets looks up after the specific
// routes of table main. The same is done, prefix by prefix, for any route that
// would swallow an endpoint; every other route goes to table main.
func Auto(cfg *confparse.Config, f *facts.Facts, p Place) ([]plan.Action, error) {
	var plain, defaults []netip.Prefix
	all := allowed(f)
	loops := make(map[netip.Prefix]bool)
	var swallow []netip.Prefix
	if !p.Elsewhere() {
		swallow = swallowed(cfg, f)
	}
	for _, p := range swallow {
		loops[p] = true
	}
	for _, p := range all {
		switch {
		case p.Bits() == 0:
			defaults = append(defaults, p)
		case !loops[p]:
			plain = append(plain, p)
		}
	}
	actions := routeBatch(plan.Route{Link: f.Device.Name}, uncovered(f, plain), "AllowedIPs")
	if len(defaults)+len(swallow) == 0 {
		return actions, nil
	}

	m := newMarking(cfg, f)
	mark, err := m.mark()
	if err != nil {
		return nil, err
	}
	actions = append(actions, mark...)
	for _, p := range defaults {
		actions = append(actions, m.route(p)...)
		actions = append(actions, m.firewall(p.Addr().Is6())...)
	}
	for _, p := range swallow {
		actions = append(actions, m.route(p)...)
	}
	for _, p := range swallow {
		actions = append(actions, m.firewall(p.Addr().Is6())...)
	}
	return actions, nil
}

// marking plans around one fwmark, which is the number of the table too.
type marking struct {
	f     *facts.Facts
	table uint32
	rules map[bool][]uint32 // priorities in the kernel's order, by IPv6
	walls map[bool]bool     // families whose firewall is planned
	// walled says that the kill switch has planned the firewalls, not the sysctl.
	walled bool
}

func newMarking(cfg *confparse.Config, f *facts.Facts) *marking {
	m := &marking{f: f, walled: cfg.KillSwitch, rules: make(map[bool][]uint32), walls: make(map[bool]bool)}
	for _, r := range f.Rules {
		m.rules[r.IPv6] = append(m.rules[r.IPv6], r.Priority)
	}
	return m
}

// mark chooses the table and, where the device has no mark yet, sets it.
func (m *marking) mark() ([]plan.Action, error) {
	if m.table = m.f.Device.FwMark; m.table != 0 {
		return nil, nil
	}
	used := make(map[uint32]bool)
	for _, r := range m.f.Routes {
		used[r.Table] = true
	}
	for m.table = firstTable; used[m.table]; m.table++ {
		if m.table == 1<<32-1 {
			return nil, fmt.Errorf("no routing table from %d on is empty", firstTable)
		}
	}
	return []plan.Action{{
		Do:  plan.FwMark{Link: m.f.Device.Name, Mark: m.table},
		Why: "tells the tunnel's own packets from all others",
	}}, nil
}

// route sends a prefix into the table, for all but the tunnel's own packets and
// what table main knows better.
func (m *marking) route(p netip.Prefix) []plan.Action {
	v6 := p.Addr().Is6()
	to := p
	if p.Bits() == 0 {
		to = netip.Prefix{}
	}
	into := plan.Rule{IPv6: v6, Priority: m.priority(v6), NotFwMark: m.table, To: to, Table: m.table, SuppressPrefixLen: -1}
	main := plan.Rule{IPv6: v6, Priority: m.priority(v6), To: to, Table: plan.TableMain, SuppressPrefixLen: p.Bits()}
	actions := []plan.Action{
		ruleAction(into, "all but the tunnel's own packets ask its table"),
		ruleAction(main, "but routes of table main that are more specific come first"),
	}
	step := plan.Route{Link: m.f.Device.Name, Table: m.table, TableText: strconv.FormatUint(uint64(m.table), 10)}
	return append(actions, routeBatch(step, []netip.Prefix{p}, "into the tunnel")...)
}

func ruleAction(r plan.Rule, why string) plan.Action {
	undo := r
	undo.Delete = true
	return plan.Action{Do: r, Undo: []plan.Step{undo}, Why: why}
}

// priority is what the kernel gives the next rule that names none: one less than
// that of the second rule (fib_default_rule_pref in net/core/fib_rules.c).
func (m *marking) priority(v6 bool) uint32 {
	list := m.rules[v6]
	var p uint32
	if len(list) > 1 && list[1] > 0 {
		p = list[1] - 1
	}
	at := 0
	for at < len(list) && list[at] <= p {
		at++
	}
	m.rules[v6] = append(list[:at:at], append([]uint32{p}, list[at:]...)...)
	return p
}

// firewall drops what is addressed to the tunnel from outside of it, and carries
// the mark over to replies, once a family.
func (m *marking) firewall(v6 bool) []plan.Action {
	if m.walls[v6] {
		return nil
	}
	m.walls[v6] = true
	var actions []plan.Action
	if value := m.f.SrcValidMarkHome; !v6 && (m.f.SrcValidMark != 1 || value != "") {
		if m.f.SrcValidMark != 1 {
			value = strconv.Itoa(m.f.SrcValidMark)
		}
		actions = append(actions, plan.Action{
			Do:   plan.Sysctl{Name: SrcValidMark, Value: "1"},
			Undo: []plan.Step{plan.Sysctl{Name: SrcValidMark, Value: value}},
			Why:  "the reverse path filter must see the mark of encrypted replies",
		})
	}
	if m.walled {
		return actions
	}
	nft := plan.Nft{Link: m.f.Device.Name, IPv6: v6, Mark: m.table, IPTables: !m.f.NFTables}
	for _, a := range m.f.Addrs {
		if a.Prefix.Addr().Is6() == v6 {
			nft.Addrs = append(nft.Addrs, a.Prefix.Addr())
		}
	}
	return append(actions, nftAction(nft))
}

func nftAction(nft plan.Nft) plan.Action {
	return plan.Action{
		Do:   nft,
		Undo: []plan.Step{plan.Nft{Link: nft.Link, IPv6: nft.IPv6, IPTables: nft.IPTables, Delete: true}},
		Why:  "nobody outside reaches the tunnel's addresses; replies keep the mark",
	}
}
