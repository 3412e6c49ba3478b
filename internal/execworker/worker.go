// Package execworker makes any program a plugin (runtime exec). Its Main is the
// worker of such a plugin: a small process inside the sandbox that speaks the
// worker protocol with the daemon and runs the program once per job. Between jobs
// nothing of the plugin exists.
//
// The goroutine that reads the daemon owns the table of jobs; each job runs on
// one of its own (job.go), which waits for those that read the program's output
// (output.go). Start with Main.
package execworker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/cjmd/cjmd/internal/execspec"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wire"
)

// Verb is the hidden verb of the daemon's binary that runs Main.
const Verb = "exec-worker"

// protocolVersion is what this worker speaks.
const protocolVersion = 1

// Command is the worker of a plugin that is spec. self is the daemon's binary.
func Command(self string, spec execspec.Spec) ([]string, error) {
	b, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("cannot tell a worker what to run: %w", err)
	}
	return []string{self, Verb, string(b)}, nil
}

// Main is the worker. args are what follows the verb. It returns the exit code.
func Main(args []string, stderr io.Writer) int {
	if len(args) == 1 && args[0] == conformanceArg {
		return conformance(os.Stdin, os.Stdout, stderr)
	}
	var spec execspec.Spec
	switch {
	case os.Getenv("CJM_WORKER_CHECK") == "1":
		spec = conformanceSpec()
	case len(args) != 1:
		fmt.Fprintln(stderr, "exec worker: this verb is for the daemon: it gives one argument, what to run")
		return 2
	default:
		if err := json.Unmarshal([]byte(args[0]), &spec); err != nil {
			fmt.Fprintln(stderr, "exec worker: what to run is no JSON:", err)
			return 2
		}
	}
	program, problems := execspec.Compile(spec)
	for _, p := range problems {
		fmt.Fprintf(stderr, "exec worker: exec.%s %s\n", p.Key, p.Message)
	}
	if len(problems) > 0 {
		return 2
	}
	w, err := newWorker(program, stderr)
	if err != nil {
		fmt.Fprintln(stderr, "exec worker:", err)
		return 2
	}
	err = w.serve()
	w.endAll()
	if errors.Is(err, errShutdown) {
		return 0
	}
	if !errors.Is(err, io.EOF) { // end of file: the daemon is gone
		fmt.Fprintln(stderr, "exec worker:", err)
	}
	_ = syscall.Kill(0, syscall.SIGKILL)
	return 1
}

var errShutdown = errors.New("told to shut down")

type object = map[string]any

// worker is the process. Fields without a note never change after hello.
type worker struct {
	program *execspec.Program
	stderr  io.Writer
	in      *wire.Reader // of serve
	out     *wire.Writer
	dirs    map[string]string
	secrets map[string]string
	slots   int
	most    int          // bytes of a payload
	greeted bool         // of serve
	total   atomic.Int64 // jobs begun

	mu     sync.Mutex
	config map[string]any  // guarded by mu; replaced, never changed
	jobs   map[string]*job // guarded by mu; in flight
}

func newWorker(p *execspec.Program, stderr io.Writer) (*worker, error) {
	fd, err := strconv.Atoi(os.Getenv("CJM_WORKER_FD"))
	if err != nil {
		return nil, errors.New("this verb is for the daemon: CJM_WORKER_FD is not set")
	}
	if err := os.Unsetenv("CJM_WORKER_FD"); err != nil {
		return nil, fmt.Errorf("cannot change the environment: %w", err)
	}
	syscall.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "cjmd")
	nc, err := net.FileConn(f)
	_ = f.Close()
	if err != nil {
		return nil, fmt.Errorf("cannot use the daemon's socket: %w", err)
	}
	conn, ok := nc.(*net.UnixConn)
	if !ok {
		return nil, errors.New("CJM_WORKER_FD is no Unix socket")
	}
	w := &worker{program: p, stderr: stderr, most: wire.DefaultMaxPayload, jobs: map[string]*job{}, config: map[string]any{}}
	w.in = wire.NewReader(conn, wire.Limits{})
	if w.out, err = wire.NewWriter(conn, wire.Limits{}); err != nil {
		return nil, err
	}
	return w, nil
}

// serve answers the daemon until the connection ends.
func (w *worker) serve() error { return wire.Serve(w.in, w.handle) }

func (w *worker) handle(id, method string, params, payload []byte) error {
	if !w.greeted && method != "hello" && method != "ping" && method != "shutdown" {
		return w.fail(id, wire.CodeInvalidRequest, "hello comes first", nil)
	}
	switch method {
	case "hello":
		return w.hello(id, params, payload)
	case "execute":
		return w.execute(id, params, payload)
	case "cancel":
		return w.cancel(id, params)
	case "ping":
		return w.answer(id, object{}, nil)
	case "configure":
		return w.configure(id, payload)
	case "config":
		w.mu.Lock()
		config := w.config
		w.mu.Unlock()
		return w.answerJSON(id, config)
	case "stats":
		w.mu.Lock()
		running := len(w.jobs)
		w.mu.Unlock()
		return w.answerJSON(id, object{"calls": w.total.Load(), "running": running})
	case "shutdown":
		if err := w.answer(id, object{}, nil); err != nil {
			return err
		}
		return errShutdown
	case "prefetch", "release", "enable", "disable", "schema", "options", "surface", "system_status", "processes":
		return w.fail(id, wire.CodeNotSupported, "a program has no "+method, nil)
	}
	return w.fail(id, wire.CodeUnknownMethod, fmt.Sprintf("unknown method %.60q", method), nil)
}

// hello takes what the daemon says and looks whether the program is there.
func (w *worker) hello(id string, params, payload []byte) error {
	if w.greeted {
		return w.fail(id, wire.CodeInvalidRequest, "hello was said before", nil)
	}
	var p struct {
		Protocol    []int
		Dirs        map[string]string
		Secrets     map[string]string
		Concurrency int
		Limits      struct {
			MaxPayload int `json:"max_payload"`
		}
	}
	if err := json.Unmarshal(params, &p); err != nil {
		return w.fail(id, wire.CodeBadParams, "hello: "+err.Error(), nil)
	}
	config, err := parseConfig(payload)
	if err != nil {
		return w.fail(id, wire.CodeBadParams, "hello: the config: "+err.Error(), nil)
	}
	if _, err := exec.LookPath(w.program.Spec.Command[0]); err != nil {
		_ = w.fail(id, wire.CodePlugin, "cannot run the program: "+err.Error(), object{"category": "fatal", "type": "NotFound"})
		return errors.New("the program is not there")
	}
	w.greeted, w.dirs, w.secrets, w.slots = true, p.Dirs, p.Secrets, max(p.Concurrency, 1)
	if p.Limits.MaxPayload > 0 {
		w.most = p.Limits.MaxPayload
	}
	w.config = config
	s := w.program.Spec
	capabilities := []string{"cancel", "interrupt", "control", "concurrent", "progress", "reconfigure"}
	if s.Stdout == execspec.StdoutNDJSON || s.Stdout == execspec.StdoutLines {
		capabilities = append(capabilities, "stream")
	}
	return w.answer(id, object{
		"protocol": protocolVersion, "name": s.Name, "version": s.Version, "capabilities": capabilities,
		"pid": os.Getpid(), "runtime": "cjmd " + Verb,
	}, nil)
}

func parseConfig(raw []byte) (map[string]any, error) {
	config := map[string]any{}
	if len(raw) == 0 {
		return config, nil
	}
	err := decode(raw, &config)
	return config, err
}

// configure is for the jobs that begin from now on.
func (w *worker) configure(id string, payload []byte) error {
	var p struct{ New json.RawMessage }
	err := json.Unmarshal(payload, &p)
	config := map[string]any{}
	if err == nil {
		config, err = parseConfig(p.New)
	}
	if err != nil {
		return w.fail(id, wire.CodeBadParams, "configure: "+err.Error(), nil)
	}
	w.mu.Lock()
	w.config = config
	w.mu.Unlock()
	return w.answer(id, object{"applied": "reconfigured"}, nil)
}

func (w *worker) execute(id string, params, payload []byte) error {
	j := &job{w: w, request: id}
	if err := json.Unmarshal(params, &j.params); err != nil || j.params.Job == "" {
		return w.fail(id, wire.CodeBadParams, "execute needs a job", nil)
	}
	w.mu.Lock()
	taken := w.jobs[j.params.Job] != nil || len(w.jobs) >= w.slots
	if !taken {
		w.jobs[j.params.Job] = j
		j.config = w.config
	}
	w.mu.Unlock()
	if taken {
		return w.fail(id, wire.CodeInvalidRequest, "this job is in flight, or as many as there may be are", nil)
	}
	w.total.Add(1)
	go j.run(payload)
	return nil
}

func (w *worker) cancel(id string, params []byte) error {
	var p struct{ Job, Mode string }
	if err := json.Unmarshal(params, &p); err != nil {
		return w.fail(id, wire.CodeBadParams, "cancel: "+err.Error(), nil)
	}
	w.mu.Lock()
	j := w.jobs[p.Job]
	w.mu.Unlock()
	if j == nil {
		return w.answer(id, object{"accepted": false, "hook": "not_supported"}, nil)
	}
	j.cancel(p.Mode)
	return w.answer(id, object{"accepted": true, "hook": "called"}, nil)
}

// endAll kills what still runs: programs are groups of their own.
func (w *worker) endAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, j := range w.jobs {
		j.kill()
	}
}

func (w *worker) send(h object, payload []byte) error {
	h["jsonrpc"] = "2.0"
	text, err := json.Marshal(h)
	if err != nil {
		return err
	}
	_, err = w.out.Send(context.Background(), text, payload)
	return err
}

func (w *worker) answer(id string, result object, payload []byte) error {
	return w.send(object{"id": id, "result": result}, payload)
}

func (w *worker) answerJSON(id string, value any) error {
	b, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return w.answer(id, object{}, b)
}

func (w *worker) fail(id string, code int, message string, data object) error {
	e := object{"code": code, "message": cut(message, maxMessage)}
	if data != nil {
		e["data"] = data
	}
	return w.send(object{"id": id, "error": e}, nil)
}

// notify sends what is not answered. A daemon that is gone is noticed by serve.
func (w *worker) notify(method string, params object, payload []byte) {
	_ = w.send(object{"method": method, "params": params}, payload)
}
