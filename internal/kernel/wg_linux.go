package kernel

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"wg-quickns/confparse"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

// wgctrl runs fn with a client of the userspace devices.
func (sp *space) wgctrl(fn func(c *wgctrl.Client) error) error {
	var c *wgctrl.Client
	err := sp.inside(func() (err error) {
		c, err = wgctrl.New()
		return err
	})
	if err != nil {
		return fmt.Errorf("open WireGuard control: %w", err)
	}
	defer c.Close()
	if err := fn(c); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return unix.ENODEV // wgctrl has only "file does not exist"
}

// kernelDevice finds the kernel's device of that name; w is nil when it is one
// that a program may serve. Any other is ENODEV: a socket of that name would be of
// another namespace's.
func (sp *space) kernelDevice(ctx context.Context, name string) (w *wireguard, index int, err error) {
	l, found, err := sp.linkByName(name)
	switch {
	case err != nil:
		return nil, 0, err
	case found && l.Type == "tun":
		return nil, 0, nil
	case !found || l.Type != "wireguard":
		return nil, 0, unix.ENODEV
	}
	w, err = sp.kernelWG(ctx)
	return w, l.Index, err
}

// zones gives the index of each interface that the zone of an endpoint's address
// names. One that there is not is an error, in wg(8)'s words, as for getaddrinfo(3);
// a number is taken as it is.
func (sp *space) zones(dev *confparse.Device) (func(zone string) uint32, error) {
	known := map[string]uint32{"": 0}
	for _, p := range dev.Peers {
		if p.Endpoint == nil {
			continue
		}
		zone := p.Endpoint.Addr.Addr().Zone()
		if _, ok := known[zone]; ok {
			continue
		}
		n, err := strconv.ParseUint(zone, 10, 32)
		if err != nil {
			l, found, err := sp.linkByName(zone)
			if err == nil && !found {
				err = fmt.Errorf("Name or service not known: `[%s]:%s'", p.Endpoint.Host, p.Endpoint.Port)
			}
			if err != nil {
				return nil, err
			}
			n = uint64(l.Index)
		}
		known[zone] = uint32(n)
	}
	return func(zone string) uint32 { return known[zone] }, nil
}

// Zones checks that there are the interfaces in ns, where a device has its UDP socket,
// that the zones of its endpoints name. With number it gives their indices in place of
// their names, for a device that is configured from elsewhere.
func (d *Doer) Zones(ns plan.NS, dev *confparse.Device, number bool) error {
	if !slices.ContainsFunc(dev.Peers, func(p confparse.Peer) bool { return p.Endpoint != nil && p.Endpoint.Addr.Addr().Zone() != "" }) {
		return nil
	}
	sp, err := d.space(ns)
	if err != nil {
		return err
	}
	index, err := sp.zones(dev)
	if err != nil || !number {
		return err
	}
	for _, p := range dev.Peers {
		if p.Endpoint == nil || p.Endpoint.Addr.Addr().Zone() == "" {
			continue
		}
		a := p.Endpoint.Addr.Addr()
		a = a.WithZone(strconv.FormatUint(uint64(index(a.Zone())), 10))
		p.Endpoint.Addr = netip.AddrPortFrom(a, p.Endpoint.Addr.Port())
	}
	return nil
}

func (sp *space) zoneName(index uint32) string {
	if l, err := sp.list.LinkByIndex(int(index)); err == nil {
		return l.Attrs().Name
	}
	return strconv.FormatUint(uint64(index), 10)
}

// device reads a device, with its keys.
func (sp *space) device(ctx context.Context, name string) (dev *confparse.Device, kernel bool, err error) {
	w, index, err := sp.kernelDevice(ctx, name)
	switch {
	case err != nil:
	case w != nil:
		dev, err = w.get(index, sp.zoneName)
	default:
		err = sp.wgctrl(func(c *wgctrl.Client) error {
			d, err := c.Device(servedName(name))
			if err == nil {
				dev = fromUserspace(d)
			}
			return err
		})
	}
	if err != nil {
		return nil, false, fmt.Errorf("read WireGuard interface %s: %w", name, err)
	}
	return dev, w != nil, nil
}

func (sp *space) hasFwMark(ctx context.Context, s plan.FwMark) (bool, error) {
	dev, _, err := sp.device(ctx, s.Link)
	if err != nil {
		return false, err
	}
	have := uint32(0)
	if dev.FwMark != nil {
		have = *dev.FwMark
	}
	return have == s.Mark, nil
}

// removePeers takes peers away, many in one request.
func (sp *space) removePeers(ctx context.Context, name string, keys []confparse.Key) error {
	if len(keys) == 0 {
		return nil
	}
	w, index, err := sp.kernelDevice(ctx, name)
	if err != nil {
		return err
	}
	if w == nil {
		var set wgtypes.Config
		for _, k := range keys {
			set.Peers = append(set.Peers, wgtypes.PeerConfig{PublicKey: wgtypes.Key(k), Remove: true})
		}
		err = sp.wgctrl(func(c *wgctrl.Client) error { return c.ConfigureDevice(servedName(name), set) })
	} else {
		var parts [][]peerPart
		for some := range slices.Chunk(keys, maxRequest/peerSize) {
			var list []peerPart
			for _, k := range some {
				list = append(list, peerPart{Peer: &confparse.Peer{PublicKey: k}, more: true, remove: true})
			}
			parts = append(parts, list)
		}
		err = w.set(ctx, index, &confparse.Device{}, parts, nil) // no endpoints
	}
	if err != nil {
		return fmt.Errorf("remove peers: %w", err)
	}
	return nil
}

// configure applies a device's configuration as `wg addconf` does.
func (sp *space) configure(ctx context.Context, name string, dev *confparse.Device) error {
	for _, p := range dev.Peers {
		if p.Endpoint != nil && !p.Endpoint.Addr.IsValid() {
			return fmt.Errorf("endpoint %s:%s has no address yet: %w", p.Endpoint.Host, p.Endpoint.Port, unix.EDESTADDRREQ)
		}
	}
	zone, err := sp.zones(dev)
	if err != nil {
		return err
	}
	w, index, err := sp.kernelDevice(ctx, name)
	if err != nil {
		return err
	}
	if w != nil {
		err = w.set(ctx, index, dev, requests(dev.Peers), zone)
	} else {
		err = sp.wgctrl(func(c *wgctrl.Client) error { return c.ConfigureDevice(servedName(name), toUserspace(dev)) })
	}
	if err != nil {
		return err
	}
	temp, err := sp.detour(ctx, name, dev)
	if err != nil || temp == nil {
		return err
	}
	if w != nil {
		list := append(requests([]confparse.Peer{*temp}), []peerPart{{Peer: temp, more: true, remove: true}})
		err = w.set(ctx, index, &confparse.Device{}, list, zone)
	} else {
		err = sp.wgctrl(func(c *wgctrl.Client) error {
			set := toUserspace(&confparse.Device{Peers: []confparse.Peer{*temp}})
			gone := wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: set.Peers[0].PublicKey, Remove: true}}}
			return errors.Join(c.ConfigureDevice(servedName(name), set), c.ConfigureDevice(servedName(name), gone))
		})
	}
	if err != nil {
		return fmt.Errorf("remove allowed IPs: %w", err)
	}
	return nil
}

// detour is how allowed IPs are removed (`-`): WGALLOWEDIP_F_REMOVE_ME is there
// from Linux 6.16 on only, but everywhere a prefix that is given to another peer
// leaves the first, and goes when that other is removed. The peer returned is
// that other, with the prefixes that are where they are to be removed; it is nil
// when there are none.
func (sp *space) detour(ctx context.Context, name string, dev *confparse.Device) (*confparse.Peer, error) {
	gone := map[confparse.Key]map[netip.Prefix]bool{}
	for i := range dev.Peers {
		if m := removals(&dev.Peers[i]); m != nil {
			gone[dev.Peers[i].PublicKey] = m
		}
	}
	if len(gone) == 0 {
		return nil, nil
	}
	now, _, err := sp.device(ctx, name)
	if err != nil {
		return nil, err
	}
	var temp confparse.Peer
	rand.Read(temp.PublicKey[:]) // never fails
	for _, p := range now.Peers {
		for _, ip := range p.AllowedIPs {
			if gone[p.PublicKey][ip.Prefix] {
				temp.AllowedIPs = append(temp.AllowedIPs, ip)
			}
		}
	}
	if len(temp.AllowedIPs) == 0 {
		return nil, nil
	}
	return &temp, nil
}

// removals are the prefixes of which the peer's last word is to remove them.
func removals(p *confparse.Peer) map[netip.Prefix]bool {
	var m map[netip.Prefix]bool
	for _, a := range p.AllowedIPs {
		if a.Remove && m == nil {
			m = map[netip.Prefix]bool{}
		}
		if m != nil {
			m[a.Prefix] = a.Remove
		}
	}
	return m
}

// kept are the allowed IPs without those to be removed.
func kept(p *confparse.Peer) []confparse.AllowedIP {
	gone := removals(p)
	if gone == nil {
		return p.AllowedIPs
	}
	var list []confparse.AllowedIP
	for _, a := range p.AllowedIPs {
		if !gone[a.Prefix] {
			list = append(list, a)
		}
	}
	return list
}

// toUserspace leaves out the allowed IPs that are to be removed.
func toUserspace(dev *confparse.Device) wgtypes.Config {
	c := wgtypes.Config{ListenPort: dev.ListenPort, PrivateKey: (*wgtypes.Key)(dev.PrivateKey)}
	if dev.FwMark != nil {
		m := int(*dev.FwMark)
		c.FirewallMark = &m
	}
	for i := range dev.Peers {
		p := &dev.Peers[i]
		out := wgtypes.PeerConfig{
			PublicKey: wgtypes.Key(p.PublicKey), PresharedKey: (*wgtypes.Key)(p.PresharedKey), ReplaceAllowedIPs: p.ReplaceAllowedIPs,
		}
		if p.Keepalive != nil {
			t := time.Duration(*p.Keepalive) * time.Second
			out.PersistentKeepaliveInterval = &t
		}
		if p.Endpoint != nil {
			out.Endpoint = net.UDPAddrFromAddrPort(p.Endpoint.Addr)
		}
		for _, a := range kept(p) {
			ip := a.Prefix.Addr()
			out.AllowedIPs = append(out.AllowedIPs, net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(a.Prefix.Bits(), ip.BitLen())})
		}
		c.Peers = append(c.Peers, out)
	}
	return c
}

func fromUserspace(d *wgtypes.Device) *confparse.Device {
	dev := &confparse.Device{PrivateKey: parseKey(d.PrivateKey[:])}
	if d.ListenPort != 0 {
		dev.ListenPort = &d.ListenPort
	}
	if m := uint32(d.FirewallMark); m != 0 {
		dev.FwMark = &m
	}
	for i := range d.Peers {
		p := &d.Peers[i]
		out := confparse.Peer{
			PublicKey: confparse.Key(p.PublicKey), PresharedKey: parseKey(p.PresharedKey[:]),
			ReplaceAllowedIPs: true, AllowedIPs: make([]confparse.AllowedIP, len(p.AllowedIPs)),
		}
		if p.Endpoint != nil {
			a := p.Endpoint.AddrPort() // package net keeps IPv4 in 16 bytes
			out.Endpoint = toEndpoint(netip.AddrPortFrom(a.Addr().Unmap(), a.Port()))
		}
		if t := uint16(p.PersistentKeepaliveInterval / time.Second); t != 0 {
			out.Keepalive = &t
		}
		for j := range p.AllowedIPs {
			out.AllowedIPs[j].Prefix = toPrefix(&p.AllowedIPs[j])
		}
		dev.Peers = append(dev.Peers, out)
	}
	return dev
}

// ReadDevice reads a device with its keys, for `save`: peers and allowed IPs in
// the device's order, endpoints as addresses. What is not set is nil.
func (d *Doer) ReadDevice(ctx context.Context, ns plan.NS, name string) (*confparse.Device, error) {
	sp, err := d.space(ns)
	if err != nil {
		return nil, err
	}
	dev, _, err := sp.device(ctx, name)
	return dev, err
}

// toFacts leaves the keys out.
func toFacts(dev *confparse.Device, kernel bool, l facts.Link) facts.Device {
	out := facts.Device{Name: l.Name, Index: l.Index, Kernel: kernel, Peers: make([]facts.Peer, len(dev.Peers))}
	if dev.FwMark != nil {
		out.FwMark = *dev.FwMark
	}
	if dev.ListenPort != nil {
		out.ListenPort = *dev.ListenPort
	}
	for i, p := range dev.Peers {
		if p.Endpoint != nil {
			out.Peers[i].Endpoint = p.Endpoint.Addr
		}
		out.Peers[i].AllowedIPs = make([]netip.Prefix, len(p.AllowedIPs))
		for j, a := range p.AllowedIPs {
			out.Peers[i].AllowedIPs[j] = a.Prefix
		}
	}
	return out
}
