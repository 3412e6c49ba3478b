// Package jobs owns jobs: what was asked, where each one stands, what it
// returned, and the journal's account of all that. Queue is the only thing that
// changes a job; Store (store.go) is the durable side of it. Packages above
// (sched, api) see jobs through Queue; jobs knows no scheduler, worker or HTTP.
// Start with Job and the transition table (states.go), then Queue.
package jobs

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"

	"github.com/cjmd/cjmd/internal/resource"
)

// ID names a job: chosen by the client (PUT) or a ULID.
type ID string

// Check reports whether id may name a job: 1 to 128 of [A-Za-z0-9._:-], not
// beginning with a dot.
func (id ID) Check() error {
	if len(id) == 0 || len(id) > 128 || id[0] == '.' {
		return &InvalidError{Field: "id", Message: "must be 1 to 128 characters and not begin with a dot"}
	}
	for _, c := range []byte(id) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '_', c == ':', c == '-':
		default:
			return &InvalidError{Field: "id", Message: "may contain only letters, digits and . _ : -"}
		}
	}
	return nil
}

// FileName is what the files and directories of a job are called: safe on every
// file system, whatever the client chose as id.
func (id ID) FileName() string {
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:16])
}

// Status is the coarse state; the last three are final.
type Status string

const (
	Pending   Status = "pending"
	Running   Status = "running"
	Completed Status = "completed"
	Failed    Status = "failed"
	Cancelled Status = "cancelled"
)

// Final reports whether a job in s will never change again.
func (s Status) Final() bool { return s == Completed || s == Failed || s == Cancelled }

// Phase refines pending (queued, blocked, held) and running (reserving,
// loading, executing, cancelling). Empty once final.
type Phase string

const (
	Queued     Phase = "queued"
	Blocked    Phase = "blocked"
	Held       Phase = "held"
	Reserving  Phase = "reserving"
	Loading    Phase = "loading"
	Executing  Phase = "executing"
	Cancelling Phase = "cancelling"
)

// Category says what kind of failure an Error is; it drives retries.
type Category string

const (
	UserInput    Category = "user_input"
	Transient    Category = "transient"
	ResourceCat  Category = "resource"
	Fatal        Category = "fatal"
	Timeout      Category = "timeout"
	Interrupted  Category = "interrupted"
	WorkerLost   Category = "worker_lost"
	OOM          Category = "oom"
	CancelledCat Category = "cancelled"
)

// Error is why a job failed, for people (Message) and programs (Category).
type Error struct {
	Category  Category `json:"category"`
	Message   string   `json:"message"`
	Retriable bool     `json:"retriable"`
	// Type and Traceback are the plugin's own exception, where it gave one.
	Type      string `json:"type,omitempty"`
	Traceback string `json:"traceback,omitempty"`
	// RetryAfter delays the next attempt of a retriable error.
	RetryAfter time.Duration `json:"-"`
	// StderrTail holds the worker's last lines when it died.
	StderrTail []string             `json:"stderr_tail,omitempty"`
	Shortfall  []resource.Shortfall `json:"shortfall,omitempty"`
	// Fields lists what the plugin found invalid (user_input).
	Fields []string `json:"fields,omitempty"`
}

// Block is why a pending job does not run. Code is stable, Sentence is for people.
type Block struct {
	Code     string               `json:"code"` // paused, draining, disabled, unknown_plugin, no_slot, resource, stale_monitor, cooling_down, dependency, retry_delay, worker_failed
	Sentence string               `json:"sentence"`
	Needs    []resource.Shortfall `json:"needs,omitempty"`
	Holders  []string             `json:"holders,omitempty"`
	// Earliest is when this may change by itself; zero when unknown.
	Earliest time.Time `json:"earliest,omitzero"`
	Since    time.Time `json:"since,omitzero"`
}

// Spec is what the submitter asked for. Immutable but for Priority and Labels.
type Spec struct {
	Instance string          // instance id; "plugin" in the API
	Args     json.RawMessage // a JSON array, never nil after Submit
	Kwargs   json.RawMessage // a JSON object, never nil after Submit
	// Task and Method choose what is called where a plugin offers more than its
	// execute; both empty means that. Left out of the encoding when empty, so that
	// the hash of a body is what it was before they were known.
	Task     string `json:",omitempty"`
	Method   string `json:",omitempty"`
	Stream   bool
	Priority int // higher is more urgent
	Labels   map[string]string

	QueueTimeout   time.Duration // 0: none
	RunTimeout     time.Duration // 0: none
	CancelGrace    time.Duration // 0: the daemon's default (3 s)
	InterruptGrace time.Duration // 0: the daemon's default (2 s)
	MaxAttempts    int           // ≥ 1 after Submit (default 3)
	Held           bool          // submitted on hold
	DependsOn      []ID
	RunOnDepFail   bool // on_dependency_failure: run
}

// Job is one request and its whole state. Values are copies; changing one
// changes nothing.
type Job struct {
	ID        ID
	Seq       int64 // order of submission; ties of priority go by it
	Spec      Spec
	Submitter string // principal that submitted
	RetryOf   ID

	Status   Status
	Phase    Phase
	Block    *Block // not stored; set by Queue for pending jobs where known
	Attempt  int    // number of the current or last attempt; 0 before the first
	Revision int64  // grows with every stored change; the ETag

	CreatedAt  time.Time
	StartedAt  time.Time // first attempt
	FinishedAt time.Time
	NotBefore  time.Time // earliest next attempt after a retriable error

	CancelRequestedAt time.Time
	CancelReason      string

	// Progress is live while running (not stored per report) and as last seen after.
	Progress        float64 // 0..1, -1 indeterminate
	ProgressMessage string

	Result *ResultInfo // set when a result (or a partial one) is stored
	Error  *Error
	// LastError is the error of the previous attempt while the job retries.
	LastError *Error
}

// ResultInfo describes a stored result; the bytes are read with Queue.Result.
type ResultInfo struct {
	Size        int64
	ContentType string // "application/json" unless the worker said otherwise
	Partial     bool   // what a cancelled or failed job had returned so far
	SHA256      string
}

// Outcome ends an attempt. Exactly one of the status-specific parts applies.
type Outcome struct {
	Status      Status // Completed, Failed or Cancelled; Pending means "give it another attempt if it has one left"
	Result      []byte // nil when there is none
	ContentType string
	Partial     bool
	Error       *Error
	// Unspent, with Status Pending: the attempt is not counted, because the
	// worker never came to begin it (back-off, cool-down).
	Unspent bool
}
