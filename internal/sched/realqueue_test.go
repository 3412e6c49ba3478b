package sched_test

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/jobs/sqlitestore"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/sched/policy"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// realBox is a scheduler on the real queue and store, in real time; only the
// workers are made up.
type realBox struct {
	store   *sqlitestore.Store
	queue   *jobs.Queue
	workers *fakeWorkers
	catalog *fakeCatalog
}

func setupReal(t testing.TB) *realBox {
	t.Helper()
	b := openReal(t, t.TempDir())
	b.run(t)
	return b
}

// openReal opens the queue of a directory as the daemon does when it starts.
func openReal(t testing.TB, dir string) *realBox {
	t.Helper()
	store, err := sqlitestore.Open(t.Context(), sqlitestore.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	q, err := jobs.NewQueue(jobs.Options{Store: store, LogDir: filepath.Join(dir, "logs"), JobDir: filepath.Join(dir, "jobs"),
		Backoff: func(int) time.Duration { return time.Millisecond }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Close(); err != nil {
			t.Error(err)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return &realBox{store: store, queue: q, workers: newFakeWorkers(),
		catalog: &fakeCatalog{changed: make(chan struct{}, 1), insts: make(map[string]plugins.Instance), mans: make(map[string]plugins.Manifest)}}
}

// run starts the scheduler; it ends with the test.
func (b *realBox) run(t testing.TB) {
	t.Helper()
	s, err := sched.New(sched.Options{Queue: sched.JobQueue{Queue: b.queue}, Workers: b.workers, Catalog: b.catalog,
		Gate:     &fakeGate{changed: make(chan struct{}, 1), fresh: true, name: "cpu", snap: snapshot(16 * gib)},
		Policies: []sched.Policy{policy.Reserve(policy.ReserveOptions{})}})
	if err != nil {
		t.Fatal(err)
	}
	admit, stopAdmit := context.WithCancel(context.Background())
	work, stopWork := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(admit, work) }()
	t.Cleanup(func() {
		stopAdmit()
		stopWork()
		if err := <-ended; err != nil {
			t.Errorf("Run ended with %v", err)
		}
	})
}

func (b *realBox) submit(t testing.TB, spec jobs.Spec) jobs.ID {
	t.Helper()
	spec.Args, spec.Kwargs = []byte("[]"), []byte("{}")
	got, err := b.queue.Submit(context.Background(), []jobs.Submission{{Spec: spec, Submitter: "test"}})
	if err != nil {
		t.Fatal(err)
	}
	return got[0].Job.ID
}

func (b *realBox) wait(t testing.TB, id jobs.ID) jobs.Job {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	j, err := b.queue.Wait(ctx, id)
	if err != nil {
		t.Fatalf("job %s: %v; it is %s/%s", id, err, j.Status, j.Phase)
	}
	return j
}

func TestRealQueue_AJobGoesAllTheWay(t *testing.T) {
	b := setupReal(t)
	b.catalog.declare("a")
	fails := make(chan error, 2)
	fails <- &supervisor.WorkerLostError{Instance: "a", Exit: supervisor.Exit{Kind: supervisor.ExitSignal}}
	entered := make(chan struct{}, 1)
	b.workers.exec = func(ctx context.Context, _ string, call supervisor.Call) (supervisor.Result, error) {
		if call.Stream {
			entered <- struct{}{}
			<-ctx.Done()
			return supervisor.Result{Payload: []byte(`"part"`), Cancelled: true}, nil
		}
		select {
		case err := <-fails:
			return supervisor.Result{}, err
		default:
			return supervisor.Result{Payload: []byte("42")}, nil
		}
	}
	j := b.wait(t, b.submit(t, jobs.Spec{Instance: "a"}))
	if j.Status != jobs.Completed || j.Attempt != 2 || j.Result == nil || j.Result.Size != 2 {
		t.Errorf("job %+v", j)
	}
	once := b.wait(t, b.submit(t, jobs.Spec{Instance: "a", MaxAttempts: 1}))
	if once.Status != jobs.Completed || once.Attempt != 1 {
		t.Errorf("job %+v", once)
	}
	id := b.submit(t, jobs.Spec{Instance: "a", Stream: true})
	<-entered
	if live, err := b.queue.Get(t.Context(), id); err != nil || live.Phase != jobs.Executing {
		t.Errorf("a job on a warm worker shows phase %s (%v)", live.Phase, err)
	}
	if _, err := b.queue.Cancel(t.Context(), id, "test", "enough"); err != nil {
		t.Fatal(err)
	}
	if j := b.wait(t, id); j.Status != jobs.Cancelled || j.Result == nil || !j.Result.Partial {
		t.Errorf("job %+v", j)
	}
}

func TestRealQueue_BackOffSpendsNoAttempt(t *testing.T) {
	b := setupReal(t)
	b.catalog.declare("a")
	var mu sync.Mutex
	refusals := 3
	b.workers.load = func(context.Context, string) error {
		mu.Lock()
		defer mu.Unlock()
		if refusals == 0 {
			return nil
		}
		refusals--
		return &supervisor.StartError{Instance: "a", Step: "backoff", RetryAt: time.Now().Add(10 * time.Millisecond)}
	}
	j := b.wait(t, b.submit(t, jobs.Spec{Instance: "a", MaxAttempts: 1}))
	if j.Status != jobs.Completed || j.Attempt != 1 {
		t.Errorf("job %+v, last error %+v", j, j.LastError)
	}
}

func TestRealQueue_AFloodFromManyIsDoneOnceEach(t *testing.T) {
	b := setupReal(t)
	b.catalog.declare("a", slots(3))
	b.catalog.declare("b")
	var wg sync.WaitGroup
	ids := make([]jobs.ID, 400)
	for c := range 8 {
		wg.Go(func() {
			for i := c; i < len(ids); i += 8 {
				ids[i] = b.submit(t, jobs.Spec{Instance: []string{"a", "b"}[i%2]})
				if i%5 == 0 {
					b.wait(t, ids[i])
				}
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		if j := b.wait(t, id); j.Status != jobs.Completed || j.Attempt != 1 {
			t.Errorf("job %+v", j)
		}
	}
	b.workers.mu.Lock()
	defer b.workers.mu.Unlock()
	if len(b.workers.order) != len(ids) || b.workers.most["a"] > 3 || b.workers.most["b"] > 1 {
		t.Errorf("%d calls for %d jobs, at once %v", len(b.workers.order), len(ids), b.workers.most)
	}
}

// BenchmarkJobs is submit → stored result of a job that does nothing, on one
// worker of one slot: everything of cjmd but HTTP and the worker's process.
func BenchmarkJobs(b *testing.B) {
	for _, clients := range []int{1, 16} {
		b.Run(fmt.Sprint(clients, "clients"), func(b *testing.B) {
			box := setupReal(b)
			box.catalog.declare("a")
			box.wait(b, box.submit(b, jobs.Spec{Instance: "a"}))
			next := make(chan struct{})
			var wg sync.WaitGroup
			for range clients {
				wg.Go(func() {
					for range next {
						box.wait(b, box.submit(b, jobs.Spec{Instance: "a"}))
					}
				})
			}
			for b.Loop() {
				next <- struct{}{}
			}
			close(next)
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
		})
	}
}
