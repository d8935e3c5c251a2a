//go:build systemd

package physical

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"wg-quickns/test/ns"
)

// TestGuardUnit: the guard's own unit, which may do little, moves what was plugged in with the
// client that configures it, whether that makes itself a daemon or stays where it is.
func TestGuardUnit(t *testing.T) {
	ns.Run(t, "bash", "-ec", `ln -sf /usr/local/bin/wg-quickns /usr/bin
		mkdir -p /usr/local/lib/systemd/system; cp ../../systemd/*.service /usr/local/lib/systemd/system
		mkdir -p /usr/local/lib/systemd/system/wg-quickns-guard@.service.d # an emulated machine may be slow
		printf '[Service]\\nWatchdogSec=120\\n' >/usr/local/lib/systemd/system/wg-quickns-guard@.service.d/lab.conf; systemctl daemon-reload
		sed 's/^PhysicalInterfaces.*//; /^\[Interface\]/a PhysicalInterfaces = eth0, eth1' `+example+` >/etc/wireguard/wg0.conf
		sed -i 's/^DNS/#DNS/' /etc/wireguard/wg0.conf
		ip link set eth0 up; ip addr add 192.0.2.2/24 dev eth0; ip route add default via 192.0.2.1`)
	t.Cleanup(func() {
		ns.Run(t, "bash", "-c", `rm -r /usr/bin/wg-quickns /usr/local/lib/systemd/system/wg-quickns*; systemctl daemon-reload; install -m 600 `+example+` /etc/wireguard/wg0.conf
			sed -i 's/^DNS/#DNS/' /etc/wireguard/wg0.conf; ip addr flush dev eth0; : >/etc/resolv.conf; true`)
	})
	clients := [][2]string{{"dhclient", "-4 -q -pf /run/dhclient.eth1.pid -lf /run/dhclient.eth1.leases eth1"}}
	if os.Getenv("WGQ_PHYSICAL_ROUNDS") != "" {
		clients = append(clients, [2]string{"busybox udhcpc", "-f -i eth1 -s /run/udhcpc.sh"}, [2]string{"dhcpcd", "-4 -b -q eth1"})
	}
	for _, client := range clients {
		name := client[0]
		t.Run(name, func(t *testing.T) {
			end := func() {
				ns.Run(t, "bash", "-c", "systemctl stop wg-quickns@wg0; pkill -f '^"+name+"'; ip link del eth1; kill $(cat /run/far-eth1.pid); rm -f /run/far-eth1.l*; true")
			}
			defer end()
			ns.Run(t, "bash", "-ec", functions+`echo nameserver 192.0.2.1 >/etc/resolv.conf # the last client has written its own
				systemctl start wg-quickns@wg0; systemctl stop wg-quickns-guard@wg0
				ip link add eth1 type veth peer name eth1 netns far; udevadm settle; ip link set eth1 up
				ip -n far addr add 198.51.100.1/24 dev eth1; ip -n far link set eth1 up
				bash -eu /run/serve eth1 198.51.100
				printf '%s\n' '#!/bin/sh' 'case $1 in bound|renew) ip addr replace $ip/$mask dev $interface;; deconfig) ip link set $interface up;; esac' >/run/udhcpc.sh
				chmod +x /run/udhcpc.sh
				setsid $1 >/dev/null 2>&1 &
				timeout 60 bash -c 'until ip -4 addr show dev eth1 | grep -q 198.51.100.1; do sleep 0.5; done'`, "start", name+" "+client[1])
			ns.Run(t, "systemctl", "start", "--no-block", "wg-quickns-guard@wg0")
			if !wait(patience, func() bool {
				return strings.Contains(ns.Try(exec.Command("ip", "-n", "physical", "-4", "addr", "show", "dev", "eth1")).Stdout, "inet 198.51.100.1")
			}) {
				t.Errorf("no lease there:\n%s", ns.Run(t, "bash", "-c", "ip addr; ip -n physical addr; ps axww -o pid,user,args,cgroup | grep -v '\\['")+journal(t))
			}
			pids := ns.Run(t, "bash", "-c", "for p in $(ip netns pids physical); do tr '\\0' ' ' </proc/$p/cmdline; cat /proc/$p/cgroup; done; true")
			if !strings.Contains(pids, "/wg-quickns-client-") || !strings.Contains(pids, name) {
				t.Errorf("it runs as %s", pids)
			}
			ns.Run(t, "systemctl", "stop", "wg-quickns@wg0")
			ns.Run(t, "bash", "-ec", "ip link show eth1; pgrep -f '^"+name+"'")
			if left := ns.Run(t, "bash", "-c", "ls /run/netns /run/wg-quickns; systemctl --failed --plain --no-legend"); strings.Contains(left, "physical") || strings.Contains(left, "wg0") || strings.Contains(left, "client") {
				t.Errorf("left: %s", left)
			}
			end()
			if !wait(20*time.Second, func() bool {
				return !strings.Contains(ns.Run(t, "systemctl", "list-units", "--all", "--plain", "--no-legend", "wg-quickns-client-*"), "client")
			}) {
				t.Errorf("units left: %s", ns.Run(t, "systemctl", "list-units", "--all", "--plain", "--no-legend", "wg-quickns-client-*"))
			}
		})
	}
}
