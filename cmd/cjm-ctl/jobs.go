package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

const jobsHelp = `Lists jobs, newest first.

  cjm-ctl jobs --status running,pending
  cjm-ctl jobs --plugin speech --label project=talks --mine`

func newJobs(a *app) *cobra.Command {
	var (
		statuses, labels []string
		plugin           string
		mine, all        bool
		limit            int
	)
	cmd := &cobra.Command{
		Use: "jobs", GroupID: groupLook, Args: count(0, 0), Short: "Jobs, newest first", Long: jobsHelp,
		RunE: a.do(func(ctx context.Context, c *client.API, _ []string) error {
			p := &wire.ListJobsParams{Label: labels, Plugin: optional(plugin)}
			for _, s := range statuses {
				if !wire.JobStatus(s).Valid() {
					return usagef("there is no job status %q: pending, running, completed, failed or cancelled", s)
				}
				p.Status = append(p.Status, wire.JobStatus(s))
			}
			if mine {
				p.Submitter = new("me")
			}
			return a.listJobs(ctx, c, p, limit, all)
		}),
	}
	f := cmd.Flags()
	f.StringSliceVar(&statuses, "status", nil, "only jobs in one of these statuses")
	f.StringVar(&plugin, "plugin", "", "only jobs of this plugin (instance id)")
	f.StringArrayVar(&labels, "label", nil, "only jobs with this label, key=value; may be repeated")
	f.BoolVar(&mine, "mine", false, "only jobs that you submitted")
	f.IntVar(&limit, "limit", 25, "at most this many")
	f.BoolVar(&all, "all", false, "no limit")
	return cmd
}

// optional makes an optional parameter of a flag: empty means left out.
func optional[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

const pageSize = 500 // the API's largest page

// listJobs reads page after page until limit. With --json it prints one object
// as the API has it, the pages' jobs joined.
func (a *app) listJobs(ctx context.Context, c *client.API, p *wire.ListJobsParams, limit int, all bool) error {
	if limit < 1 {
		return usagef("--limit is at least 1")
	}
	var (
		jobs []wire.Job
		raws []json.RawMessage
		next string
	)
	for all || len(jobs) < limit {
		want := pageSize
		if !all {
			want = min(pageSize, limit-len(jobs))
		}
		p.Limit, p.Cursor = &want, optional(next)
		page, err := read[wire.JobPage](c.ListJobs(ctx, p))
		if err != nil {
			return err
		}
		var body struct{ Jobs []json.RawMessage }
		if err := json.Unmarshal(page.raw, &body); err != nil {
			return fmt.Errorf("cannot understand the list of jobs: %w", err)
		}
		jobs, raws = append(jobs, page.value.Jobs...), append(raws, body.Jobs...)
		if next = page.value.Next; next == "" {
			break
		}
	}
	if a.json {
		raw, err := json.Marshal(map[string]any{"jobs": append([]json.RawMessage{}, raws...), "next": next})
		if err != nil {
			return fmt.Errorf("cannot print the jobs: %w", err)
		}
		return a.printJSON(raw)
	}
	if len(jobs) == 0 {
		a.say("no jobs")
		return nil
	}
	if err := a.printJobs(jobs, jobsAll); err != nil {
		return err
	}
	if next != "" {
		a.say("there are more: --limit or --all")
	}
	return nil
}

// jobsShape chooses the columns of a table of jobs.
type jobsShape int

const (
	jobsAll     jobsShape = iota // any status
	jobsInQueue                  // running and pending
	jobsEnded
)

func (a *app) printJobs(jobs []wire.Job, shape jobsShape) error {
	// Ids are there to be copied: one of the daemon's own is never shortened.
	t := &table{cols: []column{{title: "JOB", flex: true, min: 26}, {title: "PLUGIN", flex: true, min: 8}, {title: "STATUS"}}}
	// A terminal of 80 columns has no room for a column of zeros.
	prio := shape != jobsEnded && slices.ContainsFunc(jobs, func(j wire.Job) bool { return j.Priority != 0 })
	if prio {
		t.cols = append(t.cols, column{title: "PRIO", right: true})
	}
	switch shape {
	case jobsInQueue:
		t.cols = append(t.cols, column{title: "AGE", right: true})
	case jobsEnded:
		t.cols = append(t.cols, column{title: "TOOK", right: true}, column{title: "ENDED", right: true})
	default:
		t.cols = append(t.cols, column{title: "TOOK", right: true}, column{title: "SUBMITTED", right: true})
	}
	t.cols = append(t.cols, column{title: "NOTE", flex: true, min: 6})
	t.paint = func(col int, text, padded string) string {
		if col == 2 {
			return a.out.paintWord(text, padded)
		}
		return padded
	}
	for _, j := range jobs {
		row := []string{j.Id, j.Plugin, status(j)}
		if prio {
			row = append(row, fmt.Sprint(j.Priority))
		}
		switch shape {
		case jobsInQueue:
			row = append(row, span(a.now().Sub(j.CreatedAt)), note(j))
		case jobsEnded:
			row = append(row, a.took(j), ago(a.now(), j.FinishedAt), note(j))
		default:
			row = append(row, a.took(j), ago(a.now(), j.CreatedAt), note(j))
		}
		t.row(row...)
	}
	return a.printTable(t)
}

// took is how long a job has been running, or ran.
func (a *app) took(j wire.Job) string {
	switch {
	case j.StartedAt.IsZero():
		return ""
	case j.FinishedAt.IsZero():
		return span(a.now().Sub(j.StartedAt))
	}
	return span(j.FinishedAt.Sub(j.StartedAt))
}

// note is the one thing worth saying about a job in a table.
func note(j wire.Job) string {
	switch {
	case j.Status == wire.JobStatusCancelled && j.CancelReason != "":
		return j.CancelReason
	case j.Error != nil:
		return string(j.Error.Category) + ": " + j.Error.Message
	case j.Block != nil:
		return j.Block.Sentence
	case j.Status == wire.JobStatusRunning && j.Progress != nil:
		return strings.TrimSpace(percent(*j.Progress) + " " + j.Message)
	case j.Message != "" && !final(j.Status):
		return j.Message
	case j.LastError != nil && !final(j.Status):
		return fmt.Sprintf("attempt %d of %d; before: %s", j.Attempt, j.MaxAttempts, j.LastError.Message)
	case j.Position > 0:
		return fmt.Sprintf("place %d", j.Position)
	}
	return ""
}

// percent is a progress as people read it; nothing when the plugin cannot tell.
func percent(p float64) string {
	if p < 0 {
		return ""
	}
	return fmt.Sprintf("%.0f%%", 100*min(p, 1))
}

func final(s wire.JobStatus) bool {
	return s == wire.JobStatusCompleted || s == wire.JobStatusFailed || s == wire.JobStatusCancelled
}
