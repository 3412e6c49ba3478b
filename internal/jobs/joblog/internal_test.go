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
