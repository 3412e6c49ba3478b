package sqlitestore

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/mattn/go-sqlite3"
	"go.uber.org/zap"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
)

const (
	maxBatchOps   = 512
	maxBatchBytes = 4 << 20
	// maxEmits bounds what loops that do not wait may have queued while the disk
	// hangs; beyond it events of that kind are dropped and counted in the log.
	maxEmits = 1 << 16
	// lazyWait is how long a lazy write waits for company: longer than a short
	// job takes, so that its start and its end are one commit.
	lazyWait = 3 * time.Millisecond
)

var errClosed = fmt.Errorf("%w: it is closed", jobs.ErrStoreUnavailable)

// op is one queued write: apply runs inside the batch's transaction, possibly
// twice (see transact).
type op struct {
	apply func(*conn) (jobs.Written, error)
	// clean: apply writes nothing before it refuses, so that a refusal needs no
	// savepoint to fall back to.
	clean   bool
	size    int
	emit    bool
	lazy    bool
	applied func(jobs.Written)
	ticket  *jobs.Ticket
	out     jobs.Written
}

// writer is the goroutine through which every change of the database goes.
type writer struct {
	store *Store
	log   *zap.Logger
	kick  chan struct{} // capacity 1
	done  chan struct{}

	mu       sync.Mutex // leaf; guards the fields below
	queue    []*op
	urgent   int         // ops of queue that are not lazy
	due      bool        // the lazy ones have waited long enough
	hold     *time.Timer // runs while there are only lazy ones
	emits    int
	dropped  int
	closed   bool
	failing  error // why the last batch could not be stored, nil when it could
	onCommit func([]events.Event)
	began    time.Time // of the batch that is being written; zero between batches

	// Owned by run.
	conn    *conn // nil after a failure, until the next batch
	lastSeq events.Seq
	lost    int // emitted events that could not be stored since the failure began
}

func newWriter(s *Store) (*writer, error) {
	w := &writer{store: s, log: s.log, kick: make(chan struct{}, 1), done: make(chan struct{})}
	w.hold = time.AfterFunc(time.Hour, w.hurry)
	w.hold.Stop()
	return w, w.connect()
}

// connect opens the writing connection and reads where the journal stands.
func (w *writer) connect() error {
	c, err := openConn(w.store.path)
	if err != nil {
		return err
	}
	last, err := c.queryInt(`SELECT coalesce(max(seq), 0) FROM events`)
	if err != nil {
		c.close()
		return fmt.Errorf("cannot read the journal: %w", err)
	}
	w.conn, w.lastSeq = c, events.Seq(last)
	c.nextSeq = w.lastSeq + 1
	return nil
}

// enqueue queues o. The caller may hold locks: nothing is called out to.
func (w *writer) enqueue(o *op) *jobs.Ticket {
	o.ticket = jobs.NewTicket()
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		o.ticket.Resolve(jobs.Written{Err: errClosed})
		return o.ticket
	}
	if o.emit {
		if w.emits >= maxEmits {
			w.dropped++
			w.mu.Unlock()
			o.ticket.Resolve(jobs.Written{Err: jobs.ErrStoreUnavailable})
			return o.ticket
		}
		w.emits++
	}
	w.queue = append(w.queue, o)
	if o.lazy {
		if len(w.queue) == 1 {
			w.hold.Reset(lazyWait)
		}
		w.mu.Unlock()
		return o.ticket
	}
	w.urgent++
	w.mu.Unlock()
	w.wake()
	return o.ticket
}

func (w *writer) wake() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

// hurry ends the wait of lazy writes.
func (w *writer) hurry() {
	w.mu.Lock()
	w.due = true
	w.mu.Unlock()
	w.wake()
}

// take removes the next batch; nil when nothing is to be done yet.
func (w *writer) take() (batch []*op, closed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.urgent == 0 && !w.due && !w.closed {
		return nil, false
	}
	n, size := 0, 0
	for n < len(w.queue) && n < maxBatchOps && (n == 0 || size+w.queue[n].size <= maxBatchBytes) {
		size += w.queue[n].size
		if w.queue[n].emit {
			w.emits--
		}
		if !w.queue[n].lazy {
			w.urgent--
		}
		n++
	}
	batch = w.queue[:n:n]
	if w.queue = w.queue[n:]; len(w.queue) == 0 {
		w.queue = nil
	}
	w.due = len(w.queue) > 0
	w.hold.Stop()
	if w.dropped > 0 {
		w.log.Error("journal events dropped: the disk does not keep up", zap.Int("events", w.dropped))
		w.dropped = 0
	}
	return batch, w.closed
}

func (w *writer) run() {
	defer close(w.done)
	idle := time.NewTimer(w.store.opts.CheckpointIdle)
	defer idle.Stop()
	for {
		batch, closed := w.take()
		if len(batch) > 0 {
			w.process(batch)
			idle.Reset(w.store.opts.CheckpointIdle)
			continue
		}
		if closed {
			return
		}
		select {
		case <-w.kick:
		case <-idle.C:
			if w.store.Writable() != nil {
				w.probe()
				idle.Reset(w.store.opts.CheckpointIdle)
				continue
			}
			w.checkpoint()
		}
	}
}

// probe tries whether the store can be written again, so that one who waits for
// that before he sends anything is not waiting for himself.
func (w *writer) probe() {
	o := &op{clean: true, ticket: jobs.NewTicket(), apply: func(c *conn) (jobs.Written, error) {
		return jobs.Written{}, c.exec(`UPDATE meta SET value = 0 WHERE key = 'clean'`)
	}}
	w.process([]*op{o})
}

// stop refuses new writes and waits until the queued ones are committed.
func (w *writer) stop() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.wake()
	<-w.done
}

// closeConn marks the database as cleanly closed. Only after stop.
func (w *writer) closeConn() error {
	if w.conn == nil {
		return nil
	}
	err := w.conn.exec(`UPDATE meta SET value = 1 WHERE key = 'clean'`)
	w.checkpoint()
	return errors.Join(err, w.conn.close())
}

// process commits one batch and tells everyone, in this order: the writes'
// own Applied, OnCommit, the waiters.
func (w *writer) process(batch []*op) {
	w.mu.Lock()
	w.began = time.Now()
	w.mu.Unlock()
	evs, err := w.commit(batch)
	if err != nil {
		err = unavailable(err)
	}
	w.noteHealth(err, batch)
	for _, o := range batch {
		if err != nil {
			o.out = jobs.Written{Err: err}
		}
		if o.applied != nil {
			o.applied(o.out)
		}
	}
	w.mu.Lock()
	fn := w.onCommit
	w.began = time.Time{}
	w.mu.Unlock()
	if err == nil && fn != nil && len(evs) > 0 {
		fn(evs)
	}
	for _, o := range batch {
		o.ticket.Resolve(o.out)
	}
}

// unavailable wraps what kept a write from the disk. Where the disk has no room,
// syscall.ENOSPC can be found in it: SQLite's errors do not unwrap to the
// system's, and its callers tell a full disk from a broken one.
func unavailable(err error) error {
	var sq sqlite3.Error
	if errors.As(err, &sq) && !errors.Is(err, syscall.ENOSPC) {
		switch {
		case sq.Code == sqlite3.ErrFull, sq.SystemErrno == syscall.ENOSPC, sq.SystemErrno == syscall.EDQUOT, sq.SystemErrno == syscall.EFBIG:
			return fmt.Errorf("%w: %w: %w", jobs.ErrStoreUnavailable, syscall.ENOSPC, err)
		}
	}
	return fmt.Errorf("%w: %w", jobs.ErrStoreUnavailable, err)
}

// noteHealth records and logs when the store stops and starts to be writable.
func (w *writer) noteHealth(err error, batch []*op) {
	w.mu.Lock()
	was := w.failing
	w.failing = err
	w.mu.Unlock()
	switch {
	case err != nil && was == nil:
		w.log.Error("the job store cannot be written; nothing is acknowledged until it can", zap.Error(err))
	case err == nil && was != nil:
		w.log.Info("the job store can be written again", zap.Int("events_lost", w.lost))
		w.lost = 0
	}
	for _, o := range batch {
		if o.emit && err != nil {
			w.lost++
		} else if o.emit && o.out.Err != nil {
			w.log.Error("cannot write journal events", zap.Error(o.out.Err))
		}
	}
}

// commit applies the batch in one transaction. A returned error means that
// nothing of it was stored.
func (w *writer) commit(batch []*op) ([]events.Event, error) {
	if w.conn == nil {
		if err := w.connect(); err != nil {
			return nil, err
		}
	}
	evs, err := w.conn.transact(batch)
	if err != nil {
		// Reopened for the next batch: after a failed sync the state of the old
		// connection's cache is not to be trusted.
		if cerr := w.conn.close(); cerr != nil {
			w.log.Warn("cannot close the failed connection", zap.Error(cerr))
		}
		w.conn = nil
		return nil, err
	}
	w.lastSeq = w.conn.nextSeq - 1
	return evs, nil
}

func (w *writer) checkpoint() {
	if w.conn == nil {
		return
	}
	if err := w.conn.checkpoint(); err != nil {
		w.log.Debug("cannot empty the write-ahead log", zap.Error(err))
	}
}

// conn is the writing connection with its prepared statements. It is used
// through the driver itself: database/sql costs as much again per statement.
type conn struct {
	db      *sqlite3.SQLiteConn
	stmts   map[string]driver.Stmt
	nextSeq events.Seq
	evs     []events.Event // of the open transaction
	finals  [3]int64       // jobs that ended in it, by final status
}

func openConn(path string) (*conn, error) {
	dc, err := (&sqlite3.SQLiteDriver{}).Open(dsn(path, "_busy_timeout=5000", "_journal_mode=WAL",
		"_synchronous=FULL", "_foreign_keys=1", "_cache_size=-16000"))
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", path, err)
	}
	c := &conn{db: dc.(*sqlite3.SQLiteConn), stmts: map[string]driver.Stmt{}}
	for _, pragma := range []string{`PRAGMA journal_size_limit = 67108864`, `PRAGMA wal_autocheckpoint = 4000`, `PRAGMA temp_store = MEMORY`} {
		if err := c.pragma(pragma); err != nil {
			c.close()
			return nil, fmt.Errorf("cannot open %s: %w", path, err)
		}
	}
	return c, nil
}

// checkpoint moves the write-ahead log into the database and empties it.
func (c *conn) checkpoint() error { return c.pragma(`PRAGMA wal_checkpoint(TRUNCATE)`) }

// pragma reads the row that many pragmas answer with: exec would leave the
// statement open, and no savepoint can be opened beside an open statement.
func (c *conn) pragma(text string) error {
	return c.query(func([]driver.Value) error { return nil }, text)
}

func (c *conn) close() error {
	var errs []error
	for _, st := range c.stmts {
		errs = append(errs, st.Close())
	}
	return errors.Join(append(errs, c.db.Close())...)
}

// errDirty says that an op failed in the middle without a savepoint.
var errDirty = errors.New("an operation failed half-way")

// transact applies the ops in order; one that fails by itself is rolled back
// alone and carries its error. Ops that are clean go without a savepoint (it
// costs as much as an insert); should one fail unexpectedly all the same, the
// batch is done again with savepoints throughout.
func (c *conn) transact(batch []*op) ([]events.Event, error) {
	evs, err := c.tryTransact(batch, false)
	if errors.Is(err, errDirty) {
		evs, err = c.tryTransact(batch, true)
	}
	return evs, err
}

func (c *conn) tryTransact(batch []*op, careful bool) ([]events.Event, error) {
	first := c.nextSeq
	c.evs, c.finals = nil, [3]int64{}
	if err := c.exec(`BEGIN IMMEDIATE`); err != nil {
		return nil, fmt.Errorf("cannot begin: %w", err)
	}
	err := c.applyAll(batch, careful)
	if err == nil {
		err = c.addTotals()
	}
	if err == nil {
		if err = c.exec(`COMMIT`); err == nil {
			return c.evs, nil
		}
		err = fmt.Errorf("cannot commit: %w", err)
	}
	c.nextSeq = first
	if !c.db.AutoCommit() {
		err = errors.Join(err, c.exec(`ROLLBACK`))
	}
	return nil, err
}

func (c *conn) applyAll(batch []*op, careful bool) error {
	for _, o := range batch {
		save := careful || !o.clean
		if save {
			if err := c.exec(`SAVEPOINT op`); err != nil {
				return fmt.Errorf("cannot open savepoint: %w", err)
			}
		}
		seq, n, finals := c.nextSeq, len(c.evs), c.finals
		o.out, o.out.Err = o.apply(c)
		switch {
		case o.out.Err == nil:
			o.out.Events = c.evs[n:len(c.evs):len(c.evs)]
		case storageFailed(o.out.Err):
			return o.out.Err
		case !save && !refusal(o.out.Err):
			return errDirty
		case save:
			c.nextSeq, c.evs, c.finals = seq, c.evs[:n], finals
			if err := c.exec(`ROLLBACK TO op`); err != nil {
				return fmt.Errorf("cannot roll back to savepoint: %w", err)
			}
		}
		if save {
			if err := c.exec(`RELEASE op`); err != nil {
				return fmt.Errorf("cannot release savepoint: %w", err)
			}
		}
	}
	return nil
}

// refusal reports whether an op was turned down for what the rows say.
func refusal(err error) bool {
	var conflict *jobs.StateConflictError
	var idem *jobs.IdempotencyError
	var dep *jobs.DependencyError
	return errors.As(err, &conflict) || errors.As(err, &idem) || errors.As(err, &dep) || errors.Is(err, jobs.ErrNotFound) ||
		errors.Is(err, jobs.ErrLeftover)
}

func (c *conn) stmt(query string) (driver.Stmt, error) {
	if st, ok := c.stmts[query]; ok {
		return st, nil
	}
	st, err := c.db.Prepare(query)
	if err != nil {
		return nil, err
	}
	c.stmts[query] = st
	return st, nil
}

// exec runs a statement that returns no rows.
func (c *conn) exec(query string, args ...driver.Value) error {
	_, err := c.execResult(query, args...)
	return err
}

func (c *conn) execResult(query string, args ...driver.Value) (driver.Result, error) {
	st, err := c.stmt(query)
	if err != nil {
		return nil, err
	}
	//lint:ignore SA1019 the context variant starts a goroutine per statement
	return st.Exec(args)
}

// query calls fn with each row; the values are valid during the call only.
func (c *conn) query(fn func([]driver.Value) error, query string, args ...driver.Value) error {
	st, err := c.stmt(query)
	if err != nil {
		return err
	}
	//lint:ignore SA1019 the context variant starts a goroutine per statement
	rows, err := st.Query(args)
	if err != nil {
		return err
	}
	vals := make([]driver.Value, len(rows.Columns()))
	for {
		switch err := rows.Next(vals); {
		case errors.Is(err, io.EOF):
			return rows.Close()
		case err != nil:
			return errors.Join(err, rows.Close())
		}
		if err := fn(vals); err != nil {
			return errors.Join(err, rows.Close())
		}
	}
}

func (c *conn) queryInt(query string, args ...driver.Value) (n int64, err error) {
	err = c.query(func(v []driver.Value) error { n, _ = v[0].(int64); return nil }, query, args...)
	return n, err
}
