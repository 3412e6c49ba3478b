package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

func newIsolation(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "isolation [NAME]", GroupID: groupLook, Args: count(0, 1),
		ValidArgsFunction: a.complete(1, false, pluginWords),
		Short:             "How strongly workers are held here; with a name, what is in force for one",
		Long: `Without a name: the tiers of this machine, each of which was tried for real, and the workers that run, with what
was asked for and is not in force.

With a name: every mechanism of its worker, whether it was asked for, whether it is in force, and how that was verified.

  cjm-ctl instances set NAME --isolation 3 --network none    holds it more strongly from its next start on`,
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			if len(args) == 1 {
				w, err := read[wire.Worker](c.GetWorker(ctx, args[0]))
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(w.raw)
				}
				if len(w.value.Isolation) == 0 {
					a.say("no process of %s runs: cjm-ctl load %s", args[0], args[0])
					return nil
				}
				a.say("%s runs in tier %s", args[0], w.value.Tier)
				return a.printIsolation(w.value.Isolation)
			}
			r, err := read[wire.Isolation](c.GetIsolation(ctx))
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(r.raw)
			}
			return a.printTiers(r.value)
		}),
	}
}

// printIsolation is the report of one worker: what is missing stands out.
func (a *app) printIsolation(facts []wire.IsolationFact) error {
	t := &table{cols: []column{{title: "MECHANISM"}, {title: "ASKED FOR"}, {title: "IN FORCE"}, {title: "VERIFIED BY"}, {title: "DETAIL", flex: true, min: 20}}}
	t.paint = a.paintHolds(2)
	for _, f := range facts {
		holds := yesNo(f.InForce)
		if f.Requested && !f.InForce {
			holds = "missing"
		}
		t.row(f.Mechanism, yesNo(f.Requested), holds, f.VerifiedBy, f.Detail)
	}
	return a.printTable(t)
}

func (a *app) printTiers(r wire.Isolation) error {
	t := &table{cols: []column{{title: "TIER", right: true}, {title: "NAME"}, {title: "HERE"}, {title: "NOTE", flex: true, min: 20}}}
	t.paint = a.paintHolds(2)
	for _, x := range r.Tiers {
		here, note := "yes", x.Why
		if !x.Available {
			here = "missing"
		} else if x.Name == r.Auto {
			note = "what auto means here"
		}
		t.row(fmt.Sprint(x.Tier), x.Name, here, note)
	}
	if err := a.printTable(t); err != nil || len(r.Workers) == 0 {
		return err
	}
	fmt.Fprintln(a.out.w)
	t = &table{cols: []column{{title: "WORKER", flex: true, min: 16}, {title: "TIER"}, {title: "WEAKER THAN ASKED FOR", flex: true, min: 30}}}
	for _, w := range r.Workers {
		var missing []string
		for _, f := range w.Weaker {
			missing = append(missing, f.Mechanism+": "+f.Detail)
		}
		t.row(w.Id, w.Tier, strings.Join(missing, "; "))
	}
	return a.printTable(t)
}

// paintHolds colours one column: what holds and what is missing.
func (a *app) paintHolds(column int) func(int, string, string) string {
	return func(col int, text, padded string) string {
		if col == column {
			return a.out.paintWord(text, padded)
		}
		return padded
	}
}
