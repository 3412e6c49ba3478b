package rpc_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cjmd/cjmd/internal/supervisor"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wire"
)

func TestHello_CarriesEverythingAndHidesTheConfigInThePayload(t *testing.T) {
	t.Parallel()
	l := dial(t, supervisor.Hello{
		Instance: "i", Plugin: "p", Module: "m", Class: "C", Config: json.RawMessage(`{"a":1}`),
		Dirs: map[string]string{"data": "/d"}, Secrets: map[string]string{"TOKEN": "s3"}, Concurrent: 2,
		Limits: supervisor.Limits{MaxPayload: 1 << 20},
	})
	m, payload := l.peer.read()
	got, _ := json.Marshal(m.Params)
	want := `{"class":"C","concurrency":2,"dirs":{"data":"/d"},"instance":"i","limits":{"max_header":65536,"max_payload":1048576},"module":"m","plugin":"p","protocol":[1],"secrets":{"TOKEN":"s3"}}`
	if m.Method != "hello" || string(got) != want || string(payload) != `{"a":1}` {
		t.Fatalf("%s %s with %s", m.Method, got, payload)
	}
	l.peer.sendWith([]byte(`{"schema":{"type":"object"},"config":null}`),
		`{"jsonrpc":"2.0","id":%q,"result":{"protocol":1,"name":"n","version":"2","capabilities":["stream"],"pid":7,"runtime":"r","new":{"x":[1]}}}`, m.ID)
	for range 2 { // Ready may be asked again
		r, err := l.Ready(ctx(t))
		if err != nil || r.Name != "n" || r.PID != 7 || len(r.Capabilities) != 1 || string(r.Schema) != `{"type":"object"}` || r.Config != nil {
			t.Fatalf("%+v %v", r, err)
		}
	}
}

func TestHello_ThatIsTooLongIsRefusedBeforeItIsSent(t *testing.T) {
	t.Parallel()
	ch, err := rpc.New(rpc.Options{}).Prepare(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	_, err = ch.Open(ctx(t), supervisor.Hello{Secrets: map[string]string{"A": strings.Repeat("x", 70_000)}}, nil)
	if err == nil || !strings.Contains(err.Error(), "the limit is 65536") {
		t.Fatalf("got %v", err)
	}
}

func TestHello_OpenDoesNotWaitForAWorkerThatIsSlowToRead(t *testing.T) {
	t.Parallel()
	config := json.RawMessage(`{"a":"` + strings.Repeat("x", 4<<20) + `"}`)
	l := dial(t, supervisor.Hello{Config: config}) // returns although nobody reads
	if _, payload := l.peer.read(); !bytes.Equal(payload, config) {
		t.Fatal("the config differs")
	}
}

func TestReady_WorkerThatDiesWhileLoadingIsALostConnection(t *testing.T) {
	t.Parallel()
	l := dial(t, supervisor.Hello{})
	_ = l.peer.sock.Close() // hello unread in its buffer: the kernel says ECONNRESET
	_, err := l.Ready(ctx(t))
	var lost *supervisor.ConnLostError
	if !errors.As(err, &lost) || !errors.Is(err, io.EOF) {
		t.Fatalf("got %v", err)
	}
}

func TestHello_WorkerThatIsGoneBeforeItIsGreetedIsALostConnection(t *testing.T) {
	t.Parallel()
	ch, err := rpc.New(rpc.Options{}).Prepare(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Shutdown(int(ch.Files()[0].Fd()), unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	conn, err := ch.Open(ctx(t), supervisor.Hello{}, nil)
	if err != nil {
		t.Fatalf("%v: the exit of the worker would never be looked at", err)
	}
	_, err = conn.Ready(ctx(t))
	var lost *supervisor.ConnLostError
	if !errors.As(err, &lost) || !errors.Is(err, io.EOF) {
		t.Fatalf("got %v", err)
	}
	<-conn.Done()
}

func TestReady_WhatTheWorkerSaidBeforeItDiedCounts(t *testing.T) {
	t.Parallel()
	l := dial(t, supervisor.Hello{})
	m, _ := l.peer.read()
	l.peer.send(`{"jsonrpc":"2.0","id":%q,"error":{"code":-32000,"message":"no such module","data":{"category":"fatal"}}}`, m.ID)
	_ = l.peer.sock.Close()
	<-l.Done()
	var e *supervisor.CallError
	if _, err := l.Ready(ctx(t)); !errors.As(err, &e) || e.Message != "no such module" {
		t.Fatalf("got %v", err)
	}
}

func TestReady_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	l := dial(t, supervisor.Hello{})
	stall := errors.New("stalled")
	c, cancel := context.WithCancelCause(context.Background())
	cancel(stall)
	if _, err := l.Ready(c); !errors.Is(err, stall) {
		t.Fatalf("got %v", err)
	}
}

func TestExecute_SendsArgumentsWithoutTouchingThem(t *testing.T) {
	t.Parallel()
	l := loaded(t)
	done := l.execute(t, supervisor.Call{ID: `j"1`, Attempt: 3, Args: json.RawMessage(` [1 , 2]`), Kwargs: json.RawMessage(`{"é":null}`),
		Dir: "/run/é", Envelope: json.RawMessage(`{"trace":"t"}`)}, &recorder{})
	m, payload := l.peer.read()
	if string(payload) != `{"args": [1 , 2],"kwargs":{"é":null}}` {
		t.Fatalf("payload %s", payload)
	}
	if got := fmt.Sprint(m.Params); got != `map[attempt:3 dir:/run/é envelope:map[trace:t] job:j"1 stream:false]` {
		t.Fatalf("params %s", got)
	}
	l.peer.sendWith([]byte("\x00\xff"), `{"jsonrpc":"2.0","id":%q,"result":{"content_type":"image/png"}}`, m.ID)
	if o := <-done; o.err != nil || string(o.result.Payload) != "\x00\xff" || o.result.ContentType != "image/png" {
		t.Fatalf("%+v", o)
	}
}

func TestExecute_BadCallsAreRefusedAndTheConnectionLives(t *testing.T) {
	t.Parallel()
	l := loaded(t)
	var e *supervisor.CallError
	_, err := l.Execute(ctx(t), supervisor.Call{ID: "a", Envelope: json.RawMessage(`{"x":`)}, &recorder{})
	if !errors.As(err, &e) || e.Category != "user_input" {
		t.Fatalf("broken envelope: %v", err)
	}
	_, err = l.Execute(ctx(t), supervisor.Call{ID: "a", Envelope: json.RawMessage(`"` + strings.Repeat("x", 70_000) + `"`)}, &recorder{})
	if !errors.As(err, &e) || e.Category != "user_input" || !strings.Contains(err.Error(), "too large") {
		t.Fatalf("long envelope: %v", err)
	}
	if _, err = l.Execute(ctx(t), supervisor.Call{}, &recorder{}); err == nil {
		t.Fatal("a call without an id was accepted")
	}
	first := l.execute(t, supervisor.Call{ID: "a"}, &recorder{})
	m, _ := l.peer.read()
	if _, err = l.Execute(ctx(t), supervisor.Call{ID: "a"}, &recorder{}); err == nil || !strings.Contains(err.Error(), "still running") {
		t.Fatalf("a second call with the id of a running one: %v", err)
	}
	l.peer.sendWith([]byte("1"), `{"jsonrpc":"2.0","id":%q,"result":{"chunks":0}}`, m.ID)
	if o := <-first; o.err != nil {
		t.Fatal(o.err)
	}
}

func TestExecute_AbandonedCallIsForgottenWithoutHarm(t *testing.T) {
	t.Parallel()
	l := loaded(t)
	sink := &recorder{seen: make(chan string, 10)}
	c, cancel := context.WithCancelCause(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := l.Execute(c, supervisor.Call{ID: "a", Stream: true}, sink)
		done <- err
	}()
	m, _ := l.peer.read()
	l.peer.sendWith([]byte("1"), `{"jsonrpc":"2.0","method":"chunk","params":{"job":"a","n":1}}`)
	<-sink.seen
	why := errors.New("nobody waits")
	cancel(why)
	if err := <-done; !errors.Is(err, why) {
		t.Fatalf("got %v", err)
	}
	l.peer.sendWith([]byte("2"), `{"jsonrpc":"2.0","method":"chunk","params":{"job":"a","n":2}}`)
	l.peer.send(`{"jsonrpc":"2.0","method":"progress","params":{"job":"a","fraction":0.5}}`)
	l.peer.sendWith([]byte("1"), `{"jsonrpc":"2.0","id":%q,"result":{"chunks":2}}`, m.ID)
	next := l.execute(t, supervisor.Call{ID: "b"}, &recorder{})
	m, _ = l.peer.read()
	l.peer.send(`{"jsonrpc":"2.0","id":%q,"result":{}}`, m.ID)
	if o := <-next; o.err != nil {
		t.Fatal(o.err)
	}
	if got := sink.all(); len(got) != 1 {
		t.Fatalf("the sink was told %q after the call had returned", got)
	}
}

func TestExecute_BlockedSinkSlowsItsWorkerAndLosesNothing(t *testing.T) {
	t.Parallel()
	slow, other := loaded(t), loaded(t)
	sink := &recorder{seen: make(chan string)} // nobody takes a line yet
	done := slow.execute(t, supervisor.Call{ID: "a", Stream: true}, sink)
	m, _ := slow.peer.read()
	const chunks = 400
	payload := bytes.Repeat([]byte("x"), 8<<10) // 3 MiB, far more than the socket holds
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for n := 1; n <= chunks; n++ {
			slow.peer.sendWith(payload, `{"jsonrpc":"2.0","method":"chunk","params":{"job":"a","n":%d}}`, n)
		}
		slow.peer.send(`{"jsonrpc":"2.0","id":%q,"result":{"chunks":%d}}`, m.ID, chunks)
	}()
	<-sink.seen
	// The other worker is served meanwhile.
	next := other.execute(t, supervisor.Call{ID: "b"}, &recorder{})
	om, _ := other.peer.read()
	other.peer.send(`{"jsonrpc":"2.0","id":%q,"result":{}}`, om.ID)
	if o := <-next; o.err != nil {
		t.Fatal(o.err)
	}
	select {
	case <-sent:
		t.Fatal("the worker sent everything although the sink was blocked")
	case <-done:
		t.Fatal("the call ended before its chunks were delivered")
	default:
	}
	for range chunks - 1 {
		<-sink.seen
	}
	<-sent
	if o := <-done; o.err != nil || o.result.Chunks != chunks {
		t.Fatalf("%+v", o)
	}
}

func TestExecute_ConnectionThatBreaksEndsEveryCall(t *testing.T) {
	t.Parallel()
	l := loaded(t)
	var calls []<-chan outcome
	for i := range 5 {
		calls = append(calls, l.execute(t, supervisor.Call{ID: fmt.Sprint(i)}, &recorder{}))
		l.peer.read()
	}
	_ = l.peer.sock.Close()
	for _, done := range calls {
		var lost *supervisor.ConnLostError
		if o := <-done; !errors.As(o.err, &lost) || !errors.Is(o.err, io.EOF) {
			t.Fatalf("got %v", o.err)
		}
	}
	var lost *supervisor.ConnLostError
	if _, err := l.Execute(ctx(t), supervisor.Call{ID: "late"}, &recorder{}); !errors.As(err, &lost) {
		t.Fatalf("a call on a broken connection: %v", err)
	}
}

func TestExecute_ErrorTextNamesRuleAndBytes(t *testing.T) {
	t.Parallel()
	l := loaded(t)
	done := l.execute(t, supervisor.Call{ID: "a"}, &recorder{})
	l.peer.read()
	if _, err := l.peer.sock.Write([]byte("Segmentation fault\n")); err != nil {
		t.Fatal(err)
	}
	o := <-done
	if o.err == nil || !strings.Contains(o.err.Error(), "header_too_long") || !strings.Contains(o.err.Error(), "53 65 67 6d") {
		t.Fatalf("got %v", o.err)
	}
}

func TestExecute_FiftyMegabytesBothWays(t *testing.T) {
	t.Parallel()
	l := loaded(t)
	big := []byte(`["` + strings.Repeat("0123456789abcdef", 50<<20/16) + `"]`)
	done := l.execute(t, supervisor.Call{ID: "a", Args: big}, &recorder{})
	m, payload := l.peer.read()
	if len(payload) != len(big)+len(`{"args":,"kwargs":{}}`) {
		t.Fatalf("the worker got %d bytes", len(payload))
	}
	l.peer.sendWith(big, `{"jsonrpc":"2.0","id":%q,"result":{"chunks":0}}`, m.ID)
	if o := <-done; o.err != nil || !bytes.Equal(o.result.Payload, big) {
		t.Fatalf("%d bytes came back (%v)", len(o.result.Payload), o.err)
	}
}

func TestCancel_WaitsForTheAnswerAndRefusesKill(t *testing.T) {
	t.Parallel()
	l := loaded(t)
	if err := l.Cancel(ctx(t), "a", supervisor.CancelKill); err == nil {
		t.Fatal("kill is no message")
	}
	done := make(chan error, 1)
	go func() { done <- l.Cancel(ctx(t), "a", supervisor.CancelInterrupt) }()
	m, _ := l.peer.read()
	if fmt.Sprint(m.Params) != "map[job:a mode:interrupt]" {
		t.Fatalf("%+v", m)
	}
	l.peer.send(`{"jsonrpc":"2.0","id":%q,"result":{"accepted":false}}`, m.ID)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestRequest_LateAnswerIsNoProtocolError(t *testing.T) {
	t.Parallel()
	l := loaded(t)
	c, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { _, err := l.Request(c, "ping", nil); done <- err }()
	m, _ := l.peer.read()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	l.peer.send(`{"jsonrpc":"2.0","id":%q,"result":{}}`, m.ID)
	stats := make(chan outcome, 1)
	go func() {
		raw, err := l.Request(ctx(t), "stats", json.RawMessage(`{"deep":true}`))
		stats <- outcome{raw: raw, err: err}
	}()
	m, payload := l.peer.read()
	if string(payload) != `{"deep":true}` {
		t.Fatalf("payload %s", payload)
	}
	l.peer.send(`{"jsonrpc":"2.0","id":%q,"result":{"n":1}}`, m.ID)
	if o := <-stats; o.err != nil || compact(t, o.raw) != `{"n":1}` {
		t.Fatalf("%s %v", o.raw, o.err)
	}
}

func TestRequest_OfTheWorkerIsAnsweredAsUnknown(t *testing.T) {
	t.Parallel()
	l := loaded(t)
	l.peer.send(`{"jsonrpc":"2.0","id":"w\n1","method":"exec\"ute"}`)
	text, _, err := l.peer.r.Next()
	if err != nil {
		t.Fatal(err)
	}
	var h struct {
		ID    string
		Error struct{ Code int }
	}
	if err := json.Unmarshal(text, &h); err != nil || h.ID != "w\n1" || h.Error.Code != wire.CodeUnknownMethod {
		t.Fatalf("%s %v", text, err)
	}
}

func TestRequest_WriteToADeadWorkerStillHearsItsLastWords(t *testing.T) {
	t.Parallel()
	l := loaded(t)
	done := l.execute(t, supervisor.Call{ID: "a"}, &recorder{})
	m, _ := l.peer.read()
	l.peer.sendWith([]byte(`"last"`), `{"jsonrpc":"2.0","id":%q,"result":{}}`, m.ID)
	_ = l.peer.sock.Close()
	_, err := l.Request(ctx(t), "ping", nil)
	var lost *supervisor.ConnLostError
	if !errors.As(err, &lost) {
		t.Fatalf("got %v", err)
	}
	if o := <-done; o.err != nil || string(o.result.Payload) != `"last"` {
		t.Fatalf("%+v", o)
	}
}

func TestLog_UnknownFieldsOfTimeAndLevelAreMadeSensible(t *testing.T) {
	t.Parallel()
	l := loaded(t)
	l.peer.send(`{"jsonrpc":"2.0","method":"log","params":{"level":"CRIT","message":"m","time":1e300,"job":null,"logger":null}}`)
	l.peer.send(`{"jsonrpc":"2.0","method":"log","params":{"level":"critical","message":"n","time":1753780000.5}}`)
	l.peer.send(`{"jsonrpc":"2.0","method":"usage","params":{"devices":{"0":5},"max_devices":{"0":9},"max_rss":null}}`)
	_ = l.peer.sock.Close()
	<-l.Done()
	if len(l.events) != 3 {
		t.Fatalf("%d events", len(l.events))
	}
	a, b := l.events[0].Log, l.events[1].Log
	if a.Level != "info" || time.Since(a.Time) > time.Minute || b.Level != "error" || b.Time.UnixMilli() != 1753780000500 {
		t.Fatalf("%+v %+v", a, b)
	}
	if u := l.events[2].Usage; u.Devices["0"] != 5 || u.MaxDevices["0"] != 9 || u.MaxRSS != 0 {
		t.Fatalf("%+v", u)
	}
}

func TestClose_FromACallbackAndTwice(t *testing.T) {
	t.Parallel()
	ready := make(chan supervisor.Conn, 1)
	conn, p := dialTo(t, supervisor.Hello{}, func(supervisor.ConnEvent) {
		c := <-ready
		_ = c.Close()
		_ = c.Close()
	})
	p.read()
	p.send(`{"jsonrpc":"2.0","method":"progress","params":{"fraction":0.1}}`)
	ready <- conn
	<-conn.Done()
	if _, err := conn.Ready(ctx(t)); err == nil || !strings.Contains(err.Error(), "closed by cjmd") {
		t.Fatalf("got %v", err)
	}
}

func TestChannel_ClosesEveryFileInEveryOrder(t *testing.T) {
	before := openFiles(t)
	tr := rpc.New(rpc.Options{})
	for range 20 {
		ch, err := tr.Prepare(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if len(ch.Files()) != 1 || fmt.Sprint(ch.Env()) != "[CJM_WORKER_FD=3]" {
			t.Fatal(ch.Files(), ch.Env())
		}
		_ = ch.Close()
		_ = ch.Close()
		if _, err := ch.Open(ctx(t), supervisor.Hello{}, nil); err == nil {
			t.Fatal("a closed channel was opened")
		}
	}
	for range 20 {
		ch, err := tr.Prepare(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		conn, err := ch.Open(ctx(t), supervisor.Hello{}, nil)
		if err == nil { // nobody holds the other end: hello fails or the end of the file follows
			_ = conn.Close()
			<-conn.Done()
		}
		_ = ch.Close()
	}
	if after := openFiles(t); after > before {
		t.Fatalf("%d files were open before, %d after", before, after)
	}
}

func TestConn_TaskIsSentOnlyToAWorkerThatTakesIt(t *testing.T) {
	t.Parallel()
	l := loaded(t) // its ready record lists no capability
	for _, call := range []supervisor.Call{{ID: "a", Task: "t", Method: "m"}, {ID: "b", Method: "m"}} {
		_, err := l.Execute(ctx(t), call, &recorder{})
		var e *supervisor.CallError
		if !errors.As(err, &e) || e.Category != "user_input" {
			t.Fatalf("got %v", err)
		}
	}
}
