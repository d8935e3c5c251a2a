package dns

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/confparse"
)

const (
	// DefaultRetries is how often wg(8) tries again when WG_ENDPOINT_RESOLUTION_RETRIES is not set.
	DefaultRetries = 15
	firstWait      = time.Second
	maxWait        = 20 * time.Second
	// lookups is how many names are resolved at once.
	lookups = 16
)

// What getaddrinfo(3) of glibc says for the errors that are told apart here.
const (
	eaiNoName  = "Name or service not known"
	eaiAgain   = "Temporary failure in name resolution"
	eaiFail    = "Non-recoverable failure in name resolution"
	eaiService = "Servname not supported for ai_socktype"
)

// Options says how Resolve resolves. Only Retries and Log have no default.
type Options struct {
	Retries int          // attempts after the first; negative: no limit
	Log     func(string) // gets each message of a failed attempt, one line
	Mark    int          // fwmark of the questions to name servers, 0: none

	Lookup func(ctx context.Context, host string) ([]netip.Addr, error) // net.DefaultResolver's LookupNetIP
	Port   func(ctx context.Context, service string) (int, error)       // net.DefaultResolver's LookupPort for udp
	Sleep  func(ctx context.Context, d time.Duration) error             // time.After
}

// ParseRetries reads WG_ENDPOINT_RESOLUTION_RETRIES as wg(8) does; ok tells
// whether it is set.
func ParseRetries(value string, ok bool) (int, error) {
	if !ok {
		return DefaultRetries, nil
	}
	if value == "infinity" {
		return -1, nil
	}
	if value == "" {
		return 0, nil // as strtoul(3) reads it
	}
	n, err := strconv.ParseUint(value, 10, 64)
	if err != nil || n > math.MaxInt32 {
		return 0, fmt.Errorf("Unable to parse WG_ENDPOINT_RESOLUTION_RETRIES: `%s'", value)
	}
	return int(n), nil
}

// ResolveError is an endpoint that has no address. Its text is wg(8)'s.
type ResolveError struct {
	Endpoint string // as HOST:PORT, without what could be a key
	Line     int    // in the config file
	Message  string // getaddrinfo(3)'s
	Err      error  // the resolver's own
}

func (e *ResolveError) Error() string { return fmt.Sprintf("%s: `%s'", e.Message, e.Endpoint) }
func (e *ResolveError) Unwrap() error { return e.Err }

// Resolve fills in the address of every endpoint that has none yet, the first
// that the resolver gives, as wg(8) does: a failure that may pass is tried again
// after 1 s, each time 1.2 times later, at most 20 s later. A permanent one ends
// it all at once. Names are resolved side by side, yet messages come in the
// file's order, and the error is that of the first endpoint that failed. It
// returns at once when ctx ends, with its cause.
func Resolve(ctx context.Context, d *confparse.Device, o Options) error {
	if o.Lookup == nil {
		o.Lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return resolver(o.Mark).LookupNetIP(ctx, "ip", host)
		}
	}
	if o.Port == nil {
		o.Port = func(ctx context.Context, service string) (int, error) {
			return net.DefaultResolver.LookupPort(ctx, "udp", service)
		}
	}
	if o.Sleep == nil {
		o.Sleep = sleep
	}
	var todo []*confparse.Endpoint
	for i := range d.Peers {
		if e := d.Peers[i].Endpoint; e != nil && !e.Addr.IsValid() {
			todo = append(todo, e)
		}
	}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	log := newOrdered(len(todo), o.Log)
	addrs, errs := make([]netip.AddrPort, len(todo)), make([]error, len(todo))
	slots := make(chan struct{}, lookups)
	var all sync.WaitGroup
	for i, e := range todo {
		all.Go(func() {
			defer log.done(i)
			addrs[i], errs[i] = resolve(inner, e, o, slots, func(s string) { log.add(i, s) })
			if errs[i] != nil {
				cancel()
			}
		})
	}
	all.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, err := range errs {
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
	for i, e := range todo {
		e.Addr = addrs[i]
	}
	return nil
}

// resolver asks name servers by packets with a mark.
func resolver(mark int) *net.Resolver {
	if mark == 0 {
		return net.DefaultResolver
	}
	dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
		failed := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark)
		})
		return errors.Join(failed, err)
	}}
	return &net.Resolver{PreferGo: true, Dial: dialer.DialContext}
}

// resolve resolves one endpoint. It holds a slot while it asks, not while it waits.
func resolve(ctx context.Context, e *confparse.Endpoint, o Options, slots chan struct{}, log func(string)) (netip.AddrPort, error) {
	text := e.Host + ":" + e.Port
	if strings.Contains(e.Host, ":") {
		text = "[" + e.Host + "]:" + e.Port
	}
	text = confparse.Redact(text) // it is for messages
	for wait, retries := firstWait, o.Retries; ; wait = min(maxWait, wait*6/5) {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return netip.AddrPort{}, ctx.Err()
		}
		addr, fail := attempt(ctx, e, o)
		<-slots
		if ctx.Err() != nil {
			return netip.AddrPort{}, ctx.Err()
		}
		if fail == nil {
			return addr, nil
		}
		if fail.permanent || retries == 0 {
			return netip.AddrPort{}, &ResolveError{text, e.Line, fail.message, fail.err}
		}
		retries = max(retries-1, -1)
		log(fmt.Sprintf("%s: `%s'. Trying again in %.2f seconds...", fail.message, text, wait.Seconds()))
		if err := o.Sleep(ctx, wait); err != nil {
			return netip.AddrPort{}, err
		}
	}
}

// failure is one attempt that failed.
type failure struct {
	message   string
	permanent bool
	err       error
}

func attempt(ctx context.Context, e *confparse.Endpoint, o Options) (netip.AddrPort, *failure) {
	port, ok := confparse.PortNumber(e.Port)
	if !ok {
		n, err := o.Port(ctx, e.Port)
		if err != nil {
			// wg(8) tries this again too, but a service does not come into being by waiting
			return netip.AddrPort{}, &failure{eaiService, true, err}
		}
		port = uint16(n)
	}
	addrs, err := o.Lookup(ctx, e.Host)
	if err != nil {
		return netip.AddrPort{}, classify(err)
	}
	if len(addrs) == 0 {
		return netip.AddrPort{}, &failure{eaiNoName, true, errors.New("no address")}
	}
	return netip.AddrPortFrom(addrs[0].Unmap(), port), nil
}

// classify tells what getaddrinfo(3) would have said. wg(8) takes EAI_NONAME,
// EAI_NODATA and EAI_FAIL (a server that refuses) for permanent and nothing else.
func classify(err error) *failure {
	e := (*net.DNSError)(nil)
	switch {
	case !errors.As(err, &e):
		return &failure{eaiAgain, false, err}
	case e.IsNotFound:
		return &failure{eaiNoName, true, err}
	case e.IsTimeout, e.IsTemporary:
		return &failure{eaiAgain, false, err}
	case e.Err == "server misbehaving": // any answer but NOERROR, NXDOMAIN and SERVFAIL, see net/dnsclient_unix.go
		return &failure{eaiFail, true, err}
	}
	return &failure{eaiAgain, false, err}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ordered passes messages of several sources on in the order of the sources:
// those of one that is not first yet are kept until all before it are done.
type ordered struct {
	mu    sync.Mutex
	log   func(string)
	first int
	ended []bool
	kept  [][]string
}

func newOrdered(n int, log func(string)) *ordered {
	return &ordered{log: log, ended: make([]bool, n), kept: make([][]string, n)}
}

func (o *ordered) add(i int, s string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if i == o.first {
		o.log(s)
	} else {
		o.kept[i] = append(o.kept[i], s)
	}
}

func (o *ordered) done(i int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended[i] = true
	for o.first < len(o.ended) && o.ended[o.first] {
		if o.first++; o.first < len(o.kept) {
			for _, s := range o.kept[o.first] {
				o.log(s)
			}
		}
	}
}
