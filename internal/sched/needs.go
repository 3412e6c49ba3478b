package sched

import (
	"time"

	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched/learn"
)

// trustedAfter is how many clean runs a profile needs before it outweighs what
// the manifest asks for; until then the larger of the two counts.
const trustedAfter = 3

// need says what one worker of the instance takes. Trust grows from what the
// manifest says over what was learned to what the resident worker was seen to use.
func (l *loop) need(in *inst) Need {
	d := in.demand
	n := Need{GPU: d.RequiresGPU, ResidentRAM: d.MinRAM, Known: true, Source: SourceManifest}
	p, learned := l.profileOf(in)
	var e learn.Estimate
	if learned {
		e = p.Estimate()
	}
	if e.KnownRAM || p.ResidentRAM.OOMs+p.ExecuteRAM.OOMs > 0 {
		n.ResidentRAM, n.ExecuteRAM = over(e.ResidentRAM, e.ExecuteRAM, d.MinRAM, p.Run.Count)
	}
	if !n.GPU {
		if e.KnownRAM {
			n.Source = SourceProfile
		}
		return n
	}
	n.Devices = max(d.Devices, 1)
	n.ResidentVRAM = d.MinVRAM
	n.Known = d.MinVRAM > 0
	switch {
	case e.Known:
		n.ResidentVRAM, n.ExecuteVRAM = over(e.ResidentVRAM, e.ExecuteVRAM, d.MinVRAM, p.Run.Count)
		n.Known, n.Source = true, SourceProfile
	case n.Known && learned && p.ResidentVRAM.OOMs+p.ExecuteVRAM.OOMs > 0:
		n.ResidentVRAM = max(n.ResidentVRAM, e.ResidentVRAM)
		n.ExecuteVRAM = e.ExecuteVRAM
		n.Source = SourceProfile
	case !n.Known: // what was not enough is known at least: it is measured where there is more
		n.Source = SourceNone
		if learned && p.ResidentVRAM.OOMs+p.ExecuteVRAM.OOMs > 0 {
			n.ResidentVRAM = max(e.ResidentVRAM, e.ExecuteVRAM)
		}
	}
	if learned && n.Known { // it was measured on a device, so the whole of one is enough
		if most := l.largest(); most > n.ResidentVRAM && most >= d.MinVRAM {
			n.ExecuteVRAM = min(n.ExecuteVRAM, max(most-n.ResidentVRAM, p.ExecuteVRAM.Max))
		}
	}
	// A loaded worker was seen: its job takes what its load left of the whole.
	if used, ok := in.seenUse(); ok {
		whole := n.ResidentVRAM + n.ExecuteVRAM
		n.ResidentVRAM, n.ExecuteVRAM = used, max(whole-used, 0)
		if n.Known {
			n.Source = SourceMeasured
		}
	}
	return n
}

// largest is the most that any device has to give beside what others use of it.
func (l *loop) largest() (most resource.Bytes) {
	for i := range l.devs {
		most = max(most, l.devs[i].Total-l.devs[i].Margin-l.devs[i].External)
	}
	return most
}

// over is what was learned, and no less than the manifest's word before there
// were enough runs.
func over(resident, execute, asked resource.Bytes, runs int64) (resource.Bytes, resource.Bytes) {
	if runs < trustedAfter {
		execute = max(execute, asked-resident)
	}
	return resident, execute
}

// seenUse is what the worker's load was seen to take, and what it claims since.
func (in *inst) seenUse() (most resource.Bytes, ok bool) {
	for _, n := range in.stays {
		most, ok = max(most, n), true
	}
	return most, ok && in.live
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

func total(p learn.Profile) resource.Bytes { return p.ResidentVRAM.Estimate + p.ExecuteVRAM.Estimate }

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

// uses is how often an instance was used per hour, decayed.
type uses struct {
	n  float64
	at time.Time
}

// usesHalf is how long half of an instance's uses take to be forgotten.
const usesHalf = time.Hour

func (u *uses) add(now time.Time, n float64) {
	u.n = u.now(now) + n
	u.at = now
}

func (u *uses) now(now time.Time) float64 {
	if u.n == 0 {
		return 0
	}
	return u.n * decay(now.Sub(u.at), usesHalf)
}
