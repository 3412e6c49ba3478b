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
	Source   string         // of VRAM; "": it was not measured
	RAM      resource.Bytes // peak of host memory; 0: not measured, unless HasRAM says so
	HasRAM   bool
	// Failed loads and runs may raise a figure, never lower one, and teach no times.
	Failed bool
}

// OOM is a load or run that ended because memory ran out.
type OOM struct {
	Phase   Phase
	Host    bool // host memory, not the device's
	At      time.Time
	Claimed resource.Bytes // what had been set aside for it
	Limit   resource.Bytes // no figure beyond this (what the device has); 0: none
}

// Profile is what is known under its Key.
type Profile struct {
	Key
	ResidentVRAM Figure    `json:"resident_vram"`
	ExecuteVRAM  Figure    `json:"execute_vram"`
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
	if s.Source != "" {
		vram.observe(s.VRAM, s.Failed)
		vram.Source = s.Source
	}
	if s.RAM > 0 || s.HasRAM {
		ram.observe(s.RAM, s.Failed)
	}
	if s.Failed {
		times.Failed++
	} else if s.Duration > 0 {
		times.observe(s.Duration)
	}
	p.touch(s.At)
}

// OOM raises the figure that turned out too small. The failure itself, with what
// was seen of it, is for Observe.
func (p *Profile) OOM(o OOM) {
	vram, ram, _ := p.figures(o.Phase)
	if o.Host {
		ram.oom(o.Claimed, o.Limit)
	} else {
		vram.oom(o.Claimed, o.Limit)
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
	ResidentVRAM resource.Bytes // per device
	ExecuteVRAM  resource.Bytes // per device and job
	ResidentRAM  resource.Bytes
	ExecuteRAM   resource.Bytes
	// Known: both figures of the device rest on at least one good load and run;
	// KnownRAM likewise.
	Known    bool
	KnownRAM bool
	Source   string // of the device's figures
}

// Estimate returns the figures. They count only where Known says so: one out of
// memory alone tells that a guess was too small, not what would be enough.
func (p Profile) Estimate() Estimate {
	e := Estimate{
		ResidentVRAM: p.ResidentVRAM.Estimate, ExecuteVRAM: p.ExecuteVRAM.Estimate,
		ResidentRAM: p.ResidentRAM.Estimate, ExecuteRAM: p.ExecuteRAM.Estimate,
		Known:    p.ResidentVRAM.Samples > 0 && p.ExecuteVRAM.Samples > 0,
		KnownRAM: p.ResidentRAM.Samples > 0 && p.ExecuteRAM.Samples > 0,
		Source:   p.ResidentVRAM.Source,
	}
	if e.Source == "" {
		e.Source = p.ExecuteVRAM.Source
	}
	return e
}

// LoadTime returns the median and the 90th percentile of recent loads; 0: unknown.
func (p Profile) LoadTime() (p50, p90 time.Duration) { return p.Load.P50(), p.Load.P90() }

// RunTime returns the median and the 90th percentile of recent runs; 0: unknown.
func (p Profile) RunTime() (p50, p90 time.Duration) { return p.Run.P50(), p.Run.P90() }
