package sched

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched/learn"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// inst is what the loop knows about one instance. Owned by the loop.
type inst struct {
	name string

	// From the catalogue; read again when it changes.
	known       bool
	problem     string
	enabled     bool
	pinned      bool
	manifest    string // hash of what the plugin is
	demand      resource.Demand
	concurrency int
	timeouts    plugins.Timeouts
	placement   plugins.Placement
	profile     learn.Key // without the device model

	// The worker. live is the loop's own account: a worker is loaded or something
	// of ours is about to load it, so its resident claim stands.
	live      bool
	state     supervisor.State
	idleSince time.Time
	rss       resource.Bytes // as last reported
	rssBefore resource.Bytes // as reported before the newest snapshot was taken
	running   int            // runs that hold a slot
	slots     int            // what the loaded worker was started with; 0: unknown
	canAsk    bool           // its plugin offers release()

	// Where the worker sits and what it was seen to hold.
	devices                 []resource.DeviceID
	split                   bool // its policy sets aside what the worker and what its jobs take apart
	loaded                  bool // it was seen ready since it was started
	begun                   bool // something of ours may have started it
	use                     map[resource.DeviceID]use
	refs                    map[resource.DeviceID]reference
	pids                    []int
	meter                   meter
	lastPriority            int       // of the job it ran last
	riseFrom                time.Time // begin of a load or run after a pause; zero when its memory was seen
	riseBase                resource.Bytes
	lingers                 time.Time // end of a run whose memory no reading has followed yet; zero: none
	measureLoad             bool      // its load has the device to itself
	oneByOne                bool      // its jobs start one a pass: they take unequal amounts
	streak                  int       // starts in a row that went before an older job's
	measuring               *run      // nil, or the run that has the device to itself
	asked                   bool      // for release(), since it last ran
	residentSince, lastUsed time.Time
	uses                    uses

	loading   bool // a load of ours is under way, besides any run's
	loads     []*loadRequest
	stop      *stopping
	barred    string // why nothing new starts on its worker, which may stay: a lease is short
	wasBarred string // by the pass before
	drained   bool   // chosen to make way for a lease
	// victims are workers being stopped so that this one can start; held says
	// that room is reserved for it in the ledger.
	victims []victim
	held    bool

	ladder    *ladder // after a load that ran out of memory; nil: none
	failures  int     // starts that failed in a row
	coolUntil time.Time
	failed    string // our own verdict, until a person looks
	gaveUp    string // the supervisor's, as long as it stands
	waitSince time.Time
	stood     standing // when the last plan was made

	// Numbers of the views in which the instance was last seen, and was last
	// wanted by a job or a load.
	inView, wantedAt uint64
}

// victim is a worker that makes room. Its memory counts as returned once the
// monitor has looked after its end.
type victim struct {
	name    string
	stopped time.Time // zero while it is being stopped, or asked to release
}

func (l *loop) inst(name string) *inst {
	if in := l.insts[name]; in != nil {
		return in
	}
	in := &inst{name: name}
	l.describe(in)
	l.insts[name] = in
	at, _ := slices.BinarySearchFunc(l.order, name, func(o *inst, n string) int { return strings.Compare(o.name, n) })
	l.order = slices.Insert(l.order, at, in)
	return in
}

// describe reads the instance's entry in the catalogue.
func (l *loop) describe(in *inst) {
	i, m, err := l.s.o.Catalog.Instance(in.name)
	if err != nil {
		in.known, in.problem = false, err.Error()
		return
	}
	in.known, in.problem = true, ""
	in.enabled, in.pinned = i.Enabled, i.Pinned
	if in.manifest != "" && in.manifest != m.Hash { // what failed may be mended: it is tried again
		in.startSucceeded()
		l.s.o.Workers.Reset(in.name)
	}
	in.manifest = m.Hash
	in.demand, in.timeouts = m.Demand, m.Timeouts
	in.placement = i.PlacementOf(m)
	in.demand.Devices = max(in.demand.Devices, in.placement.Count)
	in.profile = learn.Key{Plugin: m.Name, ConfigHash: learn.ConfigHash(i.Config)}
	in.concurrency = max(i.Concurrency, 0)
	if in.concurrency == 0 {
		in.concurrency = max(m.Concurrency, 1)
	}
}

// refresh folds in what changed outside since the last pass. It reports whether
// workers or devices were read.
func (l *loop) refresh(now time.Time) (read bool) {
	if l.catalogChanged {
		l.catalogChanged, l.basis.moved = false, true
		for _, in := range l.order {
			l.describe(in)
		}
		l.forgetDeleted()
	}
	if l.workersChanged && now.Sub(l.workersSeen) >= workersEvery {
		l.workersChanged, read = false, true
		l.workersSeen = now
		for _, st := range l.s.o.Workers.List() {
			l.observe(now, l.inst(st.Instance), st)
		}
	}
	if l.gateChanged {
		l.gateChanged, read = false, true
		l.foldSnapshot(now)
	}
	l.rebalance()
	l.climb(now)
	return read
}

// forgetDeleted drops what the catalogue does not know any more and nobody
// uses. A worker that is still loaded, or jobs that wait, bring it back.
func (l *loop) forgetDeleted() {
	for _, in := range slices.Clone(l.order) {
		name := in.name
		if in.known || in.live || in.held || in.loading || in.running > 0 || in.stop != nil || len(in.loads)+len(in.victims) > 0 {
			continue
		}
		delete(l.insts, name)
		l.order = slices.DeleteFunc(l.order, func(o *inst) bool { return o == in })
		l.s.configuring.Delete(name)
		l.spawn(func() { l.s.o.Workers.Forget(name) })
	}
}

// rebalance brings the free figures up to date with the ledger.
func (l *loop) rebalance() {
	if l.ledger.changed {
		l.ledger.changed = false
		l.balance()
	}
}

// observe brings the loop's account of one worker in line with what it is.
func (l *loop) observe(now time.Time, in *inst, st supervisor.Status) {
	in.state, in.rss, in.slots = st.State, resource.Bytes(st.RSS), st.Concurrency
	in.canAsk = st.Ready != nil && slices.Contains(st.Ready.Capabilities, requestRelease)
	gaveUp := in.gaveUp
	in.gaveUp = ""
	if st.State == supervisor.FailedState || st.State == supervisor.Unkillable {
		in.gaveUp = orElse(st.LastError, "the worker of "+in.name+" gave up")
	}
	switch {
	case in.gaveUp != "" && gaveUp == "":
		l.tellInstanceQuarantined(in, in.gaveUp)
	case in.gaveUp == "" && gaveUp != "":
		l.publishShut()
	}
	switch st.State {
	case supervisor.Stopped, supervisor.Backoff, supervisor.FailedState:
		if st.State == supervisor.Backoff && st.RetryAt.After(now) {
			in.coolUntil = later(in.coolUntil, st.RetryAt)
		}
		if in.running == 0 && !in.loading {
			l.gone(now, in)
		}
	default:
		in.begun = true
		if !in.live {
			l.alive(now, in)
		}
		switch st.State {
		case supervisor.ReadyState, supervisor.Busy:
			l.ledger.setPhase(now, in.name, PhaseResident)
			in.loadEnds(now, &st)
		case supervisor.Starting, supervisor.Initializing:
			l.ledger.setPhase(now, in.name, PhaseLoading)
		case supervisor.Draining, supervisor.Stopping, supervisor.Killing:
			l.ledger.setPhase(now, in.name, PhaseDraining)
		}
	}
}

// alive accounts for a worker that exists although nobody here started it: its
// memory is taken whatever the policy would have said.
func (l *loop) alive(now time.Time, in *inst) {
	in.live, in.residentSince, in.lastUsed = true, now, now
	in.loaded = false
	if in.running == 0 {
		in.idleSince = now
	}
	if in.demand.MinRAM > 0 {
		l.ledger.take(now, []Claim{{Owner: in.name, Kind: KindResident, Device: resource.HostDevice,
			Bytes: in.demand.MinRAM, Phase: PhaseResident}})
	}
}

// gone accounts for a worker that is no more. What it had of the accelerators is
// given away again when it is seen back; of one that never began, at once.
func (l *loop) gone(now time.Time, in *inst) {
	if !in.live {
		return
	}
	in.live = false
	if in.begun {
		l.teachAtEnd(now, in)
		l.leave(now, in)
	} else {
		l.ledger.release(in.name)
	}
	in.begun, in.loaded, in.split, in.asked, in.measuring, in.measureLoad = false, false, false, false, nil, false
	in.idleSince, in.residentSince = time.Time{}, time.Time{}
	in.rss, in.rssBefore = 0, 0
	in.devices, in.meter, in.lingers, in.lastPriority = nil, meter{}, time.Time{}, 0
	l.forgetClaims(in.name)
}

// look asks for the worker's state now, after something of ours ended.
func (l *loop) look(now time.Time, in *inst) {
	st, ok := l.s.o.Workers.Status(in.name)
	if !ok {
		st.State = supervisor.Stopped
	}
	l.observe(now, in, st)
}

// slotsTotal is how many runs the instance's worker can take: what it was
// started with, where that is less than what is configured by now.
func (in *inst) slotsTotal() int {
	if in.live && in.slots > 0 {
		return min(in.concurrency, in.slots)
	}
	return in.concurrency
}

// ready reports whether the worker can take a call, as far as is known: one that
// something of ours is loading cannot yet.
func (l *loop) ready(in *inst) bool {
	state := in.state
	if state != supervisor.ReadyState && state != supervisor.Busy { // as last looked at
		st, _ := l.s.o.Workers.Status(in.name)
		state = st.State
	}
	return state == supervisor.ReadyState || state == supervisor.Busy
}

// slotsFree says how many more runs the instance's worker can take.
func (in *inst) slotsFree() int { return max(in.slotsTotal()-in.running, 0) }

// startSucceeded forgets earlier failures.
func (in *inst) startSucceeded() {
	in.failures, in.coolUntil, in.failed = 0, time.Time{}, ""
}

// startFailed notes a failed start: the others of this instance cool down, and
// after too many a person must look. Several runs that waited for one start
// report it once each; it counts once.
func (l *loop) startFailed(now time.Time, in *inst, err *supervisor.StartError) {
	switch err.Step {
	case stepBackoff:
		in.coolUntil = later(in.coolUntil, err.RetryAt)
		return
	case stepGaveUp, stepStopped: // the worker's state says so itself
		return
	}
	if in.failed != "" || (in.failures > 0 && in.coolUntil.After(now)) {
		return
	}
	in.failures++
	cool := min(coolDownFirst<<min(in.failures-1, 10), coolDownMax)
	in.coolUntil = later(now.Add(cool), err.RetryAt)
	if in.failures >= l.s.o.MaxStartFailures {
		in.failed = fmt.Sprintf("the worker of %s failed to start %d times in a row, last: %s; load or reload it to try again",
			in.name, in.failures, err.Error())
		l.tellInstanceQuarantined(in, in.failed)
	}
}

// runEnded frees a run's slot. Its outcome may still be on its way to the disk.
func (l *loop) runEnded(r *run) {
	now := l.s.o.Now()
	delete(l.runs, r.id)
	in := r.in
	in.running--
	l.linger(now, r)
	in.lastUsed = now
	if r.vanished {
		l.troubleOf(now, r.id).vanished++
	}
	if r.reached && !r.lost {
		in.ran(now, r, in.running+1)
		in.asked = false
	} else {
		delete(in.meter.runs, r)
	}
	l.s.metrics.running.Set(float64(len(l.runs)))
	if in.running == 0 {
		in.idleSince = now
	}
	switch {
	case r.startErr != nil:
		if r.oom == loadOOM { // before the worker's end is noted: where it sat is still known
			l.noteOOM(now, in, r)
		}
		if r.oom != loadOOM || r.need.Known { // who measures may find a device too small
			l.startFailed(now, in, r.startErr)
		}
		l.look(now, in)
	case r.reached && in.failures > 0:
		in.startSucceeded()
	}
	if r.oom == runOOM {
		l.noteOOM(now, in, r)
	}
	if r.lost || !r.reached {
		if in.measuring == r {
			in.measuring = nil
			l.ledger.changed = true
		}
		l.look(now, in)
	}
	l.stopWhenIdle(now, in)
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
