package api

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/jobs"
)

// event is one event as it came over the socket.
type event struct{ id, kind, data string }

// stream is an open event stream, read line by line: the framing is what is
// under test, so no parser of ours is used.
type stream struct {
	t    testing.TB
	resp *http.Response
	r    *bufio.Reader
	stop context.CancelFunc
	// raw holds the lines since the last event.
	raw []string
}

func (f *fixture) open(method, path string, body string, edits ...edit) *stream {
	f.t.Helper()
	ctx, cancel := context.WithCancel(f.t.Context())
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, rd)
	require.NoError(f.t, err)
	req.Header.Set("Content-Type", "application/json")
	for _, e := range edits {
		e(req)
	}
	resp, err := f.socket.Do(req)
	require.NoError(f.t, err)
	s := &stream{t: f.t, resp: resp, r: bufio.NewReader(resp.Body), stop: cancel}
	f.t.Cleanup(s.close)
	require.Equal(f.t, 200, resp.StatusCode)
	require.Equal(f.t, "text/event-stream", resp.Header.Get("Content-Type"))
	require.Equal(f.t, "no", resp.Header.Get("X-Accel-Buffering"))
	return s
}

func (s *stream) close() {
	s.stop()
	_ = s.resp.Body.Close()
}

// next reads to the next event; ok is false at the end of the stream.
func (s *stream) next() (e event, ok bool) {
	s.t.Helper()
	s.raw = nil
	seen := false
	for {
		line, err := s.r.ReadString('\n')
		if err != nil {
			require.ErrorIs(s.t, err, io.EOF)
			return event{}, false
		}
		line = strings.TrimSuffix(line, "\n")
		s.raw = append(s.raw, line)
		name, value, _ := strings.Cut(line, ": ")
		switch name {
		case "id":
			e.id = value
		case "event":
			e.kind = value
		case "data":
			require.False(s.t, seen, "data is one line")
			seen, e.data = true, value
			require.True(s.t, json.Valid([]byte(value)), "%s", value)
		case "":
			if seen {
				return e, true
			}
		}
	}
}

func (s *stream) must(kind string) event {
	s.t.Helper()
	e, ok := s.next()
	require.True(s.t, ok, "the stream ended before %s", kind)
	require.Equal(s.t, kind, e.kind, "%s", e.data)
	return e
}

// all reads to the end.
func (s *stream) all() []event {
	s.t.Helper()
	var out []event
	for {
		e, ok := s.next()
		if !ok {
			return out
		}
		out = append(out, e)
	}
}

func kinds(list []event) string {
	var out []string
	for _, e := range list {
		out = append(out, e.kind)
	}
	return strings.Join(out, " ")
}

func chunk(t *testing.T, r *jobs.Run, data string) {
	t.Helper()
	require.NoError(t, r.Sink().Chunk(t.Context(), []byte(data), ""))
}

func TestStream_ChunksLiveThenTheExplicitEnd(t *testing.T) {
	t.Parallel()
	f := setup(t)
	id := f.submit(`{"plugin":"speech","stream":true}`)
	run := f.run(id)
	s := f.open("GET", "/v1/jobs/"+id+"/stream", "")
	first := s.must("job.started")
	require.Equal(t, "retry: 2000", s.raw[0], "the delay of reconnects comes first")
	require.Contains(t, first.data, `"at":`)
	chunk(t, run, `{"text":"hello"}`)
	e := s.must("chunk")
	require.Equal(t, `{"text":"hello"}`, e.data, "as the plugin gave it")
	chunk(t, run, "{\n \"text\":\r\n\"two\ndata: lines\"}") // not valid JSON: a line break inside a string
	e = s.must("chunk")
	require.NotContains(t, e.data, "\n")
	chunk(t, run, "[1,\n2]")
	require.Equal(t, "[1,2]", s.must("chunk").data)
	f.finish(run, `"done"`)
	s.must("job.completed")
	end := s.must("stream.end")
	var se wire.StreamEnd
	require.NoError(t, json.Unmarshal([]byte(end.data), &se))
	require.Equal(t, wire.StreamEnd{Reason: wire.StreamEndReasonFinal, Status: wire.JobStatusCompleted}, se)
	_, ok := s.next()
	require.False(t, ok, "the daemon closes after the end")
}

func TestEvents_ResumeGivesExactlyTheRest(t *testing.T) {
	t.Parallel()
	f := setup(t)
	id := f.submit(`{"plugin":"speech","stream":true}`)
	run := f.run(id)
	for i := range 20 {
		chunk(t, run, strconv.Itoa(i))
		require.NoError(t, run.Sink().Progress(t.Context(), float64(i)/20, "on"))
	}
	f.finish(run, `1`)
	whole := f.open("GET", "/v1/jobs/"+id+"/events", "").all()
	for i, e := range whole[:len(whole)-1] {
		require.Equal(t, strconv.Itoa(i+1), e.id, "numbered without gaps")
	}
	require.Equal(t, "job.submitted", whole[0].kind)
	for _, at := range []int{0, 1, 17, len(whole) - 2} {
		byHeader := f.open("GET", "/v1/jobs/"+id+"/events", "", header("Last-Event-ID", strconv.Itoa(at))).all()
		byQuery := f.open("GET", fmt.Sprintf("/v1/jobs/%s/events?after=%d", id, at), "", header("Last-Event-ID", "1")).all()
		require.Equal(t, whole[at:], byHeader)
		require.Equal(t, whole[at:], byQuery)
	}
	// The same numbers, fewer of them.
	short := f.open("GET", "/v1/jobs/"+id+"/stream?after=6", "").all()
	var want []event
	for _, e := range whole[6:] {
		if e.kind == "chunk" || strings.HasPrefix(e.kind, "job.") || e.kind == "stream.end" {
			want = append(want, e)
		}
	}
	require.Equal(t, want, short)
	// Past the end of what exists: told once, then everything.
	reset := f.open("GET", "/v1/jobs/"+id+"/events?after=999", "").all()
	require.Equal(t, "stream.reset", reset[0].kind)
	require.Equal(t, whole, reset[1:])
	require.Equal(t, 404, f.do("GET", "/v1/jobs/nobody/events", nil).StatusCode)
}

func TestJournal_ListThenFollowHasNoGap(t *testing.T) {
	t.Parallel()
	f := setup(t)
	f.submit(`{"plugin":"textstats"}`)
	var page wire.JobPage
	f.do("GET", "/v1/jobs", nil).into(t, &page)
	second := f.submit(`{"plugin":"speech"}`)
	s := f.open("GET", fmt.Sprintf("/v1/events?after=%d", page.ReadAt), "")
	e := s.must("job.submitted")
	require.Equal(t, strconv.FormatInt(page.ReadAt+1, 10), e.id)
	var je wire.JournalEvent
	require.NoError(t, json.Unmarshal([]byte(e.data), &je))
	require.Equal(t, second, je.Job)
	require.Equal(t, "speech", je.Plugin)
	require.Equal(t, page.ReadAt+1, je.Seq)

	live := f.open("GET", "/v1/events?kind=job.&job=mine&plugin=speech", "")
	f.do("PUT", "/v1/jobs/other", `{"plugin":"speech"}`)
	f.do("PUT", "/v1/jobs/mine", `{"plugin":"speech"}`)
	e = live.must("job.submitted")
	require.Contains(t, e.data, `"job":"mine"`)
}

func TestJournal_SamplesCarryTheLastNumber(t *testing.T) {
	t.Parallel()
	f := setup(t)
	f.submit(`{"plugin":"textstats"}`)
	s := f.open("GET", "/v1/events?samples=true&after=0", "")
	id := s.must("job.submitted").id
	f.machine.sample()
	e := s.must("system.sample")
	require.Equal(t, id, e.id, "a sample never moves the reader's position")
	var sys wire.System
	require.NoError(t, json.Unmarshal([]byte(e.data), &sys))
	require.Equal(t, "cpu", sys.Monitor)
}

func TestStream_HeartbeatIsAComment(t *testing.T) {
	t.Parallel()
	f := setup(t, func(o *Options) { o.Heartbeat = 5 * time.Millisecond })
	s := f.open("GET", "/v1/events", "")
	for {
		line, err := s.r.ReadString('\n')
		require.NoError(t, err)
		if line == ": alive\n" {
			return
		}
	}
}

func TestStreams_EndWithTheDaemon(t *testing.T) {
	t.Parallel()
	f := setup(t)
	id := f.submit(`{"plugin":"speech","stream":true}`)
	f.run(id)
	a, b := f.open("GET", "/v1/events", ""), f.open("GET", "/v1/jobs/"+id+"/stream", "")
	f.done()
	require.Equal(t, "stream.end", kinds(a.all()))
	evs := b.all()
	require.Equal(t, `{"reason":"shutdown"}`, evs[len(evs)-1].data)
	require.NotEmpty(t, evs[len(evs)-1].id, "so that the reader can come back")
	r := f.do("GET", "/v1/events", nil)
	require.Equal(t, 503, r.StatusCode)
}

func TestStreams_AreLimited(t *testing.T) {
	t.Parallel()
	f := setup(t)
	f.limits.Streams, f.limits.StreamsPerPrincipal = 3, 2
	a := f.open("GET", "/v1/events", "")
	f.open("GET", "/v1/events", "")
	r := f.do("GET", "/v1/events", nil)
	require.Equal(t, 429, r.StatusCode)
	require.NotEmpty(t, r.Header.Get("Retry-After"))
	r = f.do("POST", "/v1/plugins/textstats/execute_stream", `{}`)
	require.Equal(t, "too_many_streams", r.code())
	require.Empty(t, f.queue.Groups(1), "a job whose stream was refused must not run")
	a.close()
	require.Eventually(t, func() bool {
		return f.rawOpen("/v1/events")
	}, 5*time.Second, 5*time.Millisecond, "a stream that ended makes room")
}

// rawOpen reports whether a stream was let in, and leaves it again.
func (f *fixture) rawOpen(path string) bool {
	req, _ := http.NewRequestWithContext(f.t.Context(), "GET", "http://localhost"+path, nil)
	resp, err := f.socket.Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == 200
}

func TestExecuteStream_DisconnectCancelsUnlessKept(t *testing.T) {
	t.Parallel()
	f := setup(t)
	for _, c := range []struct {
		query string
		want  bool
	}{{"", true}, {"?on_disconnect=keep", false}} {
		s := f.open("POST", "/v1/plugins/speech/execute_stream"+c.query, `{"args":[1]}`)
		id := strings.TrimPrefix(s.resp.Header.Get("Location"), "/v1/jobs/")
		run := f.run(id)
		s.must("job.started")
		chunk(t, run, `1`)
		s.must("chunk")
		s.close()
		if !c.want {
			f.finish(run, `1`)
			continue
		}
		asked := f.open("GET", "/v1/events?after=0&kind=job.cancel_requested&job="+id, "")
		asked.must("job.cancel_requested")
		_, err := run.Finish(t.Context(), jobs.Outcome{Status: jobs.Cancelled})
		require.NoError(t, err)
	}
	var page wire.JobPage
	f.do("GET", "/v1/jobs", nil).into(t, &page)
	require.Equal(t, wire.JobStatusCompleted, page.Jobs[0].Status)
	require.True(t, page.Jobs[0].CancelRequestedAt.IsZero())
	require.True(t, page.Jobs[0].Stream)
	require.Equal(t, wire.JobStatusCancelled, page.Jobs[1].Status)
	require.Equal(t, 404, f.do("POST", "/v1/plugins/nobody/execute_stream", `{}`).StatusCode)
	require.Equal(t, 400, f.do("POST", "/v1/plugins/speech/execute_stream?on_disconnect=maybe", `{}`).StatusCode)
}

// A reader that opens a stream and never reads is dropped by the deadline of its
// own writes; one beside it gets everything meanwhile.
func TestStream_StalledReaderHarmsNobodyAndIsDropped(t *testing.T) {
	t.Parallel()
	f := setup(t, func(o *Options) { o.WriteTimeout = 200 * time.Millisecond })
	id := f.submit(`{"plugin":"speech","stream":true}`)
	run := f.run(id)
	conn, err := net.Dial("tcp", strings.TrimPrefix(f.tcp.URL, "http://"))
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	require.NoError(t, conn.(*net.TCPConn).SetReadBuffer(4096))
	_, err = fmt.Fprintf(conn, "GET /v1/jobs/%s/stream?on_disconnect=cancel HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n", id, f.admin)
	require.NoError(t, err)
	head := make([]byte, 12)
	_, err = io.ReadFull(conn, head)
	require.NoError(t, err)
	require.Equal(t, "HTTP/1.1 200", string(head))

	good := f.open("GET", "/v1/jobs/"+id+"/stream", "")
	good.must("job.started")
	pad := strings.Repeat("x", 8<<10)
	for i := range 2000 { // 16 MB: more than any socket buffer takes
		chunk(t, run, fmt.Sprintf(`{"i":%d,"pad":%q}`, i, pad))
		e := good.must("chunk")
		require.True(t, strings.HasPrefix(e.data, fmt.Sprintf(`{"i":%d,`, i)))
	}
	// Dropping it is its going away: the job is asked to stop.
	asked := f.open("GET", "/v1/events?after=0&kind=job.cancel_requested&job="+id, "")
	asked.must("job.cancel_requested")
	_, err = run.Finish(t.Context(), jobs.Outcome{Status: jobs.Cancelled})
	require.NoError(t, err)
	require.Equal(t, "job.cancelled stream.end", kinds(good.all()))
}

func TestStream_ManyReadersGetTheSame(t *testing.T) {
	t.Parallel()
	f := setup(t)
	id := f.submit(`{"plugin":"speech","stream":true}`)
	run := f.run(id)
	const readers, chunks = 20, 500
	got := make(chan []event, readers)
	for range readers {
		s := f.open("GET", "/v1/jobs/"+id+"/stream", "")
		go func() { got <- s.all() }()
	}
	for i := range chunks {
		chunk(t, run, strconv.Itoa(i))
	}
	f.finish(run, `1`)
	var want []event
	for range readers {
		evs := <-got
		require.Len(t, evs, chunks+3)
		if want == nil {
			want = evs
		}
		require.Equal(t, want, evs)
	}
}

func TestStreams_WhatIsRefusedKeepsNoPlace(t *testing.T) {
	t.Parallel()
	f := setup(t)
	f.limits.Streams, f.limits.StreamsPerPrincipal = 1, 1
	for _, c := range []struct{ method, path, body string }{
		{"GET", "/v1/jobs/nobody/events", ""},
		{"GET", "/v1/events?after=x", ""},
		{"POST", "/v1/plugins/nobody/execute_stream", `{}`},
		{"POST", "/v1/plugins/resting/execute_stream", `{}`},
	} {
		for range 3 {
			var body any
			if c.body != "" {
				body = c.body
			}
			require.NotEqual(t, 429, f.do(c.method, c.path, body).StatusCode, c.path)
		}
	}
	require.True(t, f.rawOpen("/v1/events"))
}
