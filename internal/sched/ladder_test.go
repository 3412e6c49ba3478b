package sched_test

import (
	"slices"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// afterOOM has 12 GB free beside two idle workers, of which one may be asked to
// release until it holds what is left, and a load that wants 16 although its
// manifest says 10.
func afterOOM(t *testing.T, left resource.Bytes, check func(c *cards)) {
	t.Helper()
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		c.gpu("caches", 8, 0)
		c.gpu("plain", 4, 0)
		c.workers.asked = func(instance, method string) error { return c.take(instance, left*gib) }
		c.queue.add("1", "caches")
		c.queue.add("2", "plain")
		c.tick(10 * time.Second)
		c.workers.set("caches", supervisor.ReadyState, func(s *supervisor.Status) { s.Ready = &supervisor.Ready{Capabilities: []string{"release"}} })
		c.tick(time.Second)
		c.gpu("a", 16, 0, func(_ *plugins.Instance, m *plugins.Manifest) { m.Demand.MinVRAM = 10 * gib })
		c.queue.add("3", "a")
		c.tick(30 * time.Second)
		c.want("3", jobs.Completed)
		if c.workers.starts["a"] != 2 || !slices.Equal(c.workers.requests, []string{"caches.release"}) {
			t.Errorf("%d starts, requests %v", c.workers.starts["a"], c.workers.requests)
		}
		check(c)
	})
}

func TestLoadOOM_WhatIdleWorkersCanSpareComesFirst(t *testing.T) {
	afterOOM(t, 2, func(c *cards) {
		if len(c.workers.stops) != 0 {
			t.Errorf("stopped %v although 18 GB are free by then", c.workers.stops)
		}
	})
}

func TestLoadOOM_IdleWorkersAreStoppedWhereThatIsTooLittle(t *testing.T) {
	afterOOM(t, 7, func(c *cards) {
		if len(c.workers.stops) != 2 {
			t.Errorf("stopped %v, want both idle workers: 13 GB are hardly more than what was not enough", c.workers.stops)
		}
	})
}

// Seen: twenty runs of a plugin that nobody knew ran out of memory at one instant,
// one after the other, beside memory that was still on its way back.
func TestRunOOM_AMeasuringRunIsNotRepeatedBeforeSomebodyHasLooked(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		c.gpu("a", 6, 10, func(_ *plugins.Instance, m *plugins.Manifest) { m.Demand.MinVRAM = 0 })
		c.queue.add("1", "a")
		c.tick(time.Second)
		c.mu.Lock()
		c.foreign[0] = 12 * gib
		c.mu.Unlock()
		c.tick(1500 * time.Millisecond)
		c.wantBlock("a", "cooling_down")
		c.mu.Lock()
		c.foreign[0] = 0
		c.mu.Unlock()
		c.tick(2 * time.Minute) // what others used counts for a minute
		if j := c.want("1", jobs.Completed); j.Attempt > 2 {
			t.Errorf("%d attempts", j.Attempt)
		}
	})
}
