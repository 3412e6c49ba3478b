package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

func newInstances(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "instances", Aliases: []string{"instance"}, GroupID: groupPlugins, Args: count(0, 0),
		Short: "Plugins with their configurations; one plugin may have several",
		Long:  "An instance is a plugin with a configuration of its own and a worker of its own.\nEvery plugin has one of its own name; two models loaded at once are two instances.",
		RunE:  a.do(a.listInstances),
	}
	cmd.AddCommand(
		&cobra.Command{Use: "list [PLUGIN]", Args: count(0, 1), Short: "List them", RunE: a.do(a.listInstances)},
		newInstanceCreate(a),
		newInstanceSet(a),
		&cobra.Command{
			Use: "delete NAME…", Args: count(1, -1), Short: "Unload and forget instances; their jobs stay",
			RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
				for _, name := range args {
					p, err := read[wire.Plugin](c.GetPlugin(ctx, name))
					if err != nil {
						return err
					}
					if _, err := read[struct{}](c.DeleteInstance(ctx, p.value.Plugin, name)); err != nil {
						return err
					}
					a.say("%s is deleted", name)
				}
				return nil
			}),
		})
	return cmd
}

// listInstances lists those of one plugin, or of all.
func (a *app) listInstances(ctx context.Context, c *client.API, args []string) error {
	names := args
	if len(names) == 0 {
		found, err := read[wire.PluginList](c.ListPlugins(ctx, nil))
		if err != nil {
			return err
		}
		for _, p := range found.value.Plugins {
			if len(p.Instances) > 0 {
				names = append(names, p.Plugin)
			}
		}
	}
	all := wire.InstanceList{Instances: []wire.Instance{}}
	for _, name := range names {
		r, err := read[wire.InstanceList](c.ListInstances(ctx, name))
		if err != nil {
			return err
		}
		all.Instances = append(all.Instances, r.value.Instances...)
	}
	if a.json {
		raw, err := json.Marshal(all)
		if err != nil {
			return fmt.Errorf("cannot print the instances: %w", err)
		}
		return a.printJSON(raw)
	}
	t := &table{cols: []column{{title: "INSTANCE", flex: true, min: 20}, {title: "PLUGIN", flex: true, min: 8}, {title: "STATE"}, {title: "LOADS"}, {title: "CONFIG", flex: true, min: 10}}}
	t.paint = func(col int, text, padded string) string {
		if col == 2 {
			return a.out.paintWord(text, padded)
		}
		return padded
	}
	for _, x := range all.Instances {
		state, loads := string(x.State), "on demand"
		if !x.Enabled {
			state = "disabled"
		}
		switch {
		case x.Pinned:
			loads = "pinned"
		case x.Autoload:
			loads = "at start"
		}
		t.row(x.Id, x.Plugin, state, loads, string(x.Config))
	}
	return a.printTable(t)
}

func newInstanceCreate(a *app) *cobra.Command {
	var body wire.InstanceRequest
	var from string
	var disabled bool
	var place *placementFlags
	cmd := &cobra.Command{
		Use: "create PLUGIN NAME [key=value…]", Args: count(2, -1), Short: "Make one more instance of a plugin",
		Long: "Makes an instance that is run, loaded and configured by its own name:\n\n  cjm-ctl instances create speech speech-de language=de\n  cjm-ctl run speech-de audio=@talk.wav\n\nkey=text sets a string, key:=JSON any value, key=@path the absolute path of a file.",
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			body.Id = args[1]
			body.Placement = place.over(nil)
			if disabled {
				body.Enabled = new(bool)
			}
			if from != "" || len(args) > 2 {
				config, err := a.changed(map[string]any{}, args[2:], from)
				if err != nil {
					return err
				}
				body.Config = config
			}
			r, err := read[wire.Instance](c.CreateInstance(ctx, args[0], body))
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(r.raw)
			}
			a.say("%s is an instance of %s now", r.value.Id, r.value.Plugin)
			_, err = fmt.Fprintln(a.out.w, r.value.Id)
			return err
		}),
	}
	place = addPlacement(cmd)
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "the configuration: a JSON object, @file, a file's name, or -")
	f.BoolVar(&disabled, "disabled", false, "do not enable it yet")
	f.BoolVar(&body.Pinned, "pinned", false, "keep its worker loaded")
	f.BoolVar(&body.Autoload, "autoload", false, "load it when the daemon starts")
	f.IntVar(&body.Concurrency, "concurrency", 0, "calls at once in its worker (0: as the manifest says)")
	return cmd
}
