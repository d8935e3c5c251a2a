package plan

// UndoRank is the place of an undo step among the others, lowest first; equal
// ranks are undone newest first. The order is wg-quick's: its `down` takes off
// rules (IPv4's before IPv6's, each family's own table before table main's),
// device, DNS and firewall; its rollback of a failed `up` takes off DNS and
// firewall first. Sysctls come late, when nothing needs them any more, and
// namespaces last, when nothing of the tunnel is in them.
func UndoRank(s Step, rollback bool) int {
	switch s := s.(type) {
	case DNS:
		switch {
		case rollback:
			return 0
		case s.Index != 0:
			return 5 // systemd-resolved knows the link only while it is there
		}
		return 7
	case Resolv:
		if rollback {
			return 0
		}
		return 7
	case Nft:
		if rollback {
			return 1
		}
		return 8
	case Rule:
		rank := 2
		if s.IPv6 {
			rank += 2
		}
		if s.Table == TableMain {
			rank++
		}
		return rank
	case Link:
		return 6
	case Sysctl:
		return 9
	}
	return 10 // Netns
}
