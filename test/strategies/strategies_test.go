package strategies

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"wg-quickns/test/bed"
	"wg-quickns/test/state"
)

var strategies = []string{"auto", "replace", "override", "rules"}

// TestText has the state that each strategy makes, as the reference text lists it,
// in each family and in both; packets through the tunnel, none beside it; and while
// up and down switch no packet that goes the old way again, and none without a way.
func TestText(t *testing.T) {
	want := map[string]string{
		"replace 4": `- route default via 192.168.1.1 dev eth0 metric 100
			+ route default dev wg0 scope link
			+ route 198.51.100.1 via 192.168.1.1 dev eth0`,
		"override 4": `+ route 0.0.0.0/1 dev wg0 scope link
			+ route 128.0.0.0/1 dev wg0 scope link
			+ route 198.51.100.1 via 192.168.1.1 dev eth0`,
		"rules 4": `+ route default dev wg0 table 80 scope link
			+ rule 30: from all to 198.51.100.1 lookup main
			+ rule 40: from all lookup 80`,
		"replace 6": `- route default via 2001:db8:1::1 dev eth0 metric 100
			+ route default dev wg0 metric 1
			+ route 2001:db8:9::1 via 2001:db8:1::1 dev eth0 metric 1`,
		"override 6": `+ route ::/1 dev wg0 metric 1
			+ route 8000::/1 dev wg0 metric 1
			+ route 2001:db8:9::1 via 2001:db8:1::1 dev eth0 metric 1`,
		"rules 6": `+ route default dev wg0 table 80 metric 1024
			+ rule6 30: from all to 2001:db8:9::1 lookup main
			+ rule6 40: from all lookup 80`,
	}
	w := newWorld(t, "", lan)
	w.serve()
	onWire := startCapture(t, w.gw, "lan")
	for _, fam := range []string{"4", "46", "6"} {
		w.anew()
		inside := startCapture(t, w.server, "srv0")
		for _, strategy := range strategies {
			t.Run(strategy+" "+fam, func(t *testing.T) {
				w.t = t
				var allowed, probes, worlds []string
				v6 := fam == "6"
				if fam != "6" {
					allowed, probes, worlds = append(allowed, "0.0.0.0/0"), append(probes, endpoint4), append(worlds, world4)
				}
				if fam != "4" {
					allowed, probes, worlds = append(allowed, "::/0"), append(probes, endpoint6), append(worlds, world6)
				}
				w.client("RoutingStrategy = "+strategy, strings.Join(allowed, ", "), endpointOf(v6))
				before, routes := w.take(), w.plainRoutes()
				onWire.seen()
				inside.seen()

				p := w.probe(slices.Concat(worlds, probes)...)
				time.Sleep(100 * time.Millisecond)
				w.up("wg0")
				bed.Wait(6*time.Second, inside.probed) // a lost handshake is tried again after 5 s
				time.Sleep(100 * time.Millisecond)
				sent, failed := p.end()
				w.switched("up", onWire.seen(), inside.seen(), worlds, sent, failed)

				if expected, ok := want[strategy+" "+fam]; ok {
					lines := strings.Split(strings.ReplaceAll(expected, "\t", ""), "\n")
					slices.Sort(lines)
					if got := change(routes, w.plainRoutes()); !slices.Equal(got, lines) {
						t.Errorf("up changed\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(lines, "\n"))
					}
				}
				for _, to := range worlds {
					if !w.ping(to, 2*time.Second) {
						t.Errorf("no answer from %s through the tunnel\n%s", to, w.routes())
					}
				}
				for _, seen := range onWire.seen() {
					if seen.kind != "cipher" {
						t.Errorf("beside the tunnel: %s", seen.kind)
					}
				}
				inside.seen()

				p = w.probe(worlds...)
				time.Sleep(100 * time.Millisecond)
				w.down("wg0")
				time.Sleep(100 * time.Millisecond)
				sent, failed = p.end()
				w.switched("down", inside.seen(), onWire.seen(), worlds, sent, failed)
				if d := state.Diff(before, w.take()); d != "" {
					t.Errorf("down left\n%s", d)
				}
			})
		}
	}
	w.t = t
}

// switched checks that probes to the world went the old way up to some moment and
// the new way from then on, and that each had one.
func (w *world) switched(what string, old, new []packet, worlds []string, sent uint64, failed []string) {
	w.t.Helper()
	if len(failed) > 0 {
		w.t.Errorf("%s: %d of %d probes had no way, first %s", what, len(failed), sent, failed[0])
	}
	for _, to := range worlds {
		var last, first uint64
		n := 0
		for _, p := range old {
			if p.kind == "probe" && p.to.String() == to {
				last, n = max(last, p.seq), n+1
			}
		}
		for _, p := range new {
			if p.kind == "probe" && p.to.String() == to && (first == 0 || p.seq < first) {
				first = p.seq
			}
		}
		if n == 0 || first == 0 {
			w.t.Errorf("%s: of %d probes to %s %d went the old way, the first the new way is %d", what, sent, to, n, first)
		} else if last >= first {
			w.t.Errorf("%s: probe %d to %s went the old way, %d the new way before", what, last, to, first)
		}
	}
}

// plainRoutes lists routes of all tables but local, and rules, as ip(8) does.
func (w *world) plainRoutes() (list []string) {
	add := func(prefix, text string) {
		for line := range strings.Lines(text) {
			line = strings.Join(strings.Fields(line), " ")
			if line == "" || strings.Contains(line, "table local") || strings.HasPrefix(line, "fe80:") || strings.HasPrefix(line, "multicast ff00:") ||
				strings.HasPrefix(line, "10.9.0.") || strings.HasPrefix(line, "fd09::") {
				continue
			}
			list = append(list, prefix+strings.TrimSuffix(line, " pref medium"))
		}
	}
	add("route ", w.host.Run("ip", "-4", "route", "show", "table", "all"))
	add("route ", w.host.Run("ip", "-6", "route", "show", "table", "all"))
	add("rule ", w.host.Run("ip", "rule"))
	add("rule6 ", w.host.Run("ip", "-6", "rule"))
	return list
}

func change(before, after []string) (list []string) {
	for _, line := range before {
		if !slices.Contains(after, line) {
			list = append(list, "- "+line)
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) {
			list = append(list, "+ "+line)
		}
	}
	slices.Sort(list)
	return list
}

// TestInsideOwnAllowedIPs: an endpoint that the tunnel's own routes would swallow, no /0.
func TestInsideOwnAllowedIPs(t *testing.T) {
	w := newWorld(t, "", lan)
	w.serve()
	w.server.Run("ip", "addr", "add", "198.51.100.9/32", "dev", "lo")
	w.server.Run("ip", "addr", "add", "2001:db8:9::9/128", "dev", "lo")
	for _, v6 := range []bool{false, true} {
		w.anew()
		for _, strategy := range strategies {
			t.Run(fmt.Sprintf("%s v6=%v", strategy, v6), func(t *testing.T) {
				w.t = t
				allowed, to := "198.51.100.0/24", "198.51.100.9"
				if v6 {
					allowed, to = "2001:db8:9::/64, 2001:db8:9::1/128", "2001:db8:9::9"
				}
				w.client("RoutingStrategy = "+strategy, allowed, endpointOf(v6))
				before := w.take()
				c := startCapture(t, w.gw, "lan")
				w.up("wg0")
				if !w.ping(to, 2*time.Second) {
					t.Errorf("no answer\n%s", w.routes())
				}
				for _, p := range c.seen() {
					if p.kind != "cipher" {
						t.Errorf("beside the tunnel: %s", p.kind)
					}
				}
				w.down("wg0")
				if d := state.Diff(before, w.take()); d != "" {
					t.Errorf("down left\n%s", d)
				}
			})
		}
	}
	w.t = t
}
