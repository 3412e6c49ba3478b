package sim

import (
	"hash/fnv"
	"time"
)

// Clock is the time that a model lives in: the machine's own, a test's bubble of
// virtual time, or a simulation's.
type Clock interface {
	Now() time.Time
	// AfterFunc calls f once, d from now, and never inside the call; stop prevents
	// that and reports whether it did.
	AfterFunc(d time.Duration, f func()) (stop func() bool)
}

// RealClock is package time, which is virtual inside a synctest bubble.
type RealClock struct{}

// Now implements Clock.
func (RealClock) Now() time.Time { return time.Now() }

// AfterFunc implements Clock.
func (RealClock) AfterFunc(d time.Duration, f func()) func() bool { return time.AfterFunc(d, f).Stop }

// Span is a duration drawn evenly between two bounds; Max 0 means always Min.
type Span struct{ Min, Max time.Duration }

// Fixed is a span that is always d.
func Fixed(d time.Duration) Span { return Span{Min: d} }

// Mean is the middle of the span.
func (s Span) Mean() time.Duration {
	if s.Max <= s.Min {
		return s.Min
	}
	return s.Min + (s.Max-s.Min)/2
}

// Draw returns the span's value for a name: the same one each time, whatever
// was drawn before it, so that two runs of the same work are comparable.
func (s Span) Draw(seed uint64, name string) time.Duration {
	if s.Max <= s.Min {
		return s.Min
	}
	return s.Min + time.Duration(Chance(seed, name)*float64(s.Max-s.Min))
}

// Chance is a number in [0, 1) that depends on seed and name alone.
func Chance(seed uint64, name string) float64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // a hash takes everything
	x := h.Sum64() ^ seed*0x9e3779b97f4a7c15
	x ^= x >> 30 // splitmix64: FNV alone is uneven for names that differ in their last letter
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	x ^= x >> 31
	return float64(x>>11) / (1 << 53)
}
