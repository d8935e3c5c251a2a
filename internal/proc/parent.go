package proc

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Parent is a process's parent, -1 when it cannot be told (proc(5), /proc/PID/stat).
func Parent(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return -1
	}
	// The name before it may hold anything, a parenthesis too.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 2 {
		return -1
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return -1
	}
	return parent
}

// Status is what /proc/PID/status says of a process, the words by their key (proc(5)).
func Status(pid int) (map[string][]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	fields := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		fields[key] = strings.Fields(value)
	}
	return fields, nil
}
