package simtest

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/resource"
)

// catalog knows the plugins of a trace; each is one instance and nothing changes.
type catalog struct {
	t     *Trace
	names []string
}

var errFixed = errors.New("cannot change the plugins of a trace")

// Instances implements sched.Catalog, as do the following.
func (c *catalog) Instances() []plugins.Instance {
	out := make([]plugins.Instance, 0, len(c.names))
	for _, name := range c.names {
		out = append(out, c.instance(name))
	}
	return out
}

func (c *catalog) instance(name string) plugins.Instance {
	return plugins.Instance{ID: name, Plugin: name, Config: []byte("{}"), Enabled: true, Pinned: c.t.Plugins[name].Pinned}
}

func (c *catalog) Instance(id string) (plugins.Instance, plugins.Manifest, error) {
	p, ok := c.t.Plugins[id]
	if !ok {
		return plugins.Instance{}, plugins.Manifest{}, &plugins.NotFoundError{Kind: "plugin", Name: id}
	}
	return c.instance(id), plugins.Manifest{Name: id, Concurrency: p.Concurrency, Hash: id,
		Demand:   resource.Demand{RequiresGPU: p.gpu(), Devices: p.Devices, MinVRAM: p.Declared(), MinRAM: resource.FromMB(p.RAMMB + p.ExecuteRAMMB*float64(p.Concurrency))},
		Timeouts: plugins.Timeouts{Run: time.Duration(p.RunTimeout)},
	}, nil
}

func (c *catalog) SetEnabled(context.Context, string, bool) (plugins.Instance, error) {
	return plugins.Instance{}, errFixed
}

func (c *catalog) CheckConfig(string, json.RawMessage) ([]plugins.Issue, error) { return nil, errFixed }

func (c *catalog) SetConfig(context.Context, string, json.RawMessage) (plugins.Instance, []plugins.Issue, error) {
	return plugins.Instance{}, nil, errFixed
}

func (c *catalog) Changed() <-chan struct{} { return nil }
