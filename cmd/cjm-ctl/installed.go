package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/plugins/envs"
)

// finding is one of plugins.Finding for --json.
type finding struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Next    string `json:"next"`
	Blocks  bool   `json:"blocks"`
}

// listed is one installed environment for --json.
type listed struct {
	Env       string    `json:"environment"`
	Plugins   []string  `json:"plugins"`
	Manifests []string  `json:"manifests"`
	Dir       string    `json:"dir,omitempty"`
	Manager   string    `json:"manager,omitempty"`
	Python    string    `json:"python,omitempty"`
	Packages  []string  `json:"packages,omitempty"`
	Bytes     int64     `json:"bytes,omitempty"`
	MadeAt    time.Time `json:"made_at,omitzero"`
	Source    string    `json:"source,omitempty"`
	Entry     string    `json:"entry,omitempty"`
	Findings  []finding `json:"findings,omitempty"`
	Leftovers []string  `json:"leftovers,omitempty"`
}

func newList(a *app) *cobra.Command {
	var p place
	return p.flags(&cobra.Command{
		Use: "list", GroupID: groupInstall, Args: count(0, 0), Short: "Installed environments, their plugins and sizes",
		RunE: a.local(func(context.Context, []string) error {
			in, cfg, err := a.looker(p)
			if err != nil {
				return err
			}
			list, err := in.List()
			if err != nil {
				return err
			}
			if len(list) == 0 && !a.json {
				a.say("nothing is installed in %s", cfg.EnvsDir())
				return nil
			}
			return a.showInstalled(list)
		}),
	})
}

func (a *app) showInstalled(list []envs.Installed) error {
	t := &table{cols: []column{{title: "ENVIRONMENT", flex: true, min: 10}, {title: "PLUGIN", flex: true, min: 8}, {title: "STATE"}, {title: "TOOL"}, {title: "PYTHON"}, {title: "PACKAGES", right: true}, {title: "SIZE", right: true}, {title: "MADE", right: true}}}
	t.paint = func(col int, text, padded string) string {
		if col != 2 {
			return padded
		}
		return a.out.paintWord(strings.Replace(text, "changed", "stale", 1), padded)
	}
	rows := make([]listed, len(list))
	var total int64
	for i, x := range list {
		rows[i] = describe(x)
		r := rows[i]
		packages, disk, made := "", "", ""
		if x.Record != nil {
			packages, disk, made = fmt.Sprint(len(r.Packages)), size(r.Bytes), ago(a.now(), r.MadeAt)
			total += r.Bytes
		}
		t.row(r.Env, strings.Join(r.Plugins, " "), condition(x), r.Manager, r.Python, packages, disk, made)
	}
	if err := a.printTableOr(t, map[string]any{"environments": rows, "bytes": total}); err != nil || a.json {
		return err
	}
	for _, x := range list {
		a.sayFindings(x.Name, x.Findings)
	}
	a.say("%s on disk", size(total))
	return nil
}

// condition is how an environment is, in a word.
func condition(x envs.Installed) string {
	switch {
	case slices.ContainsFunc(x.Findings, func(f plugins.Finding) bool { return f.Blocks }):
		return "unusable"
	case len(x.Findings) > 0:
		return "changed"
	case x.Dir == "" && len(x.Plugins) > 0:
		return "ok"
	case x.Record == nil:
		return "by hand"
	}
	return "ok"
}

func describe(x envs.Installed) listed {
	r := listed{Env: x.Name, Dir: x.Dir, Source: x.Source, Entry: x.Entry, Leftovers: x.Leftovers, Plugins: []string{}, Manifests: []string{}}
	for _, m := range x.Plugins {
		r.Plugins, r.Manifests = append(r.Plugins, m.Name), append(r.Manifests, m.Path)
	}
	for _, f := range x.Findings {
		r.Findings = append(r.Findings, finding{f.Code, f.Message, f.Mend, f.Blocks})
	}
	if rec := x.Record; rec != nil {
		r.Manager, r.Python, r.Packages, r.Bytes, r.MadeAt = rec.Manager, rec.Python, rec.Lock, rec.Bytes, rec.CreatedAt
	}
	return r
}

func (a *app) sayFindings(name string, findings []plugins.Finding) {
	for _, f := range findings {
		code := yellow
		if f.Blocks {
			code = red
		}
		fmt.Fprintln(a.talk.w, a.talk.paint(code, harmless(name, false)+": ")+harmless(f.Message, false))
		fmt.Fprintln(a.talk.w, "    "+a.talk.paint(bold, "→ ")+harmless(f.Mend, false))
	}
}

// chosen are the installed environments of these names, or all.
func chosen(in *envs.Installer, names []string, all bool) ([]envs.Installed, error) {
	if all {
		return in.List()
	}
	var out []envs.Installed
	for _, n := range names {
		x, err := in.Find(n)
		if err != nil {
			return nil, &hintError{err, "cjm-ctl list shows what is installed"}
		}
		out = append(out, x)
	}
	return out, nil
}

// again makes installed environments again, from the files they came from.
func (a *app) again(ctx context.Context, in *envs.Installer, list []envs.Installed, o envs.PlanOptions) error {
	var tasks []envs.Task
	var refused []error
	for _, x := range list {
		more, err := in.Tasks(ctx, x, o)
		if err != nil {
			refused = append(refused, err)
			continue
		}
		tasks = append(tasks, more...)
	}
	for _, err := range refused {
		a.say("%s", sentence(err))
	}
	if len(tasks) == 0 {
		if len(refused) > 0 {
			return &partlyError{len(refused), len(list), "environments"}
		}
		return nil
	}
	err := a.carryOut(ctx, in, tasks)
	if err == nil && len(refused) > 0 {
		err = &partlyError{len(refused), len(list), "environments"}
	}
	return err
}

func newUpgrade(a *app) *cobra.Command {
	var p place
	cmd := newAgain(a, &p, "name what to upgrade, or say --all", envs.PlanOptions{Force: true}, &cobra.Command{
		Use:   "upgrade [NAME…]",
		Short: "Make environments anew, with the newest packages that their file allows",
		Long:  "Makes environments anew from the file that they came from, with the newest packages\nthat it allows, and says what changed. The old one is used until the new one works.",
	})
	cmd.Flags().IntVarP(&p.jobs, "jobs", "j", 4, "environments made at a time")
	return cmd
}

func newRegenerateManifest(a *app) *cobra.Command {
	var p place
	return newAgain(a, &p, "name a plugin, or say --all", envs.PlanOptions{Regenerate: true}, &cobra.Command{
		Use:   "regenerate-manifest [NAME…]",
		Short: "Ask installed plugins anew what they are, and write their manifests",
		Long:  "Asks the installed code what it is and writes its manifest anew; the environment\nstays, and what is installed in it counts as wanted from then on.",
	})
}

// newAgain completes a verb that does something again to what is installed: to
// the named, or to all; unnamed is what it says when neither was given.
func newAgain(a *app, p *place, unnamed string, o envs.PlanOptions, verb *cobra.Command) *cobra.Command {
	var all bool
	verb.GroupID, verb.Args = groupInstall, count(0, -1)
	cmd := p.flags(verb)
	cmd.RunE = a.local(func(ctx context.Context, args []string) error {
		if len(args) == 0 && !all {
			return usagef("%s", unnamed)
		}
		in, err := a.installer(*p)
		if err != nil {
			return err
		}
		list, err := chosen(in, args, all)
		if err != nil {
			return err
		}
		return a.again(ctx, in, list, o)
	})
	cmd.Flags().BoolVar(&all, "all", false, "everything that is installed")
	return cmd
}

func newRemove(a *app) *cobra.Command {
	var p place
	var yes bool
	cmd := p.flags(&cobra.Command{
		Use: "remove NAME…", GroupID: groupInstall, Args: count(1, -1), Short: "Delete environments and the manifests written for them",
		Long: "Deletes environments and the manifests that install-all wrote for them. Data of the\nplugin, its secrets, its settings and a manifest of your own stay.",
		RunE: a.local(func(ctx context.Context, args []string) error {
			in, _, err := a.looker(p)
			if err != nil {
				return err
			}
			list, err := chosen(in, args, false)
			if err != nil {
				return err
			}
			for _, x := range list {
				if x.Record == nil && x.Dir != "" && !yes {
					return &hintError{fmt.Errorf("cannot remove %q: it was not made by install-all", x.Name), "-y removes it all the same"}
				}
			}
			return a.removeAll(ctx, in, list)
		}),
	})
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "also what was made by hand")
	return cmd
}

func (a *app) removeAll(ctx context.Context, in *envs.Installer, list []envs.Installed) error {
	for _, x := range list {
		if err := in.Remove(x); err != nil {
			var busy *envs.InUseError
			if errors.As(err, &busy) {
				return &hintError{err, "end its worker first: cjm-ctl unload " + cmp.Or(firstPlugin(x), x.Name)}
			}
			return err
		}
		a.say("%s is removed", x.Name)
	}
	for _, n := range a.tellDaemon(ctx, nil).Notes {
		a.say("%s", n)
	}
	return nil
}

func firstPlugin(x envs.Installed) string {
	if len(x.Plugins) == 0 {
		return ""
	}
	return x.Plugins[0].Name
}

func newDoctor(a *app) *cobra.Command {
	var p place
	var fix, quick bool
	cmd := p.flags(&cobra.Command{
		Use: "doctor [NAME…]", GroupID: groupInstall, Args: count(0, -1),
		Short: "Hold what is installed against what was recorded, and mend it",
		Long: "Looks for interpreters and environments that are gone, packages and manifests that\nchanged, code whose configuration is not its manifest's, and what was left over.\n" +
			"--fix makes anew what cannot run, writes manifests anew, and clears away the rest.",
		RunE: a.local(func(ctx context.Context, args []string) error {
			in, err := a.installer(p)
			if err != nil {
				return err
			}
			list, err := chosen(in, args, len(args) == 0)
			if err != nil {
				return err
			}
			return a.doctor(ctx, in, list, fix, quick)
		}),
	})
	cmd.Flags().BoolVar(&fix, "fix", false, "mend what can be mended")
	cmd.Flags().BoolVar(&quick, "quick", false, "only look at files; do not ask the installed code")
	cmd.Flags().IntVarP(&p.jobs, "jobs", "j", 4, "environments made at a time")
	return cmd
}

func (a *app) doctor(ctx context.Context, in *envs.Installer, list []envs.Installed, fix, quick bool) error {
	sick, rows := 0, make([]listed, len(list))
	var rebuild, rewrite []envs.Installed
	for i := range list {
		x := &list[i]
		if !quick {
			for _, m := range x.Plugins {
				x.Findings = append(x.Findings, in.AskCode(ctx, m)...)
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		rows[i] = describe(*x)
		switch {
		case condition(*x) == "unusable":
			rebuild = append(rebuild, *x)
		case len(x.Findings) > 0:
			rewrite = append(rewrite, *x)
		}
		if len(x.Findings)+len(x.Leftovers) > 0 {
			sick++
		}
		if !a.json {
			a.sayHealth(*x)
		}
	}
	if a.json && !fix {
		if err := a.printTableOr(nil, map[string]any{"environments": rows, "unwell": sick}); err != nil {
			return err
		}
	}
	switch {
	case sick == 0:
		return nil
	case !fix:
		a.say("%d of %d need something; cjm-ctl doctor --fix does it", sick, len(list))
		return &partlyError{sick, len(list), "environments"}
	}
	return a.mend(ctx, in, list, rebuild, rewrite)
}

func (a *app) sayHealth(x envs.Installed) {
	if len(x.Findings)+len(x.Leftovers) == 0 {
		fmt.Fprintln(a.out.w, a.out.paint(green, "ok")+"  "+harmless(x.Name, false))
		return
	}
	a.sayFindings(x.Name, x.Findings)
	for _, dir := range x.Leftovers {
		a.say("%s: %s is left over", x.Name, dir)
	}
}

func (a *app) mend(ctx context.Context, in *envs.Installer, all, rebuild, rewrite []envs.Installed) error {
	for _, x := range all {
		if len(x.Leftovers) == 0 {
			continue
		}
		stays, err := in.Clean(x.Name)
		if err != nil {
			return err
		}
		for _, s := range stays {
			a.say("%s: %s", x.Name, s)
		}
	}
	if len(rebuild) > 0 {
		if err := a.again(ctx, in, rebuild, envs.PlanOptions{Force: true}); err != nil {
			return err
		}
	}
	if len(rewrite) > 0 {
		return a.again(ctx, in, rewrite, envs.PlanOptions{Regenerate: true})
	}
	return nil
}
