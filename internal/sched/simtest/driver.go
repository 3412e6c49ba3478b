package simtest

import (
	"container/heap"
	"context"
	"fmt"
	"time"
)

// Epoch is when every simulation begins.
var epoch = time.Date(2026, time.January, 5, 9, 0, 0, 0, time.UTC)

// driver is a simulation's time and its goroutines. Time moves only when
// nothing is left to do at the moment; of the goroutines that the scheduler
// starts (spawn) exactly one runs at a time and hands back when it waits, so the
// order of everything follows from the input alone. All of it belongs to the
// goroutine that turns the driver; the scheduler's goroutines touch it only
// while it is their turn.
type driver struct {
	now    time.Time
	seq    uint64
	events eventHeap
	ready  []*task // in the order in which they may go on
	waits  []*wait // in the order in which they began
	hooks  []*hook // likewise
	cur    *task
	turn   chan struct{} // the task in turn has ended or waits
}

// event is a call at a time; those of one time come in the order they were made.
type event struct {
	at    time.Time
	seq   uint64
	f     func()
	index int // in the heap, -1 outside
}

type eventHeap []*event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(a, b int) bool {
	if !h[a].at.Equal(h[b].at) {
		return h[a].at.Before(h[b].at)
	}
	return h[a].seq < h[b].seq
}
func (h eventHeap) Swap(a, b int) {
	h[a], h[b] = h[b], h[a]
	h[a].index, h[b].index = a, b
}

// Push and Pop are for package heap.
func (h *eventHeap) Push(x any) {
	e := x.(*event)
	e.index = len(*h)
	*h = append(*h, e)
}

// Pop implements heap.Interface.
func (h *eventHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	e.index = -1
	return e
}

// task is one goroutine of the scheduler.
type task struct {
	f      func()
	resume chan struct{} // nil: not begun
}

func newDriver() *driver { return &driver{now: epoch, turn: make(chan struct{})} }

// Now implements sim.Clock.
func (d *driver) Now() time.Time { return d.now }

// AfterFunc implements sim.Clock.
func (d *driver) AfterFunc(after time.Duration, f func()) func() bool {
	d.seq++
	e := &event{at: d.now.Add(max(after, 0)), seq: d.seq, f: f}
	heap.Push(&d.events, e)
	return func() bool {
		if e.index < 0 {
			return false
		}
		heap.Remove(&d.events, e.index)
		return true
	}
}

// spawn is the go statement of the simulated scheduler: f begins when the pass
// that asked for it is over.
func (d *driver) spawn(f func()) { d.ready = append(d.ready, &task{f: f}) }

// settle lets every goroutine that can go on do so, one after the other, and
// reports whether there was any.
func (d *driver) settle() bool {
	any := false
	for {
		d.wakeCancelled()
		if len(d.ready) == 0 {
			return any
		}
		any = true
		t := d.ready[0]
		d.ready = d.ready[1:]
		d.cur = t
		if t.resume == nil {
			t.resume = make(chan struct{})
			go func() {
				t.f()
				d.turn <- struct{}{}
			}()
		} else {
			t.resume <- struct{}{}
		}
		<-d.turn
		d.cur = nil
	}
}

// step moves time to the next event and lets it happen; false when there is
// none before or at limit.
func (d *driver) step(limit time.Time) bool {
	if len(d.events) == 0 || d.events[0].at.After(limit) {
		return false
	}
	e := heap.Pop(&d.events).(*event)
	d.now = e.at
	e.f()
	return true
}

// wait is a call that waits for the model. The one that ends the waiting calls
// done; a context that ends does so, too.
type wait struct {
	d    *driver
	t    *task
	ctx  context.Context
	over bool
}

// newWait prepares the waiting of the goroutine in turn. ctx may be nil.
func (d *driver) newWait(ctx context.Context) *wait {
	if d.cur == nil {
		panic("simtest: the scheduler waits in a goroutine that it did not start with Options.Go")
	}
	return &wait{d: d, t: d.cur, ctx: ctx}
}

// done ends the waiting. More than once is fine.
func (w *wait) done() {
	if !w.over {
		w.over = true
		w.d.ready = append(w.d.ready, w.t)
	}
}

// wait hands the turn back until done is called, or until ctx ends: its error then.
func (w *wait) wait() error {
	if w.over { // ended before it began: the turn is given back all the same
		w.handOver()
		return nil
	}
	w.d.waits = append(w.d.waits, w)
	w.handOver()
	if w.ctx != nil {
		return w.ctx.Err()
	}
	return nil
}

func (w *wait) handOver() {
	w.d.turn <- struct{}{}
	<-w.t.resume
}

// hook is a function to call when a context ends.
type hook struct {
	ctx context.Context
	f   func()
}

// onCancel calls f once when ctx has ended, unless stop was called before.
func (d *driver) onCancel(ctx context.Context, f func()) (stop func()) {
	h := &hook{ctx: ctx, f: f}
	d.hooks = append(d.hooks, h)
	return func() { h.f = nil }
}

// wakeCancelled ends the waits whose contexts have ended and forgets those that
// are over.
func (d *driver) wakeCancelled() {
	kept := d.waits[:0]
	for _, w := range d.waits {
		if !w.over && w.ctx != nil && w.ctx.Err() != nil {
			w.done()
		}
		if !w.over {
			kept = append(kept, w)
		}
	}
	clear(d.waits[len(kept):])
	d.waits = kept
	var fire []func()
	hooks := d.hooks[:0]
	for _, h := range d.hooks {
		switch {
		case h.f == nil:
		case h.ctx.Err() != nil:
			fire = append(fire, h.f)
		default:
			hooks = append(hooks, h)
		}
	}
	clear(d.hooks[len(hooks):])
	d.hooks = hooks
	for _, f := range fire {
		f()
	}
}

func (d *driver) since() time.Duration { return d.now.Sub(epoch) }

func (d *driver) String() string { return fmt.Sprintf("t=%s", d.since()) }
