// Package difffuzz compares package confparse with the reference: thousands of
// generated config files go through wg-quick's own shell parser, through wg(8)
// and through Parse.
package difffuzz
