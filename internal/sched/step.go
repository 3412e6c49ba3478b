package sched

import (
	"context"
	"time"
)

// Stepper turns the scheduling loop by hand, pass by pass, in place of Run: for
// simulations, whose time is their own. With Options.Now, Options.AfterFunc and
// Options.Go set, nothing of it depends on the real clock or on the runtime's
// choice of goroutines. Its methods belong to one goroutine.
type Stepper struct{ l *loop }

// Stepper begins the loop; it takes the place of Run and may be called once.
func (s *Scheduler) Stepper(work context.Context) *Stepper {
	l := newLoop(s, work)
	close(s.started)
	return &Stepper{l: l}
}

// Due takes the wake-ups that have come and reports whether there were any: a
// pass is then due.
func (t *Stepper) Due() bool {
	o, due := &t.l.s.o, false
	for _, wake := range []struct {
		c    <-chan struct{}
		note func()
	}{
		{o.Queue.Changed(), func() { t.l.basis.moved = true }},
		{t.l.s.mail.wake, func() {}},
		{o.Workers.Changed(), func() { t.l.workersChanged = true }},
		{o.Gate.Changed(), func() { t.l.gateChanged = true }},
		{o.Catalog.Changed(), func() { t.l.catalogChanged = true }},
	} {
		select {
		case <-wake.c:
			due = true
			wake.note()
		default:
		}
	}
	return due
}

// Pass is one pass of the loop. Unless something wakes it before, the next one
// is due after the time it returns.
func (t *Stepper) Pass() time.Duration { return t.l.pass() }

// StopAdmitting ends intake, as the end of Run's first context does.
func (t *Stepper) StopAdmitting() { t.l.stopAdmitting() }

// Over reports whether Run would have returned: nothing is admitted, runs or is
// being loaded or stopped.
func (t *Stepper) Over() bool {
	return !t.l.admitting && len(t.l.runs) == 0 && !t.l.busyInstances()
}

// spawn starts work that outlives the pass; Run waits for its end.
func (l *loop) spawn(f func()) {
	l.wg.Add(1)
	l.s.o.Go(func() {
		defer l.wg.Done()
		f()
	})
}
