package systemd

import (
	"os"
	"path"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
)

// Priority is that of syslog(3).
type Priority = journal.Priority

// Priorities in use.
const (
	Err     = journal.PriErr
	Warning = journal.PriWarning
	Notice  = journal.PriNotice
	Info    = journal.PriInfo
)

// Journaled says whether standard error is a stream to the journal that systemd made
// for this service (JOURNAL_STREAM of systemd.exec(5)), and not a file since.
func Journaled() bool {
	is, err := journal.StderrIsJournalStream()
	return err == nil && is
}

// Log writes an entry to the journal, with fields that it may add to.
func Log(p Priority, message string, fields map[string]string) error {
	// Whose entry it is the journal looks up only when it reads it, and this process may
	// have ended by then. What root says of a unit counts as of it (systemd.journal-fields(7)).
	if unit := Unit(); unit != "" {
		fields["OBJECT_SYSTEMD_UNIT"] = unit
	}
	return journal.Send(message, p, fields)
}

// Unit is the unit that this process belongs to, by its control group; "" for none.
func Unit() string {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if unit := path.Base(strings.TrimSpace(line)); strings.HasSuffix(unit, ".service") {
			return unit
		}
	}
	return ""
}
