// Package kernel carries out the steps of a plan on the Linux kernel, and reads
// from it what a plan is made of. It is the only user of netlink, wgctrl and
// nftables. Everything it does, it does in the namespace it is told, by sockets
// opened there once and used for the whole run.
package kernel
