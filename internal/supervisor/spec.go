// Package supervisor owns worker processes: one loop per worker owns its
// state, process, sandbox and connection. Callers ask for outcomes
// (EnsureReady, Execute, Stop) and never inspect state first. It knows calls,
// not jobs. Start with Supervisor (supervisor.go), then the loop (worker.go)
// and its transition table (states.go).
package supervisor

import (
	"context"
	"time"

	"github.com/cjmd/cjmd/internal/isolation"
)

// Spec is everything needed to run one instance's worker. The supervisor asks
// for it (Catalog) at each start, so a changed manifest or config takes effect
// with the next process.
type Spec struct {
	Instance  string
	Plugin    string
	Transport string   // name of one of Options.Transports
	Command   []string // absolute program and arguments
	Dir       string   // working directory
	Env       []string // complete environment: KEY=value
	Hello     Hello

	Concurrency  int           // execute slots, ≥ 1
	StartCap     time.Duration // absolute limit of a start, 0: 30 min
	StallTimeout time.Duration // start without any progress, log line or growth, 0: 60 s
	StopGrace    time.Duration // from the shutdown message to the kill, 0: 5 s; SIGTERM comes at half of it
	Isolation    IsolationWish
	View         isolation.View // what a sandboxed worker sees
	Limits       ResourceLimits
	// Interpreter facts recorded by the manifest are checked by whoever builds
	// the Spec; an error from Catalog.Spec refuses the start with that text.
}

// IsolationWish is what the instance asks for; the report says what it gets.
type IsolationWish struct {
	Tier    string   `json:"tier"` // "auto", "0".."3"
	Require []string `json:"require,omitempty"`
}

// ResourceLimits apply to the whole process tree where the tier can hold them.
type ResourceLimits struct {
	MemoryMax int64   `json:"memory_max,omitempty"` // bytes
	PidsMax   int     `json:"pids_max,omitempty"`
	CPUWeight int     `json:"cpu_weight,omitempty"`
	CPUMax    float64 `json:"cpu_max,omitempty"` // processors
	IOWeight  int     `json:"io_weight,omitempty"`
	NoFile    int     `json:"nofile,omitempty"`
	Nice      int     `json:"nice,omitempty"`
}

// Catalog resolves an instance to what runs it. devices are the accelerators
// that Place gave the start, in order; nil where nobody placed it.
type Catalog interface {
	Spec(ctx context.Context, instance string, devices []string) (Spec, error)
}

// State of a worker; see states.go for the table of transitions.
type State string

const (
	Stopped      State = "stopped"
	Starting     State = "starting"
	Initializing State = "initializing"
	ReadyState   State = "ready"
	Busy         State = "busy"
	Draining     State = "draining"
	Stopping     State = "stopping"
	Killing      State = "killing"
	Backoff      State = "backoff"
	Unresponsive State = "unresponsive"
	FailedState  State = "failed"
	Unkillable   State = "unkillable"
)

// Status is an atomic copy of one worker's state for readers.
type Status struct {
	Instance    string    `json:"instance"`
	Plugin      string    `json:"plugin"`
	State       State     `json:"state"`
	Since       time.Time `json:"since"`
	Cause       string    `json:"cause,omitempty"`
	PID         int       `json:"pid,omitempty"`
	Generation  int       `json:"generation"` // processes started so far
	Restarts    int       `json:"restarts"`   // failures counted in the window
	StartedAt   time.Time `json:"started_at,omitzero"`
	ReadyAt     time.Time `json:"ready_at,omitzero"`
	RetryAt     time.Time `json:"retry_at,omitzero"` // backoff
	LoadMillis  int64     `json:"load_ms,omitempty"`
	Calls       []string  `json:"calls,omitempty"` // in flight
	CallsTotal  int64     `json:"calls_total"`
	Concurrency int       `json:"concurrency"`
	Ready       *Ready    `json:"ready,omitempty"`
	LastExit    *Exit     `json:"last_exit,omitempty"`
	LastError   string    `json:"last_error,omitempty"`
	// Load progress while starting or initializing.
	Progress        float64 `json:"progress,omitempty"`
	ProgressMessage string  `json:"progress_message,omitempty"`
	// Devices are the accelerators that the process was given, NextDevices those
	// that the next one will get, where Place named others since.
	Devices     []string        `json:"devices,omitempty"`
	NextDevices []string        `json:"next_devices,omitempty"`
	Usage       *Usage          `json:"usage,omitempty"`
	PIDs        []int           `json:"pids,omitempty"` // whole tree, as last sampled; readers share it
	RSS         int64           `json:"rss,omitempty"`  // bytes, likewise
	CPUPercent  float64         `json:"cpu_percent,omitempty"`
	Tier        string          `json:"tier,omitempty"`
	Isolation   []IsolationFact `json:"isolation,omitempty"`
}

// Weaker are the rows of the report that were asked for and are not in force.
func (s *Status) Weaker() []IsolationFact { return weaker(s.Isolation) }

func weaker(report []IsolationFact) []IsolationFact {
	var out []IsolationFact
	for _, f := range report {
		if f.Requested && !f.InForce {
			out = append(out, f)
		}
	}
	return out
}

// IsolationFact is one row of the isolation report.
type IsolationFact struct {
	Mechanism  string `json:"mechanism"`
	Requested  bool   `json:"requested"`
	InForce    bool   `json:"in_force"`
	VerifiedBy string `json:"verified_by,omitempty"`
	Detail     string `json:"detail,omitempty"`
}

// Applied says how Configure took effect.
type Applied string

const (
	AppliedReconfigured Applied = "reconfigured" // the plugin's reconfigure()
	AppliedInitialized  Applied = "initialized"  // a second initialize()
	AppliedAtStart      Applied = "at_start"     // no worker is loaded; the next start uses it
)

// The methods of Supervisor, for the packages that call it (each declares the
// subset it needs):
//
//	Run(ctx) error                                  blocks; returns when every worker is gone
//	EnsureReady(ctx, instance) error                starts and waits; *StartError. A worker that
//	        crashed is started again by the next EnsureReady, never by itself
//	Execute(ctx, instance, Call, Sink) (Result, error)
//	        needs a ready worker (ErrNotLoaded otherwise); cancelling ctx runs the cancel
//	        phases (cooperative → interrupt → kill) and returns when the work has really
//	        stopped; errors: *CallError (Cancelled when it had to be killed),
//	        *WorkerLostError, ErrNotLoaded, ErrNoSlot
//	Stop(ctx, instance, cause) error                polite, then force; nil when stopped and empty
//	Kill(ctx, instance, cause) error                at once
//	Reset(instance)                                 clears backoff and failed (load, reload, config change)
//	Configure(ctx, instance, old, new) (Applied, error)      waits for a start in progress
//	Place(instance, devices)                        accelerators of the next start
//	PIDs(instance) []int                            the worker's whole process tree, now
//	Forget(instance)                                end of the bookkeeping of a deleted instance
//	Request(ctx, instance, method, params) (json.RawMessage, error)   ErrNotLoaded, ErrNotSupported
//	Status(instance) (Status, bool)   List() []Status   Changed() <-chan struct{}
//	Logs(instance) (LogSource, bool)                tail and follow of stdout, stderr and log records
