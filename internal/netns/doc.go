// Package netns finds, makes and deletes network namespaces, runs code in them
// and says which one is which. A namespace is given as in plan.NS: "" is the
// caller's own, anything else is a path that opens it (/run/netns/NAME,
// /proc/PID/ns/net).
package netns
