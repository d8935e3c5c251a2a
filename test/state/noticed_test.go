//go:build !lab

// Not in the lab: a minute there, as each process start is dear.

package state

import (
	"os/exec"
	"strings"
	"testing"

	"wg-quickns/test/ns"
)

// TestNoticed changes one thing after another and wants each noticed, alone,
// and gone again when undone.
func TestNoticed(t *testing.T) {
	n, far := ns.New(t, "state"), ns.New(t, "far")
	ns.Veth(n, "v0", []string{"192.0.2.1/24", "2001:db8::1/64"}, far, "v1", []string{"192.0.2.2/24", "2001:db8::2/64"})
	for _, c := range []struct{ name, do, undo, want string }{
		{"link", "ip link set v0 mtu 1400", "ip link set v0 mtu 1500", "- link v0 mtu=1500\n+ link v0 mtu=1400\n"},
		{"addr", "ip addr add 192.0.2.9/32 dev lo", "ip addr del 192.0.2.9/32 dev lo", "+ addr lo local=192.0.2.9 prefixlen=32"},
		{"route", "ip route add 198.51.100.0/24 via 192.0.2.2 metric 7 table 77", "ip route flush table 77", "+ route table=77 type=unicast dst=198.51.100.0/24 dev=v0 gateway=192.0.2.2"},
		{"route6", "ip route add default via 2001:db8::2", "ip -6 route del default", "dst=default dev=v0 gateway=2001:db8::2"},
		{"rule", "ip rule add not fwmark 7 table 77", "ip rule del not fwmark 7 table 77", "+ rule -4 priority="},
		{"rule6", "ip -6 rule add suppress_prefixlength 0 table main", "ip -6 rule del suppress_prefixlength 0 table main", "+ rule -6 priority="},
		{"nft", "nft 'table ip t { chain c { counter drop; accept; }; }'", "nft delete table ip t", "+ nft rule ip t c 1:"},
		{"nft order", "nft 'table ip t { chain c { accept; counter drop; }; }'", "nft delete table ip t", "+ nft rule ip t c 0: "},
		{"sysctl", "sysctl -qw net.ipv4.conf.all.src_valid_mark=1", "sysctl -qw net.ipv4.conf.all.src_valid_mark=0", "+ sysctl net.ipv4.conf.all.src_valid_mark=1\n"},
		{"mount", "mount -t tmpfs x /mnt", "umount /mnt", "+ mount /mnt / rw,relatime tmpfs x "},
		{"file", "mkdir -p /etc/netns/x; echo y >/etc/netns/x/resolv.conf", "rm -r /etc/netns/x", `+ file /etc/netns/x/resolv.conf -rw-r--r-- "y\n"`},
		{"run file", "mkdir -p /run/wireguard; touch /run/wireguard/x", "rm -r /run/wireguard", "+ file /run/wireguard/x -rw-r--r--\n"},
		{"netns", "ip netns add x", "ip netns del x", "+ file /run/netns/x "},
	} {
		t.Run(c.name, func(t *testing.T) {
			// not by ip netns exec, whose mounts would be its own
			sh := func(script string) {
				t.Helper()
				if err := n.Do(func() error { return exec.Command("bash", "-ec", script).Run() }); err != nil {
					t.Fatalf("%s: %v", script, err)
				}
			}
			before := take(t, n)
			sh(c.do)
			if got := Diff(before, take(t, n)); !strings.Contains(got, c.want) {
				t.Errorf("%s: want %q, got:\n%s", c.do, c.want, got)
			}
			sh(c.undo)
			if got := Diff(before, take(t, n)); got != "" {
				t.Errorf("after %s:\n%s", c.undo, got)
			}
		})
	}
}
