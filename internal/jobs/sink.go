package jobs

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/cjmd/cjmd/internal/jobs/joblog"
)

// Sink takes what an attempt produces while it runs into the job's log. Calls
// wait until the start of the attempt is durable, so that the log's order is
// never contradicted. Safe from any goroutine; order is that of the calls.
type Sink struct {
	run *Run

	mu     sync.Mutex // one opener at a time; held while the log is opened
	log    *joblog.Log
	closed bool
}

// Sink returns the attempt's way into the job log.
func (r *Run) Sink() *Sink { return r.sink }

// LogRecord is one structured record of a worker about its job.
type LogRecord struct {
	Time    time.Time `json:"time"`
	Level   string    `json:"level"` // debug, info, warning, error
	Logger  string    `json:"logger,omitempty"`
	Message string    `json:"message"`
	Stream  string    `json:"stream,omitempty"` // "stdout", "stderr" when captured
}

// open returns the log, opened on first use; nil after the attempt ended.
func (s *Sink) open(ctx context.Context) (*joblog.Log, error) {
	if err := s.run.WaitStarted(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.log != nil {
		return s.log, nil
	}
	log, err := s.run.q.logs.Open(ctx, string(s.run.e.id))
	if err != nil {
		return nil, err
	}
	s.log = log
	return log, nil
}

func (s *Sink) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.log != nil {
		s.log.Release()
		s.log = nil
	}
}

func (s *Sink) append(ctx context.Context, kind string, data []byte) error {
	log, err := s.open(ctx)
	if log == nil || err != nil {
		return err
	}
	return log.Append(kind, s.run.q.now(), data)
}

// Chunk appends one partial result. contentType "" means JSON. The payload is
// not kept after the call.
func (s *Sink) Chunk(ctx context.Context, payload []byte, contentType string) error {
	return s.append(ctx, joblog.KindChunk, joblog.ChunkData(payload, contentType))
}

// Progress shows at once in Get and is appended to the log. fraction is 0..1,
// or -1 when it cannot be told.
func (s *Sink) Progress(ctx context.Context, fraction float64, message string) error {
	if !(fraction >= 0) { // also NaN
		fraction = -1
	}
	fraction = min(fraction, 1)
	q := s.run.q
	q.mu.Lock()
	if !s.run.ended {
		s.run.job.Progress, s.run.job.ProgressMessage = fraction, message
	}
	q.mu.Unlock()
	data, err := json.Marshal(map[string]any{"progress": fraction, "message": message})
	if err != nil {
		return err
	}
	return s.append(ctx, joblog.KindProgress, data)
}

// Log appends one log record; a zero Time means now.
func (s *Sink) Log(ctx context.Context, rec LogRecord) error {
	if rec.Time.IsZero() {
		rec.Time = s.run.q.now()
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return s.append(ctx, joblog.KindLog, data)
}
