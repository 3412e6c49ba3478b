package sched

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/cjmd/cjmd/internal/sched/learn"
)

// shareHalf is how long half of what a submitter used takes to be forgotten.
const shareHalf = 30 * time.Minute

// decay is what is left of something after d.
func decay(d, half time.Duration) float64 {
	if d <= 0 {
		return 1
	}
	return math.Exp2(-float64(d) / float64(half))
}

// charge adds what the runs used since the last time to their submitters.
func (l *loop) charge(now time.Time) {
	d := now.Sub(l.chargedAt)
	if d < time.Second && !l.chargedAt.IsZero() {
		return
	}
	if l.chargedAt.IsZero() {
		d = 0
	}
	l.chargedAt = now
	f := decay(d, shareHalf)
	for who, n := range l.share {
		if n *= f; n < 1e-3 {
			delete(l.share, who)
		} else {
			l.share[who] = n
		}
	}
	for _, r := range l.runs {
		l.share[r.submitter] += min(d, now.Sub(r.since)).Seconds() * float64(max(len(r.in.devices), 1))
	}
}

// quotas says how many more jobs each submitter of the view may have running.
func (l *loop) quotas(groups []GroupView) map[string]int {
	most := l.s.o.MaxRunningPerSubmitter
	if most <= 0 {
		return nil
	}
	clear(l.quota)
	for i := range groups {
		for j := range groups[i].Ready {
			l.quota[groups[i].Ready[j].Submitter] = most
		}
	}
	for _, r := range l.runs {
		left, ok := l.quota[r.submitter]
		if !ok {
			left = most
		}
		l.quota[r.submitter] = max(left-1, 0)
	}
	return l.quota
}

// sortedKeys lists the keys in a fixed order.
func sortedKeys(m map[learn.Key]bool) []learn.Key {
	return slices.SortedFunc(maps.Keys(m), func(a, b learn.Key) int {
		return cmp.Or(cmp.Compare(a.Plugin, b.Plugin), cmp.Compare(a.ConfigHash, b.ConfigHash), cmp.Compare(a.DeviceModel, b.DeviceModel))
	})
}
