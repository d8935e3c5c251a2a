package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wg-quickns/confparse"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/netns"
	"wg-quickns/internal/plan"
)

// Options are what a Doer needs from others.
type Options struct {
	// Userspace serves a WireGuard interface of that name in ns where the kernel
	// cannot, and says by which program. It returns once the interface is there,
	// and must not use the Doer. Nil: the kernel's refusal is the error.
	Userspace func(ctx context.Context, ns plan.NS, name string) (program string, err error)
	// Warn gets what a user should know though it is no error. Nil: it is not said.
	Warn func(text string)
}

// Doer carries out steps on the kernel. It is for one goroutine at a time.
type Doer struct {
	opt    Options
	spaces map[plan.NS]*space
}

// space is one network namespace with the sockets opened in it.
type space struct {
	ns   *os.File
	here bool            // it is the process's own: no thread has to move
	rt   *socket         // rtnetlink, for changes
	list *netlink.Handle // rtnetlink, for dumps
	wg   *wireguard      // the kernel's; nil until it is there
	nf   *socket         // netfilter, to look for tables; nil until that is asked
}

// New makes a Doer. It opens nothing until a namespace is needed.
func New(opt Options) *Doer {
	return &Doer{opt: opt, spaces: map[plan.NS]*space{}}
}

// Close closes the sockets of all namespaces.
func (d *Doer) Close() error {
	var errs []error
	for _, sp := range d.spaces {
		errs = append(errs, sp.close())
	}
	clear(d.spaces)
	return errors.Join(errs...)
}

func (sp *space) close() error {
	err := errors.Join(sp.rt.close(), sp.ns.Close())
	sp.list.Close()
	if sp.wg != nil {
		err = errors.Join(err, sp.wg.socket.close())
	}
	if sp.nf != nil {
		err = errors.Join(err, sp.nf.close())
	}
	return err
}

func (d *Doer) space(ns plan.NS) (*space, error) {
	if sp := d.spaces[ns]; sp != nil {
		return sp, nil
	}
	f, err := netns.Open(string(ns))
	if err != nil {
		return nil, err
	}
	sp := &space{ns: f, here: ns == ""}
	err = sp.inside(func() (err error) {
		if sp.rt, err = dial(unix.NETLINK_ROUTE); err != nil {
			return err
		}
		sp.list, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		if sp.rt != nil {
			sp.rt.close()
		}
		f.Close()
		return nil, fmt.Errorf("open netlink in %s: %w", f.Name(), err)
	}
	d.spaces[ns] = sp
	return sp, nil
}

// inside runs fn on a thread that is in the namespace.
func (sp *space) inside(fn func() error) error {
	if sp.here {
		return fn()
	}
	return netns.DoFile(sp.ns, fn)
}

// Exists says whether what the step makes is there already: a link of that
// name, an address or route (of a list: all of them) on the link, a rule or a
// sysctl equal in everything, an nft table of that name, the same route as a Via's, the kill
// switch with this tunnel and all of its rules, an interface that a Move brought away,
// a twin. For a deleting step, and a Move home, it says whether there is what that
// would delete, or bring home. Of what sets rather than makes, a LinkUp and a FwMark are
// there when that is set, a WG never, a Hold and a Settle always.
func (d *Doer) Exists(ctx context.Context, ns plan.NS, step plan.Step) (bool, error) {
	if s, ok := step.(plan.Netns); ok {
		return hasNetns(ctx, s)
	}
	if s, ok := step.(plan.Move); ok {
		return d.hasMove(ctx, s)
	}
	sp, err := d.space(ns)
	if err != nil {
		return false, err
	}
	switch s := step.(type) {
	case plan.Link:
		return d.hasLink(ctx, sp, s)
	case plan.LinkUp:
		l, found, err := sp.linkByName(s.Name)
		return found && l.Up && l.MTU == s.MTU, err
	case plan.Addr:
		return sp.hasAddrs(s)
	case plan.Route:
		return sp.hasRoutes(s)
	case plan.Via:
		return sp.hasVia(s)
	case plan.Rule:
		return sp.hasRule(s)
	case plan.WG:
		return false, nil
	case plan.FwMark:
		return sp.hasFwMark(ctx, s)
	case plan.Nft:
		return sp.hasNft(ctx, s)
	case plan.KillSwitch:
		return sp.hasKillSwitch(ctx, s)
	case plan.Sysctl:
		v, err := sp.sysctl(s.Name)
		return sameValue(v, s.Value), err
	case plan.Twin:
		return sp.hasTwin(ctx, s)
	case plan.Hold, plan.Settle: // which set rather than make
		return true, nil
	}
	return false, fmt.Errorf("kernel: no such step: %s", step.Kind())
}

// Do carries a step out. Deleting what is absent is no error. An error is a
// *plan.StepError that wraps the errno.
func (d *Doer) Do(ctx context.Context, ns plan.NS, step plan.Step) (plan.Outcome, error) {
	out, i, err := d.do(ctx, ns, step)
	if err != nil {
		return out, &plan.StepError{Step: step, Index: i, Err: err}
	}
	return out, nil
}

// do is Do; index says which item of a step with a list failed.
func (d *Doer) do(ctx context.Context, ns plan.NS, step plan.Step) (out plan.Outcome, index int, err error) {
	if err := ctx.Err(); err != nil {
		return out, 0, err
	}
	if s, ok := step.(plan.Netns); ok {
		out, err = d.netns(ctx, s)
		return out, 0, err
	}
	if s, ok := step.(plan.Move); ok {
		return out, 0, d.move(ctx, s)
	}
	sp, err := d.space(ns)
	if err != nil {
		return out, 0, err
	}
	switch s := step.(type) {
	case plan.Link:
		if s.Delete {
			return out, 0, d.deleteLink(ctx, sp, s)
		}
		out, err = d.addLink(ctx, ns, sp, s)
		return out, 0, err
	case plan.LinkUp:
		l, err := sp.mustLink(s.Name)
		if err != nil {
			return out, 0, err
		}
		return out, 0, sp.one(ctx, false, func(m *message) (typ, flags uint16) { return m.putLinkUp(l.Index, s.MTU) })
	case plan.Addr:
		index, err = sp.eachPrefix(ctx, s.Link, s.Delete, len(s.List), func(m *message, link, i int) (typ, flags uint16) {
			return m.putAddr(link, s.List[i].Prefix, s.NoPrefixRoute, s.Delete)
		})
		return out, index, err
	case plan.Route:
		link := s.Link
		if s.Unreachable {
			link = ""
		}
		index, err = sp.eachPrefix(ctx, link, s.Delete, len(s.List), func(m *message, link, i int) (typ, flags uint16) {
			return m.putRoute(link, s.List[i].Prefix.Masked(), s)
		})
		return out, index, err
	case plan.Via:
		return out, 0, d.via(ctx, sp, s)
	case plan.Rule:
		return out, 0, sp.one(ctx, s.Delete, func(m *message) (typ, flags uint16) { return m.putRule(s) })
	case plan.WG:
		if err := sp.removePeers(ctx, s.Link, s.Remove); err != nil {
			return out, 0, err
		}
		return out, 0, sp.configure(ctx, s.Link, s.Device)
	case plan.FwMark:
		return out, 0, sp.configure(ctx, s.Link, &confparse.Device{FwMark: &s.Mark})
	case plan.Nft:
		return out, 0, sp.nft(ctx, s)
	case plan.KillSwitch:
		return out, 0, d.killSwitch(ctx, sp, s)
	case plan.Sysctl:
		out, err = sp.setSysctl(s)
		return out, 0, err
	case plan.Hold:
		return out, 0, sp.hold(ctx, s)
	case plan.Settle:
		return out, 0, d.settle(ctx, sp, s)
	case plan.Twin:
		return out, 0, d.twin(ctx, ns, sp, s)
	}
	return out, 0, fmt.Errorf("kernel: no such step: %s", step.Kind())
}

// one sends one request.
func (sp *space) one(ctx context.Context, gone bool, put func(m *message) (typ, flags uint16)) error {
	_, err := sp.rt.batch(ctx, 1, gone, func(m *message, _ int) (typ, flags uint16) { return put(m) })
	return err
}

// eachPrefix sends a request for each of n items that concern a link, "": none.
// The items of a link that is gone are gone with it.
func (sp *space) eachPrefix(ctx context.Context, link string, del bool, n int, put func(m *message, link, i int) (typ, flags uint16)) (int, error) {
	var l facts.Link
	if link != "" {
		var found bool
		var err error
		l, found, err = sp.linkByName(link)
		if err != nil || !found && del {
			return 0, err
		}
		if !found {
			return 0, noLink(link)
		}
	}
	return sp.rt.batch(ctx, n, del, func(m *message, i int) (typ, flags uint16) { return put(m, l.Index, i) })
}

func (sp *space) hasAddrs(s plan.Addr) (bool, error) {
	l, found, err := sp.linkByName(s.Link)
	if err != nil || !found {
		return false, err
	}
	have, err := sp.addrs(l)
	if err != nil {
		return false, err
	}
	for _, p := range s.List {
		if !slices.Contains(have, p.Prefix) {
			return false, nil
		}
	}
	return len(s.List) > 0, nil
}

func (sp *space) hasRoutes(s plan.Route) (bool, error) {
	var l facts.Link
	if !s.Unreachable {
		var found bool
		var err error
		if l, found, err = sp.linkByName(s.Link); err != nil || !found {
			return false, err
		}
	}
	table := s.Table
	if table == 0 {
		table = plan.TableMain
	}
	missing := make(map[netip.Prefix]bool, len(s.List))
	for _, p := range s.List {
		missing[p.Prefix.Masked()] = true
	}
	have, err := sp.routes(nil)
	for _, r := range have {
		same := r.Index == l.Index
		if s.Unreachable {
			same = r.Type == unix.RTN_UNREACHABLE
		}
		if same && r.Table == table && (s.Metric == 0 || r.Metric == s.Metric) {
			delete(missing, r.Dst)
		}
	}
	return len(s.List) > 0 && len(missing) == 0, err
}

func (sp *space) hasRule(s plan.Rule) (bool, error) {
	rules, err := sp.rules(s.IPv6)
	if err != nil {
		return false, err
	}
	mask := uint32(0)
	if s.NotFwMark != 0 {
		mask = ^uint32(0)
	}
	to := s.To
	if to.IsValid() {
		to = to.Masked()
	}
	return slices.Contains(rules, facts.Rule{
		IPv6: s.IPv6, Priority: s.Priority, Invert: s.NotFwMark != 0, FwMark: s.NotFwMark, FwMask: mask,
		Table: s.Table, SuppressPrefixLen: s.SuppressPrefixLen, Dst: to,
	}), nil
}
