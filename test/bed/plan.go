package bed

import "strings"

// Traced is what a command says that it did, but for starting its userspace WireGuard.
func Traced(stderr string) []string {
	var list []string
	for line := range strings.Lines(stderr) {
		if _, c, ok := strings.Cut(strings.TrimSpace(line), "[#] "); ok && !strings.Contains(c, " userspace ") {
			list = append(list, c)
		}
	}
	return list
}

// Planned are the commands of what `plan` prints.
func Planned(text string) []string {
	var list []string
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "    ") {
			list = append(list, strings.TrimSpace(line))
		}
	}
	return list
}
