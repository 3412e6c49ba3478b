package main

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/cjmd/cjmd/internal/plugins/envs"
)

// board shows how several installations go: on a terminal one line each, redrawn
// in place, otherwise a plain line for each step. Safe from several goroutines.
type board struct {
	a     *app
	style barStyle

	mu    sync.Mutex // guards what is below, and keeps writes to the terminal apart
	rows  []boardRow
	lines int // drawn and not yet gone from
	beat  int
	note  string // last line, "" for none
}

type boardRow struct {
	name    string
	state   envs.State
	detail  string
	started time.Time // zero while it waits for its turn
	ended   time.Time
}

func newBoard(a *app, names []string) *board {
	b := &board{a: a, style: newLive(a, view{}).style}
	for _, n := range names {
		b.rows = append(b.rows, boardRow{name: n, state: envs.Waiting})
	}
	return b
}

func ended(s envs.State) bool { return s == envs.Done || s == envs.Kept || s == envs.Failed }

// update takes the news of one installation.
func (b *board) update(u envs.Update) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.rows {
		r := &b.rows[i]
		if r.name != u.Name {
			continue
		}
		if r.started.IsZero() {
			r.started = b.a.now()
		}
		if ended(u.State) {
			r.ended = b.a.now()
		}
		if !b.a.talk.terminal && (u.State != r.state || u.State == envs.Waiting) {
			b.plain(*r, u)
		}
		r.state, r.detail = u.State, u.Detail
		if u.Bytes > 0 {
			r.detail += ", " + size(u.Bytes)
		}
		if b.a.talk.terminal {
			b.drawLocked()
		}
	}
}

// plain is a step where nothing can be redrawn.
func (b *board) plain(r boardRow, u envs.Update) {
	line := fmt.Sprintf("%s: %s", u.Name, u.State)
	if ended(u.State) {
		line += " after " + span(b.a.now().Sub(r.started))
		if u.State == envs.Kept {
			line = fmt.Sprintf("%s: kept, %s", u.Name, u.Detail)
		}
	} else if u.Detail != "" {
		line += ", " + u.Detail
	}
	fmt.Fprintln(b.a.talk.w, harmless(line, false))
}

// say shows a line below the board until it closes.
func (b *board) say(note string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.note = note
	if b.a.talk.terminal {
		b.drawLocked()
		return
	}
	fmt.Fprintln(b.a.talk.w, note)
}

// spin redraws until stop is closed, so that time is seen to pass.
func (b *board) spin(stop <-chan struct{}) {
	if !b.a.talk.terminal {
		<-stop
		return
	}
	tick := time.NewTicker(120 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			b.mu.Lock()
			b.beat++
			b.drawLocked()
			b.mu.Unlock()
		case <-stop:
			return
		}
	}
}

// close takes the board off the terminal; the table of results stands for it.
func (b *board) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lines > 0 {
		fmt.Fprintf(b.a.talk.w, "\x1b[%dA\r\x1b[J", b.lines)
		b.lines = 0
	}
}

func (b *board) drawLocked() {
	width, height := b.a.talk.width()-1, 24
	if _, h, err := term.GetSize(int(b.a.talk.file.Fd())); err == nil && h > 0 {
		height = h
	}
	var out strings.Builder
	if b.lines > 0 {
		fmt.Fprintf(&out, "\x1b[%dA\r", b.lines)
	}
	lines := b.linesLocked(width, max(3, height-1))
	for _, l := range lines {
		out.WriteString(l + "\x1b[K\n")
	}
	out.WriteString("\x1b[J") // lines of a board that was longer
	b.lines = len(lines)
	fmt.Fprint(b.a.talk.w, out.String())
}

// linesLocked are the rows that fit: all of them, else those that move.
func (b *board) linesLocked(width, height int) []string {
	longest := 0
	for _, r := range b.rows {
		longest = max(longest, cells(r.name))
	}
	longest = min(longest, 28)
	rows := b.rows
	var done, waiting, failed int
	for _, r := range b.rows {
		switch {
		case r.state == envs.Failed:
			failed++
		case ended(r.state):
			done++
		case r.started.IsZero():
			waiting++
		}
	}
	extra := 0
	if b.note != "" {
		extra = 1
	}
	var lines []string
	if len(rows)+extra > height {
		rows = nil
		for _, r := range b.rows {
			if !ended(r.state) && !r.started.IsZero() && len(rows) < height-1-extra {
				rows = append(rows, r)
			}
		}
	}
	for _, r := range rows {
		lines = append(lines, b.rowLine(r, longest, width))
	}
	if len(rows) < len(b.rows) {
		lines = append(lines, fit(fmt.Sprintf("%d done, %d failed, %d waiting, of %d", done, failed, waiting, len(b.rows)), width))
	}
	if b.note != "" {
		lines = append(lines, b.style.paint(yellow, fit(b.note, width)))
	}
	return lines
}

// rowLine is one installation:
//
//	⠹ whisper   installing     Downloading ctranslate2 (37.1MiB)       0:12
func (b *board) rowLine(r boardRow, nameWidth, width int) string {
	wheel, tick, cross, dot := []string{"|", "/", "-", "\\"}, "+", "x", "."
	if b.style.utf8 {
		wheel, tick, cross, dot = []string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"}, "✔", "✘", "·"
	}
	mark, code := wheel[b.beat%len(wheel)], cyan
	switch {
	case r.state == envs.Failed:
		mark, code = cross, red
	case ended(r.state):
		mark, code = tick, green
	case r.started.IsZero():
		mark, code = dot, dim
	case r.state == envs.Waiting:
		code = yellow
	}
	took := ""
	if !r.started.IsZero() {
		end := r.ended
		if end.IsZero() {
			end = b.a.now()
		}
		took = fmt.Sprintf("%ds", int(end.Sub(r.started).Seconds()))
		if d := end.Sub(r.started); d >= time.Minute {
			took = span(d)
		}
	}
	head := pad(fit(harmless(r.name, false), nameWidth), nameWidth)
	state := pad(string(r.state), len(envs.Introspecting))
	room := width - 2 - nameWidth - 2 - cells(state) - 2 - 7
	if room < 8 { // a very narrow terminal: what fits, without colours
		return fit(mark+" "+head+"  "+string(r.state)+" "+took, width)
	}
	return b.style.paint(code, mark) + " " + b.style.paint(bold, head) + "  " + b.style.paint(code, state) +
		"  " + b.style.paint(dim, pad(fit(harmless(r.detail, false), room), room)) + fmt.Sprintf("%7s", took)
}
