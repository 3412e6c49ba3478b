package policy_test

import (
	"slices"
	"time"

	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/sched/policy"
	"pgregory.net/rapid"
)

// evictionsPay carries a plan out, lets everything that is on its way come back,
// and decides once more: whoever had workers stopped for it starts then. Somebody
// more urgent may make room for himself first.
func evictionsPay(t *rapid.T, v sched.View, plan sched.Plan) {
	if v.Slots >= 0 || v.Quota != nil { // may have gone to others meanwhile
		return
	}
	for _, e := range plan.Evict {
		if e.Instance == e.Asker { // it starts over when there is room, wherever that is
			continue
		}
		moment, last := v, plan
		for !startsFor(last, e.Asker) {
			moment = carryOut(moment, last)
			last = policy.Reserve(policy.ReserveOptions{}).Decide(moment)
			if !startsFor(last, e.Asker) && len(last.Evict)+len(last.Release) == 0 {
				t.Fatalf("%s was stopped for %s, which does not start: first %s, then %s\nafter it:\n%s", e.Instance, e.Asker,
					tell(v, plan), tell(moment, last), sketch(moment))
			}
			if moment.Now = moment.Now.Add(time.Second); moment.Now.Sub(v.Now) > time.Minute {
				t.Fatalf("%s was stopped for %s, and others go on and on: %s, at last %s", e.Instance, e.Asker, tell(v, plan), tell(moment, last))
			}
		}
	}
}

// startsFor reports whether the plan starts something of an instance for which it
// stops nobody.
func startsFor(plan sched.Plan, instance string) bool {
	return slices.ContainsFunc(plan.Start, func(s sched.Start) bool { return s.Instance == instance }) &&
		!slices.ContainsFunc(plan.Evict, func(e sched.Eviction) bool { return e.Asker == instance })
}

// swapsStayInBudget: every asker whose victims leave a device spends one change
// of its hands.
func swapsStayInBudget(t *rapid.T, v sched.View, plan sched.Plan) {
	askers := make(map[resource.DeviceID]map[string]bool)
	for _, e := range plan.Evict {
		if e.Instance == e.Asker {
			continue
		}
		for _, d := range find(&v, e.Instance).Devices {
			if askers[d] == nil {
				askers[d] = make(map[string]bool)
			}
			askers[d][e.Asker] = true
		}
	}
	for d, who := range askers {
		if left, bound := v.SwapsLeft[d]; bound && len(who) > left {
			t.Fatalf("%s changes hands for %v, %d are left: %s", d, who, left, tell(v, plan))
		}
	}
}

// carryOut is the moment after a plan: what it starts is loaded and at work, what
// it stops is gone, and no memory is on its way any more.
func carryOut(v sched.View, plan sched.Plan) sched.View {
	n := nextView{v: clone(v)}
	n.v.Devices = slices.Clone(v.Devices)
	for i := range n.v.Groups {
		g := &n.v.Groups[i]
		if g.Lingering {
			n.proved(g)
		}
		if g.Stopping != "" && g.Resident && !slices.ContainsFunc(v.Running, func(r sched.RunView) bool { return r.Instance == g.Instance }) {
			n.ended(g)
		}
	}
	for _, s := range plan.Start {
		n.started(s)
	}
	for _, f := range plan.Fail {
		n.answered(f.Instance, func(g *sched.GroupView) { g.LoadWanted = g.LoadWanted && f.Job != "" }, string(f.Job))
	}
	for _, e := range plan.Evict {
		n.ended(find(&n.v, e.Instance))
	}
	for _, c := range plan.Hold {
		n.unhold(c.Instance)
	}
	for _, c := range plan.Hold {
		n.claim(c)
	}
	n.v.Shadow = plan.Shadow
	return n.v
}

type nextView struct{ v sched.View }

func (n *nextView) free(d resource.DeviceID, bytes resource.Bytes) {
	if d == resource.HostDevice {
		n.v.FreeRAM += bytes
	}
	for i := range n.v.Devices {
		if n.v.Devices[i].ID == d {
			n.v.Devices[i].Free += bytes
		}
	}
}

func (n *nextView) claim(c sched.Claim) {
	n.v.Claims = append(n.v.Claims, c)
	n.free(c.Device, -c.Bytes)
}

// drop removes claims and gives back what their accounts shrink by.
func (n *nextView) drop(which func(*sched.Claim) bool) {
	before := newModel(&n.v)
	n.v.Claims = slices.DeleteFunc(slices.Clone(n.v.Claims), func(c sched.Claim) bool { return which(&c) })
	after := newModel(&n.v)
	for k := range before.base {
		n.free(k.pool, before.account(k.instance, k.pool)-after.account(k.instance, k.pool))
	}
	for k, bytes := range before.held {
		n.free(k.pool, bytes-after.held[k])
	}
}

func (n *nextView) unhold(instance string) {
	n.drop(func(c *sched.Claim) bool {
		return c.Instance == instance && c.Owner == instance && c.Phase == sched.PhaseReserved
	})
}

// proved: a reading shows what the worker still has of its ended runs.
func (n *nextView) proved(g *sched.GroupView) {
	g.Lingering = false
	if len(g.WaitingFor) > 0 {
		return
	}
	n.unhold(g.Instance)
	if g.CanRelease {
		return
	}
	m := newModel(&n.v)
	n.v.Claims = slices.Clone(n.v.Claims)
	for i := range n.v.Claims {
		c := &n.v.Claims[i]
		k := place{c.Instance, c.Device}
		if c.Instance == g.Instance && c.Device != resource.HostDevice && c.Measured > m.base[k] {
			c.Measured = m.base[k]
		}
	}
	for k := range m.base {
		if k.instance == g.Instance && k.pool != resource.HostDevice {
			n.free(k.pool, max(m.used[k]-m.base[k], 0))
		}
	}
}

func (n *nextView) ended(g *sched.GroupView) {
	n.drop(func(c *sched.Claim) bool { return c.Instance == g.Instance })
	g.Resident, g.Devices, g.IdleSince, g.Stopping, g.Lingering = false, nil, time.Time{}, "", false
}

func (n *nextView) answered(instance string, change func(*sched.GroupView), job string) {
	g := find(&n.v, instance)
	change(g)
	for i, r := range g.Ready {
		if string(r.ID) == job {
			g.Ready = slices.Delete(g.Ready, i, i+1)
			break
		}
	}
}

func (n *nextView) started(s sched.Start) {
	g := find(&n.v, s.Instance)
	if s.Job == "" && g.Resident { // it was there: only the wish is fulfilled
		g.LoadWanted = false
		return
	}
	n.unhold(s.Instance)
	if !g.Resident {
		g.Resident, g.Devices, g.ResidentSince = true, s.Devices, n.v.Now
	}
	g.LoadWanted = false
	before := newModel(&n.v)
	for _, c := range s.Claims {
		c.Phase = sched.PhaseResident
		n.v.Claims = append(n.v.Claims, c)
	}
	after := newModel(&n.v)
	for k := range after.base {
		n.free(k.pool, before.account(k.instance, k.pool)-after.account(k.instance, k.pool))
	}
	if s.Measure {
		for i := range n.v.Devices {
			if slices.Contains(g.Devices, n.v.Devices[i].ID) {
				n.v.Devices[i].Exclusive = s.Instance
			}
		}
		g.Measuring = true
	}
	g.IdleSince = time.Time{}
	if s.Job == "" {
		return
	}
	n.answered(s.Instance, func(g *sched.GroupView) { g.SlotsFree-- }, string(s.Job))
	n.v.Running = append(slices.Clone(n.v.Running), sched.RunView{Job: s.Job, Instance: s.Instance, Since: n.v.Now, Devices: g.Devices,
		VRAM: g.Need.ExecuteVRAM, RAM: g.Need.ExecuteRAM})
}
