package plugin_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/cjmd/cjmd/internal/monitors"
	"github.com/cjmd/cjmd/internal/monitors/monitortest"
	"github.com/cjmd/cjmd/internal/monitors/plugin"
	"github.com/cjmd/cjmd/internal/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// answer is what a fake worker does when it is asked something.
type answer func(ctx context.Context) (string, error)

func says(text string) answer { return func(context.Context) (string, error) { return text, nil } }

func hangs(ctx context.Context) (string, error) { <-ctx.Done(); return "", ctx.Err() }

// fakeWorkers is one instance, loaded or not, with its hooks.
type fakeWorkers struct {
	mu      sync.Mutex
	loaded  bool
	loads   int
	loadErr error
	asked   []string
	hooks   map[string]answer // by method; "execute" is the dispatcher
}

func (w *fakeWorkers) Ensure(context.Context, string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.loadErr != nil {
		return w.loadErr
	}
	if !w.loaded {
		w.loaded = true
		w.loads++
	}
	return nil
}

func (w *fakeWorkers) Request(ctx context.Context, _, method string) (json.RawMessage, error) {
	return w.answer(ctx, method)
}

func (w *fakeWorkers) Execute(ctx context.Context, _ string, args json.RawMessage) (json.RawMessage, error) {
	if string(args) != `["get_system_status"]` {
		return nil, fmt.Errorf("executed with %s", args)
	}
	return w.answer(ctx, "execute")
}

func (w *fakeWorkers) answer(ctx context.Context, method string) (json.RawMessage, error) {
	w.mu.Lock()
	w.asked = append(w.asked, method)
	loaded, hook := w.loaded, w.hooks[method]
	w.mu.Unlock()
	switch {
	case !loaded:
		return nil, fmt.Errorf("gone: %w", plugin.ErrNotLoaded)
	case hook == nil:
		return nil, plugin.ErrNotSupported
	}
	text, err := hook(ctx)
	return json.RawMessage(text), err
}

func (w *fakeWorkers) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

const typedStatus = `{"cpu_percent":12.5,"memory_used_mb":3000.0,"memory_total_mb":8000.0,"memory_available_mb":5000.0,"gpu_type":"NVIDIA",
 "gpu_free_memory_mb":20000.0,"gpu_total_memory_mb":48000.0,"gpu_used_memory_mb":28000.0,"gpu_load_percent":70.0,
 "details":{"available":true,"type":"NVIDIA","details":{
  "gpu_1":{"name":"RTX B","memory_total":24000.0,"memory_used":20000.0,"memory_free":4000.0,"utilization":70},
  "gpu_0":{"name":"RTX A","memory_total":24000.0,"memory_used":8000.0,"memory_free":16000.0,"utilization":"5 %"}},
  "processes":[{"pid":41,"gpu_index":1,"gpu_memory_mb":19000.0,"command":"python"}]}}`

func typed() *fakeWorkers {
	return &fakeWorkers{hooks: map[string]answer{"system_status": says(typedStatus),
		"processes": says(`[{"pid":77,"gpu_index":0,"gpu_memory_mb":7000.0,"command":"whisper"},{"pid":0,"gpu_index":0,"gpu_memory_mb":1}]`)}}
}

func dispatcher() *fakeWorkers {
	return &fakeWorkers{hooks: map[string]answer{"execute": says(`{"cpu_percent":3.0,"memory_used_mb":1000.0,"memory_total_mb":8000.0,"memory_available_mb":7000.0,
 "gpu_type":"NVIDIA","gpu_free_memory_mb":16000.0,"gpu_total_memory_mb":24000.0,"gpu_used_memory_mb":8000.0,"gpu_load_percent":10.0}`)}}
}

func newMonitor(t *testing.T, w *fakeWorkers) *plugin.Monitor {
	t.Helper()
	m, err := plugin.New(plugin.Options{Instance: "mon", Workers: w, CPUs: 4, Pace: monitors.NewPace(time.Millisecond, time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestConformance(t *testing.T) {
	t.Parallel()
	for name, w := range map[string]func() *fakeWorkers{"typed": typed, "dispatcher": dispatcher} {
		t.Run(name, func(t *testing.T) {
			monitortest.Run(t, func(t *testing.T) monitors.Monitor { return newMonitor(t, w()) })
		})
	}
}

// run takes n snapshots, or what Run ended with, in virtual time.
func run(t *testing.T, m *plugin.Monitor, n int, between func(i int)) ([]resource.Snapshot, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out, ended := make(chan resource.Snapshot), make(chan error, 1)
	go func() { ended <- m.Run(ctx, out) }()
	var got []resource.Snapshot
	for len(got) < n {
		select {
		case s := <-out:
			got = append(got, s)
			if between != nil {
				between(len(got))
			}
		case err := <-ended:
			return got, err
		}
	}
	cancel()
	<-ended
	return got, nil
}

func one(t *testing.T, w *fakeWorkers) resource.Snapshot {
	t.Helper()
	got, err := run(t, newMonitor(t, w), 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	return got[0]
}

func TestTyped_DevicesFromTheDetailsProcessesFromTheHook(t *testing.T) {
	t.Parallel()
	s := one(t, typed())
	if s.Monitor != "plugin:mon" || s.Host.CPUs != 4 || s.Host.CPUPercent != 12.5 || s.Host.MemAvailable != 5000*resource.MiB {
		t.Errorf("host %+v of %s", s.Host, s.Monitor)
	}
	if len(s.Devices) != 2 {
		t.Fatalf("devices %+v", s.Devices)
	}
	a, b := s.Devices[0], s.Devices[1]
	if a.ID != "cuda:0" || a.Name != "RTX A" || a.Free != 16000*resource.MiB || a.LoadPercent != 5 {
		t.Errorf("first device %+v", a)
	}
	if b.ID != "cuda:1" || b.Free != 4000*resource.MiB || b.Used != 20000*resource.MiB {
		t.Errorf("two cards are not one: %+v", b)
	}
	if len(s.Processes) != 1 || s.Processes[0].PID != 77 || s.Processes[0].Device != "cuda:0" || s.Processes[0].Memory != 7000*resource.MiB {
		t.Errorf("processes %+v", s.Processes)
	}
}

func TestTyped_WithoutTheListTheDetailsTell(t *testing.T) {
	t.Parallel()
	w := typed()
	delete(w.hooks, "processes")
	if s := one(t, w); len(s.Processes) != 1 || s.Processes[0].PID != 41 || s.Processes[0].Device != "cuda:1" {
		t.Errorf("processes %+v", s.Processes)
	}
	w = typed()
	w.hooks["processes"] = says(`[]`) // the hook's default
	if s := one(t, w); len(s.Processes) != 1 {
		t.Errorf("processes %+v", s.Processes)
	}
}

func TestDispatcher_SumsAreOneDevice(t *testing.T) {
	t.Parallel()
	w := dispatcher()
	got, err := run(t, newMonitor(t, w), 3, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := got[2].Devices
	if len(d) != 1 || d[0].ID != plugin.AllDevices || d[0].Total != 24000*resource.MiB || d[0].Free != 16000*resource.MiB {
		t.Errorf("devices %+v", d)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if want := "system_status execute processes execute execute"; strings.Join(w.asked[:5], " ") != want {
		t.Errorf("asked %v: what a plugin does not offer is asked once", w.asked[:5])
	}
}

func TestMapping_OddAnswers(t *testing.T) {
	t.Parallel()
	const host = `"memory_total_mb":1000,"memory_available_mb":400`
	for name, c := range map[string]struct {
		answer string
		check  func(s resource.Snapshot) bool
	}{
		"no GPU reports zeros": {`{` + host + `,"gpu_type":"None","gpu_free_memory_mb":0.0,"gpu_total_memory_mb":0.0}`,
			func(s resource.Snapshot) bool { return s.GPUVendor == "None" && len(s.Devices) == 0 }},
		"no type at all": {`{` + host + `}`, func(s resource.Snapshot) bool { return s.GPUVendor == "None" }},
		"a type without a driver": {`{` + host + `,"gpu_type":"NVIDIA","gpu_free_memory_mb":0.0}`,
			func(s resource.Snapshot) bool { return s.GPUVendor == "NVIDIA" && len(s.Devices) == 0 }},
		"nulls and words are nothing": {`{` + host + `,"cpu_percent":null,"gpu_type":"AMD","gpu_total_memory_mb":800,"gpu_free_memory_mb":"N/A","gpu_used_memory_mb":null}`,
			func(s resource.Snapshot) bool {
				return s.Devices[0].Free == 0 && s.Devices[0].Used == s.Devices[0].Total
			}},
		"used alone": {`{` + host + `,"gpu_type":"AMD","gpu_total_memory_mb":800,"gpu_used_memory_mb":300}`,
			func(s resource.Snapshot) bool { return s.Devices[0].Free == 500*resource.MiB }},
		"more free than there is": {`{"memory_total_mb":1000,"memory_available_mb":2000,"gpu_type":"AMD","gpu_total_memory_mb":800,"gpu_free_memory_mb":900}`,
			func(s resource.Snapshot) bool {
				return s.Host.MemAvailable == 1000*resource.MiB && s.Devices[0].Free == 800*resource.MiB
			}},
		"memory used alone": {`{"memory_total_mb":1000,"memory_used_mb":300}`, func(s resource.Snapshot) bool { return s.Host.MemAvailable == 700*resource.MiB }},
		"own devices by UUID": {`{` + host + `,"gpu_type":"NVIDIA","devices":[{"uuid":"GPU-1","index":3,"name":"A","total_mb":100,"free_mb":60,"temperature_celsius":50},{"uuid":"GPU-1","total_mb":5},{"uuid":"host","total_mb":5},{"uuid":"x"}]}`,
			func(s resource.Snapshot) bool {
				return len(s.Devices) == 1 && s.Devices[0].ID == "GPU-1" && s.Devices[0].Index == 3 && s.Devices[0].TempCelsius == 50
			}},
		"cards in flat details": {`{` + host + `,"gpu_type":"AMD","details":{"gpu_0":{"name":"A","memory_total":100,"memory_free":60},"gpu_x":{"memory_total":5},"gpu_-1":{"memory_total":5},"note":7}}`,
			func(s resource.Snapshot) bool { return len(s.Devices) == 1 && s.Devices[0].ID == "rocm:0" }},
		"details that are no object": {`{` + host + `,"gpu_type":"Intel","gpu_total_memory_mb":5,"details":[1]}`, func(s resource.Snapshot) bool { return len(s.Devices) == 1 }},
		"one card, index unknown": {`{` + host + `,"gpu_type":"NVIDIA","gpu_total_memory_mb":100,"gpu_free_memory_mb":50,"details":{"processes":[{"pid":9,"gpu_index":-1,"gpu_memory_mb":5}]}}`,
			func(s resource.Snapshot) bool { return s.Processes[0].Device == plugin.AllDevices }},
		"memory not told": {`{` + host + `,"gpu_type":"NVIDIA","gpu_total_memory_mb":100,"details":{"processes":[{"pid":9}]}}`,
			func(s resource.Snapshot) bool { return s.Processes[0].MemoryUnknown }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := &fakeWorkers{hooks: map[string]answer{"system_status": says(c.answer)}}
			if s := one(t, w); !c.check(s) {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestRun_AnUnusableAnswerFailsAfterThree(t *testing.T) {
	for name, c := range map[string]struct{ answer, want string }{
		"no object":         {`[1]`, "no SystemStats object"},
		"null":              {`null`, "no memory_total_mb"},
		"a wrong type":      {`{"memory_total_mb":{}}`, "is no number"},
		"zeros all over":    {`{"memory_total_mb":0.0}`, "no memory_total_mb"},
		"processes no list": {`{"memory_total_mb":9}`, "no list of ProcessStats"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &fakeWorkers{hooks: map[string]answer{"system_status": says(c.answer), "processes": says(`{"pid":1}`)}}
				got, err := run(t, newMonitor(t, w), 1, nil)
				if len(got) > 0 || err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), `"mon"`) {
					t.Errorf("%d snapshots, then %v", len(got), err)
				}
			})
		})
	}
}

func TestRun_AHangingPluginIsSilentThenFails(t *testing.T) {
	for _, w := range []*fakeWorkers{
		{hooks: map[string]answer{"system_status": hangs}},
		{hooks: map[string]answer{"execute": hangs}},
		{hooks: map[string]answer{"system_status": says(typedStatus), "processes": hangs}},
	} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			got, err := run(t, newMonitor(t, w), 1, nil)
			if len(got) != 0 || err == nil || !strings.Contains(err.Error(), "did not answer") {
				t.Errorf("%d snapshots, then %v", len(got), err)
			}
			if took := time.Since(began); took < 3*plugin.DefaultTimeout || took > 6*plugin.DefaultTimeout {
				t.Errorf("it took %v", took)
			}
		})
	}
}

func TestRun_OneLostAnswerIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := typed()
		got, err := run(t, newMonitor(t, w), 4, func(i int) {
			w.set(func() {
				w.hooks["system_status"] = says(typedStatus)
				if i == 2 {
					n := 0
					w.hooks["system_status"] = func(ctx context.Context) (string, error) {
						if n++; n <= 2 {
							return hangs(ctx)
						}
						return typedStatus, nil
					}
				}
			})
		})
		if err != nil || len(got) != 4 {
			t.Errorf("%d snapshots, then %v", len(got), err)
		}
	})
}

func TestRun_AReloadedWorkerIsFoundAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := dispatcher()
		got, err := run(t, newMonitor(t, w), 4, func(i int) {
			if i == 2 { // its worker died, and the plugin learned the typed hook meanwhile
				w.set(func() { w.loaded = false; w.hooks = typed().hooks })
			}
		})
		if err != nil || len(got) != 4 {
			t.Fatalf("%d snapshots, then %v", len(got), err)
		}
		if w.loads != 2 || len(got[3].Devices) != 2 {
			t.Errorf("loaded %d times; %+v", w.loads, got[3].Devices)
		}
	})
}

func TestRun_APluginThatCannotBeLoadedFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("no such plugin")
		w := &fakeWorkers{loadErr: broken}
		if _, err := run(t, newMonitor(t, w), 1, nil); !errors.Is(err, broken) {
			t.Errorf("ended with %v", err)
		}
	})
}

func TestRun_APluginThatIsNoMonitorIsNotAskedAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWorkers{hooks: map[string]answer{}}
		if _, err := run(t, newMonitor(t, w), 1, nil); !errors.Is(err, monitors.ErrUnsupported) {
			t.Errorf("ended with %v", err)
		}
		w = &fakeWorkers{hooks: map[string]answer{"execute": func(context.Context) (string, error) { return "", errors.New("unknown command") }}}
		if _, err := run(t, newMonitor(t, w), 1, nil); err == nil || !strings.Contains(err.Error(), "unknown command") {
			t.Errorf("ended with %v", err)
		}
	})
}

// A monitor that starts programs to answer is not asked five times a second.
func TestRun_ASlowPluginRestsAsLongAsItWorked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWorkers{hooks: map[string]answer{"system_status": func(context.Context) (string, error) {
			time.Sleep(2 * time.Second)
			return typedStatus, nil
		}}}
		began := time.Now()
		if _, err := run(t, newMonitor(t, w), 3, nil); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 10*time.Second || took > 11*time.Second {
			t.Errorf("three samples took %v", took)
		}
	})
}

func TestNew_SaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	for _, o := range []plugin.Options{{}, {Instance: "a", CPUs: 1}, {Workers: typed(), CPUs: 1}, {Instance: "a", Workers: typed()}} {
		if _, err := plugin.New(o); err == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
	m := newMonitor(t, typed())
	if m.Instance() != "mon" || m.Name() != "plugin:mon" {
		t.Errorf("%s of %s", m.Name(), m.Instance())
	}
}

func FuzzReading(f *testing.F) {
	f.Add(typedStatus, `[{"pid":1,"gpu_index":0,"gpu_memory_mb":1}]`)
	f.Add(`{"memory_total_mb":1,"details":{"gpu_0":null}}`, `null`)
	f.Fuzz(func(t *testing.T, status, processes string) {
		w := &fakeWorkers{hooks: map[string]answer{"system_status": says(status), "processes": says(processes)}}
		got, err := run(t, newMonitor(t, w), 1, nil)
		if err != nil {
			return
		}
		seen := map[resource.DeviceID]bool{"": true, resource.HostDevice: true}
		for _, d := range got[0].Devices {
			if seen[d.ID] || d.Total <= 0 || d.Free < 0 || d.Free > d.Total || d.Used+d.Free != d.Total {
				t.Errorf("device %+v", d)
			}
			seen[d.ID] = true
		}
		if h := got[0].Host; h.MemTotal <= 0 || h.MemAvailable < 0 || h.MemAvailable > h.MemTotal || h.CPUPercent < 0 || h.CPUPercent > 100 {
			t.Errorf("host %+v", h)
		}
	})
}
