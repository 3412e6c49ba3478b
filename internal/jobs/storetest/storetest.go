// Package storetest is the contract of jobs.Store in executable form. A store
// runs it from its own tests: Run for the contract, and Crash (with Child in
// TestMain) for what must hold after the process was killed under load.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
)

// Open opens the store of a directory, again after it was closed.
type Open func(dir string) (jobs.Store, error)

// Run runs the contract.
func Run(t *testing.T, open Open) {
	for name, test := range map[string]func(*testing.T, *subject){
		"RowAndEventsTogether":    rowAndEvents,
		"RefusedAlone":            refusedAlone,
		"KnownKeyOrID":            knownKey,
		"TransitionFromElsewhere": transition,
		"EveryFieldComesBack":     everyField,
		"JournalWithoutGaps":      journal,
		"Filters":                 filters,
		"ActiveAndTotals":         active,
		"Results":                 results,
		"Pages":                   pages,
		"PruneKeepsAndForgets":    prune,
		"DependenciesAreKept":     dependencies,
		"JournalIsBounded":        journalBound,
		"Settings":                settings,
		"ClosedRefuses":           closed,
		"AppliedBeforePublished":  applied,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &subject{t: t, dir: t.TempDir(), open: open}
			s.start()
			t.Cleanup(func() { require.NoError(t, s.Close()) })
			test(t, s)
		})
	}
}

// subject is the store under test and where it lives.
type subject struct {
	jobs.Store
	t    *testing.T
	dir  string
	open Open
}

func (s *subject) start() {
	s.t.Helper()
	st, err := s.open(s.dir)
	require.NoError(s.t, err)
	s.Store = st
}

func (s *subject) reopen() {
	s.t.Helper()
	require.NoError(s.t, s.Close())
	s.start()
}

func (s *subject) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	s.t.Cleanup(cancel)
	return ctx
}

// job is a new job with its first event.
func job(id string, edit ...func(*jobs.NewJob)) jobs.NewJob {
	n := jobs.NewJob{
		Job: jobs.Job{ID: jobs.ID(id), Submitter: "ann", CreatedAt: time.Unix(100, 5), Spec: jobs.Spec{
			Instance: "echo", Args: []byte(`[]`), Kwargs: []byte(`{}`), MaxAttempts: 3}},
		Events: []events.Draft{{Kind: events.JobSubmitted, Job: id, Instance: "echo"}},
	}
	for _, f := range edit {
		f(&n)
	}
	return n
}

func (s *subject) insert(ns ...jobs.NewJob) ([]jobs.Inserted, error) {
	w, err := s.Write(jobs.Write{Insert: ns}).Wait(s.ctx())
	return w.Inserted, err
}

func (s *subject) change(ch jobs.Change) error {
	_, err := s.Write(jobs.Write{Change: &ch}).Wait(s.ctx())
	return err
}

func (s *subject) mustInsert(ns ...jobs.NewJob) {
	s.t.Helper()
	_, err := s.insert(ns...)
	require.NoError(s.t, err)
}

func (s *subject) finish(id string, to jobs.Status, at time.Time, res *jobs.StoredResult) {
	s.t.Helper()
	one := 1
	require.NoError(s.t, s.change(jobs.Change{ID: jobs.ID(id), From: jobs.Pending, To: jobs.Running, Attempt: &one, StartedAt: at,
		Events: []events.Draft{{Kind: events.JobStarted, Job: id}}}))
	require.NoError(s.t, s.change(jobs.Change{ID: jobs.ID(id), From: jobs.Running, To: to, FinishedAt: at, Result: res,
		Events: []events.Draft{{Kind: events.Kind("job." + to), Job: id}}}))
}

func (s *subject) kinds(evs []events.Event, err error) string {
	s.t.Helper()
	require.NoError(s.t, err)
	var out []string
	for _, e := range evs {
		out = append(out, fmt.Sprint(e.Seq, ":", e.Kind))
	}
	return strings.Join(out, " ")
}

func (s *subject) allEvents() string {
	s.t.Helper()
	evs, err := s.EventsSince(s.ctx(), 0, events.Filter{}, 1000)
	return s.kinds(evs, err)
}

func rowAndEvents(t *testing.T, s *subject) {
	ins, err := s.insert(job("a"), job("b"))
	require.NoError(t, err)
	require.Equal(t, []jobs.Inserted{{ID: "a", Seq: 1, Created: true, Status: jobs.Pending}, {ID: "b", Seq: 2, Created: true, Status: jobs.Pending}}, ins)
	require.Equal(t, "1:job.submitted 2:job.submitted", s.allEvents())
	s.reopen()
	require.Equal(t, "1:job.submitted 2:job.submitted", s.allEvents())
	j, err := s.Get(s.ctx(), "b")
	require.NoError(t, err)
	require.Equal(t, jobs.Pending, j.Status)
	require.Equal(t, int64(1), j.Revision)
	_, err = s.Get(s.ctx(), "c")
	require.ErrorIs(t, err, jobs.ErrNotFound)
}

func refusedAlone(t *testing.T, s *subject) {
	s.mustInsert(job("a"))
	// Queued at once, so that they may share a commit.
	tickets := []*jobs.Ticket{
		s.Write(jobs.Write{Insert: []jobs.NewJob{job("b")}}),
		s.Write(jobs.Write{Insert: []jobs.NewJob{job("x"), job("a")}}),
		s.Write(jobs.Write{Change: &jobs.Change{ID: "a", From: jobs.Running, To: jobs.Completed,
			Events: []events.Draft{{Kind: events.JobCompleted, Job: "a"}}}}),
		s.Write(jobs.Write{Insert: []jobs.NewJob{job("c")}}),
	}
	var errs []error
	for _, tk := range tickets {
		_, err := tk.Wait(s.ctx())
		errs = append(errs, err)
	}
	var idem *jobs.IdempotencyError
	var conflict *jobs.StateConflictError
	require.NoError(t, errors.Join(errs[0], errs[3]))
	require.ErrorAs(t, errs[1], &idem)
	require.ErrorAs(t, errs[2], &conflict)
	require.Equal(t, "1:job.submitted 2:job.submitted 3:job.submitted", s.allEvents(), "no number is lost")
	_, err := s.Get(s.ctx(), "x")
	require.ErrorIs(t, err, jobs.ErrNotFound, "a batch is stored wholly or not at all")
}

func knownKey(t *testing.T, s *subject) {
	keyed := func(id, key, hash string) jobs.NewJob {
		return job(id, func(n *jobs.NewJob) { n.Key, n.Hash = key, []byte(hash) })
	}
	s.mustInsert(keyed("a", "k", "h1"))
	ins, err := s.insert(keyed("b", "k", "h1"), job("fresh"))
	require.NoError(t, err)
	require.Equal(t, jobs.ID("a"), ins[0].ID)
	require.False(t, ins[0].Created)
	require.True(t, ins[1].Created)
	_, err = s.insert(keyed("b", "k", "h2"))
	var idem *jobs.IdempotencyError
	require.ErrorAs(t, err, &idem)
	require.Equal(t, jobs.IdempotencyError{Key: "k", ID: "a"}, *idem)
	ins, err = s.insert(keyed("a", "", "h1"))
	require.NoError(t, err)
	require.False(t, ins[0].Created)
	_, err = s.insert(keyed("a", "", "h2"))
	require.ErrorAs(t, err, &idem)
	chosen := func(id, key, hash string) jobs.NewJob {
		n := keyed(id, key, hash)
		n.ChosenID = true
		return n
	}
	_, err = s.insert(chosen("mine", "k", "h1"))
	require.ErrorAs(t, err, &idem, "a key that names another job than the id that was asked for")
	s.finish("a", jobs.Failed, time.Unix(200, 0), nil)
	ins, err = s.insert(chosen("a", "k", "h1"))
	require.NoError(t, err)
	require.Equal(t, []jobs.Inserted{{ID: "a", Seq: ins[0].Seq, Status: jobs.Failed}}, ins, "what became of it is told")
	id, err := s.FindKey(s.ctx(), "ann", "k")
	require.NoError(t, err)
	require.Equal(t, jobs.ID("a"), id)
	_, err = s.FindKey(s.ctx(), "bob", "k")
	require.ErrorIs(t, err, jobs.ErrNotFound)
}

func transition(t *testing.T, s *subject) {
	s.mustInsert(job("a"))
	var conflict *jobs.StateConflictError
	require.ErrorAs(t, s.change(jobs.Change{ID: "a", From: jobs.Running, To: jobs.Failed, Action: "finish"}), &conflict)
	require.Equal(t, jobs.StateConflictError{ID: "a", Status: jobs.Pending, Action: "finish"}, *conflict)
	require.ErrorIs(t, s.change(jobs.Change{ID: "zz", From: jobs.Running, To: jobs.Failed}), jobs.ErrNotFound)
	s.finish("a", jobs.Completed, time.Unix(200, 0), nil)
	for _, from := range []jobs.Status{jobs.Pending, jobs.Running} {
		require.ErrorAs(t, s.change(jobs.Change{ID: "a", From: from, To: jobs.Cancelled}), &conflict)
	}
	j, err := s.Get(s.ctx(), "a")
	require.NoError(t, err)
	require.Equal(t, int64(3), j.Revision, "refused changes count nothing")
}

func everyField(t *testing.T, s *subject) {
	n := job("a", func(n *jobs.NewJob) {
		n.Job.Submitter, n.Job.RetryOf = "bob", "old"
		n.Job.Spec = jobs.Spec{Instance: "ocr", Args: []byte(`[1]`), Kwargs: []byte(`{"k":"é"}`), Stream: true, Priority: -7,
			Task: "index", Method: "add", Labels: map[string]string{"l": "v"}, QueueTimeout: 1, RunTimeout: 2, CancelGrace: 3, InterruptGrace: 4, MaxAttempts: 5,
			Held: true, DependsOn: []jobs.ID{"d1", "d2"}, RunOnDepFail: true}
	})
	s.mustInsert(job("d1"), job("d2"), n)
	j, err := s.Get(s.ctx(), "a")
	require.NoError(t, err)
	want := n.Job
	want.Seq, want.Status, want.Revision, want.CreatedAt = 3, jobs.Pending, 1, want.CreatedAt.UTC()
	require.Equal(t, want, j)

	five, held, half, two := 5, false, 0.5, 2
	at := time.Unix(300, 7).UTC()
	e := &jobs.Error{Category: jobs.Transient, Message: "m", Retriable: true, Type: "T", Traceback: "tb", RetryAfter: time.Second,
		StderrTail: []string{"l"}, Fields: []string{"f"}}
	require.NoError(t, s.change(jobs.Change{ID: "a", From: jobs.Pending, To: jobs.Running, Priority: &five, Labels: map[string]string{"x": "y"},
		Held: &held, Attempt: &two, StartedAt: at, NotBefore: &at, CancelRequestedAt: at, CancelReason: "r", Progress: &half,
		ProgressMessage: "pm", Error: e, LastError: e, Result: &jobs.StoredResult{Info: jobs.ResultInfo{Size: 1, ContentType: "t",
			Partial: true, SHA256: "s"}, Body: []byte("1")}}))
	s.reopen()
	j, err = s.Get(s.ctx(), "a")
	require.NoError(t, err)
	want.Status, want.Revision, want.Attempt, want.StartedAt, want.NotBefore = jobs.Running, 2, 2, at, at
	want.Spec.Priority, want.Spec.Labels, want.Spec.Held = 5, map[string]string{"x": "y"}, false
	want.CancelRequestedAt, want.CancelReason, want.Progress, want.ProgressMessage = at, "r", 0.5, "pm"
	want.Error, want.LastError = e, e
	want.Result = &jobs.ResultInfo{Size: 1, ContentType: "t", Partial: true, SHA256: "s"}
	require.Equal(t, want, j)
	require.NoError(t, s.change(jobs.Change{ID: "a", From: jobs.Running, StartedAt: at.Add(time.Hour), NotBefore: new(time.Time)}))
	j, err = s.Get(s.ctx(), "a")
	require.NoError(t, err)
	require.Equal(t, at, j.StartedAt, "the first start stays")
	require.True(t, j.NotBefore.IsZero())
	zero := 0
	require.NoError(t, s.change(jobs.Change{ID: "a", From: jobs.Running, To: jobs.Pending, Attempt: &zero}))
	many, err := s.GetMany(s.ctx(), []jobs.ID{"a", "none"})
	require.NoError(t, err)
	require.Len(t, many, 1)
	require.Zero(t, many[0].Attempt)
	require.True(t, many[0].StartedAt.IsZero())
	require.Nil(t, many[0].Spec.Args)
}

func journal(t *testing.T, s *subject) {
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 50 {
				id := fmt.Sprintf("w%d-%d", w, i)
				if _, err := s.insert(job(id)); err != nil {
					t.Error(err)
				}
				s.Emit(events.Draft{Kind: events.WorkerState, Instance: id})
			}
		})
	}
	wg.Wait()
	evs, err := s.Record(s.ctx(), events.Draft{Kind: events.DaemonStopping, Data: map[string]int{"x": 1}}, events.Draft{Kind: events.DaemonStarted})
	require.NoError(t, err)
	require.Equal(t, "801:daemon.stopping 802:daemon.started", s.kinds(evs, nil))
	require.JSONEq(t, `{"x":1}`, string(evs[0].Data))
	s.reopen()
	evs, err = s.EventsSince(s.ctx(), 0, events.Filter{}, 1000)
	require.NoError(t, err)
	require.Len(t, evs, 802)
	for i, e := range evs {
		require.Equal(t, events.Seq(i+1), e.Seq)
		require.False(t, e.At.IsZero())
	}
	oldest, newest, err := s.Bounds(s.ctx())
	require.NoError(t, err)
	require.Equal(t, []events.Seq{1, 802}, []events.Seq{oldest, newest})
}

func filters(t *testing.T, s *subject) {
	s.mustInsert(job("a"), job("b"))
	s.finish("a", jobs.Completed, time.Unix(1, 0), nil)
	_, err := s.Record(s.ctx(), events.Draft{Kind: events.WorkerState, Instance: "w"})
	require.NoError(t, err)
	for want, f := range map[string]events.Filter{
		"1:job.submitted 3:job.started 4:job.completed": {Job: "a"},
		"5:worker.state":               {Instance: "w"},
		"3:job.started 5:worker.state": {Kinds: []string{"worker.", "job.started"}},
		"":                             {Kinds: []string{"job"}},
	} {
		evs, err := s.EventsSince(s.ctx(), 0, f, 10)
		require.Equal(t, want, s.kinds(evs, err))
	}
	evs, err := s.EventsSince(s.ctx(), 2, events.Filter{}, 2)
	require.Equal(t, "3:job.started 4:job.completed", s.kinds(evs, err))
	evs, err = s.JobEvents(s.ctx(), "a", 1)
	require.Equal(t, "3:job.started 4:job.completed", s.kinds(evs, err))
	evs, err = s.JobEvents(s.ctx(), "", 0)
	require.Equal(t, "", s.kinds(evs, err))
}

func active(t *testing.T, s *subject) {
	s.mustInsert(job("a"), job("b", func(n *jobs.NewJob) {
		n.Job.Spec.DependsOn, n.Job.Spec.Priority, n.Job.Spec.QueueTimeout = []jobs.ID{"a"}, 4, 9
	}), job("c"), job("d"))
	s.finish("c", jobs.Failed, time.Unix(1, 0), nil)
	one := 1
	require.NoError(t, s.change(jobs.Change{ID: "d", From: jobs.Pending, To: jobs.Running, Attempt: &one, CancelReason: "why"}))
	s.reopen()
	got := map[jobs.ID]jobs.ActiveJob{}
	require.NoError(t, s.Active(s.ctx(), func(a jobs.ActiveJob) error { got[a.ID] = a; return nil }))
	require.Len(t, got, 3)
	require.Equal(t, jobs.ActiveJob{ID: "b", Seq: 2, Instance: "echo", Submitter: "ann", Status: jobs.Pending, Priority: 4, MaxAttempts: 3,
		Revision: 1, CreatedAt: time.Unix(100, 5).UTC(), QueueTimeout: 9, DependsOn: []jobs.ID{"a"}}, got["b"])
	require.Equal(t, jobs.Running, got["d"].Status)
	require.Equal(t, "why", got["d"].CancelReason)
	totals, err := s.Totals(s.ctx())
	require.NoError(t, err)
	require.Equal(t, jobs.Totals{Pending: 2, Running: 1, Failed: 1}, totals)
	stop := errors.New("enough")
	require.ErrorIs(t, s.Active(s.ctx(), func(jobs.ActiveJob) error { return stop }), stop)
}

func results(t *testing.T, s *subject) {
	for _, size := range []int{0, 10, 3 << 20} {
		id := fmt.Sprint("r", size)
		body := []byte(strings.Repeat("x", size))
		s.mustInsert(job(id))
		s.finish(id, jobs.Completed, time.Unix(1, 0), &jobs.StoredResult{Info: jobs.ResultInfo{Size: int64(size)}, Body: body})
		s.reopen()
		r, err := s.Result(s.ctx(), jobs.ID(id))
		require.NoError(t, err)
		_, err = r.Seek(int64(size/2), io.SeekStart)
		require.NoError(t, err)
		rest, err := io.ReadAll(r)
		require.NoError(t, errors.Join(err, r.Close()))
		require.Len(t, rest, size-size/2)
	}
	s.mustInsert(job("none"))
	for _, id := range []jobs.ID{"none", "unknown"} {
		_, err := s.Result(s.ctx(), id)
		require.ErrorIs(t, err, jobs.ErrNotFound)
	}
}

func pages(t *testing.T, s *subject) {
	var all []jobs.NewJob
	for i := range 30 {
		all = append(all, job(fmt.Sprintf("j%02d", i), func(n *jobs.NewJob) { n.Job.Spec.Instance = fmt.Sprint("p", i%3) }))
	}
	s.mustInsert(all...)
	s.finish("j07", jobs.Completed, time.Unix(1, 0), nil)
	var ids []string
	q := jobs.ListQuery{Limit: 7}
	for {
		p, err := s.List(s.ctx(), q)
		require.NoError(t, err)
		require.Equal(t, events.Seq(32), p.ReadAt)
		for _, j := range p.Jobs {
			ids = append(ids, string(j.ID))
		}
		s.mustInsert(job(fmt.Sprint("late", len(ids)), func(n *jobs.NewJob) { n.Events = nil })) // a new job moves no page
		if q.Cursor = p.Next; q.Cursor == "" {
			break
		}
	}
	require.Len(t, ids, 30)
	require.Equal(t, "j29", ids[0])
	require.Equal(t, "j00", ids[29])
	p, err := s.List(s.ctx(), jobs.ListQuery{Instance: "p1", Statuses: []jobs.Status{jobs.Completed, jobs.Pending}, Limit: 100})
	require.NoError(t, err)
	require.Len(t, p.Jobs, 10)
	_, err = s.List(s.ctx(), jobs.ListQuery{Cursor: "bad!", Limit: 1})
	require.ErrorIs(t, err, jobs.ErrBadCursor)
}

func prune(t *testing.T, s *subject) {
	for i := range 6 {
		id := fmt.Sprint("j", i)
		s.mustInsert(job(id))
		s.finish(id, jobs.Completed, time.Unix(int64(i+1), 0), nil)
	}
	s.mustInsert(job("waits"))
	ids, err := s.Prune(s.ctx(), 2, time.Unix(4, 0), 2)
	require.NoError(t, err)
	require.Equal(t, []jobs.ID{"j0", "j1"}, ids, "at most so many at once")
	ids, err = s.Prune(s.ctx(), 2, time.Unix(4, 0), 100)
	require.NoError(t, err)
	require.Equal(t, []jobs.ID{"j2"}, ids, "j3 is young enough")
	ids, err = s.Prune(s.ctx(), 2, time.Unix(1000, 0), 100)
	require.NoError(t, err)
	require.Equal(t, []jobs.ID{"j3"}, ids, "the newest two are kept")
	s.reopen()
	left, err := s.Leftovers(s.ctx())
	require.NoError(t, err)
	require.ElementsMatch(t, []jobs.ID{"j0", "j1", "j2", "j3"}, left)
	again := job("j0", func(n *jobs.NewJob) { n.ChosenID, n.Hash = true, []byte("h") })
	_, err = s.insert(again)
	require.ErrorIs(t, err, jobs.ErrLeftover, "its files may still be there")
	require.NoError(t, s.Forget(s.ctx(), left))
	left, err = s.Leftovers(s.ctx())
	require.NoError(t, err)
	require.Empty(t, left)
	ins, err := s.insert(again)
	require.NoError(t, err)
	require.True(t, ins[0].Created)
	own, err := s.JobEvents(s.ctx(), "j0", 0)
	require.Equal(t, "24:job.submitted", s.kinds(own, err), "not those of the pruned one")
	_, err = s.Get(s.ctx(), "waits")
	require.NoError(t, err)
	evs, err := s.EventsSince(s.ctx(), 0, events.Filter{Job: "j3"}, 10)
	require.Equal(t, "10:job.submitted 11:job.started 12:job.completed 23:job.pruned", s.kinds(evs, err))
}

func journalBound(t *testing.T, s *subject) {
	s.mustInsert(job("kept"))
	for range 20 {
		_, err := s.Record(s.ctx(), events.Draft{Kind: events.WorkerState, Instance: "w"})
		require.NoError(t, err)
	}
	for more := true; more; {
		var err error
		more, err = s.PruneJournal(s.ctx(), 5, 4)
		require.NoError(t, err)
	}
	s.reopen()
	oldest, newest, err := s.Bounds(s.ctx())
	require.NoError(t, err)
	require.Equal(t, []events.Seq{17, 21}, []events.Seq{oldest, newest})
	require.True(t, strings.HasPrefix(s.allEvents(), "17:worker.state"))
	evs, err := s.JobEvents(s.ctx(), "kept", 0)
	require.Equal(t, "1:job.submitted", s.kinds(evs, err), "a retained job keeps its own events")
	evs, err = s.Record(s.ctx(), events.Draft{Kind: events.DaemonStopping})
	require.Equal(t, "22:daemon.stopping", s.kinds(evs, err), "numbers are never given out again")
}

func settings(t *testing.T, s *subject) {
	v, err := s.Setting(s.ctx(), "k")
	require.NoError(t, err)
	require.Empty(t, v)
	require.NoError(t, s.PutSetting(s.ctx(), "k", "1"))
	require.NoError(t, s.PutSetting(s.ctx(), "k", "2", events.Draft{Kind: events.SchedulerChanged}))
	s.reopen()
	v, err = s.Setting(s.ctx(), "k")
	require.NoError(t, err)
	require.Equal(t, "2", v)
	require.Equal(t, "1:scheduler.changed", s.allEvents())
}

func closed(t *testing.T, s *subject) {
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	_, err := s.insert(job("a"))
	require.ErrorIs(t, err, jobs.ErrStoreUnavailable)
	s.start()
}

func applied(t *testing.T, s *subject) {
	var mu sync.Mutex
	var order []string
	note := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, what)
	}
	s.OnCommit(func(evs []events.Event) {
		for _, e := range evs {
			note(fmt.Sprint("event ", e.Seq))
		}
	})
	ok := jobs.Write{Insert: []jobs.NewJob{job("a")}, Applied: func(w jobs.Written) { note(fmt.Sprint("applied ", w.Inserted[0].Seq)) }}
	_, err := s.Write(ok).Wait(s.ctx())
	require.NoError(t, err)
	bad := jobs.Write{Change: &jobs.Change{ID: "a", From: jobs.Running}, Applied: func(w jobs.Written) { note(fmt.Sprint("refused ", w.Err != nil)) }}
	_, err = s.Write(bad).Wait(s.ctx())
	require.Error(t, err)
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, []string{"applied 1", "event 1", "refused true"}, order)
}
