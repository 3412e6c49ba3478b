package sched

import (
	"fmt"
	"slices"
	"time"

	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/resource"
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

	// The worker. live is the loop's own account: a worker is loaded or something
	// of ours is about to load it, so its resident claim stands.
	live      bool
	state     supervisor.State
	idleSince time.Time
	rss       resource.Bytes // as last reported
	rssBefore resource.Bytes // as reported before the newest snapshot was taken
	running   int            // runs that hold a slot
	slots     int            // what the loaded worker was started with; 0: unknown

	loading bool // a load of ours is under way, besides any run's
	loads   []*loadRequest
	stop    *stopping
	// victims are workers being stopped so that this one can start; held says
	// that room is reserved for it in the ledger.
	victims []victim
	held    bool

	failures  int // starts that failed in a row
	coolUntil time.Time
	failed    string // our own verdict, until a person looks
	gaveUp    string // the supervisor's, as long as it stands
	waitSince time.Time

	// Numbers of the views in which the instance was last seen, and was last
	// wanted by a job or a load.
	inView, wantedAt uint64
}

// victim is a worker that makes room. Its memory counts as returned once the
// monitor has looked after its end.
type victim struct {
	name    string
	stopped time.Time // zero while it is being stopped
}

func (l *loop) inst(name string) *inst {
	if in := l.insts[name]; in != nil {
		return in
	}
	in := &inst{name: name}
	l.describe(in)
	l.insts[name] = in
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
	in.concurrency = max(i.Concurrency, 0)
	if in.concurrency == 0 {
		in.concurrency = max(m.Concurrency, 1)
	}
}

// refresh folds in what changed outside since the last pass.
func (l *loop) refresh(now time.Time) {
	if l.catalogChanged {
		l.catalogChanged = false
		for _, in := range l.insts {
			l.describe(in)
		}
		l.forgetDeleted()
	}
	if l.workersChanged && now.Sub(l.workersSeen) >= workersEvery {
		l.workersChanged = false
		l.workersSeen = now
		for _, st := range l.s.o.Workers.List() {
			l.observe(now, l.inst(st.Instance), st)
		}
	}
	if l.gateChanged {
		l.gateChanged = false
		l.foldSnapshot(now)
	}
	l.rebalance()
}

// forgetDeleted drops what the catalogue does not know any more and nobody
// uses. A worker that is still loaded, or jobs that wait, bring it back.
func (l *loop) forgetDeleted() {
	for name, in := range l.insts {
		if in.known || in.live || in.held || in.loading || in.running > 0 || in.stop != nil || len(in.loads)+len(in.victims) > 0 {
			continue
		}
		delete(l.insts, name)
		l.s.configuring.Delete(name)
		l.spawn(func() { l.s.o.Workers.Forget(name) })
	}
}

// rebalance brings the free figures up to date with the ledger.
func (l *loop) rebalance() {
	if l.ledger.changed {
		l.ledger.changed = false
		l.freeRAM, l.devFree, l.totalRAM = l.ledger.balance(l.snap)
	}
}

// foldSnapshot takes the monitor's newest reading. A worker's use is credited
// only as far as it was seen both before and after the reading was taken:
// what grew in between may be missing from the reading.
func (l *loop) foldSnapshot(now time.Time) {
	l.snap, l.fresh = l.s.o.Gate.Latest()
	l.monitor = l.s.o.Gate.Registered()
	l.ledger.changed = true
	for _, in := range l.insts {
		if in.live {
			l.ledger.measure(in.name, resource.HostDevice, min(in.rssBefore, in.rss))
			in.rssBefore = in.rss
		}
		in.victims = slices.DeleteFunc(in.victims, func(v victim) bool {
			return !v.stopped.IsZero() && l.snap.At.After(v.stopped)
		})
	}
	l.measureDevices()
}

// measureDevices credits what the monitor saw each worker's process hold.
func (l *loop) measureDevices() {
	if len(l.snap.Processes) == 0 {
		return
	}
	byPID := make(map[int]map[resource.DeviceID]resource.Bytes, len(l.snap.Processes))
	for _, p := range l.snap.Processes {
		if byPID[p.PID] == nil {
			byPID[p.PID] = make(map[resource.DeviceID]resource.Bytes)
		}
		byPID[p.PID][p.Device] += p.Memory
	}
	for _, in := range l.insts {
		if !in.live {
			continue
		}
		st, ok := l.s.o.Workers.Status(in.name)
		if !ok || st.PID == 0 {
			continue
		}
		for dev, used := range byPID[st.PID] {
			l.ledger.measure(in.name, dev, used)
		}
	}
}

// observe brings the loop's account of one worker in line with what it is.
func (l *loop) observe(now time.Time, in *inst, st supervisor.Status) {
	in.state, in.rss, in.slots = st.State, resource.Bytes(st.RSS), st.Concurrency
	in.gaveUp = ""
	if st.State == supervisor.FailedState || st.State == supervisor.Unkillable {
		in.gaveUp = orElse(st.LastError, "the worker of "+in.name+" gave up")
	}
	switch st.State {
	case supervisor.Stopped, supervisor.Backoff, supervisor.FailedState:
		if st.State == supervisor.Backoff && st.RetryAt.After(now) {
			in.coolUntil = later(in.coolUntil, st.RetryAt)
		}
		if in.running == 0 && !in.loading {
			l.gone(in)
		}
	default:
		if !in.live {
			l.alive(now, in)
		}
		switch st.State {
		case supervisor.ReadyState, supervisor.Busy:
			l.ledger.setPhase(now, in.name, PhaseResident)
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
	in.live = true
	if in.running == 0 {
		in.idleSince = now
	}
	if in.demand.MinRAM > 0 {
		l.ledger.take(now, []Claim{{Owner: in.name, Kind: KindResident, Device: resource.HostDevice,
			Bytes: in.demand.MinRAM, Phase: PhaseResident}})
	}
}

// gone accounts for a worker that is no more.
func (l *loop) gone(in *inst) {
	if !in.live {
		return
	}
	in.live = false
	in.idleSince = time.Time{}
	in.rss, in.rssBefore = 0, 0
	l.ledger.release(in.name)
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
	}
}

// runEnded frees a run's slot. Its outcome may still be on its way to the disk.
func (l *loop) runEnded(r *run) {
	now := l.s.o.Now()
	delete(l.runs, r.id)
	in := r.in
	in.running--
	l.s.metrics.running.Set(float64(len(l.runs)))
	if in.running == 0 {
		in.idleSince = now
	}
	switch {
	case r.startErr != nil:
		l.startFailed(now, in, r.startErr)
		l.look(now, in)
	case r.reached && in.failures > 0:
		in.startSucceeded()
	}
	if r.lost || !r.reached {
		l.look(now, in)
	}
	l.stopWhenIdle(in)
}

func (l *loop) settling() bool {
	for _, in := range l.insts {
		if len(in.victims) > 0 {
			return true
		}
	}
	return false
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
