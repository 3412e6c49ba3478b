package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

func newProfile(a *app) *cobra.Command {
	var reset bool
	cmd := &cobra.Command{
		Use: "profile NAME", GroupID: groupPlugins, Args: count(1, 1),
		Short: "What a plugin's workers need, and where each number comes from",
		Long: `Shows what the scheduler reckons with, and what was learned from earlier loads
and runs, one profile for each configuration and model of accelerator.
--reset forgets what was learned about the plugin.`,
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			if reset {
				if _, err := read[struct{}](c.ResetProfile(ctx, args[0])); err != nil {
					return err
				}
				a.say("what was learned about %s is forgotten", args[0])
				return nil
			}
			p, err := read[wire.Profile](c.GetProfile(ctx, args[0]))
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(p.raw)
			}
			return a.showProfile(p.value)
		}),
	}
	cmd.Flags().BoolVar(&reset, "reset", false, "forget what was learned")
	return cmd
}

func (a *app) showProfile(p wire.Profile) error {
	facts := []fact{{"plugin", p.Name}, {"configuration", p.ConfigHash}}
	facts = append(facts, needFacts(p.Need)...)
	if err := a.printFacts(facts...); err != nil {
		return err
	}
	if len(p.Profiles) == 0 {
		a.say("nothing was learned yet")
		return nil
	}
	fmt.Fprintln(a.out.w)
	t := &table{cols: []column{{title: "CONFIG", flex: true, min: 6}, {title: "DEVICE", flex: true, min: 6}, {title: "FIGURE"}, {title: "SET ASIDE", right: true},
		{title: "MOST", right: true}, {title: "P95", right: true}, {title: "SAMPLES", right: true}, {title: "OOM", right: true}, {title: "SOURCE"}}}
	for _, l := range p.Profiles {
		config := l.ConfigHash
		if l.Current {
			config = "in force"
		}
		for _, x := range []struct {
			name string
			f    wire.LearnedFigure
		}{{"load vram", l.ResidentVram}, {"run vram", l.ExecuteVram}, {"both vram", l.WholeVram}, {"load ram", l.ResidentRam}, {"run ram", l.ExecuteRam}} {
			if x.f.Samples == 0 && x.f.Ooms == 0 && x.f.MaxMb == 0 {
				continue
			}
			t.row(config, l.DeviceModel, x.name, sizeMB(x.f.Mb), sizeMB(x.f.MaxMb), sizeMB(x.f.P95Mb), fmt.Sprint(x.f.Samples), fmt.Sprint(x.f.Ooms), x.f.Source)
		}
		for _, x := range []struct {
			name string
			t    wire.LearnedTimes
		}{{"load time", l.Load}, {"run time", l.Run}} {
			if x.t.Count > 0 {
				t.row(config, l.DeviceModel, x.name, millis(x.t.P50Ms), "", "p90 "+millis(x.t.P90Ms), fmt.Sprint(x.t.Count), "", "clock")
			}
		}
	}
	return a.printTable(t)
}

func millis(ms int64) string { return span(time.Duration(ms) * time.Millisecond) }

// needFacts says what a worker takes, in words.
func needFacts(n wire.Need) []fact {
	facts := []fact{{"host memory", amount(n.ResidentRamMb, n.ExecuteRamMb)}}
	switch {
	case !n.Gpu:
		facts = append(facts, fact{"accelerator", "none"})
	case !n.Known:
		facts = append(facts, fact{"accelerator", "unknown: its first run gets one to itself and measures"})
	default:
		text := amount(n.ResidentVramMb, n.ExecuteVramMb)
		if n.Devices > 1 {
			text += fmt.Sprintf(", on each of %d", n.Devices)
		}
		facts = append(facts, fact{"accelerator", text})
	}
	if words := map[string]string{"manifest": "the manifest", "profile": "learned from earlier runs", "measured": "read off its worker", "none": ""}[n.Source]; words != "" {
		facts = append(facts, fact{"known from", words})
	}
	return facts
}

// amount is what a worker takes for itself and what each of its jobs adds.
func amount(resident, execute float64) string {
	var parts []string
	if resident > 0 {
		parts = append(parts, sizeMB(resident)+" loaded")
	}
	if execute > 0 {
		parts = append(parts, sizeMB(execute)+" for each job")
	}
	if len(parts) == 0 {
		return "nothing is asked for"
	}
	return strings.Join(parts, " + ")
}
