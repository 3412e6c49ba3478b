package sqlitestore_test

import (
	"context"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/jobs"
)

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// What 100,000 waiting jobs cost in memory after a restart (their arguments
// stay on disk).
func TestQueue_PendingJobsAreLight(t *testing.T) {
	const n = 20_000
	dir := t.TempDir()
	q, st := openQueue(t, dir)
	subs := make([]jobs.Submission, 500)
	for i := range subs {
		subs[i] = jobs.Submission{Spec: spec, Submitter: "bench"}
	}
	for range n / len(subs) {
		_, err := q.Submit(context.Background(), subs)
		require.NoError(t, err)
	}
	require.NoError(t, q.Close())
	require.NoError(t, st.Close())
	before := heap()
	q, st = openQueue(t, dir)
	each := (heap() - before) / n
	require.EqualValues(t, n, q.Totals().Pending)
	t.Logf("%d bytes for each pending job", each)
	require.Less(t, each, uint64(700))
	require.NoError(t, q.Close())
	require.NoError(t, st.Close())
}
