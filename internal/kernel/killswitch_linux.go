package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"wg-quickns/internal/plan"
)

// killTable is the name of the kill switch's tables, of family inet and of family
// arp. All tunnels of a namespace share them.
const killTable = "wg-quickns"

// killPriority is behind NAT and whatever else may still change a packet.
const killPriority = 1000

// Sets of the inet table. The first two are the record of who is in it.
const (
	killMarksOf = "tunnel_marks"     // ifname . mark, 0 for none
	killAddrsOf = "tunnel_addresses" // ifname . ipv4_addr; empty where there is no family arp
	killTunnels = "tunnels"          // ifname
	killMarks   = "marks"            // mark
	killTargets = "addresses"        // ipv4_addr; in the arp table
)

// killSwitches is what the tables hold: each tunnel's step, by interface.
type killSwitches map[string]plan.KillSwitch

// killChain is a chain with all its rules.
type killChain struct {
	*nftables.Chain
	rules [][]expr.Any
}

// readKillSwitch reads who is in the tables, and which of them there are.
func (sp *space) readKillSwitch(ctx context.Context, c *nftables.Conn) (all killSwitches, tables []*nftables.Table, err error) {
	tables, err = sp.nftTables(ctx, []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyARP}, killTable)
	if err != nil {
		return nil, nil, err
	}
	all = make(killSwitches)
	for _, t := range tables {
		if t.Family == nftables.TableFamilyARP {
			continue
		}
		elements := make(map[string][]nftables.SetElement)
		sets, err := c.GetSets(t)
		for _, set := range sets {
			if err == nil && (set.Name == killMarksOf || set.Name == killAddrsOf) {
				elements[set.Name], err = c.GetSetElements(set)
			}
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read nft table inet %s: %w", killTable, err)
		}
		for _, e := range elements[killMarksOf] {
			if len(e.Key) == unix.IFNAMSIZ+4 {
				link := cName(e.Key)
				all[link] = plan.KillSwitch{Link: link, Mark: native32(e.Key[unix.IFNAMSIZ:])}
			}
		}
		for _, e := range elements[killAddrsOf] {
			if len(e.Key) != unix.IFNAMSIZ+4 {
				continue
			}
			if s, ok := all[cName(e.Key)]; ok {
				a, _ := netip.AddrFromSlice(e.Key[unix.IFNAMSIZ:])
				s.Addrs = append(s.Addrs, a)
				all[s.Link] = s
			}
		}
	}
	return all, tables, nil
}

// cName is an interface's name out of a field that NUL bytes fill up.
func cName(b []byte) string {
	name, _, _ := strings.Cut(string(b[:min(len(b), unix.IFNAMSIZ)]), "\x00")
	return name
}

func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// killSwitch adds a tunnel to the tables, or takes it out; the last one takes the
// tables with it. Whatever was done to them, they are made anew in one transaction.
func (d *Doer) killSwitch(ctx context.Context, sp *space, s plan.KillSwitch) error {
	c, err := sp.nftConn()
	if err != nil {
		return err
	}
	all, old, err := sp.readKillSwitch(ctx, c)
	if err != nil {
		return err
	}
	if delete(all, s.Link); !s.Delete {
		s.Addrs = onlyIPv4(s.Addrs)
		all[s.Link] = s
	}
	arp := s.Delete && slices.ContainsFunc(old, isARP) || !s.Delete
	err = writeKillSwitch(c, killTable, old, all, arp)
	if errors.Is(err, unix.EOPNOTSUPP) && arp && len(all) > 0 {
		if d.opt.Warn != nil {
			d.opt.Warn("the kernel has no nf_tables for ARP: ARP requests for the tunnel's addresses on other links are answered")
		}
		err = writeKillSwitch(c, killTable, old, all, false)
	}
	return err
}

func isARP(t *nftables.Table) bool { return t.Family == nftables.TableFamilyARP }

func onlyIPv4(list []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(list), netip.Addr.Is6)
}

// writeKillSwitch replaces old tables, in one transaction.
func writeKillSwitch(c *nftables.Conn, name string, old []*nftables.Table, all killSwitches, arp bool) error {
	for _, t := range old {
		c.DelTable(t)
	}
	if len(all) > 0 {
		if err := queueKillSwitch(c, name, all, arp); err != nil {
			return err
		}
	}
	return c.Flush()
}

// queueKillSwitch queues all that makes the tables.
func queueKillSwitch(c *nftables.Conn, name string, all killSwitches, arp bool) error {
	inet := c.AddTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
	var tunnels, marksOf, addrsOf, marks, targets []nftables.SetElement
	seenMarks, seenAddrs := make(map[uint32]bool), make(map[netip.Addr]bool)
	for _, link := range slices.Sorted(maps.Keys(all)) {
		s := all[link]
		mark := binaryutil.NativeEndian.PutUint32(s.Mark)
		tunnels = append(tunnels, nftables.SetElement{Key: ifname(link)})
		marksOf = append(marksOf, nftables.SetElement{Key: append(ifname(link), mark...)})
		if s.Mark != 0 && !seenMarks[s.Mark] {
			marks = append(marks, nftables.SetElement{Key: mark})
		}
		seenMarks[s.Mark] = true
		for _, a := range s.Addrs {
			if !arp {
				break
			}
			addrsOf = append(addrsOf, nftables.SetElement{Key: append(ifname(link), a.AsSlice()...)})
			if !seenAddrs[a] {
				targets = append(targets, nftables.SetElement{Key: a.AsSlice()})
			}
			seenAddrs[a] = true
		}
	}
	add := func(set *nftables.Set, elements []nftables.SetElement) (err error) {
		err = c.AddSet(set, nil)
		for part := range slices.Chunk(elements, 500) { // an attribute holds 64 KiB
			if err == nil {
				err = c.SetAddElements(set, part)
			}
		}
		return err
	}
	err := errors.Join(
		add(&nftables.Set{Table: inet, Name: killMarksOf, Concatenation: true, KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeMark)}, marksOf),
		add(&nftables.Set{Table: inet, Name: killAddrsOf, Concatenation: true, KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr)}, addrsOf),
		add(&nftables.Set{Table: inet, Name: killTunnels, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}, tunnels),
		add(&nftables.Set{Table: inet, Name: killMarks, KeyType: nftables.TypeMark, KeyByteOrder: binaryutil.NativeEndian}, marks),
	)
	addKillChains(c, inet)
	if arp && err == nil {
		t := c.AddTable(&nftables.Table{Name: name, Family: nftables.TableFamilyARP})
		err = add(&nftables.Set{Table: t, Name: killTargets, KeyType: nftables.TypeIPAddr, KeyByteOrder: binaryutil.BigEndian}, targets)
		addKillChains(c, t)
	}
	return err
}

func addKillChains(c *nftables.Conn, t *nftables.Table) {
	for _, chain := range killChains(t) {
		c.AddChain(chain.Chain)
		for _, r := range chain.rules {
			c.AddRule(&nftables.Rule{Table: t, Chain: chain.Chain, Exprs: r})
		}
	}
}

// killChains is every rule of one of the two tables. The policy is not enough: a
// transaction sets it after the old table's hooks are off, but changes all rules
// in one instant (nf_tables_commit in net/netfilter/nf_tables_api.c); it is for
// rules that somebody flushed.
func killChains(t *nftables.Table) []killChain {
	chain := func(name string, hook uint32, policy nftables.ChainPolicy, rules ...[]expr.Any) killChain {
		return killChain{&nftables.Chain{
			Name: name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookRef(nftables.ChainHook(hook)),
			Priority: nftables.ChainPriorityRef(killPriority), Policy: &policy,
		}, rules}
	}
	if isARP(t) {
		return []killChain{chain("input", 0, nftables.ChainPolicyAccept, unanswered())} // NF_ARP_IN
	}
	const hopLimit, icmpType = 7, 0 // places in struct ipv6hdr and icmp6hdr
	var neighbours [][]expr.Any
	for _, typ := range []byte{133, 135, 136} { // router and neighbour solicitation, neighbour advertisement (RFC 4861)
		neighbours = append(neighbours, match(protocol(unix.NFPROTO_IPV6, unix.IPPROTO_ICMPV6),
			payload(expr.PayloadBaseNetworkHeader, hopLimit, 255), payload(expr.PayloadBaseTransportHeader, icmpType, typ), accept()))
	}
	routers := netip.MustParseAddr("ff02::16") // all MLDv2 routers: a switch asks who wants which solicitation (RFC 3810)
	out := [][]expr.Any{
		match(oif("lo"), accept()),
		match(oifTunnel(false), accept()),
		match(l4(unix.IPPROTO_UDP), marked(), accept()),
		match(protocol(unix.NFPROTO_IPV4, unix.IPPROTO_UDP), payload(expr.PayloadBaseTransportHeader, 0, ports(68, 67)...), accept()),
		match(protocol(unix.NFPROTO_IPV6, unix.IPPROTO_UDP), payload(expr.PayloadBaseTransportHeader, 0, ports(546, 547)...), accept()),
	}
	out = append(out, neighbours...)
	out = append(out,
		match(protocol(unix.NFPROTO_IPV6, unix.IPPROTO_ICMPV6), payload(expr.PayloadBaseNetworkHeader, 24, routers.AsSlice()...),
			payload(expr.PayloadBaseTransportHeader, icmpType, 143), accept()),
		match([]expr.Any{&expr.Counter{}}, []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}))
	// A new TCP connection would wait for its answer; everything else that is dropped
	// below is the sender's EPERM. What has a mark may still be sent another way.
	refused := match(l4(unix.IPPROTO_TCP), oifNot("lo"), oifTunnel(true),
		[]expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)}},
		[]expr.Any{ // SYN without ACK, in the 14th byte of the header
			&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1, DestRegister: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x12}, Xor: []byte{0}},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0x02}},
			&expr.Reject{Type: unix.NFT_REJECT_TCP_RST},
		})
	return []killChain{
		chain("output", unix.NF_INET_LOCAL_OUT, nftables.ChainPolicyAccept, refused),
		chain("postrouting", unix.NF_INET_POST_ROUTING, nftables.ChainPolicyDrop, out...),
	}
}

func match(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

func oif(name string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(name)}}
}

func oifNot(name string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: ifname(name)}}
}

func oifTunnel(not bool) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: killTunnels, Invert: not},
	}
}

func marked() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: killMarks},
	}
}

func l4(proto byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}}}
}

func protocol(family, proto byte) []expr.Any {
	return append([]expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
	}, l4(proto)...)
}

// payload compares bytes of a header.
func payload(base expr.PayloadBase, offset uint32, data ...byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{Base: base, Offset: offset, Len: uint32(len(data)), DestRegister: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data},
	}
}

func ports(from, to uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from), to)
}

// unanswered drops ARP requests for a tunnel's address: Ethernet's and the like,
// for IPv4 (RFC 826). A WireGuard interface has no ARP.
func unanswered() []expr.Any {
	return append(payload(expr.PayloadBaseNetworkHeader, 0, 0, 1, 8, 0, 6, 4, 0, 1),
		&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 24, Len: 4, DestRegister: 1},
		&expr.Lookup{SourceRegister: 1, SetName: killTargets},
		&expr.Verdict{Kind: expr.VerdictDrop},
	)
}

// hasKillSwitch says whether the tables have the tunnel as the step has it, and all
// of their rules; of a deleting step, whether they have the tunnel.
func (sp *space) hasKillSwitch(ctx context.Context, s plan.KillSwitch) (bool, error) {
	c, err := sp.nftConn()
	if err != nil {
		return false, err
	}
	all, tables, err := sp.readKillSwitch(ctx, c)
	if noNft(err) && s.Delete {
		return false, nil
	}
	have, ok := all[s.Link]
	if err != nil || !ok || s.Delete {
		return ok, err
	}
	arp := slices.ContainsFunc(tables, isARP)
	if have.Mark != s.Mark || arp && !sameAddrs(have.Addrs, onlyIPv4(s.Addrs)) {
		return false, nil
	}
	for _, other := range all {
		if !arp && len(other.Addrs) > 0 {
			return false, nil
		}
	}
	for _, t := range tables {
		whole, err := wholeKillTable(c, t, all)
		if err != nil || !whole {
			return false, err
		}
	}
	return true, nil
}

func sameAddrs(a, b []netip.Addr) bool {
	for _, list := range []*[]netip.Addr{&a, &b} {
		*list = slices.Clone(*list)
		slices.SortFunc(*list, netip.Addr.Compare)
		*list = slices.Compact(*list)
	}
	return slices.Equal(a, b)
}

// wholeKillTable says whether a table has the sets, chains and rules that it should.
func wholeKillTable(c *nftables.Conn, t *nftables.Table, all killSwitches) (bool, error) {
	if t.Flags != 0 { // dormant
		return false, nil
	}
	want := make(map[string][]string)
	for link, s := range all {
		if isARP(t) {
			for _, a := range s.Addrs {
				want[killTargets] = append(want[killTargets], string(a.AsSlice()))
			}
			continue
		}
		want[killTunnels] = append(want[killTunnels], string(ifname(link)))
		if s.Mark != 0 {
			want[killMarks] = append(want[killMarks], string(binaryutil.NativeEndian.PutUint32(s.Mark)))
		}
	}
	sets, err := c.GetSets(t)
	if err != nil {
		return false, fmt.Errorf("read nft table %s: %w", t.Name, err)
	}
	for _, set := range sets {
		list, ok := want[set.Name]
		if !ok && set.Name != killMarks && set.Name != killTargets {
			continue
		}
		elements, err := c.GetSetElements(set)
		if err != nil {
			return false, fmt.Errorf("read nft table %s: %w", t.Name, err)
		}
		have := make([]string, len(elements))
		for i, e := range elements {
			have[i] = string(e.Key)
		}
		slices.Sort(have)
		slices.Sort(list)
		if !slices.Equal(have, slices.Compact(list)) {
			return false, nil
		}
		delete(want, set.Name)
	}
	if len(want) > 0 {
		return false, nil
	}
	chains, err := c.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return false, fmt.Errorf("read nft table %s: %w", t.Name, err)
	}
	for _, w := range killChains(t) {
		at := slices.IndexFunc(chains, func(h *nftables.Chain) bool { return h.Table.Name == t.Name && h.Name == w.Name })
		if at < 0 || !sameChain(chains[at], w.Chain) {
			return false, nil
		}
		rules, err := c.GetRules(t, w.Chain)
		if err != nil {
			return false, fmt.Errorf("read nft chain %s: %w", w.Name, err)
		}
		if !slices.EqualFunc(rules, w.rules, func(r *nftables.Rule, exprs []expr.Any) bool { return sameExprs(r.Exprs, exprs) }) {
			return false, nil
		}
	}
	return true, nil
}

func sameChain(a, b *nftables.Chain) bool {
	return a.Type == b.Type && a.Hooknum != nil && *a.Hooknum == *b.Hooknum &&
		a.Priority != nil && *a.Priority == *b.Priority && a.Policy != nil && *a.Policy == *b.Policy
}

// sameExprs compares a rule as it was read with one of ours.
func sameExprs(have, want []expr.Any) bool {
	return slices.EqualFunc(have, want, func(h, w expr.Any) bool {
		switch h := h.(type) {
		case *expr.Counter:
			_, ok := w.(*expr.Counter)
			return ok
		case *expr.Lookup:
			l := *h
			l.SetID = 0
			return reflect.DeepEqual(&l, w)
		}
		return reflect.DeepEqual(h, w)
	})
}

// CheckKillSwitch says whether the kernel takes a kill switch's tables in a
// namespace: it makes them under another name and deletes them, in one transaction.
func (d *Doer) CheckKillSwitch(_ context.Context, ns plan.NS) error {
	sp, err := d.space(ns)
	if err != nil {
		return err
	}
	c, err := sp.nftConn()
	if err != nil {
		return err
	}
	t := c.AddTable(&nftables.Table{Name: killTable + "-try", Family: nftables.TableFamilyINet})
	set := &nftables.Set{Table: t, Name: killTunnels, KeyType: nftables.TypeIFName}
	marks := &nftables.Set{Table: t, Name: killMarks, KeyType: nftables.TypeMark}
	if err := errors.Join(c.AddSet(set, nil), c.AddSet(marks, nil)); err != nil {
		return err
	}
	for _, chain := range killChains(t) {
		chain.Policy = nil
		c.AddChain(chain.Chain)
		for _, r := range chain.rules {
			c.AddRule(&nftables.Rule{Table: t, Chain: chain.Chain, Exprs: r})
		}
	}
	c.DelTable(t)
	return c.Flush()
}
