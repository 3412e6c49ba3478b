package nvidia

import (
	"fmt"
	"os"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/cjmd/cjmd/internal/monitors"
)

// libraryName is what the dynamic linker is asked for first.
const libraryName = "libnvidia-ml.so.1"

// libraryDirs hold the library where the linker's cache does not list it:
// containers with a mounted driver, WSL, NixOS.
var libraryDirs = [...]string{
	"/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/usr/lib/wsl/lib", "/run/opengl-driver/lib",
	"/run/nvidia/driver/usr/lib64", "/run/nvidia/driver/usr/lib/x86_64-linux-gnu",
}

// libraries are the places to look for NVML: by name, then where a file is.
func libraries() []nvml.Interface {
	libs := []nvml.Interface{nvml.New()}
	for _, dir := range libraryDirs {
		path := dir + "/" + libraryName
		if _, err := os.Stat(path); err == nil {
			libs = append(libs, nvml.New(nvml.WithLibraryPath(path)))
		}
	}
	return libs
}

// Error is a call to NVML that failed.
type Error struct {
	Call   string // what was to be done
	Device string // "" when it concerns none
	Code   nvml.Return
	text   string
}

// failure keeps the driver's words now: they cannot be asked for once the
// library is closed.
func failure(call, device string, code nvml.Return) *Error {
	return &Error{Call: call, Device: device, Code: code, text: code.Error()}
}

func (e *Error) Error() string {
	if e.Device == "" {
		return fmt.Sprintf("cannot %s: NVML says %q (code %d)", e.Call, e.text, int(e.Code))
	}
	return fmt.Sprintf("cannot %s of GPU %s: NVML says %q (code %d)", e.Call, e.Device, e.text, int(e.Code))
}

// Is lets callers ask for a code.
func (e *Error) Is(target error) bool {
	code, ok := target.(nvml.Return)
	return ok && code == e.Code
}

// initialise is the gate: without its success no other call may be made, since
// unresolved symbols of a missing library end the process. It returns the first
// library that is there.
func initialise(libs []nvml.Interface) (nvml.Interface, error) {
	for _, lib := range libs {
		switch ret := lib.Init(); ret {
		case nvml.SUCCESS:
			return lib, nil
		case nvml.ERROR_LIBRARY_NOT_FOUND:
		case nvml.ERROR_DRIVER_NOT_LOADED:
			return nil, fmt.Errorf("cannot use NVML: the NVIDIA kernel module is not loaded or found no GPU: %w", monitors.ErrUnsupported)
		case nvml.ERROR_LIB_RM_VERSION_MISMATCH:
			return nil, fmt.Errorf("%w; the driver was updated under a loaded kernel module: reboot, or reload the nvidia modules", failure("initialise NVML", "", ret))
		default:
			return nil, failure("initialise NVML", "", ret)
		}
	}
	return nil, fmt.Errorf("cannot find the NVIDIA driver's library %s: %w", libraryName, monitors.ErrUnsupported)
}

// features are the calls that older drivers lack. Calling a missing one ends
// the process, so each is looked up first.
type features struct {
	memoryV2, mig, gpuInstance, utilisation, temperature, power bool
	compute, graphics, mps, driverVersion                       bool
}

func lookUp(lib nvml.Interface) (features, error) {
	ext := lib.Extensions()
	has := func(names ...string) bool {
		for _, n := range names {
			if ext.LookupSymbol(n) != nil {
				return false
			}
		}
		return true
	}
	versioned := func(name string) bool { return has(name) || has(name+"_v2") || has(name+"_v3") }
	for _, n := range []string{"nvmlDeviceGetUUID", "nvmlDeviceGetName", "nvmlDeviceGetMemoryInfo"} {
		if !has(n) {
			return features{}, fmt.Errorf("cannot use this NVIDIA driver: its library has no %s: %w", n, monitors.ErrUnsupported)
		}
	}
	return features{
		memoryV2:      has("nvmlDeviceGetMemoryInfo_v2"),
		mig:           has("nvmlDeviceGetMigMode", "nvmlDeviceGetMaxMigDeviceCount", "nvmlDeviceGetMigDeviceHandleByIndex"),
		gpuInstance:   has("nvmlDeviceGetGpuInstanceId"),
		utilisation:   has("nvmlDeviceGetUtilizationRates"),
		temperature:   has("nvmlDeviceGetTemperature"),
		power:         has("nvmlDeviceGetPowerUsage"),
		compute:       versioned("nvmlDeviceGetComputeRunningProcesses"),
		graphics:      versioned("nvmlDeviceGetGraphicsRunningProcesses"),
		mps:           versioned("nvmlDeviceGetMPSComputeRunningProcesses"),
		driverVersion: has("nvmlSystemGetDriverVersion"),
	}, nil
}
