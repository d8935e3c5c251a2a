//go:build systemd

package systemd

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"wg-quickns/test/bed"
	"wg-quickns/test/ns"
)

func systemctl(t *testing.T, args ...string) ns.Result {
	t.Helper()
	return ns.Try(exec.Command("systemctl", args...))
}

// active is a unit's state in a word.
func active(unit string) string {
	return strings.TrimSpace(ns.Try(exec.Command("systemctl", "is-active", unit)).Stdout)
}

// unitIs waits for a unit's state.
func unitIs(t *testing.T, unit, want string) {
	t.Helper()
	if !bed.Wait(time.Minute, func() bool { return active(unit) == want }) {
		t.Errorf("%s is %s, not %s:\n%s", unit, active(unit), want, ns.Try(exec.Command("systemctl", "status", "--no-pager", "-l", unit)).Stdout)
	}
}

// tunnel writes a config of the name unit, of which extra goes into [Interface].
func tunnel(t *testing.T, extra, endpoint string) {
	t.Helper()
	ns.Run(t, "bash", "-c", `umask 077; cat >/etc/wireguard/unit.conf <<END
[Interface]
PrivateKey = KEY+OF+EXAMPLE/never+use/client/00000000000=
Address = 10.9.0.2/24
$1
[Peer]
PublicKey = 6dZQ1a+Nx8xFXS+gWPXbIHsWz5AmfVe5f6wRMVzOuDM=
AllowedIPs = 0.0.0.0/0
Endpoint = $2
END`, "tunnel", extra, endpoint)
	t.Cleanup(func() { ns.Run(t, "rm", "-f", "/etc/wireguard/unit.conf") })
}

// TestService: an enabled tunnel's life: start, status, stop, the target, a failure.
func TestService(t *testing.T) {
	before := state(t)
	tunnel(t, "", "192.0.2.1:51820")
	ns.Run(t, "systemctl", "enable", "--now", "wg-quickns@unit", "wg-quickns.target")
	unitIs(t, "wg-quickns@unit", "active")
	unitIs(t, "wg-quickns-guard@unit", "active")
	if out := ns.Run(t, "wg-quickns", "status", "unit"); strings.Contains(out, "guarded") {
		t.Errorf("no guard is needed, and there is one: %s", out)
	}
	if out := ns.Run(t, "wg-quickns", "status", "unit"); !strings.Contains(out, "up") {
		t.Errorf("status: %s", out)
	}
	if out := systemctl(t, "status", "--no-pager", "wg-quickns@unit").Stdout; !strings.Contains(out, "WireGuard tunnel unit") || !strings.Contains(out, "[#] ip -4 rule add") {
		t.Errorf("systemctl status:\n%s", out)
	}
	ns.Run(t, "systemctl", "stop", "wg-quickns.target")
	unitIs(t, "wg-quickns@unit", "inactive")
	same(t, before, state(t))
	ns.Run(t, "systemctl", "disable", "wg-quickns@unit", "wg-quickns.target")

	// what is gone is not active
	ns.Run(t, "systemctl", "start", "wg-quickns@unit")
	unitIs(t, "wg-quickns-guard@unit", "active")
	ns.Run(t, "ip", "link", "delete", "unit")
	unitIs(t, "wg-quickns@unit", "inactive")
	same(t, before, state(t))

	// a hook that fails: nothing is left, and the unit has failed
	tunnel(t, "PostUp = false", "192.0.2.1:51820")
	if r := systemctl(t, "start", "wg-quickns@unit"); r.Code == 0 {
		t.Error("a start that fails succeeds")
	}
	unitIs(t, "wg-quickns@unit", "failed")
	same(t, before, state(t))
	ns.Run(t, "systemctl", "reset-failed", "wg-quickns@unit")
}

// TestServiceWaits: a name that has no address yet is waited for, and a stop ends that at once.
func TestServiceWaits(t *testing.T) {
	before := state(t)
	ns.Run(t, "bash", "-c", "cp /etc/hosts /run/hosts; mv /etc/resolv.conf /run/resolv.conf; echo nameserver 127.0.0.9 >/etc/resolv.conf")
	tunnel(t, "", "no-such-name.example:51820")
	ns.Run(t, "systemctl", "start", "--no-block", "wg-quickns@unit")
	if !bed.Wait(20*time.Second, func() bool {
		return strings.Contains(ns.Run(t, "journalctl", "-u", "wg-quickns@unit", "--no-pager"), "Trying again")
	}) {
		t.Errorf("it does not wait:\n%s", ns.Run(t, "journalctl", "-u", "wg-quickns@unit", "--no-pager"))
	}
	begin := time.Now()
	ns.Run(t, "systemctl", "stop", "wg-quickns@unit")
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("the stop took %v", took)
	}
	ns.Run(t, "bash", "-c", "mv /run/resolv.conf /etc/resolv.conf")
	ns.Try(exec.Command("systemctl", "reset-failed", "wg-quickns@unit"))
	same(t, before, state(t))
}

// TestServiceLate: with the manual's drop-in, a start waits for an interface that is still to come, and
// the tunnel stays though that goes where systemd does not see it.
func TestServiceLate(t *testing.T) {
	before := state(t)
	tunnel(t, "RoutingStrategy = physical-netns\nPhysicalInterfaces = eth0, late\nPhysicalServices = none", "192.0.2.1:51820")
	ns.Run(t, "bash", "-ec", `mkdir -p /run/systemd/system/wg-quickns@unit.service.d
printf '[Unit]\nWants=sys-subsystem-net-devices-late.device\nAfter=sys-subsystem-net-devices-late.device\n' >/run/systemd/system/wg-quickns@unit.service.d/late.conf
systemctl daemon-reload; systemctl start --no-block wg-quickns@unit`)
	time.Sleep(2 * time.Second)
	if now := active("wg-quickns@unit"); now != "inactive" {
		t.Errorf("before its interface is there the unit is %s", now)
	}
	ns.Run(t, "ip", "link", "add", "late", "type", "veth", "peer", "name", "late", "netns", "far")
	unitIs(t, "wg-quickns@unit", "active")
	ns.Run(t, "ip", "-n", "physical", "link", "show", "late")
	time.Sleep(2 * time.Second)
	unitIs(t, "wg-quickns@unit", "active")
	ns.Run(t, "systemctl", "stop", "wg-quickns@unit")
	ns.Run(t, "bash", "-ec", "ip link delete late; rm -r /run/systemd/system/wg-quickns@unit.service.d; systemctl daemon-reload")
	same(t, before, state(t))
}

// TestSwitch: from the reference's unit to ours and back, by starting the other, with the
// same file. Its unit is one that takes its time, and cannot start while ours is there.
func TestSwitch(t *testing.T) {
	before := state(t)
	tunnel(t, "", "192.0.2.1:51820")
	ns.Run(t, "bash", "-c", `cat >/etc/systemd/system/wg-quick@.service <<END
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/ip link add %i type wireguard
ExecStop=/bin/sleep 1
ExecStop=/bin/ip link delete %i
END
systemctl daemon-reload; sha256sum /etc/wireguard/unit.conf >/run/sum`)
	ns.Run(t, "systemctl", "start", "wg-quick@unit")
	for _, way := range [][]string{{"wg-quick@unit", "wg-quickns@unit"}, {"wg-quickns@unit", "wg-quick@unit"}} {
		ns.Run(t, "systemctl", "start", way[1])
		unitIs(t, way[0], "inactive")
		unitIs(t, way[1], "active")
		ns.Run(t, "ip", "link", "show", "unit")
	}
	ns.Run(t, "systemctl", "stop", "wg-quick@unit")
	ns.Run(t, "sha256sum", "--quiet", "-c", "/run/sum")
	ns.Run(t, "bash", "-c", "rm /etc/systemd/system/wg-quick@.service; systemctl daemon-reload")
	same(t, before, state(t))
}

// TestServiceHooks: what hooks are known to do works in a unit.
func TestServiceHooks(t *testing.T) {
	before := state(t)
	ns.Run(t, "bash", "-c", `cat >/run/hook <<'END'
set -eux
modprobe dummy && ip link add hooked type dummy && ip link delete hooked
sysctl -w net.ipv4.conf.all.log_martians=0
iptables -A OUTPUT -p udp --dport 9 -j REJECT && iptables -D OUTPUT -p udp --dport 9 -j REJECT && iptables -F && iptables -X
nft add table inet hooked && nft delete table inet hooked
ip netns add hooked && nsenter --net=/run/netns/hooked true && ip netns delete hooked
mknod /run/hook.tun c 10 200 && : <>/run/hook.tun && rm /run/hook.tun
touch /usr/local/hooked /root/hooked /etc/hooked && chmod 4755 /usr/local/hooked && chattr -V +i /etc/hooked && chattr -i /etc/hooked
rm /usr/local/hooked /root/hooked /etc/hooked
sudo -n -u nobody true && sudo -n -u nobody sudo -n -l true || [ $? = 1 ]
unshare -pmUnr --fork true
timeout 5 tcpdump -i lo -c 1 >/run/hook.pcap 2>&1 & sleep 1; ping -c 2 127.0.0.1; wait
END`)
	tunnel(t, "PostUp = bash /run/hook\nPostUp = sleep 1000 &", "192.0.2.1:51820")
	ns.Try(exec.Command("bash", "-c", "iptables -F; iptables -X; nft flush ruleset")) // the tables that iptables makes stay
	if r := systemctl(t, "start", "wg-quickns@unit"); r.Code != 0 {
		t.Errorf("%s", ns.Try(exec.Command("journalctl", "--no-pager", "-u", "wg-quickns@unit")).Stdout)
	}
	ns.Run(t, "systemctl", "stop", "wg-quickns@unit")
	ns.Run(t, "bash", "-c", "nft delete table ip filter; killall sleep")
	same(t, before, state(t))
}

// TestServiceGuard: a config that needs a guard gets one, which is started again when
// it is killed or hangs; a tunnel whose interface is gone is no active unit.
func TestServiceGuard(t *testing.T) {
	before := state(t)
	tunnel(t, "RoutingStrategy = override", "192.0.2.10:51820")
	ns.Run(t, "systemctl", "start", "wg-quickns@unit")
	unitIs(t, "wg-quickns-guard@unit", "active")
	pid := mainPID(t, "wg-quickns-guard@unit")
	ns.Run(t, "ip", "route", "del", "0.0.0.0/1", "dev", "unit")
	halves := func() bool { return strings.Contains(ns.Run(t, "ip", "route"), "0.0.0.0/1 dev unit") }
	if !bed.Wait(10*time.Second, halves) {
		t.Error("the guard does not repair")
	}
	for _, signal := range []string{"KILL", "STOP"} { // the second is the watchdog's
		ns.Run(t, "systemctl", "kill", "-s", signal, "wg-quickns-guard@unit")
		if !bed.Wait(60*time.Second, func() bool {
			now := strings.TrimSpace(ns.Run(t, "systemctl", "show", "wg-quickns-guard@unit", "--property=MainPID", "--value"))
			return active("wg-quickns-guard@unit") == "active" && now != "0" && now != strconv.Itoa(pid)
		}) {
			t.Errorf("no new guard after %s", signal)
		}
		pid = mainPID(t, "wg-quickns-guard@unit")
	}
	if got := active("wg-quickns@unit"); got != "active" {
		t.Errorf("the tunnel is %s", got)
	}
	// down by hand, and up again: that is guarded too
	ns.Run(t, "bash", "-c", "wg-quickns down unit; wg-quickns up unit; ip route del 0.0.0.0/1 dev unit")
	if !bed.Wait(10*time.Second, halves) {
		t.Error("the guard does not repair what is up again")
	}
	ns.Run(t, "wg-quickns", "down", "unit")
	unitIs(t, "wg-quickns@unit", "inactive")
	ns.Run(t, "systemctl", "start", "wg-quickns@unit")
	unitIs(t, "wg-quickns-guard@unit", "active")
	ns.Run(t, "ip", "link", "del", "unit")
	unitIs(t, "wg-quickns@unit", "inactive")
	same(t, before, state(t))

	// what is in a namespace, from within the unit's own sandbox
	tunnel(t, "Namespace = kept\nKillSwitch = true", "192.0.2.10:51820")
	ns.Run(t, "systemctl", "start", "wg-quickns@unit")
	unitIs(t, "wg-quickns-guard@unit", "active")
	for _, c := range [][]string{
		{"ip -n kept route del default dev unit", "ip -n kept route | grep default"},
		{"ip netns exec kept nft flush ruleset", "ip netns exec kept nft list ruleset | grep drop"},
	} {
		ns.Run(t, "bash", "-c", c[0])
		if !bed.Wait(10*time.Second, func() bool { return ns.Try(exec.Command("bash", "-c", c[1])).Code == 0 }) {
			t.Errorf("not repaired after %s:\n%s", c[0], ns.Try(exec.Command("journalctl", "--no-pager", "-u", "wg-quickns-guard@unit")).Stdout)
		}
	}
	ns.Run(t, "systemctl", "stop", "wg-quickns@unit")
	becomes(t, before)
}

// TestServiceBroken: no unit stays active when what its tunnel lives on is gone: the
// process that serves it, its namespace, or its interface while there is no guard.
func TestServiceBroken(t *testing.T) {
	// a kernel without WireGuard
	ns.Run(t, "bash", "-euc", "wg-quickns down server; mkdir -p /run/modprobe.d; echo install wireguard /bin/false >/run/modprobe.d/none.conf; modprobe -r wireguard")
	t.Cleanup(func() { ns.Run(t, "bash", "-euc", "rm /run/modprobe.d/none.conf; wg-quickns up server") })
	before := state(t)
	for what, c := range map[string]struct{ keys, command string }{
		"process":          {"", "pkill -KILL -f '^[^ ]*wg-quickns userspace unit$'"},
		"process, guarded": {"RoutingStrategy = override", "pkill -KILL -f '^[^ ]*wg-quickns userspace unit$'"},
		"namespace":        {"Namespace = kept", "ip netns delete kept"},
		"no guard":         {"", "systemctl kill -s KILL wg-quickns-guard@unit; ip link delete unit"},
	} {
		tunnel(t, c.keys, "192.0.2.1:51820")
		ns.Run(t, "systemctl", "start", "wg-quickns@unit")
		unitIs(t, "wg-quickns-guard@unit", "active")
		ns.Run(t, "bash", "-c", c.command)
		unitIs(t, "wg-quickns@unit", "inactive")
		if t.Failed() {
			t.Fatal(what)
		}
		becomes(t, before)
	}
}
