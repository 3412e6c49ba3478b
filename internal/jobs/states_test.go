package jobs_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/jobs"
)

func TestStates_TableIsWhole(t *testing.T) {
	t.Parallel()
	known := map[jobs.State]bool{}
	for _, s := range jobs.States() {
		require.False(t, known[s.State], "%s twice", s.State)
		known[s.State] = true
		require.True(t, strings.HasSuffix(s.Sentence, "."), s.Sentence)
		require.Equal(t, s.State.Status.Final(), len(s.To) == 0, "%s", s.State)
	}
	for _, from := range jobs.States() {
		for _, m := range from.To {
			require.True(t, known[m.To], "%s leads nowhere", m.To)
			require.True(t, jobs.CanMove(from.State, m.To))
		}
		require.Equal(t, !from.State.Status.Final(), jobs.CanMove(from.State, from.State))
	}
	done, queued := jobs.State{Status: jobs.Completed}, jobs.State{Status: jobs.Pending, Phase: jobs.Queued}
	require.False(t, jobs.CanMove(done, queued))
	require.False(t, jobs.CanMove(queued, done))
	diagram := jobs.Mermaid()
	require.Contains(t, diagram, "queued --> reserving: admitted")
	require.Contains(t, diagram, "cancelling --> cancelled: cancel obeyed")
}
