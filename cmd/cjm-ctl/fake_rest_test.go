package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"

	"github.com/cjmd/cjmd/internal/api/wire"
)

// The parts of the fake daemon that are about other things than running jobs.

func (f *fakeDaemon) Readyz(w http.ResponseWriter, _ *http.Request) {
	if f.controls.Mode == wire.QueueModeDraining {
		answer(w, http.StatusServiceUnavailable, wire.Health{Status: wire.HealthStatusFailing, Reasons: []string{"the queue is draining"}})
		return
	}
	answer(w, http.StatusOK, wire.Health{Status: wire.HealthStatusOk})
}

func (f *fakeDaemon) GetVersion(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, wire.Version{Version: "9.8.7", Commit: "abcdef", Go: "go1.26", Os: "linux", Arch: "amd64", Api: "1.0.0"})
}

func (f *fakeDaemon) GetQueue(w http.ResponseWriter, _ *http.Request, _ wire.GetQueueParams) {
	f.mu.Lock()
	defer f.mu.Unlock()
	q := wire.Queue{Running: []wire.Job{}, Pending: []wire.Job{}, History: []wire.Job{}, Controls: f.controls}
	for _, j := range f.jobs {
		if j.Block != nil {
			q.Waiting = []wire.WaitingGroup{{Plugin: j.Plugin, Queued: 1, Block: *j.Block}}
		}
	}
	for _, j := range f.jobs {
		switch j.Status {
		case wire.JobStatusRunning:
			q.Running, q.Totals.Running = append(q.Running, j.Job), q.Totals.Running+1
		case wire.JobStatusPending:
			q.Pending, q.Totals.Pending = append(q.Pending, j.Job), q.Totals.Pending+1
		default:
			q.History, q.Totals.Completed = append(q.History, j.Job), q.Totals.Completed+1
		}
	}
	answer(w, http.StatusOK, q)
}

func (f *fakeDaemon) worker() wire.Worker {
	w := wire.Worker{Id: "textstats", Plugin: "textstats", State: wire.WorkerStateStopped, Since: fakeTime, Concurrency: 1}
	if f.loaded {
		w.State, w.Pid, w.RssMb, w.Generation, w.CallsTotal = wire.WorkerStateReady, 4711, 21.5, 1, 12
		w.Devices, w.DeviceMemoryMb = []string{"GPU-1"}, map[string]float64{"GPU-1": 512}
		w.Isolation = []wire.IsolationFact{{Mechanism: "cgroup", Requested: true, InForce: false, Detail: "no writable hierarchy"}}
	}
	return w
}

func (f *fakeDaemon) ListWorkers(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, wire.WorkerList{Workers: []wire.Worker{f.worker()}})
}

func (f *fakeDaemon) GetWorker(w http.ResponseWriter, _ *http.Request, id string) {
	if id != "textstats" {
		fakeProblem(w, wire.Problem{Status: 404, Code: "worker_not_found", Title: "There is no such worker."})
		return
	}
	answer(w, http.StatusOK, f.worker())
}

func (f *fakeDaemon) GetSystem(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, wire.System{Monitor: "cpu", Fresh: true, At: fakeTime, Cpus: 2, CpuPercent: 12.4, MemoryAvailableMb: 3000, MemoryTotalMb: 8000, GpuType: "None", Ledger: fakeLedger(),
		Devices: []wire.Device{{Uuid: "GPU-1", Index: 0, Name: "Card", TotalMb: 24576, UsedMb: 15360, FreeMb: 9216}}, Processes: []wire.DeviceProcess{}})
}

func (f *fakeDaemon) monitors(registered string) wire.MonitorList {
	return wire.MonitorList{Registered: registered, Monitors: []wire.Monitor{{Name: "cpu", Registered: registered == "cpu", State: "fresh", At: fakeTime}}}
}

func (f *fakeDaemon) ListMonitors(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, f.monitors(""))
}

func (f *fakeDaemon) PutMonitor(w http.ResponseWriter, r *http.Request) {
	var req wire.MonitorRequest
	_ = json.NewDecoder(r.Body).Decode(&req)
	answer(w, http.StatusOK, f.monitors(req.Name))
}

func (f *fakeDaemon) plugin() wire.Plugin {
	w := f.worker()
	return wire.Plugin{Name: "textstats", Plugin: "textstats", Version: "1.2.0", Category: "text", Description: "Counts words", Path: "/plugins/textstats/plugin.json",
		Format: "v3", Enabled: f.enabled, State: w.State, Worker: &w, Runtime: "native", Instances: []string{"textstats"}}
}

func (f *fakeDaemon) ListPlugins(w http.ResponseWriter, _ *http.Request, _ wire.ListPluginsParams) {
	answer(w, http.StatusOK, wire.PluginList{Plugins: []wire.Plugin{f.plugin(), {Name: "bad", Path: "/plugins/bad/plugin.json", Error: "line 3: name is missing", State: wire.WorkerStateStopped},
		{Name: "stale", Plugin: "stale", Path: "/plugins/stale.json", Enabled: true, State: wire.WorkerStateStopped, Findings: []wire.Finding{
			{Code: "packages_changed", Message: "packages changed", Next: "run: cjm-ctl regenerate-manifest stale"},
			{Code: "interpreter_missing", Message: "its Python is gone", Next: "run: cjm-ctl doctor --fix stale", Blocks: true}}}}})
}

func (f *fakeDaemon) DiscoverPlugins(w http.ResponseWriter, r *http.Request) {
	f.ListPlugins(w, r, wire.ListPluginsParams{})
}

// known answers 404 for every plugin but textstats.
func (f *fakeDaemon) known(w http.ResponseWriter, name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if name == "textstats" || slices.ContainsFunc(f.instances, func(x wire.Instance) bool { return x.Id == name }) {
		return true
	}
	fakeProblem(w, wire.Problem{Status: 404, Code: "plugin_not_found", Title: "There is no such plugin.", Detail: "There is no plugin with this name (did you mean \"textstats\"?)."})
	return false
}

func (f *fakeDaemon) set(w http.ResponseWriter, name string, change func()) {
	if !f.known(w, name) {
		return
	}
	f.change(change)
	answer(w, http.StatusOK, f.plugin())
}

func (f *fakeDaemon) GetPlugin(w http.ResponseWriter, _ *http.Request, name wire.PluginName) {
	f.set(w, name, func() {})
}

func (f *fakeDaemon) LoadPlugin(w http.ResponseWriter, _ *http.Request, name wire.PluginName) {
	f.set(w, name, func() { f.loaded = true })
}

func (f *fakeDaemon) UnloadPlugin(w http.ResponseWriter, _ *http.Request, name wire.PluginName) {
	f.set(w, name, func() { f.loaded = false })
}

func (f *fakeDaemon) ReloadPlugin(w http.ResponseWriter, _ *http.Request, name wire.PluginName) {
	f.set(w, name, func() { f.loaded = true })
}

func (f *fakeDaemon) EnablePlugin(w http.ResponseWriter, _ *http.Request, name wire.PluginName) {
	f.set(w, name, func() { f.enabled = true })
}

func (f *fakeDaemon) DisablePlugin(w http.ResponseWriter, _ *http.Request, name wire.PluginName) {
	f.set(w, name, func() { f.enabled = false })
}

func (f *fakeDaemon) LoadAll(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, wire.BulkResult{Results: []wire.BulkItem{{Name: "textstats", Ok: true}, {Name: "bad", Ok: false, Error: "name is missing"}}})
}

func (f *fakeDaemon) GetConfig(w http.ResponseWriter, _ *http.Request, name wire.PluginName) {
	if f.known(w, name) {
		raw, _ := json.Marshal(f.config)
		answer(w, http.StatusOK, wire.PluginConfig{Name: name, Config: raw, Revision: 1})
	}
}

func (f *fakeDaemon) PutConfig(w http.ResponseWriter, r *http.Request, name wire.PluginName) {
	var req wire.ConfigRequest
	_ = json.NewDecoder(r.Body).Decode(&req)
	var config map[string]any
	_ = json.Unmarshal(req.Config, &config)
	if beam, ok := config["beam"].(float64); ok && beam < 1 {
		fakeProblem(w, wire.Problem{Status: 422, Code: "invalid_config", Title: "The configuration is not valid.", Errors: []wire.FieldError{{Pointer: "/config/beam", Message: "beam: 0 is less than minimum 1"}}})
		return
	}
	f.change(func() { f.config = config })
	answer(w, http.StatusOK, wire.PluginConfig{Name: name, Config: req.Config, Revision: 2, Applied: wire.PluginConfigAppliedReconfigured})
}

func (f *fakeDaemon) ListSecrets(w http.ResponseWriter, _ *http.Request, name wire.PluginName) {
	if !f.known(w, name) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	_, set := f.secrets["API_KEY"]
	answer(w, http.StatusOK, wire.SecretList{Plugin: name, Secrets: []wire.SecretState{{Name: "API_KEY", Required: true, Set: set}}})
}

func (f *fakeDaemon) PutSecret(w http.ResponseWriter, r *http.Request, name wire.PluginName, secret string) {
	var req wire.SecretRequest
	_ = json.NewDecoder(r.Body).Decode(&req)
	if f.known(w, name) {
		f.change(func() { f.secrets[secret] = req.Value })
		w.WriteHeader(http.StatusNoContent)
	}
}

func (f *fakeDaemon) DeleteSecret(w http.ResponseWriter, _ *http.Request, _ wire.PluginName, secret string) {
	f.change(func() { delete(f.secrets, secret) })
	w.WriteHeader(http.StatusNoContent)
}

func (f *fakeDaemon) GetConfigSchema(w http.ResponseWriter, _ *http.Request, _ wire.PluginName) {
	answer(w, http.StatusOK, map[string]any{"type": "object"})
}

func (f *fakeDaemon) PatchJob(w http.ResponseWriter, r *http.Request, id wire.JobID, _ wire.PatchJobParams) {
	j := f.find(w, id)
	if j == nil {
		return
	}
	var req wire.JobPatch
	_ = json.NewDecoder(r.Body).Decode(&req)
	if final(j.Status) {
		fakeProblem(w, wire.Problem{Status: 409, Code: "job_state", Title: "The job's state forbids it.", Detail: "cannot change job " + id + ": it is " + string(j.Status)})
		return
	}
	f.change(func() { j.Priority = *req.Priority })
	answer(w, http.StatusOK, j.Job)
}

func (f *fakeDaemon) HoldJob(w http.ResponseWriter, _ *http.Request, id wire.JobID) {
	if j := f.find(w, id); j != nil {
		answer(w, http.StatusOK, j.Job)
	}
}

func (f *fakeDaemon) ReleaseJob(w http.ResponseWriter, r *http.Request, id wire.JobID) {
	f.HoldJob(w, r, id)
}

func (f *fakeDaemon) RetryJob(w http.ResponseWriter, _ *http.Request, id wire.JobID) {
	if j := f.find(w, id); j != nil {
		again := j.Job
		again.Id, again.RetryOf = id+"-again", id
		answer(w, http.StatusAccepted, again)
	}
}

func (f *fakeDaemon) ExplainJob(w http.ResponseWriter, _ *http.Request, id wire.JobID) {
	if j := f.find(w, id); j != nil {
		answer(w, http.StatusOK, wire.Explanation{Job: id, Status: j.Status, Phase: j.Phase, Sentence: "The job waits for memory.", Block: j.Block, Ahead: 2, Policy: "reserve",
			Rank: &wire.Rank{Priority: 5, Age: 1.5, Share: -0.5, Total: 6, Affinity: true}, Worker: "stopped", Slots: 1, SlotsFree: 1,
			Need:    &wire.Need{Gpu: true, Devices: 2, ResidentVramMb: 20480, ExecuteVramMb: 1024, ResidentRamMb: 512, Known: true, Source: "profile"},
			Devices: fakeLedger()[1:],
			Shadow:  &wire.Shadow{Job: id, Plugin: "sleeper", Devices: []string{"GPU-1"}, VramMb: 21504, At: fakeTime, Draining: true}})
	}
}

func (f *fakeDaemon) GetJobLogs(w http.ResponseWriter, r *http.Request, id wire.JobID, _ wire.GetJobLogsParams) {
	j := f.find(w, id)
	if j == nil {
		return
	}
	writeLog(w, r, j.records)
}

func (f *fakeDaemon) GetPluginLogs(w http.ResponseWriter, r *http.Request, name wire.PluginName, _ wire.GetPluginLogsParams) {
	if f.known(w, name) {
		writeLog(w, r, []fakeRecord{{"log", wire.LogRecord{Time: fakeTime, Level: "warning", Stream: "stderr", Message: "careful\x1b[2J"}}})
	}
}

func writeLog(w http.ResponseWriter, r *http.Request, records []fakeRecord) {
	if r.Header.Get("Accept") != "application/x-ndjson" {
		fakeProblem(w, wire.Problem{Status: 406, Code: "not_acceptable", Title: "NDJSON only."})
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	for _, rec := range records {
		if rec.kind == "log" {
			_ = json.NewEncoder(w).Encode(rec.data)
		}
	}
}

func (f *fakeDaemon) control(w http.ResponseWriter, plugin *string, mode wire.QueueMode) {
	f.change(func() {
		if plugin == nil {
			f.controls.Mode = mode
			return
		}
		if f.controls.Plugins == nil {
			f.controls.Plugins = map[string]wire.QueueMode{}
		}
		f.controls.Plugins[*plugin] = mode
	})
	answer(w, http.StatusOK, f.controls)
}

func (f *fakeDaemon) PauseQueue(w http.ResponseWriter, _ *http.Request, p wire.PauseQueueParams) {
	f.control(w, p.Plugin, wire.QueueModePaused)
}

func (f *fakeDaemon) ResumeQueue(w http.ResponseWriter, _ *http.Request, p wire.ResumeQueueParams) {
	f.control(w, p.Plugin, wire.QueueModeRunning)
}

func (f *fakeDaemon) DrainQueue(w http.ResponseWriter, _ *http.Request, p wire.DrainQueueParams) {
	f.control(w, p.Plugin, wire.QueueModeDraining)
}

func (f *fakeDaemon) ListTokens(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, wire.TokenList{Tokens: f.tokens})
}

func (f *fakeDaemon) CreateToken(w http.ResponseWriter, r *http.Request) {
	var req wire.TokenRequest
	_ = json.NewDecoder(r.Body).Decode(&req)
	token := wire.Token{Name: req.Name, Role: req.Role, CreatedAt: fakeTime}
	f.change(func() { f.tokens = append(f.tokens, token) })
	answer(w, http.StatusCreated, wire.TokenCreated{Token: token, Secret: fmt.Sprintf("secret-of-%s-%s", req.Name, req.ExpiresIn)})
}

func (f *fakeDaemon) DeleteToken(w http.ResponseWriter, _ *http.Request, name string) {
	f.change(func() {
		f.tokens = slices.DeleteFunc(f.tokens, func(t wire.Token) bool { return t.Name == name })
	})
	w.WriteHeader(http.StatusNoContent)
}

func (f *fakeDaemon) CreateLoginCode(w http.ResponseWriter, r *http.Request) {
	var req wire.LoginCodeRequest
	_ = json.NewDecoder(r.Body).Decode(&req)
	answer(w, http.StatusCreated, wire.LoginCode{Code: "c0de", Path: "/login?code=c0de", Url: "http://127.0.0.1:8765/login?code=c0de", Role: req.Role, ExpiresAt: fakeTime})
}

func (f *fakeDaemon) scheduler(policy string) wire.Scheduler {
	return wire.Scheduler{Policy: policy, Policies: []string{"permissive", "queue"}, Monitor: "cpu", Fresh: true, FreeRamMb: 2000, MarginMb: 512,
		Shadow: &wire.Shadow{Job: "job-9", Plugin: "large", Devices: []string{"GPU-1"}, VramMb: 20480}, MonitorPlugin: "mon",
		Claims: []wire.Claim{{Owner: "textstats", Kind: "resident", Device: "host", Mb: 64, MeasuredMb: 21.5, Phase: "resident", Since: fakeTime}}}
}

func (f *fakeDaemon) GetScheduler(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, f.scheduler("queue"))
}

func (f *fakeDaemon) PutScheduler(w http.ResponseWriter, r *http.Request) {
	var req wire.SchedulerRequest
	_ = json.NewDecoder(r.Body).Decode(&req)
	if req.Policy != "permissive" {
		fakeProblem(w, wire.Problem{Status: 422, Code: "unknown_name", Title: "The name stands for nothing.", Detail: "There is no policy of this name; known are: permissive, queue."})
		return
	}
	answer(w, http.StatusOK, f.scheduler(req.Policy))
}

func (f *fakeDaemon) ListInstances(w http.ResponseWriter, _ *http.Request, name wire.PluginName) {
	if f.known(w, name) {
		own := wire.Instance{Id: name, Plugin: name, Enabled: true, Config: json.RawMessage(`{}`), State: wire.WorkerStateReady}
		f.mu.Lock()
		defer f.mu.Unlock()
		answer(w, http.StatusOK, wire.InstanceList{Instances: append([]wire.Instance{own}, f.instances...)})
	}
}

func (f *fakeDaemon) CreateInstance(w http.ResponseWriter, r *http.Request, name wire.PluginName) {
	if !f.known(w, name) {
		return
	}
	var req wire.InstanceRequest
	_ = json.NewDecoder(r.Body).Decode(&req)
	made := wire.Instance{Placement: req.Placement, Id: req.Id, Plugin: name, Enabled: req.Enabled == nil, Pinned: req.Pinned, Config: req.Config, State: wire.WorkerStateStopped}
	f.change(func() { f.instances = append(f.instances, made) })
	answer(w, http.StatusCreated, made)
}

func (f *fakeDaemon) PatchInstance(w http.ResponseWriter, r *http.Request, _ wire.PluginName, id string) {
	var req wire.InstancePatch
	_ = json.NewDecoder(r.Body).Decode(&req)
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.instances {
		if x := &f.instances[i]; x.Id == id {
			if req.Placement != nil {
				x.Placement = req.Placement
			}
			if req.Pinned != nil {
				x.Pinned = *req.Pinned
			}
			answer(w, http.StatusOK, *x)
			return
		}
	}
	fakeProblem(w, wire.Problem{Status: 404, Code: "plugin_not_found", Title: "There is no such plugin."})
}

func (f *fakeDaemon) DeleteInstance(w http.ResponseWriter, _ *http.Request, _ wire.PluginName, id string) {
	f.change(func() { f.instances = slices.DeleteFunc(f.instances, func(x wire.Instance) bool { return x.Id == id }) })
	w.WriteHeader(http.StatusNoContent)
}

func fakeLedger() []wire.DeviceLedger {
	index := 0
	return []wire.DeviceLedger{
		{Uuid: "host", Name: "2 CPUs", TotalMb: 8000, MarginMb: 512, ExternalMb: 4000, FreeMb: 3488},
		{Uuid: "GPU-1", Index: &index, Name: "Card", TotalMb: 24576, ExternalMb: 2048, ClaimedMb: 14336, LeasedMb: 1024, FreeMb: 7168, Exclusive: "large",
			Workers: []wire.WorkerAccount{{Plugin: "textstats", ResidentMb: 12288, ExecuteMb: 2048, MeasuredMb: 13312, CountedMb: 14336, Source: "nvml", Phase: "executing"}}},
	}
}

func (f *fakeDaemon) ListLeases(w http.ResponseWriter, _ *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer(w, http.StatusOK, wire.LeaseList{Leases: append([]wire.Lease{}, f.leases...)})
}

func (f *fakeDaemon) CreateLease(w http.ResponseWriter, r *http.Request) {
	var req wire.LeaseRequest
	_ = json.NewDecoder(r.Body).Decode(&req)
	if req.Mb > 24576 {
		fakeProblem(w, wire.Problem{Status: 422, Code: "never_fits", Title: "This machine never has what is asked for.", Detail: "The largest accelerator has 24 GiB."})
		return
	}
	l := wire.Lease{Id: fmt.Sprintf("lease-%d", len(f.leases)+1), Device: "GPU-1", Mb: req.Mb, MissingMb: 512, Holders: []string{"textstats"}, Holder: "uid:0", Note: req.Note, CreatedAt: fakeTime}
	if req.For != "" {
		l.ExpiresAt = fakeTime
	}
	f.change(func() { f.leases = append(f.leases, l) })
	answer(w, http.StatusCreated, l)
}

func (f *fakeDaemon) EndLease(w http.ResponseWriter, _ *http.Request, id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := len(f.leases)
	f.leases = slices.DeleteFunc(f.leases, func(l wire.Lease) bool { return l.Id == id })
	if len(f.leases) == n {
		fakeProblem(w, wire.Problem{Status: 404, Code: "lease_not_found", Title: "There is no such lease."})
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (f *fakeDaemon) GetProfile(w http.ResponseWriter, _ *http.Request, name wire.PluginName) {
	if !f.known(w, name) {
		return
	}
	p := wire.Profile{Name: name, Plugin: name, ConfigHash: "c1", Need: wire.Need{Gpu: true, Devices: 1, Known: f.enabled, ResidentVramMb: 6144, ExecuteVramMb: 1024, Source: "profile"}, Profiles: []wire.LearnedProfile{}}
	if f.enabled {
		p.Profiles = append(p.Profiles, wire.LearnedProfile{ConfigHash: "c1", DeviceModel: "Card", Current: true,
			ResidentVram: wire.LearnedFigure{Mb: 6144, MaxMb: 6400, P95Mb: 6000, Samples: 7, Ooms: 1, Source: "nvml"}, Run: wire.LearnedTimes{Count: 7, P50Ms: 1500, P90Ms: 4200}})
	}
	answer(w, http.StatusOK, p)
}

func (f *fakeDaemon) ResetProfile(w http.ResponseWriter, _ *http.Request, name wire.PluginName) {
	if f.known(w, name) {
		w.WriteHeader(http.StatusNoContent)
	}
}

func (f *fakeDaemon) GetPlan(w http.ResponseWriter, _ *http.Request, _ wire.GetPlanParams) {
	answer(w, http.StatusOK, wire.Plan{Policy: "reserve", Start: []wire.PlanStart{}, Wait: []wire.PlanWait{}, Evict: []wire.PlanEviction{}})
}

func (f *fakeDaemon) PlanJob(w http.ResponseWriter, r *http.Request) {
	var req wire.PlanRequest
	_ = json.NewDecoder(r.Body).Decode(&req)
	if !f.known(w, req.Plugin) {
		return
	}
	p := wire.Plan{Policy: "reserve", Start: []wire.PlanStart{{Plugin: req.Plugin, Devices: []string{"GPU-1"}, Measure: true}}, Wait: []wire.PlanWait{},
		Evict: []wire.PlanEviction{{Plugin: "idle", Asker: req.Plugin}}, Release: []wire.PlanRelease{{Plugin: "lazy", Asker: req.Plugin}}}
	if d := req.Demand; d != nil {
		p = wire.Plan{Policy: "reserve", Start: []wire.PlanStart{}, Evict: []wire.PlanEviction{}, Shadow: &wire.Shadow{Job: "job-9", Plugin: "large", Devices: []string{"GPU-1"}, VramMb: 20480},
			Wait: []wire.PlanWait{{Plugin: req.Plugin, Block: &wire.Block{Code: "resource", Sentence: fmt.Sprintf("needs %.0f MiB on %d", d.MinGpuVramMb, d.Devices)}}}}
	}
	answer(w, http.StatusOK, p)
}
