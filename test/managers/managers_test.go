//go:build systemd

package managers

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
	"wg-quickns/systemd"
	"wg-quickns/test/ns"
)

const (
	views  = "/run/wg-quickns/@views.physical"
	resolv = "/etc/netns/physical/resolv.conf"
	server = "192.0.2.53" // what DHCP says is the name server
	away   = plan.NS("/run/netns/physical")
)

// TestMain makes the machine ready once: eth0 and, behind it, who gives out leases.
func TestMain(m *testing.M) {
	if _, err := os.Stat("/run/systemd/system"); err != nil || os.Getenv("WG_TEST_KERNEL") == "" {
		fmt.Fprintln(os.Stderr, "FAIL: this is for a machine of its own with systemd: test/run systemd")
		os.Exit(1)
	}
	script := exec.Command("bash", "-euc", machine)
	script.Stdout, script.Stderr = os.Stdout, os.Stderr
	if err := script.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "FAIL: make the machine ready:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const machine = `
ip netns del physical 2>/dev/null || true
ip netns list | grep -q far || ip netns add far
ip -n far link del eth0 2>/dev/null || true
ip link add eth0 type veth peer name eth0 netns far
udevadm settle
ip -n far addr add 192.0.2.1/24 dev eth0
ip -n far link set eth0 up
ip netns pids far | xargs -r kill # another DHCP server may be left there
ip netns exec far dnsmasq -C /dev/null -i eth0 -z -p 0 --no-ping --dhcp-range=192.0.2.100,192.0.2.200,10m --dhcp-option=6,` + server + ` --dhcp-authoritative --pid-file=/run/far-dhcp.pid
grep -q '^noarp' /etc/dhcpcd.conf || echo noarp >>/etc/dhcpcd.conf
# as Debian has it, whatever other tests of this machine have made of it
ln -sfn ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
rm -f /run/NetworkManager/resolv.conf
systemctl start systemd-resolved
mkdir -p /etc/netns /run/wg-quickns
`

// manager is a way in which an interface is configured.
type manager struct {
	name    string
	link    string // "": eth0
	prepare string // a script that starts it
	end     string
	want    []string // by whom it is configured
	inside  func(t *testing.T)
	more    bool // only with MANAGERS=all: most of a minute each where the kernel is emulated
}

// accessPoint is one behind wlan0, with WPA2.
const accessPoint = `
modprobe mac80211_hwsim radios=2
udevadm settle
[ -e /sys/class/ieee80211/phy1 ] && iw phy phy1 set netns name far
ip -n far addr replace 198.51.100.1/24 dev wlan1
printf '%s\n' interface=wlan1 driver=nl80211 ssid=lab hw_mode=g channel=1 wpa=2 wpa_key_mgmt=WPA-PSK rsn_pairwise=CCMP wpa_passphrase=correct-horse >/run/hostapd.conf
ip netns exec far hostapd -B -P /run/hostapd.pid /run/hostapd.conf
ip netns exec far dnsmasq -C /dev/null -i wlan1 -z -p 0 --no-ping --dhcp-range=198.51.100.100,198.51.100.200,10m --dhcp-option=6,` + server + ` --dhcp-authoritative --pid-file=/run/far-wlan.pid --dhcp-leasefile=/run/far-wlan.leases
`

const closeDown = "; kill $(cat /run/hostapd.pid /run/far-wlan.pid)"

var managers = []manager{
	{
		name:    "NetworkManager",
		prepare: `systemctl start NetworkManager; nmcli -w 20 connection add type ethernet ifname eth0 con-name wired autoconnect yes`,
		end:     "nmcli connection delete wired; systemctl stop NetworkManager",
		want:    []string{"NetworkManager.service"},
		inside:  connected("eth0:connected:wired"),
	},
	{
		name: "dhcpcd", more: true,
		prepare: "systemctl start dhcpcd@eth0",
		end:     "systemctl stop dhcpcd@eth0",
		want:    []string{"dhcpcd@eth0.service"},
	},
	{
		name: "dhcpcd of all", more: true, // it shuts itself in
		prepare: "systemctl start dhcpcd",
		end:     "systemctl stop dhcpcd",
		want:    []string{"dhcpcd.service"},
	},
	{
		// what somebody started in a shell is a service of its own then, and so lives longer
		// than the one that moved it
		name: "by hand", more: true,
		prepare: "dhclient -4 eth0",
		end:     "dhclient -4 -x eth0",
		want:    []string{"dhclient -4 eth0"},
		inside: func(t *testing.T) {
			if got := ns.Run(t, "bash", "-c", "cat /proc/$(pgrep -x dhclient)/cgroup"); !strings.Contains(got, "/wg-quickns-client-dhclient-") {
				t.Errorf("it is in %s", got)
			}
		},
	},
	{
		name: "ifupdown", more: true,
		prepare: `printf 'allow-hotplug eth0\niface eth0 inet dhcp\n' >/etc/network/interfaces.d/eth0; systemctl start ifup@eth0`,
		end:     "systemctl stop ifup@eth0; rm /etc/network/interfaces.d/eth0",
		want:    []string{"ifup@eth0.service"},
	},
	{
		name: "systemd-networkd", more: true,
		prepare: `printf '[Match]\nName=eth0\n[Network]\nDHCP=ipv4\n' >/etc/systemd/network/eth0.network; systemctl start systemd-networkd`,
		end:     "rm /etc/systemd/network/eth0.network; systemctl stop systemd-networkd.socket systemd-networkd; ip addr flush dev eth0",
		want:    []string{"systemd-networkd.service"},
	},
	{
		name: "wpa_supplicant and dhcpcd", more: true, link: "wlan0",
		prepare: accessPoint + `
printf 'network={\n ssid="lab"\n psk="correct-horse"\n}\n' >/etc/wpa_supplicant/wpa_supplicant-wlan0.conf
systemctl start wpa_supplicant@wlan0 dhcpcd@wlan0`,
		end:  "systemctl stop dhcpcd@wlan0 wpa_supplicant@wlan0; rm /etc/wpa_supplicant/wpa_supplicant-wlan0.conf" + closeDown,
		want: []string{"wpa_supplicant@wlan0.service", "dhcpcd@wlan0.service"},
	},
	{
		name: "NetworkManager, Wi-Fi", more: true, link: "wlan0", // with the supplicant that it talks to on D-Bus
		prepare: accessPoint + `
printf '[keyfile]\nunmanaged-devices=interface-name:eth0\n' >/etc/NetworkManager/conf.d/lab.conf
systemctl start NetworkManager
nmcli -w 20 connection add type wifi ifname wlan0 con-name air ssid lab wifi-sec.key-mgmt wpa-psk wifi-sec.psk correct-horse`,
		end:    "nmcli connection delete air; systemctl stop NetworkManager wpa_supplicant; rm /etc/NetworkManager/conf.d/lab.conf" + closeDown,
		want:   []string{"wpa_supplicant.service", "NetworkManager.service"},
		inside: connected("wlan0:connected:air"),
	},
}

// connected asks nmcli(1).
func connected(want string) func(t *testing.T) {
	return func(t *testing.T) {
		if got := ns.Run(t, "nmcli", "-t", "-f", "DEVICE,STATE,CONNECTION", "device"); !strings.Contains(got, want) {
			t.Errorf("nmcli: %s", got)
		}
	}
}

func TestManagers(t *testing.T) {
	for _, m := range managers {
		if m.more && os.Getenv("MANAGERS") != "all" {
			continue
		}
		t.Run(m.name, m.handOver)
	}
}

// handOver is its way into the namespace and back.
func (m manager) handOver(t *testing.T) {
	link, leave, come := m.link, "iw phy phy0 set netns name physical", "ip netns exec physical iw phy phy0 set netns 1"
	if link == "" {
		link, leave, come = "eth0", "ip link set eth0 down; ip link set eth0 netns physical", "ip -n physical link set eth0 down; ip -n physical link set eth0 netns 1"
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	var d systemd.Doer
	began := time.Now()
	lap := func(what string) { t.Logf("%5.1f s %s", time.Since(began).Seconds(), what) }
	do := func(ns plan.NS, s plan.Step) {
		t.Helper()
		if _, err := d.Do(ctx, ns, s); err != nil {
			t.Fatal(err)
		}
		lap(strings.Join(s.Commands(), "; "))
	}
	ns.Run(t, "bash", "-euc", m.prepare)
	t.Cleanup(func() { ns.Run(t, "bash", "-euc", m.end) })
	leased(t, "", link)
	lap("a lease at home")
	before := state(t)

	asked := facts.Interface{Name: link}
	if link == "wlan0" {
		asked.Phy = &facts.Phy{}
	}
	owners, _, err := systemd.Owners(ctx, "", []facts.Interface{asked}, []string{"lo", link})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range owners {
		if o.Client != nil {
			got = append(got, strings.Join(o.Client.Args, " "))
		} else {
			got = append(got, o.Unit)
		}
		if !slices.Equal(o.Links, []string{link}) {
			t.Errorf("%+v", o)
		}
	}
	if !slices.Equal(got, m.want) {
		t.Fatalf("it is configured by %q", got)
	}
	lap("found")

	ns.Run(t, "ip", "netns", "add", "physical")
	ns.Run(t, "ip", "-n", "physical", "link", "set", "lo", "up")
	do("", plan.Views{NS: away, Dir: views})
	confine := func(back bool) {
		for _, o := range owners {
			if o.Client == nil {
				do("", plan.Confine{Unit: o.Unit, NS: away, Views: views, Delete: back})
			}
		}
	}
	confine(false)
	if os.Getenv("MANAGERS") == "all" { // one that was not stopped yet goes on
		confine(true)
		if after := state(t); !strings.HasPrefix(after, before[:strings.Index(before, "/run/systemd")]) {
			t.Errorf("before:\n%s\nnow:\n%s", before, after)
		}
		confine(false)
	}
	for _, o := range slices.Backward(owners) {
		do("", service(o, false, ""))
	}
	ns.Run(t, "bash", "-euc", leave)
	for _, o := range owners {
		do(away, service(o, true, views))
	}
	leased(t, "physical", link)
	lap("a lease in the namespace")
	var text []byte
	for end := time.Now().Add(time.Minute); !strings.Contains(string(text), "nameserver "+server+"\n"); time.Sleep(50 * time.Millisecond) {
		if text, _ = os.ReadFile(resolv); time.Now().After(end) {
			t.Errorf("%s: %s\n%s", resolv, text, ns.Run(t, "bash", "-c", "systemctl status --no-pager wg-quickns-netif.path wg-quickns-netif; cat "+views+"/netif/state; true"))
			break
		}
	}
	// nothing of it is known outside
	if got := ns.Run(t, "bash", "-c", "cat /etc/resolv.conf /run/systemd/resolve/resolv.conf; resolvectl dns; grep -r . /run/systemd/netif/links /run/NetworkManager/resolv.conf 2>/dev/null; true"); strings.Contains(got, server) {
		t.Errorf("outside is known: %s", got)
	}
	if m.inside != nil {
		m.inside(t)
	}

	for _, o := range slices.Backward(owners) {
		do(away, service(o, false, views))
	}
	ns.Run(t, "bash", "-euc", come)
	confine(true)
	do("", plan.Views{NS: away, Dir: views, Delete: true})
	for _, o := range owners {
		do("", service(o, true, ""))
	}
	os.Remove(resolv)
	os.Remove("/etc/netns/physical")
	leased(t, "", link)
	lap("a lease at home again")
	if in := ns.Run(t, "ip", "netns", "pids", "physical"); in != "" {
		t.Errorf("left in the namespace: %s", ns.Run(t, "ps", "ax"))
	}
	ns.Run(t, "ip", "netns", "delete", "physical")
	after := state(t)
	for end := time.Now().Add(10 * time.Second); after != before && time.Now().Before(end); {
		time.Sleep(100 * time.Millisecond)
		after = state(t)
	}
	if after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func service(o facts.Owner, start bool, views string) plan.Step {
	if o.Client != nil {
		return plan.Client{Client: *o.Client, Start: start, Views: views}
	}
	return plan.Service{Unit: o.Unit, Start: start}
}

// leased waits for an address.
func leased(t *testing.T, in, link string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		argv := []string{"-4", "addr", "show", link}
		if in != "" {
			argv = append([]string{"-n", in}, argv...)
		}
		if r := ns.Try(exec.Command("ip", argv...)); strings.Contains(r.Stdout, "scope global") {
			return
		}
	}
	t.Fatalf("no lease in %q:\n%s", in, ns.Run(t, "bash", "-c", "journalctl -b --no-pager | tail -n 40; ip addr; ip -n physical addr; systemctl --failed --no-pager; ps ax"))
}

// state is what must be as before.
func state(t *testing.T) string {
	t.Helper()
	return ns.Run(t, "bash", "-c", `
		ip -4 route; ip -4 -o addr | sed 's/ valid_lft.*//'
		resolvectl dns
		systemctl is-active NetworkManager systemd-networkd dhcpcd@eth0 ifup@eth0 dhcpcd@wlan0 wpa_supplicant@wlan0
		find /run/systemd/system /run/systemd/system.control /run/wg-quickns /etc/netns /run/NetworkManager/conf.d -xdev 2>/dev/null
		grep -E "views|netns" /proc/mounts; true`)
}
