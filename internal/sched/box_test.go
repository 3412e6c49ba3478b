package sched_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/sched/policy"
)

// box is a scheduler among fakes, in a synctest bubble.
type box struct {
	t       *testing.T
	queue   *fakeQueue
	workers *fakeWorkers
	gate    *fakeGate
	catalog *fakeCatalog
	*sched.Scheduler

	stopAdmit context.CancelFunc
	stopWork  context.CancelFunc
	ended     chan error
}

const gib = 1024 * resource.MiB

// setup starts a scheduler with a fresh 16 GiB monitor and no plugins.
func setup(t *testing.T, change ...func(*sched.Options)) *box {
	t.Helper()
	b := &box{t: t, queue: newFakeQueue(), workers: newFakeWorkers(),
		gate:    &fakeGate{changed: make(chan struct{}, 1), fresh: true, name: "cpu", snap: snapshot(16 * gib)},
		catalog: &fakeCatalog{changed: make(chan struct{}, 1), insts: make(map[string]plugins.Instance), mans: make(map[string]plugins.Manifest)},
		ended:   make(chan error, 1)}
	o := sched.Options{Queue: b.queue, Workers: b.workers, Gate: b.gate, Catalog: b.catalog,
		Policies: []sched.Policy{policy.Safety(), policy.Permissive(), policy.Queue(0)}}
	for _, f := range change {
		f(&o)
	}
	var err error
	if b.Scheduler, err = sched.New(o); err != nil {
		t.Fatal(err)
	}
	var admit, work context.Context
	admit, b.stopAdmit = context.WithCancel(t.Context())
	work, b.stopWork = context.WithCancel(context.WithoutCancel(t.Context()))
	go func() { b.ended <- b.Run(admit, work) }()
	synctest.Wait()
	return b
}

func snapshot(free resource.Bytes) resource.Snapshot {
	return resource.Snapshot{At: time.Now(), Monitor: "cpu", GPUVendor: "None",
		Host: resource.Host{CPUs: 4, MemTotal: 16 * gib, MemAvailable: free, MemUsed: 16*gib - free}}
}

// close ends the scheduler as the daemon does and checks that it ends well.
func (b *box) close() {
	b.t.Helper()
	b.stopAdmit()
	synctest.Wait()
	b.stopWork()
	if err := <-b.ended; err != nil {
		b.t.Errorf("Run ended with %v", err)
	}
}

func (b *box) want(id jobs.ID, status jobs.Status) jobs.Job {
	b.t.Helper()
	synctest.Wait()
	j := b.queue.job(id)
	if j.Status != status {
		b.t.Fatalf("job %s is %s (%s), want %s; error %+v", id, j.Status, j.Phase, status, j.Error)
	}
	return j
}

func (b *box) wantBlock(instance, code string) *jobs.Block {
	b.t.Helper()
	synctest.Wait()
	blk := b.queue.block(instance)
	if blk == nil || blk.Code != code {
		b.t.Fatalf("block of %s is %+v, want code %s", instance, blk, code)
	}
	return blk
}
