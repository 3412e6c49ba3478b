package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

func newQueue(a *app) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use: "queue", GroupID: groupLook, Args: count(0, 0),
		Short: "What runs, what waits and in which order, what ended last",
		RunE: a.do(func(ctx context.Context, c *client.API, _ []string) error {
			q, err := read[wire.Queue](c.GetQueue(ctx, &wire.GetQueueParams{Limit: &limit}))
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(q.raw)
			}
			return a.showQueue(q.value)
		}),
	}
	cmd.Flags().IntVar(&limit, "limit", 20, "at most this many of each")
	return cmd
}

// showWaiting says why plugins wait, one line each.
func (a *app) showWaiting(groups []wire.WaitingGroup) error {
	if len(groups) == 0 {
		return nil
	}
	fmt.Fprintln(a.out.w, a.out.paint(bold, "Waiting:"))
	t := &table{cols: []column{{title: "PLUGIN", flex: true, min: 8}, {title: "JOBS", right: true}, {title: "REASON"}, {title: "WHY", flex: true, min: 20}}}
	for _, g := range groups {
		t.row(g.Plugin, fmt.Sprint(g.Queued), g.Block.Code, g.Block.Sentence)
	}
	if err := a.printTable(t); err != nil {
		return err
	}
	fmt.Fprintln(a.out.w)
	return nil
}

func (a *app) showQueue(q wire.Queue) error {
	if q.Controls.Mode != wire.QueueModeRunning || len(q.Controls.Plugins) > 0 {
		fmt.Fprintln(a.out.w, a.out.paint(yellow, "queue: "+harmless(controlsText(q.Controls), false)))
	}
	if err := a.showWaiting(q.Waiting); err != nil {
		return err
	}
	for _, part := range []struct {
		title string
		total int64
		jobs  []wire.Job
		shape jobsShape
	}{
		{"Running", q.Totals.Running, q.Running, jobsInQueue},
		{"Pending", q.Totals.Pending, q.Pending, jobsInQueue},
		{"Ended", q.Totals.Completed + q.Totals.Failed + q.Totals.Cancelled, q.History, jobsEnded},
	} {
		fmt.Fprintln(a.out.w, a.out.paint(bold, fmt.Sprintf("%s: %d", part.title, part.total)))
		if len(part.jobs) == 0 {
			continue
		}
		if err := a.printJobs(part.jobs, part.shape); err != nil {
			return err
		}
		fmt.Fprintln(a.out.w)
	}
	return nil
}
