package sched

import (
	"slices"
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/resource"
	"go.uber.org/zap"
)

const (
	// swapBudget changes of hands per device are allowed within swapWindow.
	swapBudget = 6
	swapWindow = 10 * time.Minute
	// thrashEvery bounds how often one pair is told of.
	thrashEvery = 10 * time.Minute
)

// swaps remembers when each device changed hands.
type swaps map[resource.DeviceID][]time.Time

// note counts one change of hands, however many workers go in the same pass.
func (s swaps) note(now time.Time, dev resource.DeviceID) {
	if times := s[dev]; len(times) == 0 || !times[len(times)-1].Equal(now) {
		s[dev] = append(times, now)
	}
}

// left says how often each device may still change hands and, of those that may
// not any more, when the next time is. Devices with the whole budget are absent.
func (s swaps) left(now time.Time) (n map[resource.DeviceID]int, again map[resource.DeviceID]time.Time) {
	for dev, times := range s {
		old := 0
		for old < len(times) && now.Sub(times[old]) >= swapWindow {
			old++
		}
		if times = slices.Delete(times, 0, old); len(times) == 0 {
			delete(s, dev)
			continue
		}
		s[dev] = times
		if n == nil {
			n = make(map[resource.DeviceID]int)
		}
		n[dev] = max(swapBudget-len(times), 0)
		if n[dev] == 0 {
			if again == nil {
				again = make(map[resource.DeviceID]time.Time)
			}
			again[dev] = times[len(times)-swapBudget].Add(swapWindow)
		}
	}
	return n, again
}

// tellThrash tells of pairs that push each other out, each once in a while.
func (l *loop) tellThrash(now time.Time, pairs []Thrash) {
	for _, t := range pairs {
		if t.B < t.A {
			t.A, t.B = t.B, t.A
		}
		if at, ok := l.told[t]; ok && now.Sub(at) < thrashEvery {
			continue
		}
		l.told[t] = now
		l.s.log.Warn("two plugins keep pushing each other out", zap.String("device", string(t.Device)), zap.String("a", t.A), zap.String("b", t.B))
		l.s.emit(events.Draft{Kind: events.SchedulerThrashing, Data: map[string]any{"device": t.Device, "a": t.A, "b": t.B}})
	}
}
