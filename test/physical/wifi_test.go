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
	for _, name := range []string{"wgqstation", "wgqpoint"} {
		radio(t, name)
	}
	ns.Run(t, "bash", "-ec", `for p in wgqstation:bed wgqpoint:bed-far; do
			dev=$(ls /sys/class/ieee80211/${p%:*}/device/net)
			ip link set $dev name uplink; iw phy ${p%:*} set netns name ${p#*:}
		done
		printf '%s\n' interface=uplink ssid=test channel=1 hw_mode=g wpa=2 wpa_key_mgmt=WPA-PSK rsn_pairwise=CCMP \
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

// radio makes a Wi-Fi device in the test's namespace.
func radio(t *testing.T, name string) {
	t.Helper()
	if err := hwsim(newRadio, name); err != nil {
		t.Fatal(err)
	}
	if !bed.Wait(5*time.Second, func() bool {
		return exec.Command("test", "-e", "/sys/class/ieee80211/"+name+"/device/net").Run() == nil
	}) {
		t.Fatalf("no radio %s", name)
	}
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
	const radioName = 17 // HWSIM_ATTR_RADIO_NAME
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: radioName, Data: append([]byte(name), 0)}})
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
