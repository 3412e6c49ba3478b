package policy

import (
	"slices"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
)

// walk is one Decide of the policies that go by declared needs: what is left of
// the view, and the plan so far.
type walk struct {
	desk
	rule rule
	book book
	// owners have memory set aside; made when first asked for.
	owners []string
}

// loads serves the loads that were asked for by name, before any job: a person
// waits for each of them.
func (w *walk) loads() {
	for i := range w.view.Groups {
		g := &w.view.Groups[i]
		if !g.LoadWanted {
			continue
		}
		switch b := w.closed(g); {
		case b == nil:
			w.startOrNot(i, nil)
		case b.Code == "no_slot" || b.Code == "resource": // passes by itself, soon
			w.block(g, b)
		default:
			w.fail(g, nil, &jobs.Error{Category: jobs.Fatal, Message: b.Sentence})
		}
	}
}

// jobs takes the ready jobs in order (priority, then submission) across all
// groups. A group that cannot go on leaves the order and hinders nobody.
func (w *walk) jobs() {
	order := make(heads, 0, len(w.view.Groups))
	for i := range w.view.Groups {
		g := &w.view.Groups[i]
		if len(g.Ready) == 0 || w.plan.Block[g.Instance] != nil {
			continue
		}
		if b := w.closed(g); b != nil {
			w.block(g, b)
			continue
		}
		order = append(order, head{group: i, slots: g.SlotsFree, job: &g.Ready[0]})
	}
	order.init()
	for len(order) > 0 {
		h := &order[0]
		g := &w.view.Groups[h.group]
		if !w.next(h, g) || h.next >= len(g.Ready) {
			order.pop()
			continue
		}
		h.job = &g.Ready[h.next]
		order.down(0)
	}
}

// next decides about the group's next job and reports whether the group goes on.
func (w *walk) next(h *head, g *sched.GroupView) bool {
	if h.slots <= 0 {
		w.block(g, noSlot(g))
		return false
	}
	if w.book.slots == 0 {
		w.noRunSlot(g)
		return false
	}
	switch w.startOrNot(h.group, h.job) {
	case started:
		h.slots--
		h.next++
		if w.book.slots > 0 {
			w.book.slots--
		}
		return true
	case refused:
		h.next++
		return true
	default:
		return false
	}
}

// startOrNot starts the job (or, with a nil job, the load) of group i, refuses
// it, or blocks the group; it does exactly one of the three.
func (w *walk) startOrNot(i int, job *jobs.Ready) verdict {
	g := &w.view.Groups[i]
	if g.Resident || w.book.placed[g.Instance] {
		w.start(g, job, nil)
		return started
	}
	if !w.rule.check || !w.needsFacts(g) {
		claims, _ := w.book.place(g)
		w.start(g, job, claims)
		return started
	}
	if !w.view.Fresh { // nothing is judged, least of all "never", without a reading
		if job == nil && bringsFacts(&w.view, g) {
			claims, _ := w.book.place(g)
			w.start(g, job, claims)
			return started
		}
		w.block(g, w.stale())
		return waits
	}
	if short := w.never(g); len(short) > 0 {
		w.fail(g, job, never(g, short))
		return refused
	}
	claims, short := w.book.place(g)
	if len(short) == 0 {
		w.start(g, job, claims)
		return started
	}
	if w.evictFor(g) {
		return waits
	}
	if w.mayWait(g, job) {
		w.block(g, &jobs.Block{Code: "resource", Sentence: sentence(g, short), Needs: short, Holders: w.holders(g)})
		return waits
	}
	w.fail(g, job, w.shortage(g, short))
	return refused
}

func (w *walk) start(g *sched.GroupView, job *jobs.Ready, claims []sched.Claim) {
	if !g.Resident && !w.book.placed[g.Instance] {
		w.book.take(g, claims)
	}
	s := sched.Start{Instance: g.Instance, Claims: claims}
	if job != nil {
		s.Job = job.ID
	}
	w.plan.Start = append(w.plan.Start, s)
}

// mayWait reports whether the job may go on waiting for memory, and sees to
// it that it is looked at again when it may not any longer.
func (w *walk) mayWait(g *sched.GroupView, job *jobs.Ready) bool {
	if w.rule.wait == 0 {
		return false
	}
	if job == nil { // whoever asked for the load gives up by its context
		return true
	}
	since := g.WaitSince
	if since.IsZero() {
		since = w.view.Now
	}
	if job.CreatedAt.After(since) {
		since = job.CreatedAt
	}
	until := since.Add(w.rule.wait)
	if !until.After(w.view.Now) {
		return false
	}
	w.wake(until)
	return true
}

// needsFacts reports whether g asks for anything that a monitor must vouch for.
func (w *walk) needsFacts(g *sched.GroupView) bool {
	return g.Demand.RequiresGPU || g.Demand.MinRAM > 0
}

// holders lists who else has memory set aside, for the block.
func (w *walk) holders(g *sched.GroupView) []string {
	if w.owners == nil {
		w.owners = make([]string, 0, len(w.view.Claims))
		for i := range w.view.Claims {
			c := &w.view.Claims[i]
			if max(c.Bytes, c.Measured) > 0 && !slices.Contains(w.owners, c.Owner) {
				w.owners = append(w.owners, c.Owner)
			}
		}
	}
	if !slices.Contains(w.owners, g.Instance) {
		return slices.Clip(w.owners)
	}
	return slices.DeleteFunc(slices.Clone(w.owners), func(o string) bool { return o == g.Instance })
}

func never(g *sched.GroupView, short []resource.Shortfall) *jobs.Error {
	return &jobs.Error{Category: jobs.ResourceCat, Shortfall: short,
		Message: sentence(g, short) + "; it can never fit on this machine"}
}

func (w *walk) shortage(g *sched.GroupView, short []resource.Shortfall) *jobs.Error {
	msg := sentence(g, short)
	if w.rule.wait > 0 {
		msg += "; waited " + w.rule.wait.String()
	}
	return &jobs.Error{Category: jobs.ResourceCat, Shortfall: short, Retriable: true, Message: msg}
}
