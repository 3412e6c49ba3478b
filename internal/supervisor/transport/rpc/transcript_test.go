package rpc_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/cjmd/cjmd/internal/supervisor"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wire"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wiretest"
)

// replay plays the worker's side of one transcript against a Conn.
type replay struct {
	t    *testing.T
	link *link
	ids  map[string]string // id in the file → id on the socket
	open map[string]<-chan outcome
	job  map[string]string    // id in the file → job
	sink map[string]*recorder // job → what its sink was told
	want map[string][]string  // job → what it must have been told
	free []string             // what must have come outside calls
}

func TestConn_ReplaysTheTranscripts(t *testing.T) {
	for _, path := range wiretest.Paths(t) {
		tr := wiretest.Load(t, path)
		if tr.First.Level != "conversation" || tr.Last.By == "worker" {
			continue
		}
		t.Run(tr.First.Case, func(t *testing.T) {
			t.Parallel()
			r := &replay{t: t, ids: map[string]string{}, open: map[string]<-chan outcome{}, job: map[string]string{},
				sink: map[string]*recorder{}, want: map[string][]string{}}
			ended := false
			for i, l := range tr.Lines {
				last := i == len(tr.Lines)-1 && tr.Last.Expect != "ok"
				switch {
				case l.EOF:
					ended = true
					_ = r.link.peer.sock.Close()
				case l.Dir == "d2w":
					r.daemon(l)
				default:
					r.worker(l, last)
				}
			}
			r.finish(tr, ended)
		})
	}
}

type fileHeader struct {
	ID, Method string
	Params     json.RawMessage
	Result     map[string]any
	Error      *struct {
		Code    int
		Message string
		Data    struct {
			Category, Type string
			Retriable      bool
			RetryAfter     float64 `json:"retry_after"`
			Fields         []string
		}
	}
}

// daemon makes the call that sends the line, and checks what was sent.
func (r *replay) daemon(l wiretest.Line) {
	r.t.Helper()
	var h fileHeader
	if err := json.Unmarshal(l.Header, &h); err != nil {
		r.t.Fatal(err)
	}
	r.call(h, l)
	got, payload := r.link.peer.read()
	var want map[string]any
	if err := json.Unmarshal(h.Params, &want); err != nil {
		r.t.Fatal(err)
	}
	if len(want) == 0 {
		want = nil
	}
	if got.Method != h.Method || len(got.Params)+len(want) > 0 && !reflect.DeepEqual(got.Params, want) || string(payload) != l.Payload {
		r.t.Fatalf("the daemon sent %+v %q, the transcript has %s %q", got, payload, l.Header, l.Payload)
	}
	r.ids[h.ID] = got.ID
}

func (r *replay) call(h fileHeader, l wiretest.Line) {
	r.t.Helper()
	done := make(chan outcome, 1)
	r.open[h.ID] = done
	c := ctx(r.t)
	switch h.Method {
	case "hello":
		var hello supervisor.Hello
		if err := json.Unmarshal(h.Params, &hello); err != nil {
			r.t.Fatal(err)
		}
		hello.Config = json.RawMessage(l.Payload)
		r.link = dial(r.t, hello)
		go func() {
			ready, err := r.link.Ready(c)
			raw, _ := json.Marshal(ready)
			done <- outcome{raw: raw, err: err}
		}()
	case "execute":
		var p struct {
			Job, Dir     string
			Task, Method string
			Attempt      int
			Stream       bool
			Envelope     json.RawMessage
		}
		var payload struct{ Args, Kwargs json.RawMessage }
		if err := errors.Join(json.Unmarshal(h.Params, &p), json.Unmarshal([]byte(l.Payload), &payload)); err != nil {
			r.t.Fatal(err)
		}
		sink := &recorder{}
		r.sink[p.Job], r.job[h.ID] = sink, p.Job
		r.open[h.ID] = r.link.execute(r.t, supervisor.Call{ID: p.Job, Attempt: p.Attempt, Stream: p.Stream, Dir: p.Dir,
			Task: p.Task, Method: p.Method, Args: payload.Args, Kwargs: payload.Kwargs, Envelope: p.Envelope}, sink)
	case "cancel":
		var p struct {
			Job  string
			Mode supervisor.CancelMode
		}
		if err := json.Unmarshal(h.Params, &p); err != nil {
			r.t.Fatal(err)
		}
		go func() { done <- outcome{err: r.link.Cancel(c, p.Job, p.Mode)} }()
	case "shutdown":
		go func() { done <- outcome{err: r.link.Shutdown(c)} }()
	default:
		go func() {
			raw, err := r.link.Request(c, h.Method, json.RawMessage(l.Payload))
			done <- outcome{raw: raw, err: err}
		}()
	}
}

// worker sends the line; after a good answer it checks how the call ended.
func (r *replay) worker(l wiretest.Line, breaks bool) {
	r.t.Helper()
	raw, f := l.Decode(r.t)
	if f == nil {
		if _, err := r.link.peer.sock.Write(raw); err != nil {
			r.t.Fatal(err)
		}
		return
	}
	var h fileHeader
	if err := json.Unmarshal(f.Header, &h); err != nil {
		r.t.Fatal(err)
	}
	header := f.Header
	if id, ok := r.ids[h.ID]; ok {
		header = bytes.Replace(header, fmt.Appendf(nil, `"id":%q`, h.ID), fmt.Appendf(nil, `"id":%q`, id), 1)
	}
	r.link.peer.sendWith(f.Payload, "%s", header)
	switch {
	case breaks:
	case h.Method != "":
		r.expect(h, f)
	default:
		r.answered(h, f)
	}
}

// expect notes what a notification must lead to.
func (r *replay) expect(h fileHeader, f *wiretest.Frame) {
	var p struct {
		Job, Level, Message string
		Fraction            float64
		N                   int
	}
	_ = json.Unmarshal(h.Params, &p) // a transcript may hold what is no such object
	var s string
	switch h.Method {
	case "chunk":
		s = fmt.Sprintf("chunk %d %s", p.N, f.Payload)
	case "progress":
		s = fmt.Sprintf("progress %v %s", p.Fraction, p.Message)
	case "log":
		s = fmt.Sprintf("log %s %s", p.Level, p.Message)
	case "usage":
		s = "usage"
	default:
		return
	}
	running := false
	for id, job := range r.job {
		_, open := r.open[id]
		running = running || open && job == p.Job
	}
	switch {
	case running:
		r.want[p.Job] = append(r.want[p.Job], s)
	case p.Job == "" || h.Method == "log":
		r.free = append(r.free, s)
	}
}

// answered compares the outcome of a call with its answer.
func (r *replay) answered(h fileHeader, f *wiretest.Frame) {
	r.t.Helper()
	got := <-r.open[h.ID]
	delete(r.open, h.ID)
	if h.Error != nil {
		r.failed(h, f, got)
		return
	}
	if got.err != nil {
		r.t.Fatalf("request %s: %v", h.ID, got.err)
	}
	job, isExecute := r.job[h.ID]
	if !isExecute {
		return
	}
	if !bytes.Equal(got.result.Payload, f.Payload) || got.result.Cancelled != (h.Result["cancelled"] == true) ||
		got.result.Chunks != uint64(h.Result["chunks"].(float64)) {
		r.t.Fatalf("call %s: %+v", job, got.result)
	}
}

func (r *replay) failed(h fileHeader, f *wiretest.Frame, got outcome) {
	r.t.Helper()
	if h.Error.Code == wire.CodeNotSupported || h.Error.Code == wire.CodeUnknownMethod {
		if !errors.Is(got.err, supervisor.ErrNotSupported) {
			r.t.Fatalf("got %v", got.err)
		}
		return
	}
	var e *supervisor.CallError
	if !errors.As(got.err, &e) {
		r.t.Fatalf("got %v", got.err)
	}
	d := h.Error.Data
	category := d.Category
	if category == "" {
		category = "fatal"
	}
	if e.Message != h.Error.Message || e.Category != category || e.Type != d.Type || e.Retriable != d.Retriable ||
		e.RetryAfter.Seconds() != d.RetryAfter || !slices.Equal(e.Fields, d.Fields) || !bytes.Equal(e.Partial, f.Payload) ||
		e.Cancelled != (h.Error.Code == wire.CodeCancelled) {
		r.t.Fatalf("got %+v", e)
	}
}

// finish checks the end of the connection and what the sinks were told.
func (r *replay) finish(tr wiretest.Transcript, ended bool) {
	r.t.Helper()
	if tr.Last.Expect == "ok" && !ended {
		pong := make(chan error, 1)
		c := ctx(r.t)
		go func() { _, err := r.link.Request(c, "ping", nil); pong <- err }()
		m, _ := r.link.peer.read()
		r.link.peer.send(`{"jsonrpc":"2.0","id":%q,"result":{}}`, m.ID)
		if err := <-pong; err != nil {
			r.t.Fatal(err)
		}
	} else {
		<-r.link.Done()
		var lost *supervisor.ConnLostError
		if err := r.link.Err(); !errors.As(err, &lost) {
			r.t.Fatalf("the connection ended with %v", err)
		}
		var broken *wire.ProtocolError
		if isBroken := errors.As(r.link.Err(), &broken); isBroken != (tr.Last.Expect != "ok") || isBroken && string(broken.Rule) != tr.Last.Rule {
			r.t.Fatalf("the connection ended with %v, want %s", r.link.Err(), tr.Last.Rule)
		}
	}
	for id, done := range r.open {
		if got := <-done; got.err == nil && tr.Last.Expect != "ok" {
			r.t.Fatalf("request %s ended well on a broken connection", id)
		}
	}
	for job, want := range r.want {
		if got := r.sink[job].all(); !slices.Equal(got, want) {
			r.t.Fatalf("job %s: the sink was told %q, want %q", job, got, want)
		}
	}
	r.link.mu.Lock()
	defer r.link.mu.Unlock()
	var free []string
	for _, e := range r.link.events {
		switch {
		case e.Progress != nil:
			free = append(free, fmt.Sprintf("progress %v %s", e.Progress.Fraction, e.Progress.Message))
		case e.Log != nil:
			free = append(free, fmt.Sprintf("log %s %s", e.Log.Level, e.Log.Message))
		case e.Usage != nil:
			free = append(free, "usage")
		}
	}
	if !slices.Equal(free, r.free) {
		r.t.Fatalf("outside calls: got %q, want %q", free, r.free)
	}
}
