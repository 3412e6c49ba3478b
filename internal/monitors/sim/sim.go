// Package sim is the monitor of a simulated machine: it reads the model of
// internal/sim as often as its Pace asks and passes the faults of the model's
// readings on (lag, silence, missing process ids). It never touches the real
// machine. Start with Monitor.Run.
package sim

import (
	"context"

	"github.com/cjmd/cjmd/internal/monitors"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sim"
)

// Name under which the monitor is registered.
const Name = "sim"

// Machine is the model, or a part of the daemon that stands before it.
type Machine interface {
	// Read is one reading; ok is false while the monitor is silent.
	Read(monitor string) (s resource.Snapshot, ok bool)
}

var _ Machine = (*sim.Machine)(nil)

// Monitor reads a model. Run may be called by one goroutine at a time.
type Monitor struct {
	machine Machine
	pace    *monitors.Pace
}

// New returns a monitor of machine; a nil pace samples at the default one.
func New(machine Machine, pace *monitors.Pace) *Monitor {
	if pace == nil {
		pace = monitors.NewPace(0, 0)
	}
	return &Monitor{machine: machine, pace: pace}
}

// Constructor is the monitor's row in the list of built-in ones, for a daemon
// that serves a simulated machine.
func Constructor(machine Machine) monitors.Constructor {
	return monitors.Constructor{Name: Name,
		New: func(p *monitors.Pace) (monitors.Monitor, error) { return New(machine, p), nil }}
}

// Name is "sim".
func (m *Monitor) Name() string { return Name }

// Run implements monitors.Monitor. While the model is silent it sends nothing,
// as a monitor that hangs in its driver.
func (m *Monitor) Run(ctx context.Context, out chan<- resource.Snapshot) error {
	for {
		if s, ok := m.machine.Read(Name); ok {
			select {
			case out <- s:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := m.pace.Wait(ctx); err != nil {
			return err
		}
	}
}
