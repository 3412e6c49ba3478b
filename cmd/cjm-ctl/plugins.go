package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

func newPlugins(a *app) *cobra.Command {
	var category, state string
	list := func(ctx context.Context, c *client.API, _ []string) error {
		p, err := read[wire.PluginList](c.ListPlugins(ctx, &wire.ListPluginsParams{Category: optional(category), State: optional(state)}))
		if err != nil {
			return err
		}
		return a.showPlugins(p)
	}
	cmd := &cobra.Command{
		Use: "plugins", Aliases: []string{"plugin"}, GroupID: groupPlugins, Args: count(0, 0),
		Short: "What can be run, and manifests that cannot be used",
		RunE:  a.do(list),
	}
	flags := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringVar(&category, "category", "", "only plugins of this category")
		c.Flags().StringVar(&state, "state", "", "only plugins whose worker is in this state")
		return c
	}
	flags(cmd)
	cmd.AddCommand(
		flags(&cobra.Command{Use: "list", Args: count(0, 0), Short: "List them", RunE: a.do(list)}),
		&cobra.Command{
			Use: "show NAME", Args: count(1, 1), Short: "Everything about one",
			RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
				p, err := read[wire.Plugin](c.GetPlugin(ctx, args[0]))
				if err != nil {
					return err
				}
				return a.showPlugin(p)
			}),
		},
		&cobra.Command{
			Use: "discover", Args: count(0, 0), Short: "Look for manifests now",
			RunE: a.do(func(ctx context.Context, c *client.API, _ []string) error {
				p, err := read[wire.PluginList](c.DiscoverPlugins(ctx))
				if err != nil {
					return err
				}
				return a.showPlugins(p)
			}),
		},
		newPluginNew(a), newPluginValidate(a), newPluginTest(a))
	return cmd
}

func (a *app) showPlugins(p reply[wire.PluginList]) error {
	if a.json {
		return a.printJSON(p.raw)
	}
	if len(p.value.Plugins) == 0 {
		a.say("no plugin was found; manifests belong in a directory of plugins.paths (cjmd config show)")
		return nil
	}
	t := &table{cols: []column{{title: "PLUGIN", flex: true, min: 20}, {title: "STATE"}, {title: "VERSION", flex: true, min: 7}, {title: "CATEGORY", flex: true, min: 8}, {title: "DESCRIPTION", flex: true, min: 10}}}
	t.paint = func(col int, text, padded string) string {
		if col == 1 {
			return a.out.paintWord(text, padded)
		}
		return padded
	}
	for _, x := range p.value.Plugins {
		t.row(x.Name, pluginState(x), x.Version, x.Category, pluginNote(x))
	}
	return a.printTable(t)
}

// pluginState is the worker's state, unless something matters more.
func pluginState(p wire.Plugin) string {
	switch {
	case p.Error != "":
		return "error"
	case p.ShadowedBy != "":
		return "shadowed"
	case !p.Enabled:
		return "disabled"
	case p.State == wire.WorkerStateStopped && worst(p.Findings).Blocks:
		return "unusable"
	}
	return string(p.State)
}

func pluginNote(p wire.Plugin) string {
	switch {
	case p.Error != "":
		return p.Path + ": " + p.Error
	case p.ShadowedBy != "":
		return p.Path + " is hidden by " + p.ShadowedBy
	case worst(p.Findings).Blocks:
		return worst(p.Findings).Message + "; " + worst(p.Findings).Next
	case p.Drifted:
		return "changed on disk since it was loaded (cjm-ctl reload " + p.Name + ")"
	case p.Worker != nil && p.Worker.LastError != "" && p.State != wire.WorkerStateReady && p.State != wire.WorkerStateBusy:
		return p.Worker.LastError
	case len(p.Findings) > 0:
		return p.Findings[0].Message + "; " + p.Findings[0].Next
	}
	return p.Description
}

// worst is the finding that keeps a plugin from running, else none.
func worst(findings []wire.Finding) wire.Finding {
	for _, f := range findings {
		if f.Blocks {
			return f
		}
	}
	return wire.Finding{}
}

func (a *app) showPlugin(p reply[wire.Plugin]) error {
	if a.json {
		return a.printJSON(p.raw)
	}
	x := p.value
	facts := []fact{
		{"plugin", x.Name}, {"instance of", notEmpty(x.Plugin, x.Name)}, {"state", pluginState(x)},
		{"error", x.Error}, {"hidden by", x.ShadowedBy},
		{"version", x.Version}, {"author", x.Author}, {"description", x.Description},
		{"category", x.Category}, {"interface", x.Interface}, {"runtime", x.Runtime},
		{"manifest", strings.TrimSpace(x.Path + " " + x.Format)},
		{"instances", notEmpty(strings.Join(x.Instances, " "), x.Name)},
	}
	if x.Drifted {
		facts = append(facts, fact{"drifted", pluginNote(x)})
	}
	for _, f := range x.Findings {
		facts = append(facts, fact{"changed", f.Message}, fact{"", f.Next})
	}
	if x.Concurrency > 1 {
		facts = append(facts, fact{"concurrency", fmt.Sprint(x.Concurrency)})
	}
	if r := x.Requirements; r != nil {
		facts = append(facts, fact{"needs", needs(*r)})
	}
	if err := a.printFacts(facts...); err != nil || x.Worker == nil {
		return err
	}
	fmt.Fprintln(a.out.w)
	return a.showWorker(*x.Worker)
}

func needs(r wire.Requirements) string {
	var out []string
	if r.RequiresGpu {
		out = append(out, fmt.Sprintf("%d GPU with %s", max(1, r.Devices), sizeMB(r.MinGpuVramMb)))
	}
	if r.MinSystemRamMb > 0 {
		out = append(out, sizeMB(r.MinSystemRamMb)+" of memory")
	}
	return strings.Join(out, ", ")
}
