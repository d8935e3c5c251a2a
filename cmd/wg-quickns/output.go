package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"wg-quickns/systemd"
)

// Fields of what is written to the journal of systemd.
const (
	fieldInterface = "WG_QUICKNS_INTERFACE"
	fieldNamespace = "WG_QUICKNS_NAMESPACE" // as a hook is told it; left out for the caller's
	fieldPhase     = "WG_QUICKNS_PHASE"     // the command: up, down, reload, guard, save
)

// output is where all but answers goes: standard error, or the journal where systemd
// has made that its own. There each entry has fields, and no program's name in front.
type output struct {
	program string
	journal bool
	fields  map[string]string
}

func newOutput(program string, args []string) *output {
	o := &output{program: program, journal: systemd.Journaled(), fields: map[string]string{"SYSLOG_IDENTIFIER": program}}
	if len(args) > 1 {
		o.set(fieldPhase, args[1])
	}
	return o
}

// set gives a field to all entries that follow, unless the value is empty.
func (o *output) set(field, value string) {
	if value != "" {
		o.fields[field] = value
	}
}

// batch is from how many lines on, and of how many, entries have several: the journal
// takes 10 000 entries of a service in 30 s, and there may be a hundred thousand routes.
const batch = 500

// print writes lines, each with prefix in front of it on standard error. The lines go
// there in one write.
func (o *output) print(priority systemd.Priority, prefix string, lines ...string) {
	if o.journal {
		size := 1
		if len(lines) > batch {
			size = batch
		}
		for len(lines) > 0 {
			n := min(size, len(lines))
			if systemd.Log(priority, strings.Join(lines[:n], "\n"), maps.Clone(o.fields)) != nil {
				break // what is left goes the other way
			}
			lines = lines[n:]
		}
	}
	var b bytes.Buffer
	for _, line := range lines {
		b.WriteString(prefix)
		b.WriteString(line)
		b.WriteByte('\n')
	}
	os.Stderr.Write(b.Bytes())
}

// trace prints what is done in wg-quick's way.
func (a app) trace(commands []string) {
	lines := slices.Clone(commands)
	for i, c := range lines {
		lines[i] = "[#] " + c
	}
	a.out.print(systemd.Info, "", lines...)
}

// warn prints a line in wg-quick's own words.
func (a app) warn(line string) { a.out.print(systemd.Warning, "", line) }

// say prints a message of this program's own.
func (a app) say(format string, args ...any) {
	a.out.print(systemd.Notice, a.program+": ", strings.TrimSuffix(fmt.Sprintf(format, args...), "\n"))
}

// fail prints an error, line by line where several were joined. Of a failed hook
// there is nothing to add: it spoke itself.
func (a app) fail(err error) {
	if text := err.Error(); text != "" {
		a.out.print(systemd.Err, a.program+": ", strings.Split(strings.TrimSuffix(text, "\n"), "\n")...)
	}
}
