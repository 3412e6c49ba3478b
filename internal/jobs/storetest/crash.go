package storetest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
)

const crashDir = "CJM_STORETEST_CRASH_DIR"

// Child is called first in TestMain of a package that uses Crash. In the
// process that Crash starts it writes under load until it is killed.
func Child(open Open) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		return
	}
	st, err := open(dir)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	var mu sync.Mutex
	say := func(words ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Println(words...)
	}
	for w := range 8 {
		go func() {
			for i := 0; ; i++ {
				if err := life(st, fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i), say); err != nil {
					say("error", err)
				}
			}
		}()
	}
	select {}
}

// life takes one job from submit to its end and says what was acknowledged.
func life(st jobs.Store, id string, say func(...any)) error {
	ctx := context.Background()
	if _, err := st.Write(jobs.Write{Insert: []jobs.NewJob{job(id)}}).Wait(ctx); err != nil {
		return err
	}
	say("inserted", id)
	one := 1
	start := st.Write(jobs.Write{Change: &jobs.Change{ID: jobs.ID(id), From: jobs.Pending, To: jobs.Running, Attempt: &one,
		Events: []events.Draft{{Kind: events.JobStarted, Job: id}}}})
	end := st.Write(jobs.Write{Change: &jobs.Change{ID: jobs.ID(id), From: jobs.Running, To: jobs.Completed, FinishedAt: time.Unix(9, 0),
		Result: &jobs.StoredResult{Info: jobs.ResultInfo{Size: int64(len(id))}, Body: []byte(id)},
		Events: []events.Draft{{Kind: events.JobCompleted, Job: id}}}})
	if _, err := start.Wait(ctx); err != nil {
		return err
	}
	if _, err := end.Wait(ctx); err != nil {
		return err
	}
	say("completed", id)
	return nil
}

// Crash kills a writing process again and again and holds the store to its
// word: every acknowledged write is there, each job's events fit its row, and
// the journal has no gap.
func Crash(t *testing.T, open Open, rounds int) {
	dir := t.TempDir()
	acked := map[string]string{}
	for range rounds {
		crashOnce(t, dir, acked)
		st, err := open(dir)
		require.NoError(t, err)
		verify(t, st, acked)
		require.NoError(t, st.Close())
	}
	require.NotEmpty(t, acked)
}

// crashOnce runs a child until a random number of acknowledgements was read.
func crashOnce(t *testing.T, dir string, acked map[string]string) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	left := 100 + rand.N(800)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		word, id, ok := strings.Cut(lines.Text(), " ")
		if word == "error" {
			t.Errorf("the writing process failed: %s", id)
		}
		if ok && (word == "inserted" || word == "completed") {
			acked[id] = word
		}
		if left--; left == 0 {
			require.NoError(t, cmd.Process.Kill())
		}
	}
	var exit *exec.ExitError
	require.ErrorAs(t, cmd.Wait(), &exit, "it was killed")
}

func verify(t *testing.T, st jobs.Store, acked map[string]string) {
	t.Helper()
	ctx := context.Background()
	kinds := map[string][]events.Kind{}
	next := events.Seq(1)
	for {
		evs, err := st.EventsSince(ctx, next-1, events.Filter{}, 5000)
		require.NoError(t, err)
		if len(evs) == 0 {
			break
		}
		for _, e := range evs {
			require.Equal(t, next, e.Seq, "a gap in the journal")
			next++
			kinds[e.Job] = append(kinds[e.Job], e.Kind)
		}
	}
	order := []events.Kind{events.JobSubmitted, events.JobStarted, events.JobCompleted}
	for id, word := range acked {
		j, err := st.Get(ctx, jobs.ID(id))
		require.NoError(t, err, "an acknowledged job is lost")
		n := map[jobs.Status]int{jobs.Pending: 1, jobs.Running: 2, jobs.Completed: 3}[j.Status]
		require.Equal(t, order[:n], kinds[id], "events and row of %s differ", id)
		if word == "completed" {
			require.Equal(t, jobs.Completed, j.Status)
			r, err := st.Result(ctx, j.ID)
			require.NoError(t, errors.Join(err, r.Close()))
		}
	}
}
