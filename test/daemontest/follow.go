package daemontest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"testing"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

// Stream is one open event stream, read by the test itself.
type Stream struct {
	t      testing.TB
	body   io.ReadCloser
	r      *client.SSEReader
	cancel context.CancelFunc
	Header http.Header
	last   uint64
	Seen   []client.Event // all events so far
}

// Stream opens the event stream at path; header like Raw's.
func (s *Session) Stream(path string, header ...string) *Stream {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.ctx)
	h := http.Header{"Accept": {"text/event-stream"}}
	for i := 0; i+1 < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	resp, err := s.API.Do(ctx, http.MethodGet, path, nil, h)
	return s.open(cancel, resp, err)
}

func (s *Session) open(cancel context.CancelFunc, resp *http.Response, err error) *Stream {
	s.t.Helper()
	if err == nil {
		err = client.Check(resp)
	}
	if err != nil {
		cancel()
		s.t.Fatal(explain(err))
	}
	st := &Stream{t: s.t, body: resp.Body, r: client.NewSSEReader(resp.Body), cancel: cancel, Header: resp.Header}
	s.t.Cleanup(st.Close)
	return st
}

// ExecuteStream opens a stream with the submit of its job.
func (s *Session) ExecuteStream(plugin string, params *wire.ExecuteStreamParams, req wire.ExecuteRequest) *Stream {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.ctx)
	resp, err := s.API.ExecuteStream(ctx, plugin, params, req)
	return s.open(cancel, resp, err)
}

// Close goes away.
func (st *Stream) Close() {
	st.cancel()
	_ = st.body.Close()
}

var errStreamEnded = errors.New("the stream ended")

// next returns the next event and checks that numbers only grow.
func (st *Stream) next() (client.Event, error) {
	ev, err := st.r.Next()
	if errors.Is(err, io.EOF) {
		return ev, errStreamEnded
	}
	if err != nil {
		return ev, err
	}
	st.Seen = append(st.Seen, ev)
	n, err := strconv.ParseUint(ev.ID, 10, 64)
	if err != nil {
		return ev, fmt.Errorf("the event %s has the id %q", ev.Kind, ev.ID)
	}
	if n < st.last {
		return ev, fmt.Errorf("event %d (%s) came after event %d", n, ev.Kind, st.last)
	}
	st.last = n
	return ev, nil
}

// Next returns the next event.
func (st *Stream) Next() client.Event {
	st.t.Helper()
	ev, err := st.next()
	if err != nil {
		st.t.Fatalf("%v; seen so far: %s", err, Kinds(st.Seen))
	}
	return ev
}

// Await returns the first event from here on that fits.
func (st *Stream) Await(fits func(client.Event) bool) client.Event {
	st.t.Helper()
	for {
		if ev := st.Next(); fits(ev) {
			return ev
		}
	}
}

// AwaitKind returns the next event of a kind.
func (st *Stream) AwaitKind(kind string) client.Event {
	st.t.Helper()
	return st.Await(func(ev client.Event) bool { return ev.Kind == kind })
}

// Rest reads to the end, which must be said with stream.end.
func (st *Stream) Rest() []client.Event {
	st.t.Helper()
	from := len(st.Seen)
	for {
		_, err := st.next()
		if errors.Is(err, errStreamEnded) {
			break
		}
		if err != nil {
			st.t.Fatal(err)
		}
	}
	if n := len(st.Seen); n == 0 || st.Seen[n-1].Kind != client.EventEnd {
		st.t.Fatalf("the stream ended without saying it: %s", Kinds(st.Seen))
	}
	return st.Seen[from:]
}

// Last is the number of the last event.
func (st *Stream) Last() uint64 { return st.last }

// Data decodes what an event carries.
func Data(t testing.TB, ev client.Event) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal(ev.Data, &v); err != nil {
		t.Fatalf("the event %s carries %.200q: %v", ev.Kind, ev.Data, err)
	}
	return v
}

// Kinds lists the kinds of events, for messages and comparisons.
func Kinds(evs []client.Event) []string {
	out := make([]string, 0, len(evs))
	for _, ev := range evs {
		out = append(out, ev.Kind)
	}
	return out
}

// Begun returns once the running job has told that it began, in its nth attempt.
func (s *Session) Begun(id string) { s.t.Helper(); s.Told(id, "begun") }

// Told returns once a job has reported progress with this message. The stream
// that it read is closed.
func (s *Session) Told(id, message string) {
	s.t.Helper()
	st := s.Stream(JobPath(id, "events"))
	defer st.Close()
	st.Await(func(ev client.Event) bool {
		return ev.Kind == "progress" && Data(s.t, ev)["message"] == message
	})
}

// Journal reads the journal from the number after on until an event fits, and
// returns all of it.
func (s *Session) Journal(after uint64, until func(client.Event) bool) []client.Event {
	s.t.Helper()
	st := s.Stream("/v1/events?after=" + strconv.FormatUint(after, 10))
	defer st.Close()
	st.Await(until)
	return st.Seen
}

// AssertGapless fails the test unless the events are numbered without gap from
// first on.
func AssertGapless(t testing.TB, first uint64, evs []client.Event) {
	t.Helper()
	for i, ev := range evs {
		if want := strconv.FormatUint(first+uint64(i), 10); ev.ID != want {
			t.Fatalf("event %d of the list (%s) has the number %s, want %s", i, ev.Kind, ev.ID, want)
		}
	}
}

// End reads a stream to its end and returns the closing event.
func (st *Stream) End() client.Event {
	st.t.Helper()
	st.Rest()
	return st.Seen[len(st.Seen)-1]
}
