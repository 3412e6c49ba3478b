package transporttest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cjmd/cjmd/internal/supervisor"
)

func ready(b *bench) {
	b.load()
	st := b.status()
	r := st.Ready
	if r == nil || r.PID == 0 || r.Runtime == "" || r.Name == "" || !slices.Contains(r.Capabilities, "stream") {
		b.Fatalf("the ready record is %+v", r)
	}
	if !slices.Contains(b.PIDs(instance), r.PID) {
		b.Fatalf("process %d of the ready record is none of the worker's %v", r.PID, b.PIDs(instance))
	}
	if !b.target.Program && len(r.Schema) > 0 {
		b.same(r.Config, `{"speed":1}`)
	}
}

func unary(b *bench) {
	b.load()
	b.must(b.call(false, `"op":"echo","x":[1,{"y":null}],"text":"grüße \u0001\n"`, "a", 2.5, nil),
		`{"args":["a",2.5,null],"kwargs":{"x":[1,{"y":null}],"text":"grüße \u0001\n"}}`)
	b.must(supervisor.Call{ID: "empty", Attempt: 1}, `{"args":[],"kwargs":{}}`)
}

func stream(b *bench) {
	b.load()
	const n = 1000
	s := b.must(b.call(true, fmt.Sprintf(`"op":"count","to":%d`, n)), fmt.Sprintf(`{"chunks":%d}`, n))
	lines, _ := s.seen()
	if s.bad != "" || len(lines) != n || lines[0] != "1" || lines[n-1] != fmt.Sprint(n) {
		b.Fatalf("%d chunks, %s", len(lines), s.bad)
	}
	b.must(b.call(true, `"op":"count","to":0`), `{"chunks":0}`)
}

func failures(b *bench) {
	b.load()
	for _, want := range []string{"user_input", "transient", "resource", "fatal"} {
		_, _, err := b.run(b.call(false, fmt.Sprintf(`"op":"fail","category":%q,"message":"no: %s","retriable":%v`, want, want, want == "transient")))
		var e *supervisor.CallError
		if !errors.As(err, &e) || e.Category != b.category(want) || !strings.Contains(e.Message, "no: "+want) || e.Cancelled {
			b.Fatalf("an error of category %s arrived as %+v (%v)", want, e, err)
		}
		if want == "user_input" && e.Retriable {
			b.Fatal("an error of the user's is to be tried again")
		}
	}
	b.must(b.call(false, `"op":"echo"`), `{"args":[],"kwargs":{}}`)
}

func failureInStream(b *bench) {
	b.load()
	_, s, err := b.run(b.call(true, `"op":"fail","to":3,"category":"transient","message":"half-way"`))
	var e *supervisor.CallError
	if !errors.As(err, &e) || e.Category != b.category("transient") || !strings.Contains(e.Message, "half-way") {
		b.Fatalf("got %+v (%v)", e, err)
	}
	if lines, _ := s.seen(); !slices.Equal(lines, []string{"1", "2", "3"}) {
		b.Fatalf("chunks before the error: %v", lines)
	}
}

// waiting starts a call that waits, and returns when its plugin has begun.
func (b *bench) waiting(ctx context.Context, call supervisor.Call) (*sink, <-chan error) {
	b.Helper()
	s := newSink()
	done := make(chan error, 1)
	go func() {
		_, err := b.Execute(ctx, instance, call, s)
		done <- err
	}()
	if b.target.Blocks && !call.Stream {
		b.busyWith(call.ID)
		return s, done
	}
	select {
	case p := <-s.progress:
		if p.Message != "waiting" || p.Fraction != 0.25 {
			b.Fatalf("the progress is %+v", p)
		}
	case err := <-done:
		b.Fatalf("the call that waits ended: %v", err)
	case <-b.ctx().Done():
		b.Fatal("no progress came")
	}
	return s, done
}

// busyWith returns when the worker has the call.
func (b *bench) busyWith(id string) {
	b.Helper()
	for ctx := b.ctx(); !slices.Contains(b.status().Calls, id); {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			b.Fatal("the call never began")
		}
	}
}

// cancelled checks how a cancelled call ended.
func (b *bench) cancelled(err error) {
	b.Helper()
	var e *supervisor.CallError
	if !errors.As(err, &e) || !e.Cancelled || e.Category != "cancelled" || e.Retriable {
		b.Fatalf("a cancelled call ended with %+v (%v)", e, err)
	}
}

func progress(b *bench) {
	b.load()
	if b.target.Blocks {
		b.Skip("nothing is heard of a call while it runs")
	}
	ctx, cancel := context.WithCancel(b.ctx())
	_, done := b.waiting(ctx, b.call(false, `"op":"wait"`))
	cancel()
	b.cancelled(<-done)
	// A call that says nothing does not show what the last one left behind.
	s := b.must(b.call(false, `"op":"sleep","seconds":0.3`), `"slept"`)
	select {
	case p := <-s.progress:
		b.Fatalf("progress of an earlier call: %+v", p)
	default:
	}
}

func cancelCooperative(b *bench) {
	b.load()
	pid := b.status().PID
	ctx, cancel := context.WithCancel(b.ctx())
	s, done := b.waiting(ctx, b.call(false, `"op":"wait"`))
	begun := time.Now()
	cancel()
	b.cancelled(<-done)
	_, phases := s.seen()
	if b.target.Blocks {
		b.killedAtOnce(phases, begun)
		return
	}
	if !slices.Equal(phases, []supervisor.CancelMode{supervisor.CancelCooperative}) {
		b.Fatalf("the phases were %v", phases)
	}
	b.must(b.call(false, `"op":"echo"`), `{"args":[],"kwargs":{}}`)
	if b.status().PID != pid {
		b.Fatal("the worker did not survive a cancel that was obeyed")
	}
}

// killedAtOnce: a worker that cannot be told is not given time to obey.
func (b *bench) killedAtOnce(phases []supervisor.CancelMode, begun time.Time) {
	b.Helper()
	if want := []supervisor.CancelMode{supervisor.CancelCooperative, supervisor.CancelInterrupt, supervisor.CancelKill}; !slices.Equal(phases, want) {
		b.Fatalf("the phases were %v", phases)
	}
	if took := time.Since(begun); took > 3*time.Second {
		b.Fatalf("the kill took %v", took)
	}
	b.load()
	b.must(b.call(false, `"op":"echo"`), `{"args":[],"kwargs":{}}`)
}

func cancelDeaf(b *bench) {
	b.load()
	pid := b.status().PID
	ctx, cancel := context.WithCancel(b.ctx())
	s, done := b.waiting(ctx, b.call(false, `"op":"wait","deaf":true`))
	begun := time.Now()
	cancel()
	b.cancelled(<-done)
	_, phases := s.seen()
	if !b.target.Interrupts {
		b.killedAtOnce(phases, begun)
		return
	}
	if want := []supervisor.CancelMode{supervisor.CancelCooperative, supervisor.CancelInterrupt}; !slices.Equal(phases, want) {
		b.Fatalf("the phases were %v", phases)
	}
	b.must(b.call(false, `"op":"echo"`), `{"args":[],"kwargs":{}}`)
	if b.status().PID != pid {
		b.Fatal("the worker did not survive an interrupt")
	}
}

func cancelStream(b *bench) {
	b.load()
	pid := b.status().PID
	ctx, cancel := context.WithCancel(b.ctx())
	s := newSink()
	done := make(chan error, 1)
	var res supervisor.Result
	go func() {
		var err error
		res, err = b.Execute(ctx, instance, b.call(true, `"op":"wait","to":3`), s)
		done <- err
	}()
	for range 3 {
		select {
		case <-s.chunk:
		case <-b.ctx().Done():
			b.Fatal("no chunk came")
		}
	}
	cancel()
	if err := <-done; err != nil || !res.Cancelled {
		b.cancelled(err)
	}
	b.must(b.call(false, `"op":"echo"`), `{"args":[],"kwargs":{}}`)
	if b.status().PID != pid {
		b.Fatal("the worker did not survive a cancelled stream")
	}
}

// cancelBefore: whoever cancels before the call has arrived gets an end, and a
// worker that works.
func cancelBefore(b *bench) {
	b.load()
	ctx, cancel := context.WithCancel(b.ctx())
	cancel()
	res, err := b.Execute(ctx, instance, b.call(false, `"op":"sleep","seconds":0.01`), newSink())
	if err != nil {
		b.cancelled(err)
	} else if !res.Cancelled {
		b.same(res.Payload, `"slept"`) // it was faster
	}
	b.load()
	b.must(b.call(false, `"op":"echo"`), `{"args":[],"kwargs":{}}`)
}

func largePayloads(b *bench) {
	b.load()
	const n = 8 << 20
	big := strings.Repeat("x", n)
	res, _, err := b.run(b.call(false, fmt.Sprintf(`"op":"big","bytes":%d`, n)))
	if err != nil || strings.TrimSpace(string(res.Payload)) != `"`+big+`"` {
		b.Fatalf("%d bytes came back (%v)", len(res.Payload), err)
	}
	res, _, err = b.run(b.call(false, `"op":"echo"`, big))
	if err != nil || !strings.Contains(string(res.Payload), big) {
		b.Fatalf("%d bytes were echoed (%v)", len(res.Payload), err)
	}
	s := b.must(b.call(true, fmt.Sprintf(`"op":"big","bytes":%d`, n)), `{"chunks":1}`)
	if lines, _ := s.seen(); len(lines) != 1 || len(lines[0]) != n+2 {
		b.Fatal("a large chunk did not arrive whole")
	}
}

func overLimit(b *bench) {
	b.load()
	_, _, err := b.run(b.call(false, fmt.Sprintf(`"op":"big","bytes":%d`, 17<<20)))
	var e *supervisor.CallError
	if !errors.As(err, &e) || e.Category != "resource" {
		b.Fatalf("a result over the limit gave %v", err)
	}
	b.must(b.call(false, `"op":"echo"`), `{"args":[],"kwargs":{}}`)
}

func concurrent(b *bench) {
	b.load()
	if b.target.Blocks {
		b.Skip("one call at a time")
	}
	if r := b.status().Ready; !slices.Contains(r.Capabilities, "concurrent") {
		b.Skip("the worker does not list concurrent")
	}
	ctx, cancel := context.WithCancel(b.ctx())
	_, done := b.waiting(ctx, b.call(false, `"op":"wait","deaf":false`))
	b.must(b.call(false, `"op":"big","bytes":3`), `"xxx"`)
	if _, _, err := b.run(b.call(true, `"op":"count","to":3`)); err != nil {
		b.Fatal(err)
	}
	cancel()
	<-done // whether it obeyed: calls of one object share its cancel flag, and the others cleared it
}

func configure(b *bench) {
	b.load()
	applied, err := b.Configure(b.ctx(), instance, []byte(`{"speed":1}`), []byte(`{"speed":2}`))
	if err != nil || applied != supervisor.AppliedReconfigured && applied != supervisor.AppliedInitialized {
		b.Fatalf("%q %v", applied, err)
	}
	if b.target.Program {
		return
	}
	res, _, err := b.run(b.call(false, `"op":"init_count"`))
	if err != nil || !strings.Contains(strings.ReplaceAll(string(res.Payload), " ", ""), `"config":{"speed":2}`) {
		b.Fatalf("after a configure the plugin has %s (%v)", res.Payload, err)
	}
}

func sameCallTwice(b *bench) {
	b.load()
	ctx, cancel := context.WithCancel(b.ctx())
	call := b.call(false, `"op":"wait"`)
	_, done := b.waiting(ctx, call)
	if _, err := b.Execute(b.ctx(), instance, call, newSink()); err == nil {
		b.Error("a call was accepted twice")
	}
	cancel()
	b.cancelled(<-done)
}
