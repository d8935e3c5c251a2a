package dns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"wg-quickns/internal/plan"
	"wg-quickns/internal/proc"
	"wg-quickns/test/ns"
)

// TestMain unpacks the two real resolvconf packages before the isolation takes
// the network away; they are not installed.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == Command {
		if os.Getenv("DIE") != "" {
			os.Exit(1)
		}
		if err := Serve(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	const fetch = `set -e; mkdir -p ../../build/resolvconf; cd ../../build/resolvconf
exec 9>lock; flock 9
for p in openresolv resolvconf; do
	[ -d $p ] && continue
	apt-get -qq -o APT::Sandbox::User=root download $p || { apt-get -qq update; apt-get -qq -o APT::Sandbox::User=root download $p; }
	rm -rf new; dpkg-deb -x ${p}_*.deb new; mv new $p
done`
	if out, err := exec.Command("bash", "-c", fetch).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "fetch resolvconf: %v\n%s", err, out)
		os.Exit(1)
	}
	ns.Main(m)
}

var (
	add = plan.DNS{Link: "wg0", Prefix: "tun.", Servers: []string{"10.0.0.53", "fd00::53"}, Search: []string{"example.com", "b.example"}}
	del = plan.DNS{Link: "wg0", Prefix: "tun.", Delete: true}
)

// fake puts a resolvconf of one's own into PATH.
func fake(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/resolvconf", []byte("#!/bin/bash\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestCommands(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	t.Setenv("OUT", out)
	fake(t, `{ echo "$@"; cat; echo "$LC_ALL"; ls /proc/self/fd | wc -w; } > "$OUT"`)
	for _, c := range []struct {
		step plan.DNS
		want string
	}{
		{add, "-a tun.wg0 -m 0 -x\nnameserver 10.0.0.53\nnameserver fd00::53\nsearch example.com b.example\nC\n4\n"},
		{plan.DNS{Link: "wg0", Servers: []string{"::1"}}, "-a wg0 -m 0 -x\nnameserver ::1\nC\n4\n"},
		{del, "-d tun.wg0 -f\nC\n4\n"},
	} {
		if _, err := (Doer{}).Do(context.Background(), "", c.step); err != nil {
			t.Error(err)
		}
		if got, _ := os.ReadFile(out); string(got) != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func TestFailures(t *testing.T) {
	status := func(err error) int { s, _ := proc.ExitStatus(err); return s }
	do := func(ctx context.Context) error { _, err := Doer{}.Do(ctx, "", add); return err }
	ctx := context.Background()

	t.Run("missing", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		err := do(ctx)
		if status(err) != 127 || !strings.HasPrefix(err.Error(), "resolvconf: command not found (") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("fails", func(t *testing.T) {
		fake(t, "exit 5")
		if err := do(ctx); status(err) != 5 || err.Error() != "resolvconf -a tun.wg0 -m 0 -x: exit status 5" {
			t.Errorf("got %v", err)
		}
	})
	t.Run("reads nothing", func(t *testing.T) {
		fake(t, "exec <&-")
		if err := do(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Run("leaves a daemon", func(t *testing.T) {
		fake(t, "sleep 0.5 & disown")
		begin := time.Now()
		if err := do(ctx); err != nil || time.Since(begin) > 400*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		time.Sleep(600 * time.Millisecond)
	})
	t.Run("interrupted", func(t *testing.T) {
		fake(t, "sleep 95")
		ctx, cancel := context.WithCancelCause(ctx)
		time.AfterFunc(100*time.Millisecond, func() { cancel(proc.SignalCause{Sig: syscall.SIGINT}) })
		begin := time.Now()
		err := do(ctx)
		if status(err) != 130 || time.Since(begin) > time.Second {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		if left := ns.Leftovers(); left != nil {
			t.Errorf("left: %q", left)
		}
	})
	t.Run("namespace", func(t *testing.T) {
		if _, err := (Doer{}).Do(ctx, "/run/netns/x", add); err == nil {
			t.Error("a namespace was ignored")
		}
	})
}

func TestPrefix(t *testing.T) {
	fake(t, "")
	check := func(want string) {
		t.Helper()
		if got, err := Prefix(); err != nil || got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	check("")
	write(t, interfaceOrder, "# comment\nlo.inet6\nlo*x\n@(br)*\n  tun*\t\nhso*\n")
	check("tun.")
	write(t, interfaceOrder, "tun*") // as `read` of bash: the line has no end
	check("")
	write(t, interfaceOrder, "tun*\n")
	t.Run("program is a link", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Symlink("/bin/true", dir+"/resolvconf"); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", dir)
		if got, err := Prefix(); err != nil || got != "" {
			t.Errorf("got %q, %v", got, err)
		}
	})
	t.Run("no program", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		if got, err := Prefix(); err != nil || got != "tun." {
			t.Errorf("got %q, %v", got, err)
		}
	})
	os.RemoveAll(filepath.Dir(interfaceOrder))
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestReal adds, lists and deletes a record by the two real programs.
func TestReal(t *testing.T) {
	ctx := context.Background()
	for _, name := range []string{"openresolv", "resolvconf"} {
		t.Run(name, func(t *testing.T) {
			pkg, err := filepath.Abs("../../build/resolvconf/" + name)
			if err != nil {
				t.Fatal(err)
			}
			// its helpers at their fixed place, in the test's own mount namespace
			ns.Run(t, "mount", "-t", "overlay", "-o", "lowerdir="+pkg+"/lib:/usr/lib", "overlay", "/usr/lib")
			t.Cleanup(func() { ns.Run(t, "umount", "-l", "/usr/lib") })
			ns.Run(t, "bash", "-c", "rm -rf /etc/resolv* /run/resolvconf; cp -a "+pkg+"/etc/resolv* /etc/")
			t.Setenv("PATH", pkg+"/sbin:"+os.Getenv("PATH"))
			if name == "resolvconf" { // what its postinst and its boot script do
				ns.Run(t, "bash", "-c", "mkdir -p /run/resolvconf/interface; ln -s /run/resolvconf /etc/resolvconf/run;"+
					"ln -s /run/resolvconf/resolv.conf /etc/resolv.conf; resolvconf --enable-updates; echo nameserver 192.0.2.1 | resolvconf -a eth0.dhcp")
			} else {
				ns.Run(t, "bash", "-c", "echo nameserver 192.0.2.1 | resolvconf -a eth0")
			}
			before := ns.Run(t, "cat", "/etc/resolv.conf")
			prefix, err := Prefix()
			if want := map[string]string{"openresolv": "", "resolvconf": "tun."}[name]; err != nil || prefix != want {
				t.Errorf("prefix %q, %v, want %q", prefix, err, want)
			}
			up, down := add, del
			up.Prefix, down.Prefix = prefix, prefix
			if _, _, err := List(ctx, prefix+"wg0"); !errors.Is(err, ErrNoRecord) {
				t.Errorf("list before: %v", err)
			}
			if _, err := (Doer{}).Do(ctx, "", up); err != nil {
				t.Fatal(err)
			}
			servers, search, err := List(ctx, prefix+"wg0")
			if err != nil || !slices.Equal(servers, up.Servers) || !slices.Equal(search, up.Search) {
				t.Errorf("list: %q %q %v", servers, search, err)
			}
			conf := ns.Run(t, "cat", "/etc/resolv.conf")
			for _, s := range append(up.Servers, up.Search...) {
				if !strings.Contains(conf, s) {
					t.Errorf("no %s in resolv.conf:\n%s", s, conf)
				}
			}
			for range 2 { // deleting what is absent is fine
				if _, err := (Doer{}).Do(ctx, "", down); err != nil {
					t.Error(err)
				}
			}
			if after := ns.Run(t, "cat", "/etc/resolv.conf"); after != before {
				t.Errorf("resolv.conf afterwards:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
}

func TestListFile(t *testing.T) {
	fake(t, "exit 1")
	write(t, debianRecords+"tun.wg0", "nameserver 10.0.0.1\nnameserver bad;value\n")
	defer os.RemoveAll("/etc/resolvconf")
	servers, search, err := List(context.Background(), "tun.wg0")
	if err != nil || !slices.Equal(servers, []string{"10.0.0.1"}) || search != nil {
		t.Errorf("got %q %q %v", servers, search, err)
	}
}
