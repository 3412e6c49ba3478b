package simserve

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wire"
)

// progressEvery is how often a simulated job tells how far it is.
const progressEvery = 500 * time.Millisecond

// Worker is the process that stands for a plugin: it speaks the worker protocol
// with the daemon, asks the driver for memory, and sleeps where a plugin works.
// It returns the exit code.
func Worker(env []string, stderr io.Writer) int {
	w, err := newWorker(env)
	if err != nil {
		fmt.Fprintln(stderr, "simulated worker:", err)
		return 2
	}
	err = w.serve()
	switch {
	case errors.Is(err, errShutdown):
		return 0
	case errors.Is(err, io.EOF): // the daemon is gone
		_ = syscall.Kill(0, syscall.SIGKILL)
	}
	fmt.Fprintln(stderr, "simulated worker:", err)
	return 1
}

var errShutdown = errors.New("told to shut down")

// worker is one such process.
type worker struct {
	daemon *net.UnixConn
	in     *wire.Reader
	out    *wire.Writer
	drv    *net.UnixConn
	plugin string
	slots  int         // of the goroutine that reads the daemon, as is instance
	deaf   atomic.Bool // ignores polite requests to end

	instance, devices string

	writing sync.Mutex // lines to the driver
	mu      sync.Mutex
	loaded  chan Answer
	others  []chan Answer            // answers to release and usage, in order
	calls   map[string]*simulatedJob // by job
	started time.Time
}

// simulatedJob is one execute.
type simulatedJob struct {
	id, job string // of the request; of the daemon
	stream  bool
	begun   chan Answer
	ended   chan Answer
}

func lookup(env []string, name string) string {
	for _, kv := range env {
		if len(kv) > len(name) && kv[:len(name)] == name && kv[len(name)] == '=' {
			return kv[len(name)+1:]
		}
	}
	return ""
}

func newWorker(env []string) (*worker, error) {
	fd, err := strconv.Atoi(lookup(env, "CJM_WORKER_FD"))
	if err != nil {
		return nil, errors.New("this verb is for the daemon: CJM_WORKER_FD is not set")
	}
	syscall.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "cjmd")
	conn, err := net.FileConn(f)
	_ = f.Close()
	if err != nil {
		return nil, fmt.Errorf("cannot use the daemon's socket: %w", err)
	}
	w := &worker{plugin: lookup(env, PluginEnv), devices: lookup(env, "CJM_DEVICES"), calls: make(map[string]*simulatedJob), loaded: make(chan Answer, 1), started: time.Now()}
	w.daemon = conn.(*net.UnixConn)
	w.in = wire.NewReader(w.daemon, wire.Limits{})
	if w.out, err = wire.NewWriter(w.daemon, wire.Limits{}); err != nil {
		return nil, err
	}
	drv, err := net.Dial("unix", lookup(env, SocketEnv))
	if err != nil {
		return nil, fmt.Errorf("cannot reach the simulated machine: %w", err)
	}
	w.drv = drv.(*net.UnixConn)
	go w.listen()
	return w, nil
}

// listen hands the driver's answers on. The end of the connection is the end of
// the process: the simulated one has crashed.
func (w *worker) listen() {
	in := bufio.NewScanner(w.drv)
	for in.Scan() {
		var a Answer
		if json.Unmarshal(in.Bytes(), &a) != nil {
			break
		}
		w.mu.Lock()
		switch c := w.calls[a.Call]; {
		case a.Op == opLoad:
			w.loaded <- a
		case a.Op == opRun && c != nil && a.Begun:
			c.begun <- a
		case a.Op == opRun && c != nil:
			c.ended <- a
		case a.Op == opRelease || a.Op == opUsage:
			if len(w.others) > 0 {
				w.others[0] <- a
				w.others = w.others[1:]
			}
		}
		w.mu.Unlock()
	}
	_ = syscall.Kill(0, syscall.SIGKILL)
}

func (w *worker) ask(r Request) {
	line, err := json.Marshal(r)
	if err != nil {
		return
	}
	w.writing.Lock()
	defer w.writing.Unlock()
	_, _ = w.drv.Write(append(line, '\n')) // a driver that is gone is noticed by listen
}

// askOther asks for something that is answered in order.
func (w *worker) askOther(op string) Answer {
	c := make(chan Answer, 1)
	w.mu.Lock()
	w.others = append(w.others, c)
	w.mu.Unlock()
	w.ask(Request{Op: op})
	return <-c
}

type object = map[string]any

func (w *worker) send(h object, payload []byte) error {
	text, err := json.Marshal(h)
	if err != nil {
		return err
	}
	_, err = w.out.Send(context.Background(), text, payload)
	return err
}

func (w *worker) answer(id string, result object, payload []byte) error {
	return w.send(object{"jsonrpc": "2.0", "id": id, "result": result}, payload)
}

func (w *worker) fail(id string, code int, message string, data object) error {
	return w.send(object{"jsonrpc": "2.0", "id": id, "error": object{"code": code, "message": message, "data": data}}, nil)
}

func (w *worker) notify(method string, params object, payload []byte) {
	_ = w.send(object{"jsonrpc": "2.0", "method": method, "params": params}, payload) // the reader notices a lost daemon
}

// serve answers the daemon until the connection ends.
func (w *worker) serve() error { return wire.Serve(w.in, w.handle) }

func (w *worker) handle(id, method string, params, payload []byte) error {
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
		return w.answer(id, object{}, fmt.Appendf(nil, `{"uptime_s":%.0f}`, time.Since(w.started).Seconds()))
	case "release":
		go func() {
			w.askOther(opRelease)
			w.tellUsage()
			_ = w.answer(id, object{}, nil)
		}()
		return nil
	case "shutdown":
		err := w.answer(id, object{}, nil)
		if err == nil && !w.deaf.Load() {
			return errShutdown
		}
		return err
	}
	return w.fail(id, wire.CodeNotSupported, "a simulated worker has no "+method, nil)
}

func (w *worker) hello(id string, params []byte) error {
	var p struct {
		Instance    string
		Concurrency int
	}
	if err := json.Unmarshal(params, &p); err != nil {
		return w.fail(id, wire.CodeBadParams, err.Error(), nil)
	}
	w.instance, w.slots = p.Instance, max(p.Concurrency, 1)
	w.ask(Request{Op: opLoad, Plugin: w.plugin, Name: w.instance, Devices: w.devices})
	go func() {
		begin := time.Now()
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				w.notify("progress", object{"fraction": -1, "message": fmt.Sprintf("loading for %.0f s", time.Since(begin).Seconds())}, nil)
			case a := <-w.loaded:
				w.ready(id, a)
				return
			}
		}
	}()
	return nil
}

// ready answers hello once the driver has said how the load went.
func (w *worker) ready(id string, a Answer) {
	if a.Error != "" {
		data := object{"category": "transient", "retriable": true}
		if a.OOM {
			data = object{"category": "oom", "type": "OutOfMemoryError", "retriable": true}
		}
		_ = w.fail(id, wire.CodePlugin, a.Error, data)
		os.Exit(1)
	}
	if a.Deaf {
		w.deaf.Store(true)
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
	}
	w.tellUsage()
	_ = w.answer(id, object{"protocol": 1, "name": w.plugin, "version": "1.0", "pid": os.Getpid(), "runtime": "cjmd " + Verb,
		"capabilities": []string{"stream", "cancel", "interrupt", "concurrent", "control", "progress", "release"}}, []byte(`{"schema":null,"config":null}`))
}

func (w *worker) tellUsage() {
	a := w.askOther(opUsage)
	w.notify("usage", object{"devices": a.Devices}, nil)
}

func (w *worker) execute(id string, params, payload []byte) error {
	var p struct {
		Job    string
		Stream bool
	}
	var in struct {
		Kwargs struct {
			Seconds float64 `json:"seconds"`
		} `json:"kwargs"`
	}
	if err := json.Unmarshal(params, &p); err != nil || p.Job == "" {
		return w.fail(id, wire.CodeBadParams, "execute needs a job", nil)
	}
	if err := json.Unmarshal(payload, &in); err != nil || in.Kwargs.Seconds < 0 {
		return w.fail(id, wire.CodePlugin, "a simulated job takes the keyword argument seconds, a number", object{"category": "user_input"})
	}
	c := &simulatedJob{id: id, job: p.Job, stream: p.Stream, begun: make(chan Answer, 1), ended: make(chan Answer, 1)}
	w.mu.Lock()
	taken := w.calls[p.Job] != nil || len(w.calls) >= w.slots
	if !taken {
		w.calls[p.Job] = c
	}
	w.mu.Unlock()
	if taken {
		return w.fail(id, wire.CodeInvalidRequest, "no execute is possible now", nil)
	}
	w.ask(Request{Op: opRun, Call: p.Job, Seconds: in.Kwargs.Seconds})
	go w.follow(c)
	return nil
}

// follow tells how far a job is until the driver says that it has ended.
func (w *worker) follow(c *simulatedJob) {
	begin, total := time.Now(), time.Duration(0)
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	chunks := 0
	for {
		select {
		case a := <-c.begun:
			total = seconds(a.Seconds)
		case <-tick.C:
			if total <= 0 {
				continue
			}
			spent := min(time.Since(begin), total)
			w.notify("progress", object{"job": c.job, "fraction": spent.Seconds() / total.Seconds(), "message": fmt.Sprintf("%.0f of %.0f s", spent.Seconds(), total.Seconds())}, nil)
			if c.stream {
				chunks++
				w.notify("chunk", object{"job": c.job, "n": chunks}, fmt.Appendf(nil, `{"seconds":%.1f}`, spent.Seconds()))
			}
		case a := <-c.ended:
			w.mu.Lock()
			delete(w.calls, c.job)
			w.mu.Unlock()
			w.tellUsage()
			w.finish(c, a, chunks, time.Since(begin))
			return
		}
	}
}

func (w *worker) finish(c *simulatedJob, a Answer, chunks int, took time.Duration) {
	result := object{"chunks": chunks}
	body, err := json.Marshal(object{"seconds": took.Seconds(), "devices": splitList(w.devices)})
	switch {
	case err != nil:
		_ = w.fail(c.id, wire.CodePlugin, err.Error(), nil)
	case a.OOM:
		_ = w.fail(c.id, wire.CodePlugin, a.Error, object{"category": "oom", "type": "OutOfMemoryError", "retriable": true})
	case a.Stopped:
		result["cancelled"] = true
		_ = w.answer(c.id, result, body)
	case a.Error != "":
		_ = w.fail(c.id, wire.CodePlugin, a.Error, object{"category": "transient", "retriable": true})
	default:
		_ = w.answer(c.id, result, body)
	}
}

func (w *worker) cancel(id string, params []byte) error {
	var p struct{ Job string }
	if err := json.Unmarshal(params, &p); err != nil {
		return w.fail(id, wire.CodeBadParams, err.Error(), nil)
	}
	w.mu.Lock()
	_, known := w.calls[p.Job]
	w.mu.Unlock()
	if known {
		w.ask(Request{Op: opCancel, Call: p.Job})
	}
	return w.answer(id, object{"accepted": known, "hook": "called"}, nil)
}
