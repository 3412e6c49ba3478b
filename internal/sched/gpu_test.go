package sched_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/sched/policy"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// cards is a machine with accelerators among the fakes: workers take memory as
// they load and run, and give it back when they end, as the test says.
type cards struct {
	*box
	journal *fakeJournal

	mu      sync.Mutex
	total   []resource.Bytes
	foreign []resource.Bytes
	held    map[string]*holding // by instance
	ghosts  map[string]*holding // of ended workers: memory without a process
	pid     int
	// appetite is what an instance's worker takes: when loaded, and more while it runs.
	appetite map[string][2]resource.Bytes
	linger   time.Duration // from the end of a worker to its memory's return; <0: never
	silent   bool          // the monitor lists no processes
	placed   map[string][]string
	runFor   map[string]time.Duration
}

type holding struct {
	pid    int
	device int
	bytes  resource.Bytes
}

type fakeJournal struct {
	mu    sync.Mutex
	kinds []events.Draft
}

func (j *fakeJournal) Record(_ context.Context, d ...events.Draft) ([]events.Event, error) {
	j.Emit(d...)
	return nil, nil
}

func (j *fakeJournal) Emit(d ...events.Draft) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.kinds = append(j.kinds, d...)
}

func (j *fakeJournal) count(kind events.Kind) (n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, d := range j.kinds {
		if d.Kind == kind {
			n++
		}
	}
	return n
}

// placingWorkers is a supervisor that is told where workers are to sit.
type placingWorkers struct {
	*fakeWorkers
	c *cards
}

func (w *placingWorkers) Place(instance string, devices []string) {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	w.c.placed[instance] = devices
}

// onCards runs f with a scheduler under reserve on devices of the given GiB.
func onCards(t *testing.T, sizes []resource.Bytes, f func(c *cards), change ...func(*sched.Options)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := &cards{journal: &fakeJournal{}, held: make(map[string]*holding), ghosts: make(map[string]*holding), pid: 1000,
			appetite: make(map[string][2]resource.Bytes), placed: make(map[string][]string), runFor: make(map[string]time.Duration)}
		for _, n := range sizes {
			c.total, c.foreign = append(c.total, n*gib), append(c.foreign, 0)
		}
		c.box = setup(t, append([]func(*sched.Options){func(o *sched.Options) {
			o.Policies = append(o.Policies, policy.Reserve(policy.ReserveOptions{}))
			o.Policy, o.Journal = "reserve", c.journal
			o.Workers = &placingWorkers{o.Workers.(*fakeWorkers), c}
		}}, change...)...)
		c.workers.load = c.load
		c.workers.exec = c.exec
		c.workers.stopped = c.ended

		c.sample()
		f(c)
		c.close()
	})
}

// gpu declares an instance that takes resident GiB, and execute more while it runs.
func (c *cards) gpu(name string, resident, execute resource.Bytes, change ...func(*plugins.Instance, *plugins.Manifest)) {
	c.mu.Lock()
	c.appetite[name] = [2]resource.Bytes{resident * gib, execute * gib}
	c.mu.Unlock()
	c.catalog.declare(name, append([]func(*plugins.Instance, *plugins.Manifest){func(_ *plugins.Instance, m *plugins.Manifest) {
		m.Demand.RequiresGPU, m.Demand.MinVRAM = true, (resident+execute)*gib
	}}, change...)...)
}

func (c *cards) device(instance string) int {
	for i := range c.total {
		if slices.Equal(c.placed[instance], []string{fmt.Sprint("GPU-", i)}) {
			return i
		}
	}
	return 0
}

func (c *cards) free(device int) resource.Bytes {
	n := c.total[device] - c.foreign[device]
	for _, set := range []map[string]*holding{c.held, c.ghosts} {
		for _, h := range set {
			if h.device == device {
				n -= h.bytes
			}
		}
	}
	return n
}

// take gives an instance bytes in all; out of memory when the card has no more.
func (c *cards) take(instance string, bytes resource.Bytes) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.held[instance]
	if h == nil && bytes == 0 {
		return nil
	}
	if h == nil {
		c.pid++
		h = &holding{pid: c.pid, device: c.device(instance)}
		c.held[instance] = h
	}
	if c.free(h.device)+h.bytes < bytes {
		return &supervisor.CallError{Category: "oom", Message: "out of memory"}
	}
	h.bytes = bytes
	return nil
}

// about returns what an instance takes and the pid of its worker, 1 without one.
func (c *cards) about(instance string) (eats [2]resource.Bytes, pid int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pid = 1
	if h := c.held[instance]; h != nil {
		pid = h.pid
	}
	return c.appetite[instance], pid
}

func (c *cards) load(ctx context.Context, instance string) error {
	if err := sleep(ctx, time.Second); err != nil {
		return err
	}
	eats, _ := c.about(instance)
	if err := c.take(instance, eats[0]); err != nil {
		c.ended(instance)
		return &supervisor.StartError{Instance: instance, Step: "load", Call: err.(*supervisor.CallError)}
	}
	_, pid := c.about(instance)
	c.workers.set(instance, supervisor.Initializing, func(s *supervisor.Status) { s.PID, s.PIDs = pid, []int{pid} })
	return sleep(ctx, time.Second)
}

func (c *cards) exec(ctx context.Context, instance string, _ supervisor.Call) (supervisor.Result, error) {
	a, _ := c.about(instance)
	if err := c.take(instance, a[0]+a[1]); err != nil {
		return supervisor.Result{}, err
	}
	d := c.runFor[instance]
	if d == 0 {
		d = time.Second
	}
	if err := sleep(ctx, d); err != nil {
		return supervisor.Result{Cancelled: true}, nil
	}
	return supervisor.Result{Payload: []byte("1")}, c.take(instance, a[0])
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ended takes a worker's process away; its memory follows.
func (c *cards) ended(instance string) {
	c.mu.Lock()
	h := c.held[instance]
	delete(c.held, instance)
	if h == nil || c.linger == 0 {
		c.mu.Unlock()
		return
	}
	name := fmt.Sprint(instance, h.pid)
	c.ghosts[name] = h
	d := c.linger
	c.mu.Unlock()
	if d > 0 {
		time.AfterFunc(d, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			delete(c.ghosts, name)
		})
	}
}

// sample has the monitor read the cards once.
func (c *cards) sample() {
	time.Sleep(time.Millisecond) // no two readings are of the same time
	c.gate.set(func(g *fakeGate) {
		c.mu.Lock()
		defer c.mu.Unlock()
		g.snap = snapshot(64 * gib)
		g.snap.Host.MemTotal, g.snap.GPUVendor = 64*gib, "NVIDIA"
		for i, total := range c.total {
			free := c.free(i)
			g.snap.Devices = append(g.snap.Devices, resource.Device{ID: resource.DeviceID(fmt.Sprint("GPU-", i)), Index: i, Name: "Test 24G", Total: total, Used: total - free, Free: free})
		}
		for _, h := range c.held {
			if !c.silent {
				g.snap.Processes = append(g.snap.Processes, resource.Process{PID: h.pid, Device: resource.DeviceID(fmt.Sprint("GPU-", h.device)), Index: h.device, Memory: h.bytes})
			}
		}
	})
	synctest.Wait()
}

// tick lets time pass with a reading every 100 ms.
func (c *cards) tick(d time.Duration) {
	for range d / (100 * time.Millisecond) {
		time.Sleep(100 * time.Millisecond)
		c.sample()
	}
}

func (c *cards) setForeign(device int, n resource.Bytes) {
	c.mu.Lock()
	c.foreign[device] = n
	c.mu.Unlock()
	c.sample()
}

func (c *cards) wantSentence(instance, code, part string) {
	c.t.Helper()
	if b := c.wantBlock(instance, code); !strings.Contains(b.Sentence, part) {
		c.t.Errorf("sentence %q, want %q in it", b.Sentence, part)
	}
}
