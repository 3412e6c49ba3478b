// A worker of cjmd in Go, with the standard library alone: a starting point for
// your own. It counts the words of a text:
//
//	execute: kwargs {"text": "…"}   → {"words": n}; as a stream, each word is a chunk
//
// docs/worker-protocol.md is the contract; `cjmd worker-check -- ./worker` holds
// the program to it, with the functions in conformance.go.
//
// One goroutine reads the socket and answers everything that must be answered at
// any moment (cancel, ping); each execute has a goroutine of its own and ends
// with its context.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

func main() {
	fd, err := strconv.Atoi(os.Getenv("CJM_WORKER_FD"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "this program is started by cjmd: CJM_WORKER_FD is not set")
		os.Exit(2)
	}
	// Programs that we start must not hold the socket open.
	syscall.CloseOnExec(fd)
	_ = os.Unsetenv("CJM_WORKER_FD")
	w := &worker{
		sock: os.NewFile(uintptr(fd), "cjmd"), calls: map[string]*call{}, plugin: countWords,
		maxHeader: 64 << 10, maxPayload: 256 << 20,
	}
	if os.Getenv("CJM_WORKER_CHECK") == "1" {
		w.plugin = conformance
	}
	err = w.serve()
	if errors.Is(err, errShutdown) {
		os.Exit(0)
	}
	if !errors.Is(err, io.EOF) {
		fmt.Fprintln(os.Stderr, "worker:", err)
	}
	// The daemon is gone or cannot be understood: nothing of us may stay behind.
	_ = syscall.Kill(0, syscall.SIGKILL)
}

// countWords is the plugin.
func countWords(ctx context.Context, c *call) (any, error) {
	var in struct {
		Kwargs struct{ Text string }
	}
	if err := json.Unmarshal(c.payload, &in); err != nil {
		return nil, &pluginError{Category: "user_input", Message: "the arguments are not as expected: " + err.Error()}
	}
	words := strings.Fields(in.Kwargs.Text)
	for i, word := range words {
		if ctx.Err() != nil {
			return map[string]int{"words": i}, context.Cause(ctx) // what was done so far
		}
		c.progress(float64(i)/float64(len(words)), word)
		if err := c.chunk(word); err != nil {
			return nil, err
		}
	}
	return map[string]int{"words": len(words)}, nil
}

// Everything below is the protocol.

var (
	errShutdown    = errors.New("told to shut down")
	errCancelled   = errors.New("cancelled")
	errInterrupted = errors.New("interrupted")
)

// pluginError is what goes into the data of an error answer.
type pluginError struct {
	Category  string `json:"category"`
	Type      string `json:"type"`
	Retriable bool   `json:"retriable"`
	Message   string `json:"-"`
}

func (e *pluginError) Error() string { return e.Message }

type worker struct {
	plugin func(context.Context, *call) (any, error)

	writing sync.Mutex // one frame at a time
	sock    *os.File

	greeted               bool // used by serve alone, as are the limits until then
	maxHeader, maxPayload int
	slots                 int

	mu    sync.Mutex
	calls map[string]*call // by job; guarded by mu
}

// call is one execute.
type call struct {
	w       *worker
	id      string // of the request
	job     string
	stream  bool
	payload []byte
	chunks  int

	stop      context.CancelCauseFunc // ends ctx: cooperative
	interrupt context.CancelCauseFunc // ends hard: what ignores the first must obey this
	hard      context.Context
}

type header struct {
	JSONRPC string          `json:"jsonrpc"`
	ID      *string         `json:"id"`
	Method  string          `json:"method"`
	Params  json.RawMessage `json:"params"`
}

type object = map[string]any

// serve reads frames until the connection ends, and says why it did.
func (w *worker) serve() error {
	in := bufio.NewReaderSize(w.sock, 64<<10)
	for {
		var lengths [8]byte
		if _, err := io.ReadFull(in, lengths[:]); err != nil {
			return err
		}
		h, p := binary.BigEndian.Uint32(lengths[:4]), binary.BigEndian.Uint32(lengths[4:])
		if h == 0 || uint64(h) > uint64(w.maxHeader) || uint64(p) > uint64(w.maxPayload) {
			return fmt.Errorf("a frame with a header of %d and a payload of %d bytes breaks the limits", h, p)
		}
		text, payload := make([]byte, h), make([]byte, p)
		if _, err := io.ReadFull(in, text); err != nil {
			return err
		}
		if _, err := io.ReadFull(in, payload); err != nil {
			return err
		}
		var m header
		if err := json.Unmarshal(text, &m); err != nil || m.JSONRPC != "2.0" {
			return fmt.Errorf("a header is no JSON-RPC 2.0 object: %.80q", text)
		}
		switch {
		case m.Method == "" && m.ID != nil:
			return fmt.Errorf("an answer to request %q, which was never sent", *m.ID)
		case m.ID == nil:
			continue // a notification: version 1 has none for us
		}
		if err := w.handle(*m.ID, m.Method, m.Params, payload); err != nil {
			return err
		}
	}
}

func (w *worker) handle(id, method string, params json.RawMessage, payload []byte) error {
	switch method {
	case "hello":
		return w.hello(id, params)
	case "execute":
		return w.execute(id, params, payload)
	case "cancel":
		return w.cancel(id, params)
	case "ping":
		return w.answer(id, object{}, nil)
	case "stats":
		w.mu.Lock()
		n := len(w.calls)
		w.mu.Unlock()
		return w.answer(id, object{}, fmt.Appendf(nil, `{"calls":%d}`, n))
	case "shutdown":
		return errors.Join(w.answer(id, object{}, nil), errShutdown)
	case "schema", "config", "options", "configure", "prefetch", "release", "enable", "disable", "system_status", "processes":
		return w.fail(id, -32001, &pluginError{Message: "this worker has no " + method}, nil)
	}
	return w.fail(id, -32601, &pluginError{Message: "unknown method " + method}, nil)
}

func (w *worker) hello(id string, params json.RawMessage) error {
	var p struct {
		Protocol    []int
		Concurrency int
		Limits      struct {
			MaxHeader  int `json:"max_header"`
			MaxPayload int `json:"max_payload"`
		}
	}
	if w.greeted {
		return w.fail(id, -32600, &pluginError{Message: "hello was said before"}, nil)
	}
	if err := json.Unmarshal(params, &p); err != nil {
		return w.fail(id, -32602, &pluginError{Message: err.Error()}, nil)
	}
	w.greeted, w.slots = true, max(1, p.Concurrency)
	if p.Limits.MaxHeader > 0 {
		w.maxHeader = p.Limits.MaxHeader
	}
	if p.Limits.MaxPayload > 0 {
		w.maxPayload = p.Limits.MaxPayload
	}
	return w.answer(id, object{
		"protocol": 1, "name": "go-words", "version": "1.0", "pid": os.Getpid(), "runtime": "go example",
		"capabilities": []string{"stream", "cancel", "interrupt", "concurrent", "control", "progress"},
	}, []byte(`{"schema":null,"config":null}`))
}

func (w *worker) execute(id string, params json.RawMessage, payload []byte) error {
	var p struct {
		Job    string
		Stream bool
	}
	if err := json.Unmarshal(params, &p); err != nil || p.Job == "" {
		return w.fail(id, -32602, &pluginError{Message: "execute needs a job"}, nil)
	}
	c := &call{w: w, id: id, job: p.Job, stream: p.Stream, payload: payload}
	c.hard, c.interrupt = context.WithCancelCause(context.Background())
	ctx, stop := context.WithCancelCause(c.hard)
	c.stop = stop
	w.mu.Lock()
	_, taken := w.calls[p.Job]
	full := len(w.calls) >= w.slots
	if w.greeted && !taken && !full {
		w.calls[p.Job] = c
	}
	w.mu.Unlock()
	if !w.greeted || taken || full {
		return w.fail(id, -32600, &pluginError{Message: "no execute is possible now"}, nil)
	}
	go func() {
		result, err := w.plugin(ctx, c)
		// Forget the call before its answer is sent: the job's id is free then.
		w.mu.Lock()
		delete(w.calls, c.job)
		w.mu.Unlock()
		if err := w.finish(c, result, err); err != nil {
			fmt.Fprintln(os.Stderr, "worker: cannot answer:", err)
		}
	}()
	return nil
}

// finish answers an execute.
func (w *worker) finish(c *call, result any, err error) error {
	payload, encodeErr := json.Marshal(result)
	if err == nil {
		err = encodeErr
	}
	var failed *pluginError
	switch {
	case errors.Is(err, errCancelled), errors.Is(err, errInterrupted):
		return w.answer(c.id, object{"chunks": c.chunks, "cancelled": true}, payload)
	case errors.As(err, &failed):
		return w.fail(c.id, -32000, failed, nil)
	case err != nil:
		return w.fail(c.id, -32000, &pluginError{Category: "fatal", Message: err.Error()}, nil)
	case len(payload) > w.maxPayload:
		return w.fail(c.id, -32000, &pluginError{Category: "resource", Message: fmt.Sprintf("the result has %d bytes, the limit is %d", len(payload), w.maxPayload)}, nil)
	}
	return w.answer(c.id, object{"chunks": c.chunks}, payload)
}

func (w *worker) cancel(id string, params json.RawMessage) error {
	var p struct{ Job, Mode string }
	if err := json.Unmarshal(params, &p); err != nil {
		return w.fail(id, -32602, &pluginError{Message: err.Error()}, nil)
	}
	w.mu.Lock()
	c := w.calls[p.Job]
	w.mu.Unlock()
	switch {
	case c == nil:
		return w.answer(id, object{"accepted": false}, nil)
	case p.Mode == "interrupt":
		c.interrupt(errInterrupted)
	default:
		c.stop(errCancelled)
	}
	return w.answer(id, object{"accepted": true, "hook": "called"}, nil)
}

// progress and chunk are what a plugin calls.

func (c *call) progress(fraction float64, message string) {
	_ = c.w.notify("progress", object{"job": c.job, "fraction": fraction, "message": message}, nil)
}

func (c *call) chunk(value any) error {
	if !c.stream {
		return nil
	}
	payload, err := json.Marshal(value)
	if err != nil {
		return err
	}
	c.chunks++
	return c.w.notify("chunk", object{"job": c.job, "n": c.chunks}, payload)
}

func (w *worker) notify(method string, params object, payload []byte) error {
	return w.write(object{"jsonrpc": "2.0", "method": method, "params": params}, payload)
}

func (w *worker) answer(id string, result object, payload []byte) error {
	return w.write(object{"jsonrpc": "2.0", "id": id, "result": result}, payload)
}

func (w *worker) fail(id string, code int, e *pluginError, payload []byte) error {
	const most = 8 << 10 // the header must stay below its limit
	message := e.Message[:min(len(e.Message), most)]
	return w.write(object{"jsonrpc": "2.0", "id": id, "error": object{"code": code, "message": message, "data": e}}, payload)
}

// write sends one frame, whole.
func (w *worker) write(h object, payload []byte) error {
	text, err := json.Marshal(h)
	if err != nil {
		return err
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 8+len(text)+len(payload)), uint32(len(text)))
	frame = binary.BigEndian.AppendUint32(frame, uint32(len(payload)))
	frame = append(append(frame, text...), payload...)
	w.writing.Lock()
	defer w.writing.Unlock()
	_, err = w.sock.Write(frame)
	return err
}
