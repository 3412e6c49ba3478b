package sched

import (
	"context"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
)

// ask has the loop run f and waits for it; false when there is no loop.
func (s *Scheduler) ask(ctx context.Context, f func(*loop)) bool {
	select {
	case <-s.started:
	default:
		return false
	}
	done := make(chan bool, 1)
	s.mail.call(func(l *loop) {
		if l != nil {
			f(l)
		}
		done <- l != nil
	})
	select {
	case ok := <-done:
		return ok
	case <-ctx.Done():
		return false
	}
}

// State returns a copy of the loop's state; before and after Run only what is
// configured.
func (s *Scheduler) State() SchedulerState {
	st := SchedulerState{Policy: (*s.policy.Load()).Name(), Policies: s.policyNames(), Margin: s.o.RAMMargin, Slots: s.o.Slots}
	s.ask(context.Background(), func(l *loop) {
		st.Monitor, st.Fresh, st.FreeRAM = l.monitor, l.fresh, l.freeRAM
		st.Claims = slices.Clone(l.ledger.claims)
		for _, r := range l.runs {
			st.Runs = append(st.Runs, RunState{Job: r.id, Instance: r.instance, Phase: r.currentPhase(), Since: r.since})
		}
		for _, in := range l.order {
			if in.loading {
				st.Runs = append(st.Runs, RunState{Instance: in.name, Phase: jobs.Loading})
			}
		}
		st.Waiting = make(map[string]int)
		for _, b := range l.blocks {
			st.Waiting[b.Code]++
		}
		l.reportLedger(&st)
		st.Passes, st.PassDuration, st.LastPass = l.passes, l.took, s.Heartbeat()
	})
	return st
}

// currentPhase is the run's phase for readers; cancelling is the queue's to tell.
func (r *run) currentPhase() jobs.Phase {
	if p := r.phase.Load(); p != nil {
		return *p
	}
	if r.resident {
		return jobs.Executing
	}
	return jobs.Reserving
}

// Explain says why a job stands where it stands. jobs.ErrNotFound.
func (s *Scheduler) Explain(ctx context.Context, id jobs.ID) (Explanation, error) {
	job, err := s.o.Queue.Get(ctx, id)
	if err != nil {
		return Explanation{}, err
	}
	e := Explanation{
		Job: id, Status: job.Status, Phase: job.Phase, Block: job.Block, Policy: (*s.policy.Load()).Name(),
		Priority: job.Spec.Priority, Seq: job.Seq, Ahead: -1,
	}
	if job.Status.Final() {
		e.Summary = "the job is " + string(job.Status)
		return e, nil
	}
	s.ask(ctx, func(l *loop) { l.explain(&e, &job) })
	e.Summary = summary(&e, job)
	return e, ctx.Err()
}

// Preview says what the policy would do now, and does nothing. With an instance
// named the answer is about that one alone; where none of its jobs waits, about
// loading it. ErrStopping when there is no loop, the catalogue's error for an
// instance that it does not know.
func (s *Scheduler) Preview(ctx context.Context, instance string) (Plan, error) {
	if instance != "" {
		if _, _, err := s.o.Catalog.Instance(instance); err != nil {
			return Plan{}, err
		}
	}
	var plan Plan
	ok := s.ask(ctx, func(l *loop) {
		now := l.s.o.Now()
		v := l.view(now)
		if instance != "" {
			v.Groups = l.wanting(now, slices.Clone(v.Groups), instance)
		}
		plan = (*s.policy.Load()).Decide(v)
	})
	switch {
	case ctx.Err() != nil:
		return Plan{}, ctx.Err()
	case !ok:
		return Plan{}, ErrStopping
	case instance != "":
		plan = plan.about(instance)
	}
	return plan, nil
}

// Try is Preview for a job that nobody submitted. With a demand of its own it is
// answered as if another plugin, like this one but for what it needs, had it: the
// worker that is there serves other needs, and may have to make way.
func (s *Scheduler) Try(ctx context.Context, w Wish) (Plan, error) {
	if _, _, err := s.o.Catalog.Instance(w.Instance); err != nil {
		return Plan{}, err
	}
	name := w.Instance
	if w.Demand != nil {
		name += asWished
	}
	var plan Plan
	ok := s.ask(ctx, func(l *loop) {
		now := l.s.o.Now()
		v := l.view(now)
		v.Groups = l.wishing(now, slices.Clone(v.Groups), w)
		plan = (*s.policy.Load()).Decide(v)
	})
	if !ok {
		return Plan{}, orStopping(ctx)
	}
	plan = plan.about(name)
	plan.rename(name, w.Instance)
	return plan, nil
}

// WishID stands for the wished job in the plan that Try answers.
const WishID jobs.ID = "wish"

// asWished marks, in the sentences of a plan, the plugin that has other needs.
const asWished = " (as asked)"

// wishing returns groups with the wished job behind those of its priority.
func (l *loop) wishing(now time.Time, groups []GroupView, w Wish) []GroupView {
	job := jobs.Ready{ID: WishID, Seq: math.MaxInt64, Priority: w.Priority, Submitter: w.Submitter, CreatedAt: now, Attempt: 1}
	if w.Demand != nil {
		return append(groups, l.likeness(now, w, job))
	}
	i := slices.IndexFunc(groups, func(g GroupView) bool { return g.Instance == w.Instance })
	if i < 0 {
		groups = append(groups, l.groupView(now, l.inst(w.Instance), nil))
		i = len(groups) - 1
	}
	g := &groups[i]
	at := len(g.Ready)
	for at > 0 && g.Ready[at-1].Priority < w.Priority {
		at--
	}
	g.Ready = slices.Insert(slices.Clone(g.Ready), at, job)
	g.Queued++
	return groups
}

// likeness is a plugin like the one that is wished for, without a worker and with
// the needs that were given.
func (l *loop) likeness(now time.Time, w Wish, job jobs.Ready) GroupView {
	is, d := l.groupView(now, l.inst(w.Instance), nil), *w.Demand
	g := GroupView{Instance: w.Instance + asWished, Enabled: is.Enabled, Known: is.Known, Problem: is.Problem, Demand: d,
		Ready: []jobs.Ready{job}, Queued: 1, Concurrency: is.Concurrency, SlotsFree: is.Concurrency, Failed: is.Failed, CoolUntil: is.CoolUntil,
		Pin: is.Pin, Prefer: is.Prefer, Avoid: is.Avoid,
		Need: Need{GPU: d.RequiresGPU, ResidentVRAM: d.MinVRAM, ResidentRAM: d.MinRAM, Known: !d.RequiresGPU || d.MinVRAM > 0, Source: SourceManifest}}
	if d.RequiresGPU {
		g.Need.Devices = max(d.Devices, 1)
	}
	return g
}

// rename has the plan, but for its sentences, speak of an instance by another name.
func (p *Plan) rename(from, to string) {
	name := func(s *string) {
		if *s == from {
			*s = to
		}
	}
	for i := range p.Start {
		name(&p.Start[i].Instance)
		for j := range p.Start[i].Claims {
			name(&p.Start[i].Claims[j].Instance)
			name(&p.Start[i].Claims[j].Owner)
		}
	}
	for i := range p.Fail {
		name(&p.Fail[i].Instance)
	}
	for i := range p.Evict {
		name(&p.Evict[i].Asker)
	}
	for i := range p.Release {
		name(&p.Release[i].Asker)
	}
	for i := range p.Hold {
		name(&p.Hold[i].Instance)
		name(&p.Hold[i].Owner)
	}
	if p.Shadow != nil && p.Shadow.Instance == from {
		shadow := *p.Shadow
		shadow.Instance = to
		p.Shadow = &shadow
	}
	if b := p.Block[from]; b != nil {
		p.Block = map[string]*jobs.Block{to: b}
	}
}

// wanting returns groups with one for the instance that wants something.
func (l *loop) wanting(now time.Time, groups []GroupView, instance string) []GroupView {
	i := slices.IndexFunc(groups, func(g GroupView) bool { return g.Instance == instance })
	if i < 0 {
		groups = append(groups, l.groupView(now, l.inst(instance), nil))
		i = len(groups) - 1
	}
	if len(groups[i].Ready) == 0 {
		groups[i].LoadWanted = true
	}
	return groups
}

// about keeps what a plan says of one instance.
func (p Plan) about(instance string) Plan {
	out := Plan{WakeAt: p.WakeAt}
	if p.Shadow != nil && p.Shadow.Instance == instance {
		out.Shadow = p.Shadow
	}
	for _, r := range p.Release {
		if r.Asker == instance || r.Instance == instance {
			out.Release = append(out.Release, r)
		}
	}
	for _, s := range p.Start {
		if s.Instance == instance {
			out.Start = append(out.Start, s)
		}
	}
	for _, f := range p.Fail {
		if f.Instance == instance {
			out.Fail = append(out.Fail, f)
		}
	}
	for _, e := range p.Evict {
		if e.Asker == instance || e.Instance == instance {
			out.Evict = append(out.Evict, e)
		}
	}
	for _, c := range p.Hold {
		if c.Owner == instance || c.Instance == instance {
			out.Hold = append(out.Hold, c)
		}
	}
	if b := p.Block[instance]; b != nil {
		out.Block = map[string]*jobs.Block{instance: b}
	}
	return out
}

// explainDepth bounds how far the place of a job in its group is counted.
const explainDepth = 10_000

func (l *loop) explain(e *Explanation, job *jobs.Job) {
	instance := job.Spec.Instance
	in := l.inst(instance)
	e.Needs, e.FreeRAM = in.demand, l.freeRAM
	e.Need, e.Devices = l.need(in), slices.Clone(l.devs)
	if l.shadow != nil {
		copied := *l.shadow
		e.Shadow = &copied
	}
	e.DevFree = make(map[resource.DeviceID]resource.Bytes, len(l.devFree))
	for id, n := range l.devFree {
		e.DevFree[id] = n
	}
	e.Monitor, e.Fresh = l.monitor, l.fresh
	e.Worker, e.Slots, e.SlotsFree = string(in.state), in.concurrency, in.slotsFree()
	for _, c := range l.ledger.claims {
		if c.Owner == instance {
			e.Claims = append(e.Claims, c)
		}
	}
	if e.Status != jobs.Pending {
		return
	}
	l.rank(e, job)
	for _, g := range l.s.o.Queue.Groups(explainDepth) {
		if g.Instance == instance {
			e.Ahead = slices.IndexFunc(g.Ready, func(r jobs.Ready) bool { return r.ID == e.Job })
		}
	}
	if b := l.blocks[instance]; e.Block == nil && b != nil && e.Ahead >= 0 {
		copied := *b
		e.Block = &copied
	}
}

// summary is the explanation in one sentence.
func summary(e *Explanation, job jobs.Job) string {
	switch {
	case job.Status == jobs.Running:
		return "the job is running (" + string(job.Phase) + ")"
	case e.Block != nil && e.Ahead > 0:
		return e.Block.Sentence + "; " + behind(e.Ahead, job.Spec.Instance)
	case e.Block != nil:
		return e.Block.Sentence
	case job.Phase == jobs.Held:
		return "the job is on hold until it is released"
	case e.Ahead > 0:
		return behind(e.Ahead, job.Spec.Instance)
	case e.Ahead < 0:
		return "the job is not ready to start (paused queue, dependency or retry delay)"
	default:
		return "the job starts with the next pass"
	}
}

func behind(n int, instance string) string {
	if n == 1 {
		return "1 job of " + instance + " comes first"
	}
	return strconv.Itoa(n) + " jobs of " + instance + " come first"
}
