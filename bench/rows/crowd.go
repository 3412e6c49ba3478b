package rows

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/cjmd/cjmd/bench/harness"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/jobs/sqlitestore"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/sched/policy"
	"github.com/cjmd/cjmd/internal/supervisor"
)

const (
	crowdPlugins = 40
	crowdWorkers = 32
	crowdDevices = 8
	crowdStored  = 10_000 // jobs that are in the store; more are in the queue's memory alone
	gib          = resource.Bytes(1 << 30)
)

// crowd is the real scheduling loop, policy, queue and store in this process,
// with workers that never end a job: crowdWorkers of them fill the devices, all
// other jobs wait.
type crowd struct {
	queue   *jobs.Queue
	store   *sqlitestore.Store
	step    *sched.Stepper
	gate    *crowdGate
	workers *crowdOfWorkers
	catalog *crowdCatalog
	policy  *countingPolicy
	endWork context.CancelFunc
	started sync.WaitGroup
	ahead   atomic.Int64 // what the loop's clock is ahead of the real one
	next    int
}

// newCrowd makes a queue of so many pending jobs and lets the loop start what fits.
func newCrowd(ctx context.Context, b *harness.Bench, pending int) (_ *crowd, err error) {
	dir, err := b.TempDir("crowd")
	if err != nil {
		return nil, fmt.Errorf("cannot make a directory: %w", err)
	}
	c := &crowd{gate: newCrowdGate(), workers: newCrowdOfWorkers(), catalog: &crowdCatalog{changed: make(chan struct{}, 1)},
		policy: &countingPolicy{Policy: policy.Reserve(policy.ReserveOptions{})}}
	if c.store, err = sqlitestore.Open(ctx, sqlitestore.Options{Dir: dir}); err != nil {
		return nil, err
	}
	c.queue, err = jobs.NewQueue(jobs.Options{Store: &crowdedStore{Store: c.store, extra: pending - crowdStored},
		LogDir: filepath.Join(dir, "logs"), JobDir: filepath.Join(dir, "jobs"), MaxPending: 10 * pending})
	if err != nil {
		return nil, errors.Join(err, c.store.Close())
	}
	work, endWork := context.WithCancel(context.WithoutCancel(ctx))
	c.endWork = endWork
	if err := c.fill(ctx, work); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

func (c *crowd) fill(ctx, work context.Context) error {
	if _, err := c.queue.Recover(ctx); err != nil {
		return err
	}
	for range crowdStored / batchSize {
		if err := c.submit(ctx, batchSize); err != nil {
			return err
		}
	}
	s, err := sched.New(sched.Options{Queue: sched.JobQueue{Queue: c.queue}, Workers: c.workers, Gate: c.gate, Catalog: c.catalog,
		Policies: []sched.Policy{c.policy}, Go: func(f func()) { c.started.Go(f) },
		Now: func() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }})
	if err != nil {
		return err
	}
	c.step = s.Stepper(work)
	deadline := time.Now().Add(20 * time.Second)
	for c.workers.busy() < crowdWorkers {
		if time.Now().After(deadline) {
			return fmt.Errorf("cannot fill the devices: %d workers of %d run", c.workers.busy(), crowdWorkers)
		}
		c.changeEverything()
		c.step.Pass()
		time.Sleep(time.Millisecond) // the runners are at it
	}
	return nil
}

// submit adds n jobs, of all plugins in turn.
func (c *crowd) submit(ctx context.Context, n int) error {
	all := make([]jobs.Submission, n)
	for i := range all {
		all[i] = jobs.Submission{Submitter: "bench", Spec: jobs.Spec{Instance: crowdPlugin(c.next), Args: json.RawMessage("[]"), Kwargs: json.RawMessage("{}")}}
		c.next++
	}
	if _, err := c.queue.Submit(ctx, all); err != nil {
		return fmt.Errorf("cannot submit: %w", err)
	}
	return nil
}

// changeEverything makes the next pass look at workers, monitor and catalogue
// anew; the monitor's figures are others than before.
func (c *crowd) changeEverything() {
	c.ahead.Add(int64(time.Second))
	c.gate.move()
	ring(c.workers.changed)
	ring(c.catalog.changed)
	c.step.Due()
}

// close ends the jobs and everything else.
func (c *crowd) close() error {
	c.endWork()
	var err error
	if c.step != nil {
		c.step.StopAdmitting()
		deadline := time.Now().Add(20 * time.Second)
		for !c.step.Over() && err == nil {
			c.changeEverything()
			c.step.Pass()
			if time.Now().After(deadline) {
				err = errors.New("the scheduling loop does not end")
			}
			time.Sleep(time.Millisecond) // the runners are at it
		}
		c.started.Wait()
	}
	return errors.Join(err, c.queue.Close(), c.store.Close())
}

func ring(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func crowdPlugin(i int) string { return fmt.Sprint("plugin", i%crowdPlugins) }

// countingPolicy counts the decisions.
type countingPolicy struct {
	sched.Policy
	decisions int
}

func (p *countingPolicy) Decide(v sched.View) sched.Plan {
	p.decisions++
	return p.Policy.Decide(v)
}

// crowdedStore has more jobs than are stored: less urgent ones that are never
// started, so that a long queue does not have to be written first.
type crowdedStore struct {
	*sqlitestore.Store
	extra int
}

func (s *crowdedStore) Active(ctx context.Context, fn func(jobs.ActiveJob) error) error {
	begin := time.Now()
	for i := range s.extra {
		err := fn(jobs.ActiveJob{ID: jobs.ID(ulid.Make().String()), Seq: 1<<40 + int64(i), Instance: crowdPlugin(i), Submitter: "bench",
			Status: jobs.Pending, Priority: -1, MaxAttempts: 3, Revision: 1, CreatedAt: begin})
		if err != nil {
			return err
		}
	}
	return s.Store.Active(ctx, fn)
}

// crowdGate is a monitor of devices on which others use a little memory.
type crowdGate struct {
	changed chan struct{}
	mu      sync.Mutex
	snap    resource.Snapshot // guarded by mu; its slice is replaced, not changed
	moves   int               // guarded by mu
}

func newCrowdGate() *crowdGate {
	g := &crowdGate{changed: make(chan struct{}, 1)}
	g.snap = resource.Snapshot{GPUVendor: "NVIDIA", Host: resource.Host{CPUs: 64, MemTotal: 512 * gib, MemAvailable: 500 * gib, MemUsed: 12 * gib}}
	g.move()
	return g
}

func (g *crowdGate) move() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.moves++
	used := resource.Bytes(200+100*(g.moves%2)) * resource.MiB
	g.snap.At, g.snap.Devices = time.Now().Add(time.Hour), make([]resource.Device, crowdDevices)
	for i := range g.snap.Devices {
		g.snap.Devices[i] = resource.Device{ID: resource.DeviceID(fmt.Sprint("GPU-", i)), Index: i, Name: "bench", Total: 24 * gib, Used: used, Free: 24*gib - used}
	}
	ring(g.changed)
}

func (g *crowdGate) Latest() (resource.Snapshot, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.snap, true
}
func (g *crowdGate) Changed() <-chan struct{} { return g.changed }
func (g *crowdGate) SetActive(bool)           {}
func (g *crowdGate) Registered() string       { return "bench" }

// crowdOfWorkers load at once and never end a call.
type crowdOfWorkers struct {
	changed chan struct{}
	mu      sync.Mutex
	status  map[string]supervisor.Status // guarded by mu
}

func newCrowdOfWorkers() *crowdOfWorkers {
	return &crowdOfWorkers{changed: make(chan struct{}, 1), status: make(map[string]supervisor.Status)}
}

func (w *crowdOfWorkers) set(instance string, state supervisor.State) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status[instance] = supervisor.Status{Instance: instance, Plugin: instance, State: state, Concurrency: 1, ReadyAt: time.Now()}
	ring(w.changed)
}

func (w *crowdOfWorkers) busy() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.status {
		if s.State == supervisor.Busy {
			n++
		}
	}
	return n
}

func (w *crowdOfWorkers) EnsureReady(_ context.Context, instance string) error {
	w.set(instance, supervisor.ReadyState)
	return nil
}

func (w *crowdOfWorkers) Execute(ctx context.Context, instance string, _ supervisor.Call, _ supervisor.Sink) (supervisor.Result, error) {
	w.set(instance, supervisor.Busy)
	<-ctx.Done()
	w.set(instance, supervisor.ReadyState)
	return supervisor.Result{}, context.Cause(ctx)
}

func (w *crowdOfWorkers) Stop(_ context.Context, instance, _ string) error {
	w.set(instance, supervisor.Stopped)
	return nil
}
func (w *crowdOfWorkers) Reset(string)             {}
func (w *crowdOfWorkers) Forget(string)            {}
func (w *crowdOfWorkers) Changed() <-chan struct{} { return w.changed }
func (w *crowdOfWorkers) Place(string, []string)   {}
func (w *crowdOfWorkers) PIDs(string) []int        { return nil }
func (w *crowdOfWorkers) Configure(context.Context, string, json.RawMessage, json.RawMessage) (supervisor.Applied, error) {
	return "", errors.ErrUnsupported
}
func (w *crowdOfWorkers) Request(context.Context, string, string, json.RawMessage) (json.RawMessage, error) {
	return nil, errors.ErrUnsupported
}

func (w *crowdOfWorkers) Status(instance string) (supervisor.Status, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s, ok := w.status[instance]
	return s, ok
}

func (w *crowdOfWorkers) List() []supervisor.Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]supervisor.Status, 0, len(w.status))
	for _, s := range w.status {
		out = append(out, s)
	}
	return out
}

// crowdCatalog has crowdPlugins plugins, of which four fit on a device.
type crowdCatalog struct{ changed chan struct{} }

func (c *crowdCatalog) Instance(id string) (plugins.Instance, plugins.Manifest, error) {
	return plugins.Instance{ID: id, Plugin: id, Enabled: true},
		plugins.Manifest{Name: id, Concurrency: 1, Demand: resource.Demand{RequiresGPU: true, Devices: 1, MinVRAM: 5 * gib, MinRAM: 2 * gib}}, nil
}

func (c *crowdCatalog) Instances() []plugins.Instance {
	out := make([]plugins.Instance, crowdPlugins)
	for i := range out {
		out[i] = plugins.Instance{ID: crowdPlugin(i), Plugin: crowdPlugin(i), Enabled: true}
	}
	return out
}

func (c *crowdCatalog) SetEnabled(context.Context, string, bool) (plugins.Instance, error) {
	return plugins.Instance{}, errors.ErrUnsupported
}
func (c *crowdCatalog) CheckConfig(string, json.RawMessage) ([]plugins.Issue, error) { return nil, nil }
func (c *crowdCatalog) SetConfig(context.Context, string, json.RawMessage) (plugins.Instance, []plugins.Issue, error) {
	return plugins.Instance{}, nil, errors.ErrUnsupported
}
func (c *crowdCatalog) Changed() <-chan struct{} { return c.changed }
