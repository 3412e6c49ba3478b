package main

import (
	"context"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

// pluginCall is a call of the API that acts on one plugin.
type pluginCall func(context.Context, wire.PluginName, ...client.RequestEditorFn) (*http.Response, error)

// pluginVerb describes one of the verbs that act on plugins by name.
type pluginVerb struct {
	use, short, long string
	done             string // what is said afterwards, with the name
	call             func(*client.API) pluginCall
	// all acts on every plugin; nil where there is no such call.
	all func(*client.API) func(context.Context, ...client.RequestEditorFn) (*http.Response, error)
}

func newPluginVerb(a *app, v pluginVerb) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: v.use + " NAME…", GroupID: groupPlugins, Short: v.short, Long: v.long,
		Args: func(cmd *cobra.Command, args []string) error {
			if all {
				return count(0, 0)(cmd, args)
			}
			return count(1, -1)(cmd, args)
		},
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			if all {
				return a.bulk(read[wire.BulkResult](v.all(c)(ctx)))
			}
			for _, name := range args {
				p, err := read[wire.Plugin](v.call(c)(ctx, name))
				if err != nil {
					return err
				}
				if a.json {
					if err := a.printLine(p.raw); err != nil {
						return err
					}
					continue
				}
				a.say(v.done, name)
			}
			return nil
		}),
	}
	if v.all != nil {
		cmd.Flags().BoolVar(&all, "all", false, "every enabled plugin")
	}
	return cmd
}

// bulk shows what came of each; any failure makes the exit code 1.
func (a *app) bulk(r reply[wire.BulkResult], err error) error {
	if err != nil {
		return err
	}
	if a.json {
		if err := a.printJSON(r.raw); err != nil {
			return err
		}
	}
	failed := 0
	for _, x := range r.value.Results {
		if !x.Ok {
			failed++
		}
		if a.json {
			continue
		}
		if x.Ok {
			a.say("%s: ok", x.Name)
		} else {
			a.say("%s: %s", x.Name, x.Error)
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d plugins failed", failed, len(r.value.Results))
	}
	return nil
}

func newLoad(a *app) *cobra.Command {
	return newPluginVerb(a, pluginVerb{
		use: "load", short: "Start a plugin's worker and wait until it is ready", done: "%s is loaded",
		call: func(c *client.API) pluginCall { return c.LoadPlugin },
		all: func(c *client.API) func(context.Context, ...client.RequestEditorFn) (*http.Response, error) {
			return c.LoadAll
		},
	})
}

func newUnload(a *app) *cobra.Command {
	return newPluginVerb(a, pluginVerb{
		use: "unload", short: "Stop a plugin's worker", done: "%s is unloaded",
		call: func(c *client.API) pluginCall { return c.UnloadPlugin },
		all: func(c *client.API) func(context.Context, ...client.RequestEditorFn) (*http.Response, error) {
			return c.UnloadAll
		},
	})
}

func newReload(a *app) *cobra.Command {
	return newPluginVerb(a, pluginVerb{
		use: "reload", short: "Stop a worker and start it from the manifest on disk", done: "%s is reloaded",
		call: func(c *client.API) pluginCall { return c.ReloadPlugin },
	})
}

func newEnable(a *app) *cobra.Command {
	return newPluginVerb(a, pluginVerb{
		use: "enable", short: "Let jobs run on a plugin", done: "%s is enabled",
		call: func(c *client.API) pluginCall { return c.EnablePlugin },
	})
}

func newDisable(a *app) *cobra.Command {
	return newPluginVerb(a, pluginVerb{
		use: "disable", short: "Let a plugin's running jobs finish and start no more", done: "%s is disabled; its jobs wait",
		call: func(c *client.API) pluginCall { return c.DisablePlugin },
	})
}
