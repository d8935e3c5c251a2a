package main

import (
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const completionUsage = "usage: completion bash | zsh | fish"

// The scripts ask `completion -- WORD...` for everything.
var (
	//go:embed completion/wg-quickns.bash
	bashCompletion string
	//go:embed completion/wg-quickns.zsh
	zshCompletion string
	//go:embed completion/wg-quickns.fish
	fishCompletion string
)

// completion prints a shell's script, or, behind `--`, what the last of the words
// of a command line may become: a word a line, with a tab and what it does.
func (a app) completion(args []string) error {
	script, ok := "", false
	switch {
	case len(args) > 0 && args[0] == "--":
		script, ok = strings.Join(append(complete(args[1:]), ""), "\n"), true
	case len(args) == 1:
		script, ok = map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}[args[0]]
	}
	if !ok {
		return errors.New(completionUsage)
	}
	_, err := os.Stdout.WriteString(script)
	return err
}

// option is one that a command takes; value lists what may follow it, nil: nothing.
type option struct {
	name, help string
	value      func(word string) []string
}

// command is one that the command line may begin with: its options, and what its
// arguments may be, of which the last one's kind goes on if many.
type command struct {
	name, help string
	options    []option
	args       []func(word string) []string
	many       bool
}

func words(list ...string) func(string) []string { return func(string) []string { return list } }

func commandLine() []command {
	type lists = []func(string) []string
	asJSON := option{"--json", "print for programs", nil}
	where := []option{
		{"--birth", "where the UDP socket is", nil},
		{"--namespace", "in another namespace", namespaces},
		{"--user", "as another user", users},
	}
	return []command{
		{"up", "create and configure a tunnel", []option{{"--dry-run", "print what would be done", nil}}, lists{configs}, false},
		{"down", "undo what up did", nil, lists{running}, false},
		{"save", "write the state to the file", nil, lists{running}, false},
		{"strip", "print the file for wg", nil, lists{configs}, false},
		{"exec", "run a command in the tunnel's namespace", where, lists{running, words("--")}, false},
		{"shell", "run a shell in the tunnel's namespace", where, lists{running}, false},
		{"plan", "print what up or down would do", []option{asJSON}, lists{words("up", "down"), configs}, false},
		{"status", "show tunnels and what is broken", []option{asJSON}, lists{running}, false},
		{"check", "print what is wrong in files", []option{asJSON, {"--resolve", "look names up", nil}}, lists{configs}, true},
		{"guard", "keep a tunnel as up made it", []option{
			{"--leave", "exit with 3 when the interface is gone", nil},
			{"--unit", "likewise, and guard only if that is needed", nil},
		}, lists{running}, false},
		{"reload", "take over changes of the file", nil, lists{running}, false},
		{"completion", "print a shell's completion", nil, lists{words("bash", "zsh", "fish")}, false},
		{"help", "print a summary", nil, nil, false},
		{"version", "print the version", nil, nil, false},
		{"--help", "print a summary", nil, nil, false},
		{"--version", "print the version", nil, nil, false},
	}
}

// complete lists what the last word may become. A line ":N" says that word N, from
// 1, begins a command line of its own.
func complete(line []string) []string {
	if len(line) == 0 {
		return nil
	}
	last := line[len(line)-1]
	commands := commandLine()
	if len(line) == 1 {
		var list []string
		for _, c := range commands {
			if last != "" || !strings.HasPrefix(c.name, "-") {
				list = append(list, c.name+"\t"+c.help)
			}
		}
		return begin(list, last)
	}
	i := slices.IndexFunc(commands, func(c command) bool { return c.name == line[0] })
	if i < 0 {
		return nil
	}
	c, given := commands[i], 0
	for n := 1; n < len(line)-1; n++ {
		at := slices.IndexFunc(c.options, func(o option) bool { return o.name == line[n] })
		switch {
		case c.name == "exec" && line[n] == "--":
			return []string{fmt.Sprint(":", n+2)}
		case at >= 0 && c.options[at].value != nil:
			if n++; n == len(line)-1 {
				return begin(c.options[at].value(last), last)
			}
		case !strings.HasPrefix(line[n], "-"):
			given++
		}
	}
	if name, value, ok := strings.Cut(last, "="); ok && strings.HasPrefix(last, "--") {
		var list []string
		for _, o := range c.options {
			if o.name == name && o.value != nil {
				for _, v := range o.value(value) {
					list = append(list, name+"="+v)
				}
			}
		}
		return begin(list, last)
	}
	var list []string
	if strings.HasPrefix(last, "-") {
		for _, o := range c.options {
			if !slices.Contains(line[1:len(line)-1], o.name) {
				list = append(list, o.name+"\t"+o.help)
			}
		}
	}
	if c.many && given >= len(c.args) {
		given = len(c.args) - 1
	}
	if given < len(c.args) {
		list = append(list, c.args[given](last)...)
	}
	return begin(slices.DeleteFunc(list, func(s string) bool { return c.many && slices.Contains(line[1:len(line)-1], s) }), last)
}

// begin keeps what begins with a word, in order, each once.
func begin(list []string, word string) []string {
	list = slices.DeleteFunc(slices.Clone(list), func(s string) bool { return !strings.HasPrefix(s, word) })
	slices.Sort(list)
	return slices.Compact(list)
}

// glob is filepath.Glob without patterns in the folder's name, as base names.
func glob(dir, suffix string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil { // there is none, or it is not for this user
		return nil
	}
	var list []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), suffix); ok {
			list = append(list, name)
		}
	}
	return list
}

// configs are the interfaces that have a file, and files by their path.
func configs(word string) []string {
	list := slices.DeleteFunc(glob("/etc/wireguard", ".conf"), func(name string) bool { return !isName(name) || !goodName(name) })
	return append(list, files(word)...)
}

// files are the config files and folders that the path in a word leads to; without
// one, the config files here.
func files(word string) []string {
	at := strings.LastIndexByte(word, '/') + 1
	prefix, dir := word[:at], word[:at]
	switch home, err := os.UserHomeDir(); {
	case at == 0:
		prefix, dir = "./", "."
	case strings.HasPrefix(dir, "~/") && err == nil:
		dir = home + dir[1:]
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var list []string
	for _, e := range entries {
		name, isConf := strings.CutSuffix(e.Name(), ".conf")
		info, err := os.Stat(filepath.Join(dir, e.Name()))
		switch {
		case err != nil:
		case info.IsDir() && at > 0 && (e.Name()[0] != '.' || strings.HasPrefix(word[at:], ".")):
			list = append(list, prefix+e.Name()+"/")
		case !info.IsDir() && isConf && isName(name) && goodName(name):
			list = append(list, prefix+e.Name())
		}
	}
	return list
}

// running are the tunnels that are up here, and, for root, those with a record.
func running(word string) []string {
	var list []string
	for _, name := range glob("/sys/class/net", "") {
		dir := "/sys/class/net/" + name
		event, err := os.ReadFile(dir + "/uevent")
		if err != nil {
			continue
		}
		_, notTun := os.Stat(dir + "/tun_flags")
		_, noSocket := os.Stat("/run/wireguard/" + name + ".sock")
		if strings.Contains(string(event), "DEVTYPE=wireguard\n") || notTun == nil && (noSocket == nil || errors.Is(noSocket, fs.ErrPermission)) {
			list = append(list, name)
		}
	}
	for _, name := range glob(string(stateRoot), "") {
		if name, _, _ = strings.Cut(name, "@"); name != "" {
			list = append(list, name)
		}
	}
	return append(list, files(word)...)
}

// namespaces are those that have a name, and the beginnings of other ways to name one.
func namespaces(string) []string {
	return append(glob("/run/netns", ""), "init", "pid:", "docker:", "podman:", "unit:", "machine:")
}

func users(string) []string {
	data, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return nil
	}
	var list []string
	for line := range strings.Lines(string(data)) {
		if name, _, ok := strings.Cut(line, ":"); ok {
			list = append(list, name)
		}
	}
	return list
}
