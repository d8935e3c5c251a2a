package crash

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"wg-quickns/test/bed"
	"wg-quickns/test/ns"
)

// TestNamespaces has the matrices for tunnels that are born in one namespace and
// live in another, with DNS and every hook. CRASH=all takes every mode at every step.
func TestNamespaces(t *testing.T) {
	few, moments := 1, 10
	if slow {
		few, moments = 3, 3
	}
	if os.Getenv("CRASH") == "all" {
		few, moments = 0, 200
	}
	for name, tunnel := range map[string]func(w *world){"named": named, "container": container, "physical": physical} {
		t.Run(name, func(t *testing.T) {
			w := worldOf(t, tunnel)
			w.few = few
			w.matrix()
			w.run("no room", w.full)
			w.run("killed at any time", func() { w.anytime(moments) })
		})
	}
}

func (w *world) puts(keys string) {
	w.text = strings.Replace(bed.FullTunnel(0), "[Interface]\n", "[Interface]\n"+keys, 1)
}

// named makes both namespaces.
func named(w *world) {
	w.puts("Namespace = box\nBirthNamespace = crib\n")
	w.home, w.resolv = "box", "/etc/netns/box/resolv.conf"
}

// physical takes the bed's uplink away.
func physical(w *world) {
	w.puts("RoutingStrategy = physical-netns\n")
	w.adds = map[string]int{"link": 1, "addr": 2, "dns": 1}
	w.away = true
}

// container goes into a process's, whose resolv.conf is written in place.
func container(w *world) {
	there := ns.New(w.root, fmt.Sprint("there", w.beds))
	pid := bed.Container(w.root, there).Process.Pid
	var err error
	if w.there, err = bed.Look(there); err != nil {
		w.t.Fatal(err)
	}
	w.root.Cleanup(w.there.Close)
	w.puts(fmt.Sprintf("Namespace = pid:%d\n", pid))
	w.home, w.resolv = there.Name, fmt.Sprintf("/proc/%d/root/etc/resolv.conf", pid)
}
