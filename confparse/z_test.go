package confparse

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
)

func BenchmarkPeers(bb *testing.B) {
	n := 100000
	var b strings.Builder
	b.WriteString("[Interface]\nPrivateKey=" + key1 + "\n")
	for i := 0; i < n; i++ {
		k := make([]byte, 32)
		k[0] = byte(i)
		k[1] = byte(i >> 8)
		k[2] = byte(i >> 16)
		fmt.Fprintf(&b, "[Peer]\nPublicKey = %s\nAllowedIPs = 10.%d.%d.%d/32\n", base64.StdEncoding.EncodeToString(k), i>>16, i>>8&255, i&255)
	}
	text := []byte(b.String())
	for bb.Loop() {
		_, err := Parse("x", text)
		if err != nil {
			bb.Fatal(err)
		}
	}
}
