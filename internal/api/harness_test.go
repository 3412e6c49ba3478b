package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	apispec "github.com/cjmd/cjmd/api"
	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/jobs/sqlitestore"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/supervisor"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixture is the API over the real queue, store, journal and job logs. What
// starts workers is faked: there are none here.
type fixture struct {
	t       testing.TB
	queue   *jobs.Queue
	hub     *events.Hub
	plugins *fakePlugins
	life    *fakeLifecycle
	ledger  *fakeLedger
	workers *fakeWorkers
	machine *fakeMachine
	tokens  *Tokens
	admin   string // secret of an admin token
	socket  *http.Client
	tcp     *httptest.Server
	done    context.CancelFunc // StreamsDone
	check   *validator
	limits  Limits
	opts    Options
}

// setup serves the API on a Unix socket and on loopback TCP. edit may change the
// options first.
func setup(t testing.TB, edit ...func(*Options)) *fixture {
	t.Helper()
	ctx := context.Background()
	dir := t.TempDir()
	store, err := sqlitestore.Open(ctx, sqlitestore.Options{Dir: dir})
	require.NoError(t, err)
	t.Cleanup(func() { _ = store.Close() })
	hub := events.NewHub(events.Options{Source: store})
	q, err := jobs.NewQueue(jobs.Options{Store: store, Hub: hub, LogDir: filepath.Join(dir, "joblogs"), JobDir: filepath.Join(dir, "jobs")})
	require.NoError(t, err)
	t.Cleanup(func() { _ = q.Close() })
	_, err = q.Recover(ctx)
	require.NoError(t, err)
	tokens, err := OpenTokens(dir, nil)
	require.NoError(t, err)
	path, err := tokens.EnsureAdminToken()
	require.NoError(t, err)
	secret, err := os.ReadFile(path)
	require.NoError(t, err)

	done, cancel := context.WithCancel(ctx)
	f := &fixture{t: t, queue: q, hub: hub, plugins: newFakePlugins(), workers: &fakeWorkers{}, machine: newFakeMachine(), tokens: tokens,
		admin: strings.TrimSpace(string(secret)), done: cancel, limits: DefaultLimits(), check: newValidator(t)}
	f.life = &fakeLifecycle{f: f}
	f.ledger = &fakeLedger{leases: map[string]sched.LeaseState{}}
	f.opts = Options{Jobs: NewJobs(q), Lifecycle: f.life, Ledger: f.ledger, Plugins: f.plugins, Secrets: plugins.NewSecrets(filepath.Join(dir, "secrets")), Workers: f.workers, Machine: f.machine, Feed: hub, Tokens: tokens,
		Access: AccessOptions{AdminUIDs: []uint32{uint32(os.Getuid())}}, Log: zap.NewNop(), StreamsDone: done,
		Limits: func() Limits { return f.limits }, Heartbeat: time.Hour, WriteTimeout: 5 * time.Second, Version: VersionInfo{Version: "test"}}
	for _, e := range edit {
		e(&f.opts)
	}
	h, err := NewHandler(f.opts)
	require.NoError(t, err)
	f.serve(dir, h)
	return f
}

func (f *fixture) serve(dir string, h http.Handler) {
	f.tcp = httptest.NewUnstartedServer(h)
	f.tcp.Config.ConnContext = ConnContext
	f.tcp.Start()
	path := filepath.Join(dir, "api.sock")
	l, err := net.Listen("unix", path)
	require.NoError(f.t, err)
	srv := &http.Server{Handler: h, ConnContext: ConnContext, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(l) }()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}
	f.socket = &http.Client{Transport: tr}
	f.t.Cleanup(func() {
		f.done() // streams end first, as in the daemon
		f.hub.Close()
		tr.CloseIdleConnections()
		// A connection that the transport dialled in vain would be waited for.
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if srv.Shutdown(ctx) != nil {
			_ = srv.Close()
		}
		<-served
		f.tcp.Close()
	})
}

// answer is a response whose body was read and checked against the description.
type reply struct {
	*http.Response
	body []byte
}

func (r reply) into(t testing.TB, v any) {
	t.Helper()
	require.NoError(t, json.Unmarshal(r.body, v), "body: %s", r.body)
}

// code is the code of a problem.
func (r reply) code() string {
	var p struct{ Code string }
	_ = json.Unmarshal(r.body, &p)
	return p.Code
}

type edit func(*http.Request)

func header(k, v string) edit { return func(r *http.Request) { r.Header.Set(k, v) } }

// do sends a request over the Unix socket. body may be nil, a string or
// anything that JSON can hold.
func (f *fixture) do(method, path string, body any, edits ...edit) reply {
	f.t.Helper()
	return f.send(f.socket, "http://localhost", method, path, body, edits...)
}

// doTCP sends a request over TCP, with the admin token unless secret is given.
func (f *fixture) doTCP(secret, method, path string, body any, edits ...edit) reply {
	f.t.Helper()
	if secret != "" {
		edits = append([]edit{header("Authorization", "Bearer "+secret)}, edits...)
	}
	return f.send(f.tcp.Client(), f.tcp.URL, method, path, body, edits...)
}

func (f *fixture) send(c *http.Client, base, method, path string, body any, edits ...edit) reply {
	f.t.Helper()
	var rd io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		rd = strings.NewReader(b)
	default:
		data, err := json.Marshal(b)
		require.NoError(f.t, err)
		rd = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(f.t.Context(), method, base+path, rd)
	require.NoError(f.t, err)
	if rd != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, e := range edits {
		e(req)
	}
	resp, err := c.Do(req)
	require.NoError(f.t, err)
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	require.NoError(f.t, err)
	f.check.response(f.t, req, resp, data)
	return reply{resp, data}
}

// submit submits and returns the id.
func (f *fixture) submit(body any) string {
	f.t.Helper()
	r := f.do("POST", "/v1/jobs", body)
	require.Equal(f.t, 202, r.StatusCode, "%s", r.body)
	var j struct{ ID string }
	r.into(f.t, &j)
	return j.ID
}

// run starts an attempt, as the scheduler would.
func (f *fixture) run(id string) *jobs.Run {
	f.t.Helper()
	r, err := f.queue.Admit(f.t.Context(), jobs.ID(id), "worker-1")
	require.NoError(f.t, err)
	require.NoError(f.t, r.WaitStarted(f.t.Context()))
	return r
}

// finish runs a job to its end with a result.
func (f *fixture) finish(r *jobs.Run, result string) {
	f.t.Helper()
	_, err := r.Finish(f.t.Context(), jobs.Outcome{Status: jobs.Completed, Result: []byte(result)})
	require.NoError(f.t, err)
}

// validator holds responses against api/openapi.yaml.
type validator struct{ router routers.Router }

var specOnce = sync.OnceValues(func() (routers.Router, error) {
	doc, err := openapi3.NewLoader().LoadFromData(apispec.Spec)
	if err != nil {
		return nil, err
	}
	doc.Servers = nil
	return gorillamux.NewRouter(doc)
})

func newValidator(t testing.TB) *validator {
	t.Helper()
	r, err := specOnce()
	require.NoError(t, err)
	return &validator{r}
}

func (v *validator) response(t testing.TB, req *http.Request, resp *http.Response, body []byte) {
	t.Helper()
	described := req
	if base, name, ok := strings.Cut(req.URL.Path, "/files/"); ok && strings.Contains(name, "/") { // the description has no name with slashes
		described = req.Clone(req.Context())
		described.URL.Path, described.URL.RawPath = base+"/files/name", ""
	}
	route, params, err := v.router.FindRoute(described)
	if err != nil { // an address that is not described: only a problem may come back
		require.Contains(t, resp.Header.Get("Content-Type"), "problem+json", "%s %s", req.Method, req.URL.Path)
		return
	}
	kind := resp.Header.Get("Content-Type")
	in := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: req, PathParams: params, Route: route},
		Status:                 resp.StatusCode, Header: resp.Header,
		Options: &openapi3filter.Options{MultiError: true, IncludeResponseStatus: true, ExcludeResponseBody: !strings.Contains(kind, "json") || strings.Contains(kind, "ndjson")},
	}
	in.SetBodyBytes(body)
	require.NoError(t, openapi3filter.ValidateResponse(context.Background(), in), "%s %s: %s", req.Method, req.URL.Path, body)
}

// fakes

type fakePlugins struct {
	mu        sync.Mutex
	list      []plugins.Plugin
	instances map[string]plugins.Instance
	manifests map[string]plugins.Manifest
}

func newFakePlugins() *fakePlugins {
	p := &fakePlugins{instances: map[string]plugins.Instance{}, manifests: map[string]plugins.Manifest{}}
	p.add("textstats", "text", true)
	p.add("speech", "audio", true)
	p.add("resting", "text", false)
	p.list = append(p.list, plugins.Plugin{Name: "broken", Path: "/p/broken.json", Err: errors.New("cannot use manifest: it has no module")})
	return p
}

func (p *fakePlugins) add(name, category string, enabled bool) {
	m := plugins.Manifest{Format: "v3", Name: name, Version: "1.2.3", Category: category, Path: "/p/" + name + ".json", Raw: json.RawMessage(`{"name":"` + name + `"}`),
		PythonPath: "/bin/sh", Schema: json.RawMessage(`{"type":"object","properties":{"mode":{"enum":["a","b"]}}}`), Timeouts: plugins.Timeouts{Run: time.Hour}}
	p.manifests[name] = m
	p.list = append(p.list, plugins.Plugin{Name: name, Manifest: &m, Path: m.Path, FoundAt: time.Now()})
	p.instances[name] = plugins.Instance{ID: name, Plugin: name, Enabled: enabled, Config: json.RawMessage(`{"mode":"a"}`)}
}

func (p *fakePlugins) Discover(context.Context) ([]plugins.Plugin, error) { return p.Plugins(), nil }
func (p *fakePlugins) Plugins() []plugins.Plugin {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]plugins.Plugin(nil), p.list...)
}

func (p *fakePlugins) Plugin(name string) (plugins.Plugin, error) {
	for _, pl := range p.Plugins() {
		if pl.Name == name {
			return pl, nil
		}
	}
	return plugins.Plugin{}, &plugins.NotFoundError{Kind: "plugin", Name: name}
}

func (p *fakePlugins) Instances() []plugins.Instance {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []plugins.Instance
	for _, name := range sortedKeys(p.instances) {
		out = append(out, p.instances[name])
	}
	return out
}

func (p *fakePlugins) Lookup(id string) (plugins.Instance, plugins.Manifest, error) {
	return p.Instance(id)
}

func (p *fakePlugins) Instance(id string) (plugins.Instance, plugins.Manifest, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	inst, ok := p.instances[id]
	if !ok {
		near := ""
		if strings.HasPrefix(id, "text") {
			near = "textstats"
		}
		return inst, plugins.Manifest{}, &plugins.NotFoundError{Kind: "instance", Name: id, Nearest: near}
	}
	return inst, p.manifests[inst.Plugin], nil
}

func (p *fakePlugins) CreateInstance(_ context.Context, inst plugins.Instance) (plugins.Instance, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.manifests[inst.Plugin]; !ok {
		return inst, &plugins.NotFoundError{Kind: "plugin", Name: inst.Plugin}
	}
	if _, ok := p.instances[inst.ID]; ok {
		return inst, &plugins.ExistsError{ID: inst.ID}
	}
	inst.Revision, inst.UpdatedAt = 1, time.Now()
	p.instances[inst.ID] = inst
	return inst, nil
}

func (p *fakePlugins) Update(_ context.Context, id string, s plugins.Settings) (plugins.Instance, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	inst := p.instances[id]
	if s.Pinned != nil {
		inst.Pinned = *s.Pinned
	}
	if s.Placement != nil {
		inst.Placement = s.Placement
	}
	p.instances[id] = inst
	return inst, nil
}

func (p *fakePlugins) DeleteInstance(_ context.Context, id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.instances, id)
	return nil
}

func (p *fakePlugins) enable(id string, on bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	inst := p.instances[id]
	inst.Enabled = on
	p.instances[id] = inst
	return nil
}

type fakeLifecycle struct {
	f    *fixture
	mu   sync.Mutex
	did  []string
	fail error
	// state and explained may change what State and Explain answer.
	state     func(*sched.SchedulerState)
	explained func(*sched.Explanation)
}

func (l *fakeLifecycle) note(format string, args ...any) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.did = append(l.did, fmt.Sprintf(format, args...))
	return l.fail
}

func (l *fakeLifecycle) Load(_ context.Context, i string) error      { return l.note("load %s", i) }
func (l *fakeLifecycle) Unload(_ context.Context, i, _ string) error { return l.note("unload %s", i) }
func (l *fakeLifecycle) Reload(_ context.Context, i string) error    { return l.note("reload %s", i) }
func (l *fakeLifecycle) LoadAll(context.Context) map[string]error {
	return map[string]error{"textstats": nil, "speech": errors.New("no microphone")}
}

func (l *fakeLifecycle) UnloadAll(context.Context, string) map[string]error {
	return map[string]error{"textstats": nil}
}

func (l *fakeLifecycle) Enable(_ context.Context, i string) error {
	return l.f.plugins.enable(i, true)
}

func (l *fakeLifecycle) Disable(_ context.Context, i string) error {
	return l.f.plugins.enable(i, false)
}

func (l *fakeLifecycle) Configure(_ context.Context, i string, c json.RawMessage) (plugins.Instance, []plugins.Issue, supervisor.Applied, error) {
	if bytes.Contains(c, []byte("wrong")) {
		return plugins.Instance{}, nil, "", &plugins.ConfigError{Instance: i, Issues: []plugins.Issue{{Pointer: "/mode", Message: "mode: not one of a, b"}}}
	}
	return plugins.Instance{ID: i, Plugin: i, Config: c, Revision: 2}, []plugins.Issue{{Pointer: "/mode", Message: "odd", Warning: true}}, supervisor.AppliedReconfigured, nil
}

func (l *fakeLifecycle) Explain(ctx context.Context, id jobs.ID) (sched.Explanation, error) {
	j, err := l.f.queue.Get(ctx, id)
	e := sched.Explanation{Job: j.ID, Status: j.Status, Phase: j.Phase, Summary: "the job waits", Ahead: -1, Policy: "queue"}
	if l.explained != nil {
		l.explained(&e)
	}
	return e, err
}

func (l *fakeLifecycle) Preview(context.Context, string) (sched.Plan, error) {
	return sched.Plan{Start: []sched.Start{{Job: "j1", Instance: "textstats"}}, Block: map[string]*jobs.Block{"speech": {Code: "resource", Sentence: "Too little memory."}},
		Evict: []sched.Eviction{{Instance: "resting", Asker: "speech"}}}, nil
}

func (l *fakeLifecycle) State() sched.SchedulerState {
	st := sched.SchedulerState{Policy: "queue", Policies: []string{"permissive", "queue", "safety"}, Monitor: "cpu", Fresh: true, FreeRAM: 512 * resource.MiB,
		Claims: []sched.Claim{{Owner: "textstats", Kind: sched.KindResident, Device: resource.HostDevice, Bytes: 64 * resource.MiB, Phase: sched.PhaseResident}}}
	if l.state != nil {
		l.state(&st)
	}
	return st
}

func (l *fakeLifecycle) SetPolicy(_ context.Context, name string) error {
	return l.note("policy %s", name)
}

type fakeWorkers struct{ log supervisor.LogSource }

func (w *fakeWorkers) status() supervisor.Status {
	return supervisor.Status{Instance: "textstats", Plugin: "textstats", State: supervisor.ReadyState, Since: time.Now(), PID: 4711, Generation: 1, Concurrency: 1,
		RSS: 10 << 20, Usage: &supervisor.Usage{Devices: map[string]int64{"GPU-1": 5 << 20}}, Tier: "contained",
		Isolation: []supervisor.IsolationFact{{Mechanism: "cgroup", InForce: true}, {Mechanism: "memory", Requested: true, Detail: "no controller"}},
		LastExit:  &supervisor.Exit{Kind: supervisor.ExitError, Code: 3}}
}

func (w *fakeWorkers) Status(i string) (supervisor.Status, bool) {
	return w.status(), i == "textstats"
}
func (w *fakeWorkers) Tiers(context.Context) []supervisor.TierState {
	return []supervisor.TierState{{Name: "none", Auto: true}, {Name: "basic", Why: "not here"}}
}
func (w *fakeWorkers) List() []supervisor.Status { return []supervisor.Status{w.status()} }
func (w *fakeWorkers) Request(_ context.Context, i, method string, _ json.RawMessage) (json.RawMessage, error) {
	switch {
	case i != "textstats":
		return nil, supervisor.ErrNotLoaded
	case method == "stats":
		return json.RawMessage(`{"calls":7}`), nil
	}
	return nil, supervisor.ErrNotSupported
}
func (w *fakeWorkers) Logs(string) (supervisor.LogSource, bool) { return w.log, w.log != nil }

type fakeMachine struct {
	mu   sync.Mutex
	snap resource.Snapshot
	next chan struct{}
}

func newFakeMachine() *fakeMachine {
	return &fakeMachine{next: make(chan struct{}), snap: resource.Snapshot{At: time.Now(), Monitor: "cpu", Host: resource.Host{CPUs: 2, MemTotal: 4096 * resource.MiB},
		Devices: []resource.Device{{ID: "GPU-1", Name: "Card", Total: 1024 * resource.MiB, Free: 1000 * resource.MiB, Used: 24 * resource.MiB}}, Details: map[string]any{"kernel": "6"}}}
}

func (m *fakeMachine) Latest() (resource.Snapshot, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.snap, true
}

func (m *fakeMachine) Watch() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.next
}

func (m *fakeMachine) sample() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.snap.At = m.snap.At.Add(time.Second)
	close(m.next)
	m.next = make(chan struct{})
}

func (m *fakeMachine) Monitors() []MonitorInfo {
	return []MonitorInfo{{Name: "cpu", Registered: true, State: "fresh", At: time.Now()}}
}
func (m *fakeMachine) Registered() string { return "cpu" }
func (m *fakeMachine) Register(_ context.Context, name string) error {
	if name != "cpu" {
		return &UnknownError{What: "monitor", Name: name, Known: []string{"cpu"}}
	}
	return nil
}
