// Package races runs commands against each other.
package races
