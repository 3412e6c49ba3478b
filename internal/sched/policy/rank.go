package policy

import (
	"slices"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/sched"
)

// ranked is one ready job with its place in the order.
type ranked struct {
	*jobs.Ready
	total float64
}

// before orders jobs: higher total first, then earlier submission.
func (r ranked) before(o ranked) bool {
	if r.total != o.total {
		return r.total > o.total
	}
	return r.Seq < o.Seq
}

// Rank implements sched.Ranker.
func (r *reserve) Rank(v *sched.View, g *sched.GroupView, job *jobs.Ready) sched.Rank {
	out := r.o.rank(v, mostUsed(v), job)
	out.Affinity = len(g.Ready) > 0 && g.Resident && g.SlotsFree > 0 && g.Streak < r.o.AffinityJobs
	return out
}

// rank is the arithmetic; most is the largest share of any submitter.
func (o *ReserveOptions) rank(v *sched.View, most float64, job *jobs.Ready) sched.Rank {
	out := sched.Rank{Priority: float64(job.Priority)}
	if waited := v.Now.Sub(job.CreatedAt); waited > 0 {
		out.Age = min(float64(waited)/float64(o.AgePoint), o.AgeMax)
	}
	if most > 0 {
		out.Share = -o.ShareMax * v.Share[job.Submitter] / most
	}
	out.Total = out.Priority + out.Age + out.Share
	return out
}

// mostUsed is the largest share. Shares are set against it and not against
// their sum: a sum over a map depends on the order that it is walked in.
func mostUsed(v *sched.View) float64 {
	most := 0.0
	for _, n := range v.Share {
		most = max(most, n)
	}
	return most
}

// turn is one group in the line: its jobs that are still undecided, by rank.
type turn struct {
	group int
	slots int // of the group, still free in this plan
	job   ranked
	left  []ranked
}

func (w *pass) queueUp(i int) turn {
	left := w.guests[i].ready
	return turn{group: i, slots: w.view.Groups[i].SlotsFree, job: left[0], left: left}
}

// rankAll puts the ready jobs of each group in order of their rank: age may
// lift an old job over a newer one of higher priority.
func (w *pass) rankAll() {
	n := 0
	for i := range w.view.Groups {
		n += len(w.view.Groups[i].Ready)
	}
	all := make([]ranked, 0, n)
	for i := range w.view.Groups {
		g := &w.view.Groups[i]
		from := len(all)
		for j := range g.Ready {
			r := &g.Ready[j]
			all = append(all, ranked{Ready: r, total: w.o.rank(&w.view, w.most, r).Total})
		}
		mine := all[from:len(all):len(all)]
		slices.SortFunc(mine, func(a, b ranked) int {
			if a.before(b) {
				return -1
			}
			return 1
		})
		w.guests[i].ready = mine
	}
}

// line is a binary heap of turns, first in rank first. Written out because
// container/heap allocates per element.
type line []turn

func (l line) init() {
	for i := len(l)/2 - 1; i >= 0; i-- {
		l.down(i)
	}
}

// down restores the order after the element at i became less urgent.
func (l line) down(i int) {
	for {
		c := 2*i + 1
		if c >= len(l) {
			return
		}
		if c+1 < len(l) && l[c+1].job.before(l[c].job) {
			c++
		}
		if !l[c].job.before(l[i].job) {
			return
		}
		l[i], l[c] = l[c], l[i]
		i = c
	}
}

// pop removes the first.
func (l *line) pop() {
	last := len(*l) - 1
	(*l)[0] = (*l)[last]
	*l = (*l)[:last]
	l.down(0)
}

// waited is how long the group has been kept from memory.
func (w *pass) waited(g *sched.GroupView) time.Duration {
	if g.WaitSince.IsZero() {
		return 0
	}
	return max(w.view.Now.Sub(g.WaitSince), 0)
}

func (w *pass) waitsSince(g *sched.GroupView) time.Time {
	if g.WaitSince.IsZero() || g.WaitSince.After(w.view.Now) {
		return w.view.Now
	}
	return g.WaitSince
}

// hardWait is how long g waits before its devices drain for it.
func (o *ReserveOptions) hardWait(g *sched.GroupView) time.Duration {
	if g.RunTime <= 0 {
		return o.HardWait
	}
	return min(max(time.Duration(o.HardWaitRuns)*g.RunTime, o.HardWaitMin), o.HardWait)
}

// jumps reports whether a starts before an older job that its worker's memory
// keeps from starting: the affinity that is bounded.
func (w *pass) jumps(a *ask) bool {
	if a.job == nil || !w.guests[a.group].here {
		return false
	}
	for i := range w.shadows {
		s := &w.shadows[i]
		if s.ask.group != a.group && overlaps(s.ask.on, w.guests[a.group].on) {
			return true
		}
	}
	return false
}

func overlaps(a, b []int) bool {
	return slices.ContainsFunc(a, func(p int) bool { return slices.Contains(b, p) })
}

func (w *pass) spendQuota(submitter string) {
	left, bound := w.quota[submitter]
	if !bound {
		return
	}
	if !w.quotaOwn { // the view's map is not ours to change
		own := make(map[string]int, len(w.quota))
		for k, v := range w.quota {
			own[k] = v
		}
		w.quota, w.quotaOwn = own, true
	}
	w.quota[submitter] = left - 1
}

func overQuota(submitter string) *jobs.Block {
	return &jobs.Block{Code: "quota", Holders: []string{submitter}, Sentence: "submitter " + orElse(submitter, "(nobody)") + " has no run slot left in its quota"}
}
