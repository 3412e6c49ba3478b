package amd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// Whatever the kernel notes, amounts are never negative and belong to a card.
func FuzzParseFDInfo(f *testing.F) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		f.Fatal("no recordings", err)
	}
	for _, file := range files {
		a, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, x := range a.Files {
			if strings.Contains(x.Name, "/fdinfo/") {
				f.Add(string(x.Data))
			}
		}
	}
	f.Add("drm-driver: amdgpu\ndrm-pdev: 0000:03:00.0\ndrm-resident-vram: 9223372036854775807 GiB\n")
	f.Fuzz(func(t *testing.T, info string) {
		c, ok := parseFDInfo(info)
		if c.vram < 0 || c.gtt < 0 || ok && c.pci == "" {
			t.Errorf("%+v, %v", c, ok)
		}
	})
}

// Whatever rocm-smi prints, a device has memory and a name of its own.
func FuzzParseTool(f *testing.F) {
	for _, file := range []string{"testdata/rocm-smi-mi250.json", "testdata/rocm-smi-7900.txt"} {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"card0": {"VRAM Total Memory (B)": "-1", "VRAM Total Used Memory (B)": "5"}, "system": {"PID-3": "a, 1, -7, 0, 0"}}`))
	f.Add([]byte(`{"card0": {"VRAM Total Memory (B)": "8", "VRAM Total Used Memory (B)": "9", "GPU use (%)": "NaN"}}`))
	f.Fuzz(func(t *testing.T, out []byte) {
		got, err := parseTool(out)
		if err != nil {
			return
		}
		for _, d := range got.devices() {
			if d.ID == "" || d.Total <= 0 || d.Free < 0 || d.Used < 0 || d.Used+d.Free != d.Total || !(d.LoadPercent >= 0 && d.LoadPercent <= 100) {
				t.Errorf("device %+v", d)
			}
		}
		for pid, n := range got.pids {
			if pid <= 0 || n < 0 {
				t.Errorf("process %d holds %d", pid, n)
			}
		}
	})
}
