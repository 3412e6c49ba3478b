package policy

import (
	"strconv"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/sched"
)

// desk is one Decide in the making: the view and the plan so far. What every
// policy does alike is said here.
type desk struct {
	view sched.View
	plan sched.Plan
}

// verdict says what became of a job.
type verdict int

const (
	waits verdict = iota // the group has a block
	started
	refused
)

func (d *desk) fail(g *sched.GroupView, job *jobs.Ready, err *jobs.Error) {
	f := sched.Failure{Instance: g.Instance, Error: err}
	if job != nil {
		f.Job = job.ID
	}
	d.plan.Fail = append(d.plan.Fail, f)
}

func (d *desk) block(g *sched.GroupView, b *jobs.Block) {
	if d.plan.Block == nil {
		d.plan.Block = make(map[string]*jobs.Block)
	}
	d.plan.Block[g.Instance] = b
}

// wake asks for a pass at t.
func (d *desk) wake(t time.Time) {
	if d.plan.WakeAt.IsZero() || t.Before(d.plan.WakeAt) {
		d.plan.WakeAt = t
	}
}

// closed says why nothing of g may start at all, or nil.
func (d *desk) closed(g *sched.GroupView) *jobs.Block {
	switch {
	case !g.Known:
		return &jobs.Block{Code: "unknown_plugin", Sentence: orElse(g.Problem, "no plugin of this name is known")}
	case !g.Enabled:
		return &jobs.Block{Code: "disabled", Sentence: g.Instance + " is disabled"}
	case g.Barred != "":
		return &jobs.Block{Code: "resource", Sentence: g.Barred}
	case g.Stopping != "":
		return &jobs.Block{Code: "no_slot", Sentence: "the worker of " + g.Instance + " is being stopped (" + g.Stopping + ")"}
	case g.Failed != "": // also of a worker that is still there and cannot be ended
		return &jobs.Block{Code: "worker_failed", Sentence: g.Failed}
	case g.CoolUntil.After(d.view.Now): // also while other jobs still hold slots of the worker that ended
		d.wake(g.CoolUntil)
		return &jobs.Block{Code: "cooling_down", Earliest: g.CoolUntil,
			Sentence: g.Instance + " failed and cools down until " + g.CoolUntil.UTC().Format("15:04:05Z")}
	case g.Resident && len(g.WaitingFor) == 0:
		return nil
	case len(g.WaitingFor) > 0:
		return &jobs.Block{Code: "resource", Holders: g.WaitingFor,
			Sentence: "waiting for the memory of " + list(g.WaitingFor) + ", which makes room for " + g.Instance}
	}
	return nil
}

func (d *desk) stale() *jobs.Block {
	if d.view.Monitor == "" {
		return &jobs.Block{Code: "stale_monitor", Sentence: "no system monitor is registered, so what is free is not known"}
	}
	return &jobs.Block{Code: "stale_monitor", Sentence: "the system monitor " + d.view.Monitor + " is silent, so what is free is not known"}
}

func (d *desk) noRunSlot(g *sched.GroupView) {
	d.block(g, &jobs.Block{Code: "no_slot", Sentence: "all " + strconv.Itoa(d.view.SlotsMax) + " run slots of this machine are taken"})
}

func noSlot(g *sched.GroupView) *jobs.Block {
	n := strconv.Itoa(g.Concurrency)
	return &jobs.Block{Code: "no_slot", Sentence: "waiting for a free slot of " + g.Instance + " (" + n + " of " + n + " busy)"}
}
