package simtest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sim"
)

// Trace is a machine, what is installed on it, and what happens to it. The
// file format is described in docs/simulator.md.
type Trace struct {
	Name    string `yaml:"name,omitempty"`
	About   string `yaml:"about,omitempty"`
	Seed    uint64 `yaml:"seed,omitempty"`
	Horizon Time   `yaml:"horizon,omitempty"` // the simulation ends here at the latest; 0: 24 h

	Machine  MachineSpec           `yaml:"machine,omitempty"`
	Plugins  map[string]PluginSpec `yaml:"plugins,omitempty"`
	Arrivals []Arrival             `yaml:"arrivals,omitempty"`
	Faults   []FaultSpec           `yaml:"faults,omitempty"`
}

// MachineSpec is the machine of a trace.
type MachineSpec struct {
	CPUs         int          `yaml:"cpus,omitempty"`
	RAMMB        float64      `yaml:"ram_mb,omitempty"`
	RAMUsedMB    float64      `yaml:"ram_used_mb,omitempty"`
	Devices      []DeviceSpec `yaml:"devices,omitempty"`
	MonitorLag   Time         `yaml:"monitor_lag,omitempty"`
	MonitorEvery Time         `yaml:"monitor_every,omitempty"` // while busy; 0: 200 ms
}

// DeviceSpec is one accelerator.
type DeviceSpec struct {
	ID      string  `yaml:"id,omitempty"` // "": GPU-0, GPU-1, …
	Name    string  `yaml:"name,omitempty"`
	TotalMB float64 `yaml:"total_mb,omitempty"`
	UsedMB  float64 `yaml:"used_mb,omitempty"`
	Unified bool    `yaml:"unified,omitempty"`
}

// How much the scheduler is told about a plugin's needs.
const (
	NeedsDeclared = "declared" // the manifest's figure
	NeedsLearned  = "learned"  // a profile from earlier runs, resident and execute apart
	NeedsUnknown  = "unknown"  // that it needs an accelerator, and nothing else
)

// PluginSpec is what a plugin does, and what is known about it.
type PluginSpec struct {
	// What it really takes, per device.
	ResidentMB   float64 `yaml:"resident_mb,omitempty"`
	ExecuteMB    float64 `yaml:"execute_mb,omitempty"`
	LoadPeakMB   float64 `yaml:"load_peak_mb,omitempty"`
	RAMMB        float64 `yaml:"ram_mb,omitempty"`
	ExecuteRAMMB float64 `yaml:"execute_ram_mb,omitempty"`
	Devices      int     `yaml:"devices,omitempty"` // 0 with vram: 1
	Load         Range   `yaml:"load,omitempty"`
	Run          Range   `yaml:"run,omitempty"`
	Concurrency  int     `yaml:"concurrency,omitempty"`
	Needs        string  `yaml:"needs,omitempty"`       // declared (default), learned, unknown
	DeclaredMB   float64 `yaml:"declared_mb,omitempty"` // instead of the truth
	Pinned       bool    `yaml:"pinned,omitempty"`
	Keeps        bool    `yaml:"keeps,omitempty"` // a caching allocator, with release()
	ReleaseLag   Range   `yaml:"release_lag,omitempty"`
	LeakMB       float64 `yaml:"leak_mb,omitempty"`
	LeakFor      Time    `yaml:"leak_for,omitempty"`
	IgnoreTerm   bool    `yaml:"ignore_term,omitempty"`
	FailLoad     float64 `yaml:"fail_load,omitempty"`
	Crash        float64 `yaml:"crash,omitempty"`
	OOMKills     bool    `yaml:"oom_kills,omitempty"`
	ReportsUsage bool    `yaml:"reports_usage,omitempty"`
	RunTimeout   Time    `yaml:"run_timeout,omitempty"`
}

// Arrival is a stream of jobs of one plugin.
type Arrival struct {
	Plugin    string  `yaml:"plugin,omitempty"`
	Count     int     `yaml:"count,omitempty"` // 0: 1
	At        Time    `yaml:"at,omitempty"`
	Every     Time    `yaml:"every,omitempty"`  // 0: all at once
	Jitter    float64 `yaml:"jitter,omitempty"` // 0..1 of every
	Priority  int     `yaml:"priority,omitempty"`
	Submitter string  `yaml:"submitter,omitempty"`
	Run       Range   `yaml:"run,omitempty"` // instead of the plugin's
}

// FaultSpec is something that goes wrong. Kinds: those of package sim (foreign,
// silence, no_pids, vanish, crash) and kill (the daemon is killed and started
// again after a second).
type FaultSpec struct {
	Kind   string  `yaml:"kind,omitempty"`
	At     Time    `yaml:"at,omitempty"`
	Until  Time    `yaml:"until,omitempty"`
	Device int     `yaml:"device,omitempty"` // index
	Name   string  `yaml:"name,omitempty"`
	MB     float64 `yaml:"mb,omitempty"`
	Ramp   Time    `yaml:"ramp,omitempty"`
}

// Kill is the fault that ends the daemon like kill -9; it comes back a second later.
const Kill = "kill"

// maxJobs of a trace: all of them are kept in memory.
const maxJobs = 1_000_000

// Time is a duration in a trace: 90s, 1h30m.
type Time time.Duration

// UnmarshalYAML implements yaml.Unmarshaler.
func (t *Time) UnmarshalYAML(n *yaml.Node) error {
	d, err := parseTime(n.Value)
	*t = Time(d)
	return err
}

// MarshalYAML implements yaml.Marshaler.
func (t Time) MarshalYAML() (any, error) { return time.Duration(t).String(), nil }

func parseTime(s string) (time.Duration, error) {
	if s == "0" {
		return 0, nil
	}
	d, err := time.ParseDuration(strings.TrimSpace(s))
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is no duration such as 90s or 1h30m", s)
	}
	return d, nil
}

// Range is a duration, or two with two dots between them: 3s..9s.
type Range sim.Span

// UnmarshalYAML implements yaml.Unmarshaler.
func (r *Range) UnmarshalYAML(n *yaml.Node) error {
	from, to, two := strings.Cut(n.Value, "..")
	lo, err := parseTime(from)
	if err != nil {
		return err
	}
	*r = Range{Min: lo}
	if !two {
		return nil
	}
	hi, err := parseTime(to)
	if err == nil && hi < lo {
		err = fmt.Errorf("%q ends before it begins", n.Value)
	}
	r.Max = hi
	return err
}

// MarshalYAML implements yaml.Marshaler.
func (r Range) MarshalYAML() (any, error) {
	if r.Max <= r.Min {
		return r.Min.String(), nil
	}
	return r.Min.String() + ".." + r.Max.String(), nil
}

// LoadTrace reads a trace from a file.
func LoadTrace(path string) (*Trace, error) {
	body, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read trace: %w", err)
	}
	t, err := ParseTrace(body)
	if err != nil {
		return nil, fmt.Errorf("cannot use trace %s: %w", path, err)
	}
	if t.Name == "" {
		t.Name = strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
	}
	return t, nil
}

// ParseTrace reads a trace strictly: an unknown key is an error.
func ParseTrace(body []byte) (*Trace, error) {
	dec := yaml.NewDecoder(bytes.NewReader(body))
	dec.KnownFields(true)
	t := &Trace{}
	switch err := dec.Decode(t); {
	case errors.Is(err, io.EOF):
		return nil, errors.New("it is empty")
	case err != nil:
		return nil, err
	}
	if err := dec.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return nil, errors.New("it holds more than one document")
	}
	return t, t.check()
}

// check completes the trace with its defaults and says what makes no sense.
func (t *Trace) check() error {
	m := &t.Machine
	if m.CPUs == 0 {
		m.CPUs = 8
	}
	if m.RAMMB == 0 {
		m.RAMMB = 64 << 10
	}
	for i := range m.Devices {
		if m.Devices[i].ID == "" {
			m.Devices[i].ID = fmt.Sprintf("GPU-%d", i)
		}
	}
	if t.Horizon == 0 {
		t.Horizon = Time(24 * time.Hour)
	}
	for name, p := range t.Plugins {
		if err := p.check(name, len(m.Devices)); err != nil {
			return err
		}
		t.Plugins[name] = p
	}
	jobs := 0
	for i := range t.Arrivals {
		a := &t.Arrivals[i]
		if _, ok := t.Plugins[a.Plugin]; !ok {
			return fmt.Errorf("arrivals[%d]: there is no plugin %q", i, a.Plugin)
		}
		if a.Count == 0 {
			a.Count = 1
		}
		if a.Count < 0 || a.Jitter < 0 || a.Jitter > 1 {
			return fmt.Errorf("arrivals[%d]: count must not be negative, and jitter must be between 0 and 1", i)
		}
		if jobs += min(a.Count, maxJobs+1); jobs > maxJobs {
			return fmt.Errorf("arrivals[%d]: a trace has at most %d jobs", i, maxJobs)
		}
		if a.Submitter == "" {
			a.Submitter = "somebody"
		}
	}
	for i, f := range t.Faults {
		if f.Device < 0 || (f.Device >= len(m.Devices) && (f.Kind == sim.Foreign || f.Kind == sim.Vanish)) {
			return fmt.Errorf("faults[%d]: there is no device %d", i, f.Device)
		}
		if _, ok := t.Plugins[f.Name]; !ok && f.Kind == sim.Crash {
			return fmt.Errorf("faults[%d]: there is no plugin %q", i, f.Name)
		}
	}
	if len(t.Plugins) == 0 {
		return errors.New("it has no plugins")
	}
	return nil
}

func (p *PluginSpec) check(name string, devices int) error {
	if p.Devices == 0 && p.ResidentMB+p.ExecuteMB > 0 {
		p.Devices = 1
	}
	if p.Needs == "" {
		p.Needs = NeedsDeclared
	}
	if !slices.Contains([]string{NeedsDeclared, NeedsLearned, NeedsUnknown}, p.Needs) {
		return fmt.Errorf("plugins.%s: needs is %q; it can be declared, learned or unknown", name, p.Needs)
	}
	if p.Devices > devices && devices > 0 {
		return fmt.Errorf("plugins.%s: it spans %d devices, the machine has %d", name, p.Devices, devices)
	}
	if p.Run == (Range{}) {
		return fmt.Errorf("plugins.%s: it needs a run time", name)
	}
	if min(p.ResidentMB, p.ExecuteMB, p.LoadPeakMB, p.RAMMB, p.ExecuteRAMMB, p.DeclaredMB, p.LeakMB, float64(p.Devices)) < 0 {
		return fmt.Errorf("plugins.%s: amounts of memory and of devices must not be negative", name)
	}
	if min(p.FailLoad, p.Crash) < 0 || max(p.FailLoad, p.Crash) > 1 {
		return fmt.Errorf("plugins.%s: fail_load and crash are chances, between 0 and 1", name)
	}
	p.Concurrency = max(p.Concurrency, 1)
	return nil
}

// gpu reports whether the plugin needs an accelerator.
func (p *PluginSpec) gpu() bool { return p.Devices > 0 }

// Declared is the manifest's figure per device: resident and execute together,
// as the manifests of the field have it; 0 where it says nothing.
func (p *PluginSpec) Declared() resource.Bytes {
	switch {
	case p.Needs != NeedsDeclared:
		return 0
	case p.DeclaredMB > 0:
		return resource.FromMB(p.DeclaredMB)
	}
	return resource.FromMB(p.ResidentMB + p.ExecuteMB*float64(p.Concurrency))
}

// Program is what a worker of the plugin does.
func (p *PluginSpec) Program(name string) sim.Program {
	return sim.Program{
		Name: name, ResidentVRAM: resource.FromMB(p.ResidentMB), ExecuteVRAM: resource.FromMB(p.ExecuteMB),
		ResidentRAM: resource.FromMB(p.RAMMB), ExecuteRAM: resource.FromMB(p.ExecuteRAMMB), LoadPeakVRAM: resource.FromMB(p.LoadPeakMB),
		Load: sim.Span(p.Load), Run: sim.Span(p.Run), Keeps: p.Keeps, ReleaseLag: sim.Span(p.ReleaseLag),
		Leak: resource.FromMB(p.LeakMB), LeakFor: time.Duration(p.LeakFor), IgnoreTerm: p.IgnoreTerm,
		FailLoad: p.FailLoad, Crash: p.Crash, OOMKills: p.OOMKills,
	}
}

// MachineOptions describes the trace's machine with the faults that befall it.
func (t *Trace) MachineOptions(clock sim.Clock, obs sim.Observer) sim.Options {
	o := sim.Options{Clock: clock, Seed: t.Seed, CPUs: t.Machine.CPUs, RAM: resource.FromMB(t.Machine.RAMMB),
		RAMUsed: resource.FromMB(t.Machine.RAMUsedMB), ReadLag: time.Duration(t.Machine.MonitorLag), Observer: obs}
	for _, d := range t.Machine.Devices {
		o.Devices = append(o.Devices, sim.Device{ID: resource.DeviceID(d.ID), Name: d.Name, Total: resource.FromMB(d.TotalMB),
			Used: resource.FromMB(d.UsedMB), Unified: d.Unified})
	}
	for _, f := range t.Faults {
		if f.Kind == Kill {
			continue
		}
		fault := sim.Fault{Kind: f.Kind, At: time.Duration(f.At), Until: time.Duration(f.Until), Name: f.Name,
			Bytes: resource.FromMB(f.MB), Ramp: time.Duration(f.Ramp)}
		if f.Device < len(o.Devices) {
			fault.Device = o.Devices[f.Device].ID
		}
		o.Faults = append(o.Faults, fault)
	}
	return o
}

// Names lists the plugins in order.
func (t *Trace) Names() []string { return slices.Sorted(maps.Keys(t.Plugins)) }

// Submission is one job of the trace.
type Submission struct {
	At        time.Duration
	ID        string
	Plugin    string
	Submitter string
	Priority  int
	Run       time.Duration
}

// Submissions lists the jobs in the order they arrive. A job's run time follows
// from the seed and its id, whatever becomes of the others.
func (t *Trace) Submissions() []Submission {
	var out []Submission
	count := make(map[string]int)
	for _, a := range t.Arrivals {
		run := sim.Span(a.Run)
		if a.Run == (Range{}) {
			run = sim.Span(t.Plugins[a.Plugin].Run)
		}
		for i := range a.Count {
			count[a.Plugin]++
			id := fmt.Sprintf("%s-%d", a.Plugin, count[a.Plugin])
			at := time.Duration(a.At) + time.Duration(i)*time.Duration(a.Every)
			if a.Jitter > 0 {
				at += time.Duration(a.Jitter * float64(a.Every) * sim.Chance(t.Seed, "arrival "+id))
			}
			out = append(out, Submission{At: at, ID: id, Plugin: a.Plugin, Submitter: a.Submitter, Priority: a.Priority,
				Run: max(run.Draw(t.Seed, "run "+id), time.Millisecond)})
		}
	}
	slices.SortStableFunc(out, func(a, b Submission) int { return cmp.Compare(a.At, b.At) })
	return out
}
