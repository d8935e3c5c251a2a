package namespaces

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/test/bed"
	"wg-quickns/test/ns"
	"wg-quickns/test/programs"
)

// TestExecNamespace: which namespace a command gets, and whose user.
func TestExecNamespace(t *testing.T) {
	w := newWorld(t)
	ns.New(t, "there")
	where := func(n string) string { return fmt.Sprintf(`[ /proc/self/ns/net -ef /run/netns/%s ]`, n) }
	for _, c := range []struct{ keys, own, birth string }{
		{"Namespace = there", "there", "bed"},
		{"BirthNamespace = there", "there", "there"}, // it lives in the caller's
		{"Namespace = there\nBirthNamespace = bed-far", "there", "bed-far"},
		{"", "bed", "bed"},
	} {
		w.Config(t, "wg0", config(1, c.keys))
		for _, up := range []bool{false, true} { // by the config, and by the record
			if up {
				w.want(0, w.Up("wg0"))
			}
			for _, x := range []struct {
				want string
				args []string
			}{
				{c.own, []string{"wg0"}},
				{c.birth, []string{"--birth", "wg0"}},
				{"bed-far", []string{"--namespace", "bed-far", "wg0"}},
				{"bed-far", []string{"--namespace=bed-far"}},
				{c.own, []string{"/etc/wireguard/wg0.conf"}},
			} {
				argv := append(append([]string{w.Program, "exec"}, x.args...), "--", "sh", "-c", where(x.want))
				if r := w.Bed.Run(nil, argv...); r.Code != 0 {
					t.Errorf("%q, up %v: exec %q is not in %s: %v", c.keys, up, x.args, x.want, r)
				}
			}
		}
		w.want(0, w.Down("wg0"))
	}
	w.Config(t, "wg0", config(1, "Namespace = missing"))
	w.want(1, w.Bed.Run(nil, w.Program, "exec", "wg0", "--", "true"), "`wg0' is not up")
	w.want(1, w.Bed.Run(nil, w.Program, "exec", "--namespace", "missing", "wg0", "--", "true"), "missing")
	w.want(1, w.Bed.Run(nil, w.Program, "exec", "--namespace", "there", "--birth", "wg0", "--", "true"), "exclude each other")

	who := func(env []string, args ...string) string {
		return w.Bed.Run(env, append(append([]string{w.Program, "exec", "--namespace", "there"}, args...), "--", "sh", "-c", "id -u; id -g; id -G; echo $HOME $USER")...).Output
	}
	sudo := []string{"SUDO_UID=2", "SUDO_GID=2", "HOME=/root", "USER=root"}
	if got, want := who(sudo), "2\n2\n2\n/bin bin\n"; got != want {
		t.Errorf("by sudo: %q, want %q", got, want)
	}
	if got, want := who(sudo, "--user", "daemon"), "1\n1\n1\n/usr/sbin daemon\n"; got != want {
		t.Errorf("--user: %q, want %q", got, want)
	}
	if got, want := who(sudo, "--user=root"), "0\n0\n0\n/root root\n"; got != want {
		t.Errorf("--user=root: %q, want %q", got, want)
	}
	w.want(1, w.Bed.Run(nil, w.Program, "exec", "--namespace", "there", "--user", "nobody-such", "--", "true"), "there is no user `nobody-such'")
	w.want(1, w.Bed.Run(nil, w.Program, "exec", "--user", "daemon", "wg1", "--", "true"), "does not exist")
}

func quickns(t *testing.T) string {
	t.Helper()
	program, err := programs.Quickns()
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// TestExecSignals: a signal to the program, or to its group, is the command's.
func TestExecSignals(t *testing.T) {
	program := quickns(t)
	ns.New(t, "there")
	for _, c := range []struct {
		name, script string
		sig          syscall.Signal
		group        bool
		code         int
		says         string
	}{
		{"TERM", "", syscall.SIGTERM, false, 128 + 15, ""},
		{"INT to the group", "", syscall.SIGINT, true, 128 + 2, ""},
		{"TERM caught", "trap 'echo caught; exit 9' TERM", syscall.SIGTERM, false, 9, "caught\n"},
		{"INT caught", "trap 'echo caught; exit 9' INT", syscall.SIGINT, true, 9, "caught\n"},
		{"HUP ignored", "trap '' HUP; (sleep 0.3; kill -9 $$) &", syscall.SIGHUP, false, 128 + 9, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.Command(program, "exec", "--namespace", "there", "--", "sh", "-c",
				c.script+"\necho ready\nwhile :; do sleep 0.02; done")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ready := make([]byte, len("ready\n"))
			if _, err := io.ReadFull(out, ready); err != nil {
				t.Fatal(err)
			}
			pid := cmd.Process.Pid
			if c.group {
				pid = -pid
			}
			if err := syscall.Kill(pid, c.sig); err != nil {
				t.Fatal(err)
			}
			said, err := io.ReadAll(out)
			if err != nil {
				t.Fatal(err)
			}
			cmd.Wait()
			ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
			code := ws.ExitStatus()
			if ws.Signaled() {
				code = 128 + int(ws.Signal())
			}
			if code != c.code || string(said) != c.says {
				t.Errorf("status %d after %q, want %d after %q", code, said, c.code, c.says)
			}
		})
	}
	time.Sleep(100 * time.Millisecond) // the last sleep of a shell that was killed
}

// terminal is a pseudo-terminal (pty(7)) and all that was shown on it.
type terminal struct {
	*os.File
	mu    sync.Mutex
	shown bytes.Buffer
}

// openTerminal opens one of that size, and the side for a program.
func openTerminal(t *testing.T, rows, columns uint16) (*terminal, *os.File) {
	t.Helper()
	f, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	fd := int(f.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	}
	if err != nil {
		t.Fatal(err)
	}
	side, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{File: f}
	go func() {
		for buf := make([]byte, 4096); ; {
			n, err := f.Read(buf)
			term.mu.Lock()
			term.shown.Write(buf[:n])
			term.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return term, side
}

// types types text, and waits for what is shown then.
func (x *terminal) types(t *testing.T, text, want string) {
	t.Helper()
	x.mu.Lock()
	x.shown.Reset()
	x.mu.Unlock()
	if _, err := x.WriteString(text); err != nil {
		t.Fatal(err)
	}
	shown := ""
	if !bed.Wait(20*time.Second, func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		shown = x.shown.String()
		return strings.Contains(shown, want)
	}) {
		t.Fatalf("after %q there is no %q in %q", text, want, shown)
	}
}

// TestExecTerminal: a shell on a terminal has its size and controls jobs.
func TestExecTerminal(t *testing.T) {
	ns.New(t, "there")
	term, side := openTerminal(t, 33, 77)
	cmd := exec.Command(quickns(t), "shell", "--namespace", "there")
	cmd.Env = append(os.Environ(), "SHELL=/bin/bash", "HOME=/nonexistent", "PS1=$ ", "TERM=dumb")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = side, side, side
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	side.Close()
	// what is typed is shown too: the answers are spelled otherwise
	term.types(t, "echo re''ady; [ /proc/self/ns/net -ef /run/netns/there ] && echo in''side\n", "inside")
	term.types(t, "stty size\n", "33 77")
	if err := unix.IoctlSetWinsize(int(term.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 44, Col: 88}); err != nil {
		t.Fatal(err)
	}
	term.types(t, "stty size\n", "44 88")
	term.types(t, "PS1='? '; sleep 1''000\n", "sleep")
	bed.Wait(10*time.Second, func() bool { return exec.Command("pgrep", "-f", "^sleep 1000$").Run() == nil })
	term.types(t, "\x1a", "Stopped") // ^Z
	term.types(t, "fg\n", "sleep 1")
	term.types(t, "\x03", "? ") // ^C
	term.types(t, "echo st''atus $?\n", "status 130")
	if _, err := term.WriteString("exit 5\n"); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 5 {
		t.Errorf("exit status %d, want 5", code)
	}
}
