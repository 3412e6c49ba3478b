package sched

import (
	"math"
	"time"

	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched/learn"
)

// appetite is what a worker of an instance takes of each of its devices.
type appetite struct {
	load resource.Bytes // a worker that has loaded, at most
	one  resource.Bytes // with one job
	more resource.Bytes // each further job at the same time
	// floor is the author's word: what a worker takes with all of its jobs. It
	// counts where it is more, until enough was measured.
	floor resource.Bytes
}

// whole is what the worker takes with n jobs.
func (a *appetite) whole(n int) resource.Bytes {
	if n == 0 {
		return a.load
	}
	return max(a.floor, a.load, a.one+resource.Bytes(n-1)*a.more)
}

// appetiteOf says what the instance takes of accelerators. Known is false when
// nobody can tell; what was seen all the same is a lower bound then.
func (l *loop) appetiteOf(in *inst, e learn.Estimate) (a appetite, source string, known bool) {
	asked := in.demand.MinVRAM
	a = appetite{load: max(asked, e.ResidentVRAM), one: max(asked, e.WholeVRAM), floor: asked}
	switch {
	case e.Known:
		a.load, a.one, a.more = e.ResidentVRAM, e.WholeVRAM, e.ExecuteVRAM
		if e.Trusted {
			a.floor = 0
		}
		// A load that nobody saw by itself takes no more than the whole.
		if !e.LoadSeen && !in.live && (e.ResidentVRAM == 0 || len(in.loads) > 0) {
			a.load = max(a.one, a.floor)
		}
		return a, SourceProfile, true
	case asked == 0:
		a.load = a.one
		return a, SourceNone, false
	case e.WholeVRAM > asked:
		a.more = e.ExecuteVRAM
		return a, SourceProfile, true
	}
	return a, SourceManifest, true
}

// need says what one worker of the instance takes, and its next job. Trust grows
// from what the manifest says over what was learned to what the resident worker
// was seen to use.
func (l *loop) need(in *inst) Need { n, _ := l.needs(in, 1); return n }

// needs is need, and how many of free slots it is good for: 1 when the job after
// the next would take another amount, 0 when its devices have no room for another
// job beside those that run, ever: it waits for one of them, not for memory.
//
// Invariant: the claims of a worker and its jobs are no less than what it is known
// to take with so many of them. What its claims cover already (a generous resident
// claim, a job that brought more than its part) its next job need not bring.
func (l *loop) needs(in *inst, free int) (Need, int) {
	n, e := l.needOfHost(in)
	if !n.GPU {
		return n, free
	}
	n.Devices = max(in.demand.Devices, 1)
	var a appetite
	a, n.Source, n.Known = l.appetiteOf(in, e)
	claimed, jobs := a.load, 0
	n.ResidentVRAM = a.load
	if in.live {
		jobs = in.running
		n.ResidentVRAM, claimed = l.claimedBy(in)
		if n.Known && (in.meter.level != nil || in.meter.idle != nil) {
			n.Source = SourceMeasured
		}
	}
	if !n.Known {
		return n, free
	}
	whole := a.whole(jobs + 1)
	if room := l.roomOf(in); in.live && e.Known && room >= 0 && whole > max(room, in.demand.MinVRAM) {
		if jobs > 0 {
			return n, 0
		}
		whole = max(room, in.demand.MinVRAM)
	}
	n.ExecuteVRAM = max(whole-claimed, 0)
	if max(a.whole(jobs+2)-claimed-n.ExecuteVRAM, 0) != n.ExecuteVRAM {
		free = min(free, 1)
	}
	return n, free
}

// wholeOf is what in's worker is known to take with n jobs; 0 where nobody knows.
func (l *loop) wholeOf(in *inst, n int) resource.Bytes {
	_, e := l.needOfHost(in)
	a, _, known := l.appetiteOf(in, e)
	if !known || !in.demand.RequiresGPU {
		return 0
	}
	return a.whole(n)
}

// needOfHost is the part of need that is host memory, and what was learned.
func (l *loop) needOfHost(in *inst) (n Need, e learn.Estimate) {
	d := in.demand
	n = Need{GPU: d.RequiresGPU, ResidentRAM: d.MinRAM, Known: true, Source: SourceManifest}
	p, learned := l.profileOf(in)
	if learned {
		e = p.Estimate()
	}
	if e.KnownRAM || p.ResidentRAM.OOMs+p.ExecuteRAM.OOMs > 0 {
		n.ResidentRAM, n.ExecuteRAM = e.ResidentRAM, e.ExecuteRAM
		if p.ExecuteRAM.Samples < learn.TrustedAfter { // the author's word still counts
			n.ExecuteRAM = max(n.ExecuteRAM, d.MinRAM-n.ResidentRAM)
		}
	}
	if !n.GPU && e.KnownRAM {
		n.Source = SourceProfile
	}
	return n, e
}

// roomOf is the most that the devices of in's worker ever have for it, -1 where
// none is in sight. What was learned beyond that is caution (a quarter more after
// an out of memory), and nothing to wait for. What others use of a device counts
// as theirs for good where it is little: a display.
func (l *loop) roomOf(in *inst) resource.Bytes {
	most := resource.Bytes(-1)
	for _, dev := range in.devices {
		if v := l.viewOf(dev); v != nil {
			if room := v.Total - v.Margin - min(v.External, v.Total/16); most < 0 || room < most {
				most = room
			}
		}
	}
	return most
}

// grantedTo is the need of in's worker and the job that s starts, as set aside.
func (l *loop) grantedTo(in *inst, s *Start) Need {
	n := l.need(in)
	n.ExecuteVRAM, n.ExecuteRAM = 0, 0
	for i := range s.Claims {
		switch c := &s.Claims[i]; {
		case c.Kind != KindExecute:
		case c.Device == resource.HostDevice:
			n.ExecuteRAM = c.Bytes
		default:
			n.ExecuteVRAM = max(n.ExecuteVRAM, c.Bytes)
		}
	}
	return n
}

// claimedBy is what in's worker claims of a device by itself and with its jobs;
// the least over its devices.
func (l *loop) claimedBy(in *inst) (resident, all resource.Bytes) {
	first := true
	for _, dev := range in.devices {
		var r, x resource.Bytes
		for i := range l.ledger.claims {
			c := &l.ledger.claims[i]
			if c.Instance != in.name || c.Device != dev || c.past() || c.own() {
				continue
			}
			x += c.Bytes
			if c.Kind == KindResident {
				r += c.Bytes
			}
		}
		if first || x < all {
			resident, all = r, x
		}
		first = false
	}
	return resident, all
}

// profileOf finds what was learned about the instance: on the kind of device where
// it sits, else on the kind where it took most.
func (l *loop) profileOf(in *inst) (learn.Profile, bool) {
	k := in.profile
	if !in.demand.RequiresGPU {
		p, ok := l.profiles[k]
		return p, ok
	}
	if model := l.modelOf(in.devices); model != "" {
		k.DeviceModel = model
		if p, ok := l.profiles[k]; ok || in.live {
			return p, ok
		}
	}
	var best learn.Profile
	found := false
	for i := range l.devs {
		k.DeviceModel = l.devs[i].Name
		p, ok := l.profiles[k]
		if ok && (!found || total(p) > total(best)) {
			best, found = p, true
		}
	}
	return best, found
}

func total(p learn.Profile) resource.Bytes { return p.Estimate().WholeVRAM }

// modelOf is the kind of the first of the devices that is in sight.
func (l *loop) modelOf(devices []resource.DeviceID) string {
	for _, dev := range devices {
		if p := l.pools[dev]; p != nil && p.seen {
			return p.dev.Name
		}
	}
	return ""
}

// keyOf is the key under which the instance's worker teaches.
func (l *loop) keyOf(in *inst) learn.Key {
	k := in.profile
	if in.demand.RequiresGPU {
		k.DeviceModel = l.modelOf(in.devices)
	}
	return k
}

// uses is how often an instance was wanted again per hour, lately, after its jobs
// had all been done: a hundred jobs at once are one use.
type uses struct {
	n      float64 // decayed to at
	at     time.Time
	first  time.Time
	rested bool // nothing of it ran or waited since the newest
}

// usesHalf is how long half of an instance's uses take to be forgotten.
const usesHalf = time.Hour

// usesFrom is the least time over which a rate is taken: two uses in the first
// second are no habit.
const usesFrom = 5 * time.Minute

// began notes the start of a job.
func (u *uses) began(now time.Time) {
	switch {
	case u.first.IsZero():
		u.first = now
	case !u.rested:
		return
	}
	u.n = u.n*decay(now.Sub(u.at), usesHalf) + 1
	u.at, u.rested = now, false
}

// now is the rate per hour. The decayed count is what a steady rate would have
// left of it since the first use.
func (u *uses) now(now time.Time) float64 {
	if u.n == 0 {
		return 0
	}
	over := max(now.Sub(u.first), usesFrom)
	steady := usesHalf.Hours() / math.Ln2 * (1 - decay(over, usesHalf))
	return u.n * decay(now.Sub(u.at), usesHalf) / steady
}
