package supervisor

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// ErrNotSupported answers a Request that the plugin does not offer.
var ErrNotSupported = errors.New("not supported by the plugin")

// ErrNotLoaded answers a call that needs a live worker where there is none.
var ErrNotLoaded = errors.New("worker is not loaded")

// CallError is an error the worker or its plugin reported for one call or for
// its load. Category is one of the jobs categories ("user_input", …).
type CallError struct {
	Category   string
	Type       string // exception class
	Message    string
	Traceback  string
	Retriable  bool
	RetryAfter time.Duration
	Fields     []string
	Partial    []byte // what the call had returned so far, may be nil
	Cancelled  bool   // raised because of a cancel
}

func (e *CallError) Error() string { return e.Message }

// ConnLostError says that the link broke while something was awaited.
type ConnLostError struct{ Cause error }

func (e *ConnLostError) Error() string { return fmt.Sprintf("worker connection lost: %v", e.Cause) }
func (e *ConnLostError) Unwrap() error { return e.Cause }

// WorkerLostError says that the worker's process ended under a call, with what
// is known about why.
type WorkerLostError struct {
	Instance string
	Exit     Exit
	Stderr   []string // last lines
}

func (e *WorkerLostError) Error() string {
	s := fmt.Sprintf("worker %q ended: %s", e.Instance, e.Exit)
	return s + lastWords(e.Stderr)
}

// maxLastWords bounds the line of stderr that an error repeats: a program may
// write megabytes without a line feed.
const maxLastWords = 500

// lastWords is the last line of stderr, as the end of an error's message.
func lastWords(stderr []string) string {
	if len(stderr) == 0 {
		return ""
	}
	line := stderr[len(stderr)-1]
	if len(line) > maxLastWords {
		line = strings.ToValidUTF8(line[:maxLastWords], "") + "…"
	}
	return ": " + line
}

// StartError says at which step a start failed; Stderr holds the last lines.
type StartError struct {
	Instance string
	Step     string // "spec" (the catalog refused), "sandbox", "spawn", "hello", "load", "timeout", "stall", "stopped", "isolation", "backoff", "gave_up"
	Exit     *Exit
	Call     *CallError // what the worker itself said, when it did
	Stderr   []string
	RetryAt  time.Time // when a backed-off worker may be started again
	Cause    error
}

func (e *StartError) Error() string {
	s := fmt.Sprintf("cannot start worker %q (%s)", e.Instance, e.Step)
	switch {
	case e.Call != nil:
		s += ": " + e.Call.Message
	case e.Exit != nil:
		s += ": " + e.Exit.String() + lastWords(e.Stderr)
	case e.Cause != nil:
		s += ": " + e.Cause.Error()
	}
	return s
}
func (e *StartError) Unwrap() error { return e.Cause }

// ExitKind classifies the end of a process, once.
type ExitKind string

const (
	ExitOK          ExitKind = "ok"
	ExitError       ExitKind = "error"
	ExitSignal      ExitKind = "signal"
	ExitOOMWorker   ExitKind = "oom_worker"
	ExitOOMSystem   ExitKind = "oom_system"
	ExitKilledByUs  ExitKind = "killed_by_us"
	ExitStartFailed ExitKind = "start_failed"
	ExitIsolation   ExitKind = "isolation"
	ExitTimeout     ExitKind = "timeout"
)

// Exit is how a process ended.
type Exit struct {
	Kind   ExitKind  `json:"kind"`
	Code   int       `json:"code,omitempty"`
	Signal string    `json:"signal,omitempty"`
	Reason string    `json:"reason,omitempty"` // for killed_by_us: why
	At     time.Time `json:"at"`
}

func (e Exit) String() string {
	switch e.Kind {
	case ExitError:
		return fmt.Sprintf("exit code %d", e.Code)
	case ExitSignal:
		return "killed by " + e.Signal
	case ExitKilledByUs:
		return "stopped by cjmd (" + e.Reason + ")"
	default:
		return string(e.Kind)
	}
}
