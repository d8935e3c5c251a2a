package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"

	"github.com/google/nftables"

	"wg-quickns/internal/netns"
	"wg-quickns/internal/plan"
)

// iptablesRules is the input of iptables-restore -n that does what the nft table
// does, in wg-quick's own form, so that its `down` finds the rules.
func iptablesRules(s plan.Nft) string {
	var b strings.Builder
	marker := fmt.Sprintf("-m comment --comment %q", s.Comment())
	b.WriteString("*raw\n")
	for _, a := range s.Addrs {
		fmt.Fprintf(&b, "-I PREROUTING ! -i %s -d %s -m addrtype ! --src-type LOCAL -j DROP %s\n", s.Link, a, marker)
	}
	fmt.Fprintf(&b, "COMMIT\n*mangle\n-I POSTROUTING -m mark --mark %d -p udp -j CONNMARK --save-mark %s\n", s.Mark, marker)
	fmt.Fprintf(&b, "-I PREROUTING -p udp -j CONNMARK --restore-mark %s\nCOMMIT\n", marker)
	return b.String()
}

// iptablesUndo turns the output of iptables-save into input of iptables-restore
// -n that deletes the rules with exactly this comment; "" when there are none.
func iptablesUndo(saved, comment string) string {
	var b strings.Builder
	found := false
	marker := fmt.Sprintf(" --comment %q ", comment)
	for line := range strings.Lines(saved) {
		line = strings.TrimSuffix(line, "\n")
		rule, isRule := strings.CutPrefix(line, "-A ")
		switch {
		case isRule && strings.Contains(line+" ", marker):
			found = true
			b.WriteString("-D " + rule + "\n")
		case strings.HasPrefix(line, "*") || line == "COMMIT":
			b.WriteString(line + "\n")
		}
	}
	if !found {
		return ""
	}
	return b.String()
}

// iptables runs a program of the iptables family in the namespace.
func (sp *space) iptables(ctx context.Context, input, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, text bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &text
	// The child is born in the namespace of the thread that starts it.
	if err := netns.DoFile(sp.ns, cmd.Run); err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(text.String()))
	}
	return out.String(), nil
}

// iptablesAdd adds the rules, in place of those without their interface.
func (sp *space) iptablesAdd(ctx context.Context, s plan.Nft, tables []*nftables.Table) error {
	undo, err := sp.iptablesFind(ctx, s, s.IPv6, tables)
	if err != nil {
		return err
	}
	_, err = sp.iptables(ctx, undo+iptablesRules(s), iptablesPrefix(s.IPv6)+"tables-restore", "-n")
	return err
}

// iptablesDelete deletes the tunnel's rules of both families.
func (sp *space) iptablesDelete(ctx context.Context, s plan.Nft, tables []*nftables.Table) error {
	var errs []error
	for _, v6 := range []bool{false, true} {
		undo, err := sp.iptablesFind(ctx, s, v6, tables)
		if err == nil && undo != "" {
			_, err = sp.iptables(ctx, undo, iptablesPrefix(v6)+"tables-restore", "-n")
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func iptablesPrefix(v6 bool) string {
	if v6 {
		return "ip6"
	}
	return "ip"
}

// iptablesFind looks for the tunnel's rules of one family and returns what
// deletes them, "" for none. It starts a program only where there is a table
// that could hold them: the kernel's iptables list theirs, and those of
// iptables-nft are among the nft tables.
func (sp *space) iptablesFind(ctx context.Context, s plan.Nft, v6 bool, tables []*nftables.Table) (undo string, err error) {
	var used []byte
	err = netns.DoFile(sp.ns, func() (err error) {
		used, err = os.ReadFile("/proc/thread-self/net/" + iptablesPrefix(v6) + "_tables_names")
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("list iptables tables: %w", err)
	}
	some := len(used) > 0
	for _, t := range tables {
		some = some || t.Family == nftFamily(v6) && (t.Name == "raw" || t.Name == "mangle")
	}
	if !some {
		return "", nil
	}
	saved, err := sp.iptables(ctx, "", iptablesPrefix(v6)+"tables-save")
	if errors.Is(err, exec.ErrNotFound) {
		return "", nil // who made them had iptables
	}
	return iptablesUndo(saved, s.Comment()), err
}
