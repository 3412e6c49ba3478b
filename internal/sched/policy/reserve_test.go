package policy_test

import (
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
)

func TestReserve_Fit(t *testing.T) {
	slots := func(n int) func(*sched.GroupView) {
		return func(g *sched.GroupView) { g.Concurrency, g.SlotsFree = n, n }
	}
	check(t, []decision{
		{"nothing to do", newBox(24), ""},
		{"starts where it fits", newBox(24).put("a", 1, need(12, 4)), "start a0@0"},
		{"need equals what is free", newBox(16).put("a", 1, need(12, 4)), "start a0@0"},
		{"the run counts beside the worker", newBox(24).foreign(0, 9).put("a", 1, need(12, 4)), "block a resource"},
		{"a 14 GB worker on a 24 GB card runs its own next job at once", newBox(24).foreign(0, 8).put("a", 1, need(14, 2)).loaded("a", 0), "start a0"},
		{"a loaded worker lacks room for its run", newBox(24).foreign(0, 9).put("a", 1, need(14, 2)).loaded("a", 0), "block a resource"},
		{"two times 8 free never admit 12", newBox(24, 24).foreign(0, 16).foreign(1, 16).put("a", 1, need(12, 0)), "block a resource"},
		{"two at once never both get the last 10", newBox(24).foreign(0, 14).put("a", 1, need(10, 0)).put("b", 1, need(10, 0)), "start a0@0, block b resource"},
		{"three loaded models share a card while one runs its batch", newBox(24).put("a", 1, need(4, 10)).loaded("a", 0).put("b", 1, need(4, 10)).loaded("b", 0).put("c", 0, need(4, 10)).loaded("c", 0),
			"start a0, block b resource"},
		{"best fit for the small one", newBox(24, 24).foreign(1, 18).put("a", 1, need(4, 1)), "start a0@1"},
		{"prefers what it is told to", newBox(24, 24).foreign(1, 18).put("a", 1, need(4, 1), change(func(g *sched.GroupView) { g.Prefer = []string{"0"} })), "start a0@0"},
		{"avoids what it is told to", newBox(24, 24).foreign(1, 18).put("a", 1, need(4, 1), change(func(g *sched.GroupView) { g.Avoid = []string{"GPU-1"} })), "start a0@0"},
		{"uses what it avoids when nothing else has room", newBox(24, 24).foreign(0, 22).put("a", 1, need(4, 1), change(func(g *sched.GroupView) { g.Avoid = []string{"GPU-1"} })), "start a0@1"},
		{"pinned waits though another is free", newBox(24, 24).foreign(1, 22).put("a", 1, need(4, 1), change(func(g *sched.GroupView) { g.Pin = []string{"1"} })), "block a resource"},
		{"pinned to what is not there", newBox(24).put("a", 1, need(4, 1), change(func(g *sched.GroupView) { g.Pin = []string{"7"} })), "fail a0 resource"},
		{"two devices at once", newBox(24, 24).foreign(0, 20).put("a", 1, need(4, 0), devices(2)), "start a0@0@1"},
		{"two devices or none", newBox(24, 24).foreign(0, 21).put("a", 1, need(4, 0), devices(2)), "block a resource"},
		{"two devices on a box with one", newBox(24).put("a", 1, need(4, 0), devices(2)), "fail a0 resource"},
		{"host memory is checked, too", newBox(24).put("a", 1, need(4, 0), hostNeed(65, 0)), "fail a0 resource"},
		{"host memory is short for now", newBox(24).put("b", 0, hostNeed(60, 0)).put("a", 1, need(4, 0), hostNeed(5, 0)).loaded("b").running("b", 0), "block a resource"},
		{"what was learned and is larger than any device gets the largest", newBox(16, 24).put("a", 1, need(20, 9), change(learned)), "start a0@1"},
		{"beside a display, too", newBox(24).foreign(0, 1).put("a", 1, need(20, 9), change(learned)), "start a0@0"},
		{"but not beside a game", newBox(24).foreign(0, 9).put("a", 1, need(20, 9), change(learned)), "block a resource"},
		{"larger than any device", newBox(24, 16).foreign(0, 20).put("a", 2, need(24, 1)), "fail a0 resource, fail a1 resource"},
		{"no figure but a bound, larger than any device", newBox(24).put("a", 1, change(unknown), change(func(g *sched.GroupView) { g.Need.ResidentVRAM = 25 * gib })), "fail a0 resource"},
		{"no GPU here: GPU jobs are refused, others run", newBox().put("a", 1, need(4, 0)).put("b", 1, hostNeed(1, 1)), "start b0, fail a0 resource"},
		{"CPU jobs do not wait behind GPU jobs", newBox(24).foreign(0, 20).put("a", 1, need(8, 0), priority(9)).put("b", 1, hostNeed(1, 0)), "start b0, block a resource"},
		{"as many as there are slots", newBox(24).put("a", 3, need(4, 5), slots(2)), "start a0@0, start a1, block a no_slot"},
		{"as many as there is room for", newBox(24).put("a", 3, need(4, 9), slots(3)), "start a0@0, start a1, block a resource"},
		{"a worker that uses more than it claims needs less", overused(), "start a0"},
	})
}

func learned(g *sched.GroupView) { g.Need.Source = sched.SourceProfile }

// overused is a full device whose worker's caches would hold its next run.
func overused() *box {
	b := newBox(16).put("a", 1, need(10, 6))
	b.loaded("a", 0)
	b.v.Claims[0].Measured = 16 * gib
	b.take(dev(0), 6*gib)
	return b
}

func TestReserve_Facts(t *testing.T) {
	stale := func(b *box) *box { b.v.Fresh = false; return b }
	monitors := func(b *box) *box {
		b.v.MonitorInstance = "m"
		b.group("m").LoadWanted = true
		return b
	}
	check(t, []decision{
		{"stale holds what takes memory", stale(newBox(24).put("a", 1, need(4, 0)).put("b", 1, hostNeed(1, 0)).put("c", 1)), "start c0, block a stale_monitor, block b stale_monitor"},
		{"stale holds the run of a loaded worker that takes memory", stale(newBox(24).put("a", 1, need(4, 1)).loaded("a", 0).put("b", 1, need(4, 0)).loaded("b", 0)), "start b0, block a stale_monitor"},
		{"the monitor's own worker brings the facts", monitors(stale(newBox(24).put("m", 0, hostNeed(1, 0)).put("a", 1, hostNeed(1, 0)))), "load m, block a stale_monitor"},
		{"unless it needs an accelerator", monitors(stale(newBox(24).put("m", 0, need(1, 0)))), "block m stale_monitor"},
		{"its jobs wait like all", func() *box {
			b := monitors(stale(newBox(24).put("m", 1, hostNeed(1, 0))))
			b.group("m").LoadWanted = false
			return b
		}(), "block m stale_monitor"},
		{"stale refuses nothing", stale(newBox().put("a", 1, need(4, 0)).put("b", 1, hostNeed(100, 0))), "block a stale_monitor, block b stale_monitor"},
		{"a need of nothing starts with less than nothing free", nothingLeft().put("a", 1), "start a0"},
		{"a loaded worker whose run takes nothing starts with less than nothing free", newBox(24).put("a", 1, need(20, 0)).loaded("a", 0).foreign(0, 9), "start a0"},
	})
}

func nothingLeft() *box {
	b := newBox(24)
	b.v.FreeRAM = -gib
	return b
}

func TestReserve_UnifiedMemoryIsOnePool(t *testing.T) {
	apu := func() *box {
		b := newBox(64)
		b.v.Devices[0].Unified = true
		return b
	}
	check(t, []decision{
		{"both kinds together", apu().put("a", 1, need(40, 0), hostNeed(24, 0)), "start a0@0"},
		{"both kinds together are too much", apu().put("a", 1, need(40, 0), hostNeed(25, 0)), "fail a0 resource"},
		{"a CPU job takes what the GPU job would need", apu().put("b", 1, hostNeed(30, 0)).put("a", 1, need(40, 0)), "start b0, block a resource"},
		{"a GPU job takes what the CPU job would need", apu().put("a", 1, need(40, 0)).put("b", 1, hostNeed(30, 0)), "start a0@0, block b resource"},
	})
}

func TestReserve_Measuring(t *testing.T) {
	excl := func(b *box, i int, who string) *box { b.v.Devices[i].Exclusive = who; return b }
	check(t, []decision{
		{"an unknown need gets a device to itself", newBox(24).put("a", 1, change(unknown)).put("b", 1, need(1, 0)), "start a0@0 measuring, block b resource"},
		{"an unknown need takes the emptiest", newBox(24, 24).foreign(0, 4).put("a", 1, change(unknown)).put("b", 1, need(1, 0)), "start a0@1 measuring, start b0@0"},
		{"two unknown needs never share", newBox(24).put("a", 1, change(unknown)).put("b", 1, change(unknown)), "start a0@0 measuring, block b resource"},
		{"it waits for who works there", newBox(24).put("a", 1, change(unknown)).put("b", 0, need(4, 1)).loaded("b", 0).running("b", time.Minute), "block a resource"},
		{"idle workers make way", newBox(24).put("a", 1, change(unknown)).put("b", 0, need(4, 1)).loaded("b", 0), "evict b for a, block a resource"},
		{"pinned workers stay where they are", newBox(24).put("a", 1, change(unknown)).put("b", 0, need(4, 1), change(func(g *sched.GroupView) { g.Pinned = true })).loaded("b", 0), "start a0@0 measuring"},
		{"nothing starts where somebody measures", excl(newBox(24).put("m", 0, change(unknown)).loaded("m", 0).running("m", 0).put("a", 1, need(1, 0)).put("b", 1, need(2, 0)).loaded("b", 0), 0, "m"), "block a resource, block b resource"},
		{"nor its own second job", excl(newBox(24).put("m", 1, change(unknown), change(func(g *sched.GroupView) { g.Concurrency, g.SlotsFree = 2, 2 })).loaded("m", 0).running("m", 0), 0, "m"), "block m resource"},
		{"others do start beside it", excl(newBox(24, 24).put("m", 0, change(unknown)).loaded("m", 0).running("m", 0).put("a", 1, need(1, 0)).put("c", 1, hostNeed(1, 0)), 0, "m"), "start a0@1, start c0"},
	})
}

func TestReserve_Eviction(t *testing.T) {
	since := func(d time.Duration) func(*box, string) {
		return func(b *box, name string) { b.group(name).ResidentSince = now.Add(-d) }
	}
	used := func(d time.Duration) func(*box, string) {
		return func(b *box, name string) { b.group(name).LastUsed = now.Add(-d) }
	}
	with := func(b *box, f func(*box, string), name string) *box { f(b, name); return b }
	set := func(b *box, name string, f func(*sched.GroupView)) *box { f(b.group(name)); return b }
	pair := func() *box { return newBox(24).put("a", 1, need(14, 2)).put("v", 0, need(14, 2)).loaded("v", 0) }
	three := func() *box {
		return newBox(24).put("a", 1, need(11, 0)).put("x", 0, need(6, 0)).loaded("x", 0).put("y", 0, need(8, 0)).loaded("y", 0).put("z", 0, need(4, 0)).loaded("z", 0)
	}
	check(t, []decision{
		{"an idle worker makes room", pair(), "evict v for a, block a resource"},
		{"a busy worker never goes", pair().running("v", time.Minute), "block a resource"},
		{"a pinned one never goes", set(pair(), "v", func(g *sched.GroupView) { g.Pinned = true }), "block a resource"},
		{"the monitor's worker never goes", func() *box { b := pair(); b.v.MonitorInstance = "v"; return b }(), "block a resource"},
		{"one that was loaded just now stays", with(pair(), since(29*time.Second), "v"), "block a resource"},
		{"but for a job of higher class", set(with(pair(), since(time.Second), "v"), "a", priority(1)), "evict v for a, block a resource"},
		{"one that is used all the time stays in its pauses", set(with(pair(), used(25*time.Second), "v"), "v", func(g *sched.GroupView) { g.Uses = 120 }), "block a resource"},
		{"but not much longer", set(with(pair(), used(61*time.Second), "v"), "v", func(g *sched.GroupView) { g.Uses = 120 }), "evict v for a, block a resource"},
		{"one kept for urgent jobs stays for a minute", set(with(pair(), used(59*time.Second), "v"), "v", func(g *sched.GroupView) { g.LastPriority = 5 }), "block a resource"},
		{"but for urgent jobs", set(set(with(pair(), used(59*time.Second), "v"), "v", func(g *sched.GroupView) { g.LastPriority = 5 }), "a", priority(5)), "evict v for a, block a resource"},
		{"and not for ever", set(set(with(pair(), used(time.Second), "v"), "v", func(g *sched.GroupView) { g.LastPriority = 5 }), "a", waiting(10*time.Minute)), "evict v for a, block a resource"},
		{"one that took long to load stays longer", set(with(pair(), since(time.Minute), "v"), "v", times(31*time.Second, 0, 0)), "block a resource"},
		{"no sufficient set: nobody goes", pair().foreign(0, 9), "block a resource"},
		{"one on another device is no help", newBox(24, 24).foreign(1, 20).put("a", 1, need(14, 2)).put("v", 0, need(4, 2)).loaded("v", 1).put("w", 0, need(14, 0)).loaded("w", 0).running("w", 0), "block a resource"},
		{"the one that is cheap to load again", set(three(), "x", times(60*time.Second, 0, 0)), "evict y for a, block a resource"},
		{"the one used least", set(three(), "x", func(g *sched.GroupView) { g.Uses = 30 }), "evict y for a, block a resource"},
		{"of equals the smaller", three(), "evict x for a, block a resource"},
		{"the one used longest ago", set(three(), "y", func(g *sched.GroupView) { g.LastUsed = now.Add(-2 * time.Hour) }), "evict y for a, block a resource"},
		{"two cheap ones rather than one dear", set(set(three(), "y", times(5*time.Minute, 0, 0)), "a", need(13, 0)), "evict z for a, evict x for a, block a resource"},
		{"as many as it takes", set(three(), "a", need(15, 0)), "evict z for a, evict x for a, block a resource"},
		{"one whose own jobs wait goes last", set(three(), "x", func(g *sched.GroupView) { g.Queued = 3 }), "evict y for a, block a resource"},
		{"release comes first where it is offered", set(pair(), "v", func(g *sched.GroupView) { g.CanRelease = true }), "release v for a, block a resource"},
		{"nothing starts on one that was asked", set(set(pair(), "v", func(g *sched.GroupView) { g.Ready, g.Queued = group("v", 1).Ready, 1 }), "a", func(g *sched.GroupView) { g.WaitingFor = []string{"v"} }),
			"block a resource, block v no_slot"},
		{"waits for its victims", set(pair(), "a", func(g *sched.GroupView) { g.WaitingFor = []string{"v"} }), "block a resource"},
		{"host memory is made room for, too", newBox(24).put("a", 1, hostNeed(40, 0)).put("v", 0, need(2, 0), hostNeed(30, 0)).loaded("v", 0), "evict v for a, block a resource"},
		{"a worker moves when its device became too small", newBox(8, 24).put("a", 1, need(6, 6)).loaded("a", 0), "evict a for a, block a resource"},
		{"a worker starts over when its caches leave no room for its next job", cached(), "evict a for a, block a resource"},
		{"but not before a reading proves that it keeps them", set(cached(), "a", func(g *sched.GroupView) { g.Lingering = true }), "block a resource"},
		{"nor because of the room that is kept for its own next job", func() *box {
			b := newBox(24).put("a", 1, need(2, 14)).loaded("a", 0).put("b", 0, need(8, 0)).loaded("b", 0).running("b", 0)
			return b.claim(sched.Claim{Owner: "a", Kind: sched.KindExecute, Instance: "a", Device: dev(0), Bytes: 13 * gib, Phase: sched.PhaseReserved}).foreign(0, 1)
		}(), "block a resource"},
		{"a worker does not start over because others take its room", cached().foreign(0, 9), "block a resource"},
		{"nobody goes for what an ended run is about to bring back", ended(), "block a resource"},
		{"but where its worker keeps it", set(ended(), "r", func(g *sched.GroupView) { g.CanRelease = true }), "evict v for a, block a resource"},
		{"a load asked for by name makes room, too", newBox(24).put("a", 0, need(14, 2), change(func(g *sched.GroupView) { g.LoadWanted = true })).put("v", 0, need(14, 2)).loaded("v", 0), "evict v for a, block a resource"},
	})
}

func TestReserve_SwapBudget(t *testing.T) {
	spent := func(left int) *box {
		b := newBox(24).put("a", 1, need(14, 2)).put("v", 0, need(14, 2)).loaded("v", 0)
		b.v.SwapsLeft = map[resource.DeviceID]int{"GPU-0": left}
		b.v.SwapsAgain = map[resource.DeviceID]time.Time{"GPU-0": now.Add(time.Minute)}
		return b
	}
	check(t, []decision{
		{"something left", spent(1), "evict v for a, block a resource"},
		{"nothing left", spent(0), "block a resource, thrash a v"},
	})
	_, p := decide(spent(0))
	if b := p.Block["a"]; !b.Earliest.Equal(now.Add(time.Minute)) || !p.WakeAt.Equal(now.Add(time.Minute)) {
		t.Errorf("block %+v, wake at %v", b, p.WakeAt)
	}
}

// ended is a job of "a" that fits as soon as the 8 GB of a run of "r" are back,
// beside an idle "v" that could be stopped.
func ended() *box {
	b := newBox(24).put("a", 1, need(8, 2)).put("v", 0, need(4, 0)).loaded("v", 0).put("r", 0, need(4, 8), change(pinned)).loaded("r", 0)
	b.group("r").Lingering = true
	return b.claim(sched.Claim{Owner: "r", Kind: sched.KindExecute, Instance: "r", Device: dev(0), Bytes: 8 * gib, Phase: sched.PhaseReserved})
}

func pinned(g *sched.GroupView) { g.Pinned = true }

// cached is a worker that keeps 20 GB after its runs, which take 6 on top of 10.
func cached() *box {
	b := newBox(24).put("a", 1, need(10, 6)).loaded("a", 0)
	b.v.Claims[0].Bytes, b.v.Claims[0].Measured = 20*gib, 20*gib
	b.take(dev(0), 10*gib)
	return b
}
