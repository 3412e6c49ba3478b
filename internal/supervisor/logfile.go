package supervisor

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	logName    = "worker.log"
	timeLayout = "2006-01-02T15:04:05.000000Z"
)

// logFile is the rotated file of one worker's log: worker.log, worker.log.1 (the
// newest rotated one), … It belongs to one goroutine.
type logFile struct {
	dir    string
	limits LogLimits
	quota  *logQuota
	f      *os.File // nil before the first write and after an error
	size   int64
}

func newLogFile(dir string, limits LogLimits, quota *logQuota) *logFile {
	if limits.FileBytes <= 0 {
		limits.FileBytes, limits.Files = 10<<20, 4
	}
	return &logFile{dir: dir, limits: limits, quota: quota}
}

// appendHead formats what stands before a line's text: time, stream, then job=…
// and level=… where they are known.
func appendHead(b []byte, l LogLine) []byte {
	b = l.At.UTC().AppendFormat(b, timeLayout)
	b = append(b, ' ')
	b = append(b, l.Stream...)
	if l.Call != "" {
		b = append(append(b, " job="...), l.Call...)
	}
	if l.Level != "" {
		b = append(append(b, " level="...), l.Level...)
	}
	return append(b, " | "...)
}

// sameHead reports whether appendHead gives the same for both.
func (l LogLine) sameHead(o LogLine) bool {
	return l.At.Equal(o.At) && l.Stream == o.Stream && l.Call == o.Call && l.Level == o.Level
}

// parseLine reads back a line that begins with what appendHead wrote; ok is false for anything else.
func parseLine(s string) (l LogLine, ok bool) {
	head, text, ok := strings.Cut(s, " | ")
	f := strings.Fields(head)
	if !ok || len(f) < 2 {
		return LogLine{}, false
	}
	at, err := time.Parse(timeLayout, f[0])
	if err != nil {
		return LogLine{}, false
	}
	l = LogLine{At: at, Stream: f[1], Text: text}
	for _, kv := range f[2:] {
		if v, ok := strings.CutPrefix(kv, "job="); ok {
			l.Call = v
		} else if v, ok := strings.CutPrefix(kv, "level="); ok {
			l.Level = v
		}
	}
	return l, true
}

// write appends whole lines. After an error the next write opens the file anew.
func (l *logFile) write(b []byte) error {
	for len(b) > 0 {
		if l.f == nil {
			if err := l.open(); err != nil {
				return err
			}
		}
		if l.size >= l.limits.FileBytes {
			if err := l.rotate(); err != nil {
				return err
			}
			continue
		}
		// A batch may be larger than what is left of the file: cut it at a line.
		part := b
		if room := int(l.limits.FileBytes - l.size); len(part) > room {
			end := bytes.IndexByte(b[room:], '\n')
			if end >= 0 {
				part = b[:room+end+1]
			}
		}
		n, err := l.f.Write(part)
		l.size += int64(n)
		if err != nil {
			l.close()
			return fmt.Errorf("cannot write a worker's log: %w", err)
		}
		b = b[len(part):]
	}
	return nil
}

func (l *logFile) open() error {
	if err := os.MkdirAll(l.dir, 0o750); err != nil {
		return fmt.Errorf("cannot make a log directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(l.dir, logName), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return fmt.Errorf("cannot open a worker's log: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("cannot open a worker's log: %w", err)
	}
	l.f, l.size = f, st.Size()
	return nil
}

func (l *logFile) rotated(i int) string {
	return filepath.Join(l.dir, fmt.Sprintf("%s.%d", logName, i))
}

func (l *logFile) rotate() error {
	l.close()
	keep := max(l.limits.Files, 0)
	if err := os.Remove(l.rotated(keep)); err != nil && !errors.Is(err, fs.ErrNotExist) && keep > 0 {
		return fmt.Errorf("cannot rotate a worker's log: %w", err)
	}
	for i := keep; i >= 1; i-- {
		from := filepath.Join(l.dir, logName)
		if i > 1 {
			from = l.rotated(i - 1)
		}
		if err := os.Rename(from, l.rotated(i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot rotate a worker's log: %w", err)
		}
	}
	if keep == 0 {
		if err := os.Truncate(filepath.Join(l.dir, logName), 0); err != nil {
			return fmt.Errorf("cannot rotate a worker's log: %w", err)
		}
	}
	if err := l.quota.enforce(); err != nil {
		return err
	}
	return l.open()
}

func (l *logFile) close() {
	if l.f != nil {
		l.f.Close() // written lines are with the kernel already
		l.f = nil
	}
}

// tail reads back the newest lines of the current file.
func (l *logFile) tail(lines, size int) []LogLine {
	f, err := os.Open(filepath.Join(l.dir, logName))
	if err != nil {
		return nil
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > int64(size) {
		_, _ = f.Seek(-int64(size), io.SeekEnd)
	}
	var out []LogLine
	sc := bufio.NewScanner(f)
	sc.Buffer(make([]byte, 0, 4096), 2*maxLine)
	for sc.Scan() {
		if line, ok := parseLine(sc.Text()); ok {
			out = append(out, line)
		}
	}
	return out[max(0, len(out)-lines):]
}

// logQuota bounds the files of all workers together: the oldest rotated file
// goes first, whoever it belongs to.
type logQuota struct {
	root  string
	total int64

	mu sync.Mutex // one enforcement at a time
}

func (q *logQuota) enforce() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	type file struct {
		path string
		size int64
		mod  time.Time
	}
	var rotated []file
	var sum int64
	paths, err := filepath.Glob(filepath.Join(q.root, "*", logName+"*"))
	if err != nil {
		return fmt.Errorf("cannot list worker logs: %w", err)
	}
	for _, p := range paths {
		st, err := os.Stat(p)
		if err != nil {
			continue // rotated away meanwhile
		}
		sum += st.Size()
		if filepath.Base(p) != logName {
			rotated = append(rotated, file{p, st.Size(), st.ModTime()})
		}
	}
	slices.SortFunc(rotated, func(a, b file) int { return a.mod.Compare(b.mod) })
	for _, f := range rotated {
		if sum <= q.total {
			break
		}
		if err := os.Remove(f.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot remove an old worker log: %w", err)
		}
		sum -= f.size
	}
	return nil
}
