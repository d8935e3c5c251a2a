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
		{sysctlBack, step, "state", []string{srcValidMark + "1"}, []string{srcValidMark + "0"}},
		{sysctlBack, step, "trace", nil, []string{"[#] sysctl -q net.ipv4.conf.all.src_valid_mark=0"}},
	}
}

func cases() []testCase {
	return slices.Concat(routing(), mtu(), dnsCases(), hookCases(), parsing(), bad(), failing(), commands(), saving(), several(), decided())
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
		{name: "full tunnel v6", conf: iface + "Address = fd00:9::2/64\n" + peer + "::/0\n"},
		{name: "full tunnel both", conf: iface + "Address = 10.9.0.2/24, fd00:9::2/64\nDNS = 10.9.0.1, fd00:9::1\n" + peer + "0.0.0.0/0, ::/0\n",
			diffs: markBack("down wg0")},
		{name: "full tunnel beside other routes", diffs: markBack("down wg0"),
			conf: iface + "Address = 10.9.0.2/32\nAddress = fd00:9::2/128\n" + peer + "0.0.0.0/0, 10.30.0.0/16, ::/0, fd00:30::/64\n"},
		{name: "full tunnel without an address", conf: iface + peer + "0.0.0.0/0\n", diffs: markBack("down wg0")},
		{name: "full tunnel, src_valid_mark is set already", before: "sysctl -q net.ipv4.conf.all.src_valid_mark=1", conf: full4},
		{name: "full tunnel, table 51820 is in use", diffs: markBack("down wg0"), conf: full4,
			before: "ip route add 10.77.0.0/16 dev eth0 table 51820; ip -6 route add fd00:77::/64 dev eth0 table 51821"},
		{name: "full tunnel, other rules exist", diffs: markBack("down wg0"), conf: full4,
			before: "ip rule add from 10.77.0.0/16 lookup 77; ip rule add pref 100 fwmark 7 lookup 78; ip rule add pref 40000 lookup 79"},
		{name: "FwMark in hex", conf: fwmark("0x1234"), diffs: markBack("down wg0")},
		{name: "FwMark decimal", conf: fwmark("77"), diffs: markBack("down wg0")},
		{name: "FwMark off", conf: fwmark("off"), diffs: markBack("down wg0")},
		{name: "FwMark zero", conf: fwmark("0x0"), diffs: markBack("down wg0")},
		{name: "FwMark on a split tunnel", conf: iface + "FwMark = 51820\nAddress = 10.9.0.2/24\n" + peer + "10.20.0.0/16\n"},
		{name: "split tunnel", conf: split},
		{name: "Table off", conf: table("off", "0.0.0.0/0, ::/0, 10.20.0.0/16")},
		{name: "Table auto", conf: table("auto", "10.20.0.0/16, fd00:20::/64")},
		{name: "Table number", conf: table("1234", "0.0.0.0/0, ::/0, 10.20.0.0/16, fd00:20::/64")},
		{name: "Table in hex", conf: table("0x4d2", "10.20.0.0/16")},
		{name: "Table main", conf: table("main", "10.20.0.0/16, fd00:20::/64")},
		{name: "Table by name", conf: table("vpn", "0.0.0.0/0, 10.20.0.0/16, fd00:20::/64"),
			files: map[string]string{"/etc/iproute2/rt_tables.d/vpn.conf": "777 vpn\n"}},
		{name: "Table given twice", conf: table("1234\nTable = 1235", "10.20.0.0/16")},
		{name: "Table reset", conf: table("1234\nTable =", "10.20.0.0/16")},
		{name: "Table main takes the default route's place", conf: table("main", "0.0.0.0/0")},
		{name: "Table of no such name", conf: table("nosuch", "10.20.0.0/16")},
		{name: "Table Auto", conf: table("Auto", "10.20.0.0/16")},
		{name: "overlapping AllowedIPs",
			conf: iface + "Address = 10.9.0.2/24, fd00:9::2/64\n" + peer + "10.9.0.0/24, 10.9.0.7, 10.9.0.0/16, 10.9.128.0/17, fd00:9::/64, fd00:9::7, fd00::/16\n"},
		{name: "several peers",
			conf: iface + "Address = 10.9.0.2/32\n" + peer + "10.20.0.0/16, 10.9.0.1/32\n" + lone + "10.21.0.0/16, 10.3.0.0/16\n" +
				"PersistentKeepalive = 25\n[Peer]\nPublicKey = " + pubD + "\nEndpoint = [2001:db8:5::5]:4500\nAllowedIPs = fd00:21::/48, 10.9.0.3/32\nPersistentKeepalive = off\n"},
		{name: "no routes at all", conf: iface + "Address = 10.9.0.2/24\n[Peer]\nPublicKey = " + pubB + "\n"},
		{name: "a peer that comes twice", conf: iface + peer + "10.20.0.0/16\n" + strings.ReplaceAll(peer, "198.51.100.1", "198.51.100.2") + "10.21.0.0/16\n"},
		{name: "AllowedIPs added and removed", conf: iface + lone + "10.20.0.0/16, 10.21.0.0/16\n[Peer]\nPublicKey = " + pubC + "\nAllowedIPs = +10.22.0.0/16, -10.20.0.0/16\n"},
		{name: "AllowedIPs moved to a later peer", conf: iface + peer + "10.20.0.0/16, 10.21.0.0/16\n" + lone + "10.20.0.0/16\n"},
		{name: "AllowedIPs with host bits", conf: iface + lone + "10.20.1.2/16, fd00:20::5/64\n", strip: true},
		{name: "AllowedIPs empty", conf: iface + lone + "\n"},
		{name: "a gateway with a better route to the endpoint", conf: iface + "Address = 10.9.0.2/24\n" + peer + "198.51.100.0/24\n",
			before: "ip route add 198.51.100.1 via 192.0.2.1 dev eth0"},
		{name: "no IPv6", before: "sysctl -q net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1",
			conf: iface + "Address = 10.9.0.2/24, fd00:9::2/64\n" + peer + "10.20.0.0/16\n"},
		{name: "no nft", conf: iface + "Address = 10.9.0.2/24, fd00:9::2/64\n" + peer + "0.0.0.0/0, ::/0\n", bare: true},
	}
}

// mtu is how the MTU is found.
func mtu() []testCase {
	to := func(endpoint string) string {
		return iface + "Address = 10.9.0.2/24\n[Peer]\nPublicKey = " + pubB + "\nEndpoint = " + endpoint + "\nAllowedIPs = 10.20.0.0/16\n"
	}
	return []testCase{
		{name: "MTU given", conf: hooked("MTU = 1300")},
		{name: "MTU by the route's metric", conf: to("198.51.100.1:1"), before: "ip route add 198.51.100.0/24 via 192.0.2.1 mtu 1400"},
		{name: "MTU by the device", conf: to("198.51.100.1:1"), before: "ip link set eth0 mtu 1450"},
		{name: "MTU by an IPv6 route", conf: to("[2001:db8:5::5]:1"), before: "ip -6 route add 2001:db8:5::/48 via 2001:db8::1 mtu 1350"},
		{name: "MTU by the smallest path", conf: to("198.51.100.1:1") + "[Peer]\nPublicKey = " + pubC + "\nEndpoint = [2001:db8:5::5]:1\n" +
			"[Peer]\nPublicKey = " + pubD + "\nEndpoint = 198.51.200.1:1\n",
			before: "ip -6 route add 2001:db8:5::/48 via 2001:db8::1 mtu 1350; ip route add 198.51.200.0/24 via 192.0.2.1 mtu 1340"},
		{name: "MTU larger than 1500", conf: to("198.51.100.1:1"), before: "ip link set eth0 mtu 9000"},
		{name: "MTU by the default route", conf: hooked(), before: "ip route replace default via 192.0.2.1 mtu 1444"},
		{name: "MTU by the default route's device", conf: hooked(), before: "ip link set eth0 mtu 1480"},
		{name: "MTU without any route", conf: hooked(), before: "ip route del default; ip -6 route del default; ip link set eth0 mtu 1400"},
		{name: "MTU to an endpoint that no route reaches", conf: to("203.0.113.1:1"), before: "ip route del default; ip link set eth0 mtu 1400"},
		{name: "MTU to an endpoint that is prohibited", conf: to("203.0.113.1:1"), before: "ip route add prohibit 203.0.113.0/24"},
		{name: "MTU reset", conf: hooked("MTU = 1300", "MTU =")},
		{name: "MTU that is too small for IPv6", conf: iface + "MTU = 1000\nAddress = fd00:9::2/64\n"},
	}
}

func dnsCases() []testCase {
	order := map[string]string{"/etc/resolvconf/interface-order": "mode 644 # first\nlo.inet6\neth[0-9]\ntun*\nwg*\n"}
	return []testCase{
		{name: "DNS with search domains", conf: hooked("DNS = 10.9.0.1, example.com corp.example", "DNS = fd00:9::1,192.0.2.53,lan")},
		{name: "DNS of search domains only", conf: hooked("DNS = example.com")},
		{name: "DNS empty", conf: hooked("DNS =")},
		{name: "DNS with a prefix", conf: hooked("DNS = 10.9.0.1"), files: order},
		{name: "DNS of odd words", conf: hooked("DNS = 1.2.3, 10.9.0.1%eth0, fe80::1%eth0, 999.9.9.9, a:b")},
		{name: "DNS that resolvconf refuses", conf: hooked("DNS = 10.9.0.1"), files: map[string]string{own + "/fail": "5\n"}},
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
			`PostUp = echo "${#PRE_UP[@]} ${#POST_UP[@]} ${POST_DOWN[0]}"; INTERFACE=changed` + "\n" +
			`PostUp = echo $INTERFACE ${x-unset}; x=1` + "\n" + "PostDown = echo $INTERFACE ${ARGS[0]}\n" + lone + "10.20.0.0/16\n"},
		{name: "hooks of bash's own syntax", conf: hooked(
			`PostUp = [[ %i == +([a-z])0 ]] && echo matched; [[ $- == *e* ]] && echo errexit; set -o | { while read -r a b; do [[ $a != pipefail ]] || echo $a $b; done; }`,
			`PostUp = echo $LC_ALL; read -r a b < <(echo one two); echo "$b $a"; cat <<< here`,
			`PostUp = f() { local v=$1; echo "f $v"; }; f %i%i; echo ${0##*/}`,
			`PostUp = umask; type -P wg >/dev/null && echo has wg; ulimit -c; pwd`)},
		{name: "hooks that read standard input", conf: hooked("PreUp = read -r x; echo got $x", "PostUp = read -r x; echo got $x"), stdin: "first\nsecond\n"},
		{name: "hooks that are empty", conf: hooked("PostUp =", "PostUp", "PreUp = ", "PostUp = echo after")},
		{name: "hooks that print to standard error", conf: hooked("PostUp = echo complaint >&2", "PostUp = echo '[#] not a command' >&2")},
		{name: "PreUp sets the private key", conf: "[Interface]\nListenPort = 51820\nAddress = 10.9.0.2/24\nPreUp = wg set %i private-key /etc/wireguard/key\n" + peer + "10.20.0.0/16\n"},
		{name: "PostUp sets the private key by substitution", conf: "[Interface]\nListenPort = 51820\nAddress = 10.9.0.2/24\nPostUp = wg set %i private-key <(cat /etc/wireguard/key)\n" + peer + "10.20.0.0/16\n"},
		{name: "PreUp adds a peer", conf: hooked("PreUp = wg set %i peer " + pubD + " allowed-ips 10.44.0.0/16,10.20.0.0/16")},
		{name: "PreUp sets an address and a route", conf: hooked("PreUp = ip address add 10.8.0.1/24 dev %i; ip link set up dev %i; ip route add 10.20.0.0/15 dev %i")},
		{name: "PostUp changes what was made", conf: split + "[Interface]\nPostUp = ip route del 10.20.0.0/16 dev %i; ip address add 10.66.0.1/24 dev %i\n"},
		{name: "PostUp adds rules that PostDown deletes",
			conf: hooked("PostUp = ip rule add pref 77 lookup 77; nft add table ip own", "PostDown = ip rule del pref 77; nft delete table ip own")},
		{name: "PreUp fails", conf: hooked("PreUp = echo before; exit 3", "PreUp = echo never", "PreDown = echo never", "PostDown = echo never")},
		{name: "PreUp fails in a pipe", conf: hooked("PreUp = false | true", "PostUp = echo never")},
		{name: "PostUp fails", conf: iface + "Address = 10.9.0.2/24\nDNS = 10.9.0.1\nPostUp = echo before\nPostUp = exit 7; echo never\nPostDown = echo never\n" + peer + "0.0.0.0/0\n",
			diffs: markBack("up wg0")},
		{name: "PostUp fails by set -e", conf: hooked("PostUp = false; echo never", "PostUp = echo never")},
		{name: "PostUp is not bash", conf: hooked("PostUp = echo 'open")},
		{name: "PostUp of no such program", conf: hooked("PostUp = nosuchprogram a b")},
		{name: "PostUp is killed", conf: hooked("PostUp = kill -9 $BASHPID")},
		{name: "PreDown fails", conf: hooked("PreDown = exit 4", "PostDown = echo never"),
			steps: []string{"up wg0", "down wg0", "sh: sed -i /PreDown/d /etc/wireguard/wg0.conf", "down wg0"}},
		{name: "PostDown fails", conf: hooked("PostDown = echo first; exit 5", "PostDown = echo never"), steps: []string{"up wg0", "down wg0"}},
	}
}

// parsing is how a file is read.
func parsing() []testCase {
	odd := func(name, conf string) testCase { return testCase{name: name, conf: conf, strip: true} }
	return []testCase{
		odd("repeated sections", "[Interface]\nAddress = 10.9.0.2/24\n"+peer+"10.20.0.0/16\n[Interface]\nPrivateKey = "+keyA+"\nListenPort = 51820\nAddress = 10.9.1.2/24\nMTU = 1333\n"+
			"[interface]\nPostUp = echo again\n"),
		odd("CRLF", strings.ReplaceAll(split+"[Interface]\nPostUp = echo up %i\nMTU = 1333\n", "\n", "\r\n")),
		odd("tabs and spaces", "\t[Interface] \n\t PrivateKey\t=  "+keyA+"\t\n  ListenPort=51820\n \t Address \t = \t10.9.0.2/24 \t,  fd00:9::2/64\t \n\n \n  MTU  =1333\n[Peer]\nPublicKey="+pubB+" \nAllowedIPs\t=10.20.0.0/16 ,10.21.0.0/16\n"),
		odd("cases of letters", strings.NewReplacer("Interface", "iNTERFACE", "PrivateKey", "privatekey", "Address", "ADDRESS", "AllowedIPs", "allowedips", "Peer", "PEER").Replace(split)),
		odd("comments", "# first\n[Interface] # header ]\nPrivateKey = "+keyA+" # key\nListenPort = 51820#port\nAddress = 10.9.0.2/24 # 10.9.0.3/24\n#Address = 1.2.3.4\nMTU = 1333 # bytes\nDNS = 10.9.0.1 # lan\n"+
			"[Peer] # one\nPublicKey = "+pubC+"\n# AllowedIPs = 10.1.0.0/16\nAllowedIPs = 10.20.0.0/16 # , 10.21.0.0/16\n#"),
		odd("no final newline", strings.TrimSuffix(split, "\n")),
		odd("final backslash", hooked(`PostUp = echo a \`, `PostUp = echo b`)),
		odd("NUL bytes", strings.ReplaceAll(split, "10.20", "10\x00.20")),
		odd("an empty file", "\n"),
		odd("only the header", "[Interface]\n"),
		odd("comments only", "# nothing\n"),
		odd("addresses without masks", iface+"Address = 10.9.0.2, fd00:9::2 10.9.0.3/32\nAddress=10.9.0.4/24,,10.9.0.5/24\nAddress =\n"+lone+"10.20.0.0\n"),
		odd("an address as ip writes it short", iface+"Address = 10.9/24\n"),
		odd("keys of the interface in a peer", split+"MTU = 1333\n"),
		odd("a semicolon", split+"; comment\n"),
		odd("a BOM", "\ufeff"+split),
		odd("a non-breaking space", strings.ReplaceAll(split, "Address = ", "Address =\u00a0")),
		odd("text after the header", strings.Replace(split, "[Interface]", "[Interface] text", 1)),
		odd("a key without a value", iface+"Address\n"),
		odd("percent signs", hooked(`PostUp = echo %(MTU)s %%i %I ${x:-%i}`)),
		odd("backticks and quotes", hooked("PostUp = `echo echo` tick", `PostUp = """echo""" triple`, `PostUp = "echo" "quoted"`)),
		odd("SaveConfig false", hooked("SaveConfig = FALSE")),
		odd("a service name as port", iface+"[Peer]\nPublicKey = "+pubB+"\nEndpoint = 198.51.100.1:domain\nAllowedIPs = 10.20.0.0/16\n"),
		odd("an endpoint by name", iface+"[Peer]\nPublicKey = "+pubB+"\nEndpoint = vpn.example:51820\nAllowedIPs = 10.20.0.0/16\n[Peer]\nPublicKey = "+pubC+"\nEndpoint = vpn6.example:51821\n"),
		odd("one very long line", iface+"Address = 10.9.0.2/24\n#"+strings.Repeat(" long", 2000)+"\n"+lone+"10.20.0.0/16"+strings.Repeat(",10.20.0.0/16", 300)+"\n"),
		{name: "a random port", conf: strings.ReplaceAll(split, "ListenPort = 51820\n", ""), port: true},
		{name: "no private key", conf: "[Interface]\nListenPort = 51820\nAddress = 10.9.0.2/24\n" + lone + "10.20.0.0/16\n"},
	}
}

// bad is a bad value of every key.
func bad() []testCase {
	var list []testCase
	inInterface := func(name, line string) {
		list = append(list, testCase{name: "bad: " + name, conf: "[Interface]\nPrivateKey = " + keyA + "\n" + line + "\n" + lone + "10.20.0.0/16\n"})
	}
	inPeer := func(name, line string) {
		list = append(list, testCase{name: "bad: " + name, conf: iface + "[Peer]\nPublicKey = " + pubC + "\n" + line + "\n"})
	}
	inInterface("Address", "Address = 10.9.0.300/24")
	inInterface("Address mask", "Address = 10.9.0.2/33")
	inInterface("Address of words", "Address = home")
	inInterface("Address twice", "Address = 10.9.0.2/24, 10.9.0.2/24")
	inInterface("MTU", "MTU = many")
	inInterface("MTU negative", "MTU = -1")
	inInterface("MTU huge", "MTU = 4294967296")
	inInterface("Table", "Table = -7")
	inInterface("SaveConfig", "SaveConfig = maybe")
	inInterface("SaveConfig empty", "SaveConfig =")
	inInterface("PrivateKey", "PrivateKey = "+keyA[:40])
	inInterface("PrivateKey of words", "PrivateKey = secret")
	inInterface("ListenPort", "ListenPort = 65536")
	inInterface("ListenPort of no service", "ListenPort = nosuch")
	inInterface("FwMark", "FwMark = red")
	inInterface("FwMark too big", "FwMark = 0x100000000")
	inInterface("key", "PrivteKey = "+keyA)
	inInterface("peer's key in the interface", "AllowedIPs = 10.0.0.0/8")
	inInterface("section", "[Peers]")
	inInterface("key without a value", "FwMark")
	inPeer("PublicKey", "[Peer]\nPublicKey = "+pubB[:43]+"!")
	inPeer("PublicKey missing", "[Peer]\nAllowedIPs = 10.21.0.0/16")
	inPeer("PresharedKey", "PresharedKey = "+keyPSK[:43])
	inPeer("AllowedIPs", "AllowedIPs = 10.20.0.0/33")
	inPeer("AllowedIPs of words", "AllowedIPs = home")
	inPeer("AllowedIPs v6", "AllowedIPs = fd00::1::2/64")
	inPeer("Endpoint without a port", "Endpoint = 198.51.100.1")
	inPeer("Endpoint of a bad port", "Endpoint = 198.51.100.1:65536")
	inPeer("Endpoint brackets", "Endpoint = [2001:db8::1:51820")
	inPeer("Endpoint empty", "Endpoint =")
	inPeer("PersistentKeepalive", "PersistentKeepalive = 65536")
	inPeer("PersistentKeepalive of words", "PersistentKeepalive = often")
	inPeer("interface's key in the peer", "ListenPort = 5")
	return list
}

// failing is what the system refuses.
func failing() []testCase {
	return []testCase{
		{name: "fails: the route exists", conf: split, before: "ip route add 10.20.0.0/16 via 192.0.2.1 dev eth0"},
		{name: "fails: the IPv6 route exists", conf: iface + "Address = 10.9.0.2/24\n" + peer + "fd00:20::/64, 10.20.0.0/16\n",
			before: "ip -6 route add fd00:20::/64 dev eth0 metric 1024"},
		{name: "fails: the rule exists", conf: iface + "Address = 10.9.0.2/24\n" + peer + "0.0.0.0/0\n",
			before: "ip rule add pref 100 not fwmark 51820 table 51820", diffs: nil},
		{name: "fails: the port is taken", conf: split, before: "ip link add other type wireguard; wg set other listen-port 51820; ip link set other up"},
		{name: "fails: the interface exists", conf: split, before: "ip link add wg0 type wireguard"},
		{name: "fails: another link has the name", conf: split, before: "ip link add wg0 type dummy"},
		{name: "fails: an endpoint of no such name", conf: iface + "[Peer]\nPublicKey = " + pubB + "\nEndpoint = nosuch.example:51820\nAllowedIPs = 10.20.0.0/16\n",
			env: []string{"WG_ENDPOINT_RESOLUTION_RETRIES=1"}},
		{name: "fails: retries of no number", conf: split, env: []string{"WG_ENDPOINT_RESOLUTION_RETRIES=often"}},
		{name: "fails: an address that IPv6 refuses", conf: iface + "Address = ff02::1/64\n"},
		{name: "fails: the address of another link", conf: iface + "Address = 192.0.2.2/24\n" + lone + "10.20.0.0/16\n"},
		{name: "fails: a full tunnel whose Table main has a default", conf: iface + "Table = main\n" + peer + "10.20.0.0/16, 0.0.0.0/0\n"},
	}
}

// commands is how the program is called.
func commands() []testCase {
	long := "abcdefghijklmno"
	list := []testCase{
		{name: "a path", conf: "", files: map[string]string{"/etc/elsewhere/office.conf": split}, steps: []string{"up /etc/elsewhere/office.conf", "down /etc/elsewhere/office.conf"}},
		{name: "a symlink", files: map[string]string{"/etc/wireguard/office.conf": hooked("PostUp = echo $CONFIG_FILE %i"), "/etc/wireguard/wg0.conf": "-> office.conf"},
			steps: []string{"strip wg0", "up wg0", "down wg0"}},
		{name: "a symlink to another folder", files: map[string]string{"/etc/elsewhere/any name": hooked("PostUp = echo $CONFIG_FILE %i"), "/etc/wireguard/wg0.conf": "-> ../elsewhere/any name"},
			steps: []string{"strip wg0", "up wg0", "down wg0"}},
		{name: "a name of 15 letters", files: map[string]string{"/etc/wireguard/" + long + ".conf": split}, steps: []string{"up " + long, "down " + long}},
		{name: "a name with signs", files: map[string]string{"/etc/wireguard/a.b=c+d_e-f.conf": split}, steps: []string{"up a.b=c+d_e-f", "down a.b=c+d_e-f"}},
		{name: "bad names", files: map[string]string{"/etc/wireguard/" + long + "p.conf": split, "/etc/wireguard/wg0": split, "/etc/wireguard/a b.conf": split},
			steps: []string{"up /etc/wireguard/" + long + "p.conf", "up " + long + "p", "strip /etc/wireguard/wg0", "up nosuch", "strip nosuch", "save nosuch", "up /etc/wireguard/nosuch.conf", "strip /etc/wireguard"}},
		{name: "not up", conf: hooked("PreDown = echo never"), steps: []string{"down wg0", "save wg0"}},
		{name: "up twice", conf: hooked("PreUp = echo once", "PostDown = echo down"), steps: []string{"up wg0", "up wg0", "down wg0", "down wg0"}},
		{name: "not a WireGuard interface", conf: split, before: "ip link add wg0 type dummy", steps: []string{"up wg0", "down wg0", "save wg0"}},
		{name: "world accessible", files: map[string]string{"/etc/elsewhere/wg0.conf": "mode 644 " + split, "/etc/wireguard/wg0.conf": "mode 644 " + split, "/etc/elsewhere/wg1.conf": "mode 640 " + split},
			steps: []string{"strip /etc/elsewhere/wg0.conf", "strip wg0", "strip /etc/elsewhere/wg1.conf", "up /etc/elsewhere/wg0.conf", "down /etc/elsewhere/wg0.conf"}},
		{name: "a folder instead of a file", before: "mkdir /etc/wireguard/wg0.conf", steps: []string{"strip wg0"}},
	}
	return list
}

func saving() []testCase {
	conf := iface + "Address = 10.9.0.2/24, fd00:9::2/64\nMTU = 1333\nTable = 1234\nSaveConfig = true\nDNS = 10.9.0.1\nPostUp = echo up \"%i\"\nPreUp = echo pre\nPreDown = echo predown\nPostDown = echo postdown\n" +
		peer + "10.20.0.0/16, fd00:20::/64\nPersistentKeepalive = 25\n"
	return []testCase{
		{name: "SaveConfig", conf: conf},
		{name: "SaveConfig of a changed interface", conf: conf, steps: []string{"up wg0",
			"sh: wg set wg0 peer " + pubC + " allowed-ips 10.40.0.0/16,0.0.0.0/0 endpoint 198.51.100.9:7; wg set wg0 peer " + pubB + " remove; wg set wg0 listen-port 7777 fwmark 0x77; ip addr add 10.66.0.1/24 dev wg0; ip link set wg0 mtu 1222",
			"down wg0"}},
		{name: "save", conf: hooked("DNS = 10.9.0.1, 10.9.0.3"), steps: []string{"up wg0", "sh: ip addr add 10.66.0.1/24 dev wg0", "save wg0", "strip wg0", "down wg0", "up wg0", "down wg0"}},
		{name: "save without addresses", conf: iface + "FwMark = 0x99\n", steps: []string{"up wg0", "save wg0", "down wg0"}},
		{name: "save with a prefix", conf: hooked("DNS = 10.9.0.1"), files: map[string]string{"/etc/resolvconf/interface-order": "mode 644 tun*\n"}, steps: []string{"up wg0", "save wg0", "down wg0"}},
		{name: "save through a symlink", files: map[string]string{"/etc/wireguard/office.conf": hooked(), "/etc/wireguard/wg0.conf": "-> office.conf"}, steps: []string{"up wg0", "save wg0", "down wg0"}},
		{name: "save of a world accessible file", files: map[string]string{"/etc/elsewhere/wg0.conf": "mode 644 " + hooked()},
			steps: []string{"up /etc/elsewhere/wg0.conf", "save /etc/elsewhere/wg0.conf", "sh: stat -c %a /etc/elsewhere/*; cat /etc/elsewhere/*", "down /etc/elsewhere/wg0.conf"}},
		{name: "save with search domains", conf: hooked("DNS = 10.9.0.1, example.com"), steps: []string{"up wg0", "save wg0", "down wg0"}},
		{name: "save with comments", conf: "# mine\n" + hooked("PostUp = true # kept") + "# end\n", steps: []string{"up wg0", "save wg0", "down wg0"}},
	}
}

// several is more than one tunnel.
func several() []testCase {
	second := strings.NewReplacer("51820", "51821", "10.9.0", "10.8.0").Replace
	full := iface + "Address = 10.9.0.2/24\n" + peer + "0.0.0.0/0\n"
	return []testCase{
		{name: "two split tunnels", conf: split, files: map[string]string{"/etc/wireguard/wg1.conf": "[Interface]\nListenPort = 5\nAddress = 10.8.0.2/24\n" + lone + "10.21.0.0/16\n"},
			steps: []string{"up wg0", "up wg1", "down wg0", "down wg1"}},
		{name: "a split tunnel in a full one", conf: full, files: map[string]string{"/etc/wireguard/wg1.conf": "[Interface]\nListenPort = 5\nAddress = 10.8.0.2/24\n" + lone + "10.21.0.0/16\n"},
			steps: []string{"up wg0", "up wg1", "down wg1", "down wg0"}},
		{name: "two full tunnels", conf: full, files: map[string]string{"/etc/wireguard/wg1.conf": second(full)},
			steps: []string{"up wg0", "up wg1", "down wg1", "down wg0"}},
		{name: "two tunnels of the same routes", conf: split, files: map[string]string{"/etc/wireguard/wg1.conf": second(split)}, steps: []string{"up wg0", "up wg1", "down wg1", "down wg0"}},
	}
}

// decided is what the decided differences are about.
func decided() []testCase {
	full := iface + "Address = 10.9.0.2/24\nDNS = 10.9.0.1\nPreDown = echo predown\nPostDown = echo postdown\n" + peer + "0.0.0.0/0\n"
	list := []testCase{
		{name: "decided: another's suppress rule stays", before: "ip rule add pref 500 table main suppress_prefixlength 0", conf: full},
		{name: "decided: the interface was deleted", conf: full, steps: []string{"up wg0", "sh: ip link del wg0", "down wg0"}},
		{name: "decided: the config changed", conf: full, steps: []string{"up wg0", "sh: sed -i '/^DNS/d; s/0.0.0.0.0/10.0.0.0\\/8/' /etc/wireguard/wg0.conf", "down wg0"}},
		{name: "decided: the config vanished", conf: full, steps: []string{"up wg0", "sh: rm /etc/wireguard/wg0.conf", "down wg0"}},
		{name: "decided: the config is broken", conf: full, steps: []string{"up wg0", "sh: echo nonsense >>/etc/wireguard/wg0.conf", "down wg0"}},
		{name: "decided: the endpoint in AllowedIPs", conf: iface + "Address = 10.9.0.2/24\n" + peer + "198.51.100.0/24\n"},
		{name: "decided: half the world", conf: iface + "Address = 10.9.0.2/24\n" + peer + "0.0.0.0/1, 128.0.0.0/1\n"},
		{name: "decided: the endpoint in the tunnel's subnet", conf: iface + "Address = 198.51.100.2/24\n" + peer + "10.20.0.0/16\n"},
	}
	for _, name := range []string{"-x", "all", "default", ".", ".."} {
		path := fmt.Sprintf("/etc/wireguard/%s.conf", name)
		list = append(list, testCase{name: "decided: the name " + name, files: map[string]string{path: "[Interface]\n"}, steps: []string{"up " + name}})
	}
	return list
}
