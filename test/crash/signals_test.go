package crash

import (
	"strings"
	"testing"

	"wg-quickns/test/bed"
)

// TestReaderGone: nobody reads what up and down print any more, as behind a connection
// that the tunnel has cut. They do their work, and hooks end of SIGPIPE as anywhere.
func TestReaderGone(t *testing.T) {
	w := newWorld(t)
	w.at("reader gone", "", func(p *point) {
		p.Config(t, "wg0", strings.Replace(w.text, "PostUp = ", `PostUp = { yes || echo ended $? >>"$HOOKS"; } | :; `, 1))
		for _, command := range []string{"up", "down"} {
			p.want(command, p.Run(nil, "bash", "-c", `exec 3> >(:); wait $!; exec "$0" "$@" >&3 2>&3`, p.Program, command, "wg0"), 0)
			if command == "up" {
				p.whole()
				if !p.wrote("ended 141") {
					p.errorf("SIGPIPE did not end a program of a hook")
				}
			}
		}
		p.clean("after down")
		p.Config(t, "wg0", w.text)
	})
	w.report()
}

// TestNohup: a signal that was ignored at the start, as by nohup(1), interrupts nothing.
func TestNohup(t *testing.T) {
	w := newWorld(t)
	w.at("ignored signals", "", func(p *point) {
		p.Config(t, "wg0", strings.Replace(bed.FullTunnel(0), "PreUp = ", `PreUp = kill -HUP $WG_QUICKNS_PID; `, 1))
		p.want("up", p.Up("wg0"), 128+1)
		p.clean("after up")
		p.want("up", p.Run(nil, "bash", "-c", `trap '' HUP; exec "$0" up wg0`, p.Program), 0)
		p.whole()
		p.Config(t, "wg0", w.text)
		p.down()
	})
	w.report()
}
