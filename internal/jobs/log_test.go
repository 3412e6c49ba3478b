package jobs_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/jobs/joblog"
	"github.com/cjmd/cjmd/internal/jobs/sqlitestore"
)

func TestQueue_RetentionRemovesEverythingOfAJob(t *testing.T) {
	t.Parallel()
	b := setup(t, func(o *jobs.Options) { o.KeepJobs, o.KeepAge, o.JournalRows = 1, time.Hour, 5 })
	var ids []jobs.ID
	for range 3 {
		id := b.submit(jobs.Spec{}).ID
		r := b.admit(id)
		require.NoError(t, r.Sink().Chunk(b.ctx(), []byte("1"), ""))
		b.finish(r, jobs.Outcome{Status: jobs.Completed, Result: []byte(`"` + strings.Repeat("x", 2000) + `"`)})
		require.NoError(t, os.MkdirAll(filepath.Join(b.dir, "jobs", id.FileName()), 0o700))
		ids = append(ids, id)
		b.advance(time.Second)
	}
	require.NoError(t, b.Prune(b.ctx()))
	b.get(ids[0])
	require.Equal(t, "submitted started completed", b.kinds(ids[0]), "the job's own events outlive the journal")
	oldest, newest, err := b.store.Bounds(b.ctx())
	require.NoError(t, err)
	require.Equal(t, events.Seq(4), newest-oldest)
	b.advance(time.Hour)
	require.NoError(t, b.Prune(b.ctx()))
	for i, id := range ids {
		_, err := b.Get(b.ctx(), id)
		_, statLog := os.Stat(filepath.Join(b.dir, "joblogs", id.FileName()))
		_, statDir := os.Stat(filepath.Join(b.dir, "jobs", id.FileName()))
		_, statRes := os.Stat(filepath.Join(b.dir, "results", id.FileName()))
		if i == 2 {
			require.NoError(t, errors.Join(err, statLog, statDir, statRes), "the newest is kept")
			continue
		}
		require.ErrorIs(t, err, jobs.ErrNotFound)
		for _, e := range []error{statLog, statDir, statRes} {
			require.ErrorIs(t, e, os.ErrNotExist)
		}
	}
}

// Retention does not wait for its hour while many jobs end.
func TestQueue_RetentionAfterManyEnds(t *testing.T) {
	t.Parallel()
	b := setup(t, func(o *jobs.Options) { o.KeepJobs, o.KeepAge, o.PruneEvery = 1, time.Nanosecond, 24*time.Hour })
	subs := make([]jobs.Submission, 1000)
	for i := range subs {
		subs[i].Spec.Instance = "echo"
	}
	out, err := b.Submit(b.ctx(), subs)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(b.ctx())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := b.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	var cancels sync.WaitGroup
	for part := range slices.Chunk(out, 50) {
		cancels.Go(func() {
			for _, s := range part {
				if _, err := b.Cancel(b.ctx(), s.Job.ID, "ann", ""); err != nil {
					t.Error(err)
				}
				b.advance(time.Millisecond)
			}
		})
	}
	cancels.Wait()
	require.Eventually(t, func() bool {
		page, err := b.List(b.ctx(), jobs.ListQuery{Limit: 500})
		return err == nil && len(page.Jobs) < 500
	}, 20*time.Second, 5*time.Millisecond)
	cancel()
	wg.Wait()
}

func readLog(t *testing.T, b *box, id jobs.ID, after uint64) (out []joblog.Record) {
	t.Helper()
	r, err := b.Log(b.ctx(), id, after)
	require.NoError(t, err)
	defer r.Close()
	for {
		rec, err := r.Next(b.ctx())
		if errors.Is(err, io.EOF) {
			return out
		}
		require.NoError(t, err)
		out = append(out, rec)
	}
}

func TestQueue_JobLogKeepsItsNumbersFromPendingToAfterARestart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.submit(jobs.Spec{}).ID
	early, err := b.Log(b.ctx(), id, 0)
	require.NoError(t, err)
	rec, err := early.Next(b.ctx())
	require.NoError(t, err)
	require.Equal(t, "job.submitted", rec.Kind)
	require.Contains(t, string(rec.Data), `"seq":1,`)
	r := b.admit(id)
	require.NoError(t, r.Sink().Log(b.ctx(), jobs.LogRecord{Level: "info", Message: "hi"}))
	require.NoError(t, r.Sink().Chunk(b.ctx(), []byte("\x00\x01"), "application/octet-stream"))
	require.NoError(t, r.Interrupt(b.ctx()))
	r = b.admit(id)
	require.NoError(t, r.Sink().Chunk(b.ctx(), []byte(`{"n":1}`), ""))
	b.finish(r, done)
	want := []string{"job.submitted", "job.started", "log", "chunk", "job.requeued", "job.started", "chunk", "job.completed"}
	for i, kind := range want[1:] {
		rec, err := early.Next(b.ctx())
		require.NoError(t, err)
		require.Equal(t, kind, rec.Kind)
		require.Equal(t, uint64(i+2), rec.N)
	}
	_, err = early.Next(b.ctx())
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, early.Close())
	before := readLog(t, b, id, 0)
	b.reopen()
	after := readLog(t, b, id, 0)
	require.Len(t, after, len(want))
	for i := range want {
		require.Equal(t, want[i], after[i].Kind)
		require.Equal(t, string(before[i].Data), string(after[i].Data))
	}
	require.JSONEq(t, `{"base64":"AAE=","content_type":"application/octet-stream"}`, string(after[3].Data))
	require.Len(t, readLog(t, b, id, 6), 2)
	require.Empty(t, readLog(t, b, id, 8))
	reader, err := b.Log(b.ctx(), id, 99)
	require.NoError(t, err)
	defer reader.Close()
	_, err = reader.Next(b.ctx())
	var reset *joblog.ResetError
	require.ErrorAs(t, err, &reset)
	require.Equal(t, uint64(8), reset.Newest)
	_, err = b.Log(b.ctx(), "nope", 0)
	require.ErrorIs(t, err, jobs.ErrNotFound)
}

// announced is a store whose commits a test sees before the queue does.
type announced struct {
	*sqlitestore.Store
	before func([]events.Event)
}

func (a announced) OnCommit(fn func([]events.Event)) {
	a.Store.OnCommit(func(evs []events.Event) {
		a.before(evs)
		fn(evs)
	})
}

// Once a chunk could come before job.started in a log that a reader had open.
func TestRun_StartedOnlyWhenTheJobLogHasTheStart(t *testing.T) {
	t.Parallel()
	b := &box{t: t, dir: t.TempDir(), now: time.Now()}
	st, err := sqlitestore.Open(b.ctx(), sqlitestore.Options{Dir: b.dir})
	require.NoError(t, err)
	runs, early := make(chan *jobs.Run, 1), make(chan bool, 1)
	q, err := jobs.NewQueue(jobs.Options{LogDir: b.dir, JobDir: filepath.Join(b.dir, "jobs"), Store: announced{st, func(evs []events.Event) {
		if evs[0].Kind != events.JobStarted {
			return
		}
		select {
		case <-(<-runs).Started():
			early <- true
		default:
			early <- false
		}
	}}})
	require.NoError(t, err)
	b.Queue, b.store, b.hub = q, st, events.NewHub(events.Options{Source: st})
	defer b.close()
	r := b.admit(b.submit(jobs.Spec{}).ID)
	runs <- r
	require.NoError(t, r.WaitStarted(b.ctx()))
	require.False(t, <-early)
}
