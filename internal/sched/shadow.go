package sched

import (
	"slices"
	"time"

	"github.com/cjmd/cjmd/internal/events"
)

// shadowStands is how long a reservation has been another one before that is
// told: while jobs come and go it moves to and fro within moments.
const shadowStands = time.Second

// tellShadow tells when the reservation is another one than was told.
func (l *loop) tellShadow(now time.Time) {
	if sameShadow(l.shadow, l.shadowTold) {
		l.shadowMoved = time.Time{}
		return
	}
	if l.shadowMoved.IsZero() {
		l.shadowMoved = now
	}
	if now.Sub(l.shadowMoved) < shadowStands {
		return
	}
	s := l.shadow
	l.shadowTold, l.shadowMoved = s, time.Time{}
	if s == nil {
		l.s.emit(events.Draft{Kind: events.SchedulerShadow, Data: map[string]any{}})
		return
	}
	data := map[string]any{"job": s.Job, "devices": s.Devices, "bytes": s.VRAM, "draining": s.Draining}
	if !s.At.IsZero() {
		data["at"] = s.At.UTC()
	}
	l.s.emit(events.Draft{Kind: events.SchedulerShadow, Job: string(s.Job), Instance: s.Instance, Data: data})
}

// sameShadow reports whether two reservations are the same to a reader: when it
// is predicted to end changes all the time.
func sameShadow(a, b *Shadow) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Job == b.Job && a.Instance == b.Instance && a.Draining == b.Draining && slices.Equal(a.Devices, b.Devices)
}
