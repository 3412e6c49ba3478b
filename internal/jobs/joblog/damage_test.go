package joblog_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs/joblog"
)

func segments(t *testing.T, b *box) (paths []string, size int64) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(b.dir, "j", "*.seg"))
	require.NoError(t, err)
	for _, p := range paths {
		info, err := os.Stat(p)
		require.NoError(t, err)
		size += info.Size()
	}
	return paths, size
}

// A power cut may spoil more than the newest segment, for none is synced: what
// is lost is told as a hole, and what lies behind it is read.
func TestReader_SpoiltSegmentIsAGap(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func([]byte) []byte{
		"cut":    func(b []byte) []byte { return b[:len(b)*2/3] },
		"zeros":  func(b []byte) []byte { return append(b[:len(b)/2], make([]byte, len(b)-len(b)/2)...) },
		"header": func(b []byte) []byte { return make([]byte, len(b)) },
		"empty":  func(b []byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, joblog.Limits{SegmentBytes: 500, RingRecords: 1})
			b.commit(events.JobStarted)
			l := b.open(t)
			for i := range 30 {
				appendOne(t, l, fmt.Sprintf(`"%030d"`, i))
			}
			b.commit(events.JobCompleted)
			l.Release()
			paths, _ := segments(t, b)
			require.Greater(t, len(paths), 3)
			whole, err := os.ReadFile(paths[1])
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(paths[1], spoil(whole), 0o600))
			require.NoError(t, b.Close())
			b.start()
			r, err := b.Reader(ctx(t), "j", 0)
			require.NoError(t, err)
			defer r.Close()
			gaps, next := 0, uint64(1)
			for next <= 32 {
				rec, err := r.Next(ctx(t))
				require.NoError(t, err)
				if rec.Kind == joblog.KindGap {
					gaps++
				} else {
					require.Equal(t, next, rec.N)
				}
				next = rec.N + 1
			}
			require.Equal(t, 1, gaps)
			_, err = r.Next(ctx(t))
			require.ErrorIs(t, err, io.EOF)
		})
	}
}

// A record larger than a segment does not carry the log over its bound.
func TestLog_HugeRecordsStayWithinTheBound(t *testing.T) {
	t.Parallel()
	b := setup(t, joblog.Limits{SegmentBytes: 1000, TotalBytes: 10_000, RingRecords: 1})
	l := b.open(t)
	defer l.Release()
	huge := `"` + strings.Repeat("h", 6000) + `"`
	for i := range 20 {
		for range 10 {
			appendOne(t, l, fmt.Sprintf(`"%060d"`, i))
		}
		appendOne(t, l, huge)
		_, size := segments(t, b)
		require.LessOrEqual(t, size, int64(10_000))
	}
	beyond := `"` + strings.Repeat("b", 20_000) + `"`
	appendOne(t, l, beyond) // larger than the whole bound: kept alone, for it is the newest
	r, err := b.Reader(ctx(t), "j", 220)
	require.NoError(t, err)
	defer r.Close()
	rec, err := r.Next(ctx(t))
	require.NoError(t, err)
	require.Equal(t, beyond, string(rec.Data))
	appendOne(t, l, `1`)
	appendOne(t, l, huge)
	_, size := segments(t, b)
	require.LessOrEqual(t, size, int64(10_000))
}

// What a write that failed left behind the log's end for a moment is nothing
// that a reader may have read ahead.
func TestReader_DoesNotReadBehindTheEnd(t *testing.T) {
	t.Parallel()
	b := setup(t, joblog.Limits{RingRecords: 1})
	l := b.open(t)
	defer l.Release()
	for i := range 10 {
		appendOne(t, l, fmt.Sprint(i))
	}
	paths, size := segments(t, b)
	require.Len(t, paths, 1)
	f, err := os.OpenFile(paths[0], os.O_WRONLY|os.O_APPEND, 0)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteString(strings.Repeat("half a record", 100))
	require.NoError(t, err)
	r, err := b.Reader(ctx(t), "j", 0)
	require.NoError(t, err)
	defer r.Close()
	rec, err := r.Next(ctx(t))
	require.NoError(t, err)
	require.Equal(t, uint64(1), rec.N)
	require.NoError(t, f.Truncate(size))
	for i := range 10 {
		appendOne(t, l, fmt.Sprint(10+i))
	}
	for n := uint64(2); n <= 20; n++ {
		rec, err := r.Next(ctx(t))
		require.NoError(t, err)
		require.Equal(t, n, rec.N)
		require.Equal(t, fmt.Sprint(n-1), string(rec.Data))
	}
}

// Removing the log of a pruned job ends its readers; the next job of that name
// has a log of its own.
func TestSet_RemoveEndsTheOldLog(t *testing.T) {
	t.Parallel()
	b := setup(t, joblog.Limits{})
	b.commit(events.JobStarted)
	l := b.open(t)
	appendOne(t, l, "1")
	b.commit(events.JobCompleted)
	old, err := b.Reader(ctx(t), "j", 3)
	require.NoError(t, err)
	l.Release()
	require.NoError(t, b.Remove("j"))
	_, err = old.Next(ctx(t))
	require.ErrorIs(t, err, io.EOF)
	b.mu.Lock()
	b.evs = nil
	b.mu.Unlock()
	b.commit(events.JobStarted)
	fresh := b.open(t)
	defer fresh.Release()
	require.NoError(t, fresh.Append(joblog.KindChunk, time.Now(), []byte("2")))
	require.NoError(t, old.Close())
	require.NoError(t, fresh.Append(joblog.KindChunk, time.Now(), []byte("3")), "closing the old reader leaves it alone")
	require.Equal(t, "1:started 2:chunk 3:chunk", b.read(t, 0))
}

// Readers and the writer hold one open file each, whatever the number of segments.
func TestReader_OneOpenFileEach(t *testing.T) {
	b := setup(t, joblog.Limits{SegmentBytes: 300, RingRecords: 1})
	open := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		n := 0
		for _, fd := range fds {
			if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, b.dir) {
				n++
			}
		}
		return n
	}
	l := b.open(t)
	for i := range 100 {
		appendOne(t, l, fmt.Sprint(i))
	}
	var readers []*joblog.Reader
	for range 20 {
		r, err := b.Reader(ctx(t), "j", 0)
		require.NoError(t, err)
		for range 50 {
			_, err := r.Next(ctx(t))
			require.NoError(t, err)
		}
		readers = append(readers, r)
	}
	require.LessOrEqual(t, open(), 21)
	for _, r := range readers {
		require.NoError(t, r.Close())
	}
	l.Release()
	require.Zero(t, open())
}
