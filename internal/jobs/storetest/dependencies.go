package storetest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/jobs"
)

// dependencies: what a job that is not final depends on is there for as long as
// it is not, whoever comes first.
func dependencies(t *testing.T, s *subject) {
	needs := func(id string, deps ...jobs.ID) jobs.NewJob {
		return job(id, func(n *jobs.NewJob) { n.Job.Spec.DependsOn = deps })
	}
	all := time.Unix(1000, 0)
	s.mustInsert(job("a"), needs("b", "a"), job("c"))
	s.finish("a", jobs.Completed, time.Unix(1, 0), nil)
	s.finish("c", jobs.Completed, time.Unix(2, 0), nil)
	ids, err := s.Prune(s.ctx(), 0, all, 100)
	require.NoError(t, err)
	require.Equal(t, []jobs.ID{"c"}, ids, "b waits for what a returned")
	s.reopen()
	one := 1
	require.NoError(t, s.change(jobs.Change{ID: "b", From: jobs.Pending, To: jobs.Running, Attempt: &one}))
	ids, err = s.Prune(s.ctx(), 0, all, 100)
	require.NoError(t, err)
	require.Empty(t, ids, "another attempt may need it again")

	var gone *jobs.DependencyError
	_, err = s.insert(job("x"), needs("d", "a", "c"))
	require.ErrorAs(t, err, &gone)
	require.Equal(t, jobs.DependencyError{ID: "d", Missing: "c"}, *gone)
	_, err = s.insert(needs("d", "c"))
	require.ErrorAs(t, err, &gone)
	for _, id := range []jobs.ID{"x", "d"} {
		_, err = s.Get(s.ctx(), id)
		require.ErrorIs(t, err, jobs.ErrNotFound, "refused whole")
	}
	s.mustInsert(job("e"), needs("f", "e", "a"))

	require.NoError(t, s.change(jobs.Change{ID: "b", From: jobs.Running, To: jobs.Completed, FinishedAt: time.Unix(3, 0)}))
	ids, err = s.Prune(s.ctx(), 0, all, 100)
	require.NoError(t, err)
	require.Equal(t, []jobs.ID{"b"}, ids, "f needs a")
	require.NoError(t, s.change(jobs.Change{ID: "f", From: jobs.Pending, To: jobs.Cancelled, FinishedAt: time.Unix(4, 0)}))
	ids, err = s.Prune(s.ctx(), 0, all, 100)
	require.NoError(t, err)
	require.ElementsMatch(t, []jobs.ID{"a", "f"}, ids)
}
