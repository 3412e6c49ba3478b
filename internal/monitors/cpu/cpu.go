// Package cpu is the monitor for CPU and host memory: gopsutil's figures, with
// memory and CPUs limited by the cgroups that the daemon runs in. It knows no
// accelerator. Start with Monitor.Run; cgroup.go finds the limits.
package cpu

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/cjmd/cjmd/internal/monitors"
	"github.com/cjmd/cjmd/internal/resource"
	pscpu "github.com/shirou/gopsutil/v3/cpu"
	"github.com/shirou/gopsutil/v3/mem"
)

// Name under which the monitor is registered; Alias is what the Python system
// called it.
const (
	Name  = "cpu"
	Alias = "sys-mon-cpu"
)

// primeFor is how long the first CPU reading looks at: without a span before
// it the load would read as zero.
const primeFor = 100 * time.Millisecond

// Options of a Monitor; the zero value reads this machine.
type Options struct {
	Pace *monitors.Pace
	Root string // of /proc and /sys, for tests; "/" when ""
	// Memory and Times read the host, for tests; gopsutil's when nil.
	Memory func(context.Context) (*mem.VirtualMemoryStat, error)
	Swap   func(context.Context) (*mem.SwapMemoryStat, error)
	Times  func(context.Context, bool) ([]pscpu.TimesStat, error)
}

// Monitor reads CPU and memory of the machine. Run may be called by one
// goroutine at a time.
type Monitor struct{ o Options }

// New returns a monitor; it reads nothing yet.
func New(o Options) *Monitor {
	if o.Pace == nil {
		o.Pace = monitors.NewPace(0, 0)
	}
	if o.Root == "" {
		o.Root = "/"
	}
	if o.Memory == nil {
		o.Memory = mem.VirtualMemoryWithContext
	}
	if o.Swap == nil {
		o.Swap = mem.SwapMemoryWithContext
	}
	if o.Times == nil {
		o.Times = pscpu.TimesWithContext
	}
	return &Monitor{o: o}
}

// Constructor is the monitor's row in the list of built-in ones.
func Constructor() monitors.Constructor {
	return monitors.Constructor{Name: Name, Aliases: []string{Alias},
		New: func(p *monitors.Pace) (monitors.Monitor, error) { return New(Options{Pace: p}), nil }}
}

// Name is "cpu".
func (m *Monitor) Name() string { return Name }

// Run implements monitors.Monitor. The first snapshot comes after a tenth of a
// second, so that its CPU load is a measured one.
func (m *Monitor) Run(ctx context.Context, out chan<- resource.Snapshot) error {
	last, err := m.times(ctx)
	if err != nil {
		return err
	}
	prime := time.NewTimer(primeFor)
	defer prime.Stop()
	select {
	case <-prime.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	groups := findGroups(m.o.Root)
	for {
		now, err := m.times(ctx)
		if err != nil {
			return err
		}
		s, err := m.sample(ctx, groups)
		if err != nil {
			return err
		}
		s.Host.CPUPercent = percent(last, now)
		last = now
		select {
		case out <- s:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := m.o.Pace.Wait(ctx); err != nil {
			return err
		}
	}
}

// sample reads memory: the smaller of the host's and each cgroup's above us.
func (m *Monitor) sample(ctx context.Context, groups []group) (resource.Snapshot, error) {
	vm, err := m.o.Memory(ctx)
	if err != nil {
		return resource.Snapshot{}, fmt.Errorf("cannot read host memory: %w", err)
	}
	h := resource.Host{
		CPUs:         runtime.NumCPU(),
		MemTotal:     resource.Bytes(vm.Total),
		MemAvailable: resource.Bytes(vm.Available),
	}
	details := map[string]any{"memory_from": "host", "host_memory_total_mb": h.MemTotal.MB(), "host_memory_available_mb": h.MemAvailable.MB()}
	for i := range groups {
		l := groups[i].limits()
		if l.cpus > 0 {
			h.CPUs = min(h.CPUs, l.cpus)
		}
		if l.max <= 0 {
			continue
		}
		h.MemTotal = min(h.MemTotal, l.max)
		if free := max(l.max-l.used, 0); free < h.MemAvailable {
			h.MemAvailable = free
			details["memory_from"] = "cgroup " + groups[i].path
		}
	}
	h.MemUsed = max(h.MemTotal-h.MemAvailable, 0)
	if sw, err := m.o.Swap(ctx); err == nil { // a box without swap accounting is no less a box
		h.SwapTotal, h.SwapUsed = resource.Bytes(sw.Total), resource.Bytes(sw.Used)
	}
	return resource.Snapshot{At: time.Now(), Monitor: Name, Host: h, GPUVendor: "None", Details: details}, nil
}

func (m *Monitor) times(ctx context.Context) (pscpu.TimesStat, error) {
	ts, err := m.o.Times(ctx, false)
	if err != nil {
		return pscpu.TimesStat{}, fmt.Errorf("cannot read CPU times: %w", err)
	}
	if len(ts) == 0 {
		return pscpu.TimesStat{}, fmt.Errorf("cannot read CPU times: %w", monitors.ErrUnsupported)
	}
	return ts[0], nil
}

// percent is the share of time between a and b in which the CPUs worked.
func percent(a, b pscpu.TimesStat) float64 {
	idleA, idleB := a.Idle+a.Iowait, b.Idle+b.Iowait
	// Guest time is part of user time.
	total := func(t pscpu.TimesStat) float64 {
		return t.User + t.System + t.Nice + t.Irq + t.Softirq + t.Steal + t.Idle + t.Iowait
	}
	span := total(b) - total(a)
	if span <= 0 {
		return 0
	}
	return min(max(100*(1-(idleB-idleA)/span), 0), 100)
}
