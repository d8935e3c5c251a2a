package dns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/plan"
)

// mirror is the state of a tree: names, modes, owners, contents.
func mirror(t *testing.T, root string) string {
	t.Helper()
	out, err := exec.Command("bash", "-c", `cd "$1" && find . -printf '%P %M %U %G %l\n' | sort && find . -type f | sort | xargs -r sha256sum`, "-", root).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func do(t *testing.T, s plan.Resolv) {
	t.Helper()
	if _, err := (Doer{}).Do(context.Background(), "", s); err != nil {
		t.Fatal(err)
	}
}

func exists(t *testing.T, s plan.Resolv) bool {
	t.Helper()
	there, err := Doer{}.Exists(context.Background(), "", s)
	if err != nil {
		t.Fatal(err)
	}
	return there
}

// steps are a step and its undo, planned for what is there now.
func steps(t *testing.T, path string, inPlace bool) (up, down plan.Resolv) {
	t.Helper()
	up = plan.Resolv{Path: path, Servers: []string{"10.0.0.53", "fd00::53"}, Search: []string{"a.example", "b.example"}, InPlace: inPlace}
	down = up
	down.Delete = true
	var err error
	if down.Old, down.MadeDirs, err = ReadResolv(path); err != nil {
		t.Fatal(err)
	}
	return up, down
}

const want = "nameserver 10.0.0.53\nnameserver fd00::53\nsearch a.example b.example\n"

func TestResolv(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(root, file string)
		inPlace bool
		dirs    int
	}{
		{"no folder", func(root, _ string) {}, false, 2},
		{"no folder of the name", func(root, _ string) { os.Mkdir(root+"/netns", 0o755) }, false, 1},
		{"no file", func(_, file string) { os.MkdirAll(filepath.Dir(file), 0o700) }, false, 0},
		{"empty file", func(_, file string) { write(t, file, "") }, false, 0},
		{"file", func(_, file string) {
			write(t, file, "# ü\r\nnameserver 192.0.2.1\x00")
			os.Chmod(file, 0o640)
			os.Chown(file, 12, 34)
		}, false, 0},
		{"what we would write", func(_, file string) { write(t, file, want) }, false, 0},
		{"in place", func(_, file string) {
			write(t, file, strings.Repeat("# long\n", 100))
			os.Chmod(file, 0o600)
			os.Chown(file, 12, 34)
		}, true, 0},
		{"in place, no file", func(_, file string) { os.MkdirAll(filepath.Dir(file), 0o755) }, true, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			file := root + "/netns/blue/resolv.conf"
			c.prepare(root, file)
			before := mirror(t, root)
			up, down := steps(t, file, c.inPlace)
			if len(down.MadeDirs) != c.dirs || c.dirs > 0 && down.MadeDirs[0] != filepath.Dir(file) {
				t.Errorf("folders to make: %q", down.MadeDirs)
			}
			if c.name != "what we would write" && (exists(t, up) || exists(t, down)) {
				t.Error("there before it is made")
			}
			inode := func() uint64 { var st unix.Stat_t; unix.Stat(file, &st); return st.Ino }
			was := inode()
			do(t, up)
			if got, err := os.ReadFile(file); string(got) != want {
				t.Errorf("got %q, %v", got, err)
			}
			if c.inPlace && was != 0 && inode() != was {
				t.Error("another file")
			}
			if list, _ := os.ReadDir(filepath.Dir(file)); len(list) != 1 {
				t.Errorf("files: %v", list)
			}
			if !exists(t, down) {
				t.Error("not there after it is made")
			}
			write(t, scratchOf(file)+"cut", "") // a write that was cut short
			if c.inPlace {
				os.Remove(scratchOf(file) + "cut")
			}
			for range 2 {
				do(t, down)
				if after := mirror(t, root); after != before {
					t.Errorf("after:\n%s\nbefore:\n%s", after, before)
				}
			}
			if c.name != "what we would write" && exists(t, down) {
				t.Error("there after it was taken back")
			}
		})
	}
}

// TestResolvOthers: what somebody else wrote since stays.
func TestResolvOthers(t *testing.T) {
	file := t.TempDir() + "/netns/blue/resolv.conf"
	up, down := steps(t, file, false)
	do(t, up)
	write(t, file, "nameserver 192.0.2.9\n")
	do(t, down)
	if got, _ := os.ReadFile(file); string(got) != "nameserver 192.0.2.9\n" {
		t.Errorf("changed: %q", got)
	}
	os.Remove(file)
	write(t, filepath.Dir(file)+"/hosts", "")
	do(t, up)
	do(t, down)
	if list, _ := os.ReadDir(filepath.Dir(file)); len(list) != 1 || list[0].Name() != "hosts" {
		t.Errorf("left: %v", list)
	}
	os.RemoveAll(filepath.Dir(file))
	do(t, down) // all of it is gone already
}

// TestResolvCutShort: of a write of claims that was cut short down leaves nothing,
// though there is nothing else to take back.
func TestResolvCutShort(t *testing.T) {
	root := t.TempDir()
	file := root + "/netns/blue/resolv.conf"
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	before := mirror(t, root)
	_, down := steps(t, file, false)
	write(t, scratchOf(root+"/netns/"+scratch+"blue")+"123", "")
	if !exists(t, down) {
		t.Error("nothing to take back")
	}
	do(t, down)
	if after := mirror(t, root); after != before {
		t.Errorf("after:\n%s\nbefore:\n%s", after, before)
	}
}

// TestResolvShared: tunnels share a namespace and go down in any order; the last
// that came up has the file, and at the end all is as before.
func TestResolvShared(t *testing.T) {
	for _, texts := range [][]string{{"10.0.0.1", "10.0.0.2", "10.0.0.3"}, {"10.0.0.1", "10.0.0.1", "10.0.0.1"}} {
		for _, there := range []bool{true, false} {
			for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
				root := t.TempDir()
				file := root + "/netns/blue/resolv.conf"
				if there {
					write(t, file, "nameserver 192.0.2.1\n")
				}
				before := mirror(t, root)
				var downs []plan.Resolv
				for _, server := range texts {
					up, down := steps(t, file, false)
					up.Servers, down.Servers = []string{server}, []string{server}
					do(t, up)
					downs = append(downs, down)
				}
				up := []int{0, 1, 2}
				for _, i := range order {
					do(t, downs[i])
					up = slices.DeleteFunc(up, func(j int) bool { return j == i })
					if len(up) == 0 {
						break
					}
					want := resolvText(downs[up[len(up)-1]].Servers, downs[0].Search)
					if got, err := os.ReadFile(file); string(got) != want {
						t.Fatalf("%q, down %v: after %d got %q, %v, want %q", texts, order, i, got, err, want)
					}
				}
				if after := mirror(t, root); after != before {
					t.Fatalf("%q, down %v: after:\n%s\nbefore:\n%s", texts, order, after, before)
				}
			}
		}
	}
}

// TestResolvKept: the user's own file is left to those who come to the namespace, and
// put back after them.
func TestResolvKept(t *testing.T) {
	const own = "nameserver 192.0.2.9\noptions edns0\n"
	file := t.TempDir() + "/netns/blue/resolv.conf"
	write(t, file, own)
	up, down := steps(t, file, false)
	up.Servers, up.Old, up.Shared, down.Shared = nil, down.Old, true, true
	do(t, up)
	for _, c := range []struct {
		now   string
		spoil func() error
	}{
		{own, func() error { return nil }},
		{"nameserver 10.0.0.53\n", func() error { return os.WriteFile(file, []byte("nameserver 10.0.0.53\n"), 0o644) }},
		{"empty", func() error { return os.Truncate(file, 0) }},
		{"gone", func() error { return os.Remove(file) }},
		{"gone with its folder", func() error { return os.RemoveAll(filepath.Dir(filepath.Dir(file))) }},
		{"a link", func() error { return errors.Join(os.Remove(file), os.Symlink("/nowhere", file)) }},
	} {
		if err := c.spoil(); err != nil {
			t.Fatal(err)
		}
		if there, err := existsResolv(down); err != nil || there != (c.now != own) {
			t.Errorf("%q: something to put back: %v, %v", c.now, there, err)
		}
		before, _ := os.Stat(file)
		do(t, down)
		if got, err := os.ReadFile(file); string(got) != own {
			t.Errorf("%q became %q, %v", c.now, got, err)
		}
		if after, err := os.Stat(file); c.now == own && (err != nil || !os.SameFile(before, after)) {
			t.Errorf("the file was written though nobody changed it (%v)", err)
		}
	}
}

// TestResolvKeptBeside: another tunnel's servers are not taken for the user's own, whichever
// of the two goes first.
func TestResolvKeptBeside(t *testing.T) {
	for _, there := range []bool{true, false} {
		for _, otherFirst := range []bool{true, false} {
			root := t.TempDir()
			file := root + "/netns/blue/resolv.conf"
			if there {
				write(t, file, "nameserver 192.0.2.9\n")
			}
			before := mirror(t, root)
			up, downOther := steps(t, file, false)
			do(t, up)
			own := plan.Resolv{Path: file, Shared: true}
			var err error
			if own.Old, own.MadeDirs, err = OwnResolv(file); err != nil || (own.Old != nil) != there {
				t.Fatalf("there %v: own is %v, %v", there, own.Old, err)
			}
			if !there {
				own.Servers = []string{"192.0.2.1"}
			}
			do(t, own)
			down := own
			down.Delete = true
			order := []plan.Resolv{down, downOther}
			if otherFirst {
				slices.Reverse(order)
			}
			for _, s := range order {
				do(t, s)
			}
			if after := mirror(t, root); after != before {
				t.Errorf("there %v, other first %v: after:\n%s\nbefore:\n%s", there, otherFirst, after, before)
			}
		}
	}
}

// TestResolvKeptEmpty: what the guard keeps for an interface that was plugged in is what up
// wrote, without a server too, and up's own step takes it away.
func TestResolvKeptEmpty(t *testing.T) {
	root := t.TempDir()
	file := root + "/netns/blue/resolv.conf"
	write(t, root+"/netns/other", "")
	before := mirror(t, root)
	for range 2 {
		first := plan.Resolv{Path: file, Shared: true}
		var err error
		if first.Old, first.MadeDirs, err = OwnResolv(file); err != nil {
			t.Fatal(err)
		}
		do(t, first)
		later := plan.Resolv{Path: file, Shared: true}
		if later.Old, later.MadeDirs, err = ReadResolv(file); err != nil || later.Old == nil {
			t.Fatal(later.Old, err)
		}
		do(t, later)
		for _, s := range []plan.Resolv{later, first} {
			s.Delete = true
			do(t, s)
		}
		if after := mirror(t, root); after != before {
			t.Errorf("after:\n%s\nbefore:\n%s", after, before)
		}
	}
}

func TestResolvRefuses(t *testing.T) {
	dir := t.TempDir()
	target := dir + "/target"
	write(t, target, "keep\n")
	link, folder, bytes := dir+"/link", dir+"/folder", dir+"/bytes"
	os.Symlink(target, link)
	os.Mkdir(folder, 0o755)
	write(t, bytes, "# \xff\n")
	unix.Mkfifo(dir+"/fifo", 0o644)
	before := mirror(t, dir)
	for path, want := range map[string]string{link: "is a symbolic link", folder: "not a plain file", dir + "/fifo": "not a plain file", bytes: "no UTF-8 text", target + "/x": "not a directory"} {
		if _, _, err := ReadResolv(path); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %s", path, err, want)
		}
		for _, inPlace := range []bool{false, true} {
			if _, err := (Doer{}).Do(context.Background(), "", plan.Resolv{Path: path, Servers: []string{"::1"}, InPlace: inPlace}); err == nil {
				t.Errorf("%s was written to", path)
			}
		}
		if path != bytes && path != target+"/x" {
			do(t, plan.Resolv{Path: path, Delete: true}) // not ours
		}
	}
	if after := mirror(t, dir); after != before {
		t.Errorf("after:\n%s\nbefore:\n%s", after, before)
	}
}

// TestResolvContainer: a process's own root is never left, whatever links it has.
func TestResolvContainer(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"real", "proc"} {
		os.Mkdir(filepath.Join(root, dir), 0o755)
	}
	if err := os.Symlink("/real", root+"/etc"); err != nil { // to us that would be our own /real
		t.Fatal(err)
	}
	os.Mkdir("/real", 0o755)
	defer os.RemoveAll("/real")
	write(t, "/real/resolv.conf", "ours\n")
	write(t, root+"/real/resolv.conf", "theirs\n")
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	bin, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root+"/busybox", bin, 0o755); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("chroot", root, "/busybox", "cat")
	stdin, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	stop := func() { stdin.Close(); c.Wait() }
	defer stop()
	path := fmt.Sprintf("/proc/%d/root/etc/resolv.conf", c.Process.Pid)
	for exe := ""; !strings.HasSuffix(exe, "/busybox"); { // chroot(8) is done
		exe, _ = os.Readlink(fmt.Sprintf("/proc/%d/exe", c.Process.Pid))
	}
	for _, there := range []bool{true, false} {
		if !there {
			os.Remove(root + "/real/resolv.conf")
		}
		before := mirror(t, root+"/real")
		up, down := steps(t, path, true)
		do(t, up)
		if got, err := os.ReadFile(root + "/real/resolv.conf"); string(got) != want {
			t.Errorf("got %q, %v", got, err)
		}
		do(t, down)
		if after := mirror(t, root+"/real"); after != before {
			t.Errorf("after:\n%s\nbefore:\n%s", after, before)
		}
	}
	if got, _ := os.ReadFile("/real/resolv.conf"); string(got) != "ours\n" {
		t.Errorf("our own file: %q", got)
	}
	_, down := steps(t, path, true)
	stop()
	if exists(t, down) {
		t.Error("something of ours in a process that is gone")
	}
	do(t, down) // a process that is gone needs nothing back
	if old, dirs, err := ReadResolv("/nonexistent/a/b"); old != nil || !slices.Equal(dirs, []string{"/nonexistent/a", "/nonexistent"}) || err != nil {
		t.Errorf("got %v, %q, %v", old, dirs, err)
	}
}
