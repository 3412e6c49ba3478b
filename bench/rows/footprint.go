package rows

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cjmd/cjmd/bench/harness"
)

const (
	footprintJobs    = 10_000
	footprintPending = 100_000
)

// footprint: the daemon's own memory, and how long it takes to come back with
// a long queue.
func footprint(ctx context.Context, b *harness.Bench) (_ []harness.Result, err error) {
	d, err := b.Daemon(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Stop()) }()
	empty := d.ReadyAfter
	idle, err := d.RSS()
	if err != nil {
		return nil, err
	}
	if err := runJobs(ctx, d, footprintJobs); err != nil {
		return nil, err
	}
	after, err := d.RSS()
	if err != nil {
		return nil, err
	}
	if err := d.Call(ctx, "POST", "/v1/queue/pause", nil, nil); err != nil {
		return nil, err
	}
	if err := fill(ctx, d, footprintPending); err != nil {
		return nil, err
	}
	full, err := d.RSS()
	if err != nil {
		return nil, err
	}
	if d, err = d.Restart(ctx); err != nil {
		return nil, err
	}
	restarted, err := d.RSS()
	if err != nil {
		return nil, err
	}
	if err := wantPending(ctx, d, footprintPending); err != nil {
		return nil, err
	}
	return []harness.Result{
		harness.Of("footprint", "memory, idle", idle, "MiB"),
		harness.Of("footprint", "memory after 10,000 jobs", after, "MiB").Against("idle, MiB", idle),
		harness.Of("footprint", "memory with 100,000 pending", full, "MiB").Against("idle, MiB", idle),
		harness.Of("footprint", "memory with 100,000 pending, restarted", restarted, "MiB").Against("idle, MiB", idle),
		harness.Of("footprint", "start to ready, empty", harness.Milliseconds(empty), "ms"),
		harness.Of("footprint", "start to ready, 100,000 pending", harness.Milliseconds(d.ReadyAfter), "ms").
			Against("empty, ms", harness.Milliseconds(empty)).AtMost(1500),
	}, nil
}

// runJobs submits n jobs in batches and waits until all have ended.
func runJobs(ctx context.Context, d *harness.Daemon, n int) error {
	if err := fill(ctx, d, n); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		var q queueTotals
		if err := d.Call(ctx, "GET", "/v1/queue?limit=1", nil, &q); err != nil {
			return err
		}
		if q.Totals.Completed == n {
			return nil
		}
		if q.Totals.Failed > 0 || q.Totals.Cancelled > 0 {
			return fmt.Errorf("%d jobs failed and %d were cancelled", q.Totals.Failed, q.Totals.Cancelled)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("cannot run %d jobs: %w (%d completed)", n, context.Cause(ctx), q.Totals.Completed)
		}
	}
}

type queueTotals struct {
	Totals struct {
		Pending   int `json:"pending"`
		Completed int `json:"completed"`
		Failed    int `json:"failed"`
		Cancelled int `json:"cancelled"`
	} `json:"totals"`
}

// fill submits n jobs in batches; n is a multiple of batchSize.
func fill(ctx context.Context, d *harness.Daemon, n int) error {
	c, err := d.Dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	request := batchRequest(batchSize)
	for range n / batchSize {
		status, body, err := c.Do(request)
		if err == nil && status != 202 {
			err = &harness.StatusError{Status: status, Body: string(body)}
		}
		if err != nil {
			return fmt.Errorf("cannot submit %d jobs: %w", n, err)
		}
	}
	return nil
}

func wantPending(ctx context.Context, d *harness.Daemon, n int) error {
	var q queueTotals
	if err := d.Call(ctx, "GET", "/v1/queue?limit=1", nil, &q); err != nil {
		return err
	}
	if q.Totals.Pending != n {
		return fmt.Errorf("%d jobs are pending after the restart, not %d", q.Totals.Pending, n)
	}
	return nil
}
