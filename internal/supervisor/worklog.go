package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// LogLine is one line of a worker's log.
type LogLine struct {
	Seq    uint64    `json:"seq"` // from 1 since the daemon started, without gaps
	At     time.Time `json:"at"`
	Stream string    `json:"stream"` // "stdout", "stderr", "log" (structured), "cjmd" (ours)
	Level  string    `json:"level,omitempty"`
	Call   string    `json:"job,omitempty"`
	Text   string    `json:"text"`
}

// LogSource reads one worker's log. Safe from any goroutine.
type LogSource interface {
	// Tail returns up to n newest lines, oldest first.
	Tail(n int) []LogLine
	// Next returns lines with Seq > after, waiting for the first of them. missed
	// counts those that fell out of memory before they could be returned. io.EOF
	// when the log was closed and everything has been read.
	Next(ctx context.Context, after uint64) (lines []LogLine, missed uint64, err error)
}

const (
	maxLine      = 64 << 10  // bytes of one line; the rest becomes further lines
	ringLines    = 1000      // kept in memory …
	ringBytes    = 256 << 10 // … and not more than this of text
	backlogBytes = 4 << 20   // waiting for the disk; beyond it lines are dropped and counted
)

// LogLimits bound the files of worker logs.
type LogLimits struct {
	FileBytes  int64 // size at which a file is rotated; 0: 10 MiB, and four rotated files
	Files      int   // rotated files kept per worker besides the current one
	TotalBytes int64 // of all workers together, 0: 1 GiB
}

// WorkerLog is the log of one instance across its processes. Writers never wait
// for the disk: a line goes into the ring and into a bounded backlog that one
// goroutine writes to the file.
type WorkerLog struct {
	file *logFile
	log  *zap.Logger
	lost func(lines int) // counts what never reached the disk

	mu      sync.Mutex
	ring    []LogLine     // guarded by mu; oldest first
	bytes   int           // guarded by mu; of the ring's texts
	seq     uint64        // guarded by mu; of the newest line
	backlog []byte        // guarded by mu; formatted, not yet written
	dropped uint64        // guarded by mu; lines that never reached the file
	told    bool          // guarded by mu; the loss was logged since it began
	closed  bool          // guarded by mu
	fresh   chan struct{} // guarded by mu; closed at the next line

	work chan struct{} // there is a backlog, or the log was closed
	done chan struct{} // the file writer has ended
}

// openWorkerLog starts the file writer; close ends it. The ring begins with
// what an earlier daemon wrote.
func openWorkerLog(dir string, limits LogLimits, quota *logQuota, log *zap.Logger, lost func(lines int)) *WorkerLog {
	w := &WorkerLog{
		file: newLogFile(dir, limits, quota), log: log, lost: lost,
		fresh: make(chan struct{}), work: make(chan struct{}, 1), done: make(chan struct{}),
	}
	for _, line := range w.file.tail(ringLines, ringBytes) {
		w.push(line)
	}
	go w.writeFile()
	return w
}

// add appends lines that share a time and a stream.
func (w *WorkerLog) add(lines ...LogLine) {
	if len(lines) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	var head []byte // of the previous line: most lines of a batch share it
	for i, line := range lines {
		w.push(line)
		if len(w.backlog) > backlogBytes {
			w.dropped++
			continue
		}
		if i == 0 || !line.sameHead(lines[i-1]) {
			head = appendHead(head[:0], line)
		}
		w.backlog = append(append(append(w.backlog, head...), line.Text...), '\n')
	}
	close(w.fresh)
	w.fresh = make(chan struct{})
	select {
	case w.work <- struct{}{}:
	default:
	}
}

// push needs mu (or no other goroutine).
func (w *WorkerLog) push(line LogLine) {
	w.seq++
	line.Seq = w.seq
	w.ring = append(w.ring, line)
	w.bytes += len(line.Text)
	drop := 0
	for len(w.ring)-drop > ringLines || (w.bytes > ringBytes && len(w.ring)-drop > 1) {
		w.bytes -= len(w.ring[drop].Text)
		w.ring[drop] = LogLine{}
		drop++
	}
	w.ring = w.ring[drop:]
}

// note writes a line of ours: starts, exits, what was lost.
func (w *WorkerLog) note(format string, args ...any) {
	w.add(LogLine{At: time.Now(), Stream: "cjmd", Text: fmt.Sprintf(format, args...)})
}

// record writes a structured record of the worker, one line per line of text.
func (w *WorkerLog) record(r LogRecord) {
	at := r.Time
	if at.IsZero() {
		at = time.Now()
	}
	stream := r.Stream
	if stream == "" {
		stream = "log"
	}
	text := r.Message
	if r.Logger != "" {
		text = r.Logger + ": " + text
	}
	var lines []LogLine
	for part := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		lines = append(lines, LogLine{At: at, Stream: stream, Level: r.Level, Call: r.Call, Text: cut(part)})
	}
	w.add(lines...)
}

func cut(s string) string {
	if len(s) > maxLine {
		return s[:maxLine]
	}
	return s
}

// Tail implements LogSource.
func (w *WorkerLog) Tail(n int) []LogLine {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.ring[max(0, len(w.ring)-n):])
}

// Next implements LogSource.
func (w *WorkerLog) Next(ctx context.Context, after uint64) ([]LogLine, uint64, error) {
	for {
		w.mu.Lock()
		fresh, closed := w.fresh, w.closed
		if w.seq > after {
			first := w.ring[0].Seq
			var missed uint64
			if first > after+1 {
				missed, after = first-after-1, first-1
			}
			lines := slices.Clone(w.ring[after+1-first:])
			w.mu.Unlock()
			return lines, missed, nil
		}
		w.mu.Unlock()
		if closed {
			return nil, 0, io.EOF
		}
		select {
		case <-fresh:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
}

// stderrSince returns the newest lines of stderr after seq, for errors.
func (w *WorkerLog) stderrSince(after uint64, n int) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for i := len(w.ring) - 1; i >= 0 && len(out) < n && w.ring[i].Seq > after; i-- {
		if w.ring[i].Stream == "stderr" {
			out = append(out, w.ring[i].Text)
		}
	}
	slices.Reverse(out)
	return out
}

func (w *WorkerLog) lastSeq() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seq
}

// writeFile is the only goroutine that touches the file.
func (w *WorkerLog) writeFile() {
	defer close(w.done)
	defer w.file.close()
	var spare []byte
	for range w.work {
		w.mu.Lock()
		batch, dropped, closed := w.backlog, w.dropped, w.closed
		w.backlog, w.dropped = spare[:0], 0
		w.mu.Unlock()
		if dropped > 0 {
			batch = appendHead(batch, LogLine{At: time.Now(), Stream: "cjmd"})
			batch = fmt.Appendf(batch, "%d lines dropped: the disk was too slow\n", dropped)
		}
		err := w.file.write(batch)
		if err != nil {
			dropped += uint64(bytes.Count(batch, []byte{'\n'})) // at most: its beginning may be there
		}
		w.lost(int(dropped))
		w.tellLoss(err, dropped)
		if spare = batch; cap(spare) > ringBytes {
			spare = nil // a flood's; the next batch is small again
		}
		if closed {
			return
		}
	}
}

// tellLoss logs the beginning and the end of a loss, not each piece of it.
func (w *WorkerLog) tellLoss(err error, dropped uint64) {
	w.mu.Lock()
	was := w.told
	w.told = err != nil || dropped > 0
	now := w.told
	w.mu.Unlock()
	switch {
	case now && !was:
		w.log.Warn("a worker's log is losing lines; the worker is not affected", zap.Error(err), zap.Uint64("dropped", dropped))
	case was && !now:
		w.log.Info("a worker's log is written again")
	}
}

// close writes what is left and ends followers with io.EOF.
func (w *WorkerLog) close() {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return
	}
	w.closed = true
	close(w.fresh)
	w.mu.Unlock()
	select {
	case w.work <- struct{}{}:
	default:
	}
	<-w.done
}

// pump reads a stream until its end and never stops reading: a worker that
// prints is never blocked by us. It returns at end of file or when r is closed.
func (w *WorkerLog) pump(r *os.File, stream string, heard func()) {
	growPipe(r)
	buf := make([]byte, 4*maxLine)
	fill := 0
	for {
		n, err := r.Read(buf[fill:])
		fill += n
		if n > 0 {
			heard()
			fill = w.split(buf[:fill], stream)
		}
		if err != nil {
			if fill > 0 {
				w.add(LogLine{At: time.Now(), Stream: stream, Text: visible(strings.ToValidUTF8(string(buf[:fill]), "\uFFFD"))})
			}
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
				w.note("cannot read %s any more: %v", stream, err)
			}
			return
		}
	}
}

// growPipe asks for a larger pipe, so that a flood costs fewer wake-ups. A user
// over the limit keeps the default size.
func growPipe(r *os.File) {
	if c, err := r.SyscallConn(); err == nil {
		_ = c.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, 1<<20) })
	}
}

// split hands over the whole lines of buf, in pieces of at most maxLine, moves
// the rest to the front and returns its length.
func (w *WorkerLog) split(buf []byte, stream string) int {
	end := bytes.LastIndexByte(buf, '\n') + 1
	if rest := len(buf) - end; rest >= maxLine {
		end = len(buf) - rest%maxLine
	}
	if end == 0 {
		return len(buf)
	}
	// One string for all: its lines leave the ring together, more or less.
	block := strings.ToValidUTF8(string(buf[:end]), "\uFFFD")
	plain := strings.IndexByte(block, '\r') < 0
	now := time.Now()
	lines := make([]LogLine, 0, 64)
	for len(block) > 0 {
		i := strings.IndexByte(block, '\n')
		line, next := block, ""
		if i >= 0 {
			line, next = block[:i], block[i+1:]
		}
		if len(line) > maxLine {
			line, next = block[:maxLine], block[maxLine:]
		}
		if !plain {
			line = visible(line)
		}
		lines = append(lines, LogLine{At: now, Stream: stream, Text: line})
		block = next
	}
	w.add(lines...)
	return copy(buf, buf[end:])
}

// visible is what a terminal would show of a line: progress bars overwrite
// theirs with carriage returns.
func visible(s string) string {
	s = strings.TrimSuffix(s, "\r")
	return s[strings.LastIndexByte(s, '\r')+1:]
}
