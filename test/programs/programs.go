// Package programs finds the programs under test and the reference for tests:
// where test/run says in the environment, else under build/ of the module.
package programs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// Quickns is the path of wg-quickns. Without $WG_QUICKNS it is built first.
func Quickns() (string, error) { return built("WG_QUICKNS", "wg-quickns", "./cmd/wg-quickns", "") }

// Faults is the path of wg-quickns with the build tag faults: one that breaks
// where $WG_QUICKNS_FAULT says. Without $WG_QUICKNS_FAULTS it is built first.
func Faults() (string, error) {
	return built("WG_QUICKNS_FAULTS", "wg-quickns-faults", "./cmd/wg-quickns", "faults")
}

// WireGuardGo is the path of wireguard-go, a userspace WireGuard that goes to the
// background by itself. Without $WG_WIREGUARD_GO it is built first, of the module's
// own dependency.
func WireGuardGo() (string, error) {
	return built("WG_WIREGUARD_GO", "wireguard-go", "golang.zx2c4.com/wireguard", "")
}

// Packages are two packages of wg-quickns for Debian, the older first, which test/run
// makes where there is systemd.
func Packages() ([]string, error) {
	dir := os.Getenv("WG_PACKAGES")
	list := []string{dir + "/wg-quickns_1.0.0~rc1_" + runtime.GOARCH + ".deb", dir + "/wg-quickns_1.0.0_" + runtime.GOARCH + ".deb"}
	for _, p := range list {
		if _, err := os.Stat(p); err != nil {
			return nil, fmt.Errorf("packages: %w (test/run systemd makes them)", err)
		}
	}
	return list, nil
}

// WGQuick is the path of the reference's wg-quick.
func WGQuick() (string, error) { return reference("wg-quick") }

// WG is the path of the reference's wg.
func WG() (string, error) { return reference("wg") }

func reference(name string) (string, error) {
	dir := os.Getenv("WG_REFERENCE")
	if dir == "" {
		root, err := Root()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(root, "build/reference/bin")
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("reference: %w (test/reference/install makes it)", err)
	}
	return path, nil
}

func built(env, name, pkg, tags string) (string, error) {
	if path := os.Getenv(env); path != "" {
		return path, nil
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	path := filepath.Join(root, "build", name)
	c := exec.Command("go", "build", "-trimpath", "-tags", tags, "-o", path, pkg)
	c.Dir, c.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	return path, os.Setenv(env, path)
}

// Root is the module's folder: the nearest one above the working folder that
// has go.mod.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", fmt.Errorf("no go.mod above the working folder")
		}
		dir = up
	}
}
