package confparse

import (
	"fmt"
	"path"
	"strconv"
	"strings"
)

// Values of HookNamespace.
const (
	HookInterface = "interface"
	HookBirth     = "birth"
	HookCaller    = "caller"
)

// NamespaceKind is the way in which a config names a network namespace.
type NamespaceKind int

// Ways to name a namespace.
const (
	NSCaller  NamespaceKind = iota // not named: that of the caller
	NSName                         // NAME under /run/netns
	NSInit                         // `init`: that of PID 1
	NSPID                          // `pid:N`
	NSNumber                       // a bare number: a PID, unless a namespace has that name
	NSPath                         // an absolute path
	NSDocker                       // `docker:NAME`: a container's
	NSPodman                       // `podman:NAME`
	NSUnit                         // `unit:NAME`: that of a systemd unit's main process
	NSMachine                      // `machine:NAME`: that of a machine of systemd-machined
)

// Namespace names a network namespace as the config does. Value is without the
// kind's prefix; for a NSPID or NSNumber it is the number.
type Namespace struct {
	Kind  NamespaceKind
	Value string
	Line  int // in the file, from 1
}

var namespacePrefixes = []struct {
	text string
	kind NamespaceKind
}{
	{"pid:", NSPID}, {"docker:", NSDocker}, {"podman:", NSPodman}, {"unit:", NSUnit}, {"machine:", NSMachine},
}

// String spells the namespace as the config may.
func (n Namespace) String() string {
	for _, p := range namespacePrefixes {
		if p.kind == n.Kind {
			return p.text + n.Value
		}
	}
	return n.Value
}

// namespace reads one value; an empty one means the caller's again.
func (c *Config) namespace(e entry) (Namespace, error) {
	n, problem := parseNamespace(e.value)
	if problem != "" {
		return n, c.errorf(e.line, KindQuick, "`%s' is no namespace: %s", redact(e.value), problem)
	}
	n.Line = e.line
	return n, nil
}

// ParseNamespace reads a namespace as a config names it.
func ParseNamespace(s string) (Namespace, error) {
	n, problem := parseNamespace(s)
	if problem != "" {
		return n, fmt.Errorf("`%s' is no namespace: %s", s, problem)
	}
	return n, nil
}

func parseNamespace(s string) (n Namespace, problem string) {
	n.Value = s
	for _, p := range namespacePrefixes {
		if len(s) < len(p.text) || asciiLower(s[:len(p.text)]) != p.text {
			continue
		}
		n.Kind, n.Value = p.kind, s[len(p.text):]
		switch {
		case n.Value == "":
			return n, "a name must follow " + p.text
		case n.Kind == NSPID && !isPID(n.Value):
			return n, "a process ID must follow pid:"
		case strings.ContainsAny(n.Value, "/ \t"):
			return n, "it may hold no slash and no blank"
		}
		return n, ""
	}
	switch {
	case s == "":
		n.Kind = NSCaller
	case asciiLower(s) == "init":
		n.Kind, n.Value = NSInit, "init"
	case isPID(s):
		n.Kind = NSNumber
	case strings.Trim(s, "0123456789") == "":
		return n, "it is neither a name nor a process ID"
	case path.IsAbs(s):
		n.Kind = NSPath
	case strings.Contains(s, "/"):
		return n, "a path must begin with /, and a name may hold no slash"
	case s == "." || s == ".." || s[0] == '-' || s[0] == '@':
		return n, "such a name is refused"
	case strings.ContainsAny(s, " \t:"):
		return n, "a name may hold no blank and no colon"
	case len(s) > 255:
		return n, "it is longer than a file's name may be"
	default:
		n.Kind = NSName
	}
	return n, ""
}

// isPID says whether s is a number that a process may have (PID_MAX_LIMIT is
// 2^22, linux/threads.h).
func isPID(s string) bool {
	n, err := strconv.ParseUint(s, 10, 23)
	return err == nil && n > 0 && s[0] != '+' && n <= 1<<22
}
