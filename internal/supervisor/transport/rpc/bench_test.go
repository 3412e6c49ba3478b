package rpc_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"testing"

	"github.com/cjmd/cjmd/internal/supervisor"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wire"
)

// echoPeer answers every request of a connection, with the payload it came with.
func echoPeer(p *peer, done chan<- struct{}) {
	defer close(done)
	var out []byte
	for {
		text, _, err := p.r.Next()
		if err != nil {
			return
		}
		h, err := wire.ParseHeader(text)
		if err != nil {
			return
		}
		payload, err := p.r.Payload()
		if err != nil {
			return
		}
		result := `{"chunks":0}`
		if string(h.Method) == "hello" {
			result, payload = `{"protocol":1,"name":"echo","version":"1","capabilities":[],"pid":1,"runtime":"bench"}`, nil
		}
		out = append(append(append(out[:0], `{"jsonrpc":"2.0","id":"`...), h.ID...), `","result":`+result+`}`...)
		if _, err := p.w.Send(context.Background(), out, payload); err != nil {
			return
		}
	}
}

type nothing struct{}

func (nothing) Chunk(uint64, []byte)              {}
func (nothing) Progress(float64, string)          {}
func (nothing) Log(supervisor.LogRecord)          {}
func (nothing) CancelPhase(supervisor.CancelMode) {}

var benchCall = supervisor.Call{ID: "01JXAMPLEJOB00000000000000", Attempt: 1, Args: json.RawMessage(`[]`), Kwargs: json.RawMessage(`{}`), Dir: "/run/cjmd/jobs/01"}

func benchExecute(b *testing.B, conn supervisor.Conn, call supervisor.Call) {
	b.Helper()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := conn.Execute(context.Background(), call, nothing{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRoundTrip_InProcess is this side alone: the peer is a goroutine.
func BenchmarkRoundTrip_InProcess(b *testing.B) {
	for name, size := range map[string]int{"empty": 0, "1MiB": 1 << 20} {
		b.Run(name, func(b *testing.B) {
			conn, p := dialTo(b, supervisor.Hello{}, func(supervisor.ConnEvent) {})
			done := make(chan struct{})
			go echoPeer(p, done)
			if _, err := conn.Ready(context.Background()); err != nil {
				b.Fatal(err)
			}
			call := benchCall
			if size > 0 {
				call.Args, _ = json.Marshal([]string{string(make([]byte, size/6))}) // six bytes each
				b.SetBytes(int64(2 * len(call.Args)))
			}
			benchExecute(b, conn, call)
			_ = conn.Close()
			<-done
		})
	}
}

// pythonLoop is the least a Python worker can do; pythonBare the same without
// the protocol: its rate is the raw limit of the socket and the interpreter.
const pythonLoop = `
import os, socket, struct, json
s = socket.socket(fileno=int(os.environ["CJM_WORKER_FD"]))
f = s.makefile("rb")
ready = {"protocol": 1, "name": "loop", "version": "1", "capabilities": [], "pid": os.getpid(), "runtime": "python"}
while True:
    head = f.read(8)
    if len(head) < 8: break
    h, p = struct.unpack(">II", head)
    m = json.loads(f.read(h)); f.read(p)
    result = ready if m["method"] == "hello" else {"chunks": 0}
    out = json.dumps({"jsonrpc": "2.0", "id": m["id"], "result": result}).encode()
    s.sendall(struct.pack(">II", len(out), 4) + out + b"null")
`

const pythonBare = `
import os, socket
s = socket.socket(fileno=int(os.environ["CJM_WORKER_FD"]))
while True:
    b = s.recv(65536)
    if not b: break
    s.sendall(b)
`

func startPython(b *testing.B, code string, files []*os.File, env []string) {
	b.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		b.Skip("no python3 on PATH")
	}
	cmd := exec.Command(python, "-S", "-c", code)
	cmd.Env, cmd.ExtraFiles, cmd.Stderr = append(os.Environ(), env...), files, os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = cmd.Wait() })
}

// BenchmarkRoundTrip_Python drives a bare Python loop over the protocol.
func BenchmarkRoundTrip_Python(b *testing.B) {
	ch, err := rpc.New(rpc.Options{}).Prepare(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	startPython(b, pythonLoop, ch.Files(), ch.Env())
	conn, err := ch.Open(context.Background(), supervisor.Hello{}, func(supervisor.ConnEvent) {})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close(); <-conn.Done() }()
	if _, err := conn.Ready(context.Background()); err != nil {
		b.Fatal(err)
	}
	benchExecute(b, conn, benchCall)
}

// BenchmarkRaw_Python is the same number of bytes to Python and back, with
// nothing around them.
func BenchmarkRaw_Python(b *testing.B) {
	ch, err := rpc.New(rpc.Options{}).Prepare(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	a, theirs := wireSocketpair(b)
	startPython(b, pythonBare, []*os.File{theirs}, ch.Env())
	_ = theirs.Close()
	_ = ch.Close()
	out, in := make([]byte, 160), make([]byte, 160)
	for b.Loop() {
		if _, err := a.Write(out); err != nil {
			b.Fatal(err)
		}
		for n := 0; n < len(in); {
			m, err := a.Read(in[n:])
			if err != nil {
				b.Fatal(err)
			}
			n += m
		}
	}
	_ = a.Close()
}

// BenchmarkChunks_InProcess is how fast chunks are taken in.
func BenchmarkChunks_InProcess(b *testing.B) {
	conn, p := dialTo(b, supervisor.Hello{}, func(supervisor.ConnEvent) {})
	b.ReportAllocs()
	done := make(chan error, 1)
	call := benchCall
	call.Stream = true
	go func() {
		_, err := conn.Execute(context.Background(), call, nothing{})
		done <- err
	}()
	p.read() // hello
	m, _ := p.read()
	n := 0
	for b.Loop() {
		n++
		p.sendWith([]byte(`{"text":"hello"}`), `{"jsonrpc":"2.0","method":"chunk","params":{"job":"01JXAMPLEJOB00000000000000","n":%d}}`, n)
	}
	p.send(`{"jsonrpc":"2.0","id":%q,"result":{"chunks":%d}}`, m.ID, n)
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
