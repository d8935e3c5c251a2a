// Package check looks configs over: it finds what `up` would refuse, and what it
// would do though it can hardly be meant. It is pure: files, names of tables and
// the like are read by who calls it.
package check

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"wg-quickns/confparse"
)

// Severity says how bad a finding is.
type Severity string

// What a finding means for `up`.
const (
	Error   Severity = "error"   // it refuses the file, or fails
	Warning Severity = "warning" // it works, but unsafely or hardly as meant
	Note    Severity = "note"    // it works; something is worth knowing
)

// Finding is what is to be said of one line, or, with line 0, of the whole file.
type Finding struct {
	File     string   `json:"file"`
	Line     int      `json:"line"` // from 1
	Severity Severity `json:"severity"`
	ID       string   `json:"id"` // names the kind of finding and does not change
	Message  string   `json:"message"`
	Hint     string   `json:"hint"` // what to do
}

// Sort orders the findings of one file by line, worst first.
func Sort(list []Finding) {
	rank := map[Severity]int{Error: 0, Warning: 1, Note: 2}
	slices.SortStableFunc(list, func(a, b Finding) int {
		return cmp.Or(a.Line-b.Line, rank[a.Severity]-rank[b.Severity])
	})
}

// checker looks one config over.
type checker struct {
	cfg      *confparse.Config
	settings []confparse.Setting
	found    []Finding
}

// Config looks one file over; path is for the findings, tables are the names of
// routing tables. The Config is without what is wrong, and not for use.
func Config(path string, data []byte, tables map[string]uint32) (*confparse.Config, []Finding, error) {
	const mark = "\ufeff"
	data, marked := bytes.CutPrefix(data, []byte(mark))
	cfg, wrong, err := confparse.ParseAll(path, data)
	if err != nil {
		return nil, nil, err
	}
	c := &checker{cfg: cfg, settings: cfg.Settings()}
	if e, ok := cfg.CheckTable(tables).(*confparse.Error); ok && !slices.ContainsFunc(wrong, func(w *confparse.Error) bool { return *w == *e }) {
		wrong = append(wrong, e)
	}
	if marked {
		c.add(1, Error, "syntax", "save it as UTF-8 without one", "the file begins with a byte order mark, which is taken for a part of its first line")
	}
	c.syntax(wrong)
	syntax := len(c.found)
	c.repeated()
	c.keys()
	c.link(tables)
	c.peers()
	c.allowedIPs()
	c.endpoints()
	c.routing()
	c.dns()
	c.namespaces()
	c.saving()
	// What follows from an error in a line, or in the section of a header, is no finding.
	bad := make(map[int]bool)
	for _, e := range wrong {
		bad[e.Line] = true
	}
	header := 0
	for _, s := range c.settings {
		if strings.HasPrefix(s.Key, "[") {
			header = s.Line
		}
		bad[header] = bad[header] || bad[s.Line]
	}
	// A key that is missing may be one that was not understood.
	bad[0] = slices.ContainsFunc(c.settings, func(s confparse.Setting) bool {
		return s.Section == iface && bad[s.Line] && !strings.HasPrefix(s.Key, "[")
	})
	odd := slices.DeleteFunc(slices.Clone(c.found[syntax:]), func(f Finding) bool { return bad[f.Line] })
	return cfg, append(c.found[:syntax], odd...), nil
}

func (c *checker) add(line int, s Severity, id, hint, format string, args ...any) {
	c.found = append(c.found, Finding{c.cfg.Path, line, s, id, fmt.Sprintf(format, args...), hint})
}

// line is where a key of [Interface] was last set; 0: nowhere.
func (c *checker) line(key string) int {
	for _, s := range slices.Backward(c.settings) {
		if s.Key == key && s.Section != peer {
			return s.Line
		}
	}
	return 0
}

// hooks are the commands of the phases named, in lower case.
func (c *checker) hooks(phases ...string) []confparse.Setting {
	return slices.DeleteFunc(slices.Clone(c.settings), func(s confparse.Setting) bool {
		return s.Section != iface || !slices.Contains(phases, s.Key)
	})
}

// said says whether a command of up has what a regular expression matches.
func (c *checker) said(pattern string) bool {
	r := regexp.MustCompile(pattern)
	return slices.ContainsFunc(c.hooks("preup", "postup"), func(s confparse.Setting) bool { return r.MatchString(s.Value) })
}

const iface, peer = "[interface]", "[peer]"

const (
	wantBool      = "write `true' or `false'"
	wantKey       = "a key is 44 characters of base64, as `wg genkey', `wg pubkey' and `wg genpsk' print them"
	wantNamespace = "a name as of ip-netns(8), `init', `pid:N', a path, `docker:NAME', `podman:NAME', `unit:NAME' or `machine:NAME'"
)

// keys are what a file may set, by section, each with what it wants.
var keys = map[string]map[string]string{
	iface: {
		"address": "addresses with the length of their network, as `10.0.0.2/24, fd00::2/64'",
		"dns":     "addresses of servers and search domains, as `10.0.0.1, corp.example'",
		"mtu":     "a number of bytes, as 1420; without it, up finds it out",
		"table":   "`auto', `off', a number below 2^32, or a name in /etc/iproute2/rt_tables",
		"preup":   "", "postup": "", "predown": "", "postdown": "",
		"saveconfig":         wantBool,
		"namespace":          wantNamespace,
		"birthnamespace":     wantNamespace,
		"hooknamespace":      "write `interface', `birth' or `caller'",
		"managenamespace":    wantBool,
		"routingstrategy":    "write `auto', `replace', `override', `rules' or `physical-netns', and leave Table to it",
		"rulepriority":       "write `RoutingStrategy = rules' and two priorities, as `RulePriority = 30, 40'",
		"killswitch":         wantBool,
		"physicalinterfaces": "names of interfaces, as `eth0, wlan0', or `auto'",
		"physicalservices":   "systemd units, `auto' or `none'",
		"physicalup":         "", "physicaldown": "",
		"privatekey": wantKey,
		"listenport": "a number, or the name of a service",
		"fwmark":     "a number, in decimal or as 0x..., or `off'",
	},
	peer: {
		"publickey":           wantKey,
		"presharedkey":        wantKey,
		"allowedips":          "whole addresses with lengths, and commas between, as `10.0.0.0/8, fd00::/8'",
		"endpoint":            "HOST:PORT, an IPv6 address in brackets: `[2001:db8::1]:51820'",
		"persistentkeepalive": "seconds from 1 to 65535, or `off'",
	},
}

// syntax reports what the parser refused.
func (c *checker) syntax(list []*confparse.Error) {
	for _, e := range list {
		c.add(e.Line, Error, "syntax", c.advice(e), "%s", e.Msg)
	}
}

// advice is what would be right where something is wrong.
func (c *checker) advice(e *confparse.Error) string {
	i := slices.IndexFunc(c.settings, func(s confparse.Setting) bool { return s.Line == e.Line })
	if i < 0 {
		return "see wg-quickns.conf(5)"
	}
	s := c.settings[i]
	if want := keys[s.Section][s.Key]; want != "" && !strings.HasPrefix(e.Msg, "Line unrecognized") {
		return want
	}
	text := c.cfg.Lines[e.Line-1].Text
	switch other := map[string]string{iface: peer, peer: iface}[s.Section]; {
	case s.Key == peer:
		return "write `PublicKey = ...' below it: what `wg pubkey' makes of the other end's private key"
	case strings.HasPrefix(s.Key, "["):
		return "the sections are [Interface] and [Peer]"
	case strings.HasPrefix(text, "#"):
		return "of this program's keys only, and in [Interface]; any other comment should begin otherwise"
	case strings.HasPrefix(text, ";"), strings.HasPrefix(text, "//"):
		return "a comment begins with `#'"
	case s.Section == "":
		return "write [Interface] or [Peer] above it"
	case keys[s.Section][s.Key] != "":
		return "a value must follow: " + keys[s.Section][s.Key]
	case other != "" && keys[other][s.Key] != "":
		return "this key belongs into " + strings.ToUpper(other[:2]) + other[2:]
	case !strings.Contains(text, "="):
		return "a line is `Key = value', and no value continues in the next line"
	}
	best, least := "", 3
	for _, section := range []string{s.Section, iface, peer} {
		for _, key := range slices.Sorted(maps.Keys(keys[section])) {
			if d := distance(s.Key, key); d < least {
				best, least = key, d
			}
		}
	}
	if best != "" {
		return "did you mean `" + best + "'?"
	}
	return "wg-quickns.conf(5) has all keys"
}

// distance is how many letters must be put in, taken out or replaced to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := before
			if a[i] != b[j] {
				change++
			}
			before = row[j+1]
			row[j+1] = min(change, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}

// repeated reports keys of which only the last counts.
func (c *checker) repeated() {
	type place struct {
		header int
		key    string
	}
	seen := make(map[place]int)
	header := 0
	for _, s := range c.settings {
		if strings.HasPrefix(s.Key, "[") {
			header = s.Line
			continue
		}
		switch s.Key {
		case "address", "dns", "preup", "postup", "predown", "postdown", "allowedips":
			continue
		}
		at := place{header, s.Key}
		if s.Section == iface {
			at.header = 0 // all of these are one
		}
		if keys[s.Section][s.Key] != "" && seen[at] > 0 {
			c.add(s.Line, Warning, "repeated", "leave one of them out", "set a second time: this one counts, and not line %d's", seen[at])
		}
		seen[at] = s.Line
	}
}
