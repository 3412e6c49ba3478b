package sqlitestore

import (
	"errors"
	"fmt"
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
	// After a batch of at least gatherFrom writes that somebody waits for, the next
	// begins gatherFor later, or with gatherEnough of them: those who write together
	// come back together, and a commit costs about the same for five as for ten.
	gatherFrom   = 3
	gatherFor    = 500 * time.Microsecond
	gatherEnough = 32
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
	wanted   int         // so many of them end a gathering; 0: there is none
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
	enough := w.urgent >= w.wanted
	w.mu.Unlock()
	if enough {
		w.wake()
	}
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
	pause := time.NewTimer(time.Hour)
	defer pause.Stop()
	for {
		batch, closed := w.take()
		if len(batch) > 0 {
			w.process(batch)
			w.gather(batch, pause)
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

// gather lets those who wrote together come back before the next batch begins.
func (w *writer) gather(last []*op, pause *time.Timer) {
	n := 0
	for _, o := range last {
		if !o.lazy {
			n++
		}
	}
	if n < gatherFrom {
		return
	}
	w.mu.Lock()
	if w.closed || w.urgent >= gatherEnough {
		w.mu.Unlock()
		return
	}
	w.wanted = gatherEnough
	select { // what rang before does not count any more
	case <-w.kick:
	default:
	}
	w.mu.Unlock()
	pause.Reset(gatherFor)
	select {
	case <-w.kick:
	case <-pause.C:
	}
	w.mu.Lock()
	w.wanted = 0
	w.mu.Unlock()
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
