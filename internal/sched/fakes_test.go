package sched_test

import (
	"context"
	"encoding/json"
	"fmt"
	"sort"
	"sync"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/supervisor"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeQueue keeps jobs in memory with the rules the loop relies on.
type fakeQueue struct {
	changed chan struct{}

	mu       sync.Mutex
	jobs     map[jobs.ID]*jobs.Job
	seq      int64
	cancels  []jobs.CancelIntent
	blocks   map[string]*jobs.Block
	setCalls int
	phases   map[jobs.ID][]jobs.Phase
	admitted map[jobs.ID]string // worker named at the last admission
	finished []jobs.ID
	requeued map[jobs.ID]int
	broken   error // what Finish answers while set
	paused   bool
	durable  chan struct{} // what Started answers; nil: durable at once
	admits   int
	admitErr error
	fails    int
	failErr  error
}

func newFakeQueue() *fakeQueue {
	return &fakeQueue{changed: make(chan struct{}, 1), jobs: make(map[jobs.ID]*jobs.Job),
		phases: make(map[jobs.ID][]jobs.Phase), admitted: make(map[jobs.ID]string), requeued: make(map[jobs.ID]int)}
}

func (q *fakeQueue) ring() {
	select {
	case q.changed <- struct{}{}:
	default:
	}
}

// add submits a job; opts change its spec.
func (q *fakeQueue) add(id jobs.ID, instance string, opts ...func(*jobs.Spec)) {
	q.mu.Lock()
	q.seq++
	j := &jobs.Job{ID: id, Seq: q.seq, Status: jobs.Pending, Phase: jobs.Queued, CreatedAt: time.Now(),
		Spec: jobs.Spec{Instance: instance, MaxAttempts: 3, Args: []byte("[]"), Kwargs: []byte("{}")}}
	for _, o := range opts {
		o(&j.Spec)
	}
	q.jobs[id] = j
	q.mu.Unlock()
	q.ring()
}

func priority(p int) func(*jobs.Spec) { return func(s *jobs.Spec) { s.Priority = p } }

func (q *fakeQueue) cancel(id jobs.ID) {
	q.mu.Lock()
	if j := q.jobs[id]; j.Status == jobs.Pending {
		j.Status = jobs.Cancelled
	} else {
		q.cancels = append(q.cancels, jobs.CancelIntent{ID: id})
	}
	q.mu.Unlock()
	q.ring()
}

func (q *fakeQueue) Changed() <-chan struct{} { return q.changed }

func (q *fakeQueue) Groups(limit int) []jobs.Group {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.paused {
		return nil
	}
	by := make(map[string]*jobs.Group)
	for _, j := range q.jobs {
		if j.Status != jobs.Pending || j.NotBefore.After(time.Now()) {
			continue
		}
		g := by[j.Spec.Instance]
		if g == nil {
			g = &jobs.Group{Instance: j.Spec.Instance}
			by[j.Spec.Instance] = g
		}
		g.Pending++
		g.Ready = append(g.Ready, jobs.Ready{ID: j.ID, Seq: j.Seq, Priority: j.Spec.Priority, CreatedAt: j.CreatedAt, Attempt: j.Attempt + 1})
	}
	out := make([]jobs.Group, 0, len(by))
	for _, g := range by {
		sort.Slice(g.Ready, func(a, b int) bool {
			if g.Ready[a].Priority != g.Ready[b].Priority {
				return g.Ready[a].Priority > g.Ready[b].Priority
			}
			return g.Ready[a].Seq < g.Ready[b].Seq
		})
		g.Ready = g.Ready[:min(limit, len(g.Ready))]
		out = append(out, *g)
	}
	sort.Slice(out, func(a, b int) bool { return out[a].Instance < out[b].Instance })
	return out
}

func (q *fakeQueue) Cancels() []jobs.CancelIntent {
	q.mu.Lock()
	defer q.mu.Unlock()
	c := q.cancels
	q.cancels = nil
	return c
}

func (q *fakeQueue) NextDeadline() time.Time { return time.Time{} }

func (q *fakeQueue) Expire(context.Context, time.Time) error { return nil }

func (q *fakeQueue) Admit(_ context.Context, id jobs.ID, worker string) (sched.Run, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.admits++
	if q.admitErr != nil {
		return nil, q.admitErr
	}
	j := q.jobs[id]
	if j.Status != jobs.Pending {
		return nil, &jobs.StateConflictError{ID: id, Status: j.Status, Action: "admit"}
	}
	j.Status, j.Phase = jobs.Running, jobs.Reserving
	j.Attempt++
	q.admitted[id] = worker
	return &fakeRun{q: q, job: *j}, nil
}

func (q *fakeQueue) Fail(_ context.Context, id jobs.ID, e *jobs.Error) error {
	defer q.ring()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.fails++
	if q.failErr != nil {
		return q.failErr
	}
	j := q.jobs[id]
	j.Status, j.Error = jobs.Failed, e
	return nil
}

func (q *fakeQueue) SetBlocks(b map[string]*jobs.Block) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.blocks = b
	q.setCalls++
}

func (q *fakeQueue) Get(_ context.Context, id jobs.ID) (jobs.Job, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	j := q.jobs[id]
	if j == nil {
		return jobs.Job{}, jobs.ErrNotFound
	}
	return *j, nil
}

func (q *fakeQueue) job(id jobs.ID) jobs.Job {
	j, _ := q.Get(context.Background(), id)
	return j
}

func (q *fakeQueue) block(instance string) *jobs.Block {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.blocks[instance]
}

type fakeRun struct {
	q   *fakeQueue
	job jobs.Job
}

func (r *fakeRun) Job() jobs.Job { return r.job }

func (r *fakeRun) Resolve(context.Context) (jobs.Job, error) { return r.job, nil }

func (r *fakeRun) Dir() (string, error) { return "", nil }

func (r *fakeRun) Started() <-chan struct{} {
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	if r.q.durable != nil {
		return r.q.durable
	}
	c := make(chan struct{})
	close(c)
	return c
}

func (r *fakeRun) SetPhase(_ context.Context, p jobs.Phase) error {
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	r.q.jobs[r.job.ID].Phase = p
	r.q.phases[r.job.ID] = append(r.q.phases[r.job.ID], p)
	return nil
}

func (r *fakeRun) Sink() supervisor.Sink { return fakeSink{} }

func (r *fakeRun) Finish(ctx context.Context, out jobs.Outcome) (jobs.Job, error) {
	defer r.q.ring()
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	for r.q.broken != nil { // as the real one: hold the outcome and try again
		r.q.mu.Unlock()
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			r.q.mu.Lock()
			return jobs.Job{}, ctx.Err()
		}
		r.q.mu.Lock()
	}
	j := r.q.jobs[r.job.ID]
	j.Status, j.Phase, j.Error = out.Status, "", out.Error
	if out.Result != nil {
		j.Result = &jobs.ResultInfo{Size: int64(len(out.Result)), Partial: out.Partial}
	}
	if out.Status != jobs.Pending {
		r.q.finished = append(r.q.finished, j.ID)
		return *j, nil
	}
	r.q.requeued[j.ID]++
	if out.Unspent {
		j.Attempt--
	}
	j.LastError = out.Error
	if j.Attempt >= j.Spec.MaxAttempts {
		j.Status = jobs.Failed
	}
	return *j, nil
}

func (r *fakeRun) Interrupt(context.Context) error {
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	r.q.jobs[r.job.ID].Status = jobs.Pending
	r.q.jobs[r.job.ID].Phase = jobs.Queued
	return nil
}

type fakeSink struct{}

func (fakeSink) Chunk(uint64, []byte)              {}
func (fakeSink) Progress(float64, string)          {}
func (fakeSink) Log(supervisor.LogRecord)          {}
func (fakeSink) CancelPhase(supervisor.CancelMode) {}

// fakeWorkers is a supervisor whose workers do what the test says.
type fakeWorkers struct {
	changed chan struct{}
	// load and exec stand for one start and one call.
	load func(ctx context.Context, instance string) error
	exec func(ctx context.Context, instance string, call supervisor.Call) (supervisor.Result, error)

	mu        sync.Mutex
	status    map[string]supervisor.Status
	starts    map[string]int
	stops     []string
	running   map[string]int
	most      map[string]int
	order     []string // ids of calls as they began
	reset     []string
	forgotten []string
	configure error
	applied   supervisor.Applied // what Configure answers; "": reconfigured
	told      func()             // what Configure does besides; nil: nothing
	configs   []string
	requests  []string
	stopped   func(instance string) // what the end of a worker does besides; nil: nothing
	asked     func(instance, method string) error
}

func newFakeWorkers() *fakeWorkers {
	return &fakeWorkers{changed: make(chan struct{}, 1), status: make(map[string]supervisor.Status),
		starts: make(map[string]int), running: make(map[string]int), most: make(map[string]int),
		load: func(context.Context, string) error { return nil },
		exec: func(context.Context, string, supervisor.Call) (supervisor.Result, error) {
			return supervisor.Result{Payload: []byte("1")}, nil
		}}
}

func (w *fakeWorkers) set(instance string, s supervisor.State, change ...func(*supervisor.Status)) {
	w.mu.Lock()
	st := w.status[instance]
	st.Instance, st.State = instance, s
	for _, f := range change {
		f(&st)
	}
	w.status[instance] = st
	w.mu.Unlock()
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

func (w *fakeWorkers) state(instance string) supervisor.State {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status[instance].State
}

func (w *fakeWorkers) EnsureReady(ctx context.Context, instance string) error {
	if w.state(instance) == supervisor.ReadyState {
		return nil
	}
	w.mu.Lock()
	w.starts[instance]++
	w.mu.Unlock()
	w.set(instance, supervisor.Starting)
	if err := w.load(ctx, instance); err != nil {
		w.set(instance, supervisor.Stopped)
		return err
	}
	w.set(instance, supervisor.ReadyState)
	return nil
}

func (w *fakeWorkers) Execute(ctx context.Context, instance string, call supervisor.Call, _ supervisor.Sink) (supervisor.Result, error) {
	if w.state(instance) != supervisor.ReadyState {
		return supervisor.Result{}, supervisor.ErrNotLoaded
	}
	w.mu.Lock()
	w.order = append(w.order, call.ID)
	w.running[instance]++
	w.most[instance] = max(w.most[instance], w.running[instance])
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.running[instance]--
		w.mu.Unlock()
	}()
	return w.exec(ctx, instance, call)
}

func (w *fakeWorkers) Stop(_ context.Context, instance, cause string) error {
	w.mu.Lock()
	w.stops = append(w.stops, instance+": "+cause)
	w.mu.Unlock()
	if w.stopped != nil {
		w.stopped(instance)
	}
	w.set(instance, supervisor.Stopped)
	return nil
}

func (w *fakeWorkers) Reset(instance string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reset = append(w.reset, instance)
}

func (w *fakeWorkers) Forget(instance string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forgotten = append(w.forgotten, instance)
}

func (w *fakeWorkers) Configure(_ context.Context, _ string, _, updated json.RawMessage) (supervisor.Applied, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.configure != nil {
		return "", w.configure
	}
	w.configs = append(w.configs, string(updated))
	if w.told != nil {
		w.told()
	}
	if w.applied != "" {
		return w.applied, nil
	}
	return supervisor.AppliedReconfigured, nil
}

func (w *fakeWorkers) Request(_ context.Context, instance, method string, _ json.RawMessage) (json.RawMessage, error) {
	w.mu.Lock()
	w.requests = append(w.requests, instance+"."+method)
	w.mu.Unlock()
	if w.asked != nil {
		return nil, w.asked(instance, method)
	}
	return nil, supervisor.ErrNotSupported
}

func (w *fakeWorkers) Status(instance string) (supervisor.Status, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	st, ok := w.status[instance]
	return st, ok
}

func (w *fakeWorkers) List() []supervisor.Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]supervisor.Status, 0, len(w.status))
	for _, st := range w.status {
		out = append(out, st)
	}
	return out
}

func (w *fakeWorkers) Changed() <-chan struct{} { return w.changed }

// fakeGate answers what the test set last.
type fakeGate struct {
	changed chan struct{}

	mu     sync.Mutex
	snap   resource.Snapshot
	fresh  bool
	active []bool
	name   string
}

func (g *fakeGate) set(change func(*fakeGate)) {
	g.mu.Lock()
	change(g)
	g.snap.At = time.Now()
	g.mu.Unlock()
	select {
	case g.changed <- struct{}{}:
	default:
	}
}

func (g *fakeGate) Latest() (resource.Snapshot, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.snap, g.fresh
}
func (g *fakeGate) Changed() <-chan struct{} { return g.changed }
func (g *fakeGate) SetActive(a bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.active = append(g.active, a)
}
func (g *fakeGate) Registered() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.name
}

// fakeCatalog knows the instances the test declares.
type fakeCatalog struct {
	changed chan struct{}

	mu     sync.Mutex
	insts  map[string]plugins.Instance
	mans   map[string]plugins.Manifest
	broken error // what SetConfig answers
}

func (c *fakeCatalog) declare(name string, change ...func(*plugins.Instance, *plugins.Manifest)) {
	in := plugins.Instance{ID: name, Plugin: name, Enabled: true, Config: []byte(`{}`)}
	m := plugins.Manifest{Name: name, Concurrency: 1}
	for _, f := range change {
		f(&in, &m)
	}
	c.mu.Lock()
	c.insts[name], c.mans[name] = in, m
	c.mu.Unlock()
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

func (c *fakeCatalog) remove(name string) {
	c.mu.Lock()
	delete(c.insts, name)
	c.mu.Unlock()
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

func ram(mb float64) func(*plugins.Instance, *plugins.Manifest) {
	return func(_ *plugins.Instance, m *plugins.Manifest) { m.Demand.MinRAM = resource.FromMB(mb) }
}

func slots(n int) func(*plugins.Instance, *plugins.Manifest) {
	return func(_ *plugins.Instance, m *plugins.Manifest) { m.Concurrency = n }
}

func pinned(in *plugins.Instance, _ *plugins.Manifest) { in.Pinned = true }

func (c *fakeCatalog) Instances() []plugins.Instance {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []plugins.Instance
	for _, in := range c.insts {
		out = append(out, in)
	}
	return out
}

func (c *fakeCatalog) Instance(id string) (plugins.Instance, plugins.Manifest, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	in, ok := c.insts[id]
	if !ok {
		return in, plugins.Manifest{}, fmt.Errorf("no plugin %q", id)
	}
	return in, c.mans[id], nil
}

func (c *fakeCatalog) SetEnabled(_ context.Context, id string, on bool) (plugins.Instance, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	in := c.insts[id]
	in.Enabled = on
	c.insts[id] = in
	return in, nil
}

func (c *fakeCatalog) CheckConfig(string, json.RawMessage) ([]plugins.Issue, error) { return nil, nil }

func (c *fakeCatalog) SetConfig(_ context.Context, id string, config json.RawMessage) (plugins.Instance, []plugins.Issue, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return plugins.Instance{}, nil, c.broken
	}
	in := c.insts[id]
	in.Config = config
	c.insts[id] = in
	return in, nil, nil
}

func (c *fakeCatalog) Changed() <-chan struct{} { return c.changed }
