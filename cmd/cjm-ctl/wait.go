package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

func newWait(a *app) *cobra.Command {
	var limit time.Duration
	cmd := &cobra.Command{
		Use: "wait JOB…", GroupID: groupJobs, Args: count(1, -1),
		Short: "Wait until jobs have ended; the exit code says how",
		Long:  "Waits until every job has ended.\n\n" + exitCodesHelp + "\n\nOf several jobs a failed one counts before a cancelled one.",
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			return a.wait(ctx, c, args, limit)
		}),
	}
	cmd.Flags().DurationVar(&limit, "for", 0, "give up after this long with exit code 6 (default: wait for ever)")
	return cmd
}

func (a *app) wait(ctx context.Context, c *client.API, ids []string, limit time.Duration) error {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, errWaitOver)
		defer cancel()
	}
	var worst error
	for _, id := range ids {
		job, err := a.waitOne(ctx, c, id)
		if err != nil {
			return err
		}
		if a.json {
			if err := a.printLine(job.raw); err != nil {
				return err
			}
		} else {
			a.sayOutcome(job.value)
		}
		if end := outcome(job.value); worst == nil || exitCode(end) == exitJobFailed {
			worst = end
		}
	}
	return worst
}

var errWaitOver = errors.New("the time to wait is over")

// waitOne returns the job when it has ended, or as it is when the time is over.
// A daemon that restarts meanwhile is waited for.
func (a *app) waitOne(ctx context.Context, c *client.API, id string) (reply[wire.Job], error) {
	const hold, patience = "30s", 12 // about a minute of a daemon that does not answer
	for failures := 0; ; {
		job, err := read[wire.Job](c.GetJob(ctx, id, &wire.GetJobParams{Wait: new(hold)}))
		var gone *unreachableError
		switch {
		case err == nil && final(job.value.Status):
			return job, nil
		case err == nil:
			failures = 0
		case errors.Is(context.Cause(ctx), errWaitOver):
			return a.lastLook(c, id)
		case !errors.As(err, &gone) || failures == patience:
			return job, err
		default:
			failures++
			if failures == 1 {
				a.say("the daemon does not answer; still waiting")
			}
			if err := sleep(ctx, pause(failures)); err != nil && !errors.Is(err, errWaitOver) {
				return job, err
			}
		}
	}
}

// lastLook reads the job once more after the time to wait.
func (a *app) lastLook(c *client.API, id string) (reply[wire.Job], error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	job, err := read[wire.Job](c.GetJob(ctx, id, nil))
	if errors.Is(err, context.DeadlineExceeded) {
		return job, fmt.Errorf("cannot tell how job %s stands: the daemon does not answer", id)
	}
	return job, err
}

// pause is how long to wait before try number n+1, spread by half.
func pause(n int) time.Duration {
	d := min(250*time.Millisecond<<min(n-1, 6), 10*time.Second)
	return d/2 + rand.N(d/2+1)
}

// sleep waits d or until ctx ends, whose cause it returns.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
