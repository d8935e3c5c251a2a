package dns

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"
)

// Where the servers of this machine are read, the second where the first leads to
// a resolver of its own (systemd-resolved.service(8)).
const (
	etcResolv      = "/etc/resolv.conf"
	resolvedResolv = "/run/systemd/resolve/resolv.conf"
)

// Upstream lists the servers and search domains that this machine asks, as another
// network namespace can: servers on a loopback address are left out, and those
// that systemd-resolved(8) asks taken in place of its own.
func Upstream() (servers, search []string, err error) {
	for _, path := range []string{etcResolv, resolvedResolv} {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, nil, fmt.Errorf("read the machine's name servers: %w", err)
		}
		if servers, search = upstream(string(text)); len(servers) > 0 {
			break
		}
	}
	return servers, search, nil
}

// upstream reads a resolv.conf(5).
func upstream(text string) (servers, search []string) {
	for line := range strings.Lines(text) {
		switch words := strings.Fields(line); {
		case len(words) < 2:
		case words[0] == "nameserver":
			if a, err := netip.ParseAddr(words[1]); err == nil && !a.IsLoopback() {
				servers = append(servers, words[1])
			}
		case words[0] == "search", words[0] == "domain":
			search = words[1:]
		}
	}
	return servers, search
}
