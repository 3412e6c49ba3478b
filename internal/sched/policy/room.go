package policy

import (
	"slices"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
)

// makeRoom looks for idle workers whose memory would let a in. If they are
// enough it plans their stop, or first a release where they offer that, keeps
// the room for a, and blocks a meanwhile. If not, it plans nothing.
func (w *pass) makeRoom(a *ask) bool {
	if a.here && w.move(a) {
		return true
	}
	if a.here && a.want > 0 && slices.ContainsFunc(w.guests[a.group].on, func(p int) bool { return w.swollen(a, p) }) {
		return false // it would be in vain, or a reading will show that it is not needed
	}
	a.late = true
	best, ok := w.cheapest(a, false)
	if !ok || len(best.set) == 0 {
		a.late = false
		return false
	}
	a.on = best.on
	needs := w.needs(a)
	w.constrain(a)
	w.hold(a)
	if a.measure {
		w.holdWhole(a, best.set)
	}
	w.plan.Hold = append(w.plan.Hold, w.heldClaims(a)...)
	if asked := w.release(a, best.set); len(asked) > 0 {
		w.block(a.g, &jobs.Block{Code: "resource", Holders: asked, Needs: needs,
			Sentence: list(asked) + " is asked to release memory for " + a.g.Instance})
		return true
	}
	for _, i := range best.set {
		w.plan.Evict = append(w.plan.Evict, sched.Eviction{Instance: w.view.Groups[i].Instance, Asker: a.g.Instance})
		w.guests[i].gone = a.g.Instance
		w.leaves(i)
	}
	w.spendSwaps(best.set)
	names := w.names(best.set)
	w.block(a.g, &jobs.Block{Code: "resource", Holders: names, Needs: needs,
		Sentence: "waiting for the memory of " + list(names) + ", which makes room for " + a.g.Instance})
	return true
}

// move stops a's own idle worker where its next job can never start on it: its
// device is too small, or it holds so much more than it was loaded with that all
// others together could not make room. Loaded anew it fits.
func (w *pass) move(a *ask) bool {
	gu := &w.guests[a.group]
	if a.want == 0 || len(gu.on) == 0 || gu.busy > 0 || gu.started || a.g.Loading || a.g.LoadWanted || a.g.IdleSince.IsZero() || w.furniture(a.group) {
		return false
	}
	for _, p := range gu.on {
		why := ""
		switch {
		case w.whole(a, p) > w.pools[p].total:
			why = ", to be loaded again where there is enough memory: " + string(w.pools[p].id) + " is too small"
		case w.swollen(a, p) && !a.g.Lingering && w.spent(a.group) < 0 && !a.g.ResidentSince.Add(w.o.residency(a.g)).After(w.view.Now):
			why = " and loaded again: with what it holds by now its next job does not fit onto " + string(w.pools[p].id)
		default:
			continue
		}
		gu.gone = a.g.Instance
		w.plan.Evict = append(w.plan.Evict, sched.Eviction{Instance: a.g.Instance, Asker: a.g.Instance})
		w.block(a.g, &jobs.Block{Code: "resource", Holders: []string{a.g.Instance}, Needs: w.needs(a),
			Sentence: "the worker of " + a.g.Instance + " is stopped" + why})
		return true
	}
	return false
}

// swollen reports whether a does not fit onto device p beside what its own
// worker holds there, even if all others were gone, but would on a fresh one.
func (w *pass) swollen(a *ask, p int) bool {
	left := w.forOurs(a, p)
	return w.whole(a, p) <= left && w.takes(a, p, w.guests[a.group].on)+w.holding(a.group, p) > left
}

// forOurs is what device p has for a when all our other workers are gone that
// ever go.
func (w *pass) forOurs(a *ask, p int) resource.Bytes {
	d := w.pools[p].dev
	left := w.pools[p].total - d.External - d.Leased - d.Quarantined
	for i := range w.guests {
		if i != a.group && w.furniture(i) {
			left -= w.yield(i, p)
		}
	}
	return left
}

// release plans to ask those of the set that offer it to give memory back.
func (w *pass) release(a *ask, set []int) []string {
	var asked []string
	for _, i := range set {
		if g := &w.view.Groups[i]; g.CanRelease {
			w.plan.Release = append(w.plan.Release, sched.ReleaseAsk{Instance: g.Instance, Asker: a.g.Instance})
			w.guests[i].gone = a.g.Instance // nothing starts on it, nobody else asks it
			asked = append(asked, g.Instance)
		}
	}
	return asked
}

// spendSwaps counts one change of hands of each pool that the set is on.
func (w *pass) spendSwaps(set []int) {
	for p := range w.pools {
		if w.pools[p].swaps > 0 && slices.ContainsFunc(set, func(i int) bool { return w.holds(i, p) }) {
			w.pools[p].swaps--
		}
	}
}

// heldClaims keep the room for a.
func (w *pass) heldClaims(a *ask) []sched.Claim {
	var out []sched.Claim
	add := func(p int, res, exec resource.Bytes) {
		left := w.account(a.group, p).held
		for _, c := range [...]struct {
			kind string
			n    resource.Bytes
		}{{sched.KindResident, res}, {sched.KindExecute, exec}} {
			if n := min(c.n, left); n > 0 {
				out = append(out, sched.Claim{Owner: a.g.Instance, Kind: c.kind, Instance: a.g.Instance, Device: w.pools[p].id, Bytes: n, Phase: sched.PhaseReserved})
				left -= n
			}
		}
	}
	add(host, a.resRAM, a.execRAM)
	for _, p := range a.on {
		if a.measure {
			add(p, 0, w.account(a.group, p).held)
			continue
		}
		add(p, a.resVRAM, a.execVRAM)
	}
	return out
}

// holdWhole keeps all of a's devices, with what the set brings back: nobody knows
// what it will take.
func (w *pass) holdWhole(a *ask, set []int) {
	for _, p := range a.on {
		n := w.pools[p].free
		for _, i := range set {
			n += w.yield(i, p)
		}
		if n > 0 {
			w.account(a.group, p).held += n
			w.give(p, -n)
		}
		w.pools[p].measures = a.g.Instance
	}
}

func (w *pass) names(set []int) []string {
	out := make([]string, len(set))
	for k, i := range set {
		out[k] = w.view.Groups[i].Instance
	}
	return out
}
