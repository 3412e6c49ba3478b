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
	for i := range plan.Start {
		l.start(now, &plan.Start[i])
	}
	// The hole is the asker's before anybody is stopped for it.
	if len(plan.Hold) > 0 {
		l.ledger.take(now, plan.Hold)
		for _, c := range plan.Hold {
			l.inst(c.Owner).held = true
		}
	}
	for _, e := range plan.Evict {
		l.evict(now, e)
	}
	for _, r := range plan.Release {
		l.askRelease(r)
	}
	l.dropSpentHolds(plan.Hold)
	l.tellThrash(now, plan.Thrash)
	l.shadow = plan.Shadow
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
	var ticket *jobs.Ticket
	if in.held { // what was held for it becomes what it takes
		l.ledger.dropHolds(in.name)
	}
	in.held, in.victims = false, nil
	l.useLingering(in, s.Claims)
	if s.Affinity {
		in.streak++
	} else {
		in.streak = 0
	}
	if resident {
		l.takeExecute(now, s)
	} else {
		ticket = l.settleIn(now, in, s)
	}
	if s.Job == "" {
		if s.Measure {
			in.measureLoad, l.ledger.changed = true, true
		}
		l.startLoad(in, ticket)
		return
	}
	if err := l.startJob(now, in, s, resident, resident && l.ready(in), ticket); err != nil {
		if !gone(err) && l.work.Err() == nil {
			l.s.log.Error("cannot admit job", zap.String("job", string(s.Job)), zap.Error(err))
			l.admitNot = now.Add(admitPause)
		}
		l.ledger.release(string(s.Job))
		in.oneByOne = false
		if !resident && in.running == 0 && !in.loading {
			l.gone(now, in)
		}
	}
	if in.oneByOne { // there may be room for another
		l.s.mail.ring()
	}
}

// takeExecute sets aside what a job takes on a worker that is there.
func (l *loop) takeExecute(now time.Time, s *Start) {
	for i := range s.Claims {
		if s.Claims[i].Kind == KindExecute {
			l.takeOne(now, s.Claims[i], s.Instance, PhaseExecuting)
		}
	}
}

func (l *loop) takeOne(now time.Time, c Claim, instance, phase string) {
	c.Instance, c.Phase = instance, phase
	l.ledger.take(now, []Claim{c})
}

// settleIn sets aside what a new worker takes, says where it is to sit, and has
// both written down: nothing is started before the ticket is through.
func (l *loop) settleIn(now time.Time, in *inst, s *Start) *jobs.Ticket {
	for i := range s.Claims {
		phase := PhaseLoading
		if s.Claims[i].Kind == KindExecute {
			phase, in.split = PhaseExecuting, true
		}
		l.takeOne(now, s.Claims[i], in.name, phase)
	}
	in.live, in.begun = true, false
	in.residentSince, in.lastUsed = now, now
	in.devices = s.Devices
	if in.devices == nil {
		in.devices = l.ledger.on(in.name)
	} else {
		in.split = true
	}
	in.loadBegins(now)
	if l.places != nil && (in.demand.RequiresGPU || len(in.devices) > 0) {
		names := make([]string, len(in.devices))
		for i, dev := range in.devices {
			names[i] = string(dev)
		}
		l.places.Place(in.name, names)
	} else if l.places != nil {
		l.places.Place(in.name, nil)
	}
	return l.journal(in)
}

func (l *loop) startJob(now time.Time, in *inst, s *Start, resident, ready bool, ticket *jobs.Ticket) error {
	worker := "" // named only when it is there: the job then executes from its start on
	if ready {
		worker = in.name
	}
	handle, err := l.s.o.Queue.Admit(l.work, s.Job, worker)
	if err != nil {
		return err
	}
	job := handle.Job()
	ctx, cancel := context.WithCancelCause(l.work)
	r := &run{
		s: l.s, in: in, id: s.Job, instance: in.name, timeouts: in.timeouts, submitter: job.Submitter, priority: job.Spec.Priority,
		handle: handle, cancel: cancel, work: l.work, resident: ready, since: now, ticket: ticket, need: l.grantedTo(in, s),
	}
	if t := l.troubles[s.Job]; t != nil {
		r.trouble = *t
	}
	in.begun = true
	if resident {
		l.watchRise(now, in)
	}
	in.running++
	in.idleSince = time.Time{}
	in.uses.began(now)
	in.lastPriority = r.priority
	if s.Measure {
		in.measuring = r
		l.ledger.changed = true
	}
	l.runs[s.Job] = r
	l.s.metrics.admitted.Inc()
	l.s.metrics.running.Set(float64(len(l.runs)))
	l.spawn(func() {
		defer cancel(nil)
		r.do(ctx)
	})
	return nil
}

// dropSpentHolds gives back room that is kept for an asker whose victims are gone
// and who is not let in all the same: it waits like everybody else.
func (l *loop) dropSpentHolds(fresh []Claim) {
	for _, in := range l.order {
		if !in.held || len(in.victims) > 0 || slices.ContainsFunc(fresh, func(c Claim) bool { return c.Owner == in.name }) {
			continue
		}
		in.held = false
		l.ledger.dropHolds(in.name)
		l.s.mail.ring() // what it gives back may let somebody in
	}
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
