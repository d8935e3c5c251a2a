package kernel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"wg-quickns/internal/netns"
	"wg-quickns/internal/plan"
)

// leaveWait is how long a namespace that is to be deleted waits for the last
// processes in it to end; the program that served the interface may take endWait.
const leaveWait = 500 * time.Millisecond

// hasNetns says whether the named namespace is there, for a deleting step the
// one that it means. A file there that is no namespace is an error.
func hasNetns(ctx context.Context, s plan.Netns) (bool, error) {
	if s.Delete {
		return netns.Is(s.Name, s.ID)
	}
	found, err := netns.Find(ctx, netns.Name, s.Name)
	return err == nil && !found.Missing, err
}

// netns makes or deletes a named namespace. One that is another than the step
// means stays: the one that was made is gone.
func (d *Doer) netns(ctx context.Context, s plan.Netns) (out plan.Outcome, err error) {
	if !s.Delete {
		id, err := netns.Create(ctx, s.Name)
		if err != nil {
			return out, err
		}
		out.Undo = []plan.Step{plan.Netns{Name: s.Name, Delete: true, ID: id}}
		return out, nil
	}
	// An open file of ours would keep it alive, whatever its name here.
	if id, err := netns.Identify(string(plan.Named(s.Name))); err == nil {
		if err := d.forget(id); err != nil {
			return out, err
		}
	}
	// What a hook or the link's deletion just ended may take a moment: the program
	// that served the interface is one.
	begin := time.Now()
	_, waiting := until(ctx, endWait, func() (bool, error) {
		err = netns.Delete(ctx, s.Name, s.ID)
		busy := (*netns.BusyError)(nil)
		if !errors.As(err, &busy) {
			return true, nil
		}
		others := slices.ContainsFunc(busy.Processes, func(p netns.Process) bool { return p.Name != "wg-quickns" && p.Name != "wireguard-go" })
		return others && time.Since(begin) > leaveWait, nil
	})
	err = errors.Join(err, waiting)
	if other := (*netns.OtherError)(nil); errors.As(err, &other) {
		err = nil
	}
	return out, err
}

// forget closes what is open in a namespace.
func (d *Doer) forget(id netns.ID) error {
	for name, sp := range d.spaces {
		var st unix.Stat_t
		if err := unix.Fstat(int(sp.ns.Fd()), &st); err != nil {
			return fmt.Errorf("look at %s: %w", sp.ns.Name(), err)
		}
		if uint64(st.Dev) == id.Dev && st.Ino == id.Inode {
			delete(d.spaces, name)
			if err := sp.close(); err != nil {
				return fmt.Errorf("close what is open in %s: %w", sp.ns.Name(), err)
			}
		}
	}
	return nil
}

// sameAs says whether two are one namespace.
func (sp *space) sameAs(other *space) (bool, error) {
	if sp == other {
		return true, nil
	}
	var a, b unix.Stat_t
	if err := errors.Join(unix.Fstat(int(sp.ns.Fd()), &a), unix.Fstat(int(other.ns.Fd()), &b)); err != nil {
		return false, fmt.Errorf("compare namespaces: %w", err)
	}
	return a.Dev == b.Dev && a.Ino == b.Ino, nil
}
