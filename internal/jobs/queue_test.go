package jobs_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/jobs/sqlitestore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// box is a queue on a real store, and a clock that tests may move.
type box struct {
	*jobs.Queue
	t     *testing.T
	dir   string
	store *sqlitestore.Store
	hub   *events.Hub
	opts  jobs.Options
	wrap  func(jobs.Store) jobs.Store // what the queue sees of the store

	mu  sync.Mutex
	now time.Time
}

func setup(t *testing.T, edit ...func(*jobs.Options)) *box {
	t.Helper()
	b := &box{t: t, dir: t.TempDir(), now: time.Now()}
	for _, f := range edit {
		f(&b.opts)
	}
	b.open()
	t.Cleanup(b.close)
	return b
}

func (b *box) open() jobs.Recovered {
	b.t.Helper()
	var err error
	b.store, err = sqlitestore.Open(b.ctx(), sqlitestore.Options{Dir: b.dir, InlineResult: 1000})
	require.NoError(b.t, err)
	b.hub = events.NewHub(events.Options{Source: b.store, Ring: 64})
	o := b.opts
	seen := jobs.Store(b.store)
	if b.wrap != nil {
		seen = b.wrap(b.store)
	}
	o.Store, o.Hub, o.LogDir, o.JobDir, o.Now = seen, b.hub, filepath.Join(b.dir, "joblogs"), filepath.Join(b.dir, "jobs"), b.clock
	b.Queue, err = jobs.NewQueue(o)
	require.NoError(b.t, err)
	rec, err := b.Recover(b.ctx())
	require.NoError(b.t, err)
	return rec
}

func (b *box) close() {
	b.hub.Close()
	require.NoError(b.t, b.Queue.Close())
	require.NoError(b.t, b.store.Close())
}

func (b *box) reopen() jobs.Recovered {
	b.t.Helper()
	b.close()
	return b.open()
}

func (b *box) clock() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now
}

func (b *box) advance(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now = b.now.Add(d)
}

func (b *box) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	b.t.Cleanup(cancel)
	return ctx
}

func (b *box) submit(sp jobs.Spec) jobs.Job {
	b.t.Helper()
	if sp.Instance == "" {
		sp.Instance = "echo"
	}
	out, err := b.Submit(b.ctx(), []jobs.Submission{{Spec: sp, Submitter: "ann"}})
	require.NoError(b.t, err)
	require.True(b.t, out[0].Created)
	return out[0].Job
}

func (b *box) admit(id jobs.ID) *jobs.Run {
	b.t.Helper()
	r, err := b.Admit(b.ctx(), id, "w1")
	require.NoError(b.t, err)
	return r
}

func (b *box) finish(r *jobs.Run, out jobs.Outcome) jobs.Job {
	b.t.Helper()
	j, err := r.Finish(b.ctx(), out)
	require.NoError(b.t, err)
	return j
}

func (b *box) get(id jobs.ID) jobs.Job {
	b.t.Helper()
	j, err := b.Get(b.ctx(), id)
	require.NoError(b.t, err)
	return j
}

// ready lists the ids that may start, as the scheduler sees them.
func (b *box) ready() []jobs.ID {
	var out []jobs.ID
	for _, g := range b.Groups(100) {
		for _, r := range g.Ready {
			out = append(out, r.ID)
		}
	}
	return out
}

// kinds lists the journal's kinds of one job.
func (b *box) kinds(id jobs.ID) string {
	b.t.Helper()
	evs, err := b.store.JobEvents(b.ctx(), string(id), 0)
	require.NoError(b.t, err)
	var out []string
	for _, e := range evs {
		out = append(out, strings.TrimPrefix(string(e.Kind), "job."))
	}
	return strings.Join(out, " ")
}

var done = jobs.Outcome{Status: jobs.Completed, Result: []byte(`{"a":[1,2]}`)}

func TestQueue_OneJobFromSubmitToResult(t *testing.T) {
	t.Parallel()
	b := setup(t)
	sub := b.hub.Subscribe(events.Filter{}, 0)
	j := b.submit(jobs.Spec{Args: json.RawMessage(` [1, 2] `), Labels: map[string]string{"k": "v"}, Priority: 3})
	require.Equal(t, jobs.Queued, j.Phase)
	require.Equal(t, 3, j.Spec.MaxAttempts)
	<-b.Changed()
	r := b.admit(j.ID)
	require.Equal(t, jobs.Executing, b.get(j.ID).Phase, "its worker is ready")
	require.JSONEq(t, "[1,2]", string(r.Job().Spec.Args))
	require.JSONEq(t, "{}", string(r.Job().Spec.Kwargs))
	require.NoError(t, r.SetPhase(b.ctx(), jobs.Executing), "staying is fine")
	require.Error(t, r.SetPhase(b.ctx(), jobs.Reserving))
	require.NoError(t, r.Sink().Progress(b.ctx(), 0.5, "half"))
	require.NoError(t, r.Sink().Chunk(b.ctx(), []byte("{\n\"x\": 1}"), ""))
	live := b.get(j.ID)
	require.Equal(t, jobs.Executing, live.Phase)
	require.Equal(t, 0.5, live.Progress)
	got := b.finish(r, done)
	require.Equal(t, jobs.Completed, got.Status)
	require.Equal(t, "half", got.ProgressMessage)
	require.Equal(t, map[string]string{"k": "v"}, got.Spec.Labels)
	body, info, err := b.Result(b.ctx(), j.ID)
	require.NoError(t, err)
	text, err := io.ReadAll(body)
	require.NoError(t, errors.Join(err, body.Close()))
	require.Equal(t, string(done.Result), string(text))
	require.Equal(t, int64(len(text)), info.Size)
	require.Equal(t, "submitted started completed", b.kinds(j.ID))
	for i, kind := range []events.Kind{events.JobSubmitted, events.JobStarted, events.JobCompleted} {
		e, err := sub.Next(b.ctx())
		require.NoError(t, err)
		require.Equal(t, kind, e.Kind)
		require.Equal(t, events.Seq(i+1), e.Seq)
	}
	_, err = r.Finish(b.ctx(), done)
	var conflict *jobs.StateConflictError
	require.ErrorAs(t, err, &conflict)
	require.Equal(t, jobs.Totals{Completed: 1}, b.Totals())
	require.ErrorIs(t, func() error { _, err := b.Get(b.ctx(), "nope"); return err }(), jobs.ErrNotFound)
}

func TestQueue_OrderIsPriorityThenAgeAndReorderKeepsAge(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.submit(jobs.Spec{})
	c := b.submit(jobs.Spec{Priority: 5})
	d := b.submit(jobs.Spec{})
	require.Equal(t, []jobs.ID{c.ID, a.ID, d.ID}, b.ready())
	five := 5
	got, err := b.Patch(b.ctx(), a.ID, jobs.Patch{Priority: &five, Labels: map[string]string{"x": "y"}})
	require.NoError(t, err)
	require.Equal(t, "y", got.Spec.Labels["x"])
	require.Equal(t, []jobs.ID{a.ID, c.ID, d.ID}, b.ready(), "a is older than c")
	b.reopen()
	require.Equal(t, []jobs.ID{a.ID, c.ID, d.ID}, b.ready())
	_, err = b.Patch(b.ctx(), a.ID, jobs.Patch{Priority: &five, IfMatch: 1})
	var rev *jobs.RevisionError
	require.ErrorAs(t, err, &rev)
	require.Equal(t, int64(2), rev.Have)
	b.admit(d.ID)
	_, err = b.Patch(b.ctx(), d.ID, jobs.Patch{Priority: &five})
	var conflict *jobs.StateConflictError
	require.ErrorAs(t, err, &conflict)
}

func TestQueue_HoldAndRelease(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.submit(jobs.Spec{Held: true})
	c := b.submit(jobs.Spec{})
	require.Equal(t, jobs.Held, a.Phase)
	require.Equal(t, []jobs.ID{c.ID}, b.ready())
	_, err := b.Hold(b.ctx(), c.ID)
	require.NoError(t, err)
	require.Empty(t, b.ready())
	b.reopen()
	require.Empty(t, b.ready())
	_, err = b.Release(b.ctx(), a.ID)
	require.NoError(t, err)
	_, err = b.Release(b.ctx(), a.ID)
	require.NoError(t, err, "releasing twice is fine")
	_, err = b.Release(b.ctx(), c.ID)
	require.NoError(t, err)
	require.Equal(t, []jobs.ID{a.ID, c.ID}, b.ready())
	require.Equal(t, "submitted released", b.kinds(a.ID))
}

func TestQueue_IdempotentSubmit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	sub := jobs.Submission{IdempotencyKey: "k", Submitter: "ann", Spec: jobs.Spec{Instance: "echo", Kwargs: json.RawMessage(`{"a":1,"b":2}`)}}
	first, err := b.Submit(b.ctx(), []jobs.Submission{sub})
	require.NoError(t, err)
	same := sub
	same.Spec.Kwargs = json.RawMessage(`{ "b":2, "a":1 }`)
	again, err := b.Submit(b.ctx(), []jobs.Submission{same})
	require.NoError(t, err)
	require.False(t, again[0].Created)
	require.Equal(t, first[0].Job.ID, again[0].Job.ID)
	b.finish(b.admit(first[0].Job.ID), done)
	again, err = b.Submit(b.ctx(), []jobs.Submission{same})
	require.NoError(t, err)
	require.Equal(t, jobs.Completed, again[0].Job.Status, "also after it ended")

	other := sub
	other.Spec.Kwargs = json.RawMessage(`{"a":2}`)
	fresh := jobs.Submission{Spec: jobs.Spec{Instance: "echo"}}
	_, err = b.Submit(b.ctx(), []jobs.Submission{fresh, other})
	var idem *jobs.IdempotencyError
	require.ErrorAs(t, err, &idem)
	require.Equal(t, "k", idem.Key)
	page, err := b.List(b.ctx(), jobs.ListQuery{Limit: 10})
	require.NoError(t, err)
	require.Len(t, page.Jobs, 1, "a refused batch leaves nothing")
	other.Submitter = "bob"
	out, err := b.Submit(b.ctx(), []jobs.Submission{other})
	require.NoError(t, err, "keys are scoped to the submitter")
	require.True(t, out[0].Created)

	put := jobs.Submission{ID: "mine:1", Spec: jobs.Spec{Instance: "echo"}}
	for i := range 2 {
		out, err := b.Submit(b.ctx(), []jobs.Submission{put})
		require.NoError(t, err)
		require.Equal(t, i == 0, out[0].Created)
	}
	put.Spec.Priority = 1
	_, err = b.Submit(b.ctx(), []jobs.Submission{put})
	require.ErrorAs(t, err, &idem)
}

func TestQueue_BadSubmissions(t *testing.T) {
	t.Parallel()
	b := setup(t, func(o *jobs.Options) { o.MaxPending = 2 })
	for field, sub := range map[string]jobs.Submission{
		"plugin":        {},
		"args":          {Spec: jobs.Spec{Instance: "e", Args: json.RawMessage(`{}`)}},
		"kwargs":        {Spec: jobs.Spec{Instance: "e", Kwargs: json.RawMessage(`{"a":`)}},
		"id":            {ID: "../etc", Spec: jobs.Spec{Instance: "e"}},
		"queue_timeout": {Spec: jobs.Spec{Instance: "e", QueueTimeout: -1}},
		"max_attempts":  {Spec: jobs.Spec{Instance: "e", MaxAttempts: -1}},
		"depends_on/0":  {Spec: jobs.Spec{Instance: "e", DependsOn: []jobs.ID{"unknown"}}},
	} {
		_, err := b.Submit(b.ctx(), []jobs.Submission{sub})
		var invalid *jobs.InvalidError
		require.ErrorAs(t, err, &invalid, field)
		require.Equal(t, field, invalid.Field)
	}
	b.submit(jobs.Spec{})
	b.submit(jobs.Spec{})
	_, err := b.Submit(b.ctx(), []jobs.Submission{{Spec: jobs.Spec{Instance: "e"}}})
	var limit *jobs.LimitError
	require.ErrorAs(t, err, &limit)
}

// Nobody fills the queue for the others: what one submitter may have waiting is
// bounded, and counts what is on its way to the disk.
func TestQueue_QuotaOfASubmitter(t *testing.T) {
	t.Parallel()
	b := setup(t, func(o *jobs.Options) { o.MaxPerUser = 2 })
	by := func(who string, n int) error {
		subs := make([]jobs.Submission, n)
		for i := range subs {
			subs[i] = jobs.Submission{Spec: jobs.Spec{Instance: "e"}, Submitter: who}
		}
		_, err := b.Submit(b.ctx(), subs)
		return err
	}
	over := func(err error) {
		t.Helper()
		var limit *jobs.LimitError
		require.ErrorAs(t, err, &limit)
		require.True(t, limit.Quota)
		require.EqualValues(t, 2, limit.Limit)
	}
	over(by("ann", 3))
	require.NoError(t, by("ann", 2))
	over(by("ann", 1))
	require.NoError(t, by("bob", 2), "others are not meant")

	page, err := b.List(b.ctx(), jobs.ListQuery{Submitter: "ann", Limit: 10})
	require.NoError(t, err)
	run, err := b.Admit(b.ctx(), page.Jobs[0].ID, "w")
	require.NoError(t, err)
	require.NoError(t, by("ann", 1), "one that runs does not wait")
	over(by("ann", 1))
	_, err = run.Finish(b.ctx(), jobs.Outcome{Status: jobs.Pending, Error: &jobs.Error{Category: jobs.Transient, Message: "again", Retriable: true}})
	require.NoError(t, err)
	over(by("ann", 1))
	for _, j := range page.Jobs {
		_, err := b.Cancel(b.ctx(), j.ID, "ann", "")
		require.NoError(t, err)
	}
	require.NoError(t, by("ann", 1))
	over(by("ann", 1))
}

// Many at once stay within the quota together.
func TestQueue_QuotaHoldsUnderConcurrentSubmits(t *testing.T) {
	t.Parallel()
	b := setup(t, func(o *jobs.Options) { o.MaxPerUser = 5 })
	var taken atomic.Int64
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			if _, err := b.Submit(b.ctx(), []jobs.Submission{{Spec: jobs.Spec{Instance: "e"}, Submitter: "ann"}}); err == nil {
				taken.Add(1)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 5, taken.Load())
}

func TestQueue_CancelPendingAndRunning(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := b.submit(jobs.Spec{})
	got, err := b.Cancel(b.ctx(), p.ID, "ann", "")
	require.NoError(t, err)
	require.Equal(t, jobs.Cancelled, got.Status)
	require.Equal(t, "cancelled by ann", got.CancelReason)
	again, err := b.Cancel(b.ctx(), p.ID, "bob", "")
	require.NoError(t, err)
	require.Equal(t, got, again)
	require.Equal(t, "submitted cancelled", b.kinds(p.ID))

	r := b.admit(b.submit(jobs.Spec{}).ID)
	id := r.Job().ID
	for range 2 {
		got, err = b.Cancel(b.ctx(), id, "ann", "changed my mind")
		require.NoError(t, err)
		require.Equal(t, jobs.Running, got.Status)
	}
	require.Equal(t, []jobs.CancelIntent{{ID: id, Reason: "changed my mind"}}, b.Cancels())
	require.Empty(t, b.Cancels())
	r.CancelPhase("cooperative")
	r.CancelPhase("cooperative")
	require.Equal(t, jobs.Cancelling, b.get(id).Phase)
	j := b.finish(r, jobs.Outcome{Status: jobs.Cancelled, Result: []byte(`[1]`)})
	require.Equal(t, jobs.Cancelled, j.Status)
	require.True(t, j.Result.Partial)
	require.Equal(t, "submitted started cancel_requested cancel_phase cancelled", b.kinds(id))
}

func TestQueue_RetriesWithBackoffUntilAttemptsAreSpent(t *testing.T) {
	t.Parallel()
	b := setup(t, func(o *jobs.Options) { o.Backoff = func(int) time.Duration { return time.Minute } })
	id := b.submit(jobs.Spec{MaxAttempts: 3, QueueTimeout: time.Second}).ID
	fails := jobs.Outcome{Status: jobs.Failed, Error: &jobs.Error{Category: jobs.Transient, Message: "busy", Retriable: true}}
	j := b.finish(b.admit(id), fails)
	require.Equal(t, jobs.Pending, j.Status)
	require.Equal(t, "retry_delay", j.Block.Code)
	require.Equal(t, "busy", j.LastError.Message)
	require.Empty(t, b.ready())
	b.advance(59 * time.Second)
	require.NoError(t, b.Expire(b.ctx(), b.clock()))
	require.Empty(t, b.ready(), "and the queue timeout ended with the first start")
	b.advance(time.Second)
	require.NoError(t, b.Expire(b.ctx(), b.clock()))
	require.Equal(t, []jobs.ID{id}, b.ready())
	fails.Error.RetryAfter = 10 * time.Second
	j = b.finish(b.admit(id), fails)
	require.Equal(t, b.clock().Add(10*time.Second).UnixNano(), j.NotBefore.UnixNano())
	require.Equal(t, j.NotBefore.UnixNano(), b.NextDeadline().UnixNano())
	b.reopen()
	require.Empty(t, b.ready())
	b.advance(10 * time.Second)
	require.NoError(t, b.Expire(b.ctx(), b.clock()))
	j = b.finish(b.admit(id), fails)
	require.Equal(t, jobs.Failed, j.Status)
	require.Equal(t, 3, j.Attempt)
	require.Equal(t, 10*time.Second, j.Error.RetryAfter)
	require.Equal(t, "submitted started requeued started requeued started failed", b.kinds(id))

	id = b.submit(jobs.Spec{}).ID
	j = b.finish(b.admit(id), jobs.Outcome{Status: jobs.Failed, Error: &jobs.Error{Category: jobs.UserInput, Message: "no"}})
	require.Equal(t, jobs.Failed, j.Status, "not retriable")
	require.Equal(t, 1, j.Attempt)
}

func TestQueue_AnAttemptThatNeverBeganIsNotCounted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.submit(jobs.Spec{MaxAttempts: 1}).ID
	for range 3 {
		j := b.finish(b.admit(id), jobs.Outcome{Status: jobs.Pending, Unspent: true,
			Error: &jobs.Error{Category: jobs.WorkerLost, Message: "cooling down"}})
		require.Equal(t, jobs.Pending, j.Status)
		require.Zero(t, j.Attempt)
		require.True(t, j.StartedAt.IsZero())
		require.Equal(t, []jobs.ID{id}, b.ready(), "at once: the scheduler knows when to try again")
	}
	r, err := b.Admit(b.ctx(), id, "")
	require.NoError(t, err)
	require.Equal(t, jobs.Reserving, r.Job().Phase)
	_, err = b.Cancel(b.ctx(), id, "ann", "")
	require.NoError(t, err)
	require.Equal(t, jobs.Cancelled, b.finish(r, jobs.Outcome{Status: jobs.Pending, Unspent: true}).Status)
}

func TestQueue_QueueTimeout(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.submit(jobs.Spec{QueueTimeout: time.Minute}).ID
	kept := b.submit(jobs.Spec{}).ID
	b.advance(time.Minute)
	require.NoError(t, b.Expire(b.ctx(), b.clock()))
	j := b.get(id)
	require.Equal(t, jobs.Failed, j.Status)
	require.Equal(t, jobs.Timeout, j.Error.Category)
	require.Equal(t, []jobs.ID{kept}, b.ready())
	require.True(t, b.NextDeadline().IsZero())
}

func TestQueue_RestartSettlesWhatRan(t *testing.T) {
	t.Parallel()
	b := setup(t)
	again := b.submit(jobs.Spec{}).ID
	once := b.submit(jobs.Spec{MaxAttempts: 1}).ID
	asked := b.submit(jobs.Spec{}).ID
	given := b.submit(jobs.Spec{}).ID
	<-b.admit(again).Started()
	require.NoError(t, b.admit(once).WaitStarted(b.ctx()))
	<-b.admit(asked).Started()
	_, err := b.Cancel(b.ctx(), asked, "ann", "enough")
	require.NoError(t, err)
	require.NoError(t, b.admit(given).Interrupt(b.ctx()))
	require.Equal(t, jobs.Recovered{Pending: 2, Requeued: 1, Failed: 1}, b.reopen())
	require.Equal(t, []jobs.ID{again, given}, b.ready(), "with their old age")
	require.Equal(t, jobs.Interrupted, b.get(again).LastError.Category)
	require.Equal(t, jobs.Interrupted, b.get(once).Error.Category)
	require.Equal(t, jobs.Cancelled, b.get(asked).Status)
	require.Equal(t, "enough", b.get(asked).CancelReason)
	require.Equal(t, jobs.Totals{Pending: 2, Failed: 1, Cancelled: 1}, b.Totals())
}

func TestQueue_PauseDrainResumeSurviveARestart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e := b.submit(jobs.Spec{Instance: "echo"}).ID
	o := b.submit(jobs.Spec{Instance: "ocr"}).ID
	require.NoError(t, b.SetControl(b.ctx(), "echo", jobs.ModePaused))
	b.reopen()
	require.Equal(t, map[string]jobs.Mode{"echo": jobs.ModePaused}, b.Controls())
	require.Equal(t, []jobs.ID{o}, b.ready())
	require.Equal(t, "paused", b.get(e).Block.Code)
	_, err := b.Admit(b.ctx(), e, "")
	var conflict *jobs.StateConflictError
	require.ErrorAs(t, err, &conflict)
	require.NoError(t, b.SetControl(b.ctx(), "", jobs.ModeDraining))
	_, err = b.Submit(b.ctx(), []jobs.Submission{{Spec: jobs.Spec{Instance: "ocr"}}})
	require.ErrorIs(t, err, jobs.ErrDraining)
	require.Equal(t, []jobs.ID{o}, b.ready(), "what was accepted is finished")
	require.NoError(t, b.SetControl(b.ctx(), "", jobs.ModeRunning))
	require.NoError(t, b.SetControl(b.ctx(), "echo", jobs.ModeRunning))
	require.Len(t, b.ready(), 2)
	require.Empty(t, b.Controls())
	require.Error(t, b.SetControl(b.ctx(), "", "sideways"))
}

// The configured time-outs were read, checked and used by nobody.
func TestSubmit_DefaultTimeoutsAreForJobsThatSayNothing(t *testing.T) {
	t.Parallel()
	b := setup(t, func(o *jobs.Options) { o.QueueTimeout, o.RunTimeout = time.Minute, time.Hour })
	silent := b.submit(jobs.Spec{}).Spec
	require.Equal(t, []time.Duration{time.Minute, time.Hour}, []time.Duration{silent.QueueTimeout, silent.RunTimeout})
	own := b.submit(jobs.Spec{QueueTimeout: time.Second, RunTimeout: 2 * time.Second}).Spec
	require.Equal(t, []time.Duration{time.Second, 2 * time.Second}, []time.Duration{own.QueueTimeout, own.RunTimeout})
}
