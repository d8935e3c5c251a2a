package netns

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// bus asks systemd over D-Bus.
type bus struct{}

// otherUnits are the types of units that have no main process.
var otherUnits = []string{".socket", ".target", ".device", ".mount", ".automount", ".swap", ".timer", ".path", ".slice", ".scope"}

// unitName adds the type as systemctl(1) does, and refuses other types.
func unitName(name string) (string, error) {
	switch suffix := path.Ext(name); {
	case suffix == ".service":
		return name, nil
	case slices.Contains(otherUnits, suffix):
		return "", fmt.Errorf("only a .service has a main process, a %s has none", suffix)
	}
	return name + ".service", nil
}

// unit is the main process of a service (org.freedesktop.systemd1(5), MainPID).
func (bus) unit(ctx context.Context, name string) (int, error) {
	name, err := unitName(name)
	if err != nil {
		return 0, err
	}
	c, err := dbus.NewWithContext(ctx)
	if err != nil {
		return 0, fmt.Errorf("connect to systemd: %w", err)
	}
	defer c.Close()
	u, err := c.GetUnitPropertiesContext(ctx, name)
	if err != nil {
		return 0, fmt.Errorf("ask systemd: %w", err)
	}
	s, err := c.GetUnitTypePropertiesContext(ctx, name, "Service")
	if err != nil {
		return 0, fmt.Errorf("ask systemd: %w", err)
	}
	return mainPID(u, s)
}

func mainPID(unit, service map[string]any) (int, error) {
	load, _ := unit["LoadState"].(string)
	active, _ := unit["ActiveState"].(string)
	pid, _ := service["MainPID"].(uint32)
	switch {
	case load == "not-found":
		return 0, errors.New("there is no such unit")
	case active == "inactive" || active == "failed":
		return 0, fmt.Errorf("the unit is %s (hint: systemctl start it first)", active)
	case pid == 0:
		return 0, fmt.Errorf("the unit is %s but has no main process", active)
	}
	return int(pid), nil
}

// machine is the first process of a machine (org.freedesktop.machine1(5), Leader).
func (bus) machine(ctx context.Context, name string) (int, error) {
	c, err := godbus.ConnectSystemBus(godbus.WithContext(ctx))
	if err != nil {
		return 0, fmt.Errorf("connect to the system bus: %w", err)
	}
	defer c.Close()
	const service = "org.freedesktop.machine1"
	var object godbus.ObjectPath
	err = c.Object(service, "/org/freedesktop/machine1").CallWithContext(ctx, service+".Manager.GetMachine", 0, name).Store(&object)
	if err != nil {
		return 0, fmt.Errorf("ask systemd-machined: %w", err)
	}
	var leader godbus.Variant
	err = c.Object(service, object).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, service+".Machine", "Leader").Store(&leader)
	if err != nil {
		return 0, fmt.Errorf("ask systemd-machined: %w", err)
	}
	pid, ok := leader.Value().(uint32)
	if !ok || pid == 0 {
		return 0, errors.New("the machine has no leader")
	}
	return int(pid), nil
}
