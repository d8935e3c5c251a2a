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

// handover is a network manager's way into the namespace and back, of most only with
// MANAGERS=all. prepare starts
// it; inside, then, it has the interface there.
func handover(t *testing.T, prepare, end string, want []string, inside func()) {
	t.Helper()
	handoverOf(t, "eth0", "ip link set eth0 down; ip link set eth0 netns physical", "ip -n physical link set eth0 down; ip -n physical link set eth0 netns 1", prepare, end, want, inside)
}

func handoverOf(t *testing.T, link, leave, come, prepare, end string, want []string, inside func()) {
	t.Helper()
	if name := t.Name(); os.Getenv("MANAGERS") != "all" && name != "TestNetworkManager" {
		return // each takes most of a minute where the kernel is emulated
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
	ns.Run(t, "bash", "-euc", prepare)
	t.Cleanup(func() { ns.Run(t, "bash", "-euc", end) })
	leased(t, "", link)
	lap("a lease at home")
	before := state(t)

	owners, err := systemd.Owners(ctx, "", []string{link})
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
	if !slices.Equal(got, want) {
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
	for end := time.Now().Add(30 * time.Second); !strings.Contains(string(text), "nameserver "+server+"\n"); time.Sleep(50 * time.Millisecond) {
		if text, _ = os.ReadFile(resolv); time.Now().After(end) {
			t.Errorf("%s: %s\n%s", resolv, text, ns.Run(t, "bash", "-c", "systemctl status --no-pager wg-quickns-netif.path wg-quickns-netif; cat "+views+"/netif/state; true"))
			break
		}
	}
	// nothing of it is known outside
	if got := ns.Run(t, "bash", "-c", "cat /etc/resolv.conf /run/systemd/resolve/resolv.conf; resolvectl dns; grep -r . /run/systemd/netif/links /run/NetworkManager/resolv.conf 2>/dev/null; true"); strings.Contains(got, server) {
		t.Errorf("outside is known: %s", got)
	}
	if inside != nil {
		inside()
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
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
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

func TestDhcpcd(t *testing.T) {
	handover(t, "systemctl start dhcpcd@eth0", "systemctl stop dhcpcd@eth0", []string{"dhcpcd@eth0.service"}, nil)
}

// TestDhcpcdOfAll: the unit for all interfaces, which shuts itself in.
func TestDhcpcdOfAll(t *testing.T) {
	handover(t, "systemctl start dhcpcd", "systemctl stop dhcpcd", []string{"dhcpcd.service"}, nil)
}

// TestByHand: a client that somebody started in a shell is in a scope of its own then,
// and so lives longer than the service that moved it.
func TestByHand(t *testing.T) {
	handover(t, "dhclient -4 eth0", "dhclient -4 -x eth0", []string{"dhclient -4 eth0"}, func() {
		if got := ns.Run(t, "bash", "-c", "cat /proc/$(pgrep -x dhclient)/cgroup"); !strings.Contains(got, "/wg-quickns-dhclient-") {
			t.Errorf("it is in %s", got)
		}
	})
}

func TestIfup(t *testing.T) {
	handover(t, `printf 'allow-hotplug eth0\niface eth0 inet dhcp\n' >/etc/network/interfaces.d/eth0; systemctl start ifup@eth0`,
		"systemctl stop ifup@eth0; rm /etc/network/interfaces.d/eth0", []string{"ifup@eth0.service"}, nil)
}

func TestNetworkManager(t *testing.T) {
	handover(t, `systemctl start NetworkManager; nmcli -w 20 connection add type ethernet ifname eth0 con-name wired autoconnect yes`,
		"nmcli connection delete wired; systemctl stop NetworkManager", []string{"NetworkManager.service"}, func() {
			if got := ns.Run(t, "nmcli", "-t", "-f", "DEVICE,STATE,CONNECTION", "device"); !strings.Contains(got, "eth0:connected:wired") {
				t.Errorf("nmcli: %s", got)
			}
		})
}

func TestNetworkd(t *testing.T) {
	handover(t, `printf '[Match]\nName=eth0\n[Network]\nDHCP=ipv4\n' >/etc/systemd/network/eth0.network; systemctl start systemd-networkd`,
		"rm /etc/systemd/network/eth0.network; systemctl stop systemd-networkd.socket systemd-networkd; ip addr flush dev eth0", []string{"systemd-networkd.service"}, nil)
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

const (
	leaveByPhy = "iw phy phy0 set netns name physical"
	comeByPhy  = "ip netns exec physical iw phy phy0 set netns 1"
	closeDown  = "; kill $(cat /run/hostapd.pid /run/far-wlan.pid)"
)

// TestWiFi: a supplicant and a DHCP client by units, with a real association.
func TestWiFi(t *testing.T) {
	handoverOf(t, "wlan0", leaveByPhy, comeByPhy, accessPoint+`
printf 'network={\n ssid="lab"\n psk="correct-horse"\n}\n' >/etc/wpa_supplicant/wpa_supplicant-wlan0.conf
systemctl start wpa_supplicant@wlan0 dhcpcd@wlan0`,
		"systemctl stop dhcpcd@wlan0 wpa_supplicant@wlan0; rm /etc/wpa_supplicant/wpa_supplicant-wlan0.conf"+closeDown,
		[]string{"wpa_supplicant@wlan0.service", "dhcpcd@wlan0.service"}, nil)
}

// TestNetworkManagerWiFi: with the supplicant that it talks to on D-Bus.
func TestNetworkManagerWiFi(t *testing.T) {
	handoverOf(t, "wlan0", leaveByPhy, comeByPhy, accessPoint+`
printf '[keyfile]\nunmanaged-devices=interface-name:eth0\n' >/etc/NetworkManager/conf.d/lab.conf
systemctl start NetworkManager
nmcli -w 20 connection add type wifi ifname wlan0 con-name air ssid lab wifi-sec.key-mgmt wpa-psk wifi-sec.psk correct-horse`,
		"nmcli connection delete air; systemctl stop NetworkManager wpa_supplicant; rm /etc/NetworkManager/conf.d/lab.conf"+closeDown,
		[]string{"wpa_supplicant.service", "NetworkManager.service"}, func() {
			if got := ns.Run(t, "nmcli", "-t", "-f", "DEVICE,STATE,CONNECTION", "device"); !strings.Contains(got, "wlan0:connected:air") {
				t.Errorf("nmcli: %s", got)
			}
		})
}
