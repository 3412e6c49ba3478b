package supervisor_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cjmd/cjmd/internal/isolation"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// The loop's own decisions, without processes: time is free.

// fake is a tier, a transport and everything they make, for one worker.
type fake struct {
	mu        sync.Mutex
	silent    bool          // guarded by mu; pings are not answered
	cpu       time.Duration // guarded by mu
	unkill    bool          // guarded by mu; a kill ends nothing
	loading   chan struct{} // guarded by mu; a new process is ready once it is closed; nil: at once
	exitCode  int           // guarded by mu; ≥ 0: a new process ends at once with it
	proc      *fakeProcess  // guarded by mu; newest
	processes int           // guarded by mu
}

type fakeProcess struct {
	f     *fake
	once  sync.Once
	ended chan struct{}
	code  isolation.ExitStatus
}

func (p *fakeProcess) end(st isolation.ExitStatus) {
	p.once.Do(func() {
		p.code = st
		close(p.ended)
	})
}

func (f *fake) Spec(_ context.Context, instance string, _ []string) (supervisor.Spec, error) {
	return supervisor.Spec{Instance: instance, Transport: "fake", Command: []string{"/bin/fake"}, Concurrency: 2}, nil
}

type fakeTier struct{ f *fake }

func (fakeTier) Name() string                         { return "none" }
func (fakeTier) Probe(context.Context) error          { return nil }
func (fakeTier) Reclaim(context.Context) (int, error) { return 0, nil }
func (t fakeTier) Prepare(context.Context, isolation.Spec) (isolation.Sandbox, error) {
	return &fakeSandbox{fakeProcess: &fakeProcess{f: t.f, ended: make(chan struct{})}}, nil
}

type fakeSandbox struct{ *fakeProcess }

func (s *fakeSandbox) Start(*exec.Cmd) error {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	s.f.proc = s.fakeProcess
	s.f.processes++
	if s.f.exitCode >= 0 {
		s.end(isolation.ExitStatus{Code: s.f.exitCode})
	}
	return nil
}
func (s *fakeSandbox) PID() int { return 1000000 }
func (s *fakeSandbox) Wait() (isolation.ExitStatus, error) {
	<-s.ended
	return s.code, nil
}
func (s *fakeSandbox) Signal(syscall.Signal) error { return nil }
func (s *fakeSandbox) Usage() (isolation.Usage, error) {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	return isolation.Usage{SampledAt: time.Now(), CPUTime: s.f.cpu, RSS: 1 << 20}, nil
}
func (s *fakeSandbox) Kill(ctx context.Context) error {
	s.f.mu.Lock()
	unkill := s.f.unkill
	s.f.mu.Unlock()
	if unkill {
		<-ctx.Done()
		return fmt.Errorf("pid 1000000 is in state D: %w", ctx.Err())
	}
	s.end(isolation.ExitStatus{Signal: syscall.SIGKILL})
	return nil
}
func (s *fakeSandbox) PIDs() []int              { return []int{s.PID()} }
func (s *fakeSandbox) Empty() bool              { return true }
func (s *fakeSandbox) Report() []isolation.Fact { return nil }
func (s *fakeSandbox) Close() error             { return nil }

type fakeTransport struct{ f *fake }

func (fakeTransport) Name() string { return "fake" }
func (t fakeTransport) Prepare(context.Context) (supervisor.Channel, error) {
	return fakeChannel(t), nil
}

type fakeChannel struct{ f *fake }

func (fakeChannel) Files() []*os.File { return nil }
func (fakeChannel) Env() []string     { return nil }
func (fakeChannel) Close() error      { return nil }
func (c fakeChannel) Open(context.Context, supervisor.Hello, func(supervisor.ConnEvent)) (supervisor.Conn, error) {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	return &fakeConn{f: c.f, p: c.f.proc, loading: c.f.loading, closed: make(chan struct{})}, nil
}

// fakeConn is lost when its process ends.
type fakeConn struct {
	f       *fake
	p       *fakeProcess
	loading chan struct{}
	once    sync.Once
	closed  chan struct{}
}

func (c *fakeConn) Ready(context.Context) (supervisor.Ready, error) {
	if c.loading != nil {
		select {
		case <-c.loading:
		case <-c.p.ended:
		}
	}
	select {
	case <-c.p.ended:
		return supervisor.Ready{}, c.Err()
	default:
		return supervisor.Ready{Name: "fake"}, nil
	}
}

// Execute: a call named "hold…" runs until the process ends.
func (c *fakeConn) Execute(_ context.Context, call supervisor.Call, _ supervisor.Sink) (supervisor.Result, error) {
	if strings.HasPrefix(call.ID, "hold") {
		select {
		case <-c.p.ended:
		case <-c.closed:
		}
		return supervisor.Result{}, c.Err()
	}
	return supervisor.Result{}, nil
}
func (c *fakeConn) Cancel(context.Context, string, supervisor.CancelMode) error { return nil }
func (c *fakeConn) Request(ctx context.Context, method string, _ json.RawMessage) (json.RawMessage, error) {
	c.f.mu.Lock()
	silent := c.f.silent
	c.f.mu.Unlock()
	switch {
	case method == "ping" && silent:
		<-ctx.Done()
		return nil, ctx.Err()
	case method == "configure":
		return json.RawMessage(`{"applied":"initialized"}`), nil
	default:
		return json.RawMessage(`{}`), nil
	}
}
func (c *fakeConn) Shutdown(context.Context) error {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	if !c.f.unkill {
		c.p.end(isolation.ExitStatus{})
	}
	return nil
}
func (c *fakeConn) Done() <-chan struct{} { return c.p.ended }
func (c *fakeConn) Err() error            { return &supervisor.ConnLostError{Cause: io.EOF} }
func (c *fakeConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

// bubble runs test with a supervisor of fakes under a free clock.
func bubble(t *testing.T, test func(t *testing.T, s *supervisor.Supervisor, f *fake, j *journal)) {
	t.Helper()
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := &fake{exitCode: -1}
		j := &journal{more: make(chan struct{})}
		s, err := supervisor.New(supervisor.Options{
			Catalog: f, Transports: []supervisor.Transport{fakeTransport{f}}, Tiers: []isolation.Tier{fakeTier{f}},
			Journal: j, LogRoot: root, Jitter: func() float64 { return 0 },
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = s.Run(ctx)
		}()
		test(t, s, f, j)
		cancel()
		<-done
	})
}

func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fake) crash(code int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.proc.end(isolation.ExitStatus{Code: code})
}

func state(t *testing.T, s *supervisor.Supervisor) supervisor.Status {
	t.Helper()
	synctest.Wait()
	st, ok := s.Status("w")
	if !ok {
		t.Fatal("no worker")
	}
	return st
}

func TestLoop_BackoffDoublesAndGivesUpAfterFiveFailures(t *testing.T) {
	bubble(t, func(t *testing.T, s *supervisor.Supervisor, f *fake, _ *journal) {
		f.set(func() { f.exitCode = 1 })
		for i, want := range []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second} {
			began := time.Now()
			var se *supervisor.StartError
			if err := s.EnsureReady(t.Context(), "w"); !errors.As(err, &se) || se.Step != "hello" {
				t.Fatalf("failure %d: %v", i+1, err)
			}
			if err := s.EnsureReady(t.Context(), "w"); !errors.As(err, &se) || se.Step != "backoff" || !se.RetryAt.Equal(began.Add(want)) {
				t.Fatalf("failure %d: %v, retry in %v", i+1, err, se.RetryAt.Sub(began))
			}
			time.Sleep(want)
			if st := state(t, s); st.State != supervisor.Stopped {
				t.Fatalf("after the delay: %+v", st)
			}
		}
		_ = s.EnsureReady(t.Context(), "w")
		if st := state(t, s); st.State != supervisor.FailedState || f.processes != 6 {
			t.Fatalf("%+v after %d processes", st, f.processes)
		}
		f.set(func() { f.exitCode = -1 })
		s.Reset("w")
		if err := s.EnsureReady(t.Context(), "w"); err != nil {
			t.Fatal(err)
		}
	})
}

func TestLoop_AMinuteOfBeingReadyIsACleanRecord(t *testing.T) {
	bubble(t, func(t *testing.T, s *supervisor.Supervisor, f *fake, _ *journal) {
		for range 12 { // twice the limit, but each after a good minute
			if err := s.EnsureReady(t.Context(), "w"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute + time.Second)
			f.crash(1)
			if st := state(t, s); st.State != supervisor.Backoff || st.Restarts != 1 {
				t.Fatalf("%+v", st)
			}
			time.Sleep(time.Second)
		}
	})
}

func TestLoop_SilenceMakesUnresponsiveAndStillnessKills(t *testing.T) {
	bubble(t, func(t *testing.T, s *supervisor.Supervisor, f *fake, _ *journal) {
		if err := s.EnsureReady(t.Context(), "w"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // answers
		if st := state(t, s); st.State != supervisor.ReadyState {
			t.Fatalf("%+v", st)
		}
		f.set(func() { f.silent = true })
		time.Sleep(23 * time.Second)
		if st := state(t, s); st.State != supervisor.Unresponsive {
			t.Fatalf("%+v", st)
		}
		for range 10 { // a library holds the interpreter, and works
			time.Sleep(30 * time.Second)
			f.set(func() { f.cpu += time.Second })
		}
		if st := state(t, s); st.State != supervisor.Unresponsive {
			t.Fatalf("%+v", st)
		}
		time.Sleep(100 * time.Second)
		st := state(t, s)
		if st.Generation != 1 || st.LastExit == nil || st.LastExit.Kind != supervisor.ExitTimeout {
			t.Fatalf("%+v", st)
		}
	})
}

func TestLoop_UnkillableIsSaidAndTriedAgain(t *testing.T) {
	bubble(t, func(t *testing.T, s *supervisor.Supervisor, f *fake, j *journal) {
		if err := s.EnsureReady(t.Context(), "w"); err != nil {
			t.Fatal(err)
		}
		f.set(func() { f.unkill = true })
		if err := s.Stop(t.Context(), "w", "test"); err == nil || !strings.Contains(err.Error(), "state D") {
			t.Fatalf("got %v", err)
		}
		if st := state(t, s); st.State != supervisor.Unkillable {
			t.Fatalf("%+v", st)
		}
		if err := s.EnsureReady(t.Context(), "w"); err == nil {
			t.Fatal("started beside processes that cannot be ended")
		}
		f.set(func() { f.unkill = false })
		time.Sleep(15 * time.Second)
		if st := state(t, s); st.State != supervisor.Stopped {
			t.Fatalf("%+v, %v", st, j.all())
		}
	})
}

// A call on a tree that survives SIGKILL was waited for as long as the tree
// lived, and the daemon could not stop.
func TestLoop_CallOnAnUnkillableWorkerEnds(t *testing.T) {
	bubble(t, func(t *testing.T, s *supervisor.Supervisor, f *fake, _ *journal) {
		if err := s.EnsureReady(t.Context(), "w"); err != nil {
			t.Fatal(err)
		}
		f.set(func() { f.unkill = true })
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 2)
		for i, c := range []context.Context{ctx, t.Context()} {
			go func() {
				_, err := s.Execute(c, "w", call(fmt.Sprint("hold", i), "x"), newSink())
				ended <- err
			}()
		}
		synctest.Wait()
		cancel()
		var cancelled *supervisor.CallError
		var lost *supervisor.WorkerLostError
		for range 2 {
			if err := <-ended; !errors.As(err, &cancelled) && !errors.As(err, &lost) {
				t.Errorf("got %v", err)
			}
		}
		if cancelled == nil || lost == nil || !strings.Contains(lost.Error(), "blocked in the kernel") {
			t.Errorf("got %v and %v", cancelled, lost)
		}
		f.set(func() { f.unkill = false })
		time.Sleep(15 * time.Second)
		if st := state(t, s); st.State != supervisor.Stopped {
			t.Errorf("%+v", st)
		}
	})
}

// Those who waited for a start whose processes then could not be ended waited on.
func TestLoop_WaitersHearThatAStartCannotBeEnded(t *testing.T) {
	bubble(t, func(t *testing.T, s *supervisor.Supervisor, f *fake, _ *journal) {
		f.set(func() { f.loading, f.unkill = make(chan struct{}), true })
		ended := make(chan error, 1)
		go func() { ended <- s.EnsureReady(t.Context(), "w") }()
		synctest.Wait()
		go func() { _ = s.Kill(t.Context(), "w", "test") }()
		var se *supervisor.StartError
		if err := <-ended; !errors.As(err, &se) || se.Step != "gave_up" {
			t.Errorf("got %v", err)
		}
		f.set(func() { f.unkill = false })
		time.Sleep(15 * time.Second)
		if st := state(t, s); st.State != supervisor.Stopped {
			t.Errorf("%+v", st)
		}
	})
}

// A configuration that came while the worker loaded was called "used by the
// next start", and the worker went on with the old one.
func TestLoop_ConfigureWaitsForAStart(t *testing.T) {
	bubble(t, func(t *testing.T, s *supervisor.Supervisor, f *fake, _ *journal) {
		loading := make(chan struct{})
		f.set(func() { f.loading = loading })
		go func() { _ = s.EnsureReady(t.Context(), "w") }()
		synctest.Wait()
		answer := make(chan supervisor.Applied, 1)
		go func() {
			applied, err := s.Configure(t.Context(), "w", json.RawMessage(`{}`), json.RawMessage(`{"a":1}`))
			if err != nil {
				t.Error(err)
			}
			answer <- applied
		}()
		synctest.Wait()
		if len(answer) > 0 {
			t.Fatalf("answered %q while the worker was loading", <-answer)
		}
		close(loading)
		if got := <-answer; got != supervisor.AppliedInitialized {
			t.Errorf("got %q", got)
		}
	})
}

func TestLoop_ForgetEndsOnlyWhatIsStopped(t *testing.T) {
	bubble(t, func(t *testing.T, s *supervisor.Supervisor, _ *fake, _ *journal) {
		if err := s.EnsureReady(t.Context(), "w"); err != nil {
			t.Fatal(err)
		}
		log, _ := s.Logs("w")
		s.Forget("w")
		if st := state(t, s); st.State != supervisor.ReadyState {
			t.Fatalf("a loaded worker was forgotten: %+v", st)
		}
		if err := s.Stop(t.Context(), "w", "test"); err != nil {
			t.Fatal(err)
		}
		s.Forget("w")
		if _, ok := s.Status("w"); ok {
			t.Error("still known")
		}
		for after := uint64(0); ; {
			lines, _, err := log.Next(t.Context(), after)
			if errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			after = lines[len(lines)-1].Seq
		}
		if err := s.EnsureReady(t.Context(), "w"); err != nil { // made anew under the same name
			t.Error(err)
		}
	})
}

func TestLoop_BusyAndReadyAreJournalledAtMostOncePerSecond(t *testing.T) {
	bubble(t, func(t *testing.T, s *supervisor.Supervisor, _ *fake, j *journal) {
		if err := s.EnsureReady(t.Context(), "w"); err != nil {
			t.Fatal(err)
		}
		for i := range 500 {
			if _, err := s.Execute(t.Context(), "w", call(fmt.Sprint(i), "echo"), newSink()); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(3 * time.Second)
		if n := len(j.all()); n > 8 {
			t.Errorf("%d events: %v", n, j.all())
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _, _ = s.Execute(ctx, "w", call("hold", "x"), newSink()) }()
		time.Sleep(3 * time.Second)
		if all := j.all(); all[len(all)-1] != "ready>busy" {
			t.Errorf("the journal does not end with the truth: %v", all)
		}
		cancel()
	})
}

func TestLoop_SlotsAreCountedAndACallThatMustBeKilledTakesTheOthers(t *testing.T) {
	bubble(t, func(t *testing.T, s *supervisor.Supervisor, _ *fake, _ *journal) {
		if err := s.EnsureReady(t.Context(), "w"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		errs := map[string]chan error{"hold-1": make(chan error, 1), "hold-2": make(chan error, 1)}
		first, second := newSink(), newSink()
		go func() {
			_, err := s.Execute(ctx, "w", call("hold-1", "x"), first)
			errs["hold-1"] <- err
		}()
		go func() {
			_, err := s.Execute(t.Context(), "w", call("hold-2", "x"), second)
			errs["hold-2"] <- err
		}()
		if st := state(t, s); !slices.Equal(st.Calls, []string{"hold-1", "hold-2"}) || st.State != supervisor.Busy {
			t.Fatalf("%+v", st)
		}
		if _, err := s.Execute(t.Context(), "w", call("third", "x"), newSink()); !errors.Is(err, supervisor.ErrNoSlot) {
			t.Errorf("third: %v", err)
		}
		began := time.Now()
		cancel()
		var ce *supervisor.CallError
		if err := <-errs["hold-1"]; !errors.As(err, &ce) || !ce.Cancelled {
			t.Errorf("first: %v", err)
		}
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("the phases took %v", took)
		}
		var lost *supervisor.WorkerLostError
		if err := <-errs["hold-2"]; !errors.As(err, &lost) || lost.Exit.Kind != supervisor.ExitKilledByUs {
			t.Errorf("second: %v", err)
		}
		if len(first.phases) != 3 || len(second.phases) != 0 {
			t.Errorf("phases %v, %v", first.phases, second.phases)
		}
		if st := state(t, s); st.State != supervisor.Stopped || len(st.Calls) != 0 || st.Restarts != 0 {
			t.Errorf("%+v", st)
		}
	})
}

func TestLoop_StopWaitsForCallsAndEnsureReadyAfterItStartsAnew(t *testing.T) {
	bubble(t, func(t *testing.T, s *supervisor.Supervisor, _ *fake, j *journal) {
		if err := s.EnsureReady(t.Context(), "w"); err != nil {
			t.Fatal(err)
		}
		held := make(chan error, 1)
		go func() {
			_, err := s.Execute(t.Context(), "w", call("hold", "x"), newSink())
			held <- err
		}()
		state(t, s)
		stopped := make(chan error, 1)
		began := time.Now()
		go func() { stopped <- s.Stop(t.Context(), "w", "unload") }()
		if st := state(t, s); st.State != supervisor.Draining {
			t.Fatalf("%+v", st)
		}
		if _, err := s.Execute(t.Context(), "w", call("late", "x"), newSink()); !errors.Is(err, supervisor.ErrNotLoaded) {
			t.Errorf("a call of a draining worker: %v", err)
		}
		if err := s.EnsureReady(t.Context(), "w"); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("drained for %v", took)
		}
		if err := <-stopped; err != nil {
			t.Error(err)
		}
		if err := <-held; err == nil {
			t.Error("the held call succeeded")
		}
		if st := state(t, s); st.State != supervisor.ReadyState || st.Generation != 2 {
			t.Errorf("%+v, %v", st, j.all())
		}
	})
}

func TestConfigure_LoadedOrAtTheNextStart(t *testing.T) {
	bubble(t, func(t *testing.T, s *supervisor.Supervisor, _ *fake, _ *journal) {
		if a, err := s.Configure(t.Context(), "w", nil, json.RawMessage(`{}`)); err != nil || a != supervisor.AppliedAtStart {
			t.Errorf("%v, %v", a, err)
		}
		if err := s.EnsureReady(t.Context(), "w"); err != nil {
			t.Fatal(err)
		}
		if a, err := s.Configure(t.Context(), "w", json.RawMessage(`{}`), json.RawMessage(`{}`)); err != nil || a != supervisor.AppliedInitialized {
			t.Errorf("%v, %v", a, err)
		}
	})
}
