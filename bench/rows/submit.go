package rows

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"golang.org/x/sync/errgroup"

	"github.com/cjmd/cjmd/bench/harness"
	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/jobs/sqlitestore"
)

const (
	submitBody = `{"plugin":"noop",` + `"args":["a.wav"],"kwargs":{"language":"en"},"labels":{"from":"bench"}}`
	batchSize  = 500
)

// submit: durable submits, alone and in batches, to a queue that is paused,
// beside the store without anything around it.
func submit(ctx context.Context, b *harness.Bench) (_ []harness.Result, err error) {
	slice := b.For(250*time.Millisecond, 3*time.Second)
	repeats := b.Times(3, 5)
	d, err := b.Daemon(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Stop()) }()
	if err := d.Call(ctx, "POST", "/v1/queue/pause", nil, nil); err != nil {
		return nil, err
	}
	store, err := openStore(ctx, b)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	one := harness.Request("POST", "/v1/jobs", "", []byte(submitBody))
	var out []harness.Result
	for _, clients := range []int{1, 16, 64} {
		var loads []harness.Load
		var alone []float64
		for i := range repeats + 1 {
			a, err := storeAlone(ctx, store, clients, 1, slice/2)
			if err != nil {
				return nil, err
			}
			l, err := harness.RunLoad(ctx, clients, slice, d.Target(one, 202))
			if err != nil {
				return nil, fmt.Errorf("%d clients: %w", clients, err)
			}
			if i > 0 {
				loads, alone = append(loads, l), append(alone, a)
			}
		}
		l := harness.MedianLoad(loads)
		name := fmt.Sprintf("%d clients", clients)
		if clients == 1 {
			name = "1 client"
		}
		rate := harness.Of("submit", name+": jobs", l.Rate, "1/s").Against("store alone, jobs/s", harness.Median(alone))
		if clients == 64 {
			rate = rate.AtLeast(8000)
		}
		out = append(out, rate, harness.Of("submit", name+": p50", harness.Milliseconds(l.P50), "ms"),
			harness.Of("submit", name+": p99", harness.Milliseconds(l.P99), "ms"))
	}
	batch, err := submitBatches(ctx, b, d, store)
	return append(out, batch), err
}

// submitBatches runs one client; every request holds batchSize jobs.
func submitBatches(ctx context.Context, b *harness.Bench, d *harness.Daemon, store *sqlitestore.Store) (harness.Result, error) {
	request := batchRequest(batchSize)
	slice := b.For(250*time.Millisecond, 3*time.Second)
	var rates, alone []float64
	for i := range b.Times(3, 5) + 1 {
		a, err := storeAlone(ctx, store, 1, batchSize, slice/2)
		if err != nil {
			return harness.Result{}, err
		}
		l, err := harness.RunLoad(ctx, 2, slice, d.Target(request, 202))
		if err != nil {
			return harness.Result{}, fmt.Errorf("batch: %w", err)
		}
		if i > 0 {
			rates, alone = append(rates, l.Rate*batchSize), append(alone, a)
		}
	}
	return harness.Of("submit", fmt.Sprintf("batches of %d, 2 clients: jobs", batchSize), harness.Median(rates), "1/s").
		Against("store alone, jobs/s", harness.Median(alone)).AtLeast(30000), nil
}

func batchRequest(n int) []byte {
	body := append([]byte(`{"jobs":[`), bytes.Repeat([]byte(submitBody+","), n)...)
	body = append(body[:len(body)-1], "]}"...)
	return harness.Request("POST", "/v1/jobs:batch", "", body)
}

func openStore(ctx context.Context, b *harness.Bench) (*sqlitestore.Store, error) {
	dir, err := b.TempDir("store")
	if err != nil {
		return nil, fmt.Errorf("cannot make a directory: %w", err)
	}
	s, err := sqlitestore.Open(ctx, sqlitestore.Options{Dir: dir})
	if err != nil {
		return nil, err
	}
	s.OnCommit(func([]events.Event) {})
	return s, nil
}

// storeAlone is how many jobs per second the store makes durable when nothing
// but it runs.
func storeAlone(ctx context.Context, store *sqlitestore.Store, clients, size int, d time.Duration) (float64, error) {
	var stored atomic.Int64
	begin := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for range clients {
		g.Go(func() error {
			for time.Since(begin) < d {
				rows := make([]jobs.NewJob, size)
				for i := range rows {
					rows[i] = newJob()
				}
				if _, err := store.Write(jobs.Write{Insert: rows}).Wait(ctx); err != nil {
					return fmt.Errorf("cannot store: %w", err)
				}
				stored.Add(int64(size))
			}
			return nil
		})
	}
	err := g.Wait()
	return float64(stored.Load()) / time.Since(begin).Seconds(), err
}

func newJob() jobs.NewJob {
	id, now := jobs.ID(ulid.Make().String()), time.Now().UTC()
	return jobs.NewJob{
		Job: jobs.Job{ID: id, Status: jobs.Pending, Revision: 1, CreatedAt: now, Submitter: "bench", Spec: jobs.Spec{
			Instance: "noop", Args: json.RawMessage(`["a.wav"]`), Kwargs: json.RawMessage(`{"language":"en"}`),
			Labels: map[string]string{"from": "bench"}, MaxAttempts: 3,
		}},
		Events: []events.Draft{{Kind: events.JobSubmitted, Job: string(id), Instance: "noop", At: now, Data: map[string]any{"priority": 0}}},
	}
}
