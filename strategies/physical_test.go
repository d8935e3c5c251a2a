package strategies

import (
	"slices"
	"strings"
	"testing"

	"wg-quickns/confparse"
	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
)

// laptop has what a laptop has, and a few things more.
func laptop() []facts.Interface {
	phy := &facts.Phy{Index: 0, Name: "phy0"}
	return []facts.Interface{
		{Name: "eth0", Index: 2, Hardware: true, Up: true, MTU: 1500, Default: true},
		{Name: "wlan0", Index: 3, Hardware: true, Up: true, MTU: 1500, Phy: phy, Default: true},
		{Name: "p2p0", Index: 4, Phy: phy},
		{Name: "eth0.5", Index: 5, Kind: "vlan", Lower: 2},
		{Name: "docker0", Index: 6, Kind: "bridge", Fixed: "it is a bridge"},
		{Name: "veth1", Index: 7, Kind: "veth", Master: 6},
	}
}

func TestMovable(t *testing.T) {
	for _, c := range []struct {
		names  string
		change func([]facts.Interface)
		want   string // names, or a part of the error
	}{
		{"", nil, "eth0 wlan0 p2p0 eth0.5"},
		{"wlan0", func(l []facts.Interface) { l[0].Default = false }, "wlan0 p2p0"},
		{"eth0.5", func(l []facts.Interface) { l[1].Default = false }, "eth0 eth0.5"},
		{"veth1", func(l []facts.Interface) { l[0].Default, l[1].Default = false, false }, "`docker0' cannot leave its namespace: it is a bridge"},
		{"eth0", nil, "a default route leads by `wlan0'"},
		{"eth7", func(l []facts.Interface) { l[0].Default, l[1].Default = false, false }, "there is no interface to move"},
		{"eth7 wlan0", func(l []facts.Interface) { l[0].Default = false }, "wlan0 p2p0"},
		{"", func(l []facts.Interface) { l[1].Fixed = "its driver says no" }, "`wlan0' cannot leave its namespace: its driver says no"},
		{"", func(l []facts.Interface) { l[5].Default = true }, "`docker0' cannot leave"},
		{"", func(l []facts.Interface) {
			for i := range l {
				l[i].Hardware, l[i].Default = false, false
			}
		}, "there is no interface to move"},
	} {
		all := laptop()
		if c.change != nil {
			c.change(all)
		}
		cfg := &confparse.Config{}
		if c.names != "" {
			cfg.PhysicalInterfaces = strings.Fields(c.names)
		}
		list, err := Movable(cfg, all)
		var names []string
		for _, l := range list {
			names = append(names, l.Name)
		}
		if got := strings.Join(names, " "); err == nil && got != c.want || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %q, %v, want %q", c.names, got, err, c.want)
		}
	}
}

func TestPhysicalPlan(t *testing.T) {
	list, err := Movable(&confparse.Config{}, laptop())
	if err != nil {
		t.Fatal(err)
	}
	h := Hosted{Views: "/run/views", Owners: []facts.Owner{
		{Unit: "wpa_supplicant@wlan0.service", Links: []string{"wlan0"}},
		{Client: &facts.Client{Exe: "/sbin/dhclient", Args: []string{"dhclient", "wlan0"}}, Links: []string{"wlan0"}, Addresses: true},
	}}
	resolv := plan.Resolv{Path: "/etc/netns/physical/resolv.conf", Servers: []string{"192.0.2.1"}, Shared: true}
	place := Place{Birth: plan.Named("physical"), Bare: true}
	actions := append(Surroundings(resolv, h.Views, place), Physical(list, h, place)...)
	var got []string
	for _, a := range actions {
		if bare, ok := a.Do.(plan.Settle); ok && bare.Bare != (bare.Link.Name == "wlan0") {
			t.Errorf("%s: addresses are carried over: %v", bare.Link.Name, !bare.Bare)
		}
		got = append(got, plan.Trace(a.NS, a.Do)...)
	}
	want := strings.Split(`write /etc/netns/physical/resolv.conf
ip netns exec physical mount -t sysfs sysfs /run/views/sys
systemctl edit --runtime wpa_supplicant@wlan0.service # NetworkNamespacePath=/run/netns/physical
pkill -f dhclient wlan0
systemctl stop wpa_supplicant@wlan0.service
ip link set dev eth0 down
ip link set dev wlan0 down
ip link set dev p2p0 down
ip link set dev eth0.5 down
ip link set dev eth0 netns physical
iw phy phy0 set netns name physical
ip link set dev eth0.5 netns physical
ip -n physical link set dev eth0 mtu 1500 up
ip -n physical link set dev wlan0 mtu 1500
ip -n physical link set dev p2p0 mtu 0
ip -n physical link set dev eth0.5 mtu 0
systemctl start wpa_supplicant@wlan0.service
ip netns exec physical dhclient wlan0`, "\n")
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
	var undo []string
	for _, u := range plan.UndoOrder(actions, false) {
		undo = append(undo, plan.Trace(u.NS, u.Step)...)
	}
	want = strings.Split(`ip netns exec physical pkill -f dhclient wlan0
systemctl stop wpa_supplicant@wlan0.service
ip -n physical link set dev eth0.5 netns 1
ip netns exec physical iw phy phy0 set netns 1
ip -n physical link set dev eth0 netns 1
ip link set dev eth0 mtu 1500 up
ip link set dev wlan0 mtu 1500
ip link set dev p2p0 mtu 0
ip link set dev eth0.5 mtu 0
systemctl revert --runtime wpa_supplicant@wlan0.service
systemctl start wpa_supplicant@wlan0.service
dhclient wlan0
systemctl revert --runtime wpa_supplicant@wlan0.service
umount -R /run/views
rm /etc/netns/physical/resolv.conf`, "\n")
	if !slices.Equal(undo, want) {
		t.Errorf("undo\n%s", strings.Join(undo, "\n"))
	}
}

// TestNamesakes: the alias of what is away tells it, whatever it is called there, and a twin
// is no namesake of what it stands in for.
func TestNamesakes(t *testing.T) {
	all := []facts.Interface{{Name: "eth0", Hardware: true}, {Name: "eth1"}, {Name: "br0", Kind: "bridge", Twin: true, Default: true},
		{Name: "br1", Kind: "bridge", Twin: true, Default: true}, {Name: "eth2", Kind: "dummy"}}
	there := []facts.Interface{{Name: "renamed", Alias: plan.AwayAlias(all[0])}, {Name: "eth1"},
		{Name: "br0", Kind: "bridge", Alias: plan.AwayAlias(all[2])}, {Name: "br1", Alias: plan.AwayAlias(all[3])},
		{Name: "eth2", Alias: plan.AwayAlias(all[4])}}
	rest, namesakes := Namesakes(&confparse.Config{}, all, there)
	if len(rest) != 1 || rest[0].Name != "eth1" || len(namesakes) != 2 || namesakes[0].Name != "eth0" || namesakes[1].Name != "br1" {
		t.Errorf("%v, %v", rest, namesakes)
	}
}

// TestStuck: a way out that stays is told, once udev has done with it.
func TestStuck(t *testing.T) {
	for _, c := range []struct {
		names, want string // interfaces
		change      func(l []facts.Interface)
	}{
		{"", "", func([]facts.Interface) {}},
		{"", "wlan0", func(l []facts.Interface) { l[1].Fixed = "its driver says no" }},
		{"eth0", "wlan0", func([]facts.Interface) {}},
		{"eth0 docker0", "wlan0 docker0", func([]facts.Interface) {}},
		{"", "docker0", func(l []facts.Interface) { l[4].Default = true }},
		{"", "", func(l []facts.Interface) { l[4].Default, l[4].Kind = true, "tun" }},
		{"", "", func(l []facts.Interface) { l[4].Default, l[4].Index = true, 0 }},
	} {
		all := laptop()
		c.change(all)
		cfg := &confparse.Config{}
		if c.names != "" {
			cfg.PhysicalInterfaces = strings.Fields(c.names)
		}
		var got []string
		for _, text := range Stuck(cfg, all, func(index int) bool { return index != 0 }) {
			got = append(got, strings.Trim(strings.Fields(text)[1], ","))
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%q: %q, want %q", c.names, got, c.want)
		}
	}
}

// TestReturned: what is home again goes away by the steps that stand, with those who configure
// it alone; what only has its name does not.
func TestReturned(t *testing.T) {
	all := laptop()
	h := Hosted{Owners: []facts.Owner{
		{Unit: "wpa_supplicant@wlan0.service", Links: []string{"wlan0"}},
		{Unit: "wpa_supplicant.service", Links: []string{"wlan0"}},
		{Client: &facts.Client{Args: []string{"dhclient", "wlan0"}}, Links: []string{"wlan0"}},
		{Client: &facts.Client{Args: []string{"dhclient", "eth0"}}, Links: []string{"eth0"}},
	}}
	var up []Standing
	for range 2 { // it was plugged in before, as a newcomer
		for _, a := range Physical(all[:3], h, Place{Birth: plan.Named("physical"), Bare: true}) {
			up = append(up, Standing{len(up), a})
		}
	}
	back := laptop()[1:2]
	back[0].Index, back[0].Phy = 9, &facts.Phy{Index: 3, Name: "phy3"}
	for _, c := range []struct {
		change func(l *facts.Interface)
		want   string
	}{
		{func(*facts.Interface) {}, `iw phy phy3 set netns name physical
ip -n physical link set dev wlan0 mtu 1500 up
systemctl stop wpa_supplicant@wlan0.service
systemctl start wpa_supplicant@wlan0.service
ip netns exec physical pkill -f dhclient wlan0
ip netns exec physical dhclient wlan0`},
		{func(l *facts.Interface) { l.MAC = "02:00:00:00:00:09" }, ""},
		{func(l *facts.Interface) { l.Fixed = "its driver says no" }, ""},
		{func(l *facts.Interface) { l.Index = 10 }, ""},
	} {
		l := slices.Clone(back)
		c.change(&l[0])
		var got []string
		for _, a := range Returned(l, up, func(index int) bool { return index == 9 }) {
			got = append(got, plan.Trace(a.NS, a.Do)...)
		}
		if text := strings.Join(got, "\n"); text != c.want {
			t.Errorf("got\n%s\nwant\n%s", text, c.want)
		}
	}
}
