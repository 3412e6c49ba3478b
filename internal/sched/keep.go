package sched

import (
	"slices"
	"time"

	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/supervisor"
)

const (
	// freeMoves is by how much a figure of memory must have moved since the plan
	// was made to make another one.
	freeMoves = 64 * resource.MiB
	// keepPlan is how long a plan is kept at most: with time ages, shares and
	// predictions move, a little.
	keepPlan = time.Second
)

// basis is what the last plan rests on, as far as it changes by what is read
// and not by what the loop is told or does: whoever does anything sets moved.
type basis struct {
	moved  bool // something happened that asks for another plan
	at     time.Time
	wake   time.Time // when time alone asks for one; zero: never
	policy *Policy

	fresh             bool
	monitor, instance string
	freeRAM, totalRAM resource.Bytes
	devices           []DeviceView
	claims            []Claim
}

// standing is what of one instance the plan rests on, in the same sense.
type standing struct {
	need      Need
	free      int // slots
	live      bool
	loading   bool
	ended     bool // its process is gone, whatever was told of it
	measuring bool
	lingering bool
	canAsk    bool
	slots     int
	victims   int
	coolUntil time.Time
	gaveUp    string
}

// mustDecide reports whether another plan is to be made; read: workers or
// devices were read since the last pass.
func (l *loop) mustDecide(now time.Time, read bool) bool {
	b := &l.basis
	switch {
	case b.moved, b.policy != l.s.policy.Load(), now.Sub(b.at) >= keepPlan, now.Before(b.at):
		return true
	case !b.wake.IsZero() && !now.Before(b.wake):
		return true
	}
	return read && (l.figuresMoved() || l.standingMoved())
}

// decided notes what the plan that was just applied rests on. acted: it changed
// what the next one is about.
func (l *loop) decided(now time.Time, wake time.Time, acted bool) {
	b := &l.basis
	b.moved, b.at, b.wake, b.policy = acted, now, wake, l.s.policy.Load()
	if acted {
		return
	}
	b.fresh, b.monitor, b.instance = l.fresh, l.monitor, l.monitorInstance
	b.freeRAM, b.totalRAM = l.freeRAM, l.totalRAM
	b.devices = append(b.devices[:0], l.devs...)
	b.claims = append(b.claims[:0], l.ledger.claims...)
	for _, in := range l.order {
		in.stood = l.stands(in)
	}
}

func (l *loop) stands(in *inst) standing {
	s := standing{live: in.live, slots: in.slots, canAsk: in.canAsk, victims: len(in.victims), coolUntil: in.coolUntil, gaveUp: in.gaveUp,
		measuring: in.measuring != nil || in.measureLoad, lingering: in.live && in.lingering()}
	switch in.state {
	case supervisor.Starting, supervisor.Initializing:
		s.loading = true
	case supervisor.Stopped, supervisor.Backoff, supervisor.FailedState:
		s.ended = true
	}
	s.need, s.free = l.needs(in, in.slotsFree())
	return s
}

// figuresMoved reports whether the books of the devices and the host are others.
func (l *loop) figuresMoved() bool {
	b := &l.basis
	if b.fresh != l.fresh || b.monitor != l.monitor || b.instance != l.servesMonitor() ||
		differ(b.freeRAM, l.freeRAM) || differ(b.totalRAM, l.totalRAM) {
		return true
	}
	return !slices.EqualFunc(b.devices, l.devs, sameDevice) || !slices.EqualFunc(b.claims, l.ledger.claims, sameClaim)
}

func sameDevice(a, b DeviceView) bool {
	return a.ID == b.ID && a.Index == b.Index && a.Unified == b.Unified && a.Exclusive == b.Exclusive && a.Total == b.Total && a.Margin == b.Margin &&
		!differ(a.Free, b.Free) && !differ(a.External, b.External) && !differ(a.Claimed, b.Claimed) &&
		!differ(a.Leased, b.Leased) && !differ(a.Quarantined, b.Quarantined)
}

func sameClaim(a, b Claim) bool {
	return a.Owner == b.Owner && a.Kind == b.Kind && a.Instance == b.Instance && a.Device == b.Device && a.Phase == b.Phase &&
		!differ(a.Bytes, b.Bytes) && !differ(a.Measured, b.Measured)
}

// standingMoved reports whether a worker, or what is known of one, is another.
func (l *loop) standingMoved() bool {
	for _, in := range l.order {
		now, was := l.stands(in), in.stood
		if !sameNeed(now.need, was.need) {
			return true
		}
		now.need = was.need
		if now != was {
			return true
		}
	}
	return false
}

func sameNeed(a, b Need) bool {
	return a.GPU == b.GPU && a.Devices == b.Devices && a.Known == b.Known && a.Source == b.Source &&
		!differ(a.ResidentVRAM, b.ResidentVRAM) && !differ(a.ExecuteVRAM, b.ExecuteVRAM) &&
		!differ(a.ResidentRAM, b.ResidentRAM) && !differ(a.ExecuteRAM, b.ExecuteRAM)
}

func differ(a, b resource.Bytes) bool { return max(a-b, b-a) > freeMoves }

// acts reports whether the plan changes anything but what people are told.
func (p *Plan) acts() bool {
	return len(p.Start)+len(p.Fail)+len(p.Evict)+len(p.Hold)+len(p.Release) > 0
}

// servesMonitor names the instance whose worker is the monitor.
func (l *loop) servesMonitor() string {
	if g, ok := l.s.o.Gate.(interface{ Instance() string }); ok {
		return g.Instance()
	}
	return l.monitor
}
