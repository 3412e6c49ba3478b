package rows

import (
	"context"
	"errors"
	"time"

	"github.com/cjmd/cjmd/bench/harness"
)

// idle: what the daemon takes of a core while nothing is to be done, with the
// default configuration: it samples at the idle rate.
func idle(ctx context.Context, b *harness.Bench) (_ []harness.Result, err error) {
	d, err := b.Daemon(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Stop()) }()
	if err := pause(ctx, 500*time.Millisecond); err != nil { // what belongs to its start
		return nil, err
	}
	before, err := d.ExactCPU()
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	if err := pause(ctx, b.For(2*time.Second, 20*time.Second)); err != nil {
		return nil, err
	}
	after, err := d.ExactCPU()
	if err != nil {
		return nil, err
	}
	share := 100 * float64(after-before) / float64(time.Since(begin))
	return []harness.Result{harness.Of("idle", "processor time", share, "% of a core").AtMost(0.2)}, nil
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
