package plugin

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cjmd/cjmd/internal/resource"
)

// Ids of accelerators that a plugin names by their place alone. Workers can be
// put on one of them by its index.
const (
	CUDAIndex = "cuda:" // before the index of an NVIDIA card
	ROCmIndex = "rocm:" // of an AMD card
	GPUIndex  = "gpu:"  // of another
	// AllDevices stands for every accelerator where a plugin tells only sums: how
	// the memory is spread nobody knows.
	AllDevices = "gpus"
)

// status is what a plugin answered: SystemStats of the Python system, in MiB,
// with what newer plugins may add.
type status struct {
	CPUPercent   number          `json:"cpu_percent"`
	MemUsed      number          `json:"memory_used_mb"`
	MemTotal     number          `json:"memory_total_mb"`
	MemAvailable number          `json:"memory_available_mb"`
	SwapTotal    number          `json:"swap_total_mb"`
	SwapUsed     number          `json:"swap_used_mb"`
	GPUType      string          `json:"gpu_type"`
	GPUFree      number          `json:"gpu_free_memory_mb"`
	GPUTotal     number          `json:"gpu_total_memory_mb"`
	GPUUsed      number          `json:"gpu_used_memory_mb"`
	GPULoad      number          `json:"gpu_load_percent"`
	Devices      []deviceStats   `json:"devices"`
	Details      json.RawMessage `json:"details"`

	processes []processStats // from the details
	kept      map[string]any // details as they came
}

// deviceStats is one entry of devices.
type deviceStats struct {
	UUID  string `json:"uuid"`
	Index *int   `json:"index"`
	Name  string `json:"name"`
	Total number `json:"total_mb"`
	Used  number `json:"used_mb"`
	Free  number `json:"free_mb"`
	Load  number `json:"load_percent"`
	Temp  number `json:"temperature_celsius"`
	Power number `json:"power_watts"`
}

// gpuDetail is one "gpu_N" in the details of the published NVIDIA monitor.
type gpuDetail struct {
	UUID  string `json:"uuid"`
	Name  string `json:"name"`
	Total number `json:"memory_total"`
	Used  number `json:"memory_used"`
	Free  number `json:"memory_free"`
	Load  number `json:"utilization"`
}

// processStats is ProcessStats of the Python system.
type processStats struct {
	PID     int    `json:"pid"`
	Index   *int   `json:"gpu_index"`
	UUID    string `json:"gpu_uuid"`
	Memory  number `json:"gpu_memory_mb"`
	Command string `json:"command"`
}

// number reads what Python plugins give where a number is meant: null counts as
// nothing, and so does a figure that the plugin itself could not read.
type number float64

func (n *number) UnmarshalJSON(raw []byte) error {
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return err
	}
	*n = 0
	switch v := v.(type) {
	case nil:
	case float64:
		if v > 0 {
			*n = number(min(v, math.MaxInt32*1024.0))
		}
	case string:
		f, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(v, "%")), 64)
		if err == nil && f > 0 && !math.IsInf(f, 0) {
			*n = number(min(f, math.MaxInt32*1024.0))
		}
	default:
		return errors.New("is no number")
	}
	return nil
}

func (n number) bytes() resource.Bytes { return resource.FromMB(float64(n)) }
func (n number) percent() float64      { return min(float64(n), 100) }

// readStatus reads an answer. Memory of the host must be in it: without it
// nothing could be admitted, and a guess must not.
func readStatus(raw json.RawMessage) (*status, error) {
	var st status
	if err := json.Unmarshal(raw, &st); err != nil {
		return nil, fmt.Errorf("it is no SystemStats object: %w", err)
	}
	if st.MemTotal <= 0 {
		return nil, errors.New("it has no memory_total_mb")
	}
	st.readDetails()
	return &st, nil
}

// readDetails finds devices and processes in the details, which are free in form:
// what does not fit is left alone.
func (st *status) readDetails() {
	if json.Unmarshal(st.Details, &st.kept) != nil {
		return
	}
	var top, cards map[string]json.RawMessage
	if json.Unmarshal(st.Details, &top) != nil {
		return
	}
	if procs, err := readProcesses(top["processes"]); err == nil {
		st.processes = procs
	}
	if len(st.Devices) > 0 {
		return
	}
	if json.Unmarshal(top["details"], &cards) != nil {
		cards = top
	}
	for key, one := range cards {
		number, ok := strings.CutPrefix(key, "gpu_")
		index, err := strconv.Atoi(number)
		var g gpuDetail
		if !ok || err != nil || index < 0 || json.Unmarshal(one, &g) != nil || g.Total <= 0 {
			continue
		}
		st.Devices = append(st.Devices, deviceStats{UUID: g.UUID, Index: &index, Name: g.Name, Total: g.Total, Used: g.Used, Free: g.Free, Load: g.Load})
	}
	slices.SortFunc(st.Devices, func(a, b deviceStats) int { return cmp.Compare(*a.Index, *b.Index) })
}

func readProcesses(raw json.RawMessage) ([]processStats, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	var out []processStats
	if err := json.Unmarshal(raw, &out); err != nil {
		return nil, fmt.Errorf("they are no list of ProcessStats: %w", err)
	}
	return out, nil
}

func (st *status) snapshot(monitor string, cpus int, at time.Time, procs []processStats) resource.Snapshot {
	total := st.MemTotal.bytes()
	available := st.MemAvailable.bytes()
	if st.MemAvailable <= 0 && st.MemUsed > 0 {
		available = total - st.MemUsed.bytes()
	}
	available = max(min(available, total), 0)
	s := resource.Snapshot{
		At: at, Monitor: monitor, GPUVendor: "None", Details: st.kept,
		Host: resource.Host{CPUs: cpus, CPUPercent: st.CPUPercent.percent(), MemTotal: total, MemAvailable: available, MemUsed: total - available,
			SwapTotal: st.SwapTotal.bytes(), SwapUsed: st.SwapUsed.bytes()},
	}
	if st.GPUType != "" && !strings.EqualFold(st.GPUType, "None") {
		s.GPUVendor = st.GPUType
		s.Devices = st.devices()
		s.Processes = st.users(procs, s.Devices)
	}
	return s
}

// devices are those that the plugin names, or one that stands for all.
func (st *status) devices() []resource.Device {
	var out []resource.Device
	seen := map[resource.DeviceID]bool{resource.HostDevice: true}
	for i, d := range st.Devices {
		index := i
		if d.Index != nil && *d.Index >= 0 {
			index = *d.Index
		}
		id := resource.DeviceID(d.UUID)
		if id == "" {
			id = resource.DeviceID(st.indexPrefix() + strconv.Itoa(index))
		}
		if d.Total <= 0 || seen[id] {
			continue
		}
		seen[id] = true
		out = append(out, device(id, index, d.Name, d.Total, d.Used, d.Free, d.Load, d.Temp, d.Power))
	}
	if len(out) == 0 && st.GPUTotal > 0 {
		out = append(out, device(AllDevices, 0, st.GPUType, st.GPUTotal, st.GPUUsed, st.GPUFree, st.GPULoad, 0, 0))
	}
	return out
}

func (st *status) indexPrefix() string {
	switch strings.ToUpper(st.GPUType) {
	case "NVIDIA":
		return CUDAIndex
	case "AMD":
		return ROCmIndex
	}
	return GPUIndex
}

// device fills in the one of used and free that was not told. Where both are
// nothing the device counts as full: a missing figure must not let a job in.
func device(id resource.DeviceID, index int, name string, total, used, free, load, temp, power number) resource.Device {
	d := resource.Device{ID: id, Index: index, Name: name, Total: total.bytes(), LoadPercent: load.percent(), TempCelsius: float64(temp), PowerWatts: float64(power)}
	d.Free = min(free.bytes(), d.Total)
	if free <= 0 && used > 0 {
		d.Free = max(d.Total-used.bytes(), 0)
	}
	d.Used = d.Total - d.Free
	return d
}

// users joins processes with devices by their index; on a machine with one
// device that is not in doubt.
func (st *status) users(procs []processStats, devices []resource.Device) []resource.Process {
	var out []resource.Process
	for _, p := range procs {
		if p.PID <= 0 {
			continue
		}
		u := resource.Process{PID: p.PID, Index: -1, Memory: p.Memory.bytes(), Command: p.Command, MemoryUnknown: p.Memory <= 0}
		if p.Index != nil && *p.Index >= 0 {
			u.Index = *p.Index
		}
		for _, d := range devices {
			if len(devices) == 1 || (p.UUID != "" && string(d.ID) == p.UUID) || (p.UUID == "" && u.Index == d.Index) {
				u.Device, u.Index = d.ID, d.Index
				break
			}
		}
		out = append(out, u)
	}
	return out
}
