package hooks

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/plan"
	"wg-quickns/internal/proc"
	"wg-quickns/test/ns"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// replace is what a network manager does to a file.
func replace(t *testing.T, path, text string) {
	t.Helper()
	write(t, path+".new", text)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// blue is a namespace with files of its own.
func blue(t *testing.T, files map[string]string) *ns.NS {
	t.Helper()
	n := ns.New(t, "blue")
	for name, text := range files {
		write(t, "/etc/netns/blue/"+name, text)
	}
	t.Cleanup(func() { os.RemoveAll("/etc/netns/blue") })
	return n
}

// in runs one hook in the namespace of that path.
func in(t *testing.T, path, command string) ns.Result {
	t.Helper()
	return ns.Try(prepare(t, job{NS: plan.NS(path), Hooks: []plan.Hook{{Command: command}}}))
}

func TestNamespace(t *testing.T) {
	write(t, "/etc/resolv.conf", "nameserver 192.0.2.1\n")
	n := blue(t, map[string]string{"resolv.conf": "nameserver 10.0.0.53\n"})
	n.Run("ip", "link", "add", "inside", "type", "veth", "peer", "name", "inside2")
	ns.Run(t, "mount", "--make-rshared", "/") // as systemd has it: mounts would spread
	t.Cleanup(func() { ns.Run(t, "mount", "--make-rprivate", "/") })
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	show := `ip -o link | grep -c inside2@; ls -d /sys/class/net/inside; cat /etc/resolv.conf; cut -d: -f2 <<< "$(readlink /proc/self/ns/net)"`
	var st unix.Stat_t
	if err := unix.Stat(n.Path(), &st); err != nil {
		t.Fatal(err)
	}
	for path, conf := range map[string]string{n.Path(): "10.0.0.53", fmt.Sprintf("/proc/self/root%s", n.Path()): "192.0.2.1"} {
		want := ns.Result{Stdout: fmt.Sprintf("1\n/sys/class/net/inside\nnameserver %s\n[%d]\n", conf, st.Ino)}
		if got := in(t, path, show); got != want {
			t.Errorf("in %s: got %+v, want %+v", path, got, want)
		}
	}
	if after, _ := os.ReadFile("/proc/self/mountinfo"); string(after) != string(mounts) {
		t.Errorf("mounts changed outside:\n%s\nbefore:\n%s", after, mounts)
	}
	// the caller's own namespace by another path is no other namespace
	if got := in(t, "/proc/self/ns/net", "cat /etc/resolv.conf; readlink /proc/self/ns/mnt /proc/$PPID/ns/mnt | uniq | wc -l"); got.Stdout != "nameserver 192.0.2.1\n1\n" {
		t.Errorf("in our own: %+v", got)
	}
	if got := in(t, n.Path(), "exit 7"); got.Code != 7 {
		t.Errorf("status: %+v", got)
	}
}

// TestReplaced: no change outside uncovers a file of /etc, whichever way the
// machine has it, and one of the namespace's own is seen.
func TestReplaced(t *testing.T) {
	const stub = "/run/systemd/resolve/stub-resolv.conf"
	t.Cleanup(func() { os.RemoveAll("/run/systemd"); os.Remove("/etc/resolv.conf") })
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T)
		file    string
	}{
		{"file", func(t *testing.T) { replace(t, "/etc/resolv.conf", "nameserver 192.0.2.1\n") }, "/etc/resolv.conf"},
		{"link", func(t *testing.T) {
			write(t, stub, "nameserver 192.0.2.1\n")
			os.Remove("/etc/resolv.conf")
			if err := os.Symlink("../"+stub[1:], "/etc/resolv.conf"); err != nil {
				t.Fatal(err)
			}
		}, stub},
		{"link to nowhere", func(t *testing.T) {
			os.RemoveAll("/run/systemd")
			os.Remove("/etc/resolv.conf")
			if err := os.Symlink("../"+stub[1:], "/etc/resolv.conf"); err != nil {
				t.Fatal(err)
			}
		}, "/etc/resolv.conf"},
		{"none", func(t *testing.T) { os.Remove("/etc/resolv.conf") }, "/etc/resolv.conf"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.prepare(t)
			n := blue(t, map[string]string{"resolv.conf": "nameserver 10.0.0.53\n"})
			dir := t.TempDir()
			cmd := prepare(t, job{NS: plan.NS(n.Path()), Hooks: []plan.Hook{{Command: fmt.Sprintf(
				`cd %s; cat /etc/resolv.conf; touch ready; until [[ -e go ]]; do sleep 0.01; done; cat /etc/resolv.conf`, dir)}}})
			done := make(chan ns.Result)
			go func() { done <- ns.Try(cmd) }()
			for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
				if _, err := os.Stat(dir + "/ready"); err == nil || time.Now().After(end) {
					break
				}
			}
			for range 3 {
				replace(t, c.file, "nameserver 192.0.2.99\n")
			}
			replace(t, "/etc/netns/blue/resolv.conf", "nameserver 10.0.0.54\n") // as a network manager there does
			write(t, dir+"/go", "")
			want := ns.Result{Stdout: "nameserver 10.0.0.53\nnameserver 10.0.0.54\n"}
			if got := <-done; got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

// TestReplacedMeanwhile: a file becomes a link, and back, while a hook's own /etc
// is made.
func TestReplacedMeanwhile(t *testing.T) {
	n := blue(t, map[string]string{"resolv.conf": "nameserver 10.0.0.53\n"})
	ns.Turning(t, "/etc/turning")
	for range 50 {
		if got := in(t, n.Path(), "cat /etc/resolv.conf"); got != (ns.Result{Stdout: "nameserver 10.0.0.53\n"}) {
			t.Fatalf("got %+v", got)
		}
	}
}

// TestEtc: but for what is covered, /etc is the machine's; a write to it arrives
// there or fails.
func TestEtc(t *testing.T) {
	write(t, "/etc/resolv.conf", "nameserver 192.0.2.1\n")
	write(t, "/etc/note", "old\n")
	write(t, "/etc/folder/file", "old\n")
	os.Remove("/etc/link")
	if err := os.Symlink("note", "/etc/link"); err != nil {
		t.Fatal(err)
	}
	n := blue(t, map[string]string{"resolv.conf": "nameserver 10.0.0.53\n", "folder/other": "other\n", ".wg-quickns-1": "half"})
	r := in(t, n.Path(), `ls /etc/folder; cat /etc/note /etc/link; echo new > /etc/note; echo nameserver 10.0.0.54 > /etc/resolv.conf
touch /etc/lost 2>/dev/null || echo refused; ls -A /etc | wc -l`)
	all, err := os.ReadDir("/etc")
	if err != nil {
		t.Fatal(err)
	}
	if want := (ns.Result{Stdout: fmt.Sprintf("other\nold\nold\nrefused\n%d\n", len(all))}); r != want {
		t.Errorf("got %+v, want %+v", r, want)
	}
	for path, want := range map[string]string{"/etc/note": "new\n", "/etc/netns/blue/resolv.conf": "nameserver 10.0.0.54\n", "/etc/resolv.conf": "nameserver 192.0.2.1\n"} {
		if got, err := os.ReadFile(path); string(got) != want {
			t.Errorf("%s: %q, %v, want %q", path, got, err, want)
		}
	}
}

func TestBindFails(t *testing.T) {
	write(t, "/etc/resolv.conf", "")
	for name, want := range map[string]string{
		"no-such-file": "bind /etc/netns/blue/no-such-file over /etc/no-such-file: no such file or directory\n",
		"passwd/x":     "bind /etc/netns/blue/passwd over /etc/passwd: not a directory\n",
	} {
		t.Run(name, func(t *testing.T) {
			n := blue(t, map[string]string{"resolv.conf": "", name: ""})
			got := in(t, n.Path(), "echo ran")
			if got.Code == 0 || got.Stdout != "" || !strings.HasSuffix(got.Stderr, want) {
				t.Errorf("got %+v, want %s", got, want)
			}
		})
	}
}

// TestHidden: no socket of a resolver of the machine is reachable inside.
func TestHidden(t *testing.T) {
	sockets := []string{"/run/nscd/socket", "/run/systemd/resolve/io.systemd.Resolve", "/run/dbus/system_bus_socket", "/run/avahi-daemon/socket", "/run/other/socket"}
	for _, s := range sockets {
		if err := os.MkdirAll(filepath.Dir(s), 0o755); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("unix", s)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close(); os.RemoveAll(filepath.Dir(s)) })
	}
	write(t, "/run/systemd/resolve/resolv.conf", "nameserver 192.0.2.7\n")
	n := blue(t, nil)
	got := in(t, n.Path(), "for s in "+strings.Join(sockets, " ")+"; do [[ ! -S $s ]] || echo $s; done; cat /run/systemd/resolve/resolv.conf")
	if want := (ns.Result{Stdout: "/run/other/socket\nnameserver 192.0.2.7\n"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestCgroupStays(t *testing.T) {
	if err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount("/sys/fs/cgroup", unix.MNT_DETACH) })
	n := blue(t, nil)
	if got := in(t, n.Path(), "stat -f -c %T /sys/fs/cgroup /sys; findmnt -no OPTIONS /sys"); !strings.HasPrefix(got.Stdout, "cgroup2fs\nsysfs\nrw") {
		t.Errorf("got %+v", got)
	}
}

// execution is what a process of its own executes.
type execution struct {
	NS   string
	User *Credentials
	Dir  string
}

// runExec executes argv while 500 goroutines keep every thread busy.
func runExec(arg string, argv []string) {
	var e execution
	if err := json.Unmarshal([]byte(arg), &e); err != nil {
		panic(err)
	}
	for range 500 {
		go func() {
			for i := 0; ; i++ {
				if i%1000 == 0 {
					f, _ := os.Open("/dev/null")
					f.Close()
				}
				runtime.Gosched()
			}
		}()
	}
	err := Exec(e.NS, ExecOptions{User: e.User, Argv: argv, Dir: e.Dir})
	fmt.Fprintln(os.Stderr, err)
	status, _ := proc.ExitStatus(err)
	os.Exit(max(status, 1))
}

func executed(e execution, argv ...string) *exec.Cmd {
	arg, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	c := exec.Command("/proc/self/exe", append([]string{"run-exec", string(arg)}, argv...)...)
	c.Env = append(os.Environ(), "GODEBUG=")
	return c
}

// user puts one with groups into /etc and gives its credentials.
func testUser(t *testing.T) Credentials {
	t.Helper()
	for path, text := range map[string]string{
		"/etc/passwd": "tester:x:4242:4243::/home/tester:/bin/sh\n4244:x:4245:4246::/:/bin/sh\n", "/etc/group": "tester:x:4243:\nb:x:77:x,tester\na:x:66:tester\n",
	} {
		old, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		write(t, path, string(old)+text)
		t.Cleanup(func() { os.WriteFile(path, old, 0o644) })
	}
	return Credentials{UID: 4242, GID: 4243, Groups: []int{4243, 77, 66}, Name: "tester", Home: "/home/tester"}
}

func TestUsers(t *testing.T) {
	tester := testUser(t)
	same := func(a, b Credentials) bool {
		slices.Sort(a.Groups)
		slices.Sort(b.Groups)
		return a.UID == b.UID && a.GID == b.GID && slices.Equal(a.Groups, b.Groups) && a.Name == b.Name && a.Home == b.Home
	}
	check := func(what string, got Credentials, err error, want Credentials) {
		t.Helper()
		if err != nil || !same(got, want) {
			t.Errorf("%s: got %+v, %v, want %+v", what, got, err, want)
		}
	}
	own, _ := os.Getgroups()
	got, err := CallingUser([]string{"SUDO_UID=4242", "SUDO_GID=4243"})
	check("by sudo", got, err, tester)
	got, err = CallingUser([]string{"SUDO_UID=99999", "SUDO_GID=99"})
	check("by sudo, without an entry", got, err, Credentials{UID: 99999, GID: 99, Groups: []int{99}})
	got, err = CallingUser([]string{"HOME=/"})
	check("without sudo", got, err, Credentials{Groups: own})
	for _, bad := range [][]string{{"SUDO_UID=4242"}, {"SUDO_UID=x", "SUDO_GID=1"}, {"SUDO_UID=4294967295", "SUDO_GID=1"}, {"SUDO_UID=1", "SUDO_GID=-1"}} {
		if got, err := CallingUser(bad); err == nil {
			t.Errorf("%q: got %+v", bad, got)
		}
	}
	got, err = LookupUser("tester")
	check("name", got, err, tester)
	got, err = LookupUser("4242")
	check("number", got, err, tester)
	got, err = LookupUser("4244") // a name first
	check("number that is a name", got, err, Credentials{UID: 4245, GID: 4246, Groups: []int{4246}, Name: "4244", Home: "/"})
	for _, bad := range []string{"", "nobody-such", "99999", "-1", "-s", "4294967295"} {
		if got, err := LookupUser(bad); err == nil {
			t.Errorf("%q: got %+v", bad, got)
		}
	}
}

// TestUsersElsewhere: users that only another source of nsswitch.conf(5) has.
func TestUsersElsewhere(t *testing.T) {
	testUser(t)
	for path, script := range map[string]string{
		"/usr/bin/getent": `#!/bin/sh
[ "$*" = "passwd far" ] || [ "$*" = "passwd 5000" ] || exit 2
echo far:x:5000:5001:Far Away:/home/far:/bin/sh
`,
		"/usr/bin/id": `#!/bin/sh
case $* in "-G far") echo 5001 7 ;; "-G tester") echo 4243 66 77 8 ;; *) exit 1 ;; esac
`,
	} {
		stub := t.TempDir() + "/program"
		if err := os.WriteFile(stub, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(stub, path, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH) })
	}
	far := Credentials{UID: 5000, GID: 5001, Groups: []int{5001, 7}, Name: "far", Home: "/home/far"}
	for _, name := range []string{"far", "5000"} {
		if got, err := LookupUser(name); err != nil || !reflect.DeepEqual(got, far) {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
	if got, err := CallingUser([]string{"SUDO_UID=5000", "SUDO_GID=5001"}); err != nil || !reflect.DeepEqual(got, far) {
		t.Errorf("by sudo: got %+v, %v", got, err)
	}
	if got, err := LookupUser("tester"); err != nil || !slices.Equal(got.Groups, []int{4243, 66, 77, 8}) {
		t.Errorf("groups of a local user: %+v, %v", got, err)
	}
}

// TestCallersGroups: a process that has groups which no list knows of calls sudo; what leads
// to its session, as that was when it called, is known too, and nothing else of its environment.
func TestCallersGroups(t *testing.T) {
	testUser(t)
	sudo := "/run/sudo-stand-in" // set-uid root, as sudo is
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sudo, data, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(sudo) })
	if err := os.Chmod(sudo, os.ModeSetuid|0o755); err != nil {
		t.Fatal(err)
	}
	ask := func(uid int) ns.Result {
		return ns.Try(exec.Command("setpriv", "--reuid=4242", "--regid=4243", "--groups=5,6", "env", "DISPLAY=:1", "SECRET=x", "bash", "-c",
			fmt.Sprintf("bash -c '%s show-caller SUDO_UID=%d SUDO_GID=4243; true'; true", sudo, uid)))
	}
	if got, want := ask(4242), "4242 4243 [5 6] tester /home/tester [DISPLAY=:1]\n"; got.Stdout != want {
		t.Errorf("got %+v, want %s", got, want)
	}
	if got, want := ask(4245), "4245 4243 [4246] 4244 / []\n"; got.Stdout != want { // none of the processes is that user's
		t.Errorf("got %+v, want %s", got, want)
	}
}

func TestEnviron(t *testing.T) {
	env := []string{"HOME=/root", "USER=root", "LOGNAME=root", "X=root", "HOMEX=/root", "USER=other"}
	got := Credentials{UID: 7, Name: "u", Home: "/h"}.Environ(env)
	if want := []string{"HOME=/h", "USER=u", "LOGNAME=u", "X=root", "HOMEX=/root", "USER=other"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	got = Credentials{UID: 7, Name: "u", Home: "/h", session: []string{"DISPLAY=:7", "XDG_RUNTIME_DIR=/run/user/7", "DISPLAY=:8"}}.Environ([]string{"XDG_RUNTIME_DIR=/run/own"})
	if want := []string{"XDG_RUNTIME_DIR=/run/own", "DISPLAY=:7"}; !slices.Equal(got, want) {
		t.Errorf("the session: got %q, want %q", got, want)
	}
	for _, c := range []Credentials{{UID: 7}, {UID: 0, Name: "toor", Home: "/"}} {
		if got := c.Environ(env); !slices.Equal(got, env) {
			t.Errorf("%+v: got %q", c, got)
		}
	}
}

// probe shows all that Exec sets, of a process that it executed: by a shell alone,
// as it runs ten thousand times.
const probe = `while read -r key value; do case $key in Uid:|Gid:|Groups:|Cap???:|NoNewPrivs:|SigBlk:|SigIgn:) echo $key $value ;; esac
done </proc/self/status
ulimit -n; echo /proc/self/fd/*; [ /proc/self/ns/net -ef "$0" ] && echo inside; echo "$PWD"`

// TestExec compares a process with one of the user's own, many times, since what
// goes wrong with threads goes wrong sometimes: 10 000 times with WGQ_EXEC_FULL=1.
func TestExec(t *testing.T) {
	tester := testUser(t)
	n := blue(t, nil)
	credential := &syscall.Credential{Uid: 4242, Gid: 4243, Groups: []uint32{4243, 77, 66}}
	own := exec.Command("sh", "-c", probe, "/proc/self/ns/net")
	own.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	own.Dir = "/usr/lib"
	if err := proc.CloseOnExec(); err != nil { // what the test was started with
		t.Fatal(err)
	}
	want := ns.Try(own)
	lines := strings.Split(want.Stdout, "\n")
	if want.Code != 0 || len(lines) != 16 || !slices.Contains(lines, "CapEff: 0000000000000000") || lines[12] != "/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3" {
		t.Fatalf("the user's own process: %+v", want)
	}
	setpriv, err := exec.LookPath("setpriv")
	if err != nil {
		t.Fatal(err)
	}
	runs := 200
	if os.Getenv("WGQ_EXEC_FULL") != "" {
		runs = 10_000
	}
	var good atomic.Int32
	var workers sync.WaitGroup
	for worker := range 2 {
		workers.Go(func() {
			for i := worker; i < runs && !t.Failed(); i += 2 {
				c := executed(execution{NS: n.Path(), User: &tester}, "sh", "-c", probe, n.Path())
				if i%4 < 2 { // with inheritable and ambient capabilities
					c.Path, c.Args = setpriv, append([]string{"setpriv", "--inh-caps=+net_admin,+chown", "--ambient-caps=+net_admin,+chown"}, c.Args...)
					c.Args[3], _ = os.Executable()
				}
				c.Dir = "/usr/lib"
				c.ExtraFiles = []*os.File{os.Stdin, os.Stdin} // open without close-on-exec
				if got := ns.Try(c); got != want {
					t.Errorf("run %d: got %+v, want %+v", i, got, want)
					return
				}
				good.Add(1)
			}
		})
	}
	workers.Wait()
	t.Logf("%d of %d", good.Load(), runs)
	link, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	// root in our own namespace keeps what is permitted, and inherits nothing
	c := executed(execution{User: &Credentials{}}, "bash", "-c", "readlink /proc/self/ns/net; grep -E '^Cap(Inh|Amb)' /proc/self/status; id -u")
	if got, want := ns.Try(c), link+"\nCapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n0\n"; got.Stdout != want {
		t.Errorf("root: got %+v, want %s", got, want)
	}
}

func TestExecFolder(t *testing.T) {
	n := blue(t, map[string]string{"resolv.conf": ""})
	write(t, "/etc/resolv.conf", "")
	tester := Credentials{UID: 4242, GID: 4243}
	open, closed := "/run/open", "/run/closed"
	for dir, mode := range map[string]os.FileMode{open: 0o755, closed: 0o700} {
		if err := os.Mkdir(dir, mode); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(dir) })
	}
	for dir, want := range map[string]string{open: open, closed: "/", "/etc": "/etc", "/run/none": "/", "relative": "/"} {
		if got := ns.Try(executed(execution{n.Path(), &tester, dir}, "pwd", "-P")); got.Stdout != want+"\n" {
			t.Errorf("%s: got %+v", dir, got)
		}
	}
	c := executed(execution{n.Path(), &tester, ""}, "pwd", "-P")
	c.Dir = open
	if got := ns.Try(c); got.Stdout != open+"\n" {
		t.Errorf("working directory: got %+v", got)
	}
}

func TestExecStatus(t *testing.T) {
	n := blue(t, nil)
	dir := t.TempDir()
	write(t, dir+"/text", "echo script\n")
	for _, c := range []struct {
		argv []string
		want ns.Result
	}{
		{[]string{"no-such-program"}, ns.Result{Stderr: "no-such-program: command not found\n", Code: 127}},
		{[]string{dir + "/none"}, ns.Result{Stderr: dir + "/none: command not found\n", Code: 127}},
		{[]string{dir + "/text"}, ns.Result{Stderr: dir + "/text: permission denied\n", Code: 126}},
		{[]string{"bash", "-c", "exit 9"}, ns.Result{Code: 9}},
		{[]string{"bash", "-c", "kill -USR1 $$"}, ns.Result{Code: 138}},
	} {
		if got := ns.Try(executed(execution{NS: n.Path()}, c.argv...)); got != c.want {
			t.Errorf("%q: got %+v, want %+v", c.argv, got, c.want)
		}
	}
	if err := os.Chmod(dir+"/text", 0o755); err != nil {
		t.Fatal(err)
	}
	if got := ns.Try(executed(execution{NS: n.Path()}, dir+"/text")); got.Stdout != "script\n" {
		t.Errorf("script: got %+v", got)
	}
	if got := ns.Try(executed(execution{NS: "/run/netns/none"}, "true")); got.Code != 1 || !strings.Contains(got.Stderr, "/run/netns/none: no such file") {
		t.Errorf("no namespace: got %+v", got)
	}
}
