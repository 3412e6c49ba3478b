package jobs

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// Jobs that have just ended cost a bounded amount of memory.
func TestQueue_RememberedJobsAreFewAndSmall(t *testing.T) {
	t.Parallel()
	q := &Queue{recent: map[ID]*endedJob{}}
	frame := make([]byte, 1<<20)
	for i := range 3 * recentJobs {
		q.rememberLocked(Job{ID: ID(fmt.Sprint(i))}, frame[:100])
	}
	require.Len(t, q.recent, recentJobs)
	for i := 2 * recentJobs; i < 3*recentJobs; i++ {
		old := q.recent[ID(fmt.Sprint(i))]
		require.NotNil(t, old, "the newest are kept")
		require.Less(t, cap(old.result), recentBody, "without the buffer that the result came in")
	}
	q.rememberLocked(Job{ID: "large", Spec: Spec{Args: make([]byte, recentArgs+1)}}, nil)
	require.Nil(t, q.recent["large"])
	q.rememberLocked(Job{ID: "result"}, frame)
	require.Nil(t, q.recent["result"].result, "is read from the store")
}
