package confparse

import (
	"bytes"
	"errors"
	"regexp"
	"slices"
	"testing"
)

// FuzzParse: whatever the text, no panic, only *Error, no key in it, and what
// strip and save write reads back as itself.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"", "\n", "[Interface]", "[Interface] # ]\nMTU=\n;x\n", "\ufeff[Interface]\n\u00a0MTU=1\n\x00",
		"[Interface]\r\nAddress = 10.0.0.1/24, fd00::1/64\r\nDNS = 1.1.1.1, corp\r\nMTU = 1420\r\nTable = off\r\nSaveConfig = true\r\nPostUp = echo `x` \\ # %(y)s\r\n",
		"# a\n\n[Interface] # b\nPrivateKey = " + key1 + "\nListenPort = domain\nFwMark = 0x1\n# c\n" + peer + "# d\nPresharedKey = " + key2 + "\nAllowedIPs = +10.0.0.0/8, -::/0\nEndpoint = [::1]:5\nPersistentKeepalive = off\n# e",
		peer + "Endpoint = 10.1:65537\nAllowedIPs =\nFoo = " + key2,
		"[Interface]\nPreUp = \"\"\"\nPreUp = `\n\"MTU\" = `1`\nAddress = 0x0a.010/255.0.0.0 default",
	} {
		f.Add([]byte(seed))
	}
	names := regexp.MustCompile(`(?i)(private|preshared|public)key`)
	long := regexp.MustCompile(`[A-Za-z0-9+/]{20}`)
	f.Fuzz(func(t *testing.T, data []byte) {
		check := func(err error) {
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("%v is no *Error", err)
			}
			if e.Line < 1 || e.Line > 1+bytes.Count(data, []byte("\n")) {
				t.Errorf("line %d", e.Line)
			}
			if at := long.FindString(names.ReplaceAllString(e.Msg, "-")); at != "" {
				t.Errorf("%q could show a key: %q", e.Msg, at)
			}
		}
		first := func(err error) { // what Parse stops at is one of all that ParseAll finds
			_, all, failed := ParseAll("x", data)
			if failed != nil || err == nil != (len(all) == 0) || err != nil && !slices.ContainsFunc(all, func(e *Error) bool { return e.Error() == err.Error() }) {
				t.Errorf("ParseAll found %v, %v; Parse %v", all, failed, err)
			}
			for _, e := range all {
				check(e)
			}
		}
		c, err := ParseLines("x", data)
		if err != nil {
			check(err)
			first(err)
			return
		}
		stripped := c.Strip()
		again, err := ParseLines("x", stripped)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := again.Strip(), append(stripped, '\n'); !bytes.Equal(got, want) {
			t.Errorf("stripped again %q, before %q", got, want)
		}

		r := Running{DNS: c.DNS, Search: c.DNSSearch, MTU: c.MTU}
		for _, a := range c.Addresses {
			if a.Prefix.IsValid() {
				r.Addresses = append(r.Addresses, a.Prefix)
			}
		}
		full, err := Parse("x", data)
		first(err)
		if err != nil {
			check(err)
		} else {
			seen := map[Key]bool{}
			for _, p := range full.Device.Peers {
				if !seen[p.PublicKey] { // a device has each peer once
					r.Peers = append(r.Peers, RunningPeer{PublicKey: p.PublicKey})
				}
				seen[p.PublicKey] = true
			}
		}
		saved := c.Save(r)
		again, err = ParseLines("x", saved)
		if err != nil {
			t.Fatalf("%v in saved %q", err, saved)
		}
		if got := again.Save(r); !bytes.Equal(got, saved) {
			t.Errorf("saved again\n%q\nbefore\n%q", got, saved)
		}
		for _, x := range [][2][]string{{c.PreUp, again.PreUp}, {c.PostUp, again.PostUp}, {c.PreDown, again.PreDown}, {c.PostDown, again.PostDown}, {{c.Table}, {again.Table}}} {
			if len(x[0]) != len(x[1]) {
				t.Fatalf("%q came back as %q", x[0], x[1])
			}
			for i := range x[0] {
				if x[0][i] != x[1][i] {
					t.Errorf("%q came back as %q", x[0], x[1])
				}
			}
		}
	})
}
