package envs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/suggest"
)

// Options of an Installer. Envs, Manifests and Logs are needed.
type Options struct {
	Envs      string    // environments are here
	Manifests string    // manifests are written here; the daemon searches it
	Logs      string    // one log per installation
	Runtime   string    // the worker runtime, for the plugin's imports; "" for none
	Env       []string  // of the process
	Backends  []Backend // nil: Backends(Env)
	Version   string    // of the program
	Jobs      int       // environments at a time; 0: 4
	// Waits are the pauses before a failed download is tried again; nil: 2 and 10
	// seconds. The tools try by themselves, too.
	Waits []time.Duration
	Now   func() time.Time // nil: time.Now
}

// Installer makes, lists and removes environments. Safe from any goroutine.
type Installer struct {
	o  Options
	mu sync.Mutex // manifests are compared and written one at a time; guards no field
}

// New checks the options. It touches nothing.
func New(o Options) (*Installer, error) {
	if o.Envs == "" || o.Manifests == "" || o.Logs == "" {
		return nil, errors.New("cannot make an installer: Envs, Manifests and Logs are needed")
	}
	if o.Backends == nil {
		o.Backends = Backends(o.Env)
	}
	if o.Jobs <= 0 {
		o.Jobs = 4
	}
	if o.Waits == nil {
		o.Waits = []time.Duration{2 * time.Second, 10 * time.Second}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Installer{o: o}, nil
}

// Action is what a task does.
type Action string

// Actions.
const (
	Create     Action = "create"     // there is no environment
	Rebuild    Action = "rebuild"    // there is one, and it is made anew
	Regenerate Action = "regenerate" // only the manifest is written
	Keep       Action = "keep"       // everything is as it should be
)

// Task is one entry and what is to be done for it.
type Task struct {
	Entry  Entry
	Action Action
	Reason string
	Tool   string // its name and version, "" where none is needed
	// Err says why nothing can be done; the other tasks are not held up by it.
	Err error

	backend Backend
	inputs  string
}

// PlanOptions choose what is done.
type PlanOptions struct {
	Only       []string // names of entries; empty: all
	Force      bool     // make everything anew
	Regenerate bool     // write the manifests anew, also of what would be kept
}

// Plan decides what each entry of the file needs. It changes nothing. The
// error is about the request; what is wrong with one entry is in its task.
func (in *Installer) Plan(ctx context.Context, f *File, o PlanOptions) ([]Task, error) {
	var names []string
	for _, e := range f.Entries {
		names = append(names, e.Name, e.EnvName)
	}
	for _, name := range o.Only {
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("cannot choose %q: %s has no such entry%s", name, f.Path, suggest.DidYouMean(name, names))
		}
	}
	probed := map[string]probe{}
	var tasks []Task
	for _, e := range f.Entries {
		if len(o.Only) > 0 && !slices.Contains(o.Only, e.Name) && !slices.Contains(o.Only, e.EnvName) {
			continue
		}
		e.source = f.Path
		t := Task{Entry: e}
		if e.needsEnv() {
			t.backend, t.Tool, t.Err = in.choose(ctx, e, probed)
		}
		if t.Err == nil {
			t.Err = in.decide(&t, o)
		}
		tasks = append(tasks, t)
	}
	return tasks, nil
}

type probe struct {
	version string
	err     error
}

// choose picks the tool of an entry: the named one, else the first that is here
// and can do it.
func (in *Installer) choose(ctx context.Context, e Entry, probed map[string]probe) (Backend, string, error) {
	ask := func(b Backend) probe {
		p, ok := probed[b.Name()]
		if !ok {
			p.version, p.err = b.Probe(ctx)
			probed[b.Name()] = p
		}
		return p
	}
	var missing []string
	for _, b := range in.o.Backends {
		family := b.Name() == Conda || b.Name() == Micromamba
		if e.Manager != "" && b.Name() != e.Manager || e.Manager == "" && family != (e.EnvFile != "") {
			continue
		}
		p := ask(b)
		if p.err == nil {
			return b, p.version, nil
		}
		missing = append(missing, fmt.Sprintf("%s (%v)", b.Name(), p.err))
	}
	return nil, "", fmt.Errorf("cannot make the environment of %q: it needs %s", e.Name, strings.Join(missing, " or "))
}

// needsEnv is false for a manifest that lives on the standard library, or runs
// a program of the machine.
func (e Entry) needsEnv() bool {
	return e.Package != nil || len(e.Requirements)+len(e.ReqFiles) > 0 || e.Lock != "" || e.EnvFile != "" || e.Python != "" || e.Manager != ""
}

func (in *Installer) decide(t *Task, o PlanOptions) error {
	if !t.Entry.needsEnv() {
		m := in.manifestsOf(t.Entry.EnvName)
		switch {
		case len(m) == 0:
			t.Action, t.Reason = Create, "new; it needs no environment"
		case o.Force || o.Regenerate:
			t.Action, t.Reason = Regenerate, "asked for"
		case installOf(m[0]).Inputs != t.Entry.manifestHash():
			t.Action, t.Reason = Regenerate, "what the manifest is made from changed"
		default:
			t.Action, t.Reason = Keep, "up to date"
		}
		return nil
	}
	var err error
	if t.inputs, err = inputsHash(t.backend.Name(), t.Entry); err != nil {
		return err
	}
	link := filepath.Join(in.o.Envs, t.Entry.EnvName)
	info, err := os.Lstat(link)
	switch {
	case errors.Is(err, os.ErrNotExist):
		t.Action, t.Reason = Create, "new"
		return nil
	case err != nil:
		return fmt.Errorf("cannot look at environment %q: %w", t.Entry.EnvName, err)
	case info.Mode()&os.ModeSymlink == 0:
		if !o.Force {
			return fmt.Errorf("cannot make environment %q: %s is there and was not made by this installer; --force replaces it", t.Entry.EnvName, link)
		}
		t.Action, t.Reason = Rebuild, "forced"
		return nil
	}
	t.Action, t.Reason = in.compare(t, link, o)
	return nil
}

func (in *Installer) compare(t *Task, link string, o PlanOptions) (Action, string) {
	dir, err := filepath.EvalSymlinks(link)
	if err != nil {
		return Rebuild, "the environment is gone"
	}
	rec, err := plugins.ReadEnvRecord(dir)
	if err != nil {
		return Rebuild, "the environment was not finished"
	}
	man := plugins.Manifest{Name: t.Entry.EnvName, PythonPath: pythonIn(dir)}
	for _, f := range plugins.Examine(man) {
		if f.Blocks {
			return Rebuild, f.Message
		}
	}
	mine := in.manifestsOf(t.Entry.EnvName)
	switch {
	case o.Force:
		return Rebuild, "forced"
	case rec.Inputs != t.inputs:
		return Rebuild, "what it is made from changed"
	case len(mine) == 0:
		return Regenerate, "the manifest is missing"
	case installOf(mine[0]).Inputs != t.Entry.manifestHash():
		return Regenerate, "what the manifest is made from changed"
	case mine[0].PythonPath != pythonIn(dir):
		return Regenerate, "the manifest names another build"
	case o.Regenerate:
		return Regenerate, "asked for"
	}
	return Keep, "up to date"
}

// manifestsOf are the written manifests of an environment.
func (in *Installer) manifestsOf(env string) []plugins.Manifest {
	files, _ := filepath.Glob(filepath.Join(in.o.Manifests, "*.json")) // the pattern is sound
	var out []plugins.Manifest
	for _, f := range files {
		if m, err := plugins.ReadManifest(f); err == nil && installOf(*m).Env == env {
			out = append(out, *m)
		}
	}
	return out
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
