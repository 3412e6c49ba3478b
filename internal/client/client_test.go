package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/cjmd/cjmd/internal/api/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func readAll(t *testing.T, r *SSEReader) []Event {
	t.Helper()
	var out []Event
	for {
		ev, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		require.NoError(t, err)
		out = append(out, ev)
	}
}

func TestSSEReader_LinesEndInAnyWay(t *testing.T) {
	t.Parallel()
	text := "\ufeffretry: 1500\n\n: hello\nid: 1\nevent: a\ndata: x\ndata:y\ndata\n\nid: 2\n\ndata:  two\n\nid: bad\x00id\ndata: 3\nunknown: z\n\nevent: none\n\nid: 9\ndata: cut"
	want := []Event{
		{ID: "1", Kind: "a", Data: []byte("x\ny\n")},
		{ID: "2", Kind: "message", Data: []byte(" two")},
		{ID: "2", Kind: "message", Data: []byte("3")},
	}
	for name, end := range map[string]string{"LF": "\n", "CR": "\r", "CRLF": "\r\n"} {
		in := strings.ReplaceAll(text, "\n", end)
		for _, slow := range []bool{false, true} {
			var src io.Reader = strings.NewReader(in)
			if slow {
				src = iotest.OneByteReader(src)
			}
			r := NewSSEReader(src)
			require.Equal(t, want, readAll(t, r), "%s, slow %v", name, slow)
			require.Equal(t, "2", r.LastID(), "the event that was cut off does not count")
			require.Equal(t, 1500*time.Millisecond, r.Retry())
		}
	}
}

func TestSSEReader_AnEventEndsWithItsBlankLineAtOnce(t *testing.T) {
	t.Parallel()
	pr, pw := io.Pipe()
	defer func() { _ = pw.Close() }()
	r := NewSSEReader(pr)
	go func() { _, _ = pw.Write([]byte("data: now\r\n\r")) }() // the LF of the last CRLF is still on its way
	ev, err := r.Next()
	require.NoError(t, err)
	require.Equal(t, "now", string(ev.Data))
}

func TestSSEReader_LongEventsAndLimits(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 1<<20)
	r := NewSSEReader(strings.NewReader("data: " + long + "\n\n"))
	ev, err := r.Next()
	require.NoError(t, err)
	require.Len(t, ev.Data, 1<<20)
	r = NewSSEReader(strings.NewReader("data: " + long + "\n\n"))
	r.max = 1000
	_, err = r.Next()
	require.ErrorIs(t, err, ErrEventTooLong)
	r = NewSSEReader(iotest.ErrReader(errors.New("cable")))
	_, err = r.Next()
	require.ErrorContains(t, err, "cable")
}

func FuzzSSEReader(f *testing.F) {
	f.Add("id: 1\r\ndata: x\r\r\n\ndata: y\n\n", uint8(3))
	f.Fuzz(func(t *testing.T, in string, step uint8) {
		whole := NewSSEReader(strings.NewReader(in))
		pieces := NewSSEReader(&chunked{s: in, n: int(step%16) + 1})
		for {
			a, errA := whole.Next()
			b, errB := pieces.Next()
			require.Equal(t, errA, errB)
			require.Equal(t, a, b, "how the bytes arrive changes nothing")
			if errA != nil {
				return
			}
		}
	})
}

type chunked struct {
	s string
	n int
}

func (c *chunked) Read(p []byte) (int, error) {
	if c.s == "" {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.n)], c.s)
	c.s = c.s[n:]
	return n, nil
}

func serve(t *testing.T, h http.HandlerFunc) *API {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	a, err := New(Options{BaseURL: srv.URL, Token: "secret", UserAgent: "test/1"})
	require.NoError(t, err)
	t.Cleanup(a.CloseIdle)
	return a
}

func TestFollow_GoesOnWhereItStopped(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	a := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		switch calls.Add(1) {
		case 1:
			if r.URL.Query().Get("after") != "" || r.URL.Query().Get("kind") != "job." {
				t.Errorf("the first request asks for %s", r.URL.RawQuery)
			}
			_, _ = io.WriteString(w, "id: 1\nevent: job.started\ndata: {}\n\nid: 2\nevent: chunk\ndata: 1\n\nid: 3\nevent: chunk\ndata: 2")
		case 2:
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusServiceUnavailable)
		case 3:
			if r.URL.Query().Get("after") != "2" {
				t.Errorf("the reconnect asks for %s", r.URL.RawQuery)
			}
			_, _ = io.WriteString(w, "id: 3\nevent: chunk\ndata: 2\n\nid: 3\nevent: stream.end\ndata: {\"reason\":\"shutdown\"}\n\n")
		default:
			_, _ = io.WriteString(w, "id: 4\nevent: job.completed\ndata: {}\n\nid: 4\nevent: stream.end\ndata: {\"reason\":\"final\"}\n\n")
		}
	})
	var got []string
	var retries int
	err := a.Follow(t.Context(), FollowOptions{Path: "/v1/events", Query: map[string][]string{"kind": {"job."}}, MaxDelay: time.Millisecond,
		OnRetry: func(error, time.Duration) { retries++ }},
		func(e Event) error { got = append(got, e.ID+e.Kind); return nil })
	require.NoError(t, err)
	require.Equal(t, []string{"1job.started", "2chunk", "3chunk", "4job.completed", "4stream.end"}, got)
	require.Equal(t, 3, retries)
}

func TestFollow_EndsForGoodReasons(t *testing.T) {
	t.Parallel()
	a := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/gone" {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"type":"t","title":"There is no such job.","status":404,"code":"job_not_found","errors":[{"pointer":"/x","message":"is wrong"}]}`)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "id: 1\ndata: 1\n\n")
	})
	var p *ProblemError
	err := a.Follow(t.Context(), FollowOptions{Path: "/gone"}, func(Event) error { return nil })
	require.ErrorAs(t, err, &p)
	require.Equal(t, "job_not_found", p.Code)
	require.Equal(t, "There is no such job.; /x: is wrong", p.Error())
	stop := errors.New("enough")
	require.ErrorIs(t, a.Follow(t.Context(), FollowOptions{Path: "/x"}, func(Event) error { return stop }), stop)
	require.ErrorIs(t, a.Follow(t.Context(), FollowOptions{Path: "/x", Once: true}, func(Event) error { return nil }), io.ErrUnexpectedEOF)
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("ctrl-c")
	require.ErrorIs(t, a.Follow(ctx, FollowOptions{Path: "/x"}, func(Event) error { cancel(cause); return nil }), cause)
	require.NoError(t, ReadEvents(strings.NewReader("data: 1\n\nevent: stream.end\ndata: {\"reason\":\"final\"}\n\n"), func(Event) error { return nil }))
	require.ErrorIs(t, ReadEvents(strings.NewReader("data: 1\n\n"), func(Event) error { return nil }), io.ErrUnexpectedEOF)
}

func TestNew_DialsTheSocketAndSendsTheToken(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/version":
			_, _ = fmt.Fprintf(w, `{"version":%q,"go":"g","os":"o","arch":"a","api":"v1"}`, r.Header.Get("Authorization")+" "+r.Header.Get("User-Agent"))
		default:
			http.Error(w, "a proxy's page", http.StatusBadGateway)
		}
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	a, err := New(Options{Socket: path, Token: "secret", UserAgent: "test/1"})
	require.NoError(t, err)
	v, err := Decode[wire.Version](a.GetVersion(t.Context()))
	require.NoError(t, err)
	require.Equal(t, "Bearer secret test/1", v.Version)
	_, err = Decode[wire.Job](a.GetJob(t.Context(), "x", nil))
	var p *ProblemError
	require.ErrorAs(t, err, &p)
	require.Equal(t, "http_502", p.Code)
	require.Equal(t, "a proxy's page", p.Detail)
	a.CloseIdle()
	require.NoError(t, srv.Close())
	<-done
	_, err = New(Options{})
	require.Error(t, err)
}

func TestSubmitAndFollow_ReturnsTheJobAsItEnded(t *testing.T) {
	t.Parallel()
	a := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.Method + " " + r.URL.Path {
		case "POST /v1/jobs":
			w.WriteHeader(http.StatusAccepted)
			_, _ = io.WriteString(w, `{"id":"j1","status":"pending"}`)
		case "GET /v1/jobs/j1/stream":
			_, _ = io.WriteString(w, "id: 1\nevent: chunk\ndata: 1\n\nid: 1\nevent: stream.end\ndata: {\"reason\":\"final\"}\n\n")
		case "GET /v1/jobs/j1":
			_, _ = io.WriteString(w, `{"id":"j1","status":"completed"}`)
		default:
			t.Errorf("unexpected %s %s", r.Method, r.URL.Path)
		}
	})
	var told string
	var kinds []string
	j, err := a.SubmitAndFollow(t.Context(), wire.JobRequest{Plugin: "p"}, false, func(j wire.Job) { told = j.Id },
		func(e Event) error { kinds = append(kinds, e.Kind); return nil })
	require.NoError(t, err)
	require.Equal(t, wire.JobStatusCompleted, j.Status)
	require.Equal(t, "j1", told)
	require.Equal(t, []string{"chunk", "stream.end"}, kinds)
}

func TestBackoff_GrowsWithinBounds(t *testing.T) {
	t.Parallel()
	for tries := 1; tries < 40; tries++ {
		d := backoff(tries, 10*time.Second)
		require.LessOrEqual(t, d, 10*time.Second)
		require.GreaterOrEqual(t, d, min(125*time.Millisecond<<min(tries-1, 10), 5*time.Second))
	}
}
