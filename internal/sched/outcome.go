package sched

import (
	"context"
	"errors"
	"fmt"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// Steps of a failed start that are not this plugin's or this start's doing.
const (
	stepBackoff = "backoff" // the supervisor will not try before RetryAt
	stepGaveUp  = "gave_up" // nor at all, until somebody looks
	stepStopped = "stopped" // it was told to stop
	stepSandbox = "sandbox"
)

// ending is what a runner has to record.
type ending struct {
	outcome     jobs.Outcome
	interrupted bool // the daemon shuts down: the job returns to the queue
}

// endOf turns the answer of a call into the end of an attempt. A call that
// completed did so, even if somebody had asked to cancel it by then.
func (r *run) endOf(ctx context.Context, res supervisor.Result, err error) ending {
	cause := context.Cause(ctx)
	if err == nil && !res.Cancelled {
		r.clean = true
		return ending{outcome: jobs.Outcome{Status: jobs.Completed, Result: res.Payload, ContentType: res.ContentType}}
	}
	var call *supervisor.CallError
	var lost *supervisor.WorkerLostError
	partial := res.Payload
	if errors.As(err, &call) {
		partial = call.Partial
	}
	r.lost = errors.As(err, &lost)
	if cause != nil {
		return r.stopped(cause, partial, res.ContentType)
	}
	switch {
	case r.lost && isOOM(lost.Exit):
		r.hostOOM = true
		return r.outOfMemory(runOOM, retry(lostError(lost)))
	case r.lost:
		return retry(lostError(lost))
	case call != nil && call.Category == string(jobs.OOM):
		return r.outOfMemory(runOOM, callFailed(call))
	case call != nil:
		return callFailed(call)
	case err == nil:
		return failed(&jobs.Error{Category: jobs.CancelledCat, Message: "the worker gave up the call although nobody asked it to"}, partial)
	default:
		return retry(&jobs.Error{Category: jobs.WorkerLost, Message: err.Error(), Retriable: true})
	}
}

// stopped is the end of an attempt that somebody cut short.
func (r *run) stopped(cause error, partial []byte, contentType string) ending {
	out := jobs.Outcome{Result: partial, ContentType: contentType, Partial: len(partial) > 0}
	switch {
	case errors.Is(cause, errUserCancelled):
		out.Status = jobs.Cancelled
		out.Error = &jobs.Error{Category: jobs.CancelledCat, Message: "cancelled"}
	case errors.Is(cause, errRunTimeout):
		out.Status = jobs.Failed
		out.Error = &jobs.Error{Category: jobs.Timeout, Message: "the job ran longer than its run timeout allows"}
	case !r.reached: // nothing began that an attempt could be counted for
		out = jobs.Outcome{Status: jobs.Pending, Unspent: true, Error: &jobs.Error{
			Category: jobs.Interrupted, Retriable: true, Message: "interrupted: the daemon stopped before the job began"}}
	default:
		return ending{interrupted: true}
	}
	return ending{outcome: out}
}

// notPrepared is the end of an attempt that never came to its worker, because
// what the job needs could not be brought together.
func (r *run) notPrepared(ctx context.Context, err error) ending {
	if cause := context.Cause(ctx); cause != nil {
		return r.stopped(cause, nil, "")
	}
	var ref *jobs.RefError
	if errors.As(err, &ref) {
		return failed(&jobs.Error{Category: jobs.UserInput, Message: ref.Error()}, nil)
	}
	return retry(&jobs.Error{Category: jobs.Transient, Message: err.Error(), Retriable: true})
}

// notStarted is the end of an attempt whose worker did not come up.
func (r *run) notStarted(ctx context.Context, err error) ending {
	if cause := context.Cause(ctx); cause != nil {
		return r.stopped(cause, nil, "")
	}
	var start *supervisor.StartError
	if !errors.As(err, &start) {
		return retry(&jobs.Error{Category: jobs.Transient, Message: err.Error(), Retriable: true})
	}
	r.startErr = start
	e := startError(start)
	switch {
	case e.Category == jobs.OOM:
		r.hostOOM = start.Call == nil
		return r.outOfMemory(loadOOM, retry(e))
	case unspent(start):
		return ending{outcome: jobs.Outcome{Status: jobs.Pending, Unspent: true, Error: e}}
	case e.Retriable:
		return retry(e)
	default:
		return failed(e, nil)
	}
}

// unspent reports whether a failed start says nothing about the job: it was
// not tried at all, or the machine, not the plugin, was in the way.
func unspent(e *supervisor.StartError) bool {
	switch e.Step {
	case stepBackoff, stepGaveUp, stepStopped, stepSandbox:
		return true
	}
	return false
}

// startError puts a failed start into the job's words. What the plugin itself
// raised is final (an import error does not heal by repetition); a process that
// died, stalled or ran out of memory may do better next time.
func startError(s *supervisor.StartError) *jobs.Error {
	e := &jobs.Error{Category: jobs.Fatal, Message: s.Error(), StderrTail: s.Stderr}
	switch {
	case unspent(s): // with it comes what went wrong before, which is not this start
		e.Category, e.Retriable = jobs.Transient, true
	case s.Call != nil:
		e.Category, e.Retriable = category(s.Call.Category, jobs.Fatal), s.Call.Retriable
		e.Type, e.Traceback, e.Fields, e.RetryAfter = s.Call.Type, s.Call.Traceback, s.Call.Fields, s.Call.RetryAfter
	case s.Exit != nil && isOOM(*s.Exit):
		e.Category, e.Retriable = jobs.OOM, true
	case s.Step == "timeout" || s.Step == "stall":
		e.Category, e.Retriable = jobs.Timeout, true
	case s.Exit != nil && s.Exit.Kind == supervisor.ExitSignal:
		e.Category, e.Retriable = jobs.WorkerLost, true
	}
	return e
}

func callFailed(c *supervisor.CallError) ending {
	e := &jobs.Error{
		Category: category(c.Category, jobs.Fatal), Message: c.Message, Retriable: c.Retriable,
		Type: c.Type, Traceback: c.Traceback, RetryAfter: c.RetryAfter, Fields: c.Fields,
	}
	if c.Retriable {
		end := retry(e)
		end.outcome.Result, end.outcome.Partial = c.Partial, len(c.Partial) > 0
		return end
	}
	return failed(e, c.Partial)
}

func lostError(l *supervisor.WorkerLostError) *jobs.Error {
	e := &jobs.Error{Category: jobs.WorkerLost, Message: l.Error(), Retriable: true, StderrTail: l.Stderr}
	if isOOM(l.Exit) {
		e.Category = jobs.OOM
		e.Message = fmt.Sprintf("the worker of %s ran out of memory: %s", l.Instance, l.Exit)
	}
	return e
}

func isOOM(x supervisor.Exit) bool {
	return x.Kind == supervisor.ExitOOMWorker || x.Kind == supervisor.ExitOOMSystem
}

// retry gives the job another attempt if it has one left.
func retry(e *jobs.Error) ending {
	return ending{outcome: jobs.Outcome{Status: jobs.Pending, Error: e}}
}

func failed(e *jobs.Error, partial []byte) ending {
	return ending{outcome: jobs.Outcome{Status: jobs.Failed, Error: e, Result: partial, Partial: len(partial) > 0}}
}

// category accepts what a worker calls its error, where it is one of ours.
func category(name string, other jobs.Category) jobs.Category {
	switch c := jobs.Category(name); c {
	case jobs.UserInput, jobs.Transient, jobs.ResourceCat, jobs.Fatal, jobs.Timeout, jobs.Interrupted, jobs.OOM, jobs.CancelledCat:
		return c
	}
	return other
}
