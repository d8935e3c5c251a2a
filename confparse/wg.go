package confparse

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
)

// parseWG reads wg's part into Device, as config.c of wireguard-tools does for
// `wg addconf`.
func (c *Config) parseWG() error {
	entries, err := load(c.wgText(), len(c.Lines))
	if err != nil {
		return fmt.Errorf("read %s: %w", c.Path, err)
	}
	d := &c.Device
	for _, e := range entries {
		if e.key == "section" {
			if e.section == "peer" {
				d.Peers = append(d.Peers, Peer{ReplaceAllowedIPs: true, Line: e.line})
			}
			continue
		}
		_, value, _ := strings.Cut(e.value, "=")
		var err error
		switch e.section + "." + e.key {
		case "interface.listenport":
			d.ListenPort, d.ListenService, d.ListenServiceLine = nil, value, e.line
			if port, ok := PortNumber(value); ok {
				n := int(port)
				d.ListenPort, d.ListenService, d.ListenServiceLine = &n, "", 0
			}
		case "interface.fwmark":
			d.FwMark, err = parseFwMark(value)
		case "interface.privatekey":
			d.PrivateKey, err = parseKey(value)
		case "peer.publickey":
			err = c.lastPeer().publicKey(value)
		case "peer.presharedkey":
			c.lastPeer().PresharedKey, err = parseKey(value)
		case "peer.allowedips":
			if err := c.allowedIPs(value, e.line); err != nil {
				return err
			}
		case "peer.endpoint":
			c.lastPeer().Endpoint, err = parseEndpoint(value, e.line)
		case "peer.persistentkeepalive":
			c.lastPeer().Keepalive, err = parseKeepalive(value)
		default:
			err = fmt.Errorf("Line unrecognized: `%s'", redact(e.value))
			if c.goOn && e.value[0] == '[' && resembles(e.value) == "peer" {
				d.Peers = append(d.Peers, Peer{ReplaceAllowedIPs: true, Line: e.line})
			}
		}
		if err != nil {
			if err := c.refuse(c.errorf(e.line, KindWG, "%v", err)); err != nil {
				return err
			}
		}
	}
	for _, p := range d.Peers {
		if !p.hasPublicKey {
			if err := c.refuse(c.errorf(p.Line, KindWG, "A peer is missing a public key")); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Config) lastPeer() *Peer { return &c.Device.Peers[len(c.Device.Peers)-1] }

// ResolveServices replaces ListenPort= of a service name by its port; lookup is
// asked for UDP.
func (c *Config) ResolveServices(lookup func(service string) (port int, err error)) error {
	d := &c.Device
	if d.ListenService == "" {
		return nil
	}
	port, err := lookup(d.ListenService)
	if err != nil {
		return c.errorf(d.ListenServiceLine, KindWG, "Servname not supported for ai_socktype: `%s'", redact(d.ListenService))
	}
	d.ListenPort, d.ListenService = &port, ""
	return nil
}

func parseKey(s string) (*Key, error) {
	k, err := ParseKey(s)
	if err != nil {
		return nil, fmt.Errorf("Key is not the correct length or format: `%s'", hidden)
	}
	return &k, nil
}

func (p *Peer) publicKey(s string) error {
	p.hasPublicKey = true
	k, err := parseKey(s)
	if err == nil {
		p.PublicKey = *k
	}
	return err
}

func parseFwMark(s string) (*uint32, error) {
	var mark uint32
	if asciiLower(s) == "off" {
		return &mark, nil
	}
	digits, base := s, 10
	if len(s) > 2 && s[:2] == "0x" {
		digits, base = s[2:], 16
	}
	n, err := strconv.ParseUint(digits, base, 32)
	if err != nil {
		return nil, fmt.Errorf("Fwmark is neither 0/off nor 0-0xffffffff: `%s'", redact(s))
	}
	mark = uint32(n)
	return &mark, nil
}

func parseKeepalive(s string) (*uint16, error) {
	var seconds uint16
	if asciiLower(s) == "off" {
		return &seconds, nil
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("Persistent keepalive interval is neither 0/off nor 1-65535: `%s'", redact(s))
	}
	seconds = uint16(n)
	return &seconds, nil
}

// allowedIPs adds the entries of one AllowedIPs=. Each such line makes the list
// replace the device's; an entry with a sign makes it a change of it.
func (c *Config) allowedIPs(value string, line int) error {
	p := c.lastPeer()
	p.ReplaceAllowedIPs = true
	if value == "" {
		return nil
	}
	for text := range strings.SplitSeq(value, ",") {
		a := AllowedIP{Line: line}
		if text != "" && (text[0] == '+' || text[0] == '-') {
			p.ReplaceAllowedIPs = false
			a.Remove = text[0] == '-'
			text = text[1:]
		}
		whole, err := parseAllowedIP(text)
		if err != nil {
			if err := c.refuse(c.errorf(line, KindWG, "%v", err)); err != nil {
				return err
			}
			continue
		}
		a.Prefix = whole.Masked()
		if a.Prefix != whole {
			c.Warnings = append(c.Warnings, Warning{line, "Warning: AllowedIP has nonzero host part: " + text})
		}
		p.AllowedIPs = append(p.AllowedIPs, a)
	}
	return nil
}

func parseAllowedIP(text string) (netip.Prefix, error) {
	ip, mask, found := strings.Cut(text, "/")
	addr, err := netip.ParseAddr(ip)
	if err != nil || addr.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("Unable to parse IP address: `%s'", redact(ip))
	}
	n := uint64(addr.BitLen())
	if found {
		m, err := strconv.ParseUint(mask, 10, 64)
		if err != nil || m > n {
			return netip.Prefix{}, fmt.Errorf("AllowedIP is not in the correct format: `%s'", redact(text))
		}
		n = m
	}
	return netip.PrefixFrom(addr, int(n)), nil
}

func parseEndpoint(s string, line int) (*Endpoint, error) {
	var host, port string
	if strings.HasPrefix(s, "[") {
		var ok bool
		if host, port, ok = strings.Cut(s[1:], "]"); !ok {
			return nil, fmt.Errorf("Unable to find matching brace of endpoint: `%s'", redact(s))
		}
		port, ok = strings.CutPrefix(port, ":")
		if !ok {
			port = ""
		}
	} else if i := strings.LastIndexByte(s, ':'); i >= 0 {
		host, port = s[:i], s[i+1:]
	}
	if port == "" {
		return nil, fmt.Errorf("Unable to find port of endpoint: `%s'", redact(s))
	}
	e := &Endpoint{Host: host, Port: port, Line: line}
	if n, ok := PortNumber(port); ok {
		if a, ok := hostAddr(host); ok {
			e.Addr = netip.AddrPortFrom(a, n)
		}
	}
	return e, nil
}

// hostAddr reads a host that is an address to getaddrinfo(3): IPv4 as inet_aton(3)
// takes it, IPv6 with or without a zone.
func hostAddr(s string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		// A zone by name is for link-local addresses only.
		if z := a.Zone(); z != "" && !a.IsLinkLocalUnicast() && !a.IsLinkLocalMulticast() {
			_, err = strconv.ParseUint(z, 10, 32)
		}
		return a, err == nil
	}
	if s == "*" { // no host: the loopback address
		return netip.IPv6Loopback(), true
	}
	parts := strings.SplitN(s, ".", 5)
	if len(parts) > 4 {
		return netip.Addr{}, false
	}
	var ip uint64
	for i, p := range parts {
		if p == "" || p[0] < '0' || p[0] > '9' {
			return netip.Addr{}, false
		}
		n, ok := cNumber(p)
		last := i == len(parts)-1
		if !ok || !last && n > 255 || last && n >= 1<<(8*(4-i)) {
			return netip.Addr{}, false
		}
		if last {
			ip |= n
		} else {
			ip |= n << (8 * (3 - i))
		}
	}
	return netip.AddrFrom4([4]byte{byte(ip >> 24), byte(ip >> 16), byte(ip >> 8), byte(ip)}), true
}

// PortNumber reads a port as getaddrinfo(3) of glibc does: any number of strtoul(3)
// cut to 16 bits, unless its lower 32 bits are negative. ok is false for what is
// the name of a service then.
func PortNumber(s string) (port uint16, ok bool) {
	digits, negative := strings.CutPrefix(s, "-")
	if !negative {
		digits = strings.TrimPrefix(s, "+")
	}
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		n, negative = math.MaxUint64, false
	}
	if negative {
		n = -n
	}
	return uint16(n), int32(n) >= 0
}
