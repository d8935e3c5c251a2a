package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"wg-quickns/confparse"
)

func device(hosts ...string) *confparse.Device {
	d := &confparse.Device{}
	for i, h := range hosts {
		host, port, _ := strings.Cut(h, " ")
		d.Peers = append(d.Peers, confparse.Peer{Endpoint: &confparse.Endpoint{Host: host, Port: port, Line: i + 1}})
	}
	return d
}

func endpoints(d *confparse.Device) (out []string) {
	for _, p := range d.Peers {
		out = append(out, p.Endpoint.Addr.String())
	}
	return out
}

// TestRetries compares times and messages with those of wg(8): waits of 1 s times
// 1.2 to the n, 20 s at most.
func TestRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log []string
		begin := time.Now()
		err := Resolve(t.Context(), device("vpn.example 51820"), Options{
			Retries: DefaultRetries,
			Log:     func(s string) { log = append(log, s) },
			Lookup: func(context.Context, string) ([]netip.Addr, error) {
				return nil, &net.DNSError{Err: "i/o timeout", IsTimeout: true}
			},
		})
		if want := "Temporary failure in name resolution: `vpn.example:51820'"; err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
		var waits []string
		for _, l := range log {
			w, ok := strings.CutPrefix(l, "Temporary failure in name resolution: `vpn.example:51820'. Trying again in ")
			if !ok {
				t.Errorf("message %q", l)
			}
			waits = append(waits, strings.TrimSuffix(w, " seconds..."))
		}
		want := "1.00 1.20 1.44 1.73 2.07 2.49 2.99 3.58 4.30 5.16 6.19 7.43 8.92 10.70 12.84"
		if got := strings.Join(waits, " "); got != want {
			t.Errorf("waits %s, want %s", got, want)
		}
		if took := time.Since(begin).Round(time.Second); took != 72*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

func TestRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries, last := 0, time.Duration(0)
		var mu sync.Mutex
		d := device("a.example 1", "192.0.2.9 2", "b.example domain")
		d.Peers[1].Endpoint.Addr = netip.MustParseAddrPort("192.0.2.9:2")
		err := Resolve(t.Context(), d, Options{
			Retries: -1,
			Log:     func(string) {},
			Lookup: func(_ context.Context, host string) ([]netip.Addr, error) {
				mu.Lock()
				defer mu.Unlock()
				if tries++; host == "a.example" && tries < 40 {
					return nil, errors.New("network is unreachable")
				}
				return []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.1")}, nil
			},
			Sleep: func(ctx context.Context, d time.Duration) error { last = d; return sleep(ctx, d) },
		})
		if err != nil || last != 20*time.Second {
			t.Errorf("%v, last wait %v", err, last)
		}
		if got := endpoints(d); !slices.Equal(got, []string{"[2001:db8::1]:1", "192.0.2.9:2", "[2001:db8::1]:53"}) {
			t.Errorf("got %q", got)
		}
	})
}

// TestPermanent: one permanent failure ends the waiting of all, and no address is filled in.
func TestPermanent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		d := device("slow.example 1", "good.example 1", "gone.example 1", "bad.example nosuchservice")
		var log []string
		err := Resolve(t.Context(), d, Options{
			Retries: -1,
			Log:     func(s string) { log = append(log, s) },
			Lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
				switch host {
				case "slow.example":
					return nil, errors.New("later")
				case "gone.example":
					return nil, sleepThen(ctx, 3*time.Second, &net.DNSError{Err: "no such host", IsNotFound: true})
				}
				return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
			},
			Port: func(ctx context.Context, s string) (int, error) {
				return 0, sleepThen(ctx, 9*time.Second, errors.New("unknown port"))
			},
		})
		e := (*ResolveError)(nil)
		if !errors.As(err, &e) || e.Line != 3 || err.Error() != "Name or service not known: `gone.example:1'" {
			t.Errorf("got %v", err)
		}
		if took := time.Since(begin); took != 3*time.Second {
			t.Errorf("took %v", took)
		}
		if d.Peers[1].Endpoint.Addr.IsValid() || len(log) == 0 {
			t.Errorf("filled in %v, said %q", endpoints(d), log)
		}
	})
}

func sleepThen(ctx context.Context, d time.Duration, err error) error {
	if e := sleep(ctx, d); e != nil {
		return e
	}
	return err
}

// TestOrder: 100 names side by side, at most 16 at a time, messages in file order.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var hosts, log, want []string
		for i := range 100 {
			hosts = append(hosts, fmt.Sprintf("h%02d 1", i))
			want = append(want, fmt.Sprintf("h%02d", i))
		}
		var mu sync.Mutex
		tried := map[string]bool{}
		now, most := 0, 0
		begin := time.Now()
		err := Resolve(t.Context(), device(hosts...), Options{
			Retries: 1,
			Log:     func(s string) { log = append(log, s[strings.Index(s, "`")+1:][:3]) },
			Lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
				mu.Lock()
				now++
				most = max(most, now)
				first := !tried[host]
				tried[host] = true
				mu.Unlock()
				n := time.Duration(host[1]-'0')*10 + time.Duration(host[2]-'0')
				time.Sleep((100 - n) * time.Millisecond) // later ones answer sooner
				mu.Lock()
				now--
				mu.Unlock()
				if first {
					return nil, errors.New("later")
				}
				return []netip.Addr{netip.IPv4Unspecified()}, nil
			},
		})
		if err != nil || most != 16 || !slices.Equal(log, want) {
			t.Errorf("%v; %d at once; %q", err, most, log)
		}
		if took := time.Since(begin); took > 3*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

func TestInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("why")
		time.AfterFunc(1500*time.Millisecond, func() { cancel(why) })
		begin := time.Now()
		err := Resolve(ctx, device("a 1", "b 2"), Options{
			Retries: -1, Log: func(string) {},
			Lookup: func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("later") },
		})
		if err != why || time.Since(begin) != 1500*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
}

// TestServer asks a real name server, by Go's own resolver, about every kind of answer.
func TestServer(t *testing.T) {
	write(t, "/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
	write(t, "/etc/hosts", "127.0.0.1 localhost\n")
	write(t, "/etc/nsswitch.conf", "hosts: files dns\n")
	resolveOne := func(host string) (string, string) {
		d := device(host + " 53")
		var log string
		err := Resolve(t.Context(), d, Options{Retries: 1, Log: func(s string) { log, _, _ = strings.Cut(s, ": ") },
			Sleep: func(context.Context, time.Duration) error { return nil }})
		if err != nil {
			m, _, _ := strings.Cut(err.Error(), ": ")
			return m, log
		}
		return d.Peers[0].Endpoint.Addr.String(), log
	}
	check := func(host, want string, retried bool) {
		t.Helper()
		got, log := resolveOne(host)
		if got != want || (log != "") != retried {
			t.Errorf("%s: got %q after %q, want %q, tried again: %v", host, got, log, want, retried)
		}
	}
	check("nobody.example.", eaiAgain, true)
	conn, err := net.ListenPacket("udp", "127.0.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go serve(conn)
	check("v4.example.", "192.0.2.4:53", false)
	check("v6.example.", "[2001:db8::6]:53", false)
	check("localhost", "127.0.0.1:53", false)
	check("nxdomain.example.", eaiNoName, false)
	check("nodata.example.", eaiNoName, false)
	check("servfail.example.", eaiAgain, true)
	check("refused.example.", eaiFail, false)
	check("silent.example.", eaiAgain, true)
	check("bad..name", eaiNoName, false)
}

func serve(conn net.PacketConn) {
	buf := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil {
			continue
		}
		q := m.Questions[0]
		m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
		h := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}
		switch name, _, _ := strings.Cut(q.Name.String(), "."); {
		case name == "v4" && q.Type == dnsmessage.TypeA:
			m.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, 4}}}}
		case name == "v6" && q.Type == dnsmessage.TypeAAAA:
			m.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.AAAAResource{AAAA: netip.MustParseAddr("2001:db8::6").As16()}}}
		case name == "nxdomain":
			m.RCode = dnsmessage.RCodeNameError
		case name == "servfail":
			m.RCode = dnsmessage.RCodeServerFailure
		case name == "refused":
			m.RCode = dnsmessage.RCodeRefused
		case name == "silent":
			continue
		}
		out, err := m.Pack()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return
		}
		conn.WriteTo(out, from)
	}
}

func TestParseRetries(t *testing.T) {
	for _, c := range []struct {
		value string
		set   bool
		want  int
		ok    bool
	}{
		{"", false, 15, true}, {"", true, 0, true}, {"0", true, 0, true}, {"7", true, 7, true}, {"infinity", true, -1, true},
		{"x", true, 0, false}, {"7x", true, 0, false}, {"2147483648", true, 0, false},
	} {
		if got, err := ParseRetries(c.value, c.set); got != c.want || (err == nil) != c.ok {
			t.Errorf("%q: got %d, %v", c.value, got, err)
		}
	}
}
