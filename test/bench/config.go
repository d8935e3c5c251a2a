package main

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/netip"
	"strings"
)

// config is a tunnel in the words of the programs that are compared.
type config struct {
	file  string // of wg-quick
	wg    string // of `wg setconf`
	batch string // of `ip -batch`, once the link is there; "" when the floor is not asked for
}

const (
	address4, address6 = "192.168.77.1/32", "fd77::1/128"

	// MTU= spares a question per endpoint, and the port is no random one: states must be equal
	head = "[Interface]\nAddress = " + address4 + ", " + address6 + "\nMTU = 1420\n"
	// perLine is how many AllowedIPs stand on a line: wg-quick is quadratic in its length.
	perLine = 16
)

func key(name string) string {
	sum := sha256.Sum256([]byte(name))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// wgHead is the part of [Interface] that is wg's.
func wgHead() string { return "PrivateKey = " + key("private") + "\nListenPort = 51820\n" }

// prefix is the i-th of many, every other one IPv6.
func prefix(i int) netip.Prefix {
	if i%2 == 0 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 1, byte(i >> 16), byte(i >> 8), byte(i)}), 64)
}

func fullTunnel() config {
	peer := "[Peer]\nPublicKey = " + key("peer") + "\nEndpoint = 192.0.2.1:51820\nAllowedIPs = 0.0.0.0/0, ::/0\n"
	return config{file: strings.Replace(head, "MTU = 1420\n", "", 1) + wgHead() + peer}
}

func onePeer(n int) config {
	var peer strings.Builder
	fmt.Fprintf(&peer, "[Peer]\nPublicKey = %s\nEndpoint = 192.0.2.1:51820\n", key("peer"))
	for i := range n {
		switch {
		case i%perLine == 0:
			peer.WriteString("AllowedIPs = ")
		default:
			peer.WriteString(", ")
		}
		peer.WriteString(prefix(i).String())
		if i%perLine == perLine-1 || i == n-1 {
			peer.WriteByte('\n')
		}
	}
	return many(n, peer.String())
}

func manyPeers(n int) config {
	var peers strings.Builder
	for i := range n {
		fmt.Fprintf(&peers, "[Peer]\nPublicKey = %s\nEndpoint = 192.0.2.1:51820\nAllowedIPs = %s\n", key(fmt.Sprint("peer", i)), prefix(i))
	}
	return many(n, peers.String())
}

func many(n int, peers string) config {
	var batch strings.Builder
	fmt.Fprintf(&batch, "address add %s dev %s\naddress add %s dev %s\nlink set mtu 1420 up dev %s\n", address4, link, address6, link, link)
	for i := range n {
		fmt.Fprintf(&batch, "route add %s dev %s\n", prefix(i), link)
	}
	return config{file: head + wgHead() + peers, wg: "[Interface]\n" + wgHead() + peers, batch: batch.String()}
}
