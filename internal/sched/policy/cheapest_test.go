package policy_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/sched/policy"
	"pgregory.net/rapid"
)

// TestReserve_VictimsAreTheCheapestSet compares with all subsets there are.
func TestReserve_VictimsAreTheCheapestSet(t *testing.T) {
	checkMany(t, 1, func(t *rapid.T) {
		b := newBox(48)
		b.put("a", 1, need(rapid.IntRange(20, 48).Draw(t, "need"), 0), hostNeed(rapid.IntRange(0, 60).Draw(t, "ram"), 0))
		n := rapid.IntRange(1, 9).Draw(t, "workers")
		for i := range n {
			name := fmt.Sprint("w", i)
			b.put(name, 0, need(rapid.IntRange(1, 8).Draw(t, "vram"), 0), hostNeed(rapid.IntRange(0, 10).Draw(t, "worker ram"), 0),
				times(seconds(t, 60, "load")+time.Second, 0, 0)).loaded(name, 0)
			b.group(name).Uses = float64(rapid.IntRange(0, 10).Draw(t, "uses"))
		}
		p := policy.Reserve(policy.ReserveOptions{})
		plan := p.Decide(b.v)
		best, found := cheapest(b.v, p, n)
		if len(plan.Start) > 0 { // it fitted as it was
			if best != 0 {
				t.Fatalf("started without room: %s", tell(b.v, plan))
			}
			return
		}
		got := 0.0
		for _, e := range plan.Evict {
			got += policy.CostOf(p, b.v, e.Instance)
		}
		if found != (len(plan.Evict) > 0) || (found && got > best+1e-9) {
			t.Fatalf("set of %v, the cheapest costs %v (there is one: %v): %s", got, best, found, tell(b.v, plan))
		}
	})
}

// cheapest tries all subsets of the workers w0…: the least cost of those that
// make room for "a".
func cheapest(v sched.View, p sched.Policy, n int) (best float64, found bool) {
	m := newModel(&v)
	a := find(&v, "a")
	for set := range 1 << n {
		var vram, ram resource.Bytes
		cost := 0.0
		for i := range n {
			if set&(1<<i) != 0 {
				name := fmt.Sprint("w", i)
				vram += m.account(name, dev(0))
				ram += m.account(name, resource.HostDevice)
				cost += policy.CostOf(p, v, name)
			}
		}
		if m.room(a, true, dev(0), vram) && m.room(a, true, resource.HostDevice, ram) && (!found || cost < best) {
			best, found = cost, true
		}
	}
	return best, found
}
