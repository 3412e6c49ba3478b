package nvidia_test

import (
	"errors"
	"sync"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
)

const (
	gib          = uint64(1) << 30
	notAvailable = ^uint64(0)
)

// driver is a made-up NVIDIA driver. What it shows may be changed at any time
// under mu, as a real one's state changes.
type driver struct {
	mu      sync.Mutex
	init    nvml.Return
	fault   nvml.Return     // SUCCESS, or what every call about a device says
	lost    map[string]bool // GPUs that fell off the bus
	missing map[string]bool // symbols that its library lacks
	gpus    []*gpu
	inits   int
	open    int // Inits without their Shutdown
	hang    chan struct{}
}

// gpu is one GPU, or MIG instance of one.
type gpu struct {
	uuid, name         string
	total, used        uint64
	reserved           uint64
	noMemory           bool // uses the host's
	load               uint32
	temp, milliwatts   uint32
	compute, graphics  []nvml.ProcessInfo
	mps                []nvml.ProcessInfo
	migOn              bool
	instances          []*gpu // nil: an empty slot
	isInstance         bool
	gpuInstance        int
	noLoad, noTemp     bool
	processPermissions nvml.Return
}

func h100(uuid string) *gpu {
	return &gpu{uuid: uuid, name: "NVIDIA H100 80GB HBM3", total: 81559 << 20, reserved: 551 << 20, used: 4 << 20,
		load: 37, temp: 41, milliwatts: 118_250}
}

func migInstance(uuid, profile string, gi int, total uint64) *gpu {
	return &gpu{uuid: uuid, name: "NVIDIA H100 80GB HBM3 MIG " + profile, total: total, isInstance: true, gpuInstance: gi}
}

func (d *driver) set(f func(d *driver)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(d)
}

// say is what a call about g answers, apart from its figures.
func (d *driver) say(g *gpu) nvml.Return {
	switch {
	case d.open == 0:
		return nvml.ERROR_UNINITIALIZED
	case d.fault != nvml.SUCCESS:
		return d.fault
	case d.lost[g.uuid]:
		return nvml.ERROR_GPU_IS_LOST
	default:
		return nvml.SUCCESS
	}
}

// library is the driver's library as go-nvml shows it. Methods that are not set
// panic, so a call that the monitor must not make fails the test.
func (d *driver) library() nvml.Interface {
	lib := &mock.Interface{
		InitFunc: func() nvml.Return {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.inits++
			if d.init == nvml.SUCCESS {
				d.open++
			}
			return d.init
		},
		ShutdownFunc: func() nvml.Return {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.open--
			return nvml.SUCCESS
		},
		SystemGetDriverVersionFunc: func() (string, nvml.Return) { return "550.54.15", nvml.SUCCESS },
		DeviceGetCountFunc: func() (int, nvml.Return) {
			d.mu.Lock()
			defer d.mu.Unlock()
			return len(d.gpus), nvml.SUCCESS
		},
		DeviceGetHandleByIndexFunc: func(i int) (nvml.Device, nvml.Return) {
			d.mu.Lock()
			defer d.mu.Unlock()
			if ret := d.say(d.gpus[i]); ret != nvml.SUCCESS {
				return nil, ret
			}
			return d.device(d.gpus[i]), nvml.SUCCESS
		},
	}
	ext := &mock.ExtendedInterface{LookupSymbolFunc: func(name string) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.missing[name] {
			return errors.New("undefined symbol")
		}
		return nil
	}}
	lib.ExtensionsFunc = func() nvml.ExtendedInterface { return ext }
	return lib
}

func figure[T any](d *driver, g *gpu, f func() (T, nvml.Return)) func() (T, nvml.Return) {
	return func() (T, nvml.Return) {
		d.mu.Lock()
		hang := d.hang
		d.mu.Unlock()
		if hang != nil {
			<-hang
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if ret := d.say(g); ret != nvml.SUCCESS {
			var none T
			return none, ret
		}
		return f()
	}
}

func known[T any](v T) func() (T, nvml.Return) {
	return func() (T, nvml.Return) { return v, nvml.SUCCESS }
}

func unless(no bool, ret nvml.Return) nvml.Return {
	if no {
		return ret
	}
	return nvml.SUCCESS
}

func (d *driver) device(g *gpu) nvml.Device {
	dev := &mock.Device{
		GetUUIDFunc: figure(d, g, known(g.uuid)),
		GetNameFunc: figure(d, g, known(g.name)),
		GetMemoryInfoFunc: figure(d, g, func() (nvml.Memory, nvml.Return) {
			used := g.used + g.reserved
			return nvml.Memory{Total: g.total, Used: used, Free: g.total - used}, unless(g.noMemory, nvml.ERROR_NOT_SUPPORTED)
		}),
		GetUtilizationRatesFunc: figure(d, g, func() (nvml.Utilization, nvml.Return) {
			return nvml.Utilization{Gpu: g.load}, unless(g.noLoad || g.isInstance, nvml.ERROR_NOT_SUPPORTED)
		}),
		GetComputeRunningProcessesFunc: figure(d, g, func() ([]nvml.ProcessInfo, nvml.Return) {
			return g.compute, g.processPermissions
		}),
		GetGraphicsRunningProcessesFunc:   figure(d, g, func() ([]nvml.ProcessInfo, nvml.Return) { return g.graphics, nvml.SUCCESS }),
		GetMPSComputeRunningProcessesFunc: figure(d, g, func() ([]nvml.ProcessInfo, nvml.Return) { return g.mps, nvml.SUCCESS }),
	}
	if !d.missing["nvmlDeviceGetMemoryInfo_v2"] {
		dev.GetMemoryInfo_v2Func = figure(d, g, func() (nvml.Memory_v2, nvml.Return) {
			return nvml.Memory_v2{Total: g.total, Reserved: g.reserved, Used: g.used, Free: g.total - g.used - g.reserved},
				unless(g.noMemory, nvml.ERROR_NOT_SUPPORTED)
		})
	}
	if g.isInstance {
		dev.GetGpuInstanceIdFunc = figure(d, g, known(g.gpuInstance))
		return dev
	}
	dev.GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) {
		return figure(d, g, func() (uint32, nvml.Return) { return g.temp, unless(g.noTemp, nvml.ERROR_NOT_SUPPORTED) })()
	}
	dev.GetPowerUsageFunc = figure(d, g, known(g.milliwatts))
	dev.GetMigModeFunc = func() (int, int, nvml.Return) {
		mode, ret := figure(d, g, func() (int, nvml.Return) {
			if g.migOn {
				return nvml.DEVICE_MIG_ENABLE, nvml.SUCCESS
			}
			return 0, nvml.ERROR_NOT_SUPPORTED
		})()
		return mode, mode, ret
	}
	dev.GetMaxMigDeviceCountFunc = figure(d, g, func() (int, nvml.Return) { return len(g.instances), nvml.SUCCESS })
	dev.GetMigDeviceHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
		return figure(d, g, func() (nvml.Device, nvml.Return) {
			if g.instances[i] == nil {
				return nil, nvml.ERROR_NOT_FOUND
			}
			return d.device(g.instances[i]), nvml.SUCCESS
		})()
	}
	return dev
}

// dgx is go-nvml's own simulated DGX A100, with the figures it leaves out.
func dgx() *dgxa100.Server {
	s := dgxa100.New()
	for i := range s.Devices {
		d := s.Devices[i].(*dgxa100.Device)
		d.MemoryInfo.Used = uint64(i) * gib
		d.MemoryInfo.Free = d.MemoryInfo.Total - d.MemoryInfo.Used
		d.GetMemoryInfo_v2Func = func() (nvml.Memory_v2, nvml.Return) { return nvml.Memory_v2{}, nvml.ERROR_FUNCTION_NOT_FOUND }
		d.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) {
			return nvml.Utilization{Gpu: uint32(10 * i)}, nvml.SUCCESS
		}
		d.GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 30, nvml.SUCCESS }
		d.GetPowerUsageFunc = func() (uint32, nvml.Return) { return 60_000, nvml.SUCCESS }
		none := func() ([]nvml.ProcessInfo, nvml.Return) { return nil, nvml.SUCCESS }
		d.GetComputeRunningProcessesFunc, d.GetGraphicsRunningProcessesFunc, d.GetMPSComputeRunningProcessesFunc = none, none, none
	}
	return s
}
