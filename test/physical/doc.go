// Package physical tests `RoutingStrategy = physical-netns` on a machine of its own
// with systemd: eth0 and wlan0 go away and come home, whoever configures them.
// WGQ_PHYSICAL_ROUNDS says how often each is done;
// without it only two are, once.
package physical
