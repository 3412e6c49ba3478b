package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/isolation"
)

// ErrClosed answers every call after the supervisor began to shut down.
var ErrClosed = errors.New("the supervisor is shutting down")

// ErrNoSlot answers an Execute beyond the worker's concurrency: whoever calls
// owns the slots and has miscounted.
var ErrNoSlot = errors.New("no execute slot is free on the worker")

// Options of a Supervisor. Zero durations mean the default in the comment.
type Options struct {
	Catalog    Catalog
	Transports []Transport
	Tiers      []isolation.Tier // weakest first
	Journal    events.Recorder  // every change of state; nil: none
	LogRoot    string           // directory of worker logs: LogRoot/<instance>/worker.log
	LogLimits  LogLimits
	Log        *zap.Logger           // nil: none
	Metrics    prometheus.Registerer // nil: none
	Restart    RestartPolicy         // nil: DefaultRestart
	Jitter     func() float64        // in [-1, 1]; nil: random

	SampleEvery time.Duration                       // memory, stall and liveness are looked at; 1 s
	PingEvery   time.Duration                       // 5 s
	PongTimeout time.Duration                       // silence that makes a worker unresponsive; 15 s
	FrozenAfter time.Duration                       // unresponsive without CPU progress: killed; 60 s
	DrainWait   time.Duration                       // Stop waits so long for calls in flight; 5 s
	KillWait    time.Duration                       // a tree that outlives this is unkillable; 10 s
	CancelGrace time.Duration                       // where a Call gives none; 3 s
	Interrupt   time.Duration                       // likewise; 2 s
	OOMKilled   func(pid int, since time.Time) bool // kernel evidence; nil: the kernel's log
}

func (o *Options) setDefaults() {
	orElse := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	orElse(&o.SampleEvery, time.Second)
	orElse(&o.PingEvery, 5*time.Second)
	orElse(&o.PongTimeout, 15*time.Second)
	orElse(&o.FrozenAfter, time.Minute)
	orElse(&o.DrainWait, 5*time.Second)
	orElse(&o.KillWait, 10*time.Second)
	orElse(&o.CancelGrace, 3*time.Second)
	orElse(&o.Interrupt, 2*time.Second)
	if o.LogLimits.TotalBytes <= 0 {
		o.LogLimits.TotalBytes = 1 << 30
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.Restart == nil {
		o.Restart = DefaultRestart()
	}
	if o.Jitter == nil {
		o.Jitter = func() float64 { return 2*rand.Float64() - 1 }
	}
	if o.OOMKilled == nil {
		o.OOMKilled = kernelKilled
	}
}

// Supervisor runs workers. Safe for concurrent use.
type Supervisor struct {
	o          Options
	transports map[string]Transport
	metrics    *metrics
	quota      *logQuota
	changed    chan struct{}

	mu      sync.Mutex
	workers map[string]*worker    // guarded by mu
	logs    map[string]*WorkerLog // guarded by mu
	places  map[string][]string   // guarded by mu; the slices are never changed
	closed  bool                  // guarded by mu
	loops   sync.WaitGroup        // one per worker; Add under mu
}

// New returns a Supervisor that has started nothing.
func New(o Options) (*Supervisor, error) {
	switch {
	case o.Catalog == nil:
		return nil, errors.New("cannot make a supervisor: no catalog")
	case len(o.Transports) == 0:
		return nil, errors.New("cannot make a supervisor: no transport")
	case len(o.Tiers) == 0:
		return nil, errors.New("cannot make a supervisor: no isolation tier")
	case o.LogRoot == "":
		return nil, errors.New("cannot make a supervisor: no log directory")
	}
	o.setDefaults()
	s := &Supervisor{
		o: o, transports: map[string]Transport{}, workers: map[string]*worker{}, logs: map[string]*WorkerLog{},
		places: map[string][]string{},
		quota:  &logQuota{root: o.LogRoot, total: o.LogLimits.TotalBytes}, changed: make(chan struct{}, 1),
	}
	for _, t := range o.Transports {
		s.transports[t.Name()] = t
	}
	s.metrics = newMetrics(o.Metrics, s)
	return s, nil
}

// Run blocks until ctx ends, then stops every worker, politely first, and
// returns when none is left. Workers may be used before Run is called.
func (s *Supervisor) Run(ctx context.Context) error {
	<-ctx.Done()
	s.mu.Lock()
	s.closed = true
	workers := make([]*worker, 0, len(s.workers))
	for _, w := range s.workers {
		workers = append(workers, w)
	}
	s.mu.Unlock()
	for _, w := range workers {
		w.post(w.shutdown)
	}
	s.loops.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.logs {
		l.close()
	}
	var err error
	for _, w := range workers {
		if st := w.status.Load(); st.State == Unkillable {
			err = errors.Join(err, fmt.Errorf("cannot end the processes of worker %q: %s", w.name, st.LastError))
		}
	}
	return err
}

// worker returns the worker of instance, making it on first use.
func (s *Supervisor) worker(instance string) (*worker, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	w := s.workers[instance]
	if w == nil {
		w = newWorker(s, instance, s.logLocked(instance))
		s.workers[instance] = w
		s.loops.Add(1)
		go func() {
			defer s.loops.Done()
			w.loop()
		}()
	}
	return w, nil
}

// known returns the worker of instance, nil when it was never asked for.
func (s *Supervisor) known(instance string) *worker {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.workers[instance]
}

func (s *Supervisor) logLocked(instance string) *WorkerLog {
	l := s.logs[instance]
	if l == nil {
		dir := filepath.Join(s.o.LogRoot, strings.ReplaceAll(instance, string(filepath.Separator), "%2F"))
		l = openWorkerLog(dir, s.o.LogLimits, s.quota, s.o.Log.With(zap.String("instance", instance)),
			func(n int) { s.metrics.dropped.Add(float64(n)) })
		s.logs[instance] = l
	}
	return l
}

// Logs returns the log of an instance; also of one that was not started since
// the daemon was. ok is false after shutdown.
func (s *Supervisor) Logs(instance string) (l LogSource, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, false
	}
	return s.logLocked(instance), true
}

// EnsureReady returns when the worker of instance can take calls, starting it
// when it is not running. Callers join a start in progress. It fails with
// *StartError: at once while backing off (Step "backoff", RetryAt) or given up
// ("gave_up"). When ctx ends first the start goes on without the caller.
func (s *Supervisor) EnsureReady(ctx context.Context, instance string) error {
	w, err := s.worker(instance)
	if err != nil {
		return err
	}
	return w.ask(ctx, w.ensureReady)
}

// Place names the accelerators, in order, that the next start of instance's
// worker is given; nil: nobody places it. A worker that is loaded keeps what it
// has (Status.Devices) until it is started anew.
func (s *Supervisor) Place(instance string, devices []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.places[instance] = slices.Clone(devices)
}

func (s *Supervisor) placement(instance string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.places[instance]
}

// PIDs lists the processes of instance's worker, its children and all that came
// of them, sorted. It looks at once (a quarter of a second old at most) and in
// every state: a worker has memory also while it loads and while it ends.
func (s *Supervisor) PIDs(instance string) []int {
	w := s.known(instance)
	if w == nil {
		return nil
	}
	p := w.current.Load()
	if p == nil {
		return nil
	}
	return p.sb.PIDs()
}

// Stop ends the worker: calls in flight may finish for a moment, then it is
// told to end, then its tree is killed. nil when no process is left. A worker
// that was never started is stopped.
func (s *Supervisor) Stop(ctx context.Context, instance, cause string) error {
	w := s.known(instance)
	if w == nil {
		return nil
	}
	return w.ask(ctx, func(done chan<- error) { w.stop(done, cause, true) })
}

// Kill is Stop without politeness.
func (s *Supervisor) Kill(ctx context.Context, instance, cause string) error {
	w := s.known(instance)
	if w == nil {
		return nil
	}
	return w.ask(ctx, func(done chan<- error) { w.stop(done, cause, false) })
}

// Reset forgets the worker's failures: one that backs off or was given up may
// be started again. It does not wait.
func (s *Supervisor) Reset(instance string) {
	if w := s.known(instance); w != nil {
		w.post(w.reset)
	}
}

// Forget ends the bookkeeping of an instance that is no more: its loop and its
// log, whose files stay. An instance whose worker is not stopped is kept.
func (s *Supervisor) Forget(instance string) {
	w := s.known(instance)
	if w != nil && w.ask(context.Background(), w.retire) != nil {
		return
	}
	s.mu.Lock()
	if s.closed || s.workers[instance] != w {
		s.mu.Unlock()
		return
	}
	delete(s.workers, instance)
	delete(s.places, instance)
	l := s.logs[instance]
	delete(s.logs, instance)
	s.mu.Unlock()
	if l != nil {
		l.close()
	}
}

// Configure tells a loaded worker its new configuration. One that is being
// started has taken the old one along: it is waited for. A start that fails
// leaves nothing to be told.
func (s *Supervisor) Configure(ctx context.Context, instance string, old, updated json.RawMessage) (Applied, error) {
	if w := s.known(instance); w != nil {
		if err := w.ask(ctx, w.startOver); err != nil && ctx.Err() != nil {
			return "", fmt.Errorf("cannot configure worker %q while it starts: %w", instance, err)
		}
	}
	params, err := json.Marshal(map[string]json.RawMessage{"old": old, "new": updated})
	if err != nil {
		return "", fmt.Errorf("cannot configure worker %q: %w", instance, err)
	}
	answer, err := s.Request(ctx, instance, "configure", params)
	if errors.Is(err, ErrNotLoaded) {
		return AppliedAtStart, nil
	}
	if err != nil {
		return "", err
	}
	var a struct {
		Applied Applied `json:"applied"`
	}
	if err := json.Unmarshal(answer, &a); err != nil {
		return "", fmt.Errorf("cannot read what worker %q answered to configure: %w", instance, err)
	}
	return a.Applied, nil
}

// Request is a control call to a loaded worker.
func (s *Supervisor) Request(ctx context.Context, instance, method string, params json.RawMessage) (json.RawMessage, error) {
	w := s.known(instance)
	if w == nil {
		return nil, ErrNotLoaded
	}
	p := w.live.Load()
	if p == nil {
		return nil, ErrNotLoaded
	}
	answer, err := p.conn.Request(ctx, method, params)
	var lost *ConnLostError
	if errors.As(err, &lost) {
		return nil, p.lost(ctx, w.name)
	}
	return answer, err
}

// Status returns a copy of the worker's state; ok is false when it was never
// asked for. Memory is sampled when the last sample is older than a second.
func (s *Supervisor) Status(instance string) (st Status, ok bool) {
	w := s.known(instance)
	if w == nil {
		return Status{}, false
	}
	return w.snapshot(true), true
}

// List returns every worker that was ever asked for, by name. Memory is as last sampled.
func (s *Supervisor) List() []Status {
	s.mu.Lock()
	workers := make([]*worker, 0, len(s.workers))
	for _, w := range s.workers {
		workers = append(workers, w)
	}
	s.mu.Unlock()
	out := make([]Status, 0, len(workers))
	for _, w := range workers {
		out = append(out, w.snapshot(false))
	}
	slices.SortFunc(out, func(a, b Status) int { return strings.Compare(a.Instance, b.Instance) })
	return out
}

// Changed wakes one reader after changes of state other than ready ⇄ busy.
// Wake-ups merge.
func (s *Supervisor) Changed() <-chan struct{} { return s.changed }

func (s *Supervisor) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}
