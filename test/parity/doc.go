// Package parity runs the reference wg-quick and wg-quickns side by side: the
// same config and the same commands, each in a world of its own that is made
// the same way. Everything that can be seen afterwards must be equal, but for
// the decided differences, which each case names one by one.
package parity
