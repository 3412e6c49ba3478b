package harness

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// Load is what a number of clients achieved in one repeat.
type Load struct {
	Rate float64 // per second, of all together
	P50  time.Duration
	P99  time.Duration
}

// RunLoad lets clients run op over and over for at least d, each on a
// connection of its own, and counts what was finished. op's n tells its runs
// apart, beginning with 0.
func RunLoad(ctx context.Context, clients int, d time.Duration, dial func(context.Context) (*Client, error), op func(c *Client, client, n int) error) (Load, error) {
	conns := make([]*Client, clients)
	defer func() {
		for _, c := range conns {
			if c != nil {
				_ = c.Close()
			}
		}
	}()
	for i := range conns {
		c, err := dial(ctx)
		if err != nil {
			return Load{}, err
		}
		_ = c.SetDeadline(time.Now().Add(d + 30*time.Second))
		conns[i] = c
	}
	laps := make([][]time.Duration, clients)
	ends := make([]time.Time, clients)
	begin := time.Now()
	until := begin.Add(d)
	g, ctx := errgroup.WithContext(ctx)
	for i, c := range conns {
		g.Go(func() error {
			last := time.Now()
			for n := 0; last.Before(until) && ctx.Err() == nil; n++ {
				if err := op(c, i, n); err != nil {
					return err
				}
				now := time.Now()
				laps[i] = append(laps[i], now.Sub(last))
				last = now
			}
			ends[i] = last
			return ctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return Load{}, err
	}
	all := slices.Concat(laps...)
	took := slices.MaxFunc(ends, time.Time.Compare).Sub(begin)
	return Load{Rate: float64(len(all)) / took.Seconds(), P50: Quantile(all, 0.5), P99: Quantile(all, 0.99)}, nil
}

// Post is an op that sends one prepared request and wants one of the statuses.
func Post(request []byte, statuses ...int) func(*Client, int, int) error {
	return func(c *Client, _, _ int) error {
		status, body, err := c.Do(request)
		if err != nil {
			return err
		}
		if !slices.Contains(statuses, status) {
			return &StatusError{Status: status, Body: string(body)}
		}
		return nil
	}
}

// MedianLoad takes the medians of several repeats.
func MedianLoad(repeats []Load) Load {
	pick := func(f func(Load) float64) float64 {
		v := make([]float64, len(repeats))
		for i, r := range repeats {
			v[i] = f(r)
		}
		return Median(v)
	}
	return Load{
		Rate: pick(func(l Load) float64 { return l.Rate }),
		P50:  time.Duration(pick(func(l Load) float64 { return float64(l.P50) })),
		P99:  time.Duration(pick(func(l Load) float64 { return float64(l.P99) })),
	}
}

// Repeat runs f several times after one run that does not count.
func Repeat[T any](times int, f func() (T, error)) ([]T, error) {
	out := make([]T, 0, times)
	for i := range times + 1 {
		v, err := f()
		if err != nil {
			return nil, fmt.Errorf("repeat %d: %w", i, err)
		}
		if i > 0 {
			out = append(out, v)
		}
	}
	return out, nil
}
