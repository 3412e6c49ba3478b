// Package cjmhttp is the transport for environments that keep the HTTP worker of
// their own base library: cjm_plugin_system from 0.0.23 on, and cjm_substrate.
// The worker serves on an inherited Unix socket without a name, so there is no
// port, and no path through which another user could reach it.
//
// A second socket carries what to load and is the life line: its end tells this
// side that the process is gone, and the process that the daemon is. What the
// worker can do is asked of its /openapi.json, never guessed from a version.
//
// One goroutine greets (ready.go), one follows the life line; a call runs on the
// goroutine of Execute, with one beside it that asks for progress, which the
// protocol has no other way to learn. Start with Transport, then Conn.
package cjmhttp

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cjmd/cjmd/internal/supervisor"
)

// launcher starts the environment's own worker on the inherited socket.
//
//go:embed launch.py
var launcher string

// Numbers at which the worker finds its ends of the sockets.
const (
	listenerFD = 3
	helloFD    = 4
)

const (
	defaultMaxPayload    = 256 << 20
	defaultProgressEvery = 500 * time.Millisecond
	// backlog holds who connects before the worker accepts.
	backlog = 128
)

// Command is the program of a worker: the launcher under the environment's
// interpreter. The last argument only tells people which plugin it is.
func Command(python, module, class string) []string {
	return []string{python, "-c", launcher, module + ":" + class}
}

// Options of a Transport.
type Options struct {
	// MaxPayload bounds a result and each chunk, unless Hello says otherwise; 0: 256 MiB.
	MaxPayload int
	// ProgressEvery is how often a running call is asked for its progress; 0: 500 ms.
	ProgressEvery time.Duration
}

// Transport makes the sockets.
type Transport struct{ o Options }

var _ supervisor.Transport = (*Transport)(nil)

// New returns the transport.
func New(o Options) *Transport {
	if o.MaxPayload <= 0 {
		o.MaxPayload = defaultMaxPayload
	}
	if o.ProgressEvery <= 0 {
		o.ProgressEvery = defaultProgressEvery
	}
	return &Transport{o: o}
}

// Name is what a manifest and the API call this transport.
func (t *Transport) Name() string { return "http" }

// Prepare makes the listening socket and the life line.
func (t *Transport) Prepare(ctx context.Context) (supervisor.Channel, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	listener, addr, err := listen()
	if err != nil {
		return nil, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot make a socketpair for a worker: %w", err), listener.Close(), addr.close())
	}
	return &channel{
		o: t.o, addr: addr, listener: listener,
		ours: os.NewFile(uintptr(fds[0]), "life-line"), theirs: os.NewFile(uintptr(fds[1]), "life-line-child"),
	}, nil
}

// listen makes a listening socket whose name is gone again before anybody could
// use it, and the address through which this process still reaches it. It listens
// from the start: who connects waits in the queue until the worker accepts, so
// that readiness needs no asking twice.
func listen() (*os.File, *address, error) {
	dir, err := os.MkdirTemp("", "cjmd-")
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make a directory for a worker's socket: %w", err)
	}
	defer os.RemoveAll(dir)
	handle, err := os.Open(dir) // through it the name stays short enough for a socket
	if err != nil {
		return nil, nil, fmt.Errorf("cannot open the directory of a worker's socket: %w", err)
	}
	defer handle.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make a worker's socket: %w", err)
	}
	listener := os.NewFile(uintptr(fd), "worker-listener")
	name := fmt.Sprintf("/proc/self/fd/%d/socket", handle.Fd())
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("cannot bind a worker's socket: %w", err), listener.Close())
	}
	if err := unix.Listen(fd, backlog); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("cannot listen on a worker's socket: %w", err), listener.Close())
	}
	ref, err := unix.Open(filepath.Join(dir, "socket"), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("cannot keep a worker's socket: %w", err), listener.Close())
	}
	return listener, &address{fd: ref}, nil
}

// address is a socket file that has no name any more.
type address struct {
	mu sync.RWMutex // held while the descriptor is in use
	fd int          // -1 once closed
}

var errClosed = errors.New("closed by cjmd")

func (a *address) dial(ctx context.Context) (net.Conn, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.fd < 0 {
		return nil, errClosed
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", a.fd))
}

func (a *address) close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fd < 0 {
		return nil
	}
	err := unix.Close(a.fd)
	a.fd = -1
	return err
}

// channel owns the files until Open, and the address until Open or Close.
type channel struct {
	o Options

	mu       sync.Mutex // guards the rest
	addr     *address
	listener *os.File // nil once opened or closed, likewise the others
	ours     *os.File
	theirs   *os.File
}

func (c *channel) Files() []*os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.listener == nil {
		return nil
	}
	return []*os.File{c.listener, c.theirs}
}

func (c *channel) Env() []string {
	return []string{fmt.Sprintf("CJM_HTTP_FD=%d", listenerFD), fmt.Sprintf("CJM_HELLO_FD=%d", helloFD)}
}

// Open gives up this side's copies of the worker's ends, so that they end with
// the worker, and begins to greet it.
func (c *channel) Open(_ context.Context, hello supervisor.Hello, events func(supervisor.ConnEvent)) (supervisor.Conn, error) {
	c.mu.Lock()
	addr, listener, ours, theirs := c.addr, c.listener, c.ours, c.theirs
	c.addr, c.listener, c.ours, c.theirs = nil, nil, nil, nil
	c.mu.Unlock()
	if listener == nil {
		return nil, errors.New("cannot open a worker's channel twice or after it was closed")
	}
	life, err := net.FileConn(ours)
	err = errors.Join(err, ours.Close(), theirs.Close(), listener.Close())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot use a worker's sockets: %w", err), addr.close())
	}
	if len(hello.Config) == 0 {
		hello.Config = json.RawMessage("{}")
	}
	if hello.Limits.MaxPayload <= 0 {
		hello.Limits.MaxPayload = c.o.MaxPayload
	}
	first, err := json.Marshal(struct {
		Module   string            `json:"module"`
		Class    string            `json:"class"`
		Adapters []string          `json:"adapters"`
		Secrets  map[string]string `json:"secrets"`
	}{hello.Module, hello.Class, hello.Adapters, hello.Secrets})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot tell a worker what to load: %w", err), life.Close(), addr.close())
	}
	return newConn(c.o, addr, life, append(first, '\n'), hello, events), nil
}

// Close closes what Open did not take over.
func (c *channel) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.listener == nil {
		return nil
	}
	err := errors.Join(c.addr.close(), c.listener.Close(), c.ours.Close(), c.theirs.Close())
	c.addr, c.listener, c.ours, c.theirs = nil, nil, nil, nil
	return err
}
