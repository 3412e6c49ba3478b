package policy

import (
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/sched"
)

// ReserveOptions tunes Reserve; zero fields mean the default beside them.
type ReserveOptions struct {
	// A job gains one point per AgePoint of waiting, at most AgeMax. A point is
	// worth one step of priority.
	AgePoint time.Duration // 1 min
	AgeMax   float64       // 10
	// ShareMax is what the submitter who used most lately is set back by.
	ShareMax float64 // 1

	// While its jobs wait a loaded worker is not stopped for another's of the same
	// priority before it had its turn, AffinityLoads times what loading the two
	// takes (HardWait at most); then it goes as soon as one of those waited
	// AffinityWait, or it went first AffinityJobs times.
	AffinityWait  time.Duration // 60 s
	AffinityJobs  int           // 16
	AffinityLoads int           // 4

	// After the lesser of HardWait and HardWaitRuns times its median run time, but
	// not before HardWaitMin, the devices drain for the job that waits first.
	HardWait     time.Duration // 10 min
	HardWaitRuns int           // 3
	HardWaitMin  time.Duration // 2 min

	// An idle worker is left alone for the larger of MinResident and
	// MinResidentLoads times its load time.
	MinResident      time.Duration // 30 s
	MinResidentLoads int           // 2

	// LoadGuess stands for a load time that nobody measured yet.
	LoadGuess time.Duration // 10 s
	// ReuseWindow is how far ahead the use of an idle worker is looked for.
	ReuseWindow time.Duration // 10 min
}

func (o ReserveOptions) withDefaults() ReserveOptions {
	orDefault(&o.AgePoint, time.Minute)
	orDefault(&o.AgeMax, 10)
	orDefault(&o.ShareMax, 1)
	orDefault(&o.AffinityWait, time.Minute)
	orDefault(&o.AffinityJobs, 16)
	orDefault(&o.AffinityLoads, 4)
	orDefault(&o.HardWait, 10*time.Minute)
	orDefault(&o.HardWaitRuns, 3)
	orDefault(&o.HardWaitMin, 2*time.Minute)
	orDefault(&o.MinResident, 30*time.Second)
	orDefault(&o.MinResidentLoads, 2)
	orDefault(&o.LoadGuess, 10*time.Second)
	orDefault(&o.ReuseWindow, 10*time.Minute)
	return o
}

func orDefault[T int | float64 | time.Duration](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}

// reserve shares devices by real bytes: learned needs, a reservation for the
// first job that cannot start, the others beside it, and idle workers stopped
// where their memory is enough.
type reserve struct{ o ReserveOptions }

// Reserve is the default policy. What it decides depends on the view alone.
func Reserve(o ReserveOptions) sched.Policy { return &reserve{o: o.withDefaults()} }

// Name is what configuration and the API call the policy.
func (r *reserve) Name() string { return "reserve" }

// Decide serves the loads asked for by name, then the ready jobs by rank.
func (r *reserve) Decide(v sched.View) sched.Plan {
	if len(v.Groups) == 0 {
		return sched.Plan{}
	}
	w := newPass(&r.o, v)
	w.loads()
	w.jobs()
	w.tellShadow()
	return w.plan
}

// loads come before any job: a person waits for each of them.
func (w *pass) loads() {
	for i := range w.view.Groups {
		g := &w.view.Groups[i]
		if !g.LoadWanted {
			continue
		}
		switch b := w.closed(g); {
		case b == nil && w.guests[i].here && w.guests[i].gone == "": // what was asked for is there, or on its way
			w.plan.Start = append(w.plan.Start, sched.Start{Instance: g.Instance})
		case b == nil:
			w.startOrNot(i, nil)
		case b.Code == "no_slot" || b.Code == "resource": // passes by itself, soon
			w.block(g, b)
		default:
			w.fail(g, nil, &jobs.Error{Category: jobs.Fatal, Message: b.Sentence})
		}
	}
}

// jobs takes the ready jobs by rank across all groups. A group that cannot go
// on leaves the order and hinders nobody but by its shadow.
func (w *pass) jobs() {
	for i := range w.view.Groups {
		g := &w.view.Groups[i]
		if len(g.Ready) == 0 || w.plan.Block[g.Instance] != nil {
			continue
		}
		if b := w.closed(g); b != nil {
			w.block(g, b)
			continue
		}
		w.line = append(w.line, w.queueUp(i))
	}
	w.line.init()
	for len(w.line) > 0 {
		h := &w.line[0]
		if !w.next(h) || len(h.left) == 0 {
			w.line.pop()
			continue
		}
		h.job = h.left[0]
		w.line.down(0)
	}
}

// next decides about the group's next job and reports whether the group goes on.
func (w *pass) next(h *turn) bool {
	g := &w.view.Groups[h.group]
	if left, bound := w.quota[h.job.Submitter]; bound && left <= 0 {
		w.block(g, overQuota(h.job.Submitter))
		h.left = h.left[1:]
		return true
	}
	if h.slots <= 0 {
		w.block(g, noSlot(g))
		return false
	}
	if w.slots == 0 {
		w.noRunSlot(g)
		return false
	}
	job := h.job // the line moves on; what is kept for this job stays
	switch w.startOrNot(h.group, &job) {
	case started:
		h.slots--
		h.left = h.left[1:]
		if w.slots > 0 {
			w.slots--
		}
		w.spendQuota(h.job.Submitter)
		return true
	case refused:
		h.left = h.left[1:]
		return true
	default:
		return false
	}
}

// startOrNot starts the job (or, with a nil job, the load) of group i, refuses
// it, or blocks the group; it does exactly one of the three.
func (w *pass) startOrNot(i int, t *ranked) verdict {
	a := w.ask(i, t)
	if asker := w.guests[i].gone; asker != "" {
		w.block(a.g, &jobs.Block{Code: "no_slot", Holders: []string{asker}, Sentence: "the worker of " + a.g.Instance + " makes way for " + asker})
		return waits
	}
	if a.facts() {
		if !w.view.Fresh { // nothing is judged, least of all "never", without a reading
			if a.job == nil && bringsFacts(&w.view, a.g) {
				w.start(&a)
				return started
			}
			w.block(a.g, w.stale())
			return waits
		}
		if short := w.never(&a); len(short) > 0 {
			w.fail(a.g, a.ready(), neverFits(&a, short))
			return refused
		}
	}
	if w.place(&a) {
		w.start(&a)
		return started
	}
	if w.view.Fresh && w.makeRoom(&a) {
		return waits
	}
	w.wait(&a)
	return waits
}

// start books what the ask takes and plans it.
func (w *pass) start(a *ask) {
	s := sched.Start{Instance: a.g.Instance, Claims: w.claims(a), Measure: a.measure, Affinity: w.jumps(a)}
	if a.job != nil {
		s.Job = a.job.ID
	}
	gu := &w.guests[a.group]
	if !gu.here && len(a.on) > 0 {
		s.Devices = w.ids(a.on)
	}
	w.constrain(a)
	w.occupy(a)
	w.plan.Start = append(w.plan.Start, s)
}
