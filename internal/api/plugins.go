package api

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/supervisor"
)

// rawJSON answers with an object as a plugin gave it. The generated type would
// write it as base64, because it hides that it is JSON already.
type rawJSON []byte

func (b rawJSON) send(w http.ResponseWriter) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	_, err := w.Write(orEmpty([]byte(b)))
	return err
}

func (b rawJSON) VisitGetConfigSchemaResponse(w http.ResponseWriter) error  { return b.send(w) }
func (b rawJSON) VisitGetConfigOptionsResponse(w http.ResponseWriter) error { return b.send(w) }
func (b rawJSON) VisitGetPluginStatsResponse(w http.ResponseWriter) error   { return b.send(w) }
func (b rawJSON) VisitGetSurfaceResponse(w http.ResponseWriter) error       { return b.send(w) }

// state of an instance's worker; stopped when it never had one.
func (s *server) state(instance string) supervisor.State {
	if st, ok := s.o.Workers.Status(instance); ok {
		return st.State
	}
	return supervisor.Stopped
}

// view is a catalogue entry with what its own instance is doing.
func (s *server) view(p plugins.Plugin, instances []plugins.Instance) wire.Plugin {
	out := wire.Plugin{Name: p.Name, Plugin: p.Name, Path: p.Path, ShadowedBy: p.Shadowed, Drifted: p.Drifted, FoundAt: utc(p.FoundAt),
		State: wire.WorkerStateStopped}
	if p.Err != nil {
		out.Error = p.Err.Error()
	}
	if m := p.Manifest; m != nil {
		out.Version, out.Description, out.Author, out.Category, out.Interface = m.Version, m.Description, m.Author, m.Category, m.Interface
		out.Runtime, out.Format, out.Requirements = cmp.Or(m.Runtime, "native"), m.Format, wireDemand(m.Demand)
		out.Concurrency = max(m.Concurrency, 1)
	}
	if p.Shadowed != "" || p.Err != nil {
		return out // nothing runs from this one
	}
	out.Findings = s.findings(p.Name)
	for _, inst := range instances {
		if inst.Plugin != p.Name {
			continue
		}
		out.Instances = append(out.Instances, inst.ID)
		if inst.ID == p.Name {
			s.overlay(&out, inst)
		}
	}
	return out
}

// overlay shows one instance of the plugin.
func (s *server) overlay(out *wire.Plugin, inst plugins.Instance) {
	out.Name, out.Enabled, out.Pinned = inst.ID, inst.Enabled, inst.Pinned
	if inst.Concurrency > 0 {
		out.Concurrency = inst.Concurrency
	}
	out.State = wire.WorkerState(s.state(inst.ID))
}

// ListPlugins is GET /v1/plugins.
func (s *server) ListPlugins(_ context.Context, req wire.ListPluginsRequestObject) (wire.ListPluginsResponseObject, error) {
	category, state := deref(req.Params.Category), wire.WorkerState(deref(req.Params.State))
	if state != "" && !state.Valid() {
		return nil, badParam("state", "is no state of a worker")
	}
	list := s.list(s.o.Plugins.Plugins())
	list.Plugins = slices.DeleteFunc(list.Plugins, func(p wire.Plugin) bool {
		return category != "" && p.Category != category || state != "" && p.State != state
	})
	return wire.ListPlugins200JSONResponse{PluginsJSONResponse: list}, nil
}

func (s *server) list(found []plugins.Plugin) wire.PluginsJSONResponse {
	instances := s.o.Plugins.Instances()
	out := wire.PluginsJSONResponse{Plugins: make([]wire.Plugin, 0, len(found))}
	for _, p := range found {
		out.Plugins = append(out.Plugins, s.view(p, instances))
	}
	return out
}

// DiscoverPlugins is POST /v1/plugins/discover.
func (s *server) DiscoverPlugins(ctx context.Context, _ wire.DiscoverPluginsRequestObject) (wire.DiscoverPluginsResponseObject, error) {
	found, err := s.o.Plugins.Discover(ctx)
	if err != nil {
		return nil, err
	}
	return wire.DiscoverPlugins200JSONResponse{PluginsJSONResponse: s.list(found)}, nil
}

// one is a plugin or an instance by name, with its manifest and worker.
func (s *server) one(name string) (wire.PluginJSONResponse, error) {
	inst, _, err := s.o.Plugins.Instance(name)
	if err != nil {
		// A manifest that cannot be used has no instance, but can be looked at.
		p, perr := s.o.Plugins.Plugin(name)
		if perr != nil {
			return wire.PluginJSONResponse{}, err
		}
		return wire.PluginJSONResponse(s.view(p, nil)), nil
	}
	p, err := s.o.Plugins.Plugin(inst.Plugin)
	if err != nil {
		return wire.PluginJSONResponse{}, err
	}
	out := s.view(p, s.o.Plugins.Instances())
	s.overlay(&out, inst)
	if p.Manifest != nil {
		out.Manifest = p.Manifest.Raw
	}
	if st, ok := s.o.Workers.Status(inst.ID); ok {
		w := wireWorker(st)
		out.Worker = &w
	}
	return wire.PluginJSONResponse(out), nil
}

// GetPlugin is GET /v1/plugins/{name}.
func (s *server) GetPlugin(_ context.Context, req wire.GetPluginRequestObject) (wire.GetPluginResponseObject, error) {
	p, err := s.one(req.Name)
	return wire.GetPlugin200JSONResponse{PluginJSONResponse: p}, err
}

// act does something to an instance and answers with how it is then.
func (s *server) act(name string, do func() error) (wire.PluginJSONResponse, error) {
	if _, _, err := s.o.Plugins.Instance(name); err != nil {
		return wire.PluginJSONResponse{}, err
	}
	if err := do(); err != nil {
		return wire.PluginJSONResponse{}, err
	}
	return s.one(name)
}

// LoadPlugin is POST /v1/plugins/{name}/load.
func (s *server) LoadPlugin(ctx context.Context, req wire.LoadPluginRequestObject) (wire.LoadPluginResponseObject, error) {
	p, err := s.act(req.Name, func() error { return s.o.Lifecycle.Load(ctx, req.Name) })
	return wire.LoadPlugin200JSONResponse{PluginJSONResponse: p}, err
}

// UnloadPlugin is POST /v1/plugins/{name}/unload.
func (s *server) UnloadPlugin(ctx context.Context, req wire.UnloadPluginRequestObject) (wire.UnloadPluginResponseObject, error) {
	p, err := s.act(req.Name, func() error {
		return s.o.Lifecycle.Unload(ctx, req.Name, "unloaded by "+principalOf(ctx).Name)
	})
	return wire.UnloadPlugin200JSONResponse{PluginJSONResponse: p}, err
}

// ReloadPlugin is POST /v1/plugins/{name}/reload.
func (s *server) ReloadPlugin(ctx context.Context, req wire.ReloadPluginRequestObject) (wire.ReloadPluginResponseObject, error) {
	p, err := s.act(req.Name, func() error { return s.o.Lifecycle.Reload(ctx, req.Name) })
	return wire.ReloadPlugin200JSONResponse{PluginJSONResponse: p}, err
}

// EnablePlugin is POST /v1/plugins/{name}/enable.
func (s *server) EnablePlugin(ctx context.Context, req wire.EnablePluginRequestObject) (wire.EnablePluginResponseObject, error) {
	p, err := s.act(req.Name, func() error { return s.o.Lifecycle.Enable(ctx, req.Name) })
	return wire.EnablePlugin200JSONResponse{PluginJSONResponse: p}, err
}

// DisablePlugin is POST /v1/plugins/{name}/disable.
func (s *server) DisablePlugin(ctx context.Context, req wire.DisablePluginRequestObject) (wire.DisablePluginResponseObject, error) {
	p, err := s.act(req.Name, func() error { return s.o.Lifecycle.Disable(ctx, req.Name) })
	return wire.DisablePlugin200JSONResponse{PluginJSONResponse: p}, err
}

// LoadAll is POST /v1/plugins/load-all.
func (s *server) LoadAll(ctx context.Context, _ wire.LoadAllRequestObject) (wire.LoadAllResponseObject, error) {
	return wire.LoadAll200JSONResponse{BulkResultJSONResponse: bulk(s.o.Lifecycle.LoadAll(ctx))}, nil
}

// UnloadAll is POST /v1/plugins/unload-all.
func (s *server) UnloadAll(ctx context.Context, _ wire.UnloadAllRequestObject) (wire.UnloadAllResponseObject, error) {
	return wire.UnloadAll200JSONResponse{BulkResultJSONResponse: bulk(s.o.Lifecycle.UnloadAll(ctx, "unloaded by "+principalOf(ctx).Name))}, nil
}

func bulk(m map[string]error) wire.BulkResultJSONResponse {
	out := wire.BulkResultJSONResponse{Results: make([]wire.BulkItem, 0, len(m))}
	for _, name := range sortedKeys(m) {
		it := wire.BulkItem{Name: name, Ok: m[name] == nil}
		if m[name] != nil {
			it.Error = m[name].Error()
		}
		out.Results = append(out.Results, it)
	}
	return out
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// ListCategories is GET /v1/categories.
func (s *server) ListCategories(context.Context, wire.ListCategoriesRequestObject) (wire.ListCategoriesResponseObject, error) {
	byName := map[string][]string{}
	for _, p := range s.o.Plugins.Plugins() {
		if p.Manifest != nil && p.Err == nil && p.Shadowed == "" && p.Manifest.Category != "" {
			byName[p.Manifest.Category] = append(byName[p.Manifest.Category], p.Name)
		}
	}
	out := wire.ListCategories200JSONResponse{Categories: make([]wire.Category, 0, len(byName))}
	for _, name := range sortedKeys(byName) {
		slices.Sort(byName[name])
		out.Categories = append(out.Categories, wire.Category{Name: name, Plugins: byName[name]})
	}
	return out, nil
}

// GetConfig is GET /v1/plugins/{name}/config.
func (s *server) GetConfig(_ context.Context, req wire.GetConfigRequestObject) (wire.GetConfigResponseObject, error) {
	inst, _, err := s.o.Plugins.Instance(req.Name)
	if err != nil {
		return nil, err
	}
	return wire.GetConfig200JSONResponse{PluginConfigJSONResponse: wire.PluginConfigJSONResponse{Name: inst.ID, Config: orEmpty(inst.Config), Revision: inst.Revision}}, nil
}

// PutConfig is PUT /v1/plugins/{name}/config.
func (s *server) PutConfig(ctx context.Context, req wire.PutConfigRequestObject) (wire.PutConfigResponseObject, error) {
	inst, issues, applied, err := s.o.Lifecycle.Configure(ctx, req.Name, req.Body.Config)
	if err != nil {
		return nil, err
	}
	out := wire.PluginConfigJSONResponse{Name: inst.ID, Config: orEmpty(inst.Config), Revision: inst.Revision, Applied: wire.PluginConfigApplied(applied)}
	for _, i := range issues {
		out.Warnings = append(out.Warnings, wire.FieldError{Pointer: "/config" + i.Pointer, Message: cmp.Or(i.Rule, i.Message)})
	}
	return wire.PutConfig200JSONResponse{PluginConfigJSONResponse: out}, nil
}

// GetConfigSchema is GET /v1/plugins/{name}/config/schema.
func (s *server) GetConfigSchema(_ context.Context, req wire.GetConfigSchemaRequestObject) (wire.GetConfigSchemaResponseObject, error) {
	_, man, err := s.o.Plugins.Instance(req.Name)
	if err != nil {
		return nil, err
	}
	if len(man.Schema) > 0 {
		return rawJSON(man.Schema), nil
	}
	// A manifest without a schema: a loaded worker may have one.
	if st, ok := s.o.Workers.Status(req.Name); ok && st.Ready != nil {
		return rawJSON(st.Ready.Schema), nil
	}
	return rawJSON(nil), nil
}

// GetConfigOptions is GET /v1/plugins/{name}/config/options. The manifest's
// schema answers for a plugin that cannot tell or is not loaded: its enums are
// the values that its fields may take.
func (s *server) GetConfigOptions(ctx context.Context, req wire.GetConfigOptionsRequestObject) (wire.GetConfigOptionsResponseObject, error) {
	_, man, err := s.o.Plugins.Instance(req.Name)
	if err != nil {
		return nil, err
	}
	raw, err := s.o.Workers.Request(ctx, req.Name, "options", nil)
	switch {
	case err == nil:
		return rawJSON(raw), nil
	case errors.Is(err, supervisor.ErrNotLoaded), errors.Is(err, supervisor.ErrNotSupported):
		return rawJSON(enumsOf(man.Schema)), nil
	default:
		return nil, err
	}
}

// ask puts a question to a loaded worker.
func (s *server) ask(ctx context.Context, name, method string) (rawJSON, error) {
	if _, _, err := s.o.Plugins.Instance(name); err != nil {
		return nil, err
	}
	raw, err := s.o.Workers.Request(ctx, name, method, nil)
	return rawJSON(raw), err
}

// GetPluginStats is GET /v1/plugins/{name}/stats.
func (s *server) GetPluginStats(ctx context.Context, req wire.GetPluginStatsRequestObject) (wire.GetPluginStatsResponseObject, error) {
	return s.ask(ctx, req.Name, "stats")
}

// GetSurface is GET /v1/plugins/{name}/surface.
func (s *server) GetSurface(ctx context.Context, req wire.GetSurfaceRequestObject) (wire.GetSurfaceResponseObject, error) {
	return s.ask(ctx, req.Name, "surface")
}

// PrefetchPlugin is POST /v1/plugins/{name}/prefetch.
func (s *server) PrefetchPlugin(ctx context.Context, req wire.PrefetchPluginRequestObject) (wire.PrefetchPluginResponseObject, error) {
	_, err := s.ask(ctx, req.Name, "prefetch")
	return wire.PrefetchPlugin204Response{}, err
}

// ReleasePlugin is POST /v1/plugins/{name}/release.
func (s *server) ReleasePlugin(ctx context.Context, req wire.ReleasePluginRequestObject) (wire.ReleasePluginResponseObject, error) {
	_, err := s.ask(ctx, req.Name, "release")
	return wire.ReleasePlugin204Response{}, err
}

// ListInstances is GET /v1/plugins/{name}/instances.
func (s *server) ListInstances(_ context.Context, req wire.ListInstancesRequestObject) (wire.ListInstancesResponseObject, error) {
	if _, err := s.o.Plugins.Plugin(req.Name); err != nil {
		return nil, err
	}
	out := wire.ListInstances200JSONResponse{Instances: []wire.Instance{}}
	for _, inst := range s.o.Plugins.Instances() {
		if inst.Plugin == req.Name {
			out.Instances = append(out.Instances, wireInstance(inst, s.state(inst.ID)))
		}
	}
	return out, nil
}

// CreateInstance is POST /v1/plugins/{name}/instances.
func (s *server) CreateInstance(ctx context.Context, req wire.CreateInstanceRequestObject) (wire.CreateInstanceResponseObject, error) {
	b := req.Body
	inst := plugins.Instance{ID: b.Id, Plugin: req.Name, Config: b.Config, Enabled: b.Enabled == nil || *b.Enabled, Pinned: b.Pinned,
		Autoload: b.Autoload, Concurrency: b.Concurrency, Placement: placement(b.Placement),
		Isolation: isolationWish(b.Isolation), Limits: workerLimits(b.Limits)}
	made, err := s.o.Plugins.CreateInstance(ctx, inst)
	if err != nil {
		return nil, err
	}
	return wire.CreateInstance201JSONResponse{Body: wireInstance(made, s.state(made.ID)),
		Headers: wire.CreateInstance201ResponseHeaders{Location: "/v1/plugins/" + made.ID}}, nil
}

// PatchInstance is PATCH /v1/plugins/{name}/instances/{instance}.
func (s *server) PatchInstance(ctx context.Context, req wire.PatchInstanceRequestObject) (wire.PatchInstanceResponseObject, error) {
	inst, _, err := s.o.Plugins.Instance(req.Instance)
	if err != nil {
		return nil, err
	}
	if inst.Plugin != req.Name {
		return nil, &plugins.NotFoundError{Kind: "instance", Name: req.Instance}
	}
	b := req.Body
	inst, err = s.o.Plugins.Update(ctx, inst.ID, plugins.Settings{Pinned: b.Pinned, Autoload: b.Autoload, Concurrency: b.Concurrency, Placement: placement(b.Placement),
		Isolation: isolationWish(b.Isolation), Limits: workerLimits(b.Limits)})
	if err != nil {
		return nil, err
	}
	return wire.PatchInstance200JSONResponse(wireInstance(inst, s.state(inst.ID))), nil
}

// DeleteInstance is DELETE /v1/plugins/{name}/instances/{instance}.
func (s *server) DeleteInstance(ctx context.Context, req wire.DeleteInstanceRequestObject) (wire.DeleteInstanceResponseObject, error) {
	inst, _, err := s.o.Plugins.Instance(req.Instance)
	if err != nil {
		return nil, err
	}
	if inst.Plugin != req.Name {
		return nil, &plugins.NotFoundError{Kind: "instance", Name: req.Instance}
	}
	if inst.ID == inst.Plugin { // it would come back at once, without its configuration
		return nil, &plugins.ImplicitError{ID: inst.ID}
	}
	page, err := s.o.Jobs.List(ctx, jobs.ListQuery{Instance: inst.ID, Statuses: []jobs.Status{jobs.Pending, jobs.Running}, Limit: 1})
	if err != nil {
		return nil, err
	}
	if len(page.Jobs) > 0 {
		return nil, &requestError{Code: codeInUse, Detail: "The instance has jobs that are not final."}
	}
	if err := s.o.Lifecycle.Unload(ctx, inst.ID, "instance deleted"); err != nil {
		return nil, err
	}
	if err := s.o.Plugins.DeleteInstance(ctx, inst.ID); err != nil {
		return nil, err
	}
	return wire.DeleteInstance204Response{}, nil
}
