// Package killswitch looks from the gateway at what leaves a machine with a kill switch.
package killswitch
