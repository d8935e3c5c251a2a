// Package packages tests what `make deb rpm` makes, short of installing it, which
// test/systemd does.
package packages

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"wg-quickns/test/programs"
)

func run(t *testing.T, dir string, argv ...string) string {
	t.Helper()
	c := exec.Command(argv[0], argv[1:]...)
	c.Dir = dir
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "SOURCE_DATE_EPOCH=1700000000")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return string(out)
}

// pack makes a package and gives its path and its bytes.
func pack(t *testing.T, tree, format, version string) (string, []byte) {
	t.Helper()
	dir := t.TempDir()
	run(t, tree, "systemd/package/pack", format, runtime.GOARCH, version, dir)
	files, err := filepath.Glob(dir + "/*." + format)
	if err != nil || len(files) != 1 {
		t.Fatalf("the packages are %v, %v", files, err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	return files[0], data
}

// TestReproducible: a copy of the tree elsewhere, with other times and modes of its
// files, gives the same bytes.
func TestReproducible(t *testing.T) {
	root, err := programs.Root()
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := t.TempDir() + "/a copy"
	run(t, root, "bash", "-euc", `mkdir -p "$1/build"
		git ls-files -coz --exclude-standard | xargs -0 cp --parents --no-preserve=timestamps -t "$1"
		chmod -R go-rwx "$1"`, "copy", elsewhere)
	for _, format := range []string{"deb", "rpm"} {
		path, one := pack(t, root, format, "v1.2.3-rc1-7-gabcdef")
		if !strings.Contains(path, "1.2.3~rc1+7.gabcdef") {
			t.Errorf("its name is %s", path)
		}
		if _, two := pack(t, elsewhere, format, "v1.2.3-rc1-7-gabcdef"); !bytes.Equal(one, two) {
			t.Errorf("%s: two packages of the same differ", format)
		}
	}
}

// TestContents: all that `make install` puts in place, and what a package has besides.
func TestContents(t *testing.T) {
	root, err := programs.Root()
	if err != nil {
		t.Fatal(err)
	}
	deb, _ := pack(t, root, "deb", "v1.2.3")
	var got []string
	for line := range strings.Lines(run(t, root, "dpkg-deb", "-c", deb)) {
		field := strings.Fields(line)
		got = append(got, strings.TrimPrefix(field[5], "."))
		if field[1] != "root/root" || !strings.HasPrefix(line, "-rw-r--r--") && !strings.HasPrefix(line, "drwxr-xr-x") &&
			field[5] != "./usr/bin/wg-quickns" && field[5] != "./etc/wireguard/" {
			t.Errorf("in the package: %s", line)
		}
	}
	for _, want := range []string{
		"/usr/bin/wg-quickns", "/etc/wireguard/", "/usr/lib/systemd/system/wg-quickns@.service",
		"/usr/lib/systemd/system/wg-quickns-guard@.service", "/usr/lib/systemd/system/wg-quickns.target",
		"/usr/share/man/man8/wg-quickns.8.gz", "/usr/share/man/man8/wg-quickns@.service.8.gz", "/usr/share/man/man5/wg-quickns.conf.5.gz",
		"/usr/share/bash-completion/completions/wg-quickns", "/usr/share/zsh/vendor-completions/_wg-quickns",
		"/usr/share/fish/vendor_completions.d/wg-quickns.fish", "/usr/share/wg-quickns/status.schema.json", "/usr/share/wg-quickns/check.schema.json",
		"/usr/share/doc/wg-quickns/copyright", "/usr/share/doc/wg-quickns/LICENSE", "/usr/share/doc/wg-quickns/CHANGELOG.md.gz",
		"/usr/share/doc/wg-quickns/examples/full-tunnel.conf", "/usr/share/doc/wg-quickns/examples/namespaces/confined.service.d/tunnel.conf",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is missing", want)
		}
	}
	unpacked := t.TempDir()
	run(t, root, "dpkg-deb", "-x", deb, unpacked)
	if found := run(t, unpacked, "bash", "-c", "grep -rlI /usr/local usr/lib usr/share/wg-quickns || true; zgrep -l /usr/local usr/share/man/*/* || true"); found != "" {
		t.Errorf("these speak of /usr/local:\n%s", found)
	}
	if got := run(t, root, unpacked+"/usr/bin/wg-quickns", "--version"); got != "wg-quickns v1.2.3\n" {
		t.Errorf("--version: %s", got)
	}
	for _, licence := range []string{"the wg-quickns authors", "github.com/google/nftables\n", "Apache License"} {
		if text, err := os.ReadFile(unpacked + "/usr/share/doc/wg-quickns/copyright"); err != nil || !strings.Contains(string(text), licence) {
			t.Errorf("copyright has no %q (%v)", licence, err)
		}
	}
	rpm, _ := pack(t, root, "rpm", "v1.2.3")
	if info, err := os.Stat(rpm); err != nil || info.Size() < 1<<20 {
		t.Errorf("the rpm: %v, %v", info, err)
	}
}
