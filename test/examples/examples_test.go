// Package examples tests that what the manual and the folder examples show
// works as it stands.
package examples

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"wg-quickns/confparse"
	"wg-quickns/internal/check"
	"wg-quickns/test/bed"
	"wg-quickns/test/ns"
)

const root = "../.."

func TestMain(m *testing.M) { ns.Main(m) }

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// files lists the example configs below examples; with all those too that are for
// namespaces and for machines, which test/systemd and test/physical bring up.
func files(t *testing.T, all bool) []string {
	t.Helper()
	list, err := filepath.Glob(root + "/examples/*.conf")
	if err != nil || len(list) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	demo, err := filepath.Glob(root + "/examples/demo/*/*.conf")
	if err != nil || len(demo) != 2 {
		t.Fatalf("the demo has %d configs: %v", len(demo), err)
	}
	list = append(list, demo...)
	if all {
		namespaces, err := filepath.Glob(root + "/examples/namespaces/*.conf")
		if err != nil || len(namespaces) == 0 {
			t.Fatalf("no examples for namespaces: %v", err)
		}
		list = slices.Concat(list, namespaces, []string{root + "/examples/physical/laptop.conf"})
	}
	return list
}

func TestParse(t *testing.T) {
	for _, path := range files(t, true) {
		cfg, err := confparse.Parse(path, []byte(read(t, path)))
		if err != nil {
			t.Error(err)
			continue
		}
		if len(cfg.Warnings) > 0 {
			t.Errorf("%s: %q", path, cfg.Warnings)
		}
		if len(cfg.Addresses) == 0 || len(cfg.Device.Peers) == 0 {
			t.Errorf("%s: no address or no peer", path)
		}
	}
}

// TestCheck: check finds no error in any example, and no warning but that one which
// an example is about.
func TestCheck(t *testing.T) {
	for _, path := range files(t, true) {
		_, found, err := check.Config(path, []byte(read(t, path)), map[string]uint32{"main": 254, "default": 253, "local": 255})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			if f.Severity != check.Note && !(filepath.Base(path) == "two-halves.conf" && f.ID == "one-family") {
				t.Errorf("%+v", f)
			}
		}
	}
}

// TestManualQuotes: each example of the manual is a file of examples, word by
// word, and each file is in the folder's README and, but for those whose like is
// there, in the manual.
func TestManualQuotes(t *testing.T) {
	page := read(t, root+"/man/wg-quickns.conf.5")
	block := regexp.MustCompile(`(?s)\n\.\\" examples/([^\n]+)\n\.Bd -literal -offset indent\n(.*?)\.Ed\n`)
	quoted := make(map[string]string)
	for _, m := range block.FindAllStringSubmatch(page, -1) {
		quoted[m[1]] = m[2]
	}
	if n := strings.Count(page, "\n.Bd -literal"); n != len(quoted) {
		t.Errorf("%d literal blocks, of which %d name their file", n, len(quoted))
	}
	for name, text := range quoted {
		if text != read(t, root+"/examples/"+name) {
			t.Errorf("the manual's %s is not the file's text:\n%s", name, text)
		}
	}
	readme := read(t, root+"/examples/README.md")
	for _, path := range files(t, true) {
		name, err := filepath.Rel(root+"/examples", path)
		if err != nil {
			t.Fatal(err)
		}
		switch dir, file := filepath.Split(name); {
		case strings.HasPrefix(dir, "demo/"):
			continue
		case dir == "" && quoted[name] == "":
			t.Errorf("the manual does not quote %s", name)
		case dir != "" && !strings.Contains(page, file):
			t.Errorf("the manual does not name %s", name)
		}
		if !strings.Contains(readme, "`"+name+"`") {
			t.Errorf("examples/README.md does not name %s", name)
		}
	}
}

// setup makes a namespace with a way out, /etc/wireguard with all examples, a
// key file for the one that wants it, the endpoints' name, and a resolvconf that
// notes its calls in the file it gives.
func setup(t *testing.T) (n *ns.NS, calls string) {
	t.Helper()
	dir := t.TempDir()
	program := os.Getenv("WG_QUICKNS")
	if program == "" {
		program = root + "/build/wg-quickns"
	}
	program, err := filepath.Abs(program)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("the program is not built: %v", err)
	}
	reference := os.Getenv("WG_REFERENCE") // has a wg(8)
	if reference == "" {
		reference = root + "/build/reference/bin"
	}
	reference, err = filepath.Abs(reference)
	if err != nil {
		t.Fatal(err)
	}
	// a copy: beside the program itself there may be a wireguard-go, which it would take
	write(t, dir+"/wg-quickns", read(t, program), 0o755)
	calls = dir + "/resolvconf.calls"
	write(t, dir+"/resolvconf", fmt.Sprintf("#!/bin/sh\necho \"$*\" >>'%s'\ncase $1 in -a) sed 's/^/  /' >>'%[1]s' ;; esac\n", calls), 0o755)
	t.Setenv("PATH", strings.Join([]string{dir, os.Getenv("PATH"), reference}, ":"))

	for _, path := range files(t, false) {
		text := read(t, path)
		write(t, "/etc/wireguard/"+filepath.Base(path), text, 0o600)
	}
	write(t, "/etc/wireguard/key-elsewhere.key", "KEY+OF+EXAMPLE/never+use/client/00000000000=\n", 0o600)
	hosts := read(t, "/etc/hosts")
	t.Cleanup(func() { os.WriteFile("/etc/hosts", []byte(hosts), 0o644) })
	write(t, "/etc/hosts", hosts+"\n192.0.2.10 vpn.example.com\n", 0o644)

	n = ns.New(t, "example")
	far := ns.New(t, "far")
	ns.Veth(n, "eth0", []string{"192.0.2.2/24"}, far, "eth0", []string{"192.0.2.1/24"})
	n.Run("ip", "route", "add", "default", "via", "192.0.2.1")
	return n, calls
}

// state is all that a tunnel may change, as text, in the namespace where run runs.
func state(run func(argv ...string) string) string {
	return run("bash", "-e", "-c", `
		for family in -4 -6; do ip $family rule; ip $family route show table all; done
		ip addr
		sysctl net.ipv4.conf.all.src_valid_mark
		nft list ruleset`)
}

// TestUpDown brings each example up and down again.
func TestUpDown(t *testing.T) {
	n, calls := setup(t)
	for _, path := range files(t, false) {
		name := strings.TrimSuffix(filepath.Base(path), ".conf")
		t.Run(name, func(t *testing.T) {
			before := state(n.Run)
			write(t, calls, "", 0o600)
			planned := n.Run("wg-quickns", "plan", "up", name)
			if dry := n.Run("wg-quickns", "up", "--dry-run", name); dry != planned {
				t.Errorf("up --dry-run is not plan up:\n%s", dry)
			}
			if after := state(n.Run); after != before {
				t.Fatalf("plan changed something:\n%s\nbefore:\n%s", after, before)
			}
			r := n.Try("wg-quickns", "up", name)
			if r.Code != 0 {
				t.Fatalf("up: exit status %d\n%s%s", r.Code, r.Stdout, r.Stderr)
			}
			if got, want := bed.Traced(r.Stderr), bed.Planned(planned); !slices.Equal(got, want) {
				t.Errorf("up did\n%s\nand not as planned\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			cfg, err := confparse.Parse(path, []byte(read(t, path)))
			if err != nil {
				t.Fatal(err)
			}
			addrs := n.Run("ip", "addr", "show", "dev", name)
			for _, a := range cfg.Addresses {
				if !strings.Contains(addrs, " "+a.Prefix.String()+" ") {
					t.Errorf("address %s is missing:\n%s", a.Prefix, addrs)
				}
			}
			if got := strings.Count(n.Run("wg", "show", name, "peers"), "\n"); got != len(cfg.Device.Peers) {
				t.Errorf("%d peers in place of %d", got, len(cfg.Device.Peers))
			}
			if private := strings.TrimSpace(n.Run("wg", "show", name, "private-key")); private == "(none)" {
				t.Error("no private key")
			}
			if (len(cfg.DNS) > 0) != strings.Contains(read(t, calls), "-a "+name+" ") {
				t.Errorf("calls of resolvconf:\n%s", read(t, calls))
			}
			planned = n.Run("wg-quickns", "plan", "down", name)
			if r = n.Try("wg-quickns", "down", name); r.Code != 0 {
				t.Fatalf("down: exit status %d\n%s%s", r.Code, r.Stdout, r.Stderr)
			}
			// saving is not undoing; both families' tables go at once, and then there is none to go
			got := slices.DeleteFunc(bed.Traced(r.Stderr), func(c string) bool { return strings.HasPrefix(c, "wg showconf") })
			if want := bed.Planned(planned); !slices.Equal(slices.Compact(got), slices.Compact(want)) {
				t.Errorf("down did\n%s\nand not as planned\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			// a server stays a router
			if name == "server" {
				n.Run("sysctl", "-q", "net.ipv4.ip_forward=0")
			}
			if after := state(n.Run); after != before {
				t.Errorf("not as before:\n%s\nbefore:\n%s", after, before)
			}
			if cfg.SaveConfig && read(t, path) == read(t, "/etc/wireguard/"+name+".conf") {
				t.Error("the file was not saved")
			}
		})
	}
}

// TestTwoHalves: of the example whose routes contain its endpoint, encrypted
// packets go out by the physical link and all others into the tunnel.
func TestTwoHalves(t *testing.T) {
	n, _ := setup(t)
	n.Run("wg-quickns", "up", "two-halves")
	defer n.Run("wg-quickns", "down", "two-halves")
	mark := strings.TrimSpace(n.Run("wg", "show", "two-halves", "fwmark"))
	if mark == "off" {
		t.Fatal("the interface has no fwmark")
	}
	for _, to := range []string{"198.51.100.1", "8.8.8.8"} { // one in each half
		if out := n.Run("ip", "route", "get", to); !strings.Contains(out, "dev two-halves ") {
			t.Errorf("%s goes out by %s", to, out)
		}
	}
	if out := n.Run("ip", "route", "get", "203.0.113.10", "mark", mark); !strings.Contains(out, "dev eth0 ") {
		t.Errorf("encrypted packets go out by %s", out)
	}
}

// TestManualCommands runs the EXAMPLES of wg-quickns(8) in their order, with the
// full tunnel as wg0. They make a namespace by name, for which they must be
// outside of one that ip-netns(8) entered: in the test's own.
func TestManualCommands(t *testing.T) {
	setup(t)
	run := func(argv ...string) string { return ns.Run(t, argv...) }
	before := state(run)
	write(t, "/etc/wireguard/wg0.conf", read(t, root+"/examples/full-tunnel.conf"), 0o600)
	write(t, "/etc/wireguard/container.conf", read(t, root+"/examples/namespaces/container.conf"), 0o600)
	_, section, ok := strings.Cut(read(t, root+"/man/wg-quickns.8"), "\n.Sh EXAMPLES\n")
	section, _, ok2 := strings.Cut(section, "\n.Sh ")
	if !ok || !ok2 {
		t.Fatal("wg-quickns.8 has no section EXAMPLES")
	}
	ran := 0
	for line := range strings.Lines(section) {
		command, ok := strings.CutPrefix(line, ".Dl # ")
		if !ok {
			continue
		}
		ran++
		r := ns.Try(exec.Command("bash", "-e", "-o", "pipefail", "-c", "cd /etc/wireguard\n"+command))
		if r.Code != 0 {
			t.Fatalf("%sexit status %d\n%s%s", command, r.Code, r.Stdout, r.Stderr)
		}
	}
	if ran < 5 {
		t.Errorf("only %d commands", ran)
	}
	if after := state(run); after != before {
		t.Errorf("not as before:\n%s\nbefore:\n%s", after, before)
	}
}

// TestEndpointInSubnet: the subnet of an address has the endpoint in it, in both
// families; the subnet's route must not take the encrypted packets.
func TestEndpointInSubnet(t *testing.T) {
	n, _ := setup(t)
	n.Run("ip", "addr", "add", "2001:db8::2/64", "dev", "eth0")
	n.Run("ip", "route", "add", "default", "via", "2001:db8::1")
	before := state(n.Run)
	write(t, "/etc/wireguard/loop.conf", `[Interface]
PrivateKey = KEY+OF+EXAMPLE/never+use/client/00000000000=
Address = 198.51.100.5/24, 2001:db8:5::5/64

[Peer]
PublicKey = iHHj1OFkOlaiC74DEEZk/VOVI4cwF0GEWJtNV6bjKzs=
Endpoint = 198.51.100.1:51820
AllowedIPs = 198.51.100.0/24

[Peer]
PublicKey = xluH3MeWM8wGELIsftd/TwGE6CRWHWWt5oj+Ga7/unc=
Endpoint = [2001:db8:5::1]:51820
AllowedIPs = 2001:db8:5::/64
`, 0o600)
	n.Run("wg-quickns", "up", "loop")
	mark := strings.TrimSpace(n.Run("wg", "show", "loop", "fwmark"))
	for _, endpoint := range []string{"198.51.100.1", "2001:db8:5::1"} {
		if out := n.Run("ip", "route", "get", endpoint, "mark", mark); !strings.Contains(out, "dev eth0 ") {
			t.Errorf("encrypted packets go out by %s", out)
		}
		if out := n.Run("ip", "route", "get", endpoint); !strings.Contains(out, "dev loop ") {
			t.Errorf("the endpoint's own address goes out by %s", out)
		}
	}
	n.Run("wg-quickns", "down", "loop")
	if after := state(n.Run); after != before {
		t.Errorf("not as before:\n%s\nbefore:\n%s", after, before)
	}
}
