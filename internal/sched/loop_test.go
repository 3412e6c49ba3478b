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
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// bubble runs f with a scheduler in virtual time.
func bubble(t *testing.T, f func(b *box), change ...func(*sched.Options)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := setup(t, change...)
		f(b)
		b.close()
	})
}

// hold makes every call wait until release is called; it obeys cancel.
func hold(b *box) (release func()) {
	gate := make(chan struct{})
	b.workers.exec = func(ctx context.Context, _ string, _ supervisor.Call) (supervisor.Result, error) {
		select {
		case <-gate:
			return supervisor.Result{Payload: []byte("1")}, nil
		case <-ctx.Done():
			return supervisor.Result{Payload: []byte("part"), Cancelled: true}, nil
		}
	}
	return func() { close(gate) }
}

// Seen: of jobs that were admitted together on a cold worker all but the first
// were told to execute while it loaded, and could not be told to load any more.
func TestLoop_JobsAdmittedBesideALoadAreLoading(t *testing.T) {
	bubble(t, func(b *box) {
		b.workers.load = func(context.Context, string) error { time.Sleep(time.Minute); return nil }
		b.catalog.declare("a", slots(2))
		b.queue.add("1", "a")
		b.queue.add("2", "a")
		time.Sleep(2 * time.Minute)
		b.want("1", jobs.Completed)
		b.want("2", jobs.Completed)
		for _, id := range []jobs.ID{"1", "2"} {
			if got := fmt.Sprint(b.queue.phases[id]); got != "[loading executing]" {
				t.Errorf("phases of job %s: %s", id, got)
			}
			if w := b.queue.admitted[id]; w != "" {
				t.Errorf("job %s was admitted on worker %q, which was not there yet", id, w)
			}
		}
	})
}

func TestLoop_RunsAJobThroughLoadAndCall(t *testing.T) {
	bubble(t, func(b *box) {
		b.catalog.declare("a")
		b.queue.add("1", "a")
		b.want("1", jobs.Completed)
		b.queue.add("2", "a")
		b.want("2", jobs.Completed)
		if b.workers.starts["a"] != 1 {
			t.Errorf("worker was started %d times, want once", b.workers.starts["a"])
		}
		if got := fmt.Sprint(b.queue.phases["1"]); got != "[loading executing]" {
			t.Errorf("phases of the first job: %s", got)
		}
		if got := len(b.queue.phases["2"]); got != 0 {
			t.Errorf("a job on a warm worker wrote %d phases, want none", got)
		}
	})
}

func TestLoop_OrderIsPriorityThenSubmission(t *testing.T) {
	bubble(t, func(b *box) {
		release := hold(b)
		b.catalog.declare("a")
		b.queue.add("first", "a")
		b.want("first", jobs.Running)
		for i, p := range []int{0, 5, 99, 5} {
			b.queue.add(jobs.ID(fmt.Sprint(i)), "a", priority(p))
		}
		b.wantBlock("a", "no_slot")
		release()
		b.want("0", jobs.Completed)
		if got := fmt.Sprint(b.workers.order); got != "[first 2 1 3 0]" {
			t.Errorf("order %s", got)
		}
	})
}

func TestLoop_ConcurrencyAndHostSlotsBoundRuns(t *testing.T) {
	bubble(t, func(b *box) {
		release := hold(b)
		b.catalog.declare("a", slots(2))
		b.catalog.declare("b", slots(4))
		for i := range 6 {
			b.queue.add(jobs.ID(fmt.Sprint("a", i)), "a")
			b.queue.add(jobs.ID(fmt.Sprint("b", i)), "b")
		}
		synctest.Wait()
		if len(b.State().Runs) != 3 {
			t.Errorf("%d runs, want the 3 slots of the host", len(b.State().Runs))
		}
		b.wantBlock("b", "no_slot")
		release()
		b.want("b5", jobs.Completed)
		b.want("a5", jobs.Completed)
		if b.workers.most["a"] > 2 {
			t.Errorf("%d calls at once on a worker of 2 slots", b.workers.most["a"])
		}
	}, func(o *sched.Options) { o.Slots = 3 })
}

func TestLoop_OneBlockedPluginHindersNobody(t *testing.T) {
	bubble(t, func(b *box) {
		b.catalog.declare("big", ram(64*1024))
		b.catalog.declare("off")
		if err := b.Disable(b.t.Context(), "off"); err != nil {
			t.Fatal(err)
		}
		b.catalog.declare("small")
		b.queue.add("x", "off", priority(9))
		b.queue.add("y", "nowhere", priority(9))
		b.queue.add("z", "small")
		b.want("z", jobs.Completed)
		b.wantBlock("off", "disabled")
		b.wantBlock("nowhere", "unknown_plugin")
		if err := b.Enable(b.t.Context(), "off"); err != nil {
			t.Fatal(err)
		}
		b.want("x", jobs.Completed)
		b.catalog.declare("nowhere")
		b.want("y", jobs.Completed)
	})
}

func TestLedger_TwoLoadsNeverGetTheSameMemory(t *testing.T) {
	bubble(t, func(b *box) {
		release := hold(b)
		b.gate.set(func(g *fakeGate) { g.snap = snapshot(10 * gib) })
		b.catalog.declare("a", ram(8*1024))
		b.catalog.declare("b", ram(8*1024))
		b.queue.add("1", "a")
		b.queue.add("2", "b")
		b.want("1", jobs.Running)
		blk := b.wantBlock("b", "resource")
		if !slices.Contains(blk.Holders, "a") || len(blk.Needs) != 1 || blk.Needs[0].Needed != 8*gib || blk.Needs[0].Available != 2*gib {
			t.Errorf("block %+v", blk)
		}
		if !strings.Contains(blk.Sentence, "b needs 8192 MiB of memory, 2048 MiB may be used") {
			t.Errorf("sentence %q", blk.Sentence)
		}
		release()
		b.want("2", jobs.Pending)
		// The idle worker of a is stopped for b; its memory must be seen back first.
		if !slices.Contains(b.workers.stops, "a: evicted for b") {
			t.Fatalf("stops %v", b.workers.stops)
		}
		b.want("2", jobs.Pending)
		time.Sleep(time.Millisecond)
		b.gate.set(func(g *fakeGate) { g.snap = snapshot(10 * gib) })
		b.want("2", jobs.Completed)
	}, func(o *sched.Options) { o.Policy = "queue" })
}

func TestLedger_AResidentWorkersMemoryCountsForItsOwnJobs(t *testing.T) {
	bubble(t, func(b *box) {
		b.catalog.declare("a", ram(14*1024))
		b.queue.add("1", "a")
		b.want("1", jobs.Completed)
		// The model is in memory: 2 GiB are left, the next job needs none of them.
		b.workers.set("a", supervisor.ReadyState, func(s *supervisor.Status) { s.RSS = int64(14 * gib) })
		b.gate.set(func(g *fakeGate) { g.snap = snapshot(2 * gib) })
		b.queue.add("2", "a")
		b.want("2", jobs.Completed)
	})
}

func TestLedger_WhatAWorkerGrewSinceTheReadingIsNotCredited(t *testing.T) {
	bubble(t, func(b *box) {
		b.catalog.declare("a", ram(8*1024))
		b.catalog.declare("b", ram(8*1024))
		b.queue.add("1", "a")
		b.want("1", jobs.Completed)
		// The worker uses its 8 GiB by now, but the newest reading is older than that.
		b.workers.set("a", supervisor.ReadyState, func(s *supervisor.Status) { s.RSS = int64(8 * gib) })
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		if got := b.State().FreeRAM; got != 8*gib {
			t.Errorf("free %v MiB, want 8192: 16 GiB of the old reading minus the claim", got.MB())
		}
		b.gate.set(func(g *fakeGate) { g.snap = snapshot(8 * gib) })
		synctest.Wait()
		b.gate.set(func(g *fakeGate) { g.snap = snapshot(8 * gib) })
		synctest.Wait()
		if got := b.State().FreeRAM; got != 8*gib {
			t.Errorf("free %v MiB after two readings, want 8192", got.MB())
		}
	})
}

func TestLedger_MarginIsKept(t *testing.T) {
	bubble(t, func(b *box) {
		b.catalog.declare("a", ram(15*1024))
		b.queue.add("1", "a")
		j := b.want("1", jobs.Failed)
		if j.Error.Category != jobs.ResourceCat || len(j.Error.Shortfall) != 1 || j.Error.Shortfall[0].Available != 14*gib {
			t.Errorf("error %+v", j.Error)
		}
	}, func(o *sched.Options) { o.RAMMargin = 2 * gib })
}

func TestSafety_RefusesAtOnceWithTheShortfall(t *testing.T) {
	bubble(t, func(b *box) {
		b.gate.set(func(g *fakeGate) { g.snap = snapshot(1 * gib) })
		b.catalog.declare("a", ram(4*1024))
		b.queue.add("1", "a")
		j := b.want("1", jobs.Failed)
		if j.Error.Category != jobs.ResourceCat || !j.Error.Retriable || j.Attempt != 0 {
			t.Errorf("job %+v error %+v", j, j.Error)
		}
	})
}

func TestQueuePolicy_WaitsUntilItFits(t *testing.T) {
	bubble(t, func(b *box) {
		b.gate.set(func(g *fakeGate) { g.snap = snapshot(1 * gib) })
		b.catalog.declare("a", ram(4*1024))
		b.queue.add("1", "a")
		b.wantBlock("a", "resource")
		time.Sleep(200 * time.Second)
		b.want("1", jobs.Pending)
		b.gate.set(func(g *fakeGate) { g.snap = snapshot(6 * gib) })
		b.want("1", jobs.Completed)
		if b.queue.block("a") != nil {
			t.Errorf("block is still there: %+v", b.queue.block("a"))
		}
	}, func(o *sched.Options) { o.Policy = "queue" })
}

func TestQueuePolicy_GivesUpAfterItsTimeout(t *testing.T) {
	bubble(t, func(b *box) {
		b.gate.set(func(g *fakeGate) { g.snap = snapshot(1 * gib) })
		b.catalog.declare("a", ram(4*1024))
		b.queue.add("1", "a")
		b.wantBlock("a", "resource")
		time.Sleep(299 * time.Second)
		b.want("1", jobs.Pending)
		b.queue.add("2", "a")
		time.Sleep(time.Second)
		j := b.want("1", jobs.Failed)
		if j.Error.Category != jobs.ResourceCat || !strings.Contains(j.Error.Message, "waited 5m0s") {
			t.Errorf("error %+v", j.Error)
		}
		b.want("2", jobs.Pending)
		time.Sleep(299 * time.Second)
		b.want("2", jobs.Failed)
	}, func(o *sched.Options) { o.Policy = "queue" })
}

func TestStaleMonitor_HoldsWhatNeedsAFactAndRecovers(t *testing.T) {
	bubble(t, func(b *box) {
		b.gate.set(func(g *fakeGate) { g.fresh = false })
		b.catalog.declare("needs", ram(1024))
		b.catalog.declare("light")
		b.queue.add("1", "needs")
		b.queue.add("2", "light")
		b.want("2", jobs.Completed)
		if blk := b.wantBlock("needs", "stale_monitor"); !strings.Contains(blk.Sentence, "cpu is silent") {
			t.Errorf("sentence %q", blk.Sentence)
		}
		if err := b.SetPolicy(b.t.Context(), "permissive"); err != nil {
			t.Fatal(err)
		}
		b.want("1", jobs.Completed)
		if err := b.SetPolicy(b.t.Context(), "safety"); err != nil {
			t.Fatal(err)
		}
		b.catalog.declare("later", ram(1024))
		b.queue.add("3", "later")
		b.wantBlock("later", "stale_monitor")
		b.gate.set(func(g *fakeGate) { g.fresh = true })
		b.want("3", jobs.Completed)
	})
}

func TestEviction_NeverTakesABusyOrPinnedWorkerNorTheMonitors(t *testing.T) {
	bubble(t, func(b *box) {
		b.catalog.declare("busy", ram(4*1024))
		b.catalog.declare("pinned", ram(4*1024), pinned)
		b.catalog.declare("cpu", ram(4*1024))
		b.catalog.declare("big", ram(12*1024))
		for _, n := range []string{"pinned", "cpu"} {
			if err := b.Load(b.t.Context(), n); err != nil {
				t.Fatal(err)
			}
		}
		hold(b)
		b.queue.add("1", "busy")
		b.want("1", jobs.Running)
		b.queue.add("2", "big")
		b.want("2", jobs.Failed)
		if len(b.workers.stops) != 0 {
			t.Errorf("stopped %v", b.workers.stops)
		}
		b.queue.cancel("1")
		b.want("1", jobs.Cancelled)
	})
}

func TestCancel_RunningJobEndsCancelledWithItsPartialResult(t *testing.T) {
	bubble(t, func(b *box) {
		hold(b)
		b.catalog.declare("a")
		b.queue.add("1", "a")
		b.want("1", jobs.Running)
		b.queue.cancel("1")
		j := b.want("1", jobs.Cancelled)
		if j.Result == nil || !j.Result.Partial {
			t.Errorf("result %+v, want the partial one", j.Result)
		}
	})
}

func TestCancel_WhileLoading(t *testing.T) {
	bubble(t, func(b *box) {
		b.workers.load = func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
		b.catalog.declare("a", ram(1024))
		b.queue.add("1", "a")
		b.want("1", jobs.Running)
		b.queue.cancel("1")
		b.want("1", jobs.Cancelled)
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		if c := b.State().Claims; len(c) != 0 {
			t.Errorf("claims %+v are left", c)
		}
		if b.queue.job("1").Error.Category != jobs.CancelledCat {
			t.Errorf("error %+v", b.queue.job("1").Error)
		}
	})
}

func TestRunTimeout_CountsFromExecutionAndFailsWithTimeout(t *testing.T) {
	bubble(t, func(b *box) {
		hold(b)
		b.workers.load = func(ctx context.Context, _ string) error { time.Sleep(time.Minute); return nil }
		b.catalog.declare("a")
		b.queue.add("1", "a", func(s *jobs.Spec) { s.RunTimeout = 10 * time.Second })
		time.Sleep(69 * time.Second)
		b.want("1", jobs.Running)
		time.Sleep(time.Second)
		j := b.want("1", jobs.Failed)
		if j.Error.Category != jobs.Timeout || j.Result == nil || !j.Result.Partial {
			t.Errorf("error %+v result %+v", j.Error, j.Result)
		}
	})
}

func TestShutdown_LetsRunsFinishThenInterruptsTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := setup(t)
		release := hold(b)
		b.catalog.declare("a", slots(2))
		b.queue.add("1", "a")
		b.want("1", jobs.Running)
		b.stopAdmit()
		synctest.Wait()
		b.queue.add("late", "a")
		b.want("late", jobs.Pending)
		if err := b.Load(b.t.Context(), "a"); !errors.Is(err, sched.ErrStopping) {
			t.Errorf("Load while stopping: %v", err)
		}
		release()
		b.want("1", jobs.Completed)
		if err := <-b.ended; err != nil {
			t.Fatal(err)
		}
		b.stopWork()
		if st := b.State(); st.Policy != "safety" {
			t.Errorf("state after the end %+v", st)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		b := setup(t)
		hold(b)
		b.catalog.declare("a")
		b.queue.add("1", "a")
		b.want("1", jobs.Running)
		b.close()
		b.want("1", jobs.Pending)
		if b.queue.job("1").Attempt != 1 {
			t.Errorf("attempt %d", b.queue.job("1").Attempt)
		}
	})
}

func TestStore_AFullDiskDelaysTheOutcomeButNotTheNextJob(t *testing.T) {
	bubble(t, func(b *box) {
		b.catalog.declare("a")
		b.queue.mu.Lock()
		b.queue.broken = fmt.Errorf("disk full: %w", jobs.ErrStoreUnavailable)
		b.queue.mu.Unlock()
		b.queue.add("1", "a")
		b.queue.add("2", "a")
		b.want("1", jobs.Running)
		synctest.Wait()
		if len(b.workers.order) != 2 {
			t.Errorf("calls %v: the slot waited for the disk", b.workers.order)
		}
		b.queue.mu.Lock()
		b.queue.broken = nil
		b.queue.mu.Unlock()
		time.Sleep(time.Second)
		b.want("1", jobs.Completed)
		b.want("2", jobs.Completed)
	})
}

func TestGate_SamplesFastOnlyWhileSomethingRuns(t *testing.T) {
	bubble(t, func(b *box) {
		release := hold(b)
		b.catalog.declare("a")
		b.queue.add("1", "a")
		b.want("1", jobs.Running)
		release()
		b.want("1", jobs.Completed)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := fmt.Sprint(b.gate.active); got != "[true false]" {
			t.Errorf("SetActive calls %s", got)
		}
	})
}

func TestHeartbeat_MovesWhileNothingHappens(t *testing.T) {
	bubble(t, func(b *box) {
		first := b.Heartbeat()
		if first.IsZero() {
			t.Fatal("no pass yet")
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if late := time.Since(b.Heartbeat()); late > 6*time.Second {
			t.Errorf("last pass %v ago", late)
		}
	})
}

func TestNoSlot_DoesNotTellTheQueueForEveryJob(t *testing.T) {
	bubble(t, func(b *box) {
		b.catalog.declare("a")
		b.workers.exec = func(context.Context, string, supervisor.Call) (supervisor.Result, error) {
			time.Sleep(100 * time.Microsecond)
			return supervisor.Result{Payload: []byte("1")}, nil
		}
		for i := range 200 {
			b.queue.add(jobs.ID(fmt.Sprint(i)), "a")
		}
		time.Sleep(time.Second)
		b.want("199", jobs.Completed)
		if b.queue.setCalls > 3 {
			t.Errorf("SetBlocks was called %d times for 200 jobs", b.queue.setCalls)
		}
	})
}
