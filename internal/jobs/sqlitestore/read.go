package sqlitestore

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
)

const rowColumns = `seq, id, submitter, instance, status, priority, held, stream, attempt, max_attempts, revision,
 created_at, started_at, finished_at, not_before, cancel_requested_at, cancel_reason, queue_timeout, run_timeout,
 cancel_grace, interrupt_grace, run_on_dep_fail, depends_on, retry_of, labels, progress, progress_message,
 result_size, result_type, result_partial, result_sha256, error, last_error`

// querier is a connection, a transaction or the pool.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// scanJob reads rowColumns and then whatever more is asked for.
func scanJob(row interface{ Scan(...any) error }, more ...any) (jobs.Job, error) {
	var (
		j                                                jobs.Job
		status                                           int64
		created, started, finished, notBefore, cancelled int64
		deps, labels, errText, lastText                  sql.NullString
		size                                             sql.NullInt64
		res                                              jobs.ResultInfo
		sp                                               = &j.Spec
	)
	dest := append([]any{&j.Seq, &j.ID, &j.Submitter, &sp.Instance, &status, &sp.Priority, &sp.Held, &sp.Stream, &j.Attempt,
		&sp.MaxAttempts, &j.Revision, &created, &started, &finished, &notBefore, &cancelled, &j.CancelReason,
		(*int64)(&sp.QueueTimeout), (*int64)(&sp.RunTimeout), (*int64)(&sp.CancelGrace), (*int64)(&sp.InterruptGrace),
		&sp.RunOnDepFail, &deps, &j.RetryOf, &labels, &j.Progress, &j.ProgressMessage,
		&size, &res.ContentType, &res.Partial, &res.SHA256, &errText, &lastText}, more...)
	if err := row.Scan(dest...); err != nil {
		return j, err
	}
	j.Status = statusOf(status)
	j.CreatedAt, j.StartedAt, j.FinishedAt = timeOf(created), timeOf(started), timeOf(finished)
	j.NotBefore, j.CancelRequestedAt = timeOf(notBefore), timeOf(cancelled)
	if size.Valid {
		res.Size = size.Int64
		j.Result = &res
	}
	var err error
	if deps.Valid {
		err = errors.Join(err, json.Unmarshal([]byte(deps.String), &sp.DependsOn))
	}
	if labels.Valid {
		err = errors.Join(err, json.Unmarshal([]byte(labels.String), &sp.Labels))
	}
	var e error
	j.Error, e = decodeError(errText.String)
	err = errors.Join(err, e)
	j.LastError, e = decodeError(lastText.String)
	return j, errors.Join(err, e)
}

// What a job is called with stands behind everything else in its row, and is read
// only where one job is asked for.
const getSQL = `SELECT ` + rowColumns + `, args, kwargs, task, method FROM jobs WHERE id = ?`

// Get implements jobs.Store.
func (s *Store) Get(ctx context.Context, id jobs.ID) (jobs.Job, error) {
	var args, kwargs []byte
	var task, method string
	j, err := scanJob(s.getStmt.QueryRowContext(ctx, string(id)), &args, &kwargs, &task, &method)
	if errors.Is(err, sql.ErrNoRows) {
		return jobs.Job{}, fmt.Errorf("job %s: %w", id, jobs.ErrNotFound)
	}
	if err != nil {
		return jobs.Job{}, fmt.Errorf("cannot read job %s: %w", id, err)
	}
	j.Spec.Args, j.Spec.Kwargs, j.Spec.Task, j.Spec.Method = args, kwargs, task, method
	return j, nil
}

// GetMany implements jobs.Store.
func (s *Store) GetMany(ctx context.Context, ids []jobs.ID) ([]jobs.Job, error) {
	var out []jobs.Job
	for chunk := range slices.Chunk(ids, 500) {
		args := make([]any, len(chunk))
		for i, id := range chunk {
			args[i] = string(id)
		}
		got, err := queryJobs(ctx, s.read, `SELECT `+rowColumns+` FROM jobs WHERE id IN (`+marks(len(args))+`)`, args...)
		if err != nil {
			return nil, fmt.Errorf("cannot read jobs: %w", err)
		}
		out = append(out, got...)
	}
	return out, nil
}

// FindKey implements jobs.Store.
func (s *Store) FindKey(ctx context.Context, submitter, key string) (jobs.ID, error) {
	var id jobs.ID
	err := s.read.QueryRowContext(ctx, `SELECT id FROM jobs WHERE submitter = ? AND idem_key = ?`, submitter, key).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("key %q: %w", key, jobs.ErrNotFound)
	}
	if err != nil {
		return "", fmt.Errorf("cannot look up key %q: %w", key, err)
	}
	return id, nil
}

func queryJobs(ctx context.Context, q querier, query string, args ...any) ([]jobs.Job, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []jobs.Job
	for rows.Next() {
		j, err := scanJob(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, j)
	}
	return out, rows.Err()
}

// List implements jobs.Store. Each status asked for is read from its own index
// range and the ranges are merged, so that a page costs the same at any depth.
func (s *Store) List(ctx context.Context, q jobs.ListQuery) (jobs.Page, error) {
	before, err := decodeCursor(q.Cursor)
	if err != nil {
		return jobs.Page{}, err
	}
	tx, err := s.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return jobs.Page{}, fmt.Errorf("cannot list jobs: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // read only
	var page jobs.Page
	if err := tx.QueryRowContext(ctx, `SELECT coalesce(max(seq), 0) FROM events`).Scan(&page.ReadAt); err != nil {
		return jobs.Page{}, fmt.Errorf("cannot list jobs: %w", err)
	}
	for _, filter := range listFilters(q, before) {
		got, err := queryJobs(ctx, tx, `SELECT `+rowColumns+` FROM jobs WHERE `+filter.where+` ORDER BY seq DESC LIMIT ?`,
			append(filter.args, q.Limit+1)...)
		if err != nil {
			return jobs.Page{}, fmt.Errorf("cannot list jobs: %w", err)
		}
		page.Jobs = append(page.Jobs, got...)
	}
	slices.SortFunc(page.Jobs, func(a, b jobs.Job) int { return int(b.Seq - a.Seq) })
	if len(page.Jobs) > q.Limit {
		page.Jobs = page.Jobs[:q.Limit]
		page.Next = encodeCursor(page.Jobs[q.Limit-1].Seq)
	}
	return page, nil
}

type listFilter struct {
	where string
	args  []any
}

// listFilters returns one condition per index range to read.
func listFilters(q jobs.ListQuery, before int64) []listFilter {
	statuses := q.Statuses
	if len(statuses) == 0 && q.Instance != "" {
		statuses = codes[:]
	}
	base := listFilter{where: `seq < ?`, args: []any{before}}
	and := func(cond string, args ...any) {
		base.where += " AND " + cond
		base.args = append(base.args, args...)
	}
	if q.Instance != "" {
		and(`instance = ?`, q.Instance)
	}
	if q.Submitter != "" {
		and(`submitter = ?`, q.Submitter)
	}
	for k, v := range q.Label {
		and(`EXISTS (SELECT 1 FROM json_each(jobs.labels) AS l WHERE l.key = ? AND l.value = ?)`, k, v)
	}
	if len(statuses) == 0 {
		return []listFilter{base}
	}
	var out []listFilter
	for _, st := range slices.Compact(slices.Sorted(slices.Values(statuses))) {
		out = append(out, listFilter{base.where + ` AND status = ?`, append(slices.Clone(base.args), statusCode(st))})
	}
	return out
}

const maxSeq = int64(1) << 62

func encodeCursor(seq int64) string { return "s" + strconv.FormatInt(seq, 36) }

func decodeCursor(c string) (int64, error) {
	if c == "" {
		return maxSeq, nil
	}
	if rest, ok := strings.CutPrefix(c, "s"); ok {
		if seq, err := strconv.ParseInt(rest, 36, 64); err == nil && seq > 0 && encodeCursor(seq) == c {
			return seq, nil
		}
	}
	return 0, jobs.ErrBadCursor
}

// Active implements jobs.Store. It reads in pages, so that no read transaction
// stays open while the queue builds its index.
func (s *Store) Active(ctx context.Context, fn func(jobs.ActiveJob) error) error {
	for _, status := range []jobs.Status{jobs.Running, jobs.Pending} {
		after := int64(0)
		for {
			n, last, err := s.activePage(ctx, status, after, fn)
			if err != nil {
				return fmt.Errorf("cannot load jobs: %w", err)
			}
			if n < activePageSize {
				break
			}
			after = last
		}
	}
	return nil
}

const activePageSize = 20000

func (s *Store) activePage(ctx context.Context, status jobs.Status, after int64, fn func(jobs.ActiveJob) error) (n int, last int64, err error) {
	rows, err := s.read.QueryContext(ctx, `SELECT seq, id, submitter, instance, priority, held, attempt, max_attempts, revision,
 created_at, not_before, queue_timeout, cancel_requested_at, cancel_reason, run_on_dep_fail, depends_on
 FROM jobs WHERE status = ? AND seq > ? ORDER BY seq LIMIT ?`, statusCode(status), after, activePageSize)
	if err != nil {
		return 0, 0, err
	}
	defer rows.Close()
	var deps sql.NullString
	var created, notBefore, cancelled, timeout int64
	for rows.Next() {
		a := jobs.ActiveJob{Status: status}
		if err := rows.Scan(&a.Seq, &a.ID, &a.Submitter, &a.Instance, &a.Priority, &a.Held, &a.Attempt, &a.MaxAttempts,
			&a.Revision, &created, &notBefore, &timeout, &cancelled, &a.CancelReason, &a.RunOnDepFail, &deps); err != nil {
			return n, last, err
		}
		a.CreatedAt, a.NotBefore, a.CancelRequestedAt = timeOf(created), timeOf(notBefore), timeOf(cancelled)
		a.QueueTimeout = time.Duration(timeout)
		if deps.Valid {
			if err := json.Unmarshal([]byte(deps.String), &a.DependsOn); err != nil {
				return n, last, err
			}
		}
		if err := fn(a); err != nil {
			return n, last, err
		}
		n, last = n+1, a.Seq
	}
	return n, last, rows.Err()
}

// Totals implements jobs.Store.
func (s *Store) Totals(ctx context.Context) (jobs.Totals, error) {
	var t jobs.Totals
	err := s.read.QueryRowContext(ctx, `SELECT
 (SELECT count(*) FROM jobs WHERE status = 0), (SELECT count(*) FROM jobs WHERE status = 1),
 (SELECT value FROM meta WHERE key = 'completed'), (SELECT value FROM meta WHERE key = 'failed'),
 (SELECT value FROM meta WHERE key = 'cancelled')`).Scan(&t.Pending, &t.Running, &t.Completed, &t.Failed, &t.Cancelled)
	if err != nil {
		return t, fmt.Errorf("cannot count jobs: %w", err)
	}
	return t, nil
}

// EventsSince implements events.Source.
func (s *Store) EventsSince(ctx context.Context, after events.Seq, f events.Filter, limit int) ([]events.Event, error) {
	where := `seq > ? AND seq >= (SELECT value FROM meta WHERE key = 'journal_oldest')`
	args := []any{int64(after)}
	if f.Job != "" {
		where += ` AND job = ? AND job <> ''`
		args = append(args, f.Job)
	}
	if f.Instance != "" {
		where += ` AND instance = ?`
		args = append(args, f.Instance)
	}
	if len(f.Kinds) > 0 {
		var ors []string
		for _, k := range f.Kinds {
			if strings.HasSuffix(k, ".") {
				ors = append(ors, `substr(kind, 1, ?) = ?`)
				args = append(args, len(k), k)
			} else {
				ors = append(ors, `kind = ?`)
				args = append(args, k)
			}
		}
		where += ` AND (` + strings.Join(ors, " OR ") + `)`
	}
	rows, err := s.read.QueryContext(ctx, eventsSQL+where+` ORDER BY seq LIMIT ?`, append(args, limit)...)
	return scanEvents(rows, err)
}

const (
	eventsSQL = `SELECT seq, at, kind, job, instance, data FROM events WHERE `
	// Behind the end of an earlier job of the same name, which was pruned.
	jobEventsSQL = eventsSQL + `job = ?1 AND job <> '' AND seq > max(?2, (SELECT coalesce(max(seq), 0) FROM events
 WHERE job = ?1 AND job <> '' AND kind = 'job.pruned')) ORDER BY seq`
)

// JobEvents implements jobs.Store.
func (s *Store) JobEvents(ctx context.Context, id string, after events.Seq) ([]events.Event, error) {
	rows, err := s.jobEventsStmt.QueryContext(ctx, id, int64(after))
	return scanEvents(rows, err)
}

func scanEvents(rows *sql.Rows, err error) ([]events.Event, error) {
	if err != nil {
		return nil, fmt.Errorf("cannot read the journal: %w", err)
	}
	defer rows.Close()
	var out []events.Event
	for rows.Next() {
		var e events.Event
		var at int64
		var data []byte
		if err := rows.Scan(&e.Seq, &at, &e.Kind, &e.Job, &e.Instance, &data); err != nil {
			return nil, fmt.Errorf("cannot read the journal: %w", err)
		}
		e.At, e.Data = timeOf(at), data
		out = append(out, e)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("cannot read the journal: %w", err)
	}
	return out, nil
}

// Bounds implements events.Source.
func (s *Store) Bounds(ctx context.Context) (oldest, newest events.Seq, err error) {
	err = s.read.QueryRowContext(ctx, `SELECT (SELECT value FROM meta WHERE key = 'journal_oldest'),
 (SELECT coalesce(max(seq), 0) FROM events)`).Scan(&oldest, &newest)
	if err != nil {
		return 0, 0, fmt.Errorf("cannot read the journal: %w", err)
	}
	if newest == 0 {
		oldest = 0
	}
	return oldest, newest, nil
}

func marks(n int) string { return strings.TrimSuffix(strings.Repeat("?,", n), ",") }
