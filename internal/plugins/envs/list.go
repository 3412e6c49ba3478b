package envs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/suggest"
)

// Installed is one environment, or a manifest that needs none, with what was
// found about it.
type Installed struct {
	Name      string // of the environment
	Dir       string // the build in force; "" when there is none
	Record    *plugins.EnvRecord
	Plugins   []plugins.Manifest // manifests written for it
	Source    string             // the file that asked for it, and the entry in it
	Entry     string
	Findings  []plugins.Finding
	Leftovers []string // builds that are not in force
}

// List is what was installed, sorted by name. It runs nothing.
func (in *Installer) List() ([]Installed, error) {
	found := map[string]*Installed{}
	get := func(name string) *Installed {
		if found[name] == nil {
			found[name] = &Installed{Name: name}
		}
		return found[name]
	}
	files, _ := filepath.Glob(filepath.Join(in.o.Manifests, "*.json")) // the pattern is sound
	for _, f := range files {
		m, err := plugins.ReadManifest(f)
		if err != nil {
			continue // the daemon lists it with its error
		}
		if part := installOf(*m); part.Env != "" {
			i := get(part.Env)
			i.Plugins = append(i.Plugins, *m)
			i.Source, i.Entry = part.Source, part.Entry
		}
	}
	entries, err := os.ReadDir(in.o.Envs)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot list the environments: %w", err)
	}
	for _, e := range entries {
		if name := e.Name(); plugins.ValidName(name) && e.Type()&(os.ModeSymlink|os.ModeDir) != 0 {
			get(name)
		}
	}
	out := make([]Installed, 0, len(found))
	for _, i := range found {
		in.examine(i)
		out = append(out, *i)
	}
	slices.SortFunc(out, func(a, b Installed) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// examine fills in what the disk says.
func (in *Installer) examine(i *Installed) {
	i.Dir = in.current(i.Name)
	if i.Dir != "" {
		if rec, err := plugins.ReadEnvRecord(i.Dir); err == nil {
			i.Record = &rec
			if i.Source == "" {
				i.Source, i.Entry = rec.Source, rec.Entry
			}
		}
	}
	for _, dir := range in.builds(i.Name) {
		if dir != i.Dir {
			i.Leftovers = append(i.Leftovers, dir)
		}
	}
	for _, m := range i.Plugins {
		i.Findings = append(i.Findings, in.findings(m)...)
	}
	if len(i.Plugins) == 0 && i.Record != nil {
		i.Findings = append(i.Findings, plugins.Finding{Code: "manifest_missing", Message: "no plugin uses it",
			Mend: "run: cjm-ctl regenerate-manifest " + i.Name + ", or cjm-ctl remove " + i.Name})
	}
}

// findings leaves the interpreter of a plugin that needs no environment to the
// daemon, on whose PATH it is.
func (in *Installer) findings(m plugins.Manifest) []plugins.Finding {
	return slices.DeleteFunc(plugins.Examine(m), func(f plugins.Finding) bool {
		return f.Code == plugins.FindingNoProgram && m.PythonPath == "" && len(m.Command) == 0
	})
}

// Find returns what was installed under the name of an environment or a plugin.
func (in *Installer) Find(name string) (Installed, error) {
	list, err := in.List()
	if err != nil {
		return Installed{}, err
	}
	var names []string
	for _, i := range list {
		names = append(names, i.Name)
		for _, m := range i.Plugins {
			names = append(names, m.Name)
			if m.Name == name {
				return i, nil
			}
		}
		if i.Name == name {
			return i, nil
		}
	}
	return Installed{}, &plugins.NotFoundError{Kind: "installed plugin", Name: name, Nearest: suggest.Nearest(name, names)}
}

// Tasks plans the entries from which installed environments were made, for
// making them again.
func (in *Installer) Tasks(ctx context.Context, i Installed, o PlanOptions) ([]Task, error) {
	if i.Source == "" {
		return nil, fmt.Errorf("cannot tell what %q was made from: it was not made by install-all", i.Name)
	}
	f, err := ReadFile(i.Source)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot make %q again: it came from %s, which is gone; run: cjm-ctl install-all -f with the file's new place", i.Name, i.Source)
	}
	if err != nil {
		return nil, err
	}
	o.Only = []string{i.Entry}
	return in.Plan(ctx, f, o)
}

// InUseError says that processes run from an environment.
type InUseError struct {
	Env  string
	Pids []string
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("cannot remove environment %q: it is in use by %s", e.Env, strings.Join(e.Pids, ", "))
}

// Remove deletes an environment and the manifests written for it. What lies in
// other places (a manifest that was given, data of the plugin) stays.
// *InUseError.
func (in *Installer) Remove(i Installed) error {
	if err := os.MkdirAll(in.o.Envs, 0o755); err != nil {
		return fmt.Errorf("cannot remove environment %q: %w", i.Name, err)
	}
	path := filepath.Join(in.o.Envs, "."+i.Name+".lock")
	unlock, err := lock(path)
	if err != nil {
		return fmt.Errorf("cannot remove environment %q: %w", i.Name, err)
	}
	defer unlock()
	link := filepath.Join(in.o.Envs, i.Name)
	dirs := in.builds(i.Name)
	if info, err := os.Lstat(link); err == nil && info.IsDir() {
		dirs = append(dirs, link) // made by hand
	}
	var pids []string
	for _, dir := range dirs {
		pids = append(pids, users(dir)...)
	}
	if len(pids) > 0 {
		return &InUseError{i.Name, pids}
	}
	// Manifests first: the daemon must not start what is about to vanish.
	for _, m := range i.Plugins {
		if err := os.Remove(m.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("cannot remove a manifest: %w", err)
		}
	}
	for _, p := range append([]string{link}, dirs...) {
		if err := os.RemoveAll(p); err != nil {
			return fmt.Errorf("cannot remove environment %q: %w", i.Name, err)
		}
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("cannot remove the lock of environment %q: %w", i.Name, err)
	}
	return nil
}

// Clean removes the builds of an environment that are not in force and that
// nobody uses; it says which ones stay.
func (in *Installer) Clean(env string) (stays []string, err error) {
	unlock, err := lock(filepath.Join(in.o.Envs, "."+env+".lock"))
	if err != nil {
		return nil, fmt.Errorf("cannot clean up environment %q: %w", env, err)
	}
	defer unlock()
	in.dropUnfinished(env)
	return in.dropOld(env), nil
}

// AskCode asks the installed code of a plugin what it is and returns how that
// differs from its manifest. It runs the plugin's code.
func (in *Installer) AskCode(ctx context.Context, m plugins.Manifest) []plugins.Finding {
	if m.PythonPath == "" || len(m.Command) > 0 || plugins.Runnable(m) != nil {
		return nil
	}
	s := &steps{env: toolEnv(in.o.Env), dir: os.TempDir(), log: io.Discard}
	mend := "run: cjm-ctl regenerate-manifest " + m.Name
	a, err := in.introspect(ctx, s, Entry{Dialect: DialectPlugins, Manifest: &m, EnvVars: m.Env}, m.PythonPath)
	if err != nil {
		words := err.Error()
		var fail *StepError
		if errors.As(err, &fail) && len(fail.Tail) > 0 {
			words += ": " + fail.Tail[len(fail.Tail)-1]
		}
		return []plugins.Finding{{Code: "code_unusable", Message: words, Mend: "look at its log, or install it again"}}
	}
	other := len(a.Schema) > 0 && installOf(m).Env != ""
	if byHand := sourceOf(m); byHand != "" { // its config_schema counts, however often it is written anew
		other = other && len(m.Schema) > 0 && namesFields(a.Schema)
		mend = fmt.Sprintf("make config_schema of %s and get_config_schema() say the same", byHand)
	}
	var out []plugins.Finding
	if other {
		if mine, err := plugins.SchemaHash(m.Schema); len(m.Schema) == 0 || err == nil && mine != a.SchemaHash {
			out = append(out, plugins.Finding{Code: plugins.FindingOtherSchema, Message: "the installed code has another config schema than the manifest", Mend: mend})
		}
	}
	return out
}
