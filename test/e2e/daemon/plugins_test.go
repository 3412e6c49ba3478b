package daemon

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
	. "github.com/cjmd/cjmd/test/daemontest"
)

func TestPlugins_ListTellsGoodAndBad(t *testing.T) {
	s, lab := setup(t)
	list := Must[wire.PluginList](t)(s.API.ListPlugins(s.Ctx(), nil)).Plugins
	find := func(name string) wire.Plugin {
		i := slices.IndexFunc(list, func(p wire.Plugin) bool { return p.Name == name })
		if i < 0 {
			t.Fatalf("%s is not listed", name)
		}
		return list[i]
	}
	p := find("lab")
	if p.Version != "1.2.3" || p.Category != "testing" || p.Error != "" || !p.Enabled || !slices.Contains(p.Instances, lab) {
		t.Errorf("lab is listed as %+v", p)
	}
	if p := find("unusable"); !strings.Contains(p.Error, `did you mean "description"`) {
		t.Errorf("the bad manifest is listed with the error %q", p.Error)
	}
	text := Must[wire.PluginList](t)(s.API.ListPlugins(s.Ctx(), &wire.ListPluginsParams{Category: ptr("text")})).Plugins
	if len(text) != 1 || text[0].Name != "words" || text[0].Interface != "text.analysis" {
		t.Errorf("plugins of the category text are %+v", text)
	}
	cats := Must[wire.CategoryList](t)(s.API.ListCategories(s.Ctx())).Categories
	if len(cats) != 2 || cats[0].Name != "testing" || cats[1].Plugins[0] != "words" {
		t.Errorf("the categories are %+v", cats)
	}
}

func TestPlugins_LoadUnloadReload(t *testing.T) {
	s, lab := setup(t)
	p := Must[wire.Plugin](t)(s.API.LoadPlugin(s.Ctx(), lab))
	if p.State != wire.WorkerStateReady || p.Worker == nil || !Alive(p.Worker.Pid) {
		t.Fatalf("after load it is %+v", p)
	}
	again := Must[wire.Plugin](t)(s.API.LoadPlugin(s.Ctx(), lab))
	if again.Worker.Pid != p.Worker.Pid {
		t.Error("a second load started another worker")
	}
	var pid int
	if s.Completed(OpOf(lab, "pid"), &pid); pid == 0 || s.Worker(lab).CallsTotal != 1 {
		t.Errorf("the worker has done %d calls", s.Worker(lab).CallsTotal)
	}
	w := Must[wire.Plugin](t)(s.API.ReloadPlugin(s.Ctx(), lab)).Worker
	if w == nil || w.Pid == p.Worker.Pid || w.Generation != 2 || Alive(p.Worker.Pid) {
		t.Errorf("after reload the worker is %+v", w)
	}
	if p := Must[wire.Plugin](t)(s.API.UnloadPlugin(s.Ctx(), lab)); p.State != wire.WorkerStateStopped || Alive(w.Pid) {
		t.Errorf("after unload it is %s", p.State)
	}
	Must[wire.Plugin](t)(s.API.UnloadPlugin(s.Ctx(), lab))
	s.Completed(OpOf(lab, "echo"), nil) // loads by itself

	var states []string
	for _, ev := range s.Journal(0, func(ev client.Event) bool {
		d := Data(t, ev)
		data, _ := d["data"].(map[string]any)
		if ev.Kind == "worker.state" && d["plugin"] == lab {
			states = append(states, data["to"].(string))
		}
		return ev.Kind == "job.completed" && d["plugin"] == lab && len(states) > 6
	}) {
		_ = ev
	}
	if !slices.Contains(states, "starting") || !slices.Contains(states, "stopped") || states[0] != "starting" {
		t.Errorf("the journal tells the states %v", states)
	}
}

func TestPlugins_UnloadWaitsForTheRunningJob(t *testing.T) {
	s, lab := setup(t)
	gate := s.Gate()
	job := s.Submit(OpOf(lab, "hold", "gate", gate.Path))
	s.Begun(job.Id)
	pid := s.Worker(lab).Pid
	done := make(chan error, 1)
	go func() {
		_, err := client.Decode[wire.Plugin](s.API.UnloadPlugin(s.Ctx(), lab))
		done <- err
	}()
	next := s.Submit(OpOf(lab, "echo")) // has to wait for the unload, or comes before it
	gate.Open()
	s.IsCompleted(s.Wait(job.Id))
	if err := <-done; err != nil {
		t.Errorf("unload: %v", err)
	}
	s.IsCompleted(s.Wait(next.Id))
	if Alive(pid) {
		t.Error("the old worker lives")
	}
	if n := s.D.RunsOf(t, job.Id); n != 1 {
		t.Errorf("the running job ran %d times", n)
	}
}

func TestPlugins_DisableLetsRunningJobsFinish(t *testing.T) {
	s, lab := setup(t)
	gate := s.Gate()
	running := s.Submit(OpOf(lab, "hold", "gate", gate.Path))
	s.Begun(running.Id)
	waiting := s.Submit(OpOf(lab, "echo"))
	if p := Must[wire.Plugin](t)(s.API.DisablePlugin(s.Ctx(), lab)); p.Enabled { // does not wait for the job
		t.Error("it is still enabled")
	}
	if j := s.Get(running.Id); Final(j) {
		t.Errorf("disable ended the running job: %s", j.Status)
	}
	pid := s.Worker(lab).Pid
	gate.Open()
	s.IsCompleted(s.Wait(running.Id))
	s.Completed(OpOf("labs", "echo"), nil)
	if j := s.Get(waiting.Id); j.Status != wire.JobStatusPending || j.Block == nil || j.Block.Code != "disabled" {
		t.Errorf("a job of a disabled plugin is %s, %+v", j.Status, j.Block)
	}
	Must[wire.Plugin](t)(s.API.EnablePlugin(s.Ctx(), lab))
	s.IsCompleted(s.Wait(waiting.Id))
	if !slices.ContainsFunc(s.D.Runs(t), func(r Run) bool { return r.What == "disable" && r.PID == pid }) {
		t.Error("the plugin was not told by its hook")
	}
}

func TestPlugins_ConfigHotUpdate(t *testing.T) {
	s, lab := setup(t)
	config := func(text string) wire.ConfigRequest { return wire.ConfigRequest{Config: json.RawMessage(text)} }
	var got struct {
		Colour string
		Level  int
	}
	inForce := func() (string, int) {
		t.Helper()
		s.Completed(OpOf(lab, "config"), &got)
		return got.Colour, got.Level
	}
	if c, l := inForce(); c != "red" || l != 1 {
		t.Errorf("the defaults are %s, %d", c, l)
	}
	pid := s.Worker(lab).Pid
	pc := Must[wire.PluginConfig](t)(s.API.PutConfig(s.Ctx(), lab, config(`{"colour":"green"}`)))
	if pc.Applied != "reconfigured" {
		t.Errorf("it was applied as %q", pc.Applied)
	}
	if c, l := inForce(); c != "green" || l != 1 || s.Worker(lab).Pid != pid {
		t.Errorf("after a hot update it is %s, %d in process %d, was %d", c, l, s.Worker(lab).Pid, pid)
	}
	p := Problem(t, 422, "invalid_config")(s.API.PutConfig(s.Ctx(), lab, config(`{"colour":"pink"}`)))
	pointsAt(t, p, "/config/colour")
	p = Problem(t, 422, "invalid_config")(s.API.PutConfig(s.Ctx(), lab, config(`{"color":"red"}`)))
	pointsAt(t, p, "/config/color")

	// The plugin itself refuses this one: the old one stays in force and stored.
	p = Problem(t, 502, "plugin_error")(s.API.PutConfig(s.Ctx(), lab, config(`{"colour":"broken"}`)))
	if !strings.Contains(p.Detail, "the colour is broken") {
		t.Errorf("the detail is %q", p.Detail)
	}
	if c, _ := inForce(); c != "green" {
		t.Errorf("after a failed update it is %s", c)
	}
	if stored := Must[wire.PluginConfig](t)(s.API.GetConfig(s.Ctx(), lab)); !strings.Contains(string(stored.Config), `"green"`) {
		t.Errorf("after a failed update the stored one is %s", stored.Config)
	}
	Must[wire.Plugin](t)(s.API.UnloadPlugin(s.Ctx(), lab))
	if pc := Must[wire.PluginConfig](t)(s.API.PutConfig(s.Ctx(), lab, config(`{"colour":"blue","level":3}`))); pc.Applied != "at_start" {
		t.Errorf("without a worker it was applied as %q", pc.Applied)
	}
	if c, l := inForce(); c != "blue" || l != 3 {
		t.Errorf("after a start it is %s, %d", c, l)
	}
}

func TestPlugins_SchemaOptionsStats(t *testing.T) {
	s, lab := setup(t)
	schema := Must[map[string]any](t)(s.API.GetConfigSchema(s.Ctx(), lab))
	if schema["type"] != "object" {
		t.Errorf("the schema is %v", schema)
	}
	Problem(t, 409, "not_loaded")(s.API.GetPluginStats(s.Ctx(), lab))
	Must[wire.Plugin](t)(s.API.LoadPlugin(s.Ctx(), lab))
	options := Must[map[string][]string](t)(s.API.GetConfigOptions(s.Ctx(), lab))
	if len(options["colour"]) != 3 {
		t.Errorf("the options are %v", options)
	}
	if stats := Must[map[string]any](t)(s.API.GetPluginStats(s.Ctx(), lab)); len(stats) == 0 {
		t.Error("the stats are empty")
	}
}

func TestPlugins_InstancesAreWorkersOfTheirOwn(t *testing.T) {
	s, lab := setup(t)
	second := s.Instance(lab+"-2", map[string]any{"colour": "blue"})
	var first, other struct{ Colour string }
	var p1, p2 int
	s.Completed(OpOf(lab, "config"), &first)
	s.Completed(OpOf(second, "config"), &other)
	s.Completed(OpOf(lab, "pid"), &p1)
	s.Completed(OpOf(second, "pid"), &p2)
	if first.Colour != "red" || other.Colour != "blue" || p1 == p2 {
		t.Errorf("the instances have %s in process %d and %s in process %d", first.Colour, p1, other.Colour, p2)
	}
	Problem(t, 409, "exists")(s.API.CreateInstance(s.Ctx(), "lab", wire.InstanceRequest{Id: second}))
	Problem(t, 422, "invalid_body")(s.API.CreateInstance(s.Ctx(), "lab", wire.InstanceRequest{Id: "../evil"}))
	Problem(t, 422, "invalid_config")(s.API.CreateInstance(s.Ctx(), "lab", wire.InstanceRequest{Id: second + "x", Config: json.RawMessage(`{"level":99}`)}))
	gate := s.Gate()
	job := s.Submit(OpOf(second, "hold", "gate", gate.Path))
	Problem(t, 409, "in_use")(s.API.DeleteInstance(s.Ctx(), "lab", second))
	gate.Open()
	s.Wait(job.Id)
	resp, err := s.API.DeleteInstance(s.Ctx(), "lab", second)
	if err != nil || resp.StatusCode != 204 {
		t.Fatalf("delete is answered with %v, %v", resp, err)
	}
	_ = resp.Body.Close()
	if Alive(p2) {
		t.Error("the worker of a deleted instance lives")
	}
	Problem(t, 422, "unknown_plugin")(s.API.SubmitJob(s.Ctx(), nil, OpOf(second, "echo")))
	Problem(t, 409, "in_use")(s.API.DeleteInstance(s.Ctx(), "lab", "lab"))
	s.IsCompleted(s.Get(job.Id)) // history outlives the instance
}

func TestPlugins_ConcurrencyOfAPlugin(t *testing.T) {
	s, _ := setup(t)
	gate := s.Gate()
	var jobs []string
	for range 4 {
		jobs = append(jobs, s.Submit(OpOf("labs", "hold", "gate", gate.Path)).Id)
	}
	for _, id := range jobs {
		s.Begun(id) // all at once, or this waits for ever
	}
	gate.Open()
	for _, id := range jobs {
		s.IsCompleted(s.Wait(id))
	}
}

func TestPlugins_WorkerEnvironmentIsItsOwn(t *testing.T) {
	d := own(t, Options{Env: []string{"NOTIFY_SOCKET=/nonexistent", "HF_TOKEN=secret", "MY_SECRET=secret", "HF_HOME=/models/hf"}})
	s := d.Session(t)
	var env map[string]string
	s.Completed(Op("environ"), &env)
	for _, name := range []string{"NOTIFY_SOCKET", "HF_TOKEN", "MY_SECRET", "CJM_WORKER_FD"} {
		if _, ok := env[name]; ok {
			t.Errorf("the worker's environment has %s", name)
		}
	}
	if env["HF_HOME"] != "/models/hf" || !strings.HasPrefix(env["PLUGIN_DATA_DIR"], d.State) {
		t.Errorf("the worker's environment is %v", env)
	}
}

func TestPlugins_ManifestsAreWatched(t *testing.T) {
	d := own(t, Options{})
	s := d.Session(t)
	st := s.Stream("/v1/events?kind=plugin.")
	write := func(name, text string) {
		t.Helper()
		dir := filepath.Join(d.PluginDir(), name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "manifest.json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(filepath.Join(d.PluginDir(), "words", "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	twin := strings.Replace(string(b), `"words"`, `"twin"`, 1)
	twin = strings.Replace(twin, `"path": "."`, `"path": "../words"`, 1)
	write("twin", twin)
	named := func(name string) func(client.Event) bool {
		return func(ev client.Event) bool {
			return Data(t, ev)["plugin"] == name || strings.Contains(string(ev.Data), `"`+name+`"`)
		}
	}
	st.Await(named("twin"))
	s.Completed(Job("twin", map[string]any{"text": "two words"}), nil)

	write("twin", strings.Replace(twin, "0.9.0", "0.9.1", 1))
	st.Await(named("twin"))
	if p := Must[wire.Plugin](t)(s.API.GetPlugin(s.Ctx(), "twin")); !p.Drifted {
		t.Errorf("a changed manifest under a running worker is not told: %+v", p)
	}
	if p := Must[wire.Plugin](t)(s.API.ReloadPlugin(s.Ctx(), "twin")); p.Drifted || p.Version != "0.9.1" {
		t.Errorf("after a reload it is %+v", p)
	}
	write("twin", "{")
	st.Await(named("twin"))
	if p := Must[wire.Plugin](t)(s.API.GetPlugin(s.Ctx(), "twin")); p.Error == "" {
		t.Errorf("a broken manifest is not told: %+v", p)
	}
}

func TestPlugins_InstancesOutliveARestart(t *testing.T) {
	d := own(t, Options{})
	s := d.Session(t)
	s.Instance("kept", map[string]any{"colour": "blue"})
	Must[wire.PluginConfig](t)(s.API.PutConfig(s.Ctx(), "lab", wire.ConfigRequest{Config: json.RawMessage(`{"level":7}`)}))
	Must[wire.Plugin](t)(s.API.DisablePlugin(s.Ctx(), "words"))
	d.Restart(t)
	var got struct {
		Colour string
		Level  int
	}
	if s.Completed(OpOf("kept", "config"), &got); got.Colour != "blue" {
		t.Errorf("the instance's config is %+v", got)
	}
	if s.Completed(Op("config"), &got); got.Level != 7 {
		t.Errorf("the plugin's config is %+v", got)
	}
	Problem(t, 409, "plugin_disabled")(s.API.SubmitJob(s.Ctx(), nil, Job("words", nil)))
}

func TestPlugins_LoadAllTellsEachOutcome(t *testing.T) {
	d := own(t, Options{})
	s := d.Session(t)
	for _, slow := range []string{"slowimport", "slowinit"} {
		Must[wire.Plugin](t)(s.API.DisablePlugin(s.Ctx(), slow))
	}
	got := map[string]wire.BulkItem{}
	for _, r := range Must[wire.BulkResult](t)(s.API.LoadAll(s.Ctx())).Results {
		got[r.Name] = r
	}
	if !got["lab"].Ok || !got["words"].Ok || got["brokenimport"].Ok || !strings.Contains(got["brokenimport"].Error, "a_module_that_nobody_has_installed") {
		t.Errorf("load-all tells %+v", got)
	}
	Must[wire.BulkResult](t)(s.API.UnloadAll(s.Ctx()))
	for _, w := range Must[wire.WorkerList](t)(s.API.ListWorkers(s.Ctx())).Workers {
		if w.Pid != 0 && Alive(w.Pid) {
			t.Errorf("after unload-all %s runs as %d", w.Id, w.Pid)
		}
	}
}
