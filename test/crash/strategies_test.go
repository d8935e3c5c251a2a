package crash

import (
	"os"
	"testing"
)

// TestStrategies has the matrices for the strategies that change table main or have
// rules of their own: every mode at every step, in the lab with CRASH=all only.
func TestStrategies(t *testing.T) {
	few := 0
	if slow && os.Getenv("CRASH") != "all" {
		few = 3
	}
	for name, adds := range map[string]map[string]int{
		"replace":  {"link": 1, "addr": 2, "dns": 1, "rule": 0, "nft": 0, "sysctl": 0},
		"override": {"link": 1, "addr": 2, "dns": 1, "rule": 0, "nft": 0, "sysctl": 0},
		"rules":    {"link": 1, "addr": 2, "dns": 1, "rule": 3, "nft": 0, "sysctl": 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := worldOf(t, func(w *world) {
				w.puts("RoutingStrategy = " + name + "\n")
				w.adds = adds
			})
			w.few = few
			w.matrix()
			w.run("no room", w.full)
		})
	}
}
