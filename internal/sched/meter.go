package sched

import (
	"time"

	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched/learn"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// amounts are bytes by device, the host among them.
type amounts map[resource.DeviceID]resource.Bytes

// raise makes each amount no less than the other's.
func (a *amounts) raise(by amounts) {
	for dev, n := range by {
		if *a == nil {
			*a = make(amounts, len(by))
		}
		if old, ok := (*a)[dev]; !ok || n > old {
			(*a)[dev] = n
		}
	}
}

// meter is what is known of one worker's memory. A reading shows the machine at
// some moment of the allowance before it was taken, so
//
//   - one taken before the first call shows no more than the load takes: a lower bound of it;
//   - one taken an allowance after the load's end and before the first call shows just that;
//   - one taken an allowance after the last run's end and before the next shows an
//     idle worker: its load, and what it keeps of its runs;
//   - any other may show all of it at once, and is a lower bound of the whole.
//
// Nothing is concluded beyond these. What a run takes is a peak of the whole less
// the lower bound of the load, so that it is rather too much.
type meter struct {
	began, ended time.Time // of the load; zero when it was not ours to see, or lasts
	took         time.Duration
	taught       bool      // the load was learned
	called       time.Time // begin of the first call; zero: none yet
	quiet        time.Time // end of the last run

	load   amounts // most that was seen before the first call
	level  amounts // what the loaded worker holds, where that is certain; nil before
	idle   amounts // what it held when it was last seen idle after a run; nil before
	source string  // of the device's figures in load, level and idle
	// bounded: the load was learned from idle as no more than that.
	bounded bool

	// told and says are what the worker itself reported before its first call, and
	// last. top is the most its allocators had, as far as that has been taken note of;
	// beside is what the idle worker held beyond its report: no allocator knows what
	// the driver keeps for its process.
	told, says, top, beside amounts

	// crowd is the most runs at once since the worker was last seen without anything
	// of a run: what it keeps may be of all of them.
	crowd    int
	runs     map[*run]*ranRun
	finished []*ranRun // in order of their end, no reading has followed yet
}

// ranRun is one run as readings showed it.
type ranRun struct {
	begin, end time.Time
	took       time.Duration
	failed     bool
	peak       amounts
	source     string
	readings   int  // that can show nothing but the run
	told       bool // the worker itself reported its peak
	crowd      int
}

// enoughReadings of a run show what it takes.
const enoughReadings = 3

// maxFinished bounds the runs that wait for one reading: a worker of very short
// jobs teaches with some of them.
const maxFinished = 32

// pending reports whether something has ended that no reading has followed yet.
func (m *meter) pending() bool {
	return (!m.taught && !m.began.IsZero() && !m.ended.IsZero()) || len(m.finished) > 0
}

// loadBegins starts the measurement of a load.
func (in *inst) loadBegins(now time.Time) {
	in.meter = meter{began: now}
	in.riseFrom, in.riseBase = now, 0
	in.loaded = false
}

// loadEnds notes that the worker is ready.
func (in *inst) loadEnds(now time.Time, st *supervisor.Status) {
	in.loaded = true
	m := &in.meter
	if m.began.IsZero() || !m.ended.IsZero() {
		return
	}
	m.ended = now
	m.took = time.Duration(st.LoadMillis) * time.Millisecond
	if m.took <= 0 {
		m.took = now.Sub(m.began)
	}
}

// runOf is the account of a run that has begun; nil while its worker loads.
func (m *meter) runOf(r *run) *ranRun {
	if x := m.runs[r]; x != nil {
		return x
	}
	begin := r.executing(time.Time{})
	if begin.IsZero() || begin.Before(m.began) {
		return nil
	}
	if m.runs == nil {
		m.runs = make(map[*run]*ranRun)
	}
	x := &ranRun{begin: begin}
	m.runs[r] = x
	if m.called.IsZero() || begin.Before(m.called) {
		m.called = begin
	}
	return x
}

// ran notes the end of a run, for a reading to come; atOnce is how many there
// were until then.
func (in *inst) ran(now time.Time, r *run, atOnce int) {
	m := &in.meter
	m.crowd = max(m.crowd, atOnce)
	x := m.runOf(r)
	delete(m.runs, r)
	m.quiet = now
	if x == nil || len(m.finished) >= maxFinished {
		return
	}
	x.end, x.took, x.failed = now, max(now.Sub(x.begin), 1), !r.clean
	x.crowd = max(x.crowd, m.crowd)
	m.finished = append(m.finished, x)
}

// seen is what a reading shows of the worker, and by what; nothing of one that
// needs an accelerator and was seen on none.
func (in *inst) seen() (a amounts, source string) {
	a = make(amounts, len(in.use)+1)
	for dev, u := range in.use {
		if u.missed == 0 {
			a[dev], source = u.bytes, u.source
		}
	}
	if source == "" && in.demand.RequiresGPU {
		return nil, ""
	}
	if in.rss > 0 {
		a[resource.HostDevice] = in.rss
	}
	return a, source
}

// report takes the worker's own account of the accelerators: what it holds, and
// the most it ever had.
func (m *meter) report(says, top amounts, at time.Time) {
	m.says = says
	if m.called.IsZero() || at.Before(m.called) {
		m.told = says
		m.load.raise(says)
		m.load.raise(top)
		m.top.raise(top)
		return
	}
	for dev, n := range top {
		if n <= m.top[dev] {
			continue
		}
		for _, x := range m.runs {
			x.tell(dev, n+m.beside[dev])
		}
		for _, x := range m.finished {
			x.tell(dev, n+m.beside[dev])
		}
	}
	m.top.raise(top)
}

// tell takes a peak by the worker's own account.
func (x *ranRun) tell(dev resource.DeviceID, n resource.Bytes) {
	x.peak.raise(amounts{dev: n})
	x.told = true
	if x.source == "" {
		x.source = learn.SourceWorker
	}
}

// noteCalls notes which runs have begun.
func (l *loop) noteCalls() {
	for _, r := range l.runs {
		r.in.meter.runOf(r)
	}
}

// meterAll folds a new reading into what is known of every worker.
func (l *loop) meterAll(now time.Time) {
	for _, in := range l.order {
		if in.live {
			l.meterOne(now, in)
		}
	}
}

func (l *loop) meterOne(now time.Time, in *inst) {
	m, at, lag := &in.meter, l.snap.At, l.allowanceOf(in)
	a, source := in.seen()
	m.crowd = max(m.crowd, in.running)
	switch {
	case m.called.IsZero() || at.Before(m.called):
		m.load.raise(a)
		if source != "" {
			m.source = source
		}
		if !m.ended.IsZero() && at.Sub(m.ended) >= lag && len(a) > 0 {
			m.level = a
			m.noteBeside(a)
			l.fitClaim(in, a)
		}
	case in.running == 0 && at.Sub(m.quiet) >= lag && !in.leaving() && len(a) > 0:
		l.rests(now, in, a, source)
	}
	for _, x := range m.runs {
		x.see(a, source, m.crowd)
		if at.Sub(x.begin) >= lag {
			x.readings++
		}
	}
	if !m.taught && !m.ended.IsZero() && at.Sub(m.ended) >= lag {
		l.teachLoad(now, in)
	}
	m.finished = l.teachRuns(now, in, a, source, lag)
	if in.running == 0 && !m.pending() && in.measuring != nil {
		in.measuring = nil
		l.ledger.changed = true
	}
}

// see adds a reading that may show the run.
func (x *ranRun) see(a amounts, source string, crowd int) {
	x.peak.raise(a)
	x.crowd = max(x.crowd, crowd)
	if source != "" {
		x.source = source
	}
}

// rests takes a reading of the idle worker. Where nothing is left of its runs
// the reading shows what its load takes, and the next runs are told apart anew.
func (l *loop) rests(now time.Time, in *inst, a amounts, source string) {
	m := &in.meter
	m.idle = a
	m.noteBeside(a)
	if source != "" {
		m.source = source
	}
	switch {
	case m.level != nil:
	case m.restsAtLoad(a):
		m.level = make(amounts, len(a))
		for dev, n := range a {
			m.level[dev] = n - m.keeps(dev)
		}
		l.teachLevel(now, in, m.level)
	case in.slotsTotal() == 1 && !m.bounded: // what it keeps is for the next run: one figure is enough
		m.bounded = true
		l.teachLevel(now, in, a)
	}
	if low, ok := m.low(); ok && m.within(a, low) {
		m.crowd = 0
	}
	l.fitClaim(in, a)
}

// noteBeside compares a reading of the idle worker with its own report.
func (m *meter) noteBeside(a amounts) {
	m.beside = make(amounts, len(m.says))
	for dev, n := range m.says {
		m.beside[dev] = max(a[dev]-n, 0)
	}
}

// restsAtLoad reports whether the idle worker's reading tells what its load
// takes: it is what the load was seen to take, or the worker itself says what it
// keeps beside.
func (m *meter) restsAtLoad(a amounts) bool {
	return (len(m.load) > 0 && m.within(a, m.load)) || (len(m.told) > 0 && len(m.says) > 0)
}

// keeps is what the worker itself says that it keeps of its runs.
func (m *meter) keeps(dev resource.DeviceID) resource.Bytes {
	told, ok := m.told[dev]
	if !ok {
		return 0
	}
	return max(m.says[dev]-told, 0)
}

// within reports whether the accelerators' part of a is no more than b.
func (m *meter) within(a, b amounts) bool {
	for dev, n := range a {
		if dev != resource.HostDevice && n > b[dev]+settleNoise {
			return false
		}
	}
	return true
}

// low is the most that is certain of what the load takes; false when nothing is.
func (m *meter) low() (amounts, bool) {
	switch {
	case m.level != nil:
		return m.level, true
	case len(m.load) > 0:
		low := make(amounts, len(m.load))
		for dev, n := range m.load {
			low[dev] = n
			if i, ok := m.idle[dev]; ok { // a peak of the load is over by then
				low[dev] = min(n, i)
			}
		}
		return low, true
	}
	return nil, false
}

// fitClaim makes the resident claim of an idle worker what it holds: its jobs
// bring claims of their own. What it keeps of them is seen, and is room for the
// next. Not where the policy knows only whole needs.
func (l *loop) fitClaim(in *inst, a amounts) {
	if !in.split || !in.loaded || in.active() || in.leaving() {
		return
	}
	for dev, n := range a {
		if dev == resource.HostDevice {
			continue
		}
		at := l.ledger.find(in.name, KindResident, dev)
		if at < 0 {
			continue
		}
		if level, ok := in.meter.level[dev]; ok {
			n = min(n, level)
		} else {
			n = min(n, l.ledger.claims[at].Bytes)
		}
		l.ledger.resize(in.name, dev, n)
	}
}
