package supervisor_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/isolation/tree"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// startError starts the worker and returns how that failed.
func (b *box) startError() *supervisor.StartError {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 20*time.Second)
	defer cancel()
	err := b.EnsureReady(ctx, "w")
	var se *supervisor.StartError
	if !errors.As(err, &se) {
		b.t.Fatalf("got %v, want a StartError", err)
	}
	return se
}

func TestEnsureReady_ExitBeforeReadyIsReportedAtOnceWithStderr(t *testing.T) {
	for _, when := range []string{"before-hello", "in-hello"} {
		t.Run(when, func(t *testing.T) {
			b := setup(t, nil)
			b.worker("-die", when, "-code", "7", "-stderr", "cannot find the model", "-setsid", "1")
			began := time.Now()
			se := b.startError()
			if took := time.Since(began); took > 900*time.Millisecond {
				t.Errorf("took %v", took)
			}
			if se.Step != "hello" || se.Exit == nil || se.Exit.Kind != supervisor.ExitError || se.Exit.Code != 7 {
				t.Errorf("got %+v", se)
			}
			if len(se.Stderr) == 0 || se.Stderr[len(se.Stderr)-1] != "cannot find the model" {
				t.Errorf("stderr %q", se.Stderr)
			}
			if !strings.Contains(se.Error(), "cannot find the model") {
				t.Errorf("message %q", se)
			}
			if st := b.status(); st.State != supervisor.Backoff || st.RetryAt.IsZero() || st.Restarts != 1 {
				t.Errorf("status %+v", st)
			}
		})
	}
}

func TestEnsureReady_WorkersOwnErrorIsPassedOn(t *testing.T) {
	b := setup(t, nil)
	b.worker("-die", "hello-error")
	se := b.startError()
	if se.Step != "load" || se.Call == nil || se.Call.Message != "No module named 'nothing'" || se.Call.Category != "fatal" {
		t.Fatalf("got %+v", se)
	}
}

func TestEnsureReady_ProgramThatDoesNotExist(t *testing.T) {
	for _, s := range []tree.Strategy{tree.Cgroup, tree.PIDNS, tree.Subreaper} {
		t.Run(string(s), func(t *testing.T) {
			b := setup(t, func(_ *supervisor.Options, o *tree.Options) { o.Strategies = []tree.Strategy{s} })
			b.set(func(s *supervisor.Spec) { s.Command = []string{"/no/such/program"} })
			se := b.startError()
			if se.Step != "spawn" || !strings.Contains(se.Error(), "no such file") {
				t.Fatalf("got %+v", se)
			}
			if st := b.status(); st.State != supervisor.Backoff || st.LastExit.Kind != supervisor.ExitStartFailed {
				t.Errorf("status %+v", st)
			}
		})
	}
}

func TestEnsureReady_StallIsEndedAndProgressIsNot(t *testing.T) {
	b := setup(t, nil)
	b.set(func(s *supervisor.Spec) { s.StallTimeout = 300 * time.Millisecond })
	b.worker("-slow", "700ms")
	b.ready() // slower than the stall timeout, but getting on
	if err := b.Stop(t.Context(), "w", "test"); err != nil {
		t.Fatal(err)
	}
	b.worker("-stall", "-fork", "2")
	se := b.startError()
	if se.Step != "stall" {
		t.Fatalf("got %+v", se)
	}
	if st := b.status(); st.LastExit.Kind != supervisor.ExitTimeout {
		t.Errorf("exit %+v", st.LastExit)
	}
	if left := b.survivors(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestEnsureReady_AbsoluteCap(t *testing.T) {
	b := setup(t, nil)
	b.set(func(s *supervisor.Spec) { s.StartCap = 300 * time.Millisecond })
	b.worker("-slow", "20s")
	if se := b.startError(); se.Step != "timeout" {
		t.Fatalf("got %+v", se)
	}
}

func TestEnsureReady_CallersJoinOneStart(t *testing.T) {
	b := setup(t, nil)
	b.worker("-slow", "100ms")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(b.ready)
	}
	wg.Wait()
	if gen := b.status().Generation; gen != 1 {
		t.Errorf("%d processes were started", gen)
	}
}

func TestEnsureReady_CallerThatLeavesDoesNotEndTheStart(t *testing.T) {
	b := setup(t, nil)
	b.worker("-slow", "200ms")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.EnsureReady(ctx, "w"); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	b.journal.wait(t, "initializing>ready")
}

func TestStop_DuringTheStart(t *testing.T) {
	b := setup(t, nil)
	b.worker("-stall")
	failed := make(chan error, 1)
	go func() { failed <- b.EnsureReady(context.Background(), "w") }()
	b.journal.wait(t, "starting>initializing")
	if err := b.Kill(t.Context(), "w", "changed my mind"); err != nil {
		t.Fatal(err)
	}
	var se *supervisor.StartError
	if err := <-failed; !errors.As(err, &se) || se.Step != "stopped" {
		t.Errorf("got %v", err)
	}
	if st := b.status(); st.State != supervisor.Stopped || st.Restarts != 0 {
		t.Errorf("status %+v", st)
	}
}

func TestStop_LeavesNothingWhateverTheWorkerDoes(t *testing.T) {
	for name, flags := range map[string][]string{
		"obedient": {"-fork", "2", "-setsid", "2"},
		"stubborn": {"-ignore", "-fork", "3", "-setsid", "3"},
	} {
		for _, s := range []tree.Strategy{tree.Cgroup, tree.PIDNS, tree.Subreaper} {
			t.Run(name+"/"+string(s), func(t *testing.T) {
				b := setup(t, func(_ *supervisor.Options, o *tree.Options) { o.Strategies = []tree.Strategy{s} })
				b.set(func(s *supervisor.Spec) { s.StopGrace = 300 * time.Millisecond })
				b.worker(flags...)
				b.ready()
				if n := len(b.survivors()); n < 5 {
					t.Fatalf("only %d processes", n)
				}
				began := time.Now()
				if err := b.Stop(t.Context(), "w", "test"); err != nil {
					t.Fatal(err)
				}
				t.Logf("stopped after %v", time.Since(began))
				if left := b.survivors(); len(left) > 0 {
					t.Errorf("left: %v", left)
				}
				st := b.status()
				if want := map[string]supervisor.ExitKind{"obedient": supervisor.ExitOK, "stubborn": supervisor.ExitKilledByUs}[name]; st.LastExit.Kind != want {
					t.Errorf("exit %+v", st.LastExit)
				}
				b.ready()
			})
		}
	}
}

func TestCrash_CallGetsTheFactsAndTheNextStartWaits(t *testing.T) {
	for name, c := range map[string]struct {
		args []any
		kind supervisor.ExitKind
		text string
	}{
		"exit code":  {[]any{"exit", 3}, supervisor.ExitError, "exit code 3"},
		"signal":     {[]any{"signal", int(syscall.SIGSEGV)}, supervisor.ExitError, ""},
		"kill":       {[]any{"signal", int(syscall.SIGKILL)}, supervisor.ExitSignal, "killed by SIGKILL"},
		"half frame": {[]any{"half-frame"}, supervisor.ExitOK, ""},
		"garbage":    {[]any{"garbage"}, supervisor.ExitKilledByUs, "protocol error"},
	} {
		t.Run(name, func(t *testing.T) {
			b := setup(t, nil)
			b.worker("-setsid", "1")
			b.ready()
			_, err := b.Execute(t.Context(), "w", call("1", c.args...), newSink())
			var lost *supervisor.WorkerLostError
			if !errors.As(err, &lost) {
				t.Fatalf("got %v", err)
			}
			if lost.Exit.Kind != c.kind || !strings.Contains(lost.Error(), c.text) {
				t.Errorf("got %v (%+v)", lost, lost.Exit)
			}
			if name == "exit code" && (len(lost.Stderr) == 0 || lost.Stderr[0] != "last words") {
				t.Errorf("stderr %q", lost.Stderr)
			}
			if left := b.survivors(); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			se := b.startError()
			if se.Step != "backoff" || time.Until(se.RetryAt) > time.Second {
				t.Fatalf("got %+v", se)
			}
			b.journal.wait(t, "backoff>stopped")
			b.ready()
		})
	}
}

func TestBackoff_GivesUpAndResetStartsAfresh(t *testing.T) {
	b := setup(t, func(o *supervisor.Options, _ *tree.Options) {
		p := supervisor.DefaultRestart()
		p.Base, p.MaxFailures = 10*time.Millisecond, 2
		o.Restart = p
	})
	b.worker("-die", "before-hello")
	for b.startError().Step != "gave_up" {
		st := b.status()
		if st.State == supervisor.Backoff {
			time.Sleep(time.Until(st.RetryAt))
		}
	}
	if st := b.status(); st.State != supervisor.FailedState || st.Restarts != 3 {
		t.Fatalf("status %+v", st)
	}
	b.worker()
	if se := b.startError(); se.Step != "gave_up" || se.Exit == nil {
		t.Fatalf("got %+v", se)
	}
	b.Reset("w")
	b.ready()
}

func TestLiveness_SilentWorkerTakesNoCallsUntilItAnswers(t *testing.T) {
	b := setup(t, func(o *supervisor.Options, _ *tree.Options) {
		o.PingEvery, o.PongTimeout = 30*time.Millisecond, 200*time.Millisecond
	})
	b.ready()
	pid := b.status().PID
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	b.journal.wait(t, "ready>unresponsive")
	if _, err := b.Execute(t.Context(), "w", call("1", "echo"), newSink()); !errors.Is(err, supervisor.ErrNotLoaded) {
		t.Errorf("call of an unresponsive worker: %v", err)
	}
	waited := make(chan struct{})
	go func() {
		defer close(waited)
		b.ready()
	}()
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	<-waited
	if st := b.status(); st.Generation != 1 {
		t.Errorf("was restarted: %+v", st)
	}
}

func TestLiveness_FrozenWorkerIsReplaced(t *testing.T) {
	b := setup(t, func(o *supervisor.Options, _ *tree.Options) {
		o.PingEvery, o.PongTimeout, o.FrozenAfter = 30*time.Millisecond, 150*time.Millisecond, 200*time.Millisecond
	})
	b.ready()
	_, err := b.Execute(t.Context(), "w", call("1", "freeze"), newSink())
	var lost *supervisor.WorkerLostError
	if !errors.As(err, &lost) || lost.Exit.Kind != supervisor.ExitTimeout {
		t.Fatalf("got %v", err)
	}
	b.journal.wait(t, "killing>backoff")
}

func TestIsolation_WhatIsRequiredAndMissingRefusesTheStart(t *testing.T) {
	b := setup(t, nil)
	b.set(func(s *supervisor.Spec) { s.Isolation.Require = []string{"memory"}; s.Limits.MemoryMax = 1 << 30 })
	se := b.startError()
	if se.Step != "isolation" || !strings.Contains(se.Error(), "memory") {
		t.Fatalf("got %+v", se)
	}
	if st := b.status(); st.State != supervisor.FailedState || st.LastExit.Kind != supervisor.ExitIsolation {
		t.Errorf("status %+v", st)
	}
	b.set(func(s *supervisor.Spec) { s.Isolation = supervisor.IsolationWish{Tier: "2"} })
	b.Reset("w")
	if se := b.startError(); se.Step != "isolation" || !strings.Contains(se.Error(), "contained") {
		t.Fatalf("got %+v", se)
	}
}

// A limit that this tier does not hold is no reason not to start, but is told.
func TestIsolation_AWorkerWeakerThanAskedForIsTold(t *testing.T) {
	b := setup(t, nil)
	b.set(func(s *supervisor.Spec) { s.Isolation.Tier = "basic"; s.Limits.MemoryMax = 1 << 30 })
	b.worker()
	b.ready()
	b.journal.wait(t, "worker.weaker")
	st := b.status()
	missing := st.Weaker()
	if st.Tier != "basic" || len(missing) != 1 || missing[0].Mechanism != "memory" || missing[0].Detail == "" {
		t.Errorf("tier %q, missing %+v", st.Tier, missing)
	}
}

func TestTiers_SayWhatIsMissing(t *testing.T) {
	b := setup(t, nil)
	auto := 0
	for _, tier := range b.Tiers(t.Context()) {
		if tier.Auto {
			auto++
			if tier.Why != "" || tier.Name == "sandboxed" {
				t.Errorf("auto is %+v", tier)
			}
		}
	}
	if auto != 1 {
		t.Errorf("%d tiers are what auto means", auto)
	}
}

func TestRun_StopsEverythingAndRefusesCalls(t *testing.T) {
	b := setup(t, nil)
	b.worker("-fork", "2", "-setsid", "2")
	b.ready()
	for _, name := range []string{"x", "y"} {
		if err := b.EnsureReady(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(b.List()); n != 3 {
		t.Errorf("%d workers", n)
	} // setup's cleanup checks that nothing is left
}
