package sched

import (
	"cmp"
	"slices"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/sched/learn"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// view describes the moment to the policy. It asks the queue for no more jobs
// of an instance than it could start, and one more to know that some wait; the
// queue adds the oldest of each lower priority, which age may have put first.
func (l *loop) view(now time.Time) View {
	l.views++
	most := 0
	for _, in := range l.insts {
		most = max(most, in.slotsFree())
	}
	groups := l.s.o.Queue.Groups(max(most, 1) + 1)
	l.groups = l.groups[:0]
	ready := 0
	for i := range groups {
		ready += groups[i].Pending
		g := l.groupView(now, l.inst(groups[i].Instance), groups[i].Ready)
		g.Queued = groups[i].Pending
		l.groups = append(l.groups, g)
	}
	l.s.metrics.ready.Set(float64(ready))
	l.addWorkers(now)
	l.dropHolds()
	l.monitorInstance = l.servesMonitor()
	swapsLeft, swapsAgain := l.swaps.left(now)
	v := View{
		Now: now, Snapshot: l.snap, Fresh: l.fresh, Monitor: l.monitor,
		Groups: l.groups, Claims: l.viewClaims(),
		FreeRAM: l.freeRAM, TotalRAM: l.totalRAM, DevFree: l.devFree,
		Devices: l.devs, Running: l.runViews(), Shadow: l.shadow, Share: l.share, Quota: l.quotas(l.groups),
		SwapsLeft: swapsLeft, SwapsAgain: swapsAgain, MonitorInstance: l.monitorInstance,
		Slots: -1, SlotsMax: l.s.o.Slots,
	}
	if l.s.o.Slots > 0 {
		v.Slots = max(l.s.o.Slots-len(l.runs), 0)
	}
	return v
}

// viewClaims are the claims as a policy may add them up: what lingers of ended
// runs is no more than comes on top of what their worker uses.
func (l *loop) viewClaims() []Claim {
	if !slices.ContainsFunc(l.order, func(in *inst) bool { return !in.lingers.IsZero() && !in.held }) {
		return l.ledger.claims
	}
	l.lent = append(l.lent[:0], l.ledger.claims...)
	for i := range l.lent {
		if c := &l.lent[i]; c.own() && c.Kind == KindExecute && !l.inst(c.Instance).held {
			c.Bytes = l.accounts[accountKey{c.Instance, c.Device}].unused()
		}
	}
	return l.lent
}

// addWorkers appends the instances without ready jobs that matter all the
// same: those with a worker, which may be evicted, and those to be loaded.
func (l *loop) addWorkers(now time.Time) {
	for _, in := range l.order {
		if in.inView != l.views && (in.live || len(in.loads) > 0) {
			in.uses.rested = in.uses.rested || in.running == 0
			l.groups = append(l.groups, l.groupView(now, in, nil))
		}
	}
}

func (l *loop) groupView(now time.Time, in *inst, ready []jobs.Ready) GroupView {
	in.inView = l.views
	if len(ready) > 0 || len(in.loads) > 0 {
		in.wantedAt = l.views
	}
	g := GroupView{
		Instance: in.name, Enabled: in.enabled, Known: in.known, Problem: in.problem, Demand: in.demand,
		Ready: ready, LoadWanted: len(in.loads) > 0 && !in.loading, Concurrency: in.slotsTotal(), SlotsFree: in.slotsFree(),
		Resident: in.live, Pinned: in.pinned, CoolUntil: in.coolUntil, Failed: orElse(in.failed, in.gaveUp), WaitSince: in.waitSince,
		Loading: in.loading || in.state == supervisor.Starting || in.state == supervisor.Initializing,
	}
	if g.LoadWanted { // somebody wants it tried again, whatever went wrong before
		g.Failed, g.CoolUntil = "", time.Time{}
	}
	if in.live && in.running == 0 && !in.loading {
		g.IdleSince = in.idleSince
	}
	if in.stop != nil {
		g.Stopping = in.stop.cause
	}
	g.Barred = in.barred
	for _, v := range in.victims {
		g.WaitingFor = append(g.WaitingFor, v.name)
	}
	if in.live && in.loaded && in.running > 0 && g.Stopping == "" {
		switch in.state { // nothing goes onto the place of a worker that has just died
		case supervisor.Stopped, supervisor.Backoff, supervisor.FailedState:
			g.Stopping = "it ended"
		}
	}
	l.describeNeeds(now, in, &g)
	return g
}

// describeNeeds adds what is known of the instance's appetite, place and habits.
func (l *loop) describeNeeds(now time.Time, in *inst, g *GroupView) {
	slots := g.SlotsFree
	g.Need, g.SlotsFree = l.needs(in, slots)
	in.oneByOne = g.SlotsFree < slots && g.SlotsFree > 0
	g.Devices = in.devices
	g.Pin, g.Prefer, g.Avoid = in.placement.Pin, in.placement.Prefer, in.placement.Avoid
	g.ResidentSince, g.LastUsed, g.Uses = in.residentSince, in.lastUsed, in.uses.now(now)
	if p, ok := l.profileOf(in); ok {
		t := l.timesOf(&p)
		g.LoadTime, g.RunTime, g.RunTimeP90 = t.load, t.run, t.runP90
	}
	g.LastPriority = in.lastPriority
	g.CanRelease = in.canAsk && !in.asked
	g.Lingering = in.live && in.lingering()
	g.Measuring, g.Streak = in.measuring != nil || in.measureLoad, in.streak
}

// times are what a profile says of loads and runs, as of its counts: the
// percentiles are sorted for once, and not in every pass.
type times struct {
	loads, runs       int64
	load, run, runP90 time.Duration
}

func (l *loop) timesOf(p *learn.Profile) times {
	t, ok := l.times[p.Key]
	if !ok || t.loads != p.Load.Count || t.runs != p.Run.Count {
		t = times{loads: p.Load.Count, runs: p.Run.Count}
		t.load, _ = p.LoadTime()
		t.run, t.runP90 = p.RunTime()
		l.times[p.Key] = t
	}
	return t
}

// runViews describes the jobs at work, in a fixed order.
func (l *loop) runViews() []RunView {
	l.running = l.running[:0]
	for _, r := range l.runs {
		v := RunView{Job: r.id, Instance: r.instance, Submitter: r.submitter, Priority: r.priority, Since: r.since,
			Devices: r.in.devices, VRAM: r.need.ExecuteVRAM, RAM: r.need.ExecuteRAM}
		if p, ok := l.profileOf(r.in); ok {
			if t := l.timesOf(&p); t.runP90 > 0 {
				v.Ends = r.executing(r.since).Add(t.runP90)
			}
		}
		l.running = append(l.running, v)
	}
	slices.SortFunc(l.running, func(a, b RunView) int {
		return cmp.Or(cmp.Compare(a.Instance, b.Instance), cmp.Compare(a.Job, b.Job))
	})
	return l.running
}

// dropHolds gives back room that was kept for an instance whose jobs went away.
func (l *loop) dropHolds() {
	for _, in := range l.order {
		if in.held && in.wantedAt != l.views {
			in.held = false
			in.victims = nil
			l.ledger.dropHolds(in.name)
		}
	}
	l.rebalance()
}
