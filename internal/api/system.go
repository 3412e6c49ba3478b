package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/cjmd/cjmd/api"
	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
)

// ListWorkers is GET /v1/workers.
func (s *server) ListWorkers(context.Context, wire.ListWorkersRequestObject) (wire.ListWorkersResponseObject, error) {
	list := s.o.Workers.List()
	out := wire.ListWorkers200JSONResponse{Workers: make([]wire.Worker, 0, len(list))}
	for _, st := range list {
		out.Workers = append(out.Workers, wireWorker(st))
	}
	return out, nil
}

// GetWorker is GET /v1/workers/{id}.
func (s *server) GetWorker(_ context.Context, req wire.GetWorkerRequestObject) (wire.GetWorkerResponseObject, error) {
	st, ok := s.o.Workers.Status(req.Id)
	if !ok {
		return nil, &requestError{Code: codeWorkerNotFound}
	}
	return wire.GetWorker200JSONResponse(wireWorker(st)), nil
}

// GetIsolation is GET /v1/isolation.
func (s *server) GetIsolation(ctx context.Context, _ wire.GetIsolationRequestObject) (wire.GetIsolationResponseObject, error) {
	out := wire.GetIsolation200JSONResponse{Tiers: []wire.TierState{}, Workers: []wire.WorkerIsolation{}}
	for i, t := range s.o.Workers.Tiers(ctx) {
		out.Tiers = append(out.Tiers, wire.TierState{Tier: i, Name: t.Name, Available: t.Why == "", Why: t.Why})
		if t.Auto {
			out.Auto = t.Name
		}
	}
	for _, st := range s.o.Workers.List() {
		if st.Tier != "" {
			out.Workers = append(out.Workers, wire.WorkerIsolation{Id: st.Instance, Tier: st.Tier, Weaker: wireFacts(st.Weaker())})
		}
	}
	return out, nil
}

// GetSystem is GET /v1/system.
func (s *server) GetSystem(context.Context, wire.GetSystemRequestObject) (wire.GetSystemResponseObject, error) {
	snap, fresh := s.o.Machine.Latest()
	if snap.Monitor == "" { // registered, but it has not said anything yet
		snap.Monitor, fresh = s.o.Machine.Registered(), false
	}
	out := wireSystem(snap, fresh)
	st := s.o.Lifecycle.State()
	out.Ledger = append([]wire.DeviceLedger{hostLedger(snap.Host, st)}, wireDevices(st.Devices, st.Accounts)...)
	return wire.GetSystem200JSONResponse(out), nil
}

// wireSystem sums devices up under the names that dashboards of the Python
// system know.
func wireSystem(snap resource.Snapshot, fresh bool) wire.System {
	h := snap.Host
	out := wire.System{Monitor: snap.Monitor, Fresh: fresh, At: utc(snap.At), Cpus: h.CPUs, CpuPercent: h.CPUPercent,
		MemoryUsedMb: h.MemUsed.MB(), MemoryTotalMb: h.MemTotal.MB(), MemoryAvailableMb: h.MemAvailable.MB(),
		SwapTotalMb: h.SwapTotal.MB(), SwapUsedMb: h.SwapUsed.MB(), GpuType: snap.GPUVendor,
		Devices: make([]wire.Device, 0, len(snap.Devices)), Processes: make([]wire.DeviceProcess, 0, len(snap.Processes))}
	if out.GpuType == "" {
		out.GpuType = "None"
	}
	for _, d := range snap.Devices {
		out.GpuTotalMemoryMb += d.Total.MB()
		out.GpuUsedMemoryMb += d.Used.MB()
		out.GpuFreeMemoryMb += d.Free.MB()
		out.GpuLoadPercent = max(out.GpuLoadPercent, d.LoadPercent)
		out.Devices = append(out.Devices, wire.Device{Uuid: string(d.ID), Index: d.Index, Name: d.Name, TotalMb: d.Total.MB(),
			UsedMb: d.Used.MB(), FreeMb: d.Free.MB(), LoadPercent: d.LoadPercent, TemperatureCelsius: d.TempCelsius,
			PowerWatts: d.PowerWatts, Unified: d.Unified})
	}
	for _, p := range snap.Processes {
		out.Processes = append(out.Processes, wire.DeviceProcess{Pid: p.PID, GpuIndex: p.Index, GpuMemoryMb: p.Memory.MB(), Command: p.Command})
	}
	if len(snap.Details) > 0 {
		if raw, err := json.Marshal(snap.Details); err == nil { // a monitor may put in what JSON cannot hold
			out.Details = raw
		}
	}
	return out
}

func (s *server) monitors() wire.MonitorsJSONResponse {
	out := wire.MonitorsJSONResponse{Registered: s.o.Machine.Registered(), Monitors: []wire.Monitor{}}
	for _, m := range s.o.Machine.Monitors() {
		out.Monitors = append(out.Monitors, wire.Monitor{Name: m.Name, Plugin: m.Instance, Registered: m.Registered, State: m.State, At: utc(m.At), Error: m.Err})
	}
	return out
}

// ListMonitors is GET /v1/monitors.
func (s *server) ListMonitors(context.Context, wire.ListMonitorsRequestObject) (wire.ListMonitorsResponseObject, error) {
	return wire.ListMonitors200JSONResponse{MonitorsJSONResponse: s.monitors()}, nil
}

// PutMonitor is PUT /v1/monitor.
func (s *server) PutMonitor(ctx context.Context, req wire.PutMonitorRequestObject) (wire.PutMonitorResponseObject, error) {
	if err := s.o.Machine.Register(ctx, req.Body.Name); err != nil {
		return nil, err
	}
	return wire.PutMonitor200JSONResponse{MonitorsJSONResponse: s.monitors()}, nil
}

func (s *server) scheduler() wire.SchedulerJSONResponse {
	st := s.o.Lifecycle.State()
	return wire.SchedulerJSONResponse{Policy: st.Policy, Policies: orNone(st.Policies), Monitor: st.Monitor, Fresh: st.Fresh, HeartbeatAt: utc(st.LastPass),
		FreeRamMb: st.FreeRAM.MB(), MarginMb: st.Margin.MB(), Slots: st.Slots, Waiting: st.Waiting, Claims: wireClaims(st.Claims),
		Shadow: wireShadow(st.Shadow), MonitorPlugin: st.MonitorInstance, Groups: wireGroups(st.Groups), Quarantined: st.Quarantined}
}

func orNone[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func wireClaims(claims []sched.Claim) []wire.Claim {
	out := make([]wire.Claim, 0, len(claims))
	for _, c := range claims {
		out = append(out, wire.Claim{Owner: c.Owner, Kind: c.Kind, Plugin: c.Instance, Device: string(c.Device), Mb: c.Bytes.MB(),
			MeasuredMb: c.Measured.MB(), Source: c.Source, Phase: c.Phase, Since: utc(c.Since)})
	}
	return out
}

// GetScheduler is GET /v1/scheduler.
func (s *server) GetScheduler(context.Context, wire.GetSchedulerRequestObject) (wire.GetSchedulerResponseObject, error) {
	return wire.GetScheduler200JSONResponse{SchedulerJSONResponse: s.scheduler()}, nil
}

// PutScheduler is PUT /v1/scheduler.
func (s *server) PutScheduler(ctx context.Context, req wire.PutSchedulerRequestObject) (wire.PutSchedulerResponseObject, error) {
	known := s.o.Lifecycle.State().Policies
	for _, name := range known {
		if name == req.Body.Policy {
			if err := s.o.Lifecycle.SetPolicy(ctx, name); err != nil {
				return nil, fmt.Errorf("cannot change the policy: %w", err)
			}
			return wire.PutScheduler200JSONResponse{SchedulerJSONResponse: s.scheduler()}, nil
		}
	}
	return nil, &UnknownError{What: "policy", Name: req.Body.Policy, Known: known}
}

// GetVersion is GET /v1/version.
func (s *server) GetVersion(context.Context, wire.GetVersionRequestObject) (wire.GetVersionResponseObject, error) {
	v := s.o.Version
	return wire.GetVersion200JSONResponse{Version: v.Version, Commit: v.Commit, BuiltAt: v.BuiltAt, Go: runtime.Version(), Os: runtime.GOOS,
		Arch: runtime.GOARCH, Api: "v1"}, nil
}

// ListTokens is GET /v1/tokens.
func (s *server) ListTokens(context.Context, wire.ListTokensRequestObject) (wire.ListTokensResponseObject, error) {
	out := wire.ListTokens200JSONResponse{Tokens: []wire.Token{}}
	for _, t := range s.o.Tokens.List() {
		out.Tokens = append(out.Tokens, wireToken(t))
	}
	return out, nil
}

func wireToken(t Token) wire.Token {
	return wire.Token{Name: t.Name, Role: wire.Role(t.Role), CreatedAt: t.CreatedAt, ExpiresAt: t.ExpiresAt, LastUsedAt: t.LastUsedAt}
}

// CreateToken is POST /v1/tokens.
func (s *server) CreateToken(_ context.Context, req wire.CreateTokenRequestObject) (wire.CreateTokenResponseObject, error) {
	var lifetime time.Duration
	if req.Body.ExpiresIn != "" {
		d, err := time.ParseDuration(req.Body.ExpiresIn)
		if err != nil || d < time.Second {
			return nil, badField("/expires_in", "must be a duration of at least one second")
		}
		lifetime = d
	}
	tok, secret, err := s.o.Tokens.Create(req.Body.Name, Role(req.Body.Role), lifetime)
	if errors.Is(err, ErrTokenExists) {
		return nil, &requestError{Code: codeExists, Detail: "There is a token of this name already.", Cause: err}
	}
	if err != nil {
		return nil, err
	}
	return wire.CreateToken201JSONResponse{Token: wireToken(tok), Secret: secret}, nil
}

// DeleteToken is DELETE /v1/tokens/{name}.
func (s *server) DeleteToken(_ context.Context, req wire.DeleteTokenRequestObject) (wire.DeleteTokenResponseObject, error) {
	err := s.o.Tokens.Delete(req.Name)
	if err == nil {
		s.sessions.end("token:" + req.Name)
	}
	if errors.Is(err, ErrTokenNotFound) {
		return nil, &requestError{Code: codeTokenNotFound, Cause: err}
	}
	if err != nil {
		return nil, err
	}
	return wire.DeleteToken204Response{}, nil
}

// Livez is GET /livez.
func (s *server) Livez(ctx context.Context, _ wire.LivezRequestObject) (wire.LivezResponseObject, error) {
	if why := s.o.Live(ctx); len(why) > 0 {
		return wire.Livez503JSONResponse{Status: wire.HealthStatusFailing, Reasons: why}, nil
	}
	return wire.Livez200JSONResponse{HealthJSONResponse: wire.HealthJSONResponse{Status: wire.HealthStatusOk}}, nil
}

// Readyz is GET /readyz.
func (s *server) Readyz(ctx context.Context, _ wire.ReadyzRequestObject) (wire.ReadyzResponseObject, error) {
	if why := s.o.Ready(ctx); len(why) > 0 {
		return wire.Readyz503JSONResponse{Status: wire.HealthStatusFailing, Reasons: why}, nil
	}
	if shut := s.o.Degraded(); len(shut) > 0 {
		return wire.Readyz200JSONResponse{HealthJSONResponse: wire.HealthJSONResponse{Status: wire.HealthStatusDegraded, Reasons: shut}}, nil
	}
	return wire.Readyz200JSONResponse{HealthJSONResponse: wire.HealthJSONResponse{Status: wire.HealthStatusOk}}, nil
}

// metricsAnswer lets promhttp choose the format and write it.
type metricsAnswer struct {
	handler http.Handler
	req     *http.Request
}

func (m metricsAnswer) VisitMetricsResponse(w http.ResponseWriter) error {
	m.handler.ServeHTTP(w, m.req)
	return nil
}

func metricsHandler(g prometheus.Gatherer) http.Handler {
	if g == nil {
		g = prometheus.NewRegistry()
	}
	return promhttp.HandlerFor(g, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

// Metrics is GET /metrics.
func (s *server) Metrics(ctx context.Context, _ wire.MetricsRequestObject) (wire.MetricsResponseObject, error) {
	return metricsAnswer{s.metrics, requestOf(ctx)}, nil
}

// Openapi is GET /openapi.yaml.
func (s *server) Openapi(context.Context, wire.OpenapiRequestObject) (wire.OpenapiResponseObject, error) {
	return wire.Openapi200ApplicationyamlResponse{Body: bytes.NewReader(api.Spec), ContentLength: int64(len(api.Spec))}, nil
}

// schemaAnswer is the schema of manifests as it is.
type schemaAnswer struct{}

func (schemaAnswer) VisitManifestSchemaResponse(w http.ResponseWriter) error {
	w.Header().Set("Content-Type", "application/schema+json")
	_, err := w.Write(api.ManifestSchema)
	return err
}

// ManifestSchema is GET /manifest.schema.json.
func (s *server) ManifestSchema(context.Context, wire.ManifestSchemaRequestObject) (wire.ManifestSchemaResponseObject, error) {
	return schemaAnswer{}, nil
}

// enumsOf lists the values that a schema's own fields may take.
func enumsOf(schema json.RawMessage) json.RawMessage {
	var s struct {
		Properties map[string]struct {
			Enum []json.RawMessage `json:"enum"`
		} `json:"properties"`
	}
	if json.Unmarshal(schema, &s) != nil {
		return nil
	}
	out := map[string][]json.RawMessage{}
	for name, p := range s.Properties {
		if len(p.Enum) > 0 {
			out[name] = p.Enum
		}
	}
	raw, err := json.Marshal(out)
	if err != nil {
		return nil
	}
	return raw
}
