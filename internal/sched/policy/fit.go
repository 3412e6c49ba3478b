package policy

import (
	"slices"
	"strconv"
	"strings"

	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
)

// book is what is left to give away during one walk.
type book struct {
	ram    resource.Bytes
	dev    []resource.Bytes // free, in the order of devices
	order  []resource.Device
	slots  int // -1: no bound
	total  resource.Bytes
	claims []sched.Claim
	held   bool            // some claim is held for an asker
	placed map[string]bool // instances whose resident claims this plan takes
	gone   map[string]bool // instances this plan evicts
}

func newBook(v sched.View) book {
	b := book{ram: v.FreeRAM, slots: v.Slots, order: v.Snapshot.Devices, total: v.TotalRAM,
		claims: v.Claims, placed: make(map[string]bool), gone: make(map[string]bool)}
	if len(b.order) > 0 {
		b.dev = make([]resource.Bytes, len(b.order))
		for i := range b.order {
			b.dev[i] = v.DevFree[b.order[i].ID]
		}
	}
	for i := range v.Claims {
		b.held = b.held || v.Claims[i].Phase == sched.PhaseReserved
	}
	return b
}

// at is a device's place in the order, -1 for one the monitor does not see.
func (b *book) at(id resource.DeviceID) int {
	for i := range b.order {
		if b.order[i].ID == id {
			return i
		}
	}
	return -1
}

// own is what is already held for the asker on a device, and therefore missing
// from the free figure although it is the asker's to use.
func (b *book) own(instance string, dev resource.DeviceID) resource.Bytes {
	if !b.held {
		return 0
	}
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
	for _, i := range picked {
		claims = append(claims, resident(g.Instance, b.order[i].ID, d.MinVRAM))
	}
	if len(picked) < want {
		short = append(short, b.gpuShort(g, want))
	}
	return claims, short
}

func resident(instance string, dev resource.DeviceID, n resource.Bytes) sched.Claim {
	return sched.Claim{Owner: instance, Kind: sched.KindResident, Device: dev, Bytes: n, Phase: sched.PhaseReserved}
}

// pick returns the places of up to want devices on which g fits: those where the
// least is left over, so that the emptiest stay whole; without a figure, the
// emptiest.
func (b *book) pick(g *sched.GroupView, want int) []int {
	var out []int
	for len(out) < want {
		best, bestFree := -1, resource.Bytes(0)
		for i := range b.order {
			free := b.dev[i] + b.own(g.Instance, b.order[i].ID)
			if free < g.Demand.MinVRAM || slices.Contains(out, i) {
				continue
			}
			tighter := free < bestFree
			if g.Demand.MinVRAM == 0 {
				tighter = free > bestFree
			}
			if best < 0 || tighter {
				best, bestFree = i, free
			}
		}
		if best < 0 {
			break
		}
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
	for i := range b.order {
		id := b.order[i].ID
		free := max(b.dev[i]+b.own(g.Instance, id), 0)
		if s.Device == "" || free > s.Available {
			s.Device, s.Available = id, free
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
		} else if i := b.at(c.Device); i >= 0 {
			b.dev[i] -= need
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
	for i := range devs {
		dev := &devs[i]
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
