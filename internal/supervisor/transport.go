package supervisor

import (
	"context"
	"encoding/json"
	"os"
	"time"
)

// Transport speaks one protocol with a worker process. An implementation is
// chosen per instance: transport/rpc for workers that speak ours, transport/cjmhttp
// for those that keep their own HTTP server.
type Transport interface {
	Name() string
	// Prepare makes the channel before the process exists: the files to inherit
	// (fd 3, 4, …) and the environment that tells the worker about them.
	// The returned Channel is closed by the supervisor in every case.
	Prepare(ctx context.Context) (Channel, error)
}

// Channel is a prepared, not yet connected link to one process.
type Channel interface {
	// Files are inherited by the child from fd 3 on; the parent's copies are
	// closed by Channel once Open or Close is called.
	Files() []*os.File
	Env() []string
	// Open sends hello and returns at once with a Conn on which Ready is awaited.
	// events is called from the connection's own goroutine, in order, never
	// concurrently; it must not block for long (it is the back-pressure).
	Open(ctx context.Context, hello Hello, events func(ConnEvent)) (Conn, error)
	Close() error
}

// Conn is a live link to one worker. All methods are safe from any goroutine
// and end with ctx or when the connection is lost (*ConnLostError).
type Conn interface {
	// Ready waits for the worker's ready message. A worker that says it cannot
	// load answers with *CallError.
	Ready(ctx context.Context) (Ready, error)
	// Execute runs one call. Chunks arrive through sink in order, before Execute
	// returns. Cancelling ctx does NOT interrupt the worker (that is what Cancel is
	// for); it abandons the wait. Errors: *CallError (the plugin's), *ConnLostError.
	Execute(ctx context.Context, call Call, sink Sink) (Result, error)
	// Cancel asks the worker to stop one call, in the given mode. ErrNotSupported:
	// it cannot be told in this way, so the next phase follows at once.
	Cancel(ctx context.Context, job string, mode CancelMode) error
	// Request is any control call (configure, schema, config, options, stats,
	// system_status, processes, prefetch, release, enable, disable, ping):
	// params and answer are JSON. ErrNotSupported when the plugin lacks it.
	Request(ctx context.Context, method string, params json.RawMessage) (json.RawMessage, error)
	// Shutdown asks the worker to end by itself; it does not wait for that. After an
	// error, which is also what a worker gets that ends by a signal alone, SIGTERM
	// follows at once.
	Shutdown(ctx context.Context) error
	// Done is closed when the connection has ended; Err then says why. An error that
	// has a method PeerAtFault() bool answering true means that the worker broke the
	// protocol: it is killed for that, and not first given time to end by itself.
	Done() <-chan struct{}
	Err() error
	Close() error
}

// CancelMode is the phase of a cancel that a worker is told about.
type CancelMode string

const (
	CancelCooperative CancelMode = "cooperative" // the plugin's cancel()
	CancelInterrupt   CancelMode = "interrupt"   // KeyboardInterrupt in the main thread
	CancelKill        CancelMode = "kill"        // never sent: the process tree is killed
)

// Hello is the first message to a worker.
type Hello struct {
	Instance   string            `json:"instance"`
	Plugin     string            `json:"plugin"`
	Module     string            `json:"module,omitempty"`
	Class      string            `json:"class,omitempty"`
	Config     json.RawMessage   `json:"config"` // object; {} when empty
	Dirs       map[string]string `json:"dirs"`   // "data", "models", "jobs", "cache"
	Limits     Limits            `json:"limits"`
	Secrets    map[string]string `json:"secrets,omitempty"` // becomes os.environ of the worker, never /proc/PID/environ
	Concurrent int               `json:"concurrency"`
	// Adapters are "module:Class" of the task adapters that the worker binds to
	// its plugin; a Call may then name their tasks.
	Adapters []string `json:"adapters,omitempty"`
}

// Limits of the protocol that both sides hold.
type Limits struct {
	MaxHeader  int `json:"max_header"`  // bytes, default 64 KiB
	MaxPayload int `json:"max_payload"` // bytes, default 256 MiB
}

// Ready is the worker's answer to Hello: loaded, initialised, willing.
type Ready struct {
	Protocol     int             `json:"protocol"`
	Name         string          `json:"name"`
	Version      string          `json:"version"`
	Capabilities []string        `json:"capabilities"` // "stream", "cancel", "progress", "reconfigure", "prefetch", "release", "monitor", …
	Schema       json.RawMessage `json:"schema,omitempty"`
	Config       json.RawMessage `json:"config,omitempty"`
	PID          int             `json:"pid"`
	Runtime      string          `json:"runtime"` // "cjmworker/1.0 CPython 3.11.7"
}

// Call is one execution. The supervisor knows calls, not jobs: ID is opaque.
type Call struct {
	ID      string
	Attempt int
	Args    json.RawMessage // JSON array
	Kwargs  json.RawMessage // JSON object
	Stream  bool
	Dir     string // the call's private directory, "" when none
	// Task and Method say what is called in place of the plugin's execute: Method
	// of the adapter bound to Task, or with Task empty Method of the plugin itself.
	// Only Kwargs are passed then. Both empty: execute.
	Task     string
	Method   string
	Envelope json.RawMessage // passed through, may be nil

	CancelGrace    time.Duration // cooperative phase, default 3 s
	InterruptGrace time.Duration // interrupt phase, default 2 s
}

// Result of a call. Payload is opaque to the daemon.
type Result struct {
	Payload     []byte
	ContentType string // default application/json
	Chunks      uint64 // chunks the worker sent
	// Cancelled is true when the worker obeyed a cancel; Payload may then hold a
	// partial result.
	Cancelled bool
}

// Sink receives what a call produces while it runs. Chunk, Progress and Log are
// called in order from the connection's goroutine; a Sink that blocks slows its
// worker. CancelPhase may come at the same time from another goroutine: a sink
// that blocks in Chunk must not hold up a kill.
type Sink interface {
	Chunk(n uint64, payload []byte) // payload is valid only during the call
	Progress(fraction float64, message string)
	Log(rec LogRecord)
	// CancelPhase is told when a cancel enters a phase (at most once each).
	CancelPhase(mode CancelMode)
}

// LogRecord is one structured record of a worker. Call is "" outside a call.
type LogRecord struct {
	Time    time.Time `json:"time"`
	Level   string    `json:"level"` // debug, info, warning, error
	Logger  string    `json:"logger,omitempty"`
	Message string    `json:"message"`
	Stream  string    `json:"stream,omitempty"` // "stdout", "stderr" when captured from print
	Call    string    `json:"job,omitempty"`
}

// ConnEvent is what a worker says outside any call: progress while loading,
// log records without a job, usage reports.
type ConnEvent struct {
	Progress *Progress
	Log      *LogRecord
	Usage    *Usage
}

// Progress outside a call (loading).
type Progress struct {
	Fraction float64
	Message  string
}

// Usage is a worker's own account of its memory: what its allocators hold, which
// leaves out what the driver keeps for each process.
type Usage struct {
	Devices map[string]int64 `json:"devices"` // device uuid or index → allocator bytes
	// MaxDevices is the most that the allocators ever had, where they know.
	MaxDevices map[string]int64 `json:"max_devices,omitempty"`
	MaxRSS     int64            `json:"max_rss"` // bytes
	Reported   time.Time        `json:"reported_at"`
}
