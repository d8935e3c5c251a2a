// Command wg-quickns is a drop-in replacement for wg-quick with network namespaces.
//
// Only this package writes messages and decides exit statuses.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"syscall"

	"wg-quickns/internal/dns"
	"wg-quickns/internal/proc"
	"wg-quickns/internal/userspace"
)

// usage is all the help there is; wg-quick's own part comes first, unchanged in meaning.
const usage = `Usage: %[1]s [ up | down | save | strip ] [ CONFIG_FILE | INTERFACE ]
       %[1]s reload [ CONFIG_FILE | INTERFACE ]
       %[1]s exec [ --birth | --namespace NS ] [ --user USER ] INTERFACE -- COMMAND
       %[1]s shell [ --birth | --namespace NS ] [ --user USER ] INTERFACE
       %[1]s plan [ up | down ] [ --json ] [ CONFIG_FILE | INTERFACE ]
       %[1]s up --dry-run [ CONFIG_FILE | INTERFACE ]
       %[1]s guard [ --leave | --unit ] [ CONFIG_FILE | INTERFACE ]
       %[1]s status [ --json ] [ INTERFACE ]
       %[1]s check [ --json ] [ --resolve ] [ CONFIG_FILE | INTERFACE ] ...
       %[1]s completion [ bash | zsh | fish ]
       %[1]s [ help | version ]

  CONFIG_FILE is a file whose name is the interface's name followed by ` + "`.conf'" + `.
  INTERFACE alone stands for /etc/wireguard/INTERFACE.conf. The file is what
  wg(8) addconf reads, with these keys more in its [Interface] section:

  - Address: one or more IP addresses, with an optional CIDR mask, separated by
    commas; may be given several times.
  - DNS: name servers, and search domains, while the device is up.
  - MTU: the device's MTU in bytes; found out from the path when left out.
  - Table: the routing table of the routes; ` + "`auto'" + ` (as when left out) takes the
    main table and makes a /0 the default route; ` + "`off'" + ` adds no routes.
  - PreUp, PostUp, PreDown, PostDown: commands for bash(1) at these moments;
    ` + "`%%i'" + ` becomes INTERFACE; may be given several times.
  - SaveConfig: with ` + "`true'" + `, down writes the device's state back to the file.
  - Namespace: the network namespace that the device lives in: a name as of
    ip-netns(8), made when missing; init, pid:N, an absolute path, docker:NAME,
    podman:NAME, unit:NAME or machine:NAME.
    InterfaceNamespace is the same key.
  - BirthNamespace: likewise where it is created, and its UDP socket stays.
    SocketNamespace is the same key.
  - HookNamespace: where the commands run: interface (the default), birth, caller.
  - ManageNamespace: with ` + "`false'" + `, no namespace is made or deleted.
  - RoutingStrategy: how a /0 becomes the way out: auto (wg-quick's way, the
    default), replace, override, rules or physical-netns, which moves what leads
    to the Internet into the namespace of the socket.
  - RulePriority: for rules, the endpoints' priority and the tunnel's: A, B.
  - KillSwitch: with ` + "`true'" + `, nothing leaves but through the tunnel, until down.
  - PhysicalInterfaces: what physical-netns moves: names, or auto (the default).
  - PhysicalServices: who configures them there: systemd units, none, or auto.
  - PhysicalUp, PhysicalDown: commands for bash(1) there, after the way in and
    before the way back; may be given several times.
  From Namespace on they may also stand in a comment: # wg-quickns: Namespace = NAME

  up     creates the device, configures it and routes traffic into it
  down   undoes exactly what up did, also when the file or the device is gone
  save   writes the device's state to the file
  strip  prints the file without the keys that are not wg(8)'s
  reload makes a device that is up what the file says by now; sessions go on
  exec   runs a command in the device's namespace, or in that of its socket when
         the device is in the caller's, as the user who called
  shell  likewise the user's shell
  plan   prints what up or down would do, as commands with their undo and reason,
         and touches nothing; up --dry-run is the same as plan up
  guard  keeps routes, rules and firewall as up made them, in the foreground until
         down, and follows endpoints that move; when the device is gone it cleans
         up after it, or with --leave exits with 3 instead; with --unit likewise,
         and of a device that needs no guard only notices the end
  status shows the tunnels of all namespaces, or one, and what is broken
  check  prints all that is wrong or odd in files, with lines and hints
  completion prints the completion of commands, files and interfaces for a shell

See wg-quickns(8) and wg-quickns.conf(5) for more, and for examples.
`

// app is one run of the program: its name and what it was started with.
type app struct {
	program string // base name of argv[0], in front of every message
	args    []string
	out     *output
}

// gcPercent lets a command's heap grow: most of them end before it matters, and
// collecting for 100 000 routes costs more than the routes.
const gcPercent = 400

func main() {
	program := filepath.Base(os.Args[0])
	a := app{program: program, args: os.Args, out: newOutput(program, os.Args)}
	os.Exit(a.run())
}

func (a app) run() int {
	args := a.args[1:]
	commands := map[string]func(context.Context, string) error{
		"up": a.up, "down": a.down, "save": a.saveCommand, "reload": a.reload,
	}
	help := func(word string) bool { return word == "--help" || word == "-h" }
	if len(args) == 2 && (args[0] == "help" || help(args[1])) {
		command := args[0]
		if command == "help" {
			command = args[1]
		}
		if text := commandUsage(command); text != "" {
			fmt.Printf(text, a.program)
			return 0
		}
	}
	switch {
	case len(args) == 1 && (args[0] == "help" || help(args[0])):
		fmt.Fprintf(os.Stderr, usage, a.program)
		return 0
	case len(args) == 1 && (args[0] == "version" || args[0] == "--version"):
		fmt.Println(a.program, programVersion())
		return 0
	case len(args) == 2 && args[0] == userspace.Command:
		return a.status(userspace.Serve(args[1]))
	case len(args) == 1 && args[0] == dns.Command:
		return a.status(dns.Serve(os.Stdin, os.Stdout))
	case len(args) > 1 && (args[0] == "exec" || args[0] == "shell"):
		return a.status(a.exec(context.Background(), args[1:], args[0] == "shell"))
	case len(args) > 0 && args[0] == "guard":
		ctx, stop := notify(context.Background())
		defer stop()
		return a.status(a.guard(ctx, args[1:]))
	case len(args) > 0 && args[0] == "status":
		return a.status(a.statusCommand(context.Background(), args[1:]))
	case len(args) > 0 && args[0] == "plan":
		return a.status(a.planCommand(context.Background(), args[1:]))
	case len(args) == 3 && args[0] == "up" && (args[1] == "--dry-run" || args[2] == "--dry-run"):
		arg := args[1]
		if arg == "--dry-run" {
			arg = args[2]
		}
		return a.status(a.planCommand(context.Background(), []string{"up", arg}))
	case len(args) > 1 && args[0] == "check":
		return a.status(a.check(context.Background(), args[1:]))
	case len(args) > 1 && args[0] == "completion":
		return a.status(a.completion(args[1:]))
	case len(args) == 2 && args[0] == "strip":
		debug.SetGCPercent(gcPercent)
		return a.status(a.strip(args[1]))
	case len(args) == 2 && commands[args[0]] != nil:
		debug.SetGCPercent(gcPercent)
		ctx, stop := notify(context.Background())
		defer stop()
		return a.status(commands[args[0]](ctx, args[1]))
	}
	text, word := "", ""
	if len(args) > 0 {
		word = args[0]
		text = commandUsage(word)
	}
	fmt.Fprintf(os.Stderr, cmp.Or(text, usage), a.program)
	if text == "" && word != "" {
		a.say("`%s' is no command", strings.Join(args, " "))
	}
	return 1
}

// commandUsage is what usage has of one command: how it is called, and what it does;
// "" if there is no such command.
func commandUsage(command string) string {
	word := regexp.QuoteMeta(command)
	does := regexp.MustCompile(`(?m)^  ` + word + ` +[^ ].*\n(?:         .*\n)*`).FindString(usage)
	if !regexp.MustCompile(`^[a-z]+$`).MatchString(command) || does == "" {
		return ""
	}
	var calls strings.Builder
	for _, line := range regexp.MustCompile(`(?m)^(?:Usage:|      ) (%\[1\]s (?:\[ [a-z| ]*)?\b`+word+`\b.*\n)`).FindAllStringSubmatch(usage, -1) {
		calls.WriteString([]string{"Usage: ", "       "}[min(calls.Len(), 1)] + line[1])
	}
	return calls.String() + "\n" + does + "\nSee `%[1]s help' for the keys of CONFIG_FILE, and wg-quickns(8) for more.\n"
}

// notify gives a context that ends with a proc.SignalCause on INT, TERM or HUP, but for
// one that was ignored at the start, as nohup(1) does. A second signal changes nothing:
// the rollback it would interrupt is bounded. Nobody left to read what is printed ends
// nothing: the reader's connection may be what the tunnel has just cut.
func notify(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	c := make(chan os.Signal, 1)
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) {
			signal.Notify(c, s)
		}
	}
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // not Ignore: that would be the hooks' too
	go func() {
		if s, ok := (<-c).(syscall.Signal); ok {
			cancel(proc.SignalCause{Sig: s})
		}
	}()
	return ctx, func() { cancel(nil) }
}

// becomeRoot runs the same command line through sudo, with options of sudo(8),
// unless this is root already.
func (a app) becomeRoot(options ...string) error {
	if os.Getuid() == 0 {
		return nil
	}
	self, err := exec.LookPath(a.args[0])
	if err == nil {
		self, err = filepath.Abs(self)
	}
	if err != nil {
		return fmt.Errorf("find this program to run it as root: %w", err)
	}
	sudo, err := exec.LookPath("sudo")
	if err != nil {
		return fmt.Errorf("must be run as root, and sudo was not found: %w", err)
	}
	prompt := a.program + " must be run as root. Please enter the password for %u to continue: "
	argv := append([]string{"sudo", "-p", prompt}, options...)
	argv = append(append(argv, "--", self), a.args[1:]...)
	return fmt.Errorf("run sudo: %w", syscall.Exec(sudo, argv, os.Environ()))
}

// printJSON writes an answer for programs.
func printJSON(w io.Writer, answer any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(answer)
}

// status prints an error and turns it into the exit status.
func (a app) status(err error) int {
	if err == nil {
		return 0
	}
	a.fail(err)
	return exitStatus(err)
}

// version is set by the Makefile from git.
var version string

// programVersion is the program's version: the Makefile's, else what the go command
// knows of the module or of the commit that it built.
func programVersion() string {
	info, ok := debug.ReadBuildInfo()
	switch {
	case version != "":
		return version
	case !ok:
		return "unknown"
	}
	text := info.Main.Version
	if text == "" || text == "(devel)" {
		text = "unknown"
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				text = s.Value
			}
		}
	}
	return text
}
