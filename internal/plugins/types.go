// Package plugins owns what can be run: manifests found on the search path
// (Catalog), and instances with their persisted configuration. It starts no
// process and knows no job. Start with Manifest, then Catalog.
package plugins

import (
	"context"
	"encoding/json"
	"time"

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

	Env     map[string]string
	DBPath  string
	Demand  resource.Demand
	Schema  json.RawMessage // config schema; nil when the manifest has none
	Strict  bool            // a config type mismatch is an error, not a warning
	Secrets []string        // names the plugin needs

	Concurrency int
	Isolation   Isolation
	Limits      Limits
	Timeouts    Timeouts
	MaxAttempts int // 0: daemon's default

	// Hash identifies the content; a different hash on disk means drifted.
	Hash string
	Raw  json.RawMessage // the file as JSON, for "show"
}

type Isolation struct {
	Tier    string   `json:"tier,omitempty"`
	Require []string `json:"require,omitempty"`
}

type Limits struct {
	MemoryMaxMB int64 `json:"memory_max_mb,omitempty"`
	PidsMax     int   `json:"pids_max,omitempty"`
	NoFile      int   `json:"nofile,omitempty"`
	Nice        int   `json:"nice,omitempty"`
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
}

// The methods of Catalog, for the packages that call it (each declares its subset):
//
//	New(Options{Paths []string, Store InstanceStore, Journal events.Recorder, Log}) (*Catalog, error)
//	Run(ctx) error                                 watches the directories
//	Discover(ctx) ([]Plugin, error)                rescan now
//	Plugins() []Plugin     Plugin(name) (Plugin, error: *NotFoundError with the nearest name)
//	Instances() []Instance Instance(id) (Instance, Manifest, error)
//	       an instance named like a plugin exists implicitly (enabled, defaults) until written
//	CreateInstance(ctx, Instance) (Instance, error)   DeleteInstance(ctx, id) error
//	SetEnabled(ctx, id, bool) (Instance, error)
//	CheckConfig(id, config) ([]Issue, error)          MergeDefaults(manifest, config)
//	SetConfig(ctx, id, config) (Instance, []Issue, error)   *ConfigError holds the issues
//	MarkStarted(id, hash)                             for drift
//	Changed() <-chan struct{}
