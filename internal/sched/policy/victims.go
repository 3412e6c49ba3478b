package policy

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
)

// searchEffort bounds how many combinations of victims one pass looks at; past
// it the sets found are sufficient and lean, but perhaps not the cheapest.
const searchEffort = 20_000

// wanted is added to the cost of a worker whose own jobs wait: it goes only
// where all others together are not enough.
const wanted = 1e6

// bySize is what a MiB adds to the cost, so that of equals the smaller goes.
const bySize = 1e-9

// eviction is a sufficient set of workers to stop, and where the room is then.
type eviction struct {
	on   []int
	set  []int // groups
	cost float64
}

// makeRoom looks for idle workers whose memory would let a in. If they are
// enough it plans their stop, or first a release where they offer that, keeps
// the room for a, and blocks a meanwhile. If not, it plans nothing.
func (w *pass) makeRoom(a *ask) bool {
	if a.here && w.move(a) {
		return true
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
	if a.want == 0 || len(gu.on) == 0 || gu.busy > 0 || gu.started || a.g.Loading || a.g.LoadWanted || a.g.IdleSince.IsZero() || a.g.Lingering || w.furniture(a.group) {
		return false
	}
	for _, p := range gu.on {
		why := ""
		switch {
		case w.whole(a, p) > w.pools[p].total:
			why = ", to be loaded again where there is enough memory: " + string(w.pools[p].id) + " is too small"
		case w.swollen(a, p) && w.spent(a.group) < 0 && !a.g.ResidentSince.Add(w.o.residency(a.g)).After(w.view.Now):
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
		add(p, a.resVRAM, a.execVRAM)
	}
	return out
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
			if !s.clear(p, &out) {
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

// mayGo reports whether group i's worker may ever be stopped for a, and from
// when on as far as its time on the device is concerned.
func (w *pass) mayGo(a *ask, i int) (from time.Time, ok bool) {
	g := &w.view.Groups[i]
	gu := &w.guests[i]
	if i == a.group || !gu.here || gu.gone != "" || g.Stopping != "" || g.LoadWanted || len(g.WaitingFor) > 0 || g.Measuring || w.furniture(i) {
		return from, false
	}
	if a.priority() > w.class(g) {
		return from, !w.outranked(a, i)
	}
	since := g.ResidentSince
	if !g.Resident { // this plan loads it
		since = w.view.Now
	}
	from = since.Add(w.o.residency(g))
	if (g.Queued == 0 && len(g.Ready) == 0) || !g.Enabled {
		from = later(from, w.pauseOver(a, g))
	} else {
		if w.outranked(a, i) {
			return from, false
		}
		from = later(from, w.due(a, g, since))
	}
	return from, true
}

// pauseOver is when an idle worker that is about to be used again, as a chat
// between two questions, may go: when its pause has lasted too long for another
// use to come soon, or when a waited too long.
func (w *pass) pauseOver(a *ask, g *sched.GroupView) time.Time {
	pause, limit := w.pause(a, g)
	if over := g.LastUsed.Add(pause); over.Before(limit) {
		return over
	}
	return limit
}

// pause is how long g's worker has to be idle before it is stopped for a:
// AffinityWait if it is kept for more urgent jobs, twice the usual time between
// its uses if that is short. From limit on a waited too long for that.
func (w *pass) pause(a *ask, g *sched.GroupView) (pause time.Duration, limit time.Time) {
	if !g.Enabled {
		return 0, time.Time{}
	}
	patience := w.o.hardWait(a.g)
	if p := usual(g); p <= w.o.AffinityWait {
		pause = 2 * p
	}
	if a.priority() < w.class(g) {
		patience, pause = w.o.HardWait, max(pause, w.o.AffinityWait)
	}
	return pause, w.waitsSince(a.g).Add(patience)
}

// usual is the usual time between two uses of g's worker.
func usual(g *sched.GroupView) time.Duration {
	if g.Uses <= 0 {
		return math.MaxInt64
	}
	return time.Duration(float64(time.Hour) / g.Uses)
}

// expected is from when on an idle worker that is kept for more urgent jobs is
// likely to be free to go for a: one that is used all the time will hardly pause
// for as long as it would have to.
func (w *pass) expected(a *ask, g *sched.GroupView, from time.Time) time.Time {
	if g.Queued > 0 || len(g.Ready) > 0 || a.priority() >= w.class(g) {
		return from
	}
	if pause, limit := w.pause(a, g); usual(g) <= pause {
		return later(from, limit)
	}
	return from
}

// outranked reports whether a job that waits for group i's worker comes before a.
func (w *pass) outranked(a *ask, i int) bool {
	waiting := w.guests[i].ready
	return a.job != nil && len(waiting) > 0 && waiting[0].before(*a.job)
}

// due is when a's turn comes before jobs that wait for g's worker, loaded since
// then: affinity lets those go first, within its bounds.
func (w *pass) due(a *ask, g *sched.GroupView, since time.Time) time.Time {
	turn := since.Add(min(time.Duration(w.o.AffinityLoads)*(w.o.load(g)+w.o.load(a.g)), w.o.HardWait))
	if g.Streak >= w.o.AffinityJobs {
		return turn
	}
	return later(turn, w.waitsSince(a.g).Add(w.o.AffinityWait))
}

// load is what loading g's worker takes, as far as that is known.
func (o *ReserveOptions) load(g *sched.GroupView) time.Duration {
	if g.LoadTime > 0 {
		return g.LoadTime
	}
	return o.LoadGuess
}

// residency is how long g's worker is left alone once it is loaded.
func (o *ReserveOptions) residency(g *sched.GroupView) time.Duration {
	return max(o.MinResident, time.Duration(o.MinResidentLoads)*g.LoadTime)
}

// class is the priority a worker is kept for: of its most urgent job, or for a
// while of the one it ran last, or the common one.
func (w *pass) class(g *sched.GroupView) int {
	if len(g.Ready) == 0 {
		if w.view.Now.Sub(g.LastUsed) < w.o.ReuseWindow {
			return g.LastPriority
		}
		return 0
	}
	top := g.Ready[0].Priority
	for i := range g.Ready {
		top = max(top, g.Ready[i].Priority)
	}
	return top
}

// cost is what it costs to stop group i's worker: the time to load it again,
// times how likely that is to be needed soon, times whom it is kept for.
func (w *pass) cost(i int) float64 {
	g := &w.view.Groups[i]
	used := g.LastUsed
	if used.IsZero() {
		used = g.IdleSince
	}
	window := w.o.ReuseWindow
	idle := max(w.view.Now.Sub(used), 0)
	again := 1 - math.Exp(-g.Uses*window.Hours())
	chance := min((0.1+again)/(1+float64(idle)/float64(window)), 1)
	c := max(w.o.load(g), time.Second).Seconds() * chance * float64(1+max(w.class(g), 0))
	for p := range w.pools { // of equals the smaller
		c += bySize * float64(w.account(i, p).size()/resource.MiB)
	}
	if g.Queued > 0 || len(g.Ready) > 0 {
		c += wanted
	}
	return c
}

// spent returns a pool of group i whose swap budget is used up, -1 for none.
func (w *pass) spent(i int) int {
	for p := range w.pools {
		if w.pools[p].swaps == 0 && w.holds(i, p) {
			return p
		}
	}
	return -1
}

// holds reports whether the end of group i's worker would change pool p's hands.
func (w *pass) holds(i, p int) bool {
	return w.account(i, p).size() > 0 || slices.Contains(w.guests[i].on, p)
}

func (w *pass) names(set []int) []string {
	out := make([]string, len(set))
	for k, i := range set {
		out[k] = w.view.Groups[i].Instance
	}
	return out
}
