package rows

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"github.com/cjmd/cjmd/bench/harness"
)

// start: from the request to load a plugin until its worker is ready, and the
// daemon's own account of it, beside an interpreter that does nothing.
func start(ctx context.Context, b *harness.Bench) (_ []harness.Result, err error) {
	d, err := b.Daemon(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Stop()) }()
	var requests, spawns, pass []time.Duration
	for i := range b.Times(8, 40) + 2 {
		bare, err := pythonPass(ctx, b)
		if err != nil {
			return nil, err
		}
		request, spawn, err := loadOnce(ctx, d)
		if err != nil {
			return nil, err
		}
		if i >= 2 {
			pass, requests, spawns = append(pass, bare), append(requests, request), append(spawns, spawn)
		}
	}
	limit := harness.Milliseconds(harness.Quantile(pass, 0.5))
	return []harness.Result{
		harness.Of("start", "spawn to ready: p50", harness.Milliseconds(harness.Quantile(spawns, 0.5)), "ms").
			Against("python3 -c pass, ms", limit).RatioAtMost(2.5),
		harness.Of("start", "request to ready: p50", harness.Milliseconds(harness.Quantile(requests, 0.5)), "ms").
			Against("python3 -c pass, ms", limit),
	}, nil
}

func pythonPass(ctx context.Context, b *harness.Bench) (time.Duration, error) {
	begin := time.Now()
	if err := exec.CommandContext(ctx, b.Python, "-c", "pass").Run(); err != nil {
		return 0, fmt.Errorf("cannot run Python: %w", err)
	}
	return time.Since(begin), nil
}

// loadOnce loads and unloads; request is as the client sees it, spawn as the
// daemon does.
func loadOnce(ctx context.Context, d *harness.Daemon) (request, spawn time.Duration, err error) {
	var plugin struct {
		Worker struct {
			State     string    `json:"state"`
			StartedAt time.Time `json:"started_at"`
			ReadyAt   time.Time `json:"ready_at"`
		} `json:"worker"`
	}
	begin := time.Now()
	if err := d.Call(ctx, "POST", "/v1/plugins/noop/load", nil, &plugin); err != nil {
		return 0, 0, err
	}
	request = time.Since(begin)
	w := plugin.Worker
	if w.State != "ready" || w.ReadyAt.IsZero() || w.StartedAt.IsZero() {
		return 0, 0, fmt.Errorf("the worker is %q after its load", w.State)
	}
	return request, w.ReadyAt.Sub(w.StartedAt), d.Call(ctx, "POST", "/v1/plugins/noop/unload", nil, nil)
}
