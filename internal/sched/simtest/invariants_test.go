package simtest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"pgregory.net/rapid"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
)

// checker holds every decision of a simulation against what must never happen.
type checker struct {
	t     *Trace
	bad   []string
	evict []eviction
}

type eviction struct {
	at            time.Duration
	victim, asker string
	devices       []string // of the victim
}

func (c *checker) failf(m *Moment, format string, args ...any) {
	if len(c.bad) < 5 {
		c.bad = append(c.bad, fmt.Sprintf("at %s: ", m.At)+fmt.Sprintf(format, args...))
	}
}

// watch is Options.Watch.
func (c *checker) watch(m *Moment) {
	groups := make(map[string]*sched.GroupView, len(m.View.Groups))
	for i := range m.View.Groups {
		groups[m.View.Groups[i].Instance] = &m.View.Groups[i]
	}
	c.evictions(m, groups)
	c.slots(m, groups)
	c.stale(m, groups)
}

// evictions: never a busy, pinned or monitor's worker.
func (c *checker) evictions(m *Moment, groups map[string]*sched.GroupView) {
	busy := make(map[string]bool)
	for _, r := range m.View.Running {
		busy[r.Instance] = true
	}
	for _, s := range m.Plan.Start {
		busy[s.Instance] = true
	}
	for _, e := range m.Plan.Evict {
		g := groups[e.Instance]
		switch {
		case g == nil || !g.Resident:
			c.failf(m, "evicts %s, which has no worker", e.Instance)
		case g.IdleSince.IsZero() || busy[e.Instance]:
			c.failf(m, "evicts %s, which works", e.Instance)
		case g.Pinned:
			c.failf(m, "evicts %s, which is pinned", e.Instance)
		case e.Instance == m.View.MonitorInstance:
			c.failf(m, "evicts %s, which is the monitor", e.Instance)
		}
		ev := eviction{at: m.At, victim: e.Instance, asker: e.Asker}
		if g != nil {
			for _, dev := range g.Devices {
				ev.devices = append(ev.devices, string(dev))
			}
		}
		c.evict = append(c.evict, ev)
	}
}

// slots: never more jobs on a worker than it takes, and no job twice.
func (c *checker) slots(m *Moment, groups map[string]*sched.GroupView) {
	n := make(map[string]int)
	seen := make(map[jobs.ID]bool)
	for _, s := range m.Plan.Start {
		if s.Job == "" {
			continue
		}
		n[s.Instance]++
		if seen[s.Job] {
			c.failf(m, "starts job %s twice", s.Job)
		}
		seen[s.Job] = true
		if g := groups[s.Instance]; g == nil || n[s.Instance] > g.SlotsFree {
			c.failf(m, "starts more jobs of %s than it has slots", s.Instance)
		}
	}
}

// stale: nothing that needs an accelerator's facts begins without them.
func (c *checker) stale(m *Moment, groups map[string]*sched.GroupView) {
	if m.View.Fresh {
		return
	}
	for _, s := range m.Plan.Start {
		if g := groups[s.Instance]; g != nil && !g.Resident && g.Need.GPU {
			c.failf(m, "starts a worker of %s on a stale reading", s.Instance)
		}
	}
}

// simulate runs one random trace and checks what holds for all of them.
func simulate(rt *rapid.T, t *Trace, p sched.Policy) (*Result, *checker) {
	c := &checker{t: t}
	r, err := Simulate(t, Options{Policy: p, Watch: c.watch})
	if err != nil {
		rt.Fatalf("%v", err)
	}
	admissions.Add(int64(r.Admissions))
	if len(c.bad) > 0 {
		rt.Fatalf("%s", strings.Join(c.bad, "\n"))
	}
	if r.Alive > 0 {
		rt.Fatalf("%d workers are left after the daemon's end", r.Alive)
	}
	for _, j := range r.Jobs {
		if j.ends > 1 {
			rt.Fatalf("job %s ended %d times", j.ID, j.ends)
		}
		if !r.Overdue && j.ends == 0 {
			rt.Fatalf("job %s was lost: %s", j.ID, j.Status)
		}
	}
	onlyOnce(rt, r)
	return r, c
}

// onlyOnce: no job runs in two places at once, nor after it has completed.
func onlyOnce(rt *rapid.T, r *Result) {
	last := make(map[string]time.Duration)
	for _, s := range r.Spans {
		if s.Kind != KindRun && s.Kind != KindOOM {
			continue
		}
		if s.From < last[s.Job] {
			rt.Fatalf("job %s runs from %s while it runs until %s", s.Job, s.From, last[s.Job])
		}
		last[s.Job] = s.To
	}
	for _, j := range r.Jobs {
		if j.Status == jobs.Completed && last[j.ID] != j.Ended {
			rt.Fatalf("job %s ran until %s after it had completed at %s", j.ID, last[j.ID], j.Ended)
		}
	}
}

// completes: every job ends well.
func completes(rt *rapid.T, r *Result) {
	tell(rt, r)
	if r.Overdue {
		rt.Fatalf("jobs are left at %s", r.End)
	}
	for _, j := range r.Jobs {
		if j.Status != jobs.Completed {
			rt.Fatalf("job %s is %s: %s", j.ID, j.Status, j.Error)
		}
	}
}

// neverOutOfMemory: no allocation fails.
func neverOutOfMemory(rt *rapid.T, r *Result) {
	for _, o := range r.OOMs {
		rt.Fatalf("%s ran out of memory on %s at %s: asked %d MiB, free %d MiB", o.Owner, o.Device, o.At, o.Asked/resource.MiB, o.Free/resource.MiB)
	}
}

func TestRandom_SameSeedSameOutput(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		tr := shape{jobs: 30, unknown: true, foreign: true, broken: true, kills: true}.draw(rt)
		a, _ := simulate(rt, tr, subject())
		b, _ := simulate(rt, tr, subject())
		if x, y := fingerprint(a), fingerprint(b); x != y {
			rt.Fatalf("two runs differ:\n%s\n%s", x, y)
		}
	})
}

func fingerprint(r *Result) string {
	var b strings.Builder
	fmt.Fprintln(&b, r.End, r.Admissions, r.Loads, r.Stops, r.Passes)
	for _, s := range r.Spans {
		fmt.Fprintln(&b, s)
	}
	return b.String()
}

// tell has the simulation told when the property fails.
func tell(rt *rapid.T, r *Result) {
	rt.Cleanup(func() {
		if rt.Failed() {
			rt.Log(story(r))
		}
	})
}

// story tells a failed simulation: what was installed and what was done.
func story(r *Result) string {
	var b strings.Builder
	body, err := yaml.Marshal(r.Trace)
	fmt.Fprintf(&b, "%s%v\n", body, err)
	for _, name := range sortedKeys(r.Blocks) {
		fmt.Fprintf(&b, "%s waits: %+v\n", name, *r.Blocks[name])
	}
	for i, s := range r.Spans {
		if i > 60 {
			break
		}
		fmt.Fprintf(&b, "%s..%s %s %s %s %v\n", s.From, s.To, s.Kind, s.Instance, s.Job, s.Devices)
	}
	for i, n := range r.Notes {
		if i > 60 {
			break
		}
		fmt.Fprintf(&b, "%s %s %s %s\n", n.At, n.Kind, n.Instance, n.Data)
	}
	return b.String()
}
