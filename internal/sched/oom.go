package sched

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched/learn"
	"go.uber.org/zap"
)

const (
	// maxLoadOOMs of one job: the load is tried once more, after room was made.
	maxLoadOOMs = 2
	// maxRunOOMs of one job, whatever its attempts are: each time it asks for more.
	maxRunOOMs = 3
	// troubleKept bounds how long a job's own counters are kept after the last time.
	troubleKept = 24 * time.Hour
)

// trouble counts what went wrong with one job, beside its attempts. Owned by
// the loop; the runner gets a copy.
type trouble struct {
	loadOOMs, runOOMs, vanished int
	at                          time.Time
}

// oomKind says in what a run ran out of memory.
type oomKind int

const (
	noOOM oomKind = iota
	loadOOM
	runOOM
)

// outOfMemory judges an end that says out of memory: another attempt, or the end
// of the job with a table of who held what.
func (r *run) outOfMemory(kind oomKind, end ending) ending {
	r.oom = kind
	e := end.outcome.Error
	n, most, where := r.trouble.runOOMs, maxRunOOMs, "while it ran"
	if kind == loadOOM {
		n, most, where = r.trouble.loadOOMs, maxLoadOOMs, "while its worker loaded"
	}
	if n+1 < most {
		again := retry(e)
		again.outcome.Result, again.outcome.Partial = end.outcome.Result, end.outcome.Partial
		return again
	}
	e.Retriable = false
	e.Message = fmt.Sprintf("%s; out of memory %d times %s, room was made in between. %s", e.Message, n+1, where, r.s.whoHolds())
	out := failed(e, end.outcome.Result)
	return out
}

// book is who held what when the devices were last read.
type book struct {
	devices  []DeviceView
	accounts []WorkerAccount
}

// whoHolds is the table for people, one device after the other.
func (s *Scheduler) whoHolds() string {
	b := s.book.Load()
	if b == nil || len(b.devices) == 0 {
		return "No accelerator was read."
	}
	var t strings.Builder
	t.WriteString("Who held what:")
	for i := range b.devices {
		v := &b.devices[i]
		fmt.Fprintf(&t, " %s: %.0f MiB, free %.0f, others %.0f", v.ID, v.Total.MB(), v.Free.MB(), v.External.MB())
		for _, a := range b.accounts {
			if a.Device == v.ID {
				fmt.Fprintf(&t, ", %s %.0f", a.Instance, a.Counted().MB())
			}
		}
		t.WriteString(";")
	}
	return strings.TrimSuffix(t.String(), ";")
}

// noteOOM raises the estimate of what ran out, counts it for the job, and after a
// load begins to make room for the next try.
func (l *loop) noteOOM(now time.Time, in *inst, r *run) {
	t := l.troubleOf(now, r.id)
	phase := learn.Run
	if r.oom == loadOOM {
		phase = learn.Load
		t.loadOOMs++
	} else {
		t.runOOMs++
	}
	l.teach(now, in, func(p *learn.Profile) { p.OOM(l.oomOf(now, in, r, phase)) })
	l.saveProfiles(now, true)
	switch {
	case r.oom == loadOOM && t.loadOOMs < maxLoadOOMs:
		l.beginLadder(now, in)
	case r.oom == runOOM && !r.need.Known: // it had all that was there: not again before somebody has looked
		in.coolUntil = later(in.coolUntil, now.Add(l.allowance()))
	}
}

// ladder is the way from a load that ran out of memory to the next try, which is
// the last one: idle workers on its devices give back what they can spare, what
// comes back is waited for, and where that is too little they are stopped. The
// instance cools down meanwhile, longer than any of it takes.
type ladder struct {
	began time.Time
	// had is, by device, what the load could have had when it ran out.
	had amounts
}

// beginLadder asks the idle workers to release.
func (l *loop) beginLadder(now time.Time, in *inst) {
	in.ladder = &ladder{began: now, had: make(amounts, len(in.devices))}
	for _, dev := range in.devices {
		if v := l.viewOf(dev); v != nil {
			in.ladder.had[dev] = max(v.Free+l.onDevice(in, dev), 0)
		}
		for _, idle := range l.idleOn(dev) {
			if idle != in && idle.canAsk {
				l.askRelease(ReleaseAsk{Instance: idle.name, Asker: in.name})
			}
		}
	}
}

// climb takes the next step of those ladders whose memory has been judged.
func (l *loop) climb(now time.Time) {
	for _, in := range l.order {
		g := in.ladder
		if g == nil || len(in.victims) > 0 || l.snap.At.Sub(g.began) < l.allowance() {
			continue
		}
		if !in.live && slices.ContainsFunc(slices.Collect(maps.Keys(g.had)), l.settlingOn) {
			continue
		}
		in.ladder = nil
		if in.live { // somebody loaded it by hand
			continue
		}
		for _, dev := range slices.Sorted(maps.Keys(g.had)) {
			l.makeRoom(now, in, dev, g.had[dev])
		}
	}
}

// makeRoom stops the idle workers on dev unless there is by now what the raised
// estimate asks for, and a quarter more than what was not enough.
func (l *loop) makeRoom(now time.Time, in *inst, dev resource.DeviceID, had resource.Bytes) {
	if v := l.viewOf(dev); v == nil || v.Free >= max(l.wholeOf(in, 1), had+had/4) {
		return
	}
	for _, idle := range l.idleOn(dev) {
		if idle == in || idle.stop != nil {
			continue
		}
		l.s.log.Info("stopping an idle worker after a load ran out of memory", zap.String("instance", idle.name), zap.String("asker", in.name))
		in.victims = append(in.victims, victim{name: idle.name})
		l.stopFor(now, idle, "evicted for "+in.name, in.name)
		l.basis.moved = true
	}
}

// oomOf says what had been set aside. Of a run that was alone on its worker the
// whole is to grow by a quarter, and by as much what each further run takes:
// 1.25·(e + r/5) = 1.25·(e + r) − r. Of several each is to have a quarter more.
func (l *loop) oomOf(now time.Time, in *inst, r *run, phase learn.Phase) learn.OOM {
	o := learn.OOM{Phase: phase, Host: r.hostOOM || !in.demand.RequiresGPU, At: now}
	resident, execute := r.need.ResidentRAM, r.need.ExecuteRAM
	if o.Host {
		o.Limit = l.totalRAM
	} else {
		resident, execute = r.need.ResidentVRAM, r.need.ExecuteVRAM
		o.Limit = l.largest(in.demand.Devices)
		for _, dev := range in.devices {
			if phase == learn.Load || in.running == 0 {
				resident = max(resident, in.use[dev].bytes-execute)
			}
			if v := l.viewOf(dev); v != nil && !r.need.Known { // it had all of it
				resident = max(resident, v.Total-v.Margin-v.External)
			}
		}
	}
	switch {
	case phase == learn.Load:
		o.Claimed = resident
	case in.running == 0:
		o.Claimed, o.Whole = execute+resident/5, resident+execute
	default:
		o.Claimed = execute
	}
	return o
}

// largest is the most that each of n devices has to give beside what others use of
// it: of those that there are the n-th.
func (l *loop) largest(n int) resource.Bytes {
	rooms := make([]resource.Bytes, 0, len(l.devs))
	for i := range l.devs {
		rooms = append(rooms, l.devs[i].Total-l.devs[i].Margin-l.devs[i].External)
	}
	if len(rooms) == 0 {
		return 0
	}
	slices.Sort(rooms)
	return rooms[max(len(rooms)-max(n, 1), 0)]
}

func (l *loop) troubleOf(now time.Time, id jobs.ID) *trouble {
	t := l.troubles[id]
	if t == nil {
		t = &trouble{}
		l.troubles[id] = t
	}
	t.at = now
	if len(l.troubles) > 1024 {
		for old, x := range l.troubles {
			if now.Sub(x.at) > troubleKept {
				delete(l.troubles, old)
			}
		}
	}
	return t
}

// workerAccounts lists who has what of which device.
func (l *loop) workerAccounts() []WorkerAccount {
	at := make(map[accountKey]int, len(l.accounts))
	var out []WorkerAccount
	entry := func(instance string, dev resource.DeviceID) *WorkerAccount {
		k := accountKey{instance, dev}
		i, ok := at[k]
		if !ok {
			i = len(out)
			at[k] = i
			out = append(out, WorkerAccount{Instance: instance, Device: dev})
		}
		return &out[i]
	}
	for i := range l.ledger.claims {
		c := &l.ledger.claims[i]
		if c.Instance == "" {
			continue
		}
		a := entry(c.Instance, c.Device)
		if c.Kind == KindExecute {
			a.Execute += c.Bytes
			continue
		}
		a.Resident += c.Bytes
		a.Phase = c.Phase
		if c.Measured > a.Measured && !c.past() {
			a.Measured, a.Source = c.Measured, c.Source
		}
	}
	for _, in := range l.order {
		for dev, u := range in.use {
			if a := entry(in.name, dev); u.bytes > a.Measured {
				a.Measured, a.Source = u.bytes, u.source
			}
		}
	}
	slices.SortFunc(out, func(a, b WorkerAccount) int {
		return cmp.Or(cmp.Compare(a.Instance, b.Instance), cmp.Compare(a.Device, b.Device))
	})
	return out
}

// publishBook keeps a copy of the accounts for those who fail a job.
func (l *loop) publishBook() {
	if len(l.devs) == 0 {
		return
	}
	l.s.book.Store(&book{devices: slices.Clone(l.devs), accounts: l.workerAccounts()})
}
