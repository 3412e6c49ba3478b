package jobs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/cjmd/cjmd/internal/events"
)

// Cancel ends a pending job at once and asks for the end of a running one: the
// intent is durable when it returns, the job is final only when its work has
// stopped. Cancelling a job that is final or being cancelled changes nothing.
func (q *Queue) Cancel(ctx context.Context, id ID, by, reason string) (Job, error) {
	if reason == "" {
		reason = "cancelled by " + by
	}
	e, j, err := q.settled(ctx, id)
	if err != nil || e == nil {
		return j, err
	}
	var t *Ticket
	r := e.run
	if r == nil {
		t = q.endPendingLocked(e, pendingEnd{status: Cancelled, action: "cancel", reason: reason, by: by})
	} else {
		t = q.intendCancelLocked(e, by, reason)
	}
	q.mu.Unlock()
	_, err = t.Wait(ctx)
	if ended(err) && r != nil && !r.isStarted() { // neither its start nor this could be stored
		err = ErrStoreUnavailable
	}
	if err != nil && !ended(err) {
		return Job{}, fmt.Errorf("cannot cancel job %s: %w", id, err)
	}
	return q.Get(ctx, id)
}

// ended reports whether a change was refused because the job had moved on.
func ended(err error) bool {
	var conflict *StateConflictError
	return errors.As(err, &conflict)
}

// intendCancelLocked tells the scheduler, once and at once, also when the
// intent cannot be stored; that is tried again with the next call.
func (q *Queue) intendCancelLocked(e *entry, by, reason string) *Ticket {
	r := e.run
	now := q.now()
	if t := r.cancelTicket; t != nil {
		if !t.failed() {
			return t
		}
		now, reason = r.job.CancelRequestedAt, r.job.CancelReason
	} else {
		r.job.CancelRequestedAt, r.job.CancelReason = now, reason
		q.cancels = append(q.cancels, CancelIntent{ID: e.id, Reason: reason})
		q.wake()
	}
	r.cancelTicket = q.store.Write(Write{
		Change: &Change{ID: e.id, From: Running, Action: "cancel", CancelRequestedAt: now, CancelReason: reason,
			Events: []events.Draft{jobEvent(events.JobCancelRequested, e.id, e.group.instance, now,
				eventData{"by": by, "reason": reason})}},
		Applied: func(w Written) {
			q.mu.Lock()
			defer q.mu.Unlock()
			if w.Err == nil {
				e.revision++
				r.cancelStored = true
			}
		},
	})
	return r.cancelTicket
}

// bump counts a stored change that moved nothing. It runs on the store's writer.
func (q *Queue) bump(e *entry, w Written) {
	if w.Err == nil {
		q.mu.Lock()
		e.revision++
		q.mu.Unlock()
	}
}

// pendingEnd is how a pending job ends without an attempt.
type pendingEnd struct {
	status     Status // Cancelled or Failed
	action     string
	reason, by string // of a cancel
	err        *Error // of a failure
}

// endPendingLocked queues the end of a pending, settled job.
func (q *Queue) endPendingLocked(e *entry, end pendingEnd) *Ticket {
	now := q.now()
	ch := &Change{ID: e.id, From: Pending, To: end.status, Action: end.action, FinishedAt: now, Error: end.err}
	if end.status == Cancelled {
		ch.CancelRequestedAt, ch.CancelReason = now, end.reason
		ch.Events = []events.Draft{jobEvent(events.JobCancelled, e.id, e.group.instance, now,
			eventData{"reason": end.reason, "by": end.by, "attempt": e.attempt})}
	} else {
		ch.Events = []events.Draft{jobEvent(events.JobFailed, e.id, e.group.instance, now,
			eventData{"error": publicError(end.err), "attempt": e.attempt})}
	}
	return q.moveLocked(e, ch, func() { q.removeLocked(e, end.status) })
}

// moveLocked queues a change of a pending job. The job cannot start until it is
// decided; applied runs, with mu held, once it is durable.
func (q *Queue) moveLocked(e *entry, ch *Change, applied func()) *Ticket {
	busy := make(chan struct{})
	e.busy = busy
	q.placeLocked(e)
	return q.store.Write(Write{Change: ch, Applied: func(w Written) {
		q.mu.Lock()
		defer q.mu.Unlock()
		e.busy = nil
		close(busy)
		if w.Err == nil {
			e.revision++
			applied()
		}
		if !e.status.Final() {
			q.placeLocked(e)
			if w.Err == nil {
				q.endIfDepFailedLocked(e)
			} else {
				q.timerLocked(e, q.now().Add(time.Second).UnixNano()) // looked at again, whatever it waits for
			}
			q.wake()
		}
	}})
}

// Patch changes priority (of a pending job) or labels. *RevisionError,
// *StateConflictError.
func (q *Queue) Patch(ctx context.Context, id ID, p Patch) (Job, error) {
	e, j, err := q.settled(ctx, id)
	if err != nil {
		return Job{}, err
	}
	if e == nil {
		return Job{}, &StateConflictError{ID: id, Status: j.Status, Action: "change"}
	}
	t, err := q.patchLocked(e, p)
	q.mu.Unlock()
	if err != nil {
		return Job{}, err
	}
	if _, err := t.Wait(ctx); err != nil {
		return Job{}, fmt.Errorf("cannot change job %s: %w", id, err)
	}
	return q.Get(ctx, id)
}

func (q *Queue) patchLocked(e *entry, p Patch) (*Ticket, error) {
	if p.IfMatch != 0 && p.IfMatch != e.revision {
		return nil, &RevisionError{Have: e.revision, Want: p.IfMatch}
	}
	if p.Priority != nil {
		if err := checkPriority(*p.Priority); err != nil {
			return nil, err
		}
	}
	if p.Priority != nil && e.status != Pending {
		return nil, &StateConflictError{ID: e.id, Status: e.status, Action: "change the priority of"}
	}
	data := eventData{}
	if p.Priority != nil {
		data["priority"] = *p.Priority
	}
	if p.Labels != nil {
		data["labels"] = p.Labels
	}
	labels := maps.Clone(p.Labels)
	ch := &Change{ID: e.id, From: e.status, Action: "change", Priority: p.Priority, Labels: labels,
		Events: []events.Draft{jobEvent(events.JobUpdated, e.id, e.group.instance, q.now(), data)}}
	if e.status == Running {
		return q.store.Write(Write{Change: ch, Applied: func(w Written) {
			q.mu.Lock()
			defer q.mu.Unlock()
			if w.Err == nil {
				e.revision++
				if e.run != nil {
					e.run.job.Spec.Labels = labels
				}
			}
		}}), nil
	}
	return q.moveLocked(e, ch, func() {
		if p.Priority != nil {
			q.unplaceLocked(e) // its place in the tree depends on the priority
			e.priority = *p.Priority
		}
		if e.cached != nil {
			if p.Priority != nil {
				e.cached.Spec.Priority = *p.Priority
			}
			if labels != nil {
				e.cached.Spec.Labels = labels
			}
		}
	}), nil
}

// Hold keeps a pending job back; holding a held job changes nothing.
func (q *Queue) Hold(ctx context.Context, id ID) (Job, error) {
	return q.setHeld(ctx, id, true, "hold", events.JobHeld)
}

// Release lets a held job go on with its old age.
func (q *Queue) Release(ctx context.Context, id ID) (Job, error) {
	return q.setHeld(ctx, id, false, "release", events.JobReleased)
}

func (q *Queue) setHeld(ctx context.Context, id ID, held bool, action string, kind events.Kind) (Job, error) {
	e, j, err := q.settled(ctx, id)
	if err != nil {
		return Job{}, err
	}
	if e == nil {
		return Job{}, &StateConflictError{ID: id, Status: j.Status, Action: action}
	}
	if e.status != Pending {
		defer q.mu.Unlock()
		return Job{}, &StateConflictError{ID: id, Status: e.status, Action: action}
	}
	var t *Ticket
	if e.held != held {
		ch := &Change{ID: id, From: Pending, Action: action, Held: &held,
			Events: []events.Draft{jobEvent(kind, id, e.group.instance, q.now(), eventData{})}}
		t = q.moveLocked(e, ch, func() {
			e.held = held
			if e.cached != nil {
				e.cached.Spec.Held = held
			}
		})
	}
	q.mu.Unlock()
	if t != nil {
		if _, err := t.Wait(ctx); err != nil {
			return Job{}, fmt.Errorf("cannot %s job %s: %w", action, id, err)
		}
	}
	return q.Get(ctx, id)
}

// Retry submits a final job again as a new one, with the files that had been
// uploaded for it.
func (q *Queue) Retry(ctx context.Context, id ID, submitter string) (Job, error) {
	j, err := q.Get(ctx, id)
	if err != nil {
		return Job{}, err
	}
	if !j.Status.Final() {
		return Job{}, &StateConflictError{ID: id, Status: j.Status, Action: "retry"}
	}
	j.Spec.Held = false
	sub := Submission{Spec: j.Spec, Submitter: submitter, RetryOf: id}
	if sub.Stage, err = q.stageAgain(j); err != nil {
		return Job{}, err
	}
	out, err := q.Submit(ctx, []Submission{sub})
	if sub.Stage != nil {
		err = errors.Join(err, sub.Stage.Settle(context.WithoutCancel(ctx)))
	}
	if err != nil {
		return Job{}, err
	}
	return out[0].Job, nil
}

// Fail ends a pending job that can never run.
func (q *Queue) Fail(ctx context.Context, id ID, jobErr *Error) error {
	e, j, err := q.settled(ctx, id)
	if err != nil {
		return err
	}
	if e == nil {
		return &StateConflictError{ID: id, Status: j.Status, Action: "fail"}
	}
	if e.status != Pending {
		defer q.mu.Unlock()
		return &StateConflictError{ID: id, Status: e.status, Action: "fail"}
	}
	t := q.endPendingLocked(e, pendingEnd{status: Failed, action: "fail", err: jobErr})
	q.mu.Unlock()
	if _, err := t.Wait(ctx); err != nil {
		return fmt.Errorf("cannot fail job %s: %w", id, err)
	}
	return nil
}

// NextDeadline is when Expire has something to do; zero when never.
func (q *Queue) NextDeadline() time.Time {
	q.mu.Lock()
	defer q.mu.Unlock()
	if e, ok := q.timers.Min(); ok {
		return time.Unix(0, e.timerAt)
	}
	return time.Time{}
}

// Expire fails jobs that waited longer than their queue_timeout and readies
// those whose retry delay is over. A job that cannot be failed now because the
// store is unavailable is tried again a second later.
func (q *Queue) Expire(ctx context.Context, now time.Time) error {
	var tickets []*Ticket
	q.mu.Lock()
	for {
		e, ok := q.timers.Min()
		if !ok || e.timerAt > now.UnixNano() {
			break
		}
		if t := q.expireLocked(e, now.UnixNano()); t != nil {
			tickets = append(tickets, t)
		}
	}
	q.mu.Unlock()
	var errs []error
	for _, t := range tickets {
		if _, err := t.Wait(ctx); err != nil && !ended(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (q *Queue) expireLocked(e *entry, now int64) *Ticket {
	if e.busy != nil {
		q.timerLocked(e, now+int64(time.Second)) // placed again when that write is decided
		return nil
	}
	if e.deps != nil && e.deps.failed != "" {
		return q.endForDepLocked(e)
	}
	if e.attempt == 0 && e.queueDeadline != 0 && e.queueDeadline <= now {
		t := q.endPendingLocked(e, pendingEnd{status: Failed, action: "expire", err: &Error{Category: Timeout,
			Message: fmt.Sprintf("not started within its queue timeout of %s", time.Duration(e.queueDeadline-e.created))}})
		if e.timerAt != 0 && e.timerAt <= now {
			q.timerLocked(e, now+int64(time.Second))
		}
		return t
	}
	if e.notBefore <= now {
		e.notBefore = 0
	}
	q.timerLocked(e, 0)
	q.placeLocked(e)
	q.wake()
	return nil
}
