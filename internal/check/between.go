package check

import (
	"fmt"
	"net/netip"
	"strings"

	"wg-quickns/confparse"
)

// Tunnel is a config with the interface that it is for.
type Tunnel struct {
	Interface string
	Config    *confparse.Config
}

// Between finds what keeps tunnels from being up at the same time. Each finding is
// of the later one.
func Between(tunnels []Tunnel) []Finding {
	var found []Finding
	seen := make(map[string]string) // what there may be once, and where it is
	once := func(t Tunnel, line int, s Severity, key, id, hint, format string, args ...any) {
		at := t.Config.Path
		if line > 0 {
			at = fmt.Sprintf("%s:%d", at, line)
		}
		first, taken := seen[id+" "+key]
		switch {
		case !taken:
			seen[id+" "+key] = at
		case !strings.HasPrefix(first, t.Config.Path+":"):
			found = append(found, Finding{t.Config.Path, line, s, id, fmt.Sprintf(format, args...) + " also in " + first, hint})
		}
	}
	for _, t := range tunnels {
		c := &checker{cfg: t.Config, settings: t.Config.Settings()}
		d := &t.Config.Device
		home, birth := place(t.Config.Namespace)+" ", place(t.Config.BirthNamespace)+" "
		once(t, 0, Warning, home+t.Interface, "interface-shared", "rename one of the files", "interface %s is", t.Interface)
		if d.ListenPort != nil && *d.ListenPort != 0 {
			once(t, c.line("listenport"), Warning, fmt.Sprint(birth, *d.ListenPort), "port-shared", "give each tunnel a port of its own, or leave the client's out",
				"port %d cannot be received at by two: it is", *d.ListenPort)
		}
		if d.PrivateKey != nil && !d.PrivateKey.IsZero() {
			once(t, c.line("privatekey"), Note, d.PrivateKey.String64(), "key-shared", "make each a key of its own with `wg genkey'", "this private key is")
		}
		for _, a := range t.Config.Addresses {
			if a.Prefix.IsValid() {
				once(t, a.Line, Warning, home+a.Prefix.Addr().String(), "address-shared", "give each tunnel addresses of its own", "address %s is", a.Prefix.Addr())
			}
		}
		// Routes of the same table to the same network are refused by the kernel; a /0
		// of table `auto' gets a table of its own.
		if table := t.Config.Table; table != "off" {
			if table == "auto" {
				table = ""
			}
			routed := make(map[netip.Prefix]bool)
			for _, e := range c.prefixes() {
				if e.Prefix.Bits() == 0 && table == "" || routed[e.Prefix] {
					continue
				}
				routed[e.Prefix] = true
				once(t, e.Line, Warning, home+table+" "+e.Prefix.String(), "route-shared", "narrow one of them: the kernel refuses the second tunnel's route",
					"a route to %s is", e.Prefix)
			}
		}
	}
	return found
}
