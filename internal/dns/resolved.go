package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"wg-quickns/internal/netns"
	"wg-quickns/internal/plan"
	"wg-quickns/internal/proc"
)

// systemd-resolved(8) on the system bus, see org.freedesktop.resolve1(5).
const (
	resolve1 = "org.freedesktop.resolve1"
	manager  = resolve1 + ".Manager."
	// answerTime is what all of a step's questions together may take.
	answerTime = 10 * time.Second
)

// errNoResolved says that systemd-resolved does not run, so that it has nothing either.
var errNoResolved = errors.New("systemd-resolved does not run")

// Resolved says whether systemd-resolved(8) has to stand in for resolvconf(8):
// there is no resolvconf and it runs. It knows the links of PID 1's network
// namespace only. A bus that cannot be asked is none.
func Resolved(ctx context.Context) bool {
	if _, err := proc.Look(program); err == nil {
		return false
	}
	running := false
	err := onBus(ctx, func(ctx context.Context, c *dbus.Conn) error {
		return c.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, resolve1).Store(&running)
	})
	return err == nil && running
}

func onBus(ctx context.Context, use func(context.Context, *dbus.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	c, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err == nil {
		defer c.Close()
		err = use(ctx, c)
	}
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// resolved calls methods of systemd-resolved, which it does not start.
func resolved(ctx context.Context, calls ...call) error {
	return onBus(ctx, func(ctx context.Context, c *dbus.Conn) error {
		for _, m := range calls {
			got := c.Object(resolve1, "/org/freedesktop/resolve1").CallWithContext(ctx, manager+m.method, dbus.FlagNoAutoStart, m.args...)
			if err := got.Store(m.out...); err != nil {
				return fmt.Errorf("%s: %w", m.does, named(err))
			}
		}
		return nil
	})
}

// call is one method of the manager; does is the same as a command of resolvectl(1).
type call struct {
	does, method string
	args, out    []any
}

// named finds what an error of the bus stands for.
func named(err error) error {
	e := dbus.Error{}
	if !errors.As(err, &e) {
		return err
	}
	switch e.Name {
	case "org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner":
		return errNoResolved
	case resolve1 + ".NoSuchLink":
		return unix.ENODEV
	case resolve1 + ".LinkBusy":
		return fmt.Errorf("%w (hint: systemd-networkd manages the link, let it set the DNS or leave the link alone)", err)
	}
	return err
}

// address is a server as the bus has it, (iay).
type address struct {
	Family int32
	Bytes  []byte
}

// domain is a search domain, or with Route one whose names only go to the link's servers, (sb).
type domain struct {
	Name  string
	Route bool
}

// everything is the domain that all names are in.
const everything = "."

// addresses are the servers for a link, by whose own scope a link-local one is reached.
func addresses(link string, servers []string) ([]address, error) {
	list := make([]address, len(servers))
	for i, s := range servers {
		a, err := netip.ParseAddr(s)
		if err == nil && a.Zone() != "" && a.Zone() != link {
			err = errors.New("it is of another interface")
		}
		if err != nil {
			return nil, fmt.Errorf("DNS server `%s': systemd-resolved takes addresses only: %w", s, err)
		}
		list[i] = address{unix.AF_INET, a.AsSlice()}
		if a.Is6() {
			list[i].Family = unix.AF_INET6
		}
	}
	return list, nil
}

// domains are the search domains, and that which makes the link's servers the
// only ones, as `resolvconf -x` asks for.
func domains(search []string) []domain {
	list := make([]domain, 0, len(search)+1)
	for _, s := range search {
		name, route := strings.CutPrefix(s, "~")
		list = append(list, domain{name, route})
	}
	if all := (domain{everything, true}); !slices.Contains(list, all) {
		list = append(list, all)
	}
	return list
}

// setLink gives a link its servers and domains. Both or none: what was set is
// taken back when the rest fails.
func setLink(ctx context.Context, s plan.DNS) error {
	servers, err := addresses(s.Link, s.Servers)
	if err != nil {
		return err
	}
	does, index := s.Commands(), int32(s.Index)
	err = resolved(ctx,
		call{does: does[0], method: "SetLinkDNS", args: []any{index, servers}},
		call{does: does[1], method: "SetLinkDomains", args: []any{index, domains(s.Search)}})
	if err != nil {
		fresh, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		s.Delete = true
		_ = revertLink(fresh, s) // the link is deleted next, and takes the rest with it
	}
	return err
}

// revertLink takes back all that was set on a link. A link that is gone, or a
// systemd-resolved, has nothing.
func revertLink(ctx context.Context, s plan.DNS) error {
	err := resolved(ctx, call{does: s.Commands()[0], method: "RevertLink", args: []any{int32(s.Index)}})
	if errors.Is(err, errNoResolved) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// linkThere says whether there is a link of that index: without one
// systemd-resolved keeps nothing of it.
func linkThere(ns plan.NS, index int) (there bool, err error) {
	err = netns.Do(string(ns), func() error {
		links, err := net.Interfaces()
		there = slices.ContainsFunc(links, func(l net.Interface) bool { return l.Index == index })
		return err
	})
	if err != nil {
		return false, fmt.Errorf("look for the link that DNS is of: %w", err)
	}
	return there, nil
}

// ListLink gives the servers and search domains that systemd-resolved has for a
// link, which may be none. It fails when systemd-resolved does not run.
func ListLink(ctx context.Context, index int) (servers, search []string, err error) {
	var path dbus.ObjectPath
	var properties map[string]dbus.Variant
	err = onBus(ctx, func(ctx context.Context, c *dbus.Conn) error {
		err := c.Object(resolve1, "/org/freedesktop/resolve1").CallWithContext(ctx, manager+"GetLink", dbus.FlagNoAutoStart, int32(index)).Store(&path)
		if err != nil {
			return named(err)
		}
		return c.Object(resolve1, path).CallWithContext(ctx, "org.freedesktop.DBus.Properties.GetAll", dbus.FlagNoAutoStart, resolve1+".Link").Store(&properties)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("ask systemd-resolved for the DNS of link %d: %w", index, err)
	}
	var addrs []address
	var names []domain
	if err := dbus.Store([]any{properties["DNS"], properties["Domains"]}, &addrs, &names); err != nil {
		return nil, nil, fmt.Errorf("read what systemd-resolved has for link %d: %w", index, err)
	}
	for _, a := range addrs {
		if addr, ok := netip.AddrFromSlice(a.Bytes); ok {
			servers = append(servers, addr.String())
		}
	}
	for _, d := range names {
		switch {
		case d == domain{everything, true}: // our own
		case d.Route:
			search = append(search, "~"+d.Name)
		default:
			search = append(search, d.Name)
		}
	}
	return servers, search, nil
}
