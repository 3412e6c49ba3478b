package simtest

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// maxAttempts and retryFirst are the daemon's defaults.
const (
	maxAttempts = 3
	retryFirst  = time.Second
)

// owner is a submitter of jobs to an instance.
type owner struct{ instance, submitter string }

func (j *job) owner() owner { return owner{j.Spec.Instance, j.Submitter} }

// job is one job with what the simulator knows about it besides.
type job struct {
	jobs.Job
	sub   Submission
	ready bool // in its group's list
}

// queue is the simulator's jobs.Queue: the same order, attempts, retry delays
// and answers, in virtual time and without a disk. What it holds survives the
// death of its daemon; a handle of the daemon before is answered with an error.
type queue struct {
	d       *driver
	rec     *recorder
	changed chan struct{}
	seq     int64
	jobs    map[jobs.ID]*job
	groups  map[string]*[]*job // ready jobs by instance, in order of start
	owners  map[owner][]*job   // the same, by submitter
	delayed []*job             // by NotBefore
	blocks  map[string]*jobs.Block
	final   int
	life    int // of the daemon: grows with each restart

	failing sync.Mutex // a pass refuses several jobs at once, each from a goroutine of its own
}

func newQueue(d *driver, rec *recorder) *queue {
	return &queue{d: d, rec: rec, changed: make(chan struct{}, 1), jobs: make(map[jobs.ID]*job), groups: make(map[string]*[]*job),
		owners: make(map[owner][]*job)}
}

func ring(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (q *queue) submit(s Submission) {
	q.seq++
	j := &job{sub: s, Job: jobs.Job{ID: jobs.ID(s.ID), Seq: q.seq, Status: jobs.Pending, Phase: jobs.Queued, CreatedAt: q.d.now, Submitter: s.Submitter,
		Spec: jobs.Spec{Instance: s.Plugin, Args: []byte("[]"), Kwargs: []byte("{}"), MaxAttempts: maxAttempts, Priority: s.Priority}}}
	q.jobs[j.ID] = j
	q.rec.submitted(j)
	q.makeReady(j)
}

func before(a, b *job) bool {
	if a.Spec.Priority != b.Spec.Priority {
		return a.Spec.Priority > b.Spec.Priority
	}
	return a.Seq < b.Seq
}

func (q *queue) makeReady(j *job) {
	g := q.groups[j.Spec.Instance]
	if g == nil {
		g = new([]*job)
		q.groups[j.Spec.Instance] = g
	}
	*g = insert(*g, j)
	q.owners[j.owner()] = insert(q.owners[j.owner()], j)
	j.ready = true
	ring(q.changed)
}

func (q *queue) unready(j *job) {
	g := q.groups[j.Spec.Instance]
	*g = remove(*g, j)
	q.owners[j.owner()] = remove(q.owners[j.owner()], j)
	j.ready = false
}

func insert(line []*job, j *job) []*job {
	return slices.Insert(line, sort.Search(len(line), func(i int) bool { return before(j, line[i]) }), j)
}

func remove(line []*job, j *job) []*job {
	i := sort.Search(len(line), func(i int) bool { return !before(line[i], j) })
	return slices.Delete(line, i, i+1)
}

// restart is what jobs.Queue.Recover does: what ran is pending again, with its
// age and its attempt spent, or fails when it has none left.
func (q *queue) restart() {
	q.life++
	q.blocks = nil
	for _, j := range q.sorted() {
		if j.Status == jobs.Running {
			q.requeue(j, &jobs.Error{Category: jobs.Interrupted, Message: "the daemon died", Retriable: true}, false)
		}
	}
}

func (q *queue) sorted() []*job {
	return slices.SortedFunc(maps.Values(q.jobs), func(a, b *job) int { return int(a.Seq - b.Seq) })
}

// requeue gives a job another attempt while it has one left; delay says that it
// waits before.
func (q *queue) requeue(j *job, e *jobs.Error, delay bool) {
	j.LastError = e
	if j.Attempt >= j.Spec.MaxAttempts {
		q.finish(j, jobs.Failed, e)
		return
	}
	j.Status, j.Phase = jobs.Pending, jobs.Queued
	q.rec.requeued(j, e)
	if !delay {
		q.makeReady(j)
		return
	}
	j.NotBefore = q.d.now.Add(retryFirst << min(max(j.Attempt-1, 0), 8))
	i := sort.Search(len(q.delayed), func(i int) bool { return j.NotBefore.Before(q.delayed[i].NotBefore) })
	q.delayed = slices.Insert(q.delayed, i, j)
	ring(q.changed)
}

func (q *queue) finish(j *job, s jobs.Status, e *jobs.Error) {
	j.Status, j.Phase, j.Error, j.FinishedAt = s, "", e, q.d.now
	q.final++
	q.rec.ended(j)
	ring(q.changed)
}

// view is the queue of one life of the daemon.
type view struct {
	*queue
	life int
}

// Changed implements sched.Queue, as do the following.
func (q view) Changed() <-chan struct{} { return q.changed }

func (q view) Groups(limit int) []jobs.Group {
	var out []jobs.Group
	for _, name := range slices.Sorted(maps.Keys(q.groups)) {
		g := *q.groups[name]
		if len(g) == 0 {
			continue
		}
		og := jobs.Group{Instance: name, Pending: len(g), Ready: make([]jobs.Ready, 0, min(limit, len(g)))}
		for _, j := range q.shown(name, g, limit) {
			og.Ready = append(og.Ready, jobs.Ready{ID: j.ID, Seq: j.Seq, Priority: j.Spec.Priority, Submitter: j.Submitter,
				CreatedAt: j.CreatedAt, Attempt: j.Attempt + 1})
		}
		out = append(out, og)
	}
	return out
}

// shown are the jobs of a group that jobs.Queue shows: the first ones, the oldest
// of each lower priority and the first of each submitter.
func (q view) shown(instance string, g []*job, limit int) []*job {
	var out []*job
	for i := 0; i < len(g); {
		j := g[i]
		out = append(out, j)
		if i++; i >= limit {
			i += sort.Search(len(g)-i, func(k int) bool { return g[i+k].Spec.Priority < j.Spec.Priority })
		}
	}
	for o, line := range q.owners {
		if o.instance == instance && len(line) > 0 && !slices.Contains(out, line[0]) {
			out = append(out, line[0])
		}
	}
	slices.SortFunc(out, func(a, b *job) int {
		return cmp.Or(cmp.Compare(b.Spec.Priority, a.Spec.Priority), cmp.Compare(a.Seq, b.Seq))
	})
	return out
}

func (q view) Cancels() []jobs.CancelIntent { return nil }

func (q view) NextDeadline() time.Time {
	if len(q.delayed) == 0 {
		return time.Time{}
	}
	return q.delayed[0].NotBefore
}

func (q view) Expire(_ context.Context, now time.Time) error {
	for len(q.delayed) > 0 && !q.delayed[0].NotBefore.After(now) {
		j := q.delayed[0]
		q.delayed = q.delayed[1:]
		j.NotBefore = time.Time{}
		q.makeReady(j)
	}
	return nil
}

func (q view) Admit(_ context.Context, id jobs.ID, worker string) (sched.Run, error) {
	j := q.jobs[id]
	if j == nil {
		return nil, jobs.ErrNotFound
	}
	if !j.ready || q.life != q.queue.life {
		return nil, &jobs.StateConflictError{ID: id, Status: j.Status, Action: "start"}
	}
	q.unready(j)
	j.Status, j.Phase = jobs.Running, jobs.Reserving
	if worker != "" {
		j.Phase = jobs.Executing
	}
	j.Attempt++
	if j.StartedAt.IsZero() {
		j.StartedAt = q.d.now
	}
	q.rec.admitted(j)
	return &run{q: q, j: j, attempt: j.Attempt}, nil
}

func (q view) Fail(_ context.Context, id jobs.ID, e *jobs.Error) error {
	q.failing.Lock()
	defer q.failing.Unlock()
	j := q.jobs[id]
	if j == nil {
		return jobs.ErrNotFound
	}
	if !j.ready || q.life != q.queue.life {
		return &jobs.StateConflictError{ID: id, Status: j.Status, Action: "fail"}
	}
	q.unready(j)
	q.finish(j, jobs.Failed, e)
	return nil
}

func (q view) SetBlocks(blocks map[string]*jobs.Block) {
	if q.life == q.queue.life {
		q.blocks = blocks
		q.queue.blocks = blocks
	}
}

func (q view) Get(_ context.Context, id jobs.ID) (jobs.Job, error) {
	if j := q.jobs[id]; j != nil {
		return j.Job, nil
	}
	return jobs.Job{}, jobs.ErrNotFound
}

// run is one attempt.
type run struct {
	q       view
	j       *job
	attempt int
}

func (r *run) Job() jobs.Job { return r.j.Job }

func (r *run) Resolve(context.Context) (jobs.Job, error) { return r.j.Job, nil }

func (r *run) Dir() (string, error) { return "", nil }

var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func (r *run) Started() <-chan struct{} { return closed }

func (r *run) SetPhase(_ context.Context, p jobs.Phase) error {
	if err := r.stale("move"); err != nil {
		return err
	}
	r.j.Phase = p
	return nil
}

// stale answers the handle of an attempt that is over, or of a daemon that died.
func (r *run) stale(action string) error {
	if r.q.life != r.q.queue.life || r.j.Status != jobs.Running || r.j.Attempt != r.attempt {
		return &jobs.StateConflictError{ID: r.j.ID, Status: r.j.Status, Action: action}
	}
	return nil
}

func (r *run) Sink() supervisor.Sink { return sink{} }

func (r *run) Finish(_ context.Context, out jobs.Outcome) (jobs.Job, error) {
	if err := r.stale("finish"); err != nil {
		return r.j.Job, err
	}
	q := r.q.queue
	if out.Status != jobs.Pending {
		q.finish(r.j, out.Status, out.Error)
		return r.j.Job, nil
	}
	if out.Unspent {
		r.j.Attempt--
	}
	q.requeue(r.j, out.Error, !out.Unspent)
	return r.j.Job, nil
}

func (r *run) Interrupt(context.Context) error {
	if err := r.stale("interrupt"); err != nil {
		return err
	}
	r.q.requeue(r.j, &jobs.Error{Category: jobs.Interrupted, Message: "the daemon stopped", Retriable: true}, false)
	return nil
}

type sink struct{}

func (sink) Chunk(uint64, []byte)              {}
func (sink) Progress(float64, string)          {}
func (sink) Log(supervisor.LogRecord)          {}
func (sink) CancelPhase(supervisor.CancelMode) {}

// runTime is how long a job runs, as the trace says.
func (q *queue) runTime(id string) time.Duration {
	if j := q.jobs[jobs.ID(id)]; j != nil {
		return j.sub.Run
	}
	return 0
}
