package simtest

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cjmd/cjmd/internal/jobs"
)

func TestRandom_RightNeeds_NothingRunsOutOfMemoryAndAllComplete(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		r, c := simulate(rt, shape{jobs: 120, seen: true}.draw(rt), subject())
		completes(rt, r)
		neverOutOfMemory(rt, r)
		c.evictionsPay(rt, r)
		c.swapsStayInBudget(rt)
		waitsAreBounded(rt, r)
	})
}

// crowd is how many jobs a large trace has at most.
const crowd = 3500

// Many short jobs: this is where most of the admissions come from. What lasts for
// less than a reading is learned wrong now and then.
func TestRandom_Crowds_AllEnd(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		r, _ := simulate(rt, shape{jobs: crowd, quick: true}.draw(rt), subject())
		if r.Overdue {
			tell(rt, r)
			rt.Fatalf("jobs are left at %s", r.End)
		}
	})
}

func TestRandom_UnknownNeeds_AreMeasuredAloneAndAllComplete(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		r, c := simulate(rt, shape{jobs: 60, unknown: true, seen: true}.draw(rt), subject())
		completes(rt, r)
		neverOutOfMemory(rt, r)
		c.swapsStayInBudget(rt)
	})
}

func TestRandom_Killed_NoOrphanNoLostNoDoubledJob(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		r, _ := simulate(rt, shape{jobs: 60, unknown: true, kills: true}.draw(rt), subject())
		if r.Overdue {
			rt.Fatalf("jobs are left at %s", r.End)
		}
		for _, j := range r.Jobs { // the daemon died three times at most
			if j.Status != jobs.Completed && j.Attempts < maxAttempts {
				rt.Fatalf("job %s is %s after %d attempts: %s", j.ID, j.Status, j.Attempts, j.Error)
			}
		}
	})
}

func TestRandom_ForeignAndLeaks_NobodyWaitsForEver(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		r, _ := simulate(rt, shape{jobs: 60, foreign: true, leaks: true, silence: true}.draw(rt), subject())
		if r.Overdue {
			tell(rt, r)
			rt.Fatalf("jobs are left at %s, hours after everything else is over", r.End)
		}
	})
}

func TestRandom_AnythingGoesWrong(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		simulate(rt, shape{jobs: 60, unknown: true, wrong: true, foreign: true, broken: true, leaks: true, silence: true, kills: true}.draw(rt), subject())
	})
}

// evictionsPay: whoever had a worker stopped for it has its own worker started
// soon after, unless its jobs had all ended by then.
func (c *checker) evictionsPay(rt *rapid.T, r *Result) {
	for _, e := range c.evict {
		if !c.paid(r, e) {
			tell(rt, r)
			rt.Fatalf("%s was stopped at %s for %s, which started nothing", e.victim, e.at, e.asker)
		}
	}
}

// payWithin is how long a start may take after the eviction: stop, release and
// settling of the last victim, and one reading.
const payWithin = time.Minute

func (c *checker) paid(r *Result, e eviction) bool {
	for _, s := range r.Spans {
		begins := s.Kind == KindLoad || s.Kind == KindRun // a resident worker may have asked for room to run
		if begins && s.Instance == e.asker && s.From >= e.at && s.From <= e.at+payWithin {
			return true
		}
	}
	waiting := false
	for _, j := range r.Jobs {
		waiting = waiting || (j.Plugin == e.asker && j.Submitted <= e.at && j.Ended > e.at+payWithin)
	}
	return !waiting
}

// swapsStayInBudget: no device changes hands more often than six times in ten minutes.
func (c *checker) swapsStayInBudget(rt *rapid.T) {
	const most, window = 6, 10 * time.Minute
	times := make(map[string][]time.Duration) // by device, one entry a pass
	for _, e := range c.evict {
		for _, dev := range e.devices {
			if n := len(times[dev]); n == 0 || times[dev][n-1] != e.at {
				times[dev] = append(times[dev], e.at)
			}
		}
	}
	for dev, at := range times {
		for i := most; i < len(at); i++ {
			if at[i]-at[i-most] < window {
				rt.Fatalf("%s changed hands %d times between %s and %s", dev, most+1, at[i-most], at[i])
			}
		}
	}
}

// waitsAreBounded: a job waits no longer than it would if everything of its
// priority or above that came before the drain for it were run one after the
// other, each with a load and a stop of its own, at the pace of the swap budget.
func waitsAreBounded(rt *rapid.T, r *Result) {
	const hardWait, swap, perSwap = 10 * time.Minute, 15 * time.Second, 10 * time.Minute / 6
	for _, j := range r.Jobs {
		bound := hardWait
		for _, k := range r.Jobs {
			if k.Priority >= j.Priority-10 && k.Submitted <= j.Submitted+hardWait { // age may make up for ten points
				p := r.Trace.Plugins[k.Plugin]
				bound += k.Run + time.Duration(max(p.Load.Min, p.Load.Max)) + swap + perSwap
			}
		}
		if j.Wait > bound {
			tell(rt, r)
			rt.Fatalf("job %s waited %s; its bound is %s", j.ID, j.Wait, bound)
		}
	}
}
