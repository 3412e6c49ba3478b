package sched_test

import (
	"context"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// Seen: a worker was last read in the very reading that showed another's memory
// back. That other's memory counted as still on its way in it, and its own was
// missed for ever.
func TestSettle_AfterAReadingInWhichAnotherSettled(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		c.linger = 2 * time.Second
		c.setForeign(0, gib)
		c.gpu("a", 9, 0)
		c.gpu("b", 13, 0)
		for _, name := range []string{"a", "b"} {
			if err := c.Load(c.t.Context(), name); err != nil {
				t.Fatal(err)
			}
			c.tick(3 * time.Second)
		}
		unload := func(name string) {
			if err := c.Unload(c.t.Context(), name, "by hand"); err != nil {
				t.Fatal(err)
			}
		}
		unload("b")
		for i := 0; c.journal.count(events.SchedulerSettled) == 0; i++ {
			if i == 50 {
				t.Fatal("b's memory is not back")
			}
			c.tick(100 * time.Millisecond)
		}
		unload("a")
		c.tick(8 * time.Second)
		if d := c.State().Devices[0]; d.Free != 23*gib || c.journal.count(events.SchedulerQuarantined) != 0 {
			t.Errorf("device %+v, %d quarantined", d, c.journal.count(events.SchedulerQuarantined))
		}
	})
}

// Seen: a worker that ended between two readings was waited for until the cap.
func TestSettle_AWorkerThatNoReadingSawIsOverWithTwo(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		c.gpu("a", 9, 0)
		c.workers.load = func(ctx context.Context, instance string) error {
			if err := c.take(instance, 9*gib); err != nil {
				return err
			}
			pid := c.held[instance].pid
			c.workers.set(instance, supervisor.Initializing, func(s *supervisor.Status) { s.PID, s.PIDs = pid, []int{pid} })
			return nil
		}
		if err := c.Load(c.t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if err := c.Unload(c.t.Context(), "a", "by hand"); err != nil {
			t.Fatal(err)
		}
		c.sample()
		if d := c.State().Devices[0]; d.Claimed != 9*gib {
			t.Errorf("one reading proves nothing: %+v", d)
		}
		c.sample()
		if d := c.State().Devices[0]; d.Free != 24*gib || c.journal.count(events.SchedulerSettled) != 1 {
			t.Errorf("device %+v", d)
		}
	})
}

// Seen: while a worker's report was ahead of the readings, what had not come back
// of another looked like its own.
func TestSettle_AReportThatIsAheadOfTheReadingsExplainsNothing(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		c.linger = 3 * time.Second
		c.gpu("a", 9, 0)
		c.gpu("b", 2, 0)
		for _, name := range []string{"a", "b"} {
			if err := c.Load(c.t.Context(), name); err != nil {
				t.Fatal(err)
			}
			c.tick(3 * time.Second)
		}
		if err := c.Unload(c.t.Context(), "a", "by hand"); err != nil {
			t.Fatal(err)
		}
		c.workers.set("b", supervisor.ReadyState, func(s *supervisor.Status) {
			s.Usage = &supervisor.Usage{Devices: map[string]int64{"GPU-0": int64(12 * gib)}, Reported: time.Now()}
		})
		c.tick(2 * time.Second)
		if d := c.State().Devices[0]; d.Free > 24*gib-9*gib-12*gib {
			t.Errorf("a's memory was given away: %+v", d)
		}
		c.tick(3 * time.Second)
		if d := c.State().Devices[0]; d.Free != 12*gib {
			t.Errorf("device %+v", d)
		}
	})
}
