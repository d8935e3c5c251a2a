// Package confparse turns the text of a wg-quick config file into a Config and
// back. It makes no system call: the caller reads the file and says its name.
//
// A file is read twice, by wg-quick's rules and then by wg's, since the two
// disagree on what a section, a comment and white space are (wg-quick(8) and
// config.c of wireguard-tools 1.0.20260223). For each, a filter writes the lines
// that matter in a form that gopkg.in/ini.v1 cannot misread, and ini.v1 groups
// them.
package confparse

import "net/netip"

// Config is a parsed config file: wg-quick's own keys, and wg's part in Device.
type Config struct {
	Path string // as given to Parse, for messages

	Addresses []Address
	DNS       []string // servers, in file order
	DNSSearch []string // search domains, in file order
	MTU       int      // 0: not set
	MTUText   string   // as written, for trace lines; "": not set
	Table     string   // as written; "" and "auto" are the default strategy, "off" is no routes
	PreUp     []string // hooks keep their text, comment signs too
	PostUp    []string
	PreDown   []string
	PostDown  []string
	// SaveConfig asks `down` to write the running state back to the file.
	SaveConfig bool

	// Namespace is where the interface lives, BirthNamespace where it is created
	// and its UDP socket stays; zero: the namespace of the caller.
	Namespace, BirthNamespace Namespace
	HookNamespace             string // HookInterface (as ""), HookBirth or HookCaller
	ForeignNamespaces         bool   // ManageNamespace=false: none is created or deleted

	// RoutingStrategy is how a /0 becomes the way out, one of Strategy*, or "".
	RoutingStrategy string
	RulePriority    [2]uint32 // of strategy `rules`; zero: not set
	// KillSwitch lets nothing leave but through the tunnel while it is up.
	KillSwitch bool
	// PhysicalInterfaces are what `physical-netns` moves, by name; nil: `auto`.
	PhysicalInterfaces []string
	// PhysicalServices are the systemd units that configure them there, by their
	// whole names; nil: `auto`, empty: `none`.
	PhysicalServices []string
	// PhysicalUp and PhysicalDown are hooks in the physical namespace, after the
	// move in and before the move back.
	PhysicalUp, PhysicalDown []string

	Device   Device
	Warnings []Warning // wg's own, as of AllowedIPs with host bits set

	// Lines is the file, NUL bytes dropped, split at each newline; wg's lines
	// are the ones for which WGLine is true. Strip and Save read them.
	// A last line of blanks only, without newline, is no line.
	Lines []Line

	mtuLine, tableLine         int
	strategyLine, priorityLine int
	physicalLine               int      // of the last key that only physical-netns has
	dnsGlobs                   []*Error // DNS= that are file name patterns

	goOn    bool // ParseAll: past errors
	refused []*Error
}

// Warning is what is odd about one line, and no error.
type Warning struct {
	Line int // from 1
	Text string
}

func (w Warning) String() string { return w.Text }

// Line is one line of the file as `read -r` of bash gives it: without blanks
// and tabs at its ends.
type Line struct {
	Text   string
	WGLine bool // belongs to wg's part: what `strip` prints
}

// Address is one entry of Address=.
type Address struct {
	Text   string       // as written, for trace lines
	Prefix netip.Prefix // zero when ParseLines met what is no address
	Line   int          // line number in the file, from 1
}

// Device is wg's part of the file, as `wg addconf` would apply it: a nil field
// leaves the device's value as it is.
type Device struct {
	PrivateKey *Key
	ListenPort *int
	// ListenService is ListenPort= where it names a service: ListenPort is nil
	// until ResolveServices looked it up.
	ListenService     string
	ListenServiceLine int
	FwMark            *uint32 // 0: `off`
	Peers             []Peer
}

// Peer is one [Peer] section.
type Peer struct {
	PublicKey    Key
	PresharedKey *Key // all zero: remove
	// ReplaceAllowedIPs is false when the peer's AllowedIPs only add or remove (`+`, `-`).
	ReplaceAllowedIPs bool
	AllowedIPs        []AllowedIP
	Endpoint          *Endpoint
	Keepalive         *uint16 // seconds; 0: `off`
	Line              int     // line of the [Peer] header, from 1

	hasPublicKey bool
}

// AllowedIP is one entry of AllowedIPs=; Remove is the `-` prefix.
type AllowedIP struct {
	Prefix netip.Prefix // masked
	Remove bool
	Line   int // in the file, from 1; 0: not from a file
}

// Endpoint is Endpoint= as written, without brackets. Addr is set by the parser
// when Host is an address and Port a number, else by whoever resolves the name
// (PortNumber reads a Port that is a number).
type Endpoint struct {
	Host, Port string
	Addr       netip.AddrPort
	Line       int
}
