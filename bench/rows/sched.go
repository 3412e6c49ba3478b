package rows

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cjmd/cjmd/bench/harness"
)

const (
	shortQueue = 10_000
	longQueue  = 1_000_000
)

// passes is what one queue length gives.
type passes struct {
	full, unchanged float64 // of a pass, microseconds
	submit          float64 // of one durable submit, microseconds
}

// schedule: passes of the loop under a crowd, and a submit, beside each other
// for a short and a very long queue. The loop, the policy reserve, the queue and
// the store are the daemon's, in this process.
func schedule(ctx context.Context, b *harness.Bench) ([]harness.Result, error) {
	short, err := crowded(ctx, b, shortQueue)
	if err != nil {
		return nil, fmt.Errorf("%d pending: %w", shortQueue, err)
	}
	long, err := crowded(ctx, b, longQueue)
	if err != nil {
		return nil, fmt.Errorf("%d pending: %w", longQueue, err)
	}
	of := func(metric string, v float64) harness.Result { return harness.Of("sched", metric, v, "µs") }
	return []harness.Result{
		of("full pass, 10k pending", short.full).Against("unchanged, µs", short.unchanged).AtMost(1000),
		of("unchanged pass, 10k pending", short.unchanged).AtMost(50),
		of("full pass, 1M pending", long.full).Against("10k pending, µs", short.full).RatioAtMost(2),
		of("unchanged pass, 1M pending", long.unchanged).Against("10k pending, µs", short.unchanged).RatioAtMost(2),
		of("submit, 1M pending", long.submit).Against("10k pending, µs", short.submit).RatioAtMost(2),
	}, nil
}

func crowded(ctx context.Context, b *harness.Bench, pending int) (_ passes, err error) {
	c, err := newCrowd(ctx, b, pending)
	if err != nil {
		return passes{}, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	var full, unchanged, submits []float64
	for range b.Times(120, 1000) {
		begin := time.Now()
		if err := c.submit(ctx, 1); err != nil {
			return passes{}, err
		}
		submits = append(submits, micros(time.Since(begin)))
		c.changeEverything()
		before := c.policy.decisions
		begin = time.Now()
		c.step.Pass()
		full = append(full, micros(time.Since(begin)))
		if c.policy.decisions == before {
			return passes{}, errors.New("a full pass decided nothing")
		}
	}
	for range b.Times(1000, 10_000) {
		begin := time.Now()
		c.step.Pass()
		unchanged = append(unchanged, micros(time.Since(begin)))
	}
	if busy := c.workers.busy(); busy != crowdWorkers {
		return passes{}, fmt.Errorf("%d workers are busy, not %d", busy, crowdWorkers)
	}
	return passes{harness.Median(full), harness.Median(unchanged), harness.Median(submits)}, nil
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
