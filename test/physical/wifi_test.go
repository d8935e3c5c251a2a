//go:build lab && !systemd

package physical

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"

	"wg-quickns/test/bed"
	"wg-quickns/test/ns"
	"wg-quickns/test/state"
)

// TestNothingLeavesWiFi is TestNothingLeaves by Wi-Fi with WPA2, seen from the access point.
func TestNothingLeavesWiFi(t *testing.T) {
	newLeaky(t, func(w *leaky) {
		w.wifi()
		w.home, w.flap = "iw phy wgqstation set netns 1", w.flapWiFi
	}).nothingLeaves()
}

// TestLifeWiFi: a phy goes away with its supplicant, which joins its network there, and both come home.
func TestLifeWiFi(t *testing.T) {
	w := newWorld(t, "")
	w.wifi()
	w.before = w.take()
	w.wants(0, "[#] iw phy wgqstation set netns name physical", "up", "wg0")
	if out := w.NS.Run("ip", "-br", "link"); strings.Contains(out, "uplink") {
		t.Errorf("links at home:\n%s", out)
	}
	w.reaches("physical")
	w.wants(0, "iw phy wgqstation set netns 1", "down", "wg0")
	w.home()
	w.reaches(w.NS.Name)
}

// TestComesHomeWiFi is TestComesHome by Wi-Fi.
func TestComesHomeWiFi(t *testing.T) {
	w := newWorld(t, "")
	w.wifi()
	w.before = w.take()
	w.comesHome()
}

// wifi replaces the uplink by a simulated Wi-Fi device (mac80211_hwsim), whose access
// point is the gateway.
func (w *world) wifi() {
	t := w.t
	t.Helper()
	w.NS.Run("ip", "link", "del", "uplink")
	_ = exec.Command("modprobe", "-q", "mac80211_hwsim", "radios=0").Run() // it may be built in
	plug(t, "wgqstation", w.NS)
	plug(t, "wgqpoint", w.Far)
	ns.Run(t, "bash", "-ec", `printf '%s\n' interface=uplink ssid=test channel=1 hw_mode=g wpa=2 wpa_key_mgmt=WPA-PSK rsn_pairwise=CCMP \
			wpa_passphrase=onlyforthistest driver_params=control_port=0 ctrl_interface=/run/hostapd >/run/hostapd.conf
		printf 'network={\nssid="test"\npsk="onlyforthistest"\nscan_freq=2412\n}\n' >/run/wpa.conf`)
	t.Cleanup(func() {
		for _, n := range []*ns.NS{w.NS, w.Far} {
			for _, pid := range strings.Fields(ns.Run(t, "ip", "netns", "pids", n.Name)) {
				_ = exec.Command("kill", "-9", pid).Run() // one may have ended
			}
		}
		bed.Wait(5*time.Second, func() bool {
			return ns.Run(t, "ip", "netns", "pids", w.NS.Name)+ns.Run(t, "ip", "netns", "pids", w.Far.Name) == ""
		})
		// they would go to the machine's first namespace
		for name, n := range map[string]*ns.NS{"wgqstation": w.NS, "wgqpoint": w.Far} {
			if err := n.Do(func() error { return hwsim(delRadio, name) }); err != nil {
				t.Error(err)
			}
			bed.Wait(5*time.Second, func() bool { return n.Try("ip", "link", "show", "uplink").Code != 0 })
		}
	})
	w.Far.Run("bash", "-ec", `ip addr add 192.0.2.1/24 dev uplink; ip -6 addr add 2001:db8::1/64 dev uplink nodad
		hostapd -B -P /run/hostapd.pid /run/hostapd.conf >&2; ip link set uplink up`)
	w.NS.Run("bash", "-ec", `ip link set uplink up; ip addr add 192.0.2.2/24 dev uplink; ip -6 addr add 2001:db8::2/64 dev uplink nodad
		ip route add default via 192.0.2.1; ip -6 route add default via 2001:db8::1
		wpa_supplicant -B -D nl80211 -i uplink -c /run/wpa.conf -P /run/wpa.pid >&2`)
}

// flapWiFi takes the uplink down and up again, and then the access point sends it away.
func (w *leaky) flapWiFi() {
	w.away("link", "set", "uplink", "down")
	time.Sleep(hold / 2)
	ns.Run(w.t, "bash", "-ec", `ip -n physical link set uplink up
		ip -n physical route replace default via 192.0.2.1; ip -n physical addr replace 2001:db8::2/64 dev uplink nodad`)
	w.works()
	mac := strings.TrimSpace(ns.Run(w.t, "ip", "netns", "exec", "physical", "cat", "/sys/class/net/uplink/address"))
	w.Far.Run("hostapd_cli", "-p", "/run/hostapd", "deauthenticate", mac)
	w.works()
	if w.capture.Count("eapol") == 0 {
		w.t.Error("the capture has no association")
	}
}

// TestVanishesWiFi: a Wi-Fi device that is pulled out goes on where it was when it is plugged
// in again, with its supplicant, which comes home with it; and where it is not, down ends all
// the same, without the supplicant.
func TestVanishesWiFi(t *testing.T) {
	w := newWorld(t, "")
	w.wifi()
	look := func(at string) string {
		return ns.Run(t, "bash", "-ec", "at() { ip -n "+at+` "$@"; }
			at -br addr show uplink; at route; at -6 route | grep -v fe80; pgrep -xa wpa_supplicant | cut -d' ' -f2-`)
	}
	w.reaches("bed")
	before := look("bed")
	w.up()
	w.reaches("physical")
	away := look("physical")
	guard := w.guard()
	physical := *w.NS
	physical.Name = "physical"
	pull := func() {
		t.Helper()
		if err := physical.Do(func() error { return hwsim(delRadio, "wgqstation") }); err != nil {
			t.Fatal(err)
		}
		if r := (bed.Result{}); !bed.Wait(10*time.Second, func() bool {
			r = w.Run(nil, w.Program, "status", "wg0")
			return r.Code == 4 && strings.Contains(r.Output, "wg0: interface uplink is gone")
		}) {
			t.Errorf("status: %s", r)
		}
	}
	for range 2 {
		pull()
		if !bed.Wait(10*time.Second, func() bool { return strings.HasSuffix(guard.Says(), "It is moved again when it is plugged in)\n") }) {
			t.Errorf("the guard says: %s", guard.Says())
		}
		plug(t, "wgqstation", w.NS)
		if !bed.Wait(10*time.Second, func() bool { return strings.HasSuffix(guard.Says(), "-P /run/wpa.pid\n") }) {
			t.Fatalf("the guard says: %s\n%s", guard.Says(), w.away("link"))
		}
		w.reaches("physical")
		if now := look("physical"); now != away {
			t.Errorf("away now\n%sand before\n%s", now, away)
		}
	}
	w.wants(0, "", "down", "wg0")
	if r := guard.Wait(); r.Code != 0 {
		t.Errorf("guard: %s", r)
	}
	w.reaches("bed")
	if now := look("bed"); now != before {
		t.Errorf("at home now\n%sand before\n%s", now, before)
	}

	w.up()
	pull()
	w.wants(0, "interface uplink is nowhere to be found", "down", "wg0")
	if out := ns.Run(t, "bash", "-c", "pgrep -xa wpa_supplicant; ls /run/netns /run/wg-quickns"); strings.Contains(out, "wpa") || strings.Contains(out, "physical") || strings.Contains(out, "wg0") {
		t.Errorf("left: %s", out)
	}
}

// plug makes a Wi-Fi device, as one that is plugged in. Its interface is uplink.
func plug(t *testing.T, name string, n *ns.NS) {
	t.Helper()
	if err := hwsim(newRadio, name); err != nil {
		t.Fatal(err)
	}
	if !bed.Wait(5*time.Second, func() bool {
		return exec.Command("test", "-e", "/sys/class/ieee80211/"+name+"/device/net").Run() == nil
	}) {
		t.Fatalf("no radio %s", name)
	}
	// all are of one air, that of the namespace they are made in
	ns.Run(t, "bash", "-ec", `ip link set $(ls /sys/class/ieee80211/$0/device/net) name uplink; iw phy $0 set netns name $1`, name, n.Name)
}

// Commands of drivers/net/wireless/mac80211_hwsim.h.
const newRadio, delRadio = 4, 5

// hwsim makes or deletes a Wi-Fi device in the thread's namespace.
func hwsim(command uint8, name string) error {
	c, err := genetlink.Dial(nil)
	if err != nil {
		return err
	}
	defer c.Close()
	family, err := c.GetFamily("MAC80211_HWSIM")
	if err != nil {
		return err
	}
	const radioName, permAddr = 17, 22 // HWSIM_ATTR_*
	list := []netlink.Attribute{{Type: radioName, Data: append([]byte(name), 0)}}
	if command == newRadio { // a name has the same address each time, as a device that is plugged in again does
		list = append(list, netlink.Attribute{Type: permAddr, Data: append([]byte{2, 'w', 'g'}, name[3:6]...)})
	}
	attrs, err := netlink.MarshalAttributes(list)
	if err == nil { // what it answers looks like an error: the device's number
		_, err = c.Send(genetlink.Message{Header: genetlink.Header{Command: command, Version: 1}, Data: attrs}, family.ID, netlink.Request)
	}
	return err
}

// TestCannotLeave: what the kernel does not let go is said before anything is done.
func TestCannotLeave(t *testing.T) {
	w := newWorld(t, "PhysicalInterfaces = uplink, br1\n")
	w.NS.Run("ip", "link", "add", "br1", "type", "bridge", "vlan_filtering", "1")
	before := w.take()
	r := w.Up("wg0")
	if r.Code != 1 || !strings.Contains(r.Output, "`br1' cannot leave its namespace") || strings.Contains(r.Output, "[#]") {
		t.Errorf("up: %s", r)
	}
	if changed := state.Diff(before, w.take()); changed != "" {
		t.Errorf("the state before and after:\n%s", changed)
	}
}
