package confparse

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/ini.v1"
)

// space is what [[:space:]] of bash in the C locale and char_is_space of wg mean.
// Other white space of Unicode is text to both.
const space = " \t\n\v\f\r"

// readLines splits data as a loop of `read -r line || [[ -n $line ]]` does:
// NUL bytes are dropped, blanks and tabs at the ends too.
func readLines(data []byte) []Line {
	var lines []Line
	for rest := strings.ReplaceAll(string(data), "\x00", ""); rest != ""; {
		text, after, whole := strings.Cut(rest, "\n")
		text = strings.Trim(text, " \t")
		if whole || text != "" {
			lines = append(lines, Line{Text: text})
		}
		rest = after
	}
	return lines
}

// setting is one line as wg-quick's shell parser takes it apart. Without an
// equals sign, the whole line is both key and value.
type setting struct {
	key   string // in lower case
	value string // without comment
	whole string // with comment: what a hook keeps
}

func splitLine(text string) setting {
	stripped, _, _ := strings.Cut(text, "#")
	key, value, ok := strings.Cut(stripped, "=")
	if !ok {
		value = stripped
	}
	_, whole, ok := strings.Cut(text, "=")
	if !ok {
		whole = text
	}
	return setting{asciiLower(strings.Trim(key, space)), strings.Trim(value, space), strings.Trim(whole, space)}
}

// clean is a line as wg sees it: no comment, no white space anywhere.
func clean(text string) string {
	text, _, _ = strings.Cut(text, "#")
	if !strings.ContainsAny(text, space) {
		return text
	}
	b := make([]byte, 0, len(text))
	for i := range len(text) {
		if strings.IndexByte(space, text[i]) < 0 {
			b = append(b, text[i])
		}
	}
	return string(b)
}

// asciiLower is strings.ToLower without Unicode, where K (Kelvin) folds to k.
func asciiLower(s string) string {
	if !strings.ContainsAny(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") {
		return s
	}
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// ownKeys are this program's keys in [Interface], each with the name it goes by.
var ownKeys = map[string]string{
	"namespace":          "namespace",
	"interfacenamespace": "namespace",
	"birthnamespace":     "birthnamespace",
	"socketnamespace":    "birthnamespace",
	"hooknamespace":      "hooknamespace",
	"managenamespace":    "managenamespace",
	"routingstrategy":    "routingstrategy",
	"rulepriority":       "rulepriority",
	"killswitch":         "killswitch",
	"physicalinterfaces": "physicalinterfaces",
	"physicalservices":   "physicalservices",
	"physicalup":         "physicalup",
	"physicaldown":       "physicaldown",
}

// ownComment takes a comment of the form `# wg-quickns: Key = value` apart.
func ownComment(text string) (s setting, ok bool) {
	text, ok = strings.CutPrefix(text, "#")
	if text = strings.Trim(text, space); !ok || !strings.HasPrefix(asciiLower(text), "wg-quickns:") {
		return s, false
	}
	return splitLine(text[len("wg-quickns:"):]), true
}

// quickText is the filter for wg-quick's keys and this program's: it marks wg's
// lines in lines and writes the others for ini.v1. A comment with a key of this
// program stays wg's line too.
func (c *Config) quickText() ([]byte, error) {
	var w iniWriter
	w.section("interface")
	inside := false
	lines := c.Lines
	for i, l := range lines {
		if s, ok := ownComment(l.Text); ok {
			var err error
			switch name, known := ownKeys[s.key]; {
			case !known:
				err = c.errorf(i+1, KindQuick, "unknown key in a wg-quickns comment: `%s'", redact(s.key))
			case !inside:
				err = c.errorf(i+1, KindQuick, "a wg-quickns comment belongs into [Interface]")
			default:
				w.key(name, i+1, s.of(name))
			}
			if err := c.refuse(err); err != nil {
				return nil, err
			}
		}
		s := splitLine(l.Text)
		if strings.HasPrefix(s.key, "[") {
			inside = c.opens(s.key)
		}
		if inside {
			switch s.key {
			case "address", "mtu", "dns", "table", "saveconfig":
				w.key(s.key, i+1, s.value)
				continue
			case "preup", "postup", "predown", "postdown":
				w.key(s.key, i+1, s.whole)
				continue
			}
			if name, ok := ownKeys[s.key]; ok {
				w.key(name, i+1, s.of(name))
				continue
			}
		}
		lines[i].WGLine = true
	}
	return w.Bytes(), nil
}

// opens says whether what wg-quick takes for a header, in lower case, is that of
// [Interface].
func (c *Config) opens(header string) bool {
	return header == "[interface]" || c.goOn && resembles(header) == "interface"
}

// wgText is the filter for wg's lines. Key "line" stands for those that wg does
// not know where they are; the reader of the entries decides what that means.
func (c *Config) wgText() []byte {
	var w iniWriter
	w.section("none")
	for i, l := range c.Lines {
		if !l.WGLine {
			continue
		}
		text := clean(l.Text)
		if text == "" {
			continue
		}
		if text[0] == '[' {
			if section := asciiLower(text); section == "[interface]" || section == "[peer]" {
				w.section(section[1 : len(section)-1])
				w.key("section", i+1, "")
				continue
			}
		}
		name, value, found := strings.Cut(text, "=")
		switch name = asciiLower(name); name {
		case "listenport", "fwmark", "privatekey", "endpoint", "publickey", "persistentkeepalive", "presharedkey":
			if value == "" {
				name = "line"
			}
		case "allowedips":
			if !found {
				name = "line"
			}
		default:
			name = "line"
		}
		w.key(name, i+1, text)
		if c.goOn && text[0] == '[' {
			w.section(resembles(text))
		}
	}
	return w.Bytes()
}

// resembles is the section that a header means, or seems to.
func resembles(header string) string {
	if strings.HasPrefix(asciiLower(header), "[i") {
		return "interface"
	}
	return "peer"
}

// iniWriter writes what ini.v1 reads back byte by byte: section and key names of
// our own, each value with its line number in back quotes. Of a line that begins
// its value with a back quote, ini.v1 takes all up to the last one verbatim.
type iniWriter struct{ bytes.Buffer }

func (w *iniWriter) section(name string) { w.WriteString("[" + name + "]\n") }

func (w *iniWriter) key(name string, line int, value string) {
	w.WriteString(name)
	w.WriteString("=`")
	w.Write(strconv.AppendInt(w.AvailableBuffer(), int64(line), 10))
	w.WriteByte(' ')
	w.WriteString(value)
	w.WriteString("`\n")
}

// entry is one key of the file, in file order.
type entry struct {
	section, key, value string
	line                int
}

// load reads what an iniWriter wrote of so many lines.
func load(text []byte, lines int) ([]entry, error) {
	f, err := ini.LoadSources(ini.LoadOptions{
		IgnoreContinuation:         true,
		IgnoreInlineComment:        true,
		AllowShadows:               true,
		AllowDuplicateShadowValues: true, // without it, each value is compared with all before it
		PreserveSurroundedQuote:    true,
		KeyValueDelimiters:         "=",
		ChildSectionDelimiter:      "\x00",
	}, text)
	if err != nil {
		return nil, err
	}
	out := make([]entry, lines+1) // by line, so that they come in file order
	for _, s := range f.Sections() {
		for _, k := range s.Keys() {
			for _, v := range k.ValueWithShadows() { // String() would interpolate %(x)s
				number, value, _ := strings.Cut(v, " ")
				line, err := strconv.Atoi(number)
				if err != nil || line < 0 || line > lines {
					return nil, fmt.Errorf("line number %q of %d", number, lines)
				}
				out[line] = entry{s.Name(), k.Name(), value, line}
			}
		}
	}
	return slices.DeleteFunc(out, func(e entry) bool { return e.key == "" }), nil
}

// of is the value of one of this program's keys: a hook's may have a # in it.
func (s setting) of(key string) string {
	if key == "physicalup" || key == "physicaldown" {
		return s.whole
	}
	return s.value
}
