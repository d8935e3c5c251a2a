//go:build systemd

package physical

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
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
// that is its name server too, and the tunnel's server. Leases are renewed every ten
// seconds. wlan0 and its access point come with those who use them.
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
	code := m.Run()
	exec.Command("systemctl", "unmask", "--runtime", "systemd-resolved").Run() // others use it
	os.Exit(code)
}

const machine = `
cp "$1" /usr/local/bin/wg-quickns
install -m 600 "$2" /etc/wireguard/wg0.conf
sed -i 's/^DNS/#DNS/' /etc/wireguard/wg0.conf # which needs a resolvconf
rm -f /etc/resolv.conf && touch /etc/resolv.conf
grep -q '^noarp' /etc/dhcpcd.conf || echo noarp >>/etc/dhcpcd.conf
id somebody >/dev/null 2>&1 || useradd somebody
echo 'somebody ALL=(root) NOPASSWD: ALL' >/etc/sudoers.d/somebody
modprobe -q wireguard || true

# what other tests of this machine have left
wg-quickns down server 2>/dev/null || true
ip netns pids far 2>/dev/null | xargs -r kill || true
ip netns del far 2>/dev/null || true
ip link del eth0 2>/dev/null || true
ip netns del physical 2>/dev/null || true
rm -rf /etc/netns/physical
# else each resolvconf at home starts it, and a DHCP client that waits for that does not end
systemctl mask --runtime --now systemd-resolved

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
cat >/run/serve <<'END'
# serve LINK SUBNET: DHCP and DNS of an uplink
ip netns exec far dnsmasq -C /dev/null -R -h -i $1 -I lo -z -a $2.1 --pid-file=/run/far-$1.pid --address=/vpn.example.com/192.0.2.10 --no-ping \
  --dhcp-range=$2.100,$2.150,2m --dhcp-option=option:T1,10 --dhcp-leasefile=/run/far-$1.leases --dhcp-authoritative --log-facility=/run/far-$1.log
END
bash -eu /run/serve eth0 192.0.2
ip netns exec far nft -f - <<END
table inet seen {
  counter clear { }
  counter other { }
  set whose { type ipv4_addr . ipv4_addr . inet_proto; flags dynamic; }
  chain in {
    type filter hook prerouting priority raw
    iifname != { "eth0", "wlan1" } accept
    udp dport 4242 counter name clear accept
    udp dport { 67, 547 } accept
    ip daddr { 192.0.2.1, 198.51.100.1 } udp dport 53 accept
    ip daddr 192.0.2.10 udp dport 51820 accept
    ip protocol igmp accept
    icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-report, mld2-listener-report } accept
    counter name other
    add @whose { ip saddr . ip daddr . ip protocol }
  }
}
END
`

// manager is one way in which links are configured.
type manager struct {
	name  string
	links []string // that move
	start string   // a script that ends with the links configured, see the functions
	end   string
	units []string // that are active while it runs
	// content is a script that says what is the same at home and away.
	content string
	more    bool // only where WGQ_PHYSICAL_ROUNDS is set: minutes each
	fixed   bool // nobody renews a lease
}

// functions are for the scripts of managers.
const functions = `
leased() { # LINK SUBNET
	for i in $(seq 120); do
		ip -4 addr show dev $1 2>/dev/null | grep -q "inet $2\.1[0-9][0-9]/" && ip route show default dev $1 | grep -q "via $2\.1" && return
		sleep 0.5
	done
	echo "$1 has no lease"
	false
}
access_point() {
	# regtest: custom_world has a few channels on which one may send, so that a scan takes two seconds and not ten
	modprobe mac80211_hwsim radios=2 regtest=5
	udevadm settle
	iw phy $(</sys/class/net/wlan1/phy80211/name) set netns name far
	ip -n far addr add 198.51.100.1/24 dev wlan1
	# a scan stays 30 to 100 ms with each channel: on an emulated machine it would often miss usual beacons
	printf '%s\n' beacon_int=20 interface=wlan1 driver=nl80211 ssid=lab hw_mode=g channel=1 wpa=2 wpa_key_mgmt=WPA-PSK rsn_pairwise=CCMP wpa_passphrase=correct-horse >/run/hostapd.conf
	# A station asks again after 100 ms; answered twice it would give up its keys, and NetworkManager wait for a new password.
	chrt -r 50 ip netns exec far hostapd -B -P /run/hostapd.pid /run/hostapd.conf >/dev/null
	bash -eu /run/serve wlan1 198.51.100
}
no_access_point() {
	kill $(cat /run/hostapd.pid /run/far-wlan1.pid)
	while pgrep -x hostapd; do sleep 0.1; done
	rmmod mac80211_hwsim
	rm -f /run/far-wlan1.l*
}
`

var managers = []manager{
	{
		name:  "static",
		links: []string{"eth0"},
		start: `ip link set eth0 mtu 1400 up && ip addr add 192.0.2.2/24 dev eth0 && ip -6 addr add 2001:db8::2/64 dev eth0 nodad
			ip route add default via 192.0.2.1 metric 7 && ip route add 198.51.100.0/24 via 192.0.2.1 table 77
			ip rule add iif eth0 table 77 && ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent
			sysctl -qw net.ipv4.conf.eth0.rp_filter=2; echo nameserver 192.0.2.1 >/etc/resolv.conf`,
		end:   `ip rule del iif eth0 table 77; ip addr flush dev eth0; ip route flush table 77; ip neigh flush dev eth0 nud permanent; : >/etc/resolv.conf`,
		fixed: true,
	},
	{
		name:  "dhclient by hand",
		links: []string{"eth0"},
		start: `ip link set eth0 up && dhclient -4 -q -pf /run/dhclient.eth0.pid -lf /run/dhclient.eth0.leases eth0; leased eth0 192.0.2`,
		end:   `dhclient -4 -q -r -pf /run/dhclient.eth0.pid -lf /run/dhclient.eth0.leases eth0 || true; pkill dhclient || true; ip addr flush dev eth0`,
		more:  true,
	},
	{
		name:  "dhcpcd",
		links: []string{"eth0"},
		start: `mkdir -p /etc/netns/physical; printf 'nameserver 192.0.2.1\n# of the user\n' >/etc/netns/physical/resolv.conf
			systemctl start dhcpcd@eth0; leased eth0 192.0.2`,
		// it keeps its address, for the case that it is started again
		end:   `systemctl stop dhcpcd@eth0; ip addr flush dev eth0; rm -r /etc/netns/physical`,
		units: []string{"dhcpcd@eth0.service"},
	},
	{
		name:  "dhclient by ifupdown",
		links: []string{"eth0"},
		more:  true,
		start: `printf 'allow-hotplug eth0\niface eth0 inet dhcp\n' >/etc/network/interfaces
			systemctl start ifup@eth0; leased eth0 192.0.2`,
		end:     `systemctl stop ifup@eth0; : >/etc/network/interfaces`,
		units:   []string{"ifup@eth0.service"},
		content: "ifquery --state; pgrep -fa ^/sbin/dhclient | cut -d' ' -f2-",
	},
	{
		name:  "dhcpcd and wpa_supplicant",
		links: []string{"wlan0"},
		start: `access_point
			printf 'ctrl_interface=/run/wpa_supplicant\nnetwork={\n ssid="lab"\n psk="correct-horse"\n}\n' >/etc/wpa_supplicant/wpa_supplicant-wlan0.conf
			systemctl start wpa_supplicant@wlan0 dhcpcd@wlan0; leased wlan0 198.51.100`,
		end:     `systemctl stop dhcpcd@wlan0 wpa_supplicant@wlan0; rm /etc/wpa_supplicant/wpa_supplicant-wlan0.conf; no_access_point`,
		units:   []string{"wpa_supplicant@wlan0.service", "dhcpcd@wlan0.service"},
		content: `wpa_cli -i wlan0 status | grep -E '^(wpa_state|ssid|key_mgmt|pairwise_cipher|ip_address)='`,
		more:    true,
	},
	{
		name:  "NetworkManager",
		links: []string{"eth0", "wlan0"},
		start: `printf '[main]\nplugins=keyfile\n[keyfile]\nunmanaged-devices=interface-name:server;interface-name:wg*\n' >/etc/NetworkManager/NetworkManager.conf
			rm -f /usr/lib/udev/rules.d/85-nm-unmanaged.rules; udevadm control --reload; udevadm trigger -c change /sys/class/net/eth0; udevadm settle
			access_point
			systemctl start NetworkManager; timeout 60 bash -c 'until nmcli device set eth0 managed yes 2>/dev/null; do sleep 1; done'
			nmcli connection add con-name wired type ethernet ifname eth0 ipv6.method disabled >/dev/null
			nmcli connection add con-name air type wifi ifname wlan0 ssid lab wifi-sec.key-mgmt wpa-psk wifi-sec.psk correct-horse ipv6.method disabled >/dev/null
			nmcli -w 120 connection up wired >/dev/null; nmcli -w 120 connection up air >/dev/null
			leased eth0 192.0.2; leased wlan0 198.51.100`,
		end: `nmcli connection delete wired; nmcli connection delete air; systemctl stop NetworkManager wpa_supplicant; ip addr flush dev eth0
			no_access_point; : >/etc/resolv.conf`,
		units:   []string{"NetworkManager.service", "wpa_supplicant.service"},
		content: `nmcli -t -f DEVICE,STATE,CONNECTION device | grep -E '^(eth0|wlan0):' | sort; nmcli -t -f NAME,DEVICE,TYPE connection show --active | grep -v loopback | sort; nmcli -t -f STATE general`,
		more:    true,
	},
	{
		name:  "systemd-networkd",
		links: []string{"eth0"},
		start: `mkdir -p /run/systemd/network; printf '[Match]\nName=eth0\n[Network]\nDHCP=ipv4\n' >/run/systemd/network/eth0.network
			systemctl start systemd-networkd; leased eth0 192.0.2`,
		end:   `systemctl stop systemd-networkd.socket systemd-networkd; rm /run/systemd/network/eth0.network; ip addr flush dev eth0`,
		units: []string{"systemd-networkd.service"},
		// networkctl would compare what it is told with the interfaces it sees
		content: `link=$(busctl call org.freedesktop.network1 /org/freedesktop/network1 org.freedesktop.network1.Manager GetLinkByName s eth0 | cut -d'"' -f2)
			busctl get-property org.freedesktop.network1 $link org.freedesktop.network1.Link OperationalState AddressState AdministrativeState`,
		more: true,
	},
}

// state is all of this machine that the tunnel may change, as text, without what a
// lease counts down.
func (m manager) state(t *testing.T) string {
	t.Helper()
	return ns.Run(t, "bash", "-ec", `
		ip -o link | sed -E 's/^[0-9]+: //; s/ (qlen|group) [^ ]+//g' | sort
		ip -o addr | grep -v fe80 | sed -E 's/^[0-9]+: //; s/ (valid|preferred)_lft [^ ]+//g; s/ *\\.*//' | sort
		ip -4 rule; ip -6 rule
		ip -4 route show table all | sort; ip -6 route show table all | grep -vE 'fe80|ff00' | sort
		ip neigh show nud permanent
		nft list ruleset
		grep -rs . /proc/sys/net/ipv[46]/conf/{eth,wlan}0 || true
		iw dev | grep -E 'Interface|addr|type|ssid' || true
		ls -l --time-style=+ /run/netns /run/wg-quickns /etc/netns /run/systemd/system /run/systemd/system.control 2>&1 || true
		systemctl --failed --plain --no-legend
		findmnt -rno TARGET | sort
		grep -rs . /etc/resolv.conf /etc/netns || true`) + m.contents(t)
}

// contents is what the managers say of themselves.
func (m manager) contents(t *testing.T) string {
	t.Helper()
	out := ns.Run(t, "bash", "-c", m.content)
	if len(m.units) > 0 {
		out += ns.Run(t, append([]string{"systemctl", "show", "-p", "Id,ActiveState,SubState"}, m.units...)...)
	}
	return out
}

func rounds(t *testing.T) int {
	n, err := strconv.Atoi(os.Getenv("WGQ_PHYSICAL_ROUNDS"))
	if err != nil && os.Getenv("WGQ_PHYSICAL_ROUNDS") != "" {
		t.Fatal(err)
	}
	return max(n, 1)
}

// count is how many packets of a sort have come by the uplinks since the last call.
func count(t *testing.T, counter string) int {
	t.Helper()
	out := ns.Run(t, "ip", "netns", "exec", "far", "nft", "reset", "counter", "inet", "seen", counter)
	_, rest, _ := strings.Cut(out, "packets ")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err, out)
	}
	return n
}

// renewals is how many leases the servers have given out or renewed so far, by the
// interface that they are for.
func renewals(t *testing.T, link string) int {
	t.Helper()
	at := strings.Replace(link, "wlan0", "wlan1", 1)
	text, err := os.ReadFile("/run/far-" + at + ".log")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(text), "DHCPACK("+at+")")
}

// probe sends packets all the time to an address behind everything.
func probe(t *testing.T) {
	t.Helper()
	c, err := net.ListenUDP("udp4", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		for {
			_, err := c.WriteTo([]byte("x"), &net.UDPAddr{IP: net.IPv4(203, 0, 113, 66), Port: 4242})
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
}

func TestManagers(t *testing.T) {
	for _, m := range managers {
		if m.more && os.Getenv("WGQ_PHYSICAL_ROUNDS") == "" {
			continue
		}
		t.Run(strings.ReplaceAll(m.name, " ", "_"), func(t *testing.T) {
			t.Cleanup(func() { ns.Run(t, "bash", "-c", "wg-quickns down wg0 2>/dev/null;"+functions+m.end) })
			ns.Run(t, "bash", "-ec", functions+m.start)
			probe(t)
			if !bed.Wait(5*time.Second, func() bool { return count(t, "clear") > 0 }) {
				t.Error("the control sees no probe")
			}
			for i := range rounds(t) {
				m.round(t)
				if t.Failed() {
					t.Fatalf("in round %d", i+1)
				}
			}
			if !m.fixed && slices.Equal(m.links, []string{"eth0"}) && os.Getenv("WGQ_PHYSICAL_ROUNDS") != "" {
				m.replug(t)
			}
		})
	}
}

// patience is how long a manager may take until it is content: NetworkManager looks
// for access points every 20 seconds at first, and ever less often; two minutes were
// just enough on a busy machine that emulates this one.
const patience = 4 * time.Minute

// wait is bed.Wait for what takes many processes to find out, which leaves at least
// half of the machine to whom it waits for.
func wait(d time.Duration, ok func() bool) bool {
	for until := time.Now().Add(d); ; {
		begin := time.Now()
		switch {
		case ok():
			return true
		case time.Now().After(until):
			return false
		}
		time.Sleep(max(500*time.Millisecond, time.Since(begin)))
	}
}

// asked runs the program as a user does who may use sudo(8), and gives its messages
// with the seconds since it began.
func asked(t *testing.T, argv ...string) (said string) {
	t.Helper()
	begin := time.Now()
	c := exec.Command("runuser", append([]string{"-u", "somebody", "--", "wg-quickns"}, argv...)...)
	pipe, err := c.StderrPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(pipe); lines.Scan(); {
		said += fmt.Sprintf("%5.1f %s\n", time.Since(begin).Seconds(), lines.Text())
	}
	if err := c.Wait(); err != nil {
		t.Fatalf("%v: %v\n%s%s", argv, err, said, journal(t))
	}
	return said
}

func journal(t *testing.T) string {
	return ns.Run(t, "bash", "-c", "journalctl -b --no-pager -o short-precise | grep -v '\\.mount: ' | tail -n 250")
}

// round is up, a look around, and down.
func (m manager) round(t *testing.T) {
	before, content := m.state(t), m.contents(t)
	begin := time.Now()
	said := asked(t, "up", "wg0")
	took := time.Since(begin)
	answers := func() bool { return ns.Try(exec.Command("ping", "-nqc1", "-W1", "203.0.113.7")).Code == 0 }
	if !bed.Wait(30*time.Second, answers) {
		t.Errorf("no answer through the tunnel:\n%s%s", said, ns.Run(t, "bash", "-c", "wg-quickns status; ip -n physical addr; ip -n physical route; cat /etc/netns/physical/resolv.conf")+journal(t))
	}
	first := time.Since(begin)
	if took > time.Minute { // even where the kernel is emulated it takes half
		t.Logf("up took %v:\n%s%s", took, said, journal(t))
	}
	count(t, "clear")
	count(t, "other")
	home, away := ns.Run(t, "ip", "-br", "link"), ns.Run(t, "ip", "-n", "physical", "-br", "link")
	for _, link := range m.links {
		if strings.Contains(home, link) || !strings.Contains(away, link) {
			t.Errorf("%s has not moved:\n%s%s", link, home, away)
		}
	}
	if !strings.Contains(home, "wg0") || strings.Contains(away, "wg0") {
		t.Errorf("wg0 is not where it should be:\n%s%s", home, away)
	}
	var text []byte
	if !bed.Wait(5*time.Second, func() bool { // dhclient empties it before it writes
		text, _ = os.ReadFile("/etc/netns/physical/resolv.conf")
		return strings.Contains(string(text), "nameserver 192.0.2.1\n") || strings.Contains(string(text), "nameserver 198.51.100.1\n")
	}) {
		t.Errorf("resolv.conf of the namespace: %q", text)
	}
	m.active(t, "up")
	now := ""
	if !wait(patience, func() bool { now = m.contents(t); return now == content }) {
		t.Errorf("the managers at home and away:\n%s", diff(content, now))
	}
	if slices.Contains(m.links, "wlan0") {
		if out := ns.Run(t, "ip", "netns", "exec", "far", "iw", "dev", "wlan1", "station", "dump"); !strings.Contains(out, "authorized:\tyes") {
			t.Errorf("the access point's stations: %s", out)
		}
	}
	if r := ns.Try(exec.Command("wg-quickns", "status", "wg0")); r.Code != 0 {
		t.Errorf("status: %v", r)
	}
	acks := make(map[string]int)
	for _, link := range m.links {
		n := renewals(t, link)
		if !m.fixed && !bed.Wait(30*time.Second, func() bool { return renewals(t, link) > n }) {
			t.Errorf("the lease of %s is not renewed away from home", link)
		}
		acks[link] = renewals(t, link) - n
	}
	if !bed.Wait(5*time.Second, answers) {
		t.Error("no answer through the tunnel after the lease was renewed")
	}
	if n := count(t, "clear"); n > 0 {
		t.Errorf("%d probes have left in the clear", n)
	}
	if n := count(t, "other"); n > 0 {
		t.Errorf("%d other packets have left in the clear: %s", n, ns.Run(t, "ip", "netns", "exec", "far", "nft", "list", "set", "inet", "seen", "whose"))
	}
	end := time.Now()
	asked(t, "down", "wg0")
	down := time.Since(end)
	after := ""
	if !wait(patience, func() bool { after = m.state(t); return after == before }) {
		t.Errorf("the state before and after:\n%s%s", diff(before, after), journal(t))
	}
	m.active(t, "down")
	for _, link := range m.links {
		gateway := map[string]string{"eth0": "192.0.2.1", "wlan0": "198.51.100.1"}[link]
		if !bed.Wait(5*time.Second, func() bool { return ns.Try(exec.Command("ping", "-nqc1", "-W1", "-I", link, gateway)).Code == 0 }) {
			t.Errorf("no answer by %s at home", link)
		}
		if count(t, "other") == 0 {
			t.Errorf("the control by %s is not seen", link)
		}
	}
	t.Logf("up %.1f s, first answer after %.1f s, renewals away %v, down %.1f s, all as before after %.1f s",
		took.Seconds(), first.Seconds(), acks, down.Seconds(), time.Since(end).Seconds())
}

// replug pulls eth0 out while the tunnel is up, and plugs it in again: who configures it
// there does so again.
func (m manager) replug(t *testing.T) {
	content := m.contents(t)
	asked(t, "up", "wg0")
	ns.Run(t, "systemd-run", "-q", "--unit=replug", "wg-quickns", "guard", "wg0")
	defer ns.Try(exec.Command("systemctl", "stop", "replug"))
	answers := func() bool { return ns.Try(exec.Command("ping", "-nqc1", "-W1", "203.0.113.7")).Code == 0 }
	if !bed.Wait(30*time.Second, answers) {
		t.Error("no answer through the tunnel")
	}
	ns.Run(t, "ip", "-n", "physical", "link", "del", "eth0")
	if !wait(30*time.Second, func() bool {
		return strings.Contains(ns.Try(exec.Command("wg-quickns", "status", "wg0")).Stdout, "interface eth0 is gone")
	}) {
		t.Error("status does not say that eth0 is gone")
	}
	begin := time.Now()
	ns.Run(t, "bash", "-euc", `kill $(cat /run/far-eth0.pid); while pgrep -F /run/far-eth0.pid; do sleep 0.1; done
		ip link add eth0 address 02:00:00:00:00:01 type veth peer name eth0 netns far
		ip -n far addr add 192.0.2.1/24 dev eth0; ip -n far addr add 192.0.2.10/24 dev eth0; ip -n far link set eth0 up
		bash -eu /run/serve eth0 192.0.2`)
	if !wait(patience, answers) {
		t.Errorf("no answer through the tunnel again:\n%s", ns.Run(t, "bash", "-c", "wg-quickns status; ip -n physical addr; ip -n physical route; ip addr")+journal(t))
	}
	took := time.Since(begin)
	now := ""
	same := func() bool { now = m.contents(t); return now == content }
	if !wait(patience, same) {
		t.Errorf("the managers before and after it was plugged in again:\n%s", diff(content, now))
	}
	asked(t, "down", "wg0")
	if !wait(patience, same) {
		t.Errorf("the managers at home:\n%s", diff(content, now))
	}
	if !wait(patience, func() bool { return ns.Try(exec.Command("ping", "-nqc1", "-W1", "-I", "eth0", "192.0.2.1")).Code == 0 }) {
		t.Error("no answer by eth0 at home")
	}
	t.Logf("plugged in again, first answer after %.1f s", took.Seconds())
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
