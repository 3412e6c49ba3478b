package cjmhttp

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"
)

// reading is one answer to /progress.
type reading struct {
	fraction float64
	message  string
}

// slot is the one place that a worker keeps progress in, whatever call it is
// of. It is never reset there, so a new call finds what the last one left; the
// slot is read between calls to tell the two apart.
type slot struct {
	mu      sync.Mutex
	last    reading       // guarded by mu; the newest
	between chan struct{} // guarded by mu; closed when a read between calls is done, nil when none is under way
}

// settled waits for a read between calls.
func (s *slot) settled(ctx context.Context) {
	s.mu.Lock()
	between := s.between
	s.mu.Unlock()
	if between == nil {
		return
	}
	select {
	case <-between:
	case <-ctx.Done():
	}
}

// readLeftovers notes what a call left in the slot, while nobody waits for it.
func (c *Conn) readLeftovers() {
	s := &c.progress
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.between != nil {
		return
	}
	between := make(chan struct{})
	if c.start(func() {
		_, _ = s.read(c.ctx, c) // a worker that is gone is noticed elsewhere
		s.mu.Lock()
		defer s.mu.Unlock()
		s.between = nil
		close(between)
	}) {
		s.between = between
	}
}

// read returns whether the worker says something new.
func (s *slot) read(ctx context.Context, c *Conn) (news bool, err error) {
	raw, err := c.ask(ctx, http.MethodGet, "/progress", nil)
	var status *statusError
	if errors.As(err, &status) {
		return false, nil // a plugin whose progress cannot be read has none
	}
	if err != nil {
		return false, err
	}
	var p struct {
		Progress any `json:"progress"`
		Message  any `json:"message"`
	}
	if json.Unmarshal(raw, &p) != nil {
		return false, nil
	}
	r := reading{fraction: -1, message: text(p.Message)}
	if f, ok := p.Progress.(float64); ok && f >= 0 {
		r.fraction = min(f, 1)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	news = r != s.last
	s.last = r
	return news, nil
}

func (s *slot) newest() reading {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// follow asks for progress until ctx ends. Asking is what this protocol has
// instead of telling; it is done while a call runs and at no other time.
func (c *Conn) follow(ctx context.Context, r *run) {
	c.progress.settled(ctx)
	every := time.NewTicker(c.o.ProgressEvery)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
		news, err := c.progress.read(ctx, c)
		if err != nil {
			return
		}
		if news && c.alone() { // of several calls nobody knows whose it is
			p := c.progress.newest()
			r.tell(func() { r.sink.Progress(p.fraction, p.message) })
		}
	}
}

// alone reports whether one call runs.
func (c *Conn) alone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.running) == 1
}
