package sched_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/sched/policy"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// standing is a queue in which nothing moves: 10,000 pending jobs.
type standing struct {
	*fakeQueue
	groups []jobs.Group
	told   int
}

// Groups cuts as the real queue does: the order is kept, not made.
func (s *standing) Groups(limit int) []jobs.Group {
	out := make([]jobs.Group, len(s.groups))
	for i, g := range s.groups {
		g.Ready = append([]jobs.Ready(nil), g.Ready[:min(limit, len(g.Ready))]...)
		out[i] = g
	}
	return out
}

func (s *standing) SetBlocks(map[string]*jobs.Block) { s.told++ }

// benchLoop is a loop with 10,000 pending jobs of 40 plugins, 32 busy workers and
// 8 devices that are full: most plugins wait for a slot, the others would start
// but find no memory and no victim.
func benchLoop(b *testing.B) (sched.PassLoop, *standing) {
	q := &standing{fakeQueue: newFakeQueue()}
	w, g := newFakeWorkers(), &fakeGate{changed: make(chan struct{}, 1), fresh: true, name: "cpu", snap: snapshot(gib)}
	c := &fakeCatalog{changed: make(chan struct{}, 1), insts: make(map[string]plugins.Instance), mans: make(map[string]plugins.Manifest)}
	for i := range 8 {
		g.snap.Devices = append(g.snap.Devices, resource.Device{ID: resource.DeviceID(fmt.Sprint("GPU-", i)), Total: 24 * gib, Free: 2 * gib})
	}
	seq := int64(0)
	for i := range 40 {
		group := jobs.Group{Instance: fmt.Sprint("plugin", i), Pending: 250}
		for range 250 {
			seq++
			group.Ready = append(group.Ready, jobs.Ready{ID: jobs.ID(fmt.Sprint(seq)), Seq: seq, CreatedAt: time.Now()})
		}
		q.groups = append(q.groups, group)
		c.declare(group.Instance, ram(2048), func(_ *plugins.Instance, m *plugins.Manifest) {
			m.Demand.RequiresGPU, m.Demand.MinVRAM = true, 8*gib
		})
	}
	for i := range 32 {
		w.set(fmt.Sprint("plugin", i), supervisor.Busy, func(s *supervisor.Status) { s.RSS, s.Concurrency = int64(2*gib), 1 })
	}
	s, err := sched.New(sched.Options{Queue: q, Workers: w, Gate: g, Catalog: c, Policies: []sched.Policy{policy.Queue(time.Hour)}})
	if err != nil {
		b.Fatal(err)
	}
	l := sched.NewPassLoop(s, context.Background())
	for i := range 32 {
		l.Occupy(fmt.Sprint("plugin", i), 1)
	}
	l.Pass()
	return l, q
}

func BenchmarkPass_Unchanged(b *testing.B) {
	l, q := benchLoop(b)
	told := q.told
	b.ReportAllocs()
	for b.Loop() {
		l.Pass()
	}
	if q.told != told {
		b.Fatalf("the queue was told %d times that nothing changed", q.told-told)
	}
}

func BenchmarkPass_Full(b *testing.B) {
	l, _ := benchLoop(b)
	b.ReportAllocs()
	for b.Loop() {
		l.ChangeEverything()
		l.Pass()
	}
}
