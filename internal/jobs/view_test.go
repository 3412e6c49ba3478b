package jobs_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/jobs"
)

func TestQueue_WaitAndRetry(t *testing.T) {
	t.Parallel()
	b := setup(t)
	j := b.submit(jobs.Spec{Args: json.RawMessage(`["x"]`)})
	short, cancel := context.WithCancel(b.ctx())
	cancel()
	got, err := b.Wait(short, j.ID)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, jobs.Pending, got.Status)
	finals := make(chan jobs.Job, 3)
	for range 3 {
		go func() {
			j, _ := b.Wait(b.ctx(), j.ID)
			finals <- j
		}()
	}
	_, err = b.Retry(b.ctx(), j.ID, "bob")
	var conflict *jobs.StateConflictError
	require.ErrorAs(t, err, &conflict)
	b.finish(b.admit(j.ID), done)
	for range 3 {
		require.Equal(t, jobs.Completed, (<-finals).Status)
	}
	again, err := b.Retry(b.ctx(), j.ID, "bob")
	require.NoError(t, err)
	require.Equal(t, j.ID, again.RetryOf)
	require.JSONEq(t, `["x"]`, string(again.Spec.Args))
}

func TestQueue_ResumeWakesTheScheduler(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.submit(jobs.Spec{})
	require.NoError(t, b.SetControl(b.ctx(), "", jobs.ModePaused))
	for len(b.Changed()) > 0 {
		<-b.Changed()
	}
	require.NoError(t, b.SetControl(b.ctx(), "", jobs.ModeRunning))
	select {
	case <-b.Changed():
	default:
		t.Fatal("nobody would start what waits")
	}
}

func TestQueue_PriorityBeyondWhatIsStored(t *testing.T) {
	t.Parallel()
	b := setup(t)
	j := b.submit(jobs.Spec{Priority: 7})
	var invalid *jobs.InvalidError
	for _, p := range []int{1 << 40, -1 << 40} {
		_, err := b.Submit(b.ctx(), []jobs.Submission{{Spec: jobs.Spec{Instance: "echo", Priority: p}}})
		require.ErrorAs(t, err, &invalid)
		_, err = b.Patch(b.ctx(), j.ID, jobs.Patch{Priority: &p})
		require.ErrorAs(t, err, &invalid)
		require.Equal(t, "priority", invalid.Field)
	}
	require.Equal(t, 7, b.get(j.ID).Spec.Priority)
}

func TestQueue_ListAndOverview(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var ids []jobs.ID
	for i := range 25 {
		ids = append(ids, b.submit(jobs.Spec{Instance: fmt.Sprint("p", i%2), Priority: i % 3, Labels: map[string]string{"n": fmt.Sprint(i % 5)}}).ID)
	}
	run := b.admit(ids[0])
	b.finish(b.admit(ids[1]), done)
	b.finish(b.admit(ids[2]), jobs.Outcome{Status: jobs.Failed, Error: &jobs.Error{Category: jobs.Fatal, Message: "x"}})
	count := func(q jobs.ListQuery) (n int) {
		q.Limit = 4
		last := int64(1 << 60)
		for {
			p, err := b.List(b.ctx(), q)
			require.NoError(t, err)
			for _, j := range p.Jobs {
				require.Less(t, j.Seq, last)
				require.Nil(t, j.Spec.Args)
				last = j.Seq
				n++
			}
			if q.Cursor = p.Next; p.Next == "" {
				return n
			}
		}
	}
	require.Equal(t, 25, count(jobs.ListQuery{}))
	require.Equal(t, 13, count(jobs.ListQuery{Instance: "p0"}))
	require.Equal(t, 2, count(jobs.ListQuery{Statuses: []jobs.Status{jobs.Completed, jobs.Failed}}))
	require.Equal(t, 1, count(jobs.ListQuery{Instance: "p0", Statuses: []jobs.Status{jobs.Running}}))
	require.Equal(t, 5, count(jobs.ListQuery{Label: map[string]string{"n": "3"}}))
	require.Equal(t, 25, count(jobs.ListQuery{Submitter: "ann"}))
	require.Zero(t, count(jobs.ListQuery{Submitter: "bob"}))
	for _, c := range []string{"x", "s", "s-1", "s!", "sZZ"} {
		_, err := b.List(b.ctx(), jobs.ListQuery{Cursor: c, Limit: 1})
		require.ErrorIs(t, err, jobs.ErrBadCursor, c)
	}
	o, err := b.Overview(b.ctx(), 10)
	require.NoError(t, err)
	require.Len(t, o.Running, 1)
	require.Equal(t, run.Job().ID, o.Running[0].ID)
	require.Equal(t, jobs.Executing, o.Running[0].Phase)
	require.Len(t, o.Pending, 10)
	for i := 1; i < 10; i++ {
		p, n := o.Pending[i-1], o.Pending[i]
		require.True(t, p.Spec.Priority > n.Spec.Priority || p.Spec.Priority == n.Spec.Priority && p.Seq < n.Seq)
	}
	require.Len(t, o.History, 2)
	require.Equal(t, jobs.Totals{Pending: 22, Running: 1, Completed: 1, Failed: 1}, o.Totals)
	require.NotZero(t, o.ReadAt)
}

func TestQueue_BlocksShownAndJournalledOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.submit(jobs.Spec{}).ID
	for range 3 {
		b.SetBlocks(map[string]*jobs.Block{"echo": {Code: "no_slot", Sentence: "all slots are taken"}})
	}
	require.Equal(t, "no_slot", b.get(id).Block.Code)
	for range 3 {
		b.SetBlocks(map[string]*jobs.Block{"echo": {Code: "resource", Sentence: "2 GiB are missing"}})
	}
	j := b.get(id)
	require.Equal(t, jobs.Blocked, j.Phase)
	require.Equal(t, "resource", j.Block.Code)
	require.False(t, j.Block.Since.IsZero())
	b.SetBlocks(nil)
	require.Equal(t, jobs.Queued, b.get(id).Phase)
	_, err := b.store.Record(b.ctx())
	require.NoError(t, err)
	require.Equal(t, "submitted blocked", b.kinds(id))
}

// Jobs of others are not hidden behind the many of one submitter, whose quota
// may be spent; a job is shown once.
func TestGroups_ShowTheFirstOfEachSubmitter(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var subs []jobs.Submission
	for _, who := range []string{"ann", "ann", "ann", "ann", "bob", "bob", "cyd"} {
		subs = append(subs, jobs.Submission{Spec: jobs.Spec{Instance: "echo"}, Submitter: who})
	}
	subs[5].Spec.Priority = -1
	made, err := b.Submit(b.ctx(), subs)
	require.NoError(t, err)
	shown := func() (out []int) {
		for _, r := range b.Groups(2)[0].Ready {
			for i := range made {
				if made[i].Job.ID == r.ID {
					out = append(out, i)
				}
			}
		}
		return out
	}
	require.Equal(t, []int{0, 1, 4, 6, 5}, shown())
	_, err = b.Cancel(b.ctx(), made[4].Job.ID, "ann", "")
	require.NoError(t, err)
	require.Equal(t, []int{0, 1, 6, 5}, shown())
}

// A scheduler that lets jobs age must see whom urgent ones keep waiting.
func TestGroups_ShowTheOldestOfEachLowerPriority(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var ids []jobs.ID
	for _, p := range []int{0, 5, 1, 5, 1, 5, 0} {
		ids = append(ids, b.submit(jobs.Spec{Priority: p}).ID)
	}
	require.Equal(t, 7, b.Groups(2)[0].Pending)
	var got []jobs.ID
	for _, r := range b.Groups(2)[0].Ready {
		got = append(got, r.ID)
	}
	require.Equal(t, []jobs.ID{ids[1], ids[3], ids[2], ids[0]}, got)
}
