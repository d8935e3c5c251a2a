package crash

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const journals = "/run/wg-quickns"

// mount puts a tmpfs on the journals' folder until the case ends.
func (p *point) mount(flags uintptr, options string, do func()) {
	p.t.Helper()
	if err := os.MkdirAll(journals, 0o700); err != nil {
		p.t.Fatal(err)
	}
	if err := unix.Mount("full", journals, "tmpfs", flags, "mode=700,"+options); err != nil {
		p.t.Fatal(err)
	}
	do()
	if err := unix.Unmount(journals, 0); err != nil {
		p.t.Fatal(err)
	}
}

// padded is the tunnel with 2n bytes more in its journal's first record.
func (w *world) padded(n int) string {
	return strings.Replace(w.text, "PostDown = ", "PostDown = : "+strings.Repeat("x", n)+"; ", 1)
}

// records gives where each line of the journal begins.
func (p *point) records() []int {
	p.t.Helper()
	files, err := filepath.Glob(journals + "/wg0*/journal")
	if err != nil || len(files) != 1 {
		p.t.Fatalf("journals: %q, %v", files, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		p.t.Fatal(err)
	}
	starts := []int{0}
	for i, c := range text {
		if c == '\n' {
			starts = append(starts, i+1)
		}
	}
	return starts[:bytes.Count(text, []byte{'\n'})]
}

// TestFull lets each write to the journal be the first that the disk has no room
// for: the config is padded until the record straddles the end of the last page.
func TestFull(t *testing.T) { newWorld(t).full() }

func (w *world) full() {
	_, down := w.steps()
	page := os.Getpagesize()
	var all []int
	done := 0 // records of up
	w.at("no room", "none needed", func(p *point) {
		p.Config(p.t, "wg0", p.padded(0))
		p.up()
		done = len(p.records())
		p.want("down", p.Fault(fmt.Sprintf("kill-after:%d", len(down)), "down", "wg0"), killed)
		all = p.records()
		p.down()
	})
	for k, start := range all {
		if w.few > 0 && k%(4*w.few) != 0 {
			continue
		}
		if w.there != nil && k == len(all)-1 {
			continue // what was kept of the resolv.conf has gone by then, and left room
		}
		pages := (start + 2 + page - 1) / page
		w.at("no room for a record: non-zero, nothing left", fmt.Sprintf("%d of %d", k, len(all)), func(p *point) {
			p.Config(p.t, "wg0", p.padded((pages*page-start-1)/2))
			room := pages * page
			if p.there != nil {
				room += page // who wants the resolv.conf is kept there too: that page may be the one that is missing
			}
			size := fmt.Sprintf("size=%d", room)
			if k < done {
				p.mount(0, size, func() {
					r := p.Up("wg0")
					if p.want("up", r, 1) && !strings.Contains(r.Output, "no space left on device") {
						p.errorf("up said nothing of the full disk")
					}
					p.clean("after up")
				})
				return
			}
			p.mount(0, "size=1m", func() {
				p.up()
				if err := unix.Mount("full", journals, "tmpfs", unix.MS_REMOUNT, size); err != nil {
					p.t.Fatal(err)
				}
				r := p.Down("wg0")
				if p.want("down", r, 1) && !strings.Contains(r.Output, "no space left on device") {
					p.errorf("down said nothing of the full disk")
				}
				p.rest()
			})
		})
	}
	w.report()
	if least := 30; w.home == "" && w.adds == nil && done < least || done < least-12 || len(all) < done+3 {
		w.t.Errorf("too few records: %d of up, %d of both", done, len(all))
	}
}

// TestReadOnly: without a journal nothing is begun, and nothing undone.
func TestReadOnly(t *testing.T) {
	w := newWorld(t)
	w.at("read-only journals: non-zero, nothing begun", "up", func(p *point) {
		p.mount(unix.MS_RDONLY, "", func() {
			p.want("up", p.Up("wg0"), 1)
			p.clean("after up")
		})
		p.up()
	})
	w.at("read-only journals: non-zero, nothing begun", "down", func(p *point) {
		if err := unix.Mount(journals, journals, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("", journals, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		p.want("down", p.Down("wg0"), 1)
		p.whole()
		if err := unix.Unmount(journals, 0); err != nil {
			t.Fatal(err)
		}
		p.down()
	})
	w.report()
}
