package sched_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/sched/policy"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// keeper turns a loop on a random machine and compares the plans that it keeps
// with what would be decided in their place.
type keeper struct {
	*cards
	step  *sched.Stepper
	next  time.Time // when a pass is due by itself
	ids   []jobs.ID
	lease []string
	kept  int
	wrong string // what check found first
	check func() string
}

// script is what happens to the machine, drawn before it begins.
type script struct {
	linger  time.Duration
	plugins [keptPlugins]struct {
		resident, execute resource.Bytes
		run               time.Duration
	}
	changes []change
}

const (
	keptPlugins = 5
	keptQuota   = 3 // jobs that run at once
)

// change is one thing that happens; n and m mean what it makes of them.
type change struct {
	what    string
	at      string // the instance
	n, m    int
	sampled bool
}

func drawScript(rt *rapid.T) (s script) {
	s.linger = rapid.SampledFrom([]time.Duration{0, 300 * time.Millisecond, 2 * time.Second}).Draw(rt, "linger")
	for i := range s.plugins {
		p := &s.plugins[i]
		p.resident = resource.Bytes(rapid.IntRange(1, 12).Draw(rt, "resident"))
		p.execute = resource.Bytes(rapid.IntRange(0, 6).Draw(rt, "execute"))
		p.run = time.Duration(rapid.IntRange(1, 40).Draw(rt, "run")) * 100 * time.Millisecond
	}
	for range rapid.IntRange(1, 60).Draw(rt, "changes") {
		s.changes = append(s.changes, change{
			what: rapid.SampledFrom([]string{"submit", "submit", "submit", "cancel", "nothing", "foreign", "stale", "dies", "backs off",
				"gives up", "enabled", "slots", "pin", "lease", "end lease", "unload", "policy", "wait", "wait", "flap"}).Draw(rt, "what"),
			at: fmt.Sprint("p", rapid.IntRange(0, keptPlugins-1).Draw(rt, "instance")),
			n:  rapid.IntRange(0, 3000).Draw(rt, "n"), m: rapid.IntRange(0, 2).Draw(rt, "m"),
			sampled: rapid.Bool().Draw(rt, "sampled"),
		})
	}
	return s
}

// onKeeper runs f with a keeper in a bubble of its own.
func onKeeper(t *testing.T, f func(k *keeper)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := &cards{journal: &fakeJournal{}, held: make(map[string]*holding), ghosts: make(map[string]*holding), pid: 1000,
			appetite: make(map[string][2]resource.Bytes), placed: make(map[string][]string), runFor: make(map[string]time.Duration),
			total: []resource.Bytes{24 * gib, 16 * gib}, foreign: make([]resource.Bytes, 2)}
		c.box = &box{t: t, queue: newFakeQueue(), workers: newFakeWorkers(),
			gate:    &fakeGate{changed: make(chan struct{}, 1), fresh: true, name: "cpu"},
			catalog: &fakeCatalog{changed: make(chan struct{}, 1), insts: make(map[string]plugins.Instance), mans: make(map[string]plugins.Manifest)}}
		c.workers.load, c.workers.exec, c.workers.stopped = c.load, c.exec, c.ended
		var err error
		c.Scheduler, err = sched.New(sched.Options{Queue: c.queue, Workers: &placingWorkers{c.workers, c}, Gate: c.gate, Catalog: c.catalog, Journal: c.journal,
			Policies: []sched.Policy{policy.Reserve(policy.ReserveOptions{}), policy.Queue(0)}, Slots: 4, MaxRunningPerSubmitter: keptQuota})
		if err != nil {
			t.Fatal(err)
		}
		work, stop := context.WithCancel(context.Background())
		k := &keeper{cards: c, step: c.Stepper(work), next: time.Now()}
		f(k)
		k.step.StopAdmitting()
		stop()
		for synctest.Wait(); !k.step.Over(); synctest.Wait() {
			k.step.Pass()
		}
	})
}

// passes makes all passes that are due, and one that is not.
func (k *keeper) passes() {
	synctest.Wait()
	due := k.step.Due()
	for n := 0; (due || !time.Now().Before(k.next)) && n < 50; n++ {
		due = k.pass()
	}
	k.pass()
}

// pass makes one, has it examined unless something has changed by then, and
// reports whether another one is due.
func (k *keeper) pass() (due bool) {
	k.next = time.Now().Add(max(k.step.Pass(), time.Millisecond))
	synctest.Wait()
	if k.step.Due() {
		return true
	}
	if k.step.Kept() {
		k.kept++
	}
	if k.wrong == "" {
		k.wrong = k.check()
	}
	return false
}

// compare decides anew where a plan was kept, and says what that is not.
func (k *keeper) compare() string {
	if !k.step.Kept() {
		return ""
	}
	fresh := k.step.Afresh()
	if len(fresh.Start)+len(fresh.Fail)+len(fresh.Evict)+len(fresh.Hold)+len(fresh.Release) > 0 {
		return fmt.Sprintf("a plan was kept in place of one that does something: %+v", fresh)
	}
	told := k.step.Blocks()
	for name, b := range fresh.Block {
		if told[name] == nil || told[name].Code != b.Code {
			return fmt.Sprintf("%s is told %+v, and would be told %+v", name, told[name], b)
		}
	}
	for name, b := range told {
		if fresh.Block[name] == nil && b.Code != "no_slot" { // one that lapsed is not told
			return fmt.Sprintf("%s is told %+v, and has no reason to wait", name, b)
		}
	}
	if is, would := k.step.Shadow(), fresh.Shadow; (is == nil) != (would == nil) || (is != nil && is.Instance != would.Instance) {
		return fmt.Sprintf("reserved is %+v, and would be %+v", is, would)
	}
	return ""
}

// ask has the loop do what waits for it; the keeper turns it meanwhile.
func (k *keeper) ask(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	for {
		synctest.Wait()
		select {
		case <-done:
			return
		default:
			k.passes()
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// change does one thing that may happen to a machine.
func (k *keeper) change(c change) {
	state := k.workers.state(c.at)
	switch c.what {
	case "submit":
		id := jobs.ID(fmt.Sprint("j", len(k.ids)))
		k.ids = append(k.ids, id)
		k.queue.add(id, c.at, priority(c.m))
	case "cancel":
		if len(k.ids) > 0 {
			if id := k.ids[c.n%len(k.ids)]; !k.queue.job(id).Status.Final() {
				k.queue.cancel(id)
			}
		}
	case "foreign":
		k.setForeign(c.m%2, resource.Bytes(c.n%21)*gib/2)
	case "stale":
		k.gate.set(func(g *fakeGate) { g.fresh = !g.fresh })
	case "enabled", "slots", "pin":
		k.reconfigure(c)
	case "lease":
		k.ask(func() {
			if x, err := k.Lease(context.Background(), sched.LeaseRequest{Device: "0", Bytes: resource.Bytes(1+c.n%12) * gib, For: 20 * time.Second}); err == nil {
				k.lease = append(k.lease, x.ID)
			}
		})
	case "end lease":
		for _, id := range k.lease {
			k.ask(func() { _ = k.EndLease(context.Background(), id, "me") })
		}
		k.lease = nil
	case "policy":
		_ = k.SetPolicy(context.Background(), []string{"reserve", "reserve", "queue"}[c.m])
	case "wait":
		time.Sleep(time.Duration(c.n) * time.Millisecond)
	default:
		k.befall(c, state)
	}
	if c.sampled {
		k.sample()
	}
}

// befall does something to a worker that may happen in its state.
func (k *keeper) befall(c change, state supervisor.State) {
	idle := state == "" || state == supervisor.Stopped
	switch {
	case c.what == "dies" && state == supervisor.ReadyState:
		k.ended(c.at)
		k.workers.set(c.at, supervisor.Stopped)
	case c.what == "flap" && state == supervisor.ReadyState:
		k.workers.set(c.at, supervisor.Busy)
		k.passes()
		k.workers.set(c.at, supervisor.ReadyState)
	case c.what == "backs off" && idle:
		k.workers.set(c.at, supervisor.Backoff, func(s *supervisor.Status) { s.RetryAt = time.Now().Add(time.Duration(c.n) * time.Millisecond) })
	case c.what == "gives up" && idle:
		k.workers.set(c.at, supervisor.FailedState)
	case c.what == "gives up" && state == supervisor.FailedState, c.what == "backs off" && state == supervisor.Backoff:
		k.workers.set(c.at, supervisor.Stopped)
	case c.what == "unload" && state == supervisor.ReadyState:
		k.ask(func() { _ = k.Unload(context.Background(), c.at, "test") })
	}
}

func (k *keeper) reconfigure(c change) {
	in, m, _ := k.catalog.Instance(c.at)
	switch c.what {
	case "enabled":
		in.Enabled = !in.Enabled
	case "slots":
		in.Concurrency = 1 + c.m
	case "pin":
		in.Pinned = !in.Pinned
	}
	k.catalog.declare(c.at, func(i *plugins.Instance, man *plugins.Manifest) { *i, *man = in, m })
}

// play has the script happen and says when something was wrong first.
func (k *keeper) play(s script) string {
	k.linger = s.linger
	for i, p := range s.plugins {
		name := fmt.Sprint("p", i)
		k.gpu(name, p.resident, p.execute)
		k.runFor[name] = p.run
	}
	k.sample()
	k.passes()
	for i, c := range s.changes {
		if k.change(c); k.wrong == "" {
			k.passes()
		}
		if k.wrong != "" {
			return fmt.Sprintf("after change %d, %+v: %s", i, c, k.wrong)
		}
	}
	return ""
}

// A plan that is kept is the plan that would be made: whatever happens to the
// queue, the workers, the monitor, the catalogue and the clock, nothing that
// could start waits for it, and nobody is told an old reason.
func TestKeep_AKeptPlanIsTheOneThatWouldBeMade(t *testing.T) {
	kept := 0
	rapid.Check(t, func(rt *rapid.T) {
		s, wrong := drawScript(rt), ""
		onKeeper(t, func(k *keeper) {
			k.check = k.compare
			wrong = k.play(s)
			kept += k.kept
		})
		if wrong != "" {
			rt.Fatal(wrong)
		}
	})
	if kept == 0 {
		t.Error("no plan was ever kept")
	}
}

// With time everything moves a little: no plan is kept for long.
func TestKeep_APlanIsMadeAnewAfterASecond(t *testing.T) {
	onKeeper(t, func(k *keeper) {
		k.check = k.compare
		k.gpu("a", 20, 0)
		k.setForeign(0, 20*gib)
		k.setForeign(1, 12*gib)
		k.queue.add("1", "a")
		k.passes()
		begin, last := time.Now(), time.Now()
		for time.Since(begin) < 5*time.Second {
			time.Sleep(10 * time.Millisecond)
			if k.pass(); !k.step.Kept() {
				last = time.Now()
			}
			if time.Since(last) > time.Second {
				k.t.Fatalf("a plan was kept for %s", time.Since(last))
			}
		}
		if k.kept < 450 {
			k.t.Errorf("%d of 500 passes without a change kept the plan", k.kept)
		}
	})
}
