package sched_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/sched/learn"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// fakeMemory is what a store keeps for the scheduler.
type fakeMemory struct {
	mu       sync.Mutex
	profiles map[learn.Key]learn.Profile
	claims   map[string][]resource.ClaimRecord
	leases   map[string]resource.Lease
	slow     chan struct{} // what claims wait for on their way to the disk; nil: nothing
}

func newMemory() *fakeMemory {
	return &fakeMemory{profiles: make(map[learn.Key]learn.Profile), claims: make(map[string][]resource.ClaimRecord), leases: make(map[string]resource.Lease)}
}

func (m *fakeMemory) options(o *sched.Options) { o.Profiles, o.Claims, o.Leases = m, m, m }

func (m *fakeMemory) Profiles(context.Context) ([]learn.Profile, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []learn.Profile
	for _, p := range m.profiles {
		out = append(out, p)
	}
	return out, nil
}

func (m *fakeMemory) PutProfile(_ context.Context, p learn.Profile, _ ...events.Draft) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.profiles[p.Key] = p
	return nil
}

func (m *fakeMemory) DeleteProfiles(_ context.Context, plugin string, _ ...events.Draft) (n int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k := range m.profiles {
		if k.Plugin == plugin {
			delete(m.profiles, k)
			n++
		}
	}
	return n, nil
}

func (m *fakeMemory) Claims(context.Context) ([]resource.ClaimRecord, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []resource.ClaimRecord
	for _, rows := range m.claims {
		out = append(out, rows...)
	}
	return out, nil
}

func (m *fakeMemory) StoreClaims(owner string, claims []resource.ClaimRecord, _ ...events.Draft) *jobs.Ticket {
	t := jobs.NewTicket()
	m.mu.Lock()
	defer m.mu.Unlock()
	done := func() {
		if len(claims) == 0 {
			delete(m.claims, owner)
		} else {
			m.claims[owner] = claims
		}
		t.Resolve(jobs.Written{})
	}
	if m.slow == nil {
		done()
		return t
	}
	go func() {
		<-m.slow
		m.mu.Lock()
		defer m.mu.Unlock()
		done()
	}()
	return t
}

func (m *fakeMemory) Leases(context.Context) ([]resource.Lease, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []resource.Lease
	for _, x := range m.leases {
		out = append(out, x)
	}
	return out, nil
}

func (m *fakeMemory) PutLease(_ context.Context, x resource.Lease, _ ...events.Draft) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leases[x.ID] = x
	return nil
}

func (m *fakeMemory) DeleteLease(_ context.Context, id string, _ ...events.Draft) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.leases, id)
	return nil
}

func (m *fakeMemory) count() (claims, leases int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.claims), len(m.leases)
}

func TestLease_TakesFromIdleWorkersAndEndsByTime(t *testing.T) {
	m := newMemory()
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		c.gpu("a", 14, 0)
		c.queue.add("1", "a")
		c.tick(5 * time.Second)
		c.want("1", jobs.Completed)
		x, err := c.Lease(c.t.Context(), sched.LeaseRequest{Device: "0", Bytes: 12 * gib, For: 2 * time.Hour, Holder: "me", Note: "a game"})
		if err != nil || x.Device != "GPU-0" || x.Missing != 2*gib || !slices.Equal(x.Holders, []string{"a"}) {
			t.Fatalf("%+v, %v", x, err)
		}
		c.tick(time.Second)
		if !slices.Equal(c.workers.stops, []string{"a: evicted for a lease"}) {
			t.Errorf("stops %v", c.workers.stops)
		}
		if all, _ := c.Leases(c.t.Context()); len(all) != 1 || all[0].Missing != 0 {
			t.Errorf("leases %+v", all)
		}
		c.queue.add("2", "a")
		c.tick(time.Second)
		c.wantBlock("a", "resource") // 14 GiB do not fit beside the lease
		// The game takes what was leased: that is not taken off twice.
		c.setForeign(0, 12*gib)
		if d := c.State().Devices[0]; d.Free != 12*gib || d.Leased != 0 {
			t.Errorf("device %+v", d)
		}
		c.setForeign(0, 0)
		if _, n := m.count(); n != 1 {
			t.Error("the lease is not on disk")
		}
		time.Sleep(2 * time.Hour)
		c.tick(70 * time.Second)
		c.want("2", jobs.Completed)
		if _, n := m.count(); n != 0 {
			t.Error("the lease is still on disk")
		}
	}, m.options)
}

func TestLease_RefusesWhatCanNeverBeAndEndsByHand(t *testing.T) {
	onCards(t, []resource.Bytes{24, 8}, func(c *cards) {
		var never *sched.NeverFitsError
		if _, err := c.Lease(c.t.Context(), sched.LeaseRequest{Device: "1", Bytes: 12 * gib}); !errors.As(err, &never) {
			t.Errorf("error %v", err)
		}
		var nodev *sched.NoDeviceError
		if _, err := c.Lease(c.t.Context(), sched.LeaseRequest{Device: "7", Bytes: gib}); !errors.As(err, &nodev) || len(nodev.Known) != 2 {
			t.Errorf("error %v", err)
		}
		x, err := c.Lease(c.t.Context(), sched.LeaseRequest{Bytes: 20 * gib})
		if err != nil || x.Device != "GPU-0" {
			t.Fatalf("%+v, %v", x, err)
		}
		c.gpu("a", 14, 0)
		c.queue.add("1", "a")
		c.tick(time.Second)
		c.wantBlock("a", "resource")
		if err := c.EndLease(c.t.Context(), x.ID, "me"); err != nil {
			t.Fatal(err)
		}
		c.tick(5 * time.Second)
		c.want("1", jobs.Completed)
		if err := c.EndLease(c.t.Context(), x.ID, "me"); !errors.Is(err, sched.ErrNoLease) {
			t.Errorf("error %v", err)
		}
	})
}

// A worker is not started before what it was given is on disk, and what is on
// disk is not given away by the next daemon before it is seen back.
func TestClaims_AreOnDiskBeforeTheWorkerAndSettleAfterACrash(t *testing.T) {
	m := newMemory()
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		m.slow = make(chan struct{})
		c.gpu("a", 14, 2)
		c.queue.add("1", "a")
		c.tick(time.Second)
		if c.want("1", jobs.Running); c.workers.starts["a"] != 0 {
			t.Error("the worker was started before its claim was on disk")
		}
		close(m.slow)
		c.tick(5 * time.Second)
		c.want("1", jobs.Completed)
		m.mu.Lock()
		rows := m.claims["a"]
		m.mu.Unlock()
		if len(rows) != 1 || rows[0].Device != "GPU-0" || rows[0].Bytes != 16*gib {
			t.Errorf("rows %+v", rows)
		}
	}, m.options)
	m.slow = nil
	onCards(t, []resource.Bytes{24}, func(c *cards) { // the next daemon; nothing was given back
		c.gpu("b", 14, 0)
		c.queue.add("1", "b")
		synctest.Wait()
		if st := c.State(); len(st.Claims) != 1 || st.Claims[0].Phase != sched.PhaseReleasing || st.Claims[0].Instance != "a" {
			t.Errorf("claims %+v", st.Claims)
		}
		if c.workers.starts["b"] != 0 {
			t.Error("b was started before the memory of the last daemon was looked for")
		}
		c.tick(10 * time.Second)
		c.want("1", jobs.Completed)
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.claims["a"] != nil {
			t.Errorf("rows of a are left: %+v", m.claims)
		}
		if len(m.profiles) == 0 {
			t.Error("nothing was learned")
		}
	}, m.options)
}

// Out of memory in a run: the job returns with a larger claim, nobody else is touched.
func TestOOM_ARunAsksForMoreAndIsTriedAgain(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		c.gpu("other", 4, 0)
		c.gpu("a", 8, 0)
		c.queue.add("0", "other")
		c.tick(5 * time.Second)
		fails := 2
		normal := c.workers.exec
		c.workers.exec = func(ctx context.Context, in string, call supervisor.Call) (supervisor.Result, error) {
			if in == "a" && fails > 0 {
				fails--
				return supervisor.Result{}, &supervisor.CallError{Category: "oom", Message: "CUDA out of memory"}
			}
			return normal(ctx, in, call)
		}
		c.queue.add("1", "a", func(s *jobs.Spec) { s.MaxAttempts = 5 })
		c.tick(10 * time.Second)
		if j := c.want("1", jobs.Completed); j.Attempt != 3 {
			t.Errorf("%d attempts", j.Attempt)
		}
		if len(c.workers.stops) != 0 {
			t.Errorf("stops %v", c.workers.stops)
		}
		p, err := c.Profile(c.t.Context(), "a")
		if err != nil || p.Profiles[0].ExecuteVRAM.OOMs != 2 || p.Profiles[0].ExecuteVRAM.Estimate < 2*gib {
			t.Errorf("profile %+v, %v", p, err)
		}
		fails = 9
		c.queue.add("2", "a", func(s *jobs.Spec) { s.MaxAttempts = 50 })
		c.tick(10 * time.Second)
		j := c.want("2", jobs.Failed)
		if j.Error.Category != jobs.OOM || !strings.Contains(j.Error.Message, "3 times") || !strings.Contains(j.Error.Message, "other 4096") {
			t.Errorf("error %+v", j.Error)
		}
	})
}

// A plugin that offers release() is asked before its worker is stopped.
func TestRelease_IsAskedBeforeAStop(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		c.gpu("a", 16, 0)
		c.gpu("b", 12, 0)
		c.workers.asked = func(instance, method string) error { return c.take(instance, 2*gib) }
		c.queue.add("1", "a")
		c.tick(4 * time.Second)
		c.workers.set("a", supervisor.ReadyState, func(s *supervisor.Status) { s.Ready = &supervisor.Ready{Capabilities: []string{"release"}} })
		c.tick(60 * time.Second)
		c.queue.add("2", "b")
		c.tick(5 * time.Second)
		c.want("2", jobs.Completed)
		if !slices.Equal(c.workers.requests, []string{"a.release"}) || len(c.workers.stops) != 0 {
			t.Errorf("requests %v, stops %v", c.workers.requests, c.workers.stops)
		}
	})
}

// Two plugins that cannot be loaded together do not change places for ever.
func TestSwaps_AreBoundedAndThrashingIsTold(t *testing.T) {
	onCards(t, []resource.Bytes{24}, func(c *cards) {
		for _, n := range []string{"a", "b"} {
			c.gpu(n, 16, 0)
		}
		n := 0
		for range 600 {
			for _, name := range []string{"a", "b"} {
				if len(c.groupOf(name)) == 0 {
					n++
					c.queue.add(jobs.ID(name+time.Duration(n).String()), name)
				}
			}
			c.tick(time.Second)
		}
		if len(c.workers.stops) > 6 {
			t.Errorf("%d swaps in 10 minutes", len(c.workers.stops))
		}
		if c.journal.count(events.SchedulerEvicting) != len(c.workers.stops) || c.journal.count(events.SchedulerEvicted) != len(c.workers.stops) {
			t.Errorf("%d stops, events %d %d", len(c.workers.stops), c.journal.count(events.SchedulerEvicting), c.journal.count(events.SchedulerEvicted))
		}
	})
}
