// Package state takes snapshots of everything a tunnel may change, normalised
// so that two of them compare: before against after, the reference against ours.
package state

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"wg-quickns/test/ns"
)

// State is a snapshot: lines by section, sorted. The sections are link, addr,
// route, rule, nft, iptables, sysctl and wg of one network namespace, and file,
// mount and process of the whole (isolated) machine.
type State map[string][]string

// Take reads the state of namespace n, or with nil of the one the test is in.
// Interface indexes, random MAC addresses and what follows from them, handles,
// counters and lifetimes are left out; keys are hashed. Any failing read is an error.
func Take(n *ns.NS) (State, error) {
	s := State{}
	take := func() error {
		for _, read := range []func(State) error{readIP, readNft, readIptables, readSysctl, readWG, readFiles, readMounts, readProcesses} {
			if err := read(s); err != nil {
				return fmt.Errorf("read state: %w", err)
			}
		}
		return nil
	}
	var err error
	if n == nil {
		err = take()
	} else {
		err = n.Do(take)
	}
	for _, lines := range s {
		slices.Sort(lines)
	}
	return s, err
}

func (s State) add(section, format string, args ...any) {
	s[section] = append(s[section], fmt.Sprintf(format, args...))
}

// String is the whole state, a line each.
func (s State) String() string {
	var b strings.Builder
	for _, section := range slices.Sorted(maps.Keys(s)) {
		for _, line := range s[section] {
			fmt.Fprintf(&b, "%s %s\n", section, line)
		}
	}
	return b.String()
}

// Mask replaces what matches in every line, such as a port that is random.
func (s State) Mask(expr, replacement string) State {
	re := regexp.MustCompile(expr)
	masked := State{}
	for section, lines := range s {
		for _, line := range lines {
			masked.add(section, "%s", re.ReplaceAllString(line, replacement))
		}
		slices.Sort(masked[section])
	}
	return masked
}

// Without leaves sections out.
func (s State) Without(sections ...string) State {
	rest := maps.Clone(s)
	for _, section := range sections {
		delete(rest, section)
	}
	return rest
}

// Diff says what only a has, with "-", and what only b has, with "+"; "" when
// they are equal.
func Diff(a, b State) string {
	var d strings.Builder
	sections := maps.Clone(a)
	maps.Copy(sections, b)
	for _, section := range slices.Sorted(maps.Keys(sections)) {
		count := map[string]int{}
		for _, line := range b[section] {
			count[line]++
		}
		for _, line := range a[section] {
			if count[line]--; count[line] < 0 {
				fmt.Fprintf(&d, "- %s %s\n", section, line)
				count[line] = 0
			}
		}
		for _, line := range b[section] {
			if count[line] > 0 {
				fmt.Fprintf(&d, "+ %s %s\n", section, line)
				count[line]--
			}
		}
	}
	return d.String()
}
