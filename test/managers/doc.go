// Package managers tests who configures an interface: found, confined to another
// network namespace with the interface, and back. All files but this have the build
// tag systemd; the tests run in a machine that is theirs (test/run systemd). MANAGERS=all
// is all of them; without it there is only NetworkManager's.
package managers
