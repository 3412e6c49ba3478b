package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const repo = "../../.."

// pretend makes a machine with cards that are files: a driver library and a
// torch that agree on them. It returns the environment in which both are found.
func pretend(t *testing.T, cards int) (env []string, python string) {
	t.Helper()
	dir := t.TempDir()
	build := exec.Command("cc", "-shared", "-fPIC", "-O1", "-o", filepath.Join(dir, "libnvidia-ml.so.1"), filepath.Join("..", "fake", "nvml.c"))
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the pretended driver: %v\n%s", err, out)
	}
	if err := os.Mkdir(filepath.Join(dir, "use"), 0o755); err != nil {
		t.Fatal(err)
	}
	var devices strings.Builder
	for i := range cards {
		_, _ = fmt.Fprintf(&devices, "GPU-%08d-0000-4000-8000-00000000000%d %d Pretended-24G\n", i, i, int64(24)<<30)
	}
	for name, text := range map[string]string{"devices": devices.String(), "lag_ms": "700"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("python3", "-c", "import os, sys; print(os.path.realpath(sys.executable))").Output()
	if err != nil {
		t.Fatalf("cannot find Python: %v", err)
	}
	return append(os.Environ(), "LD_LIBRARY_PATH="+dir, "TORCH_FAKE_DIR="+dir), strings.TrimSpace(string(out))
}

// build compiles a command of ours.
func build(t *testing.T, what ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	cmd := exec.Command("go", append([]string{"build", "-o", dir + "/"}, what...)...)
	cmd.Dir = repo
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot build: %v\n%s", err, out)
	}
	return dir
}

// The whole program, with the real daemon and real workers, on cards that are files.
func TestChecks_PassOnAPretendedMachine(t *testing.T) {
	if testing.Short() {
		t.Skip("takes about a minute")
	}
	env, python := pretend(t, 2)
	bin := build(t, "./cmd/cjmd", "./test/gpu/checks")
	fake, err := filepath.Abs(filepath.Join("..", "fake"))
	if err != nil {
		t.Fatal(err)
	}
	results := filepath.Join(t.TempDir(), "gpu-results.json")
	cmd := exec.Command(filepath.Join(bin, "checks"), "-cjmd", filepath.Join(bin, "cjmd"), "-plugins", filepath.Join("..", "plugins"),
		"-config", filepath.Join("..", "cjmd.yaml"), "-python", python, "-path", fake, "-out", results, "-late", "5s") // other tests share the processors
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Errorf("the checks ended with %v", err)
	}
	text, err := os.ReadFile(results)
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Results) != len(list()) || len(r.Cards) != 2 {
		t.Errorf("%d results for %d checks on %d cards", len(r.Results), len(list()), len(r.Cards))
	}
	if beside, err := os.ReadFile(strings.TrimSuffix(results, ".json") + ".md"); err != nil || !bytes.Contains(beside, []byte("| evict |")) {
		t.Errorf("the Markdown table is %s (%v)", beside, err)
	}
}

func TestChecks_WithoutATorchThatSeesACardSaySo(t *testing.T) {
	env, python := pretend(t, 1)
	bin := build(t, "./test/gpu/checks")
	blind := t.TempDir()
	for name, text := range map[string]string{
		"missing": "raise ImportError('no torch in this test')",
		"blind":   "__version__ = '1+cpu'\nclass cuda:\n  is_available = staticmethod(lambda: False)\n  device_count = staticmethod(lambda: 0)\n",
	} {
		dir := filepath.Join(blind, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "torch.py"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(filepath.Join(bin, "checks"), "-python", python, "-path", dir)
		cmd.Env = env
		out, _ := cmd.CombinedOutput()
		want := map[string]string{"missing": "no torch in this test", "blind": "torch 1+cpu does not see a GPU"}[name]
		if cmd.ProcessState.ExitCode() != exitNoGPU || !strings.Contains(string(out), want) {
			t.Errorf("%s: exit code %d, said %q", name, cmd.ProcessState.ExitCode(), out)
		}
	}
}

func TestChecks_WithoutADriverSaySo(t *testing.T) {
	var out, errs bytes.Buffer
	if _, err := look(t.Context(), options{python: "python3"}); err == nil {
		t.Skip("this machine has an NVIDIA driver")
	}
	if code := run(t.Context(), nil, &out, &errs); code != exitNoGPU || !strings.Contains(errs.String(), "no usable NVIDIA driver") || out.Len() > 0 {
		t.Errorf("exit code %d, said %q and %q", code, errs.String(), out.String())
	}
}

func TestChecks_RefuseUnknownNames(t *testing.T) {
	var errs bytes.Buffer
	if code := run(t.Context(), []string{"-only", "evict,nonsense"}, &errs, &errs); code != exitUsage || !strings.Contains(errs.String(), `"nonsense"`) {
		t.Errorf("exit code %d, said %q", code, errs.String())
	}
	if some, err := choose("hold, evict"); err != nil || len(some) != 2 || some[1].name != "evict" {
		t.Errorf("chose %v (%v)", some, err)
	}
}

func TestBundle_BuildsAndSaysThatThereIsNoGPU(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the daemon")
	}
	if _, err := look(t.Context(), options{python: "python3"}); err == nil {
		t.Skip("this machine has an NVIDIA driver")
	}
	dir := t.TempDir()
	archive := filepath.Join(dir, "b.tar.gz")
	pack := exec.Command("./test/gpu/bundle.sh", archive)
	pack.Dir = repo
	if out, err := pack.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the bundle: %v\n%s", err, out)
	}
	if out, err := exec.Command("tar", "-C", dir, "-xzf", archive).CombinedOutput(); err != nil {
		t.Fatalf("cannot unpack the bundle: %v\n%s", err, out)
	}
	top := filepath.Join(dir, "cjmd-gpu-checks")
	for _, name := range []string{"bin/cjmd", "bin/cjm-ctl", "plugins/gpu_plugin.py", "cjmd.yaml", "README.md", "LICENSE", "GLIBC"} {
		if info, err := os.Stat(filepath.Join(top, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s is not in the bundle: %v", name, err)
		}
	}
	cmd := exec.Command(filepath.Join(top, "run-gpu-checks.sh"))
	cmd.Dir = dir
	out, _ := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != exitNoGPU || !strings.HasPrefix(string(out), "Nothing was checked: ") {
		t.Errorf("exit code %d, said %q", cmd.ProcessState.ExitCode(), out)
	}
	if _, err := os.Stat(filepath.Join(dir, "gpu-results.json")); err == nil {
		t.Error("results were written though nothing was checked")
	}
	cmd = exec.Command(filepath.Join(top, "run-gpu-checks.sh"))
	cmd.Env = append(os.Environ(), "PYTHON=/nonexistent/python3")
	out, _ = cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != exitNoGPU || !strings.Contains(string(out), "there is no /nonexistent/python3") {
		t.Errorf("without Python: exit code %d, said %q", cmd.ProcessState.ExitCode(), out)
	}
}

func TestScale_FitsSmallAndLargeCards(t *testing.T) {
	for _, total := range []float64{6 << 10, 8 << 10, 24 << 10, 80 << 10, 141 << 10} {
		z := scale(&card{TotalMB: total, UsedMB: 300})
		two, one := 2*(z.small+z.context), z.big+z.context
		if two > z.budget || one > z.budget {
			t.Errorf("%.0f MiB: two small ones need %.0f, the big one %.0f, there are %.0f", total, two, one, z.budget)
		}
		if z.small+z.context+one <= total {
			continue
		}
		if z.context < 500 {
			t.Errorf("%.0f MiB: a context of %.0f is too little", total, z.context)
		}
	}
}

func TestLastBecame_IsTheMomentAfterWhichItStayedSo(t *testing.T) {
	begin := time.Now()
	var seen []reading
	for i, used := range []float64{9, 1, 9, 1, 1, 9} {
		seen = append(seen, reading{at: begin.Add(time.Duration(i) * time.Second), used: used})
	}
	low := func(r reading) bool { return r.used < 5 }
	if at, ok := lastBecame(seen, begin.Add(4*time.Second), low); !ok || at != begin.Add(3*time.Second) {
		t.Errorf("became so at %v (%v)", at.Sub(begin), ok)
	}
	if _, ok := lastBecame(seen, begin.Add(2*time.Second), low); ok {
		t.Error("it was not so at that time")
	}
}
