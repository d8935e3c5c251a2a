// Command digest reads the output of go test -v and prints what a person wants
// of it as it comes: a line per package, and all lines of each failed or skipped
// test. With a file name it reads nothing else, and prints the closing count.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
)

var (
	turn    = regexp.MustCompile(`^=== (?:RUN|PAUSE|CONT|NAME) +([^/ ]*)`)
	verdict = regexp.MustCompile(`^( *)--- (PASS|FAIL|SKIP): ([^/ ]*)`)
	pkg     = regexp.MustCompile(`^(ok|FAIL)\s.`)
	noise   = regexp.MustCompile(`^(PASS|FAIL)?$|no test files|no tests to run`)
)

func main() {
	if len(os.Args) == 1 {
		digest(os.Stdin, os.Stdout)
		return
	}
	counts := map[string]int{}
	for _, name := range os.Args[1:] {
		f, err := os.Open(name)
		if err != nil {
			fmt.Fprintln(os.Stderr, "digest:", err)
			os.Exit(1)
		}
		count(f, counts)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", counts["PASS"], counts["FAIL"]+counts["package"], counts["SKIP"])
	if counts["PASS"] == 0 || counts["FAIL"]+counts["package"]+counts["SKIP"] > 0 {
		os.Exit(1)
	}
}

// count adds up verdicts, those of subtests too; a package that fails without
// a failed test (it does not build, it panics, its machine dies) is one failure.
func count(r io.Reader, counts map[string]int) {
	failed := 0
	for line := range lines(r) {
		if m := verdict.FindStringSubmatch(line); m != nil {
			counts[m[2]]++
			if m[2] == "FAIL" {
				failed++
			}
		} else if m := pkg.FindStringSubmatch(line); m != nil {
			if m[1] == "FAIL" && failed == 0 {
				counts["package"]++
			}
			failed = 0
		}
	}
}

// digest keeps the lines of each test until its verdict.
func digest(r io.Reader, w io.Writer) {
	said := map[string]string{}
	test, show := "", false // whose lines come; whether its subtests' verdicts are wanted
	for line := range lines(r) {
		if m := turn.FindStringSubmatch(line); m != nil {
			test, show = m[1], false
		} else if m := verdict.FindStringSubmatch(line); m != nil {
			if m[1] == "" {
				test, show = m[3], m[2] != "PASS"
				if show {
					fmt.Fprint(w, said[test])
				}
				delete(said, test)
			}
			if show && m[2] != "PASS" {
				fmt.Fprintln(w, line)
			}
		} else if m := pkg.FindStringSubmatch(line); m != nil {
			if m[1] == "FAIL" {
				flush(w, said)
			}
			fmt.Fprintln(w, line)
			clear(said)
			test, show = "", false
		} else if show && strings.HasPrefix(line, " ") {
			fmt.Fprintln(w, line)
		} else if !noise.MatchString(line) {
			said[test] += line + "\n"
		}
	}
	flush(w, said)
}

func flush(w io.Writer, said map[string]string) {
	for _, text := range said {
		fmt.Fprint(w, text)
	}
}

func lines(r io.Reader) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		b := bufio.NewReader(r)
		for {
			line, err := b.ReadString('\n')
			if line != "" && !yield(strings.TrimSuffix(line, "\n")) || err != nil {
				return
			}
		}
	}
}
