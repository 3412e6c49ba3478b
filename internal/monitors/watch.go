package monitors

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cjmd/cjmd/internal/resource"
)

// watch looks after one registered monitor until another takes its place.
// Owned by Gate.Run's goroutine.
type watch struct {
	g     *Gate
	m     Monitor
	out   chan resource.Snapshot
	fails int // ends in a row without a reading
}

// run keeps the monitor running until ctx ends or another one is registered.
// A monitor that does not return is left to end in its own time, in left.
func (w *watch) run(ctx context.Context, left *sync.WaitGroup) {
	for ctx.Err() == nil {
		err, swapped := w.once(ctx, left)
		if swapped || ctx.Err() != nil {
			return
		}
		delay := min(backoffFirst<<min(w.fails, 10), backoffMax)
		if errors.Is(err, ErrUnsupported) {
			delay = backoffMax
		}
		w.fails++
		w.g.note(w.m, StateFailed, err.Error(), func() {
			w.g.arrived = time.Time{}
			w.g.state.Restarts++
			w.g.state.RetryAt = w.g.o.Clock().Add(delay)
		})
		select {
		case <-time.After(delay):
		case <-w.g.swap:
			return
		case <-ctx.Done():
			return
		}
	}
}

// once runs the monitor one time. swapped reports that it is no longer wanted.
func (w *watch) once(outer context.Context, left *sync.WaitGroup) (err error, swapped bool) {
	ctx, cancel := context.WithCancel(outer)
	defer cancel()
	ended := make(chan error, 1)
	left.Go(func() { ended <- w.guarded(ctx) })
	stale := time.NewTimer(w.g.o.MaxAge)
	defer stale.Stop()
	silent := 0
	for {
		select {
		case s := <-w.out:
			w.accept(s)
			silent = 0
			stale.Reset(w.g.o.MaxAge)
		case <-stale.C:
			silent++
			w.g.note(w.m, StateStale, fmt.Sprintf("no reading for %v", time.Duration(silent)*w.g.o.MaxAge), nil)
			if silent == hangFactor {
				cancel() // a monitor that can still hear ends now and is started again
			}
			stale.Reset(w.g.o.MaxAge)
		case err := <-ended:
			if err == nil {
				err = errors.New("the monitor ended")
			}
			return err, false
		case <-w.g.swap:
			return nil, true
		case <-ctx.Done():
			if outer.Err() != nil {
				return outer.Err(), true
			}
			return w.awaitEnd(outer, ended)
		}
	}
}

// awaitEnd waits for a monitor that hangs to notice that it was cancelled.
// Nothing but a replacement or the daemon's end helps one that never does.
func (w *watch) awaitEnd(ctx context.Context, ended <-chan error) (error, bool) {
	select {
	case <-ended:
		return errors.New("the monitor was silent for too long"), false
	case <-w.g.swap:
		return nil, true
	case <-ctx.Done():
		return ctx.Err(), true
	}
}

// guarded turns a monitor's panic into an error.
func (w *watch) guarded(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the monitor panicked: %v", p)
		}
	}()
	return w.m.Run(ctx, w.out)
}

func (w *watch) accept(s resource.Snapshot) {
	w.fails = 0
	w.g.note(w.m, StateFresh, "", func() {
		w.g.snap, w.g.arrived = s, w.g.o.Clock()
		w.g.state.LastSample = w.g.arrived
		w.g.state.RetryAt = time.Time{}
	})
}
