package sched

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/supervisor"
	"go.uber.org/zap"
)

// run is one attempt of one job. The loop makes it and hands it to a runner
// goroutine; what the runner writes before mailbox.end the loop reads after it.
type run struct {
	s        *Scheduler
	in       *inst // the loop's; the runner does not touch it
	id       jobs.ID
	instance string
	timeouts plugins.Timeouts
	handle   Run
	cancel   context.CancelCauseFunc
	since    time.Time
	work     context.Context // the loop's: ends when the daemon shuts down
	resident bool            // a worker was ready when the run was admitted
	phase    atomic.Pointer[jobs.Phase]

	submitter string
	priority  int
	need      Need         // as it was set aside
	ticket    *jobs.Ticket // what the worker was given, on its way to the disk; nil: nothing to wait for
	trouble   trouble      // what went wrong with the job before
	called    atomic.Int64 // unix nanoseconds when the call began

	startErr *supervisor.StartError // the worker did not come up
	reached  bool                   // the worker took the call
	lost     bool                   // the worker ended under it
	clean    bool                   // it ended as the plugin meant it to
	oom      oomKind
	hostOOM  bool // it was host memory that ran out
	vanished bool // the worker was gone when the call was to be made
}

// maxVanished bounds how often a job goes back to the queue for free because the
// worker it was to run on was gone.
const maxVanished = 3

// do sees the attempt through: worker, call, outcome. The slot is free as soon
// as the worker has answered; the outcome is stored while the next job runs.
func (r *run) do(ctx context.Context) {
	end := r.attempt(ctx)
	r.s.mail.end(r)
	r.store(ctx, end)
}

func (r *run) attempt(ctx context.Context) ending {
	job, err := r.handle.Resolve(ctx)
	if err != nil {
		return r.notPrepared(ctx, err)
	}
	dir, err := r.handle.Dir()
	if err != nil {
		return r.notPrepared(ctx, err)
	}
	if job.Spec.MaxAttempts == 1 {
		select { // at most once: nothing begins before the attempt is on disk
		case <-r.handle.Started():
		case <-ctx.Done():
			return r.notStarted(ctx, ctx.Err())
		}
	}
	if !r.resident {
		if err := awaitClaims(ctx, r.ticket); err != nil {
			return r.notStarted(ctx, err)
		}
		r.enter(ctx, jobs.Loading)
		if err := r.s.o.Workers.EnsureReady(ctx, r.instance); err != nil {
			return r.notStarted(ctx, err)
		}
		r.enter(ctx, jobs.Executing)
	}
	r.called.Store(r.s.o.Now().UnixNano())
	res, err := r.execute(ctx, &job, dir)
	switch {
	case errors.Is(err, supervisor.ErrNotLoaded):
		// Another worker may sit where this one's memory is not back yet: the job
		// returns to the queue, and starts when the ledger says so.
		r.vanished = true
		if r.trouble.vanished < maxVanished && ctx.Err() == nil {
			return ending{outcome: jobs.Outcome{Status: jobs.Pending, Unspent: true, Error: &jobs.Error{Category: jobs.Transient,
				Retriable: true, Message: err.Error()}}}
		}
		return r.notStarted(ctx, err)
	case errors.Is(err, supervisor.ErrNoSlot):
		return r.notStarted(ctx, err)
	}
	r.reached = true
	return r.endOf(ctx, res, err)
}

// awaitClaims returns once what the worker was given is on disk.
func awaitClaims(ctx context.Context, t *jobs.Ticket) error {
	if t == nil {
		return nil
	}
	if _, err := t.Wait(ctx); err != nil {
		return fmt.Errorf("cannot note the memory of the worker: %w", err)
	}
	return nil
}

// executing is when the call began; other when it has not.
func (r *run) executing(other time.Time) time.Time {
	if n := r.called.Load(); n != 0 {
		return time.Unix(0, n)
	}
	return other
}

// execute makes the call, bounded by the run timeout, which counts from here.
func (r *run) execute(ctx context.Context, job *jobs.Job, dir string) (supervisor.Result, error) {
	spec := &job.Spec
	if d := firstSet(spec.RunTimeout, r.timeouts.Run); d > 0 {
		stop := r.s.o.AfterFunc(d, func() { r.cancel(errRunTimeout) })
		defer stop()
	}
	call := supervisor.Call{
		ID: string(job.ID), Attempt: job.Attempt, Args: spec.Args, Kwargs: spec.Kwargs, Stream: spec.Stream,
		Task: spec.Task, Method: spec.Method, Dir: dir, Envelope: envelope(job),
		CancelGrace:    firstSet(spec.CancelGrace, r.timeouts.CancelGrace),
		InterruptGrace: firstSet(spec.InterruptGrace, r.timeouts.InterruptGrace),
	}
	return r.s.o.Workers.Execute(ctx, r.instance, call, r.handle.Sink())
}

func (r *run) enter(ctx context.Context, phase jobs.Phase) {
	r.phase.Store(&phase)
	if err := r.handle.SetPhase(ctx, phase); err != nil && ctx.Err() == nil {
		r.s.log.Warn("cannot note the phase of a job", zap.String("job", string(r.id)), zap.String("phase", string(phase)), zap.Error(err))
	}
}

// storeGrace is how long the end of an attempt may take to reach the disk once
// the daemon shuts down. What does not make it is run again after the restart.
const storeGrace = 5 * time.Second

// store records how the attempt ended. Nobody's cancel reaches it: the work is
// done and nothing but its record is missing.
func (r *run) store(ctx context.Context, end ending) {
	keep, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	attached := context.AfterFunc(r.work, func() { time.AfterFunc(storeGrace, giveUp) })
	defer attached()
	var err error
	if end.interrupted {
		err = r.handle.Interrupt(keep)
	} else {
		_, err = r.handle.Finish(keep, end.outcome)
	}
	if err != nil && !gone(err) {
		r.s.log.Error("cannot store the end of a job", zap.String("job", string(r.id)), zap.Error(err))
	}
}

func firstSet(a, b time.Duration) time.Duration {
	if a > 0 {
		return a
	}
	return b
}
