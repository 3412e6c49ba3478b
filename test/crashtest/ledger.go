package crashtest

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
	"github.com/cjmd/cjmd/test/daemontest"
)

// account is what is known of one job.
type account struct {
	acked       bool           // a submit was answered with it
	maxAttempts int            // 0 when the submit was never answered
	cancelAcked bool           // a cancel was answered
	told        wire.JobStatus // final status that an answer told; "" for none
	needs       []string       // jobs that have to complete first
	after       []string       // jobs that have to end first

	// From the journal.
	submitted bool
	final     string // kind of the final event
	finalSeq  uint64
	starts    int
	running   bool

	// From the plugin's own notes.
	runs      int
	cancelGen int // generation of the daemon in which the cancel was answered
}

// unanswered is a submit with a key whose answer was lost.
type unanswered struct {
	key string
	req wire.JobRequest
}

// prefix is what a follower of one job saw before it was cut off.
type prefix struct {
	job    string
	events []client.Event
}

// ledger is the account of everything that was asked, answered and seen. Safe
// for concurrent use.
type ledger struct {
	mu          sync.Mutex
	jobs        map[string]*account
	gen         int            // generation of the daemon: grows with each end
	at          uint64         // journal number up to which all was read
	live        []client.Event // journal events seen live in this generation
	readRunsTo  int            // notes read so far
	all         []string       // acknowledged, oldest first
	fresh       []string       // acknowledged since the last check
	unanswered  []unanswered
	prefixes    []prefix
	batches     [][]string // whose answer was lost
	events      int
	resubmitted int
	followed    int
}

func newLedger() *ledger { return &ledger{jobs: map[string]*account{}} }

func (l *ledger) jobLocked(id string) *account {
	a := l.jobs[id]
	if a == nil {
		a = &account{}
		l.jobs[id] = a
	}
	return a
}

// accepted notes the answer to a submit.
func (l *ledger) accepted(job wire.Job, req wire.JobRequest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.jobLocked(job.Id)
	if !a.acked {
		l.fresh, l.all = append(l.fresh, job.Id), append(l.all, job.Id)
	}
	a.acked = true
	a.maxAttempts = max(req.MaxAttempts, 1)
	if req.MaxAttempts == 0 {
		a.maxAttempts = 3
	}
	a.after = req.DependsOn
	if req.OnDependencyFailure != wire.JobRequestOnDependencyFailureRun {
		a.needs = req.DependsOn
	}
	l.toldLocked(a, job)
}

// answered notes what an answer told of a job.
func (l *ledger) answered(job wire.Job) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.toldLocked(l.jobLocked(job.Id), job)
}

func (l *ledger) toldLocked(a *account, job wire.Job) {
	if daemontest.Final(job) {
		a.told = job.Status
	}
}

// cancelled notes the answer to a cancel.
func (l *ledger) cancelled(job wire.Job) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.jobLocked(job.Id)
	if !a.cancelAcked {
		a.cancelAcked, a.cancelGen = true, l.gen
	}
	l.toldLocked(a, job)
}

// some is one of the newest acknowledged jobs.
func (l *ledger) some(rng *rand.Rand) (string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.all) == 0 {
		return "", false
	}
	return l.all[len(l.all)-1-rng.IntN(min(len(l.all), 300))], true
}

func (l *ledger) lost(u unanswered) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unanswered = append(l.unanswered, u)
}

func (l *ledger) saw(ev client.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.live = append(l.live, ev)
}

func (l *ledger) follower(p prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.prefixes = append(l.prefixes, p)
	l.followed += len(p.events)
}

func take[T any](l *ledger, from *[]T) []T {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := *from
	*from = nil
	return out
}

func (l *ledger) takeFresh() []string    { return take(l, &l.fresh) }
func (l *ledger) takePrefixes() []prefix { return take(l, &l.prefixes) }
func (l *ledger) takeUnanswered() []unanswered {
	u := take(l, &l.unanswered)
	l.resubmitted += len(u)
	return u
}

func (l *ledger) cursor() uint64 { l.mu.Lock(); defer l.mu.Unlock(); return l.at }

// readJournal takes the journal since the last reading, up to the start of the
// running daemon.
func (l *ledger) readJournal(t *testing.T, events []client.Event) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	from := l.at
	for _, ev := range events {
		n, err := strconv.ParseUint(ev.ID, 10, 64)
		if err != nil || n != l.at+1 {
			t.Errorf("the journal goes from %d to %s (%s)", l.at, ev.ID, ev.Kind)
			return
		}
		l.at = n
		l.eventLocked(t, n, ev)
	}
	l.events += len(events)
	for _, seen := range l.live {
		n, _ := strconv.ParseUint(seen.ID, 10, 64)
		if n <= from || n > l.at {
			if n > l.at {
				t.Errorf("event %d (%s) was seen and is gone; the journal is at %d", n, seen.Kind, l.at)
			}
			continue
		}
		if now := events[n-from-1]; now.Kind != seen.Kind || string(now.Data) != string(seen.Data) {
			t.Errorf("event %d was %s %.200s and is now %s %.200s", n, seen.Kind, seen.Data, now.Kind, now.Data)
		}
	}
	l.live = nil
}

// eventLocked follows one job through the journal.
func (l *ledger) eventLocked(t *testing.T, n uint64, ev client.Event) {
	t.Helper()
	id, _ := daemontest.Data(t, ev)["job"].(string)
	if id == "" {
		return
	}
	a := l.jobLocked(id)
	wrong := func(what string) { t.Errorf("event %d: job %s %s %s", n, id, ev.Kind, what) }
	if a.final != "" {
		wrong("after " + a.final)
	}
	if !a.submitted && ev.Kind != "job.submitted" {
		wrong("before it was submitted")
	}
	switch ev.Kind {
	case "job.submitted":
		if a.submitted {
			wrong("twice")
		}
		a.submitted = true
	case "job.started":
		if a.running {
			wrong("while it runs")
		}
		for _, dep := range a.after {
			if l.jobLocked(dep).final == "" {
				wrong("before " + dep + " ended")
			}
		}
		for _, dep := range a.needs {
			if l.jobLocked(dep).final != "job.completed" {
				wrong("although " + dep + " did not complete")
			}
		}
		a.running = true
		a.starts++
	case "job.requeued":
		if !a.running {
			wrong("while it does not run")
		}
		a.running = false
	case "job.completed", "job.failed", "job.cancelled":
		if ev.Kind == "job.completed" && !a.running {
			wrong("without running")
		}
		a.final, a.finalSeq, a.running = ev.Kind, n, false
	}
}

// readRuns takes the notes of the generation that has just ended; all its
// workers are dead. The journal was last read when it started, so a job that
// counts as final here was final before.
func (l *ledger) readRuns(t *testing.T, runs []daemontest.Run) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range runs[l.readRunsTo:] {
		if r.What != "run" {
			continue
		}
		a := l.jobLocked(r.Job)
		a.runs++
		if a.final != "" {
			t.Errorf("job %s ran again after %s (event %d) was recorded", r.Job, a.final, a.finalSeq)
		}
		if a.cancelAcked && a.cancelGen < l.gen {
			t.Errorf("job %s ran again after a cancel was acknowledged", r.Job)
		}
		if a.maxAttempts == 1 && a.runs > 1 {
			t.Errorf("job %s may run at most once and ran %d times", r.Job, a.runs)
		}
	}
	l.readRunsTo = len(runs)
	l.gen++
}

// checkBatches: of a batch whose answer was lost all jobs are there, or none.
func (l *ledger) checkBatches(t *testing.T) {
	t.Helper()
	for _, ids := range take(l, &l.batches) {
		l.mu.Lock()
		n := 0
		for _, id := range ids {
			if l.jobLocked(id).submitted {
				n++
			}
		}
		l.mu.Unlock()
		if n != 0 && n != len(ids) {
			t.Errorf("of a batch of %d jobs %d are there", len(ids), n)
		}
	}
}

func (l *ledger) lostBatch(ids []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.batches = append(l.batches, ids)
}

// waiting counts acknowledged jobs that nobody has seen final.
func (l *ledger) waiting() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.jobs {
		if a.acked && a.told == "" && a.final == "" {
			n++
		}
	}
	return n
}

func (l *ledger) ids(want func(*account) bool) (out []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, a := range l.jobs {
		if want(a) {
			out = append(out, id)
		}
	}
	return out
}

// open are the jobs that the journal knows and that have not ended.
func (l *ledger) open() []string {
	return l.ids(func(a *account) bool { return a.submitted && a.final == "" })
}

func (l *ledger) acknowledged() []string { return l.ids(func(a *account) bool { return a.acked }) }

// checkListed compares a job as it is listed with the journal.
func (l *ledger) checkListed(t *testing.T, j wire.Job) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.jobs[j.Id]
	if a == nil || !a.submitted {
		t.Errorf("job %s is listed and was never submitted", j.Id)
		return
	}
	if want := "job." + string(j.Status); a.final != want {
		t.Errorf("job %s is listed as %s, the journal says %q", j.Id, j.Status, a.final)
	}
}

// checkEnd looks at every account when all jobs have ended.
func (l *ledger) checkEnd(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, a := range l.jobs {
		if a.acked && !a.submitted {
			t.Errorf("the acknowledged job %s is not in the journal", id)
		}
		if a.final == "" && a.submitted {
			t.Errorf("job %s has not ended", id)
		}
		if a.told != "" && a.final != "job."+string(a.told) {
			t.Errorf("job %s was told to be %s and is %s", id, a.told, a.final)
		}
		if a.final == "job.completed" && a.runs == 0 {
			t.Errorf("job %s completed without a run", id)
		}
		for _, dep := range a.needs {
			if l.jobs[dep].final != "job.completed" && a.final != "job.cancelled" {
				t.Errorf("job %s is %s although %s, which it needs, is %s", id, a.final, dep, l.jobs[dep].final)
			}
		}
		// A start is recorded beside the work: a kill may come between the two.
		if a.runs > a.starts+l.gen {
			t.Errorf("job %s ran %d times in %d attempts", id, a.runs, a.starts)
		}
	}
}

// summary says how much was tested.
func (l *ledger) summary() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var acked, runs, again, cancels, ended, unrecorded int
	for _, a := range l.jobs {
		if a.acked {
			acked++
		}
		runs += a.runs
		if a.runs > 1 {
			again++
		}
		if a.cancelAcked {
			cancels++
		}
		if a.final != "" {
			ended++
		}
		if a.runs > a.starts {
			unrecorded++
		}
	}
	return fmt.Sprintf("%d jobs (%d acknowledged, %d ended), %d runs (%d jobs more than once, %d with a run whose start a kill kept from the disk), %d cancels, %d submits repeated, %d journal events, %d followed records",
		len(l.jobs), acked, ended, runs, again, unrecorded, cancels, l.resubmitted, l.events, l.followed)
}
