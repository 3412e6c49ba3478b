package main

import (
	"context"
	"fmt"
	"net/http"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

// each acts on jobs one after the other; one that fails does not stop the
// others, and its error is told at once.
func (a *app) each(ctx context.Context, ids []string, act func(id string) (reply[wire.Job], error), done func(wire.Job) string) error {
	var last error
	for _, id := range ids {
		job, err := act(id)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			if last != nil {
				a.complain(last)
			}
			last = fmt.Errorf("job %s: %w", id, err)
			continue
		}
		if a.json {
			if err := a.printLine(job.raw); err != nil {
				return err
			}
			continue
		}
		a.say("%s", done(job.value))
	}
	return last
}

func newCancel(a *app) *cobra.Command {
	var reason string
	var wait bool
	cmd := &cobra.Command{
		Use: "cancel JOB…", GroupID: groupJobs, Args: count(1, -1),
		Short: "Cancel jobs, whether they wait or run",
		Long: `Cancels jobs. A waiting job is cancelled at once. A running one is asked to
stop, then interrupted, then its worker is killed; it counts as cancelled when
its work has really stopped. --wait stays until then.`,
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			return a.each(ctx, args, func(id string) (reply[wire.Job], error) {
				job, err := read[wire.Job](c.CancelJob(ctx, id, wire.CancelRequest{Reason: reason}))
				if err != nil || !wait || final(job.value.Status) {
					return job, err
				}
				return a.waitOne(ctx, c, id)
			}, func(j wire.Job) string {
				switch {
				case j.Status == wire.JobStatusCancelled:
					return "job " + j.Id + " is cancelled"
				case final(j.Status):
					return "job " + j.Id + " had ended before: " + string(j.Status)
				}
				return "job " + j.Id + " is asked to stop; cjm-ctl wait " + j.Id + " shows when it has"
			})
		}),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for those who look at the job later")
	cmd.Flags().BoolVar(&wait, "wait", false, "stay until the work has stopped")
	return cmd
}

func newPriority(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "priority JOB N", GroupID: groupJobs, Args: count(2, 2),
		Short: "Change the priority of a waiting job (higher is more urgent)",
		Long:  "Changes the priority of a waiting job; it keeps its age.\nFor a negative number write: cjm-ctl priority JOB -- -5",
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			n, err := strconv.Atoi(args[1])
			if err != nil {
				return usagef("a priority is a whole number, not %q", args[1])
			}
			return a.each(ctx, args[:1], func(id string) (reply[wire.Job], error) {
				return read[wire.Job](c.PatchJob(ctx, id, nil, wire.JobPatch{Priority: &n}))
			}, func(j wire.Job) string { return fmt.Sprintf("job %s has priority %d", j.Id, j.Priority) })
		}),
	}
}

// newSteer makes a verb that acts on jobs and needs no more than their ids.
func newSteer(a *app, use, short, done string, act func(*client.API) func(context.Context, wire.JobID, ...client.RequestEditorFn) (*http.Response, error)) *cobra.Command {
	return &cobra.Command{
		Use: use + " JOB…", GroupID: groupJobs, Args: count(1, -1), Short: short,
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			return a.each(ctx, args, func(id string) (reply[wire.Job], error) {
				return read[wire.Job](act(c)(ctx, id))
			}, func(j wire.Job) string { return fmt.Sprintf(done, j.Id) })
		}),
	}
}

func newHold(a *app) *cobra.Command {
	return newSteer(a, "hold", "Keep waiting jobs from starting", "job %s is held; cjm-ctl release starts it",
		func(c *client.API) func(context.Context, wire.JobID, ...client.RequestEditorFn) (*http.Response, error) {
			return c.HoldJob
		})
}

func newRelease(a *app) *cobra.Command {
	return newSteer(a, "release", "Let held jobs start", "job %s is released",
		func(c *client.API) func(context.Context, wire.JobID, ...client.RequestEditorFn) (*http.Response, error) {
			return c.ReleaseJob
		})
}

func newRetry(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "retry JOB…", GroupID: groupJobs, Args: count(1, -1),
		Short: "Submit ended jobs again, and print the ids of the new ones",
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			return a.each(ctx, args, func(id string) (reply[wire.Job], error) {
				job, err := read[wire.Job](c.RetryJob(ctx, id))
				if err == nil && !a.json {
					fmt.Fprintln(a.out.w, job.value.Id)
				}
				return job, err
			}, func(j wire.Job) string { return "job " + j.RetryOf + " runs again as " + j.Id })
		}),
	}
}
