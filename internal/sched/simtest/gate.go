package simtest

import (
	"time"

	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sim"
)

// How the gate of the daemon samples.
const (
	busyEvery = 200 * time.Millisecond
	idleEvery = 3 * time.Second
	maxAge    = 10 * time.Second
)

// gate is the simulator's monitors.Gate: the model's monitor, sampled as often
// as the scheduler asks, stale when it is silent.
type gate struct {
	d       *driver
	m       *sim.Machine
	every   time.Duration
	changed chan struct{}
	snap    resource.Snapshot
	arrived time.Time
	active  bool
	next    func() bool // stops the next sample
	stale   func() bool // stops the wake-up when the reading becomes stale
}

func newGate(d *driver, m *sim.Machine, every time.Duration) *gate {
	if every <= 0 {
		every = busyEvery
	}
	g := &gate{d: d, m: m, every: every, changed: make(chan struct{}, 1)}
	g.sample()
	return g
}

func (g *gate) sample() {
	if s, ok := g.m.Read("sim"); ok {
		g.snap, g.arrived = s, g.d.now
		ring(g.changed)
		if g.stale != nil {
			g.stale()
		}
		g.stale = g.d.AfterFunc(maxAge+time.Millisecond, func() { ring(g.changed) })
	}
	g.plan()
}

func (g *gate) plan() {
	d := idleEvery
	if g.active {
		d = g.every
	}
	g.next = g.d.AfterFunc(d, g.sample)
}

// Latest implements sched.Gate, as do the following.
func (g *gate) Latest() (resource.Snapshot, bool) {
	return g.snap, !g.arrived.IsZero() && g.d.now.Sub(g.arrived) <= maxAge
}

func (g *gate) Changed() <-chan struct{} { return g.changed }

func (g *gate) Registered() string { return "sim" }

// SetActive makes a sample due at once when it turns on, as monitors.Pace does.
func (g *gate) SetActive(active bool) {
	if active == g.active {
		return
	}
	g.active = active
	if active && g.next != nil && g.next() {
		g.next = g.d.AfterFunc(0, g.sample)
	}
}

// close ends the sampling of a daemon that died.
func (g *gate) close() {
	g.next()
	if g.stale != nil {
		g.stale()
	}
}
