// Package check tests `check` as it is called, and that up does what check says.
package check

import (
	"bytes"
	"cmp"
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"wg-quickns/internal/check"
	"wg-quickns/test/bed"
	"wg-quickns/test/ns"
	"wg-quickns/test/schema"
)

func TestMain(m *testing.M) { ns.Main(m) }

const (
	head = "[Interface]\nPrivateKey = KEY+OF+EXAMPLE/never+use/client/00000000000=\n"
	tail = "[Peer]\nPublicKey = iHHj1OFkOlaiC74DEEZk/VOVI4cwF0GEWJtNV6bjKzs=\nEndpoint = 192.0.2.1:51820\nPersistentKeepalive = 25\n"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// found runs `check --json`, and gives what it says by ID.
func found(t *testing.T, b *bed.Bed, args ...string) (ids map[string]check.Severity, code int) {
	t.Helper()
	list, code := findings(t, b, args...)
	ids = make(map[string]check.Severity)
	for _, f := range list {
		ids[f.ID] = f.Severity
	}
	return ids, code
}

func findings(t *testing.T, b *bed.Bed, args ...string) (list []check.Finding, code int) {
	t.Helper()
	c := exec.Command(b.Program, append([]string{"check", "--json"}, args...)...)
	var out, messages bytes.Buffer
	c.Stdout, c.Stderr = &out, &messages
	if err := b.NS.Do(c.Run); err != nil && c.ProcessState == nil {
		t.Fatal(err)
	}
	must(t, schema.Validate("../../man/check.schema.json", out.Bytes()))
	if messages.Len() > 0 {
		t.Errorf("beside its JSON: %s", &messages)
	}
	var report struct{ Findings []check.Finding }
	must(t, json.Unmarshal(out.Bytes(), &report))
	return report.Findings, c.ProcessState.ExitCode()
}

// TestUpAgrees: what is an error to check makes up fail, in the same file, and
// what is a warning or a note does not.
func TestUpAgrees(t *testing.T) {
	b := bed.New(t, "bed")
	for id, test := range map[string]struct {
		text     string
		severity check.Severity
	}{
		"address-twice": {head + "Address = 10.8.0.2/24, fd08::2/64, fd08::2/128\n" + tail + "AllowedIPs = 10.8.0.0/24", check.Error},
		"mtu-ipv6":      {head + "Address = 10.8.0.2/24\nMTU = 1200\n" + tail + "AllowedIPs = fd08::/64", check.Error},
		"dns-namespace": {head + "Address = 10.8.0.2/24\nNamespace = /tmp/box\nDNS = 10.8.0.1\n" + tail + "AllowedIPs = 10.8.0.0/24", check.Error},
		"service":       {head + "Address = 10.8.0.2/24\nListenPort = nosuch\n" + tail + "AllowedIPs = 10.8.0.0/24", check.Error},
		"syntax":        {head + "Address = 10.8.0.2/24\nTable = nosuch\n" + tail + "AllowedIPs = 10.8.0.0/24", check.Error},
		"table-main":    {head + "Address = 10.8.0.2/24\nTable = main\n" + tail + "AllowedIPs = ::/1, 8000::/1", check.Warning},
		"peer-self":     {head + "Address = 10.8.0.2/24\n" + tail + "AllowedIPs = 10.8.0.0/24\n[Peer]\nPublicKey = OOIZpO5Vqc73QSN0czga5ePrK+RCs1AfTpZe5sk2bEg=\nAllowedIPs = 10.9.0.0/24", check.Warning},
		"peer-twice":    {head + "Address = 10.8.0.2/24\n" + tail + "AllowedIPs = 10.8.0.0/24\n" + tail + "AllowedIPs = 10.9.0.0/24", check.Warning},
		"allowedips-twice": {head + "Address = 10.8.0.2/24\n" + tail + "AllowedIPs = 10.9.0.0/24\n" + strings.Replace(tail, "iHHj1OFkOlaiC74DEEZk/VOVI4cwF0GEWJtNV6bjKzs=", "xluH3MeWM8wGELIsftd/TwGE6CRWHWWt5oj+Ga7/unc=", 1) +
			"AllowedIPs = 10.9.0.0/24", check.Warning},
		"address-missing": {head + tail + "AllowedIPs = 10.8.0.0/24", check.Warning},
		"key-missing":     {"[Interface]\nAddress = 10.8.0.2/24\n" + tail + "AllowedIPs = 10.8.0.0/24", check.Warning},
		"mtu-large":       {head + "Address = 10.8.0.2/24\nMTU = 9000\n" + tail + "AllowedIPs = 10.8.0.0/24", check.Warning},
		"strategy-idle":   {head + "Address = 10.8.0.2/24\nRoutingStrategy = override\n" + tail + "AllowedIPs = 10.8.0.0/24", check.Warning},
		"endpoint-inside": {head + "Address = 10.8.0.2/24\n" + tail + "AllowedIPs = 192.0.0.0/16", check.Note},
	} {
		b.Config(t, "wg0", test.text)
		if id == "dns-namespace" {
			must(t, os.WriteFile("/tmp/box", nil, 0o600))
			ns.New(t, "boxed")
			ns.Run(t, "mount", "--bind", "/run/netns/boxed", "/tmp/box")
			t.Cleanup(func() { ns.Run(t, "umount", "/tmp/box"); os.Remove("/tmp/box") })
		}
		ids, code := found(t, b, "wg0")
		if want := map[check.Severity]int{check.Error: 1, check.Warning: 4, check.Note: 0}[test.severity]; ids[id] != test.severity || code != want {
			t.Errorf("%s: check says %v, exit status %d, want %d", id, ids, code, want)
		}
		r := b.Up("wg0")
		if (r.Code != 0) != (test.severity == check.Error) {
			t.Errorf("%s: check says %s, up: %s", id, test.severity, r)
		}
		if r.Code == 0 {
			if id == "peer-self" || id == "peer-twice" || id == "allowedips-twice" {
				dump := b.NS.Run("wg", "show", "wg0", "allowed-ips")
				want := map[string]string{
					"peer-self":        "iHHj1OFkOlaiC74DEEZk/VOVI4cwF0GEWJtNV6bjKzs=\t10.8.0.0/24\n",
					"peer-twice":       "iHHj1OFkOlaiC74DEEZk/VOVI4cwF0GEWJtNV6bjKzs=\t10.9.0.0/24\n",
					"allowedips-twice": "iHHj1OFkOlaiC74DEEZk/VOVI4cwF0GEWJtNV6bjKzs=\t(none)\n",
				}[id]
				if !strings.Contains(dump, want) || id != "allowedips-twice" && strings.Count(dump, "\n") != 1 {
					t.Errorf("%s: the device has\n%s", id, dump)
				}
			}
			if r := b.Down("wg0"); r.Code != 0 {
				t.Fatal(r)
			}
		}
	}
}

// TestPlanted: each of 25 mistakes that people make, planted alone into a file with
// nothing to be said of, is found on its line, and nothing worse is.
func TestPlanted(t *testing.T) {
	b := bed.New(t, "bed")
	const good = head + `Address = 10.8.0.2/24, fd08::2/64
DNS = 10.8.0.1
PostUp = /run/hook.sh up

[Peer]
PublicKey = iHHj1OFkOlaiC74DEEZk/VOVI4cwF0GEWJtNV6bjKzs=
Endpoint = 192.0.2.1:51820
AllowedIPs = 0.0.0.0/0, ::/0
PersistentKeepalive = 25
`
	const other = "xluH3MeWM8wGELIsftd/TwGE6CRWHWWt5oj+Ga7/unc="
	must(t, os.WriteFile("/etc/resolv.conf", []byte("nameserver 127.0.0.1\n"), 0o644)) // which nobody is
	must(t, os.WriteFile("/run/hook.sh", []byte("#!/bin/sh\n"), 0o700))
	t.Cleanup(func() { os.Remove("/run/hook.sh") })
	more := func(text string) string { return "= 25\n[Peer]\n" + text + "PersistentKeepalive = 25\n" }
	for i, m := range []struct {
		old, new string
		id       string
		severity check.Severity
		at       string      // is on the line; "": the whole file
		file     os.FileMode // of the config, 0600 if 0
		hook     os.FileMode // of the hook, 0700 if 0
	}{
		{old: "Address", new: "Adress", id: "syntax", severity: check.Error, at: "Adress"},
		{old: "client/00000000000=", new: "client/0=", id: "syntax", severity: check.Error, at: "client/0="},
		{old: "[Peer]\n", new: "AllowedIPs = 10.0.0.0/8\n[Peer]\n", id: "syntax", severity: check.Error, at: "10.0.0.0/8"},
		{old: "10.8.0.2/24", new: "10.8.0.256/24", id: "syntax", severity: check.Error, at: "256"},
		{old: "192.0.2.1:51820", new: "192.0.2.1", id: "syntax", severity: check.Error, at: "Endpoint"},
		{old: "192.0.2.1:51820", new: "[2001:db8::1]51820", id: "syntax", severity: check.Error, at: "Endpoint"},
		{old: "DNS", new: "RoutingStrategy = tunnel\nDNS", id: "syntax", severity: check.Error, at: "tunnel"},
		{old: "DNS", new: "Table = nosuch\nDNS", id: "syntax", severity: check.Error, at: "nosuch"},
		{old: "10.8.0.2/24,", new: "10.8.0.2/24, 10.8.0.2/24,", id: "address-twice", severity: check.Error, at: "Address"},
		{old: "DNS", new: "MTU = 1200\nDNS", id: "mtu-ipv6", severity: check.Error, at: "MTU"},
		{old: "192.0.2.1:", new: "nosuch.invalid:", id: "resolve", severity: check.Error, at: "Endpoint"},
		{id: "file-readable", severity: check.Warning, file: 0o644},
		{id: "file-writable", severity: check.Warning, file: 0o602},
		{id: "hook-writable", severity: check.Warning, at: "PostUp", hook: 0o722},
		{old: "hook.sh", new: "nosuch.sh", id: "hook-missing", severity: check.Warning, at: "PostUp"},
		{old: "hook.sh up", new: "hook.sh " + other, id: "key-in-hook", severity: check.Warning, at: "PostUp"},
		{old: "PrivateKey", new: "#PrivateKey", id: "key-missing", severity: check.Warning},
		{old: "PublicKey = iHHj1OFkOlaiC74DEEZk/VOVI4cwF0GEWJtNV6bjKzs=", new: "PublicKey = OOIZpO5Vqc73QSN0czga5ePrK+RCs1AfTpZe5sk2bEg=",
			id: "peer-self", severity: check.Warning, at: "[Peer]"},
		{old: "= 25\n", new: more("PublicKey = iHHj1OFkOlaiC74DEEZk/VOVI4cwF0GEWJtNV6bjKzs=\nEndpoint = 192.0.2.2:1\nAllowedIPs = 10.9.0.0/24\n"),
			id: "peer-twice", severity: check.Warning, at: "[Peer] 2"},
		{old: "= 25\n", new: more("PublicKey = " + other + "\nEndpoint = 192.0.2.2:1\nAllowedIPs = ::/0\n"), id: "allowedips-twice", severity: check.Warning, at: "= ::/0"},
		{old: "= 25\n", new: more("PublicKey = " + other + "\nEndpoint = 192.0.2.2:1\nAllowedIPs = 10.9.0.0/24\n"), id: "allowedips-overlap", severity: check.Note, at: "0.0.0.0/0"},
		{old: "0.0.0.0/0, ::/0", new: "10.8.0.0/24, 192.0.2.0/24, fd08::/64", id: "endpoint-inside", severity: check.Note, at: "Endpoint"},
		{old: "0.0.0.0/0, ::/0", new: "0.0.0.0/1, 128.0.0.0/1", id: "one-family", severity: check.Warning, at: "AllowedIPs"},
		{old: "DNS", new: "MTU = 1500\nDNS", id: "mtu-large", severity: check.Warning, at: "MTU"},
		{old: "0.0.0.0/0, ::/0", new: "10.9.0.0/24, fd08::/64", id: "dns-outside", severity: check.Warning, at: "DNS"},
	} {
		text := good
		if m.old != "" {
			text = strings.Replace(good, m.old, m.new, 1)
		}
		if m.id == "dns-outside" {
			text = strings.Replace(text, "10.8.0.1\n", "9.9.9.9\n", 1)
		}
		line := 0
		if m.at != "" {
			at, again := strings.CutSuffix(m.at, " 2")
			before := text[:strings.Index(text, at)]
			if again {
				before = text[:strings.LastIndex(text, at)]
			}
			line = 1 + strings.Count(before, "\n")
		}
		b.Config(t, "wg0", text)
		must(t, os.Chmod("/etc/wireguard/wg0.conf", cmp.Or(m.file, 0o600)))
		must(t, os.Chmod("/etc/wireguard", 0o755))
		must(t, os.Chmod("/run/hook.sh", cmp.Or(m.hook, 0o700)))
		args := []string{"wg0"}
		if m.id == "resolve" {
			args = append(args, "--resolve")
		}
		list, _ := findings(t, b, args...)
		if !slices.ContainsFunc(list, func(f check.Finding) bool { return f.ID == m.id && f.Severity == m.severity && f.Line == line }) {
			t.Errorf("%d: no %s on line %d of\n%s\n%+v", i+1, m.id, line, text, list)
		}
		for _, f := range list {
			if f.ID != m.id && f.Severity != check.Note {
				t.Errorf("%d: %s: also %+v", i+1, m.id, f)
			}
		}
	}
	b.Config(t, "wg0", good)
	if list, code := findings(t, b, "wg0"); len(list) > 0 || code != 0 {
		t.Errorf("nothing is wrong: %+v", list)
	}
}

// TestTogether: what check says of two files keeps the second tunnel from being up.
func TestTogether(t *testing.T) {
	b := bed.New(t, "together")
	b.Config(t, "wg0", head+"Address = 10.8.0.2/24\nListenPort = 51820\n"+tail+"AllowedIPs = 10.20.0.0/16\n")
	for id, text := range map[string]string{
		"port-shared":  head + "Address = 10.9.0.2/24\nListenPort = 51820\n" + tail + "AllowedIPs = 10.30.0.0/16\n",
		"route-shared": head + "Address = 10.9.0.2/24\n" + tail + "AllowedIPs = 10.20.0.0/16\n",
	} {
		b.Config(t, "wg1", text)
		if ids, code := found(t, b, "wg0", "wg1"); ids[id] != check.Warning || code != 4 {
			t.Errorf("%s: check says %v, exit status %d", id, ids, code)
		}
		if r := b.Up("wg0"); r.Code != 0 {
			t.Fatal(r)
		}
		if r := b.Up("wg1"); r.Code == 0 {
			t.Errorf("%s: both are up", id)
			b.Down("wg1")
		}
		if r := b.Down("wg0"); r.Code != 0 {
			t.Fatal(r)
		}
	}
}

// TestUser: no root is needed for a file that one may read, and nothing is asked
// of sudo, which is not there.
func TestUser(t *testing.T) {
	b := bed.New(t, "user")
	const dir = "/run/user-of-check"
	must(t, os.Mkdir(dir, 0o755))
	t.Cleanup(func() { os.RemoveAll(dir) })
	good := head + "Address = 10.8.0.2/24\n" + tail + "AllowedIPs = 10.8.0.0/24\n"
	for name, mode := range map[string]os.FileMode{"mine.conf": 0o600, "roots.conf": 0o600} {
		must(t, os.WriteFile(dir+"/"+name, []byte(good), mode))
	}
	must(t, os.Chown(dir+"/mine.conf", 65534, 65534))
	run := func(args ...string) (stdout, stderr string, code int) {
		var out, messages bytes.Buffer
		c := exec.Command(b.Program, args...)
		c.Stdout, c.Stderr, c.Env = &out, &messages, []string{"PATH=/nowhere"}
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if err := c.Run(); err != nil && c.ProcessState == nil {
			t.Fatal(err)
		}
		return out.String(), messages.String(), c.ProcessState.ExitCode()
	}
	if out, messages, code := run("check", dir+"/mine.conf"); out != "" || code != 0 || messages != "wg-quickns: errors: 0, warnings: 0, notes: 0\n" {
		t.Errorf("own file: exit status %d\n%s%s", code, out, messages)
	}
	out, _, code := run("check", dir+"/roots.conf", dir+"/mine.conf")
	if !strings.HasPrefix(out, dir+"/roots.conf: error: ") || !strings.Contains(out, "[file]") || strings.Contains(out, "mine.conf") || code != 1 {
		t.Errorf("root's file: exit status %d\n%s", code, out)
	}
	for _, args := range [][]string{{"check"}, {"check", "--what", dir + "/mine.conf"}, {"check", "--json"}} {
		if out, messages, code := run(args...); out != "" || code != 1 || !strings.Contains(strings.ToLower(messages), "usage") {
			t.Errorf("%q: exit status %d\n%s%s", args, code, out, messages)
		}
	}
	// nothing is touched
	names, err := os.ReadDir(dir)
	must(t, err)
	if slices.ContainsFunc(names, func(e os.DirEntry) bool { return e.Name() != "mine.conf" && e.Name() != "roots.conf" }) {
		t.Errorf("%v", names)
	}
}

// TestKeyAnywhere: a private key that was written behind any other name, or that is
// mistyped, is in no message of check or up.
func TestKeyAnywhere(t *testing.T) {
	b := bed.New(t, "bed")
	const key = "0cyFSgcA1RkFmAPeAvjPN5d0L4bUlsA9aUH4Pr5cQ2I="
	full := head + "Address = 10.8.0.2/24\nRoutingStrategy = physical-netns\n" + tail + "AllowedIPs = 10.9.0.0/24\n"
	for _, line := range []string{
		"Adress =", "Address =", "MTU =", "Table =", "FwMark =", "ListenPort =", "SaveConfig =", "Namespace =", "BirthNamespace = unit:",
		"HookNamespace =", "ManageNamespace =", "RoutingStrategy =", "RulePriority =", "KillSwitch =", "PhysicalInterfaces = eth0,", "PhysicalServices =",
		"# wg-quickns:", "# wg-quickns: Namespace = docker:", "", "[Interface]", ";",
		"PublicKey = x", "PresharedKey = x", "AllowedIPs =", "Endpoint =", "PersistentKeepalive =", "[Peer] ",
	} {
		for _, end := range []string{"", ":51820", "/24"} {
			text := strings.Replace(full, "Address", line+" "+key+end+"\nAddress", 1)
			switch word, _, _ := strings.Cut(line, " "); word {
			case "PublicKey", "PresharedKey", "AllowedIPs", "Endpoint", "PersistentKeepalive":
				text = full + line + " " + key + end + "\n"
			}
			b.Config(t, "wg0", text)
			for _, command := range []string{"check", "up"} {
				r := b.Run([]string{"WG_ENDPOINT_RESOLUTION_RETRIES=0"}, b.Program, command, "wg0")
				if r.Code == 0 || strings.Contains(r.Output, key[:20]) || strings.Contains(r.Output, strings.ToLower(key[:20])) {
					t.Errorf("%s, %s %s%s: %s", command, line, key, end, r)
				}
			}
		}
	}
}

// TestLinked: who may read what a link leads to is asked of the file and its own folder.
func TestLinked(t *testing.T) {
	b := bed.New(t, "bed")
	must(t, os.Chmod("/etc/wireguard", 0o700))
	must(t, os.Mkdir("/etc/shown", 0o755))
	t.Cleanup(func() { os.RemoveAll("/etc/shown") })
	must(t, os.WriteFile("/etc/shown/wg0.conf", []byte(head), 0o644))
	must(t, os.Symlink("/etc/shown/wg0.conf", "/etc/wireguard/linked.conf"))
	if ids, _ := found(t, b, "linked"); ids["file-readable"] != check.Warning {
		t.Errorf("got %v", ids)
	}
}
