package strategies

import (
	"net/netip"
	"slices"

	"wg-quickns/confparse"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

// Change is what turns a tunnel that is up into another one.
type Change struct {
	Swaps  []Swap
	New    []plan.Action
	Retire []int // standing actions to be undone, once the rest is done
	First  []int // those to be undone before
	Forget []int // standing actions of which New is the successor
}

// Swap changes what has no undo of its own: Record stands from now on, in place of
// Drop, and Do is the difference.
type Swap struct {
	Record []plan.Action
	Do     []plan.Action
	Drop   []int
}

// Empty says that there is nothing to change.
func (c Change) Empty() bool {
	return len(c.Swaps)+len(c.New)+len(c.Retire)+len(c.First)+len(c.Forget) == 0
}

// Before takes out of facts what a tunnel that stands has made, so that a plan made
// of them is one from the start. mark is the fwmark that `up` chose, 0 if none.
func Before(f *facts.Facts, standing []Standing) (before *facts.Facts, mark uint32) {
	g := guard{f: f, standing: standing}
	b := *f
	b.Addrs, b.Device = nil, facts.Device{Name: f.Device.Name, Kernel: f.Device.Kernel}
	b.Links = slices.DeleteFunc(slices.Clone(f.Links), func(l facts.Link) bool { return l.Index == f.Device.Index })
	b.Routes = slices.DeleteFunc(slices.Clone(f.Routes), func(r facts.Route) bool {
		return r.Index == f.Device.Index || g.own(r) || r.Metric == lastMetric && r.Type != unicast
	})
	b.Rules = slices.Clone(f.Rules)
	for _, s := range standing {
		if back, ok := restored(s); ok && g.usable(back) {
			b.Routes = append(b.Routes, back)
		}
		switch do := s.Do.(type) {
		case plan.Rule:
			b.Rules = slices.DeleteFunc(b.Rules, func(r facts.Rule) bool { return r == asFact(do) })
		case plan.FwMark:
			mark = do.Mark
		case plan.Sysctl:
			if do.Name == SrcValidMark {
				b.SrcValidMark = 0
			}
		}
	}
	return &b, mark
}

// PathMTU is the MTU of the ways to the endpoints, as Gather reads it, from the
// facts: while the tunnel is up the kernel would answer with the tunnel's own.
func PathMTU(f *facts.Facts) (paths map[netip.Addr]int, byDefault int) {
	mtu := func(r facts.Route) int {
		if r.MTU != 0 {
			return r.MTU
		}
		for _, l := range f.Links {
			if l.Index == r.Index {
				return l.MTU
			}
		}
		return 0
	}
	paths = make(map[netip.Addr]int)
	for _, p := range f.Device.Peers {
		if way, ok := wayTo(f, p.Endpoint.Addr().WithZone("")); ok {
			paths[p.Endpoint.Addr()] = mtu(way)
		}
	}
	if way, ok := lookup(f, plan.TableMain, netip.IPv4Unspecified()); ok && way.Dst.Bits() == 0 {
		byDefault = mtu(way)
	}
	return paths, byDefault
}

// Reload compares what a new plan from the start would do with what stands. What
// configures WireGuard itself, and hooks, it leaves out.
func Reload(wanted []plan.Action, standing []Standing) Change {
	r := reload{wanted: wanted, standing: standing, kept: make(map[int]bool)}
	r.batches()
	r.steps()
	r.mark()
	return r.Change
}

type reload struct {
	Change
	wanted   []plan.Action
	standing []Standing
	kept     map[int]bool // standing actions by ID
}

// item is one of a batch: an address, or a route by the tunnel.
type item struct {
	addr          bool
	noPrefixRoute bool
	slot          facts.Slot
}

// itemOf is one of a step's list.
func itemOf(s plan.Step, p plan.Prefix) item {
	switch s := s.(type) {
	case plan.Addr:
		return item{addr: true, noPrefixRoute: s.NoPrefixRoute, slot: facts.Slot{Dst: p.Prefix}}
	case plan.Route:
		return item{slot: facts.Route{Dst: p.Prefix.Masked(), Table: s.Table, Metric: s.Metric}.Slot()}
	}
	return item{}
}

// batched says whether an action is of those that go with the link.
func batched(a plan.Action) bool {
	switch a.Do.(type) {
	case plan.Addr:
		return true
	case plan.Route:
		return len(a.Undo) == 0
	}
	return false
}

// batches compares addresses and routes one by one.
func (r *reload) batches() {
	have := make(map[item]bool)
	special := make(map[item]bool) // routes whose undo puts others' back: they stand for themselves
	var old []int
	for _, s := range r.standing {
		if batched(s.Action) {
			old = append(old, s.ID)
			for _, p := range prefixes(s.Do) {
				have[itemOf(s.Do, p)] = true
			}
		} else if do, ok := s.Do.(plan.Route); ok && !do.Unreachable {
			for _, p := range do.List {
				special[itemOf(do, p)] = true
			}
		}
	}
	want := make(map[item]bool)
	var swap Swap
	changed := false
	for _, a := range r.wanted {
		if do, ok := a.Do.(plan.Route); ok && do.Unreachable || !ok && !batched(a) {
			continue
		}
		add := a
		var list, fresh []plan.Prefix
		for _, p := range prefixes(a.Do) {
			i := itemOf(a.Do, p)
			want[i] = true
			if special[i] {
				continue
			}
			list = append(list, p)
			if !have[i] {
				fresh = append(fresh, p)
			}
		}
		if len(list) > 0 {
			add.Do, add.Undo = with(a.Do, list), nil
			swap.Record = append(swap.Record, add)
		}
		if len(fresh) > 0 {
			changed = true
			if len(a.Undo) > 0 { // it takes another's place
				r.New = append(r.New, a)
				swap.Record = swap.Record[:len(swap.Record)-1]
				continue
			}
			swap.Do = append(swap.Do, plan.Action{NS: a.NS, Do: with(a.Do, fresh), Why: a.Why})
		}
	}
	for _, s := range r.standing {
		do, isRoute := s.Do.(plan.Route)
		if !batched(s.Action) {
			if isRoute && !do.Unreachable {
				r.kept[s.ID] = slices.ContainsFunc(do.List, func(p plan.Prefix) bool { return want[itemOf(do, p)] })
			}
			continue
		}
		r.kept[s.ID] = true
		var gone []plan.Prefix
		for _, p := range prefixes(s.Do) {
			if !want[itemOf(s.Do, p)] {
				gone = append(gone, p)
			}
		}
		if len(gone) > 0 {
			changed = true
			swap.Do = append(swap.Do, plan.Action{NS: s.NS, Do: without(s.Do, gone)})
		}
	}
	if changed {
		swap.Drop = old
		r.Swaps = append(r.Swaps, swap)
	}
}

func prefixes(s plan.Step) []plan.Prefix {
	switch s := s.(type) {
	case plan.Addr:
		return s.List
	case plan.Route:
		return s.List
	}
	return nil
}

func with(s plan.Step, list []plan.Prefix) plan.Step {
	switch s := s.(type) {
	case plan.Addr:
		s.List = list
		return s
	case plan.Route:
		s.List = list
		return s
	}
	return s
}

func without(s plan.Step, list []plan.Prefix) plan.Step {
	switch s := with(s, list).(type) {
	case plan.Addr:
		s.Delete = true
		return s
	case plan.Route:
		s.Delete = true
		return s
	}
	return s
}

// steps compares everything else, step by step.
func (r *reload) steps() {
	walls := false
	for _, a := range r.wanted {
		if batched(a) {
			continue
		}
		if do, ok := a.Do.(plan.Route); ok && !do.Unreachable {
			continue
		}
		switch a.Do.(type) {
		case plan.WG, plan.Hook, plan.Link, plan.Netns:
			continue
		}
		i := slices.IndexFunc(r.standing, func(s Standing) bool { return !r.kept[s.ID] && s.NS == a.NS && sameThing(s.Do, a.Do) })
		switch {
		case i < 0:
			if _, ok := a.Do.(plan.LinkUp); ok {
				r.Swaps = append(r.Swaps, Swap{Record: []plan.Action{a}, Do: []plan.Action{a}})
				continue
			}
			r.New = append(r.New, a)
		case alike(r.standing[i].Do, a.Do):
			r.kept[r.standing[i].ID] = true
		default:
			r.succeed(r.standing[i], a)
		}
	}
	for _, s := range r.standing {
		if r.kept[s.ID] || len(s.Undo) == 0 || plan.Physical(s.Do) {
			continue
		}
		switch do := s.Do.(type) {
		case plan.Resolv:
			if do.Shared {
				continue
			}
		case plan.Link, plan.Netns, plan.Hook, plan.WG:
			continue
		case plan.Via:
			if do.Delete && do.Route.Dst.Bits() > 0 { // the guard's, which down puts back
				continue
			}
		case plan.Nft:
			walls = true
		}
		r.Retire = append(r.Retire, s.ID)
	}
	if !walls {
		return
	}
	// The undo of one family's firewall takes the other's along.
	for _, id := range r.Retire {
		if i := r.index(id); r.standing[i].Do.Kind() == plan.KindNft {
			r.First = append(r.First, id)
		}
	}
	r.Retire = slices.DeleteFunc(r.Retire, func(id int) bool { return slices.Contains(r.First, id) })
	for _, s := range r.standing {
		if s.Do.Kind() == plan.KindNft && r.kept[s.ID] && !slices.Contains(r.Forget, s.ID) {
			r.New, r.Forget = append(r.New, s.Action), append(r.Forget, s.ID)
		}
	}
}

// mark takes the fwmark back that `up` chose, where nothing asks for it any more.
func (r *reload) mark() {
	for _, a := range r.wanted {
		switch do := a.Do.(type) {
		case plan.Rule:
			if do.NotFwMark != 0 {
				return
			}
		case plan.Nft:
			if do.Mark != 0 {
				return
			}
		case plan.KillSwitch:
			if do.Mark != 0 {
				return
			}
		case plan.WG:
			if do.Device != nil && do.Device.FwMark != nil {
				return
			}
		}
	}
	for _, s := range r.standing {
		if do, ok := s.Do.(plan.FwMark); ok {
			do.Mark = 0
			r.Swaps = append(r.Swaps, Swap{Do: []plan.Action{{NS: s.NS, Do: do}}, Drop: []int{s.ID}})
		}
	}
}

func (r *reload) index(id int) int {
	return slices.IndexFunc(r.standing, func(s Standing) bool { return s.ID == id })
}

// succeed puts an action in the place of one that stands.
func (r *reload) succeed(old Standing, a plan.Action) {
	r.kept[old.ID] = true
	switch do := a.Do.(type) {
	case plan.LinkUp, plan.FwMark:
		r.Swaps = append(r.Swaps, Swap{Record: []plan.Action{a}, Do: []plan.Action{a}, Drop: []int{old.ID}})
		return
	case plan.Via:
		do.Replace = true
		a.Do = do
	case plan.Resolv: // what was there before the old one is there again first
		r.First = append(r.First, old.ID)
		r.New = append(r.New, a)
		return
	}
	r.New, r.Forget = append(r.New, a), append(r.Forget, old.ID)
}

// sameThing says whether two steps make the same thing, if perhaps differently.
func sameThing(a, b plan.Step) bool {
	switch a := a.(type) {
	case plan.Rule:
		b, ok := b.(plan.Rule)
		if !a.ShowPriority { // the kernel's next, which depends on the others
			a.Priority, b.Priority = 0, 0
		}
		return ok && a == b
	case plan.Via:
		b, ok := b.(plan.Via)
		return ok && a.Delete == b.Delete && a.Route.Slot() == b.Route.Slot()
	case plan.Route:
		b, ok := b.(plan.Route)
		return ok && a.Unreachable == b.Unreachable && a.Table == b.Table && slices.Equal(a.List, b.List)
	case plan.Nft:
		b, ok := b.(plan.Nft)
		return ok && a.IPv6 == b.IPv6
	case plan.Sysctl:
		b, ok := b.(plan.Sysctl)
		return ok && a.Name == b.Name
	}
	return a.Kind() == b.Kind()
}

// alike says whether two steps that make the same thing make it alike.
func alike(a, b plan.Step) bool {
	switch a := a.(type) {
	case plan.Via:
		return a.Delete || a.Route.Same(b.(plan.Via).Route)
	case plan.Nft:
		b := b.(plan.Nft)
		return a.Mark == b.Mark && sameAddrs(a.Addrs, b.Addrs)
	case plan.KillSwitch:
		b := b.(plan.KillSwitch)
		return a.Mark == b.Mark && sameAddrs(a.Addrs, b.Addrs)
	case plan.DNS:
		b := b.(plan.DNS)
		return slices.Equal(a.Servers, b.Servers) && slices.Equal(a.Search, b.Search)
	case plan.Resolv:
		b := b.(plan.Resolv)
		return slices.Equal(a.Servers, b.Servers) && slices.Equal(a.Search, b.Search)
	case plan.LinkUp:
		return a == b
	case plan.FwMark:
		return a == b
	}
	return true
}

func sameAddrs(a, b []netip.Addr) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.SortFunc(a, netip.Addr.Compare)
	slices.SortFunc(b, netip.Addr.Compare)
	return slices.Equal(a, b)
}

// Sync is what makes a device that runs as the file has it, and nothing else, as
// `wg syncconf`: sessions of peers that stay are kept. An endpoint, port or mark
// that the file does not name stays as it is.
func Sync(running, file *confparse.Device) (change confparse.Device, remove []confparse.Key) {
	if file.PrivateKey != nil && (running.PrivateKey == nil || *running.PrivateKey != clamped(*file.PrivateKey)) {
		change.PrivateKey = file.PrivateKey
	}
	if file.ListenPort != nil && (running.ListenPort == nil || *running.ListenPort != *file.ListenPort) {
		change.ListenPort = file.ListenPort
	}
	if file.FwMark != nil && (running.FwMark == nil && *file.FwMark != 0 || running.FwMark != nil && *running.FwMark != *file.FwMark) {
		change.FwMark = file.FwMark
	}
	old := make(map[confparse.Key]*confparse.Peer, len(running.Peers))
	for i := range running.Peers {
		old[running.Peers[i].PublicKey] = &running.Peers[i]
	}
	wanted, order := merged(file.Peers)
	for _, key := range order {
		want := wanted[key]
		have, ok := old[key]
		delete(old, key)
		if !ok {
			change.Peers = append(change.Peers, want)
			continue
		}
		diff := confparse.Peer{PublicKey: key, Line: want.Line}
		touched := false
		if preshared(have.PresharedKey) != preshared(want.PresharedKey) {
			psk := preshared(want.PresharedKey)
			diff.PresharedKey, touched = &psk, true
		}
		if want.Endpoint != nil && (have.Endpoint == nil || have.Endpoint.Addr != want.Endpoint.Addr) {
			diff.Endpoint, touched = want.Endpoint, true
		}
		if k := number(want.Keepalive); number(have.Keepalive) != k {
			diff.Keepalive, touched = &k, true
		}
		if !sameIPs(have.AllowedIPs, want.AllowedIPs) {
			diff.ReplaceAllowedIPs, diff.AllowedIPs, touched = true, want.AllowedIPs, true
		}
		if touched {
			change.Peers = append(change.Peers, diff)
		}
	}
	for _, p := range running.Peers {
		if _, ok := old[p.PublicKey]; ok {
			remove = append(remove, p.PublicKey)
		}
	}
	return change, remove
}

// clamped is a private key as Curve25519 uses it, and the kernel keeps it
// (curve25519_clamp_secret of crypto/curve25519.h).
func clamped(k confparse.Key) confparse.Key {
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k
}

// merged are the file's peers, those of one key as one, as `wg addconf` makes them
// of nothing: a prefix belongs to the last that names it.
func merged(peers []confparse.Peer) (map[confparse.Key]confparse.Peer, []confparse.Key) {
	out := make(map[confparse.Key]confparse.Peer, len(peers))
	owner := make(map[netip.Prefix]confparse.Key)
	var order []confparse.Key
	for _, p := range peers {
		m, ok := out[p.PublicKey]
		if !ok {
			order = append(order, p.PublicKey)
			m = confparse.Peer{PublicKey: p.PublicKey, Line: p.Line, ReplaceAllowedIPs: true}
		}
		if p.ReplaceAllowedIPs {
			m.AllowedIPs = nil
		}
		for _, a := range p.AllowedIPs {
			if owner[a.Prefix] == p.PublicKey { // named twice
				m.AllowedIPs = slices.DeleteFunc(m.AllowedIPs, func(b confparse.AllowedIP) bool { return b.Prefix == a.Prefix })
			}
			if !a.Remove {
				m.AllowedIPs, owner[a.Prefix] = append(m.AllowedIPs, a), p.PublicKey
			}
		}
		if p.PresharedKey != nil {
			m.PresharedKey = p.PresharedKey
		}
		if p.Endpoint != nil {
			m.Endpoint = p.Endpoint
		}
		if p.Keepalive != nil {
			m.Keepalive = p.Keepalive
		}
		out[p.PublicKey] = m
	}
	for key, m := range out {
		m.AllowedIPs = slices.DeleteFunc(m.AllowedIPs, func(a confparse.AllowedIP) bool { return owner[a.Prefix] != key })
		out[key] = m
	}
	return out, order
}

func preshared(k *confparse.Key) confparse.Key {
	if k == nil {
		return confparse.Key{}
	}
	return *k
}

func number(n *uint16) uint16 {
	if n == nil {
		return 0
	}
	return *n
}

func sameIPs(a, b []confparse.AllowedIP) bool {
	if len(a) != len(b) {
		return false
	}
	have := make(map[netip.Prefix]bool, len(a))
	for _, ip := range a {
		have[ip.Prefix] = true
	}
	return !slices.ContainsFunc(b, func(ip confparse.AllowedIP) bool { return !have[ip.Prefix] })
}
