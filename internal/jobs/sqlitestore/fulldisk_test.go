package sqlitestore_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cjmd/cjmd/internal/jobs"
)

const fullDiskDir = "CJM_TEST_FULL_DISK_DIR"

// The disk is "full" for a process whose files may not grow: a limit that holds
// for a whole process, so the test runs in one of its own.
func TestQueue_FullDisk(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fullDiskDir+"="+t.TempDir())
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "held to its word")
}

func fullDiskChild() {
	dir := os.Getenv(fullDiskDir)
	if dir == "" {
		return
	}
	if err := fullDisk(dir); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("held to its word")
	os.Exit(0)
}

func limitFiles(size uint64) error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &lim); err != nil {
		return err
	}
	lim.Cur = min(size, lim.Max)
	return unix.Setrlimit(unix.RLIMIT_FSIZE, &lim)
}

func fullDisk(dir string) error {
	signal.Ignore(unix.SIGXFSZ)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	st, err := open(dir)
	if err != nil {
		return err
	}
	q, err := jobs.NewQueue(jobs.Options{Store: st, LogDir: dir + "/logs", JobDir: dir + "/jobs"})
	if err != nil {
		return err
	}
	if _, err := q.Recover(ctx); err != nil {
		return err
	}
	submit := func(n int) (jobs.Job, error) {
		s := spec
		s.Args = []byte(`["` + strings.Repeat("x", n) + `"]`)
		out, err := q.Submit(ctx, []jobs.Submission{{Spec: s}})
		if err != nil {
			return jobs.Job{}, err
		}
		return out[0].Job, nil
	}
	first, err := submit(10)
	if err != nil {
		return err
	}
	run, err := q.Admit(ctx, first.ID, "w")
	if err != nil {
		return err
	}
	if err := run.WaitStarted(ctx); err != nil {
		return err
	}
	waiting, err := submit(10)
	if err != nil {
		return err
	}
	if err := limitFiles(4096); err != nil { // the write-ahead log is larger than that already
		return err
	}
	return errors.Join(duringFull(ctx, q, run, submit, waiting.ID), st.Close())
}

func duringFull(ctx context.Context, q *jobs.Queue, run *jobs.Run, submit func(int) (jobs.Job, error), waiting jobs.ID) error {
	for range 3 {
		if _, err := submit(20000); !errors.Is(err, jobs.ErrStoreUnavailable) || !errors.Is(err, unix.ENOSPC) {
			return fmt.Errorf("a submit on a full disk was answered with %v", err)
		}
	}
	if _, err := q.Cancel(ctx, waiting, "ann", ""); !errors.Is(err, jobs.ErrStoreUnavailable) {
		return fmt.Errorf("a cancel on a full disk was answered with %v", err)
	}
	if j, err := q.Get(ctx, waiting); err != nil || j.Status != jobs.Pending {
		return fmt.Errorf("what was not stored shows: %v %v", j.Status, err)
	}
	if _, err := q.Cancel(ctx, run.Job().ID, "ann", ""); !errors.Is(err, jobs.ErrStoreUnavailable) || len(q.Cancels()) != 1 {
		return fmt.Errorf("a cancel of a running job on a full disk was answered with %v, or not passed on", err)
	}
	second, err := q.Admit(ctx, waiting, "w") // its start cannot be stored yet
	if err != nil {
		return err
	}
	if _, err := q.Cancel(ctx, waiting, "ann", ""); !errors.Is(err, jobs.ErrStoreUnavailable) {
		return fmt.Errorf("a cancel of a job whose start is not stored was answered with %v", err)
	}
	ended := make(chan error, 2)
	for _, r := range []*jobs.Run{run, second} {
		go func() {
			j, err := r.Finish(ctx, jobs.Outcome{Status: jobs.Completed, Result: []byte(`"` + strings.Repeat("y", 20000) + `"`)})
			if err == nil && j.Status != jobs.Completed {
				err = fmt.Errorf("ended %s", j.Status)
			}
			ended <- err
		}()
	}
	select {
	case err := <-ended:
		return fmt.Errorf("a job ended on a full disk: %v", err)
	case <-time.After(300 * time.Millisecond): // longer than the first retries take
	}
	if err := limitFiles(math.MaxUint64); err != nil {
		return err
	}
	if err := errors.Join(<-ended, <-ended); err != nil {
		return fmt.Errorf("a result was lost: %w", err)
	}
	if _, err := submit(20000); err != nil {
		return fmt.Errorf("does not recover: %w", err)
	}
	j, err := q.Get(ctx, waiting)
	if err != nil || j.Status != jobs.Completed || j.Result == nil {
		return fmt.Errorf("the second job: %v %v", j.Status, err)
	}
	return nil
}
