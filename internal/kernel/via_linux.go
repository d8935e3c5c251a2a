package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

// rtaNHID is RTA_NH_ID of linux/rtnetlink.h: the route leads to a nexthop object.
const rtaNHID = 30

// userHZ is the kernel's unit of times in struct rta_cacheinfo, per second.
const userHZ = 100

// parseWay reads the body of a route's message, which parseRoute has read before,
// for all that it takes to make the same route again. What the kernel only reports
// (counters, the state of a next hop) is left out: it refuses to be told.
func parseWay(b []byte, names map[int]string) *facts.Way {
	w := &facts.Way{SrcLen: b[2], TOS: b[3], Scope: b[6], Flags: native32(b[8:]) & unix.RTNH_F_ONLINK}
	var raw message
	object := false // a nexthop object, which the rest would only repeat
	for typ := range attributes(b[unix.SizeofRtMsg:]) {
		object = object || typ == rtaNHID
	}
	for typ, data := range attributes(b[unix.SizeofRtMsg:]) {
		switch typ {
		case unix.RTA_DST, unix.RTA_TABLE, unix.RTA_PRIORITY:
			continue
		case unix.RTA_CACHEINFO: // struct rta_cacheinfo
			if len(data) >= 12 {
				if left := int32(native32(data[8:])); left > 0 {
					w.Expires = uint32(left)/userHZ + 1
				}
			}
			continue
		case unix.RTA_OIF, unix.RTA_GATEWAY, unix.RTA_VIA, unix.RTA_MULTIPATH, unix.RTA_FLOW:
			if object {
				continue
			}
		}
		if typ == unix.RTA_MULTIPATH {
			data = bytes.Clone(data)
			for hop := range hops(data) {
				hop[2] &= unix.RTNH_F_ONLINK
			}
		}
		raw.attr(typ, data)
	}
	w.Raw = raw.b
	w.Text = wayText(b, w, names)
	return w
}

// hops walks the struct rtnexthops of RTA_MULTIPATH, each with its attributes.
func hops(b []byte) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(b) >= unix.SizeofRtNexthop {
			n := int(native16(b))
			if n < unix.SizeofRtNexthop || n > len(b) || !yield(b[:n]) {
				return
			}
			b = b[min(align(n), len(b)):]
		}
	}
}

// wayText is the part of ip-route(8)'s command line that says where to.
func wayText(b []byte, w *facts.Way, names map[int]string) string {
	var words []string
	add := func(text ...string) { words = append(words, text...) }
	dev := func(index int) string {
		if name, ok := names[index]; ok {
			return name
		}
		return fmt.Sprintf("if%d", index)
	}
	hop := func(typ uint16, data []byte) {
		switch typ {
		case unix.RTA_GATEWAY:
			a, _ := netip.AddrFromSlice(data)
			add("via", a.String())
		case unix.RTA_VIA:
			a, _ := netip.AddrFromSlice(data[min(2, len(data)):])
			add("via", "inet6", a.String())
		}
	}
	for typ, data := range attributes(w.Raw) {
		switch typ {
		case unix.RTA_GATEWAY, unix.RTA_VIA:
			hop(typ, data)
		case rtaNHID:
			add("nhid", fmt.Sprint(native32(data)))
		case unix.RTA_MULTIPATH:
			for h := range hops(data) {
				add("nexthop")
				for typ, data := range attributes(h[unix.SizeofRtNexthop:]) {
					hop(typ, data)
				}
				add("dev", dev(int(native32(h[4:]))), "weight", fmt.Sprint(int(h[3])+1))
			}
		}
	}
	for typ, data := range attributes(w.Raw) {
		switch typ {
		case unix.RTA_OIF:
			add("dev", dev(int(native32(data))))
		case unix.RTA_PREFSRC:
			a, _ := netip.AddrFromSlice(data)
			add("src", a.String())
		case unix.RTA_METRICS:
			for typ, data := range attributes(data) {
				switch typ {
				case unix.RTAX_MTU:
					add("mtu", fmt.Sprint(native32(data)))
				case unix.RTAX_ADVMSS:
					add("advmss", fmt.Sprint(native32(data)))
				}
			}
		}
	}
	if w.Flags&unix.RTNH_F_ONLINK != 0 {
		add("onlink")
	}
	if b[0] == unix.AF_INET && w.Scope == unix.RT_SCOPE_LINK {
		add("scope", "link")
	}
	return strings.Join(words, " ")
}

// details lists all routes with the Way of each.
func (sp *space) details() ([]facts.Route, []facts.Link, error) {
	links, err := sp.links()
	if err != nil {
		return nil, nil, err
	}
	names := map[int]string{0: ""}
	for _, l := range links {
		names[l.Index] = l.Name
	}
	routes, err := sp.routes(names)
	return routes, links, err
}

func (sp *space) hasVia(s plan.Via) (bool, error) {
	routes, _, err := sp.details()
	for _, r := range routes {
		if r.Same(s.Route) {
			return true, nil
		}
	}
	return false, err
}

// via adds, deletes or restores a route.
func (d *Doer) via(ctx context.Context, sp *space, s plan.Via) error {
	send := func(typ, flags uint16) error {
		return sp.one(ctx, s.Delete, func(m *message) (uint16, uint16) {
			r := s.Route
			way := *r.Way
			if s.Delete {
				way.Expires = 0
			}
			r.Way = &way
			m.putVia(r)
			return typ, flags
		})
	}
	switch {
	case s.Delete:
		return send(unix.RTM_DELROUTE, 0)
	case s.Replace:
		return send(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	case !s.Restore:
		return send(unix.RTM_NEWROUTE, create)
	}
	routes, links, err := sp.details()
	if err != nil {
		return err
	}
	up := make(map[int]bool)
	var instead int
	for _, l := range links {
		up[l.Index] = l.Up
		if l.Name == s.Instead {
			instead = l.Index
		}
	}
	for _, r := range routes {
		if r.Slot() != s.Route.Slot() || r.Same(s.Route) {
			continue
		}
		if s.Instead == "" || r.Index != instead {
			return nil // somebody else's by now
		}
		err = send(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
		return d.outOfReach(s, err)
	}
	if i := s.Route.Index; i != 0 && !up[i] {
		return d.outOfReach(s, unix.ENETDOWN)
	}
	err = send(unix.RTM_NEWROUTE, create)
	if errors.Is(err, unix.EEXIST) { // it is there
		return nil
	}
	return d.outOfReach(s, err)
}

// outOfReach makes a message of the error of a route that cannot come back
// because its network is gone: the kernel would have dropped it itself.
func (d *Doer) outOfReach(s plan.Via, err error) error {
	for _, gone := range []error{unix.ENETDOWN, unix.ENODEV, unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EINVAL} {
		if errors.Is(err, gone) {
			if d.opt.Warn != nil {
				d.opt.Warn(fmt.Sprintf("the route %s %s cannot come back: %v", s.Route.Dst, s.Route.Way.Text, err))
			}
			return nil
		}
	}
	return err
}
