package confparse

import (
	"strings"
	"testing"
)

func TestNamespaceKeys(t *testing.T) {
	for text, want := range map[string]Namespace{
		"":                      {},
		"init":                  {Kind: NSInit, Value: "init"},
		"container":             {Kind: NSName, Value: "container"},
		"container # a comment": {Kind: NSName, Value: "container"},
		"879":                   {Kind: NSNumber, Value: "879"},
		"PID:879":               {Kind: NSPID, Value: "879"},
		"/proc/1/ns/net":        {Kind: NSPath, Value: "/proc/1/ns/net"},
		"docker:web_1":          {Kind: NSDocker, Value: "web_1"},
		"podman:web":            {Kind: NSPodman, Value: "web"},
		"unit:nginx.service":    {Kind: NSUnit, Value: "nginx.service"},
		"machine:box":           {Kind: NSMachine, Value: "box"},
	} {
		for _, key := range []string{"Namespace", "interfaceNAMESPACE", "# wg-quickns: Namespace", "#wg-quickns:InterfaceNamespace"} {
			c, err := ParseLines("f", []byte("[Interface]\nNamespace = x\n"+key+" = "+text+"\n"))
			if err != nil {
				t.Errorf("%s = %s: %v", key, text, err)
				continue
			}
			if want != (Namespace{}) {
				want.Line = 3
			}
			if got := c.Namespace; got.Kind != want.Kind || got.Value != want.Value {
				t.Errorf("%s = %s: got %+v", key, text, got)
			}
		}
	}
	c, err := ParseLines("f", []byte("[Interface]\nSocketNamespace=a\nHookNamespace=Birth\nManageNamespace=FALSE\n"))
	if err != nil || c.BirthNamespace.Value != "a" || c.HookNamespace != HookBirth || !c.ForeignNamespaces {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestNamespaceErrors(t *testing.T) {
	for line, want := range map[string]string{
		"Namespace = a/b":                     "a name may hold no slash",
		"Namespace = ..":                      "refused",
		"Namespace = -x":                      "refused",
		"Namespace = a b":                     "no blank",
		"Namespace = 99999999999":             "neither a name nor a process ID",
		"Namespace = 0":                       "neither a name nor a process ID",
		"Namespace = pid:x":                   "a process ID must follow",
		"Namespace = docker:":                 "a name must follow",
		"HookNamespace = elsewhere":           "not `elsewhere'",
		"ManageNamespace = maybe":             "neither true nor false",
		"# wg-quickns: Namespac = x":          "unknown key",
		"[Peer]\n# wg-quickns: Namespace = x": "belongs into [Interface]",
	} {
		_, err := Parse("f", []byte("[Interface]\n"+line+"\n"))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "f:") {
			t.Errorf("%s: got %v, want %q", line, err, want)
		}
	}
}

// One file serves stock wg-quick too: its own keys go, its comments stay.
func TestNamespaceStripAndSave(t *testing.T) {
	text := "[Interface]\nNamespace = a # why\n# wg-quickns: BirthNamespace = b\nListenPort = 1\n"
	c, err := Parse("f", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(c.Strip()), "[Interface]\n# wg-quickns: BirthNamespace = b\nListenPort = 1\n\n"; got != want {
		t.Errorf("strip: %q", got)
	}
	saved := string(c.Save(Running{ListenPort: 1}))
	again, err := Parse("f", []byte(saved))
	if err != nil || again.Namespace.Value != "a" || again.BirthNamespace.Value != "b" || !strings.Contains(saved, "# why") {
		t.Errorf("saved %q, %v", saved, err)
	}
}
