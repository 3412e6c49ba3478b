package joblog

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/events"
)

// A reader that stays away holds a few records, or one large one.
func TestReader_HoldsFewBytes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := New(Options{Path: func(id string) string { return filepath.Join(dir, id) }, Limits: Limits{RingRecords: 1},
		Journal: func(context.Context, string, events.Seq) ([]events.Event, error) { return nil, nil }})
	l, err := s.Open(t.Context(), "j")
	require.NoError(t, err)
	defer l.Release()
	for range 100 {
		require.NoError(t, l.Append(KindChunk, time.Now(), make([]byte, 100<<10)))
	}
	r, err := s.Reader(t.Context(), "j", 0)
	require.NoError(t, err)
	defer r.Close()
	_, err = r.Next(t.Context())
	require.NoError(t, err)
	require.Len(t, r.buf, 2, "with the one that was given out, the first to reach 256 KiB")
}

// A record of 50 MB passes through memory and does not stay there.
func TestLog_HugeRecordIsNotKeptInMemory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := New(Options{Path: func(id string) string { return filepath.Join(dir, id) },
		Journal: func(context.Context, string, events.Seq) ([]events.Event, error) { return nil, nil }})
	l, err := s.Open(t.Context(), "j")
	require.NoError(t, err)
	defer l.Release()
	r, err := s.Reader(t.Context(), "j", 0)
	require.NoError(t, err)
	defer r.Close()
	sizes := []int{10, 50 << 20, 20, 30}
	for _, n := range sizes {
		require.NoError(t, l.Append(KindChunk, time.Now(), make([]byte, n)))
	}
	require.Equal(t, 50, l.ringLen)
	require.Less(t, cap(l.scratch), 2<<20)
	for i, n := range sizes {
		rec, err := r.Next(t.Context())
		require.NoError(t, err)
		require.Equal(t, uint64(i+1), rec.N)
		require.Len(t, rec.Data, n)
	}
}

// States that are committed while a log is being opened are in it once, whether
// the journal was read before or after.
func TestLog_StatesCommittedWhileItOpens(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	state := func(seq events.Seq) events.Event {
		return events.Event{Seq: seq, Kind: events.JobPhase, Job: "j", Data: []byte("{}")}
	}
	var s *Set
	s = New(Options{Path: func(id string) string { return filepath.Join(dir, id) },
		Journal: func(context.Context, string, events.Seq) ([]events.Event, error) {
			s.Committed([]events.Event{state(4), state(7)})
			return []events.Event{state(2), state(4)}, nil
		}})
	l, err := s.Open(t.Context(), "j")
	require.NoError(t, err)
	defer l.Release()
	var seqs []events.Seq
	for _, rec := range l.ring {
		seqs = append(seqs, rec.seq)
	}
	require.Equal(t, []events.Seq{2, 4, 7}, seqs)
}
