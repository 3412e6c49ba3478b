package api

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	apispec "github.com/cjmd/cjmd/api"
	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/supervisor"
)

func TestPlugins_GoodAndBadAreListed(t *testing.T) {
	t.Parallel()
	f := setup(t)
	var l wire.PluginList
	f.do("GET", "/v1/plugins", nil).into(t, &l)
	require.Len(t, l.Plugins, 4)
	by := map[string]wire.Plugin{}
	for _, p := range l.Plugins {
		by[p.Name] = p
	}
	require.Equal(t, wire.WorkerStateReady, by["textstats"].State)
	require.True(t, by["textstats"].Enabled)
	require.False(t, by["resting"].Enabled)
	require.Contains(t, by["broken"].Error, "no module")
	f.do("GET", "/v1/plugins?category=audio", nil).into(t, &l)
	require.Len(t, l.Plugins, 1)
	f.do("GET", "/v1/plugins?state=ready", nil).into(t, &l)
	require.Len(t, l.Plugins, 1)
	require.Equal(t, 400, f.do("GET", "/v1/plugins?state=asleep", nil).StatusCode)
	require.Equal(t, 200, f.do("POST", "/v1/plugins/discover", nil).StatusCode)
	var c wire.CategoryList
	f.do("GET", "/v1/categories", nil).into(t, &c)
	require.Equal(t, []wire.Category{{Name: "audio", Plugins: []string{"speech"}}, {Name: "text", Plugins: []string{"resting", "textstats"}}}, c.Categories)

	var p wire.Plugin
	f.do("GET", "/v1/plugins/textstats", nil).into(t, &p)
	require.JSONEq(t, `{"name":"textstats"}`, string(p.Manifest))
	require.Equal(t, 4711, p.Worker.Pid)
	require.InDelta(t, 5, p.Worker.DeviceMemoryMb["GPU-1"], 0)
	f.do("GET", "/v1/plugins/broken", nil).into(t, &p)
	require.NotEmpty(t, p.Error)
}

func TestPlugins_Lifecycle(t *testing.T) {
	t.Parallel()
	f := setup(t)
	for _, verb := range []string{"load", "unload", "reload", "disable", "enable"} {
		require.Equal(t, 200, f.do("POST", "/v1/plugins/textstats/"+verb, nil).StatusCode, verb)
		require.Equal(t, 404, f.do("POST", "/v1/plugins/nobody/"+verb, nil).StatusCode, verb)
	}
	require.Equal(t, []string{"load textstats", "unload textstats", "reload textstats"}, f.life.did)
	var b wire.BulkResult
	f.do("POST", "/v1/plugins/load-all", nil).into(t, &b)
	require.Equal(t, []wire.BulkItem{{Name: "speech", Error: "no microphone"}, {Name: "textstats", Ok: true}}, b.Results)
	require.Equal(t, 200, f.do("POST", "/v1/plugins/unload-all", nil).StatusCode)

	for want, err := range map[string]error{
		"start_failed": &supervisor.StartError{Instance: "textstats", Step: "load", Call: &supervisor.CallError{Message: "No module named 'torch'"}},
		"cooling_down": &supervisor.StartError{Instance: "textstats", Step: "backoff", RetryAt: time.Now().Add(3 * time.Second)},
		"worker_lost":  &supervisor.WorkerLostError{Instance: "textstats", Exit: supervisor.Exit{Kind: supervisor.ExitSignal, Signal: "SIGKILL"}},
	} {
		f.life.fail = err
		r := f.do("POST", "/v1/plugins/textstats/load", nil)
		require.Equal(t, want, r.code())
		if want == "start_failed" {
			require.Contains(t, string(r.body), "torch", "the plugin's own words reach the caller")
		}
		if want == "cooling_down" {
			require.NotEmpty(t, r.Header.Get("Retry-After"))
		}
	}
}

func TestPlugins_ConfigSchemaOptionsStats(t *testing.T) {
	t.Parallel()
	f := setup(t)
	var c wire.PluginConfig
	f.do("GET", "/v1/plugins/textstats/config", nil).into(t, &c)
	require.JSONEq(t, `{"mode":"a"}`, string(c.Config))
	f.do("PUT", "/v1/plugins/textstats/config", `{"config":{"mode":"b"}}`).into(t, &c)
	require.Equal(t, wire.PluginConfigAppliedReconfigured, c.Applied)
	require.Equal(t, "/config/mode", c.Warnings[0].Pointer)
	r := f.do("GET", "/v1/plugins/textstats/config/schema", nil)
	require.Contains(t, string(r.body), `"enum"`)
	r = f.do("GET", "/v1/plugins/textstats/config/options", nil)
	require.JSONEq(t, `{"mode":["a","b"]}`, string(r.body), "from the schema, as the plugin cannot tell")
	r = f.do("GET", "/v1/plugins/textstats/stats", nil)
	require.JSONEq(t, `{"calls":7}`, string(r.body))
}

func TestInstances_CreateListDelete(t *testing.T) {
	t.Parallel()
	f := setup(t)
	r := f.do("POST", "/v1/plugins/textstats/instances", `{"id":"second","config":{"mode":"b"},"pinned":true}`)
	require.Equal(t, 201, r.StatusCode, "%s", r.body)
	require.Equal(t, "/v1/plugins/second", r.Header.Get("Location"))
	var l wire.InstanceList
	f.do("GET", "/v1/plugins/textstats/instances", nil).into(t, &l)
	require.Len(t, l.Instances, 2)
	id := f.submit(`{"plugin":"second"}`)
	require.Equal(t, "in_use", f.do("DELETE", "/v1/plugins/textstats/instances/second", nil).code())
	f.do("POST", "/v1/jobs/"+id+"/cancel", nil)
	require.Equal(t, 404, f.do("DELETE", "/v1/plugins/speech/instances/second", nil).StatusCode)
	require.Equal(t, 204, f.do("DELETE", "/v1/plugins/textstats/instances/second", nil).StatusCode)
	require.Equal(t, []string{"unload second"}, f.life.did)
	own := f.do("DELETE", "/v1/plugins/textstats/instances/textstats", nil)
	require.Equal(t, "in_use", own.code())
	require.Contains(t, string(own.body), "Disable it")
}

func TestSystem_MonitorSchedulerWorkersVersion(t *testing.T) {
	t.Parallel()
	f := setup(t)
	var sys wire.System
	f.do("GET", "/v1/system", nil).into(t, &sys)
	require.InDelta(t, 24, sys.GpuUsedMemoryMb, 0)
	require.InDelta(t, 4096, sys.MemoryTotalMb, 0)
	require.Equal(t, "None", sys.GpuType)
	for _, path := range []string{"/v1/monitors", "/v1/scheduler", "/v1/version", "/v1/workers", "/v1/workers/textstats", "/v1/tokens", "/openapi.yaml"} {
		require.Equal(t, 200, f.do("GET", path, nil).StatusCode, path)
	}
	require.Equal(t, 200, f.do("PUT", "/v1/monitor", `{"name":"cpu"}`).StatusCode)
	require.Equal(t, 200, f.do("PUT", "/v1/scheduler", `{"policy":"safety"}`).StatusCode)
	require.Equal(t, []string{"policy safety"}, f.life.did)
	require.Equal(t, string(apispec.Spec), string(f.do("GET", "/openapi.yaml", nil).body))
}

func TestOperations_HealthSaysWhyAndMetricsAreServed(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "demo_total", Help: "demo"})
	reg.MustRegister(c)
	f := setup(t, func(o *Options) {
		o.Gatherer = reg
		o.Ready = func(context.Context) []string { return []string{"the queue is draining"} }
		o.Live = func(context.Context) []string { return []string{"the scheduler has not passed for 60 s"} }
	})
	r := f.do("GET", "/readyz", nil)
	require.Equal(t, 503, r.StatusCode)
	require.Contains(t, string(r.body), "draining")
	require.Equal(t, 503, f.do("GET", "/livez", nil).StatusCode)
	r = f.do("GET", "/metrics", nil)
	require.Contains(t, string(r.body), "demo_total 0")
}

func TestOperations_AShutPluginDegradesReadiness(t *testing.T) {
	t.Parallel()
	f := setup(t, func(o *Options) { o.Degraded = func() []string { return []string{"plugin x is shut: it crashed"} } })
	r := f.do("GET", "/readyz", nil)
	require.Equal(t, 200, r.StatusCode)
	require.JSONEq(t, `{"status":"degraded","reasons":["plugin x is shut: it crashed"]}`, string(r.body))
}

// brokenJobs panics and fails.
type brokenJobs struct{ Jobs }

func (brokenJobs) Get(context.Context, jobs.ID) (jobs.Job, error) { panic("out of cheese " + secret) }
func (brokenJobs) List(context.Context, jobs.ListQuery) (jobs.Page, error) {
	return jobs.Page{}, io.ErrUnexpectedEOF
}

func TestServer_APanicEndsItsRequestAlone(t *testing.T) {
	t.Parallel()
	core, logged := observer.New(zap.DebugLevel)
	f := setup(t, func(o *Options) { o.Jobs = brokenJobs{o.Jobs}; o.Log = zap.New(core) })
	r := f.do("GET", "/v1/jobs/x", nil)
	require.Equal(t, 500, r.StatusCode)
	require.NotContains(t, string(r.body), "cheese", "the caller is told where to look, no more")
	require.Equal(t, 1, logged.FilterMessage("a handler panicked").Len())
	r = f.do("GET", "/v1/jobs", nil)
	require.Equal(t, 500, r.StatusCode)
	require.NotContains(t, string(r.body), "EOF")
	require.Equal(t, 1, logged.FilterMessage("request failed").Len())
	r = f.doTCP(f.admin, "GET", "/v1/version?x="+secret, nil)
	require.Equal(t, 400, r.StatusCode)
	require.NotContains(t, string(r.body), secret)
	require.Equal(t, "no-store", r.Header.Get("Cache-Control"))
	require.Equal(t, "nosniff", r.Header.Get("X-Content-Type-Options"))
	for _, e := range logged.FilterMessage("request").All() {
		m := e.ContextMap()
		for _, v := range m {
			s, _ := v.(string)
			require.NotContains(t, s, secret)
			require.NotContains(t, s, f.admin)
		}
	}
}

// fakeLog is a worker's log in memory.
type fakeLog struct {
	mu    sync.Mutex
	lines []supervisor.LogLine
	wake  chan struct{}
}

func (l *fakeLog) add(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, supervisor.LogLine{Seq: uint64(len(l.lines) + 1), At: time.Unix(0, 0), Stream: "stdout", Text: text})
	close(l.wake)
	l.wake = make(chan struct{})
}

func (l *fakeLog) Tail(n int) []supervisor.LogLine {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]supervisor.LogLine(nil), l.lines[max(len(l.lines)-n, 0):]...)
}

func (l *fakeLog) Next(ctx context.Context, after uint64) ([]supervisor.LogLine, uint64, error) {
	for {
		l.mu.Lock()
		lines, wake := l.lines[after:], l.wake
		l.mu.Unlock()
		if len(lines) > 0 {
			return lines, 0, nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
}

func TestPluginLogs_TailThenFollowUntilTheDaemonGoes(t *testing.T) {
	t.Parallel()
	f := setup(t)
	require.Equal(t, "shutting_down", f.do("GET", "/v1/plugins/textstats/logs", nil).code(), "the supervisor has no logs any more")
	log := &fakeLog{wake: make(chan struct{})}
	f.workers.log = log
	log.add("one")
	log.add("two")
	r := f.do("GET", "/v1/plugins/textstats/logs?tail=1", nil)
	require.Equal(t, "1970-01-01T00:00:00.000Z info two\n", string(r.body))
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://localhost/v1/plugins/textstats/logs?tail=0&follow=true", nil)
	require.NoError(t, err)
	resp, err := f.socket.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	log.add("three")
	line := make([]byte, len("1970-01-01T00:00:00.000Z info three\n"))
	_, err = io.ReadFull(resp.Body, line)
	require.NoError(t, err)
	require.True(t, strings.HasSuffix(string(line), " three\n"))
	f.done()
	rest, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Empty(t, rest)
}
