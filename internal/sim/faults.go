package sim

import (
	"fmt"
	"time"

	"github.com/cjmd/cjmd/internal/resource"
)

// Kinds of Fault.
const (
	// Foreign is a program of others: it grows to Bytes of Device between At and
	// At+Ramp and goes away at Until. Where the device is full it gets what is left.
	Foreign = "foreign"
	// Silence stops the monitor's readings between At and Until.
	Silence = "silence"
	// NoPIDs hides all processes from the readings between At and Until.
	NoPIDs = "no_pids"
	// Vanish takes a device away, with everything on it, between At and Until.
	Vanish = "vanish"
	// Crash kills the workers of a name at At.
	Crash = "crash"
)

// Fault is something that happens to the machine at a time, counted from the
// model's beginning. Until 0 means for ever.
type Fault struct {
	Kind   string
	At     time.Duration
	Until  time.Duration
	Device resource.DeviceID
	Name   string // of the foreign program, or of the worker that crashes
	Bytes  resource.Bytes
	Ramp   time.Duration
}

// rampSteps is in how many parts a foreign program grows.
const rampSteps = 5

// script sets the timers of one fault. Called by New, before anybody else
// knows the machine.
func (m *Machine) script(f Fault) error {
	pool := m.pool(f.Device)
	if (f.Kind == Foreign && pool < 0) || (f.Kind == Vanish && pool <= hostPool) {
		return fmt.Errorf("cannot script %s: there is no device %q", f.Kind, f.Device)
	}
	if f.At < 0 || f.Until < 0 || (f.Until > 0 && f.Until <= f.At) || f.Ramp < 0 {
		return fmt.Errorf("cannot script %s: its times make no sense (%s until %s)", f.Kind, f.At, f.Until)
	}
	switch f.Kind {
	case Foreign:
		m.scriptForeign(f, pool)
	case Silence:
		m.scriptSwitch(f, func(on bool) { m.mute += delta(on) })
	case NoPIDs:
		m.scriptSwitch(f, func(on bool) { m.hidden += delta(on) })
	case Vanish:
		m.scriptVanish(f, pool)
	case Crash:
		m.afterLocked(f.At, func() func() { return m.killAllLocked(func(w *Worker) bool { return w.h.name == f.Name }) })
	default:
		return fmt.Errorf("there is no fault %q", f.Kind)
	}
	return nil
}

func delta(on bool) int {
	if on {
		return 1
	}
	return -1
}

func (m *Machine) scriptSwitch(f Fault, turn func(on bool)) {
	m.afterLocked(f.At, func() func() { turn(true); return nil })
	if f.Until > 0 {
		m.afterLocked(f.Until, func() func() { turn(false); return nil })
	}
}

func (m *Machine) scriptForeign(f Fault, pool int) {
	h := m.newHolder("~"+f.Name, 0, f.Name)
	var steps []step
	for k := 1; k <= rampSteps; k++ {
		steps = append(steps, step{f.At + f.Ramp*time.Duration(k-1)/rampSteps, func() func() {
			if k == 1 {
				m.lastPID++
				h.pid = m.lastPID
				m.holders = append(m.holders, h)
			}
			want := f.Bytes*resource.Bytes(k)/rampSteps - h.mem[pool]
			m.setLocked(h, pool, h.mem[pool]+max(min(want, m.freeLocked(pool)), 0))
			return nil
		}})
	}
	stop := m.sequenceLocked(steps)
	if f.Until > 0 {
		m.afterLocked(f.Until, func() func() {
			stop()
			m.dropLocked(h)
			return nil
		})
	}
}

func (m *Machine) scriptVanish(f Fault, pool int) {
	m.afterLocked(f.At, func() func() {
		m.gone[pool] = true
		return m.killAllLocked(func(w *Worker) bool {
			for _, p := range w.pools {
				if p == pool {
					return true
				}
			}
			return false
		})
	})
	if f.Until > 0 {
		m.afterLocked(f.Until, func() func() { m.gone[pool] = false; return nil })
	}
}

func (m *Machine) killAllLocked(which func(*Worker) bool) func() {
	var then []func()
	for _, w := range append([]*Worker(nil), m.workers...) {
		if which(w) {
			then = append(then, w.dieLocked(ErrCrashed))
		}
	}
	return func() {
		for _, f := range then {
			f()
		}
	}
}

// KillAll ends every worker at once, as the end of the daemon does.
func (m *Machine) KillAll() {
	m.mu.Lock()
	then := m.killAllLocked(func(*Worker) bool { return true })
	m.noteLocked()
	m.mu.Unlock()
	then()
}

// Alive counts the workers whose processes exist.
func (m *Machine) Alive() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.workers)
}
