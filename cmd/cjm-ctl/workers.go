package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

func newWorkers(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "workers [NAME]", Aliases: []string{"worker"}, GroupID: groupLook, Args: count(0, 1),
		Short: "Worker processes: state, memory, jobs; with a name, all about one",
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			if len(args) == 1 {
				w, err := read[wire.Worker](c.GetWorker(ctx, args[0]))
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(w.raw)
				}
				return a.showWorker(w.value)
			}
			list, err := read[wire.WorkerList](c.ListWorkers(ctx))
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(list.raw)
			}
			if len(list.value.Workers) == 0 {
				a.say("no worker is known yet: one starts with its plugin's first job, or with cjm-ctl load NAME")
				return nil
			}
			return a.printWorkers(list.value.Workers)
		}),
	}
}

func (a *app) printWorkers(workers []wire.Worker) error {
	t := &table{cols: []column{{title: "WORKER", flex: true, min: 20}, {title: "STATE"}, {title: "SINCE"}, {title: "PID", right: true},
		{title: "MEMORY", right: true}, {title: "CALLS", right: true}, {title: "RESTARTS", right: true}, {title: "NOTE", flex: true, min: 10}}}
	t.paint = func(col int, text, padded string) string {
		if col == 1 {
			return a.out.paintWord(text, padded)
		}
		return padded
	}
	for _, w := range workers {
		pid, rss := "", ""
		if w.Pid > 0 {
			pid = fmt.Sprint(w.Pid)
		}
		if w.RssMb > 0 {
			rss = sizeMB(w.RssMb)
		}
		note := w.LastError
		if len(w.Jobs) > 0 {
			note = strings.Join(w.Jobs, " ")
		} else if w.Message != "" {
			note = w.Message
		}
		t.row(w.Id, string(w.State), ago(a.now(), w.Since), pid, rss, fmt.Sprint(w.CallsTotal), fmt.Sprint(w.Restarts), note)
	}
	return a.printTable(t)
}

func (a *app) showWorker(w wire.Worker) error {
	facts := []fact{
		{"worker", w.Id}, {"plugin", w.Plugin}, {"state", string(w.State)},
		{"since", ago(a.now(), w.Since)}, {"cause", w.Cause},
		{"last error", w.LastError}, {"last exit", w.LastExit},
		{"restarts", fmt.Sprintf("%d (%d processes so far)", w.Restarts, w.Generation)},
		{"calls", fmt.Sprintf("%d, at most %d at once", w.CallsTotal, w.Concurrency)},
		{"jobs", strings.Join(w.Jobs, " ")},
		{"runtime", strings.TrimSpace(w.Runtime + " " + w.Version)}, {"tier", w.Tier},
		{"capabilities", strings.Join(w.Capabilities, " ")},
	}
	if w.Pid > 0 {
		facts = append(facts, fact{"pid", fmt.Sprint(w.Pid)}, fact{"memory", sizeMB(w.RssMb)}, fact{"cpu", fmt.Sprintf("%.0f%%", w.CpuPercent)})
	}
	facts = append(facts, fact{"accelerators", strings.Join(w.Devices, " ")})
	for _, dev := range slices.Sorted(maps.Keys(w.DeviceMemoryMb)) {
		facts = append(facts, fact{"its own account", fmt.Sprintf("%s of %s", sizeMB(w.DeviceMemoryMb[dev]), dev)})
	}
	if w.LoadMs > 0 {
		facts = append(facts, fact{"loaded in", fmt.Sprintf("%d ms", w.LoadMs)})
	}
	if !w.RetryAt.IsZero() {
		facts = append(facts, fact{"starts again", ago(a.now(), w.RetryAt)})
	}
	if err := a.printFacts(facts...); err != nil || len(w.Isolation) == 0 {
		return err
	}
	fmt.Fprintln(a.out.w)
	return a.printIsolation(w.Isolation)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
