package kernel

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"wg-quickns/confparse"
	"wg-quickns/internal/plan"
)

// Peer is what a device says of a peer at the moment.
type Peer struct {
	PublicKey confparse.Key
	Endpoint  netip.AddrPort // zero: none
	Handshake time.Time      // the last one; zero: none

	AllowedIPs     []netip.Prefix
	Keepalive      time.Duration // 0: off
	Received, Sent int64         // bytes
}

// Peers reads the peers of a WireGuard interface.
func (d *Doer) Peers(ctx context.Context, ns plan.NS, link string) ([]Peer, error) {
	var list []Peer
	err := d.control(ctx, ns, link, func(c *wgctrl.Client, name string) error {
		dev, err := c.Device(name)
		if err != nil {
			return err
		}
		for _, p := range dev.Peers {
			peer := Peer{PublicKey: confparse.Key(p.PublicKey), Handshake: p.LastHandshakeTime,
				Keepalive: p.PersistentKeepaliveInterval, Received: p.ReceiveBytes, Sent: p.TransmitBytes}
			if p.LastHandshakeTime.Unix() <= 0 { // userspace says 1970
				peer.Handshake = time.Time{}
			}
			for i := range p.AllowedIPs {
				peer.AllowedIPs = append(peer.AllowedIPs, toPrefix(&p.AllowedIPs[i]))
			}
			if p.Endpoint != nil {
				a := p.Endpoint.AddrPort()
				peer.Endpoint = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
			}
			list = append(list, peer)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the peers of %s: %w", link, err)
	}
	return list, nil
}

// SetEndpoint gives a peer that the interface has another endpoint.
func (d *Doer) SetEndpoint(ctx context.Context, ns plan.NS, link string, peer confparse.Key, to netip.AddrPort) error {
	err := d.control(ctx, ns, link, func(c *wgctrl.Client, name string) error {
		return c.ConfigureDevice(name, wgtypes.Config{Peers: []wgtypes.PeerConfig{{
			PublicKey: wgtypes.Key(peer), UpdateOnly: true, Endpoint: net.UDPAddrFromAddrPort(to),
		}}})
	})
	if err != nil {
		return fmt.Errorf("set an endpoint of %s to %s: %w", link, to, err)
	}
	return nil
}

// control runs fn with a client and the name that it knows the interface by.
func (d *Doer) control(ctx context.Context, ns plan.NS, link string, fn func(c *wgctrl.Client, name string) error) error {
	sp, err := d.space(ns)
	if err != nil {
		return err
	}
	w, _, err := sp.kernelDevice(ctx, link)
	if err != nil {
		return err
	}
	name := link
	if w == nil {
		name = servedName(link)
	}
	return sp.wgctrl(func(c *wgctrl.Client) error { return fn(c, name) })
}

// FwMark reads the mark of an interface's own packets; 0: none.
func (d *Doer) FwMark(ctx context.Context, ns plan.NS, link string) (uint32, error) {
	sp, err := d.space(ns)
	if err != nil {
		return 0, err
	}
	dev, _, err := sp.device(ctx, link)
	if err != nil || dev.FwMark == nil {
		return 0, err
	}
	return *dev.FwMark, nil
}
