package plan

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"wg-quickns/internal/facts"
)

// Kinds of the steps of strategy physical-netns.
const (
	KindHold    = "hold"
	KindMove    = "move"
	KindSettle  = "settle"
	KindTwin    = "twin"
	KindViews   = "views"
	KindConfine = "confine"
	KindService = "service"
	KindClient  = "client"
)

// Physical says whether a step is one of strategy physical-netns.
func Physical(s Step) bool {
	switch s.(type) {
	case Hold, Move, Twin, Settle, Views, Confine, Service, Client:
		return true
	}
	return false
}

// Hold takes interfaces down at once, so that nothing leaves by one while others
// are on their way. What it had is given back by a Settle.
type Hold struct {
	Links []string `json:"links"`
}

func (Hold) Kind() string { return KindHold }

func (s Hold) Commands() []string {
	out := make([]string, len(s.Links))
	for i, l := range s.Links {
		out[i] = "ip link set dev " + l + " down"
	}
	return out
}

// Move brings one interface, or a phy with all of its interfaces, from one network
// namespace to another. On its way out an interface gets the AwayAlias, by which Home
// knows it again, whatever it is called by then; Home gives it its name and alias back.
type Move struct {
	From NS `json:"from"`
	To   NS `json:"to"`
	// Links are what moves, as it was at home; several only with a Phy.
	Links []facts.Interface `json:"links"`
	Phy   *facts.Phy        `json:"phy,omitempty"`
	Home  bool              `json:"home,omitempty"`
}

func (Move) Kind() string { return KindMove }

func (s Move) Commands() []string {
	to, named := s.To.Name()
	switch {
	case s.To == "":
		to = "1"
	case !named:
		to = string(s.To)
	}
	if s.Phy != nil {
		if named {
			to = "name " + to
		}
		return []string{inside(s.From, "iw phy "+s.Phy.Name+" set netns "+to)}
	}
	out := make([]string, len(s.Links))
	for i, l := range s.Links {
		out[i] = inside(s.From, "ip link set dev "+l.Name+" netns "+to)
	}
	return out
}

// AwayPrefix is what every AwayAlias begins with.
const AwayPrefix = "wg-quickns: "

// AwayAlias is the alias of an interface that is away from home.
func AwayAlias(l facts.Interface) string { return AwayPrefix + l.Name + " is away from home" }

// Twin makes an interface like Link, which cannot move, in the step's namespace,
// or deletes it: a bond or bridge, whose ports then move there and become the twin's,
// or a VLAN upon such. Link itself stays where it is, down and without ports, and
// gets them back when they come home.
type Twin struct {
	Link   facts.Interface `json:"link"`
	Delete bool            `json:"delete,omitempty"`
}

func (Twin) Kind() string { return KindTwin }

func (s Twin) Commands() []string {
	if s.Delete {
		return []string{"ip link delete dev " + s.Link.Name}
	}
	c := "ip link add "
	if lower, ok := s.Link.Settings.Names[s.Link.Lower]; ok {
		c += "link " + lower + " "
	}
	return []string{c + "name " + s.Link.Name + " type " + s.Link.Kind}
}

// Settle gives an interface what a move took from it: it is up or down as before,
// with MTU, queue length and sysctls, and a port of the bond or bridge of its
// Master's name; and unless Bare with addresses, routes, rules and neighbours.
type Settle struct {
	Link facts.Interface `json:"link"`
	// Away is where the interface may still be when it is to be given back what it
	// had at home. One that is in neither namespace is gone, and needs nothing.
	Away NS `json:"away,omitempty"`
	// Bare leaves addresses and so on to whoever configures the interface there,
	// and whether it is up too.
	Bare bool `json:"bare,omitempty"`
}

func (Settle) Kind() string { return KindSettle }

// Commands are the outlines: what is set in detail is as it was.
func (s Settle) Commands() []string {
	c := fmt.Sprintf("ip link set dev %s mtu %d", s.Link.Name, s.Link.MTU)
	if s.Link.Up && !s.Bare {
		c += " up"
	}
	out := []string{c}
	if master, ok := s.Link.Settings.Names[s.Link.Master]; ok {
		out = append([]string{"ip link set dev " + s.Link.Name + " master " + master}, out...)
	}
	if s.Bare {
		return out
	}
	if len(s.Link.Settings.Addrs) > 0 {
		out = append(out, "ip address restore dev "+s.Link.Name)
	}
	for _, r := range s.Link.Settings.Routes {
		out = append(out, Via{Route: r}.Commands()...)
	}
	if len(s.Link.Settings.Rules) > 0 {
		out = append(out, "ip rule restore")
	}
	return out
}

// Views mounts what programs in the namespace NS are to see in place of /sys and
// /etc into folders below Dir, for a unit to bind: /sys of the namespace, read-only,
// and /etc with its resolv.conf and the like.
type Views struct {
	NS     NS     `json:"ns"`
	Dir    string `json:"dir"` // /run/wg-quickns/@views.physical
	Delete bool   `json:"delete,omitempty"`
}

func (Views) Kind() string { return KindViews }

func (s Views) Commands() []string {
	if s.Delete {
		return []string{"umount -R " + s.Dir}
	}
	return []string{inside(s.NS, "mount -t sysfs sysfs "+s.Dir+"/sys")}
}

// Confine gives a systemd unit, and what it needs to work there, runtime drop-ins
// that put it into the namespace NS (systemd.exec(5), NetworkNamespacePath=), or
// takes them away again. The unit must be stopped.
type Confine struct {
	Unit   string `json:"unit"`
	NS     NS     `json:"ns"`
	Views  string `json:"views"` // the folder of Views
	Delete bool   `json:"delete,omitempty"`
}

func (Confine) Kind() string { return KindConfine }

func (s Confine) Commands() []string {
	if s.Delete {
		return []string{"systemctl revert --runtime " + s.Unit}
	}
	return []string{"systemctl edit --runtime " + s.Unit + " # NetworkNamespacePath=" + string(s.NS)}
}

// Service starts or stops a systemd unit (and its socket), and waits for it.
type Service struct {
	Unit  string `json:"unit"`
	Start bool   `json:"start"`
	// Links are the interfaces that it configures: to start it fails in vain where none of them is.
	Links []string `json:"links,omitempty"`
}

func (Service) Kind() string { return KindService }

func (s Service) Commands() []string {
	if s.Start {
		return []string{"systemctl start " + s.Unit}
	}
	return []string{"systemctl stop " + s.Unit}
}

// Client starts or stops a DHCP client or supplicant that no service manager runs,
// in the step's namespace.
type Client struct {
	facts.Client
	Views string   `json:"views,omitempty"` // the folder of Views; "": as the caller sees things
	Start bool     `json:"start"`
	Links []string `json:"links,omitempty"` // as Service's
}

func (Client) Kind() string { return KindClient }

// Commands have the program's path where the one of that name is likely another.
func (s Client) Commands() []string {
	if !s.Start {
		return []string{"pkill -f " + strings.Join(s.Args, " ")}
	}
	name, usual := s.Args[0], []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", "."}
	switch {
	case slices.Contains(usual, path.Dir(s.Exe)) || name == s.Exe:
	case path.Base(name) == path.Base(s.Exe):
		name = s.Exe
	default:
		name = "exec -a " + name + " " + s.Exe
	}
	return []string{strings.Join(append([]string{name}, s.Args[1:]...), " ")}
}
