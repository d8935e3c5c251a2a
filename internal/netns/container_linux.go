package netns

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
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
	status, body, err := get(ctx, socket, engine, "/containers/"+url.PathEscape(name)+"/json")
	if err != nil {
		return 0, fmt.Errorf("ask %s at %s: %w", engine, socket, err)
	}
	switch code, _, _ := strings.Cut(status, " "); code {
	case "200":
	case "404":
		return 0, fmt.Errorf("%s has no container of that name", engine)
	default:
		return 0, fmt.Errorf("ask %s at %s: %s", engine, socket, status)
	}
	var answer struct {
		State *struct {
			Running bool
			Pid     int
			Status  string
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
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

// maxAnswer bounds an engine's answer; real ones are some ten KiB long.
const maxAnswer = 16 << 20

// get is a GET of HTTP/1.0, whose answer ends with the connection; status is its
// code and phrase. It stands here because net/http, with all of TLS, would make each
// start of this program slower.
func get(ctx context.Context, socket, host, path string) (status string, body []byte, err error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return "", nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var answer []byte
	if _, err = fmt.Fprintf(conn, "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n", path, host); err == nil {
		answer, err = io.ReadAll(io.LimitReader(conn, maxAnswer))
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return "", nil, err
	}
	head, body, whole := bytes.Cut(answer, []byte("\r\n\r\n"))
	line, _, _ := strings.Cut(string(head), "\r\n")
	version, status, ok := strings.Cut(line, " ")
	if !whole || !ok || !strings.HasPrefix(version, "HTTP/1.") {
		return "", nil, errors.New("the answer is not HTTP")
	}
	return status, body, nil
}
