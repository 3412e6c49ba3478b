package sim

import (
	"slices"
	"time"

	"github.com/cjmd/cjmd/internal/resource"
)

// reading is the machine as it was from a moment on.
type reading struct {
	at      time.Time
	host    resource.Host
	devices []resource.Device
	procs   []resource.Process
}

// noteLocked remembers the machine as it is now, for readings that lag.
func (m *Machine) noteLocked() {
	now := m.clock.Now()
	r := reading{at: now, host: resource.Host{CPUs: m.o.CPUs, MemTotal: m.o.RAM, MemAvailable: max(m.freeLocked(hostPool), 0)}}
	r.host.MemUsed = r.host.MemTotal - r.host.MemAvailable
	busy := 0
	for _, w := range m.workers {
		busy += len(w.calls)
	}
	r.host.CPUPercent = min(100*float64(busy)/float64(m.o.CPUs), 100)
	for i, d := range m.o.Devices {
		pool := i + 1
		if m.gone[pool] {
			continue
		}
		free := max(m.freeLocked(pool), 0)
		dev := resource.Device{ID: d.ID, Index: i, Name: d.Name, Total: d.Total, Free: free, Used: d.Total - free, Unified: d.Unified, TempCelsius: 40, PowerWatts: 30}
		for _, w := range m.workers {
			if len(w.calls) > 0 && slices.Contains(w.pools, pool) {
				dev.LoadPercent, dev.TempCelsius, dev.PowerWatts = 90, 70, 300
			}
		}
		r.devices = append(r.devices, dev)
		for _, h := range m.holders {
			if h.pid != 0 && h.mem[pool] > 0 {
				r.procs = append(r.procs, resource.Process{PID: h.pid, Device: d.ID, Index: i, Memory: h.mem[pool], Command: h.command})
			}
		}
	}
	if n := len(m.history); n > 0 && m.history[n-1].at.Equal(now) {
		m.history[n-1] = r
		return
	}
	m.history = append(m.history, r)
	m.forgetLocked(now)
}

// forgetLocked drops what no reading will show any more.
func (m *Machine) forgetLocked(now time.Time) {
	old := now.Add(-m.o.ReadLag)
	n := 0
	for n+1 < len(m.history) && !m.history[n+1].at.After(old) {
		n++
	}
	if n > 16 { // not for each single one
		m.history = append([]reading(nil), m.history[n:]...)
	}
}

// Read is one reading of the machine, stamped now although it shows the machine
// of ReadLag ago. ok is false while the monitor is silent.
func (m *Machine) Read(monitor string) (s resource.Snapshot, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mute > 0 {
		return resource.Snapshot{}, false
	}
	now := m.clock.Now()
	i := len(m.history) - 1
	for i > 0 && m.history[i].at.After(now.Add(-m.o.ReadLag)) {
		i--
	}
	r := m.history[i]
	s = resource.Snapshot{At: now, Monitor: monitor, Host: r.host, GPUVendor: "None", Devices: r.devices, Processes: r.procs,
		Details: map[string]any{"simulated": true}}
	if len(r.devices) > 0 {
		s.GPUVendor = m.o.Vendor
	}
	if m.hidden > 0 {
		s.Processes = nil
	}
	return s, true
}
