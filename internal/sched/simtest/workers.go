package simtest

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sim"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// cancelTime is how long a plugin takes to obey a cancel.
const cancelTime = 100 * time.Millisecond

// workers is a supervisor whose processes are the model's.
type workers struct {
	d       *driver
	m       *sim.Machine
	t       *Trace
	rec     *recorder
	q       *queue
	changed chan struct{}
	all     map[string]*worker
	names   []string // sorted
}

// worker is one instance's process, and what is remembered between two.
type worker struct {
	name    string
	spec    *PluginSpec
	place   []resource.DeviceID // for the next start; nil: none was said
	placed  bool
	proc    *sim.Worker
	state   supervisor.State
	since   time.Time
	started time.Time
	ready   time.Time
	lastErr string
	exit    *supervisor.Exit
	starts  int
	calls   []string
	total   int64
	loaders []*loader
}

// loader waits for a load.
type loader struct {
	w   *wait
	err error
}

func newWorkers(d *driver, m *sim.Machine, t *Trace, rec *recorder, q *queue) *workers {
	ws := &workers{d: d, m: m, t: t, rec: rec, q: q, changed: make(chan struct{}, 1), all: make(map[string]*worker), names: t.Names()}
	for _, name := range ws.names {
		spec := t.Plugins[name]
		ws.all[name] = &worker{name: name, spec: &spec, state: supervisor.Stopped}
	}
	return ws
}

func (ws *workers) set(w *worker, s supervisor.State) {
	w.state, w.since = s, ws.d.now
	ring(ws.changed)
}

// Place says on which devices the instance's next worker is to run.
func (ws *workers) Place(instance string, devices []string) {
	w := ws.all[instance]
	w.place, w.placed = nil, true
	for _, d := range devices {
		w.place = append(w.place, resource.DeviceID(d))
	}
}

// PIDs are the processes of the instance's worker.
func (ws *workers) PIDs(instance string) []int {
	if w := ws.all[instance]; w != nil && w.proc != nil && w.proc.PID() != 0 {
		return []int{w.proc.PID()}
	}
	return nil
}

// EnsureReady implements sched.Workers, as do the following.
func (ws *workers) EnsureReady(ctx context.Context, instance string) error {
	w := ws.all[instance]
	if w == nil {
		return &supervisor.StartError{Instance: instance, Step: "spec", Cause: errors.New("there is no such plugin")}
	}
	for w.state == supervisor.Stopping {
		stopped := ws.d.newWait(ctx)
		w.proc.Stop(stopped.done)
		if err := stopped.wait(); err != nil {
			return err
		}
	}
	switch w.state {
	case supervisor.ReadyState, supervisor.Busy:
		return nil
	case supervisor.Stopped:
		if err := ws.start(w); err != nil {
			return err
		}
	}
	l := &loader{w: ws.d.newWait(ctx)}
	w.loaders = append(w.loaders, l)
	if err := l.w.wait(); err != nil {
		return err
	}
	return l.err
}

func (ws *workers) start(w *worker) error {
	devices := w.place
	if !w.placed {
		devices = ws.emptiest(w.spec.Devices)
	}
	var proc *sim.Worker
	proc, err := ws.m.Start(w.name, w.spec.Program(w.name), devices,
		func(err error) { ws.loaded(w, proc, err) },
		func(err error) { ws.died(w, proc, err) })
	if err != nil {
		return &supervisor.StartError{Instance: w.name, Step: "spawn", Cause: err}
	}
	w.proc, w.starts, w.started = proc, w.starts+1, ws.d.now
	ws.rec.loads++
	ws.set(w, supervisor.Initializing)
	return nil
}

// emptiest chooses the devices with the most free memory, where nobody has.
func (ws *workers) emptiest(n int) []resource.DeviceID {
	var out []resource.DeviceID
	for len(out) < min(n, len(ws.t.Machine.Devices)) {
		best, most := resource.DeviceID(""), resource.Bytes(-1)
		for _, d := range ws.t.Machine.Devices {
			id := resource.DeviceID(d.ID)
			if free := ws.m.Free(id); free > most && !contains(out, id) {
				best, most = id, free
			}
		}
		out = append(out, best)
	}
	return out
}

func contains(ids []resource.DeviceID, id resource.DeviceID) bool {
	for _, x := range ids {
		if x == id {
			return true
		}
	}
	return false
}

func (ws *workers) loaded(w *worker, proc *sim.Worker, err error) {
	if w.proc != proc {
		return
	}
	if err == nil {
		w.ready, w.lastErr = ws.d.now, ""
		ws.set(w, supervisor.ReadyState)
		if len(w.calls) > 0 {
			w.state = supervisor.Busy
		}
	}
	var fail error
	if err != nil {
		fail = startError(w.name, err)
		w.lastErr = fail.Error()
	}
	for _, l := range w.loaders {
		l.err = fail
		l.w.done()
	}
	w.loaders = nil
}

func startError(name string, err error) *supervisor.StartError {
	e := &supervisor.StartError{Instance: name, Step: "load", Cause: err}
	var memory *sim.MemoryError
	switch {
	case errors.As(err, &memory):
		e.Call = &supervisor.CallError{Category: "oom", Type: "OutOfMemoryError", Message: err.Error(), Retriable: true}
	case errors.Is(err, sim.ErrKilled):
		e.Step = "stopped"
	case errors.Is(err, sim.ErrCrashed):
		e.Exit = &supervisor.Exit{Kind: supervisor.ExitSignal, Signal: "SIGSEGV"}
	default:
		e.Call = &supervisor.CallError{Category: "transient", Message: err.Error(), Retriable: true}
	}
	return e
}

func (ws *workers) died(w *worker, proc *sim.Worker, why error) {
	if w.proc != proc {
		return
	}
	w.exit = &supervisor.Exit{Kind: supervisor.ExitSignal, Signal: "SIGSEGV", At: ws.d.now}
	var memory *sim.MemoryError
	switch {
	case errors.Is(why, sim.ErrKilled):
		w.exit = &supervisor.Exit{Kind: supervisor.ExitKilledByUs, At: ws.d.now}
	case errors.As(why, &memory):
		w.exit = &supervisor.Exit{Kind: supervisor.ExitOOMWorker, At: ws.d.now}
	}
	ws.set(w, supervisor.Stopped)
}

// Execute runs a call: the job's own time, as drawn from the seed.
func (ws *workers) Execute(ctx context.Context, instance string, call supervisor.Call, _ supervisor.Sink) (supervisor.Result, error) {
	w := ws.all[instance]
	if w == nil || (w.state != supervisor.ReadyState && w.state != supervisor.Busy) {
		return supervisor.Result{}, supervisor.ErrNotLoaded
	}
	if len(w.calls) >= w.spec.Concurrency {
		return supervisor.Result{}, supervisor.ErrNoSlot
	}
	proc, answer := w.proc, error(nil)
	done := ws.d.newWait(context.Background())
	if err := proc.Run(call.ID, ws.q.runTime(call.ID), func(err error) { answer = err; done.done() }); err != nil {
		return supervisor.Result{}, supervisor.ErrNotLoaded
	}
	stop := ws.d.onCancel(ctx, func() { proc.Cancel(call.ID, cancelTime) })
	w.calls = append(w.calls, call.ID)
	w.total++
	w.state = supervisor.Busy
	ws.rec.runBegan(call.ID, instance, proc.VRAM())
	if err := done.wait(); err != nil {
		return supervisor.Result{}, err
	}
	stop()
	ws.rec.runEnded(call.ID, answer)
	for i, id := range w.calls {
		if id == call.ID {
			w.calls = append(w.calls[:i:i], w.calls[i+1:]...)
			break
		}
	}
	if w.state == supervisor.Busy && len(w.calls) == 0 {
		w.state = supervisor.ReadyState
	}
	return ws.answer(ctx, w, answer)
}

func (ws *workers) answer(ctx context.Context, w *worker, err error) (supervisor.Result, error) {
	var memory *sim.MemoryError
	switch {
	case err == nil:
		return supervisor.Result{Payload: []byte("null")}, nil
	case errors.Is(err, sim.ErrKilled) && ctx.Err() != nil && w.state != supervisor.Stopped:
		return supervisor.Result{Cancelled: true}, nil
	case errors.As(err, &memory) && !w.spec.OOMKills:
		return supervisor.Result{}, &supervisor.CallError{Category: "oom", Type: "OutOfMemoryError", Message: err.Error(), Retriable: true}
	}
	lost := &supervisor.WorkerLostError{Instance: w.name, Exit: supervisor.Exit{Kind: supervisor.ExitSignal, Signal: "SIGSEGV", At: ws.d.now}}
	if memory != nil {
		lost.Exit = supervisor.Exit{Kind: supervisor.ExitOOMWorker, At: ws.d.now}
	}
	return supervisor.Result{}, lost
}

func (ws *workers) Stop(ctx context.Context, instance, cause string) error {
	w := ws.all[instance]
	if w == nil || w.proc == nil || w.state == supervisor.Stopped {
		return nil
	}
	ws.rec.stops++
	ws.set(w, supervisor.Stopping)
	done := ws.d.newWait(ctx)
	w.proc.Stop(done.done)
	return done.wait()
}

func (ws *workers) Reset(string)  {}
func (ws *workers) Forget(string) {}

func (ws *workers) Configure(context.Context, string, json.RawMessage, json.RawMessage) (supervisor.Applied, error) {
	return supervisor.AppliedAtStart, nil
}

// Request answers release() for the plugins that have it.
func (ws *workers) Request(_ context.Context, instance, method string, _ json.RawMessage) (json.RawMessage, error) {
	w := ws.all[instance]
	if w == nil || w.proc == nil || w.state == supervisor.Stopped {
		return nil, supervisor.ErrNotLoaded
	}
	if method != "release" || !w.spec.Keeps {
		return nil, supervisor.ErrNotSupported
	}
	w.proc.Release()
	ws.rec.releases++
	return []byte("null"), nil
}

func (ws *workers) Status(instance string) (supervisor.Status, bool) {
	w := ws.all[instance]
	if w == nil || w.starts == 0 {
		return supervisor.Status{}, false
	}
	st := supervisor.Status{Instance: w.name, Plugin: w.name, State: w.state, Since: w.since, Generation: w.starts, StartedAt: w.started,
		Calls: w.calls, CallsTotal: w.total, Concurrency: w.spec.Concurrency, LastError: w.lastErr, LastExit: w.exit}
	if w.state == supervisor.Stopped {
		return st, true
	}
	st.PID, st.RSS = w.proc.PID(), int64(w.proc.RAM())
	if w.state != supervisor.Initializing {
		st.ReadyAt, st.LoadMillis = w.ready, w.ready.Sub(w.started).Milliseconds()
		st.Ready = &supervisor.Ready{Name: w.name, PID: st.PID, Capabilities: []string{"cancel"}}
		if w.spec.Keeps {
			st.Ready.Capabilities = append(st.Ready.Capabilities, "release")
		}
	}
	if w.spec.ReportsUsage {
		st.Usage = &supervisor.Usage{Devices: make(map[string]int64), MaxRSS: st.RSS, Reported: ws.d.now}
		for dev, n := range w.proc.VRAM() {
			st.Usage.Devices[string(dev)] = int64(n)
		}
	}
	return st, true
}

func (ws *workers) List() []supervisor.Status {
	var out []supervisor.Status
	for _, name := range ws.names {
		if st, ok := ws.Status(name); ok {
			out = append(out, st)
		}
	}
	return out
}

func (ws *workers) Changed() <-chan struct{} { return ws.changed }
