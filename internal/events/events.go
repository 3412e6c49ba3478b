// Package events owns the shape of the journal's events and their delivery to
// readers. The journal itself is stored by jobs/sqlitestore, which numbers the
// events without gaps and hands every committed batch to Hub.Publish in Seq
// order. Nothing here imports another package of ours. Start with Event, then
// Hub (hub.go) and kinds.go for which kind may follow which.
package events

import (
	"context"
	"encoding/json"
	"time"
)

// Seq numbers the journal from 1, without gaps, for ever. 0 means "before all".
type Seq uint64

// Kind names what happened, "noun.verb" (see kinds.go).
type Kind string

// Event is one committed fact of the journal. Data is one line of JSON, always
// an object, never nil. Job and Instance are empty when the event concerns none.
type Event struct {
	Seq      Seq
	At       time.Time
	Kind     Kind
	Job      string
	Instance string
	Data     json.RawMessage
}

// Draft is an event before the journal has numbered it. A zero At means "now".
// Data is marshalled by the journal; nil becomes {}.
type Draft struct {
	At       time.Time
	Kind     Kind
	Job      string
	Instance string
	Data     any
}

// Recorder is what packages other than jobs use to write into the journal
// (worker states, instance changes, monitor changes).
type Recorder interface {
	// Record returns once the drafts are durable, in order, in one transaction.
	Record(ctx context.Context, drafts ...Draft) ([]Event, error)
	// Emit queues the drafts and returns at once; they are committed in order
	// with the next batch. Used by loops that must not wait for a disk. A write
	// that fails is logged by the journal.
	Emit(drafts ...Draft)
}

// Source is where a reader that fell out of the Hub's ring reads on.
type Source interface {
	// EventsSince returns up to limit events with Seq > after, in order, that match f.
	EventsSince(ctx context.Context, after Seq, f Filter, limit int) ([]Event, error)
	// Bounds returns the oldest and the newest retained Seq (0, n when empty).
	Bounds(ctx context.Context) (oldest, newest Seq, err error)
}

// Filter selects events. Empty fields select everything.
type Filter struct {
	Kinds    []string // exact kinds, or prefixes that end in "." ("job.")
	Job      string
	Instance string
}
