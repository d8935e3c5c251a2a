package confparse

import (
	"fmt"
	"strings"
)

// Parse reads a whole config file and checks every value, by wg-quick's rules,
// wg's (`wg addconf`) and ip's. A failure is an *Error; when the reference would
// meet several, it is the one that the reference would have stopped at first.
func Parse(path string, data []byte) (*Config, error) {
	c, err := ParseLines(path, data)
	if err != nil {
		return nil, err
	}
	if c.dnsGlob != nil {
		return nil, c.dnsGlob
	}
	if err := c.parseWG(); err != nil {
		return nil, err
	}
	if err := c.checkIP(); err != nil {
		return nil, err
	}
	if err := c.checkStrategy(); err != nil {
		return nil, err
	}
	return c, nil
}

// ParseLines reads wg-quick's own keys and no more, as `strip` and `down` need
// it: Device stays empty and no value but SaveConfig's is checked.
func ParseLines(path string, data []byte) (*Config, error) {
	c := &Config{Path: path, Lines: readLines(data)}
	text, err := c.quickText()
	if err != nil {
		return nil, err
	}
	entries, err := load(text, len(c.Lines))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	for _, e := range entries {
		switch e.key {
		case "address":
			for _, word := range words(e.value) {
				a := Address{Text: word, Line: e.line}
				a.Prefix, _ = parseAddress(word)
				c.Addresses = append(c.Addresses, a)
			}
		case "dns":
			for _, word := range words(e.value) {
				if strings.Contains(word, ":") || strings.Trim(word, "0123456789.") == "" {
					c.DNS = append(c.DNS, word)
				} else {
					c.DNSSearch = append(c.DNSSearch, word)
				}
				if globs(word) && c.dnsGlob == nil {
					c.dnsGlob = c.errorf(e.line, KindQuick, "DNS is a file name pattern: `%s'", redact(word))
				}
			}
		case "mtu":
			c.MTUText, c.mtuLine = e.value, e.line
			c.MTU, _ = parseMTU(e.value)
		case "table":
			c.Table, c.tableLine = e.value, e.line
		case "preup":
			c.PreUp = append(c.PreUp, e.value)
		case "postup":
			c.PostUp = append(c.PostUp, e.value)
		case "predown":
			c.PreDown = append(c.PreDown, e.value)
		case "postdown":
			c.PostDown = append(c.PostDown, e.value)
		case "saveconfig":
			if c.SaveConfig, err = c.boolean(e); err != nil {
				return nil, err
			}
		case "namespace":
			if c.Namespace, err = c.namespace(e); err != nil {
				return nil, err
			}
		case "birthnamespace":
			if c.BirthNamespace, err = c.namespace(e); err != nil {
				return nil, err
			}
		case "hooknamespace":
			c.HookNamespace = asciiLower(e.value)
			switch c.HookNamespace {
			case HookInterface, HookBirth, HookCaller:
			default:
				return nil, c.errorf(e.line, KindQuick, "HookNamespace is `interface', `birth' or `caller', not `%s'", redact(e.value))
			}
		case "managenamespace":
			manage, err := c.boolean(e)
			if err != nil {
				return nil, err
			}
			c.ForeignNamespaces = !manage
		case "routingstrategy":
			if err := c.setStrategy(e); err != nil {
				return nil, err
			}
		case "rulepriority":
			if err := c.setPriority(e); err != nil {
				return nil, err
			}
		case "killswitch":
			if c.KillSwitch, err = c.boolean(e); err != nil {
				return nil, err
			}
		}
	}
	return c, nil
}

func (c *Config) boolean(e entry) (bool, error) {
	switch asciiLower(e.value) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, c.errorf(e.line, KindQuick, "`%s' is neither true nor false", redact(e.value))
}

// Strip is wg's part of the file: its lines with their comments, and an empty one.
func (c *Config) Strip() []byte {
	n := 1
	for _, l := range c.Lines {
		n += len(l.Text) + 1
	}
	out := make([]byte, 0, n)
	for _, l := range c.Lines {
		if l.WGLine {
			out = append(append(out, l.Text...), '\n')
		}
	}
	return append(out, '\n')
}

// words is `${value//,/ }` unquoted: commas are blanks, then bash splits at IFS.
func words(value string) []string {
	return strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' })
}

// globs says whether bash, with extglob on, would look for files named by word.
// The reference does, in the folder it was started in; Parse refuses.
func globs(word string) bool {
	if strings.ContainsAny(word, "*?[") {
		return true
	}
	i := strings.IndexByte(word, '(')
	return i > 0 && strings.IndexByte("+@!", word[i-1]) >= 0
}

func (c *Config) errorf(line int, kind Kind, format string, args ...any) *Error {
	return &Error{Path: c.Path, Line: line, Msg: fmt.Sprintf(format, args...), Kind: kind}
}
