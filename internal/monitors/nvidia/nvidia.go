// Package nvidia is the monitor for NVIDIA accelerators, through the driver's
// management library (NVML): devices and MIG instances by UUID, their memory,
// load, temperature and power, and what each process holds of them. The host's
// part comes from the cpu monitor.
//
// A fault inside the driver's library ends the process that it runs in, so the
// daemon keeps it in a process of its own (helper.go, Main); session.go is the
// part that talks to NVML. Start with Monitor.Run.
package nvidia

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/cjmd/cjmd/internal/monitors"
	"github.com/cjmd/cjmd/internal/monitors/accel"
	"github.com/cjmd/cjmd/internal/monitors/cpu"
	"github.com/cjmd/cjmd/internal/resource"
)

// Name under which the monitor is registered; Alias is what the Python system
// called it.
const (
	Name  = "nvidia"
	Alias = "sys-mon-nvidia"
)

const vendor = "NVIDIA"

// Options of a Monitor; the zero value reads this machine, in this process.
type Options struct {
	Pace *monitors.Pace
	Root string // of /proc, for tests; "/" when ""
	// Host reads the rest of the machine; the cpu monitor when nil.
	Host monitors.Monitor
	// Helper is the command line of a process that calls Main and talks to the
	// driver in our place. Empty: this process does, and dies of a driver fault.
	Helper []string
	// Library makes the driver's library, for tests; the machine's when nil.
	Library func() nvml.Interface
	// Clock is the time, for tests; time.Now when nil.
	Clock func() time.Time
}

// withDefaults fills in what a session needs, here or in the helper.
func (o Options) withDefaults() Options {
	if o.Root == "" {
		o.Root = "/"
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	return o
}

// Monitor reads NVIDIA accelerators. Run may be called by one goroutine at a
// time.
type Monitor struct {
	o Options
	// Both are owned by Run. seen: there was a device once, so that its absence
	// is a fault and not the nature of the machine. left is closed when the helper
	// of an earlier Run is gone.
	seen bool
	left <-chan struct{}
}

// New returns a monitor; it starts and reads nothing yet.
func New(o Options) *Monitor {
	if o.Pace == nil {
		o.Pace = monitors.NewPace(0, 0)
	}
	o = o.withDefaults()
	if o.Host == nil {
		o.Host = cpu.New(cpu.Options{Pace: o.Pace})
	}
	return &Monitor{o: o}
}

// Constructor is the monitor's row in the list of built-in ones. The program
// that lists it must call Dispatch first thing in main.
func Constructor() monitors.Constructor {
	return monitors.Constructor{Name: Name, Aliases: []string{Alias},
		New: func(p *monitors.Pace) (monitors.Monitor, error) {
			return New(Options{Pace: p, Helper: SelfHelper()}), nil
		}}
}

// Name is "nvidia".
func (m *Monitor) Name() string { return Name }

// source is where readings come from: a session in this process or a helper.
type source interface {
	// read takes one sample. Devices that share the host's memory come with
	// Unified set and without amounts.
	read(ctx context.Context) (accel.Reading, error)
	close() error
}

// Run implements monitors.Monitor. Without driver or device its error wraps
// monitors.ErrUnsupported; when they were there and vanished it is a failure
// like any other, so that they are looked for again soon.
func (m *Monitor) Run(ctx context.Context, out chan<- resource.Snapshot) (err error) {
	src, err := m.open(ctx)
	if err != nil {
		return m.judge(err)
	}
	defer func() { err = errors.Join(err, src.close()) }()
	read := func(ctx context.Context, host resource.Host) (accel.Reading, error) {
		r, err := src.read(ctx)
		if err != nil {
			return r, m.judge(err)
		}
		m.seen = true
		shareHost(r.Devices, host)
		return r, nil
	}
	return accel.Run(ctx, Name, m.o.Host, read, out)
}

// Probe reports whether the machine has what the monitor needs, by taking one
// sample. The error wraps monitors.ErrUnsupported when it has not.
func (m *Monitor) Probe(ctx context.Context) (err error) {
	src, err := m.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	_, err = src.read(ctx)
	return err
}

func (m *Monitor) open(ctx context.Context) (source, error) {
	if len(m.o.Helper) == 0 {
		return openSession(&m.o)
	}
	select {
	case <-m.left:
	default:
		if m.left != nil {
			return nil, errors.New("cannot start the nvidia helper: the one before still hangs in a call of the driver")
		}
	}
	h, err := startHelper(ctx, m.o.Helper)
	if err != nil {
		return nil, err
	}
	m.left = h.gone
	return h, nil
}

// judge makes the loss of a driver that was there a failure.
func (m *Monitor) judge(err error) error {
	if m.seen && errors.Is(err, monitors.ErrUnsupported) {
		return fmt.Errorf("cannot reach the NVIDIA driver, which was there before: %v", err)
	}
	return err
}

func (o *Options) libraries() []nvml.Interface {
	if o.Library != nil {
		return []nvml.Interface{o.Library()}
	}
	return libraries()
}

// shareHost gives devices that have no memory of their own the host's.
func shareHost(devices []resource.Device, host resource.Host) {
	for i := range devices {
		if d := &devices[i]; d.Unified && d.Total == 0 {
			d.Total, d.Free = host.MemTotal, host.MemAvailable
			d.Used = d.Total - d.Free
		}
	}
}
