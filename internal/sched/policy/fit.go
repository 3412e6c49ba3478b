package policy

import (
	"strconv"
	"strings"

	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
)

// book is what is left to give away during one walk.
type book struct {
	ram    resource.Bytes
	dev    map[resource.DeviceID]resource.Bytes
	slots  int // -1: no bound
	order  []resource.Device
	total  resource.Bytes
	claims []sched.Claim
	placed map[string]bool // instances whose resident claims this plan takes
	gone   map[string]bool // instances this plan evicts
}

func newBook(v sched.View) book {
	b := book{ram: v.FreeRAM, slots: v.Slots, order: v.Snapshot.Devices, total: v.TotalRAM,
		claims: v.Claims, placed: make(map[string]bool), gone: make(map[string]bool)}
	if len(v.DevFree) > 0 {
		b.dev = make(map[resource.DeviceID]resource.Bytes, len(v.DevFree))
		for id, n := range v.DevFree {
			b.dev[id] = n
		}
	}
	return b
}

// own is what is already held for the asker on a device, and therefore missing
// from the free figure although it is the asker's to use.
func (b *book) own(instance string, dev resource.DeviceID) resource.Bytes {
	var n resource.Bytes
	for i := range b.claims {
		c := &b.claims[i]
		if c.Owner == instance && c.Phase == sched.PhaseReserved && c.Device == dev {
			n += c.Bytes
		}
	}
	return n
}

// place chooses devices for g's worker. It returns the claims to take, or what
// is missing; with something missing the claims are those that could be had
// (the permissive policy takes them as they are).
func (b *book) place(g *sched.GroupView) ([]sched.Claim, []resource.Shortfall) {
	var claims []sched.Claim
	var short []resource.Shortfall
	d := g.Demand
	if d.MinRAM > 0 {
		free := b.ram + b.own(g.Instance, resource.HostDevice)
		if free < d.MinRAM {
			short = append(short, resource.Shortfall{Resource: "memory", Device: resource.HostDevice, Needed: d.MinRAM, Available: max(free, 0)})
		}
		claims = append(claims, resident(g.Instance, resource.HostDevice, d.MinRAM))
	}
	if !d.RequiresGPU {
		return claims, short
	}
	want := max(d.Devices, 1)
	picked := b.pick(g, want)
	for _, id := range picked {
		claims = append(claims, resident(g.Instance, id, d.MinVRAM))
	}
	if len(picked) < want {
		short = append(short, b.gpuShort(g, want))
	}
	return claims, short
}

func resident(instance string, dev resource.DeviceID, n resource.Bytes) sched.Claim {
	return sched.Claim{Owner: instance, Kind: sched.KindResident, Device: dev, Bytes: n, Phase: sched.PhaseReserved}
}

// pick returns up to want devices on which g fits: those where the least is
// left over, so that the emptiest stay whole; without a figure, the emptiest.
func (b *book) pick(g *sched.GroupView, want int) []resource.DeviceID {
	var out []resource.DeviceID
	used := make(map[resource.DeviceID]bool, want)
	for len(out) < want {
		best, bestFree := resource.DeviceID(""), resource.Bytes(0)
		for _, d := range b.order {
			free := b.dev[d.ID] + b.own(g.Instance, d.ID)
			if used[d.ID] || free < g.Demand.MinVRAM {
				continue
			}
			tighter := free < bestFree
			if g.Demand.MinVRAM == 0 {
				tighter = free > bestFree
			}
			if best == "" || tighter {
				best, bestFree = d.ID, free
			}
		}
		if best == "" {
			break
		}
		used[best] = true
		out = append(out, best)
	}
	return out
}

// gpuShort says what is missing among the devices, by the one that comes closest.
func (b *book) gpuShort(g *sched.GroupView, want int) resource.Shortfall {
	if len(b.order) < want {
		return resource.Shortfall{Resource: "gpu", Needed: resource.Bytes(want), Available: resource.Bytes(len(b.order))}
	}
	s := resource.Shortfall{Resource: "gpu_memory", Needed: g.Demand.MinVRAM}
	for _, d := range b.order {
		free := max(b.dev[d.ID]+b.own(g.Instance, d.ID), 0)
		if s.Device == "" || free > s.Available {
			s.Device, s.Available = d.ID, free
		}
	}
	return s
}

// take books the claims of g's worker.
func (b *book) take(g *sched.GroupView, claims []sched.Claim) {
	b.placed[g.Instance] = true
	for _, c := range claims {
		need := c.Bytes - b.own(g.Instance, c.Device)
		if c.Device == resource.HostDevice {
			b.ram -= need
		} else if b.dev != nil {
			b.dev[c.Device] -= need
		}
	}
}

// never lists what g needs beyond what the machine has in total, as far as
// that is known. A missing device is known only where nothing is waited for:
// one that fell off the bus may come back.
func (w *walk) never(g *sched.GroupView) []resource.Shortfall {
	var short []resource.Shortfall
	d := g.Demand
	if d.MinRAM > w.book.total {
		short = append(short, resource.Shortfall{Resource: "memory", Device: resource.HostDevice, Needed: d.MinRAM, Available: max(w.book.total, 0)})
	}
	if !d.RequiresGPU {
		return short
	}
	want, devs := max(d.Devices, 1), w.view.Snapshot.Devices
	if len(devs) == 0 {
		if w.rule.wait == 0 {
			short = append(short, resource.Shortfall{Resource: "gpu", Needed: resource.Bytes(want)})
		}
		return short
	}
	large := 0
	best := resource.Shortfall{Resource: "gpu_memory", Needed: d.MinVRAM}
	for _, dev := range devs {
		if dev.Total >= d.MinVRAM {
			large++
		}
		if best.Device == "" || dev.Total > best.Available {
			best.Device, best.Available = dev.ID, dev.Total
		}
	}
	if large >= want {
		return short
	}
	if large > 0 || len(devs) < want {
		return append(short, resource.Shortfall{Resource: "gpu", Needed: resource.Bytes(want), Available: resource.Bytes(large)})
	}
	return append(short, best)
}

// sentence puts shortfalls into words.
func sentence(g *sched.GroupView, short []resource.Shortfall) string {
	var s strings.Builder
	s.WriteString(g.Instance)
	s.WriteString(" needs ")
	for i, f := range short {
		if i > 0 {
			s.WriteString(" and ")
		}
		switch f.Resource {
		case "gpu":
			if f.Available == 0 {
				s.WriteString(strconv.Itoa(int(f.Needed)) + " GPU, and the system monitor reports none")
			} else {
				s.WriteString(strconv.Itoa(int(f.Needed)) + " GPUs that are large enough, there are " + strconv.Itoa(int(f.Available)))
			}
		case "gpu_memory":
			s.WriteString(mb(f.Needed) + " of GPU memory, " + mb(f.Available) + " are free on " + string(f.Device))
		default:
			s.WriteString(mb(f.Needed) + " of memory, " + mb(f.Available) + " may be used")
		}
	}
	return s.String()
}

func mb(b resource.Bytes) string {
	return strconv.FormatInt(int64(b/resource.MiB), 10) + " MiB"
}

func list(names []string) string { return strings.Join(names, ", ") }

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
