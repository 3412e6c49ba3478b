package sched_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
)

// lease takes GiB of the first card.
func (c *cards) lease(n resource.Bytes) sched.LeaseState {
	c.t.Helper()
	x, err := c.Lease(c.t.Context(), sched.LeaseRequest{Device: "0", Bytes: n * gib, Holder: "me"})
	if err != nil {
		c.t.Fatal(err)
	}
	return x
}

// missing is what the only lease lacks.
func (c *cards) missing() resource.Bytes {
	c.t.Helper()
	all, err := c.Leases(c.t.Context())
	if err != nil || len(all) != 1 {
		c.t.Fatalf("%+v, %v", all, err)
	}
	return all[0].Missing
}

func (c *cards) submit(instance string, n int) {
	for i := range n {
		c.queue.add(jobs.ID(fmt.Sprint(instance, i)), instance)
	}
}

func TestLease_IsThereAfterTheRunningJobWhateverIsQueued(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		c.gpu("a", 14, 0)
		c.runFor["a"] = 10 * time.Second
		c.submit("a", 6)
		c.tick(14 * time.Second) // two to load; the second of the jobs runs
		c.want("a0", jobs.Completed)
		c.want("a1", jobs.Running)
		if x := c.lease(24); x.Missing != 14*gib || !slices.Equal(x.Holders, []string{"a"}) {
			t.Errorf("%+v", x)
		}
		synctest.Wait()
		c.wantSentence("a", "resource", "makes way for a lease of 24576 MiB on GPU-0")
		c.want("a1", jobs.Running)
		c.tick(9 * time.Second)
		c.want("a1", jobs.Completed)
		if n := c.missing(); n != 0 {
			t.Errorf("%.0f MiB are missing after the running job", n.MB())
		}
		if !slices.Equal(c.workers.stops, []string{"a: evicted for a lease"}) {
			t.Errorf("stops %v", c.workers.stops)
		}
		c.tick(time.Minute)
		for i := 2; i < 6; i++ {
			c.want(jobs.ID(fmt.Sprint("a", i)), jobs.Pending)
		}
		c.wantBlock("a", "resource")
		if slices.Contains(c.workers.order, "a2") {
			t.Error("a job slipped in before the lease")
		}
		all, _ := c.Leases(c.t.Context())
		if err := c.EndLease(c.t.Context(), all[0].ID, "me"); err != nil {
			t.Fatal(err)
		}
		c.tick(time.Minute)
		c.want("a5", jobs.Completed)
	})
}

func TestLease_TakesTheBusyWorkerThatIsCheapestAndLeavesTheOthers(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		for _, name := range []string{"urgent", "usual"} {
			c.gpu(name, 8, 0)
		}
		c.runFor["urgent"], c.runFor["usual"] = 11*time.Second, 10*time.Second
		for i := range 4 {
			c.queue.add(jobs.ID(fmt.Sprint("u", i)), "urgent", priority(5))
			c.queue.add(jobs.ID(fmt.Sprint("n", i)), "usual")
		}
		c.tick(5 * time.Second)
		c.lease(12) // 8 are free
		c.wantSentence("usual", "resource", "makes way for a lease")
		c.wantSentence("urgent", "resource", "starts nothing new while a lease on GPU-0 waits")
		c.tick(8 * time.Second)
		if n := c.missing(); n != 0 {
			t.Errorf("%.0f MiB are missing", n.MB())
		}
		c.tick(50 * time.Second)
		c.want("u3", jobs.Completed)
		c.want("n1", jobs.Pending)
		if c.workers.starts["urgent"] != 1 || !slices.Equal(c.workers.stops, []string{"usual: evicted for a lease"}) {
			t.Errorf("%d starts, stops %v", c.workers.starts["urgent"], c.workers.stops)
		}
	})
}

func TestLease_ThatEndsFirstLeavesTheBusyWorkerAlone(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		c.gpu("a", 14, 0)
		c.runFor["a"] = 10 * time.Second
		c.submit("a", 3)
		c.tick(4 * time.Second)
		x := c.lease(24)
		c.tick(time.Second)
		c.wantBlock("a", "resource")
		if err := c.EndLease(c.t.Context(), x.ID, "me"); err != nil {
			t.Fatal(err)
		}
		c.tick(40 * time.Second)
		c.want("a2", jobs.Completed)
		if c.workers.starts["a"] != 1 || len(c.workers.stops) != 0 || c.journal.count(events.SchedulerEvicting) != 0 {
			t.Errorf("%d starts, stops %v", c.workers.starts["a"], c.workers.stops)
		}
	})
}

func TestLease_IsServedByIdleWorkersWhereTheyAreEnough(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		c.linger = 2 * time.Second
		c.gpu("idle", 10, 0)
		c.gpu("busy", 8, 0)
		c.queue.add("1", "idle")
		c.tick(5 * time.Second)
		c.want("1", jobs.Completed)
		c.runFor["busy"] = 3 * time.Second
		c.submit("busy", 3)
		c.tick(4 * time.Second) // two to load
		c.want("busy0", jobs.Running)
		c.lease(12)
		c.tick(1500 * time.Millisecond)
		c.want("busy0", jobs.Completed)
		c.want("busy1", jobs.Pending) // the memory is still on its way to the lease
		c.wantSentence("busy", "resource", "while a lease on GPU-0 waits for memory")
		c.tick(12 * time.Second)
		c.want("busy2", jobs.Completed)
		if !slices.Equal(c.workers.stops, []string{"idle: evicted for a lease"}) {
			t.Errorf("stops %v", c.workers.stops)
		}
	})
}

func TestLease_LeavesPinnedWorkersTheirJobs(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		c.gpu("a", 14, 0, pinned)
		c.runFor["a"] = time.Second
		c.submit("a", 2)
		c.tick(3500 * time.Millisecond)
		x := c.lease(24)
		if x.Missing != 14*gib {
			t.Errorf("%+v", x)
		}
		c.tick(5 * time.Second)
		c.want("a1", jobs.Completed) // it takes nothing that it does not have
		if c.missing() != 14*gib || len(c.workers.stops) != 0 {
			t.Errorf("stops %v", c.workers.stops)
		}
	})
}
