package cjmhttp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/cjmd/cjmd/internal/supervisor"
)

// accountsHeader carries what the worker itself recorded about a call.
const accountsHeader = "X-CJM-Accounts"

// run is one call in flight.
type run struct {
	sink  supervisor.Sink
	asked atomic.Bool // to cancel

	mu sync.Mutex // held while the sink is told something: one at a time, in order
}

func (r *run) tell(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

// Execute runs one call. The sink is not called after it has returned.
func (c *Conn) Execute(ctx context.Context, call supervisor.Call, sink supervisor.Sink) (supervisor.Result, error) {
	path, err := c.target(call)
	if err != nil {
		return supervisor.Result{}, err
	}
	r := &run{sink: sink}
	if err := c.begin(call.ID, r); err != nil {
		return supervisor.Result{}, err
	}
	defer c.end(call.ID)
	ctx, release := c.within(ctx)
	defer release()
	if !call.Stream && c.blocks() {
		c.deaf.Add(1)
		defer c.deaf.Add(-1)
	} else {
		stop := c.beside(ctx, func(ctx context.Context) { c.follow(ctx, r) })
		defer c.readLeftovers()
		defer stop()
	}
	body, size := requestBody(call)
	resp, err := c.send(ctx, c.oneCall, http.MethodPost, path, body, size)
	if err != nil {
		return supervisor.Result{}, c.broken(ctx, err)
	}
	defer resp.Body.Close()
	if call.Stream && resp.StatusCode == http.StatusOK {
		return c.stream(ctx, r, resp)
	}
	return c.unary(ctx, r, resp)
}

// target is the path of a call.
func (c *Conn) target(call supervisor.Call) (string, error) {
	select {
	case <-c.ready:
	default:
		return "", errors.New("cannot execute before the worker is ready")
	}
	refuse := func(say string) (string, error) {
		return "", &supervisor.CallError{Category: "user_input", Message: say}
	}
	if len(call.Envelope) > 0 && !json.Valid(call.Envelope) {
		return refuse("the envelope is no JSON")
	}
	switch {
	case call.Task == "" && call.Method == "" && call.Stream:
		return "/execute_stream", nil
	case call.Task == "" && call.Method == "":
		return "/execute", nil
	case !c.has("/task"):
		return refuse("this worker takes no task and no method: leave both out")
	case call.Task == "":
		return refuse("over HTTP a method is one of a task: name the task, or use runtime native")
	case call.Stream:
		return refuse("over HTTP a task has no stream: run it without, or use runtime native")
	}
	return "/task", nil
}

func (c *Conn) begin(id string, r *run) error {
	if id == "" {
		return errors.New("cannot execute a call without an id")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, twice := c.running[id]; twice {
		return fmt.Errorf("cannot execute call %q: a call with this id is still running", id)
	}
	c.running[id] = r
	return nil
}

func (c *Conn) end(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.running, id)
}

// beside runs f until stop is called, which waits for it.
func (c *Conn) beside(ctx context.Context, f func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// requestBody joins the parts without a parse.
func requestBody(call supervisor.Call) (io.Reader, int64) {
	args, kwargs := []byte(call.Args), []byte(call.Kwargs)
	if len(args) == 0 {
		args = []byte("[]")
	}
	if len(kwargs) == 0 {
		kwargs = []byte("{}")
	}
	var parts [][]byte
	if call.Task != "" {
		task, _ := json.Marshal(call.Task)
		method, _ := json.Marshal(call.Method)
		parts = [][]byte{[]byte(`{"task":`), task, []byte(`,"method":`), method}
	} else {
		parts = [][]byte{[]byte(`{"args":`), args}
	}
	parts = append(parts, []byte(`,"kwargs":`), kwargs, []byte(`,"envelope":`), envelope(call), []byte("}"))
	var size int64
	readers := make([]io.Reader, len(parts))
	for i, p := range parts {
		size += int64(len(p))
		readers[i] = bytes.NewReader(p)
	}
	return io.MultiReader(readers...), size
}

// envelope is who asks for what, and the job that the worker's records are to name.
func envelope(call supervisor.Call) []byte {
	id, _ := json.Marshal(call.ID) // text always is JSON
	rest, isObject := bytes.CutPrefix(bytes.TrimSpace(call.Envelope), []byte("{"))
	if rest = bytes.TrimSpace(rest); !isObject || bytes.Equal(rest, []byte("}")) {
		return fmt.Appendf(nil, `{"job_id":%s}`, id)
	}
	return fmt.Appendf(nil, `{"job_id":%s,%s`, id, rest)
}

// unary reads the answer to a call that has one.
func (c *Conn) unary(ctx context.Context, r *run, resp *http.Response) (supervisor.Result, error) {
	c.accounts(r, resp.Header.Get(accountsHeader))
	raw, err := c.readAll(resp.Body)
	var tooLong *tooLongError
	switch {
	case errors.As(err, &tooLong):
		return supervisor.Result{}, tooLong.callError()
	case err != nil:
		return supervisor.Result{}, c.broken(ctx, err)
	}
	if resp.StatusCode != http.StatusOK {
		return supervisor.Result{}, r.judge(callError(resp.StatusCode, raw))
	}
	if !json.Valid(raw) {
		return supervisor.Result{}, r.judge(&supervisor.CallError{Category: "fatal", Message: "the result is no JSON"})
	}
	return supervisor.Result{Payload: raw, ContentType: "application/json"}, nil
}

// judge makes the error of a call that was asked to stop a cancel: older
// plugins have no other way to say that they obeyed.
func (r *run) judge(e *supervisor.CallError) *supervisor.CallError {
	if r.asked.Load() {
		e.Category, e.Cancelled, e.Retriable = "cancelled", true, false
	}
	return e
}

// accounts hands on what the worker recorded about a call, as its log.
func (c *Conn) accounts(r *run, header string) {
	if header == "" {
		return
	}
	var list []struct {
		Type    string          `json:"event_type"`
		Payload json.RawMessage `json:"payload"`
	}
	if json.Unmarshal([]byte(header), &list) != nil {
		return
	}
	for _, a := range list {
		rec := supervisor.LogRecord{Level: "info", Logger: "accounts", Message: a.Type + " " + string(a.Payload)}
		r.tell(func() { r.sink.Log(rec) })
	}
}
