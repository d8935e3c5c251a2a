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

// world is a machine with a tunnel up, carried along in the kernel's place: actions
// change its facts and its journal.
type world struct {
	t        *testing.T
	cfg      *confparse.Config
	f        *facts.Facts
	standing []Standing
	known    []netip.Prefix
	others   []netip.Prefix
	next     int
	ending   bool
}

func (w *world) act(s plan.Step) {
	w.t.Helper()
	switch s := s.(type) {
	case plan.Addr:
		for _, p := range s.List {
			w.f.Addrs = append(w.f.Addrs, facts.Addr{Prefix: p.Prefix})
		}
	case plan.LinkUp:
		for i, l := range w.f.Links {
			if l.Name == s.Name {
				w.f.Links[i].Up, w.f.Links[i].MTU = true, s.MTU
			}
		}
	case plan.Route:
		for _, p := range s.List {
			r := facts.Route{Dst: p.Prefix.Masked(), Table: s.Table, Metric: s.Metric, Index: wg, Protocol: boot, Type: unicast}
			if r.Table == 0 {
				r.Table = plan.TableMain
			}
			if r.Metric == 0 && r.Dst.Addr().Is6() {
				r.Metric = 1024
			}
			w.put(r, s.Replace)
		}
	case plan.Via:
		r := s.Route
		if r.Dst.Addr().Is6() && r.Metric == 0 {
			r.Metric = 1024
		}
		if s.Delete {
			n := len(w.f.Routes)
			w.f.Routes = slices.DeleteFunc(w.f.Routes, r.Same)
			if len(w.f.Routes) == n && !w.ending {
				w.t.Errorf("deletes what is not there: %s", s.Commands()[0])
			}
			return
		}
		w.put(r, s.Replace || s.Instead != "")
	case plan.Rule:
		rules := &w.f.Rules
		if s.Delete {
			s.Delete = false
			*rules = slices.DeleteFunc(*rules, func(r facts.Rule) bool { return r == asFact(s) })
			return
		}
		i := slices.IndexFunc(*rules, func(r facts.Rule) bool { return r.IPv6 == s.IPv6 && r.Priority > s.Priority })
		*rules = slices.Insert(*rules, i, asFact(s))
	case plan.FwMark:
		w.f.Device.FwMark = s.Mark
	case plan.Sysctl:
		w.f.SrcValidMark = 1
	case plan.Nft:
	default:
		w.t.Fatalf("step %T", s)
	}
}

func (w *world) put(r facts.Route, replace bool) {
	w.t.Helper()
	at := slices.IndexFunc(w.f.Routes, func(o facts.Route) bool { return o.Slot() == r.Slot() })
	switch {
	case at < 0:
		w.f.Routes = append(w.f.Routes, r)
	case replace:
		w.f.Routes[at] = r
	default:
		w.t.Errorf("in the way of %v: %v", r.Dst, w.f.Routes[at])
	}
}

func (w *world) do(actions []plan.Action) {
	w.t.Helper()
	for _, a := range actions {
		w.act(a.Do)
		w.next++
		w.standing = append(w.standing, Standing{w.next, a})
	}
}

// guard has the guard look, carries out what it plans, and gives that as commands.
// It checks that a second look finds nothing to do.
func (w *world) guard() []string {
	w.t.Helper()
	said := w.round()
	if again := w.round(); len(again) > 0 {
		w.t.Errorf("after\n%s\na second look plans\n%s", strings.Join(said, "\n"), strings.Join(again, "\n"))
	}
	return said
}

func (w *world) round() (said []string) {
	w.t.Helper()
	rep := Guard(w.cfg, w.f, Place{}, w.standing, w.known, w.others)
	for _, a := range rep.New {
		said = append(said, a.Do.Commands()...)
	}
	w.do(rep.New)
	for _, a := range rep.Again {
		if a.Do.Kind() == plan.KindNft { // the engine asks the kernel
			continue
		}
		said = append(said, a.Do.Commands()...)
		w.act(a.Do)
	}
	w.standing = slices.DeleteFunc(w.standing, func(s Standing) bool {
		if slices.Contains(rep.Retire, s.ID) {
			for _, u := range s.Undo {
				said = append(said, u.Commands()...)
				w.act(u)
			}
			return true
		}
		return slices.Contains(rep.Forget, s.ID)
	})
	return said
}

// down undoes all as the engine would, the routes of others first.
func (w *world) down() {
	w.ending = true
	var list []plan.Step
	for _, s := range slices.Backward(w.standing) {
		for _, u := range s.Undo {
			if v, ok := u.(plan.Via); u.Kind() == plan.KindRule || ok && (v.Delete || (&guard{f: w.f}).usable(v.Route)) {
				list = append(list, u)
			}
		}
	}
	slices.SortStableFunc(list, func(a, b plan.Step) int { return plan.UndoRank(a, false) - plan.UndoRank(b, false) })
	for _, u := range list {
		w.act(u)
	}
	w.f.Routes = slices.DeleteFunc(w.f.Routes, func(r facts.Route) bool { return r.Index == wg })
}

func (w *world) add(text string)  { w.f.Routes = append(w.f.Routes, route(w.t, text)) }
func (w *world) drop(text string) { w.f.Routes = slices.DeleteFunc(w.f.Routes, route(w.t, text).Same) }

// flush takes away every route by a link, as the kernel does when it goes down.
func (w *world) flush(link string) {
	w.f.Routes = slices.DeleteFunc(w.f.Routes, func(r facts.Route) bool { return r.Index == indexes[link] })
}

func (w *world) link(link string, up bool) {
	for i := range w.f.Links {
		if w.f.Links[i].Name == link {
			w.f.Links[i].Up, w.f.Links[i].Running = up, up
		}
	}
}

const subnet = "192.168.1.0/24 dev eth0 proto kernel scope link src 192.168.1.7"

// TestGuard has what the guard does about what befalls a full tunnel in IPv4, whose
// endpoint is behind a gateway.
func TestGuard(t *testing.T) {
	for _, test := range []struct {
		name  string
		event func(w *world)
		want  map[string]string // by strategy; none: nothing is done
		left  string            // of the routes, after down, what is new ("+") or gone ("-")
	}{
		{name: "nothing", event: func(*world) {}},
		{
			name:  "the link flaps, its address is kept, its gateway's route not",
			event: func(w *world) { w.flush("eth0"); w.add(subnet) },
			want: map[string]string{
				"replace":  "ip -4 route add 198.51.100.1/32 via 192.168.1.1 dev eth0",
				"override": "ip -4 route add 198.51.100.1/32 via 192.168.1.1 dev eth0",
			},
			left: "- default via 192.168.1.1 dev eth0 metric 100",
		},
		{
			name: "the link flaps, all but the endpoint's route comes back",
			event: func(w *world) {
				w.flush("eth0")
				w.add(subnet)
				w.add("default via 192.168.1.1 dev eth0 metric 100")
			},
			want: map[string]string{
				"replace":  "ip -4 route delete 0.0.0.0/0 via 192.168.1.1 dev eth0 metric 100\nip -4 route add 198.51.100.1/32 via 192.168.1.1 dev eth0",
				"override": "ip -4 route add 198.51.100.1/32 via 192.168.1.1 dev eth0",
			},
		},
		{
			name:  "the link is down",
			event: func(w *world) { w.flush("eth0"); w.link("eth0", false) },
			left:  "- default via 192.168.1.1 dev eth0 metric 100\n- " + subnet,
		},
		{
			name: "another gateway",
			event: func(w *world) {
				w.drop("default via 192.168.1.1 dev eth0 metric 100")
				w.add("default via 192.168.1.2 dev eth0 metric 100 proto dhcp")
			},
			want: map[string]string{
				"replace":  "ip -4 route delete 0.0.0.0/0 via 192.168.1.2 dev eth0 metric 100\nip -4 route replace 198.51.100.1/32 via 192.168.1.2 dev eth0",
				"override": "ip -4 route replace 198.51.100.1/32 via 192.168.1.2 dev eth0",
			},
			left: "- default via 192.168.1.1 dev eth0 metric 100\n+ default via 192.168.1.2 dev eth0 metric 100",
		},
		{
			name: "from Ethernet to Wi-Fi",
			event: func(w *world) {
				w.flush("eth0")
				w.link("eth0", false)
				w.add("10.0.0.0/24 dev wlan0 proto kernel scope link src 10.0.0.7")
				w.add("default via 10.0.0.1 dev wlan0 proto dhcp metric 600")
			},
			want: map[string]string{
				"replace":  "ip -4 route delete 0.0.0.0/0 via 10.0.0.1 dev wlan0 metric 600\nip -4 route replace 198.51.100.1/32 via 10.0.0.1 dev wlan0",
				"override": "ip -4 route replace 198.51.100.1/32 via 10.0.0.1 dev wlan0",
			},
			left: "- default via 192.168.1.1 dev eth0 metric 100\n- " + subnet + `
				+ 10.0.0.0/24 dev wlan0 proto kernel scope link src 10.0.0.7
				+ default via 10.0.0.1 dev wlan0 proto dhcp metric 600`,
		},
		{
			name:  "a default route in the place of the tunnel's",
			event: func(w *world) { w.put(route(w.t, "default via 192.168.1.1 dev eth0"), true) },
			want:  map[string]string{"replace": "ip -4 route replace 0.0.0.0/0 dev wg0"},
			left:  "+ default via 192.168.1.1 dev eth0",
		},
		{
			name:  "the tunnel's routes are flushed",
			event: func(w *world) { w.flush("wg0") },
			want: map[string]string{
				"auto":     "ip -4 route add 0.0.0.0/0 dev wg0 table 51820",
				"replace":  "ip -4 route add 0.0.0.0/0 dev wg0",
				"override": "ip -4 route add 0.0.0.0/1 dev wg0\nip -4 route add 128.0.0.0/1 dev wg0",
				"rules":    "ip -4 route add 0.0.0.0/0 dev wg0 table 80",
			},
		},
		{
			name: "the rules are flushed",
			event: func(w *world) {
				w.f.Rules = slices.DeleteFunc(w.f.Rules, func(r facts.Rule) bool { return r.Priority != 0 && r.Priority != 32766 })
			},
			want: map[string]string{
				"auto":  "ip -4 rule add not fwmark 51820 table 51820\nip -4 rule add table main suppress_prefixlength 0",
				"rules": "ip -4 rule add to 198.51.100.1/32 table main pref 30\nip -4 rule add table 80 pref 40",
			},
		},
		{
			name: "the tunnel's link is taken down, with its address and MTU",
			event: func(w *world) {
				w.f.Addrs = nil
				w.flush("wg0")
				w.link("wg0", false)
			},
			want: map[string]string{
				"rules":    "ip -4 address add 10.0.0.2/32 dev wg0\nip link set mtu 1420 up dev wg0\nip -4 route add 0.0.0.0/0 dev wg0 table 80",
				"auto":     "ip -4 address add 10.0.0.2/32 dev wg0\nip link set mtu 1420 up dev wg0\nip -4 route add 0.0.0.0/0 dev wg0 table 51820",
				"replace":  "ip -4 address add 10.0.0.2/32 dev wg0\nip link set mtu 1420 up dev wg0\nip -4 route add 0.0.0.0/0 dev wg0",
				"override": "ip -4 address add 10.0.0.2/32 dev wg0\nip link set mtu 1420 up dev wg0\nip -4 route add 0.0.0.0/1 dev wg0\nip -4 route add 128.0.0.0/1 dev wg0",
			},
		},
		{
			name:  "mark and sysctl",
			event: func(w *world) { w.f.Device.FwMark, w.f.SrcValidMark = 0, 0 },
			want:  map[string]string{"auto": "wg set wg0 fwmark 51820\nsysctl -q net.ipv4.conf.all.src_valid_mark=1"},
		},
		{
			name: "a DHCP server's routes: the halves in the tunnel's place, public ones, the LAN's",
			event: func(w *world) {
				w.put(route(w.t, "0.0.0.0/1 via 192.168.1.1 dev eth0"), true)
				w.add("128.0.0.0/1 via 192.168.1.1 dev eth0 proto dhcp metric 1002")
				w.add("203.0.113.0/24 via 192.168.1.1 dev eth0 proto dhcp metric 1002")
				w.add("10.0.0.0/8 via 192.168.1.1 dev eth0 proto dhcp metric 1002")
				w.add("192.88.99.0/24 via 192.168.1.1 dev eth0 proto static")
				w.add("198.18.0.0/15 via 192.168.1.1 dev eth0") // known
				w.add("198.51.100.128/25 via 192.168.1.1 dev eth0")
			},
			want: map[string]string{
				"auto": `ip -4 route delete 0.0.0.0/1 via 192.168.1.1 dev eth0
					ip -4 route delete 128.0.0.0/1 via 192.168.1.1 dev eth0 metric 1002
					ip -4 route delete 203.0.113.0/24 via 192.168.1.1 dev eth0 metric 1002
					ip -4 route delete 198.51.100.128/25 via 192.168.1.1 dev eth0`,
				"replace": `ip -4 route delete 0.0.0.0/1 via 192.168.1.1 dev eth0
					ip -4 route delete 128.0.0.0/1 via 192.168.1.1 dev eth0 metric 1002
					ip -4 route delete 203.0.113.0/24 via 192.168.1.1 dev eth0 metric 1002
					ip -4 route delete 198.51.100.128/25 via 192.168.1.1 dev eth0`,
				"override": `ip -4 route replace 0.0.0.0/1 dev wg0
					ip -4 route delete 128.0.0.0/1 via 192.168.1.1 dev eth0 metric 1002
					ip -4 route delete 203.0.113.0/24 via 192.168.1.1 dev eth0 metric 1002
					ip -4 route delete 198.51.100.128/25 via 192.168.1.1 dev eth0`,
			},
			left: `+ 0.0.0.0/1 via 192.168.1.1 dev eth0
				+ 128.0.0.0/1 via 192.168.1.1 dev eth0 metric 1002
				+ 203.0.113.0/24 via 192.168.1.1 dev eth0 metric 1002
				+ 10.0.0.0/8 via 192.168.1.1 dev eth0 metric 1002
				+ 192.88.99.0/24 via 192.168.1.1 dev eth0
				+ 198.18.0.0/15 via 192.168.1.1 dev eth0
				+ 198.51.100.128/25 via 192.168.1.1 dev eth0`,
		},
		{
			name: "public addresses as neighbours, but for an own subnet, a lone gateway, another tunnel",
			event: func(w *world) {
				w.add("203.0.113.0/24 dev eth0 proto dhcp scope link src 192.168.1.7")
				w.add("203.0.112.0/24 dev eth0 proto dhcp scope link src 203.0.112.7 metric 1002")
				w.add("203.0.114.0/24 src 203.0.114.7 dev eth0 proto dhcp scope link metric 1002") // in the kernel's order
				w.add("192.0.2.1/32 dev eth0 proto dhcp scope link")
				w.add("192.0.2.0/24 dev wg1 scope link")
				w.add("8.0.0.0/8 dev eth0 scope link")
			},
			want: map[string]string{
				"auto":     "ip -4 route delete 203.0.113.0/24 dev eth0 scope link src 192.168.1.7\nip -4 route delete 8.0.0.0/8 dev eth0 scope link",
				"replace":  "ip -4 route delete 203.0.113.0/24 dev eth0 scope link src 192.168.1.7\nip -4 route delete 8.0.0.0/8 dev eth0 scope link",
				"override": "ip -4 route delete 203.0.113.0/24 dev eth0 scope link src 192.168.1.7\nip -4 route delete 8.0.0.0/8 dev eth0 scope link",
			},
			left: `+ 203.0.113.0/24 dev eth0 scope link src 192.168.1.7
				+ 203.0.112.0/24 dev eth0 scope link src 203.0.112.7 metric 1002
				+ 203.0.114.0/24 src 203.0.114.7 dev eth0 scope link metric 1002
				+ 192.0.2.1/32 dev eth0 scope link
				+ 192.0.2.0/24 dev wg1 scope link
				+ 8.0.0.0/8 dev eth0 scope link`,
		},
		{
			name:  "a DHCP server's route to the endpoint alone is followed",
			event: func(w *world) { w.add("198.51.100.1/32 via 192.168.1.2 dev eth0 proto dhcp metric 1002") },
			want: map[string]string{
				"auto":     "ip -4 route delete 198.51.100.1/32 via 192.168.1.2 dev eth0 metric 1002",
				"replace":  "ip -4 route replace 198.51.100.1/32 via 192.168.1.2 dev eth0",
				"override": "ip -4 route replace 198.51.100.1/32 via 192.168.1.2 dev eth0",
			},
			left: "+ 198.51.100.1/32 via 192.168.1.2 dev eth0 metric 1002",
		},
		{
			name:  "in the place of our own it is not",
			event: func(w *world) { w.put(route(w.t, "198.51.100.1/32 via 192.168.1.2 dev eth0"), true) },
			want: map[string]string{
				"auto":     "ip -4 route delete 198.51.100.1/32 via 192.168.1.2 dev eth0",
				"replace":  "ip -4 route delete 198.51.100.1/32 via 192.168.1.2 dev eth0\nip -4 route add 198.51.100.1/32 via 192.168.1.1 dev eth0",
				"override": "ip -4 route delete 198.51.100.1/32 via 192.168.1.2 dev eth0\nip -4 route add 198.51.100.1/32 via 192.168.1.1 dev eth0",
			},
			left: "+ 198.51.100.1/32 via 192.168.1.2 dev eth0",
		},
		{
			name: "a network with nothing but halves: the endpoint is reached by what is displaced",
			event: func(w *world) {
				w.flush("eth0")
				w.link("eth0", false)
				w.add("10.0.0.0/24 dev wlan0 proto kernel scope link src 10.0.0.7")
				w.add("0.0.0.0/1 via 10.0.0.1 dev wlan0 proto dhcp metric 600")
				w.add("128.0.0.0/1 via 10.0.0.1 dev wlan0 proto dhcp metric 600")
			},
			want: map[string]string{
				"auto": `ip -4 route delete 0.0.0.0/1 via 10.0.0.1 dev wlan0 metric 600
					ip -4 route delete 128.0.0.0/1 via 10.0.0.1 dev wlan0 metric 600
					ip -4 route add 198.51.100.1/32 via 10.0.0.1 dev wlan0`,
				"replace": `ip -4 route delete 0.0.0.0/1 via 10.0.0.1 dev wlan0 metric 600
					ip -4 route delete 128.0.0.0/1 via 10.0.0.1 dev wlan0 metric 600
					ip -4 route replace 198.51.100.1/32 via 10.0.0.1 dev wlan0`,
				"override": `ip -4 route delete 0.0.0.0/1 via 10.0.0.1 dev wlan0 metric 600
					ip -4 route delete 128.0.0.0/1 via 10.0.0.1 dev wlan0 metric 600
					ip -4 route replace 198.51.100.1/32 via 10.0.0.1 dev wlan0`,
			},
			left: "- default via 192.168.1.1 dev eth0 metric 100\n- " + subnet + `
				+ 10.0.0.0/24 dev wlan0 scope link src 10.0.0.7
				+ 0.0.0.0/1 via 10.0.0.1 dev wlan0 metric 600
				+ 128.0.0.0/1 via 10.0.0.1 dev wlan0 metric 600`,
		},
		{
			name:  "the endpoint roams",
			event: func(w *world) { w.f.Device.Peers[0].Endpoint = netip.MustParseAddrPort("198.51.100.2:1") },
			want: map[string]string{
				"replace":  "ip -4 route add 198.51.100.2/32 via 192.168.1.1 dev eth0\nip -4 route delete 198.51.100.1/32 via 192.168.1.1 dev eth0",
				"override": "ip -4 route add 198.51.100.2/32 via 192.168.1.1 dev eth0\nip -4 route delete 198.51.100.1/32 via 192.168.1.1 dev eth0",
				"rules":    "ip -4 rule add to 198.51.100.2/32 table main pref 30\nip -4 rule delete to 198.51.100.1/32 table main pref 30",
			},
		},
		{
			name: "a rule puts the endpoint into another table",
			event: func(w *world) {
				w.add("default via 192.168.1.2 dev eth0 table 77")
				w.f.Rules = slices.Insert(w.f.Rules, 1, rule(w.t, "pref 10 to 198.51.100.1/32 table 77"))
			},
			want: map[string]string{
				"replace":  "ip -4 route replace 198.51.100.1/32 via 192.168.1.2 dev eth0",
				"override": "ip -4 route replace 198.51.100.1/32 via 192.168.1.2 dev eth0",
				"rules":    "ip -4 rule add to 198.51.100.1/32 table 77 pref 30\nip -4 rule delete to 198.51.100.1/32 table main pref 30",
			},
			left: "+ default via 192.168.1.2 dev eth0 table 77",
		},
	} {
		for _, strategy := range []string{"auto", "replace", "override", "rules"} {
			t.Run(strategy+": "+test.name, func(t *testing.T) {
				w := begin(t, strategy, home, "198.51.100.1:1", "0.0.0.0/0")
				before := texts(machine(t, home, "", "").Routes)
				w.known = []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15")}
				test.event(w)
				if got, want := w.guard(), lines(test.want[strategy]); !slices.Equal(got, want) {
					t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
				w.down()
				want := slices.Clone(before)
				for _, line := range lines(test.left) {
					text := texts([]facts.Route{route(t, line[2:])})[0]
					if line[0] == '+' {
						want = append(want, text)
					} else {
						want = slices.DeleteFunc(want, func(s string) bool { return s == text })
					}
				}
				slices.Sort(want)
				got := texts(w.f.Routes)
				if strategy == "replace" && test.name == "the link flaps, its address is kept, its gateway's route not" {
					want = before // it has the default route, and puts it back
				}
				if !slices.Equal(got, want) {
					t.Errorf("after down\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
			})
		}
	}
}

// TestGuardKillSwitch: what a kill switch has behind the tunnel's routes is in no
// endpoint's way, where another link takes over.
func TestGuardKillSwitch(t *testing.T) {
	w := begin(t, "override", home, "198.51.100.1:1", "0.0.0.0/0")
	w.add("unreachable 0.0.0.0/1 metric 4278198272")
	w.add("unreachable 128.0.0.0/1 metric 4278198272")
	w.flush("eth0")
	w.link("eth0", false)
	w.add("10.0.0.0/24 dev wlan0 proto kernel scope link src 10.0.0.7")
	w.add("default via 10.0.0.1 dev wlan0 proto dhcp metric 600")
	want := []string{"ip -4 route replace 198.51.100.1/32 via 10.0.0.1 dev wlan0"}
	if got := w.guard(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// begin brings a tunnel up.
func begin(t *testing.T, strategy, routes, endpoints, allowed string) *world {
	t.Helper()
	w := &world{t: t, cfg: config(t, "10.0.0.2/32"), f: machine(t, routes, endpoints, allowed)}
	w.cfg.RoutingStrategy = strategy
	w.do([]plan.Action{
		{Do: plan.Addr{Link: "wg0", List: []plan.Prefix{{Prefix: netip.MustParsePrefix("10.0.0.2/32")}}}},
		{Do: plan.LinkUp{Name: "wg0", MTU: 1420}},
	})
	actions, err := Routes(w.cfg, w.f, Place{})
	if err != nil {
		t.Fatal(err)
	}
	w.do(actions)
	w.cfg = &confparse.Config{RoutingStrategy: strategy}
	return w
}

func texts(routes []facts.Route) (list []string) {
	for _, r := range routes {
		list = append(list, plan.Via{Route: r}.Commands()[0])
	}
	slices.Sort(list)
	return list
}

// IPv6: a router's default route stays where it was; another's does not, nor does
// the gateway's lifetime count.
func TestGuardIPv6(t *testing.T) {
	for strategy, want := range map[string][]string{
		"replace":  {"ip -6 route delete ::/0 via fe80::2 dev eth0 metric 1024", "ip -6 route delete 2001:db8:77::/48 via fe80::1 dev eth0 metric 1024"},
		"override": {"ip -6 route delete 2001:db8:77::/48 via fe80::1 dev eth0 metric 1024"},
		"rules":    nil,
	} {
		w := begin(t, strategy, "-6 default via fe80::1 dev eth0 proto ra metric 512", "[2001:db8:9::1]:1", "::/0")
		for i := range w.f.Routes { // as it lives on
			if r := &w.f.Routes[i]; r.Protocol == ra {
				way := *r.Way
				way.Expires = 1799
				r.Way = &way
			}
		}
		w.add("-6 default via fe80::2 dev eth0")
		w.add("2001:db8:77::/48 via fe80::1 dev eth0 proto ra")
		w.add("fd00:5::/64 via fe80::1 dev eth0 proto ra")
		if got := w.guard(); !slices.Equal(got, want) {
			t.Errorf("%s: got %q", strategy, got)
		}
	}
}

// What is not a full tunnel's takes nothing from others; the record says what it is.
func TestGuardLeavesAlone(t *testing.T) {
	const public = "203.0.113.0/24 via 192.168.1.1 dev eth0"
	for name, test := range map[string]struct {
		w    *world
		want []string
	}{
		"no /0":          {w: begin(t, "replace", home, "198.51.100.1:1", "10.0.0.0/8")},
		"the other half": {w: begin(t, "override", home, "198.51.100.1:1", "::/0")},
		"a /0 that came later": {w: func() *world {
			w := begin(t, "override", home, "198.51.100.1:1", "10.0.0.0/8")
			w.f.Device.Peers[0].AllowedIPs = append(w.f.Device.Peers[0].AllowedIPs, zero(false))
			return w
		}(), want: []string{"ip -4 route add 198.51.100.1/32 via 192.168.1.1 dev eth0"}},
		"Table=N": {w: func() *world {
			w := begin(t, "auto", home, "198.51.100.1:1", "0.0.0.0/0")
			w.cfg.Table = "123"
			return w
		}()},
		"another tunnel's": {w: func() *world {
			w := begin(t, "auto", home, "198.51.100.1:1", "0.0.0.0/0")
			w.others = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
			return w
		}()},
		"a control": {w: begin(t, "auto", home, "198.51.100.1:1", "0.0.0.0/0"), want: []string{"ip -4 route delete " + public}},
	} {
		test.w.add(public)
		if got := test.w.guard(); !slices.Equal(got, test.want) {
			t.Errorf("%s: got %q", name, got)
		}
	}
}

// The priorities are those that the rules have, whatever the file says by now.
func TestGuardKeepsPriorities(t *testing.T) {
	w := &world{t: t, cfg: &confparse.Config{RoutingStrategy: "rules", RulePriority: [2]uint32{100, 200}}, f: machine(t, home, "198.51.100.1:1", "0.0.0.0/0")}
	actions, err := Routes(w.cfg, w.f, Place{})
	if err != nil {
		t.Fatal(err)
	}
	w.do(actions)
	w.cfg = &confparse.Config{RoutingStrategy: "rules"}
	if got := w.guard(); len(got) > 0 {
		t.Errorf("got %q", got)
	}
	w.f.Device.Peers[0].Endpoint = netip.MustParseAddrPort("198.51.100.2:1")
	if got := w.guard(); len(got) != 2 || got[0] != "ip -4 rule add to 198.51.100.2/32 table main pref 100" {
		t.Errorf("got %q", got)
	}
}

func TestLooped(t *testing.T) {
	f := machine(t, home6+"\n10.9.0.0/24 dev wg0\n10.20.0.0/16 via 192.168.1.3 dev eth0", "198.51.100.1:1", "0.0.0.0/0")
	f.Addrs = []facts.Addr{{Prefix: netip.MustParsePrefix("10.9.0.2/24")}}
	way := plan.Action{Do: plan.Rule{To: netip.MustParsePrefix("10.8.0.2/32"), ShowPriority: true}}
	for _, test := range []struct {
		was, is string
		want    bool
	}{
		{"198.51.100.1", "198.51.100.2", false},
		{"198.51.100.1", "10.9.0.1", true},     // the tunnel's subnet
		{"10.9.0.5", "10.9.0.1", false},        // it was there before
		{"198.51.100.1", "10.8.0.1", true},     // private, by the default route
		{"198.51.100.1", "10.8.0.2", false},    // a reload asked for it
		{"198.51.100.1", "192.168.1.9", false}, // it is at home
		{"198.51.100.1", "10.20.0.1", false},   // a network behind a router
		{"10.0.0.1", "10.8.0.1", false},
		{"198.51.100.1", "2001:db8:9::1", false},
		{"198.51.100.1", "fd09::1", true},
		{"198.51.100.1", "::ffff:198.51.100.1", false},
	} {
		if got := Looped(f, []Standing{{Action: way}}, netip.MustParseAddr(test.was), netip.MustParseAddr(test.is)); got != test.want {
			t.Errorf("from %s to %s: %v", test.was, test.is, got)
		}
	}
}
