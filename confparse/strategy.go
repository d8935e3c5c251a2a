package confparse

import "strconv"

// Values of RoutingStrategy. "" is StrategyAuto.
const (
	StrategyAuto     = "auto"
	StrategyReplace  = "replace"
	StrategyOverride = "override"
	StrategyRules    = "rules"
)

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
	case "", StrategyAuto, StrategyReplace, StrategyOverride, StrategyRules:
		c.RoutingStrategy, c.strategyLine = name, e.line
		return nil
	}
	return c.errorf(e.line, KindQuick, "RoutingStrategy is `auto', `replace', `override' or `rules', not `%s'", redact(e.value))
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
	return c.refuse(c.checkTable(s))
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
