package api

import (
	"net/http"

	"github.com/cjmd/cjmd/internal/api/wire"
)

// route is one row of what is served. role is the least that may use it; op is
// the operationId in the description, which a test holds equal to this table in
// both directions.
type route struct {
	method  string
	pattern string
	op      string
	role    Role
	handler http.HandlerFunc
}

// routes is everything the API serves.
func routes(g *wire.ServerInterfaceWrapper) []route {
	const get, head, post, put, patch, del = http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete
	return []route{
		{post, "/v1/jobs", "submitJob", RoleSubmit, g.SubmitJob},
		{get, "/v1/jobs", "listJobs", RoleRead, g.ListJobs},
		{post, "/v1/jobs:batch", "submitBatch", RoleSubmit, g.SubmitBatch},
		{put, "/v1/jobs/{id}", "putJob", RoleSubmit, g.PutJob},
		{get, "/v1/jobs/{id}", "getJob", RoleRead, g.GetJob},
		{patch, "/v1/jobs/{id}", "patchJob", RoleSubmit, g.PatchJob},
		{post, "/v1/jobs/{id}/cancel", "cancelJob", RoleSubmit, g.CancelJob},
		{post, "/v1/jobs/{id}/retry", "retryJob", RoleSubmit, g.RetryJob},
		{post, "/v1/jobs/{id}/hold", "holdJob", RoleSubmit, g.HoldJob},
		{post, "/v1/jobs/{id}/release", "releaseJob", RoleSubmit, g.ReleaseJob},
		{get, "/v1/jobs/{id}/events", "jobEvents", RoleRead, g.JobEvents},
		{get, "/v1/jobs/{id}/stream", "jobStream", RoleRead, g.JobStream},
		{get, "/v1/jobs/{id}/result", "getResult", RoleRead, g.GetResult},
		{get, "/v1/jobs/{id}/files", "listJobFiles", RoleRead, g.ListJobFiles},
		{get, "/v1/jobs/{id}/files/{name...}", "getJobFile", RoleRead, g.GetJobFile},
		{head, "/v1/jobs/{id}/files/{name...}", "headJobFile", RoleRead, g.HeadJobFile},
		{put, "/v1/jobs/{id}/files/{name...}", "putJobFile", RoleSubmit, g.PutJobFile},
		{del, "/v1/jobs/{id}/files/{name...}", "deleteJobFile", RoleSubmit, g.DeleteJobFile},
		{get, "/v1/jobs/{id}/logs", "getJobLogs", RoleRead, g.GetJobLogs},
		{get, "/v1/jobs/{id}/explain", "explainJob", RoleRead, g.ExplainJob},

		{get, "/v1/queue", "getQueue", RoleRead, g.GetQueue},
		{post, "/v1/queue/pause", "pauseQueue", RoleAdmin, g.PauseQueue},
		{post, "/v1/queue/resume", "resumeQueue", RoleAdmin, g.ResumeQueue},
		{post, "/v1/queue/drain", "drainQueue", RoleAdmin, g.DrainQueue},
		{get, "/v1/queue/plan", "getPlan", RoleRead, g.GetPlan},
		{post, "/v1/queue/plan", "planJob", RoleRead, g.PlanJob},

		{get, "/v1/plugins", "listPlugins", RoleRead, g.ListPlugins},
		{post, "/v1/plugins/discover", "discoverPlugins", RoleAdmin, g.DiscoverPlugins},
		{post, "/v1/plugins/load-all", "loadAll", RoleAdmin, g.LoadAll},
		{post, "/v1/plugins/unload-all", "unloadAll", RoleAdmin, g.UnloadAll},
		{get, "/v1/plugins/{name}", "getPlugin", RoleRead, g.GetPlugin},
		{post, "/v1/plugins/{name}/load", "loadPlugin", RoleAdmin, g.LoadPlugin},
		{post, "/v1/plugins/{name}/unload", "unloadPlugin", RoleAdmin, g.UnloadPlugin},
		{post, "/v1/plugins/{name}/reload", "reloadPlugin", RoleAdmin, g.ReloadPlugin},
		{post, "/v1/plugins/{name}/enable", "enablePlugin", RoleAdmin, g.EnablePlugin},
		{post, "/v1/plugins/{name}/disable", "disablePlugin", RoleAdmin, g.DisablePlugin},
		{get, "/v1/plugins/{name}/config", "getConfig", RoleRead, g.GetConfig},
		{put, "/v1/plugins/{name}/config", "putConfig", RoleAdmin, g.PutConfig},
		{get, "/v1/plugins/{name}/config/schema", "getConfigSchema", RoleRead, g.GetConfigSchema},
		{get, "/v1/plugins/{name}/config/options", "getConfigOptions", RoleRead, g.GetConfigOptions},
		{get, "/v1/plugins/{name}/secrets", "listSecrets", RoleAdmin, g.ListSecrets},
		{put, "/v1/plugins/{name}/secrets/{secret}", "putSecret", RoleAdmin, g.PutSecret},
		{del, "/v1/plugins/{name}/secrets/{secret}", "deleteSecret", RoleAdmin, g.DeleteSecret},
		{get, "/v1/plugins/{name}/stats", "getPluginStats", RoleRead, g.GetPluginStats},
		{get, "/v1/plugins/{name}/surface", "getSurface", RoleRead, g.GetSurface},
		{post, "/v1/plugins/{name}/prefetch", "prefetchPlugin", RoleAdmin, g.PrefetchPlugin},
		{post, "/v1/plugins/{name}/release", "releasePlugin", RoleAdmin, g.ReleasePlugin},
		{get, "/v1/plugins/{name}/profile", "getProfile", RoleRead, g.GetProfile},
		{del, "/v1/plugins/{name}/profile", "resetProfile", RoleAdmin, g.ResetProfile},
		{get, "/v1/plugins/{name}/logs", "getPluginLogs", RoleRead, g.GetPluginLogs},
		{post, "/v1/plugins/{name}/execute", "execute", RoleSubmit, g.Execute},
		{post, "/v1/plugins/{name}/execute_stream", "executeStream", RoleSubmit, g.ExecuteStream},
		{get, "/v1/plugins/{name}/instances", "listInstances", RoleRead, g.ListInstances},
		{post, "/v1/plugins/{name}/instances", "createInstance", RoleAdmin, g.CreateInstance},
		{patch, "/v1/plugins/{name}/instances/{instance}", "patchInstance", RoleAdmin, g.PatchInstance},
		{del, "/v1/plugins/{name}/instances/{instance}", "deleteInstance", RoleAdmin, g.DeleteInstance},
		{get, "/v1/categories", "listCategories", RoleRead, g.ListCategories},

		{get, "/v1/workers", "listWorkers", RoleRead, g.ListWorkers},
		{get, "/v1/workers/{id}", "getWorker", RoleRead, g.GetWorker},
		{get, "/v1/isolation", "getIsolation", RoleRead, g.GetIsolation},

		{get, "/v1/system", "getSystem", RoleRead, g.GetSystem},
		{get, "/v1/monitors", "listMonitors", RoleRead, g.ListMonitors},
		{put, "/v1/monitor", "putMonitor", RoleAdmin, g.PutMonitor},
		{get, "/v1/scheduler", "getScheduler", RoleRead, g.GetScheduler},
		{put, "/v1/scheduler", "putScheduler", RoleAdmin, g.PutScheduler},
		{get, "/v1/leases", "listLeases", RoleRead, g.ListLeases},
		{post, "/v1/leases", "createLease", RoleAdmin, g.CreateLease},
		{del, "/v1/leases/{id}", "endLease", RoleAdmin, g.EndLease},
		{get, "/v1/events", "streamEvents", RoleRead, g.StreamEvents},
		{get, "/v1/version", "getVersion", RoleRead, g.GetVersion},

		{get, "/v1/tokens", "listTokens", RoleAdmin, g.ListTokens},
		{post, "/v1/tokens", "createToken", RoleAdmin, g.CreateToken},
		{del, "/v1/tokens/{name}", "deleteToken", RoleAdmin, g.DeleteToken},
		{post, "/v1/login-codes", "createLoginCode", RoleAdmin, g.CreateLoginCode},
		{get, "/login", "login", RoleNone, g.Login},

		{get, "/livez", "livez", RoleNone, g.Livez},
		{get, "/readyz", "readyz", RoleNone, g.Readyz},
		{get, "/metrics", "metrics", RoleRead, g.Metrics},
		{get, "/openapi.yaml", "openapi", RoleNone, g.Openapi},
		{get, "/manifest.schema.json", "manifestSchema", RoleNone, g.ManifestSchema},
	}
}
