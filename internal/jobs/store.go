package jobs

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/cjmd/cjmd/internal/events"
)

// Store is the durable side of Queue. Every write stores the row and the
// journal events that describe it in one transaction; several writes share a
// commit. Writes are applied in the order of the Write calls, each one wholly or
// not at all; one that is refused (*StateConflictError, *IdempotencyError, *DependencyError,
// ErrNotFound) fails alone. When nothing can be made durable, writes fail with
// ErrStoreUnavailable; the next write tries again. Reads see every write whose
// ticket is done. storetest.Run is the contract in executable form.
type Store interface {
	events.Source
	events.Recorder

	// Write queues one write and returns at once, from any goroutine.
	Write(w Write) *Ticket

	// Get returns the whole job, with Args, Kwargs, Task and Method. ErrNotFound.
	Get(ctx context.Context, id ID) (Job, error)
	// GetMany returns the jobs that exist, without Args and Kwargs, in any order.
	GetMany(ctx context.Context, ids []ID) ([]Job, error)
	// FindKey returns the job that a submitter's idempotency key names. ErrNotFound.
	FindKey(ctx context.Context, submitter, key string) (ID, error)
	// List returns jobs newest first, without Args and Kwargs.
	List(ctx context.Context, q ListQuery) (Page, error)
	// Active calls fn for each job that is not final, in order of Seq.
	Active(ctx context.Context, fn func(ActiveJob) error) error
	// Totals counts jobs by status; final ones since the store was created.
	Totals(ctx context.Context) (Totals, error)
	// JobEvents returns the journal's events of one job with Seq > after, in
	// order, for as long as the job is retained, also where the journal itself
	// no longer reaches back as far. Those of an earlier job of the same id, up to
	// its pruning, are not among them.
	JobEvents(ctx context.Context, id string, after events.Seq) ([]events.Event, error)
	// Result opens a stored result. ErrNotFound when the job has none.
	Result(ctx context.Context, id ID) (io.ReadSeekCloser, error)

	// Prune deletes up to limit final jobs that are neither within the keep
	// newest final ones nor finished after before, nor what a job that is not final
	// depends on, with their results. The ids
	// stay listed as Leftovers until Forget, so that files beside the store are
	// removed even when the process dies in between, and never those of a new job
	// of the same name.
	Prune(ctx context.Context, keep int, before time.Time, limit int) ([]ID, error)
	Leftovers(ctx context.Context) ([]ID, error)
	Forget(ctx context.Context, ids []ID) error
	// PruneJournal bounds the journal to its newest rows events and reports
	// whether more is left to delete; one call deletes at most limit events.
	PruneJournal(ctx context.Context, rows int64, limit int) (more bool, err error)

	// Setting returns "" for a key that was never put.
	Setting(ctx context.Context, key string) (string, error)
	// PutSetting stores value and the drafts in one transaction.
	PutSetting(ctx context.Context, key, value string, drafts ...events.Draft) error

	// OnCommit sets the function that the writer calls with each commit's events,
	// in Seq order, after the commit and before its tickets are done. Called once,
	// before the first write.
	OnCommit(fn func([]events.Event))
	// Close commits what is queued and ends the store. Later writes fail.
	Close() error
}

// Write is one change. Exactly one of Insert and Change is set.
type Write struct {
	// Insert stores new jobs, all or none.
	Insert []NewJob
	Change *Change
	// Lazy says that nobody waits for this write: the store may hold it back for a
	// few milliseconds, so that it shares the commit of the next one that is not.
	Lazy bool
	// Applied, when set, is called once by the store's writer, after the commit
	// (Written.Err nil) or the refusal, in the order of the writes and before the
	// events are published. It must not block; it may call Store.Write. It is not
	// called for what never reached the writer: a large result whose file could
	// not be written, or a store that is closed.
	Applied func(Written)
}

// NewJob is one job to insert. The store sets Job.Seq.
type NewJob struct {
	Job Job
	Key string // idempotency key, "" for none
	// Hash is the canonical hash of the body; nil when neither a key nor an id was
	// chosen by the client. A known key or id with the same hash is not inserted again.
	Hash []byte
	// ChosenID says that the client chose the id: a Key that names another job is
	// an *IdempotencyError then, and an id that is among the Leftovers is refused
	// with ErrLeftover.
	ChosenID bool
	Events   []events.Draft
}

// Inserted answers one NewJob. Created is false when ID existed before; Status
// is the job's then.
type Inserted struct {
	ID      ID
	Seq     int64
	Created bool
	Status  Status
}

// ErrLeftover refuses a chosen id while files of a pruned job of that name may
// still exist.
var ErrLeftover = errors.New("files of an earlier job with this id are being removed")

// Change moves or edits one job. Zero fields leave the row as it is.
type Change struct {
	ID   ID
	From Status // *StateConflictError unless the row is here
	To   Status // "": the status stays
	// Action names the change in a *StateConflictError ("start", "cancel").
	Action string

	Priority          *int
	Labels            map[string]string
	Held              *bool
	Attempt           *int      // 0 also clears StartedAt
	StartedAt         time.Time // kept when the row has one
	FinishedAt        time.Time
	NotBefore         *time.Time // points to zero: clear
	CancelRequestedAt time.Time
	CancelReason      string
	Progress          *float64
	ProgressMessage   string
	Error             *Error
	LastError         *Error
	Result            *StoredResult

	Events []events.Draft
}

// StoredResult is a result to keep; the store decides where the bytes live.
type StoredResult struct {
	Info ResultInfo
	Body []byte
}

// Written is what became of a Write.
type Written struct {
	Inserted []Inserted     // one per NewJob
	Events   []events.Event // as numbered
	Err      error
}

// Ticket is a queued Write.
type Ticket struct {
	done chan struct{}
	w    Written
}

// NewTicket is for stores.
func NewTicket() *Ticket { return &Ticket{done: make(chan struct{})} }

// Resolve is for stores: it sets the outcome and releases the waiters. Once.
func (t *Ticket) Resolve(w Written) { t.w = w; close(t.done) }

// Done is closed when the write is durable or was refused.
func (t *Ticket) Done() <-chan struct{} { return t.done }

// failed reports whether the write was decided, and not stored.
func (t *Ticket) failed() bool {
	select {
	case <-t.done:
		return t.w.Err != nil
	default:
		return false
	}
}

// Wait returns the outcome. When ctx ends first the write may still happen.
func (t *Ticket) Wait(ctx context.Context) (Written, error) {
	select {
	case <-t.done:
		return t.w, t.w.Err
	case <-ctx.Done():
		return Written{}, context.Cause(ctx)
	}
}

// ActiveJob is a job that is not final, as much of it as the queue keeps in memory.
type ActiveJob struct {
	ID                ID
	Seq               int64
	Instance          string
	Submitter         string
	Status            Status
	Priority          int
	Held              bool
	Attempt           int
	MaxAttempts       int
	Revision          int64
	CreatedAt         time.Time
	NotBefore         time.Time
	QueueTimeout      time.Duration
	CancelRequestedAt time.Time
	CancelReason      string
	DependsOn         []ID
	RunOnDepFail      bool
}
