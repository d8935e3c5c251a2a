package main

import (
	"errors"

	"wg-quickns/confparse"
	"wg-quickns/internal/plan"
	"wg-quickns/internal/proc"
)

// Exit statuses: those that wg-quick passes on from the programs it runs.
const (
	statusFailed  = 1 // this program, wg(8), nft(8); ip(8) when it understood nothing
	statusNetlink = 2 // ip(8), when the kernel refused
	statusArgs    = 255
)

// exitStatus is the one place where errors become exit statuses.
func exitStatus(err error) int {
	if status, ok := proc.ExitStatus(err); ok {
		return status
	}
	if found := statusError(0); errors.As(err, &found) {
		return int(found)
	}
	var step *plan.StepError
	if errors.As(err, &step) {
		switch step.Step.Kind() {
		case plan.KindLink, plan.KindLinkUp, plan.KindAddr, plan.KindRoute, plan.KindVia, plan.KindRule:
			return statusNetlink
		}
	}
	var config *confparse.Error
	if errors.As(err, &config) {
		switch config.Kind {
		case confparse.KindMTU, confparse.KindTable:
			return statusArgs
		}
	}
	return statusFailed
}
