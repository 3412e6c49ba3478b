package sched

import (
	"testing"
	"time"
)

func TestUses_CountReturnsAfterARest(t *testing.T) {
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	after := func(rested bool, every time.Duration, times int) float64 {
		var u uses
		at := begin
		for range times {
			u.rested = rested
			u.began(at)
			at = at.Add(every)
		}
		return u.now(at)
	}
	for _, c := range []struct {
		name     string
		got      float64
		from, to float64
	}{
		{"every 20 s for ten minutes", after(true, 20*time.Second, 30), 170, 190},
		{"every 20 s for a day", after(true, 20*time.Second, 4320), 175, 185},
		{"every half hour", after(true, 30*time.Minute, 48), 1.5, 2.5},
		{"a queue of a hundred is one use", after(false, 3*time.Second, 100), 10, 13},
		{"two at once are no habit", after(true, time.Second, 2), 20, 26},
		{"never", after(true, time.Second, 0), 0, 0},
	} {
		if c.got < c.from || c.got > c.to {
			t.Errorf("%s: %.1f an hour, want %v to %v", c.name, c.got, c.from, c.to)
		}
	}
}
