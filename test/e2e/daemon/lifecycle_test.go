package daemon

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
	. "github.com/cjmd/cjmd/test/daemontest"
)

func TestDaemon_SecondOnOneStateIsRefused(t *testing.T) {
	d := own(t, Options{})
	s := d.Session(t)
	job := s.Submit(Op("hold", "gate", s.Gate().Path))
	s.Begun(job.Id)
	code, out := d.Second(t)
	if code == 0 || !contains(out, d.State, fmt.Sprint(d.PID())) {
		t.Errorf("it ended with %d and names neither directory nor process: %s", code, out)
	}
	code, out = d.Second(t, "--state-dir", filepath.Join(d.Dir, "other"))
	if code == 0 || !contains(out, d.Socket) {
		t.Errorf("on another state but the same socket it ended with %d: %s", code, out)
	}
	if j := s.Get(job.Id); j.Status != wire.JobStatusRunning {
		t.Errorf("the first daemon's job is %s", j.Status)
	}
	s.Cancel(job.Id)
	s.Wait(job.Id)
	d.Kill(t) // its lock goes with it
	d.Launch(t)
	s.Completed(Op("echo"), nil)
}

func TestDaemon_BadConfigurationIsRefused(t *testing.T) {
	t.Parallel()
	d := New(t, Options{Config: map[string]any{"jobs.max_atempts": 3, "log.level": "loud"}})
	code, out := d.Second(t)
	if code == 0 || !contains(out, "jobs.max_atempts", "max_attempts", "loud") {
		t.Errorf("it ended with %d and does not tell both mistakes: %s", code, out)
	}
	if code, out := d.Second(t, "config", "check"); code == 0 {
		t.Errorf("config check finds nothing wrong: %s", out)
	}
}

// The order of an end: not ready and no new jobs, running ones may finish, the
// rest returns to the queue, followers are told, and after a restart all is done.
func TestDaemon_ShutdownReturnsRunningJobsToTheQueue(t *testing.T) {
	d := own(t, Options{Config: map[string]any{"workers.drain_grace": "500ms"}})
	s := d.Session(t)
	gate, quick := s.Gate(), s.Gate()
	long := s.Submit(Op("hold", "gate", gate.Path))
	short := s.Submit(OpOf("labs", "hold", "gate", quick.Path))
	s.Begun(long.Id)
	s.Begun(short.Id)
	waiting := s.Submit(Op("echo"))
	held := Op("echo")
	held.Hold = true
	onHold := s.Submit(held)
	journal := s.Stream("/v1/events")
	follower := s.Stream(JobPath(long.Id, "events"))
	mark := d.Log.Mark()

	d.Signal(t, syscall.SIGTERM)
	journal.AwaitKind("daemon.stopping")
	Problem(t, 503, "")(s.API.SubmitJob(s.Ctx(), nil, Op("echo")))
	if resp, err := s.API.Readyz(s.Ctx()); err != nil || resp.StatusCode != 503 {
		t.Errorf("while stopping /readyz says %v, %v", resp, err)
	} else {
		_ = resp.Body.Close()
	}
	quick.Open() // finishes in the drain time
	end := Data(t, journal.End())
	if end["reason"] != "shutdown" {
		t.Errorf("the journal's stream ended with %v", end)
	}
	if end := Data(t, follower.End()); end["reason"] != "shutdown" {
		t.Errorf("the follower's stream ended with %v", end)
	}
	if code := d.AwaitExit(t); code != 0 {
		t.Errorf("the daemon ended with %d", code)
	}
	d.AssertNothingLeft(t)
	kinds := Kinds(journal.Seen)
	stopping, requeued := slices.Index(kinds, "daemon.stopping"), slices.Index(kinds, "job.requeued")
	completed := slices.Index(kinds, "job.completed")
	if !(stopping < completed && completed < requeued) {
		t.Errorf("the journal tells %v", kinds)
	}
	d.Log.Await(t, mark, "stopping")

	d.Launch(t)
	s.IsCompleted(s.Get(short.Id))
	if j := s.Get(onHold.Id); j.Phase != wire.JobPhaseHeld {
		t.Errorf("the held job is %s", j.Phase)
	}
	gate.Open()
	j := s.Wait(long.Id)
	s.IsCompleted(j)
	s.IsCompleted(s.Wait(waiting.Id))
	if j.Attempt != 2 || s.D.RunsOf(t, long.Id) != 2 {
		t.Errorf("the long job completed in attempt %d after %d runs", j.Attempt, s.D.RunsOf(t, long.Id))
	}
	runs := s.D.Runs(t)
	if i, k := slices.IndexFunc(runs, func(r Run) bool { return r.Job == waiting.Id }), lastRun(runs, long.Id); i < k {
		t.Error("the job that returned to the queue lost its place")
	}
}

func lastRun(runs []Run, id string) int {
	at := -1
	for i, r := range runs {
		if r.Job == id {
			at = i
		}
	}
	return at
}

func TestDaemon_AtMostOnceIsNotTriedAgain(t *testing.T) {
	d := own(t, Options{Config: map[string]any{"workers.drain_grace": "50ms"}})
	s := d.Session(t)
	a := s.Submit(once(Op("hold", "gate", s.Gate().Path)))
	s.Begun(a.Id)
	d.Restart(t)
	s.IsFailed(s.Get(a.Id), wire.JobErrorCategoryInterrupted)
	b := s.Submit(once(Op("hold", "gate", s.Gate().Path)))
	s.Begun(b.Id)
	d.Kill(t)
	d.Launch(t)
	s.IsFailed(s.Get(b.Id), wire.JobErrorCategoryInterrupted)
	s.Completed(Op("echo"), nil)
	if s.D.RunsOf(t, a.Id) != 1 || s.D.RunsOf(t, b.Id) != 1 {
		t.Errorf("at most once ran %d and %d times", s.D.RunsOf(t, a.Id), s.D.RunsOf(t, b.Id))
	}
}

func TestDaemon_CancelOutlivesAKill(t *testing.T) {
	d := own(t, Options{Config: map[string]any{"jobs.cancel_grace": "30s"}})
	s := d.Session(t)
	job := s.Submit(Op("deaf"))
	s.Begun(job.Id)
	s.Cancel(job.Id) // acknowledged, and nobody hears it
	d.Kill(t)
	d.Launch(t)
	if j := s.Wait(job.Id); j.Status != wire.JobStatusCancelled || s.D.RunsOf(t, job.Id) != 1 {
		t.Errorf("after a kill in the middle of a cancel the job is %s, after %d runs", j.Status, s.D.RunsOf(t, job.Id))
	}
}

func TestDaemon_ReloadsItsConfiguration(t *testing.T) {
	d := own(t, Options{})
	s := d.Session(t)
	extra := filepath.Join(d.Dir, "more")
	b, err := os.ReadFile(filepath.Join(d.PluginDir(), "words", "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(extra, 0o755); err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(b), `"words"`, `"later"`, 1)
	text = strings.Replace(text, `"path": "."`, `"path": "../plugins/words"`, 1)
	if err := os.WriteFile(filepath.Join(extra, "later.json"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	d.SetConfig(t, map[string]any{
		"plugins.paths": []string{d.PluginDir(), extra}, "scheduler.policy": "permissive", "log.level": "info", "workers.stop_grace": "2s",
	})
	mark := d.Log.Mark()
	d.Signal(t, syscall.SIGHUP)
	line := d.Log.Await(t, mark, "configuration reloaded")
	if text := fmt.Sprint(line.Fields); !contains(text, "plugins.paths", "scheduler.policy", "log.level") || !contains(fmt.Sprint(line.Fields["need_restart"]), "workers.stop_grace") {
		t.Errorf("the log says %v", line.Fields)
	}
	s.Completed(Job("later", map[string]any{"text": "a b c"}), nil)
	if sched := Must[wire.Scheduler](t)(s.API.GetScheduler(s.Ctx())); sched.Policy != "permissive" {
		t.Errorf("the policy is %s", sched.Policy)
	}
	mark = d.Log.Mark()
	d.SetConfig(t, map[string]any{"scheduler.policy": "nonsense"})
	d.Signal(t, syscall.SIGHUP)
	d.Log.Await(t, mark, "cannot reload: the old configuration stays in force")
	s.Completed(Job("later", map[string]any{"text": "a b c"}), nil)
	d.SetConfig(t, map[string]any{"scheduler.policy": "queue"})
}

func TestDaemon_TellsTheServiceManager(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "cjmd-n-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "n")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	told := func(want string) {
		t.Helper()
		buf := make([]byte, 1024)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				t.Fatalf("waiting for %s: %v", want, err)
			}
			if strings.Contains(string(buf[:n]), want) {
				return
			}
		}
	}
	d := Start(t, Options{Env: []string{"NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=300000", "WATCHDOG_PID=0"}})
	told("READY=1")
	d.Signal(t, syscall.SIGHUP)
	told("RELOADING=1")
	told("READY=1")
	d.Stop(t)
	told("STOPPING=1")
}

func TestRetention_RemovesOldJobsWithEverythingOfTheirs(t *testing.T) {
	d := own(t, Options{})
	s := d.Session(t)
	var ids []string
	for range 8 {
		ids = append(ids, s.Completed(Op("talk", "lines", 2), nil).Id)
	}
	st := s.Stream("/v1/events?kind=job.pruned")
	d.SetConfig(t, map[string]any{"jobs.retention.count": 3, "jobs.retention.age": "1ms"})
	mark := d.Log.Mark()
	d.Signal(t, syscall.SIGHUP)
	d.Log.Await(t, mark, "configuration reloaded")
	for range 5 {
		st.Next()
	}
	for i, id := range ids {
		if i >= 5 {
			s.IsCompleted(s.Get(id))
			continue
		}
		Problem(t, 404, "job_not_found")(s.API.GetJob(s.Ctx(), id, nil))
		Problem(t, 404, "job_not_found")(s.API.GetResult(s.Ctx(), id, nil))
		Problem(t, 404, "job_not_found")(s.Raw("GET", JobPath(id, "events"), ""))
	}
	if page := Must[wire.JobPage](t)(s.API.ListJobs(s.Ctx(), nil)); len(page.Jobs) != 3 {
		t.Errorf("%d jobs are listed", len(page.Jobs))
	}
	d.Restart(t)
	logs, err := os.ReadDir(filepath.Join(d.State, "joblogs"))
	if err != nil || len(logs) != 3 {
		t.Errorf("%d job logs are left, %v", len(logs), err)
	}
	if q := Must[wire.Queue](t)(s.API.GetQueue(s.Ctx(), nil)); q.Totals.Completed != 8 || len(q.History) != 3 {
		t.Errorf("%d jobs are told, the totals are %+v", len(q.History), q.Totals)
	}
}

func TestMonitor_SwitchAndGate(t *testing.T) {
	d := own(t, Options{Config: map[string]any{"monitor.name": "none"}})
	s := d.Session(t)
	list := Must[wire.MonitorList](t)(s.API.ListMonitors(s.Ctx()))
	if list.Registered != "" || len(list.Monitors) == 0 {
		t.Errorf("the monitors are %+v", list)
	}
	s.Completed(Op("echo"), nil) // needs nothing, so nothing has to be known
	Problem(t, 422, "unknown_name")(s.API.PutMonitor(s.Ctx(), wire.MonitorRequest{Name: "oracle"}))
	st := s.Stream("/v1/events?kind=monitor.")
	if list := Must[wire.MonitorList](t)(s.API.PutMonitor(s.Ctx(), wire.MonitorRequest{Name: "cpu"})); list.Registered != "cpu" {
		t.Errorf("the registered monitor is %q", list.Registered)
	}
	st.Await(func(ev client.Event) bool { return contains(string(ev.Data), `"fresh"`) })
	sys := Must[wire.System](t)(s.API.GetSystem(s.Ctx()))
	if sys.Monitor != "cpu" || !sys.Fresh || sys.MemoryTotalMb <= 0 || sys.GpuType != "None" {
		t.Errorf("the system is %+v", sys)
	}
	s.Completed(Op("echo"), nil)
	Problem(t, 422, "unknown_name")(s.API.PutScheduler(s.Ctx(), wire.SchedulerRequest{Policy: "roulette"}))
	for _, name := range []string{"permissive", "safety", "queue"} {
		if sched := Must[wire.Scheduler](t)(s.API.PutScheduler(s.Ctx(), wire.SchedulerRequest{Policy: name})); sched.Policy != name {
			t.Errorf("the policy is %q", sched.Policy)
		}
		s.Completed(Op("echo"), nil)
	}
}

// A job whose plugin asks for more memory than there is says so.
func TestMonitor_WhatCannotFitIsToldWithNumbers(t *testing.T) {
	d := own(t, Options{})
	s := d.Session(t)
	dir := filepath.Join(d.PluginDir(), "huge")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(d.PluginDir(), "words", "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(b), `"words",`, `"huge", "resources": {"min_system_ram_mb": 999999999},`, 1)
	if err := os.WriteFile(filepath.Join(dir, "manifest.json"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	Must[wire.PluginList](t)(s.API.DiscoverPlugins(s.Ctx()))
	job := s.Failed(Job("huge", nil), wire.JobErrorCategoryResource)
	if len(job.Error.Shortfall) == 0 || job.Error.Shortfall[0].NeededMb != 999999999 || job.Attempt != 0 {
		t.Errorf("the error is %+v", job.Error)
	}
	plan := Must[wire.Plan](t)(s.API.GetPlan(s.Ctx(), &wire.GetPlanParams{Plugin: ptr("huge")}))
	if len(plan.Start) != 0 || len(plan.Fail)+len(plan.Wait) == 0 {
		t.Errorf("the plan is %+v", plan)
	}
	plan = Must[wire.Plan](t)(s.API.GetPlan(s.Ctx(), &wire.GetPlanParams{Plugin: ptr("words")}))
	if len(plan.Start) != 1 || plan.Start[0].Plugin != "words" {
		t.Errorf("the plan is %+v", plan)
	}
}

func TestOperations_Endpoints(t *testing.T) {
	s, lab := setup(t)
	s.Completed(OpOf(lab, "echo"), nil)
	if v := Must[wire.Version](t)(s.API.GetVersion(s.Ctx())); v.Version == "" || v.Go == "" || v.Api == "" {
		t.Errorf("the version is %+v", v)
	}
	if text := s.Text("/metrics"); !contains(text, "go_goroutines", "process_resident_memory_bytes", "cjmd_") {
		t.Errorf("the metrics are %.2000s", text)
	}
	if text := s.Text("/openapi.yaml"); !contains(text, "openapi: 3.1", "/v1/jobs:batch") {
		t.Errorf("the description begins with %.200s", text)
	}
	for _, path := range []string{"/livez", "/readyz"} {
		if text := s.Text(path); !contains(text, `"ok"`) {
			t.Errorf("%s says %s", path, text)
		}
	}
	ex := Must[wire.Explanation](t)(s.API.ExplainJob(s.Ctx(), s.Submit(OpOf(lab, "echo")).Id))
	if ex.Sentence == "" || ex.Policy == "" {
		t.Errorf("the explanation is %+v", ex)
	}
	page := Must[wire.JobPage](t)(s.API.ListJobs(s.Ctx(), &wire.ListJobsParams{Plugin: &lab}))
	for _, j := range page.Jobs {
		s.Wait(j.Id)
	}
}

// The defaults of the configuration hold for jobs that say nothing themselves.
func TestConfig_DefaultsOfJobs(t *testing.T) {
	d := own(t, Options{Config: map[string]any{"jobs.max_attempts": 2, "jobs.run_timeout": "150ms", "jobs.queue_timeout": "250ms"}})
	s := d.Session(t)
	job := s.Failed(Op("hold", "gate", s.Gate().Path), wire.JobErrorCategoryTimeout)
	if job.MaxAttempts != 2 {
		t.Errorf("the job may be tried %d times", job.MaxAttempts)
	}
	held := Op("echo")
	held.Hold = true
	s.Failed(held, wire.JobErrorCategoryTimeout)
}
