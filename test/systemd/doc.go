// Package systemd tests what needs a machine with systemd, D-Bus and container
// engines: examples/namespaces as it stands, and every way to name a namespace
// by one of those. All files but this have the build tag systemd; the tests run
// in a machine that is theirs (test/run systemd) and work on its own network.
package systemd
