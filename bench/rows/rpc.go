package rows

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cjmd/cjmd/bench/harness"
)

const executeBody = `{"args":["a.wav"],"kwargs":{"language":"en"}}`

// rpc: from the request to the result of a plugin that does nothing, with a
// durable commit of the job and of its end. Beside it the same Python loop (the
// worker runtime) driven by a bare Go loop, and the plugin's class in the
// shortest Python loop there is.
func rpc(ctx context.Context, b *harness.Bench) (_ []harness.Result, err error) {
	d, err := b.Daemon(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Stop()) }()
	raw, err := b.Raw(ctx, "calls", "noop", "bench_noop", "Noop")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, raw.Close()) }()
	worker, err := b.RawWorker(ctx, "noop", "bench_noop", "Noop", []byte(executeBody))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, worker.Close()) }()
	for _, plugin := range []string{"noop", "noop16"} {
		if err := d.Call(ctx, "POST", "/v1/plugins/"+plugin+"/load", nil, nil); err != nil {
			return nil, err
		}
	}
	execute := func(plugin string) []byte {
		return harness.Request("POST", "/v1/plugins/"+plugin+"/execute", "", []byte(executeBody))
	}
	wait := harness.Request("POST", "/v1/jobs?wait=30s", "", []byte(`{"plugin":"noop",`+executeBody[1:]))
	cases := []struct {
		name    string
		clients int
		request []byte
	}{
		{"1 client", 1, execute("noop")},
		{"16 clients", 16, execute("noop")},
		{"16 clients, concurrency 16", 16, execute("noop16")},
		{"16 clients, POST /v1/jobs?wait=", 16, wait},
	}
	loads, costs := make([][]harness.Load, len(cases)), make([][]float64, len(cases))
	var shortest, bare []float64
	slice := b.For(350*time.Millisecond, 3*time.Second)
	repeats := b.Times(3, 5)
	for i := range repeats + 1 { // the first is for warming up
		short, err := callRate(slice/4, func() error { return rawCall(raw) })
		if err != nil {
			return nil, err
		}
		loop, err := callRate(slice/2, worker.Execute)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			shortest, bare = append(shortest, short), append(bare, loop)
		}
		for k, c := range cases {
			l, cpu, err := costOf(d, func() (harness.Load, error) {
				return harness.RunLoad(ctx, c.clients, slice, d.Target(c.request, 200))
			})
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			if i > 0 {
				loads[k] = append(loads[k], l)
				costs[k] = append(costs[k], cpu)
			}
		}
	}
	limit := harness.Median(bare)
	out := []harness.Result{harness.Of("rpc", "raw loop: calls", limit, "1/s").Against("shortest Python loop, calls/s", harness.Median(shortest))}
	for k, c := range cases {
		l := harness.MedianLoad(loads[k])
		rate := harness.Of("rpc", c.name+": jobs", l.Rate, "1/s").Against("raw loop, calls/s", limit)
		p50 := harness.Of("rpc", c.name+": p50", harness.Milliseconds(l.P50), "ms").Against("raw loop, ms", 1000/limit)
		switch c.name {
		case "1 client":
			p50 = p50.AtMost(1.5)
		case "16 clients":
			rate = rate.RatioAtLeast(0.15)
		}
		out = append(out, rate, p50, harness.Of("rpc", c.name+": p99", harness.Milliseconds(l.P99), "ms"),
			harness.Of("rpc", c.name+": processor time of the daemon, a job", harness.Median(costs[k]), "µs"))
	}
	return out, nil
}

// costOf adds to a load what the daemon took of the processors for one job of it.
func costOf(d *harness.Daemon, load func() (harness.Load, error)) (harness.Load, float64, error) {
	before, err := d.ExactCPU()
	if err != nil {
		return harness.Load{}, 0, err
	}
	begin := time.Now()
	l, err := load()
	if err != nil {
		return l, 0, err
	}
	jobs := l.Rate * time.Since(begin).Seconds()
	after, err := d.ExactCPU()
	return l, micros(after-before) / max(jobs, 1), err
}

// rawCall is one call of the shortest loop.
func rawCall(raw *harness.Raw) error {
	if err := raw.SendText([]byte(executeBody)); err != nil {
		return err
	}
	_, err := raw.Receive()
	return err
}

// callRate is how many calls there are in a second, one after the other.
func callRate(d time.Duration, call func() error) (float64, error) {
	n, begin := 0, time.Now()
	for time.Since(begin) < d {
		for range 32 {
			if err := call(); err != nil {
				return 0, err
			}
			n++
		}
	}
	return float64(n) / time.Since(begin).Seconds(), nil
}
