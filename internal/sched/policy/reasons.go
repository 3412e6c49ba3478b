package policy

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
)

// never lists what a needs beyond what the machine has, with everything else
// gone from it.
func (w *pass) never(a *ask) []resource.Shortfall {
	var out []resource.Shortfall
	if n := w.whole(a, host); n > w.pools[host].total {
		out = append(out, resource.Shortfall{Resource: "memory", Device: resource.HostDevice, Needed: n, Available: max(w.pools[host].total, 0)})
	}
	if a.want == 0 {
		return out
	}
	large, most := 0, resource.Shortfall{Resource: "gpu_memory"}
	allowed := 0
	for p := host + 1; p < len(w.pools); p++ {
		if len(a.g.Pin) > 0 && !matches(a.g.Pin, w.pools[p].dev) {
			continue
		}
		allowed++
		if w.suits(a, p) {
			large++
		}
		if most.Device == "" || w.pools[p].total > most.Available {
			most.Device, most.Available, most.Needed = w.pools[p].id, max(w.pools[p].total, 0), w.whole(a, p)
		}
	}
	switch {
	case large >= a.want:
		return out
	case allowed > 0 && large == 0:
		return append(out, most)
	}
	return append(out, resource.Shortfall{Resource: "gpu", Needed: resource.Bytes(a.want), Available: resource.Bytes(large)})
}

// impossible says why a can never start on this machine.
func impossible(a *ask, short []resource.Shortfall) string {
	parts := make([]string, len(short))
	for i, f := range short {
		switch f.Resource {
		case "gpu":
			parts[i] = gpus(a, f)
		case "gpu_memory":
			parts[i] = mb(f.Needed) + " of GPU memory on one device, the largest it may use, " + string(f.Device) + ", has " + mb(f.Available) + " to give away"
		default:
			parts[i] = mb(f.Needed) + " of memory, this machine has " + mb(f.Available) + " to give away"
		}
	}
	return a.g.Instance + " needs " + strings.Join(parts, " and ") + "; it can never fit on this machine"
}

func gpus(a *ask, f resource.Shortfall) string {
	n := strconv.Itoa(int(f.Needed)) + " GPU"
	if f.Needed > 1 {
		n += "s"
	}
	switch {
	case len(a.g.Pin) > 0:
		return n + " out of " + list(a.g.Pin) + ", to which it is pinned, and of those this machine has " + strconv.Itoa(int(f.Available))
	case f.Available == 0:
		return n + ", and the system monitor reports no GPU"
	}
	return n + " that are large enough, this machine has " + strconv.Itoa(int(f.Available))
}

// reason says why a waits. The forecast tells when that may change.
func (w *pass) reason(a *ask, f *forecast) *jobs.Block {
	b := &jobs.Block{Code: "resource", Needs: w.needs(a)}
	if f.at.After(w.view.Now) {
		b.Earliest = f.at
	}
	o := &a.obstacle
	name := a.g.Instance
	switch o.kind {
	case beingMeasure:
		b.Holders = []string{o.by}
		b.Sentence = o.by + " is being measured and has " + string(w.pools[o.pool].id) + " to itself"
	case beingUsed:
		b.Holders = w.others(a, []int{o.pool})
		b.Sentence = name + " has not run here yet and needs a device to itself to be measured; " + list(b.Holders) + " has memory of " + string(w.pools[o.pool].id)
	case kept:
		b.Holders = []string{o.by}
		b.Sentence = string(w.pools[o.pool].id) + " is kept for " + o.by + ", which came first and would be delayed"
	default:
		b.Holders = w.others(a, w.shortOf(a))
		b.Sentence = w.shortage(a, b)
	}
	if thrash := w.thrash(a, b); thrash != "" {
		b.Sentence += thrash
	}
	return b
}

// shortOf are the pools that a lacks memory on.
func (w *pass) shortOf(a *ask) []int {
	if w.missing(a, host, nil) > 0 || a.obstacle.pool == host {
		return []int{host}
	}
	if a.here {
		return w.guests[a.group].on
	}
	return []int{a.obstacle.pool}
}

// needs lists, by the device that comes closest, what a needs and what is there.
func (w *pass) needs(a *ask) []resource.Shortfall {
	var out []resource.Shortfall
	if a.want > 0 && len(a.on) == 0 {
		if p := w.closest(a); p > host && w.missing(a, p, []int{p}) > 0 {
			out = append(out, resource.Shortfall{Resource: "gpu_memory", Device: w.pools[p].id,
				Needed: w.takes(a, p, []int{p}), Available: max(w.avail(a.group, p), 0)})
		}
	}
	for _, p := range a.on {
		if w.missing(a, p, a.on) > 0 {
			out = append(out, resource.Shortfall{Resource: "gpu_memory", Device: w.pools[p].id,
				Needed: w.takes(a, p, a.on), Available: max(w.avail(a.group, p), 0)})
		}
	}
	if w.missing(a, host, a.on) > 0 {
		out = append(out, resource.Shortfall{Resource: "memory", Device: resource.HostDevice,
			Needed: w.takes(a, host, a.on), Available: max(w.avail(a.group, host), 0)})
	}
	return out
}

// closest is the device that lacks least for a; host when it may use none.
func (w *pass) closest(a *ask) int {
	if a.obstacle.kind == lacksMemory && a.obstacle.pool != host {
		return a.obstacle.pool
	}
	best, least := host, resource.Bytes(0)
	for p := host + 1; p < len(w.pools); p++ {
		if !w.suits(a, p) {
			continue
		}
		if n := w.missing(a, p, []int{p}); best == host || n < least {
			best, least = p, n
		}
	}
	return best
}

// shortage says what is missing, and that nobody can be stopped for it.
func (w *pass) shortage(a *ask, b *jobs.Block) string {
	var s strings.Builder
	s.WriteString(a.g.Instance)
	s.WriteString(" needs ")
	if len(b.Needs) == 0 { // what it takes is not known
		s.WriteString("a device to be measured on, and nothing is free on " + string(w.pools[a.obstacle.pool].id))
	}
	for i, f := range b.Needs {
		if i > 0 {
			s.WriteString(" and ")
		}
		if f.Resource == "memory" {
			s.WriteString(mb(f.Needed) + " of memory, " + mb(f.Available) + " may be used")
			continue
		}
		s.WriteString(mb(f.Needed) + " of GPU memory on one device, " + mb(f.Available) + " are free on " + string(f.Device))
	}
	if a.want > 1 && len(b.Needs) > 0 {
		s.WriteString("; " + strconv.Itoa(a.want) + " devices must have room at once")
	}
	if slices.ContainsFunc(w.shortOf(a), func(p int) bool { return w.back(a.group, p) > 0 }) {
		s.WriteString("; what has been stopped has not given all of its memory back yet")
		return s.String()
	}
	s.WriteString("; no idle workers that may be stopped now would make enough room")
	return s.String()
}

// others lists who has memory on the given pools: instances and leases.
func (w *pass) others(a *ask, on []int) []string {
	var out []string
	for i := range w.view.Claims {
		c := &w.view.Claims[i]
		who := orElse(instanceOf(c), c.Owner)
		if max(c.Bytes, c.Measured) <= 0 || who == a.g.Instance || slices.Contains(out, who) {
			continue
		}
		p := w.poolOf(c.Device)
		if slices.ContainsFunc(on, func(q int) bool { return p == q || (p >= 0 && w.pools[p].shared && w.pools[q].shared) }) {
			out = append(out, who)
		}
	}
	for i := range w.guests { // what this very plan starts
		who := w.view.Groups[i].Instance
		if w.guests[i].started && i != a.group && !slices.Contains(out, who) &&
			slices.ContainsFunc(on, func(q int) bool { return w.account(i, q).size() > 0 }) {
			out = append(out, who)
		}
	}
	return out
}

// thrash adds to a block that a set of victims would be enough, but their
// devices changed hands too often lately.
func (w *pass) thrash(a *ask, b *jobs.Block) string {
	if !w.overSwapped() {
		return ""
	}
	e, ok := w.cheapest(a, true)
	if !ok {
		return ""
	}
	for _, i := range e.set {
		p := w.spent(i)
		if p < 0 {
			continue
		}
		id, victim := w.pools[p].id, w.view.Groups[i].Instance
		w.plan.Thrash = append(w.plan.Thrash, sched.Thrash{Device: id, A: a.g.Instance, B: victim})
		again := w.view.SwapsAgain[id]
		if again.IsZero() {
			return "; " + string(id) + " changed hands too often lately"
		}
		if again.After(w.view.Now) {
			w.wake(again)
		}
		if b.Earliest.IsZero() || b.Earliest.Before(again) {
			b.Earliest = again
		}
		return "; " + string(id) + " changed hands too often lately, " + victim + " may be stopped again from " + again.UTC().Format(time.TimeOnly) + "Z on"
	}
	return ""
}

func (w *pass) overSwapped() bool {
	return slices.ContainsFunc(w.pools, func(p pool) bool { return p.swaps == 0 })
}
