// Package monitortest is the conformance suite of monitors.Monitor. A new
// monitor's test calls Run with a constructor; monitors that the machine lacks
// the means for are skipped with their own reason.
package monitortest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/monitors"
	"github.com/cjmd/cjmd/internal/resource"
)

// patience bounds every wait; a monitor that needs longer does not conform.
const patience = 10 * time.Second

// Run checks what every monitor promises. make returns a new monitor that
// samples as fast as it can.
func Run(t *testing.T, make func(t *testing.T) monitors.Monitor) {
	t.Run("FirstSnapshotIsComplete", func(t *testing.T) {
		m := make(t)
		r := start(t, m)
		check(t, m, r.next(t))
		r.stop(t)
	})
	t.Run("KeepsSampling", func(t *testing.T) {
		m := make(t)
		r := start(t, m)
		first := r.next(t)
		second := r.next(t)
		if second.At.Before(first.At) {
			t.Errorf("second snapshot is of %v, before the first of %v", second.At, first.At)
		}
		check(t, m, second)
		r.stop(t)
	})
	t.Run("EndsThoughNobodyReads", func(t *testing.T) {
		r := start(t, make(t))
		r.next(t)
		r.stop(t) // and out is still open: stop would see a closed channel
	})
	t.Run("RunsAgainAfterItEnded", func(t *testing.T) {
		m := make(t)
		for range 2 {
			r := start(t, m)
			check(t, m, r.next(t))
			r.stop(t)
		}
	})
	t.Run("EndsBeforeItBegan", func(t *testing.T) {
		r := start(t, make(t))
		r.stop(t)
	})
}

type running struct {
	out    chan resource.Snapshot
	cancel context.CancelFunc
	ended  chan error
}

func start(t *testing.T, m monitors.Monitor) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{out: make(chan resource.Snapshot), cancel: cancel, ended: make(chan error, 1)}
	go func() { r.ended <- m.Run(ctx, r.out) }()
	return r
}

func (r *running) next(t *testing.T) resource.Snapshot {
	t.Helper()
	select {
	case s, ok := <-r.out:
		if !ok {
			t.Fatal("the monitor closed its channel")
		}
		return s
	case err := <-r.ended:
		if errors.Is(err, monitors.ErrUnsupported) {
			t.Skip(err)
		}
		t.Fatalf("Run ended with %v", err)
	case <-time.After(patience):
		t.Fatal("no snapshot came")
	}
	return resource.Snapshot{}
}

func (r *running) stop(t *testing.T) {
	t.Helper()
	r.cancel()
	select {
	case <-r.ended:
	case <-time.After(patience):
		t.Fatal("Run did not return after its context ended")
	}
	select {
	case _, ok := <-r.out:
		if !ok {
			t.Error("the monitor closed its channel")
		}
	default:
	}
}

// check holds a snapshot against what readers of snapshots rely on.
func check(t *testing.T, m monitors.Monitor, s resource.Snapshot) {
	t.Helper()
	switch {
	case s.Monitor != m.Name():
		t.Errorf("snapshot is signed %q, the monitor is %q", s.Monitor, m.Name())
	case s.At.IsZero():
		t.Error("snapshot has no time")
	case s.Host.CPUs < 1 || s.Host.MemTotal <= 0:
		t.Errorf("snapshot has no host: %+v", s.Host)
	case s.Host.MemAvailable < 0 || s.Host.MemAvailable > s.Host.MemTotal:
		t.Errorf("available memory %d of %d", s.Host.MemAvailable, s.Host.MemTotal)
	case s.Host.CPUPercent < 0 || s.Host.CPUPercent > 100:
		t.Errorf("CPU load %v %%", s.Host.CPUPercent)
	case s.GPUVendor == "":
		t.Error("GPUVendor is empty; a machine without one says None")
	case s.GPUVendor == "None" && len(s.Devices) > 0:
		t.Errorf("%d devices of vendor None", len(s.Devices))
	}
	checkDevices(t, s)
}

func checkDevices(t *testing.T, s resource.Snapshot) {
	t.Helper()
	seen, places := make(map[resource.DeviceID]bool), make(map[int]bool)
	for _, d := range s.Devices {
		if d.ID == "" || d.ID == resource.HostDevice || seen[d.ID] {
			t.Errorf("device id %q is empty, reserved or used twice", d.ID)
		}
		if d.Index < 0 || places[d.Index] {
			t.Errorf("device %s has index %d, which is none or used twice", d.ID, d.Index)
		}
		seen[d.ID], places[d.Index] = true, true
		if d.Total <= 0 || d.Free < 0 || d.Used < 0 || d.Used+d.Free > d.Total {
			t.Errorf("device %s: %d used and %d free of %d", d.ID, d.Used, d.Free, d.Total)
		}
		if d.LoadPercent < 0 || d.LoadPercent > 100 {
			t.Errorf("device %s: load %v %%", d.ID, d.LoadPercent)
		}
	}
	for _, p := range s.Processes {
		if p.PID <= 0 || p.Memory < 0 || p.MemoryUnknown && p.Memory != 0 {
			t.Errorf("process %+v", p)
		}
		if p.Device != "" && !seen[p.Device] {
			t.Errorf("process %+v is on a device that is not listed", p)
		}
	}
}
