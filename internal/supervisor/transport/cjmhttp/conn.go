package cjmhttp

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cjmd/cjmd/internal/supervisor"
)

// keepIdle is shorter than the 5 s after which the workers' servers close an
// idle connection: one that they close at the same moment would look like a death.
const keepIdle = 3 * time.Second

var errEOF = errors.New("the worker closed its life line")

// errNoMessage answers Shutdown: these workers end by a signal alone.
var errNoMessage = errors.New("the worker ends by SIGTERM, not by a message")

// Conn is the link to one HTTP worker. See supervisor.Conn for what is promised.
type Conn struct {
	o      Options
	hello  supervisor.Hello
	events func(supervisor.ConnEvent)
	addr   *address
	life   net.Conn
	// control keeps its connections; a call has one of its own, so that an error
	// on it always says something about the worker.
	control, oneCall *http.Client

	ctx    context.Context // ends with the connection
	cancel context.CancelCauseFunc

	ready      chan struct{} // closed by greet; the next three are set then
	readyValue supervisor.Ready
	readyErr   error
	features   map[string]bool // paths of /openapi.json

	failOnce sync.Once
	ended    chan struct{} // closed by fail, after err was set
	err      error
	done     chan struct{} // closed when every goroutine of the connection is gone
	wg       sync.WaitGroup

	// deaf counts what blocks the worker's event loop at the moment: it answers
	// nothing meanwhile, and that says nothing about its health.
	deaf     atomic.Int32
	progress slot

	mu      sync.Mutex
	running map[string]*run // guarded by mu; by call
	closed  bool            // guarded by mu; no goroutine may be started any more
}

var _ supervisor.Conn = (*Conn)(nil)

// newConn takes over addr and life and starts to greet.
func newConn(o Options, addr *address, life net.Conn, first []byte, hello supervisor.Hello, events func(supervisor.ConnEvent)) *Conn {
	ctx, cancel := context.WithCancelCause(context.Background())
	c := &Conn{
		o: o, hello: hello, events: events, addr: addr, life: life, ctx: ctx, cancel: cancel,
		ready: make(chan struct{}), ended: make(chan struct{}), done: make(chan struct{}), running: map[string]*run{},
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return addr.dial(ctx) }
	c.control = &http.Client{Transport: &http.Transport{
		DialContext: dial, DisableCompression: true, IdleConnTimeout: keepIdle, MaxIdleConnsPerHost: 4,
	}}
	c.oneCall = &http.Client{Transport: &http.Transport{
		DialContext: dial, DisableCompression: true, DisableKeepAlives: true,
		ReadBufferSize: 64 << 10, WriteBufferSize: 64 << 10, MaxResponseHeaderBytes: 4 << 20,
	}}
	c.wg.Go(func() { _, _ = life.Write(first) }) // a worker that does not read it is a program that needs nothing of it
	c.wg.Go(c.followLife)
	c.wg.Go(c.greet)
	go func() {
		<-c.ended
		c.wg.Wait()
		close(c.done)
	}()
	return c
}

// followLife ends the connection when the worker's process has.
func (c *Conn) followLife() {
	_, err := io.Copy(io.Discard, c.life) // nothing is ever said on it
	if err == nil || errors.Is(err, syscall.ECONNRESET) {
		err = errEOF
	}
	c.fail(err)
}

// start runs f on a goroutine of the connection; false when that has ended.
func (c *Conn) start(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.wg.Go(f)
	return true
}

// has reports whether the worker serves a path; only after ready.
func (c *Conn) has(path string) bool { return c.features[path] }

// blocks reports whether a unary call blocks the worker's event loop, as it did
// in the releases before there was /reconfigure.
func (c *Conn) blocks() bool { return !c.has("/reconfigure") }

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

// fail ends the connection for the first reason given. What waits for an answer
// hears it.
func (c *Conn) fail(cause error) {
	c.failOnce.Do(func() {
		c.err = &supervisor.ConnLostError{Cause: cause}
		c.mu.Lock()
		c.closed = true
		c.mu.Unlock()
		close(c.ended)
		c.cancel(c.err)
		_ = c.life.Close()
		_ = c.addr.close()
		c.control.CloseIdleConnections()
	})
}

// within returns a context that also ends with the connection.
func (c *Conn) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(c.ctx, func() { cancel(c.err) })
	return ctx, func() { stop(); cancel(context.Canceled) }
}

// Shutdown lets the plugin clean up where SIGTERM would not make it, and says by
// its error that the signal has to follow.
func (c *Conn) Shutdown(ctx context.Context) error {
	defer c.control.CloseIdleConnections() // a server that ends waits for its connections
	select {
	case <-c.ready:
	default:
		return errNoMessage
	}
	// Workers that know their structural surface clean up when they are told to
	// end; a second time would be one too many.
	if c.readyErr == nil && c.deaf.Load() == 0 && !c.has("/structural_surface") {
		if _, err := c.ask(ctx, http.MethodPost, "/cleanup", nil); err != nil {
			return err
		}
	}
	return errNoMessage
}
