// Package joblog keeps one append-only, numbered log per job: its chunks,
// progress and log records between the job's states. Records are numbered from
// 1 without gaps and never renumbered. The states come from the journal and are
// all there is until the first other record; only then a file is made, and it
// begins with exactly those records. Files are not synced: a killed process
// loses nothing, a power cut may cost the newest chunks but never a state, which
// is appended again from the journal when the log is next opened. Logs are
// bounded; readers are told of a hole. Start with Set, then Log and Reader.
package joblog

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/cjmd/cjmd/internal/events"
)

// Kinds of records beside the journal's kinds, which mark the job's states.
const (
	KindChunk    = "chunk"
	KindProgress = "progress"
	KindLog      = "log"
	KindGap      = "gap" // told to a reader only: {from, to} are no longer kept
)

// Record is one numbered record. Data is one line of JSON; that of a state also
// carries its number in the journal as "seq". It must not be changed.
type Record struct {
	N    uint64
	At   time.Time
	Kind string
	Data []byte

	seq events.Seq // of a state, else 0
}

// Limits bound a log; zero values mean the defaults.
type Limits struct {
	SegmentBytes int64 // 4 MiB
	TotalBytes   int64 // 64 MiB; the oldest segments go first, never the newest record
	RingRecords  int   // newest records kept in memory for live readers: 1024
	RingBytes    int   // 1 MiB
}

// Options of a Set.
type Options struct {
	// Path names the directory of a job's log; it must be safe for any id.
	Path func(id string) string
	// Journal returns the journal's events of one job with Seq > after.
	Journal func(ctx context.Context, id string, after events.Seq) ([]events.Event, error)
	Limits  Limits
	Log     *zap.Logger // nil: no log
}

// ResetError tells a reader, once, that the record it wants to continue after
// does not exist (a power cut took it). The Reader goes on with the oldest.
type ResetError struct{ After, Oldest, Newest uint64 }

func (e *ResetError) Error() string {
	return fmt.Sprintf("cannot continue after record %d: the log holds %d to %d", e.After, e.Oldest, e.Newest)
}

// ErrEnded answers an Append to a log that has its final record, or is closed.
var ErrEnded = errors.New("the job log has ended")

// Set is all open logs. One Log exists per job while anyone uses it: the running
// attempt, or a reader. Safe from any goroutine; starts none.
type Set struct {
	opts Options

	mu     sync.Mutex // before Log.mu
	logs   map[string]*Log
	closed bool
}

// New returns an empty Set.
func New(o Options) *Set {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	l := &o.Limits
	if l.SegmentBytes <= 0 {
		l.SegmentBytes = 4 << 20
	}
	if l.TotalBytes <= 0 {
		l.TotalBytes = 64 << 20
	}
	if l.RingRecords <= 0 {
		l.RingRecords = 1024
	}
	if l.RingBytes <= 0 {
		l.RingBytes = 1 << 20
	}
	return &Set{opts: o, logs: map[string]*Log{}}
}

// Open returns the log of a job for appending; Release it.
func (s *Set) Open(ctx context.Context, id string) (*Log, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, ErrEnded
	}
	l := s.logs[id]
	mine := l == nil
	if mine {
		l = &Log{set: s, id: id, dir: s.opts.Path(id), ready: make(chan struct{}), wake: make(chan struct{}), next: 1, first: 1}
		s.logs[id] = l
	}
	l.refs++
	s.mu.Unlock()
	if mine {
		// The load serves all who wait, so one caller's end must not fail it.
		l.load(context.WithoutCancel(ctx))
	}
	select {
	case <-l.ready:
	case <-ctx.Done():
		l.Release()
		return nil, context.Cause(ctx)
	}
	if l.openErr != nil {
		l.Release()
		return nil, fmt.Errorf("cannot open the log of job %s: %w", id, l.openErr)
	}
	return l, nil
}

// Reader returns a reader of the records behind after; Close it.
func (s *Set) Reader(ctx context.Context, id string, after uint64) (*Reader, error) {
	l, err := s.Open(ctx, id)
	if err != nil {
		return nil, err
	}
	return &Reader{log: l, next: after + 1, done: make(chan struct{})}, nil
}

// Committed appends the states among evs to the logs that are open. The
// journal's writer calls it after each commit, in Seq order.
func (s *Set) Committed(evs []events.Event) {
	for _, e := range evs {
		if e.Job == "" {
			continue
		}
		s.mu.Lock()
		l := s.logs[e.Job]
		s.mu.Unlock()
		if l != nil {
			l.committed(e)
		}
	}
}

// Remove deletes the log of a job that is gone and ends its readers: the next
// job of that name begins a log of its own.
func (s *Set) Remove(id string) error {
	s.mu.Lock()
	if l := s.logs[id]; l != nil {
		delete(s.logs, id)
		if err := l.shut(); err != nil {
			s.opts.Log.Warn("cannot close a job log", zap.String("job", id), zap.Error(err))
		}
	}
	s.mu.Unlock()
	if err := os.RemoveAll(s.opts.Path(id)); err != nil {
		return fmt.Errorf("cannot remove the log of job %s: %w", id, err)
	}
	return nil
}

// Close ends all readers and refuses further records. Idempotent.
func (s *Set) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	var errs []error
	for _, l := range s.logs {
		errs = append(errs, l.shut())
	}
	return errors.Join(errs...)
}

// ChunkData makes one line of JSON of a payload, which it does not keep. JSON
// passes through unparsed unless it holds a line break; anything else is
// wrapped as {"base64": …}. contentType "" means JSON.
func ChunkData(payload []byte, contentType string) []byte {
	media, _, _ := strings.Cut(contentType, ";")
	media = strings.TrimSpace(strings.ToLower(media))
	if media == "" || media == "application/json" || strings.HasSuffix(media, "+json") {
		if len(payload) == 0 {
			return []byte("null")
		}
		if !bytes.ContainsAny(payload, "\r\n") {
			return bytes.Clone(payload)
		}
		var b bytes.Buffer
		if json.Compact(&b, payload) == nil {
			return b.Bytes()
		}
	}
	wrapped := map[string]string{"base64": base64.StdEncoding.EncodeToString(payload)}
	if media != "" {
		wrapped["content_type"] = contentType
	}
	b, err := json.Marshal(wrapped)
	if err != nil { // strings encode
		panic(err)
	}
	return b
}
