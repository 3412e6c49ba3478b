package sched

import (
	"maps"
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched/learn"
	"github.com/cjmd/cjmd/internal/supervisor"
	"go.uber.org/zap"
)

// meter follows one worker's memory through its load and its runs. What it saw
// is learned with the first reading after their end, which may show what came
// too late for the readings before.
type meter struct {
	began    time.Time // of the load; zero when none is being measured
	took     time.Duration
	done     bool // the load has ended, at ended; what it took is learned with a reading that shows it
	ended    time.Time
	load     peaks
	runs     peaks
	most     int // runs at once since the worker was last idle
	finished []ranRun
	// seen is in.most as of what was learned last: a rise beyond it is a peak of
	// what is being measured, however short it was.
	seen map[resource.DeviceID]resource.Bytes
}

// pending reports whether something has ended that no reading has followed yet.
func (m *meter) pending() bool { return (m.done && !m.began.IsZero()) || len(m.finished) > 0 }

type ranRun struct {
	at     time.Time
	took   time.Duration
	failed bool
}

// maxFinished bounds the runs that wait for one reading: a worker of very short
// jobs teaches with some of them.
const maxFinished = 32

// peaks are the largest figures of several readings.
type peaks struct {
	dev      map[resource.DeviceID]resource.Bytes
	source   string
	ram      resource.Bytes
	readings int
}

func (p *peaks) reset() {
	clear(p.dev)
	p.source, p.ram, p.readings = "", 0, 0
}

func (p *peaks) add(in *inst) {
	p.readings++
	p.ram = max(p.ram, in.rss)
	for dev, u := range in.use {
		if u.missed > 0 {
			continue
		}
		if p.dev == nil {
			p.dev = make(map[resource.DeviceID]resource.Bytes)
		}
		p.dev[dev] = max(p.dev[dev], u.bytes)
		p.source = u.source
	}
	for dev, n := range in.most {
		if n <= in.meter.seen[dev] {
			continue
		}
		if p.dev == nil {
			p.dev = make(map[resource.DeviceID]resource.Bytes)
		}
		p.dev[dev] = max(p.dev[dev], n)
		p.source = learn.SourceWorker
	}
}

// learned starts the next measurement.
func (in *inst) learned() {
	if len(in.most) > 0 {
		in.meter.seen = maps.Clone(in.most)
	}
}

// seen reports whether any memory of an accelerator was seen.
func (p *peaks) seen() bool { return p.above(nil) > 0 }

// above is the most that was used of one device beyond base.
func (p *peaks) above(base map[resource.DeviceID]resource.Bytes) (most resource.Bytes) {
	for dev, n := range p.dev {
		most = max(most, n-base[dev])
	}
	return most
}

// loadBegins starts the measurement of a load.
func (in *inst) loadBegins(now time.Time) {
	in.meter = meter{began: now}
	in.riseFrom, in.riseBase = now, 0
	in.loaded = false
	clear(in.loadUse)
	clear(in.stays)
	in.loadRAM = 0
}

// loadEnds notes that the worker is ready.
func (in *inst) loadEnds(now time.Time, st *supervisor.Status) {
	in.loaded = true
	m := &in.meter
	if m.began.IsZero() || m.done {
		return
	}
	m.done, m.ended = true, now
	m.took = time.Duration(st.LoadMillis) * time.Millisecond
	if m.took <= 0 {
		m.took = now.Sub(m.began)
	}
}

// ran notes the end of a run for a reading to come.
func (in *inst) ran(now time.Time, took time.Duration, failed bool) {
	if m := &in.meter; len(m.finished) < maxFinished {
		m.finished = append(m.finished, ranRun{now, took, failed})
	}
}

// observePeaks folds a new reading into what is being measured. What it shows
// is as old as the monitor's lag.
func (l *loop) observePeaks(now time.Time) {
	shown := now.Add(-l.lag)
	for _, in := range l.order {
		if !in.live {
			continue
		}
		m := &in.meter
		m.most = max(m.most, in.running)
		inRun := in.running > 0 || len(m.finished) > 0
		if !inRun || !in.loaded || (!m.began.IsZero() && (shown.Before(m.ended) || !m.load.seen())) {
			m.load.add(in) // with the run's, where the load was too short to be seen alone
		}
		if inRun {
			m.runs.add(in)
		}
		if m.done && now.Sub(m.ended) >= l.allowanceOf(in) {
			l.learnLoad(now, in)
		}
		if m.began.IsZero() && len(m.finished) > 0 && now.Sub(m.finished[0].at) >= l.allowanceOf(in) {
			l.learnRuns(now, in)
		}
		l.fitClaim(now, in)
	}
}

// learnAtEnd learns what is left to be learned of a worker that is gone.
func (l *loop) learnAtEnd(now time.Time, in *inst) {
	if in.meter.load.readings > 0 {
		l.learnLoad(now, in)
	}
	if in.meter.runs.readings > 0 {
		l.learnRuns(now, in)
	}
}

// learnLoad learns from a load that has ended.
func (l *loop) learnLoad(now time.Time, in *inst) {
	m := &in.meter
	if !m.done || m.began.IsZero() {
		return
	}
	m.began = time.Time{}
	if in.measureLoad {
		in.measureLoad, l.ledger.changed = false, true
	}
	if in.loadUse == nil {
		in.loadUse = make(map[resource.DeviceID]resource.Bytes)
	}
	for dev, n := range m.load.dev {
		if n > 0 {
			in.loadUse[dev] = n
		}
	}
	in.loadRAM = m.load.ram
	in.learned()
	l.teach(now, in, func(p *learn.Profile) {
		p.Observe(learn.Sample{Phase: learn.Load, At: now, Duration: m.took, VRAM: m.load.above(nil), Source: in.gpuSource(&m.load), RAM: m.load.ram})
	})
}

// gpuSource says what measured the peaks. A worker that asks for no accelerator
// teaches nothing about one, and one that was not seen there has not been measured.
func (in *inst) gpuSource(p *peaks) string {
	if !in.demand.RequiresGPU || len(in.loadUse) == 0 {
		return ""
	}
	return p.source
}

// learnRuns learns from the runs that have ended since the reading before.
func (l *loop) learnRuns(now time.Time, in *inst) {
	m := &in.meter
	if len(m.finished) == 0 {
		return
	}
	share := resource.Bytes(max(m.most, 1))
	s := learn.Sample{Phase: learn.Run, At: now, VRAM: m.runs.above(in.loadUse) / share, Source: in.gpuSource(&m.runs)}
	if in.loadRAM > 0 {
		s.RAM, s.HasRAM = max(m.runs.ram-in.loadRAM, 0)/share, true
	}
	l.teach(now, in, func(p *learn.Profile) {
		for _, r := range m.finished {
			s.Duration, s.Failed = max(r.took, 1), r.failed
			p.Observe(s)
		}
	})
	m.finished = m.finished[:0]
	in.learned()
	if in.running == 0 {
		m.runs.reset()
		m.most = 0
		in.measuring = nil
		l.ledger.changed = true
	}
}

// fitClaim makes the resident claim of an idle worker what its load was seen to
// take: its jobs bring claims of their own, and what it keeps of them is seen.
// Not where the policy knows only whole needs.
func (l *loop) fitClaim(now time.Time, in *inst) {
	if in.idleSince.IsZero() || now.Sub(in.idleSince) < l.allowance() || !in.split || !in.loaded || in.active() || in.leaving() || in.lingering() {
		return
	}
	for dev, n := range in.loadUse {
		if in.asked { // it released memory, and takes it again when it runs
			n = min(n, in.use[dev].bytes)
		}
		l.ledger.resize(in.name, dev, n)
		if in.stays == nil {
			in.stays = make(map[resource.DeviceID]resource.Bytes)
		}
		in.stays[dev] = n
	}
}

// teach changes the profile of in's worker and has it stored.
func (l *loop) teach(now time.Time, in *inst, change func(*learn.Profile)) {
	k := l.keyOf(in)
	if k.Plugin == "" || (in.demand.RequiresGPU && k.DeviceModel == "") {
		return
	}
	p, ok := l.profiles[k]
	if !ok {
		p = learn.New(k)
	}
	change(&p)
	l.profiles[k] = p
	l.unsaved[k] = true
}

// saveEvery bounds how often profiles are stored; what a crash loses of them is
// learned again.
const saveEvery = 2 * time.Second

// saveProfiles stores what was learned, with one event for each profile whose
// figures moved.
func (l *loop) saveProfiles(now time.Time, force bool) {
	if len(l.unsaved) == 0 || l.saving || (!force && now.Sub(l.savedAt) < saveEvery) {
		return
	}
	l.savedAt = now
	var todo []learn.Profile
	var drafts [][]events.Draft
	for _, k := range sortedKeys(l.unsaved) {
		p, ok := l.profiles[k]
		if !ok {
			continue
		}
		todo = append(todo, p)
		e, old := p.Estimate(), l.toldProfile[k]
		if e.Known == old.Known && near(e.ResidentVRAM, old.ResidentVRAM) && near(e.ExecuteVRAM, old.ExecuteVRAM) &&
			near(e.ResidentRAM, old.ResidentRAM) && near(e.ExecuteRAM, old.ExecuteRAM) {
			drafts = append(drafts, nil)
			continue
		}
		l.toldProfile[k] = e
		drafts = append(drafts, []events.Draft{{Kind: events.ProfileChanged, Data: map[string]any{
			"plugin": k.Plugin, "config_hash": k.ConfigHash, "device_model": k.DeviceModel, "known": e.Known,
			"resident_vram_bytes": e.ResidentVRAM, "execute_vram_bytes": e.ExecuteVRAM,
			"resident_ram_bytes": e.ResidentRAM, "execute_ram_bytes": e.ExecuteRAM, "source": e.Source}}})
	}
	clear(l.unsaved)
	if l.s.o.Profiles == nil {
		for _, d := range drafts {
			l.s.emit(d...)
		}
		return
	}
	l.saving = true
	l.spawn(func() {
		for i := range todo {
			if err := l.s.o.Profiles.PutProfile(l.work, todo[i], drafts[i]...); err != nil && l.work.Err() == nil {
				l.s.log.Warn("cannot store what was learned", zap.String("plugin", todo[i].Plugin), zap.Error(err))
			}
		}
		l.s.mail.call(func(l *loop) {
			if l != nil {
				l.saving = false
			}
		})
	})
}

// near reports whether two figures are close enough not to tell.
func near(a, b resource.Bytes) bool {
	d := max(a-b, b-a)
	return d <= 64*resource.MiB || d*20 <= max(a, b)
}
