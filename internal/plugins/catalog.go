package plugins

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/suggest"
)

// Options of a Catalog. Store, Journal and Log are needed.
type Options struct {
	Paths   []string // the whole search path, first wins (DefaultPaths)
	EnvsDir string   // where the installer puts environments: <EnvsDir>/<name>/bin/python, <name> often a link; "" for none
	Store   InstanceStore
	Journal events.Recorder
	Log     *zap.Logger
	NoWatch bool             // only Discover rescans
	Now     func() time.Time // nil: time.Now
}

// Catalog knows every plugin on the search path and every instance. All
// methods are safe from any goroutine and answer from memory, except those
// that take a context: they read the disk or write the store.
type Catalog struct {
	o       Options
	changed chan struct{}
	rescan  chan struct{} // wakes Run after SetPaths
	// writes has one slot: whoever holds it may scan, or read an instance,
	// change it and store it. Not a mutex, because its holder waits for the disk
	// and waiters must end with their context.
	writes chan struct{}

	mu        sync.RWMutex
	paths     []string
	found     found
	byName    map[string]int         // name → index in found.plugins: the winner, else a bad one
	instances map[string]Instance    // the stored ones
	entries   map[string]entry       // all of them, see rebuildLocked
	started   map[string]startedFrom // instance → what its live worker was started from
}

type startedFrom struct{ plugin, hash string }

// New reads the stored instances. It does not search: call Discover, and Run
// to follow changes.
func New(o Options) (*Catalog, error) {
	if o.Store == nil || o.Journal == nil || o.Log == nil {
		return nil, errors.New("cannot make the plugin catalogue: Store, Journal and Log are needed")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	stored, err := o.Store.Instances(context.Background())
	if err != nil {
		return nil, fmt.Errorf("cannot read the instances: %w", err)
	}
	c := &Catalog{
		o: o, changed: make(chan struct{}, 1), rescan: make(chan struct{}, 1), writes: make(chan struct{}, 1),
		paths: uniquePaths(o.Paths), byName: map[string]int{},
		instances: make(map[string]Instance, len(stored)), started: map[string]startedFrom{},
	}
	for _, inst := range stored {
		c.instances[inst.ID] = inst
	}
	c.rebuildLocked()
	return c, nil
}

// Changed wakes its one reader when plugins or instances changed. Wake-ups merge.
func (c *Catalog) Changed() <-chan struct{} { return c.changed }

func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// lockWrites takes the one write slot; unlock by calling the function.
func (c *Catalog) lockWrites(ctx context.Context) (func(), error) {
	select {
	case c.writes <- struct{}{}:
		return func() { <-c.writes }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// SetPaths changes the search path and searches it.
func (c *Catalog) SetPaths(ctx context.Context, paths []string) error {
	c.mu.Lock()
	c.paths = uniquePaths(paths)
	c.mu.Unlock()
	wake(c.rescan) // Run watches the new directories
	_, err := c.Discover(ctx)
	return err
}

// Discover searches now, journals what is different and returns all plugins.
func (c *Catalog) Discover(ctx context.Context) ([]Plugin, error) {
	unlock, err := c.lockWrites(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot search for plugins: %w", err)
	}
	defer unlock()
	c.mu.RLock()
	paths, old := c.paths, c.found
	c.mu.RUnlock()

	seen := scan(paths, c.o.Now())
	keepFoundAt(old.plugins, seen.plugins)
	c.mu.Lock()
	c.found, c.byName = seen, index(seen.plugins)
	c.rebuildLocked()
	drafts := c.differencesLocked(old.plugins)
	c.mu.Unlock()

	for _, p := range seen.plugins {
		if p.Err != nil && len(drafts) > 0 {
			c.o.Log.Warn("manifest cannot be used", zap.String("path", p.Path), zap.Error(p.Err))
		}
	}
	if len(drafts) > 0 {
		c.o.Journal.Emit(drafts...)
		wake(c.changed)
	}
	return c.Plugins(), nil
}

// index prefers winners over bad files of the same name.
func index(list []Plugin) map[string]int {
	byName := make(map[string]int, len(list))
	for i, p := range list {
		have, ok := byName[p.Name]
		if p.Shadowed == "" && (!ok || (list[have].Err != nil && p.Err == nil)) {
			byName[p.Name] = i
		}
	}
	return byName
}

// keepFoundAt lets an unchanged file keep the time it was first seen.
func keepFoundAt(old, now []Plugin) {
	for i := range now {
		for _, o := range old {
			if o.Path == now[i].Path && hashOf(o) == hashOf(now[i]) {
				now[i].FoundAt = o.FoundAt
			}
		}
	}
}

func hashOf(p Plugin) string {
	if p.Manifest == nil {
		return ""
	}
	return p.Manifest.Hash
}

// differencesLocked turns what a search changed into events, per name.
func (c *Catalog) differencesLocked(old []Plugin) []events.Draft {
	before := index(old)
	names := map[string]bool{}
	for n := range before {
		names[n] = true
	}
	for n := range c.byName {
		names[n] = true
	}
	var drafts []events.Draft
	for _, name := range slices.Sorted(maps.Keys(names)) {
		i, had := before[name]
		j, has := c.byName[name]
		if !has {
			drafts = append(drafts, draft(events.PluginChanged, name, "removed", old[i]))
			continue
		}
		now := c.found.plugins[j]
		state := "ok"
		if now.Err != nil {
			state = "error"
		} else if c.driftedLocked(now) {
			state = "drifted"
		}
		switch {
		case !had:
			drafts = append(drafts, draft(events.PluginDiscovered, name, state, now))
		case old[i].Path != now.Path || hashOf(old[i]) != hashOf(now) || errText(old[i].Err) != errText(now.Err):
			drafts = append(drafts, draft(events.PluginChanged, name, state, now))
		}
	}
	return drafts
}

func draft(kind events.Kind, name, state string, p Plugin) events.Draft {
	data := map[string]any{"plugin": name, "state": state, "path": p.Path}
	if p.Manifest != nil {
		data["version"] = p.Manifest.Version
	}
	if p.Err != nil {
		data["error"] = p.Err.Error()
	}
	return events.Draft{Kind: kind, Instance: name, Data: data}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Plugins lists the good, the bad (Err) and the shadowed, sorted by name; of
// one name the one in use comes first.
func (c *Catalog) Plugins() []Plugin {
	c.mu.RLock()
	defer c.mu.RUnlock()
	out := make([]Plugin, 0, len(c.found.plugins))
	for _, p := range c.found.plugins {
		p.Drifted = c.driftedLocked(p)
		out = append(out, p)
	}
	slices.SortStableFunc(out, func(a, b Plugin) int {
		if d := strings.Compare(a.Name, b.Name); d != 0 {
			return d
		}
		return rank(a) - rank(b)
	})
	return out
}

func rank(p Plugin) int {
	switch {
	case p.Err != nil:
		return 1
	case p.Shadowed != "":
		return 2
	}
	return 0
}

// Adapters lists the manifests that describe an adapter and no plugin.
func (c *Catalog) Adapters() []Plugin {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.Clone(c.found.adapters)
}

// Plugin returns the entry in use under name, or the bad one when there is no
// better (its Err says why). *NotFoundError.
func (c *Catalog) Plugin(name string) (Plugin, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.pluginLocked(name)
}

func (c *Catalog) pluginLocked(name string) (Plugin, error) {
	i, ok := c.byName[name]
	if !ok {
		known := slices.Sorted(maps.Keys(c.byName))
		return Plugin{}, &NotFoundError{Kind: "plugin", Name: name, Nearest: suggest.Nearest(name, known)}
	}
	p := c.found.plugins[i]
	p.Drifted = c.driftedLocked(p)
	return p, nil
}

// driftedLocked: a live worker of this plugin was started from another content.
func (c *Catalog) driftedLocked(p Plugin) bool {
	if p.Shadowed != "" {
		return false
	}
	for _, s := range c.started {
		if s.plugin == p.Name && s.hash != hashOf(p) {
			return true
		}
	}
	return false
}

// MarkStarted notes which manifest (its Hash) an instance's worker was started
// from; "" forgets it when the worker has stopped.
func (c *Catalog) MarkStarted(id, hash string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if hash == "" {
		delete(c.started, id)
		return
	}
	plugin := id
	if inst, ok := c.instances[id]; ok {
		plugin = inst.Plugin
	}
	c.started[id] = startedFrom{plugin: plugin, hash: hash}
}

// Resolve looks up the program that a manifest leaves to this machine; envsDir
// is where the installer puts environments. It asks the disk each time: an
// environment may be installed at any moment.
func Resolve(m Manifest, envsDir string) Manifest {
	if len(m.Command) > 0 {
		return resolveCommand(m, envsDir)
	}
	if m.PythonPath == "" && envsDir != "" {
		// Through the link: an environment that is made again while the worker
		// runs must not change under it.
		if env, err := filepath.EvalSymlinks(filepath.Join(envsDir, m.Name)); err == nil {
			m.PythonPath = filepath.Join(env, "bin", "python")
		}
	}
	if m.PythonPath == "" && m.Format == "v3" && needsNothing(m.EnvSpec) {
		if python, err := exec.LookPath("python3"); err == nil {
			m.PythonPath = python
		}
	}
	return m
}

// resolveCommand looks a program without a path up: in the environment that the
// installer made for the plugin, then on PATH.
func resolveCommand(m Manifest, envsDir string) Manifest {
	name := m.Command[0]
	if filepath.IsAbs(name) {
		return m
	}
	prog := ""
	if envsDir != "" {
		if env, err := filepath.EvalSymlinks(filepath.Join(envsDir, m.Name)); err == nil {
			prog, _ = exec.LookPath(filepath.Join(env, "bin", name))
		}
	}
	if prog == "" {
		prog, _ = exec.LookPath(name)
	}
	if prog == "" {
		return m
	}
	m.Command = append([]string{prog}, m.Command[1:]...)
	return m
}

// needsNothing reports whether a plugin asks for no environment of its own: it
// lives on the standard library, and any Python will do.
func needsNothing(env json.RawMessage) bool {
	if len(env) == 0 {
		return true
	}
	var spec map[string]json.RawMessage
	if err := json.Unmarshal(env, &spec); err != nil {
		return false
	}
	var requirements []json.RawMessage
	reqs, ok := spec["requirements"]
	return len(spec) == 0 || ok && len(spec) == 1 && json.Unmarshal(reqs, &requirements) == nil && len(requirements) == 0
}
