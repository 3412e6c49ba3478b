// Package policy holds the rules that decide what may start: permissive,
// safety, queue and reserve, the default. Each is a pure function from a
// sched.View to a sched.Plan, with no clock, log or I/O, and safe from any
// goroutine. The first three go by declared needs and share one walk over the
// ready jobs (walk.go; fit.go, evict.go). Reserve shares devices by real bytes:
// start with reserve.go, then pools.go (what is left of the view), rank.go (the
// order), place.go (where a start fits), room.go (how room is made for it),
// victims.go (the cheapest set to stop), turns.go (who may be stopped, and from
// when on), shadow.go (what is kept for the first that cannot start), forecast.go
// (when it will), reasons.go.
package policy

import (
	"time"

	"github.com/cjmd/cjmd/internal/sched"
)

// DefaultQueueTimeout is how long the queue policy lets a job wait for memory.
const DefaultQueueTimeout = 300 * time.Second

// rule is what distinguishes the three policies.
type rule struct {
	name  string
	check bool          // look at memory at all
	wait  time.Duration // how long a job may wait for memory; 0: refuse at once
}

// Permissive starts whatever has a free slot, whatever the monitor says.
func Permissive() sched.Policy { return rule{name: "permissive"} }

// Safety checks declared needs against fresh facts, tries eviction, and
// refuses at once what still does not fit.
func Safety() sched.Policy { return rule{name: "safety", check: true} }

// Queue checks as Safety does, but lets a job wait up to timeout
// (DefaultQueueTimeout when 0) before it is refused.
func Queue(timeout time.Duration) sched.Policy {
	if timeout <= 0 {
		timeout = DefaultQueueTimeout
	}
	return rule{name: "queue", check: true, wait: timeout}
}

// Name is what configuration and the API call the policy.
func (r rule) Name() string { return r.name }

// Decide walks the ready jobs of the view once, most urgent first.
func (r rule) Decide(v sched.View) sched.Plan {
	w := walk{desk: desk{view: v}, rule: r, book: newBook(v)}
	w.loads()
	w.jobs()
	return w.plan
}

// bringsFacts reports whether g serves the registered monitor and needs no
// accelerator: its worker is loaded without a reading, because there is none
// before it is.
func bringsFacts(v *sched.View, g *sched.GroupView) bool {
	return g.Instance == v.MonitorInstance && !g.Need.GPU && !g.Demand.RequiresGPU
}
