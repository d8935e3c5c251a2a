package dns

import (
	"slices"
	"testing"
)

func TestUpstream(t *testing.T) {
	servers, search := upstream("# by hand\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver ::1\nnameserver nonsense\ndomain a\nsearch b  c\noptions edns0\nnameserver")
	if want := []string{"192.0.2.1", "fe80::1%eth0"}; !slices.Equal(servers, want) {
		t.Errorf("servers %q, want %q", servers, want)
	}
	if want := []string{"b", "c"}; !slices.Equal(search, want) {
		t.Errorf("search %q, want %q", search, want)
	}
}
