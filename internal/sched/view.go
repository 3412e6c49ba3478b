package sched

import (
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// view describes the moment to the policy. It asks the queue for no more jobs
// of an instance than it could start, and one more to know that some wait.
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
		l.groups = append(l.groups, l.groupView(l.inst(groups[i].Instance), groups[i].Ready))
	}
	l.s.metrics.ready.Set(float64(ready))
	l.addWorkers()
	l.dropHolds()
	v := View{
		Now: now, Snapshot: l.snap, Fresh: l.fresh, Monitor: l.monitor,
		Groups: l.groups, Claims: l.ledger.claims,
		FreeRAM: l.freeRAM, TotalRAM: l.totalRAM, DevFree: l.devFree,
		Slots: -1, SlotsMax: l.s.o.Slots,
	}
	if l.s.o.Slots > 0 {
		v.Slots = max(l.s.o.Slots-len(l.runs), 0)
	}
	return v
}

// addWorkers appends the instances without ready jobs that matter all the
// same: those with a worker, which may be evicted, and those to be loaded.
func (l *loop) addWorkers() {
	for _, in := range l.insts {
		if in.inView != l.views && (in.live || len(in.loads) > 0) {
			l.groups = append(l.groups, l.groupView(in, nil))
		}
	}
}

func (l *loop) groupView(in *inst, ready []jobs.Ready) GroupView {
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
	for _, v := range in.victims {
		g.WaitingFor = append(g.WaitingFor, v.name)
	}
	return g
}

// dropHolds gives back room that was kept for an instance whose jobs went away.
func (l *loop) dropHolds() {
	for _, in := range l.insts {
		if in.held && !in.live && in.wantedAt != l.views {
			in.held = false
			in.victims = nil
			l.ledger.release(in.name)
		}
	}
	l.rebalance()
}
