package main

import (
	"maps"
	"strings"
	"testing"
)

const output = `=== RUN   TestA
    a_test.go:1: quiet
--- PASS: TestA (0.00s)
=== RUN   TestB
=== PAUSE TestB
=== RUN   TestC
=== PAUSE TestC
=== CONT  TestB
=== RUN   TestB/x
    b_test.go:1: wrong
=== NAME  TestC
    c_test.go:1: fine
--- PASS: TestC (0.00s)
--- FAIL: TestB (0.00s)
    --- PASS: TestB/w (0.00s)
    --- FAIL: TestB/x (0.00s)
=== RUN   TestD
    d_test.go:1: not now
--- SKIP: TestD (0.00s)
FAIL
FAIL	some/package	0.1s
?   	some/other	[no test files]
=== RUN   TestE
--- PASS: TestE (0.00s)
PASS
ok  	some/third	0.1s
=== RUN   TestF
panic: oh
goroutine 1
FAIL	some/fourth	0.1s
lab: the machine died
`

func TestDigest(t *testing.T) {
	const want = `    b_test.go:1: wrong
--- FAIL: TestB (0.00s)
    --- FAIL: TestB/x (0.00s)
    d_test.go:1: not now
--- SKIP: TestD (0.00s)
FAIL	some/package	0.1s
ok  	some/third	0.1s
panic: oh
goroutine 1
FAIL	some/fourth	0.1s
lab: the machine died
`
	var got strings.Builder
	digest(strings.NewReader(output), &got)
	if got.String() != want {
		t.Errorf("got:\n%s", &got)
	}
}

func TestCount(t *testing.T) {
	got := map[string]int{}
	count(strings.NewReader(output), got)
	if want := map[string]int{"PASS": 4, "FAIL": 2, "SKIP": 1, "package": 1}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
