package supervisor

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Execute runs one call on a loaded worker and returns when its work has really
// stopped. It starts nothing (ErrNotLoaded) and owns no slots: a call beyond the
// worker's concurrency is refused with ErrNoSlot.
//
// Cancelling ctx runs the phases: the plugin's cancel(), after the grace an
// interrupt of the worker's main thread, after a second grace a kill of the
// whole tree, which takes other calls of that worker with it (*WorkerLostError).
// Each phase is told to sink.CancelPhase, which may run at the same time as the
// sink's other methods. A call that was killed returns *CallError with Cancelled.
func (s *Supervisor) Execute(ctx context.Context, instance string, call Call, sink Sink) (Result, error) {
	w := s.known(instance)
	if w == nil {
		return Result{}, ErrNotLoaded
	}
	p, err := w.begin(call.ID)
	if err != nil {
		return Result{}, err
	}
	defer w.post(func() { w.callEnded(p, call.ID) })
	if call.CancelGrace <= 0 {
		call.CancelGrace = s.o.CancelGrace
	}
	if call.InterruptGrace <= 0 {
		call.InterruptGrace = s.o.Interrupt
	}
	c := &running{w: w, p: p, call: call, sink: sink, over: make(chan struct{}), phases: make(chan struct{})}
	// The phases cost a goroutine only for a call that is cancelled.
	stop := context.AfterFunc(ctx, c.cancel)
	res, err := p.conn.Execute(context.WithoutCancel(ctx), call, teeSink{Sink: sink, p: p})
	close(c.over)
	if !stop() {
		<-c.phases
	}
	var lost *ConnLostError
	if !errors.As(err, &lost) {
		return res, err
	}
	err = p.lost(context.WithoutCancel(ctx), instance)
	if c.killed {
		return res, &CallError{
			Category: "cancelled", Cancelled: true,
			Message: fmt.Sprintf("did not stop when asked; its worker was killed after %v", c.waited.Round(time.Millisecond)),
		}
	}
	return res, err
}

// begin takes a call on, in the loop.
func (w *worker) begin(id string) (*process, error) {
	var p *process
	err := w.ask(context.Background(), func(done chan<- error) {
		switch {
		case w.closing || w.ending != nil || (w.st != ReadyState && w.st != Busy):
			done <- ErrNotLoaded
			return
		case len(w.calls) >= w.proc.spec.Concurrency:
			done <- ErrNoSlot
			return
		}
		if _, twice := w.calls[id]; twice {
			done <- fmt.Errorf("cannot execute: call %q is in flight already", id)
			return
		}
		p = w.proc
		w.calls[id] = struct{}{}
		w.total++
		if w.st == ReadyState {
			w.to(Busy, "call "+id)
		} else {
			w.publish()
		}
		done <- nil
	})
	if errors.Is(err, ErrClosed) {
		err = ErrNotLoaded
	}
	return p, err
}

// callEnded gives the slot back.
func (w *worker) callEnded(p *process, id string) {
	if w.proc != p { // the calls of a process go with it
		return
	}
	delete(w.calls, id)
	switch {
	case len(w.calls) > 0:
		w.publish()
	case w.st == Busy:
		w.to(ReadyState, "no call left")
	case w.st == Draining:
		w.end(ending{cause: w.cause, polite: true, byUs: true})
	default:
		w.publish()
	}
}

// running is a call under cancellation.
type running struct {
	w      *worker
	p      *process
	call   Call
	sink   Sink
	over   chan struct{} // closed when the call has returned
	phases chan struct{} // closed when cancel has returned; the next two are set then
	killed bool
	waited time.Duration // from the cancel to the kill
}

// cancel runs the phases until the call is over.
func (c *running) cancel() {
	defer close(c.phases)
	begun := time.Now()
	for _, phase := range []struct {
		mode  CancelMode
		grace time.Duration
	}{{CancelCooperative, c.call.CancelGrace}, {CancelInterrupt, c.call.InterruptGrace}} {
		if c.isOver() {
			return
		}
		c.sink.CancelPhase(phase.mode)
		if c.ask(phase.mode, phase.grace) {
			return
		}
	}
	c.sink.CancelPhase(CancelKill)
	c.killed, c.waited = true, time.Since(begun)
	c.w.post(func() {
		if !c.isOver() { // at the last moment: the worker lives
			c.w.endOf(c.p, ending{cause: "call " + c.call.ID + " ignored its cancel", byUs: true})
		}
	})
	<-c.over
}

func (c *running) isOver() bool {
	select {
	case <-c.over:
		return true
	default:
		return false
	}
}

// ask sends one phase and reports whether the call ended within the grace,
// which counts from the sending: a worker that does not even read is not given
// more time. A worker that cannot be told in this way is given none.
func (c *running) ask(mode CancelMode, grace time.Duration) bool {
	t := time.NewTimer(grace)
	defer t.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if err := c.p.conn.Cancel(ctx, c.call.ID, mode); err != nil && ctx.Err() == nil {
		c.p.log.note("cannot tell call %s about its cancel (%s): %v", c.call.ID, mode, err)
		if errors.Is(err, ErrNotSupported) {
			return c.isOver()
		}
	}
	select {
	case <-c.over:
		return true
	case <-t.C:
		return false
	}
}

// teeSink copies a call's log records to the worker's log and takes everything
// as a sign of life.
type teeSink struct {
	Sink
	p *process
}

func (t teeSink) Chunk(n uint64, payload []byte) {
	t.p.hear()
	t.Sink.Chunk(n, payload)
}

func (t teeSink) Progress(fraction float64, message string) {
	t.p.hear()
	t.Sink.Progress(fraction, message)
}

func (t teeSink) Log(rec LogRecord) {
	t.p.hear()
	t.p.log.record(rec)
	t.Sink.Log(rec)
}
