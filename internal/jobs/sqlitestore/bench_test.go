package sqlitestore_test

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/jobs/sqlitestore"
)

func openQueue(tb testing.TB, dir string) (*jobs.Queue, *sqlitestore.Store) {
	tb.Helper()
	st, err := sqlitestore.Open(context.Background(), sqlitestore.Options{Dir: dir})
	require.NoError(tb, err)
	q, err := jobs.NewQueue(jobs.Options{Store: st, Hub: events.NewHub(events.Options{Source: st}), LogDir: filepath.Join(dir, "logs"), JobDir: filepath.Join(dir, "jobs")})
	require.NoError(tb, err)
	_, err = q.Recover(context.Background())
	require.NoError(tb, err)
	return q, st
}

// perSecond runs n calls of fn from several goroutines.
func perSecond(b *testing.B, workers int, fn func() error) {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ResetTimer()
	for range workers {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := fn(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
}

var spec = jobs.Spec{Instance: "echo", Args: json.RawMessage(`["some text to say", 1, 2, 3]`), Kwargs: json.RawMessage(`{"language":"en"}`)}

func BenchmarkSubmit(b *testing.B) {
	for _, workers := range []int{1, 16, 64, 256} {
		b.Run(fmt.Sprintf("submitters=%d", workers), func(b *testing.B) {
			q, st := openQueue(b, b.TempDir())
			defer st.Close()
			perSecond(b, workers, func() error {
				_, err := q.Submit(context.Background(), []jobs.Submission{{Spec: spec, Submitter: "bench"}})
				return err
			})
		})
	}
}

func BenchmarkSubmitBatchOf100(b *testing.B) {
	q, st := openQueue(b, b.TempDir())
	defer st.Close()
	subs := make([]jobs.Submission, 100)
	for i := range subs {
		subs[i] = jobs.Submission{Spec: spec, Submitter: "bench"}
	}
	perSecond(b, 4, func() error { _, err := q.Submit(context.Background(), subs); return err })
	b.ReportMetric(100*float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
}

// BenchmarkWholeJob is submit, admit, finish with a small result.
func BenchmarkWholeJob(b *testing.B) {
	for _, workers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("clients=%d", workers), func(b *testing.B) {
			q, st := openQueue(b, b.TempDir())
			defer st.Close()
			perSecond(b, workers, func() error {
				ctx := context.Background()
				s, err := q.Submit(ctx, []jobs.Submission{{Spec: spec, Submitter: "bench"}})
				if err != nil {
					return err
				}
				r, err := q.Admit(ctx, s[0].Job.ID, "w")
				if err != nil {
					return err
				}
				_, err = r.Finish(ctx, jobs.Outcome{Status: jobs.Completed, Result: []byte(`{"ok":true}`)})
				return err
			})
		})
	}
}

func BenchmarkChunks(b *testing.B) {
	q, st := openQueue(b, b.TempDir())
	defer st.Close()
	defer q.Close()
	ctx := context.Background()
	s, err := q.Submit(ctx, []jobs.Submission{{Spec: spec}})
	require.NoError(b, err)
	r, err := q.Admit(ctx, s[0].Job.ID, "w")
	require.NoError(b, err)
	payload := []byte(`{"text":"a partial hypothesis of some words","start":1.25,"end":2.5}`)
	b.ResetTimer()
	for range b.N {
		if err := r.Sink().Chunk(ctx, payload, ""); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "chunks/s")
}

// BenchmarkRecover100k is a start with 100,000 pending jobs.
func BenchmarkRecover100k(b *testing.B) {
	dir := b.TempDir()
	q, st := openQueue(b, dir)
	subs := make([]jobs.Submission, 500)
	for i := range subs {
		subs[i] = jobs.Submission{Spec: spec, Submitter: "bench"}
	}
	for range 200 {
		_, err := q.Submit(context.Background(), subs)
		require.NoError(b, err)
	}
	require.NoError(b, st.Close())
	b.ResetTimer()
	for range b.N {
		start := time.Now()
		q, st := openQueue(b, dir)
		b.ReportMetric(time.Since(start).Seconds(), "s/start")
		b.StopTimer()
		require.EqualValues(b, 100_000, q.Totals().Pending)
		require.NoError(b, st.Close())
		b.StartTimer()
	}
}

// BenchmarkMillionPending says what a queue of a million jobs costs: memory for
// each, a start, a submit and a look at what may start.
func BenchmarkMillionPending(b *testing.B) {
	const n, instances = 1_000_000, 20
	dir := b.TempDir()
	st, err := sqlitestore.Open(b.Context(), sqlitestore.Options{Dir: dir})
	require.NoError(b, err)
	q, err := jobs.NewQueue(jobs.Options{Store: st, LogDir: filepath.Join(dir, "logs"), JobDir: filepath.Join(dir, "jobs"), MaxPending: 2 * n})
	require.NoError(b, err)
	subs := make([]jobs.Submission, 1000)
	for i := range subs {
		subs[i] = jobs.Submission{Spec: spec, Submitter: "bench"}
		subs[i].Spec.Instance = fmt.Sprint("echo", i%instances)
	}
	begin := time.Now()
	for range n / len(subs) {
		_, err := q.Submit(b.Context(), subs)
		require.NoError(b, err)
	}
	batched := n / time.Since(begin).Seconds()
	require.NoError(b, st.Close())
	before := heap()
	begin = time.Now()
	if st, err = sqlitestore.Open(b.Context(), sqlitestore.Options{Dir: dir}); err != nil {
		b.Fatal(err)
	}
	defer st.Close()
	q, err = jobs.NewQueue(jobs.Options{Store: st, LogDir: filepath.Join(dir, "logs"), JobDir: filepath.Join(dir, "jobs"), MaxPending: 2 * n})
	require.NoError(b, err)
	_, err = q.Recover(b.Context())
	require.NoError(b, err)
	start, each := time.Since(begin), float64(heap()-before)/n
	b.ResetTimer()
	var submit, pass time.Duration
	for range b.N {
		begin := time.Now()
		_, err := q.Submit(b.Context(), subs[:1])
		require.NoError(b, err)
		submit += time.Since(begin)
		begin = time.Now()
		require.Len(b, q.Groups(8), instances)
		pass += time.Since(begin)
	}
	b.ReportMetric(batched, "batched/s")
	b.ReportMetric(start.Seconds(), "s/start")
	b.ReportMetric(each, "B/job")
	b.ReportMetric(float64(submit.Microseconds())/float64(b.N), "µs/submit")
	b.ReportMetric(float64(pass.Microseconds())/float64(b.N), "µs/pass")
}
