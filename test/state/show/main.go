// Command show prints the state of a network namespace: show [NAME].
package main

import (
	"fmt"
	"os"

	"wg-quickns/test/ns"
	"wg-quickns/test/state"
)

func main() {
	var n *ns.NS
	if len(os.Args) > 1 {
		n = &ns.NS{Name: os.Args[1]}
	}
	s, err := state.Take(n)
	if err != nil {
		fmt.Fprintln(os.Stderr, "show:", err)
		os.Exit(1)
	}
	fmt.Print(s)
}
