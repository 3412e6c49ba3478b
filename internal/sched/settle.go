package sched

import (
	"slices"
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/resource"
	"go.uber.org/zap"
)

const (
	// settleCap is how long memory may take to come back before it is missing.
	settleCap = 5 * time.Second
	// settleShare of what a worker used must be seen back.
	settleShare = 0.9
	// settleNoise is what two equal readings may differ by.
	settleNoise = 16 * resource.MiB
)

// settle waits for one device's memory after the end of a worker. Its claim is
// in phase releasing meanwhile, quarantined when the memory is missing.
type settle struct {
	instance string
	device   resource.DeviceID
	since    time.Time // the worker's tree was gone
	pids     []int
	// ref is the last reading with the worker in it; judged is false where there
	// is none: the worker was dead before it was seen, or nobody could say what it
	// used. What is there of its memory is then part of what nobody accounts for.
	ref    reference
	judged bool
	left   resource.Bytes // of ref.bytes, not back yet
	// Of the unjudged: what nobody accounted for before the worker's end (-1: it was
	// not read) and in the last reading.
	before, last resource.Bytes
	listed       time.Time // when a dead process of it was last listed
	missing      bool      // quarantined
}

// unexplained is what is used of a device that nobody accounts for: no worker of
// ours, no process that is listed, no memory that is known to be on its way back.
// What live workers take and give back meanwhile does not move it.
func (l *loop) unexplained(p *pool) resource.Bytes {
	return p.used - p.known - p.foreign - l.leftOn(p.dev.ID)
}

// leave turns the claims of a worker that is gone into claims that are released
// when their memory is seen back. Host memory of a reaped tree is the kernel's
// again at once, and what the reading does not show yet is merely missing from it.
func (l *loop) leave(now time.Time, in *inst) {
	for _, dev := range l.heldBy(in) {
		p := l.pools[dev]
		ref, judged := in.refs[dev]
		bytes := max(l.ledger.held(in.name, dev), in.use[dev].bytes)
		if dev == resource.HostDevice || p == nil || !p.seen || (bytes == 0 && !judged) {
			continue
		}
		p.restless = now.Add(settleCap)
		s := &settle{instance: in.name, device: dev, since: now, ref: ref, judged: judged && ref.bytes > 0, left: ref.bytes,
			pids: slices.Clone(in.pids), before: l.unexplained(p), last: -1}
		l.settles = append(l.settles, s)
		l.ledger.claims = append(l.ledger.claims, Claim{Owner: in.name, Kind: KindResident, Instance: in.name, Device: dev,
			Bytes: bytes, Measured: ref.bytes, Phase: PhaseReleasing, Since: now})
	}
	l.ledger.drop(func(c *Claim) bool {
		return c.Instance == in.name && !c.past() && (c.Kind == KindResident || (c.Owner == in.name && !in.held))
	})
	l.ledger.changed = true
	clear(in.use)
	clear(in.refs)
	in.pids = in.pids[:0]
	l.forgetClaims(in.name)
}

// heldBy lists the devices that in's worker has a claim on or was seen to use.
func (l *loop) heldBy(in *inst) []resource.DeviceID {
	out := l.ledger.on(in.name)
	for dev, u := range in.use {
		if u.bytes > 0 && !slices.Contains(out, dev) {
			out = append(out, dev)
		}
	}
	slices.Sort(out)
	return out
}

// claimDead takes what a monitor that lags still lists of ended workers off the
// strangers' memory: it is in what is known to be on its way back, and another's
// would look as if it had given back that much more.
func (l *loop) claimDead() {
	for _, s := range l.settles {
		if p := l.pools[s.device]; p != nil {
			p.foreign -= l.listedBytes(s)
		}
	}
}

// listedBytes is what the reading lists of an ended worker's processes.
func (l *loop) listedBytes(s *settle) (n resource.Bytes) {
	for _, pid := range s.pids {
		for _, pr := range l.byPID[pid] {
			if pr.Device == s.device {
				n += pr.Memory
			}
		}
	}
	return n
}

// settleAll looks with a new reading which memory is back.
func (l *loop) settleAll(now time.Time) {
	if len(l.settles) == 0 || !l.fresh {
		return
	}
	// One after the other: what came back for one is not what another waits for.
	kept := make([]*settle, 0, len(l.settles))
	for _, s := range l.settles {
		if !l.snap.At.After(s.since) || !l.settled(now, s) {
			kept = append(kept, s)
			continue
		}
		l.ledger.drop(func(c *Claim) bool { return c.past() && c.Instance == s.instance && c.Device == s.device })
		l.forgetClaims(s.instance)
		if s.judged && len(s.pids) > 0 && !s.missing {
			l.noteLag(max(s.listed.Sub(s.since), 0))
		}
		took := now.Sub(s.since)
		l.s.log.Info("memory of an ended worker is back", zap.String("instance", s.instance), zap.String("device", string(s.device)),
			zap.Duration("after", took))
		l.s.emit(events.Draft{Kind: events.SchedulerSettled, Instance: s.instance, Data: map[string]any{
			"device": s.device, "bytes": s.ref.bytes, "after_ms": took.Milliseconds(), "was_missing": s.missing}})
	}
	l.settles = kept
}

// settled judges one reading.
func (l *loop) settled(now time.Time, s *settle) bool {
	p := l.pools[s.device]
	if p == nil || !p.seen { // the device is gone, and what was on it
		return true
	}
	listed := slices.ContainsFunc(s.pids, func(pid int) bool { return l.listedOn(pid, s.device) })
	if listed {
		s.listed = now
	}
	if s.judged {
		return l.settledBySum(now, s, p, listed)
	}
	return l.settledUnjudged(s, l.unexplained(p), listed)
}

// settledUnjudged compares what nobody accounts for in two readings. Equal ones
// prove that nothing moves; that what they show is of after the worker's end
// follows from the time or, while nobody knows how late readings are, from there
// being no more than before it. Memory that stays is external from then on.
func (l *loop) settledUnjudged(s *settle, n resource.Bytes, listed bool) bool {
	equal := s.last >= 0 && max(n-s.last, s.last-n) <= settleNoise
	s.last = n
	if listed || !equal {
		return false
	}
	return l.snap.At.Sub(s.since) >= l.allowance() || (!l.lagKnown() && s.before >= 0 && n <= s.before+settleNoise)
}

func (l *loop) listedOn(pid int, dev resource.DeviceID) bool {
	return slices.ContainsFunc(l.byPID[pid], func(pr *resource.Process) bool { return pr.Device == dev })
}

// settledBySum judges by what nobody accounts for: what there is more of it than in
// the last reading with the worker in it is what the worker has not given back.
// A reading that still lists it (monitors lag) takes that one's place.
func (l *loop) settledBySum(now time.Time, s *settle, p *pool, listed bool) bool {
	rest := l.unexplained(p) + s.left // as if nothing of it were known to be left
	n := l.listedBytes(s)
	if listed && n >= s.ref.bytes {
		s.ref = reference{rest: max(rest-n, 0), bytes: n}
	}
	s.left = min(max(rest-s.ref.rest, n), s.ref.bytes)
	if !listed && float64(s.ref.bytes-s.left) >= settleShare*float64(s.ref.bytes) {
		s.left = 0
		return true
	}
	if now.Sub(s.since) >= settleCap {
		l.quarantine(now, s)
	}
	return false
}

// quarantine keeps what did not come back off the books, and tells.
func (l *loop) quarantine(now time.Time, s *settle) {
	for i := range l.ledger.claims {
		c := &l.ledger.claims[i]
		if c.past() && c.Instance == s.instance && c.Device == s.device && (c.Bytes != s.left || c.Phase != PhaseQuarantined) {
			if c.Phase != PhaseQuarantined {
				c.Since = now
			}
			c.Phase, c.Bytes = PhaseQuarantined, s.left
			l.ledger.changed = true
		}
	}
	if s.missing {
		return
	}
	s.missing = true
	l.s.log.Warn("memory of an ended worker did not come back", zap.String("instance", s.instance),
		zap.String("device", string(s.device)), zap.Float64("mb", s.left.MB()))
	l.s.emit(events.Draft{Kind: events.SchedulerQuarantined, Instance: s.instance, Data: map[string]any{
		"device": s.device, "bytes": s.left, "of_bytes": s.ref.bytes, "after_ms": now.Sub(s.since).Milliseconds()}})
}

// leftOn sums what ended workers still hold of a device, as far as is known.
func (l *loop) leftOn(dev resource.DeviceID) (n resource.Bytes) {
	for _, s := range l.settles {
		if s.device == dev && s.judged {
			n += s.left
		}
	}
	return n
}

// settlingOn reports whether memory is on its way back on a device.
func (l *loop) settlingOn(dev resource.DeviceID) bool {
	return slices.ContainsFunc(l.settles, func(s *settle) bool { return s.device == dev && !s.missing })
}

// settling reports whether the memory of instance's last worker is on its way
// back; with "" of anybody's.
func (l *loop) settlingOf(instance string) bool {
	return slices.ContainsFunc(l.settles, func(s *settle) bool { return (instance == "" || s.instance == instance) && !s.missing })
}

// dropVictims ends the wait for those whose memory has been judged.
func (l *loop) dropVictims() {
	for _, in := range l.order {
		in.victims = slices.DeleteFunc(in.victims, func(v victim) bool {
			return !v.stopped.IsZero() && l.snap.At.After(v.stopped) && !l.settlingOf(v.name)
		})
	}
}

func (l *loop) settling() bool {
	return l.settlingOf("") || slices.ContainsFunc(l.order, func(in *inst) bool { return in.lingering() || len(in.victims) > 0 || in.ladder != nil })
}
