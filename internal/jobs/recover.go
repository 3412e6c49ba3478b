package jobs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
	"unique"

	"github.com/cjmd/cjmd/internal/events"
)

// pruneBatch bounds one transaction of retention.
const pruneBatch = 1000

// What is kept of final jobs where nothing else is said.
const (
	defaultKeepJobs = 10_000
	defaultKeepAge  = 30 * 24 * time.Hour
)

// Recover builds the index from the store. Jobs that were running when the last
// process ended go back to pending while attempts remain, end cancelled when
// that had been asked for, else failed with category interrupted. Called once,
// before anything else.
func (q *Queue) Recover(ctx context.Context) (Recovered, error) {
	var rec Recovered
	if err := q.loadControls(ctx); err != nil {
		return rec, err
	}
	totals, err := q.store.Totals(ctx)
	if err != nil {
		return rec, err
	}
	var waitDeps, running, unwanted []ActiveJob
	q.mu.Lock()
	q.totals = Totals{Completed: totals.Completed, Failed: totals.Failed, Cancelled: totals.Cancelled}
	q.mu.Unlock()
	err = q.store.Active(ctx, func(a ActiveJob) error {
		q.mu.Lock()
		defer q.mu.Unlock()
		e := q.activeEntryLocked(a)
		switch {
		case a.Status == Running:
			running = append(running, a)
		case !a.CancelRequestedAt.IsZero(): // requeued in the instant of the cancel, which was acknowledged
			unwanted = append(unwanted, a)
		}
		if len(a.DependsOn) > 0 && a.Attempt == 0 {
			waitDeps = append(waitDeps, a)
		}
		q.addLocked(e)
		return nil
	})
	if err != nil {
		return rec, err
	}
	if err := q.recoverDeps(ctx, waitDeps); err != nil {
		return rec, err
	}
	if rec, err = q.recoverRunning(ctx, running); err != nil {
		return rec, err
	}
	if err := q.cancelUnwanted(ctx, unwanted); err != nil {
		return rec, err
	}
	q.mu.Lock()
	rec.Pending = int(q.totals.Pending)
	q.mu.Unlock()
	if err := q.settleStages(ctx); err != nil {
		return rec, err
	}
	if err := q.removeLeftovers(ctx); err != nil {
		if ctx.Err() != nil {
			return rec, err
		}
		// Tried again with every look at retention: old files keep no daemon from starting.
		q.log.Sugar().Warnw("cannot remove what pruned jobs left", "error", err)
	}
	return rec, nil
}

func (q *Queue) activeEntryLocked(a ActiveJob) *entry {
	e := &entry{id: a.ID, seq: a.Seq, group: q.groupLocked(a.Instance), submitter: unique.Make(a.Submitter),
		created: a.CreatedAt.UnixNano(), priority: a.Priority, revision: a.Revision, attempt: int32(a.Attempt),
		maxAttempts: int32(a.MaxAttempts), status: a.Status, held: a.Held}
	if a.NotBefore.After(q.now()) {
		e.notBefore = a.NotBefore.UnixNano()
	}
	if a.QueueTimeout > 0 {
		e.queueDeadline = a.CreatedAt.Add(a.QueueTimeout).UnixNano()
	}
	return e
}

// recoverRunning settles the attempts that the last process left behind.
func (q *Queue) recoverRunning(ctx context.Context, running []ActiveJob) (rec Recovered, err error) {
	var tickets []*Ticket
	now := q.now()
	for _, a := range running {
		q.mu.Lock()
		e := q.jobs[a.ID]
		cause := &Error{Category: Interrupted, Message: "interrupted: the daemon ended while the job ran", Retriable: a.Attempt < a.MaxAttempts}
		ch := &Change{ID: a.ID, From: Running, Action: "recover"}
		var kind events.Kind
		data := eventData{"attempt": a.Attempt}
		switch {
		case !a.CancelRequestedAt.IsZero():
			ch.To, ch.FinishedAt, kind = Cancelled, now, events.JobCancelled
			data["reason"] = a.CancelReason
		case a.Attempt < a.MaxAttempts:
			ch.To, ch.LastError, kind = Pending, cause, events.JobRequeued
			data["error"] = publicError(cause)
			rec.Requeued++
		default:
			ch.To, ch.FinishedAt, ch.Error, kind = Failed, now, cause, events.JobFailed
			data["error"] = publicError(cause)
			rec.Failed++
		}
		ch.Events = []events.Draft{jobEvent(kind, a.ID, a.Instance, now, data)}
		tickets = append(tickets, q.store.Write(Write{Change: ch, Applied: func(w Written) { q.recovered(e, ch.To, w) }}))
		q.mu.Unlock()
	}
	var errs []error
	for _, t := range tickets {
		if _, err := t.Wait(ctx); err != nil {
			errs = append(errs, fmt.Errorf("cannot recover a job: %w", err))
		}
	}
	return rec, errors.Join(errs...)
}

// cancelUnwanted ends pending jobs whose cancel is on record.
func (q *Queue) cancelUnwanted(ctx context.Context, unwanted []ActiveJob) error {
	for _, a := range unwanted {
		q.mu.Lock()
		var t *Ticket
		if e, _ := q.settledLocked(a.ID); e != nil { // else it is being ended for another reason
			t = q.endPendingLocked(e, pendingEnd{status: Cancelled, action: "cancel", reason: a.CancelReason})
		}
		q.mu.Unlock()
		if t == nil {
			continue
		}
		if _, err := t.Wait(ctx); err != nil && !ended(err) {
			return fmt.Errorf("cannot recover a job: %w", err)
		}
	}
	return nil
}

// recovered runs on the store's writer.
func (q *Queue) recovered(e *entry, to Status, w Written) {
	if w.Err != nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	e.revision++
	if to.Final() {
		q.removeLocked(e, to)
		return
	}
	q.backToPendingLocked(e)
	q.placeLocked(e)
	q.wake()
}

// Run keeps to retention until ctx ends: at start, every PruneEvery and after
// many jobs ended.
func (q *Queue) Run(ctx context.Context) error {
	tick := time.NewTicker(q.opts.PruneEvery)
	defer tick.Stop()
	for {
		if err := q.Prune(ctx); err != nil && ctx.Err() == nil {
			q.log.Sugar().Warnw("cannot keep to retention", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-q.pruneKick:
		}
	}
}

// SetRetention changes how many final jobs are kept, and for how long; 0 means
// the default. It takes effect with the next look at retention, which is soon.
func (q *Queue) SetRetention(keepJobs int, keepAge time.Duration) {
	q.mu.Lock()
	q.keepJobs, q.keepAge = orDefault(keepJobs, defaultKeepJobs), orDefault(keepAge, defaultKeepAge)
	q.mu.Unlock()
	select {
	case q.pruneKick <- struct{}{}:
	default:
	}
}

// Prune removes what retention no longer keeps: final jobs that are neither
// among the newest KeepJobs nor younger than KeepAge, with their results, logs
// and directories, and the oldest events of the journal.
func (q *Queue) Prune(ctx context.Context) error {
	for {
		q.mu.Lock()
		keep, age := q.keepJobs, q.keepAge
		q.mu.Unlock()
		ids, err := q.store.Prune(ctx, keep, q.now().Add(-age), pruneBatch)
		if err != nil {
			return err
		}
		if err := q.removeLeftovers(ctx); err != nil {
			return err
		}
		if len(ids) < pruneBatch {
			break
		}
	}
	for more := true; more; {
		var err error
		if more, err = q.store.PruneJournal(ctx, q.opts.JournalRows, pruneBatch); err != nil {
			return err
		}
	}
	return nil
}

// removeLeftovers removes the files of pruned jobs, also of those that the last
// process pruned and did not finish.
func (q *Queue) removeLeftovers(ctx context.Context) error {
	// One at a time: another's list would be stale once a name is free again.
	if err := acquire(ctx, q.leftoverCh); err != nil {
		return err
	}
	defer func() { <-q.leftoverCh }()
	for {
		ids, err := q.store.Leftovers(ctx)
		if err != nil || len(ids) == 0 {
			return err
		}
		// One that cannot be removed is tried again and must not keep the others.
		var errs []error
		ids = slices.DeleteFunc(ids, func(id ID) bool {
			err := errors.Join(q.logs.Remove(string(id)), q.files.RemoveAll(id.FileName()))
			if err != nil {
				errs = append(errs, fmt.Errorf("cannot remove what job %s left: %w", id, err))
			}
			return err != nil
		})
		if err := errors.Join(append(errs, q.store.Forget(ctx, ids))...); err != nil {
			return err
		}
	}
}
