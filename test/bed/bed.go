// Package bed is where tests run wg-quickns many times: a network namespace with
// an uplink in both families and other people's things in it, a resolvconf that
// keeps files, and a snapshot cheap enough to be taken after every command.
package bed

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wg-quickns/test/ns"
	"wg-quickns/test/programs"
)

// Bed is one namespace and what the program finds in it. The test must be isolated (ns.Main).
type Bed struct {
	NS      *ns.NS
	Far     *ns.NS // the other end of the uplink: the gateway
	Dir     string // of its own files
	Records string // a file for each interface that resolvconf knows
	Hooks   string // the file to which Hook lines are added
	Program string // wg-quickns
	Faults  string // wg-quickns that breaks where WG_QUICKNS_FAULT says

	handle *netlink.Handle
}

// limit is what no command may take.
const limit = 3 * time.Minute

// resolvconf keeps a file per record, empty when there is none, and starts no
// process for it. It deletes what is not there, as the real ones do with -f.
const resolvconf = `#!/bin/sh
case $1 in
-a) text= && while read -r line; do text="$text$line;"; done && echo "$text" >"$RECORDS/$2" ;;
-d) : >"$RECORDS/$2" ;;
*) exit 2 ;;
esac
`

// New makes a bed. Its name is the namespace's.
func New(t testing.TB, name string) *Bed {
	t.Helper()
	b := &Bed{NS: ns.New(t, name), Dir: filepath.Join("/run/bed", name)}
	b.Records, b.Hooks = filepath.Join(b.Dir, "records"), filepath.Join(b.Dir, "hooks")
	check(t, os.MkdirAll(b.Records, 0o755))
	check(t, os.MkdirAll(filepath.Join(b.Dir, "bin"), 0o755))
	// beside the programs, where no other resolvconf comes before it; and on a tmpfs, as some labs' / is slow
	b.Resolvconf(t, resolvconf)
	b.Program = b.copy(t, programs.Quickns)
	b.Faults = b.copy(t, programs.Faults)
	t.Cleanup(func() { os.RemoveAll(b.Dir) })

	far := ns.New(t, name+"-far")
	b.Far = far
	ns.Veth(b.NS, "uplink", []string{"192.0.2.2/24", "2001:db8::2/64"}, far, "uplink", []string{"192.0.2.1/24", "2001:db8::1/64"})
	// what is not the tunnel's must stay: routes, rules and a firewall as another's tunnel has them
	b.NS.Run("bash", "-ec", `ip route add default via 192.0.2.1
		ip -6 route add default via 2001:db8::1
		ip route add 198.51.100.0/24 via 192.0.2.1 table 77
		sysctl -qw net.ipv4.conf.all.send_redirects=0 # as the kernel does when a WireGuard link goes up
		sysctl -qw net.ipv6.conf.default.addr_gen_mode=1 # wireguard-go's tun has a random fe80:: otherwise
		ip rule add not fwmark 77 table 77
		ip rule add table main suppress_prefixlength 0
		ip -6 rule add not fwmark 77 table 77
		ip -6 rule add table main suppress_prefixlength 0
		nft 'table ip wg-quick-wg { chain preraw { type filter hook prerouting priority raw; }; }'`)
	check(t, b.look())
	t.Cleanup(b.Close)
	return b
}

// Look is any namespace as a bed that can only be looked at, until it is closed:
// open, it keeps the namespace alive.
func Look(n *ns.NS) (*Bed, error) {
	b := &Bed{NS: n}
	return b, b.look()
}

func (b *Bed) look() error {
	return b.NS.Do(func() (err error) { b.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); return err })
}

// Close gives back what Look took.
func (b *Bed) Close() { b.handle.Close() }

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (b *Bed) copy(t testing.TB, find func() (string, error)) string {
	t.Helper()
	from, err := find()
	check(t, err)
	data, err := os.ReadFile(from)
	check(t, err)
	to := filepath.Join(b.Dir, "bin", filepath.Base(from))
	check(t, os.WriteFile(to, data, 0o755))
	return to
}

// Resolvconf replaces resolvconf; "" removes it, and "bed" is the one of the start.
func (b *Bed) Resolvconf(t testing.TB, script string) {
	t.Helper()
	path := filepath.Join(b.Dir, "bin/resolvconf")
	check(t, os.RemoveAll(path))
	if script == "bed" {
		script = resolvconf
	}
	if script != "" {
		check(t, os.WriteFile(path, []byte(script), 0o755))
	}
}

// Key is a key made of a name, always the same.
func Key(name string) string {
	sum := sha256.Sum256([]byte(name))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// Hook is a command that adds a line with its phase to b.Hooks, without a process.
const Hook = `echo %i "$WG_QUICKNS_PHASE" >>"$HOOKS"`

// FullTunnel is a full tunnel in both families with DNS and every hook, n of several.
func FullTunnel(n int) string {
	return fmt.Sprintf(`[Interface]
PrivateKey = %[2]s
Address = 10.%[1]d.0.2/24, fd00:%[1]d::2/64
DNS = 10.%[1]d.0.1, fd00:%[1]d::1, example.com
PreUp = %[4]s
PostUp = %[4]s
PreDown = %[4]s
PostDown = %[4]s
[Peer]
PublicKey = %[3]s
AllowedIPs = 0.0.0.0/0, ::/0
Endpoint = 192.0.2.1:51820
`, n, Key(fmt.Sprint("private", n)), Key(fmt.Sprint("public", n)), Hook)
}

// Config writes a config file.
func (b *Bed) Config(t testing.TB, name, text string) {
	t.Helper()
	check(t, os.WriteFile("/etc/wireguard/"+name+".conf", []byte(text), 0o600))
}

// Process is a started command.
type Process struct {
	cmd    *exec.Cmd
	output *os.File
	done   chan error
	timer  *time.Timer
}

// Result is how a command ended.
type Result struct {
	Code   int // 128 + signal when a signal ended it
	Output string
	Took   time.Duration // since the start, or since Signal
}

func (r Result) String() string { return fmt.Sprintf("exit status %d\n%s", r.Code, r.Output) }

// Start starts a command in the namespace. env comes on top of the environment.
func (b *Bed) Start(env []string, argv ...string) (*Process, error) {
	out, err := os.CreateTemp(b.Dir, "output")
	if err != nil {
		return nil, err
	}
	os.Remove(out.Name())
	p := &Process{cmd: exec.Command(argv[0], argv[1:]...), output: out, done: make(chan error, 1)}
	// a file and not a pipe: a process that outlives the command holds nothing up
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.Env = append(os.Environ(), "RECORDS="+b.Records, "HOOKS="+b.Hooks)
	p.cmd.Env = append(p.cmd.Env, env...)
	// The thread that enters the namespace ends at once, the command does not.
	if err := b.NS.Do(p.cmd.Start); err != nil {
		out.Close()
		return nil, err
	}
	p.timer = time.AfterFunc(limit, func() { p.cmd.Process.Kill() })
	go func() { p.done <- p.cmd.Wait() }()
	return p, nil
}

// Signal sends a signal to the command alone.
func (p *Process) Signal(sig syscall.Signal) { p.cmd.Process.Signal(sig) }

// Says is what the command has said so far.
func (p *Process) Says() string {
	text, _ := io.ReadAll(io.NewSectionReader(p.output, 0, math.MaxInt64))
	return string(text)
}

// Wait waits for the command's end.
func (p *Process) Wait() Result {
	start := time.Now()
	err := <-p.done
	r := Result{Took: time.Since(start)}
	if !p.timer.Stop() {
		r.Output = fmt.Sprintf("killed after %v\n", limit)
	}
	defer p.output.Close()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		ws := exit.Sys().(syscall.WaitStatus)
		if r.Code = ws.ExitStatus(); ws.Signaled() {
			r.Code = 128 + int(ws.Signal())
		}
	} else if err != nil {
		r.Code, r.Output = 127, err.Error()
	}
	p.output.Seek(0, io.SeekStart)
	text, _ := io.ReadAll(p.output)
	r.Output += string(text)
	return r
}

// Run runs a command in the namespace to its end.
func (b *Bed) Run(env []string, argv ...string) Result {
	p, err := b.Start(env, argv...)
	if err != nil {
		return Result{Code: 127, Output: err.Error()}
	}
	return p.Wait()
}

// Up and Down run the program, without faults.
func (b *Bed) Up(name string) Result   { return b.Run(nil, b.Program, "up", name) }
func (b *Bed) Down(name string) Result { return b.Run(nil, b.Program, "down", name) }

// Fault runs the program with a fault, such as kill-before:3.
func (b *Bed) Fault(fault, command, name string) Result {
	return b.Run([]string{"WG_QUICKNS_FAULT=" + fault}, b.Faults, command, name)
}

// Steps lists the steps that a command takes, by running it.
func (b *Bed) Steps(t testing.TB, command, name string) []string {
	t.Helper()
	log := filepath.Join(b.Dir, "steps")
	defer os.Remove(log)
	r := b.Run([]string{"WG_QUICKNS_FAULT=count", "WG_QUICKNS_FAULT_LOG=" + log}, b.Faults, command, name)
	if r.Code != 0 {
		t.Fatalf("%s %s: %v", command, name, r)
	}
	text, err := os.ReadFile(log)
	check(t, err)
	steps := strings.Split(strings.TrimSpace(string(text)), "\n")
	for i := range steps {
		if !strings.HasPrefix(steps[i], fmt.Sprint(i+1, " ")) {
			t.Fatalf("steps of %s out of order: %q", command, steps)
		}
	}
	return steps
}

// Ran lists the hooks that ran since the last call, as "wg0 PreUp".
func (b *Bed) Ran() []string {
	text, _ := os.ReadFile(b.Hooks)
	os.Remove(b.Hooks)
	return slices.Collect(func(yield func(string) bool) {
		for line := range strings.Lines(string(text)) {
			if !yield(strings.TrimSpace(line)) {
				return
			}
		}
	})
}

// Routed is an error unless other people's addresses of both families are reached by the link.
func (b *Bed) Routed(link string) error {
	for _, to := range []string{"203.0.113.9", "2001:db8:9::9"} {
		got, err := b.Out(to)
		if err != nil {
			return err
		}
		if got != link {
			return fmt.Errorf("%s is routed by %s, not by %s", to, got, link)
		}
	}
	return nil
}

// Journal is the folder of an interface's journal.
func (b *Bed) Journal(t testing.TB, name string) string {
	t.Helper()
	var st unix.Stat_t
	check(t, unix.Stat(b.NS.Path(), &st))
	return "/run/wg-quickns/" + name + "@" + strconv.FormatUint(st.Ino, 10)
}

// Wait polls until ok, for at most d.
func Wait(d time.Duration, ok func() bool) bool {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			return ok()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return true
}

// Container starts a process as an engine has them: with a network namespace of
// its own, or that given, and an /etc of its own. It ends with the test.
func Container(t testing.TB, n *ns.NS) *exec.Cmd {
	t.Helper()
	argv := []string{"unshare", "--mount", "--net", "sh", "-ec", `mount -t tmpfs etc /etc
		echo "nameserver 198.51.100.53" >/etc/resolv.conf
		exec sleep 1000`}
	c := exec.Command(argv[0], argv[1:]...)
	if n != nil {
		c = n.Cmd(slices.Delete(argv, 2, 3)...)
	}
	check(t, c.Start())
	t.Cleanup(func() { End(c) })
	Sleeps(c)
	return c
}

// Sleeps waits until a command has come to be sleep(1).
func Sleeps(c *exec.Cmd) {
	Wait(10*time.Second, func() bool {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", c.Process.Pid))
		return string(comm) == "sleep\n"
	})
}

// End kills a command, if it has not ended.
func End(c *exec.Cmd) {
	c.Process.Kill()
	c.Wait()
}
