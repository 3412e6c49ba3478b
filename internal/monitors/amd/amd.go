// Package amd is the monitor for AMD accelerators: memory, load, temperature
// and power from what the amdgpu driver shows in /sys, what each process holds
// from the driver's notes about open files in /proc and from the compute
// driver's table; rocm-smi where these do not suffice. An APU, which has no
// memory of its own, is one pool with the host's RAM (Device.Unified). The
// host's part comes from the cpu monitor.
//
// Start with Monitor.Run; sysfs.go finds and reads cards, processes.go and
// fdinfo.go their users, rocmsmi.go is the other source.
package amd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/cjmd/cjmd/internal/monitors"
	"github.com/cjmd/cjmd/internal/monitors/accel"
	"github.com/cjmd/cjmd/internal/monitors/cpu"
	"github.com/cjmd/cjmd/internal/resource"
)

// Name under which the monitor is registered; Alias is what the Python system
// called it.
const (
	Name  = "amd"
	Alias = "sys-mon-amd"
)

const vendor = "AMD"

// Options of a Monitor; the zero value reads this machine.
type Options struct {
	Pace *monitors.Pace
	Root string // of /sys, /proc and /usr/share, for tests; "/" when ""
	// Host reads the rest of the machine; the cpu monitor when nil.
	Host monitors.Monitor
	// Tool is the path of rocm-smi; looked for in PATH and in ROCm's own
	// directory when "".
	Tool string
	// Clock is the time, for tests; time.Now when nil.
	Clock func() time.Time
}

// Monitor reads AMD accelerators. Run may be called by one goroutine at a time.
type Monitor struct {
	o    Options
	seen bool // owned by Run: there was a card once, so its absence is a fault
}

// New returns a monitor; it reads nothing yet.
func New(o Options) *Monitor {
	if o.Pace == nil {
		o.Pace = monitors.NewPace(0, 0)
	}
	if o.Root == "" {
		o.Root = "/"
	}
	if o.Host == nil {
		o.Host = cpu.New(cpu.Options{Pace: o.Pace})
	}
	if o.Tool == "" {
		o.Tool = findTool(o.Root)
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	return &Monitor{o: o}
}

// Constructor is the monitor's row in the list of built-in ones.
func Constructor() monitors.Constructor {
	return monitors.Constructor{Name: Name, Aliases: []string{Alias},
		New: func(p *monitors.Pace) (monitors.Monitor, error) { return New(Options{Pace: p}), nil }}
}

// Name is "amd".
func (m *Monitor) Name() string { return Name }

// Run implements monitors.Monitor. Without a card its error wraps
// monitors.ErrUnsupported; when there was one and it vanished it is a failure
// like any other.
func (m *Monitor) Run(ctx context.Context, out chan<- resource.Snapshot) error {
	b, err := m.open(ctx)
	if err != nil {
		return m.judge(err)
	}
	m.seen = true
	return m.judge(accel.Run(ctx, Name, m.o.Host, b.read, out))
}

// judge makes the loss of a card that was there a failure.
func (m *Monitor) judge(err error) error {
	if m.seen && errors.Is(err, monitors.ErrUnsupported) {
		return fmt.Errorf("cannot find the AMD GPU that was there before: %v", err)
	}
	return err
}

// Probe reports whether the machine has what the monitor needs. The error wraps
// monitors.ErrUnsupported when it has not.
func (m *Monitor) Probe(ctx context.Context) error {
	_, err := m.open(ctx)
	return err
}

func (m *Monitor) open(ctx context.Context) (*box, error) {
	b := &box{o: &m.o, smi: tool{path: m.o.Tool, clock: m.o.Clock}}
	b.users = users{root: m.o.Root, clock: m.o.Clock}
	return b, b.scan(ctx)
}

// rescanEvery is how often cards are listed anew.
const rescanEvery = 30 * time.Second

// box is the cards of the machine. Owned by Run.
type box struct {
	o       *Options
	smi     tool
	users   users
	cards   []card
	viaTool bool // no card shows its memory in /sys: rocm-smi has to
	scanned time.Time
}

// scan lists the cards, from /sys or else from rocm-smi.
func (b *box) scan(ctx context.Context) error {
	b.scanned, b.viaTool = b.o.Clock(), false
	var err error
	if b.cards, err = findCards(b.o.Root); err != nil {
		return err
	}
	nameless := false
	for i := range b.cards {
		nameless = nameless || b.cards[i].name == ""
	}
	if len(b.cards) > 0 && (!nameless || b.smi.path == "") {
		nameAll(b.cards)
		return nil
	}
	if b.smi.path == "" {
		return fmt.Errorf("cannot find an AMD GPU under /sys/class/drm, and there is no rocm-smi: %w", monitors.ErrUnsupported)
	}
	rows, err := b.smi.ask(ctx)
	if len(b.cards) > 0 { // all that is missing is names, which nothing depends on: without an answer they stay so
		takeNames(b.cards, rows)
		nameAll(b.cards)
		return nil
	}
	switch {
	case errors.Is(err, errNoAnswer) || ctx.Err() != nil:
		return err
	case err != nil:
		return fmt.Errorf("cannot find an AMD GPU under /sys/class/drm, nor with rocm-smi (%v): %w", err, monitors.ErrUnsupported)
	case len(rows.devices()) == 0:
		return fmt.Errorf("cannot find an AMD GPU: rocm-smi lists none with memory: %w", monitors.ErrUnsupported)
	}
	b.viaTool = true
	return nil
}

// read takes one sample. A card that cannot be read any more is an error: the
// caller must not go on as if it had never been there.
func (b *box) read(ctx context.Context, host resource.Host) (accel.Reading, error) {
	if b.o.Clock().Sub(b.scanned) >= rescanEvery {
		if err := b.scan(ctx); err != nil {
			return accel.Reading{}, err
		}
	}
	r := accel.Reading{Vendor: vendor, Details: make(map[string]any)}
	if b.viaTool {
		rows, err := b.smi.ask(ctx)
		if err != nil {
			return r, err
		}
		r.Devices, r.Processes = rows.devices(), rows.processes(b.o.Root)
		r.Details["source"], r.Details["rocm_smi_at"] = "rocm-smi", rows.at.UTC().Format(time.RFC3339Nano)
		return r, nil
	}
	var used resource.Bytes
	per := make(map[string]any)
	for i := range b.cards {
		c := &b.cards[i]
		d, more, err := c.read(host)
		if err != nil {
			return r, err
		}
		used += d.Used
		r.Devices = append(r.Devices, d)
		per[c.id] = more
	}
	r.Processes = b.users.list(b.cards, used)
	r.Details["devices"] = per
	maps.Copy(r.Details, b.users.notes())
	return r, nil
}
