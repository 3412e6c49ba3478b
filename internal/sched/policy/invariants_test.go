package policy_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/sched/policy"
	"pgregory.net/rapid"
)

// drawView makes any moment that the loop could describe.
func drawView(t *rapid.T) sched.View {
	mib := func(name string, top int) resource.Bytes {
		return resource.Bytes(rapid.IntRange(0, top).Draw(t, name)) * resource.MiB
	}
	v := sched.View{Now: now, Fresh: rapid.Bool().Draw(t, "fresh"), Monitor: rapid.SampledFrom([]string{"", "cpu", "p0"}).Draw(t, "monitor"),
		FreeRAM: mib("free", 64) - 4*resource.MiB, TotalRAM: 64 * resource.MiB, Slots: rapid.IntRange(-1, 4).Draw(t, "slots"), SlotsMax: 8}
	devices := rapid.IntRange(0, 3).Draw(t, "devices")
	if devices > 0 {
		v.DevFree = make(map[resource.DeviceID]resource.Bytes)
	}
	for i := range devices {
		id := resource.DeviceID(fmt.Sprint("d", i))
		v.Snapshot.Devices = append(v.Snapshot.Devices, resource.Device{ID: id, Index: i, Total: 32 * resource.MiB})
		v.DevFree[id] = mib("devfree", 32)
	}
	seq := int64(0)
	for i := range rapid.IntRange(0, 6).Draw(t, "groups") {
		name := fmt.Sprint("p", i)
		g := sched.GroupView{
			Instance: name, Known: rapid.IntRange(0, 9).Draw(t, "known") > 0, Enabled: rapid.IntRange(0, 9).Draw(t, "enabled") > 0,
			Demand: resource.Demand{RequiresGPU: rapid.Bool().Draw(t, "gpu"), Devices: rapid.IntRange(0, 2).Draw(t, "want"),
				MinVRAM: mib("vram", 24), MinRAM: mib("ram", 40)},
			Concurrency: 3, SlotsFree: rapid.IntRange(0, 3).Draw(t, "free slots"), LoadWanted: rapid.IntRange(0, 4).Draw(t, "load") == 0,
			Resident: rapid.Bool().Draw(t, "resident"), Loading: rapid.IntRange(0, 4).Draw(t, "loading") == 0,
			Pinned: rapid.IntRange(0, 4).Draw(t, "pinned") == 0,
		}
		switch rapid.IntRange(0, 7).Draw(t, "trouble") {
		case 0:
			g.Stopping = "unload"
		case 1:
			g.CoolUntil = now.Add(time.Second)
		case 2:
			g.Failed = "gave up"
		case 3:
			g.WaitingFor = []string{"x"}
		}
		if g.Resident && rapid.Bool().Draw(t, "idle") {
			g.IdleSince = now.Add(-time.Minute)
		}
		if rapid.Bool().Draw(t, "waits") {
			g.WaitSince = now.Add(-time.Duration(rapid.IntRange(0, 400).Draw(t, "waited")) * time.Second)
		}
		for j := range rapid.IntRange(0, 4).Draw(t, "jobs") {
			seq++
			g.Ready = append(g.Ready, jobs.Ready{ID: jobs.ID(fmt.Sprint(name, "-", j)), Seq: seq, CreatedAt: now.Add(-time.Hour)})
		}
		held := !g.Resident && rapid.IntRange(0, 5).Draw(t, "held") == 0
		if g.Resident || held {
			phase := sched.PhaseResident
			if held {
				phase = sched.PhaseReserved
			}
			v.Claims = append(v.Claims, sched.Claim{Owner: name, Kind: sched.KindResident, Device: resource.HostDevice,
				Bytes: mib("claim", 40), Measured: mib("measured", 40), Phase: phase})
			if devices > 0 && rapid.Bool().Draw(t, "on device") {
				v.Claims = append(v.Claims, sched.Claim{Owner: name, Kind: sched.KindResident, Device: "d0",
					Bytes: mib("devclaim", 30), Measured: mib("devmeasured", 30), Phase: phase})
			}
		}
		v.Groups = append(v.Groups, g)
	}
	return v
}

func TestPolicies_Invariants(t *testing.T) {
	checkMany(t, 50, holds)
}

func holds(t *rapid.T) {
	v := drawView(t)
	for _, p := range []sched.Policy{policy.Permissive(), policy.Safety(), policy.Queue(0)} {
		plan := p.Decide(v)
		everyJobHasAnAnswer(t, v, plan)
		evictionsAreJustified(t, v, plan)
		if p.Name() != "permissive" {
			neverBeyondWhatIsFree(t, v, plan)
		}
	}
}

// everyJobHasAnAnswer: a ready job is started, failed, or its group has a
// block; in order, within the slots, and each once.
func everyJobHasAnAnswer(t *rapid.T, v sched.View, plan sched.Plan) {
	answer := make(map[jobs.ID]string)
	starts := make(map[string]int)
	total := 0
	for _, s := range plan.Start {
		if s.Job == "" {
			continue
		}
		if answer[s.Job] != "" {
			t.Fatalf("job %s is answered twice", s.Job)
		}
		answer[s.Job] = "start"
		starts[s.Instance]++
		total++
	}
	for _, f := range plan.Fail {
		if f.Job != "" && answer[f.Job] != "" {
			t.Fatalf("job %s is answered twice", f.Job)
		}
		if f.Job != "" {
			answer[f.Job] = "fail"
		}
		if f.Error == nil || f.Error.Message == "" {
			t.Fatalf("failure without a reason: %+v", f)
		}
	}
	if v.Slots >= 0 && total > v.Slots {
		t.Fatalf("%d starts with %d slots left", total, v.Slots)
	}
	for _, g := range v.Groups {
		if starts[g.Instance] > g.SlotsFree {
			t.Fatalf("%s: %d starts in %d slots", g.Instance, starts[g.Instance], g.SlotsFree)
		}
		blocked := plan.Block[g.Instance] != nil
		if blocked && (plan.Block[g.Instance].Code == "" || plan.Block[g.Instance].Sentence == "") {
			t.Fatalf("block without a reason: %+v", plan.Block[g.Instance])
		}
		open := false
		for _, r := range g.Ready {
			switch {
			case answer[r.ID] == "":
				open = true
				if !blocked {
					t.Fatalf("%s waits without a reason", r.ID)
				}
			case open:
				t.Fatalf("%s overtook an earlier job of its group", r.ID)
			}
		}
		if (!g.Known || !g.Enabled || g.Stopping != "") && starts[g.Instance] > 0 {
			t.Fatalf("%s may not start anything", g.Instance)
		}
	}
}

// neverBeyondWhatIsFree: claims taken or held do not exceed what is free,
// counting what was held for the same asker before.
func neverBeyondWhatIsFree(t *rapid.T, v sched.View, plan sched.Plan) {
	taken := make(map[resource.DeviceID]resource.Bytes)
	for _, s := range plan.Start {
		for _, c := range s.Claims {
			taken[c.Device] += c.Bytes
			for _, own := range v.Claims {
				if own.Owner == c.Owner && own.Device == c.Device && own.Phase == sched.PhaseReserved {
					taken[c.Device] -= own.Bytes
				}
			}
		}
		if !v.Fresh && len(s.Claims) > 0 {
			t.Fatalf("%s starts on a stale reading", s.Instance)
		}
	}
	for dev, n := range taken {
		free, ok := v.DevFree[dev]
		if dev == resource.HostDevice {
			free, ok = v.FreeRAM, true
		}
		if n > 0 && (!ok || n > free) {
			t.Fatalf("%d taken on %s where %d are free", n, dev, free)
		}
	}
}

// evictionsAreJustified: only idle, unpinned, unwanted workers go, and only
// for an asker that waits for them with enough room held.
func evictionsAreJustified(t *rapid.T, v sched.View, plan sched.Plan) {
	groups := make(map[string]sched.GroupView)
	for _, g := range v.Groups {
		groups[g.Instance] = g
	}
	seen := make(map[string]bool)
	gain := make(map[string]map[resource.DeviceID]resource.Bytes)
	for _, e := range plan.Evict {
		g := groups[e.Instance]
		if !g.Resident || g.Loading || g.Pinned || g.IdleSince.IsZero() || g.Stopping != "" || e.Instance == v.Monitor || g.LoadWanted ||
			(len(g.Ready) > 0 && g.Enabled) || seen[e.Instance] {
			t.Fatalf("%s may not be evicted: %+v", e.Instance, g)
		}
		seen[e.Instance] = true
		if plan.Block[e.Asker] == nil {
			t.Fatalf("%s does not wait for its victim %s", e.Asker, e.Instance)
		}
		for _, s := range plan.Start {
			if s.Instance == e.Instance || s.Instance == e.Asker {
				t.Fatalf("%s starts although %s is evicted for %s", s.Instance, e.Instance, e.Asker)
			}
		}
		if gain[e.Asker] == nil {
			gain[e.Asker] = make(map[resource.DeviceID]resource.Bytes)
		}
		for _, c := range v.Claims {
			if c.Owner == e.Instance {
				gain[e.Asker][c.Device] += max(c.Bytes, c.Measured)
			}
		}
	}
	for _, c := range plan.Hold {
		free := v.DevFree[c.Device]
		if c.Device == resource.HostDevice {
			free = v.FreeRAM
		}
		for _, own := range v.Claims {
			if own.Owner == c.Owner && own.Device == c.Device && own.Phase == sched.PhaseReserved {
				free += own.Bytes
			}
		}
		free += returnedByStarts(v, plan, c.Device)
		if c.Bytes > 0 && c.Bytes > free+gain[c.Owner][c.Device] {
			t.Fatalf("%d held for %s on %s: %d free and %d from its victims", c.Bytes, c.Owner, c.Device, free, gain[c.Owner][c.Device])
		}
	}
}

// returnedByStarts is what starts of the plan leave over of the room that was
// kept for them.
func returnedByStarts(v sched.View, plan sched.Plan, dev resource.DeviceID) resource.Bytes {
	var n resource.Bytes
	for _, s := range plan.Start {
		var left resource.Bytes
		for _, own := range v.Claims {
			if own.Owner == s.Instance && own.Device == dev && own.Phase == sched.PhaseReserved {
				left += own.Bytes
			}
		}
		for _, c := range s.Claims {
			if c.Device == dev {
				left -= c.Bytes
			}
		}
		n += max(left, 0)
	}
	return n
}
