package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// memoryCommand makes this program start another and write its peak memory to a
// file. A process begins with the peak of the one it was forked from, so that must
// be a small one (exec_mmap in fs/exec.c).
const memoryCommand = "-memory-of"

func memoryChild(file string, argv []string) int {
	c := exec.Command(argv[0], argv[1:]...)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	if err := c.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	usage := c.ProcessState.SysUsage().(*syscall.Rusage)
	if err := os.WriteFile(file, []byte(fmt.Sprint(usage.Maxrss)), 0o600); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// memory prints the peak memory of up, in MiB.
func (b *bench) memory(n int) error {
	name := fmt.Sprintf("peak memory of up, %d AllowedIPs, MiB", n)
	if !b.rows.MatchString(name) {
		return nil
	}
	if err := b.write(onePeer(n)); err != nil {
		return err
	}
	var peaks []float64
	for range 3 {
		if err := b.do("/proc/self/exe", memoryCommand, b.dir+"/peak", b.quickns, "up", link); err != nil {
			return err
		}
		text, err := os.ReadFile(b.dir + "/peak")
		if err != nil {
			return err
		}
		kib, err := strconv.ParseFloat(string(text), 64)
		if err != nil {
			return err
		}
		peaks = append(peaks, kib/1024)
		if err := b.do(b.quickns, "down", link); err != nil {
			return err
		}
		if err := b.gone(); err != nil {
			return err
		}
	}
	peak := slices.Max(peaks)
	target, reached := "", ""
	if n <= 1000 {
		target, reached = "<= 40", verdict(peak <= 40)
	}
	fmt.Printf("| %s | %.1f | %s | %s |\n", name, peak, target, reached)
	return nil
}

// reload prints what a change of one of n peers costs, beside `wg syncconf` of the same.
func (b *bench) reload(n int) error {
	name := fmt.Sprintf("reload, 1 of %d peers changed, ms", n)
	if !b.rows.MatchString(name) {
		return nil
	}
	c := manyPeers(n)
	if err := b.write(c); err != nil {
		return err
	}
	if err := b.do(b.quickns, "up", link); err != nil {
		return err
	}
	var ours, sync []time.Duration
	for i := range 2 * b.rounds {
		// each has a port to change that the one before has not set
		change := strings.NewReplacer("[Peer]\nPublicKey = "+key("peer7")+"\nEndpoint = 192.0.2.1:51820", fmt.Sprintf("[Peer]\nPublicKey = %s\nEndpoint = 192.0.2.1:%d", key("peer7"), 1000+i))
		if err := b.write(config{file: change.Replace(c.file), wg: change.Replace(c.wg)}); err != nil {
			return err
		}
		argv, list := []string{b.quickns, "reload", link}, &ours
		if i%2 == 1 {
			argv, list = []string{b.wg, "syncconf", link, b.dir + "/setconf"}, &sync
		}
		took, err := b.time(argv...)
		if err != nil {
			return err
		}
		*list = append(*list, took)
		if out, err := exec.Command(b.wg, "show", link, "endpoints").Output(); err != nil || strings.Count(string(out), fmt.Sprintf("192.0.2.1:%d\n", 1000+i)) != 1 {
			return fmt.Errorf("%v did not change the peer: %v", argv, err)
		}
	}
	ratio := median(ours).Seconds() / median(sync).Seconds()
	fmt.Printf("| %s | %s, syncconf %s: %.1f times | <= 5 | %s |\n", name, ms(median(ours)), ms(median(sync)), ratio, verdict(ratio <= 5))
	return errors.Join(b.do(b.quickns, "down", link), b.gone())
}

// resolvconf starts nothing.
const resolvconf = "#!/bin/sh\nwhile read -r line; do :; done\n"

// processes prints what an up with DNS and hooks starts, as strace(1) sees it.
func (b *bench) processes() error {
	const name = "processes of up with DNS and 4 hooks"
	if !b.rows.MatchString(name) {
		return nil
	}
	bin := b.dir + "/bin"
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(bin+"/resolvconf", []byte(resolvconf), 0o755); err != nil {
		return err
	}
	path := os.Getenv("PATH")
	os.Setenv("PATH", bin+":"+path)
	defer os.Setenv("PATH", path)
	c := fullTunnel()
	c.file = strings.Replace(c.file, "[Interface]\n", "[Interface]\nDNS = 192.168.77.53\nPreUp = :\nPreUp = :\nPostUp = :\nPostUp = :\n", 1)
	if err := b.write(c); err != nil {
		return err
	}
	trace := b.dir + "/trace"
	if err := b.do("strace", "-f", "-b", "execve", "-qq", "-e", "signal=none", "-e", "trace=execve,execveat,clone,clone3,fork,vfork", "-o", trace,
		b.quickns, "up", link); err != nil {
		return err
	}
	if err := b.do(b.quickns, "down", link); err != nil {
		return err
	}
	text, err := os.ReadFile(trace)
	if err != nil {
		return err
	}
	started, strangers := b.started(string(text))
	fmt.Printf("| %s | %s | resolvconf, 4 bash%s | %s |\n", name, strings.Join(started, ", "), map[bool]string{true: ", wireguard-go"}[b.userspace],
		verdict(!strangers && len(started) <= 6))
	return nil
}

var executed = regexp.MustCompile(`^\d+ +execve(?:at)?\("([^"]*)"`)

// probe are the flags by which Go's library tries, once, whether there are pidfds:
// on a child that only exits (os/pidfd_linux.go).
var probe = regexp.MustCompile(`flags=CLONE_VM\|CLONE_PIDFD\|CLONE_VFORK[^|]`)

// started lists the programs that the traced one started. strangers says that
// there are others than there should be, or processes that became no program.
func (b *bench) started(trace string) (list []string, strangers bool) {
	processes := 0
	for line := range strings.Lines(trace) {
		_, call, _ := strings.Cut(strings.TrimSpace(line), " ")
		call = strings.TrimSpace(call)
		if m := executed.FindStringSubmatch(line); m != nil {
			list = append(list, filepath.Base(m[1]))
		} else if !strings.HasPrefix(call, "<...") && !strings.Contains(call, "CLONE_THREAD") && !probe.MatchString(call) {
			processes++
		}
	}
	list = list[1:] // itself
	for _, name := range list {
		if name != "resolvconf" && name != "bash" && !(b.userspace && name == "wireguard-go") {
			strangers = true
		}
	}
	slices.Sort(list)
	return list, strangers || processes != len(list)
}
