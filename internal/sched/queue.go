package sched

import (
	"context"
	"sync/atomic"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/supervisor"
	"go.uber.org/zap"
)

// JobQueue makes the real queue a Queue: what differs is that its runs take
// what workers say into the job's log.
type JobQueue struct {
	*jobs.Queue
	Log *zap.Logger
}

// Admit implements Queue. ctx also bounds how long the run's sink may wait.
func (q JobQueue) Admit(ctx context.Context, id jobs.ID, worker string) (Run, error) {
	r, err := q.Queue.Admit(ctx, id, worker)
	if err != nil {
		return nil, err
	}
	return &jobRun{Run: r, ctx: ctx, log: q.Log}, nil
}

// jobRun is a jobs.Run whose sink takes a worker's words.
type jobRun struct {
	*jobs.Run
	ctx context.Context
	log *zap.Logger
	// told is set once a record was lost: one line in the daemon's log says so.
	told atomic.Bool
}

func (r *jobRun) Sink() supervisor.Sink { return (*jobSink)(r) }

// jobSink is the supervisor's way into the job log. Its methods may be called
// from two goroutines (CancelPhase comes from its own), as jobs.Run allows.
type jobSink jobRun

func (s *jobSink) Chunk(_ uint64, payload []byte) {
	s.check(s.Run.Sink().Chunk(s.ctx, payload, ""))
}

func (s *jobSink) Progress(fraction float64, message string) {
	s.check(s.Run.Sink().Progress(s.ctx, fraction, message))
}

func (s *jobSink) Log(rec supervisor.LogRecord) {
	s.check(s.Run.Sink().Log(s.ctx, jobs.LogRecord{
		Time: rec.Time, Level: rec.Level, Logger: rec.Logger, Message: rec.Message, Stream: rec.Stream,
	}))
}

func (s *jobSink) CancelPhase(mode supervisor.CancelMode) { s.Run.CancelPhase(string(mode)) }

// check notes a record that did not reach the job log: the job itself goes on.
func (s *jobSink) check(err error) {
	if err != nil && s.ctx.Err() == nil && !s.told.Swap(true) {
		s.log.Warn("cannot write to a job's log", zap.String("job", string(s.Run.Job().ID)), zap.Error(err))
	}
}
