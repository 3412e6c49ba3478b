package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/cjmd/cjmd/internal/supervisor"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wire"
)

// drainAfterWriteError is how long the reader may go on after a write has
// failed: the worker's last words are often in the socket already.
const drainAfterWriteError = time.Second

var (
	errClosed = errors.New("closed by cjmd")
	errEOF    = fmt.Errorf("the worker closed its socket: %w", io.EOF)
)

// Conn is one live connection. See supervisor.Conn for what is promised. Close
// does not wait for callbacks; after Done no callback runs any more.
type Conn struct {
	sock   *net.UnixConn
	r      *wire.Reader // owned by the read loop
	w      *wire.Writer
	events func(supervisor.ConnEvent)
	calls  *calls

	ready      chan struct{} // closed by the read loop when hello was answered
	readyValue supervisor.Ready
	readyErr   error

	failOnce sync.Once
	ended    chan struct{} // closed by fail, after err was set
	err      error
	done     chan struct{} // closed when every goroutine of the connection is gone

	writeErrMu sync.Mutex
	writeErr   error // the first failed write; guarded by writeErrMu
}

var _ supervisor.Conn = (*Conn)(nil)

// newConn takes over sock and starts reading.
func newConn(sock *net.UnixConn, limits wire.Limits, events func(supervisor.ConnEvent)) (*Conn, error) {
	w, err := wire.NewWriter(sock, limits)
	if err != nil {
		return nil, err
	}
	c := &Conn{
		sock: sock, r: wire.NewReader(sock, limits), w: w, events: events, calls: newCalls(),
		ready: make(chan struct{}), ended: make(chan struct{}), done: make(chan struct{}),
	}
	go func() {
		c.fail(c.readLoop())
		c.w.Wait()
		close(c.done)
	}()
	return c, nil
}

// hello sends the first message and does not wait for more than the socket's
// buffer takes.
func (c *Conn) hello(ctx context.Context, h supervisor.Hello) error {
	limits := wire.Limits(h.Limits).OrDefaults()
	h.Limits = supervisor.Limits(limits)
	config := h.Config
	if len(config) == 0 {
		config = json.RawMessage("{}")
	}
	if h.Dirs == nil {
		h.Dirs = map[string]string{}
	}
	params, err := json.Marshal(struct {
		Protocol []int `json:"protocol"`
		supervisor.Hello
		Config struct{} `json:"config,omitzero"` // hides Hello.Config: it travels as the payload
	}{Protocol: []int{ProtocolVersion}, Hello: h})
	if err != nil {
		return fmt.Errorf("cannot build hello: %w", err)
	}
	req := c.calls.add(methodHello, nil)
	header := appendRequest(nil, req.id, methodHello, params)
	if n := len(header); n > min(limits.MaxHeader, wire.DefaultMaxHeader) {
		return fmt.Errorf("cannot greet a worker: its secrets and directories make a header of %d bytes, the limit is %d", n, limits.MaxHeader)
	}
	send, cancel := context.WithCancelCause(ctx)
	cancel(errNoWait) // what the socket does not take at once goes out in the background
	begun, err := c.w.Send(send, header, config)
	switch {
	case err == nil, errors.Is(err, errNoWait):
	case begun: // the worker is gone already; the reader says so, and its exit says why
		c.writeFailed(err)
	default:
		return fmt.Errorf("cannot greet a worker: %w", err)
	}
	return nil
}

var errNoWait = errors.New("not waiting for a slow reader")

// Ready waits for the answer to hello.
func (c *Conn) Ready(ctx context.Context) (supervisor.Ready, error) {
	select {
	case <-c.ready:
		return c.readyValue, c.readyErr
	default:
	}
	select {
	case <-c.ready:
		return c.readyValue, c.readyErr
	case <-ctx.Done():
		return supervisor.Ready{}, context.Cause(ctx)
	case <-c.ended:
	}
	select {
	case <-c.ready: // both were true; what the worker said counts
		return c.readyValue, c.readyErr
	default:
		return supervisor.Ready{}, c.err
	}
}

// can reports whether the worker's ready record lists a capability.
func (c *Conn) can(capability string) bool {
	select {
	case <-c.ready:
		return slices.Contains(c.readyValue.Capabilities, capability)
	default:
		return false
	}
}

// Execute runs one call. The sink is not called after it has returned.
func (c *Conn) Execute(ctx context.Context, call supervisor.Call, sink supervisor.Sink) (supervisor.Result, error) {
	run := &running{job: call.ID, stream: call.Stream, sink: sink}
	if err := checkCall(call); err != nil {
		return supervisor.Result{}, err
	}
	if (call.Task != "" || call.Method != "") && !c.can(capabilityTask) {
		return supervisor.Result{}, &supervisor.CallError{Category: "user_input", Message: "this worker takes no task and no method: leave both out"}
	}
	req := c.calls.add(methodExecute, run)
	if req == nil {
		return supervisor.Result{}, fmt.Errorf("cannot execute call %q: a call with this id is still running", call.ID)
	}
	header := appendExecute(make([]byte, 0, 256), req.id, call)
	args, kwargs := call.Args, call.Kwargs
	if len(args) == 0 {
		args = emptyArray
	}
	if len(kwargs) == 0 {
		kwargs = emptyObject
	}
	ans, err := c.roundTrip(ctx, req, header, argsOpen, args, kwargsOpen, kwargs, objectClose)
	if err != nil {
		run.abandon()
		var limit *wire.LimitError
		if errors.As(err, &limit) {
			return supervisor.Result{}, &supervisor.CallError{Category: "user_input", Message: "the arguments are too large: " + limit.Error()}
		}
		return supervisor.Result{}, err
	}
	if ans.failure != nil {
		return supervisor.Result{}, ans.failure.callError(ans.payload)
	}
	return supervisor.Result{Payload: ans.payload, ContentType: ans.contentType, Chunks: run.chunks, Cancelled: ans.cancelled}, nil
}

// Cancel asks the worker to stop one call. That the call has ended meanwhile is
// no error.
func (c *Conn) Cancel(ctx context.Context, job string, mode supervisor.CancelMode) error {
	if mode != supervisor.CancelCooperative && mode != supervisor.CancelInterrupt {
		return fmt.Errorf("cannot cancel call %q: mode %q is not sent to workers", job, mode)
	}
	req := c.calls.add(methodCancel, nil)
	header := appendCancel(nil, req.id, job, mode)
	ans, err := c.roundTrip(ctx, req, header)
	if err == nil && ans.failure != nil {
		err = ans.failure.requestError(methodCancel)
	}
	return err
}

// Request makes a control call; params travel as the payload.
func (c *Conn) Request(ctx context.Context, method string, params json.RawMessage) (json.RawMessage, error) {
	req := c.calls.add(method, nil)
	ans, err := c.roundTrip(ctx, req, appendRequest(nil, req.id, method, emptyObject), params)
	switch {
	case err != nil:
		return nil, err
	case ans.failure != nil:
		return nil, ans.failure.requestError(method)
	case len(ans.payload) > 0:
		return ans.payload, nil
	}
	return ans.result, nil
}

// Shutdown asks the worker to end; its answer is not awaited.
func (c *Conn) Shutdown(ctx context.Context) error {
	req := c.calls.add(methodShutdown, nil)
	begun, err := c.w.Send(ctx, appendRequest(nil, req.id, methodShutdown, emptyObject))
	if !begun {
		c.calls.drop(req)
	}
	if err != nil {
		return c.lost(err)
	}
	return nil
}

// roundTrip sends one request and waits for its answer, the end of the
// connection or ctx. A request that was sent stays known after ctx has ended, so
// that its late answer is no protocol error.
func (c *Conn) roundTrip(ctx context.Context, req *request, header []byte, payload ...[]byte) (answer, error) {
	begun, err := c.w.Send(ctx, header, payload...)
	if !begun {
		c.calls.drop(req)
		if err != nil {
			return answer{}, c.lost(err)
		}
	}
	if err != nil && ctx.Err() == nil {
		c.writeFailed(err)
	}
	select {
	case ans := <-req.answered:
		return ans, nil
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-c.ended:
		err = c.err
	}
	select {
	case ans := <-req.answered: // both were true; what the worker said counts
		return ans, nil
	default:
		return answer{}, err
	}
}

// lost replaces the error of a send by the reason why the connection ended,
// where it has.
func (c *Conn) lost(err error) error {
	select {
	case <-c.ended:
		return c.err
	default:
		return err
	}
}

// writeFailed lets the reader take in what the worker said before it went away.
// The reader then finds the end of the file, or this deadline.
func (c *Conn) writeFailed(err error) {
	c.writeErrMu.Lock()
	defer c.writeErrMu.Unlock()
	if c.writeErr == nil {
		c.writeErr = err
		_ = c.sock.SetReadDeadline(time.Now().Add(drainAfterWriteError))
	}
}

// Done is closed when the connection has ended and no callback will come.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err says why the connection ended, nil while it lives.
func (c *Conn) Err() error {
	select {
	case <-c.ended:
		return c.err
	default:
		return nil
	}
}

// Close ends the connection. It may be called from a callback, and twice.
func (c *Conn) Close() error {
	c.fail(errClosed)
	return nil
}

// fail ends the connection for the first reason given; whatever waits for an
// answer hears it.
func (c *Conn) fail(cause error) {
	c.failOnce.Do(func() {
		c.err = &supervisor.ConnLostError{Cause: cause}
		close(c.ended)
		_ = c.sock.Close()
	})
}

// readLoop takes in frames until the connection cannot be used any more, and
// says why.
func (c *Conn) readLoop() error {
	for {
		text, n, err := c.r.Next()
		if err != nil {
			return c.readError(err)
		}
		h, err := wire.ParseHeader(text)
		if err == nil {
			err = c.dispatch(h, n)
		}
		if err != nil {
			return c.readError(err)
		}
	}
}

func (c *Conn) readError(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return errEOF
	case errors.Is(err, net.ErrClosed):
		return errClosed
	}
	var nerr net.Error
	if errors.As(err, &nerr) && nerr.Timeout() {
		c.writeErrMu.Lock()
		defer c.writeErrMu.Unlock()
		return c.writeErr
	}
	return err
}
