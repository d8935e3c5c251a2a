package plan

import "strings"

// netnsDir is where ip-netns(8) keeps named namespaces.
const netnsDir = "/run/netns/"

// Named is the namespace of that name, as ip-netns(8) has it.
func Named(name string) NS { return NS(netnsDir + name) }

// Name is the namespace's name where it has one.
func (ns NS) Name() (string, bool) { return strings.CutPrefix(string(ns), netnsDir) }

// Trace is what a step does in a namespace, as command lines: Commands, each by
// way of `ip -n`, `ip netns exec` or nsenter(1).
func Trace(ns NS, s Step) []string {
	commands := s.Commands()
	switch s := s.(type) {
	case Hook, Netns, Resolv, DNS, Move, Views, Confine, Service:
		return commands
	case Link:
		if s.Birth != nil && !s.Delete {
			into := "1"
			if name, ok := ns.Name(); ok {
				into = name
			} else if ns != "" {
				into = string(ns)
			}
			return []string{inside(*s.Birth, "ip link add dev "+s.Name+" netns "+into+" type wireguard")}
		}
	}
	if ns == "" {
		return commands
	}
	out := make([]string, len(commands))
	for i, c := range commands {
		out[i] = inside(ns, c)
	}
	return out
}

// inside is a command line run in a namespace.
func inside(ns NS, command string) string {
	if ns == "" {
		return command
	}
	name, named := ns.Name()
	rest, ip := strings.CutPrefix(command, "ip ")
	switch {
	case named && ip:
		return "ip -n " + name + " " + rest
	case named:
		return "ip netns exec " + name + " " + command
	}
	return "nsenter --net=" + string(ns) + " -- " + command
}
