package engine

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"time"
)

// What of the guard is a matter of time alone is here: when to look, when to ask for a
// name, when to give in. The clock is the caller's.

const (
	// pause is how much longer than a check in vain took the guard waits before the next
	// one, so that it never takes more than a tenth of a CPU for nothing; at most pauseMost.
	pause     = 10
	pauseMost = 300 * time.Millisecond
	// checkRetry is when a check that failed is made again; then ever later.
	checkRetry = 100 * time.Millisecond
	// handshakeAge is when a name is looked up again: WireGuard has then given up
	// (REJECT_AFTER_TIME of 180 s less its retries; wg's own reresolve-dns.sh has this number).
	handshakeAge = 135 * time.Second
	// A name that is looked up in vain is looked up again ever later.
	firstRetry, lastRetry = 5 * time.Second, 5 * time.Minute
	// The same repair is done so often in so long; then somebody else wants it otherwise, or
	// a link flaps. It is left alone, at first for a short time only, as links stop flapping.
	fightCount, fightTime, firstTruce, lastTruce = 10, 10 * time.Second, 5 * time.Second, time.Minute
	// stepMost is what a step may take, of which restarting a network's services take
	// longest, before the guard counts as dead.
	stepMost = 2 * time.Minute
)

// Pause is how long the guard rests after a look that took so long, and in which it
// repaired something (whoever undid that may not be done yet) or not.
func Pause(took time.Duration, worked bool) time.Duration {
	if worked {
		return min(took, pauseMost)
	}
	return min(pause*took, pauseMost)
}

// Retry is when a look that failed is made again; before it so many failed in a row.
func Retry(failed int) time.Duration { return min(checkRetry<<min(failed, 10), firstRetry) }

// Wait is when to look again though nothing changed: when a name is to be looked up or
// a truce ends. 0: never.
func Wait(now time.Time, names Names, fights Fights) time.Duration {
	var wait time.Duration
	soon := func(d time.Duration) {
		if d = max(d, 10*time.Millisecond); wait == 0 || d < wait {
			wait = d
		}
	}
	for _, r := range names {
		if !r.asked {
			soon(r.at.Sub(now))
		}
	}
	for _, f := range fights {
		if left := f.until.Sub(now); left > 0 {
			soon(left)
		}
	}
	return wait
}

// Peer is a peer whose endpoint is given by a name.
type Peer struct {
	Key       [32]byte
	Name      string         // HOST:PORT
	Endpoint  netip.AddrPort // that it has; zero: none
	Handshake time.Time      // the last one; zero: none
}

// Question is a peer's name to be looked up.
type Question struct {
	Peer [32]byte
	Name string
}

// Answer is where a name leads.
type Answer struct {
	Question
	To  netip.AddrPort
	Err error // there is no To
}

// Names knows of each peer when its name is to be looked up: when it has not answered for
// long, and then ever less often.
type Names map[[32]byte]retry

type retry struct {
	name  string
	at    time.Time
	wait  time.Duration
	asked bool // the answer is still to come
}

// Look takes in what the peers are, and forgets those that are none any more. It says
// what to ask for now, and which of the answers are still to be followed: their peers
// are silent, elsewhere, and still have that name.
func (n Names) Look(now time.Time, peers []Peer, answers []Answer) (ask []Question, follow []Answer) {
	seen := make(map[[32]byte]bool, len(peers))
	for _, p := range peers {
		seen[p.Key] = true
		r := n[p.Key]
		if r.name != p.Name {
			r = retry{name: p.Name}
		}
		q := Question{p.Key, p.Name}
		if due := p.Handshake.Add(handshakeAge); due.After(now) {
			r.at, r.wait = due, 0
		} else {
			if !r.asked && (r.wait == 0 || !r.at.After(now)) {
				r.wait, r.asked = min(max(firstRetry, 2*r.wait), lastRetry), true
				ask = append(ask, q)
			}
			i := slices.IndexFunc(answers, func(a Answer) bool { return a.Question == q })
			if i >= 0 && answers[i].To != p.Endpoint {
				follow = append(follow, answers[i])
			}
		}
		n[p.Key] = r
	}
	for key := range n {
		if !seen[key] {
			delete(n, key)
		}
	}
	return ask, follow
}

// Answered notes that an answer has come, with or without an address, and says whether
// the question still stands: a peer may have another name by then.
func (n Names) Answered(now time.Time, q Question) bool {
	r, ok := n[q.Peer]
	if !ok || r.name != q.Name {
		return false
	}
	r.asked, r.at = false, now.Add(r.wait)
	n[q.Peer] = r
	return true
}

// Fights knows which repairs somebody undoes again and again.
type Fights map[string]fight

type fight struct {
	at    []time.Time
	truce time.Duration
	until time.Time
}

// Try says whether a repair is to be done now, and if not any more from now on, for how
// long it is left alone; 0: it has been said.
func (f Fights) Try(now time.Time, repair string) (do bool, truce time.Duration) {
	one := f[repair]
	if now.Before(one.until) {
		return false, 0
	}
	one.at = slices.DeleteFunc(one.at, func(t time.Time) bool { return now.Sub(t) > fightTime })
	one.at = append(one.at, now)
	if len(one.at) > fightCount {
		one.truce = min(max(firstTruce, 2*one.truce), lastTruce)
		one.at, one.until = nil, now.Add(one.truce)
		truce = one.truce
	}
	f[repair] = one
	return now.After(one.until), truce
}

// Forget drops the fights that are over.
func (f Fights) Forget(now time.Time) {
	for key, one := range f {
		if now.Sub(one.until) > fightTime && (len(one.at) == 0 || now.Sub(one.at[len(one.at)-1]) > fightTime) {
			delete(f, key)
		}
	}
}

// Pulse says whether the guard lives: it waits for others, or has been at a step for no
// longer than one may take. Works and Rests are one goroutine's, Lives is another's.
type Pulse struct{ since atomic.Pointer[time.Time] } // when the step began; nil: it waits

// Works notes that a step begins.
func (p *Pulse) Works(now time.Time) { p.since.Store(&now) }

// Rests notes that others are waited for.
func (p *Pulse) Rests() { p.since.Store(nil) }

// Lives says whether the guard gets on.
func (p *Pulse) Lives(now time.Time) bool {
	since := p.since.Load()
	return since == nil || now.Sub(*since) < stepMost
}
