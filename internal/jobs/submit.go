package jobs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
	"unique"

	"github.com/oklog/ulid/v2"

	"github.com/cjmd/cjmd/internal/events"
)

// Submit stores all submissions in one transaction and returns once they are
// durable. A submission whose key or id is known with the same body is answered
// with the existing job; with another body all of them are refused with
// *IdempotencyError. Other refusals: *InvalidError, *LimitError, ErrDraining,
// ErrStoreUnavailable.
func (q *Queue) Submit(ctx context.Context, subs []Submission) ([]Submitted, error) {
	if slices.ContainsFunc(subs, func(s Submission) bool { return s.Stage != nil }) {
		ctx = context.WithoutCancel(ctx) // whether there is a job decides about its files
	}
	b, err := q.newBatch(ctx, subs)
	if err != nil || len(subs) == 0 {
		return nil, err
	}
	for {
		t, retry, err := q.enqueueBatch(b)
		if err != nil {
			return nil, err
		}
		if retry { // a dependency is between the store and the index
			if err := q.barrier(ctx); err != nil {
				return nil, err
			}
			if err := b.lookUpDeps(ctx, q); err != nil {
				return nil, err
			}
			continue
		}
		w, err := t.Wait(ctx)
		if errors.Is(err, ErrLeftover) {
			if err = q.removeLeftovers(ctx); err == nil {
				continue
			}
		}
		var gone *DependencyError
		if errors.As(err, &gone) {
			return nil, b.refusedDep(gone)
		}
		if err != nil {
			return nil, fmt.Errorf("cannot submit: %w", err)
		}
		return q.answer(ctx, b, w)
	}
}

// batch is a set of submissions on its way into the store.
type batch struct {
	rows    []NewJob
	entries []*entry
	depEnd  map[ID]Status // dependencies that are final already
}

func (q *Queue) newBatch(ctx context.Context, subs []Submission) (*batch, error) {
	b := &batch{rows: make([]NewJob, len(subs)), entries: make([]*entry, len(subs))}
	now := q.now()
	for i, sub := range subs {
		row, err := q.newRow(sub, now)
		if err != nil {
			return nil, err
		}
		b.rows[i] = row
		b.entries[i] = newEntry(row.Job)
	}
	return b, b.lookUpDeps(ctx, q)
}

func newEntry(j Job) *entry {
	e := &entry{id: j.ID, submitter: unique.Make(j.Submitter), created: j.CreatedAt.UnixNano(), priority: j.Spec.Priority,
		revision: 1, maxAttempts: int32(min(j.Spec.MaxAttempts, math.MaxInt32)), status: Pending, held: j.Spec.Held}
	if j.Spec.QueueTimeout > 0 {
		e.queueDeadline = j.CreatedAt.Add(j.Spec.QueueTimeout).UnixNano()
	}
	return e
}

func (q *Queue) newRow(sub Submission, now time.Time) (NewJob, error) {
	sp := sub.Spec
	var err error
	if sp.Args, err = normalise("args", sp.Args, "[]", '['); err != nil {
		return NewJob{}, err
	}
	if sp.Kwargs, err = normalise("kwargs", sp.Kwargs, "{}", '{'); err != nil {
		return NewJob{}, err
	}
	if err := checkSpec(sp); err != nil {
		return NewJob{}, err
	}
	id := sub.ID
	switch {
	case sub.Stage != nil && id != "":
		return NewJob{}, &InvalidError{Field: "id", Message: "cannot be chosen for a job that comes with its files"}
	case sub.Stage != nil:
		id = sub.Stage.id
		err = sub.Stage.check(sp)
	case id == "":
		id = newID()
	default:
		err = id.Check()
	}
	if err != nil {
		return NewJob{}, err
	}
	if err := checkDeps(id, sp); err != nil {
		return NewJob{}, err
	}
	var hash []byte
	if sub.ID != "" || sub.IdempotencyKey != "" {
		hash = specHash(sp, sub.Stage)
	}
	if sp.MaxAttempts == 0 {
		sp.MaxAttempts = q.opts.MaxAttempts
	}
	if sp.QueueTimeout == 0 {
		sp.QueueTimeout = q.opts.QueueTimeout
	}
	if sp.RunTimeout == 0 {
		sp.RunTimeout = q.opts.RunTimeout
	}
	j := Job{ID: id, Spec: sp, Submitter: sub.Submitter, RetryOf: sub.RetryOf, Status: Pending, Revision: 1, CreatedAt: now}
	data := eventData{"priority": sp.Priority, "submitter": sub.Submitter, "stream": sp.Stream}
	if len(sp.Labels) > 0 {
		data["labels"] = sp.Labels
	}
	if sp.Held {
		data["held"] = true
	}
	if sub.RetryOf != "" {
		data["retry_of"] = sub.RetryOf
	}
	if len(sp.DependsOn) > 0 {
		data["depends_on"] = sp.DependsOn
	}
	return NewJob{Job: j, Key: sub.IdempotencyKey, Hash: hash, ChosenID: sub.ID != "",
		Events: []events.Draft{jobEvent(events.JobSubmitted, id, sp.Instance, now, data)}}, nil
}

func newID() ID { return ID(ulid.Make().String()) }

func normalise(field string, raw json.RawMessage, empty string, open byte) (json.RawMessage, error) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || bytes.Equal(raw, []byte("null")) {
		return json.RawMessage(empty), nil
	}
	if raw[0] != open || !json.Valid(raw) {
		what := map[byte]string{'[': "array", '{': "object"}[open]
		return nil, &InvalidError{Field: field, Message: "must be a JSON " + what}
	}
	return raw, nil
}

func checkSpec(sp Spec) error {
	for field, d := range map[string]time.Duration{"queue_timeout": sp.QueueTimeout, "run_timeout": sp.RunTimeout,
		"cancel_grace": sp.CancelGrace, "interrupt_grace": sp.InterruptGrace} {
		if d < 0 {
			return &InvalidError{Field: field, Message: "must not be negative"}
		}
	}
	switch {
	case sp.Instance == "":
		return &InvalidError{Field: "plugin", Message: "must name a plugin or instance"}
	case sp.MaxAttempts < 0:
		return &InvalidError{Field: "max_attempts", Message: "must be at least 1"}
	}
	return checkPriority(sp.Priority)
}

func checkPriority(p int) error {
	if p > math.MaxInt32 || p < math.MinInt32 {
		return &InvalidError{Field: "priority", Message: "must fit in 32 bits"}
	}
	return nil
}

// specHash is the same for two bodies that ask for the same thing, whatever
// their white space and order of keys. Files that come with a body are part of it.
func specHash(sp Spec, files *Stage) []byte {
	h := sha256.New()
	enc := json.NewEncoder(h)
	sp.Args, sp.Kwargs = canonical(sp.Args), canonical(sp.Kwargs)
	if err := enc.Encode(sp); err != nil { // a Spec of valid JSON parts encodes
		panic(fmt.Sprintf("cannot encode a job's spec: %v", err))
	}
	if files != nil {
		for _, name := range slices.Sorted(maps.Keys(files.sums)) {
			fmt.Fprintf(h, "%q %s\n", name, files.sums[name])
		}
	}
	return h.Sum(nil)
}

func canonical(raw json.RawMessage) json.RawMessage {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if dec.Decode(&v) != nil {
		return raw
	}
	b, err := json.Marshal(v)
	if err != nil {
		return raw
	}
	return b
}

// enqueueBatch checks what only the index knows and queues the write. retry
// says that a dependency must be looked up again.
func (q *Queue) enqueueBatch(b *batch) (t *Ticket, retry bool, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, r := range b.rows {
		if q.controls[""] == ModeDraining || q.controls[r.Job.Spec.Instance] == ModeDraining {
			return nil, false, ErrDraining
		}
	}
	if n := int(q.totals.Pending) + q.inFlight + len(b.rows); n > q.opts.MaxPending {
		return nil, false, &LimitError{What: "pending jobs", Limit: int64(q.opts.MaxPending), RetryAfter: 5 * time.Second}
	}
	if err := q.quotaLocked(b); err != nil {
		return nil, false, err
	}
	if retry, err := q.linkDepsLocked(b); retry || err != nil {
		return nil, retry, err
	}
	q.flightLocked(b, 1)
	return q.store.Write(Write{Insert: b.rows, Applied: func(w Written) { q.inserted(b, w) }}), false, nil
}

// flightLocked notes that the batch is on its way to the store (n = 1) or has
// arrived (-1).
func (q *Queue) flightLocked(b *batch, n int) {
	q.inFlight += n * len(b.rows)
	for _, e := range b.entries {
		q.waitsLocked(e.submitter, n)
	}
}

// quotaLocked refuses a batch by which somebody would have too many jobs waiting.
func (q *Queue) quotaLocked(b *batch) error {
	if q.opts.MaxPerUser <= 0 {
		return nil
	}
	more := make(map[unique.Handle[string]]int, 1)
	for _, e := range b.entries {
		if more[e.submitter]++; q.waits[e.submitter]+more[e.submitter] > q.opts.MaxPerUser {
			return &LimitError{What: "pending jobs of one submitter", Limit: int64(q.opts.MaxPerUser), RetryAfter: 5 * time.Second, Quota: true}
		}
	}
	return nil
}

// inserted runs on the store's writer.
func (q *Queue) inserted(b *batch, w Written) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.flightLocked(b, -1)
	for i, e := range b.entries {
		if w.Err != nil || !w.Inserted[i].Created {
			q.forgetDepsLocked(e)
			if w.Err == nil && w.Inserted[i].Status.Final() { // a later job of the batch may wait for it
				q.depEndedLocked(w.Inserted[i].ID, w.Inserted[i].Status)
			}
			continue
		}
		e.seq = w.Inserted[i].Seq
		e.group = q.groupLocked(b.rows[i].Job.Spec.Instance)
		b.rows[i].Job.Seq = e.seq
		q.cacheLocked(e, b.rows[i].Job)
		q.addLocked(e)
		q.endIfDepFailedLocked(e)
	}
	if w.Err == nil {
		q.wake()
	}
}

// answer turns what the store said into the caller's answer.
func (q *Queue) answer(ctx context.Context, b *batch, w Written) ([]Submitted, error) {
	out := make([]Submitted, len(b.rows))
	for i, ins := range w.Inserted {
		if ins.Created {
			q.mu.Lock()
			j := b.rows[i].Job
			if e := q.jobs[j.ID]; e != nil {
				q.liveLocked(e, &j)
			}
			q.mu.Unlock()
			out[i] = Submitted{Job: j.clone(), Created: true}
			continue
		}
		j, err := q.Get(ctx, ins.ID)
		if err != nil {
			return nil, err
		}
		out[i] = Submitted{Job: j}
	}
	return out, nil
}
