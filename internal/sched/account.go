package sched

import (
	"slices"
	"time"

	"github.com/cjmd/cjmd/internal/resource"
)

// externalHold is how long what others use of a device counts at its peak: a
// program that frees and takes memory in turns is not to be overtaken.
const externalHold = time.Minute

// pool is what the loop knows about one accelerator's memory besides the claims.
type pool struct {
	dev  resource.Device // as last read
	seen bool            // in the newest reading
	// wasSeen: in the reading before; fresh: it has just (re)appeared.
	wasSeen, fresh bool
	used           resource.Bytes // total minus free
	known          resource.Bytes // Σ of what our workers were measured to use
	// foreign is what the listed processes use that are none of ours.
	foreign resource.Bytes
	// external is what is left, now; peaks holds its recent maxima, newest last.
	external resource.Bytes
	before   resource.Bytes // external in the reading before
	peaks    []peak
	// restless: a worker ended here not long ago; nothing is held until then.
	restless time.Time
	// base is the part of the use that was nobody's of ours when a worker whose
	// memory nobody reports began to load or run (see blind workers, measure.go).
	base resource.Bytes
}

type peak struct {
	at time.Time
	n  resource.Bytes
}

// hold notes a reading of the external use. One alone is not held: for the time
// of a sample a process of ours may be missing from the list. While memory of
// ours is on its way back nothing is held, because what is whose is open.
func (p *pool) hold(now time.Time, moving bool) {
	lasting := min(p.before, p.external)
	p.before = p.external
	if !moving {
		for len(p.peaks) > 0 && p.peaks[len(p.peaks)-1].n <= lasting {
			p.peaks = p.peaks[:len(p.peaks)-1]
		}
		p.peaks = append(p.peaks, peak{now, lasting})
	}
	old := 0
	for old < len(p.peaks)-1 && now.Sub(p.peaks[old].at) > externalHold {
		old++
	}
	p.peaks = slices.Delete(p.peaks, 0, old)
}

// held is the external use that counts.
func (p *pool) held() resource.Bytes {
	if len(p.peaks) == 0 {
		return p.external
	}
	return max(p.external, p.peaks[0].n)
}

// accountKey is one worker's account on one device. Memory of an earlier worker
// of the instance that is not back yet is an account of its own.
type accountKey struct {
	instance string
	device   resource.DeviceID
}

// account is what one worker holds of one device. What lingers of an ended run is
// part of what it uses; what is kept for a start to come is on top of that.
type account struct{ claimed, measured, lingers, kept resource.Bytes }

func (a account) size() resource.Bytes { return max(a.claimed+a.lingers, a.measured) + a.kept }

// unused is what lingers beyond what the worker uses all the same.
func (a account) unused() resource.Bytes {
	return max(a.claimed+a.lingers, a.measured) - max(a.claimed, a.measured)
}

// balance brings the figures of every device and of the host up to date:
// free = total − margin − external − Σ accounts − leased − quarantined.
func (l *loop) balance() {
	clear(l.accounts)
	var lost, past resource.Bytes // of the host
	for i := range l.devs {
		l.devs[i] = DeviceView{}
	}
	l.resetViews()
	for i := range l.ledger.claims {
		c := &l.ledger.claims[i]
		v := l.viewOf(c.Device)
		switch {
		case c.Phase == PhaseQuarantined && v != nil:
			v.Quarantined += c.Bytes
		case c.Phase == PhaseQuarantined:
			lost += c.Bytes
		case c.Phase == PhaseReleasing && v != nil:
			v.Claimed += c.Bytes
		case c.Phase == PhaseReleasing:
			past += c.Bytes
		default:
			k := accountKey{c.Instance, c.Device}
			a := l.accounts[k]
			switch {
			case !c.own():
				a.claimed += c.Bytes
			case l.inst(c.Instance).held:
				a.kept += c.Bytes
			default:
				a.lingers += c.Bytes
			}
			a.measured = max(a.measured, c.Measured)
			l.accounts[k] = a
		}
	}
	l.addMeasured()
	ram := l.snap.Host.MemAvailable - l.ledger.margin - lost - past
	for k, a := range l.accounts {
		if v := l.viewOf(k.device); v != nil {
			v.Claimed += a.size()
			if !v.Unified {
				continue
			}
		} else if k.device != resource.HostDevice {
			continue
		}
		ram -= a.size() - a.measured
	}
	l.totalRAM = l.snap.Host.MemTotal - l.ledger.margin
	l.hostLeased = l.leaseLeft(resource.HostDevice, max(l.snap.Host.MemTotal-l.snap.Host.MemAvailable-l.hostMeasured, 0))
	l.freeRAM = ram - l.hostLeased
	l.closeViews()
	l.publishBook()
}

// addMeasured enters what workers use on devices on which they have no claim.
func (l *loop) addMeasured() {
	for _, in := range l.order {
		for dev, u := range in.use {
			k := accountKey{in.name, dev}
			if a := l.accounts[k]; u.bytes > a.measured {
				a.measured = u.bytes
				l.accounts[k] = a
			}
		}
	}
}

// resetViews starts the device views from the newest reading.
func (l *loop) resetViews() {
	l.devs = l.devs[:0]
	for i := range l.snap.Devices {
		d := &l.snap.Devices[i]
		p := l.pools[d.ID]
		if p == nil {
			continue
		}
		l.devs = append(l.devs, DeviceView{ID: d.ID, Index: d.Index, Name: d.Name, Total: d.Total, Used: p.used,
			External: p.held(), Margin: l.s.marginOf(d.ID), Unified: d.Unified})
	}
	slices.SortFunc(l.devs, func(a, b DeviceView) int { return a.Index - b.Index })
}

// viewOf finds a device's view; nil for the host and for devices out of sight.
func (l *loop) viewOf(id resource.DeviceID) *DeviceView {
	if id == resource.HostDevice {
		return nil
	}
	for i := range l.devs {
		if l.devs[i].ID == id {
			return &l.devs[i]
		}
	}
	return nil
}

// closeViews draws the line under each device.
func (l *loop) closeViews() {
	if len(l.devs) > 0 && l.devFree == nil {
		l.devFree = make(map[resource.DeviceID]resource.Bytes, len(l.devs))
	}
	clear(l.devFree)
	for i := range l.devs {
		v := &l.devs[i]
		v.Leased = l.leaseLeft(v.ID, v.External)
		v.Free = v.Total - v.Margin - v.External - v.Claimed - v.Leased - v.Quarantined
		if v.Unified { // one pool with the host: whoever takes from the one takes from the other
			v.Free = min(v.Free, l.freeRAM)
		}
		l.devFree[v.ID] = v.Free
	}
	for _, in := range l.order {
		if in.measuring == nil && !in.measureLoad {
			continue
		}
		for _, dev := range in.devices {
			if v := l.viewOf(dev); v != nil {
				v.Exclusive = in.name
			}
		}
	}
}

// marginOf is what of a device is never given away.
func (s *Scheduler) marginOf(dev resource.DeviceID) resource.Bytes {
	if n, ok := s.o.Margins[dev]; ok {
		return n
	}
	return s.o.Margin
}
