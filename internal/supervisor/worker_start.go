package supervisor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

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
