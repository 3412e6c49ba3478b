package policy

import (
	"slices"
	"strconv"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
)

// walk is one Decide: the view, what is left of it, and the plan so far.
type walk struct {
	rule rule
	view sched.View
	book book
	plan sched.Plan
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
		w.block(g, &jobs.Block{Code: "no_slot", Sentence: "all " + strconv.Itoa(w.view.SlotsMax) + " run slots of this machine are taken"})
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

// verdict of startOrNot.
type verdict int

const (
	waits verdict = iota // the group has a block
	started
	refused
)

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

func (w *walk) fail(g *sched.GroupView, job *jobs.Ready, err *jobs.Error) {
	f := sched.Failure{Instance: g.Instance, Error: err}
	if job != nil {
		f.Job = job.ID
	}
	w.plan.Fail = append(w.plan.Fail, f)
}

func (w *walk) block(g *sched.GroupView, b *jobs.Block) {
	if w.plan.Block == nil {
		w.plan.Block = make(map[string]*jobs.Block)
	}
	w.plan.Block[g.Instance] = b
}

// wake asks for a pass at t.
func (w *walk) wake(t time.Time) {
	if w.plan.WakeAt.IsZero() || t.Before(w.plan.WakeAt) {
		w.plan.WakeAt = t
	}
}

// closed says why nothing of g may start at all, or nil.
func (w *walk) closed(g *sched.GroupView) *jobs.Block {
	switch {
	case !g.Known:
		return &jobs.Block{Code: "unknown_plugin", Sentence: orElse(g.Problem, "no plugin of this name is known")}
	case !g.Enabled:
		return &jobs.Block{Code: "disabled", Sentence: g.Instance + " is disabled"}
	case g.Stopping != "":
		return &jobs.Block{Code: "no_slot", Sentence: "the worker of " + g.Instance + " is being stopped (" + g.Stopping + ")"}
	case g.Failed != "": // also of a worker that is still there and cannot be ended
		return &jobs.Block{Code: "worker_failed", Sentence: g.Failed}
	case g.CoolUntil.After(w.view.Now): // also while other jobs still hold slots of the worker that ended
		w.wake(g.CoolUntil)
		return &jobs.Block{Code: "cooling_down", Earliest: g.CoolUntil,
			Sentence: g.Instance + " failed and cools down until " + g.CoolUntil.UTC().Format("15:04:05Z")}
	case g.Resident:
		return nil
	case len(g.WaitingFor) > 0:
		return &jobs.Block{Code: "resource", Holders: g.WaitingFor,
			Sentence: "waiting for the memory of " + list(g.WaitingFor) + ", which makes room for " + g.Instance}
	}
	return nil
}

func (w *walk) stale() *jobs.Block {
	if w.view.Monitor == "" {
		return &jobs.Block{Code: "stale_monitor", Sentence: "no system monitor is registered, so what is free is not known"}
	}
	return &jobs.Block{Code: "stale_monitor", Sentence: "the system monitor " + w.view.Monitor + " is silent, so what is free is not known"}
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

func noSlot(g *sched.GroupView) *jobs.Block {
	n := strconv.Itoa(g.Concurrency)
	return &jobs.Block{Code: "no_slot", Sentence: "waiting for a free slot of " + g.Instance + " (" + n + " of " + n + " busy)"}
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
