package sched_test

import (
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
)

// What followers of the journal hear of the scheduler.

// data is what the newest event of a kind says; nil when there was none.
func (j *fakeJournal) data(kind events.Kind) (out map[string]any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, d := range j.kinds {
		if d.Kind == kind {
			out = d.Data.(map[string]any)
		}
	}
	return out
}

func TestEvents_AReservationIsToldOnceItStands(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		c.gpu("a", 14, 0)
		c.gpu("big", 20, 0)
		c.runFor["a"] = time.Hour
		c.queue.add("1", "a")
		c.tick(5 * time.Second)
		c.queue.add("2", "big")
		c.tick(500 * time.Millisecond)
		if c.State().Shadow == nil {
			c.t.Fatal("nothing is reserved for the job that waits")
		}
		c.queue.cancel("2")
		c.tick(3 * time.Second)
		if n := c.journal.count(events.SchedulerShadow); n != 0 {
			t.Errorf("%d events about a reservation of half a second", n)
		}
		c.queue.add("3", "big")
		c.tick(3 * time.Second)
		if n, d := c.journal.count(events.SchedulerShadow), c.journal.data(events.SchedulerShadow); n != 1 || d["job"] != jobs.ID("3") {
			t.Errorf("%d events, the last %v", n, d)
		}
		c.queue.cancel("3")
		c.tick(3 * time.Second)
		if n, d := c.journal.count(events.SchedulerShadow), c.journal.data(events.SchedulerShadow); n != 2 || len(d) != 0 {
			t.Errorf("%d events, the last %v", n, d)
		}
		c.queue.cancel("1")
	})
}

func TestEvents_ALeaseSaysWhenItEndsOnlyIfItDoes(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		if _, err := c.Lease(c.t.Context(), sched.LeaseRequest{Device: "0", Bytes: gib}); err != nil {
			c.t.Fatal(err)
		}
		if at, ok := c.journal.data(events.LeaseCreated)["expires_at"]; ok {
			t.Errorf("a lease without an end expires at %v", at)
		}
		if _, err := c.Lease(c.t.Context(), sched.LeaseRequest{Device: "0", Bytes: gib, For: time.Hour}); err != nil {
			c.t.Fatal(err)
		}
		if at, _ := c.journal.data(events.LeaseCreated)["expires_at"].(time.Time); !at.Equal(time.Now().Add(time.Hour)) {
			t.Errorf("a lease for an hour expires at %v", at)
		}
	})
}

func TestEvents_LearnedSizesCarryTheirUnit(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		c.gpu("a", 6, 2)
		c.queue.add("1", "a")
		c.tick(20 * time.Second)
		c.want("1", jobs.Completed)
		d := c.journal.data(events.ProfileChanged)
		if d["resident_vram_bytes"] != 6*gib || d["execute_vram_bytes"] != 2*gib {
			t.Errorf("profile.changed says %v", d)
		}
	})
}
