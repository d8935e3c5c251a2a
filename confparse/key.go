package confparse

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
)

// hidden stands where a key would be printed.
const hidden = "(hidden)"

// Key is a WireGuard key. It formats as "(hidden)" with every verb (but %p, which
// is for pointers: fmt asks nobody there) and encodes as that too, so that no message, log or journal can carry one; Bytes and
// String64 give the value to who needs it.
type Key [32]byte

var errKey = errors.New("not a WireGuard key: want 32 bytes in base64")

// ParseKey reads 32 bytes in canonical base64 (44 characters). The error does
// not repeat its input.
func ParseKey(s string) (Key, error) {
	var k Key
	if len(s) != 44 {
		return k, errKey
	}
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(k) {
		return k, errKey
	}
	return Key(b), nil
}

// Bytes is the key itself.
func (k Key) Bytes() [32]byte { return k }

// String64 is the key in base64, as config files hold it.
func (k Key) String64() string { return base64.StdEncoding.EncodeToString(k[:]) }

// IsZero says that the key is all zero: on a device it means "none".
func (k Key) IsZero() bool { return k == Key{} }

// Format writes "(hidden)" whatever the verb.
func (k Key) Format(f fmt.State, _ rune) { io.WriteString(f, hidden) }

// MarshalText gives "(hidden)": encodings are for reading, not for keeping keys.
func (k Key) MarshalText() ([]byte, error) { return []byte(hidden), nil }
