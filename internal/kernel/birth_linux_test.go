package kernel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/confparse"
	"wg-quickns/internal/netns"
	"wg-quickns/internal/plan"
)

// listing lists the interfaces of a namespace, and the sockets of wg(8).
func listing(t *testing.T, spaces ...plan.NS) string {
	t.Helper()
	all := ""
	for _, ns := range spaces {
		all += sh(t, ns, "ip -o link | sed -E 's/^[0-9]+: //' | sort")
	}
	socks, err := os.ReadDir(uapiDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, s := range socks {
		all += s.Name() + "\n"
	}
	return all
}

// TestBirth: the link is in the target and nowhere else, whether or not its name
// is taken where it is born, its UDP socket is where it was born, and deleting it
// leaves what was.
func TestBirth(t *testing.T) {
	for _, taken := range []string{"", "veth", "wireguard"} {
		t.Run("taken by "+taken, func(t *testing.T) {
			if taken == "wireguard" && !kernelWireGuard(t) {
				taken = "bridge"
			}
			birth, target := newNS(t), newNS(t)
			link := name(t)
			switch taken {
			case "":
			case "veth":
				sh(t, birth, "ip link add "+link+" type veth peer name other")
			default:
				sh(t, birth, "ip link add "+link+" type "+taken)
			}
			// Sockets of both directions open before, as in a session.
			d := newDoer(t, Options{Userspace: inProcess(t)})
			before, elsewhere := listing(t, birth, target, ""), listing(t, birth)
			inside := strings.Count(sh(t, target, "ip -o link"), "\n")
			step := plan.Link{Name: link, Birth: &birth}
			exists(t, d, target, step, false)
			undo := do(t, d, target, step).Undo[0].(plan.Link)
			exists(t, d, target, step, true)
			l, found, err := d.Link(target, link)
			if err != nil || !found || undo.Index != l.Index || (undo.Userspace == "") != kernelWireGuard(t) || l.Up {
				t.Fatalf("undo %+v, link %+v, %v", undo, l, err)
			}
			if got := listing(t, birth); kernelWireGuard(t) && got != elsewhere {
				t.Errorf("in the birth namespace, before\n%safter\n%s", elsewhere, got)
			}
			if out := sh(t, target, "ip -o link"); strings.Contains(out, "wgqns") || strings.Count(out, "\n") != inside+1 {
				t.Errorf("in the target:\n%s", out)
			}
			if _, err := d.Do(t.Context(), target, step); !errors.Is(err, unix.EEXIST) {
				t.Errorf("twice: %v, want EEXIST", err)
			}
			if names, err := d.WireGuards(target); err != nil || !contains(names, link) {
				t.Errorf("WireGuards of the target: %v %v", names, err)
			}
			if names, err := d.WireGuards(birth); err != nil || contains(names, link) != (taken == "wireguard") {
				t.Errorf("WireGuards of the birth namespace: %v %v", names, err)
			}
			k := key(1)
			do(t, d, target, plan.WG{Link: link, Device: &confparse.Device{PrivateKey: &k, ListenPort: ptr(51877)}})
			dev, err := d.ReadDevice(t.Context(), target, link)
			if err != nil || dev.PrivateKey == nil || *dev.ListenPort != 51877 {
				t.Errorf("ReadDevice: %+v %v", dev, err)
			}
			if taken == "" {
				if _, err := d.ReadDevice(t.Context(), birth, link); !errors.Is(err, unix.ENODEV) {
					t.Errorf("ReadDevice in the birth namespace: %v", err)
				}
			}
			do(t, d, target, plan.LinkUp{Name: link, MTU: 1400})
			// The kernel's socket is open when the link is up; a program looks once a second.
			socket := func(ns plan.NS) bool { return strings.Contains(sh(t, ns, "ss -Hlun; ss -Hlan"), ":51877") }
			for end := time.Now().Add(5 * time.Second); !socket(birth) && time.Now().Before(end); {
				time.Sleep(20 * time.Millisecond)
			}
			if !socket(birth) || socket(target) {
				t.Errorf("UDP socket in the birth namespace: %v, in the target: %v", socket(birth), socket(target))
			}
			if out := sh(t, target, "ip -6 -o addr show dev "+link); out != "" {
				t.Errorf("it has a link-local address: %s", out)
			}
			for range 2 {
				do(t, d, target, undo)
			}
			if after := listing(t, birth, target, ""); after != before {
				t.Errorf("before\n%safter\n%s", before, after)
			}
		})
	}
}

// TestBirthTakenInTarget: EEXIST, and nothing is left.
func TestBirthTakenInTarget(t *testing.T) {
	for _, both := range []bool{false, true} {
		birth, target := newNS(t), newNS(t)
		sh(t, target, "ip link add wg0 type veth peer name other")
		if both {
			sh(t, birth, "ip link add wg0 type veth peer name other")
		}
		d := newDoer(t, Options{Userspace: inProcess(t)})
		before := listing(t, birth, target)
		step := plan.Link{Name: "wg0", Birth: &birth}
		exists(t, d, target, step, true)
		if _, err := d.Do(t.Context(), target, step); !errors.Is(err, unix.EEXIST) {
			t.Errorf("%v, want EEXIST", err)
		}
		if after := listing(t, birth, target); after != before {
			t.Errorf("before\n%safter\n%s", before, after)
		}
	}
}

// TestBirthAtHome: a birth namespace that is the target by another name.
func TestBirthAtHome(t *testing.T) {
	ns := newNS(t)
	other := plan.NS(fmt.Sprintf("/proc/%d/fd/%s", os.Getpid(), strings.TrimPrefix(string(ns), "/proc/self/fd/")))
	d := newDoer(t, Options{Userspace: inProcess(t)})
	link := name(t)
	undo := do(t, d, ns, plan.Link{Name: link, Birth: &other}).Undo[0]
	exists(t, d, ns, plan.Link{Name: link}, true)
	do(t, d, ns, undo)
}

// TestBirthHalf: what a kill leaves on the way is found by the planned undo.
func TestBirthHalf(t *testing.T) {
	birth, target := newNS(t), newNS(t)
	link := name(t)
	kernel := kernelWireGuard(t)
	temp := tempNames(link)[0]
	for what, leave := range map[string]func(){
		"temporary name in the target": func() {
			if kernel {
				sh(t, target, "ip link add "+temp+" type wireguard")
			} else {
				sh(t, target, "ip tuntap add "+temp+" mode tun")
			}
		},
		"served in the birth namespace": func() {
			if !kernel {
				inProcess(t)(t.Context(), birth, link)
			}
		},
		"served there under a temporary name": func() {
			if !kernel {
				inProcess(t)(t.Context(), birth, temp)
			}
		},
		"its socket linked": func() {
			if !kernel {
				inProcess(t)(t.Context(), birth, temp)
				if err := os.Symlink(temp+".sock", uapiPath(link)); err != nil {
					t.Fatal(err)
				}
			}
		},
		"moved": func() {
			if !kernel {
				inProcess(t)(t.Context(), birth, link)
				d := newDoer(t, Options{})
				from, err := d.space(birth)
				if err != nil {
					t.Fatal(err)
				}
				to, err := d.space(target)
				if err != nil {
					t.Fatal(err)
				}
				if err := from.hand(t.Context(), to, link, link); err != nil {
					t.Fatal(err)
				}
			}
		},
		"nothing": func() {},
	} {
		d := newDoer(t, Options{Userspace: inProcess(t)})
		before := listing(t, birth, target)
		leave()
		if got := listing(t, birth, target); got == before && !kernel && what != "nothing" {
			t.Errorf("%s: nothing is left", what)
		}
		undo := plan.Link{Name: link, Delete: true, Birth: &birth}
		for range 2 {
			do(t, d, target, undo)
		}
		if after := listing(t, birth, target); after != before {
			t.Errorf("%s: before\n%safter\n%s", what, before, after)
		}
	}
}

// TestBirthServedElsewhere: a program's interface of that name in a third
// namespace is an error before anything is made, and is left alone.
func TestBirthServedElsewhere(t *testing.T) {
	if kernelWireGuard(t) {
		return // sockets are a program's matter
	}
	birth, target, third := newNS(t), newNS(t), newNS(t)
	d := newDoer(t, Options{Userspace: inProcess(t)})
	link := name(t)
	undo := do(t, d, third, plan.Link{Name: link}).Undo[0]
	before := listing(t, birth, target, third)
	step := plan.Link{Name: link, Birth: &birth}
	if _, err := d.Exists(t.Context(), target, step); !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), link) {
		t.Errorf("Exists: %v", err)
	}
	if _, err := d.Do(t.Context(), target, step); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("Do: %v", err)
	}
	do(t, d, target, plan.Link{Name: link, Delete: true})
	if _, err := d.ReadDevice(t.Context(), target, link); !errors.Is(err, unix.ENODEV) {
		t.Errorf("ReadDevice: %v", err)
	}
	if _, err := d.Do(t.Context(), target, plan.FwMark{Link: link, Mark: 7}); !errors.Is(err, unix.ENODEV) {
		t.Errorf("FwMark: %v", err)
	}
	if after := listing(t, birth, target, third); after != before {
		t.Errorf("before\n%safter\n%s", before, after)
	}
	if dev, err := d.ReadDevice(t.Context(), third, link); err != nil || dev.FwMark != nil {
		t.Errorf("%+v %v", dev, err)
	}
	do(t, d, third, undo)
}

// TestBirthFails: a program that fails, and one that never serves.
func TestBirthFails(t *testing.T) {
	if kernelWireGuard(t) {
		return
	}
	birth, target := newNS(t), newNS(t)
	link := name(t)
	fails := errors.New("fails")
	for what, start := range map[string]func() error{
		"fails":  func() error { return fails },
		"absent": func() error { return nil },
		"deaf":   func() error { sh(t, birth, "ip tuntap add "+link+" mode tun"); return nil },
	} {
		d := newDoer(t, Options{Userspace: func(_ context.Context, ns plan.NS, _ string) (string, error) {
			if ns != birth {
				t.Errorf("started in %s", ns)
			}
			return "program", start()
		}})
		before := listing(t, birth, target)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		_, err := d.Do(ctx, target, plan.Link{Name: link, Birth: &birth})
		cancel()
		if err == nil || what == "fails" && !errors.Is(err, fails) {
			t.Errorf("%s: %v", what, err)
		}
		if after := listing(t, birth, target); after != before {
			t.Errorf("%s: before\n%safter\n%s", what, before, after)
		}
	}
}

func TestNetns(t *testing.T) {
	d := newDoer(t, Options{})
	add := plan.Netns{Name: "made"}
	path := plan.Named("made")
	exists(t, d, "", add, false)
	undo := do(t, d, "", add).Undo[0].(plan.Netns)
	id, err := netns.Identify(string(path))
	if err != nil || undo != (plan.Netns{Name: "made", Delete: true, ID: id.String()}) {
		t.Fatalf("undo %+v, made %v, %v", undo, id, err)
	}
	exists(t, d, "", add, true)
	exists(t, d, "", undo, true)
	if _, err := d.Do(t.Context(), "", add); !errors.Is(err, unix.EEXIST) {
		t.Errorf("twice: %v", err)
	}
	if l, found, err := d.Link(path, "lo"); err != nil || !found || !l.Up {
		t.Errorf("lo: %+v %v", l, err)
	}
	// A process inside.
	c := exec.Command("ip", "netns", "exec", "made", "cat")
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
	in.Write([]byte("x"))
	out.Read(make([]byte, 1))
	var busy *netns.BusyError
	if _, err := d.Do(t.Context(), "", undo); !errors.As(err, &busy) || busy.Processes[0].PID != c.Process.Pid {
		t.Errorf("busy: %v", err)
	}
	in.Close()
	c.Wait()
	// The doer's own files must not keep it alive.
	other := newNS(t)
	sh(t, other, "ip link add peer type veth peer name v netns made")
	if _, _, err := d.Link(path, "v"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		do(t, d, "", undo)
		exists(t, d, "", undo, false)
		exists(t, d, "", add, false)
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if out, err := try(other, "ip link show peer"); err != nil {
			break
		} else if time.Now().After(end) {
			t.Fatalf("the namespace lives on: %s", out)
		}
	}
	// Another of that name stays, and is seen through the doer too.
	do(t, d, "", add)
	exists(t, d, "", undo, false)
	do(t, d, "", undo)
	exists(t, d, "", add, true)
	// Not knowing which: what was made by this program.
	do(t, d, "", plan.Netns{Name: "made", Delete: true})
	exists(t, d, "", add, false)
	// A file that is none.
	if err := os.WriteFile(string(path), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(string(path))
	for _, s := range []plan.Netns{add, undo} {
		if _, err := d.Exists(t.Context(), "", s); err == nil {
			t.Errorf("a plain file: Exists(%+v)", s)
		}
		if _, err := d.Do(t.Context(), "", s); err == nil {
			t.Errorf("a plain file: Do(%+v)", s)
		}
	}
	if _, err := os.Stat(string(path)); err != nil {
		t.Error(err)
	}
}

// TestBirthTraffic: cleartext goes in one namespace, and what leaves is UDP of
// another.
func TestBirthTraffic(t *testing.T) {
	birth, target := newNS(t), newNS(t)
	sh(t, birth, "ip link add v type veth peer name w; ip addr add 192.0.2.1/24 dev v; ip link set v up; ip link set w up; ip neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev v")
	d := newDoer(t, Options{Userspace: inProcess(t)})
	link := name(t)
	undo := do(t, d, target, plan.Link{Name: link, Birth: &birth}).Undo[0]
	k := key(1)
	do(t, d, target, plan.WG{Link: link, Device: &confparse.Device{PrivateKey: &k, Peers: []confparse.Peer{
		{PublicKey: key(2), Endpoint: at("192.0.2.2:51820"), ReplaceAllowedIPs: true, AllowedIPs: allow("0.0.0.0/0")}}}})
	do(t, d, target, plan.Addr{Link: link, List: prefixes("10.0.0.1/32")})
	do(t, d, target, plan.LinkUp{Name: link, MTU: 1400})
	do(t, d, target, plan.Route{Link: link, List: prefixes("0.0.0.0/0")})
	var got []byte
	err := netns.Do(string(birth), func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0x0008) // ETH_P_IP
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		tv := unix.NsecToTimeval(int64(10 * time.Second))
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			return err
		}
		err = netns.Do(string(target), func() error {
			c, err := net.Dial("udp", "203.0.113.9:9")
			if err == nil {
				_, err = c.Write([]byte("in the clear"))
				c.Close()
			}
			return err
		})
		if err != nil {
			return err
		}
		b := make([]byte, 2000)
		n, _, err := unix.Recvfrom(fd, b, 0)
		got = b[:n]
		return err
	})
	// A handshake initiation: 20 + 8 + 148 bytes to the endpoint.
	if err != nil || len(got) != 176 || string(got[16:20]) != "\xc0\x00\x02\x02" || got[28] != 1 || strings.Contains(string(got), "clear") {
		t.Errorf("%x %v", got, err)
	}
	do(t, d, target, undo)
}
