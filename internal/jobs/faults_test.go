package jobs_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
)

// gate is a store that tests may make fail, or lose what was queued.
type gate struct {
	jobs.Store
	// refuse and lose choose writes: a refused one fails as on a full disk, a lost
	// one is never decided, as when the process dies first. before is called ahead
	// of every other. Set before the writes that they concern.
	refuse, lose func(jobs.Write) bool
	before       func(jobs.Write)
	forget       func()
	lookedUp     func()                // after jobs were looked up
	park         func(jobs.Write) bool // kept back until unpark
	mu           sync.Mutex
	parked       []func()
	wg           sync.WaitGroup
}

func setupGate(t *testing.T, edit ...func(*jobs.Options)) (*box, *gate) {
	t.Helper()
	g := &gate{}
	b := &box{t: t, dir: t.TempDir(), now: time.Now(), wrap: func(s jobs.Store) jobs.Store { g.Store = s; return g }}
	for _, f := range edit {
		f(&b.opts)
	}
	b.open()
	t.Cleanup(func() { g.wg.Wait(); b.close() })
	return b, g
}

func (g *gate) Write(w jobs.Write) *jobs.Ticket {
	switch {
	case g.lose != nil && g.lose(w):
		return jobs.NewTicket()
	case g.refuse != nil && g.refuse(w):
		t := jobs.NewTicket()
		g.wg.Go(func() {
			out := jobs.Written{Err: fmt.Errorf("%w: no room", jobs.ErrStoreUnavailable)}
			if w.Applied != nil {
				w.Applied(out)
			}
			t.Resolve(out)
		})
		return t
	}
	if g.park != nil && g.park(w) {
		t := jobs.NewTicket()
		g.mu.Lock()
		g.parked = append(g.parked, func() {
			w, _ := g.Store.Write(w).Wait(context.Background())
			t.Resolve(w)
		})
		g.mu.Unlock()
		return t
	}
	if g.before != nil {
		g.before(w)
	}
	return g.Store.Write(w)
}

func (g *gate) PutSetting(ctx context.Context, key, value string, ds ...events.Draft) error {
	if g.refuse != nil && g.refuse(jobs.Write{}) {
		return jobs.ErrStoreUnavailable
	}
	return g.Store.PutSetting(ctx, key, value, ds...)
}

func (g *gate) GetMany(ctx context.Context, ids []jobs.ID) ([]jobs.Job, error) {
	out, err := g.Store.GetMany(ctx, ids)
	if g.lookedUp != nil {
		g.lookedUp()
	}
	return out, err
}

func (g *gate) Forget(ctx context.Context, ids []jobs.ID) error {
	if g.forget != nil {
		g.forget()
	}
	return g.Store.Forget(ctx, ids)
}

// unpark passes on what is parked, of which there must be n.
func (g *gate) unpark(t *testing.T, n int) {
	t.Helper()
	var parked []func()
	require.Eventually(t, func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		parked = g.parked
		return len(parked) == n
	}, 10*time.Second, time.Millisecond)
	for _, write := range parked {
		write()
	}
}

// once returns a choice of one write only: the first with this action.
func once(action string) func(jobs.Write) bool {
	var used atomic.Bool
	return func(w jobs.Write) bool {
		return (action == "" || w.Change != nil && w.Change.Action == action) && used.CompareAndSwap(false, true)
	}
}

// Each operation on a disk that is full once: it says so, nothing has changed,
// neither in memory nor in the store, and the next try works.
func TestQueue_FullDiskInTheMiddleOfEachOperation(t *testing.T) {
	t.Parallel()
	five := 5
	for name, c := range map[string]struct {
		spec jobs.Spec
		do   func(b *box, id jobs.ID) error
		want jobs.Status
	}{
		"Hold":    {do: func(b *box, id jobs.ID) error { _, err := b.Hold(b.ctx(), id); return err }, want: jobs.Pending},
		"Release": {spec: jobs.Spec{Held: true}, do: func(b *box, id jobs.ID) error { _, err := b.Release(b.ctx(), id); return err }, want: jobs.Pending},
		"Patch": {do: func(b *box, id jobs.ID) error {
			_, err := b.Patch(b.ctx(), id, jobs.Patch{Priority: &five, Labels: map[string]string{"a": "b"}})
			return err
		}, want: jobs.Pending},
		"Cancel": {do: func(b *box, id jobs.ID) error { _, err := b.Cancel(b.ctx(), id, "ann", ""); return err }, want: jobs.Cancelled},
		"Fail":   {do: func(b *box, id jobs.ID) error { return b.Fail(b.ctx(), id, &jobs.Error{Category: jobs.Fatal}) }, want: jobs.Failed},
		"Expire": {spec: jobs.Spec{QueueTimeout: time.Minute}, do: func(b *box, id jobs.ID) error {
			b.advance(time.Hour)
			return b.Expire(b.ctx(), b.clock())
		}, want: jobs.Failed},
		"Pause": {do: func(b *box, id jobs.ID) error { return b.SetControl(b.ctx(), "", jobs.ModePaused) }, want: jobs.Pending},
		"Submit": {do: func(b *box, id jobs.ID) error {
			_, err := b.Submit(b.ctx(), []jobs.Submission{{Spec: jobs.Spec{Instance: "echo"}}})
			return err
		}, want: jobs.Pending},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, g := setupGate(t)
			id := b.submit(c.spec).ID
			before, totals := b.get(id), b.Totals()
			g.refuse = once("")
			require.ErrorIs(t, c.do(b, id), jobs.ErrStoreUnavailable)
			require.Equal(t, before, b.get(id))
			require.Equal(t, totals, b.Totals())
			require.Empty(t, b.Controls())
			require.NoError(t, c.do(b, id))
			sameEverywhere(t, b, id)
			require.Equal(t, c.want, b.get(id).Status)
		})
	}
}

// sameEverywhere checks that memory and store tell the same of a job.
func sameEverywhere(t *testing.T, b *box, id jobs.ID) {
	t.Helper()
	mem := b.get(id)
	stored, err := b.store.Get(b.ctx(), id)
	require.NoError(t, err)
	stored.Phase, stored.Block = mem.Phase, mem.Block // not stored
	require.Equal(t, stored, mem)
}

func TestQueue_WhatJustEndedReadsTheSameFromMemory(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, out := range map[string]jobs.Outcome{
		"completed": {Status: jobs.Completed, Result: []byte(`[1]`), ContentType: "text/x"},
		"failed":    {Status: jobs.Failed, Error: &jobs.Error{Category: jobs.Fatal, Message: "m", Type: "T", Traceback: "tb", Fields: []string{"a"}}},
		"cancelled": {Status: jobs.Cancelled, Result: []byte(`[1]`)},
	} {
		j := b.submit(jobs.Spec{Labels: map[string]string{"name": name}, Priority: 2, RunTimeout: time.Second})
		r := b.admit(j.ID)
		require.NoError(t, r.Sink().Progress(b.ctx(), 0.25, "some"))
		require.NoError(t, r.SetPhase(b.ctx(), jobs.Executing))
		if name == "cancelled" {
			_, err := b.Cancel(b.ctx(), j.ID, "ann", "why not")
			require.NoError(t, err)
			r.CancelPhase("cooperative")
		}
		got := b.finish(r, out)
		require.Equal(t, map[string]float64{"completed": 1, "failed": 0.25, "cancelled": 0.25}[name], got.Progress)
		require.Equal(t, "some", got.ProgressMessage)
		sameEverywhere(t, b, j.ID)
	}
}

// A cancel that was acknowledged in the instant in which its job went back to
// the queue holds, also when the daemon dies before it could end the job.
func TestQueue_CancelInTheInstantOfARequeueSurvivesACrash(t *testing.T) {
	t.Parallel()
	b, g := setupGate(t)
	j := b.submit(jobs.Spec{})
	r := b.admit(j.ID)
	require.NoError(t, r.WaitStarted(b.ctx()))
	acknowledged := make(chan error, 1)
	g.before = func(w jobs.Write) {
		if w.Change != nil && w.Change.Action == "requeue" { // decided, not queued yet
			_, err := b.Cancel(b.ctx(), j.ID, "ann", "not needed")
			acknowledged <- err
		}
	}
	g.lose = func(w jobs.Write) bool {
		return w.Change != nil && w.Change.Action == "cancel" && w.Change.From == jobs.Pending
	}
	_, err := r.Finish(b.ctx(), jobs.Outcome{Status: jobs.Failed, Error: &jobs.Error{Category: jobs.Transient, Retriable: true}})
	require.NoError(t, err)
	require.NoError(t, <-acknowledged)
	g.before, g.lose = nil, nil
	b.reopen()
	got := b.get(j.ID)
	require.Equal(t, jobs.Cancelled, got.Status)
	require.Equal(t, "not needed", got.CancelReason)
	require.Empty(t, b.ready())
	sameEverywhere(t, b, j.ID)
}

func TestQueue_CancelInTheInstantOfARequeue(t *testing.T) {
	t.Parallel()
	b, g := setupGate(t)
	j := b.submit(jobs.Spec{})
	r := b.admit(j.ID)
	g.park = once("requeue")
	ended := make(chan error, 1)
	go func() { ended <- r.Interrupt(b.ctx()) }()
	require.Eventually(t, func() bool { g.mu.Lock(); defer g.mu.Unlock(); return len(g.parked) == 1 }, 10*time.Second, time.Millisecond)
	_, err := b.Cancel(b.ctx(), j.ID, "ann", "no need")
	require.NoError(t, err)
	g.unpark(t, 1)
	require.NoError(t, <-ended)
	got, err := b.Wait(b.ctx(), j.ID)
	require.NoError(t, err)
	require.Equal(t, jobs.Cancelled, got.Status)
	require.Equal(t, "no need", got.CancelReason)
	require.Equal(t, "submitted started cancel_requested requeued cancelled", b.kinds(j.ID))
}

// A dependency that fails while another change of its dependent is on its way
// to the disk is not forgotten.
func TestQueue_DependencyFailsWhileItsDependentIsChanged(t *testing.T) {
	t.Parallel()
	b, g := setupGate(t)
	first := b.submit(jobs.Spec{})
	second := b.submit(jobs.Spec{DependsOn: []jobs.ID{first.ID}})
	g.park = once("hold")
	held := make(chan error, 1)
	go func() { _, err := b.Hold(b.ctx(), second.ID); held <- err }()
	require.Eventually(t, func() bool { g.mu.Lock(); defer g.mu.Unlock(); return len(g.parked) == 1 }, 10*time.Second, time.Millisecond)
	b.finish(b.admit(first.ID), jobs.Outcome{Status: jobs.Failed, Error: &jobs.Error{Category: jobs.Fatal}})
	g.unpark(t, 1)
	require.NoError(t, <-held)
	got, err := b.Wait(b.ctx(), second.ID)
	require.NoError(t, err)
	require.Equal(t, jobs.Cancelled, got.Status)
}

func TestQueue_DependencyEndsInTheInstantOfTheSubmit(t *testing.T) {
	t.Parallel()
	for end, want := range map[jobs.Status]jobs.Status{jobs.Completed: jobs.Pending, jobs.Cancelled: jobs.Cancelled} {
		b, g := setupGate(t)
		first := b.submit(jobs.Spec{})
		r := b.admit(first.ID)
		g.lookedUp = sync.OnceFunc(func() { b.finish(r, jobs.Outcome{Status: end}) }) // it was running when it was looked up
		second := b.submit(jobs.Spec{DependsOn: []jobs.ID{first.ID}})
		if want.Final() {
			_, err := b.Wait(b.ctx(), second.ID)
			require.NoError(t, err)
		} else {
			require.Equal(t, []jobs.ID{second.ID}, b.ready())
		}
		require.Equal(t, want, b.get(second.ID).Status)
	}
}

// The caller of a batch went away before it heard that one of its jobs was known
// and over: the job that waits for it goes on all the same.
func TestQueue_DependentOfAKnownJobWhenTheCallerIsGone(t *testing.T) {
	t.Parallel()
	b, g := setupGate(t)
	first := jobs.Submission{ID: "x", Spec: jobs.Spec{Instance: "echo"}}
	_, err := b.Submit(b.ctx(), []jobs.Submission{first})
	require.NoError(t, err)
	b.finish(b.admit("x"), done)
	ctx, cancel := context.WithCancel(b.ctx())
	g.before = func(w jobs.Write) { cancel() }
	_, err = b.Submit(ctx, []jobs.Submission{first, {ID: "y", Spec: jobs.Spec{Instance: "echo", DependsOn: []jobs.ID{"x"}}}})
	if err != nil {
		require.ErrorIs(t, err, context.Canceled)
	}
	g.before = nil
	_, err = b.store.Record(b.ctx()) // what was queued is decided
	require.NoError(t, err)
	require.Equal(t, []jobs.ID{"y"}, b.ready())
}

func TestQueue_KeyOfAnotherJobThanTheChosenID(t *testing.T) {
	t.Parallel()
	b := setup(t)
	sub := func(id jobs.ID) jobs.Submission {
		return jobs.Submission{ID: id, IdempotencyKey: "k", Spec: jobs.Spec{Instance: "echo"}}
	}
	_, err := b.Submit(b.ctx(), []jobs.Submission{sub("a")})
	require.NoError(t, err)
	_, err = b.Submit(b.ctx(), []jobs.Submission{sub("b")})
	var idem *jobs.IdempotencyError
	require.ErrorAs(t, err, &idem)
	require.Equal(t, jobs.ID("a"), idem.ID)
	out, err := b.Submit(b.ctx(), []jobs.Submission{sub("a")})
	require.NoError(t, err)
	require.False(t, out[0].Created)
}

// The end of a dependent that the disk refused is tried again soon, not when
// its queue timeout comes.
func TestQueue_DependentWhoseEndWasRefusedEndsSoon(t *testing.T) {
	t.Parallel()
	b, g := setupGate(t)
	first := b.submit(jobs.Spec{})
	second := b.submit(jobs.Spec{DependsOn: []jobs.ID{first.ID}, QueueTimeout: time.Hour})
	g.refuse = once("cancel")
	b.finish(b.admit(first.ID), jobs.Outcome{Status: jobs.Failed, Error: &jobs.Error{Category: jobs.Fatal}})
	g.wg.Wait()
	require.LessOrEqual(t, b.NextDeadline().Sub(b.clock()), time.Second)
	b.advance(time.Second)
	require.NoError(t, b.Expire(b.ctx(), b.clock()))
	require.Equal(t, jobs.Cancelled, b.get(second.ID).Status)
}

// The id of a pruned job is used again while its files are being removed: the
// new job's are not.
func TestQueue_NewJobKeepsItsFilesWhileTheOldOnesAreRemoved(t *testing.T) {
	t.Parallel()
	b, g := setupGate(t, func(o *jobs.Options) { o.KeepJobs, o.KeepAge = 1, time.Minute })
	big := jobs.Outcome{Status: jobs.Completed, Result: []byte(`"` + strings.Repeat("x", 5000) + `"`)}
	run := func(id jobs.ID) {
		out, err := b.Submit(b.ctx(), []jobs.Submission{{ID: id, Spec: jobs.Spec{Instance: "echo"}}})
		require.NoError(t, err)
		require.True(t, out[0].Created)
		r := b.admit(id)
		require.NoError(t, r.Sink().Chunk(b.ctx(), []byte("1"), ""))
		b.finish(r, big)
	}
	run("x")
	reader, err := b.Log(b.ctx(), "x", 0) // follows while it is pruned
	require.NoError(t, err)
	defer reader.Close()
	run("newest")
	b.advance(time.Hour)
	removing, goOn := make(chan struct{}), make(chan struct{})
	var forgot atomic.Bool
	g.forget = sync.OnceFunc(func() { close(removing); <-goOn; forgot.Store(true) })
	pruned := make(chan error, 1)
	go func() { pruned <- b.Prune(b.ctx()) }()
	<-removing
	submitted := make(chan struct{})
	go func() { defer close(submitted); run("x") }()
	close(goOn)
	<-submitted
	require.True(t, forgot.Load())
	require.NoError(t, <-pruned)
	require.Equal(t, "submitted started chunk completed", logKinds(t, b, "x"))
	body, _, err := b.Result(b.ctx(), "x")
	require.NoError(t, err)
	require.NoError(t, body.Close())
	require.FileExists(t, b.dir+"/results/"+jobs.ID("x").FileName())
}

func logKinds(t *testing.T, b *box, id jobs.ID) string {
	t.Helper()
	var out []string
	for _, rec := range readLog(t, b, id, 0) {
		out = append(out, strings.TrimPrefix(rec.Kind, "job."))
	}
	return strings.Join(out, " ")
}

// Whatever comes together, a job ends once, its end is its last event, and
// memory, store and restart agree.
func TestQueue_EverythingAtOnceEndsOnce(t *testing.T) {
	t.Parallel()
	b := setup(t, func(o *jobs.Options) { o.Backoff = func(int) time.Duration { return 0 } })
	five := 5
	attempt := func(id jobs.ID) {
		for {
			r, err := b.Admit(b.ctx(), id, "w")
			var conflict *jobs.StateConflictError
			if errors.As(err, &conflict) {
				if conflict.Status.Final() {
					return
				}
				continue
			}
			if err != nil {
				t.Error(err)
				return
			}
			var wg sync.WaitGroup
			for _, out := range []jobs.Outcome{done, {Status: jobs.Failed, Error: &jobs.Error{Category: jobs.Transient, Retriable: true}}} {
				wg.Go(func() {
					if _, err := r.Finish(b.ctx(), out); err != nil && !errors.As(err, new(*jobs.StateConflictError)) {
						t.Error(err)
					}
				})
			}
			wg.Go(func() { _ = r.Sink().Chunk(b.ctx(), []byte("1"), "") })
			wg.Go(func() { r.CancelPhase("cooperative") })
			wg.Wait()
		}
	}
	var ids []jobs.ID
	var wg sync.WaitGroup
	for range 60 {
		id := b.submit(jobs.Spec{QueueTimeout: time.Nanosecond}).ID
		ids = append(ids, id)
		for _, f := range []func(){
			func() { attempt(id) },
			func() { _, _ = b.Cancel(b.ctx(), id, "ann", "") },
			func() { _, _ = b.Cancel(b.ctx(), id, "bob", "") },
			func() { b.advance(time.Millisecond); _ = b.Expire(b.ctx(), b.clock()) },
			func() { _, _ = b.Hold(b.ctx(), id); _, _ = b.Release(b.ctx(), id) },
			func() { _, _ = b.Patch(b.ctx(), id, jobs.Patch{Priority: &five}) },
		} {
			wg.Go(f)
		}
	}
	wg.Wait()
	for _, id := range ids {
		j := b.get(id)
		require.True(t, j.Status.Final(), "%s", b.kinds(id))
		words := strings.Fields(b.kinds(id))
		finals := 0
		for _, w := range words {
			if slices.Contains([]string{"completed", "failed", "cancelled"}, w) {
				finals++
			}
		}
		require.Equal(t, 1, finals, "%v", words)
		require.Equal(t, string(j.Status), words[len(words)-1], "%v", words)
		sameEverywhere(t, b, id)
	}
	before := make([]jobs.Job, len(ids))
	for i, id := range ids {
		before[i] = b.get(id)
	}
	b.reopen()
	for i, id := range ids {
		require.Equal(t, before[i], b.get(id))
	}
}

// A clock that is set back changes no order and loses nothing.
func TestQueue_ClockGoesBack(t *testing.T) {
	t.Parallel()
	b := setup(t, func(o *jobs.Options) { o.KeepJobs = 1; o.KeepAge = time.Hour })
	first := b.submit(jobs.Spec{})
	b.advance(-48 * time.Hour)
	second := b.submit(jobs.Spec{})
	require.Equal(t, []jobs.ID{first.ID, second.ID}, b.ready())
	for _, id := range b.ready() {
		b.finish(b.admit(id), done)
	}
	require.NoError(t, b.Prune(b.ctx()))
	b.reopen()
	page, err := b.List(b.ctx(), jobs.ListQuery{Limit: 10})
	require.NoError(t, err)
	require.Len(t, page.Jobs, 2)
	require.Equal(t, second.ID, page.Jobs[0].ID)
	require.Equal(t, "submitted started completed", b.kinds(second.ID))
}
