package races

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl"

	"wg-quickns/test/bed"
	"wg-quickns/test/ns"
	"wg-quickns/test/programs"
	"wg-quickns/test/state"
)

func TestMain(m *testing.M) { ns.Main(m) }

// times is how often: few, fewer in the slow lab, or with WGQ_RACES_FULL=1 as
// often as it takes to believe it.
func times(few, full int) int {
	switch {
	case os.Getenv("WGQ_RACES_FULL") == "1":
		return full
	case os.Getenv("WG_TEST_KERNEL") != "":
		return few / 3
	}
	return few
}

// together runs commands that are released at the same moment.
func together(b *bed.Bed, commands ...[]string) []bed.Result {
	results := make([]bed.Result, len(commands))
	var ready, done sync.WaitGroup
	ready.Add(len(commands))
	for i, c := range commands {
		done.Go(func() {
			ready.Done()
			ready.Wait()
			results[i] = b.Run(nil, append([]string{b.Program}, c...)...)
		})
	}
	done.Wait()
	return results
}

// config is a full tunnel without hooks.
func config(n int) string {
	text := slices.Collect(strings.Lines(bed.FullTunnel(n)))
	return strings.Join(slices.DeleteFunc(text, func(line string) bool { return strings.Contains(line, bed.Hook) }), "")
}

func take(t *testing.T, b *bed.Bed) state.State {
	t.Helper()
	s, err := b.Take()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// same fails the test for good: what follows would start from another state.
func same(t *testing.T, when string, b *bed.Bed, before state.State) {
	t.Helper()
	if d := state.Diff(before, take(t, b)); d != "" {
		t.Fatalf("%s: the state is not what it was:\n%s", when, d)
	}
}

// whole says what of a full tunnel is missing, and which mark it has.
func whole(b *bed.Bed, link string, s state.State) (mark int, err error) {
	err = b.NS.Do(func() error {
		c, err := wgctrl.New()
		if err != nil {
			return err
		}
		defer c.Close()
		dev, err := c.Device(link)
		if err == nil {
			mark = dev.FirewallMark
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	index, err := b.Index(link)
	if err != nil {
		return 0, err
	}
	want := map[string]string{
		"0.0.0.0/0 table=%d ": "route", "::/0 table=%d ": "route",
		`"Family":2,"Table":%[1]d,"Mark":%[1]d,`: "rule", `"Family":10,"Table":%[1]d,"Mark":%[1]d,`: "rule",
	}
	for format, section := range want {
		text := fmt.Sprintf(format, mark)
		if !slices.ContainsFunc(s[section], func(line string) bool {
			return strings.Contains(line, text) && (section == "rule" || strings.HasSuffix(line, fmt.Sprint(" on ", index)))
		}) {
			return mark, fmt.Errorf("%s has mark %d but no %s %s", link, mark, section, text)
		}
	}
	for _, table := range []string{"table 2 ", "table 10 "} {
		if !slices.Contains(s["nft"], table+"wg-quick-"+link) {
			return mark, fmt.Errorf("%s has no nft %s", link, table)
		}
	}
	if !slices.ContainsFunc(s["dns"], func(line string) bool { return strings.HasPrefix(line, link+" ") }) {
		return mark, fmt.Errorf("%s has no DNS", link)
	}
	return mark, nil
}

// TestOneInterface: of two ups one wins, and its tunnel stays.
func TestOneInterface(t *testing.T) {
	b := bed.New(t, "one")
	b.Config(t, "wg0", config(0))
	before := take(t, b)
	n := times(30, 200)
	for i := range n {
		r := together(b, []string{"up", "wg0"}, []string{"up", "wg0"})
		slices.SortFunc(r, func(a, b bed.Result) int { return a.Code - b.Code })
		if r[0].Code != 0 || r[1].Code != 1 || !strings.HasSuffix(r[1].Output, ": `wg0' already exists\n") {
			t.Fatalf("%d of %d: %v\n%v", i, n, r[0], r[1])
		}
		if _, err := whole(b, "wg0", take(t, b)); err != nil {
			t.Fatalf("%d of %d: %v", i, n, err)
		}
		if err := b.Routed("wg0"); err != nil {
			t.Fatalf("%d of %d: %v", i, n, err)
		}
		r = together(b, []string{"down", "wg0"}, []string{"down", "wg0"})
		slices.SortFunc(r, func(a, b bed.Result) int { return a.Code - b.Code })
		if r[0].Code != 0 || r[1].Code != 1 || !strings.HasSuffix(r[1].Output, ": `wg0' is not a WireGuard interface\n") {
			t.Fatalf("%d of %d: %v\n%v", i, n, r[0], r[1])
		}
		same(t, fmt.Sprintf("%d of %d", i, n), b, before)
	}
	t.Logf("%d of %d: one up of two wins, one down of two", n, n)
}

// TestTwoTunnels: two full tunnels do not take the same table, nor each other's rules.
func TestTwoTunnels(t *testing.T) {
	b := bed.New(t, "two")
	b.Config(t, "wg0", config(0))
	b.Config(t, "wg1", config(1))
	before := take(t, b)
	n := times(30, 200)
	for i := range n {
		for _, r := range together(b, []string{"up", "wg0"}, []string{"up", "wg1"}) {
			if r.Code != 0 {
				t.Fatalf("%d of %d: %v", i, n, r)
			}
		}
		s := take(t, b)
		m0, err := whole(b, "wg0", s)
		if err != nil {
			t.Fatalf("%d of %d: %v", i, n, err)
		}
		m1, err := whole(b, "wg1", s)
		if err != nil {
			t.Fatalf("%d of %d: %v", i, n, err)
		}
		if m0 == m1 {
			t.Fatalf("%d of %d: both have mark %d", i, n, m0)
		}
		if b.Routed("wg0") != nil && b.Routed("wg1") != nil {
			t.Fatalf("%d of %d: %v, %v", i, n, b.Routed("wg0"), b.Routed("wg1"))
		}
		if i%2 == 0 { // one alone: the other stays whole
			if r := b.Down("wg0"); r.Code != 0 {
				t.Fatalf("%d of %d: %v", i, n, r)
			}
			if _, err := whole(b, "wg1", take(t, b)); err != nil || b.Routed("wg1") != nil {
				t.Fatalf("%d of %d: %v, %v", i, n, err, b.Routed("wg1"))
			}
			if r := b.Down("wg1"); r.Code != 0 {
				t.Fatalf("%d of %d: %v", i, n, r)
			}
		} else {
			for _, r := range together(b, []string{"down", "wg0"}, []string{"down", "wg1"}) {
				if r.Code != 0 {
					t.Fatalf("%d of %d: %v", i, n, r)
				}
			}
		}
		same(t, fmt.Sprintf("%d of %d", i, n), b, before)
	}
	t.Logf("%d of %d: both routed, each with its own table, and nothing left", n, n)
}

// TestWorkers: many at random on many interfaces. An interface is there in the
// end if it came up once more than it went down; and nothing else is.
func TestWorkers(t *testing.T) {
	const interfaces, workers = 20, 20
	b := bed.New(t, "many")
	for i := range interfaces {
		b.Config(t, fmt.Sprint("wg", i), config(i))
	}
	before := take(t, b)
	operations := times(300, 2000)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	work := make(chan []string)
	go func() {
		random := rand.New(rand.NewPCG(seed, 0))
		for range operations {
			work <- []string{[]string{"up", "down"}[random.IntN(2)], fmt.Sprint("wg", random.IntN(interfaces))}
		}
		close(work)
	}()
	var mu sync.Mutex
	up := map[string]int{}
	done := map[string]int{}
	var longest time.Duration
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for op := range work {
				r := b.Run(nil, b.Program, op[0], op[1])
				mu.Lock()
				longest = max(longest, r.Took)
				switch {
				case r.Code == 0 && op[0] == "up":
					up[op[1]]++
					done["up"]++
				case r.Code == 0:
					up[op[1]]--
					done["down"]++
				case r.Code == 1 && op[0] == "up" && strings.HasSuffix(r.Output, "' already exists\n"),
					r.Code == 1 && op[0] == "down" && strings.HasSuffix(r.Output, "' is not a WireGuard interface\n"):
					done["refused"]++
				default:
					t.Errorf("%s: %v", strings.Join(op, " "), r)
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	s := take(t, b)
	marks := map[int]string{}
	for i := range interfaces {
		name := fmt.Sprint("wg", i)
		_, err := b.Index(name)
		if (err == nil) != (up[name] == 1) || up[name] < 0 || up[name] > 1 {
			t.Errorf("%s: %d more ups than downs, and %v", name, up[name], err)
		}
		if err != nil {
			continue
		}
		mark, err := whole(b, name, s)
		if err != nil {
			t.Error(err)
		}
		if marks[mark] != "" {
			t.Errorf("%s and %s both have mark %d", name, marks[mark], mark)
		}
		marks[mark] = name
		if r := b.Down(name); r.Code != 0 {
			t.Error(r)
		}
	}
	same(t, "after all", b, before)
	t.Logf("%d operations: %v, %d up in the end; the longest took %v", operations, done, len(marks), longest)
}

// TestSavedMeanwhile: who waits for a tunnel works with the file as it is then, not with
// the one of before.
func TestSavedMeanwhile(t *testing.T) {
	b := bed.New(t, "saved")
	const hold = "SaveConfig = true\nPreDown = echo held >>$HOOKS; until [ -e $RECORDS/go ]; do sleep 0.02; done\n[Peer]"
	b.Config(t, "wg0", strings.Replace(config(0), "[Peer]", hold, 1))
	wg, err := programs.WG()
	if err != nil {
		t.Fatal(err)
	}
	if r := b.Up("wg0"); r.Code != 0 {
		t.Fatal(r)
	}
	b.NS.Run(wg, "set", "wg0", "peer", bed.Key("later"), "allowed-ips", "10.9.0.0/16")
	down, err := b.Start(nil, b.Program, "down", "wg0")
	if err != nil {
		t.Fatal(err)
	}
	if !bed.Wait(10*time.Second, func() bool { _, err := os.Stat(b.Hooks); return err == nil }) {
		t.Error("PreDown did not begin")
	}
	up, err := b.Start(nil, b.Program, "up", "wg0")
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond) // it has read the file by then
	b.NS.Run("touch", b.Records+"/go")
	for _, p := range []*bed.Process{down, up} {
		if r := p.Wait(); r.Code != 0 {
			t.Fatal(r)
		}
	}
	if peers := b.NS.Run(wg, "show", "wg0", "peers"); !strings.Contains(peers, bed.Key("later")) {
		t.Errorf("up has not what down saved, but\n%s", peers)
	}
	if r := b.Down("wg0"); r.Code != 0 {
		t.Error(r)
	}
}
