package joblog_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs/joblog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// box is a Set over a journal in memory.
type box struct {
	*joblog.Set
	dir    string
	limits joblog.Limits

	mu  sync.Mutex
	evs []events.Event
}

func setup(t *testing.T, limits joblog.Limits) *box {
	t.Helper()
	b := &box{dir: t.TempDir(), limits: limits}
	b.start()
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

func (b *box) start() {
	b.Set = joblog.New(joblog.Options{
		Path:    func(id string) string { return filepath.Join(b.dir, id) },
		Journal: b.journal, Limits: b.limits,
	})
}

func (b *box) journal(_ context.Context, id string, after events.Seq) ([]events.Event, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []events.Event
	for _, e := range b.evs {
		if e.Job == id && e.Seq > after {
			out = append(out, e)
		}
	}
	return out, nil
}

// commit stores a state, then tells the set, as the store's writer does.
func (b *box) commit(kind events.Kind) {
	b.mu.Lock()
	e := events.Event{Seq: events.Seq(len(b.evs) + 1), At: time.Unix(5, 0), Kind: kind, Job: "j", Data: []byte("{}")}
	b.evs = append(b.evs, e)
	b.mu.Unlock()
	b.Committed([]events.Event{e})
}

func ctx(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return c
}

func (b *box) open(t testing.TB) *joblog.Log {
	t.Helper()
	l, err := b.Open(ctx(t), "j")
	require.NoError(t, err)
	return l
}

// read returns what is there now as "N:kind" words.
func (b *box) read(t testing.TB, after uint64) string {
	t.Helper()
	r, err := b.Reader(ctx(t), "j", after)
	require.NoError(t, err)
	defer r.Close()
	var out []string
	for n := after; n < r.Newest(); {
		rec, err := r.Next(ctx(t))
		require.NoError(t, err)
		out = append(out, fmt.Sprintf("%d:%s", rec.N, strings.TrimPrefix(rec.Kind, "job.")))
		n = rec.N
	}
	return strings.Join(out, " ")
}

func appendOne(t testing.TB, l *joblog.Log, data string) {
	t.Helper()
	require.NoError(t, l.Append(joblog.KindChunk, time.Unix(7, 9), []byte(data)))
}

func TestLog_StatesAloneMakeNoFile(t *testing.T) {
	t.Parallel()
	b := setup(t, joblog.Limits{})
	b.commit(events.JobSubmitted)
	require.Equal(t, "1:submitted", b.read(t, 0))
	b.commit(events.JobStarted)
	b.commit(events.JobCompleted)
	require.Equal(t, "1:submitted 2:started 3:completed", b.read(t, 0))
	require.NoDirExists(t, filepath.Join(b.dir, "j"))
}

func TestLog_FileBeginsWithTheRecordsReadBefore(t *testing.T) {
	t.Parallel()
	b := setup(t, joblog.Limits{})
	b.commit(events.JobSubmitted)
	b.commit(events.JobStarted)
	before := b.read(t, 0)
	l := b.open(t)
	appendOne(t, l, `{"a":1}`)
	b.commit(events.JobCompleted)
	require.ErrorIs(t, l.Append(joblog.KindChunk, time.Now(), nil), joblog.ErrEnded)
	l.Release()
	require.Equal(t, before+" 3:chunk 4:completed", b.read(t, 0))
	b.start()
	require.Equal(t, before+" 3:chunk 4:completed", b.read(t, 0))
	require.Equal(t, "4:completed", b.read(t, 3))
}

func TestLog_PowerCutLosesTheTailButNoState(t *testing.T) {
	t.Parallel()
	b := setup(t, joblog.Limits{})
	b.commit(events.JobSubmitted)
	b.commit(events.JobStarted)
	l := b.open(t)
	for i := range 10 {
		appendOne(t, l, fmt.Sprint(i))
	}
	b.commit(events.JobRequeued)
	l.Release()
	segs, err := filepath.Glob(filepath.Join(b.dir, "j", "*.seg"))
	require.NoError(t, err)
	require.Len(t, segs, 1)
	whole, err := os.ReadFile(segs[0])
	require.NoError(t, err)
	for cut := range len(whole) {
		require.NoError(t, os.WriteFile(segs[0], whole[:len(whole)-cut], 0o600))
		b.start()
		got := b.read(t, 0)
		require.True(t, strings.HasPrefix(got, "1:submitted 2:started"), got)
		require.True(t, strings.HasSuffix(got, ":requeued"), got)
		require.Equal(t, got, b.read(t, 0))
		if files, _ := filepath.Glob(filepath.Join(b.dir, "j", "*.seg")); len(files) == 0 {
			require.Equal(t, "1:submitted 2:started 3:requeued", got)
		}
	}
	b.start()
	l = b.open(t)
	appendOne(t, l, `"on"`)
	l.Release()
	require.Equal(t, "1:submitted 2:started 3:requeued 4:chunk", b.read(t, 0))
}

func TestLog_BoundedAndTheHoleIsTold(t *testing.T) {
	t.Parallel()
	b := setup(t, joblog.Limits{SegmentBytes: 1000, TotalBytes: 5000, RingRecords: 4})
	b.commit(events.JobSubmitted)
	l := b.open(t)
	defer l.Release()
	stalled, err := b.Reader(ctx(t), "j", 0)
	require.NoError(t, err)
	defer stalled.Close()
	rec, err := stalled.Next(ctx(t))
	require.NoError(t, err)
	require.Equal(t, uint64(1), rec.N)
	for i := range 500 {
		appendOne(t, l, fmt.Sprintf(`"%050d"`, i))
	}
	var size int64
	segs, err := os.ReadDir(filepath.Join(b.dir, "j"))
	require.NoError(t, err)
	for _, s := range segs {
		info, err := s.Info()
		require.NoError(t, err)
		size += info.Size()
	}
	require.LessOrEqual(t, size, int64(6200))
	gap, err := stalled.Next(ctx(t))
	require.NoError(t, err)
	require.Equal(t, joblog.KindGap, gap.Kind)
	var hole struct{ From, To uint64 }
	require.NoError(t, json.Unmarshal(gap.Data, &hole))
	require.Equal(t, uint64(2), hole.From)
	require.Equal(t, gap.N, hole.To)
	for n := gap.N + 1; n <= 501; n++ {
		rec, err := stalled.Next(ctx(t))
		require.NoError(t, err)
		require.Equal(t, n, rec.N)
		require.Equal(t, fmt.Sprintf(`"%050d"`, n-2), string(rec.Data))
		require.Equal(t, time.Unix(7, 9).UTC(), rec.At.UTC())
	}
}

func TestReader_ManyFollowOneLiveLog(t *testing.T) {
	t.Parallel()
	b := setup(t, joblog.Limits{SegmentBytes: 64 << 10, RingRecords: 32})
	b.commit(events.JobStarted)
	l := b.open(t)
	const total, early = 5000, 30 // no reader begins behind the end
	for i := range early {
		appendOne(t, l, fmt.Sprint(i))
	}
	var wg sync.WaitGroup
	for i := range early {
		r, err := b.Reader(ctx(t), "j", uint64(i))
		require.NoError(t, err)
		wg.Go(func() {
			defer r.Close()
			for n := uint64(i + 1); n <= total+2; n++ {
				rec, err := r.Next(ctx(t))
				if err != nil || rec.N != n {
					t.Errorf("reader %d: record %d, %v; want %d", i, rec.N, err, n)
					return
				}
			}
			if _, err := r.Next(ctx(t)); !errors.Is(err, io.EOF) {
				t.Errorf("reader %d: %v after the final record", i, err)
			}
		})
	}
	for i := range total - early {
		appendOne(t, l, fmt.Sprint(early+i))
	}
	b.commit(events.JobFailed)
	wg.Wait()
	l.Release()
}

func TestReader_ResetEndAndClose(t *testing.T) {
	t.Parallel()
	b := setup(t, joblog.Limits{})
	b.commit(events.JobSubmitted)
	b.commit(events.JobStarted)
	r, err := b.Reader(ctx(t), "j", 7)
	require.NoError(t, err)
	_, err = r.Next(ctx(t))
	var reset *joblog.ResetError
	require.ErrorAs(t, err, &reset)
	require.Equal(t, joblog.ResetError{After: 7, Oldest: 1, Newest: 2}, *reset)
	rec, err := r.Next(ctx(t))
	require.NoError(t, err)
	require.Equal(t, uint64(1), rec.N)
	require.NoError(t, errors.Join(r.Close(), r.Close()))
	_, err = r.Next(ctx(t))
	require.ErrorIs(t, err, io.EOF)

	end := make(chan error, 1)
	waiting, err := b.Reader(ctx(t), "j", 2)
	require.NoError(t, err)
	go func() { _, err := waiting.Next(ctx(t)); end <- err }()
	require.NoError(t, b.Close())
	require.ErrorIs(t, <-end, io.EOF, "closing the set ends its readers")
	require.NoError(t, waiting.Close())
	_, err = b.Open(ctx(t), "j")
	require.ErrorIs(t, err, joblog.ErrEnded)
}

func TestLog_FullDiskIsToldLater(t *testing.T) {
	t.Parallel()
	b := setup(t, joblog.Limits{})
	b.commit(events.JobStarted)
	blocker := filepath.Join(b.dir, "j")
	l := b.open(t)
	require.NoError(t, os.WriteFile(blocker, nil, 0o600)) // the log's directory cannot be made
	for range 3 {
		require.Error(t, l.Append(joblog.KindChunk, time.Now(), []byte("1")))
	}
	b.commit(events.JobRequeued)
	require.NoError(t, os.Remove(blocker))
	appendOne(t, l, "2")
	b.commit(events.JobCompleted)
	l.Release()
	require.Equal(t, "1:started 2:requeued 3:log 4:chunk 5:completed", b.read(t, 0))
	r, err := b.Reader(ctx(t), "j", 2)
	require.NoError(t, err)
	defer r.Close()
	rec, err := r.Next(ctx(t))
	require.NoError(t, err)
	require.Contains(t, string(rec.Data), "3 records")
}

func TestChunkData(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ payload, contentType, want string }{
		{`{"a": 1}`, "", `{"a": 1}`},
		{"{\n \"a\": \"x\\ny\"\r\n}", "application/json; charset=utf-8", `{"a":"x\ny"}`},
		{"", "", "null"},
		{"not\njson", "", `{"base64":"bm90Cmpzb24="}`},
		{"text", "text/plain", `{"base64":"dGV4dA==","content_type":"text/plain"}`},
		{`{"type":"x"}`, "application/problem+json", `{"type":"x"}`},
	} {
		require.Equal(t, c.want, string(joblog.ChunkData([]byte(c.payload), c.contentType)))
	}
}

// Whatever happens in whatever order, with restarts in between: numbers never
// change, states are there once and in order, nothing that was appended is lost.
func TestLog_Property(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		b := &box{dir: t.TempDir(), limits: joblog.Limits{SegmentBytes: 200, TotalBytes: 1 << 20, RingRecords: 3}}
		b.start()
		defer func() { require.NoError(rt, b.Close()) }()
		var want []string
		commit := func(kind events.Kind) {
			b.commit(kind)
			want = append(want, fmt.Sprintf("%d:%s", len(want)+1, strings.TrimPrefix(string(kind), "job.")))
		}
		commit(events.JobSubmitted)
		var l *joblog.Log
		release := func() {
			if l != nil {
				l.Release()
				l = nil
			}
		}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			switch rapid.IntRange(0, 4).Draw(rt, "step") {
			case 0:
				commit(events.JobPhase)
			case 1, 2:
				if l == nil {
					l = b.open(t)
				}
				appendOne(t, l, fmt.Sprintf("%q", strings.Repeat("x", rapid.IntRange(0, 90).Draw(rt, "size"))))
				want = append(want, fmt.Sprintf("%d:chunk", len(want)+1))
			case 3:
				release()
			case 4:
				release()
				require.NoError(rt, b.Close())
				b.start()
			}
			after := rapid.IntRange(0, len(want)).Draw(rt, "after")
			require.Equal(rt, strings.Join(want[after:], " "), b.read(t, uint64(after)))
		}
		commit(events.JobCompleted)
		release()
		require.Equal(rt, strings.Join(want, " "), b.read(t, 0))
	})
}

func BenchmarkAppend(b *testing.B) {
	bx := &box{dir: b.TempDir()}
	bx.start()
	defer bx.Close()
	l := bx.open(b)
	defer l.Release()
	data := []byte(`{"text":"a partial hypothesis of some words","start":1.25,"end":2.5}`)
	b.ReportAllocs()
	for range b.N {
		appendOne(b, l, string(data))
	}
}
