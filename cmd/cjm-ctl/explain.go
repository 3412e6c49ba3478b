package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

func newExplain(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "explain JOB", GroupID: groupJobs, Args: count(1, 1), Short: "Why a job waits, with the numbers",
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			e, err := read[wire.Explanation](c.ExplainJob(ctx, args[0]))
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(e.raw)
			}
			return a.showExplanation(e.value)
		}),
	}
}

func (a *app) showExplanation(x wire.Explanation) error {
	if _, err := fmt.Fprintln(a.out.w, harmless(x.Sentence, false)); err != nil {
		return err
	}
	facts := []fact{{"job", x.Job}, {"status", strings.TrimSpace(string(x.Status) + " " + string(x.Phase))}, {"policy", x.Policy}}
	if x.Ahead > 0 {
		facts = append(facts, fact{"ahead", fmt.Sprintf("%d jobs of the same plugin", x.Ahead)})
	}
	facts = append(facts, a.blockFacts(x.Block)...)
	if final(x.Status) {
		return a.printFacts(facts...)
	}
	if r := x.Rank; r != nil {
		facts = append(facts, fact{"rank", rankText(*r)})
	}
	if n := x.Need; n != nil && x.Policy != "permissive" {
		facts = append(facts, needFacts(*n)...)
	}
	if x.Slots > 0 {
		facts = append(facts, fact{"worker", fmt.Sprintf("%s, %d of %d slots free", cmp.Or(x.Worker, "none yet"), x.SlotsFree, x.Slots)})
	}
	if s := x.Shadow; s != nil {
		facts = append(facts, a.shadowFact(*s))
	}
	if err := a.printFacts(facts...); err != nil || len(x.Devices) == 0 || x.Need == nil || !x.Need.Gpu {
		return err
	}
	fmt.Fprintln(a.out.w)
	return a.printPools(x.Devices)
}

func (a *app) blockFacts(b *wire.Block) []fact {
	if b == nil {
		return nil
	}
	facts := []fact{{"reason", b.Code}, {"held up by", strings.Join(b.Holders, " ")}}
	for _, s := range b.Needs {
		facts = append(facts, fact{"lacks", shortfall(s)})
	}
	if !b.Since.IsZero() {
		facts = append(facts, fact{"since", ago(a.now(), b.Since)})
	}
	if !b.Earliest.IsZero() {
		facts = append(facts, fact{"may change", ago(a.now(), b.Earliest)})
	}
	return facts
}

// rankText is the sum that orders jobs, as people write sums.
func rankText(r wire.Rank) string {
	text := fmt.Sprintf("%s priority", points(r.Priority))
	for _, term := range []struct {
		n    float64
		name string
	}{{r.Age, "age"}, {r.Share, "share"}} {
		sign := "+"
		if term.n < 0 {
			sign, term.n = "−", -term.n
		}
		text += fmt.Sprintf(" %s %s %s", sign, points(term.n), term.name)
	}
	text += " = " + points(r.Total)
	if r.Affinity {
		text += "; may go before, its worker is loaded"
	}
	return text
}

func points(n float64) string { return strings.TrimSuffix(fmt.Sprintf("%.1f", n), ".0") }
