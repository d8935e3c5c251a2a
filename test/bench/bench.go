package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"wg-quickns/test/programs"
)

const (
	link = "wg0"
	// slow is what a round of the reference may take before three are enough.
	slow      = 10 * time.Second
	slowRound = 3
)

// bench is the bed of all measurements. The program's namespaces are its own (ns.Isolate).
type bench struct {
	rounds    int
	full      bool // slow rows get all of them too
	rows      *regexp.Regexp
	userspace bool
	dir       string // of its files, on a tmpfs
	quickns   string
	wgQuick   string
	wg        string
	server    string // wireguard-go, where the kernel has no WireGuard
}

func newBench(rounds int, full bool, rows *regexp.Regexp) (*bench, error) {
	b := &bench{rounds: rounds, full: full, rows: rows, dir: "/run/bench"}
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return nil, err
	}
	var err error
	for _, p := range []struct {
		path *string
		find func() (string, error)
	}{{&b.quickns, programs.Quickns}, {&b.wgQuick, programs.WGQuick}, {&b.wg, programs.WG}} {
		if *p.path, err = p.find(); err != nil {
			return nil, err
		}
		if *p.path, err = b.copy(*p.path); err != nil {
			return nil, err
		}
	}
	// an uplink: endpoints need a route
	err = b.do("bash", "-ec", `ip link add uplink type veth peer name far
		ip link set far up
		sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.uplink.accept_dad=0
		ip link set uplink up
		ip address add 192.0.2.2/24 dev uplink
		ip address add 2001:db8::2/64 dev uplink
		ip route add default via 192.0.2.1
		ip route add default via 2001:db8::1`)
	if err != nil {
		return nil, err
	}
	if b.do("ip", "link", "add", link, "type", "wireguard") == nil {
		return b, b.do("ip", "link", "delete", link)
	}
	b.userspace = true
	root, err := programs.Root()
	if err != nil {
		return nil, err
	}
	b.server = filepath.Join(root, "build/wireguard-go")
	if _, err := os.Stat(b.server); err != nil {
		return nil, fmt.Errorf("the kernel has no WireGuard: %w (make bench builds wireguard-go)", err)
	}
	os.Setenv("WG_QUICK_USERSPACE_IMPLEMENTATION", b.server)
	os.Setenv("LOG_LEVEL", "silent")
	return b, nil
}

// copy puts a program into the bench's own folder, for all that are compared to come
// from the same kind of place: a virtual machine may have the project on a share. What
// they start themselves, bash and ip, stays in the page cache after the first round.
func (b *bench) copy(program string) (string, error) {
	data, err := os.ReadFile(program)
	if err != nil {
		return "", err
	}
	to := filepath.Join(b.dir, filepath.Base(program))
	return to, os.WriteFile(to, data, 0o755)
}

func (b *bench) close() {
	b.do("ip", "link", "delete", link)
	b.do("ip", "link", "delete", "uplink")
	b.gone()
}

// do runs a command; its error has what the command said at last.
func (b *bench) do(argv ...string) error {
	_, err := b.time(argv...)
	return err
}

// time runs a command with its output in a file, as a pipe would have this program run too.
func (b *bench) time(argv ...string) (time.Duration, error) {
	out, err := os.Create(filepath.Join(b.dir, "output"))
	if err != nil {
		return 0, err
	}
	defer out.Close()
	c := exec.Command(argv[0], argv[1:]...)
	c.Stdout, c.Stderr = out, out
	start := time.Now()
	err = c.Run()
	took := time.Since(start)
	if err != nil {
		text, _ := os.ReadFile(out.Name())
		return 0, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, text[max(0, len(text)-500):])
	}
	return took, nil
}

// write puts the config where the programs look for it.
func (b *bench) write(c config) error {
	return errors.Join(
		os.WriteFile("/etc/wireguard/"+link+".conf", []byte(c.file), 0o600),
		os.WriteFile(b.dir+"/setconf", []byte(c.wg), 0o600),
		os.WriteFile(b.dir+"/batch", []byte(c.batch), 0o600),
		os.WriteFile(b.dir+"/link", []byte("link add dev "+link+" type wireguard\n"), 0o600))
}

// gone waits until a userspace program has ended: the next one needs its socket's
// name. Rarely it misses that its interface is gone, and is killed.
func (b *bench) gone() error {
	if !b.userspace {
		return nil
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if exec.Command("pidof", "wireguard-go").Run() != nil {
			return nil
		}
	}
	fmt.Fprintln(os.Stderr, "bench: wireguard-go does not end, killing it")
	return errors.Join(b.do("killall", "-9", "wireguard-go"), os.RemoveAll("/run/wireguard/"+link+".sock"))
}

// contender is one way to a tunnel and back.
type contender struct {
	up, down func() (time.Duration, error)
	ups      []time.Duration
	downs    []time.Duration
	state    string
}

// tunnel is a contender of wg-quick's command line.
func (b *bench) tunnel(program string) *contender {
	return &contender{
		up:   func() (time.Duration, error) { return b.time(program, "up", link) },
		down: func() (time.Duration, error) { return b.time(program, "down", link) },
	}
}

// least is the contender that knows already what is to be done.
func (b *bench) least() *contender {
	first := []string{"ip", "-batch", b.dir + "/link"}
	if b.userspace {
		first = []string{b.server, link}
	}
	return &contender{
		up: func() (sum time.Duration, err error) {
			for _, argv := range [][]string{first, {b.wg, "setconf", link, b.dir + "/setconf"}, {"ip", "-batch", b.dir + "/batch"}} {
				took, err := b.time(argv...)
				if err != nil {
					return 0, err
				}
				sum += took
			}
			return sum, nil
		},
		down: func() (time.Duration, error) { return b.time("ip", "link", "delete", link) },
	}
}

// compare runs two contenders in turn, who is first by turns too, and checks once
// that they come to the same state.
func (b *bench) compare(x, y *contender, rounds int) error {
	for i := 0; i < rounds; i++ {
		start := time.Now()
		pair := []*contender{x, y}
		if i%2 == 1 {
			slices.Reverse(pair)
		}
		for _, c := range pair {
			up, err := c.up()
			if err != nil {
				return err
			}
			if i == 0 {
				if c.state, err = b.state(); err != nil {
					return err
				}
			}
			down, err := c.down()
			if err != nil {
				return err
			}
			if err := b.gone(); err != nil {
				return err
			}
			c.ups, c.downs = append(c.ups, up), append(c.downs, down)
		}
		if x.state != y.state {
			return fmt.Errorf("the states differ:\n%s", differing(x.state, y.state))
		}
		if !b.full && time.Since(start) > slow && rounds > slowRound {
			rounds = slowRound
		}
	}
	return nil
}

// linkLocal are a tun's own addresses, which are random.
var linkLocal = regexp.MustCompile(`(?m)^.*\bfe80:.*\n`)

// settle waits until no address is tentative, as each is for a moment.
func settle() error {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if out, err := exec.Command("ip", "-6", "address", "show", "tentative").Output(); err != nil || len(out) == 0 {
			return err
		}
	}
	return errors.New("an address stays tentative")
}

// state is what an up left, in sorted lines.
func (b *bench) state() (string, error) {
	if err := settle(); err != nil {
		return "", err
	}
	var all []string
	for _, argv := range [][]string{
		{"ip", "-4", "route", "show", "table", "all"}, {"ip", "-6", "route", "show", "table", "all"}, {"ip", "-4", "rule"}, {"ip", "-6", "rule"},
		{"nft", "-s", "list", "ruleset"}, {"ip", "-o", "address", "show", "dev", link}, {"ip", "-o", "link", "show", "dev", link}, {b.wg, "showconf", link},
	} {
		out, err := exec.Command(argv[0], argv[1:]...).Output()
		if err != nil {
			return "", fmt.Errorf("%s: %w", strings.Join(argv, " "), err)
		}
		all = append(all, argv[0]+" "+argv[1])
		lines := strings.Split(linkLocal.ReplaceAllString(string(out), ""), "\n")
		for i, l := range lines {
			if strings.HasPrefix(l, "AllowedIPs = ") { // their order is not kept
				list := strings.Split(strings.TrimPrefix(l, "AllowedIPs = "), ", ")
				slices.Sort(list)
				lines[i] = strings.Join(list, ",")
			}
			lines[i] = strings.TrimLeft(index.ReplaceAllString(lines[i], ""), " ")
		}
		slices.Sort(lines)
		all = append(all, lines...)
	}
	return strings.Join(all, "\n"), nil
}

// index is the link's number, another with each.
var index = regexp.MustCompile(`^\d+: `)

// differing shows the first lines that only one has.
func differing(x, y string) string {
	a, b := strings.Split(x, "\n"), strings.Split(y, "\n")
	var out bytes.Buffer
	for _, side := range []struct {
		sign         string
		these, those []string
	}{{"<", a, b}, {">", b, a}} {
		have := map[string]bool{}
		for _, l := range side.those {
			have[l] = true
		}
		shown := 0
		for _, l := range side.these {
			if !have[l] && shown < 5 {
				fmt.Fprintf(&out, "%s %.200s\n", side.sign, l)
				shown++
			}
		}
	}
	return out.String()
}

func median(list []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(list))
	return s[len(s)/2]
}

func ms(d time.Duration) string {
	v := d.Seconds() * 1000
	if v < 100 {
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// cycles are the times of up and down together, round by round.
func (c *contender) cycles() []time.Duration {
	sums := slices.Clone(c.ups)
	for i := range sums {
		sums[i] += c.downs[i]
	}
	return sums
}

// reference prints the rows of a config against wg-quick: up, down, and both,
// which is what somebody waits for who restarts a tunnel.
func (b *bench) reference(name string, c config, target float64) error {
	if !b.rows.MatchString("reference " + name) {
		return nil
	}
	if err := b.write(c); err != nil {
		return err
	}
	ref, ours := b.tunnel(b.wgQuick), b.tunnel(b.quickns)
	if err := b.compare(ref, ours, b.rounds); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, row := range []struct {
		name      string
		ref, ours []time.Duration
	}{{"up", ref.ups, ours.ups}, {"down", ref.downs, ours.downs}, {"both", ref.cycles(), ours.cycles()}} {
		r, o := median(row.ref), median(row.ours)
		ratio := r.Seconds() / o.Seconds()
		fmt.Printf("| %s | %s | %d | %s | %s | %.1f | >= %v | %s |\n", name, row.name, len(row.ref), ms(r), ms(o), ratio, target, verdict(ratio >= target))
	}
	return nil
}

// floor prints the rows of a config against the least, and gives our time of up.
func (b *bench) floor(name string, c config, judged bool) (time.Duration, error) {
	if !b.rows.MatchString("floor " + name) {
		return 0, nil
	}
	if err := b.write(c); err != nil {
		return 0, err
	}
	least, ours := b.least(), b.tunnel(b.quickns)
	if err := b.compare(least, ours, b.rounds); err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	l, o := median(least.ups), median(ours.ups)
	ratio := o.Seconds() / l.Seconds()
	target, reached := "", ""
	if judged {
		target, reached = "<= 1.0", verdict(ratio <= 1)
	}
	fmt.Printf("| %s | up | %d | %s | %s | %.2f | %s | %s |\n", name, len(ours.ups), ms(l), ms(o), ratio, target, reached)
	dl, do := median(least.downs), median(ours.downs)
	fmt.Printf("| %s | down | %d | %s | %s | %.2f | | |\n", name, len(ours.downs), ms(dl), ms(do), do.Seconds()/dl.Seconds())
	return o, nil
}
