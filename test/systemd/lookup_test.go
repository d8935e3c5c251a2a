//go:build systemd

package systemd

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"wg-quickns/test/ns"
	"wg-quickns/test/programs"
)

const (
	outside = "198.51.100.66" // what the machine's name server answers
	tunnels = "203.0.113.7"   // what the tunnel's does
)

// resolvers starts nscd and systemd-resolved, with a name server by eth0, and has
// both keep "known.far.example".
func resolvers(t *testing.T) {
	t.Helper()
	ns.Run(t, "bash", "-euc", `
ip netns exec far dnsmasq -C /dev/null -R -h -2 eth0 -z -a 192.0.2.1 --local-ttl=600 --pid-file=/run/outside-dns.pid --address=/far.example/`+outside+`
cp -P /etc/resolv.conf /run/resolv.conf.was
cp /etc/nsswitch.conf /run/nsswitch.conf.was
printf '[Resolve]\nDNS=192.0.2.1\nLLMNR=no\nMulticastDNS=no\n' >/run/lab-resolved.conf
mkdir -p /run/systemd/resolved.conf.d && mv /run/lab-resolved.conf /run/systemd/resolved.conf.d
sed -i 's/^hosts:.*/hosts: files dns/' /etc/nsswitch.conf
systemctl restart systemd-resolved nscd
ln -sfn ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
nscd --invalidate=hosts`)
	t.Cleanup(func() {
		ns.Run(t, "bash", "-euc", `systemctl stop nscd systemd-resolved; kill "$(cat /run/outside-dns.pid)"
rm /run/systemd/resolved.conf.d/lab-resolved.conf; cp /run/nsswitch.conf.was /etc/nsswitch.conf; rm -f /etc/resolv.conf; cp -P /run/resolv.conf.was /etc/resolv.conf`)
	})
	for _, argv := range [][]string{{"getent", "hosts"}, {"getent", "ahosts"}, {"resolvectl", "query"}} {
		if got := ns.Run(t, append(argv, "known.far.example")...); !strings.Contains(got, outside) {
			t.Fatalf("%q outside: %s", argv, got)
		}
	}
}

// questions counts what this machine's own namespace sent to port 53 of anywhere,
// lo too, since the last time.
func questions(t *testing.T) (packets int) {
	t.Helper()
	out := ns.Run(t, "nft", "reset", "counter", "inet", "lookups", "questions")
	_, after, _ := strings.Cut(out, "packets ")
	if _, err := fmt.Sscan(after, &packets); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return packets
}

// TestLookup: whatever resolves names on the machine, whichever way a program asks,
// and while the machine's resolv.conf is replaced all the time, a name inside is
// looked up by the tunnel's name server alone.
func TestLookup(t *testing.T) {
	resolvers(t)
	up(t, "program")
	defer down(t, "program")
	inside := func(argv ...string) ns.Result {
		return ns.Try(exec.Command("wg-quickns", append([]string{"exec", "--user", "nobody", "program", "--"}, argv...)...))
	}
	stop, stopped := make(chan bool), make(chan bool)
	go func() {
		defer close(stopped)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			// a file and a link in turn, as a DHCP client and systemd-resolved do
			if n%2 == 0 {
				os.WriteFile("/etc/resolv.conf.new", []byte("nameserver 192.0.2.1\n"), 0o644)
			} else {
				os.Symlink("../run/systemd/resolve/stub-resolv.conf", "/etc/resolv.conf.new")
			}
			if err := os.Rename("/etc/resolv.conf.new", "/etc/resolv.conf"); err != nil {
				t.Error(err)
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	ns.Run(t, "nft", `table inet lookups {
		counter questions { }
		chain out { type filter hook output priority 0; meta l4proto { tcp, udp } th dport 53 counter name questions; }; }`)
	defer ns.Run(t, "nft", "delete", "table", "inet", "lookups")
	ns.Run(t, "getent", "hosts", "counted.far.example")
	if questions(t) == 0 {
		t.Fatal("the counter does not see a lookup of the machine's own")
	}
	lookups := 0
	for i, source := range []string{"files dns", "resolve [!UNAVAIL=return] files dns", "files resolve dns"} {
		ns.Run(t, "sed", "-i", "s/^hosts:.*/hosts: "+source+"/", "/etc/nsswitch.conf")
		for _, database := range []string{"hosts", "ahosts"} {
			for _, name := range []string{"known.far.example", fmt.Sprintf("%s-%d.far.example", database, i)} {
				r := inside("getent", database, name)
				if !strings.HasPrefix(r.Stdout, tunnels+" ") || strings.Contains(r.Stdout, outside) {
					t.Errorf("%s, getent %s %s: %+v", source, database, name, r)
				}
				lookups++
			}
		}
	}
	// one program that asks again and again
	ns.Run(t, "sed", "-i", "s/^hosts:.*/hosts: files dns/", "/etc/nsswitch.conf")
	r := inside("sh", "-c", `for n in $(seq 20); do getent ahostsv4 "many-$n.far.example" || echo none; done`)
	if got := strings.Count(r.Stdout, tunnels+" "); got < 20 || strings.Contains(r.Stdout, outside) || strings.Contains(r.Stdout, "none") {
		t.Errorf("many: %+v", r)
	}
	lookups += 20
	for _, argv := range [][]string{
		{"resolvectl", "query", "known.far.example"},
		{"resolvectl", "query", "never.far.example"},
		{"busctl", "call", "org.freedesktop.resolve1", "/org/freedesktop/resolve1", "org.freedesktop.resolve1.Manager", "ResolveHostname", "isit", "0", "known.far.example", "2", "0"},
	} {
		if r := inside(argv...); r.Code == 0 || strings.Contains(r.Stdout+r.Stderr, outside) {
			t.Errorf("%q: %+v", argv, r)
		}
	}
	for _, socket := range []string{"/run/nscd/socket", "/var/run/nscd/socket", "/run/systemd/resolve/io.systemd.Resolve", "/run/dbus/system_bus_socket"} {
		if _, err := os.Stat(socket); err != nil {
			t.Error(err)
		}
		if r := inside("test", "-e", socket); r.Code == 0 {
			t.Errorf("%s is there", socket)
		}
	}
	close(stop)
	<-stopped
	leaked := questions(t)
	if leaked > 0 {
		t.Errorf("%d packets to name servers outside", leaked)
	}
	t.Logf("%d lookups inside, %d packets to port 53 outside", lookups, leaked)
	// and nothing of it is known outside
	if got := ns.Run(t, "getent", "ahostsv4", "known.far.example"); !strings.HasPrefix(got, outside) {
		t.Errorf("outside then: %s", got)
	}
}

// TestLookupAfterRestart: resolvers of the machine that start again do not come
// back into a namespace that a program is in already.
func TestLookupAfterRestart(t *testing.T) {
	resolvers(t)
	up(t, "program")
	defer down(t, "program")
	c := exec.Command("wg-quickns", "exec", "program", "--", "sh", "-c", `read x; getent hosts again.far.example; getent hosts known.far.example; resolvectl query known.far.example 2>&1`)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	c.Stdout = &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	ns.Run(t, "systemctl", "restart", "nscd", "systemd-resolved")
	ns.Run(t, "getent", "hosts", "known.far.example")
	in.Close()
	c.Wait()
	if got := out.String(); strings.Count(got, tunnels+" ") != 2 || strings.Contains(got, outside) {
		t.Errorf("got %s", got)
	}
}

const aloneConf = "/etc/wireguard/alone.conf"

// alone is a tunnel of the machine's own namespace, on a machine with
// systemd-resolved and without its resolvconf.
func alone(t *testing.T, keys string) {
	t.Helper()
	resolvers(t)
	ns.Run(t, "mv", "/usr/sbin/resolvconf", "/usr/sbin/resolvconf.away")
	t.Cleanup(func() { ns.Run(t, "mv", "/usr/sbin/resolvconf.away", "/usr/sbin/resolvconf") })
	example, err := os.ReadFile(examples + "/program.conf")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("Namespace = program\n", "", "DNS = 10.8.0.1", "DNS = 10.8.0.1, corp.example\n"+keys, "0.0.0.0/0", "10.8.0.0/24").Replace(string(example))
	if err := os.WriteFile(aloneConf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// links is all that systemd-resolved has.
func links(t *testing.T) string {
	t.Helper()
	return ns.Run(t, "sh", "-c", "resolvectl dns; resolvectl domain; ls /run/systemd/resolve/netif 2>/dev/null || true")
}

// TestResolvedAlone: DNS= of a tunnel of the machine's own namespace goes to
// systemd-resolved where there is no resolvconf, and comes back.
func TestResolvedAlone(t *testing.T) {
	alone(t, "SaveConfig = true")
	resolves := func(name, want string) {
		t.Helper()
		if got := ns.Run(t, "resolvectl", "query", "--legend=no", name+".far.example"); !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	before := links(t)
	if plan := ns.Run(t, "wg-quickns", "plan", "up", "alone"); !strings.Contains(plan, "resolvectl domain alone corp.example ~.") || !strings.Contains(plan, "resolvectl revert alone") {
		t.Errorf("plan: %s", plan)
	}
	r := ns.Try(exec.Command("wg-quickns", "up", "alone"))
	if r.Code != 0 || !strings.Contains(r.Stderr, "\n[#] resolvectl dns alone 10.8.0.1\n[#] resolvectl domain alone corp.example ~.\n") {
		t.Fatalf("up: %+v", r)
	}
	resolves("first", tunnels)
	if got := links(t); !strings.Contains(got, "(alone): 10.8.0.1\n") || !strings.Contains(got, "(alone): corp.example ~.\n") {
		t.Errorf("links: %s", got)
	}
	ns.Run(t, "resolvectl", "dns", "alone", "10.8.0.1", "10.8.0.9") // changed meanwhile: save has that
	r = ns.Try(exec.Command("wg-quickns", "down", "alone"))
	if r.Code != 0 || !strings.Contains(r.Stderr, "[#] resolvectl revert alone\n[#] ip link delete dev alone\n") {
		t.Errorf("down: %+v", r)
	}
	if saved, err := os.ReadFile(aloneConf); err != nil || !strings.Contains(string(saved), "\nDNS = 10.8.0.1\nDNS = 10.8.0.9\nDNS = corp.example\n") {
		t.Errorf("saved: %s, %v", saved, err)
	}
	resolves("second", outside)
	if after := links(t); after != before {
		t.Errorf("systemd-resolved before:\n%s\nafter:\n%s", before, after)
	}

	// an up that fails takes it back; so does a down after systemd-resolved stopped, or the link went
	ns.Run(t, "sed", "-i", "s/^SaveConfig.*/PostUp = exit 7/", aloneConf)
	if r := ns.Try(exec.Command("wg-quickns", "up", "alone")); r.Code != 7 || !strings.Contains(r.Stderr, "resolvectl revert alone\n") {
		t.Errorf("up with a hook that fails: %+v", r)
	}
	ns.Run(t, "sed", "-i", "/^PostUp/d", aloneConf)
	for _, meanwhile := range []string{"systemctl stop systemd-resolved", "ip link delete alone", "systemctl restart systemd-resolved"} {
		up(t, "alone")
		ns.Run(t, "sh", "-c", meanwhile)
		down(t, "alone")
		ns.Run(t, "systemctl", "start", "systemd-resolved")
		if after := links(t); after != before {
			t.Errorf("after %s: systemd-resolved before:\n%s\nafter:\n%s", meanwhile, before, after)
		}
	}
	up(t, "alone") // and one whose record is lost
	ns.Run(t, "rm", "-r", "/run/wg-quickns/alone")
	down(t, "alone")
	if after := links(t); after != before {
		t.Errorf("without a record: systemd-resolved before:\n%s\nafter:\n%s", before, after)
	}
	// with neither it is as ever
	ns.Run(t, "systemctl", "stop", "systemd-resolved")
	was := state(t)
	if r := ns.Try(exec.Command("wg-quickns", "up", "alone")); r.Code != 127 || !strings.Contains(r.Stderr, "resolvconf: command not found") {
		t.Errorf("with neither: %+v", r)
	}
	same(t, was, state(t))
}

// TestResolvedKilled kills up and down around the step that tells systemd-resolved,
// or has it fail; a down then leaves nothing.
func TestResolvedKilled(t *testing.T) {
	alone(t, "")
	faults, err := programs.Faults()
	if err != nil {
		t.Fatal(err)
	}
	fault := func(mode, command string) ns.Result {
		c := exec.Command(faults, command, "alone")
		c.Env = append(os.Environ(), "WG_QUICKNS_FAULT="+mode, "WG_QUICKNS_FAULT_LOG=/run/faults")
		return ns.Try(c)
	}
	before := links(t)
	at := map[string]string{} // the step's number in each command
	for _, command := range []string{"up", "down"} {
		os.Remove("/run/faults")
		if r := fault("count", command); r.Code != 0 {
			t.Fatalf("%s: %+v", command, r)
		}
		steps, err := os.ReadFile("/run/faults")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(steps)) {
			if number, what, _ := strings.Cut(line, " "); strings.HasPrefix(what, "dns ") {
				at[command] = number
			}
		}
	}
	for _, c := range []struct{ command, mode string }{
		{"up", "kill-before"}, {"up", "kill-after"}, {"up", "fail"}, {"up", "lie"}, {"up", "term-after"},
		{"down", "kill-before"}, {"down", "kill-after"}, {"down", "fail"},
	} {
		if c.command == "down" {
			up(t, "alone")
		}
		if r := fault(c.mode+":"+at[c.command], c.command); r.Code == 0 {
			t.Errorf("%s, %s at step %q: exit 0", c.command, c.mode, at[c.command])
		}
		ns.Try(exec.Command("wg-quickns", "down", "alone")) // where up has undone everything there is nothing
		if after := links(t); after != before {
			t.Errorf("%s, %s: systemd-resolved before:\n%s\nafter:\n%s", c.command, c.mode, before, after)
		}
		if left, _ := os.ReadDir("/run/wg-quickns/alone"); len(left) > 1 { // the lock
			t.Errorf("%s, %s: left %v", c.command, c.mode, left)
		}
	}
}

// TestSudo: a user who may use sudo calls exec: all that the command has is the
// user's own, and sudo works in it.
func TestSudo(t *testing.T) {
	ns.Run(t, "bash", "-euc", `
groupadd -g 4300 extra
groupadd -g 4301 later
useradd -m -u 4242 -s /bin/bash -G extra lab
echo 'lab ALL=(ALL:ALL) NOPASSWD: ALL' >/etc/sudoers.d/lab`)
	up(t, "program")
	defer down(t, "program")
	const probe = `grep -E "^(Uid|Gid|Groups|Cap...|NoNewPrivs|SigBlk|SigIgn):" /proc/self/status; ulimit -n; ls /proc/self/fd; pwd; env | grep -E "^(HOME|USER|LOGNAME|KEPT)=" | sort`
	// a process of the user's, which is not yet in the group "later"
	user := func(command string) ns.Result {
		return ns.Try(exec.Command("setpriv", "--reuid=4242", "--regid=4242", "--groups=4242,4300", "env", "-i", "PATH="+os.Getenv("PATH"), "HOME=/home/lab", "USER=lab", "LOGNAME=lab",
			"KEPT=yes", "PROBE="+probe, "bash", "-c", "cd /home/lab; "+command+"; exit $?"))
	}
	ns.Run(t, "usermod", "-aG", "later", "lab")
	own := user(`sh -c "$PROBE"`)
	if own.Code != 0 || !strings.Contains(own.Stdout, "Groups:\t4242 4300 \n") || !strings.Contains(own.Stdout, "KEPT=yes") {
		t.Fatalf("the user's own: %+v", own)
	}
	if got := user(`wg-quickns exec program -- sh -c "$PROBE"`); got.Code != 0 || got.Stdout != own.Stdout {
		t.Errorf("by itself: %+v\nwant %s", got, own.Stdout)
	}
	if got := user(`sudo KEPT=yes wg-quickns exec program -- sh -c "$PROBE"`); got.Code != 0 || got.Stdout != own.Stdout {
		t.Errorf("by sudo: %+v\nwant %s", got, own.Stdout)
	}
	if got := user(`wg-quickns exec program -- sudo sh -c 'id -u; grep CapEff /proc/self/status; ls -d /sys/class/net/program'`); got.Stdout != ns.Run(t, "sh", "-c", "echo 0; grep CapEff /proc/self/status")+"/sys/class/net/program\n" {
		t.Errorf("sudo inside: %+v", got)
	}
	if got := user(`wg-quickns exec program -- sh -c 'exit 7'`); got.Code != 7 {
		t.Errorf("status: %+v", got)
	}
	// files that were left open without close-on-exec, and a signal that ends the command
	if got := user(`exec 5</dev/null 6</dev/null; wg-quickns exec program -- sh -c 'ls /proc/self/fd; kill -TERM $$'`); got.Code != 128+15 || got.Stdout != "0\n1\n2\n3\n" {
		t.Errorf("signal: %+v", got)
	}
	if got := user(`wg-quickns exec --birth program -- ls /sys/class/net`); got.Code != 0 || !strings.Contains(got.Stdout, "eth0") {
		t.Errorf("--birth: %+v", got)
	}
}
