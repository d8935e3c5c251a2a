// Package internal_test holds the rule of who may import whom.
package internal_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// rooms lists for each room the rooms it may import. What is not a room (cmd,
// test) may import anything; nobody imports those.
var rooms = map[string][]string{
	"confparse":          {},
	"internal/check":     {"confparse"},
	"internal/facts":     {},
	"internal/netns":     {},
	"internal/proc":      {"internal/netns"},
	"internal/plan":      {"confparse", "internal/facts"}, // a route to be put back is a fact
	"internal/journal":   {"internal/plan"},
	"internal/engine":    {"internal/plan", "internal/journal"},
	"internal/kernel":    {"confparse", "internal/facts", "internal/plan", "internal/netns"},
	"internal/dns":       {"confparse", "internal/facts", "internal/plan", "internal/netns", "internal/proc"},
	"internal/userspace": {"internal/proc"},
	"strategies":         {"confparse", "internal/facts", "internal/plan"},
	"systemd":            {"internal/facts", "internal/plan", "internal/netns", "internal/proc"},
	"hooks":              {"internal/plan", "internal/netns", "internal/proc"},
}

// pure rooms know no kernel, no clock and no environment.
var pure = []string{"confparse", "internal/check", "internal/facts", "internal/plan", "strategies"}

// impure are packages of the standard library that pure rooms do without.
var impure = []string{"os", "net", "net/http", "time", "syscall", "os/exec", "os/signal", "io/ioutil", "log"}

func TestWhoImportsWhom(t *testing.T) {
	const module = "wg-quickns/"
	seen := make(map[string]bool)
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "build" || d.Name() == ".git") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		room, err := filepath.Rel("..", filepath.Dir(path))
		if err != nil {
			return err
		}
		allowed, isRoom := rooms[room]
		if !isRoom && !strings.HasPrefix(room, "cmd/") && !strings.HasPrefix(room, "test/") {
			t.Errorf("%s: %s is no room: say in this test who it may import", path, room)
		}
		seen[room] = true
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range file.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			ours, is := strings.CutPrefix(name, module)
			switch {
			case is && isRoom && !slices.Contains(allowed, ours):
				t.Errorf("%s: %s may not import %s", path, room, ours)
			case slices.Contains(pure, room) && (slices.Contains(impure, name) || strings.HasPrefix(name, "golang.org/x/sys")):
				t.Errorf("%s: %s is pure and may not import %s", path, room, name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for room := range rooms {
		if !seen[room] {
			t.Errorf("there is no room %s", room)
		}
	}
}
