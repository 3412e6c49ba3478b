package supervisor

import (
	"context"
	"maps"
	"slices"
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
