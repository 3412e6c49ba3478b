package main

import (
	"context"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

// newControl makes a verb that acts on the queue, or on one plugin's part of it.
func newControl(a *app, use, short string, call func(ctx context.Context, c *client.API, plugin *string) (*http.Response, error)) *cobra.Command {
	return &cobra.Command{
		Use: use + " [PLUGIN]", GroupID: groupRule, Args: count(0, 1), Short: short,
		RunE: a.do(func(ctx context.Context, c *client.API, args []string) error {
			var plugin *string
			if len(args) == 1 {
				plugin = &args[0]
			}
			r, err := read[wire.Controls](call(ctx, c, plugin))
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(r.raw)
			}
			_, err = fmt.Fprintln(a.out.w, "queue: "+harmless(controlsText(r.value), false))
			return err
		}),
	}
}

func newPause(a *app) *cobra.Command {
	return newControl(a, "pause", "Accept jobs but start none", func(ctx context.Context, c *client.API, p *string) (*http.Response, error) {
		return c.PauseQueue(ctx, &wire.PauseQueueParams{Plugin: p})
	})
}

func newResume(a *app) *cobra.Command {
	return newControl(a, "resume", "End a pause or a drain", func(ctx context.Context, c *client.API, p *string) (*http.Response, error) {
		return c.ResumeQueue(ctx, &wire.ResumeQueueParams{Plugin: p})
	})
}

func newDrain(a *app) *cobra.Command {
	return newControl(a, "drain", "Refuse new jobs and finish the old ones", func(ctx context.Context, c *client.API, p *string) (*http.Response, error) {
		return c.DrainQueue(ctx, &wire.DrainQueueParams{Plugin: p})
	})
}
