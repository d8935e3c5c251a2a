//go:build systemd

package systemd

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"wg-quickns/test/ns"
)

// TestJournal: what a unit's commands say is in the journal once, with fields; what
// hooks say is there too, as they say it.
func TestJournal(t *testing.T) {
	tunnel(t, "Namespace = journaled\nPostUp = echo \"$WG_QUICKNS_PHASE\" of %i >&2\nPreDown = false", "192.0.2.10:51820")
	ns.Run(t, "bash", "-c", "journalctl --sync; journalctl --rotate --vacuum-time=1s")
	ns.Run(t, "systemctl", "start", "wg-quickns@unit")
	systemctl(t, "stop", "wg-quickns@unit")
	ns.Run(t, "sed", "-i", "s/^PreDown.*//", "/etc/wireguard/unit.conf")
	if r := ns.Try(exec.Command("wg-quickns", "down", "unit")); r.Code != 0 || !strings.Contains(r.Stderr, "[#] ip -n journaled link delete dev unit") {
		t.Errorf("down by hand: exit status %d\n%s", r.Code, r.Stderr)
	}
	ns.Run(t, "journalctl", "--sync")
	seen := make(map[string]int)
	for line := range strings.Lines(ns.Run(t, "journalctl", "-o", "json", "-u", "wg-quickns@unit")) {
		var entry struct {
			Message    string `json:"MESSAGE"`
			Priority   string `json:"PRIORITY"`
			Transport  string `json:"_TRANSPORT"`
			Identifier string `json:"SYSLOG_IDENTIFIER"`
			Interface  string `json:"WG_QUICKNS_INTERFACE"`
			Namespace  string `json:"WG_QUICKNS_NAMESPACE"`
			Phase      string `json:"WG_QUICKNS_PHASE"`
		}
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatal(err)
		}
		if entry.Message == "PostUp of unit" && entry.Transport == "stdout" {
			seen["hook"]++
		}
		if !strings.HasPrefix(entry.Message, "[#] ") {
			continue
		}
		seen[entry.Phase]++
		seen[entry.Phase+entry.Message]++
		if entry.Transport != "journal" || entry.Priority != "6" || entry.Identifier != "wg-quickns" || entry.Interface != "unit" ||
			entry.Namespace != "journaled" {
			t.Errorf("an entry without its fields: %s", line)
		}
	}
	for what, n := range map[string]int{"hook": 1, "up[#] ip -n journaled link set mtu 1420 up dev unit": 1, "down[#] false": 1, "down": 1} {
		if seen[what] != n {
			t.Errorf("%q is there %d times, not %d: %v", what, seen[what], n, seen)
		}
	}
	ns.Run(t, "systemctl", "reset-failed", "wg-quickns@unit")
}
