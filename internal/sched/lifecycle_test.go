package sched_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/supervisor"
)

func TestLoad_GoesThroughTheLedger(t *testing.T) {
	bubble(t, func(b *box) {
		b.gate.set(func(g *fakeGate) { g.snap = snapshot(10 * gib) })
		b.catalog.declare("a", ram(8*1024))
		b.catalog.declare("b", ram(8*1024), pinned)
		if err := b.Load(b.t.Context(), "b"); err != nil {
			t.Fatal(err)
		}
		var refused *sched.RefusedError
		if err := b.Load(b.t.Context(), "a"); !errors.As(err, &refused) || len(refused.Reason.Shortfall) != 1 {
			t.Errorf("load beyond memory: %v", err)
		}
		if b.workers.starts["a"] != 0 {
			t.Error("the worker was started all the same")
		}
		if err := b.Load(b.t.Context(), "b"); err != nil || b.workers.starts["b"] != 1 {
			t.Errorf("loading a loaded worker: %v, %d starts", err, b.workers.starts["b"])
		}
	})
}

func TestLoad_ManyAtOnceShareOneStart(t *testing.T) {
	bubble(t, func(b *box) {
		gate := make(chan struct{})
		b.workers.load = func(context.Context, string) error { <-gate; return nil }
		b.catalog.declare("a")
		b.catalog.declare("b")
		answers := make(chan error, 4)
		for i := range 4 {
			go func() { answers <- b.Load(b.t.Context(), []string{"a", "b"}[i%2]) }()
		}
		synctest.Wait()
		if len(b.State().Runs) != 2 {
			t.Errorf("runs %+v: the two loads wait for each other", b.State().Runs)
		}
		close(gate)
		for range 4 {
			if err := <-answers; err != nil {
				t.Error(err)
			}
		}
		if b.workers.starts["a"] != 1 || b.workers.starts["b"] != 1 {
			t.Errorf("starts %v", b.workers.starts)
		}
	})
}

func TestLoad_TellsTheErrorAndRefusesTheUnknownAndDisabled(t *testing.T) {
	bubble(t, func(b *box) {
		b.workers.load = func(context.Context, string) error {
			return &supervisor.StartError{Instance: "a", Step: "load", Call: &supervisor.CallError{Message: "boom"}}
		}
		b.catalog.declare("a", ram(1024))
		var start *supervisor.StartError
		if err := b.Load(b.t.Context(), "a"); !errors.As(err, &start) {
			t.Errorf("error %v", err)
		}
		if len(b.State().Claims) != 0 {
			t.Errorf("claims %+v", b.State().Claims)
		}
		if err := b.Load(b.t.Context(), "nowhere"); err == nil {
			t.Error("an unknown plugin was loaded")
		}
		if err := b.Disable(b.t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		var disabled *sched.DisabledError
		if err := b.Load(b.t.Context(), "a"); !errors.As(err, &disabled) {
			t.Errorf("error %v", err)
		}
	})
}

func TestLoad_ACallerWhoLeavesWithdrawsAWaitingLoad(t *testing.T) {
	bubble(t, func(b *box) {
		b.gate.set(func(g *fakeGate) { g.snap = snapshot(gib) })
		b.catalog.declare("a", ram(8*1024))
		ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
		defer cancel()
		if err := b.Load(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		b.gate.set(func(g *fakeGate) { g.snap = snapshot(12 * gib) })
		synctest.Wait()
		if b.workers.starts["a"] != 0 {
			t.Error("the worker was started for nobody")
		}
	}, func(o *sched.Options) { o.Policy = "queue" })
}

func TestUnload_WaitsForTheCallsInFlight(t *testing.T) {
	bubble(t, func(b *box) {
		release := hold(b)
		b.catalog.declare("a", ram(1024))
		b.queue.add("1", "a")
		b.queue.add("2", "a")
		b.want("1", jobs.Running)
		done := make(chan error, 1)
		go func() { done <- b.Unload(b.t.Context(), "a", "by hand") }()
		if blk := b.wantBlock("a", "no_slot"); !strings.Contains(blk.Sentence, "by hand") {
			t.Errorf("sentence %q", blk.Sentence)
		}
		if len(b.workers.stops) != 0 {
			t.Fatalf("stopped %v under a running job", b.workers.stops)
		}
		release()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		b.want("1", jobs.Completed)
		b.want("2", jobs.Completed) // on a fresh worker
		if b.workers.starts["a"] != 2 || fmt.Sprint(b.workers.stops) != "[a: by hand]" {
			t.Errorf("starts %v, stops %v", b.workers.starts, b.workers.stops)
		}
		if err := b.Unload(b.t.Context(), "a", "again"); err != nil {
			t.Fatal(err)
		}
		if c := b.State().Claims; len(c) != 0 {
			t.Errorf("claims %+v after the unload", c)
		}
	})
}

func TestUnload_ByForceDoesNotWait(t *testing.T) {
	bubble(t, func(b *box) {
		ended := make(chan struct{})
		b.workers.exec = func(context.Context, string, supervisor.Call) (supervisor.Result, error) {
			<-ended
			return supervisor.Result{}, &supervisor.WorkerLostError{Exit: supervisor.Exit{Kind: supervisor.ExitKilledByUs}}
		}
		b.catalog.declare("a")
		b.queue.add("1", "a", oneAttempt)
		b.want("1", jobs.Running)
		if err := b.ForceUnload(b.t.Context(), "a", "by force"); err != nil {
			t.Fatal(err)
		}
		close(ended)
		b.want("1", jobs.Failed)
	})
}

func TestUnload_ACallerWhoLeavesLetsTheWorkerStay(t *testing.T) {
	bubble(t, func(b *box) {
		release := hold(b)
		b.catalog.declare("a")
		b.queue.add("1", "a")
		b.want("1", jobs.Running)
		ctx, cancel := context.WithTimeout(b.t.Context(), time.Second)
		defer cancel()
		if err := b.Unload(ctx, "a", "x"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		release()
		b.want("1", jobs.Completed)
		if len(b.workers.stops) != 0 {
			t.Errorf("stops %v", b.workers.stops)
		}
	})
}

func TestReload_StopsAndStarts(t *testing.T) {
	bubble(t, func(b *box) {
		b.catalog.declare("a")
		for range 2 {
			if err := b.Reload(b.t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
		}
		if b.workers.starts["a"] != 2 || len(b.workers.reset) != 2 {
			t.Errorf("starts %v, resets %v", b.workers.starts, b.workers.reset)
		}
	})
}

func TestLoadAll_AndUnloadAll(t *testing.T) {
	bubble(t, func(b *box) {
		b.catalog.declare("a")
		b.catalog.declare("b", ram(64*1024))
		b.catalog.declare("off", func(in *plugins.Instance, _ *plugins.Manifest) { in.Enabled = false })
		got := b.LoadAll(b.t.Context())
		if len(got) != 2 || got["a"] != nil || got["b"] == nil {
			t.Errorf("answers %v", got)
		}
		if got := b.UnloadAll(b.t.Context(), "all"); len(got) != 1 || got["a"] != nil {
			t.Errorf("answers %v", got)
		}
	})
}

func TestConfigure_AFailedUpdateLeavesTheOldInForce(t *testing.T) {
	bubble(t, func(b *box) {
		b.catalog.declare("a")
		in, _, applied, err := b.Configure(b.t.Context(), "a", []byte(`{"x":1}`))
		if err != nil || applied != supervisor.AppliedReconfigured || string(in.Config) != `{"x":1}` {
			t.Errorf("%s %s %v", in.Config, applied, err)
		}
		b.workers.configure = &supervisor.CallError{Message: "x must be odd"}
		var call *supervisor.CallError
		if _, _, _, err := b.Configure(b.t.Context(), "a", []byte(`{"x":2}`)); !errors.As(err, &call) {
			t.Errorf("error %v", err)
		}
		if in, _, _ := b.catalog.Instance("a"); string(in.Config) != `{"x":1}` {
			t.Errorf("stored config %s", in.Config)
		}
		b.workers.configure = nil
		b.catalog.broken = errors.New("disk full")
		if _, _, _, err := b.Configure(b.t.Context(), "a", []byte(`{"x":3}`)); err == nil {
			t.Error("a config that could not be stored was accepted")
		}
		if got := b.workers.configs; got[len(got)-1] != `{"x":1}` {
			t.Errorf("the worker was left with %s", got[len(got)-1])
		}
	})
}

func TestDisable_LetsRunningJobsFinishAndTellsTheWorker(t *testing.T) {
	bubble(t, func(b *box) {
		release := hold(b)
		b.catalog.declare("a")
		b.queue.add("1", "a")
		b.want("1", jobs.Running)
		b.workers.set("a", supervisor.ReadyState, func(s *supervisor.Status) { s.Ready = &supervisor.Ready{Capabilities: []string{"disable"}} })
		if err := b.Disable(b.t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		b.queue.add("2", "a")
		release()
		b.want("1", jobs.Completed)
		b.want("2", jobs.Pending)
		b.wantBlock("a", "disabled")
		if !slices.Contains(b.workers.requests, "a.disable") {
			t.Errorf("requests %v", b.workers.requests)
		}
	})
}

// Seen: disabling a plugin without the hook waited for the end of its running
// job, because a busy worker answers when its call is over.
func TestDisable_AsksNothingOfAWorkerWithoutTheHook(t *testing.T) {
	bubble(t, func(b *box) {
		b.catalog.declare("a")
		b.workers.set("a", supervisor.ReadyState, func(s *supervisor.Status) { s.Ready = &supervisor.Ready{Capabilities: []string{"stream"}} })
		if err := b.Disable(b.t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if len(b.workers.requests) != 0 {
			t.Errorf("requests %v", b.workers.requests)
		}
	})
}

func TestExplain_GivesTheReasonAndTheNumbers(t *testing.T) {
	bubble(t, func(b *box) {
		b.gate.set(func(g *fakeGate) { g.snap = snapshot(gib) })
		b.catalog.declare("a", ram(8*1024))
		b.queue.add("1", "a")
		b.queue.add("2", "a")
		synctest.Wait()
		e, err := b.Explain(b.t.Context(), "2")
		if err != nil || e.Block == nil || e.Block.Code != "resource" || e.Ahead != 1 || e.FreeRAM != gib || e.Needs.MinRAM != 8*gib || e.Monitor != "cpu" {
			t.Errorf("%+v, %v", e, err)
		}
		if !strings.Contains(e.Summary, "a needs 8192 MiB") || !strings.HasSuffix(e.Summary, "1 job of a comes first") {
			t.Errorf("summary %q", e.Summary)
		}
		if _, err := b.Explain(b.t.Context(), "none"); !errors.Is(err, jobs.ErrNotFound) {
			t.Errorf("error %v", err)
		}
		st := b.State()
		if st.Waiting["resource"] != 1 || st.Policy != "queue" || len(st.Policies) != 3 || st.LastPass.IsZero() || st.Passes == 0 {
			t.Errorf("state %+v", st)
		}
		var unknown *sched.PolicyError
		if err := b.SetPolicy(b.t.Context(), "lottery"); !errors.As(err, &unknown) {
			t.Errorf("error %v", err)
		}
	}, func(o *sched.Options) { o.Policy = "queue" })
}

func TestPreview_DecidesAndDoesNothing(t *testing.T) {
	bubble(t, func(b *box) {
		hold(b)
		b.gate.set(func(g *fakeGate) { g.snap = snapshot(10 * gib) })
		b.catalog.declare("idle", ram(8*1024))
		b.catalog.declare("big", ram(9*1024))
		b.catalog.declare("busy")
		if err := b.Load(b.t.Context(), "idle"); err != nil {
			t.Fatal(err)
		}
		b.queue.add("1", "busy")
		b.queue.add("2", "busy")
		b.want("1", jobs.Running)
		plan, err := b.Preview(b.t.Context(), "big")
		if err != nil || len(plan.Evict) != 1 || plan.Evict[0].Instance != "idle" || len(plan.Block) != 1 || plan.Block["big"] == nil {
			t.Errorf("plan %+v, %v", plan, err)
		}
		plan, err = b.Preview(b.t.Context(), "")
		if err != nil || len(plan.Evict) != 0 || plan.Block["busy"] == nil || plan.Block["busy"].Code != "no_slot" {
			t.Errorf("plan %+v, %v", plan, err)
		}
		synctest.Wait()
		if len(b.workers.stops) != 0 || b.workers.starts["big"] != 0 {
			t.Errorf("a preview stopped %v, started %v", b.workers.stops, b.workers.starts)
		}
	})
}

func TestSupervised_AWorkerNobodyHereStartedIsAccountedFor(t *testing.T) {
	bubble(t, func(b *box) {
		b.catalog.declare("a", ram(4*1024))
		b.workers.set("a", supervisor.ReadyState)
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		if st := b.State(); len(st.Claims) != 1 || st.FreeRAM != 12*gib {
			t.Errorf("state %+v", st)
		}
		b.workers.set("a", supervisor.Stopped)
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		if st := b.State(); len(st.Claims) != 0 || st.FreeRAM != 16*gib {
			t.Errorf("state %+v", st)
		}
	})
}
