package kernel

import (
	"context"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/plan"
)

// Revive has an IPv6 gateway asked whether it lives, if the kernel takes it for dead. Where
// that has a less specific route it passes over those by a dead gateway, and asks it again
// but once a minute (rt6_check_neigh in net/ipv6/route.c; router_probe_interval).
func (d *Doer) Revive(ctx context.Context, ns plan.NS, link int, gateway netip.Addr) error {
	sp, err := d.space(ns)
	if err != nil {
		return err
	}
	dead := false
	ask := func(typ uint16, flag byte) error {
		_, err := sp.rt.exchange(ctx, 1, func(m *message, _ int) (uint16, uint16) {
			m.bytes(unix.AF_INET6, 0, 0, 0) // struct ndmsg
			m.uint32(uint32(link))
			m.bytes(0, 0, flag, 0)
			m.attrAddr(unix.NDA_DST, gateway)
			return typ, 0
		}, func(_ int, body []byte, err error) error {
			dead = dead || err == nil && len(body) >= unix.SizeofNdMsg && native16(body[8:])&unix.NUD_FAILED != 0
			return err
		})
		return err
	}
	if err := ask(unix.RTM_GETNEIGH, 0); err != nil || !dead {
		if absent(err) {
			return nil // nobody has asked for it
		}
		return err
	}
	if err := ask(unix.RTM_NEWNEIGH, unix.NTF_USE); err != nil {
		return fmt.Errorf("ask for the gateway %s: %w", gateway, err)
	}
	return nil
}
