package rows

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cjmd/cjmd/bench/harness"
)

// stream: chunks of one Python generator to readers of its event stream, beside
// the same generator over a bare socketpair.
func stream(ctx context.Context, b *harness.Bench) (_ []harness.Result, err error) {
	d, err := b.Daemon(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Stop()) }()
	raw, err := b.Raw(ctx, "stream", "chunks", "bench_chunks", "Chunks")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, raw.Close()) }()
	if err := d.Call(ctx, "POST", "/v1/plugins/chunks/load", nil, nil); err != nil {
		return nil, err
	}
	var limits, one []float64
	count := b.Times(20_000, 200_000)
	for i := range b.Times(3, 5) + 1 {
		limit, err := rawStream(raw, count)
		if err != nil {
			return nil, err
		}
		rate, err := streamOne(ctx, d, count)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			limits, one = append(limits, limit), append(one, rate)
		}
	}
	limit := harness.Median(limits)
	many, err := harness.Repeat(b.Times(2, 3), func() (float64, error) { return streamMany(ctx, d, 100, b.Times(3_000, 20_000)) })
	if err != nil {
		return nil, err
	}
	stalled, err := stall(ctx, b, d)
	if err != nil {
		return nil, err
	}
	return append([]harness.Result{
		harness.Of("stream", "1 reader: chunks", harness.Median(one), "1/s").Against("bare socketpair, chunks/s", limit).RatioAtLeast(0.4),
		harness.Of("stream", "100 readers: chunks to each", harness.Median(many), "1/s").Against("bare socketpair, chunks/s", limit),
		harness.Of("stream", "100 readers: deliveries", 100*harness.Median(many), "1/s"),
	}, stalled...), nil
}

func rawStream(raw *harness.Raw, count int) (float64, error) {
	if err := raw.Send(map[string]any{"count": count}); err != nil {
		return 0, err
	}
	var first time.Time
	for n := 0; ; n++ {
		chunk, err := raw.Receive()
		if err != nil {
			return 0, err
		}
		if n == 0 {
			first = time.Now()
		}
		if len(chunk) == 0 {
			if n != count {
				return 0, fmt.Errorf("the raw loop sent %d chunks, not %d", n, count)
			}
			return float64(count) / time.Since(first).Seconds(), nil
		}
	}
}

func chunksBody(count int, every time.Duration, pad int) []byte {
	text, err := json.Marshal(map[string]any{"kwargs": map[string]any{"count": count, "every": every.Seconds(), "pad": pad}})
	if err != nil {
		panic(err) // numbers and strings can be encoded
	}
	return text
}

// streamOne submits and follows in one request; from the first chunk to the end.
func streamOne(ctx context.Context, d *harness.Daemon, count int) (float64, error) {
	return streamFrom(ctx, d, "chunks", count)
}

func streamFrom(ctx context.Context, d *harness.Daemon, plugin string, count int) (float64, error) {
	c, err := d.Dial(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	events, err := c.Stream(harness.Request("POST", "/v1/plugins/"+plugin+"/execute_stream", "", chunksBody(count, 0, 0)))
	if err != nil {
		return 0, err
	}
	first, last, err := readChunks(events, count, nil)
	return float64(count) / last.Sub(first).Seconds(), err
}

// readChunks reads a stream to its end and wants exactly count chunks. each,
// where given, sees them.
func readChunks(events *harness.Events, count int, each func(data []byte)) (first, last time.Time, err error) {
	n, status := 0, ""
	for {
		kind, data, err := events.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return first, last, err
		}
		switch string(kind) {
		case "chunk":
			if n == 0 {
				first = time.Now()
			}
			n++
			if n == count {
				last = time.Now()
			}
			if each != nil {
				each(data)
			}
		case "job.completed", "job.failed", "job.cancelled":
			status = string(kind)
		case "gap":
			return first, last, fmt.Errorf("the stream has a gap: %s", data)
		}
	}
	if n != count || status != "job.completed" {
		return first, last, fmt.Errorf("the stream ended with %q after %d chunks of %d", status, n, count)
	}
	return first, last, nil
}

// held is a streaming job that waits until its readers are there.
func held(ctx context.Context, d *harness.Daemon, count int, every time.Duration, pad int) (string, error) {
	var job struct {
		ID string `json:"id"`
	}
	err := d.Call(ctx, "POST", "/v1/jobs", map[string]any{"plugin": "chunks", "stream": true, "hold": true,
		"kwargs": map[string]any{"count": count, "every": every.Seconds(), "pad": pad}}, &job)
	return job.ID, err
}

// readers opens n streams of a job. The caller closes the clients.
func readers(ctx context.Context, d *harness.Daemon, job string, n int) (clients []*harness.Client, events []*harness.Events, err error) {
	request := harness.Request("GET", "/v1/jobs/"+job+"/stream", "", nil)
	for range n {
		c, err := d.Dial(ctx)
		if err != nil {
			return clients, events, err
		}
		clients = append(clients, c)
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		e, err := c.Stream(request)
		if err != nil {
			return clients, events, err
		}
		events = append(events, e)
	}
	return clients, events, nil
}

func closeAll(clients []*harness.Client) {
	for _, c := range clients {
		_ = c.Close()
	}
}

// streamMany is the rate at which each of n readers got the chunks, the slowest
// counted.
func streamMany(ctx context.Context, d *harness.Daemon, n, count int) (float64, error) {
	job, err := held(ctx, d, count, 0, 0)
	if err != nil {
		return 0, err
	}
	clients, events, err := readers(ctx, d, job, n)
	defer closeAll(clients)
	if err != nil {
		return 0, err
	}
	firsts, lasts := make([]time.Time, n), make([]time.Time, n)
	var g errgroup.Group
	for i, e := range events {
		g.Go(func() (err error) {
			firsts[i], lasts[i], err = readChunks(e, count, nil)
			return err
		})
	}
	if err := d.Call(ctx, "POST", "/v1/jobs/"+job+"/release", nil, nil); err != nil {
		closeAll(clients)
		_ = g.Wait() // they end because of the close
		return 0, err
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	took := slices.MaxFunc(lasts, time.Time.Compare).Sub(slices.MinFunc(firsts, time.Time.Compare))
	return float64(count) / took.Seconds(), nil
}

const (
	pacedEvery   = 2500 * time.Microsecond // slower than the worker gathers: each chunk leaves at once
	pacedPad     = 4096
	pacedReaders = 10
)

// stall compares the delay from yield to reader, of readers that keep up, with
// and without another one that never reads.
func stall(ctx context.Context, b *harness.Bench, d *harness.Daemon) ([]harness.Result, error) {
	count := b.Times(240, 2000)
	var without, with, p50 []float64
	for i := range b.Times(3, 5) + 1 {
		quiet, err := paced(ctx, d, count, false)
		if err != nil {
			return nil, err
		}
		disturbed, err := paced(ctx, d, count, true)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			p50 = append(p50, harness.Milliseconds(harness.Quantile(quiet, 0.5)))
			without = append(without, harness.Milliseconds(harness.Quantile(quiet, 0.99)))
			with = append(with, harness.Milliseconds(harness.Quantile(disturbed, 0.99)))
		}
	}
	a, z := harness.Median(without), harness.Median(with)
	return []harness.Result{
		harness.Of("stream", "yield to reader: p50", harness.Median(p50), "ms"),
		harness.Of("stream", "yield to reader: p99, one reader stalled", z, "ms").Against("none stalled, ms", a),
		harness.Of("stream", "p99 more by the stalled reader", z-a, "ms").AtMost(1),
	}, nil
}

// paced returns the delays of all chunks to all readers.
func paced(ctx context.Context, d *harness.Daemon, count int, stalled bool) ([]time.Duration, error) {
	job, err := held(ctx, d, count, pacedEvery, pacedPad)
	if err != nil {
		return nil, err
	}
	clients, events, err := readers(ctx, d, job, pacedReaders)
	defer closeAll(clients)
	if err != nil {
		return nil, err
	}
	if stalled {
		c, err := stalledReader(ctx, d, job)
		if err != nil {
			return nil, err
		}
		defer func() { _ = c.Close() }()
	}
	delays := make([][]time.Duration, pacedReaders)
	var g errgroup.Group
	for i, e := range events {
		g.Go(func() error {
			_, _, err := readChunks(e, count, func(data []byte) {
				delays[i] = append(delays[i], time.Duration(time.Now().UnixNano()-yieldedAt(data)))
			})
			return err
		})
	}
	if err := d.Call(ctx, "POST", "/v1/jobs/"+job+"/release", nil, nil); err != nil {
		closeAll(clients)
		_ = g.Wait() // they end because of the close
		return nil, err
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return slices.Concat(delays...), nil
}

// yieldedAt finds the chunk's own time without decoding all of it.
func yieldedAt(data []byte) int64 {
	var chunk struct {
		At int64 `json:"at"`
	}
	if json.Unmarshal(data, &chunk) != nil {
		return 0
	}
	return chunk.At
}

// stalledReader opens a stream and never reads from it.
func stalledReader(ctx context.Context, d *harness.Daemon, job string) (net.Conn, error) {
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unix", d.Socket)
	if err != nil {
		return nil, fmt.Errorf("cannot reach the daemon: %w", err)
	}
	if _, err := c.Write(harness.Request("GET", "/v1/jobs/"+job+"/stream", "", nil)); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("cannot send a request: %w", err)
	}
	return c, nil
}
