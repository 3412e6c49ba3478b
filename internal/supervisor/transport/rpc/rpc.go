// Package rpc is the native transport: frames with JSON-RPC headers over one
// inherited Unix socketpair (docs/worker-protocol.md). It routes by the header
// and passes payloads on without parsing them.
//
// One goroutine per connection reads (conn.go) and calls the sinks and the
// events callback in the order of arrival; a callback that blocks slows its own
// worker and nothing else. Writers take turns (wire.Writer). All else is a table
// of the requests in flight (calls.go). Start with Transport, then Conn.
package rpc

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cjmd/cjmd/internal/supervisor"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wire"
)

// ProtocolVersion is what this package speaks.
const ProtocolVersion = 1

// childFD is the number the worker finds its end of the socket at.
const childFD = 3

// Options of a Transport.
type Options struct {
	// Limits of the frames both ways, told to the worker unless Hello names its
	// own; zero means the defaults of version 1.
	Limits supervisor.Limits
}

// Transport makes socketpairs.
type Transport struct{ limits supervisor.Limits }

var _ supervisor.Transport = (*Transport)(nil)

// New returns the native transport.
func New(o Options) *Transport { return &Transport{limits: o.Limits} }

// Name is what a manifest and the API call this transport.
func (t *Transport) Name() string { return "native" }

// Prepare makes the socketpair.
func (t *Transport) Prepare(ctx context.Context) (supervisor.Channel, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot make a socketpair for a worker: %w", err)
	}
	return &channel{
		limits: t.limits,
		ours:   os.NewFile(uintptr(fds[0]), "worker-socket"),
		theirs: os.NewFile(uintptr(fds[1]), "worker-socket-child"),
	}, nil
}

// channel owns both ends until Open, and the child's until Open or Close.
type channel struct {
	limits supervisor.Limits

	mu     sync.Mutex // guards ours and theirs
	ours   *os.File   // nil once opened or closed
	theirs *os.File
}

func (c *channel) Files() []*os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.theirs == nil {
		return nil
	}
	return []*os.File{c.theirs}
}

func (c *channel) Env() []string { return []string{fmt.Sprintf("CJM_WORKER_FD=%d", childFD)} }

// Open closes the child's end, so that the connection ends with the worker, and
// sends hello.
func (c *channel) Open(ctx context.Context, hello supervisor.Hello, events func(supervisor.ConnEvent)) (supervisor.Conn, error) {
	c.mu.Lock()
	ours, theirs := c.ours, c.theirs
	c.ours, c.theirs = nil, nil
	c.mu.Unlock()
	if ours == nil {
		return nil, fmt.Errorf("cannot open a worker's channel twice or after it was closed")
	}
	_ = theirs.Close()
	nc, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		return nil, fmt.Errorf("cannot use a worker's socket: %w", err)
	}
	if hello.Limits.MaxHeader == 0 {
		hello.Limits.MaxHeader = c.limits.MaxHeader
	}
	if hello.Limits.MaxPayload == 0 {
		hello.Limits.MaxPayload = c.limits.MaxPayload
	}
	conn, err := newConn(nc.(*net.UnixConn), wire.Limits(hello.Limits), events)
	if err != nil {
		_ = nc.Close()
		return nil, err
	}
	if err := conn.hello(ctx, hello); err != nil {
		_ = conn.Close()
		<-conn.Done()
		return nil, err
	}
	return conn, nil
}

// Close closes what Open did not take over.
func (c *channel) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range []*os.File{c.ours, c.theirs} {
		if f != nil {
			_ = f.Close()
		}
	}
	c.ours, c.theirs = nil, nil
	return nil
}
