package jobs

import (
	"errors"
	"fmt"
	"time"

	"github.com/cjmd/cjmd/internal/events"
)

// The methods of Queue, for the packages that call it (each declares its subset).
// For clients (api):
//
//	Submit(ctx, []Submission) ([]Submitted, error)   one transaction; durable when it returns
//	Get(ctx, ID) (Job, error)                        live progress and block included
//	List(ctx, ListQuery) (Page, error)
//	Wait(ctx, ID) (Job, error)                       until final or ctx ends (then the job so far and ctx.Err())
//	Cancel(ctx, ID, by, reason string) (Job, error)  idempotent; pending → cancelled at once, running → intent recorded
//	Patch(ctx, ID, Patch) (Job, error)
//	Hold(ctx, ID) / Release(ctx, ID) (Job, error)
//	Retry(ctx, ID, submitter) (Job, error)           a new job with RetryOf; the old one must be final
//	SetControl(ctx, scope string, Mode) error        scope "" is the whole queue, else an instance; durable
//	Controls() map[string]Mode
//	Overview(ctx, limit int) (Overview, error)
//	Result(ctx, ID) (io.ReadSeekCloser, ResultInfo, error)
//	Run(ctx) error                                   keeps to retention; Prune(ctx) does so now; SetRetention(jobs, age)
//	Log(ctx, ID, after uint64) (*joblog.Reader, error)     records 1…n, follows until the final record
//	Files, OpenFile, PutFile, RemoveFile, NewStage         the job's private directory (files.go)
//
// For the scheduler (sched):
//
//	Changed() <-chan struct{}                        merged wake-up, empty
//	Groups(limit int) []Group                        per instance: the first limit ready jobs, the oldest of each lower
//	                                                 priority and the first of each submitter
//	Cancels() []CancelIntent                         intents recorded for running jobs since the last call
//	NextDeadline() time.Time; Expire(ctx, now) error queue_timeout, retry_delay
//	Admit(ctx, ID, worker string) (*Run, error)      pending → running in memory at once (executing when a worker is named,
//	                                                 else reserving); the start is durable when Run.Started() is closed, which
//	                                                 a job with MaxAttempts 1 must wait for before it begins
//	Fail(ctx, ID, *Error) error                      pending → failed without an attempt
//	SetBlocks(map[string]*Block by instance)         what GET shows for pending jobs; journals changed codes only
//	Recover(ctx) (Recovered, error)                  once at start: running → pending or failed(interrupted)
//
// A Run is the scheduler's handle on one attempt:
//
//	Job() Job (with Args, Kwargs)   Resolve(ctx) (Job, error): the same with references filled in   Dir() (string, error)
//	Started() <-chan struct{}   WaitStarted(ctx) error   SetPhase(ctx, Phase) error   Sink() — Chunk, Progress, Log into the job log
//	CancelPhase(mode string)        Finish(ctx, Outcome) (Job, error)  Interrupt(ctx) error (daemon shuts down: back to pending)

// Submission is one job to submit.
type Submission struct {
	ID             ID     // "" lets the queue choose; set by PUT /jobs/{id}
	IdempotencyKey string // scoped to the submitter
	Spec           Spec
	Submitter      string
	RetryOf        ID
	Stage          *Stage // files that came with it; ID is "" then
}

// Submitted answers one Submission. Created is false when the key or id was
// known with the same body: Job is then the existing one.
type Submitted struct {
	Job     Job
	Created bool
}

// Patch changes a job that is not final.
type Patch struct {
	Priority *int              // pending only
	Labels   map[string]string // nil: unchanged
	IfMatch  int64             // expected Revision, 0: any
}

// ListQuery selects jobs, newest first. Cursor is opaque ("" for the first page).
type ListQuery struct {
	Statuses  []Status
	Instance  string
	Submitter string
	Label     map[string]string
	Cursor    string
	Limit     int // 1..500
}

// Page is one page of a list. ReadAt is the journal number it was read at, so
// that following the journal after ReadAt misses nothing.
type Page struct {
	Jobs   []Job
	Next   string // "" on the last page
	ReadAt events.Seq
}

// Mode of the queue or of one instance's part of it.
type Mode string

const (
	ModeRunning  Mode = "running"
	ModePaused   Mode = "paused"   // accepts, starts nothing
	ModeDraining Mode = "draining" // refuses new, finishes old
)

// Overview is the queue at a glance.
type Overview struct {
	Running  []Job
	Pending  []Job // in the order they would start, at most limit
	History  []Job // newest first, at most limit
	Totals   Totals
	Controls map[string]Mode
	ReadAt   events.Seq
}

// Totals counts jobs; the final ones since the store was created.
type Totals struct {
	Pending, Running, Completed, Failed, Cancelled int64
}

// Group is one instance's pending jobs as the scheduler sees them.
type Group struct {
	Instance string
	Pending  int // ready ones, also beyond the limit
	Ready    []Ready
}

// Ready is one job that may start as far as the queue is concerned (not held,
// dependencies met, retry delay over, queue not paused).
type Ready struct {
	ID        ID
	Seq       int64
	Priority  int
	Submitter string
	CreatedAt time.Time
	Attempt   int // of the next attempt
}

// CancelIntent asks the scheduler to end a running job.
type CancelIntent struct {
	ID     ID
	Reason string
}

// Recovered says what Recover found after an unclean stop.
type Recovered struct {
	Pending, Requeued, Failed int
}

// Errors of Queue. Decide by type.
var (
	ErrNotFound = errors.New("no such job")
	// ErrBadCursor answers a ListQuery whose Cursor no Page gave.
	ErrBadCursor = errors.New("the cursor is not one that a list gave")
	ErrDraining  = errors.New("the queue is draining and accepts no new jobs")
	// ErrStoreUnavailable is wrapped when nothing can be made durable (disk full, I/O error).
	ErrStoreUnavailable = errors.New("the job store cannot be written")
)

// StateConflictError says that the job is not where the caller thinks.
type StateConflictError struct {
	ID     ID
	Status Status
	Action string
}

func (e *StateConflictError) Error() string {
	return fmt.Sprintf("cannot %s job %s: it is %s", e.Action, e.ID, e.Status)
}

// IdempotencyError says that a key or id was used before with another body.
type IdempotencyError struct {
	Key string
	ID  ID
}

func (e *IdempotencyError) Error() string {
	return fmt.Sprintf("key %q was used before for job %s with a different body", e.Key, e.ID)
}

// RevisionError says that If-Match named an old revision.
type RevisionError struct{ Have, Want int64 }

func (e *RevisionError) Error() string {
	return fmt.Sprintf("job is at revision %d, not %d", e.Have, e.Want)
}

// InvalidError says which field of a request cannot be accepted, and why.
type InvalidError struct {
	Field   string // JSON Pointer without the leading slash: "args", "depends_on/0"
	Message string
}

func (e *InvalidError) Error() string { return fmt.Sprintf("%s: %s", e.Field, e.Message) }

// LimitError says that a quota or a bound of the queue is reached.
type LimitError struct {
	What       string
	Limit      int64
	RetryAfter time.Duration
	Quota      bool // it is the caller's own share that is used up
}

func (e *LimitError) Error() string { return fmt.Sprintf("%s: limit of %d reached", e.What, e.Limit) }
