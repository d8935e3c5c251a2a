//go:build systemd

package systemd

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"wg-quickns/test/bed"
	"wg-quickns/test/ns"
	"wg-quickns/test/programs"
)

const (
	examples = "../../examples/namespaces"
	page     = "from far away"
)

// TestMain makes the machine ready once: the package installed, the examples in their
// places, a way out by eth0, and behind it the tunnels' server, which has the
// only name server and the only web page.
func TestMain(m *testing.M) {
	if _, err := os.Stat("/run/systemd/system"); err != nil || os.Getenv("WG_TEST_KERNEL") == "" {
		fmt.Fprintln(os.Stderr, "FAIL: this is for a machine of its own with systemd: test/run systemd")
		os.Exit(1)
	}
	packages, err := programs.Packages()
	if err == nil {
		script := exec.Command("bash", "-euc", machine, "machine", packages[0], examples, page)
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
dpkg -i "$1" >/run/dpkg.log 2>&1 || { cat /run/dpkg.log; exit 1; }
install -m 600 "$2"/*.conf /etc/wireguard
cp -r "$2"/confined.service.d /etc/systemd/system
printf '[Service]\nExecStart=/usr/bin/sleep infinity\n' >/etc/systemd/system/confined.service
systemctl daemon-reload
echo 192.0.2.10 vpn.example.com >>/etc/hosts
rm -f /etc/resolv.conf && echo nameserver 192.0.2.1 >/etc/resolv.conf

ip netns add far
ip link add eth0 type veth peer name eth0 netns far
udevadm settle # which gives it another address
sysctl -qw net.ipv6.conf.eth0.accept_dad=0
ip addr add 192.0.2.2/24 dev eth0
ip link set eth0 up
ip route add default via 192.0.2.1
ip -n far link set lo up
ip -n far addr add 192.0.2.1/24 dev eth0
ip -n far addr add 192.0.2.10/24 dev eth0
ip -n far link set eth0 up
cat >/etc/wireguard/server.conf <<END
[Interface]
PrivateKey = KEY+OF+EXAMPLE/never+use/server/00000000000=
ListenPort = 51820
Address = 10.8.0.1/24, 203.0.113.7/32
Namespace = far
BirthNamespace = far
[Peer]
PublicKey = OOIZpO5Vqc73QSN0czga5ePrK+RCs1AfTpZe5sk2bEg=
AllowedIPs = 10.8.0.2/32, 192.168.4.33/32
END
chmod 600 /etc/wireguard/server.conf
wg-quickns up server
mkdir /run/page && echo "$3" >/run/page/index.html
ip netns exec far busybox httpd -p 203.0.113.7:80 -h /run/page
ip netns exec far dnsmasq -C /dev/null -R -h -2 eth0 -z -a 10.8.0.1 --pid-file=/run/far-dns.pid --address=/far.example/203.0.113.7
ip link show eth0 | grep -q LOWER_UP

# an image and a root file system of busybox alone
mkdir -p /etc/docker /etc/containers /run/root/{bin,etc,proc,sys,dev,run,tmp,usr,var}
cp "$(command -v busybox)" /run/root/bin
echo 'NAME=busybox' >/run/root/etc/os-release
`

// state is all of this machine that a tunnel may change, as text.
func state(t *testing.T) string {
	t.Helper()
	return ns.Run(t, "bash", "-ec", `
		printf '%s\n' rule 'route show table all' | ip -4 -batch -
		printf '%s\n' rule 'route show table all' address | ip -6 -batch -
		ip address
		nft list ruleset
		mkdir -p /etc/netns
		ls -lR --time-style=+ /run/netns /etc/netns /etc/resolv.conf /run/wg-quickns
		grep -rs '' /etc/netns /etc/resolv.conf /proc/sys/net/ipv4/conf/all/src_valid_mark`)
}

// within is what a tunnel may change of where enter leads to.
func within(t *testing.T, enter []string) string {
	t.Helper()
	return run(t, enter, "sh", "-c", "busybox ip rule; busybox ip route show table all; busybox ip addr; busybox stat -c '%A %u %g %n' /etc/*; busybox cat /etc/resolv.conf 2>&1 || busybox true")
}

// run runs a program of busybox where enter leads to.
func run(t *testing.T, enter []string, argv ...string) string {
	t.Helper()
	return ns.Run(t, append(append(enter[:len(enter):len(enter)], "/bin/busybox"), argv...)...)
}

// up brings a tunnel up, which does what plan said.
func up(t *testing.T, name string) {
	t.Helper()
	planned := bed.Planned(ns.Run(t, "wg-quickns", "plan", "up", name))
	r := ns.Try(exec.Command("wg-quickns", "up", name))
	if r.Code != 0 {
		t.Fatalf("up: %+v", r)
	}
	if did := bed.Traced(r.Stderr); !slices.Equal(did, planned) {
		t.Errorf("up did\n%s\nand not as planned\n%s", strings.Join(did, "\n"), strings.Join(planned, "\n"))
	}
}

func down(t *testing.T, name string) {
	t.Helper()
	ns.Run(t, "wg-quickns", "down", name)
}

// refused is an up that fails, says why, and does nothing.
func refused(t *testing.T, name, why string) {
	t.Helper()
	before := state(t)
	r := ns.Try(exec.Command("wg-quickns", "up", name))
	if r.Code != 1 || !strings.Contains(r.Stderr, name+".conf:") || !strings.Contains(r.Stderr, why) || strings.Contains(r.Stderr, "[#]") {
		t.Errorf("want an error with %q: exit status %d\n%s", why, r.Code, r.Stderr)
	}
	same(t, before, state(t))
}

func same(t *testing.T, before, after string) {
	t.Helper()
	if before != after {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// becomes is same once the kernel has taken a namespace apart.
func becomes(t *testing.T, before string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); state(t) != before && time.Now().Before(end); {
		time.Sleep(100 * time.Millisecond)
	}
	same(t, before, state(t))
}

// tunnelled uses an example's tunnel from where enter leads to, which has nothing
// else: its name server and the web page are reached, and nothing but encrypted
// packets leaves this machine.
func tunnelled(t *testing.T, name string, enter []string) {
	t.Helper()
	if links := run(t, enter, "ip", "-o", "link"); strings.Count(links, ",UP") != 2 || !strings.Contains(links, " lo: <LOOPBACK,UP") || !strings.Contains(links, " "+name+": <POINTOPOINT") {
		t.Errorf("links: %s", links)
	}
	if got := strings.TrimSpace(run(t, enter, "ip", "route")); got != "default dev "+name+" scope link" {
		t.Errorf("routes: %s", got)
	}
	seen := capture(t, func() {
		if got := run(t, enter, "wget", "-qO-", "http://203.0.113.7/"); got != page+"\n" {
			t.Errorf("the page is %q", got)
		}
		if got := run(t, enter, "nslookup", "-type=a", "far.example", "10.8.0.1"); !strings.Contains(got, "203.0.113.7") {
			t.Errorf("the name server says %q", got)
		}
		// to the name server of this machine, by the tunnel too
		ns.Try(exec.Command(enter[0], append(enter[1:], "/bin/busybox", "nslookup", "leak.example", "192.0.2.1")...))
	})
	encrypted := 0
	for _, line := range seen {
		if strings.Contains(line, "192.0.2.10.51820") {
			encrypted++
		} else {
			t.Errorf("on the wire: %s", line)
		}
	}
	if encrypted < 5 {
		t.Errorf("%d encrypted packets", encrypted)
	}
}

// resolves says whether where enter leads to asks the tunnel's name server.
func resolves(t *testing.T, enter []string) {
	t.Helper()
	if got := run(t, enter, "cat", "/etc/resolv.conf"); got != "nameserver 10.8.0.1\n" {
		t.Errorf("resolv.conf: %q", got)
	}
}

// capture gives the IP packets that leave by eth0 while f runs, without neighbour and
// multicast listener discovery. It proves first that it sees what is sent.
func capture(t *testing.T, f func()) []string {
	t.Helper()
	c := exec.Command("tcpdump", "-nn", "-l", "-i", "eth0", "-Q", "out", "--immediate-mode", "ip or (ip6 and not icmp6 and ip6[6] != 0)")
	var out strings.Builder
	c.Stdout = &out
	stderr, err := c.StderrPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(stderr); !strings.Contains(lines.Text(), "listening on"); {
		if !lines.Scan() {
			t.Fatal("tcpdump ended")
		}
	}
	mark := func(port int) { ns.Run(t, "bash", "-c", fmt.Sprintf("echo mark >/dev/udp/192.0.2.1/%d", port)) }
	mark(4001)
	f()
	mark(4002)
	time.Sleep(300 * time.Millisecond)
	c.Process.Signal(syscall.SIGINT)
	c.Wait()
	var seen []string
	marks := 0
	for line := range strings.Lines(out.String()) {
		switch line = strings.TrimSpace(line); {
		case strings.Contains(line, "> 192.0.2.1.400"):
			marks++
		case strings.Contains(line, "ICMP 192.0.2.2 udp port"): // the answer to a packet for a tunnel that was
		case line != "":
			seen = append(seen, line)
		}
	}
	if marks != 2 {
		t.Errorf("the capture missed what it should see:\n%s", out.String())
	}
	return seen
}

// inside leads into the namespaces, and to the root, of a process.
func inside(pid int) []string {
	return []string{"nsenter", "--target", strconv.Itoa(pid), "--net", "--mount", "--root"}
}

// put writes an example's tunnel under another name, for another namespace and
// without DNS.
func put(t *testing.T, name, namespace string) {
	t.Helper()
	text, err := os.ReadFile(examples + "/docker.conf")
	if err != nil {
		t.Fatal(err)
	}
	new := strings.NewReplacer("docker:web", namespace, "DNS = 10.8.0.1\n", "").Replace(string(text))
	if err := os.WriteFile("/etc/wireguard/"+name+".conf", []byte(new), 0o600); err != nil {
		t.Fatal(err)
	}
}
