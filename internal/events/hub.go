package events

import (
	"context"
	"fmt"
	"io"
	"sync"
)

const (
	defaultRing = 8192
	// scanStep bounds how many ring slots a reader looks at per hold of the lock,
	// so that a narrow filter over a full ring never delays the publisher.
	scanStep = 512
	// pageSize is how many events a reader outside the ring asks the Source for.
	pageSize = 256
)

// Options of a Hub.
type Options struct {
	// Source serves readers whose cursor is older than the ring. Required.
	Source Source
	// Ring is how many events are kept in memory; 0 means 8192.
	Ring int
}

// ResetError tells a reader, once, that the events after After cannot all be
// had: they were pruned (After < Oldest) or the number was never given out
// (After > Newest). The Subscription goes on at Oldest, or after Newest.
type ResetError struct{ After, Oldest, Newest Seq }

func (e *ResetError) Error() string {
	return fmt.Sprintf("cannot continue after event %d: retained are %d to %d", e.After, e.Oldest, e.Newest)
}

// Hub delivers committed events to any number of readers. The publisher never
// waits for one: each reader pulls from a shared, bounded ring with its own
// cursor, and from the Source when it fell out of the ring. Safe from any
// goroutine; starts none.
type Hub struct {
	source Source

	mu     sync.RWMutex
	ring   []Event       // ring[i%len] holds the event with Seq i, for first ≤ i ≤ last
	first  Seq           // oldest Seq in the ring, 0 while it is empty
	last   Seq           // newest published Seq, 0 before the first
	wake   chan struct{} // closed and replaced by every Publish
	closed bool
}

// NewHub returns a Hub with nothing published.
func NewHub(o Options) *Hub {
	if o.Ring <= 0 {
		o.Ring = defaultRing
	}
	return &Hub{source: o.Source, ring: make([]Event, o.Ring), wake: make(chan struct{})}
}

// Publish hands committed events to the readers, in Seq order. It never blocks
// on a reader. Only the journal's writer calls it.
func (h *Hub) Publish(evs []Event) {
	if len(evs) == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	for _, e := range evs {
		if h.last != 0 && e.Seq != h.last+1 {
			h.first = 0 // a hole: what is in the ring no longer joins on
		}
		h.ring[int(e.Seq%Seq(len(h.ring)))] = e
		h.last = e.Seq
		if h.first == 0 {
			h.first = e.Seq
		} else if h.last-h.first >= Seq(len(h.ring)) {
			h.first = h.last - Seq(len(h.ring)) + 1
		}
	}
	close(h.wake)
	h.wake = make(chan struct{})
}

// Last returns the newest published Seq; before the first Publish, the newest
// one of the Source (0 when that cannot be read).
func (h *Hub) Last() Seq {
	h.mu.RLock()
	last := h.last
	h.mu.RUnlock()
	if last == 0 {
		_, last, _ = h.source.Bounds(context.Background())
	}
	return last
}

// Close ends all subscriptions: their Next returns what the ring still holds
// for them, then io.EOF. Idempotent.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.closed = true
		close(h.wake)
	}
}

// Subscribe returns a cursor behind after: the first Next returns the first
// matching event with a greater Seq. 0 begins with the oldest retained event.
func (h *Hub) Subscribe(f Filter, after Seq) *Subscription {
	return &Subscription{hub: h, filter: f, cursor: after, done: make(chan struct{})}
}

// Subscription is one reader's cursor. Next is for one goroutine at a time;
// Close is safe from any.
type Subscription struct {
	hub    *Hub
	filter Filter

	cursor Seq     // everything up to here was delivered or does not match
	page   []Event // read from the Source, not yet delivered
	begun  bool    // the first position was checked against retention

	once sync.Once
	done chan struct{}
}

// Cursor returns the Seq up to which nothing more will be delivered. It is what
// an ephemeral event carries as its id.
func (s *Subscription) Cursor() Seq { return s.cursor }

// Close ends the subscription; a Next that waits returns io.EOF. Idempotent.
func (s *Subscription) Close() { s.once.Do(func() { close(s.done) }) }

// Next returns the next matching event, waiting for it if need be. It returns
// io.EOF after Close of the Subscription or of the Hub, *ResetError once when
// events are missing, and ctx's error.
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	for {
		if err := s.ended(ctx); err != nil {
			return Event{}, err
		}
		if len(s.page) > 0 {
			e := s.page[0]
			s.page = s.page[1:]
			s.cursor = max(s.cursor, e.Seq)
			return e, nil
		}
		e, st, wake := s.fromRing()
		switch st {
		case ringHit:
			return e, nil
		case ringMore:
		case ringClosed:
			return Event{}, io.EOF
		case ringEmpty:
			s.wait(ctx, wake)
		case ringMiss:
			found, err := s.fromSource(ctx)
			if err != nil {
				return Event{}, err
			}
			if !found { // wake was taken before the Source was read, so nothing is missed
				s.wait(ctx, wake)
			}
		}
	}
}

// wait returns when something may have changed; the caller looks again.
func (s *Subscription) wait(ctx context.Context, wake <-chan struct{}) {
	select {
	case <-wake:
	case <-s.done:
	case <-ctx.Done():
	}
}

func (s *Subscription) ended(ctx context.Context) error {
	select {
	case <-s.done:
		return io.EOF
	case <-ctx.Done():
		return context.Cause(ctx)
	default:
		return nil
	}
}

type ringState int

const (
	ringHit    ringState = iota // an event was found
	ringMore                    // nothing matched in this step, look on
	ringEmpty                   // caught up; wait for wake
	ringMiss                    // the cursor is not in the ring
	ringClosed                  // nothing left in the ring and the hub is closed
)

// fromRing looks at up to scanStep events behind the cursor.
func (s *Subscription) fromRing() (Event, ringState, <-chan struct{}) {
	h := s.hub
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.closed && (h.last == 0 || s.cursor >= h.last || s.cursor+1 < h.first) {
		return Event{}, ringClosed, nil
	}
	if h.last == 0 || s.cursor+1 < h.first || (s.cursor > h.last && !s.begun) {
		return Event{}, ringMiss, h.wake
	}
	if s.cursor >= h.last { // beyond it: read from the Source before it was published
		s.begun = true
		return Event{}, ringEmpty, h.wake
	}
	s.begun = true
	for range scanStep {
		if s.cursor == h.last {
			return Event{}, ringEmpty, h.wake
		}
		s.cursor++
		if e := h.ring[int(s.cursor%Seq(len(h.ring)))]; s.filter.Match(e) {
			return e, ringHit, nil
		}
	}
	return Event{}, ringMore, nil
}

// fromSource reads a page of stored events behind the cursor; found is false
// when there are none.
func (s *Subscription) fromSource(ctx context.Context) (found bool, err error) {
	s.hub.mu.RLock()
	last := s.hub.last
	s.hub.mu.RUnlock()
	oldest, newest, err := s.hub.source.Bounds(ctx)
	if err != nil {
		return false, fmt.Errorf("cannot read the bounds of the journal: %w", err)
	}
	// Asked for all there is, and gets it: not a loss.
	all := !s.begun && s.cursor == 0
	s.begun = true
	if s.cursor > newest {
		reset := &ResetError{After: s.cursor, Oldest: oldest, Newest: newest}
		s.cursor = newest
		return false, reset
	}
	if oldest > 0 && s.cursor+1 < oldest {
		reset := &ResetError{After: s.cursor, Oldest: oldest, Newest: newest}
		s.cursor = oldest - 1
		if !all {
			return false, reset
		}
	}
	page, err := s.hub.source.EventsSince(ctx, s.cursor, s.filter, pageSize)
	if err != nil {
		return false, fmt.Errorf("cannot read the journal after event %d: %w", s.cursor, err)
	}
	// What retention removed while the page was read may be missing from it.
	oldest, now, err := s.hub.source.Bounds(ctx)
	if err != nil {
		return false, fmt.Errorf("cannot read the bounds of the journal: %w", err)
	}
	if oldest > 0 && s.cursor+1 < oldest && !all {
		reset := &ResetError{After: s.cursor, Oldest: oldest, Newest: now}
		s.cursor = oldest - 1
		return false, reset
	}
	if s.page = page; len(page) == 0 {
		// What was committed before the page was read is covered by it.
		s.cursor = max(s.cursor, last, newest)
	}
	return len(s.page) > 0, nil
}
