package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"wg-quickns/confparse"
	"wg-quickns/hooks"
	"wg-quickns/internal/netns"
	"wg-quickns/internal/plan"
)

const (
	execUsage  = "usage: exec [--birth | --namespace NS] [--user USER] INTERFACE -- COMMAND [ARGUMENT...]"
	shellUsage = "usage: shell [--birth | --namespace NS] [--user USER] INTERFACE"
)

// execRequest is what exec and shell are asked for.
type execRequest struct {
	birth     bool
	namespace string
	user      string
	arg       string // the interface or its config
	argv      []string
}

// parseExec reads the arguments behind `exec`, or behind `shell` where there is no command.
func parseExec(args []string, shell bool) (r execRequest, err error) {
	usage := execUsage
	if shell {
		usage = shellUsage
	}
	value := func(option string) (string, error) {
		if len(args) < 2 {
			return "", fmt.Errorf("%s needs a value; %s", option, usage)
		}
		v := args[1]
		args = args[1:]
		return v, nil
	}
	for ; len(args) > 0; args = args[1:] {
		option, inline, hasInline := strings.Cut(args[0], "=")
		switch {
		case option == "--birth" && !hasInline:
			r.birth = true
			continue
		case option == "--namespace", option == "--user":
			v := inline
			if !hasInline {
				if v, err = value(option); err != nil {
					return r, err
				}
			}
			if option == "--user" {
				r.user = v
			} else {
				r.namespace = v
			}
			continue
		case args[0] == "--" && !shell && (r.arg != "" || r.namespace != ""):
			r.argv = args[1:]
			args = args[:1]
			continue
		case r.arg == "" && !strings.HasPrefix(args[0], "-"):
			r.arg = args[0]
			continue
		}
		if !shell && r.arg != "" {
			return r, fmt.Errorf("`%s' is not understood: a command comes behind `--'; %s", args[0], usage)
		}
		return r, fmt.Errorf("`%s' is not understood; %s", args[0], usage)
	}
	switch {
	case r.arg == "" && r.namespace == "":
		return r, fmt.Errorf("no interface; %s", usage)
	case r.birth && r.namespace != "":
		return r, errors.New("--birth and --namespace exclude each other")
	case len(r.argv) == 0 && !shell:
		return r, fmt.Errorf("no command behind `--'; %s", usage)
	}
	return r, nil
}

// exec replaces this program by a command in a tunnel's namespace, as the user who called.
func (a app) exec(ctx context.Context, args []string, shell bool) error {
	r, err := parseExec(args, shell)
	if err != nil {
		return err
	}
	if err := a.becomeRoot("-E"); err != nil {
		return err
	}
	ns, err := a.execNamespace(ctx, r)
	if err != nil {
		return err
	}
	user, err := hooks.CallingUser(os.Environ())
	if r.user != "" {
		user, err = hooks.LookupUser(r.user)
	}
	if err != nil {
		return err
	}
	env := user.Environ(os.Environ())
	if shell {
		r.argv = []string{"/bin/sh"}
		if sh := os.Getenv("SHELL"); sh != "" {
			r.argv[0] = sh
		}
	}
	return hooks.Exec(string(ns), hooks.ExecOptions{User: &user, Argv: r.argv, Env: env})
}

// execNamespace is the namespace asked for: by default the interface's own if it
// is not the caller's, else the one its socket was born in.
func (a app) execNamespace(ctx context.Context, r execRequest) (plan.NS, error) {
	here, err := netns.Identify("")
	if err != nil {
		return "", err
	}
	local := func(ns plan.NS) plan.NS { return localNS(ns, here.String()) }
	if r.namespace != "" {
		n, err := confparse.ParseNamespace(r.namespace)
		if err != nil {
			return "", err
		}
		p := place{spaces: map[plan.NS]string{"": here.String()}}
		ns, _, err := p.find(ctx, n)
		if err == nil && p.missing(ns) {
			err = errors.New("it does not exist")
		}
		if err != nil {
			err = fmt.Errorf("namespace `%s': %w", n, err)
		}
		return local(ns), err
	}
	p, err := a.whereIs(ctx, r.arg, here)
	if err != nil {
		return "", err
	}
	ns := p.Target
	if r.birth || local(ns) == "" && !p.gone(ns) {
		ns = p.Birth
	}
	if p.gone(ns) {
		return "", fmt.Errorf("the network namespace of `%s' is gone (hint: down)", r.arg)
	}
	return local(ns), nil
}

// whereIs finds the place of an interface: the record's, else the config's.
func (a app) whereIs(ctx context.Context, arg string, here netns.ID) (place, error) {
	t, configErr := a.parseOwn(arg)
	if t.name == "" {
		return place{}, configErr
	}
	name, err := findState(t, here)
	if err != nil {
		return place{}, err
	}
	log, err := stateRoot.Open(name)
	if err != nil {
		return place{}, err
	}
	if _, ok := log.Header(); ok {
		return recordedPlace(log)
	}
	if configErr != nil {
		return place{}, configErr
	}
	p, err := findPlace(ctx, t.path, t.cfg)
	if err == nil && len(p.Make) > 0 {
		err = fmt.Errorf("`%s' is not up: its namespace is not there", t.name)
	}
	return p, err
}
