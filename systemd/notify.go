// Package systemd holds the unit files, and what talks to systemd as the service
// that it starts: sd_notify(3), and the journal.
package systemd

import (
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Ready tells systemd that the service has started, with a line for `systemctl
// status`. Outside of a service of Type=notify it does nothing.
func Ready(status string) {
	// What cannot be told to systemd is seen by systemd: it times out.
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady+"\nSTATUS="+status)
}

// Status changes the line for `systemctl status`.
func Status(status string) { _, _ = daemon.SdNotify(false, "STATUS="+status) }

// Alive tells systemd's watchdog that the service lives.
func Alive() { _, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog) }

// Watchdog is how often to call Alive: half of what WatchdogSec= allows, 0 for never.
func Watchdog() time.Duration {
	d, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return 0
	}
	return d / 2
}
