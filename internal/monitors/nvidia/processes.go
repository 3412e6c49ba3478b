package nvidia

import (
	"cmp"
	"slices"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/cjmd/cjmd/internal/monitors/accel"
	"github.com/cjmd/cjmd/internal/resource"
)

// processes lists who uses a device, each once: a process with both a compute
// and a graphics context is in both lists of the driver, with the same memory.
func (s *session) processes(c *card, total resource.Bytes) ([]resource.Process, error) {
	byPID := make(map[uint32]resource.Process)
	for _, l := range []struct {
		has  bool
		list func() ([]nvml.ProcessInfo, nvml.Return)
	}{
		{s.has.compute, c.dev.GetComputeRunningProcesses},
		{s.has.graphics, c.dev.GetGraphicsRunningProcesses},
		{s.has.mps, c.dev.GetMPSComputeRunningProcesses},
	} {
		if !l.has {
			continue
		}
		infos, ret := l.list()
		if dispensable(ret) || c.mig && ret == nvml.ERROR_INVALID_ARGUMENT {
			continue
		}
		if ret != nvml.SUCCESS {
			return nil, failure("list the processes", c.id, ret)
		}
		for _, info := range infos {
			if info.Pid == 0 {
				continue
			}
			p, known := memoryOf(info.UsedGpuMemory, total)
			if was, seen := byPID[info.Pid]; seen && (!known || !was.MemoryUnknown && was.Memory >= p) {
				continue
			}
			byPID[info.Pid] = resource.Process{Memory: p, MemoryUnknown: !known}
		}
	}
	out := make([]resource.Process, 0, len(byPID))
	for pid, p := range byPID {
		p.PID, p.Device, p.Index = int(pid), resource.DeviceID(c.id), c.index
		p.Command = accel.Command(s.root, p.PID)
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b resource.Process) int { return cmp.Compare(a.PID, b.PID) })
	return out, nil
}

// notAvailable is how NVML says that it does not know a process' memory
// (containers, WSL, display drivers): nvml.VALUE_NOT_AVAILABLE, unsigned.
const notAvailable = ^uint64(0)

// memoryOf is false for a figure that is none. More than the device has is none
// either: some drivers of the 535 branch filled the structure wrongly.
func memoryOf(used uint64, total resource.Bytes) (resource.Bytes, bool) {
	if used == notAvailable || total > 0 && used > uint64(total) {
		return 0, false
	}
	return resource.Bytes(used), true
}
