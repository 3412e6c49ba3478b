package sched

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"go.uber.org/zap"
)

// apply makes the plan true: claims first, then what they are for.
func (l *loop) apply(now time.Time, plan Plan) {
	l.failAll(now, plan.Fail)
	for _, e := range plan.Evict {
		l.evict(e)
	}
	if len(plan.Hold) > 0 {
		l.ledger.take(now, plan.Hold)
		for _, c := range plan.Hold {
			l.inst(c.Owner).held = true
		}
	}
	for i := range plan.Start {
		l.start(now, &plan.Start[i])
	}
	l.tellBlocks(now, plan.Block)
}

// failAll ends the jobs that the policy refused. They share one commit.
func (l *loop) failAll(now time.Time, failures []Failure) {
	var wg sync.WaitGroup
	var broken atomic.Bool
	for _, f := range failures {
		if f.Job == "" {
			l.inst(f.Instance).answerLoads(&RefusedError{Instance: f.Instance, Reason: f.Error})
			continue
		}
		l.s.metrics.refused.Inc()
		wg.Go(func() {
			err := l.s.o.Queue.Fail(l.work, f.Job, f.Error)
			if err != nil && !gone(err) && l.work.Err() == nil {
				l.s.log.Error("cannot refuse job", zap.String("job", string(f.Job)), zap.Error(err))
				broken.Store(true)
			}
		})
	}
	wg.Wait()
	if broken.Load() {
		l.admitNot = now.Add(admitPause)
	}
}

// gone reports whether err says that the job is no longer where the loop saw it.
func gone(err error) bool {
	var conflict *jobs.StateConflictError
	return errors.As(err, &conflict) || errors.Is(err, jobs.ErrNotFound)
}

// admitPause is how long nothing is admitted after the queue could not record
// a start: a full disk does not get better by asking at once.
const admitPause = time.Second

// start sets the claims aside and starts what they are for.
func (l *loop) start(now time.Time, s *Start) {
	if l.admitNot.After(now) {
		return
	}
	in := l.inst(s.Instance)
	resident := in.live
	if !resident {
		l.ledger.take(now, s.Claims)
		l.ledger.setPhase(now, in.name, PhaseLoading)
		in.live, in.held, in.victims = true, false, nil
	}
	if s.Job == "" {
		l.startLoad(in)
		return
	}
	if err := l.startJob(in, s.Job, resident && l.ready(in)); err != nil {
		if !gone(err) && l.work.Err() == nil {
			l.s.log.Error("cannot admit job", zap.String("job", string(s.Job)), zap.Error(err))
			l.admitNot = now.Add(admitPause)
		}
		if !resident && in.running == 0 && !in.loading {
			l.gone(in)
		}
	}
}

func (l *loop) startJob(in *inst, id jobs.ID, ready bool) error {
	worker := "" // named only when it is there: the job then executes from its start on
	if ready {
		worker = in.name
	}
	handle, err := l.s.o.Queue.Admit(l.work, id, worker)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(l.work)
	r := &run{
		s: l.s, in: in, id: id, instance: in.name, timeouts: in.timeouts,
		handle: handle, cancel: cancel, work: l.work, resident: ready, since: l.s.o.Now(),
	}
	in.running++
	in.idleSince = time.Time{}
	l.runs[id] = r
	l.s.metrics.admitted.Inc()
	l.s.metrics.running.Set(float64(len(l.runs)))
	l.spawn(func() {
		defer cancel(nil)
		r.do(ctx)
	})
	return nil
}

// tellBlocks hands the queue the reasons why jobs wait, where they changed.
// A lone no_slot that lapsed is not worth telling: whatever waits under it
// has started, and it comes and goes with every job.
func (l *loop) tellBlocks(now time.Time, blocks map[string]*jobs.Block) {
	changed := false
	for name, b := range blocks {
		in := l.inst(name)
		old := l.blocks[name]
		b.Since = now
		if old != nil && old.Code == b.Code {
			b.Since = old.Since
		}
		if old == nil || !sameBlock(old, b) {
			changed = true
		}
		switch {
		case b.Code != "resource":
			in.waitSince = time.Time{}
		case in.waitSince.IsZero():
			in.waitSince = now
		}
	}
	for name, old := range l.blocks {
		if blocks[name] != nil {
			continue
		}
		l.inst(name).waitSince = time.Time{}
		if old.Code != codeNoSlot || now.Sub(old.Since) >= heartbeat {
			changed = true
		}
	}
	if !changed {
		return
	}
	l.blocks = blocks
	l.countBlocks()
	l.s.o.Queue.SetBlocks(blocks)
}

func (l *loop) countBlocks() {
	for code := range l.codes {
		l.codes[code] = 0
	}
	for _, b := range l.blocks {
		l.codes[b.Code]++
	}
	for code, n := range l.codes {
		l.s.metrics.blocked.WithLabelValues(code).Set(float64(n))
	}
}

func sameBlock(a, b *jobs.Block) bool {
	return a.Code == b.Code && a.Sentence == b.Sentence && a.Earliest.Equal(b.Earliest) &&
		slices.Equal(a.Holders, b.Holders) && slices.Equal(a.Needs, b.Needs)
}

const codeNoSlot = "no_slot"
