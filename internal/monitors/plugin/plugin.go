// Package plugin makes a monitor of a plugin: any loaded instance that tells the
// state of the machine, by the typed hooks (get_system_status, list_processes)
// or by the older way, an execute that is called with "get_system_status". The
// instance is named, not held: a worker that was reloaded, or is installed only
// later, is found at the next sample. Start with Monitor.Run; stats.go reads
// what plugins answer.
package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cjmd/cjmd/internal/monitors"
	"github.com/cjmd/cjmd/internal/resource"
)

const (
	// DefaultTimeout bounds one question to the plugin.
	DefaultTimeout = 5 * time.Second
	// failLimit questions in a row without an answer end the run: until then the
	// Gate sees silence, which it knows how to judge.
	failLimit = 3
)

// Errors of Workers. Decide by errors.Is.
var (
	ErrNotSupported = errors.New("not offered by the plugin")
	ErrNotLoaded    = errors.New("worker is not loaded")
)

// Workers is what the monitor needs of those who run plugins.
type Workers interface {
	// Ensure brings the instance's worker up and returns when it is ready.
	Ensure(ctx context.Context, instance string) error
	// Request asks a hook of a loaded worker. ErrNotSupported, ErrNotLoaded.
	Request(ctx context.Context, instance, method string) (json.RawMessage, error)
	// Execute runs one call beside the job queue; args is a JSON array. It returns
	// when the work has stopped, also after ctx ended. ErrNotLoaded.
	Execute(ctx context.Context, instance string, args json.RawMessage) (json.RawMessage, error)
}

// Options of a Monitor.
type Options struct {
	Instance string
	Workers  Workers
	Pace     *monitors.Pace
	Timeout  time.Duration // of one question; 0: DefaultTimeout
	CPUs     int           // of the machine: plugins do not tell
}

// Monitor asks one plugin. Run may be called by one goroutine at a time.
type Monitor struct {
	o Options
	// loaded, typed and lists are owned by Run. typed says that the plugin has the
	// typed hook, lists that it lists processes by one; both are found out again
	// whenever its worker was started.
	loaded, typed, lists bool
}

// New returns a monitor; it loads nothing yet.
func New(o Options) (*Monitor, error) {
	if o.Instance == "" || o.Workers == nil || o.CPUs < 1 {
		return nil, errors.New("cannot make a monitor of a plugin: its instance, its workers or the number of CPUs is missing")
	}
	if o.Pace == nil {
		o.Pace = monitors.NewPace(0, 0)
	}
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	return &Monitor{o: o}, nil
}

// Name is "plugin:" and the instance.
func (m *Monitor) Name() string { return monitors.PluginPrefix + m.o.Instance }

// Instance is the plugin's: its worker must stay while the monitor is registered.
func (m *Monitor) Instance() string { return m.o.Instance }

// Run implements monitors.Monitor. It loads the plugin where it is not loaded,
// and ends with an error after three questions in a row without an answer. A
// plugin that is no monitor ends it with monitors.ErrUnsupported.
func (m *Monitor) Run(ctx context.Context, out chan<- resource.Snapshot) error {
	m.loaded = false
	fails := 0
	for {
		began := time.Now()
		s, err := m.read(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, monitors.ErrUnsupported):
			return err
		case err != nil:
			if fails++; fails == failLimit {
				return err
			}
		default:
			fails = 0
			select {
			case out <- s:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := m.rest(ctx, time.Since(began)); err != nil {
			return err
		}
	}
}

// rest waits for the next sample. A plugin that takes long to answer (it may
// start programs) is at work half of the time at most.
func (m *Monitor) rest(ctx context.Context, took time.Duration) error {
	t := time.NewTimer(took)
	defer t.Stop()
	if err := m.o.Pace.Wait(ctx); err != nil {
		return err
	}
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// read takes one sample. A worker that went away since the last one is loaded
// again, once.
func (m *Monitor) read(ctx context.Context) (resource.Snapshot, error) {
	for again := false; ; again = true {
		if !m.loaded {
			if err := m.o.Workers.Ensure(ctx, m.o.Instance); err != nil {
				return resource.Snapshot{}, fmt.Errorf("cannot load plugin %q: %w", m.o.Instance, err)
			}
			m.loaded, m.typed, m.lists = true, true, true
		}
		s, err := m.sample(ctx)
		if err == nil || !errors.Is(err, ErrNotLoaded) || again {
			return s, err
		}
		m.loaded = false
	}
}

func (m *Monitor) sample(ctx context.Context) (resource.Snapshot, error) {
	raw, err := m.status(ctx)
	if err != nil {
		return resource.Snapshot{}, err
	}
	at := time.Now()
	st, err := readStatus(raw)
	if err != nil {
		return resource.Snapshot{}, fmt.Errorf("cannot use the status of plugin %q: %w", m.o.Instance, err)
	}
	procs, err := m.processes(ctx, st)
	if err != nil {
		return resource.Snapshot{}, err
	}
	return st.snapshot(m.Name(), m.o.CPUs, at, procs), nil
}

// status asks by the typed hook, or as the plugin's predecessors were asked.
func (m *Monitor) status(ctx context.Context) (json.RawMessage, error) {
	if m.typed {
		raw, err := m.ask(ctx, "system_status")
		if !errors.Is(err, ErrNotSupported) {
			return raw, err
		}
		m.typed = false
	}
	limit, cancel := context.WithTimeout(ctx, m.o.Timeout)
	defer cancel()
	raw, err := m.o.Workers.Execute(limit, m.o.Instance, json.RawMessage(`["get_system_status"]`))
	switch {
	case errors.Is(err, ErrNotSupported):
		return nil, fmt.Errorf("plugin %q is no monitor: %w", m.o.Instance, monitors.ErrUnsupported)
	case err != nil && limit.Err() != nil && ctx.Err() == nil:
		return nil, m.silent("get_system_status")
	case err != nil:
		return nil, fmt.Errorf("cannot ask plugin %q for the status of the system: %w", m.o.Instance, err)
	}
	return raw, nil
}

// ask asks a hook.
func (m *Monitor) ask(ctx context.Context, method string) (json.RawMessage, error) {
	limit, cancel := context.WithTimeout(ctx, m.o.Timeout)
	defer cancel()
	raw, err := m.o.Workers.Request(limit, m.o.Instance, method)
	switch {
	case err != nil && limit.Err() != nil && ctx.Err() == nil:
		return nil, m.silent(method)
	case err != nil:
		return nil, fmt.Errorf("cannot ask plugin %q for %s: %w", m.o.Instance, method, err)
	}
	return raw, nil
}

func (m *Monitor) silent(method string) error {
	return fmt.Errorf("plugin %q did not answer %s within %v", m.o.Instance, method, m.o.Timeout)
}

// processes asks for the users of accelerators; a plugin without the hook may
// have told them in the details of its status.
func (m *Monitor) processes(ctx context.Context, st *status) ([]processStats, error) {
	if !m.lists {
		return st.processes, nil
	}
	raw, err := m.ask(ctx, "processes")
	if errors.Is(err, ErrNotSupported) {
		m.lists = false
		return st.processes, nil
	}
	if err != nil {
		return nil, err
	}
	procs, err := readProcesses(raw)
	if err != nil {
		return nil, fmt.Errorf("cannot use the processes of plugin %q: %w", m.o.Instance, err)
	}
	if len(procs) == 0 { // the default of the typed hook is an empty list
		return st.processes, nil
	}
	return procs, nil
}
