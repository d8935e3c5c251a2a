//go:build systemd

package systemd

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"wg-quickns/test/ns"
)

// TestContainer: examples/namespaces/container.conf, with a namespace that is
// there before and one that is not.
func TestContainer(t *testing.T) {
	enter := []string{"ip", "netns", "exec", "container"}
	before := state(t)
	up(t, "container")
	tunnelled(t, "container", enter)
	resolves(t, enter)
	down(t, "container")
	same(t, before, state(t))

	ns.Run(t, "ip", "netns", "add", "container")
	before, was := state(t), within(t, enter)
	up(t, "container")
	down(t, "container")
	same(t, before, state(t))
	same(t, was, within(t, enter))
	ns.Run(t, "ip", "netns", "delete", "container")
}

// TestProgram: examples/namespaces/program.conf, a program by exec.
func TestProgram(t *testing.T) {
	enter := []string{"wg-quickns", "exec", "--user", "nobody", "program", "--"}
	before := state(t)
	if r := ns.Try(exec.Command(enter[0], append(enter[1:], "true")...)); r.Code != 1 || !strings.Contains(r.Stderr, "program") {
		t.Errorf("exec before up: %+v", r)
	}
	up(t, "program")
	tunnelled(t, "program", enter)
	resolves(t, enter)
	if got := run(t, enter, "id", "-un"); got != "nobody\n" {
		t.Errorf("runs as %s", got)
	}
	down(t, "program")
	same(t, before, state(t))
}

// TestConfined: a service with the drop-in of examples/namespaces/confined.service.d.
func TestConfined(t *testing.T) {
	before := state(t)
	up(t, "confined") // as planned
	down(t, "confined")
	same(t, before, state(t))
	ns.Run(t, "systemctl", "start", "confined")
	enter := inside(mainPID(t, "confined"))
	tunnelled(t, "confined", enter)
	resolves(t, enter)
	// the tunnel takes its service with it
	ns.Run(t, "systemctl", "stop", "wg-quickns@confined")
	if got := ns.Try(exec.Command("systemctl", "is-active", "confined")); got.Stdout != "inactive\n" {
		t.Errorf("the service is %s", got.Stdout)
	}
	same(t, before, state(t))
	// and it does not start without
	ns.Run(t, "mv", "/etc/wireguard/confined.conf", "/etc/wireguard/away")
	if r := ns.Try(exec.Command("systemctl", "start", "confined")); r.Code == 0 {
		t.Error("the service started without its tunnel")
	}
	ns.Run(t, "mv", "/etc/wireguard/away", "/etc/wireguard/confined.conf")
	same(t, before, state(t))
}

// TestConfinedLookup: the service asks the tunnel's name server alone, whatever
// resolves names on the machine.
func TestConfinedLookup(t *testing.T) {
	resolvers(t)
	ns.Run(t, "systemctl", "start", "confined")
	defer ns.Run(t, "systemctl", "stop", "wg-quickns@confined")
	enter := inside(mainPID(t, "confined"))
	for _, packet := range capture(t, func() {
		for _, source := range []string{"files dns", "resolve [!UNAVAIL=return] files dns"} {
			ns.Run(t, "sed", "-i", "s/^hosts:.*/hosts: "+source+"/", "/etc/nsswitch.conf")
			for _, name := range []string{"known.far.example", "new.far.example"} {
				if got := ns.Run(t, append(enter, "getent", "ahostsv4", name)...); !strings.HasPrefix(got, tunnels+" ") {
					t.Errorf("%s: %s is %s", source, name, got)
				}
			}
		}
	}) {
		if !strings.Contains(packet, "192.0.2.10.51820") {
			t.Errorf("on the wire: %s", packet)
		}
	}
}

// TestConfinedExec: the manual's other way to confine a service, while the
// machine's resolv.conf is replaced.
func TestConfinedExec(t *testing.T) {
	const tunnel = "wg-quickns@confined.service"
	before := state(t)
	ns.Run(t, "systemctl", "start", tunnel)
	ns.Run(t, "systemd-run", "--quiet", "--unit=other", "--property=Type=exec", "--property=BindsTo="+tunnel, "--property=After="+tunnel,
		"/usr/bin/wg-quickns", "exec", "--user", "nobody", "confined", "--", "sleep", "infinity")
	pid := mainPID(t, "other")
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); string(comm) == "sleep\n" {
			break
		} else if time.Now().After(end) {
			t.Fatalf("the service runs %s", comm)
		}
	}
	ns.Run(t, "cp", "/etc/resolv.conf", "/etc/resolv.conf.new")
	ns.Run(t, "mv", "/etc/resolv.conf.new", "/etc/resolv.conf")
	enter := inside(pid)
	tunnelled(t, "confined", enter)
	resolves(t, enter)
	ns.Run(t, "systemctl", "stop", tunnel)
	if got := ns.Try(exec.Command("systemctl", "is-active", "other")); got.Stdout != "inactive\n" {
		t.Errorf("the service is %s", got.Stdout)
	}
	same(t, before, state(t))
}

// TestDocker and TestPodman: a real container of each engine.
func TestDocker(t *testing.T) {
	write(t, "/etc/docker/daemon.json", `{"storage-driver":"vfs", "bridge":"none", "iptables":false, "ip6tables":false}`)
	noSocket(t, "docker", "/run/docker.sock")
	ns.Run(t, "systemctl", "start", "docker")
	engine(t, "docker", []string{"stop", "--time", "0", "web"}, []string{"rm", "--force", "web"})
}

func TestPodman(t *testing.T) {
	write(t, "/etc/containers/storage.conf", "[storage]\ndriver = \"vfs\"\nrunroot = \"/run/containers/storage\"\ngraphroot = \"/var/lib/containers/storage\"\n")
	noSocket(t, "podman", "/run/podman/podman.sock")
	ns.Run(t, "systemctl", "start", "podman.socket")
	engine(t, "podman", []string{"rm", "--force", "web"})
}

func noSocket(t *testing.T, name, socket string) {
	t.Helper()
	ns.Run(t, "systemctl", "stop", name+".socket")
	os.Remove(socket)
	refused(t, name, "no API socket at "+socket)
}

// engine takes an engine's example through the life of a container, which ends,
// with the tunnel up, in each of the ways.
func engine(t *testing.T, name string, ends ...[]string) {
	refused(t, name, "no container of that name")
	ns.Run(t, "bash", "-ec", `tar -C /run/root -c . | "$0" import - lab`, name)
	ns.Run(t, name, "create", "--network", "none", "--name", "web", "lab", "/bin/busybox", "sleep", "100000")
	refused(t, name, "not running")
	before := state(t)
	for i, end := range ends {
		ns.Run(t, name, "start", "web")
		if i == 0 {
			pid, err := strconv.Atoi(strings.TrimSpace(ns.Run(t, "pgrep", "-xf", "/bin/busybox sleep 100000")))
			if err != nil {
				t.Fatal(err)
			}
			was := within(t, inside(pid))
			up(t, name)
			if out := ns.Run(t, "wg-quickns", "status", name); !strings.Contains(out, " "+name+":web ") {
				t.Errorf("status: %s", out)
			}
			tunnelled(t, name, inside(pid))
			resolves(t, []string{name, "exec", "web"})
			down(t, name)
			same(t, was, within(t, inside(pid)))
			same(t, before, state(t))
		}
		up(t, name)
		ns.Run(t, append([]string{name}, end...)...)
		down(t, name)
		becomes(t, before)
		if end[0] == "stop" {
			refused(t, name, "not running (exited)")
		}
	}
}

// TestUnit: the namespace of a service by unit:NAME.
func TestUnit(t *testing.T) {
	write(t, "/run/systemd/system/web.service", "[Service]\nPrivateNetwork=yes\nExecStart=/usr/bin/sleep infinity\n")
	put(t, "unit", "unit:web.service")
	refused(t, "unit", "inactive")
	put(t, "none", "unit:none")
	refused(t, "none", "no such unit")
	ns.Run(t, "systemctl", "start", "web")
	byProcess(t, "unit", inside(mainPID(t, "web")), "systemctl", "stop", "web")
	refused(t, "unit", "inactive")
}

// TestMachine: the namespace of a machine of systemd-nspawn by machine:NAME.
func TestMachine(t *testing.T) {
	put(t, "machine", "machine:box")
	refused(t, "machine", "box")
	ns.Run(t, "systemd-run", "--quiet", "--unit=box", "--property=Type=notify", "--property=Delegate=yes",
		"systemd-nspawn", "--machine=box", "--private-network", "--keep-unit", "--directory=/run/root", "/bin/busybox", "sleep", "100000")
	pid, err := strconv.Atoi(strings.TrimSpace(ns.Run(t, "machinectl", "show", "box", "--property=Leader", "--value")))
	if err != nil {
		t.Fatal(err)
	}
	byProcess(t, "machine", inside(pid), "systemctl", "stop", "box")
	refused(t, "machine", "box")
}

// byProcess brings a tunnel up and down, and up again to stop what it lives in.
func byProcess(t *testing.T, name string, enter []string, stop ...string) {
	t.Helper()
	before, was := state(t), within(t, enter)
	up(t, name)
	tunnelled(t, name, enter)
	down(t, name)
	same(t, before, state(t))
	same(t, was, within(t, enter))
	up(t, name)
	ns.Run(t, stop...)
	down(t, name)
	becomes(t, before)
}

func mainPID(t *testing.T, unit string) int {
	t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(ns.Run(t, "systemctl", "show", unit, "--property=MainPID", "--value")))
	if err != nil || pid == 0 {
		t.Fatalf("%s has no main process: %v", unit, err)
	}
	return pid
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
