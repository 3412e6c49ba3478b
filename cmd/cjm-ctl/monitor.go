package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

func newMonitor(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "monitor", GroupID: groupLook, Args: count(0, 0),
		Short: "What the system monitor sees",
		Long:  "Shows the newest sample of the registered system monitor.\nmonitor list shows the others, monitor use NAME registers one.",
		RunE: a.do(func(ctx context.Context, c *client.API, _ []string) error {
			s, err := read[wire.System](c.GetSystem(ctx))
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(s.raw)
			}
			return a.showSystem(s.value)
		}),
	}
	list := &cobra.Command{
		Use: "list", Args: count(0, 0), Short: "Monitors that can be registered",
		RunE: a.do(func(ctx context.Context, c *client.API, _ []string) error {
			m, err := read[wire.MonitorList](c.ListMonitors(ctx))
			if err != nil {
				return err
			}
			return a.showMonitors(m)
		}),
	}
	use := &cobra.Command{
		Use: "use NAME", Args: count(1, 1), Short: "Register the system monitor that gates admission",
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			m, err := read[wire.MonitorList](c.PutMonitor(ctx, wire.MonitorRequest{Name: args[0]}))
			if err != nil {
				return err
			}
			return a.showMonitors(m)
		}),
	}
	cmd.AddCommand(list, use)
	return cmd
}

func (a *app) showMonitors(m reply[wire.MonitorList]) error {
	if a.json {
		return a.printJSON(m.raw)
	}
	t := &table{cols: []column{{title: "MONITOR"}, {title: "BY"}, {title: "REGISTERED"}, {title: "STATE"}, {title: "SAMPLE"}, {title: "ERROR", flex: true, min: 10}}}
	t.paint = func(_ int, text, padded string) string { return a.out.paintWord(text, padded) }
	for _, x := range m.value.Monitors {
		registered := ""
		if x.Registered {
			registered = "yes"
		}
		by := "cjmd"
		if x.Plugin != "" {
			by = "plugin " + x.Plugin
		}
		t.row(x.Name, by, registered, x.State, ago(a.now(), x.At), x.Error)
	}
	return a.printTable(t)
}

// systemFacts is the machine in a few lines.
func systemFacts(s wire.System) []fact {
	if s.Monitor == "" {
		return []fact{{"monitor", "none is registered (cjm-ctl monitor use NAME)"}}
	}
	fresh := "fresh"
	if !s.Fresh {
		fresh = "stale: jobs that need its facts wait"
	}
	facts := []fact{
		{"monitor", s.Monitor + ", " + fresh},
		{"cpu", fmt.Sprintf("%.0f%% of %d", s.CpuPercent, s.Cpus)},
		{"memory", fmt.Sprintf("%s available of %s", sizeMB(s.MemoryAvailableMb), sizeMB(s.MemoryTotalMb))},
	}
	claimable := map[string]float64{}
	for _, l := range s.Ledger {
		claimable[l.Uuid] = l.FreeMb
	}
	for _, d := range s.Devices {
		text := fmt.Sprintf("%s, %s free of %s, load %.0f%%", d.Name, sizeMB(d.FreeMb), sizeMB(d.TotalMb), d.LoadPercent)
		if mb, ok := claimable[d.Uuid]; ok {
			text = fmt.Sprintf("%s, %s to give away, %s free of %s, load %.0f%%", d.Name, sizeMB(mb), sizeMB(d.FreeMb), sizeMB(d.TotalMb), d.LoadPercent)
		}
		if d.TemperatureCelsius > 0 {
			text += fmt.Sprintf(", %.0f °C", d.TemperatureCelsius)
		}
		facts = append(facts, fact{fmt.Sprintf("gpu %d", d.Index), text})
	}
	return facts
}

func (a *app) showSystem(s wire.System) error {
	facts := systemFacts(s)
	if s.Monitor != "" {
		facts = append(facts, fact{"sample", ago(a.now(), s.At)})
	}
	if err := a.printFacts(facts...); err != nil || len(s.Processes) == 0 {
		return err
	}
	fmt.Fprintln(a.out.w)
	t := &table{cols: []column{{title: "PID", right: true}, {title: "GPU", right: true}, {title: "MEMORY", right: true}, {title: "COMMAND", flex: true, min: 10}}}
	for _, p := range s.Processes {
		t.row(fmt.Sprint(p.Pid), fmt.Sprint(p.GpuIndex), sizeMB(p.GpuMemoryMb), p.Command)
	}
	return a.printTable(t)
}
