package sched_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/supervisor"
)

func oneAttempt(s *jobs.Spec) { s.MaxAttempts = 1 }

func TestRunner_WhatAWorkerAnswersDecidesTheOutcome(t *testing.T) {
	lost := func(k supervisor.ExitKind) error {
		return &supervisor.WorkerLostError{Instance: "a", Exit: supervisor.Exit{Kind: k, Signal: "SIGKILL"}, Stderr: []string{"last words"}}
	}
	for _, c := range []struct {
		name     string
		res      supervisor.Result
		err      error
		status   jobs.Status
		category jobs.Category
		attempts int
	}{
		{"result", supervisor.Result{Payload: []byte("1")}, nil, jobs.Completed, "", 1},
		{"plugin error", supervisor.Result{}, &supervisor.CallError{Message: "bad", Type: "ValueError"}, jobs.Failed, jobs.Fatal, 1},
		{"user error", supervisor.Result{}, &supervisor.CallError{Category: "user_input", Fields: []string{"path"}}, jobs.Failed, jobs.UserInput, 1},
		{"unknown category", supervisor.Result{}, &supervisor.CallError{Category: "weird"}, jobs.Failed, jobs.Fatal, 1},
		{"retriable plugin error", supervisor.Result{}, &supervisor.CallError{Category: "transient", Retriable: true}, jobs.Failed, jobs.Transient, 3},
		{"worker killed", supervisor.Result{}, lost(supervisor.ExitSignal), jobs.Failed, jobs.WorkerLost, 3},
		{"worker out of memory", supervisor.Result{}, lost(supervisor.ExitOOMWorker), jobs.Failed, jobs.OOM, 3},
		{"system out of memory", supervisor.Result{}, lost(supervisor.ExitOOMSystem), jobs.Failed, jobs.OOM, 3},
		{"cancelled though nobody asked", supervisor.Result{Cancelled: true}, nil, jobs.Failed, jobs.CancelledCat, 1},
		{"call error wrapped", supervisor.Result{}, fmt.Errorf("while: %w", &supervisor.CallError{Category: "resource"}), jobs.Failed, jobs.ResourceCat, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(b *box) {
				b.workers.exec = func(context.Context, string, supervisor.Call) (supervisor.Result, error) { return c.res, c.err }
				b.catalog.declare("a")
				b.queue.add("1", "a")
				time.Sleep(time.Second)
				j := b.want("1", c.status)
				if j.Attempt != c.attempts {
					t.Errorf("%d attempts, want %d", j.Attempt, c.attempts)
				}
				if got := j.Error; (got == nil) != (c.category == "") || got != nil && got.Category != c.category {
					t.Errorf("error %+v, want category %q", got, c.category)
				}
			})
		})
	}
}

func TestRunner_AFailedStartDecidesTheOutcome(t *testing.T) {
	call := &supervisor.CallError{Category: "fatal", Type: "ImportError", Message: "No module named 'torch'"}
	for _, c := range []struct {
		name     string
		err      error
		status   jobs.Status
		category jobs.Category
		attempt  int
	}{
		{"import error", &supervisor.StartError{Step: "load", Call: call}, jobs.Failed, jobs.Fatal, 1},
		{"exit before hello", &supervisor.StartError{Step: "hello", Exit: &supervisor.Exit{Kind: supervisor.ExitError, Code: 1}}, jobs.Failed, jobs.Fatal, 1},
		{"catalogue refuses", &supervisor.StartError{Step: "spec", Cause: errors.New("interpreter changed")}, jobs.Failed, jobs.Fatal, 1},
		{"isolation", &supervisor.StartError{Step: "isolation", Cause: errors.New("no cgroup")}, jobs.Failed, jobs.Fatal, 1},
		{"stall", &supervisor.StartError{Step: "stall", Exit: &supervisor.Exit{Kind: supervisor.ExitTimeout}}, jobs.Pending, jobs.Timeout, 1},
		{"killed while loading", &supervisor.StartError{Step: "load", Exit: &supervisor.Exit{Kind: supervisor.ExitSignal}}, jobs.Pending, jobs.WorkerLost, 1},
		{"out of memory while loading", &supervisor.StartError{Step: "load", Exit: &supervisor.Exit{Kind: supervisor.ExitOOMWorker}}, jobs.Pending, jobs.OOM, 1},
		{"sandbox", &supervisor.StartError{Step: "sandbox", Cause: errors.New("no memory")}, jobs.Pending, jobs.Transient, 0},
		{"backing off after an import error", &supervisor.StartError{Step: "backoff", Call: call, RetryAt: time.Now().Add(1000 * time.Hour)}, jobs.Pending, jobs.Transient, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(b *box) {
				b.workers.load = func(context.Context, string) error { return c.err }
				b.catalog.declare("a")
				b.queue.add("1", "a")
				j := b.want("1", c.status)
				if j.Error == nil || j.Error.Category != c.category || j.Attempt != c.attempt {
					t.Errorf("attempt %d, error %+v", j.Attempt, j.Error)
				}
				if c.category == jobs.Fatal && c.name == "import error" &&
					(!strings.Contains(j.Error.Message, "No module named 'torch'") || j.Error.Type != "ImportError") {
					t.Errorf("the plugin's own words are missing: %+v", j.Error)
				}
			})
		})
	}
}

func TestCoolDown_DoublesAndAfterFiveAPersonMustLook(t *testing.T) {
	bubble(t, func(b *box) {
		broken := true
		b.workers.load = func(context.Context, string) error {
			if broken {
				return &supervisor.StartError{Instance: "a", Step: "load", Call: &supervisor.CallError{Message: "boom"}}
			}
			return nil
		}
		b.catalog.declare("a")
		for i := range 7 {
			b.queue.add(jobs.ID(fmt.Sprint(i)), "a")
		}
		for i, cool := range []time.Duration{10, 20, 40, 80} {
			b.want(jobs.ID(fmt.Sprint(i)), jobs.Failed)
			blk := b.wantBlock("a", "cooling_down")
			if got := time.Until(blk.Earliest); got != cool*time.Second {
				t.Errorf("after %d failures the cool-down is %v", i+1, got)
			}
			time.Sleep(cool*time.Second - time.Millisecond)
			b.want(jobs.ID(fmt.Sprint(i+1)), jobs.Pending)
			time.Sleep(time.Millisecond)
		}
		b.want("4", jobs.Failed)
		if blk := b.wantBlock("a", "worker_failed"); !strings.Contains(blk.Sentence, "5 times") || !strings.Contains(blk.Sentence, "boom") {
			t.Errorf("sentence %q", blk.Sentence)
		}
		time.Sleep(time.Hour)
		b.want("5", jobs.Pending)
		broken = false
		if err := b.Load(b.t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		b.want("5", jobs.Completed)
		b.want("6", jobs.Completed)
	})
}

func TestRunner_AWorkerThatIsGoneIsStartedAgain(t *testing.T) {
	bubble(t, func(b *box) {
		b.catalog.declare("a")
		b.queue.add("1", "a")
		b.want("1", jobs.Completed)
		b.workers.mu.Lock() // it ended, and nobody has told the loop yet
		st := b.workers.status["a"]
		st.State = supervisor.Stopped
		b.workers.status["a"] = st
		b.workers.mu.Unlock()
		b.queue.add("2", "a")
		b.want("2", jobs.Completed)
		if b.workers.starts["a"] != 2 || b.queue.job("2").Attempt != 1 {
			t.Errorf("%d starts, attempt %d", b.workers.starts["a"], b.queue.job("2").Attempt)
		}
	})
}

func TestRunner_AtMostOnceWaitsForTheStartOnDisk(t *testing.T) {
	bubble(t, func(b *box) {
		durable := make(chan struct{})
		b.queue.mu.Lock()
		b.queue.durable = durable
		b.queue.mu.Unlock()
		b.catalog.declare("a", slots(2))
		b.queue.add("once", "a", oneAttempt)
		b.queue.add("again", "a")
		b.want("again", jobs.Completed)
		b.want("once", jobs.Running)
		if fmt.Sprint(b.workers.order) != "[again]" {
			t.Errorf("calls %v before the start was on disk", b.workers.order)
		}
		close(durable)
		b.want("once", jobs.Completed)
	})
}

func TestRunner_AJobThatFinishedDespiteACancelIsCompleted(t *testing.T) {
	bubble(t, func(b *box) {
		b.workers.exec = func(ctx context.Context, _ string, _ supervisor.Call) (supervisor.Result, error) {
			<-ctx.Done()
			return supervisor.Result{Payload: []byte("whole")}, nil
		}
		b.catalog.declare("a")
		b.queue.add("1", "a")
		b.want("1", jobs.Running)
		b.queue.cancel("1")
		if j := b.want("1", jobs.Completed); j.Result.Partial {
			t.Error("the result is marked partial")
		}
	})
}

func TestRunner_AKilledCallEndsCancelled(t *testing.T) {
	bubble(t, func(b *box) {
		b.workers.exec = func(ctx context.Context, _ string, _ supervisor.Call) (supervisor.Result, error) {
			<-ctx.Done()
			return supervisor.Result{}, &supervisor.CallError{Category: "cancelled", Cancelled: true, Partial: []byte("half")}
		}
		b.catalog.declare("a")
		b.queue.add("1", "a")
		b.want("1", jobs.Running)
		b.queue.cancel("1")
		if j := b.want("1", jobs.Cancelled); j.Result == nil || !j.Result.Partial {
			t.Errorf("result %+v", j.Result)
		}
	})
}

func TestAdmit_AStoreThatFailsIsAskedOnceASecond(t *testing.T) {
	bubble(t, func(b *box) {
		b.queue.mu.Lock()
		b.queue.admitErr = jobs.ErrStoreUnavailable
		b.queue.mu.Unlock()
		b.catalog.declare("a", ram(1024))
		b.queue.add("1", "a")
		for range 50 {
			b.queue.ring()
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		b.queue.mu.Lock()
		asked := b.queue.admits
		b.queue.admitErr = nil
		b.queue.mu.Unlock()
		if asked > 6 || len(b.State().Claims) != 0 {
			t.Errorf("asked %d times in 5 s; claims %+v", asked, b.State().Claims)
		}
		time.Sleep(time.Second)
		b.want("1", jobs.Completed)
	})
}

func TestWorkerFailed_WhatTheSupervisorGaveUpHoldsUntilItIsLoadedAgain(t *testing.T) {
	for _, state := range []supervisor.State{supervisor.FailedState, supervisor.Unkillable} {
		t.Run(string(state), func(t *testing.T) {
			bubble(t, func(b *box) {
				b.workers.load = func(context.Context, string) error {
					return &supervisor.StartError{Instance: "a", Step: "gave_up"}
				}
				b.catalog.declare("a")
				b.workers.set("a", state, func(s *supervisor.Status) { s.LastError = "it failed 6 times" })
				time.Sleep(10 * time.Millisecond)
				b.queue.add("1", "a")
				if blk := b.wantBlock("a", "worker_failed"); blk.Sentence != "it failed 6 times" {
					t.Errorf("sentence %q", blk.Sentence)
				}
				time.Sleep(time.Hour)
				if b.workers.starts["a"] != 0 || b.want("1", jobs.Pending).Attempt != 0 {
					t.Errorf("%d starts of a worker that gave up", b.workers.starts["a"])
				}
				b.workers.load = func(context.Context, string) error { return nil }
				if err := b.Load(b.t.Context(), "a"); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Millisecond)
				b.want("1", jobs.Completed)
			})
		})
	}
}

func TestRunner_ACallBeyondTheWorkersSlotsIsTriedLater(t *testing.T) {
	bubble(t, func(b *box) {
		b.workers.exec = func(context.Context, string, supervisor.Call) (supervisor.Result, error) {
			return supervisor.Result{}, supervisor.ErrNoSlot
		}
		b.catalog.declare("a")
		b.queue.add("1", "a")
		if j := b.want("1", jobs.Failed); j.Attempt != 3 {
			t.Errorf("%d attempts", j.Attempt)
		}
	})
}
