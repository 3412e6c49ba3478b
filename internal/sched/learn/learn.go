// Package learn remembers what workers really took: a Profile per plugin,
// config and device model, fed with what was measured during loads and runs.
// It is pure: no clock, no I/O, values in and out; a Profile is a JSON value
// and may be copied and shared, because Observe and OOM never change what an
// earlier copy holds. Start with Profile.Observe and Profile.Estimate.
package learn

import (
	"time"

	"github.com/cjmd/cjmd/internal/resource"
)

// MaxPerPlugin is how many profiles of one plugin are worth keeping: each
// config has its own, and some people change theirs all day.
const MaxPerPlugin = 64

// TrustedAfter is how many samples a figure needs before it outweighs what the
// author said. Runs too short to be seen well make a worker's memory known, not
// trusted, after as many of them.
const TrustedAfter = 3

// Sources of a measured figure.
const (
	SourceWorker = "worker" // the worker's own allocator
	SourceNVML   = "nvml"   // NVIDIA's driver, summed over the process tree
	SourceFdinfo = "fdinfo" // the kernel's DRM counters, likewise
	SourceDelta  = "delta"  // the device's used memory, while nothing else moved
)

// Key names what a profile is about: the same plugin takes other amounts with
// another config (a larger model) and on another kind of device.
type Key struct {
	Plugin      string `json:"plugin"`
	ConfigHash  string `json:"config_hash"`
	DeviceModel string `json:"device_model"` // "" when it uses no accelerator
}

// Phase of a worker's life that a sample is about.
type Phase int

// The phases.
const (
	Load Phase = iota // what the worker takes as long as it lives
	Run               // what one job takes on top, while it runs
)

// Sample is what was seen of one load or one run.
type Sample struct {
	Phase Phase
	At    time.Time
	// Duration of the load or run; 0 teaches no time (a resident worker measured
	// again, once per job at most).
	Duration time.Duration
	VRAM     resource.Bytes // peak on one device, the largest over the worker's devices
	// Whole is what the worker held of that device with this run; 0: what is known
	// of its load, and VRAM. Mixed says that nobody can tell the two apart: VRAM
	// says nothing then.
	Whole  resource.Bytes
	Mixed  bool
	Source string         // of VRAM and Whole; "": they were not measured
	RAM    resource.Bytes // peak of host memory; 0: not measured, unless HasRAM says so
	HasRAM bool
	// Failed loads and runs may raise a figure, never lower one, and teach no times.
	Failed bool
	// Partial: there was more than was seen, or it was not alone. Such a sample may
	// raise a figure; it never lowers one, and nothing is known or trusted by it.
	Partial bool
}

// OOM is a load or run that ended because memory ran out.
type OOM struct {
	Phase   Phase
	Host    bool // host memory, not the device's
	At      time.Time
	Claimed resource.Bytes // what had been set aside for it
	Whole   resource.Bytes // of a run: what had been set aside for it and its worker
	Limit   resource.Bytes // no figure beyond this (what the device has); 0: none
}

// Profile is what is known under its Key.
type Profile struct {
	Key
	ResidentVRAM Figure    `json:"resident_vram"`
	ExecuteVRAM  Figure    `json:"execute_vram"`
	WholeVRAM    Figure    `json:"whole_vram,omitzero"` // the worker with one run
	ResidentRAM  Figure    `json:"resident_ram"`
	ExecuteRAM   Figure    `json:"execute_ram"`
	Load         Times     `json:"load"`
	Run          Times     `json:"run"`
	UpdatedAt    time.Time `json:"updated_at,omitzero"`
}

// New returns a profile that knows nothing yet.
func New(k Key) Profile { return Profile{Key: k} }

// Observe learns from s.
func (p *Profile) Observe(s Sample) {
	vram, ram, times := p.figures(s.Phase)
	clean := !s.Failed && !s.Partial
	if s.Source != "" {
		if s.Phase == Run {
			p.observeWhole(&s, clean)
		}
		if s.Phase == Load || !s.Mixed {
			vram.observe(s.VRAM, clean)
			vram.Source = s.Source
		}
	}
	if s.RAM > 0 || s.HasRAM {
		ram.observe(s.RAM, clean)
	}
	if s.Failed {
		times.Failed++
	} else if s.Duration > 0 {
		times.observe(s.Duration)
	}
	p.touch(s.At)
}

// observeWhole learns what a worker holds with one run. A profile that was made
// from the two parts begins with their sum.
func (p *Profile) observeWhole(s *Sample, clean bool) {
	w := &p.WholeVRAM
	if w.Samples == 0 && p.ExecuteVRAM.Samples > 0 {
		w.Estimate = max(w.Estimate, p.ResidentVRAM.Estimate+p.ExecuteVRAM.Estimate)
	}
	whole := s.Whole
	if whole == 0 {
		whole = p.ResidentVRAM.Estimate + s.VRAM
	}
	w.observe(whole, clean)
	w.Source = s.Source
}

// OOM raises the figures that turned out too small. The failure itself, with what
// was seen of it, is for Observe.
func (p *Profile) OOM(o OOM) {
	vram, ram, _ := p.figures(o.Phase)
	if o.Host {
		ram.oom(o.Claimed, o.Limit)
	} else {
		vram.oom(o.Claimed, o.Limit)
		if o.Phase == Run {
			p.WholeVRAM.oom(o.Whole, o.Limit)
		}
	}
	p.touch(o.At)
}

func (p *Profile) figures(ph Phase) (vram, ram *Figure, times *Times) {
	if ph == Load {
		return &p.ResidentVRAM, &p.ResidentRAM, &p.Load
	}
	return &p.ExecuteVRAM, &p.ExecuteRAM, &p.Run
}

func (p *Profile) touch(at time.Time) {
	if at.After(p.UpdatedAt) {
		p.UpdatedAt = at
	}
}

// Estimate is what to set aside for the next worker and its jobs.
type Estimate struct {
	// ResidentVRAM is per device. Before a load was seen by itself it is no more
	// than what it takes at least.
	ResidentVRAM resource.Bytes
	WholeVRAM    resource.Bytes // the worker with one job
	ExecuteVRAM  resource.Bytes // each further job at the same time
	ResidentRAM  resource.Bytes
	ExecuteRAM   resource.Bytes
	// Known: WholeVRAM rests on a run that was seen well, or on several that were
	// not; Trusted: on enough of the former to outweigh the author's word.
	// KnownRAM: both figures of host memory rest on a good load and run.
	Known, Trusted bool
	KnownRAM       bool
	// LoadSeen: ResidentVRAM is what a worker holds that has loaded and not run.
	LoadSeen bool
	Source   string // of the device's figures
}

// Estimate returns the figures. They count only where Known says so: one out of
// memory alone tells that a guess was too small, not what would be enough.
func (p Profile) Estimate() Estimate {
	e := Estimate{
		ResidentVRAM: p.ResidentVRAM.Estimate, ExecuteVRAM: p.ExecuteVRAM.Estimate, WholeVRAM: max(p.WholeVRAM.Estimate, p.ResidentVRAM.Estimate),
		ResidentRAM: p.ResidentRAM.Estimate, ExecuteRAM: p.ExecuteRAM.Estimate,
		Known:    p.WholeVRAM.Samples > 0 || (p.WholeVRAM.Max > 0 && p.Run.Count >= TrustedAfter),
		Trusted:  p.WholeVRAM.Samples >= TrustedAfter,
		KnownRAM: p.ResidentRAM.Samples > 0 && p.ExecuteRAM.Samples > 0,
		LoadSeen: p.ResidentVRAM.Samples > 0,
		Source:   p.ResidentVRAM.Source,
	}
	if e.Source == "" {
		e.Source = p.WholeVRAM.Source
	}
	if p.ExecuteVRAM.Source == "" { // never told apart from its worker
		e.ExecuteVRAM = max(e.ExecuteVRAM, e.WholeVRAM)
	}
	return e
}

// LoadTime returns the median and the 90th percentile of recent loads; 0: unknown.
func (p Profile) LoadTime() (p50, p90 time.Duration) { return p.Load.P50(), p.Load.P90() }

// RunTime returns the median and the 90th percentile of recent runs; 0: unknown.
func (p Profile) RunTime() (p50, p90 time.Duration) { return p.Run.P50(), p.Run.P90() }
