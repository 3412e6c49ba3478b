package plugins

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"go.uber.org/zap"

	"github.com/cjmd/cjmd/internal/suggest"
)

// Events of InstanceStore.PutInstance.
const (
	instanceCreated = "created"
	instanceUpdated = "updated"
)

// entry is one instance as callers see it. It is worked out when something
// changes, because the scheduler and every submit ask for it.
type entry struct {
	inst Instance
	man  Manifest // zero when err is set
	err  error    // why it cannot be used
}

// rebuildLocked works out all entries anew: the stored instances, and an
// implicit one for each plugin that has none of its name.
func (c *Catalog) rebuildLocked() {
	c.entries = make(map[string]entry, len(c.instances)+len(c.byName))
	for id, inst := range c.instances {
		e := entry{inst: inst}
		if p, err := c.pluginLocked(inst.Plugin); err != nil {
			e.err = fmt.Errorf("cannot use instance %q: %w", id, err)
		} else {
			e = c.fill(e, p)
		}
		c.entries[id] = e
	}
	for name, i := range c.byName {
		if _, stored := c.instances[name]; !stored {
			e := entry{inst: Instance{ID: name, Plugin: name, Enabled: true}}
			c.entries[name] = c.fill(e, c.found.plugins[i])
		}
	}
}

// fill joins an instance with its plugin; the stored configuration gets the
// defaults that it lacks because the schema grew since.
func (c *Catalog) fill(e entry, p Plugin) entry {
	if p.Err != nil {
		e.err = p.Err
		return e
	}
	e.man = *p.Manifest
	config, err := MergeDefaults(e.man, e.inst.Config)
	if err != nil { // only a damaged store: keep what is there for the user to see
		c.o.Log.Error("stored configuration cannot be read", zap.String("instance", e.inst.ID), zap.Error(err))
		return e
	}
	e.inst.Config = config
	return e
}

// Instances lists the stored ones and the implicit ones of usable plugins,
// sorted by id. Configurations have their defaults filled in.
func (c *Catalog) Instances() []Instance {
	c.mu.RLock()
	defer c.mu.RUnlock()
	out := make([]Instance, 0, len(c.entries))
	for id, e := range c.entries {
		if _, stored := c.instances[id]; stored || e.err == nil {
			out = append(out, e.inst)
		}
	}
	slices.SortFunc(out, func(a, b Instance) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Instance returns an instance and its manifest, with the interpreter or
// program looked up on this machine: it is left as it stands when it is not
// there, and Runnable says so. *NotFoundError, or the plugin's own error (the
// instance is then still returned).
func (c *Catalog) Instance(id string) (Instance, Manifest, error) {
	inst, man, err := c.Lookup(id)
	if err != nil {
		return inst, man, err
	}
	man = Resolve(man, c.o.EnvsDir)
	man.Adapters = adaptersFor(man, c.Adapters())
	return inst, man, nil
}

// Lookup is Instance without a look at this machine, which costs more than the
// rest of a submit: the manifest is as it was declared.
func (c *Catalog) Lookup(id string) (Instance, Manifest, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	e, ok := c.entries[id]
	if !ok {
		known := slices.Sorted(maps.Keys(c.entries))
		return Instance{}, Manifest{}, &NotFoundError{Kind: "plugin", Name: id, Nearest: suggest.Nearest(id, known)}
	}
	return e.inst, e.man, e.err
}

// CheckConfig fills in the defaults and holds config against the schema of the
// instance's plugin. The error is about an unknown instance or text that is no
// object; findings are issues.
func (c *Catalog) CheckConfig(id string, config json.RawMessage) ([]Issue, error) {
	_, man, err := c.Lookup(id)
	if err != nil {
		return nil, err
	}
	_, issues, err := checked(man, config)
	return issues, err
}

// checked returns the whole effective configuration and what is to say about it.
func checked(man Manifest, config json.RawMessage) (json.RawMessage, []Issue, error) {
	full, err := MergeDefaults(man, config)
	if err != nil {
		return nil, nil, err
	}
	issues, err := CheckConfig(man, full)
	return full, issues, err
}

// accept is checked with *ConfigError when config cannot be used.
func accept(id string, man Manifest, config json.RawMessage) (json.RawMessage, []Issue, error) {
	full, issues, err := checked(man, config)
	if err != nil {
		return nil, nil, &ConfigError{Instance: id, Issues: []Issue{{Message: err.Error()}}}
	}
	if slices.ContainsFunc(issues, func(i Issue) bool { return !i.Warning }) {
		return nil, nil, &ConfigError{Instance: id, Issues: issues}
	}
	return full, issues, nil
}

// CreateInstance stores a further instance of a plugin. Revision and UpdatedAt
// are set here. *NameError, *ExistsError, *NotFoundError, *ConfigError.
func (c *Catalog) CreateInstance(ctx context.Context, inst Instance) (Instance, error) {
	if !ValidName(inst.ID) {
		return Instance{}, &NameError{inst.ID}
	}
	unlock, err := c.lockWrites(ctx)
	if err != nil {
		return Instance{}, fmt.Errorf("cannot create instance %q: %w", inst.ID, err)
	}
	defer unlock()
	p, err := c.Plugin(inst.Plugin)
	if err != nil {
		return Instance{}, err
	}
	if p.Err != nil {
		return Instance{}, p.Err
	}
	if _, err := c.Plugin(inst.ID); err == nil || c.stored(inst.ID) {
		return Instance{}, &ExistsError{inst.ID}
	}
	if inst.Config, _, err = accept(inst.ID, *p.Manifest, inst.Config); err != nil {
		return Instance{}, err
	}
	inst.Revision = 0
	return c.put(ctx, inst, instanceCreated)
}

func (c *Catalog) stored(id string) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	_, ok := c.instances[id]
	return ok
}

// put stores inst as its next revision. The caller holds the write slot.
func (c *Catalog) put(ctx context.Context, inst Instance, event string) (Instance, error) {
	inst.Revision++
	inst.UpdatedAt = c.o.Now().UTC()
	if err := c.o.Store.PutInstance(ctx, inst, event); err != nil {
		return Instance{}, fmt.Errorf("cannot store instance %q: %w", inst.ID, err)
	}
	c.mu.Lock()
	c.instances[inst.ID] = inst
	c.rebuildLocked()
	c.mu.Unlock()
	wake(c.changed)
	return inst, nil
}

// DeleteInstance forgets a stored instance; one that bears its plugin's name
// falls back to the implicit one. *NotFoundError, *ImplicitError.
func (c *Catalog) DeleteInstance(ctx context.Context, id string) error {
	unlock, err := c.lockWrites(ctx)
	if err != nil {
		return fmt.Errorf("cannot delete instance %q: %w", id, err)
	}
	defer unlock()
	if !c.stored(id) {
		if _, err := c.Plugin(id); err == nil {
			return &ImplicitError{id}
		}
		_, _, err := c.Lookup(id)
		return err
	}
	if err := c.o.Store.DeleteInstance(ctx, id); err != nil {
		return fmt.Errorf("cannot delete instance %q: %w", id, err)
	}
	c.mu.Lock()
	delete(c.instances, id)
	delete(c.started, id)
	c.rebuildLocked()
	c.mu.Unlock()
	wake(c.changed)
	return nil
}

// SetEnabled persists the flag. It also works while the plugin cannot be used.
func (c *Catalog) SetEnabled(ctx context.Context, id string, enabled bool) (Instance, error) {
	return c.change(ctx, id, func(inst *Instance, _ Manifest) (bool, error) {
		was := inst.Enabled
		inst.Enabled = enabled
		return was != enabled, nil
	})
}

// SetConfig replaces the configuration; defaults fill what is missing. The
// issues of a success are warnings. *ConfigError.
func (c *Catalog) SetConfig(ctx context.Context, id string, config json.RawMessage) (Instance, []Issue, error) {
	var issues []Issue
	inst, err := c.change(ctx, id, func(inst *Instance, man Manifest) (bool, error) {
		if man.Name == "" { // no schema to check against
			_, _, err := c.Lookup(id)
			return false, err
		}
		full, found, err := accept(id, man, config)
		if err != nil {
			return false, err
		}
		inst.Config, issues = full, found
		return true, nil
	})
	return inst, issues, err
}

// Settings of an instance besides its configuration.
type Settings struct {
	Pinned, Autoload *bool
	Concurrency      *int
	Limits           *Limits    // replaces the whole; an empty one is the manifest's again
	Isolation        *Isolation // likewise
	Placement        *Placement // replaces the whole; an empty one is the manifest's again
}

// Update changes what is not nil.
func (c *Catalog) Update(ctx context.Context, id string, s Settings) (Instance, error) {
	return c.change(ctx, id, func(inst *Instance, _ Manifest) (bool, error) {
		if s.Pinned != nil {
			inst.Pinned = *s.Pinned
		}
		if s.Autoload != nil {
			inst.Autoload = *s.Autoload
		}
		if s.Concurrency != nil {
			inst.Concurrency = *s.Concurrency
		}
		if s.Limits != nil {
			inst.Limits = s.Limits
			if *s.Limits == (Limits{}) {
				inst.Limits = nil
			}
		}
		if s.Isolation != nil {
			inst.Isolation = s.Isolation
			if s.Isolation.none() {
				inst.Isolation = nil
			}
		}
		if s.Placement != nil {
			inst.Placement = s.Placement
			if s.Placement.none() {
				inst.Placement = nil
			}
		}
		return true, nil
	})
}

// change reads an instance, lets edit change it and stores it when edit says
// so. man is zero when the plugin of a stored instance cannot be used now.
func (c *Catalog) change(ctx context.Context, id string, edit func(*Instance, Manifest) (bool, error)) (Instance, error) {
	unlock, err := c.lockWrites(ctx)
	if err != nil {
		return Instance{}, fmt.Errorf("cannot change instance %q: %w", id, err)
	}
	defer unlock()
	inst, man, err := c.Lookup(id)
	if err != nil && !c.stored(id) {
		return Instance{}, err
	}
	save, err := edit(&inst, man)
	if err != nil || !save {
		return inst, err
	}
	return c.put(ctx, inst, instanceUpdated)
}
