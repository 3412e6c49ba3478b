package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cjmd/cjmd/internal/api"
	"github.com/cjmd/cjmd/internal/monitors"
	pluginmonitor "github.com/cjmd/cjmd/internal/monitors/plugin"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// pluginMonitor makes the monitor of an instance for the Gate. A name that was
// said to be a plugin's need not be known yet: it is looked for at each sample.
func (d *daemonParts) pluginMonitor(name string, explicit bool, p *monitors.Pace) (monitors.Monitor, error) {
	if !explicit {
		var unknown *plugins.NotFoundError
		if _, _, err := d.catalog.Instance(name); errors.As(err, &unknown) {
			return nil, nil
		}
	}
	return pluginmonitor.New(pluginmonitor.Options{Instance: name, Workers: &monitorWorkers{d: d}, Pace: p, CPUs: runtime.NumCPU()})
}

// Graces of a question that a plugin does not answer: a monitor that hangs is
// soon a fresh worker.
const monitorGrace = time.Second

// monitorWorkers asks plugins for the Gate. The scheduler loads their workers,
// like all; questions go past the queue.
type monitorWorkers struct {
	d     *daemonParts // its scheduler is there before the Gate runs
	calls atomic.Uint64
}

// Ensure implements plugin.Workers.
func (w *monitorWorkers) Ensure(ctx context.Context, instance string) error {
	if st, ok := w.d.supervisor.Status(instance); ok && (st.State == supervisor.ReadyState || st.State == supervisor.Busy) {
		return nil // a load would also clear what is known of its failures
	}
	return w.d.scheduler.Load(ctx, instance)
}

// Request implements plugin.Workers.
func (w *monitorWorkers) Request(ctx context.Context, instance, method string) (json.RawMessage, error) {
	raw, err := w.d.supervisor.Request(ctx, instance, method, nil)
	return raw, monitorError(err)
}

// Execute implements plugin.Workers.
func (w *monitorWorkers) Execute(ctx context.Context, instance string, args json.RawMessage) (json.RawMessage, error) {
	res, err := w.d.supervisor.Execute(ctx, instance, supervisor.Call{
		// No job can bear such an id.
		ID: fmt.Sprintf("%smonitor/%d", api.PrivateCall, w.calls.Add(1)), Attempt: 1, Args: args, Kwargs: json.RawMessage(`{}`),
		CancelGrace: monitorGrace, InterruptGrace: monitorGrace,
	}, discard{})
	if err == nil && res.Cancelled {
		err = context.Cause(ctx)
	}
	return json.RawMessage(res.Payload), monitorError(err)
}

// monitorError says what an error of the supervisor means to a monitor.
func monitorError(err error) error {
	var lost *supervisor.WorkerLostError
	var conn *supervisor.ConnLostError
	switch {
	case errors.Is(err, supervisor.ErrNotSupported):
		return fmt.Errorf("%w: %w", pluginmonitor.ErrNotSupported, err)
	case errors.Is(err, supervisor.ErrNotLoaded), errors.As(err, &lost), errors.As(err, &conn):
		return fmt.Errorf("%w: %w", pluginmonitor.ErrNotLoaded, err)
	}
	return err
}

// discard takes what a private call says besides its answer.
type discard struct{}

func (discard) Chunk(uint64, []byte)              {}
func (discard) Progress(float64, string)          {}
func (discard) Log(supervisor.LogRecord)          {}
func (discard) CancelPhase(supervisor.CancelMode) {}

// tellsMonitor reports whether a manifest says that its plugin is a monitor.
func tellsMonitor(m plugins.Manifest) bool {
	return strings.HasSuffix(m.Interface, "MonitorPlugin") || strings.Contains(strings.ToLower(m.Category), "monitor")
}
