// Package kernel carries out the steps of a plan on the Linux kernel, and reads
// from it what a plan is made of. It alone changes anything by netlink, wgctrl and
// nftables; a few others look an interface up. Everything it does, it does in the
// namespace it is told, by sockets opened there: that of rtnetlink once for the whole
// run, those that libraries open (nftables, userspace WireGuard, nl80211) each time.
package kernel
