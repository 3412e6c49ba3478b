package rows

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/cjmd/cjmd/bench/harness"
)

const (
	treeSize    = 20 // processes besides the worker
	forcedGrace = 100 * time.Millisecond
)

// cancelRow: from the request to cancel until the job is final. Cooperative:
// the plugin obeys at once. Forced: it and twenty children hear nothing, and all
// of them have to be gone.
func cancelRow(ctx context.Context, b *harness.Bench) (_ []harness.Result, err error) {
	d, err := b.Daemon(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Stop()) }()
	polite, err := harness.Repeat(b.Times(12, 100), func() (time.Duration, error) { return cancelOnce(ctx, d, false) })
	if err != nil {
		return nil, err
	}
	forced, err := harness.Repeat(b.Times(3, 10), func() (time.Duration, error) { return cancelOnce(ctx, d, true) })
	if err != nil {
		return nil, err
	}
	grace := harness.Milliseconds(2 * forcedGrace)
	return []harness.Result{
		harness.Of("cancel", "cooperative: p50", harness.Milliseconds(harness.Quantile(polite, 0.5)), "ms").AtMost(20),
		harness.Of("cancel", "cooperative: p99", harness.Milliseconds(harness.Quantile(polite, 0.99)), "ms"),
		harness.Of("cancel", "forced, 20 processes: slowest", harness.Milliseconds(harness.Quantile(forced, 1)), "ms").
			Against("grace, ms", grace).AtMost(grace + 100),
	}, nil
}

// cancelOnce starts a job, cancels it and returns how long it took until it was
// final and, when forced, no process of it was left.
func cancelOnce(ctx context.Context, d *harness.Daemon, forced bool) (time.Duration, error) {
	children, tag := 0, "cjmd-bench-"+ulid.Make().String()
	if forced {
		children = treeSize
	}
	var job struct {
		ID     string `json:"id"`
		Status string `json:"status"`
	}
	grace := fmt.Sprintf("%dms", forcedGrace.Milliseconds())
	if err := d.Call(ctx, "POST", "/v1/jobs", map[string]any{
		"plugin": "stubborn", "stream": true, "max_attempts": 1, "cancel_grace": grace, "interrupt_grace": grace,
		"kwargs": map[string]any{"deaf": forced, "children": children, "tag": tag},
	}, &job); err != nil {
		return 0, err
	}
	if err := firstChunk(ctx, d, job.ID); err != nil {
		return 0, err
	}
	if err := awaitTagged(ctx, tag, children); err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := d.Call(ctx, "POST", "/v1/jobs/"+job.ID+"/cancel", nil, nil); err != nil {
		return 0, err
	}
	if err := d.Call(ctx, "GET", "/v1/jobs/"+job.ID+"?wait=30s", nil, &job); err != nil {
		return 0, err
	}
	took := time.Since(begin)
	if job.Status != "cancelled" {
		return 0, fmt.Errorf("the job is %s after its cancel", job.Status)
	}
	if !forced {
		return took, nil
	}
	n, err := tagged(tag)
	if err == nil && n > 0 {
		err = fmt.Errorf("%d processes outlived the forced cancel, which took %s", n, took)
	}
	return took, err
}

// awaitTagged waits until the job has all of its children.
func awaitTagged(ctx context.Context, tag string, children int) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		n, err := tagged(tag)
		if err != nil || n == children {
			return err
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return fmt.Errorf("cannot see the %d children of the job: found %d: %w", children, n, err)
		}
	}
}

// firstChunk waits until the job runs.
func firstChunk(ctx context.Context, d *harness.Daemon, job string) error {
	c, err := d.Dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	events, err := c.Stream(harness.Request("GET", "/v1/jobs/"+job+"/stream", "", nil))
	if err != nil {
		return err
	}
	for {
		kind, _, err := events.Next()
		if err != nil {
			return fmt.Errorf("the job never ran: %w", err)
		}
		if string(kind) == "chunk" {
			return nil
		}
	}
}

// tagged counts the processes that have tag on their command line, in whatever
// PID namespace they are. One that is exiting has none any more.
func tagged(tag string) (int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, fmt.Errorf("cannot list processes: %w", err)
	}
	n := 0
	for _, path := range dirs {
		if text, err := os.ReadFile(path); err == nil && bytes.Contains(text, []byte(tag)) {
			n++
		}
	}
	return n, nil
}
