package confparse

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"net/netip"
	"strconv"
	"strings"
)

// checkIP refuses what ip(8) would refuse of Address, MTU and Table, in the order
// in which `up` would come to them.
func (c *Config) checkIP() error {
	for _, a := range c.Addresses {
		if !a.Prefix.IsValid() {
			family := "inet"
			if strings.Contains(a.Text, ":") {
				family = "inet6"
			}
			if err := c.refuse(c.errorf(a.Line, KindAddress, "Error: %s prefix is expected rather than %q.", family, redact(a.Text))); err != nil {
				return err
			}
		}
	}
	if c.MTUText != "" {
		if _, err := parseMTU(c.MTUText); err != nil {
			if err := c.refuse(c.errorf(c.mtuLine, KindMTU, "Error: argument %q is wrong: %v", redact(c.MTUText), err)); err != nil {
				return err
			}
		}
	}
	if id, ok := cNumber(c.Table); ok && id > math.MaxUint32 {
		return c.errorf(c.tableLine, KindTable, "Error: argument %q is wrong: \"table\" value is invalid", redact(c.Table))
	}
	return nil
}

// CheckTable says whether ip(8) would understand Table=, given the names of
// tables; a failure is an *Error.
func (c *Config) CheckTable(names map[string]uint32) error {
	switch c.Table {
	case "", "auto", "off":
		return nil
	}
	if _, ok := TableID(c.Table, names); !ok {
		return c.errorf(c.tableLine, KindTable, "Error: argument %q is wrong: \"table\" value is invalid", redact(c.Table))
	}
	return nil
}

// TableID is the routing table that Table= means: a name of names
// (/etc/iproute2/rt_tables), or a number as strtoul(3) reads it with base 0.
// ok is false for anything else, "off", "auto" and "" among it. 0 is the main table.
func TableID(table string, names map[string]uint32) (id uint32, ok bool) {
	if id, ok := names[table]; ok {
		return id, true
	}
	n, ok := cNumber(table)
	return uint32(n), ok && n <= math.MaxUint32
}

// parseMTU reads an MTU in bytes as get_integer of iproute2 does.
func parseMTU(s string) (int, error) {
	n, ok := cNumber(strings.TrimPrefix(s, "-"))
	if !ok || n > math.MaxInt32 {
		return 0, fmt.Errorf("Invalid \"mtu\" value")
	}
	if s[0] == '-' && n > 0 {
		return 0, fmt.Errorf("mtu less than device minimum")
	}
	return int(n), nil
}

// parseAddress reads an address with its prefix length as get_prefix of iproute2
// does: IPv4 with less than four numbers and in any base of C, a netmask for the
// length, and no length at all.
func parseAddress(s string) (netip.Prefix, bool) {
	host, length, found := strings.Cut(s, "/")
	var a netip.Addr
	switch {
	case strings.Contains(s, ":"): // for which wg-quick says `ip -6`
		var err error
		if a, err = netip.ParseAddr(host); err != nil || !a.Is6() || a.Zone() != "" {
			return netip.Prefix{}, false
		}
	case host == "default", host == "any", host == "all":
		if !found {
			return netip.PrefixFrom(netip.IPv4Unspecified(), 0), true
		}
		a = netip.IPv4Unspecified()
	default:
		var ok bool
		if a, ok = ipv4(host); !ok {
			return netip.Prefix{}, false
		}
	}
	if !found {
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	n, ok := cNumber(length)
	if !ok {
		mask, valid := ipv4(length)
		if !valid {
			return netip.Prefix{}, false
		}
		m := binary.BigEndian.Uint32(mask.AsSlice())
		n = uint64(bits.LeadingZeros32(^m))
		ok = m<<n == 0
	}
	if !ok || n > uint64(a.BitLen()) {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, int(n)), true
}

// ipv4 reads one to four numbers with dots between; missing ones are 0.
func ipv4(s string) (netip.Addr, bool) {
	var b [4]byte
	parts := strings.SplitN(s, ".", 5)
	if len(parts) > 4 {
		return netip.Addr{}, false
	}
	for i, p := range parts {
		n, ok := cNumber(p)
		if !ok || n > 255 {
			return netip.Addr{}, false
		}
		b[i] = byte(n)
	}
	return netip.AddrFrom4(b), true
}

// cNumber reads a number as strtoul(3) does with base 0, white space
// before it skipped; none with a minus sign.
func cNumber(s string) (uint64, bool) {
	s = strings.TrimPrefix(strings.TrimLeft(s, space), "+")
	base := 10
	switch {
	case len(s) > 2 && s[0] == '0' && s[1]|0x20 == 'x':
		s, base = s[2:], 16
	case len(s) > 1 && s[0] == '0':
		s, base = s[1:], 8
	}
	n, err := strconv.ParseUint(s, base, 64)
	return n, err == nil
}
