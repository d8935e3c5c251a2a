package proc

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestExampleHides: the drop-in for a unit hides the same resolvers as Enter does, each
// by its folder or by the socket in it.
func TestExampleHides(t *testing.T) {
	text, err := os.ReadFile("../../examples/namespaces/confined.service.d/tunnel.conf")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		paths, ok := strings.CutPrefix(line, "InaccessiblePaths=")
		if !ok {
			continue
		}
		for _, dir := range resolvers {
			if !slices.ContainsFunc(strings.Fields(paths), func(p string) bool { return strings.HasPrefix(p+"/", "-"+dir+"/") }) {
				t.Errorf("%s is not hidden", dir)
			}
		}
		return
	}
	t.Error("there is no InaccessiblePaths")
}
