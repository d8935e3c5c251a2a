//go:build !systemd

package physical

import (
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"wg-quickns/test/bed"
	"wg-quickns/test/ns"
	"wg-quickns/test/state"
)

// TestClient: a supplicant that was started by hand comes home only with its interface: it
// is not for another one that has the name.
func TestClient(t *testing.T) {
	w := newWorld(t, "")
	ns.Run(t, "bash", "-c", "install $(realpath $(which perl)) /run/wpa_supplicant")
	supplicant, err := w.Start(nil, "/run/wpa_supplicant", "-e", "sleep 1000", "--", "-iuplink")
	if err != nil {
		t.Fatal(err)
	}
	runs := func(where string) bool {
		return bed.Wait(2*time.Second, func() bool {
			return w.NS.Try("bash", "-c", "pgrep -x wpa_supplicant | grep -w "+"\"$(ip netns pids "+where+")\"").Code == 0
		})
	}
	if !runs("bed") {
		t.Fatal("no supplicant")
	}
	w.up()
	supplicant.Wait()
	if !runs("physical") {
		t.Error("it does not run away from home")
	}
	w.NS.Run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "other")
	w.wants(1, "wpa_supplicant", "down", "wg0")
	if !bed.Wait(2*time.Second, func() bool { return w.NS.Try("pgrep", "-x", "wpa_supplicant").Code != 0 }) { // a zombie is found too
		t.Error("it runs for another interface")
	}
	w.NS.Run("ip", "link", "del", "uplink")
	w.wants(0, "netns 1", "down", "wg0")
	if !runs("bed") {
		t.Error("it does not run at home")
	}
	// a program that is gone by then is no reason not to come home
	w.wants(0, "[#] ip netns exec physical /run/wpa_supplicant -e", "up", "wg0")
	ns.Run(t, "rm", "/run/wpa_supplicant")
	w.wants(0, "Warning: /run/wpa_supplicant -e sleep 1000 -- -iuplink is not started again", "down", "wg0")
	w.home()
}

// running waits until a program of a name is executed.
func running(t *testing.T, name string) {
	t.Helper()
	if !bed.Wait(5*time.Second, func() bool { return ns.Try(exec.Command("pgrep", "-x", name)).Code == 0 }) {
		t.Fatal("not running:", name)
	}
}

// TestStrangers: what others than root call a DHCP client is neither ended nor started as
// one, as root and past the tunnel.
func TestStrangers(t *testing.T) {
	for _, c := range []struct{ what, as, line, why string }{
		{"a title", "nobody", "exec -a 'dhcpcd: uplink [ip4]' /run/nobody/evil -f /dev/null", `its program is "/run/nobody/evil"`},
		{"su at its prompt", "nobody", "exec -a dhclient /run/su -f /dev/null uplink", `its program is "/run/su"`},
		{"setuid", "nobody", "exec /run/udhcpc -f /dev/null uplink", "it is not root's"},
		{"a user's own", "nobody", "exec /run/dhclient -f /dev/null uplink", "it is not root's"},
		{"a user's program", "root", "exec /run/nobody/dhclient -f /dev/null uplink", `others than root may change "/run/nobody/dhclient"`},
		{"in a container", "root", "exec unshare -m bash -ec 'mount -t tmpfs c /mnt; cd /mnt; mkdir run dev usr; mount --bind /usr usr; mount --rbind /dev dev; ln -s usr/* .; cp /run/dhclient run; exec chroot . /run/dhclient -f /dev/null uplink'",
			"it is not root's, or a container's"},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := newWorld(t, "")
			ns.Run(t, "bash", "-ec", `tail=$(realpath $(which tail)); install -d -o nobody /run/nobody
				install -o nobody $tail /run/nobody/evil; install -o nobody $tail /run/nobody/dhclient
				install $tail /run/dhclient; install -m 4755 $tail /run/su; install -m 4755 $tail /run/udhcpc`)
			p, err := w.Start(nil, "setpriv", "--reuid", c.as, "--clear-groups", "bash", "-c", c.line)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Signal(syscall.SIGKILL)
			running(t, "evil|su|dhclient|udhcpc")
			r := w.Run(nil, w.Program, "up", "wg0")
			if r.Code != 0 || !strings.Contains(r.Output, "which configures uplink, is left alone: "+c.why) || strings.Contains(r.Output, "[#] pkill") {
				t.Errorf("up: %s", r)
			}
			w.wants(0, "netns 1", "down", "wg0")
			p.Signal(syscall.SIGUSR1)
			if r := p.Wait(); r.Code != 128+int(syscall.SIGUSR1) {
				t.Errorf("it was ended: %s", r)
			}
			w.home()
		})
	}
}

// TestOthersClient: one of an interface that stays is not ended, whatever namespace /sys
// is of: it is not that of the tests' machine.
func TestOthersClient(t *testing.T) {
	w := newWorld(t, "")
	w.NS.Run("ip", "link", "add", "other0", "type", "veth", "peer", "name", "other1")
	ns.Run(t, "bash", "-c", "install $(realpath $(which tail)) /run/dhclient")
	p, err := w.Start(nil, "/run/dhclient", "-f", "/dev/null", "other0")
	if err != nil {
		t.Fatal(err)
	}
	running(t, "dhclient")
	w.up()
	w.wants(0, "netns 1", "down", "wg0")
	p.Signal(syscall.SIGUSR1)
	if r := p.Wait(); r.Code != 128+int(syscall.SIGUSR1) {
		t.Errorf("it was ended: %s", r)
	}
	w.NS.Run("ip", "link", "del", "other0")
	w.home()
}

// TestUnstartable: a client that could not be started again is not ended, and nothing is
// changed.
func TestUnstartable(t *testing.T) {
	w := newWorld(t, "")
	ns.Run(t, "bash", "-c", "install $(realpath $(which tail)) /run/dhclient; mkdir /run/apart")
	for name, c := range map[string]struct{ line, after, why string }{
		"in another mount namespace": {"mount -t tmpfs apart /run/apart; cp /run/dhclient /run/apart; exec /run/apart/dhclient", "", "no such file"},
		"of another's file":          {"cp /run/dhclient /run/other; mount --bind /run/other /run/dhclient; exec /run/dhclient", "", "is another program than the one that runs"},
		"removed":                    {"cp /run/dhclient /run/apart; exec /run/apart/dhclient", "rm /run/apart/dhclient", "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := w.Start(nil, "unshare", "-m", "bash", "-c", c.line+" -f /dev/null uplink")
			if err != nil {
				t.Fatal(err)
			}
			running(t, "dhclient")
			ns.Run(t, "bash", "-c", c.after)
			before := w.take()
			r := w.Run(nil, w.Program, "up", "wg0")
			if r.Code != 1 || !strings.Contains(r.Output, "could not be started again") || !strings.Contains(r.Output, c.why) || strings.Contains(r.Output, "link set dev uplink") {
				t.Errorf("up: %s", r)
			}
			if changed := state.Diff(before, w.take()); changed != "" {
				t.Errorf("the state before and after:\n%s", changed)
			}
			p.Signal(syscall.SIGUSR1)
			if r := p.Wait(); r.Code != 128+int(syscall.SIGUSR1) {
				t.Errorf("it was ended: %s", r)
			}
			w.wants(1, fmt.Sprintf("`%s' is not", "wg0"), "down", "wg0")
		})
	}
	w.home()
}
