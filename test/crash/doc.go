// Package crash breaks up and down at every point and looks at what is left. The
// matrices of tunnels in namespaces, and in the lab all, take one mode a step, in turn,
// and with CRASH=all each;
// with WG_QUICK_USERSPACE_IMPLEMENTATION they have that program where the kernel has
// no WireGuard.
package crash
