package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"

	"wg-quickns/internal/plan"
)

// patience is how long a start may take until the unit counts as started: some wait
// for a lease (dhcpcd -w), which may never come. systemd waits on.
const patience = 20 * time.Second

// running says whether systemd is the machine's service manager, as sd_booted(3).
func running() bool {
	_, err := os.Lstat(runtimeUnits)
	return err == nil
}

// How long an answer on D-Bus may take: of systemd, which reads all its units on a
// daemon-reload, and of those who configure interfaces, whom the guard asks too, whose
// watchdog (WatchdogSec=) waits for 10 s.
const (
	systemdAnswers = 90 * time.Second
	othersAnswer   = 8 * time.Second
)

// answered bounds how long another service's answer is waited for.
func answered(ctx context.Context, who string, limit time.Duration, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s does not answer: %w", who, context.DeadlineExceeded))
	defer cancel()
	err := ask(ctx)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// bus is a connection to systemd on which each answer is waited for so long at most.
type bus struct{ *dbus.Conn }

func connect(ctx context.Context) (bus, error) {
	// the connection ends with what it was made with
	whole, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(systemdAnswers, cancel)
	c, err := dbus.NewWithContext(whole)
	if !late.Stop() && ctx.Err() == nil {
		err = errors.New("no answer")
	}
	if err != nil {
		cancel()
		return bus{}, fmt.Errorf("connect to systemd: %w", err)
	}
	return bus{c}, nil
}

func ask[T any](ctx context.Context, question func(context.Context) (T, error)) (answer T, err error) {
	err = answered(ctx, "systemd", systemdAnswers, func(ctx context.Context) (err error) {
		answer, err = question(ctx)
		return err
	})
	return answer, err
}

func (b bus) GetUnitPropertyContext(ctx context.Context, unit, name string) (*dbus.Property, error) {
	return ask(ctx, func(ctx context.Context) (*dbus.Property, error) {
		return b.Conn.GetUnitPropertyContext(ctx, unit, name)
	})
}

func (b bus) GetUnitTypePropertyContext(ctx context.Context, unit, kind, name string) (*dbus.Property, error) {
	return ask(ctx, func(ctx context.Context) (*dbus.Property, error) {
		return b.Conn.GetUnitTypePropertyContext(ctx, unit, kind, name)
	})
}

func (b bus) GetUnitTypePropertiesContext(ctx context.Context, unit, kind string) (map[string]any, error) {
	return ask(ctx, func(ctx context.Context) (map[string]any, error) {
		return b.Conn.GetUnitTypePropertiesContext(ctx, unit, kind)
	})
}

func (b bus) ListUnitsByPatternsContext(ctx context.Context, states, patterns []string) ([]dbus.UnitStatus, error) {
	return ask(ctx, func(ctx context.Context) ([]dbus.UnitStatus, error) {
		return b.Conn.ListUnitsByPatternsContext(ctx, states, patterns)
	})
}

func (b bus) SystemStateContext(ctx context.Context) (*dbus.Property, error) {
	return ask(ctx, b.Conn.SystemStateContext)
}

func (b bus) StartUnitContext(ctx context.Context, name, mode string, done chan<- string) (int, error) {
	return ask(ctx, func(ctx context.Context) (int, error) { return b.Conn.StartUnitContext(ctx, name, mode, done) })
}

func (b bus) StopUnitContext(ctx context.Context, name, mode string, done chan<- string) (int, error) {
	return ask(ctx, func(ctx context.Context) (int, error) { return b.Conn.StopUnitContext(ctx, name, mode, done) })
}

func (b bus) StartTransientUnitContext(ctx context.Context, name, mode string, properties []dbus.Property, done chan<- string) (int, error) {
	return ask(ctx, func(ctx context.Context) (int, error) {
		return b.Conn.StartTransientUnitContext(ctx, name, mode, properties, done)
	})
}

func (b bus) KillUnitWithTarget(ctx context.Context, name string, who dbus.Who, signal int32) error {
	return answered(ctx, "systemd", systemdAnswers, func(ctx context.Context) error {
		return b.Conn.KillUnitWithTarget(ctx, name, who, signal)
	})
}

func (b bus) ResetFailedUnitContext(ctx context.Context, name string) error {
	return answered(ctx, "systemd", systemdAnswers, func(ctx context.Context) error { return b.Conn.ResetFailedUnitContext(ctx, name) })
}

func (b bus) ReloadContext(ctx context.Context) error {
	return answered(ctx, "systemd", systemdAnswers, b.Conn.ReloadContext)
}

// started says whether a unit is active, or about to be.
func started(ctx context.Context, c bus, unit string) (bool, error) {
	p, err := c.GetUnitPropertyContext(ctx, unit, "ActiveState")
	if err != nil {
		return false, fmt.Errorf("ask systemd for %s: %w", unit, err)
	}
	switch p.Value.Value() {
	case "active", "activating", "reloading", "refreshing":
		return true, nil
	}
	return false, nil
}

// list is a property of a unit that is a list of units.
func list(ctx context.Context, c bus, unit, property string) ([]string, error) {
	p, err := c.GetUnitPropertyContext(ctx, unit, property)
	if err != nil {
		return nil, fmt.Errorf("ask systemd for %s of %s: %w", property, unit, err)
	}
	names, _ := p.Value.Value().([]string)
	return names, nil
}

// sockets are the units that start a service when somebody talks to them.
func sockets(ctx context.Context, c bus, unit string) ([]string, error) {
	names, err := list(ctx, c, unit, "TriggeredBy")
	return slices.DeleteFunc(names, func(n string) bool { return !strings.HasSuffix(n, ".socket") }), err
}

func existsService(ctx context.Context, s plan.Service) (bool, error) {
	c, err := connect(ctx)
	if err != nil {
		return false, err
	}
	defer c.Close()
	return started(ctx, c, s.Unit)
}

func doService(ctx context.Context, s plan.Service) error {
	c, err := connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if s.Start {
		return start(ctx, c, s.Unit)
	}
	return stop(ctx, c, s.Unit)
}

// ending says whether the machine goes down. systemd then starts nothing any more, the
// next boot does that; and its jobs may be ordered behind the stop of the service that
// we are, so that none can be waited for.
func ending(ctx context.Context, c bus) bool {
	state, err := c.SystemStateContext(ctx)
	return err == nil && state.Value.Value() == "stopping"
}

func start(ctx context.Context, c bus, unit string) error {
	if ending(ctx, c) {
		return nil
	}
	p, err := c.GetUnitPropertyContext(ctx, unit, "NeedDaemonReload")
	if err != nil {
		return fmt.Errorf("ask systemd for %s: %w", unit, err)
	}
	if p.Value.Value() == true {
		if err := reload(ctx, c); err != nil {
			return err
		}
	}
	if bound, err := devices(ctx, c, unit); err != nil {
		return err
	} else if bound {
		settle(ctx)
	}
	// it may have been started often lately; one that is not loaded cannot have failed
	_ = c.ResetFailedUnitContext(ctx, unit)
	result := "canceled"
	for range 3 { // another job may come between
		done := make(chan string, 1)
		if _, err := c.StartUnitContext(ctx, unit, "replace", done); err != nil {
			return fmt.Errorf("start %s: %w", unit, err)
		}
		wait := time.NewTimer(patience)
		defer wait.Stop()
		select {
		case result = <-done:
		case <-wait.C:
			result = "done"
		case <-ctx.Done():
			result = "done" // the job goes on without us
		}
		if result != "canceled" {
			break
		}
	}
	if result != "done" && result != "skipped" {
		return fmt.Errorf("start %s: %s (hint: journalctl -u %s)", unit, result, unit)
	}
	return nil
}

// kill ends the processes of a unit, and leaves it to systemd to see that.
func kill(ctx context.Context, c bus, unit string) error {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		_ = c.KillUnitWithTarget(ctx, unit, dbus.All, int32(signal)) // it has no process any more, or that is seen below
		for until := time.Now().Add(mercy); time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
			if left, err := processesOf(ctx, c, unit); err != nil || len(left) == 0 {
				return err
			}
		}
	}
	return fmt.Errorf("kill %s: it does not end", unit)
}

func stop(ctx context.Context, c bus, unit string) error {
	if ending(ctx, c) {
		return kill(ctx, c, unit)
	}
	units, err := sockets(ctx, c, unit)
	if err != nil {
		return err
	}
	// those that would start it again first
	for _, u := range append(units, unit) {
		done := make(chan string, 1)
		_, err := c.StopUnitContext(ctx, u, "replace", done)
		if known := (godbus.Error{}); errors.As(err, &known) && known.Name == "org.freedesktop.systemd1.NoSuchUnit" {
			continue
		} else if err != nil {
			return fmt.Errorf("stop %s: %w", u, err)
		}
		select {
		case result := <-done:
			if result != "done" && result != "skipped" {
				return fmt.Errorf("stop %s: %s (hint: journalctl -u %s)", u, result, u)
			}
		case <-ctx.Done():
			return fmt.Errorf("stop %s: %w", u, context.Cause(ctx))
		}
	}
	files, err := drops(unit)
	if err != nil {
		return err
	}
	late := false
	for _, file := range files {
		if to, is := strings.CutSuffix(file, staged); is {
			if err := os.Rename(file, to); err != nil {
				return err
			}
			late = true
		}
	}
	if !late {
		return nil
	}
	// A stopped unit may be forgotten and read again, by what systemd knew of its
	// folders before: NeedDaemonReload does not tell then.
	return reload(ctx, c)
}

// devices says whether a unit is bound to a device, and so stops when that goes.
func devices(ctx context.Context, c bus, unit string) (bool, error) {
	for _, property := range []string{"BindsTo", "Requires", "Requisite"} {
		names, err := list(ctx, c, unit, property)
		if err != nil || slices.ContainsFunc(names, device) {
			return err == nil, err
		}
	}
	return false, nil
}

// settle waits until udev knows what interfaces there are: until then systemd may take
// one that has just come home for gone. See udevadm(8).
func settle(ctx context.Context) {
	// where there is no udev there are no devices to wait for
	_ = exec.CommandContext(ctx, "udevadm", "settle", "--timeout=5").Run()
}

func device(name string) bool { return strings.HasSuffix(name, ".device") }
