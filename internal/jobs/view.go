package jobs

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs/joblog"
)

// clone makes the parts of j that others may change its own.
func (j Job) clone() Job {
	j.Spec.Labels = maps.Clone(j.Spec.Labels)
	if j.Block != nil {
		b := *j.Block
		j.Block = &b
	}
	return j
}

// Get returns the job as it is now.
func (q *Queue) Get(ctx context.Context, id ID) (Job, error) {
	for {
		q.mu.Lock()
		if e := q.jobs[id]; e != nil { // first: the id of a pruned job may be used again
			if j, ok := q.wholeLocked(e); ok {
				q.mu.Unlock()
				return j.clone(), nil
			}
		} else if old := q.recent[id]; old != nil {
			q.mu.Unlock()
			return old.job.clone(), nil
		}
		q.mu.Unlock()
		j, err := q.stored(ctx, id)
		if err != nil || j.Status.Final() {
			return j, err
		}
		q.mu.Lock()
		e := q.jobs[id]
		if e != nil {
			q.liveLocked(e, &j)
		}
		q.mu.Unlock()
		if e != nil {
			return j.clone(), nil
		}
		// It became final meanwhile, or is about to enter the index.
		if err := q.barrier(ctx); err != nil {
			return Job{}, err
		}
	}
}

// wholeLocked returns the job where all of it is in memory.
func (q *Queue) wholeLocked(e *entry) (Job, bool) {
	var j Job
	switch {
	case e.run != nil:
		j = e.run.job
	case e.cached != nil:
		j = *e.cached
	default:
		return Job{}, false
	}
	q.liveLocked(e, &j)
	return j, true
}

// liveLocked lays over j what the index knows better than the store.
func (q *Queue) liveLocked(e *entry, j *Job) {
	j.Status, j.Revision, j.Attempt = e.status, e.revision, int(e.attempt)
	j.Spec.Priority, j.Spec.Held = e.priority, e.held
	j.NotBefore = time.Time{}
	if e.notBefore != 0 {
		j.NotBefore = time.Unix(0, e.notBefore).UTC()
	}
	if r := e.run; r != nil {
		j.Phase, j.Progress, j.ProgressMessage = r.job.Phase, r.job.Progress, r.job.ProgressMessage
		j.CancelRequestedAt, j.CancelReason, j.StartedAt = r.job.CancelRequestedAt, r.job.CancelReason, r.job.StartedAt
		return
	}
	j.Block = q.blockLocked(e)
	switch {
	case e.held:
		j.Phase = Held
	case j.Block != nil:
		j.Phase = Blocked
	default:
		j.Phase = Queued
	}
}

// codeNoSlot is the block of a job that only waits for its turn.
const codeNoSlot = "no_slot"

// blockLocked says why a pending entry does not run, as far as is known.
func (q *Queue) blockLocked(e *entry) *Block {
	switch {
	case e.held:
		return nil
	case e.deps != nil:
		waits := slices.Sorted(maps.Keys(e.deps.waitFor))
		holders := make([]string, len(waits))
		for i, id := range waits {
			holders[i] = string(id)
		}
		return &Block{Code: "dependency", Sentence: waitsFor(holders), Holders: holders}
	case e.notBefore != 0:
		at := time.Unix(0, e.notBefore).UTC()
		return &Block{Code: "retry_delay", Sentence: "failed and is tried again at " + at.Format(time.RFC3339), Earliest: at}
	case q.controls[""] == ModePaused:
		return &Block{Code: "paused", Sentence: "the queue is paused"}
	case q.controls[e.group.instance] == ModePaused:
		return &Block{Code: "paused", Sentence: fmt.Sprintf("the queue of %s is paused", e.group.instance)}
	}
	return e.group.block
}

// waitsFor names the first few of what a job waits for.
func waitsFor(ids []string) string {
	const few = 3
	switch n := len(ids); {
	case n == 1:
		return "waits for job " + ids[0]
	case n <= few:
		return "waits for jobs " + strings.Join(ids, ", ")
	default:
		return fmt.Sprintf("waits for jobs %s and %d more", strings.Join(ids[:few], ", "), n-few)
	}
}

// Wait returns the job once it is final. When ctx ends first it returns the job
// so far and ctx's error.
func (q *Queue) Wait(ctx context.Context, id ID) (Job, error) {
	q.mu.Lock()
	e := q.jobs[id]
	if e == nil {
		q.mu.Unlock()
		j, err := q.Get(ctx, id)
		if err != nil || j.Status.Final() {
			return j, err
		}
		return q.Wait(ctx, id) // it entered the index meanwhile
	}
	if e.done == nil {
		e.done = make(chan struct{})
	}
	done := e.done
	q.mu.Unlock()
	select {
	case <-done:
		return q.Get(ctx, id)
	case <-ctx.Done():
		j, err := q.Get(context.WithoutCancel(ctx), id)
		if err != nil {
			return j, err
		}
		return j, context.Cause(ctx)
	}
}

// List returns jobs newest first, without Args and Kwargs.
func (q *Queue) List(ctx context.Context, lq ListQuery) (Page, error) {
	if lq.Limit < 1 || lq.Limit > 500 {
		return Page{}, &InvalidError{Field: "limit", Message: "must be between 1 and 500"}
	}
	page, err := q.store.List(ctx, lq)
	if err != nil {
		return Page{}, err
	}
	q.overlay(page.Jobs)
	return page, nil
}

// overlay shows stored jobs as they are now.
func (q *Queue) overlay(js []Job) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range js {
		js[i].Phase = derivedPhase(js[i])
		if e := q.jobs[js[i].ID]; e != nil && !js[i].Status.Final() {
			q.liveLocked(e, &js[i])
			js[i] = js[i].clone()
		}
	}
}

// Overview returns the queue at a glance; jobs come without Args and Kwargs.
func (q *Queue) Overview(ctx context.Context, limit int) (Overview, error) {
	history, err := q.store.List(ctx, ListQuery{Statuses: []Status{Completed, Failed, Cancelled}, Limit: max(limit, 1)})
	if err != nil {
		return Overview{}, err
	}
	o := Overview{ReadAt: history.ReadAt, History: history.Jobs}
	q.mu.Lock()
	order := append(slices.Collect(maps.Keys(q.running)), q.pendingLocked(limit)...)
	ids := make([]ID, len(order))
	for i, e := range order {
		ids[i] = e.id
	}
	o.Totals, o.Controls = q.totals, maps.Clone(q.controls)
	q.mu.Unlock()
	rows, err := q.store.GetMany(ctx, ids)
	if err != nil {
		return Overview{}, err
	}
	q.overlay(rows)
	byID := make(map[ID]Job, len(rows))
	for _, j := range rows {
		byID[j.ID] = j
	}
	for _, id := range ids {
		switch j := byID[id]; j.Status {
		case Running:
			o.Running = append(o.Running, j)
		case Pending:
			o.Pending = append(o.Pending, j)
		}
	}
	slices.SortFunc(o.Running, func(a, b Job) int { return cmp.Compare(a.Seq, b.Seq) })
	return o, nil
}

// pendingLocked returns up to limit pending entries in the order they would
// start: the ready ones of all instances, then those that may not start yet.
func (q *Queue) pendingLocked(limit int) []*entry {
	var out []*entry
	for _, g := range q.groups {
		n := 0
		g.ready.Ascend(func(e *entry) bool {
			out = append(out, e)
			n++
			return n < limit
		})
	}
	slices.SortFunc(out, func(a, b *entry) int {
		if less(a, b) {
			return -1
		}
		return 1
	})
	if len(out) < limit {
		q.waiting.Ascend(func(e *entry) bool {
			out = append(out, e)
			return len(out) < limit
		})
	}
	return out[:min(len(out), max(limit, 0))]
}

// Totals counts jobs; the final ones since the store was created.
func (q *Queue) Totals() Totals {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.totals
}

// Result opens the result of a job; the caller closes it. ErrNotFound when
// there is none.
func (q *Queue) Result(ctx context.Context, id ID) (io.ReadSeekCloser, ResultInfo, error) {
	q.mu.Lock()
	old := q.recent[id]
	q.mu.Unlock()
	if old != nil && old.result != nil && old.job.Result != nil {
		return resultBytes{bytes.NewReader(old.result)}, *old.job.Result, nil
	}
	j, err := q.Get(ctx, id)
	if err != nil {
		return nil, ResultInfo{}, err
	}
	if j.Result == nil {
		return nil, ResultInfo{}, fmt.Errorf("result of job %s: %w", id, ErrNotFound)
	}
	body, err := q.store.Result(ctx, id)
	return body, *j.Result, err
}

// resultBytes is a result that is in memory.
type resultBytes struct{ *bytes.Reader }

func (resultBytes) Close() error { return nil }

// Log follows the job's log: the records after after, until the final one. The
// caller closes the reader.
func (q *Queue) Log(ctx context.Context, id ID, after uint64) (*joblog.Reader, error) {
	q.mu.Lock()
	known := q.jobs[id] != nil || q.recent[id] != nil
	q.mu.Unlock()
	if !known {
		if _, err := q.store.Get(ctx, id); err != nil {
			return nil, err
		}
	}
	return q.logs.Reader(ctx, string(id), after)
}

// moreLevels bounds of how many priorities below the first jobs' Groups shows
// the oldest job.
const moreLevels = 16

// Groups returns, per instance, the first limit jobs that may start, and of those
// behind them the oldest of each lower priority and the first of each submitter: a
// scheduler that lets jobs age, or bounds submitters, must see whom urgent jobs, or
// the many of one submitter, would keep waiting.
func (q *Queue) Groups(limit int) []Group {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := make([]Group, 0, len(q.groups))
	for _, g := range q.groups {
		if g.ready.Len() == 0 {
			continue
		}
		og := Group{Instance: g.instance, Pending: g.ready.Len()}
		if !q.pausedLocked(g.instance) {
			og.Ready = g.first(limit)
		}
		out = append(out, og)
	}
	slices.SortFunc(out, func(a, b Group) int { return cmp.Compare(a.Instance, b.Instance) })
	return out
}

// first lists the group's jobs as Groups shows them.
func (g *group) first(limit int) []Ready {
	shown := make([]*entry, 0, min(limit, g.ready.Len()))
	g.ready.Ascend(func(e *entry) bool {
		if len(shown) < limit {
			shown = append(shown, e)
		}
		return len(shown) < limit
	})
	if n := len(shown); n > 0 && n < g.ready.Len() {
		shown = g.behind(shown)
	}
	out := make([]Ready, len(shown))
	for i, e := range shown {
		out[i] = Ready{ID: e.id, Seq: e.seq, Priority: e.priority, Submitter: e.submitter.Value(),
			CreatedAt: time.Unix(0, e.created).UTC(), Attempt: int(e.attempt) + 1}
	}
	return out
}

// behind adds to the first jobs those behind them that Groups shows, in order.
func (g *group) behind(shown []*entry) []*entry {
	last := shown[len(shown)-1]
	if len(g.owners) > 1 {
		for _, mine := range g.owners {
			if e, _ := mine.Min(); less(last, e) {
				shown = append(shown, e)
			}
		}
	}
	after := last
	for range moreLevels {
		var next *entry
		g.ready.AscendGreaterOrEqual(&entry{priority: after.priority, seq: math.MaxInt64}, func(e *entry) bool {
			next = e
			return false
		})
		if next == nil {
			break
		}
		shown, after = append(shown, next), next
	}
	slices.SortFunc(shown, func(a, b *entry) int { return cmp.Or(cmp.Compare(b.priority, a.priority), cmp.Compare(a.seq, b.seq)) })
	return slices.Compact(shown)
}

// Cancels returns the intents recorded for running jobs since the last call.
func (q *Queue) Cancels() []CancelIntent {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := q.cancels
	q.cancels = nil
	return out
}

// SetBlocks says, per instance, why its ready jobs do not start; an instance
// that is not named is not blocked. A code that changed is journalled, with the
// first job it concerns; waiting for a slot is ordinary and is not.
func (q *Queue) SetBlocks(blocks map[string]*Block) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.now()
	for _, g := range q.groups {
		next := blocks[g.instance]
		prev := g.block
		if next == nil {
			g.block = nil
			continue
		}
		b := *next
		same := prev != nil && prev.Code == b.Code
		switch {
		case b.Since.IsZero() && same:
			b.Since = prev.Since
		case b.Since.IsZero():
			b.Since = now
		}
		g.block = &b
		if first, ok := g.ready.Min(); ok && !same && b.Code != codeNoSlot {
			data := eventData{"code": b.Code, "sentence": b.Sentence}
			if !b.Earliest.IsZero() {
				data["earliest"] = b.Earliest
			}
			q.store.Emit(jobEvent(events.JobBlocked, first.id, g.instance, now, data))
		}
	}
}
