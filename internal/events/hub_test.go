package events_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/cjmd/cjmd/internal/events"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// journal is a Source in memory whose commit publishes to the hub, as the
// store's writer does.
type journal struct {
	hub *events.Hub

	mu     sync.Mutex
	evs    []events.Event
	oldest events.Seq
	reads  int
	during func() // called, once, at the start of a read
}

func setup(t *testing.T, ring int) *journal {
	t.Helper()
	j := &journal{oldest: 1}
	j.hub = events.NewHub(events.Options{Source: j, Ring: ring})
	t.Cleanup(j.hub.Close)
	return j
}

func (j *journal) store(n int, kind events.Kind) []events.Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []events.Event
	for range n {
		e := events.Event{Seq: events.Seq(len(j.evs) + 1), At: time.Unix(1, 0), Kind: kind, Job: fmt.Sprint("j", len(j.evs)%3), Data: []byte("{}")}
		j.evs = append(j.evs, e)
		out = append(out, e)
	}
	return out
}

func (j *journal) commit(n int, kind events.Kind) { j.hub.Publish(j.store(n, kind)) }

func (j *journal) prune(oldest events.Seq) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.oldest = oldest
}

func (j *journal) EventsSince(_ context.Context, after events.Seq, f events.Filter, limit int) ([]events.Event, error) {
	j.mu.Lock()
	during := j.during
	j.during = nil
	j.mu.Unlock()
	if during != nil {
		during()
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.reads++
	var out []events.Event
	for _, e := range j.evs[min(int(max(after, j.oldest-1)), len(j.evs)):] {
		if len(out) < limit && f.Match(e) {
			out = append(out, e)
		}
	}
	return out, nil
}

func (j *journal) Bounds(context.Context) (events.Seq, events.Seq, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.oldest, events.Seq(len(j.evs)), nil
}

func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestHub_NothingLostAcrossRingAndSource(t *testing.T) {
	t.Parallel()
	j := setup(t, 64)
	j.store(1000, events.JobSubmitted) // before the hub knew anything
	const total = 5000
	go func() {
		for n := 1000; n < total; n += 40 {
			j.commit(40, events.JobSubmitted)
		}
	}()
	var wg sync.WaitGroup
	for r := range 20 {
		wg.Go(func() {
			after := events.Seq(r * 50)
			sub := j.hub.Subscribe(events.Filter{}, after)
			defer sub.Close()
			for want := after + 1; want <= total; want++ {
				e, err := sub.Next(bounded(t))
				if err != nil || e.Seq != want {
					t.Errorf("reader %d: got %d, %v; want %d", r, e.Seq, err, want)
					return
				}
			}
		})
	}
	wg.Wait()
	require.Equal(t, events.Seq(total), j.hub.Last())
}

func TestHub_StalledReaderDelaysNobody(t *testing.T) {
	t.Parallel()
	j := setup(t, 16)
	j.commit(1, events.DaemonStarted)
	stalled := j.hub.Subscribe(events.Filter{}, 0)
	defer stalled.Close()
	live := j.hub.Subscribe(events.Filter{}, 1)
	defer live.Close()
	for i := range 1000 {
		j.commit(1, events.WorkerState)
		e, err := live.Next(bounded(t))
		require.NoError(t, err)
		require.Equal(t, events.Seq(i+2), e.Seq)
	}
	for i := range 1001 { // it comes back and still reads everything
		e, err := stalled.Next(bounded(t))
		require.NoError(t, err)
		require.Equal(t, events.Seq(i+1), e.Seq)
	}
}

func TestHub_LiveReaderDoesNotTouchTheSource(t *testing.T) {
	t.Parallel()
	j := setup(t, 64)
	j.commit(10, events.WorkerState)
	sub := j.hub.Subscribe(events.Filter{}, 4)
	defer sub.Close()
	for i := range 6 {
		e, err := sub.Next(bounded(t))
		require.NoError(t, err)
		require.Equal(t, events.Seq(i+5), e.Seq)
	}
	require.Zero(t, j.reads)
}

func TestHub_FilteredReaderFindsTheRareEvent(t *testing.T) {
	t.Parallel()
	for _, ring := range []int{8, 8192} {
		j := setup(t, ring)
		sub := j.hub.Subscribe(events.Filter{Kinds: []string{"queue."}}, 0)
		j.commit(3000, events.JobSubmitted)
		j.commit(1, events.QueueControl)
		j.commit(3000, events.JobSubmitted)
		e, err := sub.Next(bounded(t))
		require.NoError(t, err)
		require.Equal(t, events.Seq(3001), e.Seq)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = sub.Next(ctx)
		require.ErrorIs(t, err, context.Canceled)
		j.commit(1, events.QueueControl)
		e, err = sub.Next(bounded(t))
		require.NoError(t, err)
		require.Equal(t, events.Seq(6002), e.Seq)
		sub.Close()
	}
}

func TestHub_ResetToldOnce(t *testing.T) {
	t.Parallel()
	j := setup(t, 8)
	j.commit(100, events.WorkerState)
	j.prune(51)

	var reset *events.ResetError
	old := j.hub.Subscribe(events.Filter{}, 10)
	defer old.Close()
	_, err := old.Next(bounded(t))
	require.ErrorAs(t, err, &reset)
	require.Equal(t, events.ResetError{After: 10, Oldest: 51, Newest: 100}, *reset)
	e, err := old.Next(bounded(t))
	require.NoError(t, err)
	require.Equal(t, events.Seq(51), e.Seq)

	all := j.hub.Subscribe(events.Filter{}, 0)
	defer all.Close()
	e, err = all.Next(bounded(t))
	require.NoError(t, err, "a reader that asks for everything loses nothing it knew of")
	require.Equal(t, events.Seq(51), e.Seq)

	future := j.hub.Subscribe(events.Filter{}, 500)
	defer future.Close()
	_, err = future.Next(bounded(t))
	require.ErrorAs(t, err, &reset)
	require.Equal(t, events.Seq(100), reset.Newest)
	j.commit(1, events.WorkerState)
	e, err = future.Next(bounded(t))
	require.NoError(t, err)
	require.Equal(t, events.Seq(101), e.Seq)
}

// Events that were stored and never published are read from the Source.
func TestHub_HoleInWhatWasPublished(t *testing.T) {
	t.Parallel()
	j := setup(t, 64)
	j.commit(3, events.WorkerState)
	sub := j.hub.Subscribe(events.Filter{}, 2)
	defer sub.Close()
	j.store(2, events.WorkerState)
	j.commit(3, events.WorkerState)
	for want := events.Seq(3); want <= 8; want++ {
		e, err := sub.Next(bounded(t))
		require.NoError(t, err)
		require.Equal(t, want, e.Seq)
	}
}

// Retention that passes a reader while it reads its page loses nothing in silence.
func TestHub_ResetWhenPrunedDuringTheRead(t *testing.T) {
	t.Parallel()
	for _, f := range []events.Filter{{}, {Job: "j2"}, {Kinds: []string{"queue."}}} {
		j := setup(t, 8)
		j.commit(100, events.WorkerState)
		sub := j.hub.Subscribe(f, 10)
		defer sub.Close()
		j.during = func() { j.prune(51) }
		_, err := sub.Next(bounded(t))
		var reset *events.ResetError
		require.ErrorAs(t, err, &reset)
		require.Equal(t, events.ResetError{After: 10, Oldest: 51, Newest: 100}, *reset)
		require.Equal(t, events.Seq(50), sub.Cursor())
	}
}

func TestHub_CloseEndsWaitingReaders(t *testing.T) {
	t.Parallel()
	j := setup(t, 8)
	j.store(3, events.WorkerState)
	results := make(chan error, 3)
	own := j.hub.Subscribe(events.Filter{}, 3)
	go func() { _, err := own.Next(bounded(t)); results <- err }()
	own.Close()
	own.Close()
	require.ErrorIs(t, <-results, io.EOF)
	for range 2 {
		sub := j.hub.Subscribe(events.Filter{}, 3)
		go func() { _, err := sub.Next(bounded(t)); results <- err }()
	}
	j.hub.Close()
	j.hub.Close()
	for range 2 {
		if err := <-results; !errors.Is(err, io.EOF) {
			t.Fatalf("got %v, want EOF", err)
		}
	}
	j.commit(1, events.WorkerState) // harmless
}

func TestFilter_Match(t *testing.T) {
	t.Parallel()
	e := events.Event{Kind: events.JobStarted, Job: "a", Instance: "w"}
	for _, c := range []struct {
		f    events.Filter
		want bool
	}{
		{events.Filter{}, true},
		{events.Filter{Kinds: []string{"job."}}, true},
		{events.Filter{Kinds: []string{"job.started"}}, true},
		{events.Filter{Kinds: []string{"job.start"}}, false},
		{events.Filter{Kinds: []string{"worker.", "job.started"}, Job: "a", Instance: "w"}, true},
		{events.Filter{Job: "b"}, false},
		{events.Filter{Instance: "v"}, false},
	} {
		require.Equal(t, c.want, c.f.Match(e), "%+v", c.f)
	}
}

func BenchmarkHub_TenReaders(b *testing.B) {
	j := &journal{oldest: 1}
	j.hub = events.NewHub(events.Options{Source: j})
	defer j.hub.Close()
	var wg sync.WaitGroup
	for range 10 {
		sub := j.hub.Subscribe(events.Filter{}, 0)
		wg.Go(func() {
			for range b.N {
				if _, err := sub.Next(context.Background()); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	b.ResetTimer()
	for range b.N {
		j.commit(1, events.WorkerState)
	}
	wg.Wait()
}
