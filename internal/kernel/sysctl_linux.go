package kernel

import (
	"fmt"
	"os"
	"strings"

	"wg-quickns/internal/plan"
)

// sysctlPath spells a sysctl as sysctl(8) does: dots separate, and a slash
// stands for a dot within a name. What is under net is the namespace's of the
// thread that opens it.
func sysctlPath(name string) string {
	swap := strings.NewReplacer(".", "/", "/", ".")
	return "/proc/sys/" + swap.Replace(name)
}

// sameValue compares sysctl values, which the kernel separates by tabs.
func sameValue(a, b string) bool {
	return strings.Join(strings.Fields(a), " ") == strings.Join(strings.Fields(b), " ")
}

func (sp *space) sysctl(name string) (value string, err error) {
	err = sp.inside(func() error {
		b, err := os.ReadFile(sysctlPath(name))
		value = strings.TrimSuffix(string(b), "\n")
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read sysctl %s: %w", name, err)
	}
	return value, nil
}

func (sp *space) setSysctl(s plan.Sysctl) (plan.Outcome, error) {
	old, err := sp.sysctl(s.Name)
	if err != nil {
		return plan.Outcome{}, err
	}
	err = sp.inside(func() error {
		f, err := os.OpenFile(sysctlPath(s.Name), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		if _, err := f.WriteString(s.Value + "\n"); err != nil {
			f.Close()
			return err
		}
		return f.Close()
	})
	if err != nil {
		return plan.Outcome{}, fmt.Errorf("set sysctl %s: %w", s.Name, err)
	}
	return plan.Outcome{Undo: []plan.Step{plan.Sysctl{Name: s.Name, Value: old}}}, nil
}
