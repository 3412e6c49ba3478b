package simtest

import (
	"fmt"
	"time"

	"pgregory.net/rapid"

	"github.com/cjmd/cjmd/internal/sim"
)

// shape says what a random trace may hold.
type shape struct {
	jobs    int  // at most
	unknown bool // plugins whose need nobody knows
	wrong   bool // declared figures that are too low
	foreign bool // programs of others that grow
	broken  bool // loads that fail, workers that crash
	leaks   bool
	silence bool
	kills   bool
	quick   bool // short jobs, few readings: more admissions in the same time
	seen    bool // readings are prompt, and every load and run lasts for several of them
}

// draw makes a random trace. Smaller draws are simpler traces, so that rapid
// shrinks towards one device, one plugin and few jobs.
func (s shape) draw(rt *rapid.T) *Trace {
	t := &Trace{Name: "random", Seed: rapid.Uint64Range(1, 1<<20).Draw(rt, "seed"), Plugins: make(map[string]PluginSpec)}
	t.Machine = MachineSpec{CPUs: 8, RAMMB: 128 << 10, RAMUsedMB: 4096,
		MonitorLag:   Time(rapid.SampledFrom([]time.Duration{0, 300 * time.Millisecond, 2 * time.Second, 5 * time.Second}).Draw(rt, "lag")),
		MonitorEvery: Time(rapid.SampledFrom([]time.Duration{200 * time.Millisecond, time.Second}).Draw(rt, "every"))}
	if s.quick {
		t.Machine.MonitorEvery = Time(time.Second)
	}
	if s.seen {
		t.Machine.MonitorEvery, t.Machine.MonitorLag = 0, min(t.Machine.MonitorLag, Time(300*time.Millisecond))
	}
	smallest := 1e9
	for range rapid.IntRange(1, 4).Draw(rt, "devices") {
		total := float64(rapid.SampledFrom([]int{8, 12, 24, 48}).Draw(rt, "gib") << 10)
		t.Machine.Devices = append(t.Machine.Devices, DeviceSpec{Name: fmt.Sprintf("card %.0f", total), TotalMB: total, UsedMB: float64(rapid.IntRange(0, 600).Draw(rt, "used"))})
		smallest = min(smallest, total)
	}
	n := rapid.IntRange(1, 6).Draw(rt, "plugins")
	for i := range n {
		t.Plugins[fmt.Sprintf("p%d", i)] = s.plugin(rt, t, smallest)
	}
	for left := s.jobs; left > 0; {
		k := rapid.IntRange(1, max(s.jobs/4, 1)).Draw(rt, "count")
		left -= k
		t.Arrivals = append(t.Arrivals, Arrival{Plugin: fmt.Sprintf("p%d", rapid.IntRange(0, n-1).Draw(rt, "plugin")), Count: k,
			At:       Time(time.Duration(rapid.IntRange(0, 120).Draw(rt, "at")) * time.Second),
			Every:    Time(time.Duration(rapid.SampledFrom(s.pauses()).Draw(rt, "every")) * time.Second),
			Jitter:   rapid.SampledFrom([]float64{0, 0.5, 1}).Draw(rt, "jitter"),
			Priority: rapid.SampledFrom([]int{0, 0, 0, 5}).Draw(rt, "priority"), Submitter: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "who")})
	}
	s.faults(rt, t, n)
	t.Horizon = Time(6 * time.Hour)
	if err := t.check(); err != nil {
		rt.Fatalf("drew a trace that makes no sense: %v", err)
	}
	return t
}

// pauses are the seconds between two jobs of an arrival.
func (s shape) pauses() []int {
	if s.quick { // hundreds of jobs each
		return []int{0, 0, 0, 1, 2}
	}
	return []int{0, 0, 1, 5, 20}
}

// shortest and longest are milliseconds of a run.
func (s shape) shortest() int {
	if s.seen {
		return 2000
	}
	return 100
}

func (s shape) longest() int {
	if s.quick {
		return 2000
	}
	return 20_000
}

func (s shape) plugin(rt *rapid.T, t *Trace, smallest float64) PluginSpec {
	p := PluginSpec{RAMMB: float64(rapid.IntRange(0, 4000).Draw(rt, "ram")), Run: span(rt, "run", s.shortest(), s.longest()), Load: span(rt, "load", s.shortest(), 15_000),
		Concurrency: rapid.SampledFrom([]int{1, 1, 2, 4}).Draw(rt, "slots"), ReleaseLag: span(rt, "release", 0, 4500)}
	if rapid.IntRange(0, 4).Draw(rt, "cpu") == 4 {
		p.ExecuteRAMMB = float64(rapid.IntRange(0, 500).Draw(rt, "xram"))
		return p
	}
	p.Devices = 1
	if len(t.Machine.Devices) > 1 && rapid.IntRange(0, 5).Draw(rt, "wide") == 5 {
		p.Devices = 2
	}
	// Whatever it is, it fits on the smallest card beside what the system and the margin take.
	most := (smallest - 1600) * 0.9
	p.ResidentMB = float64(int(most * float64(rapid.IntRange(5, 70).Draw(rt, "resident")) / 100))
	p.ExecuteMB = float64(int((most - p.ResidentMB) * float64(rapid.IntRange(0, 100).Draw(rt, "execute")) / 100 / float64(p.Concurrency)))
	p.Keeps = rapid.Bool().Draw(rt, "keeps")
	p.IgnoreTerm = rapid.IntRange(0, 5).Draw(rt, "deaf") == 5
	p.ReportsUsage = rapid.Bool().Draw(rt, "reports")
	p.Needs = rapid.SampledFrom([]string{NeedsDeclared, NeedsLearned}).Draw(rt, "needs")
	if s.unknown && rapid.Bool().Draw(rt, "unknown") {
		p.Needs = NeedsUnknown
	}
	if s.wrong && rapid.Bool().Draw(rt, "wrong") {
		p.DeclaredMB = max(p.ResidentMB*0.7, 1)
		p.Needs = NeedsDeclared
	}
	if s.broken {
		p.FailLoad = rapid.SampledFrom([]float64{0, 0, 0.3}).Draw(rt, "fails")
		p.Crash = rapid.SampledFrom([]float64{0, 0, 0.1}).Draw(rt, "crashes")
		p.OOMKills = rapid.Bool().Draw(rt, "oomkills")
	}
	if s.leaks && rapid.IntRange(0, 2).Draw(rt, "leak") == 2 {
		p.LeakMB, p.LeakFor = smallest/20, Time(5*time.Minute)
	}
	return p
}

// span draws a range of milliseconds.
func span(rt *rapid.T, name string, lo, hi int) Range {
	from := rapid.IntRange(lo, hi).Draw(rt, name)
	return Range{Min: time.Duration(from) * time.Millisecond, Max: time.Duration(rapid.IntRange(from, hi).Draw(rt, name+" to")) * time.Millisecond}
}

func (s shape) faults(rt *rapid.T, t *Trace, plugins int) {
	at := func(name string) Time {
		return Time(time.Duration(rapid.IntRange(1, 300).Draw(rt, name)) * time.Second)
	}
	if s.foreign {
		for range rapid.IntRange(0, 3).Draw(rt, "games") {
			begin := at("game")
			dev := rapid.IntRange(0, len(t.Machine.Devices)-1).Draw(rt, "on")
			t.Faults = append(t.Faults, FaultSpec{Kind: sim.Foreign, Name: "game", At: begin, Until: begin + at("for"), Device: dev,
				MB: t.Machine.Devices[dev].TotalMB * float64(rapid.IntRange(10, 90).Draw(rt, "share")) / 100, Ramp: Time(time.Duration(rapid.IntRange(0, 20).Draw(rt, "ramp")) * time.Second)})
		}
	}
	if s.silence && rapid.Bool().Draw(rt, "silence") {
		begin := at("silent")
		t.Faults = append(t.Faults, FaultSpec{Kind: sim.Silence, At: begin, Until: begin + at("silent for")})
	}
	if s.silence && rapid.Bool().Draw(rt, "nopids") {
		begin := at("hidden")
		t.Faults = append(t.Faults, FaultSpec{Kind: sim.NoPIDs, At: begin, Until: begin + at("hidden for")})
	}
	if s.broken && rapid.Bool().Draw(rt, "crash") {
		t.Faults = append(t.Faults, FaultSpec{Kind: sim.Crash, At: at("crash at"), Name: fmt.Sprintf("p%d", rapid.IntRange(0, plugins-1).Draw(rt, "whose"))})
	}
	if s.kills {
		for range rapid.IntRange(1, 3).Draw(rt, "kills") {
			t.Faults = append(t.Faults, FaultSpec{Kind: Kill, At: at("kill")})
		}
	}
}
