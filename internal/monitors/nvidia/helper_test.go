package nvidia_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/cjmd/cjmd/internal/monitors"
	"github.com/cjmd/cjmd/internal/monitors/monitortest"
	"github.com/cjmd/cjmd/internal/monitors/nvidia"
)

// asHelper lets the test binary be the helper of a made-up driver, which its
// last argument names, or of the machine's.
func asHelper() {
	if code, ok := nvidia.Dispatch(os.Args[1:]); ok {
		os.Exit(code)
	}
	if len(os.Args) < 3 || os.Args[1] != "test-helper" {
		return
	}
	d := &driver{gpus: []*gpu{h100("GPU-a"), h100("GPU-b")}}
	d.gpus[0].compute = []nvml.ProcessInfo{{Pid: 1, UsedGpuMemory: notAvailable}}
	lib := d.library
	switch os.Args[2] {
	case "none":
		d.init = nvml.ERROR_LIBRARY_NOT_FOUND
	case "lost":
		d.fault = nvml.ERROR_GPU_IS_LOST
	case "crash": // as the dynamic linker ends it
		fmt.Fprintln(os.Stderr, "symbol lookup error: undefined symbol: nvmlDeviceGetName")
		os.Exit(127)
	case "segfault":
		_ = syscall.Kill(os.Getpid(), syscall.SIGSEGV)
		select {}
	case "hang-once": // hangs unless its marker is there, which it makes
		if _, err := os.Stat(os.Args[3]); err != nil {
			_ = os.WriteFile(os.Args[3], nil, 0o600)
			d.hang = make(chan struct{})
		}
	}
	os.Exit(nvidia.Main(nvidia.Options{Library: lib}, os.Stdin, os.Stdout))
}

func helped(t *testing.T, args ...string) *nvidia.Monitor {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return monitor(nil, func(o *nvidia.Options) {
		o.Library = nil
		o.Helper = append([]string{exe, "test-helper"}, args...)
	})
}

func TestHelper_Conforms(t *testing.T) {
	monitortest.Run(t, func(t *testing.T) monitors.Monitor { return helped(t, "gpus") })
}

func TestHelper_GivesTheSameReadings(t *testing.T) {
	s := must(t, helped(t, "gpus"))
	want := must(t, monitor(&driver{gpus: []*gpu{h100("GPU-a"), h100("GPU-b")}}))
	if len(s.Devices) != 2 || s.Devices[0] != want.Devices[0] || s.Devices[1] != want.Devices[1] || s.GPUVendor != "NVIDIA" || s.Host != want.Host {
		t.Errorf("snapshot %+v, want %+v", s, want)
	}
	if len(s.Processes) != 1 || !s.Processes[0].MemoryUnknown {
		t.Errorf("processes %+v", s.Processes)
	}
}

func TestHelper_SaysWhyItCannot(t *testing.T) {
	if _, err := first(t, helped(t, "none")); !errors.Is(err, monitors.ErrUnsupported) || !strings.Contains(err.Error(), "libnvidia-ml") {
		t.Errorf("without driver: %v", err)
	}
	if _, err := first(t, helped(t, "lost")); err == nil || errors.Is(err, monitors.ErrUnsupported) || !strings.Contains(err.Error(), "GPU_IS_LOST") {
		t.Errorf("lost GPU: %v", err)
	}
	if _, err := first(t, helped(t, "crash")); err == nil || !strings.Contains(err.Error(), "undefined symbol: nvmlDeviceGetName") {
		t.Errorf("helper that is ended by the linker: %v", err)
	}
	if _, err := first(t, helped(t, "segfault")); err == nil || !strings.Contains(err.Error(), "helper process ended") {
		t.Errorf("helper that crashes: %v", err)
	}
	m := monitor(nil, func(o *nvidia.Options) { o.Helper = []string{"/nonexistent/cjmd"} })
	if _, err := first(t, m); err == nil || !strings.Contains(err.Error(), "cannot start the nvidia helper") {
		t.Errorf("no program: %v", err)
	}
}

func TestHelper_OfThisMachineNeverEndsTheDaemon(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	m := monitor(nil, func(o *nvidia.Options) { o.Library, o.Helper = nil, []string{exe, nvidia.Verb, nvidia.Name} })
	switch s, err := first(t, m); {
	case err == nil:
		t.Logf("this machine has %+v", s.Devices)
	case !errors.Is(err, monitors.ErrUnsupported):
		t.Errorf("error %v", err)
	}
}

func TestHelper_EndsWithItsInputEvenInAHangingCall(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "test-helper", "hang-once", filepath.Join(t.TempDir(), "hung"))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	stuck := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
	defer stuck.Stop()
	if err := cmd.Wait(); err != nil {
		t.Errorf("the helper ended with %v", err)
	}
}

// A helper that hangs inside the kernel survives SIGKILL. One whose output
// somebody else holds open looks the same from here.
func TestHelper_OneThatCannotBeEndedIsToldAndHasNoSecondBesideIt(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	m := monitor(nil, func(o *nvidia.Options) {
		o.Library = nil
		o.Helper = []string{"/bin/sh", "-c", `setsid cat "$0" & trap "" TERM; sleep 600; sleep 600`, fifo}
	})
	// Opening it for writing returns once cat has it open: then Run is told to end.
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx, nil) }()
	w, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "cannot end the nvidia helper") {
		t.Errorf("error %v", err)
	}
	if err := m.Probe(t.Context()); err == nil || !strings.Contains(err.Error(), "still hangs") {
		t.Errorf("a second helper was started beside one that hangs: %v", err)
	}
	if err := w.Close(); err != nil { // cat ends, and with it the helper
		t.Fatal(err)
	}
}

// A call of the driver that hangs makes readings stale and holds nothing else
// up; the helper is ended and the next one answers.
func TestHelper_AHangingDriverIsGivenUpByTheGate(t *testing.T) {
	marker := filepath.Join(t.TempDir(), "hung")
	g, err := monitors.New(monitors.Options{MaxAge: 100 * time.Millisecond, Pace: fast()})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Register(t.Context(), helped(t, "hang-once", marker)); err != nil {
		t.Fatal(err)
	}
	stop := runGate(t, g)
	seen := waitFor(t, g, monitors.StateFresh)
	if !seen[monitors.StateStale] || !seen[monitors.StateFailed] {
		t.Errorf("states on the way were %v", seen)
	}
	stop()
}

// In this process a hanging call cannot be ended; the Gate says stale and takes
// another monitor all the same.
func TestNVIDIA_AHangingCallInThisProcessHoldsUpNothing(t *testing.T) {
	d := &driver{gpus: []*gpu{h100("GPU-a")}}
	g, err := monitors.New(monitors.Options{MaxAge: 50 * time.Millisecond, Pace: fast()})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Register(t.Context(), monitor(d)); err != nil {
		t.Fatal(err)
	}
	stop := runGate(t, g)
	waitFor(t, g, monitors.StateFresh)
	hang := make(chan struct{})
	d.set(func(d *driver) { d.hang = hang })
	waitFor(t, g, monitors.StateStale)
	if _, fresh := g.Latest(); fresh {
		t.Error("a reading of a driver that hangs is fresh")
	}
	if err := g.Register(t.Context(), host{fast()}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, g, monitors.StateFresh)
	if s, _ := g.Latest(); s.Monitor != "cpu" {
		t.Errorf("reading is by %q", s.Monitor)
	}
	close(hang)
	stop()
}

func runGate(t *testing.T, g *monitors.Gate) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the gate ended with %v", err)
		}
	}
}

// waitFor returns once the registered monitor is in a state, with those before.
func waitFor(t *testing.T, g *monitors.Gate, state string) map[string]bool {
	t.Helper()
	seen := make(map[string]bool)
	deadline := time.After(30 * time.Second)
	for {
		changed := g.Watch()
		s := g.State()[0].State
		if s == state {
			return seen
		}
		seen[s] = true
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("the monitor never was %s: %+v", state, g.State())
		}
	}
}
