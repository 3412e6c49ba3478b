package sched

import (
	"strconv"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched/learn"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// metered is a worker on one card whose readings the test makes up. They are 250 ms
// late at most.
type metered struct {
	t   *testing.T
	l   *loop
	in  *inst
	now time.Time
	id  int
}

const card = resource.DeviceID("GPU-0")

func meterOf(t *testing.T, declared resource.Bytes, slots int) *metered {
	s := &Scheduler{o: Options{MaxStartFailures: 1}, mail: newMailbox()}
	l := &loop{s: s, runs: make(map[jobs.ID]*run), pools: make(map[resource.DeviceID]*pool), profiles: make(map[learn.Key]learn.Profile),
		unsaved: make(map[learn.Key]bool), lagBound: 1}
	l.pools[card] = &pool{seen: true, dev: resource.Device{ID: card, Name: "Test 24G", Total: 24576 * resource.MiB}}
	l.devs = []DeviceView{{ID: card, Name: "Test 24G", Total: 24576 * resource.MiB}}
	in := &inst{name: "a", live: true, split: true, devices: []resource.DeviceID{card}, concurrency: slots, profile: learn.Key{Plugin: "a"},
		demand: resource.Demand{RequiresGPU: true, MinVRAM: declared * resource.MiB}, use: make(map[resource.DeviceID]use)}
	l.insts, l.order = map[string]*inst{"a": in}, []*inst{in}
	m := &metered{t: t, l: l, in: in, now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	l.ledger.take(m.now, []Claim{{Owner: "a", Kind: KindResident, Instance: "a", Device: card, Bytes: declared * resource.MiB, Phase: PhaseLoading}})
	in.loadBegins(m.now)
	return m
}

// read lets 200 ms pass and has the monitor see so many MiB, 0: nothing of it.
func (m *metered) read(mib ...resource.Bytes) {
	for _, n := range mib {
		m.now = m.now.Add(200 * time.Millisecond)
		m.l.snap.At = m.now
		delete(m.in.use, card)
		if n > 0 {
			m.in.use[card] = use{bytes: n * resource.MiB, source: learn.SourceNVML, listed: n * resource.MiB}
		}
		m.l.noteCalls()
		m.l.meterOne(m.now, m.in)
	}
}

func (m *metered) loaded() { m.in.loadEnds(m.now, &supervisor.Status{}) }

// begin starts a job, with the claims that its need asks for.
func (m *metered) begin() *run {
	m.id++
	m.now = m.now.Add(time.Millisecond)
	n := m.l.need(m.in)
	r := &run{in: m.in, id: jobs.ID(strconv.Itoa(m.id)), need: n, clean: true, reached: true}
	r.called.Store(m.now.UnixNano())
	m.l.runs[r.id] = r
	m.in.running++
	m.l.ledger.take(m.now, []Claim{{Owner: string(r.id), Kind: KindExecute, Instance: "a", Device: card, Bytes: n.ExecuteVRAM, Phase: PhaseExecuting}})
	return r
}

func (m *metered) end(r *run) {
	m.now = m.now.Add(time.Millisecond)
	delete(m.l.runs, r.id)
	m.in.running--
	m.l.linger(m.now, r)
	m.in.ran(m.now, r, m.in.running+1)
}

func (m *metered) profile() learn.Profile { p, _ := m.l.profileOf(m.in); return p }

// claimed is what the worker and its jobs claim.
func (m *metered) claimed() resource.Bytes {
	_, all := m.l.claimedBy(m.in)
	return all / resource.MiB
}

func (m *metered) want(what string, got, want resource.Bytes) {
	m.t.Helper()
	if got != want*resource.MiB {
		m.t.Errorf("%s is %.0f MiB, want %d", what, got.MB(), want)
	}
}

func (m *metered) wantNeed(resident, execute resource.Bytes, slots int) {
	m.t.Helper()
	n, free := m.l.needs(m.in, m.in.slotsFree())
	m.want("resident need", n.ResidentVRAM, resident)
	m.want("execute need", n.ExecuteVRAM, execute)
	if free != slots {
		m.t.Errorf("%d slots at a time, want %d", free, slots)
	}
}

// Seen: a load of 104 ms whose run began between two readings was learned with half
// of the run in it, and 13647 + 14061 MiB fit on no card.
func TestMeter_AReadingThatMixesLoadAndRunTeachesTheWholeAlone(t *testing.T) {
	m := meterOf(t, 0, 1)
	m.loaded()
	r := m.begin()
	m.read(13647, 20678, 20678, 20678, 20678)
	m.end(r)
	m.read(20678)
	m.read(20678) // it keeps what its run took
	p := m.profile()
	if p.ExecuteVRAM.Samples != 0 || p.WholeVRAM.Samples != 1 {
		t.Errorf("profile %+v", p)
	}
	m.want("whole", p.WholeVRAM.Estimate, 20678)
	m.wantNeed(0, 20678, 1) // together no more than was seen together
}

func TestMeter_ALoadIsKnownByAReadingThatCanShowNothingElse(t *testing.T) {
	m := meterOf(t, 8000, 1)
	m.read(2000)
	m.loaded()
	m.read(4000) // may be of before the load's end
	if m.in.meter.level != nil {
		t.Fatal("believed too early")
	}
	m.read(5000)
	m.want("level", m.in.meter.level[card], 5000)
	if p := m.profile(); p.ResidentVRAM.Samples != 1 {
		t.Errorf("profile %+v", p)
	}
	m.wantNeed(5000, 3000, 1) // the author's word still counts for the whole
}

// Seen: two runs of a caching worker shared one credit for what it kept.
func TestMeter_RunsSideBySideRaiseAndNeverLower(t *testing.T) {
	m := meterOf(t, 0, 2)
	m.loaded()
	m.read(296, 296)
	one := m.begin()
	m.read(1494, 2691, 2691, 2691, 2691)
	m.end(one)
	m.read(2691, 2691) // kept
	m.want("run", m.profile().ExecuteVRAM.Estimate, 2395)
	samples := m.profile().WholeVRAM.Samples
	for range 2 {
		a, b := m.begin(), m.begin()
		if n := m.claimed(); n < 296+2*2395 {
			t.Errorf("%d MiB claimed for two runs of 2395 beside 296", n)
		}
		m.read(3800, 3800, 3800, 3800, 3800) // one is never at its peak while the other is
		m.end(a)
		m.end(b)
		m.read(3800, 3800, 3800)
	}
	p := m.profile()
	m.want("run", p.ExecuteVRAM.Estimate, 2395)
	if p.WholeVRAM.Samples != samples {
		t.Errorf("%d samples by runs that were not alone", p.WholeVRAM.Samples-samples)
	}
}

// Seen: runs of 100 ms between readings of 200 ms, of which half was seen, took
// the place of the author's word after three of them.
func TestMeter_RunsSeenInPartAreNotTrusted(t *testing.T) {
	m := meterOf(t, 8000, 1)
	m.read(1000)
	m.loaded()
	m.read(1000, 1000)
	for range 4 {
		r := m.begin()
		m.read(1319)
		m.end(r)
		m.read(1000, 1000)
	}
	if p := m.profile(); p.WholeVRAM.Samples != 0 || p.Estimate().Trusted || !p.Estimate().Known {
		t.Errorf("profile %+v", p)
	}
	m.wantNeed(1000, 7000, 1)
}

func TestMeter_ThreeRunsSeenWellOutweighTheAuthorsWord(t *testing.T) {
	m := meterOf(t, 8000, 1)
	m.loaded()
	m.read(1000, 1000)
	for i := range 3 {
		r := m.begin()
		m.read(2000, 3000, 3000, 3000, 3000)
		m.end(r)
		m.read(1000, 1000)
		if i < 2 {
			m.wantNeed(1000, 7000, 1)
		}
	}
	m.wantNeed(1000, 2000, 1)
}

// Seen: the first of four runs brought what the author says of all; when it had
// ended the other three had nothing set aside.
func TestClaims_WhatOneRunBroughtForAllStaysWithTheOthers(t *testing.T) {
	m := meterOf(t, 5932, 4)
	m.loaded()
	m.read(296, 296)
	m.wantNeed(296, 5636, 1) // the next brings no more: one at a time
	runs := []*run{m.begin(), m.begin(), m.begin()}
	for i, want := range []resource.Bytes{5636, 0, 0} {
		m.want("claim", runs[i].need.ExecuteVRAM, want)
	}
	m.read(4523, 4523, 4523)
	m.end(runs[0])
	if n := m.claimed(); n < 5932 {
		t.Errorf("%d MiB claimed for two runs, want the author's 5932", n)
	}
	m.end(runs[1])
	m.end(runs[2])
	m.read(296, 296, 296)
	m.wantNeed(296, 5636, 1)
}

// Seen: a second job beside the first was "never" to fit, and failed.
func TestNeeds_ASecondRunThatHasNoRoomWaitsForTheFirst(t *testing.T) {
	m := meterOf(t, 0, 2)
	m.loaded()
	m.read(4000, 4000)
	r := m.begin()
	m.read(20000, 20000, 20000, 20000, 20000)
	m.wantNeed(4000, 0, 1) // nothing is known yet
	m.end(r)
	m.read(4000, 4000)
	m.wantNeed(4000, 16000, 2)
	m.begin()
	if _, slots := m.l.needs(m.in, 1); slots != 0 {
		t.Errorf("%d slots although 36000 MiB fit on no card", slots)
	}
}

// A torch worker says what its allocator holds: what it keeps of its runs is no
// part of its load.
func TestMeter_TheWorkersOwnReportTellsTheLoadFromWhatItKeeps(t *testing.T) {
	m := meterOf(t, 0, 2)
	m.in.meter.report(amounts{card: 900 * resource.MiB}, amounts{card: 950 * resource.MiB}, m.now)
	m.loaded()
	r := m.begin()
	m.read(3500, 3500, 3500, 3500)
	m.in.meter.report(amounts{card: 2900 * resource.MiB}, amounts{card: 3100 * resource.MiB}, m.now)
	m.end(r)
	m.read(3300, 3300)
	m.want("level", m.in.meter.level[card], 3300-2000)

	// A run too short for a reading: its peak is the allocator's, and what the
	// driver keeps beside that (400).
	r = m.begin()
	m.end(r)
	m.in.meter.report(amounts{card: 2900 * resource.MiB}, amounts{card: 6000 * resource.MiB}, m.now)
	m.read(3300, 3300)
	m.want("whole", m.profile().WholeVRAM.Estimate, 6400)
}

// Seen: a plugin on two cards, of 48 and 12 GB, was learned to take more than 12.
func TestOOM_AFigureIsBoundedByTheSmallestOfTheDevicesItNeeds(t *testing.T) {
	m := meterOf(t, 0, 1)
	m.l.devs = []DeviceView{{Total: 48 * 1024 * resource.MiB}, {Total: 12 * 1024 * resource.MiB}, {Total: 8 * 1024 * resource.MiB, External: resource.MiB}}
	for n, want := range map[int]resource.Bytes{0: 48 * 1024, 1: 48 * 1024, 2: 12 * 1024, 3: 8*1024 - 1, 4: 8*1024 - 1} {
		m.want("limit", m.l.largest(n), want)
	}
}
