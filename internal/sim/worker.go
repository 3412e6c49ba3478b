package sim

import (
	"errors"
	"fmt"
	"time"

	"github.com/cjmd/cjmd/internal/resource"
)

// Program is what a worker really does, whatever anybody declared about it.
type Program struct {
	Name string
	// Per device; a program without accelerator uses host memory alone.
	ResidentVRAM, ExecuteVRAM resource.Bytes
	ResidentRAM, ExecuteRAM   resource.Bytes
	LoadPeakVRAM              resource.Bytes // on top of resident, for the last part of the load
	Load, Run                 Span
	// Keeps what a run took until the worker dies or is asked to release: a
	// caching allocator.
	Keeps bool
	// ReleaseLag is between death and the memory being free again.
	ReleaseLag Span
	Leak       resource.Bytes // of each device, stays after death
	LeakFor    time.Duration  // 0: for ever
	IgnoreTerm bool           // ends only when it is killed
	FailLoad   float64        // chance that a load fails
	Crash      float64        // chance that the worker dies in the middle of a run
	OOMKills   bool           // an allocation that fails in a run is the worker's end
}

// How a worker and a call may end.
var (
	ErrKilled  = errors.New("the worker was stopped")
	ErrCrashed = errors.New("the worker crashed")
	ErrBroken  = errors.New("the load failed")
)

// States of a Worker.
const (
	Loading  = "loading"
	Ready    = "ready"
	Stopping = "stopping"
	Dead     = "dead"
)

// stopTime is how long a polite end takes; termGrace is what one that ignores it
// is given before it is killed.
const (
	stopTime  = 200 * time.Millisecond
	termGrace = 5 * time.Second
)

// Worker is one process of the model. Its fields are the machine's.
type Worker struct {
	m        *Machine
	h        *holder
	p        Program
	pools    []int // its devices
	serial   string
	state    string
	calls    map[string]*call
	order    []*call // in order of begin
	stops    []func()
	loaded   func(error)
	died     func(error)
	stopLoad func() // with the model locked
}

type call struct {
	id   string
	vram resource.Bytes // held for it, per device
	ram  resource.Bytes
	done func(error)
	stop func() // with the model locked
	over bool
}

// Start makes a worker and begins its load; loaded is called once, later, with
// how that ended: nil, *MemoryError, ErrBroken, ErrCrashed or ErrKilled. died is
// called when its process ends, before everybody else hears of it; nil: nobody
// asks. name is the owner under which its memory is told.
func (m *Machine) Start(name string, p Program, devices []resource.DeviceID, loaded, died func(error)) (*Worker, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := &Worker{m: m, p: p, state: Loading, calls: make(map[string]*call), loaded: loaded, died: died}
	for _, id := range devices {
		pool := m.pool(id)
		if pool <= hostPool || m.gone[pool] {
			return nil, fmt.Errorf("cannot start %s: there is no device %q", name, id)
		}
		w.pools = append(w.pools, pool)
	}
	m.lastPID++
	m.starts[name]++
	w.serial = fmt.Sprintf("%s#%d", name, m.starts[name])
	w.h = m.newHolder(name, m.lastPID, p.Name)
	m.holders = append(m.holders, w.h)
	m.workers = append(m.workers, w)
	m.o.Observer.Worker(m.clock.Now(), name, w.h.pid, "load", w.devices())
	w.scriptLoad()
	return w, nil
}

// loadSteps is in how many parts a worker takes its resident memory.
const loadSteps = 4

// scriptLoad takes the resident memory step by step.
func (w *Worker) scriptLoad() {
	total := w.p.Load.Draw(w.m.o.Seed, "load "+w.serial)
	breaks := w.p.FailLoad > 0 && Chance(w.m.o.Seed, "fail "+w.serial) < w.p.FailLoad
	var steps []step
	for k := 1; k <= loadSteps; k++ {
		steps = append(steps, step{total * time.Duration(k) / (loadSteps + 1), func() func() { return w.loadStep(resource.Bytes(k)) }})
	}
	w.stopLoad = w.m.sequenceLocked(append(steps, step{total, func() func() {
		w.shrink(w.p.LoadPeakVRAM, 0)
		if breaks {
			return w.dieLocked(ErrBroken)
		}
		w.state = Ready
		w.m.o.Observer.Worker(w.m.clock.Now(), w.h.name, w.h.pid, "ready", w.devices())
		loaded := w.loaded
		w.loaded = nil
		return func() { loaded(nil) }
	}}))
}

// loadStep takes the k-th part of the resident memory, and with the last one the
// peak of loading.
func (w *Worker) loadStep(k resource.Bytes) func() {
	part := func(n resource.Bytes) resource.Bytes { return n*k/loadSteps - n*(k-1)/loadSteps }
	err := w.grow(part(w.p.ResidentVRAM), part(w.p.ResidentRAM))
	if err == nil && k == loadSteps {
		err = w.grow(w.p.LoadPeakVRAM, 0)
	}
	if err == nil {
		return nil
	}
	return w.dieLocked(err)
}

// grow takes memory of each device and of the host, or none of any.
func (w *Worker) grow(vram, ram resource.Bytes) error {
	for i, pool := range w.pools {
		if err := w.m.growLocked(w.h, pool, vram); err != nil {
			w.giveUp(w.pools[:i], vram)
			return err
		}
	}
	err := w.m.growLocked(w.h, hostPool, ram)
	if err != nil {
		w.giveUp(w.pools, vram)
	}
	return err
}

// giveUp gives back what an allocation had taken when a part of it failed.
func (w *Worker) giveUp(pools []int, vram resource.Bytes) {
	for _, pool := range pools {
		w.m.setLocked(w.h, pool, w.h.mem[pool]-max(vram, 0))
	}
}

func (w *Worker) shrink(vram, ram resource.Bytes) {
	for _, pool := range w.pools {
		w.m.setLocked(w.h, pool, max(w.h.mem[pool]-vram, 0))
	}
	w.m.setLocked(w.h, hostPool, max(w.h.mem[hostPool]-ram, 0))
}

// RunTime is how long the program takes for a call of that id when nothing
// goes wrong; 0 asks for the program's own time.
func (w *Worker) RunTime(id string, own time.Duration) time.Duration {
	if own > 0 {
		return own
	}
	return w.p.Run.Draw(w.m.o.Seed, "run "+w.p.Name+" "+id)
}

// Run begins a call that takes d (0: as the program says); done is called once,
// later: nil, *MemoryError (the worker lives on unless OOMKills), ErrCrashed or
// ErrKilled. It fails at once when the worker is not ready.
func (w *Worker) Run(id string, d time.Duration, done func(error)) error {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	if w.state != Ready {
		return fmt.Errorf("cannot run on %s: it is %s", w.h.name, w.state)
	}
	c := &call{id: id, done: done}
	w.calls[id] = c
	w.order = append(w.order, c)
	total := w.RunTime(id, d)
	steps := []step{
		{0, func() func() { return w.take(c, w.p.ExecuteVRAM/2, w.p.ExecuteRAM) }},
		{total / 4, func() func() { return w.take(c, w.p.ExecuteVRAM-w.p.ExecuteVRAM/2, 0) }},
	}
	if w.p.Crash > 0 && Chance(w.m.o.Seed, "crash "+w.serial+" "+id) < w.p.Crash {
		steps = append(steps, step{total / 2, func() func() { return w.dieLocked(ErrCrashed) }})
	}
	c.stop = w.m.sequenceLocked(append(steps, step{total, func() func() { return w.endLocked(c, nil) }}))
	return nil
}

// take adds to what a call holds. With a caching allocator what earlier calls
// left is used first.
func (w *Worker) take(c *call, vram, ram resource.Bytes) func() {
	err := w.grow(max(vram-w.cached(), 0), ram)
	if err != nil && w.p.OOMKills {
		return w.dieLocked(err)
	}
	if err != nil {
		return w.endLocked(c, err)
	}
	c.vram += vram
	c.ram += ram
	return nil
}

// cached is what the worker holds per device beyond its resident memory and
// its calls.
func (w *Worker) cached() resource.Bytes {
	if !w.p.Keeps || len(w.pools) == 0 {
		return 0
	}
	n := w.h.mem[w.pools[0]] - w.p.ResidentVRAM
	for _, c := range w.order {
		n -= c.vram
	}
	return max(n, 0)
}

func (w *Worker) endLocked(c *call, err error) func() {
	c.over = true
	c.stop()
	delete(w.calls, c.id)
	for i := range w.order {
		if w.order[i] == c {
			w.order = append(w.order[:i:i], w.order[i+1:]...)
			break
		}
	}
	if w.state != Dead {
		vram := c.vram
		if w.p.Keeps && err == nil {
			vram = 0
		}
		w.shrink(vram, c.ram)
	}
	return func() { c.done(err) }
}

// Cancel ends a call after d, as a plugin does that hears of it; done is called
// with ErrKilled.
func (w *Worker) Cancel(id string, d time.Duration) {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	c := w.calls[id]
	if c == nil {
		return
	}
	w.m.afterLocked(d, func() func() {
		if c.over {
			return nil
		}
		return w.endLocked(c, ErrKilled)
	})
}

// Release gives back what a caching allocator holds beyond what is needed, and
// says how much that was per device.
func (w *Worker) Release() resource.Bytes {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	n := w.cached()
	w.shrink(n, 0)
	w.m.noteLocked()
	return n
}

// Stop asks the worker to end; gone is called when its process is no more. Its
// memory comes back when it pleases.
func (w *Worker) Stop(gone func()) {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	if w.state == Dead {
		w.m.afterLocked(0, func() func() { return gone })
		return
	}
	w.stops = append(w.stops, gone)
	if w.state == Stopping {
		return
	}
	w.stopLoad()
	w.state = Stopping
	w.m.o.Observer.Worker(w.m.clock.Now(), w.h.name, w.h.pid, "stop", w.devices())
	d := stopTime
	if w.p.IgnoreTerm {
		d = termGrace
	}
	w.m.afterLocked(d, func() func() { return w.dieLocked(ErrKilled) })
}

// Kill ends the worker at once.
func (w *Worker) Kill() {
	w.m.mu.Lock()
	then := w.dieLocked(ErrKilled)
	w.m.noteLocked()
	w.m.mu.Unlock()
	then()
}

// dieLocked ends the process. Its memory stays for the release lag, a leak
// longer. The answer tells everybody who waits; it is called without the lock.
func (w *Worker) dieLocked(why error) func() {
	if w.state == Dead {
		return func() {}
	}
	w.stopLoad()
	w.state = Dead
	m := w.m
	for i := range m.workers {
		if m.workers[i] == w {
			m.workers = append(m.workers[:i:i], m.workers[i+1:]...)
			break
		}
	}
	m.o.Observer.Worker(m.clock.Now(), w.h.name, w.h.pid, "dead", w.devices())
	var then []func()
	for len(w.order) > 0 {
		err := why
		if _, oom := why.(*MemoryError); oom && !w.p.OOMKills {
			err = ErrCrashed
		}
		then = append(then, w.endLocked(w.order[0], err))
	}
	if w.loaded != nil {
		loaded := w.loaded
		w.loaded = nil
		then = append(then, func() { loaded(why) })
	}
	if w.died != nil { // after those who wait for an answer: its connection goes with it
		then = append(then, func() { w.died(why) })
	}
	then = append(then, w.stops...)
	w.stops = nil
	w.h.pid = 0
	m.afterLocked(w.p.ReleaseLag.Draw(m.o.Seed, "release "+w.serial), func() func() {
		w.giveBack()
		return nil
	})
	return func() {
		for _, f := range then {
			f()
		}
	}
}

// giveBack frees what a dead worker held, but for its leak.
func (w *Worker) giveBack() {
	m := w.m
	m.dropLocked(w.h)
	m.o.Observer.Worker(m.clock.Now(), w.h.name, 0, "gone", w.devices())
	if w.p.Leak <= 0 {
		return
	}
	leak := m.newHolder("~leak "+w.h.name, 0, "")
	m.holders = append(m.holders, leak)
	for _, pool := range w.pools {
		m.setLocked(leak, pool, min(w.p.Leak, w.h.mem[pool]))
	}
	if w.p.LeakFor > 0 {
		m.afterLocked(w.p.LeakFor, func() func() { m.dropLocked(leak); return nil })
	}
}

func (w *Worker) devices() []resource.DeviceID {
	out := make([]resource.DeviceID, len(w.pools))
	for i, pool := range w.pools {
		out[i] = w.m.id(pool)
	}
	return out
}

// SetPID gives the worker the id of the real process that stands for it.
func (w *Worker) SetPID(pid int) {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	if w.state != Dead {
		w.h.pid = pid
		w.m.noteLocked()
	}
}

// PID is the worker's process id; 0 once it is dead.
func (w *Worker) PID() int {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	return w.h.pid
}

// State is one of the states above.
func (w *Worker) State() string {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	return w.state
}

// RAM is the host memory it holds.
func (w *Worker) RAM() resource.Bytes {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	return w.h.mem[hostPool]
}

// VRAM is what it holds of each of its devices.
func (w *Worker) VRAM() map[resource.DeviceID]resource.Bytes {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	out := make(map[resource.DeviceID]resource.Bytes, len(w.pools))
	for _, pool := range w.pools {
		out[w.m.id(pool)] = w.h.mem[pool]
	}
	return out
}
