package supervisor

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// stop answers done when no process is left.
func (w *worker) stop(done chan<- error, cause string, polite bool) {
	e := ending{cause: cause, polite: polite, byUs: true}
	if w.st == Unkillable {
		done <- fmt.Errorf("cannot stop worker %q: %s", w.name, w.cause)
		return
	}
	if w.finished() {
		if w.st == Backoff || w.st == FailedState {
			w.forgive(cause)
		}
		done <- nil
		return
	}
	w.stoppers = append(w.stoppers, done)
	switch {
	case w.st == Starting:
		w.stopAsked = &e
		w.starting()
	case w.ending != nil:
		if !polite {
			w.hasten()
		}
	case polite && len(w.calls) > 0:
		if w.st != Draining {
			w.to(Draining, cause)
			w.drain.Reset(w.s.o.DrainWait)
		}
	default:
		w.end(e)
	}
}

// hasten turns a polite end into a kill.
func (w *worker) hasten() {
	p := w.proc
	w.ending.cause += " (then killed)"
	if err := p.sb.Signal(syscall.SIGKILL); err != nil {
		w.log.note("%v", err)
	}
}

// shutdown is the end of the supervisor.
func (w *worker) shutdown() {
	w.closing = true
	close(w.quit)
	w.settle(ErrClosed)
	if w.st == Starting {
		w.stopAsked = &ending{cause: "shutdown", byUs: true}
		w.starting()
		return
	}
	if w.proc != nil && w.ending == nil {
		w.end(ending{cause: "shutdown", polite: true, byUs: true})
	}
}

// reset clears what keeps the worker from being started.
func (w *worker) reset() {
	w.failures = nil
	if w.st == Backoff || w.st == FailedState {
		w.forgive("reset")
	} else {
		w.publish()
	}
}

func (w *worker) forgive(cause string) {
	w.failures = nil
	w.retryAt = time.Time{}
	w.retry.Stop()
	w.to(Stopped, cause)
}

// endOf is end for messages that may come late.
func (w *worker) endOf(p *process, e ending) {
	if w.proc == p {
		w.end(e)
	}
}

// end begins the end of the present process. The first cause counts.
func (w *worker) end(e ending) {
	if w.ending != nil || w.proc == nil {
		return
	}
	p := w.proc
	if w.st == Busy { // calls are cut off: there is nobody to be polite to
		e.polite = false
	}
	w.ending = &e
	w.drain.Stop()
	if w.readyAt.IsZero() { // those who wait for this start, not for a later one
		w.failing, w.waiters = w.waiters, nil
	}
	if e.polite {
		w.to(Stopping, e.cause)
	} else {
		w.to(Killing, e.cause)
	}
	w.tasks.Add(1)
	go func() {
		defer w.tasks.Done()
		if e.polite {
			p.persuade()
			w.post(func() { w.to(Killing, e.cause) })
		}
		gone := p.finish(w.s.o.KillWait, func(err error) { w.post(func() { w.unkillable(err) }) }, w.quit)
		w.post(func() { w.buried(p, gone) })
	}()
}

// unkillable says that the tree survives; finish goes on trying.
func (w *worker) unkillable(err error) {
	w.lastErr = &StartError{Instance: w.name, Step: "gave_up", Cause: err}
	if w.st == Killing {
		w.s.o.Log.Error("cannot end the processes of a worker", zap.String("instance", w.name), zap.Error(err))
		w.to(Unkillable, err.Error())
	}
	for _, done := range w.stoppers {
		done <- fmt.Errorf("cannot stop worker %q: %w", w.name, err)
	}
	w.stoppers = nil
	w.waiters = append(w.waiters, w.failing...)
	w.failing = nil
	w.settle(w.lastErr)
}

// buried follows the end of p's last process. gone is false when the supervisor
// closed before that.
func (w *worker) buried(p *process, gone bool) {
	e := *w.ending
	w.proc, w.ending = nil, nil
	clear(w.calls)
	w.ticker.Stop()
	if !gone {
		p.exit, p.tail = Exit{Kind: ExitKilledByUs, Reason: e.cause, At: time.Now()}, nil
		close(p.gone)
		w.publish()
		return
	}
	p.exit = p.classify(e, w.s.o.OOMKilled)
	p.tail = p.log.stderrSince(p.logFrom, stderrTail)
	w.lastExit = &p.exit
	w.s.metrics.exits.WithLabelValues(string(p.exit.Kind)).Inc()
	how := p.exit.String()
	if !strings.Contains(how, e.cause) { // else it would be said twice
		how += " (" + e.cause + ")"
	}
	w.log.note("ended: %s", how)
	loaded := !w.readyAt.IsZero()
	if !loaded {
		w.lastErr = w.startError(p, e)
	}
	switch {
	case !e.failure:
		w.to(Stopped, e.cause)
	default:
		if loaded && w.s.o.Restart.Forget(p.exit.At.Sub(w.readyAt)) {
			w.failures = nil
		}
		w.failed(e.cause)
	}
	close(p.gone)
	w.answer(loaded)
}

// startError is what those get who waited for a start that ended.
func (w *worker) startError(p *process, e ending) *StartError {
	serr := &StartError{Instance: w.name, Step: e.step, Stderr: p.tail, Cause: errors.New(e.cause)}
	if serr.Step == "" {
		serr.Step = "stopped"
	}
	if p.callErr != nil {
		serr.Step, serr.Call = "load", p.callErr
	}
	if !e.byUs {
		serr.Exit = &p.exit
	}
	return serr
}

// answer settles everybody after an end, and starts anew for those who came
// meanwhile.
func (w *worker) answer(loaded bool) {
	if !loaded && w.lastErr != nil {
		err := *w.lastErr
		if w.st == Backoff {
			err.RetryAt = w.retryAt
		}
		for _, done := range w.failing {
			done <- &err
		}
	}
	w.failing = nil
	waiters := w.waiters
	w.waiters = nil
	w.settle(nil) // those who wait for the stop
	for _, done := range waiters {
		w.ensureReady(done)
	}
}

// signalName gives a signal the name that people know.
func signalName(s syscall.Signal) string {
	if n := unix.SignalName(s); n != "" {
		return n
	}
	return fmt.Sprintf("signal %d", s)
}
