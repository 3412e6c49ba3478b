package sched

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	"github.com/cjmd/cjmd/internal/resource"
	"go.uber.org/zap"
)

// causeLease is why a worker is stopped whose memory a lease takes.
const causeLease = "evicted for a lease"

// roomForLeases sees to it that what is leased gets free. While a lease is short
// nothing new starts on the workers that hold its device. Idle ones are stopped,
// those used longest ago first and only as many as bring something; where they
// are not enough the cheapest busy ones are stopped as soon as they are idle, or
// whoever is idle before them. It runs before the policy decides: nothing slips
// in between. It reports whether anything is another for the policy.
func (l *loop) roomForLeases(now time.Time) (changed bool) {
	if len(l.leases) == 0 && !l.barring {
		return false
	}
	l.barring = false
	for _, in := range l.order {
		in.wasBarred, in.barred, in.drained = in.barred, "", false
	}
	for _, dev := range l.leasedDevices() {
		if short := l.leaseShort(dev); short > 0 {
			l.barring = true
			l.makeWay(now, dev, short-l.returning(dev))
		}
	}
	for _, in := range l.order { // the lease ended, or got what it needs elsewhere
		if s := in.stop; s != nil && s.lease && !s.begun && !in.drained && len(s.waiters) == 0 {
			in.stop, changed = nil, true
		}
		changed = changed || in.barred != in.wasBarred
	}
	l.basis.moved = l.basis.moved || changed
	return changed
}

// leaseShort is what the leases on a device lack. What their holders use already
// is not lacking, even where others then have too little.
func (l *loop) leaseShort(dev resource.DeviceID) resource.Bytes {
	left := l.hostLeased
	if v := l.viewOf(dev); v != nil {
		left = v.Leased
	}
	return min(-l.freeOn(dev), left)
}

// returning is what workers that are gone still hold of a device.
func (l *loop) returning(dev resource.DeviceID) (n resource.Bytes) {
	for i := range l.ledger.claims {
		if c := &l.ledger.claims[i]; c.Device == dev && c.Phase == PhaseReleasing {
			n += c.Bytes
		}
	}
	return n
}

// makeWay closes the workers on a device, and has so many stopped that what is
// short gets free.
func (l *loop) makeWay(now time.Time, dev resource.DeviceID, short resource.Bytes) {
	holders := l.holdersOn(dev)
	for _, in := range holders {
		in.barred = in.name + " starts nothing new while a lease on " + string(dev) + " waits for memory"
	}
	for _, in := range l.cheapestFor(holders, dev, short) {
		if in.stop == nil && !l.fresh { // nobody is stopped for what was read long ago
			continue
		}
		in.drained = true
		in.barred = in.name + " makes way for a lease of " + mib(l.leasedOn(dev)) + " on " + string(dev)
		if in.stop == nil {
			l.s.log.Info("stopping a worker for a lease", zap.String("instance", in.name), zap.String("device", string(dev)), zap.Int("running", in.running))
			in.stop = &stopping{cause: causeLease, lease: true, evicted: now}
		}
		if !in.active() {
			l.stopWhenIdle(now, in)
		}
	}
}

// holdersOn lists the workers on a device that may be stopped, in the order in
// which they go: idle ones, longest unused first, then those that are going
// anyway, then busy ones, the cheapest to load again first.
func (l *loop) holdersOn(dev resource.DeviceID) []*inst {
	var out []*inst
	for _, in := range l.order {
		sits := dev == resource.HostDevice || slices.Contains(in.devices, dev) || in.use[dev].bytes > 0
		if in.live && sits && !in.pinned && in.name != l.monitorInstance && l.onDevice(in, dev) > 0 {
			out = append(out, in)
		}
	}
	class := func(in *inst) int {
		switch {
		case in.stop != nil && in.stop.begun:
			return 0
		case !in.active():
			return 1
		case in.stop != nil:
			return 2
		}
		return 3
	}
	slices.SortStableFunc(out, func(a, b *inst) int {
		if c := cmp.Compare(class(a), class(b)); c != 0 || class(a) < 3 {
			return cmp.Or(c, a.lastUsed.Compare(b.lastUsed), a.idleSince.Compare(b.idleSince))
		}
		return cmp.Or(cmp.Compare(a.lastPriority, b.lastPriority), cmp.Compare(l.reloads(a), l.reloads(b)), a.lastUsed.Compare(b.lastUsed))
	})
	return out
}

// idleOn lists the workers on a device that may be stopped at once, longest
// unused first.
func (l *loop) idleOn(dev resource.DeviceID) []*inst {
	return slices.DeleteFunc(l.holdersOn(dev), func(in *inst) bool { return in.active() || (in.stop != nil && !in.stop.begun) })
}

// reloads is what it costs to be without the worker: the time that loading it
// again takes; nothing while nobody knows.
func (l *loop) reloads(in *inst) time.Duration {
	if p, ok := l.profileOf(in); ok {
		d, _ := p.LoadTime()
		return d
	}
	return 0
}

// cheapestFor takes from the holders, in their order, as many as bring what is
// short, and none that the later ones made needless. All where they do not.
func (l *loop) cheapestFor(holders []*inst, dev resource.DeviceID, short resource.Bytes) []*inst {
	var out []*inst
	for _, in := range holders {
		if short <= 0 {
			break
		}
		out = append(out, in)
		short -= l.onDevice(in, dev)
	}
	return slices.DeleteFunc(out, func(in *inst) bool {
		n := l.onDevice(in, dev)
		needless := short+n <= 0 && !(in.stop != nil && in.stop.begun)
		if needless {
			short += n
		}
		return needless
	})
}

func (l *loop) leasedDevices() []resource.DeviceID {
	var out []resource.DeviceID
	for _, x := range l.leases {
		if !slices.Contains(out, x.Device) {
			out = append(out, x.Device)
		}
	}
	return out
}

// leasedOn sums the leases of a device.
func (l *loop) leasedOn(dev resource.DeviceID) (n resource.Bytes) {
	for _, x := range l.leases {
		if x.Device == dev {
			n += x.Bytes
		}
	}
	return n
}

func (l *loop) freeOn(dev resource.DeviceID) resource.Bytes {
	if v := l.viewOf(dev); v != nil {
		return v.Free
	}
	if dev == resource.HostDevice {
		return l.freeRAM
	}
	return 0
}

// onDevice is what in's worker counts for on a device.
func (l *loop) onDevice(in *inst, dev resource.DeviceID) resource.Bytes {
	return l.accounts[accountKey{in.name, dev}].size()
}

func mib(n resource.Bytes) string { return strconv.FormatInt(int64(n/resource.MiB), 10) + " MiB" }
