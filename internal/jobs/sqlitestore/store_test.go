package sqlitestore_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/jobs/sqlitestore"
	"github.com/cjmd/cjmd/internal/jobs/storetest"
	"github.com/cjmd/cjmd/internal/plugins"
)

func open(dir string) (jobs.Store, error) {
	st, err := sqlitestore.Open(context.Background(), sqlitestore.Options{Dir: dir})
	if err != nil {
		return nil, err
	}
	return st, nil
}

func TestMain(m *testing.M) {
	fullDiskChild()
	storetest.Child(open)
	goleak.VerifyTestMain(m)
}

func TestStore_Contract(t *testing.T) { storetest.Run(t, open) }

func TestStore_EveryAcknowledgedWriteSurvivesSIGKILL(t *testing.T) {
	t.Parallel()
	storetest.Crash(t, open, 4)
}

func openStore(t *testing.T, dir string) *sqlitestore.Store {
	t.Helper()
	st, err := sqlitestore.Open(t.Context(), sqlitestore.Options{Dir: dir})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, st.Close()) })
	return st
}

func TestOpen_SecondDaemonIsRefusedAndToldTheFirst(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "odd ?name%41#")
	st := openStore(t, dir)
	_, err := sqlitestore.Open(t.Context(), sqlitestore.Options{Dir: dir})
	var locked *sqlitestore.LockedError
	require.ErrorAs(t, err, &locked)
	require.Equal(t, os.Getpid(), locked.PID)
	require.Equal(t, dir, locked.Dir)
	require.NoError(t, st.Close())
	require.FileExists(t, filepath.Join(dir, "cjmd.db"), "whatever the directory is called")
	openStore(t, dir)
}

// Once the checkpoint's statement stayed open, and no later write could commit.
func TestStore_WritesGoOnAfterAnIdleCheckpoint(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	st, err := sqlitestore.Open(t.Context(), sqlitestore.Options{Dir: dir, CheckpointIdle: time.Millisecond})
	require.NoError(t, err)
	defer st.Close()
	for range 3 {
		_, err = st.Record(t.Context(), events.Draft{Kind: events.DaemonStarted})
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			wal, err := os.Stat(filepath.Join(dir, "cjmd.db-wal"))
			return err == nil && wal.Size() == 0
		}, 10*time.Second, time.Millisecond, "the write-ahead log is emptied when idle")
	}
}

func TestInstances_RoundTripWithEvents(t *testing.T) {
	t.Parallel()
	st := openStore(t, t.TempDir())
	ctx := t.Context()
	inst := plugins.Instance{ID: "a", Plugin: "p", Config: []byte(`{"x":1}`), Enabled: true, Pinned: true, Concurrency: 2, Autoload: true,
		Placement: &plugins.Placement{Count: 2, Pin: []string{"GPU-1", "0"}, Avoid: []string{}},
		Revision:  3, Limits: &plugins.Limits{MemoryMaxMB: 5}, Isolation: &plugins.Isolation{Tier: "2"}}
	require.NoError(t, st.PutInstance(ctx, inst, "created"))
	inst.Enabled = false
	require.NoError(t, st.PutInstance(ctx, inst, "updated"))
	require.NoError(t, st.PutInstance(ctx, plugins.Instance{ID: "b", Plugin: "p"}, "created"))
	got, err := st.Instances(ctx)
	require.NoError(t, err)
	require.Len(t, got, 2)
	require.False(t, got[0].UpdatedAt.IsZero())
	got[0].UpdatedAt = inst.UpdatedAt
	require.Equal(t, inst, got[0])
	require.NoError(t, st.DeleteInstance(ctx, "b"))
	require.NoError(t, st.DeleteInstance(ctx, "b"))
	evs, err := st.JobEvents(ctx, "", 0)
	require.NoError(t, err)
	require.Empty(t, evs)
	_, newest, err := st.Bounds(ctx)
	require.NoError(t, err)
	require.EqualValues(t, 4, newest, "created, updated, created, deleted")
}

// Seen under the race detector when the daemon stopped while it pruned: the
// caller went away and read what the writer was about to set.
func TestPruneJournal_CallerMayGoAwayInTheMiddle(t *testing.T) {
	s := openStore(t, t.TempDir())
	for range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := s.PruneJournal(ctx, 1, 1)
			done <- err
		}()
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
}
