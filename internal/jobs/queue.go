package jobs

import (
	"bytes"
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

// cacheBytes bounds the arguments of pending jobs kept in memory, so that a job
// that starts soon after its submit is not read back from the store.
const cacheBytes = 16 << 20

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

// group is one instance's part of the queue.
type group struct {
	instance string
	ready    *btree.BTreeG[*entry] // in order of start
	members  int                   // all entries, running ones too
	block    *Block                // what the scheduler said last
}

// place says in which tree a pending entry is.
type place uint8

const (
	nowhere place = iota
	inReady
	inWaiting
)

// entry is the light form of a job that is not final. Guarded by Queue.mu.
type entry struct {
	id            ID
	seq           int64
	group         *group
	submitter     unique.Handle[string]
	created       int64 // Unix nanoseconds, as the three below; 0 means none
	notBefore     int64
	queueDeadline int64
	timerAt       int64
	priority      int
	revision      int64
	attempt       int32
	maxAttempts   int32
	status        Status
	place         place
	held          bool
	// busy is not nil while a write that will move this pending job is not durable
	// yet; whoever wants another waits for it. Closed when it is decided.
	busy   chan struct{}
	done   chan struct{} // made by the first Wait; closed when the job is final
	deps   *depState     // nil without unmet dependencies
	cached *Job          // the whole job, for some pending ones
	run    *Run          // while running
}

// less orders jobs by urgency, then age.
func less(a, b *entry) bool {
	if a.priority != b.priority {
		return a.priority > b.priority
	}
	return a.seq < b.seq
}

func lessTimer(a, b *entry) bool {
	if a.timerAt != b.timerAt {
		return a.timerAt < b.timerAt
	}
	return a.seq < b.seq
}

const treeDegree = 32

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

func (q *Queue) groupLocked(instance string) *group {
	g := q.groups[instance]
	if g == nil {
		g = &group{instance: instance, ready: btree.NewG(treeDegree, less)}
		q.groups[instance] = g
	}
	return g
}

// addLocked puts a new entry into the index.
func (q *Queue) addLocked(e *entry) {
	q.jobs[e.id] = e
	e.group.members++
	if e.status == Running {
		q.totals.Running++
		q.running[e] = struct{}{}
	} else {
		q.countLocked(e, 1)
	}
	q.placeLocked(e)
}

// placeLocked puts e into the tree and at the timer where it belongs now.
func (q *Queue) placeLocked(e *entry) {
	want := nowhere
	if e.status == Pending {
		want = inWaiting
		if !e.held && e.busy == nil && e.deps == nil && e.notBefore == 0 {
			want = inReady
		}
	}
	if want != e.place {
		q.unplaceLocked(e)
		switch want {
		case inReady:
			e.group.ready.ReplaceOrInsert(e)
		case inWaiting:
			q.waiting.ReplaceOrInsert(e)
		}
		e.place = want
	}
	at := int64(0)
	if e.status == Pending {
		at = e.notBefore
		if e.attempt == 0 && e.queueDeadline != 0 && (at == 0 || e.queueDeadline < at) {
			at = e.queueDeadline
		}
	}
	q.timerLocked(e, at)
}

func (q *Queue) unplaceLocked(e *entry) {
	switch e.place {
	case inReady:
		e.group.ready.Delete(e)
	case inWaiting:
		q.waiting.Delete(e)
	}
	e.place = nowhere
}

func (q *Queue) timerLocked(e *entry, at int64) {
	if e.timerAt == at {
		return
	}
	if e.timerAt != 0 {
		q.timers.Delete(e)
	}
	if e.timerAt = at; at != 0 {
		q.timers.ReplaceOrInsert(e)
	}
}

// countLocked notes that e begins to wait (n = 1) or does not wait any more (-1).
func (q *Queue) countLocked(e *entry, n int) {
	q.totals.Pending += int64(n)
	q.waitsLocked(e.submitter, n)
}

func (q *Queue) waitsLocked(submitter unique.Handle[string], n int) {
	if n += q.waits[submitter]; n == 0 {
		delete(q.waits, submitter)
	} else {
		q.waits[submitter] = n
	}
}

// removeLocked takes an entry that became final out of the index.
func (q *Queue) removeLocked(e *entry, final Status) {
	if e.status == Running {
		q.totals.Running--
		delete(q.running, e)
	} else {
		q.countLocked(e, -1)
	}
	switch final {
	case Completed:
		q.totals.Completed++
	case Failed:
		q.totals.Failed++
	case Cancelled:
		q.totals.Cancelled++
	}
	q.unplaceLocked(e)
	q.timerLocked(e, 0)
	q.uncacheLocked(e)
	e.status = final
	e.run = nil
	delete(q.jobs, e.id)
	if e.group.members--; e.group.members == 0 {
		delete(q.groups, e.group.instance)
	}
	if e.done != nil {
		close(e.done)
	}
	q.forgetDepsLocked(e)
	q.depEndedLocked(e.id, final)
	if q.finals++; q.finals >= pruneBatch {
		q.finals = 0
		select {
		case q.pruneKick <- struct{}{}:
		default:
		}
	}
	q.wake()
}

func (q *Queue) cacheLocked(e *entry, j Job) {
	size := len(j.Spec.Args) + len(j.Spec.Kwargs) + 1024
	if q.cached+size <= cacheBytes {
		e.cached = &j
		q.cached += size
	}
}

func (q *Queue) uncacheLocked(e *entry) {
	if e.cached != nil {
		q.cached -= len(e.cached.Spec.Args) + len(e.cached.Spec.Kwargs) + 1024
		e.cached = nil
	}
}

const (
	recentJobs = 1024
	recentArgs = 16 << 10 // larger arguments are read from the store
	recentBody = 4 << 10  // so are larger results
)

// endedJob is a job that has just ended. result is nil when it has none, or a
// large one.
type endedJob struct {
	job    Job
	result []byte
}

// rememberLocked keeps a job that has just ended: who waited for it reads it
// now. Final jobs never change.
func (q *Queue) rememberLocked(j Job, result []byte) {
	if len(j.Spec.Args)+len(j.Spec.Kwargs) > recentArgs {
		return
	}
	if len(result) > recentBody {
		result = nil
	}
	// The result may be a small part of the large buffer it was received in.
	q.recent[j.ID] = &endedJob{job: j, result: bytes.Clone(result)}
	if len(q.recentRing) < recentJobs {
		q.recentRing = append(q.recentRing, j.ID)
		return
	}
	delete(q.recent, q.recentRing[q.recentAt])
	q.recentRing[q.recentAt] = j.ID
	q.recentAt = (q.recentAt + 1) % recentJobs
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
