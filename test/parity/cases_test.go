//go:build lab

package parity

import (
	"fmt"
	"slices"
	"strings"
)

// Keys made for these tests.
const (
	keyA   = "iIvvG6C1ye0jsF6WQofi/5504RAdm0zv+IpoHhRPHnQ="
	pubB   = "WmU/F/tCCERCYV3yTmblM2BK3agiNIC1qXWEJsspP0k="
	pubC   = "6i8tlIq0F37EJg+o7h9ay4H2uOKfiTJxXjBH09bKFBw="
	pubD   = "KaWLHN9uu8uNTF/jFhtT4p7FPdEe/CuRLeVUZyUQClk="
	keyPSK = "eh+BtOB7LGWPaTih0ABCpoQSfnKhVqKQ6WkHC+oOsAA="
)

const (
	// iface is the start of most configs.
	iface = "[Interface]\nPrivateKey = " + keyA + "\nListenPort = 51820\n"
	// peer is a peer behind the gateway, with its AllowedIPs to follow.
	peer = "[Peer]\nPublicKey = " + pubB + "\nPresharedKey = " + keyPSK + "\nEndpoint = 198.51.100.1:51820\nAllowedIPs = "
	// lone is a peer without an endpoint, with its AllowedIPs to follow.
	lone = "[Peer]\nPublicKey = " + pubC + "\nAllowedIPs = "
	// split is a tunnel for one subnet.
	split = iface + "Address = 10.9.0.2/24\n" + peer + "10.9.0.0/24, 10.20.0.0/16\n"
)

// hooked is a small tunnel with more lines in its first section.
func hooked(lines ...string) string {
	return iface + "Address = 10.9.0.2/32\n" + strings.Join(lines, "\n") + "\n" + lone + "10.20.0.0/16\n"
}

const srcValidMark = "sysctl ipv4/conf/all/src_valid_mark = "

// markBack is what every full tunnel of IPv4 differs by after down.
func markBack(step string) []diff {
	return []diff{
		differ(sysctlBack, step, "state", []string{srcValidMark + "1"}, []string{srcValidMark + "0"}),
		differ(sysctlBack, step, "trace", nil, []string{markDelete}),
	}
}

// differ is a difference in lines.
func differ(reason why, step, in string, ref, ours []string) diff {
	return diff{why: reason, step: step, in: in, ref: ref, ours: ours}
}

// words is a message on the error output that each program says in its own words.
func words(step string, ref []string, ours ...string) diff {
	return diff{why: wording, step: step, in: "errors", ref: ref, ours: ours}
}

// hookFails is our message for a failing hook; bash's own comes from both.
func hookFails(step, status string) diff { return words(step, nil, "~exit status "+status) }

// answers is what ip says when the kernel refuses.
func answers(text string) diff {
	return words("up wg0", []string{"RTNETLINK answers: " + text}, "~: "+strings.ToLower(text))
}

func cases() []testCase {
	list := slices.Concat(routing(), mtu(), dnsCases(), hookCases(), parsing(), failing(), commands(), saving(), several(), decided())
	for i, c := range list {
		list[i].diffs = append(slices.Clone(c.diffs), warned(c)...)
	}
	return list
}

// warned is what ours says of a tunnel that carries all of one family only: every
// world has a default route in both.
func warned(c testCase) (diffs []diff) {
	steps := c.steps
	if steps == nil {
		steps = []string{"up wg0"}
	}
	for _, step := range steps {
		name, up := strings.CutPrefix(step, "up ")
		conf := c.conf
		if name != "wg0" {
			conf = c.files["/etc/wireguard/"+name+".conf"]
		}
		all4, all6 := strings.Contains(conf, "0.0.0.0/0") || strings.Contains(conf, "0.0.0.0/1, 128.0.0.0/1"), strings.Contains(conf, "::/0")
		if !up || all4 == all6 || strings.Contains(conf, "\nTable = ") {
			continue
		}
		left, prefix := "IPv6", "::/0"
		if all6 {
			left, prefix = "IPv4", "0.0.0.0/0"
		}
		diffs = append(diffs, differ(bypassed, step, "errors", nil, []string{
			"Warning: " + left + " goes past `" + name + "' by its own default route: " + prefix + " is not in AllowedIPs, and there is no KillSwitch",
		}))
	}
	return diffs
}

// routing is what the tunnel carries, and by which table.
func routing() []testCase {
	full4 := iface + "Address = 10.9.0.2/24\n" + peer + "0.0.0.0/0\n"
	fwmark := func(mark string) string {
		return iface + "FwMark = " + mark + "\nAddress = 10.9.0.2/32\n" + peer + "0.0.0.0/0\n"
	}
	table := func(table string, allowed string) string {
		return iface + "Table = " + table + "\nAddress = 10.9.0.2/24, fd00:9::2/64\n" + peer + allowed + "\n"
	}
	return []testCase{
		{name: "full tunnel v4", conf: full4, strip: true, diffs: markBack("down wg0")},
		{name: "full tunnel v6", more: true, conf: iface + "Address = fd00:9::2/64\n" + peer + "::/0\n"},
		{name: "full tunnel both", conf: iface + "Address = 10.9.0.2/24, fd00:9::2/64\nDNS = 10.9.0.1, fd00:9::1\n" + peer + "0.0.0.0/0, ::/0\n",
			diffs: markBack("down wg0")},
		{name: "full tunnel beside other routes", more: true, diffs: markBack("down wg0"),
			conf: iface + "Address = 10.9.0.2/32\nAddress = fd00:9::2/128\n" + peer + "0.0.0.0/0, 10.30.0.0/16, ::/0, fd00:30::/64\n"},
		{name: "full tunnel without an address", more: true, conf: iface + peer + "0.0.0.0/0\n", diffs: markBack("down wg0")},
		{name: "full tunnel, src_valid_mark is set already", more: true, before: "sysctl -q net.ipv4.conf.all.src_valid_mark=1", conf: full4},
		{name: "full tunnel, table 51820 is in use", diffs: markBack("down wg0"), conf: full4,
			before: "ip route add 10.77.0.0/16 dev eth0 table 51820; ip -6 route add fd00:77::/64 dev eth0 table 51821"},
		{name: "full tunnel, other rules exist", more: true, diffs: markBack("down wg0"), conf: full4,
			before: "ip rule add from 10.77.0.0/16 lookup 77; ip rule add pref 100 fwmark 7 lookup 78; ip rule add pref 40000 lookup 79"},
		{name: "FwMark in hex", conf: fwmark("0x1234"), diffs: markBack("down wg0")},
		{name: "FwMark decimal", more: true, conf: fwmark("77"), diffs: markBack("down wg0")},
		{name: "FwMark off", more: true, conf: fwmark("off"), diffs: markBack("down wg0")},
		{name: "FwMark zero", more: true, conf: fwmark("0x0"), diffs: markBack("down wg0")},
		{name: "FwMark on a split tunnel", more: true, conf: iface + "FwMark = 51820\nAddress = 10.9.0.2/24\n" + peer + "10.20.0.0/16\n"},
		{name: "split tunnel", more: true, conf: split},
		{name: "Table off", conf: table("off", "0.0.0.0/0, ::/0, 10.20.0.0/16")},
		{name: "Table auto", more: true, conf: table("auto", "10.20.0.0/16, fd00:20::/64")},
		{name: "Table number", conf: table("1234", "0.0.0.0/0, ::/0, 10.20.0.0/16, fd00:20::/64")},
		{name: "Table in hex", more: true, conf: table("0x4d2", "10.20.0.0/16")},
		{name: "Table main", conf: table("main", "10.20.0.0/16, fd00:20::/64")},
		{name: "Table by name", conf: table("vpn", "0.0.0.0/0, 10.20.0.0/16, fd00:20::/64"),
			files: map[string]string{"/etc/iproute2/rt_tables.d/vpn.conf": "777 vpn\n"}},
		{name: "Table given twice", more: true, conf: table("1234\nTable = 1235", "10.20.0.0/16")},
		{name: "Table reset", more: true, conf: table("1234\nTable =", "10.20.0.0/16")},
		{name: "Table main where there is a default route", more: true, conf: table("main", "0.0.0.0/0"), diffs: []diff{answers("File exists")}},
		{name: "overlapping AllowedIPs",
			conf: iface + "Address = 10.9.0.2/24, fd00:9::2/64\n" + peer + "10.9.0.0/24, 10.9.0.7, 10.9.0.0/16, 10.9.128.0/17, fd00:9::/64, fd00:9::7, fd00::/16\n"},
		{name: "several peers",
			conf: iface + "Address = 10.9.0.2/32\n" + peer + "10.20.0.0/16, 10.9.0.1/32\n" + lone + "10.21.0.0/16, 10.3.0.0/16\n" +
				"PersistentKeepalive = 25\n[Peer]\nPublicKey = " + pubD + "\nEndpoint = [2001:db8:5::5]:4500\nAllowedIPs = fd00:21::/48, 10.9.0.3/32\nPersistentKeepalive = off\n"},
		{name: "no routes at all", more: true, conf: iface + "Address = 10.9.0.2/24\n[Peer]\nPublicKey = " + pubB + "\n"},
		{name: "a peer that comes twice", more: true, conf: iface + peer + "10.20.0.0/16\n" + strings.ReplaceAll(peer, "198.51.100.1", "198.51.100.2") + "10.21.0.0/16\n"},
		{name: "AllowedIPs added and removed", conf: iface + lone + "10.20.0.0/16, 10.21.0.0/16\n[Peer]\nPublicKey = " + pubC + "\nAllowedIPs = +10.22.0.0/16, -10.20.0.0/16\n",
			// a kernel without WGALLOWEDIP_F_REMOVE_ME refuses wg's request; ours does without that flag
			steps: []string{"up wg0", "down wg0"}, diffs: accepted(newer, []string{"Unable to modify interface: Invalid argument"},
				[]string{"[#] ip link set mtu 1420 up dev wg0", "[#] ip -4 route add 10.22.0.0/16 dev wg0", "[#] ip -4 route add 10.21.0.0/16 dev wg0"},
				[]string{"wg wg0 " + pubC + " (none) (none) 10.21.0.0/16,10.22.0.0/16 off"})},
		{name: "AllowedIPs empty", more: true, conf: iface + lone + "\n", steps: []string{"up wg0", "down wg0"},
			diffs: accepted(page, []string{"Line unrecognized: `AllowedIPs='", "Configuration parsing error"},
				[]string{"[#] ip link set mtu 1420 up dev wg0"}, []string{"wg wg0 " + pubC + " (none) (none) (none) off"})},
		{name: "AllowedIPs moved to a later peer", more: true, conf: iface + peer + "10.20.0.0/16, 10.21.0.0/16\n" + lone + "10.20.0.0/16\n"},
		{name: "AllowedIPs with host bits", more: true, conf: iface + lone + "10.20.1.2/16, fd00:20::5/64\n", strip: true},
		{name: "a gateway with a better route to the endpoint", more: true, conf: iface + "Address = 10.9.0.2/24\n" + peer + "198.51.100.0/24\n",
			before: "ip route add 198.51.100.1 via 192.0.2.1 dev eth0"},
		{name: "no IPv6", more: true, before: "sysctl -q net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1",
			conf: iface + "Address = 10.9.0.2/24, fd00:9::2/64\n" + peer + "10.20.0.0/16\n", diffs: []diff{answers("Permission denied")}},
		{name: "no nft", conf: iface + "Address = 10.9.0.2/24, fd00:9::2/64\n" + peer + "0.0.0.0/0, ::/0\n", bare: true,
			steps: []string{"up wg0", "down wg0"}, diffs: withoutNft()},
	}
}

// accepted is a config that only ours takes, for one of the reasons.
func accepted(reason why, message []string, trace, state []string) []diff {
	return []diff{
		{why: reason, step: "up wg0", in: "exit", ref: []string{"1"}, ours: []string{"0"}},
		{why: reason, step: "up wg0", in: "errors", ref: message},
		{why: reason, step: "up wg0", in: "trace", ref: []string{"[#] ip link delete dev wg0"}, ours: trace},
		{why: reason, step: "up wg0", in: "state", ours: state, goes: true},
		{why: reason, step: "down wg0", in: "exit", ref: []string{"1"}, ours: []string{"0"}},
		{why: reason, step: "down wg0", in: "errors", ref: []string{"wg-quick: `wg0' is not a WireGuard interface"}},
		{why: reason, step: "down wg0", in: "trace", ours: []string{"[#] ip link delete dev wg0"}},
	}
}

// mtu is how the MTU is found.
func mtu() []testCase {
	to := func(endpoint string) string {
		return iface + "Address = 10.9.0.2/24\n[Peer]\nPublicKey = " + pubB + "\nEndpoint = " + endpoint + "\nAllowedIPs = 10.20.0.0/16\n"
	}
	return []testCase{
		{name: "MTU given", more: true, conf: hooked("MTU = 1300")},
		{name: "MTU by the route's metric", more: true, conf: to("198.51.100.1:1"), before: "ip route add 198.51.100.0/24 via 192.0.2.1 mtu 1400"},
		{name: "MTU by the device", more: true, conf: to("198.51.100.1:1"), before: "ip link set eth0 mtu 1450"},
		{name: "MTU by an IPv6 route", more: true, conf: to("[2001:db8:5::5]:1"), before: "ip -6 route add 2001:db8:5::/48 via 2001:db8::1 mtu 1350"},
		{name: "MTU by the smallest path", conf: to("198.51.100.1:1") + "[Peer]\nPublicKey = " + pubC + "\nEndpoint = [2001:db8:5::5]:1\n" +
			"[Peer]\nPublicKey = " + pubD + "\nEndpoint = 198.51.200.1:1\n",
			before: "ip -6 route add 2001:db8:5::/48 via 2001:db8::1 mtu 1350; ip route add 198.51.200.0/24 via 192.0.2.1 mtu 1340"},
		{name: "MTU larger than 1500", more: true, conf: to("198.51.100.1:1"), before: "ip link set eth0 mtu 9000"},
		{name: "MTU by the default route", more: true, conf: hooked(), before: "ip route replace default via 192.0.2.1 mtu 1444"},
		{name: "MTU by the default route's device", more: true, conf: hooked(), before: "ip link set eth0 mtu 1480"},
		{name: "MTU without any route", conf: hooked(), before: "ip route del default; ip -6 route del default; ip link set eth0 mtu 1400"},
		{name: "MTU to an endpoint that no route reaches", more: true, conf: to("203.0.113.1:1"), before: "ip route del default; ip link set eth0 mtu 1400",
			diffs: []diff{words("up wg0", []string{"RTNETLINK answers: Network is unreachable"})}},
		{name: "MTU to an endpoint that is prohibited", more: true, conf: to("203.0.113.1:1"), before: "ip route add prohibit 203.0.113.0/24",
			diffs: []diff{words("up wg0", []string{"RTNETLINK answers: Permission denied"})}},
		{name: "MTU reset", more: true, conf: hooked("MTU = 1300", "MTU =")},
		{name: "MTU that is too small for IPv6", conf: iface + "MTU = 1000\nAddress = fd00:9::2/64\n", more: true},
	}
}

func dnsCases() []testCase {
	order := map[string]string{"/etc/resolvconf/interface-order": "mode 644 # first\nlo.inet6\neth[0-9]\ntun*\nwg*\n"}
	return []testCase{
		{name: "DNS with search domains", conf: hooked("DNS = 10.9.0.1, example.com corp.example", "DNS = fd00:9::1,192.0.2.53,lan")},
		{name: "DNS of search domains only", more: true, conf: hooked("DNS = example.com")},
		{name: "DNS empty", more: true, conf: hooked("DNS =")},
		{name: "DNS with a prefix", conf: hooked("DNS = 10.9.0.1"), files: order},
		{name: "DNS of odd words", more: true, conf: hooked("DNS = 1.2.3, 10.9.0.1%eth0, fe80::1%eth0, 999.9.9.9, a:b")},
		{name: "DNS that resolvconf refuses", conf: hooked("DNS = 10.9.0.1"), files: map[string]string{own + "/fail": "5\n"},
			diffs: []diff{hookFails("up wg0", "5"),
				differ(unsure, "up wg0", "calls", nil, []string{"resolvconf -d wg0 -f"})}},
	}
}

func hookCases() []testCase {
	return []testCase{
		{name: "hooks with quotes", conf: hooked(
			`PostUp = echo 'single "inside"' "double 'inside' $((1+2))" back\ slash; printf '%s\n' "a  b" `,
			`PostDown = echo "bye   %i"  `)},
		{name: "hooks with number signs", strip: true, conf: hooked(
			`PostUp = echo a#b '# c' "#d"; echo e # and a comment`, `PostUp = echo ${#INTERFACE} # %i`, `PreDown = # nothing but a comment`, `PostUp=echo x=y == z`)},
		{name: "hooks in order", conf: hooked(
			"PostUp = echo post 1", "PreUp = echo pre 1", "PostUp = echo post 2", "preup = echo pre 2", "PREDOWN = echo predown 1",
			"PostDown = echo postdown 1", "PreDown = echo predown 2", "PostDown = echo postdown 2")},
		{name: "hooks with arrays", conf: iface + "Address = 10.9.0.2/32, fd00:9::2/128\nDNS = 10.9.0.1, lan\nMTU = 1400\nTable = 1234\n" +
			`PostUp = a=(x "y z" *); echo "${#a[@]}" "${a[1]}"; for i in "${ADDRESSES[@]}"; do echo "[$i]"; done` + "\n" +
			`PostUp = echo $INTERFACE $CONFIG_FILE $MTU $TABLE "${DNS[@]}" / "${DNS_SEARCH[@]}" / $PROGRAM $SAVE_CONFIG "${ARGS[@]}"` + "\n" +
			`PostUp = echo "${#PRE_UP[@]} ${#POST_UP[@]} ${POST_DOWN[0]} ${#WG_CONFIG}"; INTERFACE=changed` + "\n" +
			`PostUp = echo $INTERFACE ${x-unset}; x=1` + "\n" + "PostDown = echo $INTERFACE ${ARGS[0]}\n" + lone + "10.20.0.0/16\n"},
		{name: "hooks of bash's own syntax", more: true, conf: hooked(
			`PostUp = [[ %i == +([a-z])0 ]] && echo matched; [[ $- == *e* ]] && echo errexit; set -o | { while read -r a b; do [[ $a != pipefail ]] || echo $a $b; done; }`,
			`PostUp = echo $LC_ALL; read -r a b < <(echo one two); echo "$b $a"; cat <<< here`,
			`PostUp = f() { local v=$1; echo "f $v"; }; f %i%i; echo ${0##*/}`,
			`PostUp = umask; type -P wg >/dev/null && echo has wg; ulimit -c; pwd`)},
		{name: "hooks that read standard input", more: true, conf: hooked("PreUp = read -r x; echo got $x", "PostUp = read -r x; echo got $x"), stdin: "first\nsecond\n"},
		{name: "hooks that are empty", conf: hooked("PostUp =", "PreUp = ", "PostUp = echo after"), more: true},
		{name: "a hook without a value", more: true, conf: hooked("PostUp"), diffs: []diff{hookFails("up wg0", "127")}},
		{name: "hooks that print to standard error", more: true, conf: hooked("PostUp = echo complaint >&2", "PostUp = echo '[#] not a command' >&2")},
		{name: "PreUp sets the private key", conf: "[Interface]\nListenPort = 51820\nAddress = 10.9.0.2/24\nPreUp = wg set %i private-key /etc/wireguard/key\n" + peer + "10.20.0.0/16\n"},
		{name: "PostUp sets the private key by substitution", more: true, conf: "[Interface]\nListenPort = 51820\nAddress = 10.9.0.2/24\nPostUp = wg set %i private-key <(cat /etc/wireguard/key)\n" + peer + "10.20.0.0/16\n"},
		{name: "PreUp adds a peer", more: true, conf: hooked("PreUp = wg set %i peer " + pubD + " allowed-ips 10.44.0.0/16,10.20.0.0/16")},
		{name: "PreUp sets an address and a route", more: true, conf: hooked("PreUp = ip address add 10.8.0.1/24 dev %i; ip link set up dev %i; ip route add 10.20.0.0/15 dev %i")},
		{name: "PostUp changes what was made", more: true, conf: split + "[Interface]\nPostUp = ip route del 10.20.0.0/16 dev %i; ip address add 10.66.0.1/24 dev %i\n"},
		{name: "PostUp adds rules that PostDown deletes", more: true,
			conf: hooked("PostUp = ip rule add pref 77 lookup 77; nft add table ip own", "PostDown = ip rule del pref 77; nft delete table ip own")},
		{name: "PreUp fails", more: true, conf: hooked("PreUp = echo before; exit 3", "PreUp = echo never", "PreDown = echo never", "PostDown = echo never"), diffs: []diff{hookFails("up wg0", "3")}},
		{name: "PreUp fails in a pipe", conf: hooked("PreUp = false | true", "PostUp = echo never"), more: true, diffs: []diff{hookFails("up wg0", "1")}},
		{name: "PostUp fails", conf: iface + "Address = 10.9.0.2/24\nDNS = 10.9.0.1\nPostUp = echo before\nPostUp = exit 7; echo never\nPostDown = echo never\n" + peer + "0.0.0.0/0\n",
			diffs: []diff{markBack("up wg0")[0], markBack("up wg0")[1], hookFails("up wg0", "7")}},
		{name: "PostUp fails by set -e", more: true, conf: hooked("PostUp = false; echo never", "PostUp = echo never"), diffs: []diff{hookFails("up wg0", "1")}},
		{name: "PostUp is not bash", more: true, conf: hooked("PostUp = echo 'open"), diffs: []diff{hookFails("up wg0", "2")}},
		{name: "PostUp of no such program", conf: hooked("PostUp = nosuchprogram a b"), more: true, diffs: []diff{hookFails("up wg0", "127")}},
		{name: "PostUp is killed", more: true, conf: hooked("PostUp = kill -9 $BASHPID"), diffs: []diff{hookFails("up wg0", "137")}},
		{name: "PreDown fails", conf: hooked("PreDown = exit 4", "PostDown = echo never"),
			steps: []string{"up wg0", "down wg0", "sh: sed -i /PreDown/d /etc/wireguard/wg0.conf", "down /etc/wireguard/wg0.conf"}, diffs: []diff{hookFails("down wg0", "4")}},
		{name: "PostDown fails", more: true, conf: hooked("PostDown = echo first; exit 5", "PostDown = echo never"), steps: []string{"up wg0", "down wg0"},
			diffs: []diff{hookFails("down wg0", "5")}},
	}
}

// parsing is how a file is read.
func parsing() []testCase {
	odd := func(name, conf string) testCase { return testCase{name: name, conf: conf, strip: true} }
	variant := func(name, conf string) testCase { return testCase{name: name, conf: conf, strip: true, more: true} }
	port := func(name, conf string) testCase {
		return testCase{name: name, conf: conf, strip: true, port: true, more: true}
	}
	return []testCase{
		odd("repeated sections", "[Interface]\nAddress = 10.9.0.2/24\n"+peer+"10.20.0.0/16\n[Interface]\nPrivateKey = "+keyA+"\nListenPort = 51820\nAddress = 10.9.1.2/24\nMTU = 1333\n"+
			"[interface]\nPostUp = echo again\n"),
		odd("CRLF", strings.ReplaceAll(split+"[Interface]\nPostUp = echo up %i\nMTU = 1333\n", "\n", "\r\n")),
		variant("tabs and spaces", "\t[Interface] \n\t PrivateKey\t=  "+keyA+"\t\n  ListenPort=51820\n \t Address \t = \t10.9.0.2/24 \t,  fd00:9::2/64\t \n\n \n  MTU  =1333\n[Peer]\nPublicKey="+pubB+" \nAllowedIPs\t=10.20.0.0/16 ,10.21.0.0/16\n"),
		variant("cases of letters", strings.NewReplacer("Interface", "iNTERFACE", "PrivateKey", "privatekey", "Address", "ADDRESS", "AllowedIPs", "allowedips", "Peer", "PEER").Replace(split)),
		odd("comments", "# first\n[Interface] # header ]\nPrivateKey = "+keyA+" # key\nListenPort = 51820#port\nAddress = 10.9.0.2/24 # 10.9.0.3/24\n#Address = 1.2.3.4\nMTU = 1333 # bytes\nDNS = 10.9.0.1 # lan\n"+
			"[Peer] # one\nPublicKey = "+pubC+"\n# AllowedIPs = 10.1.0.0/16\nAllowedIPs = 10.20.0.0/16 # , 10.21.0.0/16\n#"),
		variant("no final newline", strings.TrimSuffix(split, "\n")),
		variant("final backslash", hooked(`PostUp = echo a \`, `PostUp = echo b`)),
		odd("NUL bytes", strings.ReplaceAll(split, "10.20", "10\x00.20")),
		port("an empty file", "\n"),
		port("only the header", "[Interface]\n"),
		port("comments only", "# nothing\n"),
		variant("addresses without masks", iface+"Address = 10.9.0.2, fd00:9::2 10.9.0.3/32\nAddress=10.9.0.4/24,,10.9.0.5/24\nAddress =\n"+lone+"10.20.0.0\n"),
		variant("percent signs", hooked(`PostUp = echo "%(MTU)s" %%i %I ${x:-%i}`)),
		variant("backticks and quotes", hooked("PostUp = `echo echo` tick", `PostUp = """echo""" triple`, `PostUp = "echo" "quoted"`)),
		variant("SaveConfig false", hooked("SaveConfig = FALSE")),
		variant("a service name as port", iface+"[Peer]\nPublicKey = "+pubB+"\nEndpoint = 198.51.100.1:domain\nAllowedIPs = 10.20.0.0/16\n"),
		variant("an endpoint by name", iface+"[Peer]\nPublicKey = "+pubB+"\nEndpoint = vpn.example:51820\nAllowedIPs = 10.20.0.0/16\n[Peer]\nPublicKey = "+pubC+"\nEndpoint = vpn6.example:51821\n"),
		variant("long lines", iface+"Address = 10.9.0.2/24\n#"+strings.Repeat(" long", 60)+"\n"+lone+"10.20.0.0/16"+strings.Repeat(",10.20.0.0/16", 40)+"\n"),
		{name: "a random port", more: true, conf: strings.ReplaceAll(split, "ListenPort = 51820\n", ""), port: true},
		{name: "no private key", more: true, conf: "[Interface]\nListenPort = 51820\nAddress = 10.9.0.2/24\n" + lone + "10.20.0.0/16\n"},
	}
}

// refused is bad values of every key, and what else makes a file useless: the
// reference makes the interface before it sees that, ours does not.
func refused() []testCase {
	const tail = lone + "10.20.0.0/16\n"
	// by the device's configuration, in wg's words, or in ip's after it
	refuse := func(name, conf string, at int, message string, steps ...string) testCase {
		trace := slices.Concat([]string{"[#] ip link add dev wg0 type wireguard", "[#] wg addconf wg0 /dev/fd/63"}, steps, []string{"[#] ip link delete dev wg0"})
		said := []string{message, "Configuration parsing error"}
		if len(steps) > 0 {
			said = said[:1]
		}
		if strings.HasPrefix(message, `Error: argument "`) {
			said = append(said, "")
		}
		return testCase{name: name, conf: conf, diffs: []diff{
			{why: early, step: "up wg0", in: "trace", ref: trace},
			{why: located, step: "up wg0", in: "errors", ref: said,
				ours: []string{fmt.Sprintf("wg-quick: /etc/wireguard/wg0.conf:%d: %s", at, message)}},
		}}
	}
	inInterface := func(line, message string, steps ...string) testCase {
		return refuse(line, "[Interface]\nPrivateKey = "+keyA+"\n"+line+"\n"+tail, 3, message, steps...)
	}
	inPeer := func(line, message string) testCase { // the sixth line of the file
		return refuse("in a peer: "+line, iface+"[Peer]\nPublicKey = "+pubC+"\n"+line+"\n", 6, message)
	}
	// as above, where the reference's message shows the key that ours hides
	hidden := func(c testCase, hidden string) testCase {
		for i, d := range c.diffs {
			if d.in == "errors" {
				c.diffs[i].why = secret
				c.diffs[i].ours = []string{strings.ReplaceAll(d.ours[0], hidden, "(hidden)")}
			}
		}
		return c
	}
	status := func(c testCase, ref, ours string) testCase {
		c.diffs = append(c.diffs, diff{why: early, step: "up wg0", in: "exit", ref: []string{ref}, ours: []string{ours}})
		return c
	}
	unrecognized := func(line string) string { return "Line unrecognized: `" + line + "'" }
	prefix := func(text string) (message, step string) {
		return `Error: inet prefix is expected rather than "` + text + `".`, "[#] ip -4 address add " + text + " dev wg0"
	}
	address := func(text string) testCase {
		message, step := prefix(text)
		return inInterface("Address = "+text, message, step)
	}
	mtu := func(text string) testCase {
		return inInterface("MTU = "+text, `Error: argument "`+text+`" is wrong: Invalid "mtu" value`, "[#] ip link set mtu "+text+" up dev wg0")
	}
	table := func(text string) testCase {
		return inInterface("Table = "+text, `Error: argument "`+text+`" is wrong: "table" value is invalid`,
			"[#] ip link set mtu 1420 up dev wg0", "[#] ip -4 route add 10.20.0.0/16 dev wg0 table "+text)
	}
	truth := func(text string) testCase {
		message := "`" + text + "' is neither true nor false"
		return testCase{name: "SaveConfig = " + text, conf: iface + "SaveConfig = " + text + "\n",
			diffs: []diff{{why: located, step: "up wg0", in: "errors", ref: []string{"wg-quick: " + message}, ours: []string{"wg-quick: /etc/wireguard/wg0.conf:4: " + message}}}}
	}
	length := "Key is not the correct length or format: `"
	bare, step := prefix("Address")
	space, spaceStep := prefix("10.9.0.2/24")
	list := []testCase{
		address("10.9.0.300/24"), address("10.9.0.2/33"), address("10.9.0.2/24/24"),
		inInterface("Address", bare, step),
		mtu("many"), mtu("4294967296"), table("-7"), table("nosuch"), table("Auto"), truth("maybe"), truth(""), truth("1"),
		hidden(inInterface("PrivateKey = "+keyA[:40], length+keyA[:40]+"'"), keyA[:40]),
		hidden(inInterface("PrivateKey = secret", length+"secret'"), "secret"),
		hidden(inInterface("PrivteKey = "+keyA, unrecognized("PrivteKey="+keyA)), "PrivteKey="+keyA),
		inInterface("ListenPort =", unrecognized("ListenPort=")),
		inInterface("FwMark = red", "Fwmark is neither 0/off nor 0-0xffffffff: `red'"),
		inInterface("FwMark = 0x100000000", "Fwmark is neither 0/off nor 0-0xffffffff: `0x100000000'"),
		inInterface("AllowedIPs = 10.0.0.0/8", unrecognized("AllowedIPs=10.0.0.0/8")),
		inInterface("[Peers]", unrecognized("[Peers]")),
		inInterface("FwMark", unrecognized("FwMark")),
		inInterface("; comment", unrecognized(";comment")),
		hidden(refuse("a bad PublicKey", iface+"[Peer]\nPublicKey = "+pubB[:43]+"!\n", 5, length+pubB[:43]+"!'"), pubB[:43]+"!"),
		hidden(inPeer("PresharedKey = "+keyPSK[:43], length+keyPSK[:43]+"'"), keyPSK[:43]),
		inPeer("AllowedIPs = 10.20.0.0/33", "AllowedIP is not in the correct format: `10.20.0.0/33'"),
		inPeer("AllowedIPs = home", "Unable to parse IP address: `home'"),
		inPeer("AllowedIPs = fd00::1::2/64", "Unable to parse IP address: `fd00::1::2'"),
		inPeer("Endpoint = 198.51.100.1", "Unable to find port of endpoint: `198.51.100.1'"),
		inPeer("Endpoint = [2001:db8::1:51820", "Unable to find matching brace of endpoint: `[2001:db8::1:51820'"),
		inPeer("Endpoint =", unrecognized("Endpoint=")),
		inPeer("PersistentKeepalive = 65536", "Persistent keepalive interval is neither 0/off nor 1-65535: `65536'"),
		inPeer("PersistentKeepalive = often", "Persistent keepalive interval is neither 0/off nor 1-65535: `often'"),
		inPeer("ListenPort = 5", unrecognized("ListenPort=5")),
		refuse("a BOM", "\ufeff"+split, 1, unrecognized("\ufeff[Interface]")),
		refuse("text after the header", strings.Replace(split, "[Interface]", "[Interface] text", 1), 1, unrecognized("[Interface]text")),
		refuse("keys of the interface in a peer", split+"MTU = 1333\n", 10, unrecognized("MTU=1333")),
	}
	// a non-breaking space is none to bash; the message spells it out
	c := refuse("a non-breaking space", strings.Replace(split, "Address = ", "Address =\u00a0", 1), 4, space, spaceStep)
	for i, d := range c.diffs {
		for j, l := range d.ref {
			c.diffs[i].ref[j] = strings.ReplaceAll(l, "10.9.0.2", "\u00a010.9.0.2")
		}
		for j, l := range d.ours {
			c.diffs[i].ours[j] = strings.ReplaceAll(l, "10.9.0.2", `\u00a010.9.0.2`)
		}
	}
	list = append(list, c)
	// ip takes the word for an option of IPv6; the kernel refuses it
	c = status(address("home"), "2", "1")
	c.diffs[1].ref = []string{"Warning: home option can be set only for IPv6 addresses", "RTNETLINK answers: Invalid argument"}
	list = append(list, c)
	c = status(mtu("-1"), "2", "255")
	c.diffs[1].ref = []string{"Error: mtu less than device minimum."}
	c.diffs[1].ours[0] = strings.ReplaceAll(c.diffs[1].ours[0], `Invalid "mtu" value`, "mtu less than device minimum")
	list = append(list, c)
	c = refuse("a peer without a key", iface+"[Peer]\nAllowedIPs = 10.21.0.0/16\n", 4, "A peer is missing a public key")
	c.diffs[1].ref[1] = "Invalid configuration"
	list = append(list, c)
	c = refuse("retries of no number", split, 0, "Unable to parse WG_ENDPOINT_RESOLUTION_RETRIES: `often'")
	c.env = []string{"WG_ENDPOINT_RESOLUTION_RETRIES=often"}
	c.diffs[1].why, c.diffs[1].ref = wording, c.diffs[1].ref[:1]
	c.diffs[1].ours = []string{"~" + c.diffs[1].ref[0]}
	list = append(list, c)
	// names are resolved after the interface is made, but before the device's configuration is announced
	for _, bad := range []struct{ name, conf, message string }{
		{"ListenPort of no service", strings.Replace(split, "ListenPort = 51820", "ListenPort = nosuch", 1), "Servname not supported for ai_socktype: `nosuch'"},
		{"Endpoint of no such name", strings.Replace(split, "198.51.100.1:", "nosuch.example:", 1), "Name or service not known: `nosuch.example:51820'"},
		{"Endpoint of no such zone", strings.Replace(split, "198.51.100.1:", "[fe80::1%nosuch]:", 1), "Name or service not known: `[fe80::1%nosuch]:51820'"},
		{"Endpoint of no such service", strings.Replace(split, "198.51.100.1:51820", "198.51.100.1:nosuch", 1), "Servname not supported for ai_socktype: `198.51.100.1:nosuch'"},
	} {
		c = refuse(bad.name, bad.conf, 0, bad.message)
		c.diffs[0].ref = c.diffs[0].ref[1:2]
		c.diffs[1].why = wording
		c.diffs[1].ours = []string{"~" + bad.message}
		c.env = []string{"WG_ENDPOINT_RESOLUTION_RETRIES=0"}
		list = append(list, c)
	}
	return list
}

// failing is what the system refuses.
func failing() []testCase {
	return []testCase{
		{name: "fails: the route exists", conf: split, before: "ip route add 10.20.0.0/16 via 192.0.2.1 dev eth0", diffs: []diff{answers("File exists")}},
		{name: "fails: the IPv6 route exists", conf: iface + "Address = 10.9.0.2/24\n" + peer + "fd00:20::/64, 10.20.0.0/16\n",
			before: "ip -6 route add fd00:20::/64 dev eth0 metric 1024", more: true, diffs: []diff{answers("File exists")}},
		{name: "fails: the port is taken", more: true, conf: split, before: "ip link add other type wireguard; wg set other listen-port 51820; ip link set other up", diffs: []diff{answers("Address already in use")}},
		{name: "fails: the interface exists", more: true, conf: split, before: "ip link add wg0 type wireguard"},
		{name: "fails: another link has the name", more: true, conf: split, before: "ip link add wg0 address 02:00:00:00:00:09 type dummy"},
		{name: "fails: an address that IPv6 refuses", more: true, conf: iface + "Address = ff02::1/64\n", diffs: []diff{answers("Cannot assign requested address")}},
		{name: "fails: an address that comes twice", more: true, conf: iface + "Address = 10.9.0.2/24, 10.9.0.2/24\n", diffs: []diff{answers("File exists")}},
		{name: "fails: the address of another link", more: true, conf: iface + "Address = 192.0.2.2/24\n" + lone + "10.20.0.0/16\n"},
	}
}

// commands is how the program is called.
func commands() []testCase {
	long := "abcdefghijklmno"
	list := []testCase{
		{name: "a path", more: true, conf: "", files: map[string]string{"/etc/elsewhere/office.conf": split}, steps: []string{"up /etc/elsewhere/office.conf", "down /etc/elsewhere/office.conf"}},
		{name: "a symlink", files: map[string]string{"/etc/wireguard/office.conf": hooked("PostUp = echo $CONFIG_FILE %i"), "/etc/wireguard/wg0.conf": "-> office.conf"},
			steps: []string{"strip wg0", "up wg0", "down wg0"}},
		{name: "a symlink to another folder", more: true, files: map[string]string{"/etc/elsewhere/any name": hooked("PostUp = echo $CONFIG_FILE %i"), "/etc/wireguard/wg0.conf": "-> ../elsewhere/any name"},
			steps: []string{"strip wg0", "up wg0", "down wg0"}},
		{name: "a name of 15 letters", more: true, files: map[string]string{"/etc/wireguard/" + long + ".conf": split}, steps: []string{"up " + long, "down " + long}},
		{name: "a name with signs", more: true, files: map[string]string{"/etc/wireguard/a.b=c+d_e-f.conf": split}, steps: []string{"up a.b=c+d_e-f", "down a.b=c+d_e-f"}},
		{name: "bad names", files: map[string]string{"/etc/wireguard/" + long + "p.conf": split, "/etc/wireguard/wg0": split, "/etc/wireguard/a b.conf": split},
			steps: []string{"up /etc/wireguard/" + long + "p.conf", "up " + long + "p", "strip /etc/wireguard/wg0", "up nosuch", "strip nosuch", "save nosuch", "up /etc/wireguard/nosuch.conf", "strip /etc/wireguard"}},
		{name: "not up", more: true, conf: hooked("PreDown = echo never"), steps: []string{"down wg0", "save wg0"}},
		{name: "up twice", conf: hooked("PreUp = echo once", "PostDown = echo down"), steps: []string{"up wg0", "up wg0", "down wg0", "down wg0"}},
		{name: "not a WireGuard interface", more: true, conf: split, before: "ip link add wg0 address 02:00:00:00:00:09 type dummy", steps: []string{"up wg0", "down wg0", "save wg0"}},
		{name: "world accessible", files: map[string]string{"/etc/elsewhere/wg0.conf": "mode 644 " + split, "/etc/wireguard/wg0.conf": "mode 644 " + split, "/etc/elsewhere/wg1.conf": "mode 640 " + split},
			steps: []string{"strip /etc/elsewhere/wg0.conf", "strip wg0", "strip /etc/elsewhere/wg1.conf", "up /etc/elsewhere/wg0.conf", "down /etc/elsewhere/wg0.conf"}},
		{name: "a folder instead of a file", more: true, before: "mkdir /etc/wireguard/wg0.conf", steps: []string{"strip wg0"}, diffs: []diff{
			{why: reads, step: "strip wg0", in: "exit", ref: []string{"0"}, ours: []string{"1"}},
			{why: reads, step: "strip wg0", in: "stdout", ref: []string{""}},
			words("strip wg0", []string{"wg-quick: read: read error: 0: Is a directory"}, "~is a directory")}},
	}
	return list
}

// kept is what only ours keeps in the file, from save on.
func kept(lines ...string) (diffs []diff) {
	for i, l := range lines {
		lines[i] = "/etc/wireguard/wg0.conf: " + l
	}
	for _, step := range []string{"save wg0", "down wg0"} {
		diffs = append(diffs, differ(saveKeeps, step, "files", nil, lines))
	}
	return diffs
}

func saving() []testCase {
	conf := iface + "Address = 10.9.0.2/24, fd00:9::2/64\nMTU = 1333\nTable = 1234\nSaveConfig = true\nDNS = 10.9.0.1\nPostUp = echo up \"%i\"\nPreUp = echo pre\nPreDown = echo predown\nPostDown = echo postdown\n" +
		peer + "10.20.0.0/16, fd00:20::/64\nPersistentKeepalive = 25\n"
	return []testCase{
		{name: "SaveConfig", more: true, conf: conf},
		{name: "SaveConfig of a changed interface", conf: conf, steps: []string{"up wg0",
			"sh: wg set wg0 peer " + pubC + " allowed-ips 10.40.0.0/16,0.0.0.0/0 endpoint 198.51.100.9:7; wg set wg0 peer " + pubB + " remove; wg set wg0 listen-port 7777 fwmark 0x77; ip addr add 10.66.0.1/24 dev wg0; ip link set wg0 mtu 1222",
			"down wg0"}},
		{name: "save", more: true, conf: hooked("DNS = 10.9.0.1, 10.9.0.3"), steps: []string{"up wg0", "sh: ip addr add 10.66.0.1/24 dev wg0", "save wg0", "strip wg0", "down wg0", "up wg0", "down wg0"}},
		{name: "save without addresses", more: true, conf: iface + "FwMark = 0x99\n", steps: []string{"up wg0", "save wg0", "down wg0"}},
		{name: "save with a prefix", more: true, conf: hooked("DNS = 10.9.0.1"), files: map[string]string{"/etc/resolvconf/interface-order": "mode 644 tun*\n"}, steps: []string{"up wg0", "save wg0", "down wg0"}},
		{name: "save through a symlink", more: true, files: map[string]string{"/etc/wireguard/office.conf": hooked(), "/etc/wireguard/wg0.conf": "-> office.conf"}, steps: []string{"up wg0", "save wg0", "down wg0"}},
		{name: "save of a world accessible file", more: true, files: map[string]string{"/etc/elsewhere/wg0.conf": "mode 644 " + hooked()},
			steps: []string{"up /etc/elsewhere/wg0.conf", "save /etc/elsewhere/wg0.conf", "sh: stat -c %a /etc/elsewhere/*; cat /etc/elsewhere/*", "down /etc/elsewhere/wg0.conf"}},
		{name: "save with search domains", conf: hooked("DNS = 10.9.0.1, example.com"), steps: []string{"up wg0", "save wg0", "down wg0"},
			diffs: kept("DNS = example.com")},
		{name: "save with comments", more: true, conf: "# mine\n" + hooked("PostUp = true # kept") + "# end\n", steps: []string{"up wg0", "save wg0", "down wg0"}, diffs: kept("# mine", "# end")},
	}
}

// several is more than one tunnel.
func several() []testCase {
	second := strings.NewReplacer("51820", "51821", "10.9.0", "10.8.0").Replace
	full := iface + "Address = 10.9.0.2/24\n" + peer + "0.0.0.0/0\n"
	return []testCase{
		{name: "two split tunnels", more: true, conf: split, files: map[string]string{"/etc/wireguard/wg1.conf": "[Interface]\nListenPort = 5\nAddress = 10.8.0.2/24\n" + lone + "10.21.0.0/16\n"},
			steps: []string{"up wg0", "up wg1", "down wg0", "down wg1"}},
		{name: "a split tunnel in a full one", more: true, conf: full, files: map[string]string{"/etc/wireguard/wg1.conf": "[Interface]\nListenPort = 5\nAddress = 10.8.0.2/24\n" + lone + "10.21.0.0/16\n"},
			steps: []string{"up wg0", "up wg1", "down wg1", "down wg0"}, diffs: markBack("down wg0")},
		{name: "two full tunnels", conf: full, files: map[string]string{"/etc/wireguard/wg1.conf": second(full)},
			steps: []string{"up wg0", "up wg1", "down wg1", "down wg0"}, diffs: append(markBack("down wg0"),
				// the reference leaves wg0 without it: all of its traffic passes the more specific routes by
				diff{why: identity, step: "down wg1", in: "trace", ref: []string{suppressDelete}},
				diff{why: identity, step: "down wg1", in: "state", ours: []string{"ip 32764: " + suppress}},
				diff{why: identity, step: "down wg0", in: "trace", ours: []string{suppressDelete}})},
		{name: "two tunnels of the same routes", more: true, conf: split, files: map[string]string{"/etc/wireguard/wg1.conf": second(split)}, steps: []string{"up wg0", "up wg1", "down wg1", "down wg0"},
			diffs: []diff{{why: wording, step: "up wg1", in: "errors", ref: []string{"RTNETLINK answers: File exists"}, ours: []string{"~: file exists"}}}},
	}
}

const (
	suppress       = "from all lookup main suppress_prefixlength 0 proto unspec"
	suppressDelete = "[#] ip -4 rule delete table main suppress_prefixlength 0"
	markDelete     = "[#] sysctl -q net.ipv4.conf.all.src_valid_mark=0"
)

// wall is the firewall of one family by nf_tables; restored is the same by iptables-restore.
func wall(family, addr string) []string {
	table := "nft table " + family + " wg-quick-wg0"
	return []string{
		table, table + " / chain postmangle", table + " / chain premangle", table + " / chain preraw",
		table + " / chain postmangle / meta l4proto udp meta mark 0x0000ca6c ct mark set meta mark",
		table + " / chain postmangle / type filter hook postrouting priority mangle; policy accept;",
		table + " / chain premangle / meta l4proto udp meta mark set ct mark",
		table + " / chain premangle / type filter hook prerouting priority mangle; policy accept;",
		table + " / chain preraw / iifname != \"wg0\" " + family + " daddr " + addr + " fib saddr type != local drop",
		table + " / chain preraw / type filter hook prerouting priority raw; policy accept;",
	}
}

func restored(family, addr string) []string {
	mangle, raw := "nft table "+family+" mangle", "nft table "+family+" raw"
	return []string{
		mangle, mangle + " / chain POSTROUTING", mangle + " / chain PREROUTING", raw, raw + " / chain PREROUTING",
		mangle + " / chain POSTROUTING / meta l4proto udp meta mark 0x0000ca6c counter packets 0 bytes 0 ct mark set mark",
		mangle + " / chain POSTROUTING / type filter hook postrouting priority mangle; policy accept;",
		mangle + " / chain PREROUTING / meta l4proto udp counter packets 0 bytes 0 meta mark set ct mark",
		mangle + " / chain PREROUTING / type filter hook prerouting priority mangle; policy accept;",
		raw + " / chain PREROUTING / iifname != \"wg0\" " + family + " daddr " + addr + " fib saddr type != local counter packets 0 bytes 0 drop",
		raw + " / chain PREROUTING / type filter hook prerouting priority raw; policy accept;",
	}
}

// withoutNft is what differs where nft is not installed: the reference takes
// iptables-restore, and leaves its empty tables.
func withoutNft() []diff {
	const nft = "[#] nft -f /dev/fd/63"
	old := []string{"[#] ip6tables-restore -n", "[#] iptables-restore -n"}
	return []diff{
		differ(native, "up wg0", "trace", old, []string{nft, nft}),
		differ(native, "up wg0", "state", append(restored("ip", "10.9.0.2"), restored("ip6", "fd00:9::2")...), append(wall("ip", "10.9.0.2"), wall("ip6", "fd00:9::2")...)),
		differ(native, "down wg0", "trace", old, []string{nft, markDelete}),
		{why: native, step: "down wg0", in: "state", back: true},
	}
}

// outside is decided difference 6 for one prefix of the config: what would swallow
// the endpoint goes into a table of its own, with rules for all but the tunnel's packets.
func outside(prefix string, addr string) []diff {
	bits := prefix[strings.Index(prefix, "/")+1:]
	state := func(mark string) string {
		return "wg wg0 " + keyA + " RtzHYYURyR6q1fbuI6YJWBmltgLACZtV/9fqynNR5n0= 51820 " + mark
	}
	rules := []string{
		"ip 32764: from all to " + prefix + " lookup main suppress_prefixlength " + bits + " proto unspec",
		"ip 32765: not from all to " + prefix + " fwmark 0xca6c lookup 51820 proto unspec",
	}
	return []diff{
		differ(loops, "up wg0", "trace", nil, []string{
			"[#] wg set wg0 fwmark 51820",
			"[#] ip -4 rule add to " + prefix + " not fwmark 51820 table 51820",
			"[#] ip -4 rule add to " + prefix + " table main suppress_prefixlength " + bits,
			"[#] ip -4 route add " + prefix + " dev wg0 table 51820",
			"[#] sysctl -q net.ipv4.conf.all.src_valid_mark=1",
			"[#] nft -f /dev/fd/63",
		}),
		differ(loops, "up wg0", "state", []string{srcValidMark + "0", state("off")}, append(append(rules[:2:2], wall("ip", addr)...),
			"ip unicast "+prefix+" dev wg0 table 51820 proto boot scope link",
			srcValidMark+"1", state("0xca6c"))),
		// the reference does not know these rules, so its down leaves them
		differ(loops, "adopt wg0", "trace", []string{"[#] nft -f /dev/fd/63"}, nil),
		differ(loops, "adopt wg0", "state", append(rules[:2:2], srcValidMark+"1"), []string{srcValidMark + "0"}),
		differ(loops, "down wg0", "trace", nil, []string{
			"[#] ip -4 rule delete to " + prefix + " table 51820",
			"[#] ip -4 rule delete to " + prefix + " table main suppress_prefixlength " + bits,
			markDelete,
		}),
		differ(loops, "down wg0", "state", append(rules[:2:2], srcValidMark+"1"), []string{srcValidMark + "0"}),
	}
}

// decided is what the decided differences are about.
func decided() []testCase {
	full := iface + "Address = 10.9.0.2/24\nDNS = 10.9.0.1\nPreDown = echo predown\nPostDown = echo postdown\n" + peer + "0.0.0.0/0\n"
	plain := iface + "Address = 10.9.0.2/24\n" + peer + "0.0.0.0/0\n"
	// without what only the reference adds to the main table
	instead := func(prefix string) diff {
		return differ(loops, "up wg0", "trace", []string{"[#] ip -4 route add " + prefix + " dev wg0"}, nil)
	}
	route := func(prefix string) diff {
		return differ(loops, "up wg0", "state", []string{"ip unicast " + prefix + " dev wg0 table main proto boot scope link"}, nil)
	}
	undo := []string{"[#] ip -4 rule delete table 51820", suppressDelete}
	list := []testCase{
		{name: "decided: another's suppress rule stays", before: "ip rule add pref 500 table main suppress_prefixlength 0", conf: plain, diffs: append(markBack("down wg0"),
			diff{why: identity, step: "adopt wg0", in: "trace", ref: []string{suppressDelete}},
			diff{why: identity, step: "adopt wg0", in: "state", ours: []string{"ip 500: " + suppress}},
			diff{why: identity, step: "down wg0", in: "trace", ref: []string{suppressDelete}},
			diff{why: identity, step: "down wg0", in: "state", ours: []string{"ip 500: " + suppress}})},
		{name: "decided: a table whose number begins the same", before: "ip rule add pref 100 from 10.77.0.0/16 lookup 518201", conf: plain,
			steps: []string{"up wg0", "down wg0"}, diffs: []diff{
				{why: identity, step: "down wg0", in: "exit", ref: []string{"2"}, ours: []string{"0"}},
				{why: identity, step: "down wg0", in: "errors", ref: []string{"RTNETLINK answers: No such file or directory"}},
				{why: identity, step: "down wg0", in: "trace", ref: []string{"[#] ip -4 rule delete table 51820"},
					ours: []string{suppressDelete, "[#] ip link delete dev wg0", "[#] nft -f /dev/fd/63", markDelete}},
				{why: identity, step: "down wg0", in: "state", back: true}}},
		{name: "decided: the interface was deleted", conf: full, steps: []string{"up wg0", "sh: ip link del wg0", "down wg0"}, diffs: []diff{
			{why: record, step: "down wg0", in: "exit", ref: []string{"1"}, ours: []string{"0"}},
			{why: record, step: "down wg0", in: "trace", ours: append(undo[:2:2], "[#] resolvconf -d wg0 -f", "[#] nft -f /dev/fd/63", markDelete, "[#] echo postdown")},
			{why: record, step: "down wg0", in: "errors", ref: []string{"wg-quick: `wg0' is not a WireGuard interface"},
				ours: []string{"~`wg0' is gone already; undoing what is left of it"}},
			{why: record, step: "down wg0", in: "stdout", ours: []string{"postdown"}},
			{why: record, step: "down wg0", in: "calls", ours: []string{"resolvconf -d wg0 -f"}},
			{why: record, step: "down wg0", in: "state", back: true}}},
		{name: "decided: the config changed", more: true, conf: full, steps: []string{"up wg0", "sh: sed -i '/^DNS/d; s/0.0.0.0.0/10.0.0.0\\/8/' /etc/wireguard/wg0.conf", "down wg0"}, diffs: append(markBack("down wg0"),
			diff{why: record, step: "down wg0", in: "trace", ours: []string{"[#] resolvconf -d wg0 -f"}},
			diff{why: record, step: "down wg0", in: "calls", ours: []string{"resolvconf -d wg0 -f"}},
			diff{why: record, step: "down wg0", in: "state", ref: []string{"file /run/parity/records/wg0: nameserver 10.9.0.1"}})},
		{name: "decided: the config vanished", conf: full, steps: []string{"up wg0", "sh: rm /etc/wireguard/wg0.conf", "down wg0"}, diffs: []diff{
			{why: record, step: "down wg0", in: "exit", ref: []string{"1"}, ours: []string{"0"}},
			{why: record, step: "down wg0", in: "trace", ours: slices.Concat([]string{"[#] echo predown"}, undo,
				[]string{"[#] ip link delete dev wg0", "[#] resolvconf -d wg0 -f", "[#] nft -f /dev/fd/63", markDelete, "[#] echo postdown"})},
			{why: record, step: "down wg0", in: "errors", ref: []string{"wg-quick: `/etc/wireguard/wg0.conf' does not exist"},
				ours: []string{"~its record of `up' is used instead"}},
			{why: record, step: "down wg0", in: "stdout", ours: []string{"predown", "postdown"}},
			{why: record, step: "down wg0", in: "calls", ours: []string{"resolvconf -d wg0 -f"}},
			{why: record, step: "down wg0", in: "state", back: true}}},
		{name: "decided: the config is broken", more: true, conf: full, steps: []string{"up wg0", "sh: echo nonsense >>/etc/wireguard/wg0.conf", "down wg0"}, diffs: markBack("down wg0")},
		{name: "decided: the endpoint in AllowedIPs", conf: iface + "Address = 10.9.0.2/24\n" + peer + "198.51.100.0/24\n",
			diffs: append(outside("198.51.100.0/24", "10.9.0.2"), instead("198.51.100.0/24"), route("198.51.100.0/24"))},
		{name: "decided: half the world", conf: iface + "Address = 10.9.0.2/24\n" + peer + "0.0.0.0/1, 128.0.0.0/1\n",
			diffs: append(outside("128.0.0.0/1", "10.9.0.2"), instead("128.0.0.0/1"), route("128.0.0.0/1"))},
		{name: "decided: the endpoint in the tunnel's subnet", more: true, conf: iface + "Address = 198.51.100.2/24\n" + peer + "10.20.0.0/16\n",
			diffs: append(outside("198.51.100.0/24", "198.51.100.2"),
				differ(loops, "up wg0", "trace", []string{"[#] ip -4 address add 198.51.100.2/24 dev wg0"}, []string{"[#] ip -4 address add 198.51.100.2/24 dev wg0 noprefixroute"}),
				differ(loops, "up wg0", "state", []string{
					"ip unicast 198.51.100.0/24 dev wg0 table main proto kernel scope link src 198.51.100.2",
					"ip wg0 inet 198.51.100.2/24 scope global wg0 valid_lft forever preferred_lft forever",
				}, []string{"ip wg0 inet 198.51.100.2/24 scope global noprefixroute wg0 valid_lft forever preferred_lft forever"}))},
	}
	for _, name := range []string{"-x", "all", "default", ".", ".."} {
		path, step := fmt.Sprintf("/etc/wireguard/%s.conf", name), "up "+name
		c := testCase{name: "decided: the name " + name, more: name != "-x", files: map[string]string{path: iface}, steps: []string{step}, diffs: []diff{
			{why: names, step: step, in: "trace", ref: []string{"[#] ip link add dev " + name + " type wireguard", "[#] ip link delete dev " + name}},
			{why: names, step: step, in: "errors", ref: []string{"RTNETLINK answers: Invalid argument", `Cannot find device "` + name + `"`}, ours: []string{"~valid interface name, followed by .conf"}},
		}}
		switch name {
		case "-x": // the reference makes it, and no other program can name it
			c.diffs[0].ref = []string{"[#] ip link add dev -x type wireguard", "[#] wg addconf -x /dev/fd/63", "[#] ip link set mtu 1420 up dev -x"}
			c.diffs[1].ref = nil
			c.diffs = append(c.diffs, diff{why: names, step: step, in: "exit", ref: []string{"0"}, ours: []string{"1"}}, diff{why: names, step: step, in: "state", back: true})
		case "default", ".", "..":
			c.diffs[1].ref = append(c.diffs[1].ref, "Unable to access interface: No such device")
		}
		list = append(list, c)
	}
	return list
}
