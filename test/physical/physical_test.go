//go:build systemd

package physical

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"wg-quickns/test/bed"
	"wg-quickns/test/ns"
	"wg-quickns/test/programs"
)

const example = "../../examples/physical/laptop.conf"

// TestMain makes the machine ready once: a network behind eth0 with a DHCP server
// that is its name server too, and the tunnel's server.
func TestMain(m *testing.M) {
	if _, err := os.Stat("/run/systemd/system"); err != nil || os.Getenv("WG_TEST_KERNEL") == "" {
		fmt.Fprintln(os.Stderr, "FAIL: this is for a machine of its own with systemd: test/run systemd")
		os.Exit(1)
	}
	program, err := programs.Quickns()
	if err == nil {
		script := exec.Command("bash", "-euc", machine, "machine", program, example)
		script.Stdout, script.Stderr = os.Stdout, os.Stderr
		err = script.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAIL: make the machine ready:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const machine = `
cp "$1" /usr/local/bin/wg-quickns
install -m 600 "$2" /etc/wireguard/wg0.conf
sed -i 's/^DNS/#DNS/' /etc/wireguard/wg0.conf # which needs a resolvconf
rm -f /etc/resolv.conf && touch /etc/resolv.conf
modprobe -q wireguard || true

# what other tests of this machine have left
wg-quickns down server 2>/dev/null || true
ip netns pids far 2>/dev/null | xargs -r kill || true
ip netns del far 2>/dev/null || true
ip link del eth0 2>/dev/null || true
systemctl stop systemd-resolved

ip netns add far
ip link add eth0 address 02:00:00:00:00:01 type veth peer name eth0 netns far
udevadm settle
ip -n far link set lo up
ip -n far addr add 192.0.2.1/24 dev eth0
ip -n far addr add 192.0.2.10/24 dev eth0
ip -n far link set eth0 up
cat >/etc/wireguard/server.conf <<END
[Interface]
PrivateKey = KEY+OF+EXAMPLE/never+use/server/00000000000=
ListenPort = 51820
Address = 10.8.0.1/24, 203.0.113.7/32, fd08::1/64
Namespace = far
BirthNamespace = far
[Peer]
PublicKey = OOIZpO5Vqc73QSN0czga5ePrK+RCs1AfTpZe5sk2bEg=
AllowedIPs = 10.8.0.2/32, fd08::2/128
END
chmod 600 /etc/wireguard/server.conf
wg-quickns up server
ip netns exec far dnsmasq -C /dev/null -R -h -i eth0 -z -a 192.0.2.1 --pid-file=/run/far-dns.pid --address=/vpn.example.com/192.0.2.10 \
  --dhcp-range=192.0.2.100,192.0.2.150,2m --dhcp-leasefile=/run/far.leases --dhcp-authoritative --log-facility=/run/far.log --log-dhcp
ip netns exec far nft -f - <<END
table inet seen {
  counter clear { }
  chain in { type filter hook prerouting priority raw; iifname eth0 udp dport 4242 counter name clear; }
}
END
`

// manager is one way in which eth0 is configured.
type manager struct {
	name  string
	start string // a script that ends with eth0 configured
	end   string
	units []string // that are active while it runs
	more  bool     // only where WGQ_PHYSICAL_ROUNDS is set: a minute each
	inDNS bool     // the name server is in resolv.conf of the namespace afterwards
}

const leased = `
for i in $(seq 300); do ip -4 addr show dev eth0 2>/dev/null | grep -q 'inet 192.0.2.1[0-9][0-9]/' && ip route | grep -q ^default && break; sleep 0.1; done
ip route | grep -q '^default via 192.0.2.1'`

var managers = []manager{
	{
		name: "static",
		start: `ip link set eth0 mtu 1400 up && ip addr add 192.0.2.2/24 dev eth0 && ip -6 addr add 2001:db8::2/64 dev eth0 nodad
			ip route add default via 192.0.2.1 metric 7 && ip route add 198.51.100.0/24 via 192.0.2.1 table 77
			ip rule add iif eth0 table 77 && ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent
			sysctl -qw net.ipv4.conf.eth0.rp_filter=2; echo nameserver 192.0.2.1 >/etc/resolv.conf`,
		end:   `ip rule del iif eth0 table 77; ip addr flush dev eth0; ip route flush table 77; ip neigh flush dev eth0 nud permanent; : >/etc/resolv.conf`,
		inDNS: true,
	},
	{
		name:  "dhclient by hand",
		start: `ip link set eth0 up && dhclient -4 -q -pf /run/dhclient.eth0.pid -lf /run/dhclient.eth0.leases eth0` + leased,
		end:   `dhclient -4 -q -r -pf /run/dhclient.eth0.pid -lf /run/dhclient.eth0.leases eth0 || true; pkill dhclient || true; ip addr flush dev eth0`,
		more:  true,
		inDNS: true,
	},
	{
		name: "dhcpcd by systemd",
		start: `printf '[Service]\nType=forking\nExecStart=/usr/sbin/dhcpcd -4 -b -q %%I\nExecStop=/usr/sbin/dhcpcd -4 -x %%I\n' >/run/systemd/system/dhcpcd@.service
			systemctl daemon-reload; systemctl start dhcpcd@eth0` + leased,
		end:   `systemctl stop dhcpcd@eth0; rm /run/systemd/system/dhcpcd@.service; systemctl daemon-reload`,
		units: []string{"dhcpcd@eth0.service"},
		inDNS: true,
	},
	{
		name: "dhclient by ifupdown",
		start: `printf 'allow-hotplug eth0\niface eth0 inet dhcp\n' >/etc/network/interfaces
			systemctl start ifup@eth0` + leased,
		end:   `systemctl stop ifup@eth0; : >/etc/network/interfaces`,
		units: []string{"ifup@eth0.service"},
		more:  true,
		inDNS: true,
	},
	{
		name: "systemd-networkd",
		start: `mkdir -p /run/systemd/network; printf '[Match]\nName=eth0\n[Network]\nDHCP=ipv4\n' >/run/systemd/network/eth0.network
			systemctl start systemd-networkd` + leased,
		end:   `systemctl stop systemd-networkd.socket systemd-networkd; rm /run/systemd/network/eth0.network; ip addr flush dev eth0`,
		units: []string{"systemd-networkd.service"},
		more:  true,
		inDNS: true,
	},
	{
		name: "NetworkManager",
		start: `printf '[main]\nplugins=keyfile\n[keyfile]\nunmanaged-devices=interface-name:server;interface-name:wg*\n' >/etc/NetworkManager/NetworkManager.conf
			rm -f /usr/lib/udev/rules.d/85-nm-unmanaged.rules; udevadm control --reload; udevadm trigger -c change /sys/class/net/eth0; udevadm settle
			systemctl start NetworkManager; nmcli device set eth0 managed yes
			nmcli -t connection show eth0 >/dev/null 2>&1 || nmcli connection add con-name eth0 type ethernet ifname eth0 ipv6.method disabled >/dev/null
			nmcli -w 20 connection up eth0 >/dev/null` + leased,
		end:   `nmcli connection delete eth0; systemctl stop NetworkManager; ip addr flush dev eth0; : >/etc/resolv.conf`,
		units: []string{"NetworkManager.service"},
		more:  true,
		inDNS: true,
	},
}

// state is all of this machine that the tunnel may change, as text, without what a
// lease counts down.
func state(t *testing.T) string {
	t.Helper()
	return ns.Run(t, "bash", "-ec", `
		ip -o link | sed -E 's/^[0-9]+: //; s/ (qlen|group) [^ ]+//g' | sort
		ip -o addr | grep -v fe80 | sed -E 's/^[0-9]+: //; s/ (valid|preferred)_lft [^ ]+//g; s/ *\\.*//' | sort
		ip -4 rule; ip -6 rule
		ip -4 route show table all | sort; ip -6 route show table all | grep -vE 'fe80|ff00' | sort
		ip neigh show nud permanent
		nft list ruleset
		sysctl -a -e -r '^net\.ipv4\.conf\.eth0\.' 2>/dev/null
		ls -l --time-style=+ /run/netns /run/wg-quickns /etc/netns /run/systemd/system 2>&1 || true
		findmnt -rno TARGET | sort
		grep -s . /etc/resolv.conf || true`)
}

func rounds(t *testing.T) int {
	n, err := strconv.Atoi(os.Getenv("WGQ_PHYSICAL_ROUNDS"))
	if err != nil && os.Getenv("WGQ_PHYSICAL_ROUNDS") != "" {
		t.Fatal(err)
	}
	return max(n, 1)
}

// cleartext is how many probes have come by eth0 since the last call.
func cleartext(t *testing.T) int {
	t.Helper()
	out := ns.Run(t, "ip", "netns", "exec", "far", "nft", "reset", "counter", "inet", "seen", "clear")
	_, rest, _ := strings.Cut(out, "packets ")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err, out)
	}
	return n
}

// probe sends packets all the time to an address behind everything.
func probe(t *testing.T) {
	t.Helper()
	c := exec.Command("bash", "-c", `while :; do echo x >/dev/udp/203.0.113.66/4242; sleep 0.02; done 2>/dev/null`)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
}

func TestManagers(t *testing.T) {
	for _, m := range managers {
		if m.more && os.Getenv("WGQ_PHYSICAL_ROUNDS") == "" {
			continue
		}
		t.Run(strings.ReplaceAll(m.name, " ", "_"), func(t *testing.T) {
			ns.Run(t, "bash", "-ec", m.start)
			defer ns.Run(t, "bash", "-c", m.end)
			probe(t)
			if !bed.Wait(5*time.Second, func() bool { return cleartext(t) > 0 }) {
				t.Error("the control sees no probe")
			}
			for range rounds(t) {
				m.round(t)
				if t.Failed() {
					return
				}
			}
		})
	}
}

// round is up, a look around, and down.
func (m manager) round(t *testing.T) {
	before := state(t)
	begin := time.Now()
	r := ns.Try(exec.Command("wg-quickns", "up", "wg0"))
	took := time.Since(begin)
	if r.Code != 0 {
		t.Fatalf("up: %v", r)
	}
	answers := func() bool { return ns.Try(exec.Command("ping", "-nqc1", "-W1", "203.0.113.7")).Code == 0 }
	if !bed.Wait(30*time.Second, answers) {
		t.Errorf("no answer through the tunnel:\n%s%s", r.Stderr, ns.Run(t, "bash", "-c", "wg-quickns status; ip -n physical addr; ip -n physical route; cat /etc/netns/physical/resolv.conf"))
	}
	t.Logf("up: %v, the first answer after %v", took.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
	cleartext(t)
	if out := ns.Run(t, "ip", "-br", "link"); strings.Contains(out, "eth0") || !strings.Contains(out, "wg0") {
		t.Errorf("links of the machine:\n%s", out)
	}
	if out := ns.Run(t, "ip", "-n", "physical", "-br", "addr"); !strings.Contains(out, "eth0") || !strings.Contains(out, " 192.0.2.") || strings.Contains(out, "wg0") {
		t.Errorf("the physical namespace:\n%s", out)
	}
	if text, _ := os.ReadFile("/etc/netns/physical/resolv.conf"); m.inDNS && !strings.Contains(string(text), "nameserver 192.0.2.1\n") {
		t.Errorf("resolv.conf of the namespace: %q", text)
	}
	m.active(t, "up")
	if r := ns.Try(exec.Command("wg-quickns", "status", "wg0")); r.Code != 0 {
		t.Errorf("status: %v", r)
	}
	if m.name == "NetworkManager" {
		if out := ns.Run(t, "nmcli", "-t", "-f", "DEVICE,STATE", "device"); !strings.Contains(out, "eth0:connected\n") {
			t.Errorf("nmcli: %s", out)
		}
	}
	time.Sleep(300 * time.Millisecond)
	if n := cleartext(t); n > 0 {
		t.Errorf("%d probes have left in the clear", n)
	}
	if r := ns.Try(exec.Command("wg-quickns", "down", "wg0")); r.Code != 0 {
		t.Fatalf("down: %v", r)
	}
	after := ""
	if !bed.Wait(20*time.Second, func() bool { after = state(t); return after == before }) {
		t.Errorf("the state before and after:\n%s", diff(before, after))
	}
	m.active(t, "down")
}

func (m manager) active(t *testing.T, when string) {
	t.Helper()
	for _, u := range m.units {
		if r := ns.Try(exec.Command("systemctl", "is-active", u)); r.Code != 0 {
			t.Errorf("after %s %s is %s", when, u, ns.Try(exec.Command("systemctl", "status", "-n20", u)).Stdout)
		}
	}
}

// diff lists the lines that only one of two texts has.
func diff(before, after string) string {
	var out strings.Builder
	for sign, pair := range map[string][2]string{"-": {before, after}, "+": {after, before}} {
		have := make(map[string]bool)
		for line := range strings.Lines(pair[1]) {
			have[line] = true
		}
		for line := range strings.Lines(pair[0]) {
			if !have[line] {
				out.WriteString(sign + " " + line)
			}
		}
	}
	return out.String()
}
