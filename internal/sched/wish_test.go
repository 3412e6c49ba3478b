package sched_test

import (
	"strings"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
)

// A wish with needs of its own is not answered by the worker that is there.
func TestTry_OtherNeedsThanThoseOfTheLoadedWorker(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		try := func(gibs resource.Bytes) sched.Plan {
			t.Helper()
			w := sched.Wish{Instance: "a"}
			if gibs > 0 {
				w.Demand = &resource.Demand{RequiresGPU: true, MinVRAM: gibs * gib}
			}
			p, err := c.Try(c.t.Context(), w)
			if err != nil {
				c.t.Fatal(err)
			}
			return p
		}
		c.gpu("a", 14, 0)
		c.queue.add("1", "a")
		c.tick(5 * time.Second)
		c.want("1", jobs.Completed)
		if p := try(0); len(p.Start) != 1 || len(p.Start[0].Claims) != 0 {
			t.Errorf("as known: %+v", p)
		}
		if p := try(8); len(p.Start) != 1 || p.Start[0].Instance != "a" || len(p.Start[0].Claims) != 1 || p.Start[0].Claims[0].Bytes != 8*gib {
			t.Errorf("8 GiB beside its 14: %+v", p)
		}
		if p := try(16); len(p.Start) != 0 || p.Block["a"] == nil || p.Block["a"].Code != "resource" {
			t.Errorf("16 GiB beside its 14: %+v", p)
		}
		if p := try(30); len(p.Fail) != 1 || !strings.Contains(p.Fail[0].Error.Message, "can never fit") {
			t.Errorf("30 GiB: %+v", p)
		}
		c.runFor["a"] = time.Minute
		c.queue.add("2", "a")
		c.tick(time.Second)
		if p := try(8); len(p.Start) != 1 {
			t.Errorf("8 GiB while its worker is busy: %+v", p)
		}
		c.queue.cancel("2")
	})
}

// Without an accelerator the worker that is loaded must not make a wish for one
// come true.
func TestTry_AcceleratorOnAMachineWithoutOne(t *testing.T) {
	onCards(t, nil, func(c *cards) {
		c.catalog.declare("a", ram(100))
		c.queue.add("1", "a")
		c.tick(5 * time.Second)
		c.want("1", jobs.Completed)
		p, err := c.Try(c.t.Context(), sched.Wish{Instance: "a", Demand: &resource.Demand{RequiresGPU: true, MinVRAM: gib}})
		if err != nil || len(p.Start) != 0 || len(p.Fail) != 1 || !strings.Contains(p.Fail[0].Error.Message, "GPU") {
			t.Errorf("%+v, %v", p, err)
		}
	})
}
