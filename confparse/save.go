package confparse

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
)

// Running is the state of an interface that Save writes down.
type Running struct {
	Addresses  []netip.Prefix // as the device has them, in the kernel's order
	DNS        []string       // servers, as resolvconf holds them
	Search     []string       // search domains, likewise
	MTU        int
	PrivateKey Key // zero: none
	ListenPort int // 0: none
	FwMark     uint32
	Peers      []RunningPeer // in the device's order
}

// RunningPeer is one peer of a device.
type RunningPeer struct {
	PublicKey    Key
	PresharedKey Key            // zero: none
	AllowedIPs   []netip.Prefix // in the device's order
	Endpoint     netip.AddrPort // zero: none
	Keepalive    int            // seconds; 0: off
}

// Save is the file that `save` writes: the running state, and of the file what
// the state does not tell (Table, SaveConfig, hooks, whether there is an MTU). For
// a file without comments and search domains it is the reference's byte by byte.
// Comments stay with what they stood at: those on lines of their own with the
// line below, or, before an empty line, with the end of their section; those
// behind a value with the value. What a peer's section said goes with the peer.
func (c *Config) Save(r Running) []byte {
	w := &saver{notes: c.collectNotes()}
	w.tail("")
	if w.Len() > 0 {
		w.WriteByte('\n')
	}

	const in = "interface"
	w.line(in, "[Interface]")
	for _, a := range r.Addresses {
		w.line(in+" address "+a.String(), "Address = "+ntop(a.Addr())+fmt.Sprintf("/%d", a.Bits()))
	}
	for _, s := range append(r.DNS[:len(r.DNS):len(r.DNS)], r.Search...) {
		w.line(in+" dns "+s, "DNS = "+s)
	}
	if c.MTUText != "" && r.MTU > 0 {
		w.line(in+" mtu", fmt.Sprintf("MTU = %d", r.MTU))
	}
	if c.Table != "" {
		w.line(in+" table", "Table = "+c.Table)
	}
	if c.SaveConfig {
		w.line(in+" saveconfig", "SaveConfig = true")
	}
	for _, l := range c.Lines {
		if s, ok := ownComment(l.Text); ok {
			w.line(in+" # "+s.key, l.Text)
		} else if s = splitLine(l.Text); !l.WGLine && ownKeys[s.key] != "" {
			name, _, _ := strings.Cut(l.Text, "=")
			w.line(in+" "+s.key, strings.Trim(name, space)+" = "+s.value)
		}
	}
	hooks := []struct {
		name string
		list []string
	}{{"PreUp", c.PreUp}, {"PostUp", c.PostUp}, {"PreDown", c.PreDown}, {"PostDown", c.PostDown}}
	for _, h := range hooks {
		for i, text := range h.list {
			w.line(fmt.Sprintf("%s %s %d", in, strings.ToLower(h.name), i), h.name+" = "+text)
		}
	}
	if r.ListenPort != 0 {
		w.line(in+" listenport", fmt.Sprintf("ListenPort = %d", r.ListenPort))
	}
	if r.FwMark != 0 {
		w.line(in+" fwmark", fmt.Sprintf("FwMark = 0x%x", r.FwMark))
	}
	if !r.PrivateKey.IsZero() {
		w.line(in+" privatekey", "PrivateKey = "+r.PrivateKey.String64())
	}
	w.tail(in)

	for _, p := range r.Peers {
		w.WriteByte('\n')
		w.peer(p)
	}
	return w.Bytes()
}

func (w *saver) peer(p RunningPeer) {
	id := peerID(p.PublicKey)
	w.line(id, "[Peer]")
	w.line(id+" publickey", "PublicKey = "+p.PublicKey.String64())
	if !p.PresharedKey.IsZero() {
		w.line(id+" presharedkey", "PresharedKey = "+p.PresharedKey.String64())
	}
	if len(p.AllowedIPs) > 0 {
		list := make([]string, len(p.AllowedIPs))
		for i, a := range p.AllowedIPs {
			list[i] = fmt.Sprintf("%s/%d", ntop(a.Addr()), a.Bits())
		}
		w.line(id+" allowedips", "AllowedIPs = "+strings.Join(list, ", "))
	}
	if e := p.Endpoint; e.IsValid() {
		host := ntop(e.Addr())
		if e.Addr().Is6() {
			host = "[" + host + "]"
		}
		w.line(id+" endpoint", fmt.Sprintf("Endpoint = %s:%d", host, e.Port()))
	}
	if p.Keepalive != 0 {
		w.line(id+" persistentkeepalive", fmt.Sprintf("PersistentKeepalive = %d", p.Keepalive))
	}
	w.tail(id)
}

// ntop spells an address as inet_ntop(3) of glibc, where netip differs only in
// IPv4-compatible ones (::192.0.2.1).
func ntop(a netip.Addr) string {
	if b := a.As16(); a.Is6() && [12]byte(b[:12]) == [12]byte{} && (b[12] != 0 || b[13] != 0) {
		return "::" + netip.AddrFrom4([4]byte(b[12:])).String()
	}
	return a.String()
}

// saver writes lines with their notes.
type saver struct {
	bytes.Buffer
	notes notes
}

func (w *saver) line(id, text string) {
	n := w.notes.byID[id]
	if n == nil {
		n = &note{}
	}
	delete(w.notes.byID, id)
	for _, l := range n.above {
		w.WriteString(l + "\n")
	}
	w.WriteString(text)
	if n.behind != "" {
		w.WriteString(" " + n.behind)
	}
	w.WriteByte('\n')
}

// tail writes what stood at the section's end, and the notes of lines of it that
// are no more.
func (w *saver) tail(section string) {
	for _, id := range w.notes.order[section] {
		if n := w.notes.byID[id]; n != nil {
			delete(w.notes.byID, id)
			for _, l := range n.above {
				w.WriteString(l + "\n")
			}
			if n.behind != "" {
				w.WriteString(n.behind + "\n")
			}
		}
	}
}

// note is the comments of one line.
type note struct {
	above  []string
	behind string
}

// notes are the comments of a file. An id names a line by its section and what it
// sets; order lists the ids of each section.
type notes struct {
	byID  map[string]*note
	order map[string][]string
}

func (n *notes) add(section, id string, above []string, behind string) {
	if len(above) == 0 && behind == "" {
		return
	}
	old := n.byID[id]
	if old == nil {
		old = &note{}
		n.byID[id] = old
		n.order[section] = append(n.order[section], id)
	}
	old.above = append(old.above, above...)
	if old.behind != "" && behind != "" {
		old.above = append(old.above, behind)
		return
	}
	old.behind += behind
}

func peerID(k Key) string { return "peer " + k.String64() }

// collectNotes finds the comments in Lines.
func (c *Config) collectNotes() notes {
	n := notes{map[string]*note{}, map[string][]string{}}
	ids := c.sectionIDs()
	section := ""
	hooks := map[string]int{}
	var above []string // comments seen since the last line
	ended := 0         // how many of them are before an empty line
	for i, l := range c.Lines {
		text := clean(l.Text)
		_, comment, has := strings.Cut(l.Text, "#")
		if has {
			comment = "#" + comment
		}
		if s, ok := ownComment(l.Text); ok { // a line of [Interface], whatever follows
			n.add("interface", "interface # "+s.key, above, "")
			above, ended = nil, 0
			continue
		}
		if l.WGLine && text == "" {
			if has {
				above = append(above, comment)
			} else {
				ended = len(above)
			}
			continue
		}
		s := splitLine(l.Text)
		id := ""
		switch {
		case !l.WGLine && (s.key == "address" || s.key == "dns"):
			id = c.wordID(s)
		case !l.WGLine && (s.key == "mtu" || s.key == "table" || s.key == "saveconfig" || ownKeys[s.key] != ""):
			id = "interface " + s.key
		case !l.WGLine: // a hook: its comment is its own
			id, comment = fmt.Sprintf("interface %s %d", s.key, hooks[s.key]), ""
			hooks[s.key]++
		case ids[i] != "":
			n.add(section, section+" tail", above[:ended], "")
			above, section = above[ended:], ids[i]
			id = section
		default:
			name, _, _ := strings.Cut(text, "=")
			id = section + " " + asciiLower(name)
		}
		n.add(section, id, above, comment)
		above, ended = nil, 0
	}
	n.add(section, section+" tail", above, "")
	return n
}

// wordID is the id of the first line that an Address or DNS of several words becomes.
func (c *Config) wordID(s setting) string {
	if ws := words(s.value); len(ws) > 0 {
		w := ws[0]
		if p, ok := parseAddress(w); ok && s.key == "address" {
			w = p.String()
		}
		return "interface " + s.key + " " + w
	}
	return "interface " + s.key
}

// sectionIDs gives each section header of wg's, by its index in Lines, its id.
func (c *Config) sectionIDs() map[int]string {
	ids := map[int]string{}
	header := -1
	for i, l := range c.Lines {
		if !l.WGLine {
			continue
		}
		text := clean(l.Text)
		switch asciiLower(text) {
		case "[interface]":
			ids[i], header = "interface", -1
			continue
		case "[peer]":
			ids[i], header = fmt.Sprintf("peer %d", i), i
			continue
		}
		name, value, _ := strings.Cut(text, "=")
		if k, err := ParseKey(value); err == nil && header >= 0 && asciiLower(name) == "publickey" {
			ids[header] = peerID(k)
		}
	}
	return ids
}
