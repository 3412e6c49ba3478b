package rows

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

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
	polite, err := harness.Repeat(b.Times(20, 100), func() (time.Duration, error) { return cancelOnce(ctx, d, false) })
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

// cancelOnce starts a job, cancels it and returns how long it took to be final.
func cancelOnce(ctx context.Context, d *harness.Daemon, forced bool) (time.Duration, error) {
	children := 0
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
		"kwargs": map[string]any{"deaf": forced, "children": children},
	}, &job); err != nil {
		return 0, err
	}
	pids, err := firstChunk(ctx, d, job.ID)
	if err != nil {
		return 0, err
	}
	if len(pids) != children+1 {
		return 0, fmt.Errorf("the plugin told of %d processes, not %d", len(pids), children+1)
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
	if forced {
		for _, pid := range pids {
			if alive(pid) {
				return 0, fmt.Errorf("process %d outlived the forced cancel", pid)
			}
		}
	}
	return took, nil
}

// firstChunk waits until the job runs and returns the processes it told of.
func firstChunk(ctx context.Context, d *harness.Daemon, job string) ([]int, error) {
	c, err := d.Dial(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	events, err := c.Stream(harness.Request("GET", "/v1/jobs/"+job+"/stream", "", nil))
	if err != nil {
		return nil, err
	}
	for {
		kind, data, err := events.Next()
		if err != nil {
			return nil, fmt.Errorf("the job never ran: %w", err)
		}
		if string(kind) != "chunk" {
			continue
		}
		var chunk struct {
			PIDs []int `json:"pids"`
		}
		if err := json.Unmarshal(data, &chunk); err != nil {
			return nil, fmt.Errorf("cannot read a chunk: %w", err)
		}
		return chunk.PIDs, nil
	}
}

// alive reports whether a process still runs; a zombie does not.
func alive(pid int) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}
