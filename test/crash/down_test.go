package crash

import (
	"os"
	"slices"
	"strings"
	"testing"

	"wg-quickns/test/bed"
	"wg-quickns/test/state"
)

// TestDownAfter takes down what somebody meddled with since up.
func TestDownAfter(t *testing.T) {
	w := newWorld(t)
	const config = "/etc/wireguard/wg0.conf"
	both := []string{"wg0 PreDown", "wg0 PostDown"}
	other := strings.NewReplacer("10.0.0.", "10.9.0.", "fd00:0:", "fd00:9:", "0.0.0.0/0, ::/0", "203.0.113.0/24",
		"DNS = ", "#", "PreDown = ", "PreDown = echo %i changed >>$HOOKS; ").Replace(bed.FullTunnel(0))
	for _, c := range []struct {
		name  string
		do    func(p *point)
		hooks []string
	}{
		{"nothing", func(p *point) {}, both},
		{"the interface was deleted", func(p *point) { p.NS.Run("ip", "link", "del", "wg0") }, both[1:]},
		{"the interface was set down", func(p *point) { p.NS.Run("ip", "link", "set", "wg0", "down") }, both},
		{"a rule was deleted", func(p *point) { p.NS.Run("ip", "rule", "del", "not", "fwmark", "51820", "table", "51820") }, both},
		{"the firewall was flushed", func(p *point) {
			p.NS.Run("nft", "delete", "table", "ip", "wg-quick-wg0")
			p.NS.Run("nft", "delete", "table", "ip6", "wg-quick-wg0")
		}, both},
		{"the routes were flushed", func(p *point) { p.NS.Run("ip", "route", "flush", "table", "51820") }, both},
		{"the config was changed", func(p *point) { p.Config(t, "wg0", other) }, []string{"wg0 changed", both[0], both[1]}},
		{"the config does not parse", func(p *point) { p.Config(t, "wg0", "[Interface]\nSaveConfig = perhaps\n") }, both},
		{"the config is gone", func(p *point) { os.Remove(config) }, both},
		{"the config and the interface are gone", func(p *point) { os.Remove(config); p.NS.Run("ip", "link", "del", "wg0") }, both[1:]},
	} {
		w.at("down after", c.name, func(p *point) {
			p.up()
			c.do(p)
			p.Ran()
			p.down()
			if got := p.Ran(); !slices.Equal(got, c.hooks) {
				p.errorf("hooks %q, want %q", got, c.hooks)
			}
			p.Config(t, "wg0", bed.FullTunnel(0))
			r := p.Down("wg0")
			if p.want("second down", r, 1) && !strings.HasSuffix(r.Output, ": `wg0' is not a WireGuard interface\n") {
				p.errorf("second down")
			}
			p.clean("after the second down")
		})
	}
	w.at("up after", "the interface was deleted", func(p *point) {
		p.up()
		p.NS.Run("ip", "link", "del", "wg0")
		p.up()
		p.down()
	})
	w.at("up after", "the interface of a tunnel without a record was deleted", func(p *point) {
		p.up()
		p.NS.Run("ip", "link", "del", "wg0")
		if err := os.RemoveAll(p.Journal(t, "wg0")); err != nil {
			t.Fatal(err)
		}
		left, err := p.Take()
		if err != nil {
			t.Fatal(err)
		}
		p.want("up", p.Up("wg0"), 0)
		if err := p.Routed("wg0"); err != nil {
			p.errorf("%v", err)
		}
		p.want("down", p.Down("wg0"), 0)
		now, err := p.Take()
		if n := added(now, left, "nft"); err != nil || n != p.nft {
			p.errorf("%d of %d lines of nft went with down: %v", n, p.nft, err)
		}
		for _, s := range []state.State{left, now} {
			delete(s, "nft")
			delete(s, "dns") // the record of the first up was nobody's
		}
		if d := state.Diff(left, now); d != "" {
			p.errorf("after down:\n%s", d)
		}
		w.fresh()
	})
	w.at("up after", "an up", func(p *point) {
		p.up()
		r := p.Up("wg0")
		if p.want("second up", r, 1) && !strings.HasSuffix(r.Output, ": `wg0' already exists\n") {
			p.errorf("second up")
		}
		p.whole()
		p.down()
	})
	w.report()
}
