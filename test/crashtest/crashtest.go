// Package crashtest kills the daemon with SIGKILL at random moments under load,
// starts it again on the same state, and compares what it had promised with what
// is there: every acknowledged job is present once, none whose final state was
// recorded runs again, a cancel that was acknowledged is kept, both kinds of logs
// continue without gap and exactly where a follower stopped, and no process is
// left. What really ran is told by the test plugin itself, which notes every run
// on disk. Start with Run; load.go makes the load, ledger.go keeps the account.
package crashtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
	"github.com/cjmd/cjmd/test/daemontest"
)

// Options of one run of the test.
type Options struct {
	Rounds int
	// Seed decides what is done and when; the machine's own timing is on top.
	Seed uint64
	// Clients that make the load; 0 means 10.
	Clients int
}

// drainTime is what the queue may take to end all jobs once nobody kills any more.
const drainTime = 2 * time.Minute

// Run does all rounds and then lets the queue end everything.
func Run(t *testing.T, o Options) {
	t.Helper()
	if o.Clients == 0 {
		o.Clients = 10
	}
	t.Logf("seed %d, %d rounds", o.Seed, o.Rounds)
	r := &run{
		t: t, o: o, rng: rand.New(rand.NewPCG(o.Seed, 1)), ledger: newLedger(),
		d: daemontest.New(t, daemontest.Options{Config: map[string]any{
			"log.level": "info", "jobs.max_pending": 5000, "monitor.interval_idle": "50ms", "monitor.interval_busy": "50ms",
		}}),
	}
	begin := time.Now()
	for n := range o.Rounds {
		r.round(n)
		if t.Failed() {
			t.Fatalf("round %d of seed %d failed", n, o.Seed)
		}
		if (n+1)%20 == 0 {
			t.Logf("%s: %d rounds, %s", time.Since(begin).Round(time.Second), n+1, r.ledger.summary())
		}
	}
	r.finish()
	t.Logf("%s: %s", time.Since(begin).Round(time.Second), r.ledger.summary())
}

// run is one run of the test. Only the goroutine of the test touches it; the
// clients of a round share the ledger, which locks.
type run struct {
	t      *testing.T
	o      Options
	rng    *rand.Rand
	d      *daemontest.Daemon
	ledger *ledger
	cut    []prefix // followers that a kill cut off
}

// round starts the daemon, checks what the last one left, makes load and kills.
func (r *run) round(n int) {
	if r.rng.IntN(10) == 0 { // also while it starts, recovers and has not served yet
		r.killWhileStarting()
	}
	r.d.Launch(r.t)
	r.check()
	stop := r.load(uint64(n))
	// Mostly while everything runs; sometimes while the workers still load.
	time.Sleep(time.Duration(20+r.rng.IntN(1300)) * time.Millisecond) // the random moment itself
	r.kill()
	stop()
}

// kill ends the daemon, and with it its workers, and reads what they noted.
func (r *run) kill() {
	r.t.Helper()
	r.d.Kill(r.t)
	r.ledger.readRuns(r.t, r.d.Runs(r.t))
}

// killWhileStarting kills a daemon that may be anywhere in its start.
func (r *run) killWhileStarting() {
	r.d.LaunchUnready(r.t)
	time.Sleep(time.Duration(r.rng.IntN(120)) * time.Millisecond)
	r.kill()
}

// check compares the daemon, which has just started, with the ledger.
func (r *run) check() {
	r.t.Helper()
	s := r.d.Session(r.t)
	started := func(ev client.Event) bool {
		if ev.Kind != "daemon.started" {
			return false
		}
		data, _ := daemontest.Data(r.t, ev)["data"].(map[string]any)
		pid, _ := data["pid"].(float64)
		return int(pid) == r.d.PID()
	}
	events := s.Journal(r.ledger.cursor(), started)
	r.ledger.readJournal(r.t, events)
	r.ledger.checkBatches(r.t)
	for _, id := range r.ledger.takeFresh() {
		if _, err := client.Decode[wire.Job](s.API.GetJob(s.Ctx(), id, nil)); err != nil {
			r.t.Errorf("an acknowledged job is not there: %s: %v", id, err)
		}
	}
	for _, again := range r.ledger.takeUnanswered() {
		r.submitAgain(s, again)
	}
	for _, p := range r.ledger.takePrefixes() {
		r.checkPrefix(s, p)
		if n := len(p.events); n > 0 && !strings.HasPrefix(p.events[n-1].Kind, "job.c") && p.events[n-1].Kind != "job.failed" {
			r.cut = append(r.cut, p)
		}
	}
}

// submitAgain repeats a submit whose answer was lost: there is one job in the
// end, whether the first was accepted or not.
func (r *run) submitAgain(s *daemontest.Session, u unanswered) {
	r.t.Helper()
	params := &wire.SubmitJobParams{IdempotencyKey: &u.key}
	job, err := client.Decode[wire.Job](s.API.SubmitJob(s.Ctx(), params, u.req))
	if err != nil {
		r.t.Errorf("a repeated submit failed: %v", err)
		return
	}
	r.ledger.accepted(job, u.req)
	again, err := client.Decode[wire.Job](s.API.SubmitJob(s.Ctx(), params, u.req))
	if err != nil || again.Id != job.Id {
		r.t.Errorf("the same key gave %s and then %s: %v", job.Id, again.Id, err)
	}
}

// checkPrefix compares what a follower had seen of a job's log with the log as
// it is now.
func (r *run) checkPrefix(s *daemontest.Session, p prefix) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(s.Ctx(), 20*time.Second)
	defer cancel()
	now, err := readNow(ctx, s, p.job, 0, len(p.events))
	if err != nil {
		r.t.Errorf("the log of %s cannot be read: %v", p.job, err)
		return
	}
	r.same(p.job, now, p.events)
}

// same fails the test unless two readings of one log are equal.
func (r *run) same(job string, got, want []client.Event) {
	r.t.Helper()
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) {
			r.t.Errorf("the log of %s has %d records, want %d", job, len(got), len(want))
			return
		}
		if g, w := got[i], want[i]; g.ID != w.ID || g.Kind != w.Kind || string(g.Data) != string(w.Data) {
			r.t.Errorf("a record of %s is %s %s %.200s, want %s %s %.200s", job, g.ID, g.Kind, g.Data, w.ID, w.Kind, w.Data)
			return
		}
	}
}

// checkWhole reads the log of a job that has ended: it is numbered without gap
// across all that happened to the daemon, begins with what was seen before a
// kill, and goes on for that follower exactly where it was cut off.
func (r *run) checkWhole(s *daemontest.Session, p prefix) {
	r.t.Helper()
	read := func(after int) []client.Event {
		resp, err := s.API.Do(s.Ctx(), "GET", fmt.Sprintf("%s?after=%d", daemontest.JobPath(p.job, "events"), after), nil, nil)
		if err == nil {
			err = client.Check(resp)
		}
		if err != nil {
			r.t.Fatalf("the log of %s cannot be read: %v", p.job, err)
		}
		defer resp.Body.Close()
		var out []client.Event
		if err := client.ReadEvents(resp.Body, func(ev client.Event) error {
			if ev.Kind != client.EventEnd {
				out = append(out, ev)
			}
			return nil
		}); err != nil {
			r.t.Fatalf("the log of %s ends with %v", p.job, err)
		}
		return out
	}
	whole := read(0)
	for i, ev := range whole {
		if want := fmt.Sprint(i + 1); ev.ID != want {
			r.t.Errorf("the log of %s has the number %s (%s) in place %s", p.job, ev.ID, ev.Kind, want)
			return
		}
	}
	n := len(p.events)
	if len(whole) < n {
		r.t.Errorf("the log of %s has %d records, %d were seen", p.job, len(whole), n)
		return
	}
	r.same(p.job, whole[:n], p.events)
	r.same(p.job, read(n), whole[n:])
}

// readNow reads a job's log after a number: at least n records, and what comes
// at once after them.
func readNow(ctx context.Context, s *daemontest.Session, job string, after, n int) ([]client.Event, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := s.API.Do(ctx, "GET", fmt.Sprintf("%s?after=%d", daemontest.JobPath(job, "events"), after), nil, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if err := client.Check(resp); err != nil {
		return nil, err
	}
	reader := client.NewSSEReader(resp.Body)
	var out []client.Event
	for len(out) < n {
		ev, err := reader.Next()
		if err != nil {
			return out, fmt.Errorf("after %d of %d records: %w", len(out), n, err)
		}
		if ev.Kind == client.EventEnd {
			return out, fmt.Errorf("the log ends after %d of %d records", len(out), n)
		}
		out = append(out, ev)
	}
	return out, nil
}

// finish starts the daemon a last time, lets the queue end everything and looks
// at every job.
func (r *run) finish() {
	r.t.Helper()
	r.d.Launch(r.t)
	r.check()
	s := r.d.Session(r.t)
	open := r.ledger.open()
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	for _, id := range open {
		wait := wire.Wait("2m")
		job, err := client.Decode[wire.Job](s.API.GetJob(ctx, id, &wire.GetJobParams{Wait: &wait}))
		if err != nil || !daemontest.Final(job) {
			r.t.Fatalf("job %s does not end: %s (%s), block %+v, error %+v, %v", id, job.Status, job.Phase, job.Block, job.LastError, err)
		}
	}
	r.d.Stop(r.t)
	r.ledger.readRuns(r.t, r.d.Runs(r.t))
	r.d.Launch(r.t)
	r.check()
	r.checkList()
	s = r.d.Session(r.t)
	for _, p := range r.cut {
		r.checkWhole(s, p)
	}
	r.t.Logf("%d followers were cut off", len(r.cut))
	r.ledger.checkEnd(r.t)
}

// checkList reads all jobs, page by page: each is there once, in the state that
// the journal tells.
func (r *run) checkList() {
	r.t.Helper()
	s := r.d.Session(r.t)
	limit := 500
	params := &wire.ListJobsParams{Limit: &limit}
	seen := map[string]bool{}
	for {
		page := daemontest.Must[wire.JobPage](r.t)(s.API.ListJobs(s.Ctx(), params))
		for _, j := range page.Jobs {
			if seen[j.Id] {
				r.t.Errorf("job %s is listed twice", j.Id)
			}
			seen[j.Id] = true
			r.ledger.checkListed(r.t, j)
		}
		if page.Next == "" {
			break
		}
		params.Cursor = &page.Next
	}
	for _, id := range r.ledger.acknowledged() {
		if !seen[id] {
			r.t.Errorf("the acknowledged job %s is not listed", id)
		}
	}
}
