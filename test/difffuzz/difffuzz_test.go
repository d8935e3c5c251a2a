//go:build !lab

package difffuzz

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"wg-quickns/confparse"
	"wg-quickns/test/ns"
)

func TestMain(m *testing.M) { ns.Main(m) }

// TestParser compares WGQ_FUZZ_N generated files (2000 when not set, from the seed
// WGQ_FUZZ_SEED, 1 when not set) with the reference.
func TestParser(t *testing.T) {
	n, seed := number(t, "WGQ_FUZZ_N", 2000), number(t, "WGQ_FUZZ_SEED", 1)
	dir := t.TempDir()
	shell := startShell(t, dir)
	wg := startWG(t, dir)
	checked := ipChecks{limit: n / 3, seen: map[string]bool{}}
	outcomes := map[string]int{}
	failed := 0
	for i := range n {
		text := newGenerator(seed, i).file()
		diff := func(format string, args ...any) {
			failed++
			t.Errorf("file %d of seed %d: %s\n%q", i, seed, fmt.Sprintf(format, args...), text)
		}
		compareQuick(shell.parse(t, text), text, diff)
		compareWG(wg, text, outcomes, diff)
		checked.file(t, text, outcomes, diff)
		if failed >= 20 {
			t.Fatal("too many differences, the rest is left out")
		}
	}
	t.Logf("%d files, %d settings tried with ip(8), %d unexplained differences; outcomes: %v", n, len(checked.seen), failed, outcomes)
}

func number(t *testing.T, name string, unset int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return unset
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

func reference(t *testing.T, program string) string {
	t.Helper()
	dir := os.Getenv("WG_REFERENCE")
	if dir == "" {
		dir = "../../build/reference/bin"
	}
	path, err := filepath.Abs(filepath.Join(dir, program))
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("the reference is missing (test/reference/install gets it): %v", err)
	}
	return path
}

// quick is what wg-quick's shell parser makes of a file.
type quick struct {
	died                             string // its message, "" when it did not
	mtu, table, save, wg             string
	addresses, dns, search           []string
	preUp, postUp, preDown, postDown []string
}

// shell runs the reference's functions over one file after the other, each in a
// subshell of one bash.
type shell struct {
	in   io.Writer
	out  *bufio.Reader
	file string
}

const loop = `
# what asks about the file's place and mode costs three processes and tells nothing
source <(sed -e '/override insertion point/q' -e '/CONFIG_FILE="$(readlink /d' -e '/stat -c/d' "$1")
set +e
cd "$2/empty"
dump() {
	printf '%s\0' ok "$MTU" "$TABLE" "$SAVE_CONFIG" "$WG_CONFIG"
	local -n list
	for list in ADDRESSES DNS DNS_SEARCH PRE_UP POST_UP PRE_DOWN POST_DOWN; do
		printf '%s\0' "${#list[@]}" "${list[@]}"
	done
}
while read -r file; do
	( set -e; parse_options "$file"; dump ) 2>"$2/err" || printf '%s\0' died "$(<"$2/err")"
done
`

func startShell(t *testing.T, dir string) *shell {
	t.Helper()
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", "-c", loop, "wg-quick", reference(t, "wg-quick"), dir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the reference's shell: %v", err)
		}
	})
	return &shell{in, bufio.NewReader(out), filepath.Join(dir, "fuzz.conf")}
}

func (s *shell) parse(t *testing.T, text string) quick {
	t.Helper()
	if err := os.WriteFile(s.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(s.in, s.file)
	next := func() string {
		field, err := s.out.ReadString(0)
		if err != nil {
			t.Fatalf("the reference's shell ended: %v\n%q", err, text)
		}
		return field[:len(field)-1]
	}
	list := func() []string {
		n, err := strconv.Atoi(next())
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for range max(n, 1) { // printf writes one empty field for an empty array
			if n > 0 {
				out = append(out, next())
			}
		}
		return out
	}
	if next() == "died" {
		return quick{died: next()}
	}
	return quick{
		mtu: next(), table: next(), save: next(), wg: next(),
		addresses: list(), dns: list(), search: list(),
		preUp: list(), postUp: list(), preDown: list(), postDown: list(),
	}
}

// compareQuick compares wg-quick's own part, and the lines that strip prints.
func compareQuick(want quick, text string, diff func(string, ...any)) {
	c, err := confparse.ParseLines("fuzz.conf", []byte(text))
	if err != nil {
		var e *confparse.Error
		if !errors.As(err, &e) || e.Kind != confparse.KindQuick || want.died != "wg-quick: "+e.Msg && !hides(e.Msg, strings.TrimPrefix(want.died, "wg-quick: ")) {
			diff("error %q, reference %q", err, want.died)
		}
		return
	}
	if want.died != "" {
		diff("no error, reference %q", want.died)
		return
	}
	save := "0"
	if c.SaveConfig {
		save = "1"
	}
	var addresses []string
	for _, a := range c.Addresses {
		addresses = append(addresses, a.Text)
	}
	for _, x := range []struct {
		what      string
		got, want any
	}{
		{"MTU", c.MTUText, want.mtu},
		{"Table", c.Table, want.table},
		{"SaveConfig", save, want.save},
		{"strip", string(c.Strip()), want.wg + "\n"},
	} {
		if x.got != x.want {
			diff("%s %q, reference %q", x.what, x.got, x.want)
		}
	}
	for _, x := range []struct {
		what      string
		got, want []string
	}{
		{"Address", addresses, want.addresses},
		{"DNS", c.DNS, want.dns},
		{"search domains", c.DNSSearch, want.search},
		{"PreUp", c.PreUp, want.preUp},
		{"PostUp", c.PostUp, want.postUp},
		{"PreDown", c.PreDown, want.preDown},
		{"PostDown", c.PostDown, want.postDown},
	} {
		if !slices.Equal(x.got, x.want) {
			diff("%s %q, reference %q", x.what, x.got, x.want)
		}
	}
}

// hides says whether got is the message want with parts of it hidden.
func hides(got, want string) bool {
	if !strings.Contains(got, "(hidden)") {
		return false
	}
	parts := strings.Split(got, "(hidden)")
	want, ok := strings.CutPrefix(want, parts[0])
	for _, p := range parts[1 : len(parts)-1] {
		at := strings.Index(want, p)
		if at < 0 {
			return false
		}
		want = want[at+len(p):]
	}
	return ok && strings.HasSuffix(want, parts[len(parts)-1])
}

// wgTool runs `wg addconf` against a UAPI socket of the test's own.
type wgTool struct {
	t        *testing.T
	program  string
	file     string
	requests chan string
}

const device = "wgfuzz"

func startWG(t *testing.T, dir string) *wgTool {
	t.Helper()
	if err := os.MkdirAll("/run/wireguard", 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", "/run/wireguard/"+device+".sock")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	w := &wgTool{t, reference(t, "wg"), filepath.Join(dir, "wg.conf"), make(chan string, 1)}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			var request strings.Builder
			for s := bufio.NewScanner(conn); s.Scan() && s.Text() != ""; {
				request.WriteString(s.Text() + "\n")
			}
			io.WriteString(conn, "errno=0\n\n")
			conn.Close()
			if request.Len() > 0 { // else wg only asks whether somebody is there
				w.requests <- request.String()
			}
		}
	}()
	return w
}

// addconf gives what wg would set, or its messages when it refuses.
func (w *wgTool) addconf(text []byte) (set, messages string, ok bool) {
	w.t.Helper()
	if err := os.WriteFile(w.file, text, 0o600); err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command(w.program, "addconf", device, w.file)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "WG_ENDPOINT_RESOLUTION_RETRIES=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		w.t.Fatal(err)
	}
	if err != nil {
		return "", stderr.String(), false
	}
	return <-w.requests, stderr.String(), true
}

// Outcomes without a difference, counted beside the explained ones.
const (
	bothAccept = "wg's part equal"
	bothRefuse = "wg's refusal equal"
)

// Decided or known differences, each a predicate on wg's message.

// emptyAllowedIPs: the contract takes an empty AllowedIPs=, wg(8) only as an argument.
func emptyAllowedIPs(message string) bool {
	return strings.EqualFold(message, "Line unrecognized: `AllowedIPs='")
}

// nameLeftForLater: Parse makes no system call, so a host name, a service name and a
// zone of an endpoint are for the caller to look up, and only of a peer's last Endpoint=.
func nameLeftForLater(message string) bool {
	m := regexp.MustCompile("^(?:Name or service not known|Temporary failure in name resolution|Servname not supported for ai_socktype|System error): `(.*:.*)'$").FindStringSubmatch(message)
	if m == nil {
		return false
	}
	e := endpoint(m[1])
	return e != nil && (!e.Addr.IsValid() || e.Addr.Addr().Zone() != "")
}

// endpoint is what Parse makes of an Endpoint=, nil where it refuses it.
func endpoint(value string) *confparse.Endpoint {
	c, err := confparse.Parse("x.conf", []byte("[Peer]\nPublicKey = "+strings.Repeat("A", 43)+"=\nEndpoint = "+value+"\n"))
	if err != nil {
		return nil
	}
	return c.Device.Peers[0].Endpoint
}

// serviceLeftForLater: the same for ListenPort=, of which ResolveServices looks up the last.
func serviceLeftForLater(message string) bool {
	m := regexp.MustCompile("^Servname not supported for ai_socktype: `([^:]*)'$").FindStringSubmatch(message)
	if m == nil {
		return false
	}
	c, err := confparse.Parse("x.conf", []byte("[Interface]\nListenPort = "+m[1]+"\n"))
	return err == nil && c.Device.ListenService != ""
}

// patternAsDNS: a DNS that the reference would replace by names of files.
func patternAsDNS(e *confparse.Error) bool {
	return e.Kind == confparse.KindQuick && strings.HasPrefix(e.Msg, "DNS is a file name pattern")
}

func compareWG(w *wgTool, text string, outcomes map[string]int, diff func(string, ...any)) {
	lines, err := confparse.ParseLines("fuzz.conf", []byte(text))
	if err != nil {
		return // compareQuick looked at that
	}
	set, messages, ok := w.addconf(lines.Strip())
	var warnings []string
	message := ""
	for line := range strings.Lines(messages) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "Warning: "):
			warnings = append(warnings, line)
		case message == "":
			message = line
		}
	}

	c, err := confparse.Parse("fuzz.conf", []byte(text))
	if err == nil {
		err = c.ResolveServices(services)
	}
	var e *confparse.Error
	if err != nil && !errors.As(err, &e) {
		diff("error %v is no *Error", err)
		return
	}
	if e != nil && patternAsDNS(e) {
		outcomes["patternAsDNS"]++
		return
	}
	if e != nil && e.Kind != confparse.KindWG {
		e = nil // ip's, which the reference meets later: wg's part was taken
		c = nil
	}
	switch {
	case e != nil && ok:
		diff("error %v, reference none", e)
	case e != nil && (e.Msg == message || hides(e.Msg, message)):
		outcomes[bothRefuse]++
	case !ok && emptyAllowedIPs(message): // ours takes the line, and may meet an error later
		outcomes["emptyAllowedIPs"]++
	case !ok && nameLeftForLater(message):
		outcomes["nameLeftForLater"]++
	case !ok && serviceLeftForLater(message):
		outcomes["serviceLeftForLater"]++
	case e != nil:
		diff("error %q, reference %q", e.Msg, message)
	case !ok:
		diff("no error, reference %q", messages)
	case c == nil:
		outcomes["wg's part taken by both, ip's refused"]++
	default:
		outcomes[bothAccept]++
		if !slices.EqualFunc(c.Warnings, warnings, func(w confparse.Warning, text string) bool { return w.Text == text }) {
			diff("warnings %q, reference %q", c.Warnings, warnings)
		}
		if got, want := masked(uapi(&c.Device)), masked(set); got != want {
			diff("wg's part\n%s\nreference\n%s", got, want)
		}
	}
}

// services looks a UDP service up as getaddrinfo(3) does.
func services(name string) (int, error) {
	data, err := os.ReadFile("/etc/services")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) < 2 || !strings.HasSuffix(f[1], "/udp") || f[0] != name && !slices.Contains(f[2:], name) {
			continue
		}
		return strconv.Atoi(strings.TrimSuffix(f[1], "/udp"))
	}
	return 0, fmt.Errorf("no service %q", name)
}

// uapi writes a device as wg(8) sends it to a userspace implementation.
func uapi(d *confparse.Device) string {
	var b strings.Builder
	key := func(name string, k confparse.Key) {
		raw := k.Bytes()
		fmt.Fprintf(&b, "%s=%s\n", name, hex.EncodeToString(raw[:]))
	}
	b.WriteString("set=1\n")
	if d.PrivateKey != nil {
		key("private_key", *d.PrivateKey)
	}
	if d.ListenPort != nil {
		fmt.Fprintf(&b, "listen_port=%d\n", *d.ListenPort)
	}
	if d.FwMark != nil {
		fmt.Fprintf(&b, "fwmark=%d\n", *d.FwMark)
	}
	for _, p := range d.Peers {
		key("public_key", p.PublicKey)
		if p.PresharedKey != nil {
			key("preshared_key", *p.PresharedKey)
		}
		if e := p.Endpoint; e != nil {
			addr := e.Addr
			if port, err := services(e.Port); !addr.IsValid() && err == nil { // an address with the name of a service
				addr = netip.AddrPortFrom(endpoint(e.Host+":1").Addr.Addr(), uint16(port))
			}
			fmt.Fprintf(&b, "endpoint=%s\n", addr)
		}
		if p.Keepalive != nil {
			fmt.Fprintf(&b, "persistent_keepalive_interval=%d\n", *p.Keepalive)
		}
		if p.ReplaceAllowedIPs {
			b.WriteString("replace_allowed_ips=true\n")
		}
		for _, a := range p.AllowedIPs {
			sign := ""
			if a.Remove {
				sign = "-"
			}
			fmt.Fprintf(&b, "allowed_ip=%s%s\n", sign, a.Prefix)
		}
	}
	return b.String()
}

// masked is a UAPI request with its prefixes masked, as the device would do, and
// its addresses in netip's spelling; lo is interface 1 of every namespace.
func masked(request string) string {
	var b strings.Builder
	for line := range strings.Lines(request) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		switch key {
		case "allowed_ip":
			text, minus := strings.CutPrefix(value, "-")
			value = netip.MustParsePrefix(text).Masked().String()
			if minus {
				value = "-" + value
			}
		case "endpoint":
			if a, err := netip.ParseAddrPort(value); err == nil {
				value = strings.Replace(a.String(), "%1]", "%lo]", 1)
			}
		}
		b.WriteString(key + "=" + value + "\n")
	}
	return b.String()
}

// ipChecks tries the values of Address, MTU and Table with ip(8) on lo of the
// test's namespace, each once, the first limit of them.
type ipChecks struct {
	limit int
	seen  map[string]bool
}

func (i *ipChecks) file(t *testing.T, text string, outcomes map[string]int, diff func(string, ...any)) {
	t.Helper()
	c, err := confparse.ParseLines("fuzz.conf", []byte(text))
	if err != nil {
		return
	}
	for _, a := range c.Addresses {
		i.try(t, "Address", a.Text, outcomes, diff)
	}
	if c.MTUText != "" {
		i.try(t, "MTU", c.MTUText, outcomes, diff)
	}
	if c.Table != "" && c.Table != "off" && c.Table != "auto" {
		i.try(t, "Table", c.Table, outcomes, diff)
	}
}

func (i *ipChecks) try(t *testing.T, key, value string, outcomes map[string]int, diff func(string, ...any)) {
	t.Helper()
	if i.seen[key+value] || len(i.seen) >= i.limit {
		return
	}
	i.seen[key+value] = true
	family := "-4"
	if strings.Contains(value, ":") {
		family = "-6"
	}
	args := map[string][]string{
		"Address": {family, "address", "add", value, "dev", "lo"},
		"MTU":     {"link", "set", "mtu", value, "up", "dev", "lo"},
		"Table":   {"route", "add", "192.0.2.0/24", "dev", "lo", "table", value},
	}[key]
	out, err := exec.Command("ip", args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	// 1 and 255 are ip's own refusals, 2 is the kernel's, which is for `up` to meet.
	taken := err == nil || exit.ExitCode() == 2

	text := fmt.Sprintf("[Interface]\n%s = %s\n", key, value)
	if key == "Address" { // between others, as white space at the ends of a value goes
		text = fmt.Sprintf("[Interface]\nAddress = ::,%s,::\n", value)
	}
	_, err = confparse.Parse("x.conf", []byte(text))
	switch {
	case key == "Table" && err == nil && !taken: // a name is looked up when routes are made
		outcomes["tableNameLeftForLater"]++
	case key == "MTU" && strings.HasPrefix(value, "-") && err != nil && taken:
		outcomes["negativeMTU"]++
	case (err == nil) != taken:
		diff("%s=%q: error %v, ip %v: %s", key, value, err, args, out)
	}
}
