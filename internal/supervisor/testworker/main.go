// Command testworker is a worker that misbehaves as told: flags say how it
// starts and lives, the first argument of a call says what the call does. It
// speaks the protocol of docs/worker-protocol.md with framing of its own, so that
// a mistake in the daemon's is not made twice.
package main

import (
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// life is how the worker starts and lives.
type life struct {
	die        string        // "before-hello", "in-hello", "hello-error"
	code       int           // exit code of die
	stderr     string        // printed at the start
	stall      bool          // never ready, silent
	slow       time.Duration // time to ready, with progress
	ignore     bool          // SIGTERM and shutdown
	fork       int           // sleeping children
	setsid     int           // sleeping grandchildren in sessions of their own, parents gone
	mute       bool          // no answer to ping
	deafCancel bool          // no answer to cancel either
}

type worker struct {
	life life
	conn io.ReadWriter

	write sync.Mutex // one frame at a time

	mu     sync.Mutex
	calls  map[string]chan string // guarded by mu; cancel modes by job
	config json.RawMessage        // guarded by mu; as last told
}

func main() {
	var l life
	flag.StringVar(&l.die, "die", "", "before-hello, in-hello or hello-error")
	flag.IntVar(&l.code, "code", 1, "exit code of -die")
	flag.StringVar(&l.stderr, "stderr", "", "text for standard error at the start")
	flag.BoolVar(&l.stall, "stall", false, "never become ready")
	flag.DurationVar(&l.slow, "slow", 0, "become ready after this, with progress")
	flag.BoolVar(&l.ignore, "ignore", false, "ignore SIGTERM and shutdown")
	flag.IntVar(&l.fork, "fork", 0, "children")
	flag.IntVar(&l.setsid, "setsid", 0, "orphans in sessions of their own")
	flag.BoolVar(&l.mute, "mute", false, "do not answer pings")
	flag.BoolVar(&l.deafCancel, "deaf-cancel", false, "do not answer cancels")
	sleeper := flag.Bool("sleeper", false, "be one of the children")
	spawn := flag.Bool("spawn-orphan", false, "start a sleeper in its own session and leave")
	flag.Parse()
	switch {
	case *sleeper:
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
		forever()
	case *spawn:
		start(&syscall.SysProcAttr{Setsid: true}, "-sleeper")
		return
	}
	if l.stderr != "" {
		fmt.Fprintln(os.Stderr, l.stderr)
	}
	if l.die == "before-hello" {
		os.Exit(l.code)
	}
	fd, err := strconv.Atoi(os.Getenv("CJM_WORKER_FD"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "testworker is started by a daemon")
		os.Exit(2)
	}
	syscall.CloseOnExec(fd)
	if l.ignore {
		signal.Ignore(syscall.SIGTERM)
	}
	w := &worker{life: l, conn: os.NewFile(uintptr(fd), "worker socket"), calls: map[string]chan string{}}
	for range l.fork {
		start(nil, "-sleeper")
	}
	for range l.setsid {
		_ = start(nil, "-spawn-orphan").Wait()
	}
	w.serve()
}

// start runs this program again.
func start(attr *syscall.SysProcAttr, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "cannot fork:", err)
		os.Exit(3)
	}
	return cmd
}

// forever blocks without the runtime calling it a deadlock.
func forever() {
	for {
		time.Sleep(time.Hour)
	}
}

type header struct {
	ID     string          `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
}

// serve reads until end of file, which means that the daemon is gone.
func (w *worker) serve() {
	for {
		head, payload, err := w.read()
		if err != nil {
			_ = syscall.Kill(0, syscall.SIGKILL)
			return
		}
		var h header
		if err := json.Unmarshal(head, &h); err != nil {
			os.Exit(4)
		}
		w.handle(h, payload)
	}
}

func (w *worker) handle(h header, payload []byte) {
	var p struct {
		Job    string `json:"job"`
		Mode   string `json:"mode"`
		Stream bool   `json:"stream"`
	}
	_ = json.Unmarshal(h.Params, &p)
	switch h.Method {
	case "hello":
		w.configure(payload)
		go w.hello(h.ID)
	case "execute":
		cancels := make(chan string, 4)
		w.mu.Lock()
		w.calls[p.Job] = cancels
		w.mu.Unlock()
		go w.execute(h.ID, p.Job, p.Stream, payload, cancels)
	case "cancel":
		w.mu.Lock()
		c := w.calls[p.Job]
		w.mu.Unlock()
		if c != nil {
			c <- p.Mode
		}
		if !w.life.deafCancel {
			w.answer(h.ID, map[string]any{"accepted": c != nil, "hook": "called"}, nil)
		}
	case "ping":
		if !w.life.mute {
			w.answer(h.ID, map[string]any{}, nil)
		}
	case "shutdown":
		w.answer(h.ID, map[string]any{}, nil)
		if !w.life.ignore {
			os.Exit(0)
		}
	case "configure":
		var c struct{ New json.RawMessage }
		_ = json.Unmarshal(payload, &c)
		w.configure(c.New)
		w.answer(h.ID, map[string]any{"applied": "reconfigured"}, nil)
	case "stats":
		w.answer(h.ID, map[string]any{}, []byte(`{"calls":1}`))
	default:
		w.fail(h.ID, -32001, "not_supported", "not supported")
	}
}

func (w *worker) hello(id string) {
	switch {
	case w.life.die == "in-hello":
		os.Exit(w.life.code)
	case w.life.die == "hello-error":
		w.fail(id, -32000, "fatal", "No module named 'nothing'")
		os.Exit(w.life.code)
	case w.life.stall:
		return
	}
	for end := time.Now().Add(w.life.slow); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		w.notify("progress", map[string]any{"fraction": 0.5, "message": "loading"}, nil)
	}
	w.answer(id, map[string]any{
		"protocol": 1, "name": "testworker", "version": "1", "capabilities": []string{"stream", "cancel", "interrupt", "control", "concurrent", "progress"},
		"pid": os.Getpid(), "runtime": "testworker/1",
	}, []byte(`{"schema":null,"config":null}`))
}

// execute does what the first argument says, the second is its number; or what the
// keyword argument op says (suite.go).
func (w *worker) execute(id, job string, stream bool, payload []byte, cancels <-chan string) {
	defer func() {
		w.mu.Lock()
		delete(w.calls, job)
		w.mu.Unlock()
	}()
	var in struct {
		Args   []any           `json:"args"`
		Kwargs json.RawMessage `json:"kwargs"`
	}
	_ = json.Unmarshal(payload, &in)
	if c := (suiteCall{id: id, job: job, stream: stream, cancels: cancels}); c.read(in.Args, in.Kwargs) {
		w.suite(c)
		return
	}
	what, n := "", 0
	if len(in.Args) > 0 {
		what, _ = in.Args[0].(string)
	}
	if len(in.Args) > 1 {
		f, _ := in.Args[1].(float64)
		n = int(f)
	}
	chunks := 0
	switch what {
	case "echo":
	case "chunks":
		for chunks < n {
			chunks++
			w.notify("chunk", map[string]any{"job": job, "n": chunks}, fmt.Appendf(nil, "%d", chunks))
		}
	case "error":
		w.fail(id, -32000, "user_input", "bad value")
		return
	case "cooperative", "interrupt", "never":
		w.notify("progress", map[string]any{"job": job, "fraction": 0.1, "message": "waiting"}, nil)
		for mode := range cancels {
			if mode == what || mode == "interrupt" && what == "cooperative" {
				w.fail(id, -32002, "cancelled", "cancelled")
				return
			}
		}
	case "usage": // n bytes on one device
		w.notify("usage", map[string]any{"devices": map[string]int{"GPU-a": n}, "max_rss": 1 << 20}, nil)
	case "log":
		w.notify("log", map[string]any{"job": job, "level": "warning", "logger": "test", "message": "hello\nworld"}, nil)
	default:
		w.harm(what, n)
	}
	w.answer(id, map[string]any{"chunks": chunks, "content_type": "application/json", "cancelled": false}, payload)
}

// harm is the calls that end or disturb the worker.
func (w *worker) harm(what string, n int) {
	switch what {
	case "exit":
		fmt.Fprintln(os.Stderr, "last words")
		os.Exit(n)
	case "signal":
		_ = syscall.Kill(os.Getpid(), syscall.Signal(n))
		forever()
	case "half-frame":
		w.write.Lock()
		_, _ = w.conn.Write([]byte{0, 0, 0, 50, 0, 0, 0, 0, '{', '"'})
		os.Exit(0)
	case "garbage":
		w.write.Lock()
		_, _ = w.conn.Write([]byte(strings.Repeat("this is no frame ", 64)))
		forever()
	case "flood": // MiB on standard output
		line := []byte(strings.Repeat("0123456789abcdef", 8)[:127] + "\n")
		block := make([]byte, 0, 1<<20)
		for len(block) < 1<<20 {
			block = append(block, line...)
		}
		for range n {
			_, _ = os.Stdout.Write(block)
		}
	case "long-line": // KiB without a newline
		_, _ = os.Stdout.Write([]byte(strings.Repeat("x", n<<10) + "\n"))
	case "fork":
		for range n {
			start(nil, "-sleeper")
		}
	case "freeze":
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		forever() // this thread may run on for a moment before the signal is seen
	}
}

func (w *worker) read() (head, payload []byte, err error) {
	var prefix [8]byte
	if _, err = io.ReadFull(w.conn, prefix[:]); err != nil {
		return nil, nil, err
	}
	head = make([]byte, binary.BigEndian.Uint32(prefix[:4]))
	payload = make([]byte, binary.BigEndian.Uint32(prefix[4:]))
	if _, err = io.ReadFull(w.conn, head); err == nil {
		_, err = io.ReadFull(w.conn, payload)
	}
	return head, payload, err
}

func (w *worker) send(msg map[string]any, payload []byte) {
	msg["jsonrpc"] = "2.0"
	head, err := json.Marshal(msg)
	if err != nil {
		panic(err)
	}
	frame := binary.BigEndian.AppendUint32(nil, uint32(len(head)))
	frame = binary.BigEndian.AppendUint32(frame, uint32(len(payload)))
	frame = append(append(frame, head...), payload...)
	w.write.Lock()
	defer w.write.Unlock()
	_, _ = w.conn.Write(frame)
}

func (w *worker) notify(method string, params map[string]any, payload []byte) {
	w.send(map[string]any{"method": method, "params": params}, payload)
}

func (w *worker) answer(id string, result map[string]any, payload []byte) {
	w.send(map[string]any{"id": id, "result": result}, payload)
}

func (w *worker) fail(id string, code int, category, message string) {
	w.send(map[string]any{"id": id, "error": map[string]any{
		"code": code, "message": message, "data": map[string]any{"category": category, "type": "TestError"},
	}}, nil)
}
