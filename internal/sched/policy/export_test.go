package policy

import "github.com/cjmd/cjmd/internal/sched"

// CostOf is what reserve reckons it costs to stop an instance's worker.
func CostOf(p sched.Policy, v sched.View, instance string) float64 {
	w := newPass(&p.(*reserve).o, v)
	return w.cost(w.byName[instance])
}
