package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

func newExplain(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "explain JOB", GroupID: groupJobs, Args: count(1, 1), Short: "Why a job waits",
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			e, err := read[wire.Explanation](c.ExplainJob(ctx, args[0]))
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(e.raw)
			}
			x := e.value
			facts := []fact{{"job", x.Job}, {"status", strings.TrimSpace(string(x.Status) + " " + string(x.Phase))}, {"policy", x.Policy}}
			if x.Ahead > 0 {
				facts = append(facts, fact{"ahead", fmt.Sprintf("%d jobs of the same plugin", x.Ahead)})
			}
			if b := x.Block; b != nil {
				facts = append(facts, fact{"reason", b.Code}, fact{"held up by", strings.Join(b.Holders, " ")})
				for _, s := range b.Needs {
					facts = append(facts, fact{"lacks", shortfall(s)})
				}
				if !b.Since.IsZero() {
					facts = append(facts, fact{"since", ago(a.now(), b.Since)})
				}
				if !b.Earliest.IsZero() {
					facts = append(facts, fact{"may change", ago(a.now(), b.Earliest)})
				}
			}
			if _, err := fmt.Fprintln(a.out.w, harmless(x.Sentence, false)); err != nil {
				return err
			}
			return a.printFacts(facts...)
		}),
	}
}
