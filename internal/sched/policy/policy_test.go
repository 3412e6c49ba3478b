package policy_test

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/sched/policy"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

// fixedSeed makes every run draw the same views; -rapid.seed=0 draws new ones.
const fixedSeed = 20260105

var seedChosen bool

func TestMain(m *testing.M) {
	flag.Parse()
	flag.Visit(func(f *flag.Flag) { seedChosen = seedChosen || f.Name == "rapid.seed" })
	goleak.VerifyTestMain(m)
}

// checkMany draws n times a hundred views. The tests here run one after the other,
// so the seed may be a flag.
func checkMany(t *testing.T, n int, holds func(*rapid.T)) {
	t.Helper()
	for i := range n {
		if !seedChosen {
			if err := flag.Set("rapid.seed", fmt.Sprint(fixedSeed+i)); err != nil {
				t.Fatal(err)
			}
		}
		rapid.Check(t, holds)
	}
}

const gib = 1024 * resource.MiB

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// machine is a fresh view of 16 GiB with free left and the given groups.
func machine(free resource.Bytes, gs ...sched.GroupView) sched.View {
	return sched.View{Now: now, Fresh: true, Monitor: "cpu", Groups: gs, FreeRAM: free, TotalRAM: 16 * gib, Slots: -1,
		Snapshot: resource.Snapshot{At: now, Monitor: "cpu", Host: resource.Host{MemTotal: 16 * gib, MemAvailable: free}}}
}

// gpus gives a view devices: pairs of total and free GiB.
func gpus(v sched.View, sizes ...resource.Bytes) sched.View {
	v.DevFree = make(map[resource.DeviceID]resource.Bytes)
	for i := 0; i+1 < len(sizes); i += 2 {
		id := resource.DeviceID(fmt.Sprint("GPU-", i/2))
		v.Snapshot.Devices = append(v.Snapshot.Devices, resource.Device{ID: id, Index: i / 2, Total: sizes[i] * gib, Free: sizes[i+1] * gib})
		v.DevFree[id] = sizes[i+1] * gib
	}
	return v
}

var seq int64

// group is a known, enabled instance with one slot and n ready jobs.
func group(name string, n int, change ...func(*sched.GroupView)) sched.GroupView {
	g := sched.GroupView{Instance: name, Known: true, Enabled: true, Concurrency: 1, SlotsFree: 1}
	for range n {
		seq++
		g.Ready = append(g.Ready, jobs.Ready{ID: jobs.ID(fmt.Sprint(name, len(g.Ready))), Seq: seq, CreatedAt: now})
	}
	for _, f := range change {
		f(&g)
	}
	return g
}

func ram(gibs resource.Bytes) func(*sched.GroupView) {
	return func(g *sched.GroupView) { g.Demand.MinRAM = gibs * gib }
}

func vram(gibs resource.Bytes) func(*sched.GroupView) {
	return func(g *sched.GroupView) { g.Demand.RequiresGPU, g.Demand.MinVRAM = true, gibs*gib }
}

func idle(for_ time.Duration) func(*sched.GroupView) {
	return func(g *sched.GroupView) { g.Resident, g.IdleSince = true, now.Add(-for_) }
}

func claim(owner string, dev resource.DeviceID, gibs resource.Bytes) sched.Claim {
	return sched.Claim{Owner: owner, Kind: sched.KindResident, Device: dev, Bytes: gibs * gib, Measured: gibs * gib, Phase: sched.PhaseResident}
}

// show puts a plan into one line: what starts, fails, is blocked and evicted.
func show(v sched.View, p sched.Plan) string {
	var out []string
	for _, s := range p.Start {
		w := "start " + string(s.Job)
		if s.Job == "" {
			w = "load " + s.Instance
		}
		for _, c := range s.Claims {
			if c.Device != resource.HostDevice {
				w += "@" + string(c.Device)
			}
		}
		out = append(out, w)
	}
	for _, f := range p.Fail {
		out = append(out, "fail "+string(f.Job)+" "+string(f.Error.Category))
	}
	for _, e := range p.Evict {
		out = append(out, "evict "+e.Instance)
	}
	for _, g := range v.Groups {
		if b := p.Block[g.Instance]; b != nil {
			out = append(out, "block "+g.Instance+" "+b.Code)
		}
	}
	return strings.Join(out, ", ")
}

func TestPolicies_Decisions(t *testing.T) {
	set := func(f func(*sched.GroupView)) func(*sched.GroupView) { return f }
	stale := func(v sched.View) sched.View { v.Fresh = false; return v }
	with := func(v sched.View, cs ...sched.Claim) sched.View { v.Claims = cs; return v }
	for _, c := range []struct {
		name                      string
		view                      sched.View
		permissive, safety, queue string
	}{
		{"nothing to do", machine(8*gib, group("a", 0)), "", "", ""},
		{"no needs", machine(0, group("a", 1)), "start a0", "start a0", "start a0"},
		{"one slot, two jobs", machine(8*gib, group("a", 2)), "start a0, block a no_slot", "start a0, block a no_slot", "start a0, block a no_slot"},
		{"need equals free", machine(8*gib, group("a", 1, ram(8))), "start a0", "start a0", "start a0"},
		{"need above free", machine(8*gib-1, group("a", 1, ram(8))), "start a0", "fail a0 resource", "block a resource"},
		{"need above total", machine(8*gib, group("a", 1, ram(17))), "start a0", "fail a0 resource", "fail a0 resource"},
		{"two that fit alone but not together", machine(10*gib, group("a", 1, ram(8)), group("b", 1, ram(8))),
			"start a0, start b0", "start a0, fail b0 resource", "start a0, block b resource"},
		{"a resident worker's memory counts for its own job", machine(0, group("a", 1, ram(14), idle(time.Hour))), "start a0", "start a0", "start a0"},
		{"two slots, one worker to load", machine(8*gib, group("a", 2, ram(8), set(func(g *sched.GroupView) { g.Concurrency, g.SlotsFree = 2, 2 }))),
			"start a0, start a1", "start a0, start a1", "start a0, start a1"},
		{"stale monitor holds what needs a fact", stale(machine(8*gib, group("a", 1, ram(1)), group("b", 1))),
			"start a0, start b0", "start b0, block a stale_monitor", "start b0, block a stale_monitor"},
		{"stale monitor and a loaded worker", stale(machine(8*gib, group("a", 1, ram(1), idle(time.Hour)))), "start a0", "start a0", "start a0"},
		{"before the first reading nothing is refused", sched.View{Now: now, Monitor: "cpu", FreeRAM: -gib, TotalRAM: -gib, Slots: -1,
			Groups: []sched.GroupView{group("a", 1), group("b", 1, ram(1)), group("c", 1, vram(1))}},
			"start a0, start b0, start c0", "start a0, block b stale_monitor, block c stale_monitor", "start a0, block b stale_monitor, block c stale_monitor"},
		{"no needs and less than nothing free", machine(-gib, group("a", 1)), "start a0", "start a0", "start a0"},
		{"disabled", machine(8*gib, group("a", 1, set(func(g *sched.GroupView) { g.Enabled = false }))),
			"block a disabled", "block a disabled", "block a disabled"},
		{"unknown", machine(8*gib, group("a", 1, set(func(g *sched.GroupView) { g.Known = false }))),
			"block a unknown_plugin", "block a unknown_plugin", "block a unknown_plugin"},
		{"cooling down", machine(8*gib, group("a", 1, set(func(g *sched.GroupView) { g.CoolUntil = now.Add(time.Second) }))),
			"block a cooling_down", "block a cooling_down", "block a cooling_down"},
		// Seen: while one slot of a crashed worker was still in use, jobs were started
		// on it and given back a thousand times in its back-off.
		{"cooling down while others hold slots", machine(8*gib, group("a", 1, idle(1), set(func(g *sched.GroupView) { g.CoolUntil = now.Add(time.Second) }))),
			"block a cooling_down", "block a cooling_down", "block a cooling_down"},
		{"cooled down", machine(8*gib, group("a", 1, set(func(g *sched.GroupView) { g.CoolUntil = now }))), "start a0", "start a0", "start a0"},
		{"gave up", machine(8*gib, group("a", 1, set(func(g *sched.GroupView) { g.Failed = "died 5 times" }))),
			"block a worker_failed", "block a worker_failed", "block a worker_failed"},
		{"load asked for", machine(8*gib, group("a", 0, ram(4), set(func(g *sched.GroupView) { g.LoadWanted = true }))), "load a", "load a", "load a"},
		{"load comes before jobs", machine(8*gib, group("b", 1, ram(6)), group("a", 0, ram(4), set(func(g *sched.GroupView) { g.LoadWanted = true }))),
			"load a, start b0", "load a, fail b0 resource", "load a, block b resource"},
		{"load of the monitor's own worker without facts", func() sched.View {
			v := machine(8*gib, group("m", 0, ram(4), set(func(g *sched.GroupView) { g.LoadWanted = true })))
			v.Fresh, v.MonitorInstance = false, "m"
			return v
		}(), "load m", "load m", "load m"},
		{"load that does not fit", machine(2*gib, group("a", 0, ram(4), set(func(g *sched.GroupView) { g.LoadWanted = true }))),
			"load a", "fail  resource", "block a resource"},
		{"load of a stopping worker waits", machine(8*gib, group("a", 0, idle(1), set(func(g *sched.GroupView) { g.LoadWanted, g.Stopping = true, "unload" }))),
			"block a no_slot", "block a no_slot", "block a no_slot"},

		{"gpu without any", machine(8*gib, group("a", 1, vram(4)), group("b", 1)), "start a0, start b0", "start b0, fail a0 resource", "start b0, block a resource"},
		{"gpu without a figure and without any", machine(8*gib, group("a", 1, vram(0))), "start a0", "fail a0 resource", "block a resource"},
		{"gpu fits on the tighter one", gpus(machine(8*gib, group("a", 1, vram(4))), 24, 20, 24, 6), "start a0@GPU-1", "start a0@GPU-1", "start a0@GPU-1"},
		{"gpu without a figure takes the emptiest", gpus(machine(8*gib, group("a", 1, vram(0))), 24, 6, 24, 20), "start a0@GPU-1", "start a0@GPU-1", "start a0@GPU-1"},
		{"two times 8 free never admit 12", gpus(machine(8*gib, group("a", 1, vram(12))), 24, 8, 24, 8), "start a0", "fail a0 resource", "block a resource"},
		{"gpu larger than any", gpus(machine(8*gib, group("a", 1, vram(32))), 24, 24, 24, 24), "start a0", "fail a0 resource", "fail a0 resource"},
		{"two devices wanted, one there", gpus(machine(8*gib, group("a", 1, vram(4), set(func(g *sched.GroupView) { g.Demand.Devices = 2 }))), 24, 24),
			"start a0@GPU-0", "fail a0 resource", "fail a0 resource"},
		{"two devices wanted", gpus(machine(8*gib, group("a", 1, vram(4), set(func(g *sched.GroupView) { g.Demand.Devices = 2 }))), 24, 24, 24, 5),
			"start a0@GPU-1@GPU-0", "start a0@GPU-1@GPU-0", "start a0@GPU-1@GPU-0"},

		{"evicts an idle worker", with(machine(2*gib, group("a", 1, ram(8)), group("v", 0, idle(time.Hour))), claim("v", resource.HostDevice, 6)),
			"start a0", "evict v, block a resource", "evict v, block a resource"},
		{"no sufficient set: evicts nothing", with(machine(2*gib, group("a", 1, ram(9)), group("v", 0, idle(time.Hour))), claim("v", resource.HostDevice, 6)),
			"start a0", "fail a0 resource", "block a resource"},
		{"never evicts a pinned worker", with(machine(2*gib, group("a", 1, ram(8)), group("v", 0, idle(1), set(func(g *sched.GroupView) { g.Pinned = true }))), claim("v", resource.HostDevice, 8)),
			"start a0", "fail a0 resource", "block a resource"},
		{"never evicts the monitor's worker", with(machine(2*gib, group("a", 1, ram(8)), group("cpu", 0, idle(1))), claim("cpu", resource.HostDevice, 8)),
			"start a0", "fail a0 resource", "block a resource"},
		{"never evicts a busy worker", with(machine(2*gib, group("a", 1, ram(8)), group("v", 0, set(func(g *sched.GroupView) { g.Resident, g.SlotsFree = true, 0 }))), claim("v", resource.HostDevice, 8)),
			"start a0", "fail a0 resource", "block a resource"},
		{"never evicts a worker with jobs of its own", with(machine(2*gib, group("a", 1, ram(8), set(func(g *sched.GroupView) { g.Ready[0].Priority = 1 })), group("v", 1, idle(1))), claim("v", resource.HostDevice, 8)),
			"start a0, start v0", "start v0, fail a0 resource", "start v0, block a resource"},
		{"evicts the smallest that suffices", with(machine(2*gib, group("a", 1, ram(6)), group("s", 0, idle(time.Hour)), group("m", 0, idle(1)), group("l", 0, idle(time.Hour))),
			claim("s", resource.HostDevice, 2), claim("m", resource.HostDevice, 4), claim("l", resource.HostDevice, 8)),
			"start a0", "evict m, block a resource", "evict m, block a resource"},
		{"evicts the longest idle of equals", with(machine(2*gib, group("a", 1, ram(6)), group("x", 0, idle(time.Minute)), group("y", 0, idle(time.Hour))),
			claim("x", resource.HostDevice, 4), claim("y", resource.HostDevice, 4)),
			"start a0", "evict y, block a resource", "evict y, block a resource"},
		{"evicts two where one is not enough", with(machine(2*gib, group("a", 1, ram(9)), group("x", 0, idle(1)), group("y", 0, idle(2)), group("z", 0, idle(2))),
			claim("x", resource.HostDevice, 4), claim("y", resource.HostDevice, 3), claim("z", resource.HostDevice, 1)),
			"start a0", "evict x, evict y, block a resource", "evict x, evict y, block a resource"},
		{"evicts on the device that is short", with(gpus(machine(8*gib, group("a", 1, vram(12)), group("x", 0, idle(1)), group("y", 0, idle(1))), 24, 4, 24, 4),
			claim("x", "GPU-0", 4), claim("y", "GPU-1", 10)),
			"start a0", "evict y, block a resource", "evict y, block a resource"},
		{"waits for its victims", machine(20*gib, group("a", 1, ram(8), set(func(g *sched.GroupView) { g.WaitingFor = []string{"v"} }))),
			"block a resource", "block a resource", "block a resource"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for p, want := range map[sched.Policy]string{policy.Permissive(): c.permissive, policy.Safety(): c.safety, policy.Queue(0): c.queue} {
				if got := show(c.view, p.Decide(c.view)); got != want {
					t.Errorf("%s: %q, want %q", p.Name(), got, want)
				}
			}
		})
	}
}

func TestOrder_PriorityThenSubmissionAcrossPlugins(t *testing.T) {
	a, b, c := group("a", 2), group("b", 2), group("c", 1)
	for _, g := range []*sched.GroupView{&a, &b, &c} {
		g.Concurrency, g.SlotsFree = 4, 4
	}
	b.Ready[0].Priority, b.Ready[1].Priority = 7, 1
	v := machine(gib, c, b, a)
	if got := show(v, policy.Safety().Decide(v)); got != "start b0, start b1, start a0, start a1, start c0" {
		t.Errorf("order %q", got)
	}
	v.Slots, v.SlotsMax = 2, 4
	if got := show(v, policy.Safety().Decide(v)); got != "start b0, start b1, block c no_slot, block a no_slot" {
		t.Errorf("with two slots left: %q", got)
	}
}

func TestHold_TheRoomOfAnAskerIsItsOwn(t *testing.T) {
	hold := sched.Claim{Owner: "a", Kind: sched.KindResident, Device: resource.HostDevice, Bytes: 8 * gib, Phase: sched.PhaseReserved}
	v := machine(0, group("a", 1, ram(8)), group("b", 1, ram(1)))
	v.Claims = []sched.Claim{hold}
	if got := show(v, policy.Safety().Decide(v)); got != "start a0, fail b0 resource" {
		t.Errorf("plan %q", got)
	}
	v.FreeRAM = -gib
	if got := show(v, policy.Queue(0).Decide(v)); got != "block a resource, block b resource" {
		t.Errorf("plan with less than was hoped for: %q", got)
	}
}

func TestQueue_WakesAtTheEndOfTheWait(t *testing.T) {
	v := machine(gib, group("a", 2, ram(8)))
	v.Groups[0].WaitSince = now.Add(-290 * time.Second)
	v.Groups[0].Ready[0].CreatedAt = now.Add(-time.Hour)
	p := policy.Queue(0).Decide(v)
	if !p.WakeAt.Equal(now.Add(10*time.Second)) || len(p.Fail) != 0 {
		t.Errorf("wake at %v, plan %s", p.WakeAt, show(v, p))
	}
	v.Now = now.Add(10 * time.Second)
	p = policy.Queue(0).Decide(v)
	if got := show(v, p); got != "fail a0 resource, block a resource" {
		t.Errorf("plan %q: the second job has not waited yet", got)
	}
	if !strings.Contains(p.Fail[0].Error.Message, "a needs 8192 MiB of memory, 1024 MiB may be used; waited 5m0s") {
		t.Errorf("message %q", p.Fail[0].Error.Message)
	}
}

func TestMessages_SayWhatIsMissing(t *testing.T) {
	for _, c := range []struct {
		view sched.View
		want string
	}{
		{machine(gib, group("a", 1, ram(2))), "a needs 2048 MiB of memory, 1024 MiB may be used"},
		{machine(gib, group("a", 1, ram(20))), "a needs 20480 MiB of memory, 16384 MiB may be used; it can never fit on this machine"},
		{machine(gib, group("a", 1, vram(2))), "a needs 1 GPU, and the system monitor reports none; it can never fit on this machine"},
		{gpus(machine(gib, group("a", 1, vram(2))), 24, 1, 24, 0), "a needs 2048 MiB of GPU memory, 1024 MiB are free on GPU-0"},
		{gpus(machine(gib, group("a", 1, vram(2), ram(2))), 24, 1), "a needs 2048 MiB of memory, 1024 MiB may be used and 2048 MiB of GPU memory, 1024 MiB are free on GPU-0"},
	} {
		p := policy.Safety().Decide(c.view)
		if len(p.Fail) != 1 || p.Fail[0].Error.Message != c.want {
			t.Errorf("plan %+v, want %q", p, c.want)
		}
	}
}
