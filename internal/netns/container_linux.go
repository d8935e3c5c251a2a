package netns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
)

// container asks an engine for a container's main process, by the API that
// Docker has and Podman serves too (GET /containers/NAME/json).
func container(ctx context.Context, engine string, sockets []string, name string) (pid int, err error) {
	socket := ""
	for _, s := range sockets {
		if _, err := os.Stat(s); err == nil {
			socket = s
			break
		}
	}
	if socket == "" {
		return 0, fmt.Errorf("no API socket at %s: %w (hint: systemctl start %s.socket)", strings.Join(sockets, " or "), fs.ErrNotExist, engine)
	}
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}
	u := url.URL{Scheme: "http", Host: engine, Path: "/containers/" + name + "/json", RawPath: "/containers/" + url.PathEscape(name) + "/json"}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return 0, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0, fmt.Errorf("ask %s at %s: %w", engine, socket, err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return 0, fmt.Errorf("%s has no container of that name", engine)
	default:
		return 0, fmt.Errorf("ask %s at %s: %s", engine, socket, resp.Status)
	}
	var answer struct {
		State *struct {
			Running bool
			Pid     int
			Status  string
		}
	}
	// Real answers are some ten KiB long.
	if err := json.NewDecoder(io.LimitReader(resp.Body, 16<<20)).Decode(&answer); err != nil {
		return 0, fmt.Errorf("read the answer of %s: %w", engine, err)
	}
	switch s := answer.State; {
	case s == nil:
		return 0, fmt.Errorf("read the answer of %s: it has no State", engine)
	case !s.Running:
		return 0, fmt.Errorf("the container is not running (%s)", s.Status)
	case s.Pid <= 0:
		return 0, errors.New("the container has no process on this machine")
	default:
		return s.Pid, nil
	}
}
