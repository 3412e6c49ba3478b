package sched

import (
	"slices"
	"strconv"
	"time"

	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched/learn"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// use is what a worker was seen to hold of one device.
type use struct {
	bytes  resource.Bytes
	source string
	missed int // readings in a row without it
	// listed is its part of the reading itself, 0 where it is not in the list: its
	// own report may be younger than what the reading shows.
	listed resource.Bytes
}

// read is what explains a part of the reading.
func (u use) read() resource.Bytes {
	if u.listed > 0 {
		return u.listed
	}
	return u.bytes
}

// reference is the last reading that saw a worker's memory on a device: what
// comes back after its end is measured against it. rest is what nobody accounted
// for in it.
type reference struct{ rest, bytes resource.Bytes }

// placer and treeLister are what a supervisor offers besides Workers.
type placer interface {
	// Place names the devices that the instance's next worker is to see.
	Place(instance string, devices []string)
}

type treeLister interface {
	PIDs(instance string) []int // the whole tree
}

// foldSnapshot takes the monitor's newest reading. A worker's use of the host is
// credited only as far as it was seen both before and after the reading was
// taken: what grew in between may be missing from the reading.
func (l *loop) foldSnapshot(now time.Time) {
	last := l.snap.At
	l.snap, l.fresh = l.s.o.Gate.Latest()
	l.monitor = l.s.o.Gate.Registered()
	l.ledger.changed = true
	l.hostMeasured = 0
	for _, in := range l.order {
		if in.live {
			seen := min(in.rssBefore, in.rss)
			l.ledger.measure(in.name, resource.HostDevice, seen, "")
			l.hostMeasured += seen
			in.rssBefore = in.rss
		}
	}
	if !l.snap.At.Equal(last) || l.lastMonitor != l.monitor {
		l.lists = l.lists && l.lastMonitor == l.monitor
		l.lastMonitor = l.monitor
		l.noteCalls()
		l.readDevices(now)
		l.settleAll(now)
		l.closePools(now)
		l.meterAll(now)
		l.endLingering(now)
	}
	l.dropVictims()
}

// readDevices says who holds what of each device.
func (l *loop) readDevices(now time.Time) {
	for _, p := range l.pools {
		p.seen, p.known, p.foreign = false, 0, 0
	}
	for i := range l.snap.Devices {
		d := &l.snap.Devices[i]
		p := l.pools[d.ID]
		if p == nil {
			p = &pool{}
			l.pools[d.ID] = p
		}
		p.fresh = p.dev.ID == "" || !p.wasSeen
		p.dev, p.seen, p.wasSeen, p.used = *d, true, true, max(d.Total-d.Free, 0)
	}
	for _, p := range l.pools {
		p.wasSeen = p.seen
	}
	if len(l.snap.Devices) == 0 {
		return
	}
	l.listProcesses()
	for _, in := range l.order {
		if in.live {
			l.attribute(now, in)
		}
	}
	l.claimDead()
	for _, dev := range l.snap.Devices {
		l.divide(l.pools[dev.ID])
	}
}

// closePools draws the line under a reading once it is known what came back of
// ended workers: the rest is external, and what each worker's end will be
// measured against.
func (l *loop) closePools(now time.Time) {
	for i := range l.snap.Devices {
		p := l.pools[l.snap.Devices[i].ID]
		p.external = max(p.used-p.known-l.leftOn(p.dev.ID), 0)
		if p.fresh {
			p.before = p.external
		}
		p.hold(now, l.movingOn(now, p))
	}
	for _, in := range l.order {
		if in.live {
			l.refer(in)
		}
	}
}

// movingOn reports whether memory of ours is on its way on a device.
func (l *loop) movingOn(now time.Time, p *pool) bool {
	return l.settlingOn(p.dev.ID) || p.restless.After(now) || slices.ContainsFunc(l.order, func(in *inst) bool {
		return in.live && ((in.leaving() && in.use[p.dev.ID].bytes > 0) || (!in.loaded && slices.Contains(in.devices, p.dev.ID)))
	})
}

// listProcesses indexes the reading's processes; everybody is a stranger until
// attribute or settle claims him.
func (l *loop) listProcesses() {
	clear(l.byPID)
	for i := range l.snap.Processes {
		pr := &l.snap.Processes[i]
		l.byPID[pr.PID] = append(l.byPID[pr.PID], pr)
		if p := l.pools[pr.Device]; p != nil {
			p.foreign += pr.Memory
		}
	}
}

// attribute finds what in's worker holds: its processes in the monitor's list,
// and its own report. The larger counts: an allocator does not know what the
// driver keeps for it, and a monitor may not see every process.
func (l *loop) attribute(now time.Time, in *inst) {
	st, ok := l.s.o.Workers.Status(in.name)
	if !ok {
		return
	}
	in.pids = l.treeOf(in.pids[:0], in.name, &st)
	clear(l.found)
	for _, pid := range in.pids {
		for _, pr := range l.byPID[pid] {
			if pr.MemoryUnknown { // it is there, and its figure says nothing
				continue
			}
			l.lists = true
			u := l.found[pr.Device]
			u.bytes += pr.Memory
			u.listed = u.bytes
			u.source = l.treeSource()
			l.found[pr.Device] = u
			if p := l.pools[pr.Device]; p != nil {
				p.foreign -= pr.Memory
			}
		}
	}
	l.rises(now, in)
	if st.Usage != nil && !in.leaving() {
		for name, n := range st.Usage.Devices {
			dev, known := l.deviceNamed(name)
			if u := l.found[dev]; known && resource.Bytes(n) > u.bytes {
				l.found[dev] = use{bytes: resource.Bytes(n), source: learn.SourceWorker, listed: u.listed}
			}
		}
	}
	if u := st.Usage; u != nil {
		in.meter.report(l.onDevices(u.Devices), l.onDevices(u.MaxDevices), u.Reported)
	}
	l.keepUse(in)
}

// onDevices resolves a worker's own figures.
func (l *loop) onDevices(named map[string]int64) amounts {
	if len(named) == 0 {
		return nil
	}
	a := make(amounts, len(named))
	for name, n := range named {
		if dev, ok := l.deviceNamed(name); ok {
			a[dev] = resource.Bytes(n)
		}
	}
	return a
}

// keepUse takes over what was found. A worker that is not in the list is still
// there for one reading more, and as long as it is being stopped: its memory
// leaves the list before it is back.
func (l *loop) keepUse(in *inst) {
	for dev, u := range in.use {
		if _, again := l.found[dev]; again || u.source == learn.SourceDelta {
			continue
		}
		u.missed++
		if u.missed > 1 && !in.leaving() {
			delete(in.use, dev)
			l.ledger.measure(in.name, dev, 0, "")
			continue
		}
		in.use[dev] = u
	}
	for dev, u := range l.found {
		if in.use == nil {
			in.use = make(map[resource.DeviceID]use)
		}
		in.use[dev] = u
		l.ledger.measure(in.name, dev, u.bytes, u.source)
	}
}

// leaving reports whether the worker is being stopped.
func (in *inst) leaving() bool {
	switch in.state {
	case supervisor.Draining, supervisor.Stopping, supervisor.Killing:
		return true
	}
	return in.stop != nil && in.stop.begun
}

func (l *loop) treeOf(to []int, instance string, st *supervisor.Status) []int {
	if l.trees != nil {
		if pids := l.trees.PIDs(instance); len(pids) > 0 {
			return append(to, pids...)
		}
	}
	if st.PID != 0 {
		to = append(to, st.PID)
	}
	return to
}

func (l *loop) treeSource() string {
	if l.snap.GPUVendor == "AMD" {
		return learn.SourceFdinfo
	}
	return learn.SourceNVML
}

// deviceNamed resolves what a worker calls a device: a UUID or an index.
func (l *loop) deviceNamed(name string) (resource.DeviceID, bool) {
	if p := l.pools[resource.DeviceID(name)]; p != nil {
		return p.dev.ID, true
	}
	i, err := strconv.Atoi(name)
	if err != nil {
		return "", false
	}
	for j := range l.snap.Devices {
		if l.snap.Devices[j].Index == i {
			return l.snap.Devices[j].ID, true
		}
	}
	return "", false
}

// divide says how much of a device our workers hold. What grew while a worker
// loads or runs of which nobody reports anything (a blind one) is that worker's.
func (l *loop) divide(p *pool) {
	var frozen, weight resource.Bytes
	l.blind = l.blind[:0]
	for _, in := range l.order {
		if !in.live {
			continue
		}
		u := in.use[p.dev.ID]
		sits := slices.Contains(in.devices, p.dev.ID)
		switch {
		case u.source != "" && u.source != learn.SourceDelta:
			p.known += u.read()
		case sits && !l.lists && (in.active() || in.meter.pending()) && !in.leaving():
			l.blind = append(l.blind, in)
			weight += l.ledger.held(in.name, p.dev.ID)
		default:
			frozen += u.read()
		}
	}
	rest := max(p.used-p.known-l.leftOn(p.dev.ID)-frozen, 0)
	p.known += frozen
	if len(l.blind) == 0 || p.fresh {
		p.base = rest
	}
	grown := max(rest-p.base, 0)
	for i, in := range l.blind {
		share := grown / resource.Bytes(len(l.blind)-i)
		if weight > 0 && i < len(l.blind)-1 {
			share = resource.Bytes(float64(grown) * float64(l.ledger.held(in.name, p.dev.ID)) / float64(weight))
			weight -= l.ledger.held(in.name, p.dev.ID)
		}
		grown -= share
		if share == 0 && in.use[p.dev.ID].source == "" { // nothing moved yet: nobody knows anything
			continue
		}
		p.known += share
		if in.use == nil {
			in.use = make(map[resource.DeviceID]use)
		}
		in.use[p.dev.ID] = use{bytes: share, source: learn.SourceDelta}
		l.ledger.measure(in.name, p.dev.ID, share, learn.SourceDelta)
	}
}

// active reports whether the worker is loading or running something.
func (in *inst) active() bool {
	return in.running > 0 || in.loading || in.state == supervisor.Starting || in.state == supervisor.Initializing
}

// refer notes the reading as the one that the end of in's worker is measured by,
// where its memory was seen in it. Not while somebody's memory is in no list any
// more and perhaps not back: it may be counted without being there.
func (l *loop) refer(in *inst) {
	for dev, u := range in.use {
		p := l.pools[dev]
		if u.missed > 0 || u.source == learn.SourceDelta || p == nil || !p.seen {
			continue
		}
		if _, ok := in.refs[dev]; ok && l.limboOn(dev) {
			continue
		}
		if in.refs == nil {
			in.refs = make(map[resource.DeviceID]reference)
		}
		in.refs[dev] = reference{rest: max(l.unexplained(p), 0), bytes: u.read()}
	}
}

// limboOn reports whether a worker of ours has left the list of a device.
func (l *loop) limboOn(dev resource.DeviceID) bool {
	return slices.ContainsFunc(l.order, func(in *inst) bool { return in.live && in.use[dev].missed > 0 })
}
