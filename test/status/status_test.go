// Package status tests what `status` says of tunnels in several namespaces, whole
// and broken ones, and that its JSON is as its schema says.
package status

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"

	"wg-quickns/test/bed"
	"wg-quickns/test/ns"
	"wg-quickns/test/schema"
)

func TestMain(m *testing.M) { ns.Main(m) }

type tunnel struct {
	Interface, Namespace, State, Strategy string
	Guard                                 bool
	Peers                                 []struct{ Endpoint string }
	Problems                              []struct{ Problem, Since string }
}

// look runs status and checks its exit status and its JSON.
func look(t *testing.T, b *bed.Bed, code int, args ...string) []tunnel {
	t.Helper()
	r := b.Run(nil, append([]string{b.Program, "status", "--json"}, args...)...)
	text := r.Output
	if i := strings.LastIndex(text, "\n"+"wg-quickns"); i >= 0 { // a message behind
		text = text[:i]
	}
	if r.Code != code {
		t.Errorf("exit status %d, want %d:\n%s", r.Code, code, r.Output)
	}
	if err := schema.Validate("../../man/status.schema.json", []byte(text)); err != nil {
		t.Errorf("%v in\n%s", err, text)
	}
	var list []tunnel
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{bed.Key("private1"), bed.Key("public1"), bed.Key("private2"), bed.Key("public2")} {
		if strings.Contains(r.Output, secret) {
			t.Errorf("a key is in the output:\n%s", r.Output)
		}
	}
	return list
}

func TestStatus(t *testing.T) {
	b := bed.New(t, "bed")
	r := b.Run(nil, b.Program, "status")
	if r.Code != 0 || !strings.Contains(r.Output, "no tunnel is up") {
		t.Errorf("without a tunnel: %s", r)
	}
	if list := look(t, b, 3, "wg0"); len(list) != 0 {
		t.Errorf("got %+v", list)
	}

	b.Config(t, "wg0", bed.FullTunnel(1))
	b.Config(t, "wg1", strings.Replace(bed.FullTunnel(2), "[Interface]", "[Interface]\nNamespace = box", 1))
	for _, name := range []string{"wg0", "wg1"} {
		if r := b.Up(name); r.Code != 0 {
			t.Fatal(r)
		}
	}
	list := look(t, b, 0)
	if len(list) != 2 || list[0].Interface != "wg0" || list[0].State != "up" || list[0].Namespace != "" || list[0].Strategy != "auto" ||
		list[1].Interface != "wg1" || list[1].Namespace != "box" || list[1].State != "up" ||
		len(list[1].Peers) != 1 || list[1].Peers[0].Endpoint != "192.0.2.1:51820" {
		t.Errorf("got %+v", list)
	}
	if r := b.Run(nil, b.Program, "status"); r.Code != 0 || !strings.Contains(r.Output, "box") || !strings.Contains(r.Output, "192.0.2.1:51820") {
		t.Errorf("the table: %s", r)
	}
	// from outside of the namespace of one
	if r := ns.Run(t, b.Program, "status", "--json", "wg0"); !strings.Contains(r, `"namespace": "bed"`) || !strings.Contains(r, `"state": "up"`) {
		t.Errorf("from outside: %s", r)
	}

	guard, err := b.Start(nil, b.Program, "guard", "wg1")
	if err != nil {
		t.Fatal(err)
	}
	if !bed.Wait(10e9, func() bool { return look(t, b, 0, "wg1")[0].Guard }) {
		t.Error("the guard is not seen")
	}
	guard.Signal(15)
	if r := guard.Wait(); r.Code != 0 {
		t.Errorf("guard: %s", r)
	}

	for what, c := range map[string]struct{ command, problem string }{
		"rule":     {"ip -4 rule del table main suppress_prefixlength 0", "missing: ip -4 rule add table main"},
		"route":    {"ip -6 route del default table 51820", "missing: ip -6 route add ::/0 dev wg0 table 51820"},
		"firewall": {"nft delete table ip6 wg-quick-wg0", "missing: nft"},
		"address":  {"ip addr del 10.1.0.2/24 dev wg0", "missing: ip -4 address add 10.1.0.2/24 dev wg0"},
		"mtu":      {"ip link set wg0 mtu 1300", "missing: ip link set mtu"},
		"leak":     {"ip route add 198.51.100.0/25 via 192.0.2.1", "needed now: ip -4 route delete 198.51.100.0/25"},
	} {
		b.NS.Run("bash", "-c", c.command)
		list := look(t, b, 4, "wg0")
		if len(list) != 1 || !slices.ContainsFunc(list[0].Problems, func(p struct{ Problem, Since string }) bool { return strings.HasPrefix(p.Problem, c.problem) }) {
			t.Errorf("%s: got %+v", what, list)
		}
	}
	// since when: as long as it stays so, from the first look on
	first := look(t, b, 4, "wg0")[0].Problems
	b.NS.Run("bash", "-c", "sleep 1.1; ip link set wg0 mtu 1301")
	if again := look(t, b, 4, "wg0")[0].Problems; !slices.Equal(first, again) {
		t.Errorf("the problems were %+v and are %+v", first, again)
	}
	if r := b.Run(nil, b.Program, "status", "wg0"); !regexp.MustCompile(`(?m)^wg0: missing: nft .* \(since [1-9]\d* s ago\)$`).MatchString(r.Output) {
		t.Errorf("the table: %s", r)
	}
	b.NS.Run("ip", "link", "del", "wg0")
	if list := look(t, b, 4, "wg0"); len(list) != 1 || list[0].State != "gone" || len(list[0].Problems) != 1 || list[0].Problems[0].Since <= first[0].Since {
		t.Errorf("deleted: got %+v", list)
	}
	for _, name := range []string{"wg0", "wg1"} {
		if r := b.Down(name); r.Code != 0 {
			t.Error(r)
		}
	}
	b.NS.Run("bash", "-c", "ip route del 198.51.100.0/25 2>/dev/null; exit 0")

	// what another program made
	if r := b.Run(nil, "bash", "-c", `ip link add wg5 type wireguard || "$0" userspace wg5 & sleep 0.1`, b.Program); r.Code != 0 {
		t.Fatal(r)
	}
	if !bed.Wait(10e9, func() bool {
		r := b.Run(nil, b.Program, "status", "--json", "wg5")
		return r.Code == 0 && strings.Contains(r.Output, `"foreign"`)
	}) {
		t.Error("another program's tunnel is not seen")
	}
	look(t, b, 0, "wg5")
	b.NS.Run("ip", "link", "del", "wg5")
	if !bed.Wait(10e9, func() bool { return strings.TrimSpace(ns.Run(t, "ip", "netns", "pids", b.NS.Name)) == "" }) {
		t.Error("the other program does not end")
	}
}

// TestMeanwhile: a tunnel that comes and goes is no error of a look at all.
func TestMeanwhile(t *testing.T) {
	b := bed.New(t, "bed")
	b.Config(t, "wg0", "[Interface]\nPrivateKey = "+bed.Key("private1")+"\nNamespace = box\n")
	stop, stopped := make(chan bool), make(chan bool)
	go func() {
		defer close(stopped)
		for {
			for _, command := range []string{"up", "down"} {
				if r := b.Run(nil, b.Program, command, "wg0"); r.Code != 0 {
					t.Errorf("%s: %s", command, r)
				}
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	for range 50 {
		if r := b.Run(nil, b.Program, "status", "--json"); r.Code != 0 && r.Code != 4 { // 4: half up
			t.Error(r)
		}
	}
	close(stop)
	<-stopped
}
