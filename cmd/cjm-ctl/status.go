package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

func newStatus(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "status", GroupID: groupLook, Args: count(0, 0),
		Short: "The daemon, its queue, workers and machine at a glance",
		RunE: a.do(func(ctx context.Context, c *client.API, _ []string) error {
			return a.showStatus(ctx, c)
		}),
	}
}

// health reads an answer of /readyz, which is Health with 200 and with 503.
func health(resp *http.Response, err error) (reply[wire.Health], error) {
	if err == nil && resp.StatusCode == http.StatusServiceUnavailable && !strings.Contains(resp.Header.Get("Content-Type"), "problem") {
		var out reply[wire.Health]
		defer resp.Body.Close()
		if out.raw, err = io.ReadAll(resp.Body); err != nil {
			return out, broken(err)
		}
		if err := json.Unmarshal(out.raw, &out.value); err != nil {
			return out, fmt.Errorf("cannot understand the answer of the daemon to /readyz: %w", err)
		}
		return out, nil
	}
	return read[wire.Health](resp, err)
}

func (a *app) showStatus(ctx context.Context, c *client.API) error {
	ready, err := health(c.Readyz(ctx))
	if err != nil {
		return err
	}
	ver, err := read[wire.Version](c.GetVersion(ctx))
	if err != nil {
		return err
	}
	queue, err := read[wire.Queue](c.GetQueue(ctx, &wire.GetQueueParams{Limit: new(10)}))
	if err != nil {
		return err
	}
	workers, err := read[wire.WorkerList](c.ListWorkers(ctx))
	if err != nil {
		return err
	}
	system, err := read[wire.System](c.GetSystem(ctx))
	if err != nil {
		return err
	}
	if a.json {
		all, err := json.Marshal(map[string]json.RawMessage{
			"ready": ready.raw, "version": ver.raw, "queue": queue.raw, "workers": workers.raw, "system": system.raw,
		})
		if err != nil {
			return fmt.Errorf("cannot print the status: %w", err)
		}
		return a.printJSON(all)
	}
	if err := a.printFacts(statusFacts(ready.value, ver.value, queue.value, system.value)...); err != nil {
		return err
	}
	if len(workers.value.Workers) > 0 {
		fmt.Fprintln(a.out.w)
		if err := a.printWorkers(workers.value.Workers); err != nil {
			return err
		}
	}
	if len(queue.value.Running)+len(queue.value.Pending) > 0 {
		fmt.Fprintln(a.out.w)
		return a.printJobs(slices.Concat(queue.value.Running, queue.value.Pending), jobsInQueue)
	}
	return nil
}

func statusFacts(ready wire.Health, v wire.Version, q wire.Queue, s wire.System) []fact {
	why := "not ready"
	if ready.Status == wire.HealthStatusDegraded {
		why = "degraded"
	}
	t := q.Totals
	facts := []fact{
		{"daemon", string(ready.Status)},
		{why, strings.Join(ready.Reasons, "; ")},
		{"version", strings.TrimSpace(v.Version + " " + v.Commit)},
		{"queue", controlsText(q.Controls)},
		{"jobs", fmt.Sprintf("%d running, %d pending; %d completed, %d failed, %d cancelled", t.Running, t.Pending, t.Completed, t.Failed, t.Cancelled)},
	}
	return append(facts, systemFacts(s)...)
}

// controlsText says what is paused or draining.
func controlsText(c wire.Controls) string {
	out := string(c.Mode)
	var names []string
	for name := range c.Plugins {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		out += fmt.Sprintf("; %s %s", name, c.Plugins[name])
	}
	return out
}

func newVersion(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "version", GroupID: groupLook, Args: count(0, 0),
		Short: "Versions of cjm-ctl and of the daemon",
		RunE: func(cmd *cobra.Command, args []string) error {
			if !a.json {
				fmt.Fprintln(a.out.w, strings.TrimSpace("cjm-ctl "+version+" "+commit+" "+date))
			}
			return a.do(func(ctx context.Context, c *client.API, _ []string) error {
				v, err := read[wire.Version](c.GetVersion(ctx))
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(v.raw)
				}
				fmt.Fprintln(a.out.w, strings.TrimSpace("cjmd    "+v.value.Version+" "+v.value.Commit+" "+v.value.BuiltAt))
				return nil
			})(cmd, args)
		},
	}
}
