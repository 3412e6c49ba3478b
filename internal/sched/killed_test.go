package sched_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// The scheduler on the real queue and its store, killed as by kill -9 at any
// moment and started again. Each life is a process of its own: the test binary,
// which runs TestKilled_OneLife and tells on stdout what it does.
const (
	lifeDir  = "CJMD_TEST_LIFE_DIR"
	lifeName = "CJMD_TEST_LIFE" // "last": takes no new jobs and ends when all are done
	lives    = 8
	perLife  = 60 // jobs
)

func TestKilled_NothingAcceptedIsLostAndNothingFinalRunsAgain(t *testing.T) {
	dir := t.TempDir()
	seen := &lifeLog{t: t, accepted: make(map[string]bool), final: make(map[string]bool), attempt: make(map[string]int), ended: make(map[string]bool)}
	rng := rand.New(rand.NewPCG(20260105, lives))
	for i := range lives - 1 {
		seen.live(dir, fmt.Sprint(i), 1+rng.IntN(3*perLife))
	}
	seen.live(dir, "last", -1)
	if !seen.done {
		t.Fatal("the last life did not end by itself")
	}
	if len(seen.accepted) < perLife {
		t.Fatalf("only %d jobs were accepted", len(seen.accepted))
	}
	seen.check(openReal(t, dir))
	again := 0
	for _, n := range seen.attempt {
		again += n - 1
	}
	t.Logf("%d jobs accepted in %d lives, %d attempts were cut off", len(seen.accepted), lives, again)
	if again == 0 {
		t.Error("no life was ended in the middle of a job: this proves nothing")
	}
}

// lifeLog is what all lives have told.
type lifeLog struct {
	t        *testing.T
	accepted map[string]bool
	final    map[string]bool // as an earlier life has left it
	attempt  map[string]int
	ended    map[string]bool
	running  map[string]bool // in this life
	done     bool
}

// live runs one life and kills it after so many lines; -1: never.
func (l *lifeLog) live(dir, name string, lines int) {
	l.t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilled_OneLife$", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), lifeDir+"="+dir, lifeName+"="+name, "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe() // its end is the life's, should this process die
	if err != nil {
		l.t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.running = make(map[string]bool)
	in := bufio.NewScanner(stdout)
	for n := 1; in.Scan(); n++ { // also what it said before it died
		idle := l.note(in.Text())
		if n == lines || (idle && lines > 0) {
			if err := cmd.Process.Kill(); err != nil {
				l.t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil && lines < 0 {
		l.t.Fatalf("the last life ended with %v", err)
	}
}

// note takes down one line; it reports whether the life has nothing more to do.
func (l *lifeLog) note(line string) (idle bool) {
	what, rest, _ := strings.Cut(line, " ")
	id, number, _ := strings.Cut(rest, " ")
	switch what {
	case "accepted":
		l.accepted[id] = true
	case "final":
		l.final[id] = true
	case "run":
		var attempt int
		if _, err := fmt.Sscan(number, &attempt); err != nil {
			l.t.Fatalf("line %q: %v", line, err)
		}
		if l.final[id] {
			l.t.Errorf("%s runs again, though an earlier life had recorded its end", id)
		}
		if l.running[id] || attempt < l.attempt[id] {
			l.t.Errorf("%s runs twice at once, or its attempts are forgotten: attempt %d after %d", id, attempt, l.attempt[id])
		}
		l.running[id], l.attempt[id] = true, attempt
	case "end":
		l.running[id], l.ended[id] = false, true
	case "idle":
		return true
	case "done":
		l.done = true
	}
	return false
}

// check looks at what is on disk after the last life.
func (l *lifeLog) check(b *realBox) {
	finals := make(map[string]int)
	journal, err := b.store.EventsSince(l.t.Context(), 0, events.Filter{}, 1<<20)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, e := range journal {
		if slices.Contains([]events.Kind{events.JobCompleted, events.JobFailed, events.JobCancelled}, e.Kind) {
			finals[e.Job]++
		}
	}
	for id := range l.accepted {
		j, err := b.queue.Get(l.t.Context(), jobs.ID(id))
		switch {
		case err != nil:
			l.t.Errorf("accepted job %s is lost: %v", id, err)
		case j.Status != jobs.Completed || !l.ended[id]:
			l.t.Errorf("job %s is %s, its run ended: %v", id, j.Status, l.ended[id])
		case j.Attempt < l.attempt[id]:
			l.t.Errorf("job %s says attempt %d, it ran %d", id, j.Attempt, l.attempt[id])
		case finals[id] != 1:
			l.t.Errorf("job %s has %d ends in the journal", id, finals[id])
		}
	}
}

// TestKilled_OneLife is one life of the scheduler, for the test above.
func TestKilled_OneLife(t *testing.T) {
	if os.Getenv(lifeDir) == "" {
		t.Skip("one life of TestKilled_NothingAcceptedIsLostAndNothingFinalRunsAgain")
	}
	b := openReal(t, os.Getenv(lifeDir))
	ended, open := b.all(t)
	for _, id := range ended {
		fmt.Printf("final %s\n", id)
	}
	b.catalog.declare("a", slots(3))
	b.catalog.declare("b")
	b.workers.exec = func(ctx context.Context, _ string, call supervisor.Call) (supervisor.Result, error) {
		fmt.Printf("run %s %d\n", call.ID, call.Attempt)
		select { // some work
		case <-time.After(time.Duration(rand.IntN(3000)) * time.Microsecond):
		case <-ctx.Done():
			return supervisor.Result{}, ctx.Err()
		}
		fmt.Printf("end %s\n", call.ID)
		return supervisor.Result{Payload: []byte("1")}, nil
	}
	b.run(t)
	if os.Getenv(lifeName) == "last" {
		for _, id := range open {
			b.wait(t, id)
		}
		fmt.Println("done")
		return
	}
	b.submitLife(t)
	fmt.Println("idle")
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil { // until it is killed
		t.Fatal(err)
	}
}

// submitLife hands in a life's jobs from several sides at once and waits for some.
func (b *realBox) submitLife(t *testing.T) {
	var wg sync.WaitGroup
	for c := range 4 {
		wg.Go(func() {
			for i := range perLife / 4 {
				id := jobs.ID(fmt.Sprintf("j%s-%d-%d", os.Getenv(lifeName), c, i))
				spec := jobs.Spec{Instance: []string{"a", "b"}[i%2], Args: []byte("[]"), Kwargs: []byte("{}"), MaxAttempts: 100}
				if _, err := b.queue.Submit(context.Background(), []jobs.Submission{{ID: id, Spec: spec, Submitter: "test"}}); err != nil {
					t.Error(err)
					return
				}
				fmt.Printf("accepted %s\n", id)
				if i%5 == 4 {
					b.wait(t, id)
				}
			}
		})
	}
	wg.Wait()
}

// all lists the jobs that are final and those that are not.
func (b *realBox) all(t *testing.T) (ended, open []jobs.ID) {
	t.Helper()
	q := jobs.ListQuery{Limit: 500}
	for {
		page, err := b.queue.List(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		for _, j := range page.Jobs {
			if j.Status.Final() {
				ended = append(ended, j.ID)
			} else {
				open = append(open, j.ID)
			}
		}
		if q.Cursor = page.Next; q.Cursor == "" {
			return ended, open
		}
	}
}
