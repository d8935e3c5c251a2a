// Package physical tests `RoutingStrategy = physical-netns` on a machine of its own
// with systemd: eth0 and wlan0 go away and come home, whoever configures them.
// WGQ_PHYSICAL_ROUNDS says how often each is done; without it only the two that
// take least are, once. Without systemd, in namespaces: that nothing leaves in the
// clear meanwhile, 20 times with WGQ_PHYSICAL_FULL=1, and that interfaces come home. The same by
// Wi-Fi takes a kernel with mac80211_hwsim, and minutes where that is emulated: see test/lab/run.
package physical
