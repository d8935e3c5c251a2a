package strategies

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"wg-quickns/confparse"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

func TestKillSwitch(t *testing.T) {
	const (
		on     = "nft -f /dev/fd/63 # kill switch on"
		wall   = "nft -f /dev/fd/63"
		mark   = "wg set wg0 fwmark 51820"
		dead4  = "ip -4 route add unreachable 0.0.0.0/0"
		dead6  = "ip -6 route add unreachable ::/0"
		last   = " metric 4278198272"
		table  = " table 51820"
		table8 = " table 80"
	)
	for _, c := range []struct {
		name, strategy, table string
		place                 Place
		mark                  uint32 // the config's
		allowed               string
		armed                 []string
		routes                []string // those that lead nowhere
		allows                uint32   // the mark of packets that leave by any link
	}{
		{"auto", "", "", Place{}, 0, "0.0.0.0/0 ::/0", []string{mark, on, wall, wall, dead4 + table + last, dead6 + table + last}, nil, 51820},
		{"auto, marked", "", "", Place{}, 7, "0.0.0.0/0 10.0.0.0/8",
			[]string{on, wall, wall, dead4 + " table 7" + last}, nil, 7},
		{"split", "", "", Place{}, 0, "10.0.0.0/8", []string{mark, on, wall, wall}, nil, 51820},
		{"replace", "replace", "", Place{}, 0, "0.0.0.0/0 ::/0", []string{mark, on, wall, wall}, []string{dead4 + last, dead6 + last}, 51820},
		{"override", "override", "", Place{}, 0, "0.0.0.0/0", []string{mark, on, wall, wall},
			[]string{"ip -4 route add unreachable 0.0.0.0/1" + last, "ip -4 route add unreachable 128.0.0.0/1" + last}, 51820},
		{"rules", "rules", "", Place{}, 0, "0.0.0.0/0", []string{mark, on, wall, wall}, []string{dead4 + table8 + last}, 51820},
		{"a table", "", "123", Place{}, 0, "0.0.0.0/0", []string{mark, on, wall, wall}, []string{dead4 + " table 123" + last}, 51820},
		{"off", "", "off", Place{}, 0, "0.0.0.0/0", []string{mark, on, wall, wall}, nil, 51820},
		{"a foreign namespace", "", "", Place{Target: "/run/netns/a", Foreign: true}, 0, "0.0.0.0/0", []string{on, wall, wall}, []string{dead4 + last}, 0},
		{"a socket elsewhere", "", "", Place{Birth: "/run/netns/a"}, 0, "0.0.0.0/0",
			[]string{mark, on, wall, wall, dead4 + table + last}, nil, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := tunnel("198.51.100.1:1", strings.Fields(c.allowed)...)
			f.Device.FwMark = c.mark
			cfg := config(t, "10.0.0.2/24", "fd00::2/64")
			cfg.KillSwitch, cfg.RoutingStrategy, cfg.Table = true, c.strategy, c.table
			actions, err := KillSwitch(cfg, f, c.place)
			if err != nil {
				t.Fatal(err)
			}
			if got := commands(actions); !slices.Equal(got, c.armed) {
				t.Errorf("before the addresses:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(c.armed, "\n"))
			}
			for _, a := range actions {
				if a.NS != c.place.Target {
					t.Errorf("%v is in %q", a.Do, a.NS)
				}
				switch s := a.Do.(type) {
				case plan.KillSwitch:
					if s.Mark != c.allows || !slices.Equal(s.Addrs, []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")}) {
						t.Errorf("%+v", s)
					}
				case plan.FwMark:
					f.Device.FwMark = s.Mark
				case plan.Route:
					if undo, ok := a.Undo[0].(plan.Route); !ok || !undo.Delete || !undo.Unreachable {
						t.Errorf("%+v is undone by %+v", s, a.Undo)
					}
				}
			}
			actions, err = Routes(cfg, f, c.place)
			if err != nil {
				t.Fatal(err)
			}
			var nowhere []string
			for i, a := range actions {
				if r, ok := a.Do.(plan.Route); ok && r.Unreachable {
					nowhere = append(nowhere, r.Commands()...)
					if by, ok := actions[i+1].Do.(plan.Route); !ok || by.Unreachable || by.Table != r.Table {
						t.Errorf("behind %q comes %q", r.Commands(), actions[i+1].Do.Commands())
					}
				}
				if k := a.Do.Kind(); k == plan.KindNft || k == plan.KindFwMark {
					t.Errorf("twice: %q", a.Do.Commands())
				}
			}
			if !slices.Equal(nowhere, c.routes) {
				t.Errorf("with the routes: %q, want %q", nowhere, c.routes)
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	route := func(dst string, protocol int) facts.Route {
		return facts.Route{Dst: netip.MustParsePrefix(dst), Table: plan.TableMain, Index: eth, Gateway: netip.MustParseAddr("192.168.1.1"),
			Protocol: protocol, Type: unicast}
	}
	for _, c := range []struct {
		name    string
		allowed string
		routes  []facts.Route
		change  func(*confparse.Config, *facts.Facts)
		want    []string // what each line begins with, behind "Warning: "
	}{
		{"both families", "0.0.0.0/0 ::/0", nil, nil, nil},
		{"split", "10.0.0.0/8", nil, nil, nil},
		{"IPv4 only", "0.0.0.0/0", nil, nil, []string{"IPv6 goes past `wg0'"}},
		{"IPv4 only, in halves", "128.0.0.0/1 0.0.0.0/1", nil, nil, []string{"IPv6 goes past `wg0'"}},
		{"half of IPv4", "0.0.0.0/1", nil, nil, nil},
		{"IPv6 only, in halves", "::/1 8000::/1", nil, nil, []string{"IPv4 goes past `wg0'"}},
		{"IPv6 only", "::/0", nil, nil, []string{"IPv4 goes past `wg0'"}},
		{"IPv4 only, no IPv6", "0.0.0.0/0", nil, func(_ *confparse.Config, f *facts.Facts) { f.Routes = f.Routes[:2] }, nil},
		{"IPv4 only, kill switch", "0.0.0.0/0", nil, func(c *confparse.Config, _ *facts.Facts) { c.KillSwitch = true }, nil},
		{"option 121", "0.0.0.0/0 ::/0", []facts.Route{route("0.0.0.0/1", dhcp), route("8.8.8.0/24", boot), route("10.0.0.0/8", dhcp), route("9.0.0.0/8", 4)}, nil,
			[]string{"0.0.0.0/1 goes past", "8.8.8.0/24 goes past"}},
		{"another tunnel's endpoint", "0.0.0.0/0 ::/0", []facts.Route{route("8.8.8.8/32", boot)},
			func(_ *confparse.Config, f *facts.Facts) {
				f.Kept = map[netip.Prefix]bool{netip.MustParsePrefix("8.8.8.8/32"): true}
			}, nil},
		{"its own endpoint", "0.0.0.0/0 ::/0", []facts.Route{route("198.51.100.1/32", boot), route("198.51.100.0/31", boot)}, nil, []string{"198.51.100.0/31 goes past"}},
		{"option 121, kill switch", "0.0.0.0/0 ::/0", []facts.Route{route("0.0.0.0/1", dhcp)},
			func(c *confparse.Config, _ *facts.Facts) { c.KillSwitch = true }, nil},
		{"option 121, rules", "0.0.0.0/0 ::/0", []facts.Route{route("0.0.0.0/1", dhcp)},
			func(c *confparse.Config, _ *facts.Facts) { c.RoutingStrategy = "rules" }, nil},
		{"option 121, split", "10.0.0.0/8", []facts.Route{route("0.0.0.0/1", dhcp)}, nil, nil},
		{"no routes", "0.0.0.0/0", nil, func(c *confparse.Config, _ *facts.Facts) { c.Table = "off" }, nil},
	} {
		f, cfg := tunnel("198.51.100.1:1", strings.Fields(c.allowed)...), config(t)
		for i := range f.Routes {
			f.Routes[i].Type = unicast
		}
		if f.Routes = append(f.Routes, c.routes...); c.change != nil {
			c.change(cfg, f)
		}
		got := Warnings(cfg, f, Place{})
		if !slices.EqualFunc(got, c.want, func(line, want string) bool { return strings.HasPrefix(line, "Warning: "+want) }) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
