package proc_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/proc"
	"wg-quickns/test/ns"
)

func TestMain(m *testing.M) { ns.Main(m) }

const (
	viewsDir = "/run/wg-quickns/@views.physical"
	ownConf  = "/etc/netns/physical/resolv.conf"
)

// TestViews: what a program sees in them, whoever writes which way, and that nothing
// of them is left, also not of a namespace that goes first.
func TestViews(t *testing.T) {
	p := ns.New(t, "physical")
	p.Run("ip", "link", "add", "eth7", "type", "veth", "peer", "name", "eth8")
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("/etc/netns/physical/hosts", "192.0.2.9 mine\n")
	write("/run/hidden", "#!/bin/sh\n")
	if err := os.Chmod("/run/hidden", 0o755); err != nil {
		t.Fatal(err)
	}
	write("/run/nscd/socket", "")
	mounts := ns.Run(t, "cat", "/proc/self/mountinfo")
	host, _ := os.ReadFile("/etc/resolv.conf")
	for range 2 { // again, over what there is
		if err := proc.MountViews(p.Path(), viewsDir); err != nil {
			t.Fatal(err)
		}
		os.Remove(viewsDir + "/.complete") // as a killed one leaves it
	}
	if err := proc.MountViews(p.Path(), viewsDir); err != nil {
		t.Fatal(err)
	}
	write(viewsDir+"/more", "")
	if err := proc.MountViews(p.Path(), viewsDir); err != nil {
		t.Fatal(err)
	}
	if err := unix.Access(viewsDir+"/more", unix.F_OK); err != nil {
		t.Error("views that are there are made again")
	}
	run := func(script string) string {
		t.Helper()
		var out []byte
		err := proc.WithinViews(p.Path(), viewsDir, []string{"/run/hidden", "/run/none"}, func() (err error) {
			out, err = exec.Command("bash", "-euc", script).CombinedOutput()
			return err
		})
		if err != nil {
			t.Errorf("%s: %v: %s", script, err, out)
		}
		return string(out)
	}
	for script, want := range map[string]string{
		"ls /sys/class/net | grep eth":         "eth7\neth8\n",
		"touch /sys/x 2>&1 || echo no":         "touch: cannot touch '/sys/x': Read-only file system\nno\n",
		"readlink -f /etc/resolv.conf":         ownConf + "\n",
		"cat /etc/hosts":                       "192.0.2.9 mine\n",
		"cmp /etc/passwd /etc/.host/passwd":    "",
		"touch /etc/.host/x 2>&1 || echo no":   "touch: cannot touch '/etc/.host/x': Read-only file system\nno\n",
		"test -x /run/hidden || echo hidden":   "hidden\n",
		"ls -d /etc/ssl/* /etc/alternatives/*": ns.Run(t, "bash", "-c", "ls -d /etc/ssl/* /etc/alternatives/*"),
		"ls /run/nscd":                         "socket\n", // a plain file stays
	} {
		if got := run(script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	for n, script := range []string{
		"echo nameserver 192.0.2.0 >/etc/resolv.conf",
		"r=$(readlink -f /etc/resolv.conf); echo nameserver 192.0.2.1 >$r.new; mv $r.new $r",
		"echo nameserver 192.0.2.2 >/etc/resolv.conf",
	} {
		run(script)
		want := "nameserver 192.0.2." + string(rune('0'+n)) + "\n"
		if got, _ := os.ReadFile(ownConf); string(got) != want {
			t.Errorf("%s: %q", script, got)
		}
	}
	// one that the machine replaces is seen
	ns.Run(t, "bash", "-euc", "echo x:x:1: >/etc/new; mv /etc/new /etc/services")
	if got := run("cat /etc/services"); got != "x:x:1:\n" {
		t.Errorf("services: %q", got)
	}
	if now, _ := os.ReadFile("/etc/resolv.conf"); string(now) != string(host) {
		t.Errorf("the machine's resolv.conf: %q", now)
	}
	t.Logf("%d mounts", strings.Count(ns.Run(t, "cat", "/proc/self/mountinfo"), "@views"))
	if there, err := proc.ViewsMounted(viewsDir); err != nil || !there {
		t.Errorf("%v, %v", there, err)
	}
	for range 2 {
		if err := proc.UnmountViews(p.Path(), viewsDir); err != nil {
			t.Fatal(err)
		}
	}
	if there, err := proc.ViewsMounted(viewsDir); err != nil || there {
		t.Errorf("%v, %v", there, err)
	}
	if now := ns.Run(t, "cat", "/proc/self/mountinfo"); now != mounts {
		t.Errorf("mounts before:\n%s\nafter:\n%s", mounts, now)
	}
	if _, err := os.Stat(ownConf); err != nil {
		t.Error(err) // it has something in it: not ours to remove
	}
	os.RemoveAll("/etc/netns/physical")
}

// TestViewsLeaveNothing: the folder of a namespace that had none, and a namespace whose
// name was deleted, which lives until then.
func TestViewsLeaveNothing(t *testing.T) {
	ns.Run(t, "ip", "netns", "add", "gone")
	ns.Run(t, "ip", "link", "add", "outer", "type", "veth", "peer", "name", "inner", "netns", "gone")
	const dir = "/run/wg-quickns/@views.gone"
	if err := proc.MountViews("/run/netns/gone", dir); err != nil {
		t.Fatal(err)
	}
	ns.Run(t, "ip", "netns", "delete", "gone")
	time.Sleep(300 * time.Millisecond)
	ns.Run(t, "nsenter", "--net="+dir+proc.ViewNet, "ip", "link", "show", "inner")
	if err := proc.UnmountViews("/run/netns/gone", dir); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); unix.Access("/sys/class/net/outer", unix.F_OK) == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the views hold the namespace")
		}
	}
	for _, path := range []string{dir, "/etc/netns/gone"} {
		if err := unix.Access(path, unix.F_OK); err != unix.ENOENT {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := proc.MountViews("/proc/1/ns/net", dir); err == nil || !strings.Contains(err.Error(), "no name") {
		t.Errorf("a namespace without a name: %v", err)
	}
}

// TestViewsDeleted: the package's purge takes nothing of the machine away with the
// views, and who deletes their folder, no more than is to be written by them.
func TestViewsDeleted(t *testing.T) {
	p := ns.New(t, "physical")
	for _, dir := range []string{"/etc/NetworkManager", "/etc/wpa_supplicant", "/etc/iwd"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+"/more", nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	list := func(but string) string {
		t.Helper()
		script := "find /etc -path /etc/netns -prune -o -type d -o -printf '%p %y %s\n' | sort | grep -v " + but
		return ns.Run(t, "sh", "-c", script)
	}
	mounts := ns.Run(t, "cat", "/proc/self/mountinfo")
	for _, c := range []struct{ script, but string }{
		{"sh ../../systemd/package/postremove purge; test ! -e /run/wg-quickns", "-e none"},
		{"! rm -rf /run/wg-quickns 2>/dev/null", "-e ^/etc/NetworkManager/ -e ^/etc/wpa_supplicant/"},
	} {
		before := list(c.but)
		if err := proc.MountViews(p.Path(), viewsDir); err != nil {
			t.Fatal(err)
		}
		ns.Run(t, "sh", "-euc", c.script)
		if now := list(c.but); now != before {
			t.Errorf("%s: /etc had %d files and has %d", c.script, strings.Count(before, "\n"), strings.Count(now, "\n"))
		}
	}
	if err := proc.UnmountViews(p.Path(), viewsDir); err != nil {
		t.Fatal(err)
	}
	if now := ns.Run(t, "cat", "/proc/self/mountinfo"); now != mounts {
		t.Errorf("these mounts are left:\n%s", now)
	}
	os.RemoveAll("/etc/netns/physical")
}

// TestViewsKeep: what there was of /etc/netns/NAME stays, be it empty, and what somebody
// wrote there since.
func TestViewsKeep(t *testing.T) {
	p := ns.New(t, "physical")
	for _, c := range []struct{ before, meanwhile, left string }{
		{"mkdir $o; touch $o/resolv.conf", "true", "$o $o/resolv.conf"},
		{"mkdir $o; echo >$o/resolv.conf", "rm $o/resolv.conf", "$o"},
		{"mkdir $o", "true", "$o"},
		{"mkdir $o", "rm $o/resolv.conf", "$o"},
		{"true", "true", ""},
		{"true", "echo >$o/resolv.conf", "$o $o/resolv.conf"},
		{"true", "rm -r $o", ""},
	} {
		sh := func(script string) string {
			t.Helper()
			return ns.Run(t, "sh", "-euc", "o=/etc/netns/physical; "+script)
		}
		sh(c.before)
		if err := proc.MountViews(p.Path(), viewsDir); err != nil {
			t.Fatal(err)
		}
		os.Remove(viewsDir + "/.complete") // as a killed one leaves it
		if err := proc.MountViews(p.Path(), viewsDir); err != nil {
			t.Fatal(err)
		}
		sh(c.meanwhile)
		if err := proc.UnmountViews(p.Path(), viewsDir); err != nil {
			t.Fatal(err)
		}
		if got, want := sh("find $o 2>/dev/null || true"), sh("for f in "+c.left+"; do echo $f; done"); got != want {
			t.Errorf("%s, then %s: left is %q, want %q", c.before, c.meanwhile, got, want)
		}
		if left := sh("ls -A /run/wg-quickns"); left != "" {
			t.Errorf("%s, then %s: left in /run/wg-quickns: %q", c.before, c.meanwhile, left)
		}
		sh("rm -rf $o")
	}
}

// TestViewsMeanwhile: a file becomes a link, and back, while the views are made.
func TestViewsMeanwhile(t *testing.T) {
	p := ns.New(t, "physical")
	ns.Turning(t, "/etc/turning")
	for range 20 {
		if err := proc.MountViews(p.Path(), viewsDir); err != nil {
			t.Fatal(err)
		}
		if err := proc.UnmountViews(p.Path(), viewsDir); err != nil {
			t.Fatal(err)
		}
	}
}
