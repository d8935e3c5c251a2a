package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
	"golang.org/x/sys/unix"

	"wg-quickns/internal/plan"
	"wg-quickns/internal/proc"
	"wg-quickns/test/ns"
)

// fakeResolved is a stand-in for systemd-resolved on a bus of its own.
type fakeResolved struct {
	mu    sync.Mutex
	calls []string
	fails map[string]*dbus.Error
	hangs chan struct{} // if not nil, every call waits for its end
}

func (f *fakeResolved) call(method string, args ...any) *dbus.Error {
	f.mu.Lock()
	f.calls = append(f.calls, strings.TrimSpace(fmt.Sprintln(append([]any{method}, args...)...)))
	err, hangs := f.fails[method], f.hangs
	f.mu.Unlock()
	if hangs != nil {
		<-hangs
	}
	return err
}

func (f *fakeResolved) SetLinkDNS(index int32, servers []address) *dbus.Error {
	var list []string
	for _, s := range servers {
		a, _ := netip.AddrFromSlice(s.Bytes)
		list = append(list, fmt.Sprint(s.Family, " ", a))
	}
	return f.call("SetLinkDNS", index, list)
}

func (f *fakeResolved) SetLinkDomains(index int32, domains []domain) *dbus.Error {
	return f.call("SetLinkDomains", index, domains)
}

func (f *fakeResolved) RevertLink(index int32) *dbus.Error { return f.call("RevertLink", index) }

func (f *fakeResolved) GetLink(index int32) (dbus.ObjectPath, *dbus.Error) {
	return "/org/freedesktop/resolve1/link/_37", f.call("GetLink", index)
}

// take gives what was called since the last time.
func (f *fakeResolved) take() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls := f.calls
	f.calls = nil
	return calls
}

// systemBus starts a bus that is the system's for this test.
func systemBus(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	write(t, dir+"/conf", `<busconfig><listen>unix:path=`+dir+`/bus</listen><policy context="default">
<allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>`)
	daemon := exec.Command("dbus-daemon", "--nofork", "--config-file="+dir+"/conf")
	daemon.Stderr = os.Stderr
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { daemon.Process.Kill(); daemon.Wait() })
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+dir+"/bus")
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("unix", dir+"/bus"); err == nil {
			c.Close()
			return
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// resolvedStandIn is on the bus until the test ends.
func resolvedStandIn(t *testing.T) *fakeResolved {
	t.Helper()
	systemBus(t)
	c, err := dbus.ConnectSystemBus()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	f := &fakeResolved{fails: map[string]*dbus.Error{}}
	if err := c.Export(f, "/org/freedesktop/resolve1", resolve1+".Manager"); err != nil {
		t.Fatal(err)
	}
	_, err = prop.Export(c, "/org/freedesktop/resolve1/link/_37", prop.Map{resolve1 + ".Link": {
		"DNS":     {Value: []address{{unix.AF_INET, []byte{10, 0, 0, 53}}, {unix.AF_INET6, netip.MustParseAddr("fd00::53").AsSlice()}}},
		"Domains": {Value: []domain{{"example.com", false}, {"only.example", true}, {".", true}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.RequestName(resolve1, dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	return f
}

// lo is a link that is there.
func lo(t *testing.T) int {
	t.Helper()
	l, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	return l.Index
}

func TestResolved(t *testing.T) {
	f := resolvedStandIn(t)
	step := plan.DNS{Link: "lo", Index: lo(t), Servers: []string{"10.0.0.53", "fd00::53", "fe80::1%lo"}, Search: []string{"example.com", "~only.example"}}
	undo := plan.DNS{Link: "lo", Index: lo(t), Delete: true}
	if _, err := (Doer{}).Do(t.Context(), "", step); err != nil {
		t.Error(err)
	}
	want := []string{
		fmt.Sprintf("SetLinkDNS %d [2 10.0.0.53 10 fd00::53 10 fe80::1]", step.Index),
		fmt.Sprintf("SetLinkDomains %d [{example.com false} {only.example true} {. true}]", step.Index),
	}
	if got := f.take(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	wantLines := []string{"resolvectl dns lo 10.0.0.53 fd00::53 fe80::1%lo", "resolvectl domain lo example.com ~only.example ~."}
	if got := step.Commands(); !slices.Equal(got, wantLines) {
		t.Errorf("says %q, want %q", got, wantLines)
	}
	servers, search, err := ListLink(t.Context(), 7)
	if err != nil || !slices.Equal(servers, []string{"10.0.0.53", "fd00::53"}) || !slices.Equal(search, []string{"example.com", "~only.example"}) {
		t.Errorf("list: %q %q %v", servers, search, err)
	}
	f.take()
	if _, err := (Doer{}).Do(t.Context(), "", undo); err != nil {
		t.Error(err)
	}
	if got, want := f.take(), []string{fmt.Sprint("RevertLink ", undo.Index)}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	undo.Index = 9999 // a link that is gone: nobody is asked
	if _, err := (Doer{}).Do(t.Context(), "", undo); err != nil || len(f.take()) > 0 {
		t.Errorf("of a link that is gone: %v", err)
	}
	if !Resolved(t.Context()) {
		t.Error("it runs and there is no resolvconf, but is not seen")
	}
	fake(t, "")
	if Resolved(t.Context()) {
		t.Error("there is a resolvconf")
	}
}

func TestResolvedFails(t *testing.T) {
	f := resolvedStandIn(t)
	step := plan.DNS{Link: "lo", Index: lo(t), Servers: []string{"10.0.0.53"}}
	undo := plan.DNS{Link: "lo", Index: step.Index, Delete: true}
	do := func(s plan.Step) error { _, err := (Doer{}).Do(t.Context(), "", s); return err }
	both := []string{fmt.Sprintf("SetLinkDNS %d [2 10.0.0.53]", step.Index), fmt.Sprint("RevertLink ", step.Index)}
	for _, c := range []struct {
		name, method, dbusError, want string
		calls                         []string
	}{
		{"busy", "SetLinkDNS", resolve1 + ".LinkBusy", "resolvectl dns lo 10.0.0.53: no (hint: systemd-networkd manages the link", both},
		{"no link", "SetLinkDNS", resolve1 + ".NoSuchLink", "resolvectl dns lo 10.0.0.53: no such device", both},
		{"half", "SetLinkDomains", "org.freedesktop.DBus.Error.AccessDenied", "resolvectl domain lo ~.: no",
			[]string{both[0], fmt.Sprintf("SetLinkDomains %d [{. true}]", step.Index), both[1]}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.fails = map[string]*dbus.Error{c.method: dbus.NewError(c.dbusError, []any{"no"})}
			if err := do(step); err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
			if got := f.take(); !slices.Equal(got, c.calls) {
				t.Errorf("called %q, want %q", got, c.calls)
			}
		})
	}
	f.fails = map[string]*dbus.Error{"RevertLink": dbus.NewError(resolve1+".NoSuchLink", []any{"no"})}
	if err := do(undo); err != nil {
		t.Errorf("revert of a link that is unknown: %v", err)
	}
	f.fails["RevertLink"] = dbus.NewError("org.freedesktop.DBus.Error.AccessDenied", []any{"no"})
	if err := do(undo); err == nil || err.Error() != "resolvectl revert lo: no" {
		t.Errorf("revert that is refused: %v", err)
	}
	f.take()
	for _, bad := range []string{"1.2.3", "fe80::1%eth0", "10.0.0.1:53"} {
		if err := do(plan.DNS{Link: "lo", Index: step.Index, Servers: []string{bad}}); err == nil || !strings.Contains(err.Error(), "`"+bad+"'") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if calls := f.take(); len(calls) > 0 {
		t.Errorf("called for bad servers: %q", calls)
	}

	f.fails, f.hangs = nil, make(chan struct{})
	defer close(f.hangs)
	cause := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(100*time.Millisecond, func() { cancel(cause) })
	begin := time.Now()
	if _, err := (Doer{}).Do(ctx, "", step); !errors.Is(err, cause) || time.Since(begin) > 3*time.Second {
		t.Errorf("interrupted: %v after %v", err, time.Since(begin))
	}
}

// TestNoResolved: what does not run has nothing to take back, and is not told anything.
func TestNoResolved(t *testing.T) {
	step := plan.DNS{Link: "lo", Index: lo(t), Servers: []string{"10.0.0.53"}}
	undo := plan.DNS{Link: "lo", Index: step.Index, Delete: true}
	systemBus(t)
	if Resolved(t.Context()) {
		t.Error("seen on an empty bus")
	}
	if _, err := (Doer{}).Do(t.Context(), "", step); !errors.Is(err, errNoResolved) {
		t.Errorf("set: %v", err)
	}
	if _, err := (Doer{}).Do(t.Context(), "", undo); err != nil {
		t.Errorf("take back: %v", err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
	if Resolved(t.Context()) {
		t.Error("seen without a bus")
	}
	if _, err := (Doer{}).Do(t.Context(), "", undo); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("take back without a bus: %v", err)
	}
	l, err := net.Listen("unix", t.TempDir()+"/bus")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+l.Addr().String())
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if Resolved(ctx) || time.Since(begin) > 2*time.Second {
		t.Errorf("a bus without a word: %v", time.Since(begin))
	}
	if left := ns.Leftovers(); len(left) != 1 || !strings.Contains(left[0], "dbus-daemon") {
		t.Errorf("left: %q", left)
	}
	_, err = (Doer{}).Do(t.Context(), "", plan.DNS{Link: "lo", Servers: []string{"10.0.0.53"}})
	if status, _ := proc.ExitStatus(err); status != 127 {
		t.Errorf("with neither: %v", err)
	}
}
