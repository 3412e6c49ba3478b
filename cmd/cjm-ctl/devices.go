package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

func newDevices(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "devices", Aliases: []string{"device"}, GroupID: groupLook, Args: count(0, 0),
		Short: "Memory of the host and of each accelerator: who has it, what is free",
		Long: `Shows each pool of memory as the scheduler accounts for it:

  free = total − margin − external − claimed − leased − quarantined

External is what others than the workers use, at its peak of the last minute;
claimed is the larger of what the workers were promised and what they use.`,
		RunE: a.do(func(ctx context.Context, c *client.API, _ []string) error {
			s, err := read[wire.System](c.GetSystem(ctx))
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(s.raw)
			}
			if !s.value.Fresh {
				a.say("the monitor is silent: these are its last words")
			}
			return a.printLedger(s.value.Ledger)
		}),
	}
}

// deviceName is how a pool is called in tables: people know cards by their index.
func deviceName(d wire.DeviceLedger) string {
	if d.Index == nil {
		return d.Uuid
	}
	return fmt.Sprint(*d.Index)
}

func (a *app) printLedger(pools []wire.DeviceLedger) error {
	if err := a.printPools(pools); err != nil {
		return err
	}
	t := &table{cols: []column{{title: "DEVICE"}, {title: "WORKER", flex: true, min: 12}, {title: "LOADED", right: true}, {title: "JOBS", right: true},
		{title: "MEASURED", right: true}, {title: "COUNTS", right: true}, {title: "BY"}, {title: "PHASE"}}}
	t.paint = func(_ int, text, padded string) string { return a.out.paintWord(text, padded) }
	for _, d := range pools {
		for _, w := range d.Workers {
			t.row(deviceName(d), w.Plugin, sizeMB(w.ResidentMb), some(w.ExecuteMb), some(w.MeasuredMb), sizeMB(w.CountedMb), w.Source, w.Phase)
		}
	}
	if len(t.rows) == 0 {
		return nil
	}
	fmt.Fprintln(a.out.w)
	return a.printTable(t)
}

// printPools prints one line a pool. Sums that are zero everywhere have no
// column: a terminal of 80 has no room for them.
func (a *app) printPools(pools []wire.DeviceLedger) error {
	type sum struct {
		title string
		of    func(wire.DeviceLedger) float64
		keep  bool
	}
	sums := []sum{
		{"TOTAL", func(d wire.DeviceLedger) float64 { return d.TotalMb }, true},
		{"MARGIN", func(d wire.DeviceLedger) float64 { return d.MarginMb }, false},
		{"EXTERNAL", func(d wire.DeviceLedger) float64 { return d.ExternalMb }, true},
		{"CLAIMED", func(d wire.DeviceLedger) float64 { return d.ClaimedMb }, true},
		{"LEASED", func(d wire.DeviceLedger) float64 { return d.LeasedMb }, false},
		{"QUARANTINED", func(d wire.DeviceLedger) float64 { return d.QuarantinedMb }, false},
		{"FREE", func(d wire.DeviceLedger) float64 { return d.FreeMb }, true},
	}
	t := &table{cols: []column{{title: "DEVICE"}, {title: "NAME", flex: true, min: 6}}}
	var shown []sum
	for _, s := range sums {
		for _, d := range pools {
			s.keep = s.keep || s.of(d) != 0
		}
		if s.keep {
			shown = append(shown, s)
			t.cols = append(t.cols, column{title: s.title, right: true})
		}
	}
	t.cols = append(t.cols, column{title: "NOTE", flex: true, min: 6})
	for _, d := range pools {
		row := []string{deviceName(d), d.Name}
		for _, s := range shown {
			row = append(row, sizeMB(s.of(d)))
		}
		switch {
		case d.Exclusive != "":
			row = append(row, d.Exclusive+" measures here alone")
		case d.Unified:
			row = append(row, "shares the host's memory")
		}
		t.row(row...)
	}
	return a.printTable(t)
}

// some is sizeMB, and nothing for nothing.
func some(mb float64) string {
	if mb == 0 {
		return ""
	}
	return sizeMB(mb)
}
