package plan

// UndoRank is the place of an undo step among the others, lowest first; equal
// ranks are undone newest first. The order is wg-quick's: its `down` takes off
// rules, device, DNS and firewall, its rollback of a failed `up` takes off DNS
// and firewall first. Sysctls come last, when nothing needs them any more.
func UndoRank(s Step, rollback bool) int {
	down := map[string]int{KindRule: 0, KindLink: 1, KindDNS: 2, KindNft: 3, KindSysctl: 4}
	back := map[string]int{KindDNS: 0, KindNft: 1, KindRule: 2, KindLink: 3, KindSysctl: 4}
	if rollback {
		return back[s.Kind()]
	}
	return down[s.Kind()]
}
