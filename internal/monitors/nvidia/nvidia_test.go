package nvidia_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"go.uber.org/goleak"

	"github.com/cjmd/cjmd/internal/monitors"
	"github.com/cjmd/cjmd/internal/monitors/monitortest"
	"github.com/cjmd/cjmd/internal/monitors/nvidia"
	"github.com/cjmd/cjmd/internal/resource"
)

func TestMain(m *testing.M) {
	asHelper()
	os.Setenv("GORACE", "atexit_sleep_ms=0") // for helpers: a second each otherwise
	goleak.VerifyTestMain(m)
}

// host stands for the cpu monitor: a machine of 64 GiB, half of it free.
type host struct{ pace *monitors.Pace }

func (host) Name() string { return "cpu" }

func (h host) Run(ctx context.Context, out chan<- resource.Snapshot) error {
	for {
		s := resource.Snapshot{At: time.Now(), Monitor: "cpu", GPUVendor: "None",
			Host:    resource.Host{CPUs: 8, CPUPercent: 12, MemTotal: 64 * 1024 * resource.MiB, MemAvailable: 32 * 1024 * resource.MiB},
			Details: map[string]any{"memory_from": "host"}}
		select {
		case out <- s:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := h.pace.Wait(ctx); err != nil {
			return err
		}
	}
}

func fast() *monitors.Pace { return monitors.NewPace(time.Millisecond, time.Millisecond) }

func monitor(d *driver, change ...func(*nvidia.Options)) *nvidia.Monitor {
	o := nvidia.Options{Pace: fast(), Library: d.library}
	o.Host = host{o.Pace}
	for _, f := range change {
		f(&o)
	}
	return nvidia.New(o)
}

// first is the monitor's first snapshot, or the error that it ends with.
func first(t *testing.T, m *nvidia.Monitor) (resource.Snapshot, error) {
	t.Helper()
	r := run(t, m)
	defer r.stop()
	return r.next()
}

type running struct {
	t     *testing.T
	out   chan resource.Snapshot
	ended chan error
	stop  func()
}

func run(t *testing.T, m monitors.Monitor) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{t: t, out: make(chan resource.Snapshot), ended: make(chan error, 1)}
	done := make(chan struct{})
	go func() { r.ended <- m.Run(ctx, r.out); close(done) }()
	r.stop = func() { cancel(); <-done }
	return r
}

func (r *running) next() (resource.Snapshot, error) {
	r.t.Helper()
	select {
	case s := <-r.out:
		return s, nil
	case err := <-r.ended:
		r.ended <- err
		return resource.Snapshot{}, err
	case <-time.After(20 * time.Second):
		r.t.Fatal("no snapshot came")
		return resource.Snapshot{}, nil
	}
}

func must(t *testing.T, m *nvidia.Monitor) resource.Snapshot {
	t.Helper()
	s, err := first(t, m)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestNVIDIA_Conforms(t *testing.T) {
	migBox := &driver{gpus: []*gpu{{uuid: "GPU-p", name: "A100", total: 40 * gib, migOn: true,
		instances: []*gpu{migInstance("MIG-1", "3g.20gb", 1, 20*gib), migInstance("MIG-2", "3g.20gb", 2, 20*gib)}}}}
	for name, d := range map[string]*driver{
		"one H100":       {gpus: []*gpu{h100("GPU-a")}},
		"two GPUs":       {gpus: []*gpu{h100("GPU-a"), h100("GPU-b")}},
		"MIG":            migBox,
		"without driver": {init: nvml.ERROR_LIBRARY_NOT_FOUND},
	} {
		t.Run(name, func(t *testing.T) {
			monitortest.Run(t, func(*testing.T) monitors.Monitor { return monitor(d) })
		})
	}
	t.Run("DGX A100 of go-nvml", func(t *testing.T) {
		monitortest.Run(t, func(*testing.T) monitors.Monitor {
			return monitor(nil, func(o *nvidia.Options) { o.Library = func() nvml.Interface { return dgx() } })
		})
	})
	t.Run("this machine", func(t *testing.T) {
		monitortest.Run(t, func(*testing.T) monitors.Monitor { return nvidia.New(nvidia.Options{Pace: fast()}) })
	})
}

func TestNVIDIA_DGXA100(t *testing.T) {
	server := dgx()
	s := must(t, monitor(nil, func(o *nvidia.Options) { o.Library = func() nvml.Interface { return server } }))
	if len(s.Devices) != 8 || s.GPUVendor != "NVIDIA" || s.Monitor != "nvidia" {
		t.Fatalf("snapshot %+v", s)
	}
	for i, d := range s.Devices {
		want := resource.Device{ID: resource.DeviceID(server.Devices[i].(*dgxa100.Device).UUID), Index: i,
			Name: "Mock NVIDIA A100-SXM4-40GB", Total: 40 * 1024 * resource.MiB, Used: resource.Bytes(i) * 1024 * resource.MiB,
			Free: resource.Bytes(40-i) * 1024 * resource.MiB, LoadPercent: float64(10 * i), TempCelsius: 30, PowerWatts: 60}
		if d != want {
			t.Errorf("device %d is %+v, want %+v", i, d, want)
		}
	}
}

func TestNVIDIA_ADeviceIsReadWhole(t *testing.T) {
	d := &driver{gpus: []*gpu{h100("GPU-a")}}
	s := must(t, monitor(d))
	want := resource.Device{ID: "GPU-a", Name: "NVIDIA H100 80GB HBM3", Total: 81559 * resource.MiB,
		Used: 555 * resource.MiB, Free: 81004 * resource.MiB, LoadPercent: 37, TempCelsius: 41, PowerWatts: 118.25}
	if s.Devices[0] != want {
		t.Errorf("device %+v, want %+v (what the driver reserves is used)", s.Devices[0], want)
	}
	if s.Host.CPUs != 8 || s.Host.MemAvailable != 32*1024*resource.MiB || s.Details["memory_from"] != "host" {
		t.Errorf("the host is %+v, %v", s.Host, s.Details)
	}
	if s.Details["driver_version"] != "550.54.15" {
		t.Errorf("details %v", s.Details)
	}
}

func TestNVIDIA_AnOldDriverGivesTheSameMemory(t *testing.T) {
	d := &driver{gpus: []*gpu{h100("GPU-a")}, missing: map[string]bool{"nvmlDeviceGetMemoryInfo_v2": true,
		"nvmlDeviceGetMigMode": true, "nvmlDeviceGetMPSComputeRunningProcesses": true,
		"nvmlDeviceGetMPSComputeRunningProcesses_v2": true, "nvmlDeviceGetMPSComputeRunningProcesses_v3": true}}
	s := must(t, monitor(d))
	if g := s.Devices[0]; g.Used != 555*resource.MiB || g.Free != 81004*resource.MiB {
		t.Errorf("device %+v", g)
	}
}

func TestNVIDIA_ADriverWithoutTheBasicsIsUnsupported(t *testing.T) {
	d := &driver{gpus: []*gpu{h100("GPU-a")}, missing: map[string]bool{"nvmlDeviceGetUUID": true}}
	if _, err := first(t, monitor(d)); !errors.Is(err, monitors.ErrUnsupported) || !strings.Contains(err.Error(), "nvmlDeviceGetUUID") {
		t.Errorf("error %v", err)
	}
	if d.open != 0 {
		t.Error("NVML was left initialised")
	}
}

func TestNVIDIA_FiguresThatADeviceLacksAreNoFault(t *testing.T) {
	g := h100("GPU-a")
	g.noLoad, g.noTemp, g.processPermissions = true, true, nvml.ERROR_NO_PERMISSION
	s := must(t, monitor(&driver{gpus: []*gpu{g}}))
	if d := s.Devices[0]; d.LoadPercent != 0 || d.TempCelsius != 0 || d.PowerWatts != 118.25 || d.Total == 0 {
		t.Errorf("device %+v", d)
	}
	if more, _ := s.Details["devices"].(map[string]any)["GPU-a"].(map[string]any); more["load_unknown"] != true {
		t.Errorf("nothing says that the load is unknown: %v", s.Details)
	}
}

func TestNVIDIA_AChipWithoutMemoryOfItsOwnHasTheHosts(t *testing.T) {
	g := &gpu{uuid: "GPU-gb10", name: "NVIDIA GB10", noMemory: true, compute: []nvml.ProcessInfo{{Pid: 7, UsedGpuMemory: gib}}}
	s := must(t, monitor(&driver{gpus: []*gpu{g}}))
	if d := s.Devices[0]; !d.Unified || d.Total != s.Host.MemTotal || d.Free != s.Host.MemAvailable || d.Used != d.Total-d.Free {
		t.Errorf("device %+v", d)
	}
	if p := s.Processes[0]; p.Memory != 1024*resource.MiB {
		t.Errorf("process %+v", p)
	}
}

func TestNVIDIA_MIGInstancesTakeTheirGPUsPlace(t *testing.T) {
	parent := h100("GPU-p")
	parent.migOn = true
	parent.compute = []nvml.ProcessInfo{{Pid: 100, UsedGpuMemory: 5 * gib}}
	one, two := migInstance("MIG-1", "3g.40gb", 1, 40*gib), migInstance("MIG-2", "1g.10gb", 9, 10*gib)
	one.used, one.compute = 5*gib, []nvml.ProcessInfo{{Pid: 100, UsedGpuMemory: 5 * gib}}
	second := migInstance("MIG-1b", "1c.3g.40gb", 1, 40*gib)
	parent.instances = []*gpu{nil, one, second, nil, two}
	s := must(t, monitor(&driver{gpus: []*gpu{h100("GPU-a"), parent, h100("GPU-b")}}))
	var ids []string
	for i, d := range s.Devices {
		ids = append(ids, string(d.ID))
		if d.Index != i {
			t.Errorf("device %s has index %d at place %d", d.ID, d.Index, i)
		}
	}
	if got := strings.Join(ids, " "); got != "GPU-a MIG-1 MIG-2 GPU-b" {
		t.Errorf("devices %s; a GPU in MIG mode and a second compute instance of the same memory must not count", got)
	}
	if d := s.Devices[1]; d.Total != 40*1024*resource.MiB || d.Used != 5*1024*resource.MiB || d.TempCelsius != 41 || d.PowerWatts != 0 {
		t.Errorf("instance %+v", d)
	}
	if len(s.Processes) != 1 || s.Processes[0].Device != "MIG-1" || s.Processes[0].Index != 1 {
		t.Errorf("processes %+v", s.Processes)
	}
	if more := s.Details["devices"].(map[string]any)["MIG-1"].(map[string]any); more["compute_instances_not_listed"] != 1 {
		t.Errorf("details %v", more)
	}
}

func TestNVIDIA_MIGModeWithoutInstancesHasNoDevice(t *testing.T) {
	g := h100("GPU-a")
	g.migOn, g.instances = true, []*gpu{nil, nil}
	if _, err := first(t, monitor(&driver{gpus: []*gpu{g}})); !errors.Is(err, monitors.ErrUnsupported) || !strings.Contains(err.Error(), "MIG") {
		t.Errorf("error %v", err)
	}
}

func TestNVIDIA_ProcessesAreCountedOnce(t *testing.T) {
	root := t.TempDir()
	for pid, cmd := range map[int]string{10: "python3\x00-m\x00cjmworker\x00", 11: strings.Repeat("é", 100)} {
		dir := filepath.Join(root, "proc", strconv.Itoa(pid))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "cmdline"), []byte(cmd), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	g := h100("GPU-a")
	g.compute = []nvml.ProcessInfo{{Pid: 10, UsedGpuMemory: 3 * gib}, {Pid: 11, UsedGpuMemory: notAvailable}, {Pid: 12, UsedGpuMemory: 900 * gib}}
	g.graphics = []nvml.ProcessInfo{{Pid: 10, UsedGpuMemory: 3 * gib}, {Pid: 13, UsedGpuMemory: notAvailable}, {Pid: 0}}
	g.mps = []nvml.ProcessInfo{{Pid: 13, UsedGpuMemory: gib}}
	s := must(t, monitor(&driver{gpus: []*gpu{g}}, func(o *nvidia.Options) { o.Root = root }))
	want := []resource.Process{
		{PID: 10, Device: "GPU-a", Memory: 3 * 1024 * resource.MiB, Command: "python3 -m cjmworker"},
		{PID: 11, Device: "GPU-a", MemoryUnknown: true, Command: strings.Repeat("é", 60)},
		{PID: 12, Device: "GPU-a", MemoryUnknown: true},
		{PID: 13, Device: "GPU-a", Memory: 1024 * resource.MiB},
	}
	if len(s.Processes) != len(want) {
		t.Fatalf("processes %+v", s.Processes)
	}
	for i, p := range s.Processes {
		if p != want[i] {
			t.Errorf("process %+v, want %+v", p, want[i])
		}
	}
}

func TestNVIDIA_WithoutDriverNothingButInitIsCalled(t *testing.T) {
	for _, ret := range []nvml.Return{nvml.ERROR_LIBRARY_NOT_FOUND, nvml.ERROR_DRIVER_NOT_LOADED} {
		d := &driver{init: ret}
		_, err := first(t, monitor(d, func(o *nvidia.Options) {
			o.Library = func() nvml.Interface {
				lib := d.library()
				return &mock.Interface{InitFunc: lib.Init} // any other method panics
			}
		}))
		if !errors.Is(err, monitors.ErrUnsupported) || d.inits != 1 {
			t.Errorf("%d inits, error %v", d.inits, err)
		}
	}
	if _, err := first(t, monitor(&driver{})); !errors.Is(err, monitors.ErrUnsupported) {
		t.Errorf("a driver without a GPU: %v", err)
	}
	if _, err := first(t, monitor(&driver{init: nvml.ERROR_LIB_RM_VERSION_MISMATCH})); err == nil ||
		errors.Is(err, monitors.ErrUnsupported) || !errors.Is(err, nvml.ERROR_LIB_RM_VERSION_MISMATCH) || !strings.Contains(err.Error(), "reboot") {
		t.Errorf("an updated driver under a loaded module: %v", err)
	}
}

func TestNVIDIA_TheLossOfTheDriverIsAFailureUntilItReturns(t *testing.T) {
	for _, code := range []nvml.Return{nvml.ERROR_GPU_IS_LOST, nvml.ERROR_DRIVER_NOT_LOADED, nvml.ERROR_UNKNOWN, nvml.ERROR_UNINITIALIZED} {
		t.Run(code.Error(), func(t *testing.T) {
			d := &driver{gpus: []*gpu{h100("GPU-a")}}
			m := monitor(d)
			r := run(t, m)
			if _, err := r.next(); err != nil {
				t.Fatal(err)
			}
			d.set(func(d *driver) { d.fault = code })
			err := error(nil)
			for err == nil {
				_, err = r.next()
			}
			if !errors.Is(err, code) || errors.Is(err, monitors.ErrUnsupported) || !strings.Contains(err.Error(), "GPU-a") {
				t.Errorf("error %v", err)
			}
			r.stop()
			d.set(func(d *driver) { d.fault, d.init = nvml.SUCCESS, nvml.ERROR_DRIVER_NOT_LOADED })
			if _, err := first(t, m); err == nil || errors.Is(err, monitors.ErrUnsupported) {
				t.Errorf("a driver that was there before and is not: %v; want a failure that is tried again soon", err)
			}
			d.set(func(d *driver) { d.init = nvml.SUCCESS })
			if s := must(t, m); len(s.Devices) != 1 {
				t.Errorf("snapshot %+v", s)
			}
			if d.open != 0 {
				t.Errorf("%d sessions of NVML were left open", d.open)
			}
		})
	}
}

func TestNVIDIA_ALostGPUDoesNotHideTheOthers(t *testing.T) {
	d := &driver{gpus: []*gpu{h100("GPU-a"), h100("GPU-b")}}
	m := monitor(d)
	r := run(t, m)
	if s, err := r.next(); err != nil || len(s.Devices) != 2 {
		t.Fatal(s, err)
	}
	d.set(func(d *driver) { d.lost = map[string]bool{"GPU-a": true} })
	err := error(nil)
	for err == nil {
		_, err = r.next()
	}
	if !errors.Is(err, nvml.ERROR_GPU_IS_LOST) {
		t.Errorf("error %v", err)
	}
	r.stop()
	s := must(t, m)
	if len(s.Devices) != 1 || s.Devices[0].ID != "GPU-b" {
		t.Errorf("devices %+v", s.Devices)
	}
	if lost, _ := s.Details["lost_devices"].([]string); len(lost) != 1 {
		t.Errorf("details %v", s.Details)
	}
	d.set(func(d *driver) { d.lost["GPU-b"] = true })
	if _, err := first(t, m); !errors.Is(err, nvml.ERROR_GPU_IS_LOST) {
		t.Errorf("all GPUs lost: %v", err)
	}
}

func TestNVIDIA_ADeviceThatIsAddedIsFound(t *testing.T) {
	d := &driver{gpus: []*gpu{h100("GPU-a")}}
	var now atomic.Int64
	r := run(t, monitor(d, func(o *nvidia.Options) {
		o.Clock = func() time.Time { return time.Unix(now.Load(), 0) }
	}))
	defer r.stop()
	until := func(want int) {
		t.Helper()
		for range 10 {
			s, err := r.next()
			if err != nil {
				t.Fatal(err)
			}
			if len(s.Devices) == want {
				return
			}
		}
		t.Fatalf("never %d devices", want)
	}
	until(1)
	d.set(func(d *driver) {
		g := h100("GPU-b")
		g.migOn, g.instances = true, []*gpu{migInstance("MIG-1", "1g.10gb", 7, 10*gib), migInstance("MIG-2", "1g.10gb", 8, 10*gib)}
		d.gpus = append(d.gpus, g)
	})
	now.Add(31)
	until(3)
	d.set(func(d *driver) { d.gpus[1].instances[1] = nil })
	now.Add(31)
	until(2)
}

func TestNVIDIA_TheGateTellsALostDriverAndTakesItBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{gpus: []*gpu{h100("GPU-a")}}
		p := monitors.NewPace(0, 0)
		g, err := monitors.New(monitors.Options{Pace: p})
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Register(t.Context(), nvidia.New(nvidia.Options{Host: host{p}, Library: d.library})); err != nil {
			t.Fatal(err)
		}
		stop := runGate(t, g)
		want := func(state, problem string) {
			t.Helper()
			synctest.Wait()
			if st := g.State()[0]; st.State != state || !strings.Contains(st.Error, problem) {
				t.Errorf("state %+v, want %s because of %q", st, state, problem)
			}
		}
		want(monitors.StateFresh, "")
		d.set(func(d *driver) { d.fault = nvml.ERROR_GPU_IS_LOST })
		time.Sleep(monitors.IdleInterval)
		want(monitors.StateFailed, "GPU_IS_LOST")
		if _, fresh := g.Latest(); fresh {
			t.Error("a reading from before the loss is fresh")
		}
		d.set(func(d *driver) { d.fault, d.init = nvml.SUCCESS, nvml.ERROR_DRIVER_NOT_LOADED })
		time.Sleep(time.Second)
		want(monitors.StateFailed, "was there before")
		if wait := time.Until(g.State()[0].RetryAt); wait > 5*time.Second {
			t.Errorf("a driver that went away is looked for again only in %v", wait)
		}
		d.set(func(d *driver) { d.init = nvml.SUCCESS })
		time.Sleep(10 * time.Second)
		want(monitors.StateFresh, "")
		stop()
		if d.open != 0 {
			t.Errorf("%d sessions of NVML were left open", d.open)
		}
	})
}

func TestNVIDIA_IsKnownByBothNames(t *testing.T) {
	c := nvidia.Constructor()
	m, err := c.New(fast())
	if err != nil || m.Name() != "nvidia" || c.Aliases[0] != "sys-mon-nvidia" {
		t.Errorf("constructor %+v makes %v, %v", c, m, err)
	}
}
