package nvidia_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/monitors"
	"github.com/cjmd/cjmd/internal/monitors/monitortest"
	"github.com/cjmd/cjmd/internal/monitors/nvidia"
	"github.com/cjmd/cjmd/internal/resource"
)

// linked is the monitor as the daemon has it, helper process and dynamic
// linker included, on a driver library that is built here.
func linked(t *testing.T, flags, fault string) *nvidia.Monitor {
	t.Helper()
	dir := t.TempDir()
	args := []string{"-shared", "-fPIC", "-w", "-o", filepath.Join(dir, "libnvidia-ml.so.1"), "testdata/fakenvml/fake.c"}
	if flags != "" {
		args = append(args, flags)
	}
	cc := os.Getenv("CC")
	if cc == "" {
		cc = "cc"
	}
	if out, err := exec.Command(cc, args...).CombinedOutput(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			t.Skipf("no C compiler: %v", err)
		}
		t.Fatalf("%v: %s", err, out)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return monitor(nil, func(o *nvidia.Options) {
		o.Library = nil
		o.Helper = []string{"/usr/bin/env", "LD_LIBRARY_PATH=" + dir, "FAKE_NVML=" + fault, exe, nvidia.Verb, nvidia.Name}
	})
}

func TestLinked_Conforms(t *testing.T) {
	m := linked(t, "-DNEW", "")
	monitortest.Run(t, func(t *testing.T) monitors.Monitor { return m })
}

const linkedID = resource.DeviceID("GPU-c0ffee00-0000-0000-0000-000000000001")

func TestLinked_AnOldLibraryIsNotAskedForWhatItLacks(t *testing.T) {
	s := must(t, linked(t, "", ""))
	want := resource.Device{ID: linkedID, Name: "Tesla K20c", Total: 8192 * resource.MiB, Used: 3072 * resource.MiB, Free: 5120 * resource.MiB}
	if len(s.Devices) != 1 || s.Devices[0] != want {
		t.Errorf("devices %+v, want %+v", s.Devices, want)
	}
	if p := s.Processes; len(p) != 2 || p[0].Memory != 1024*resource.MiB || !p[1].MemoryUnknown {
		t.Errorf("processes %+v", p)
	}
}

func TestLinked_ANewLibrary(t *testing.T) {
	s := must(t, linked(t, "-DNEW", ""))
	want := resource.Device{ID: linkedID, Name: "Tesla K20c", Total: 8192 * resource.MiB, Used: 3072 * resource.MiB, Free: 5120 * resource.MiB,
		LoadPercent: 64, TempCelsius: 55, PowerWatts: 123.456}
	if len(s.Devices) != 1 || s.Devices[0] != want {
		t.Errorf("devices %+v, want %+v", s.Devices, want)
	}
	if p := s.Processes; len(p) != 1 || p[0].Memory != 2048*resource.MiB {
		t.Errorf("processes %+v", p)
	}
}

func TestLinked_AVersionMismatchIsTold(t *testing.T) {
	_, err := first(t, linked(t, "", "mismatch"))
	if err == nil || errors.Is(err, monitors.ErrUnsupported) || !strings.Contains(err.Error(), "version mismatch") {
		t.Errorf("error %v", err)
	}
}

func TestLinked_ACrashInTheDriverEndsTheHelperAlone(t *testing.T) {
	m := linked(t, "", "segfault")
	for range 2 {
		r := run(t, m)
		if _, err := r.next(); err != nil {
			t.Fatalf("the first reading, before the crash: %v", err)
		}
		err := error(nil)
		for err == nil {
			_, err = r.next()
		}
		if !strings.Contains(err.Error(), "helper process ended") || !strings.Contains(err.Error(), "SIGSEGV") || errors.Is(err, monitors.ErrUnsupported) {
			t.Errorf("error %v", err)
		}
		r.stop()
	}
}

func TestLinked_AHangInTheDriverEndsWithRun(t *testing.T) {
	r := run(t, linked(t, "", "hang"))
	for range 2 {
		if _, err := r.next(); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	r.stop()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("Run ended %v after it was told to", took)
	}
}
