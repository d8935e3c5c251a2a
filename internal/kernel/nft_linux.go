package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"wg-quickns/internal/plan"
)

func (sp *space) nftConn() (*nftables.Conn, error) {
	options := []nftables.ConnOption{nftables.WithSockOptions(
		// A rule per address in one transaction, and an answer to each.
		func(c *netlink.Conn) error { return c.SetWriteBuffer(sendBuffer) },
		func(c *netlink.Conn) error { return c.SetReadBuffer(recvBuffer) },
	)}
	if !sp.here {
		options = append(options, nftables.WithNetNSFd(int(sp.ns.Fd())))
	}
	return nftables.New(options...)
}

func nftFamily(v6 bool) nftables.TableFamily {
	if v6 {
		return nftables.TableFamilyIPv6
	}
	return nftables.TableFamilyIPv4
}

// noNft says that the kernel has no nf_tables at all: no netfilter sockets, or
// nobody who answers for nf_tables there (nfnetlink_rcv_msg, nfnetlink_rcv_batch).
func noNft(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)
}

// nftTables looks for tables by their names, in each of the families. It does not go by
// the kernel's list of all, which may leave one out while others change theirs.
func (sp *space) nftTables(ctx context.Context, families []nftables.TableFamily, names ...string) (tables []*nftables.Table, err error) {
	if sp.nf == nil {
		err := sp.inside(func() (err error) {
			sp.nf, err = dial(unix.NETLINK_NETFILTER)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	put := func(m *message, i int) (typ, flags uint16) {
		m.bytes(byte(families[i/len(names)]), unix.NFNETLINK_V0, 0, 0)
		m.attrString(unix.NFTA_TABLE_NAME, names[i%len(names)])
		return unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETTABLE, 0
	}
	_, err = sp.nf.exchange(ctx, len(families)*len(names), put, func(i int, body []byte, err error) error {
		if errors.Is(err, unix.ENOENT) {
			return nil
		} else if err != nil {
			return err
		}
		t := &nftables.Table{Name: names[i%len(names)], Family: families[i/len(names)]}
		for typ, data := range attributes(body[min(4, len(body)):]) {
			if typ == unix.NFTA_TABLE_FLAGS && len(data) == 4 {
				t.Flags = binary.BigEndian.Uint32(data)
			}
		}
		tables = append(tables, t)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for nft tables: %w", err)
	}
	return tables, nil
}

// firewalls looks for the tables of a step, and for those that could hold its rules
// where they are iptables'. ok is false where the kernel has no nf_tables.
func (sp *space) firewalls(ctx context.Context, s plan.Nft) (tables []*nftables.Table, ok bool, err error) {
	tables, err = sp.nftTables(ctx, []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6}, s.TableName(), "raw", "mangle")
	if noNft(err) {
		return nil, false, nil
	}
	return tables, err == nil, err
}

func (sp *space) hasNft(ctx context.Context, s plan.Nft) (bool, error) {
	tables, ok, err := sp.firewalls(ctx, s)
	if err != nil {
		return false, err
	}
	for _, t := range tables {
		if t.Name == s.TableName() && (s.Delete || t.Family == nftFamily(s.IPv6)) {
			return true, nil
		}
	}
	if ok && !s.Delete && !s.IPTables {
		return false, nil
	}
	for _, v6 := range []bool{false, true} {
		if !s.Delete && v6 != s.IPv6 {
			continue
		}
		undo, err := sp.iptablesFind(ctx, s, v6, tables)
		if err != nil || undo != "" {
			return undo != "", err
		}
	}
	return false, nil
}

func (sp *space) nft(ctx context.Context, s plan.Nft) error {
	tables, ok, err := sp.firewalls(ctx, s)
	switch {
	case err != nil:
		return err
	case s.Delete:
		return sp.deleteFirewall(ctx, s, tables)
	case !ok || s.IPTables:
		return sp.iptablesAdd(ctx, s, tables)
	}
	c, err := sp.nftConn()
	if err != nil {
		return err
	}
	for _, t := range tables {
		// In place of one without its interface. Only where there is one: a deletion keeps the socket's close waiting for the kernel, 10 ms.
		if t.Name == s.TableName() && t.Family == nftFamily(s.IPv6) {
			c.DelTable(t)
		}
	}
	addTable(c, s)
	return c.Flush()
}

// deleteFirewall deletes the tables of both families. Where there is none, the
// rules may be iptables'.
func (sp *space) deleteFirewall(ctx context.Context, s plan.Nft, tables []*nftables.Table) error {
	c, err := sp.nftConn()
	if err != nil {
		return err
	}
	gone := 0
	for _, t := range tables {
		if t.Name == s.TableName() {
			c.DelTable(t)
			gone++
		}
	}
	if gone == 0 {
		return sp.iptablesDelete(ctx, s, tables)
	}
	if err := c.Flush(); err != nil && !absent(err) {
		return err
	}
	return nil
}

// addTable queues the table as wg-quick makes it.
func addTable(c *nftables.Conn, s plan.Nft) {
	t := &nftables.Table{Name: s.TableName(), Family: nftFamily(s.IPv6)}
	c.AddTable(t)
	chain := func(name string, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: prio})
	}
	preraw := chain("preraw", nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	premangle := chain("premangle", nftables.ChainHookPrerouting, nftables.ChainPriorityMangle)
	postmangle := chain("postmangle", nftables.ChainHookPostrouting, nftables.ChainPriorityMangle)
	for _, a := range s.Addrs {
		c.AddRule(&nftables.Rule{Table: t, Chain: preraw, Exprs: dropForeign(s.Link, a)})
	}
	if s.Mark == 0 {
		return
	}
	udp := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
	}
	c.AddRule(&nftables.Rule{Table: t, Chain: postmangle, Exprs: append(udp[:2:2],
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(s.Mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true},
	)})
	c.AddRule(&nftables.Rule{Table: t, Chain: premangle, Exprs: append(udp[:2:2],
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
	)})
}

// dropForeign drops what comes in for address a by another interface than link,
// unless its source is local.
func dropForeign(link string, a netip.Addr) []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, link)
	local := binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)
	// The destination's place in struct iphdr and struct ipv6hdr.
	offset := uint32(16)
	if a.Is6() {
		offset = 24
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: name},
		&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(a.BitLen() / 8), DestRegister: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()},
		&expr.Fib{FlagSADDR: true, ResultADDRTYPE: true, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: local},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}
