package simtest

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/jobs"
)

// The traces of testdata/seen each led the scheduler astray once; what happened
// is in their "about". All needs are right in them: nothing may run out of
// memory, nothing may fail, and nobody may wait for ever.
func TestSeen_NeverAgain(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join("testdata", "seen", "*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			tr, err := LoadTrace(file)
			require.NoError(t, err)
			r, err := Simulate(tr, Options{Policy: subject()})
			require.NoError(t, err)
			require.Empty(t, r.OOMs, tr.About)
			require.False(t, r.Overdue, tr.About)
			require.Less(t, r.End, 20*time.Minute, tr.About)
			for _, j := range r.Jobs {
				require.Equal(t, jobs.Completed, j.Status, "%s: %s (%s)", j.ID, j.Error, tr.About)
			}
		})
	}
}
