package sched_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// What a card is asked for, and what must never happen.

func TestTrap_AResidentWorkersMemoryIsItsOwn(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		c.gpu("a", 14, 0)
		c.queue.add("1", "a")
		c.tick(5 * time.Second)
		c.want("1", jobs.Completed)
		c.queue.add("2", "a")
		synctest.Wait()
		if j := c.queue.job("2"); j.Status != jobs.Running {
			t.Errorf("the next job of a loaded worker is %s: %+v", j.Status, c.queue.block("a"))
		}
		c.tick(2 * time.Second)
		c.want("2", jobs.Completed)
		if c.workers.starts["a"] != 1 {
			t.Errorf("%d starts", c.workers.starts["a"])
		}
	})
}

func TestTrap_TwoHalvesAreNoWhole(t *testing.T) {
	onCards(t, []resource.Bytes{24, 24}, func(c *cards) {
		c.setForeign(0, 16*gib)
		c.setForeign(1, 16*gib)
		c.gpu("a", 12, 0)
		c.queue.add("1", "a")
		c.tick(2 * time.Second)
		c.wantBlock("a", "resource")
		if c.workers.starts["a"] != 0 {
			t.Error("12 GB were let in on 2 × 8 GB")
		}
	})
}

func TestTrap_TwoAtOnceNeverGetTheSameMemory(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		c.setForeign(0, 14*gib)
		for _, n := range []string{"a", "b"} {
			c.gpu(n, 10, 0)
			c.runFor[n] = time.Hour
		}
		c.queue.add("1", "a")
		c.queue.add("2", "b")
		c.tick(5 * time.Second)
		if n := c.workers.starts["a"] + c.workers.starts["b"]; n != 1 {
			t.Errorf("%d workers were started into the last 10 GB", n)
		}
		c.queue.cancel("1")
		c.queue.cancel("2")
		synctest.Wait()
	})
}

func TestTrap_ABigJobIsNotStarvedBySmallOnes(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		for i := range 6 {
			name := fmt.Sprint("small", i)
			c.gpu(name, 2, 2)
			c.runFor[name] = time.Duration(11+4*i) * time.Second // the card is never free by chance
		}
		c.gpu("big", 18, 2)
		n := 0
		feed := func() {
			for i := range 6 {
				if name := fmt.Sprint("small", i); len(c.groupOf(name)) < 2 {
					n++
					c.queue.add(jobs.ID(fmt.Sprint("s", n)), name)
				}
			}
		}
		for range 10 {
			feed()
			c.tick(time.Second)
		}
		c.queue.add("big", "big")
		for s := 0; s < 1200 && !c.queue.job("big").Status.Final(); s++ {
			feed()
			c.tick(time.Second)
		}
		c.want("big", jobs.Completed)
	})
}

// groupOf lists the pending jobs of an instance.
func (c *cards) groupOf(instance string) []jobs.Ready {
	for _, g := range c.queue.Groups(100) {
		if g.Instance == instance {
			return g.Ready
		}
	}
	return nil
}

// Memory of a stopped worker returns 3 s late: it is not handed out before, and
// soon after.
func TestTrap_MemoryThatReturnsLateIsNotHandedOutBefore(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		c.linger = 3 * time.Second
		c.gpu("a", 16, 0)
		c.gpu("b", 16, 0)
		c.queue.add("1", "a")
		c.tick(60 * time.Second) // past its minimum residency
		c.queue.add("2", "b")
		synctest.Wait()
		if len(c.workers.stops) != 1 {
			t.Fatalf("stops %v, block %+v", c.workers.stops, c.queue.block("b"))
		}
		c.tick(2900 * time.Millisecond)
		if c.workers.starts["b"] != 0 {
			t.Fatal("b was started into memory that is not back")
		}
		c.wantSentence("b", "resource", "a")
		c.tick(300 * time.Millisecond)
		if c.workers.starts["b"] != 1 {
			t.Errorf("the memory is back and b is not started: %+v", c.queue.block("b"))
		}
		c.tick(5 * time.Second)
		c.want("2", jobs.Completed)
		if c.journal.count(events.SchedulerSettled) != 1 || c.journal.count(events.SchedulerQuarantined) != 0 {
			t.Errorf("events %+v", c.journal.kinds)
		}
	})
}

func TestTrap_MemoryThatNeverReturnsIsQuarantinedAndTold(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		c.linger = -1
		c.gpu("a", 16, 0)
		c.gpu("b", 16, 0)
		c.queue.add("1", "a")
		c.tick(60 * time.Second)
		c.queue.add("2", "b")
		c.tick(10 * time.Second)
		if c.workers.starts["b"] != 0 {
			t.Fatal("b was started into memory that never came back")
		}
		st := c.State()
		if len(st.Devices) != 1 || st.Devices[0].Quarantined != 16*gib || st.Devices[0].External != 0 {
			t.Errorf("devices %+v", st.Devices)
		}
		if c.journal.count(events.SchedulerQuarantined) != 1 {
			t.Error("nobody was told")
		}
		c.mu.Lock()
		clear(c.ghosts)
		c.linger = 0
		c.mu.Unlock()
		c.tick(5 * time.Second)
		c.want("2", jobs.Completed)
		if st := c.State(); st.Devices[0].Quarantined != 0 {
			t.Errorf("still quarantined: %+v", st.Devices)
		}
	})
}

// A worker that crashed: nobody had time to note anything before its end.
func TestTrap_ACrashedWorkersMemoryIsWaitedForToo(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		c.linger = 3 * time.Second
		c.gpu("a", 16, 0)
		c.gpu("b", 16, 0)
		c.queue.add("1", "a")
		c.tick(10 * time.Second)
		c.want("1", jobs.Completed)
		c.ended("a")
		c.workers.set("a", supervisor.Stopped, func(s *supervisor.Status) { s.PID, s.PIDs = 0, nil })
		time.Sleep(10 * time.Millisecond)
		c.queue.add("2", "b")
		c.tick(2900 * time.Millisecond)
		if c.workers.starts["b"] != 0 {
			t.Fatal("b was started into memory that is not back")
		}
		c.tick(5 * time.Second)
		c.want("2", jobs.Completed)
		if c.journal.count(events.SchedulerQuarantined) != 0 {
			t.Error("quarantined although it came back in time")
		}
	})
}

func TestTrap_ABusyWorkerAndTheMonitorsAreNeverEvicted(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		c.gate.set(func(g *fakeGate) { g.name = "mon" })
		c.gpu("mon", 4, 0)
		c.gpu("busy", 12, 0)
		c.gpu("big", 20, 0)
		c.runFor["busy"] = time.Hour
		c.queue.add("0", "mon")
		c.queue.add("1", "busy")
		c.tick(90 * time.Second)
		c.want("0", jobs.Completed)
		c.queue.add("2", "big", priority(9))
		c.tick(60 * time.Second)
		c.wantBlock("big", "resource")
		if len(c.workers.stops) != 0 {
			t.Errorf("stopped %v", c.workers.stops)
		}
		c.queue.cancel("1")
		c.tick(60 * time.Second)
		if !slices.ContainsFunc(c.workers.stops, func(s string) bool { return strings.HasPrefix(s, "busy:") }) || len(c.workers.stops) != 1 {
			t.Errorf("stops %v, want the idle worker alone", c.workers.stops)
		}
		c.want("2", jobs.Completed)
	})
}

func TestTrap_AMonitorThatHangsHoldsJobsAndRecovers(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		c.gpu("a", 4, 0)
		c.gate.set(func(g *fakeGate) { g.fresh = false })
		synctest.Wait()
		c.queue.add("1", "a")
		time.Sleep(time.Minute)
		c.wantBlock("a", "stale_monitor")
		c.gate.set(func(g *fakeGate) { g.fresh = true })
		c.tick(5 * time.Second)
		c.want("1", jobs.Completed)
	})
}

// A foreign process takes the memory while a worker loads: one retry, no loop.
func TestTrap_AForeignProcessDuringALoadLeadsToOneRetry(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		c.gpu("a", 16, 0)
		c.queue.add("1", "a")
		c.tick(500 * time.Millisecond)
		c.mu.Lock()
		c.foreign[0] = 20 * gib
		c.mu.Unlock()
		c.tick(30 * time.Second)
		c.wantBlock("a", "resource") // the next try waits for the memory
		if n := c.workers.starts["a"]; n != 1 {
			t.Errorf("%d starts into a full card", n)
		}
		c.mu.Lock() // free as far as anybody can see, and taken again in the load
		c.foreign[0] = 0
		c.mu.Unlock()
		for range 900 {
			c.tick(100 * time.Millisecond)
			c.mu.Lock()
			c.foreign[0] = 0
			if c.workers.state("a") == supervisor.Starting {
				c.foreign[0] = 20 * gib
			}
			c.mu.Unlock()
		}
		j := c.want("1", jobs.Failed)
		if n := c.workers.starts["a"]; n != 2 || j.Error.Category != jobs.OOM || !strings.Contains(j.Error.Message, "Who held what: GPU-0") {
			t.Errorf("%d starts, error %+v", n, j.Error)
		}
	})
}

func TestTrap_ABoxWithoutGPURefusesGPUJobsAndRunsTheOthers(t *testing.T) {
	onCards(t, nil, func(c *cards) {
		c.gpu("a", 4, 0)
		c.catalog.declare("cpu-only", ram(100))
		c.queue.add("1", "a")
		c.queue.add("2", "cpu-only")
		c.tick(5 * time.Second)
		c.want("2", jobs.Completed)
		if j := c.want("1", jobs.Failed); !strings.Contains(j.Error.Message, "GPU") || j.Error.Category != jobs.ResourceCat {
			t.Errorf("error %+v", j.Error)
		}
	})
}

// An instance that nobody knows anything about has the card to itself once;
// then it shares it.
func TestTrap_AnUnknownNeedIsMeasuredAloneOnce(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		unknown := func(_ *plugins.Instance, m *plugins.Manifest) { m.Demand.MinVRAM = 0 }
		c.gpu("a", 6, 2, unknown)
		c.gpu("b", 4, 0)
		c.runFor["a"] = 5 * time.Second
		c.queue.add("1", "a")
		c.tick(time.Second)
		c.queue.add("2", "b")
		c.tick(3 * time.Second)
		c.wantBlock("b", "resource")
		if st := c.State(); st.Devices[0].Exclusive != "a" {
			t.Errorf("devices %+v", st.Devices)
		}
		c.tick(15 * time.Second)
		c.want("1", jobs.Completed)
		c.want("2", jobs.Completed)
		p, err := c.Profile(c.t.Context(), "a")
		if err != nil || !p.Need.Known || len(p.Profiles) != 1 || p.Profiles[0].ResidentVRAM.Estimate != 6*gib || p.Profiles[0].ExecuteVRAM.Estimate != 2*gib {
			t.Errorf("profile %+v, %v", p, err)
		}
		if c.journal.count(events.ProfileChanged) == 0 {
			t.Error("nobody was told")
		}
		// Both are loaded: a's next job takes what it was seen to take.
		c.queue.add("3", "a")
		c.tick(time.Second)
		c.want("3", jobs.Running)
		if st := c.State(); !slices.ContainsFunc(st.Claims, func(x sched.Claim) bool {
			return x.Owner == "3" && x.Kind == sched.KindExecute && x.Bytes == 2*gib
		}) {
			t.Errorf("claims %+v", st.Claims)
		}
		c.tick(10 * time.Second)
	})
}

// Seen: the memory of an unloaded worker, in no list any more and not back yet,
// counted as that of strangers, and was held as such for a minute.
func TestTrap_MemoryOnItsWayBackIsNobodyElses(t *testing.T) {
	for _, silent := range []bool{false, true} {
		t.Run(fmt.Sprint("silent=", silent), func(t *testing.T) {
			onCards(t, []resource.Bytes{24}, func(c *cards) {
				c.linger, c.silent = 700*time.Millisecond, silent
				c.gpu("a", 14, 0)
				if err := c.Load(c.t.Context(), "a"); err != nil {
					t.Fatal(err)
				}
				c.tick(3 * time.Second)
				if err := c.Unload(c.t.Context(), "a", "by hand"); err != nil {
					t.Fatal(err)
				}
				for range 60 {
					c.tick(100 * time.Millisecond)
					if d := c.State().Devices[0]; d.External != 0 && !silent {
						t.Fatalf("external %v MiB", d.External.MB())
					}
				}
				if d := c.State().Devices[0]; d.Free != 24*gib {
					t.Errorf("device %+v", d)
				}
			})
		})
	}
}

// Seen: a load too short for any reading was learned as nothing at all, and the
// whole worker as what each of its runs takes on top.
func TestTrap_ALoadBetweenTwoReadingsIsNotMeasuredAsNothing(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		c.gpu("a", 6, 2)
		c.workers.load = func(ctx context.Context, instance string) error {
			if err := c.take(instance, 6*gib); err != nil {
				return err
			}
			pid := c.held[instance].pid
			c.workers.set(instance, supervisor.Initializing, func(s *supervisor.Status) { s.PID, s.PIDs = pid, []int{pid} })
			return nil
		}
		for i := range 3 {
			c.queue.add(jobs.ID(fmt.Sprint(i)), "a")
		}
		c.tick(20 * time.Second)
		p, err := c.Profile(c.t.Context(), "a")
		if err != nil || len(p.Profiles) != 1 {
			t.Fatal(p, err)
		}
		if x := p.Profiles[0]; x.ResidentVRAM.Estimate != 6*gib || p.Need.ResidentVRAM+p.Need.ExecuteVRAM != 8*gib {
			t.Errorf("need %+v, profile %+v", p.Need, x)
		}
	})
}

// Seen: of two workers that were stopped together one gave its memory back, and
// that was taken for both.
func TestTrap_WhatOneGivesBackIsNotCreditedToTwo(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		c.gpu("a", 8, 0)
		c.gpu("b", 8, 0)
		c.gpu("big", 22, 0)
		c.queue.add("1", "a")
		c.queue.add("2", "b")
		c.tick(70 * time.Second)
		c.workers.stopped = func(instance string) {
			c.mu.Lock()
			c.linger = 0
			if instance == "b" {
				c.linger = 2 * time.Second
			}
			c.mu.Unlock()
			c.ended(instance)
		}
		c.queue.add("3", "big")
		c.tick(1900 * time.Millisecond)
		if len(c.workers.stops) != 2 || c.workers.starts["big"] != 0 {
			t.Fatalf("stops %v, %d starts of big", c.workers.stops, c.workers.starts["big"])
		}
		c.tick(5 * time.Second)
		c.want("3", jobs.Completed)
	})
}
