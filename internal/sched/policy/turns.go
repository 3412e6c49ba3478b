package policy

import (
	"math"
	"slices"
	"time"

	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
)

// wanted is added to the cost of a worker whose own jobs wait: it goes only
// where all others together are not enough.
const wanted = 1e6

// bySize is what a MiB adds to the cost, so that of equals the smaller goes.
const bySize = 1e-9

// mayGo reports whether group i's worker may ever be stopped for a, and from
// when on as far as its time on the device is concerned.
func (w *pass) mayGo(a *ask, i int) (from time.Time, ok bool) {
	g := &w.view.Groups[i]
	gu := &w.guests[i]
	if i == a.group || !gu.here || gu.gone != "" || g.Stopping != "" || g.LoadWanted || len(g.WaitingFor) > 0 || g.Measuring || w.furniture(i) || w.roomMade(i) {
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

// roomMade reports whether workers were stopped so that group i's loaded one can
// run: it starts in this very pass.
func (w *pass) roomMade(i int) bool {
	if w.view.Groups[i].Lingering {
		return false
	}
	for p := range w.pools {
		if w.account(i, p).held > 0 {
			return true
		}
	}
	return false
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
