package kernel

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"wg-quickns/internal/plan"
)

func manyRoutes(n int, v6 bool) plan.Route {
	s := plan.Route{Link: "wg0", List: make([]plan.Prefix, n)}
	for i := range s.List {
		a, bits := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32
		if v6 {
			a, bits = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, byte(i >> 16), byte(i >> 8), byte(i)}), 64
		}
		s.List[i].Prefix = netip.PrefixFrom(a, bits)
	}
	return s
}

// BenchmarkRoutes adds n routes by us, by ip -batch, and reads them back.
func BenchmarkRoutes(b *testing.B) {
	for _, v6 := range []bool{false, true} {
		fam := map[bool]string{false: "IPv4", true: "IPv6"}[v6]
		for _, n := range []int{1000, 10000, 100000} {
			step := manyRoutes(n, v6)
			b.Run(fmt.Sprintf("%s/%d/us", fam, n), func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					ns := newNS(b)
					sh(b, ns, veth)
					d := newDoer(b, Options{})
					b.StartTimer()
					do(b, d, ns, step)
				}
			})
			b.Run(fmt.Sprintf("%s/%d/ip-batch", fam, n), func(b *testing.B) {
				var text strings.Builder
				for _, p := range step.List {
					fmt.Fprintf(&text, "route add %s dev wg0\n", p)
				}
				file := filepath.Join(b.TempDir(), "batch")
				if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
					b.Fatal(err)
				}
				for b.Loop() {
					b.StopTimer()
					ns := newNS(b)
					sh(b, ns, veth)
					b.StartTimer()
					sh(b, ns, "ip -batch "+file)
				}
			})
			b.Run(fmt.Sprintf("%s/%d/read", fam, n), func(b *testing.B) {
				ns := newNS(b)
				sh(b, ns, veth)
				d := newDoer(b, Options{})
				do(b, d, ns, step)
				sp, err := d.space(ns)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportAllocs()
				for b.Loop() {
					if _, err := sp.routes(nil); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// TestManyRoutes asserts that the last route of very many is there, that the
// place of a failure in a later sendmsg is right, and that memory stays modest.
func TestManyRoutes(t *testing.T) {
	ns := newNS(t)
	sh(t, ns, veth)
	d := newDoer(t, Options{})
	step := manyRoutes(20000, false)
	twice := step.List[15555]
	sh(t, ns, "ip route add "+twice.String()+" dev wg0")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := d.Do(context.Background(), ns, step)
	runtime.ReadMemStats(&after)
	if se, ok := err.(*plan.StepError); !ok || se.Index != 15555 || !strings.Contains(se.Error(), twice.String()) {
		t.Errorf("%v, want the failure at 15555", err)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > 8<<20 { // 5 MiB of it is StepError's text
		t.Errorf("allocated %d bytes", used)
	}
	step.List = step.List[15556:]
	step.Delete = true
	do(t, d, ns, step)
	step.Delete = false
	do(t, d, ns, step)
	if n := strings.Count(sh(t, ns, "ip route show dev wg0"), "\n"); n != 20000 {
		t.Errorf("%d routes, want 20000", n)
	}
}
