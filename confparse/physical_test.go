package confparse

import (
	"slices"
	"strings"
	"testing"
)

func TestPhysical(t *testing.T) {
	parse := func(lines string) (*Config, error) {
		return Parse("wg0.conf", []byte("[Interface]\n"+lines+"\n"))
	}
	c, err := parse("RoutingStrategy = Physical-NetNS\nPhysicalUp = echo a # b\nPhysicalUp = c, d\n# wg-quickns: PhysicalDown = e # f\nPhysicalInterfaces = eth0, wlan0\nPhysicalInterfaces = eth0 eth1\nPhysicalServices = dhcpcd@eth0 my.socket")
	if err != nil {
		t.Fatal(err)
	}
	for what, got := range map[string][2][]string{
		"PhysicalUp":         {c.PhysicalUp, {"echo a # b", "c, d"}},
		"PhysicalDown":       {c.PhysicalDown, {"e # f"}},
		"PhysicalInterfaces": {c.PhysicalInterfaces, {"eth0", "wlan0", "eth1"}},
		"PhysicalServices":   {c.PhysicalServices, {"dhcpcd@eth0.service", "my.socket"}},
	} {
		if !slices.Equal(got[0], got[1]) {
			t.Errorf("%s: %q, want %q", what, got[0], got[1])
		}
	}
	if c.BirthNamespace.Kind != NSName || c.BirthNamespace.Value != "physical" {
		t.Errorf("BirthNamespace: %+v", c.BirthNamespace)
	}
	if c, err = parse("RoutingStrategy = physical-netns\nBirthNamespace = outside\nPhysicalInterfaces = AUTO\nPhysicalServices = none"); err != nil {
		t.Error(err)
	} else if c.BirthNamespace.Value != "outside" || c.PhysicalInterfaces != nil || c.PhysicalServices == nil || len(c.PhysicalServices) != 0 {
		t.Errorf("%+v", c)
	}
	for lines, want := range map[string]string{
		"PhysicalInterfaces = eth0":                                                       ":2: Physical",
		"RoutingStrategy = auto\nPhysicalUp = true":                                       ":3: Physical",
		"RoutingStrategy = physical-netns\nPhysicalInterfaces = auto, eth0":               ":3: `auto' stands for",
		"RoutingStrategy = physical-netns\nPhysicalInterfaces = a/b":                      ":3: not a name: `a/b'",
		"RoutingStrategy = physical-netns\nPhysicalInterfaces = toolonganame0123":         ":3: not a name",
		"RoutingStrategy = physical-netns\nPhysicalInterfaces =":                          ":3: a list of names",
		"RoutingStrategy = physical-netns\nPhysicalServices = a\nPhysicalServices = none": ":4: `none' stands for",
		"RoutingStrategy = physical-netns\nTable = 7":                                     "`Table = 7'",
		"RoutingStrategy = physical-netns\nBirthNamespace = init":                         ":3: `RoutingStrategy = physical-netns' needs",
		"RoutingStrategy = physical-netns\nNamespace = physical":                          ":3: Namespace and BirthNamespace are the same",
		"RoutingStrategy = physical":                                                      "`rules' or `physical-netns', not `physical'",
	} {
		if _, err := parse(lines); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", lines, err, want)
		}
	}
}
