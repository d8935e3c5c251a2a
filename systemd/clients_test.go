package systemd_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/facts"
	"wg-quickns/internal/plan"
	"wg-quickns/systemd"
	"wg-quickns/test/ns"
)

func TestMain(m *testing.M) { ns.Main(m) }

const (
	views  = "/run/wg-quickns/@views.physical"
	resolv = "/etc/netns/physical/resolv.conf"
	server = "192.0.2.53"
)

// eventually waits for something to be so.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so: %s\n%s", what, ns.Run(t, "bash", "-c", "ps axww; cat "+resolv))
		}
	}
}

// find is who configures interfaces, when nobody is left alone.
func find(home string, names ...string) ([]facts.Owner, error) {
	var links []facts.Interface
	for _, name := range names {
		links = append(links, facts.Interface{Name: name})
	}
	owners, left, err := systemd.Owners(context.Background(), home, links, append(names, "lo"))
	if len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("left alone: %q", left))
	}
	return owners, err
}

// TestClients moves each DHCP client, which somebody started by hand, with its
// interface to another namespace and back.
func TestClients(t *testing.T) {
	for _, dir := range []string{"/var/lib/dhcpcd", "/var/lib/dhcp"} { // the machine's own stay out of it
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(dir, unix.MNT_DETACH)
	}
	home, physical, far := ns.New(t, "home"), ns.New(t, "physical"), ns.New(t, "far")
	ns.Veth(home, "eth0", nil, far, "eth0", []string{"192.0.2.1/24"})
	far.Run("ip", "link", "set", "eth0", "up")
	dnsmasq := far.Cmd("dnsmasq", "-C", "/dev/null", "-k", "-i", "eth0", "-z", "-p", "0", "--no-ping", "--dhcp-range=192.0.2.100,192.0.2.200,10m",
		"--dhcp-option=6,"+server, "--dhcp-authoritative", "--dhcp-leasefile=/run/leases")
	if err := dnsmasq.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		dnsmasq.Process.Signal(unix.SIGTERM)
		dnsmasq.Wait()
	}()
	for path, text := range map[string]string{
		"/etc/dhcpcd.conf": "noarp\nnoipv6\nnoipv4ll\nduid\noption domain_name_servers\n",
		"/run/udhcpc.sh": `#!/bin/sh
case $1 in
bound|renew) ip addr replace $ip/$mask dev $interface; r=$(readlink -f /etc/resolv.conf); echo nameserver $dns >$r.new; mv $r.new $r ;;
deconfig) ip link set $interface up ;;
esac
`,
	} {
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	os.Remove("/etc/resolv.conf")
	if err := os.WriteFile("/etc/resolv.conf", []byte("# mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	os.Symlink(busybox, "/run/udhcpc")
	dhclient := []string{"dhclient", "-4", "-pf", "/run/dhclient.pid", "-lf", "/run/dhclient.leases", "eth0"}
	for name, c := range map[string]struct {
		start, want []string
		wait        bool
	}{
		"dhcpcd":   {[]string{"dhcpcd", "-4", "-b", "-q", "eth0"}, []string{"dhcpcd", "-b", "-4", "eth0"}, false},
		"dhclient": {dhclient, dhclient, false},
		"udhcpc":   {[]string{"/run/udhcpc", "-f", "-i", "eth0", "-s", "/run/udhcpc.sh"}, nil, true},
		"busybox":  {[]string{"busybox", "udhcpc", "-b", "-i", "eth0", "-s", "/run/udhcpc.sh"}, nil, false},
	} {
		if c.want == nil {
			c.want = c.start
		}
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			var d systemd.Doer
			do := func(ns plan.NS, s plan.Step) {
				t.Helper()
				for range 2 { // again it does nothing
					if _, err := d.Do(ctx, ns, s); err != nil {
						t.Fatal(err)
					}
				}
			}
			runs := func(ns plan.NS, s plan.Client, want bool) {
				t.Helper()
				if got, err := d.Exists(ctx, ns, s); err != nil || got != want {
					t.Errorf("in %s: %v, %v", ns, got, err)
				}
			}
			leased := func(n *ns.NS) func() bool {
				return func() bool { return strings.Contains(n.Run("ip", "-4", "addr", "show", "eth0"), "inet 192.0.2.1") }
			}
			move := func(from, to *ns.NS) {
				from.Run("ip", "link", "set", "eth0", "down")
				from.Run("ip", "link", "set", "eth0", "netns", to.Name)
			}
			if c.wait {
				cmd := home.Cmd(c.start...)
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				defer cmd.Wait()
			} else {
				home.Run(c.start...)
			}
			eventually(t, "a lease at home", leased(home))
			before := ns.Run(t, "cat", "/proc/self/mountinfo")

			owners, err := find(home.Path(), "eth0", "eth1")
			if err != nil {
				t.Fatal(err)
			}
			if len(owners) != 1 || owners[0].Client == nil || !slices.Equal(owners[0].Client.Args, c.want) || !owners[0].Addresses || owners[0].Links[0] != "eth0" {
				t.Fatalf("%+v", owners)
			}
			if none, err := find(physical.Path(), "eth0"); err != nil || len(none) > 0 {
				t.Errorf("of the other namespace: %v, %v", none, err)
			}
			client := *owners[0].Client
			there, here := plan.NS(physical.Path()), plan.NS(home.Path())
			runs(here, plan.Client{Client: client}, true)
			runs(there, plan.Client{Client: client}, false)
			do(here, plan.Client{Client: client})
			runs(here, plan.Client{Client: client}, false)
			if left := ns.Run(t, "ip", "netns", "pids", "home"); left != "" {
				if text := ns.Run(t, "ps", "axww"); !strings.Contains(text, "<defunct>") {
					t.Errorf("left at home: %s", text)
				}
			}
			os.WriteFile("/etc/resolv.conf", []byte("# mine\n"), 0o644)
			do("", plan.Views{NS: there, Dir: views})
			move(home, physical)
			do(there, plan.Client{Client: client, Views: views, Start: true})
			eventually(t, "a lease there", leased(physical))
			eventually(t, "its name server", func() bool {
				text, _ := os.ReadFile(resolv)
				return strings.Contains(string(text), "nameserver "+server+"\n")
			})
			if text, _ := os.ReadFile("/etc/resolv.conf"); string(text) != "# mine\n" {
				t.Errorf("the machine's resolv.conf: %s", text)
			}
			runs(there, plan.Client{Client: client}, true)

			do(there, plan.Client{Client: client, Views: views})
			if left := ns.Run(t, "ip", "netns", "pids", "physical"); left != "" {
				t.Errorf("left there: %s", ns.Run(t, "ps", "axww"))
			}
			physical.Run("ip", "addr", "flush", "dev", "eth0")
			move(physical, home)
			do("", plan.Views{NS: there, Dir: views, Delete: true})
			do(here, plan.Client{Client: client, Start: true})
			eventually(t, "a lease at home again", leased(home))
			runs(here, plan.Client{Client: client}, true)
			time.Sleep(200 * time.Millisecond) // dhcpcd is slow to end while it tells of a lease
			do(here, plan.Client{Client: client})
			home.Run("ip", "addr", "flush", "dev", "eth0")
			os.RemoveAll("/etc/netns/physical")
			if now := ns.Run(t, "cat", "/proc/self/mountinfo"); now != before {
				t.Errorf("mounts before:\n%s\nafter:\n%s", before, now)
			}
		})
	}
}

// TestClientHandsOver: a client is seen at every moment, also while it becomes a daemon: its
// process ends after another has gone on.
func TestClientHandsOver(t *testing.T) {
	n := ns.New(t, "home")
	perl := "/run/perl/udhcpc"
	ns.Run(t, "bash", "-c", "install -D $(realpath $(which perl)) "+perl)
	text := "$SIG{CHLD} = 'IGNORE'; for (;;) { select undef, undef, undef, 0.01; fork and exit }"
	c := plan.Client{Client: facts.Client{Exe: perl, Args: []string{"udhcpc", "-e", text}}}
	if err := n.Cmd("bash", "-c", `exec -a udhcpc "$0" -e "$1"`, perl, text).Run(); err != nil {
		t.Fatal(err)
	}
	var d systemd.Doer
	missed := 0
	for range 500 {
		there, err := d.Exists(context.Background(), plan.NS(n.Path()), c)
		if err != nil {
			t.Fatal(err)
		}
		if !there {
			missed++
		}
	}
	if missed > 0 {
		t.Errorf("missed %d times", missed)
	}
	if _, err := d.Do(context.Background(), plan.NS(n.Path()), c); err != nil {
		t.Error(err)
	}
}

// TestClientFails: one that ends at once with an error is told, and one that does not
// heed SIGTERM is ended.
func TestClientFails(t *testing.T) {
	var d systemd.Doer
	bash := "/run/bash/udhcpc"
	ns.Run(t, "bash", "-c", "install -D $(realpath $(which bash)) "+bash)
	c := facts.Client{Exe: bash, Args: []string{"udhcpc", "-c", "exit 3"}, Dir: "/"}
	if _, err := d.Do(context.Background(), "", plan.Client{Client: c, Start: true}); err == nil || !strings.Contains(err.Error(), "start udhcpc: exit status 3") {
		t.Errorf("%v", err)
	}
	for link, fails := range map[string]bool{"lo": true, "nothing": false} { // to start it in vain is no error where its interface is gone
		if _, err := d.Do(context.Background(), "", plan.Client{Client: c, Start: true, Links: []string{link}}); (err != nil) != fails {
			t.Errorf("for %s: %v", link, err)
		}
	}
	c = facts.Client{Exe: bash, Args: []string{"udhcpc", "-c", "trap '' TERM; pwd >/run/id; while :; do sleep 0.01; done"}, Dir: "/run/gone"}
	for range 2 {
		if _, err := d.Do(context.Background(), "", plan.Client{Client: c, Start: true}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "it runs as it should", func() bool {
		text, _ := os.ReadFile("/run/id")
		return string(text) == "/\n"
	})
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if _, err := d.Do(ctx, "", plan.Client{Client: c}); err != nil {
		t.Error(err)
	}
	eventually(t, "it has ended, and its last child", func() bool {
		there, err := d.Exists(context.Background(), "", plan.Client{Client: c})
		return err == nil && !there && exec.Command("pgrep", "-x", "udhcpc|sleep").Run() != nil
	})
}
