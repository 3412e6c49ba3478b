package rows

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/cjmd/cjmd/bench/harness"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched/policy"
	"github.com/cjmd/cjmd/internal/sched/simtest"
)

func simulation() simtest.Options {
	return simtest.Options{Policy: policy.Reserve(policy.ReserveOptions{}), RAMMargin: 512 * resource.MiB}
}

// simulate: how long the work of a mixed afternoon takes on a simulated
// machine, beside what no scheduler can beat and one job after the other.
func simulate(_ context.Context, b *harness.Bench) ([]harness.Result, error) {
	t, err := simtest.LoadTrace(filepath.Join(b.Repo, "examples", "traces", "mixed.yaml"))
	if err != nil {
		return nil, err
	}
	began := time.Now()
	own, err := simtest.Simulate(t, simulation())
	if err != nil {
		return nil, err
	}
	took := time.Since(began)
	strict := simulation()
	strict.Policy, strict.Slots = simtest.Sequential(), 1
	sequential, err := simtest.Simulate(t, strict)
	if err != nil {
		return nil, err
	}
	for _, r := range []*simtest.Result{own, sequential} {
		if s := simtest.Summarise(r, simtest.Bound{}); s.Failed > 0 || s.Unended > 0 {
			return nil, fmt.Errorf("cannot compare: with policy %s %d jobs failed and %d did not end", r.Policy, s.Failed, s.Unended)
		}
	}
	return []harness.Result{
		harness.Of("simulate", "mixed trace: makespan", own.End.Seconds(), "s").Against("lower bound, s", simtest.LowerBound(t).Makespan.Seconds()).RatioAtMost(1.15),
		harness.Of("simulate", "mixed trace: makespan", own.End.Seconds(), "s").Against("strict order, one at a time, s", sequential.End.Seconds()).RatioAtMost(0.5),
		harness.Of("simulate", "the simulation itself", harness.Milliseconds(took), "ms"),
	}, nil
}

// twoOnOneCard is a card that has room for one of two plugins, whose jobs come
// in turn: each start waits for the memory of the other, which comes back late.
const twoOnOneCard = `
name: turns
seed: 3
machine: {cpus: 8, ram_mb: 65536, devices: [{total_mb: 24576}]}
plugins:
  one: {resident_mb: 15000, execute_mb: 1000, load: 3s, run: 2s, needs: learned, release_lag: 0.3s..4s}
  other: {resident_mb: 14000, execute_mb: 1000, load: 3s, run: 2s, needs: learned, release_lag: 0.3s..4s}
arrivals:
  - {plugin: one, count: 20, at: 0s, every: 5m}
  - {plugin: other, count: 20, at: 150s, every: 5m}
`

// settle: how long after a dead worker's memory is back the next worker starts,
// and how often one started before.
func settle(context.Context, *harness.Bench) ([]harness.Result, error) {
	t, err := simtest.ParseTrace([]byte(twoOnOneCard))
	if err != nil {
		return nil, err
	}
	r, err := simtest.Simulate(t, simulation())
	if err != nil {
		return nil, err
	}
	var after []float64
	early, worst := 0, 0.0
	for _, load := range r.Spans {
		if load.Kind != simtest.KindLoad {
			continue
		}
		back := time.Duration(-1)
		for _, s := range r.Spans {
			switch {
			case s.Kind != simtest.KindReturning:
			case s.From <= load.From && load.From < s.To:
				early++
			case s.To <= load.From:
				back = max(back, s.To)
			}
		}
		if back >= 0 {
			ms := harness.Milliseconds(load.From - back)
			after, worst = append(after, ms), max(worst, ms)
		}
	}
	if len(after) < 10 {
		return nil, errors.New("cannot measure: hardly a worker had to go")
	}
	return []harness.Result{
		harness.Of("settle", fmt.Sprintf("start after the memory is back, median of %d", len(after)), harness.Median(after), "ms").AtMost(150),
		harness.Of("settle", "the same, longest", worst, "ms"),
		harness.Of("settle", "starts before the memory was back", float64(early), "").AtMost(0),
	}, nil
}
