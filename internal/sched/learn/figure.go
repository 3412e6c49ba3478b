package learn

import (
	"cmp"
	"slices"
	"time"

	"github.com/cjmd/cjmd/internal/resource"
)

const (
	// Window is how many of the newest samples a figure or a time rests on.
	Window = 32
	// settleAfter is how many clean samples in a row leave a figure as high as it
	// is; then it comes down an eighth of the way with each one.
	settleAfter = 20
	fallShare   = 8
	// fallStep ends the fall: an eighth of less than this is not worth waiting for.
	fallStep = resource.MiB
	// ceiling keeps the arithmetic of raises from running over.
	ceiling = resource.Bytes(1) << 60
)

// Figure is one amount of memory as it was learned.
type Figure struct {
	// Estimate is what to set aside. It is never below a clean sample of Recent.
	Estimate resource.Bytes   `json:"estimate"`
	Max      resource.Bytes   `json:"max"`              // largest ever seen, failed runs included
	Recent   []resource.Bytes `json:"recent,omitempty"` // clean samples, oldest first, at most Window
	Samples  int64            `json:"samples"`          // clean ones so far
	Clean    int64            `json:"clean"`            // clean ones in a row since Estimate rose
	OOMs     int64            `json:"ooms,omitempty"`
	Source   string           `json:"source,omitempty"` // of the newest sample
}

// P95 of the recent samples; 0 when there are none.
func (f Figure) P95() resource.Bytes { return percentile(f.Recent, 95) }

func (f *Figure) observe(v resource.Bytes, clean bool) {
	v = min(max(v, 0), ceiling)
	f.Max = max(f.Max, v)
	if clean {
		f.Recent = push(f.Recent, v)
		f.Samples++
		f.Clean++
	}
	switch {
	case v > f.Estimate:
		f.Estimate, f.Clean = v, 0
	case clean && f.Clean > settleAfter:
		floor := slices.Max(f.Recent)
		if gap := f.Estimate - floor; gap > 0 {
			f.Estimate -= min(gap, max(gap/fallShare, fallStep))
		}
	}
}

// oom raises the figure by a quarter, of what was set aside when that was more.
func (f *Figure) oom(claimed, limit resource.Bytes) {
	f.OOMs++
	f.Clean = 0
	base := min(max(f.Estimate, claimed, 0), ceiling)
	next := min(base+(base+3)/4, ceiling)
	if limit > 0 {
		next = min(next, limit)
	}
	f.Estimate = max(f.Estimate, next)
}

// Times are how long loads or runs took.
type Times struct {
	Recent []time.Duration `json:"recent,omitempty"` // nanoseconds, oldest first, at most Window
	Count  int64           `json:"count"`            // good ones so far
	Failed int64           `json:"failed,omitempty"`
}

// P50 is the median of the recent ones; 0 when there are none.
func (t Times) P50() time.Duration { return percentile(t.Recent, 50) }

// P90 is the 90th percentile of the recent ones; 0 when there are none.
func (t Times) P90() time.Duration { return percentile(t.Recent, 90) }

func (t *Times) observe(d time.Duration) {
	t.Recent = push(t.Recent, d)
	t.Count++
}

// push appends to a new slice: copies of a profile share the old one.
func push[T any](ring []T, v T) []T {
	if over := len(ring) - (Window - 1); over > 0 {
		ring = ring[over:]
	}
	out := make([]T, 0, len(ring)+1)
	return append(append(out, ring...), v)
}

// percentile by nearest rank of no more than Window values. It is asked for by
// every pass of the scheduling loop, so it leaves nothing to the collector.
func percentile[T cmp.Ordered](values []T, p int) T {
	if len(values) == 0 {
		var zero T
		return zero
	}
	var room [Window]T
	sorted := room[:copy(room[:], values)]
	slices.Sort(sorted)
	return sorted[(len(sorted)*p+99)/100-1]
}
