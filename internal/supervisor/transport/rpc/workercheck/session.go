package workercheck

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wire"
)

// session is one process of the worker and the daemon's end of its socket. It
// is used by one goroutine, but for what is said at the fields.
type session struct {
	o       Options
	options helloOptions
	cmd     *exec.Cmd
	pgid    int
	inode   uint64 // of the worker's end of the socket
	sock    *net.UnixConn
	w       *wire.Writer
	frames  chan frame // filled by readLoop, which closes it at the end
	readErr error      // why readLoop ended; read after frames was closed
	exited  chan struct{}
	output  tail
	lastID  int
	ready   ready   // what the worker said to hello
	kept    []frame // arrived while something else was awaited
}

// frame is one frame that the worker sent.
type frame struct {
	id, method string
	params     json.RawMessage
	result     json.RawMessage
	err        *wireError
	payload    []byte
}

type wireError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
	Data    struct {
		Category  string `json:"category"`
		Type      string `json:"type"`
		Retriable *bool  `json:"retriable"`
	} `json:"data"`
}

// helloOptions is what a check wants hello to say.
type helloOptions struct {
	concurrency int
	limits      wire.Limits
}

// start runs the program with its end of a new socketpair as descriptor 3.
func start(o Options, h helloOptions) (*session, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot make a socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fds[1], &st); err != nil {
		return nil, fmt.Errorf("cannot stat a socket: %w", err)
	}
	nc, err := net.FileConn(ours)
	if err != nil {
		return nil, fmt.Errorf("cannot use a socket: %w", err)
	}
	s := &session{o: o, options: h, inode: st.Ino, sock: nc.(*net.UnixConn), frames: make(chan frame, 64), exited: make(chan struct{})}
	if s.w, err = wire.NewWriter(s.sock, wire.Limits{}); err != nil {
		_ = nc.Close()
		return nil, err
	}
	cmd := exec.Command(o.Command[0], o.Command[1:]...)
	cmd.Dir = o.Dir
	cmd.Env = append(slices.Clone(o.Env), "CJM_WORKER_FD=3", "CJM_WORKER_CHECK=1")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stdout, cmd.Stderr = &s.output, &s.output
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("cannot start the worker: %w", err)
	}
	s.cmd, s.pgid = cmd, cmd.Process.Pid
	go func() {
		defer close(s.exited)
		_ = cmd.Wait() // the state is read from cmd.ProcessState
	}()
	go s.readLoop()
	return s, nil
}

// end kills what is left of the process group and waits for both goroutines.
func (s *session) end() {
	_ = s.sock.Close()
	_ = unix.Kill(-s.pgid, unix.SIGKILL)
	for range s.frames { // the read loop ends with the socket
	}
	<-s.exited
	s.w.Wait()
}

// readLoop takes in what the worker sends and holds it to the rules of frames
// and headers.
func (s *session) readLoop() {
	defer close(s.frames)
	r := wire.NewReader(s.sock, s.options.limits)
	for {
		text, _, err := r.Next()
		if err != nil {
			s.readErr = err
			return
		}
		h, err := wire.ParseHeader(text)
		if err != nil {
			s.readErr = err
			return
		}
		f := frame{id: string(h.ID), method: string(h.Method), params: slices.Clone(h.Params), result: slices.Clone(h.Result)}
		if h.Error != nil {
			f.err = &wireError{}
			if err := json.Unmarshal(h.Error, f.err); err != nil {
				s.readErr = wire.Broken(wire.BadParams, "an error object: %v: %s", err, wire.Excerpt(h.Error))
				return
			}
		}
		if f.payload, err = r.TakePayload(); err != nil {
			s.readErr = err
			return
		}
		s.frames <- f
	}
}

// send writes a request and returns its id.
func (s *session) send(ctx context.Context, method, params string, payload []byte) (string, error) {
	s.lastID++
	id := fmt.Sprint(s.lastID)
	header := fmt.Sprintf(`{"jsonrpc":"2.0","id":%q,"method":%q,"params":%s}`, id, method, params)
	ctx, cancel := s.bound(ctx, "the worker did not take in "+method)
	defer cancel()
	_, err := s.w.Send(ctx, []byte(header), payload)
	return id, err
}

func (s *session) bound(ctx context.Context, what string) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, s.o.Timeout, fmt.Errorf("%s within %v", what, s.o.Timeout))
}

// answer waits for the answer to id and returns it with the notifications that
// came before it; other answers are kept.
func (s *session) answer(ctx context.Context, id string) (frame, []frame, error) {
	var before []frame
	for i, f := range s.kept {
		if f.method == "" && f.id == id {
			s.kept = slices.Delete(s.kept, i, i+1)
			return f, nil, nil
		}
	}
	ctx, cancel := s.bound(ctx, "no answer to request "+id)
	defer cancel()
	for {
		select {
		case f, ok := <-s.frames:
			switch {
			case !ok:
				return frame{}, before, s.lostWhile("the answer to request " + id + " was awaited")
			case f.method != "":
				before = append(before, f)
			case f.id == id:
				return f, before, nil
			default:
				s.kept = append(s.kept, f)
			}
		case <-ctx.Done():
			return frame{}, before, context.Cause(ctx)
		}
	}
}

// notified waits for a notification of a job; answers are kept.
func (s *session) notified(ctx context.Context, method, job string) error {
	what := fmt.Sprintf("no %s of job %s", method, job)
	ctx, cancel := s.bound(ctx, what)
	defer cancel()
	for {
		select {
		case f, ok := <-s.frames:
			var p struct{ Job string }
			switch {
			case !ok:
				return s.lostWhile(method + " was awaited")
			case f.method == "":
				s.kept = append(s.kept, f)
			case f.method == method && json.Unmarshal(f.params, &p) == nil && p.Job == job:
				return nil
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *session) has(capability string) bool {
	return slices.Contains(s.ready.Capabilities, capability)
}

func (s *session) lostWhile(what string) error {
	if errors.Is(s.readErr, io.EOF) {
		return fmt.Errorf("the worker closed its socket while %s", what)
	}
	return fmt.Errorf("while %s: %w", what, s.readErr)
}

// call sends a request and waits for its answer.
func (s *session) call(ctx context.Context, method, params string, payload []byte) (frame, []frame, error) {
	id, err := s.send(ctx, method, params, payload)
	if err != nil {
		return frame{}, nil, err
	}
	return s.answer(ctx, id)
}

// begin sends an execute of the conformance plugin.
func (s *session) begin(ctx context.Context, job string, stream bool, kwargs string) (string, error) {
	return s.send(ctx, "execute", fmt.Sprintf(`{"job":%q,"attempt":1,"stream":%v,"dir":""}`, job, stream),
		[]byte(`{"args":[],"kwargs":`+kwargs+`}`))
}

// execute runs one call of the conformance plugin to its end.
func (s *session) execute(ctx context.Context, job string, stream bool, kwargs string) (frame, []frame, error) {
	id, err := s.begin(ctx, job, stream, kwargs)
	if err != nil {
		return frame{}, nil, err
	}
	return s.answer(ctx, id)
}

// cancel asks to stop a call and returns whether that was accepted.
func (s *session) cancel(ctx context.Context, job, mode string) (accepted bool, err error) {
	f, _, err := s.call(ctx, "cancel", fmt.Sprintf(`{"job":%q,"mode":%q}`, job, mode), nil)
	if err != nil {
		return false, err
	}
	if f.err != nil {
		return false, fmt.Errorf("cancel was answered with error %d %q", f.err.Code, f.err.Message)
	}
	var r struct {
		Accepted *bool `json:"accepted"`
	}
	if err := json.Unmarshal(f.result, &r); err != nil || r.Accepted == nil {
		return false, fmt.Errorf("the answer to cancel has no boolean \"accepted\": %s", f.result)
	}
	return *r.Accepted, nil
}

// waitExit waits for the end of the program itself.
func (s *session) waitExit(ctx context.Context, why string) error {
	ctx, cancel := s.bound(ctx, "the worker did not exit after "+why)
	defer cancel()
	frames := s.frames
	for {
		select {
		case <-s.exited:
			return nil
		case _, ok := <-frames: // keep its socket from filling up
			if !ok {
				frames = nil
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// lastWords is how long a failed check waits for the end of the program, whose
// output says why; a program that lives on costs its check no more than this.
const lastWords = 500 * time.Millisecond

// explain adds the last output of the worker to an error.
func (s *session) explain(err error) error {
	var skip skipped
	if errors.As(err, &skip) {
		return err
	}
	select {
	case <-s.exited: // and with it the output is whole
	case <-time.After(lastWords):
	}
	if out := s.output.last(); out != "" {
		return fmt.Errorf("%w; its last output: %q", err, out)
	}
	return err
}

// tail keeps the end of what the worker printed. It is written by the goroutines
// of exec.Cmd.
type tail struct {
	mu  sync.Mutex
	buf []byte // guarded by mu
}

const tailLen = 2000

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p[max(0, len(p)-tailLen):]...)
	t.buf = t.buf[max(0, len(t.buf)-tailLen):]
	return len(p), nil
}

// last is the end of the output, shortened to what a line can hold.
func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := strings.TrimSpace(string(t.buf))
	return s[max(0, len(s)-300):]
}
