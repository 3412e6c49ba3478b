package sched_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// A plugin that had failed too often stayed shut after its manifest was mended.
func TestManifest_AChangedOneIsTriedAgain(t *testing.T) {
	bubble(t, func(b *box) {
		version := func(hash string) func(*plugins.Instance, *plugins.Manifest) {
			return func(_ *plugins.Instance, m *plugins.Manifest) { m.Hash = hash }
		}
		b.workers.load = func(context.Context, string) error {
			return &supervisor.StartError{Instance: "a", Step: "load", Call: &supervisor.CallError{Message: "boom"}}
		}
		b.catalog.declare("a", version("1"))
		b.queue.add("1", "a")
		b.want("1", jobs.Failed)
		b.queue.add("2", "a")
		b.wantBlock("a", "cooling_down")
		b.catalog.declare("a", version("1")) // read again, the same
		b.wantBlock("a", "cooling_down")
		b.workers.load = func(context.Context, string) error { return nil }
		b.catalog.declare("a", version("2"))
		b.want("2", jobs.Completed)
		if !slices.Contains(b.workers.reset, "a") {
			t.Error("the supervisor still holds its failures against it")
		}
	})
}

// What was known about deleted instances stayed for ever.
func TestCatalogue_ADeletedInstanceIsForgotten(t *testing.T) {
	bubble(t, func(b *box) {
		release := hold(b)
		b.catalog.declare("a")
		b.queue.add("1", "a")
		b.want("1", jobs.Running)
		b.catalog.remove("a")
		b.queue.add("2", "a")
		b.wantBlock("a", "unknown_plugin")
		if len(b.workers.forgotten) > 0 {
			t.Fatal("forgotten while it runs a job")
		}
		release()
		b.want("1", jobs.Completed)
		if err := b.Unload(b.t.Context(), "a", "test"); err != nil {
			t.Fatal(err)
		}
		b.catalog.remove("a")
		synctest.Wait()
		if !slices.Contains(b.workers.forgotten, "a") {
			t.Error("not forgotten")
		}
		b.catalog.declare("a") // and back again: what waited for it runs
		time.Sleep(10 * time.Millisecond)
		b.want("2", jobs.Completed)
	})
}

func TestPreview_OfAnUnknownInstanceIsItsError(t *testing.T) {
	bubble(t, func(b *box) {
		if _, err := b.Preview(b.t.Context(), "nobody"); err == nil || !strings.Contains(err.Error(), "nobody") {
			t.Errorf("got %v", err)
		}
	})
}

// A worker that was started while its new configuration was being stored went
// on with the old one.
func TestConfigure_ReachesAWorkerThatStartsMeanwhile(t *testing.T) {
	bubble(t, func(b *box) {
		b.catalog.declare("a")
		b.workers.applied = supervisor.AppliedAtStart
		b.workers.told = func() { // a start begins right after the first time
			b.workers.status["a"] = supervisor.Status{Instance: "a", State: supervisor.ReadyState, Generation: 1}
			b.workers.told = func() { b.workers.applied = supervisor.AppliedInitialized }
		}
		_, _, applied, err := b.Configure(b.t.Context(), "a", []byte(`{"x":1}`))
		if err != nil || applied != supervisor.AppliedInitialized {
			t.Errorf("%q, %v", applied, err)
		}
	})
}

// A full disk was asked to record the same refusal in every pass.
func TestFail_AStoreThatFailsIsAskedOnceASecond(t *testing.T) {
	bubble(t, func(b *box) {
		b.queue.failErr = errors.New("disk full")
		b.catalog.declare("a", ram(1<<20))
		b.queue.add("1", "a")
		for range 300 { // whatever else happens wakes the loop
			time.Sleep(10 * time.Millisecond)
			b.queue.ring()
		}
		synctest.Wait()
		b.queue.mu.Lock()
		n := b.queue.fails
		b.queue.failErr = nil
		b.queue.mu.Unlock()
		if n > 4 {
			t.Errorf("asked %d times in 3 s", n)
		}
		time.Sleep(2 * time.Second)
		b.want("1", jobs.Failed)
	})
}

// A job that may be tried once was failed by a restart of the daemon although
// it had not begun.
func TestShutdown_AJobWhoseWorkerStillLoadsSpendsNoAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := setup(t)
		b.workers.load = func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
		b.catalog.declare("a")
		b.queue.add("1", "a", func(s *jobs.Spec) { s.MaxAttempts = 1 })
		b.want("1", jobs.Running)
		b.close()
		if j := b.want("1", jobs.Pending); j.Attempt != 0 {
			t.Errorf("attempt %d", j.Attempt)
		}
	})
}

// The daemon's stop waited its whole drain time for a load that nobody was
// interested in any more.
func TestShutdown_DoesNotWaitForALoadWithoutJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := setup(t)
		b.workers.load = func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
		b.catalog.declare("a")
		loaded := make(chan error, 1)
		go func() { loaded <- b.Load(t.Context(), "a") }()
		synctest.Wait()
		b.stopAdmit()
		if err := <-b.ended; err != nil {
			t.Error(err)
		}
		if err := <-loaded; err == nil {
			t.Error("loaded?")
		}
		b.stopWork()
	})
}
