package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

func newConfig(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", GroupID: groupPlugins, Short: "Configuration of a plugin",
		Args: count(0, 0), RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newConfigGet(a), newConfigSet(a),
		newConfigRead(a, "schema", "JSON Schema of the configuration", func(c *client.API) pluginCall { return c.GetConfigSchema }),
		newConfigRead(a, "options", "Values that fields may take now", func(c *client.API) pluginCall { return c.GetConfigOptions }))
	return cmd
}

func newConfigRead(a *app, use, short string, call func(*client.API) pluginCall) *cobra.Command {
	return &cobra.Command{
		Use: use + " NAME", Args: count(1, 1), Short: short,
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			r, err := read[json.RawMessage](call(c)(ctx, args[0]))
			if err != nil {
				return err
			}
			return a.printJSON(r.raw)
		}),
	}
}

func newConfigGet(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "get NAME [KEY]", Args: count(1, 2), Short: "The configuration in force, or one value of it",
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			r, err := read[wire.PluginConfig](c.GetConfig(ctx, args[0]))
			if err != nil {
				return err
			}
			switch {
			case len(args) == 2:
				return a.printConfigKey(args[0], args[1], json.RawMessage(r.value.Config))
			case a.json:
				return a.printJSON(r.raw)
			}
			return a.printJSON(r.value.Config)
		}),
	}
}

func (a *app) printConfigKey(plugin, key string, config json.RawMessage) error {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(config, &all); err != nil {
		return fmt.Errorf("cannot understand the configuration of %s: %w", plugin, err)
	}
	value, ok := all[key]
	switch {
	case !ok:
		return &hintError{fmt.Errorf("the configuration of %s has no %q", plugin, key), "cjm-ctl config get " + plugin + " shows all of it"}
	case a.json:
		return a.printLine(value)
	}
	return a.printValue(value)
}

const configSetHelp = `Changes keys of a plugin's configuration; the others stay as they are. A loaded
plugin takes the change at once where it can, and the answer says so. A change
that fails leaves the old configuration in force.

  cjm-ctl config set speech language=en beam:=5
  cjm-ctl config set speech --from config.json     replaces all of it

key=text sets a string, key:=JSON any value, key=@path the absolute path of a file.`

func newConfigSet(a *app) *cobra.Command {
	var from string
	cmd := &cobra.Command{
		Use: "set NAME key=value…", Args: count(1, -1), Short: "Change the configuration", Long: configSetHelp,
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			config, err := a.newConfig(ctx, c, args[0], args[1:], from)
			if err != nil {
				return err
			}
			r, err := read[wire.PluginConfig](c.PutConfig(ctx, args[0], wire.ConfigRequest{Config: config}))
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(r.raw)
			}
			for _, w := range r.value.Warnings {
				a.say("warning: %s: %s", w.Pointer, w.Message)
			}
			a.say("%s: %s", args[0], applied(r.value.Applied))
			return nil
		}),
	}
	cmd.Flags().StringVar(&from, "from", "", "replace the whole configuration: a JSON object, @file, a file's name, or -")
	return cmd
}

// newConfig is the whole configuration to send.
func (a *app) newConfig(ctx context.Context, c *client.API, plugin string, words []string, from string) (json.RawMessage, error) {
	if len(words) == 0 && from == "" {
		return nil, usagef("nothing to set: give key=value or --from")
	}
	base := map[string]any{}
	if from == "" {
		r, err := read[wire.PluginConfig](c.GetConfig(ctx, plugin))
		if err != nil {
			return nil, err
		}
		if err := strictJSON(r.value.Config, &base); err != nil {
			return nil, fmt.Errorf("cannot understand the configuration of %s: %w", plugin, err)
		}
	}
	return a.changed(base, words, from)
}

// changed is base, or what from names, with key=value words laid over it.
func (a *app) changed(base map[string]any, words []string, from string) (json.RawMessage, error) {
	dir, err := workdir()
	if err != nil {
		return nil, err
	}
	source := argSource{stdin: a.stdin, dir: dir}
	if from != "" {
		if from != "-" && !strings.HasPrefix(from, "@") && !strings.HasPrefix(strings.TrimSpace(from), "{") {
			from = "@" + from
		}
		if err := source.decode("--from", from, &base, "object"); err != nil {
			return nil, err
		}
	}
	changes, err := source.parse(words, "", "")
	if err != nil {
		return nil, err
	}
	if len(changes.Args) > 0 {
		return nil, usagef("%q sets nothing: write key=value", fmt.Sprint(changes.Args[0]))
	}
	for key, value := range changes.Kwargs {
		base[key] = value
	}
	out, err := json.Marshal(base)
	if err != nil {
		return nil, errors.Join(errors.New("cannot write the configuration"), err)
	}
	return out, nil
}

func applied(how wire.PluginConfigApplied) string {
	switch how {
	case wire.PluginConfigAppliedReconfigured:
		return "the running worker took the change"
	case wire.PluginConfigAppliedInitialized:
		return "the running worker was initialized again"
	}
	return "saved; it takes effect when the worker starts"
}
