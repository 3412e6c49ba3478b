package main

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/plugins/envs"
	"github.com/cjmd/cjmd/internal/plugins/scaffold"
	pysdk "github.com/cjmd/cjmd/sdk/python"
)

//go:embed plugintest.py
var pluginTestPy []byte

func newPluginNew(a *app) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "new NAME", Args: count(1, 1), Short: "Write a new plugin that runs at once",
		RunE: func(_ *cobra.Command, args []string) error {
			if dir == "" {
				dir = args[0]
			}
			files, err := scaffold.New(args[0], dir)
			if err != nil {
				return err
			}
			if a.json {
				return a.printTableOr(nil, map[string]any{"name": args[0], "files": files})
			}
			for _, f := range files {
				fmt.Fprintln(a.out.w, f)
			}
			a.say("now try it, put it where the daemon looks, and run it:")
			for _, next := range []string{"plugin test " + dir, "install-all -f " + dir, "run " + args[0] + " name=you times:=3"} {
				a.say("  cjm-ctl %s", next)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory to make (default: the name)")
	return cmd
}

func newPluginValidate(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "validate FILE…", Args: count(1, -1), Short: "Check manifests and plugins.yaml files; says the line of each mistake",
		RunE: func(_ *cobra.Command, args []string) error {
			all, bad := make([]envs.Validation, 0, len(args)), 0
			for _, path := range args {
				v, err := envs.Validate(path)
				if err != nil {
					return err
				}
				if all = append(all, v); len(v.Problems) > 0 {
					bad++
				}
			}
			if a.json {
				if err := a.printTableOr(nil, map[string]any{"files": all}); err != nil {
					return err
				}
			} else {
				for _, v := range all {
					a.showValidation(v)
				}
			}
			if bad > 0 {
				return &partlyError{bad, len(all), "files"}
			}
			return nil
		},
	}
}

func (a *app) showValidation(v envs.Validation) {
	line := func(code, what string, p envs.Problem) {
		where := v.Path
		if p.Line > 0 {
			where = fmt.Sprintf("%s:%d", v.Path, p.Line)
		}
		fmt.Fprintln(a.out.w, harmless(where, false)+": "+a.out.paint(code, what)+harmless(strings.TrimSpace(p.Key+" "+p.Message), false))
	}
	for _, p := range v.Problems {
		line(red, "", p)
	}
	for _, p := range v.Warnings {
		line(yellow, "warning: ", p)
	}
	if len(v.Problems) == 0 {
		fmt.Fprintln(a.out.w, harmless(v.Path, false)+": "+a.out.paint(green, "ok")+" ("+v.Kind+")")
	}
}

const pluginTestHelp = `Loads a plugin in a real worker of its own, without a daemon, runs its sample
(or the arguments given here), streaming too where it can, and then the tests in
its tests directory.

  cjm-ctl plugin test .                     sample.json beside the manifest
  cjm-ctl plugin test . name=you times:=2   these arguments instead

A sample is {"args": […], "kwargs": {…}}, or a list of them. A secret that the
manifest asks for is taken from the environment variable of its name.`

func newPluginTest(a *app) *cobra.Command {
	var p place
	var timeout time.Duration
	cmd := p.flags(&cobra.Command{
		Use: "test [DIR|MANIFEST] [key=value…]", Args: count(0, -1), Short: "Run a plugin and its tests without a daemon", Long: pluginTestHelp,
		RunE: a.local(func(ctx context.Context, args []string) error {
			path := "."
			if len(args) > 0 && !strings.Contains(args[0], "=") {
				path, args = args[0], args[1:]
			}
			return a.pluginTest(ctx, p, path, args, timeout)
		}),
	})
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "for loading, and for each job")
	return cmd
}

func (a *app) pluginTest(ctx context.Context, p place, path string, words []string, timeout time.Duration) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("cannot test the plugin: %w", err)
	}
	v, err := envs.Validate(path)
	if err != nil {
		return err
	}
	if a.showUnsound(v); v.Kind != "manifest" || len(v.Problems) > 0 {
		return &partlyError{1, 1, "files"}
	}
	m, err := plugins.ReadManifest(v.Path)
	if err != nil {
		return err
	}
	cfg, err := a.configAt(p.stateDir)
	if err != nil {
		return err
	}
	man := plugins.Resolve(*m, cfg.EnvsDir())
	if len(man.Command) > 0 {
		return &hintError{errors.New("cannot test a plugin that is a program"), "cjmd worker-check -- COMMAND checks a worker"}
	}
	if err := plugins.Runnable(man); err != nil {
		return err
	}
	question, err := a.testQuestion(man, words, timeout)
	if err != nil {
		return err
	}
	runtime, err := pysdk.Extract(filepath.Join(cfg.CacheDir, "installer"))
	if err != nil {
		return err
	}
	return a.runPluginTest(ctx, man, runtime, question)
}

// showUnsound shows what is wrong, and nothing when nothing is.
func (a *app) showUnsound(v envs.Validation) {
	if v.Kind != "manifest" {
		a.say("%s is no manifest; name the directory of a plugin", v.Path)
	} else if len(v.Problems) > 0 {
		a.showValidation(v)
	}
}

// testQuestion is what plugintest.py reads.
func (a *app) testQuestion(man plugins.Manifest, words []string, timeout time.Duration) (map[string]any, error) {
	config, err := plugins.MergeDefaults(man, nil)
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(man.Path)
	samples := []json.RawMessage{}
	if len(words) > 0 {
		work, err := workdir()
		if err != nil {
			return nil, err
		}
		given, err := argSource{stdin: a.stdin, dir: work}.parse(words, "", "")
		if err != nil {
			return nil, err
		}
		raw, err := json.Marshal(map[string]any{"args": append([]any{}, given.Args...), "kwargs": given.Kwargs})
		if err != nil {
			return nil, fmt.Errorf("cannot read the arguments: %w", err)
		}
		samples = append(samples, raw)
	} else if samples, err = readSamples(filepath.Join(dir, "sample.json")); err != nil {
		return nil, err
	}
	secrets := map[string]string{}
	for _, name := range man.Secrets {
		if secrets[name] = a.getenv(name); secrets[name] == "" {
			return nil, &hintError{fmt.Errorf("cannot test %q: it needs the secret %s", man.Name, name), "set the environment variable " + name + " for the test"}
		}
	}
	tests := filepath.Join(dir, "tests")
	if info, err := os.Stat(tests); err != nil || !info.IsDir() {
		tests = ""
	}
	env := man.Env
	if env == nil {
		env = map[string]string{}
	}
	return map[string]any{
		"module": man.Module, "class": man.Class, "config": config, "code_dirs": append([]string{}, man.CodeDirs...), "env": env,
		"secrets": secrets, "adapters": append([]string{}, man.Adapters...), "samples": samples, "tests": tests, "timeout": timeout.Seconds(),
	}, nil
}

// readSamples reads one sample or a list; a plugin without any is only loaded.
func readSamples(path string) ([]json.RawMessage, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return []json.RawMessage{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the sample: %w", err)
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) == nil {
		return list, nil
	}
	var one map[string]json.RawMessage
	if err := json.Unmarshal(raw, &one); err != nil {
		return nil, fmt.Errorf("cannot understand %s: write {\"args\": […], \"kwargs\": {…}}: %w", path, err)
	}
	return []json.RawMessage{raw}, nil
}

// testEvent is one line of plugintest.py.
type testEvent struct {
	Event    string            `json:"event"`
	What     string            `json:"what"`
	Seconds  float64           `json:"seconds"`
	Name     string            `json:"name"`
	Version  string            `json:"version"`
	Message  string            `json:"message"`
	Category string            `json:"category"`
	Trace    string            `json:"traceback"`
	Result   json.RawMessage   `json:"result"`
	Chunks   []json.RawMessage `json:"chunks"`
	Progress []json.RawMessage `json:"progress"`
	Run      int               `json:"run"`
	Failed   int               `json:"failed"`
	Skipped  int               `json:"skipped"`
}

func (a *app) runPluginTest(ctx context.Context, man plugins.Manifest, runtime string, question map[string]any) error {
	dir, err := os.MkdirTemp("", "cjm-plugin-test-*")
	if err != nil {
		return fmt.Errorf("cannot test the plugin: %w", err)
	}
	defer os.RemoveAll(dir)
	raw, err := json.Marshal(question)
	if err == nil {
		err = errors.Join(os.WriteFile(filepath.Join(dir, "question.json"), raw, 0o600), os.WriteFile(filepath.Join(dir, "plugintest.py"), pluginTestPy, 0o600))
	}
	if err != nil {
		return fmt.Errorf("cannot test the plugin: %w", err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("cannot test the plugin: %w", err)
	}
	defer read.Close()
	cmd := exec.CommandContext(ctx, man.PythonPath, filepath.Join(dir, "plugintest.py"), filepath.Join(dir, "question.json"), "3")
	cmd.Dir = filepath.Dir(man.Path)
	cmd.Env = append(a.env, "PYTHONPATH="+runtime, "PYTHONDONTWRITEBYTECODE=1")
	cmd.ExtraFiles = []*os.File{write}
	cmd.Stdout, cmd.Stderr = a.talk.w, a.talk.w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Start()
	if cerr := write.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("cannot test the plugin: %w", err)
	}
	shown := a.showTest(bufio.NewReader(read))
	err = cmd.Wait()
	var exit *exec.ExitError
	switch {
	case shown != nil:
		return shown
	case errors.As(err, &exit) && exit.ExitCode() == 1:
		return &partlyError{1, 1, "plugins"}
	case err != nil:
		return fmt.Errorf("cannot test the plugin: %w", err)
	}
	return nil
}

// showTest shows the events until the test ends.
func (a *app) showTest(r *bufio.Reader) error {
	var all []json.RawMessage
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			break // closed: the process has ended, and its exit code says how
		}
		all = append(all, line)
		var e testEvent
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("cannot understand the test: %w", err)
		}
		if !a.json {
			a.showTestEvent(e)
		}
	}
	if a.json {
		return a.printTableOr(nil, map[string]any{"events": append([]json.RawMessage{}, all...)})
	}
	return nil
}

func (a *app) showTestEvent(e testEvent) {
	ok, bad := a.out.paint(green, "ok    "), a.out.paint(red, "failed")
	took := span(time.Duration(e.Seconds * float64(time.Second)))
	switch e.Event {
	case "loaded":
		fmt.Fprintf(a.out.w, "%s  load     %s  %s\n", ok, took, harmless(strings.TrimSpace(e.Name+" "+e.Version), false))
	case "ran":
		fmt.Fprintf(a.out.w, "%s  %-7s  %s  %d progress reports", ok, e.What, took, len(e.Progress))
		if e.What == "stream" {
			fmt.Fprintf(a.out.w, ", %d chunks", len(e.Chunks))
		}
		fmt.Fprintf(a.out.w, "\n        %s\n", harmless(string(e.Result), false))
	case "failed":
		fmt.Fprintf(a.out.w, "%s  %-7s  %s: %s\n", bad, e.What, e.Category, harmless(e.Message, true))
		if e.Trace != "" {
			fmt.Fprintln(a.talk.w, harmless(e.Trace, true))
		}
	case "tested":
		mark := ok
		if e.Failed > 0 {
			mark = bad
		}
		fmt.Fprintf(a.out.w, "%s  tests    %d run, %d failed, %d skipped\n", mark, e.Run, e.Failed, e.Skipped)
	}
}
