package supervisor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/cjmd/cjmd/internal/events"
)

// flipEvery bounds how often ready ⇄ busy is journalled: short calls follow
// each other thousands of times a second and the journal has their own events.
const flipEvery = time.Second

// worker is one instance's worker. Its loop owns every field below inbox; other
// goroutines post functions to the loop and read status and live.
type worker struct {
	s     *Supervisor
	name  string
	log   *WorkerLog
	inbox chan func()
	ended chan struct{} // closed when the loop has returned

	status  atomic.Pointer[Status]
	live    atomic.Pointer[process] // set while loaded
	current atomic.Pointer[process] // set while there is one

	st        State
	since     time.Time
	cause     string
	closing   bool
	quit      chan struct{} // closed with closing
	startGen  int
	proc      *process
	plugin    string // of the newest process, likewise slots
	slots     int
	starting  context.CancelFunc // of a spawn in progress
	ending    *ending            // set once proc is being ended
	stopAsked *ending            // a stop that came while spawning
	calls     map[string]struct{}
	total     int64
	waiters   []chan<- error // EnsureReady
	failing   []chan<- error // EnsureReady of a start that is being ended
	stoppers  []chan<- error // Stop, Kill
	failures  []time.Time
	retryAt   time.Time
	lastExit  *Exit
	lastErr   *StartError // of the newest failed start
	ready     *Ready
	readyAt   time.Time
	loadTime  time.Duration
	progress  Progress
	usage     *Usage
	growth    int64 // largest RSS seen while loading
	pinging   bool
	nextPing  time.Time
	pongAt    time.Time
	frozenCPU time.Duration
	frozenAt  time.Time // CPU time stands still since

	ticker    *time.Ticker // runs while proc exists
	retry     *time.Timer
	drain     *time.Timer
	announced State
	flipAt    time.Time
	flip      *time.Timer

	tasks sync.WaitGroup // goroutines of the loop that are not a process'
}

func newWorker(s *Supervisor, name string, log *WorkerLog) *worker {
	w := &worker{
		s: s, name: name, log: log, inbox: make(chan func(), 16), ended: make(chan struct{}), quit: make(chan struct{}),
		st: Stopped, announced: Stopped, since: time.Now(), calls: map[string]struct{}{},
		ticker: stoppedTicker(), retry: stoppedTimer(), drain: stoppedTimer(), flip: stoppedTimer(),
	}
	w.publish()
	return w
}

func stoppedTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

func stoppedTicker() *time.Ticker {
	t := time.NewTicker(time.Hour)
	t.Stop()
	return t
}

// loop runs until the supervisor closes and no process is left.
func (w *worker) loop() {
	defer w.tasks.Wait()
	defer close(w.ended) // first: what the tasks still have to say is dropped
	for !w.closing || !w.finished() {
		select {
		case f := <-w.inbox:
			f()
		case <-w.ticker.C:
			w.tick()
		case <-w.retry.C:
			if w.st == Backoff {
				w.to(Stopped, "may be started again")
			}
		case <-w.drain.C:
			if w.st == Draining {
				w.end(ending{cause: w.cause, polite: true, byUs: true})
			}
		case <-w.flip.C:
			w.announce(nil)
		}
	}
	w.retry.Stop()
	w.drain.Stop()
	w.flip.Stop()
	w.ticker.Stop()
	w.settle(ErrClosed)
	w.announce(nil)
}

// finished reports whether nothing of a process is left to wait for.
func (w *worker) finished() bool { return w.proc == nil && w.starting == nil }

// post hands f to the loop; false when the loop has ended.
func (w *worker) post(f func()) bool {
	select {
	case w.inbox <- f:
		return true
	case <-w.ended:
		return false
	}
}

// ask posts f with a channel for its outcome and waits for that.
func (w *worker) ask(ctx context.Context, f func(done chan<- error)) error {
	done := make(chan error, 1)
	if !w.post(func() { f(done) }) {
		return ErrClosed
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-w.ended:
		select {
		case err := <-done:
			return err
		default:
			return ErrClosed
		}
	}
}

// to moves along the table and tells everybody. A transition that the table
// lacks is refused: it is a bug of ours, and the state stays true.
func (w *worker) to(next State, cause string) bool {
	if !mayFollow(w.st, next) {
		w.s.o.Log.Error("refused a transition of a worker", zap.String("instance", w.name),
			zap.String("from", string(w.st)), zap.String("to", string(next)), zap.String("cause", cause))
		return false
	}
	flip := (w.st == ReadyState && next == Busy) || (w.st == Busy && next == ReadyState)
	w.st, w.since, w.cause = next, time.Now(), cause
	w.publish()
	if flip && time.Since(w.flipAt) < flipEvery {
		w.flip.Reset(flipEvery - time.Since(w.flipAt))
		return true
	}
	w.announce(w.lastExitFor(next))
	if !flip {
		w.s.wake()
	}
	return true
}

// lastExitFor attaches the exit to the event that ends a process.
func (w *worker) lastExitFor(next State) *Exit {
	switch next {
	case Stopped, Backoff, FailedState:
		return w.lastExit
	default:
		return nil
	}
}

// stateEvent is the data of events.WorkerState.
type stateEvent struct {
	From       State     `json:"from"`
	To         State     `json:"to"`
	Cause      string    `json:"cause,omitempty"`
	PID        int       `json:"pid,omitempty"`
	Generation int       `json:"generation"`
	Exit       *Exit     `json:"exit,omitempty"`
	RetryAt    time.Time `json:"retry_at,omitzero"`
}

// announce journals the state, unless it is what the journal has already.
func (w *worker) announce(exit *Exit) {
	if w.st == w.announced {
		return
	}
	w.flipAt = time.Now()
	d := stateEvent{From: w.announced, To: w.st, Cause: w.cause, Generation: w.startGen, Exit: exit}
	if w.proc != nil {
		d.PID = w.proc.sb.PID()
	}
	if w.st == Backoff {
		d.RetryAt = w.retryAt
	}
	w.announced = w.st
	if w.s.o.Journal != nil {
		w.s.o.Journal.Emit(events.Draft{At: w.since, Kind: events.WorkerState, Instance: w.name, Data: d})
	}
}

// tellWeaker journals what a new process should have been held by and is not.
func (w *worker) tellWeaker(p *process) {
	missing := weaker(p.report)
	if len(missing) == 0 {
		return
	}
	type row struct {
		Mechanism string `json:"mechanism"`
		Detail    string `json:"detail"`
	}
	rows := make([]row, len(missing))
	for i, f := range missing {
		rows[i] = row{f.Mechanism, f.Detail}
		w.log.note("isolation: no %s: %s", f.Mechanism, f.Detail)
	}
	if w.s.o.Journal != nil {
		w.s.o.Journal.Emit(events.Draft{Kind: events.WorkerWeaker, Instance: w.name, Data: map[string]any{"tier": p.tier, "missing": rows}})
	}
}

// publish replaces the copy that readers see.
func (w *worker) publish() {
	st := &Status{
		Instance: w.name, Plugin: w.plugin, Concurrency: w.slots, State: w.st, Since: w.since, Cause: w.cause, Generation: w.startGen,
		Restarts: len(w.failures), CallsTotal: w.total, LastExit: w.lastExit,
	}
	if len(w.calls) > 0 {
		st.Calls = slices.Sorted(maps.Keys(w.calls))
	}
	if w.lastErr != nil {
		st.LastError = w.lastErr.Error()
	}
	if w.st == Backoff {
		st.RetryAt = w.retryAt
	}
	if p := w.proc; p != nil {
		st.StartedAt, st.PID = p.started, p.sb.PID()
		st.Ready, st.ReadyAt, st.LoadMillis, st.Usage = w.ready, w.readyAt, w.loadTime.Milliseconds(), w.usage
		st.Progress, st.ProgressMessage = w.progress.Fraction, w.progress.Message
		st.Tier, st.Isolation, st.Devices = p.tier, p.report, p.devices
	}
	w.status.Store(st)
	w.current.Store(w.proc)
	if w.st.live() {
		w.live.Store(w.proc)
	} else {
		w.live.Store(nil)
	}
}

// snapshot is a reader's copy, with memory as last sampled or, on demand, as of now.
func (w *worker) snapshot(fresh bool) Status {
	st := *w.status.Load()
	p := w.current.Load()
	if p == nil {
		return st
	}
	if next := w.s.placement(w.name); next != nil && !slices.Equal(next, p.devices) {
		st.NextDevices = next
	}
	p.sampleMu.Lock()
	u, cpu := p.usage, p.cpu
	p.sampleMu.Unlock()
	if fresh && time.Since(u.SampledAt) > time.Second {
		u, cpu = p.sample()
	}
	st.RSS, st.PIDs, st.CPUPercent = u.RSS, u.PIDs, cpu
	return st
}

// ensureReady answers done once the worker can take calls, or cannot.
func (w *worker) ensureReady(done chan<- error) {
	if w.closing {
		done <- ErrClosed
		return
	}
	switch w.st {
	case ReadyState, Busy:
		w.notePlace()
		done <- nil
	case Backoff, FailedState:
		done <- w.refusal()
	case Unkillable:
		done <- &StartError{Instance: w.name, Step: "gave_up", Cause: errors.New("processes of the last start cannot be ended")}
	case Stopped:
		w.waiters = append(w.waiters, done)
		w.start("asked for")
	default: // a start in progress is joined; an end in progress is followed by a start
		w.waiters = append(w.waiters, done)
	}
}

// notePlace tells once that the worker was asked for elsewhere than where it is:
// who places it decides whether that is worth a new start.
func (w *worker) notePlace() {
	p, next := w.proc, w.s.placement(w.name)
	if next == nil || slices.Equal(next, p.devices) || slices.Equal(next, p.noted) {
		return
	}
	p.noted = next
	w.log.note("asked for on %s, stays on %s until its next start", strings.Join(next, ", "), strings.Join(p.devices, ", "))
}

// startOver answers done when no start is in progress: nil, or why it failed.
func (w *worker) startOver(done chan<- error) {
	if w.ending == nil && (w.st == Starting || w.st == Initializing) {
		w.waiters = append(w.waiters, done)
		return
	}
	done <- nil
}

// retire ends the loop of a worker that has no process.
func (w *worker) retire(done chan<- error) {
	if !w.finished() {
		done <- fmt.Errorf("cannot forget worker %q: it is %s", w.name, w.st)
		return
	}
	w.closing = true
	done <- nil
}

// refusal is the error of a worker that must not be started now.
func (w *worker) refusal() error {
	e := StartError{Instance: w.name, Step: "gave_up", Cause: fmt.Errorf("it failed %d times", len(w.failures))}
	if w.lastErr != nil {
		e.Call, e.Exit, e.Stderr, e.Cause = w.lastErr.Call, w.lastErr.Exit, w.lastErr.Stderr, w.lastErr.Cause
		if w.lastErr.Step == "isolation" {
			e.Step = "isolation"
		}
	} else if w.lastExit != nil {
		e.Exit = w.lastExit
	}
	if w.st == Backoff {
		e.Step, e.RetryAt = "backoff", w.retryAt
	}
	return &e
}

// start begins a new process; the loop goes on while it is made.
func (w *worker) start(cause string) {
	w.startGen++
	w.ready, w.readyAt, w.loadTime, w.progress, w.usage, w.growth = nil, time.Time{}, 0, Progress{}, nil, 0
	w.lastErr, w.stopAsked = nil, nil
	w.to(Starting, cause)
	ctx, cancel := context.WithCancel(context.Background())
	w.starting = cancel
	gen := w.startGen
	w.tasks.Add(1)
	go func() {
		defer w.tasks.Done()
		p, err := w.spawn(ctx, gen)
		w.post(func() { w.spawned(p, err) })
	}()
}

// spawned takes over what spawn made.
func (w *worker) spawned(p *process, serr *StartError) {
	w.starting()
	w.starting = nil
	asked := w.stopAsked
	w.stopAsked = nil
	if serr != nil {
		w.startFailed(serr, asked)
		return
	}
	w.s.metrics.starts.Inc()
	w.proc, w.ending = p, nil
	w.plugin, w.slots = p.spec.Plugin, p.spec.Concurrency
	w.to(Initializing, "process started")
	w.tellWeaker(p)
	w.ticker.Reset(w.s.o.SampleEvery)
	w.watch(p)
	if asked != nil {
		w.end(*asked)
	}
}

// startFailed follows a start that made no process. A refusal of the catalog
// says nothing about the worker and costs no back-off.
func (w *worker) startFailed(serr *StartError, asked *ending) {
	w.lastErr = serr
	w.log.note("%v", serr)
	kind := ExitStartFailed
	if serr.Step == "isolation" {
		kind = ExitIsolation
	}
	w.lastExit = &Exit{Kind: kind, Reason: serr.Step, At: time.Now()}
	switch {
	case asked != nil:
		w.to(Stopped, asked.cause)
		w.settle(&StartError{Instance: w.name, Step: serr.Step, Cause: errors.New(asked.cause)})
	case serr.Step == "spec":
		w.to(Stopped, serr.Error())
		w.settle(serr)
	case serr.Step == "isolation":
		w.to(FailedState, serr.Error())
		w.settle(serr)
	default:
		w.s.metrics.exits.WithLabelValues(string(kind)).Inc()
		w.failed(serr.Error())
		serr.RetryAt = w.retryAt
		w.settle(serr)
	}
}

// failed counts a failure and moves to backoff or, after too many, to failed.
func (w *worker) failed(cause string) {
	now := time.Now()
	policy := w.s.o.Restart
	w.failures = slices.DeleteFunc(w.failures, func(t time.Time) bool { return now.Sub(t) > policy.Window() })
	w.failures = append(w.failures, now)
	delay, ok := policy.Next(w.failures, w.s.o.Jitter())
	if !ok {
		w.retryAt = time.Time{}
		w.to(FailedState, fmt.Sprintf("gave up after %d failures: %s", len(w.failures), cause))
		return
	}
	w.retryAt = now.Add(delay)
	w.retry.Reset(delay)
	w.to(Backoff, cause)
}

// settle answers everybody who waits: those for readiness get err (nil: ready).
func (w *worker) settle(err error) {
	for _, done := range w.waiters {
		done <- err
	}
	w.waiters = nil
	if w.proc == nil {
		for _, done := range w.stoppers {
			done <- nil
		}
		w.stoppers = nil
	}
}

// watch starts the goroutines that tell the loop what happens to p; finish
// waits for them.
func (w *worker) watch(p *process) {
	p.waits.Add(3)
	go func() {
		defer p.waits.Done()
		st, err := p.sb.Wait()
		if err != nil {
			p.log.note("%v", err)
		}
		p.status = st
		close(p.exited)
		w.post(func() { w.exited(p) })
	}()
	go func() {
		defer p.waits.Done()
		ready, err := p.conn.Ready(context.Background())
		if err == nil {
			w.post(func() { w.becameReady(p, ready) })
		} else if ce := (*CallError)(nil); errors.As(err, &ce) {
			p.callErr = ce
			w.post(func() {
				w.endOf(p, ending{cause: "cannot load: " + ce.Message, step: "load", byUs: true, polite: true, failure: true})
			})
		}
	}()
	go func() {
		defer p.waits.Done()
		<-p.conn.Done()
		// A process that ended closes its socket first: what it died of is the
		// better cause, unless it was its own words that made us hang up.
		if atFault(p.conn.Err()) || !p.waitExit(200*time.Millisecond) {
			w.post(func() {
				w.endOf(p, ending{cause: p.conn.Err().Error(), step: "hello", byUs: true, failure: true})
			})
		}
	}()
}

// atFault reports whether the transport ended the connection because of what
// the worker said. A transport marks such errors by a method.
func atFault(err error) bool {
	var e interface{ PeerAtFault() bool }
	return errors.As(err, &e) && e.PeerAtFault()
}

// exited follows an end that nobody here asked for.
func (w *worker) exited(p *process) {
	cause := fmt.Sprintf("exit code %d", p.status.Code)
	if p.status.Signal != 0 {
		cause = "killed by " + signalName(p.status.Signal)
	}
	e := ending{cause: cause, step: "hello", failure: true}
	if err := p.conn.Err(); atFault(err) { // it ended because we had hung up
		e.cause, e.byUs = err.Error(), true
	}
	w.endOf(p, e)
}

// becameReady ends the load.
func (w *worker) becameReady(p *process, r Ready) {
	if w.proc != p || w.st != Initializing {
		return
	}
	now := time.Now()
	w.ready, w.readyAt, w.loadTime = &r, now, now.Sub(p.started)
	w.s.metrics.load.Observe(w.loadTime.Seconds())
	w.nextPing, w.pongAt, w.pinging = now.Add(w.s.o.PingEvery), now, false
	w.progress = Progress{}
	w.log.note("ready after %v: %s %s (%s)", w.loadTime.Round(time.Millisecond), r.Name, r.Version, r.Runtime)
	w.to(ReadyState, fmt.Sprintf("loaded in %v", w.loadTime.Round(time.Millisecond)))
	w.settle(nil)
}
