package main

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPlaceWorker(t *testing.T) {
	t.Parallel()
	const (
		nv1 = "GPU-5f3a8c11-7d53-4b1e-9a6e-0c2d3e4f5a6b"
		nv2 = "GPU-0e1d2c3b-4a59-6877-8695-a4b3c2d1e0ff"
		mig = "MIG-1a2b3c4d-1111-2222-3333-444455556666"
		amd = "GPU-8a6500c3d1f20e47"
		apu = "PCI-0000:0c:00.0"
	)
	index := func(id string) (int, bool) { return 2, id == apu }
	daemon := []string{"PATH=/bin", "CUDA_VISIBLE_DEVICES=3", "HIP_VISIBLE_DEVICES=1", "CUDA_HOME=/cuda"}
	for _, c := range []struct {
		name    string
		devices []string
		gpu     bool
		own     map[string]string
		want    map[string]string
	}{
		{"one", []string{nv1}, true, nil, map[string]string{
			"CUDA_VISIBLE_DEVICES": nv1, "NVIDIA_VISIBLE_DEVICES": nv1, "ROCR_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "-1", "CJM_DEVICES": nv1,
		}},
		{"several, in the order of the placement", []string{nv2, mig, nv1}, true, nil, map[string]string{
			"CUDA_VISIBLE_DEVICES": nv2 + "," + mig + "," + nv1, "NVIDIA_VISIBLE_DEVICES": nv2 + "," + mig + "," + nv1,
			"ROCR_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "-1", "CJM_DEVICES": nv2 + "," + mig + "," + nv1,
		}},
		{"AMD", []string{amd, apu}, true, nil, map[string]string{
			"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "void", "ROCR_VISIBLE_DEVICES": amd + ",2", "HIP_VISIBLE_DEVICES": "0,1",
			"CJM_DEVICES": amd + "," + apu,
		}},
		{"placed although its manifest says nothing of a GPU", []string{nv1}, false, map[string]string{"CUDA_VISIBLE_DEVICES": "0"}, map[string]string{
			"CUDA_VISIBLE_DEVICES": nv1, "NVIDIA_VISIBLE_DEVICES": nv1, "ROCR_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "-1", "CJM_DEVICES": nv1,
		}},
		{"NVIDIA by place", []string{"cuda:1", "cuda:0"}, true, nil, map[string]string{
			"CUDA_VISIBLE_DEVICES": "1,0", "NVIDIA_VISIBLE_DEVICES": "1,0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "ROCR_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "-1",
			"CJM_DEVICES": "cuda:1,cuda:0",
		}},
		{"AMD by place", []string{"rocm:1"}, true, nil, map[string]string{
			"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "void", "ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0", "CJM_DEVICES": "rocm:1",
		}},
		{"a sum over all", []string{"gpus"}, true, nil, map[string]string{"CUDA_VISIBLE_DEVICES": "3", "HIP_VISIBLE_DEVICES": "1", "CJM_DEVICES": "gpus"}},
		{"another maker's", []string{"gpu:0"}, true, nil, map[string]string{"CUDA_VISIBLE_DEVICES": "3", "HIP_VISIBLE_DEVICES": "1", "CJM_DEVICES": "gpu:0"}},
		{"needs none", nil, false, nil, map[string]string{
			"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "void", "ROCR_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "-1", "CJM_DEVICES": "",
		}},
		{"needs none and its manifest sets a variable", []string{}, false, map[string]string{"CUDA_VISIBLE_DEVICES": "0"}, map[string]string{
			"CUDA_VISIBLE_DEVICES": "3", "NVIDIA_VISIBLE_DEVICES": "void", "ROCR_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "-1", "CJM_DEVICES": "",
		}},
		{"needs one and nobody placed it", nil, true, nil, map[string]string{"CUDA_VISIBLE_DEVICES": "3", "HIP_VISIBLE_DEVICES": "1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			env, err := placeWorker(slices.Clone(daemon), c.devices, c.gpu, c.own, index)
			require.NoError(t, err)
			got := map[string]string{}
			for _, kv := range env {
				k, v, _ := strings.Cut(kv, "=")
				require.NotContains(t, got, k, "once")
				got[k] = v
			}
			want := map[string]string{"PATH": "/bin", "CUDA_HOME": "/cuda"}
			maps.Copy(want, c.want)
			require.Equal(t, want, got)
		})
	}
	_, err := placeWorker(nil, []string{"PCI-0000:99:00.0"}, true, nil, index)
	require.ErrorContains(t, err, "the monitor does not see it")
}

// A plugin with a torch of its own, which has n bytes of the first device.
const pretender = `
import sys, types, os
from types import SimpleNamespace
torch = sys.modules["torch"] = types.ModuleType("torch")
torch.cuda = SimpleNamespace(
    is_initialized=lambda: True,
    device_count=lambda: len([d for d in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if d]),
    memory_stats_as_nested_dict=lambda i: {"reserved_bytes": {"all": {"current": 5 << 20, "peak": 7 << 20}}},
    get_device_properties=lambda i: SimpleNamespace(),
)
class Plugin:
    def execute(self): return os.environ["CUDA_VISIBLE_DEVICES"]
`

// The whole way: placement, environment, the worker's own account of what it
// took of the device, and its processes, before its first call.
func TestSpecs_PlacedWorkerIsAccountedForOnceLoaded(t *testing.T) {
	t.Parallel()
	plugins := t.TempDir()
	for name, text := range map[string]string{
		"pretender.py":   pretender,
		"pretender.yaml": "format_version: '3'\nname: pretender\nversion: '1'\nmodule: pretender\nclass: Plugin\npath: .\nresources: {requires_gpu: true}\n",
		"modest.yaml":    "format_version: '3'\nname: modest\nversion: '1'\nmodule: pretender\nclass: Plugin\npath: .\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(plugins, name), []byte(text), 0o600))
	}
	d := assembled(t, "CJMD_PLUGINS_PATHS="+plugins)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.supervisor.Run(ctx) }()
	defer func() {
		stop()
		require.NoError(t, <-ended)
		require.NoError(t, d.close())
	}()
	_, err := d.catalog.Discover(t.Context())
	require.NoError(t, err)

	d.supervisor.Place("pretender", []string{"GPU-one", "GPU-two"})
	require.NoError(t, d.supervisor.EnsureReady(t.Context(), "pretender"))
	st, _ := d.supervisor.Status("pretender")
	require.Equal(t, []string{"GPU-one", "GPU-two"}, st.Devices)
	require.NotNil(t, st.Usage)
	require.Equal(t, map[string]int64{"GPU-one": 5 << 20, "GPU-two": 5 << 20}, st.Usage.Devices)
	require.Equal(t, map[string]int64{"GPU-one": 7 << 20, "GPU-two": 7 << 20}, st.Usage.MaxDevices)
	require.Contains(t, d.supervisor.PIDs("pretender"), st.PID)

	require.NoError(t, d.supervisor.EnsureReady(t.Context(), "modest"))
	st, _ = d.supervisor.Status("modest")
	require.NotNil(t, st.Usage)
	require.Empty(t, st.Usage.Devices, "it asks for no GPU and sees none")
}
