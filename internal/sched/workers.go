package sched

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/supervisor"
	"go.uber.org/zap"
)

// RefusedError says that the policy refused a load.
type RefusedError struct {
	Instance string
	Reason   *jobs.Error
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("cannot load %q: %s", e.Instance, e.Reason.Message)
}

// loadRequest is somebody who waits for an instance to be loaded.
type loadRequest struct{ reply chan error } // capacity 1

// stopping is the stop of one worker: asked for, waiting for the calls in
// flight, then begun.
type stopping struct {
	cause   string
	force   bool
	begun   bool
	lease   bool      // a lease needs the memory: it ends with the need, until it has begun
	asker   string    // the instance that needs the memory; "" when somebody asked
	evicted time.Time // when the worker was chosen to make room; zero when somebody asked
	waiters []chan error
}

func (s *stopping) answer(err error) {
	for _, w := range s.waiters {
		w <- err
	}
	s.waiters = nil
}

func (in *inst) answerLoads(err error) {
	for _, r := range in.loads {
		r.reply <- err
	}
	in.loads = nil
}

// forgetLoad drops a request whose caller went away.
func (in *inst) forgetLoad(req *loadRequest) {
	in.loads = slices.DeleteFunc(in.loads, func(r *loadRequest) bool { return r == req })
}

// forgetStop drops a caller that went away, and a stop that has not begun with
// the last of them.
func (in *inst) forgetStop(reply chan error) {
	if in.stop == nil {
		return
	}
	in.stop.waiters = slices.DeleteFunc(in.stop.waiters, func(w chan error) bool { return w == reply })
	if len(in.stop.waiters) == 0 && !in.stop.begun && in.stop.evicted.IsZero() {
		in.stop = nil
	}
}

// startLoad brings a worker up for those who asked for it by name.
func (l *loop) startLoad(in *inst, ticket *jobs.Ticket) {
	if in.loading {
		return
	}
	in.loading, in.begun = true, true
	l.spawn(func() {
		err := awaitClaims(l.loading, ticket)
		if err == nil {
			err = l.s.o.Workers.EnsureReady(l.loading, in.name)
		}
		l.s.mail.call(func(l *loop) { l.loadEnded(in, err) })
	})
}

// loadEnded takes the result of startLoad; the loop is there as long as a load is.
func (l *loop) loadEnded(in *inst, err error) {
	now := l.s.o.Now()
	in.loading = false
	var start *supervisor.StartError
	switch {
	case err == nil:
		in.startSucceeded()
		if in.running == 0 {
			in.idleSince = now
		}
	case errors.As(err, &start):
		l.startFailed(now, in, start)
	}
	l.look(now, in)
	in.answerLoads(err)
}

// requestStop notes that somebody wants the worker gone.
func (l *loop) requestStop(in *inst, cause string, force bool, reply chan error) {
	if in.stop == nil {
		in.stop = &stopping{cause: cause}
	}
	in.stop.force = in.stop.force || force
	in.stop.waiters = append(in.stop.waiters, reply)
	l.stopWhenIdle(l.s.o.Now(), in)
}

// evict stops an idle worker for the sake of another instance.
func (l *loop) evict(now time.Time, e Eviction) {
	in, asker := l.inst(e.Instance), l.inst(e.Asker)
	if in.stop != nil || in.running > 0 || !in.live {
		return // overtaken; the next pass sees it as it is
	}
	l.s.log.Info("stopping an idle worker to make room", zap.String("instance", e.Instance), zap.String("asker", e.Asker))
	asker.victims = append(asker.victims, victim{name: e.Instance})
	l.stopFor(now, in, "evicted for "+e.Asker, e.Asker)
}

// stopFor stops an idle worker whose memory asker wants.
func (l *loop) stopFor(now time.Time, in *inst, cause, asker string) {
	in.stop = &stopping{cause: cause, asker: asker, evicted: now}
	l.stopWhenIdle(now, in)
}

// tellEvicting tells that a worker is being stopped because its memory is wanted.
func (l *loop) tellEvicting(now time.Time, in *inst) {
	l.s.metrics.evicted.Inc()
	devices := l.heldBy(in)
	bytes := resource.Bytes(0)
	for _, dev := range devices {
		l.swaps.note(now, dev)
		bytes += l.onDevice(in, dev)
	}
	l.s.emit(events.Draft{Kind: events.SchedulerEvicting, Instance: in.name, Data: map[string]any{"asker": in.stop.asker, "devices": devices, "bytes": bytes}})
}

// requestRelease is the request (and capability) that asks a plugin to give
// memory back, and releaseGrace how long it may take over it.
const (
	requestRelease = "release"
	releaseGrace   = 10 * time.Second
)

// askRelease asks an idle worker's plugin to give memory back. The asker waits
// for that as for a victim: until the monitor has looked again.
func (l *loop) askRelease(r ReleaseAsk) {
	in, asker := l.inst(r.Instance), l.inst(r.Asker)
	if !in.live || in.stop != nil || in.running > 0 || in.asked {
		return
	}
	in.asked = true
	asker.victims = append(asker.victims, victim{name: in.name})
	l.spawn(func() {
		ctx, cancel := context.WithTimeout(l.work, releaseGrace)
		defer cancel()
		_, err := l.s.o.Workers.Request(ctx, in.name, requestRelease, nil)
		if err != nil && l.work.Err() == nil {
			l.s.log.Warn("a plugin did not release memory", zap.String("instance", in.name), zap.Error(err))
		}
		l.s.mail.call(func(l *loop) {
			if l != nil {
				l.victimDone(l.s.o.Now(), asker, in.name)
			}
		})
	})
}

// victimDone notes that a victim has done its part: its memory counts as
// returned with a reading that is younger.
func (l *loop) victimDone(now time.Time, asker *inst, name string) {
	for i := range asker.victims {
		if v := &asker.victims[i]; v.name == name && v.stopped.IsZero() {
			v.stopped = now
		}
	}
}

// stopWhenIdle begins the stop that was asked for, once nothing runs or at once
// when it is forced.
func (l *loop) stopWhenIdle(now time.Time, in *inst) {
	s := in.stop
	if s == nil || s.begun || (in.running > 0 && !s.force) {
		return
	}
	s.begun = true
	if !s.evicted.IsZero() {
		l.tellEvicting(now, in)
	}
	l.spawn(func() {
		err := l.s.o.Workers.Stop(l.work, in.name, s.cause)
		l.s.mail.call(func(l *loop) { l.stopEnded(in, s, err) })
	})
}

func (l *loop) stopEnded(in *inst, s *stopping, err error) {
	now := l.s.o.Now()
	in.stop = nil
	l.look(now, in)
	s.answer(err)
	if !s.evicted.IsZero() && err == nil {
		l.s.emit(events.Draft{Kind: events.SchedulerEvicted, Instance: in.name, Data: map[string]any{
			"asker": s.asker, "after_ms": now.Sub(s.evicted).Milliseconds()}})
	}
	if s.asker == "" {
		return
	}
	asker := l.inst(s.asker)
	l.victimDone(now, asker, in.name)
	if err != nil && !errors.Is(err, context.Canceled) {
		l.s.log.Warn("cannot stop a worker that was to make room", zap.String("instance", in.name), zap.Error(err))
	}
}
