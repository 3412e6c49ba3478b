// Package resource holds the quantities that scheduling is about: bytes, what a
// machine has (Snapshot), what work asks for (Demand) and what is missing
// (Shortfall). It is pure: values in, values out, no clock, no I/O, and it
// imports nothing of ours. Start with Snapshot and Fit.
package resource

import "time"

// Bytes is an amount of memory. The API and manifests speak MiB; MB converts.
type Bytes int64

// MiB is one mebibyte; every "_mb" field of the API and of manifests counts these.
const MiB Bytes = 1 << 20

// MB returns b in MiB as the API shows it.
func (b Bytes) MB() float64 { return float64(b) / float64(MiB) }

// FromMB converts an API or manifest quantity (MiB) to Bytes.
func FromMB(mb float64) Bytes { return Bytes(mb * float64(MiB)) }

// HostDevice names the pool of host memory in claims and shortfalls; every
// other DeviceID is the UUID of an accelerator.
const HostDevice DeviceID = "host"

// DeviceID identifies one pool of memory: HostDevice or an accelerator's UUID.
type DeviceID string

// Device is one accelerator as a monitor saw it.
type Device struct {
	ID          DeviceID
	Index       int
	Name        string
	Total       Bytes
	Used        Bytes
	Free        Bytes
	LoadPercent float64
	TempCelsius float64
	PowerWatts  float64
	// Unified is true when the device shares its memory with the host (APUs).
	Unified bool
}

// Host is the machine's own CPU and memory, as limited by our cgroup.
type Host struct {
	CPUs         int
	CPUPercent   float64
	MemTotal     Bytes
	MemUsed      Bytes
	MemAvailable Bytes
	SwapTotal    Bytes
	SwapUsed     Bytes
}

// Process is one process' use of one device.
type Process struct {
	PID     int
	Device  DeviceID
	Index   int // device index, -1 when the monitor cannot tell
	Memory  Bytes
	Command string
	// MemoryUnknown is true when the driver does not tell Memory, which is then 0.
	MemoryUnknown bool
}

// Snapshot is what one monitor, or the Gate's merge of several, saw at At.
// It is immutable after it was sent.
type Snapshot struct {
	At        time.Time
	Monitor   string
	Host      Host
	GPUVendor string // "NVIDIA", "AMD", "Intel" or "None", as the seeds have it
	Devices   []Device
	Processes []Process
	Details   map[string]any
}

// Demand is what one instance needs while it is loaded and executing.
// The zero value asks for nothing.
type Demand struct {
	RequiresGPU bool
	Devices     int   // how many accelerators; 0 means one when RequiresGPU
	MinVRAM     Bytes // per device
	MinRAM      Bytes
}

// Shortfall is one reason why a Demand does not fit.
type Shortfall struct {
	Resource  string   `json:"resource"` // "gpu", "gpu_memory", "memory", "slots"
	Device    DeviceID `json:"device,omitempty"`
	Needed    Bytes    `json:"needed_bytes"`
	Available Bytes    `json:"available_bytes"`
}
