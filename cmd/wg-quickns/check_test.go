package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"wg-quickns/test/schema"
)

// Of each line with a § what is behind it is to be found there, else of the whole file.
const planted = `§interface-name file-readable
[Interface]
PrivateKey = KEY+OF+EXAMPLE/never+use/client/00000000000=
Address = 10.8.0.2/32, fd08::2/64
Address = 10.8.0.2/32 §address-twice
Adress = 10.8.0.3/32 §syntax
ListenPort = nosuch §service
MTU = 1279
MTU = 9000 §repeated mtu-large
Table = nosuch §syntax
DNS = 9.9.9.9 §dns-outside
HookNamespace = birth §namespace-idle
RulePriority = 1, 2 §syntax
KillSwitch = true §killswitch-cuts
SaveConfig = true
PreUp = DIR/shared/up.sh %i §hook-writable
PostUp = DIR/none.sh §hook-missing
PostDown = DIR/own.sh; DIR/$x
[Peer] §syntax
AllowedIPs = 10.8.0.0/33 §syntax
Endpoint = 192.0.2.1:http: §syntax
[Peer]
PublicKey = iHHj1OFkOlaiC74DEEZk/VOVI4cwF0GEWJtNV6bjKzs=
PresharedKey = AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= §key-zero
Endpoint = no..name:51820 §save-name resolve
AllowedIPs = 10.8.0.0/16
AllowedIPs = 10.8.0.2 §allowedips-own
[Peer] §peer-self allowedips-missing
PublicKey = OOIZpO5Vqc73QSN0czga5ePrK+RCs1AfTpZe5sk2bEg=
[Peer]
PublicKey = xluH3MeWM8wGELIsftd/TwGE6CRWHWWt5oj+Ga7/unc=
Endpoint = 10.8.1.1:nosuch §service
AllowedIPs = 10.8.0.0/16, 10.8.1.1/24 §allowedips-twice allowedips-host-bits allowedips-overlap
[Peer] §peer-twice
PublicKey = iHHj1OFkOlaiC74DEEZk/VOVI4cwF0GEWJtNV6bjKzs=
AllowedIPs = 172.16.0.0/12
[Pears] §syntax
PublicKey = x §syntax
`

// TestCheckPlanted: each of a list of mistakes is found, with its line, and what
// --json prints of them is as its schema says.
func TestCheckPlanted(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string, mode os.FileMode) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil { // whatever the umask
			t.Fatal(err)
		}
		return path
	}
	if err := os.Mkdir(dir+"/shared", 0o755); err != nil {
		t.Fatal(err)
	}
	write("shared/up.sh", "", 0o777)
	write("own.sh", "", 0o755)
	var lines, want []string
	for line := range strings.Lines(strings.ReplaceAll(planted, "DIR", dir)) {
		line, ids, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "§")
		at := 0
		if line = strings.TrimRight(line, " "); line != "" {
			lines = append(lines, line)
			at = len(lines)
		}
		for id := range strings.FieldsSeq(ids) {
			want = append(want, fmt.Sprintf("%d %s", at, id))
		}
	}
	if len(want) < 25 {
		t.Errorf("only %d mistakes", len(want))
	}
	paths := []string{
		write("-x.conf", strings.Join(lines, "\n"), 0o644),
		write("good.conf", "[Interface]\nPrivateKey = KEY+OF+EXAMPLE/never+use/server/00000000000=\nListenPort = 51820\nAddress = 10.9.0.1/24\n", 0o600),
		write("same.conf", "[Interface]\nPrivateKey = KEY+OF+EXAMPLE/never+use/siteA/000000000000=\nListenPort = 51820\nAddress = 10.9.0.1/24\n", 0o600),
		filepath.Join(dir, "none.conf"),
	}
	report, err := (app{}).checkFiles(t.Context(), paths, true)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string][]string)
	for _, f := range report.Findings {
		got[f.File] = append(got[f.File], fmt.Sprintf("%d %s", f.Line, f.ID))
	}
	for i, want := range [][]string{want, {"0 peer-missing"}, {"0 peer-missing", "3 port-shared", "4 address-shared"}, {"0 file"}} {
		got := got[paths[i]]
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: found\n%s\nwant\n%s", paths[i], strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	if report.Errors+report.Warnings+report.Notes != len(report.Findings) {
		t.Errorf("%d errors, %d warnings, %d notes of %d findings", report.Errors, report.Warnings, report.Notes, len(report.Findings))
	}
	text, err := json.Marshal(report)
	if err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate("../../man/check.schema.json", text); err != nil {
		t.Error(err)
	}
	if strings.Contains(string(text), "KEY+OF") {
		t.Error("a key is shown")
	}
}

// A file that others cannot change, by itself or by its folders.
func TestAlterable(t *testing.T) {
	dir := t.TempDir() // below /tmp, which is sticky
	path := filepath.Join(dir, "x")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	mode := func(path string, mode os.FileMode) {
		t.Helper()
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	try := func(want string) {
		t.Helper()
		if got := alterable(path); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	mode(dir, 0o755)
	try("")
	mode(path, 0o664) // by the caller's own group
	try("")
	mode(path, 0o646)
	try("x has mode 0646")
	mode(path, 0o644)
	mode(dir, 0o777)
	try(dir + " has mode 0777")
	mode(dir, 0o777|os.ModeSticky)
	try("")
	if err := os.Chown(path, 4321, 0); err != nil {
		t.Fatal(err)
	}
	try("belongs to user 4321")
}

// TestCheckManual: the manual lists every kind of finding, and no other.
func TestCheckManual(t *testing.T) {
	page, err := os.ReadFile("../../man/wg-quickns.8")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n.Sh WHAT CHECK FINDS\n")
	section, _, _ = strings.Cut(section, "\n.Sh ")
	listed := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^\.It Cm (.*)$`).FindAllStringSubmatch(section, -1) {
		for _, id := range strings.Split(m[1], " , ") {
			listed[id] = true
		}
	}
	files, err := filepath.Glob("../../internal/check/*.go")
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]bool)
	for _, file := range append(files, "check.go") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		// as an argument behind the severity, or behind the key of what two may not share
		for _, m := range regexp.MustCompile(`\b(?:Error|Warning|Note), (?:[^"\n]*(?:" "[^"\n]*)?, )?"([a-z0-9-]+)", `).FindAllStringSubmatch(string(text), -1) {
			if !strings.HasSuffix(file, "_test.go") {
				found[m[1]] = true
			}
		}
	}
	if len(found) < 45 {
		t.Errorf("only %d kinds", len(found))
	}
	for id := range found {
		if !listed[id] {
			t.Errorf("the manual does not list %s", id)
		}
	}
	for id := range listed {
		if !found[id] {
			t.Errorf("the manual lists %s, which nothing finds", id)
		}
	}
}
