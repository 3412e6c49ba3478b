package policy

import (
	"slices"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
)

// evictFor looks for idle workers whose memory would let g in, and if there
// are enough plans their stop, holds the room for g and blocks it meanwhile.
// No sufficient set: nothing is planned.
func (w *walk) evictFor(g *sched.GroupView) bool {
	victims, claims := w.victims(g)
	if len(victims) == 0 {
		return false
	}
	for _, name := range victims {
		w.plan.Evict = append(w.plan.Evict, sched.Eviction{Instance: name, Asker: g.Instance})
		w.book.gone[name] = true
	}
	// Until the victims are gone their memory is not there: the room is taken
	// from what is free now, so that nobody else is let in on the strength of it.
	w.book.take(g, claims)
	w.plan.Hold = append(w.plan.Hold, claims...)
	w.block(g, &jobs.Block{Code: "resource", Holders: victims,
		Sentence: "waiting for the memory of " + list(victims) + ", which makes room for " + g.Instance})
	return true
}

// victims returns a sufficient set of workers to stop, fewest first, and the
// claims g would then take; nil when there is none.
func (w *walk) victims(g *sched.GroupView) ([]string, []sched.Claim) {
	candidates := w.candidates(g)
	if len(candidates) == 0 {
		return nil, nil
	}
	trial := w.book.copy()
	var chosen []string
	for {
		claims, short := trial.place(g)
		if len(short) == 0 {
			chosen = w.prune(g, chosen)
			return chosen, w.claimsAfter(g, chosen, claims)
		}
		i := w.bestVictim(candidates, g, &trial, short[0])
		if i < 0 {
			return nil, nil
		}
		name := candidates[i].Instance
		trial.free(name)
		chosen = append(chosen, name)
		candidates = append(candidates[:i], candidates[i+1:]...)
	}
}

// candidates are the workers that may be stopped for g: loaded, idle, not
// pinned, wanted by nobody, and not the monitor's own.
func (w *walk) candidates(g *sched.GroupView) []*sched.GroupView {
	var out []*sched.GroupView
	for i := range w.view.Groups {
		c := &w.view.Groups[i]
		wanted := (len(c.Ready) > 0 && c.Enabled) || c.LoadWanted
		if c.Instance == g.Instance || c.Instance == w.view.Monitor || c.Pinned || !c.Resident || c.Loading ||
			c.IdleSince.IsZero() || c.Stopping != "" || wanted || w.book.gone[c.Instance] {
			continue
		}
		out = append(out, c)
	}
	return out
}

// bestVictim chooses among the candidates that hold what is short: the
// smallest that suffices alone, else the largest; equal ones by longest idle.
func (w *walk) bestVictim(cs []*sched.GroupView, g *sched.GroupView, b *book, short resource.Shortfall) int {
	best, bestBytes, bestEnough := -1, resource.Bytes(0), false
	for i, c := range cs {
		n, enough := b.gain(g, c.Instance, short)
		if n <= 0 {
			continue
		}
		better := best < 0
		switch {
		case best < 0:
		case enough != bestEnough:
			better = enough
		case n == bestBytes:
			better = c.IdleSince.Before(cs[best].IdleSince)
		case enough:
			better = n < bestBytes
		default:
			better = n > bestBytes
		}
		if better {
			best, bestBytes, bestEnough = i, n, enough
		}
	}
	return best
}

// gain says how much of the missing resource the end of instance's worker
// would bring back in one place, and whether that alone is enough there.
func (b *book) gain(g *sched.GroupView, instance string, short resource.Shortfall) (n resource.Bytes, enough bool) {
	for i := range b.claims {
		c := &b.claims[i]
		if c.Owner != instance || c.Kind != sched.KindResident {
			continue
		}
		bytes := max(c.Bytes, c.Measured)
		switch {
		case short.Resource == "memory" && c.Device == resource.HostDevice:
			return bytes, bytes >= short.Needed-(b.ram+b.own(g.Instance, resource.HostDevice))
		case short.Resource == "gpu_memory" && c.Device != resource.HostDevice:
			at := b.at(c.Device)
			if at < 0 {
				continue
			}
			full := b.dev[at]+b.own(g.Instance, c.Device)+bytes >= short.Needed
			if bytes > n || (full && !enough) {
				n, enough = bytes, full
			}
		}
	}
	return n, enough
}

// prune drops victims that turned out not to be needed, the first chosen first.
func (w *walk) prune(g *sched.GroupView, chosen []string) []string {
	for i := 0; i < len(chosen); {
		b := w.book.copy()
		for j, name := range chosen {
			if j != i {
				b.free(name)
			}
		}
		if _, short := b.place(g); len(short) == 0 {
			chosen = append(chosen[:i], chosen[i+1:]...)
			continue
		}
		i++
	}
	return chosen
}

// claimsAfter places g once more with exactly the chosen victims gone.
func (w *walk) claimsAfter(g *sched.GroupView, chosen []string, claims []sched.Claim) []sched.Claim {
	b := w.book.copy()
	for _, name := range chosen {
		b.free(name)
	}
	if again, short := b.place(g); len(short) == 0 {
		return again
	}
	return claims
}

// free gives back what instance's worker holds.
func (b *book) free(instance string) {
	for i := range b.claims {
		c := &b.claims[i]
		if c.Owner != instance || c.Kind != sched.KindResident {
			continue
		}
		bytes := max(c.Bytes, c.Measured)
		if c.Device == resource.HostDevice {
			b.ram += bytes
		} else if at := b.at(c.Device); at >= 0 {
			b.dev[at] += bytes
		}
	}
}

func (b *book) copy() book {
	c := *b
	c.dev = slices.Clone(b.dev)
	return c
}
