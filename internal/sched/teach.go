package sched

import (
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched/learn"
	"go.uber.org/zap"
)

// most is the largest amount of any accelerator; ok when there is one.
func (a amounts) most() (n resource.Bytes, ok bool) {
	for dev, b := range a {
		if dev != resource.HostDevice {
			n, ok = max(n, b), true
		}
	}
	return n, ok
}

// gpuSource says what measured a figure of the accelerators. A worker that asks
// for none teaches nothing about one, and one that was not seen there has not
// been measured.
func gpuSource(in *inst, a amounts, source string) string {
	if n, _ := a.most(); n == 0 || !in.demand.RequiresGPU {
		return ""
	}
	return source
}

// teachLoad learns from a load that has ended, as far as it was seen.
func (l *loop) teachLoad(now time.Time, in *inst) {
	m := &in.meter
	m.taught = true
	if in.measureLoad {
		in.measureLoad, l.ledger.changed = false, true
	}
	var a amounts
	a.raise(m.load)
	a.raise(m.level)
	vram, _ := a.most()
	l.teach(now, in, func(p *learn.Profile) {
		p.Observe(learn.Sample{Phase: learn.Load, At: now, Duration: m.took, VRAM: vram, Source: gpuSource(in, a, m.source),
			RAM: a[resource.HostDevice], Partial: m.level == nil})
	})
}

// teachLevel learns what a load took that was not seen by itself.
func (l *loop) teachLevel(now time.Time, in *inst, a amounts) {
	vram, _ := a.most()
	l.teach(now, in, func(p *learn.Profile) {
		p.Observe(learn.Sample{Phase: learn.Load, At: now, VRAM: vram, Source: gpuSource(in, a, in.meter.source), RAM: a[resource.HostDevice]})
	})
}

// teachRuns learns from the runs whose end a reading has followed, and keeps the
// others.
func (l *loop) teachRuns(now time.Time, in *inst, a amounts, source string, lag time.Duration) []*ranRun {
	m := &in.meter
	kept := m.finished[:0]
	for _, x := range m.finished {
		if l.snap.At.Sub(x.end) >= lag {
			l.teachRun(now, in, x)
			continue
		}
		x.see(a, source, m.crowd)
		kept = append(kept, x)
	}
	clear(m.finished[len(kept):])
	return kept
}

// teachRun learns from one run. Of several at once each is taken to have had an
// equal part of what they had together: at least one had as much.
func (l *loop) teachRun(now time.Time, in *inst, x *ranRun) {
	m := &in.meter
	low, _ := m.low()
	n := resource.Bytes(max(x.crowd, 1))
	s := learn.Sample{Phase: learn.Run, At: now, Duration: x.took, Failed: x.failed, Source: gpuSource(in, x.peak, x.source),
		Partial: n > 1 || (x.readings < enoughReadings && !x.told)}
	for dev, peak := range x.peak {
		base, apart := low[dev]
		part := max(peak-base, 0) / n
		switch {
		case dev != resource.HostDevice:
			s.Mixed = s.Mixed || !apart
			s.VRAM, s.Whole = max(s.VRAM, part), max(s.Whole, min(base, peak)+part)
		case apart:
			s.RAM, s.HasRAM = part, true
		}
	}
	l.teach(now, in, func(p *learn.Profile) { p.Observe(s) })
}

// teachAtEnd learns what is left to be learned of a worker that is gone.
func (l *loop) teachAtEnd(now time.Time, in *inst) {
	m := &in.meter
	if !m.taught && !m.ended.IsZero() {
		l.teachLoad(now, in)
	}
	for _, x := range m.finished {
		l.teachRun(now, in, x)
	}
	m.finished = nil
}

// teach changes the profile of in's worker and has it stored.
func (l *loop) teach(now time.Time, in *inst, change func(*learn.Profile)) {
	k := l.keyOf(in)
	if k.Plugin == "" || (in.demand.RequiresGPU && k.DeviceModel == "") {
		return
	}
	p, ok := l.profiles[k]
	if !ok {
		p = learn.New(k)
	}
	change(&p)
	l.profiles[k] = p
	l.unsaved[k] = true
}

// saveEvery bounds how often profiles are stored; what a crash loses of them is
// learned again.
const saveEvery = 2 * time.Second

// saveProfiles stores what was learned, with one event for each profile whose
// figures moved.
func (l *loop) saveProfiles(now time.Time, force bool) {
	if len(l.unsaved) == 0 || l.saving || (!force && now.Sub(l.savedAt) < saveEvery) {
		return
	}
	l.savedAt = now
	var todo []learn.Profile
	var drafts [][]events.Draft
	for _, k := range sortedKeys(l.unsaved) {
		p, ok := l.profiles[k]
		if !ok {
			continue
		}
		todo = append(todo, p)
		e, old := p.Estimate(), l.toldProfile[k]
		if e.Known == old.Known && near(e.ResidentVRAM, old.ResidentVRAM) && near(e.ExecuteVRAM, old.ExecuteVRAM) && near(e.WholeVRAM, old.WholeVRAM) &&
			near(e.ResidentRAM, old.ResidentRAM) && near(e.ExecuteRAM, old.ExecuteRAM) {
			drafts = append(drafts, nil)
			continue
		}
		l.toldProfile[k] = e
		drafts = append(drafts, []events.Draft{{Kind: events.ProfileChanged, Data: map[string]any{
			"plugin": k.Plugin, "config_hash": k.ConfigHash, "device_model": k.DeviceModel, "known": e.Known,
			"resident_vram_bytes": e.ResidentVRAM, "execute_vram_bytes": e.ExecuteVRAM, "whole_vram_bytes": e.WholeVRAM,
			"resident_ram_bytes": e.ResidentRAM, "execute_ram_bytes": e.ExecuteRAM, "source": e.Source}}})
	}
	clear(l.unsaved)
	if l.s.o.Profiles == nil {
		for _, d := range drafts {
			l.s.emit(d...)
		}
		return
	}
	l.saving = true
	l.spawn(func() {
		for i := range todo {
			if err := l.s.o.Profiles.PutProfile(l.work, todo[i], drafts[i]...); err != nil && l.work.Err() == nil {
				l.s.log.Warn("cannot store what was learned", zap.String("plugin", todo[i].Plugin), zap.Error(err))
			}
		}
		l.s.mail.call(func(l *loop) {
			if l != nil {
				l.saving = false
			}
		})
	})
}

// near reports whether two figures are close enough not to tell.
func near(a, b resource.Bytes) bool {
	d := max(a-b, b-a)
	return d <= 64*resource.MiB || d*20 <= max(a, b)
}
