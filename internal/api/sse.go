package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/r3labs/sse/v2"
	"go.uber.org/zap"

	"github.com/cjmd/cjmd/internal/api/wire"
)

// r3labs/sse frames the events, one private server and stream per connection:
// shared between readers it would let one that stalls freeze all others, and its
// replay log grows for ever. Events come from a cursor of our own (eventSource),
// so a slow reader holds up nothing but its own cursor. What goes over the wire
// is buffered here: flushed when nothing more is at hand or every flushEvery
// events, each write under a rolling deadline that drops a reader who stalls.

const (
	flushEvery   = 64
	framerBuffer = 16
	sseBuffer    = 32 << 10
	retryMillis  = "2000"
	streamName   = "s" // the only stream of its private server
	// shutdownGrace is how long a reader may take for the last words of a daemon
	// that goes.
	shutdownGrace = time.Second
)

// frame is one event. data is one line.
type frame struct {
	id   []byte
	kind string
	data []byte
}

// eventSource is a cursor over numbered events. next returns io.EOF when the
// stream is over; end then says why.
type eventSource interface {
	next(ctx context.Context) (frame, error)
	// end describes a regular end; it is asked once, after io.EOF.
	end(ctx context.Context) wire.StreamEnd
	close()
}

// sideSource gives events that are not numbered. They carry the id of the last
// numbered event, because an empty id would clear the reader's position.
type sideSource interface {
	wait() <-chan struct{}
	take() (frame, bool)
}

// eventStream is an answer of server-sent events; it implements the generated
// response types of every operation that streams.
type eventStream struct {
	s        *server
	ctx      context.Context //nolint:containedctx // the request's; the generated Visit methods take none
	who      Principal
	open     func(ctx context.Context) (eventSource, error)
	firstID  string     // id that unnumbered events carry before the first numbered one
	side     sideSource // nil: none
	location string
	// release gives back a place that was taken before serve; nil: serve takes one.
	release func()
	// gone is called when the client went away before the end; nil: nobody cares.
	gone func(ctx context.Context)
}

func (e eventStream) VisitJobEventsResponse(w http.ResponseWriter) error     { return e.serve(w) }
func (e eventStream) VisitJobStreamResponse(w http.ResponseWriter) error     { return e.serve(w) }
func (e eventStream) VisitStreamEventsResponse(w http.ResponseWriter) error  { return e.serve(w) }
func (e eventStream) VisitExecuteStreamResponse(w http.ResponseWriter) error { return e.serve(w) }

// Causes for which a stream ends.
var (
	errShutdown = errors.New("the daemon is shutting down")
	errStalled  = errors.New("the reader stalled or went away")
	errDone     = errors.New("the stream is over")
)

// serve runs the whole stream in the request's goroutine, with two more for the
// cursor and for what is not numbered; both have ended when it returns.
func (e eventStream) serve(w http.ResponseWriter) error {
	release := e.release
	if release == nil {
		var err error
		if release, err = e.s.place(e.who); err != nil {
			return err
		}
	}
	defer release()
	src, err := e.open(e.ctx)
	if err != nil {
		return err
	}
	defer src.close()

	ctx, cancel := context.WithCancelCause(e.ctx)
	defer cancel(errDone)
	stop := context.AfterFunc(e.s.o.StreamsDone, func() { cancel(errShutdown) })
	defer stop()

	c := newConnection(w, e.s.o.WriteTimeout, func() { cancel(errStalled) })
	c.last = []byte(e.firstID)
	h := w.Header()
	h.Set("X-Accel-Buffering", "no")
	if e.location != "" {
		h.Set("Location", e.location)
	}
	var feeders sync.WaitGroup
	ended := false // written by the feeder, read after feeders.Wait
	feeders.Go(func() { ended = e.feed(ctx, c, src) })
	sideCtx, stopSide := context.WithCancel(ctx)
	feeders.Go(func() { e.feedSide(sideCtx, c) })

	c.serve(e.ctx, ctx)
	cancel(errDone)
	stopSide()
	feeders.Wait()
	c.teardown()
	if !ended && e.gone != nil && (e.ctx.Err() != nil || errors.Is(context.Cause(ctx), errStalled)) {
		bctx, done := context.WithTimeout(context.WithoutCancel(e.ctx), 10*time.Second)
		defer done()
		e.gone(bctx)
	}
	return nil
}

// place takes one of the bounded places for streams.
func (s *server) place(who Principal) (release func(), err error) {
	if s.o.StreamsDone.Err() != nil {
		return nil, &requestError{Code: codeShuttingDown, RetryAfter: time.Second}
	}
	lim := s.o.Limits()
	release, ok := s.streams.take(who.Name, lim.Streams, lim.StreamsPerPrincipal)
	if !ok {
		return nil, &requestError{Code: codeTooManyStreams, RetryAfter: 5 * time.Second}
	}
	return release, nil
}

// feed moves events from the cursor to the connection. It reports whether the
// stream came to its regular end (shutdown is one: the reader is told to return).
func (e eventStream) feed(ctx context.Context, c *connection, src eventSource) (ended bool) {
	defer c.finish()
	select {
	case <-c.began:
	case <-ctx.Done():
		return false
	}
	for {
		f, err := src.next(ctx)
		if err == nil {
			c.send(&sse.Event{ID: f.id, Event: []byte(f.kind), Data: f.data})
			continue
		}
		var end wire.StreamEnd
		switch {
		case errors.Is(err, io.EOF):
			end = src.end(e.ctx)
		case errors.Is(context.Cause(ctx), errShutdown):
			end = wire.StreamEnd{Reason: wire.StreamEndReasonShutdown}
		default:
			if ctx.Err() == nil {
				e.s.log.Warn("an event stream failed", zap.String("request", requestID(e.ctx)), zap.Error(err))
			}
			return false
		}
		data, err := json.Marshal(end)
		if err != nil {
			return false
		}
		c.sendSide(&sse.Event{Event: []byte("stream.end"), Data: data})
		return true
	}
}

// feedSide sends what is not numbered, and a comment when nothing else was sent
// for a while, so that proxies and clients know that the connection lives.
func (e eventStream) feedSide(ctx context.Context, c *connection) {
	select {
	case <-c.began:
	case <-ctx.Done():
		return
	}
	tick := time.NewTicker(e.s.o.Heartbeat)
	defer tick.Stop()
	seen := c.published.Load()
	for {
		var wait <-chan struct{}
		if e.side != nil {
			wait = e.side.wait()
		}
		select {
		case <-ctx.Done():
			return
		case <-wait:
			if f, ok := e.side.take(); ok {
				c.sendSide(&sse.Event{Event: []byte(f.kind), Data: f.data})
			}
		case <-tick.C:
			if now := c.published.Load(); now != seen {
				seen = now
				continue
			}
			c.comment("alive")
			seen = c.published.Load()
		}
	}
}

// connection is one reader: a private framer and the writer behind it.
type connection struct {
	framer *sse.Server
	out    *flushWriter
	began  chan struct{} // closed when the framer listens
	left   chan struct{} // closed when the framer has let go

	// mu keeps the order of ids. It is held across a send into the framer, which
	// is the back-pressure of this one connection and touches no other.
	mu        sync.Mutex
	last      []byte
	finished  bool
	published atomic.Int64
	drop      context.CancelFunc
}

func newConnection(w http.ResponseWriter, timeout time.Duration, stalled func()) *connection {
	c := &connection{framer: sse.New(), began: make(chan struct{}), left: make(chan struct{})}
	c.framer.AutoReplay, c.framer.AutoStream, c.framer.BufferSize = false, false, framerBuffer
	c.framer.OnUnsubscribe = func(string, *sse.Subscriber) { close(c.left) }
	c.framer.CreateStream(streamName)
	c.out = newFlushWriter(w, timeout, &c.published, func() { close(c.began) }, stalled)
	return c
}

// serve frames and writes until finish was called or until is done.
func (c *connection) serve(reqCtx, until context.Context) {
	// The framer lets go of its subscriber when this context ends, not before the
	// last event was framed: a shutdown still has something to say.
	ctx, drop := context.WithCancel(context.WithoutCancel(reqCtx))
	c.drop = drop
	stop := context.AfterFunc(until, func() {
		if !errors.Is(context.Cause(until), errShutdown) {
			drop()
			return
		}
		c.out.hurry(shutdownGrace)
	})
	defer stop()
	req := (&http.Request{Method: http.MethodGet, URL: &url.URL{RawQuery: "stream=" + streamName}, Header: http.Header{}}).WithContext(ctx)
	c.framer.ServeHTTP(c.out, req)
	c.out.close()
}

// teardown removes the framer's stream, after its subscriber has left: the other
// way round one goroutine per connection would stay for ever.
func (c *connection) teardown() {
	c.drop()
	<-c.left
	c.framer.RemoveStream(streamName)
}

// send publishes a numbered event.
func (c *connection) send(ev *sse.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = ev.ID
	c.publishLocked(ev)
}

// sendSide publishes an event without a number of its own.
func (c *connection) sendSide(ev *sse.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ev.ID = c.last
	c.publishLocked(ev)
}

func (c *connection) comment(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.publishLocked(&sse.Event{Comment: []byte(text)})
}

// finish lets the framer return after what was sent.
func (c *connection) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.publishLocked(&sse.Event{}) // neither data nor comment: the framer's sign to stop
	c.finished = true
}

func (c *connection) publishLocked(ev *sse.Event) {
	if c.finished {
		return
	}
	c.published.Add(1)
	c.framer.Publish(streamName, ev)
}

// flushWriter stands between the framer, which flushes after every event, and
// the connection. Used by the framer's goroutine alone, but for hurry.
type flushWriter struct {
	w   http.ResponseWriter
	rc  *http.ResponseController
	buf *bufio.Writer

	mu      sync.Mutex // guards timeout and closed, and setting the deadline
	timeout time.Duration
	closed  bool

	published *atomic.Int64 // events handed to the framer so far
	began     func()
	stalled   func()
	flushes   int64 // events the framer has written
	pending   int
	err       error
}

func newFlushWriter(w http.ResponseWriter, timeout time.Duration, published *atomic.Int64, began, stalled func()) *flushWriter {
	ownDeadlines(w)
	f := &flushWriter{w: w, rc: http.NewResponseController(w), timeout: timeout, published: published, began: began, stalled: stalled, flushes: -1}
	f.buf = bufio.NewWriterSize(deadlineWriter{f}, sseBuffer)
	return f
}

func (f *flushWriter) Header() http.Header    { return f.w.Header() }
func (f *flushWriter) WriteHeader(status int) { f.w.WriteHeader(status) }

// Unwrap is for http.ResponseController.
func (f *flushWriter) Unwrap() http.ResponseWriter { return f.w }

func (f *flushWriter) Write(b []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return f.buf.Write(b)
}

// Flush is called by the framer once before the first event, then after each.
func (f *flushWriter) Flush() {
	f.flushes++
	if f.flushes == 0 {
		_, _ = f.buf.WriteString("retry: " + retryMillis + "\n\n")
		f.flush()
		f.began()
		return
	}
	f.pending++
	if f.pending >= flushEvery || f.flushes >= f.published.Load() {
		f.flush()
	}
}

func (f *flushWriter) flush() {
	f.pending = 0
	if f.err != nil {
		return
	}
	if err := f.buf.Flush(); err != nil {
		f.fail(err)
		return
	}
	if err := f.rc.Flush(); err != nil {
		f.fail(err)
	}
}

// fail remembers that the reader is gone; the framer itself ignores errors.
func (f *flushWriter) fail(err error) {
	if f.err == nil {
		f.err = err
		f.stalled()
	}
}

// hurry shortens the time that this and every later write may take.
func (f *flushWriter) hurry(timeout time.Duration) {
	f.mu.Lock()
	f.timeout = min(f.timeout, timeout)
	f.mu.Unlock()
	_ = f.deadline() // a writer without deadlines ends with its request
}

// deadline gives the connection time for one more write.
func (f *flushWriter) deadline() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	err := f.rc.SetWriteDeadline(time.Now().Add(f.timeout))
	if errors.Is(err, http.ErrNotSupported) {
		return nil
	}
	return err
}

// close flushes the rest and takes the deadline off a connection that may be
// used again.
func (f *flushWriter) close() {
	f.flush()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	_ = f.rc.SetWriteDeadline(time.Time{}) // a writer without deadlines had none set
}

// deadlineWriter gives every write its own deadline.
type deadlineWriter struct{ f *flushWriter }

func (d deadlineWriter) Write(b []byte) (int, error) {
	if err := d.f.deadline(); err != nil {
		return 0, err
	}
	n, err := d.f.w.Write(b)
	if err != nil {
		d.f.fail(err)
	}
	return n, err
}

// streamCount bounds open streams, in total and of one principal.
type streamCount struct {
	mu    sync.Mutex
	total int
	by    map[string]int
}

func newStreamCount() *streamCount { return &streamCount{by: map[string]int{}} }

func (c *streamCount) take(who string, total, each int) (release func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.total >= total || c.by[who] >= each {
		return nil, false
	}
	c.total++
	c.by[who]++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.total--
		if c.by[who]--; c.by[who] <= 0 {
			delete(c.by, who)
		}
	}, true
}
