package confparse

import (
	"fmt"
	"strings"
)

// Kind says whose part of the file an Error is in, which decides the exit status
// that the reference would have ended with.
type Kind int

const (
	KindQuick   Kind = iota // wg-quick's own keys
	KindWG                  // what wg(8) would refuse
	KindAddress             // what `ip address add` would refuse
	KindMTU                 // what `ip link set mtu` would refuse
	KindTable               // what `ip route add table` would refuse
)

// Error is what is wrong with one line of a config file. Msg is in the words of
// the program that would refuse it, with anything that could be a key replaced
// by "(hidden)".
type Error struct {
	Path string
	Line int // from 1
	Msg  string
	Kind Kind
}

// Error gives "path:line: message".
func (e *Error) Error() string { return fmt.Sprintf("%s:%d: %s", e.Path, e.Line, e.Msg) }

// Redact hides what could be a key in text from a config file.
func Redact(s string) string { return redact(s) }

// redact replaces what could be a key, or most of one, in text from a config
// file that a message is to quote.
func redact(s string) string {
	lower := asciiLower(s)
	for _, name := range []string{"privatekey", "presharedkey", "publickey"} {
		if i := strings.Index(lower, name); i >= 0 && len(s) > i+len(name) {
			end := i + len(name)
			if s[end] == '=' {
				end++
			}
			if end == len(s) {
				break
			}
			return redact(s[:i]) + s[i:end] + hidden
		}
	}
	// A key that was mistyped or put into the wrong place: a long run of base64
	// digits, or many of them of all three kinds, as host names and addresses are not.
	const run, total = 20, 30
	var b strings.Builder
	digits := 0
	for i := 0; i < len(s); {
		j := i
		for j < len(s) && isBase64(s[j]) {
			j++
		}
		digits += j - i
		switch {
		case j-i >= run:
			b.WriteString(hidden)
		case j > i:
			b.WriteString(s[i:j])
		default:
			b.WriteByte(s[i])
			j++
		}
		i = j
	}
	const letters = "abcdefghijklmnopqrstuvwxyz"
	if digits >= total && strings.ContainsAny(s, letters) && strings.ContainsAny(s, strings.ToUpper(letters)) && strings.ContainsAny(s, "0123456789") {
		return hidden
	}
	return b.String()
}

func isBase64(c byte) bool {
	return c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '+' || c == '/'
}
