package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"

	"github.com/cjmd/cjmd/internal/api/wire"
)

// EventEnd is the kind of the event after which nothing follows.
const EventEnd = "stream.end"

// FollowOptions describe one long reading of an event stream. Zero values mean
// the defaults.
type FollowOptions struct {
	Path  string     // /v1/events, /v1/jobs/ID/events, /v1/jobs/ID/stream
	Query url.Values // filters; "after" is set by the reader
	After string     // id to begin behind; "" lets the daemon choose
	// Once ends the reading with the first connection, also when it was cut.
	Once bool
	// MaxDelay bounds the wait between two attempts to connect; 0 means 10 s.
	MaxDelay time.Duration
	// OnRetry is told about every lost connection; nil when nobody cares.
	OnRetry func(err error, in time.Duration)
}

// Follow calls each for every event, in order, without gap or repetition across
// reconnects, until the stream says that it is over (nil), each returns an error
// (that error), the daemon refuses (*ProblemError) or ctx ends. A stream.end
// with reason shutdown is no end: the daemon comes back and the reading goes on.
// The final stream.end is passed to each, too.
func (a *API) Follow(ctx context.Context, f FollowOptions, each func(Event) error) error {
	if f.MaxDelay <= 0 {
		f.MaxDelay = 10 * time.Second
	}
	last, tries := f.After, 0
	for {
		progressed, err := a.followOnce(ctx, f, &last, each)
		var stop *stopError
		var refused *ProblemError
		switch {
		case errors.As(err, &stop):
			return stop.err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.As(err, &refused) && refused.Status != http.StatusServiceUnavailable && refused.Status != http.StatusTooManyRequests:
			return err
		case f.Once:
			return err
		}
		if progressed {
			tries = 0
		}
		tries++
		delay := backoff(tries, f.MaxDelay)
		if refused != nil && refused.RetryAfter > delay {
			delay = refused.RetryAfter
		}
		if f.OnRetry != nil {
			f.OnRetry(err, delay)
		}
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
	}
}

// stopError carries the reason for which a Follow is over for good.
type stopError struct{ err error }

func (e *stopError) Error() string { return fmt.Sprint(e.err) }

// followOnce reads one connection; progressed says that an event came.
func (a *API) followOnce(ctx context.Context, f FollowOptions, last *string, each func(Event) error) (progressed bool, err error) {
	q := url.Values{}
	for k, v := range f.Query {
		q[k] = v
	}
	if *last != "" {
		q.Set("after", *last)
	}
	path := f.Path
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	resp, err := a.Do(ctx, http.MethodGet, path, nil, http.Header{"Accept": {"text/event-stream"}})
	if err != nil {
		return false, err
	}
	if err := Check(resp); err != nil {
		return false, err
	}
	defer func() { _ = resp.Body.Close() }()
	return readEvents(resp.Body, last, each)
}

// ReadEvents calls each for every event of an answer that is open already, like
// that of execute_stream. nil means that the stream said it was over; a cut
// stream is an error that wraps io.ErrUnexpectedEOF.
func ReadEvents(body io.Reader, each func(Event) error) error {
	var last string
	_, err := readEvents(body, &last, each)
	var stop *stopError
	if errors.As(err, &stop) {
		return stop.err
	}
	return err
}

// readEvents keeps the id of the last event in last. It returns *stopError when
// the reading is over for good, else why the connection ended.
func readEvents(body io.Reader, last *string, each func(Event) error) (progressed bool, err error) {
	r := NewSSEReader(body)
	for {
		ev, err := r.Next()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("the stream was cut: %w", io.ErrUnexpectedEOF)
			}
			return progressed, err
		}
		progressed = true
		end := ev.Kind == EventEnd
		if end && endReason(ev) == wire.StreamEndReasonShutdown {
			return progressed, errors.New("the daemon is shutting down")
		}
		if err := each(ev); err != nil {
			return progressed, &stopError{err}
		}
		if ev.ID != "" {
			*last = ev.ID
		}
		if end {
			return progressed, &stopError{nil}
		}
	}
}

func endReason(ev Event) wire.StreamEndReason {
	var end wire.StreamEnd
	if json.Unmarshal(ev.Data, &end) != nil {
		return ""
	}
	return end.Reason
}

// backoff grows from 250 ms and is spread by half, so that a crowd of readers
// does not come back at the same moment.
func backoff(tries int, limit time.Duration) time.Duration {
	d := 250 * time.Millisecond << min(tries-1, 10)
	d = min(d, limit)
	return d/2 + rand.N(d/2+1)
}

// SubmitAndFollow submits a job and calls each for every event of its stream of
// chunks (all, when everything is true, of all its events) until it is final,
// and returns the job as it ended. submitted, when not nil, is told the job as
// it was accepted.
func (a *API) SubmitAndFollow(ctx context.Context, req wire.JobRequest, everything bool, submitted func(wire.Job), each func(Event) error) (wire.Job, error) {
	job, err := Decode[wire.Job](a.SubmitJob(ctx, nil, req))
	if err != nil {
		return wire.Job{}, err
	}
	if submitted != nil {
		submitted(job)
	}
	path := "/v1/jobs/" + url.PathEscape(job.Id) + "/stream"
	if everything {
		path = "/v1/jobs/" + url.PathEscape(job.Id) + "/events"
	}
	if err := a.Follow(ctx, FollowOptions{Path: path}, each); err != nil {
		return job, err
	}
	return Decode[wire.Job](a.GetJob(ctx, job.Id, nil))
}
