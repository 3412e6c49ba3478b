// Package sim is a model of a machine with accelerators: devices with memory,
// workers that load, run, die and give their memory back late or never, programs
// of others that grow and shrink, and a monitor whose readings lag, stop or lack
// process ids. It knows nothing of jobs or schedulers. Everything that happens
// follows from the options, the calls and the clock, so two runs with the same
// seed are equal. Safe from any goroutine; callbacks come without any lock held.
// Start with Machine, then Worker (worker.go) and Fault (faults.go).
package sim

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cjmd/cjmd/internal/resource"
)

// Device is one accelerator of the model.
type Device struct {
	ID    resource.DeviceID
	Name  string
	Total resource.Bytes
	// Used is held by the system for good (a desktop, a driver).
	Used resource.Bytes
	// Unified devices have no memory of their own: what they hold is the host's.
	Unified bool
}

// Options of a Machine.
type Options struct {
	Clock    Clock // nil: RealClock
	Seed     uint64
	Vendor   string // "NVIDIA" when "" and there are devices
	CPUs     int
	RAM      resource.Bytes
	RAMUsed  resource.Bytes // by the system, for good
	Devices  []Device
	Faults   []Fault
	ReadLag  time.Duration // readings show the machine as it was so long ago
	Observer Observer      // nil: nobody looks
}

// Observer is told what happens, in order. Calls come with the model locked:
// they must not call it.
type Observer interface {
	// Memory says what an owner holds of a device from now on (HostDevice for
	// host memory). Owners that are no worker's name begin with "~".
	Memory(at time.Time, device resource.DeviceID, owner string, bytes resource.Bytes)
	// Worker says what a worker enters: "load", "ready", "stop", "dead", "gone".
	Worker(at time.Time, name string, pid int, state string, devices []resource.DeviceID)
	// OutOfMemory says that an allocation of owner failed.
	OutOfMemory(at time.Time, owner string, device resource.DeviceID, asked, free resource.Bytes)
}

type silent struct{}

func (silent) Memory(time.Time, resource.DeviceID, string, resource.Bytes) {}
func (silent) Worker(time.Time, string, int, string, []resource.DeviceID)  {}
func (silent) OutOfMemory(time.Time, string, resource.DeviceID, resource.Bytes, resource.Bytes) {
}

// hostPool is host memory's place among the pools; devices follow in order.
const hostPool = 0

// holder is whatever holds memory: a worker, a program of others, or what is
// left of a dead worker.
type holder struct {
	name    string
	pid     int // 0: no process stands behind it
	command string
	mem     []resource.Bytes // by pool
}

// Machine is the model.
type Machine struct {
	o     Options
	clock Clock
	began time.Time

	mu      sync.Mutex
	closed  bool
	total   []resource.Bytes // by pool
	gone    []bool           // by pool: the device has vanished
	holders []*holder        // in order of appearance
	workers []*Worker        // alive, in order of start
	lastPID int
	starts  map[string]int // by worker name
	hidden  int            // faults in force that hide process ids
	mute    int            // faults in force that silence the monitor
	history []reading
	timers  map[*timer]struct{}
}

// timer is a callback that Close can still prevent.
type timer struct{ stop func() bool }

// New checks the options and returns a machine on which nothing but the system
// and the scripted faults happens.
func New(o Options) (*Machine, error) {
	if o.Clock == nil {
		o.Clock = RealClock{}
	}
	if o.Observer == nil {
		o.Observer = silent{}
	}
	if o.CPUs < 1 || o.RAM <= 0 || o.RAMUsed < 0 || o.RAMUsed > o.RAM {
		return nil, errors.New("cannot model a machine without CPUs or memory")
	}
	if o.Vendor == "" && len(o.Devices) > 0 {
		o.Vendor = "NVIDIA"
	}
	m := &Machine{o: o, clock: o.Clock, began: o.Clock.Now(), lastPID: 4000,
		total: []resource.Bytes{o.RAM}, gone: make([]bool, len(o.Devices)+1),
		starts: make(map[string]int), timers: make(map[*timer]struct{})}
	seen := make(map[resource.DeviceID]bool)
	for _, d := range o.Devices {
		if d.ID == "" || d.ID == resource.HostDevice || seen[d.ID] || d.Total <= 0 || d.Used < 0 || d.Used > d.Total {
			return nil, fmt.Errorf("cannot model device %q: it needs an id of its own and memory", d.ID)
		}
		seen[d.ID] = true
		m.total = append(m.total, d.Total)
	}
	system := m.newHolder("~system", 1, "system")
	m.holders = append(m.holders, system)
	m.setLocked(system, hostPool, o.RAMUsed)
	for i, d := range o.Devices {
		m.setLocked(system, i+1, d.Used)
	}
	m.noteLocked()
	for i := range o.Faults {
		if err := m.script(o.Faults[i]); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Close stops everything that is still to happen by itself.
func (m *Machine) Close() {
	m.mu.Lock()
	m.closed = true
	timers := m.timers
	m.timers = make(map[*timer]struct{})
	m.mu.Unlock()
	for t := range timers {
		t.stop()
	}
}

// after calls f with the model locked, d from now; what f returns is called
// afterwards without the lock.
func (m *Machine) afterLocked(d time.Duration, f func() (then func())) (stop func()) {
	if m.closed {
		return func() {}
	}
	t := &timer{}
	m.timers[t] = struct{}{}
	t.stop = m.clock.AfterFunc(d, func() {
		m.mu.Lock()
		if _, waits := m.timers[t]; !waits {
			m.mu.Unlock()
			return
		}
		delete(m.timers, t)
		then := f()
		m.noteLocked()
		m.mu.Unlock()
		if then != nil {
			then()
		}
	})
	return func() { // with the model locked
		if _, waits := m.timers[t]; waits {
			delete(m.timers, t)
			t.stop()
		}
	}
}

// step is one of several things that happen after each other.
type step struct {
	at time.Duration // from the beginning of all
	f  func() (then func())
}

// sequenceLocked makes steps happen at their times and in their order, also
// those of one time: a clock may call back in any order. stop is for the model
// locked, as are the steps.
func (m *Machine) sequenceLocked(steps []step) (stop func()) {
	cancel := func() {}
	over := false
	var next func(i int, passed time.Duration)
	next = func(i int, passed time.Duration) {
		if i == len(steps) || over {
			return
		}
		cancel = m.afterLocked(steps[i].at-passed, func() func() {
			then := steps[i].f()
			next(i+1, steps[i].at)
			return then
		})
	}
	next(0, 0)
	return func() {
		over = true
		cancel()
	}
}

func (m *Machine) newHolder(name string, pid int, command string) *holder {
	return &holder{name: name, pid: pid, command: command, mem: make([]resource.Bytes, len(m.total))}
}

func (m *Machine) id(pool int) resource.DeviceID {
	if pool == hostPool {
		return resource.HostDevice
	}
	return m.o.Devices[pool-1].ID
}

func (m *Machine) unified(pool int) bool { return pool != hostPool && m.o.Devices[pool-1].Unified }

// pool finds a device by id, -1 when there is none.
func (m *Machine) pool(id resource.DeviceID) int {
	for i := range m.total {
		if m.id(i) == id {
			return i
		}
	}
	return -1
}

func (m *Machine) usedLocked(pool int) resource.Bytes {
	var n resource.Bytes
	for _, h := range m.holders {
		n += h.mem[pool]
	}
	return n
}

// freeLocked is what can still be had of a pool. The host and its unified
// devices share one.
func (m *Machine) freeLocked(pool int) resource.Bytes {
	free := m.total[pool] - m.usedLocked(pool)
	if pool != hostPool && !m.unified(pool) {
		return free
	}
	shared := m.total[hostPool]
	for i := range m.total {
		if i == hostPool || m.unified(i) {
			shared -= m.usedLocked(i)
		}
	}
	return min(free, shared)
}

// setLocked makes h hold n of a pool, whether or not it fits.
func (m *Machine) setLocked(h *holder, pool int, n resource.Bytes) {
	if h.mem[pool] == n {
		return
	}
	h.mem[pool] = n
	m.o.Observer.Memory(m.clock.Now(), m.id(pool), h.name, m.sumLocked(h.name, pool))
}

// sumLocked is what all holders of a name hold: a worker and what is left of
// its predecessor are told as one owner each.
func (m *Machine) sumLocked(name string, pool int) resource.Bytes {
	var n resource.Bytes
	for _, h := range m.holders {
		if h.name == name {
			n += h.mem[pool]
		}
	}
	return n
}

// MemoryError says that a device could not give what was asked for.
type MemoryError struct {
	Owner       string
	Device      resource.DeviceID
	Asked, Free resource.Bytes
}

func (e *MemoryError) Error() string {
	return fmt.Sprintf("out of memory on %s: tried to allocate %.0f MiB, %.0f MiB are free", e.Device, e.Asked.MB(), e.Free.MB())
}

// growLocked adds n to what h holds; *MemoryError when it does not fit.
func (m *Machine) growLocked(h *holder, pool int, n resource.Bytes) error {
	if n <= 0 {
		return nil
	}
	if free := m.freeLocked(pool); n > free || m.gone[pool] {
		m.o.Observer.OutOfMemory(m.clock.Now(), h.name, m.id(pool), n, free)
		return &MemoryError{Owner: h.name, Device: m.id(pool), Asked: n, Free: free}
	}
	m.setLocked(h, pool, h.mem[pool]+n)
	return nil
}

// dropLocked takes a holder away with all it holds.
func (m *Machine) dropLocked(h *holder) {
	for i := range m.holders {
		if m.holders[i] == h {
			m.holders = append(m.holders[:i:i], m.holders[i+1:]...)
			break
		}
	}
	for pool, n := range h.mem {
		if n > 0 {
			m.o.Observer.Memory(m.clock.Now(), m.id(pool), h.name, m.sumLocked(h.name, pool))
		}
	}
}

// Free is what can be had of a device now; 0 for one that is not there.
func (m *Machine) Free(id resource.DeviceID) resource.Bytes {
	m.mu.Lock()
	defer m.mu.Unlock()
	pool := m.pool(id)
	if pool < 0 || m.gone[pool] {
		return 0
	}
	return m.freeLocked(pool)
}

// Held is what all holders of a name hold of a device now.
func (m *Machine) Held(name string, id resource.DeviceID) resource.Bytes {
	m.mu.Lock()
	defer m.mu.Unlock()
	pool := m.pool(id)
	if pool < 0 {
		return 0
	}
	return m.sumLocked(name, pool)
}
