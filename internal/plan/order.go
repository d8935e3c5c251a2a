package plan

import "slices"

// Undoing is an undo step in its place.
type Undoing struct {
	NS   NS
	Step Step
	// Action is the index of the action that it undoes, Undo that in its Undo.
	Action, Undo int
}

// UndoOrder is what undoes the actions, oldest first, in the order of UndoRank.
func UndoOrder(actions []Action, rollback bool) []Undoing {
	var list []Undoing
	for i, a := range slices.Backward(actions) {
		for n, s := range a.Undo {
			list = append(list, Undoing{a.NS, s, i, n})
		}
	}
	slices.SortStableFunc(list, func(a, b Undoing) int { return UndoRank(a.Step, rollback) - UndoRank(b.Step, rollback) })
	return list
}

// UndoRank is the place of an undo step among the others, lowest first; equal
// ranks are undone newest first. The order is wg-quick's: its `down` takes off
// rules (IPv4's before IPv6's, each family's own table before table main's),
// device, DNS and firewall; its rollback of a failed `up` takes off DNS and
// firewall first. Other people's routes come back before the device goes, so that
// one is there at each moment. Sysctls come late, when nothing needs them any
// more; then others' interfaces come home; then goes the kill switch, when nothing is half-way any more; and namespaces last,
// when nothing of the tunnel is in them.
func UndoRank(s Step, rollback bool) int {
	switch s := s.(type) {
	case DNS:
		switch {
		case rollback:
			return 0
		case s.Index != 0:
			return 5 // systemd-resolved knows the link only while it is there
		}
		return 9
	case Resolv:
		switch {
		case s.Shared: // by those who come home
			return 12
		case rollback:
			return 0
		}
		return 9
	case Nft:
		if rollback {
			return 1
		}
		return 10
	case Rule:
		rank := 2
		if s.IPv6 {
			rank += 2
		}
		if s.Table == TableMain {
			rank++
		}
		return rank
	case Via:
		switch {
		case s.Delete: // the way to an endpoint, as long as there is something to send there
			return 8
		case s.Restore && s.Instead == "" && s.Route.Dst.Bits() > 0: // may have been in its place
			return 9
		}
		return 6
	case Link:
		return 7
	case Route:
		return 8
	case Sysctl:
		return 11
	case KillSwitch:
		return 13
	}
	if Physical(s) { // among each other newest first
		return 12
	}
	return 14 // Netns
}
