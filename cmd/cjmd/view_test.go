package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cjmd/cjmd/internal/plugins"
)

// machineRoot writes files below a directory that stands for a machine's root.
func machineRoot(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestAcceleratorNodes_OnlyThoseOfThePlacement(t *testing.T) {
	t.Parallel()
	info := func(uuid, minor string) string {
		return "Model: \t\t NVIDIA H100\nGPU UUID: \t " + uuid + "\nBus Location: \t 0000:01:00.0\nDevice Minor: \t " + minor + "\n"
	}
	root := machineRoot(t, map[string]string{
		"dev/nvidiactl": "", "dev/nvidia-uvm": "", "dev/nvidia0": "", "dev/nvidia1": "", "dev/nvidia-caps/nvidia-cap1": "",
		"dev/dri/renderD128": "", "dev/dri/renderD129": "", "dev/kfd": "",
		"proc/driver/nvidia/gpus/0000:01:00.0/information":       info("GPU-aaaaaaaa-0000-0000-0000-000000000000", "1"),
		"proc/driver/nvidia/gpus/0000:02:00.0/information":       info("GPU-bbbbbbbb-0000-0000-0000-000000000000", "0"),
		"sys/class/drm/renderD129/device/unique_id":              "0123456789abcdef\n",
		"sys/class/drm/renderD128/device/something_with_no_card": "",
	})
	for name, c := range map[string]struct {
		devices []string
		needs   bool
		want    string
	}{
		"no accelerator asked for": {nil, false, ""},
		"not placed":               {nil, true, "nvidiactl nvidia-uvm kfd nvidia0 nvidia1 nvidia-caps/nvidia-cap1 dri/renderD128 dri/renderD129"},
		"by UUID, minor is not the order": {
			[]string{"GPU-aaaaaaaa-0000-0000-0000-000000000000"}, true, "kfd nvidia-uvm nvidia1 nvidiactl",
		},
		"an AMD card": {[]string{"GPU-0123456789abcdef"}, true, "dri/renderD129 kfd nvidia-uvm nvidiactl"},
		"a part of a card": {
			[]string{"MIG-cccccccc"}, true, "dri/renderD128 dri/renderD129 kfd nvidia-caps/nvidia-cap1 nvidia-uvm nvidia0 nvidia1 nvidiactl",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got []string
			for _, n := range acceleratorNodes(root, c.devices, c.needs) {
				got = append(got, strings.TrimPrefix(n, root+"/dev/"))
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("got  %s\nwant %s", strings.Join(got, " "), c.want)
			}
		})
	}
}

func TestProgramDirs_AnEnvironmentAndWhatItWasMadeFrom(t *testing.T) {
	t.Parallel()
	root := machineRoot(t, map[string]string{
		"python3.11/bin/python3.11": "",
		"state/.build/pyvenv.cfg":   "", // written below, with the path
		"state/.build/bin/pip":      "",
	})
	home := filepath.Join(root, "python3.11/bin")
	build := filepath.Join(root, "state/.build")
	if err := os.WriteFile(filepath.Join(build, "pyvenv.cfg"), []byte("home = "+home+"\nversion = 3.11\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{
		filepath.Join(build, "bin/python"): filepath.Join(home, "python3.11"),
		filepath.Join(root, "state/env"):   build,
	} {
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
	}
	got := programDirs(filepath.Join(root, "state/env/bin/python"))
	for _, want := range []string{filepath.Join(root, "state/env"), build, filepath.Join(root, "python3.11")} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is missing in %v", want, got)
		}
	}
	if got := programDirs("/usr/bin/python3"); slices.Contains(got, "/") {
		t.Errorf("the whole machine is granted: %v", got)
	}
	if got := programDirs("./relative"); got != nil {
		t.Errorf("got %v", got)
	}
}

// The worker of a program is the daemon's binary: what is around that, which may
// be the daemon's state, is not shown for it.
func TestView_OfAProgram(t *testing.T) {
	t.Parallel()
	root := machineRoot(t, map[string]string{"local/bin/cjmd": "", "env/bin/tool": "", "env/pyvenv.cfg": "", "plugins/tool/manifest.yaml": ""})
	s := &specs{runtime: filepath.Join(root, "runtime")}
	man := plugins.Manifest{Runtime: runtimeExec, Path: filepath.Join(root, "plugins/tool/manifest.yaml"), Command: []string{filepath.Join(root, "env/bin/tool")}}
	v := s.view(man, plugins.Isolation{}, []string{filepath.Join(root, "local/bin/cjmd"), "exec-worker"}, plugins.EnvDirs{}, nil)
	for _, want := range []string{"local/bin", "plugins/tool", "env", "env/bin"} {
		if !slices.Contains(v.Read, filepath.Join(root, want)) {
			t.Errorf("%s is not visible: %v", want, v.Read)
		}
	}
	if slices.Contains(v.Read, filepath.Join(root, "local")) {
		t.Errorf("what is around the daemon's binary is visible: %v", v.Read)
	}
}
