package sqlitestore_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/jobs/sqlitestore"
)

// Arguments and results are private, also in a directory that others may look into.
func TestOpen_FilesAreTheOwnersAlone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "cjmd.db"), nil, 0o644))
	q, st := openQueue(t, dir)
	defer st.Close()
	defer q.Close()
	out, err := q.Submit(t.Context(), []jobs.Submission{{Spec: spec}})
	require.NoError(t, err)
	run, err := q.Admit(t.Context(), out[0].Job.ID, "w")
	require.NoError(t, err)
	require.NoError(t, run.Sink().Chunk(t.Context(), []byte("1"), ""))
	_, err = run.Finish(t.Context(), jobs.Outcome{Status: jobs.Completed, Result: []byte(`"` + strings.Repeat("x", 2<<20) + `"`)})
	require.NoError(t, err)
	seen := map[string]bool{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		require.NoError(t, err)
		require.Zero(t, info.Mode().Perm()&0o077, "%s is %s", path, info.Mode())
		seen[strings.TrimLeft(d.Name(), "0123456789abcdef")] = true
		return nil
	}))
	for _, name := range []string{"jmd.db", "jmd.db-wal", "jmd.db-shm", "lock", "results", "logs", ".seg"} {
		require.True(t, seen[name], "%s was looked at: %v", name, seen)
	}
}

func TestOpen_UnfinishedResultsAreRemoved(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	left := filepath.Join(dir, "results", ".0123abcd4711")
	require.NoError(t, os.MkdirAll(filepath.Dir(left), 0o700))
	require.NoError(t, os.WriteFile(left, []byte("half a res"), 0o600))
	openStore(t, dir)
	require.NoFileExists(t, left)
}

func TestOpen_WhatIsNoDatabaseIsSaidPlainly(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "cjmd.db"), []byte(strings.Repeat("this is no database. ", 1000)), 0o600))
	_, err := sqlitestore.Open(t.Context(), sqlitestore.Options{Dir: dir})
	var damaged *sqlitestore.DamagedError
	require.ErrorAs(t, err, &damaged)
	require.Contains(t, err.Error(), filepath.Join(dir, "cjmd.db"))
	require.Contains(t, err.Error(), "restore a backup or move it away")
}

func TestOpen_LockFileOfADeadDaemonIsNoLock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "lock"), []byte("1\n"), 0o600)) // process 1 lives, and holds nothing
	openStore(t, dir)
}
