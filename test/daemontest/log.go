package daemontest

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"
)

// keepLog bounds what is remembered of one daemon's log.
const keepLog = 4 << 20

// Line is one line of the daemon's log.
type Line struct {
	Level  string
	Msg    string
	Fields map[string]any // all of it; nil when the line is no JSON
	Text   string
}

// Log is what the daemon said, over all its restarts. Safe for concurrent use.
type Log struct {
	mu    sync.Mutex
	lines []Line        // guarded by mu
	size  int           // guarded by mu; bytes in lines
	base  int           // guarded by mu; lines dropped from the front
	more  chan struct{} // guarded by mu; closed when a line comes or the process ended
	ended bool          // guarded by mu; the running process has closed its end
}

func newLog() *Log { return &Log{more: make(chan struct{})} }

// read takes lines until the process closes its end.
func (l *Log) read(r io.Reader) {
	br := bufio.NewReader(r)
	for {
		text, err := br.ReadString('\n')
		if text = strings.TrimRight(text, "\n"); text != "" {
			l.add(text)
		}
		if err != nil {
			l.mu.Lock()
			l.ended = true
			l.ringLocked()
			l.mu.Unlock()
			return
		}
	}
}

func (l *Log) ringLocked() {
	close(l.more)
	l.more = make(chan struct{})
}

func (l *Log) add(text string) {
	line := Line{Text: text}
	if json.Unmarshal([]byte(text), &line.Fields) == nil {
		line.Level, _ = line.Fields["level"].(string)
		line.Msg, _ = line.Fields["msg"].(string)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
	for l.size += len(text); l.size > keepLog && len(l.lines) > 1; {
		l.size -= len(l.lines[0].Text)
		l.lines = l.lines[1:]
		l.base++
	}
	l.ringLocked()
}

// Mark is a position in the log: that of the next line.
func (l *Log) Mark() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.base + len(l.lines)
}

var errLogEnded = errors.New("the daemon ended without saying it")
var errLogSilent = errors.New("the daemon did not say it in time")

// await returns the first line from mark on that fits.
func (l *Log) await(mark int, within time.Duration, fits func(Line) bool) (Line, error) {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	for {
		l.mu.Lock()
		for i := max(mark-l.base, 0); i < len(l.lines); i++ {
			if fits(l.lines[i]) {
				line := l.lines[i]
				l.mu.Unlock()
				return line, nil
			}
		}
		mark = l.base + len(l.lines)
		more, ended := l.more, l.ended
		l.mu.Unlock()
		if ended {
			return Line{}, errLogEnded
		}
		select {
		case <-more:
		case <-deadline.C:
			return Line{}, errLogSilent
		}
	}
}

// Await returns the first line from mark on with this message.
func (l *Log) Await(t testing.TB, mark int, msg string) Line {
	t.Helper()
	line, err := l.await(mark, patience, func(x Line) bool { return x.Msg == msg })
	if err != nil {
		t.Fatalf("cannot find %q in the daemon's log: %v", msg, err)
	}
	return line
}

// Lines are those that fit, as far as the log is remembered.
func (l *Log) Lines(fits func(Line) bool) []Line {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Line
	for _, line := range l.lines {
		if fits(line) {
			out = append(out, line)
		}
	}
	return out
}

// Text is the log as it was written, at most its last n bytes.
func (l *Log) Text(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for _, line := range l.lines {
		b.WriteString(line.Text)
		b.WriteByte('\n')
	}
	s := b.String()
	return s[max(0, len(s)-n):]
}
