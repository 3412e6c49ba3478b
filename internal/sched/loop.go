package sched

import (
	"context"
	"sync"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched/learn"
	"go.uber.org/zap"
)

// loop is the scheduling goroutine's own state; nobody else touches it.
type loop struct {
	s    *Scheduler
	work context.Context
	wg   sync.WaitGroup // runners, loads and stops

	loading   context.Context // of loads that no job waits for: ends with admission
	stopLoads context.CancelFunc
	admitting bool
	insts     map[string]*inst
	order     []*inst // the same, by name: what follows from the order is the same each time
	runs      map[jobs.ID]*run
	ledger    ledger

	snap     resource.Snapshot
	fresh    bool
	monitor  string
	freeRAM  resource.Bytes
	totalRAM resource.Bytes
	devFree  map[resource.DeviceID]resource.Bytes
	// What was read and reckoned of the accelerators; by index.
	devs            []DeviceView
	pools           map[resource.DeviceID]*pool
	accounts        map[accountKey]account
	settles         []*settle
	byPID           map[int][]*resource.Process
	found           map[resource.DeviceID]use
	blind           []*inst
	hostMeasured    resource.Bytes // of the host, by our workers
	lastMonitor     string
	lists           bool // the monitor lists processes: who is not among them yet is not measured by what moves
	monitorInstance string
	trees           treeLister // nil: only the first process of a worker is known
	places          placer     // nil: workers are not told of devices

	profiles    map[learn.Key]learn.Profile
	toldProfile map[learn.Key]learn.Estimate
	times       map[learn.Key]times
	lags        []time.Duration
	lag         time.Duration
	lagBound    time.Duration
	unsaved     map[learn.Key]bool
	saving      bool
	savedAt     time.Time
	journalled  map[string]bool // instances of which the claims log has rows
	leases      []*lease
	barring     bool           // a lease is short
	hostLeased  resource.Bytes // what leases still take off the host's memory
	leaseEnds   time.Time
	troubles    map[jobs.ID]*trouble
	share       map[string]float64
	chargedAt   time.Time
	quota       map[string]int
	swaps       swaps
	shadow      *Shadow   // in force
	shadowTold  *Shadow   // by an event
	shadowMoved time.Time // since when the two differ; zero: they do not
	told        map[Thrash]time.Time
	failed      error // what restore answered

	active     bool      // the gate was asked for fast sampling
	quietSince time.Time // nothing has run since; zero while something does

	// What changed since the last pass.
	workersChanged, gateChanged, catalogChanged bool
	workersSeen                                 time.Time

	blocks map[string]*jobs.Block // as last told to the queue
	codes  map[string]int         // instances by block code, for metrics
	passes uint64
	views  uint64 // views built; a preview makes one more than there are passes
	took   time.Duration
	// expireNot delays the next Expire after one that failed.
	expireNot time.Time
	// admitNot keeps the loop from admitting after an Admit that failed.
	admitNot time.Time

	basis basis
	kept  bool // the last pass kept the plan of an earlier one

	// Reused from pass to pass.
	groups  []GroupView
	running []RunView
	lent    []Claim // claims as the view has them
	ended   []*run
	calls   []func(*loop)
}

// workersEvery bounds how often the workers' states are read: they change far
// more often than the loop needs to know, and what it must know at once it
// hears from its own runs.
const workersEvery = 5 * time.Millisecond

// quietAfter is how long fast sampling goes on after the last run.
const quietAfter = time.Second

func newLoop(s *Scheduler, work context.Context) *loop {
	loading, stopLoads := context.WithCancel(work)
	l := &loop{
		s: s, work: work, loading: loading, stopLoads: stopLoads, admitting: true,
		insts: make(map[string]*inst), runs: make(map[jobs.ID]*run),
		ledger: ledger{margin: s.o.RAMMargin, changed: true},
		blocks: make(map[string]*jobs.Block), codes: make(map[string]int),
		workersChanged: true, gateChanged: true, catalogChanged: true,
		pools: make(map[resource.DeviceID]*pool), accounts: make(map[accountKey]account),
		byPID: make(map[int][]*resource.Process), found: make(map[resource.DeviceID]use),
		profiles: make(map[learn.Key]learn.Profile), toldProfile: make(map[learn.Key]learn.Estimate), unsaved: make(map[learn.Key]bool), times: make(map[learn.Key]times),
		journalled: make(map[string]bool), troubles: make(map[jobs.ID]*trouble), share: make(map[string]float64),
		quota: make(map[string]int), swaps: make(swaps), told: make(map[Thrash]time.Time),
	}
	l.trees, _ = s.o.Workers.(treeLister)
	l.places, _ = s.o.Workers.(placer)
	l.failed = l.restore(work)
	return l
}

func (l *loop) run(admit context.Context) error {
	if l.failed != nil {
		return l.failed
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	admitDone, workDone := admit.Done(), l.work.Done()
	for {
		select {
		case <-l.s.o.Queue.Changed():
			l.basis.moved = true
		case <-l.s.mail.wake:
		case <-l.s.o.Workers.Changed():
			l.workersChanged = true
			if young := l.s.o.Now().Sub(l.workersSeen); young < workersEvery {
				timer.Reset(workersEvery - young)
				continue
			}
		case <-l.s.o.Gate.Changed():
			l.gateChanged = true
		case <-l.s.o.Catalog.Changed():
			l.catalogChanged = true
		case <-timer.C:
		case <-admitDone:
			l.stopAdmitting()
			admitDone = nil
		case <-workDone:
			l.stopAdmitting()
			workDone = nil
		}
		next := l.pass()
		if !l.admitting && len(l.runs) == 0 && !l.busyInstances() {
			return nil
		}
		timer.Reset(next)
	}
}

// stopAdmitting ends intake: nothing is started any more, what waits for the
// loop is refused.
func (l *loop) stopAdmitting() {
	l.admitting = false
	l.stopLoads() // nobody waits for them any more
	for _, in := range l.order {
		in.answerLoads(ErrStopping)
		if in.stop != nil && !in.stop.begun {
			in.stop.answer(ErrStopping)
			in.stop = nil
		}
	}
}

// busyInstances reports whether a load or stop is still under way.
func (l *loop) busyInstances() bool {
	for _, in := range l.order {
		if in.loading || (in.stop != nil && in.stop.begun) {
			return true
		}
	}
	return false
}

// pass is one scheduling pass: messages, expiry, cancels, view, decision,
// effects. It returns how long the loop may sleep at most.
func (l *loop) pass() time.Duration {
	begin := time.Now()
	now := l.s.o.Now()
	l.readMail()
	l.charge(now)
	l.expireLeases(now)
	read := l.refresh(now)
	q := l.s.o.Queue
	if d := q.NextDeadline(); !d.IsZero() && !d.After(now) && !l.expireNot.After(now) {
		l.basis.moved = true
		if err := q.Expire(l.work, now); err != nil && l.work.Err() == nil {
			l.s.log.Error("cannot expire jobs", zap.Error(err))
			l.expireNot = now.Add(time.Second)
		}
	}
	for _, c := range q.Cancels() {
		if r := l.runs[c.ID]; r != nil {
			r.cancel(errUserCancelled)
		}
	}
	l.decide(now, read)
	l.tellShadow(now)
	l.saveProfiles(now, false)
	l.sampleRate(now)
	l.publishShut()
	l.passes++
	l.took = time.Since(begin)
	l.s.metrics.pass.Observe(l.took.Seconds())
	l.s.lastRun.Store(now.UnixNano())
	return l.sleep(now)
}

// decide has the policy make a plan and makes it true, unless nothing has
// changed that the last one rests on.
func (l *loop) decide(now time.Time, read bool) {
	l.kept = false
	switch {
	case !l.admitting:
		l.basis.wake = time.Time{}
		return
	case l.admitNot.After(now):
		l.basis.moved = true
		return
	}
	l.roomForLeases(now)
	if l.kept = !l.mustDecide(now, read); l.kept {
		return
	}
	view := l.view(now)
	if l.roomForLeases(now) { // building the view gave room back
		view = l.view(now)
	}
	plan := (*l.s.policy.Load()).Decide(view)
	l.apply(now, plan)
	l.decided(now, plan.WakeAt, plan.acts() || l.ledger.changed)
}

func (l *loop) readMail() {
	l.ended, l.calls = l.s.mail.take(l.ended, l.calls)
	if len(l.ended)+len(l.calls) > 0 {
		l.basis.moved = true
	}
	for i, f := range l.calls { // first: who withdrew a wish did so before anything ended
		f(l)
		l.calls[i] = nil
	}
	for i, r := range l.ended {
		l.runEnded(r)
		l.ended[i] = nil
	}
}

// sleep says how long nothing needs to be done.
func (l *loop) sleep(now time.Time) time.Duration {
	d := heartbeat
	shorten := func(t time.Time) {
		if !t.IsZero() {
			d = min(d, max(t.Sub(now), 0))
		}
	}
	shorten(l.basis.wake)
	shorten(l.leaseEnds)
	if !l.shadowMoved.IsZero() {
		shorten(l.shadowMoved.Add(shadowStands))
	}
	if len(l.unsaved) > 0 && !l.saving {
		shorten(l.savedAt.Add(saveEvery))
	}
	if t := l.s.o.Queue.NextDeadline(); !t.IsZero() {
		shorten(later(t, l.expireNot))
	}
	if l.active && !l.quietSince.IsZero() {
		shorten(l.quietSince.Add(quietAfter))
	}
	if l.admitNot.After(now) {
		shorten(l.admitNot)
	}
	if l.workersChanged {
		d = min(d, workersEvery)
	}
	return d
}

// sampleRate asks for fast sampling while something loads, runs or is released.
func (l *loop) sampleRate(now time.Time) {
	if len(l.runs) > 0 || l.busyInstances() || l.settling() {
		l.quietSince = time.Time{}
		if !l.active {
			l.active = true
			l.s.o.Gate.SetActive(true)
		}
		return
	}
	if l.quietSince.IsZero() {
		l.quietSince = now
	}
	if l.active && now.Sub(l.quietSince) >= quietAfter {
		l.active = false
		l.s.o.Gate.SetActive(false)
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
