package confparse

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func mustKey(t *testing.T, s string) Key {
	t.Helper()
	k, err := ParseKey(s)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestParseKey(t *testing.T) {
	k := mustKey(t, key1)
	if k.String64() != key1 || k.Bytes() != [32]byte(k) || k.IsZero() {
		t.Error("a key does not come back")
	}
	for _, s := range []string{"", key1[1:], key1 + "=", key1[:42] + "J=", key1[:42] + "==", key1[:20] + "\n" + key1[21:], "\n" + key1, key1[:20] + "-" + key1[21:]} {
		if _, err := ParseKey(s); err == nil {
			t.Errorf("%q is taken", s)
		} else if strings.Contains(err.Error(), s) && s != "" {
			t.Errorf("%q is in the error", s)
		}
	}
}

func TestKeyIsHidden(t *testing.T) {
	k := mustKey(t, key1)
	c, err := Parse("x.conf", []byte("[Interface]\nPrivateKey="+key1+"\n"+peer+"PresharedKey="+key1))
	if err != nil {
		t.Fatal(err)
	}
	raw := k.Bytes()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%b", "%o", "%c", "%U", "%t", "%64x", "%-9s", "%T%v"} {
		for _, v := range []any{k, &k, []Key{k}, map[Key]Key{k: k}, c.Device, &c.Device, c.Device.Peers} {
			noKey(t, verb, fmt.Sprintf(verb, v), raw)
		}
	}
	for _, v := range []any{k, &k, c.Device, map[Key]Key{k: k}} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		noKey(t, "json", string(b), raw)
	}
}

// noKey fails when text has 12 characters of a key's base64 or hex, or its bytes
// as text or as decimal numbers.
func noKey(t *testing.T, what, text string, key [32]byte) {
	t.Helper()
	if at := keyIn(text, key); at != "" {
		t.Errorf("%s: %q shows a key: %q", what, text, at)
	}
}

func keyIn(text string, key [32]byte) string {
	decimal := strings.Trim(fmt.Sprint(key[:4]), "[]")
	lower := strings.ToLower(text)
	for _, s := range []string{string(key[:4]), decimal, strings.ReplaceAll(decimal, " ", ", "), strings.ReplaceAll(decimal, " ", ",")} {
		if strings.Contains(text, s) {
			return s
		}
	}
	for _, form := range []string{base64.StdEncoding.EncodeToString(key[:]), hex.EncodeToString(key[:])} {
		for i := 0; i+12 <= len(form); i++ {
			if strings.Contains(text, form[i:i+12]) || strings.Contains(lower, form[i:i+12]) {
				return form[i : i+12]
			}
		}
	}
	return ""
}

// TestNoKeyInErrors puts a key, whole and damaged, where it does not belong.
func TestNoKeyInErrors(t *testing.T) {
	var key [32]byte
	copy(key[:], bytes.Repeat([]byte{0xfa, 0x1b, 0x9c, 0x5d, 0x3e}, 7))
	k := Key(key).String64()
	forms := []string{k, k[:43], k[1:], k + k, k + "x", k[:20] + " " + k[20:], `"` + k + `"`, k[:21] + "*" + k[22:], k[:15] + "-" + k[16:30] + "-" + k[31:], "x" + k, k + "/24", "=" + k, "10.0.0.1/" + k, k + ":1", "[" + k, "`" + k + "`"}
	names := []string{"PrivateKey", "PublicKey", "PresharedKey", "privatekey", "Private Key", "PrivateKey2", "MyPrivateKey", "Foo", "AllowedIPs", "Endpoint", "FwMark", "ListenPort", "PersistentKeepalive", "Address", "DNS", "MTU", "Table", "SaveConfig", ""}
	checked := 0
	for _, section := range []string{"", "[Interface]\n", peer, "[Foo]\n", "[Peer]\n"} {
		for _, name := range names {
			for _, form := range forms {
				for _, sign := range []string{" = ", " ", ":", ""} {
					_, err := Parse("x.conf", []byte(section+name+sign+form))
					if err == nil {
						continue
					}
					checked++
					noKey(t, name+sign+form, err.Error(), key)
				}
			}
		}
	}
	if checked < 1000 {
		t.Errorf("only %d errors seen", checked)
	}
}
