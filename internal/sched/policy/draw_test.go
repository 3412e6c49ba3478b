package policy_test

import (
	"fmt"
	"slices"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
	"pgregory.net/rapid"
)

// odds is true once in n draws.
func odds(t *rapid.T, n int, name string) bool { return rapid.IntRange(1, n).Draw(t, name) == n }

func gibs(t *rapid.T, top int, name string) resource.Bytes {
	return resource.Bytes(rapid.IntRange(0, top).Draw(t, name)) * gib
}

func seconds(t *rapid.T, top int, name string) time.Duration {
	return time.Duration(rapid.IntRange(0, top).Draw(t, name)) * time.Second
}

// drawBox makes any moment of a machine with accelerators that the loop could
// describe, also ugly ones: overcommitted, stale, with holds and half-ended
// workers.
func drawBox(t *rapid.T) *box {
	sizes := rapid.SliceOfN(rapid.SampledFrom([]int{8, 16, 24, 24, 48}), 0, 4).Draw(t, "devices")
	b := newBox(sizes...)
	b.v.Fresh = !odds(t, 8, "stale")
	if odds(t, 3, "run slots") {
		b.v.Slots, b.v.SlotsMax = rapid.IntRange(0, 4).Draw(t, "slots"), 8
	}
	if odds(t, 3, "quotas") {
		b.v.Quota = map[string]int{"ann": rapid.IntRange(0, 2).Draw(t, "quota")}
	}
	if odds(t, 3, "shares") {
		b.v.Share = map[string]float64{"ann": 10, "bob": float64(rapid.IntRange(0, 20).Draw(t, "share"))}
	}
	for i := range b.v.Devices {
		d := &b.v.Devices[i]
		d.Margin = gibs(t, 1, "margin")
		d.Free -= d.Margin
		if odds(t, 4, "foreign") {
			b.foreign(i, rapid.IntRange(0, int(d.Total/gib)).Draw(t, "foreign GiB"))
		}
		if odds(t, 6, "lease") {
			b.claim(sched.Claim{Owner: "lease", Kind: sched.KindLease, Device: d.ID, Bytes: gibs(t, 8, "leased"), Phase: sched.PhaseReserved})
		}
		if odds(t, 4, "swaps") {
			b.swaps(d.ID, rapid.IntRange(0, 2).Draw(t, "swaps left"))
		}
	}
	for i := range rapid.IntRange(1, 7).Draw(t, "groups") {
		drawGroup(t, b, fmt.Sprint("p", i))
	}
	if odds(t, 3, "reserved before") && len(b.v.Devices) > 0 {
		b.v.Shadow = &sched.Shadow{Instance: "p1", Devices: []resource.DeviceID{dev(rapid.IntRange(0, len(b.v.Devices)-1).Draw(t, "reserved on"))}}
	}
	if odds(t, 4, "monitor's") {
		b.v.MonitorInstance = "p0"
	}
	return b
}

func (b *box) swaps(id resource.DeviceID, left int) {
	if b.v.SwapsLeft == nil {
		b.v.SwapsLeft, b.v.SwapsAgain = make(map[resource.DeviceID]int), make(map[resource.DeviceID]time.Time)
	}
	b.v.SwapsLeft[id] = left
	if left == 0 {
		b.v.SwapsAgain[id] = now.Add(time.Minute)
	}
}

func drawGroup(t *rapid.T, b *box, name string) {
	n := rapid.IntRange(0, 3).Draw(t, "jobs")
	b.put(name, n)
	g := b.group(name)
	g.Known, g.Enabled = !odds(t, 12, "unknown"), !odds(t, 12, "disabled")
	g.Concurrency = rapid.IntRange(1, 3).Draw(t, "slots")
	g.SlotsFree = g.Concurrency
	g.Queued = n + rapid.IntRange(0, 1).Draw(t, "more")
	g.LoadWanted = odds(t, 8, "load")
	g.Pinned = odds(t, 6, "pinned")
	g.CanRelease = odds(t, 6, "release")
	g.Uses = rapid.SampledFrom([]float64{0, 1, 20, 100, 600}).Draw(t, "uses")
	g.LastPriority = rapid.SampledFrom([]int{0, 0, 0, 2}).Draw(t, "last")
	g.Streak = rapid.SampledFrom([]int{0, 0, 0, 3, 16}).Draw(t, "streak")
	if odds(t, 2, "timed") {
		g.LoadTime, g.RunTime = seconds(t, 60, "load time"), seconds(t, 300, "run time")
		g.RunTimeP90 = g.RunTime * 3 / 2
	}
	if odds(t, 2, "waited") {
		g.WaitSince = now.Add(-seconds(t, 900, "wait"))
	}
	for j := range g.Ready {
		r := &g.Ready[j]
		r.Priority = rapid.IntRange(0, 2).Draw(t, "priority")
		r.Submitter = rapid.SampledFrom([]string{"ann", "bob", ""}).Draw(t, "submitter")
		r.CreatedAt = now.Add(-seconds(t, 1200, "age"))
	}
	drawNeed(t, b, g)
	drawState(t, b, g)
}

func drawNeed(t *rapid.T, b *box, g *sched.GroupView) {
	g.Need.ResidentRAM, g.Need.ExecuteRAM = gibs(t, 12, "ram"), gibs(t, 4, "run ram")
	g.Need.Source = sched.SourceManifest
	if odds(t, 4, "cpu only") {
		g.Need.Known = true
		return
	}
	g.Need.GPU, g.Need.Devices = true, rapid.SampledFrom([]int{0, 1, 1, 1, 2}).Draw(t, "span")
	g.Need.Known = !odds(t, 8, "no figure")
	if g.Need.Known {
		g.Need.ResidentVRAM, g.Need.ExecuteVRAM = gibs(t, 20, "vram"), gibs(t, 8, "run vram")
	}
	for i := range b.v.Devices {
		switch rapid.IntRange(0, 11).Draw(t, "wish") {
		case 0:
			g.Pin = append(g.Pin, string(dev(i)))
		case 1:
			g.Prefer = append(g.Prefer, fmt.Sprint(i))
		case 2:
			g.Avoid = append(g.Avoid, string(dev(i)))
		}
	}
}

// drawState gives the group a worker, room that is kept for it, or trouble.
func drawState(t *rapid.T, b *box, g *sched.GroupView) {
	var on []int
	if g.Need.GPU {
		for i := range b.v.Devices {
			if len(on) < max(g.Need.Devices, 1) && odds(t, 2, "on it") {
				on = append(on, i)
			}
		}
		if len(on) < max(g.Need.Devices, 1) {
			on = nil
		}
	}
	if len(on) > 0 || !g.Need.GPU {
		switch rapid.IntRange(0, 3).Draw(t, "worker") {
		case 0, 1:
			drawWorker(t, b, g, on)
		case 2:
			if odds(t, 3, "held") {
				drawHold(b, g, on)
			}
		}
	}
	switch rapid.IntRange(0, 19).Draw(t, "trouble") {
	case 0:
		g.Stopping = "unload"
	case 1:
		g.CoolUntil = now.Add(time.Second)
	case 2:
		g.Failed = "gave up"
	case 3:
		g.WaitingFor = []string{"x"}
	}
}

func drawWorker(t *rapid.T, b *box, g *sched.GroupView, on []int) {
	name := g.Instance
	b.loaded(name, on...)
	g.ResidentSince = now.Add(-seconds(t, 200, "resident"))
	g.IdleSince, g.LastUsed = g.ResidentSince, g.ResidentSince
	if odds(t, 6, "loading") {
		g.Loading, g.IdleSince = true, time.Time{}
	}
	for g.SlotsFree > 0 && odds(t, 2, "running") {
		b.running(name, rapid.SampledFrom([]time.Duration{0, -time.Second, time.Minute, 5 * time.Minute}).Draw(t, "ends"))
	}
	busy := slices.ContainsFunc(b.v.Running, func(r sched.RunView) bool { return r.Instance == name })
	if !g.Need.Known && busy && len(on) > 0 {
		g.Measuring = true
		for _, i := range on {
			b.v.Devices[i].Exclusive = name
		}
	}
	if odds(t, 3, "lingering") {
		drawLingering(b, g, on)
	}
	if odds(t, 4, "swollen") && len(on) > 0 { // uses more than it claims
		for i := range b.v.Claims {
			if c := &b.v.Claims[i]; c.Owner == name && c.Device == dev(on[0]) {
				total := resource.Bytes(0)
				for _, o := range b.v.Claims {
					if o.Instance == name && o.Device == c.Device {
						total += o.Bytes
					}
				}
				more := gibs(t, 4, "more")
				c.Measured = total + more
				b.take(c.Device, more)
			}
		}
	}
}

// drawLingering has a run of the worker end just now.
func drawLingering(b *box, g *sched.GroupView, on []int) {
	g.Lingering = g.Need.GPU && !g.Loading
	for _, i := range on {
		if n := g.Need.ExecuteVRAM; n > 0 && g.Lingering {
			b.claim(sched.Claim{Owner: g.Instance, Kind: sched.KindExecute, Instance: g.Instance, Device: dev(i), Bytes: n, Phase: sched.PhaseReserved})
		}
	}
}

func drawHold(b *box, g *sched.GroupView, on []int) {
	hold := func(kind string, id resource.DeviceID, n resource.Bytes) {
		if n > 0 {
			b.claim(sched.Claim{Owner: g.Instance, Kind: kind, Instance: g.Instance, Device: id, Bytes: n, Phase: sched.PhaseReserved})
		}
	}
	hold(sched.KindResident, resource.HostDevice, g.Need.ResidentRAM)
	hold(sched.KindExecute, resource.HostDevice, g.Need.ExecuteRAM)
	for _, i := range on {
		hold(sched.KindResident, dev(i), g.Need.ResidentVRAM)
		hold(sched.KindExecute, dev(i), g.Need.ExecuteVRAM)
	}
}

// total is a job's place in the order, by the arithmetic of the page: priority,
// a point a minute up to ten, and up to one point less for who used most.
func total(v *sched.View, r *jobs.Ready) float64 {
	most := 0.0
	for _, n := range v.Share {
		most = max(most, n)
	}
	n := float64(r.Priority) + min(v.Now.Sub(r.CreatedAt).Minutes(), 10)
	if most > 0 {
		n -= v.Share[r.Submitter] / most
	}
	return n
}
