// Package completion tests what bash, zsh and fish make of a word at a press of the
// tab key, each on a terminal of its own.
package completion

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/test/ns"
	"wg-quickns/test/programs"
)

func TestMain(m *testing.M) { ns.Main(m) }

// shells are what is typed first into each, and how it is started without anybody's settings.
var shells = []struct {
	name, first string
	argv        []string
}{
	{"bash", "PS1=READY; . <(wg-quickns completion bash)", []string{"bash", "--norc", "--noprofile", "-i"}},
	{"bash with bash-completion", "PS1=READY; . /usr/share/bash-completion/bash_completion; . <(wg-quickns completion bash)", []string{"bash", "--norc", "--noprofile", "-i"}},
	{"zsh", "PS1=READY; autoload -U compinit; compinit -D -u; . <(wg-quickns completion zsh)", []string{"zsh", "-f", "-i"}},
	{"zsh with a file in fpath", "PS1=READY; fpath=(~/fpath $fpath); autoload -U compinit; compinit -D -u", []string{"zsh", "-f", "-i"}},
	{"fish", "function fish_prompt; echo READY; end; wg-quickns completion fish | source", []string{"fish", "-i"}},
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is a folder with the program and config files, a home, two configs in
// /etc/wireguard, a tunnel's interface and a namespace.
func world(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, path := range []string{filepath.Dir(dir), dir} {
		must(t, os.Chmod(path, 0o755))
	}
	path, err := programs.Quickns()
	must(t, err)
	text, err := os.ReadFile(path)
	must(t, err)
	for _, sub := range []string{"/bin", "/here", "/here/folder", "/home", "/home/fpath",
		// without the last of these, fish reads all manual pages in the background
		"/home/.local", "/home/.local/share", "/home/.local/share/fish", "/home/.local/share/fish/generated_completions"} {
		must(t, os.Mkdir(dir+sub, 0o777))
		must(t, os.Chmod(dir+sub, 0o777))
	}
	must(t, os.WriteFile(dir+"/bin/wg-quickns", text, 0o755))
	script, err := exec.Command(path, "completion", "zsh").Output()
	must(t, err)
	must(t, os.WriteFile(dir+"/home/fpath/_wg-quickns", script, 0o644))
	for _, name := range []string{"/etc/wireguard/office.conf", "/etc/wireguard/home.conf", dir + "/here/mine.conf", dir + "/here/folder/deep.conf", dir + "/here/other.txt"} {
		must(t, os.WriteFile(name, nil, 0o600))
	}
	ns.New(t, "boxes")
	ns.Run(t, "ip", "tuntap", "add", "dev", "tunnel7", "mode", "tun")
	t.Cleanup(func() { ns.Run(t, "ip", "link", "delete", "tunnel7") })
	must(t, os.MkdirAll("/run/wireguard", 0o700))
	must(t, os.WriteFile("/run/wireguard/tunnel7.sock", nil, 0o600))
	return dir
}

// press types a line into a shell, with tab where it has a ⇥, and gives what the
// shell has then made of it, and all that was on the terminal.
func press(t *testing.T, dir string, shell int, user uint32, line string) (got, screen string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	defer master.Close()
	must(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	must(t, err)
	terminal := fmt.Sprintf("/dev/pts/%d", n)
	must(t, os.Chown(terminal, int(user), -1))
	slave, err := os.OpenFile(terminal, os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	must(t, unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: 200}))

	s := shells[shell]
	answer := filepath.Join(dir, "here", "answer")
	c := exec.Command(s.argv[0], s.argv[1:]...)
	c.Stdin, c.Stdout, c.Stderr, c.Dir = slave, slave, slave, dir+"/here"
	c.Env = []string{"PATH=" + dir + "/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=" + dir + "/home", "TERM=dumb", "LC_ALL=C.UTF-8"}
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Credential: &syscall.Credential{Uid: user, Gid: user}}
	must(t, c.Start())
	slave.Close()
	defer func() {
		c.Process.Kill()
		c.Wait()
		os.Remove(answer)
	}()
	var seen strings.Builder
	read := make(chan string)
	go func() {
		defer close(read)
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			read <- string(b[:n])
			if err != nil {
				return
			}
		}
	}()
	wait := func(done func() bool) bool {
		for end := time.After(30 * time.Second); !done(); {
			select {
			case text, ok := <-read:
				if !ok {
					return done()
				}
				seen.WriteString(text)
			case <-time.After(50 * time.Millisecond):
			case <-end:
				return false
			}
		}
		return true
	}
	say := func(text string) {
		_, err := io.WriteString(master, text)
		must(t, err)
	}
	say(s.first + "\r")
	if !wait(func() bool { return strings.Count(seen.String(), "READY") >= 2 }) { // its echo and the prompt
		t.Fatalf("%s says\n%s", s.name, seen.String())
	}
	seen.Reset()
	say(strings.ReplaceAll(line, "⇥", "\t"))
	// At the line's end and at its beginning. fish writes the words one by one.
	say("\x05 >answer.new; mv answer.new answer\x01printf '<%s>' \r")
	var text []byte
	if !wait(func() bool {
		text, err = os.ReadFile(answer)
		return err == nil && strings.HasSuffix(string(text), ">")
	}) {
		t.Fatalf("%s made nothing of %q:\n%s", s.name, line, seen.String())
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(text), seen.String()
}

func TestTab(t *testing.T) {
	dir := world(t)
	for line, want := range map[string]string{
		"wg-quickns ver⇥":                          "version",
		"wg-quickns up of⇥":                        "up office",
		"wg-quickns up h⇥":                         "up home",
		"wg-quickns up ./m⇥":                       "up ./mine.conf",
		"wg-quickns up --d⇥ h⇥":                    "up --dry-run home",
		"wg-quickns up ./f⇥d⇥":                     "up ./folder/deep.conf",
		"wg-quickns down tun⇥":                     "down tunnel7",
		"wg-quickns save t⇥":                       "save tunnel7",
		"wg-quickns status --j⇥ t⇥":                "status --json tunnel7",
		"wg-quickns plan up of⇥":                   "plan up office",
		"wg-quickns check --res⇥ office ho⇥":       "check --resolve office home",
		"wg-quickns completion f⇥":                 "completion fish",
		"wg-quickns guard --le⇥ tun⇥":              "guard --leave tunnel7",
		"wg-quickns exec --namespace bo⇥ -- unam⇥": "exec --namespace boxes -- uname",
		"wg-quickns exec --bi⇥ tun⇥ -- ls oth⇥":    "exec --birth tunnel7 -- ls other.txt",
		"wg-quickns exec --namespace=bo⇥ t⇥":       "exec --namespace=boxes tunnel7",
		"wg-quickns shell --namespace dock⇥web":    "shell --namespace docker:web",
		"wg-quickns shell --user nobo⇥ tun⇥":       "shell --user nobody tunnel7",
		"wg-quickns nothing xyz⇥":                  "nothing xyz",
	} {
		for i, s := range shells {
			if i == 3 && line != "wg-quickns up of⇥" { // the same script
				continue
			}
			got, screen := press(t, dir, i, 0, line)
			want := "<" + strings.ReplaceAll("wg-quickns "+want, " ", "><") + ">"
			if got != want {
				t.Errorf("%s: %s: got %s, want %s\n%s", s.name, line, got, want, screen)
			}
		}
	}
}

// A user who may read nothing of it gets what there is to see, and no errors.
func TestTabOfUser(t *testing.T) {
	dir := world(t)
	for line, want := range map[string]string{
		"wg-quickns ver⇥":                "<wg-quickns><version>",
		"wg-quickns up offi⇥":            "<wg-quickns><up><offi>",
		"wg-quickns up ./m⇥":             "<wg-quickns><up><./mine.conf>",
		"wg-quickns down tun⇥":           "<wg-quickns><down><tunnel7>",
		"wg-quickns exec --namespace b⇥": "<wg-quickns><exec><--namespace><boxes>",
	} {
		for i, s := range shells {
			if i == 3 {
				continue
			}
			got, screen := press(t, dir, i, 65534, line)
			if got != want {
				t.Errorf("%s: %s: got %s, want %s", s.name, line, got, want)
			}
			for _, bad := range []string{"denied", "rror", "not found", "No such", "sudo"} {
				if strings.Contains(screen, bad) {
					t.Errorf("%s: %s: an error shows:\n%s", s.name, line, screen)
				}
			}
		}
	}
}

func TestVersion(t *testing.T) {
	path, err := programs.Quickns()
	must(t, err)
	for _, arg := range []string{"version", "--version"} {
		c := exec.Command(path, arg)
		c.Stderr = os.Stderr
		out, err := c.Output()
		if err != nil || !strings.HasPrefix(string(out), "wg-quickns ") || len(strings.Fields(string(out))) != 2 {
			t.Errorf("%s: %q, %v", arg, out, err)
		}
	}
}
