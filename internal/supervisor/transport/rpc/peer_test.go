package rpc_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cjmd/cjmd/internal/supervisor"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wire"
	"github.com/cjmd/cjmd/internal/supervisor/transport/transporttest"
)

func TestMain(m *testing.M) { transporttest.Main(m) }

// peer plays the worker, in this process, one frame at a time.
type peer struct {
	t    testing.TB
	sock *net.UnixConn
	r    *wire.Reader
	w    *wire.Writer
}

// msg is a header as a test sees it.
type msg struct {
	ID     string         `json:"id,omitempty"`
	Method string         `json:"method,omitempty"`
	Params map[string]any `json:"params,omitempty"`
}

// link is a Conn and the peer at its other end.
type link struct {
	supervisor.Conn
	peer *peer

	mu     sync.Mutex
	events []supervisor.ConnEvent // guarded by mu
}

// dial opens a channel without a process: the child's end is kept by the peer.
// hello is received and left unanswered.
func dial(t testing.TB, hello supervisor.Hello) *link {
	t.Helper()
	l := &link{}
	l.Conn, l.peer = dialTo(t, hello, func(e supervisor.ConnEvent) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.events = append(l.events, e)
	})
	return l
}

func dialTo(t testing.TB, hello supervisor.Hello, events func(supervisor.ConnEvent)) (supervisor.Conn, *peer) {
	t.Helper()
	ch, err := rpc.New(rpc.Options{}).Prepare(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	nc, err := net.FileConn(ch.Files()[0])
	if err != nil {
		t.Fatal(err)
	}
	conn, err := ch.Open(context.Background(), hello, events)
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{t: t, sock: nc.(*net.UnixConn)}
	p.r = wire.NewReader(p.sock, wire.Limits{})
	if p.w, err = wire.NewWriter(p.sock, wire.Limits{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		<-conn.Done()
		_ = p.sock.Close()
		p.w.Wait()
		_ = ch.Close()
	})
	return conn, p
}

// loaded is dial, with hello answered.
func loaded(t testing.TB) *link {
	t.Helper()
	l := dial(t, supervisor.Hello{Instance: "i", Plugin: "p"})
	m, _ := l.peer.read()
	l.peer.send(`{"jsonrpc":"2.0","id":%q,"result":{"protocol":1,"name":"p","version":"1","capabilities":[],"pid":1,"runtime":"test"}}`, m.ID)
	if _, err := l.Ready(ctx(t)); err != nil {
		t.Fatal(err)
	}
	return l
}

// ctx bounds a test that would otherwise hang.
func ctx(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return c
}

// read takes the next frame.
func (p *peer) read() (msg, []byte) {
	p.t.Helper()
	text, _, err := p.r.Next()
	if err != nil {
		p.t.Fatalf("the peer cannot read: %v", err)
	}
	var m msg
	if err := json.Unmarshal(text, &m); err != nil {
		p.t.Fatalf("the peer got %q: %v", text, err)
	}
	payload, err := p.r.TakePayload()
	if err != nil {
		p.t.Fatal(err)
	}
	return m, payload
}

// send writes a frame without a payload.
func (p *peer) send(format string, args ...any) { p.t.Helper(); p.sendWith(nil, format, args...) }

func (p *peer) sendWith(payload []byte, format string, args ...any) {
	p.t.Helper()
	if _, err := p.w.Send(context.Background(), fmt.Appendf(nil, format, args...), payload); err != nil {
		p.t.Fatalf("the peer cannot write: %v", err)
	}
}

// recorder is a Sink that writes down what it was told.
type recorder struct {
	mu    sync.Mutex
	lines []string
	seen  chan string // every line too, when not nil
}

func (r *recorder) add(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	r.mu.Lock()
	r.lines = append(r.lines, s)
	r.mu.Unlock()
	if r.seen != nil {
		r.seen <- s
	}
}

func (r *recorder) Chunk(n uint64, payload []byte)         { r.add("chunk %d %s", n, payload) }
func (r *recorder) Progress(f float64, message string)     { r.add("progress %v %s", f, message) }
func (r *recorder) Log(l supervisor.LogRecord)             { r.add("log %s %s", l.Level, l.Message) }
func (r *recorder) CancelPhase(mode supervisor.CancelMode) { r.add("phase %s", mode) }
func (r *recorder) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.lines...)
}

// outcome is how a call of a Conn ended.
type outcome struct {
	result supervisor.Result
	raw    json.RawMessage
	err    error
}

// execute starts a call in the background.
func (l *link) execute(t testing.TB, call supervisor.Call, sink supervisor.Sink) <-chan outcome {
	done := make(chan outcome, 1)
	c := ctx(t)
	go func() {
		r, err := l.Execute(c, call, sink)
		done <- outcome{result: r, err: err}
	}()
	return done
}

// openFiles counts this process's descriptors.
func openFiles(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func compact(t testing.TB, raw []byte) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		t.Fatalf("%q: %v", raw, err)
	}
	return b.String()
}

// wireSocketpair is a connected pair: one end for this process, one to inherit.
func wireSocketpair(t testing.TB) (ours *net.UnixConn, theirs *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "ours")
	nc, err := net.FileConn(f)
	_ = f.Close()
	if err != nil {
		t.Fatal(err)
	}
	return nc.(*net.UnixConn), os.NewFile(uintptr(fds[1]), "theirs")
}
