//go:build faults

package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"wg-quickns/internal/engine"
	"wg-quickns/internal/plan"
)

// inject lets a test break the run at one point, named by WG_QUICKNS_FAULT as
// MODE:N, N counting the steps carried out from 1, undo steps and hooks too, or
// MODE:TEXT, the first whose commands have that text:
//
//	kill-before, kill-after   SIGKILL of this process
//	int-before, int-after     INT, TERM or HUP sent to this process, which then goes on
//	term-before, term-after
//	hup-before, hup-after
//	fail                      the step fails, and is not done
//	lie                       the step is done, and reported failed
//
// With WG_QUICKNS_FAULT=count each step is written to WG_QUICKNS_FAULT_LOG as a line.
func inject(d engine.Doer) engine.Doer {
	mode, number, _ := strings.Cut(os.Getenv("WG_QUICKNS_FAULT"), ":")
	n, err := strconv.Atoi(number)
	f := &faulty{Doer: d, mode: mode, at: n}
	if err != nil {
		f.text = number
	}
	return f
}

type faulty struct {
	engine.Doer
	mode string
	at   int
	text string // "": at

	mu    sync.Mutex
	count int
}

func (f *faulty) Do(ctx context.Context, ns plan.NS, s plan.Step) (plan.Outcome, error) {
	f.mu.Lock()
	f.count++
	if f.text != "" && f.at == 0 && strings.Contains(strings.Join(s.Commands(), "; "), f.text) {
		f.at = f.count
	}
	now := f.count == f.at
	f.mu.Unlock()
	f.log(s)
	if now {
		switch f.mode {
		case "fail":
			return plan.Outcome{}, &plan.StepError{Step: s, Err: syscall.EIO}
		case "kill-before", "int-before", "term-before", "hup-before":
			f.signal(ctx)
		}
	}
	out, err := f.Doer.Do(ctx, ns, s)
	if now && err == nil {
		switch f.mode {
		case "lie":
			return plan.Outcome{}, &plan.StepError{Step: s, Err: syscall.EIO}
		case "kill-after", "int-after", "term-after", "hup-after":
			f.signal(ctx)
		}
	}
	return out, err
}

// signal sends the mode's signal and waits until it is noticed.
func (f *faulty) signal(ctx context.Context) {
	name, _, _ := strings.Cut(f.mode, "-")
	sig := map[string]syscall.Signal{
		"kill": syscall.SIGKILL, "int": syscall.SIGINT, "term": syscall.SIGTERM, "hup": syscall.SIGHUP,
	}[name]
	syscall.Kill(os.Getpid(), sig)
	select {
	case <-ctx.Done():
	case <-time.After(5 * time.Second):
	}
}

func (f *faulty) log(s plan.Step) {
	path := os.Getenv("WG_QUICKNS_FAULT_LOG")
	if path == "" {
		return
	}
	w, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	defer w.Close()
	fmt.Fprintf(w, "%d %s %s\n", f.count, s.Kind(), strings.Join(s.Commands(), "; "))
}
