package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
)

// completion is what the shell asks while a word is being typed. A daemon that
// cannot be asked offers nothing: a shell must not be disturbed by errors.
type completion func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective)

// complete asks the daemon for the words that may stand in the first most
// places; after them nothing is offered, or files where files is true.
func (a *app) complete(most int, files bool, words func(context.Context, *client.API) ([]string, error)) completion {
	return func(_ *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most {
			if files {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		c, err := a.connect(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		all, err := words(ctx, c)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []string
		for _, w := range all {
			if strings.HasPrefix(w, typed) {
				out = append(out, w)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// A word and its description are separated by a tab.

func pluginWords(ctx context.Context, c *client.API) ([]string, error) {
	p, err := read[wire.PluginList](c.ListPlugins(ctx, nil))
	var out []string
	for _, x := range p.value.Plugins {
		if x.Error == "" && x.ShadowedBy == "" {
			out = append(out, x.Name+"\t"+harmless(x.Description, false))
		}
	}
	return out, err
}

func policyWords(ctx context.Context, c *client.API) ([]string, error) {
	s, err := read[wire.Scheduler](c.GetScheduler(ctx))
	return s.value.Policies, err
}

func jobWords(statuses ...wire.JobStatus) func(context.Context, *client.API) ([]string, error) {
	return func(ctx context.Context, c *client.API) ([]string, error) {
		p, err := read[wire.JobPage](c.ListJobs(ctx, &wire.ListJobsParams{Status: statuses, Limit: new(50)}))
		var out []string
		for _, x := range p.value.Jobs {
			out = append(out, x.Id+"\t"+status(x)+" "+harmless(x.Plugin, false))
		}
		return out, err
	}
}

func leaseWords(ctx context.Context, c *client.API) ([]string, error) {
	l, err := read[wire.LeaseList](c.ListLeases(ctx))
	var out []string
	for _, x := range l.value.Leases {
		out = append(out, x.Id+"\t"+sizeMB(x.Mb)+" "+harmless(x.Note, false))
	}
	return out, err
}

func monitorWords(ctx context.Context, c *client.API) ([]string, error) {
	m, err := read[wire.MonitorList](c.ListMonitors(ctx))
	var out []string
	for _, x := range m.value.Monitors {
		out = append(out, x.Name)
	}
	return out, err
}

// completeInstalled offers what is installed on this machine; no daemon is asked.
func (a *app) completeInstalled(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	stateDir, _ := cmd.Flags().GetString("state-dir") // every verb of these has it
	in, _, err := a.looker(place{stateDir: stateDir})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	list, err := in.List()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, x := range list {
		if strings.HasPrefix(x.Name, typed) {
			out = append(out, x.Name+"\t"+condition(x))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completions joins verbs with what may be completed after them.
func completions(a *app, root *cobra.Command) {
	live := []wire.JobStatus{wire.JobStatusPending, wire.JobStatusRunning}
	ended := []wire.JobStatus{wire.JobStatusCompleted, wire.JobStatusFailed, wire.JobStatusCancelled}
	for _, x := range []struct {
		verbs string
		words completion
	}{
		{"run submit", a.complete(1, true, pluginWords)},
		{"load unload reload enable disable", a.complete(0, false, pluginWords)},
		{"policy", a.complete(1, false, policyWords)},
		{"monitor/use", a.complete(1, false, monitorWords)},
		{"lease/end", a.complete(0, false, leaseWords)},
		{"instances/list instances/create", a.complete(1, false, pluginWords)},
		{"instances/delete instances/set", a.complete(0, false, pluginWords)},
		{"pause resume drain workers profile plan", a.complete(1, false, pluginWords)},
		{"plugins/show config/get config/set config/schema config/options", a.complete(1, false, pluginWords)},
		{"cancel wait", a.complete(0, false, jobWords(live...))},
		{"hold release", a.complete(0, false, jobWords(wire.JobStatusPending))},
		{"priority explain", a.complete(1, false, jobWords(wire.JobStatusPending))},
		{"retry", a.complete(0, false, jobWords(ended...))},
		{"job logs result", a.complete(1, false, jobWords())},
		{"set-secret list-secrets", a.complete(1, false, pluginWords)},
		{"upgrade remove doctor regenerate-manifest", a.completeInstalled},
		{"plugins/new", cobra.NoFileCompletions},
	} {
		for path := range strings.FieldsSeq(x.verbs) {
			if cmd, rest, err := root.Find(strings.Split(path, "/")); err == nil && len(rest) == 0 {
				cmd.ValidArgsFunction = cobra.CompletionFunc(x.words)
			}
		}
	}
}
