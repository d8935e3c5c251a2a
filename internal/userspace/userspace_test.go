package userspace

import (
	"bufio"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/proc"
	"wg-quickns/test/ns"
)

// TestMain is the small main that Start starts again, too.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == Command {
		if os.Getenv("PATH") == "/slow" { // a child that does not get ready
			time.Sleep(time.Minute)
		}
		if err := Serve(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, filepath.Base(os.Args[0])+": "+err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) == 3 && os.Args[1] == "start" { // a parent to be killed
		_, err := Start(context.Background(), os.Args[2], Options{Log: func(string) {}})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	ns.Isolate()
	// a wireguard-go of the machine must not serve the tests: PATH is all but that
	const bin = "/run/bin"
	os.Mkdir(bin, 0o755)
	for _, dir := range []string{"/usr/sbin", "/usr/bin"} {
		programs, _ := os.ReadDir(dir)
		for _, p := range programs {
			if p.Name() != "wireguard-go" {
				os.Symlink(filepath.Join(dir, p.Name()), filepath.Join(bin, p.Name()))
			}
		}
	}
	os.Setenv("PATH", bin)
	ns.Main(m)
}

// start starts the built-in implementation in n and gives its process.
func start(t *testing.T, n *ns.NS, name string) int {
	t.Helper()
	err := n.Do(func() error {
		program, err := Start(t.Context(), name, Options{Log: func(string) {}})
		if err == nil && program != BuiltIn {
			err = fmt.Errorf("%s serves", program)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return server(t, name)
}

// server is the process that listens on the socket of that name.
func server(t *testing.T, name string) int {
	t.Helper()
	c, err := net.Dial("unix", socket(name))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := c.(*net.UnixConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cred, err := unix.GetsockoptUcred(int(f.Fd()), unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		t.Fatal(err)
	}
	return int(cred.Pid)
}

// uapi sends one request of the cross-platform userspace protocol.
func uapi(t *testing.T, name, request string) map[string]string {
	t.Helper()
	c, err := net.Dial("unix", socket(name))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, request+"\n")
	answer := map[string]string{}
	for s := bufio.NewScanner(c); s.Scan() && s.Text() != ""; {
		k, v, _ := strings.Cut(s.Text(), "=")
		answer[k] = v
	}
	if answer["errno"] != "0" {
		t.Fatalf("%s: %v", strings.SplitN(request, "\n", 2)[0], answer)
	}
	return answer
}

// gone waits until the process, the socket and the link are no more.
func gone(t *testing.T, n *ns.NS, pid int, name string, within time.Duration) {
	t.Helper()
	left := func() string {
		if syscall.Kill(pid, 0) == nil {
			return "process"
		}
		if _, err := os.Lstat(socket(name)); err == nil {
			return "socket"
		}
		if n.Try("ip", "link", "show", "dev", name).Code == 0 {
			return "link"
		}
		return ""
	}
	for begin := time.Now(); left() != ""; time.Sleep(10 * time.Millisecond) {
		if time.Since(begin) > within {
			t.Errorf("%s still there after %v", left(), within)
			return
		}
	}
}

func TestLife(t *testing.T) {
	n := ns.New(t, "life")
	pid := start(t, n, "ulife")
	if got := uapi(t, "ulife", "get=1\n"); got["errno"] != "0" {
		t.Errorf("get: %v", got)
	}
	for path, want := range map[string]os.FileMode{sockets: 0o700, socket("ulife"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	n.Run("ip", "link", "set", "ulife", "up")
	if got := n.Run("ip", "-br", "addr", "show", "dev", "ulife"); strings.Contains(got, "fe80") {
		t.Errorf("a link-local address: %s", got)
	}
	if got := n.Run("cat", "/sys/class/net/ulife/mtu"); strings.TrimSpace(got) != "1420" {
		t.Errorf("mtu %s", got)
	}
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if f := strings.Fields(string(stat)); f[4] != strconv.Itoa(pid) || f[5] != strconv.Itoa(pid) || f[1] != "(wg-quickns)" {
		t.Errorf("not a session and group of its own: %q", f[:6])
	}
	if cwd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); cwd != "/" {
		t.Errorf("folder %s", cwd)
	}
	for _, fd := range []string{"0", "1", "2"} {
		if to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd)); to != "/dev/null" {
			t.Errorf("file %s is %s", fd, to)
		}
	}
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "RssAnon") || strings.HasPrefix(line, "Umask") {
			t.Log(strings.TrimSpace(line))
		}
	}
	n.Run("ip", "link", "del", "ulife")
	gone(t, n, pid, "ulife", time.Second)
}

func TestTerm(t *testing.T) {
	n := ns.New(t, "term")
	pid := start(t, n, "uterm")
	n.Run("ip", "link", "set", "uterm", "up")
	syscall.Kill(pid, syscall.SIGTERM)
	gone(t, n, pid, "uterm", time.Second)
}

// TestStale: what kill -9 leaves is a socket, and the next start replaces it.
func TestStale(t *testing.T) {
	n := ns.New(t, "stale")
	pid := start(t, n, "ustale")
	syscall.Kill(pid, syscall.SIGKILL)
	for begin := time.Now(); n.Try("ip", "link", "show", "dev", "ustale").Code == 0; time.Sleep(10 * time.Millisecond) {
		if time.Since(begin) > 10*time.Second {
			t.Fatal("the link lives on")
		}
	}
	if _, err := os.Lstat(socket("ustale")); err != nil {
		t.Fatalf("no stale socket: %v", err)
	}
	pid = start(t, n, "ustale")
	uapi(t, "ustale", "get=1\n")
	n.Run("ip", "link", "del", "ustale")
	gone(t, n, pid, "ustale", time.Second)
}

// TestTwice: one per name and file system, whatever the namespace; the first lives on.
func TestTwice(t *testing.T) {
	a, b := ns.New(t, "a"), ns.New(t, "b")
	pid := start(t, a, "utwice")
	err := b.Do(func() error {
		_, err := Start(t.Context(), "utwice", Options{Log: func(string) {}})
		return err
	})
	if status, ok := proc.ExitStatus(err); err == nil || !ok || status != 1 || !strings.Contains(err.Error(), "utwice is served already") {
		t.Errorf("got %v", err)
	}
	if b.Try("ip", "link", "show", "dev", "utwice").Code == 0 {
		t.Error("the second left a link")
	}
	if server(t, "utwice") != pid {
		t.Error("the first does not serve any more")
	}
	// 20 at once in namespaces of their own: one wins
	a.Run("ip", "link", "del", "utwice")
	gone(t, a, pid, "utwice", time.Second)
	results := make(chan error)
	for range 20 {
		go func() {
			c := exec.Command("unshare", "-n", "/proc/self/exe", "start", "urace")
			exe, err := os.Executable()
			if err == nil {
				c.Args[2] = exe
				err = c.Run()
			}
			results <- err

		}()
	}
	won := 0
	for range 20 {
		if <-results == nil {
			won++
		}
	}
	if won != 1 {
		t.Errorf("%d of 20 started", won)
	}
	syscall.Kill(server(t, "urace"), syscall.SIGTERM)
	for begin := time.Now(); len(ns.Leftovers()) > 2; time.Sleep(10 * time.Millisecond) { // the two namespaces
		if time.Since(begin) > 2*time.Second {
			t.Fatalf("left: %q", ns.Leftovers())
		}
	}
}

func TestLinkExists(t *testing.T) {
	n := ns.New(t, "exists")
	n.Run("ip", "link", "add", "uexists", "type", "veth", "peer", "name", "other")
	err := n.Do(func() error {
		_, err := Start(t.Context(), "uexists", Options{Log: func(string) {}})
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "create the tun interface uexists") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(socket("uexists")); err == nil {
		t.Error("left a socket")
	}
}

func TestCancelled(t *testing.T) {
	t.Setenv("PATH", "/slow")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(200*time.Millisecond, func() { cancel(proc.SignalCause{Sig: syscall.SIGINT}) })
	begin := time.Now()
	_, err := Start(ctx, "ucancel", Options{Log: func(string) {}})
	if status, _ := proc.ExitStatus(err); status != 130 || time.Since(begin) > time.Second {
		t.Errorf("%v after %v", err, time.Since(begin))
	}
	if left := ns.Leftovers(); left != nil {
		t.Errorf("left: %q", left)
	}
}

// TestParentKilled kills the parent at many moments of the start: there is a
// whole interface, with its socket and process, or nothing.
func TestParentKilled(t *testing.T) {
	n := ns.New(t, "parent")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	n.Run(exe, "start", "upar")
	step := time.Since(begin) / 12
	pid := server(t, "upar")
	n.Run("ip", "link", "del", "upar")
	gone(t, n, pid, "upar", time.Second)
	whole, nothing := 0, 0
	for i := 0; whole < 3 && i < 99; i++ {
		name := fmt.Sprintf("upar%d", i)
		c := n.Cmd(exe, "start", name)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * step)
		c.Process.Kill()
		c.Wait()
		settle(n) // the child finds out, or gets ready
		if served(name) {
			whole++
			pid := server(t, name)
			n.Run("ip", "link", "del", name)
			gone(t, n, pid, name, time.Second)
			continue
		}
		nothing++
		_, err := os.Lstat(socket(name))
		if link := n.Try("ip", "link", "show", "dev", name); err == nil || link.Code == 0 {
			t.Errorf("killed after %d steps: left socket: %v, link: %s", i, err == nil, link.Stdout)
		}
	}
	if whole == 0 || nothing == 0 {
		t.Errorf("%d whole, %d nothing: the moments are badly chosen", whole, nothing)
	}
}

// settle waits until no process in n is about to change anything: each that
// lives has given up its parent's pipe.
func settle(n *ns.NS) {
	for begin := time.Now(); time.Since(begin) < 5*time.Second; time.Sleep(20 * time.Millisecond) {
		pids := strings.Fields(n.Try("ip", "netns", "pids", n.Name).Stdout)
		busy := false
		for _, pid := range pids {
			to, _ := os.Readlink("/proc/" + pid + "/fd/2")
			busy = busy || strings.HasPrefix(to, "pipe:")
		}
		if !busy {
			return
		}
	}
}

// TestTraffic sends through two interfaces in two namespaces joined by a veth pair.
func TestTraffic(t *testing.T) {
	a, b := ns.New(t, "a"), ns.New(t, "b")
	ns.Veth(a, "veth", []string{"192.0.2.1/24"}, b, "veth", []string{"192.0.2.2/24"})
	keys := [2]*ecdh.PrivateKey{}
	for i := range keys {
		k, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys[i] = k
	}
	pids := [2]int{}
	for i, n := range []*ns.NS{a, b} {
		name := fmt.Sprintf("utraffic%d", i)
		pids[i] = start(t, n, name)
		uapi(t, name, fmt.Sprintf("set=1\nprivate_key=%x\nlisten_port=%d\npublic_key=%x\nendpoint=192.0.2.%d:%d\nallowed_ip=0.0.0.0/0\nallowed_ip=::/0\n",
			keys[i].Bytes(), 51820+i, keys[1-i].PublicKey().Bytes(), 2-i, 51821-i))
		n.Run("ip", "addr", "add", fmt.Sprintf("10.9.0.%d/24", i+1), "dev", name)
		n.Run("ip", "addr", "add", fmt.Sprintf("fd00::%d/64", i+1), "dev", name)
		n.Run("ip", "link", "set", name, "up")
	}
	for _, addr := range []string{"10.9.0.2", "fd00::2"} {
		var l net.Listener
		if err := b.Do(func() (err error) { l, err = net.Listen("tcp", net.JoinHostPort(addr, "7")); return }); err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			if c, err := l.Accept(); err == nil {
				c.Write([]byte("hello"))
				c.Close()
			}
		}()
		var c net.Conn
		err := a.Do(func() (err error) { c, err = net.DialTimeout("tcp", l.Addr().String(), 10*time.Second); return })
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 5)
		if _, err := c.Read(got); err != nil || string(got) != "hello" {
			t.Errorf("%s: %q, %v", addr, got, err)
		}
		c.Close()
	}
	if got := uapi(t, "utraffic0", "get=1\n"); got["last_handshake_time_sec"] == "0" || got["rx_bytes"] == "0" || got["public_key"] != hex.EncodeToString(keys[1].PublicKey().Bytes()) {
		t.Errorf("state: %s %s", got["last_handshake_time_sec"], got["rx_bytes"])
	}
	for i, n := range []*ns.NS{a, b} {
		name := fmt.Sprintf("utraffic%d", i)
		n.Run("ip", "link", "del", name)
		gone(t, n, pids[i], name, time.Second)
	}
}

// TestLoop: while the way to the peer leads into the tunnel, encrypted packets do not go
// that way, so that the peer is not taken to have moved there.
func TestLoop(t *testing.T) {
	a, b := ns.New(t, "a"), ns.New(t, "b")
	ns.Veth(a, "veth", []string{"192.0.2.1/24"}, b, "veth", []string{"192.0.2.2/24"})
	keys := [2]*ecdh.PrivateKey{}
	for i := range keys {
		keys[i], _ = ecdh.X25519().GenerateKey(rand.Reader)
	}
	for i, n := range []*ns.NS{a, b} {
		name := fmt.Sprintf("uloop%d", i)
		start(t, n, name)
		uapi(t, name, fmt.Sprintf("set=1\nprivate_key=%x\nlisten_port=%d\npublic_key=%x\nendpoint=192.0.2.%d:%d\nallowed_ip=0.0.0.0/0\n",
			keys[i].Bytes(), 51820+i, keys[1-i].PublicKey().Bytes(), 2-i, 51821-i))
		n.Run("ip", "addr", "add", fmt.Sprintf("10.9.0.%d/24", i+1), "dev", name)
		n.Run("ip", "link", "set", name, "up")
		defer n.Run("ip", "link", "del", name)
	}
	a.Run("ping", "-nqc1", "-w9", "10.9.0.2")
	a.Run("bash", "-c", `ping -nqi0.002 -w1 10.9.0.2 &
		for i in {1..99}; do ip route add 192.0.2.2 dev uloop0; ip route del 192.0.2.2; done; wait; true`)
	for i, want := range []string{"192.0.2.2:51821", "192.0.2.1:51820"} {
		if got := uapi(t, fmt.Sprintf("uloop%d", i), "get=1\n")["endpoint"]; got != want { // of the last packet
			t.Errorf("the peer of %d is at %s, not %s", i, got, want)
		}
	}
	// another's in this tunnel passes
	var c *net.UDPConn
	if err := a.Do(func() (err error) { c, err = net.ListenUDP("udp", nil); return }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var far *net.UDPConn
	if err := b.Do(func() (err error) { far, err = net.ListenUDP("udp", &net.UDPAddr{Port: 7}); return }); err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	c.WriteTo(append([]byte{1, 0, 0, 0}, make([]byte, 144)...), &net.UDPAddr{IP: net.IPv4(10, 9, 0, 2), Port: 7})
	far.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, _, err := far.ReadFrom(make([]byte, 200)); n != 148 || err != nil {
		t.Errorf("another's encrypted packet: %d bytes, %v", n, err)
	}
}

// TestThroughAnother: packets to a peer that is reached through another one are no loop.
func TestThroughAnother(t *testing.T) {
	o := parse("listen_port=51820\npublic_key=a\nendpoint=192.0.2.1:1\nallowed_ip=0.0.0.0/0\n" +
		"public_key=b\nendpoint=10.0.0.1:2\nallowed_ip=10.9.0.0/24\npublic_key=c\nendpoint=[2001:db8::1]:3\nallowed_ip=2001:db8::/32\n")
	for text, want := range map[string]bool{"192.0.2.1:1": true, "192.0.2.1:2": false, "10.0.0.1:2": false, "[2001:db8::1]:3": true} {
		if got := o.loop(netip.MustParseAddrPort(text)); got != want || o.port != 51820 {
			t.Errorf("%s: %v, port %d", text, got, o.port)
		}
	}
}

// TestPrograms: which implementation is taken, its trace line and its failures.
func TestPrograms(t *testing.T) {
	dir := t.TempDir()
	write := func(name, script string) string {
		if err := os.WriteFile(dir+"/"+name, []byte("#!/bin/bash\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
		return dir + "/" + name
	}
	out := dir + "/out"
	own := write("own", `echo "own $*" > `+out)
	write("wireguard-go", `echo "go $*" > `+out)
	fails := write("fails", "exit 9")
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	for _, c := range []struct{ name, program, serves, trace, wrote string }{
		{"named", own, own, "[#] " + own + " wg0", "own wg0\n"},
		{"named, in PATH", "own", "own", "[#] own wg0", "own wg0\n"},
		{"usual", "", "wireguard-go", "[#] wireguard-go wg0", "go wg0\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			os.Remove(out)
			trace := ""
			serves, err := Start(t.Context(), "wg0", Options{Program: c.program, Log: func(s string) { trace = s }})
			wrote, _ := os.ReadFile(out)
			if err != nil || serves != c.serves || trace != c.trace || string(wrote) != c.wrote {
				t.Errorf("%q %q %q %v", serves, trace, wrote, err)
			}
		})
	}
	for program, want := range map[string]int{fails: 9, "nosuch": 127, dir: 126} {
		_, err := Start(t.Context(), "wg0", Options{Program: program, Log: func(string) {}})
		e := (*Error)(nil)
		if !errors.As(err, &e) || e.Status != want {
			t.Errorf("%s: %v, want status %d", program, err, want)
		}
	}
}

// TestNobodyListens: a child whose parent is gone before it is ready ends.
func TestNobodyListens(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	c := exec.Command("/proc/self/exe", Command, "unobody")
	c.Stderr = w
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	watchdog := time.AfterFunc(5*time.Second, func() { c.Process.Signal(syscall.SIGTERM) })
	if err := c.Wait(); err == nil || !watchdog.Stop() {
		t.Errorf("it served nobody (%v)", err)
	}
	if _, err := os.Lstat(socket("unobody")); err == nil {
		t.Error("left a socket")
	}
}
