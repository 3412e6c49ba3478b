package main

import (
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// Colours, as the numbers of their escape sequences.
const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	blue   = "34"
	cyan   = "36"
)

// console is stdout or stderr and what is known about it.
type console struct {
	w        io.Writer
	file     *os.File // nil when it is no file
	terminal bool
	color    bool // set by app.settle
}

func newConsole(w io.Writer) console {
	c := console{w: w}
	if f, ok := w.(*os.File); ok {
		c.file, c.terminal = f, term.IsTerminal(int(f.Fd()))
	}
	return c
}

// width is the terminal's width now, 0 when it is no terminal.
func (c console) width() int {
	if !c.terminal {
		return 0
	}
	if w, _, err := term.GetSize(int(c.file.Fd())); err == nil && w > 0 {
		return w
	}
	return 80
}

func (c console) paint(code, s string) string {
	if !c.color || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// paintWord colours the words that say how something stands.
func (c console) paintWord(word, shown string) string {
	switch strings.TrimSpace(word) {
	case "completed", "ready", "ok", "fresh", "registered", "yes":
		return c.paint(green, shown)
	case "failed", "unkillable", "failing", "error", "unusable", "worker_failed", "missing":
		return c.paint(red, shown)
	case "running", "busy", "executing":
		return c.paint(cyan, shown)
	case "loading", "starting", "initializing", "reserving", "draining", "stopping", "killing", "cancelling", "backoff", "unresponsive", "paused", "stale", "held", "blocked", "warning", "degraded":
		return c.paint(yellow, shown)
	case "cancelled", "stopped", "disabled", "idle", "debug":
		return c.paint(dim, shown)
	}
	return shown
}
