package harness

import (
	"slices"
	"time"
)

// Quantile returns the q-th quantile (0..1) of d, by the nearest rank; 0 for
// no values. d is sorted.
func Quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[min(int(q*float64(len(d))), len(d)-1)]
}

// Median returns the median of v, the mean of the two in the middle for an even
// number; 0 for none.
func Median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Clone(v)
	slices.Sort(s)
	if m := len(s) / 2; len(s)%2 == 1 {
		return s[m]
	} else {
		return (s[m-1] + s[m]) / 2
	}
}

// Milliseconds of d.
func Milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
