package amd_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"go.uber.org/goleak"

	"github.com/cjmd/cjmd/internal/monitors"
	"github.com/cjmd/cjmd/internal/monitors/amd"
	"github.com/cjmd/cjmd/internal/monitors/monitortest"
	"github.com/cjmd/cjmd/internal/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	gib = 1024 * resource.MiB
)

// host stands for the cpu monitor: a machine of 32 GiB, 10 of them available.
type host struct{ pace *monitors.Pace }

func (host) Name() string { return "cpu" }

func (h host) Run(ctx context.Context, out chan<- resource.Snapshot) error {
	for {
		s := resource.Snapshot{At: time.Now(), Monitor: "cpu", GPUVendor: "None",
			Host: resource.Host{CPUs: 16, MemTotal: 32 * gib, MemAvailable: 10 * gib}}
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

// machine lays a recording out as a directory.
func machine(t testing.TB, name string) string {
	t.Helper()
	root := t.TempDir()
	a, err := txtar.ParseFile(filepath.Join("testdata", name+".txtar"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range a.Files {
		put(t, root, f.Name, string(f.Data))
	}
	return root
}

func put(t testing.TB, root, name, data string) {
	t.Helper()
	path := filepath.Join(root, name)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		if to, ok := strings.CutPrefix(data, "-> "); ok {
			err = os.Symlink(strings.TrimSpace(to), path)
		} else {
			err = os.WriteFile(path, []byte(data), 0o644)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// script is a rocm-smi of the test's.
func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rocm-smi")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func monitor(root string, change ...func(*amd.Options)) *amd.Monitor {
	o := amd.Options{Pace: fast(), Root: root}
	o.Host = host{o.Pace}
	for _, f := range change {
		f(&o)
	}
	return amd.New(o)
}

func withTool(path string) func(*amd.Options) { return func(o *amd.Options) { o.Tool = path } }

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

func first(t *testing.T, m *amd.Monitor) (resource.Snapshot, error) {
	t.Helper()
	r := run(t, m)
	defer r.stop()
	return r.next()
}

func must(t *testing.T, m *amd.Monitor) resource.Snapshot {
	t.Helper()
	s, err := first(t, m)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func wantDevices(t *testing.T, s resource.Snapshot, want ...resource.Device) {
	t.Helper()
	if s.GPUVendor != "AMD" || s.Monitor != "amd" || len(s.Devices) != len(want) {
		t.Fatalf("snapshot of %q by %q has devices %+v", s.GPUVendor, s.Monitor, s.Devices)
	}
	for i, d := range s.Devices {
		if d != want[i] {
			t.Errorf("device %d is\n%+v, want\n%+v", i, d, want[i])
		}
	}
}

func wantProcesses(t *testing.T, s resource.Snapshot, want ...resource.Process) {
	t.Helper()
	if len(s.Processes) != len(want) {
		t.Fatalf("processes %+v, want %+v", s.Processes, want)
	}
	for i, p := range s.Processes {
		if p != want[i] {
			t.Errorf("process %+v, want %+v", p, want[i])
		}
	}
}

func TestAMD_Conforms(t *testing.T) {
	for _, name := range []string{"rx7900xtx", "mi250", "apu", "old-kernel"} {
		t.Run(name, func(t *testing.T) {
			root := machine(t, name)
			monitortest.Run(t, func(*testing.T) monitors.Monitor { return monitor(root) })
		})
	}
	t.Run("rocm-smi", func(t *testing.T) {
		smi := script(t, "cat "+abs(t, "testdata/rocm-smi-mi250.json"))
		monitortest.Run(t, func(t *testing.T) monitors.Monitor { return monitor(t.TempDir(), withTool(smi)) })
	})
	t.Run("this machine", func(t *testing.T) {
		monitortest.Run(t, func(*testing.T) monitors.Monitor { return amd.New(amd.Options{Pace: fast()}) })
	})
}

func abs(t *testing.T, path string) string {
	t.Helper()
	p, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAMD_RX7900XTXBesideTheProcessorsOwnGraphics(t *testing.T) {
	s := must(t, monitor(machine(t, "rx7900xtx")))
	const card, own = resource.DeviceID("GPU-9c3a5b1e2f4d6a70"), resource.DeviceID("PCI-0000:16:00.0")
	wantDevices(t, s,
		resource.Device{ID: card, Name: "AMD Radeon RX 7900 XTX", Total: 25753026560, Used: 9 * gib, Free: 25753026560 - 9*gib,
			LoadPercent: 83, TempCelsius: 54, PowerWatts: 287},
		resource.Device{ID: own, Index: 1, Name: "AMD GPU 1002:164e", Total: 536870912 + 33554432000, Unified: true,
			Free: 536870912 - 25165824 + 10*gib, Used: 33554432000 + 25165824 - 10*gib, TempCelsius: 41, PowerWatts: 32.145})
	wantProcesses(t, s,
		resource.Process{PID: 1893, Device: card, Memory: 400 * resource.MiB, Command: "/usr/bin/gnome-shell"},
		// A file opened twice, and shared with a child, is the same memory; what was
		// driven out of the card is not in it.
		resource.Process{PID: 4711, Device: card, Memory: 8 * gib, Command: "python3 -m cjmworker"},
		resource.Process{PID: 1893, Device: own, Index: 1, Memory: 30 * resource.MiB, Command: "/usr/bin/gnome-shell"})
}

func TestAMD_MI250IsTwoDevicesInROCmsOrder(t *testing.T) {
	s := must(t, monitor(machine(t, "mi250")))
	wantDevices(t, s,
		resource.Device{ID: "GPU-00b41d0c96f2ee05", Name: "AMD INSTINCT MI250 (MCM) OAM AC MBA", Total: 68702699520,
			Used: 32589742080, Free: 36112957440, LoadPercent: 100, TempCelsius: 47, PowerWatts: 312},
		resource.Device{ID: "GPU-3f1b8c20a5d47e11", Index: 1, Name: "AMD INSTINCT MI250 (MCM) OAM AC MBA", Total: 68702699520,
			Used: 10948116480, Free: 57754583040, TempCelsius: 42})
	wantProcesses(t, s,
		resource.Process{PID: 88123, Device: "GPU-00b41d0c96f2ee05", Memory: 30 * gib, Command: "python3.10 train.py --fp16"},
		resource.Process{PID: 90001, Device: "GPU-3f1b8c20a5d47e11", Index: 1, Memory: 10 * gib})
}

func TestAMD_AnAPUIsOnePoolWithTheHost(t *testing.T) {
	s := must(t, monitor(machine(t, "apu")))
	wantDevices(t, s, resource.Device{ID: "PCI-0000:c4:00.0", Name: "AMD Radeon 780M Graphics", Unified: true,
		Total: 15*gib + 512*resource.MiB, Free: 10*gib + 128*resource.MiB, Used: 5*gib + 384*resource.MiB,
		LoadPercent: 12, TempCelsius: 48, PowerWatts: 9.034})
	wantProcesses(t, s,
		resource.Process{PID: 2200, Device: "PCI-0000:c4:00.0", Memory: 65 * resource.MiB, Command: "Xwayland"},
		resource.Process{PID: 3100, Device: "PCI-0000:c4:00.0", Memory: 2*gib + 128*resource.MiB, Command: "llama-server -ngl 99"})
}

func TestAMD_AnOldKernelsKeysAreRead(t *testing.T) {
	s := must(t, monitor(machine(t, "old-kernel")))
	wantDevices(t, s, resource.Device{ID: "PCI-0000:0a:00.0", Name: "AMD GPU 1002:73a3", Total: 32195477504, Used: 21954560, Free: 32173522944})
	wantProcesses(t, s, resource.Process{PID: 77, Device: "PCI-0000:0a:00.0", Memory: 18 * resource.MiB, Command: "blender"})
	if more := s.Details["devices"].(map[string]any)["PCI-0000:0a:00.0"].(map[string]any); more["load_unknown"] != true {
		t.Errorf("nothing says that the load is unknown: %v", more)
	}
}

func TestAMD_ASleepingCardIsNotWoken(t *testing.T) {
	root := machine(t, "rx7900xtx")
	put(t, root, "sys/class/drm/card0/device/power/runtime_status", "suspended\n")
	s := must(t, monitor(root))
	if d := s.Devices[0]; d.LoadPercent != 0 || d.TempCelsius != 0 || d.PowerWatts != 0 || d.Total != 25753026560 {
		t.Errorf("device %+v", d)
	}
}

func TestAMD_CardsThatShareANumberKeepApart(t *testing.T) {
	root := machine(t, "mi250")
	put(t, root, "sys/class/drm/card1/device/unique_id", "00b41d0c96f2ee05\n")
	s := must(t, monitor(root))
	if s.Devices[0].ID != "PCI-0000:29:00.0" || s.Devices[1].ID != "PCI-0000:2f:00.0" {
		t.Errorf("devices %+v", s.Devices)
	}
}

func TestAMD_ACardThatVanishesIsAFailureUntilItReturns(t *testing.T) {
	root := machine(t, "rx7900xtx")
	m := monitor(root)
	r := run(t, m)
	if _, err := r.next(); err != nil {
		t.Fatal(err)
	}
	drm, away := filepath.Join(root, "sys/class/drm"), filepath.Join(root, "sys/class/away")
	if err := os.Rename(drm, away); err != nil {
		t.Fatal(err)
	}
	err := error(nil)
	for err == nil {
		_, err = r.next()
	}
	if !strings.Contains(err.Error(), "GPU-9c3a5b1e2f4d6a70") || errors.Is(err, monitors.ErrUnsupported) {
		t.Errorf("error %v", err)
	}
	r.stop()
	if _, err := first(t, m); err == nil || errors.Is(err, monitors.ErrUnsupported) {
		t.Errorf("a card that was there before and is not: %v; want a failure that is tried again soon", err)
	}
	if err := os.Rename(away, drm); err != nil {
		t.Fatal(err)
	}
	if s := must(t, m); len(s.Devices) != 2 {
		t.Errorf("devices %+v", s.Devices)
	}
}

func TestAMD_NewUsersAreFoundWhenMemoryMoves(t *testing.T) {
	root := machine(t, "old-kernel")
	now := time.Now()
	clock := make(chan time.Time, 1)
	clock <- now
	tick := func(d time.Duration) { now = (<-clock).Add(d); clock <- now }
	m := monitor(root, func(o *amd.Options) {
		o.Clock = func() time.Time { n := <-clock; clock <- n; return n }
	})
	r := run(t, m)
	defer r.stop()
	until := func(want int) {
		t.Helper()
		for range 2000 {
			s, err := r.next()
			if err != nil {
				t.Fatal(err)
			}
			if len(s.Processes) == want {
				return
			}
		}
		t.Fatalf("never %d processes", want)
	}
	until(1)
	put(t, root, "proc/99/fdinfo/4", "drm-driver:\tamdgpu\ndrm-pdev:\t0000:0a:00.0\ndrm-client-id:\t5\ndrm-memory-vram:\t1048576 KiB\n")
	put(t, root, "proc/99/fd/4", "-> /dev/dri/renderD128")
	tick(1500 * time.Millisecond)
	for range 3 {
		if s, err := r.next(); err != nil || len(s.Processes) != 1 {
			t.Fatalf("looked again at every process though nothing moved: %+v, %v", s.Processes, err)
		}
	}
	put(t, root, "sys/class/drm/card0/device/mem_info_vram_used", "1095696384\n")
	until(2)
	if err := os.RemoveAll(filepath.Join(root, "proc/99")); err != nil {
		t.Fatal(err)
	}
	until(1)
}

func TestAMD_RocmSMIWhereSysShowsNothing(t *testing.T) {
	s := must(t, monitor(t.TempDir(), withTool(script(t, "cat "+abs(t, "testdata/rocm-smi-mi250.json")))))
	wantDevices(t, s,
		resource.Device{ID: "GPU-00b41d0c96f2ee05", Name: "AMD INSTINCT MI250 (MCM) OAM AC MBA", Total: 68702699520,
			Used: 32589742080, Free: 36112957440, LoadPercent: 100, TempCelsius: 47, PowerWatts: 312},
		resource.Device{ID: "GPU-3f1b8c20a5d47e11", Index: 1, Name: "AMD INSTINCT MI250 (MCM) OAM AC MBA", Total: 68702699520,
			Used: 10948116480, Free: 57754583040, TempCelsius: 42})
	wantProcesses(t, s, // it does not say on which card
		resource.Process{PID: 88123, Index: -1, Memory: 30 * gib}, resource.Process{PID: 90001, Index: -1, Memory: 10 * gib})

	s = must(t, monitor(t.TempDir(), withTool(script(t, "cat "+abs(t, "testdata/rocm-smi-7900.txt")))))
	wantDevices(t, s, resource.Device{ID: "GPU-9c3a5b1e2f4d6a70", Name: "Radeon RX 7900 XTX", Total: 25753026560,
		Used: 9 * gib, Free: 25753026560 - 9*gib, LoadPercent: 83, TempCelsius: 54, PowerWatts: 287})
	wantProcesses(t, s, resource.Process{PID: 4711, Device: "GPU-9c3a5b1e2f4d6a70", Memory: 8 * gib})
}

func TestAMD_RocmSMIGivesNamesThatSysLacks(t *testing.T) {
	root := machine(t, "rx7900xtx")
	if err := os.Remove(filepath.Join(root, "usr/share/libdrm/amdgpu.ids")); err != nil {
		t.Fatal(err)
	}
	s := must(t, monitor(root, withTool(script(t, "cat "+abs(t, "testdata/rocm-smi-7900.txt")))))
	if s.Devices[0].Name != "Radeon RX 7900 XTX" || s.Devices[1].Name != "AMD GPU 1002:164e" {
		t.Errorf("devices %+v", s.Devices)
	}
}

func TestAMD_RocmSMIThatFails(t *testing.T) {
	for _, c := range []struct {
		name, body, want string
		unsupported      bool
	}{
		{"no driver", "echo 'ERROR:root:Driver not initialized (amdgpu not found in modules)' >&2; exit 1", "Driver not initialized", true},
		{"no card", "echo '{}'", "lists none", true},
		{"no memory told", `echo '{"card0": {"GPU use (%)": "N/A", "VRAM Total Memory (B)": "N/A"}}'`, "lists none", true},
		{"not JSON", "echo WARNING: no", "cannot read the answer", true},
		{"hangs", "sleep 60", "no answer in 2s", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := first(t, monitor(t.TempDir(), withTool(script(t, c.body))))
			if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, monitors.ErrUnsupported) != c.unsupported {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestAMD_WithoutACardIsUnsupported(t *testing.T) {
	if _, err := first(t, monitor(t.TempDir())); !errors.Is(err, monitors.ErrUnsupported) {
		t.Errorf("error %v", err)
	}
	root := t.TempDir()
	put(t, root, "sys/class/drm/card0/device/vendor", "0x10de\n")
	if err := monitor(root).Probe(t.Context()); !errors.Is(err, monitors.ErrUnsupported) {
		t.Errorf("another vendor's card: %v", err)
	}
}

func TestAMD_IsKnownByBothNames(t *testing.T) {
	c := amd.Constructor()
	m, err := c.New(fast())
	if err != nil || m.Name() != "amd" || c.Aliases[0] != "sys-mon-amd" {
		t.Errorf("constructor %+v makes %v, %v", c, m, err)
	}
}
