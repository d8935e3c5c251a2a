// Command bench measures wg-quickns side by side with wg-quick, and with the
// least that sets the same tunnel up: `wg setconf` and `ip -batch`. It prints a
// table with the target beside each figure; a target that is missed fails nothing,
// as time depends on who else runs. What fails is a command, or two of them that
// leave different states.
//
// Everything happens in namespaces of its own. Where the kernel has no WireGuard,
// wireguard-go serves for all that are compared.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/test/ns"
	"wg-quickns/test/programs"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == memoryCommand {
		os.Exit(memoryChild(os.Args[2], os.Args[3:]))
	}
	ns.Isolate()
	rounds := flag.Int("n", 7, "rounds of each row; slow ones of the reference get 3")
	full := flag.Bool("full", false, "all rounds of slow rows too: an hour")
	rows := flag.String("run", "", "only rows whose name matches this `regexp`")
	flag.Parse()
	pattern, err := regexp.Compile(*rows)
	if err == nil {
		err = run(*rounds, *full, pattern)
	}
	for _, l := range ns.Leftovers() {
		fmt.Fprintln(os.Stderr, "bench: left behind:", l)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// sizes of the comparison with the reference, and of that with the floor.
var (
	small  = []int{1, 100, 1000, 5000}
	large  = []int{1, 1000, 10000, 100000}
	target = map[int]float64{1: 8, 100: 8, 1000: 100, 5000: 200}
)

func run(rounds int, full bool, rows *regexp.Regexp) error {
	b, err := newBench(rounds, full, rows)
	if err != nil {
		return err
	}
	defer b.close()
	b.head()

	fmt.Println("\n## Against wg-quick\n\nTimes in ms, medians; n rounds of each, in turn. Ratio: reference / ours.")
	fmt.Print("\n| config | | n | reference | ours | ratio | target | |\n|---|---|--:|--:|--:|--:|--:|---|\n")
	if err := b.reference("full tunnel, both families", fullTunnel(), 8); err != nil {
		return err
	}
	for _, n := range small {
		if err := b.reference(fmt.Sprintf("%d on one peer", n), onePeer(n), target[n]); err != nil {
			return err
		}
		if n == 1 {
			continue
		}
		if err := b.reference(fmt.Sprintf("%[1]d on %[1]d peers", n), manyPeers(n), target[n]); err != nil {
			return err
		}
	}

	fmt.Println("\n## Against the floor\n\n`wg setconf`, `ip -batch` of the same addresses and routes; `ip link delete`. Times in ms, medians. Ratio: ours / floor.")
	fmt.Print("\n| config | | n | floor | ours | ratio | target | |\n|---|---|--:|--:|--:|--:|--:|---|\n")
	took := map[int]time.Duration{}
	for _, n := range large {
		if took[n], err = b.floor(fmt.Sprintf("%d on one peer", n), onePeer(n), n >= 10000); err != nil {
			return err
		}
	}
	if _, err := b.floor("10000 on 10000 peers", manyPeers(10000), true); err != nil {
		return err
	}

	fmt.Print("\n## Alone\n\n| what | | target | |\n|---|--:|--:|---|\n")
	if took[10000] > 0 && took[100000] > 0 {
		growth := took[100000].Seconds() / took[10000].Seconds()
		fmt.Printf("| time of 100000 / time of 10000 | %.1f | <= 12 | %s |\n", growth, verdict(growth <= 12))
	}
	for _, n := range []int{1, 1000, 100000} {
		if err := b.memory(n); err != nil {
			return err
		}
	}
	if err := b.reload(1000); err != nil {
		return err
	}
	return b.processes()
}

// head says what the figures were taken on.
func (b *bench) head() {
	var u unix.Utsname
	unix.Uname(&u)
	wireguard := "the kernel's WireGuard"
	if b.userspace {
		out, _ := exec.Command(b.server, "--version").Output()
		line, _, _ := strings.Cut(string(out), "\n")
		wireguard = line + " for all"
	}
	load, _ := os.ReadFile("/proc/loadavg")
	average, _, _ := strings.Cut(string(load), " ")
	fmt.Printf("# Speed of %s\n\n%s; Linux %s %s; %s, %d CPUs; load %s; %s\n", b.version(), time.Now().UTC().Format("2006-01-02 15:04 UTC"),
		unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:]), cpu(), runtime.NumCPU(), average, wireguard)
}

func (b *bench) version() string {
	root, err := programs.Root()
	if err != nil {
		return "wg-quickns"
	}
	out, _ := exec.Command("git", "-C", root, "describe", "--tags", "--always", "--dirty").Output()
	return strings.TrimSpace("wg-quickns " + string(out))
}

func cpu() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown CPU"
}

func verdict(ok bool) string {
	if ok {
		return "reached"
	}
	return "SHORT"
}
