package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sleeper is a process in a namespace of its own.
func sleeper(t *testing.T) (pid int) {
	t.Helper()
	c := exec.Command("unshare", "-n", "sleep", "60")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
	})
	here, err := Identify("")
	if err != nil {
		t.Fatal(err)
	}
	for {
		if id, err := Identify(fmt.Sprintf("/proc/%d/ns/net", c.Process.Pid)); err == nil && id != here {
			return c.Process.Pid
		}
		time.Sleep(time.Millisecond)
	}
}

// deadPID is a process ID that nobody has any more.
func deadPID(t *testing.T) int {
	t.Helper()
	c := exec.Command("true")
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
	return c.Process.Pid
}

func TestFind(t *testing.T) {
	create(t, "named")
	pid := sleeper(t)
	number := strconv.Itoa(pid)
	proc := "/proc/" + number + "/ns/net"
	dead := strconv.Itoa(deadPID(t))
	for _, c := range []struct {
		kind  Kind
		value string
		want  Found
		err   error
	}{
		{Caller, "", Found{}, nil},
		{Name, "named", Found{Path: "/run/netns/named", Name: "named"}, nil},
		{Name, "new", Found{Path: "/run/netns/new", Name: "new", Missing: true}, nil},
		{Init, "init", Found{Path: "/proc/1/ns/net", PID: 1}, nil},
		{PID, number, Found{Path: proc, PID: pid}, nil},
		{PID, dead, Found{}, unix.ESRCH},
		{PID, "0", Found{}, unix.EINVAL},
		{PID, "x", Found{}, unix.EINVAL},
		{Number, number, Found{Path: proc, PID: pid}, nil},
		{Number, dead, Found{}, unix.ESRCH},
		{Path, proc, Found{Path: proc}, nil},
		{Path, "/run/netns/named", Found{Path: "/run/netns/named"}, nil},
		{Path, "/var/run//netns/named", Found{Path: "/run/netns/named"}, nil},
		{Path, "/nonexistent", Found{}, unix.ENOENT},
		{Path, "/dev/null", Found{}, unix.EINVAL},
	} {
		got, err := Find(t.Context(), c.kind, c.value)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("Find(%d, %q) = %+v, %v, want %+v, %v", c.kind, c.value, got, err, c.want, c.err)
		}
	}
	if _, err := Find(t.Context(), PID, dead); err == nil || !strings.Contains(err.Error(), "no process "+dead) {
		t.Errorf("a PID that is gone: %v", err)
	}
	// A namespace of that name comes before a process.
	create(t, number)
	want := Found{Path: "/run/netns/" + number, Name: number}
	if got, err := Find(t.Context(), Number, number); err != nil || got != want {
		t.Errorf("a number that is a name: %+v %v", got, err)
	}
	// A file that is none is refused, the PID is not fallen back to.
	if err := os.WriteFile(dir+"/"+dead, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(dir + "/" + dead)
	if _, err := Find(t.Context(), Number, dead); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a number that is a plain file: %v", err)
	}
}

// engine serves a container engine's API on a socket.
func engine(t *testing.T, handle http.HandlerFunc) (socket string) {
	t.Helper()
	socket = t.TempDir() + "/api.sock"
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: handle}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return socket
}

func TestContainers(t *testing.T) {
	pid, dead := sleeper(t), deadPID(t)
	release := make(chan bool)
	socket := engine(t, func(w http.ResponseWriter, r *http.Request) {
		answer := func(status int, body string, args ...any) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			fmt.Fprintf(w, body, args...)
		}
		path := r.URL.EscapedPath()
		if r.Method != "GET" {
			t.Errorf("%s %s", r.Method, path)
		}
		switch path {
		case "/containers/web/json":
			answer(200, `{"Id":"1","Name":"/web","State":{"Status":"running","Running":true,"Paused":false,"Pid":%d},"Config":{}}`, pid)
		case "/containers/stopped/json":
			answer(200, `{"State":{"Status":"exited","Running":false,"Pid":0}}`)
		case "/containers/gone/json":
			answer(200, `{"State":{"Running":true,"Pid":%d}}`, dead)
		case "/containers/vm/json":
			answer(200, `{"State":{"Running":true,"Pid":0}}`)
		case "/containers/empty/json":
			answer(200, `{}`)
		case "/containers/torn/json":
			answer(200, `{"State":`)
		case "/containers/moved/json":
			w.Header().Set("Location", "http://192.0.2.1/")
			answer(302, "")
		case "/containers/broken/json":
			answer(500, `{"message":"oops"}`)
		case "/containers/slow/json":
			<-release
		case "/containers/..%2Fx/json":
			answer(410, `{}`)
		default:
			answer(404, `{"message":"No such container"}`)
		}
	})
	defer close(release)
	nobody := t.TempDir() + "/s"
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: nobody})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	both := finder{docker: []string{"/nonexistent", socket}, podman: []string{socket}}
	for _, kind := range []Kind{Docker, Podman} {
		want := Found{Path: fmt.Sprintf("/proc/%d/ns/net", pid), PID: pid, Name: "web"}
		if got, err := both.find(t.Context(), kind, "web"); err != nil || got != want {
			t.Errorf("%+v %v", got, err)
		}
		for name, want := range map[string]string{
			"stopped": "not running (exited)", "none": "no container", "../x": "410", "gone": "there is no process",
			"vm": "no process", "empty": "no State", "torn": "read the answer", "moved": "302", "broken": "500",
		} {
			if got, err := both.find(t.Context(), kind, name); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), name) {
				t.Errorf("%s: %+v %v, want %q", name, got, err, want)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, err := both.find(ctx, kind, "slow"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("slow: %v", err)
		}
		cancel()
		none := finder{docker: []string{"/nonexistent"}, podman: []string{"/nonexistent"}}
		if _, err := none.find(t.Context(), kind, "web"); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "hint") {
			t.Errorf("no socket: %v", err)
		}
		dead := finder{docker: []string{nobody}, podman: []string{nobody}}
		if _, err := dead.find(t.Context(), kind, "web"); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("nobody listens: %v", err)
		}
	}
}

func TestDockerHost(t *testing.T) {
	pid := sleeper(t)
	socket := engine(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"State":{"Running":true,"Pid":%d}}`, pid)
	})
	t.Setenv("DOCKER_HOST", "unix://"+socket)
	if got, err := Find(t.Context(), Docker, "x"); err != nil || got.PID != pid {
		t.Errorf("%+v %v", got, err)
	}
	t.Setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
	if got, err := Find(t.Context(), Docker, "x"); err == nil || !strings.Contains(err.Error(), "DOCKER_HOST") {
		t.Errorf("%+v %v", got, err)
	}
	if _, err := Find(t.Context(), Init, "init"); err != nil { // which does not ask Docker
		t.Error(err)
	}
}

// fakeSystemd answers from tables.
type fakeSystemd struct{ units, machines map[string]int }

func (f fakeSystemd) unit(_ context.Context, name string) (int, error) {
	return f.lookup(f.units, name)
}

func (f fakeSystemd) machine(_ context.Context, name string) (int, error) {
	return f.lookup(f.machines, name)
}

func (fakeSystemd) lookup(m map[string]int, name string) (int, error) {
	if pid := m[name]; pid != 0 {
		return pid, nil
	}
	return 0, errors.New("there is none")
}

func TestSystemd(t *testing.T) {
	pid, dead := sleeper(t), deadPID(t)
	f := finder{systemd: fakeSystemd{map[string]int{"u": pid, "old": dead}, map[string]int{"m": pid}}}
	path := fmt.Sprintf("/proc/%d/ns/net", pid)
	for _, c := range []struct {
		kind Kind
		name string
		want Found
		err  string
	}{
		{Unit, "u", Found{Path: path, PID: pid, Name: "u"}, ""},
		{Machine, "m", Found{Path: path, PID: pid, Name: "m"}, ""},
		{Unit, "m", Found{}, "unit m: there is none"},
		{Machine, "u", Found{}, "machine u: there is none"},
		{Unit, "old", Found{}, "there is no process"},
	} {
		got, err := f.find(t.Context(), c.kind, c.name)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%+v: %+v %v", c, got, err)
		}
	}
	for name, want := range map[string]string{"a": "a.service", "a.service": "a.service", "a@b.c": "a@b.c.service", "a.socket": "", "a.scope": ""} {
		if got, err := unitName(name); got != want || (err == nil) != (want != "") {
			t.Errorf("unitName(%q) = %q, %v", name, got, err)
		}
	}
	for _, c := range []struct {
		load, active string
		main         uint32
		pid          int
		err          string
	}{
		{"loaded", "active", 7, 7, ""},
		{"loaded", "reloading", 7, 7, ""},
		{"loaded", "inactive", 0, 0, "inactive"},
		{"loaded", "failed", 0, 0, "failed"},
		{"loaded", "active", 0, 0, "no main process"},
		{"not-found", "inactive", 0, 0, "no such unit"},
	} {
		got, err := mainPID(map[string]any{"LoadState": c.load, "ActiveState": c.active}, map[string]any{"MainPID": c.main})
		if got != c.pid || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%+v: %d %v", c, got, err)
		}
	}
}

// TestDeadBus: a bus that takes the connection and never says a word.
func TestDeadBus(t *testing.T) {
	path := t.TempDir() + "/bus"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+path)
	for _, kind := range []Kind{Unit, Machine} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		begin := time.Now()
		_, err := Find(ctx, kind, "x")
		if took := time.Since(begin); !errors.Is(err, context.DeadlineExceeded) || took > 2*time.Second {
			t.Errorf("after %v: %v", took, err)
		}
		cancel()
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
	for _, kind := range []Kind{Unit, Machine} {
		if _, err := Find(t.Context(), kind, "x"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("no bus: %v", err)
		}
	}
}
