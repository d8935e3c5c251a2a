package engine_test

import (
	"errors"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"wg-quickns/internal/engine"
)

// start is when the clock of a test begins.
var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func after(d time.Duration) time.Time { return start.Add(d) }

// TestNames: names are asked for when their peers are silent, ever less often, and what
// they lead to is followed only while that is wanted.
func TestNames(t *testing.T) {
	old, fresh := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:1")
	peer := func(name string, at netip.AddrPort, handshake time.Duration) engine.Peer {
		p := engine.Peer{Key: [32]byte{1}, Name: name, Endpoint: at}
		if handshake != 0 {
			p.Handshake = after(handshake)
		}
		return p
	}
	silent := peer("a", old, 0)
	a, b := engine.Question{Peer: silent.Key, Name: "a"}, engine.Question{Peer: silent.Key, Name: "b"}
	to := func(q engine.Question) []engine.Answer { return []engine.Answer{{Question: q, To: fresh}} }
	type step struct {
		at     time.Duration
		peers  []engine.Peer
		got    []engine.Answer // that came before the look
		ask    []engine.Question
		follow []engine.Answer
		wait   time.Duration
	}
	only := func(p engine.Peer) []engine.Peer { return []engine.Peer{p} }
	in := func(q engine.Question) []engine.Question { return []engine.Question{q} }
	for name, steps := range map[string][]step{
		"one that never answered is asked for at once, and once": {
			{at: 0, peers: only(silent), ask: in(a)},
			{at: time.Second, peers: only(silent)},
			{at: time.Hour, peers: only(silent)},
		},
		"one that answers is asked for when it has been silent for long": {
			{at: 0, peers: only(peer("a", old, -time.Second)), wait: 134 * time.Second},
			{at: 133 * time.Second, peers: only(peer("a", old, -time.Second)), wait: time.Second},
			{at: 134 * time.Second, peers: only(peer("a", old, -time.Second)), ask: in(a)},
		},
		"one that was taken away and came again has no handshake any more": {
			{at: 0, peers: only(peer("a", old, -time.Second)), wait: 134 * time.Second},
			{at: time.Second, peers: only(silent), ask: in(a)},
		},
		"in vain": {
			{at: 0, peers: only(silent), ask: in(a)},
			{at: 4 * time.Second, peers: only(silent), got: []engine.Answer{{Question: a, Err: errors.New("none")}}, wait: 5 * time.Second},
			{at: 8 * time.Second, peers: only(silent), wait: time.Second},
			{at: 9 * time.Second, peers: only(silent), ask: in(a)},
			{at: 10 * time.Second, peers: only(silent), got: []engine.Answer{{Question: a, To: old}}, wait: 10 * time.Second},
			{at: 20 * time.Second, peers: only(silent), ask: in(a)},
			{at: 20 * time.Second, peers: only(peer("a", old, 15*time.Second)), got: []engine.Answer{{Question: a, To: old}}, wait: 130 * time.Second},
			{at: 150 * time.Second, peers: only(peer("a", old, 15*time.Second)), ask: in(a)},
			{at: 150 * time.Second, peers: only(peer("a", old, 15*time.Second)), got: []engine.Answer{{Question: a, To: old}}, wait: 5 * time.Second},
		},
		"it leads elsewhere": {
			{at: 0, peers: only(silent), ask: in(a)},
			{at: time.Second, peers: only(silent), got: to(a), follow: to(a), wait: 5 * time.Second},
		},
		"it leads elsewhere, but the peer has answered meanwhile": {
			{at: 0, peers: only(silent), ask: in(a)},
			{at: time.Second, peers: only(peer("a", old, time.Second)), got: to(a), wait: 135 * time.Second},
		},
		"a reload has another name": {
			{at: 0, peers: only(silent), ask: in(a)},
			{at: time.Second, peers: only(peer("b", old, 0)), ask: in(b)},
			{at: 2 * time.Second, peers: only(peer("b", old, 0)), got: to(a)},
			{at: 3 * time.Second, peers: only(peer("b", old, 0)), got: to(b), follow: to(b), wait: 5 * time.Second},
		},
		"a reload has another name, after the answer": {
			{at: 0, peers: only(silent), ask: in(a)},
			{at: time.Second, peers: only(peer("b", old, 0)), got: to(a), ask: in(b)},
		},
		"a peer that was taken away": {
			{at: 0, peers: only(silent), ask: in(a)},
			{at: time.Second},
			{at: 2 * time.Second, got: to(a)},
			{at: 3 * time.Second, peers: only(silent), ask: in(a)},
		},
	} {
		names := make(engine.Names)
		for _, s := range steps {
			now := after(s.at)
			var known []engine.Answer
			for _, g := range s.got {
				if names.Answered(now, g.Question) && g.Err == nil {
					known = append(known, g)
				}
			}
			ask, follow := names.Look(now, s.peers, known)
			wait := engine.Wait(now, names, nil)
			if !reflect.DeepEqual(ask, s.ask) || !reflect.DeepEqual(follow, s.follow) || wait != s.wait {
				t.Errorf("%s, after %v:\nask %v, follow %v, wait %v; not\nask %v, follow %v, wait %v", name, s.at, ask, follow, wait, s.ask, s.follow, s.wait)
			}
		}
	}
}

// TestNamesSeldom: a name that leads nowhere is asked for every 5 minutes in the end.
func TestNamesSeldom(t *testing.T) {
	names, peers := make(engine.Names), []engine.Peer{{Name: "a"}}
	now := start
	var waits []time.Duration
	for range 9 {
		ask, _ := names.Look(now, peers, nil)
		if len(ask) != 1 {
			t.Fatalf("after %v it is not asked for", now.Sub(start))
		}
		names.Answered(now, ask[0])
		wait := engine.Wait(now, names, nil)
		waits, now = append(waits, wait/time.Second), now.Add(wait)
	}
	if want := []time.Duration{5, 10, 20, 40, 80, 160, 300, 300, 300}; !reflect.DeepEqual(waits, want) {
		t.Errorf("after %d seconds, not %d", waits, want)
	}
}

// TestFights: what is undone more than 10 times in 10 seconds is left alone, for longer
// each time; what is not is no fight, and one that is over is forgotten.
func TestFights(t *testing.T) {
	fights := make(engine.Fights)
	now := start
	// fight tries often until there is a truce
	fight := func() (done int, truce time.Duration) {
		for range 100 {
			var do bool
			if do, truce = fights.Try(now, "route"); do {
				done++
			}
			if truce > 0 {
				return done, truce
			}
			now = now.Add(time.Millisecond)
		}
		return done, 0
	}
	for _, want := range []time.Duration{5, 10, 20, 40, 60, 60} {
		done, truce := fight()
		if done != 10 || truce != want*time.Second {
			t.Fatalf("%d repairs, then %v, not %d s", done, truce, want)
		}
		now = now.Add(truce - time.Millisecond)
		if do, said := fights.Try(now, "route"); do || said != 0 {
			t.Errorf("before the end of %v: %v, and %v is said", truce, do, said)
		}
		if do, _ := fights.Try(now, "another route"); !do {
			t.Error("another repair is not done")
		}
		fights.Forget(now)
		if wait := engine.Wait(now, nil, fights); wait != 10*time.Millisecond { // that much at least
			t.Errorf("1 ms before the end of a truce: wait %v", wait)
		}
		now = now.Add(2 * time.Millisecond)
		if wait := engine.Wait(now, nil, fights); wait != 0 {
			t.Errorf("after the end of a truce: wait %v", wait)
		}
	}
	now = now.Add(10 * time.Second)
	fights.Forget(now)
	if len(fights) != 0 || engine.Wait(now, nil, fights) != 0 {
		t.Errorf("when it is over there is still %v", fights)
	}
	if done, truce := fight(); done != 10 || truce != 5*time.Second {
		t.Errorf("long after: %d repairs, then %v", done, truce)
	}
	for range 50 {
		now = now.Add(1100 * time.Millisecond)
		if do, truce := fights.Try(now, "now and then"); !do || truce != 0 {
			t.Fatalf("now and then: %v, %v", do, truce)
		}
	}
}

// TestPace: a look costs a tenth of the time at most, and one that failed is made again
// ever later.
func TestPace(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		took   time.Duration
		worked bool
		want   time.Duration
	}{{2 * ms, false, 20 * ms}, {2 * ms, true, 2 * ms}, {time.Second, false, 300 * ms}, {time.Second, true, 300 * ms}} {
		if got := engine.Pause(c.took, c.worked); got != c.want {
			t.Errorf("after %v (worked: %v) %v, not %v", c.took, c.worked, got, c.want)
		}
	}
	var waits []time.Duration
	for failed := range 7 {
		waits = append(waits, engine.Retry(failed)/ms)
	}
	if want := []time.Duration{100, 200, 400, 800, 1600, 3200, 5000}; !reflect.DeepEqual(waits, want) {
		t.Errorf("after %d ms, not %d", waits, want)
	}
	if last := engine.Retry(1 << 30); last != 5*time.Second {
		t.Errorf("in the end after %v", last)
	}
}

// TestPulse: a guard that waits for others lives, and one that is at a step for too long
// does not.
func TestPulse(t *testing.T) {
	var p engine.Pulse
	lives := func(at time.Duration, want bool) {
		t.Helper()
		if p.Lives(after(at)) != want {
			t.Errorf("after %v it lives: %v", at, !want)
		}
	}
	lives(time.Hour, true)
	p.Works(start)
	lives(time.Minute, true)
	lives(2*time.Minute, false)
	p.Works(after(time.Minute)) // the next step
	lives(2*time.Minute, true)
	lives(3*time.Minute, false)
	p.Rests()
	lives(time.Hour, true)
}
