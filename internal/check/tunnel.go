package check

import (
	"cmp"
	"crypto/ecdh"
	"net/netip"
	"slices"
	"strings"

	"wg-quickns/confparse"
)

const minIPv6MTU = 1280 // RFC 8200, 5

// keys looks at the keys that tell who is who.
func (c *checker) keys() {
	d := &c.cfg.Device
	for _, s := range c.settings {
		if k, err := confparse.ParseKey(s.Value); err == nil && k.IsZero() && s.Section != "" {
			c.add(s.Line, Warning, "key-zero", "make one with `wg genkey' or `wg genpsk'", "a key of zeros is none")
		}
	}
	for _, s := range c.hooks("preup", "postup", "predown", "postdown") {
		for _, word := range strings.FieldsFunc(s.Value, func(r rune) bool { return strings.ContainsRune(" \t'\"`()<>|&;", r) }) {
			if _, err := confparse.ParseKey(word); err == nil {
				c.add(s.Line, Warning, "key-in-hook", "let the command read it from a file that root alone may read",
					"a key in a command is shown: in the line that announces it, in the list of processes and in the record of up")
				break
			}
		}
	}
	if d.PrivateKey == nil {
		if c.line("privatekey") == 0 && !c.said(`\bwg `) {
			c.add(0, Warning, "key-missing", "write `PrivateKey = ...' into [Interface]", "no private key: no peer can be spoken to")
		}
		return
	}
	key := d.PrivateKey.Bytes()
	private, err := ecdh.X25519().NewPrivateKey(key[:])
	if err != nil {
		return // 32 bytes are always one
	}
	own := private.PublicKey().Bytes()
	for _, p := range d.Peers {
		if p.PublicKey.Bytes() == [32]byte(own) {
			c.add(p.Line, Warning, "peer-self", "PublicKey is the other end's: what `wg pubkey' makes of that one's private key",
				"this peer's public key is the tunnel's own: the kernel ignores such a peer")
		}
	}
}

// link looks at addresses, MTU and table.
func (c *checker) link(tables map[string]uint32) {
	cfg := c.cfg
	seen := make(map[netip.Prefix]int)
	for _, a := range cfg.Addresses {
		p := a.Prefix
		if !p.IsValid() {
			continue
		}
		if p.Addr().Is6() { // IPv6 has each address once, whatever its length
			p = netip.PrefixFrom(p.Addr(), 128)
		}
		switch {
		case seen[p] > 0:
			c.add(a.Line, Error, "address-twice", "leave one of them out", "address %s is on line %d already: the kernel takes it once", a.Prefix, seen[p])
		case a.Prefix.Bits() < p.Addr().BitLen()-1 && a.Prefix == a.Prefix.Masked():
			c.add(a.Line, Note, "address-network", "give this end an address of its own in it", "%s is the address of a whole network", a.Prefix)
		}
		seen[p] = a.Line
	}
	if c.line("address") == 0 && !c.said(`\bip( -\S+)* a`) {
		c.add(0, Warning, "address-missing", "write `Address = ...' into [Interface]: what the other end's AllowedIPs say of this one",
			"no address: what this machine itself sends through the tunnel has none to come from")
	}

	mtu := func(s Severity, id, hint, format string, args ...any) {
		c.add(c.line("mtu"), s, id, hint, format, args...)
	}
	limit := 1440 // 1500 less IPv4, UDP and WireGuard's own (strategies.Overhead is IPv6's)
	if slices.ContainsFunc(cfg.Device.Peers, func(p confparse.Peer) bool {
		return p.Endpoint != nil && !p.Endpoint.Addr.Addr().Unmap().Is4()
	}) {
		limit = 1420
	}
	switch {
	case cfg.MTUText == "" || cfg.MTU == 0 && cfg.MTUText != "0":
	case cfg.MTU < minIPv6MTU && cfg.Table != "off" && c.allows(netip.Addr.Is6):
		mtu(Error, "mtu-ipv6", "1280 or more", "the kernel has no IPv6 on a link of MTU %d: routes to the IPv6 networks of AllowedIPs are refused", cfg.MTU)
	case cfg.MTU < minIPv6MTU && c.has(netip.Addr.Is6):
		mtu(Warning, "mtu-ipv6", "1280 or more", "the kernel has no IPv6 on a link of MTU %d: the IPv6 addresses vanish", cfg.MTU)
	case cfg.MTU < 576:
		mtu(Warning, "mtu-small", "576 or more, as RFC 791 has it; 1280 or more for IPv6", "few networks and programs work with an MTU of %d", cfg.MTU)
	case cfg.MTU > limit:
		mtu(Warning, "mtu-large", "leave MTU out, and up finds it out",
			"with an MTU of %d encrypted packets are longer than the 1500 bytes of Ethernet, %d would fit: large ones are fragmented or lost", cfg.MTU, limit)
	}

	id, known := confparse.TableID(cfg.Table, tables)
	switch {
	case cfg.Table == "" || cfg.Table == "auto" || cfg.Table == "off" || !known || cfg.Strategy() == confparse.StrategyRules:
	case id == tables["main"] || id == 0:
		if c.full(false) || c.full(true) {
			c.add(c.line("table"), Warning, "table-main", "leave Table out", "the default route goes into table main as it is: it is refused if one is there, or catches the tunnel's own packets")
		}
	case id != tables["default"] && id != tables["local"] && !c.said(`\bip( -\S+)* ru`):
		c.add(c.line("table"), Warning, "table-unused", "add the rule with PostUp, and delete it with PreDown", "no command adds a rule, so nothing looks into table %s", cfg.Table)
	}
}

// has and allows say whether there is an Address, or one of AllowedIPs, of a family.
func (c *checker) has(family func(netip.Addr) bool) bool {
	return slices.ContainsFunc(c.cfg.Addresses, func(a confparse.Address) bool { return a.Prefix.IsValid() && family(a.Prefix.Addr()) })
}

func (c *checker) allows(family func(netip.Addr) bool) bool {
	return slices.ContainsFunc(c.prefixes(), func(e entry) bool { return family(e.Prefix.Addr()) })
}

// entry is one of AllowedIPs, and whose.
type entry struct {
	confparse.AllowedIP
	peer confparse.Key
}

// prefixes lists what AllowedIPs add.
func (c *checker) prefixes() []entry {
	var list []entry
	for _, p := range c.cfg.Device.Peers {
		for _, a := range p.AllowedIPs {
			if !a.Remove {
				list = append(list, entry{a, p.PublicKey})
			}
		}
	}
	return list
}

// full says whether AllowedIPs hold all of a family, in one or in halves.
func (c *checker) full(v6 bool) bool {
	var whole, low, high bool
	for _, e := range c.prefixes() {
		if a := e.Prefix.Addr(); a.Is6() == v6 {
			whole = whole || e.Prefix.Bits() == 0
			low = low || e.Prefix.Bits() == 1 && a.IsUnspecified()
			high = high || e.Prefix.Bits() == 1 && !a.IsUnspecified()
		}
	}
	return whole || low && high
}

// peers looks at each peer by itself.
func (c *checker) peers() {
	d := &c.cfg.Device
	if len(d.Peers) == 0 && !c.cfg.SaveConfig && !c.said(`\bwg `) {
		c.add(0, Note, "peer-missing", "write a section [Peer]", "no peer: the tunnel has no other end")
	}
	listens := c.line("listenport") > 0
	seen := make(map[confparse.Key]int)
	for _, p := range d.Peers {
		if n := seen[p.PublicKey]; n > 0 && !p.PublicKey.IsZero() {
			c.add(p.Line, Warning, "peer-twice", "make one section of the two",
				"the same peer as on line %d: what is set here counts, and its AllowedIPs take the place of those there", n)
		}
		seen[p.PublicKey] = p.Line
		if p.Endpoint == nil && !listens {
			c.add(p.Line, Warning, "peer-unreachable", "write `ListenPort = ...' into [Interface], or the peer's `Endpoint = ...'",
				"without Endpoint the peer must speak first, and without ListenPort it cannot know where to")
		}
		if len(p.AllowedIPs) == 0 {
			c.add(p.Line, Warning, "allowedips-missing", "write `AllowedIPs = ...': the addresses behind the peer", "nothing is sent to this peer, or taken from it, without AllowedIPs")
		}
		if p.Endpoint != nil && !listens && (p.Keepalive == nil || *p.Keepalive == 0) {
			c.add(p.Line, Note, "keepalive-missing", "`PersistentKeepalive = 25', if the peer is to reach this end at any time",
				"behind NAT or a firewall this end can be reached only for some seconds after it has sent something")
		}
	}
}

// allowedIPs looks at which peer a packet goes to.
func (c *checker) allowedIPs() {
	for _, w := range c.cfg.Warnings {
		c.add(w.Line, Note, "allowedips-host-bits", "write the network's first address, or a length of 32 (IPv6: 128) for this one",
			"%s: the bits behind the length do not count", strings.TrimPrefix(w.Text, "Warning: "))
	}
	own := make(map[netip.Addr]bool)
	for _, a := range c.cfg.Addresses {
		own[a.Prefix.Addr()] = a.Prefix.IsValid()
	}
	list := c.prefixes()
	for _, e := range list {
		if e.Prefix.IsSingleIP() && own[e.Prefix.Addr()] {
			c.add(e.Line, Warning, "allowedips-own", "AllowedIPs are the addresses behind the peer, Address is this end's", "%s is this end's own address", e.Prefix.Addr())
		}
	}

	// In order of addresses, what contains others comes before them.
	slices.SortStableFunc(list, func(a, b entry) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), a.Prefix.Bits()-b.Prefix.Bits())
	})
	type container struct {
		entry
		inside, first int
	}
	var around []*container
	end := func(k *container) {
		if k.inside > 0 {
			c.add(k.Line, Note, "allowedips-overlap", "this is right if it is meant: the longest prefix wins",
				"%d of other peers' AllowedIPs are inside of %s, the first on line %d: what is for them goes to those", k.inside, k.Prefix, k.first)
		}
	}
	for _, e := range list {
		for len(around) > 0 && !contains(around[len(around)-1].Prefix, e.Prefix) {
			end(around[len(around)-1])
			around = around[:len(around)-1]
		}
		if len(around) > 0 {
			k := around[len(around)-1]
			switch {
			case k.peer == e.peer:
			case k.Prefix == e.Prefix:
				c.add(e.Line, Warning, "allowedips-twice", "give each peer its own", "%s is on line %d already: the last peer in the file gets it, and that one has it no more", e.Prefix, k.Line)
			default:
				if k.inside++; k.first == 0 || e.Line < k.first {
					k.first = e.Line
				}
			}
			if k.Prefix == e.Prefix {
				k.entry = e
				continue
			}
		}
		around = append(around, &container{entry: e})
	}
	for _, k := range around {
		end(k)
	}
}

func contains(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// endpoints looks at where encrypted packets go.
func (c *checker) endpoints() {
	cfg := c.cfg
	inside := make(map[netip.Prefix]int) // lines
	for _, a := range cfg.Addresses {
		if a.Prefix.IsValid() && !a.Prefix.IsSingleIP() {
			inside[a.Prefix.Masked()] = a.Line
		}
	}
	for _, e := range c.prefixes() {
		inside[e.Prefix] = e.Line
	}
	for _, p := range cfg.Device.Peers {
		e := p.Endpoint
		if e == nil {
			continue
		}
		if n, ok := confparse.PortNumber(e.Port); ok && n == 0 {
			c.add(e.Line, Warning, "endpoint-odd", "write the peer's ListenPort behind the colon", "nothing can be sent to port 0")
		}
		if !e.Addr.IsValid() {
			continue
		}
		addr := e.Addr.Addr().Unmap().WithZone("")
		if addr.IsUnspecified() || addr.IsMulticast() {
			c.add(e.Line, Warning, "endpoint-odd", "write the peer's own address", "%s is no single machine's address", addr)
		}
		if slices.ContainsFunc(cfg.Addresses, func(a confparse.Address) bool { return a.Prefix.Addr() == addr }) {
			c.add(e.Line, Warning, "endpoint-own", "write the peer's address outside of the tunnel", "%s is this tunnel's own address", addr)
			continue
		}
		around := netip.PrefixFrom(addr, addr.BitLen())
		for inside[around] == 0 && around.Bits() > 0 {
			around = netip.PrefixFrom(addr, around.Bits()-1).Masked()
		}
		if around.Bits() == 0 || c.elsewhere() || cfg.Table == "off" {
			continue
		}
		then := "rules keep the encrypted packets out of the tunnel, everything else for it goes through; with wg-quick they would loop"
		switch cfg.Strategy() {
		case confparse.StrategyReplace, confparse.StrategyOverride:
			then = "a route keeps all packets to it out of the tunnel"
		case confparse.StrategyAuto:
			if cfg.Table != "" && cfg.Table != "auto" {
				then = "encrypted packets that a rule sends to table " + cfg.Table + " go round in circles"
			}
		}
		c.add(e.Line, Note, "endpoint-inside", "nothing need be done; without the network around it in AllowedIPs or Address it is plainer", "%s is inside of %s (line %d): %s", addr, around, inside[around], then)
	}
}

// foreign says whether the tunnel lives in a namespace of its own, elsewhere
// whether its socket is in another one than its interface.
func (c *checker) foreign() bool {
	return c.cfg.Namespace.Kind != confparse.NSCaller && c.cfg.Namespace.Kind != confparse.NSInit
}

func (c *checker) elsewhere() bool { return place(c.cfg.Namespace) != place(c.cfg.BirthNamespace) }

// place names a namespace; the caller is taken to be in PID 1's, as it mostly is.
func place(n confparse.Namespace) string {
	if n.Kind == confparse.NSInit {
		return ""
	}
	return n.String()
}

// routing looks at what goes into the tunnel, and what does not.
func (c *checker) routing() {
	cfg := c.cfg
	full := [2]bool{c.full(false), c.full(true)}
	names := [2]string{"IPv4", "IPv6"}
	automatic := cfg.Table == "" || cfg.Table == "auto"
	for i, other := range []int{1, 0} {
		if !full[i] || full[other] || c.foreign() || !automatic && cfg.Strategy() != confparse.StrategyRules {
			continue
		}
		line := 0
		for _, e := range c.prefixes() {
			if e.Prefix.Addr().Is6() == (i == 1) && e.Prefix.Bits() <= 1 {
				line = e.Line
				break
			}
		}
		all := []string{"0.0.0.0/0", "::/0"}[other]
		switch {
		case cfg.Strategy() == confparse.StrategyPhysical:
			c.add(line, Note, "one-family", "add "+all+" if the peer takes it", "all of %s goes through the tunnel; for %s there is no way out but what AllowedIPs name", names[i], names[other])
		case cfg.KillSwitch:
			c.add(line, Note, "one-family", "add "+all+" if the peer takes it", "all of %s goes through the tunnel; of %s nothing leaves but what AllowedIPs name, for KillSwitch is true", names[i], names[other])
		default:
			c.add(line, Warning, "one-family", "add "+all+" to AllowedIPs, or write `KillSwitch = true'", "all of %s goes through the tunnel, but %s goes past it", names[i], names[other])
		}
	}
	for i, family := range []func(netip.Addr) bool{netip.Addr.Is4, netip.Addr.Is6} {
		if c.allows(family) && !c.has(family) && len(cfg.Addresses) > 0 && !c.said(`\bip( -\S+)* a`) {
			line := 0
			for _, e := range c.prefixes() {
				if family(e.Prefix.Addr()) {
					line = e.Line
					break
				}
			}
			c.add(line, Note, "family-unused", "add an "+names[i]+" address to Address, or leave this out", "%s is routed into the tunnel, which has no %s address: programs of this machine cannot use it", names[i], names[i])
		}
	}
	if cfg.Strategy() != confparse.StrategyAuto {
		zero := slices.ContainsFunc(c.prefixes(), func(e entry) bool { return e.Prefix.Bits() == 0 })
		switch {
		case cfg.Strategy() == confparse.StrategyPhysical:
			if !zero {
				c.add(c.line("routingstrategy"), Warning, "physical-cuts", "add 0.0.0.0/0 and ::/0 to AllowedIPs", "every other way out is taken away, and the tunnel is the way to some networks only")
			}
		case c.foreign() && c.elsewhere():
			c.add(c.line("routingstrategy"), Warning, "strategy-idle", "leave RoutingStrategy out", "in a namespace that has not the socket a /0 is a plain default route: the strategy has nothing to do")
		case !zero:
			c.add(c.line("routingstrategy"), Warning, "strategy-idle", "leave RoutingStrategy out, or add 0.0.0.0/0 or ::/0 to AllowedIPs", "the strategy has nothing to do: no prefix of AllowedIPs has length 0")
		}
	}
	if cfg.KillSwitch {
		line := c.line("killswitch")
		if line > 0 && strings.HasPrefix(cfg.Lines[line-1].Text, "#") {
			c.add(line, Note, "killswitch-comment", "take the `#' away if it must never be up without", "to wg-quick this is a comment: it brings the tunnel up without kill switch")
		}
		switch {
		case !full[0] && !full[1]:
			c.add(line, Warning, "killswitch-cuts", "add 0.0.0.0/0 and ::/0 to AllowedIPs, or leave KillSwitch out", "nothing leaves but through the tunnel, which is the way to some networks only: everything else is cut off")
		case !automatic && cfg.Strategy() != confparse.StrategyRules:
			c.add(line, Warning, "killswitch-cuts", "leave Table out, or add rules or routes with PostUp", "nothing leaves but through the tunnel, and with `Table = %s' no default route leads there", cfg.Table)
		}
	}
}

// dns looks at who is asked for names, and by which way.
func (c *checker) dns() {
	cfg := c.cfg
	line := func(word string) int {
		for _, s := range c.settings {
			if s.Section == iface && s.Key == "dns" && strings.Contains(s.Value, word) {
				return s.Line
			}
		}
		return c.line("dns")
	}
	if len(cfg.DNS) == 0 {
		if len(cfg.DNSSearch) > 0 {
			c.add(c.line("dns"), Warning, "dns-servers", "add a server's address", "domains alone do nothing: `%s' is taken for one", confparse.Redact(cfg.DNSSearch[0]))
		}
		return
	}
	ways := c.prefixes()
	for _, a := range cfg.Addresses {
		if a.Prefix.IsValid() {
			ways = append(ways, entry{AllowedIP: confparse.AllowedIP{Prefix: a.Prefix.Masked()}})
		}
	}
	for _, word := range cfg.DNS {
		addr, err := netip.ParseAddr(word)
		switch {
		case err != nil:
			c.add(line(word), Warning, "dns-servers", "a whole address", "`%s' is taken for a server, and is no address", confparse.Redact(word))
		case cfg.Table != "off" && !addr.IsLoopback() && !slices.ContainsFunc(ways, func(e entry) bool { return e.Prefix.Contains(addr.WithZone("")) }):
			c.add(line(word), Warning, "dns-outside", "add it to AllowedIPs of the peer that it is behind", "server %s is not in AllowedIPs: it is asked by another way than the tunnel, or not at all", addr)
		}
	}
	if automatic := cfg.Table == "" || cfg.Table == "auto"; automatic && !c.foreign() && !c.full(false) && !c.full(true) {
		c.add(c.line("dns"), Note, "dns-all", "leave DNS out, if only names behind the tunnel are these servers' matter",
			"while the tunnel is up these servers are asked for all names, though only some networks are behind it")
	}
}

// namespaces looks at keys that go with each other.
func (c *checker) namespaces() {
	cfg := c.cfg
	const none = "neither Namespace nor BirthNamespace is set: this changes nothing"
	if cfg.Namespace.Kind == confparse.NSCaller && cfg.BirthNamespace.Kind == confparse.NSCaller {
		for _, key := range []string{"hooknamespace", "managenamespace"} {
			if line := c.line(key); line > 0 {
				c.add(line, Warning, "namespace-idle", "name a namespace, or leave this out", none)
			}
		}
	}
	if n := cfg.Namespace; len(cfg.DNS) > 0 && n.Kind == confparse.NSPath && n.Value != "/proc/1/ns/net" &&
		!strings.HasPrefix(n.Value, "/run/netns/") && !strings.HasPrefix(n.Value, "/var/run/netns/") {
		c.add(c.line("dns"), Error, "dns-namespace", "name the namespace by its name or one of its processes", "a namespace that is a path has no file for DNS")
	}
}

// saving looks at what SaveConfig does to this file.
func (c *checker) saving() {
	if !c.cfg.SaveConfig {
		return
	}
	for _, p := range c.cfg.Device.Peers {
		e := p.Endpoint
		if e == nil {
			continue
		}
		if _, err := netip.ParseAddr(e.Host); err != nil && !e.Addr.IsValid() {
			c.add(e.Line, Warning, "save-name", "leave SaveConfig out, or write the address", "with SaveConfig, down writes the peer's address of that moment in place of this name")
		}
	}
	commands := c.hooks("preup", "postup", "predown", "postdown")
	for i, l := range c.cfg.Lines {
		if !strings.Contains(l.Text, "#") || slices.ContainsFunc(commands, func(s confparse.Setting) bool { return s.Line == i+1 }) {
			continue
		}
		c.add(c.line("saveconfig"), Note, "save-comments", "leave SaveConfig out if wg-quick is used on this file too", "down writes this file anew: comments stay, but wg-quick drops them")
		break
	}
}
