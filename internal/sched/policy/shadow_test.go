package policy_test

import (
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
)

// crowded is a 24 GB card with a 20 GB worker at work on it for ten more
// minutes, and a job that needs 22: 2 GB are to spare beside it.
func crowded() *box {
	return newBox(24).put("big", 1, need(20, 2), times(20*time.Second, 10*time.Minute, 12*time.Minute)).
		put("r", 0, need(10, 10)).loaded("r", 0).running("r", 10*time.Minute)
}

func TestReserve_Backfill(t *testing.T) {
	quick := times(5*time.Second, time.Minute, 2*time.Minute)
	slow := times(5*time.Second, time.Minute, 20*time.Minute)
	check(t, []decision{
		{"one that is over in time", crowded().put("s", 1, need(3, 1), quick), "start s0@0, block big resource"},
		{"one that would end later", crowded().put("s", 1, need(3, 1), slow), "block big resource, block s resource"},
		{"one that ends later, beside it", crowded().put("s", 1, need(1, 1), slow), "start s0@0, block big resource"},
		{"one that nobody can predict", crowded().put("s", 1, need(3, 1)), "block big resource, block s resource"},
		{"two that fit beside it each, but not both", crowded().put("s", 1, need(1, 1), slow).put("t", 1, need(1, 1), slow), "start s0@0, block big resource, block t resource"},
		{"one that is over in time but whose worker stays", crowded().put("s", 1, need(3, 1), quick, change(func(g *sched.GroupView) { g.Pinned = true })),
			"block big resource, block s resource"},
		{"one whose worker is only to be left alone for longer", crowded().put("s", 1, need(3, 1), times(6*time.Minute, time.Second, time.Second)),
			"block big resource, block s resource"},
		{"a loaded worker that is to go by then", drained(2*time.Minute).put("s", 1, need(4, 0), slow).loaded("s", 0), "block big resource, block s resource"},
		{"a loaded worker that is over by then", drained(2*time.Minute).put("s", 1, need(4, 0), quick).loaded("s", 0), "start s0, block big resource"},
		{"the other device is free for all", newBox(24, 8).put("big", 1, need(20, 2)).put("r", 0, need(10, 10)).loaded("r", 0).running("r", 10*time.Minute).
			put("s", 1, need(3, 1), slow), "start s0@1, block big resource"},
		{"a CPU job goes by", crowded().put("s", 1, hostNeed(3, 1), slow), "start s0, block big resource"},
		{"the device drains when it waited too long", drained(10*time.Minute).put("s", 1, need(1, 1), quick), "block big resource, block s resource"},
		{"it does not drain before", drained(10*time.Minute-1).put("s", 1, need(1, 1), quick), "start s0@0, block big resource"},
		{"nothing is kept in vain", newBox(24).foreign(0, 12).put("big", 1, need(20, 2), waiting(time.Hour)).put("s", 1, need(3, 1), slow), "start s0@0, block big resource"},
	})
}

// turned is a card full of a worker loaded 20 s ago with jobs of 40 s, and an
// older job of another that may take its place in a minute.
func turned() *box {
	b := newBox(24).put("b", 1, need(14, 0), waiting(time.Second)).put("a", 1, need(14, 0), times(10*time.Second, 30*time.Second, 40*time.Second)).loaded("a", 0)
	b.group("a").ResidentSince = now.Add(-20 * time.Second)
	b.group("b").LoadTime = 10 * time.Second
	return b
}

func TestReserve_ATurnIsUsedToItsEnd(t *testing.T) {
	late := turned()
	late.group("a").RunTimeP90 = 70 * time.Second
	check(t, []decision{
		{"a job that is over within the turn", turned(), "start a0, block b resource"},
		{"a job that begins in the turn and ends after it", late, "start a0, block b resource"},
		{"while the device drains, too", func() *box {
			b := turned()
			b.group("b").WaitSince = now.Add(-11 * time.Minute)
			return b
		}(), "start a0, block b resource"},
		{"unless nobody knows for how long", func() *box {
			b := turned()
			b.group("b").WaitSince, b.group("a").RunTimeP90 = now.Add(-11*time.Minute), 0
			return b
		}(), "block b resource, block a resource"},
		{"not on a worker that may go already", func() *box {
			b := turned()
			b.group("a").ResidentSince = now.Add(-time.Hour)
			b.group("b").WaitSince = now.Add(-2 * time.Minute)
			return b
		}(), "evict a for b, block b resource, block a no_slot"},
	})
	if _, p := decide(late); !p.Shadow.At.Equal(now.Add(time.Minute + 70*time.Second)) {
		t.Errorf("the reservation counts on %v, when the turn is over and one run more", p.Shadow.At.Sub(now))
	}
}

func TestReserve_WhatAnEndedRunLeftIsKeptForTheFirst(t *testing.T) {
	// 4 GB free, 8 coming: "a" (10) waits for the reading, and r's next run of 8 waits behind it.
	b := newBox(24).put("a", 1, need(8, 2), waiting(time.Second)).put("r", 1, need(4, 8), change(pinned)).loaded("r", 0).foreign(0, 8)
	b.group("r").Lingering = true
	b.claim(sched.Claim{Owner: "r", Kind: sched.KindExecute, Instance: "r", Device: dev(0), Bytes: 8 * gib, Phase: sched.PhaseReserved})
	check(t, []decision{{"its worker's next job does not take it back", b, "block a resource, block r resource"}})
}

// drained is crowded with the big job waiting for so long.
func drained(d time.Duration) *box {
	b := crowded()
	b.group("big").WaitSince = now.Add(-d)
	return b
}

func TestReserve_ShadowIsTold(t *testing.T) {
	_, p := decide(crowded())
	s := p.Shadow
	if s == nil || s.Job != "big0" || s.Instance != "big" || len(s.Devices) != 1 || s.Devices[0] != "GPU-0" || s.VRAM != 22*gib ||
		!s.At.Equal(now.Add(10*time.Minute)) || s.Draining || !s.Since.Equal(now) {
		t.Fatalf("shadow %+v", s)
	}
	if b := p.Block["big"]; !b.Earliest.Equal(s.At) || len(b.Holders) != 1 || b.Holders[0] != "r" ||
		b.Needs[0] != (resource.Shortfall{Resource: "gpu_memory", Device: "GPU-0", Needed: 22 * gib, Available: 4 * gib}) {
		t.Errorf("block %+v", b)
	}
	if !p.WakeAt.Equal(now.Add(time.Minute)) && !p.WakeAt.Equal(now.Add(10*time.Minute)) {
		t.Errorf("wakes at %v", p.WakeAt)
	}
	if _, p = decide(drained(time.Hour)); !p.Shadow.Draining || !p.Shadow.Since.Equal(now.Add(-time.Hour)) {
		t.Errorf("shadow %+v", p.Shadow)
	}
	// Of two devices the one that is free first.
	b := newBox(24, 24).put("big", 1, need(20, 2)).put("r", 0, need(10, 10)).loaded("r", 0).running("r", 10*time.Minute).
		put("q", 0, need(10, 10)).loaded("q", 1).running("q", 5*time.Minute)
	if _, p = decide(b); p.Shadow.Devices[0] != "GPU-1" || !p.Shadow.At.Equal(now.Add(5*time.Minute)) {
		t.Errorf("shadow %+v", p.Shadow)
	}
}

func TestReserve_ShadowStandsStill(t *testing.T) {
	// Two devices are ready at nearly the same time: the first by a little.
	two := func(first, second time.Duration) *box {
		return newBox(24, 24).put("big", 1, need(20, 2)).put("r", 0, need(10, 10)).loaded("r", 0).running("r", first).
			put("q", 0, need(10, 10)).loaded("q", 1).running("q", second)
	}
	on := func(b *box, before ...int) resource.DeviceID {
		if len(before) > 0 {
			b.v.Shadow = &sched.Shadow{Instance: "big", Devices: []resource.DeviceID{dev(before[0])}}
		}
		_, p := decide(b)
		return p.Shadow.Devices[0]
	}
	for _, c := range []struct {
		name string
		got  resource.DeviceID
		want int
	}{
		{"where it is ready first", on(two(5*time.Minute, 5*time.Minute+10*time.Second)), 0},
		{"where it was, though another is ready a little earlier", on(two(5*time.Minute, 5*time.Minute+10*time.Second), 1), 1},
		{"it moves for more", on(two(5*time.Minute, 5*time.Minute+16*time.Second), 1), 0},
	} {
		if c.got != dev(c.want) {
			t.Errorf("%s: reserved %s", c.name, c.got)
		}
	}
}

// A chat model that is asked every 20 s will not pause for a minute: what it
// holds is no better forecast than the end of a run in five minutes.
func TestReserve_ShadowDoesNotCountOnWhatIsUsedAllTheTime(t *testing.T) {
	b := newBox(24, 24).put("big", 1, need(20, 2)).put("chat", 0, need(14, 2)).loaded("chat", 0).
		put("r", 0, need(10, 10)).loaded("r", 1).running("r", 5*time.Minute)
	chat := b.group("chat")
	chat.LastUsed, chat.LastPriority, chat.Uses = now.Add(-5*time.Second), 10, 180
	if _, p := decide(b); p.Shadow.Devices[0] != dev(1) || !p.Shadow.At.Equal(now.Add(5*time.Minute)) {
		t.Errorf("shadow %+v", p.Shadow)
	}
	chat.Uses = 3
	if _, p := decide(b); p.Shadow.Devices[0] != dev(0) || !p.Shadow.At.Equal(now.Add(55*time.Second)) {
		t.Errorf("one that is asked now and then: shadow %+v", p.Shadow)
	}
}

func TestReserve_Affinity(t *testing.T) {
	pair := func(waited time.Duration, streak int) *box {
		b := newBox(24).put("b", 1, need(14, 0), waiting(waited)).put("a", 1, need(14, 0)).loaded("a", 0)
		b.group("a").Streak = streak
		return b
	}
	check(t, []decision{
		{"the jobs of the loaded worker go first", pair(0, 0), "start a0, block b resource"},
		{"until another waited its time", pair(time.Minute, 0), "evict a for b, block b resource, block a no_slot"},
		{"or they went first too often", pair(0, 16), "evict a for b, block b resource, block a no_slot"},
		{"a job of higher class does not wait", func() *box { b := pair(0, 0); b.group("b").Ready[0].Priority = 1; return b }(),
			"evict a for b, block b resource, block a no_slot"},
	})
	_, p := decide(pair(0, 3))
	if !p.Start[0].Affinity {
		t.Errorf("start %+v", p.Start[0])
	}
	_, p = decide(newBox(24).put("a", 1, need(14, 0)).loaded("a", 0))
	if p.Start[0].Affinity {
		t.Error("it went ahead of nobody")
	}
}
