// Package difffuzz compares package confparse with the reference: thousands of
// generated config files go through wg-quick's own shell parser, through wg(8)
// and through Parse. No kernel has a say in it, so it is not run in the lab again.
package difffuzz
