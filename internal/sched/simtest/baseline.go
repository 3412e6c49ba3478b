package simtest

import (
	"cmp"
	"slices"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
)

// queueWait is how long a job of the baselines waits for resources before it fails.
const queueWait = 300 * time.Second

// Sequential is the order of the Python systems: the whole host runs one job at
// a time, the most urgent and oldest; what is in its way is stopped, least
// recently used first, and a job whose memory does not come fails after a while.
// It needs Options.Slots 1.
func Sequential() sched.Policy { return sequential{} }

type sequential struct{}

// Name implements sched.Policy.
func (sequential) Name() string { return "sequential" }

// Decide implements sched.Policy.
func (sequential) Decide(v sched.View) sched.Plan {
	b := newBaseline(&v)
	if v.Slots != 0 && len(b.order) > 0 {
		b.tryStart(b.order[0], true)
	}
	return b.finish()
}

// SkipAhead starts whatever fits into the monitor's newest reading, in order,
// and keeps no account of what it gave away: two starts between two readings
// get the same memory.
func SkipAhead() sched.Policy { return skipAhead{} }

type skipAhead struct{}

// Name implements sched.Policy.
func (skipAhead) Name() string { return "skip-ahead" }

// Decide implements sched.Policy.
func (skipAhead) Decide(v sched.View) sched.Plan {
	b := newBaseline(&v)
	for _, c := range b.order {
		b.tryStart(c, true)
	}
	return b.finish()
}

// candidate is one ready job.
type candidate struct {
	g *sched.GroupView
	r jobs.Ready
}

// baseline is one decision of the two policies above.
type baseline struct {
	v     *sched.View
	plan  sched.Plan
	order []candidate
	slots map[string]int
	begun map[string]bool // instances whose worker this plan starts
	asked bool            // an eviction is under way or planned
}

func newBaseline(v *sched.View) *baseline {
	b := &baseline{v: v, slots: make(map[string]int), begun: make(map[string]bool), plan: sched.Plan{Block: make(map[string]*jobs.Block)}}
	for i := range v.Groups {
		g := &v.Groups[i]
		b.slots[g.Instance] = g.SlotsFree
		b.asked = b.asked || len(g.WaitingFor) > 0 || g.Stopping != ""
		for _, r := range g.Ready {
			b.order = append(b.order, candidate{g, r})
		}
	}
	slices.SortFunc(b.order, func(x, y candidate) int {
		return cmp.Or(-cmp.Compare(x.r.Priority, y.r.Priority), cmp.Compare(x.r.Seq, y.r.Seq))
	})
	return b
}

// tryStart starts a job where it fits; evict says that it may ask for room.
func (b *baseline) tryStart(c candidate, evict bool) {
	g := c.g
	switch {
	case g.Stopping != "" || g.CoolUntil.After(b.v.Now) || g.Failed != "":
		if g.Failed != "" {
			b.plan.Fail = append(b.plan.Fail, sched.Failure{Job: c.r.ID, Instance: g.Instance, Error: &jobs.Error{Category: jobs.ResourceCat, Message: g.Failed}})
		}
		if g.CoolUntil.After(b.v.Now) && (b.plan.WakeAt.IsZero() || g.CoolUntil.Before(b.plan.WakeAt)) {
			b.plan.WakeAt = g.CoolUntil
		}
		return
	case b.slots[g.Instance] == 0:
		return
	case g.Resident || b.begun[g.Instance]:
		b.start(c, nil)
		return
	}
	devices, ok := b.fits(g)
	switch {
	case ok:
		b.start(c, devices)
	case evict && !b.asked && b.evict(g):
	case !g.WaitSince.IsZero() && b.v.Now.Sub(g.WaitSince) >= queueWait:
		b.plan.Fail = append(b.plan.Fail, sched.Failure{Job: c.r.ID, Instance: g.Instance, Error: &jobs.Error{Category: jobs.ResourceCat, Message: "waited too long for memory"}})
	case !g.WaitSince.IsZero():
		b.plan.WakeAt = g.WaitSince.Add(queueWait)
	}
}

func (b *baseline) start(c candidate, devices []resource.DeviceID) {
	b.slots[c.g.Instance]--
	b.begun[c.g.Instance] = true
	b.plan.Start = append(b.plan.Start, sched.Start{Job: c.r.ID, Instance: c.g.Instance, Devices: devices})
}

// fits looks at the reading alone: the devices with the most free memory.
func (b *baseline) fits(g *sched.GroupView) ([]resource.DeviceID, bool) {
	if b.v.Snapshot.Host.MemAvailable < g.Need.ResidentRAM+g.Need.ExecuteRAM {
		return nil, false
	}
	if !g.Need.GPU {
		return nil, true
	}
	devs := slices.Clone(b.v.Snapshot.Devices)
	slices.SortStableFunc(devs, func(x, y resource.Device) int { return -cmp.Compare(x.Free, y.Free) })
	n := max(g.Need.Devices, 1)
	if len(devs) < n || devs[n-1].Free < g.Need.ResidentVRAM+g.Need.ExecuteVRAM {
		return nil, false
	}
	out := make([]resource.DeviceID, n)
	for i := range out {
		out[i] = devs[i].ID
	}
	return out, true
}

// evict stops the idle worker that was used longest ago.
func (b *baseline) evict(g *sched.GroupView) bool {
	var victim *sched.GroupView
	for i := range b.v.Groups {
		o := &b.v.Groups[i]
		if o.Instance == g.Instance || o.IdleSince.IsZero() || o.Pinned || o.Stopping != "" || b.begun[o.Instance] || !o.Need.GPU {
			continue
		}
		if victim == nil || o.IdleSince.Before(victim.IdleSince) || (o.IdleSince.Equal(victim.IdleSince) && o.Instance < victim.Instance) {
			victim = o
		}
	}
	if victim == nil {
		return false
	}
	b.asked = true
	b.plan.Evict = append(b.plan.Evict, sched.Eviction{Instance: victim.Instance, Asker: g.Instance})
	return true
}

// finish gives every group that waits its reason.
func (b *baseline) finish() sched.Plan {
	started := make(map[jobs.ID]bool)
	for _, s := range b.plan.Start {
		started[s.Job] = true
	}
	for _, c := range b.order {
		if !started[c.r.ID] && b.plan.Block[c.g.Instance] == nil {
			code := "resource"
			if c.g.Resident || b.v.Slots == 0 || b.begun[c.g.Instance] {
				code = "no_slot"
			}
			b.plan.Block[c.g.Instance] = &jobs.Block{Code: code, Sentence: "waits for its turn"}
		}
	}
	return b.plan
}
