// Package simtest runs the real scheduling loop against a model of a machine
// (internal/sim), in virtual time: the loop, its policies and its runners are
// those of the daemon, everything they call is simulated. A Trace says what the
// machine is, what is installed and what happens; Simulate returns what came of
// it, the same for the same trace and policy each time. It is used by the
// property tests of the scheduler and by `cjmd simulate`. One simulation belongs
// to one goroutine. Start with Simulate, then driver.go for how time passes.
package simtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/sim"
)

// Options of a simulation.
type Options struct {
	Policy sched.Policy
	// Watch sees every decision of the policy before it is carried out; nil: nobody
	// looks. It must not change the view or the plan.
	Watch func(*Moment)
	Log   *zap.Logger
	// RAMMargin, Margin (of each device) and Slots are the daemon's settings.
	RAMMargin, Margin resource.Bytes
	Slots             int
}

// Moment is one decision, with the truth of the model beside it.
type Moment struct {
	At      time.Duration
	View    *sched.View
	Plan    *sched.Plan
	Machine *sim.Machine
	// Queue is the number of jobs that are not final.
	Unfinished int
}

// Result is what came of a simulation.
type Result struct {
	Trace   *Trace
	Policy  string
	Jobs    []*JobRecord
	Spans   []Span
	Memory  map[resource.DeviceID]map[string][]Point
	Owners  map[resource.DeviceID][]string // of Memory, in order of appearance
	OOMs    []OOM
	Notes   []Note
	End     time.Duration          // when the last job was final, or the horizon
	Alive   int                    // workers that are left after the daemon's end
	Overdue bool                   // the horizon came before the last job's end
	Blocks  map[string]*jobs.Block // why jobs waited at the end, by instance

	Admissions, Loads, Stops, Releases, Passes int
}

// world is one simulation under way.
type world struct {
	o   Options
	t   *Trace
	d   *driver
	m   *sim.Machine
	rec *recorder
	q   *queue
	cat *catalog
	db  *stores

	// The daemon, which may die and come back.
	gate    *gate
	step    *sched.Stepper
	endWork context.CancelFunc
	timer   func() bool // stops the wake-up after the time that the last pass gave
	due     bool
	down    bool

	total  int // jobs of the trace
	passes int
}

// Simulate runs a trace to its end. The error is the simulator's own: what goes
// wrong in the simulated world is in the result.
func Simulate(t *Trace, o Options) (*Result, error) {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	d := newDriver()
	w := &world{o: o, t: t, d: d, rec: newRecorder(d)}
	m, err := sim.New(t.MachineOptions(d, w.rec))
	if err != nil {
		return nil, err
	}
	defer m.Close()
	w.m, w.cat = m, &catalog{t: t, names: t.Names()}
	w.q, w.db = newQueue(d, w.rec), newStores(t, w.rec)
	if err := w.script(); err != nil {
		return nil, err
	}
	if err := w.startDaemon(); err != nil {
		return nil, err
	}
	return w.run()
}

// script sets the arrivals and the deaths of the daemon.
func (w *world) script() error {
	for _, s := range w.t.Submissions() {
		w.total++
		w.d.AfterFunc(s.At, func() { w.q.submit(s) })
	}
	for _, f := range w.t.Faults {
		if f.Kind != Kill {
			continue
		}
		if w.d.AfterFunc(time.Duration(f.At), w.kill); w.total == 0 {
			return errors.New("a trace without jobs has nothing to kill")
		}
	}
	return nil
}

func (w *world) startDaemon() error {
	ws := newWorkers(w.d, w.m, w.t, w.rec, w.q)
	w.gate = newGate(w.d, w.m, time.Duration(w.t.Machine.MonitorEvery))
	life := w.q.life
	s, err := sched.New(sched.Options{
		Queue: view{queue: w.q, life: life}, Workers: ws, Gate: w.gate, Catalog: w.cat,
		Policies: []sched.Policy{&watched{Policy: w.o.Policy, w: w}},
		Journal:  w.rec, Log: w.o.Log, Now: w.d.Now, AfterFunc: w.d.AfterFunc, Go: w.d.spawn,
		RAMMargin: w.o.RAMMargin, Margin: w.o.Margin, Slots: w.o.Slots,
		Profiles: w.db, Claims: claimsLog{stores: w.db, alive: func() bool { return w.q.life == life }},
	})
	if err != nil {
		return err
	}
	var work context.Context
	work, w.endWork = context.WithCancel(context.Background())
	w.step = s.Stepper(work)
	w.due, w.down = true, false
	return nil
}

// daemonPause is how long the service manager takes to start a daemon again.
const daemonPause = time.Second

// kill is kill -9 of the daemon: nothing of it says or stores anything any
// more, its workers end with it, and another one begins a second later.
func (w *world) kill() {
	if w.down {
		return
	}
	w.endDaemon()
	w.q.restart()
	w.d.AfterFunc(daemonPause, func() {
		if err := w.startDaemon(); err != nil { // the same options were fine before
			panic(fmt.Sprintf("simtest: cannot start the daemon again: %v", err))
		}
	})
}

// endDaemon cuts the daemon off from the queue, then ends what is left of it.
func (w *world) endDaemon() {
	w.down = true
	w.q.life++
	w.m.KillAll()
	w.step.StopAdmitting()
	w.endWork()
	w.settle()
	w.gate.close()
	if w.timer != nil {
		w.timer()
	}
}

// settle lets everything happen that can happen now.
func (w *world) settle() {
	for {
		worked := w.d.settle()
		if w.step.Due() || w.due {
			w.due = false
			w.passes++
			next := w.step.Pass()
			if w.timer != nil {
				w.timer()
			}
			w.timer = w.d.AfterFunc(max(next, time.Microsecond), func() { w.due = true })
			continue
		}
		if !worked {
			return
		}
	}
}

// stuckAfter bounds the passes at one moment: a loop that never rests is an
// error of the scheduler that would otherwise look like a hang.
const stuckAfter = 20_000

func (w *world) run() (*Result, error) {
	limit := epoch.Add(time.Duration(w.t.Horizon))
	at, passes := w.d.now, 0
	for w.q.final < w.total {
		if !w.down {
			w.settle()
		}
		if w.d.now.After(at) {
			at, passes = w.d.now, w.passes
		}
		if w.passes-passes > stuckAfter {
			return nil, fmt.Errorf("the scheduler makes pass after pass at %s", w.d.since())
		}
		if w.q.final < w.total && !w.d.step(limit) {
			w.d.now = limit
			break
		}
	}
	end, blocks := w.d.since(), w.q.blocks
	overdue := w.q.final < w.total
	if !w.down {
		w.endDaemon()
	}
	res := &Result{Trace: w.t, Policy: w.o.Policy.Name(), Jobs: w.rec.order, End: end, Overdue: overdue, Blocks: blocks, Alive: w.m.Alive(),
		OOMs: w.rec.ooms, Notes: w.rec.notes, Memory: w.rec.mem, Owners: w.rec.owner,
		Admissions: w.rec.admissions, Loads: w.rec.loads, Stops: w.rec.stops, Releases: w.rec.releases, Passes: w.passes}
	w.rec.close()
	res.Spans = w.rec.spans
	slices.SortStableFunc(res.Spans, func(a, b Span) int { return cmp.Compare(a.From, b.From) })
	return res, nil
}

// watched shows every decision to whoever watches the simulation.
type watched struct {
	sched.Policy
	w *world
}

// Decide implements sched.Policy.
func (p *watched) Decide(v sched.View) sched.Plan {
	plan := p.Policy.Decide(v)
	if p.w.o.Watch != nil {
		p.w.o.Watch(&Moment{At: p.w.d.since(), View: &v, Plan: &plan, Machine: p.w.m, Unfinished: p.w.total - p.w.q.final})
	}
	return plan
}

// Rank implements sched.Ranker where the policy does.
func (p *watched) Rank(v *sched.View, g *sched.GroupView, r *jobs.Ready) sched.Rank {
	if ranker, ok := p.Policy.(sched.Ranker); ok {
		return ranker.Rank(v, g, r)
	}
	return sched.Rank{Priority: float64(r.Priority), Total: float64(r.Priority)}
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
