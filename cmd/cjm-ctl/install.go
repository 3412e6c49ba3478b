package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/config"
	"github.com/cjmd/cjmd/internal/plugins/envs"
	pysdk "github.com/cjmd/cjmd/sdk/python"
)

const installAllHelp = `Makes the environments that a plugins.yaml asks for, several at once, and writes
the manifest of each plugin where the daemon finds it. What is up to date stays;
an installation that was interrupted is begun again where it stopped.

  cjm-ctl install-all                          plugins.yaml of this directory
  cjm-ctl install-all -f plugins.yaml --only whisper,vad
  cjm-ctl install-all -f my-plugin/            one plugin with its own manifest

Environments lie in envs, manifests in manifests of the state directory: that of
the service for root, else that of a daemon of your own; --state-dir names
another. The log of each installation lies in install of the log directory. One
that fails does not hold up the others; the exit code is 8 then.`

// place is where the installer works; every verb of it has these flags.
type place struct {
	stateDir string
	jobs     int
}

func (p *place) flags(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&p.stateDir, "state-dir", "", "state directory of the daemon (default: the one that a daemon of yours would have)")
	return cmd
}

// installer works on the files of the daemon that this user would run.
func (a *app) installer(p place) (*envs.Installer, error) {
	cfg, err := a.configAt(p.stateDir)
	if err != nil {
		return nil, err
	}
	if a.uid == 0 {
		// What root installs is for the service, which runs as somebody else.
		syscall.Umask(0o022)
	}
	// As the daemon makes it; ours may be the first.
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, &hintError{fmt.Errorf("cannot make the state directory: %w", err), "--state-dir names another one"}
	}
	runtime, err := pysdk.Extract(filepath.Join(cfg.CacheDir, "installer"))
	if err != nil {
		return nil, err
	}
	return a.installerAt(cfg, runtime, p.jobs)
}

// looker is an installer that only looks: it makes nothing.
func (a *app) looker(p place) (*envs.Installer, *config.Config, error) {
	cfg, err := a.configAt(p.stateDir)
	if err != nil {
		return nil, nil, err
	}
	in, err := a.installerAt(cfg, "", 0)
	return in, cfg, err
}

func (a *app) installerAt(cfg *config.Config, runtime string, jobs int) (*envs.Installer, error) {
	return envs.New(envs.Options{
		Envs: cfg.EnvsDir(), Manifests: cfg.ManifestsDir(), Logs: filepath.Join(cfg.LogDir, "install"),
		Runtime: runtime, Env: a.env, Version: version, Jobs: jobs, Now: a.now,
	})
}

func (a *app) configAt(stateDir string) (*config.Config, error) {
	if stateDir == "" {
		return a.configured(), nil
	}
	abs, err := filepath.Abs(stateDir)
	if err != nil {
		return nil, fmt.Errorf("cannot use --state-dir: %w", err)
	}
	dirs, err := config.DefaultDirs(a.getenv, a.uid)
	if err != nil {
		dirs = config.Dirs{}
	}
	dirs.State, dirs.Log, dirs.Cache = abs, filepath.Join(abs, "log"), filepath.Join(abs, "cache")
	cfg := config.Defaults(dirs)
	return &cfg, nil
}

type installFlags struct {
	place
	file          string
	force, dryRun bool
	only          []string
}

func newInstallAll(a *app) *cobra.Command {
	f := &installFlags{}
	cmd := &cobra.Command{
		Use: "install-all", GroupID: groupInstall, Args: count(0, 0),
		Short: "Make the environments of a plugins.yaml", Long: installAllHelp,
		RunE: a.local(func(ctx context.Context, _ []string) error { return a.installAll(ctx, f) }),
	}
	f.flags(cmd)
	cmd.Flags().StringVarP(&f.file, "file", "f", "", "plugins.yaml, capabilities.yaml, a manifest, or a directory with one (default: here, then the configuration directory)")
	cmd.Flags().StringVar(&f.file, "config", "", "the same as --file")
	_ = cmd.Flags().MarkHidden("config") // as the Python system calls it
	cmd.Flags().BoolVar(&f.force, "force", false, "make everything anew, also what is up to date")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "say what would be done and do nothing")
	cmd.Flags().StringSliceVar(&f.only, "only", nil, "only these entries, by name or environment")
	cmd.Flags().IntVarP(&f.jobs, "jobs", "j", 4, "environments made at a time")
	return cmd
}

func (a *app) installAll(ctx context.Context, f *installFlags) error {
	path, err := a.pluginsFile(f.file)
	if err != nil {
		return err
	}
	file, err := envs.ReadFile(path)
	if err != nil {
		return err
	}
	in, err := a.installer(f.place)
	if err != nil {
		return err
	}
	tasks, err := in.Plan(ctx, file, envs.PlanOptions{Only: f.only, Force: f.force})
	if err != nil {
		return err
	}
	if f.dryRun {
		return a.showInstallPlan(tasks)
	}
	return a.carryOut(ctx, in, tasks)
}

// pluginsFile is the file to install from when none was named.
func (a *app) pluginsFile(named string) (string, error) {
	if named != "" {
		return named, nil
	}
	places := []string{"."}
	if dirs, err := config.DefaultDirs(a.getenv, a.uid); err == nil {
		places = append(places, dirs.Config)
	}
	for _, dir := range places {
		for _, name := range []string{"plugins.yaml", "plugins.yml", "capabilities.yaml", "capabilities.yml"} {
			path := filepath.Join(dir, name)
			if _, err := os.Stat(path); err == nil {
				return path, nil
			}
		}
	}
	return "", &hintError{usagef("there is no plugins.yaml in %s", strings.Join(places, " or ")), "name one with -f"}
}

// showInstallPlan is --dry-run.
func (a *app) showInstallPlan(tasks []envs.Task) error {
	type row struct {
		Name   string      `json:"name"`
		Env    string      `json:"environment"`
		Action envs.Action `json:"action,omitempty"`
		Reason string      `json:"reason,omitempty"`
		Tool   string      `json:"tool,omitempty"`
		Error  string      `json:"error,omitempty"`
	}
	rows, failed := make([]row, len(tasks)), 0
	t := &table{cols: []column{{title: "PLUGIN", flex: true, min: 10}, {title: "ENVIRONMENT", flex: true, min: 10}, {title: "WOULD"}, {title: "WITH"}, {title: "BECAUSE", flex: true, min: 12}}}
	for i, x := range tasks {
		rows[i] = row{Name: x.Entry.Name, Env: x.Entry.EnvName, Action: x.Action, Reason: x.Reason, Tool: x.Tool}
		if x.Err != nil {
			rows[i].Error, rows[i].Action = x.Err.Error(), ""
			failed++
			t.row(x.Entry.Name, x.Entry.EnvName, "fail", x.Tool, x.Err.Error())
			continue
		}
		t.row(x.Entry.Name, x.Entry.EnvName, string(x.Action), x.Tool, x.Reason)
	}
	err := a.printTableOr(t, map[string]any{"plan": rows})
	if err == nil && failed > 0 {
		err = &partlyError{failed, len(tasks), "installations"}
	}
	return err
}

// carryOut does the tasks with live progress, shows how they ended, and tells
// the daemon.
func (a *app) carryOut(ctx context.Context, in *envs.Installer, tasks []envs.Task) error {
	names := make([]string, len(tasks))
	for i, t := range tasks {
		names[i] = t.Entry.Name
	}
	b := newBoard(a, names)
	stop, spun := make(chan struct{}), make(chan struct{})
	go func() { defer close(spun); b.spin(stop) }()
	told := context.AfterFunc(ctx, func() { b.say("stopping; what is finished stays (Ctrl-C was pressed)") })
	results := in.Install(ctx, tasks, b.update)
	told()
	close(stop)
	<-spun
	b.close()
	reach := a.tellDaemon(ctx, results)
	clean(in, results)
	if err := a.showResults(results, reach); err != nil {
		return err
	}
	failed := 0
	for _, r := range results {
		if r.Err != nil {
			failed++
		}
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case failed > 0:
		return &partlyError{failed, len(results), "installations"}
	}
	return nil
}

// clean removes what the new environments took the place of, now that the
// daemon knows them.
func clean(in *envs.Installer, results []envs.Result) {
	for i := range results {
		r := &results[i]
		if r.Err != nil || r.Action != envs.Rebuild {
			continue
		}
		stays, err := in.Clean(r.Env)
		if err != nil {
			stays = append(stays, err.Error())
		}
		r.Warnings = append(r.Warnings, stays...)
	}
}

// daemonTold says what a running daemon makes of new manifests.
type daemonTold struct {
	Reached bool     `json:"reached"`
	Notes   []string `json:"notes,omitempty"`
}

// tellDaemon lets a running daemon look for manifests, and sees that it found
// what was written.
func (a *app) tellDaemon(ctx context.Context, results []envs.Result) daemonTold {
	if ctx.Err() != nil {
		return daemonTold{}
	}
	c, err := a.connect(ctx)
	if err != nil {
		return daemonTold{Notes: []string{"no daemon was told: " + sentence(err) + "; one that starts finds the plugins by itself"}}
	}
	p, err := read[wire.PluginList](c.DiscoverPlugins(ctx))
	if err != nil {
		return daemonTold{Reached: true, Notes: []string{"the daemon did not look for plugins: " + sentence(err)}}
	}
	told := daemonTold{Reached: true}
	for _, r := range results {
		if r.Err == nil && r.Manifest != "" {
			if note := missedBy(p.value.Plugins, r); note != "" {
				told.Notes = append(told.Notes, note)
			}
		}
	}
	return told
}

// missedBy says why the daemon does not use a manifest; "" when it does.
func missedBy(list []wire.Plugin, r envs.Result) string {
	i := slices.IndexFunc(list, func(p wire.Plugin) bool { return p.Path == r.Manifest })
	if i < 0 {
		return fmt.Sprintf("the daemon does not look in %s: start it with that state directory, or install with its own (--state-dir)", filepath.Dir(r.Manifest))
	}
	switch p := list[i]; {
	case p.Error != "":
		return fmt.Sprintf("the daemon cannot use %s: %s", r.Plugin, p.Error)
	case p.ShadowedBy != "":
		return fmt.Sprintf("the daemon uses %s for %s, which comes first", p.ShadowedBy, r.Plugin)
	case p.Drifted:
		return fmt.Sprintf("%s runs from its old environment until: cjm-ctl reload %s", r.Plugin, r.Plugin)
	}
	return ""
}

// installed is one result for --json.
type installed struct {
	Name     string      `json:"name"`
	Env      string      `json:"environment"`
	State    envs.State  `json:"state"`
	Action   envs.Action `json:"action,omitempty"`
	Reason   string      `json:"reason,omitempty"`
	Plugin   string      `json:"plugin,omitempty"`
	Manifest string      `json:"manifest,omitempty"`
	Dir      string      `json:"dir,omitempty"`
	Python   string      `json:"python,omitempty"`
	Tool     string      `json:"tool,omitempty"`
	Bytes    int64       `json:"bytes,omitempty"`
	Seconds  float64     `json:"seconds"`
	Log      string      `json:"log,omitempty"`
	Warnings []string    `json:"warnings,omitempty"`
	Packages []string    `json:"packages_changed,omitempty"`
	Error    string      `json:"error,omitempty"`
	Tail     []string    `json:"last_lines,omitempty"`
}

func (a *app) showResults(results []envs.Result, told daemonTold) error {
	rows := make([]installed, len(results))
	t := &table{cols: []column{{title: "PLUGIN", flex: true, min: 10}, {title: "RESULT"}, {title: "PYTHON"}, {title: "SIZE", right: true}, {title: "TIME", right: true}, {title: "WHY", flex: true, min: 12}}}
	t.paint = func(col int, text, padded string) string {
		switch {
		case col != 1:
			return padded
		case text == string(envs.Failed):
			return a.out.paint(red, padded)
		}
		return a.out.paint(green, padded)
	}
	var total int64
	for i, r := range results {
		rows[i] = installed{Name: r.Name, Env: r.Env, State: r.State, Action: r.Action, Reason: r.Reason, Plugin: r.Plugin, Manifest: r.Manifest, Dir: r.Dir, Python: r.Python,
			Tool: r.Tool, Bytes: r.Bytes, Seconds: r.Elapsed.Seconds(), Log: r.Log, Warnings: r.Warnings, Packages: r.Packages}
		disk, why := "", r.Reason
		if r.Bytes > 0 {
			disk, total = size(r.Bytes), total+r.Bytes
		}
		if r.Err != nil {
			rows[i].Error, why = r.Err.Error(), firstLine(r.Err)
			var step *envs.StepError
			if errors.As(r.Err, &step) {
				rows[i].Tail = step.Tail
			}
		}
		name := r.Name
		if r.Plugin != "" && r.Plugin != r.Name {
			name = r.Plugin + " (" + r.Name + ")"
		}
		t.row(name, string(r.State), r.Python, disk, span(r.Elapsed.Round(time.Millisecond)), why)
	}
	if err := a.printTableOr(t, map[string]any{"results": rows, "bytes": total, "daemon": told}); err != nil {
		return err
	}
	if a.json {
		return nil
	}
	for i, r := range results {
		a.explainResult(r, rows[i].Tail)
	}
	if total > 0 {
		a.say("%s on disk", size(total))
	}
	for _, n := range told.Notes {
		a.say("%s", n)
	}
	return nil
}

// explainResult says below the table what does not fit into it.
func (a *app) explainResult(r envs.Result, tail []string) {
	for _, w := range r.Warnings {
		a.say("%s: warning: %s", r.Name, w)
	}
	if len(r.Packages) > 0 {
		shown := r.Packages[:min(6, len(r.Packages))]
		more := ""
		if len(shown) < len(r.Packages) {
			more = fmt.Sprintf(" and %d more", len(r.Packages)-len(shown))
		}
		a.say("%s: %s%s", r.Name, strings.Join(shown, ", "), more)
	}
	if r.Err == nil || errors.Is(r.Err, errInterrupted) {
		return
	}
	fmt.Fprintln(a.talk.w, a.talk.paint(red, harmless(r.Name, false)+": ")+harmless(firstLine(r.Err), false))
	for _, l := range tail {
		fmt.Fprintln(a.talk.w, a.talk.paint(dim, "    "+harmless(l, false)))
	}
	if r.Log != "" {
		a.say("    all of it: %s", r.Log)
	}
}

func firstLine(err error) string {
	first, _, _ := strings.Cut(err.Error(), "\n")
	return first
}
