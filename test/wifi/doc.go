// Package wifi holds the tests of moves of Wi-Fi devices, by a driver that simulates
// them. They are for the lab, as they need a machine's first network namespace.
package wifi
