package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ip runs ip(8).
func ip(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func create(t *testing.T, name string) (id string) {
	t.Helper()
	id, err := Create(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Delete(t.Context(), name, "") })
	return id
}

// TestLocked: who waits for the lock of ip-netns(8) can be interrupted, and what there is
// not needs no lock to be deleted.
func TestLocked(t *testing.T) {
	lock, err := lockDir(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	if id, err := Create(ctx, "n"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Create: %q, %v", id, err)
	}
	if err := Delete(t.Context(), "n", ""); err != nil {
		t.Error(err)
	}
	if long := time.Since(began); long > 5*time.Second {
		t.Errorf("it took %v", long)
	}
}

// files is what is under /run/netns, with what is mounted there.
func files(t *testing.T) string {
	t.Helper()
	list, err := filepath.Glob(dir + "/*")
	if err != nil {
		t.Fatal(err)
	}
	all := ""
	for _, f := range list {
		fi, err := os.Lstat(f)
		if err != nil {
			t.Fatal(err)
		}
		st := fi.Sys().(*syscall.Stat_t)
		all += fmt.Sprintln(f, fi.Mode(), fi.Size(), st.Dev, st.Ino)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(mounts)) {
		if strings.Contains(l, dir) {
			all += l
		}
	}
	return all
}

func TestCreateDelete(t *testing.T) {
	create(t, "first") // the folder is prepared now
	before := files(t)
	id, err := Create(t.Context(), "n")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Identify(dir + "/n"); err != nil || got.String() != id || got.Cookie == 0 {
		t.Errorf("Identify %v %v, Create said %s", got, err, id)
	}
	if here, _ := Identify(""); here.String() == id {
		t.Error("it is the caller's own")
	}
	// iproute2 takes it for its own, and there is lo, up.
	if out := ip(t, "-n", "n", "-br", "addr"); !strings.Contains(out, "lo") || !strings.Contains(out, "127.0.0.1/8 ::1/128") {
		t.Errorf("addresses: %s", out)
	}
	if out := ip(t, "netns"); !strings.Contains(out, "n") {
		t.Errorf("ip netns: %s", out)
	}
	if _, err := Create(t.Context(), "n"); !errors.Is(err, unix.EEXIST) {
		t.Errorf("twice: %v, want EEXIST", err)
	}
	if out, err := exec.Command("ip", "netns", "add", "n").CombinedOutput(); err == nil {
		t.Errorf("ip netns add: %s", out)
	}
	if ok, err := Is("n", id); !ok || err != nil {
		t.Errorf("Is: %v %v", ok, err)
	}
	for range 2 { // the second finds nothing
		if err := Delete(t.Context(), "n", id); err != nil {
			t.Fatal(err)
		}
	}
	if ok, err := Is("n", id); ok || err != nil {
		t.Errorf("Is after Delete: %v %v", ok, err)
	}
	if after := files(t); after != before {
		t.Errorf("before\n%safter\n%s", before, after)
	}
	// What we made, ip(8) deletes.
	create(t, "n")
	ip(t, "netns", "del", "n")
	if after := files(t); after != before {
		t.Errorf("before\n%safter ip netns del\n%s", before, after)
	}
}

// TestPropagates: a namespace that is made is seen in another mount namespace,
// and deleting it deletes it there.
func TestPropagates(t *testing.T) {
	for unix.Unmount(dir, unix.MNT_DETACH) == nil { // as on a fresh machine
	}
	create(t, "early")
	c := exec.Command("unshare", "-m", "--propagation", "slave", "sh", "-c", "echo; read x; nsenter --net=/run/netns/late true 2>/dev/null && echo seen || echo not seen; read x; test ! -e /run/netns/late && echo gone || echo there; cat")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer in.Close()
	say := func(want string) {
		t.Helper()
		b := make([]byte, 100)
		n, _ := out.Read(b)
		if got := string(b[:n]); got != want {
			t.Fatalf("the other mount namespace says %q, want %q", got, want)
		}
	}
	say("\n")
	id := create(t, "late")
	in.Write([]byte("\n"))
	say("seen\n")
	if err := Delete(t.Context(), "late", id); err != nil {
		t.Fatal(err)
	}
	in.Write([]byte("\n"))
	say("gone\n")
}

func TestCreateAtOnce(t *testing.T) {
	var group sync.WaitGroup
	ids := make([]string, 20)
	for i := range ids {
		group.Go(func() {
			id, err := Create(t.Context(), fmt.Sprintf("n%d", i/2))
			if err != nil && !errors.Is(err, unix.EEXIST) {
				t.Error(err)
			}
			ids[i] = id
		})
	}
	group.Wait()
	for i := 0; i < len(ids); i += 2 {
		if (ids[i] == "") == (ids[i+1] == "") {
			t.Errorf("n%d was made %q and %q", i/2, ids[i], ids[i+1])
		}
	}
	for i := range ids {
		if err := Delete(t.Context(), fmt.Sprintf("n%d", i/2), ""); err != nil {
			t.Error(err)
		}
	}
}

// TestRefuses: what is no namespace stays as it is, whoever asks.
func TestRefuses(t *testing.T) {
	create(t, "real")
	ip(t, "netns", "add", "foreign")
	defer ip(t, "netns", "del", "foreign")
	write := func(name, text string) {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(dir + "/" + name) })
	}
	write("plain", "")
	write("text", "hello")
	write("user", "")
	if err := unix.Mount("/proc/self/ns/uts", dir+"/user", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir+"/user", unix.MNT_DETACH)
	for _, to := range []string{"real", "nowhere", "/proc/1/ns/net"} {
		link := dir + "/to" + filepath.Base(to)
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(link)
	}
	if err := os.Mkdir(dir+"/folder", 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(dir + "/folder")
	if err := unix.Mkfifo(dir+"/pipe", 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(dir + "/pipe")

	before := files(t)
	for _, name := range []string{"plain", "text", "user", "toreal", "tonowhere", "tonet", "folder", "pipe", "", ".", "..", "a/b", "../netns/real", "a\x00b", strings.Repeat("x", 256)} {
		if f, err := Find(t.Context(), Name, name); !errors.Is(err, unix.EINVAL) {
			t.Errorf("Find(%q): %+v %v, want EINVAL", name, f, err)
		}
		if err := Delete(t.Context(), name, ""); !errors.Is(err, unix.EINVAL) {
			t.Errorf("Delete(%q): %v, want EINVAL", name, err)
		}
		if id, err := Create(t.Context(), name); !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EEXIST) {
			t.Errorf("Create(%q): %s %v", name, id, err)
		}
	}
	var other *OtherError
	if err := Delete(t.Context(), "real", "1:2"); !errors.As(err, &other) {
		t.Errorf("Delete of another: %v", err)
	}
	if err := Delete(t.Context(), "foreign", ""); !errors.As(err, &other) {
		t.Errorf("Delete of one that ip(8) made: %v", err)
	}
	if ok, err := Is("foreign", ""); ok || err != nil {
		t.Errorf("Is(foreign): %v %v", ok, err)
	}
	if ok, err := Is("real", ""); !ok || err != nil {
		t.Errorf("Is(real): %v %v", ok, err)
	}
	if after := files(t); after != before {
		t.Errorf("before\n%safter\n%s", before, after)
	}
	// By its identity the one that ip(8) made may go.
	ip(t, "netns", "add", "foreign2")
	id, err := Identify(dir + "/foreign2")
	if err != nil {
		t.Fatal(err)
	}
	if err := Delete(t.Context(), "foreign2", id.String()); err != nil {
		t.Error(err)
	}
	if after := files(t); after != before {
		t.Errorf("before\n%safter\n%s", before, after)
	}
}

// TestKilled: what a kill between the file and the mount leaves, in Create or in
// Delete, is no namespace, is taken over and is deleted.
func TestKilled(t *testing.T) {
	create(t, "other")
	leave := func() {
		fd, err := unix.Open(dir+"/half", unix.O_CREAT|unix.O_EXCL, unix.S_ISVTX)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	leave()
	if f, err := Find(t.Context(), Name, "half"); err != nil || !f.Missing {
		t.Errorf("Find: %+v %v", f, err)
	}
	if ok, err := Is("half", ""); !ok || err != nil {
		t.Errorf("Is: %v %v", ok, err)
	}
	if err := Delete(t.Context(), "half", ""); err != nil {
		t.Error(err)
	}
	if f, err := Find(t.Context(), Name, "half"); err != nil || !f.Missing {
		t.Errorf("Find: %+v %v", f, err)
	}
	id := create(t, "half")
	if err := unix.Unmount(dir+"/half", unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if ok, err := Is("half", id); !ok || err != nil {
		t.Errorf("Is: %v %v", ok, err)
	}
	if err := Delete(t.Context(), "half", id); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(dir + "/half"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Delete: %v", err)
	}
	leave()
	id = create(t, "half")
	if err := Delete(t.Context(), "half", id); err != nil {
		t.Error(err)
	}
}

// TestCreateFails: nothing is left of one that fails.
func TestCreateFails(t *testing.T) {
	create(t, "other")
	before := files(t)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	id, err := Create(t.Context(), "fails")
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if id != "" || !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), "fails") {
		t.Errorf("Create: %q, %v", id, err)
	}
	if after := files(t); after != before {
		t.Errorf("before\n%safter\n%s", before, after)
	}
}

func TestBusy(t *testing.T) {
	id := create(t, "busy")
	if list, err := Occupants(dir + "/busy"); err != nil || len(list) != 0 {
		t.Errorf("new: %v %v", list, err)
	}
	c := exec.Command("ip", "netns", "exec", "busy", "sleep", "60")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	want := []Process{{c.Process.Pid, "sleep"}}
	for end := time.Now().Add(5 * time.Second); ; {
		list, err := Occupants(dir + "/busy")
		if err != nil {
			t.Fatal(err)
		}
		if reflect.DeepEqual(list, want) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("Occupants %v, want %v", list, want)
		}
		time.Sleep(10 * time.Millisecond)
	}
	err := Delete(t.Context(), "busy", id)
	var busy *BusyError
	if !errors.As(err, &busy) || !errors.Is(err, unix.EBUSY) || !reflect.DeepEqual(busy.Processes, want) {
		t.Errorf("Delete: %v", err)
	}
	if text := err.Error(); !strings.Contains(text, fmt.Sprintf("sleep (PID %d)", c.Process.Pid)) || !strings.Contains(text, "busy") {
		t.Errorf("it says %q", text)
	}
	if now, err := Identify(dir + "/busy"); err != nil || now.String() != id {
		t.Errorf("touched: %v %v", now, err)
	}
	// A zombie lives nowhere.
	c.Process.Kill()
	if err := unix.Waitid(unix.P_PID, c.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if err := Delete(t.Context(), "busy", id); err != nil {
		t.Errorf("Delete, with a zombie: %v", err)
	}
	c.Wait()
}

// TestOccupantThread: a thread that is not the process's first counts.
func TestOccupantThread(t *testing.T) {
	create(t, "threads")
	c := exec.Command("/proc/self/exe", "-test.run=TestOccupantHelper", "-test.v")
	c.Env = append(os.Environ(), "OCCUPY="+dir+"/threads")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for text, b := "", make([]byte, 100); !strings.Contains(text, "inside"); {
		n, err := out.Read(b)
		if err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		text += string(b[:n])
	}
	list, err := Occupants(dir + "/threads")
	if err != nil || len(list) != 1 || list[0].PID != c.Process.Pid {
		t.Errorf("%v %v, want %d", list, err, c.Process.Pid)
	}
	in.Close()
	c.Wait()
}

func TestOccupantHelper(t *testing.T) {
	ns := os.Getenv("OCCUPY")
	if ns == "" {
		return // it is TestOccupantThread's other half
	}
	err := Do(ns, func() error {
		fmt.Println("inside")
		_, err := os.Stdin.Read(make([]byte, 1))
		_ = err
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestOpenDoesNotWait: a named pipe, a socket.
func TestOpenDoesNotWait(t *testing.T) {
	path := t.TempDir() + "/pipe"
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, unix.EINVAL) {
		t.Errorf("pipe: %v", err)
	}
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Open(l.Addr().String()); err == nil {
		t.Error("a socket")
	}
}
