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

func newPolicy(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "policy [NAME]", GroupID: groupRule, Args: count(0, 1),
		Short: "The rule by which jobs start; with a name, change it",
		Long:  "Shows the scheduler's policy, what memory it may give away, and what is claimed.\nWith a name, changes it until the daemon is started again (scheduler.policy lasts).",
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			var s reply[wire.Scheduler]
			var err error
			if len(args) == 1 {
				s, err = read[wire.Scheduler](c.PutScheduler(ctx, wire.SchedulerRequest{Policy: args[0]}))
			} else {
				s, err = read[wire.Scheduler](c.GetScheduler(ctx))
			}
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(s.raw)
			}
			return a.showScheduler(s.value)
		}),
	}
}

func (a *app) showScheduler(s wire.Scheduler) error {
	memory := ""
	if s.Fresh {
		memory = fmt.Sprintf("%s may be claimed, %s are kept back", sizeMB(s.FreeRamMb), sizeMB(s.MarginMb))
	}
	slots, monitor, shadow := "", s.Monitor, fact{}
	if s.MonitorPlugin != "" {
		monitor += ", served by " + s.MonitorPlugin
	}
	quarantined := strings.Join(slices.Sorted(maps.Keys(s.Quarantined)), " ")
	if s.Shadow != nil {
		shadow = a.shadowFact(*s.Shadow)
	}
	if s.Slots > 0 {
		slots = fmt.Sprint(s.Slots)
	}
	if err := a.printFacts(fact{"policy", s.Policy}, fact{"policies", strings.Join(s.Policies, " ")},
		fact{"monitor", monitor}, fact{"start nothing", quarantined}, fact{"memory", memory}, fact{"slots", slots}, shadow); err != nil || len(s.Claims) == 0 {
		return err
	}
	fmt.Fprintln(a.out.w)
	t := &table{cols: []column{{title: "OWNER", flex: true, min: 20}, {title: "FOR"}, {title: "DEVICE", flex: true, min: 6}, {title: "CLAIM", right: true},
		{title: "MEASURED", right: true}, {title: "BY"}, {title: "PHASE"}, {title: "SINCE", right: true}}}
	for _, x := range s.Claims {
		measured := ""
		if x.MeasuredMb > 0 {
			measured = sizeMB(x.MeasuredMb)
		}
		t.row(x.Owner, x.Kind, x.Device, sizeMB(x.Mb), measured, x.Source, x.Phase, ago(a.now(), x.Since))
	}
	return a.printTable(t)
}
