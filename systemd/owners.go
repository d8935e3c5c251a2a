package systemd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/unit"
	godbus "github.com/godbus/dbus/v5"

	"wg-quickns/internal/facts"
	"wg-quickns/internal/netns"
)

// perInterface are the templates whose instance is an interface, and everyInterface
// the services that configure what comes, without a process that says which.
var (
	perInterface   = []string{"wpa_supplicant", "wpa_supplicant-wired", "wpa_supplicant-nl80211", "hostapd", "dhcpcd", "dhclient", "ifup"}
	everyInterface = []string{"wpa_supplicant.service", "iwd.service", "dhcpcd.service", manager, networkd}
)

// Owners finds who configures interfaces of the network namespace home ("": the
// caller's), in the order in which they are started: supplicants before those who
// need a link. It finds active systemd units by their names, by what NetworkManager
// and systemd-networkd say on D-Bus, and by the control group of their processes;
// and the processes of DHCP clients and supplicants that no unit has. Without
// systemd there are only these. all are the names of the interfaces in home.
//
// left says of each process that goes by the name of one of them, for one of the
// interfaces, and is not taken, why. One that is root's and could not be started again
// is an error.
func Owners(ctx context.Context, home string, links []facts.Interface, all []string) (list []facts.Owner, left []string, err error) {
	f := finder{ctx: ctx, home: home, all: all, limit: othersAnswer}
	for _, l := range links {
		f.links = append(f.links, l.Name)
		if l.Phy != nil {
			f.wireless = append(f.wireless, l.Name)
		}
	}
	if err := f.find(); err != nil {
		return nil, nil, fmt.Errorf("find who configures %s: %w", strings.Join(f.links, ", "), err)
	}
	return f.owners, f.left, nil
}

// Units are the owners that the user names, for all of the interfaces. Each must be
// loaded, but need not be active.
func Units(ctx context.Context, names, links []string) ([]facts.Owner, error) {
	c, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var list []facts.Owner
	for _, name := range names {
		switch path.Ext(name) {
		case ".service":
		default:
			name += ".service"
		}
		p, err := c.GetUnitPropertyContext(ctx, name, "LoadState")
		if err != nil {
			return nil, fmt.Errorf("ask systemd for %s: %w", name, err)
		}
		if state := p.Value.Value(); state != "loaded" {
			return nil, fmt.Errorf("systemd unit %s is %v (hint: systemctl list-units --type=service lists those there are)", name, state)
		}
		list = append(list, facts.Owner{Unit: name, Links: links, Addresses: addresses(name)})
	}
	inOrder(list)
	return list, nil
}

// finder gathers owners.
type finder struct {
	ctx      context.Context
	home     string
	links    []string
	wireless []string // of links
	all      []string
	limit    time.Duration // for the answers of one service, systemd apart
	bus      *bus          // nil: there is no systemd
	owners   []facts.Owner
	left     []string
}

func (f *finder) find() error {
	if running() {
		c, err := connect(f.ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		f.bus = &c
		if err := f.units(); err != nil {
			return err
		}
	}
	if err := f.processes(); err != nil {
		return err
	}
	inOrder(f.owners)
	return nil
}

// inOrder puts those who give a link before those who need one.
func inOrder(list []facts.Owner) {
	rank := func(o facts.Owner) int {
		if o.Addresses {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(list, func(a, b facts.Owner) int { return rank(a) - rank(b) })
}

// add notes an owner of interfaces, each once.
func (f *finder) add(o facts.Owner) {
	for i := range f.owners {
		have := &f.owners[i]
		same := o.Unit != "" && have.Unit == o.Unit
		if o.Client != nil && have.Client != nil { // a fork that has not become its script yet
			same = have.Client.Exe == o.Client.Exe && slices.Equal(have.Client.Args, o.Client.Args)
		}
		if same {
			for _, l := range o.Links {
				if !slices.Contains(have.Links, l) {
					have.Links = append(have.Links, l)
				}
			}
			return
		}
	}
	f.owners = append(f.owners, o)
}

// units finds the active units that configure a link.
func (f *finder) units() error {
	var patterns []string
	for _, name := range perInterface {
		patterns = append(patterns, name+"@*.service")
	}
	patterns = append(patterns, everyInterface...)
	active, err := f.bus.ListUnitsByPatternsContext(f.ctx, []string{"active", "activating", "reloading"}, patterns)
	if err != nil {
		return fmt.Errorf("ask systemd: %w", err)
	}
	for _, u := range active {
		here, err := f.inHome(u.Name)
		if err != nil {
			return err
		}
		if !here {
			continue
		}
		links, err := f.linksOf(u.Name)
		if err != nil {
			return err
		}
		if len(links) > 0 {
			f.add(facts.Owner{Unit: u.Name, Links: links, Addresses: addresses(u.Name)})
		}
	}
	return nil
}

// inHome says whether a unit works in the namespace: its main process is there; one
// that has none works where PID 1 is.
func (f *finder) inHome(unit string) (bool, error) {
	p, err := f.bus.GetUnitTypePropertyContext(f.ctx, unit, "Service", "MainPID")
	if err != nil {
		return false, fmt.Errorf("ask systemd for %s: %w", unit, err)
	}
	pid, _ := p.Value.Value().(uint32)
	if pid == 0 {
		pid = 1
	}
	home, err := netns.Identify(f.home)
	if err != nil {
		return false, err
	}
	its, err := netns.Identify(fmt.Sprintf("/proc/%d/ns/net", pid))
	if errors.Is(err, fs.ErrNotExist) { // it ends
		return false, nil
	}
	return its == home, err
}

// linksOf are the asked interfaces that an active unit configures.
func (f *finder) linksOf(name string) ([]string, error) {
	if _, instance, is := strings.Cut(strings.TrimSuffix(name, ".service"), "@"); is {
		return f.among(unit.UnitNameUnescape(instance)), nil
	}
	switch name {
	case manager:
		return f.managed("NetworkManager", networkManager)
	case networkd:
		return f.managed("systemd-networkd", network1)
	case "wpa_supplicant.service", "iwd.service":
		return f.wireless, nil
	}
	return f.links, nil // dhcpcd.service
}

// among are those of the asked interfaces that have one of the names.
func (f *finder) among(names ...string) []string {
	var list []string
	for _, l := range f.links {
		if slices.Contains(names, l) {
			list = append(list, l)
		}
	}
	return list
}

// managed asks a service on the system bus for each asked interface.
func (f *finder) managed(who string, manages func(context.Context, *godbus.Conn, string) (bool, error)) (list []string, err error) {
	err = answered(f.ctx, who, f.limit, func(ctx context.Context) error {
		c, err := godbus.ConnectSystemBus(godbus.WithContext(ctx))
		if err != nil {
			return fmt.Errorf("connect to the system bus: %w", err)
		}
		defer c.Close()
		for _, l := range f.links {
			is, err := manages(ctx, c, l)
			if err != nil {
				return fmt.Errorf("ask %s: %w", who, err)
			}
			if is {
				list = append(list, l)
			}
		}
		return nil
	})
	return list, err
}

// networkManager says whether NetworkManager manages an interface, see
// org.freedesktop.NetworkManager.Device, Managed.
func networkManager(ctx context.Context, c *godbus.Conn, link string) (bool, error) {
	const service = "org.freedesktop.NetworkManager"
	var devices []godbus.ObjectPath
	err := c.Object(service, "/org/freedesktop/NetworkManager").CallWithContext(ctx, service+".GetAllDevices", godbus.FlagNoAutoStart).Store(&devices)
	if err != nil {
		return false, err
	}
	for _, d := range devices {
		var properties map[string]godbus.Variant
		err := c.Object(service, d).CallWithContext(ctx, "org.freedesktop.DBus.Properties.GetAll", godbus.FlagNoAutoStart, service+".Device").Store(&properties)
		if known := (godbus.Error{}); errors.As(err, &known) && known.Name == "org.freedesktop.DBus.Error.UnknownMethod" {
			continue // it went
		} else if err != nil {
			return false, err
		}
		if properties["Interface"].Value() == link {
			is, _ := properties["Managed"].Value().(bool)
			return is, nil
		}
	}
	return false, nil
}

// network1 says whether systemd-networkd manages an interface, see
// org.freedesktop.network1(5), AdministrativeState.
func network1(ctx context.Context, c *godbus.Conn, link string) (bool, error) {
	const service = "org.freedesktop.network1"
	var index int32
	var object godbus.ObjectPath
	err := c.Object(service, "/org/freedesktop/network1").CallWithContext(ctx, service+".Manager.GetLinkByName", godbus.FlagNoAutoStart, link).Store(&index, &object)
	if known := (godbus.Error{}); errors.As(err, &known) && known.Name == service+".NoSuchLink" {
		return false, nil
	} else if err != nil {
		return false, err
	}
	var state godbus.Variant
	err = c.Object(service, object).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", godbus.FlagNoAutoStart, service+".Link", "AdministrativeState").Store(&state)
	if err != nil {
		return false, err
	}
	return state.Value() != "unmanaged", nil
}

// processes finds the clients in the namespace, and the units of those that have one.
func (f *finder) processes() error {
	list, err := clients(f.home)
	if err != nil {
		return err
	}
	for _, p := range list {
		links := f.among(p.links...)
		if p.kind == "dhcpcd" && len(p.links) == 0 || p.kind == "dhclient" && !slices.ContainsFunc(p.Args[1:], func(word string) bool { return slices.Contains(f.all, word) }) {
			links = f.links // all there are
		}
		if len(links) == 0 {
			continue
		}
		o := facts.Owner{Links: links, Addresses: !supplicant(p.kind)}
		if o.Unit, err = f.unitOf(p.PID); err != nil {
			return err
		}
		what := fmt.Sprintf("%s (PID %d), which configures %s", p.kind, p.PID, strings.Join(links, " and "))
		switch {
		case p.strange != "" && !configures(o.Unit):
			f.left = append(f.left, fmt.Sprintf("%s, is left alone: %s", what, p.strange))
			continue
		case o.Unit != "":
			o.Addresses = addresses(o.Unit)
		default:
			if err := p.startable(); err != nil {
				return fmt.Errorf("%s, could not be started again: %w (hint: stop it, or leave it alone by PhysicalServices = none)", what, err)
			}
			o.Client = &p.Client
		}
		f.add(o)
	}
	return nil
}

// unitOf is the service that a process is of, "" when that does not configure
// interfaces: somebody has started the client in a shell of his own.
func (f *finder) unitOf(pid int) (string, error) {
	if f.bus == nil {
		return "", nil
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", err
	}
	name := service(string(text))
	if strings.HasPrefix(name, unitPrefix) { // as which it was started again
		return "", nil
	}
	if name == "" || configures(name) {
		return name, nil
	}
	p, err := f.bus.GetUnitTypePropertyContext(f.ctx, name, "Service", "MainPID")
	if err != nil {
		return "", fmt.Errorf("ask systemd for %s: %w", name, err)
	}
	if main, _ := p.Value.Value().(uint32); int(main) != pid {
		return "", nil
	}
	return name, nil
}

// service is the system service in the text of /proc/PID/cgroup, see cgroups(7).
func service(text string) string {
	for line := range strings.Lines(text) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 || parts[1] != "" && parts[1] != "name=systemd" {
			continue
		}
		for _, part := range strings.Split(parts[2], "/") {
			switch {
			case part == "user.slice", part == "machine.slice", strings.HasSuffix(part, ".scope"):
				return ""
			case strings.HasSuffix(part, ".service"):
				return part
			}
		}
	}
	return ""
}

// configures says whether a unit is known to configure interfaces.
func configures(unit string) bool {
	template, _, _ := strings.Cut(strings.TrimSuffix(unit, ".service"), "@")
	return unit == "networking.service" || slices.Contains(everyInterface, unit) || slices.Contains(perInterface, template)
}

// addresses says whether a unit gives addresses to what it configures.
func addresses(unit string) bool {
	template, _, _ := strings.Cut(strings.TrimSuffix(unit, ".service"), "@")
	switch {
	case template == "iwd":
		text, err := os.ReadFile("/etc/iwd/main.conf")
		return err == nil && iwdConfigures(string(text))
	case strings.HasPrefix(template, "wpa_supplicant"), template == "hostapd":
		return false
	}
	return true
}

// iwdConfigures reads EnableNetworkConfiguration of iwd.config(5).
func iwdConfigures(text string) bool {
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, "=")
		if strings.TrimSpace(key) == "EnableNetworkConfiguration" {
			return strings.TrimSpace(value) == "true"
		}
	}
	return false
}
