package jobs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"time"
	"unique"

	"github.com/google/btree"
	"go.uber.org/zap"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs/jobfiles"
	"github.com/cjmd/cjmd/internal/jobs/joblog"
)

// Options of a Queue.
type Options struct {
	Store Store
	Hub   *events.Hub // nil: nothing is published
	Log   *zap.Logger // nil: no log
	// LogDir holds one directory per job log, JobDir one private directory per
	// job, both named by ID.FileName. FileLimits bound what is uploaded there.
	LogDir     string
	JobDir     string
	FileLimits jobfiles.Limits

	MaxPending  int // jobs that may wait; 0 means 1,000,000
	MaxPerUser  int // jobs of one submitter that may wait; 0: no bound but MaxPending
	MaxAttempts int // for jobs that do not say; 0 means 3
	// QueueTimeout and RunTimeout are for jobs that do not say; 0 means never.
	QueueTimeout, RunTimeout time.Duration
	// A final job is kept while it is among the newest KeepJobs or younger than
	// KeepAge; 0 means 10,000 and 30 days. JournalRows bounds the journal (0: 1,000,000).
	KeepJobs    int
	KeepAge     time.Duration
	JournalRows int64
	// PruneEvery is the time between two looks at retention; 0 means 10 minutes.
	PruneEvery time.Duration
	// Backoff gives the wait before the attempt that follows attempt n; nil means
	// jittered exponential from 1 s to 5 min.
	Backoff func(n int) time.Duration
	// JobLog bounds the job logs; zero values mean joblog's defaults.
	JobLog joblog.Limits
	Now    func() time.Time // nil means time.Now
}

// Queue is the only thing that changes a job. It keeps a light index of all
// jobs that are not final in memory and everything else in the Store. A change
// is decided under mu, queued at the store in that order, and shows in the index
// when it is durable; only Admit, phases, progress and cancel intents show at
// once. Safe from any goroutine. Recover must return before any other call.
type Queue struct {
	opts  Options
	store Store
	hub   *events.Hub
	log   *zap.Logger
	logs  *joblog.Set
	files *jobfiles.Store
	now   func() time.Time // in UTC, wall clock only

	changed    chan struct{} // capacity 1; wake-ups merge
	pruneKick  chan struct{} // capacity 1
	controlCh  chan struct{} // capacity 1: held while a control is written
	leftoverCh chan struct{} // capacity 1: held while files of pruned jobs are removed

	// mu is taken by callers and by the store's writer (in Applied). Under it
	// only Store.Write and Store.Emit are called, which queue and return.
	mu         sync.Mutex
	jobs       map[ID]*entry
	running    map[*entry]struct{} // those of jobs that are running
	groups     map[string]*group
	waiting    *btree.BTreeG[*entry] // pending jobs that may not start, in order
	timers     *btree.BTreeG[*entry] // by timerAt
	dependents map[ID][]*entry
	controls   map[string]Mode
	cancels    []CancelIntent
	begun      []*Run           // whose start was stored by the commit being announced
	recent     map[ID]*endedJob // the newest jobs that ended, whole
	recentRing []ID             // their ids; recentAt is the oldest once it is full
	recentAt   int
	totals     Totals
	inFlight   int // jobs whose insert is not durable yet
	// waits counts, by submitter, the jobs that are pending or in flight.
	waits    map[unique.Handle[string]]int
	cached   int // bytes in entries' caches
	finals   int // jobs that ended since the last look at retention
	keepJobs int
	keepAge  time.Duration
	closed   bool // starts that cannot be stored are given up
}

// NewQueue returns a queue over o.Store; it starts nothing. Call Recover, then Run.
func NewQueue(o Options) (*Queue, error) {
	if o.Store == nil || o.LogDir == "" || o.JobDir == "" {
		return nil, fmt.Errorf("cannot make a queue without a store and its directories")
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Backoff == nil {
		o.Backoff = backoff
	}
	o.MaxPending = orDefault(o.MaxPending, 1_000_000)
	o.MaxAttempts = orDefault(o.MaxAttempts, 3)
	o.KeepJobs = orDefault(o.KeepJobs, defaultKeepJobs)
	o.KeepAge = orDefault(o.KeepAge, defaultKeepAge)
	o.JournalRows = orDefault(o.JournalRows, 1_000_000)
	o.PruneEvery = orDefault(o.PruneEvery, 10*time.Minute)
	q := &Queue{
		opts: o, store: o.Store, hub: o.Hub, log: o.Log,
		now:   func() time.Time { return o.Now().UTC().Round(0) }, // as it is read back from the store
		waits: map[unique.Handle[string]]int{}, changed: make(chan struct{}, 1), pruneKick: make(chan struct{}, 1), controlCh: make(chan struct{}, 1), leftoverCh: make(chan struct{}, 1),
		jobs: map[ID]*entry{}, running: map[*entry]struct{}{}, groups: map[string]*group{}, dependents: map[ID][]*entry{}, recent: map[ID]*endedJob{}, controls: map[string]Mode{},
		keepJobs: o.KeepJobs, keepAge: o.KeepAge,
		waiting: btree.NewG(treeDegree, less), timers: btree.NewG(treeDegree, lessTimer),
	}
	q.logs = joblog.New(joblog.Options{
		Path:    func(id string) string { return filepath.Join(o.LogDir, ID(id).FileName()) },
		Journal: o.Store.JobEvents, Limits: o.JobLog, Log: o.Log,
	})
	var err error
	if q.files, err = jobfiles.Open(jobfiles.Options{Path: o.JobDir, Limits: o.FileLimits}); err != nil {
		return nil, err
	}
	o.Store.OnCommit(q.committed)
	return q, nil
}

func orDefault[T int | int64 | time.Duration](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

// backoff doubles from 1 s to 5 min and takes a random half off, so that jobs
// that failed together do not come back together.
func backoff(n int) time.Duration {
	d := 5 * time.Minute
	if n < 9 {
		d = min(d, time.Second<<max(n-1, 0))
	}
	return d/2 + rand.N(d/2)
}

// committed is called by the store's writer after each commit.
func (q *Queue) committed(evs []events.Event) {
	q.forgetPruned(evs)
	q.logs.Committed(evs)
	if q.hub != nil {
		q.hub.Publish(evs)
	}
	q.mu.Lock()
	begun := q.begun
	q.begun = nil
	q.mu.Unlock()
	for _, r := range begun { // only now: no chunk may come before its start in the log
		close(r.started)
	}
}

// forgetPruned drops what is remembered of jobs that retention removed, before
// anybody is told of it: who has heard must not find them any more.
func (q *Queue) forgetPruned(evs []events.Event) {
	if !slices.ContainsFunc(evs, func(ev events.Event) bool { return ev.Kind == events.JobPruned }) {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, ev := range evs {
		if ev.Kind == events.JobPruned {
			delete(q.recent, ID(ev.Job))
		}
	}
}

// Changed returns the wake-up of the scheduler: a value arrives after anything
// changed that may let a job start or end. Wake-ups merge.
func (q *Queue) Changed() <-chan struct{} { return q.changed }

func (q *Queue) wake() {
	select {
	case q.changed <- struct{}{}:
	default:
	}
}

// Close ends the job logs' readers and files. The store is closed by its owner.
func (q *Queue) Close() error {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	return errors.Join(q.logs.Close(), q.files.Close())
}

// settledLocked finds a pending entry that no write is about to move. wait is
// not nil when the caller must wait for it and look again; both are nil when
// the job is not in the index.
func (q *Queue) settledLocked(id ID) (e *entry, wait <-chan struct{}) {
	e = q.jobs[id]
	if e != nil && e.busy != nil {
		return nil, e.busy
	}
	return e, nil
}

// settled returns with mu held and the entry of a job that no write is about to
// move, or without mu and an error. e is nil, and mu is not held, when the job
// is final: j is the job then.
func (q *Queue) settled(ctx context.Context, id ID) (e *entry, j Job, err error) {
	for {
		q.mu.Lock()
		e, wait := q.settledLocked(id)
		if e != nil {
			return e, Job{}, nil
		}
		q.mu.Unlock()
		if wait != nil {
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return nil, Job{}, context.Cause(ctx)
			}
		}
		j, err := q.stored(ctx, id)
		if err != nil || j.Status.Final() {
			return nil, j, err
		}
		if err := q.barrier(ctx); err != nil {
			return nil, Job{}, err
		}
	}
}

// barrier returns when every write queued so far shows in the index. The store
// may show a row to readers a moment before its writer told us.
func (q *Queue) barrier(ctx context.Context) error {
	_, err := q.store.Record(ctx)
	return err
}

// stored reads a job from the store and derives what is not stored.
func (q *Queue) stored(ctx context.Context, id ID) (Job, error) {
	j, err := q.store.Get(ctx, id)
	if err == nil {
		j.Phase = derivedPhase(j)
	}
	return j, err
}

func derivedPhase(j Job) Phase {
	switch {
	case j.Status == Pending && j.Spec.Held:
		return Held
	case j.Status == Pending:
		return Queued
	case j.Status == Running:
		return Reserving
	}
	return ""
}
