package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

// placementFlags are the flags that say on which accelerators workers sit.
type placementFlags struct {
	cmd                *cobra.Command
	pin, prefer, avoid string
	count              int
}

func addPlacement(cmd *cobra.Command) *placementFlags {
	p := &placementFlags{cmd: cmd}
	f := cmd.Flags()
	f.StringVar(&p.pin, "pin", "", "put its worker nowhere but on these accelerators: UUIDs or indices, with commas; empty: anywhere")
	f.StringVar(&p.prefer, "prefer", "", "on these where there is a choice")
	f.StringVar(&p.avoid, "avoid", "", "on these only where there is no other choice")
	f.IntVar(&p.count, "devices", 0, "how many accelerators its worker spans (0: as the manifest says)")
	return p
}

// over lays what was given over what is there; nil when nothing was given.
func (p *placementFlags) over(now *wire.Placement) *wire.Placement {
	var out wire.Placement
	if now != nil {
		out = *now
	}
	given := false
	for name, to := range map[string]*[]string{"pin": &out.Pin, "prefer": &out.Prefer, "avoid": &out.Avoid} {
		if f := p.cmd.Flags().Lookup(name); f.Changed {
			given = true
			*to = []string{}
			for word := range strings.SplitSeq(f.Value.String(), ",") {
				if word = strings.TrimSpace(word); word != "" {
					*to = append(*to, word)
				}
			}
		}
	}
	if p.cmd.Flags().Changed("devices") {
		given, out.Count = true, p.count
	}
	if !given {
		return nil
	}
	return &out
}

func newInstanceSet(a *app) *cobra.Command {
	var pinned, autoload, anywhere bool
	var concurrency int
	cmd := &cobra.Command{
		Use: "set NAME", Args: count(1, 1), Short: "Change where its worker sits, how it is held, and when it is loaded",
		Long: `Changes settings of an instance; what is not named stays:

  cjm-ctl instances set whisper --pin 0            on the first card, nowhere else
  cjm-ctl instances set whisper --avoid GPU-5e1f   by UUID, last of all
  cjm-ctl instances set whisper --anywhere         as the manifest says, again
  cjm-ctl instances set whisper --keep --autoload  always loaded
  cjm-ctl instances set whisper --isolation 3 --network none --memory-max 8G

Placement, isolation and limits count from the next start of the worker (cjm-ctl reload NAME).`,
	}
	place, hold := addPlacement(cmd), addHolding(cmd)
	f := cmd.Flags()
	f.BoolVar(&anywhere, "anywhere", false, "forget every wish about accelerators but the manifest's")
	f.BoolVar(&pinned, "keep", false, "keep its worker loaded: it is never evicted (--keep=false ends that)")
	f.BoolVar(&autoload, "autoload", false, "load it when the daemon starts")
	f.IntVar(&concurrency, "concurrency", 0, "calls at once in its worker (0: as the manifest says)")
	cmd.RunE = a.do(func(ctx context.Context, c *client.API, args []string) error {
		now, err := a.instance(ctx, c, args[0])
		if err != nil {
			return err
		}
		body := wire.InstancePatch{Placement: place.over(now.Placement)}
		if body.Isolation, err = hold.wish(now.Isolation); err != nil {
			return err
		}
		if body.Limits, err = hold.limits(now.Limits); err != nil {
			return err
		}
		switch {
		case anywhere && body.Placement != nil:
			return usagef("--anywhere forgets placements; it goes with none of --pin, --prefer, --avoid, --devices")
		case anywhere:
			body.Placement = &wire.Placement{}
		}
		if f.Changed("keep") {
			body.Pinned = &pinned
		}
		if f.Changed("autoload") {
			body.Autoload = &autoload
		}
		if f.Changed("concurrency") {
			body.Concurrency = &concurrency
		}
		if body == (wire.InstancePatch{}) {
			return usagef("nothing to set: cjm-ctl instances set --help lists the settings")
		}
		r, err := read[wire.Instance](c.PatchInstance(ctx, now.Plugin, now.Id, body))
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(r.raw)
		}
		return a.showInstance(r.value)
	})
	return cmd
}

// instance finds an instance by its id alone.
func (a *app) instance(ctx context.Context, c *client.API, id string) (wire.Instance, error) {
	p, err := read[wire.Plugin](c.GetPlugin(ctx, id))
	if err != nil {
		return wire.Instance{}, err
	}
	list, err := read[wire.InstanceList](c.ListInstances(ctx, p.value.Plugin))
	if err != nil {
		return wire.Instance{}, err
	}
	for _, x := range list.value.Instances {
		if x.Id == id {
			return x, nil
		}
	}
	return wire.Instance{Id: id, Plugin: p.value.Plugin}, nil
}

func (a *app) showInstance(x wire.Instance) error {
	facts := []fact{{"instance", x.Id}, {"plugin", x.Plugin}, {"state", string(x.State)}, {"kept loaded", yesNo(x.Pinned)}, {"loaded at start", yesNo(x.Autoload)}}
	if p := x.Placement; p != nil {
		facts = append(facts, fact{"only on", names(p.Pin)}, fact{"better on", names(p.Prefer)}, fact{"rather not on", names(p.Avoid)})
		if p.Count > 0 {
			facts = append(facts, fact{"accelerators", points(float64(p.Count))})
		}
	}
	if i := x.Isolation; i != nil {
		facts = append(facts, fact{"isolation", i.Tier}, fact{"requires", strings.Join(i.Require, ", ")}, fact{"network", i.Network}, fact{"sees", strings.Join(i.Read, ", ")})
	}
	if l := x.Limits; l != nil {
		facts = append(facts, limitFacts(l)...)
	}
	return a.printFacts(facts...)
}

// limitFacts leaves out what is not limited.
func limitFacts(l *wire.WorkerLimits) []fact {
	var facts []fact
	if l.MemoryMaxMb > 0 {
		facts = append(facts, fact{"most memory", sizeMB(float64(l.MemoryMaxMb))})
	}
	for _, x := range []struct {
		name  string
		value float64
	}{
		{"most processes", float64(l.PidsMax)}, {"most processors", l.CpuMax}, {"processor share", float64(l.CpuWeight)},
		{"disk share", float64(l.IoWeight)}, {"most open files", float64(l.Nofile)}, {"niceness", float64(l.Nice)},
	} {
		if x.value != 0 {
			facts = append(facts, fact{x.name, points(x.value)})
		}
	}
	return facts
}

// names lists accelerators; an empty list lifts what the manifest says.
func names(list []string) string {
	if list != nil && len(list) == 0 {
		return "any, whatever the manifest says"
	}
	return strings.Join(list, ", ")
}
