package dns

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"wg-quickns/confparse"
	"wg-quickns/internal/proc"
)

// Command is the argument by which this program, started again by ResolveIn,
// serves look-ups: it is Serve's.
const Command = "resolve"

// question is one line of what ResolveIn asks its child: a host or a service.
type question struct {
	ID      int    `json:"id"`
	Host    string `json:"host,omitempty"`
	Service string `json:"service,omitempty"`
	Mark    int    `json:"mark,omitempty"`
}

// answer is one line of what the child says.
type answer struct {
	ID    int          `json:"id"`
	Addrs []netip.Addr `json:"addrs,omitempty"`
	Port  int          `json:"port,omitempty"`
	Error *lookupError `json:"error,omitempty"`
}

// lookupError is a net.DNSError, or any other error as text alone.
type lookupError struct {
	Text      string `json:"text"`
	Name      string `json:"name,omitempty"`
	Server    string `json:"server,omitempty"`
	DNS       bool   `json:"dns,omitempty"`
	Timeout   bool   `json:"timeout,omitempty"`
	Temporary bool   `json:"temporary,omitempty"`
	NotFound  bool   `json:"notFound,omitempty"`
}

func encodeError(err error) *lookupError {
	if e := (*net.DNSError)(nil); errors.As(err, &e) {
		return &lookupError{e.Err, e.Name, e.Server, true, e.IsTimeout, e.IsTemporary, e.IsNotFound}
	} else if err != nil {
		return &lookupError{Text: err.Error()}
	}
	return nil
}

func (e *lookupError) decode() error {
	switch {
	case e == nil:
		return nil
	case !e.DNS:
		return errors.New(e.Text)
	}
	return &net.DNSError{Err: e.Text, Name: e.Name, Server: e.Server, IsTimeout: e.Timeout, IsTemporary: e.Temporary, IsNotFound: e.NotFound}
}

// Serve answers the questions of a ResolveIn, of any number at once, by the
// resolver of the process. It returns when in ends.
func Serve(in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var mu sync.Mutex
	lines, encoder := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var q question
		if err := lines.Decode(&q); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("read what to look up: %w", err)
		}
		go func() {
			a := answer{ID: q.ID}
			var err error
			if q.Service != "" {
				a.Port, err = net.DefaultResolver.LookupPort(ctx, "udp", q.Service)
			} else {
				a.Addrs, err = resolver(q.Mark).LookupNetIP(ctx, "ip", q.Host)
			}
			a.Error = encodeError(err)
			mu.Lock()
			defer mu.Unlock()
			_ = encoder.Encode(a) // where nobody listens, in ends too
		}()
	}
}

// ResolveIn is Resolve with the resolver, the hosts and the services of a network
// namespace, "" for our own: the look-ups are done by a child process that
// entered it as proc.Enter says. Lookup and Port of o are not used then.
func ResolveIn(ctx context.Context, ns string, d *confparse.Device, o Options) error {
	todo := false
	for _, p := range d.Peers {
		todo = todo || p.Endpoint != nil && !p.Endpoint.Addr.IsValid()
	}
	if ns == "" || !todo {
		return Resolve(ctx, d, o)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c, err := startChild(ns)
	if err != nil {
		return fmt.Errorf("resolve endpoints in namespace %s: %w", ns, err)
	}
	defer c.stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.lost = func(err error) {
		cancel(fmt.Errorf("resolve endpoints in namespace %s: %w", ns, err))
	}
	go c.listen()
	o.Lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
		a, err := c.ask(ctx, question{Host: host, Mark: o.Mark})
		return a.Addrs, err
	}
	o.Port = func(ctx context.Context, service string) (int, error) {
		a, err := c.ask(ctx, question{Service: service})
		return a.Port, err
	}
	return Resolve(ctx, d, o)
}

// child is the process that looks names up.
type child struct {
	cmd  *exec.Cmd
	in   *os.File // its stdin
	out  *os.File // its stdout
	lost func(error)

	mu      sync.Mutex
	last    int // the id of the last question
	waiting map[int]chan answer
}

func startChild(ns string) (*child, error) {
	if err := proc.CloseOnExec(); err != nil {
		return nil, err
	}
	stdin, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	out, stdout, err := os.Pipe()
	if err != nil {
		in.Close()
		return nil, err
	}
	defer stdout.Close()
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{os.Args[0], Command},
		Stdin: stdin, Stdout: stdout, Stderr: os.Stderr,
		// a signal of the terminal is ours to act on
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}
	if err := proc.Within(ns, cmd.Start); err != nil {
		in.Close()
		out.Close()
		return nil, err
	}
	return &child{cmd: cmd, in: in, out: out, waiting: map[int]chan answer{}}, nil
}

// stop ends the child, which keeps nothing that a kill could harm.
func (c *child) stop() {
	c.in.Close()
	c.cmd.Process.Kill()
	c.cmd.Wait()
	c.out.Close()
}

// listen passes answers on until the child has no more to say.
func (c *child) listen() {
	lines := json.NewDecoder(bufio.NewReader(c.out))
	for {
		var a answer
		if err := lines.Decode(&a); err == io.EOF {
			c.lost(errors.New("the process that looks names up ended"))
			return
		} else if err != nil {
			c.lost(fmt.Errorf("read what was looked up: %w", err))
			return
		}
		c.mu.Lock()
		if to := c.waiting[a.ID]; to != nil {
			to <- a // has room for one
		}
		delete(c.waiting, a.ID)
		c.mu.Unlock()
	}
}

func (c *child) ask(ctx context.Context, q question) (answer, error) {
	to := make(chan answer, 1)
	c.mu.Lock()
	c.last++
	q.ID = c.last
	c.waiting[q.ID] = to
	err := json.NewEncoder(c.in).Encode(q)
	c.mu.Unlock()
	if err != nil {
		c.lost(fmt.Errorf("ask the process that looks names up: %w", err))
		return answer{}, err
	}
	select {
	case a := <-to:
		return a, a.Error.decode()
	case <-ctx.Done():
		return answer{}, ctx.Err()
	}
}
