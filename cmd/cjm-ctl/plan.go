package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

func newPlan(a *app) *cobra.Command {
	var body wire.PlanRequest
	var vram, ram string
	var devices int
	cmd := &cobra.Command{
		Use: "plan [PLUGIN]", GroupID: groupRule, Args: count(0, 1),
		Short: "What would happen to a job now: start, wait, or who had to go for it",
		Long: `A dry run: nothing is queued, started or evicted. With a plugin it asks about
one more job of it, without one about the queue as it stands.`,
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			var p reply[wire.Plan]
			var err error
			if len(args) == 0 {
				if vram != "" || ram != "" || devices > 0 || body.Priority != 0 {
					return usagef("--vram, --ram, --devices and --priority are about a job: name its plugin")
				}
				p, err = read[wire.Plan](c.GetPlan(ctx, &wire.GetPlanParams{}))
			} else {
				body.Plugin = args[0]
				if body.Demand, err = demand(vram, ram, devices); err != nil {
					return err
				}
				p, err = read[wire.Plan](c.PlanJob(ctx, body))
			}
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(p.raw)
			}
			return a.showPlan(p.value)
		}),
	}
	f := cmd.Flags()
	f.IntVar(&body.Priority, "priority", 0, "of the job")
	f.StringVar(&vram, "vram", "", "what it would need of each accelerator, like 12G, instead of what is known")
	f.StringVar(&ram, "ram", "", "what it would need of the host's memory")
	f.IntVar(&devices, "devices", 0, "how many accelerators it would need")
	return cmd
}

// demand is what the flags ask for instead of what is known; nil without flags.
func demand(vram, ram string, devices int) (d *wire.PlanDemand, err error) {
	if vram == "" && ram == "" && devices == 0 {
		return nil, nil
	}
	d = &wire.PlanDemand{RequiresGpu: vram != "" || devices > 0, Devices: devices}
	if vram != "" {
		if d.MinGpuVramMb, err = parseSize(vram); err != nil {
			return nil, err
		}
	}
	if ram != "" {
		if d.MinSystemRamMb, err = parseSize(ram); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func (a *app) showPlan(p wire.Plan) error {
	t := &table{cols: []column{{title: "PLUGIN", flex: true, min: 12}, {title: "WOULD"}, {title: "DETAIL", flex: true, min: 20}}}
	for _, s := range p.Start {
		var detail []string
		if s.Job != "" {
			detail = append(detail, "job "+s.Job)
		}
		if len(s.Devices) > 0 {
			detail = append(detail, "on "+strings.Join(s.Devices, ", "))
		}
		if s.Measure {
			detail = append(detail, "alone there, to measure what it needs")
		}
		t.row(s.Plugin, "start", strings.Join(detail, "; "))
	}
	for _, f := range p.Fail {
		t.row(f.Plugin, "fail", f.Error.Message)
	}
	for _, w := range p.Wait {
		text := w.Block.Sentence
		if !w.Block.Earliest.IsZero() {
			text += " (may change " + ago(a.now(), w.Block.Earliest) + ")"
		}
		t.row(w.Plugin, "wait", text)
	}
	for _, r := range p.Release {
		t.row(r.Plugin, "release", "memory that it can do without, for "+r.Asker)
	}
	for _, e := range p.Evict {
		t.row(e.Plugin, "be evicted", "for "+e.Asker)
	}
	if len(t.rows) == 0 {
		a.say("nothing would change (policy %s)", p.Policy)
	} else if err := a.printTable(t); err != nil {
		return err
	}
	if s := p.Shadow; s != nil {
		fmt.Fprintln(a.out.w)
		return a.printFacts(a.shadowFact(*s))
	}
	return nil
}

// shadowFact says for whom memory is being kept.
func (a *app) shadowFact(s wire.Shadow) fact {
	text := "this job of " + s.Plugin
	if s.Job != "" {
		text = fmt.Sprintf("job %s of %s", s.Job, s.Plugin)
	}
	if len(s.Devices) > 0 {
		text += fmt.Sprintf(", %s on %s", sizeMB(s.VramMb), strings.Join(s.Devices, ", "))
	}
	if !s.At.IsZero() {
		text += ", expected " + ago(a.now(), s.At)
	}
	if s.Draining {
		text += "; nothing more is started there"
	}
	return fact{"reserved for", text}
}
