package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"wg-quickns/confparse"
	"wg-quickns/internal/dns"
	"wg-quickns/internal/engine"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/journal"
	"wg-quickns/internal/kernel"
	"wg-quickns/internal/plan"
	"wg-quickns/strategies"
)

// follow says which names are to be looked up, those of peers that have not answered
// for long, and keeps of the moves those that are still wanted. The record has the
// names: the file may say what no reload has seen yet.
func (g *guard) follow(ctx context.Context, s *session, target plan.NS) ([]engine.Question, error) {
	answers := g.moves
	g.moves = nil
	head, _ := s.log.Header()
	if len(head.Names) == 0 {
		clear(g.names)
		return nil, nil
	}
	peers, err := s.kernel.Peers(ctx, target, g.name)
	if err != nil {
		return nil, err
	}
	var named []engine.Peer
	for _, p := range peers {
		if name := head.Names[fingerprint(p.PublicKey)]; name != "" {
			named = append(named, engine.Peer{Key: p.PublicKey, Name: name, Endpoint: p.Endpoint, Handshake: p.Handshake})
		}
	}
	ask, follow := g.names.Look(time.Now(), named, answers)
	g.moves = follow
	return ask, nil
}

// ask has names looked up, side by side, while the guard guards: what they lead to comes
// by g.answers.
func (g *guard) ask(ctx context.Context, s *session, target plan.NS, list []engine.Question) {
	if len(list) == 0 {
		return
	}
	// The tunnel may be the way out, and dead: what has its mark goes past it.
	mark, err := s.kernel.FwMark(ctx, target, g.name)
	if err != nil {
		for _, q := range list {
			g.answered(engine.Answer{Question: q, Err: err})
		}
		return
	}
	birth := string(s.local(s.place.Birth))
	for _, q := range list {
		go func() {
			g.slots <- struct{}{}
			to, err := lookUp(ctx, birth, q.Name, int(mark))
			<-g.slots
			select {
			case g.answers <- engine.Answer{Question: q, To: to, Err: err}:
			case <-ctx.Done():
			}
		}()
	}
}

// lookUp finds the address of a name, HOST:PORT, where the tunnel's socket is.
func lookUp(ctx context.Context, birth, name string, mark int) (netip.AddrPort, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	host, port := splitName(name)
	e := confparse.Endpoint{Host: host, Port: port}
	one := confparse.Device{Peers: []confparse.Peer{{Endpoint: &e}}}
	err := dns.ResolveIn(ctx, birth, &one, dns.Options{Log: func(string) {}, Mark: mark})
	return e.Addr, err
}

// answered takes in what a name leads to.
func (g *guard) answered(a engine.Answer) {
	switch {
	case !g.names.Answered(time.Now(), a.Question): // a reload was faster
	case a.Err != nil:
		g.fail(a.Err)
	default:
		g.moves = append(slices.DeleteFunc(g.moves, func(m engine.Answer) bool { return m.Question == a.Question }), a)
	}
}

// roamed says whether a peer is elsewhere than at the last look, or that cannot be
// told. It takes no lock and reads little else: it is asked once a second. It sees to
// gateways that were silent for a while, too, of which the kernel does not tell.
func (g *guard) roamed(ctx context.Context) bool {
	for _, r := range g.gateways {
		_ = g.kernel.Revive(ctx, g.space, r.Index, r.Gateway) // once more in a second
	}
	peers, err := g.kernel.Peers(ctx, g.space, g.name)
	if err != nil || len(peers) != len(g.ends) {
		return true
	}
	for _, p := range peers {
		if !slices.Contains(g.ends, p.Endpoint) {
			return true
		}
	}
	return false
}

// unloop gives a peer whose endpoint has come to be inside of the tunnel the one back
// that it had.
func (g *guard) unloop(ctx context.Context, s *session, target plan.NS) error {
	if s.strategy() == confparse.StrategyAuto || s.place.Elsewhere() {
		return nil
	}
	peers, err := s.kernel.Peers(ctx, target, g.name)
	if err != nil {
		return err
	}
	var f *facts.Facts
	var entries []journal.Entry
	for _, p := range peers {
		was := g.outside[p.PublicKey]
		if was.IsValid() && p.Endpoint.IsValid() && was != p.Endpoint {
			if f == nil {
				if f, err = s.kernel.Gather(ctx, target, g.name, kernel.Asked{Ways: true}); err != nil {
					return err
				}
				if entries, err = s.log.Standing(); err != nil {
					return err
				}
			}
			if strategies.Looped(f, standing(entries), was.Addr(), p.Endpoint.Addr()) {
				g.trace([]string{fmt.Sprintf("wg set %s peer (at %s) endpoint %s", g.name, p.Endpoint, was)})
				err = errors.Join(err, s.kernel.SetEndpoint(ctx, target, g.name, p.PublicKey, was))
				continue
			}
		}
		g.outside[p.PublicKey] = p.Endpoint
	}
	return err
}

// whereabouts lists where the peers are.
func whereabouts(peers []facts.Peer) []netip.AddrPort {
	list := make([]netip.AddrPort, len(peers))
	for i, p := range peers {
		list[i] = netip.AddrPortFrom(p.Endpoint.Addr().Unmap(), p.Endpoint.Port())
	}
	return list
}

// endpointNames are the endpoints of a config that are given by a name, as HOST:PORT, by
// their peers' fingerprints.
func endpointNames(d *confparse.Device) map[string]string {
	names := make(map[string]string)
	for _, p := range d.Peers {
		if p.Endpoint == nil {
			continue
		}
		if _, err := netip.ParseAddr(p.Endpoint.Host); err != nil {
			names[fingerprint(p.PublicKey)] = p.Endpoint.Host + ":" + p.Endpoint.Port
		}
	}
	return names
}

// splitName takes HOST:PORT apart.
func splitName(name string) (host, port string) {
	colon := strings.LastIndexByte(name, ':')
	return name[:max(colon, 0)], name[colon+1:]
}

// fingerprint stands for a key in the record, which has none.
func fingerprint(k confparse.Key) string {
	sum := sha256.Sum256(k[:])
	return hex.EncodeToString(sum[:8])
}
