package confparse

import (
	"slices"
	"strconv"
	"strings"
)

// Values of RoutingStrategy. "" is StrategyAuto.
const (
	StrategyAuto     = "auto"
	StrategyReplace  = "replace"
	StrategyOverride = "override"
	StrategyRules    = "rules"
	StrategyPhysical = "physical-netns"
)

// PhysicalNamespace is the BirthNamespace of strategy `physical-netns` where the
// config names none.
const PhysicalNamespace = "physical"

// Priorities of the routing rules of strategy `rules`: the endpoints' and the
// tunnel's, where RulePriority names no others.
const (
	EndpointPriority = 30
	TunnelPriority   = 40
)

// Strategy is the routing strategy by its name.
func (c *Config) Strategy() string {
	if c.RoutingStrategy == "" {
		return StrategyAuto
	}
	return c.RoutingStrategy
}

// RulePriorities are the priorities of the endpoints' rules and of the tunnel's.
func (c *Config) RulePriorities() (endpoint, tunnel uint32) {
	if c.RulePriority == [2]uint32{} {
		return EndpointPriority, TunnelPriority
	}
	return c.RulePriority[0], c.RulePriority[1]
}

func (c *Config) setStrategy(e entry) error {
	switch name := asciiLower(e.value); name {
	case "", StrategyAuto, StrategyReplace, StrategyOverride, StrategyRules, StrategyPhysical:
		c.RoutingStrategy, c.strategyLine = name, e.line
		return nil
	}
	return c.errorf(e.line, KindQuick, "RoutingStrategy is `auto', `replace', `override', `rules' or `physical-netns', not `%s'", redact(e.value))
}

// setPriority reads `A, B`: the first rule must come before the second, and both
// behind table local's (0) and before table main's (32766).
func (c *Config) setPriority(e entry) error {
	c.RulePriority, c.priorityLine = [2]uint32{}, e.line
	list := words(e.value)
	if len(list) == 0 {
		return nil
	}
	if len(list) == 2 {
		a, errA := strconv.ParseUint(list[0], 10, 32)
		b, errB := strconv.ParseUint(list[1], 10, 32)
		if errA == nil && errB == nil && 0 < a && a < b && b < 32766 {
			c.RulePriority = [2]uint32{uint32(a), uint32(b)}
			return nil
		}
	}
	return c.errorf(e.line, KindQuick, "RulePriority is two numbers `A, B' with 0 < A < B < 32766, not `%s'", redact(e.value))
}

// checkStrategy refuses keys that exclude each other.
func (c *Config) checkStrategy() error {
	s := c.Strategy()
	if c.RulePriority != [2]uint32{} && s != StrategyRules {
		if err := c.refuse(c.errorf(c.priorityLine, KindQuick, "RulePriority is for `RoutingStrategy = rules' only")); err != nil {
			return err
		}
	}
	if err := c.refuse(c.checkPhysical(s)); err != nil {
		return err
	}
	return c.refuse(c.checkTable(s))
}

// checkPhysical refuses what makes no sense with, or without, `physical-netns`.
func (c *Config) checkPhysical(s string) error {
	switch {
	case s != StrategyPhysical && c.physicalLine != 0:
		return c.errorf(c.physicalLine, KindQuick, "Physical... keys are for `RoutingStrategy = physical-netns' only")
	case s != StrategyPhysical:
	case c.BirthNamespace.Kind != NSName:
		return c.errorf(c.BirthNamespace.Line, KindQuick, "`RoutingStrategy = physical-netns' needs a BirthNamespace that is a name, as `ip netns' has them, not `%s'", redact(c.BirthNamespace.String()))
	case c.Namespace.Kind == NSName && c.Namespace.Value == c.BirthNamespace.Value:
		return c.errorf(c.Namespace.Line, KindQuick, "Namespace and BirthNamespace are the same: with `RoutingStrategy = physical-netns' the interfaces go from the one to the other")
	}
	return nil
}

// physicalList reads a list of names, or one of the words that stand for one: the
// first for nil, another for an empty list.
func (c *Config) physicalList(e entry, list []string, special ...string) ([]string, error) {
	c.physicalLine = e.line
	names := words(e.value)
	if len(names) == 0 {
		return nil, c.errorf(e.line, KindQuick, "a list of names, or `%s', is missing", strings.Join(special, "' or `"))
	}
	for _, name := range names {
		i := slices.Index(special, asciiLower(name))
		switch {
		case i >= 0 && (len(names) > 1 || list != nil):
			return nil, c.errorf(e.line, KindQuick, "`%s' stands for a list and cannot be in one", asciiLower(name))
		case i == 0:
			return nil, nil
		case i > 0:
			return []string{}, nil
		case special[0] == "auto" && len(special) == 1 && !interfaceName(name), strings.ContainsAny(name, "/\x00"):
			return nil, c.errorf(e.line, KindQuick, "not a name: `%s'", redact(name))
		}
		if len(special) > 1 && !strings.Contains(name, ".") {
			name += ".service"
		}
		if !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return list, nil
}

// interfaceName says whether the kernel takes a name for an interface
// (dev_valid_name of net/core/dev.c).
func interfaceName(s string) bool {
	return s != "." && s != ".." && 0 < len(s) && len(s) < 16 && !strings.ContainsAny(s, "/: \t\n")
}
func (c *Config) checkTable(s string) error {
	switch {
	case s == StrategyAuto || c.Table == "" || c.Table == "auto":
		return nil
	case c.Table == "off":
		return c.errorf(c.strategyLine, KindQuick, "`RoutingStrategy = %s' has no routes to make with `Table = off'", s)
	case s != StrategyRules:
		return c.errorf(c.strategyLine, KindQuick, "`RoutingStrategy = %s' works on table main: it cannot go with `Table = %s'", s, redact(c.Table))
	}
	if id, ok := TableID(c.Table, map[string]uint32{"main": 254, "local": 255}); ok && (id == 0 || id == 254 || id == 255) {
		return c.errorf(c.tableLine, KindTable, "`RoutingStrategy = rules' needs a table of its own, not `Table = %s'", redact(c.Table))
	}
	return nil
}
