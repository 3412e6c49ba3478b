package policy_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/sched/policy"
)

// box is a machine in the making: the figures of its devices follow from what
// is put on them, as the ledger's would.
type box struct{ v sched.View }

// newBox has 64 GiB of host memory and one device per size, in GiB.
func newBox(sizes ...int) *box {
	b := &box{v: sched.View{Now: now, Fresh: true, Monitor: "nvidia", FreeRAM: 64 * gib, TotalRAM: 64 * gib, Slots: -1}}
	for i, n := range sizes {
		total := resource.Bytes(n) * gib
		b.v.Devices = append(b.v.Devices, sched.DeviceView{ID: dev(i), Index: i, Total: total, Free: total})
	}
	return b
}

func dev(i int) resource.DeviceID { return resource.DeviceID(fmt.Sprint("GPU-", i)) }

// put adds a group with a need of resident and execute GiB on its device.
func (b *box) put(name string, n int, change ...func(*sched.GroupView)) *box {
	b.v.Groups = append(b.v.Groups, group(name, n, change...))
	b.v.Groups[len(b.v.Groups)-1].Queued = n
	return b
}

func need(resident, execute int) func(*sched.GroupView) {
	return func(g *sched.GroupView) {
		g.Need = sched.Need{GPU: true, Devices: 1, ResidentVRAM: resource.Bytes(resident) * gib, ExecuteVRAM: resource.Bytes(execute) * gib,
			Known: true, Source: sched.SourceManifest}
	}
}

func hostNeed(resident, execute int) func(*sched.GroupView) {
	return func(g *sched.GroupView) {
		g.Need.ResidentRAM, g.Need.ExecuteRAM = resource.Bytes(resident)*gib, resource.Bytes(execute)*gib
	}
}

func unknown(g *sched.GroupView) {
	g.Need = sched.Need{GPU: true, Devices: 1, Source: sched.SourceNone}
}

func devices(n int) func(*sched.GroupView) {
	return func(g *sched.GroupView) { g.Need.Devices = n }
}

func times(load, run, p90 time.Duration) func(*sched.GroupView) {
	return func(g *sched.GroupView) { g.LoadTime, g.RunTime, g.RunTimeP90 = load, run, p90 }
}

func priority(n int) func(*sched.GroupView) {
	return func(g *sched.GroupView) {
		for i := range g.Ready {
			g.Ready[i].Priority = n
		}
	}
}

func waiting(d time.Duration) func(*sched.GroupView) {
	return func(g *sched.GroupView) { g.WaitSince = now.Add(-d) }
}

func change(f func(*sched.GroupView)) func(*sched.GroupView) { return f }

// group finds what was put last under a name.
func (b *box) group(name string) *sched.GroupView {
	for i := range b.v.Groups {
		if b.v.Groups[i].Instance == name {
			return &b.v.Groups[i]
		}
	}
	panic("no group " + name)
}

// loaded makes a worker resident on devices since long ago, idle for as long.
func (b *box) loaded(name string, on ...int) *box {
	g := b.group(name)
	g.Resident, g.ResidentSince, g.IdleSince, g.LastUsed = true, now.Add(-time.Hour), now.Add(-time.Hour), now.Add(-time.Hour)
	for _, i := range on {
		g.Devices = append(g.Devices, dev(i))
		b.claim(sched.Claim{Owner: name, Kind: sched.KindResident, Instance: name, Device: dev(i), Bytes: g.Need.ResidentVRAM, Measured: g.Need.ResidentVRAM, Phase: sched.PhaseResident})
	}
	if g.Need.ResidentRAM > 0 {
		b.claim(sched.Claim{Owner: name, Kind: sched.KindResident, Instance: name, Device: resource.HostDevice, Bytes: g.Need.ResidentRAM, Measured: g.Need.ResidentRAM, Phase: sched.PhaseResident})
	}
	return b
}

// running adds a job at work on a loaded worker; ends 0: nobody knows when.
func (b *box) running(name string, ends time.Duration) *box {
	g := b.group(name)
	g.IdleSince = time.Time{}
	g.SlotsFree--
	r := sched.RunView{Job: jobs.ID(fmt.Sprint(name, "-run", len(b.v.Running))), Instance: name, Since: now.Add(-time.Minute),
		Devices: g.Devices, VRAM: g.Need.ExecuteVRAM, RAM: g.Need.ExecuteRAM}
	if ends != 0 {
		r.Ends = now.Add(ends)
	}
	b.v.Running = append(b.v.Running, r)
	for _, d := range g.Devices {
		b.claim(sched.Claim{Owner: string(r.Job), Kind: sched.KindExecute, Instance: name, Device: d, Bytes: r.VRAM, Phase: sched.PhaseExecuting})
	}
	if r.RAM > 0 {
		b.claim(sched.Claim{Owner: string(r.Job), Kind: sched.KindExecute, Instance: name, Device: resource.HostDevice, Bytes: r.RAM, Phase: sched.PhaseExecuting})
	}
	return b
}

// claim sets memory aside and takes it off what is free.
func (b *box) claim(c sched.Claim) *box {
	b.v.Claims = append(b.v.Claims, c)
	b.take(c.Device, c.Bytes)
	return b
}

func (b *box) take(id resource.DeviceID, n resource.Bytes) {
	if id == resource.HostDevice {
		b.v.FreeRAM -= n
	}
	for i := range b.v.Devices {
		if b.v.Devices[i].ID == id {
			b.v.Devices[i].Free -= n
		}
	}
}

// foreign lets a program that is none of ours use GiB of a device.
func (b *box) foreign(i, gibs int) *box {
	b.v.Devices[i].External += resource.Bytes(gibs) * gib
	b.take(dev(i), resource.Bytes(gibs)*gib)
	return b
}

// tell puts a plan of reserve into one line.
func tell(v sched.View, p sched.Plan) string {
	var out []string
	for _, s := range p.Start {
		w := "start " + string(s.Job)
		if s.Job == "" {
			w = "load " + s.Instance
		}
		for _, d := range s.Devices {
			w += "@" + strings.TrimPrefix(string(d), "GPU-")
		}
		if s.Measure {
			w += " measuring"
		}
		out = append(out, w)
	}
	for _, f := range p.Fail {
		out = append(out, "fail "+string(f.Job)+" "+string(f.Error.Category))
	}
	for _, r := range p.Release {
		out = append(out, "release "+r.Instance+" for "+r.Asker)
	}
	for _, e := range p.Evict {
		out = append(out, "evict "+e.Instance+" for "+e.Asker)
	}
	for _, g := range v.Groups {
		if b := p.Block[g.Instance]; b != nil {
			out = append(out, "block "+g.Instance+" "+b.Code)
		}
	}
	for _, t := range p.Thrash {
		out = append(out, "thrash "+t.A+" "+t.B)
	}
	return strings.Join(out, ", ")
}

func decide(b *box) (string, sched.Plan) {
	p := policy.Reserve(policy.ReserveOptions{}).Decide(b.v)
	return tell(b.v, p), p
}

type decision struct {
	name string
	box  *box
	want string
}

func check(t *testing.T, list []decision) {
	t.Helper()
	for _, d := range list {
		t.Run(d.name, func(t *testing.T) {
			if got, p := decide(d.box); got != d.want {
				t.Errorf("plan %q, want %q", got, d.want)
				for name, b := range p.Block {
					t.Logf("%s: %s", name, b.Sentence)
				}
				for _, f := range p.Fail {
					t.Logf("%s: %s", f.Instance, f.Error.Message)
				}
			}
		})
	}
}
