package main

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

// view is what the progress line shows.
type view struct {
	title    string
	phase    string
	fraction float64 // below 0: unknown
	message  string
	started  time.Time
	beat     int // grows with every redraw; turns the wheel
}

// barStyle says how a progress line may be drawn.
type barStyle struct {
	utf8  bool
	paint func(code, s string) string
}

// bar draws the progress line in at most width columns:
//
//	⠹ speech executing ━━━━━━━━━╌╌╌╌╌╌╌╌╌  43% decoding 0:12
func (v view) bar(now time.Time, width int, style barStyle) string {
	wheel, full, rest := []string{"|", "/", "-", "\\"}, "#", "-"
	if style.utf8 {
		wheel, full, rest = []string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"}, "━", "╌"
	}
	head := fmt.Sprintf("%s %s %s ", wheel[v.beat%len(wheel)], harmless(v.title, false), v.phase)
	tail := fmt.Sprintf(" %ds", int(now.Sub(v.started).Seconds()))
	if d := now.Sub(v.started); d >= time.Minute {
		tail = " " + span(d)
	}
	message := harmless(v.message, false)
	room := width - cells(head) - cells(tail)
	if room < 4 { // a very narrow terminal: what fits of the head
		return fit(head, width)
	}
	middle := ""
	painted := ""
	if v.fraction >= 0 {
		number := fmt.Sprintf("%3.0f%%", 100*min(v.fraction, 1))
		length := min(30, room-cells(number)-1)
		if message != "" {
			length = min(length, max(10, room/2))
		}
		if length > 0 {
			done := int(float64(length) * min(v.fraction, 1))
			middle = strings.Repeat(full, done) + strings.Repeat(rest, length-done) + " " + number
			painted = style.paint(green, strings.Repeat(full, done)) + style.paint(dim, strings.Repeat(rest, length-done)) + " " + number
		}
	}
	if left := room - cells(middle) - 1; message != "" && left >= 4 {
		if middle != "" {
			painted += " "
			left--
		}
		painted += fit(message, left)
	}
	return style.paint(cyan, head[:len(wheel[v.beat%len(wheel)])]) + head[len(wheel[v.beat%len(wheel)]):] + painted + style.paint(dim, tail)
}

// live is the screen while something is followed: data on stdout and talk on
// stderr, above one line at the bottom that is redrawn where stderr is a
// terminal. Safe from several goroutines.
type live struct {
	a     *app
	style barStyle

	mu    sync.Mutex // guards what is below, and keeps writes to the terminal apart
	view  view
	tenth int // of the work, as last told where there is no line to redraw
	drawn bool
	done  bool
}

func newLive(a *app, v view) *live {
	lang := a.getenv("LC_ALL")
	for _, name := range []string{"LC_CTYPE", "LANG"} {
		if lang == "" {
			lang = a.getenv(name)
		}
	}
	lang = strings.ToLower(lang)
	return &live{a: a, view: v, style: barStyle{
		utf8:  strings.Contains(lang, "utf-8") || strings.Contains(lang, "utf8"),
		paint: a.talk.paint,
	}}
}

// say prints a line of talk.
func (l *live) say(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clearLocked()
	fmt.Fprintln(l.a.talk.w, line)
	l.drawLocked()
}

// data runs print, which writes to stdout, with the progress line out of the way.
func (l *live) data(print func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clearLocked()
	err := print()
	l.drawLocked()
	return err
}

// update changes what the progress line shows.
func (l *live) update(change func(*view)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.view)
	l.drawLocked()
}

// progress shows how far the work is: in the line, or, where stderr is no
// terminal, as a line of its own for every tenth.
func (l *live) progress(fraction float64, message string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.view.fraction, l.view.message = fraction, message
	l.drawLocked()
	if tenth := int(10 * min(fraction, 1)); !l.a.talk.terminal && tenth > l.tenth {
		l.tenth = tenth
		fmt.Fprintf(l.a.talk.w, "%3d%% %s\n", 10*tenth, harmless(message, false))
	}
}

// close removes the progress line for good.
func (l *live) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clearLocked()
	l.done = true
}

// spin redraws the line until stop is closed, so that time is seen to pass.
func (l *live) spin(stop <-chan struct{}) {
	if !l.a.talk.terminal {
		return
	}
	tick := time.NewTicker(120 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			l.update(func(v *view) { v.beat++ })
		case <-stop:
			return
		}
	}
}

func (l *live) clearLocked() {
	if l.drawn {
		fmt.Fprint(l.a.talk.w, "\r\x1b[K")
		l.drawn = false
	}
}

func (l *live) drawLocked() {
	if !l.a.talk.terminal || l.done {
		return
	}
	// One column stays free: a full line would wrap.
	fmt.Fprint(l.a.talk.w, "\r"+l.view.bar(l.a.now(), l.a.talk.width()-1, l.style)+"\x1b[K")
	l.drawn = true
}
