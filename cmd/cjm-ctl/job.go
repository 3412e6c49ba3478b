package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

func newJob(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "job JOB", GroupID: groupJobs, Args: count(1, 1), Short: "Everything about one job",
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			job, err := read[wire.Job](c.GetJob(ctx, args[0], nil))
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(job.raw)
			}
			return a.showJob(job.value)
		}),
	}
}

func (a *app) showJob(j wire.Job) error {
	if err := a.printFacts(a.jobFacts(j)...); err != nil {
		return err
	}
	if j.Error != nil {
		head := a.out.paint(red, "error") + ": " + string(j.Error.Category)
		if j.Error.Type != "" {
			head += ", " + harmless(j.Error.Type, false)
		}
		fmt.Fprintln(a.out.w)
		for _, line := range failureLines(a.out, head, j) {
			fmt.Fprintln(a.out.w, line)
		}
	}
	return nil
}

func (a *app) jobFacts(j wire.Job) []fact {
	attempt := ""
	if j.Attempt > 0 || j.MaxAttempts > 1 {
		attempt = fmt.Sprintf("%d of %d", j.Attempt, j.MaxAttempts)
	}
	deps := strings.Join(j.DependsOn, " ")
	if j.OnDependencyFailure == "run" {
		deps += " (runs whatever becomes of them)"
	}
	facts := []fact{
		{"job", j.Id}, {"plugin", j.Plugin}, {"status", status(j)},
		{"priority", fmt.Sprint(j.Priority)}, {"attempt", attempt},
		{"submitted", a.moment(j.CreatedAt) + by(j.Submitter)},
		{"started", a.moment(j.StartedAt)}, {"ended", a.moment(j.FinishedAt)}, {"took", a.took(j)},
		{"task", j.Task}, {"method", j.Method},
		{"args", notEmpty(string(j.Args), "[]")}, {"kwargs", notEmpty(string(j.Kwargs), "{}")},
		{"labels", labelsText(j.Labels)},
		{"depends on", deps}, {"retry of", j.RetryOf},
		{"queue timeout", j.QueueTimeout}, {"run timeout", j.RunTimeout},
	}
	if b := j.Block; b != nil {
		facts = append(facts, fact{"waits", b.Sentence + " (" + b.Code + ")"}, fact{"held up by", strings.Join(b.Holders, " ")})
	}
	if j.Progress != nil && !final(j.Status) {
		facts = append(facts, fact{"progress", strings.TrimSpace(percent(*j.Progress) + " " + j.Message)})
	}
	if !j.CancelRequestedAt.IsZero() {
		facts = append(facts, fact{"cancelled", strings.TrimSpace(a.moment(j.CancelRequestedAt) + " " + j.CancelReason)})
	}
	if r := j.Result; r != nil {
		text := size(r.Size) + " of " + r.ContentType
		if r.Partial {
			text += ", partial"
		}
		facts = append(facts, fact{"result", text + " (cjm-ctl result " + j.Id + ")"})
	}
	if j.LastError != nil && j.Error == nil {
		facts = append(facts, fact{"last error", string(j.LastError.Category) + ": " + j.LastError.Message})
	}
	return facts
}

// moment is a time as people read it, "" for none.
func (a *app) moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05") + " (" + ago(a.now(), t) + ")"
}

func by(who string) string {
	if who == "" {
		return ""
	}
	return " by " + who
}

func notEmpty(s, empty string) string {
	if s == empty {
		return ""
	}
	return s
}

func labelsText(l wire.Labels) string {
	var out []string
	for k, v := range l {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}
