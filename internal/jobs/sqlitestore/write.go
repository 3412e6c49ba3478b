package sqlitestore

import (
	"bytes"
	"context"
	"database/sql/driver"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
)

// Write implements jobs.Store. A result too large for the database is written
// to its file here, in the caller's goroutine.
func (s *Store) Write(w jobs.Write) *jobs.Ticket {
	o, err := s.prepareWrite(w)
	if err != nil {
		t := jobs.NewTicket()
		t.Resolve(jobs.Written{Err: err})
		return t
	}
	o.applied, o.lazy = w.Applied, w.Lazy
	return s.w.enqueue(o)
}

func (s *Store) prepareWrite(w jobs.Write) (*op, error) {
	if w.Change != nil {
		return s.prepareChange(*w.Change)
	}
	rows := make([]insertRow, len(w.Insert))
	size := 0
	for i, n := range w.Insert {
		row, err := newInsertRow(n)
		if err != nil {
			return nil, err
		}
		rows[i] = row
		size += row.size
	}
	return &op{size: size, clean: len(rows) == 1 && len(rows[0].deps) == 0, apply: func(c *conn) (jobs.Written, error) {
		out := jobs.Written{Inserted: make([]jobs.Inserted, len(rows))}
		for i, r := range rows {
			ins, err := c.insertJob(r)
			if err != nil {
				return jobs.Written{}, err
			}
			out.Inserted[i] = ins
		}
		return out, nil
	}}, nil
}

// draft is an event that only lacks its number. args are made by the caller, so
// that the writer has less to do: the number is set there (twice, should the
// batch be done again).
type draft struct {
	ev   events.Event
	args []driver.Value
}

func newDraft(at time.Time, kind events.Kind, job, instance string, data []byte) draft {
	return draft{
		ev:   events.Event{At: time.Unix(0, at.UnixNano()).UTC(), Kind: kind, Job: job, Instance: instance, Data: data},
		args: []driver.Value{nil, at.UnixNano(), string(kind), job, instance, data},
	}
}

func newDrafts(ds []events.Draft) ([]draft, error) {
	now := time.Now()
	out := make([]draft, len(ds))
	for i, d := range ds {
		data := []byte("{}")
		switch v := d.Data.(type) {
		case nil:
		case json.RawMessage:
			data = v
		default:
			b, err := json.Marshal(v)
			if err != nil {
				return nil, fmt.Errorf("cannot encode event %s: %w", d.Kind, err)
			}
			data = b
		}
		at := d.At
		if at.IsZero() {
			at = now
		}
		out[i] = newDraft(at, d.Kind, d.Job, d.Instance, data)
	}
	return out, nil
}

// addEvents numbers and stores events in the open transaction.
func (c *conn) addEvents(ds []draft) error {
	for _, d := range ds {
		d.args[0] = int64(c.nextSeq)
		if err := c.exec(`INSERT INTO events (seq, at, kind, job, instance, data) VALUES (?,?,?,?,?,?)`, d.args...); err != nil {
			return fmt.Errorf("cannot write event: %w", err)
		}
		d.ev.Seq = c.nextSeq
		c.evs = append(c.evs, d.ev)
		c.nextSeq++
	}
	return nil
}

type insertRow struct {
	id     jobs.ID
	deps   []jobs.ID
	chosen bool
	args   []driver.Value
	key    string
	sub    string
	hash   []byte
	events []draft
	size   int
}

const insertSQL = `INSERT INTO jobs (id, submitter, idem_key, spec_hash, instance, status, priority, held, stream,
 max_attempts, created_at, queue_timeout, run_timeout, cancel_grace, interrupt_grace, run_on_dep_fail, depends_on,
 retry_of, labels, args, kwargs, task, method) VALUES (?,?,?,?,?,0,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING`

func newInsertRow(n jobs.NewJob) (insertRow, error) {
	j, sp := n.Job, n.Job.Spec
	ds, err := newDrafts(n.Events)
	if err != nil {
		return insertRow{}, err
	}
	var deps, labels driver.Value
	if len(sp.DependsOn) > 0 {
		deps = jsonText(sp.DependsOn)
	}
	if len(sp.Labels) > 0 {
		labels = jsonText(sp.Labels)
	}
	var key, hash driver.Value
	if n.Key != "" {
		key = n.Key
	}
	if n.Hash != nil {
		hash = n.Hash
	}
	return insertRow{
		id: j.ID, deps: sp.DependsOn, chosen: n.ChosenID, key: n.Key, sub: j.Submitter, hash: n.Hash, events: ds, size: 512 + len(sp.Args) + len(sp.Kwargs),
		args: []driver.Value{string(j.ID), j.Submitter, key, hash, sp.Instance, int64(sp.Priority), flag(sp.Held), flag(sp.Stream),
			int64(sp.MaxAttempts), j.CreatedAt.UnixNano(), int64(sp.QueueTimeout), int64(sp.RunTimeout), int64(sp.CancelGrace),
			int64(sp.InterruptGrace), flag(sp.RunOnDepFail), deps, string(j.RetryOf), labels, []byte(sp.Args), []byte(sp.Kwargs), sp.Task, sp.Method},
	}, nil
}

func (c *conn) insertJob(r insertRow) (jobs.Inserted, error) {
	if r.chosen {
		n, err := c.queryInt(`SELECT count(*) FROM leftovers WHERE id = ?`, string(r.id))
		if err != nil {
			return jobs.Inserted{}, fmt.Errorf("cannot insert job %s: %w", r.id, err)
		}
		if n > 0 {
			return jobs.Inserted{}, fmt.Errorf("job %s: %w", r.id, jobs.ErrLeftover)
		}
	}
	res, err := c.execResult(insertSQL, r.args...)
	if err != nil {
		return jobs.Inserted{}, fmt.Errorf("cannot insert job %s: %w", r.id, err)
	}
	if n, _ := res.RowsAffected(); n == 0 {
		return c.known(r)
	}
	seq, err := res.LastInsertId()
	if err != nil {
		return jobs.Inserted{}, fmt.Errorf("cannot insert job %s: %w", r.id, err)
	}
	if err := c.checkDeps(r); err != nil {
		return jobs.Inserted{}, err
	}
	return jobs.Inserted{ID: r.id, Seq: seq, Created: true, Status: jobs.Pending}, c.addEvents(r.events)
}

// checkDeps refuses a job whose dependencies retention removed after the queue had
// looked at them. From here on they are kept.
func (c *conn) checkDeps(r insertRow) error {
	for _, dep := range r.deps {
		n, err := c.queryInt(`SELECT count(*) FROM jobs WHERE id = ?`, string(dep))
		if err != nil {
			return fmt.Errorf("cannot insert job %s: %w", r.id, err)
		}
		if n == 0 {
			return &jobs.DependencyError{ID: r.id, Missing: dep}
		}
	}
	return nil
}

// known answers an insert whose id or key exists: the same body is the same job.
func (c *conn) known(r insertRow) (jobs.Inserted, error) {
	var ins jobs.Inserted
	var hash []byte
	scan := func(v []driver.Value) error {
		ins.Seq, _ = v[0].(int64)
		id, _ := v[1].(string)
		ins.ID = jobs.ID(id)
		h, _ := v[2].([]byte)
		hash = bytes.Clone(h)
		status, _ := v[3].(int64)
		ins.Status = statusOf(status)
		return nil
	}
	what := string(r.id)
	if r.key != "" {
		err := c.query(scan, `SELECT seq, id, spec_hash, status FROM jobs WHERE submitter = ? AND idem_key = ?`, r.sub, r.key)
		if err != nil {
			return ins, err
		}
		what = r.key
	}
	if ins.ID == "" {
		what = string(r.id)
		if err := c.query(scan, `SELECT seq, id, spec_hash, status FROM jobs WHERE id = ?`, string(r.id)); err != nil {
			return ins, err
		}
	}
	if r.hash == nil || !bytes.Equal(hash, r.hash) || r.chosen && ins.ID != r.id {
		return ins, &jobs.IdempotencyError{Key: what, ID: ins.ID}
	}
	return ins, nil
}

func (s *Store) prepareChange(ch jobs.Change) (*op, error) {
	ds, err := newDrafts(ch.Events)
	if err != nil {
		return nil, err
	}
	sets, args := changeSets(ch)
	size := 512
	var inline []byte
	if r := ch.Result; r != nil {
		file := len(r.Body) > s.opts.InlineResult
		if file {
			if err := s.writeResultFile(ch.ID, r.Body); err != nil {
				return nil, unavailable(err)
			}
		} else {
			inline = r.Body
			if inline == nil {
				inline = []byte{}
			}
			size += len(inline)
		}
		sets += `, result_size=?, result_type=?, result_partial=?, result_sha256=?, result_file=?`
		args = append(args, r.Info.Size, r.Info.ContentType, flag(r.Info.Partial), r.Info.SHA256, flag(file))
	}
	query := `UPDATE jobs SET revision=revision+1` + sets + ` WHERE id=? AND status=?`
	args = append(args, string(ch.ID), statusCode(ch.From))
	return &op{size: size, clean: true, apply: func(c *conn) (jobs.Written, error) {
		return jobs.Written{}, c.change(ch, query, args, inline, ds)
	}}, nil
}

func (c *conn) change(ch jobs.Change, query string, args []driver.Value, inline []byte, ds []draft) error {
	res, err := c.execResult(query, args...)
	if err != nil {
		return fmt.Errorf("cannot %s job %s: %w", ch.Action, ch.ID, err)
	}
	if n, _ := res.RowsAffected(); n == 0 {
		return c.conflict(ch)
	}
	if inline != nil {
		if err := c.exec(`INSERT OR REPLACE INTO results (job_seq, body) SELECT seq, ? FROM jobs WHERE id = ?`,
			inline, string(ch.ID)); err != nil {
			return fmt.Errorf("cannot store the result of job %s: %w", ch.ID, err)
		}
	}
	if ch.To.Final() {
		c.finals[statusCode(ch.To)-statusCode(jobs.Completed)]++
	}
	return c.addEvents(ds)
}

func (c *conn) conflict(ch jobs.Change) error {
	status := int64(-1)
	err := c.query(func(v []driver.Value) error { status, _ = v[0].(int64); return nil },
		`SELECT status FROM jobs WHERE id = ?`, string(ch.ID))
	switch {
	case err != nil:
		return err
	case status < 0:
		return fmt.Errorf("cannot %s job %s: %w", ch.Action, ch.ID, jobs.ErrNotFound)
	default:
		return &jobs.StateConflictError{ID: ch.ID, Status: statusOf(status), Action: ch.Action}
	}
}

// changeSets turns the set fields of ch into the SET list. The text depends only
// on which fields are set, so few statements are ever prepared.
func changeSets(ch jobs.Change) (string, []driver.Value) {
	var b strings.Builder
	b.Grow(256)
	args := make([]driver.Value, 0, 20) // the most there are, those of the result and the row's too
	set := func(on bool, col string, v driver.Value) {
		if on {
			b.WriteString(", " + col)
			args = append(args, v)
		}
	}
	set(ch.To != "", `status=?`, statusCode(ch.To))
	if ch.Priority != nil {
		set(true, `priority=?`, int64(*ch.Priority))
	}
	if ch.Labels != nil {
		set(true, `labels=?`, jsonText(ch.Labels))
	}
	if ch.Held != nil {
		set(true, `held=?`, flag(*ch.Held))
	}
	if ch.Attempt != nil {
		set(true, `attempt=?`, int64(*ch.Attempt))
		if *ch.Attempt == 0 {
			b.WriteString(`, started_at=0`)
		}
	}
	set(!ch.StartedAt.IsZero(), `started_at=CASE started_at WHEN 0 THEN ? ELSE started_at END`, nanos(ch.StartedAt))
	set(!ch.FinishedAt.IsZero(), `finished_at=?`, nanos(ch.FinishedAt))
	if ch.NotBefore != nil {
		set(true, `not_before=?`, nanos(*ch.NotBefore))
	}
	set(!ch.CancelRequestedAt.IsZero(), `cancel_requested_at=?`, nanos(ch.CancelRequestedAt))
	set(ch.CancelReason != "", `cancel_reason=?`, ch.CancelReason)
	if ch.Progress != nil {
		set(true, `progress=?`, *ch.Progress)
		set(true, `progress_message=?`, ch.ProgressMessage)
	}
	if ch.Error != nil {
		set(true, `error=?`, encodeError(ch.Error))
	}
	if ch.LastError != nil {
		set(true, `last_error=?`, encodeError(ch.LastError))
	}
	return b.String(), args
}

func (c *conn) addTotals() error {
	for i, n := range c.finals {
		if n > 0 {
			key := []string{"completed", "failed", "cancelled"}[i]
			if err := c.exec(`UPDATE meta SET value = value + ? WHERE key = ?`, n, key); err != nil {
				return fmt.Errorf("cannot count jobs: %w", err)
			}
		}
	}
	return nil
}

// do runs fn inside the writer's next transaction and waits until it is durable.
func (s *Store) do(ctx context.Context, what string, fn func(*conn) error) (jobs.Written, error) {
	t := s.w.enqueue(&op{size: 1024, apply: func(c *conn) (jobs.Written, error) { return jobs.Written{}, fn(c) }})
	w, err := t.Wait(ctx)
	if err != nil {
		return w, fmt.Errorf("cannot %s: %w", what, err)
	}
	return w, nil
}

// Record implements events.Recorder.
func (s *Store) Record(ctx context.Context, drafts ...events.Draft) ([]events.Event, error) {
	ds, err := newDrafts(drafts)
	if err != nil {
		return nil, err
	}
	w, err := s.do(ctx, "record events", func(c *conn) error { return c.addEvents(ds) })
	return w.Events, err
}

// Emit implements events.Recorder.
func (s *Store) Emit(drafts ...events.Draft) {
	ds, err := newDrafts(drafts)
	if err != nil {
		s.w.log.Error(err.Error())
		return
	}
	s.w.enqueue(&op{size: 256 * len(ds), emit: true, clean: true, apply: func(c *conn) (jobs.Written, error) {
		return jobs.Written{}, c.addEvents(ds)
	}})
}

// OnCommit implements jobs.Store.
func (s *Store) OnCommit(fn func([]events.Event)) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.onCommit = fn
}

// Writable returns nil when the last write was stored, else why it was not. It
// does not try; the next write does, and the writer by itself when it is idle.
func (s *Store) Writable() error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if s.w.closed {
		return errClosed
	}
	return s.w.failing
}

// WritingFor is how long the batch that is being written has been on its way to
// the disk; 0 between batches. A disk that is full or broken answers soon, one
// that hangs does not: the watchdog looks at it.
func (s *Store) WritingFor() time.Duration {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if s.w.began.IsZero() {
		return 0
	}
	return time.Since(s.w.began)
}

var codes = [...]jobs.Status{jobs.Pending, jobs.Running, jobs.Completed, jobs.Failed, jobs.Cancelled}

func statusCode(s jobs.Status) int64 {
	for i, c := range codes {
		if c == s {
			return int64(i)
		}
	}
	return -1
}

func statusOf(code int64) jobs.Status {
	if code < 0 || int(code) >= len(codes) {
		return ""
	}
	return codes[code]
}

// storedError adds what the API form of an error leaves out.
type storedError struct {
	jobs.Error
	RetryAfter time.Duration `json:"retry_after_ns,omitempty"`
}

func encodeError(e *jobs.Error) string {
	return jsonText(storedError{Error: *e, RetryAfter: e.RetryAfter})
}

func decodeError(text string) (*jobs.Error, error) {
	if text == "" {
		return nil, nil
	}
	var se storedError
	if err := json.Unmarshal([]byte(text), &se); err != nil {
		return nil, fmt.Errorf("cannot decode a stored error: %w", err)
	}
	se.Error.RetryAfter = se.RetryAfter
	return &se.Error, nil
}

// jsonText encodes values whose types cannot fail to encode.
func jsonText(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("cannot encode %T: %v", v, err))
	}
	return string(b)
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func timeOf(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}
