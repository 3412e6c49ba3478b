package transporttest

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cjmd/cjmd/internal/supervisor"
)

// busy: a call that blocks the worker's loop, holds the interpreter or just
// sleeps is not taken for a frozen worker.
func busy(b *bench) {
	b = setup(b.T, b.target, func(o *supervisor.Options, _ *supervisor.Spec) {
		o.PingEvery, o.PongTimeout, o.FrozenAfter = 20*time.Millisecond, 500*time.Millisecond, 500*time.Millisecond
	})
	b.load()
	pid := b.status().PID
	b.must(b.call(false, `"op":"sleep","seconds":2`), `"slept"`)
	if b.status().PID != pid {
		b.Fatal("a worker that worked was ended")
	}
}

// lost checks how a call ended whose worker died.
func (b *bench) lost(err error, begun time.Time) {
	b.Helper()
	var e *supervisor.WorkerLostError
	if !errors.As(err, &e) || e.Exit.Kind == supervisor.ExitOK || e.Exit.Kind == "" {
		b.Fatalf("the death of a worker gave %v", err)
	}
	if !b.target.Program && e.Exit.Code != 3 {
		b.Fatalf("exit code 3 became %s", e.Exit)
	}
	if took := time.Since(begun); took > 3*time.Second {
		b.Fatalf("the death was noticed after %v", took)
	}
	b.load()
	b.must(b.call(false, `"op":"echo"`), `{"args":[],"kwargs":{}}`)
}

func deathInCall(b *bench) {
	b.load()
	begun := time.Now()
	_, _, err := b.run(b.call(false, `"op":"die"`))
	b.lost(err, begun)
}

func deathInStream(b *bench) {
	b.load()
	begun := time.Now()
	_, s, err := b.run(b.call(true, `"op":"die","to":3`))
	b.lost(err, begun)
	if lines, _ := s.seen(); !slices.Equal(lines, []string{"1", "2", "3"}[:len(lines)]) {
		b.Fatalf("chunks before the death: %v", lines)
	}
}

func stop(b *bench) {
	b.load()
	b.must(b.call(false, `"op":"echo"`), `{"args":[],"kwargs":{}}`)
	begun := time.Now()
	if err := b.Stop(b.ctx(), instance, "test"); err != nil {
		b.Fatal(err)
	}
	if took := time.Since(begun); took > b.spec.StopGrace/2 {
		b.Fatalf("a polite stop took %v", took)
	}
	if left := b.survivors(); len(left) > 0 {
		b.Fatalf("processes left: %+v", left)
	}
	log, ok := b.Logs(instance)
	if !ok {
		b.Fatal("no log")
	}
	cleaned := 0
	var said []string
	for _, l := range log.Tail(1000) {
		said = append(said, l.Stream+": "+l.Text)
		if strings.Contains(l.Text, "cleaned up") {
			cleaned++
		}
	}
	if b.target.Class != "" && cleaned != 1 {
		b.Fatalf("the plugin cleaned up %d times, %+v:\n%s", cleaned, b.status().LastExit, strings.Join(said, "\n"))
	}
}

func cannotLoad(b *bench) {
	if b.target.Class == "" {
		b.Skip("the worker loads no class")
	}
	b = setup(b.T, b.target, func(_ *supervisor.Options, s *supervisor.Spec) { s.Hello.Module = "no_such_module" })
	begun := time.Now()
	err := b.EnsureReady(b.ctx(), instance)
	var e *supervisor.StartError
	if !errors.As(err, &e) || !strings.Contains(err.Error(), "no_such_module") {
		b.Fatalf("a missing module gave %v", err)
	}
	if took := time.Since(begun); took > 10*time.Second {
		b.Fatalf("it was told after %v", took)
	}
}

func cannotInitialise(b *bench) {
	if b.target.Class == "" {
		b.Skip("the worker initialises no class")
	}
	b = setup(b.T, b.target, func(_ *supervisor.Options, s *supervisor.Spec) { s.Hello.Config = json.RawMessage(`{"refuse":"this"}`) })
	err := b.EnsureReady(b.ctx(), instance)
	var e *supervisor.StartError
	if !errors.As(err, &e) || e.Call == nil || !strings.Contains(e.Call.Message, "refused: this") {
		b.Fatalf("a config that the plugin refuses gave %v", err)
	}
}

// leavesNothing opens and closes the transport's channel by hand, in each order
// in which a supervisor may.
func leavesNothing(b *bench) {
	if files, err := os.ReadDir("/proc/self/fd"); err != nil || len(files) == 0 {
		b.Skip("no /proc")
	}
	opened := func(files []*os.File) int {
		n := 0
		for _, f := range files {
			if _, err := f.Stat(); err == nil {
				n++
			}
		}
		return n
	}
	ch, err := b.target.Transport.Prepare(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	files := ch.Files()
	if opened(files) != len(files) || len(files) == 0 {
		b.Fatal("a channel without files")
	}
	if err := ch.Close(); err != nil || opened(files) != 0 {
		b.Fatalf("%d files are open after Close (%v)", opened(files), err)
	}
	if ch.Files() != nil {
		b.Fatal("a closed channel offers files")
	}
	if _, err := ch.Open(context.Background(), supervisor.Hello{}, func(supervisor.ConnEvent) {}); err == nil {
		b.Fatal("a closed channel was opened")
	}

	ch, err = b.target.Transport.Prepare(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	files = ch.Files()
	conn, err := ch.Open(context.Background(), supervisor.Hello{}, func(supervisor.ConnEvent) {})
	if err != nil {
		b.Fatal(err)
	}
	// The worker's ends are closed now and there is no worker: that is a lost one.
	select {
	case <-conn.Done():
	case <-b.ctx().Done():
		b.Fatal("the end of the worker's side was not noticed")
	}
	var lost *supervisor.ConnLostError
	if _, err := conn.Ready(b.ctx()); !errors.As(err, &lost) {
		b.Fatalf("Ready without a worker: %v", err)
	}
	if _, err := conn.Request(b.ctx(), "ping", nil); !errors.As(err, &lost) {
		b.Fatalf("a request without a worker: %v", err)
	}
	if err := conn.Close(); err != nil || opened(files) != 0 {
		b.Fatalf("%d files are open (%v)", opened(files), err)
	}
	if conn.Close() != nil || ch.Close() != nil {
		b.Fatal("closing twice is fine")
	}
}
