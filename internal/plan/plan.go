// Package plan holds a tunnel as data: a list of reversible steps. It knows no
// kernel; what carries a step out is a Doer of the engine.
package plan

import (
	"encoding/json"
	"fmt"
)

// NS names the network namespace a step acts in: "" is the one the command was
// started in, anything else is a path that opens it.
type NS string

// Step is one change of the system, or the undoing of one, as data.
type Step interface {
	// Kind names the step in the journal and chooses its Doer.
	Kind() string
	// Commands is what the step does as ip(8), wg(8), nft(8), sysctl(8) or
	// resolvconf(8) command lines, in wg-quick's own words, one per change.
	Commands() []string
}

// Action is a step in its place: where, how it is undone, and why it is there.
type Action struct {
	NS   NS
	Do   Step
	Undo []Step // in the order of undoing; empty where it goes with the link
	Why  string
}

// Plan is what `up` does, in order.
type Plan struct {
	Interface, Strategy string
	Actions             []Action
}

// Outcome is what doing a step found out: undo steps with the identity of what
// was made (ifindex, handle, old value), to replace the planned ones. Nil keeps those.
type Outcome struct {
	Undo []Step
}

// StepError is a step that failed. Index says which of its Commands, from 0.
type StepError struct {
	Step  Step
	Index int
	Err   error
}

func (e *StepError) Error() string {
	if kind := e.Step.Kind(); kind == KindHook || kind == KindDNS {
		return e.Err.Error() // which names the command
	}
	if c := e.Step.Commands(); e.Index < len(c) {
		return fmt.Sprintf("%s: %v", c[e.Index], e.Err)
	}
	return fmt.Sprintf("%s: %v", e.Step.Kind(), e.Err)
}

func (e *StepError) Unwrap() error { return e.Err }

type encoded struct {
	Kind string          `json:"kind"`
	Step json.RawMessage `json:"step"`
}

// Encode writes steps as JSON for the journal. Fields that could hold a key are
// not encoded.
func Encode(steps []Step) (json.RawMessage, error) {
	// By hand, as json.Marshal would scan each step's text a second time.
	out := []byte{'['}
	for i, s := range steps {
		raw, err := json.Marshal(s)
		if err != nil {
			return nil, fmt.Errorf("encode step %s: %w", s.Kind(), err)
		}
		if i > 0 {
			out = append(out, ',')
		}
		out = fmt.Appendf(out, `{"kind":%q,"step":%s}`, s.Kind(), raw)
	}
	return append(out, ']'), nil
}

// Decode reads what Encode wrote. A kind it does not know is an error: a newer
// version wrote it, and guessing would undo the wrong thing.
func Decode(raw json.RawMessage) ([]Step, error) {
	var list []encoded
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("decode steps: %w", err)
	}
	steps := make([]Step, len(list))
	for i, e := range list {
		s, err := decode(e)
		if err != nil {
			return nil, fmt.Errorf("decode step %s: %w", e.Kind, err)
		}
		steps[i] = s
	}
	return steps, nil
}

func decode(e encoded) (Step, error) {
	switch e.Kind {
	case KindLink:
		return into[Link](e.Step)
	case KindLinkUp:
		return into[LinkUp](e.Step)
	case KindAddr:
		return into[Addr](e.Step)
	case KindRoute:
		return into[Route](e.Step)
	case KindRule:
		return into[Rule](e.Step)
	case KindWG:
		return into[WG](e.Step)
	case KindFwMark:
		return into[FwMark](e.Step)
	case KindNft:
		return into[Nft](e.Step)
	case KindSysctl:
		return into[Sysctl](e.Step)
	case KindDNS:
		return into[DNS](e.Step)
	case KindHook:
		return into[Hook](e.Step)
	case KindNetns:
		return into[Netns](e.Step)
	case KindResolv:
		return into[Resolv](e.Step)
	case KindVia:
		return into[Via](e.Step)
	case KindKillSwitch:
		return into[KillSwitch](e.Step)
	case KindHold:
		return into[Hold](e.Step)
	case KindMove:
		return into[Move](e.Step)
	case KindSettle:
		return into[Settle](e.Step)
	case KindTwin:
		return into[Twin](e.Step)
	case KindViews:
		return into[Views](e.Step)
	case KindConfine:
		return into[Confine](e.Step)
	case KindService:
		return into[Service](e.Step)
	case KindClient:
		return into[Client](e.Step)
	}
	return nil, fmt.Errorf("unknown kind")
}

func into[S Step](raw json.RawMessage) (Step, error) {
	var s S
	err := json.Unmarshal(raw, &s)
	return s, err
}
