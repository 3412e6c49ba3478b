package sched

import (
	"slices"
	"time"

	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched/learn"
)

// A monitor may show the machine as it was a while ago and say that it is of
// now. How long ago is seen when it goes on listing a process that is dead, and
// it is no more than the time from the begin of a load or run to the first reading
// that shows memory for it. Until then it is taken to be as bad as it gets.

const (
	// lagsKept observations are remembered, the worst counts.
	lagsKept = 8
	// lagSlack is what readings of a monitor that does not lag may be late by.
	lagSlack = 250 * time.Millisecond
)

// noteLag remembers for how long a dead process was still listed.
func (l *loop) noteLag(d time.Duration) {
	if len(l.lags) == lagsKept {
		l.lags = slices.Delete(l.lags, 0, 1)
	}
	l.lags = append(l.lags, d)
	l.lag = slices.Max(l.lags)
}

// noteBound remembers that what began d ago is in a reading.
func (l *loop) noteBound(d time.Duration) {
	if l.lagBound == 0 || d < l.lagBound {
		l.lagBound = max(d, 1)
	}
}

// lagKnown reports whether anything was seen of how late readings are.
func (l *loop) lagKnown() bool { return len(l.lags) > 0 || l.lagBound > 0 }

// allowance is how old what a reading shows may be: only one taken that long
// after an end proves anything about what came after it.
func (l *loop) allowance() time.Duration {
	switch {
	case len(l.lags) > 0:
		return min(settleCap, l.lag+l.lag/4+lagSlack)
	case l.lagBound > 0:
		return min(settleCap, l.lagBound+lagSlack)
	}
	return settleCap
}

// allowanceOf is allowance where the instance uses an accelerator: what a worker
// takes of the host is read from its own process, which does not lag.
func (l *loop) allowanceOf(in *inst) time.Duration {
	if !in.demand.RequiresGPU {
		return 0
	}
	return l.allowance()
}

// watchRise notes the begin of a run before which nothing moved: memory that
// appears now is its own.
func (l *loop) watchRise(now time.Time, in *inst) {
	in.riseFrom = time.Time{}
	if in.running > 0 || in.idleSince.IsZero() || now.Sub(in.idleSince) < settleCap {
		return
	}
	in.riseFrom, in.riseBase = now, 0
	for _, u := range in.use {
		in.riseBase = max(in.riseBase, u.bytes)
	}
}

// rises looks for the first trace of a load or run in the reading.
func (l *loop) rises(now time.Time, in *inst) {
	var most resource.Bytes
	for _, u := range l.found {
		if u.source != learn.SourceWorker {
			most = max(most, u.bytes)
		}
	}
	if !in.riseFrom.IsZero() && most > in.riseBase+settleNoise {
		l.noteBound(now.Sub(in.riseFrom))
		in.riseFrom = time.Time{}
	}
}

// linger keeps what an ended run had set aside of the accelerators for its worker
// alone, until a reading shows what the worker still uses: some give nothing back.
func (l *loop) linger(now time.Time, r *run) {
	in := r.in
	l.bequeath(now, r)
	if in.live && !r.lost && r.reached {
		for i := range l.ledger.claims {
			c := l.ledger.claims[i]
			if c.Owner != string(r.id) || c.Device == resource.HostDevice || c.Bytes <= 0 {
				continue
			}
			c.Owner, c.Phase, c.Measured, c.Source = in.name, PhaseReserved, 0, ""
			if at := l.ledger.find(in.name, KindExecute, c.Device); at >= 0 {
				c.Bytes += l.ledger.claims[at].Bytes
			}
			l.ledger.take(now, []Claim{c})
			in.lingers = now
		}
	}
	l.ledger.release(string(r.id))
}

// bequeath leaves to another run of the worker what the ended one had set aside
// for more than itself: the author's word, say, which is about all of them.
func (l *loop) bequeath(now time.Time, r *run) {
	var heir *run
	for _, o := range l.runs {
		if o.in == r.in && (heir == nil || o.id < heir.id) {
			heir = o
		}
	}
	if heir == nil {
		return
	}
	_, all := l.claimedBy(r.in)
	lost := resource.Bytes(0)
	for i := range l.ledger.claims {
		if c := &l.ledger.claims[i]; c.Owner == string(r.id) && c.Device != resource.HostDevice {
			lost = max(lost, c.Bytes)
		}
	}
	keep := min(l.wholeOf(r.in, r.in.running)-(all-lost), lost)
	if keep <= 0 {
		return
	}
	heir.need.ExecuteVRAM += keep
	for _, dev := range r.in.devices {
		c := Claim{Owner: string(heir.id), Kind: KindExecute, Instance: r.in.name, Device: dev, Bytes: keep, Phase: PhaseExecuting}
		if at := l.ledger.find(c.Owner, c.Kind, dev); at >= 0 {
			c.Bytes += l.ledger.claims[at].Bytes
		}
		l.ledger.take(now, []Claim{c})
		if at := l.ledger.find(string(r.id), KindExecute, dev); at >= 0 {
			l.ledger.claims[at].Bytes = max(l.ledger.claims[at].Bytes-keep, 0)
		}
	}
}

// useLingering gives a new run what an ended one of its worker had set aside.
func (l *loop) useLingering(in *inst, claims []Claim) {
	if in.lingers.IsZero() {
		return
	}
	for i := range claims {
		if claims[i].Kind != KindExecute {
			continue
		}
		if at := l.ledger.find(in.name, KindExecute, claims[i].Device); at >= 0 {
			l.ledger.claims[at].Bytes -= claims[i].Bytes
		}
	}
	l.ledger.drop(func(c *Claim) bool { return c.Owner == in.name && c.Kind == KindExecute && c.Bytes <= 0 })
}

// endLingering gives back what the reading has proved to be free or in use.
func (l *loop) endLingering(now time.Time) {
	for _, in := range l.order {
		if in.lingers.IsZero() || l.snap.At.Sub(in.lingers) < l.allowance() {
			continue
		}
		in.lingers = time.Time{}
		if !in.held {
			l.ledger.dropHolds(in.name)
		}
	}
}

// lingering reports whether something has ended that no reading has proved yet.
func (in *inst) lingering() bool {
	return in.demand.RequiresGPU && in.live && (!in.lingers.IsZero() || in.meter.pending())
}
