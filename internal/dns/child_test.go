package dns

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"wg-quickns/test/ns"
)

// TestResolveIn: names come from the birth namespace's own server, hosts and
// services, while another server answers outside.
func TestResolveIn(t *testing.T) {
	for path, text := range map[string]string{
		"/etc/resolv.conf": "nameserver 127.0.0.1\n", "/etc/hosts": "192.0.2.66 here.example\n", "/etc/nsswitch.conf": "hosts: files dns\n",
		"/etc/netns/birth/resolv.conf": "nameserver 127.0.0.53\noptions timeout:1 attempts:1\n",
		"/etc/netns/birth/hosts":       "198.51.100.7 here.example\n", "/etc/netns/birth/services": "special 777/udp\n",
	} {
		write(t, path, text)
	}
	t.Cleanup(func() { os.RemoveAll("/etc/netns/birth") })
	n := ns.New(t, "birth")
	var inside net.PacketConn
	if err := n.Do(func() (err error) { inside, err = net.ListenPacket("udp", "127.0.0.53:53"); return err }); err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	go serve(inside)
	outside, err := net.ListenPacket("udp", "127.0.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	asked := make(chan bool, 1000)
	go func() {
		for buf := make([]byte, 1500); ; asked <- true {
			if _, _, err := outside.ReadFrom(buf); err != nil {
				return
			}
		}
	}()

	d := device("v4.example. 1", "here.example 2", "v6.example. special", "192.0.2.1 4")
	if err := ResolveIn(t.Context(), n.Path(), d, Options{}); err != nil {
		t.Fatal(err)
	}
	if got, want := endpoints(d), []string{"192.0.2.4:1", "198.51.100.7:2", "[2001:db8::6]:777"}; !slices.Equal(got[:3], want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for host, want := range map[string]string{"nxdomain.example.": eaiNoName, "servfail.example.": eaiAgain, "refused.example.": eaiFail, "silent.example.": eaiAgain} {
		var log []string
		err := ResolveIn(t.Context(), n.Path(), device(host+" 1"), Options{Retries: 1, Log: func(s string) { log = append(log, s) },
			Sleep: func(context.Context, time.Duration) error { return nil }})
		if err == nil || err.Error() != want+": `"+host+":1'" || (len(log) == 1) != (want == eaiAgain) {
			t.Errorf("%s: got %v after %q, want %s", host, err, log, want)
		}
	}
	// many at once
	var hosts []string
	for range 200 {
		hosts = append(hosts, "v4.example. 9")
	}
	d = device(hosts...)
	if err := ResolveIn(t.Context(), n.Path(), d, Options{}); err != nil {
		t.Error(err)
	}
	for _, e := range endpoints(d) {
		if e != "192.0.2.4:9" {
			t.Errorf("got %s", e)
		}
	}
	cause := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(100*time.Millisecond, func() { cancel(cause) })
	begin := time.Now()
	err = ResolveIn(ctx, n.Path(), device("silent.example. 1"), Options{Retries: -1, Log: func(string) {}})
	if !errors.Is(err, cause) || time.Since(begin) > 800*time.Millisecond {
		t.Errorf("cancelled: %v after %v", err, time.Since(begin))
	}
	if len(asked) > 0 {
		t.Errorf("%d packets to the server outside", len(asked))
	}
	if left := ns.Leftovers(); len(left) != 1 { // the namespace
		t.Errorf("left: %q", left)
	}

	t.Setenv("DIE", "1")
	err = ResolveIn(t.Context(), n.Path(), device("v4.example. 1"), Options{Retries: -1, Log: func(string) {}})
	if err == nil || !strings.Contains(err.Error(), n.Path()) {
		t.Errorf("a child that died: %v", err)
	}
}

func TestResolveInFails(t *testing.T) {
	if err := ResolveIn(t.Context(), "/run/netns/none", device("v4.example. 1"), Options{}); err == nil || !strings.Contains(err.Error(), "/run/netns/none") {
		t.Errorf("got %v", err)
	}
	d := device("v4.example. 1")
	d.Peers[0].Endpoint = nil
	if err := ResolveIn(t.Context(), "/run/netns/none", d, Options{}); err != nil { // nothing to ask
		t.Error(err)
	}
}
