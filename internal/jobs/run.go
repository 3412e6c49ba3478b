package jobs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/cjmd/cjmd/internal/events"
)

// Run is the scheduler's handle on one attempt of a job. Finish or Interrupt
// ends it; after that the other methods do nothing. Safe from any goroutine.
type Run struct {
	q       *Queue
	e       *entry
	attempt int
	worker  string
	begun   time.Time
	started chan struct{} // closed when the start is durable
	refused chan struct{} // closed when it never will be; startErr is set before
	sink    *Sink

	finishing chan struct{} // capacity 1: one Finish at a time

	// Guarded by Queue.mu.
	job          Job // live copy; Args and Kwargs are never changed
	startErr     error
	startTries   int
	cancelTicket *Ticket
	cancelStored bool
	ended        bool
	phases       map[string]bool // cancel phases told
	hasDir       bool            // Dir was asked for
}

// Admit starts an attempt of a ready job: it is running in memory when Admit
// returns, and durably so when Run.Started is closed. A job that allows one
// attempt only must not begin before that, or it might run twice. worker names
// the worker that is ready for it: the job is executing at once; with "" it is
// reserving. *StateConflictError when the job may not start (any more).
func (q *Queue) Admit(ctx context.Context, id ID, worker string) (*Run, error) {
	full, err := q.payload(ctx, id)
	if err != nil {
		return nil, err
	}
	q.mu.Lock()
	e := q.jobs[id]
	if e == nil || e.place != inReady || q.pausedLocked(e.group.instance) {
		status := Pending
		if e != nil {
			status = e.status
		}
		q.mu.Unlock()
		if e == nil { // ended since its payload was read
			if full, err = q.Get(ctx, id); err != nil {
				return nil, err
			}
			status = full.Status
		}
		return nil, &StateConflictError{ID: id, Status: status, Action: "start"}
	}
	r := q.startLocked(e, full, worker)
	q.mu.Unlock()
	return r, nil
}

// payload returns the whole job, from memory where it is.
func (q *Queue) payload(ctx context.Context, id ID) (Job, error) {
	q.mu.Lock()
	if e := q.jobs[id]; e != nil && e.cached != nil {
		j := *e.cached
		q.mu.Unlock()
		return j, nil
	}
	q.mu.Unlock()
	return q.store.Get(ctx, id)
}

func (q *Queue) startLocked(e *entry, full Job, worker string) *Run {
	now := q.now()
	q.unplaceLocked(e)
	q.timerLocked(e, 0)
	q.uncacheLocked(e)
	q.countLocked(e, -1)
	q.totals.Running++
	q.running[e] = struct{}{}
	e.status = Running
	e.attempt++
	full.Spec.Priority, full.Attempt, full.NotBefore = e.priority, int(e.attempt), time.Time{}
	if full.StartedAt.IsZero() {
		full.StartedAt = now
	}
	full.Status, full.Phase, full.Progress, full.ProgressMessage = Running, Reserving, 0, ""
	if worker != "" {
		full.Phase = Executing
	}
	r := &Run{q: q, e: e, attempt: int(e.attempt), worker: worker, begun: now, started: make(chan struct{}), refused: make(chan struct{}),
		finishing: make(chan struct{}, 1), job: full, phases: map[string]bool{}}
	r.sink = &Sink{run: r}
	e.run = r
	r.storeStartLocked()
	return r
}

// storeStartLocked queues the start transition.
func (r *Run) storeStartLocked() {
	at := r.begun
	data := eventData{"attempt": r.attempt, "phase": r.job.Phase}
	if r.worker != "" {
		data["worker"] = r.worker
	}
	ch := &Change{ID: r.e.id, From: Pending, To: Running, Action: "start", Attempt: &r.attempt, StartedAt: at, NotBefore: new(time.Time),
		Events: []events.Draft{jobEvent(events.JobStarted, r.e.id, r.job.Spec.Instance, at, data)}}
	// Most jobs wait for their end alone; one that allows a single attempt waits for
	// this before it begins, and a job that produces anything hurries (WaitStarted).
	r.q.store.Write(Write{Change: ch, Lazy: r.job.Spec.MaxAttempts != 1, Applied: r.startApplied})
}

// startApplied runs on the store's writer. A start that could not be stored is
// stored again after a while: the run waits for it.
func (r *Run) startApplied(w Written) {
	q := r.q
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case w.Err == nil:
		r.e.revision++
		q.begun = append(q.begun, r) // Started is closed when the job log has the event
	case errors.Is(w.Err, ErrStoreUnavailable) && !q.closed:
		wait := min(retryFirst<<min(r.startTries, 10), retryMax)
		r.startTries++
		time.AfterFunc(wait, func() {
			q.mu.Lock()
			defer q.mu.Unlock()
			r.storeStartLocked()
		})
	default:
		r.startErr = w.Err
		close(r.refused)
	}
}

// backToPendingLocked undoes the running state; the caller places the entry.
func (q *Queue) backToPendingLocked(e *entry) {
	e.run = nil
	e.status = Pending
	delete(q.running, e)
	q.totals.Running--
	q.countLocked(e, 1)
}

// Started is closed when the start of the attempt is durable.
func (r *Run) Started() <-chan struct{} { return r.started }

// WaitStarted returns once the start is durable.
func (r *Run) WaitStarted(ctx context.Context) error {
	if !r.isStarted() {
		r.q.store.Emit() // nothing, at once: what was held back is stored with it
	}
	select {
	case <-r.started:
		return nil
	case <-r.refused:
		return r.startErr
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

const (
	retryFirst = 50 * time.Millisecond
	retryMax   = 2 * time.Second
)

// acquire takes a semaphore of one.
func acquire(ctx context.Context, sem chan struct{}) error {
	select {
	case sem <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Job returns the job as it is now, with Args and Kwargs as they were submitted.
func (r *Run) Job() Job {
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	j := r.job
	j.Revision = r.e.revision
	return j.clone()
}

// SetPhase moves a running job to another running phase. It shows at once; its
// event is stored in order but not waited for.
func (r *Run) SetPhase(_ context.Context, p Phase) error {
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	from, to := State{Running, r.job.Phase}, State{Running, p}
	if r.ended || !CanMove(from, to) {
		return &StateConflictError{ID: r.e.id, Status: r.e.status, Action: "move to " + string(p) + " the"}
	}
	if from != to {
		r.job.Phase = p
		r.noteLocked(events.JobPhase, eventData{"phase": p})
	}
	return nil
}

// CancelPhase notes that a cancel (or a timeout) entered a phase: cooperative,
// interrupt or kill. Each is told once.
func (r *Run) CancelPhase(mode string) {
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	if r.ended || r.phases[mode] {
		return
	}
	r.phases[mode] = true
	r.job.Phase = Cancelling
	data := eventData{"phase": mode}
	if at := r.job.CancelRequestedAt; !at.IsZero() {
		data["after_ms"] = r.q.now().Sub(at).Milliseconds()
	}
	r.noteLocked(events.JobCancelPhase, data)
}

// noteLocked queues an event of the running job. It is refused by the store
// should the job not be running there, which keeps the order right.
func (r *Run) noteLocked(kind events.Kind, data eventData) {
	e := r.e
	r.q.store.Write(Write{
		Change: &Change{ID: e.id, From: Running, Action: "note",
			Events: []events.Draft{jobEvent(kind, e.id, r.job.Spec.Instance, r.q.now(), data)}},
		Applied: func(w Written) { r.q.bump(e, w) },
	})
}

// Interrupt gives the job back because the daemon stops: pending again with its
// old age while attempts remain, cancelled if that was asked for, else failed.
func (r *Run) Interrupt(ctx context.Context) error {
	_, err := r.Finish(ctx, Outcome{Status: Pending, Error: &Error{Category: Interrupted, Retriable: true,
		Message: "interrupted: the daemon stopped"}})
	return err
}

// Finish ends the attempt and returns the job as it is then; it is durable when
// Finish returns. While the store cannot be written it holds the outcome and
// tries again, until ctx ends.
func (r *Run) Finish(ctx context.Context, out Outcome) (Job, error) {
	id := r.e.id
	if err := acquire(ctx, r.finishing); err != nil {
		return Job{}, fmt.Errorf("cannot finish job %s: %w", id, err)
	}
	defer func() { <-r.finishing }()
	r.settleDir()
	result := storedResult(out) // not under the lock: a checksum of a large one takes its time
	for wait := retryFirst; ; wait = min(2*wait, retryMax) {
		ch, applied, err := r.decide(out, result)
		if err != nil {
			return Job{}, err
		}
		// Queued behind the start, which it may overtake in no case: should that
		// not have been stored, the store refuses this too.
		_, err = r.q.store.Write(Write{Change: ch, Applied: func(w Written) {
			if w.Err == nil {
				applied()
			}
		}}).Wait(ctx)
		if err == nil {
			break
		}
		if errors.Is(err, ErrStoreUnavailable) {
			err = sleep(ctx, wait)
		} else if ended(err) && !r.isStarted() {
			err = r.WaitStarted(ctx)
		}
		if err != nil {
			return Job{}, fmt.Errorf("cannot finish job %s: %w", id, err)
		}
	}
	r.sink.close()
	return r.after(ctx)
}

func (r *Run) isStarted() bool {
	select {
	case <-r.started:
		return true
	default:
		return false
	}
}

// after returns the job as the attempt left it.
func (r *Run) after(ctx context.Context) (Job, error) {
	r.q.mu.Lock()
	j := r.job
	r.q.mu.Unlock()
	if j.Status.Final() {
		return j.clone(), nil
	}
	return r.q.Get(ctx, r.e.id)
}

// decide turns an outcome into the change that follows from it.
func (r *Run) decide(out Outcome, result *StoredResult) (*Change, func(), error) {
	q := r.q
	q.mu.Lock()
	defer q.mu.Unlock()
	if r.ended {
		return nil, nil, &StateConflictError{ID: r.e.id, Status: r.e.status, Action: "finish"}
	}
	cancelled := !r.job.CancelRequestedAt.IsZero()
	left := r.attempt < r.job.Spec.MaxAttempts && !cancelled
	switch {
	case out.Status == Pending && out.Unspent && !cancelled,
		left && (out.Status == Pending || out.Status == Failed && out.Error != nil && out.Error.Retriable):
		ch, applied := r.requeueLocked(out)
		return ch, applied, nil
	case out.Status == Pending && cancelled:
		out.Status = Cancelled
	case out.Status == Pending:
		out.Status = Failed
		if out.Error == nil {
			out.Error = &Error{Category: Interrupted, Message: "interrupted, and no attempt is left"}
		}
	case !out.Status.Final():
		return nil, nil, &StateConflictError{ID: r.e.id, Status: r.e.status, Action: "finish as " + string(out.Status)}
	}
	ch, applied := r.endLocked(out, result)
	return ch, applied, nil
}

func (r *Run) requeueLocked(out Outcome) (*Change, func()) {
	q, e := r.q, r.e
	now := q.now()
	var delay time.Duration
	if e := out.Error; e != nil && !out.Unspent {
		switch {
		case e.RetryAfter > 0:
			delay = e.RetryAfter
		case e.Category != Interrupted:
			delay = q.opts.Backoff(r.attempt)
		}
	}
	data := eventData{"attempt": r.attempt, "error": publicError(out.Error)}
	var notBefore time.Time
	if delay > 0 {
		notBefore = now.Add(delay)
		data["not_before"] = notBefore
	}
	attempt := r.attempt
	if out.Unspent {
		attempt--
		data["unspent"] = true
	}
	ch := &Change{ID: e.id, From: Running, To: Pending, Action: "requeue", Attempt: &attempt, NotBefore: &notBefore, LastError: out.Error,
		Events: []events.Draft{jobEvent(events.JobRequeued, e.id, r.job.Spec.Instance, now, data)}}
	return ch, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		r.ended = true
		e.revision++
		q.backToPendingLocked(e)
		e.attempt = int32(attempt)
		e.notBefore = 0
		if delay > 0 {
			e.notBefore = notBefore.UnixNano()
		}
		q.placeLocked(e)
		if !r.job.CancelRequestedAt.IsZero() { // asked for while this was being stored
			q.endPendingLocked(e, pendingEnd{status: Cancelled, action: "cancel", reason: r.job.CancelReason})
		}
		q.wake()
	}
}

// storedResult describes what an attempt returned; nil when that is nothing.
func storedResult(out Outcome) *StoredResult {
	if out.Result == nil {
		return nil
	}
	sum := sha256.Sum256(out.Result)
	info := ResultInfo{Size: int64(len(out.Result)), ContentType: out.ContentType, SHA256: hex.EncodeToString(sum[:])}
	if info.ContentType == "" {
		info.ContentType = "application/json"
	}
	return &StoredResult{Info: info, Body: out.Result}
}

func (r *Run) endLocked(out Outcome, result *StoredResult) (*Change, func()) {
	q, e := r.q, r.e
	now := q.now()
	progress, message := r.job.Progress, r.job.ProgressMessage
	if out.Status == Completed {
		progress = 1
	}
	ch := &Change{ID: e.id, From: Running, To: out.Status, Action: "finish", FinishedAt: now, Error: out.Error,
		Progress: &progress, ProgressMessage: message, Result: result}
	data := eventData{"attempt": r.attempt}
	if result != nil {
		result.Info.Partial = out.Partial || out.Status != Completed
		data["result"] = eventData{"size": result.Info.Size, "content_type": result.Info.ContentType, "partial": result.Info.Partial}
	}
	kind := events.JobCompleted
	switch out.Status {
	case Failed:
		kind = events.JobFailed
		data["error"] = publicError(out.Error)
	case Cancelled:
		kind = events.JobCancelled
		data["reason"] = r.job.CancelReason
	}
	ch.Events = []events.Draft{jobEvent(kind, e.id, r.job.Spec.Instance, now, data)}
	return ch, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		r.ended = true
		e.revision++
		r.job.Status, r.job.Phase, r.job.FinishedAt, r.job.Error, r.job.Revision = out.Status, "", now, out.Error, e.revision
		r.job.Progress, r.job.ProgressMessage = progress, message
		if !r.cancelStored { // it came too late
			r.job.CancelRequestedAt, r.job.CancelReason = time.Time{}, ""
		}
		if result != nil {
			r.job.Result = &result.Info
		}
		q.rememberLocked(r.job, out.Result)
		q.removeLocked(e, out.Status)
	}
}
