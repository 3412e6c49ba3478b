package simtest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/sched/policy"
)

func TestSmoke(t *testing.T) {
	tr, err := LoadTrace("../../../examples/traces/mixed.yaml")
	require.NoError(t, err)
	for _, p := range []sched.Policy{policy.Permissive(), policy.Safety(), policy.Queue(time.Hour)} {
		begin := time.Now()
		r, err := Simulate(tr, Options{Policy: p})
		require.NoError(t, err)
		n := map[string]int{}
		for _, j := range r.Jobs {
			n[string(j.Status)]++
		}
		t.Log(p.Name(), r.End, r.Overdue, n, "admissions", r.Admissions, "ooms", len(r.OOMs), "loads", r.Loads, "stops", r.Stops, "passes", r.Passes, time.Since(begin))
	}
}
