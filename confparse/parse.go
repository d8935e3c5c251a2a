package confparse

import (
	"errors"
	"fmt"
	"slices"
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
	if err := c.parseRest(); err != nil {
		return nil, err
	}
	return c, nil
}

// ParseAll is Parse that goes on past errors: it gives all of them, by line, and
// the Config without what is wrong. That one is for looking over, not for use: a
// header that is no section's counts as the one that it resembles.
func ParseAll(path string, data []byte) (*Config, []*Error, error) {
	c := &Config{Path: path, Lines: readLines(data), goOn: true}
	err := c.parseQuick()
	if err == nil {
		err = c.parseRest()
	}
	slices.SortStableFunc(c.refused, func(a, b *Error) int { return a.Line - b.Line })
	return c, c.refused, err
}

// refuse is where an error of the file ends the parsing, or, in ParseAll, is kept.
func (c *Config) refuse(err error) error {
	if e := (*Error)(nil); c.goOn && errors.As(err, &e) {
		c.refused = append(c.refused, e)
		return nil
	}
	return err
}

// parseRest is all of Parse that ParseLines leaves out.
func (c *Config) parseRest() error {
	for _, e := range c.dnsGlobs {
		if err := c.refuse(e); err != nil {
			return err
		}
	}
	for _, part := range []func() error{c.parseWG, c.checkIP, c.checkStrategy} {
		if err := part(); err != nil {
			return err
		}
	}
	return nil
}

// Setting is one line of a file that sets something, or begins a section.
type Setting struct {
	Section string // the header before it, in brackets and lower case; "" before the first
	Key     string // in lower case, an alias by its main name; of a header all of it
	Value   string // without comment, and of wg's keys without white space
	Line    int    // from 1
}

// Settings lists a file's lines as they are written, whether they are right or not.
func (c *Config) Settings() []Setting {
	var list []Setting
	// wg(8) and wg-quick do not agree on where [Interface] is after a line such as `[Interface] = x'
	section, inside := "", false
	for i, l := range c.Lines {
		s, comment := ownComment(l.Text)
		if !comment {
			s = splitLine(l.Text)
		}
		if strings.HasPrefix(s.key, "[") {
			inside = c.opens(s.key)
		}
		at := section
		if inside && (comment || !l.WGLine) {
			at = "[interface]"
		}
		switch {
		case comment:
			s.key = ownKeys[s.key]
		case !l.WGLine && ownKeys[s.key] != "":
			s.key = ownKeys[s.key]
		case !l.WGLine && strings.HasPrefix(s.key, "p"): // a hook
			s.value = s.whole
		case l.WGLine:
			text := clean(l.Text)
			if text == "" {
				continue
			}
			var found bool
			if s.key, s.value, found = strings.Cut(text, "="); !found && text[0] == '[' {
				section = asciiLower(text)
				at = section
			}
			s.key = asciiLower(s.key)
		}
		list = append(list, Setting{at, s.key, s.value, i + 1})
	}
	return list
}

// ParseLines reads wg-quick's own keys and no more, as `strip` and `down` need
// it: Device stays empty and no value but SaveConfig's is checked.
func ParseLines(path string, data []byte) (*Config, error) {
	c := &Config{Path: path, Lines: readLines(data)}
	if err := c.parseQuick(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Config) parseQuick() error {
	text, err := c.quickText()
	if err != nil {
		return err
	}
	entries, err := load(text, len(c.Lines))
	if err != nil {
		return fmt.Errorf("read %s: %w", c.Path, err)
	}
	for _, e := range entries {
		if err := c.refuse(c.set(e)); err != nil {
			return err
		}
	}
	if c.Strategy() == StrategyPhysical && c.BirthNamespace.Kind == NSCaller {
		c.BirthNamespace = Namespace{Kind: NSName, Value: PhysicalNamespace, Line: c.strategyLine}
	}
	return nil
}

// set reads one of wg-quick's keys or this program's.
func (c *Config) set(e entry) (err error) {
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
			if globs(word) {
				c.dnsGlobs = append(c.dnsGlobs, c.errorf(e.line, KindQuick, "DNS is a file name pattern: `%s'", redact(word)))
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
		c.SaveConfig, err = c.boolean(e)
	case "namespace":
		c.Namespace, err = c.namespace(e)
	case "birthnamespace":
		c.BirthNamespace, err = c.namespace(e)
	case "hooknamespace":
		c.HookNamespace = asciiLower(e.value)
		switch c.HookNamespace {
		case HookInterface, HookBirth, HookCaller:
		default:
			err = c.errorf(e.line, KindQuick, "HookNamespace is `interface', `birth' or `caller', not `%s'", redact(e.value))
		}
	case "managenamespace":
		var manage bool
		manage, err = c.boolean(e)
		c.ForeignNamespaces = !manage && err == nil
	case "routingstrategy":
		err = c.setStrategy(e)
	case "rulepriority":
		err = c.setPriority(e)
	case "killswitch":
		c.KillSwitch, err = c.boolean(e)
	case "physicalinterfaces":
		c.PhysicalInterfaces, err = c.physicalList(e, c.PhysicalInterfaces, "auto")
	case "physicalservices":
		c.PhysicalServices, err = c.physicalList(e, c.PhysicalServices, "auto", "none")
	case "physicalup":
		c.PhysicalUp, c.physicalLine = append(c.PhysicalUp, e.value), e.line
	case "physicaldown":
		c.PhysicalDown, c.physicalLine = append(c.PhysicalDown, e.value), e.line
	}
	return err
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
