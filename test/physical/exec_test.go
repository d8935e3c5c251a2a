//go:build systemd

package physical

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"wg-quickns/test/bed"
	"wg-quickns/test/ns"
)

// browser stands in for a program of the user's desktop: it says where it is and as whom,
// and speaks to the display servers and the D-Bus session that its environment names.
const browser = `use IO::Socket::UNIX;
sub ask { my ($what, $path, $send) = @_;
	my $s = IO::Socket::UNIX->new(Peer => $path) or return print "$what: $path: $!\n";
	$s->print($send); $s->flush; my $line = <$s>; $line =~ s/\s.*//s; print "$what: $line\n" }
print "user: $> $ENV{USER} $ENV{HOME}\n";
print "interface: ", -e "/sys/class/net/eth0" ? "eth0" : "none", "\n";
ask("wayland", "$ENV{XDG_RUNTIME_DIR}/$ENV{WAYLAND_DISPLAY}", "hello\n");
ask("x11", "/tmp/.X11-unix/X" . substr($ENV{DISPLAY}, 1), "hello\n");
ask("cookie", "/tmp/.X11-unix/X" . substr($ENV{DISPLAY}, 1), (-r $ENV{XAUTHORITY} ? "hello" : "nothing") . "\n");
my ($bus) = $ENV{DBUS_SESSION_BUS_ADDRESS} =~ /path=([^,;]+)/;
ask("bus", $bus, "\0AUTH EXTERNAL " . unpack("H*", $>) . "\r\n");
print "own: $ENV{BROWSER_OWN}\n";
`

// display answers each line that it gets in a socket of the user's.
func display(t *testing.T, path string) {
	t.Helper()
	os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ns.Run(t, "chown", "tester:", path)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 100)
			if n, _ := c.Read(b); string(b[:n]) == "hello\n" {
				fmt.Fprintln(c, "welcome")
			}
			c.Close()
		}
	}()
}

// TestBrowser: a program of the user's desktop runs in the physical namespace as that user, and
// finds its display and its D-Bus session, however exec was called.
func TestBrowser(t *testing.T) {
	static := managers[0]
	ns.Run(t, "bash", "-ec", static.start)
	defer ns.Run(t, "bash", "-c", static.end)
	ns.Run(t, "bash", "-ec", `useradd -m -u 2424 tester
		echo 'tester ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/tester; chmod 440 /etc/sudoers.d/tester
		mkdir -p /tmp/.X11-unix && chmod 1777 /tmp/.X11-unix
		install -d -o tester -m 700 /run/tester
		install -o tester -m 600 /dev/null /run/tester/xauth`)
	defer ns.Run(t, "bash", "-c", "rm -rf /etc/sudoers.d/tester /run/tester; userdel -r tester")
	if err := os.WriteFile("/usr/local/bin/browser.pl", []byte(browser), 0o644); err != nil {
		t.Fatal(err)
	}
	display(t, "/run/tester/wayland-7")
	display(t, "/tmp/.X11-unix/X77")
	bus := exec.Command("setpriv", "--reuid=2424", "--regid=2424", "--clear-groups", "dbus-daemon", "--session", "--nofork", "--nopidfile", "--address=unix:path=/run/tester/bus")
	if err := bus.Start(); err != nil {
		t.Fatal(err)
	}
	defer bed.End(bus)
	if !bed.Wait(20*time.Second, func() bool { _, err := os.Stat("/run/tester/bus"); return err == nil }) {
		t.Fatal("no D-Bus session")
	}
	ns.Run(t, "wg-quickns", "up", "wg0")
	defer ns.Run(t, "wg-quickns", "down", "wg0")
	for _, c := range []struct{ call, own string }{
		{"wg-quickns", "kept"}, // which calls sudo itself
		{"sudo -E wg-quickns", "kept"},
		{"sudo wg-quickns", ""}, // which drops the environment
	} {
		want := "user: 2424 tester /home/tester\ninterface: eth0\nwayland: welcome\nx11: welcome\ncookie: welcome\nbus: OK\nown: " + c.own + "\n"
		r := ns.Try(exec.Command("runuser", "-u", "tester", "--", "env", "-i", "HOME=/home/tester", "USER=tester", "LOGNAME=tester", "PATH=/usr/local/bin:/usr/bin:/bin", "bash", "-c", `export DISPLAY=:77 WAYLAND_DISPLAY=wayland-7 XAUTHORITY=/run/tester/xauth XDG_RUNTIME_DIR=/run/tester
			export DBUS_SESSION_BUS_ADDRESS=unix:path=/run/tester/bus BROWSER_OWN=kept; `+c.call+` exec wg0 -- perl /usr/local/bin/browser.pl; exit $?`))
		if r.Code != 0 || r.Stdout != want {
			t.Errorf("%s exec: %d\n%s%s", c.call, r.Code, r.Stdout, r.Stderr)
		}
	}
	// The control: outside there is no eth0.
	if out := ns.Run(t, "runuser", "-u", "tester", "--", "ls", "/sys/class/net"); strings.Contains(out, "eth0") {
		t.Errorf("eth0 is at home: %s", out)
	}
}
