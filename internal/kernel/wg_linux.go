package kernel

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"wg-quickns/confparse"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/netns"
	"wg-quickns/internal/plan"
)

// wg runs fn with a client of the namespace's WireGuard devices, and of the
// userspace ones. The client is new each time: it looks for the kernel's
// WireGuard when it is made, and the first device may load that.
func (sp *space) wg(fn func(c *wgctrl.Client) error) error {
	var c *wgctrl.Client
	err := netns.DoFile(sp.ns, func() (err error) {
		c, err = wgctrl.New()
		return err
	})
	if err != nil {
		return fmt.Errorf("open WireGuard netlink: %w", err)
	}
	defer c.Close()
	return fn(c)
}

// noDevice puts an errno where wgctrl has only "file does not exist".
func noDevice(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("WireGuard interface %s: %w", name, unix.ENODEV)
	}
	return err
}

func (sp *space) device(name string) (dev *wgtypes.Device, err error) {
	err = sp.wg(func(c *wgctrl.Client) (err error) {
		dev, err = c.Device(name)
		return noDevice(name, err)
	})
	if err != nil {
		return nil, fmt.Errorf("read WireGuard interface: %w", err)
	}
	return dev, nil
}

func (sp *space) hasFwMark(s plan.FwMark) (bool, error) {
	dev, err := sp.device(s.Link)
	return err == nil && uint32(dev.FirewallMark) == s.Mark, err
}

func (sp *space) setFwMark(s plan.FwMark) error {
	mark := int(s.Mark)
	return sp.wg(func(c *wgctrl.Client) error {
		return noDevice(s.Link, c.ConfigureDevice(s.Link, wgtypes.Config{FirewallMark: &mark}))
	})
}

// wgctrl sends a request per peer, each with all of the device's own values, as
// soon as there are more than 32 peers or 256 allowed IPs. The kernel walks all
// peers each time it is told a fwmark, so that would be quadratic. Requests of
// at most that size it sends as they are.
const (
	maxPeers = 32
	maxIPs   = 256
)

// configs cuts a device's configuration into requests: its own values, then the
// peers, many in one request.
func configs(dev *confparse.Device) ([]wgtypes.Config, error) {
	own := wgtypes.Config{ListenPort: dev.ListenPort}
	if dev.PrivateKey != nil {
		k := wgtypes.Key(*dev.PrivateKey)
		own.PrivateKey = &k
	}
	if dev.FwMark != nil {
		m := int(*dev.FwMark)
		own.FirewallMark = &m
	}
	list := []wgtypes.Config{own}
	var now wgtypes.Config
	ips := 0
	flush := func() {
		if len(now.Peers) > 0 {
			list = append(list, now)
		}
		now, ips = wgtypes.Config{}, 0
	}
	for i := range dev.Peers {
		p, err := peerConfig(&dev.Peers[i])
		if err != nil {
			return nil, err
		}
		rest := p.AllowedIPs
		for {
			n := min(len(rest), maxIPs-ips)
			p.AllowedIPs, rest = rest[:n:n], rest[n:]
			now.Peers = append(now.Peers, p)
			ips += n
			if ips == maxIPs || len(now.Peers) == maxPeers {
				flush()
			}
			if len(rest) == 0 {
				break
			}
			p = wgtypes.PeerConfig{PublicKey: p.PublicKey}
		}
	}
	flush()
	return list, nil
}

// peerConfig leaves out the allowed IPs that are to be removed.
func peerConfig(p *confparse.Peer) (wgtypes.PeerConfig, error) {
	c := wgtypes.PeerConfig{
		PublicKey:         wgtypes.Key(p.PublicKey),
		ReplaceAllowedIPs: p.ReplaceAllowedIPs,
		AllowedIPs:        make([]net.IPNet, 0, len(p.AllowedIPs)),
	}
	if p.PresharedKey != nil {
		k := wgtypes.Key(*p.PresharedKey)
		c.PresharedKey = &k
	}
	if p.Keepalive != nil {
		t := time.Duration(*p.Keepalive) * time.Second
		c.PersistentKeepaliveInterval = &t
	}
	if p.Endpoint != nil {
		if !p.Endpoint.Addr.IsValid() {
			return c, fmt.Errorf("endpoint %s:%s has no address: %w", p.Endpoint.Host, p.Endpoint.Port, unix.EDESTADDRREQ)
		}
		c.Endpoint = net.UDPAddrFromAddrPort(p.Endpoint.Addr)
	}
	removed := removals(p)
	for _, a := range p.AllowedIPs {
		if !a.Remove && !removed[a.Prefix] {
			c.AllowedIPs = append(c.AllowedIPs, ipNet(a.Prefix))
		}
	}
	return c, nil
}

// removals are the prefixes of which the last word is to remove them.
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

func ipNet(p netip.Prefix) net.IPNet {
	a := p.Addr()
	return net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(p.Bits(), a.BitLen())}
}

// configure applies a device's configuration as `wg addconf` does.
func (sp *space) configure(s plan.WG) error {
	list, err := configs(s.Device)
	if err != nil {
		return err
	}
	return sp.wg(func(c *wgctrl.Client) error {
		for _, cfg := range list {
			if err := c.ConfigureDevice(s.Link, cfg); err != nil {
				return noDevice(s.Link, err)
			}
		}
		return remove(c, s)
	})
}

// remove takes allowed IPs away from peers. WGALLOWEDIP_F_REMOVE_ME is there
// from Linux 6.16 on and not in wgctrl; this works everywhere: a prefix given
// to another peer leaves the first, and goes when the other is removed.
func remove(c *wgctrl.Client, s plan.WG) error {
	gone := map[wgtypes.Key]map[netip.Prefix]bool{}
	for i := range s.Device.Peers {
		if m := removals(&s.Device.Peers[i]); m != nil {
			gone[wgtypes.Key(s.Device.Peers[i].PublicKey)] = m
		}
	}
	if len(gone) == 0 {
		return nil
	}
	dev, err := c.Device(s.Link)
	if err != nil {
		return noDevice(s.Link, err)
	}
	var temp wgtypes.PeerConfig
	rand.Read(temp.PublicKey[:])
	for _, p := range dev.Peers {
		for _, n := range p.AllowedIPs {
			if gone[p.PublicKey][toPrefix(&n)] {
				temp.AllowedIPs = append(temp.AllowedIPs, n)
			}
		}
	}
	if len(temp.AllowedIPs) == 0 {
		return nil
	}
	err = c.ConfigureDevice(s.Link, wgtypes.Config{Peers: []wgtypes.PeerConfig{temp}})
	gonePeer := wgtypes.PeerConfig{PublicKey: temp.PublicKey, Remove: true, UpdateOnly: true}
	err = errors.Join(err, c.ConfigureDevice(s.Link, wgtypes.Config{Peers: []wgtypes.PeerConfig{gonePeer}}))
	if err != nil {
		return fmt.Errorf("remove allowed IPs: %w", err)
	}
	return nil
}

// ReadDevice reads a device with its keys, for `save`: peers and allowed IPs in
// the device's order, endpoints as addresses. What is not set is nil.
func (d *Doer) ReadDevice(ns plan.NS, name string) (*confparse.Device, error) {
	sp, err := d.space(ns)
	if err != nil {
		return nil, err
	}
	dev, err := sp.device(name)
	if err != nil {
		return nil, err
	}
	out := &confparse.Device{Peers: make([]confparse.Peer, 0, len(dev.Peers))}
	out.PrivateKey = setKey(dev.PrivateKey)
	if dev.ListenPort != 0 {
		out.ListenPort = &dev.ListenPort
	}
	if dev.FirewallMark != 0 {
		mark := uint32(dev.FirewallMark)
		out.FwMark = &mark
	}
	for _, p := range dev.Peers {
		c := confparse.Peer{
			PublicKey:         confparse.Key(p.PublicKey),
			PresharedKey:      setKey(p.PresharedKey),
			ReplaceAllowedIPs: true,
			AllowedIPs:        make([]confparse.AllowedIP, 0, len(p.AllowedIPs)),
		}
		for _, n := range p.AllowedIPs {
			c.AllowedIPs = append(c.AllowedIPs, confparse.AllowedIP{Prefix: toPrefix(&n)})
		}
		if a := endpoint(p.Endpoint); a.IsValid() {
			c.Endpoint = &confparse.Endpoint{Host: a.Addr().String(), Port: strconv.Itoa(int(a.Port())), Addr: a}
		}
		if t := uint16(p.PersistentKeepaliveInterval / time.Second); t != 0 {
			c.Keepalive = &t
		}
		out.Peers = append(out.Peers, c)
	}
	return out, nil
}

func setKey(k wgtypes.Key) *confparse.Key {
	if k == (wgtypes.Key{}) {
		return nil
	}
	c := confparse.Key(k)
	return &c
}

// endpoint is invalid for none.
func endpoint(a *net.UDPAddr) netip.AddrPort {
	if a == nil {
		return netip.AddrPort{}
	}
	ap := a.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()) // package net may keep IPv4 in 16 bytes
}

// toDevice leaves the keys out.
func toDevice(dev *wgtypes.Device, l facts.Link) facts.Device {
	out := facts.Device{
		Name: l.Name, Index: l.Index, Kernel: dev.Type == wgtypes.LinuxKernel,
		FwMark: uint32(dev.FirewallMark), ListenPort: dev.ListenPort,
		Peers: make([]facts.Peer, len(dev.Peers)),
	}
	for i, p := range dev.Peers {
		ips := make([]netip.Prefix, len(p.AllowedIPs))
		for j := range p.AllowedIPs {
			ips[j] = toPrefix(&p.AllowedIPs[j])
		}
		out.Peers[i] = facts.Peer{Endpoint: endpoint(p.Endpoint), AllowedIPs: ips}
	}
	return out
}
