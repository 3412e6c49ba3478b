// Package plugins owns what can be run: manifests found on the search path
// (Catalog), and instances with their persisted configuration. It starts no
// process and knows no job. Start with Manifest, then Catalog.
package plugins

import (
	"context"
	"encoding/json"
	"time"

	"github.com/cjmd/cjmd/internal/execspec"
	"github.com/cjmd/cjmd/internal/resource"
)

// Manifest is the normalised form of the three formats (v1 flat, v2 nested, v3 ours).
type Manifest struct {
	Format      string // "v1", "v2", "v3"
	Path        string // the file it came from
	Name        string
	Version     string
	Description string
	Author      string
	Category    string
	Interface   string

	Runtime    string // "native" (default), "http", "exec"
	PythonPath string // interpreter of the plugin's environment
	Module     string
	Class      string
	Command    []string // native programs that are no Python, and exec
	// Exec is how a program of runtime exec is used; nil otherwise. Its Command is
	// the one above.
	Exec *execspec.Spec
	// Adapters are "module:Class" of the task adapters that a worker binds to its
	// plugin. Catalog.Instance adds installed ones that fit.
	Adapters []string

	// CodeDirs are absolute directories with the plugin's code (v3 "path"), for PYTHONPATH.
	CodeDirs []string
	// Env is what the manifest adds to the worker's environment; values may hold
	// the templates that BuildEnv expands.
	Env map[string]string
	// EnvSpec is the installer's part of a v3 manifest ("env"), kept as data.
	EnvSpec json.RawMessage
	DBPath  string
	Demand  resource.Demand
	Schema  json.RawMessage // config schema; nil when the manifest has none
	Strict  bool            // a config type mismatch is an error, not a warning
	Secrets []string        // names without which the plugin does not start
	// OptionalSecrets are names the plugin can use and does not need.
	OptionalSecrets []string

	Concurrency int
	Placement   Placement // where its workers sit, unless the owner says otherwise
	Isolation   Isolation
	Limits      Limits
	Timeouts    Timeouts
	MaxAttempts int // 0: daemon's default

	// Warnings are findings that do not keep the plugin from running.
	Warnings []string

	// Hash identifies the content; a different hash on disk means drifted.
	Hash string
	Raw  json.RawMessage // the file as JSON, for "show"
}

// Isolation is the wish of a manifest or an instance.
type Isolation struct {
	Tier    string   `json:"tier,omitempty"`
	Require []string `json:"require,omitempty"`
	// For tier sandboxed: "host" (or empty), "none" or "loopback", and directories
	// or files that the worker sees besides its own.
	Network string   `json:"network,omitempty"`
	Read    []string `json:"read,omitempty"`
}

func (i *Isolation) none() bool {
	return i.Tier == "" && i.Network == "" && len(i.Require) == 0 && len(i.Read) == 0
}

// Placement says on which accelerators workers sit. Devices are named by UUID
// or by index; names that no device bears are no error, because cards come and
// go.
type Placement struct {
	// Count is how many accelerators one worker spans; 0: as the manifest says,
	// which means 1 where it says nothing.
	Count int `json:"count,omitzero"`
	// An owner's list that is nil leaves the manifest's in force, an empty one
	// lifts it.
	Pin    []string `json:"pin,omitzero"`    // nowhere else; empty: anywhere
	Prefer []string `json:"prefer,omitzero"` // where there is a choice
	Avoid  []string `json:"avoid,omitzero"`  // only where there is no other choice
}

func (p *Placement) none() bool {
	return p.Count == 0 && p.Pin == nil && p.Prefer == nil && p.Avoid == nil
}

// PlacementOf joins the owner's wishes with those of the manifest: what the
// owner did not say is as the manifest has it.
func (i Instance) PlacementOf(m Manifest) Placement {
	p := m.Placement
	if p.Count == 0 {
		p.Count = m.Demand.Devices
	}
	own := i.Placement
	if own == nil {
		return p
	}
	if own.Count > 0 {
		p.Count = own.Count
	}
	if own.Pin != nil {
		p.Pin = own.Pin
	}
	if own.Prefer != nil {
		p.Prefer = own.Prefer
	}
	if own.Avoid != nil {
		p.Avoid = own.Avoid
	}
	return p
}

// Limits of a worker's process tree; zero means none.
type Limits struct {
	MemoryMaxMB int64   `json:"memory_max_mb,omitempty"`
	PidsMax     int     `json:"pids_max,omitempty"`
	CPUWeight   int     `json:"cpu_weight,omitempty"`
	CPUMax      float64 `json:"cpu_max,omitempty"` // processors
	IOWeight    int     `json:"io_weight,omitempty"`
	NoFile      int     `json:"nofile,omitempty"`
	Nice        int     `json:"nice,omitempty"`
}

// Timeouts of a plugin; zero means the daemon's default.
type Timeouts struct {
	Start          time.Duration
	Stall          time.Duration
	Run            time.Duration
	CancelGrace    time.Duration
	InterruptGrace time.Duration
	StopGrace      time.Duration
}

// Plugin is one entry of the catalogue, good or bad.
type Plugin struct {
	Name     string
	Manifest *Manifest // nil when Err is set and nothing could be read
	Path     string
	Err      error  // why the file cannot be used; nil when it can
	Shadowed string // path of the manifest of the same name that won, "" when this one won
	Drifted  bool   // the file changed since a running worker was started from it
	FoundAt  time.Time
}

// Instance is a plugin with a configuration. Its ID defaults to the plugin's name.
type Instance struct {
	ID        string
	Plugin    string
	Config    json.RawMessage // the whole effective config (defaults filled in)
	Enabled   bool
	Pinned    bool
	Limits    *Limits
	Isolation *Isolation
	Placement *Placement // the owner's wishes; PlacementOf has what is in force
	// Concurrency overrides the manifest's when > 0.
	Concurrency int
	Autoload    bool
	Revision    int64
	UpdatedAt   time.Time
}

// InstanceStore persists instances; implemented by jobs/sqlitestore. Every
// write also writes the journal event given.
type InstanceStore interface {
	Instances(ctx context.Context) ([]Instance, error)
	PutInstance(ctx context.Context, inst Instance, event string) error // event: created or updated
	DeleteInstance(ctx context.Context, id string) error
}

// Issue is one finding of a config check. Pointer is a JSON Pointer into the config.
type Issue struct {
	Pointer string
	Message string // form of PEER.md section 5: "F: 0 is less than minimum 1"
	Warning bool   // a type mismatch that the manifest does not forbid
	// Rule says the same without the value, which may be a secret; "" where
	// Message has none in it.
	Rule string
}
