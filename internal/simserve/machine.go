package simserve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cjmd/cjmd/internal/sched/simtest"
	"github.com/cjmd/cjmd/internal/sim"
)

// Verb is the daemon's hidden verb that runs Worker.
const Verb = "simulated-worker"

// SocketEnv tells a simulated worker where the driver listens; PluginEnv what it is.
const (
	SocketEnv = "CJM_SIM_DRIVER"
	PluginEnv = "CJM_SIM_PLUGIN"
)

// Options of a Machine.
type Options struct {
	Trace *simtest.Trace
	// Dir is a private directory for the manifests and the driver's socket; what
	// lies in its subdirectory "plugins" is replaced.
	Dir string
	// Executable is the program whose Verb runs a worker.
	Executable string
}

// Machine is a simulated machine in real time, with its driver and the manifests
// of its plugins.
type Machine struct {
	*sim.Machine
	trace *simtest.Trace
	d     *driver
	dir   string
}

// maxSocketPath is what the kernel allows for the path of a Unix socket.
const maxSocketPath = 107

// New writes the manifests and listens; nothing happens on the machine's clock
// before it, and Run must follow. Close in every case.
func New(o Options) (*Machine, error) {
	m, err := sim.New(o.Trace.MachineOptions(sim.RealClock{}, nil))
	if err != nil {
		return nil, err
	}
	out := &Machine{Machine: m, trace: o.Trace, dir: filepath.Join(o.Dir, "plugins")}
	socket := filepath.Join(o.Dir, "driver.sock")
	if err := out.writeManifests(o.Executable, socket); err != nil {
		m.Close()
		return nil, err
	}
	if len(socket) > maxSocketPath {
		m.Close()
		return nil, fmt.Errorf("cannot listen at %s: the path is longer than %d bytes", socket, maxSocketPath)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		m.Close()
		return nil, fmt.Errorf("cannot listen for simulated workers: %w", err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		m.Close()
		return nil, fmt.Errorf("cannot listen for simulated workers: %w", err)
	}
	out.d = &driver{m: m, t: o.Trace, ln: ln}
	return out, nil
}

// PluginDir holds the manifests.
func (m *Machine) PluginDir() string { return m.dir }

// Run serves the workers until ctx ends.
func (m *Machine) Run(ctx context.Context) error { return m.d.serve(ctx) }

// Close ends the machine. After Run has returned, or instead of it.
func (m *Machine) Close() error {
	m.Machine.Close()
	if err := m.d.ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// manifest is a plugin's file, in the daemon's own format.
type manifest struct {
	Format      string            `json:"format_version"`
	Name        string            `json:"name"`
	Version     string            `json:"version"`
	Description string            `json:"description"`
	Category    string            `json:"category"`
	Command     []string          `json:"command"`
	Env         map[string]string `json:"env_vars"`
	Concurrency int               `json:"concurrency"`
	Resources   needs             `json:"resources"`
	Devices     *count            `json:"devices,omitempty"`
}

type needs struct {
	GPU   bool    `json:"requires_gpu"`
	MinMB float64 `json:"min_gpu_vram_mb,omitempty"`
	RAMMB float64 `json:"min_system_ram_mb,omitempty"`
}

type count struct {
	Count int `json:"count"`
}

func (m *Machine) writeManifests(executable, socket string) error {
	if err := os.RemoveAll(m.dir); err != nil {
		return fmt.Errorf("cannot replace the simulated plugins: %w", err)
	}
	if err := os.MkdirAll(m.dir, 0o755); err != nil {
		return fmt.Errorf("cannot write the simulated plugins: %w", err)
	}
	for _, name := range m.trace.Names() {
		body, err := json.MarshalIndent(m.manifest(name, executable, socket), "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(m.dir, name+".json"), append(body, '\n'), 0o644); err != nil {
			return fmt.Errorf("cannot write a simulated plugin: %w", err)
		}
	}
	return nil
}

func (m *Machine) manifest(name, executable, socket string) manifest {
	p := m.trace.Plugins[name]
	out := manifest{Format: "3", Name: name, Version: "1.0", Category: "simulated",
		Description: fmt.Sprintf("simulated: %.0f MiB loaded and %.0f MiB a job on %d devices", p.ResidentMB, p.ExecuteMB, p.Devices),
		Command:     []string{executable, Verb}, Env: map[string]string{SocketEnv: socket, PluginEnv: name}, Concurrency: p.Concurrency,
		Resources: needs{GPU: p.Devices > 0}}
	if p.Devices > 1 {
		out.Devices = &count{p.Devices}
	}
	switch {
	case p.Needs == simtest.NeedsUnknown || p.Devices == 0:
	case p.DeclaredMB > 0:
		out.Resources.MinMB = p.DeclaredMB
	default:
		out.Resources.MinMB = p.ResidentMB + p.ExecuteMB*float64(p.Concurrency)
	}
	return out
}

// Submit has submit called for each job of the trace when its time has come,
// and returns when all are submitted or ctx has ended.
func (m *Machine) Submit(ctx context.Context, submit func(context.Context, simtest.Submission) error) error {
	begin := time.Now()
	for _, s := range m.trace.Submissions() {
		t := time.NewTimer(time.Until(begin.Add(s.At)))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
		if err := submit(ctx, s); err != nil {
			return fmt.Errorf("cannot submit %s of the trace: %w", s.ID, err)
		}
	}
	return nil
}

func splitList(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
