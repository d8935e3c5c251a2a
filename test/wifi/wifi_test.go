//go:build lab

package wifi

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/facts"
	"wg-quickns/internal/kernel"
	"wg-quickns/internal/plan"
)

const there plan.NS = "/run/netns/physical"

func TestMain(m *testing.M) {
	if os.Getenv("WG_TEST_KERNEL") != "1" {
		panic("these tests move the machine's own interfaces: they are for the lab")
	}
	// A kernel that has the driver built in has no module.
	_ = exec.Command("modprobe", "mac80211_hwsim", "radios=1").Run()
	code := m.Run()
	_ = exec.Command("rmmod", "mac80211_hwsim").Run()
	os.Exit(code)
}

// sh runs a shell script in a namespace.
func sh(t *testing.T, ns plan.NS, script string) string {
	t.Helper()
	c := exec.Command("sh", "-ec", script)
	if ns != "" {
		c = exec.Command("nsenter", "--net="+string(ns), "sh", "-ec", script)
	}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

type doer struct {
	*kernel.Doer
	t *testing.T
}

// newDoer makes a Doer that must not warn.
func newDoer(t *testing.T) doer {
	t.Helper()
	d := kernel.New(kernel.Options{Warn: func(s string) { t.Errorf("warning: %s", s) }})
	t.Cleanup(func() { d.Close() })
	return doer{d, t}
}

func (d doer) do(s plan.Step) {
	d.t.Helper()
	if _, err := d.Do(d.t.Context(), "", s); err != nil {
		d.t.Fatal(err)
	}
}

func (d doer) settle(ns plan.NS, links []facts.Interface, away plan.NS) {
	d.t.Helper()
	for _, l := range links {
		if _, err := d.Do(d.t.Context(), ns, plan.Settle{Link: l, Away: away}); err != nil {
			d.t.Fatal(err)
		}
	}
}

func (d doer) exists(s plan.Step, want bool) {
	d.t.Helper()
	if got, err := d.Exists(d.t.Context(), "", s); err != nil || got != want {
		d.t.Errorf("Exists(%+v) = %v, %v, want %v", s, got, err, want)
	}
}

// taken asserts that a step is refused because a name is taken.
func (d doer) taken(s plan.Step) {
	d.t.Helper()
	if _, err := d.Do(d.t.Context(), "", s); !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "hint: rename that") {
		d.t.Errorf("a name is taken: %v", err)
	}
}

// settings reads interfaces with all that they have.
func (d doer) settings(names ...string) (list []facts.Interface) {
	d.t.Helper()
	all, err := d.Interfaces(d.t.Context(), "")
	if err != nil {
		d.t.Fatal(err)
	}
	for _, name := range names {
		for _, l := range all {
			if l.Name == name {
				list = append(list, l)
			}
		}
	}
	if len(list) != len(names) {
		d.t.Fatalf("%v of %+v", names, all)
	}
	if err := d.Settings(d.t.Context(), "", list); err != nil {
		d.t.Fatal(err)
	}
	return list
}

func same(t *testing.T, what, before, after string) {
	t.Helper()
	if before != after {
		t.Errorf("%s:\n%s\nbefore:\n%s", what, after, before)
	}
}

// comesBack waits until the kernel has taken a namespace down and brought what was
// in it to the first one.
func comesBack(t *testing.T, alias string) {
	t.Helper()
	for range 50 {
		if strings.Contains(sh(t, "", "ip link"), alias) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("the kernel did not bring it back: %s", sh(t, "", "ip link"))
}

// TestWiFi moves a Wi-Fi device with two interfaces to another namespace and home,
// also where a name is taken, and when the namespace was deleted meanwhile.
func TestWiFi(t *testing.T) {
	d := newDoer(t)
	sh(t, "", "ip netns add physical")
	const show = "ip -o link show dev wlan0; ip -o link show dev wlan5; ip -o -4 address show dev wlan0; cat /proc/sys/net/ipv4/conf/wlan5/arp_ignore; iw dev wlan0 info; iw dev wlan5 info"
	phy := d.settings("wlan0")[0].Phy
	if phy == nil {
		t.Fatal("wlan0 is no Wi-Fi")
	}
	sh(t, "", "iw phy "+phy.Name+" interface add wlan5 type managed; ip link set wlan0 alias 'my wi-fi' mtu 1400 up; ip address add 192.0.2.7/24 dev wlan0; echo 1 >/proc/sys/net/ipv4/conf/wlan5/arp_ignore")
	links := d.settings("wlan0", "wlan5")
	for _, l := range links {
		if l.Phy == nil || *l.Phy != *phy || !l.Hardware || l.Fixed != "" {
			t.Errorf("%+v", l)
		}
	}
	before := sh(t, "", show)
	out := plan.Move{To: there, Links: links, Phy: phy}
	home := plan.Move{From: there, Links: links, Phy: phy, Home: true}

	sh(t, there, "ip link add wlan5 type bridge")
	d.taken(out)
	sh(t, there, "ip link delete wlan5")
	d.exists(out, false)
	d.do(plan.Hold{Links: []string{"wlan0", "wlan5"}})
	for range 2 {
		d.do(out)
	}
	d.exists(out, true)
	d.settle(there, links, "")
	if text := sh(t, "", "ip -br link"); strings.Contains(text, "wlan0") || strings.Contains(text, "wlan5") {
		t.Errorf("still at home: %s", text)
	}
	aliases := strings.NewReplacer(plan.AwayAlias(links[0]), "my wi-fi", `\    alias `+plan.AwayAlias(links[1]), "")
	same(t, "away", before, aliases.Replace(sh(t, there, show)))

	back := func() {
		t.Helper()
		for range 2 {
			d.do(home)
			d.exists(home, false)
			d.settle("", links, there)
		}
		same(t, "at home", before, sh(t, "", show))
	}
	// Renamed there, another address; at home its name is taken.
	sh(t, there, "ip link set wlan0 down; ip link set wlan0 name wifi address 02:00:00:00:77:77")
	sh(t, "", "ip link add wlan0 type bridge")
	d.taken(home)
	d.exists(home, true)
	sh(t, "", "ip link delete wlan0")
	back()

	// The namespace is deleted while they are there: one finds its name taken.
	d.do(out)
	d.Close()
	sh(t, "", "ip link add wlan0 type bridge; ip netns delete physical")
	comesBack(t, plan.AwayAlias(links[0]))
	d.taken(home)
	sh(t, "", "ip link delete wlan0")
	back()
	sh(t, "", "iw dev wlan5 del; ip address flush dev wlan0; ip link set wlan0 down")
}

// TestHardwareFallsBack: hardware in a namespace that is deleted goes to the first
// one, where its name may be taken. hwsim0 stands in for Ethernet.
func TestHardwareFallsBack(t *testing.T) {
	d := newDoer(t)
	sh(t, "", "ip netns add target; ip link set hwsim0 up; ip address add 192.0.2.9/24 dev hwsim0")
	links := d.settings("hwsim0")
	const show = "ip -o link show dev hwsim0; ip -o -4 address show dev hwsim0"
	before := sh(t, "", show)
	home := plan.Move{From: there, Links: links, Home: true}
	// Often, because at home it arrives at any moment of the step.
	for i := range 20 {
		taken := i == 0
		sh(t, "", "ip netns add physical")
		d.do(plan.Move{To: there, Links: links})
		d.Close()
		if taken {
			sh(t, "", "ip link add hwsim0 type bridge; ip netns delete physical")
			comesBack(t, plan.AwayAlias(links[0]))
			d.taken(home)
			sh(t, "", "ip link delete hwsim0")
		} else {
			sh(t, "", "ip netns delete physical")
		}
		d.do(home)
		d.settle("", links, there)
		same(t, "at home", before, sh(t, "", show))
	}
	// Its home is another than the first namespace.
	const target plan.NS = "/run/netns/target"
	sh(t, "", "ip link set hwsim0 down alias '"+plan.AwayAlias(links[0])+"'")
	home.To = target
	d.exists(home, true)
	d.do(home)
	d.exists(home, false)
	sh(t, target, "ip link show dev hwsim0")
	d.do(plan.Move{From: target, Links: links, Home: true})
	sh(t, "", "ip netns delete target; ip address flush dev hwsim0; ip link set hwsim0 down")
}
