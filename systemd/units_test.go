package systemd

import (
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestWithoutDevices: what binds a unit to a device goes, and nothing else.
func TestWithoutDevices(t *testing.T) {
	const unit = `[Unit]
Description=ifup for %I
After=local-fs.target sys-subsystem-net-devices-%i.device \
  network-pre.target
BindsTo=sys-subsystem-net-devices-%i.device
Requires = a.device b.service
After=
[Service]
ExecStart=/bin/x Requires=y.device
`
	const want = `[Unit]
Description=ifup for %I
After=local-fs.target network-pre.target
Requires =b.service
After=
[Service]
ExecStart=/bin/x Requires=y.device
`
	if got := withoutDevices(unit); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestService reads control groups, see cgroups(7).
func TestService(t *testing.T) {
	for text, want := range map[string]string{
		"0::/system.slice/system-dhcpcd.slice/dhcpcd@eth0.service\n":             "dhcpcd@eth0.service",
		"0::/system.slice/ifup@eth0.service/below\n":                             "ifup@eth0.service",
		"12:pids:/x.service\n1:name=systemd:/system.slice/networking.service\n":  "networking.service",
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/x.service\n": "",
		"0::/system.slice/docker-0123.scope/system.slice/dhcpcd.service\n":       "",
		"0::/machine.slice/machine-x.scope/payload/dhcpcd.service\n":             "",
		"0::/init.scope\n": "",
		"0::/\n":           "",
	} {
		if got := service(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// TestConfigures and TestAddresses know units by their names.
func TestConfigures(t *testing.T) {
	for unit, want := range map[string][2]bool{ // configures, addresses
		"dhcpcd@eth0.service":                {true, true},
		"ifup@eth0.service":                  {true, true},
		"networking.service":                 {true, true},
		"NetworkManager.service":             {true, true},
		"wpa_supplicant@wlan0.service":       {true, false},
		"wpa_supplicant-wired@eth0.service":  {true, false},
		"wpa_supplicant.service":             {true, false},
		"hostapd@wlan0.service":              {true, false},
		"ssh.service":                        {false, true},
		"NetworkManager-wait-online.service": {false, true},
	} {
		if got := [2]bool{configures(unit), addresses(unit)}; got != want {
			t.Errorf("%s: %v, want %v", unit, got, want)
		}
	}
	if iwdConfigures("[General]\n#EnableNetworkConfiguration=true\n") || !iwdConfigures("[General]\nEnableNetworkConfiguration = true\n") {
		t.Error("iwd")
	}
}

// TestWords finds interfaces in command lines.
func TestWords(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"wpa_supplicant", "-B", "-iwlan0", "-c/etc/x.conf"}, "wlan0"},
		{[]string{"wpa_supplicant", "-Biwlan0"}, "wlan0"},
		{[]string{"wpa_supplicant", "-i", "wlan0"}, "wlan0"},
		{[]string{"dhclient", "-4", "-pf", "/run/x", "eth0"}, "eth0"},
	} {
		if got := words(c.args[0], c.args); !slices.Contains(got, c.want) {
			t.Errorf("%q: %q", c.args, got)
		}
	}
}

// TestTitle reads what dhcpcd(8) calls its processes.
func TestTitle(t *testing.T) {
	for title, want := range map[string][]string{
		"eth0 [ip4] [ip6]":                      {"dhcpcd", "-b", "eth0"},
		"eth0 [ip4]":                            {"dhcpcd", "-b", "-4", "eth0"},
		"[manager] [ip4] [ip6]":                 {"dhcpcd", "-b"},
		"[master] [ip6]":                        {"dhcpcd", "-b", "-6"},
		"[privileged proxy] eth0 [ip4] [ip6]":   nil,
		"[network proxy] eth0 [ip4] [ip6]":      nil,
		"[BPF BOOTP] eth0":                      nil,
		"[control proxy] [manager] [ip4] [ip6]": nil,
		"eth0 -c/tmp/hook [ip4]":                nil,
	} {
		if got, _ := dhcpcd(title); !slices.Equal(got, want) {
			t.Errorf("%s: %q", title, got)
		}
	}
}

// TestDeadBus: a bus that takes the connection and never says a word is not waited for.
func TestDeadBus(t *testing.T) {
	path := t.TempDir() + "/bus"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+path)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	f := finder{ctx: ctx, links: []string{"eth0"}, limit: 50 * time.Millisecond}
	for unit, who := range map[string]string{manager: "NetworkManager", networkd: "systemd-networkd"} {
		if _, err := f.linksOf(unit); err == nil || err.Error() != who+" does not answer: context deadline exceeded" || ctx.Err() != nil {
			t.Errorf("%s: %v", unit, err)
		}
	}
}

// TestScratch: a file that another process is only writing for its unit is not one of ours,
// and of ours even an empty one is.
func TestScratch(t *testing.T) {
	defer os.RemoveAll("/run/systemd")
	file := func(unit, text string) string {
		path := runtimeUnits + "/b.service.d/" + dropIn + scratchOf(unit)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file("b.service", header("b.service")[:10])
	want := []string{file("a.service", "")}
	if got, err := drops("a.service"); err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
}

// TestManagerConfig: of NetworkManager's folder only what it reads is taken along, a folder or
// a link to nowhere stops nothing.
func TestManagerConfig(t *testing.T) {
	const dir = "/etc/NetworkManager/conf.d"
	for _, err := range []error{
		os.MkdirAll(dir+"/old", 0o755), os.Mkdir(dir+"/folder.conf", 0o755), os.WriteFile(dir+"/mine.conf", []byte("[main]\n"), 0o600),
		os.WriteFile(dir+"/mine.conf~", nil, 0o600), os.Symlink("nowhere", dir+"/gone.conf"), os.Symlink("/dev/null", dir+"/hides.conf"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	defer os.RemoveAll("/etc/NetworkManager")
	views := t.TempDir()
	if _, err := managerExtra(views); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	files, err := os.ReadDir(views + "/nm-conf")
	for _, e := range files {
		text, _ := os.ReadFile(views + "/nm-conf/" + e.Name())
		got[e.Name()] = string(text)
	}
	delete(got, "zzz-wg-quickns.conf")
	if want := map[string]string{"mine.conf": "[main]\n", "hides.conf": "", "folder.conf": ""}; err != nil || !maps.Equal(got, want) {
		t.Errorf("taken along: %q, %v", got, err)
	}
}
