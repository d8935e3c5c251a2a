package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"wg-quickns/confparse"
	"wg-quickns/internal/dns"
	"wg-quickns/internal/plan"
)

// saveCommand writes the running state of an interface to its config file.
func (a app) saveCommand(ctx context.Context, arg string) error {
	s, err := a.hold(arg, func() (*session, error) {
		t, err := a.parseOwn(arg)
		if err != nil {
			return nil, err
		}
		return a.beginOwn(ctx, t)
	})
	if err != nil {
		return err
	}
	defer s.end()
	is, err := s.isWireGuard()
	if err != nil {
		return err
	}
	if !is {
		return s.notWireGuard()
	}
	return s.save(ctx)
}

// save writes the file anew: beside it first, then renamed over it, so that a
// crash leaves the old file or the new one.
func (s *session) save(ctx context.Context) error {
	s.trace([]string{"wg showconf " + s.name})
	running, err := s.running(ctx)
	if err != nil {
		return err
	}
	return replaceFile(s.path, s.cfg.Save(running))
}

// running reads the interface's state for the file.
func (s *session) running(ctx context.Context) (confparse.Running, error) {
	var r confparse.Running
	link, _, err := s.kernel.Link(s.place.Target, s.name)
	if err != nil {
		return r, err
	}
	r.MTU = link.MTU
	if r.Addresses, err = s.kernel.Addresses(s.place.Target, s.name); err != nil {
		return r, err
	}
	if s.place.resolvConf() {
		r.DNS, r.Search = s.cfg.DNS, s.cfg.DNSSearch // nothing is kept but that file
	} else if r.DNS, r.Search, err = s.systemDNS(ctx, link.Index); err != nil {
		return r, err
	}
	d, err := s.kernel.ReadDevice(ctx, s.place.Target, s.name)
	if err != nil {
		return r, err
	}
	r.PrivateKey, r.ListenPort, r.FwMark = value(d.PrivateKey), value(d.ListenPort), value(d.FwMark)
	for _, p := range d.Peers {
		peer := confparse.RunningPeer{
			PublicKey: p.PublicKey, PresharedKey: value(p.PresharedKey), Keepalive: int(value(p.Keepalive)),
		}
		if p.Endpoint != nil {
			peer.Endpoint = p.Endpoint.Addr
		}
		for _, a := range p.AllowedIPs {
			peer.AllowedIPs = append(peer.AllowedIPs, a.Prefix)
		}
		r.Peers = append(r.Peers, peer)
	}
	return r, nil
}

// systemDNS is what resolvconf or systemd-resolved has for the interface.
func (s *session) systemDNS(ctx context.Context, index int) (servers, search []string, err error) {
	prefix, err := dns.Prefix()
	if err != nil {
		return nil, nil, err
	}
	servers, search, err = dns.List(ctx, prefix+s.name)
	if told, ok := s.toldResolved(); ok && errors.Is(err, dns.ErrNoRecord) {
		if servers, search, err = dns.ListLink(ctx, index); err != nil && ctx.Err() == nil {
			servers, search, err = told.Servers, told.Search, nil // it does not run, or not well
		}
	}
	if errors.Is(err, dns.ErrNoRecord) {
		err = nil
	}
	return servers, search, err
}

// toldResolved is the DNS that up gave to systemd-resolved, if it did.
func (s *session) toldResolved() (told plan.DNS, ok bool) {
	for _, e := range s.log.Pending() {
		if d, is := e.Do.(plan.DNS); is && d.Index != 0 {
			told, ok = d, true
		}
	}
	return told, ok
}

// value is what p points to, or nothing.
func value[T any](p *T) T {
	if p == nil {
		p = new(T)
	}
	return *p
}

// replaceFile puts data in the file's place, mode 0600, durably. What it leaves when
// it is killed, with the keys, goes with the next save: it has the one name that
// wg-quick gives it.
func replaceFile(path string, data []byte) (err error) {
	fresh := path + ".tmp"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove what an earlier save left: %w", err)
	}
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write the config file: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(data); err != nil {
		return fmt.Errorf("write the config file: %w", err)
	}
	if err = f.Sync(); err != nil {
		return fmt.Errorf("write the config file to the disk: %w", err)
	}
	if err = f.Close(); err != nil {
		return fmt.Errorf("write the config file: %w", err)
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("put the config file in its place: %w", err)
	}
	// The rename survives a power cut only when the folder is on the disk too, fsync(2).
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("write the config's folder to the disk: %w", err)
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("write the config's folder to the disk: %w", err)
	}
	return nil
}
