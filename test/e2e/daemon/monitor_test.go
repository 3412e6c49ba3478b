package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
	. "github.com/cjmd/cjmd/test/daemontest"
)

// Plugins that are monitors, in the two patterns of the Python system. Both read
// what they tell from a file of the test.
const typedMonitor = `
import json, os
from dataclasses import dataclass, field
from typing import Any, Dict, List

@dataclass
class SystemStats:
    cpu_percent: float = 0.0
    memory_used_mb: float = 0.0
    memory_total_mb: float = 0.0
    memory_available_mb: float = 0.0
    gpu_type: str = "None"
    gpu_free_memory_mb: float = 0.0
    gpu_total_memory_mb: float = 0.0
    gpu_used_memory_mb: float = 0.0
    gpu_load_percent: float = 0.0
    details: Dict[str, Any] = field(default_factory=dict)

@dataclass
class ProcessStats:
    pid: int
    gpu_index: int
    gpu_memory_mb: float
    command: str = ""

class Monitor:
    name, version = "sys-mon-test", "1.0.0"
    def initialize(self, config=None): pass
    def execute(self, *args, **kwargs): raise AssertionError("asked the old way")
    def get_system_status(self) -> SystemStats:
        return SystemStats(**json.load(open(os.environ["STATS"])))
    def list_processes(self) -> List[ProcessStats]:
        return [ProcessStats(os.getpid(), 1, 512.0, "mon")]
`

const dispatcherMonitor = `
import json, os, time

class Monitor:
    name, version = "sys-mon-test", "0.0.3"
    def initialize(self, config=None): pass
    def execute(self, command="get_system_status", **kwargs):
        if command != "get_system_status":
            raise ValueError("Unknown command: " + command)
        stats = json.load(open(os.environ["STATS"]))
        while stats.get("hang"):
            time.sleep(3600)
        return stats
`

const hostOnly = `{"cpu_percent": 1.0, "memory_used_mb": 1000.0, "memory_total_mb": 8000.0, "memory_available_mb": 7000.0, "gpu_type": "None", "gpu_free_memory_mb": 0.0, "gpu_total_memory_mb": 0.0}`

// cards is a machine with two cards of 12000 MiB, the second with free MiB left.
func cards(free int) string {
	return fmt.Sprintf(`{"cpu_percent": 1.0, "memory_used_mb": 1000.0, "memory_total_mb": 8000.0, "memory_available_mb": 7000.0, "gpu_type": "NVIDIA",
 "gpu_free_memory_mb": %d, "gpu_total_memory_mb": 24000.0, "gpu_used_memory_mb": 8000.0, "details": {"details": {
 "gpu_0": {"name": "A", "memory_total": 12000, "memory_used": 8000, "memory_free": 4000, "utilization": 5},
 "gpu_1": {"name": "B", "memory_total": 12000, "memory_used": %d, "memory_free": %d, "utilization": "N/A"}}}}`, 4000+free, 12000-free, free)
}

// monitorBox is a daemon with plugins of the test's own.
type monitorBox struct {
	t *testing.T
	d *Daemon
	*Session
	stats string
}

func newMonitorBox(t *testing.T) *monitorBox {
	d := own(t, Options{Config: map[string]any{"monitor.max_age": "1s", "monitor.interval_idle": "100ms", "scheduler.policy": "reserve", "scheduler.gpu_margin_mb": 0}})
	return &monitorBox{t: t, d: d, Session: d.Session(t), stats: filepath.Join(d.Dir, "stats.json")}
}

// tell changes what the monitors will say.
func (b *monitorBox) tell(stats string) {
	b.t.Helper()
	part := b.stats + ".part"
	if err := os.WriteFile(part, []byte(stats), 0o644); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Rename(part, b.stats); err != nil {
		b.t.Fatal(err)
	}
}

// plugin writes a plugin; more are lines of its manifest.
func (b *monitorBox) plugin(name, class, code string, more ...string) {
	b.t.Helper()
	dir := filepath.Join(b.d.PluginDir(), name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	manifest := fmt.Sprintf("format_version: '3'\nname: %s\nmodule: code\nclass: %s\npath: .\nenv_vars: {STATS: %q}\n%s\n", name, class, b.stats, strings.Join(more, "\n"))
	for file, text := range map[string]string{"code.py": code, "manifest.yaml": manifest} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *monitorBox) discover() { Must[wire.PluginList](b.t)(b.API.DiscoverPlugins(b.Ctx())) }

func (b *monitorBox) register(name string) wire.MonitorList {
	b.t.Helper()
	return Must[wire.MonitorList](b.t)(b.API.PutMonitor(b.Ctx(), wire.MonitorRequest{Name: name}))
}

// becomes waits until the monitor is said to be in a state, after the number.
func (b *monitorBox) becomes(after uint64, monitor, state string) uint64 {
	b.t.Helper()
	evs := b.Journal(after, func(ev client.Event) bool {
		if ev.Kind != "monitor.changed" {
			return false
		}
		data, _ := Data(b.t, ev)["data"].(map[string]any)
		return data["monitor"] == monitor && data["state"] == state
	})
	var n uint64
	_, _ = fmt.Sscan(evs[len(evs)-1].ID, &n)
	return n
}

// blocked waits until a job waits for this reason.
func (b *monitorBox) blocked(id, code string) wire.Explanation {
	b.t.Helper()
	b.Journal(0, func(ev client.Event) bool {
		d := Data(b.t, ev)
		data, _ := d["data"].(map[string]any)
		block, _ := data["block"].(map[string]any)
		return ev.Kind == "job.blocked" && d["job"] == id && (data["code"] == code || block["code"] == code)
	})
	return Must[wire.Explanation](b.t)(b.API.ExplainJob(b.Ctx(), id))
}

const trivial = "class Words:\n    def execute(self, **kwargs):\n        import os\n        return os.environ.get('CUDA_VISIBLE_DEVICES')\n"

func TestMonitor_TypedPluginInPlaceOfABuiltInOne(t *testing.T) {
	b := newMonitorBox(t)
	b.tell(cards(6000))
	// As the published one declares it: memory that no monitor vouches for yet.
	b.plugin("sys-mon-nvidia", "Monitor", typedMonitor, "category: system_monitor", "resources: {min_system_ram_mb: 128}")
	b.plugin("gpuwords", "Words", trivial, "resources: {requires_gpu: true, min_gpu_vram_mb: 8000}")
	b.plugin("small", "Words", trivial, "resources: {requires_gpu: true, min_gpu_vram_mb: 5000}")
	b.plugin("gigantic", "Words", trivial, "resources: {requires_gpu: true, min_gpu_vram_mb: 16000}")
	b.discover()
	list := b.register("sys-mon-nvidia")
	if list.Registered != "plugin:sys-mon-nvidia" || !slices.ContainsFunc(list.Monitors, func(m wire.Monitor) bool {
		return m.Registered && m.Plugin == "sys-mon-nvidia" && m.Name == list.Registered
	}) {
		t.Fatalf("monitors %+v", list)
	}
	b.becomes(0, "plugin:sys-mon-nvidia", "fresh")
	sys := Must[wire.System](t)(b.API.GetSystem(b.Ctx()))
	if len(sys.Devices) != 2 || sys.Devices[1].Name != "B" || sys.Devices[1].FreeMb != 6000 || sys.GpuType != "NVIDIA" {
		t.Errorf("devices %+v", sys.Devices)
	}
	if len(sys.Processes) != 1 || sys.Processes[0].Pid != b.Worker("sys-mon-nvidia").Pid || sys.Processes[0].GpuMemoryMb != 512 {
		t.Errorf("processes %+v", sys.Processes)
	}
	if len(sys.Ledger) != 3 || sys.Ledger[0].Uuid != "host" || sys.Ledger[2].TotalMb != 12000 {
		t.Errorf("ledger %+v", sys.Ledger)
	}
	if sc := Must[wire.Scheduler](t)(b.API.GetScheduler(b.Ctx())); sc.MonitorPlugin != "sys-mon-nvidia" {
		t.Errorf("the scheduler does not know who serves its monitor: %+v", sc)
	}

	// 4000 and 6000 MiB on two cards are not 8000 on one, and 16000 are never there.
	job := b.Submit(Job("gpuwords", nil))
	e := b.blocked(job.Id, "resource")
	if e.Block == nil || len(e.Block.Needs) == 0 || e.Need == nil || e.Need.ResidentVramMb+e.Need.ExecuteVramMb < 8000 {
		t.Errorf("explained as %+v", e)
	}
	never := b.Failed(Job("gigantic", nil), wire.JobErrorCategoryResource)
	if !contains(never.Error.Message, "12000") && !contains(never.Error.Message, "11.7") {
		t.Errorf("a job that never fits ended with %q", never.Error.Message)
	}
	b.Cancel(job.Id)
	var visible string
	b.Completed(Job("small", nil), &visible)
	if visible != "1" {
		t.Errorf("the worker saw the devices %q, it fits on the second alone", visible)
	}
}

func TestMonitor_DispatcherPluginThatHangsAndRecovers(t *testing.T) {
	b := newMonitorBox(t)
	b.tell(hostOnly)
	b.plugin("old-mon", "Monitor", dispatcherMonitor)
	b.plugin("gpuwords", "Words", trivial, "resources: {requires_gpu: true, min_gpu_vram_mb: 8000}")
	b.plugin("ramwords", "Words", trivial, "resources: {min_system_ram_mb: 64}")
	b.discover()
	b.register("old-mon")
	n := b.becomes(0, "plugin:old-mon", "fresh")

	// No GPU is a fact: GPU jobs are refused in clear words, others run.
	job := b.Failed(Job("gpuwords", nil), wire.JobErrorCategoryResource)
	if !contains(job.Error.Message, "no GPU", "can never fit") {
		t.Errorf("without a GPU the job ended with %q", job.Error.Message)
	}
	b.Completed(Job("ramwords", nil), nil)
	if w := b.Worker("old-mon"); len(w.Jobs) > 0 {
		t.Errorf("questions of the monitor are shown as jobs: %v", w.Jobs)
	}

	b.tell(`{"hang": true}`)
	n = b.becomes(n, "plugin:old-mon", "stale")
	Must[wire.Plugin](t)(b.API.UnloadPlugin(b.Ctx(), "ramwords"))
	held := b.Submit(Job("ramwords", nil))
	if e := b.blocked(held.Id, "stale_monitor"); e.Fresh {
		t.Errorf("explained as %+v", e)
	}
	b.Completed(Job("words", map[string]any{"text": "needs no fact"}), nil)
	b.tell(hostOnly)
	b.becomes(n, "plugin:old-mon", "fresh")
	b.IsCompleted(b.Wait(held.Id))
}

func TestMonitor_RegisteredBeforeThePluginIsThere(t *testing.T) {
	b := newMonitorBox(t)
	b.tell(hostOnly)
	Problem(t, 422, "unknown_name")(b.API.PutMonitor(b.Ctx(), wire.MonitorRequest{Name: "later"}))
	b.register("plugin:later")
	n := b.becomes(0, "plugin:later", "failed")
	list := Must[wire.MonitorList](t)(b.API.ListMonitors(b.Ctx()))
	i := slices.IndexFunc(list.Monitors, func(m wire.Monitor) bool { return m.Registered })
	if i < 0 || !contains(list.Monitors[i].Error, "later") {
		t.Errorf("monitors %+v", list)
	}
	b.plugin("later", "Monitor", typedMonitor)
	b.discover()
	n = b.becomes(n, "plugin:later", "fresh")

	// Its worker may be reloaded under it.
	Must[wire.Plugin](t)(b.API.ReloadPlugin(b.Ctx(), "later"))
	b.Completed(Job("words", map[string]any{"text": "a b"}), nil)
	b.register("cpu")
	b.becomes(n, "cpu", "fresh")
}
