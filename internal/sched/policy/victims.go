package policy

import (
	"cmp"
	"slices"

	"github.com/cjmd/cjmd/internal/resource"
)

// searchEffort bounds how many combinations of victims one pass looks at; past
// it the sets found are sufficient and lean, but perhaps not the cheapest.
const searchEffort = 20_000

// eviction is a sufficient set of workers to stop, and where the room is then.
type eviction struct {
	on   []int
	set  []int // groups
	cost float64
}

// cheapest finds the set of victims that costs least, over all devices that a
// could take. anyway leaves the swap budget out of account.
func (w *pass) cheapest(a *ask, anyway bool) (eviction, bool) {
	s := search{w: w, a: a, anyway: anyway}
	if a.here || a.want == 0 {
		return s.on(w.guests[a.group].on)
	}
	w.candidates(a)
	options := make([]eviction, 0, len(w.order))
	for i := range w.order {
		if e, ok := s.on([]int{w.order[i].pool}); ok {
			options = append(options, e)
		}
	}
	if len(options) < a.want {
		return eviction{}, false
	}
	slices.SortStableFunc(options, func(x, y eviction) int { return cmp.Compare(x.cost, y.cost) })
	if a.want == 1 {
		return options[0], true
	}
	var on []int
	for _, e := range options[:a.want] {
		on = append(on, e.on...)
	}
	slices.Sort(on)
	return s.on(on)
}

// search is one look for the cheapest sufficient set of victims.
type search struct {
	w      *pass
	a      *ask
	anyway bool

	pools  []int
	gaps   []resource.Bytes // still missing, beside pools
	found  []victim
	after  [][]resource.Bytes // what the victims from i on could free together
	chosen []int
	best   []int
	cost   float64
}

type victim struct {
	group int
	cost  float64
	frees []resource.Bytes // beside search.pools
}

// on looks for victims so that a fits onto the given devices. An empty set is
// an answer, too: it fits as it is.
func (s *search) on(on []int) (eviction, bool) {
	w, a := s.w, s.a
	s.pools = append(append(s.pools[:0], host), on...)
	s.gaps = s.gaps[:0]
	for _, p := range s.pools {
		if m := w.pools[p].measures; m != "" && (m != a.g.Instance || w.guests[a.group].busy > 0) {
			return eviction{}, false
		}
		if w.keptFrom(a, p) != "" {
			return eviction{}, false
		}
		s.gaps = append(s.gaps, w.missing(a, p, on)-w.pools[p].coming)
	}
	out := eviction{on: slices.Clone(on)}
	if !a.measure && s.comesBack(on) {
		return out, true
	}
	if a.measure {
		for _, p := range on {
			if !s.clear(p, &out) || !s.leaves(p, out.set) {
				return eviction{}, false
			}
		}
	}
	if !s.enough() {
		if !s.gather(out.set) {
			return eviction{}, false
		}
		s.cheapest()
		for _, k := range s.best {
			out.set = append(out.set, s.found[k].group)
		}
		out.cost += s.cost
	}
	return out, true
}

// clear adds whoever is on device p to the set: a wants it alone.
func (s *search) clear(p int, out *eviction) bool {
	w := s.w
	for i := range w.guests {
		if i != s.a.group && !w.guests[i].here && w.account(i, p).held > 0 { // kept for it
			return false
		}
		if i == s.a.group || !w.guests[i].here || !slices.Contains(w.guests[i].on, p) || slices.Contains(out.set, i) {
			continue
		}
		if w.furniture(i) && w.guests[i].busy == 0 && !w.guests[i].started && !w.view.Groups[i].Loading {
			continue
		}
		cost, ok := s.stoppable(i)
		if !ok {
			return false
		}
		out.set = append(out.set, i)
		out.cost += cost
		for k, q := range s.pools {
			s.gaps[k] -= w.yield(i, q)
		}
	}
	return true
}

// leaves reports whether anything is free on device p when the set is gone.
func (s *search) leaves(p int, set []int) bool {
	n := s.w.avail(s.a.group, p) + s.w.pools[p].coming
	for _, i := range set {
		n += s.w.yield(i, p)
	}
	return n > 0
}

// stoppable reports whether group i's worker may be stopped for a right now,
// and what that costs.
func (s *search) stoppable(i int) (float64, bool) {
	w := s.w
	gu, g := &w.guests[i], &w.view.Groups[i]
	if g.IdleSince.IsZero() || gu.busy > 0 || gu.started || g.Loading {
		return 0, false
	}
	from, ok := w.mayGo(s.a, i)
	if !ok {
		return 0, false
	}
	if from.After(w.view.Now) {
		w.wake(from)
		return 0, false
	}
	if !s.anyway && w.spent(i) >= 0 {
		return 0, false
	}
	return w.cost(i), true
}

// comesBack reports whether what is on its way back is enough, with what ended
// runs left; a reading will tell.
func (s *search) comesBack(on []int) bool {
	for _, p := range s.pools {
		if s.w.missing(s.a, p, on) > s.w.back(s.a.group, p) {
			return false
		}
	}
	return true
}

func (s *search) enough() bool {
	return !slices.ContainsFunc(s.gaps, func(n resource.Bytes) bool { return n > 0 })
}

// gather lists who could be stopped, cheapest first, and reports whether all of
// them together would be enough.
func (s *search) gather(already []int) bool {
	s.found = s.found[:0]
	for i := range s.w.guests {
		if !s.w.guests[i].here || i == s.a.group || slices.Contains(already, i) {
			continue
		}
		if !s.helps(i) {
			continue
		}
		cost, ok := s.stoppable(i)
		if !ok {
			continue
		}
		v := victim{group: i, cost: cost, frees: make([]resource.Bytes, len(s.pools))}
		for k, p := range s.pools {
			v.frees[k] = s.w.yield(i, p)
		}
		s.found = append(s.found, v)
	}
	if len(s.found) == 0 {
		return false
	}
	slices.SortStableFunc(s.found, func(x, y victim) int {
		gx, gy := &s.w.view.Groups[x.group], &s.w.view.Groups[y.group]
		return cmp.Or(cmp.Compare(x.cost, y.cost), gx.IdleSince.Compare(gy.IdleSince), cmp.Compare(gx.Instance, gy.Instance))
	})
	s.after = make([][]resource.Bytes, len(s.found)+1)
	s.after[len(s.found)] = make([]resource.Bytes, len(s.pools))
	for i := len(s.found) - 1; i >= 0; i-- {
		s.after[i] = slices.Clone(s.after[i+1])
		for k := range s.pools {
			s.after[i][k] += s.found[i].frees[k]
		}
	}
	return s.reachable(0)
}

// helps reports whether the end of group i's worker brings any of what is missing.
func (s *search) helps(i int) bool {
	for k, p := range s.pools {
		if s.gaps[k] > 0 && s.w.yield(i, p) > 0 {
			return true
		}
	}
	return false
}

func (s *search) reachable(from int) bool {
	for k, n := range s.gaps {
		if n > s.after[from][k] {
			return false
		}
	}
	return true
}

// cheapest leaves in best the set that costs least. It starts from one that is
// surely sufficient, so that a search cut short has an answer.
func (s *search) cheapest() {
	s.chosen, s.best, s.cost = s.chosen[:0], nil, 0
	for i := range s.found {
		if s.enough() {
			break
		}
		s.step(i, 1)
		s.best = append(s.best, i)
	}
	for k := len(s.best) - 1; k >= 0; k-- { // the dearest first: is it needed?
		i := s.best[k]
		if s.step(i, -1); s.enough() {
			s.best = slices.Delete(s.best, k, k+1)
		} else {
			s.step(i, 1)
		}
	}
	for _, i := range s.best {
		s.cost += s.found[i].cost
		s.step(i, -1)
	}
	s.try(0, 0)
}

// step takes victim i into account, or out of it.
func (s *search) step(i int, sign resource.Bytes) {
	for k := range s.gaps {
		s.gaps[k] -= sign * s.found[i].frees[k]
	}
}

// try looks at all sets of the victims from i on, beside those chosen.
func (s *search) try(i int, cost float64) {
	if s.w.effort--; s.w.effort <= 0 || cost >= s.cost {
		return
	}
	if s.enough() {
		s.best, s.cost = slices.Clone(s.chosen), cost
		return
	}
	if i == len(s.found) || !s.reachable(i) {
		return
	}
	s.step(i, 1)
	s.chosen = append(s.chosen, i)
	s.try(i+1, cost+s.found[i].cost)
	s.chosen = s.chosen[:len(s.chosen)-1]
	s.step(i, -1)
	s.try(i+1, cost)
}
